//! How a request draws its tokens.

use ptx::kernels::sampling::{Confidence, RowParameters, sampling_flags};

/// How a request draws its tokens, and what it calls confidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the best token.
    pub temperature: f32,
    /// Nucleus: keeps the likeliest tokens of at most this mass; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: u32,
    /// After these, keeps the tokens at least this probable relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Top-k before top-p (SDAR, vLLM) instead of after it (Dream).
    pub top_k_first: bool,
    /// What is called confidence.
    pub confidence: Confidence,
    /// Confidence in the distribution that is drawn from instead of the plain softmax.
    pub filtered_confidence: bool,
    /// Ids at and above it are never drawn and have no probability, such as the padding of a vocabulary; `None`: all are
    /// tokens.
    pub vocab_limit: Option<u32>,
    /// A token that is never drawn and has no probability, such as the mask token.
    pub banned: Option<u32>,
    /// Weight w of classifier-free guidance: logits are c + w (c − u), with u the logits of the unconditional row (LLaDA's
    /// `cfg_scale`). Only for a kernel that is `guided`.
    pub guidance: f32,
    /// Random seed.
    pub seed: u64,
    /// Name of the request within its seed.
    pub stream: u32,
}

impl Draw {
    /// The best token of each row, unfiltered.
    pub fn greedy() -> Draw {
        Draw {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            top_k_first: false,
            confidence: Confidence::Probability,
            filtered_confidence: false,
            vocab_limit: None,
            banned: None,
            guidance: 0.0,
            seed: 0,
            stream: 0,
        }
    }

    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(format!("temperature is {}; it must be finite and not negative", self.temperature));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(format!("top_p is {}; it must be from 0 to 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(format!("min_p is {}; it must be from 0 to 1", self.min_p));
        }
        if self.vocab_limit == Some(0) {
            return Err("vocab_limit is 0, which leaves no token".into());
        }
        if !self.guidance.is_finite() {
            return Err(format!("guidance is {}; it must be finite", self.guidance));
        }
        Ok(())
    }

    /// The record that the row kernel reads.
    pub(super) fn parameters(&self) -> RowParameters {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        RowParameters {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            flags: flag(self.top_k_first, sampling_flags::TOP_K_FIRST)
                | flag(self.filtered_confidence, sampling_flags::FILTERED_CONFIDENCE)
                | flag(self.banned.is_some(), sampling_flags::BAN),
            confidence: self.confidence.code(),
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            stream: self.stream,
            vocab_limit: self.vocab_limit.unwrap_or(0),
            banned: self.banned.unwrap_or(0),
            guidance: self.guidance,
        }
    }
}
