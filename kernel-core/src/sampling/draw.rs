//! How a request draws its tokens.

use ptx::kernels::sampling::{Confidence, MAX_BIASES, RowParameters, sampling_flags};

/// Credits: a token that stays a position's best becomes surer from step to step (CreditDecoding, arXiv 2510.06133; dInfer's
/// `CreditThresholdParallelDecoder`). The position's credits shrink to `decay` of what they were, its best token, of probability
/// p, gets p^`exponent`, and `weight` · ln(1 + credit) is added to each logit. The 32 best tokens of a position that came last
/// count. A new block begins without credits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Credit {
    /// α.
    pub weight: f32,
    /// β.
    pub decay: f32,
    /// γ.
    pub exponent: f32,
}

impl Default for Credit {
    /// dInfer's settings.
    fn default() -> Credit {
        Credit { weight: 0.7, decay: 0.8, exponent: 0.2 }
    }
}

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
    /// What is added to the logits of some tokens, before temperature and everything else: at most [`MAX_BIASES`] pairs of an id
    /// and a number, in any order. −∞ bans a token: it has no probability.
    pub biases: Vec<(u32, f32)>,
    /// Whether tokens that were the best at earlier steps are preferred.
    pub credit: Option<Credit>,
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
            biases: Vec::new(),
            credit: None,
            guidance: 0.0,
            seed: 0,
            stream: 0,
        }
    }

    /// Never draws this token: a bias of −∞.
    pub fn ban(self, token: u32) -> Draw {
        let biases =
            self.biases.into_iter().filter(|&(id, _)| id != token).chain([(token, f32::NEG_INFINITY)]).collect();
        Draw { biases, ..self }
    }

    /// What is wrong with it, if anything, for a vocabulary of so many tokens.
    pub(super) fn check(&self, vocab: u32) -> Result<(), String> {
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
        if let Some(Credit { weight, decay, exponent }) = self.credit {
            let numbers = [("weight", weight, f32::MAX), ("decay", decay, 1.0), ("exponent", exponent, f32::MAX)];
            if let Some((name, number, _)) = numbers.iter().find(|(_, number, most)| !(0.0..=*most).contains(number)) {
                let most = if *name == "decay" { "from 0 to 1" } else { "finite and not negative" };
                return Err(format!("its credit's {name} is {number}; it must be {most}"));
            }
        }
        self.check_biases(vocab)
    }

    fn check_biases(&self, vocab: u32) -> Result<(), String> {
        if self.biases.len() > MAX_BIASES as usize {
            return Err(format!("has {} biases; give at most {MAX_BIASES}", self.biases.len()));
        }
        if let Some((id, _)) = self.biases.iter().find(|(id, _)| *id >= vocab) {
            return Err(format!("has a bias for token {id}; rows have {vocab} tokens"));
        }
        if let Some((id, bias)) = self.biases.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            return Err(format!("its bias for token {id} is {bias}; it must be finite, or -inf"));
        }
        match self.sorted_biases().windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(format!("has two biases for token {}; give their sum", pair[0].0)),
            None => Ok(()),
        }
    }

    /// The biases in the order of their ids, as the row kernel wants them.
    pub(super) fn sorted_biases(&self) -> Vec<(u32, f32)> {
        let mut biases = self.biases.clone();
        biases.sort_by_key(|&(id, _)| id);
        biases
    }

    /// The record that the row kernel reads, with the request's first entry in the list of all biases.
    pub(super) fn parameters(&self, bias_start: u32) -> RowParameters {
        let credit = self.credit.unwrap_or(Credit { weight: 0.0, decay: 0.0, exponent: 0.0 });
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        RowParameters {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            flags: flag(self.top_k_first, sampling_flags::TOP_K_FIRST)
                | flag(self.filtered_confidence, sampling_flags::FILTERED_CONFIDENCE),
            confidence: self.confidence.code(),
            seed_low: self.seed as u32,
            seed_high: (self.seed >> 32) as u32,
            stream: self.stream,
            vocab_limit: self.vocab_limit.unwrap_or(0),
            guidance: self.guidance,
            bias_start,
            bias_count: self.biases.len() as u32,
            credit_weight: credit.weight,
            credit_decay: credit.decay,
            credit_exponent: credit.exponent,
        }
    }
}
