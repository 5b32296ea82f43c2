//! The token mask that each pattern's index stands for: one slow, obvious function a pattern.

/// Which (query row, key) pairs of one head count. Query row `i` stands at position `kv_len − q_len + i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    q_len: usize,
    kv_len: usize,
    keep: Vec<bool>,
}

/// The vertical-slash index of one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerticalSlash {
    /// Selected block diagonals: `diagonals[d]` means that row block r visits key block r − d.
    pub diagonals: Vec<bool>,
    /// Selected key columns, ascending.
    pub columns: Vec<u32>,
}

/// The block-sparse index of one head: for each row block, its partial and its full key blocks, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSparse {
    /// Blocks in which the mask expression applies.
    pub partial: Vec<Vec<u32>>,
    /// Blocks in which it does not.
    pub full: Vec<Vec<u32>>,
}

impl Mask {
    /// The pairs for which `keep(query position, key)` holds. Positions are negative where `q_len > kv_len`.
    pub fn from_positions(q_len: usize, kv_len: usize, keep: impl Fn(i64, i64) -> bool) -> Mask {
        let mut pairs = Vec::with_capacity(q_len * kv_len);
        for row in 0..q_len as i64 {
            let query = kv_len as i64 - q_len as i64 + row;
            pairs.extend((0..kv_len as i64).map(|key| keep(query, key)));
        }
        Mask { q_len, kv_len, keep: pairs }
    }

    /// All pairs; causal: keys up to the query's own position.
    pub fn dense(q_len: usize, kv_len: usize, causal: bool) -> Mask {
        Mask::from_positions(q_len, kv_len, |q, k| !causal || k <= q)
    }

    /// A-shape: the first `sink` keys and the `local` nearest, causal (MInference §1.1).
    pub fn a_shape(q_len: usize, kv_len: usize, sink: u32, local: u32) -> Mask {
        Mask::tri_shape(q_len, kv_len, sink, local, 0)
    }

    /// Tri-shape: an A-shape whose `last` rows are dense, causal (MInference §1.2).
    pub fn tri_shape(q_len: usize, kv_len: usize, sink: u32, local: u32, last: u32) -> Mask {
        Mask::from_positions(q_len, kv_len, |q, k| {
            k <= q && (q - k < i64::from(local) || k < i64::from(sink) || q >= kv_len as i64 - i64::from(last))
        })
    }

    /// Vertical-slash with tiles of `rows × keys`: the selected columns, and every key block that the tile's row block
    /// visits, causal. Row and key blocks are aligned on absolute positions.
    pub fn vertical_slash(q_len: usize, kv_len: usize, block: (usize, usize), index: &VerticalSlash) -> Mask {
        let (rows, keys) = (block.0 as i64, block.1 as i64);
        let mut columns = vec![false; kv_len];
        for &column in index.columns.iter().filter(|c| (**c as usize) < kv_len) {
            columns[column as usize] = true;
        }
        let diagonal = |d: i64| d >= 0 && index.diagonals.get(d as usize).copied().unwrap_or(false);
        Mask::from_positions(q_len, kv_len, |q, k| {
            let row_block = q.div_euclid(rows);
            let visited = (0..rows / keys).any(|i| diagonal(row_block * (rows / keys) + i - k / keys));
            k <= q && (columns[k as usize] || visited)
        })
    }

    /// Block-sparse with tiles of `rows × keys`, row blocks counted from the first query row. `partial` further restricts
    /// the partial blocks, on (query position, key).
    pub fn block_sparse(
        q_len: usize,
        kv_len: usize,
        block: (usize, usize),
        causal: bool,
        index: &BlockSparse,
        partial: impl Fn(i64, i64) -> bool,
    ) -> Mask {
        let first = kv_len as i64 - q_len as i64;
        let contains = |lists: &[Vec<u32>], row_block: usize, key_block: usize| {
            lists.get(row_block).is_some_and(|list| list.contains(&(key_block as u32)))
        };
        Mask::from_positions(q_len, kv_len, |q, k| {
            let (row_block, key_block) = ((q - first) as usize / block.0, k as usize / block.1);
            let kept = contains(&index.full, row_block, key_block)
                || contains(&index.partial, row_block, key_block) && partial(q, k);
            kept && (!causal || k <= q)
        })
    }

    /// The pairs of this mask for which `keep(query position, key)` holds too.
    pub fn and(&self, keep: impl Fn(i64, i64) -> bool) -> Mask {
        let other = Mask::from_positions(self.q_len, self.kv_len, keep);
        let keep = self.keep.iter().zip(&other.keep).map(|(a, b)| *a && *b).collect();
        Mask { keep, ..*self }
    }

    /// Query rows.
    pub fn q_len(&self) -> usize {
        self.q_len
    }

    /// Keys.
    pub fn kv_len(&self) -> usize {
        self.kv_len
    }

    /// Whether row `row` sees key `key`.
    pub fn keeps(&self, row: usize, key: usize) -> bool {
        self.keep[row * self.kv_len + key]
    }

    /// Absolute position of a row that sees some key.
    pub(super) fn position(&self, row: usize) -> usize {
        (self.kv_len + row).saturating_sub(self.q_len)
    }

    /// Share of the causal pairs that is kept.
    pub fn density(&self) -> f64 {
        let kept = self.keep.iter().filter(|k| **k).count();
        let causal = Mask::dense(self.q_len, self.kv_len, true).keep.iter().filter(|k| **k).count();
        kept as f64 / causal.max(1) as f64
    }
}

/// The block diagonals that slash offset `delta` touches when rows and keys are cut in blocks of `keys`: every pair
/// (q, q − delta) lies in one of them.
pub fn diagonals_of_slash(delta: u32, keys: u32) -> impl Iterator<Item = u32> {
    let first = delta / keys;
    first..=if delta.is_multiple_of(keys) { first } else { first + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(mask: &Mask) -> Vec<String> {
        let row = |r| (0..mask.kv_len).map(|k| if mask.keeps(r, k) { '#' } else { '.' }).collect();
        (0..mask.q_len).map(row).collect()
    }

    #[test]
    fn a_shape_has_a_sink_and_a_window() {
        let mask = Mask::a_shape(5, 5, 1, 2);
        assert_eq!(picture(&mask), ["#....", "##...", "###..", "#.##.", "#..##"]);
    }

    #[test]
    fn tri_shape_ends_densely() {
        let mask = Mask::tri_shape(5, 5, 1, 1, 2);
        assert_eq!(picture(&mask), ["#....", "##...", "#.#..", "####.", "#####"]);
    }

    #[test]
    fn queries_end_at_the_last_key() {
        assert_eq!(picture(&Mask::dense(2, 4, true)), ["###.", "####"]);
        assert_eq!(picture(&Mask::dense(3, 2, true)), ["..", "#.", "##"]);
    }

    #[test]
    fn vertical_slash_visits_block_diagonals_and_columns() {
        let index = VerticalSlash { diagonals: vec![true, false, true], columns: vec![1] };
        let mask = Mask::vertical_slash(6, 6, (2, 2), &index);
        assert_eq!(picture(&mask), ["#.....", "##....", ".##...", ".###..", "##..#.", "##..##"]);
        // Twice the rows: a row block visits what either half would.
        let mask = Mask::vertical_slash(8, 8, (4, 2), &VerticalSlash { diagonals: vec![true], columns: vec![] });
        assert_eq!(picture(&mask)[6], "....###.");
    }

    #[test]
    fn every_pair_of_a_slash_is_in_its_block_diagonals() {
        for keys in [2, 3, 64] {
            for delta in 0..200u32 {
                let diagonals: Vec<_> = diagonals_of_slash(delta, keys).collect();
                let mut used: Vec<u32> = (delta..delta + 400).map(|q| q / keys - (q - delta) / keys).collect();
                used.sort_unstable();
                used.dedup();
                assert_eq!(used, diagonals, "delta {delta}, block {keys}");
            }
        }
    }

    #[test]
    fn block_sparse_restricts_only_its_partial_blocks() {
        let index = BlockSparse { partial: vec![vec![], vec![0]], full: vec![vec![0], vec![1]] };
        let mask = Mask::block_sparse(4, 4, (2, 2), false, &index, |_, k| k == 1);
        assert_eq!(picture(&mask), ["##..", "##..", ".###", ".###"]);
    }
}
