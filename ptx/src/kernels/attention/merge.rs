//! Merges the parts that blocks have left of the keys of a sequence.
//!
//! With LSE ℓᵢ and rows oᵢ of the parts, a row is `Σ wᵢ·oᵢ / Σ wᵢ`, `wᵢ = e^(ℓᵢ − max ℓ)`, and its LSE `max ℓ + ln Σ wᵢ`
//! (FlashAttention, §B; FlashDecoding). Parts without a visible key have ℓ = −∞ and no weight.
//!
//! Cost: bytes of the parts, `4 · parts · (head_dim + 1)` a row, mostly from the L2 cache, where they have just been left. A
//! warp merges a row, so that the rows of all heads are spread over the whole GPU: the block that comes last could merge too,
//! without a launch, but alone it would read the up to 2 MB of its row block at what one multiprocessor draws, for longer than
//! a launch takes.

use super::{
    problem::Tensor,
    split::{MAX_PARTS, NOTE_WORDS, PartMemory, Tile},
};
use crate::{
    isa::{Arch, B32, Builder, Cache, F32, Launch, MmaType, R32, R64, RF},
    kernels::{
        KernelSpec,
        batch::address,
        error::{SpecError, SpecErrors},
        meta::{
            Kernel,
            ParameterKind::{Pointer, U32, U64},
        },
    },
    tile::overlap,
};
use std::f32::consts::{LN_2, LOG2_E};

/// Warps of a block, each with a row.
const WARPS: u32 = 4;
/// Elements that a lane has of a row.
const WIDTH: u32 = 4;
/// Parts whose rows are on their way together.
const DEPTH: usize = 4;

/// Merges the parts left by an [`AttentionSpec`](super::AttentionSpec) of [`Partition::Keys`](super::Partition::Keys) into its
/// output. Sequences with one part have their output already, and are left alone.
///
/// Grid: x = ⌈most rows / 4⌉, where rows are query rows times the heads that share keys; y = KV heads; z = batch. 128 threads.
///
/// Parameters: pointer `out`, a multiple of 16 as its byte strides `out_batch out_row out_head`; pointer `lse` (0 = none) with
/// `lse_batch lse_head`; `heads_per_kv`; `places`, the first kernel's grid along x; pointers `notes part_out part_lse` as that
/// kernel left them.
///
/// Determinism: weights are summed in a tree of fixed shape, rows in ascending order of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MergeSpec {
    /// Rows of a block of the first kernel: 64 or 128.
    pub rows: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of the output.
    pub dtype: MmaType,
    /// Architecture of the text, which on sm_90a starts before the first kernel has ended.
    pub arch: Arch,
}

impl MergeSpec {
    /// Blocks along x for at most `rows` rows.
    pub fn blocks(rows: u32) -> u32 {
        rows.div_ceil(WARPS)
    }
}

impl KernelSpec for MergeSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if ![64, 128].contains(&self.rows) {
            errors.push(SpecError::new("rows", format!("{} is not generated; use 64 or 128", self.rows)));
        }
        if ![64, 96, 128].contains(&self.head_dim) {
            let message = format!("{} is not generated; use 64, 96 or 128", self.head_dim);
            errors.push(SpecError::new("head_dim", message));
        }
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let MergeSpec { rows, head_dim, dtype, arch } = *self;
        let entry = format!("attention_merge_m{rows}_d{head_dim}_{}_{}", dtype.suffix(), arch.name());
        let mut k = Builder::new(arch, entry, Launch { threads: 32 * WARPS, blocks_per_multiprocessor: 8 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

impl MergeSpec {
    fn body(&self, k: &mut Builder) {
        let out = Tensor::declare(k, ["out", "out_batch", "out_row", "out_head"]);
        let lse: R64 = k.parameter("lse", Pointer);
        let [lse_batch, lse_head]: [R64; 2] = ["lse_batch", "lse_head"].map(|name| k.parameter(name, U64));
        let [heads_per_kv, places]: [R32; 2] = ["heads_per_kv", "places"].map(|name| k.parameter(name, U32));
        let memory = PartMemory::declare(k);
        overlap::follow(k);

        k.comment("a warp's row, if it has parts");
        let (thread, lane) = (k.thread(), k.lane());
        let (block, kv_head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let warp = k.shr_u(thread, 5u32);
        let row = k.mad(block, WARPS, warp);
        let note = memory.note(k, batch, kv_head);
        let [parts, rows, first_q, row_blocks] =
            k.load_vector::<B32, _, { NOTE_WORDS as usize }>(note, 0, Cache::ReadOnly);
        let beyond = k.ge_u(row, rows);
        let alone = k.lt_u(parts, 2u32);
        let none = k.or_p(beyond, alone);
        k.if_then(none, |k| k.ret());
        let row_block = k.shr_u(row, self.rows.ilog2());
        let row_of_block = k.and(row, self.rows - 1);
        let tile = Tile { rows: self.rows, head_dim: self.head_dim };
        let part = |k: &mut Builder, part: R32| {
            let place = k.mad(part, row_blocks, row_block);
            memory.row(k, tile, (batch, kv_head), (place, places), row_of_block)
        };

        k.comment("weights: a lane has a part's");
        let exists = k.lt_u(lane, parts);
        let (_, at) = part(k, lane);
        let own: RF = k.mov(f32::NEG_INFINITY);
        k.when(exists, |k| {
            let left: RF = k.load_readonly(at, 0);
            k.set(own, left);
        });
        let largest = warp_reduce(k, own, |k, a, b| k.max_f(a, b));
        let nothing = k.eq_f(largest, f32::NEG_INFINITY);
        let shift = k.select(nothing, 0.0, largest);
        let below = k.sub_f(own, shift);
        let below = k.mul_f(below, LOG2_E);
        let weight = k.exp2_f(below);
        let sum = warp_reduce(k, weight, |k, a, b| k.add_f(a, b));

        k.comment("rows, part by part");
        let column = k.mul(lane, WIDTH);
        let inside = k.lt_u(column, self.head_dim);
        let merged: [RF; WIDTH as usize] = [(); WIDTH as usize].map(|()| k.mov(0.0));
        k.for_loop(0u32, parts, DEPTH as u32, |k, first| {
            let rows: [_; DEPTH] = std::array::from_fn(|i| {
                let own = k.add(first, i as u32);
                let row: [RF; WIDTH as usize] = [(); WIDTH as usize].map(|()| k.mov(0.0));
                let exists = k.lt_u(own, parts);
                let reads = k.and_p(exists, inside);
                let (at, _) = part(k, own);
                let at = k.mad_wide(column, 4u32, at);
                k.when(reads, |k| {
                    let left = k.load_vector::<F32, _, { WIDTH as usize }>(at, 0, Cache::ReadOnly);
                    row.iter().zip(left).for_each(|(&row, left)| k.set(row, left));
                });
                // Of a part that there is not, no lane has a weight but 0.
                (row, k.shuffle_from(weight, own))
            });
            for (row, weight) in rows {
                for (&merged, element) in merged.iter().zip(row) {
                    let sum = k.fma(weight, element, merged);
                    k.set(merged, sum);
                }
            }
        });

        k.comment("output");
        let empty = k.eq_f(sum, 0.0);
        let inverse = k.rcp_f(sum);
        let inverse = k.select(empty, 0.0, inverse);
        let merged = merged.map(|element| k.mul_f(element, inverse));
        let query = k.div_u(row, heads_per_kv);
        let before = k.mul(query, heads_per_kv);
        let of_group = k.sub(row, before);
        let head = k.mad(kv_head, heads_per_kv, of_group);
        let query = k.add(query, first_q);
        let at = out.rows(k, batch, head, query).base;
        let at = k.mad_wide(column, 2u32, at);
        let [a, b, c, d] = merged;
        let words = [k.pack_halves(self.dtype, a, b), k.pack_halves(self.dtype, c, d)];
        k.when(inside, |k| k.store_vector(at, 0, words));

        let wanted = k.ne(lse, 0u64);
        let leads = k.eq(lane, 0u32);
        let writes = k.and_p(wanted, leads);
        k.if_then(writes, |k| {
            let log = k.log2_f(sum);
            let total = k.fma(log, LN_2, shift);
            let at = address(k, lse, [(batch, lse_batch), (head, lse_head)]);
            let at = k.mad_wide(query, 4u32, at);
            k.store(at, 0, total);
        });
    }
}

/// Over the lanes of the warp, in every lane the same.
fn warp_reduce(k: &mut Builder, value: RF, op: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    const { assert!(MAX_PARTS == 32, "a lane a part") };
    [16, 8, 4, 2, 1].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        op(k, value, other)
    })
}
