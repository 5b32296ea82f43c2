//! How the keys of a sequence are shared out among blocks, and where each leaves its part (FlashDecoding).
//!
//! A kernel of [`Partition::Keys`](super::Partition::Keys) packs the query heads that share keys: row r of a KV head is query row
//! `r / heads` of the head `r % heads` among them, so that keys and values come once for all of them. The key blocks that the
//! rows visit, dense or listed, are cut in parts of equal length, the last one shorter. Each (row block, part) has a place along
//! x, row blocks in turn, so that those that run side by side read the same keys. A part leaves rows as if it were all, in f32,
//! and their LSE; where there is one part, it is all.
//!
//! The number of parts follows from the lengths of the sequence alone, never from the batch or the GPU: as many as are at
//! least `least_blocks` long, and no more than `most_places` places have room for.

use super::tiling::Tiling;
use crate::{
    isa::{Builder, R32, R64, RP},
    kernels::meta::ParameterKind::{Pointer, U32},
};

/// Most parts of a sequence's keys: each lane of a warp merges the weight of one.
pub const MAX_PARTS: u32 = 32;
/// Words of a note for the kernel that merges: parts, rows (query rows times heads), the first packed query row, row blocks.
pub const NOTE_WORDS: u32 = 4;

/// The launch parameters of the parts.
///
/// `least_blocks most_places` are the rule: `most_places` is at most [`MAX_PARTS`]. The memory between the two kernels:
/// `notes` u32 `[batch, KV heads, NOTE_WORDS]`; `part_out` f32 `[batch, KV heads, grid x, rows of a block, head_dim]` and
/// `part_lse` f32 `[batch, KV heads, grid x, rows of a block]`. Null `notes` where no sequence has a second part: the others
/// are not touched then.
pub(super) struct SplitParameters {
    least_blocks: R32,
    most_places: R32,
    memory: PartMemory,
}

/// The memory between the kernel that computes parts and the one that merges them.
#[derive(Clone, Copy)]
pub(super) struct PartMemory {
    pub(super) notes: R64,
    pub(super) out: R64,
    pub(super) lse: R64,
}

impl PartMemory {
    pub(super) fn declare(k: &mut Builder) -> PartMemory {
        let [notes, out, lse] = ["notes", "part_out", "part_lse"].map(|name| k.parameter(name, Pointer));
        PartMemory { notes, out, lse }
    }

    /// Address of the note of KV head `head` of sequence `batch`. KV heads lie along y.
    pub(super) fn note(self, k: &mut Builder, batch: R32, head: R32) -> R64 {
        let entry = Self::entry(k, batch, head);
        k.mad_wide(entry, 4 * NOTE_WORDS, self.notes)
    }

    /// Addresses of row `row`'s output and LSE at the place `place` of `places`.
    pub(super) fn row(
        self,
        k: &mut Builder,
        tile: Tile,
        (batch, head): (R32, R32),
        (place, places): (R32, R32),
        row: R32,
    ) -> (R64, R64) {
        let entry = Self::entry(k, batch, head);
        let place = k.mad(entry, places, place);
        let out = k.mad_wide(place, 4 * tile.rows * tile.head_dim, self.out);
        let lse = k.mad_wide(place, 4 * tile.rows, self.lse);
        (k.mad_wide(row, 4 * tile.head_dim, out), k.mad_wide(row, 4u32, lse))
    }

    fn entry(k: &mut Builder, batch: R32, head: R32) -> R32 {
        let heads = k.grid_y();
        k.mad(batch, heads, head)
    }
}

/// Rows of a place, and elements of a row.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: u32,
    pub(super) head_dim: u32,
}

/// The part of one block.
pub(super) struct Split {
    /// Parts of the sequence's keys.
    pub(super) parts: R32,
    /// This one's blocks, counted along the walk: the first, and the one after the last.
    pub(super) first: R32,
    pub(super) end: R32,
    /// Row block.
    pub(super) row_block: R32,
    memory: PartMemory,
}

/// Where the rows of a part go.
pub(super) struct PartTarget {
    /// Whether the part is all, and goes to the output itself.
    pub(super) alone: RP,
    /// The tile's first row.
    pub(super) out: R64,
    pub(super) lse: R64,
    pub(super) head_dim: u32,
}

impl SplitParameters {
    pub(super) fn declare(k: &mut Builder) -> SplitParameters {
        let [least_blocks, most_places] = ["least_blocks", "most_places"].map(|name| k.parameter(name, U32));
        SplitParameters { least_blocks, most_places, memory: PartMemory::declare(k) }
    }

    /// The part of the block at its place along x, of `rows` rows that visit `blocks` key blocks. Notes what there is to
    /// merge, and ends the block if its place stands for no part.
    pub(super) fn split(
        &self,
        k: &mut Builder,
        tiling: Tiling,
        (batch, head): (R32, R32),
        (rows, first_q): (R32, R32),
        blocks: R32,
    ) -> Split {
        k.comment("which rows, and which part of the keys");
        let place = k.block_x();
        let padded = k.add(rows, tiling.rows - 1);
        let row_blocks = k.shr_u(padded, tiling.rows.ilog2());
        let row_blocks = k.max_u(row_blocks, 1u32);
        let (part, row_block) = divide(k, place, row_blocks);

        let wanted = quotient_up(k, blocks, self.least_blocks);
        let most = k.div_u(self.most_places, row_blocks);
        let parts = k.min_u(wanted, most);
        let parts = k.max_u(parts, 1u32);
        let length = quotient_up(k, blocks, parts);
        let length = k.max_u(length, 1u32);
        // With rounded lengths fewer may do.
        let parts = quotient_up(k, blocks, length);
        let parts = k.max_u(parts, 1u32);
        let first = k.mul(part, length);
        let end = k.add(first, length);
        let end = k.min_u(end, blocks);

        let thread = k.thread();
        let leads = k.or(thread, place);
        let leads = k.eq(leads, 0u32);
        let noted = k.ne(self.memory.notes, 0u64);
        let notes = k.and_p(leads, noted);
        k.if_then(notes, |k| {
            let at = self.memory.note(k, batch, head);
            k.store_vector(at, 0, [parts, rows, first_q, row_blocks]);
        });
        let beyond = k.ge_u(part, parts);
        let empty = k.eq(rows, 0u32);
        let none = k.or_p(beyond, empty);
        k.if_then(none, |k| k.ret());
        Split { parts, first, end, row_block, memory: self.memory }
    }
}

impl Split {
    /// Where the rows of the block go that has KV head `head` of sequence `batch`, if `parts` says that there are others.
    pub(super) fn target(&self, k: &mut Builder, tiling: Tiling, (batch, head): (R32, R32), parts: R32) -> PartTarget {
        let tile = Tile { rows: tiling.rows, head_dim: tiling.head_dim };
        let place = (k.block_x(), k.grid_x());
        let first = k.mov(0u32);
        let (out, lse) = self.memory.row(k, tile, (batch, head), place, first);
        PartTarget { alone: k.eq(parts, 1u32), out, lse, head_dim: tiling.head_dim }
    }
}

/// `a / b` and what is left.
fn divide(k: &mut Builder, a: R32, b: R32) -> (R32, R32) {
    let quotient = k.div_u(a, b);
    let whole = k.mul(quotient, b);
    (quotient, k.sub(a, whole))
}

/// `a / b`, rounded up.
fn quotient_up(k: &mut Builder, a: R32, b: R32) -> R32 {
    let less = k.sub(b, 1u32);
    let padded = k.add(a, less);
    k.div_u(padded, b)
}
