//! Planning vertical-slash heads: estimate, then selection (MInference §1.3).

use super::{HeadLists, Layout, Part, VerticalSlashIndex, Workspace, input::PlanInput};
use crate::{
    Arguments, Bounds, Buffer, DType, Device, Error, KvLayout, LoadedKernel, Stream, TensorView, batch::map_arguments,
};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::index::{EstimatePass, EstimateSpec, VerticalSlashSelectSpec, share, workspace},
};

/// Columns and slashes that every head gets, as in the authors' code.
const MIN_COLUMNS: u32 = 30;
const MIN_SLASHES: u32 = 50;
/// How many of a head's columns are the first and of its slashes the nearest ones, unless the caller says so; likewise.
pub(crate) const FORCED: (u32, u32) = (30, 100);

/// How many columns or slashes a head gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Most of them.
    pub(crate) most: u32,
    /// The share of the attention that is enough; as many as there may be without it.
    pub(crate) share: Option<f32>,
}

impl Budget {
    /// The share as the selection reads it.
    fn share(self) -> u32 {
        const NONE: u32 = 0;
        self.share.map_or(NONE, share)
    }
}

/// What all heads of a group have alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerticalSlashSettings {
    pub(crate) head_dim: u32,
    pub(crate) dtype: MmaType,
    /// Where keys lie.
    pub(crate) kv: KvLayout,
    /// Keys of an attention block.
    pub(crate) keys: u32,
    /// First columns and nearest slashes that are selected whatever their scores.
    pub(crate) forced: (u32, u32),
    /// Architecture of the estimate.
    pub(crate) arch: Arch,
}

/// The planner of a group of heads.
pub(crate) struct VerticalSlashPlan {
    statistics: LoadedKernel,
    scores: LoadedKernel,
    select: LoadedKernel,
    sets: Sets,
    /// u32 `[sets][heads of a set]`.
    set_heads: Buffer,
    column_sizes: Buffer,
    slash_sizes: Buffer,
    /// By head; none if no head has a share.
    column_shares: Option<Buffer>,
    slash_shares: Option<Buffer>,
    heads: u32,
    most_columns: u32,
    settings: VerticalSlashSettings,
}

/// Heads of a group by sets that share their keys: one block of the estimate each.
struct Sets {
    /// Heads of a set.
    width: u32,
    /// The heads, set by set; [`Sets::NONE`] where a set has fewer.
    heads: Vec<u32>,
}

impl Sets {
    const NONE: u32 = u32::MAX;

    /// The sets of a group whose heads have these heads of keys: of the possible widths the one with the fewest empty places,
    /// the larger one if several do.
    fn new(kv_heads: &[u32]) -> Sets {
        let mut of_keys: Vec<Vec<u32>> = Vec::new();
        for (head, kv_head) in (0..).zip(kv_heads) {
            let at = *kv_head as usize;
            of_keys.resize(of_keys.len().max(at + 1), Vec::new());
            of_keys[at].push(head);
        }
        let places =
            |width: &u32| of_keys.iter().map(|heads| heads.len().next_multiple_of(*width as usize)).sum::<usize>();
        let width = [4, 2, 1].into_iter().min_by_key(places).unwrap_or(1);
        let padded = of_keys.into_iter().flat_map(|mut heads| {
            heads.resize(heads.len().next_multiple_of(width as usize), Sets::NONE);
            heads
        });
        Sets { width, heads: padded.collect() }
    }

    fn count(&self) -> u32 {
        self.heads.len() as u32 / self.width
    }
}

/// What a plan needs of the workspace.
pub(crate) struct Parts {
    statistics: Part,
    vertical_scores: Part,
    slash_scores: Part,
    offsets: Part,
    offset_counts: Part,
    columns: Part,
    column_counts: Part,
    visited: Part,
}

impl VerticalSlashPlan {
    /// Loads the kernels and uploads each head's budget: columns and slashes. `kv_heads` says which keys each head has.
    pub(crate) fn build(
        device: &Device,
        stream: &Stream,
        settings: VerticalSlashSettings,
        kv_heads: &[u32],
        budgets: &[[Budget; 2]],
    ) -> Result<VerticalSlashPlan, Error> {
        let VerticalSlashSettings { head_dim, dtype, kv, keys, arch, .. } = settings;
        let sets = Sets::new(kv_heads);
        let heads = sets.width;
        let estimate = |pass| device.load(&ptx::generate(&EstimateSpec { pass, heads, head_dim, dtype, kv, arch })?);
        let most = |kind: usize| -> Vec<u32> { budgets.iter().map(|budget| budget[kind].most).collect() };
        let (columns, slashes) = (most(0), most(1));
        let shares = |kind: usize| {
            let some = budgets.iter().any(|budget| budget[kind].share.is_some());
            let shares: Vec<u32> = budgets.iter().map(|budget| budget[kind].share()).collect();
            some.then(|| device.upload(stream, &shares)).transpose()
        };
        Ok(VerticalSlashPlan {
            statistics: estimate(EstimatePass::Statistics)?,
            scores: estimate(EstimatePass::Scores)?,
            select: device.load(&ptx::generate(&VerticalSlashSelectSpec { block: keys, arch: Arch::Sm80 })?)?,
            set_heads: device.upload(stream, &sets.heads)?,
            sets,
            column_sizes: device.upload(stream, &columns)?,
            slash_sizes: device.upload(stream, &slashes)?,
            column_shares: shares(0)?,
            slash_shares: shares(1)?,
            heads: budgets.len() as u32,
            most_columns: columns.iter().copied().max().unwrap_or(0).max(MIN_COLUMNS),
            settings,
        })
    }

    /// Columns that a head's list has room for.
    fn capacity(&self, bounds: Bounds) -> u32 {
        self.most_columns.min(bounds.max_kv).max(1)
    }

    /// Architecture of the estimate.
    fn arch(&self) -> Arch {
        self.settings.arch
    }

    /// Begins the arguments of a pass of the estimate with its tensor map, if it has one.
    fn maps<'m>(&self, kernel: &'m LoadedKernel, input: &PlanInput) -> Result<Arguments<'m>, Error> {
        let VerticalSlashSettings { head_dim, dtype, .. } = self.settings;
        map_arguments(kernel, (head_dim, dtype), &[("k", input.k.rows)])
    }

    /// Checks that the estimate can read the tensors.
    pub(crate) fn check(&self, input: &PlanInput) -> Result<(), Error> {
        self.maps(&self.statistics, input).map(drop)
    }

    pub(crate) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let Bounds { batch, max_kv, .. } = bounds;
        let lists = u64::from(batch) * u64::from(self.heads) * 4;
        Parts {
            statistics: layout.part(workspace::statistics_bytes(
                self.arch(),
                batch,
                self.heads,
                max_kv,
                self.sets.width,
            )),
            vertical_scores: layout.part(workspace::scores_bytes(batch, self.heads, max_kv)),
            slash_scores: layout.part(workspace::scores_bytes(batch, self.heads, max_kv)),
            offsets: layout.part(lists * u64::from(workspace::offset_capacity(max_kv, self.settings.keys))),
            offset_counts: layout.part(lists),
            columns: layout.part(lists * u64::from(self.capacity(bounds))),
            column_counts: layout.part(lists),
            visited: layout.part(4 * lists),
        }
    }

    /// Launches the plan.
    pub(crate) fn launch<'a>(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'a>,
    ) -> Result<VerticalSlashIndex<'a>, Error> {
        self.estimate(stream, input, parts, workspace)?;
        self.select(stream, input, parts, workspace, None)
    }

    /// Sets what the estimate says of the columns, by head: `vertical_scores` and its strides.
    pub(super) fn column_arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        bounds: Bounds,
        parts: &Parts,
        workspace: &Workspace<'_>,
    ) -> Arguments<'m> {
        let head_bytes = workspace::score_row_bytes(bounds.max_kv);
        arguments
            .pointer("vertical_scores", workspace.address(parts.vertical_scores))
            .u64("scores_batch", head_bytes * u64::from(self.heads))
            .u64("scores_head", head_bytes)
    }

    /// Launches what scores columns and slashes.
    pub(super) fn estimate(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'_>,
    ) -> Result<(), Error> {
        let bounds = input.batch.bounds;
        let (batch, heads) = (bounds.batch, self.heads);
        let at = |part| workspace.address(part);
        let grid = [workspace::estimate_blocks(self.arch(), bounds.max_kv, self.sets.width), self.sets.count(), batch];

        let estimate = |kernel: &LoadedKernel, with_scores: bool| {
            let arguments = self.maps(kernel, input)?;
            let arguments = input.q.arguments(arguments, ["q", "q_batch", "q_row", "q_head"]);
            let arguments = input.keys(arguments);
            let arguments = input.key_arguments(input.query_arguments(arguments));
            let mut arguments = input
                .head_arguments(arguments)
                .f32("scale", input.scale)
                .pointer("status", input.status)
                .u32("slots", heads)
                .pointer("sets", self.set_heads.address())
                .pointer("statistics", at(parts.statistics));
            if with_scores {
                arguments = self
                    .column_arguments(arguments, bounds, parts, workspace)
                    .pointer("slash_scores", at(parts.slash_scores));
            }
            kernel.launch(stream, grid, &arguments)
        };
        estimate(&self.statistics, false)?;
        estimate(&self.scores, true)
    }

    /// Launches the selection; of a sequence only for the heads that `map`, u32 `[batch, heads]`, has an entry for.
    pub(super) fn select<'a>(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'a>,
        map: Option<&TensorView<'_>>,
    ) -> Result<VerticalSlashIndex<'a>, Error> {
        let bounds = input.batch.bounds;
        let (batch, heads) = (bounds.batch, self.heads);
        let capacities = [workspace::offset_capacity(bounds.max_kv, self.settings.keys), self.capacity(bounds)];
        let lists = |entries, counts, capacity: u32| {
            let shape = [u64::from(batch), u64::from(heads), u64::from(capacity)];
            Ok::<_, Error>(HeadLists {
                counts: workspace.tensor(counts, DType::U32, &shape[..2])?,
                entries: workspace.tensor(entries, DType::U32, &shape)?,
            })
        };
        let offsets = lists(parts.offsets, parts.offset_counts, capacities[0])?;
        let columns = lists(parts.columns, parts.column_counts, capacities[1])?;
        let visited = workspace.tensor(parts.visited, DType::U64, &[u64::from(batch), u64::from(heads), 2])?;
        let shares = |shares: &Option<Buffer>| shares.as_ref().map_or(0, Buffer::address);
        let arguments = input.key_arguments(Arguments::new(self.select.meta()));
        let arguments = self
            .column_arguments(arguments, bounds, parts, workspace)
            .pointer("slash_scores", workspace.address(parts.slash_scores))
            .pointer("vertical_sizes", self.column_sizes.address())
            .pointer("slash_sizes", self.slash_sizes.address())
            .pointer("vertical_shares", shares(&self.column_shares))
            .pointer("slash_shares", shares(&self.slash_shares))
            .pointer("head_map", map.map_or(0, TensorView::address))
            .u64("head_map_batch", map.map_or(0, |map| map.byte_stride(0)))
            .pointer("visited", visited.address())
            .u32("min_columns", MIN_COLUMNS)
            .u32("min_slashes", MIN_SLASHES)
            .u32("forced_columns", self.settings.forced.0)
            .u32("forced_slashes", self.settings.forced.1)
            .pointer("columns", columns.entries.address())
            .u64("columns_batch", columns.entries.byte_stride(0))
            .u64("columns_head", columns.entries.byte_stride(1))
            .u32("column_capacity", capacities[1])
            .pointer("column_counts", columns.counts.address())
            .pointer("offsets", offsets.entries.address())
            .u64("offsets_batch", offsets.entries.byte_stride(0))
            .u64("offsets_head", offsets.entries.byte_stride(1))
            .u32("offset_capacity", capacities[0])
            .pointer("offset_counts", offsets.counts.address())
            .pointer("status", input.status);
        self.select.launch(stream, [2, heads, batch], &arguments)?;
        Ok(VerticalSlashIndex { offsets, columns, visited: Some(visited) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(kv_heads: &[u32]) -> (u32, Vec<u32>) {
        let Sets { width, heads } = Sets::new(kv_heads);
        (width, heads)
    }

    #[test]
    fn sets_share_their_keys_and_have_few_empty_places() {
        const NONE: u32 = Sets::NONE;
        assert_eq!(sets(&[0, 0, 0, 0, 1, 1, 1, 1]), (4, (0..8).collect()));
        assert_eq!(sets(&[0, 0, 1, 1]), (2, vec![0, 1, 2, 3]));
        assert_eq!(sets(&[0, 1, 2]), (1, vec![0, 1, 2]));
        // Of seven heads one place stays empty with fours and twos alike, none with ones.
        assert_eq!(sets(&[0; 7]), (1, (0..7).collect()));
        assert_eq!(sets(&[3, 3, 5, 5, 3, 3]), (2, vec![0, 1, 4, 5, 2, 3]));
        assert_eq!(sets(&[0, 0, 0, 0, 0, 0, 2, 2]).0, 2);
        let (width, heads) = sets(&[1; 4]);
        assert!(width == 4 && !heads.contains(&NONE));
    }
}
