//! Where keys and values lie.

use super::{
    batch::{address, status},
    error::SpecError,
    meta::ParameterKind::{Pointer, U32, U64},
};
use crate::{
    isa::{Builder, R32, R64},
    tile::copy::{PagedView, RowSource, RowView},
};

/// Where keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// By strides: `[batch, seq, heads, head_dim]`, or packed `[total, heads, head_dim]` with starting rows.
    Strided,
    /// In pages `[pages, page, heads, head_dim]`, by strides too: key r of sequence b is row `r % page` of the page that entry
    /// `r / page` of row b of a table names. Keys of an entry that names no page are zeros.
    Paged {
        /// Tokens a page: 16, 32, 64, 128 or 256.
        page: u32,
    },
}

impl KvLayout {
    /// What kernel names end in.
    pub(crate) fn suffix(self) -> String {
        match self {
            KvLayout::Strided => String::new(),
            KvLayout::Paged { page } => format!("_paged{page}"),
        }
    }

    pub(crate) fn check(self, errors: &mut Vec<SpecError>) {
        if let KvLayout::Paged { page } = self
            && !(page.is_power_of_two() && (16..=256).contains(&page))
        {
            let message = format!("pages of {page} tokens are not generated; use 16, 32, 64, 128 or 256");
            errors.push(SpecError::new("kv", message));
        }
    }
}

/// Keys or values.
#[derive(Clone, Copy)]
pub(crate) struct KvTensor {
    base: R64,
    head: R64,
    strides: Strides,
}

/// Byte strides beside the heads'.
#[derive(Clone, Copy)]
enum Strides {
    Sequences { batch: R64, row: R64 },
    Pages { page: R32, row: R32 },
}

impl KvTensor {
    /// Declares pointer `name` and its strides.
    pub(crate) fn declare(k: &mut Builder, layout: KvLayout, name: &'static str) -> KvTensor {
        let base = k.parameter(name, Pointer);
        KvTensor::at(k, layout, name, base)
    }

    /// Declares the byte strides of `name`, which is at `base`: u64 `_batch _row _head`; of pages u32 `_page _row` and u64
    /// `_head`.
    pub(crate) fn at(k: &mut Builder, layout: KvLayout, name: &'static str, base: R64) -> KvTensor {
        let [batch, page, row, head] = match name {
            "k" => ["k_batch", "k_page", "k_row", "k_head"],
            _ => ["v_batch", "v_page", "v_row", "v_head"],
        };
        let strides = match layout {
            KvLayout::Strided => Strides::Sequences { batch: k.parameter(batch, U64), row: k.parameter(row, U64) },
            KvLayout::Paged { .. } => Strides::Pages { page: k.parameter(page, U32), row: k.parameter(row, U32) },
        };
        KvTensor { base, head: k.parameter(head, U64), strides }
    }

    /// The rows of one head of a sequence. `first` is its first row where it is packed, `table` is there for pages.
    pub(crate) fn rows(
        self,
        k: &mut Builder,
        table: Option<PageTable>,
        batch: R32,
        head: R32,
        first: R32,
    ) -> RowSource {
        match self.strides {
            Strides::Sequences { batch: stride, row } => {
                let base = address(k, self.base, [(batch, stride), (head, self.head), (first, row)]);
                RowView { base, stride: row }.into()
            }
            Strides::Pages { page, row } => {
                let table = table.expect("pages have a table");
                RowSource::Paged(PagedView {
                    base: address(k, self.base, [(head, self.head)]),
                    table: table.of(k, batch),
                    pages: table.pages,
                    page_rows: table.page_rows,
                    page_stride: page,
                    row_stride: row,
                    report: (table.status, status::INDEX),
                })
            }
        }
    }
}

/// The page table of a launch: pointer `page_table` (u32), its byte stride `page_table_batch` from a sequence to the next, and
/// `pages`, how many there are. A sequence's entries reach up to `max_kv`.
#[derive(Clone, Copy)]
pub(crate) struct PageTable {
    entries: R64,
    batch: R64,
    pages: R32,
    page_rows: u32,
    status: R64,
}

impl PageTable {
    /// Declares the parameters, if the layout has any. Wild entries are reported in `status`.
    pub(crate) fn declare(k: &mut Builder, layout: KvLayout, status: R64) -> Option<PageTable> {
        let KvLayout::Paged { page } = layout else { return None };
        Some(PageTable {
            entries: k.parameter("page_table", Pointer),
            batch: k.parameter("page_table_batch", U64),
            pages: k.parameter("pages", U32),
            page_rows: page,
            status,
        })
    }

    /// Address of a sequence's entries.
    fn of(self, k: &mut Builder, batch: R32) -> R64 {
        address(k, self.entries, [(batch, self.batch)])
    }

    /// The rows with the address of the table found again: a loop keeps two registers less. Sequences lie along z.
    pub(crate) fn again(self, k: &mut Builder, rows: RowSource) -> RowSource {
        let RowSource::Paged(view) = rows else { return rows };
        let batch = k.block_z();
        RowSource::Paged(PagedView { table: self.of(k, batch), ..view })
    }
}
