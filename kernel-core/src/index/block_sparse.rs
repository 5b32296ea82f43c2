//! Planning block-sparse heads: every estimator writes into the same lists, so that one attention launch serves all.

use super::{BlockLists, BlockSparseIndex, Layout, Part, Workspace, antidiagonal, input::PlanInput, pooled};
use crate::{Arguments, Bounds, DType, Device, Error, HeadPattern, KvLayout, Stream, TensorView};
use ptx::{Arch, isa::MmaType};

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
    /// Architecture of the texts that differ.
    pub(crate) arch: Arch,
}

impl BlockSparseSettings {
    pub(super) fn key_blocks(&self) -> u32 {
        self.max_kv.div_ceil(self.block.1).max(1)
    }

    /// Checks that kernels with these settings have room for the bounds.
    pub(super) fn check(&self, bounds: Bounds) -> Result<(), Error> {
        if bounds.max_kv <= self.max_kv {
            return Ok(());
        }
        let message =
            format!("max_kv is {}; the layer was built for {}, build it for more", bounds.max_kv, self.max_kv);
        Err(Error::Setting { setting: "bounds", message })
    }
}

/// How large the lists of some heads may be.
pub(super) struct Room {
    block: (u32, u32),
    heads: u32,
    /// Key blocks of a row block.
    most: u32,
}

/// Where they are in the workspace.
pub(crate) struct ListParts {
    counts: Part,
    indices: Part,
}

impl Room {
    /// For lists of `most` blocks. Beside its budget a row block may get what is forced: the sink, and the blocks of its own
    /// positions.
    pub(super) fn new(block: (u32, u32), heads: u32, most: u32) -> Room {
        Room { block, heads, most: most.max(block.0.div_ceil(block.1) + 2) }
    }

    /// Lists, row blocks and entries of a list.
    fn shape(&self, bounds: Bounds) -> [u64; 4] {
        let capacity = self.most.min(bounds.max_kv.div_ceil(self.block.1)).max(1);
        [bounds.batch, self.heads, bounds.max_q.div_ceil(self.block.0), capacity].map(u64::from)
    }

    pub(super) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> ListParts {
        let [batch, heads, rows, capacity] = self.shape(bounds);
        let counts = (batch * heads).saturating_mul(rows * 4);
        ListParts { counts: layout.part(counts), indices: layout.part(counts.saturating_mul(capacity)) }
    }

    /// The lists, of all heads.
    pub(super) fn lists<'a>(
        &self,
        workspace: &Workspace<'a>,
        parts: &ListParts,
        bounds: Bounds,
    ) -> Result<Lists<'a>, Error> {
        let shape = self.shape(bounds);
        Ok(Lists {
            counts: workspace.tensor(parts.counts, DType::I32, &shape[..3])?,
            indices: workspace.tensor(parts.indices, DType::I32, &shape)?,
            first: 0,
            rows: shape[2] as u32,
            capacity: shape[3] as u32,
        })
    }
}

/// The planner of a group of heads.
pub(crate) struct BlockSparsePlan {
    runs: Vec<Run>,
    settings: BlockSparseSettings,
    room: Room,
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
    lists: ListParts,
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
        let (mut runs, mut first) = (Vec::new(), 0);
        for run in patterns.chunk_by(|a, b| estimator_order(*a) == estimator_order(*b)) {
            let estimator = match run[0] {
                HeadPattern::Antidiagonal { stride, .. } => {
                    Estimator::Antidiagonal(antidiagonal::Plan::build(device, stream, settings, stride, run)?)
                }
                _ => {
                    let share = |pattern| match pattern {
                        HeadPattern::FlexBlockSparse { blocks: (share, _) } => Some(share),
                        _ => None,
                    };
                    let budgets: Vec<_> = run.iter().map(|pattern| (blocks(*pattern), share(*pattern))).collect();
                    Estimator::Pooled(pooled::Plan::build(device, stream, settings, &budgets)?)
                }
            };
            runs.push(Run { first, estimator });
            first += run.len() as u32;
        }
        let most = patterns.iter().map(|pattern| blocks(*pattern)).max().unwrap_or(0);
        Ok(BlockSparsePlan { runs, settings, room: Room::new(settings.block, first, most) })
    }

    pub(crate) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let runs = self.runs.iter().map(|run| match &run.estimator {
            Estimator::Pooled(plan) => RunParts::Pooled(plan.part(layout, bounds)),
            Estimator::Antidiagonal(plan) => RunParts::Antidiagonal(plan.parts(layout, bounds)),
        });
        let runs = runs.collect();
        Parts { lists: self.room.parts(layout, bounds), runs }
    }

    /// Checks that the kernels have room for the bounds, and can read the tensors.
    pub(crate) fn check(&self, input: &PlanInput) -> Result<(), Error> {
        self.settings.check(input.batch.bounds)?;
        self.runs.iter().try_for_each(|run| match &run.estimator {
            Estimator::Pooled(_) => Ok(()),
            Estimator::Antidiagonal(plan) => plan.check(input),
        })
    }

    /// Launches the plan.
    pub(crate) fn launch<'a>(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'a>,
    ) -> Result<BlockSparseIndex<'a>, Error> {
        let all = self.room.lists(workspace, &parts.lists, input.batch.bounds)?;
        for (run, part) in self.runs.iter().zip(&parts.runs) {
            let input = input.heads_from(run.first);
            let lists = Lists { first: run.first, ..all };
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
        Ok(all.index())
    }
}

/// Key blocks of a row block, at most: a budget or a limit.
fn blocks(pattern: HeadPattern) -> u32 {
    match pattern {
        HeadPattern::BlockSparse { blocks }
        | HeadPattern::FlexBlockSparse { blocks: (_, blocks) }
        | HeadPattern::Antidiagonal { blocks, .. } => blocks,
        _ => 0,
    }
}

/// The lists of a group, as a run of its heads writes them.
#[derive(Clone, Copy)]
pub(super) struct Lists<'a> {
    counts: TensorView<'a>,
    indices: TensorView<'a>,
    /// The run's first head.
    first: u32,
    /// Row blocks.
    pub(super) rows: u32,
    capacity: u32,
}

impl<'a> Lists<'a> {
    /// The lists as attention reads them.
    pub(super) fn index(&self) -> BlockSparseIndex<'a> {
        BlockSparseIndex { partial: BlockLists { counts: self.counts, indices: self.indices }, full: None }
    }

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
