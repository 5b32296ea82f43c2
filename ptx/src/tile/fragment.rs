//! Fragments of `mma.m16n8k16`: which lane holds what.
//!
//! With g = lane / 4 and t = lane % 4, a lane's accumulators of a 16×8 tile are row g and row g + 8, each at columns 2t
//! and 2t + 1; `wgmma` splits its 64 rows over four warps in the same way. What follows the product (mask, softmax,
//! conversion to factors, epilogue) therefore sees rows of scores and no instruction.

use crate::isa::{Builder, MmaType, R32, RF};

/// The factor on the left of a product: 16 rows by 16 inner elements.
pub type Left = [R32; 4];

/// One lane's share of a tile of accumulators.
#[derive(Clone, Debug)]
pub struct Accumulator {
    /// Rows g, g + 8, g + 16, …; in each, element i stands in column `column(i)` + 2t.
    pub rows: Vec<Vec<RF>>,
}

/// Column, less 2t, of element `i` of a row.
pub const fn column(i: usize) -> u32 {
    (i / 2 * 8 + i % 2) as u32
}

impl Accumulator {
    /// Registers for `row_tiles` times 16 rows of `columns` columns, not written yet.
    pub fn new(k: &mut Builder, row_tiles: u32, columns: u32) -> Accumulator {
        let row = |k: &mut Builder| (0..columns / 4).map(|_| k.fresh()).collect();
        Accumulator { rows: (0..2 * row_tiles).map(|_| row(k)).collect() }
    }

    /// The elements of 16 rows a warp in the order of `wgmma`.
    pub fn in_warpgroup_order(&self) -> Vec<RF> {
        let [upper, lower] = [&self.rows[0], &self.rows[1]];
        upper.chunks_exact(2).zip(lower.chunks_exact(2)).flat_map(|(a, b)| [a[0], a[1], b[0], b[1]]).collect()
    }

    /// Sets every element to zero.
    pub fn clear(&self, k: &mut Builder) {
        self.rows.iter().flatten().for_each(|&element| k.set(element, 0.0));
    }

    /// Multiplies row i by `factors[i]`.
    pub fn scale_rows(&self, k: &mut Builder, factors: &[RF]) {
        for (row, &factor) in self.rows.iter().zip(factors) {
            for &element in row {
                let scaled = k.mul_f(element, factor);
                k.set(element, scaled);
            }
        }
    }

    /// `self += a · b`, where `b` is 16 inner elements by the 16 columns from `column`: two column tiles.
    pub fn multiply(&self, k: &mut Builder, kind: MmaType, a: &[Left], b: [R32; 4], column: u32) {
        for (half, b) in [[b[0], b[1]], [b[2], b[3]]].into_iter().enumerate() {
            let i = (column / 4) as usize + 2 * half;
            for (tile, &a) in a.iter().enumerate() {
                let [upper, lower] = [&self.rows[2 * tile], &self.rows[2 * tile + 1]];
                k.mma_16x8x16(kind, [upper[i], upper[i + 1], lower[i], lower[i + 1]], a, b);
            }
        }
    }

    /// Columns `column` to `column + 16`, rounded, as left factors: no lane needs what another has.
    pub fn left(&self, k: &mut Builder, kind: MmaType, column: u32) -> Vec<Left> {
        let i = (column / 4) as usize;
        let pairs = self.rows.chunks_exact(2).map(|rows| {
            let [upper, lower] = [&rows[0], &rows[1]];
            [(upper, i), (lower, i), (upper, i + 2), (lower, i + 2)].map(|(row, i)| [row[i], row[i + 1]])
        });
        let pairs: Vec<_> = pairs.collect();
        pairs.into_iter().map(|tile| tile.map(|[low, high]| k.pack_halves(kind, low, high))).collect()
    }
}

/// Row and chunk at which a lane points `ldmatrix` for a left factor, or, transposed, for a right factor stored with one
/// inner element a row: 16 rows by two chunks, rows first.
pub fn rows_first(k: &mut Builder, lane: R32) -> (R32, R32) {
    (k.and(lane, 15u32), k.shr_u(lane, 4u32))
}

/// The same for a right factor stored with one column of the product a row: 16 rows by two chunks, chunks first.
pub fn chunks_first(k: &mut Builder, lane: R32) -> (R32, R32) {
    let within = k.and(lane, 7u32);
    let half = k.shr_u(lane, 4u32);
    let row = k.mad(half, 8u32, within);
    let bit = k.shr_u(lane, 3u32);
    (row, k.and(bit, 1u32))
}
