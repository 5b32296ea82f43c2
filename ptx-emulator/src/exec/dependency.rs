//! Programmatic dependent launches. Launches follow one another here, so that `griddepcontrol.wait` finds nothing to wait
//! for; but on hardware one that may start early does so while those in front are still at work, and sees what they write
//! only behind it. So until a thread has waited it may read nothing but what the launch calls constant, and write nothing.
//! Loads through the non-coherent cache are for constants wherever they stand: the rest is not read-only as long as the
//! kernel runs, and an assembler may move such a load in front of the wait.

use super::Context;
use crate::memory::Allocation;
use crate::report::{Fault, Outcome, ReportKind};
use crate::warp::Warp;

/// The lanes of `mask` have waited.
pub(crate) fn wait(warp: &mut Warp, mask: u32) {
    warp.early &= !mask;
}

/// Whether reads by these lanes must be checked.
#[inline]
pub(crate) fn is_early(context: &Context<'_>, warp: &Warp, mask: u32, read_only: bool) -> bool {
    warp.early & mask != 0 || read_only && context.early
}

/// Checks a read of global memory.
#[inline]
pub(crate) fn check_read(
    context: &Context<'_>,
    warp: &Warp,
    (lane, address): (usize, u64),
    allocation: &Allocation,
    read_only: bool,
) -> Outcome {
    if !is_early(context, warp, 1 << lane, read_only) || context.constants.contains(&allocation.base()) {
        return Ok(());
    }
    let sentence = if warp.early >> lane & 1 != 0 {
        "a read before `griddepcontrol.wait`, of memory that the launch does not call constant: the launches in front may \
         still write it"
    } else {
        "a read through the non-coherent cache, in a launch that may start early, of memory that the launch \
         does not call constant; leave out `.nc`"
    };
    Err(Fault::at(ReportKind::EarlyAccess, lane as u32, address, sentence))
}

/// Checks a write of global memory.
#[inline]
pub(crate) fn check_write(warp: &Warp, lane: usize, address: u64) -> Outcome {
    if warp.early >> lane & 1 == 0 {
        return Ok(());
    }
    let sentence = "a write before `griddepcontrol.wait`: the launches in front may still read or write there";
    Err(Fault::at(ReportKind::EarlyAccess, lane as u32, address, sentence))
}

/// Checks that the lanes of `mask` may exit.
pub(crate) fn check_exit(warp: &Warp, mask: u32) -> Outcome {
    let early = warp.early & mask;
    if early == 0 {
        return Ok(());
    }
    let sentence = "this thread ends without `griddepcontrol.wait`: whoever waits for its kernel would not have waited for \
                    those in front";
    Err(Fault::new(ReportKind::EarlyExit, early.trailing_zeros(), sentence))
}
