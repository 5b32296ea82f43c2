//! Random numbers where they are needed: benchmark inputs, and the weights of models too large to draw on the host.

use kernel_core::{Arguments, Buffer, Error, Stream};
use ptx::{Arch, isa::MmaType, kernels::model::NoiseSpec};

/// `elements` bf16 numbers of a normal distribution around 0 with this deviation, drawn on the device. A multiple of 8.
///
/// # Errors
/// From the device.
pub fn noise(stream: &Stream, elements: usize, seed: u64, deviation: f32) -> Result<Buffer, Error> {
    let device = stream.device();
    let buffer = device.allocate(elements * 2)?;
    let spec = NoiseSpec { dtype: MmaType::Bf16, arch: Arch::Sm80 };
    let kernel = device.load(&ptx::generate(&spec)?)?;
    let chunks = (elements / 8) as u32;
    let arguments = Arguments::new(kernel.meta())
        .pointer("out", buffer.address())
        .u32("chunks", chunks)
        .u32("seed_low", seed as u32)
        .u32("seed_high", (seed >> 32) as u32)
        .f32("scale", deviation);
    kernel.launch(stream, spec.grid(chunks), &arguments)?;
    Ok(buffer)
}
