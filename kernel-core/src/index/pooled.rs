//! Planning by pooled queries and keys (MInference's block-sparse heads; FlexPrefill's query-aware ones).

use super::{
    Layout, Part, Workspace,
    block_sparse::{BlockSparseSettings, Lists},
    input::PlanInput,
};
use crate::{Arguments, Bounds, Buffer, Device, Error, LoadedKernel, Stream, TensorView};
use ptx::{
    Arch,
    kernels::index::{BlockSparseSelectSpec, FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec, share, workspace},
};

/// The planner of a run of heads.
pub(super) struct Plan {
    means: LoadedKernel,
    select: LoadedKernel,
    budgets: Buffer,
    /// By head; none if no head has a share.
    shares: Option<Buffer>,
    heads: u32,
    settings: BlockSparseSettings,
    /// Row blocks that a block of threads selects for.
    row_blocks: u32,
}

impl Plan {
    /// Loads the kernels and uploads each head's budget of key blocks, and the share that is enough.
    pub(super) fn build(
        device: &Device,
        stream: &Stream,
        settings: BlockSparseSettings,
        budgets: &[(u32, Option<f32>)],
    ) -> Result<Plan, Error> {
        let BlockSparseSettings { head_dim, dtype, kv, block, .. } = settings;
        let (arch, key_blocks) = (Arch::Sm80, settings.key_blocks());
        let select = BlockSparseSelectSpec { block, key_blocks, head_dim, dtype, causal: true, arch };
        let some = budgets.iter().any(|(_, share)| share.is_some());
        let (most, shares): (Vec<u32>, Vec<u32>) =
            budgets.iter().map(|&(most, given)| (most, given.map_or(0, share))).unzip();
        Ok(Plan {
            means: device.load(&ptx::generate(&KeyMeansSpec { block: block.1, head_dim, dtype, kv, arch })?)?,
            select: device.load(&ptx::generate(&select)?)?,
            budgets: device.upload(stream, &most)?,
            shares: some.then(|| device.upload(stream, &shares)).transpose()?,
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
        self.average(stream, input, means, workspace)?;
        self.select(stream, input, means, workspace, lists, None)
    }

    /// Sets the means of the keys: `key_means` and its strides.
    pub(super) fn mean_arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        bounds: Bounds,
        means: Part,
        workspace: &Workspace<'_>,
    ) -> Arguments<'m> {
        let BlockSparseSettings { head_dim, block, kv_heads, .. } = self.settings;
        let head = u64::from(bounds.max_kv.div_ceil(block.1)) * u64::from(head_dim) * 4;
        arguments
            .pointer("key_means", workspace.address(means))
            .u64("means_batch", head * u64::from(kv_heads))
            .u64("means_head", head)
    }

    /// Launches what averages the keys.
    pub(super) fn average(
        &self,
        stream: &Stream,
        input: &PlanInput,
        means: Part,
        workspace: &Workspace<'_>,
    ) -> Result<(), Error> {
        let bounds = input.batch.bounds;
        let arguments = input.key_arguments(input.keys(Arguments::new(self.means.meta())));
        let arguments = self.mean_arguments(arguments, bounds, means, workspace).pointer("status", input.status);
        let key_blocks = bounds.max_kv.div_ceil(self.settings.block.1);
        self.means.launch(stream, [key_blocks, self.settings.kv_heads, bounds.batch], &arguments)
    }

    /// Launches the selection; of a sequence only for the heads that `map`, u32 `[batch, heads]`, has an entry for.
    pub(super) fn select(
        &self,
        stream: &Stream,
        input: &PlanInput,
        means: Part,
        workspace: &Workspace<'_>,
        lists: &Lists<'_>,
        map: Option<&TensorView<'_>>,
    ) -> Result<(), Error> {
        let bounds = input.batch.bounds;
        let arguments = input.q.arguments(Arguments::new(self.select.meta()), ["q", "q_batch", "q_row", "q_head"]);
        let arguments = input.key_arguments(input.query_arguments(arguments));
        let arguments = input.sequence_head_arguments(arguments, map);
        let arguments = self
            .mean_arguments(arguments, bounds, means, workspace)
            .f32("scale", input.scale)
            .pointer("budgets", self.budgets.address())
            .pointer("shares", self.shares.as_ref().map_or(0, Buffer::address))
            .pointer("weights", 0)
            .u64("weights_batch", 0)
            .u64("weights_head", 0)
            .u64("weights_row", 0)
            .u32("forced", FORCE_DIAGONAL | FORCE_SINK)
            .pointer("status", input.status);
        let groups = lists.rows.div_ceil(self.row_blocks);
        self.select.launch(stream, [groups, self.heads, bounds.batch], &lists.arguments(arguments))
    }
}
