//! One request of a batch.

use super::{Draw, Rule, rule::round_thresholds};
use crate::Error;
use ptx::kernels::sampling::{MAX_STEPS, MAX_WINDOW, RowParameters, SelectParameters, sampling_flags, select_flags};
use std::ops::Range;

/// One request: what it decodes and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Element of `tokens` with the response's position 0.
    pub first_token: u32,
    /// Positions of the response to decode. Those that are not masked at the start stay as they are.
    pub window: Range<u32>,
    /// Positions to decode at a time, at most 1024: the window is decoded block by block (semi-autoregressive decoding, block
    /// diffusion), and the next one begins on the device when a block is finished. 0: all at once.
    pub block: u32,
    /// Row of the model's output that predicts response position 0: with right-shifted logits the sequence row before it.
    pub row_base: u32,
    /// A position with this token is masked.
    pub mask_token: u32,
    /// Steps to take at most, for each block.
    pub steps: u32,
    /// Which rows a step selects.
    pub rule: Rule,
    /// Never takes the mask token for an answer; else a row that draws it is taken and stays masked, as in most published
    /// decoders.
    pub exclude_mask: bool,
    /// Rounds confidences and thresholds to bfloat16 before they are compared, as decoders do that compute in it: above
    /// 0.998 all are 1.
    pub round_to_bf16: bool,
    /// Whether the response may end early.
    pub ending: Option<Ending>,
    /// Which of its steps wait for a refresh of the cache; by default none.
    pub refresh: Refresh,
    /// How tokens are drawn; its seed and stream also serve the rules that draw.
    pub draw: Draw,
}

/// Steps for which the model computes all keys and values anew: the others find them in a cache. Such a step is taken by
/// [`Decoder::refreshed_step`](super::Decoder::refreshed_step), and until then the request waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refresh {
    /// The first so many of each block (Fast-dLLM: 1; dInfer's vicinity refresh: its `warmup_steps`).
    pub steps: u32,
    /// Every so-many-th of a block besides (dInfer's `cache_update_freq`); 0: none.
    pub every: u32,
}

/// When a response ends before all of it is decoded: at the first decoded end token that has no mask before it in its block.
/// What stands open behind it is filled; given tokens stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// One or two ids that end a response.
    pub tokens: Vec<u32>,
    /// Written behind the end.
    pub fill: u32,
    /// When it is looked for.
    pub when: EndingTime,
}

/// When the end of a response is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndingTime {
    /// After every step (d3LLM, Fast-dLLM v2).
    EveryStep,
    /// When a block is finished (dInfer, SDAR).
    EndOfBlock,
}

impl Request {
    /// Greedy decoding of `window`, all at once, one step a position, by confidence above `threshold`.
    pub fn greedy(first_token: u32, window: Range<u32>, row_base: u32, mask_token: u32, threshold: f32) -> Request {
        Request {
            first_token,
            steps: window.len() as u32,
            window,
            block: 0,
            row_base,
            mask_token,
            rule: Rule::Threshold(threshold),
            exclude_mask: false,
            round_to_bf16: false,
            ending: None,
            refresh: Refresh::default(),
            draw: Draw::greedy(),
        }
    }

    /// Positions that are decoded at a time.
    pub(super) fn block_length(&self) -> u32 {
        let window = self.window.len() as u32;
        if self.block == 0 { window } else { self.block.min(window) }
    }

    pub(super) fn check(&self, number: usize, vocab: u32) -> Result<(), Error> {
        let wrong = |message: String| Error::Setting { setting: "request", message: format!("{number}: {message}") };
        let block = self.block_length();
        if block > MAX_WINDOW {
            let cure = if self.block == 0 { "give it blocks of at most" } else { "decode at most" };
            let what = if self.block == 0 { "window" } else { "block" };
            return Err(wrong(format!("its {what} has {block} positions; {cure} {MAX_WINDOW} at once")));
        }
        if self.steps == 0 {
            return Err(wrong("steps is 0; take at least one".into()));
        }
        if self.steps > MAX_STEPS {
            return Err(wrong(format!("steps is {}; take at most {MAX_STEPS} a block", self.steps)));
        }
        if let Some(ending) = &self.ending {
            if !(1..=2).contains(&ending.tokens.len()) {
                return Err(wrong(format!("its ending has {} tokens; give one or two", ending.tokens.len())));
            }
            if ending.tokens.contains(&self.mask_token) || ending.fill == self.mask_token {
                return Err(wrong("its ending has the mask token; it stands for no answer".into()));
            }
        }
        self.draw.check(vocab).and_then(|()| self.rule.check()).map_err(wrong)
    }

    /// The record that the row kernel reads, with the request's first entry in the list of all biases.
    pub(super) fn row_parameters(&self, bias_start: u32) -> RowParameters {
        let parameters = self.draw.parameters(bias_start);
        let spared = if self.rule.reads_entropy() { 0 } else { sampling_flags::WITHOUT_ENTROPY };
        RowParameters { flags: parameters.flags | spared, ..parameters }
    }

    /// The record that the selection kernel reads, for those who launch it themselves.
    pub fn select_parameters(&self) -> SelectParameters {
        let mut parameters = SelectParameters {
            steps: self.steps,
            mask_token: self.mask_token,
            first_token: self.first_token,
            window_start: self.window.start,
            window_length: self.window.len() as u32,
            block_length: self.block,
            row_base: self.row_base,
            seed_low: self.draw.seed as u32,
            seed_high: (self.draw.seed >> 32) as u32,
            stream: self.draw.stream,
            end_tokens: [self.mask_token; 2],
            refresh_steps: self.refresh.steps,
            refresh_every: self.refresh.every,
            ..SelectParameters::default()
        };
        self.rule.describe(&mut parameters);
        if self.exclude_mask {
            parameters.flags |= select_flags::EXCLUDE_MASK;
        }
        if self.round_to_bf16 {
            parameters.flags |= select_flags::ROUND_BF16;
            round_thresholds(&mut parameters);
        }
        if let Some(ending) = &self.ending {
            for (slot, token) in parameters.end_tokens.iter_mut().zip(&ending.tokens) {
                *slot = *token;
            }
            parameters.fill_token = ending.fill;
            parameters.flags |= match ending.when {
                EndingTime::EveryStep => select_flags::END_WITH_STEP,
                EndingTime::EndOfBlock => select_flags::END_WITH_BLOCK,
            };
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Credit, Order},
        *,
    };
    use ptx::kernels::sampling::{Confidence, rule, schedule, score};

    fn refused(change: impl FnOnce(&mut Request)) -> String {
        let mut request = Request::greedy(0, 0..8, 3, 99, 0.9);
        change(&mut request);
        request.check(2, 1000).unwrap_err().to_string()
    }

    #[test]
    fn requests_are_checked() {
        assert!(Request::greedy(0, 0..1024, 3, 99, 0.9).check(0, 1000).is_ok());
        assert_eq!(
            refused(|r| r.window = 0..1025),
            "request: 2: its window has 1025 positions; give it blocks of at most 1024 at once"
        );
        assert!(
            refused(|r| (r.window, r.block) = (0..4096, 2048)).contains("its block has 2048 positions; decode at most")
        );
        assert_eq!(refused(|r| r.steps = 0), "request: 2: steps is 0; take at least one");
        assert!(refused(|r| r.steps = 65_537).contains("at most 65536 a block"));
        assert_eq!(refused(|r| r.draw.top_p = 1.5), "request: 2: top_p is 1.5; it must be from 0 to 1");
        assert_eq!(refused(|r| r.draw.min_p = -0.5), "request: 2: min_p is -0.5; it must be from 0 to 1");
        assert!(refused(|r| r.draw.vocab_limit = Some(0)).contains("leaves no token"));
        assert!(refused(|r| r.draw.guidance = f32::INFINITY).contains("guidance is inf"));
        assert!(refused(|r| r.draw.temperature = f32::NAN).contains("temperature is NaN"));
        let biased = |biases: &[(u32, f32)]| refused(|r| r.draw.biases = biases.into());
        assert_eq!(biased(&[(1000, 0.5)]), "request: 2: has a bias for token 1000; rows have 1000 tokens");
        assert!(biased(&[(3, 0.5), (4, f32::NAN)]).contains("its bias for token 4 is NaN"));
        assert!(biased(&[(3, f32::INFINITY)]).contains("its bias for token 3 is inf; it must be finite, or -inf"));
        assert!(biased(&[(3, 0.5), (4, 0.0), (3, 0.0)]).contains("has two biases for token 3"));
        assert!(biased(&[(3, 0.5); 481]).contains("has 481 biases; give at most 480"));
        let credit = |credit| refused(|r| r.draw.credit = Some(credit));
        assert!(
            credit(Credit { weight: -1.0, ..Credit::default() })
                .contains("its credit's weight is -1; it must be finite")
        );
        assert!(credit(Credit { decay: 1.5, ..Credit::default() }).contains("decay is 1.5; it must be from 0 to 1"));
        assert!(credit(Credit { exponent: f32::NAN, ..Credit::default() }).contains("exponent is NaN"));
        let ending = |tokens: &[u32], fill| Some(Ending { tokens: tokens.into(), fill, when: EndingTime::EveryStep });
        assert!(refused(|r| r.ending = ending(&[], 1)).contains("has 0 tokens"));
        assert!(refused(|r| r.ending = ending(&[1, 2, 3], 1)).contains("has 3 tokens"));
        assert!(refused(|r| r.ending = ending(&[1, 99], 1)).contains("mask token"));
        assert!(refused(|r| r.ending = ending(&[1], 99)).contains("mask token"));
    }

    #[test]
    fn rules_are_checked() {
        let none = f32::NAN;
        for (rule, wrong) in [
            (Rule::Threshold(none), "threshold is NaN"),
            (Rule::FastThreshold(1.5), "threshold is 1.5; it must be from 0 to 1"),
            (Rule::FastBudget(-0.5), "threshold is -0.5"),
            (Rule::DInferThreshold(2.0), "threshold is 2"),
            (Rule::Dynamic(f32::INFINITY), "threshold is inf"),
            (Rule::dimple(1.1), "threshold is 1.1"),
            (Rule::Dimple { threshold: 0.9, order: Order::Surest, epsilon: 2.0 }, "epsilon is 2"),
            (Rule::Dream { order: Order::Surest, epsilon: -1.0 }, "epsilon is -1"),
            (Rule::Dream { order: Order::Noisy(0.0), epsilon: 1e-3 }, "noise is 0"),
            (Rule::Dimple { threshold: 0.9, order: Order::Noisy(none), epsilon: 1e-3 }, "noise is NaN"),
            (Rule::Llada { order: Order::Chance }, "no probabilities"),
            (Rule::FastFactor(-1.0), "factor is -1"),
            (Rule::Hierarchy { threshold: 0.9, low: 1.5 }, "low is 1.5"),
            (Rule::HierarchyRemask { threshold: 0.9, low: 0.4, remask: none }, "remask is NaN"),
            (Rule::EntropyBounded(none), "budget is NaN"),
            (Rule::EntropyThreshold(-0.1), "threshold is -0.1"),
            (Rule::Joint { threshold: 0.9, count: 1, edit: 7.0, post_steps: 1 }, "edit is 7"),
        ] {
            let error = refused(|r| r.rule = rule);
            assert!(error.contains(wrong), "{rule:?}: {error}");
        }
    }

    #[test]
    fn published_settings_are_valid() {
        for rule in [
            Rule::dimple(0.95),
            Rule::dimple(0.0),
            Rule::dream(),
            Rule::dream_origin(),
            Rule::llada(),
            Rule::hierarchy(0.9),
            Rule::joint_quality(),
            Rule::joint_speed(),
            Rule::FirstHitting,
        ] {
            let request = Request { rule, ..Request::greedy(0, 0..8, 3, 99, 0.9) };
            assert!(request.check(0, 1000).is_ok(), "{rule:?}");
        }
    }

    #[test]
    fn requests_become_the_records_of_the_kernels() {
        let request = Request {
            draw: Draw { seed: 0x1234_5678_9abc_def0, top_k_first: true, filtered_confidence: true, ..Draw::greedy() },
            rule: Rule::Dream { order: Order::Noisy(0.4), epsilon: 0.001 },
            ending: Some(Ending { tokens: vec![5], fill: 6, when: EndingTime::EndOfBlock }),
            block: 4,
            ..Request::greedy(40, 4..12, 7, 99, 0.9)
        };
        let row = request.row_parameters(0);
        assert_eq!((row.seed_low, row.seed_high, row.flags), (0x9abc_def0, 0x1234_5678, 7));
        for rule in [Rule::EntropyBounded(0.1), Rule::EntropyThreshold(0.1)] {
            assert_eq!(Request { rule, ..request.clone() }.row_parameters(0).flags, 3);
        }
        let credit = Some(Credit::default());
        let choosy =
            Draw { biases: vec![(9, 1.5), (2, -1.0)], credit, confidence: Confidence::Margin, ..Draw::greedy() };
        let banned = choosy.clone().ban(5).ban(9);
        assert_eq!(banned.sorted_biases(), [(2, -1.0), (5, f32::NEG_INFINITY), (9, f32::NEG_INFINITY)]);
        let choosy = choosy.parameters(7);
        assert_eq!((choosy.bias_start, choosy.bias_count, choosy.confidence), (7, 2, 1));
        assert_eq!([choosy.credit_weight, choosy.credit_decay, choosy.credit_exponent], [0.7, 0.8, 0.2]);
        assert_eq!((row.bias_count, row.credit_weight), (0, 0.0));
        let select = request.select_parameters();
        assert_eq!((select.rule, select.score, select.schedule), (rule::TOP_K, score::NOISY, schedule::TIME));
        assert_eq!((select.epsilon, select.noise, select.flags), (0.001, 0.4, select_flags::END_WITH_BLOCK));
        assert_eq!((select.window_start, select.window_length, select.block_length), (4, 8, 4));
        assert_eq!((select.seed_low, select.seed_high, select.stream), (row.seed_low, row.seed_high, row.stream));
        assert_eq!((select.end_tokens, select.fill_token), ([5, 99], 6));
        assert_eq!((select.first_token, select.row_base, select.mask_token, select.steps), (40, 7, 99, 8));
    }
    #[test]
    fn thresholds_are_rounded_with_the_confidences() {
        let request = Request { round_to_bf16: true, ..Request::greedy(0, 0..8, 3, 99, 0.95) };
        let select = request.select_parameters();
        assert_eq!((select.threshold, select.flags), (0.949_218_75, select_flags::ROUND_BF16));
    }
}
