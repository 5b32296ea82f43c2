//! One row of logits as its definition says it: token by token, by key, by mass.

use super::{patches::Patches, spec::LogitsType};
use crate::{
    isa::{B16, B32, Builder, MmaType, R32, R64, RF, Rounding},
    tile::order::order_key,
};
use std::f32::consts::LOG2_E;

/// Mass of the best token: 2⁴⁴, so that 2¹⁹ tokens do not overflow and the rounding of all of them stays below 10⁻⁷.
pub(super) const ONE: f32 = (1u64 << 44) as f32;

/// A row of logits as a request sees it.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    pub(super) dtype: LogitsType,
    /// Address of token 0.
    pub(super) address: R64,
    /// The unconditional row that guides it, in a kernel for that.
    pub(super) guide: Option<Guide>,
    /// Tokens that may have probability: those below.
    pub(super) limit: R32,
    /// Those whose logits the request changes.
    pub(super) patches: Patches,
}

/// Classifier-free guidance of one row.
#[derive(Clone, Copy)]
pub(super) struct Guide {
    /// Address of token 0.
    pub(super) address: R64,
    /// 0: there is no guidance, and nothing to read.
    pub(super) weight: RF,
}

impl Guide {
    /// c + w (c − u).
    pub(super) fn combine(self, k: &mut Builder, conditional: RF, unconditional: RF) -> RF {
        let difference = k.sub_f(conditional, unconditional);
        let guided = k.fma(self.weight, difference, conditional);
        let plain = k.eq_f(self.weight, 0.0);
        k.select(plain, conditional, guided)
    }
}

impl LogitsType {
    /// How two of them are packed in a word, if they are.
    pub(super) const fn packed(self) -> Option<MmaType> {
        match self {
            LogitsType::Bf16 => Some(MmaType::Bf16),
            LogitsType::F16 => Some(MmaType::F16),
            LogitsType::F32 => None,
        }
    }

    /// Low bits that all keys of such numbers have in common, but for the sign.
    pub(super) const fn unused_bits(self) -> u32 {
        match self {
            LogitsType::Bf16 => 16,
            // Numbers that f16 has at less than its precision have more.
            LogitsType::F16 => 13,
            LogitsType::F32 => 0,
        }
    }

    pub(super) const fn largest_finite(self) -> f32 {
        match self {
            LogitsType::Bf16 => f32::from_bits(0x7F7F_0000),
            LogitsType::F16 => 65504.0,
            LogitsType::F32 => f32::MAX,
        }
    }
}

/// A logit as it counts: NaN as −∞, +∞ as the largest finite number, −0 as +0.
pub(super) fn clean(k: &mut Builder, value: RF, largest: f32) -> RF {
    let number = k.max_f(value, f32::NEG_INFINITY);
    let finite = k.min_f(number, largest);
    k.add_f(finite, 0.0)
}

impl Logits {
    /// Low bits that no key needs, an even number, since the descent takes two at a time.
    fn unused_bits(self, k: &mut Builder) -> R32 {
        let unused: u32 = match self.dtype {
            _ if self.guide.is_some() => 0,
            LogitsType::Bf16 => 16,
            // Sign, exponent of a float and ten bits of mantissa, rounded up.
            LogitsType::F16 => 12,
            LogitsType::F32 => 0,
        };
        k.select(self.patches.any, 0u32, unused)
    }

    /// The largest finite logit.
    pub(super) const fn largest(self) -> f32 {
        if self.guide.is_some() { f32::MAX } else { self.dtype.largest_finite() }
    }

    fn at_address(self, k: &mut Builder, row: R64, id: R32) -> RF {
        let address = k.mad_wide(id, self.dtype.bytes(), row);
        match self.dtype.packed() {
            None => k.load_readonly(address, 0),
            Some(kind) => {
                let half = k.load_readonly::<B16>(address, 0);
                k.float_from_half(kind, half)
            }
        }
    }

    /// The logit of a token before the request changes it.
    pub(super) fn stored(self, k: &mut Builder, id: R32) -> RF {
        let mut value = self.at_address(k, self.address, id);
        if let Some(guide) = self.guide {
            let unconditional = self.at_address(k, guide.address, id);
            value = guide.combine(k, value, unconditional);
        }
        clean(k, value, self.largest())
    }

    /// The logit of a token.
    pub(super) fn at(self, k: &mut Builder, id: R32) -> RF {
        let value = self.stored(k, id);
        k.if_then(self.patches.any, |k| {
            let (changed, _) = self.patches.apply(k, id, value);
            k.set(value, changed);
        });
        value
    }

    /// The logit of a token that the request does not change, −∞ of others: what its segment holds.
    pub(super) fn unchanged(self, k: &mut Builder, id: R32) -> RF {
        let value = self.stored(k, id);
        k.if_then(self.patches.any, |k| {
            let (_, changed) = self.patches.apply(k, id, value);
            k.when(changed, |k| k.set(value, f32::NEG_INFINITY));
        });
        value
    }

    /// Where the keys of logits begin, as a shift.
    pub(super) fn first_shift(self, k: &mut Builder) -> R32 {
        let unused = self.unused_bits(k);
        let top = k.mov(30u32);
        k.sub(top, unused)
    }

    /// The key of a logit: as ordered, and equal exactly for equal logits.
    pub(super) fn key(self, k: &mut Builder, logit: RF) -> R32 {
        let key = order_key(k, logit);
        let unused = self.unused_bits(k);
        k.shr_u(key, unused)
    }

    /// Runs `body` for every token that may have probability, spread over the block.
    pub(super) fn for_each(self, k: &mut Builder, body: impl FnOnce(&mut Builder, R32, RF)) {
        let thread = k.thread();
        let threads = k.threads();
        k.for_loop(thread, self.limit, threads, |k, id| {
            let logit = self.at(k, id);
            body(k, id, logit);
        });
    }
}

/// How a logit weighs: exp((l − max) / T) in units of 2⁻⁴⁴.
#[derive(Clone, Copy)]
pub(super) struct Mass {
    pub(super) max: RF,
    /// log2(e) / T.
    pub(super) scale: RF,
}

impl Mass {
    /// 1/T of a temperature above 0. So small a temperature that it overflows counts as the smallest where it does not.
    pub(super) fn inverse(k: &mut Builder, temperature: RF) -> RF {
        // A division would be a call: one step of Newton's instead.
        let inverse = k.rcp_f(temperature);
        let opposite = k.neg_f(temperature);
        let error = k.fma(opposite, inverse, 1.0);
        let inverse = k.fma(inverse, error, inverse);
        // Also for ∞ − ∞, where the inverse is.
        let inverse = k.min_f(inverse, f32::MAX);
        // So that −∞ at any temperature is −∞.
        k.max_f(inverse, f32::MIN_POSITIVE)
    }

    /// The scale of an inverse of a temperature.
    pub(super) fn scale(k: &mut Builder, inverse: RF) -> RF {
        let scale = k.mul_f(inverse, LOG2_E);
        k.min_f(scale, f32::MAX)
    }

    /// log2 of the weight.
    pub(super) fn exponent(self, k: &mut Builder, logit: RF) -> RF {
        let below = k.sub_f(logit, self.max);
        k.mul_f(below, self.scale)
    }

    /// exp((l − max) / T), at most 1.
    pub(super) fn weight(self, k: &mut Builder, logit: RF) -> RF {
        let exponent = self.exponent(k, logit);
        k.exp2_f(exponent)
    }

    pub(super) fn of(self, k: &mut Builder, logit: RF) -> R64 {
        let weight = self.weight(k, logit);
        fixed(k, weight)
    }

    /// The mass of a token, and its share −w ln w of the entropy sum in the same units.
    pub(super) fn with_surprise(self, k: &mut Builder, logit: RF) -> (R64, R64) {
        let exponent = self.exponent(k, logit);
        let weight = k.exp2_f(exponent);
        // Far below the maximum the product must be 0, not 0 · ∞.
        let bounded = k.max_f(exponent, -1024.0);
        let nats = k.mul_f(bounded, -std::f32::consts::LN_2);
        let surprise = k.mul_f(nats, weight);
        (fixed(k, weight), fixed(k, surprise))
    }
}

fn fixed(k: &mut Builder, value: RF) -> R64 {
    let scaled = k.mul_f(value, ONE);
    k.wide_from_float(scaled, Rounding::Nearest)
}

/// A sum of masses as a float: 1 for the mass of the best token.
pub(super) fn float(k: &mut Builder, mass: R64) -> RF {
    let value = k.float_from_wide(mass);
    k.mul_f(value, 1.0 / ONE)
}

/// ln of a sum of masses that contains the best token's: exact near 1, since the excess over 1 is.
pub(super) fn logarithm(k: &mut Builder, mass: R64) -> RF {
    let excess = k.sub(mass, 1u64 << 44);
    let excess = float(k, excess);
    super::functions::ln_one_plus(k, excess)
}

/// Adds `amount` to the accumulator `sum`.
pub(super) fn accumulate(k: &mut Builder, sum: R64, amount: R64) {
    let next = k.add(sum, amount);
    k.set(sum, next);
}

/// `flag ? 1 : 0` as a 64-bit count.
pub(super) fn count(k: &mut Builder, flag: crate::isa::RP) -> R64 {
    k.select(flag, 1u64, 0u64)
}

/// Whether any bit of `mask` is set.
pub(super) fn has(k: &mut Builder, flags: R32, mask: u32) -> crate::isa::RP {
    let bits = k.and(flags, mask);
    k.ne::<B32>(bits, 0u32)
}
