//! Which key blocks a row block visits, one after the other: the one thing in which patterns differ.
//!
//! Every thread of the block walks the same list in its own registers. Blocks come from the diagonal towards key 0 where
//! the pattern allows it, so that the blocks with masked pairs come first.

use super::{
    problem::{PatternParameters, Problem},
    spec::{AttentionSpec, Pattern},
};
use crate::{
    isa::{Builder, Cache as Access, R32, R64, RP, SharedRegion},
    kernels::batch::{address, list_length, status},
};

/// A walk over key blocks.
pub(super) struct Blocks {
    /// The next block to visit, negative after the last; of offsets, its first key.
    next: R32,
    /// log2 of the keys of a block.
    shift: u32,
    walk: Walk,
}

/// A block as [`Blocks::start`], [`Blocks::partial`] and [`Blocks::needs`] describe it, in registers of its own.
pub(super) struct Block {
    pub(super) start: R32,
    pub(super) partial: Option<R32>,
    pub(super) needs: Option<R32>,
}

enum Walk {
    /// All blocks downwards; those below `floor` only from `resume` on. Of a part of the keys, down to its first block.
    Down {
        gap: Option<Gap>,
        lowest: Option<R32>,
    },
    Offsets(Offsets),
    Listed(Listed),
}

/// Blocks that an A-shape leaves out: from the window's lowest block the walk goes on with the sink's highest.
struct Gap {
    floor: R32,
    sink: R32,
    shift: u32,
}

impl Gap {
    fn skip(&self, k: &mut Builder, next: R32) {
        let below = k.lt_s(next, self.floor);
        let last_sink = k.sub(self.sink, 1u32);
        let highest = k.shr_s(last_sink, self.shift);
        let resumed = k.min_s(next, highest);
        k.when(below, |k| k.set(next, resumed));
    }
}

/// Sizes of the windows of an A-shape or tri-shape: see [`Windows::declare`].
pub(super) struct Windows {
    /// Keys at the start that every query sees.
    pub(super) sink: R32,
    /// Nearest keys that every query sees, its own included.
    pub(super) local: R32,
    /// Position from which on queries see all keys before them; none in an A-shape.
    pub(super) dense_from: Option<R32>,
}

impl Windows {
    /// The windows of this block's head, if the pattern has any.
    pub(super) fn declare(k: &mut Builder, spec: &AttentionSpec, problem: &Problem) -> Option<Windows> {
        let PatternParameters::Windows(base) = problem.pattern else { return None };
        let words = if spec.pattern == Pattern::TriShape { 3 } else { 2 };
        let at = k.mad_wide(problem.slot, 4 * words as u32, base);
        let word = |k: &mut Builder, i: i64| {
            let word: R32 = k.load_readonly(at, 4 * i);
            // So that a window before a negative position does not wrap.
            k.min_u(word, 1u32 << 30)
        };
        let (sink, local) = (word(k, 0), word(k, 1));
        let dense_from = (words == 3).then(|| {
            let last = word(k, 2);
            k.sub(problem.kv_len, last)
        });
        Some(Windows { sink, local, dense_from })
    }

    /// The last key before a query's window; -1 where the query sees all.
    pub(super) fn before(&self, k: &mut Builder, position: R32) -> R32 {
        let before = k.sub(position, self.local);
        let Some(dense_from) = self.dense_from else { return before };
        let dense = k.ge_s(position, dense_from);
        k.select(dense, -1i32, before)
    }
}

impl Blocks {
    /// The walk of this block, at its first key block.
    /// Offsets are copied to `cache`, if given.
    pub(super) fn new(
        k: &mut Builder,
        spec: &AttentionSpec,
        problem: &Problem,
        windows: Option<&Windows>,
        cache: Option<Cache>,
    ) -> Blocks {
        let shift = problem.tiling.keys.ilog2();
        k.comment("the first key block");
        let blocks = match problem.pattern {
            PatternParameters::None | PatternParameters::Windows(_) => {
                let next = match problem.split() {
                    Some(split) => k.sub(split.end, 1u32),
                    None => {
                        let last = if spec.causal { problem.last_position } else { k.sub(problem.kv_len, 1u32) };
                        k.shr_s(last, shift)
                    }
                };
                let gap = windows.map(|windows| Gap::new(k, problem, windows, shift));
                if let Some(gap) = &gap {
                    gap.skip(k, next);
                }
                let lowest = problem.split().map(|split| split.first);
                Blocks { next, shift, walk: Walk::Down { gap, lowest } }
            }
            PatternParameters::Columns { .. } => {
                let next = k.fresh();
                Blocks { next, shift, walk: Walk::Offsets(Offsets::new(k, problem, cache)) }
            }
            PatternParameters::Blocks { .. } => {
                let next = k.fresh();
                Blocks { next, shift, walk: Walk::Listed(Listed::new(k, problem, shift)) }
            }
        };
        match &blocks.walk {
            Walk::Down { .. } => {}
            Walk::Offsets(offsets) => offsets.advance(k, blocks.next, problem),
            Walk::Listed(listed) => listed.advance(k, blocks.next, problem),
        }
        blocks
    }

    /// Whether there is a next block. All lanes agree, and the vote lets `ptxas` know.
    pub(super) fn more(&self, k: &mut Builder) -> RP {
        let more = match self.walk {
            Walk::Offsets(_) => k.gt_s(self.next, -(1 << self.shift)),
            Walk::Down { lowest: Some(lowest), .. } => k.ge_s(self.next, lowest),
            _ => k.ge_s(self.next, 0u32),
        };
        k.any(more)
    }

    /// First key of the next block; of offsets, before key 0 perhaps.
    pub(super) fn start(&self, k: &mut Builder) -> R32 {
        match self.walk {
            Walk::Offsets(_) => k.mov(self.next),
            _ => k.shl(self.next, self.shift),
        }
    }

    /// One bit for each group of rows that visits the next block; every row does where there are no groups.
    pub(super) fn needs(&self) -> Option<R32> {
        match &self.walk {
            Walk::Offsets(offsets) => Some(offsets.needs),
            _ => None,
        }
    }

    /// 1 if the next block's pairs need the mask expression, 0 if the index says that they do not.
    fn partial(&self) -> Option<R32> {
        match &self.walk {
            Walk::Listed(listed) => Some(listed.partial),
            _ => None,
        }
    }

    /// The offsets, if the pattern has any.
    pub(super) fn offsets(&self) -> Option<&Offsets> {
        match &self.walk {
            Walk::Offsets(offsets) => Some(offsets),
            _ => None,
        }
    }

    /// How many blocks the rest of the walk has; it ends here. Of offsets only.
    pub(super) fn count(&self, k: &mut Builder, problem: &Problem) -> R32 {
        let Walk::Offsets(offsets) = &self.walk else { unreachable!("only offsets are counted") };
        let more = self.more(k);
        let blocks = k.select(more, 1u32, 0u32);
        let blocks = k.mov(blocks);
        let add_batch = |k: &mut Builder| {
            for bits in [offsets.batch.last, offsets.batch.before] {
                let more = k.popc(bits);
                let all = k.add(blocks, more);
                k.set(blocks, all);
            }
        };
        add_batch(k);
        k.while_loop(
            |k| k.lt_u(offsets.batch.next, offsets.count),
            |k| {
                offsets.refill(k, problem);
                add_batch(k);
            },
        );
        blocks
    }

    /// The next block, which the walk goes past.
    pub(super) fn take(&self, k: &mut Builder, problem: &Problem) -> Block {
        let start = self.start(k);
        let partial = self.partial().map(|partial| k.mov(partial));
        let needs = self.needs().map(|needs| k.mov(needs));
        self.advance(k, problem);
        Block { start, partial, needs }
    }

    /// Goes to the next block.
    fn advance(&self, k: &mut Builder, problem: &Problem) {
        match &self.walk {
            Walk::Down { gap, .. } => {
                let lower = k.sub(self.next, 1u32);
                k.set(self.next, lower);
                if let Some(gap) = gap {
                    gap.skip(k, self.next);
                }
            }
            Walk::Offsets(offsets) => offsets.advance(k, self.next, problem),
            Walk::Listed(listed) => listed.advance(k, self.next, problem),
        }
    }
}

impl Gap {
    fn new(k: &mut Builder, problem: &Problem, windows: &Windows, shift: u32) -> Gap {
        let nearest = k.sub(problem.first_position, windows.local);
        let lowest = k.add(nearest, 1u32);
        let mut floor = k.shr_s(lowest, shift);
        if let Some(dense_from) = windows.dense_from {
            let dense = k.ge_s(problem.last_position, dense_from);
            floor = k.select(dense, 0u32, floor);
        }
        Gap { floor, sink: windows.sink, shift }
    }
}

/// The blocks that the slashes of a vertical-slash index select for this row block.
///
/// Rows are cut in groups of as many rows as a block has keys, N, aligned on absolute positions. For each offset D of the
/// index a group whose first row stands at r visits the N keys from r − D on. The row block visits what any of its groups
/// does, nearest blocks first.
///
/// Of two groups the second, N rows further down, visits a block N nearer for the same entry. Entries lie at least N apart,
/// so the walk goes entry by entry: first the second group's block, which the first group visits too if the entry before is
/// just N less; then the first group's, unless the next entry is just N more. The lanes of a warp look at many entries side by
/// side, and each step picks one.
pub(super) struct Offsets {
    list: R64,
    /// Entries of the list.
    count: R32,
    /// A copy of the list in shared memory, and whether it fits there.
    cache: Option<(R32, RP)>,
    /// First position of the row block.
    first: R32,
    /// Keys of a block and rows of a group.
    keys: u32,
    /// How many groups: one or two.
    groups: u32,
    batch: Batch,
    /// One bit for each group that visits the next block.
    needs: R32,
}

/// Neighbouring entries, one a lane, and in the same order one bit for each of what is left to visit.
struct Batch {
    /// The first entry of the next batch; the list's count once it has ended.
    next: R32,
    /// This lane's entry, marked with [`Batch::SHARED`] if the last group's block is one of the group before too.
    offset: R32,
    /// Blocks of the last group.
    last: R32,
    /// Further blocks of the group before.
    before: R32,
}

/// Where some warps together keep a copy of the list: they look into it more often than a cache would let them.
pub(super) struct Cache {
    pub(super) region: SharedRegion,
    /// This thread among `threads`, and the named barrier at which they meet.
    pub(super) thread: R32,
    pub(super) threads: u32,
    pub(super) barrier: u32,
}

impl Cache {
    /// Bytes of the copy: longer lists, of scattered slashes, are read where they are.
    pub(super) const BYTES: u32 = 4 * 512;

    /// Copies the list, if it fits: where to, and whether.
    fn fill(self, k: &mut Builder, list: R64, count: R32) -> (R32, RP) {
        let copy = k.shared_address(self.region);
        let entries = Cache::BYTES / 4;
        let fits = k.le_u(count, entries);
        let end = k.min_u(count, entries);
        for first in (0..entries).step_by(self.threads as usize) {
            let entry = k.add(self.thread, first);
            let exists = k.lt_u(entry, end);
            let (from, to) = (k.mad_wide(entry, 4u32, list), k.mad(entry, 4u32, copy));
            let offset = k.mov(0u32);
            k.when(exists, |k| {
                k.load_into(offset, from, 0, Access::ReadOnly);
                k.store(to, 0, offset);
            });
        }
        k.meet_barrier(self.barrier, self.threads);
        (copy, fits)
    }
}

impl Batch {
    /// One less than lanes: the last lane only knows what comes after.
    const ENTRIES: u32 = 31;
    /// A bit for each of their lanes.
    const LANES: u32 = (1 << Batch::ENTRIES) - 1;
    /// Above every entry that some row sees.
    const SHARED: u32 = 1 << 31;
}

impl Offsets {
    const NONE: i32 = i32::MAX;

    fn new(k: &mut Builder, problem: &Problem, cache: Option<Cache>) -> Offsets {
        let PatternParameters::Columns { offsets, offsets_batch, offsets_head, offset_counts, offset_capacity, .. } =
            problem.pattern
        else {
            unreachable!("only the vertical-slash pattern has offsets")
        };
        let tiling = problem.tiling;
        let list = address(k, offsets, [(problem.batch, offsets_batch), (problem.slot, offsets_head)]);
        let entry = k.mad(problem.batch, problem.slots, problem.slot);
        let at = k.mad_wide(entry, 4u32, offset_counts);
        let count: R32 = k.load_readonly(at, 0);
        let count = problem.list_length(k, count, offset_capacity);
        let cache = cache.map(|cache| cache.fill(k, list, count));
        Offsets {
            list,
            count,
            cache,
            first: problem.first_position,
            keys: tiling.keys,
            groups: tiling.groups(),
            batch: Batch { next: k.mov(0u32), offset: k.mov(0u32), last: k.mov(0u32), before: k.mov(0u32) },
            needs: k.mov(0u32),
        }
    }

    /// An entry of the list, where there is one and `guard` holds; else [`Offsets::NONE`].
    fn load(&self, k: &mut Builder, entry: R32, guard: Option<RP>) -> R32 {
        let mut exists = k.lt_u(entry, self.count);
        if let Some(guard) = guard {
            exists = k.and_p(exists, guard);
        }
        let offset = k.mov(Offsets::NONE);
        let mut from_list = exists;
        if let Some((copy, fits)) = self.cache {
            let from_copy = k.and_p(exists, fits);
            let at = k.mad(entry, 4u32, copy);
            k.when(from_copy, |k| k.load_into(offset, at, 0, Access::Default));
            let too_long = k.not_p(fits);
            from_list = k.and_p(exists, too_long);
        }
        let at = k.mad_wide(entry, 4u32, self.list);
        k.when(from_list, |k| {
            let stored: R32 = k.load_readonly(at, 0);
            k.set(offset, stored);
        });
        offset
    }

    /// Looks at the next entries. A list that does not ascend by a block at least ends there, which is reported.
    fn refill(&self, k: &mut Builder, problem: &Problem) {
        let Batch { next, offset, last, before } = self.batch;
        let lane = k.lane();
        let entry = k.add(next, lane);
        let own = self.load(k, entry, None);
        // The entry below: that of the lane before, or the last one of the batch before.
        let below = k.shuffle_up(own, 1);
        let carried = k.shuffle_from(offset, Batch::ENTRIES - 1);
        let carried = k.and(carried, !Batch::SHARED);
        let lowest = k.eq(lane, 0u32);
        let below = k.select(lowest, carried, below);
        k.set(offset, own);

        let exists = k.lt_u(entry, self.count);
        let is_first = k.eq(entry, 0u32);
        let least = k.add(below, self.keys);
        let apart = k.ge_u(own, least);
        let ascends = k.or_p(is_first, apart);
        let overlaps = k.not_p(ascends);
        let overlaps = k.and_p(overlaps, exists);
        // Entries from a group's limit on reach before key 0.
        let limit = |k: &mut Builder, groups: u32| {
            let limit = k.add(self.first, groups * self.keys);
            k.max_s(limit, 0u32)
        };
        let own_limit = limit(k, self.groups);
        let visible = k.lt_u(own, own_limit);
        let goes_on = k.and_p(exists, ascends);
        let goes_on = k.and_p(goes_on, visible);
        let ends = k.not_p(goes_on);
        let ends = k.ballot(ends);
        let ends = k.and(ends, Batch::LANES);
        // Bits below the first end.
        let under = k.sub(ends, 1u32);
        let differing = k.not(ends);
        let valid = k.and(under, differing);
        let valid = k.and(valid, Batch::LANES);
        k.set(last, valid);
        let ended = k.ne(ends, 0u32);
        let after = k.add(next, Batch::ENTRIES);
        let after = k.select(ended, self.count, after);
        k.set(next, after);

        let lanes_below = k.lanes_below();
        let earlier = k.and(ends, lanes_below);
        let is_end = k.eq(earlier, 0u32);
        let wrong = k.and_p(overlaps, is_end);
        k.if_then(wrong, |k| problem.report(k, status::INDEX));

        if self.groups > 1 {
            let touches = k.eq(own, least);
            let not_first = k.not_p(is_first);
            let shared = k.and_p(touches, not_first);
            let marked = k.or(own, Batch::SHARED);
            k.when(shared, |k| k.set(offset, marked));
            let limit = limit(k, self.groups - 1);
            let visible = k.lt_u(own, limit);
            let higher = k.add(lane, 1u32);
            let above = k.shuffle_from(own, higher);
            let end = k.add(own, self.keys);
            let alone = k.ne(above, end);
            let further = k.and_p(visible, alone);
            let further = k.ballot(further);
            let further = k.and(further, valid);
            k.set(before, further);
        }
    }

    /// Puts the start of the next block into `next`, and who visits it into `needs`.
    fn advance(&self, k: &mut Builder, next: R32, problem: &Problem) {
        let Batch { last, before, offset, .. } = self.batch;
        let left = |k: &mut Builder| k.or(last, before);
        k.while_loop(
            |k| {
                let left = left(k);
                let none = k.eq(left, 0u32);
                let more = k.lt_u(self.batch.next, self.count);
                k.and_p(none, more)
            },
            |k| self.refill(k, problem),
        );
        // The lowest entry with a block left: its lane, and a mask of its bit.
        let left = left(k);
        let some = k.ne(left, 0u32);
        let reversed = k.brev(left);
        let lane = k.clz(reversed);
        let one = k.mov(1u32);
        let bit = k.shl(one, lane);
        let marked = k.shuffle_from(offset, lane);
        let entry = k.and(marked, !Batch::SHARED);
        let own = k.and(last, bit);
        let is_last = k.ne(own, 0u32);
        let rest = k.xor(last, own);
        k.set(last, rest);
        let start = k.sub(self.first, entry);
        if self.groups == 1 {
            let start = k.select(some, start, i32::MIN);
            k.set(next, start);
            let needs = k.select(some, 1u32, 0u32);
            return k.set(self.needs, needs);
        }
        let further = k.add(start, self.keys);
        let start = k.select(is_last, further, start);
        let start = k.select(some, start, i32::MIN);
        k.set(next, start);
        let shared = k.lt_s(marked, 0u32);
        let of_last = k.select(shared, 3u32, 2u32);
        let needs = k.select(is_last, of_last, 1u32);
        k.set(self.needs, needs);
        // If the entry has no block of the last group left, the block is the other one.
        let not = k.not(bit);
        let rest = k.and(before, not);
        let rest = k.select(is_last, before, rest);
        k.set(before, rest);
    }

    /// One bit for each group that visits key `key`, which is not negative, in some block. `inside` guards the loads.
    ///
    /// Offsets lie at least N apart: among those that could hold the key for neighbouring groups, each group has the next.
    pub(super) fn visitors(&self, k: &mut Builder, key: R32, inside: RP) -> R32 {
        // The first group visits a key if an offset lies from `least` to `least` + N − 1.
        let least = k.sub(self.first, key);
        let below = k.mov(0u32);
        let leading = k.clz(self.count);
        let highest = k.mov(0x8000_0000u32);
        let step = k.shr_u(highest, leading);
        k.while_loop(
            |k| k.ne(step, 0u32),
            |k| {
                let after = k.add(below, step);
                let last = k.sub(after, 1u32);
                let offset = self.load(k, last, Some(inside));
                let less = k.lt_s(offset, least);
                k.when(less, |k| k.set(below, after));
                let half = k.shr_u(step, 1u32);
                k.set(step, half);
            },
        );
        self.visitors_from(k, below, least, inside)
    }

    /// The groups that visit the key whose least offset is `least`, given how many offsets lie below that.
    fn visitors_from(&self, k: &mut Builder, below: R32, least: R32, inside: RP) -> R32 {
        let offset = self.load(k, below, Some(inside));
        let visitors = k.mov(0u32);
        for group in 0..self.groups {
            let least = k.add(least, group * self.keys);
            if group > 0 {
                // Offsets below this group's least are done with.
                let less = k.lt_s(offset, least);
                let step = k.select(less, 1u32, 0u32);
                let entry = k.add(below, step);
                k.set(below, entry);
                let other = self.load(k, entry, Some(inside));
                k.set(offset, other);
            }
            let most = k.add(least, self.keys - 1);
            let visits = k.le_s(offset, most);
            let bit = k.select(visits, 1u32 << group, 0u32);
            let all = k.or(visitors, bit);
            k.set(visitors, all);
        }
        visitors
    }
}

/// The partial and then the full blocks of a block-sparse index, read one ahead.
struct Listed {
    partial_entries: R64,
    full_entries: R64,
    partial_count: R32,
    count: R32,
    /// Entry that is read ahead, and which it is.
    ahead: R32,
    position: R32,
    /// 1 if the next block is a partial one.
    partial: R32,
    /// Key blocks of this sequence, and of the longest.
    key_blocks: R32,
    max_key_blocks: R32,
}

/// The two lists of a block-sparse index that rows read: their lengths, and the addresses of their entries.
struct Lists {
    partial: (R32, R64),
    full: (R32, R64),
    /// Key blocks of the sequence, and of the longest.
    key_blocks: R32,
    max_key_blocks: R32,
}

impl Lists {
    /// Those of row block `row_block`; without one, lists stand for all rows of a head. Lengths are those of the keys and
    /// their bound.
    fn find(
        k: &mut Builder,
        pattern: &PatternParameters,
        (batch, slot, row_block): (R32, R32, Option<R32>),
        (kv_len, max_kv): (R32, R32),
        shift: u32,
        status: R64,
    ) -> Lists {
        let PatternParameters::Blocks {
            partial_counts,
            partial_indices,
            partial_capacity,
            full_counts,
            full_indices,
            full_capacity,
            counts_batch,
            counts_head,
            indices_batch,
            indices_head,
            indices_row,
        } = *pattern
        else {
            unreachable!("only the block-sparse pattern has lists")
        };
        let (key_blocks, max_key_blocks) = (blocks_of(k, kv_len, shift), blocks_of(k, max_kv, shift));
        let row = row_block.map(|row_block| k.mul_wide(row_block, 4u32));
        let counts = [(batch, counts_batch), (slot, counts_head)];
        let indices = [(batch, indices_batch), (slot, indices_head)];
        let indices: Vec<_> = indices.into_iter().chain(row_block.map(|row_block| (row_block, indices_row))).collect();
        let some_keys = k.gt_u(kv_len, 0u32);
        let mut list = |counts_base: R64, indices_base: R64, capacity: R32| {
            let given = k.ne(counts_base, 0u64);
            let given = k.and_p(given, some_keys);
            let at = address(k, counts_base, counts);
            let at = row.map_or(at, |row| k.add(at, row));
            let count = k.mov(0u32);
            k.when(given, |k| k.load_into(count, at, 0, Access::ReadOnly));
            let most = k.min_u(capacity, max_key_blocks);
            let count = list_length(k, count, most, status);
            (count, address(k, indices_base, indices.iter().copied()))
        };
        Lists {
            partial: list(partial_counts, partial_indices, partial_capacity),
            full: list(full_counts, full_indices, full_capacity),
            key_blocks,
            max_key_blocks,
        }
    }
}

/// Blocks of 2^`shift` keys.
fn blocks_of(k: &mut Builder, length: R32, shift: u32) -> R32 {
    let padded = k.add(length, (1 << shift) - 1);
    k.shr_u(padded, shift)
}

/// Blocks of 2^`shift` keys that the rows of the heads sharing KV head `slot` visit: all, or those that are listed for them.
pub(super) fn count(
    k: &mut Builder,
    pattern: &PatternParameters,
    (batch, slot): (R32, R32),
    (kv_len, max_kv): (R32, R32),
    shift: u32,
    status: R64,
) -> R32 {
    if !matches!(pattern, PatternParameters::Blocks { .. }) {
        return blocks_of(k, kv_len, shift);
    }
    let lists = Lists::find(k, pattern, (batch, slot, None), (kv_len, max_kv), shift, status);
    k.add(lists.partial.0, lists.full.0)
}

impl Listed {
    fn new(k: &mut Builder, problem: &Problem, shift: u32) -> Listed {
        let row_block = problem.split().is_none().then_some(problem.row_block);
        let place = (problem.batch, problem.slot, row_block);
        let lengths = (problem.kv_len, problem.max_kv);
        let Lists { partial, full, key_blocks, max_key_blocks } =
            Lists::find(k, &problem.pattern, place, lengths, shift, problem.status());
        // Entry i of the whole is entry i − the partial ones of the full list.
        let (partial_count, partial_entries) = partial;
        let skipped = k.mul_wide(partial_count, 4u32);
        let listed = Listed {
            partial_entries,
            full_entries: k.sub(full.1, skipped),
            partial_count,
            count: match problem.split() {
                Some(split) => k.mov(split.end),
                None => k.add(partial_count, full.0),
            },
            ahead: k.mov(0u32),
            position: match problem.split() {
                Some(split) => k.mov(split.first),
                None => k.mov(0u32),
            },
            partial: k.mov(0u32),
            key_blocks,
            max_key_blocks,
        };
        listed.read(k);
        listed
    }

    /// Reads the entry at `position`, if there is one.
    fn read(&self, k: &mut Builder) {
        let exists = k.lt_u(self.position, self.count);
        let is_partial = k.lt_u(self.position, self.partial_count);
        let base = k.select(is_partial, self.partial_entries, self.full_entries);
        let at = k.mad_wide(self.position, 4u32, base);
        k.when(exists, |k| k.load_into(self.ahead, at, 0, Access::ReadOnly));
    }

    /// Puts the next block into `next`. An entry beyond this sequence's keys becomes the block just after them, all of
    /// whose pairs are masked.
    fn advance(&self, k: &mut Builder, next: R32, problem: &Problem) {
        let exists = k.lt_u(self.position, self.count);
        let invalid = k.ge_u(self.ahead, self.max_key_blocks);
        let invalid = k.and_p(exists, invalid);
        k.if_then(invalid, |k| problem.report(k, status::INDEX));
        let entry = k.min_u(self.ahead, self.key_blocks);
        let entry = k.select(exists, entry, -1i32);
        k.set(next, entry);
        let is_partial = k.lt_u(self.position, self.partial_count);
        let partial = k.select(is_partial, 1u32, 0u32);
        k.set(self.partial, partial);
        let position = k.add(self.position, 1u32);
        k.set(self.position, position);
        self.read(k);
    }
}
