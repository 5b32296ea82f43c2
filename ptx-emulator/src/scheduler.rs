//! Runs the warps of one block, in seeded random order, each for a random number of instructions or until it has to
//! wait. Lanes of a warp that part run the ones furthest behind first (by instruction), which brings structured code
//! together again where its paths meet. What is asynchronous lands when no warp can go on without it.

mod barrier;
mod progress;
mod warpgroup;

use crate::clock::MAX_WARPS;
use crate::exec::{Context, collective, dependency, execute, mbarrier, required_lanes};
use crate::module::{Check, Kernel};
use crate::op::Op;
use crate::report::{Fault, Outcome, Report, ReportKind};
use crate::shared::Shared;
use crate::warp::{Start, Wait, Warp};
use crate::warpgroup::Warpgroup;
use barrier::Gathering;
use warpgroup::Tiles;

/// Barriers a block has.
const BARRIERS: usize = 16;
/// The longest run of one warp.
const LONGEST_RUN: u64 = 512;

/// What is the same for all blocks of a launch.
pub(crate) struct Job<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) seed: u64,
    /// Most instructions a block may execute.
    pub(crate) budget: u64,
}

struct Block<'a> {
    job: &'a Job<'a>,
    context: Context<'a>,
    warps: Vec<Warp>,
    barriers: Vec<Gathering>,
    groups: Vec<Warpgroup>,
    tiles: Tiles,
    threads: u32,
    /// Registers of the block that no warp has, for `setmaxnreg`.
    free_registers: u32,
    /// Progress when threads that poll were last given another chance.
    retried: u64,
}

/// SplitMix64: a small generator is all that scheduling needs.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }
}

/// Runs one block to its end.
pub(crate) fn run_block(
    job: &Job<'_>,
    mut context: Context<'_>,
    start: &Start,
    linear: u64,
) -> Result<(), Box<Report>> {
    let count = start.threads().div_ceil(32) as usize;
    context.shared = Shared::new(start.total_shared, job.kernel.shared_granule, count);
    let warps = (0..count as u32).map(|id| Warp::new(job.kernel, id, start)).collect();
    let barriers = (0..BARRIERS).map(|_| Gathering::default()).collect();
    let groups = (0..count / 4).map(|_| Warpgroup::default()).collect();
    let (tiles, threads) = (Tiles::default(), start.threads());
    let mut block =
        Block { job, context, warps, barriers, groups, tiles, threads, free_registers: 0, retried: u64::MAX };
    let mut random = Random(job.seed ^ linear.wrapping_mul(0xd134_2543_de82_ef95));
    let mut ready: Vec<usize> = Vec::with_capacity(count);
    loop {
        block.wake();
        ready.clear();
        ready.extend((0..count).filter(|&at| block.warps[at].is_ready()));
        if ready.is_empty() {
            let result = if block.warps.iter().all(Warp::is_done) {
                match block.end() {
                    Ok(()) => return Ok(()),
                    fault => fault,
                }
            } else {
                block.advance(&mut random)
            };
            result.map_err(|fault| block.report(0, 0, *fault, start))?;
            continue;
        }
        let chosen = ready[random.below(ready.len() as u64) as usize];
        // Alone there is nobody to switch to.
        let quantum = if ready.len() == 1 { LONGEST_RUN } else { 1 + random.below(LONGEST_RUN) };
        if let Err(fault) = block.run(chosen, quantum) {
            let pc = block.warps[chosen].pc;
            return Err(block.report(chosen, pc, *fault, start));
        }
        if block.context.executed > job.budget {
            let sentence = format!(
                "the block has executed {} instructions, more than its budget: an endless loop, or a wait for something \
                 that never comes",
                block.context.executed
            );
            let warp = &block.warps[chosen];
            let (pc, lane) = (warp.pc, warp.active.trailing_zeros() & 31);
            let fault = Fault::new(ReportKind::InstructionBudget, lane, sentence);
            return Err(block.report(chosen, pc, *fault, start));
        }
    }
}

/// What to do after an instruction.
enum Next {
    Continue,
    /// The running lanes have gone: to a barrier, to wait for others, or for good.
    Parked,
    /// Let another warp run.
    Yield,
}

impl Block<'_> {
    /// Runs one warp for up to `quantum` instructions.
    fn run(&mut self, at: usize, quantum: u64) -> Outcome {
        let kernel = self.job.kernel;
        let warp = &mut self.warps[at];
        if !warp.parked.is_empty() && !warp.regroup() {
            return Ok(());
        }
        for _ in 0..quantum {
            let warp = &mut self.warps[at];
            let instruction = &kernel.code[warp.pc as usize];
            self.context.executed += 1;
            self.context.line = instruction.line;
            let mask = match instruction.guard {
                None => warp.active,
                Some(guard) => {
                    let bits = warp.registers.predicates[guard as usize];
                    warp.active & if instruction.negated { !bits } else { bits }
                }
            };
            if instruction.check != 0 {
                check_written(warp, &kernel.checks[instruction.check as usize - 1], mask)?;
            }
            let next = match &instruction.op {
                Op::Branch { target } => {
                    branch(warp, *target, mask);
                    Next::Continue
                }
                _ if mask == 0 => {
                    warp.pc += 1;
                    Next::Continue
                }
                Op::Exit => {
                    dependency::check_exit(warp, mask)?;
                    warp.exited |= mask;
                    warp.active &= !mask;
                    warp.pc += 1;
                    self.context.progress += 1;
                    if warp.active == 0 { Next::Parked } else { Next::Continue }
                }
                Op::Trap => {
                    let lane = mask.trailing_zeros();
                    return Err(Fault::new(ReportKind::Trap, lane, "the kernel executed `trap`"));
                }
                Op::Barrier(barrier) => self.barrier(at, barrier, mask)?,
                Op::PhaseWait(how) => {
                    let open = mbarrier::ask(&self.context, warp, how, mask)?;
                    warp.pc += 1;
                    match open {
                        None => Next::Continue,
                        // The answer is no; before anything has changed there is no use in asking again.
                        Some((mbarrier, phase)) => {
                            warp.park_some(mask, warp.pc, Wait::Phase { mbarrier, phase });
                            Next::Parked
                        }
                    }
                }
                op @ Op::Warpgroup(how) => {
                    if converged(warp, op, mask)? {
                        self.warpgroup(at, how)?
                    } else {
                        Next::Parked
                    }
                }
                op @ (Op::Collective { .. } | Op::LoadMatrix(_) | Op::StoreMatrix(_) | Op::MatrixMultiply(_)) => {
                    if converged(warp, op, mask)? {
                        match op {
                            Op::Collective { collective: exchange, .. } => collective(warp, exchange, mask)?,
                            op => execute(&mut self.context, warp, op, mask)?,
                        }
                        warp.pc += 1;
                        Next::Continue
                    } else {
                        Next::Parked
                    }
                }
                op => {
                    execute(&mut self.context, warp, op, mask)?;
                    warp.pc += 1;
                    Next::Continue
                }
            };
            let warp = &mut self.warps[at];
            match next {
                Next::Continue if warp.parked.is_empty() => {}
                Next::Continue | Next::Parked => {
                    if !warp.regroup() {
                        return Ok(());
                    }
                }
                Next::Yield => return Ok(()),
            }
        }
        Ok(())
    }

    fn report(&self, at: usize, pc: u32, fault: Fault, start: &Start) -> Box<Report> {
        let kernel = self.job.kernel;
        let (at, pc) = fault.place.map_or((at, pc), |(warp, pc)| (warp as usize, pc));
        let line = kernel.code.get(pc as usize).map_or(0, |instruction| instruction.line);
        let thread = at as u32 * 32 + fault.lane;
        let [x, y, _] = start.block_size;
        Box::new(Report {
            kind: fault.kind,
            entry: kernel.name.clone(),
            line,
            text: kernel.text(line),
            block: start.block,
            thread: [thread % x, thread / x % y, thread / (x * y)],
            warp: at as u32,
            lane: fault.lane,
            address: fault.address,
            sentence: fault.sentence,
        })
    }
}

/// Lanes of `taken` go to `target`, the others on; whoever is behind runs first.
fn branch(warp: &mut Warp, target: u32, taken: u32) {
    let stay = warp.active & !taken;
    if stay == 0 {
        warp.pc = target;
    } else if taken == 0 {
        warp.pc += 1;
    } else {
        warp.active = taken;
        warp.park(target, Wait::Ready);
        warp.active = stay;
        warp.pc += 1;
    }
}

/// Whether all members of a warp-wide instruction are here; if some may still come, parks the ones that are.
fn converged(warp: &mut Warp, op: &Op, mask: u32) -> Outcome<bool> {
    let Some((required, excused)) = required_lanes(warp, op, mask)? else { return Ok(true) };
    let missing = required & !mask & if excused { !warp.exited } else { u32::MAX };
    if missing == 0 {
        return Ok(true);
    }
    let waiting = warp.exists & !warp.exited & !warp.active;
    if missing & !waiting != 0 {
        let (lane, exited) = (mask.trailing_zeros(), missing & (warp.exited | !warp.exists));
        let why = if exited != 0 { "have exited or do not exist" } else { "have a false guard" };
        let sentence = format!(
            "a warp-wide instruction needs lanes {required:#010x}, but lanes {:#010x} {why}",
            missing & !waiting
        );
        return Err(Fault::new(ReportKind::DivergentCollective, lane, sentence));
    }
    warp.park(warp.pc, Wait::Convergence);
    Ok(false)
}

/// Tracked registers: reads must have been written in all lanes that read, writes are noted.
fn check_written(warp: &mut Warp, check: &Check, mask: u32) -> Outcome {
    let guard = check.guard.iter().map(|guard| (guard, warp.active));
    for ((register, name), readers) in guard.chain(check.reads.iter().map(|read| (read, mask))) {
        let unwritten = readers & !warp.registers.written[*register as usize];
        if unwritten != 0 {
            let lane = unwritten.trailing_zeros();
            let sentence = format!("this thread reads `{name}`, which it has never written");
            return Err(Fault::new(ReportKind::UninitialisedRegister, lane, sentence));
        }
    }
    for register in &check.writes {
        warp.registers.written[*register as usize] |= mask;
    }
    if mask != 0 {
        check.touches.iter().try_for_each(|touch| warp.multiplies.touch(touch, mask.trailing_zeros()))?;
    }
    Ok(())
}

const _: () = assert!(MAX_WARPS * 32 == 1024, "a block has at most 1024 threads");
