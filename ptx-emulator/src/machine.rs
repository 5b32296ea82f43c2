//! The device: its memory, and launches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::exec::Context;
use crate::level::Level;
use crate::mbarrier::Mbarriers;
use crate::memory::{Allocation, Memory};
use crate::module::{Kernel, Module};
use crate::report::{AccessError, LaunchError, Report};
use crate::scheduler::{Job, run_block};
use crate::shared::Shared;
use crate::warp::Start;

/// Most shared memory of a block, static and dynamic together: what compute capability 9.0 has.
const SHARED_LIMIT: u32 = 227 * 1024;
/// Instructions of one block after which it is taken for an endless loop.
const BUDGET: u64 = 1 << 33;

/// An emulated device. All methods may be called from any thread; launches of several threads run side by side.
#[derive(Debug)]
pub struct Machine {
    memory: RwLock<Arc<Memory>>,
    seed: u64,
    budget: u64,
    level: Level,
}

/// Grid, block, dynamic shared memory and parameters of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The parameters, each at its natural alignment, as `CU_LAUNCH_PARAM_BUFFER_POINTER` takes them.
    pub parameters: &'a [u8],
    /// Of a launch that may start before those in front of it have ended (programmatic stream serialization): addresses in
    /// memory that none of those writes, each for the allocation it lies in. It may read that before `griddepcontrol.wait`.
    pub early: Option<&'a [u64]>,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

impl Machine {
    /// A device with no memory allocated. The order of warps is seeded from the environment variable
    /// `PTX_EMULATOR_SEED`, a decimal number; without it the seed is 1.
    pub fn new() -> Machine {
        let seed = std::env::var("PTX_EMULATOR_SEED").ok().and_then(|text| text.parse().ok());
        Machine::with_seed(seed.unwrap_or(1))
    }

    /// A device whose warps are scheduled by `seed`. The same seed gives the same order, block by block.
    pub fn with_seed(seed: u64) -> Machine {
        Machine { memory: RwLock::default(), seed, budget: BUDGET, level: Level::detect() }
    }

    /// Limits the warp instructions that one block may execute before it is taken for an endless loop.
    pub fn with_instruction_budget(mut self, instructions: u64) -> Machine {
        self.budget = instructions;
        self
    }

    /// Uses no vector instructions beyond those every machine has. For tests that compare the two.
    pub fn with_baseline_instructions(mut self) -> Machine {
        self.level = Level::BASELINE;
        self
    }

    /// Allocates device memory, 256-byte aligned and never written. Addresses are the device's own, above 2³², and no
    /// address is given twice.
    pub fn allocate(&self, bytes: usize) -> u64 {
        self.change(|memory| memory.allocate(bytes))
    }

    /// Frees what [`Machine::allocate`] returned. A launch that is under way keeps the memory until it ends.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if `address` is not the start of a live allocation.
    pub fn free(&self, address: u64) -> Result<(), AccessError> {
        self.change(|memory| memory.free(address))
    }

    /// Copies `bytes` to the device.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the range is not inside one live allocation; then nothing is written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), AccessError> {
        self.memory().write(address, bytes.len(), |at| bytes[at])
    }

    /// Copies from the device.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the range is not inside one live allocation, or holds a byte that was never written.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.memory().read(address, bytes, true)
    }

    /// Copies from the device; bytes that were never written read as zero.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the range is not inside one live allocation.
    pub fn read_unchecked(&self, address: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.memory().read(address, bytes, false)
    }

    /// Sets `bytes` bytes to `byte`.
    ///
    /// # Errors
    ///
    /// [`AccessError`] if the range is not inside one live allocation; then nothing is written.
    pub fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), AccessError> {
        self.memory().write(address, bytes, |_| byte)
    }

    /// Runs a kernel to its end. Blocks run in parallel on rayon's threads, started in the order of their index (x
    /// fastest).
    ///
    /// # Errors
    ///
    /// [`LaunchError`] if the kernel does not exist, the launch does not fit it, or the sanitizer stops it. If several
    /// blocks fail, the first in order is reported.
    pub fn launch(&self, module: &Module, entry: &str, launch: &Launch<'_>) -> Result<(), LaunchError> {
        let Some(kernel) = module.kernel(entry) else {
            let known = module.entries().collect::<Vec<_>>().join(", ");
            return Err(LaunchError::UnknownEntry { entry: entry.to_string(), known });
        };
        let total_shared = validate(kernel, launch)?;
        let memory = self.memory();
        let constants: Vec<u64> = launch
            .early
            .unwrap_or(&[])
            .iter()
            .filter_map(|&address| memory.find(address, 1))
            .map(Allocation::base)
            .collect();
        let job = Job { kernel, seed: self.seed, budget: self.budget };
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let (next, stop) = (AtomicU64::new(0), AtomicU64::new(blocks));
        let first: Mutex<Option<(u64, Box<Report>)>> = Mutex::new(None);
        let work = || {
            loop {
                let linear = next.fetch_add(1, Ordering::Relaxed);
                if linear >= stop.load(Ordering::Relaxed) {
                    return;
                }
                let (x, y) = (u64::from(launch.grid[0]), u64::from(launch.grid[1]));
                let start = Start {
                    grid: launch.grid,
                    block_size: launch.block,
                    block: [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32],
                    dynamic_shared: launch.shared_bytes,
                    total_shared,
                    early: launch.early.is_some(),
                };
                let context = Context {
                    memory: &memory,
                    shared: Shared::new(0, 4, 1),
                    parameters: launch.parameters,
                    constants: &constants,
                    early: launch.early.is_some(),
                    level: self.level,
                    executed: 0,
                    mbarriers: Mbarriers::new(),
                    flights: Vec::new(),
                    progress: 0,
                    line: 0,
                };
                if let Err(report) = run_block(&job, context, &start, linear) {
                    stop.fetch_min(linear, Ordering::Relaxed);
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(at, _)| linear < *at) {
                        *first = Some((linear, report));
                    }
                }
            }
        };
        let workers = (rayon::current_num_threads() as u64).min(blocks);
        if workers == 1 {
            work();
        } else {
            rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| work())));
        }
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, report)) => Err(LaunchError::Report(report)),
            None => Ok(()),
        }
    }

    fn memory(&self) -> Arc<Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut memory))
    }
}

/// Checks a launch against its kernel and gives the shared memory of a block.
fn validate(kernel: &Kernel, launch: &Launch<'_>) -> Result<u32, LaunchError> {
    let entry = || kernel.name.clone();
    let refuse = |message: String| Err(LaunchError::Dimensions { entry: entry(), message });
    let Launch { grid, block, .. } = *launch;
    if grid.contains(&0) || grid[0] > 0x7fff_ffff || grid[1] > 65535 || grid[2] > 65535 {
        return refuse(format!(
            "a grid of {grid:?} blocks; each dimension is at least 1, at most 2147483647, 65535, 65535"
        ));
    }
    let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
    if threads == 0 || threads > 1024 || block[2] > 64 {
        return refuse(format!("a block of {block:?} threads; 1 to 1024 in all, at most 64 in z"));
    }
    if let Some(required) = kernel.required_block
        && required != block
    {
        return refuse(format!("a block of {block:?} threads; the kernel is made for {required:?} (.reqntid)"));
    }
    if let Some(most) = kernel.max_threads
        && threads > u64::from(most)
    {
        return refuse(format!("a block of {threads} threads; the kernel takes at most {most} (.maxntid)"));
    }
    if launch.parameters.len() != kernel.parameter_bytes {
        let layout: Vec<String> =
            kernel.parameters.iter().map(|p| format!("{} at {}, {} bytes", p.name, p.offset, p.bytes)).collect();
        return Err(LaunchError::Parameters {
            entry: entry(),
            given: launch.parameters.len(),
            needed: kernel.parameter_bytes,
            layout: layout.join("; "),
        });
    }
    let requested = u64::from(kernel.fixed_shared) + u64::from(launch.shared_bytes);
    match u32::try_from(requested) {
        Ok(total) if total <= SHARED_LIMIT => Ok(total),
        _ => Err(LaunchError::SharedMemory {
            entry: entry(),
            requested,
            fixed: kernel.fixed_shared,
            limit: SHARED_LIMIT,
        }),
    }
}
