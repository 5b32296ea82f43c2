//! `harness search`: which pattern each head should have.
//!
//! Every candidate of a head gets the budget at which it visits the wanted share of the causal pairs; the one that keeps
//! most of the true attention (recall, the mean over all rows) wins. The search of MInference §3.2, with recall in place
//! of the output's error. Budgets are fitted on the first prompt and kept for the others.
//!
//! Attention that is spread over all keys has no small pattern: where even the best keeps less than the floor, the head is
//! searched again at twice the share, and stays dense where no pattern that leaves out half of the pairs is good enough.
//!
//! The floor is low by default because recall counts all attention alike, whether anything depends on it or not. Most heads
//! of the records model spread a third to a half of theirs thinly over the whole list: 0.9 would keep nearly all of them
//! dense, and yet answers are as right at a fifth of the pairs.

#[cfg(test)]
mod tests;

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
use ptx::Arch;
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
    /// Share of the true attention that a pattern must keep; heads without such a pattern get a larger density, or stay
    /// dense. Attention that is spread thinly counts too, so raise it only where `demo` or `eval` show a loss
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    recall_floor: f64,
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

/// By head and candidate; empty for a layer that was not searched.
type Found = Vec<Vec<Fitted>>;

/// What a head got, and its mean recall.
type Choice = (HeadPattern, f64);

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    if !(options.density > 0.0 && options.density <= 1.0) {
        return Err(format!("--density is {}; give a share above 0, at most 1", options.density).into());
    }
    if !(0.0..=1.0).contains(&options.recall_floor) {
        return Err(format!("--recall-floor is {}; give a share from 0 to 1", options.recall_floor).into());
    }
    let out = options.out.clone().unwrap_or_else(|| session.folder.join("patterns.json"));
    let (floor, samples) = (options.recall_floor, options.samples as f64);
    let mut choices = vec![vec![None; session.config.heads]; session.config.layers];
    for density in densities(options.density) {
        let found = search(session, options, density, &choices)?;
        say!(
            "recall of the true attention at {} % of the pairs, {samples} prompts of {} tokens",
            100.0 * density,
            options.tokens
        );
        for (number, (heads, found)) in choices.iter_mut().zip(&found).enumerate() {
            print(number, heads, found, samples);
            settle(heads, found, samples, floor);
        }
        if choices.iter().flatten().all(Option::is_some) {
            break;
        }
    }
    let patterns = patterns(&choices)?;
    for (number, heads) in choices.iter().enumerate() {
        for (head, choice) in heads.iter().enumerate() {
            let (pattern, recall) = choice.unwrap_or(DENSE);
            say!("layer {number} head {head}: {} keeps {:.1} %", layer::describe(pattern), 100.0 * recall);
        }
    }
    std::fs::write(&out, patterns.to_json()?).map_err(|error| format!("cannot write {}: {error}", out.display()))?;
    say!("written to {}", out.display());
    Ok(Outcome::Passed)
}

/// A head without a pattern.
const DENSE: Choice = (HeadPattern::Dense, 1.0);

/// The shares that heads are searched at, one after the other: twice the last, while that leaves out half of the pairs.
fn densities(first: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(first), |last| Some(2.0 * last))
        .take_while(move |share| *share == first || *share <= 0.5)
}

/// Every candidate of every layer in which a head has no choice yet, over all prompts.
fn search(session: &Session, options: &Options, density: f64, choices: &[Vec<Option<Choice>>]) -> Result<Vec<Found>> {
    let open: Vec<bool> = choices.iter().map(|heads| heads.iter().any(Option::is_none)).collect();
    let mut found: Vec<Found> = vec![Vec::new(); choices.len()];
    let bar = progress::bar("searching", options.samples * open.iter().filter(|open| **open).count() as u64);
    for number in 0..options.samples {
        let kind = Kind::ALL[number as usize % Kind::ALL.len()];
        let depth = (number as f64 + 0.5) / options.samples as f64;
        let sample = Sample::new(SEEDS + number, options.tokens, kind, Form::Sentence, depth)?;
        inspect::prefill(session, &sample, &mut |number, call| {
            if !open[number] {
                return Ok(());
            }
            if found[number].is_empty() {
                found[number] = fit(&session.stream, session.arch, call, density)?;
            }
            add_recalls(&session.stream, session.arch, call, &mut found[number])?;
            bar.inc(1);
            Ok(())
        })?;
    }
    bar.finish_and_clear();
    Ok(found)
}

/// By head and candidate: the largest size at which it visits at most `density` of the pairs. None where the smallest
/// visits more: vertical-slash has a least number of columns and slashes.
fn fit(stream: &Stream, arch: Arch, call: &AttentionCall<'_>, density: f64) -> std::result::Result<Found, Error> {
    let (rows, heads) = (call.q.shape()[1] as u32, call.q.shape()[2] as usize);
    let mut fitted = vec![Vec::new(); heads];
    for candidate in CANDIDATES {
        // All heads at once, each with its own interval: `low` fits, `high` does not.
        let mut interval = vec![(0, rows + 1); heads];
        while interval.iter().any(|(low, high)| high - low > 1) {
            let middle: Vec<u32> = interval.iter().map(|(low, high)| low.midpoint(*high)).collect();
            let patterns: LayerPatterns = middle.iter().map(|size| candidate(*size)).collect();
            let masks = layer::planned_masks(stream, arch, &patterns, call)?;
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

fn add_recalls(
    stream: &Stream,
    arch: Arch,
    call: &AttentionCall<'_>,
    heads: &mut [Vec<Fitted>],
) -> std::result::Result<(), Error> {
    let layer = Layer::read(stream, call)?;
    let attention: Vec<_> = (0..layer.heads).map(|head| layer.head(head).attention()).collect();
    for candidate in 0..CANDIDATES.len() {
        let patterns = heads.iter().map(|candidates| candidates[candidate].0.unwrap_or(HeadPattern::Dense)).collect();
        let masks = layer::planned_masks(stream, arch, &patterns, call)?;
        for ((head, mask), attention) in heads.iter_mut().zip(&masks).zip(&attention) {
            head[candidate].1 += layer::recall(attention, mask);
        }
    }
    Ok(())
}

/// The fitted candidate of highest recall; the first of equals.
fn winner(candidates: &[Fitted]) -> Option<Choice> {
    let fitted = candidates.iter().filter_map(|(pattern, sum)| Some(((*pattern)?, *sum)));
    fitted.reduce(|a, b| if b.1 > a.1 { b } else { a })
}

/// Gives every head that has none the best of its candidates, if that keeps at least `floor` of the attention.
fn settle(heads: &mut [Option<Choice>], found: &Found, samples: f64, floor: f64) {
    for (choice, candidates) in heads.iter_mut().zip(found).filter(|(choice, _)| choice.is_none()) {
        let best = winner(candidates).map(|(pattern, sum)| (pattern, sum / samples));
        *choice = best.filter(|(_, recall)| *recall >= floor);
    }
}

fn patterns(choices: &[Vec<Option<Choice>>]) -> std::result::Result<HeadPatterns, Error> {
    let layer = |heads: &Vec<Option<Choice>>| {
        let mut layer = LayerPatterns::default();
        for (head, choice) in heads.iter().enumerate() {
            let (pattern, recall) = choice.unwrap_or(DENSE);
            layer.set(head as u32, pattern, (1e4 * recall).round() / 1e4)?;
        }
        Ok(layer)
    };
    choices.iter().map(layer).collect()
}

/// The candidates of the heads that are still open.
fn print(number: usize, heads: &[Option<Choice>], found: &Found, samples: f64) {
    for (head, candidates) in found.iter().enumerate().filter(|(head, _)| heads[*head].is_none()) {
        let recalls: Vec<_> = candidates
            .iter()
            .filter_map(|(pattern, sum)| {
                Some(format!("{} {:.1} %", layer::describe((*pattern)?), 100.0 * sum / samples))
            })
            .collect();
        let recalls = if recalls.is_empty() { "no pattern visits so little".into() } else { recalls.join(", ") };
        say!("layer {number} head {head}: {recalls}");
    }
}
