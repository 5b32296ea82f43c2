//! The authors' vertical-slash index: one merge of two sorted lists for each row block (MInference, the converter of
//! vertical and slash indices), and what a needed pair is.

use super::Mask;
use ptx::kernels::index::MergeRule;

/// Rows of a row block, and keys of a block.
const BLOCK: i64 = 64;

/// What a row block of one head visits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowBlock {
    /// First keys of blocks, ascending.
    pub blocks: Vec<i32>,
    /// Single keys, ascending.
    pub columns: Vec<i32>,
}

/// Every row block of one head of one sequence: `verticals` ascending, `slashes` descending. Entries that are no key and no
/// offset of the sequence count as none.
pub fn merged_ranges(
    rule: MergeRule,
    q_len: usize,
    kv_len: usize,
    verticals: &[i32],
    slashes: &[i32],
) -> Vec<RowBlock> {
    let (q_len, kv_len) = (q_len as i64, kv_len as i64);
    let valid = |list: &[i32]| list.iter().map(|&x| i64::from(x)).filter(|x| (0..kv_len).contains(x)).collect();
    let (verticals, slashes): (Vec<i64>, Vec<i64>) = (valid(verticals), valid(slashes));
    let ends = (0..q_len).step_by(BLOCK as usize).map(|row| kv_len - q_len + row + BLOCK);
    ends.map(|end| if end > 0 { merge(rule, end, kv_len, &verticals, &slashes) } else { RowBlock::default() }).collect()
}

/// The merge for the row block that ends before position `end`.
fn merge(rule: MergeRule, end: i64, kv_len: i64, verticals: &[i64], slashes: &[i64]) -> RowBlock {
    let mut found = RowBlock::default();
    let save = |blocks: &mut Vec<i32>, (start, end): (i64, i64)| {
        let end = if rule == MergeRule::Extended { end.min(kv_len) } else { end };
        blocks.extend((start..end).step_by(BLOCK as usize).map(|key| key as i32));
    };
    // The range of a slash ends where its diagonal leaves the row block, but holds a whole block of keys that exist.
    let range_end = |slash: i64| (end - slash).max(BLOCK);

    let skipped = slashes.iter().take_while(|slash| **slash >= end).count();
    let (far, mut near) = (&slashes[..skipped], slashes[skipped..].iter());
    let mut range = match (near.next(), far.last(), rule) {
        (Some(&slash), ..) => (range_end(slash) - BLOCK, range_end(slash)),
        (None, _, MergeRule::Original) => {
            let before = verticals.iter().filter(|vertical| **vertical < end - BLOCK);
            found.columns = before.map(|vertical| *vertical as i32).collect();
            return found;
        }
        // The one vLLM comparison that takes a slash at the end for one inside.
        (None, Some(&last), MergeRule::Extended) if last == end => (0, BLOCK),
        (None, _, MergeRule::Extended) => (end, end + BLOCK),
    };
    let mut left = verticals.iter().peekable();
    loop {
        if let Some(&vertical) = left.next_if(|vertical| **vertical < range.1) {
            if vertical < range.0 {
                found.columns.push(vertical as i32);
            }
            continue;
        }
        let Some(&slash) = near.next() else { break };
        if range_end(slash) > range.1 + BLOCK {
            save(&mut found.blocks, range);
            range = (range_end(slash) - BLOCK, range_end(slash));
        } else if range_end(slash) > range.1 {
            range.1 += BLOCK;
        }
    }
    save(&mut found.blocks, range);
    if rule == MergeRule::Extended {
        found.columns.extend(left.filter(|vertical| **vertical < end).map(|vertical| *vertical as i32));
    }
    found
}

/// Checks what attention relies on: blocks ascend apart, columns ascend and lie outside of them, and every causal pair of a
/// vertical or slash is there.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_cover(
    (q_len, kv_len): (usize, usize),
    verticals: &[i32],
    slashes: &[i32],
    rows: &[RowBlock],
) -> Result<(), String> {
    let marks = |list: &[i32]| {
        let mut marks = vec![false; kv_len];
        list.iter().filter(|x| (0..kv_len as i32).contains(*x)).for_each(|&x| marks[x as usize] = true);
        marks
    };
    let (is_vertical, is_slash) = (marks(verticals), marks(slashes));
    let wanted =
        Mask::from_positions(q_len, kv_len, |q, k| k <= q && (is_vertical[k as usize] || is_slash[(q - k) as usize]));
    for (number, row) in rows.iter().enumerate() {
        let mut times = vec![0u8; kv_len];
        let keys = row.blocks.iter().flat_map(|&block| block..block + BLOCK as i32).filter(|&key| key < kv_len as i32);
        for key in keys.chain(row.columns.iter().copied()) {
            *times.get_mut(key as usize).ok_or(format!("row block {number}: column {key} is no key"))? += 1;
        }
        if let Some(twice) = times.iter().position(|times| *times > 1) {
            return Err(format!("row block {number}: key {twice} is there {} times", times[twice]));
        }
        if !row.blocks.is_sorted() || !row.columns.is_sorted() {
            return Err(format!("row block {number}: {row:?} does not ascend"));
        }
        for query in (number * BLOCK as usize..q_len).take(BLOCK as usize) {
            if let Some(lost) = (0..kv_len).find(|&key| wanted.keeps(query, key) && times[key] == 0) {
                return Err(format!("row block {number}: row {query} does not see key {lost}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MergeRule::*, *};

    fn row(blocks: &[i32], columns: &[i32]) -> RowBlock {
        RowBlock { blocks: blocks.to_vec(), columns: columns.to_vec() }
    }

    #[test]
    fn a_pair_that_is_lost_or_there_twice_is_seen() {
        let check = |rows: &[RowBlock]| check_cover((64, 64), &[10], &[0], rows);
        assert_eq!(check(&[row(&[0], &[])]), Ok(()));
        assert!(check(&[row(&[], &[10])]).unwrap_err().contains("row 0 does not see key 0"));
        assert!(check(&[row(&[0], &[10])]).unwrap_err().contains("key 10 is there 2 times"));
        assert!(check(&[row(&[0], &[64])]).unwrap_err().contains("column 64 is no key"));
    }

    #[test]
    fn only_one_rule_drops_verticals() {
        let rows = |rule| merged_ranges(rule, 128, 128, &[80], &[50]);
        assert_eq!(rows(Original), [row(&[0], &[]), row(&[14], &[])]);
        assert_eq!(rows(Extended), [row(&[0], &[]), row(&[14], &[80])]);
        assert!(check_cover((128, 128), &[80], &[50], &rows(Original)).is_err());
        assert_eq!(check_cover((128, 128), &[80], &[50], &rows(Extended)), Ok(()));
    }
}
