//! Ranks over a block: a bitonic sort (Batcher 1968) of one key a thread.

use crate::isa::{B32, Builder, R32, R64};

/// Shared memory in bytes that [`block_ranking`] needs.
pub const fn block_ranking_bytes(threads: u32) -> u32 {
    (2 * 8 + 4) * threads
}

/// The order of the keys.
#[derive(Clone, Copy)]
pub struct Ranking {
    /// How many keys come before this thread's.
    pub rank: R32,
    /// The thread whose key has this thread's number as its rank.
    pub holder: R32,
}

/// Ranks the keys of the first `count` threads, largest first, equal ones by thread; the other threads have key 0, and no
/// rank. The block is a power of two; `region` holds [`block_ranking_bytes`], which nobody else uses meanwhile.
///
/// Only a power of two that holds `count` is sorted: up to 32 keys stay in a warp.
pub fn block_ranking(k: &mut Builder, region: R32, key: R32, count: R32) -> Ranking {
    let threads = k.threads();
    let (thread, lane) = (k.thread(), k.lane());
    // Ascending, so that the largest key and then the lowest thread is the least.
    let descending = k.not(key);
    let element = k.join_wide(thread, descending);
    let element = k.mov(element);
    // Two buffers in turn, so that one barrier an exchange is enough.
    let buffer = k.mov(region);
    let both = k.add(region, region);
    let both = k.add(both, 8 * threads);
    let own_place = k.mul(thread, 8u32);
    let size = k.mov::<B32>(2u32);
    let reach = k.shl(count, 1u32);
    k.while_loop(
        |k| k.lt_u(size, reach),
        |k| {
            let half = k.and(thread, size);
            let ascending = k.eq(half, 0u32);
            let stride = k.shr_u(size, 1u32);
            let stride = k.mov(stride);
            k.while_loop(
                |k| k.ne(stride, 0u32),
                |k| {
                    let other = k.mov(0u64);
                    let in_warp = k.lt_u(stride, 32u32);
                    k.if_else(
                        in_warp,
                        |k| {
                            let partner = k.xor(lane, stride);
                            let halves = k.split_wide(element).map(|half| k.shuffle_from(half, partner));
                            let theirs = k.join_wide(halves[0], halves[1]);
                            k.set(other, theirs);
                        },
                        |k| {
                            let own = k.add(buffer, own_place);
                            k.store(own, 0, element);
                            k.barrier();
                            let partner = k.xor(thread, stride);
                            let at = k.mad(partner, 8u32, buffer);
                            let theirs: R64 = k.load(at, 0);
                            k.set(other, theirs);
                            let next = k.sub(both, buffer);
                            k.set(buffer, next);
                        },
                    );
                    let upper = k.and(thread, stride);
                    let lower = k.eq(upper, 0u32);
                    let takes_greater = k.xor_p(lower, ascending);
                    let (lesser, greater) = (k.min_u(element, other), k.max_u(element, other));
                    let kept = k.select(takes_greater, greater, lesser);
                    k.set(element, kept);
                    let next = k.shr_u(stride, 1u32);
                    k.set(stride, next);
                },
            );
            let next = k.shl(size, 1u32);
            k.set(size, next);
        },
    );
    let [holder, _] = k.split_wide(element);
    let ranks = k.add(region, 16 * threads);
    let at = k.mad(holder, 4u32, ranks);
    k.store(at, 0, thread);
    k.barrier();
    let at = k.mad(thread, 4u32, ranks);
    let rank = k.load(at, 0);
    Ranking { rank, holder }
}
