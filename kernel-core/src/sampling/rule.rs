//! Which rows a step selects.

use ptx::kernels::sampling::{SelectParameters, rule};

/// Which rows a step selects: those of highest confidence, all of them at the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Those above a confidence, and at least one (Dimple's confident decoding).
    Threshold(f32),
    /// As many at each step (LLaDA).
    Even,
    /// By a schedule that falls linearly from 1 to `epsilon` (Dream).
    Time {
        /// Last time of the schedule.
        epsilon: f32,
    },
}

impl Rule {
    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        match *self {
            Rule::Threshold(threshold) if threshold.is_nan() => Err("the threshold is not a number".into()),
            Rule::Time { epsilon } if !(0.0..=1.0).contains(&epsilon) => {
                Err(format!("epsilon is {epsilon}; it must be from 0 to 1"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the rule's part of a request's record.
    pub(super) fn describe(&self, parameters: &mut SelectParameters) {
        (parameters.rule, parameters.threshold, parameters.epsilon) = match *self {
            Rule::Threshold(threshold) => (rule::THRESHOLD, threshold, 0.0),
            Rule::Even => (rule::TOP_K_EVEN, 0.0, 0.0),
            Rule::Time { epsilon } => (rule::TOP_K_TIME, 0.0, epsilon),
        };
    }
}
