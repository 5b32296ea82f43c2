//! Means of blocks of rows: what pooled block-sparse selection scores.
//!
//! The mean divides by the rows that exist. MInference pads the last block with zeros and divides by the block size, which
//! shrinks its mean; the two agree on whole blocks.
//!
//! Cost: each element is read once and added once, so that memory sets the pace: 268 MB of keys at 128K tokens and 8 KV heads of
//! 128. It takes some 30 KB on their way to a multiprocessor to keep memory busy, so a warp alone averages a block, 16 bytes a
//! lane and eight rows deep, and nothing waits for a barrier.

use super::{check_arch, check_block, check_head_dim};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, Cache, F32, Launch, MmaType, R32, R64, RF, RP, Reg, Space},
    kernels::{
        batch::{Bounds, address},
        kv::{KvLayout, KvTensor, PageTable},
        meta::ParameterKind::{Pointer, U64},
    },
    tile::copy::RowSource,
};

/// Elements that a lane loads at once: 16 bytes.
const WIDTH: u32 = 8;
/// Rows of a lane that are on their way together.
const DEPTH: u32 = 8;

/// Averages blocks of keys.
///
/// Grid: x = key blocks of `max_kv`, y = KV heads, z = batch. 32 threads.
///
/// Parameters: pointer `k`, a multiple of 16 as its byte strides `k_batch k_row k_head`; `kv_start kv_length kv_rows
/// max_kv` as in attention; pointer `key_means` (f32) with byte strides `means_batch means_head`, multiples of 16: means of block b begin
/// `b · head_dim` elements in, blocks past the last key are not written; pointer `status` (0 = none): bit 1 a length beyond
/// its bound, which is clamped; bit 2 an entry of the page table that names no page, whose keys are zeros. Of pages `k_page`
/// stands for `k_batch`, and `page_table page_table_batch pages` say where they are, as in attention.
///
/// Determinism: with `g = ⌊32 / (head_dim / 8)⌋` groups of lanes, group i sums rows i, i + g, … in ascending order, and the
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
        // Addresses through a page table take registers.
        let blocks = if self.kv == KvLayout::Strided { 24 } else { 16 };
        let mut k = Builder::new(self.arch, entry, Launch { threads: 32, blocks_per_multiprocessor: blocks });
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

        let row_of = |k: &mut Builder, row: R32| if keys.strided().is_some() { row } else { k.add(first, row) };
        let mean = warp_mean(k, self.dtype, self.head_dim, keys, rows, row_of);
        let at = k.mad_wide(mean.element, 4u32, means);
        k.when(mean.leads, |k| mean.store(k, at));
    }
}

/// The mean of some rows; each lane has a few neighbouring elements of it.
pub(super) struct Mean {
    /// The lane's first element.
    pub(super) element: R32,
    /// No lane before this one has the same elements.
    pub(super) leads: RP,
    pub(super) values: [RF; WIDTH as usize],
}

impl Mean {
    /// Stores the lane's elements at `at`, a multiple of 16.
    pub(super) fn store<S: Space>(&self, k: &mut Builder, at: Reg<S>) {
        let [a, b, c, d, e, f, g, h] = self.values;
        k.store_vector(at, 0, [a, b, c, d]);
        k.store_vector(at, 16, [e, f, g, h]);
    }
}

/// Averages `rows` rows (at least one), of which `row_of` says where in `source` they are. All lanes take part.
pub(super) fn warp_mean(
    k: &mut Builder,
    dtype: MmaType,
    head_dim: u32,
    source: impl Into<RowSource>,
    rows: R32,
    row_of: impl Fn(&mut Builder, R32) -> R32,
) -> Mean {
    let lanes = head_dim / WIDTH;
    let groups = 32 / lanes;
    let lane = k.lane();
    let column = k.rem_u(lane, lanes);
    // Lanes left over do what the last group does, so that no lane goes another way.
    let group = k.div_u(lane, lanes);
    let group = k.min_u(group, groups - 1);
    let element = k.shl(column, WIDTH.ilog2());
    let source = source.into();
    let source = source.at(k.mad_wide(column, WIDTH * 2, source.base()));
    let sums = [(); WIDTH as usize].map(|()| k.mov::<F32>(0.0f32));
    k.for_loop(0u32, rows, groups * DEPTH, |k, first| {
        let first = k.add(first, group);
        let loaded: Vec<(RP, [R32; 4])> = (0..DEPTH)
            .map(|turn| {
                let row = k.add(first, turn * groups);
                let exists = k.lt_u(row, rows);
                let row = k.select(exists, row, 0u32);
                let row = row_of(k, row);
                let words = match source.row(k, row) {
                    (at, None) => k.load_vector(at, 0, Cache::ReadOnly),
                    (at, Some(present)) => {
                        source.report_unless(k, Some(present));
                        let words = [(); 4].map(|()| k.mov(0u32));
                        k.when(present, |k| {
                            let loaded: [R32; 4] = k.load_vector(at, 0, Cache::ReadOnly);
                            words.into_iter().zip(loaded).for_each(|(word, loaded)| k.set(word, loaded));
                        });
                        words
                    }
                };
                (exists, words)
            })
            .collect();
        for (exists, words) in loaded {
            for (word, sums) in words.into_iter().zip(sums.chunks(2)) {
                // No sum is −0, so that adding 0 changes nothing.
                let word = k.select(exists, word, 0u32);
                for (&sum, value) in sums.iter().zip(k.unpack_halves(dtype, word)) {
                    let next = k.add_f(sum, value);
                    k.set(sum, next);
                }
            }
        }
    });
    let count = k.float_from_u(rows);
    let sources: Vec<R32> = (0..groups).map(|group| k.add(column, group * lanes)).collect();
    let values = sums.map(|sum| {
        let of_groups: Vec<RF> = sources.iter().map(|&lane| k.shuffle_from(sum, lane)).collect();
        let sum = of_groups[1..].iter().fold(of_groups[0], |sum, &other| k.add_f(sum, other));
        k.div_f(sum, count)
    });
    Mean { element, leads: k.lt_u(lane, lanes), values }
}
