//! The authors' own vertical-slash index, for engines that read their four tensors.

use super::capacity;
use crate::{
    Arguments, Bounds, DType, Device, Error, Lengths, LoadedKernel, Stream, TensorView, attention::status, batch::Batch,
};
use ptx::{
    Arch,
    kernels::index::{MERGED_BLOCK, MERGED_ROW_BLOCKS, MergeRule, MergedRangesSpec},
};

/// Most queries or keys of a sequence: positions, and the blocks behind the last one, are i32.
const MAX_LENGTH: u32 = 1 << 30;

/// Turns verticals and slashes into `block_count`, `block_offset`, `column_count` and `column_index`, as
/// `convert_vertical_slash_indexes` of MInference or, with counts by head, vLLM's `…_mergehead` does: blocks of 64 keys for
/// each 64 query rows, causal. [`MergeRule`] says whose rule it is, [`MergedRangesSpec`] what it does.
///
/// The library's own attention reads the [`VerticalSlashIndex`](super::VerticalSlashIndex) instead, which takes less memory
/// by the number of row blocks.
pub struct MergedRanges {
    kernel: LoadedKernel,
}

/// Tokens by head, as many for each as its count says.
#[derive(Clone, Copy, Debug)]
pub struct TokenLists<'a> {
    /// i32 or u32 `[batch, heads, capacity]`. A dimension of one element serves every sequence or head.
    pub entries: TensorView<'a>,
    /// i32 or u32 `[heads]`, which serve every sequence, or `[batch, heads]`, contiguous. Without them every list is full.
    pub counts: Option<TensorView<'a>>,
}

/// What [`MergedRanges::run`] reads and writes. R is the number of row blocks, at least those of `max_q`.
#[derive(Clone, Copy, Debug)]
pub struct MergedRangesArgs<'a> {
    /// Where sequences begin and how long they are; of starting rows only their distances count.
    pub lengths: Lengths<'a>,
    /// What the host knows of them.
    pub bounds: Bounds,
    /// Key columns, ascending.
    pub verticals: TokenLists<'a>,
    /// Slashes, distances of query and key, descending.
    pub slashes: TokenLists<'a>,
    /// i32 `[batch, heads, R]`, contiguous: blocks of each row block.
    pub block_count: TensorView<'a>,
    /// i32 `[batch, heads, R, capacity of slashes]`, contiguous: first key of each block, ascending; then zeros.
    pub block_offset: TensorView<'a>,
    /// i32 `[batch, heads, R]`, contiguous: columns of each row block.
    pub column_count: TensorView<'a>,
    /// i32 `[batch, heads, R, capacity of verticals]`, contiguous: columns that no block has, ascending; then zeros.
    pub column_index: TensorView<'a>,
    /// u32 `[1]`: the bits of [`Status`](crate::Status) are or-ed into it: a length cut, or a wild vertical, slash or count.
    pub status: Option<TensorView<'a>>,
}

impl MergedRanges {
    /// Loads the kernel. May block while the driver compiles it.
    ///
    /// # Errors
    /// What the device says of the kernel.
    pub fn build(device: &Device, rule: MergeRule) -> Result<MergedRanges, Error> {
        let kernel = ptx::generate(&MergedRangesSpec { rule, arch: Arch::Sm80 })?;
        Ok(MergedRanges { kernel: device.load(&kernel)? })
    }

    /// Enqueues one launch for all heads and sequences. It allocates nothing, does not wait, and may be captured.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor of another type or shape, [`Error::Setting`] for bounds beyond 2³⁰,
    /// [`Error::ForeignDevice`] and [`Error::Grid`], before anything is launched.
    pub fn run(&self, stream: &Stream, args: &MergedRangesArgs<'_>) -> Result<(), Error> {
        let device = self.kernel.device();
        let Bounds { batch, max_q, max_kv } = args.bounds;
        if max_q.max(max_kv) > MAX_LENGTH {
            let message =
                format!("max_q is {max_q} and max_kv {max_kv}; positions are i32: allow at most {MAX_LENGTH}");
            return Err(Error::Setting { setting: "bounds", message });
        }
        let sequences = Batch::new(&args.lengths, args.bounds, device)?;
        let least = max_q.div_ceil(MERGED_BLOCK);
        args.block_count.expect(
            "block_count",
            &[DType::I32],
            "[batch, heads, row blocks]",
            &[Some(u64::from(batch)), None, None],
        )?;
        let (heads, row_blocks) = (args.block_count.shape()[1], args.block_count.shape()[2]);
        let [heads, row_blocks] = [heads, row_blocks].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        if row_blocks < least || row_blocks > MAX_LENGTH / MERGED_BLOCK {
            let message = format!(
                "has {row_blocks} row blocks; {max_q} queries in blocks of {MERGED_BLOCK} need {least}, and at most {} \
                 are allowed",
                MAX_LENGTH / MERGED_BLOCK
            );
            return Err(crate::tensor::tensor_error("block_count", message));
        }

        let rows = [batch, heads, row_blocks].map(|size| Some(u64::from(size)));
        let entries = |lists: &TokenLists<'_>| lists.entries.shape().last().copied();
        args.column_count.expect("column_count", &[DType::I32], "[batch, heads, row blocks]", &rows)?;
        for (name, view, lists) in
            [("block_offset", args.block_offset, &args.slashes), ("column_index", args.column_index, &args.verticals)]
        {
            let shape = [rows[0], rows[1], rows[2], entries(lists)];
            view.expect(name, &[DType::I32], "[batch, heads, row blocks, capacity]", &shape)?;
        }
        for (name, view) in [
            ("block_count", args.block_count),
            ("block_offset", args.block_offset),
            ("column_count", args.column_count),
            ("column_index", args.column_index),
        ] {
            view.expect_contiguous(name)?;
            view.on(device)?;
        }
        args.status.map_or(Ok(()), |view| view.on(device))?;

        let arguments = Arguments::new(self.kernel.meta());
        let arguments = args.verticals.arguments(arguments, device, args.bounds, heads, &VERTICALS)?;
        let arguments = args.slashes.arguments(arguments, device, args.bounds, heads, &SLASHES)?;
        // No tensor of rows bounds them here.
        let arguments = sequences.key_arguments(sequences.query_arguments(arguments, u32::MAX), u32::MAX);
        let arguments = arguments
            .u32("row_blocks", row_blocks)
            .pointer("block_count", args.block_count.address())
            .pointer("block_offset", args.block_offset.address())
            .pointer("column_count", args.column_count.address())
            .pointer("column_index", args.column_index.address())
            .pointer("status", status(&args.status)?);
        self.kernel.launch(stream, [row_blocks.div_ceil(MERGED_ROW_BLOCKS), heads, batch], &arguments)
    }
}

/// What the lists of one kind and their parameters are called.
struct Names {
    entries: &'static str,
    batch: &'static str,
    head: &'static str,
    capacity: &'static str,
    counts: &'static str,
    counts_batch: &'static str,
}

const VERTICALS: Names = Names {
    entries: "verticals",
    batch: "verticals_batch",
    head: "verticals_head",
    capacity: "vertical_capacity",
    counts: "vertical_counts",
    counts_batch: "vertical_counts_batch",
};
const SLASHES: Names = Names {
    entries: "slashes",
    batch: "slashes_batch",
    head: "slashes_head",
    capacity: "slash_capacity",
    counts: "slash_counts",
    counts_batch: "slash_counts_batch",
};

impl TokenLists<'_> {
    /// Checks the lists and sets their arguments.
    fn arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        device: &Device,
        bounds: Bounds,
        heads: u32,
        names: &Names,
    ) -> Result<Arguments<'m>, Error> {
        let types = [DType::I32, DType::U32];
        let entries = &self.entries;
        let shape = [super::dimension(entries, 0, bounds.batch), super::dimension(entries, 1, heads), None];
        entries.expect(names.entries, &types, "[batch, heads, capacity]", &shape)?;
        entries.on(device)?;
        let (address, counts_batch) = match &self.counts {
            None => (0, 0),
            Some(counts) => {
                let (batch, heads) = (Some(u64::from(bounds.batch)), Some(u64::from(heads)));
                match counts.shape().len() {
                    1 => counts.expect(names.counts, &types, "[heads]", &[heads])?,
                    _ => counts.expect(names.counts, &types, "[batch, heads]", &[batch, heads])?,
                }
                counts.expect_contiguous(names.counts)?;
                counts.on(device)?;
                (counts.address(), if counts.shape().len() == 1 { 0 } else { counts.byte_stride(0) })
            }
        };
        Ok(arguments
            .pointer(names.entries, entries.address())
            .u64(names.batch, entries.broadcast_stride(0))
            .u64(names.head, entries.broadcast_stride(1))
            .u32(names.capacity, capacity(entries))
            .pointer(names.counts, address)
            .u64(names.counts_batch, counts_batch))
    }
}
