//! A shared-memory tile of half-precision rows, padded so that `ldmatrix` meets no bank conflict.
//!
//! Rows are `head_dim` elements and 16 bytes apart: eight consecutive rows then start in eight different groups of four
//! banks for every head dimension that is a multiple of 32.

use crate::isa::{Builder, R32, R64, SharedRegion};

/// Rows of half-precision elements in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct RowTile {
    address: R32,
    rows: u32,
    head_dim: u32,
}

/// Global rows that a tile is filled from.
#[derive(Clone, Copy)]
pub(crate) struct GlobalRows {
    /// Address of row 0; a multiple of 16, as the stride is.
    pub(crate) base: R64,
    /// Bytes from row to row.
    pub(crate) stride: R64,
    /// Rows that exist.
    pub(crate) count: R32,
}

impl RowTile {
    /// Bytes from row to row in shared memory.
    const fn pitch(head_dim: u32) -> u32 {
        head_dim * 2 + 16
    }

    /// Reserves a tile.
    pub(crate) fn new(k: &mut Builder, rows: u32, head_dim: u32) -> RowTile {
        let region: SharedRegion = k.shared(rows * Self::pitch(head_dim), 16);
        RowTile { address: k.shared_address(region), rows, head_dim }
    }

    /// Starts copying `rows` rows from row `first`; rows that do not exist become zeros. The caller commits and waits.
    pub(crate) fn copy(&self, k: &mut Builder, from: GlobalRows, first: R32) {
        let pieces = self.head_dim / 8;
        let thread = k.thread();
        debug_assert_eq!((self.rows * pieces) % k.threads(), 0);
        for turn in 0..self.rows * pieces / k.threads() {
            let piece = k.add(thread, turn * k.threads());
            let row = k.div_u(piece, pieces);
            let column = k.rem_u(piece, pieces);
            let source_row = k.add(first, row);
            let exists = k.lt_u(source_row, from.count);
            let bytes = k.select(exists, 16u32, 0u32);
            let source_row = k.select(exists, source_row, 0u32);
            let wide = k.widen_u(source_row);
            let source = k.mad(wide, from.stride, from.base);
            let source = k.mad_wide(column, 16u32, source);
            let target = k.mad(row, Self::pitch(self.head_dim), self.address);
            let target = k.mad(column, 16u32, target);
            k.copy_async(target, 0, source, bytes);
        }
    }

    /// The fragments of the 16 rows from `16 · warp` as left factor, one for each 16 elements of the head.
    pub(crate) fn left_fragments(&self, k: &mut Builder, warp: R32) -> Vec<[R32; 4]> {
        let lane = k.lane();
        let row = k.and(lane, 15u32);
        let row = k.mad(warp, 16u32, row);
        let half = k.shr_u(lane, 4u32);
        let address = k.mad(row, Self::pitch(self.head_dim), self.address);
        let address = k.mad(half, 16u32, address);
        (0..self.head_dim / 16).map(|step| k.load_matrices(address, i64::from(step * 32), false)).collect()
    }

    /// This lane's address for [`RowTile::right_fragments`].
    pub(crate) fn right_address(&self, k: &mut Builder) -> R32 {
        let lane = k.lane();
        let row = k.and(lane, 7u32);
        let upper = k.shr_u(lane, 4u32);
        let row = k.mad(upper, 8u32, row);
        let half = k.extract_u(lane, 3u32, 1u32);
        let address = k.mad(row, Self::pitch(self.head_dim), self.address);
        k.mad(half, 16u32, address)
    }

    /// The fragments of rows `16 · group` to `16 · group + 15` as right factor (transposed: rows become columns) at inner
    /// elements `16 · step` and on: of the first eight rows, then of the last.
    pub(crate) fn right_fragments(&self, k: &mut Builder, address: R32, group: u32, step: u32) -> [[R32; 2]; 2] {
        let offset = group * 16 * Self::pitch(self.head_dim) + step * 32;
        let [a, b, c, d] = k.load_matrices(address, i64::from(offset), false);
        [[a, b], [c, d]]
    }
}
