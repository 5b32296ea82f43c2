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
        kv::{KvLayout, KvTensor, PageTable},
        meta::ParameterKind::{Pointer, U64},
    },
    tile::copy::RowSource,
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
/// its bound, which is clamped; bit 2 an entry of the page table that names no page, whose keys are zeros. Of pages `k_page`
/// stands for `k_batch`, and `page_table page_table_batch pages` say where they are, as in attention.
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
    /// Where keys lie.
    pub kv: KvLayout,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for KeyMeansSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "keys a block", self.block);
        check_head_dim(&mut errors, self.head_dim);
        self.kv.check(&mut errors);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "block_sparse_key_means_n{}_d{}_{}{}_{}",
            self.block,
            self.head_dim,
            self.dtype.suffix(),
            self.kv.suffix(),
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
        let keys = KvTensor::declare(k, self.kv, "k");
        let bounds = Bounds::keys(k);
        let means: R64 = k.parameter("key_means", Pointer);
        let [means_batch, means_head]: [R64; 2] = ["means_batch", "means_head"].map(|name| k.parameter(name, U64));
        let status: R64 = k.parameter("status", Pointer);
        let table = PageTable::declare(k, self.kv, status);

        let (block, head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let sequence = bounds.sequence(k, batch, status);
        let first = k.shl(block, self.block.ilog2());
        let beyond = k.ge_u(first, sequence.length);
        k.when(beyond, |k| k.ret());
        let rows = k.sub(sequence.length, first);
        let rows = k.min_u(rows, self.block);
        let row = k.add(sequence.first, first);
        // In pages rows count from the sequence's first, else from the block's.
        let keys = keys.rows(k, table, batch, head, row);
        let means = address(k, means, [(batch, means_batch), (head, means_head)]);
        let means = k.mad_wide(block, self.head_dim * 4, means);

        let mean = Mean::new(k, self.head_dim);
        let row_of = |k: &mut Builder, row: R32| if keys.strided().is_some() { row } else { k.add(first, row) };
        mean.compute(k, self.dtype, keys, rows, row_of, |k, element, value| {
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

    /// Averages `rows` rows, of which `row_of` says where in `source` they are; `write` takes element and mean, in the first
    /// `head_dim` threads.
    pub(super) fn compute(
        &self,
        k: &mut Builder,
        dtype: MmaType,
        source: impl Into<RowSource>,
        rows: R32,
        row_of: impl Fn(&mut Builder, R32) -> R32,
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
            let source = source.into();
            let source = source.at(k.mad_wide(pair, 4u32, source.base()));
            k.for_loop(group, rows, groups, |k, row| {
                let row = row_of(k, row);
                let packed = match source.row(k, row) {
                    (at, None) => k.load_readonly(at, 0),
                    (at, Some(exists)) => {
                        source.report_unless(k, Some(exists));
                        let packed = k.mov(0u32);
                        k.when(exists, |k| {
                            let loaded: R32 = k.load_readonly(at, 0);
                            k.set(packed, loaded);
                        });
                        packed
                    }
                };
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
