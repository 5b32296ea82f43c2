//! Matrix products, the one thing here that is not a kernel of ours: cuBLASLt on CUDA, `matrixmultiply` on the embedded
//! backend. Activations and weights are bfloat16, sums single precision.

mod cublas;

use super::Error;
use cublas::Cublas;
use half::bf16;
use kernel_core::{Buffer, Stream};
use std::sync::Arc;

/// Multiplies by weight matrices on one device.
pub struct Linear {
    cublas: Option<Cublas>,
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
    /// Loads cuBLASLt for a CUDA device.
    ///
    /// # Errors
    /// [`Error::Cublas`] where the library is absent or refuses to start.
    pub fn new(stream: &Stream) -> Result<Linear, Error> {
        let cublas = if stream.device().is_emulator() { None } else { Some(Cublas::new(stream)?) };
        Ok(Linear { cublas })
    }

    /// The matrix of this many outputs that `values`, bf16 `[outputs, inputs]`, holds.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn matrix(&self, stream: &Stream, values: Buffer, outputs: usize) -> Result<Matrix, Error> {
        let inputs = values.bytes() / 2 / outputs;
        let storage = match self.cublas {
            Some(_) => Storage::Device(values),
            None => {
                let values = values.read::<bf16>(stream)?;
                Storage::Host(Arc::new(values.into_iter().map(bf16::to_f32).collect()))
            }
        };
        Ok(Matrix { storage, outputs, inputs })
    }

    /// `out = x · matrixᵀ` for `rows` rows: `x` is `[rows, inputs]`, `out` `[rows, outputs]`, both contiguous and of
    /// exactly that size. May be captured. An output row depends on its own input row only; on the embedded backend its bits do not
    /// depend on the number of rows either.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device, [`Error::Cublas`].
    pub fn apply(&self, stream: &Stream, x: &Buffer, matrix: &Matrix, out: &Buffer, rows: usize) -> Result<(), Error> {
        let sizes = (2 * rows * matrix.inputs, 2 * rows * matrix.outputs);
        assert_eq!((x.bytes(), out.bytes()), sizes, "activations of another shape");
        match (&self.cublas, &matrix.storage) {
            (Some(cublas), Storage::Device(weights)) => {
                cublas.multiply(stream, x, weights, out, [rows, matrix.outputs, matrix.inputs])
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
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

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
