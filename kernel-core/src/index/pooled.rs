//! Planning by pooled queries and keys (MInference's block-sparse heads).

use super::{
    Layout, Part, Workspace,
    block_sparse::{BlockSparseSettings, Lists},
    input::PlanInput,
};
use crate::{Arguments, Bounds, Buffer, Device, Error, LoadedKernel, Stream};
use ptx::{
    Arch,
    kernels::index::{BlockSparseSelectSpec, FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec, workspace},
};

/// The planner of a run of heads.
pub(super) struct Plan {
    means: LoadedKernel,
    select: LoadedKernel,
    budgets: Buffer,
    heads: u32,
    settings: BlockSparseSettings,
    /// Row blocks that a block of threads selects for.
    row_blocks: u32,
}

impl Plan {
    /// Loads the kernels and uploads each head's budget of key blocks.
    pub(super) fn build(
        device: &Device,
        stream: &Stream,
        settings: BlockSparseSettings,
        budgets: &[u32],
    ) -> Result<Plan, Error> {
        let BlockSparseSettings { head_dim, dtype, kv, block, .. } = settings;
        let (arch, key_blocks) = (Arch::Sm80, settings.key_blocks());
        let select = BlockSparseSelectSpec { block, key_blocks, head_dim, dtype, causal: true, arch };
        Ok(Plan {
            means: device.load(&ptx::generate(&KeyMeansSpec { block: block.1, head_dim, dtype, kv, arch })?)?,
            select: device.load(&ptx::generate(&select)?)?,
            budgets: device.upload(stream, budgets)?,
            heads: budgets.len() as u32,
            settings,
            row_blocks: select.row_blocks(),
        })
    }

    /// Where the means of the keys go.
    pub(super) fn part(&self, layout: &mut Layout, bounds: Bounds) -> Part {
        let BlockSparseSettings { head_dim, block, kv_heads, .. } = self.settings;
        layout.part(workspace::key_means_bytes(bounds.batch, kv_heads, bounds.max_kv, block.1, head_dim))
    }

    /// Launches the plan.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        input: &PlanInput,
        means: Part,
        workspace: &Workspace<'_>,
        lists: &Lists<'_>,
    ) -> Result<(), Error> {
        let Bounds { batch, max_kv, .. } = input.batch.bounds;
        let BlockSparseSettings { head_dim, block, kv_heads, .. } = self.settings;
        let key_blocks = max_kv.div_ceil(block.1);
        let means_head = u64::from(key_blocks) * u64::from(head_dim) * 4;
        let means_batch = means_head * u64::from(kv_heads);

        let arguments = input.keys(Arguments::new(self.means.meta()));
        let arguments = input
            .key_arguments(arguments)
            .pointer("key_means", workspace.address(means))
            .u64("means_batch", means_batch)
            .u64("means_head", means_head)
            .pointer("status", input.status);
        self.means.launch(stream, [key_blocks, kv_heads, batch], &arguments)?;

        let arguments = input.q.arguments(Arguments::new(self.select.meta()), ["q", "q_batch", "q_row", "q_head"]);
        let arguments = input.key_arguments(input.query_arguments(arguments));
        let arguments = input
            .head_arguments(arguments)
            .pointer("key_means", workspace.address(means))
            .u64("means_batch", means_batch)
            .u64("means_head", means_head)
            .pointer("budgets", self.budgets.address())
            .u32("forced", FORCE_DIAGONAL | FORCE_SINK)
            .pointer("status", input.status);
        let groups = lists.rows.div_ceil(self.row_blocks);
        self.select.launch(stream, [groups, self.heads, batch], &lists.arguments(arguments))
    }
}
