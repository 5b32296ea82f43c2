//! The selection's random numbers. In single precision, operation by operation: draws must be the same bits.

use super::row::philox;
use ptx::kernels::sampling::{RequestState, SelectParameters};

/// The word that decides about a position at the request's present step.
pub(super) fn word(parameters: &SelectParameters, state: &RequestState, position: u32) -> u32 {
    let counter = [position, state.step, parameters.stream, u32::from_be_bytes(*b"SELE")];
    philox(counter, [parameters.seed_low, parameters.seed_high])[0]
}

/// The uniform number in [0, 1) of a word: its upper 24 bits.
pub(super) fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

/// −ln(−ln(1 − v)) with v = (word + ½) / 2³².
pub(super) fn gumbel(word: u32) -> f32 {
    let v = ((word as f32 + 0.5) / 4_294_967_296.0).min(1.0 - f32::EPSILON / 2.0);
    let exponential = if v < 0.5 { double_artanh(v / (2.0 - v)) } else { -logarithm(1.0 - v) };
    -logarithm(exponential)
}

/// 2 artanh z by the terms of its series up to z¹³.
fn double_artanh(z: f32) -> f32 {
    let odd = [13.0f32, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0];
    let series = odd.into_iter().fold(0.0, |sum: f32, odd| sum.mul_add(z * z, 1.0 / odd));
    (z + z) * series
}

/// ln a, with a = 2^e · m and m from √½ to √2.
fn logarithm(a: f32) -> f32 {
    let exponent = (a.to_bits() as i32 - std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32) >> 23;
    let m = f32::from_bits((a.to_bits() as i32 - (exponent << 23)) as u32);
    (exponent as f32).mul_add(std::f32::consts::LN_2, double_artanh((m - 1.0) / (m + 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gumbel_is_what_its_name_says() {
        for word in (0..=32).map(|bits| (1u64 << bits) as u32).chain((0..100_000).map(|i| i * 42_949 + 7)) {
            let v = (f64::from(word as f32) + 0.5).min(4_294_967_295.0) / 4_294_967_296.0;
            let exact = -(-(-v).ln_1p()).ln();
            let error = (f64::from(gumbel(word)) - exact).abs();
            // Near v = 1 the clamp of 2⁻²⁴ shows.
            assert!(error < 4e-6 || word > u32::MAX - 512, "{word}: {} for {exact}", gumbel(word));
        }
        assert!((gumbel(0) - 22.87).abs() < 0.01 && (gumbel(u32::MAX) + 2.81).abs() < 0.01);
    }
}
