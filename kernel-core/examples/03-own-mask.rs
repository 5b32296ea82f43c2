//! An own mask and an own score: documents packed into one sequence do not see each other, and scores fall with distance
//! (ALiBi). An engine builds the same expressions at run time, as plain data, for `AttentionKernel::generate`.

mod support;

use kernel_core::{AttentionArgs, AttentionKernel, DType, Stream, TensorView, attention};
use support::{Result, Shape};

/// Generated while this example is compiled. Side buffers follow the fixed arguments and are bound by name at launch.
const PACKED_ALIBI: AttentionKernel = attention!(
    pattern = dense,
    block = (128, 64),
    head_dim = 64,
    dtype = bf16,
    arch = [sm_80, sm_90a],
    score = |s: f32, q: u32, k: u32, head: u32, slope: &[f32]| s - slope[head] * (q - k) as f32,
    mask = |q: u32, k: u32, document: &[u32]| document[q] == document[k]
);

fn main() -> Result {
    let device = support::device();
    let stream = Stream::new(&device)?;
    let shape = Shape { tokens: 150, heads: 2, kv_heads: 2, head_dim: 64 };
    let [q, k, v] = [1, 2, 3].map(|seed| support::random(150 * 2 * 64, seed));
    let documents: Vec<u32> = (0..150).map(|token| token / 60).collect();
    let slopes = [0.5f32, 0.0625];

    let attention = PACKED_ALIBI.build(&device)?;

    let (q_buffer, k_buffer) = (device.upload(&stream, &q)?, device.upload(&stream, &k)?);
    let (v_buffer, out_buffer) = (device.upload(&stream, &v)?, device.allocate(q.len() * 2)?);
    let (document_buffer, slope_buffer) = (device.upload(&stream, &documents)?, device.upload(&stream, &slopes)?);
    let mut args = AttentionArgs::new(
        TensorView::new(&q_buffer, DType::Bf16, &shape.queries())?,
        TensorView::new(&k_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&v_buffer, DType::Bf16, &shape.keys())?,
        TensorView::new(&out_buffer, DType::Bf16, &shape.queries())?,
    );

    // Side buffers are bound by name and checked.
    match attention.run(&stream, &args) {
        Err(error) => println!("without side buffers: {error}"),
        Ok(()) => return Err("launched without its side buffers".into()),
    }
    let side = [
        ("document", TensorView::new(&document_buffer, DType::U32, &[150])?),
        ("slope", TensorView::new(&slope_buffer, DType::F32, &[2])?),
    ];
    args.side = &side;
    attention.run(&stream, &args)?;

    let reference = support::reference(
        shape,
        [&q, &k, &v],
        |_, q, k| documents[q] == documents[k],
        |head, q, k, score| score - f64::from(slopes[head]) * (q - k) as f64,
    );
    support::check("own mask", &out_buffer.read(&stream)?, &reference)
}
