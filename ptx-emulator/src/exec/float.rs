//! Scalar f32 arithmetic on bits, written so that a loop over lanes vectorises.

use std::f32::consts::LN_2;

/// What every operation of the hardware makes of NaN.
pub(crate) const NAN: u32 = 0x7fff_ffff;

/// Subnormals to zero of the same sign.
#[inline(always)]
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// The bits of a result, with the one NaN there is.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

/// Applies `f` to one operand, flushing before and after if asked to.
#[inline(always)]
pub(crate) fn apply1(ftz: bool, a: u32, f: impl Fn(f32) -> f32) -> u32 {
    if ftz { flush(canonical(f(f32::from_bits(flush(a))))) } else { canonical(f(f32::from_bits(a))) }
}

/// Applies `f` to two operands, flushing before and after if asked to.
#[inline(always)]
pub(crate) fn apply2(ftz: bool, a: u32, b: u32, f: impl Fn(f32, f32) -> f32) -> u32 {
    apply1(ftz, a, |a| f(a, f32::from_bits(if ftz { flush(b) } else { b })))
}

/// The smaller number; −0 is smaller than +0. NaN loses, or wins if `nan`.
#[inline(always)]
pub(crate) fn minimum(ftz: bool, nan: bool, a: u32, b: u32) -> u32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let number = if x < y {
        a
    } else if y < x {
        b
    } else {
        a | b
    };
    extremum(nan, a, b, number)
}

/// The larger number; +0 is larger than −0. NaN loses, or wins if `nan`.
#[inline(always)]
pub(crate) fn maximum(ftz: bool, nan: bool, a: u32, b: u32) -> u32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let number = if x > y {
        a
    } else if y > x {
        b
    } else {
        a & b
    };
    extremum(nan, a, b, number)
}

#[inline(always)]
fn extremum(nan: bool, a: u32, b: u32, number: u32) -> u32 {
    let (no_a, no_b) = (f32::from_bits(a).is_nan(), f32::from_bits(b).is_nan());
    let alone = if no_a { b } else { a };
    let one = if no_a | no_b { alone } else { number };
    if (no_a & no_b) | (nan & (no_a | no_b)) { NAN } else { one }
}

/// 2^x to about one unit in the last place, exact for integers.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let clamped = if x > 129.0 { 129.0 } else { x };
    let clamped = if clamped < -151.0 { -151.0 } else { clamped };
    // Adding 1.5 × 2²³ rounds to an integer in the low bits.
    let shifted = clamped + 12_582_912.0;
    let whole = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000);
    let t = clamped - (shifted - 12_582_912.0);
    // Taylor coefficients ln(2)^n / n!, on |t| ≤ 1/2, where the first term left out is below 2⁻²⁷.
    let p = 1.525_273e-5_f32;
    let p = p * t + 1.540_353e-4;
    let p = p * t + 1.333_355_8e-3;
    let p = p * t + 9.618_129e-3;
    let p = p * t + 5.550_411e-2;
    let p = p * t + 2.402_265e-1;
    let p = p * t + LN_2;
    let p = p * t + 1.0;
    // In two steps, because 2^-150 itself is not a number.
    let half = whole >> 1;
    let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let result = p * scale(half) * scale(whole - half);
    if x.is_nan() { x } else { result }
}
