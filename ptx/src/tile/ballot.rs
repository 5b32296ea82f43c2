//! Predicates over a block, a bit a thread: counted, searched and ranked by their words, a word a warp.

use super::reduce::warp_inclusive_sum_32;
use crate::isa::{Builder, R32, RP};

/// Shared memory in bytes that [`block_ballots`] of `predicates` predicates needs, for any number of threads.
pub const fn block_ballots_bytes(predicates: u32) -> u32 {
    32 * 4 * predicates
}

/// Where a predicate holds in the block.
#[derive(Clone, Copy)]
pub struct Bits {
    /// The word of this thread's warp.
    pub own: R32,
    /// The word of the warp whose number is this thread's lane; 0 if there is none.
    word: R32,
}

/// Where each predicate holds. `region` holds [`block_ballots_bytes`], which nobody reads before the barrier in here, and
/// nobody writes before another one.
pub fn block_ballots<const N: usize>(k: &mut Builder, region: R32, predicates: [RP; N]) -> [Bits; N] {
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let leader = k.eq(lane, 0u32);
    let slot = k.mad(warp, 4u32, region);
    let owned = predicates.map(|predicate| k.ballot(predicate));
    k.when(leader, |k| {
        for (i, own) in owned.into_iter().enumerate() {
            k.store(slot, 128 * i as i64, own);
        }
    });
    k.barrier();
    let exists = k.lt_u(lane, warps);
    let at = k.mad(lane, 4u32, region);
    std::array::from_fn(|i| {
        let word = k.mov(0u32);
        k.when(exists, |k| {
            let loaded: R32 = k.load(at, 128 * i as i64);
            k.set(word, loaded);
        });
        Bits { own: owned[i], word }
    })
}

impl Bits {
    /// In how many threads it holds.
    pub fn count(self, k: &mut Builder) -> R32 {
        let ones = k.popc(self.word);
        k.warp_sum(ones)
    }

    /// The first thread in which it holds; `u32::MAX` if there is none.
    pub fn first(self, k: &mut Builder) -> R32 {
        let reversed = k.brev(self.word);
        let zeros = k.clz(reversed);
        let lane = k.lane();
        let thread = k.mad(lane, 32u32, zeros);
        let any = k.ne(self.word, 0u32);
        let thread = k.select(any, thread, u32::MAX);
        k.warp_min_u(thread)
    }

    /// In how many threads before this one it holds.
    pub fn rank(self, k: &mut Builder) -> R32 {
        let ones = k.popc(self.word);
        let through = warp_inclusive_sum_32(k, ones);
        let before = k.sub(through, ones);
        let thread = k.thread();
        let warp = k.shr_u(thread, 5u32);
        let before = k.shuffle_from(before, warp);
        let below = k.lanes_below();
        let below = k.and(self.own, below);
        let below = k.popc(below);
        k.add(before, below)
    }
}

/// The running number of this lane among those for which a condition holds, which `count` counts.
pub(crate) fn running_rank(k: &mut Builder, condition: RP, lower: R32, count: R32) -> R32 {
    let lanes = k.ballot(condition);
    let before = k.and(lanes, lower);
    let before = k.popc(before);
    let place = k.add(count, before);
    let all = k.popc(lanes);
    let next = k.add(count, all);
    k.set(count, next);
    place
}
