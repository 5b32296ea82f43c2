//! The attention kernel for sm_80: `cp.async`, `ldmatrix`, `mma.sync` (FlashAttention-2's loop).
//!
//! A block has M query rows of one head, a warp M / warps of them; the softmax of a row stays inside a quad of lanes.
//! Keys and values come through two buffers, so that the copies of a tile have the whole turn before it to arrive:
//!
//! ```text
//! queries and the first tile on their way
//! for each tile:  wait, barrier;  next tile on its way;  S = Q·Kᵀ;  mask;  P = softmax(S), O *= shrink;  O += P·V
//! O / sum through shared memory to global
//! ```
//!
//! Cost of a tile in one warp at M = 128, N = 64, d = 128 (four warps of 32 rows), in issue slots: 256 `mma` of 4096
//! multiply-adds each; 32 + 32 `ldmatrix` of keys and values and 16 of queries; per score a multiply-add, a power of two,
//! a maximum, a sum and half a conversion (288); 128 products to shrink O; about 60 for copies and addresses: some 800.
//! The products take 2048 cycles of a quarter of an A100 multiprocessor, so issue is no limit there; on Hopper, where
//! `mma.sync` runs at about twice that rate, two blocks a multiprocessor must fill each other's gaps.

use super::{
    blocks::{Block, Blocks, Windows},
    columns::{self, Columns},
    output::{Output, Staging},
    problem::Problem,
    scores::{Keys, Scores},
    spec::{AttentionSpec, Pattern},
    tiling::Tiling,
};
use crate::{
    isa::{B64, Builder, MmaType, R32},
    kernels::kv::PageTable,
    tile::{
        copy::{RowSource, TileCopy},
        fragment::{Accumulator, Left, chunks_first, rows_first},
        layout::TileCursor,
        parked::Parked,
        pipeline::DoubleBuffer,
        softmax::OnlineSoftmax,
    },
};

/// Where a lane's queries are during the loop.
enum Queries {
    Registers(Vec<Vec<Left>>),
    /// Address of this lane's first matrix.
    Shared(R32),
}

/// Gives the left factors of a step over 16 elements of the head.
type QueriesOfStep<'a> = Box<dyn Fn(&mut Builder, u32) -> Vec<Left> + 'a>;

/// Where a thread copies keys and values from.
struct Sources {
    views: [RowSource; 2],
    /// The addresses of the views, where registers are short.
    parked: Option<Parked>,
    table: Option<PageTable>,
}

impl Sources {
    fn new(k: &mut Builder, tiling: Tiling, table: Option<PageTable>, views: [RowSource; 2]) -> Sources {
        let parked = tiling.parks_addresses().then(|| {
            let region = k.shared(Parked::BYTES * tiling.threads(), 16);
            Parked::own(k, region, views.map(RowSource::base))
        });
        Sources { views, parked, table }
    }

    fn views(&self, k: &mut Builder) -> [RowSource; 2] {
        let Some(parked) = self.parked else { return self.views };
        let bases = parked.load::<B64, 2>(k);
        [0, 1].map(|i| {
            let view = self.views[i].at(bases[i]);
            self.table.map_or(view, |table| table.again(k, view))
        })
    }
}

/// Addresses and views of one thread.
struct Tiles {
    kind: MmaType,
    tiling: Tiling,
    copy: TileCopy,
    sources: Sources,
    kv_len: R32,
    buffers: DoubleBuffer,
    /// Shared address of the first buffer, and where in it this lane's matrices are.
    first_buffer: R32,
    key_matrices: R32,
    value_matrices: R32,
}

/// The body of a kernel.
pub(super) fn attend(k: &mut Builder, spec: &AttentionSpec, problem: &Problem) {
    let tiling = problem.tiling;
    let (query_tile, key_tile) = (tiling.query_tile(), tiling.key_tile());
    let query_region = k.shared(query_tile.bytes(), 1024);
    let buffer_region = k.shared(4 * key_tile.bytes(), 1024);
    let ring_region = k.shared(tiling.warps * tiling.ring * 4, 16);
    let place_region = k.shared(Parked::BYTES, 16);
    let place = Parked::shared(k, place_region, problem.place());

    let lane = k.and(problem.thread, 31u32);
    let quad_lane = k.and(lane, 3u32);
    let warp = k.shr_u(problem.thread, 5u32);
    let warp_row = k.mul(warp, tiling.warp_rows());

    k.comment("queries");
    let query_address = k.shared_address(query_region);
    let query_copy = TileCopy::new(k, query_tile, tiling.threads(), problem.thread);
    let queries = problem.queries(k);
    let query_view = query_copy.own_chunk(k, queries);
    let target = query_copy.target(k, query_address);
    query_copy.copy_bounded(k, target, query_view, problem.first_row, problem.q_len);
    if tiling.queries_in_registers() {
        k.commit_copies();
    }

    let tiles = Tiles::new(k, spec.dtype, problem, buffer_region, lane);
    let windows = Windows::declare(k, spec, problem);
    let blocks = Blocks::new(k, spec, problem, windows.as_ref(), None);
    let group = k.shr_u(warp_row, tiling.keys.ilog2());
    let columns =
        (spec.pattern == Pattern::VerticalSlash).then(|| Columns::new(k, problem, ring_region, true, vec![group]));

    k.comment("the first tile");
    let first_buffer = tiles.first_buffer;
    fetch_next(k, &tiles, problem, &blocks, columns.as_ref(), first_buffer);
    k.commit_copies();

    let (row, chunk) = rows_first(k, lane);
    let row = k.add(row, warp_row);
    let offset = query_tile.lane_offset(k, row, chunk);
    let matrices = k.add(query_address, offset);
    let queries = if tiling.queries_in_registers() {
        k.wait_copies(1);
        k.barrier();
        let cursor = query_tile.cursor(k, matrices, 2);
        let steps = 0..tiling.head_dim / 16;
        Queries::Registers(steps.map(|step| load_queries(k, &cursor, tiling, step)).collect())
    } else {
        Queries::Shared(matrices)
    };

    let scores = Scores::new(k, spec, problem, windows.as_ref(), warp_row);
    let softmax = OnlineSoftmax::new(k, scores.rows(), scores.factor());
    let out = Accumulator::new(k, tiling.row_tiles(), tiling.head_dim);
    out.clear(k);
    let tile = |k: &mut Builder, keys: Keys| {
        let products = tiles.products(k, &queries);
        scores.finish(k, &products.rows, keys);
        let mut weights = products;
        let shrinks = softmax.raise(k, &weights.rows);
        k.if_then(shrinks.needed, |k| {
            softmax.shrink(k, &shrinks.factors);
            out.scale_rows(k, &shrinks.factors);
        });
        let shifts = softmax.shifts(k);
        tiles.add_values(k, &out, |k, key| {
            softmax.weigh(k, &shifts, &mut weights.rows, key as usize / 4..key as usize / 4 + 4);
            weights.left(k, spec.dtype, key)
        });
    };

    k.comment("key blocks");
    k.while_loop(
        |k| blocks.more(k),
        |k| {
            let Block { start, partial, needs } = blocks.take(k, problem);
            tiles.buffers.turn(k);
            let buffer = tiles.next_buffer(k);
            fetch_next(k, &tiles, problem, &blocks, columns.as_ref(), buffer);
            k.commit_copies();
            let keys = Keys::block(k, start, quad_lane, partial);
            match needs.filter(|_| tiling.groups() > 1) {
                None => tile(k, keys),
                Some(needs) => {
                    // Of the rows of a warp, all or none are in a group that visits the block.
                    let own = k.shr_u(needs, group);
                    let own = k.and(own, 1u32);
                    let visits = k.ne(own, 0u32);
                    let visits = k.any(visits);
                    k.if_then(visits, |k| tile(k, keys));
                }
            }
            tiles.buffers.swap(k);
        },
    );
    if let Some((columns, offsets)) = columns.as_ref().zip(blocks.offsets()) {
        k.comment("columns");
        k.while_loop(
            |k| columns.more(k),
            |k| {
                let entries = columns.entries(k);
                columns.advance(k);
                tiles.buffers.turn(k);
                columns.fill(k, problem, offsets);
                let buffer = tiles.next_buffer(k);
                fetch_columns(k, &tiles, columns, buffer);
                k.commit_copies();
                let masked = (tiling.groups() > 1).then(|| {
                    let zero = k.mov(0u32);
                    k.eq(zero, 0u32)
                });
                let keys = Keys::columns(k, entries, quad_lane, masked);
                tile(k, keys);
                tiles.buffers.swap(k);
            },
        );
    }

    k.comment("output");
    let ends = softmax.finish(k);
    // Where there was no tile the queries may still be arriving where the output goes.
    tiles.buffers.turn(k);
    let first = query_tile.row_bytes * tiling.warp_rows();
    let tile = k.mad(warp, first, query_address);
    let rows = tiling.warp_rows();
    let place = place.load(k);
    let target = problem.target(k, place);
    let staging = Staging { layout: query_tile, tile };
    Output { target, kind: spec.dtype, first_row: warp_row, rows, lane }.write_through(k, &out, &ends, &staging);
}

/// Starts the copies of the next tile, if there is one: the walk's next block or, after the last, the first columns.
fn fetch_next(
    k: &mut Builder,
    tiles: &Tiles,
    problem: &Problem,
    blocks: &Blocks,
    columns: Option<&Columns>,
    buffer: R32,
) {
    let more = blocks.more(k);
    let block = |k: &mut Builder| {
        let start = blocks.start(k);
        tiles.fetch_block(k, buffer, start);
    };
    match columns.zip(blocks.offsets()) {
        None => k.if_then(more, block),
        Some((columns, offsets)) => k.if_else(more, block, |k| {
            columns.fill(k, problem, offsets);
            fetch_columns(k, tiles, columns, buffer);
        }),
    }
}

fn fetch_columns(k: &mut Builder, tiles: &Tiles, columns: &Columns, buffer: R32) {
    let more = columns.more(k);
    k.if_then(more, |k| {
        let entries = columns.entries(k);
        tiles.fetch_columns(k, buffer, entries);
    });
}

fn load_queries(k: &mut Builder, cursor: &TileCursor, tiling: Tiling, step: u32) -> Vec<Left> {
    let tiles = 0..tiling.row_tiles();
    tiles
        .map(|tile| {
            let (at, offset) = cursor.at(16 * tile, 2 * step);
            k.load_matrices(at, offset, false)
        })
        .collect()
}

impl Tiles {
    fn new(k: &mut Builder, kind: MmaType, problem: &Problem, buffers: crate::isa::SharedRegion, lane: R32) -> Tiles {
        let tiling = problem.tiling;
        let layout = tiling.key_tile();
        let copy = TileCopy::new(k, layout, tiling.threads(), problem.thread);
        let (keys, values) = (problem.keys(k), problem.values(k));
        let keys = copy.own_chunk(k, keys);
        let values = copy.own_chunk(k, values);
        let first_buffer = k.shared_address(buffers);
        let (row, chunk) = chunks_first(k, lane);
        let offset = layout.lane_offset(k, row, chunk);
        let key_matrices = k.add(first_buffer, offset);
        let (row, chunk) = rows_first(k, lane);
        let offset = layout.lane_offset(k, row, chunk);
        let value_matrices = k.add(first_buffer, offset);
        Tiles {
            kind,
            tiling,
            copy,
            sources: Sources::new(k, tiling, problem.table, [keys, values]),
            kv_len: problem.kv_len,
            buffers: DoubleBuffer::new(k, 2 * layout.bytes()),
            first_buffer,
            key_matrices,
            value_matrices: k.add(value_matrices, layout.bytes()),
        }
    }

    /// Address of the buffer that is filled.
    fn next_buffer(&self, k: &mut Builder) -> R32 {
        let offset = self.buffers.write(k);
        k.add(self.first_buffer, offset)
    }

    /// Where this thread copies keys and values to.
    fn targets(&self, k: &mut Builder, buffer: R32) -> [(R32, RowSource); 2] {
        let keys = self.copy.target(k, buffer);
        let values = k.add(keys, self.tiling.key_tile().bytes());
        let views = self.sources.views(k);
        [(keys, views[0]), (values, views[1])]
    }

    /// Starts the copies of the keys and values from `start` on; those beyond the last become zeros.
    fn fetch_block(&self, k: &mut Builder, buffer: R32, start: R32) {
        let targets = self.targets(k, buffer);
        let bounded = |k: &mut Builder| {
            targets.iter().for_each(|&(target, view)| self.copy.copy_bounded(k, target, view, start, self.kv_len));
        };
        let strided = targets.map(|(target, rows)| rows.strided().map(|view| (target, view)));
        // In pages every row is looked up by itself.
        let [Some(keys), Some(values)] = strided else { return bounded(k) };
        // A block at any offset may begin before key 0.
        let end = k.add(start, self.tiling.keys);
        let after = k.le_s(end, self.kv_len);
        let begins = k.ge_s(start, 0u32);
        let whole = k.and_p(after, begins);
        k.if_else(
            whole,
            |k| [keys, values].iter().for_each(|&(target, view)| self.copy.copy_whole(k, target, view, start)),
            bounded,
        );
    }

    /// Starts the copies of the keys and values of a tile of columns.
    fn fetch_columns(&self, k: &mut Builder, buffer: R32, entries: R32) {
        let targets = self.targets(k, buffer);
        let row = self.copy.row(k);
        let own = k.mad(row, 4u32, entries);
        for (target, view) in targets {
            self.copy.copy_rows(k, target, view, self.kv_len, |k, below| {
                let entry = k.load(own, i64::from(4 * below));
                columns::unmarked(k, entry)
            });
        }
    }

    /// Q·Kᵀ of the tile that is read.
    fn products(&self, k: &mut Builder, queries: &Queries) -> Accumulator {
        let products = Accumulator::new(k, self.tiling.row_tiles(), self.tiling.keys);
        products.clear(k);
        let matrices = k.add(self.key_matrices, self.buffers.read());
        let cursor = self.tiling.key_tile().cursor(k, matrices, 2);
        let queries: QueriesOfStep<'_> = match queries {
            Queries::Registers(steps) => Box::new(|_, step| steps[step as usize].clone()),
            Queries::Shared(matrices) => {
                let cursor = self.tiling.query_tile().cursor(k, *matrices, 2);
                Box::new(move |k, step| load_queries(k, &cursor, self.tiling, step))
            }
        };
        for step in 0..self.tiling.head_dim / 16 {
            let a = queries(k, step);
            for column in (0..self.tiling.keys).step_by(16) {
                let (at, offset) = cursor.at(column, 2 * step);
                let b = k.load_matrices(at, offset, false);
                products.multiply(k, self.kind, &a, b, column);
            }
        }
        products
    }

    /// `out += P · V` of the tile that is read; `weights` makes 16 columns of P at a time, so that the special functions
    /// of the next work beside the products of these.
    fn add_values(&self, k: &mut Builder, out: &Accumulator, mut weights: impl FnMut(&mut Builder, u32) -> Vec<Left>) {
        let matrices = k.add(self.value_matrices, self.buffers.read());
        let cursor = self.tiling.key_tile().cursor(k, matrices, 2);
        for key in (0..self.tiling.keys).step_by(16) {
            let a = weights(k, key);
            for column in (0..self.tiling.head_dim).step_by(16) {
                let (at, offset) = cursor.at(key, column / 8);
                let b = k.load_matrices(at, offset, true);
                out.multiply(k, self.kind, &a, b, column);
            }
        }
    }
}
