//! The text for sm_80: `cp.async` and `mma`, a tile a block. Blocks above the diagonal end at once.

use super::{AntidiagonalSumsSpec, Cells, Problem, weights::Part};
use crate::{
    isa::{Builder, R32, R64, RP},
    kernels::index::{
        ceil_shift,
        workspace::{CELL_CHUNK, KEY_CELLS, KEY_STRIP, QUERY_CELLS},
    },
    tile::{
        copy::{RowSource, RowView, TileCopy},
        fragment::{Accumulator, Left, chunks_first, rows_first},
        layout::TileLayout,
        pipeline::CopyRing,
    },
};

pub(super) const THREADS: u32 = 256;
/// Cells of queries and of keys of a warp: of keys, a chunk.
const WARP: (u32, u32) = (64, CELL_CHUNK);
/// Warps side by side along the keys.
const WARPS_ALONG: u32 = KEY_CELLS / WARP.1;
/// Shared memory of the ring, which leaves some of the 163 KB of compute capability 8.0.
const RING_BYTES: u32 = 144 * 1024;

const _: () = assert!(QUERY_CELLS / WARP.0 * WARPS_ALONG * 32 == THREADS);

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

/// The body of a kernel.
pub(super) fn sum(k: &mut Builder, spec: &AntidiagonalSumsSpec) {
    let problem = Problem::declare(k, spec);

    // The grid: strips of key tiles outside, heads inside them, then the slice's tiles of queries, key tiles innermost.
    let max_kv = problem.key_bounds.max;
    let key_tiles = ceil_shift(k, max_kv, KEY_CELLS * spec.stride);
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

    let query = problem.query_bounds.sequence(k, batch, problem.status);
    let key = problem.key_bounds.sequence(k, batch, problem.status);
    let (head, kv_head) = problem.heads.pair(k, grid_head, &query, problem.status);

    let cells = Cells::new(k, spec.stride, &query, &key);
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let (down, across) = (k.div_u(warp, WARPS_ALONG), k.rem_u(warp, WARPS_ALONG));
    let tile = k.add(problem.first_tile, own_tile);
    let first_query = k.shl(tile, QUERY_CELLS.ilog2());
    let first_key = k.shl(key_tile, KEY_CELLS.ilog2());
    let reached = cells.some_visible(k, first_query, QUERY_CELLS, first_key);
    k.unless(reached, |k| k.ret());

    let q = problem.queries(k, batch, head, &query);
    let keys = problem.keys.rows(k, problem.table, batch, kv_head, key.first);
    let layouts = [QUERY_CELLS, KEY_CELLS].map(|rows| TileLayout::new(rows, spec.stage_elements()));
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
                let stride = k.mul(row_bytes, u64::from(spec.stride));
                let base = copy.own_chunk(k, RowView { base, stride }).base();
                Rows::Strided { view: RowView { base, stride }, row_bytes }
            }
            RowSource::Interleaved(_) | RowSource::Paged(_) => Rows::Paged(copy.own_chunk(k, rows)),
        };
        let row = k.add(at_lane[i].0, firsts[i]);
        let place = layout.lane_offset(k, row, at_lane[i].1);
        let target = copy.target(k, bases[i]);
        let end = k.add(first, layout.rows);
        let end = k.shl(end, spec.stride.ilog2());
        let whole = k.le_u(end, length);
        Side { layout, rows, first, length, whole, target, chunk: k.add(bases[i], place), copy }
    };
    let queries = side(k, 0, q.into(), first_query, query.length);
    let keys = side(k, 1, keys, first_key, key.length);

    let part = Part { query: k.add(first_query, firsts[0]), key: k.add(first_key, firsts[1]) };
    let active = cells.some_visible(k, part.query, WARP.0, part.key);
    let products = Accumulator::new(k, WARP.0 / 16, WARP.1);
    products.clear(k);
    spec.multiply(k, &ring, &queries, &keys, active, &products);

    k.comment("weights");
    let factor = problem.factor(k, spec.stride);
    let heads = k.grid_y();
    let pair = k.mad(batch, heads, grid_head);
    let out = problem.output(k, spec.stride, pair, slice_tiles);
    k.if_then(active, |k| {
        let rows: Vec<_> = products.rows.iter().map(Vec::as_slice).collect();
        spec.weigh(k, &rows, part, &cells, factor, &out);
    });
}

impl AntidiagonalSumsSpec {
    /// Elements of a row in one stage of the ring.
    const fn stage_elements(&self) -> u32 {
        if self.head_dim == 96 { 96 } else { 64 }
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
}
