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

/// The least number of entries that hold `share` of the sum of all scores: the `forced` first, then the highest. Scores count as
/// integers, in units of a 2^31st of their sum, rounded down; those below 0 and NaN not at all.
pub fn rank_of_share(scores: &[f32], forced: u32, share: f32) -> u32 {
    #[allow(clippy::manual_clamp, reason = "NaN counts as 0")]
    let units = |score: f32| score.max(0.0).min(65_536.0) * 16_777_216.0;
    let all: u64 = scores.iter().map(|&score| units(score) as u64).sum();
    let factor = if all == 0 { 0.0 } else { 2_147_483_648.0 / all as f32 };
    let mass = |entry: u32| u64::from((units(scores[entry as usize]) * factor) as u32);
    let whole: u64 = (0..scores.len() as u32).map(mass).sum();
    let wanted = u64::from((whole as f32 * share).ceil() as u32).min(whole);
    let forced = forced.min(scores.len() as u32);
    let mut held: u64 = (0..forced).map(mass).sum();
    let mut free: Vec<u32> = (forced..scores.len() as u32).collect();
    free.sort_by(|&a, &b| rank(scores[b as usize], scores[a as usize]).then(a.cmp(&b)));
    let mut count = forced;
    for entry in free {
        if held >= wanted {
            break;
        }
        held += mass(entry);
        count += 1;
    }
    count
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
        Some(share) => rank_of_share(scores, budget.forced, share).max(budget.minimum).min(most),
        None => most,
    };
    top(scores, forced, size as usize)
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
    /// Blocks of a row block.
    pub budget: u32,
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

/// The key blocks of every row block of one head of one sequence.
pub fn block_sparse(q: &[f32], k: &[f32], head_dim: usize, options: Pooled) -> Vec<Vec<u32>> {
    let (q_len, kv_len) = (q.len() / head_dim, k.len() / head_dim);
    let keys: Vec<Vec<f32>> = k.chunks(options.block.1 * head_dim).map(|rows| mean(rows, head_dim)).collect();
    let row_blocks = q.chunks(options.block.0 * head_dim).enumerate();
    row_blocks
        .map(|(i, rows)| {
            let query = mean(rows, head_dim);
            let Seen { visible, diagonal } = Seen::new(i, options.block, q_len, kv_len, options.causal);
            let class = |block| {
                let on_diagonal = options.diagonal && diagonal.contains(&block);
                if on_diagonal { 2 } else { u32::from(options.sink && block == 0) }
            };
            let forced = (0..visible).filter(|block| class(*block) > 0).count();
            let scores: Vec<f32> = keys[..visible].iter().map(|key| product(&query, key)).collect();
            top(&scores, class, forced.max(options.budget as usize))
        })
        .collect()
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
    let weight = |block: usize| (masses[block] * (1u32 << 27) as f32) as u64;
    let total: u64 = (0..visible).map(weight).sum();
    let share = (f64::from(options.threshold) * 2f64.powi(31)).round().max(1.0) as u64;
    let wanted = (total * share).div_ceil(1 << 31);

    let forced = (0..visible).filter(|block| class(*block) > 0);
    let mut kept: u64 = forced.clone().map(weight).sum();
    let mut count = forced.clone().count();
    let limit = count.max(options.limit as usize);
    let mut others: Vec<usize> = (0..visible).filter(|block| class(*block) == 0).collect();
    others.sort_by(|&a, &b| rank(masses[b], masses[a]).then(a.cmp(&b)));
    for block in others {
        if kept >= wanted {
            break;
        }
        kept += weight(block);
        count += 1;
    }
    top(masses, class, count.min(limit))
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
        let options = Pooled { block: (2, 2), causal: false, budget: 1, diagonal: false, sink: false };
        assert_eq!(block_sparse(&q, &k, 64, options), [[1], [1]]);
        let options = Pooled { causal: true, sink: true, diagonal: true, ..options };
        assert_eq!(block_sparse(&q, &k, 64, options), [vec![0], vec![0, 1]]);
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
