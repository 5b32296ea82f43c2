//! Means of blocks of rows: what pooled block-sparse selection scores.
//!
//! The mean divides by the rows that exist. MInference pads the last block with zeros and divides by the block size, which
//! shrinks its mean; the two agree on whole blocks.

use super::{check_arch, check_block, check_head_dim};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, F32, Launch, MmaType, R32, R64, RF, SharedRegion},
    kernels::{
        batch::{Bounds, address},
        meta::ParameterKind::{Pointer, U64},
    },
};

/// Threads of the kernels that form means.
pub(super) const THREADS: u32 = 256;

/// Averages blocks of keys.
///
/// Grid: x = key blocks of `max_kv`, y = KV heads, z = batch. 256 threads.
///
/// Parameters: pointer `k`, a multiple of 4 as its byte strides `k_batch k_row k_head`; `kv_start kv_length kv_rows
/// max_kv` as in attention; pointer `key_means` (f32) with byte strides `means_batch means_head`: means of block b begin
/// `b · head_dim` elements in, blocks past the last key are not written; pointer `status` (0 = none): bit 1 a length beyond
/// its bound, which is clamped.
///
/// Determinism: with `g = 256 / (head_dim / 2)` groups of threads, group i sums rows i, i + g, … in ascending order, and the
/// groups' sums are added in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyMeansSpec {
    /// Keys a block: 32, 64 or 128.
    pub block: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of keys.
    pub dtype: MmaType,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for KeyMeansSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "keys a block", self.block);
        check_head_dim(&mut errors, self.head_dim);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "block_sparse_key_means_n{}_d{}_{}_{}",
            self.block,
            self.head_dim,
            self.dtype.suffix(),
            self.arch.name()
        );
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 2 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

impl KeyMeansSpec {
    fn body(&self, k: &mut Builder) {
        let keys: R64 = k.parameter("k", Pointer);
        let [k_batch, k_row, k_head]: [R64; 3] = ["k_batch", "k_row", "k_head"].map(|name| k.parameter(name, U64));
        let bounds = Bounds::keys(k);
        let means: R64 = k.parameter("key_means", Pointer);
        let [means_batch, means_head]: [R64; 2] = ["means_batch", "means_head"].map(|name| k.parameter(name, U64));
        let status: R64 = k.parameter("status", Pointer);

        let (block, head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let sequence = bounds.sequence(k, batch, status);
        let first = k.shl(block, self.block.ilog2());
        let beyond = k.ge_u(first, sequence.length);
        k.when(beyond, |k| k.ret());
        let rows = k.sub(sequence.length, first);
        let rows = k.min_u(rows, self.block);
        let row = k.add(sequence.first, first);
        let keys = address(k, keys, [(batch, k_batch), (row, k_row), (head, k_head)]);
        let means = address(k, means, [(batch, means_batch), (head, means_head)]);
        let means = k.mad_wide(block, self.head_dim * 4, means);

        let mean = Mean::new(k, self.head_dim);
        mean.compute(k, self.dtype, keys, k_row, rows, |k, element, value| {
            let at = k.mad_wide(element, 4u32, means);
            k.store(at, 0, value);
        });
    }
}

/// Shared memory for the mean of some rows.
pub(super) struct Mean {
    head_dim: u32,
    partial: SharedRegion,
}

impl Mean {
    /// Groups of threads, each with a thread for every two elements; threads left over idle.
    const fn groups(head_dim: u32) -> u32 {
        THREADS / (head_dim / 2)
    }

    pub(super) fn new(k: &mut Builder, head_dim: u32) -> Mean {
        debug_assert_eq!(k.threads(), THREADS);
        Mean { head_dim, partial: k.shared(Self::groups(head_dim) * head_dim * 4, 16) }
    }

    /// Averages `rows` rows from `base`; `write` takes element and mean, in the first `head_dim` threads.
    pub(super) fn compute(
        &self,
        k: &mut Builder,
        dtype: MmaType,
        base: R64,
        stride: R64,
        rows: R32,
        write: impl FnOnce(&mut Builder, R32, RF),
    ) {
        let (pairs, groups) = (self.head_dim / 2, Self::groups(self.head_dim));
        let partial = k.shared_address(self.partial);
        let thread = k.thread();
        let group = k.div_u(thread, pairs);
        let pair = k.rem_u(thread, pairs);
        let works = k.lt_u(group, groups);
        k.if_then(works, |k| {
            let sums = [(); 2].map(|()| k.mov::<F32>(0.0f32));
            let column = k.mad_wide(pair, 4u32, base);
            k.for_loop(group, rows, groups, |k, row| {
                let row = k.widen_u(row);
                let at = k.mad(row, stride, column);
                let packed: R32 = k.load_readonly(at, 0);
                for (sum, value) in sums.into_iter().zip(k.unpack_halves(dtype, packed)) {
                    let next = k.add_f(sum, value);
                    k.set(sum, next);
                }
            });
            let at = k.mad(thread, 8u32, partial);
            k.store_vector(at, 0, sums);
        });
        k.barrier();
        let has_element = k.lt_u(thread, self.head_dim);
        k.if_then(has_element, |k| {
            let at = k.mad(thread, 4u32, partial);
            let mut sum: RF = k.load(at, 0);
            for group in 1..groups {
                let other: RF = k.load(at, i64::from(group * self.head_dim * 4));
                sum = k.add_f(sum, other);
            }
            let count = k.float_from_u(rows);
            let mean = k.div_f(sum, count);
            write(k, thread, mean);
        });
    }
}
