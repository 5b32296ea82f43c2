//! The producer: four warps that walk the tiles together and fetch their stages.
//!
//! Whole tiles come by bulk copies that one thread starts. Of a tile that ends with its sequence, and of pages, all threads copy
//! single rows, a stage ahead of the one that they wait for.

use super::{
    AntidiagonalSumsSpec, Note, Own, Problem, Shared, Stages, WARPGROUP,
    tiles::{Tile, Tiles},
};
use crate::{
    isa::{Builder, R32, R64, RP, SharedRegion},
    kernels::{
        batch::{Bounds, Sequence},
        index::workspace::{KEY_CELLS, QUERY_CELLS},
    },
    tile::{
        copy::{RowSource, TileCopy},
        layout::TileLayout,
        ring::{Ring, Turn},
    },
};

/// Arrivals that fill a stage: one with the bytes of boxes, and each thread's with its rows.
pub(super) const FILLS: u32 = 1 + WARPGROUP;
/// Stages whose rows are on their way while the next ones are started.
const PENDING: u32 = 1;

/// Queries or keys.
struct Side {
    layout: TileLayout,
    copy: TileCopy,
    map: Option<R64>,
    region: SharedRegion,
    /// First row of the sequence in the map, and its batch entry there.
    first: R32,
    entry: R32,
    length: R32,
    /// Rows of the sequence before this one lie in whole strides of the map.
    strides_end: R32,
}

/// The part of a side that a tile has.
struct Part {
    head: R32,
    rows: RowSource,
    /// First cell.
    cell: R32,
    /// Whether it comes in boxes.
    whole: RP,
}

impl Side {
    fn new(
        k: &mut Builder,
        spec: &AntidiagonalSumsSpec,
        (layout, region, map): (TileLayout, SharedRegion, Option<R64>),
        bounds: &Bounds,
        sequence: &Sequence,
    ) -> Side {
        let thread = k.thread();
        let batch = k.block_z();
        let packed = k.ne(bounds.start, 0u64);
        // Unpacked, what is whole in the sequence is whole in the map.
        let in_strides = k.and(bounds.rows, !(spec.stride - 1));
        let strides_end = k.sub(in_strides, sequence.first);
        Side {
            layout,
            copy: TileCopy::new(k, layout, WARPGROUP, thread),
            map,
            region,
            first: sequence.first,
            entry: k.select(packed, 0u32, batch),
            length: sequence.length,
            strides_end: k.select(packed, strides_end, i32::MAX as u32),
        }
    }

    fn part(&self, k: &mut Builder, stride: u32, head: R32, rows: RowSource, cell: R32) -> Part {
        let end = k.add(cell, self.layout.rows);
        let end = k.shl(end, stride.ilog2());
        let end_in_map = if self.map.is_some() { self.strides_end } else { k.mov(0u32) };
        let exists = k.le_s(end, self.length);
        let in_map = k.le_s(end, end_in_map);
        let whole = k.and_p(exists, in_map);
        Part { head, rows, cell, whole }
    }

    /// Address of the side's tile in a stage.
    fn stage(&self, k: &mut Builder, turn: Turn) -> R32 {
        let first = k.shared_address(self.region);
        k.mad(turn.stage, self.layout.bytes(), first)
    }

    /// Starts the boxes of row `row` of the cells, from element `element` on. One thread does it.
    fn copy_boxes(
        &self,
        k: &mut Builder,
        part: &Part,
        stride: u32,
        (row, element): (R32, R32),
        ring: Ring,
        turn: Turn,
    ) {
        let Some(map) = self.map else { return };
        let stage = self.stage(k, turn);
        let full = ring.full(k, turn);
        let row = k.add(self.first, row);
        let within = k.and(row, stride - 1);
        let strides = k.shr_u(row, stride.ilog2());
        let strides = k.add(strides, part.cell);
        for slab in 0..self.layout.slabs {
            let column = k.add(element, slab * self.layout.slab_columns());
            let place = [column, within, strides, part.head, self.entry];
            k.copy_box((stage, i64::from(slab * self.layout.slab_bytes())), map, place, full);
        }
    }

    /// Starts the copies of the same rows one by one.
    fn copy_rows(&self, k: &mut Builder, part: &Part, stride: u32, (row, element): (R32, R32), turn: Turn) {
        let stage = self.stage(k, turn);
        let target = self.copy.target(k, stage);
        let base = k.mad_wide(element, 2u32, part.rows.base());
        let rows = self.copy.own_chunk(k, part.rows.at(base));
        let own = self.copy.row(k);
        let first = k.add(part.cell, own);
        self.copy.copy_rows(k, target, rows, self.length, |k, below| {
            let cell = k.add(first, below);
            k.mad(cell, stride, row)
        });
    }
}

/// The four warps.
struct Producer<'a> {
    spec: &'a AntidiagonalSumsSpec,
    stages: Stages,
    shared: &'a Shared,
    ring: Ring,
    queries: Side,
    keys: Side,
    turn: Turn,
    /// Whether this is the first warp.
    leads: RP,
}

#[expect(clippy::too_many_arguments, reason = "what a role is given")]
pub(super) fn produce(
    k: &mut Builder,
    spec: &AntidiagonalSumsSpec,
    problem: &Problem,
    own: &Own,
    (q_map, k_map): (R64, Option<R64>),
    shared: &Shared,
    tiles: &Tiles,
    warp: R32,
) {
    let stages = Stages::of(spec);
    let producer = Producer {
        spec,
        stages,
        shared,
        ring: shared.ring(k, stages),
        queries: Side::new(k, spec, (stages.queries, shared.queries, Some(q_map)), &problem.query_bounds, &own.query),
        keys: Side::new(k, spec, (stages.keys, shared.keys, k_map), &problem.key_bounds, &own.key),
        turn: Turn::first(k),
        leads: k.eq(warp, 0u32),
    };
    producer.prefetch_maps(k);
    k.comment("tiles");
    k.while_loop(
        |k| tiles.more(k),
        |k| {
            let Tile { slot, row, key_tile } = tiles.take(k);
            // A head that does not exist has no queries.
            let query = Sequence { first: own.query.first, length: k.mov(own.query.length) };
            let (head, kv_head) = problem.heads.pair(k, slot, &query, problem.status);
            let exists = k.ne(query.length, 0u32);
            k.if_then(exists, |k| {
                let tile = k.add(problem.first_tile, row);
                let first_query = k.shl(tile, QUERY_CELLS.ilog2());
                let first_key = k.shl(key_tile, KEY_CELLS.ilog2());
                let queries = problem.queries(k, own.batch, head, &own.query);
                let keys = problem.keys.rows(k, problem.table, own.batch, kv_head, own.key.first);
                let queries = producer.queries.part(k, spec.stride, head, queries.into(), first_query);
                let keys = producer.keys.part(k, spec.stride, kv_head, keys, first_key);
                let more = k.mov(1u32);
                producer.fetch(k, &queries, &keys, [first_query, first_key, slot, more]);
            });
        },
    );
    k.comment("the end");
    let nothing = k.mov(0u32);
    producer.ring.wait_free(k, producer.turn);
    producer.note(k, [nothing; 4]);
    producer.ring.fill(k, producer.turn);
    producer.by_one(k, |k| producer.ring.fill(k, producer.turn));
}

impl Producer<'_> {
    /// Runs `body` in one thread.
    fn by_one(&self, k: &mut Builder, body: impl FnOnce(&mut Builder)) {
        let elected = k.elect();
        let one = k.and_p(self.leads, elected);
        k.if_then(one, body);
    }

    fn prefetch_maps(&self, k: &mut Builder) {
        let maps = [self.queries.map, self.keys.map];
        self.by_one(k, |k| maps.into_iter().flatten().for_each(|map| k.prefetch_tensor_map(map)));
    }

    fn note(&self, k: &mut Builder, note: Note) {
        self.by_one(k, |k| {
            let at = self.shared.note(k, self.turn.stage);
            k.store_vector(at, 0, note);
        });
    }

    /// Fetches the stages of a tile.
    fn fetch(&self, k: &mut Builder, queries: &Part, keys: &Part, note: Note) {
        let (ring, turn, stride) = (self.ring, self.turn, self.spec.stride);
        let all_whole = k.and_p(queries.whole, keys.whole);
        let boxes = [(queries, &self.queries), (keys, &self.keys)];
        let bytes = boxes.map(|(part, side)| k.select(part.whole, side.layout.bytes(), 0u32));
        let bytes = k.add(bytes[0], bytes[1]);
        let steps = self.stages.of_tile(stride);
        k.for_loop(0u32, steps, 1, |k, step| {
            let row = k.shr_u(step, self.stages.parts.ilog2());
            let part = k.and(step, self.stages.parts - 1);
            let element = k.mul(part, self.stages.elements);
            let reversed = k.xor(row, stride - 1);
            let sides = [(&self.queries, queries, reversed), (&self.keys, keys, row)];

            ring.wait_free(k, turn);
            let begins = k.eq(step, 0u32);
            k.if_then(begins, |k| self.note(k, note));
            self.by_one(k, |k| {
                ring.fill_expecting(k, turn, bytes);
                for (side, part, row) in sides {
                    k.if_then(part.whole, |k| side.copy_boxes(k, part, stride, (row, element), ring, turn));
                }
                k.if_then(all_whole, |k| ring.fill_for(k, turn, WARPGROUP));
            });
            let by_rows = k.not_p(all_whole);
            k.if_then(by_rows, |k| {
                for (side, part, row) in sides {
                    let by_rows = k.not_p(part.whole);
                    k.if_then(by_rows, |k| side.copy_rows(k, part, stride, (row, element), turn));
                }
                k.commit_copies();
                let enough = k.ge_u(step, PENDING);
                k.if_then(enough, |k| {
                    Self::arrived(k, PENDING);
                    ring.fill_before(k, turn, PENDING);
                });
            });
            ring.advance(k, turn);
        });
        let by_rows = k.not_p(all_whole);
        k.if_then(by_rows, |k| {
            Self::arrived(k, 0);
            for back in (1..=PENDING).rev() {
                ring.fill_before(k, turn, back);
            }
        });
    }

    /// Waits for all copies of rows but those of the last `pending` stages, and makes them visible to products.
    fn arrived(k: &mut Builder, pending: u32) {
        k.wait_copies(pending);
        k.fence_async_proxy();
    }
}
