//! A row of logits as its definition says: ranked by sorting, summed in double precision.

use ptx::kernels::sampling::{Confidence, MAX_CREDITS, RowParameters, RowStatistics, row_flags, sampling_flags};

const PROBABILITY: u32 = Confidence::Probability.code();
const MARGIN: u32 = Confidence::Margin.code();

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

/// The uniform numbers in [0, 1) of one draw: the first among all kept tokens, or among segments, and the second in a segment.
pub fn uniforms(parameters: &RowParameters, step: u32, position: u32) -> [f64; 2] {
    let key = [parameters.seed_low, parameters.seed_high];
    let [first, second, ..] = philox([position, step, parameters.stream, 0], key);
    [first, second].map(|word| f64::from(word) / 2f64.powi(32))
}

/// What a row of logits stands for.
#[derive(Clone, Debug)]
pub struct Row {
    /// The logits as they count, with −∞ for tokens past the request's limit.
    pub logits: Vec<f64>,
    /// The tokens whose logits were changed, in the order in which a draw goes through them.
    pub changed: Vec<usize>,
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
    /// Whether the request filters at all.
    pub filters: bool,
    /// How far the mass at the top-p boundary is from the limit, as a share of all mass, or a weight from min-p's, relative to
    /// that; 1 without either.
    pub slack: f64,
}

/// Tokens with their logits, changed by biases and by credits of this weight; those with a bias first, then the others, by id.
/// Sums are those of single precision, logarithms are not.
pub fn changed(logits: &[f64], biases: &[(u32, f32)], credits: &[(u32, f32)], weight: f32) -> Vec<(usize, f64)> {
    let number = |list: &[(u32, f32)], id: u32| list.iter().find(|entry| entry.0 == id).map(|entry| entry.1);
    let mut ids: Vec<u32> = biases.iter().map(|entry| entry.0).collect();
    let alone = credits.iter().map(|entry| entry.0).filter(|&id| number(biases, id).is_none());
    ids.sort();
    let biased = ids.len();
    ids.extend(alone);
    ids[biased..].sort();
    let change = |id: u32| {
        let biased = logits[id as usize] as f32 + number(biases, id).unwrap_or(0.0);
        let credit = f64::from(number(credits, id).unwrap_or(0.0));
        let fused = if credits.is_empty() { biased } else { biased + weight * credit.ln_1p() as f32 };
        (id as usize, cleaned(fused.into(), f32::MAX.into()))
    };
    ids.into_iter().map(change).collect()
}

/// The credits of a position after a step whose best token, before credits, is `argmax`, of this probability.
pub fn credited(before: &[(u32, f32)], parameters: &RowParameters, argmax: u32, probability: f64) -> Vec<(u32, f32)> {
    let mut credits: Vec<(u32, f32)> = before.iter().map(|&(id, c)| (id, c * parameters.credit_decay)).collect();
    if credits.iter().all(|&(id, _)| id != argmax) {
        if credits.len() == MAX_CREDITS as usize {
            let least = (0..credits.len()).min_by(|&a, &b| {
                let [a, b] = [credits[a], credits[b]];
                a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))
            });
            credits.remove(least.unwrap_or(0));
        }
        credits.push((argmax, 0.0));
        credits.sort_by_key(|&(id, _)| id);
    }
    for (_, credit) in credits.iter_mut().filter(|(id, _)| *id == argmax) {
        *credit += probability.powf(parameters.credit_exponent.into()) as f32;
    }
    credits
}

/// The row of these logits, already free of NaN and infinities above; `None` if none is above −∞.
pub fn row(logits: &[f64], parameters: &RowParameters) -> Option<Row> {
    row_with(logits, &[], parameters)
}

/// As [`row`], with the changed logits of some tokens.
pub fn row_with(logits: &[f64], changed: &[(usize, f64)], parameters: &RowParameters) -> Option<Row> {
    let mut logits = logits.to_vec();
    for &(id, logit) in changed {
        logits[id] = logit;
    }
    if parameters.vocab_limit > 0 {
        for logit in logits.iter_mut().skip(parameters.vocab_limit as usize) {
            *logit = f64::NEG_INFINITY;
        }
    }
    let changed = changed.iter().map(|entry| entry.0).collect();
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

    let counts = parameters.top_k > 0 && (parameters.top_k as usize) < logits.len();
    let by_count = |kept: usize| if counts { kept.min(parameters.top_k as usize) } else { kept };
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
    let mut kept = if parameters.flags & sampling_flags::TOP_K_FIRST != 0 {
        let first = by_count(all);
        by_mass(ranking[..first].iter().map(|&id| warm[id]).sum(), first)
    } else {
        by_count(by_mass(warm_sum, all))
    };
    let least = f64::from(parameters.min_p);
    if least > 0.0 {
        slack = warm.iter().map(|weight| (weight / least - 1.0).abs()).fold(slack, f64::min);
        kept = kept.min(ranking.iter().take_while(|&&id| warm[id] >= least).count());
    }
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
        filters: counts || parameters.top_p < 1.0 || least > 0.0,
        slack,
        ranking,
        logits,
        changed,
    })
}

/// What a uniform number draws from some weights: the first whose cumulative share exceeds it.
fn invert(weights: impl Iterator<Item = f64> + Clone, uniform: f64) -> Option<usize> {
    let target = uniform * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    weights.into_iter().position(|weight| {
        sum += weight;
        sum > target
    })
}

/// How far a uniform number is from the interval that draws `choice` from some weights; 0 inside.
fn distance(weights: &[f64], choice: usize, uniform: f64) -> f64 {
    let total: f64 = weights.iter().sum();
    let low = weights[..choice].iter().sum::<f64>() / total;
    let high = low + weights[choice] / total;
    if weights[choice] == 0.0 { f64::INFINITY } else { (low - uniform).max(uniform - high).max(0.0) }
}

impl Row {
    /// The tokens of each segment of so many, and of the changed ones.
    fn segments(&self, segment: usize) -> Vec<Vec<usize>> {
        let mut segments = vec![Vec::new(); self.logits.len().div_ceil(segment)];
        let mut changed = vec![false; self.logits.len()];
        self.changed.iter().for_each(|&id| changed[id] = true);
        for id in (0..changed.len()).filter(|&id| !changed[id]) {
            segments[id / segment].push(id);
        }
        segments.push(self.changed.clone());
        segments
    }

    fn masses(&self, tokens: &[usize]) -> Vec<f64> {
        tokens.iter().map(|&id| self.filtered[id]).collect()
    }

    /// Token drawn at two uniform numbers, by a kernel that reads `segment` tokens a warp.
    pub fn draw(&self, [first, second]: [f64; 2], segment: usize) -> usize {
        let drawn = if self.filters {
            invert(self.filtered.iter().copied(), first)
        } else {
            let segments = self.segments(segment);
            let masses: Vec<f64> = segments.iter().map(|tokens| self.masses(tokens).iter().sum()).collect();
            invert(masses.into_iter(), first).and_then(|place| {
                let masses = self.masses(&segments[place]);
                Some(segments[place][invert(masses.into_iter(), second)?])
            })
        };
        drawn.unwrap_or(self.ranking[0])
    }

    /// How far the uniform numbers are from the intervals in which `token` is drawn; 0 inside.
    pub fn distance(&self, token: usize, [first, second]: [f64; 2], segment: usize) -> f64 {
        if self.filters {
            return distance(&self.filtered, token, first);
        }
        let segments = self.segments(segment);
        let masses: Vec<f64> = segments.iter().map(|tokens| self.masses(tokens).iter().sum()).collect();
        let place =
            segments.iter().enumerate().find_map(|(i, tokens)| Some((i, tokens.iter().position(|&id| id == token)?)));
        let Some((own, within)) = place else { return f64::INFINITY };
        distance(&masses, own, first).max(distance(&self.masses(&segments[own]), within, second))
    }

    /// The confidence in `token`.
    pub fn confidence(&self, parameters: &RowParameters, token: usize) -> f64 {
        let filtered = parameters.flags & sampling_flags::FILTERED_CONFIDENCE != 0;
        let p = if filtered { &self.filtered } else { &self.probabilities };
        match parameters.confidence {
            PROBABILITY => p[token],
            MARGIN => p[self.ranking[0]] - self.ranking.get(1).map_or(0.0, |&second| p[second]),
            _ => negative_entropy(p),
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
        let likely = |min_p| row(&logits, &RowParameters { min_p, ..parameters(1.0, 0, 0) }).unwrap().kept;
        assert_eq!([likely(0.0), likely(0.3), likely(0.6), likely(1.0)], [4, 3, 2, 1]);
        let hidden = RowParameters { vocab_limit: 3, ..parameters(1.0, 0, 0) };
        assert_eq!(row_with(&logits, &[(1, f64::NEG_INFINITY)], &hidden).unwrap().ranking, [0, 2, 1, 3]);
        assert!(row(&[f64::NEG_INFINITY; 3], &parameters(1.0, 0, 0)).is_none());
    }

    #[test]
    fn logits_change_in_single_precision() {
        let logits = [1.0, 2.0, f64::NEG_INFINITY, 3.0e38];
        let biases = [(0, 1e-8f32), (2, 5.0), (3, 3.0e38)];
        let alone = changed(&logits, &biases, &[], 0.0);
        assert_eq!(alone, [(0, 1.0), (2, f64::NEG_INFINITY), (3, f32::MAX.into())]);
        let fused = changed(&logits, &biases[..1], &[(0, 1.0), (1, 0.0)], 2.0);
        assert_eq!(fused, [(0, f64::from(1.0 + 2.0 * std::f32::consts::LN_2)), (1, 2.0)]);
    }

    #[test]
    fn credits_shrink_and_the_least_makes_room() {
        let parameters = RowParameters { credit_decay: 0.5, credit_exponent: 2.0, ..RowParameters::default() };
        let credits = credited(&[(3, 1.0), (8, 0.25)], &parameters, 8, 0.5);
        assert_eq!(credits, [(3, 0.5), (8, 0.375)]);
        assert_eq!(credited(&credits, &parameters, 5, 1.0), [(3, 0.25), (5, 1.0), (8, 0.1875)]);
        let full: Vec<(u32, f32)> = (0..32).map(|id| (id, if id == 3 || id == 7 { 0.5 } else { 1.0 })).collect();
        let next = credited(&full, &parameters, 40, 1.0);
        assert!(next.len() == 32 && next.iter().all(|entry| entry.0 != 7) && next[31] == (40, 1.0));
    }

    #[test]
    fn draws_invert_the_distribution_in_two_steps() {
        let logits = [0.1f64, 0.2, 0.3, 0.4].map(f64::ln);
        let plain = row(&logits, &parameters(1.0, 0, 0)).unwrap();
        // Segments of two have 0.3 and 0.7; the second token of the first has two thirds of it.
        assert_eq!([plain.draw([0.29, 0.3], 2), plain.draw([0.29, 0.4], 2), plain.draw([0.31, 0.4], 2)], [0, 1, 2]);
        assert!(plain.distance(1, [0.29, 0.4], 2) == 0.0 && (plain.distance(0, [0.29, 0.4], 2) - 0.0667).abs() < 1e-3);
        // The changed tokens, 3 before 0, are a segment behind the others: of the masses 0.5, 0.3 and 0.2.
        let changed = row_with(&logits, &[(3, 0.2f64.ln()), (0, 0.3f64.ln())], &parameters(1.0, 0, 0)).unwrap();
        let draws = [[0.19, 0.5], [0.21, 0.5], [0.51, 0.39], [0.51, 0.41]].map(|uniforms| changed.draw(uniforms, 2));
        assert_eq!(draws, [1, 2, 3, 0]);
        assert!(changed.distance(3, [0.51, 0.39], 2) == 0.0 && changed.distance(0, [0.4, 0.5], 2) > 0.09);
        let filtered = row(&logits, &parameters(1.0, 2, 0)).unwrap();
        assert_eq!([filtered.draw([0.42, 0.9], 2), filtered.draw([0.44, 0.0], 2)], [2, 3]);
    }
}
