//! How a request draws its tokens.

use ptx::kernels::sampling::{RowParameters, sampling_flags};

/// How a request draws its tokens, and what it calls confidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the best token.
    pub temperature: f32,
    /// Nucleus: keeps the likeliest tokens of at most this mass; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: u32,
    /// Top-k before top-p (SDAR, vLLM) instead of after it (Dream).
    pub top_k_first: bool,
    /// Confidence in the distribution that is drawn from instead of the plain softmax.
    pub filtered_confidence: bool,
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
            top_k_first: false,
            filtered_confidence: false,
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
        Ok(())
    }

    /// The record that the row kernel reads.
    pub(super) fn parameters(&self) -> RowParameters {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        RowParameters {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            flags: flag(self.top_k_first, sampling_flags::TOP_K_FIRST)
                | flag(self.filtered_confidence, sampling_flags::FILTERED_CONFIDENCE),
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            stream: self.stream,
            reserved: 0,
        }
    }
}
