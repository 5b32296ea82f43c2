//! Products of cells, and their weights relative to the maximum of a chunk.

use super::check_stride;
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, Launch, MmaType, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, address},
        index::{
            ceil_shift, check_arch, check_block, check_head_dim,
            workspace::{CELL_CHUNK, KEY_CELLS, KEY_STRIP, QUERY_CELLS},
        },
        kv::{KvLayout, KvTensor, PageTable},
        meta::ParameterKind::{self, Pointer, U32, U64},
    },
    tile::{
        copy::{RowSource, RowView, TileCopy},
        fragment::{Accumulator, Left, chunks_first, column, rows_first},
        layout::TileLayout,
        pipeline::CopyRing,
    },
};

const THREADS: u32 = 256;
/// Cells of queries and of keys of a warp: of keys, a chunk.
const WARP: (u32, u32) = (64, CELL_CHUNK);
/// Warps side by side along the keys.
const WARPS_ALONG: u32 = KEY_CELLS / WARP.1;
/// Shared memory of the ring, which leaves some of the 163 KB of compute capability 8.0.
const RING_BYTES: u32 = 144 * 1024;

const _: () = assert!(QUERY_CELLS / WARP.0 * WARPS_ALONG * 32 == THREADS);

/// Sums of weights of every cell of queries of a slice: by chunk of 64 cells of keys, and by key block.
///
/// Grid: [`antidiagonal_grid`](crate::kernels::index::workspace::antidiagonal_grid) of the slice. 256 threads.
///
/// Parameters: pointers `q k`; byte strides `q_batch q_row q_head k_batch k_row k_head`, and `q k` themselves, multiples
/// of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv`, `heads heads_per_kv head_map`, `scale` and
/// `status`, all as in attention; `first_tile`: where the slice begins, in tiles of 128 cells of queries; pointer
/// `statistics`, `f32[batch][grid heads][128 · tiles of the slice][chunks][2]`: the maximum in base 2, −∞ where nothing is
/// visible, and the sum; pointer `block_sums`, `f32[batch][grid heads][128 · tiles of the slice][chunks · blocks of a
/// chunk]`, with as many chunks as [`antidiagonal_chunks`](crate::kernels::index::workspace::antidiagonal_chunks) of
/// `max_kv`. Keys in pages: the stride `k_page` stands for `k_batch`, and `page_table page_table_batch pages` come last, as in
/// attention. Only what some cell of a warp's 64 sees is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AntidiagonalSumsSpec {
    /// Rows of a cell: 8 or 16.
    pub stride: u32,
    /// Keys of an attention block: 32, 64 or 128.
    pub block: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries and keys.
    pub dtype: MmaType,
    /// Where keys lie.
    pub kv: KvLayout,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for AntidiagonalSumsSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_stride(&mut errors, self.stride);
        check_block(&mut errors, "block", "keys a block", self.block);
        check_head_dim(&mut errors, self.head_dim);
        self.kv.check(&mut errors);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "antidiagonal_sums_s{}n{}_d{}_{}{}_{}",
            self.stride,
            self.block,
            self.head_dim,
            self.dtype.suffix(),
            self.kv.suffix(),
            self.arch.name()
        );
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

/// Where rows are, from this thread's chunk on.
enum Rows {
    /// Cell 0 at row 0 of the cell, from cell to cell a stride of rows; and bytes from a row to the next.
    Strided { view: RowView, row_bytes: R64 },
    /// Row by row.
    Paged(RowSource),
}

/// What the queries and keys of a tile are, as this thread copies them.
struct Side {
    copy: TileCopy,
    layout: TileLayout,
    rows: Rows,
    /// First cell of the tile.
    first: R32,
    /// Rows of the sequence.
    length: R32,
    /// Whether the tile has all its rows.
    whole: RP,
    /// Where this thread's first chunk goes, in the first stage.
    target: R32,
    /// The chunk that this lane looks at, in the first stage.
    chunk: R32,
}

/// The cells that this lane's accumulators belong to, and what they see.
struct Cells {
    /// First of the warp's cells of queries, and of keys, plus 2 · (lane % 4).
    first_query: R32,
    first_key: R32,
    /// Cells of queries that exist.
    queries: R32,
    /// What cell i of queries sees last is cell `i + ahead` of keys, but no further than `last_key`.
    ahead: R32,
    last_key: R32,
}

impl Cells {
    fn last_visible(&self, k: &mut Builder, query: R32) -> R32 {
        let last = k.add(query, self.ahead);
        k.min_s(last, self.last_key)
    }

    /// Whether one of `rows` cells of queries from `query` on sees cell `key`.
    fn some_visible(&self, k: &mut Builder, query: R32, rows: u32, key: R32) -> RP {
        let exists = k.lt_u(query, self.queries);
        let last = k.add(query, rows);
        let last = k.min_u(last, self.queries);
        let last = k.sub(last, 1u32);
        let last = self.last_visible(k, last);
        let sees = k.ge_s(last, key);
        k.and_p(exists, sees)
    }
}

impl AntidiagonalSumsSpec {
    /// Elements of a row in one stage of the ring.
    const fn stage_elements(&self) -> u32 {
        if self.head_dim == 96 { 96 } else { 64 }
    }

    fn body(&self, k: &mut Builder) {
        let [q, keys]: [R64; 2] = ["q", "k"].map(|name| k.parameter(name, Pointer));
        let [q_batch, q_row, q_head]: [R64; 3] = ["q_batch", "q_row", "q_head"].map(|name| k.parameter(name, U64));
        let keys = KvTensor::at(k, self.kv, "k", keys);
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let scale: RF = k.parameter("scale", ParameterKind::F32);
        let status: R64 = k.parameter("status", Pointer);
        let first_tile: R32 = k.parameter("first_tile", U32);
        let [statistics, block_sums]: [R64; 2] = ["statistics", "block_sums"].map(|name| k.parameter(name, Pointer));
        let table = PageTable::declare(k, self.kv, status);

        // The grid: strips of key tiles outside, heads inside them, then the slice's tiles of queries, key tiles innermost.
        let cell = self.stride.ilog2();
        let chunk_keys = CELL_CHUNK * self.stride;
        let chunks = ceil_shift(k, kv_bounds.max, chunk_keys);
        let key_tiles = ceil_shift(k, kv_bounds.max, KEY_CELLS * self.stride);
        let strips = ceil_shift(k, key_tiles, KEY_STRIP);
        let strips = k.max_u(strips, 1u32);
        let width = k.min_u(key_tiles, KEY_STRIP);
        let width = k.max_u(width, 1u32);
        let (x, grid_head, z) = (k.block_x(), k.block_y(), k.block_z());
        let batch = k.div_u(z, strips);
        let strip = k.rem_u(z, strips);
        let own_tile = k.div_u(x, width);
        let along = k.rem_u(x, width);
        let key_tile = k.mad(strip, KEY_STRIP, along);
        let slice_tiles = k.grid_x();
        let slice_tiles = k.div_u(slice_tiles, width);

        let query = q_bounds.sequence(k, batch, status);
        let key = kv_bounds.sequence(k, batch, status);
        let (head, kv_head) = heads.pair(k, grid_head, &query, status);

        let offset = k.sub(key.length, query.length);
        let ahead = k.add(offset, self.stride - 1);
        let last_key = k.sub(key.length, 1u32);
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let (down, across) = (k.div_u(warp, WARPS_ALONG), k.rem_u(warp, WARPS_ALONG));
        let tile = k.add(first_tile, own_tile);
        let first_query = k.shl(tile, QUERY_CELLS.ilog2());
        let first_key = k.shl(key_tile, KEY_CELLS.ilog2());
        let cells = Cells {
            first_query: k.mad(down, WARP.0, first_query),
            first_key: k.mad(across, WARP.1, first_key),
            queries: ceil_shift(k, query.length, self.stride),
            ahead: k.shr_s(ahead, cell),
            last_key: k.shr_s(last_key, cell),
        };
        let reached = cells.some_visible(k, first_query, QUERY_CELLS, first_key);
        k.unless(reached, |k| k.ret());

        let q = address(k, q, [(batch, q_batch), (query.first, q_row), (head, q_head)]);
        let keys = keys.rows(k, table, batch, kv_head, key.first);
        let layouts = [QUERY_CELLS, KEY_CELLS].map(|rows| TileLayout::new(rows, self.stage_elements()));
        let stage = layouts[0].bytes() + layouts[1].bytes();
        let ring = CopyRing::new(k, stage, RING_BYTES / stage);
        let at_lane = [rows_first(k, lane), chunks_first(k, lane)];
        let firsts = [k.mul(down, WARP.0), k.mul(across, WARP.1)];
        let base = k.shared_address(ring.region());
        let bases = [base, k.add(base, layouts[0].bytes())];
        let side = |k: &mut Builder, i: usize, rows: RowSource, first: R32, length: R32| {
            let layout = layouts[i];
            let copy = TileCopy::new(k, layout, THREADS, thread);
            let rows = match rows {
                RowSource::Strided(RowView { base, stride: row_bytes }) => {
                    let stride = k.mul(row_bytes, u64::from(self.stride));
                    let base = copy.own_chunk(k, RowView { base, stride }).base();
                    Rows::Strided { view: RowView { base, stride }, row_bytes }
                }
                RowSource::Interleaved(_) | RowSource::Paged(_) => Rows::Paged(copy.own_chunk(k, rows)),
            };
            let row = k.add(at_lane[i].0, firsts[i]);
            let place = layout.lane_offset(k, row, at_lane[i].1);
            let target = copy.target(k, bases[i]);
            let end = k.add(first, layout.rows);
            let end = k.shl(end, cell);
            let whole = k.le_u(end, length);
            Side { layout, rows, first, length, whole, target, chunk: k.add(bases[i], place), copy }
        };
        let q = RowView { base: q, stride: q_row };
        let queries = side(k, 0, q.into(), first_query, query.length);
        let keys = side(k, 1, keys, first_key, key.length);

        let active = cells.some_visible(k, cells.first_query, WARP.0, cells.first_key);
        let products = Accumulator::new(k, WARP.0 / 16, WARP.1);
        products.clear(k);
        self.multiply(k, &ring, &queries, &keys, active, &products);

        k.comment("weights");
        let factor = k.mul_f(scale, std::f32::consts::LOG2_E / self.stride as f32);
        let slice_cells = k.shl(slice_tiles, QUERY_CELLS.ilog2());
        let heads = k.grid_y();
        let pair = k.mad(batch, heads, grid_head);
        let before = k.mul_wide(pair, slice_cells);
        let chunk = k.shr_u(cells.first_key, CELL_CHUNK.ilog2());
        let inside = k.lt_u(chunk, chunks);
        let writes = k.and_p(active, inside);
        k.if_then(writes, |k| {
            let first = k.shl(own_tile, QUERY_CELLS.ilog2());
            let first = k.mad(down, WARP.0, first);
            let out = Output { before, first, chunks, chunk, statistics, block_sums };
            self.weigh(k, &products, &cells, factor, lane, &out);
        });
    }

    /// Sums the products of all rows of the cells, a few elements of one row at a time.
    fn multiply(
        &self,
        k: &mut Builder,
        ring: &CopyRing,
        queries: &Side,
        keys: &Side,
        active: RP,
        products: &Accumulator,
    ) {
        let parts = self.head_dim / self.stage_elements();
        let steps = self.stride * parts;
        let copy = |k: &mut Builder, step: R32, stage: R32| {
            let (row, part) = (k.shr_u(step, parts.ilog2()), k.and(step, parts - 1));
            let reversed = k.xor(row, self.stride - 1);
            let element = k.mul_wide(part, self.stage_elements() * 2);
            for (side, row) in [(queries, reversed), (keys, row)] {
                let (of_row_0, row_bytes) = match side.rows {
                    Rows::Strided { view, row_bytes } => (view, row_bytes),
                    Rows::Paged(rows) => {
                        let rows = rows.at(k.add(rows.base(), element));
                        let target = k.add(side.target, stage);
                        let own = side.copy.row(k);
                        let first = k.add(side.first, own);
                        side.copy.copy_rows(k, target, rows, side.length, |k, below| {
                            let cell = k.add(first, below);
                            k.mad(cell, self.stride, row)
                        });
                        continue;
                    }
                };
                let wide = k.widen_u(row);
                let base = k.mad(wide, row_bytes, of_row_0.base);
                let base = k.add(base, element);
                // Cells whose row of this step exists: row + S · cell < length.
                let bound = k.add(side.length, self.stride - 1);
                let bound = k.sub(bound, row);
                let bound = k.shr_u(bound, self.stride.ilog2());
                let target = k.add(side.target, stage);
                let view = RowView { base, stride: of_row_0.stride };
                k.if_else(
                    side.whole,
                    |k| side.copy.copy_whole(k, target, view, side.first),
                    |k| {
                        // Of fewer rows than a cell's, some steps have none: no address may leave the sequence for zeros.
                        let some = k.ne(bound, 0u32);
                        let base = k.select(some, view.base, of_row_0.base);
                        let stride = k.select(some, view.stride, 0u64);
                        side.copy.copy_bounded(k, target, RowView { base, stride }.into(), side.first, bound);
                    },
                );
            }
        };
        ring.run(k, steps, copy, |k, _, stage, copies| {
            k.if_else(
                active,
                |k| {
                    let [queries, keys] = [queries, keys].map(|side| {
                        let chunk = k.add(side.chunk, stage);
                        side.layout.cursor(k, chunk, 2)
                    });
                    for step in 0..self.stage_elements() / 16 {
                        let left: Vec<Left> = (0..WARP.0 / 16)
                            .map(|tile| {
                                let (at, offset) = queries.at(16 * tile, 2 * step);
                                k.load_matrices(at, offset, false)
                            })
                            .collect();
                        for first in (0..WARP.1).step_by(16) {
                            let (at, offset) = keys.at(first, 2 * step);
                            let right = k.load_matrices(at, offset, false);
                            products.multiply(k, self.dtype, &left, right, first);
                        }
                        if step == 0 {
                            copies(k);
                        }
                    }
                },
                copies,
            );
        });
    }

    /// Turns a warp's products into weights and writes their sums.
    fn weigh(&self, k: &mut Builder, products: &Accumulator, cells: &Cells, factor: RF, lane: R32, out: &Output) {
        let block_cells = self.block / self.stride;
        let (group, column_pair) = (k.shr_u(lane, 2u32), k.and(lane, 3u32));
        let first_key = k.mad(column_pair, 2u32, cells.first_key);
        let leads = k.eq(column_pair, 0u32);
        for (i, row) in products.rows.iter().enumerate() {
            let below = k.add(group, (i / 2 * 16 + i % 2 * 8) as u32);
            let query = k.add(cells.first_query, below);
            let exists = k.lt_u(query, cells.queries);
            let last = cells.last_visible(k, query);
            let room = k.sub(last, first_key);
            let scores: Vec<RF> = (0..)
                .zip(row)
                .map(|(i, &product)| {
                    let visible = k.ge_s(room, column(i) as i32);
                    let score = k.mul_f(product, factor);
                    k.select(visible, score, f32::NEG_INFINITY)
                })
                .collect();
            let max = scores[1..].iter().fold(scores[0], |max, &score| k.max_f(max, score));
            let max = quad(k, max, Builder::max_f);
            let none = k.eq_f(max, f32::NEG_INFINITY);
            let reference = k.select(none, 0.0f32, max);
            let weights: Vec<RF> = scores
                .into_iter()
                .map(|score| {
                    let exponent = k.sub_f(score, reference);
                    k.exp2_f(exponent)
                })
                .collect();
            // A lane holds two columns of every eight. Its part of each block, or of half a block:
            let together = (block_cells.max(8) / 8 * 2) as usize;
            let parts: Vec<RF> = weights
                .chunks(together)
                .map(|own| own[1..].iter().fold(own[0], |sum, &weight| k.add_f(sum, weight)))
                .collect();
            let sum = parts[1..].iter().fold(parts[0], |sum, &part| k.add_f(sum, part));
            let sum = quad(k, sum, Builder::add_f);
            let place = out.place(k, below);
            let shares = spread(k, parts, block_cells, column_pair);
            k.if_then(exists, |k| {
                let at = k.mad(place, 8u64, out.statistics);
                k.when(leads, |k| k.store_vector(at, 0, [max, sum]));
                let at = k.mad(place, u64::from(WARP.1 / block_cells * 4), out.block_sums);
                shares.store(k, at);
            });
        }
    }
}

/// Where a warp writes.
struct Output {
    /// Cells of queries before this head's, of all slices of heads and batch rows.
    before: R64,
    /// First cell of the warp in the slice.
    first: R32,
    chunks: R32,
    chunk: R32,
    statistics: R64,
    block_sums: R64,
}

impl Output {
    /// Number of the warp's chunk in the row of cell `first + below`, counted over the whole array.
    fn place(&self, k: &mut Builder, below: R32) -> R64 {
        let cell = k.add(self.first, below);
        let cell = k.widen_u(cell);
        let cell = k.add(cell, self.before);
        let (chunks, chunk) = (k.widen_u(self.chunks), k.widen_u(self.chunk));
        k.mad(cell, chunks, chunk)
    }
}

/// The sums of blocks that one lane of a quad writes.
struct Shares {
    sums: Vec<RF>,
    /// The block of the first.
    first: R32,
    /// Blocks from one to the next.
    step: u32,
}

impl Shares {
    fn store(&self, k: &mut Builder, blocks: R64) {
        let at = k.mad_wide(self.first, 4u32, blocks);
        if let ([first, second], 1) = (&self.sums[..], self.step) {
            k.store_vector(at, 0, [*first, *second]);
            return;
        }
        for (i, &sum) in (0..).zip(&self.sums) {
            k.store(at, i * i64::from(self.step) * 4, sum);
        }
    }
}

/// Adds up the parts of blocks over the lanes of a quad that share them, so that each lane ends with the sums of some.
fn spread(k: &mut Builder, mut parts: Vec<RF>, block_cells: u32, lane: R32) -> Shares {
    let lanes = (block_cells / 2).min(4);
    for mask in [2, 1].into_iter().filter(|mask| *mask < lanes) {
        let bit = k.and(lane, mask);
        let upper = k.ne(bit, 0u32);
        let (low, high) = parts.split_at(parts.len() / 2);
        let pairs: Vec<_> = low.iter().copied().zip(high.iter().copied()).collect();
        parts = pairs
            .into_iter()
            .map(|(low, high)| {
                let (kept, given): (RF, RF) = (k.select(upper, high, low), k.select(upper, low, high));
                let received = k.shuffle_xor(given, mask);
                k.add_f(kept, received)
            })
            .collect();
    }
    // Without lanes that share a block, eight columns hold as many blocks as lanes, or half as many.
    let (first, step) = match lanes {
        1 => (lane, 4),
        2 => {
            let (half, pair) = (k.and(lane, 1u32), k.shr_u(lane, 1u32));
            (k.mad(half, 2 * parts.len() as u32, pair), 2)
        }
        _ => (k.mul(lane, parts.len() as u32), 1),
    };
    Shares { sums: parts, first, step }
}

/// Combines the values of the four lanes that share an accumulator's rows.
fn quad(k: &mut Builder, value: RF, combine: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    [1, 2].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        combine(k, value, other)
    })
}
