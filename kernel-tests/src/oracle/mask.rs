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
    /// Offsets of blocks, ascending, at least a block apart: the group of rows that begins at r visits the keys of one
    /// block from r − D on.
    pub offsets: Vec<u32>,
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

    /// Vertical-slash with blocks of `keys` keys: the selected columns, and the blocks that the query's group of as many rows
    /// visits, causal. Groups are aligned on absolute positions.
    pub fn vertical_slash(q_len: usize, kv_len: usize, keys: usize, index: &VerticalSlash) -> Mask {
        let keys = keys as i64;
        let mut columns = vec![false; kv_len];
        for &column in index.columns.iter().filter(|c| (**c as usize) < kv_len) {
            columns[column as usize] = true;
        }
        Mask::from_positions(q_len, kv_len, |q, k| {
            let group = q.div_euclid(keys) * keys;
            let visited = index.offsets.iter().any(|&offset| (0..keys).contains(&(k - (group - i64::from(offset)))));
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

/// Offsets whose blocks of `keys` keys hold every pair of the ascending `slashes`, none twice: the first slash, and then each
/// time the next one, but at least a block further on.
pub fn offsets_of_slashes(slashes: &[u32], keys: u32) -> Vec<u32> {
    let mut offsets: Vec<u32> = Vec::new();
    let mut rest = slashes;
    while let Some(&next) = rest.first() {
        let offset = offsets.last().map_or(next, |last| next.max(last + keys));
        offsets.push(offset);
        rest = &rest[rest.partition_point(|slash| *slash <= offset)..];
    }
    offsets
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
    fn vertical_slash_visits_blocks_and_columns() {
        let index = VerticalSlash { offsets: vec![0, 3], columns: vec![1] };
        let mask = Mask::vertical_slash(6, 6, 2, &index);
        assert_eq!(picture(&mask), ["#.....", "##....", "###...", "####..", ".##.#.", ".##.##"]);
    }

    #[test]
    fn every_pair_of_a_slash_is_in_a_block_and_in_one_only() {
        for keys in [2, 3, 64] {
            for slashes in [vec![], vec![0], vec![5], vec![0, 1, 2, 70, 71, 200], (0..150).step_by(7).collect()] {
                let offsets = offsets_of_slashes(&slashes, keys);
                assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] >= keys), "{offsets:?}");
                let holds = |row: u32, slash: u32, offset: u32| {
                    // Key and start of the block, relative to the group.
                    (0..i64::from(keys)).contains(&(i64::from(row) - i64::from(slash) + i64::from(offset)))
                };
                for &slash in &slashes {
                    for row in 0..keys {
                        let blocks = offsets.iter().filter(|offset| holds(row, slash, **offset)).count();
                        assert_eq!(blocks, 1, "slash {slash}, row {row} of a group of {keys}");
                    }
                }
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
