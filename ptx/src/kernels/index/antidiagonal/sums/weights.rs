//! What an online softmax has at hand of a chunk: its maximum, the sum of its weights, and the parts of its key blocks.

use super::{AntidiagonalSumsSpec, Cells};
use crate::{
    isa::{Builder, R32, R64, RF},
    kernels::index::workspace::CELL_CHUNK,
    tile::fragment::column,
};

/// A warp's part of a tile: of queries the cells from `query` on, of keys a chunk, from `key` on.
pub(super) struct Part {
    pub(super) query: R32,
    pub(super) key: R32,
}

impl AntidiagonalSumsSpec {
    /// Turns the products of a warp's part, rows as an [`Accumulator`](crate::tile::fragment::Accumulator) has them, into weights
    /// and writes their sums. `factor` makes a product a score in base 2.
    pub(super) fn weigh(
        &self,
        k: &mut Builder,
        products: &[&[RF]],
        part: Part,
        cells: &Cells,
        factor: RF,
        out: &Output,
    ) {
        let lane = k.lane();
        let block_cells = self.block / self.stride;
        let (group, column_pair) = (k.shr_u(lane, 2u32), k.and(lane, 3u32));
        let first_key = k.mad(column_pair, 2u32, part.key);
        let chunk = k.shr_u(part.key, CELL_CHUNK.ilog2());
        let leads = k.eq(column_pair, 0u32);
        for (i, row) in products.iter().enumerate() {
            let below = k.add(group, (i / 2 * 16 + i % 2 * 8) as u32);
            let query = k.add(part.query, below);
            let exists = k.lt_u(query, cells.queries);
            let last = cells.last_visible(k, query);
            let room = k.sub(last, first_key);
            let scores: Vec<RF> = (0..)
                .zip(*row)
                .map(|(i, &product)| {
                    let visible = k.ge_s(room, column(i) as i32);
                    let score = k.mul_f(product, factor);
                    k.select(visible, score, f32::NEG_INFINITY)
                })
                .collect();
            let max = scores[1..].iter().fold(scores[0], |max, &score| k.max_f(max, score));
            let max = quad(k, max, Builder::max_f);
            let none = k.eq_f(max, f32::NEG_INFINITY);
            let reference = k.select(none, 0.0f32, max);
            let weights: Vec<RF> = scores
                .into_iter()
                .map(|score| {
                    let exponent = k.sub_f(score, reference);
                    k.exp2_f(exponent)
                })
                .collect();
            // A lane holds two columns of every eight. Its part of each block, or of half a block:
            let together = (block_cells.max(8) / 8 * 2) as usize;
            let parts: Vec<RF> = weights
                .chunks(together)
                .map(|own| own[1..].iter().fold(own[0], |sum, &weight| k.add_f(sum, weight)))
                .collect();
            let sum = parts[1..].iter().fold(parts[0], |sum, &part| k.add_f(sum, part));
            let sum = quad(k, sum, Builder::add_f);
            let place = out.place(k, query, chunk);
            let shares = spread(k, parts, block_cells, column_pair);
            k.if_then(exists, |k| {
                let at = k.mad(place, 8u64, out.statistics);
                k.when(leads, |k| k.store_vector(at, 0, [max, sum]));
                let at = k.mad(place, u64::from(CELL_CHUNK / block_cells * 4), out.block_sums);
                shares.store(k, at);
            });
        }
    }
}

/// Where the sums of a head's slice go.
pub(super) struct Output {
    pub(super) statistics: R64,
    pub(super) block_sums: R64,
    /// Cells of queries before the slice's first, of all slices of heads and sequences.
    pub(super) before: R64,
    /// The slice's first cell of queries.
    pub(super) first: R32,
    /// Chunks of a cell of queries.
    pub(super) chunks: R32,
}

impl Output {
    /// Number of a chunk of a cell of queries, counted over the whole array.
    fn place(&self, k: &mut Builder, query: R32, chunk: R32) -> R64 {
        let cell = k.sub(query, self.first);
        let cell = k.widen_u(cell);
        let cell = k.add(cell, self.before);
        let (chunks, chunk) = (k.widen_u(self.chunks), k.widen_u(chunk));
        k.mad(cell, chunks, chunk)
    }
}

/// The sums of blocks that one lane of a quad writes.
struct Shares {
    sums: Vec<RF>,
    /// The block of the first.
    first: R32,
    /// Blocks from one to the next.
    step: u32,
}

impl Shares {
    fn store(&self, k: &mut Builder, blocks: R64) {
        let at = k.mad_wide(self.first, 4u32, blocks);
        if let ([first, second], 1) = (&self.sums[..], self.step) {
            k.store_vector(at, 0, [*first, *second]);
            return;
        }
        for (i, &sum) in (0..).zip(&self.sums) {
            k.store(at, i * i64::from(self.step) * 4, sum);
        }
    }
}

/// Adds up the parts of blocks over the lanes of a quad that share them, so that each lane ends with the sums of some.
fn spread(k: &mut Builder, mut parts: Vec<RF>, block_cells: u32, lane: R32) -> Shares {
    let lanes = (block_cells / 2).min(4);
    for mask in [2, 1].into_iter().filter(|mask| *mask < lanes) {
        let bit = k.and(lane, mask);
        let upper = k.ne(bit, 0u32);
        let (low, high) = parts.split_at(parts.len() / 2);
        let pairs: Vec<_> = low.iter().copied().zip(high.iter().copied()).collect();
        parts = pairs
            .into_iter()
            .map(|(low, high)| {
                let (kept, given): (RF, RF) = (k.select(upper, high, low), k.select(upper, low, high));
                let received = k.shuffle_xor(given, mask);
                k.add_f(kept, received)
            })
            .collect();
    }
    // Without lanes that share a block, eight columns hold as many blocks as lanes, or half as many.
    let (first, step) = match lanes {
        1 => (lane, 4),
        2 => {
            let (half, pair) = (k.and(lane, 1u32), k.shr_u(lane, 1u32));
            (k.mad(half, 2 * parts.len() as u32, pair), 2)
        }
        _ => (k.mul(lane, parts.len() as u32), 1),
    };
    Shares { sums: parts, first, step }
}

/// Combines the values of the four lanes that share an accumulator's rows.
fn quad(k: &mut Builder, value: RF, combine: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    [1, 2].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        combine(k, value, other)
    })
}
