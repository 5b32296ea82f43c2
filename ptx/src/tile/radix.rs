//! Deterministic top-k of a block or of a warp ([`Team`]): a radix select over 32-bit keys, and the pass that visits what it selected in order.
//!
//! The select finds the k-th largest key in four passes of eight bits, each a histogram in shared memory (integer atomics:
//! the order of additions does not matter). Ties at that key go to the lowest index: the visiting pass walks the keys in
//! ascending order and counts, over the whole team, how many larger and how many equal keys lie before each.

use super::{
    order::order_key,
    reduce::{BLOCK_EXCLUSIVE_SUM_BYTES, warp_inclusive_sum_32},
    team::Team,
};
use crate::isa::{B32, Builder, Cache, R32, RF, RP, SharedRegion};

const BINS: u32 = 256;
/// Bins that each lane of the searching warp holds.
const BINS_A_LANE: u32 = BINS / 32;
const BINS_BYTES: u32 = BINS * 4;
const FOUND_BYTES: u32 = 8;

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

impl Threshold {
    /// Makes this threshold the same as `other`.
    pub(crate) fn set_to(self, k: &mut Builder, other: Threshold) {
        k.set(self.key, other.key);
        k.set(self.ties, other.ties);
    }
}

/// Some neighbouring keys as the visiting pass meets them.
pub(crate) struct Visit {
    /// Index of the first; in the last turn of the walk it may lie past the end.
    pub(crate) first: R32,
    /// Whether each is selected, false past the end, and how many selected keys are before it.
    pub(crate) keys: Vec<(RP, R32)>,
    /// Selected keys of the whole turn, the same in all threads.
    pub(crate) selected: R32,
}

impl Scratch {
    /// Bytes that each warp needs which selects for itself.
    pub(crate) const WARP_BYTES: u32 = BINS_BYTES + FOUND_BYTES;

    /// Reserves it for a block, of at most 1024 threads.
    pub(crate) fn new(k: &mut Builder) -> Scratch {
        Scratch {
            bins: k.shared(BINS_BYTES, 16),
            found: k.shared(FOUND_BYTES, 8),
            sums: k.shared(BLOCK_EXCLUSIVE_SUM_BYTES, 8),
        }
    }

    /// For all warps of a block, in a region at a multiple of 16 that has [`Scratch::WARP_BYTES`] for each.
    pub(crate) fn of_warps(k: &Builder, region: SharedRegion) -> Scratch {
        let warps = k.threads() / 32;
        debug_assert!(region.bytes >= warps * Self::WARP_BYTES);
        let bins = SharedRegion { bytes: warps * BINS_BYTES, ..region };
        let found = SharedRegion { offset: bins.offset + bins.bytes, bytes: warps * FOUND_BYTES };
        Scratch { bins, found, sums: SharedRegion { bytes: 0, ..found } }
    }
}

/// Keys from here on are above every [`ranking_key`]: those of what is selected whatever its score.
pub(crate) const FORCED: u32 = u32::MAX - 1;

/// The integer key that orders like `score`: −0 below +0, NaN below everything, all below [`FORCED`].
pub(crate) fn ranking_key(k: &mut Builder, score: RF) -> R32 {
    let key = order_key(k, score);
    let nan = k.ne_f(score, score);
    k.select(nan, 0u32, key)
}

/// Where keys come from: `load` gives [`Keys::width`] neighbouring ones, of which the first is a multiple of the width and below
/// the count; what it gives past the count does not matter.
pub(crate) struct Keys<L> {
    pub(crate) team: Team,
    pub(crate) count: R32,
    pub(crate) width: u32,
    pub(crate) load: L,
}

impl<L: Fn(&mut Builder, R32) -> Vec<R32>> Keys<L> {
    /// Goes through all keys, `turns` widths a thread at a time so that loads wait for memory together: index of the first,
    /// the keys, and whether each exists.
    pub(crate) fn walk(&self, k: &mut Builder, turns: u32, mut body: impl FnMut(&mut Builder, R32, &[R32], &[RP])) {
        let thread = self.team.thread(k);
        let stride = self.team.threads(k) * self.width;
        let own = k.mul(thread, self.width);
        k.for_loop(0u32, self.count, stride * turns, |k, base| {
            let loaded: Vec<(R32, Vec<R32>)> = (0..turns)
                .map(|turn| {
                    let first = k.add(base, own);
                    let first = k.add(first, turn * stride);
                    let inside = k.lt_u(first, self.count);
                    let place = k.select(inside, first, 0u32);
                    (first, (self.load)(k, place))
                })
                .collect();
            for (first, keys) in loaded {
                let exist: Vec<RP> = (0..self.width)
                    .map(|i| {
                        let index = k.add(first, i);
                        k.lt_u(index, self.count)
                    })
                    .collect();
                body(k, first, &keys, &exist);
            }
        });
    }
}

/// Widths of a thread that wait for memory together.
const TOGETHER: u32 = 4;

/// Finds the `rank`-th largest key; `rank` is at most their count, both the same in all threads.
pub(crate) fn select<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    scratch: &Scratch,
    keys: &Keys<L>,
    rank: R32,
) -> Threshold {
    let fill = |k: &mut Builder, bins: R32, shift: R32, known: R32, prefix: R32| {
        keys.walk(k, TOGETHER, |k, _, keys, exist| {
            for (&key, &exists) in keys.iter().zip(exist) {
                let (candidate, digit) = candidate(k, key, exists, shift, known, prefix);
                let at = k.mad(digit, 4u32, bins);
                k.when(candidate, |k| k.reduce_add(at, 0, 1u32));
            }
        });
    };
    descend(k, keys.team, scratch, rank, fill)
}

/// Finds the fewest of the largest keys whose weights reach `share`, which is at most the sum of all weights and the same in all
/// threads. A key's weight depends on the key alone; the sum of all fits in 32 bits. With `share` 0 nothing lies above the
/// threshold.
pub(crate) fn select_share<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    scratch: &Scratch,
    keys: &Keys<L>,
    share: R32,
    weight: impl Fn(&mut Builder, R32) -> R32,
) -> Threshold {
    let fill = |k: &mut Builder, bins: R32, shift: R32, known: R32, prefix: R32| {
        keys.walk(k, 1, |k, _, keys, exist| {
            for (&key, &exists) in keys.iter().zip(exist) {
                let (candidate, digit) = candidate(k, key, exists, shift, known, prefix);
                let weight = weight(k, key);
                add_together(k, bins, candidate, digit, weight);
            }
        });
    };
    let Threshold { key, ties: rest } = descend(k, keys.team, scratch, share, fill);
    // What the keys above left over falls to those equal to the threshold, which all weigh the same.
    let each = weight(k, key);
    let each = k.max_u(each, 1u32);
    let rest = k.add(rest, each);
    let rest = k.sub(rest, 1u32);
    Threshold { key, ties: k.div_u(rest, each) }
}

/// Whether a key has the bits that are known, and its next digit.
fn candidate(k: &mut Builder, key: R32, exists: RP, shift: R32, known: R32, prefix: R32) -> (RP, R32) {
    let high = k.and(key, known);
    let candidate = k.eq(high, prefix);
    let digit = k.shr_u(key, shift);
    (k.and_p(candidate, exists), k.and(digit, BINS - 1))
}

/// Adds the weights of a warp's candidates to their bins: those of one bin together, since most lie in few.
fn add_together(k: &mut Builder, bins: R32, candidate: RP, digit: R32, weight: R32) {
    let lane = k.lane();
    let left = k.select(candidate, 1u32, 0u32);
    let left = k.mov(left);
    let lanes = k.fresh();
    k.while_loop(
        |k| {
            let some = k.ne(left, 0u32);
            let some = k.ballot(some);
            k.set(lanes, some);
            k.ne(lanes, 0u32)
        },
        |k| {
            let reversed = k.brev(lanes);
            let leader = k.clz(reversed);
            let bin = k.shuffle_from(digit, leader);
            let same = k.eq(digit, bin);
            let some = k.ne(left, 0u32);
            let same = k.and_p(same, some);
            let own = k.select(same, weight, 0u32);
            let sum = k.warp_sum(own);
            let leads = k.eq(lane, leader);
            let at = k.mad(bin, 4u32, bins);
            k.when(leads, |k| k.reduce_add(at, 0, sum));
            k.when(same, |k| k.set(left, 0u32));
        },
    );
}

/// How many keys lie above `threshold`. All threads take part, and all get it.
pub(crate) fn above<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    scratch: &Scratch,
    keys: &Keys<L>,
    threshold: R32,
) -> R32 {
    let above = k.mov(0u32);
    keys.walk(k, 1, |k, _, keys, exist| {
        for (&key, &exists) in keys.iter().zip(exist) {
            let larger = k.gt_u(key, threshold);
            let larger = k.and_p(larger, exists);
            let more = k.select(larger, 1u32, 0u32);
            let sum = k.add(above, more);
            k.set(above, sum);
        }
    });
    let sums = keys.team.address(k, scratch.sums, 0);
    keys.team.exclusive_sum(k, sums, above).1
}

/// Finds the key, digit by digit from the top, at which the bins, counted from the largest digit, reach `wanted`; `ties` is what was
/// still wanted of keys like it. `fill` adds all keys to the bins, whose bits `known` are those of `prefix`, by the eight bits
/// from `shift` on.
fn descend(
    k: &mut Builder,
    team: Team,
    scratch: &Scratch,
    wanted: R32,
    fill: impl FnOnce(&mut Builder, R32, R32, R32, R32),
) -> Threshold {
    let thread = team.thread(k);
    let bins = team.address(k, scratch.bins, BINS_BYTES);
    let found = team.address(k, scratch.found, FOUND_BYTES);
    // With nothing wanted no pass runs, and nothing lies above the largest key.
    let (prefix, known, remaining) = (k.mov(0u32), k.mov(0u32), k.mov(wanted));
    let nothing = k.eq(wanted, 0u32);
    let done = k.label();
    k.when(nothing, |k| k.set(prefix, u32::MAX));
    k.branch_if(nothing, done);
    k.for_loop(0u32, 4u32, 1, |k, pass| {
        let shift = k.mad(pass, -8i32, 24u32);
        k.for_loop(thread, BINS, team.threads(k), |k, bin| {
            let at = k.mad(bin, 4u32, bins);
            k.store::<B32, _>(at, 0, 0u32);
        });
        team.barrier(k);
        fill(k, bins, shift, known, prefix);
        team.barrier(k);
        match team {
            Team::Block => {
                let searches = k.lt_u(thread, 32u32);
                k.if_then(searches, |k| search(k, bins, found, remaining));
            }
            Team::Warp => search(k, bins, found, remaining),
        }
        team.barrier(k);
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

/// Calls `body` for all keys in ascending order of index, as many at a time as all threads take together; all threads take
/// part in every turn.
pub(crate) fn visit<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    scratch: &Scratch,
    keys: &Keys<L>,
    threshold: Threshold,
    body: impl FnOnce(&mut Builder, Visit),
) {
    let team = keys.team;
    let sums = team.address(k, scratch.sums, 0);
    let (larger_before, equal_before) = (k.mov(0u32), k.mov(0u32));
    let mut body = Some(body);
    keys.walk(k, 1, |k, first, keys, exist| {
        // Both counts in one word: the larger in the low half, the equal in the high half.
        let kinds: Vec<(RP, RP, R32)> = keys
            .iter()
            .zip(exist)
            .map(|(&key, &exists)| {
                let larger = k.gt_u(key, threshold.key);
                let larger = k.and_p(larger, exists);
                let equal = k.eq(key, threshold.key);
                let equal = k.and_p(equal, exists);
                let counted = k.select(equal, 1u32 << 16, 0u32);
                (larger, equal, k.select(larger, 1u32, counted))
            })
            .collect();
        let own = kinds.iter().map(|kind| kind.2).reduce(|sum, one| k.add(sum, one)).expect("a width is not 0");
        let (mut before, all) = team.exclusive_sum(k, sums, own);
        // How many of the equal ones before a key are selected.
        let won = |k: &mut Builder, equal: R32| k.min_u(equal, threshold.ties);
        let won_before = won(k, equal_before);
        let mut visited = Vec::new();
        for (larger, equal, counted) in kinds {
            let larger_rank = k.and(before, 0xFFFFu32);
            let larger_rank = k.add(larger_rank, larger_before);
            let equal_rank = k.shr_u(before, 16u32);
            let equal_rank = k.add(equal_rank, equal_before);
            let wins = k.lt_u(equal_rank, threshold.ties);
            let wins = k.and_p(wins, equal);
            let selected = k.or_p(larger, wins);
            let won = won(k, equal_rank);
            visited.push((selected, k.add(larger_rank, won)));
            before = k.add(before, counted);
        }
        let larger_all = k.and(all, 0xFFFFu32);
        let equal_all = k.shr_u(all, 16u32);
        let sum = k.add(equal_before, equal_all);
        k.set(equal_before, sum);
        let won_after = won(k, equal_before);
        let won_here = k.sub(won_after, won_before);
        let selected = k.add(larger_all, won_here);
        if let Some(body) = body.take() {
            body(k, Visit { first, keys: visited, selected });
        }
        let sum = k.add(larger_before, larger_all);
        k.set(larger_before, sum);
    });
}
