//! Attention of one head of one sequence, in double precision, under any token mask.

use super::Mask;
use rayon::prelude::*;

/// A score expression: (scaled score, absolute query position, key position) to the score that enters the softmax.
pub type Score<'a> = &'a (dyn Fn(f64, usize, usize) -> f64 + Sync);

/// One head of one sequence. Inputs are the rounded values that the kernel sees.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// Queries, `[q_len, head_dim]`.
    pub q: &'a [f32],
    /// Keys, `[kv_len, head_dim]`.
    pub k: &'a [f32],
    /// Values, `[kv_len, head_dim]`.
    pub v: &'a [f32],
    /// Elements of a head.
    pub head_dim: usize,
    /// Which pairs count; it also carries `q_len` and `kv_len`.
    pub mask: &'a Mask,
    /// Factor of the scores, usually `head_dim^-0.5`.
    pub scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// Replaces the scaled (and capped) score.
    pub score: Option<Score<'a>>,
}

impl Problem<'_> {
    fn scores(&self, row: usize) -> Vec<f64> {
        let d = self.head_dim;
        let position = self.mask.position(row);
        let q = &self.q[row * d..][..d];
        (0..self.mask.kv_len())
            .map(|key| {
                if !self.mask.keeps(row, key) {
                    return f64::NEG_INFINITY;
                }
                let dot: f64 = q.iter().zip(&self.k[key * d..][..d]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let mut score = dot * self.scale;
                if let Some(cap) = self.softcap {
                    score = cap * (score / cap).tanh();
                }
                self.score.map_or(score, |f| f(score, position, key))
            })
            .collect()
    }

    /// Softmax-weighted values of one row, with the weights passed through `round` before they meet the values.
    fn row(&self, row: usize, round: impl Fn(f64) -> f64) -> (Vec<f64>, f64) {
        let scores = self.scores(row);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return (vec![0.0; self.head_dim], f64::NEG_INFINITY);
        }
        let mut out = vec![0.0; self.head_dim];
        let mut sum = 0.0;
        for (key, score) in scores.iter().enumerate().filter(|(_, s)| **s > f64::NEG_INFINITY) {
            let weight = (score - max).exp();
            sum += weight;
            let weight = round(weight);
            for (o, &v) in out.iter_mut().zip(&self.v[key * self.head_dim..][..self.head_dim]) {
                *o += weight * f64::from(v);
            }
        }
        out.iter_mut().for_each(|o| *o /= sum);
        (out, max + sum.ln())
    }
}

/// Output `[q_len, head_dim]` and natural-log LSE `[q_len]`. A row without a visible key gives zeros and −∞.
pub fn attention(problem: &Problem<'_>) -> (Vec<f64>, Vec<f64>) {
    let rows: Vec<_> = (0..problem.mask.q_len()).into_par_iter().map(|row| problem.row(row, |w| w)).collect();
    let lse = rows.iter().map(|(_, lse)| *lse).collect();
    (rows.into_iter().flat_map(|(out, _)| out).collect(), lse)
}

/// The same with what half precision costs any implementation: weights and output rounded by `round`.
///
/// Its distance from [`attention`] is the yardstick for single elements.
pub fn plain(problem: &Problem<'_>, round: impl Fn(f64) -> f64 + Sync) -> Vec<f64> {
    (0..problem.mask.q_len())
        .into_par_iter()
        .flat_map_iter(|row| {
            let (mut out, _) = problem.row(row, &round);
            out.iter_mut().for_each(|o| *o = round(*o));
            out
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_scores_average_the_values_seen() {
        let mask = Mask::dense(2, 3, true);
        let (q, k) = ([0.0; 4], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let v = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0];
        let problem = Problem { q: &q, k: &k, v: &v, head_dim: 2, mask: &mask, scale: 1.0, softcap: None, score: None };
        let (out, lse) = attention(&problem);
        assert_eq!(out, [1.5, 15.0, 2.0, 20.0]);
        assert!((lse[0] - 2f64.ln()).abs() < 1e-12 && (lse[1] - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_row_without_keys_is_zero() {
        let mask = Mask::dense(2, 1, true);
        let problem = Problem {
            q: &[1.0, 1.0],
            k: &[1.0],
            v: &[7.0],
            head_dim: 1,
            mask: &mask,
            scale: 1.0,
            softcap: None,
            score: None,
        };
        let (out, lse) = attention(&problem);
        assert_eq!((out[0], lse[0]), (0.0, f64::NEG_INFINITY));
        assert_eq!((out[1], lse[1]), (7.0, 1.0));
    }

    #[test]
    fn score_and_softcap_enter_before_the_softmax() {
        let mask = Mask::dense(1, 2, false);
        let problem = Problem {
            q: &[1.0],
            k: &[4.0, 0.0],
            v: &[1.0, 0.0],
            head_dim: 1,
            mask: &mask,
            scale: 0.5,
            softcap: Some(2.0),
            score: Some(&|s, _, k| s + k as f64),
        };
        let (out, _) = attention(&problem);
        let (a, b) = (2.0 * 1f64.tanh(), 1.0);
        assert!((out[0] - 1.0 / (1.0 + f64::exp(b - a))).abs() < 1e-12);
    }
}
