//! Deterministic top-k of a block: a radix select over 32-bit keys, and the pass that visits what it selected in order.
//!
//! The select finds the k-th largest key in four passes of eight bits, each a histogram in shared memory (integer atomics:
//! the order of additions does not matter). Ties at that key go to the lowest index: the visiting pass walks the keys in
//! ascending order and counts, over the whole block, how many larger and how many equal keys lie before each.

use super::{
    order::order_key,
    reduce::{BLOCK_EXCLUSIVE_SUM_BYTES, block_exclusive_sum, warp_inclusive_sum_32},
};
use crate::isa::{B32, Builder, Cache, R32, RF, RP, SharedRegion, Source};

const BINS: u32 = 256;
/// Bins that each lane of the searching warp holds.
const BINS_A_LANE: u32 = BINS / 32;

/// Shared memory of the select and of the visiting pass.
pub(crate) struct Scratch {
    bins: SharedRegion,
    found: SharedRegion,
    sums: SharedRegion,
}

/// What the select found: all keys above `key` are selected, and of those equal to it the first `ties`.
#[derive(Clone, Copy)]
pub(crate) struct Threshold {
    pub(crate) key: R32,
    pub(crate) ties: R32,
}

/// One key as the visiting pass meets it.
pub(crate) struct Visit {
    /// Index of the key; in the last turn of the walk it may lie past the end.
    pub(crate) index: R32,
    /// Whether it is selected; false past the end.
    pub(crate) selected: RP,
    /// Selected keys before it.
    pub(crate) position: R32,
}

impl Scratch {
    /// Reserves it. The block has at most 1024 threads.
    pub(crate) fn new(k: &mut Builder) -> Scratch {
        Scratch { bins: k.shared(BINS * 4, 16), found: k.shared(8, 8), sums: k.shared(BLOCK_EXCLUSIVE_SUM_BYTES, 8) }
    }
}

/// The integer key that orders like `score`: −0 below +0, NaN below everything. It is below `0xFFFF_FFFE`.
pub(crate) fn ranking_key(k: &mut Builder, score: RF) -> R32 {
    let key = order_key(k, score);
    let nan = k.ne_f(score, score);
    k.select(nan, 0u32, key)
}

/// Finds the `rank`-th largest of `key(0), …, key(count − 1)`; `rank ≤ count`, both the same in all threads.
pub(crate) fn select(
    k: &mut Builder,
    scratch: &Scratch,
    count: R32,
    rank: R32,
    key: impl Fn(&mut Builder, R32) -> R32,
) -> Threshold {
    select_weighted(k, scratch, count, rank, key, |_, _| 1u32.into())
}

/// Finds the fewest of the largest keys whose weights reach `share`, which is at most the sum of all weights and the
/// same in all threads. A key's weight depends on the key alone; the sum of all fits in 32 bits. With `share` 0 nothing
/// lies above the threshold.
pub(crate) fn select_share(
    k: &mut Builder,
    scratch: &Scratch,
    count: R32,
    share: R32,
    key: impl Fn(&mut Builder, R32) -> R32,
    weight: impl Fn(&mut Builder, R32) -> R32,
) -> Threshold {
    let Threshold { key, ties: rest } = select_weighted(k, scratch, count, share, key, |k, key| weight(k, key).into());
    // What the keys above left over falls to those equal to the threshold, which all weigh the same.
    let each = weight(k, key);
    let each = k.max_u(each, 1u32);
    let rest = k.add(rest, each);
    let rest = k.sub(rest, 1u32);
    Threshold { key, ties: k.div_u(rest, each) }
}

/// Finds the key at which the weights of the keys, from the largest down, reach `rank`; `ties` is the weight still missing
/// above it.
fn select_weighted(
    k: &mut Builder,
    scratch: &Scratch,
    count: R32,
    rank: R32,
    key: impl Fn(&mut Builder, R32) -> R32,
    weight: impl Fn(&mut Builder, R32) -> Source<B32>,
) -> Threshold {
    let thread = k.thread();
    let bins = k.shared_address(scratch.bins);
    let found = k.shared_address(scratch.found);
    // With rank 0 no pass runs, and nothing lies above the largest key.
    let prefix = k.mov(0u32);
    let remaining = k.mov(rank);
    let nothing = k.eq(rank, 0u32);
    let done = k.label();
    k.when(nothing, |k| k.set(prefix, u32::MAX));
    k.branch_if(nothing, done);
    let known = k.mov(0u32);
    k.for_loop(0u32, 4u32, 1, |k, pass| {
        let shift = k.mad(pass, -8i32, 24u32);
        k.for_loop(thread, BINS, k.threads(), |k, bin| {
            let at = k.mad(bin, 4u32, bins);
            k.store::<B32, _>(at, 0, 0u32);
        });
        k.barrier();
        k.for_loop(thread, count, k.threads(), |k, index| {
            let key = key(k, index);
            let high = k.and(key, known);
            let candidate = k.eq(high, prefix);
            let digit = k.shr_u(key, shift);
            let digit = k.and(digit, BINS - 1);
            let at = k.mad(digit, 4u32, bins);
            let weight = weight(k, key);
            k.when(candidate, |k| k.reduce_add(at, 0, weight));
        });
        k.barrier();
        let searches = k.lt_u(thread, 32u32);
        k.if_then(searches, |k| search(k, bins, found, remaining));
        k.barrier();
        let [digit, rest] = k.load_vector(found, 0, Cache::Default);
        k.set(remaining, rest);
        let digit = k.shl(digit, shift);
        let longer = k.or(prefix, digit);
        k.set(prefix, longer);
        let mask = k.mov(BINS - 1);
        let mask = k.shl(mask, shift);
        let longer = k.or(known, mask);
        k.set(known, longer);
    });
    k.place(done);
    Threshold { key: prefix, ties: remaining }
}

/// How many of this thread's keys lie above `threshold`.
pub(crate) fn above(k: &mut Builder, count: R32, threshold: R32, key: impl Fn(&mut Builder, R32) -> R32) -> R32 {
    let thread = k.thread();
    let above = k.mov(0u32);
    k.for_loop(thread, count, k.threads(), |k, index| {
        let key = key(k, index);
        let larger = k.gt_u(key, threshold);
        let more = k.add(above, 1u32);
        k.when(larger, |k| k.set(above, more));
    });
    above
}

/// One warp walks the bins from the top and stores the digit in which the `remaining`-th largest key falls, and its rank
/// within that bin.
fn search(k: &mut Builder, bins: R32, found: R32, remaining: R32) {
    // Lane l holds bins 248 − 8l to 255 − 8l, so that lower lanes hold larger digits.
    let lane = k.lane();
    let first = k.mad(lane, -(BINS_A_LANE as i32), BINS - BINS_A_LANE);
    let at = k.mad(first, 4u32, bins);
    let low: [R32; 4] = k.load_vector(at, 0, Cache::Default);
    let high: [R32; 4] = k.load_vector(at, 16, Cache::Default);
    let counts = [low, high].concat();
    let sum = counts[1..].iter().fold(counts[0], |sum, &count| k.add(sum, count));
    let through = warp_inclusive_sum_32(k, sum);
    let mut above = k.sub(through, sum);
    for (i, &count) in counts.iter().enumerate().rev() {
        let through = k.add(above, count);
        let starts = k.lt_u(above, remaining);
        let ends = k.le_u(remaining, through);
        let here = k.and_p(starts, ends);
        let digit = k.add(first, i as u32);
        let rest = k.sub(remaining, above);
        k.when(here, |k| k.store_vector(found, 0, [digit, rest]));
        above = through;
    }
}

/// Calls `body` for every key in ascending order of index, a block's width at a time; all threads take part in every
/// turn. `key` must give what it gave to [`select`].
pub(crate) fn visit(
    k: &mut Builder,
    scratch: &Scratch,
    count: R32,
    threshold: Threshold,
    key: impl Fn(&mut Builder, R32) -> R32,
    body: impl FnOnce(&mut Builder, Visit),
) {
    let thread = k.thread();
    let sums = k.shared_address(scratch.sums);
    let (larger_before, equal_before) = (k.mov(0u32), k.mov(0u32));
    k.for_loop(0u32, count, k.threads(), |k, base| {
        let index = k.add(base, thread);
        let inside = k.lt_u(index, count);
        let value = k.mov(0u32);
        k.if_then(inside, |k| {
            let key = key(k, index);
            k.set(value, key);
        });
        let larger = k.gt_u(value, threshold.key);
        let larger = k.and_p(larger, inside);
        let equal = k.eq(value, threshold.key);
        let equal = k.and_p(equal, inside);

        // Both counts in one word: the larger in the low half, the equal in the high half.
        let counted = k.select(equal, 1u32 << 16, 0u32);
        let counted = k.select(larger, 1u32, counted);
        let (before, all) = block_exclusive_sum(k, sums, counted);
        let larger_rank = k.and(before, 0xFFFFu32);
        let larger_rank = k.add(larger_rank, larger_before);
        let equal_rank = k.shr_u(before, 16u32);
        let equal_rank = k.add(equal_rank, equal_before);

        let wins = k.lt_u(equal_rank, threshold.ties);
        let wins = k.and_p(wins, equal);
        let selected = k.or_p(larger, wins);
        let won = k.min_u(equal_rank, threshold.ties);
        let position = k.add(larger_rank, won);
        body(k, Visit { index, selected, position });

        let larger_all = k.and(all, 0xFFFFu32);
        let sum = k.add(larger_before, larger_all);
        k.set(larger_before, sum);
        let equal_all = k.shr_u(all, 16u32);
        let sum = k.add(equal_before, equal_all);
        k.set(equal_before, sum);
    });
}
