//! Dense causal attention of one sequence: generate a kernel, load it, launch it.

mod support;

use kernel_core::{AttentionArgs, AttentionKernel, DType, Stream, TensorView};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};
use support::{Result, Shape};

fn main() -> Result {
    let device = support::device();
    let stream = Stream::new(&device)?;

    // Four query heads share two heads of keys and values.
    let shape = Shape { tokens: 200, heads: 4, kv_heads: 2, head_dim: 64 };
    let [q, k, v] = [(4, 1), (2, 2), (2, 3)].map(|(heads, seed)| support::random(200 * heads * 64, seed));

    // Generating is deterministic and needs no GPU; `build` hands the text that fits the device best to the driver, which
    // may take a moment.
    let spec = AttentionSpec::new(Pattern::Dense, (128, 64), 64, MmaType::Bf16, Arch::Sm80);
    let attention = AttentionKernel::generate_for(&spec, &[Arch::Sm80, Arch::Sm90a])?.build(&device)?;
    println!("a kernel for {}", attention.arch().target());

    // The caller owns all memory. Views say where it lies and how.
    let [q_buffer, k_buffer, v_buffer] = [&q, &k, &v].map(|values| device.upload(&stream, values));
    let (q_buffer, k_buffer, v_buffer) = (q_buffer?, k_buffer?, v_buffer?);
    let out_buffer = device.allocate(q_buffer.bytes())?;
    let args = AttentionArgs::new(
        TensorView::new(&q_buffer, DType::Bf16, &shape.queries())?,
        TensorView::new(&k_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&v_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&out_buffer, DType::Bf16, &shape.queries())?,
    );
    attention.run(&stream, &args)?;

    let out = out_buffer.read(&stream)?;
    let reference = support::reference(shape, [&q, &k, &v], |_, _, _| true, |_, _, _, score| score);
    support::check("dense", &out, &reference)
}
