//! Products of few rows and the weights of a model, beside cuBLASLt.

use crate::{
    model::{
        Error,
        linear::{
            cublas::Cublas,
            few_rows::{self, FewRows},
        },
    },
    noise::noise,
};
use kernel_core::{Buffer, Stream};
use ptx::{Arch, kernels::model::LinearSpec};

/// Bytes of all matrices of a case at least, far more than the L2 cache holds.
const WEIGHT_BYTES: usize = 256 << 20;

/// One product, bf16.
#[derive(Clone, Debug)]
pub struct LinearCase {
    /// Name.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Outputs.
    pub outputs: usize,
    /// Inputs.
    pub inputs: usize,
    /// Whether there are as many gates as outputs.
    pub gated: bool,
    /// Matrices that are read in turn.
    pub matrices: usize,
}

/// The products of a decoding step of a 7B model (Dream, Dimple).
pub fn linear_cases() -> Vec<LinearCase> {
    let matrices = [
        ("qkv", 4608, 3584, false),
        ("o", 3584, 3584, false),
        ("gate and up", 37888, 3584, false),
        ("gated", 18944, 3584, true),
        ("down", 3584, 18944, false),
        ("head", 152_064, 3584, false),
    ];
    let case = |(what, outputs, inputs, gated), rows| {
        let name = format!("linear {what} {outputs}x{inputs} {rows} rows");
        let case = LinearCase { name, rows, outputs, inputs, gated, matrices: 1 };
        LinearCase { matrices: WEIGHT_BYTES.div_ceil(case.weight_bytes()), ..case }
    };
    matrices.into_iter().flat_map(|matrix| [8, 32, 33, 64].map(|rows| case(matrix, rows))).collect()
}

impl LinearCase {
    /// Bytes of the weights, which a product must read once.
    pub fn weight_bytes(&self) -> usize {
        2 * self.weight_rows() * self.inputs
    }

    fn weight_rows(&self) -> usize {
        if self.gated { 2 * self.outputs } else { self.outputs }
    }

    /// Allocates and fills the inputs and loads the kernels: those of the reference model, with another tile or another number of blocks if given. cuBLASLt only where it is asked for.
    ///
    /// # Errors
    /// From the device, [`Error::Cublas`].
    pub fn prepare(
        &self,
        stream: &Stream,
        arch: Arch,
        (tile, blocks): (Option<u32>, Option<u32>),
        cublas: bool,
    ) -> Result<PreparedLinear, Error> {
        let device = stream.device();
        let specs = few_rows::specs(arch).filter(|spec| spec.gated == self.gated);
        let specs = specs.map(|spec| LinearSpec {
            tile: tile.unwrap_or(spec.tile),
            blocks: blocks.unwrap_or(spec.blocks),
            ..spec
        });
        let seeds = 0..self.matrices as u64;
        let weights = seeds.map(|seed| noise(stream, self.weight_bytes() / 2, seed, 0.02));
        let weights = weights.collect::<Result<_, _>>()?;
        // The kernels read them before the launches in front have ended.
        stream.synchronize()?;
        Ok(PreparedLinear {
            case: self.clone(),
            few_rows: FewRows::new(stream, specs)?,
            cublas: cublas.then(|| Cublas::new(stream)).transpose()?,
            weights,
            x: noise(stream, self.rows * self.inputs, self.matrices as u64, 1.0)?,
            out: device.allocate(2 * self.rows * self.weight_rows())?,
        })
    }
}

/// Products ready to launch.
pub struct PreparedLinear {
    case: LinearCase,
    few_rows: FewRows,
    cublas: Option<Cublas>,
    weights: Vec<Buffer>,
    x: Buffer,
    out: Buffer,
}

impl PreparedLinear {
    /// Products of a call of [`PreparedLinear::run`] or [`PreparedLinear::run_cublas`].
    pub fn products(&self) -> usize {
        self.weights.len()
    }

    /// Launches the kernel once for each matrix.
    ///
    /// # Errors
    /// From the launches.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        let LinearCase { rows, outputs, inputs, gated, .. } = self.case;
        let shape = [rows, outputs, inputs];
        self.weights
            .iter()
            .try_for_each(|weights| self.few_rows.multiply(stream, &self.x, weights, &self.out, shape, gated))
    }

    /// Launches cuBLASLt once for each matrix, without what follows a gate. Nothing if the products were prepared without it.
    ///
    /// # Errors
    /// From the launches.
    pub fn run_cublas(&self, stream: &Stream) -> Result<(), Error> {
        let shape = [self.case.rows, self.case.weight_rows(), self.case.inputs];
        let Some(cublas) = &self.cublas else { return Ok(()) };
        self.weights.iter().try_for_each(|weights| cublas.multiply(stream, &self.x, weights, &self.out, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use kernel_core::Device;

    #[test]
    fn cases_are_the_weights_of_a_step() {
        let cases = linear_cases();
        assert_eq!(cases.len(), 24);
        let bytes = |what: &str| {
            let mut named = cases.iter().filter(|case| case.name.contains(what) && case.rows == 33);
            named.next().map(LinearCase::weight_bytes).expect("a case")
        };
        assert_eq!(bytes("gated"), bytes("gate and up"));
        let layer = bytes("qkv") + bytes(" o ") + bytes("gated") + bytes("down");
        assert_eq!(28 * layer + bytes("head"), 14_140_571_648);
    }

    #[test]
    fn prepared_products_launch() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let name = "small".to_string();
        let case = LinearCase { name, rows: 9, outputs: 128, inputs: 64, gated: true, matrices: 2 };
        let prepared = case.prepare(&stream, Arch::Sm80, (Some(64), Some(3)), false).expect("a valid case");
        assert_eq!((case.weight_bytes(), prepared.products()), (32768, 2));
        assert_eq!(stream.capture_with(|stream| prepared.run(stream)).expect("may be captured").operations(), 2);
        // Without the activation there are twice as many outputs, and cuBLASLt was not asked for them.
        let written = stream.device().upload(&stream, &[0u16; 9 * 256]).expect("memory");
        let prepared = PreparedLinear { out: written, ..prepared };
        prepared.run(&stream).expect("valid launches");
        prepared.run_cublas(&stream).expect("nothing");
        let out = prepared.out.read::<bf16>(&stream).expect("all written");
        assert!(out[..9 * 128].iter().all(|value| value.is_finite() && value.to_f32() != 0.0));
        assert!(out[9 * 128..].iter().all(|value| value.to_f32() == 0.0));
    }
}
