//! Weights of a segment's logits: their sums, and a draw by them.

use super::{LINE, Noted, Segment, UNROLLED, VECTOR, VECTORS, negative_infinity};
use crate::{
    isa::{B16, B32, Builder, Cache, F32, R32, R64, RF, RP, Source},
    kernels::sampling::{
        layout::SegmentRecord,
        logits::has,
        merge::{crossing, target},
    },
    tile::reduce::{warp_inclusive_sum_f, warp_sums_f},
};
use std::mem::offset_of;

/// Far enough below the largest logit, in powers of two, to weigh nothing.
const NOTHING: f32 = -1024.0;

/// Sums of weights over a segment but for its best token.
#[derive(Clone, Copy)]
pub(in crate::kernels::sampling) struct Sums {
    /// Of the four that the record has, in their order there, number i in lanes 8 i to 8 i + 7.
    shared_out: RF,
}

impl Sums {
    /// Adds up what lanes have of Σ w and Σ w log2 w, and takes the common factor away: raw, tempered, the surprise of each.
    fn new(k: &mut Builder, of_lane: [RF; 4], [plain, warm]: [Exponents; 2]) -> Sums {
        let sum = warp_sums_f(k, of_lane);
        let lane = k.lane();
        let [tempered, surprise] = [8, 16].map(|bit| has(k, lane, bit));
        let error = k.select(tempered, warm.error, plain.error);
        let opposite = k.neg_f(error);
        let factor = k.exp2_f(opposite);
        let weight = k.shuffle_xor(sum, 16);
        let moved = k.fma(opposite, weight, sum);
        let sum = k.select(surprise, moved, sum);
        Sums { shared_out: k.mul_f(sum, factor) }
    }

    /// That of the tempered weights, in every lane.
    pub(in crate::kernels::sampling) fn tempered(self, k: &mut Builder) -> RF {
        k.shuffle_from(self.shared_out, 8u32)
    }

    /// Writes its part of the segment's record.
    pub(in crate::kernels::sampling) fn write(self, k: &mut Builder, record: R64) {
        let lane = k.lane();
        let others = k.and(lane, 7u32);
        let writes = k.eq(others, 0u32);
        let offset = k.shr_u(lane, 1u32);
        let offset = k.widen_u(offset);
        let at = k.add(record, offset);
        k.when(writes, |k| k.store(at, offset_of!(SegmentRecord, excess) as i64, self.shared_out));
    }
}

/// A sum of w log2 w besides one of weights: NaN where a logit is −∞, unless that is looked for.
#[derive(Clone, Copy)]
struct Surprise {
    sum: RF,
    careful: bool,
}

/// What logits of a segment are taken relative to: its largest, or 0 if that is −∞, so that nothing is −∞ − −∞.
#[derive(Clone, Copy)]
pub(in crate::kernels::sampling) struct Reference {
    max: RF,
    /// The largest scale that goes with it.
    most: RF,
}

/// Base-2 exponents of weights, (l − max) · scale, as one product and sum: l · scale − c.
///
/// c is max · scale rounded, so that all weights have the factor 2^`error` in common, which the sums lose in the end: the error
/// is known exactly. A scale so large that it would be no small number is cut, which changes no weight above 2⁻⁶⁴.
#[derive(Clone, Copy)]
pub(in crate::kernels::sampling) struct Exponents {
    pub(super) scale: RF,
    shift: RF,
    pub(super) error: RF,
}

impl Reference {
    pub(in crate::kernels::sampling) fn new(k: &mut Builder, max: RF) -> Reference {
        let empty = k.eq_f(max, f32::NEG_INFINITY);
        let max = k.select(empty, 0.0f32, max);
        let size = k.abs_f(max);
        let size = k.mul_f(size, 1.0 / (1u32 << 30) as f32);
        Reference { max, most: k.rcp_f(size) }
    }

    /// Exponents by a scale above 0.
    pub(in crate::kernels::sampling) fn exponents(self, k: &mut Builder, scale: impl Into<Source<F32>>) -> Exponents {
        let scale = k.min_f(self.most, scale);
        let product = k.mul_f(self.max, scale);
        let shift = k.neg_f(product);
        let error = k.fma(self.max, scale, shift);
        Exponents { scale, shift, error }
    }

    /// A number that weighs nothing by this scale, or any larger one, and mostly a finite one.
    pub(in crate::kernels::sampling) fn nothing(self, k: &mut Builder, scale: RF) -> RF {
        let size = k.abs_f(self.max);
        let unit = k.rcp_f(scale);
        let below = k.mul_f(unit, NOTHING);
        k.fma(size, -3.0f32, below)
    }
}

impl Exponents {
    fn of(self, k: &mut Builder, logit: RF) -> RF {
        k.fma(logit, self.scale, self.shift)
    }
}

impl Segment {
    /// Sums of the weights relative to the largest logit. Where it does not `temper`, the tempered sum is the raw one; what nobody
    /// asks for of the surprise of the raw weights (`surprised`) and of the tempered ones (`entropic`) is 0. For a draw the tempered sum of each vector is left in `notes`; else the
    /// vectors that stand there may be all that count at the temperature.
    pub(in crate::kernels::sampling) fn weigh(
        self,
        k: &mut Builder,
        [plain, warm]: [Exponents; 2],
        (surprised, tempers, entropic): (RP, RP, RP),
        (draws, notes): (RP, R32),
        near: &Noted,
    ) -> Sums {
        let [raw, tempered, surprise, tempered_surprise] = [(); 4].map(|()| k.mov::<F32>(0.0f32));
        let of_plain = |careful| Some(Surprise { sum: surprise, careful });
        k.if_else(
            surprised,
            |k| {
                self.sum(k, plain, of_plain(false), (draws, notes), raw);
                // −∞ times its weight of 0, where there is one: mostly there is none.
                let none = k.ne_f(surprise, surprise);
                let none = k.any(none);
                k.if_then(none, |k| self.sum(k, plain, of_plain(true), (draws, notes), raw));
            },
            |k| self.sum(k, plain, None, (draws, notes), raw),
        );
        let further = k.or_p(tempers, entropic);
        k.if_else(
            further,
            |k| {
                let of_warm = Surprise { sum: tempered_surprise, careful: true };
                let all = k.eq_f(near.below, f32::INFINITY);
                k.if_else(
                    all,
                    |k| {
                        k.if_else(
                            entropic,
                            |k| self.sum(k, warm, Some(of_warm), (draws, notes), tempered),
                            |k| self.sum(k, warm, None, (draws, notes), tempered),
                        );
                    },
                    |k| self.sum_noted(k, warm, (near.count, notes), tempered),
                );
            },
            |k| k.set(tempered, raw),
        );
        Sums::new(k, [raw, tempered, surprise, tempered_surprise], [plain, warm])
    }

    /// This lane's sum of weights, and of their surprise; for a draw that of each vector too.
    fn sum(
        self,
        k: &mut Builder,
        exponents: Exponents,
        surprise: Option<Surprise>,
        (draws, notes): (RP, R32),
        sum: RF,
    ) {
        k.set(sum, 0.0f32);
        if let Some(surprise) = surprise {
            k.set(surprise.sum, 0.0f32);
        }
        let pass = |k: &mut Builder, notes| self.for_vectors(k, exponents, surprise, notes, sum);
        k.if_else(draws, |k| pass(k, Some(notes)), |k| pass(k, None));
    }

    fn for_vectors(
        self,
        k: &mut Builder,
        exponents: Exponents,
        surprise: Option<Surprise>,
        notes: Option<R32>,
        sum: RF,
    ) {
        let at = self.own(k);
        let note = notes.map(|notes| {
            let lane = k.lane();
            k.mad(lane, 4u32, notes)
        });
        let unrolled = if surprise.is_some_and(|surprise| surprise.careful) { 1 } else { UNROLLED };
        k.for_loop(0u32, VECTORS, unrolled, |k, _| {
            for j in 0..unrolled {
                let words = Segment::vector(k, at, j);
                let of_vector = self.weights(k, exponents, surprise, &words);
                if let Some(note) = note {
                    k.store(note, i64::from(4 * 32 * j), of_vector);
                }
                let next = k.add_f(sum, of_vector);
                k.set(sum, next);
            }
            let next = k.add(at, unrolled * LINE);
            k.set(at, next);
            if let Some(note) = note {
                let next = k.add(note, 4 * 32 * unrolled);
                k.set(note, next);
            }
        });
    }

    /// The sum of the weights of a vector; that of their surprise is added to what there is.
    fn weights(self, k: &mut Builder, exponents: Exponents, surprise: Option<Surprise>, words: &[R32]) -> RF {
        let mut of_surprise = surprise.map(|surprise| surprise.sum);
        let mut weights = Vec::new();
        for logit in self.floats(k, words) {
            let mut exponent = exponents.of(k, logit);
            if surprise.is_some_and(|surprise| surprise.careful) {
                exponent = k.max_f(exponent, NOTHING);
            }
            let weight = k.exp2_f(exponent);
            of_surprise = of_surprise.map(|sum| k.fma(weight, exponent, sum));
            weights.push(weight);
        }
        if let (Some(surprise), Some(next)) = (surprise, of_surprise) {
            k.set(surprise.sum, next);
        }
        weights.into_iter().reduce(|a, b| k.add_f(a, b)).expect("a vector holds logits")
    }

    /// Adds the weights of the `count` noted vectors to this lane's sum: a vector a lane, in the order of the notes.
    fn sum_noted(self, k: &mut Builder, exponents: Exponents, (count, notes): (R32, R32), sum: RF) {
        let lane = k.lane();
        k.for_loop(lane, count, 32, |k, index| {
            let at = self.noted(k, notes, index);
            let words = Segment::vector(k, at, 0);
            let of_vector = self.weights(k, exponents, None, &words);
            let next = k.add_f(sum, of_vector);
            k.set(sum, next);
        });
    }

    /// Draws a token by the weights whose sums [`Segment::weigh`] left in `notes`: its id and its logit, if any has weight.
    pub(in crate::kernels::sampling) fn draw(
        self,
        k: &mut Builder,
        warm: Exponents,
        notes: R32,
        uniform: R32,
    ) -> (R32, RF) {
        k.comment("a draw from the segment");
        let lane = k.lane();
        // Notes stand in the order of ids: neighbouring ones are one lane's here.
        let at = k.mad(lane, 4 * VECTORS, notes);
        let sums: Vec<RF> = (0..VECTORS / 4)
            .flat_map(|i| k.load_vector::<F32, B32, 4>(at, i64::from(VECTOR * i), Cache::Default))
            .collect();
        let own = sums.iter().copied().reduce(|a, b| k.add_f(a, b)).expect("a lane has vectors");
        let through = warp_inclusive_sum_f(k, own);
        let total = k.shuffle_from(through, 31u32);
        let point = target(k, total, uniform);
        let (hit, _) = crossing(k, through, own, point);
        let before = k.sub_f(through, own);
        let point = k.sub_f(point, before);
        let point = k.max_f(point, 0.0f32);
        let first = k.mul(lane, VECTORS);
        let (vector, rest, before) = (k.mov(first), k.mov(point), k.mov::<F32>(0.0f32));
        for (i, &sum) in (0u32..).zip(&sums) {
            let open = is_open(k, before, point, sum);
            let id = k.add(first, i);
            let left = k.sub_f(point, before);
            k.when(open, |k| {
                k.set(vector, id);
                k.set(rest, left);
            });
            let next = k.add_f(before, sum);
            k.set(before, next);
        }
        let vector = k.shuffle_from(vector, hit);
        let rest = k.shuffle_from(rest, hit);

        let run = VECTOR / self.bytes();
        let first = k.mul(vector, run);
        let place = k.add(first, lane);
        let inside = k.lt_u(lane, run);
        let at = k.mad(place, self.bytes(), self.address);
        let logit = match self.packed {
            Some(kind) => {
                let half = k.mov::<B16>(negative_infinity(self.packed) as u16);
                k.when(inside, |k| k.load_into(half, at, 0, Cache::Default));
                k.float_from_half(kind, half)
            }
            None => {
                let logit = k.mov::<F32>(f32::NEG_INFINITY);
                k.when(inside, |k| k.load_into(logit, at, 0, Cache::Default));
                logit
            }
        };
        let exponent = warm.of(k, logit);
        let weight = k.exp2_f(exponent);
        let through = warp_inclusive_sum_f(k, weight);
        let (hit, _) = crossing(k, through, weight, rest);
        let logit = k.shuffle_from(logit, hit);
        let place = k.add(first, hit);
        (self.token(k, place), k.add_f(logit, 0.0))
    }
}

/// Whether an inverted sum may end at a weight, with `before` in front of it.
fn is_open(k: &mut Builder, before: RF, point: RF, weight: RF) -> RP {
    let open = k.le_f(before, point);
    let some = k.gt_f(weight, 0.0);
    k.and_p(open, some)
}
