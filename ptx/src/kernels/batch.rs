//! Which sequence and head of a batch a block works on: lengths, places and the head map, read from device memory.

use super::meta::ParameterKind::{Pointer, U32, U64};
use crate::isa::{B32, B64, Builder, R32, R64};

/// Bits of the status word.
pub(crate) mod status {
    /// A length lies beyond its bound and was clamped, or the rows of a sequence lie outside the tensor and it is empty.
    pub(crate) const LENGTH: u32 = 1;
    /// An entry of an index, a head map or a page table names what does not exist, and was ignored or stands for zeros; or a
    /// list is said to be longer than it is.
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
    /// Rows of the packed tensor; not read without starting rows.
    pub(crate) rows: R32,
    /// Upper bound of a sequence's rows; the rows themselves where neither array is given.
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
    /// Declares `q_start q_length q_rows max_q`.
    pub(crate) fn queries(k: &mut Builder) -> Bounds {
        Bounds::declare(k, ["q_start", "q_length", "q_rows", "max_q"])
    }

    /// Declares `kv_start kv_length kv_rows max_kv`.
    pub(crate) fn keys(k: &mut Builder) -> Bounds {
        Bounds::declare(k, ["kv_start", "kv_length", "kv_rows", "max_kv"])
    }

    fn declare(k: &mut Builder, [start, length, rows, max]: [&'static str; 4]) -> Bounds {
        let [start, length] = [start, length].map(|name| k.parameter::<B64>(name, Pointer));
        let [rows, max] = [rows, max].map(|name| k.parameter::<B32>(name, U32));
        Bounds { start, length, rows, max }
    }

    /// The sequence of batch row `batch`. It stays inside the bound and inside its own rows of a packed tensor: a length
    /// beyond them is clamped and reported in `status`. Starting rows that do not ascend inside the tensor hold no rows, so
    /// that one wild entry empties the sequences on its two sides and harms no other.
    pub(crate) fn sequence(&self, k: &mut Builder, batch: R32, status: R64) -> Sequence {
        let first = k.mov(0u32);
        let room = k.mov(self.max);
        let length = k.mov(self.max);
        let packed = k.ne(self.start, 0u64);
        k.if_then(packed, |k| {
            let at = k.mad_wide(batch, 4u32, self.start);
            let (begin, end): (R32, R32) = (k.load_readonly(at, 0), k.load_readonly(at, 4));
            let between = k.sub(end, begin);
            k.set(length, between);
            let (ascends, inside) = (k.le_u(begin, end), k.le_u(end, self.rows));
            let exists = k.and_p(ascends, inside);
            let begin = k.select(exists, begin, 0u32);
            k.set(first, begin);
            let own = k.select(exists, between, 0u32);
            let own = k.min_u(own, self.max);
            k.set(room, own);
        });
        let given = k.ne(self.length, 0u64);
        k.if_then(given, |k| {
            let at = k.mad_wide(batch, 4u32, self.length);
            let rows: R32 = k.load_readonly(at, 0);
            k.set(length, rows);
        });
        let beyond = k.gt_u(length, room);
        k.if_then(beyond, |k| {
            report(k, status, status::LENGTH);
            k.set(length, room);
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

/// Entries of a list that is said to have `count` (an i32) and has room for `most`. A count beyond the room is clamped and
/// reported.
pub(crate) fn list_length(k: &mut Builder, count: R32, most: R32, status: R64) -> R32 {
    let length = k.mov(count);
    let beyond = k.gt_u(count, most);
    k.if_then(beyond, |k| {
        report(k, status, status::INDEX);
        let negative = k.lt_s(count, 0u32);
        let clamped = k.select(negative, 0u32, most);
        k.set(length, clamped);
    });
    length
}

/// What a head map says of a grid row without a head, in one sequence or all: nothing of it is computed.
pub(crate) const NO_HEAD: u32 = u32::MAX;

/// The query head of each grid row.
#[derive(Clone, Copy)]
pub(crate) struct HeadMap {
    /// 0, or `u32[grid heads]`.
    entries: R64,
    /// Bytes from a sequence's map to the next one's, where each has its own.
    stride: Option<R64>,
}

impl HeadMap {
    /// Declares `head_map`, the same for all sequences.
    fn declare(k: &mut Builder) -> HeadMap {
        HeadMap { entries: k.parameter("head_map", Pointer), stride: None }
    }

    /// Declares `head_map head_map_batch`: each sequence's map begins so many bytes, 0 without a map, behind that of the one
    /// before.
    fn of_sequences(k: &mut Builder) -> HeadMap {
        let map = HeadMap::declare(k);
        HeadMap { stride: Some(k.parameter("head_map_batch", U64)), ..map }
    }

    /// As [`HeadMap::of_sequences`], that of the block's sequence.
    pub(crate) fn of_sequence(k: &mut Builder) -> HeadMap {
        let maps = HeadMap::of_sequences(k);
        let batch = k.block_z();
        maps.of(k, batch)
    }

    /// That of sequence `batch`.
    fn of(self, k: &mut Builder, batch: R32) -> HeadMap {
        let entries = self.stride.map_or(self.entries, |stride| address(k, self.entries, [(batch, stride)]));
        HeadMap { entries, stride: None }
    }

    /// The entry of a grid row: the row itself without a map.
    pub(crate) fn entry(self, k: &mut Builder, grid_head: R32) -> R32 {
        let head = k.mov(grid_head);
        let mapped = k.ne(self.entries, 0u64);
        k.if_then(mapped, |k| {
            let at = k.mad_wide(grid_head, 4u32, self.entries);
            let entry: R32 = k.load_readonly(at, 0);
            k.set(head, entry);
        });
        head
    }
}

/// The launch parameters that say which query heads a launch has.
pub(crate) struct Heads {
    /// Query heads of the tensors.
    count: R32,
    per_kv: R32,
    map: HeadMap,
}

impl Heads {
    /// Declares `heads heads_per_kv head_map`.
    pub(crate) fn declare(k: &mut Builder) -> Heads {
        Heads::with(k, HeadMap::declare)
    }

    /// Declares `heads heads_per_kv head_map head_map_batch`, with a map for each sequence.
    pub(crate) fn of_sequence(k: &mut Builder) -> Heads {
        Heads::with(k, HeadMap::of_sequence)
    }

    /// Declares the same, for sequences in turn: see [`Heads::of`].
    pub(crate) fn of_sequences(k: &mut Builder) -> Heads {
        Heads::with(k, HeadMap::of_sequences)
    }

    /// Those of sequence `batch`.
    pub(crate) fn of(&self, k: &mut Builder, batch: R32) -> Heads {
        Heads { map: self.map.of(k, batch), ..*self }
    }

    fn with(k: &mut Builder, map: impl Fn(&mut Builder) -> HeadMap) -> Heads {
        let [count, per_kv] = ["heads", "heads_per_kv"].map(|name| k.parameter::<B32>(name, U32));
        Heads { count, per_kv, map: map(k) }
    }

    /// The query head that grid row `grid_head` stands for, and its head of keys. Of a row without a head `query` has no
    /// rows, nor of a head that does not exist, which is reported.
    pub(crate) fn pair(&self, k: &mut Builder, grid_head: R32, query: &Sequence, status: R64) -> (R32, R32) {
        let head = self.map.entry(k, grid_head);
        let wild = k.ge_u(head, self.count);
        k.if_then(wild, |k| {
            let named = k.ne(head, NO_HEAD);
            k.if_then(named, |k| report(k, status, status::INDEX));
            k.set(head, 0u32);
            k.set(query.length, 0u32);
        });
        (head, k.div_u(head, self.per_kv))
    }
}
