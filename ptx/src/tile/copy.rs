//! Copies of rows from global to swizzled shared memory, many threads together.

use super::layout::{CHUNK, TileLayout};
use crate::isa::{Builder, R32, R64};

/// Rows in global memory: address of row 0 and bytes from a row to the next.
#[derive(Clone, Copy, Debug)]
pub struct RowView {
    /// Address of row 0.
    pub base: R64,
    /// Bytes from a row to the next.
    pub stride: R64,
}

impl RowView {
    /// Address of a row.
    pub fn row(self, k: &mut Builder, row: R32) -> R64 {
        let row = k.widen_u(row);
        k.mad(row, self.stride, self.base)
    }
}

/// How the threads of a block, or some of its warps, share the copying of a tile: a group of neighbouring chunks a row of
/// lanes, so that whole sectors are read; rows of lanes follow one another down the tile.
pub struct TileCopy {
    layout: TileLayout,
    threads: u32,
    /// Bytes from the row's start to this thread's chunk in global memory.
    column: R32,
    /// Offset of the thread's first chunk in the tile.
    offset: R32,
}

fn own_row(k: &mut Builder, layout: TileLayout, threads: u32) -> R32 {
    let mut thread = k.thread();
    if threads < k.threads() {
        thread = k.and(thread, threads - 1);
    }
    k.shr_u(thread, layout.chunk_group().ilog2())
}

impl TileCopy {
    /// A copy of tiles of this layout by `threads` threads: the whole block, or a power of two that begins at a multiple of
    /// itself. `thread` counts among them.
    pub fn new(k: &mut Builder, layout: TileLayout, threads: u32, thread: R32) -> TileCopy {
        let group = layout.chunk_group();
        let row = own_row(k, layout, threads);
        let chunk = k.and(thread, group - 1);
        let offset = layout.lane_offset(k, row, chunk);
        let column = k.shl(chunk, CHUNK.ilog2());
        TileCopy { layout, threads, column, offset }
    }

    /// Rows between two rows of one thread: a multiple of 8, so that the swizzle is the same for both, or 4, with which it
    /// alternates.
    pub fn rows_per_pass(&self) -> u32 {
        self.threads / self.layout.chunk_group()
    }

    /// Rows of one thread.
    pub fn passes(&self) -> u32 {
        self.layout.rows / self.rows_per_pass()
    }

    /// The view as this thread sees it: row 0 at its own chunk.
    pub fn own_chunk(&self, k: &mut Builder, view: RowView) -> RowView {
        let column = k.widen_u(self.column);
        RowView { base: k.add(view.base, column), stride: view.stride }
    }

    /// First of this thread's rows in the tile; the others follow after `rows_per_pass`. It is found again
    /// at every use: a register less in the loop.
    pub fn row(&self, k: &mut Builder) -> R32 {
        own_row(k, self.layout, self.threads)
    }

    /// Where in the tile at `tile` this thread's first chunk goes.
    pub fn target(&self, k: &mut Builder, tile: R32) -> R32 {
        k.add(tile, self.offset)
    }

    /// Chunks of one row, from `source` to pass `pass` of the target.
    fn copy_row(&self, k: &mut Builder, target: R32, pass: u32, source: R64, bytes: Option<R32>) {
        for (place, along) in self.layout.groups() {
            let to = (target, i64::from(pass * self.rows_per_pass() * self.layout.row_bytes) + place);
            match bytes {
                None => k.copy_async_at(to, (source, along), CHUNK),
                Some(bytes) => k.copy_async_at(to, (source, along), bytes),
            }
        }
    }

    /// Copies rows `first`, `first + 1`, … of `view` (from [`TileCopy::own_chunk`]), all of which exist.
    pub fn copy_whole(&self, k: &mut Builder, target: R32, view: RowView, first: R32) {
        debug_assert!(self.rows_per_pass().is_multiple_of(8), "the swizzle alternates; only `copy_passes` follows it");
        let own = self.row(k);
        let first = k.add(first, own);
        let mut source = view.row(k, first);
        let step = k.mul(view.stride, u64::from(self.rows_per_pass()));
        for pass in 0..self.passes() {
            if pass > 0 {
                source = k.add(source, step);
            }
            self.copy_row(k, target, pass, source, None);
        }
    }

    /// Copies the rows that `row_of` gives for this thread's passes; rows from `bound` on (unsigned, `bound` > 0) become
    /// zeros and are not read.
    pub fn copy_rows(
        &self,
        k: &mut Builder,
        target: R32,
        view: RowView,
        bound: R32,
        row_of: impl Fn(&mut Builder, u32) -> R32,
    ) {
        self.copy_passes(k, target, view, bound, self.passes(), row_of);
    }

    /// As [`TileCopy::copy_rows`], of the tile's first rows only: those of `passes` passes.
    pub fn copy_passes(
        &self,
        k: &mut Builder,
        target: R32,
        view: RowView,
        bound: R32,
        passes: u32,
        row_of: impl Fn(&mut Builder, u32) -> R32,
    ) {
        debug_assert!(self.rows_per_pass() == 4 || self.rows_per_pass().is_multiple_of(8));
        let last = k.sub(bound, 1u32);
        // Four rows further down the swizzle changes bit 2 of the chunk.
        let targets = if self.rows_per_pass() == 4 { [target, k.xor(target, 4 * CHUNK)] } else { [target; 2] };
        for pass in 0..passes {
            let target = targets[pass as usize % 2];
            let row = row_of(k, pass * self.rows_per_pass());
            let exists = k.lt_u(row, bound);
            let bytes = k.select(exists, CHUNK, 0u32);
            let row = k.min_u(row, last);
            let source = view.row(k, row);
            self.copy_row(k, target, pass, source, Some(bytes));
        }
    }

    /// Copies rows `first`, `first + 1`, …, of which those from `bound` on become zeros.
    pub fn copy_bounded(&self, k: &mut Builder, target: R32, view: RowView, first: R32, bound: R32) {
        let own = self.row(k);
        let first = k.add(first, own);
        self.copy_rows(k, target, view, bound, |k, below| k.add(first, below));
    }
}
