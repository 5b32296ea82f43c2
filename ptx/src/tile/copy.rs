//! Copies of rows from global to swizzled shared memory, many threads together.

use super::layout::{CHUNK, TileLayout};
use crate::isa::{Builder, R32, R64, RP};

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

/// Rows of one sequence in pages, found through a table. An entry of it that names no page is never followed: its rows are
/// zeros, and it is reported. Strides are below 2³², which makes an address two instructions.
#[derive(Clone, Copy, Debug)]
pub struct PagedView {
    /// Address of the first row of page 0.
    pub base: R64,
    /// Address of the sequence's table: a u32 for each page of its rows.
    pub table: R64,
    /// Pages that there are.
    pub pages: R32,
    /// Rows of a page: a power of two.
    pub page_rows: u32,
    /// Bytes from a page to the next.
    pub page_stride: R32,
    /// Bytes from a row to the next, inside a page.
    pub row_stride: R32,
    /// Address of the word that reports go to, or 0, and the bit to set there.
    pub report: (R64, u32),
}

impl PagedView {
    /// The page of a row, whether it exists, and the row's place in it.
    pub fn find(self, k: &mut Builder, row: R32) -> (R32, RP, R32) {
        let entry = k.shr_u(row, self.page_rows.ilog2());
        let at = k.mad_wide(entry, 4u32, self.table);
        let page: R32 = k.load_readonly(at, 0);
        let exists = k.lt_u(page, self.pages);
        (page, exists, k.and(row, self.page_rows - 1))
    }

    /// Reports a page that does not exist, unless `exist`.
    pub fn report_unless(self, k: &mut Builder, exist: RP) {
        let (word, bit) = self.report;
        let wild = k.not_p(exist);
        let wanted = k.ne(word, 0u64);
        let reports = k.and_p(wild, wanted);
        k.when(reports, |k| k.reduce_or(word, 0, bit));
    }
}

/// Rows of some heads of a sequence, the heads in turn: row r is row `r / heads` of head `r % heads`.
#[derive(Clone, Copy, Debug)]
pub struct InterleavedView {
    /// Address of row 0 of the first head.
    pub base: R64,
    /// Heads that take turns.
    pub heads: R32,
    /// Bytes from a row to the next of the same head.
    pub row_stride: R64,
    /// Bytes from a head to the next.
    pub head_stride: R64,
}

impl InterleavedView {
    /// Row of its head, and head, of a row.
    pub fn find(self, k: &mut Builder, row: R32) -> (R32, R32) {
        let own = k.div_u(row, self.heads);
        let before = k.mul(own, self.heads);
        (own, k.sub(row, before))
    }

    /// Address of a row.
    pub fn row(self, k: &mut Builder, row: R32) -> R64 {
        let (row, head) = self.find(k, row);
        let (row, head) = (k.widen_u(row), k.widen_u(head));
        let first = k.mad(row, self.row_stride, self.base);
        k.mad(head, self.head_stride, first)
    }
}

/// Rows in global memory, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub enum RowSource {
    /// At equal distances.
    Strided(RowView),
    /// Heads in turn.
    Interleaved(InterleavedView),
    /// In pages.
    Paged(PagedView),
}

impl From<RowView> for RowSource {
    fn from(view: RowView) -> RowSource {
        RowSource::Strided(view)
    }
}

impl RowSource {
    /// Address of row 0, or of the first row of page 0.
    pub fn base(self) -> R64 {
        match self {
            RowSource::Strided(view) => view.base,
            RowSource::Interleaved(view) => view.base,
            RowSource::Paged(view) => view.base,
        }
    }

    /// The rows, if they lie at equal distances.
    pub fn strided(self) -> Option<RowView> {
        match self {
            RowSource::Strided(view) => Some(view),
            RowSource::Interleaved(_) | RowSource::Paged(_) => None,
        }
    }

    /// The same rows seen from another base.
    pub fn at(self, base: R64) -> RowSource {
        match self {
            RowSource::Strided(view) => RowSource::Strided(RowView { base, ..view }),
            RowSource::Interleaved(view) => RowSource::Interleaved(InterleavedView { base, ..view }),
            RowSource::Paged(view) => RowSource::Paged(PagedView { base, ..view }),
        }
    }

    /// Address of a row and, of one in a page, whether the page exists. If it does not, the address is not to be read, and
    /// [`RowSource::report_unless`] is to be told.
    pub fn row(self, k: &mut Builder, row: R32) -> (R64, Option<RP>) {
        match self {
            RowSource::Strided(view) => (view.row(k, row), None),
            RowSource::Interleaved(view) => (view.row(k, row), None),
            RowSource::Paged(view) => {
                let (page, exists, place) = view.find(k, row);
                let page = k.select(exists, page, 0u32);
                let first = k.mad_wide(page, view.page_stride, view.base);
                (k.mad_wide(place, view.row_stride, first), Some(exists))
            }
        }
    }

    /// Reports a page that does not exist, unless all do that rows were found in.
    pub fn report_unless(self, k: &mut Builder, exist: Option<RP>) {
        if let (RowSource::Paged(view), Some(exist)) = (self, exist) {
            view.report_unless(k, exist);
        }
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

    /// The rows as this thread sees them: each from its own chunk on.
    pub fn own_chunk(&self, k: &mut Builder, rows: impl Into<RowSource>) -> RowSource {
        let rows = rows.into();
        let column = k.widen_u(self.column);
        rows.at(k.add(rows.base(), column))
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

    /// Copies rows `first`, `first + 1`, … of `view` (as of [`TileCopy::own_chunk`]), all of which exist.
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

    /// Copies the rows that `row_of` gives for this thread's passes; rows from `bound` on (unsigned, `bound` > 0) and those of
    /// pages that do not exist become zeros and are not read.
    pub fn copy_rows(
        &self,
        k: &mut Builder,
        target: R32,
        rows: RowSource,
        bound: R32,
        row_of: impl Fn(&mut Builder, u32) -> R32,
    ) {
        self.copy_passes(k, target, rows, bound, self.passes(), row_of);
    }

    /// As [`TileCopy::copy_rows`], of the tile's first rows only: those of `passes` passes.
    pub fn copy_passes(
        &self,
        k: &mut Builder,
        target: R32,
        rows: RowSource,
        bound: R32,
        passes: u32,
        row_of: impl Fn(&mut Builder, u32) -> R32,
    ) {
        debug_assert!(self.rows_per_pass() == 4 || self.rows_per_pass().is_multiple_of(8));
        let last = k.sub(bound, 1u32);
        // Four rows further down the swizzle changes bit 2 of the chunk.
        let targets = if self.rows_per_pass() == 4 { [target, k.xor(target, 4 * CHUNK)] } else { [target; 2] };
        let mut all_found: Option<RP> = None;
        for pass in 0..passes {
            let target = targets[pass as usize % 2];
            let row = row_of(k, pass * self.rows_per_pass());
            let exists = k.lt_u(row, bound);
            let bytes = k.select(exists, CHUNK, 0u32);
            let row = k.min_u(row, last);
            let (source, found) = rows.row(k, row);
            let bytes = found.map_or(bytes, |found| k.select(found, bytes, 0u32));
            self.copy_row(k, target, pass, source, Some(bytes));
            all_found = found.map(|found| all_found.map_or(found, |all| k.and_p(all, found)));
        }
        // Once for all of them: a register less for each.
        rows.report_unless(k, all_found);
    }

    /// Copies rows `first`, `first + 1`, …, of which those from `bound` on become zeros.
    pub fn copy_bounded(&self, k: &mut Builder, target: R32, rows: RowSource, first: R32, bound: R32) {
        let own = self.row(k);
        let first = k.add(first, own);
        self.copy_rows(k, target, rows, bound, |k, below| k.add(first, below));
    }
}
