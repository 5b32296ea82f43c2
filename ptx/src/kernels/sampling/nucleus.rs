//! The long way to what a filter keeps, and to the token at a point of a cumulative sum: over the whole row, without sorting.
//! For rows whose offers do not tell (see [`super::cut`] and [`super::offers`]).
//!
//! Top-k and top-p are one rule with two weights: *keep a rank if the ranks strictly better weigh at most the limit
//! together*. Top-p weighs by mass with limit p · total, top-k counts with limit k − 1. What is kept is a prefix of the
//! ranking, so it is described by its last key and by how many of the tokens with that key belong to it.
//!
//! The last key is found from its top bits downwards, two bits a pass: each pass sums what lies above three
//! thresholds. It is the smallest key above which the weight is within the limit. No pass depends on the distribution,
//! so the time does not either. (An exact histogram would need 64-bit atomics in shared memory, which serialise just where
//! logits are alike.)

use super::{
    filter::{Filters, Kept},
    logits::{Logits, Mass, accumulate, count},
};
use crate::{
    isa::{B32, Builder, Cache, R32, R64, RF, RP},
    tile::reduce::{block_sum, warp_inclusive_sum, warp_sum},
};

/// What a rank weighs in a filter.
#[derive(Clone, Copy)]
enum Weight {
    Count,
    Mass(Mass),
}

/// A prefix of the ranking.
struct Prefix {
    /// Key of the last rank kept.
    key: R32,
    /// Tokens with that key.
    equal: R32,
    /// How many of them are kept: those of lowest id.
    equal_kept: R32,
    /// Tokens kept, and their mass.
    count: R32,
    mass: R64,
}

/// The ranks that `limit` keeps. The first rank is kept always.
fn prefix(k: &mut Builder, logits: Logits, mass: Mass, weight: Weight, limit: R64, scratch: R32) -> Prefix {
    let key = k.mov::<B32>(0u32);
    let shift = logits.first_shift(k);
    k.while_loop(
        |k| k.ge_s(shift, 0i32),
        |k| {
            let unit = k.mov::<B32>(1u32);
            let step = k.shl(unit, shift);
            let below = k.sub(step, 1u32);
            let first = k.or(key, below);
            let second = k.add(first, step);
            let third = k.add(second, step);
            let thresholds = [first, second, third];
            let above = thresholds.map(|_| k.mov(0u64));
            logits.for_each(k, |k, _, logit| {
                let own = logits.key(k, logit);
                let amount = match weight {
                    Weight::Count => k.mov(1u64),
                    Weight::Mass(mass) => mass.of(k, logit),
                };
                for (threshold, sum) in thresholds.into_iter().zip(above) {
                    let counts = k.gt_u(own, threshold);
                    let share = k.select(counts, amount, 0u64);
                    accumulate(k, sum, share);
                }
            });
            for sum in block_sum(k, scratch, above) {
                let excess = k.gt_u(sum, limit);
                let next = k.add(key, step);
                k.when(excess, |k| k.set(key, next));
            }
            let next = k.sub(shift, 2u32);
            k.set(shift, next);
        },
    );

    let sums = [0u64; 4].map(|zero| k.mov(zero));
    logits.for_each(k, |k, _, logit| {
        let own = logits.key(k, logit);
        let (above, equal) = (k.gt_u(own, key), k.eq(own, key));
        let share = mass.of(k, logit);
        let shares = [k.select(above, share, 0u64), k.select(equal, share, 0u64), count(k, above), count(k, equal)];
        for (sum, share) in sums.into_iter().zip(shares) {
            accumulate(k, sum, share);
        }
    });
    let [mass_above, mass_equal, count_above, count_equal] = block_sum(k, scratch, sums);
    // Equal logits have equal masses.
    let divisor = k.max_u(count_equal, 1u64);
    let each = k.div_u(mass_equal, divisor);
    let (above, unit) = match weight {
        Weight::Count => (count_above, k.mov(1u64)),
        Weight::Mass(_) => (mass_above, k.max_u(each, 1u64)),
    };
    let room = k.sub(limit, above);
    let more = k.div_u(room, unit);
    let fitting = k.add(more, 1u64);
    let kept = k.min_u(fitting, count_equal);
    let kept_mass = k.mul(kept, each);
    let count = k.add(count_above, kept);
    Prefix {
        key,
        equal: k.narrow(count_equal),
        equal_kept: k.narrow(kept),
        count: k.narrow(count),
        mass: k.add(mass_above, kept_mass),
    }
}

/// The kept tokens as a condition: keys above `key`, and of those equal to it the ids up to `id`.
#[derive(Clone, Copy)]
struct Cut {
    key: R32,
    id: R32,
}

impl Cut {
    fn keeps(self, k: &mut Builder, key: R32, id: R32) -> RP {
        let (above, equal) = (k.gt_u(key, self.key), k.eq(key, self.key));
        let early = k.le_u(id, self.id);
        let boundary = k.and_p(equal, early);
        k.or_p(above, boundary)
    }
}

/// What the filters keep of a row, into `kept`: its mass, number and surprise, and the token that `uniform` draws if
/// `drawing`. `total` is the mass of the row.
#[expect(clippy::too_many_arguments, reason = "what a finished row has at hand")]
pub(super) fn keep(
    k: &mut Builder,
    logits: Logits,
    mass: Mass,
    filters: &Filters,
    total: R64,
    (drawing, uniform): (RP, R32),
    scratch: R32,
    kept: &Kept,
) {
    k.comment("the whole row again");
    // Everything: the boundary lies at the last id of the lowest key.
    let cut = Cut { key: k.mov(0u32), id: k.mov(u32::MAX) };
    let equal = k.mov::<B32>(0u32);
    let equal_kept = k.mov::<B32>(u32::MAX);
    k.set(kept.mass, total);
    k.set(kept.count, u32::MAX);
    k.if_then(filters.by_count, |k| {
        let limit = k.widen_u(filters.one_less);
        let found = prefix(k, logits, mass, Weight::Count, limit, scratch);
        k.set(cut.key, found.key);
        k.set(equal, found.equal);
        k.set(equal_kept, found.equal_kept);
        k.set(kept.mass, found.mass);
        k.set(kept.count, found.count);
    });
    k.if_then(filters.by_mass, |k| {
        let total = k.select(filters.count_first, kept.mass, total);
        let limit = filters.limit(k, total);
        let found = prefix(k, logits, mass, Weight::Mass(mass), limit, scratch);
        let (higher, same) = (k.gt_u(found.key, cut.key), k.eq(found.key, cut.key));
        let fewer = k.lt_u(found.equal_kept, equal_kept);
        let shorter = k.and_p(same, fewer);
        let shorter = k.or_p(higher, shorter);
        k.when(shorter, |k| {
            k.set(cut.key, found.key);
            k.set(equal, found.equal);
            k.set(equal_kept, found.equal_kept);
            k.set(kept.mass, found.mass);
            k.set(kept.count, found.count);
        });
    });
    let divided = k.lt_u(equal_kept, equal);
    k.if_then(divided, |k| {
        let last = k.sub(equal_kept, 1u32);
        let target = k.widen_u(last);
        let id = locate(k, logits, target, scratch, |k, _, logit| {
            let key = logits.key(k, logit);
            let boundary = k.eq(key, cut.key);
            count(k, boundary)
        });
        k.set(cut.id, id);
    });
    let keeps = |k: &mut Builder, id: R32, logit: RF| {
        let key = logits.key(k, logit);
        let of_ranks = cut.keeps(k, key, id);
        let likely = filters.likely(k, mass, logit);
        k.and_p(of_ranks, likely)
    };
    let sums = [0u64; 3].map(|zero| k.mov(zero));
    logits.for_each(k, |k, id, logit| {
        let kept = keeps(k, id, logit);
        let (own, surprise) = mass.with_surprise(k, logit);
        let shares = [k.select(kept, own, 0u64), count(k, kept), k.select(kept, surprise, 0u64)];
        for (sum, share) in sums.into_iter().zip(shares) {
            accumulate(k, sum, share);
        }
    });
    let [sum, number, surprise] = block_sum(k, scratch, sums);
    k.set(kept.mass, sum);
    let number = k.narrow(number);
    k.set(kept.count, number);
    k.set(kept.surprise, surprise);
    k.if_then(drawing, |k| {
        let target = point(k, kept.mass, uniform);
        let id = locate(k, logits, target, scratch, |k, id, logit| {
            let kept = keeps(k, id, logit);
            let own = mass.of(k, logit);
            k.select(kept, own, 0u64)
        });
        k.set(kept.token, id);
        let logit = logits.at(k, id);
        k.set(kept.logit, logit);
    });
}

/// The point of a mass that a uniform number of 32 bits names.
pub(super) fn point(k: &mut Builder, mass: R64, uniform: R32) -> R64 {
    let zero = k.mov(0u32);
    let fraction = k.join_wide(zero, uniform);
    k.mul_high(mass, fraction)
}

/// The first token whose weight, added to that of all lower ids, exceeds `target`. The total must exceed it.
///
/// Each turn spreads the range over the warps, sums each share, and goes on within the share where the sum passes the
/// target, until one warp can look at the rest. `scratch` holds [`block_sum_bytes(1)`](crate::tile::reduce).
fn locate(
    k: &mut Builder,
    logits: Logits,
    target: R64,
    scratch: R32,
    weight: impl Fn(&mut Builder, R32, RF) -> R64,
) -> R32 {
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let low = k.mov::<B32>(0u32);
    let high = k.mov(logits.limit);
    let rest = k.mov(target);
    k.while_loop(
        |k| {
            let span = k.sub(high, low);
            k.gt_u(span, 32u32)
        },
        |k| {
            let span = k.sub(high, low);
            let padded = k.add(span, 32 * warps - 1);
            let lines = k.div_u(padded, 32 * warps);
            let share = k.shl(lines, 5u32);
            let start = k.mad(warp, share, low);
            let past = k.add(start, share);
            let end = k.min_u(past, high);
            let first = k.add(start, lane);
            let sum = k.mov(0u64);
            k.for_loop(first, end, 32, |k, id| {
                let logit = logits.at(k, id);
                let amount = weight(k, id, logit);
                accumulate(k, sum, amount);
            });
            let own = warp_sum(k, sum);
            let leader = k.eq(lane, 0u32);
            let slot = k.mad(warp, 8u32, scratch);
            k.when(leader, |k| k.store(slot, 0, own));
            k.barrier();
            let total = k.mov(0u64);
            let (inside, at) = (k.lt_u(lane, warps), k.mad(lane, 8u32, scratch));
            k.when(inside, |k| k.load_into(total, at, 0, Cache::Default));
            k.barrier();
            let inclusive = warp_inclusive_sum(k, total);
            let hit = crossing(k, inclusive, rest);
            let before = k.sub(inclusive, total);
            let halves = k.split_wide(before).map(|half| k.shuffle_from(half, hit));
            let skipped = k.join_wide(halves[0], halves[1]);
            let next = k.sub(rest, skipped);
            k.set(rest, next);
            let next = k.mad(hit, share, low);
            k.set(low, next);
            let past = k.add(low, share);
            let next = k.min_u(past, high);
            k.set(high, next);
        },
    );
    let id = k.add(low, lane);
    let inside = k.lt_u(id, high);
    let amount = k.mov(0u64);
    k.if_then(inside, |k| {
        let logit = logits.at(k, id);
        let own = weight(k, id, logit);
        k.set(amount, own);
    });
    let inclusive = warp_inclusive_sum(k, amount);
    let hit = crossing(k, inclusive, rest);
    k.add(low, hit)
}

/// The first lane whose inclusive sum exceeds `target`.
pub(super) fn crossing(k: &mut Builder, inclusive: R64, target: R64) -> R32 {
    let past = k.gt_u(inclusive, target);
    let lanes = k.ballot(past);
    let reversed = k.brev(lanes);
    k.clz(reversed)
}
