//! Planning block-sparse heads: pooled keys, then selection (MInference's block-sparse heads).

use super::{BlockLists, BlockSparseIndex, Layout, Part, Workspace, input::PlanInput};
use crate::{Arguments, Bounds, Buffer, DType, Device, Error, KvLayout, LoadedKernel, Stream};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::index::{BlockSparseSelectSpec, FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec, workspace},
};

/// The planner of a group of heads.
pub(crate) struct BlockSparsePlan {
    means: LoadedKernel,
    select: LoadedKernel,
    budgets: Buffer,
    heads: u32,
    kv_heads: u32,
    most_blocks: u32,
    block: (u32, u32),
    head_dim: u32,
    /// Most keys that the selection has room for.
    max_kv: u32,
}

/// What a plan needs of the workspace.
pub(crate) struct Parts {
    means: Part,
    counts: Part,
    indices: Part,
}

impl BlockSparsePlan {
    /// Loads the kernels and uploads each head's budget of key blocks.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn build(
        device: &Device,
        stream: &Stream,
        head_dim: u32,
        dtype: MmaType,
        kv: KvLayout,
        block: (u32, u32),
        kv_heads: u32,
        max_kv: u32,
        budgets: &[u32],
    ) -> Result<BlockSparsePlan, Error> {
        let arch = Arch::Sm80;
        let key_blocks = max_kv.div_ceil(block.1).max(1);
        let select = BlockSparseSelectSpec { block, key_blocks, head_dim, dtype, causal: true, arch };
        // Beside its budget a row block may get what is forced: the sink, and the blocks of its own positions.
        let forced = block.0.div_ceil(block.1) + 2;
        Ok(BlockSparsePlan {
            means: device.load(&ptx::generate(&KeyMeansSpec { block: block.1, head_dim, dtype, kv, arch })?)?,
            select: device.load(&ptx::generate(&select)?)?,
            budgets: device.upload(stream, budgets)?,
            heads: budgets.len() as u32,
            kv_heads,
            most_blocks: budgets.iter().copied().max().unwrap_or(0).max(forced),
            block,
            head_dim,
            max_kv,
        })
    }

    /// Key blocks that a row block's list has room for.
    fn capacity(&self, bounds: Bounds) -> u32 {
        self.most_blocks.min(bounds.max_kv.div_ceil(self.block.1)).max(1)
    }

    fn rows(&self, bounds: Bounds) -> u32 {
        bounds.max_q.div_ceil(self.block.0)
    }

    pub(crate) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let Bounds { batch, max_kv, .. } = bounds;
        let counts = u64::from(batch) * u64::from(self.heads) * u64::from(self.rows(bounds)) * 4;
        let means = workspace::key_means_bytes(batch, self.kv_heads, max_kv, self.block.1, self.head_dim);
        Parts {
            means: layout.part(means),
            counts: layout.part(counts),
            indices: layout.part(counts.saturating_mul(u64::from(self.capacity(bounds)))),
        }
    }

    /// Checks that the kernels have room for the bounds.
    pub(crate) fn check(&self, bounds: Bounds) -> Result<(), Error> {
        if bounds.max_kv <= self.max_kv {
            return Ok(());
        }
        let message =
            format!("max_kv is {}; the layer was built for {}, build it for more", bounds.max_kv, self.max_kv);
        Err(Error::Setting { setting: "bounds", message })
    }

    /// Launches the plan.
    pub(crate) fn launch<'a>(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'a>,
    ) -> Result<BlockSparseIndex<'a>, Error> {
        let bounds = input.batch.bounds;
        let (batch, heads, rows, capacity) = (bounds.batch, self.heads, self.rows(bounds), self.capacity(bounds));
        let key_blocks = bounds.max_kv.div_ceil(self.block.1);
        let means_head = u64::from(key_blocks) * u64::from(self.head_dim) * 4;
        let means_batch = means_head * u64::from(self.kv_heads);

        let arguments = input.keys(Arguments::new(self.means.meta()));
        let arguments = input
            .key_arguments(arguments)
            .pointer("key_means", workspace.address(parts.means))
            .u64("means_batch", means_batch)
            .u64("means_head", means_head)
            .pointer("status", input.status);
        self.means.launch(stream, [key_blocks, self.kv_heads, batch], &arguments)?;

        let shape = [batch, heads, rows, capacity].map(u64::from);
        let counts = workspace.tensor(parts.counts, DType::I32, &shape[..3])?;
        let indices = workspace.tensor(parts.indices, DType::I32, &shape)?;
        let arguments = input.q.arguments(Arguments::new(self.select.meta()), ["q", "q_batch", "q_row", "q_head"]);
        let arguments = input.key_arguments(input.query_arguments(arguments));
        let arguments = input
            .head_arguments(arguments)
            .pointer("key_means", workspace.address(parts.means))
            .u64("means_batch", means_batch)
            .u64("means_head", means_head)
            .pointer("budgets", self.budgets.address())
            .u32("forced", FORCE_DIAGONAL | FORCE_SINK)
            .pointer("partial_counts", counts.address())
            .u64("counts_batch", counts.byte_stride(0))
            .u64("counts_head", counts.byte_stride(1))
            .pointer("partial_indices", indices.address())
            .u64("indices_batch", indices.byte_stride(0))
            .u64("indices_head", indices.byte_stride(1))
            .u64("indices_row", indices.byte_stride(2))
            .u32("capacity", capacity)
            .pointer("status", input.status);
        self.select.launch(stream, [rows, heads, batch], &arguments)?;
        Ok(BlockSparseIndex { partial: BlockLists { counts, indices }, full: None })
    }
}
