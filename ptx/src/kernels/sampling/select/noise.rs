//! Noise for draws without replacement. Every operation is rounded as written, so that all devices draw alike.

use crate::isa::{B32, Builder, R32, RF};
use std::f32::consts::{FRAC_1_SQRT_2, LN_2};

/// A number of Gumbel's distribution from a random word: −ln(−ln(1 − v)), with v uniform in (0, 1).
///
/// The upper tail comes from v near 0, where floats are dense: the largest number is 22.9, and all below have their share.
pub(super) fn gumbel(k: &mut Builder, word: R32) -> RF {
    let whole = k.float_from_u(word);
    let middle = k.add_f(whole, 0.5);
    let v = k.mul_f(middle, 1.0 / 4_294_967_296.0);
    let v = k.min_f(v, 1.0 - f32::EPSILON / 2.0);
    // −ln(1 − v) = 2 artanh(v / (2 − v)); 1 − v is exact from 1/2 on.
    let rest = k.sub_f(2.0, v);
    let z = k.div_f(v, rest);
    let near = double_artanh(k, z);
    let below = k.sub_f(1.0, v);
    let log = logarithm(k, below);
    let far = k.neg_f(log);
    let close = k.lt_f(v, 0.5);
    let exponential = k.select(close, near, far);
    let log = logarithm(k, exponential);
    k.neg_f(log)
}

/// 2 artanh z for |z| ≤ 1/3, by its series: what is left out is below 2⁻²⁴ of it.
fn double_artanh(k: &mut Builder, z: RF) -> RF {
    let square = k.mul_f(z, z);
    let mut series = k.mov(1.0f32 / 13.0);
    for odd in [11.0f32, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = k.fma(series, square, 1.0 / odd);
    }
    let double = k.add_f(z, z);
    k.mul_f(double, series)
}

/// ln a of a normal a > 0: a = 2^e · m with m within √2 of 1.
fn logarithm(k: &mut Builder, a: RF) -> RF {
    let bits = k.bits(a);
    let above = k.sub(bits, FRAC_1_SQRT_2.to_bits());
    let exponent = k.shr_s(above, 23u32);
    let scale = k.shl::<B32>(exponent, 23u32);
    let mantissa = k.sub(bits, scale);
    let m = k.from_bits(mantissa);
    let (difference, sum) = (k.sub_f(m, 1.0), k.add_f(m, 1.0));
    let z = k.div_f(difference, sum);
    let fraction = double_artanh(k, z);
    let exponent = k.float_from_s(exponent);
    k.fma(exponent, LN_2, fraction)
}
