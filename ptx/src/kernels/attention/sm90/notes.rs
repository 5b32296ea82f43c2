//! What the producer says of a block of keys: which they are, and who needs them. Written beside each stage of the ring
//! before the stage is full, and read by the consumers before they release it.

use crate::{
    isa::{Builder, Cache, R32, RP, SharedRegion},
    kernels::attention::tiling::Tiling,
};

/// Stands for the start of a block that a tile does not have: after every query.
pub(super) const NO_BLOCK: u32 = 1 << 30;

/// Bits of a note's flags.
pub(super) mod flag {
    /// No block is left.
    pub(in super::super) const END: u32 = 1;
    /// Gathered columns.
    pub(in super::super) const COLUMNS: u32 = 2;
    /// The mask expression applies: see [`crate::kernels::attention::blocks::Blocks::partial`].
    pub(in super::super) const PARTIAL: u32 = 4;
    /// Some pair of the first consumer's rows does not count; the others' bits follow. Only a vertical-slash kernel says so.
    pub(in super::super) const MASKED: u32 = 8;
    /// The first consumer does not need the next block; the others' bits follow. Likewise.
    pub(in super::super) const SKIPS: u32 = 64;
}

const HEADER: u32 = 8;

/// The notes of all stages.
#[derive(Clone, Copy)]
pub(super) struct Notes {
    headers: SharedRegion,
    /// Flags of a block before the first: who skips that.
    before: SharedRegion,
    /// For blocks of columns: the key of each, for each consumer.
    columns: Option<SharedRegion>,
    tiling: Tiling,
}

/// One note.
#[derive(Clone, Copy)]
pub(super) struct Note {
    /// First key.
    pub(super) start: R32,
    flags: R32,
}

impl Notes {
    pub(super) fn new(k: &mut Builder, tiling: Tiling, columns: bool) -> Notes {
        let headers = k.shared(HEADER * tiling.stages(), 8);
        let before = k.shared(HEADER, 8);
        let columns = columns.then(|| k.shared(4 * tiling.keys * tiling.groups() * tiling.stages(), 16));
        Notes { headers, before, columns, tiling }
    }

    fn header(self, k: &mut Builder, stage: R32) -> R32 {
        let first = k.shared_address(self.headers);
        k.mad(stage, HEADER, first)
    }

    /// Address of a block of columns as the first consumer has it; the others' follow at [`Notes::list_bytes`].
    pub(super) fn columns(self, k: &mut Builder, stage: R32) -> Option<R32> {
        let first = k.shared_address(self.columns?);
        Some(k.mad(stage, self.list_bytes() * self.tiling.groups(), first))
    }

    /// Bytes of a list of columns.
    pub(super) fn list_bytes(self) -> u32 {
        4 * self.tiling.keys
    }

    /// Writes a note. One thread does it.
    pub(super) fn write(self, k: &mut Builder, stage: R32, start: R32, flags: R32) {
        let at = self.header(k, stage);
        k.store_vector(at, 0, [start, flags]);
    }

    /// Writes who skips the first block. One thread does it.
    pub(super) fn write_before(self, k: &mut Builder, flags: R32) {
        let at = k.shared_address(self.before);
        let start = k.mov(NO_BLOCK);
        k.store_vector(at, 0, [start, flags]);
    }

    pub(super) fn read_before(self, k: &mut Builder) -> Note {
        let at = k.shared_address(self.before);
        self.read_at(k, at)
    }

    pub(super) fn read(self, k: &mut Builder, stage: R32) -> Note {
        let at = self.header(k, stage);
        self.read_at(k, at)
    }

    fn read_at(self, k: &mut Builder, at: R32) -> Note {
        let [start, flags] = k.load_vector(at, 0, Cache::Default);
        Note { start, flags }
    }
}

impl Note {
    /// Registers for a note.
    pub(super) fn fresh(k: &mut Builder) -> Note {
        Note { start: k.fresh(), flags: k.fresh() }
    }

    /// Makes this note the same as `other`.
    pub(super) fn set_to(self, k: &mut Builder, other: Note) {
        k.set(self.start, other.start);
        k.set(self.flags, other.flags);
    }

    /// The flags of this note and of `others`.
    pub(super) fn flags_with(self, k: &mut Builder, others: impl Iterator<Item = Note>) -> R32 {
        others.fold(self.flags, |flags, other| k.or(flags, other.flags))
    }

    /// Whether a flag is set.
    pub(super) fn has(self, k: &mut Builder, flag: u32) -> RP {
        let bit = k.and(self.flags, flag);
        k.ne(bit, 0u32)
    }

    /// As [`Note::has`], for the flag of consumer `consumer`.
    pub(super) fn has_own(self, k: &mut Builder, flag: u32, consumer: R32) -> RP {
        let flags = k.shr_u(self.flags, consumer);
        let bit = k.and(flags, flag);
        k.ne(bit, 0u32)
    }

    /// A word that is not 0 where the mask expression applies.
    pub(super) fn partial(self, k: &mut Builder) -> R32 {
        k.and(self.flags, flag::PARTIAL)
    }
}
