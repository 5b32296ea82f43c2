//! The vertical-slash estimate: softmax of the last queries over all keys, summed over columns and over slashes
//! (MInference §1.3).
//!
//! For one (batch row, query head), with the `w = min(64, q_len, kv_len)` last queries at positions `kv_len − w + i`:
//! `P = softmax(q · kᵀ · scale)`, causal; `vertical[k] = Σᵢ P[i, k]`, `slash[Δ] = Σᵢ P[i, kv_len − w + i − Δ]`.
//! Products, softmax and sums are in single precision.
//!
//! The keys are cut in tiles of 64 and the tiles in chunks, one a block. The first pass leaves each chunk's row maxima and
//! denominators; the second merges them, computes P again and sums it. Slashes run across chunks, so each block owns as
//! many slashes as keys, namely `Δ = kv_len − 1 − d` for d among its keys, and computes the one tile before its own again:
//! slash d crosses rows i at keys `d − w + 1 + i`, all within 63 before d.
//!
//! Determinism: the chunks follow from `kv_len` alone; statistics are merged in the order of chunks, each column and each
//! slash is summed by one thread in the order of rows. Neither the batch nor `max_kv` enters.

use super::{
    check_arch, check_head_dim,
    workspace::{KEY_TILE, MAX_CHUNKS, MIN_CHUNK_TILES, WINDOW},
};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Cache, F32, Launch, MmaType, R32, R64, RF, SharedRegion},
    kernels::{
        batch::{Bounds, Heads, address},
        meta::ParameterKind::{self, Pointer, U64},
    },
    tile::{
        copy::{RowView, TileCopy},
        fragment::{Accumulator, Left, chunks_first, column, rows_first},
        layout::{TileCursor, TileLayout},
    },
};

const THREADS: u32 = 128;
/// Words from row to row of P in shared memory: two tiles of keys, padded against bank conflicts of the stores.
const P_PITCH: u32 = 2 * KEY_TILE + 8;
/// Bytes of one chunk's statistics.
const STATISTICS_BYTES: u32 = WINDOW * 8;

/// One pass of the vertical-slash estimate.
///
/// Grid: x = [`chunks(max_kv)`](super::workspace::chunks), y = query heads of the launch, z = batch. 128 threads.
///
/// Parameters: pointers `q k`; byte strides `q_batch q_row q_head k_batch k_row k_head`, and `q k` themselves, multiples
/// of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv`, `heads heads_per_kv head_map`, `scale` and
/// `status`, all as in attention; pointer `statistics`,
/// `f32[batch][grid heads][grid chunks][64][2]`: written by the first pass and read by the second. The second pass then
/// has pointers `vertical_scores slash_scores` (f32, by key and by offset Δ; entries from `kv_len` on are not written) and
/// the byte strides `scores_batch scores_head` of both.
///
/// A sequence without queries gets zeros, as does a head that does not exist. A row with a NaN or infinite score makes what it touches NaN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EstimateSpec {
    /// Which of the two passes.
    pub pass: EstimatePass,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries and keys.
    pub dtype: MmaType,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

/// The passes of the estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EstimatePass {
    /// Row maxima and denominators of each chunk.
    Statistics,
    /// Sums over columns and slashes.
    Scores,
}

impl KernelSpec for EstimateSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_head_dim(&mut errors, self.head_dim);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let pass = match self.pass {
            EstimatePass::Statistics => "statistics",
            EstimatePass::Scores => "scores",
        };
        let entry = format!("vertical_slash_{pass}_d{}_{}_{}", self.head_dim, self.dtype.suffix(), self.arch.name());
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 2 });
        let window = Window::new(&mut k, self);
        match self.pass {
            EstimatePass::Statistics => statistics(&mut k, &window),
            EstimatePass::Scores => scores(&mut k, &window),
        }
        k.ret();
        k.finish()
    }
}

/// What both passes begin with: the window's queries in registers, the block's chunk of keys, the visible keys of each row.
struct Window {
    dtype: MmaType,
    copy: TileCopy,
    /// The keys as this thread copies them, how many there are, and where in the tile it puts them.
    keys: RowView,
    kv_len: R32,
    target: R32,
    /// The tile's matrices as this lane loads them.
    matrices: TileCursor,
    queries: Vec<Left>,
    /// Scale of scores in base 2.
    scale: RF,
    warp: R32,
    /// Lane within its quad.
    column: R32,
    /// Tiles of this block's chunk: first, and past the last.
    first: R32,
    end: R32,
    chunks: R32,
    /// Last visible key of the two rows that this lane's accumulators hold; −1 where the row does not exist.
    last_visible: [R32; 2],
    /// Rows of the window less one; wraps where there are none.
    last_row: R32,
    /// The statistics of this head's first chunk.
    statistics: R64,
}

impl Window {
    fn new(k: &mut Builder, spec: &EstimateSpec) -> Window {
        let [q, keys]: [R64; 2] = ["q", "k"].map(|name| k.parameter(name, Pointer));
        let strides = ["q_batch", "q_row", "q_head", "k_batch", "k_row", "k_head"].map(|name| k.parameter(name, U64));
        let [q_batch, q_row, q_head, k_batch, k_row, k_head]: [R64; 6] = strides;
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let scale: RF = k.parameter("scale", ParameterKind::F32);
        let status: R64 = k.parameter("status", Pointer);
        let statistics: R64 = k.parameter("statistics", Pointer);

        let (chunk, grid_head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let query = q_bounds.sequence(k, batch, status);
        let key = kv_bounds.sequence(k, batch, status);
        let (head, kv_head) = heads.pair(k, grid_head, &query, status);

        let tiles = k.add(key.length, KEY_TILE - 1);
        let tiles = k.shr_u(tiles, KEY_TILE.ilog2());
        let chunk_tiles = k.add(tiles, MAX_CHUNKS - 1);
        let chunk_tiles = k.shr_u(chunk_tiles, MAX_CHUNKS.ilog2());
        let chunk_tiles = k.max_u(chunk_tiles, MIN_CHUNK_TILES);
        let first = k.mul(chunk, chunk_tiles);
        let beyond = k.ge_u(first, tiles);
        k.when(beyond, |k| k.ret());
        let end = k.add(first, chunk_tiles);
        let end = k.min_u(end, tiles);
        let chunks = k.add(tiles, chunk_tiles);
        let chunks = k.sub(chunks, 1u32);
        let chunks = k.div_u(chunks, chunk_tiles);

        let q = address(k, q, [(batch, q_batch), (query.first, q_row), (head, q_head)]);
        let keys = address(k, keys, [(batch, k_batch), (key.first, k_row), (kv_head, k_head)]);
        let statistics = chunk_statistics(k, statistics, grid_head, batch);

        let rows = k.min_u(query.length, key.length);
        let rows = k.min_u(rows, WINDOW);
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        // Of the queries, and of a tile of as many keys.
        const { assert!(WINDOW == KEY_TILE) };
        let layout = TileLayout::new(WINDOW, spec.head_dim);
        let copy = TileCopy::new(k, layout, THREADS, thread);
        let region = k.shared(layout.bytes(), 1024);
        let q_tile = k.shared_address(region);
        let first_query = k.sub(query.length, rows);
        let view = copy.own_chunk(k, RowView { base: q, stride: q_row });
        let target = copy.target(k, q_tile);
        copy.copy_bounded(k, target, view, first_query, query.length);
        k.commit_copies();
        k.wait_copies(0);
        k.barrier();
        let (row, chunk) = rows_first(k, lane);
        let row = k.mad(warp, 16u32, row);
        let offset = layout.lane_offset(k, row, chunk);
        let matrices = k.add(q_tile, offset);
        let matrices = layout.cursor(k, matrices, 2);
        let queries = (0..spec.head_dim / 16)
            .map(|step| {
                let (at, offset) = matrices.at(0, 2 * step);
                k.load_matrices(at, offset, false)
            })
            .collect();

        let first_position = k.sub(key.length, rows);
        let group = k.shr_u(lane, 2u32);
        let row = k.mad(warp, 16u32, group);
        let last_visible = [0u32, 8].map(|offset| {
            let row = k.add(row, offset);
            let exists = k.lt_u(row, rows);
            let position = k.add(first_position, row);
            k.select(exists, position, -1i32)
        });

        let region = k.shared(layout.bytes(), 1024);
        let tile = k.shared_address(region);
        let (row, chunk) = chunks_first(k, lane);
        let offset = layout.lane_offset(k, row, chunk);
        let matrices = k.add(tile, offset);
        Window {
            dtype: spec.dtype,
            keys: copy.own_chunk(k, RowView { base: keys, stride: k_row }),
            kv_len: key.length,
            target: copy.target(k, tile),
            copy,
            matrices: layout.cursor(k, matrices, 2),
            queries,
            scale: k.mul_f(scale, std::f32::consts::LOG2_E),
            warp,
            column: k.and(lane, 3u32),
            first,
            end,
            chunks,
            last_visible,
            last_row: k.sub(rows, 1u32),
            statistics,
        }
    }

    /// This lane's scores of key tile `tile` in base 2: `[row of two][column of sixteen]`, −∞ where the key is not visible.
    fn tile_scores(&self, k: &mut Builder, tile: R32) -> [Vec<RF>; 2] {
        let first_key = k.shl(tile, KEY_TILE.ilog2());
        self.copy.copy_bounded(k, self.target, self.keys, first_key, self.kv_len);
        k.commit_copies();
        k.wait_copies(0);
        k.barrier();
        let products = Accumulator::new(k, 1, KEY_TILE);
        products.clear(k);
        for (step, queries) in (0..).zip(self.queries.chunks_exact(1)) {
            for first in (0..KEY_TILE).step_by(16) {
                let (at, offset) = self.matrices.at(first, 2 * step);
                let keys = k.load_matrices(at, offset, false);
                products.multiply(k, self.dtype, queries, keys, first);
            }
        }
        let lane_key = k.mad(self.column, 2u32, first_key);
        [0, 1].map(|row| {
            let products = products.rows[row].iter().enumerate();
            products
                .map(|(i, &product)| {
                    let key = k.add(lane_key, column(i));
                    let visible = k.le_s(key, self.last_visible[row]);
                    let score = k.mul_f(product, self.scale);
                    k.select(visible, score, f32::NEG_INFINITY)
                })
                .collect()
        })
    }

    /// This lane's first row, of the two that are 8 apart.
    fn row(&self, k: &mut Builder) -> R32 {
        let lane = k.lane();
        let group = k.shr_u(lane, 2u32);
        k.mad(self.warp, 16u32, group)
    }
}

/// Where the statistics of this (batch row, head) begin.
fn chunk_statistics(k: &mut Builder, statistics: R64, grid_head: R32, batch: R32) -> R64 {
    let (heads, chunks) = (k.grid_y(), k.grid_x());
    let pair = k.mad(batch, heads, grid_head);
    let chunk = k.mul_wide(pair, chunks);
    k.mad(chunk, u64::from(STATISTICS_BYTES), statistics)
}

/// A maximum to subtract: 0 where no key is visible yet, so that no −∞ − −∞ arises.
fn finite_maximum(k: &mut Builder, max: RF) -> RF {
    let none = k.eq_f(max, f32::NEG_INFINITY);
    k.select(none, 0.0f32, max)
}

/// Combines the values of the four lanes that share an accumulator's rows.
fn quad(k: &mut Builder, value: RF, combine: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    [1, 2].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        combine(k, value, other)
    })
}

fn statistics(k: &mut Builder, window: &Window) {
    let maxima = [(); 2].map(|()| k.mov::<F32>(f32::NEG_INFINITY));
    let sums = [(); 2].map(|()| k.mov::<F32>(0.0f32));
    let tile = k.mov(window.first);
    k.while_loop(
        |k| k.lt_u(tile, window.end),
        |k| {
            let scores = window.tile_scores(k, tile);
            for ((scores, max), sum) in scores.into_iter().zip(maxima).zip(sums) {
                let own = scores.iter().fold(max, |max, &score| k.max_f(max, score));
                let new = quad(k, own, Builder::max_f);
                let reference = finite_maximum(k, new);
                let shrunk = k.sub_f(max, reference);
                let shrunk = k.exp2_f(shrunk);
                let kept = k.mul_f(sum, shrunk);
                let total = scores.into_iter().fold(kept, |total, score| {
                    let weight = k.sub_f(score, reference);
                    let weight = k.exp2_f(weight);
                    k.add_f(total, weight)
                });
                k.set(sum, total);
                k.set(max, new);
            }
            // The next copy overwrites the tile.
            k.barrier();
            let next = k.add(tile, 1u32);
            k.set(tile, next);
        },
    );
    let sums = sums.map(|sum| quad(k, sum, Builder::add_f));
    let chunk = k.block_x();
    let at = k.mad_wide(chunk, STATISTICS_BYTES, window.statistics);
    let row = window.row(k);
    let at = k.mad_wide(row, 8u32, at);
    let writes = k.eq(window.column, 0u32);
    k.if_then(writes, |k| {
        k.store_vector(at, 0, [maxima[0], sums[0]]);
        k.store_vector(at, 64, [maxima[1], sums[1]]);
    });
}

fn scores(k: &mut Builder, window: &Window) {
    let [vertical, slash]: [R64; 2] = ["vertical_scores", "slash_scores"].map(|name| k.parameter(name, Pointer));
    let [scores_batch, scores_head]: [R64; 2] = ["scores_batch", "scores_head"].map(|name| k.parameter(name, U64));
    let p = k.shared(WINDOW * P_PITCH * 4, 16);
    let merged = k.shared(WINDOW * 8, 8);
    let p_address = k.shared_address(p);
    clear(k, p);
    merge_statistics(k, window, merged);
    k.barrier();

    let row = window.row(k);
    let merged = k.shared_address(merged);
    let merged_row = k.mad(row, 8u32, merged);
    let rows: [[RF; 2]; 2] =
        [k.load_vector(merged_row, 0, Cache::Default), k.load_vector(merged_row, 64, Cache::Default)];
    let p_row = k.mad(row, P_PITCH * 4, p_address);
    let p_lane = k.mad(window.column, 8u32, p_row);

    let (grid_head, batch) = (k.block_y(), k.block_z());
    let places = [(batch, scores_batch), (grid_head, scores_head)];
    let vertical = address(k, vertical, places);
    let slash = address(k, slash, places);
    let kv_len = window.kv_len;

    // One tile before the chunk, where there is one, for the slashes that begin in it.
    let has_before = k.gt_u(window.first, 0u32);
    let before = k.sub(window.first, 1u32);
    let tile: R32 = k.select(has_before, before, 0u32);
    k.while_loop(
        |k| k.lt_u(tile, window.end),
        |k| {
            let scores = window.tile_scores(k, tile);
            let slot = k.and(tile, 1u32);
            let slot = k.mad(slot, KEY_TILE * 4, p_lane);
            for (r, (scores, [reference, inverse])) in scores.into_iter().zip(rows).enumerate() {
                for (i, pair) in scores.chunks(2).enumerate() {
                    let weights = [pair[0], pair[1]].map(|score| {
                        let weight = k.sub_f(score, reference);
                        let weight = k.exp2_f(weight);
                        k.mul_f(weight, inverse)
                    });
                    k.store_vector(slot, (r as i64 * 8 * i64::from(P_PITCH) + i as i64 * 8) * 4, weights);
                }
            }
            k.barrier();
            let own = k.ge_u(tile, window.first);
            k.if_then(own, |k| sum_tile(k, tile, p_address, kv_len, window, vertical, slash));
            // The next tile overwrites the keys, and P of the tile before this one.
            k.barrier();
            let next = k.add(tile, 1u32);
            k.set(tile, next);
        },
    );
}

/// Zeros all of P: slashes near the first key cross keys that do not exist.
fn clear(k: &mut Builder, p: SharedRegion) {
    let thread = k.thread();
    let address = k.shared_address(p);
    let zeros = [(); 4].map(|()| k.mov::<B32>(0u32));
    k.for_loop(thread, p.bytes / 16, THREADS, |k, piece| {
        let at = k.mad(piece, 16u32, address);
        k.store_vector(at, 0, zeros);
    });
}

/// For each row of the window: the maximum over all chunks and the inverse of the denominator, which is 0 for a row that
/// does not exist.
fn merge_statistics(k: &mut Builder, window: &Window, merged: SharedRegion) {
    /// Chunks loaded together, to wait for memory once.
    const TOGETHER: u32 = 8;
    let row = k.thread();
    let has_row = k.lt_u(row, WINDOW);
    let merged = k.shared_address(merged);
    k.if_then(has_row, |k| {
        let max = k.mov::<F32>(f32::NEG_INFINITY);
        let sum = k.mov::<F32>(0.0f32);
        let row_statistics = k.mad_wide(row, 8u32, window.statistics);
        k.for_loop(0u32, window.chunks, TOGETHER, |k, first| {
            let parts: Vec<[RF; 2]> = (0..TOGETHER)
                .map(|i| {
                    let chunk = k.add(first, i);
                    let exists = k.lt_u(chunk, window.chunks);
                    let chunk = k.select(exists, chunk, 0u32);
                    let at = k.mad_wide(chunk, STATISTICS_BYTES, row_statistics);
                    let [max, sum]: [RF; 2] = k.load_vector(at, 0, Cache::ReadOnly);
                    [k.select(exists, max, f32::NEG_INFINITY), k.select(exists, sum, 0.0f32)]
                })
                .collect();
            let new = parts.iter().fold(max, |max, part| k.max_f(max, part[0]));
            let reference = finite_maximum(k, new);
            let weigh = |k: &mut Builder, max: RF, sum: RF| {
                let shrunk = k.sub_f(max, reference);
                let shrunk = k.exp2_f(shrunk);
                k.mul_f(sum, shrunk)
            };
            let kept = weigh(k, max, sum);
            let total = parts.iter().fold(kept, |total, part| {
                let part = weigh(k, part[0], part[1]);
                k.add_f(total, part)
            });
            k.set(max, new);
            k.set(sum, total);
        });
        let reference = finite_maximum(k, max);
        let inverse = k.div_f(1.0f32, sum);
        let empty = k.eq_f(sum, 0.0f32);
        let inverse = k.select(empty, 0.0f32, inverse);
        let at = k.mad(row, 8u32, merged);
        k.store_vector(at, 0, [reference, inverse]);
    });
}

/// Half of the threads sum the columns of tile `tile`, the other half as many slashes; rows in ascending order.
fn sum_tile(k: &mut Builder, tile: R32, p: R32, kv_len: R32, window: &Window, vertical: R64, slash: R64) {
    let thread = k.thread();
    let lane = k.and(thread, KEY_TILE - 1);
    let d = k.mad(tile, KEY_TILE, lane);
    let exists = k.lt_u(d, kv_len);
    let sums_column = k.lt_u(thread, KEY_TILE);
    k.if_else(
        sums_column,
        |k| {
            let slot = k.and(d, 2 * KEY_TILE - 1);
            let at = k.mad(slot, 4u32, p);
            let sum = k.mov::<F32>(0.0f32);
            for row in 0..WINDOW {
                let weight: RF = k.load(at, i64::from(row * P_PITCH * 4));
                let next = k.add_f(sum, weight);
                k.set(sum, next);
            }
            k.if_then(exists, |k| {
                let at = k.mad_wide(d, 4u32, vertical);
                k.store(at, 0, sum);
            });
        },
        |k| {
            // Key of row 0; rows past the window's hold zeros wherever they are read.
            let key = k.sub(d, window.last_row);
            let sum = k.mov::<F32>(0.0f32);
            for row in 0..WINDOW {
                let slot = k.add(key, row);
                let slot = k.and(slot, 2 * KEY_TILE - 1);
                let at = k.mad(slot, 4u32, p);
                let weight: RF = k.load(at, i64::from(row * P_PITCH * 4));
                let next = k.add_f(sum, weight);
                k.set(sum, next);
            }
            k.if_then(exists, |k| {
                let last = k.sub(kv_len, 1u32);
                let delta = k.sub(last, d);
                let at = k.mad_wide(delta, 4u32, slash);
                k.store(at, 0, sum);
            });
        },
    );
}
