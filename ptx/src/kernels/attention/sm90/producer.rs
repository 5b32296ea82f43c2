//! The producer: walks the pattern and fetches blocks.
//!
//! Two warps fetch keys and two fetch values, each side at its own pace; every warp walks for itself. A block within the
//! sequence comes by bulk copies that one thread starts; of pages, some for each. Where it reaches beyond the last key warps
//! copy single rows: what lies behind a sequence may be another one, or nothing at all, and must be zeros. Gathered columns
//! come by single rows too, copied by both warps, and blocks at any key of pages. Where there are columns, blocks are left to
//! the first warp of each side: meanwhile the second one of the keys looks for columns.

use super::{
    ColumnRing, PRODUCER_BARRIER, Rounds, SIDE_BARRIER, Shared, WARPGROUP,
    notes::{NO_BLOCK, flag},
};
use crate::{
    isa::{Builder, Cache as Access, R32, R64, RP},
    kernels::attention::{
        blocks::{Block, Blocks, Cache, Offsets, Windows},
        columns::{self, Columns},
        problem::Problem,
        spec::{AttentionSpec, Pattern},
        tiling::Tiling,
    },
    tile::{
        copy::{PagedView, RowSource, RowView, TileCopy},
        ring::{Ring, Turn},
    },
};

/// Warps of one side.
pub(super) const SIDE_WARPS: u32 = 2;

/// The side of keys or of values, whichever this warp is on.
struct Side<'a> {
    tiling: Tiling,
    shared: &'a Shared,
    ring: Ring,
    problem: &'a Problem,
    /// Warps of the side that fetch blocks, and how they copy single rows of one.
    block_warps: u32,
    copy: TileCopy,
    /// Rows of a box of a bulk copy.
    box_rows: u32,
    /// Address of the first stage.
    first: R32,
    /// Whether this is the side of keys, which also notes what it fetches.
    has_keys: RP,
    /// Whether this is the side's first warp.
    leads: RP,
    takes_turns: bool,
}

pub(super) fn produce(
    k: &mut Builder,
    spec: &AttentionSpec,
    problem: &Problem,
    shared: &Shared,
    windows: Option<&Windows>,
    (warp, rounds): (R32, Rounds),
) {
    let side = Side::new(k, spec, problem, shared, warp);
    side.fetch_queries(k, rounds.queries);
    let cache = (spec.pattern == Pattern::VerticalSlash).then(|| Cache {
        region: k.shared(Cache::BYTES, 16),
        thread: problem.thread,
        threads: WARPGROUP,
        barrier: PRODUCER_BARRIER,
    });
    if cache.is_some() && spec.takes_turns() {
        // What is kept of the offsets of the row block before, all have read.
        k.meet_barrier(PRODUCER_BARRIER, WARPGROUP);
    }
    let blocks = Blocks::new(k, spec, problem, windows, cache);
    if let Some(needs) = blocks.needs() {
        side.note_before(k, &blocks, needs, rounds.queries);
    }
    let turn = rounds.blocks;

    match (shared.columns, blocks.offsets()) {
        (Some(columns), Some(offsets)) => {
            // The first warps fetch the blocks; the others only learn how many they are, and then have time for the columns.
            k.if_else(
                side.leads,
                |k| side.fetch_blocks(k, &blocks, turn),
                |k| {
                    let passed = blocks.count(k, problem);
                    side.ring.advance_by(k, turn, passed);
                },
            );
            k.comment("columns");
            side.fetch_all_columns(k, columns, offsets, (turn, rounds.columns));
        }
        _ => side.fetch_blocks(k, &blocks, turn),
    }

    let end = |k: &mut Builder| {
        side.ring.wait_free(k, turn);
        let (start, flags) = (k.mov(NO_BLOCK), k.mov(flag::END));
        side.note(k, turn, start, flags);
        side.filled(k, turn);
    };
    if !spec.takes_turns() {
        return k.if_then(side.has_keys, end);
    }
    // Another row block may follow: both sides go on from the same stage.
    end(k);
    side.ring.advance(k, turn);
    shared.query_ring(k).advance(k, rounds.queries);
}

impl<'a> Side<'a> {
    /// Fetches all blocks.
    fn fetch_blocks(&self, k: &mut Builder, blocks: &Blocks, turn: Turn) {
        k.comment("blocks");
        let started = self.maps().is_none().then(|| k.mov(0u32));
        k.while_loop(
            |k| blocks.more(k),
            |k| {
                let Block { start, partial, needs } = blocks.take(k, self.problem);
                self.ring.wait_free(k, turn);
                let flags = match (partial, needs.zip(blocks.needs())) {
                    (Some(partial), _) => k.mul(partial, flag::PARTIAL),
                    (_, Some((needs, next))) => {
                        self.release_unneeded(k, turn, needs);
                        let skips = self.skips(k, blocks, next);
                        self.masked_flags(k, start, skips)
                    }
                    _ => k.mov(0u32),
                };
                self.note(k, turn, start, flags);
                match started {
                    None => self.fetch_block(k, turn, start),
                    Some(started) => self.start_rows(k, turn, start, started),
                }
                self.ring.advance(k, turn);
            },
        );
        if let Some(started) = started {
            self.finish_rows(k, turn, started);
        }
    }

    /// Stages that are on their way at a time where blocks or columns come row by row: copies of rows take long, and while
    /// they come, those of the next stages have begun.
    fn under_way(&self) -> u32 {
        self.tiling.stages() / 2
    }

    /// Waits for all copies of rows but those of the last `pending` stages, and makes them visible to products.
    fn arrived(k: &mut Builder, pending: u32) {
        k.wait_copies(pending);
        k.fence_async_proxy();
    }

    /// Starts the copies of a block's rows, and arrives for the block that must have come by then. `started` counts blocks.
    fn start_rows(&self, k: &mut Builder, turn: Turn, start: R32, started: R32) {
        let stage = self.stage(k, turn);
        self.copy_rows(k, stage, start);
        let pending = self.under_way() - 1;
        let enough = k.ge_u(started, pending);
        let enough = k.any(enough);
        k.if_then(enough, |k| {
            Self::arrived(k, pending);
            self.fill_block_before(k, turn, pending);
        });
        let next = k.add(started, 1u32);
        k.set(started, next);
    }

    /// Waits for the last blocks of [`Side::start_rows`], and arrives for them. `turn` is the one after.
    fn finish_rows(&self, k: &mut Builder, turn: Turn, started: R32) {
        Self::arrived(k, 0);
        for back in (1..self.under_way()).rev() {
            let some = k.ge_u(started, back);
            let some = k.any(some);
            k.if_then(some, |k| self.fill_block_before(k, turn, back));
        }
    }

    /// Arrives for the block `back` stages before, and for the warp of the side that copies none.
    fn fill_block_before(&self, k: &mut Builder, turn: Turn, back: u32) {
        self.ring.fill_before(k, turn, back);
        let elected = k.elect();
        k.if_then(elected, |k| self.ring.fill_before_for(k, turn, back, 32 * (SIDE_WARPS - self.block_warps)));
    }

    /// The maps of keys and values, where blocks come in bulk.
    fn maps(&self) -> Option<[R64; 2]> {
        self.problem.maps.as_ref().and_then(|maps| maps.kv)
    }

    /// Fetches the columns, as many at a time as one warp has found for all.
    fn fetch_all_columns(&self, k: &mut Builder, list: ColumnRing, offsets: &Offsets, (turn, round): (Turn, Turn)) {
        let groups = self.tiling.groups();
        let views = (0..groups).map(|group| k.mov(group)).collect();
        let columns = Columns::new(k, self.problem, list.entries, false, views);
        let second = k.not_p(self.leads);
        let finds = k.and_p(self.has_keys, second);
        let ring = list.ring(k);
        let more = k.mov(1u32);
        k.while_loop(
            |k| k.ne(more, 0u32),
            |k| {
                k.if_then(finds, |k| {
                    ring.wait_free(k, round);
                    let header = columns.refill(k, self.problem, offsets);
                    let at = k.shared_address(list.header);
                    let elected = k.elect();
                    k.when(elected, |k| k.store_vector(at, 0, header));
                    ring.fill(k, round);
                });
                // The second warps have not seen how the blocks came: they wait for the first ones' last.
                let barrier = k.select(self.has_keys, SIDE_BARRIER, SIDE_BARRIER + 1);
                k.meet_barrier(barrier, 32 * SIDE_WARPS);
                ring.wait_full(k, round);
                let at = k.shared_address(list.header);
                let header: [R32; 2] = k.load_vector(at, 0, Access::Default);
                // The same in all lanes, and the shuffles let `ptxas` know.
                let [found, follow] = header.map(|word| k.shuffle_from(word, 0u32));
                columns.read(k, found);
                k.set(more, follow);
                let under_way = self.under_way();
                k.while_loop(
                    |k| columns.more(k),
                    |k| {
                        self.ring.wait_free(k, turn);
                        self.note_columns(k, turn, &columns);
                        self.fetch_columns(k, turn, &columns);
                        let enough = columns.passed(k, under_way - 1);
                        k.if_then(enough, |k| {
                            Self::arrived(k, under_way - 1);
                            self.ring.fill_before(k, turn, under_way - 1);
                        });
                        self.ring.advance(k, turn);
                        columns.advance(k);
                    },
                );
                Self::arrived(k, 0);
                for back in (1..under_way).rev() {
                    let passed = columns.passed(k, back);
                    k.if_then(passed, |k| self.ring.fill_before(k, turn, back));
                }
                let reads = k.not_p(finds);
                ring.release(k, round, Some(reads));
                ring.advance(k, round);
            },
        );
    }

    fn new(k: &mut Builder, spec: &AttentionSpec, problem: &'a Problem, shared: &'a Shared, warp: R32) -> Side<'a> {
        let tiling = problem.tiling;
        let has_keys = k.lt_u(warp, SIDE_WARPS);
        let either = |k: &mut Builder, keys: R32, values: R32| k.select(has_keys, keys, values);
        let warp_of_side = k.and(warp, SIDE_WARPS - 1);
        let block_warps = if shared.columns.is_some() { 1 } else { SIDE_WARPS };
        let thread = k.and(problem.thread, 32 * block_warps - 1);
        let copy = TileCopy::new(k, tiling.key_tile(), 32 * block_warps, thread);
        let [key_region, value_region] = [shared.keys, shared.values].map(|region| k.shared_address(region));
        let [key_ring, value_ring] = [shared.key_ring, shared.value_ring].map(|region| k.shared_address(region));
        Side {
            tiling,
            shared,
            ring: Ring::new(shared.block_ring, either(k, key_ring, value_ring)),
            problem,
            block_warps,
            copy,
            box_rows: tiling.boxes(spec.kv)[1].rows,
            first: either(k, key_region, value_region),
            has_keys,
            leads: k.eq(warp_of_side, 0u32),
            takes_turns: spec.takes_turns(),
        }
    }

    /// The side's rows. Found again at every use: registers are few.
    fn rows(&self, k: &mut Builder) -> RowSource {
        let side = self.has_keys;
        match (self.problem.keys(k), self.problem.values(k)) {
            (RowSource::Paged(keys), RowSource::Paged(values)) => RowSource::Paged(PagedView {
                base: k.select(side, keys.base, values.base),
                page_stride: k.select(side, keys.page_stride, values.page_stride),
                row_stride: k.select(side, keys.row_stride, values.row_stride),
                ..keys
            }),
            (RowSource::Strided(keys), RowSource::Strided(values)) => RowSource::Strided(RowView {
                base: k.select(side, keys.base, values.base),
                stride: k.select(side, keys.stride, values.stride),
            }),
            _ => unreachable!("keys and values have one layout"),
        }
    }

    fn fetch_queries(&self, k: &mut Builder, turn: Turn) {
        let maps = self.problem.maps.as_ref().expect("the kernel has tensor maps");
        let layout = self.problem.tiling.query_tile();
        let first = k.and_p(self.has_keys, self.leads);
        let elected = k.elect();
        let fetches = k.and_p(first, elected);
        k.if_then(fetches, |k| {
            maps.q.iter().chain(maps.kv.iter().flatten()).for_each(|&map| k.prefetch_tensor_map(map));
            // Without a map, consumers fetch their own.
            let Some(map) = maps.q else { return };
            let ring = self.shared.query_ring(k);
            self.wait_queries_free(k, ring, turn);
            ring.fill_expecting(k, turn, layout.bytes());
            let target = k.shared_address(self.shared.queries);
            let full = ring.full(k, turn);
            for slab in 0..layout.slabs {
                let place = self.problem.query_place.at(k, slab * layout.slab_columns(), self.problem.first_row);
                k.copy_box((target, i64::from(slab * layout.slab_bytes())), map, place, full);
            }
        });
    }

    /// Waits until the queries of the row block before are no longer needed, if there may be one.
    fn wait_queries_free(&self, k: &mut Builder, ring: Ring, turn: Turn) {
        if self.takes_turns {
            ring.wait_free(k, turn);
        }
    }

    /// Notes what the stage's keys are, in one thread of the side of keys.
    fn note(&self, k: &mut Builder, turn: Turn, start: R32, flags: R32) {
        let writes = k.and_p(self.has_keys, self.leads);
        let elected = k.elect();
        let writes = k.and_p(writes, elected);
        k.if_then(writes, |k| self.shared.notes.write(k, turn.stage, start, flags));
    }

    /// Flags of the consumers that skip the next block of the walk, if there is one.
    fn skips(&self, k: &mut Builder, blocks: &Blocks, needs: R32) -> R32 {
        let more = blocks.more(k);
        let needs = k.select(more, needs, u32::MAX);
        let skipped = k.not(needs);
        let skipped = k.and(skipped, (1 << self.tiling.groups()) - 1);
        k.mul(skipped, flag::SKIPS)
    }

    /// Tells the consumers, beside the queries, who skips the first block.
    fn note_before(&self, k: &mut Builder, blocks: &Blocks, needs: R32, turn: Turn) {
        let flags = self.skips(k, blocks, needs);
        let first = k.and_p(self.has_keys, self.leads);
        let elected = k.elect();
        let writes = k.and_p(first, elected);
        k.if_then(writes, |k| {
            let ring = self.shared.query_ring(k);
            self.wait_queries_free(k, ring, turn);
            self.shared.notes.write_before(k, flags);
            ring.fill(k, turn);
        });
    }

    /// Flags of the consumers for which some pair of the block does not count, beside `skips`.
    fn masked_flags(&self, k: &mut Builder, start: R32, skips: R32) -> R32 {
        let mut flags = skips;
        let early = k.lt_s(start, 0u32);
        let from_first = k.sub(start, self.problem.first_position);
        for group in 0..self.tiling.groups() {
            // The block's last key lies after the group's first row.
            let late = k.gt_s(from_first, (group * self.tiling.keys) as i32 - (self.tiling.keys as i32 - 1));
            let masked = k.or_p(early, late);
            let bit = k.select(masked, flag::MASKED << group, 0u32);
            flags = k.or(flags, bit);
        }
        flags
    }

    /// Arrives for the consumers that will not read the stage.
    fn release_unneeded(&self, k: &mut Builder, turn: Turn, needs: R32) {
        let elected = k.elect();
        let releases = k.and_p(self.leads, elected);
        for group in 0..self.tiling.groups() {
            let bit = k.and(needs, 1u32 << group);
            let absent = k.eq(bit, 0u32);
            let absent = k.and_p(absent, releases);
            k.if_then(absent, |k| self.ring.release_for(k, turn, WARPGROUP));
        }
    }

    /// Makes what this thread wrote visible to products, and arrives.
    fn filled(&self, k: &mut Builder, turn: Turn) {
        k.fence_async_proxy();
        self.ring.fill(k, turn);
    }

    fn stage(&self, k: &mut Builder, turn: Turn) -> R32 {
        k.mad(turn.stage, self.tiling.key_tile().bytes(), self.first)
    }

    /// Fetches a block, and arrives.
    fn fetch_block(&self, k: &mut Builder, turn: Turn, start: R32) {
        let maps = self.maps().expect("blocks come in bulk");
        let end = k.add(start, self.tiling.keys);
        // A block at any offset may begin before key 0.
        let after = k.le_s(end, self.problem.kv_len);
        let begins = k.ge_s(start, 0u32);
        let whole = k.and_p(after, begins);
        let stage = self.stage(k, turn);
        k.if_else(
            whole,
            |k| self.copy_boxes(k, maps, turn, stage, start),
            |k| {
                self.copy_rows(k, stage, start);
                k.wait_copies(0);
                self.filled(k, turn);
                if self.block_warps < SIDE_WARPS {
                    let elected = k.elect();
                    k.if_then(elected, |k| self.ring.fill_for(k, turn, 32 * (SIDE_WARPS - self.block_warps)));
                }
            },
        );
    }

    /// Starts the copies of a block row by row, as one group.
    fn copy_rows(&self, k: &mut Builder, stage: R32, start: R32) {
        let (target, rows) = (self.copy.target(k, stage), self.rows(k));
        let rows = self.copy.own_chunk(k, rows);
        self.copy.copy_bounded(k, target, rows, start, self.problem.kv_len);
        k.commit_copies();
    }

    /// Starts the bulk copies of a block in the first warp. One lane arrives for its warp, and for one that does not come.
    fn copy_boxes(&self, k: &mut Builder, [keys, values]: [R64; 2], turn: Turn, stage: R32, start: R32) {
        let layout = self.tiling.key_tile();
        let others = 32 * (1 + SIDE_WARPS - self.block_warps) - 1;
        let copies = |k: &mut Builder| {
            let map = k.select(self.has_keys, keys, values);
            self.ring.fill_for(k, turn, others);
            self.ring.fill_expecting(k, turn, layout.bytes());
            let full = self.ring.full(k, turn);
            // A block is one box a slab, or one a slab and page.
            let piece = |k: &mut Builder, target: R32, row: R32| {
                let (place, row) = self.problem.key_box(k, row);
                for slab in 0..layout.slabs {
                    let place = place.at(k, slab * layout.slab_columns(), row);
                    k.copy_box((target, i64::from(slab * layout.slab_bytes())), map, place, full);
                }
            };
            if self.box_rows == layout.rows {
                return piece(k, stage, start);
            }
            k.for_loop(0u32, layout.rows, self.box_rows, |k, first| {
                let target = k.mad(first, layout.row_bytes, stage);
                let row = k.add(start, first);
                piece(k, target, row);
            });
        };
        let elected = k.elect();
        k.if_then(elected, |k| match self.block_warps {
            1 => copies(k),
            _ => k.if_else(self.leads, copies, |k| self.ring.fill_for(k, turn, 32)),
        });
    }

    /// Tells each consumer which columns a block holds.
    fn note_columns(&self, k: &mut Builder, turn: Turn, columns: &Columns) {
        let Some(target) = self.shared.notes.columns(k, turn.stage) else { return };
        let entries = columns.entries(k);
        let writes = k.and_p(self.has_keys, self.leads);
        let flags = k.mov(flag::COLUMNS);
        k.if_then(writes, |k| {
            let lane = k.lane();
            let own = k.shl(lane, 2u32);
            let (from, to) = (k.add(entries, own), k.add(target, own));
            for group in 0..self.tiling.groups() {
                let (ring, list) = (group * columns.ring_bytes(), group * self.shared.notes.list_bytes());
                // The first key that the group's first row does not see.
                let after = k.add(self.problem.first_position, group * self.tiling.keys + 1);
                let mut masked = None;
                for part in (0..self.tiling.keys).step_by(32).map(|part| 4 * part) {
                    let entry: R32 = k.load(from, i64::from(ring + part));
                    let key = columns::key(k, entry);
                    k.store(to, i64::from(list + part), key);
                    let unseen = k.ge_s(key, after);
                    masked = Some(masked.map_or(unseen, |some| k.or_p(some, unseen)));
                }
                let masked = k.any(masked.expect("a list has entries"));
                let bit = k.select(masked, flag::MASKED << group, 0u32);
                let all = k.or(flags, bit);
                k.set(flags, all);
            }
        });
        let start = k.mov(NO_BLOCK);
        self.note(k, turn, start, flags);
    }

    /// Starts the copies of a block of columns, as one group. The caller waits and arrives.
    fn fetch_columns(&self, k: &mut Builder, turn: Turn, columns: &Columns) {
        let entries = columns.entries(k);
        let stage = self.stage(k, turn);
        // Each warp copies half of the rows.
        let layout = self.tiling.key_tile();
        let half = layout.rows / SIDE_WARPS;
        let before = k.select(self.leads, 0u32, half);
        let target = self.copy.target(k, stage);
        let target = k.mad(before, layout.row_bytes, target);
        let row = self.copy.row(k);
        let row = k.add(row, before);
        let own = k.mad(row, 4u32, entries);
        let rows = self.rows(k);
        let rows = self.copy.own_chunk(k, rows);
        let passes = self.copy.passes() / SIDE_WARPS;
        self.copy.copy_passes(k, target, rows, self.problem.kv_len, passes, |k, below| {
            let entry = k.load(own, i64::from(4 * below));
            columns::unmarked(k, entry)
        });
        k.commit_copies();
    }
}
