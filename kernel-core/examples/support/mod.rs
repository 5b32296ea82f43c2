//! What the examples share: a device, random data, and dense attention on the host to compare with.
#![allow(dead_code, reason = "no example uses all of it")]

use half::bf16;
use kernel_core::{Device, device::Plain};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The GPU if there is one, else the embedded backend.
pub(crate) fn device() -> Device {
    let device = Device::cuda(0).unwrap_or_else(|reason| {
        println!("{reason}");
        Device::emulator()
    });
    println!("running on {}", device.name());
    device
}

/// `count` numbers of mean 0 and variance 1, rounded to bf16.
pub(crate) fn random(count: usize, mut seed: u64) -> Vec<bf16> {
    let mut uniform = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1u64 << 24) as f32
    };
    // Twelve uniform numbers have variance 1 in sum.
    (0..count).map(|_| bf16::from_f32((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect()
}

/// Sizes of one sequence: queries are as many as keys.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Shape {
    pub(crate) fn queries(&self) -> [u64; 4] {
        [1, self.tokens as u64, self.heads as u64, self.head_dim as u64]
    }

    pub(crate) fn keys(&self) -> [u64; 4] {
        [1, self.tokens as u64, self.kv_heads as u64, self.head_dim as u64]
    }
}

/// Attention on the host: of head h, query q sees key k where `keep(h, q, k)`, with the score `score(h, q, k, scaled)`.
pub(crate) fn reference(
    shape: Shape,
    [q, k, v]: [&[bf16]; 3],
    keep: impl Fn(usize, usize, usize) -> bool,
    score: impl Fn(usize, usize, usize, f64) -> f64,
) -> Vec<f64> {
    let Shape { tokens, heads, kv_heads, head_dim } = shape;
    let mut out = vec![0.0; tokens * heads * head_dim];
    for h in 0..heads {
        let kv = h * kv_heads / heads;
        for i in 0..tokens {
            let row = |x: &[bf16], token: usize, heads: usize, head: usize| -> Vec<f64> {
                x[(token * heads + head) * head_dim..][..head_dim].iter().map(|x| x.to_f64()).collect()
            };
            let query = row(q, i, heads, h);
            let seen: Vec<usize> = (0..=i).filter(|j| keep(h, i, *j)).collect();
            let scaled = |j: usize| {
                let dot: f64 = query.iter().zip(row(k, j, kv_heads, kv)).map(|(a, b)| a * b).sum();
                score(h, i, j, dot / (head_dim as f64).sqrt())
            };
            let scores: Vec<f64> = seen.iter().map(|j| scaled(*j)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (j, s) in seen.iter().zip(&scores) {
                let weight = (s - max).exp() / sum;
                let target = &mut out[(i * heads + h) * head_dim..][..head_dim];
                target.iter_mut().zip(row(v, *j, kv_heads, kv)).for_each(|(o, v)| *o += weight * v);
            }
        }
    }
    out
}

/// Fails unless ‖out − reference‖ / ‖reference‖ is below 5e-3, what bf16 allows.
pub(crate) fn check(what: &str, out: &[bf16], reference: &[f64]) -> Result {
    let difference: f64 = out.iter().zip(reference).map(|(a, b)| (a.to_f64() - b).powi(2)).sum();
    let norm: f64 = reference.iter().map(|b| b * b).sum();
    let error = (difference / norm).sqrt();
    println!("{what}: relative error {error:.1e}");
    // Written so that NaN fails too.
    if error < 5e-3 { Ok(()) } else { Err(format!("{what}: relative error {error}").into()) }
}

/// Whether two results have the same bits.
pub(crate) fn check_same<T: Plain + PartialEq>(what: &str, a: &[T], b: &[T]) -> Result {
    if a == b { Ok(()) } else { Err(format!("{what}: results differ").into()) }
}
