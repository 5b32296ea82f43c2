//! The highest keys that hold a share of the mass: a radix select by mass instead of number.
//!
//! Masses are integers, whose sums do not depend on the order, and so is a share: [`share`]. Scores whose sum nobody knows
//! become masses by [`Masses`].

use super::{
    order::from_order_key,
    radix::{self, FORCED, Keys, Scratch, Threshold},
    reduce::block_sum_bytes,
    team::Team,
};
use crate::isa::{Builder, R32, RF, RP, Rounding, SharedRegion};

/// Bits behind the point of a share.
const SHARE_BITS: u32 = 31;

/// A share as selections read it: in units of 2⁻³¹, to the nearest, at least one of them.
///
/// Keys are taken as long as those before them hold less than ⌈share · mass of all / 2³¹⌉, so a key without mass is left out
/// even by a share of 1. Selections take a larger share for 1.
pub fn share(share: f32) -> u32 {
    let one = 1u32 << SHARE_BITS;
    ((f64::from(share) * f64::from(one)).round() as u32).clamp(1, one)
}

/// The mass of all keys, and of those among them that are selected whatever they hold.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    pub(crate) all: R32,
    pub(crate) forced: R32,
}

/// The threshold above which the fewest keys hold at least `share` ([`share`]) of the mass of all, and how many are selected. Forced
/// keys are [`FORCED`] and above and come first, whatever they hold; their keys stand for no score, and `mass` gives them
/// none. All threads of the keys' team take part, and all get it.
pub(crate) fn select_share<L: Fn(&mut Builder, R32) -> Vec<R32>>(
    k: &mut Builder,
    scratch: &Scratch,
    keys: &Keys<L>,
    held: Held,
    share: R32,
    mass: impl Fn(&mut Builder, R32) -> R32,
) -> (Threshold, R32) {
    let share = k.min_u(share, 1u32 << SHARE_BITS);
    let wanted = k.mul_wide(held.all, share);
    let wanted = k.add(wanted, (1u64 << SHARE_BITS) - 1);
    let wanted = k.shr_u(wanted, SHARE_BITS);
    let wanted = k.narrow(wanted);
    let missing = k.max_u(wanted, held.forced);
    let missing = k.sub(missing, held.forced);
    let threshold = radix::select_share(k, scratch, keys, missing, mass);
    let nothing = k.eq(missing, 0u32);
    k.when(nothing, |k| k.set(threshold.key, FORCED - 1));
    let larger = radix::above(k, scratch, keys, threshold.key);
    (threshold, k.add(larger, threshold.ties))
}

/// Highest score that counts in full, and the units a score is summed in first.
const MOST: f32 = 65_536.0;
const UNITS: f32 = 16_777_216.0;
/// What all masses together come to, to rounding.
const WHOLE: f32 = 2_147_483_648.0;

/// Shared memory of [`Masses`], beside that of the select; a warp needs none.
pub(crate) struct SumScratch(Option<SharedRegion>);

impl SumScratch {
    pub(crate) fn new(k: &mut Builder, team: Team) -> SumScratch {
        SumScratch((team == Team::Block).then(|| k.shared(block_sum_bytes(2), 8)))
    }
}

/// A key's mass is its score, in units of a 2³¹st of all scores together, rounded down. A score below 0 or NaN has none, and one
/// above 2¹⁶ no more than that.
pub(crate) struct Masses {
    factor: RF,
}

impl Masses {
    /// Of the scores with these ranking keys, and what those hold whose index `is_forced`.
    pub(crate) fn new<S: Fn(&mut Builder, R32) -> Vec<R32>>(
        k: &mut Builder,
        scratch: &SumScratch,
        scores: &Keys<S>,
        is_forced: impl Fn(&mut Builder, R32) -> RP,
    ) -> (Masses, Held) {
        let team = scores.team;
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
        let [all] = team.sum(k, scratch.0, [all]);
        let none = k.eq(all, 0u64);
        let all = k.float_from_wide(all);
        let factor = k.div_f(WHOLE, all);
        let masses = Masses { factor: k.select(none, 0.0f32, factor) };

        k.comment("masses, and those of the forced ones");
        let (all, forced) = (k.mov(0u64), k.mov(0u64));
        scores.walk(k, 1, |k, first, keys, exist| {
            for (i, (&key, &exists)) in (0..).zip(keys.iter().zip(exist)) {
                let mass = masses.mass(k, key);
                let mass = k.select(exists, mass, 0u32);
                let mass = k.widen_u(mass);
                let sum = k.add(all, mass);
                k.set(all, sum);
                let index = k.add(first, i as u32);
                let is_forced = is_forced(k, index);
                let mass = k.select(is_forced, mass, 0u64);
                let sum = k.add(forced, mass);
                k.set(forced, sum);
            }
        });
        let [all, forced] = team.sum(k, scratch.0, [all, forced]).map(|sum| k.narrow(sum));
        (masses, Held { all, forced })
    }

    /// The mass of the score with this ranking key.
    pub(crate) fn mass(&self, k: &mut Builder, key: R32) -> R32 {
        let units = units(k, key);
        let mass = k.mul_f(units, self.factor);
        k.u_from_float(mass, Rounding::Zero)
    }
}

/// A score in units, where it counts.
fn units(k: &mut Builder, key: R32) -> RF {
    let score = from_order_key(k, key);
    let score = k.max_f(score, 0.0f32);
    let score = k.min_f(score, MOST);
    k.mul_f(score, UNITS)
}
