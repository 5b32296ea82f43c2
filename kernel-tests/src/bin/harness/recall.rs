//! `harness recall`: how much of the true attention the pattern of each head keeps, and in which share of the pairs.

use crate::{
    Outcome, Result, inspect,
    layer::{self, Layer},
    output::say,
    policy::{Policy, policy},
    progress,
    session::Session,
    task,
};
use kernel_core::HeadPattern;
use kernel_tests::records::Sample;
use rayon::prelude::*;
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Prompt length in tokens
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Prompts: those that eval asks about at this length and number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// A pattern file, triangle_mix:STARTING_LAYER, or a pattern for all heads as `plot mask` takes; by default
    /// patterns.json of the model folder
    #[arg(long, value_name = "PATTERNS", value_parser = policy)]
    patterns: Option<Policy>,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// One head; sums over the prompts.
struct Head {
    pattern: HeadPattern,
    density: f64,
    recall: f64,
}

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    let patterns = match &options.patterns {
        Some(policy) => policy.patterns(session)?,
        None => session.patterns()?,
    };
    let (layers, heads) = (session.config.layers, session.config.heads as u32);
    let mut table = Vec::new();
    for layer in 0..layers {
        let patterns = patterns.layer(layer)?;
        let head = |head| Head { pattern: patterns.head(head), density: 0.0, recall: 0.0 };
        table.push((0..heads).map(head).collect::<Vec<_>>());
    }
    let bar = progress::bar("measuring", options.samples * layers as u64);
    for number in 0..options.samples {
        let sample: Sample = task::held_out(number, options.samples, options.tokens)?;
        inspect::prefill(session, &sample, &mut |number, call| {
            let masks = layer::planned_masks(&session.stream, session.arch, &patterns.layer(number)?, call)?;
            let attention = Layer::read(&session.stream, call)?;
            table[number].par_iter_mut().zip(&masks).enumerate().for_each(|(number, (head, mask))| {
                head.density += mask.density() / options.samples as f64;
                head.recall += layer::recall(&attention.head(number).attention(), mask) / options.samples as f64;
            });
            bar.inc(1);
            Ok(())
        })?;
    }
    bar.finish_and_clear();
    if options.json {
        say!("{}", report(session, options, &table));
    } else {
        print(session, options, &table);
    }
    Ok(Outcome::Passed)
}

/// Density and recall, each the mean over all heads.
fn means(table: &[Vec<Head>]) -> (f64, f64) {
    let heads: Vec<&Head> = table.iter().flatten().collect();
    let mean = |of: fn(&Head) -> f64| heads.iter().map(|head| of(head)).sum::<f64>() / heads.len() as f64;
    (mean(|head| head.density), mean(|head| head.recall))
}

fn print(session: &Session, options: &Options, table: &[Vec<Head>]) {
    say!("device  {}\nmodel   {}", session.device_line(), session.model_text());
    let Options { tokens, samples, .. } = options;
    let prompts = if *samples == 1 { "1 prompt".into() } else { format!("{samples} prompts") };
    say!(
        "recall: share of the true attention inside the selection, mean over the rows of {prompts} of {tokens} tokens\n"
    );
    say!("layer  head  pattern         budget       density   recall");
    for (layer, heads) in table.iter().enumerate() {
        for (number, Head { pattern, density, recall }) in heads.iter().enumerate() {
            let (name, budget) = (layer::name(*pattern), layer::budget(*pattern));
            say!("{layer:5}  {number:4}  {name:14}  {budget:12} {:5.1} %  {:5.1} %", 100.0 * density, 100.0 * recall);
        }
    }
    let (density, recall) = means(table);
    say!("mean         {:28}  {:5.1} %  {:5.1} %", "", 100.0 * density, 100.0 * recall);
}

fn report(session: &Session, options: &Options, table: &[Vec<Head>]) -> serde_json::Value {
    let head = |Head { pattern, density, recall }: &Head| {
        json!({
            "pattern": layer::name(*pattern), "budget": layer::budget(*pattern), "density": density, "recall": recall,
        })
    };
    let layers: Vec<Vec<_>> = table.iter().map(|heads| heads.iter().map(head).collect()).collect();
    let (density, recall) = means(table);
    json!({
        "device": session.device_text, "arch": session.arch.target(), "model": session.model_text(),
        "tokens": options.tokens, "samples": options.samples, "layers": layers, "density": density, "recall": recall,
    })
}
