//! The steps of all tiles in one line, and the piece of it that each block takes.

use super::{LinearSpec, Problem};
use crate::isa::{Builder, R32, RP};

/// The line. Pieces differ by one step at most, the longer ones first.
#[derive(Clone, Copy)]
pub(super) struct Line {
    /// Steps of a tile.
    pub(super) steps: R32,
    /// Steps of a shorter piece.
    short: R32,
    /// Longer pieces.
    longer: R32,
}

/// A block's piece: where it begins, and how many steps it has.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    tile: R32,
    step: R32,
    pub(super) count: R32,
}

/// A place that moves along a piece.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Tile.
    pub(super) tile: R32,
    /// Step of it.
    pub(super) step: R32,
    /// The step at which the piece came into the tile.
    pub(super) entered: R32,
}

impl Line {
    pub(super) fn new(k: &mut Builder, spec: &LinearSpec, problem: &Problem) -> Line {
        k.comment("line");
        let pieces_of = |k: &mut Builder, count: R32, size: u32| {
            let whole = k.add(count, size - 1);
            k.shr_u(whole, size.ilog2())
        };
        let steps = pieces_of(k, problem.inputs, spec.depth());
        let tiles = pieces_of(k, problem.outputs, spec.tile_outputs());
        let all = k.mul(steps, tiles);
        let short = k.div_u(all, spec.blocks);
        let shared = k.mul(short, spec.blocks);
        Line { steps, short, longer: k.sub(all, shared) }
    }

    /// Where on the line a block's piece begins.
    pub(super) fn start(&self, k: &mut Builder, block: R32) -> R32 {
        let more = k.min_u(block, self.longer);
        k.mad(block, self.short, more)
    }

    /// The block whose piece holds this place of the line.
    pub(super) fn block_at(&self, k: &mut Builder, place: R32) -> R32 {
        let long = k.add(self.short, 1u32);
        let boundary = k.mul(self.longer, long);
        let in_longer = k.lt_u(place, boundary);
        let before = k.select(in_longer, 0u32, self.longer);
        let from = k.select(in_longer, 0u32, boundary);
        // No place lies in a piece without steps.
        let size = k.select(in_longer, long, self.short);
        let within = k.sub(place, from);
        let further = k.div_u(within, size);
        k.add(before, further)
    }

    /// This block's piece.
    pub(super) fn own(&self, k: &mut Builder) -> Piece {
        let block = k.block_x();
        let start = self.start(k, block);
        let next = k.add(block, 1u32);
        let end = self.start(k, next);
        let tile = k.div_u(start, self.steps);
        let before = k.mul(tile, self.steps);
        Piece { tile, step: k.sub(start, before), count: k.sub(end, start) }
    }
}

impl Place {
    /// The beginning of a piece.
    pub(super) fn at(k: &mut Builder, piece: Piece) -> Place {
        Place { tile: k.mov(piece.tile), step: k.mov(piece.step), entered: k.mov(piece.step) }
    }

    /// The same place, moved on by itself.
    pub(super) fn copied(self, k: &mut Builder) -> Place {
        Place { tile: k.mov(self.tile), step: k.mov(self.step), entered: k.mov(self.entered) }
    }

    /// The next step; whether the tile has ended before it.
    pub(super) fn advance(self, k: &mut Builder, steps: R32) -> RP {
        let next = k.add(self.step, 1u32);
        k.set(self.step, next);
        k.eq(next, steps)
    }

    /// The first step of the next tile.
    pub(super) fn enter_next(self, k: &mut Builder) {
        let next = k.add(self.tile, 1u32);
        k.set(self.tile, next);
        k.set(self.step, 0u32);
        k.set(self.entered, 0u32);
    }
}

impl Piece {
    /// Its first tile.
    pub(super) fn first_tile(&self) -> R32 {
        self.tile
    }
}
