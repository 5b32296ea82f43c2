//! Notes of a warp: which vectors of its segment have logits above a bound.

use super::{Exponents, LINE, SEGMENT_BYTES, Segment, VECTOR, VECTORS, unpack};
use crate::{
    isa::{Builder, Cache, MmaType, R32, RF, RP},
    kernels::sampling::logits::has,
    tile::{
        ballot::running_rank,
        order::{from_order_key, order_key},
        reduce::warp_inclusive_sum_32,
    },
};

/// Far enough below it that nobody misses the weight: of a whole segment of such tokens 2⁻²¹ of the best one's.
const NEGLIGIBLE: f32 = -32.0;
/// Vectors that are few: they take a warp five turns, where all of them would take eight.
const NEAR: u32 = 160;

/// Vectors that stand in a warp's notes, by their offsets: those with a logit above `below`, in the order of lanes.
pub(in crate::kernels::sampling) struct Noted {
    /// ∞: none are noted.
    pub(super) below: RF,
    pub(in crate::kernels::sampling) count: R32,
}

impl Noted {
    pub(in crate::kernels::sampling) fn none(k: &mut Builder) -> Noted {
        Noted { below: k.mov(f32::INFINITY), count: k.mov(0u32) }
    }
}

impl Segment {
    /// A number of the logits' type below `bound`, or not above it in single precision, but not by much.
    pub(in crate::kernels::sampling) fn below(self, k: &mut Builder, bound: RF) -> RF {
        match self.packed {
            None => bound,
            Some(kind) => {
                let key = order_key(k, bound);
                let unused = if kind == MmaType::Bf16 { 16 } else { 13 };
                let key = k.and(key, u32::MAX << unused);
                let floor = from_order_key(k, key);
                k.max_f(floor, f32::NEG_INFINITY)
            }
        }
    }

    /// A word that [`Segment::exceeds`] compares with.
    fn pattern(self, k: &mut Builder, below: RF) -> R32 {
        match self.packed {
            Some(kind) => k.pack_halves(kind, below, below),
            None => k.bits(below),
        }
    }

    /// Whether something in these words is above what is in another one.
    fn exceeds(self, k: &mut Builder, words: [R32; 4], below: R32) -> RP {
        match self.packed {
            Some(_) => {
                let [a, b, c, d] = words;
                let larger = self.fold(k, &[a, b, c, d, below], false);
                k.ne(larger, below)
            }
            None => {
                let all = self.fold(k, &words, false);
                let [all, below] = [all, below].map(|word| k.from_bits(word));
                k.gt_f(all, below)
            }
        }
    }

    /// Notes the vectors with a logit above `below`, which is from [`Segment::below`], unless they are more than `most`. Says how many they
    /// are.
    fn note(self, k: &mut Builder, below: RF, most: u32, notes: R32) -> R32 {
        let (own, pattern) = (self.own(k), self.pattern(k, below));
        let lines = k.mov(0u32);
        for j in 0..VECTORS {
            let words = Segment::vector(k, own, j);
            let some = self.exceeds(k, words, pattern);
            let with = k.or(lines, 1u32 << j);
            k.when(some, |k| k.set(lines, with));
        }
        let count = k.popc(lines);
        let through = warp_inclusive_sum_32(k, count);
        let all = k.shuffle_from(through, 31u32);
        let before = k.sub(through, count);
        let at = k.mad(before, 4u32, notes);
        let at = k.mov(at);
        let first = k.sub(own, self.address);
        let few = k.le_u(all, most);
        k.if_then(few, |k| {
            for j in 0..VECTORS {
                let noted = has(k, lines, 1 << j);
                let offset = k.add(first, j * LINE);
                let next = k.add(at, 4u32);
                k.when(noted, |k| {
                    k.store(at, 0, offset);
                    k.set(at, next);
                });
            }
        });
        all
    }

    /// Notes the vectors whose weights count, if they are few; for what comes behind a barrier.
    pub(in crate::kernels::sampling) fn note_near(
        self,
        k: &mut Builder,
        exponents: Exponents,
        max: RF,
        notes: R32,
        near: &Noted,
    ) {
        k.comment("vectors that count at the temperature");
        let unit = k.rcp_f(exponents.scale);
        let bound = k.fma(unit, NEGLIGIBLE, max);
        let size = k.abs_f(max);
        let bound = below_by_rounding(k, bound, size);
        let below = self.below(k, bound);
        let count = self.note(k, below, NEAR, notes);
        let few = k.le_u(count, NEAR);
        k.when(few, |k| {
            k.set(near.below, below);
            k.set(near.count, count);
        });
    }

    /// Notes the vectors with a logit above `below`, which is from [`Segment::below`]: by those that are noted already, if it is no
    /// lower than what they are above.
    pub(in crate::kernels::sampling) fn note_above(self, k: &mut Builder, below: RF, notes: R32, noted: &Noted) {
        let known = k.ge_f(below, noted.below);
        k.if_else(
            known,
            |k| self.sift(k, below, notes, noted),
            |k| {
                let count = self.note(k, below, SEGMENT_BYTES / VECTOR, notes);
                k.set(noted.count, count);
            },
        );
        k.set(noted.below, below);
        k.warp_barrier();
    }

    /// Leaves of the noted vectors those with a logit above `below`.
    fn sift(self, k: &mut Builder, below: RF, notes: R32, noted: &Noted) {
        k.comment("noted vectors once more");
        let (lane, lower) = (k.lane(), k.lanes_below());
        let pattern = self.pattern(k, below);
        let (kept, count) = (k.mov(0u32), k.mov(noted.count));
        k.for_loop(0u32, count, 32, |k, first| {
            let index = k.add(first, lane);
            let inside = k.lt_u(index, count);
            let at = k.mov(self.address);
            k.if_then(inside, |k| {
                let noted = self.noted(k, notes, index);
                k.set(at, noted);
            });
            let words = Segment::vector(k, at, 0);
            let some = self.exceeds(k, words, pattern);
            let some = k.and_p(some, inside);
            let number = running_rank(k, some, lower, kept);
            // All have read the notes in whose place others come.
            k.warp_barrier();
            let to = k.mad(number, 4u32, notes);
            let offset = k.sub(at, self.address);
            k.when(some, |k| k.store(to, 0, offset));
        });
        k.set(noted.count, kept);
    }

    /// Address of a noted vector.
    pub(super) fn noted(self, k: &mut Builder, notes: R32, index: R32) -> R32 {
        let note = k.mad(index, 4u32, notes);
        let offset: R32 = k.load(note, 0);
        k.add(offset, self.address)
    }

    /// Runs `body` for the tokens of the `count` noted vectors, in all lanes at once: whether this lane's has a logit above
    /// `below`, its place and its logit.
    pub(in crate::kernels::sampling) fn for_each_noted(
        self,
        k: &mut Builder,
        below: RF,
        (notes, count): (R32, R32),
        body: impl Fn(&mut Builder, RP, R32, RF),
    ) {
        let lane = k.lane();
        // A lane has a word.
        let (vector, word) = (k.shr_u(lane, 2u32), k.and(lane, 3u32));
        let word = k.shl(word, 2u32);
        k.for_loop(0u32, count, 8, |k, first| {
            let index = k.add(first, vector);
            let inside = k.lt_u(index, count);
            let note = k.mad(index, 4u32, notes);
            let offset = k.mov(0u32);
            k.when(inside, |k| k.load_into(offset, note, 0, Cache::Default));
            let offset = k.add(offset, word);
            let at = k.add(offset, self.address);
            let word: R32 = k.load(at, 0);
            let place = k.shr_u(offset, self.bytes().ilog2());
            for (i, value) in (0u32..).zip(unpack(k, self.packed, word)) {
                let above = k.gt_f(value, below);
                let above = k.and_p(above, inside);
                let place = k.add(place, i);
                let value = k.add_f(value, 0.0);
                body(k, above, place, value);
            }
        });
    }
}

/// A logit a little lower than another one, by what numbers of this size lose in a few operations.
pub(in crate::kernels::sampling) fn below_by_rounding(k: &mut Builder, logit: RF, size: RF) -> RF {
    let slack = k.fma(size, 1.0 / 262_144.0, 1.0 / 8_388_608.0);
    k.sub_f(logit, slack)
}
