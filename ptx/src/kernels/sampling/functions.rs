//! Logarithm and exponential near the points where their plain forms cancel, and quotients.

use crate::isa::{Builder, RF};
use std::f32::consts::{LN_2, LOG2_E};

/// a / b for 1 ≤ b < 2⁶⁰ and |a| no larger, rounded almost always as a division would. That would look for other numbers first and
/// branch, so that nothing else is done meanwhile.
pub(super) fn quotient(k: &mut Builder, a: RF, b: RF) -> RF {
    let inverse = k.rcp_f(b);
    let near = k.mul_f(a, inverse);
    let opposite = k.neg_f(near);
    let rest = k.fma(opposite, b, a);
    k.fma(rest, inverse, near)
}

/// ln(1 + a) for a ≥ 0, with small relative error also near 0: `lg2` of a number near 1 has none.
pub(super) fn ln_one_plus(k: &mut Builder, a: RF) -> RF {
    let sum = k.add_f(a, 1.0);
    let log2 = k.log2_f(sum);
    let large = k.mul_f(log2, LN_2);
    // ln(1 + a) = 2 artanh z with z = a / (2 + a), at most 1/3 here.
    let denominator = k.add_f(a, 2.0);
    let z = quotient(k, a, denominator);
    let square = k.mul_f(z, z);
    let mut series = k.mov(1.0f32 / 13.0);
    for odd in [11.0f32, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = k.fma(series, square, 1.0 / odd);
    }
    let double = k.add_f(z, z);
    let small = k.mul_f(double, series);
    let near = k.lt_f(a, 1.0);
    k.select(near, small, large)
}

/// 1 − exp(−a) for a ≥ 0, with small relative error also near 0.
pub(super) fn one_minus_exp(k: &mut Builder, a: RF) -> RF {
    let exponent = k.mul_f(a, -LOG2_E);
    let power = k.exp2_f(exponent);
    let large = k.sub_f(1.0, power);
    // a (1 − a/2 (1 − a/3 (… ))): at a = 1/2 the first term left out is 2⁻⁹/9! of the first.
    let mut series = k.mov(1.0f32);
    for i in [8.0f32, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0] {
        let next = k.mul_f(a, -1.0 / i);
        series = k.fma(next, series, 1.0);
    }
    let small = k.mul_f(a, series);
    let near = k.lt_f(a, 0.5);
    k.select(near, small, large)
}
