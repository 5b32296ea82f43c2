//! `harness eval --caches`: what cache policies change of a response, beside passes over everything.

use crate::{Result, output::say, progress, session::Session, task};
use kernel_core::sampling::Rule;
use kernel_tests::{
    decode::{CachePolicy, Response, Settings, decode},
    model::PromptMask,
    records::{RESPONSE_TOKENS, Sample},
};
use serde_json::json;

/// Positions of a block, where there are blocks.
const BLOCK: u32 = 8;

/// Positions that a step fills, sure of them or not: a model that is sure of everything at once would leave a cache no time to
/// grow stale.
const A_STEP: u32 = 4;

/// Policies with their names, in pairs of those that decode everything at once and those that decode blocks.
const POLICIES: [(&str, CachePolicy, bool); 7] = [
    ("none", CachePolicy::None, false),
    ("prompt", CachePolicy::Prompt, false),
    ("none, blocks", CachePolicy::None, true),
    ("prefix", CachePolicy::Prefix, true),
    ("dual", CachePolicy::Dual, true),
    ("window 4 4", CachePolicy::Window { before: 4, behind: 4 }, true),
    ("block diffusion", CachePolicy::Block, true),
];

/// How a policy did under a prompt mask.
struct Row {
    tokens: usize,
    mask: &'static str,
    policy: &'static str,
    correct: u64,
    samples: u64,
    passes: u64,
    /// Positions with the token that passes over everything give, and positions.
    same: (u64, u64),
    /// Largest difference of a log-probability from theirs, where the tokens are the same; 0 where all bits are.
    drift: f32,
}

pub(crate) fn run(session: &Session, lengths: &[usize], samples: u64, as_json: bool) -> Result<()> {
    let masks = [("causal", PromptMask::Causal), ("bidirectional", PromptMask::Bidirectional)];
    let bar = progress::bar("decoding", (lengths.len() * masks.len() * POLICIES.len()) as u64 * samples);
    let mut rows = Vec::new();
    for &tokens in lengths {
        let prompts: Vec<Sample> =
            (0..samples).map(|number| task::held_out(number, samples, tokens)).collect::<Result<_>>()?;
        for (mask_name, mask) in masks {
            let mut reference: Vec<Response> = Vec::new();
            for (name, cache, blocks) in POLICIES {
                let (block, positions) = if blocks { (Some(BLOCK), BLOCK) } else { (None, RESPONSE_TOKENS as u32) };
                let (rule, steps) = (Rule::llada(), Some(positions / A_STEP));
                let settings = Settings { mask, cache, block, rule, steps, ..Settings::default() };
                let mut responses = Vec::new();
                for sample in &prompts {
                    responses.push(respond(session, sample, &settings)?);
                    bar.inc(1);
                }
                if cache == CachePolicy::None {
                    reference.clone_from(&responses);
                }
                rows.push(Row::new(tokens, (mask_name, name), &prompts, &responses, &reference));
            }
        }
    }
    bar.finish_and_clear();
    if as_json {
        say!("{}", json!({ "model": session.model_text(), "caches": rows.iter().map(Row::json).collect::<Vec<_>>() }));
    } else {
        print(session, &rows);
    }
    Ok(())
}

/// The response to a sample whose prompt has been prefilled under the mask.
fn respond(session: &Session, sample: &Sample, settings: &Settings) -> Result<Response> {
    let (stream, transformer) = (&session.stream, &session.transformer);
    let batch = task::batch(session, sample)?;
    for sequence in batch.sequences() {
        transformer.prefill(stream, sequence, settings.mask, sequence.prompt(), transformer.dense())?;
    }
    let responses = decode(stream, transformer, &batch, settings, |_| ())?;
    Ok(responses.into_iter().next().ok_or("the batch has no response")?)
}

impl Row {
    fn new(
        tokens: usize,
        (mask, policy): (&'static str, &'static str),
        prompts: &[Sample],
        responses: &[Response],
        reference: &[Response],
    ) -> Row {
        let mut row = Row {
            tokens,
            mask,
            policy,
            correct: 0,
            samples: prompts.len() as u64,
            passes: 0,
            same: (0, 0),
            drift: 0.0,
        };
        for ((sample, response), full) in prompts.iter().zip(responses).zip(reference) {
            row.correct += u64::from(task::is_correct(sample, response));
            row.passes += u64::from(response.passes);
            for (position, token) in response.tokens.iter().enumerate() {
                let same = *token == full.tokens[position];
                row.same = (row.same.0 + u64::from(same), row.same.1 + 1);
                let filled = (response.trajectory[position], full.trajectory[position]);
                if let (Some(own), Some(theirs)) = filled
                    && same
                {
                    row.drift = row.drift.max((own.log_probability - theirs.log_probability).abs());
                }
            }
        }
        row
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "tokens": self.tokens, "prompt_mask": self.mask, "cache": self.policy, "correct": self.correct,
            "samples": self.samples, "forward_passes": self.passes as f64 / self.samples as f64,
            "response_length": RESPONSE_TOKENS, "same_tokens": self.same.0, "positions": self.same.1,
            "largest_drift": self.drift,
        })
    }
}

fn print(session: &Session, rows: &[Row]) {
    say!("device  {}\nmodel   {}", session.device_line(), session.model_text());
    say!("{A_STEP} positions a step, the surest; blocks of {BLOCK}; beside passes over everything\n");
    say!("tokens  prompt mask    cache            right answers     passes / positions  same tokens  largest drift");
    for row in rows {
        say!(
            "{:6}  {:13}  {:15}  {:5.1} % ({}/{})  {:6.2} / {RESPONSE_TOKENS}          {:7.2} %     {:.1e}",
            row.tokens,
            row.mask,
            row.policy,
            100.0 * row.correct as f64 / row.samples as f64,
            row.correct,
            row.samples,
            row.passes as f64 / row.samples as f64,
            100.0 * row.same.0 as f64 / row.same.1 as f64,
            row.drift,
        );
    }
}
