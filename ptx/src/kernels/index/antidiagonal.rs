//! Block-sparse selection by antidiagonal sums (XAttention, §2; Xu et al. 2025).
//!
//! With stride S, cell i of queries is rows iS to iS + S − 1 of the window, cell j of keys is keys jS to jS + S − 1:
//!
//! ```text
//! X[i, j] = Σ_{s<S} q[iS + S − 1 − s] · k[jS + s]
//! P[i, ·] = softmax_j(X[i, j] · scale / S) over the cells that i sees
//! a[I, J] = Σ P[i, j] over the cells i of row block I and j of key block J
//! ```
//!
//! Cells of queries count from the first query row, as row blocks do, and cells of keys from key 0. A cell of queries
//! sees the cells of keys up to the one that holds the position of its last row; where the window begins at a multiple
//! of S, that is i ≥ j on cells of absolute positions, as in the authors' code. Elsewhere chunks of one prefill have
//! cells of their own, and no other definition keeps the rows of a cell in one row block. Rows past either end count as
//! zeros, as in the authors' padding, so a last cell that is not whole has fewer products; rows before key 0 (more
//! queries than keys) count like all others, as long as the cell sees a key. A row of X that holds a NaN or +∞ makes
//! all masses of its row block NaN, and one that is −∞ throughout has no weight.
//!
//! Of the blocks that row block I sees, block 0 and those of its own positions are taken first. The others follow in
//! the order of their masses, ties by the lowest block and NaN last, as long as what was taken so far is less than τ ·
//! Σ a[I, ·].
//!
//! # Plan
//!
//! Both factors of X are plain reshapes: with S rows' stride from cell to cell, X is a product over s of a tile of
//! queries that begins S − 1 − s rows further down with a tile of keys that begins s rows further down. It needs
//! N²/(2S²) · S·D products a head, at 128K tokens, S = 16 and 32 heads of 128 2.2 · 10¹²: the floor is 4.4 TFLOP, 7.4
//! ms at 600 TFLOP/s, about the most that `mma` does on Hopper, 5.6 ms at the 790 that `wgmma` reaches there in products
//! alone. A second pass for the softmax would double it, so the products are computed once:
//!
//! 1. [`AntidiagonalSumsSpec`]: for each cell of queries, for each chunk of 64 cells of keys the maximum and the sum of
//!    weights relative to it, and for each key block its part of that sum. These are what an online softmax has at
//!    hand, so the pass knows no order and every tile is by itself: work is even whatever the lengths.
//! 2. [`AntidiagonalSelectSpec`]: one block a row block merges the maxima and denominators of its up to 16 cells, adds
//!    up the masses in shared memory and selects.
//!
//! Between them lie 4 bytes for each cell of queries and key block, and 8 for each chunk: with blocks of 128 and S = 16
//! at 128K tokens 0.67 GB for the causal half of 32 heads, written and read once, 0.3 ms at 4.5 TB/s. Memory for all
//! row blocks would be twice that, and 64 times as much at 1M tokens, so launches take slices of row blocks, whole
//! tiles of 128 cells: one tile takes 128 · (4 · blocks + 8 · chunks) bytes a head, at 1M tokens and 32 heads 168 MB
//! with blocks of 128 and S = 16, 335 MB with blocks of 64 and S = 8.
//!
//! A tile has 128 cells of queries and 256 of keys, 3 · 128 rows of 128 bytes a step for 2¹⁵ · 64 products: 43 for each
//! byte from the L2 cache, that is 7 TB/s at 600 TFLOP/s. Tiles of 128 by 128 would need 9. Registers hold no larger
//! one. Tiles next to each other in the order of work are 8 wide and as high as the slice, and the heads that share keys
//! follow one another, so that queries are read from memory once a strip of 8 tiles, and keys once a slice and group of
//! heads. In the `sm_80` text a tile is a block; about half of the grid lies past the diagonal, and ends at once. In the
//! `sm_90a` text a block stays and takes one tile after the other, none of them past the diagonal.
//!
//! # Determinism
//!
//! Weights of a cell are added over the columns of a lane in ascending order, then over its quad; chunks over the lanes
//! of a warp, lane l taking chunks l, l + 32, … in ascending order, then by halving; masses over the cells of the row
//! block in ascending order. What is kept is counted in integers, 2⁻²⁷ of a cell's weight each and rounded down, whose
//! sums have no order: see [`share`](super::share). Blocks of less than 2⁻²⁷ are thus left out even by τ = 1.

mod select;
mod sums;

pub use select::AntidiagonalSelectSpec;
pub use sums::AntidiagonalSumsSpec;

use crate::SpecError;

/// Strides that the estimator is generated for.
const STRIDES: [u32; 2] = [8, 16];

fn check_stride(errors: &mut Vec<SpecError>, stride: u32) {
    if !STRIDES.contains(&stride) {
        errors.push(SpecError::new("stride", format!("{stride} is not supported; use 8 or 16")));
    }
}
