//! The embedded backend: PTX text on the CPU. Work is done when a call returns; a capture records instead.

use super::{EncodedTensorMap, Plain, TensorMap, cache::ModuleCache, kernel::Source, plain, tensor_map::Dimensions};
use crate::Error;
use ptx::{KernelMeta, ParameterKind};
use ptx_emulator::{Launch, Machine, Swizzle};
use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Blocks that [`Device::multiprocessors`](super::Device::multiprocessors) says run at a time.
pub(super) const MULTIPROCESSORS: u32 = 4;

/// One machine with its memory and modules.
pub(super) struct Emulator {
    machine: Machine,
    modules: ModuleCache<Module>,
}

/// A parsed module.
pub(super) struct Module(ptx_emulator::Module);

fn error(what: impl Into<String>) -> impl FnOnce(&dyn Display) -> Error {
    let what = what.into();
    move |report| Error::Emulator { what, report: report.to_string() }
}

/// Encodes a tensor map as the emulator reads it.
pub(super) fn encode_tensor_map(map: &TensorMap) -> Result<EncodedTensorMap, Error> {
    let Dimensions { count: rank, shape: dims, strides: strides_bytes, box_shape: box_dims } = map.dimensions();
    let swizzle = if map.box_shape.columns == 64 { Swizzle::Bytes128 } else { Swizzle::Bytes64 };
    let (address, element_bytes) = (map.address, 2);
    let described = ptx_emulator::TensorMap { address, rank, element_bytes, dims, strides_bytes, box_dims, swizzle };
    described.encode().map_err(|e| error("encoding a tensor map")(&e))
}

impl Emulator {
    pub(super) fn new() -> Arc<Emulator> {
        Arc::new(Emulator { machine: Machine::new(), modules: ModuleCache::default() })
    }

    pub(super) fn load(&self, source: &Source<'_>) -> Result<Arc<Module>, Error> {
        let what = || format!("reading kernel {}", source.meta.entry);
        self.modules.get_or_load(source, || {
            let text = source.text.to_str().map_err(|e| error(what())(&e))?;
            Ok(Module(ptx_emulator::Module::parse(text).map_err(|e| error(what())(&e))?))
        })
    }

    pub(super) fn allocate(&self, bytes: usize) -> u64 {
        self.machine.allocate(bytes)
    }

    pub(super) fn free(&self, address: u64) {
        // The address came from `allocate` and is freed once.
        let _ = self.machine.free(address);
    }
}

/// What a capture has recorded, in order.
pub(super) type Recording = Vec<Operation>;

pub(super) enum Operation {
    Launch(Work),
    Fill { address: u64, byte: u8, bytes: usize },
    Host(HostWork),
}

/// A launch with all that it needs.
pub(super) struct Work {
    module: Arc<Module>,
    entry: String,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    parameters: Vec<u8>,
    /// Of a programmatic kernel: its constants.
    early: Option<Vec<u64>>,
}

impl Work {
    fn new(module: &Arc<Module>, grid: [u32; 3], meta: &KernelMeta, parameters: &[u8]) -> Work {
        let constants = meta.parameters.iter().filter(|parameter| parameter.kind == ParameterKind::Constant);
        let address = |offset: u32| parameters[offset as usize..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        Work {
            module: module.clone(),
            entry: meta.entry.to_string(),
            grid,
            threads: meta.threads,
            shared_bytes: meta.shared_bytes,
            parameters: parameters.to_vec(),
            early: meta.programmatic.then(|| constants.filter_map(|parameter| address(parameter.offset)).collect()),
        }
    }
}

/// What [`Stream::emulate`](super::Stream::emulate) runs.
type HostWork = Arc<dyn Fn(&Memory<'_>) -> Result<(), Error> + Send + Sync>;

/// The memory of the embedded backend, for work on the host in the order of a stream.
pub struct Memory<'q>(&'q Queue);

impl Memory<'_> {
    /// `count` values from a device address on.
    ///
    /// # Errors
    /// [`Error::Emulator`] where this is not initialised memory of one buffer.
    pub fn read<T: Plain>(&self, address: u64, count: usize) -> Result<Vec<T>, Error> {
        let mut values = plain::zeros::<T>(count);
        self.0.read(address, plain::bytes_mut(&mut values))?;
        Ok(values)
    }

    /// Stores values from a device address on.
    ///
    /// # Errors
    /// [`Error::Emulator`] where this is not memory of one buffer.
    pub fn write<T: Plain>(&self, address: u64, values: &[T]) -> Result<(), Error> {
        self.0.write(address, plain::bytes(values))
    }
}

/// A stream: nothing but the recording of a capture.
pub(super) struct Queue {
    emulator: Arc<Emulator>,
    recording: Mutex<Option<Recording>>,
}

impl Queue {
    pub(super) fn new(emulator: &Arc<Emulator>) -> Queue {
        Queue { emulator: emulator.clone(), recording: Mutex::default() }
    }

    pub(super) fn launch(
        &self,
        module: &Arc<Module>,
        grid: [u32; 3],
        meta: &KernelMeta,
        parameters: &[u8],
    ) -> Result<(), Error> {
        let work = Work::new(module, grid, meta, parameters);
        if let Some(recording) = &mut *self.recording() {
            recording.push(Operation::Launch(work));
            return Ok(());
        }
        self.run(&work)
    }

    fn run(&self, work: &Work) -> Result<(), Error> {
        let Work { module, entry, grid, threads, shared_bytes, parameters, early } = work;
        let (block, shared_bytes) = ([*threads, 1, 1], *shared_bytes);
        let launch = Launch { grid: *grid, block, shared_bytes, parameters, early: early.as_deref() };
        self.emulator.machine.launch(&module.0, entry, &launch).map_err(|e| error(format!("kernel {entry}"))(&e))
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.emulator.machine.write(address, bytes).map_err(|e| error("writing")(&e))
    }

    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.emulator.machine.read(address, bytes).map_err(|e| error("reading")(&e))
    }

    pub(super) fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        if let Some(recording) = &mut *self.recording() {
            recording.push(Operation::Fill { address, byte, bytes });
            return Ok(());
        }
        self.emulator.machine.fill(address, byte, bytes).map_err(|e| error("filling")(&e))
    }

    pub(super) fn host(&self, work: HostWork) -> Result<(), Error> {
        if let Some(recording) = &mut *self.recording() {
            recording.push(Operation::Host(work));
            return Ok(());
        }
        work(&Memory(self))
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.recording().is_some()
    }

    pub(super) fn capture<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Recording, E> {
        *self.recording() = Some(Vec::new());
        let capture = Capture(self);
        work()?;
        Ok(capture.end())
    }

    pub(super) fn replay(&self, recording: &Recording) -> Result<(), Error> {
        recording.iter().try_for_each(|operation| match operation {
            Operation::Launch(work) => self.run(work),
            Operation::Fill { address, byte, bytes } => self.fill(*address, *byte, *bytes),
            Operation::Host(work) => work(&Memory(self)),
        })
    }

    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A capture under way; ends however the work ends.
struct Capture<'q>(&'q Queue);

impl Capture<'_> {
    fn end(self) -> Recording {
        self.0.recording().take().unwrap_or_default()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.0.recording().take();
    }
}
