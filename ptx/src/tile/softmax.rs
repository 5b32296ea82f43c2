//! Online softmax in base 2 (Milakov & Gimelshein 2018; FlashAttention-2, §3.1).
//!
//! Scores x enter as they are; weights are `2^(x·factor - max·factor)` with `factor` = scale · log2 e, one fused
//! multiply-add and one special-function instruction each. The factor is positive, so the largest score has the largest
//! weight. A row whose maximum is −∞ uses 0 instead: its weights are `2^-∞ = 0` and never `∞ − ∞`.

use crate::isa::{Builder, RF, RP};
use std::ops::Range;

/// Running maximum and sum of each row that a lane holds a part of. The four lanes of a quad share their rows.
pub struct OnlineSoftmax {
    factor: RF,
    /// How far a score may lie above the maximum before that is raised.
    slack: Option<RF>,
    /// Largest score so far, or not much less; the same in all lanes of the quad.
    max: Vec<RF>,
    /// Sum of this lane's weights so far.
    sum: Vec<RF>,
}

/// What raised maxima do to what was summed before.
pub struct Shrinks {
    /// Whether some row of the warp shrinks at all.
    pub needed: RP,
    /// For each row the factor by which its earlier weights, and all that was summed with them, shrink.
    pub factors: Vec<RF>,
}

/// What a row ends with.
pub struct RowEnd {
    /// One over the sum of weights; 0 for a row without weight.
    pub inverse_sum: RF,
    /// Natural logarithm of the sum of `e^(x·scale)`; −∞ for a row without weight.
    pub lse: RF,
}

/// Independent chains in a reduction over a row.
const CHAINS: usize = 4;

fn reduce(k: &mut Builder, row: &[RF], op: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    let mut chains: Vec<RF> = row.iter().copied().take(CHAINS).collect();
    for (i, &element) in row.iter().enumerate().skip(CHAINS) {
        chains[i % CHAINS] = op(k, chains[i % CHAINS], element);
    }
    while chains.len() > 1 {
        let (a, b) = (chains.remove(0), chains.remove(0));
        chains.push(op(k, a, b));
    }
    chains[0]
}

fn reduce_quad(k: &mut Builder, value: RF, op: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    let other = k.shuffle_xor(value, 2);
    let value = op(k, value, other);
    let other = k.shuffle_xor(value, 1);
    op(k, value, other)
}

impl OnlineSoftmax {
    /// Nothing seen yet. `factor` is the scale of the scores times log2 e, positive.
    pub fn new(k: &mut Builder, rows: usize, factor: RF) -> OnlineSoftmax {
        let max = (0..rows).map(|_| k.mov(f32::NEG_INFINITY)).collect();
        let sum = (0..rows).map(|_| k.mov(0.0)).collect();
        OnlineSoftmax { factor, slack: None, max, sum }
    }

    /// Leaves a maximum where it is until a weight would pass 2^`exponent`: what was summed seldom shrinks then
    /// (FlashAttention-4). The result is the same to rounding, since all weights of a row share one shift in the end.
    pub fn with_slack(self, k: &mut Builder, exponent: f32) -> OnlineSoftmax {
        let inverse = k.rcp_f(self.factor);
        OnlineSoftmax { slack: Some(k.mul_f(inverse, exponent)), ..self }
    }

    /// The maximum in the exponent's units, negated; 0 for a row without a score.
    fn negative_shift(&self, k: &mut Builder, max: RF) -> RF {
        let shift = k.mul_f(max, self.factor);
        let shift = k.neg_f(shift);
        let none = k.eq_f(max, f32::NEG_INFINITY);
        k.select(none, 0.0, shift)
    }

    /// Raises the maxima to those of a tile's scores. What was summed so far shrinks: by nothing, in most turns, for all
    /// rows of a warp, and then the caller may leave out [`OnlineSoftmax::shrink`].
    pub fn raise(&self, k: &mut Builder, scores: &[Vec<RF>]) -> Shrinks {
        let mut some_raised = None;
        let mut factors = Vec::with_capacity(scores.len());
        for (row, &max) in scores.iter().zip(&self.max) {
            let largest = reduce(k, row, |k, a, b| k.max_f(a, b));
            let largest = reduce_quad(k, largest, |k, a, b| k.max_f(a, b));
            let raised = match self.slack {
                Some(slack) => {
                    let bound = k.add_f(max, slack);
                    k.gt_f(largest, bound)
                }
                None => k.gt_f(largest, max),
            };
            some_raised = Some(some_raised.map_or(raised, |some| k.or_p(some, raised)));
            let largest = match self.slack {
                Some(_) => k.select(raised, largest, max),
                None => k.max_f(largest, max),
            };
            let shift = self.negative_shift(k, largest);
            // The difference of two shifts as they were rounded: exactly 0 for a maximum that stays. A fused product would leave its
            // rounding, and whether a row is multiplied by nearly 1 depends on the other rows of the warp.
            let before = k.mul_f(max, self.factor);
            let exponent = k.add_f(before, shift);
            factors.push(k.exp2_f(exponent));
            k.set(max, largest);
        }
        let some_raised = some_raised.expect("a lane holds at least one row");
        Shrinks { needed: k.any(some_raised), factors }
    }

    /// Shrinks the sums of weights of earlier tiles.
    pub fn shrink(&self, k: &mut Builder, factors: &[RF]) {
        for (&sum, &factor) in self.sum.iter().zip(factors) {
            let shrunk = k.mul_f(sum, factor);
            k.set(sum, shrunk);
        }
    }

    /// The exponents' shifts, after [`OnlineSoftmax::raise`].
    pub fn shifts(&self, k: &mut Builder) -> Vec<RF> {
        self.max.iter().map(|&max| self.negative_shift(k, max)).collect()
    }

    /// Turns some columns of the scores into weights, in place, and adds them up.
    pub fn weigh(&self, k: &mut Builder, shifts: &[RF], scores: &mut [Vec<RF>], columns: Range<usize>) {
        for ((row, &shift), &sum) in scores.iter_mut().zip(shifts).zip(&self.sum) {
            for element in &mut row[columns.clone()] {
                let exponent = k.fma(*element, self.factor, shift);
                *element = k.exp2_f(exponent);
            }
            let added = reduce(k, &row[columns.clone()], |k, a, b| k.add_f(a, b));
            let added = k.add_f(sum, added);
            k.set(sum, added);
        }
    }

    /// Always holds, which `ptxas` cannot know: no sum is negative. What is predicated on it comes after all that was
    /// summed so far.
    pub fn summed(&self, k: &mut Builder) -> RP {
        let negative: Vec<RP> = self.sum.iter().map(|&sum| k.lt_f(sum, 0.0)).collect();
        let some = negative.into_iter().reduce(|a, b| k.or_p(a, b)).expect("a lane holds at least one row");
        k.not_p(some)
    }

    /// The ends of all rows, the same in all lanes of a quad.
    pub fn finish(&self, k: &mut Builder) -> Vec<RowEnd> {
        let rows = self.sum.iter().zip(&self.max);
        rows.map(|(&sum, &max)| {
            let sum = reduce_quad(k, sum, |k, a, b| k.add_f(a, b));
            let empty = k.eq_f(sum, 0.0);
            let inverse = k.rcp_f(sum);
            let inverse_sum = k.select(empty, 0.0, inverse);
            let shift = self.negative_shift(k, max);
            let log = k.log2_f(sum);
            let log = k.sub_f(log, shift);
            RowEnd { inverse_sum, lse: k.mul_f(log, std::f32::consts::LN_2) }
        })
        .collect()
    }
}
