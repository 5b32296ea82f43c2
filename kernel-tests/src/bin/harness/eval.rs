//! `harness eval`: held-out accuracy, dense against sparse prefill, and forward passes per response position.

use crate::{Outcome, Result, layer, output::say, progress, session::Session, task::Run};
use kernel_core::{Error, HeadPattern, HeadPatterns, LayerPatterns, Stream};
use kernel_tests::{
    model::{AttentionCall, PromptAttention, SparseAttention},
    oracle::Mask,
    records::{Form, HELD_OUT, Kind, RESPONSE_TOKENS, Sample},
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
    /// Also accuracy by the depth at which the asked record lies
    #[arg(long)]
    deciles: bool,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// A way to prefill, and how it did.
struct Row {
    name: &'static str,
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
    let searched = session.patterns()?;
    let mut rows = Vec::new();
    let bar = progress::bar("evaluating", samples * 6 * options.tokens.len() as u64);
    for &tokens in &options.tokens {
        let prompts: Vec<Sample> =
            (0..samples).map(|number| held_out(number, samples, tokens)).collect::<Result<_>>()?;
        let ways = ways(session, &searched, tokens as u32);
        for (name, patterns) in ways {
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

/// Prompt `number` of `samples`: kinds and forms in turn, depths spread evenly.
fn held_out(number: u64, samples: u64, tokens: usize) -> Result<Sample> {
    let kind = Kind::ALL[number as usize % Kind::ALL.len()];
    let form = Form::ALL[number as usize / Kind::ALL.len() % Form::ALL.len()];
    // A stride without a common factor with the turns, so that no kind is always asked at one depth.
    let depth = ((number * 37 % samples) as f64 + 0.5) / samples as f64;
    Ok(Sample::new(HELD_OUT + tokens as u64 * (1 << 20) + number, tokens, kind, form, depth)?)
}

/// Dense, the searched patterns, and one pattern for all heads with a budget in proportion to the prompt.
fn ways(session: &Session, searched: &HeadPatterns, tokens: u32) -> [(&'static str, Option<HeadPatterns>); 6] {
    let uniform = |pattern| {
        let layer = LayerPatterns::uniform(session.config.heads as u32, pattern);
        Some((0..session.config.layers).map(|_| layer.clone()).collect())
    };
    let (sink, local) = (64.min(tokens), tokens / 10);
    [
        ("dense", None),
        ("searched", Some(searched.clone())),
        ("A-shape", uniform(HeadPattern::AShape { sink, local })),
        ("tri-shape", uniform(HeadPattern::TriShape { sink, local, last: 64 })),
        ("vertical-slash", uniform(HeadPattern::VerticalSlash { columns: tokens / 10, slashes: tokens / 40 })),
        ("block-sparse", uniform(HeadPattern::BlockSparse { blocks: (tokens / 640).max(2) })),
    ]
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
    fn new(name: &'static str, tokens: usize) -> Row {
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
    say!("tokens  prefill         visited  right answers     passes / positions");
    for row in rows {
        say!(
            "{:6}  {:14}  {:5.1} %  {:5.1} % ({}/{})  {:.2} / {RESPONSE_TOKENS}",
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
