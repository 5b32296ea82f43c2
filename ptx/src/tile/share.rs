//! How many of the highest keys hold a share of the mass: the rank for a radix select by mass instead of number.
//!
//! A key's mass is its score, in units of a 2³¹st of all scores together, rounded down: integers, whose sums do not depend on
//! the order. A score below 0 or NaN has none, and one above 2¹⁶ no more than that. The search is a radix select whose bins
//! hold masses instead of counts.

use super::{
    order::from_order_key,
    radix::{Keys, Scratch, descend},
    reduce::{block_exclusive_sum, block_sum, block_sum_bytes},
};
use crate::isa::{Builder, R32, RF, RP, Rounding, SharedRegion};

/// Highest score that counts in full, and the units a score is summed in first.
const MOST: f32 = 65_536.0;
const UNITS: f32 = 16_777_216.0;
/// What all masses together come to, to rounding.
const WHOLE: f32 = 2_147_483_648.0;

/// Shared memory of the search, beside that of the select.
pub(crate) struct ShareScratch(SharedRegion);

impl ShareScratch {
    pub(crate) fn new(k: &mut Builder) -> ShareScratch {
        ShareScratch(k.shared(block_sum_bytes(2), 8))
    }
}

/// A score in units, where it counts.
fn units(k: &mut Builder, key: R32) -> RF {
    let score = from_order_key(k, key);
    let score = k.max_f(score, 0.0f32);
    let score = k.min_f(score, MOST);
    k.mul_f(score, UNITS)
}

fn mass(k: &mut Builder, key: R32, factor: RF) -> R32 {
    let units = units(k, key);
    let mass = k.mul_f(units, factor);
    k.u_from_float(mass, Rounding::Zero)
}

/// The least number of keys that hold at least `share` (above 0, at most 1) of the mass of all: the first `forced`, whatever
/// they hold, and then the highest, ties by index. `keys` are [`super::radix::ranking_key`]s. All threads take part, and all
/// get it.
pub(crate) fn rank_of_share<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    (scratch, sums): (&Scratch, &ShareScratch),
    keys: &Keys<L>,
    forced: R32,
    share: RF,
) -> R32 {
    let region = k.shared_address(sums.0);
    let forced = k.min_u(forced, keys.count);
    k.comment("a share of the mass: all scores");
    let all = k.mov(0u64);
    keys.walk(k, 1, |k, _, keys, exist| {
        for (&key, &exists) in keys.iter().zip(exist) {
            let units = units(k, key);
            let units = k.wide_from_float(units, Rounding::Zero);
            let units = k.select(exists, units, 0u64);
            let sum = k.add(all, units);
            k.set(all, sum);
        }
    });
    let [all] = block_sum(k, region, [all]);
    let none = k.eq(all, 0u64);
    let all = k.float_from_wide(all);
    let factor = k.div_f(WHOLE, all);
    let factor = k.select(none, 0.0f32, factor);

    k.comment("masses, and those of the forced ones");
    let (whole, of_forced) = (k.mov(0u64), k.mov(0u64));
    keys.walk(k, 1, |k, first, keys, exist| {
        for (i, (&key, &exists)) in (0..).zip(keys.iter().zip(exist)) {
            let mass = mass(k, key, factor);
            let mass = k.select(exists, mass, 0u32);
            let mass = k.widen_u(mass);
            let sum = k.add(whole, mass);
            k.set(whole, sum);
            let index = k.add(first, i as u32);
            let is_forced = k.lt_u(index, forced);
            let mass = k.select(is_forced, mass, 0u64);
            let sum = k.add(of_forced, mass);
            k.set(of_forced, sum);
        }
    });
    let [whole, of_forced] = block_sum(k, region, [whole, of_forced]).map(|sum| k.narrow(sum));
    let wanted = k.float_from_u(whole);
    let wanted = k.mul_f(wanted, share);
    let wanted = k.u_from_float(wanted, Rounding::Up);
    let wanted = k.min_u(wanted, whole);
    let held = k.min_u(of_forced, wanted);
    let missing = k.sub(wanted, held);
    let rank = k.mov(forced);
    let some = k.ne(missing, 0u32);
    k.if_then(some, |k| {
        let (key, rest) = descend(k, scratch, missing, |k, bins, shift, known, prefix| {
            keys.walk(k, 1, |k, first, keys, exist| {
                for (i, (&key, &exists)) in (0..).zip(keys.iter().zip(exist)) {
                    let index = k.add(first, i as u32);
                    let free = k.ge_u(index, forced);
                    let high = k.and(key, known);
                    let candidate = k.eq(high, prefix);
                    let candidate = k.and_p(candidate, free);
                    let candidate = k.and_p(candidate, exists);
                    let digit = k.shr_u(key, shift);
                    let digit = k.and(digit, 0xFFu32);
                    let mass = mass(k, key, factor);
                    add_together(k, bins, candidate, digit, mass);
                }
            });
        });
        let larger = k.mov(0u32);
        keys.walk(k, 1, |k, first, keys, exist| {
            for (i, (&own, &exists)) in (0..).zip(keys.iter().zip(exist)) {
                let index = k.add(first, i as u32);
                let free = k.ge_u(index, forced);
                let above = k.gt_u(own, key);
                let above = k.and_p(above, free);
                let above = k.and_p(above, exists);
                let more = k.select(above, 1u32, 0u32);
                let sum = k.add(larger, more);
                k.set(larger, sum);
            }
        });
        let (_, larger) = block_exclusive_sum(k, region, larger);
        // The key was found because keys like it have a mass.
        let each = mass(k, key, factor);
        let each = k.max_u(each, 1u32);
        let ties = k.add(rest, each);
        let ties = k.sub(ties, 1u32);
        let ties = k.div_u(ties, each);
        let all = k.add(larger, ties);
        let all = k.add(all, forced);
        k.set(rank, all);
    });
    rank
}

/// Adds the masses of a warp's candidates to their bins: those of one bin together, since most lie in few.
fn add_together(k: &mut Builder, bins: R32, candidate: RP, digit: R32, mass: R32) {
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
            let own = k.select(same, mass, 0u32);
            let sum = k.warp_sum(own);
            let leads = k.eq(lane, leader);
            let at = k.mad(bin, 4u32, bins);
            k.when(leads, |k| k.reduce_add(at, 0, sum));
            k.when(same, |k| k.set(left, 0u32));
        },
    );
}
