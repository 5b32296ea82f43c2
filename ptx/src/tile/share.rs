//! The highest keys that hold a share of the mass: a radix select by mass instead of number.
//!
//! A key's mass is its score, in units of a 2³¹st of all scores together, rounded down: integers, whose sums do not depend on
//! the order. A score below 0 or NaN has none, and one above 2¹⁶ no more than that.

use super::{
    order::from_order_key,
    radix::{self, Keys, Scratch, Threshold},
    reduce::{block_exclusive_sum, block_sum, block_sum_bytes},
};
use crate::isa::{Builder, R32, RF, Rounding, SharedRegion};

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

/// The threshold above which the fewest keys hold at least `share` (above 0, at most 1) of the mass of all, and how many they
/// are. `keys` are those of a select in which the `forced` first ones have [`u32::MAX`], all others a
/// [`super::radix::ranking_key`]; `scores` are the ranking keys of all. Forced ones come first, whatever they hold. All threads
/// take part, and all get it.
pub(crate) fn select_share_of<L: Fn(&mut Builder, R32) -> Vec<R32>, S: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    (scratch, sums): (&Scratch, &ShareScratch),
    keys: &Keys<L>,
    scores: &Keys<S>,
    forced: R32,
    share: RF,
) -> (Threshold, R32) {
    let region = k.shared_address(sums.0);
    k.comment("a share of the mass: all scores");
    let all = k.mov(0u64);
    scores.walk(k, 1, |k, _, keys, exist| {
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
    scores.walk(k, 1, |k, first, keys, exist| {
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
    // The key of the forced ones stands for no number, and so has no mass.
    let threshold = radix::select_share(k, scratch, keys, missing, |k, key| mass(k, key, factor));
    let nothing = k.eq(missing, 0u32);
    k.when(nothing, |k| k.set(threshold.key, u32::MAX - 1));
    let larger = radix::above(k, keys, threshold.key);
    let (_, larger) = block_exclusive_sum(k, region, larger);
    (threshold, k.add(larger, threshold.ties))
}
