//! The sum of two tensors.

use super::chunk;
use crate::{
    isa::{Arch, Builder, Cache, Launch, MmaType},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::overlap,
};

/// `out = a + b`, row by row: a residual add; with `b_row = 0`, a bias add.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `a`, `b` | pointer | rows of `width` elements |
/// | `out` | pointer | rows of `width` elements; may be `a` or `b` |
/// | `a_row`, `b_row`, `out_row` | u64 | bytes from one row to the next |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddSpec {
    /// Elements a row: a multiple of 8.
    pub width: u32,
    /// Element type.
    pub dtype: MmaType,
    /// Architecture of the text.
    pub arch: Arch,
}

impl AddSpec {
    /// Blocks to launch for this many rows.
    pub fn grid(&self, rows: u32) -> [u32; 3] {
        chunk::grid(self.width, rows)
    }
}

impl KernelSpec for AddSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("add_w{}_{}_{}", self.width, self.dtype.suffix(), self.arch.name());
        let launch = Launch { threads: chunk::threads(self.width), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let [a, b, out] = ["a", "b", "out"].map(|name| k.parameter(name, ParameterKind::Pointer));
        let [a_row, b_row, out_row] = ["a_row", "b_row", "out_row"].map(|name| k.parameter(name, ParameterKind::U64));
        overlap::follow(&mut k);
        let row = k.block_x();
        let (offset, inside) = chunk::own(&mut k, self.width);
        k.if_then(inside, |k| {
            let [a, b] = [(a, a_row), (b, b_row)].map(|(base, stride)| {
                let address = chunk::row_address(k, base, row, stride, offset);
                chunk::load(k, self.dtype, address, Cache::Default)
            });
            let sum = std::array::from_fn(|i| k.add_f(a[i], b[i]));
            let address = chunk::row_address(k, out, row, out_row, offset);
            chunk::store(k, self.dtype, address, sum);
        });
        k.ret();
        k.finish()
    }
}
