//! Seeded launches of every kernel family with what is known of their outputs: what mutants are tried on, and what the
//! GPU and the embedded backend must agree on.

mod attention;
mod decode;
mod feed;
mod index;
mod linear;
mod model;
mod sampling;

use super::launch::{Launch, Outcome};
use half::{bf16, f16};
use kernel_core::Error;
use ptx::{isa::MmaType, kernels::sampling::RowStatistics};
use rand::{Rng, rngs::StdRng};

pub use attention::{attention, dense_full, paged};
pub use decode::{attention_parts, merge};
pub use feed::{embed, head_rows};
pub use index::{
    antidiagonal_select, antidiagonal_sums, block_sparse, estimate_scores, estimate_statistics, key_means,
    merged_ranges, pattern_choice, vertical_slash,
};
pub use linear::linear;
pub use model::{gather, rms_norm, rope, scatter, swiglu};
pub use sampling::{changed_rows, cold_rows, credits, crowded_rows, draws, merged_rows, rows, selection};

/// What is wrong with an outcome, in words with a figure.
pub type Verdict = Result<(), String>;

type Check = Box<dyn Fn(&Outcome) -> Result<Verdict, Error> + Send + Sync>;

/// A launch with its reference.
pub struct Scene {
    /// What is launched.
    pub launch: Launch,
    /// The arrays that it writes, and how close two devices must come.
    pub outputs: Vec<(&'static str, Agreement)>,
    check: Check,
}

/// How close the outputs of two devices must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// Bit for bit.
    Exact,
    /// Half precision, by the norm of the difference.
    Half(MmaType),
    /// Single precision: relative difference of each element, or absolute below one.
    Float(f64),
    /// [`RowStatistics`]: integers bit for bit, numbers to 10⁻⁵.
    Statistics,
}

impl Scene {
    fn new(
        launch: Launch,
        outputs: &[(&'static str, Agreement)],
        check: impl Fn(&Outcome) -> Result<Verdict, Error> + Send + Sync + 'static,
    ) -> Scene {
        Scene { launch, outputs: outputs.to_vec(), check: Box::new(check) }
    }

    /// Compares an outcome with the reference.
    ///
    /// # Errors
    /// What the device reports while the outputs are read.
    pub fn check(&self, outcome: &Outcome) -> Result<Verdict, Error> {
        (self.check)(outcome)
    }

    /// Compares the outcomes of two devices.
    ///
    /// # Errors
    /// What a device reports while the outputs are read.
    pub fn agree(&self, one: &Outcome, other: &Outcome) -> Result<Verdict, Error> {
        for &(name, agreement) in &self.outputs {
            let verdict = match agreement {
                Agreement::Exact => equal(name, &one.read::<u8>(name)?, &other.read::<u8>(name)?),
                Agreement::Half(dtype) => {
                    let (one, other) = (one.read::<u16>(name)?, other.read::<u16>(name)?);
                    same_poison(name, &one, &other)
                        .and_then(|()| near(name, &halves(dtype, &one), &halves(dtype, &other), bound(dtype)))
                }
                Agreement::Float(tolerance) => {
                    floats(name, &one.read::<f32>(name)?, &other.read::<f32>(name)?, tolerance)
                }
                Agreement::Statistics => statistics(name, &one.read(name)?, &other.read(name)?),
            };
            if verdict.is_err() {
                return Ok(verdict);
            }
        }
        Ok(Ok(()))
    }
}

/// What rounding to half precision may cost, by the norm.
fn bound(dtype: MmaType) -> f64 {
    crate::oracle::error::bound(dtype)
}

fn decode(dtype: MmaType, bits: u16) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_bits(bits).to_f64(),
        MmaType::F16 => f16::from_bits(bits).to_f64(),
    }
}

fn encode(dtype: MmaType, value: f64) -> u16 {
    match dtype {
        MmaType::Bf16 => bf16::from_f64(value).to_bits(),
        MmaType::F16 => f16::from_f64(value).to_bits(),
    }
}

/// Values of half precision; those still poisoned are 0.
fn halves(dtype: MmaType, bits: &[u16]) -> Vec<f64> {
    bits.iter().map(|&bits| if bits == UNWRITTEN { 0.0 } else { decode(dtype, bits) }).collect()
}

/// Elements behind each row that belong to nobody.
const GAP: usize = 8;

/// An element of half precision that was not written.
const UNWRITTEN: u16 = u16::MAX;

fn normal(random: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Normal numbers as half-precision bits.
fn normals(random: &mut StdRng, dtype: MmaType, count: usize) -> Vec<u16> {
    (0..count).map(|_| encode(dtype, normal(random))).collect()
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Verdict {
    let wrong = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        _ if found.len() != expected.len() => Err(format!("{what}: {} elements, not {}", found.len(), expected.len())),
        Some(at) => {
            Err(format!("{what}: {wrong} elements wrong, the first, {at}, is {:?}, not {:?}", found[at], expected[at]))
        }
        None => Ok(()),
    }
}

/// Relative error by the norm, and each element within ten times the bound of the largest.
fn near(what: &str, found: &[f64], expected: &[f64], bound: f64) -> Verdict {
    let error = crate::oracle::relative_error(found, expected);
    if error >= bound {
        return Err(format!("{what}: relative error {error:.1e}, allowed {bound:.0e}"));
    }
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if worst > 10.0 * bound * largest {
        return Err(format!("{what}: an element is off by {worst:.1e}, allowed {:.1e}", 10.0 * bound * largest));
    }
    Ok(())
}

fn same_poison(what: &str, found: &[u16], expected: &[u16]) -> Verdict {
    let written = |bits: &[u16]| bits.iter().map(|&bits| bits != UNWRITTEN).collect::<Vec<_>>();
    equal(&format!("{what}, whether written"), &written(found), &written(expected))
}

/// Elements of half precision against their values; `None` where nothing may be written.
fn half_outputs(what: &str, dtype: MmaType, found: &[u16], expected: &[Option<f64>]) -> Verdict {
    let written: Vec<bool> = expected.iter().map(Option::is_some).collect();
    let found_written: Vec<bool> = found.iter().map(|&bits| bits != UNWRITTEN).collect();
    equal(&format!("{what}, whether written"), &found_written, &written)?;
    let expected: Vec<f64> = expected.iter().map(|value| value.unwrap_or(0.0)).collect();
    near(what, &halves(dtype, found), &expected, bound(dtype))
}

fn floats(what: &str, found: &[f32], expected: &[f32], tolerance: f64) -> Verdict {
    for (at, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let error = f64::from((a - b).abs()) / f64::from(b.abs()).max(1.0);
        if a.to_bits() != b.to_bits() && a != b && (error.is_nan() || error > tolerance) {
            return Err(format!(
                "{what}: element {at} is {a:e}, not {b:e}: error {error:.1e}, allowed {tolerance:.0e}"
            ));
        }
    }
    Ok(())
}

fn statistics(what: &str, found: &[RowStatistics], expected: &[RowStatistics]) -> Verdict {
    let integers = |s: &RowStatistics| [s.token, s.argmax, s.flags];
    let numbers = |s: &RowStatistics| {
        [
            s.confidence,
            s.max,
            s.second,
            s.lse,
            s.lse_tempered,
            s.probability,
            s.filtered_probability,
            s.negative_entropy,
            s.logit,
        ]
    };
    for (row, (a, b)) in found.iter().zip(expected).enumerate() {
        equal(&format!("{what}, row {row}: token, best token, flags"), &integers(a), &integers(b))?;
        floats(&format!("{what}, row {row}"), &numbers(a), &numbers(b), 1e-5)?;
    }
    Ok(())
}
