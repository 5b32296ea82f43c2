//! The vertical-slash estimate: softmax of the last queries over all keys, summed over columns and over slashes
//! (MInference §1.3).
//!
//! For one (batch row, query head), with the `w = min(64, q_len, kv_len)` last queries, counted backwards: query n stands at
//! `kv_len − 1 − n`. `P = softmax(q · kᵀ · scale)`, causal; `vertical[k] = Σₙ P[n, k]`, and with `d = k + n`, which is constant
//! along a slash, `slash[kv_len − 1 − d] = Σₙ P[n, d − n]`. Products, softmax and sums are in single precision.
//!
//! The first pass leaves each row's maximum and denominator over some keys; the second merges them, computes P again and
//! sums it. A warp has the 64 queries of one head, as right factors, and goes through keys, the left ones, 16 at a time: scores
//! come with a key a row, so that a column is summed inside a lane and its quad. In a lane's elements the sum of the eights of d
//! is the same for all of a slash, so slashes too are summed in the lane, and only sixteen finished ones a turn go through
//! shuffles; unfinished ones stay for the next turn. Heads that share their keys are computed by one block, which brings keys in
//! once for all ([`EstimateSpec::heads`]); what warps are left share out neighbouring parts of the sequence.
//!
//! A slash that ends in a part begins up to 63 keys before it: the second pass computes those again.
//!
//! The texts of both architectures differ in how products come about (`walk`); what becomes of them they share.
//!
//! Cost at 128K keys, 32 query and 8 KV heads of 128 on an H200: 69 GFLOP a pass, 0.17 ms at what `mma` reaches there and 0.09 ms
//! at what `wgmma` does; the keys are 268 MB, 0.06 ms a pass; weights take 0.07 ms of special functions a pass.
//!
//! Determinism: parts follow from `kv_len` and the spec alone; statistics are merged in the order of the keys, columns and
//! slashes are summed in a fixed order. Neither the batch nor `max_kv` enters.

mod scores;
mod sm80;
mod sm90;
mod statistics;
mod walk;
mod window;

use super::check_head_dim;
use crate::{
    Kernel, KernelSpec, SpecError, SpecErrors,
    isa::{Arch, Builder, F32, Launch, MmaType, RF},
    kernels::{index::workspace::WINDOW, kv::KvLayout},
};
use walk::Walk;
use window::Window;

/// One pass of the vertical-slash estimate.
///
/// Grid: x = [`estimate_blocks(arch, max_kv, heads)`](super::workspace::estimate_blocks), y = sets of heads, z = batch. 256
/// threads, of the `sm_90a` text 640.
///
/// Parameters: pointers `q k`; byte strides `q_batch q_row q_head k_batch k_row k_head`, and `q k` themselves, multiples
/// of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv`, `heads heads_per_kv head_map`, `scale` and
/// `status`, all as in attention; `slots`, heads of the launch; pointer `sets` (0 or u32 `[sets][heads of a block]`): the heads
/// of the launch that a block computes, which have one KV head, or values from `slots` on for none; without it set s has heads
/// `heads · s`, `heads · s + 1`, …; pointer `statistics`, `f32[batch][slots][blocks][64][2]`: written by the first pass and read
/// by the second. The second pass then has pointers `vertical_scores slash_scores` (f32, by key and by offset Δ) and the byte
/// strides `scores_batch scores_head` of both. Entries from `kv_len` up to the next multiple of 4 become zero, others are not
/// written.
///
/// Keys in pages: the stride `k_page` stands for `k_batch`, and the last parameters of both passes but those of the scores are
/// `page_table page_table_batch pages`, as in attention. The `sm_90a` text has also a tensor map `k_map`, of pages too.
///
/// A sequence without queries gets zeros, as does a head that does not exist or has other keys than the first of its set. A
/// row with a NaN or infinite score makes what it touches NaN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EstimateSpec {
    /// Which of the two passes.
    pub pass: EstimatePass,
    /// Query heads of a block, which share their keys: 1, 2 or 4.
    pub heads: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries and keys.
    pub dtype: MmaType,
    /// Where keys lie.
    pub kv: KvLayout,
    /// Architecture of the text.
    pub arch: Arch,
}

/// The passes of the estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EstimatePass {
    /// Row maxima and denominators of each block's keys.
    Statistics,
    /// Sums over columns and slashes.
    Scores,
}

impl EstimatePass {
    /// Keys before its part at which a warp begins: a slash that ends in the part may begin there.
    const fn before(self) -> u32 {
        match self {
            EstimatePass::Statistics => 0,
            EstimatePass::Scores => WINDOW,
        }
    }
}

impl KernelSpec for EstimateSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if ![1, 2, 4].contains(&self.heads) {
            errors.push(SpecError::new(
                "heads",
                format!("{} heads a block are not supported; use 1, 2 or 4", self.heads),
            ));
        }
        check_head_dim(&mut errors, self.head_dim);
        self.kv.check(&mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let pass = match self.pass {
            EstimatePass::Statistics => "statistics",
            EstimatePass::Scores => "scores",
        };
        let (heads, head_dim) = (self.heads, self.head_dim);
        let (dtype, kv) = (self.dtype.suffix(), self.kv.suffix());
        let entry = format!("vertical_slash_{pass}_h{heads}_d{head_dim}_{dtype}{kv}_{}", self.arch.name());
        let threads = match self.arch {
            Arch::Sm80 => sm80::THREADS,
            Arch::Sm90a => sm90::THREADS,
        };
        let mut k = Builder::new(self.arch, entry, Launch { threads, blocks_per_multiprocessor: 1 });
        match self.arch {
            Arch::Sm80 => sm80::estimate(&mut k, self),
            Arch::Sm90a => sm90::estimate(&mut k, self),
        }
        k.ret();
        k.finish()
    }
}

impl EstimateSpec {
    /// The pass, for a warp that computes.
    fn write(&self, k: &mut Builder, window: &Window, keys: &impl Walk) {
        match self.pass {
            EstimatePass::Statistics => statistics::write(k, window, keys),
            EstimatePass::Scores => scores::write(k, window, keys),
        }
    }
}

/// A maximum to subtract: 0 where no key is visible yet, so that no −∞ − −∞ arises.
fn finite_maximum(k: &mut Builder, max: RF) -> RF {
    let none = k.eq_f(max, f32::NEG_INFINITY);
    k.select(none, 0.0f32, max)
}

/// Two parts of a softmax as one: maximum and denominator.
fn merge(k: &mut Builder, [max, sum]: [RF; 2], others: &[[RF; 2]]) -> [RF; 2] {
    let new = others.iter().fold(max, |max, part| k.max_f(max, part[0]));
    let reference = finite_maximum(k, new);
    let weigh = |k: &mut Builder, [max, sum]: [RF; 2]| {
        let shrunk = k.sub_f(max, reference);
        let shrunk = k.exp2_f(shrunk);
        k.mul_f(sum, shrunk)
    };
    let kept = weigh(k, [max, sum]);
    let sum = others.iter().fold(kept, |sum, &part| {
        let part = weigh(k, part);
        k.add_f(sum, part)
    });
    [new, sum]
}

/// The softmax of no keys.
fn nothing(k: &mut Builder) -> [RF; 2] {
    [k.mov::<F32>(f32::NEG_INFINITY), k.mov::<F32>(0.0f32)]
}
