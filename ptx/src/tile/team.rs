//! Threads that work on one thing together: a whole block, or a warp of it beside others that do the same.

use super::reduce::{block_exclusive_sum, block_sum, warp_inclusive_sum_32, warp_sum, warp_sum_52};
use crate::isa::{Builder, R32, R64, SharedRegion};

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Team {
    /// All threads of the block.
    Block,
    /// Each warp for itself; it needs no block barrier, and others may be elsewhere.
    Warp,
}

impl Team {
    pub(crate) fn threads(self, k: &Builder) -> u32 {
        match self {
            Team::Block => k.threads(),
            Team::Warp => 32,
        }
    }

    /// This thread among them.
    pub(crate) fn thread(self, k: &mut Builder) -> R32 {
        match self {
            Team::Block => k.thread(),
            Team::Warp => k.lane(),
        }
    }

    /// All of them come here before any goes on, and see what the others have stored.
    pub(crate) fn barrier(self, k: &mut Builder) {
        match self {
            Team::Block => k.barrier(),
            Team::Warp => k.warp_barrier(),
        }
    }

    /// Address of the team's own `bytes` of a region, which holds as much for every team of the block.
    pub(crate) fn address(self, k: &mut Builder, region: SharedRegion, bytes: u32) -> R32 {
        let base = k.shared_address(region);
        match self {
            Team::Block => base,
            Team::Warp => {
                let thread = k.thread();
                let warp = k.shr_u(thread, 5u32);
                k.mad(warp, bytes, base)
            }
        }
    }

    /// The sums over all threads. `scratch` is what [`block_sum`] needs; a warp needs nothing.
    pub(crate) fn sum<const N: usize>(
        self,
        k: &mut Builder,
        scratch: Option<SharedRegion>,
        values: [R64; N],
    ) -> [R64; N] {
        self.sum_by(k, scratch, values, warp_sum)
    }

    /// The same of numbers below 2⁵², which costs a warp less.
    pub(crate) fn sum_52<const N: usize>(
        self,
        k: &mut Builder,
        scratch: Option<SharedRegion>,
        values: [R64; N],
    ) -> [R64; N] {
        self.sum_by(k, scratch, values, warp_sum_52)
    }

    fn sum_by<const N: usize>(
        self,
        k: &mut Builder,
        scratch: Option<SharedRegion>,
        values: [R64; N],
        of_warp: impl Fn(&mut Builder, R64) -> R64,
    ) -> [R64; N] {
        match scratch {
            Some(region) if self == Team::Block => {
                let scratch = k.shared_address(region);
                block_sum(k, scratch, values)
            }
            _ => values.map(|value| of_warp(k, value)),
        }
    }

    /// The sum over the threads before this one, and over all. `scratch` is what [`block_exclusive_sum`] needs; a warp needs
    /// nothing.
    pub(crate) fn exclusive_sum(self, k: &mut Builder, scratch: R32, value: R32) -> (R32, R32) {
        match self {
            Team::Block => block_exclusive_sum(k, scratch, value),
            Team::Warp => {
                let inclusive = warp_inclusive_sum_32(k, value);
                let all = k.shuffle_from(inclusive, 31u32);
                (k.sub(inclusive, value), all)
            }
        }
    }
}
