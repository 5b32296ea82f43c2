//! The standard cases as prepared launches, with the work that each one counts.

mod attention;
mod index;
mod layer;

pub use attention::{Case, Prepared, Work, cases};
pub use index::{IndexCase, PreparedIndex, index_cases};
pub use layer::{LayerCase, PreparedLayer, layer_cases};

use kernel_core::{Arguments, Buffer, Device, Error, Stream};
use ptx::{Arch, isa::MmaType, kernels::model::NoiseSpec};

/// Standard-normal bf16 numbers, drawn on the device.
fn normal(device: &Device, stream: &Stream, elements: usize, seed: u32) -> Result<Buffer, Error> {
    let buffer = device.allocate(elements * 2)?;
    let spec = NoiseSpec { dtype: MmaType::Bf16, arch: Arch::Sm80 };
    let kernel = device.load(&ptx::generate(&spec)?)?;
    let chunks = (elements / 8) as u32;
    let arguments = Arguments::new(kernel.meta())
        .pointer("out", buffer.address())
        .u32("chunks", chunks)
        .u32("seed_low", seed)
        .u32("seed_high", 0)
        .f32("scale", 1.0);
    kernel.launch(stream, spec.grid(chunks), &arguments)?;
    Ok(buffer)
}

/// The heads of a case, as its name says them.
fn heads_text(heads: usize, kv_heads: usize) -> String {
    if heads == kv_heads { format!("{heads} heads") } else { format!("{heads}/{kv_heads} heads") }
}
