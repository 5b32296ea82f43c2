//! Sizes of the buffers that pass from one index kernel to the next.
//!
//! At 1M tokens, batch 1 and 32 query heads, the estimate takes 256 MiB of scores and at most 2 MiB of statistics; the pooled keys
//! of 8 KV heads of 128 take 64 MiB at 64 keys a block. Antidiagonal sums are kept for a slice of row blocks at a time: one
//! tile of 128 cells takes 160 MiB there at stride 16 and 128 keys a block, 320 MiB at stride 8 and 64.

use crate::isa::Arch;

/// Queries of the estimate, at most: the last ones of each sequence.
pub const WINDOW: u32 = 64;
/// How a text of the estimate shares out a sequence.
#[derive(Clone, Copy)]
pub(super) struct EstimateParts {
    /// Warps of a block that compute: those of one head have a part of the keys each.
    pub(super) warps: u32,
    /// There are at most this many parts …
    pub(super) most: u32,
    /// … of at least so many keys.
    pub(super) least_keys: u32,
}

/// A part is a multiple of these keys.
pub(super) const PART_STEP: u32 = 64;

impl EstimateParts {
    pub(super) const fn of(arch: Arch) -> EstimateParts {
        match arch {
            Arch::Sm80 => EstimateParts { warps: 8, most: 256, least_keys: 256 },
            Arch::Sm90a => EstimateParts { warps: 16, most: 64, least_keys: 128 },
        }
    }

    /// Parts of a block with `heads` heads.
    pub(super) const fn of_block(self, heads: u32) -> u32 {
        self.warps / heads
    }
}

/// Blocks in which the text of an architecture estimates any sequence of up to `max_kv` keys, with `heads` heads a block: the
/// first grid dimension of both passes.
pub const fn estimate_blocks(arch: Arch, max_kv: u32, heads: u32) -> u32 {
    let shares = EstimateParts::of(arch);
    let parts = max_kv.div_ceil(shares.least_keys);
    let parts = if parts == 0 {
        1
    } else if parts < shares.most {
        parts
    } else {
        shares.most
    };
    parts.div_ceil(shares.of_block(heads))
}

/// Bytes of the row statistics, `f32[batch][slots][blocks][WINDOW][2]`: (maximum in base 2, denominator). `heads` are those of
/// a block, `slots` those of the launch.
pub const fn statistics_bytes(arch: Arch, batch: u32, slots: u32, max_kv: u32, heads: u32) -> u64 {
    batch as u64 * slots as u64 * estimate_blocks(arch, max_kv, heads) as u64 * (WINDOW as u64 * 8)
}

/// Bytes of one head's scores of columns or slashes: f32 by key, up to a multiple of 4.
pub const fn score_row_bytes(max_kv: u32) -> u64 {
    max_kv.next_multiple_of(4) as u64 * 4
}

/// Bytes of one array of scores, `[batch][slots]` of [`score_row_bytes`]; the estimate writes two, of columns and of slashes.
pub const fn scores_bytes(batch: u32, slots: u32, max_kv: u32) -> u64 {
    batch as u64 * slots as u64 * score_row_bytes(max_kv)
}

/// Entries that hold any list of offsets of a head whose blocks have `block` keys: they lie at least `block` apart, the last
/// less than `block` past the last key.
pub const fn offset_capacity(max_kv: u32, block: u32) -> u32 {
    max_kv.div_ceil(block) + 1
}

/// Bytes of the pooled keys, `f32[batch][kv_heads][blocks of max_kv][head_dim]`.
pub const fn key_means_bytes(batch: u32, kv_heads: u32, max_kv: u32, block: u32, head_dim: u32) -> u64 {
    batch as u64 * kv_heads as u64 * max_kv.div_ceil(block) as u64 * (head_dim as u64 * 4)
}

/// Cells of queries and of keys of a tile of antidiagonal sums.
pub(super) const QUERY_CELLS: u32 = 128;
pub(super) const KEY_CELLS: u32 = 256;
/// Cells of keys that share a maximum.
pub(super) const CELL_CHUNK: u32 = 64;
/// Tiles of keys whose blocks follow one another in the grid.
pub(super) const KEY_STRIP: u32 = 8;

/// Query rows of a tile of antidiagonal sums: slices are whole tiles.
pub const fn antidiagonal_rows(stride: u32) -> u32 {
    QUERY_CELLS * stride
}

/// Chunks of 64 cells of keys.
pub const fn antidiagonal_chunks(max_kv: u32, stride: u32) -> u32 {
    max_kv.div_ceil(CELL_CHUNK * stride)
}

/// Most tiles of queries of a slice: the `sm_90a` text has a lane for each.
pub const ANTIDIAGONAL_TILES: u32 = 32;

/// Most tiles, of queries by keys, that a sequence has in a slice of `tiles` tiles of queries: more blocks of the `sm_90a` text
/// of [`AntidiagonalSumsSpec`](super::AntidiagonalSumsSpec) would have nothing to do.
pub const fn antidiagonal_blocks(heads: u32, tiles: u32, max_kv: u32, stride: u32) -> u64 {
    heads as u64 * tiles as u64 * max_kv.div_ceil(KEY_CELLS * stride) as u64
}

/// Grid of the `sm_80` text of [`AntidiagonalSumsSpec`](super::AntidiagonalSumsSpec) for a slice of `tiles` tiles of queries.
pub const fn antidiagonal_grid(batch: u32, heads: u32, tiles: u32, max_kv: u32, stride: u32) -> [u32; 3] {
    let key_tiles = max_kv.div_ceil(KEY_CELLS * stride);
    let strips = if key_tiles == 0 { 1 } else { key_tiles.div_ceil(KEY_STRIP) };
    let width = if key_tiles == 0 {
        1
    } else if key_tiles < KEY_STRIP {
        key_tiles
    } else {
        KEY_STRIP
    };
    [tiles * width, heads, batch * strips]
}

/// Bytes of the statistics of a slice, `f32[batch][heads][128 · tiles][chunks][2]`.
pub const fn antidiagonal_statistics_bytes(batch: u32, heads: u32, tiles: u32, max_kv: u32, stride: u32) -> u64 {
    let rows = batch as u64 * heads as u64 * tiles as u64 * QUERY_CELLS as u64;
    rows * antidiagonal_chunks(max_kv, stride) as u64 * 8
}

/// Bytes of the blocks' sums of a slice, `f32[batch][heads][128 · tiles][chunks · blocks of a chunk]`.
pub const fn antidiagonal_sums_bytes(batch: u32, heads: u32, tiles: u32, max_kv: u32, stride: u32, block: u32) -> u64 {
    let chunk_blocks = (CELL_CHUNK * stride / block) as u64;
    antidiagonal_statistics_bytes(batch, heads, tiles, max_kv, stride) / 2 * chunk_blocks
}
