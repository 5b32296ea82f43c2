//! `harness bench plan`: device time of the index of one layer, by the pattern of its heads.

use crate::{Outcome, Result, bench, layer, output::say};
use kernel_core::{
    Bounds, DType, Device, HeadPattern, LayerPatterns, Lengths, PlanArgs, SparsePrefill, Stream, TensorView, Workspace,
};
use kernel_tests::bench::normal;
use ptx::kernels::attention::Pattern;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Queries and keys of the sequence
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    tokens: u32,
    /// Query heads, all of one pattern
    #[arg(long, value_name = "N", default_value_t = 32)]
    heads: u32,
    /// Heads of keys
    #[arg(long, value_name = "N", default_value_t = 8)]
    kv_heads: u32,
    /// Elements of a head
    #[arg(long, value_name = "N", default_value_t = 128)]
    head_dim: u32,
    /// Tile of block-sparse kernels, such as 128x128, instead of their own
    #[arg(long, value_name = "ROWSxKEYS", value_parser = bench::block)]
    block: Option<(u32, u32)>,
    /// Plans that are timed, one by one
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Plans before those, at least three
    #[arg(long, value_name = "MS", default_value_t = 50)]
    warm_up: u64,
}

/// Queries and keys are normal numbers: what is selected is noise, but the estimates' work depends on lengths alone.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let device = Device::cuda(0)?;
    let stream = Stream::new(&device)?;
    let Options { tokens, heads, kv_heads, head_dim, .. } = *options;
    let shape = |heads: u32| [1, u64::from(tokens), u64::from(heads), u64::from(head_dim)];
    let side = |heads: u32, seed| {
        let elements = shape(heads).iter().product::<u64>() as usize;
        normal(&device, &stream, elements, seed)
    };
    let (queries, keys) = (side(heads, 1)?, side(kv_heads, 2)?);
    say!(
        "{}, {tokens} tokens, {heads}/{kv_heads} heads of {head_dim}, median of {} plans",
        device.name(),
        options.runs
    );
    say!("{:40} {:>9} {:>14}", "pattern", "ms", "workspace MiB");
    let antidiagonal = |stride| HeadPattern::Antidiagonal { stride, threshold: 0.9, blocks: 128 };
    for pattern in [
        HeadPattern::VerticalSlash { columns: 1000, slashes: 6096 },
        HeadPattern::BlockSparse { blocks: 100 },
        antidiagonal(16),
        antidiagonal(8),
    ] {
        let builder = SparsePrefill::builder().heads(heads).kv_heads(kv_heads).head_dim(head_dim).max_kv(tokens);
        let builder = builder.patterns(LayerPatterns::uniform(heads, pattern)).fallback(true);
        let builder = match options.block {
            Some(block) => builder.block(Pattern::BlockSparse, block),
            None => builder,
        };
        let planned = builder.build(&device)?;
        let bounds = Bounds { batch: 1, max_q: tokens, max_kv: tokens };
        let bytes = planned.workspace_bytes(&bounds);
        let memory = device.allocate(bytes as usize)?;
        let args = PlanArgs {
            q: TensorView::new(&queries, DType::Bf16, &shape(heads))?,
            k: TensorView::new(&keys, DType::Bf16, &shape(kv_heads))?.into(),
            lengths: Lengths::default(),
            bounds,
            workspace: Workspace::from(&memory),
        };
        let ms = bench::median(&stream, options.runs, options.warm_up, || planned.plan(&stream, &args).map(drop))?;
        say!("{:40} {ms:9.4} {:14.1}", layer::describe(pattern), bytes as f64 / f64::from(1 << 20));
    }
    Ok(Outcome::Passed)
}
