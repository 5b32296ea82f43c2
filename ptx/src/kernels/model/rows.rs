//! Rows moved by index.

use super::{STATUS_INDEX_OUT_OF_RANGE, chunk};
use crate::{
    isa::{Arch, B32, Builder, Cache, Launch, R32, R64, RP},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::overlap,
};

/// Which side of a copy the index addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowAccess {
    /// `out[i] = x[index[i]]`; an index out of range gives a row of zeros.
    Gather,
    /// `out[index[i]] = x[i]`; an index out of range writes nothing. Indices that occur twice leave either row.
    Scatter,
}

/// Copies rows of 16-bit elements by index: token embedding, rows for the LM head, keys or values into a cache.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `x` | pointer | rows of `width` elements |
/// | `out` | pointer | rows of `width` elements; shares no row with `x` |
/// | `x_row`, `out_row` | u64 | bytes from one row to the next |
/// | `index` | pointer | u32, one a block along x |
/// | `bound` | u32 | indices are less than this: rows of `x` (gather) or of `out` (scatter) |
/// | `status` | pointer | u32 word, or 0 for none: bit 2 is set where an index is out of range |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowsSpec {
    /// Which side the index addresses.
    pub access: RowAccess,
    /// Elements a row: a multiple of 8.
    pub width: u32,
    /// Architecture of the text.
    pub arch: Arch,
}

impl RowsSpec {
    /// Blocks to launch for this many indices.
    pub fn grid(&self, indices: u32) -> [u32; 3] {
        chunk::grid(self.width, indices)
    }
}

impl KernelSpec for RowsSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let verb = match self.access {
            RowAccess::Gather => "gather",
            RowAccess::Scatter => "scatter",
        };
        let entry = format!("{verb}_rows_w{}_{}", self.width, self.arch.name());
        let launch = Launch { threads: chunk::threads(self.width), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let [x, out] = ["x", "out"].map(|name| k.parameter(name, ParameterKind::Pointer));
        let [x_row, out_row] = ["x_row", "out_row"].map(|name| k.parameter(name, ParameterKind::U64));
        let index = k.parameter("index", ParameterKind::Pointer);
        let bound = k.parameter::<B32>("bound", ParameterKind::U32);
        let status = k.parameter("status", ParameterKind::Pointer);
        overlap::follow(&mut k);
        let own_row = k.block_x();
        let slot = k.mad_wide(own_row, 4u32, index);
        let indexed_row: R32 = k.load_readonly(slot, 0);
        let valid = k.lt_u(indexed_row, bound);
        report_out_of_range(&mut k, valid, status);
        let (offset, inside) = chunk::own(&mut k, self.width);
        k.if_then(inside, |k| {
            let (from, to) = match self.access {
                RowAccess::Gather => (indexed_row, own_row),
                RowAccess::Scatter => (own_row, indexed_row),
            };
            let source = chunk::row_address(k, x, from, x_row, offset);
            let target = chunk::row_address(k, out, to, out_row, offset);
            match self.access {
                RowAccess::Gather => chunk::copy_or_zero(k, valid, source, Cache::ReadOnly, target),
                RowAccess::Scatter => k.if_then(valid, |k| {
                    let words: [R32; 4] = k.load_vector(source, 0, Cache::ReadOnly);
                    k.store_vector(target, 0, words);
                }),
            }
        });
        k.ret();
        k.finish()
    }
}

/// Sets the status bit, once a block, unless `valid`, which is the same for the whole block.
pub(in crate::kernels) fn report_out_of_range(k: &mut Builder, valid: RP, status: R64) {
    let thread = k.thread();
    let first = k.eq(thread, 0u32);
    let wanted = k.ne(status, 0u64);
    let reporter = k.and_p(first, wanted);
    let invalid = k.not_p(valid);
    let reports = k.and_p(reporter, invalid);
    k.when(reports, |k| k.reduce_or(status, 0, STATUS_INDEX_OUT_OF_RANGE));
}
