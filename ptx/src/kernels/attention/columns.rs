//! Key columns of a vertical-slash index, gathered into tiles.
//!
//! Each warp walks the sorted list 32 or 64 candidates at a time and keeps, in order, those that some group of the row block may
//! see and does not visit in a key block anyway. They go to rings of its own in shared memory, so that no barrier is needed;
//! a tile is the next N entries. All warps keep the same columns, but each marks those that are not for its own rows.

use super::{
    blocks::Offsets,
    problem::{PatternParameters, Problem},
};
use crate::{
    isa::{Builder, R32, R64, RP, SharedRegion},
    kernels::batch::{address, status},
};

/// Stands in a tile for a column that does not exist: after every query. Bit 31 of an entry marks a column that a group of
/// rows does not see, or visits in a block.
const NO_KEY: u32 = i32::MAX as u32;

/// The key of an entry, which is after every query if the entry is not for these rows.
pub(super) fn key(k: &mut Builder, entry: R32) -> R32 {
    k.min_u(entry, NO_KEY)
}

/// The key of an entry, for whichever rows.
pub(super) fn unmarked(k: &mut Builder, entry: R32) -> R32 {
    k.and(entry, NO_KEY)
}

pub(super) struct Columns {
    list: R64,
    /// Entries of the list.
    count: R32,
    /// First entry of the next candidates.
    cursor: R32,
    /// Columns kept so far.
    filled: R32,
    /// The next tile begins at this kept column.
    tile: R32,
    /// Address of this warp's first ring, and the groups of rows that have one.
    ring: R32,
    views: Vec<R32>,
    /// Bytes of a ring, a power of two.
    ring_bytes: u32,
    /// Keys of a tile.
    keys: u32,
    /// Candidates looked at side by side, in warps' widths.
    batches: u32,
}

impl Columns {
    /// `views` are the groups of rows whose marks this warp wants, a ring for each.
    pub(super) fn new(k: &mut Builder, problem: &Problem, rings: SharedRegion, warp: R32, views: Vec<R32>) -> Columns {
        let PatternParameters::Columns { columns, columns_batch, columns_head, capacity, counts, .. } = problem.pattern
        else {
            unreachable!("only the vertical-slash pattern has columns")
        };
        k.comment("the columns: list and ring");
        let heads = k.grid_y();
        let list = address(k, columns, [(problem.batch, columns_batch), (problem.slot, columns_head)]);
        let entry = k.mad(problem.batch, heads, problem.slot);
        let at = k.mad_wide(entry, 4u32, counts);
        let count: R32 = k.load_readonly(at, 0);
        let most = k.min_u(capacity, problem.max_kv);
        let ring_bytes = problem.tiling.ring * 4;
        let first_ring = k.shared_address(rings);
        Columns {
            list,
            count: problem.list_length(k, count, most),
            cursor: k.mov(0u32),
            filled: k.mov(0u32),
            tile: k.mov(0u32),
            ring: k.mad(warp, ring_bytes * views.len() as u32, first_ring),
            views,
            ring_bytes,
            keys: problem.tiling.keys,
            batches: problem.tiling.column_batches(),
        }
    }

    /// Candidates from the cursor on, one a lane. They are not read ahead: a register during the products costs more.
    fn candidate(&self, k: &mut Builder, after: u32) -> R32 {
        let lane = k.lane();
        let entry = k.add(self.cursor, lane);
        let entry = k.add(entry, after);
        let exists = k.lt_u(entry, self.count);
        let at = k.mad_wide(entry, 4u32, self.list);
        let candidate = k.mov(NO_KEY);
        k.when(exists, |k| {
            let column: R32 = k.load_readonly(at, 0);
            k.set(candidate, column);
        });
        candidate
    }

    /// Puts the candidates that `keep` says into the rings.
    fn push(&self, k: &mut Builder, column: R32, not_needed: R32, keep: RP, marks: bool) {
        let kept = k.ballot(keep);
        let below = k.lanes_below();
        let before = k.and(kept, below);
        let before = k.popc(before);
        let slot = k.add(self.filled, before);
        let at = self.address(k, slot);
        for (view, &group) in self.views.iter().enumerate() {
            let mut entry = column;
            if marks {
                let here = k.shr_u(not_needed, group);
                let mark = k.shl(here, 31u32);
                entry = k.or(column, mark);
            }
            k.when(keep, |k| k.store(at, i64::from(view as u32 * self.ring_bytes), entry));
        }
        let added = k.popc(kept);
        let filled = k.add(self.filled, added);
        k.set(self.filled, filled);
    }

    /// Fills the ring up to the end of the next tile, or until no column is left.
    pub(super) fn fill(&self, k: &mut Builder, problem: &Problem, offsets: &Offsets) {
        let target = k.add(self.tile, self.keys);
        let end = k.add(problem.last_position, 1u32);
        let end = k.max_s(end, 0u32);
        k.while_loop(
            |k| {
                let room = k.lt_u(self.filled, target);
                let left = k.lt_u(self.cursor, self.count);
                k.and_p(room, left)
            },
            |k| {
                let columns: Vec<R32> = (0..self.batches).map(|batch| self.candidate(k, 32 * batch)).collect();
                let cursor = k.add(self.cursor, 32 * self.batches);
                k.set(self.cursor, cursor);
                for &column in &columns {
                    let wild = k.ge_u(column, problem.kv_len);
                    let given = k.ne(column, NO_KEY);
                    let wild = k.and_p(wild, given);
                    k.if_then(wild, |k| problem.report(k, status::INDEX));
                }
                // Unsigned, so that a wild entry is beyond too, and shifted by one: there may be no row with a position.
                let inside: Vec<RP> = columns.iter().map(|&column| k.lt_u(column, end)).collect();
                let keys: Vec<(R32, RP)> = columns.iter().copied().zip(inside.iter().copied()).collect();
                let visitors = offsets.visitors(k, &keys);
                let groups = problem.tiling.groups();
                for ((column, inside), visitors) in keys.into_iter().zip(visitors) {
                    let not_needed = if groups > 1 { problem.groups_before(k, column, visitors) } else { visitors };
                    let some = k.ne(not_needed, (1u32 << groups) - 1);
                    let keep = k.and_p(inside, some);
                    self.push(k, column, not_needed, keep, groups > 1);
                }
                // The list ascends: nothing after the first column beyond the row block can be seen.
                let all = inside.into_iter().reduce(|a, b| k.and_p(a, b)).expect("a batch at least");
                let outside = k.not_p(all);
                let beyond = k.any(outside);
                k.when(beyond, |k| k.set(self.cursor, self.count));
            },
        );
        for part in (0..self.keys).step_by(32) {
            let first = k.add(self.tile, part);
            let lane = k.lane();
            let slot = k.add(first, lane);
            let empty = k.ge_u(slot, self.filled);
            let at = self.address(k, slot);
            for view in 0..self.views.len() as u32 {
                k.when(empty, |k| k.store(at, i64::from(view * self.ring_bytes), NO_KEY));
            }
        }
        k.warp_barrier();
    }

    fn address(&self, k: &mut Builder, slot: R32) -> R32 {
        let bytes = k.shl(slot, 2u32);
        let wrapped = k.and(bytes, self.ring_bytes - 1);
        k.add(self.ring, wrapped)
    }

    /// Whether the next tile holds a column. All lanes agree, and the vote lets `ptxas` know.
    pub(super) fn more(&self, k: &mut Builder) -> RP {
        let more = k.lt_u(self.tile, self.filled);
        k.any(more)
    }

    /// Address of the next tile's entries as the first view has them; the others follow at [`Columns::ring_bytes`].
    pub(super) fn entries(&self, k: &mut Builder) -> R32 {
        self.address(k, self.tile)
    }

    /// Bytes from a view's entries to the next view's.
    pub(super) fn ring_bytes(&self) -> u32 {
        self.ring_bytes
    }

    /// Goes to the next tile.
    pub(super) fn advance(&self, k: &mut Builder) {
        let tile = k.add(self.tile, self.keys);
        k.set(self.tile, tile);
    }
}
