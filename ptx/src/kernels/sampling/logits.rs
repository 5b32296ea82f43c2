//! One row of logits as the kernel reads it: in order, by key, by mass.

use super::spec::LogitsType;
use crate::{
    isa::{B16, B32, Builder, MmaType, R32, R64, RF, Rounding},
    tile::order::order_key,
};
use std::f32::consts::LOG2_E;

/// Mass of the best token: 2⁴⁴, so that 2¹⁹ tokens do not overflow and the rounding of all of them stays below 10⁻⁷.
pub(super) const ONE: f32 = (1u64 << 44) as f32;

/// A row of `vocab` logits, read by the whole block.
#[derive(Clone, Copy)]
pub(super) struct Logits {
    pub(super) dtype: LogitsType,
    /// Address of token 0.
    pub(super) address: R64,
    pub(super) vocab: R32,
}

impl LogitsType {
    /// Bits of a [`Logits::key`]; even, since the descent takes two at a time.
    pub(super) const fn key_bits(self) -> u32 {
        match self {
            LogitsType::Bf16 => 16,
            // Sign, exponent of a float and ten bits of mantissa, rounded up.
            LogitsType::F16 => 20,
            LogitsType::F32 => 32,
        }
    }

    const fn largest_finite(self) -> f32 {
        match self {
            LogitsType::Bf16 => f32::from_bits(0x7F7F_0000),
            LogitsType::F16 => 65504.0,
            LogitsType::F32 => f32::MAX,
        }
    }
}

impl Logits {
    /// The logit of a token: NaN as −∞, +∞ as the largest finite number, −0 as +0.
    pub(super) fn at(self, k: &mut Builder, id: R32) -> RF {
        let address = k.mad_wide(id, self.dtype.bytes(), self.address);
        let value = match self.dtype {
            LogitsType::F32 => k.load_readonly(address, 0),
            LogitsType::Bf16 | LogitsType::F16 => {
                let kind = if self.dtype == LogitsType::Bf16 { MmaType::Bf16 } else { MmaType::F16 };
                let half = k.load_readonly::<B16>(address, 0);
                k.float_from_half(kind, half)
            }
        };
        let number = k.max_f(value, f32::NEG_INFINITY);
        let finite = k.min_f(number, self.dtype.largest_finite());
        k.add_f(finite, 0.0)
    }

    /// The key of a logit: as ordered, and equal exactly for equal logits.
    pub(super) fn key(self, k: &mut Builder, logit: RF) -> R32 {
        let key = order_key(k, logit);
        match 32 - self.dtype.key_bits() {
            0 => key,
            unused => k.shr_u(key, unused),
        }
    }

    /// Runs `body` for every token, spread over the block.
    pub(super) fn for_each(self, k: &mut Builder, body: impl FnOnce(&mut Builder, R32, RF)) {
        let thread = k.thread();
        let threads = k.threads();
        k.for_loop(thread, self.vocab, threads, |k, id| {
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
    /// The scale of a temperature above 0. So small a temperature that 1/T overflows counts as the smallest that does not.
    pub(super) fn scale(k: &mut Builder, temperature: RF) -> RF {
        let numerator = k.mov(LOG2_E);
        let scale = k.div_f(numerator, temperature);
        k.min_f(scale, f32::MAX)
    }

    /// exp((l − max) / T), at most 1.
    pub(super) fn weight(self, k: &mut Builder, logit: RF) -> RF {
        let below = k.sub_f(logit, self.max);
        let exponent = k.mul_f(below, self.scale);
        k.exp2_f(exponent)
    }

    pub(super) fn of(self, k: &mut Builder, logit: RF) -> R64 {
        let weight = self.weight(k, logit);
        fixed(k, weight)
    }

    /// The mass of a token, and its share −w ln w of the entropy sum in the same units.
    pub(super) fn with_surprise(self, k: &mut Builder, logit: RF) -> (R64, R64) {
        let below = k.sub_f(logit, self.max);
        let exponent = k.mul_f(below, self.scale);
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
