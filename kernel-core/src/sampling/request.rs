//! One request of a batch.

use super::{Draw, Rule};
use crate::Error;
use ptx::kernels::sampling::{MAX_WINDOW, SelectParameters};
use std::ops::Range;

/// One request: what it decodes and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Element of `tokens` with the response's position 0.
    pub first_token: u32,
    /// Positions of the response to decode, at most 1024.
    pub window: Range<u32>,
    /// Row of the model's output that predicts response position 0: with right-shifted logits the sequence row before it.
    pub row_base: u32,
    /// A position with this token is masked.
    pub mask_token: u32,
    /// Steps to take at most.
    pub steps: u32,
    /// Which rows a step selects.
    pub rule: Rule,
    /// How tokens are drawn.
    pub draw: Draw,
}

impl Request {
    /// Greedy decoding of `window`, one step a position, by confidence above `threshold`.
    pub fn greedy(first_token: u32, window: Range<u32>, row_base: u32, mask_token: u32, threshold: f32) -> Request {
        Request {
            first_token,
            steps: window.len() as u32,
            window,
            row_base,
            mask_token,
            rule: Rule::Threshold(threshold),
            draw: Draw::greedy(),
        }
    }

    pub(super) fn check(&self, number: usize) -> Result<(), Error> {
        let wrong = |message: String| Error::Setting { setting: "request", message: format!("{number}: {message}") };
        if self.window.len() > MAX_WINDOW as usize {
            let (given, most) = (self.window.len(), MAX_WINDOW);
            return Err(wrong(format!("its window has {given} positions; decode at most {most} at once")));
        }
        if self.steps == 0 {
            return Err(wrong("steps is 0; take at least one".into()));
        }
        self.draw.check().and_then(|()| self.rule.check()).map_err(wrong)
    }

    /// The record that the selection kernel reads.
    pub(super) fn select_parameters(&self) -> SelectParameters {
        let mut parameters = SelectParameters {
            steps: self.steps,
            mask_token: self.mask_token,
            first_token: self.first_token,
            window_start: self.window.start,
            window_length: self.window.len() as u32,
            row_base: self.row_base,
            ..SelectParameters::default()
        };
        self.rule.describe(&mut parameters);
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Request)) -> String {
        let mut request = Request::greedy(0, 0..8, 3, 99, 0.9);
        change(&mut request);
        request.check(2).unwrap_err().to_string()
    }

    #[test]
    fn requests_are_checked() {
        assert!(Request::greedy(0, 0..1024, 3, 99, 0.9).check(0).is_ok());
        assert_eq!(
            refused(|r| r.window = 0..1025),
            "request: 2: its window has 1025 positions; decode at most 1024 at once"
        );
        assert_eq!(refused(|r| r.steps = 0), "request: 2: steps is 0; take at least one");
        assert_eq!(refused(|r| r.draw.top_p = 1.5), "request: 2: top_p is 1.5; it must be from 0 to 1");
        assert!(refused(|r| r.draw.temperature = f32::NAN).contains("temperature is NaN"));
        assert!(refused(|r| r.rule = Rule::Threshold(f32::NAN)).contains("threshold"));
        assert!(refused(|r| r.rule = Rule::Time { epsilon: -1.0 }).contains("epsilon is -1"));
    }

    #[test]
    fn requests_become_the_records_of_the_kernels() {
        let request = Request {
            draw: Draw { seed: 0x1234_5678_9abc_def0, top_k_first: true, filtered_confidence: true, ..Draw::greedy() },
            rule: Rule::Time { epsilon: 0.001 },
            ..Request::greedy(40, 4..12, 7, 99, 0.9)
        };
        let row = request.draw.parameters();
        assert_eq!((row.seed_low, row.seed_high, row.flags), (0x9abc_def0, 0x1234_5678, 3));
        let select = request.select_parameters();
        assert_eq!((select.rule, select.epsilon, select.window_start, select.window_length), (2, 0.001, 4, 8));
        assert_eq!((select.first_token, select.row_base, select.mask_token, select.steps), (40, 7, 99, 8));
    }
}
