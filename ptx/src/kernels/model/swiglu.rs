//! The gated activation of a feed-forward layer (Shazeer, "GLU variants improve transformer", 2020).

use super::chunk;
use crate::{
    isa::{Arch, Builder, Cache, Launch, MmaType, RF},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::overlap,
};

/// `out = silu(gate) · up`, where `silu(x) = x / (1 + exp(−x))`.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `gate`, `up` | pointer | rows of `width` elements |
/// | `out` | pointer | rows of `width` elements; may be `gate` or `up` |
/// | `gate_row`, `up_row`, `out_row` | u64 | bytes from one row to the next |
///
/// A fused projection `[rows, 2 · width]` is read by passing its two halves with the same row stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SwigluSpec {
    /// Elements a row: a multiple of 8.
    pub width: u32,
    /// Element type.
    pub dtype: MmaType,
    /// Architecture of the text.
    pub arch: Arch,
}

impl SwigluSpec {
    /// Blocks to launch for this many rows.
    pub fn grid(&self, rows: u32) -> [u32; 3] {
        chunk::grid(self.width, rows)
    }
}

impl KernelSpec for SwigluSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("swiglu_w{}_{}_{}", self.width, self.dtype.suffix(), self.arch.name());
        let launch = Launch { threads: chunk::threads(self.width), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let [gate, up, out] = ["gate", "up", "out"].map(|name| k.parameter(name, ParameterKind::Pointer));
        let [gate_row, up_row, out_row] =
            ["gate_row", "up_row", "out_row"].map(|name| k.parameter(name, ParameterKind::U64));
        overlap::follow(&mut k);
        let row = k.block_x();
        let (offset, inside) = chunk::own(&mut k, self.width);
        k.if_then(inside, |k| {
            let [gate, up] = [(gate, gate_row), (up, up_row)].map(|(base, stride)| {
                let address = chunk::row_address(k, base, row, stride, offset);
                chunk::load(k, self.dtype, address, Cache::Default)
            });
            let product = std::array::from_fn(|i| {
                let silu = silu(k, gate[i]);
                k.mul_f(silu, up[i])
            });
            let address = chunk::row_address(k, out, row, out_row, offset);
            chunk::store(k, self.dtype, address, product);
        });
        k.ret();
        k.finish()
    }
}

/// `x / (1 + exp(−x))`.
pub(super) fn silu(k: &mut Builder, x: RF) -> RF {
    // exp(−x) overflows to infinity for very negative x, and x / ∞ is the right limit.
    let exponent = k.mul_f(x, -std::f32::consts::LOG2_E);
    let decay = k.exp2_f(exponent);
    let denominator = k.add_f(decay, 1.0);
    let sigmoid = k.rcp_f(denominator);
    k.mul_f(x, sigmoid)
}
