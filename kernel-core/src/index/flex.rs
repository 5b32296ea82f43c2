//! Planning heads whose pattern is chosen from the prefill itself (FlexPrefill): both estimates, the choice, both selections.

use super::{
    BlockSparseIndex, BlockSparseSettings, Budget, Layout, Part, VerticalSlashIndex, VerticalSlashPlan,
    VerticalSlashSettings, Workspace,
    block_sparse::{ListParts, Room},
    input::PlanInput,
    pooled, vertical_slash,
};
use crate::{Arguments, Bounds, Buffer, DType, Device, Error, LoadedKernel, Stream, TensorView};
use ptx::{Arch, kernels::index::PatternChoiceSpec};

/// An index of either kind for heads that leave the choice to the plan, and what it chose: each head of each sequence has an
/// entry in one of two head maps, u32 `[batch, heads]`, which is its query head, and `u32::MAX` in the other.
#[derive(Clone, Copy, Debug)]
pub struct FlexIndex<'a> {
    pub(super) vertical_slash: VerticalSlashIndex<'a>,
    pub(super) block_sparse: BlockSparseIndex<'a>,
    vertical_slash_heads: TensorView<'a>,
    block_sparse_heads: TensorView<'a>,
    divergences: TensorView<'a>,
}

impl<'a> FlexIndex<'a> {
    /// Of the heads that take columns and slashes; the lists of others are empty.
    pub fn vertical_slash(&self) -> VerticalSlashIndex<'a> {
        self.vertical_slash
    }

    /// Which heads these are.
    pub fn vertical_slash_heads(&self) -> TensorView<'a> {
        self.vertical_slash_heads
    }

    /// Of the heads that take pooled blocks; the lists of others are empty.
    pub fn block_sparse(&self) -> BlockSparseIndex<'a> {
        self.block_sparse
    }

    /// Which heads these are.
    pub fn block_sparse_heads(&self) -> TensorView<'a> {
        self.block_sparse_heads
    }

    /// What each head's threshold was compared with, f32 `[batch, heads]`: the square root of the Jensen–Shannon divergence in
    /// nats, NaN where a query or key is not a number.
    pub fn divergences(&self) -> TensorView<'a> {
        self.divergences
    }
}

/// What a head asks for: see [`HeadPattern::Flex`](crate::HeadPattern::Flex).
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlexHead {
    pub(crate) share: f32,
    pub(crate) threshold: f32,
    pub(crate) blocks: u32,
}

/// The planner of a group of heads.
pub(crate) struct FlexPlan {
    vertical_slash: VerticalSlashPlan,
    pooled: pooled::Plan,
    choice: LoadedKernel,
    thresholds: Buffer,
    settings: BlockSparseSettings,
    heads: u32,
    room: Room,
}

/// What a plan needs of the workspace.
pub(crate) struct Parts {
    vertical_slash: vertical_slash::Parts,
    means: Part,
    lists: ListParts,
    /// Both maps and the divergences.
    choices: [Part; 3],
}

impl FlexPlan {
    /// Loads the kernels and uploads what each head asks for. `kv_heads` says which keys each head has.
    pub(crate) fn build(
        device: &Device,
        stream: &Stream,
        (vertical_slash, block_sparse): (VerticalSlashSettings, BlockSparseSettings),
        kv_heads: &[u32],
        heads: &[FlexHead],
    ) -> Result<FlexPlan, Error> {
        let BlockSparseSettings { head_dim, dtype, block, .. } = block_sparse;
        let choice = PatternChoiceSpec {
            block: block.1,
            key_blocks: block_sparse.key_blocks(),
            head_dim,
            dtype,
            arch: Arch::Sm80,
        };
        // As many columns and slashes as hold the share.
        let budgets: Vec<_> =
            heads.iter().map(|head| [Budget { most: u32::MAX, share: Some(head.share) }; 2]).collect();
        let blocks: Vec<_> = heads.iter().map(|head| (head.blocks, Some(head.share))).collect();
        let thresholds: Vec<f32> = heads.iter().map(|head| head.threshold).collect();
        let most = heads.iter().map(|head| head.blocks).max().unwrap_or(0);
        Ok(FlexPlan {
            vertical_slash: VerticalSlashPlan::build(device, stream, vertical_slash, kv_heads, &budgets)?,
            pooled: pooled::Plan::build(device, stream, block_sparse, &blocks)?,
            choice: device.load(&ptx::generate(&choice)?)?,
            thresholds: device.upload(stream, &thresholds)?,
            settings: block_sparse,
            heads: heads.len() as u32,
            room: Room::new(block, heads.len() as u32, most),
        })
    }

    pub(crate) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let entries = u64::from(bounds.batch) * u64::from(self.heads) * 4;
        Parts {
            vertical_slash: self.vertical_slash.parts(layout, bounds),
            means: self.pooled.part(layout, bounds),
            lists: self.room.parts(layout, bounds),
            choices: [(); 3].map(|()| layout.part(entries)),
        }
    }

    /// Checks that the kernels have room for the bounds and can read the tensors.
    pub(crate) fn check(&self, input: &PlanInput) -> Result<(), Error> {
        self.settings.check(input.batch.bounds)?;
        self.vertical_slash.check(input)
    }

    /// Launches the plan.
    pub(crate) fn launch<'a>(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'a>,
    ) -> Result<FlexIndex<'a>, Error> {
        let bounds = input.batch.bounds;
        let shape = [bounds.batch, self.heads].map(u64::from);
        let [columns, blocks, divergences] = parts.choices;
        let vertical_slash_heads = workspace.tensor(columns, DType::U32, &shape)?;
        let block_sparse_heads = workspace.tensor(blocks, DType::U32, &shape)?;
        let divergences = workspace.tensor(divergences, DType::F32, &shape)?;
        let lists = self.room.lists(workspace, &parts.lists, bounds)?;

        self.vertical_slash.estimate(stream, input, &parts.vertical_slash, workspace)?;
        self.pooled.average(stream, input, parts.means, workspace)?;
        let arguments = input.q.arguments(Arguments::new(self.choice.meta()), ["q", "q_batch", "q_row", "q_head"]);
        let arguments = self.pooled.mean_arguments(arguments, bounds, parts.means, workspace);
        let arguments = input.head_arguments(input.key_arguments(input.query_arguments(arguments)));
        let arguments = self
            .vertical_slash
            .column_arguments(arguments.f32("scale", input.scale), bounds, &parts.vertical_slash, workspace)
            .pointer("thresholds", self.thresholds.address())
            .pointer("vertical_slash_heads", vertical_slash_heads.address())
            .pointer("block_sparse_heads", block_sparse_heads.address())
            .pointer("divergences", divergences.address())
            .pointer("status", input.status);
        self.choice.launch(stream, [1, self.heads, bounds.batch], &arguments)?;
        let own = Some(&vertical_slash_heads);
        let vertical_slash = self.vertical_slash.select(stream, input, &parts.vertical_slash, workspace, own)?;
        self.pooled.select(stream, input, parts.means, workspace, &lists, Some(&block_sparse_heads))?;
        let block_sparse = lists.index();
        Ok(FlexIndex { vertical_slash, block_sparse, vertical_slash_heads, block_sparse_heads, divergences })
    }
}
