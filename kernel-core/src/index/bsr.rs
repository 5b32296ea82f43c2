//! Block-sparse rows, as FlashInfer plans them: on the host, one structure for all heads.

use super::{BlockLists, Index};
use crate::{Buffer, DType, Device, Error, Stream, TensorView};

/// A block-sparse index made from block-sparse rows, in device memory of its own.
pub struct BsrIndex {
    counts: Buffer,
    indices: Buffer,
    rows: u64,
    capacity: u64,
}

impl BsrIndex {
    /// Uploads the structure for every head and batch row: row block r has the key blocks
    /// `indices[starts[r]..starts[r + 1]]`, in any order. For set-up: it allocates and waits.
    ///
    /// # Errors
    /// [`Error::Index`] if `starts` does not ascend from 0 to the number of indices, or a row lists a block twice.
    pub fn new(device: &Device, stream: &Stream, starts: &[u32], indices: &[u32]) -> Result<BsrIndex, Error> {
        let (counts, table, capacity) = table(starts, indices)?;
        Ok(BsrIndex {
            counts: device.upload(stream, &counts)?,
            indices: device.upload(stream, &table)?,
            rows: counts.len() as u64,
            capacity,
        })
    }

    /// The index.
    pub fn index(&self) -> Result<Index<'_>, Error> {
        let counts = TensorView::new(&self.counts, DType::U32, &[1, 1, self.rows])?;
        let indices = TensorView::new(&self.indices, DType::U32, &[1, 1, self.rows, self.capacity])?;
        Ok(Index::from_flex(BlockLists { counts, indices }, None))
    }
}

/// Counts of each row block, and its blocks in ascending order, padded with zeros to the longest.
fn table(starts: &[u32], indices: &[u32]) -> Result<(Vec<u32>, Vec<u32>, u64), Error> {
    let ascends =
        starts.first() == Some(&0) && starts.last().copied() == u32::try_from(indices.len()).ok() && starts.is_sorted();
    if !ascends {
        let message = format!("the starts of the rows must ascend from 0 to the number of indices, {}", indices.len());
        return Err(Error::Index { message });
    }
    let counts: Vec<u32> = starts.windows(2).map(|row| row[1] - row[0]).collect();
    let capacity = counts.iter().copied().max().unwrap_or(0).max(1) as usize;
    let mut table = vec![0; counts.len() * capacity];
    for (row, slots) in starts.windows(2).zip(table.chunks_exact_mut(capacity)) {
        let blocks = &indices[row[0] as usize..row[1] as usize];
        let slots = &mut slots[..blocks.len()];
        slots.copy_from_slice(blocks);
        slots.sort_unstable();
        if let Some(twice) = slots.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Index {
                message: format!("block {} is listed twice in one row; list it once", twice[0]),
            });
        }
    }
    Ok((counts, table, capacity as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_counts_and_ascending_blocks() {
        let (counts, blocks, capacity) = table(&[0, 2, 2, 3], &[5, 1, 7]).unwrap();
        assert_eq!((counts, blocks, capacity), (vec![2, 0, 1], vec![1, 5, 0, 0, 7, 0], 2));
    }

    #[test]
    fn broken_structures_are_refused() {
        for starts in [&[1, 3][..], &[0, 2], &[0, 4, 3], &[]] {
            let error = table(starts, &[0, 1, 2]).unwrap_err().to_string();
            assert_eq!(error, "index: the starts of the rows must ascend from 0 to the number of indices, 3");
        }
        let error = table(&[0, 3], &[4, 2, 4]).unwrap_err().to_string();
        assert_eq!(error, "index: block 4 is listed twice in one row; list it once");
    }
}
