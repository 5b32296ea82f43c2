//! The producer: walks the pattern and fetches tiles.
//!
//! A tile whose blocks lie within the sequence comes by bulk copies that one thread starts. Where a block reaches beyond
//! the last key, and for gathered columns, all threads of the warpgroup copy single rows: what lies behind a sequence may
//! be another one, or nothing at all, and must be zeros. Every warp walks for itself and arrives once a tile.

use super::{Shared, WARPGROUP, notes::NO_BLOCK};
use crate::{
    isa::{Builder, R32, R64, SharedRegion},
    kernels::attention::{
        blocks::{Blocks, Windows},
        columns::Columns,
        problem::{MapPlace, Problem},
        spec::{AttentionSpec, Pattern},
        tiling::Tiling,
    },
    tile::{
        copy::{RowView, TileCopy},
        ring::Turn,
    },
};

/// Keys or values, as the producer finds them.
struct Side {
    map: R64,
    /// As this thread copies single rows.
    view: RowView,
    /// Address of the first stage.
    first: R32,
}

struct Producer<'a> {
    tiling: Tiling,
    place: MapPlace,
    kv_len: R32,
    copy: TileCopy,
    warp: R32,
    shared: &'a Shared,
    keys: Side,
    values: Side,
}

/// Blocks of a tile: first keys.
type Starts = [R32; 2];

pub(super) fn produce(
    k: &mut Builder,
    spec: &AttentionSpec,
    problem: &Problem,
    shared: &Shared,
    windows: Option<&Windows>,
    warp: R32,
) {
    fetch_queries(k, problem, shared, warp);
    let blocks = Blocks::new(k, spec, problem, windows);
    let columns = (spec.pattern == Pattern::VerticalSlash).then(|| {
        let rings = k.shared(4 * problem.tiling.ring * problem.tiling.producer_warps(), 16);
        Columns::new(k, problem, rings, warp)
    });
    let producer = Producer::new(k, problem, shared, warp);
    let (keys, values) = (shared.key_ring.begin(k), shared.value_ring.begin(k));

    k.comment("tiles of blocks: keys, and values of the tile before");
    let before: Starts = k.fresh_array();
    let some = k.mov(0u32);
    let fetch_before = |k: &mut Builder| {
        let exists = k.ne(some, 0u32);
        k.if_then(exists, |k| {
            values.wait_free(k);
            producer.fetch_blocks(k, &producer.values, values, before);
            values.advance(k);
        });
    };
    k.while_loop(
        |k| blocks.more(k),
        |k| {
            let (starts, partial) = next_blocks(k, problem, &blocks);
            keys.wait_free(k);
            producer.once(k, |k| shared.notes.write_blocks(k, keys.stage, starts, partial));
            producer.fetch_blocks(k, &producer.keys, keys, starts);
            keys.advance(k);
            fetch_before(k);
            before.iter().zip(starts).for_each(|(&before, start)| k.set(before, start));
            k.set(some, 1u32);
        },
    );
    fetch_before(k);

    if let Some((columns, diagonals)) = columns.as_ref().zip(blocks.diagonals()) {
        k.comment("tiles of columns");
        columns.fill(k, problem, diagonals);
        let last = values.here(k);
        let arrives = k.mov(0u32);
        // Copies of rows arrive one step late: while they come, those of the next are on their way.
        let fill_before = |k: &mut Builder, pending: u32| {
            let late = k.ne(arrives, 0u32);
            k.if_then(late, |k| {
                k.wait_copies(pending);
                producer.filled(k, last);
            });
        };
        k.while_loop(
            |k| columns.more(k),
            |k| {
                let entries = columns.entries(k);
                keys.wait_free(k);
                producer.note_columns(k, keys.stage, entries);
                producer.fetch_columns(k, &producer.keys, keys, entries);
                fill_before(k, 1);
                values.wait_free(k);
                producer.fetch_columns(k, &producer.values, values, entries);
                k.wait_copies(1);
                producer.filled(k, keys);
                last.set_to(k, values);
                k.set(arrives, 1u32);
                keys.advance(k);
                values.advance(k);
                columns.advance(k);
                columns.fill(k, problem, diagonals);
            },
        );
        fill_before(k, 0);
    }

    keys.wait_free(k);
    producer.once(k, |k| shared.notes.write_end(k, keys.stage));
    producer.filled(k, keys);
}

fn fetch_queries(k: &mut Builder, problem: &Problem, shared: &Shared, warp: R32) {
    let maps = problem.maps.as_ref().expect("the kernel has tensor maps");
    let layout = problem.tiling.query_tile();
    let turn = shared.queries_ring.begin(k);
    let first = k.eq(warp, 0u32);
    let elected = k.elect();
    let fetches = k.and_p(first, elected);
    k.if_then(fetches, |k| {
        [maps.q, maps.k, maps.v].iter().for_each(|&map| k.prefetch_tensor_map(map));
        turn.fill_expecting(k, layout.bytes());
        let target = k.shared_address(shared.queries);
        for slab in 0..layout.slabs {
            let place = problem.query_place.at(k, slab * layout.slab_columns(), problem.first_row);
            k.copy_box((target, i64::from(slab * layout.slab_bytes())), maps.q, place, turn.full());
        }
    });
}

/// The next one or two blocks of the walk, and whether the mask expression applies to each.
fn next_blocks(k: &mut Builder, problem: &Problem, blocks: &Blocks) -> (Starts, [R32; 2]) {
    let take = |k: &mut Builder| {
        let start = blocks.start(k);
        let partial = match blocks.partial() {
            Some(partial) => k.mov(partial),
            None => k.mov(1u32),
        };
        blocks.advance(k, problem);
        (start, partial)
    };
    let (first, first_partial) = take(k);
    let (second, second_partial) = (k.mov(NO_BLOCK), k.mov(0u32));
    if problem.tiling.parts() == 2 {
        let more = blocks.more(k);
        k.if_then(more, |k| {
            let (start, partial) = take(k);
            k.set(second, start);
            k.set(second_partial, partial);
        });
    }
    ([first, second], [first_partial, second_partial])
}

impl<'a> Producer<'a> {
    fn new(k: &mut Builder, problem: &Problem, shared: &'a Shared, warp: R32) -> Producer<'a> {
        let tiling = problem.tiling;
        let maps = problem.maps.as_ref().expect("the kernel has tensor maps");
        let copy = TileCopy::new(k, tiling.key_tile(), WARPGROUP, problem.thread);
        let mut side = |map: R64, view: RowView, region: SharedRegion| Side {
            map,
            view: copy.own_chunk(k, view),
            first: k.shared_address(region),
        };
        let keys = side(maps.k, problem.keys, shared.keys);
        let values = side(maps.v, problem.values, shared.values);
        Producer { tiling, place: problem.key_place, kv_len: problem.kv_len, copy, warp, shared, keys, values }
    }

    /// Runs `body` in one thread of the warpgroup.
    fn once(&self, k: &mut Builder, body: impl FnOnce(&mut Builder)) {
        let first = k.eq(self.warp, 0u32);
        let elected = k.elect();
        let runs = k.and_p(first, elected);
        k.if_then(runs, body);
    }

    /// Makes what this warp wrote visible to products and arrives.
    fn filled(&self, k: &mut Builder, turn: Turn) {
        k.fence_async_proxy();
        k.warp_barrier();
        let elected = k.elect();
        k.if_then(elected, |k| turn.fill(k));
    }

    fn stage(&self, k: &mut Builder, side: &Side, turn: Turn) -> R32 {
        k.mad(turn.stage, self.tiling.key_tile().bytes(), side.first)
    }

    /// Fetches a tile of blocks, and arrives.
    fn fetch_blocks(&self, k: &mut Builder, side: &Side, turn: Turn, starts: Starts) {
        let parts = self.tiling.parts();
        // A missing second block is the first again: its pairs do not count, but what is there is multiplied by 0.
        let missing = k.eq(starts[1], NO_BLOCK);
        let starts = [starts[0], k.select(missing, starts[0], starts[1])];
        let starts = &starts[..parts as usize];
        let last = if parts == 2 { k.max_s(starts[0], starts[1]) } else { starts[0] };
        let end = k.add(last, self.tiling.keys);
        let whole = k.le_s(end, self.kv_len);
        let stage = self.stage(k, side, turn);
        k.if_else(
            whole,
            |k| self.copy_boxes(k, side, turn, stage, starts),
            |k| {
                let keys = self.tiling.keys;
                let own = self.copy.row(k);
                let own: Vec<R32> = starts.iter().map(|&start| k.add(start, own)).collect();
                let target = self.copy.target(k, stage);
                self.copy.copy_rows(k, target, side.view, self.kv_len, |k, below| {
                    k.add(own[(below / keys) as usize], below % keys)
                });
                k.commit_copies();
                k.wait_copies(0);
                self.filled(k, turn);
            },
        );
    }

    /// Starts the bulk copies of a tile of blocks in the first warp; the others only arrive.
    fn copy_boxes(&self, k: &mut Builder, side: &Side, turn: Turn, stage: R32, starts: &[R32]) {
        let layout = self.tiling.key_tile();
        let elected = k.elect();
        k.if_then(elected, |k| {
            let first = k.eq(self.warp, 0u32);
            k.if_else(
                first,
                |k| {
                    turn.fill_expecting(k, layout.bytes());
                    for (part, &start) in (0..).zip(starts) {
                        for slab in 0..layout.slabs {
                            let at = slab * layout.slab_bytes() + part * self.tiling.keys * layout.row_bytes;
                            let place = self.place.at(k, slab * layout.slab_columns(), start);
                            k.copy_box((stage, i64::from(at)), side.map, place, turn.full());
                        }
                    }
                },
                |k| turn.fill(k),
            );
        });
    }

    /// Tells the consumers which columns a tile holds.
    fn note_columns(&self, k: &mut Builder, stage: R32, entries: R32) {
        let Some(target) = self.shared.notes.columns(k, stage) else { return };
        let first = k.eq(self.warp, 0u32);
        k.if_then(first, |k| {
            let lane = k.lane();
            let own = k.shl(lane, 2u32);
            let (from, to) = (k.add(entries, own), k.add(target, own));
            for part in (0..self.tiling.tile_keys).step_by(32) {
                let entry: R32 = k.load(from, i64::from(4 * part));
                k.store(to, i64::from(4 * part), entry);
            }
        });
        self.once(k, |k| self.shared.notes.write_columns(k, stage));
    }

    /// Starts the copies of a tile of columns, as one group. The caller waits and arrives.
    fn fetch_columns(&self, k: &mut Builder, side: &Side, turn: Turn, entries: R32) {
        let stage = self.stage(k, side, turn);
        let target = self.copy.target(k, stage);
        let row = self.copy.row(k);
        let own = k.mad(row, 4u32, entries);
        self.copy.copy_rows(k, target, side.view, self.kv_len, |k, below| k.load(own, i64::from(4 * below)));
        k.commit_copies();
    }
}
