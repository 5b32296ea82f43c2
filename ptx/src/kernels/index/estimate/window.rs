//! What both passes share: the last queries of a warp's head in registers, and the walk over its part of the keys.

use super::{EstimateSpec, THREADS};
use crate::{
    isa::{Arch, Builder, MmaType, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, Sequence, address, report, status},
        index::workspace::{ESTIMATE_WARPS, LEAST_PART, MOST_PARTS, PART_STEP, WINDOW},
        kv::{KvTensor, PageTable},
        meta::ParameterKind::{F32, Pointer, U32, U64},
    },
    tile::{
        copy::{RowSource, RowView, TileCopy},
        fragment::{Accumulator, chunks_first, column, rows_first},
        layout::{TileCursor, TileLayout},
        pipeline::CopyRing,
    },
};

/// Keys of one turn: the rows of a left factor.
pub(super) const STEP: u32 = 16;
/// Keys that are brought in together, of all parts.
const STAGE: u32 = 128;
/// Stages: one is read while two come in.
const STAGES: u32 = 3;

/// What a warp computes.
pub(super) struct Window {
    dtype: MmaType,
    head_dim: u32,
    /// Heads of the block, and parts of the sequence.
    pub(super) heads: u32,
    pub(super) parts: u32,
    layout: TileLayout,
    copy: TileCopy,
    keys: RowSource,
    table: Option<PageTable>,
    pub(super) kv_len: R32,
    ring: CopyRing,
    /// First stage, and where in it this warp's matrices are as its lanes load them.
    pub(super) stages: R32,
    matrices: TileCursor,
    /// Right factors: of 16 queries, 16 elements.
    queries: Vec<Vec<[R32; 4]>>,
    /// Scale of scores in base 2.
    scale: RF,
    /// Queries that there are.
    rows: R32,
    /// First key of the block's first part, and keys of each part.
    block_first: R32,
    part_keys: R32,
    /// This warp's part: its first key, and past its last one that exists.
    pub(super) first: R32,
    end: R32,
    pub(super) lane: R32,
    /// Twice the lane's place in its quad: the first query of each eight whose scores it has.
    column: R32,
    /// This warp's head among those of the launch, whether it is one, which of the block's it is, and the warp among those of it.
    pub(super) slot: R32,
    pub(super) exists: RP,
    pub(super) own_head: R32,
    pub(super) own_part: R32,
    pub(super) batch: R32,
    /// Blocks that this sequence has.
    pub(super) blocks: R32,
    /// The statistics of this head's first block.
    pub(super) statistics: R64,
}

impl Window {
    pub(super) fn new(k: &mut Builder, spec: &EstimateSpec) -> Window {
        let [q, keys]: [R64; 2] = ["q", "k"].map(|name| k.parameter(name, Pointer));
        let [q_batch, q_row, q_head]: [R64; 3] = ["q_batch", "q_row", "q_head"].map(|name| k.parameter(name, U64));
        let keys = KvTensor::at(k, spec.kv, "k", keys);
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let scale: RF = k.parameter("scale", F32);
        let status: R64 = k.parameter("status", Pointer);
        let slots: R32 = k.parameter("slots", U32);
        let sets: R64 = k.parameter("sets", Pointer);
        let statistics: R64 = k.parameter("statistics", Pointer);
        let table = PageTable::declare(k, spec.kv, status);
        debug_assert_eq!(spec.arch, Arch::Sm80);

        k.comment("which part of which sequence");
        let parts = ESTIMATE_WARPS / spec.heads;
        let (block, set, batch) = (k.block_x(), k.block_y(), k.block_z());
        let query = q_bounds.sequence(k, batch, status);
        let key = kv_bounds.sequence(k, batch, status);
        let kv_len = key.length;
        let part_keys = part_keys(k, kv_len);
        let block_keys = k.mul(part_keys, parts);
        let block_first = k.mul(block, block_keys);
        let beyond = k.ge_u(block_first, kv_len);
        k.when(beyond, |k| k.ret());
        let blocks = k.add(kv_len, block_keys);
        let blocks = k.sub(blocks, 1u32);
        let blocks = k.div_u(blocks, block_keys);
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let own_head = k.shr_u(warp, parts.ilog2());
        let own_part = k.and(warp, parts - 1);
        let first = k.mad(own_part, part_keys, block_first);
        let end = k.add(first, part_keys);
        let end = k.min_u(end, kv_len);

        k.comment("which head");
        let slot_of = |k: &mut Builder, head: R32| {
            let place = k.mad(set, spec.heads, head);
            let slot = k.mov(place);
            let given = k.ne(sets, 0u64);
            k.if_then(given, |k| {
                let at = k.mad_wide(place, 4u32, sets);
                let listed: R32 = k.load_readonly(at, 0);
                k.set(slot, listed);
            });
            slot
        };
        let slot = slot_of(k, own_head);
        let exists = k.lt_u(slot, slots);
        let known = k.select(exists, slot, 0u32);
        let (head, own_kv) = heads.pair(k, known, &query, status);
        let kv_head = if spec.heads == 1 {
            own_kv
        } else {
            // The keys of the set's first head are there for all.
            let zero = k.mov(0u32);
            let leader = slot_of(k, zero);
            let leads = k.lt_u(leader, slots);
            let leader = k.select(leads, leader, 0u32);
            let unused = Sequence { first: k.mov(0u32), length: k.mov(0u32) };
            let (_, kv_head) = heads.pair(k, leader, &unused, status);
            let other = k.ne(kv_head, own_kv);
            let other = k.and_p(other, exists);
            k.if_then(other, |k| {
                report(k, status, status::INDEX);
                k.set(query.length, 0u32);
            });
            kv_head
        };
        let absent = k.not_p(exists);
        k.when(absent, |k| k.set(query.length, 0u32));

        let q = address(k, q, [(batch, q_batch), (query.first, q_row), (head, q_head)]);
        let keys = keys.rows(k, table, batch, kv_head, key.first);
        let pair = k.mad(batch, slots, known);
        let of_head = k.grid_x();
        let before = k.mul_wide(pair, of_head);
        let statistics = k.mad(before, u64::from(WINDOW * 8), statistics);
        let rows = k.min_u(query.length, kv_len);
        let rows = k.min_u(rows, WINDOW);

        k.comment("queries, the last one first");
        let layout = TileLayout::new(STAGE, spec.head_dim);
        let own_layout = TileLayout::new(WINDOW, spec.head_dim);
        debug_assert!(spec.heads * own_layout.bytes() <= STAGES * layout.bytes());
        let ring = CopyRing::new(k, layout.bytes(), STAGES);
        let stages = k.shared_address(ring.region());
        let own_queries = k.mad(own_head, own_layout.bytes(), stages);
        let threads = 32 * parts;
        let own_thread = k.and(thread, threads - 1);
        let copy = TileCopy::new(k, own_layout, threads, own_thread);
        let bound = k.max_u(query.length, 1u32);
        let view = copy.own_chunk(k, RowView { base: q, stride: q_row });
        let target = copy.target(k, own_queries);
        let row = copy.row(k);
        let last = k.sub(query.length, 1u32);
        let last = k.sub(last, row);
        copy.copy_rows(k, target, view, bound, |k, below| k.sub(last, below));
        k.commit_copies();
        k.wait_copies(0);
        k.barrier();
        let (row, chunk) = chunks_first(k, lane);
        let offset = own_layout.lane_offset(k, row, chunk);
        let matrices = k.add(own_queries, offset);
        let matrices = own_layout.cursor(k, matrices, 2);
        let sixteen = |k: &mut Builder, first: u32| {
            let steps = (0..spec.head_dim / 16).map(|step| {
                let (at, offset) = matrices.at(first, 2 * step);
                k.load_matrices(at, offset, false)
            });
            steps.collect()
        };
        let queries = (0..WINDOW).step_by(16).map(|first| sixteen(k, first)).collect();
        k.barrier();

        let copy = TileCopy::new(k, layout, THREADS, thread);
        let (row, chunk) = rows_first(k, lane);
        let offset = layout.lane_offset(k, row, chunk);
        let offset = k.mad(own_part, STAGE / parts * layout.row_bytes, offset);
        let matrices = k.add(stages, offset);
        let place = k.and(lane, 3u32);
        Window {
            dtype: spec.dtype,
            head_dim: spec.head_dim,
            heads: spec.heads,
            parts,
            layout,
            keys: copy.own_chunk(k, keys),
            table,
            copy,
            kv_len,
            ring,
            stages,
            matrices: layout.cursor(k, matrices, 2),
            queries,
            scale: k.mul_f(scale, std::f32::consts::LOG2_E),
            rows,
            block_first,
            part_keys,
            first,
            end,
            lane,
            column: k.shl(place, 1u32),
            slot,
            exists,
            own_head,
            own_part,
            batch,
            blocks,
            statistics,
        }
    }

    /// Query of element `i` of a row of scores.
    pub(super) fn query(&self, k: &mut Builder, i: usize) -> R32 {
        k.add(self.column, column(i))
    }

    /// Goes through this warp's part from `before` keys before it on, 16 keys at a time, and calls `turn` with the first one,
    /// signed. `before` is a multiple of the keys that each part has of a stage.
    pub(super) fn walk(&self, k: &mut Builder, before: u32, turn: impl Fn(&mut Builder, R32, &TileCursor)) {
        let own_keys = STAGE / self.parts;
        let all = k.add(self.part_keys, before);
        let turns = k.shr_u(all, own_keys.ilog2());
        let block_first = k.sub(self.block_first, before);
        let own_row = self.copy.row(k);
        let target = self.copy.target(k, self.stages);
        // The part and the key in it of this thread's rows.
        let row_part = k.shr_u(own_row, own_keys.ilog2());
        let row_part = k.mul(row_part, self.part_keys);
        let own_row = k.and(own_row, own_keys - 1);
        let own_row = k.add(own_row, row_part);
        let own_row = k.add(own_row, block_first);
        let fetch = |k: &mut Builder, turn: R32, offset: R32| {
            let target = k.add(target, offset);
            let first = k.mad(turn, own_keys, own_row);
            let keys = self.table.map_or(self.keys, |table| table.again(k, self.keys));
            self.copy.copy_rows(k, target, keys, self.kv_len, |k, below| {
                let row = k.add(first, below % own_keys);
                k.mad(self.part_keys, below / own_keys, row)
            });
        };
        let first = k.sub(self.first, before);
        // A part has at least as many keys as all stages hold of it.
        const { assert!(LEAST_PART >= STAGES * STAGE / 2) };
        self.ring.run(k, turns, fetch, |k, now, stage, copies| {
            copies(k);
            let stage_first = k.mad(now, own_keys, first);
            let step = |k: &mut Builder, key: R32, offset: R32| {
                let there = k.lt_s(key, self.end);
                let there = k.and_p(there, self.exists);
                k.if_then(there, |k| {
                    let matrices = self.matrices.moved(k, offset);
                    turn(k, key, &matrices);
                });
            };
            if own_keys == STEP {
                return step(k, stage_first, stage);
            }
            k.for_loop(0u32, own_keys / STEP, 1, |k, own| {
                let key = k.mad(own, STEP, stage_first);
                let offset = k.mad(own, STEP * self.layout.row_bytes, stage);
                step(k, key, offset);
            });
        });
    }

    /// Products of 16 keys and all queries.
    pub(super) fn products(&self, k: &mut Builder, matrices: &TileCursor) -> Accumulator {
        let products = Accumulator::new(k, 1, WINDOW);
        products.clear(k);
        for step in 0..self.head_dim / 16 {
            let (at, offset) = matrices.at(0, 2 * step);
            let keys = k.load_matrices(at, offset, false);
            for (queries, first) in self.queries.iter().zip((0..).step_by(16)) {
                products.multiply(k, self.dtype, &[keys], queries[step as usize], first);
            }
        }
        products
    }

    /// The scaled product less `subtracted`, in base 2.
    pub(super) fn score(&self, k: &mut Builder, product: RF, subtracted: RF) -> RF {
        let subtracted = k.neg_f(subtracted);
        k.fma(product, self.scale, subtracted)
    }

    /// Whether all queries see all of the 16 keys from `first` on, and there are as many queries as can be.
    pub(super) fn all_visible(&self, k: &mut Builder, first: R32) -> RP {
        let full = k.eq(self.rows, WINDOW);
        let inside = k.ge_s(first, 0u32);
        let after = k.add(first, STEP + WINDOW - 1);
        let seen = k.le_s(after, self.kv_len);
        let all = k.and_p(full, inside);
        let all = k.and_p(all, seen);
        k.all(all)
    }

    /// `value` where query `i` sees the key in row `row` of the 16 from `first` on; `other` where it does not, or does not exist.
    pub(super) fn if_visible(&self, k: &mut Builder, first: R32, row: usize, i: usize, value: RF, other: f32) -> RF {
        let group = k.shr_u(self.lane, 2u32);
        let key = k.add(first, group);
        let key = k.add(key, 8 * row as u32);
        let query = self.query(k, i);
        let exists = k.lt_u(query, self.rows);
        let d = k.add(key, query);
        let before = k.lt_s(d, self.kv_len);
        let inside = k.ge_s(key, 0u32);
        let visible = k.and_p(before, inside);
        let visible = k.and_p(visible, exists);
        k.select(visible, value, other)
    }
}

/// Keys of a part: see [`crate::kernels::index::workspace`].
fn part_keys(k: &mut Builder, kv_len: R32) -> R32 {
    let share = k.add(kv_len, MOST_PARTS - 1);
    let share = k.shr_u(share, MOST_PARTS.ilog2());
    let share = k.add(share, PART_STEP - 1);
    let share = k.and(share, !(PART_STEP - 1));
    k.max_u(share, LEAST_PART)
}
