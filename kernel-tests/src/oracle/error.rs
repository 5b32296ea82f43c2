//! How far a result may be from the oracle.

use half::{bf16, f16};
use ptx::isa::MmaType;

/// ‖out − reference‖ / ‖reference‖; infinite if anything is not a number, and the plain norm where the reference is zero.
pub fn relative_error(out: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(out.len(), reference.len(), "lengths differ");
    let difference: f64 = out.iter().zip(reference).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = reference.iter().map(|b| b * b).sum();
    let error = if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() };
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Rounds to the nearest half-precision value.
pub fn round(dtype: MmaType, value: f64) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_f64(value).to_f64(),
        MmaType::F16 => f16::from_f64(value).to_f64(),
    }
}

/// The relative error that counts as correct for attention in this type.
pub fn bound(dtype: MmaType) -> f64 {
    match dtype {
        MmaType::Bf16 => 5e-3,
        MmaType::F16 => 1e-3,
    }
}

/// Checks an attention output: the relative error is within [`bound`], and no element is off by more than ten times the
/// worst element of `plain`, the same computation in plain half precision.
pub fn assert_close(what: &str, dtype: MmaType, out: &[f64], reference: &[f64], plain: &[f64]) {
    let error = relative_error(out, reference);
    assert!(error < bound(dtype), "{what}: relative error {error:.2e} is not below {:.0e}", bound(dtype));
    let worst = plain.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for (i, (a, b)) in out.iter().zip(reference).enumerate() {
        assert!((a - b).abs() <= 10.0 * worst, "{what}: element {i} is {a}, should be {b}; plain error {worst:.2e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_never_passes() {
        assert_eq!(relative_error(&[f64::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), 5.0);
        assert!((relative_error(&[1.1], &[1.0]) - 0.1).abs() < 1e-12);
    }

    #[test]
    #[should_panic(expected = "element 1")]
    fn one_wrong_element_is_found() {
        let reference = vec![1.0; 100_000];
        let mut out = reference.clone();
        out[1] = 1.1;
        let plain: Vec<f64> = reference.iter().map(|r| r + 1e-3).collect();
        assert_close("test", MmaType::Bf16, &out, &reference, &plain);
    }
}
