//! Which tiles a block takes: those of its sequence stand in a list, of which it has one, then that a grid's width further on.
//!
//! The list has the tiles at or below the diagonal and no others: strips of neighbouring tiles of keys outside, in them head by
//! head, then by the slice's tiles of queries, keys innermost. So the blocks that run at a time share most of what they read.

use super::{Own, Problem};
use crate::{
    isa::{Builder, R32, RP},
    kernels::index::workspace::{KEY_CELLS, KEY_STRIP, QUERY_CELLS},
    tile::reduce::warp_inclusive_sum_32,
};

/// The walk of one block. Each lane looks after a tile of queries of the slice.
pub(super) struct Tiles {
    slots: R32,
    /// Tiles of keys that this lane's cells see.
    seen: R32,
    /// Number of the next tile in its strip, and the strip.
    next: R32,
    strip: R32,
    /// In the strip and one head: this lane's tiles, those up to them, and all.
    own: R32,
    up_to: R32,
    all: R32,
}

/// A tile: its grid head, its place among the slice's tiles of queries, and its tile of keys.
pub(super) struct Tile {
    pub(super) slot: R32,
    pub(super) row: R32,
    pub(super) key_tile: R32,
}

impl Tiles {
    pub(super) fn new(k: &mut Builder, problem: &Problem, own: &Own) -> Tiles {
        let lane = k.lane();
        let tile = k.add(problem.first_tile, lane);
        let first = k.shl(tile, QUERY_CELLS.ilog2());
        let (exists, last) = own.cells.seen_by(k, first, QUERY_CELLS);
        let of_slice = k.lt_u(lane, own.tiles);
        let exists = k.and_p(exists, of_slice);
        // Of a last cell before the first key none: −1 >> 8 is −1.
        let last_tile = k.shr_s(last, KEY_CELLS.ilog2());
        let seen = k.add(last_tile, 1u32);
        let tiles = Tiles {
            slots: own.slots,
            seen: k.select(exists, seen, 0u32),
            next: k.block_x(),
            strip: k.mov(0u32),
            own: k.fresh(),
            up_to: k.fresh(),
            all: k.fresh(),
        };
        tiles.enter(k);
        tiles
    }

    /// Counts the tiles of the strip.
    fn enter(&self, k: &mut Builder) {
        let before = k.mul(self.strip, KEY_STRIP);
        let left = k.sub(self.seen, before);
        let left = k.max_s(left, 0u32);
        let own = k.min_s(left, KEY_STRIP);
        let up_to = warp_inclusive_sum_32(k, own);
        let all = k.shuffle_from(up_to, 31u32);
        k.set(self.own, own);
        k.set(self.up_to, up_to);
        k.set(self.all, all);
    }

    /// Whether there is a next tile. Enters its strip.
    pub(super) fn more(&self, k: &mut Builder) -> RP {
        k.while_loop(
            |k| {
                // Strips without tiles come last.
                let some = k.ne(self.all, 0u32);
                let of_strip = k.mul(self.all, self.slots);
                let beyond = k.ge_u(self.next, of_strip);
                k.and_p(some, beyond)
            },
            |k| {
                let of_strip = k.mul(self.all, self.slots);
                let next = k.sub(self.next, of_strip);
                k.set(self.next, next);
                let strip = k.add(self.strip, 1u32);
                k.set(self.strip, strip);
                self.enter(k);
            },
        );
        k.ne(self.all, 0u32)
    }

    /// The next tile.
    pub(super) fn take(&self, k: &mut Builder) -> Tile {
        let slot = k.div_u(self.next, self.all);
        let before = k.mul(slot, self.all);
        let of_head = k.sub(self.next, before);
        let passed = k.le_u(self.up_to, of_head);
        let passed = k.ballot(passed);
        let row = k.popc(passed);
        let first = k.sub(self.up_to, self.own);
        let first = k.shuffle_from(first, row);
        let along = k.sub(of_head, first);
        let blocks = k.grid_x();
        let next = k.add(self.next, blocks);
        k.set(self.next, next);
        Tile { slot, row, key_tile: k.mad(self.strip, KEY_STRIP, along) }
    }
}
