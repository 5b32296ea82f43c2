//! What happens while no warp can go on: what is under way lands, or the block is stuck.

use super::{Block, Random};
use crate::exec::async_copy;
use crate::exec::bulk_copy::{self, Cargo};
use crate::exec::mbarrier::misuse;
use crate::mbarrier::Mbarrier;
use crate::op::Op;
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::address;
use crate::warp::{Wait, Warp};
use crate::warpgroup::WARPS;

impl Block<'_> {
    /// Wakes the lanes whose wait is over.
    pub(super) fn wake(&mut self) {
        let Block { warps, context, groups, free_registers, .. } = self;
        for (at, warp) in warps.iter_mut().enumerate() {
            warp.wake(|wait| match wait {
                Wait::Phase { mbarrier, phase } => {
                    context.mbarriers.get(mbarrier).is_none_or(|mbarrier| mbarrier.is_over(phase))
                }
                Wait::Operation(number) => groups[at / 4].is_issued(number),
                Wait::Registers(count) => count <= *free_registers,
                Wait::Ready | Wait::Convergence | Wait::Barrier(_) => false,
            });
        }
    }

    /// Lands one of the flights that somebody waits for. If there is none, gives those that poll another chance, unless
    /// nothing has changed since the last.
    pub(super) fn advance(&mut self, random: &mut Random) -> Outcome {
        let awaited = |mbarrier: u32| {
            let mut groups = self.warps.iter().flat_map(|warp| &warp.parked);
            groups.any(|group| matches!(group.wait, Wait::Phase { mbarrier: other, .. } if other == mbarrier))
        };
        let flights: Vec<usize> =
            (0..self.context.flights.len()).filter(|&at| awaited(self.context.flights[at].mbarrier)).collect();
        if !flights.is_empty() {
            return self.land(flights[random.below(flights.len() as u64) as usize]);
        }
        if self.retried == self.context.progress {
            return Err(self.stuck());
        }
        self.retried = self.context.progress;
        let mut polling = false;
        for warp in &mut self.warps {
            warp.wake(|wait| {
                let polls = matches!(wait, Wait::Phase { .. });
                polling |= polls;
                polls
            });
        }
        if polling { Ok(()) } else { Err(self.stuck()) }
    }

    fn land(&mut self, at: usize) -> Outcome {
        let flight = self.context.flights.swap_remove(at);
        self.context.progress += 1;
        let result = match flight.cargo {
            Cargo::Box { .. } => bulk_copy::land(&mut self.context, &flight),
            Cargo::Arrival { before } => {
                let warp = &mut self.warps[flight.warp as usize];
                async_copy::land_before(&mut self.context, warp, flight.lane as usize, before).and_then(|()| {
                    let Some(mbarrier) = self.context.mbarriers.at(flight.mbarrier) else { return Ok(()) };
                    mbarrier.copies -= 1;
                    let arrived = mbarrier.arrive(&warp.clock, 1);
                    warp.tick();
                    arrived.map_err(|sentence| misuse(flight.lane as usize, flight.mbarrier, sentence))
                })
            }
        };
        result.map_err(|fault| fault.by(flight.warp, flight.pc))
    }

    /// All threads have exited: nothing may be under way.
    pub(super) fn end(&self) -> Outcome {
        if let Some(flight) = self.context.flights.first() {
            let sentence =
                "the block ends while this copy is under way: nobody has waited for the phase of its mbarrier";
            return Err(Fault::new(ReportKind::AsyncUnwaited, flight.lane, sentence).by(flight.warp, flight.pc));
        }
        for (at, group) in self.groups.iter().enumerate() {
            if let Some(pc) = group.unfinished() {
                let sentence = "some warps of a warpgroup have come to this instruction, and others have exited without; \
                                all four must execute it";
                return Err(Fault::new(ReportKind::DivergentWarpgroup, 0, sentence).by(4 * at as u32, pc));
            }
            if let Some(operation) = group.operations.front() {
                let sentence = "the block ends while this `wgmma` is in flight: its group was never waited for";
                return Err(Fault::new(ReportKind::AsyncUnwaited, 0, sentence).by(4 * at as u32, operation.pc));
            }
        }
        Ok(())
    }

    /// No warp can go on: why, and which warp and instruction show it best.
    fn stuck(&self) -> Box<Fault> {
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
                        return Fault::new(kind, lane, sentence).by(at as u32, group.pc);
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
                    Wait::Phase { mbarrier, phase } => {
                        let pc = group.pc.saturating_sub(1);
                        let lack = self.context.mbarriers.get(mbarrier).map_or(String::new(), Mbarrier::lack);
                        let (line, address) = (kernel.code[pc as usize].line, address(mbarrier as usize));
                        let what = format!(
                            "warp {at} for {phase} of the mbarrier at {address:#x} (line {line}), whose {lack}"
                        );
                        waits.push((at, pc, lane, what));
                    }
                    Wait::Operation(_) => {
                        let first = at / WARPS * WARPS;
                        if self.warps[first..first + WARPS].iter().any(Warp::is_done) {
                            let sentence =
                                "this warp waits for a `wgmma` that another of its warpgroup has exited without";
                            return Fault::new(ReportKind::DivergentWarpgroup, lane, sentence).by(at as u32, group.pc);
                        }
                        let what = format!("warp {at} for the others of its warpgroup (line {line})");
                        waits.push((at, group.pc, lane, what));
                    }
                    Wait::Registers(count) => waits.push((
                        at,
                        group.pc,
                        lane,
                        format!(
                            "warp {at} for {count} more registers (line {line}), of which {} are free",
                            self.free_registers
                        ),
                    )),
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
        Fault::new(ReportKind::Deadlock, lane, sentence).by(at as u32, pc)
    }
}
