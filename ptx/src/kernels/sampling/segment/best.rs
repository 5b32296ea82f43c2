//! The best token of a segment, apart: its weight is 1, and what the others add may be far less than that has digits for.

use super::{Exponents, LINE, Segment, VECTOR, unpack};
use crate::{
    isa::{Builder, R32, RF},
    tile::order::{from_order_key, order_key},
};

/// The best token of a segment, taken out of it.
pub(in crate::kernels::sampling) struct Best {
    /// Its place in the segment, of several the lowest; `u32::MAX` if there is none.
    place: R32,
    /// The largest of the other logits.
    pub(in crate::kernels::sampling) second: RF,
}

impl Segment {
    pub(in crate::kernels::sampling) fn best_token(self, k: &mut Builder, best: &Best) -> R32 {
        let token = self.token(k, best.place);
        let none = k.eq(best.place, u32::MAX);
        k.select(none, u32::MAX, token)
    }

    /// Takes the best token out of the segment, so that sums over the others lose nothing beside its weight of 1: `nothing` stands
    /// there instead. `own` is the largest logit of each lane, `max` that of the segment.
    pub(in crate::kernels::sampling) fn take_best(self, k: &mut Builder, own: RF, max: RF, nothing: RF) -> Best {
        k.comment("the best token");
        let lane = k.lane();
        let here = k.eq_f(own, max);
        let some = k.gt_f(max, f32::NEG_INFINITY);
        let here = k.and_p(here, some);
        let lanes = k.ballot(here);
        // All lanes look at one lane's logits: mostly no other has one as good.
        let place = k.mov(u32::MAX);
        let holder = first_lane(k, lanes);
        let holder = k.and(holder, 31u32);
        let (first, word) = self.word_of(k, holder);
        let (holder, first, word) = (k.mov(holder), k.mov(first), k.mov(word));
        self.find(k, max, (first, word), place);
        let others = without_first_lane(k, lanes);
        let tied = k.ne(others, 0u32);
        k.if_then(tied, |k| {
            let others = k.mov(others);
            k.while_loop(
                |k| k.ne(others, 0u32),
                |k| {
                    let next = first_lane(k, others);
                    let seen = self.word_of(k, next);
                    self.find(k, max, seen, place);
                    let rest = without_first_lane(k, others);
                    k.set(others, rest);
                },
            );
            let lowest = k.warp_min_u(place);
            let vector = k.shr_u(lowest, (VECTOR / self.bytes()).ilog2());
            let lane = k.and(vector, 31u32);
            k.set(holder, lane);
            let seen = self.word_of(k, lane);
            k.set(first, seen.0);
            k.set(word, seen.1);
        });
        let lowest = k.warp_min_u(place);
        let lowest = k.select(some, lowest, u32::MAX);
        // What else its lane holds.
        let within = k.sub(lowest, first);
        let held = k.eq(lane, holder);
        let mut second = k.select(held, f32::NEG_INFINITY, own);
        for (i, value) in (0u32..).zip(unpack(k, self.packed, word)) {
            let best = k.eq(within, i);
            let value = k.select(best, f32::NEG_INFINITY, value);
            second = k.max_f(second, value);
        }
        let second = k.add_f(second, 0.0);
        let key = order_key(k, second);
        let key = k.warp_max_u(key);
        // All have read what stood there.
        k.warp_barrier();
        let leader = k.eq(lane, 0u32);
        let takes = k.and_p(leader, some);
        self.put(k, takes, lowest, nothing);
        k.warp_barrier();
        Best { place: lowest, second: from_order_key(k, key) }
    }

    /// A word for each lane of those that lane `holder` has: the place of its first logit, and the word.
    fn word_of(self, k: &mut Builder, holder: R32) -> (R32, R32) {
        let lane = k.lane();
        let (line, word) = (k.shr_u(lane, 2u32), k.and(lane, 3u32));
        let offset = k.mul(line, LINE);
        let offset = k.mad(word, 4u32, offset);
        let offset = k.mad(holder, VECTOR, offset);
        let first = k.shr_u(offset, self.bytes().ilog2());
        let at = k.add(offset, self.address);
        (first, k.load(at, 0))
    }

    /// Lowers `place` to that of the first logit in a word that equals `max`.
    fn find(self, k: &mut Builder, max: RF, (first, word): (R32, R32), place: R32) {
        for (i, value) in (0u32..).zip(unpack(k, self.packed, word)) {
            let found = k.eq_f(value, max);
            let candidate = k.add(first, i);
            let candidate = k.min_u(place, candidate);
            k.when(found, |k| k.set(place, candidate));
        }
    }

    /// Undoes [`Segment::take_best`], in the sums of a draw too.
    pub(in crate::kernels::sampling) fn put_back(
        self,
        k: &mut Builder,
        best: &Best,
        max: RF,
        drawing: Option<(Exponents, R32)>,
    ) {
        // The others have read their logits, and left their notes.
        k.warp_barrier();
        let lane = k.lane();
        let leader = k.eq(lane, 0u32);
        let some = k.ne(best.place, u32::MAX);
        let puts = k.and_p(leader, some);
        self.put(k, puts, best.place, max);
        k.if_then(puts, |k| {
            if let Some((exponents, notes)) = drawing {
                let offset = k.mul(best.place, self.bytes());
                let vector = k.shr_u(offset, VECTOR.ilog2());
                let at = k.mad(vector, 4u32, notes);
                let sum: RF = k.load(at, 0);
                let own = k.exp2_f(exponents.error);
                let sum = k.add_f(sum, own);
                k.store(at, 0, sum);
            }
        });
        k.warp_barrier();
    }
}

/// The lowest of some lanes, 32 if there is none; and the others.
fn first_lane(k: &mut Builder, lanes: R32) -> R32 {
    let reversed = k.brev(lanes);
    k.clz(reversed)
}

fn without_first_lane(k: &mut Builder, lanes: R32) -> R32 {
    let below = k.sub(lanes, 1u32);
    k.and(lanes, below)
}
