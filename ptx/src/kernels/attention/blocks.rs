//! Which key blocks a row block visits, one after the other: the one thing in which patterns differ.
//!
//! Every thread of the block walks the same list in its own registers. Blocks come from the diagonal towards key 0 where
//! the pattern allows it, so that the blocks with masked pairs come first.

use super::{
    problem::{PatternParameters, Problem},
    spec::{AttentionSpec, Pattern},
};
use crate::{
    isa::{Builder, R32, R64, RP},
    kernels::batch::{address, status},
};

/// A walk over key blocks.
pub(super) struct Blocks {
    /// The next block to visit; negative after the last.
    next: R32,
    /// log2 of the keys of a block.
    shift: u32,
    walk: Walk,
}

enum Walk {
    /// All blocks downwards; those below `floor` only from `resume` on.
    Down {
        gap: Option<Gap>,
    },
    Diagonals(Diagonals),
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
    pub(super) fn new(k: &mut Builder, spec: &AttentionSpec, problem: &Problem, windows: Option<&Windows>) -> Blocks {
        let shift = problem.tiling.keys.ilog2();
        k.comment("the first key block");
        let blocks = match problem.pattern {
            PatternParameters::None | PatternParameters::Windows(_) => {
                let last = if spec.causal { problem.last_position } else { k.sub(problem.kv_len, 1u32) };
                let next = k.shr_s(last, shift);
                let gap = windows.map(|windows| Gap::new(k, problem, windows, shift));
                if let Some(gap) = &gap {
                    gap.skip(k, next);
                }
                Blocks { next, shift, walk: Walk::Down { gap } }
            }
            PatternParameters::Columns { .. } => {
                let next = k.fresh();
                Blocks { next, shift, walk: Walk::Diagonals(Diagonals::new(k, problem)) }
            }
            PatternParameters::Blocks { .. } => {
                let next = k.fresh();
                Blocks { next, shift, walk: Walk::Listed(Listed::new(k, problem, shift)) }
            }
        };
        match &blocks.walk {
            Walk::Down { .. } => {}
            Walk::Diagonals(diagonals) => diagonals.advance(k, blocks.next),
            Walk::Listed(listed) => listed.advance(k, blocks.next, problem),
        }
        blocks
    }

    /// Whether there is a next block. All lanes agree, and the vote lets `ptxas` know.
    pub(super) fn more(&self, k: &mut Builder) -> RP {
        let more = k.ge_s(self.next, 0u32);
        k.any(more)
    }

    /// First key of the next block.
    pub(super) fn start(&self, k: &mut Builder) -> R32 {
        k.shl(self.next, self.shift)
    }

    /// 1 if the next block's pairs need the mask expression, 0 if the index says that they do not.
    pub(super) fn partial(&self) -> Option<R32> {
        match &self.walk {
            Walk::Listed(listed) => Some(listed.partial),
            _ => None,
        }
    }

    /// The block diagonals, if the pattern has any.
    pub(super) fn diagonals(&self) -> Option<&Diagonals> {
        match &self.walk {
            Walk::Diagonals(diagonals) => Some(diagonals),
            _ => None,
        }
    }

    /// Goes to the next block.
    pub(super) fn advance(&self, k: &mut Builder, problem: &Problem) {
        match &self.walk {
            Walk::Down { gap } => {
                let lower = k.sub(self.next, 1u32);
                k.set(self.next, lower);
                if let Some(gap) = gap {
                    gap.skip(k, self.next);
                }
            }
            Walk::Diagonals(diagonals) => diagonals.advance(k, self.next),
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

/// The block diagonals that a vertical-slash index selects for this row block.
///
/// With c key blocks a row block, distance e = (last key block of the row block) − b. Key block b is visited if one of the
/// bits e − c + 1 to e of the bitmap is set: the row block visits what any of its parts would.
pub(super) struct Diagonals {
    bitmap: R64,
    /// Key blocks a row block.
    parts: u32,
    /// Last key block of the row block, past the keys perhaps; signed.
    top: R32,
    /// Word of the bitmap that is scanned.
    word: R32,
    last_word: R32,
    /// That word as it is stored, for the next one's first bits.
    stored: R32,
    /// Distances of that word that are still to be visited.
    bits: R32,
}

impl Diagonals {
    fn new(k: &mut Builder, problem: &Problem) -> Diagonals {
        let PatternParameters::Columns { diagonals, diagonals_batch, diagonals_head, .. } = problem.pattern else {
            unreachable!("only the vertical-slash pattern has diagonals")
        };
        let tiling = problem.tiling;
        let parts = tiling.rows / tiling.keys;
        let bitmap = address(k, diagonals, [(problem.batch, diagonals_batch), (problem.slot, diagonals_head)]);
        let after = k.mad(problem.row_block, parts, parts);
        let top = k.sub(after, 1u32);
        let zero = k.mov(0u32);
        let this = Diagonals {
            bitmap,
            parts,
            top,
            word: k.mov(0u32),
            last_word: k.shr_s(top, 5u32),
            stored: k.load_readonly(bitmap, 0),
            bits: k.fresh(),
        };
        let visited = this.visited(k, this.stored, zero);
        // The row block's last key blocks may lie past the keys.
        let last_key = k.sub(problem.kv_len, 1u32);
        let last_block = k.shr_s(last_key, tiling.keys.ilog2());
        let missing = k.sub(top, last_block);
        let missing = k.max_s(missing, 0u32);
        let all = k.mov(u32::MAX);
        let exist = k.shl(all, missing);
        let bits = k.and(visited, exist);
        k.set(this.bits, bits);
        this
    }

    /// Distances visited, of one word, given the word before it.
    fn visited(&self, k: &mut Builder, word: R32, before: R32) -> R32 {
        (1..self.parts).fold(word, |visited, part| {
            let shifted = k.funnel_left(before, word, part);
            k.or(visited, shifted)
        })
    }

    /// Puts the next block into `next`.
    fn advance(&self, k: &mut Builder, next: R32) {
        k.while_loop(
            |k| {
                let empty = k.eq(self.bits, 0u32);
                let words = k.lt_s(self.word, self.last_word);
                k.and_p(empty, words)
            },
            |k| {
                let word = k.add(self.word, 1u32);
                k.set(self.word, word);
                let at = k.mad_wide(word, 4u32, self.bitmap);
                let stored: R32 = k.load_readonly(at, 0);
                let visited = self.visited(k, stored, self.stored);
                k.set(self.bits, visited);
                k.set(self.stored, stored);
            },
        );
        // Without a bit the distance is past the last word, and the block negative.
        let reversed = k.brev(self.bits);
        let bit = k.clz(reversed);
        let distance = k.mad(self.word, 32u32, bit);
        let block = k.sub(self.top, distance);
        k.set(next, block);
        let less = k.sub(self.bits, 1u32);
        let rest = k.and(self.bits, less);
        k.set(self.bits, rest);
    }

    /// Whether key block `block`, at or before the row block's last, is visited. `inside` guards the loads.
    pub(super) fn visits(&self, k: &mut Builder, block: R32, inside: RP) -> RP {
        let distance = k.sub(self.top, block);
        let word = k.shr_u(distance, 5u32);
        let at = k.mad_wide(word, 4u32, self.bitmap);
        let (here, before) = (k.mov(0u32), k.mov(0u32));
        k.when(inside, |k| {
            let stored: R32 = k.load_readonly(at, 0);
            k.set(here, stored);
        });
        if self.parts > 1 {
            let later = k.gt_u(word, 0u32);
            let both = k.and_p(inside, later);
            k.when(both, |k| {
                let stored: R32 = k.load_readonly(at, -4);
                k.set(before, stored);
            });
        }
        // The bit of this distance moves to the top, those just before it below.
        let bit = k.and(distance, 31u32);
        let last = k.mov(31u32);
        let up = k.sub(last, bit);
        let window = k.funnel_left(before, here, up);
        let window = k.shr_u(window, 32 - self.parts);
        k.ne(window, 0u32)
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

impl Listed {
    fn new(k: &mut Builder, problem: &Problem, shift: u32) -> Listed {
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
        } = problem.pattern
        else {
            unreachable!("only the block-sparse pattern has lists")
        };
        let blocks_of = |k: &mut Builder, length: R32| {
            let padded = k.add(length, (1 << shift) - 1);
            k.shr_u(padded, shift)
        };
        let (key_blocks, max_key_blocks) = (blocks_of(k, problem.kv_len), blocks_of(k, problem.max_kv));
        let row = k.mul_wide(problem.row_block, 4u32);
        let counts = [(problem.batch, counts_batch), (problem.slot, counts_head)];
        let indices = [(problem.batch, indices_batch), (problem.slot, indices_head), (problem.row_block, indices_row)];
        let some_keys = k.gt_u(problem.kv_len, 0u32);
        let mut list = |counts_base: R64, indices_base: R64, capacity: R32| {
            let given = k.ne(counts_base, 0u64);
            let given = k.and_p(given, some_keys);
            let at = address(k, counts_base, counts);
            let at = k.add(at, row);
            let count = k.mov(0u32);
            k.when(given, |k| {
                let entries: R32 = k.load_readonly(at, 0);
                k.set(count, entries);
            });
            let most = k.min_u(capacity, max_key_blocks);
            let count = problem.list_length(k, count, most);
            (count, address(k, indices_base, indices))
        };
        let (partial_count, partial_entries) = list(partial_counts, partial_indices, partial_capacity);
        let (full_count, full_entries) = list(full_counts, full_indices, full_capacity);
        // Entry i of the whole is entry i − partial_count of the full list.
        let skipped = k.mul_wide(partial_count, 4u32);
        let listed = Listed {
            partial_entries,
            full_entries: k.sub(full_entries, skipped),
            partial_count,
            count: k.add(partial_count, full_count),
            ahead: k.mov(0u32),
            position: k.mov(0u32),
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
        k.when(exists, |k| {
            let entry: R32 = k.load_readonly(at, 0);
            k.set(self.ahead, entry);
        });
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
