//! Sparse indices: what is selected, in plain Rust.
//!
//! Selections are exact: given the scores that the device computed, the device's index must be this one bit for bit. The
//! pooled scores are reproduced bit for bit too, since they are sums in a documented order.

use super::mask::{VerticalSlash, offsets_of_slashes};
use std::{cmp::Ordering, ops::Range};

/// Queries of the vertical-slash estimate.
const WINDOW: usize = 64;

/// What the last queries of one head of one sequence see, in double precision: rows of `head_dim` elements.
///
/// Returns the sums of their softmax over each key column and over each slash (offset of query and key position).
pub fn estimate(q: &[f32], k: &[f32], head_dim: usize, scale: f64) -> (Vec<f64>, Vec<f64>) {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let rows = WINDOW.min(q_len).min(kv_len);
    let (mut vertical, mut slash) = (vec![0.0; kv_len], vec![0.0; kv_len]);
    for row in 0..rows {
        let query = &q[(q_len - rows + row) * head_dim..][..head_dim];
        let position = kv_len - rows + row;
        let score = |key: usize| -> f64 {
            let key = &k[key * head_dim..][..head_dim];
            query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * scale
        };
        let scores: Vec<f64> = (0..=position).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for (key, s) in scores.iter().enumerate() {
            let weight = (s - max).exp() / sum;
            vertical[key] += weight;
            slash[position - key] += weight;
        }
    }
    (vertical, slash)
}

/// How many entries are selected: `size`, but at least `minimum`, of which the first `forced` come before any other.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The head's budget.
    pub size: u32,
    /// Least size for every head.
    pub minimum: u32,
    /// Entries that are selected whatever their scores; they count toward the size.
    pub forced: u32,
    /// The share of the scores' sum that is enough.
    pub share: Option<f32>,
}

/// The order of scores: −0 below +0, every NaN below all others.
fn rank(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (a_nan, b_nan) if a_nan != b_nan => b_nan.cmp(&a_nan),
        _ => a.total_cmp(&b),
    }
}

/// The `count` highest of `scores`, ascending by index. Entries of a higher `class` come before, whatever their scores;
/// ties go to the lowest index.
fn top(scores: &[f32], class: impl Fn(usize) -> u32, count: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by_score = |a: usize, b: usize| if class(a) == 0 { rank(scores[b], scores[a]) } else { Ordering::Equal };
    order.sort_by(|&a, &b| class(b).cmp(&class(a)).then(by_score(a, b)).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|i| i as u32).collect()
}

/// Scores as integers, in units of a 2^31st of their sum, rounded down; those below 0 and NaN count nothing.
fn masses(scores: &[f32]) -> Vec<u64> {
    #[allow(clippy::manual_clamp, reason = "NaN counts as 0")]
    let units = |score: f32| score.max(0.0).min(65_536.0) * 16_777_216.0;
    let all: u64 = scores.iter().map(|&score| units(score) as u64).sum();
    let factor = if all == 0 { 0.0 } else { 2_147_483_648.0 / all as f32 };
    scores.iter().map(|&score| u64::from((units(score) * factor) as u32)).collect()
}

/// The least number of entries that hold `share` of the mass of all: those of a class above 0, then the highest scores.
fn enough(scores: &[f32], masses: &[u64], class: impl Fn(usize) -> u32, share: f32) -> usize {
    let share = (f64::from(share) * 2f64.powi(31)).round().max(1.0) as u64;
    let wanted = (masses.iter().sum::<u64>() * share).div_ceil(1 << 31);
    let (forced, mut free): (Vec<usize>, Vec<usize>) = (0..scores.len()).partition(|&entry| class(entry) > 0);
    let mut held: u64 = forced.iter().map(|&entry| masses[entry]).sum();
    free.sort_by(|&a, &b| rank(scores[b], scores[a]).then(a.cmp(&b)));
    let more = free.iter().take_while(|&&entry| {
        let takes = held < wanted;
        held += masses[entry];
        takes
    });
    forced.len() + more.count()
}

/// Blocks and columns that all groups of `block` rows may visit, each counted once for every group from its own on.
pub fn visited(index: &VerticalSlash, keys: u32, block: u32) -> [u64; 2] {
    let groups = u64::from(keys.div_ceil(block));
    let of = |list: &[u32]| list.iter().map(|entry| groups - u64::from(entry / block).min(groups)).sum();
    [of(&index.offsets), of(&index.columns)]
}

/// The entries that a budget selects, ascending.
pub fn select(scores: &[f32], budget: Budget) -> Vec<u32> {
    let forced = |i| u32::from(i < budget.forced as usize);
    let most = budget.size.max(budget.minimum);
    let size = match budget.share {
        Some(share) => {
            let enough = enough(scores, &masses(scores), forced, share);
            enough.clamp(budget.minimum as usize, most as usize)
        }
        None => most as usize,
    };
    top(scores, forced, size)
}

/// The vertical-slash index of one head: column and slash scores by key and by offset. One slash at least, the diagonal.
pub fn vertical_slash(vertical: &[f32], slash: &[f32], columns: Budget, slashes: Budget, block: u32) -> VerticalSlash {
    let slashes = Budget { minimum: slashes.minimum.max(1), forced: slashes.forced.max(1), ..slashes };
    VerticalSlash { offsets: offsets_of_slashes(&select(slash, slashes), block), columns: select(vertical, columns) }
}

/// Mean of some rows: 32 lanes, one for every eight elements, sum interleaved groups of rows; then the groups are added.
pub fn mean(rows: &[f32], head_dim: usize) -> Vec<f32> {
    let groups = 32 / (head_dim / 8);
    let count = rows.len() / head_dim;
    (0..head_dim)
        .map(|element| {
            let group_sum = |group| {
                let values = (group..count).step_by(groups).map(|row| rows[row * head_dim + element]);
                values.fold(0.0f32, |sum, value| sum + value)
            };
            let first = group_sum(0);
            (1..groups).fold(first, |sum, group| sum + group_sum(group)) / count as f32
        })
        .collect()
}

/// The product of two means: one chain of fused multiply-adds.
fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
}

/// How pooled block-sparse selection is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Pooled {
    /// Query rows and keys of a block.
    pub block: (usize, usize),
    /// No key block past a row block's last position.
    pub causal: bool,
    /// Factor of the products.
    pub scale: f32,
    /// Blocks of a row block, at most.
    pub budget: u32,
    /// The share of the softmax that is enough.
    pub share: Option<f32>,
    /// The key blocks that hold a row block's positions come first.
    pub diagonal: bool,
    /// Block 0 comes next.
    pub sink: bool,
}

/// What a row block has of key blocks: how many it sees, from block 0, and those that hold its own positions.
struct Seen {
    visible: usize,
    diagonal: Range<usize>,
}

impl Seen {
    /// Of row block `i`, whose queries end at the last key.
    fn new(i: usize, block: (usize, usize), q_len: usize, kv_len: usize, causal: bool) -> Seen {
        let offset = kv_len as i64 - q_len as i64;
        let first = offset + (i * block.0) as i64;
        let end = offset + ((i + 1) * block.0).min(q_len) as i64;
        let block_of = |position: i64| position.max(0) as usize / block.1;
        let diagonal = if end > 0 { block_of(first)..block_of(end - 1) + 1 } else { 0..0 };
        Seen { visible: if causal { diagonal.end } else { kv_len.div_ceil(block.1) }, diagonal }
    }
}

/// What the row blocks of one head of one sequence make of the key blocks that each sees: their scores, in base 2.
fn pooled_scores(q: &[f32], k: &[f32], head_dim: usize, options: Pooled) -> Vec<Vec<f32>> {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let keys: Vec<Vec<f32>> = k.chunks(options.block.1 * head_dim).map(|rows| mean(rows, head_dim)).collect();
    let scale = options.scale * std::f32::consts::LOG2_E;
    let row_block = |(i, rows)| {
        let query = mean(rows, head_dim);
        let visible = Seen::new(i, options.block, q_len, kv_len, options.causal).visible;
        keys[..visible].iter().map(|key| product(&query, key) * scale).collect()
    };
    q.chunks(options.block.0 * head_dim).enumerate().map(row_block).collect()
}

/// The key blocks of row block `i` of `q_len` queries, given a rank of those that it sees: their scores, or with a share their
/// weights.
pub fn pooled_blocks(ranked: &[f32], i: usize, q_len: usize, kv_len: usize, options: Pooled) -> Vec<u32> {
    let Seen { visible, diagonal } = Seen::new(i, options.block, q_len, kv_len, options.causal);
    let ranked = &ranked[..visible];
    let class = |block| {
        let on_diagonal = options.diagonal && diagonal.contains(&block);
        if on_diagonal { 2 } else { u32::from(options.sink && block == 0) }
    };
    let forced = (0..visible).filter(|block| class(*block) > 0).count();
    let most = forced.max(options.budget as usize);
    let enough = options.share.map_or(most, |share| enough(ranked, &masses(ranked), class, share));
    top(ranked, class, enough.min(most))
}

/// The key blocks of every row block of one head of one sequence, as many as the budget says.
pub fn block_sparse(q: &[f32], k: &[f32], head_dim: usize, options: Pooled) -> Vec<Vec<u32>> {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let scores = pooled_scores(q, k, head_dim, options).into_iter().enumerate();
    scores.map(|(i, scores)| pooled_blocks(&scores, i, q_len, kv_len, options)).collect()
}

/// The weights of the key blocks that each row block sees, relative to the highest, in double precision.
pub fn pooled_weights(q: &[f32], k: &[f32], head_dim: usize, options: Pooled) -> Vec<Vec<f64>> {
    let weights = |scores: Vec<f32>| {
        let highest = scores.iter().copied().fold(f32::NAN, f32::max);
        scores.into_iter().map(|score| f64::from(score - highest).exp2()).collect()
    };
    pooled_scores(q, k, head_dim, options).into_iter().map(weights).collect()
}

/// How far what the last queries of one head of one sequence look at, by key block, is from what their mean makes of the means
/// of the keys: the square root of the Jensen-Shannon divergence, in nats.
pub fn divergence(q: &[f32], k: &[f32], head_dim: usize, scale: f64, block: usize) -> f64 {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let rows = WINDOW.min(q_len).min(kv_len);
    if rows == 0 {
        return 0.0;
    }
    let (columns, _) = estimate(q, k, head_dim, scale);
    let truth: Vec<f64> = columns.chunks(block).map(|columns| columns.iter().sum::<f64>() / rows as f64).collect();
    let query = mean(&q[(q_len - rows) * head_dim..], head_dim);
    let score = |keys: &[f32]| {
        let key = mean(keys, head_dim);
        query.iter().zip(key).map(|(&a, b)| f64::from(a) * f64::from(b)).sum::<f64>() * scale
    };
    let scores: Vec<f64> = k.chunks(block * head_dim).map(score).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
    let pairs = truth.into_iter().zip(scores.into_iter().map(|score| (score - highest).exp() / sum));
    let relative = |share: f64, middle: f64| if share == 0.0 { 0.0 } else { share * (share / middle).ln() };
    let parts = pairs.map(|(p, e)| relative(p, (p + e) / 2.0) + relative(e, (p + e) / 2.0));
    (parts.sum::<f64>() / 2.0).max(0.0).sqrt()
}

/// How antidiagonal selection is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Antidiagonal {
    /// Rows of a cell.
    pub stride: usize,
    /// Query rows and keys of a block.
    pub block: (usize, usize),
    /// Share of the mass of a row block.
    pub threshold: f32,
    /// Most blocks of a row block, unless more are forced.
    pub limit: u32,
}

/// The masses of the key blocks that each row block sees, in double precision: rows of `head_dim` elements.
pub fn antidiagonal_masses(
    q: &[f32],
    k: &[f32],
    head_dim: usize,
    scale: f64,
    Antidiagonal { stride, block, .. }: Antidiagonal,
) -> Vec<Vec<f64>> {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let element = |side: &[f32], row: usize, d| side.get(row * head_dim + d).map_or(0.0, |&value| f64::from(value));
    let score = |i: usize, j: usize| -> f64 {
        let pairs = (0..stride).flat_map(|s| (0..head_dim).map(move |d| (s, d)));
        let products = pairs.map(|(s, d)| element(q, i * stride + stride - 1 - s, d) * element(k, j * stride + s, d));
        products.sum::<f64>() * scale / stride as f64
    };
    let row_block = |i: usize| {
        let mut masses = vec![0.0; Seen::new(i, block, q_len, kv_len, true).visible];
        let end = ((i + 1) * block.0).min(q_len);
        for cell in i * block.0 / stride..end.div_ceil(stride) {
            let last_row = ((cell + 1) * stride).min(q_len) - 1;
            let Some(last_position) = (kv_len + last_row).checked_sub(q_len) else { continue };
            let scores: Vec<f64> = (0..=last_position / stride).map(|j| score(cell, j)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if max == f64::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
                continue;
            }
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for (j, score) in scores.iter().enumerate() {
                masses[j * stride / block.1] += (score - max).exp() / sum;
            }
        }
        masses
    };
    (0..q_len.div_ceil(block.0)).map(row_block).collect()
}

/// The key blocks of row block `i` of `q_len` queries, given the masses of those it sees.
pub fn antidiagonal(masses: &[f32], i: usize, q_len: usize, kv_len: usize, options: Antidiagonal) -> Vec<u32> {
    let Seen { visible, diagonal } = Seen::new(i, options.block, q_len, kv_len, true);
    let masses = &masses[..visible];
    let class = |block: usize| if diagonal.contains(&block) { 2 } else { u32::from(block == 0) };
    // Units of 2^-27, rounded down: a sum of them has no order. NaN counts nothing.
    let weights: Vec<u64> = masses.iter().map(|mass| (mass * (1u32 << 27) as f32) as u64).collect();
    let forced = (0..visible).filter(|block| class(*block) > 0).count();
    let enough = enough(masses, &weights, class, options.threshold);
    top(masses, class, enough.min(forced.max(options.limit as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_of_the_window_spreads_one() {
        let q: Vec<f32> = (0..100 * 4).map(|i| (i as f32).sin()).collect();
        let k: Vec<f32> = (0..150 * 4).map(|i| (i as f32 * 0.7).cos()).collect();
        let (vertical, slash) = estimate(&q, &k, 4, 0.5);
        assert!((vertical.iter().sum::<f64>() - 64.0).abs() < 1e-9);
        assert!((slash.iter().sum::<f64>() - 64.0).abs() < 1e-9);
        // The last key is seen by the last query alone, at distance 0.
        assert!(vertical[149] < slash[0]);
    }

    #[test]
    fn ties_go_to_the_lowest_and_nan_ranks_last() {
        let scores = [f32::NAN, 1.0, f32::NEG_INFINITY, 1.0, f32::INFINITY, 1.0, -0.0, 0.0];
        let take = |size, forced| select(&scores, Budget { size, minimum: 0, forced, share: None });
        assert_eq!(take(3, 0), [1, 3, 4]);
        assert_eq!(take(5, 0), [1, 3, 4, 5, 7]);
        assert_eq!(take(7, 0), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(take(2, 1), [0, 4]);
        assert_eq!(take(2, 5), [0, 1]);
        assert_eq!(take(100, 0).len(), 8);
        assert_eq!(select(&scores, Budget { size: 0, minimum: 2, forced: 0, share: None }), [1, 4]);
    }

    #[test]
    fn the_diagonal_is_never_lost() {
        let budget = Budget { size: 0, minimum: 0, forced: 0, share: None };
        let index = vertical_slash(&[1.0; 100], &[1.0; 100], budget, budget, 32);
        assert_eq!(index, VerticalSlash { offsets: vec![0], columns: vec![] });
    }

    #[test]
    fn pooled_selection_prefers_aligned_blocks() {
        // Two blocks of two keys: the second points where the queries do.
        let k = [1.0f32; 64].iter().map(|x| -x).chain([1.0; 64].iter().copied()).collect::<Vec<f32>>();
        let k: Vec<f32> = k.iter().flat_map(|&x| [x; 2]).collect();
        let q = vec![1.0f32; 4 * 64];
        let options =
            Pooled { block: (2, 2), causal: false, scale: 0.1, budget: 1, share: None, diagonal: false, sink: false };
        assert_eq!(block_sparse(&q, &k, 64, options), [[1], [1]]);
        let options = Pooled { causal: true, sink: true, diagonal: true, ..options };
        assert_eq!(block_sparse(&q, &k, 64, options), [vec![0], vec![0, 1]]);
    }

    #[test]
    fn pooled_blocks_hold_their_share_and_no_more() {
        let options =
            Pooled { block: (64, 64), causal: true, scale: 1.0, budget: 100, share: None, diagonal: true, sink: true };
        // Of 8, block 0 and the diagonal hold 2.
        let of = |share, budget| {
            let weights = [1.0, 0.5, 2.0, 1.5, 2.0, 1.0];
            pooled_blocks(&weights, 5, 384, 384, Pooled { share: Some(share), budget, ..options })
        };
        assert_eq!(of(0.25, 100), [0, 5]);
        assert_eq!(of(0.5, 100), [0, 2, 5]);
        assert_eq!(of(0.51, 100), [0, 2, 4, 5]);
        assert_eq!(of(1.0, 100), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(1.0, 3), [0, 2, 5]);
        assert_eq!(of(1.0, 0), [0, 5]);
    }

    /// Two key blocks, and a query that sees them as their means say, or the other way round.
    #[test]
    fn pooling_that_sees_what_queries_look_at_diverges_little() {
        let d = 8;
        let alike: Vec<f32> = [1.0f32, -1.0].iter().flat_map(|&x| vec![x; 4 * d]).collect();
        let q = vec![1.0f32; d];
        assert!(divergence(&q, &alike, d, 0.5, 4) < 1e-6);
        // One key of the second block that outshines all others, though their mean is low.
        let mut hidden = alike.clone();
        hidden[7 * d..].fill(2.5);
        let found = divergence(&q, &hidden, d, 2.0, 4);
        // All attention in one block, the estimate in the other: the root of ln 2, nearly.
        assert!((0.8..0.8326).contains(&found), "{found}");
        assert_eq!(divergence(&[], &alike, d, 2.0, 4), 0.0);
    }

    #[test]
    fn antidiagonals_meet_in_reverse() {
        // One cell of four rows: query row 3 − s meets key s.
        let q = [1.0, 2.0, 4.0, 8.0f32, 0.0, 0.0, 0.0, 0.0];
        let k = [8.0, 4.0, 2.0, 1.0f32, 0.0, 0.0, 0.0, 1.0];
        let options = Antidiagonal { stride: 4, block: (8, 4), threshold: 0.9, limit: 9 };
        let masses = antidiagonal_masses(&q, &k, 1, 0.1, options);
        // The first cell sees itself alone; the second is all zeros, and sees both alike.
        assert_eq!(masses, [[1.5, 0.5]]);
        // Swapped, the second cell of queries meets the first of keys at 8 · 8 + 4 · 4 + 2 · 2 + 1 and the second at 1 · 1.
        let q = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0];
        let ratio = (0.1 * (85.0 - 1.0) / 4.0f64).exp();
        let masses = antidiagonal_masses(&q, &k, 1, 0.1, options);
        assert!((masses[0][0] - 1.0 - ratio / (1.0 + ratio)).abs() < 1e-12, "{masses:?}");
    }

    #[test]
    fn a_share_is_kept_and_no_more() {
        let options = Antidiagonal { stride: 8, block: (64, 64), threshold: 0.5, limit: 100 };
        let of = |masses: &[f32], threshold, limit| {
            let length = masses.len() * 64;
            antidiagonal(masses, masses.len() - 1, length, length, Antidiagonal { threshold, limit, ..options })
        };
        // Of 8, block 0 and the diagonal hold 2.
        let masses = [1.0, 0.5, 2.0, 1.5, 2.0, 1.0];
        assert_eq!(of(&masses, 0.25, 100), [0, 5]);
        assert_eq!(of(&masses, 0.26, 100), [0, 2, 5]);
        assert_eq!(of(&masses, 0.5, 100), [0, 2, 5]);
        assert_eq!(of(&masses, 0.51, 100), [0, 2, 4, 5]);
        assert_eq!(of(&masses, 1.0, 100), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(&masses, 1.0, 4), [0, 2, 4, 5]);
        assert_eq!(of(&masses, 1.0, 0), [0, 5]);
        assert_eq!(of(&[f32::NAN; 6], 1.0, 100), [0, 5]);
    }
}
