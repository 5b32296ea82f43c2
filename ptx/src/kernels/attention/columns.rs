//! Key columns of a vertical-slash index, gathered into tiles.
//!
//! A warp walks the sorted list 32 candidates at a time and keeps, in order, those that some group of the row block may
//! see and does not visit in a key block anyway, marked where they are not for a group's rows; a tile is the next N entries.
//! On sm_80 every warp does it for itself, tile by tile, into a ring of its own in shared memory, so that no barrier is
//! needed. On sm_90a one warp of the producer does it for all, as many as there is room for, while others fetch blocks.

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
    /// Address of the next candidate, and how many there are.
    list: R64,
    count: R32,
    /// Columns kept so far.
    filled: R32,
    /// The next tile begins at this kept column.
    tile: R32,
    /// The rings, whether each warp has its own, and the groups of rows for which a warp has one.
    rings: SharedRegion,
    own_rings: bool,
    views: Vec<R32>,
    /// Bytes of a ring, a power of two.
    ring_bytes: u32,
    /// Keys of a tile.
    keys: u32,
}

impl Columns {
    /// `views` are the groups of rows whose marks a warp wants, a ring for each.
    pub(super) fn new(
        k: &mut Builder,
        problem: &Problem,
        rings: SharedRegion,
        own_rings: bool,
        views: Vec<R32>,
    ) -> Columns {
        let PatternParameters::Columns { columns, columns_batch, columns_head, capacity, counts, .. } = problem.pattern
        else {
            unreachable!("only the vertical-slash pattern has columns")
        };
        k.comment("the columns: list and ring");
        let list = address(k, columns, [(problem.batch, columns_batch), (problem.slot, columns_head)]);
        let entry = k.mad(problem.batch, problem.slots, problem.slot);
        let at = k.mad_wide(entry, 4u32, counts);
        let count: R32 = k.load_readonly(at, 0);
        let most = k.min_u(capacity, problem.max_kv);
        let ring_bytes = problem.tiling.ring * 4;
        Columns {
            list: k.mov(list),
            count: {
                let count = problem.list_length(k, count, most);
                k.mov(count)
            },
            filled: k.mov(0u32),
            tile: k.mov(0u32),
            rings,
            own_rings,
            views,
            ring_bytes,
            keys: problem.tiling.keys,
        }
    }

    /// The next candidates, one a lane. They are not read ahead: a register during the products costs more.
    fn candidate(&self, k: &mut Builder) -> R32 {
        let lane = k.lane();
        let exists = k.lt_u(lane, self.count);
        let at = k.mad_wide(lane, 4u32, self.list);
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
        self.keep(k, problem, offsets, target);
        self.pad(k, target);
        k.warp_barrier();
    }

    /// Fills the ring anew, until it has no room for more candidates or no column is left: how many there are, and whether
    /// the list goes on.
    pub(super) fn refill(&self, k: &mut Builder, problem: &Problem, offsets: &Offsets) -> [R32; 2] {
        k.set(self.filled, 0u32);
        let room = k.mov(self.ring_bytes / 4 - 31);
        self.keep(k, problem, offsets, room);
        let end = k.add(self.filled, self.keys - 1);
        let end = k.and(end, !(self.keys - 1));
        self.pad(k, end);
        let left = k.ne(self.count, 0u32);
        [k.mov(self.filled), k.select(left, 1u32, 0u32)]
    }

    /// Makes the tiles those of a ring with `filled` columns, from its first on.
    pub(super) fn read(&self, k: &mut Builder, filled: R32) {
        k.set(self.filled, filled);
        k.set(self.tile, 0u32);
    }

    /// Keeps columns until there are `target`, or more from the last candidates, or until no column is left.
    fn keep(&self, k: &mut Builder, problem: &Problem, offsets: &Offsets, target: R32) {
        let end = k.add(problem.last_position, 1u32);
        let end = k.max_s(end, 0u32);
        k.while_loop(
            |k| {
                let room = k.lt_u(self.filled, target);
                let left = k.ne(self.count, 0u32);
                k.and_p(room, left)
            },
            |k| {
                let column = self.candidate(k);
                let list = k.add(self.list, 128u64);
                k.set(self.list, list);
                let passed = k.min_u(self.count, 32u32);
                let count = k.sub(self.count, passed);
                k.set(self.count, count);
                let wild = k.ge_u(column, problem.kv_len);
                let given = k.ne(column, NO_KEY);
                let wild = k.and_p(wild, given);
                k.if_then(wild, |k| problem.report(k, status::INDEX));
                // Unsigned, so that a wild entry is beyond too, and shifted by one: there may be no row with a position.
                let inside = k.lt_u(column, end);
                let visitors = offsets.visitors(k, column, inside);
                let groups = problem.tiling.groups();
                let not_needed = if groups > 1 { problem.groups_before(k, column, visitors) } else { visitors };
                let some = k.ne(not_needed, (1u32 << groups) - 1);
                let keep = k.and_p(inside, some);
                self.push(k, column, not_needed, keep, groups > 1);
                // The list ascends: nothing after the first column beyond the row block can be seen.
                let outside = k.not_p(inside);
                let beyond = k.any(outside);
                k.when(beyond, |k| k.set(self.count, 0u32));
            },
        );
    }

    /// Puts columns that do not exist after the kept ones, up to `end`, less than a tile away or none at all.
    fn pad(&self, k: &mut Builder, end: R32) {
        for part in (0..self.keys).step_by(32) {
            let lane = k.lane();
            let slot = k.add(self.filled, lane);
            let slot = k.add(slot, part);
            let empty = k.lt_u(slot, end);
            let at = self.address(k, slot);
            for view in 0..self.views.len() as u32 {
                k.when(empty, |k| k.store(at, i64::from(view * self.ring_bytes), NO_KEY));
            }
        }
    }

    /// Address of this warp's first ring. Found again at every use: a register less in the loop.
    fn ring(&self, k: &mut Builder) -> R32 {
        let first = k.shared_address(self.rings);
        if !self.own_rings {
            return first;
        }
        let thread = k.thread();
        let warp = k.shr_u(thread, 5u32);
        k.mad(warp, self.ring_bytes * self.views.len() as u32, first)
    }

    fn address(&self, k: &mut Builder, slot: R32) -> R32 {
        let bytes = k.shl(slot, 2u32);
        let wrapped = k.and(bytes, self.ring_bytes - 1);
        let ring = self.ring(k);
        k.add(ring, wrapped)
    }

    /// Whether the next tile holds a column. All lanes agree, and the vote lets `ptxas` know.
    pub(super) fn more(&self, k: &mut Builder) -> RP {
        let more = k.lt_u(self.tile, self.filled);
        k.any(more)
    }

    /// Whether `tiles` or more lie before the next one. All lanes agree.
    pub(super) fn passed(&self, k: &mut Builder, tiles: u32) -> RP {
        let passed = k.ge_u(self.tile, tiles * self.keys);
        k.any(passed)
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
