//! The vertical-slash selection: the highest columns and slashes of each head, in the form that attention reads.
//!
//! One block a (kind, head, batch row) finds its threshold by a radix select (`tile::radix`) and walks the scores once more
//! in ascending order: columns are written where they fall, slashes set bits of block diagonals.
//!
//! With rows and keys cut in blocks of N, a pair (q, q − Δ) lies on block diagonal ⌊Δ/N⌋ or, unless N divides Δ, on the
//! next: both are set. The one past the last block is dropped, since no pair lies there.
//!
//! Determinism: keys are compared as integers, ties go to the lowest index, bits are set by integer atomics.

use super::{check_arch, check_block};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Launch, R32, R64, RF},
    kernels::{
        batch::{Bounds, address, report, status},
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::radix::{self, Scratch, Visit},
};

const THREADS: u32 = 512;

/// Selects columns and slashes and writes the vertical-slash index of every head.
///
/// Grid: x = 2 (columns, slashes), y = query heads of the launch, z = batch. 512 threads; no workspace.
///
/// Of the `n = kv_len` columns, `min(n, max(vertical_sizes[head], min_columns))` are selected: the first
/// `forced_columns` and then the highest scores. Slashes likewise, with `slash_sizes`, `min_slashes` and `forced_slashes`
/// (the nearest), each taken as at least 1, so that a row never loses its diagonal. Forced ones count toward the size.
/// A NaN score ranks last, −0 below +0, ties by index.
///
/// Parameters: pointers `vertical_scores slash_scores` with byte strides `scores_batch scores_head`; pointers
/// `kv_start kv_length`, `kv_rows max_kv` as in attention; pointers `vertical_sizes slash_sizes` (u32 by grid head);
/// `min_columns min_slashes forced_columns forced_slashes`; pointer `columns` (u32) with byte strides
/// `columns_batch columns_head`; `column_capacity`: entries of a head, of which those past the count become 0;
/// pointer `column_counts`, `u32[batch][grid heads]`; pointer `diagonals` with byte strides
/// `diagonals_batch diagonals_head`; `diagonal_words`: words of a head, all written; pointer `status` (0 = none): bit 1 a
/// length beyond its bound, bit 4 a column budget beyond the capacity; both are clamped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerticalSlashSelectSpec {
    /// Keys of an attention block, the granularity of the bitmap: 32, 64 or 128.
    pub block: u32,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for VerticalSlashSelectSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "keys a block", self.block);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("vertical_slash_select_n{}_{}", self.block, self.arch.name());
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

impl VerticalSlashSelectSpec {
    fn body(&self, k: &mut Builder) {
        let [vertical, slash]: [R64; 2] = ["vertical_scores", "slash_scores"].map(|name| k.parameter(name, Pointer));
        let [scores_batch, scores_head]: [R64; 2] = ["scores_batch", "scores_head"].map(|name| k.parameter(name, U64));
        let bounds = Bounds::keys(k);
        let [vertical_sizes, slash_sizes]: [R64; 2] =
            ["vertical_sizes", "slash_sizes"].map(|name| k.parameter(name, Pointer));
        let [min_columns, min_slashes, forced_columns, forced_slashes]: [R32; 4] =
            ["min_columns", "min_slashes", "forced_columns", "forced_slashes"].map(|name| k.parameter(name, U32));
        let columns: R64 = k.parameter("columns", Pointer);
        let [columns_batch, columns_head]: [R64; 2] =
            ["columns_batch", "columns_head"].map(|name| k.parameter(name, U64));
        let capacity: R32 = k.parameter("column_capacity", U32);
        let column_counts: R64 = k.parameter("column_counts", Pointer);
        let diagonals: R64 = k.parameter("diagonals", Pointer);
        let [diagonals_batch, diagonals_head]: [R64; 2] =
            ["diagonals_batch", "diagonals_head"].map(|name| k.parameter(name, U64));
        let words: R32 = k.parameter("diagonal_words", U32);
        let status: R64 = k.parameter("status", Pointer);

        let (kind, head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let for_columns = k.eq(kind, 0u32);
        let keys = bounds.sequence(k, batch, status).length;

        let sizes = k.select(for_columns, vertical_sizes, slash_sizes);
        let at = k.mad_wide(head, 4u32, sizes);
        let size: R32 = k.load(at, 0);
        let min_slashes = k.max_u(min_slashes, 1u32);
        let least = k.select(for_columns, min_columns, min_slashes);
        let size = k.max_u(size, least);
        let size = k.min_u(size, keys);
        let room = k.select(for_columns, capacity, u32::MAX);
        let short = k.gt_u(size, room);
        k.if_then(short, |k| report(k, status, status::BUDGET));
        let size = k.min_u(size, room);

        let forced_slashes = k.max_u(forced_slashes, 1u32);
        let forced = k.select(for_columns, forced_columns, forced_slashes);
        let scores = k.select(for_columns, vertical, slash);
        let scores = address(k, scores, [(batch, scores_batch), (head, scores_head)]);
        let key = |k: &mut Builder, index: R32| {
            let at = k.mad_wide(index, 4u32, scores);
            let score: RF = k.load_readonly(at, 0);
            let key = radix::ranking_key(k, score);
            let is_forced = k.lt_u(index, forced);
            k.select(is_forced, u32::MAX, key)
        };
        let scratch = Scratch::new(k);
        let threshold = radix::select(k, &scratch, keys, size, key);

        k.if_else(
            for_columns,
            |k| {
                let columns = address(k, columns, [(batch, columns_batch), (head, columns_head)]);
                radix::visit(k, &scratch, keys, threshold, key, |k, visit| write_column(k, columns, visit));
                let thread = k.thread();
                let first_unused = k.add(size, thread);
                k.for_loop(first_unused, capacity, THREADS, |k, index| {
                    let at = k.mad_wide(index, 4u32, columns);
                    k.store::<B32, _>(at, 0, 0u32);
                });
                let heads = k.grid_y();
                let pair = k.mad(batch, heads, head);
                let at = k.mad_wide(pair, 4u32, column_counts);
                let leads = k.eq(thread, 0u32);
                k.when(leads, |k| k.store(at, 0, size));
            },
            |k| {
                let diagonals = address(k, diagonals, [(batch, diagonals_batch), (head, diagonals_head)]);
                let thread = k.thread();
                k.for_loop(thread, words, THREADS, |k, word| {
                    let at = k.mad_wide(word, 4u32, diagonals);
                    k.store::<B32, _>(at, 0, 0u32);
                });
                k.barrier();
                let blocks = k.add(keys, self.block - 1);
                let blocks = k.shr_u(blocks, self.block.ilog2());
                let room = k.shl(words, 5u32);
                let blocks = k.min_u(blocks, room);
                radix::visit(k, &scratch, keys, threshold, key, |k, visit| self.set_bits(k, diagonals, blocks, visit));
            },
        );
    }

    /// A warp holds 32 consecutive offsets from a multiple of 32, all of one block: its first lane sets both bits.
    fn set_bits(&self, k: &mut Builder, diagonals: R64, blocks: R32, visit: Visit) {
        let selected = k.ballot(visit.selected);
        let lane = k.lane();
        let leads = k.eq(lane, 0u32);
        let diagonal = k.shr_u(visit.index, self.block.ilog2());
        let in_block = k.and(visit.index, self.block - 1);
        let aligned = k.eq(in_block, 0u32);
        let others = k.and(selected, !1u32);
        let unaligned = k.select(aligned, others, selected);
        let next = k.add(diagonal, 1u32);
        for (lanes, diagonal) in [(selected, diagonal), (unaligned, next)] {
            let any = k.ne(lanes, 0u32);
            let exists = k.lt_u(diagonal, blocks);
            let sets = k.and_p(any, exists);
            let sets = k.and_p(sets, leads);
            let word = k.shr_u(diagonal, 5u32);
            let at = k.mad_wide(word, 4u32, diagonals);
            let bit = k.and(diagonal, 31u32);
            let one = k.mov(1u32);
            let bit = k.shl(one, bit);
            k.when(sets, |k| k.reduce_or(at, 0, bit));
        }
    }
}

fn write_column(k: &mut Builder, columns: R64, visit: Visit) {
    let at = k.mad_wide(visit.position, 4u32, columns);
    k.when(visit.selected, |k| k.store(at, 0, visit.index));
}
