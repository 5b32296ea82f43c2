//! Sparse indices: typed views of what a plan has written, or of the caller's own tensors.
//!
//! Arrays "by head" are counted by the heads of one launch: all query heads, or those of the launch's head map, in its
//! order. A dimension of one element serves every batch row or head.

mod antidiagonal;
mod block_sparse;
mod bsr;
mod flex;
mod input;
mod merged_ranges;
mod pooled;
mod vertical_slash;
mod workspace;

pub use bsr::BsrIndex;
pub use flex::FlexIndex;
pub use merged_ranges::{MergedRanges, MergedRangesArgs, TokenLists};
pub use ptx::kernels::index::MergeRule;

pub use workspace::Workspace;
pub(crate) use workspace::{Layout, Part};
pub(crate) use {
    block_sparse::{BlockSparsePlan, BlockSparseSettings, estimator_order},
    flex::{FlexHead, FlexPlan},
    input::PlanInput,
    vertical_slash::{Budget, FORCED, VerticalSlashPlan, VerticalSlashSettings},
};

use crate::{Arguments, Bounds, DType, Device, Error, TensorView};

/// The index of a layer: what each of its patterns needs. Dense, A-shape and tri-shape heads need none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Index<'a> {
    /// For the layer's vertical-slash heads.
    pub vertical_slash: Option<VerticalSlashIndex<'a>>,
    /// For the layer's block-sparse heads: those with pooled keys first, then the antidiagonal ones by stride.
    pub block_sparse: Option<BlockSparseIndex<'a>>,
    /// For the layer's heads that choose between the two in the plan.
    pub flex: Option<FlexIndex<'a>>,
    /// Bound of the keys that a plan was made for: heads whose crossover lies above have no part here and are dense, see
    /// `SparsePrefillBuilder::dense_below`. None in an index of the caller's own, whose heads are all sparse.
    pub planned_keys: Option<u32>,
    /// The word of `AttentionArgs::turns` for the layer's attention, one kernel after the other, where a kernel of it has a use for
    /// it: a plan has put it to 0.
    pub turns: Option<TensorView<'a>>,
}

/// Blocks along slashes, and key columns, per (batch row, head).
///
/// Rows are cut in groups of N, the keys of an attention block, aligned on absolute positions. For every offset D the group
/// that begins at position r visits the N keys from r − D on, as far as they exist and are not in a query's future. Keys in
/// `columns` are visible to every later row.
#[derive(Clone, Copy, Debug)]
pub struct VerticalSlashIndex<'a> {
    offsets: HeadLists<'a>,
    columns: HeadLists<'a>,
    visited: Option<TensorView<'a>>,
}

/// An ascending list for each (batch row, head).
#[derive(Clone, Copy, Debug)]
pub struct HeadLists<'a> {
    /// u32 `[batch, heads]`, contiguous: entries of each list.
    pub counts: TensorView<'a>,
    /// u32 `[batch, heads, capacity]`.
    pub entries: TensorView<'a>,
}

/// Key blocks per (batch row, head, row block), in FlexAttention's tensors. Row blocks count from the first query row.
#[derive(Clone, Copy, Debug)]
pub struct BlockSparseIndex<'a> {
    partial: BlockLists<'a>,
    full: Option<BlockLists<'a>>,
}

/// How many key blocks each row block has, and which, ascending.
#[derive(Clone, Copy, Debug)]
pub struct BlockLists<'a> {
    /// i32 `[batch, heads, row blocks]`.
    pub counts: TensorView<'a>,
    /// i32 `[batch, heads, row blocks, capacity]`.
    pub indices: TensorView<'a>,
}

impl<'a> Index<'a> {
    /// From device tensors in the native form of [`VerticalSlashIndex`]. Offsets lie at least N apart, or keys are counted
    /// twice. A count above its list's capacity is clamped to it and reported in the status word.
    pub fn from_vertical_slash(offsets: HeadLists<'a>, columns: HeadLists<'a>) -> Index<'a> {
        Index { vertical_slash: Some(VerticalSlashIndex { offsets, columns, visited: None }), ..Index::default() }
    }

    /// From FlexAttention's four tensors. Counts above the capacity are clamped, as above. `full` blocks skip the kernel's mask expression; both pairs have the same strides.
    pub fn from_flex(partial: BlockLists<'a>, full: Option<BlockLists<'a>>) -> Index<'a> {
        Index { block_sparse: Some(BlockSparseIndex { partial, full }), ..Index::default() }
    }
}

impl<'a> VerticalSlashIndex<'a> {
    /// Offsets of blocks, ascending.
    pub fn offsets(&self) -> HeadLists<'a> {
        self.offsets
    }

    /// Key columns, ascending.
    pub fn columns(&self) -> HeadLists<'a> {
        self.columns
    }

    /// What a causal prefill of all keys will visit, of an index from a plan: u64 `[batch, heads, 2]`, how often a group of N
    /// rows visits a block of N keys, and how often a single column, where those inside a visited block count too. So the
    /// density is `(blocks · N² + columns · N) / (n (n + 1) / 2)` at most, for n keys.
    pub fn visited(&self) -> Option<TensorView<'a>> {
        self.visited
    }

    /// Checks the index for a launch and sets its arguments.
    pub(crate) fn arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        device: &Device,
        bounds: Bounds,
        heads: u32,
    ) -> Result<Arguments<'m>, Error> {
        for (names, HeadLists { counts, entries }) in
            [(["offset counts", "offsets"], self.offsets), (["column counts", "columns"], self.columns)]
        {
            let (batch, head) = (dimension(&entries, 0, bounds.batch), dimension(&entries, 1, heads));
            entries.expect(names[1], &[DType::U32, DType::I32], "[batch, heads, capacity]", &[batch, head, None])?;
            let wanted = [Some(u64::from(bounds.batch)), Some(u64::from(heads))];
            counts.expect(names[0], &[DType::U32, DType::I32], "[batch, heads]", &wanted)?;
            counts.expect_contiguous(names[0])?;
            entries.on(device)?;
            counts.on(device)?;
        }
        let (offsets, columns) = (self.offsets.entries, self.columns.entries);
        Ok(arguments
            .pointer("offsets", offsets.address())
            .u64("offsets_batch", offsets.broadcast_stride(0))
            .u64("offsets_head", offsets.broadcast_stride(1))
            .u32("offset_capacity", capacity(&offsets))
            .pointer("offset_counts", self.offsets.counts.address())
            .pointer("columns", columns.address())
            .u64("columns_batch", columns.broadcast_stride(0))
            .u64("columns_head", columns.broadcast_stride(1))
            .u32("column_capacity", capacity(&columns))
            .pointer("column_counts", self.columns.counts.address()))
    }
}

impl<'a> BlockSparseIndex<'a> {
    /// Blocks in which the kernel's mask expression applies.
    pub fn partial(&self) -> BlockLists<'a> {
        self.partial
    }

    /// Blocks in which it does not.
    pub fn full(&self) -> Option<BlockLists<'a>> {
        self.full
    }

    /// Checks the index for a launch and sets its arguments.
    pub(crate) fn arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        device: &Device,
        bounds: Bounds,
        heads: u32,
        block: (u32, u32),
    ) -> Result<Arguments<'m>, Error> {
        let rows = bounds.max_q.div_ceil(block.0);
        for (names, lists) in [
            (["partial counts", "partial indices"], Some(&self.partial)),
            (["full counts", "full indices"], self.full.as_ref()),
        ] {
            let Some(BlockLists { counts, indices }) = lists else { continue };
            let (batch, head) = (dimension(counts, 0, bounds.batch), dimension(counts, 1, heads));
            counts.expect(names[0], &[DType::I32, DType::U32], "[batch, heads, row blocks]", &[batch, head, None])?;
            let (batch, head, row_blocks) =
                (dimension(indices, 0, bounds.batch), dimension(indices, 1, heads), counts.shape()[2]);
            let wanted = [batch, head, Some(row_blocks), None];
            indices.expect(names[1], &[DType::I32, DType::U32], "[batch, heads, row blocks, capacity]", &wanted)?;
            if row_blocks < u64::from(rows) {
                let message = format!(
                    "{} have {row_blocks} row blocks; {} queries in blocks of {} need {rows}",
                    names[0], bounds.max_q, block.0
                );
                return Err(Error::Index { message });
            }
            counts.on(device)?;
            indices.on(device)?;
        }
        let strides = |lists: &BlockLists<'_>| {
            let (counts, indices) = (lists.counts, lists.indices);
            [
                counts.broadcast_stride(0),
                counts.broadcast_stride(1),
                indices.broadcast_stride(0),
                indices.broadcast_stride(1),
                indices.byte_stride(2),
            ]
        };
        let own = strides(&self.partial);
        if let Some(full) = &self.full
            && strides(full) != own
        {
            let message = format!(
                "partial tensors have byte strides {own:?} and full ones {:?} (counts: batch, head; indices: batch, head, \
                 row); lay them out alike",
                strides(full)
            );
            return Err(Error::Index { message });
        }
        let full = self
            .full
            .map_or((0, 0, 0), |full| (full.counts.address(), full.indices.address(), capacity(&full.indices)));
        Ok(arguments
            .pointer("partial_counts", self.partial.counts.address())
            .pointer("partial_indices", self.partial.indices.address())
            .u32("partial_capacity", capacity(&self.partial.indices))
            .pointer("full_counts", full.0)
            .pointer("full_indices", full.1)
            .u32("full_capacity", full.2)
            .u64("counts_batch", own[0])
            .u64("counts_head", own[1])
            .u64("indices_batch", own[2])
            .u64("indices_head", own[3])
            .u64("indices_row", own[4]))
    }
}

/// Entries that each list of a checked tensor has room for.
fn capacity(lists: &TensorView<'_>) -> u32 {
    lists.shape().last().map_or(0, |&size| u32::try_from(size).unwrap_or(u32::MAX))
}

/// What a dimension must be: `size`, or 1, which serves all.
fn dimension(view: &TensorView<'_>, dimension: usize, size: u32) -> Option<u64> {
    if view.shape().get(dimension) == Some(&1) { Some(1) } else { Some(u64::from(size)) }
}
