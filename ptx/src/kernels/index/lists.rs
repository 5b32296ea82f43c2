//! What block-sparse selections share: the key blocks that a row block sees, and the lists they end in.

use crate::{
    isa::{B32, Builder, R32, R64, RP},
    kernels::{
        batch::{address, report, status},
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::radix::{self, Keys, Scratch, Threshold},
};

/// The key blocks of a row block.
pub(super) struct Visible {
    /// How many it sees, from block 0.
    pub(super) count: R32,
    /// The first that holds one of its positions.
    pub(super) diagonal_first: R32,
    /// How many hold its positions.
    pub(super) diagonals: R32,
}

impl Visible {
    /// Of `rows` rows from `first_row` on; the last of the `q_len` queries stands at the last of the `kv_len` keys.
    pub(super) fn new(
        k: &mut Builder,
        block: u32,
        causal: bool,
        (q_len, kv_len): (R32, R32),
        first_row: R32,
        rows: R32,
    ) -> Visible {
        let shift = block.ilog2();
        // Positions are signed: they are negative where there are more queries than keys.
        let offset = k.sub(kv_len, q_len);
        let first = k.add(offset, first_row);
        let end = k.add(first, rows);
        let has_rows = k.ne(rows, 0u32);
        let has_positions = k.gt_s(end, 0i32);
        let has_positions = k.and_p(has_positions, has_rows);
        let first = k.max_s(first, 0i32);
        let diagonal_first = k.shr_u(first, shift);
        let diagonal_end = k.add(end, block - 1);
        let diagonal_end = k.shr_u(diagonal_end, shift);
        let diagonals = k.sub(diagonal_end, diagonal_first);
        let diagonals = k.select(has_positions, diagonals, 0u32);
        let count = if causal {
            k.select(has_positions, diagonal_end, 0u32)
        } else {
            let blocks = k.add(kv_len, block - 1);
            let blocks = k.shr_u(blocks, shift);
            k.select(has_rows, blocks, 0u32)
        };
        Visible { count, diagonal_first, diagonals }
    }

    /// Whether a block holds one of the row block's positions.
    pub(super) fn on_diagonal(&self, k: &mut Builder, block: R32) -> RP {
        let from_first = k.sub(block, self.diagonal_first);
        k.lt_u(from_first, self.diagonals)
    }
}

/// FlexAttention's partial tensors, as a selection writes them.
pub(super) struct Lists {
    counts: R64,
    counts_strides: [R64; 2],
    indices: R64,
    indices_strides: [R64; 3],
    capacity: R32,
}

impl Lists {
    /// Declares `partial_counts counts_batch counts_head partial_indices indices_batch indices_head indices_row capacity`.
    pub(super) fn declare(k: &mut Builder) -> Lists {
        Lists {
            counts: k.parameter("partial_counts", Pointer),
            counts_strides: ["counts_batch", "counts_head"].map(|name| k.parameter(name, U64)),
            indices: k.parameter("partial_indices", Pointer),
            indices_strides: ["indices_batch", "indices_head", "indices_row"].map(|name| k.parameter(name, U64)),
            capacity: k.parameter("capacity", U32),
        }
    }

    /// A size that the list has room for; a larger one is reported.
    pub(super) fn clamp(&self, k: &mut Builder, size: R32, status: R64) -> R32 {
        let short = k.gt_u(size, self.capacity);
        k.if_then(short, |k| report(k, status, status::BUDGET));
        k.min_u(size, self.capacity)
    }

    /// Writes the `size` selected ones of all blocks, one key each, zeros behind them, and how many they are; all threads of the keys' team take part.
    pub(super) fn write<L: Fn(&mut Builder, R32) -> Vec<R32>>(
        &self,
        k: &mut Builder,
        scratch: &Scratch,
        (batch, head, row_block): (R32, R32, R32),
        keys: &Keys<L>,
        threshold: Threshold,
        size: R32,
    ) {
        let [indices_batch, indices_head, indices_row] = self.indices_strides;
        let indices =
            address(k, self.indices, [(batch, indices_batch), (head, indices_head), (row_block, indices_row)]);
        radix::visit(k, scratch, keys, threshold, |k, visit| {
            for (i, (selected, position)) in (0..).zip(visit.keys) {
                let index = k.add(visit.first, i as u32);
                let at = k.mad_wide(position, 4u32, indices);
                k.when(selected, |k| k.store(at, 0, index));
            }
        });

        let thread = keys.team.thread(k);
        let first_unused = k.add(size, thread);
        k.for_loop(first_unused, self.capacity, keys.team.threads(k), |k, entry| {
            let at = k.mad_wide(entry, 4u32, indices);
            k.store::<B32, _>(at, 0, 0u32);
        });
        let [counts_batch, counts_head] = self.counts_strides;
        let counts = address(k, self.counts, [(batch, counts_batch), (head, counts_head)]);
        let at = k.mad_wide(row_block, 4u32, counts);
        let leads = k.eq(thread, 0u32);
        k.when(leads, |k| k.store(at, 0, size));
    }
}
