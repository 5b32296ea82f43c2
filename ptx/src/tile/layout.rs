//! Tiles of 16-bit rows in shared memory.
//!
//! A row is cut in chunks of 16 bytes. Shared memory serves 128 bytes at once, so eight chunks that are read together
//! (one column of eight rows: `ldmatrix`) must differ in their place modulo 128. Where a row is a multiple of 128 bytes
//! (64 or 128 elements) chunk c of row r lies at `c ^ (r & 7)`. A row of 192 bytes (96 elements) is 64 modulo 128, so
//! neighbours already differ in one bit of three and `c ^ (r >> 1 & 3)` gives the other two: no padding.
//!
//! Bulk copies and `wgmma` know rows of 128 or 64 bytes only, in the same two swizzles. A wider tile is cut into slabs of
//! such columns, one after the other.

use crate::isa::{Builder, R32};

/// Bytes of a chunk: what one lane copies, and one row of an 8×8 matrix.
pub const CHUNK: u32 = 16;

/// Shape and swizzle of a tile. Its place in shared memory is a multiple of 128 bytes; of slabs, of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLayout {
    /// Rows.
    pub rows: u32,
    /// Bytes from a row to the next; a multiple of 64.
    pub row_bytes: u32,
    /// Slabs of columns; one unless bulk copies fill the tile.
    pub slabs: u32,
}

impl TileLayout {
    /// A tile of `rows` rows of `elements` 16-bit elements; `elements` is a multiple of 32.
    pub const fn new(rows: u32, elements: u32) -> TileLayout {
        TileLayout { rows, row_bytes: 2 * elements, slabs: 1 }
    }

    /// The same in slabs of 64 columns, or of 32 where 64 do not divide the elements.
    pub const fn in_slabs(rows: u32, elements: u32) -> TileLayout {
        let columns = if elements.is_multiple_of(64) { 64 } else { 32 };
        TileLayout { rows, row_bytes: 2 * columns, slabs: elements / columns }
    }

    /// Elements of a row of a slab.
    pub const fn slab_columns(self) -> u32 {
        self.row_bytes / 2
    }

    /// Bytes of a slab.
    pub const fn slab_bytes(self) -> u32 {
        self.rows * self.row_bytes
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u32 {
        self.slabs * self.slab_bytes()
    }

    /// Chunks that the swizzle permutes among themselves, and by how much the row index is shifted for it.
    const fn swizzle(self) -> (u32, u32) {
        if self.row_bytes.is_multiple_of(128) { (8, 0) } else { (4, 1) }
    }

    /// Consecutive chunks that one row of lanes copies: they stay together under the swizzle.
    pub const fn chunk_group(self) -> u32 {
        self.swizzle().0
    }

    /// Where the groups of a row's chunks lie: in the tile relative to the first, and along the row in global memory.
    pub fn groups(self) -> impl Iterator<Item = (i64, i64)> {
        let bytes = self.chunk_group() * CHUNK;
        let in_slab = self.row_bytes / bytes;
        (0..self.slabs * in_slab).map(move |group| {
            let shared = group / in_slab * self.slab_bytes() + group % in_slab * bytes;
            (i64::from(shared), i64::from(group * bytes))
        })
    }

    /// Byte offset of a chunk.
    pub const fn offset(self, row: u32, chunk: u32) -> u32 {
        let (group, shift) = self.swizzle();
        let (slab, chunk) = (chunk / (self.row_bytes / CHUNK), chunk % (self.row_bytes / CHUNK));
        slab * self.slab_bytes() + row * self.row_bytes + (chunk ^ (row >> shift & (group - 1))) * CHUNK
    }

    /// Byte offset of a chunk of the first slab whose place only the running thread knows.
    pub fn lane_offset(self, k: &mut Builder, row: R32, chunk: R32) -> R32 {
        let (group, shift) = self.swizzle();
        let shifted = k.shr_u(row, shift);
        let twist = k.and(shifted, group - 1);
        let chunk = k.xor(chunk, twist);
        let column = k.shl(chunk, CHUNK.ilog2());
        k.mad(row, self.row_bytes, column)
    }

    /// Addresses of the chunks at constant distances from `base`, the address of a chunk that this lane looks at.
    ///
    /// The swizzle depends on the row modulo 8 only, and the low bits of a distance meet the lane's own chunk by xor: a
    /// few registers and immediates reach every chunk of the tile.
    pub fn cursor(self, k: &mut Builder, base: R32, stride: u32) -> TileCursor {
        let (group, _) = self.swizzle();
        let registers = (0..group / stride).map(|i| if i == 0 { base } else { k.xor(base, i * stride * CHUNK) });
        TileCursor { layout: self, stride, registers: registers.collect() }
    }
}

/// Addresses at constant distances from one lane's chunk: see [`TileLayout::cursor`].
#[derive(Clone, Debug)]
pub struct TileCursor {
    layout: TileLayout,
    stride: u32,
    registers: Vec<R32>,
}

impl TileCursor {
    /// The same `offset` bytes further on, a multiple of eight rows.
    pub fn moved(&self, k: &mut Builder, offset: R32) -> TileCursor {
        let registers = self.registers.iter().map(|&register| k.add(register, offset)).collect();
        TileCursor { registers, ..self.clone() }
    }

    /// Register and immediate for the chunk `rows` (a multiple of 8) down and `chunks` (a multiple of the stride) on.
    pub fn at(&self, rows: u32, chunks: u32) -> (R32, i64) {
        let (group, _) = self.layout.swizzle();
        let register = self.registers[(chunks % group / self.stride) as usize];
        let groups = chunks / group * group;
        (register, i64::from(self.layout.offset(0, groups) + rows * self.layout.row_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELEMENTS: [u32; 3] = [64, 96, 128];

    #[test]
    fn every_chunk_has_its_own_place() {
        let tiles =
            ELEMENTS.into_iter().flat_map(|n| [TileLayout::new(32, n), TileLayout::in_slabs(32, n)].map(|t| (n, t)));
        for (elements, tile) in tiles {
            assert_eq!(tile.bytes(), 64 * elements);
            let mut places: Vec<u32> =
                (0..32).flat_map(|r| (0..elements / 8).map(move |c| tile.offset(r, c))).collect();
            places.sort_unstable();
            assert!(places.iter().enumerate().all(|(i, &p)| p == i as u32 * CHUNK), "{elements}");
        }
    }

    #[test]
    fn eight_rows_of_a_chunk_and_eight_chunks_of_a_row_lie_in_different_banks() {
        let distinct = |places: Vec<u32>| {
            let mut banks: Vec<u32> = places.iter().map(|p| p % 128).collect();
            banks.sort_unstable();
            banks.dedup();
            banks.len() == 8
        };
        for elements in ELEMENTS {
            let tile = TileLayout::new(64, elements);
            for chunk in 0..elements / 8 {
                for row in (0..64).step_by(8) {
                    assert!(distinct((row..row + 8).map(|r| tile.offset(r, chunk)).collect()), "{elements}");
                }
            }
            let group = tile.chunk_group();
            for row in (0..64).step_by(8 / group as usize) {
                let lanes = (0..8).map(|lane| tile.offset(row + lane / group, lane % group));
                assert!(distinct(lanes.collect()), "{elements}");
            }
        }
    }

    #[test]
    fn distances_are_an_xor_and_an_immediate() {
        let tiles =
            ELEMENTS.into_iter().flat_map(|n| [TileLayout::new(64, n), TileLayout::in_slabs(64, n)].map(|t| (n, t)));
        for (elements, tile) in tiles {
            let (group, _) = tile.swizzle();
            for (row, chunk) in (0..16).flat_map(|r| (0..2).map(move |c| (r, c))) {
                for step in (0..elements / 8).step_by(2) {
                    let low = tile.offset(row, chunk) ^ (step % group * CHUNK);
                    let groups = tile.offset(0, step / group * group);
                    assert_eq!(tile.offset(row + 16, chunk + step), low + 16 * tile.row_bytes + groups);
                }
            }
        }
    }
}
