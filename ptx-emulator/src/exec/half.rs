//! The 16-bit formats on bits, without branches, so that loops over lanes vectorise.

use super::float::{canonical, exp2, maximum, minimum};
use crate::op::Half;

/// The NaN of both formats.
const NAN: u32 = 0x7fff;

/// A 16-bit value as f32 bits.
#[inline(always)]
pub(crate) fn widen(format: Half, bits: u32) -> u32 {
    match format {
        Half::Bf16 => bits << 16,
        Half::F16 => {
            let magnitude = (bits & 0x7fff) << 13;
            let exponent = magnitude & 0x0f80_0000;
            let normal = magnitude + (112 << 23);
            // A subnormal is a normal number minus the one bit that it does not have.
            let subnormal = (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
            let special = magnitude + (224 << 23);
            let value = if exponent == 0 { subnormal } else { normal };
            let value = if exponent == 0x0f80_0000 { special } else { value };
            value | (bits & 0x8000) << 16
        }
    }
}

/// f32 bits to the nearest 16-bit value, ties to even.
#[inline(always)]
pub(crate) fn narrow(format: Half, bits: u32) -> u32 {
    let magnitude = bits & 0x7fff_ffff;
    let nan = magnitude > 0x7f80_0000;
    match format {
        Half::Bf16 => {
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            if nan { NAN } else { rounded }
        }
        Half::F16 => {
            let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
            // Adding 1/2 shifts the bits of a subnormal to their place and rounds them.
            let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
            let value = if magnitude < 0x3880_0000 { subnormal } else { normal };
            let value = if magnitude >= 0x4780_0000 { 0x7c00 } else { value };
            if nan { NAN } else { value | bits >> 16 & 0x8000 }
        }
    }
}

/// Applies `f` on f32 bits to both halves.
#[inline(always)]
pub(crate) fn pair1(format: Half, a: u32, f: impl Fn(u32) -> u32) -> u32 {
    let half = |a: u32| narrow(format, f(widen(format, a)));
    half(a & 0xffff) | half(a >> 16) << 16
}

/// Applies `f` on f32 bits to both halves of two operands. Exact enough: f32 has more than twice the bits.
#[inline(always)]
pub(crate) fn pair2(format: Half, a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    let half = |a: u32, b: u32| narrow(format, f(widen(format, a), widen(format, b)));
    half(a & 0xffff, b & 0xffff) | half(a >> 16, b >> 16) << 16
}

/// Applies `f` on f32 values to both halves of two operands.
#[inline(always)]
pub(crate) fn arithmetic(format: Half, a: u32, b: u32, f: impl Fn(f32, f32) -> f32) -> u32 {
    pair2(format, a, b, |a, b| canonical(f(f32::from_bits(a), f32::from_bits(b))))
}

#[inline(always)]
pub(crate) fn smaller(format: Half, nan: bool, a: u32, b: u32) -> u32 {
    pair2(format, a, b, |a, b| minimum(false, nan, a, b))
}

#[inline(always)]
pub(crate) fn larger(format: Half, nan: bool, a: u32, b: u32) -> u32 {
    pair2(format, a, b, |a, b| maximum(false, nan, a, b))
}

#[inline(always)]
pub(crate) fn exp2_pair(format: Half, a: u32) -> u32 {
    pair1(format, a, |a| canonical(exp2(f32::from_bits(a))))
}

/// Fused multiply-add of both halves, rounded once.
#[inline(always)]
pub(crate) fn fma_pair(format: Half, relu: bool, a: u32, b: u32, c: u32) -> u32 {
    let half = |at: u32| {
        let value = |bits: u32| f64::from(f32::from_bits(widen(format, bits >> at & 0xffff)));
        let result = narrow(format, round_to_odd(value(a) * value(b), value(c)));
        if relu && result & 0x8000 != 0 { 0 } else { result }
    };
    half(0) | half(16) << 16
}

/// The f32 bits of `product + addend` rounded to odd, so that rounding again to 16 bits gives what rounding once would.
#[inline(always)]
fn round_to_odd(product: f64, addend: f64) -> u32 {
    let sum = product + addend;
    if sum.is_nan() {
        return super::float::NAN;
    }
    // What the sum left out (Knuth's two-sum); an exact sum of infinities leaves NaN, which counts as nothing.
    let of_product = sum - addend;
    let left_out = (product - of_product) + (addend - (sum - of_product));
    let mut bits = sum.to_bits();
    if left_out != 0.0 && !left_out.is_nan() && bits & 1 == 0 {
        let away = (left_out > 0.0) == (sum > 0.0);
        bits = if away { bits + 1 } else { bits - 1 };
    }
    // The same for the step to f32: truncate, and let a lost bit show in the last one.
    let exact = f64::from_bits(bits);
    let nearest = exact as f32;
    if f64::from(nearest) == exact || nearest.is_infinite() {
        return nearest.to_bits();
    }
    let beyond = f64::from(nearest).abs() > exact.abs();
    let truncated = if beyond { nearest.to_bits() - 1 } else { nearest.to_bits() };
    truncated | 1
}
