//! `bar` and `barrier.cta`: warps that gather.

use super::{BARRIERS, Block, Next};
use crate::clock::VectorClock;
use crate::op::{Barrier, BarrierKind, Boolean, Slot};
use crate::report::{Fault, Outcome, ReportKind};
use crate::warp::{Wait, lanes};

/// A barrier that some threads have arrived at.
pub(super) struct Gathering {
    expected: u32,
    arrived: u32,
    clock: VectorClock,
    any: bool,
    all: bool,
    count: u32,
    /// Warp, lanes and where to put a reduction.
    waiting: Vec<(usize, u32, BarrierKind)>,
}

impl Default for Gathering {
    fn default() -> Gathering {
        let clock = VectorClock::ZERO;
        Gathering { expected: 0, arrived: 0, clock, any: false, all: true, count: 0, waiting: Vec::new() }
    }
}

impl Block<'_> {
    pub(super) fn barrier(&mut self, at: usize, barrier: &Barrier, mask: u32) -> Outcome<Next> {
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
        gathering.expected = expected;
        gathering.arrived += if mask == warp.exists { 32 } else { mask.count_ones() };
        if gathering.arrived > expected {
            let sentence = format!("{} threads came to barrier {id}, which expects {expected}", gathering.arrived);
            return fault(ReportKind::BarrierCount, sentence);
        }
        gathering.clock.join(&warp.clock);
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
            warp.park_some(mask, warp.pc, Wait::Barrier(id));
        }
        if gathering.arrived == expected {
            self.complete(id);
        }
        Ok(if self.warps[at].parked.is_empty() { Next::Continue } else { Next::Yield })
    }

    /// Everybody has come: clocks join, reductions are handed out, and the warps go on.
    fn complete(&mut self, id: u32) {
        self.context.progress += 1;
        let gathering = std::mem::take(&mut self.barriers[id as usize]);
        for (at, mask, kind) in gathering.waiting {
            let warp = &mut self.warps[at];
            warp.clock.join(&gathering.clock);
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
            warp.wake(|wait| wait == Wait::Barrier(id));
        }
    }
}
