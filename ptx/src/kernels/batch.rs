//! Which sequence and head of a batch a block works on: lengths, places and the head map, read from device memory.

use crate::isa::{Builder, R32, R64};

/// Bits of the status word.
pub(crate) mod status {
    /// A length lies beyond its bound and was clamped.
    pub(crate) const LENGTH: u32 = 1;
    /// An index entry lies beyond the keys and was ignored.
    pub(crate) const INDEX: u32 = 2;
    /// A budget exceeds the capacity of its list and was clamped.
    pub(crate) const BUDGET: u32 = 4;
}

/// The launch parameters that describe the query or the key side of a batch.
pub(crate) struct Bounds {
    /// 0, or `u32[batch + 1]`: the first packed row of each sequence.
    pub(crate) start: R64,
    /// 0, or `u32[batch]`: rows of each sequence.
    pub(crate) length: R64,
    /// Upper bound of the rows; the rows themselves where neither array is given.
    pub(crate) max: R32,
}

/// One side of one sequence.
pub(crate) struct Sequence {
    /// Its first packed row; 0 where the batch is not packed.
    pub(crate) first: R32,
    /// Its rows, at most the bound.
    pub(crate) length: R32,
}

impl Bounds {
    /// The sequence of batch row `batch`. A length beyond the bound is clamped and reported in `status`.
    pub(crate) fn sequence(&self, k: &mut Builder, batch: R32, status: R64) -> Sequence {
        let first = k.mov(0u32);
        let length = k.mov(self.max);
        let packed = k.ne(self.start, 0u64);
        k.if_then(packed, |k| {
            let at = k.mad_wide(batch, 4u32, self.start);
            let (begin, end): (R32, R32) = (k.load_readonly(at, 0), k.load_readonly(at, 4));
            k.set(first, begin);
            let rows = k.sub(end, begin);
            k.set(length, rows);
        });
        let given = k.ne(self.length, 0u64);
        k.if_then(given, |k| {
            let at = k.mad_wide(batch, 4u32, self.length);
            let rows: R32 = k.load_readonly(at, 0);
            k.set(length, rows);
        });
        let beyond = k.gt_u(length, self.max);
        k.if_then(beyond, |k| {
            report(k, status, status::LENGTH);
            k.set(length, self.max);
        });
        Sequence { first, length }
    }
}

/// Ors `bit` into the status word, if there is one.
pub(crate) fn report(k: &mut Builder, status: R64, bit: u32) {
    let wanted = k.ne(status, 0u64);
    k.if_then(wanted, |k| k.reduce_or(status, 0, bit));
}

/// `base + Σ index · stride`, strides in bytes.
pub(crate) fn address(k: &mut Builder, base: R64, places: impl IntoIterator<Item = (R32, R64)>) -> R64 {
    places.into_iter().fold(base, |address, (index, stride)| {
        let index = k.widen_u(index);
        k.mad(index, stride, address)
    })
}

/// The query head that grid row `grid_head` stands for.
pub(crate) fn query_head(k: &mut Builder, head_map: R64, grid_head: R32) -> R32 {
    let head = k.mov(grid_head);
    let mapped = k.ne(head_map, 0u64);
    k.if_then(mapped, |k| {
        let at = k.mad_wide(grid_head, 4u32, head_map);
        let other: R32 = k.load_readonly(at, 0);
        k.set(head, other);
    });
    head
}
