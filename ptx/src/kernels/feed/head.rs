//! The last kernel of a pass before its LM head.

use super::range::range;
use crate::{
    isa::{Arch, B32, B64, Builder, Cache, Launch, R32, R64},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
        model::{chunk, rows::report_out_of_range},
    },
    tile::overlap,
};

/// Hidden rows of the listed positions, in the order of the list; zeros behind it.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `x` | pointer | `[requests · rows, width]`: hidden states of the pass, 16-bit elements |
/// | `x_row`, `out_row` | u64 | bytes from one row to the next |
/// | `out` | pointer | `[capacity, width]` |
/// | `list` | pointer | u32 pairs (request, response position), as the selection kernel lists them |
/// | `totals` | pointer | u32: entries of the list |
/// | `states`, `feeds`, `refresh`, `rows` | | as in [`EmbedSpec`](super::EmbedSpec) |
/// | `requests` | u32 | requests |
/// | `status` | pointer | u32 word, or 0: bit 2 for an entry whose row was not fed, which gives zeros |
///
/// Grid: [`HeadRowsSpec::grid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadRowsSpec {
    /// Elements of a row: a multiple of 8.
    pub width: u32,
    /// Architecture of the text.
    pub arch: Arch,
}

impl HeadRowsSpec {
    /// Blocks to launch for a list of at most `capacity` entries.
    pub fn grid(&self, capacity: u32) -> [u32; 3] {
        chunk::grid(self.width, capacity)
    }
}

impl KernelSpec for HeadRowsSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("head_rows_w{}_{}", self.width, self.arch.name());
        let launch = Launch { threads: chunk::threads(self.width), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        generate(&mut k, self);
        k.finish()
    }
}

fn generate(k: &mut Builder, spec: &HeadRowsSpec) {
    let [x, out] = ["x", "out"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
    let [x_row, out_row] = ["x_row", "out_row"].map(|name| k.parameter::<B64>(name, ParameterKind::U64));
    let [list, totals, states, feeds] =
        ["list", "totals", "states", "feeds"].map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));
    let [refresh, rows, requests] =
        ["refresh", "rows", "requests"].map(|name| k.parameter::<B32>(name, ParameterKind::U32));
    let status: R64 = k.parameter("status", ParameterKind::Pointer);

    overlap::follow(k);
    let entry = k.block_x();
    let listed: R32 = k.load(totals, 0);
    let in_list = k.lt_u(entry, listed);
    let (request, position) = (k.mov::<B32>(u32::MAX), k.mov::<B32>(0u32));
    k.if_then(in_list, |k| {
        let at = k.mad_wide(entry, 8u32, list);
        let [owner, place] = k.load_vector::<B32, B64, 2>(at, 0, Cache::Default);
        k.set(request, owner);
        k.set(position, place);
    });
    let exists = k.lt_u(request, requests);
    let source = k.mov::<B32>(0u32);
    let found = k.mov::<B32>(0u32);
    k.if_then(exists, |k| {
        let range = range(k, states, feeds, request, refresh, rows);
        let predicting = k.add(range.first_source, position);
        let own = k.sub(predicting, range.first);
        let fed = k.lt_u(own, range.count);
        let value = k.select::<B32>(fed, 1u32, 0u32);
        k.set(found, value);
        let row = k.mad(request, rows, own);
        k.set(source, row);
    });
    let found = k.ne(found, 0u32);
    let unlisted = k.not_p(in_list);
    let fine = k.or_p(found, unlisted);
    report_out_of_range(k, fine, status);

    let (offset, inside) = chunk::own(k, spec.width);
    k.if_then(inside, |k| {
        let target = chunk::row_address(k, out, entry, out_row, offset);
        let from = chunk::row_address(k, x, source, x_row, offset);
        chunk::copy_or_zero(k, found, from, Cache::Default, target);
    });
    k.ret();
}
