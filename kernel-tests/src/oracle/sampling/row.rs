//! A row of logits as its definition says: ranked by sorting, summed in double precision.

use ptx::kernels::sampling::{Confidence, RowParameters, RowStatistics, row_flags, sampling_flags};

/// Philox-4x32-10 (Salmon et al., SC 2011).
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c, mut key] = [counter.to_vec(), key.to_vec()];
    for _ in 0..10 {
        let left = 0xD251_1F53u64 * u64::from(c[0]);
        let right = 0xCD9E_8D57u64 * u64::from(c[2]);
        c = vec![(right >> 32) as u32 ^ c[1] ^ key[0], right as u32, (left >> 32) as u32 ^ c[3] ^ key[1], left as u32];
        key = vec![key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    [c[0], c[1], c[2], c[3]]
}

/// The uniform number in [0, 1) of one draw.
pub fn uniform(parameters: &RowParameters, step: u32, position: u32) -> f64 {
    let key = [parameters.seed_low, parameters.seed_high];
    f64::from(philox([position, step, parameters.stream, 0], key)[0]) / 2f64.powi(32)
}

/// What a row of logits stands for.
#[derive(Clone, Debug)]
pub struct Row {
    /// Token ids from best to worst: by logit, equal logits by id.
    pub ranking: Vec<usize>,
    /// ln Σ exp(l).
    pub lse: f64,
    /// ln Σ exp(l / T).
    pub lse_tempered: f64,
    /// Softmax of the logits.
    pub probabilities: Vec<f64>,
    /// The distribution drawn from: tempered, filtered, normalised.
    pub filtered: Vec<f64>,
    /// Ranks kept.
    pub kept: usize,
    /// How far the mass at the top-p boundary is from the limit, as a share of all mass; 1 without top-p.
    pub slack: f64,
}

/// The row of these logits, already free of NaN and infinities above; `None` if none is above −∞.
pub fn row(logits: &[f64], parameters: &RowParameters) -> Option<Row> {
    let mut ranking: Vec<usize> = (0..logits.len()).collect();
    ranking.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let max = logits[*ranking.first()?];
    if max == f64::NEG_INFINITY {
        return None;
    }
    let temperature = if parameters.temperature > 0.0 { f64::from(parameters.temperature) } else { 1.0 };
    let weights = |temperature: f64| -> (Vec<f64>, f64) {
        let weights: Vec<f64> = logits.iter().map(|l| ((l - max) / temperature).exp()).collect();
        let sum = weights.iter().sum();
        (weights, sum)
    };
    let (raw, raw_sum) = weights(1.0);
    let (warm, warm_sum) = weights(temperature);

    let by_count = |kept: usize| if parameters.top_k == 0 { kept } else { kept.min(parameters.top_k as usize) };
    let mut slack = 1f64;
    let mut by_mass = |total: f64, kept: usize| {
        if parameters.top_p >= 1.0 {
            return kept;
        }
        let limit = f64::from(parameters.top_p) * total;
        let mut better = 0.0;
        let mut count = 0;
        for &id in &ranking[..kept] {
            if count > 0 {
                slack = slack.min((better - limit).abs() / total);
            }
            if count > 0 && better > limit {
                break;
            }
            better += warm[id];
            count += 1;
        }
        count
    };
    let all = ranking.len();
    let kept = if parameters.flags & sampling_flags::TOP_K_FIRST != 0 {
        let first = by_count(all);
        by_mass(ranking[..first].iter().map(|&id| warm[id]).sum(), first)
    } else {
        by_count(by_mass(warm_sum, all))
    };
    let kept_sum: f64 = ranking[..kept].iter().map(|&id| warm[id]).sum();
    let mut filtered = vec![0.0; all];
    for &id in &ranking[..kept] {
        filtered[id] = warm[id] / kept_sum;
    }
    Some(Row {
        lse: max + raw_sum.ln(),
        lse_tempered: max / temperature + warm_sum.ln(),
        probabilities: raw.iter().map(|w| w / raw_sum).collect(),
        filtered,
        kept,
        slack,
        ranking,
    })
}

impl Row {
    /// Token drawn at a uniform number: the first whose cumulative probability, in order of ids, exceeds it.
    pub fn draw(&self, uniform: f64) -> usize {
        let mut sum = 0.0;
        for (id, p) in self.filtered.iter().enumerate() {
            sum += p;
            if sum > uniform {
                return id;
            }
        }
        self.ranking[0]
    }

    /// How far a uniform number is from the interval in which `token` is drawn; 0 inside.
    pub fn distance(&self, token: usize, uniform: f64) -> f64 {
        let low: f64 = self.filtered[..token].iter().sum();
        let high = low + self.filtered[token];
        if self.filtered[token] == 0.0 { f64::INFINITY } else { (low - uniform).max(uniform - high).max(0.0) }
    }

    /// The confidence in `token`.
    pub fn confidence(&self, kind: Confidence, parameters: &RowParameters, token: usize) -> f64 {
        let filtered = parameters.flags & sampling_flags::FILTERED_CONFIDENCE != 0;
        let p = if filtered { &self.filtered } else { &self.probabilities };
        match kind {
            Confidence::Probability => p[token],
            Confidence::Margin => p[self.ranking[0]] - self.ranking.get(1).map_or(0.0, |&second| p[second]),
            Confidence::NegativeEntropy => negative_entropy(p),
        }
    }
}

/// Σ p ln p.
pub fn negative_entropy(p: &[f64]) -> f64 {
    p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum()
}

/// The logits as the kernels take them: NaN as −∞, +∞ as the type's largest finite number, −0 as +0.
pub fn cleaned(logit: f64, largest: f64) -> f64 {
    if logit.is_nan() { f64::NEG_INFINITY } else { logit.min(largest) + 0.0 }
}

/// A row that has no token.
pub fn is_flagged(statistics: &RowStatistics) -> bool {
    statistics.flags & (row_flags::NOT_FINITE | row_flags::OUT_OF_RANGE) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's `kat_vectors`.
    #[test]
    fn philox_gives_the_published_numbers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, numbers) in cases {
            assert_eq!(philox(counter, key), numbers);
        }
    }

    fn parameters(top_p: f32, top_k: u32, flags: u32) -> RowParameters {
        RowParameters { temperature: 1.0, top_p, top_k, flags, ..RowParameters::default() }
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        // Probabilities 0.4, 0.3, 0.2, 0.1 in a shuffled order.
        let logits = [0.2f64, 0.4, 0.1, 0.3].map(f64::ln);
        let kept = |top_p, top_k, flags| row(&logits, &parameters(top_p, top_k, flags)).unwrap().kept;
        assert_eq!(
            [kept(0.0, 0, 0), kept(0.39, 0, 0), kept(0.41, 0, 0), kept(0.69, 0, 0), kept(0.71, 0, 0)],
            [1, 1, 2, 2, 3]
        );
        assert_eq!([kept(1.0, 0, 0), kept(1.0, 3, 0), kept(0.41, 1, 0), kept(0.95, 9, 0)], [4, 3, 1, 4]);
        // Of the first two, the better has 4/7 of the mass: 0.5 keeps it alone, though it has only 0.4 of everything.
        assert_eq!([kept(0.5, 2, 0), kept(0.5, 2, sampling_flags::TOP_K_FIRST)], [2, 1]);
        let tied = row(&[1.0, 2.0, 2.0, 2.0], &parameters(1.0, 2, 0)).unwrap();
        assert_eq!(tied.filtered, [0.0, 0.5, 0.5, 0.0]);
        assert!(row(&[f64::NEG_INFINITY; 3], &parameters(1.0, 0, 0)).is_none());
    }
}
