//! What a warp computes: which head, which part of the sequence, and which of its scores count.

use super::EstimateSpec;
use crate::{
    isa::{Builder, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, Sequence, address, report, status},
        index::workspace::{EstimateParts, PART_STEP, WINDOW},
        kv::{KvTensor, PageTable},
        meta::ParameterKind::{F32, Pointer, U32, U64},
    },
    tile::{
        copy::{RowSource, RowView, TileCopy},
        fragment::column,
    },
};

/// Keys of one turn: the rows that a warp has of a left factor.
pub(super) const STEP: u32 = 16;

/// The keys that a block reads.
pub(super) struct Keys {
    tensor: KvTensor,
    pub(super) table: Option<PageTable>,
    pub(super) head: R32,
    /// First row of the sequence, and 0 unless rows are packed.
    pub(super) first: R32,
    pub(super) starts: R64,
}

/// The queries of a warp's head.
pub(super) struct Queries {
    rows: RowView,
    length: R32,
}

impl Keys {
    pub(super) fn rows(&self, k: &mut Builder, window: &Window) -> RowSource {
        self.tensor.rows(k, self.table, window.batch, self.head, self.first)
    }
}

impl Queries {
    /// Copies the last queries to the tile at `target`, the last one first, and waits for this thread's chunks of them.
    pub(super) fn copy(&self, k: &mut Builder, copy: &TileCopy, target: R32) {
        let bound = k.max_u(self.length, 1u32);
        let view = copy.own_chunk(k, self.rows);
        let target = copy.target(k, target);
        let row = copy.row(k);
        let last = k.sub(self.length, 1u32);
        let last = k.sub(last, row);
        copy.copy_rows(k, target, view, bound, |k, below| k.sub(last, below));
        k.commit_copies();
        k.wait_copies(0);
    }
}

/// What a warp computes.
pub(super) struct Window {
    /// Heads of the block, and parts of the sequence.
    pub(super) heads: u32,
    pub(super) parts: u32,
    pub(super) kv_len: R32,
    /// Scale of scores in base 2.
    scale: RF,
    /// Queries that there are.
    rows: R32,
    /// First key of the block's first part, and keys of each part.
    pub(super) block_first: R32,
    pub(super) part_keys: R32,
    /// This warp's part: its first key, and past its last one that exists.
    pub(super) first: R32,
    pub(super) end: R32,
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
    /// Declares the parameters, and finds what warp `warp` of those that compute has. A block without keys ends.
    pub(super) fn new(k: &mut Builder, spec: &EstimateSpec, warp: R32) -> (Window, Queries, Keys) {
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

        k.comment("which part of which sequence");
        let shares = EstimateParts::of(spec.arch);
        let parts = shares.of_block(spec.heads);
        let (block, set, batch) = (k.block_x(), k.block_y(), k.block_z());
        let query = q_bounds.sequence(k, batch, status);
        let key = kv_bounds.sequence(k, batch, status);
        let kv_len = key.length;
        let part_keys = part_keys(k, shares, kv_len);
        let block_keys = k.mul(part_keys, parts);
        let block_first = k.mul(block, block_keys);
        let beyond = k.ge_u(block_first, kv_len);
        k.when(beyond, |k| k.ret());
        let blocks = k.add(kv_len, block_keys);
        let blocks = k.sub(blocks, 1u32);
        let blocks = k.div_u(blocks, block_keys);
        let lane = k.lane();
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
        let pair = k.mad(batch, slots, known);
        let of_head = k.grid_x();
        let before = k.mul_wide(pair, of_head);
        let statistics = k.mad(before, u64::from(WINDOW * 8), statistics);
        let rows = k.min_u(query.length, kv_len);
        let rows = k.min_u(rows, WINDOW);
        let place = k.and(lane, 3u32);
        let window = Window {
            heads: spec.heads,
            parts,
            kv_len,
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
        };
        let queries = Queries { rows: RowView { base: q, stride: q_row }, length: query.length };
        (window, queries, Keys { tensor: keys, table, head: kv_head, first: key.first, starts: kv_bounds.start })
    }

    /// Whether keys from `first` on, signed, are this warp's to compute.
    pub(super) fn has(&self, k: &mut Builder, first: R32) -> RP {
        let there = k.lt_s(first, self.end);
        k.and_p(there, self.exists)
    }

    /// Query of element `i` of a row of scores.
    pub(super) fn query(&self, k: &mut Builder, i: usize) -> R32 {
        k.add(self.column, column(i))
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

/// Keys of a part: see [`EstimateParts`].
fn part_keys(k: &mut Builder, shares: EstimateParts, kv_len: R32) -> R32 {
    let share = k.add(kv_len, shares.most - 1);
    let share = k.shr_u(share, shares.most.ilog2());
    let share = k.add(share, PART_STEP - 1);
    let share = k.and(share, !(PART_STEP - 1));
    k.max_u(share, shares.least_keys)
}
