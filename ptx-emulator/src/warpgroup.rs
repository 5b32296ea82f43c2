//! Warpgroups: four warps that multiply matrices together.
//!
//! Each warp issues a `wgmma` in its own time. It is executed for all four when the first of them waits for its group,
//! and not before all have issued it: from then on the warps know that its reads are over and its sums are there.

use std::collections::VecDeque;

use crate::clock::VectorClock;
use crate::module::Touch;
use crate::op::{Tile, WarpgroupMultiply};
use crate::report::{Fault, Outcome, ReportKind};

/// Warps of a warpgroup.
pub(crate) const WARPS: usize = 4;

/// What a warp gave to a `wgmma` when it issued it.
pub(crate) struct Issue {
    /// Descriptors; that of A is not used if A is in registers.
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) accumulate: bool,
    pub(crate) clock: VectorClock,
}

/// A `wgmma` that not all have waited for.
pub(crate) struct Operation {
    pub(crate) pc: u32,
    pub(crate) issues: [Option<Box<Issue>>; WARPS],
}

/// One warpgroup.
#[derive(Default)]
pub(crate) struct Warpgroup {
    /// Instructions that some of the warps have come to: where, and how many warps.
    open: VecDeque<(u32, usize)>,
    /// Instructions that all have come to.
    passed: u32,
    pub(crate) operations: VecDeque<Operation>,
    /// Operations that have been executed, which are no more in the queue.
    pub(crate) done: u32,
}

impl Warpgroup {
    /// A warp comes to its instruction number `count`. Gives where the others were then, if that is somewhere else.
    pub(crate) fn come(&mut self, count: u32, pc: u32) -> Result<(), u32> {
        let at = count.saturating_sub(self.passed) as usize;
        match self.open.get_mut(at) {
            None => self.open.push_back((pc, 1)),
            Some((other, _)) if *other != pc => return Err(*other),
            Some((_, warps)) => *warps += 1,
        }
        while self.open.front().is_some_and(|&(_, warps)| warps == WARPS) {
            self.open.pop_front();
            self.passed += 1;
        }
        Ok(())
    }

    /// Where some of the warps were and others never came.
    pub(crate) fn unfinished(&self) -> Option<u32> {
        self.open.front().map(|&(pc, _)| pc)
    }

    /// Whether all warps have issued operation `number`.
    pub(crate) fn is_issued(&self, number: u32) -> bool {
        let waiting = number.saturating_sub(self.done) as usize;
        waiting == 0
            || self.operations.get(waiting - 1).is_some_and(|operation| operation.issues.iter().all(Option::is_some))
    }
}

/// What one warp's registers are to the `wgmma` it has issued, which are counted from 1.
#[derive(Default)]
pub(crate) struct Multiplies {
    /// Instructions of the warpgroup that the warp has come to.
    pub(crate) count: u32,
    pub(crate) issued: u32,
    /// Operations that the warp has waited for.
    pub(crate) waited: u32,
    /// Operations issued before each commit that has not been waited for.
    groups: VecDeque<u32>,
    fences: u32,
    uses: Vec<Use>,
}

/// The last uses of a register.
#[derive(Clone, Copy, Default)]
struct Use {
    /// Fences before the last ordinary write, plus one.
    written: u32,
    /// Operation that sums here, and its width.
    sums: u32,
    width: u16,
    /// Operation that reads a fragment of A here.
    reads: u32,
}

impl Multiplies {
    /// For `words` registers; for none if the kernel has no `wgmma`.
    pub(crate) fn new(words: usize) -> Multiplies {
        Multiplies { uses: vec![Use::default(); words], ..Multiplies::default() }
    }

    pub(crate) fn fence(&mut self) {
        self.fences += 1;
    }

    pub(crate) fn commit(&mut self) {
        self.groups.push_back(self.issued);
    }

    /// The operation up to which all are over when `groups` groups may stay in flight.
    pub(crate) fn due(&self, groups: u32) -> u32 {
        let over = self.groups.len().saturating_sub(groups as usize);
        if over == 0 { self.waited } else { self.groups[over - 1].max(self.waited) }
    }

    /// Notes that all operations up to `due` are over.
    pub(crate) fn settle(&mut self, groups: u32, due: u32) {
        let over = self.groups.len().saturating_sub(groups as usize);
        self.groups.drain(..over);
        self.waited = due;
    }

    /// Checks an ordinary access to a register of some `wgmma`.
    #[inline]
    pub(crate) fn touch(&mut self, touch: &Touch, lane: u32) -> Outcome {
        let register = &mut self.uses[touch.word as usize];
        if register.sums > self.waited || (touch.writes && register.reads > self.waited) {
            let (verb, what) = if touch.writes { ("writes", "uses") } else { ("reads", "adds to") };
            let sentence = format!(
                "this instruction {verb} `{}` while a `wgmma` in flight {what} it; wait for its group first",
                touch.name
            );
            return Err(Fault::new(ReportKind::MatrixRegister, lane, sentence));
        }
        if touch.writes {
            register.written = self.fences + 1;
        }
        Ok(())
    }

    /// Checks and notes the registers of a new operation.
    pub(crate) fn issue(&mut self, how: &WarpgroupMultiply, accumulate: bool) -> Outcome {
        let fault = |kind, sentence: &str| Err(Fault::new(kind, 0, sentence));
        self.issued += 1;
        let (number, width) = (self.issued, how.d.len() as u16);
        let fenced = |register: &Use, fences: u32| fences > 0 && register.written <= fences;
        const UNFENCED: &str = "registers of this `wgmma` were written since the last `wgmma.fence`, or there was none";
        if let Tile::Registers(parts) = &how.a {
            for &slot in parts {
                let register = &mut self.uses[slot as usize];
                if !fenced(register, self.fences) {
                    return fault(ReportKind::MatrixFence, UNFENCED);
                }
                if register.sums > self.waited {
                    return fault(ReportKind::MatrixRegister, "a fragment of A is being summed by a `wgmma` in flight");
                }
                register.reads = number;
            }
        }
        for &slot in &how.d {
            let register = &mut self.uses[slot as usize];
            if !fenced(register, self.fences) {
                return fault(ReportKind::MatrixFence, UNFENCED);
            }
            if register.reads > self.waited {
                return fault(
                    ReportKind::MatrixRegister,
                    "an accumulator is a fragment of A of this `wgmma` or of one in flight",
                );
            }
            if register.sums > self.waited && register.width != width {
                return fault(
                    ReportKind::MatrixRegister,
                    "an accumulator belongs to a `wgmma` of another shape in flight; only those of one shape are in order",
                );
            }
            if accumulate && register.sums == 0 && register.written == 0 {
                return fault(
                    ReportKind::UninitialisedRegister,
                    "this `wgmma` adds to accumulators that this warp has never written",
                );
            }
            (register.sums, register.width) = (number, width);
        }
        Ok(())
    }
}

/// The value of a slot in all lanes, if it is one value.
pub(crate) fn uniform<T: Copy + PartialEq>(values: &[T; 32]) -> Option<T> {
    values.iter().all(|&value| value == values[0]).then_some(values[0])
}
