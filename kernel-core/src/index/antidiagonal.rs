//! Planning by antidiagonal sums (XAttention, §2), a slice of row blocks after the other.

use super::{
    Layout, Part, Workspace,
    block_sparse::{BlockSparseSettings, Lists},
    input::PlanInput,
};
use crate::{Arguments, Bounds, Buffer, Device, Error, HeadPattern, LoadedKernel, Stream, batch::map_arguments};
use ptx::{
    Arch,
    kernels::index::{AntidiagonalSelectSpec, AntidiagonalSumsSpec, share, workspace},
};

/// A slice has as many tiles of queries as fit in this, at least one, and no more than a kernel takes.
const SLICE_BYTES: u64 = 256 << 20;

/// The planner of a run of heads with one stride.
pub(super) struct Plan {
    sums: LoadedKernel,
    select: LoadedKernel,
    shares: Buffer,
    limits: Buffer,
    stride: u32,
    heads: u32,
    settings: BlockSparseSettings,
}

/// What a plan needs of the workspace.
pub(super) struct Parts {
    /// Tiles of queries in a slice.
    tiles: u32,
    statistics: Part,
    block_sums: Part,
}

impl Plan {
    /// Loads the kernels and uploads each head's threshold and limit.
    pub(super) fn build(
        device: &Device,
        stream: &Stream,
        settings: BlockSparseSettings,
        stride: u32,
        patterns: &[HeadPattern],
    ) -> Result<Plan, Error> {
        let BlockSparseSettings { head_dim, dtype, kv, block, arch, .. } = settings;
        let sums = AntidiagonalSumsSpec { stride, block: block.1, head_dim, dtype, kv, arch };
        let (arch, key_blocks) = (Arch::Sm80, settings.key_blocks());
        let select = AntidiagonalSelectSpec { stride, block, key_blocks, arch };
        let asked = patterns.iter().filter_map(|pattern| match *pattern {
            HeadPattern::Antidiagonal { threshold, blocks, .. } => Some((share(threshold), blocks)),
            _ => None,
        });
        let (shares, limits): (Vec<u32>, Vec<u32>) = asked.unzip();
        Ok(Plan {
            sums: device.load(&ptx::generate(&sums)?)?,
            select: device.load(&ptx::generate(&select)?)?,
            shares: device.upload(stream, &shares)?,
            limits: device.upload(stream, &limits)?,
            stride,
            heads: shares.len() as u32,
            settings,
        })
    }

    pub(super) fn parts(&self, layout: &mut Layout, bounds: Bounds) -> Parts {
        let Bounds { batch, max_q, max_kv, .. } = bounds;
        let (heads, stride, block) = (self.heads, self.stride, self.settings.block.1);
        let bytes = |tiles| {
            [
                workspace::antidiagonal_statistics_bytes(batch, heads, tiles, max_kv, stride),
                workspace::antidiagonal_sums_bytes(batch, heads, tiles, max_kv, stride, block),
            ]
        };
        let tile = bytes(1).iter().sum::<u64>().max(1);
        let most = max_q.div_ceil(workspace::antidiagonal_rows(stride)).clamp(1, workspace::ANTIDIAGONAL_TILES);
        let tiles = (SLICE_BYTES / tile).clamp(1, u64::from(most)) as u32;
        let [statistics, block_sums] = bytes(tiles).map(|bytes| layout.part(bytes));
        Parts { tiles, statistics, block_sums }
    }

    /// Begins the arguments of the sums with their tensor maps, if they have any.
    fn maps(&self, input: &PlanInput) -> Result<Arguments<'_>, Error> {
        let BlockSparseSettings { head_dim, dtype, .. } = self.settings;
        map_arguments(&self.sums, (head_dim, dtype), &[("q", input.q), ("k", input.k.rows)])
    }

    /// Checks that the sums can read the tensors.
    pub(super) fn check(&self, input: &PlanInput) -> Result<(), Error> {
        self.maps(input).map(drop)
    }

    /// Launches the plan.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        input: &PlanInput,
        parts: &Parts,
        workspace: &Workspace<'_>,
        lists: &Lists<'_>,
    ) -> Result<(), Error> {
        let Bounds { batch, max_q, max_kv, .. } = input.batch.bounds;
        let (heads, stride) = (self.heads, self.stride);
        let tile_rows = workspace::antidiagonal_rows(stride);
        let row_blocks = tile_rows / self.settings.block.0;
        let all = max_q.div_ceil(tile_rows);
        for first in (0..all).step_by(parts.tiles as usize) {
            let tiles = parts.tiles.min(all - first);
            let common = |arguments| {
                let arguments = input.key_arguments(input.query_arguments(arguments));
                input
                    .head_arguments(arguments)
                    .pointer("statistics", workspace.address(parts.statistics))
                    .pointer("block_sums", workspace.address(parts.block_sums))
                    .pointer("status", input.status)
            };
            let arguments = common(self.maps(input)?);
            let arguments = input.q.arguments(arguments, ["q", "q_batch", "q_row", "q_head"]);
            let arguments = input.keys(arguments).f32("scale", input.scale).u32("first_tile", first);
            let (grid, arguments) = match self.sums.meta().arch {
                Arch::Sm80 => (workspace::antidiagonal_grid(batch, heads, tiles, max_kv, stride), arguments),
                Arch::Sm90a => {
                    let most = workspace::antidiagonal_blocks(heads, tiles, max_kv, stride);
                    let blocks = most.clamp(1, u64::from(self.sums.device().multiprocessors())) as u32;
                    ([blocks, 1, batch], arguments.u32("slots", heads).u32("tiles", tiles))
                }
            };
            self.sums.launch(stream, grid, &arguments)?;

            let first_row_block = first * row_blocks;
            let arguments = common(Arguments::new(self.select.meta()))
                .u32("first_row_block", first_row_block)
                .u32("slice_cells", tiles * tile_rows / stride)
                .pointer("shares", self.shares.address())
                .pointer("limits", self.limits.address())
                .pointer("masses", 0)
                .u64("masses_batch", 0)
                .u64("masses_head", 0)
                .u64("masses_row", 0);
            let rows = (tiles * row_blocks).min(lists.rows - first_row_block);
            self.select.launch(stream, [rows, heads, batch], &lists.arguments(arguments))?;
        }
        Ok(())
    }
}
