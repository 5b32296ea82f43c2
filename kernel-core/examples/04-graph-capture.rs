//! Plan and run captured in a graph: later prefills write their inputs and replay it with one call.

mod support;

use kernel_core::{
    Bounds, DType, HeadPattern, LayerPatterns, Lengths, PlanArgs, RunArgs, SparsePrefill, Stream, TensorView, Workspace,
};
use support::{Result, Shape};

fn main() -> Result {
    let device = support::device();
    let stream = Stream::new(&device)?;
    let shape = Shape { tokens: 300, heads: 2, kv_heads: 1, head_dim: 64 };
    let patterns =
        [HeadPattern::VerticalSlash { columns: 30, slashes: 100 }, HeadPattern::AShape { sink: 8, local: 64 }];
    let layer = SparsePrefill::builder()
        .heads(2)
        .kv_heads(1)
        .head_dim(64)
        .patterns(LayerPatterns::from_iter(patterns))
        .build(&device)?;

    // Addresses are those of the capture; data and lengths are read anew by every replay. The graph is captured for up to
    // 300 tokens.
    let bounds = Bounds { batch: 1, max_q: 300, max_kv: 300 };
    let workspace = device.allocate(layer.workspace_bytes(&bounds) as usize)?;
    let [q_buffer, k_buffer, v_buffer, out_buffer] = [2, 1, 1, 2].map(|heads| device.allocate(300 * heads * 64 * 2));
    let (q_buffer, k_buffer, v_buffer, out_buffer) = (q_buffer?, k_buffer?, v_buffer?, out_buffer?);
    let length_buffer = device.allocate(4)?;
    let length = Some(TensorView::new(&length_buffer, DType::U32, &[1])?);
    let lengths = Lengths { q_length: length, kv_length: length, ..Lengths::default() };
    let queries = TensorView::new(&q_buffer, DType::Bf16, &shape.queries())?;
    let keys = TensorView::new(&k_buffer, DType::Bf16, &shape.keys())?;
    let values = TensorView::new(&v_buffer, DType::Bf16, &shape.keys())?;
    let out = TensorView::new(&out_buffer, DType::Bf16, &shape.queries())?;
    let prefill = |stream: &Stream| {
        let workspace = Workspace::from(&workspace);
        let index = layer.plan(stream, &PlanArgs { q: queries, k: keys.into(), lengths, bounds, workspace })?;
        layer.run(
            stream,
            &RunArgs { q: queries, k: keys.into(), v: values.into(), lengths, bounds, out, lse: None },
            &index,
        )
    };
    let graph = stream.capture(prefill)?;

    for (seed, tokens) in [(10, 300), (20, 170)] {
        let [q, k, v] = [(2, 0), (1, 1), (1, 2)].map(|(heads, i)| support::random(300 * heads * 64, seed + i));
        q_buffer.write(&stream, &q)?;
        k_buffer.write(&stream, &k)?;
        v_buffer.write(&stream, &v)?;
        length_buffer.write(&stream, &[tokens as u32])?;

        out_buffer.fill(&stream, 0xFF)?;
        graph.launch(&stream)?;
        let replayed: Vec<half::bf16> = out_buffer.read(&stream)?;

        // The second head's pattern is known without an index: check it against the host.
        let shape = Shape { tokens, ..shape };
        let reference = support::reference(shape, [&q, &k, &v], |_, q, k| q - k < 64 || k < 8, |_, _, _, score| score);
        let head = |values: &[half::bf16]| -> Vec<half::bf16> {
            values.chunks_exact(64).skip(1).step_by(2).take(tokens).flatten().copied().collect()
        };
        let reference: Vec<f64> = reference.chunks_exact(64).skip(1).step_by(2).flatten().copied().collect();
        support::check(&format!("replay, {tokens} tokens"), &head(&replayed), &reference)?;

        // And a replay gives the bits of plain launches.
        out_buffer.fill(&stream, 0xFF)?;
        prefill(&stream)?;
        let launched: Vec<half::bf16> = out_buffer.read(&stream)?;
        let bits = |values: &[half::bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        support::check_same("replay and launches", &bits(&replayed), &bits(&launched))?;
    }
    Ok(())
}
