//! What the producer says of a tile of keys: which they are. Written beside each stage of the ring before the stage is full,
//! and read by the consumers before they release it.

use super::STAGES;
use crate::{
    isa::{Builder, Cache, R32, RP, SharedRegion},
    kernels::attention::tiling::Tiling,
};

/// Stands for the start of a block that a tile does not have: after every query.
pub(super) const NO_BLOCK: u32 = 1 << 30;

const BLOCKS: u32 = 0;
const COLUMNS: u32 = 1;
const END: u32 = 2;

const HEADER: u32 = 16;

/// The notes of all stages.
#[derive(Clone, Copy)]
pub(super) struct Notes {
    headers: SharedRegion,
    /// For tiles of columns: the key of each.
    columns: Option<SharedRegion>,
    tile_keys: u32,
}

/// One note.
#[derive(Clone, Copy)]
pub(super) struct Note {
    /// First keys of the tile's one or two blocks.
    pub(super) starts: [R32; 2],
    /// Whether the mask expression applies to each: see [`crate::kernels::attention::blocks::Blocks::partial`].
    pub(super) partial: [R32; 2],
    kind: R32,
}

impl Notes {
    pub(super) fn new(k: &mut Builder, tiling: Tiling, columns: bool) -> Notes {
        let headers = k.shared(HEADER * STAGES, 16);
        let columns = columns.then(|| k.shared(4 * tiling.tile_keys * STAGES, 16));
        Notes { headers, columns, tile_keys: tiling.tile_keys }
    }

    fn header(self, k: &mut Builder, stage: R32) -> R32 {
        let first = k.shared_address(self.headers);
        k.mad(stage, HEADER, first)
    }

    /// Address of the columns of a tile of columns.
    pub(super) fn columns(self, k: &mut Builder, stage: R32) -> Option<R32> {
        let first = k.shared_address(self.columns?);
        Some(k.mad(stage, 4 * self.tile_keys, first))
    }

    fn write(self, k: &mut Builder, stage: R32, starts: [R32; 2], flags: R32) {
        let at = self.header(k, stage);
        let unused = k.mov(0u32);
        k.store_vector(at, 0, [starts[0], starts[1], flags, unused]);
    }

    /// Notes a tile of blocks. One thread does it, as the other writers.
    pub(super) fn write_blocks(self, k: &mut Builder, stage: R32, starts: [R32; 2], partial: [R32; 2]) {
        let second = k.shl(partial[1], 9u32);
        let flags = k.mad(partial[0], 256u32, second);
        let flags = k.or(flags, BLOCKS);
        self.write(k, stage, starts, flags);
    }

    /// Notes a tile of columns, which stand at [`Notes::columns`].
    pub(super) fn write_columns(self, k: &mut Builder, stage: R32) {
        let (none, kind) = (k.mov(NO_BLOCK), k.mov(COLUMNS));
        self.write(k, stage, [none; 2], kind);
    }

    /// Notes that no tile is left.
    pub(super) fn write_end(self, k: &mut Builder, stage: R32) {
        let (none, kind) = (k.mov(NO_BLOCK), k.mov(END));
        self.write(k, stage, [none; 2], kind);
    }

    pub(super) fn read(self, k: &mut Builder, stage: R32) -> Note {
        let at = self.header(k, stage);
        let [first, second, flags, _] = k.load_vector(at, 0, Cache::Default);
        Note {
            starts: [first, second],
            partial: [8u32, 9].map(|bit| k.extract_u(flags, bit, 1u32)),
            kind: k.and(flags, 3u32),
        }
    }
}

impl Note {
    /// Registers for a note.
    pub(super) fn fresh(k: &mut Builder) -> Note {
        Note { starts: k.fresh_array(), partial: k.fresh_array(), kind: k.fresh() }
    }

    /// Makes this note the same as `other`.
    pub(super) fn set_to(self, k: &mut Builder, other: Note) {
        let words = |note: Note| note.starts.into_iter().chain(note.partial).chain([note.kind]);
        words(self).zip(words(other)).for_each(|(own, value)| k.set(own, value));
    }

    /// Whether there is a tile. All lanes agree, and the vote lets `ptxas` know.
    pub(super) fn has_tile(self, k: &mut Builder) -> RP {
        let tile = k.ne(self.kind, END);
        k.any(tile)
    }

    /// Whether it is one of columns.
    pub(super) fn has_columns(self, k: &mut Builder) -> RP {
        let columns = k.eq(self.kind, COLUMNS);
        k.any(columns)
    }
}
