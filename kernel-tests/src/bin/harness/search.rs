//! `harness search`: which pattern each head should have.
//!
//! Every candidate of a head gets the budget at which it visits the wanted share of the causal pairs; the one that keeps
//! most of the true attention (recall, the mean over all rows) wins. The search of MInference §3.2, with recall in place
//! of the output's error. Budgets are fitted on the first prompt and kept for the others.

use crate::{
    Outcome, Result, inspect,
    layer::{self, Layer},
    output::say,
    progress,
    session::Session,
};
use kernel_core::{Error, HeadPattern, HeadPatterns, LayerPatterns, Stream};
use kernel_tests::{
    model::AttentionCall,
    oracle::Mask,
    records::{Form, HELD_OUT, Kind, Sample},
};
use rayon::prelude::*;
use std::path::PathBuf;

/// First keys of an A-shape.
const SINK: u32 = 64;

/// Seeds of the prompts: held out, and none of those that `harness eval` asks about.
const SEEDS: u64 = HELD_OUT + (1 << 40);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Share of the causal pairs that every candidate visits
    #[arg(long, default_value_t = 0.2)]
    density: f64,
    /// Tokens of the prompts
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Prompts
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Where the patterns go; by default patterns.json of the model folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A family of patterns that grow with one size.
type Candidate = fn(u32) -> HeadPattern;

const CANDIDATES: [Candidate; 5] = [
    |size| HeadPattern::AShape { sink: SINK, local: size },
    |size| HeadPattern::VerticalSlash { columns: size, slashes: size },
    |size| HeadPattern::VerticalSlash { columns: 4 * size, slashes: size },
    |size| HeadPattern::VerticalSlash { columns: size, slashes: 4 * size },
    |size| HeadPattern::BlockSparse { blocks: size },
];

/// A candidate of one head: the fitted pattern, if there is one, and the sum of its recalls.
type Fitted = (Option<HeadPattern>, f64);

/// By layer, head and candidate.
type Found = Vec<Vec<Vec<Fitted>>>;

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    if !(options.density > 0.0 && options.density <= 1.0) {
        return Err(format!("--density is {}; give a share above 0, at most 1", options.density).into());
    }
    let out = options.out.clone().unwrap_or_else(|| session.folder.join("patterns.json"));
    let mut found: Found = Vec::new();
    let bar = progress::bar("searching", options.samples * session.config.layers as u64);
    for number in 0..options.samples {
        let kind = Kind::ALL[number as usize % Kind::ALL.len()];
        let depth = (number as f64 + 0.5) / options.samples as f64;
        let sample = Sample::new(SEEDS + number, options.tokens, kind, Form::Sentence, depth)?;
        inspect::prefill(session, &sample, &mut |number, call| {
            if found.len() == number {
                found.push(fit(&session.stream, call, options.density)?);
            }
            add_recalls(&session.stream, call, &mut found[number])?;
            bar.inc(1);
            Ok(())
        })?;
    }
    bar.finish_and_clear();
    let patterns = best(&found, options.samples as f64).ok_or_else(|| {
        format!("no pattern visits as little as {} of the pairs; give a larger --density", options.density)
    })?;
    print(&found, &patterns, options)?;
    std::fs::write(&out, patterns.to_json()).map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    say!("written to {}", out.display());
    Ok(Outcome::Passed)
}

/// By head and candidate: the largest size at which it visits at most `density` of the pairs. None where the smallest
/// visits more: vertical-slash has a least number of columns and slashes.
fn fit(stream: &Stream, call: &AttentionCall<'_>, density: f64) -> std::result::Result<Vec<Vec<Fitted>>, Error> {
    let (rows, heads) = (call.q.shape()[1] as u32, call.q.shape()[2] as usize);
    let mut fitted = vec![Vec::new(); heads];
    for candidate in CANDIDATES {
        // All heads at once, each with its own interval: `low` fits, `high` does not.
        let mut interval = vec![(0, rows + 1); heads];
        while interval.iter().any(|(low, high)| high - low > 1) {
            let middle: Vec<u32> = interval.iter().map(|(low, high)| low.midpoint(*high)).collect();
            let patterns: LayerPatterns = middle.iter().map(|size| candidate(*size)).collect();
            let masks = layer::planned_masks(stream, &patterns, call)?;
            let densities: Vec<f64> = masks.par_iter().map(Mask::density).collect();
            for (((low, high), middle), visited) in interval.iter_mut().zip(middle).zip(densities) {
                *(if visited <= density { low } else { high }) = middle;
            }
        }
        for (fitted, (size, _)) in fitted.iter_mut().zip(interval) {
            fitted.push(((size > 0).then(|| candidate(size)), 0.0));
        }
    }
    Ok(fitted)
}

fn add_recalls(stream: &Stream, call: &AttentionCall<'_>, heads: &mut [Vec<Fitted>]) -> std::result::Result<(), Error> {
    let layer = Layer::read(stream, call)?;
    let attention: Vec<_> = (0..layer.heads).map(|head| layer.head(head).attention()).collect();
    for candidate in 0..CANDIDATES.len() {
        let patterns = heads.iter().map(|candidates| candidates[candidate].0.unwrap_or(HeadPattern::Dense)).collect();
        let masks = layer::planned_masks(stream, &patterns, call)?;
        for ((head, mask), attention) in heads.iter_mut().zip(&masks).zip(&attention) {
            head[candidate].1 += layer::recall(attention, mask);
        }
    }
    Ok(())
}

/// The fitted candidate of highest recall; the first of equals.
fn winner(candidates: &[Fitted]) -> Option<(HeadPattern, f64)> {
    let fitted = candidates.iter().filter_map(|(pattern, sum)| Some(((*pattern)?, *sum)));
    fitted.reduce(|a, b| if b.1 > a.1 { b } else { a })
}

fn best(found: &Found, samples: f64) -> Option<HeadPatterns> {
    let layer = |heads: &Vec<Vec<Fitted>>| {
        let mut layer = LayerPatterns::default();
        for (head, candidates) in heads.iter().enumerate() {
            let (pattern, recall) = winner(candidates)?;
            layer.set(head as u32, pattern, (1e4 * recall / samples).round() / 1e4);
        }
        Some(layer)
    };
    found.iter().map(layer).collect()
}

fn print(found: &Found, patterns: &HeadPatterns, options: &Options) -> Result<()> {
    let (samples, share) = (options.samples, 100.0 * options.density);
    say!("recall of the true attention at {share} % of the pairs, {samples} prompts of {} tokens", options.tokens);
    for (number, heads) in found.iter().enumerate() {
        let chosen = patterns.layer(number)?;
        for (head, candidates) in heads.iter().enumerate() {
            let recalls: Vec<_> = candidates
                .iter()
                .filter_map(|(pattern, sum)| {
                    let recall = 100.0 * sum / samples as f64;
                    Some(format!("{} {recall:.1} %", layer::describe((*pattern)?)))
                })
                .collect();
            let chosen = layer::describe(chosen.head(head as u32));
            say!("layer {number} head {head}: {chosen:28} of {}", recalls.join(", "));
        }
    }
    Ok(())
}
