//! What is recorded of a token when it is written.

use super::row::Row;
use crate::{
    isa::{Builder, R32, R64, Reg, Word},
    kernels::{meta::ParameterKind, sampling::layout::RowStatistics},
};
use std::mem::offset_of;

/// An array a figure, each over the elements of `tokens`, each optional.
pub(super) struct Trajectory {
    steps: R64,
    confidence: R64,
    log_probability: R64,
    entropy: R64,
}

impl Trajectory {
    pub(super) fn new(k: &mut Builder) -> Trajectory {
        Trajectory {
            steps: k.parameter("trajectory_steps", ParameterKind::Pointer),
            confidence: k.parameter("trajectory_confidence", ParameterKind::Pointer),
            log_probability: k.parameter("trajectory_log_probability", ParameterKind::Pointer),
            entropy: k.parameter("trajectory_entropy", ParameterKind::Pointer),
        }
    }

    /// Records `row`, whose token went to byte `offset` of the tokens.
    pub(super) fn record(&self, k: &mut Builder, offset: R64, step: R32, row: &Row) {
        let logit = k.load(row.statistics, offset_of!(RowStatistics, logit) as i64);
        let lse = k.load(row.statistics, offset_of!(RowStatistics, lse) as i64);
        let negative_entropy = k.load(row.statistics, offset_of!(RowStatistics, negative_entropy) as i64);
        let log_probability = k.sub_f(logit, lse);
        let entropy = k.sub_f(0.0, negative_entropy);
        store_if_given(k, self.steps, offset, step);
        store_if_given(k, self.confidence, offset, row.confidence);
        store_if_given(k, self.log_probability, offset, log_probability);
        store_if_given(k, self.entropy, offset, entropy);
    }
}

fn store_if_given<W: Word>(k: &mut Builder, base: R64, offset: R64, value: Reg<W>) {
    let given = k.ne(base, 0u64);
    let at = k.add(base, offset);
    k.when(given, |k| k.store(at, 0, value));
}
