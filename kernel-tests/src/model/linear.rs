//! Matrix products. On CUDA those of up to 64 rows and large matrices are kernels of ours, and the others the one thing here
//! that is not: cuBLASLt; on the embedded backend all are `matrixmultiply`'s. Activations and weights are bfloat16, sums single precision.

pub(crate) mod cublas;
pub(crate) mod few_rows;

use super::Error;
use cublas::Cublas;
use few_rows::FewRows;
use half::bf16;
use kernel_core::{Buffer, Stream};
use std::sync::Arc;

/// Multiplies by weight matrices on one device: on one stream at a time, since products share their workspace.
pub struct Linear {
    gpu: Option<Gpu>,
}

struct Gpu {
    few_rows: FewRows,
    cublas: Cublas,
}

/// A weight matrix, `[outputs, inputs]`.
pub struct Matrix {
    storage: Storage,
    outputs: usize,
    inputs: usize,
}

enum Storage {
    Device(Buffer),
    /// Widened once, so that a product only reads it.
    Host(Arc<Vec<f32>>),
}

impl Linear {
    /// Loads cuBLASLt and the kernels for few rows, if the device is a GPU.
    ///
    /// # Errors
    /// [`Error::Cublas`] where the library is absent or refuses to start, [`Error::Kernel`] from the device.
    pub fn new(stream: &Stream) -> Result<Linear, Error> {
        let device = stream.device();
        if device.is_emulator() {
            return Ok(Linear { gpu: None });
        }
        let few_rows = FewRows::new(stream, few_rows::specs(device.arch()))?;
        Ok(Linear { gpu: Some(Gpu { few_rows, cublas: Cublas::new(stream)? }) })
    }

    /// Few rows are multiplied by the kernels of ours whatever the size of the matrix.
    pub fn without_cublas(&mut self) {
        if let Some(gpu) = &mut self.gpu {
            gpu.few_rows.take_from(0);
        }
    }

    /// The matrix of this many outputs that `values`, bf16 `[outputs, inputs]`, holds. Waits for whatever writes them: from
    /// here on they stay as they are, and products read them before the launches in front have ended.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn matrix(&self, stream: &Stream, values: Buffer, outputs: usize) -> Result<Matrix, Error> {
        let inputs = values.bytes() / 2 / outputs;
        let storage = match self.gpu {
            Some(_) => {
                stream.synchronize()?;
                Storage::Device(values)
            }
            None => {
                let values = values.read::<bf16>(stream)?;
                Storage::Host(Arc::new(values.into_iter().map(bf16::to_f32).collect()))
            }
        };
        Ok(Matrix { storage, outputs, inputs })
    }

    /// `out = x · matrixᵀ` for `rows` rows: `x` is `[rows, inputs]`, `out` `[rows, outputs]`, both contiguous and of
    /// exactly that size. May be captured. An output row depends on its own input row only; its bits do not depend on the
    /// number of rows either on the embedded backend; on CUDA cuBLASLt may sum in another order.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device, [`Error::Cublas`].
    pub fn apply(&self, stream: &Stream, x: &Buffer, matrix: &Matrix, out: &Buffer, rows: usize) -> Result<(), Error> {
        let sizes = (2 * rows * matrix.inputs, 2 * rows * matrix.outputs);
        assert_eq!((x.bytes(), out.bytes()), sizes, "activations of another shape");
        match (&self.gpu, &matrix.storage) {
            (Some(Gpu { few_rows, cublas }), Storage::Device(weights)) => {
                let shape = [rows, matrix.outputs, matrix.inputs];
                if few_rows.takes(shape) {
                    few_rows.multiply(stream, x, weights, out, shape, false)
                } else {
                    cublas.multiply(stream, x, weights, out, shape)
                }
            }
            (None, Storage::Host(weights)) => {
                let (weights, outputs, inputs) = (weights.clone(), matrix.outputs, matrix.inputs);
                let (x, out) = (x.address(), out.address());
                Ok(stream.emulate(move |memory| {
                    let x: Vec<f32> = memory.read::<bf16>(x, rows * inputs)?.into_iter().map(bf16::to_f32).collect();
                    let product = multiply(&x, &weights, rows, outputs, inputs);
                    let rounded: Vec<bf16> = product.into_iter().map(bf16::from_f32).collect();
                    memory.write(out, &rounded)
                })?)
            }
            _ => unreachable!("a matrix stays with the products that made it"),
        }
    }

    /// `out = silu(x · gateᵀ) · (x · upᵀ)` for `rows` rows, in one launch, where `matrix` is the gate's and below it that of
    /// `up`: `x` is `[rows, inputs]`, `out` half as wide as the matrix has outputs. False, and nothing is done, where there is no
    /// such kernel: on the embedded backend, for more than 64 rows and for small matrices.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn apply_gated(
        &self,
        stream: &Stream,
        x: &Buffer,
        matrix: &Matrix,
        out: &Buffer,
        rows: usize,
    ) -> Result<bool, Error> {
        let shape = [rows, matrix.outputs / 2, matrix.inputs];
        match (&self.gpu, &matrix.storage) {
            (Some(Gpu { few_rows, .. }), Storage::Device(weights)) if few_rows.takes(shape) => {
                let sizes = (2 * rows * matrix.inputs, rows * matrix.outputs);
                assert_eq!((x.bytes(), out.bytes()), sizes, "activations of another shape");
                few_rows.multiply(stream, x, weights, out, shape, true)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// `x · weightsᵀ` on all cores.
fn multiply(x: &[f32], weights: &[f32], rows: usize, outputs: usize, inputs: usize) -> Vec<f32> {
    let mut product = vec![0.0; rows * outputs];
    // SAFETY: the three slices are as long as their shapes and strides say, and `product` is not aliased.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            inputs,
            outputs,
            1.0,
            x.as_ptr(),
            inputs as isize,
            1,
            weights.as_ptr(),
            1,
            inputs as isize,
            0.0,
            product.as_mut_ptr(),
            outputs as isize,
            1,
        );
    }
    product
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// The kernel of every bound that a model has, with the blocks of a GPU.
    #[test]
    fn few_rows_have_kernels_that_agree_with_the_host() {
        for device in testing::devices() {
            let stream = Stream::new(&device).unwrap();
            let few = FewRows::new(&stream, few_rows::specs(device.arch())).unwrap();
            let mut random = StdRng::seed_from_u64(2);
            let mut values = |count: usize| -> Vec<bf16> {
                (0..count).map(|_| bf16::from_f32(random.random_range(-1.0..1.0))).collect()
            };
            let (outputs, inputs) = (72, 104);
            let (x, weights) = (values(64 * inputs), values(2 * outputs * inputs));
            let floats = |values: &[bf16]| -> Vec<f32> { values.iter().map(|value| value.to_f32()).collect() };
            let products = multiply(&floats(&x), &floats(&weights), 64, 2 * outputs, inputs);
            let (device_x, device_weights) =
                (device.upload(&stream, &x).unwrap(), device.upload(&stream, &weights).unwrap());
            for rows in [1, 8, 9, 17, 31, 33, 48, 49, 64] {
                for is_gated in [false, true] {
                    let width = if is_gated { outputs } else { 2 * outputs };
                    let shape = [rows, width, inputs];
                    let out = device.allocate(2 * rows * width).unwrap();
                    few.multiply(&stream, &device_x, &device_weights, &out, shape, is_gated).unwrap();
                    for (i, found) in out.read::<bf16>(&stream).unwrap().into_iter().enumerate() {
                        let row = &products[i / width * 2 * outputs..];
                        let gate = row[i % width];
                        let gated = |gate: f32| gate / (1.0 + (-gate).exp()) * row[i % width + outputs];
                        let expected = if is_gated { gated(gate) } else { gate };
                        let error = (found.to_f32() - expected).abs();
                        assert!(error <= 0.004 * expected.abs() + 1e-4, "{rows} rows, {i}: {found} is not {expected}");
                    }
                }
            }
            assert!(
                [[1, 4096, 8192], [64, 152_064, 3584], [33, 18944, 3584]].into_iter().all(|shape| few.takes(shape))
            );
            // Rows, widths that are no multiples of 8, and matrices that cuBLASLt is faster at.
            let others = [[0, 4096, 8192], [65, 4096, 8192], [1, 4100, 8192], [1, 4096, 8196], [1, 72, 104], [1, 8, 0]];
            assert!(!others.into_iter().any(|shape| few.takes(shape)));
            let mut few = few;
            few.take_from(0);
            assert!(few.takes([1, 72, 104]) && !few.takes([1, 4100, 8192]));
        }
    }

    #[test]
    fn rows_do_not_depend_on_each_other() {
        let mut random = StdRng::seed_from_u64(1);
        let mut values = |count: usize| -> Vec<f32> { (0..count).map(|_| random.random_range(-1.0..1.0)).collect() };
        let (rows, outputs, inputs) = (37, 70, 600);
        let (x, weights) = (values(rows * inputs), values(outputs * inputs));
        let together = multiply(&x, &weights, rows, outputs, inputs);
        for row in 0..rows {
            let alone = multiply(&x[row * inputs..][..inputs], &weights, 1, outputs, inputs);
            assert_eq!(alone, together[row * outputs..][..outputs], "row {row}");
            for (o, found) in alone.iter().enumerate() {
                let dot: f64 =
                    (0..inputs).map(|i| f64::from(x[row * inputs + i]) * f64::from(weights[o * inputs + i])).sum();
                assert!((f64::from(*found) - dot).abs() < 1e-4, "row {row}, output {o}: {found} is not {dot}");
            }
        }
    }
}
