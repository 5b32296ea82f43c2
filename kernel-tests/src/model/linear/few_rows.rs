//! Products of up to 64 rows by the generated kernels, which read the weights once.

use crate::model::Error;
use kernel_core::{Arguments, Buffer, LoadedKernel, Stream};
use ptx::{Arch, generate, isa::MmaType, kernels::model::LinearSpec};

/// Bounds of the rows that there are kernels for.
const ROWS: [u32; 7] = [8, 16, 24, 32, 40, 48, 64];
/// Multiprocessors of an H100 or H200, which have a block each.
const BLOCKS: u32 = 132;
/// Outputs that there are tickets for.
const MOST_OUTPUTS: usize = 1 << 18;

/// The kernels, and what their launches share: those of one stream.
pub(crate) struct FewRows {
    kernels: Vec<(LinearSpec, LoadedKernel)>,
    parts: Buffer,
    tickets: Buffer,
    /// Least elements of a matrix that is taken.
    least_elements: usize,
}

/// Rows of the weights that a block multiplies with at a time: the best of all for large matrices.
const TILE: u32 = 128;
/// Least elements of a matrix. Of smaller ones a block has a few steps only, and spends as long on the first of them and on
/// adding parts; cuBLASLt is faster there.
pub(crate) const LEAST_ELEMENTS: usize = 1 << 25;

/// The kernels for all bounds, products and gated products.
pub(crate) fn specs(arch: Arch) -> impl Iterator<Item = LinearSpec> {
    ROWS.into_iter().flat_map(move |rows| {
        let spec = LinearSpec { rows, tile: TILE, blocks: BLOCKS, gated: false, dtype: MmaType::Bf16, arch };
        [spec, LinearSpec { gated: true, ..spec }]
    })
}

impl FewRows {
    pub(crate) fn new(stream: &Stream, specs: impl IntoIterator<Item = LinearSpec>) -> Result<FewRows, Error> {
        let device = stream.device();
        let load = |spec: LinearSpec| -> Result<_, Error> {
            let kernel = generate(&spec).map_err(kernel_core::Error::from)?;
            Ok((spec, device.load(&kernel)?))
        };
        let kernels = specs.into_iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let specs = || kernels.iter().map(|(spec, _)| spec);
        let parts = specs().map(LinearSpec::parts_bytes).max().unwrap_or(0);
        let tickets = specs().map(|spec| spec.tickets(MOST_OUTPUTS as u32)).max().unwrap_or(0);
        let tickets = device.upload(stream, &vec![0u32; tickets as usize])?;
        let parts = device.allocate(parts as usize)?;
        Ok(FewRows { parts, tickets, kernels, least_elements: LEAST_ELEMENTS })
    }

    /// Also takes smaller matrices.
    pub(crate) fn take_from(&mut self, least_elements: usize) {
        self.least_elements = least_elements;
    }

    /// Whether this many rows, outputs and inputs are better computed by a kernel from here.
    pub(crate) fn takes(&self, [rows, outputs, inputs]: [usize; 3]) -> bool {
        let fits = |width: usize| width > 0 && width.is_multiple_of(8);
        let large = outputs * inputs >= self.least_elements;
        (1..=64).contains(&rows) && fits(outputs) && outputs <= MOST_OUTPUTS && fits(inputs) && large
    }

    /// Row-major `out[rows, outputs] = x[rows, inputs] · weights[outputs, inputs]ᵀ`; with `gated` the weights are those of the
    /// gate and below them those of what it gates.
    pub(crate) fn multiply(
        &self,
        stream: &Stream,
        x: &Buffer,
        weights: &Buffer,
        out: &Buffer,
        [rows, outputs, inputs]: [usize; 3],
        gated: bool,
    ) -> Result<(), Error> {
        let fitting = self.kernels.iter().filter(|(spec, _)| spec.gated == gated && spec.rows as usize >= rows);
        let (spec, kernel) =
            fitting.min_by_key(|(spec, _)| spec.rows).expect("a kernel for every number of rows that is taken");
        let (x_row, out_row) = (2 * inputs as u64, 2 * outputs as u64);
        let arguments = Arguments::new(kernel.meta())
            .pointer("x", x.address())
            .pointer("weights", weights.address())
            .pointer("out", out.address())
            .u64("x_row", x_row)
            .u64("weights_row", x_row)
            .u64("out_row", out_row)
            .u32("rows", rows as u32)
            .u32("outputs", outputs as u32)
            .u32("inputs", inputs as u32)
            .pointer("parts", self.parts.address())
            .pointer("tickets", self.tickets.address());
        Ok(kernel.launch(stream, spec.grid(), &arguments)?)
    }
}
