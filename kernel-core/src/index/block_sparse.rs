//! Planning block-sparse heads: every estimator writes into the same lists, so that one attention launch serves all.

use super::{BlockLists, BlockSparseIndex, Layout, Part, Workspace, antidiagonal, input::PlanInput, pooled};
use crate::{Arguments, Bounds, DType, Device, Error, HeadPattern, KvLayout, Stream, TensorView};
use ptx::isa::MmaType;

/// What all heads of a layer have alike.
#[derive(Clone, Copy)]
pub(crate) struct BlockSparseSettings {
    pub(crate) head_dim: u32,
    pub(crate) dtype: MmaType,
    pub(crate) kv: KvLayout,
    pub(crate) block: (u32, u32),
    pub(crate) kv_heads: u32,
    /// Most keys of a sequence.
    pub(crate) max_kv: u32,
}

impl BlockSparseSettings {
    pub(super) fn key_blocks(&self) -> u32 {
        self.max_kv.div_ceil(self.block.1).max(1)
    }
}

/// The planner of a group of heads.
pub(crate) struct BlockSparsePlan {
    runs: Vec<Run>,
    settings: BlockSparseSettings,
    heads: u32,
    most_blocks: u32,
}

/// Heads that follow one another and share an estimator.
struct Run {
    first: u32,
    estimator: Estimator,
}

enum Estimator {
    Pooled(pooled::Plan),
    Antidiagonal(antidiagonal::Plan),
}

/// What a plan needs of the workspace.
pub(crate) struct Parts {
    counts: Part,
    indices: Part,
    runs: Vec<RunParts>,
}

enum RunParts {
    Pooled(Part),
    Antidiagonal(antidiagonal::Parts),
}

/// Heads of one estimator have one key, and come together in the order of keys. 0 for heads that select no blocks.
pub(crate) fn estimator_order(pattern: HeadPattern) -> u32 {
    match pattern {
        HeadPattern::Antidiagonal { stride, .. } => stride,
        _ => 0,
    }
}

impl BlockSparsePlan {
    /// Loads the kernels and uploads what heads ask for. Heads come in the order of [`estimator_order`].
    pub(crate) fn build(
        device: &Device,
        stream: &Stream,
        settings: BlockSparseSettings,
        patterns: &[HeadPattern],
    ) -> Result<BlockSparsePlan, Error> {
        let block = settings.block;
        let (mut runs, mut first) = (Vec::new(), 0);
        for run in patterns.chunk_by(|a, b| estimator_order(*a) == estimator_order(*b)) {
            let estimator = match run[0] {
                HeadPattern::Antidiagonal { stride, .. } => {
                    Estimator::Antidiagonal(antidiagonal::Plan::build(device, stream, settings, stride, run)?)
                }
                _ => {
                    let budgets: Vec<u32> = run.iter().map(|pattern| blocks(*pattern)).collect();
                    Estimator::Pooled(pooled::Plan::build(device, stream, settings, &budgets)?)
                }
            };
            runs.push(Run { first, estimator });
            first += run.len() as u32;
        }
        // Beside its budget a row block may get what is forced: the sink, and the blocks of its own positions.
        let forced = block.0.div_ceil(block.1) + 2;
        let most_blocks = patterns.iter().map(|pattern| blocks(*pattern)).max().unwrap_or(0).max(forced);
        Ok(BlockSparsePlan { runs, settings, heads: first, most_blocks })
    }

    /// Key blocks that a row block's list has room for.
    fn capacity(&self, bounds: Bounds) -> u32 {
        self.most_blocks.min(bounds.max_kv.div_ceil(self.settings.block.1)).max(1)
    }

    fn rows(&self, bounds: Bounds) -> u32 {
        bounds.max_q.div_ceil(self.settings.block.0)
    }

    pub(crate) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let counts = u64::from(bounds.batch) * u64::from(self.heads) * u64::from(self.rows(bounds)) * 4;
        let runs = self.runs.iter().map(|run| match &run.estimator {
            Estimator::Pooled(plan) => RunParts::Pooled(plan.part(layout, bounds)),
            Estimator::Antidiagonal(plan) => RunParts::Antidiagonal(plan.parts(layout, bounds)),
        });
        let runs = runs.collect();
        Parts {
            counts: layout.part(counts),
            indices: layout.part(counts.saturating_mul(u64::from(self.capacity(bounds)))),
            runs,
        }
    }

    /// Checks that the kernels have room for the bounds.
    pub(crate) fn check(&self, bounds: Bounds) -> Result<(), Error> {
        if bounds.max_kv <= self.settings.max_kv {
            return Ok(());
        }
        let message =
            format!("max_kv is {}; the layer was built for {}, build it for more", bounds.max_kv, self.settings.max_kv);
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
        let (rows, capacity) = (self.rows(bounds), self.capacity(bounds));
        let shape = [bounds.batch, self.heads, rows, capacity].map(u64::from);
        let counts = workspace.tensor(parts.counts, DType::I32, &shape[..3])?;
        let indices = workspace.tensor(parts.indices, DType::I32, &shape)?;
        for (run, part) in self.runs.iter().zip(&parts.runs) {
            let input = input.heads_from(run.first);
            let lists = Lists { counts, indices, first: run.first, rows, capacity };
            match (&run.estimator, part) {
                (Estimator::Pooled(plan), RunParts::Pooled(means)) => {
                    plan.launch(stream, &input, *means, workspace, &lists)?;
                }
                (Estimator::Antidiagonal(plan), RunParts::Antidiagonal(parts)) => {
                    plan.launch(stream, &input, parts, workspace, &lists)?;
                }
                _ => unreachable!("parts are made of the runs in their order"),
            }
        }
        Ok(BlockSparseIndex { partial: BlockLists { counts, indices }, full: None })
    }
}

/// Key blocks of a row block, at most: a budget or a limit.
fn blocks(pattern: HeadPattern) -> u32 {
    match pattern {
        HeadPattern::BlockSparse { blocks } | HeadPattern::Antidiagonal { blocks, .. } => blocks,
        _ => 0,
    }
}

/// The lists of a group, as a run of its heads writes them.
pub(super) struct Lists<'a> {
    counts: TensorView<'a>,
    indices: TensorView<'a>,
    /// The run's first head.
    first: u32,
    /// Row blocks.
    pub(super) rows: u32,
    capacity: u32,
}

impl Lists<'_> {
    /// Sets `partial_counts`, `partial_indices`, their strides and `capacity`.
    pub(super) fn arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        let (counts, indices, first) = (&self.counts, &self.indices, u64::from(self.first));
        arguments
            .pointer("partial_counts", counts.address() + first * counts.byte_stride(1))
            .u64("counts_batch", counts.byte_stride(0))
            .u64("counts_head", counts.byte_stride(1))
            .pointer("partial_indices", indices.address() + first * indices.byte_stride(1))
            .u64("indices_batch", indices.byte_stride(0))
            .u64("indices_head", indices.byte_stride(1))
            .u64("indices_row", indices.byte_stride(2))
            .u32("capacity", self.capacity)
    }
}
