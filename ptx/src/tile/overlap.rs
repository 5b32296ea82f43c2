//! Kernels that overlap in their stream, where the architecture has it (`sm_90a`): a launch starts when all blocks of the
//! one in front are under way, as soon as there is room, and waits for its end where it needs it. The text of `sm_80` has
//! nothing of this.
//!
//! Every kernel lets the next one come at its very beginning: who waits takes no turn from who works, and what it holds of
//! a multiprocessor was free. Nobody starves, since a launch comes in only when all blocks in front of it have places.

use crate::isa::{Arch, Builder, Cache};

/// Whether the kernel starts before those in front of it have ended.
pub fn overlaps(k: &Builder) -> bool {
    k.arch() == Arch::Sm90a
}

/// The beginning of a kernel that has nothing to do before it waits.
pub fn follow(k: &mut Builder) {
    start(k);
    wait(k);
}

/// The beginning: before [`wait`], only what [`KernelMeta::programmatic`](crate::KernelMeta) allows.
pub fn start(k: &mut Builder) {
    if overlaps(k) {
        k.let_next_start();
    }
}

/// How constants are read before [`wait`]: `ptxas` may move a load through the non-coherent cache behind it.
pub fn early(k: &Builder) -> Cache {
    if overlaps(k) { Cache::Default } else { Cache::ReadOnly }
}

/// Waits for those in front. Every thread comes here.
pub fn wait(k: &mut Builder) {
    if overlaps(k) {
        k.comment("the launches in front have ended");
        k.wait_for_launches();
    }
}
