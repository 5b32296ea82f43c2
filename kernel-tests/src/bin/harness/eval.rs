//! `harness eval`: held-out accuracy, dense against sparse prefill, and forward passes per response position.

use crate::{
    Outcome, Result, caches, layer,
    output::say,
    policy::{Policy, policy},
    progress,
    session::Session,
    task::{self, Run},
};
use kernel_core::{Error, HeadPattern, HeadPatterns, Stream};
use kernel_tests::{
    model::{AttentionCall, PromptAttention, SparseAttention},
    oracle::Mask,
    records::{RESPONSE_TOKENS, Sample},
};
use serde_json::json;
use std::cell::Cell;

/// Prompts of a length where the GPU is, and where it is not.
const SAMPLES: (u64, u64) = (120, 2);
const DECILES: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Prompts of each length; by default 120 on CUDA and 2 on the emulator
    #[arg(long)]
    samples: Option<u64>,
    /// Prompt lengths in tokens
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096")]
    tokens: Vec<usize>,
    /// Instead of the usual ways to prefill sparsely: a pattern file, triangle_mix:STARTING_LAYER, or a pattern for all heads
    /// as `plot mask` takes. May be given several times
    #[arg(long, value_name = "PATTERNS", value_parser = policy)]
    patterns: Vec<Policy>,
    /// Also accuracy by the depth at which the asked record lies
    #[arg(long)]
    deciles: bool,
    /// Instead of ways to prefill: cache policies of decoding, under both prompt masks
    #[arg(long, conflicts_with_all = ["patterns", "deciles"])]
    caches: bool,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// A way to prefill, and how it did.
struct Row {
    name: String,
    tokens: usize,
    /// Share of the causal pairs visited, of the first prompt.
    density: f64,
    correct: u64,
    samples: u64,
    passes: u64,
    /// By depth: right answers, prompts.
    deciles: [(u64, u64); DECILES],
}

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    let emulated = session.device.is_emulator();
    let samples = options.samples.unwrap_or(if emulated { SAMPLES.1 } else { SAMPLES.0 });
    if samples == 0 {
        return Err("--samples is 0; give at least 1".into());
    }
    if options.caches {
        caches::run(session, &options.tokens, samples, options.json)?;
        return Ok(Outcome::Passed);
    }
    let mut ways = Vec::new();
    for &tokens in &options.tokens {
        let sparse = if options.patterns.is_empty() {
            usual(session, tokens as u32)?
        } else {
            let named = |policy: &Policy| Ok((policy.to_string(), policy.patterns(session)?));
            options.patterns.iter().map(named).collect::<Result<_>>()?
        };
        ways.push((tokens, sparse));
    }
    let mut rows = Vec::new();
    let prefills: usize = ways.iter().map(|(_, sparse)| sparse.len() + 1).sum();
    let bar = progress::bar("evaluating", samples * prefills as u64);
    for (tokens, sparse) in ways {
        let prompts: Vec<Sample> =
            (0..samples).map(|number| task::held_out(number, samples, tokens)).collect::<Result<_>>()?;
        let sparse = sparse.into_iter().map(|(name, patterns)| (name, Some(patterns)));
        for (name, patterns) in [("dense".into(), None)].into_iter().chain(sparse) {
            let mut row = Row::new(name, tokens);
            let sparse = match &patterns {
                Some(patterns) => {
                    Some(SparseAttention::new(&session.stream, &session.config, patterns, tokens, session.arch)?)
                }
                None => None,
            };
            for (number, sample) in prompts.iter().enumerate() {
                let run = match (&sparse, &patterns) {
                    (Some(sparse), Some(patterns)) if number == 0 => {
                        let measured = Measured { sparse, patterns, sum: Cell::new(0.0) };
                        let run = Run::new(session, sample, &measured)?;
                        row.density = measured.sum.get() / session.config.layers as f64;
                        run
                    }
                    (Some(sparse), _) => Run::new(session, sample, sparse)?,
                    (None, _) => Run::new(session, sample, session.transformer.dense())?,
                };
                row.add(sample, &run);
                bar.inc(1);
            }
            rows.push(row);
        }
    }
    bar.finish_and_clear();
    if options.json {
        say!("{}", report(session, &rows));
    } else {
        print(session, &rows, options.deciles);
    }
    Ok(Outcome::Passed)
}

/// The searched patterns, and one pattern for all heads with a budget in proportion to the prompt.
fn usual(session: &Session, tokens: u32) -> Result<Vec<(String, HeadPatterns)>> {
    let (sink, local) = (64.min(tokens), tokens / 10);
    let uniform = [
        HeadPattern::AShape { sink, local },
        HeadPattern::TriShape { sink, local, last: 64 },
        HeadPattern::VerticalSlash { columns: tokens / 10, slashes: tokens / 40 },
        HeadPattern::BlockSparse { blocks: (tokens / 640).max(2) },
    ];
    let mut ways = vec![("searched".into(), session.patterns()?)];
    for pattern in uniform {
        ways.push((layer::name(pattern).into(), Policy::Uniform(pattern).patterns(session)?));
    }
    Ok(ways)
}

/// Sparse attention that also says which share of the pairs it visits.
struct Measured<'a> {
    sparse: &'a SparseAttention,
    patterns: &'a HeadPatterns,
    /// Over the layers.
    sum: Cell<f64>,
}

impl PromptAttention for Measured<'_> {
    fn attend(&self, stream: &Stream, number: usize, call: &AttentionCall<'_>) -> std::result::Result<(), Error> {
        let (layer, patterns) = (&self.sparse.layers()[number], self.patterns.layer(number)?);
        let workspace = layer::workspace(stream, layer, call)?;
        let index = layer::plan(stream, layer, call, &workspace)?;
        let (rows, heads) = (call.q.shape()[1] as usize, call.q.shape()[2] as usize);
        let masks = layer::masks(stream, layer, &patterns, heads, &index, rows)?;
        self.sum.set(self.sum.get() + masks.iter().map(Mask::density).sum::<f64>() / heads as f64);
        layer.run(stream, &layer::run_args(call, call.out), &index)
    }
}

impl Row {
    fn new(name: String, tokens: usize) -> Row {
        Row { name, tokens, density: 1.0, correct: 0, samples: 0, passes: 0, deciles: [(0, 0); DECILES] }
    }

    fn add(&mut self, sample: &Sample, run: &Run) {
        self.samples += 1;
        self.correct += u64::from(run.correct);
        self.passes += u64::from(run.response.passes);
        let decile = &mut self.deciles[sample.depth_decile()];
        *decile = (decile.0 + u64::from(run.correct), decile.1 + 1);
    }

    fn accuracy(&self) -> f64 {
        self.correct as f64 / self.samples as f64
    }

    fn passes_per_response(&self) -> f64 {
        self.passes as f64 / self.samples as f64
    }
}

fn print(session: &Session, rows: &[Row], deciles: bool) {
    say!("device  {}\nmodel   {}", session.device_line(), session.model_text());
    say!("held-out prompts, all kinds and forms of question in turn; confident decoding, threshold 0.95\n");
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(14);
    say!("tokens  {:width$}  visited  right answers     passes / positions", "prefill");
    for row in rows {
        say!(
            "{:6}  {:width$}  {:5.1} %  {:5.1} % ({}/{})  {:.2} / {RESPONSE_TOKENS}",
            row.tokens,
            row.name,
            100.0 * row.density,
            100.0 * row.accuracy(),
            row.correct,
            row.samples,
            row.passes_per_response(),
        );
        if deciles {
            let depths: Vec<_> = row.deciles.iter().map(|(right, of)| format!("{right}/{of}")).collect();
            say!("        by depth        {}", depths.join("  "));
        }
    }
}

fn report(session: &Session, rows: &[Row]) -> serde_json::Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "tokens": row.tokens,
                "prefill": row.name,
                "density": row.density,
                "correct": row.correct,
                "samples": row.samples,
                "accuracy": row.accuracy(),
                "forward_passes": row.passes_per_response(),
                "response_length": RESPONSE_TOKENS,
                "deciles": row.deciles.map(|(correct, samples)| json!({ "correct": correct, "samples": samples })),
            })
        })
        .collect();
    json!({ "device": session.device_text, "arch": session.arch.target(), "model": session.model_text(), "rows": rows })
}
