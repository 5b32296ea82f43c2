//! Runs the warps of one block, in seeded random order, each for a random number of instructions or until it has to
//! wait. Lanes of a warp that part run the ones furthest behind first (by instruction), which brings structured code
//! together again where its paths meet.

use crate::exec::{Context, collective, execute, required_lanes};
use crate::module::{Check, Kernel};
use crate::op::{Barrier, BarrierKind, Boolean, Op, Slot};
use crate::report::{Fault, Outcome, Report, ReportKind};
use crate::shared::{MAX_WARPS, Shared, VectorClock};
use crate::warp::{Start, Wait, Warp, lanes};

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

/// A barrier that some threads have arrived at.
#[derive(Clone, Default)]
struct Gathering {
    expected: u32,
    arrived: u32,
    clock: VectorClock,
    any: bool,
    all: bool,
    count: u32,
    /// Warp, lanes and where to put a reduction.
    waiting: Vec<(usize, u32, BarrierKind)>,
}

struct Block<'a> {
    job: &'a Job<'a>,
    context: Context<'a>,
    warps: Vec<Warp>,
    barriers: Vec<Gathering>,
    threads: u32,
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
    let barriers = vec![Gathering::default(); BARRIERS];
    let mut block = Block { job, context, warps, barriers, threads: start.threads() };
    let mut random = Random(job.seed ^ linear.wrapping_mul(0xd134_2543_de82_ef95));
    let mut ready: Vec<usize> = Vec::with_capacity(count);
    loop {
        ready.clear();
        ready.extend((0..count).filter(|&at| block.warps[at].is_ready()));
        if ready.is_empty() {
            if block.warps.iter().all(Warp::is_done) {
                return Ok(());
            }
            let (warp, pc, fault) = block.stuck();
            return Err(block.report(warp, pc, *fault, start));
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
                    warp.exited |= mask;
                    warp.active &= !mask;
                    warp.pc += 1;
                    if warp.active == 0 { Next::Parked } else { Next::Continue }
                }
                Op::Trap => {
                    let lane = mask.trailing_zeros();
                    return Err(Fault::new(ReportKind::Trap, lane, "the kernel executed `trap`"));
                }
                Op::Barrier(barrier) => self.barrier(at, barrier, mask)?,
                op @ (Op::Collective { .. } | Op::LoadMatrix(_) | Op::MatrixMultiply(_)) => {
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

    fn barrier(&mut self, at: usize, barrier: &Barrier, mask: u32) -> Outcome<Next> {
        let warp = &mut self.warps[at];
        let first = mask.trailing_zeros();
        let uniform = |slot: Slot| {
            let values = &warp.registers.words[slot as usize].0;
            let value = values[first as usize & 31];
            lanes(mask).all(|lane| values[lane] == value).then_some(value)
        };
        let fault = |kind, sentence: String| Err(Fault::new(kind, first, sentence));
        let Some(id) = uniform(barrier.id).filter(|&id| (id as usize) < BARRIERS) else {
            return fault(
                ReportKind::DivergentBarrier,
                "the lanes of a warp must name one barrier, from 0 to 15".to_string(),
            );
        };
        let expected = match barrier.count.map(uniform) {
            None => self.threads.next_multiple_of(32),
            Some(Some(count)) if count > 0 && count % 32 == 0 && count <= self.threads.next_multiple_of(32) => count,
            Some(count) => {
                let sentence = format!(
                    "barrier {id} is told to expect {count:?} threads; it must be one multiple of 32 for the warp, from 32 \
                     to the block's {}",
                    self.threads.next_multiple_of(32)
                );
                return fault(ReportKind::BarrierCount, sentence);
            }
        };
        let missing = warp.exists & !mask;
        if missing != 0 && barrier.aligned {
            if missing & warp.exited != 0 {
                let sentence = format!(
                    "an aligned barrier by lanes {mask:#010x} of a warp of which lanes {:#010x} have exited",
                    warp.exited
                );
                return fault(ReportKind::DivergentBarrier, sentence);
            }
            if missing & warp.active != 0 || warp.parked.is_empty() {
                let sentence = format!("an aligned barrier under a guard that is false in lanes {missing:#010x}");
                return fault(ReportKind::DivergentBarrier, sentence);
            }
            warp.park(warp.pc, Wait::Convergence);
            return Ok(Next::Parked);
        }
        let gathering = &mut self.barriers[id as usize];
        if gathering.arrived > 0 && gathering.expected != expected {
            let sentence = format!(
                "barrier {id} is told to expect {expected} threads here, but {} by those who came before",
                gathering.expected
            );
            return fault(ReportKind::BarrierCount, sentence);
        }
        if gathering.arrived == 0 {
            *gathering = Gathering { all: true, ..Gathering::default() };
        }
        gathering.expected = expected;
        gathering.arrived += if mask == warp.exists { 32 } else { mask.count_ones() };
        if gathering.arrived > expected {
            let sentence = format!("{} threads came to barrier {id}, which expects {expected}", gathering.arrived);
            return fault(ReportKind::BarrierCount, sentence);
        }
        for (joined, &own) in gathering.clock.iter_mut().zip(&warp.clock) {
            *joined = own.max(*joined);
        }
        warp.tick();
        if let BarrierKind::Reduce { source, negated, .. } | BarrierKind::Count { source, negated, .. } = barrier.kind {
            let bits = (warp.registers.predicates[source as usize] ^ if negated { u32::MAX } else { 0 }) & mask;
            gathering.any |= bits != 0;
            gathering.all &= bits == mask;
            gathering.count += bits.count_ones();
        }
        warp.pc += 1;
        if barrier.kind != BarrierKind::Arrive {
            gathering.waiting.push((at, mask, barrier.kind));
            // Under a guard only some of the running lanes wait.
            let (pc, rest) = (warp.pc, warp.active & !mask);
            warp.active = mask;
            warp.park(pc, Wait::Barrier(id));
            warp.active = rest;
        }
        if gathering.arrived == expected {
            self.complete(id);
        }
        Ok(if self.warps[at].parked.is_empty() { Next::Continue } else { Next::Yield })
    }

    /// Everybody has come: clocks join, reductions are handed out, and the warps go on.
    fn complete(&mut self, id: u32) {
        let gathering = std::mem::take(&mut self.barriers[id as usize]);
        for (at, mask, kind) in gathering.waiting {
            let warp = &mut self.warps[at];
            for (own, &joined) in warp.clock.iter_mut().zip(&gathering.clock) {
                *own = joined.max(*own);
            }
            match kind {
                BarrierKind::Reduce { op, target, .. } => {
                    let result = if op == Boolean::And { gathering.all } else { gathering.any };
                    warp.registers.set_predicate(target, mask, if result { u32::MAX } else { 0 });
                }
                BarrierKind::Count { target, .. } => {
                    let target = &mut warp.registers.words[target as usize].0;
                    lanes(mask).for_each(|lane| target[lane] = gathering.count);
                }
                BarrierKind::Sync | BarrierKind::Arrive => {}
            }
            warp.release(id);
        }
    }

    /// No warp can go on: why, and which warp and instruction show it best.
    fn stuck(&self) -> (usize, u32, Box<Fault>) {
        let kernel = self.job.kernel;
        let mut waits = Vec::new();
        for (at, warp) in self.warps.iter().enumerate() {
            for group in &warp.parked {
                let lane = group.mask.trailing_zeros();
                let (missing, line) = (warp.exists & !group.mask, kernel.code[group.pc as usize].line);
                match group.wait {
                    Wait::Convergence => {
                        let aligned = matches!(kernel.code[group.pc as usize].op, Op::Barrier(_));
                        let kind = if aligned { ReportKind::DivergentBarrier } else { ReportKind::DivergentCollective };
                        let sentence = format!(
                            "lanes {:#010x} wait here for other lanes of their warp that never come (not here: \
                             {missing:#010x}); the instruction must be reached by all its members together",
                            group.mask
                        );
                        return (at, group.pc, Fault::new(kind, lane, sentence));
                    }
                    Wait::Barrier(id) => {
                        // The instruction before is the barrier itself.
                        let line = kernel.code[group.pc.saturating_sub(1) as usize].line;
                        waits.push((
                            at,
                            group.pc.saturating_sub(1),
                            lane,
                            format!("warp {at} at barrier {id} (line {line})"),
                        ));
                    }
                    Wait::Ready => waits.push((at, group.pc, lane, format!("warp {at} at line {line}"))),
                }
            }
        }
        let exited: Vec<String> =
            self.warps.iter().filter(|warp| warp.exited != 0).map(|warp| warp.id.to_string()).collect();
        let exited = if exited.is_empty() { String::new() } else { format!("; exited: warps {}", exited.join(", ")) };
        let all: Vec<&str> = waits.iter().map(|(.., wait)| wait.as_str()).collect();
        let sentence = format!("no warp of the block can go on: {}{exited}", all.join(", "));
        let (at, pc, lane) = waits.first().map_or((0, 0, 0), |&(at, pc, lane, _)| (at, pc, lane));
        (at, pc, Fault::new(ReportKind::Deadlock, lane, sentence))
    }

    fn report(&self, at: usize, pc: u32, fault: Fault, start: &Start) -> Box<Report> {
        let kernel = self.job.kernel;
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
    Ok(())
}

const _: () = assert!(MAX_WARPS * 32 == 1024, "a block has at most 1024 threads");
