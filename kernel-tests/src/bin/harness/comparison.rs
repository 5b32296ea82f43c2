//! Dense and sparse attention side by side: the same queries, keys and values through both, layer by layer.

use crate::{
    Result, inspect,
    layer::{self, Layer},
    session::Session,
};
use kernel_core::{DType, Error, HeadPattern, HeadPatterns, SparsePrefill, Stream, TensorView};
use kernel_tests::{
    model::{AttentionCall, PromptAttention},
    oracle::{self, Mask, Problem, relative_error},
    records::Sample,
};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Rows at the end of the prompt whose sparse output is compared with double precision.
const CHECKED_ROWS: usize = 64;

/// What one layer showed.
pub(crate) struct Report {
    /// By head: the pattern, and the share of the causal pairs that it visits.
    pub(crate) heads: Vec<(HeadPattern, f64)>,
    /// Distance of the sparse from the dense output, relative to the latter: what leaving pairs out costs.
    pub(crate) error: f64,
    /// Distance of the sparse output from double precision over the very pairs that its index stands for: the kernel's
    /// own error, on the last rows.
    pub(crate) kernel_error: f64,
    /// Time of the dense attention of the whole prompt.
    pub(crate) dense: Duration,
    /// Time of planning and running the sparse one.
    pub(crate) sparse: Duration,
}

impl Report {
    /// Mean over the heads.
    pub(crate) fn density(&self) -> f64 {
        self.heads.iter().map(|(_, density)| density).sum::<f64>() / self.heads.len() as f64
    }
}

/// Prefills densely and reports, layer by layer, what sparse attention would have given. `advance` follows each layer.
pub(crate) fn compare(
    session: &Session,
    sample: &Sample,
    layers: &[SparsePrefill],
    patterns: &HeadPatterns,
    advance: impl Fn(),
) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    inspect::prefill(session, sample, &mut |number, call| {
        let dense = timed(&session.stream, || session.transformer.dense().attend(&session.stream, number, call))?;
        reports.push(report(session, call, &layers[number], &patterns.layer(number)?, dense)?);
        advance();
        Ok(())
    })?;
    Ok(reports)
}

fn report(
    session: &Session,
    call: &AttentionCall<'_>,
    layer: &SparsePrefill,
    patterns: &kernel_core::LayerPatterns,
    dense: Duration,
) -> std::result::Result<Report, Error> {
    let (stream, shape) = (&session.stream, call.q.shape());
    let memory = session.device.allocate(2 * shape.iter().product::<u64>() as usize)?;
    let out = TensorView::new(&memory, DType::Bf16, shape)?;
    let workspace = layer::workspace(stream, layer, call)?;
    let mut index = None;
    let sparse = timed(stream, || {
        let planned = layer::plan(stream, layer, call, &workspace)?;
        layer.run(stream, &layer::run_args(call, out), &planned)?;
        index = Some(planned);
        Ok(())
    })?;
    let heads = shape[2] as usize;
    let masks = layer::masks(stream, layer, patterns, heads, &index.unwrap_or_default(), shape[1] as usize)?;
    let to_f64 = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
    let sparse_out = to_f64(layer::read_rows(stream, &out)?);
    let dense_out = to_f64(layer::read_rows(stream, &call.out)?);
    let densities: Vec<_> = masks.par_iter().map(Mask::density).collect();
    Ok(Report {
        heads: densities.into_iter().enumerate().map(|(head, share)| (patterns.head(head as u32), share)).collect(),
        error: relative_error(&sparse_out, &dense_out),
        kernel_error: kernel_error(&Layer::read(stream, call)?, &masks, &sparse_out),
        dense,
        sparse,
    })
}

/// How long `work` takes on the stream, beginning idle.
fn timed(
    stream: &Stream,
    work: impl FnOnce() -> std::result::Result<(), Error>,
) -> std::result::Result<Duration, Error> {
    stream.synchronize()?;
    let start = Instant::now();
    work()?;
    stream.synchronize()?;
    Ok(start.elapsed())
}

/// Distance of the last rows of `out`, `[rows, heads, head_dim]`, from double precision under each head's mask.
fn kernel_error(layer: &Layer, masks: &[Mask], out: &[f64]) -> f64 {
    let rows = masks[0].kv_len();
    let checked = CHECKED_ROWS.min(rows);
    let (mut given, mut wanted) = (Vec::new(), Vec::new());
    for (number, mask) in masks.iter().enumerate() {
        let head = layer.head(number);
        let d = head.head_dim;
        let mask = Mask::from_positions(checked, rows, |query, key| mask.keeps(query as usize, key as usize));
        let problem = Problem {
            q: &head.q[(rows - checked) * d..],
            k: &head.k,
            v: &head.v,
            head_dim: d,
            mask: &mask,
            scale: 1.0 / (d as f64).sqrt(),
            softcap: None,
            score: None,
        };
        wanted.extend(oracle::attention(&problem).0);
        let width = layer.heads * d;
        given.extend((rows - checked..rows).flat_map(|row| &out[row * width + number * d..][..d]));
    }
    relative_error(&given, &wanted)
}
