//! A segment of a row: the logits that one warp holds in shared memory, and what it does with them there.
//!
//! Each logit is read once from global memory, by copies that are on their way while the segment before is computed. A lane
//! reads mostly what it has copied itself; logits lie in order, so that any lane finds any token. The largest logit is known
//! before any exponential is taken, so nothing is ever rescaled. Halves stay packed, two a word: maxima are taken of two at once.

use super::{
    layout::SegmentRecord,
    logits::{Guide, clean, has},
    merge::{crossing, target},
    spec::{LogitsType, SamplerSpec},
};
use crate::{
    isa::{B16, B32, Builder, Cache, F32, MmaType, R32, R64, RF, RP, Source},
    tile::{
        order::{from_order_key, order_key},
        reduce::{warp_inclusive_sum_32, warp_inclusive_sum_f, warp_sums_f},
    },
};
use std::mem::offset_of;

/// Bytes of one load or copy, and of a warp's.
pub(super) const VECTOR: u32 = 16;
const LINE: u32 = 32 * VECTOR;
/// Vectors of a lane.
const VECTORS: u32 = 8;
/// Vectors of a turn: more would take registers, fewer cost more of the loop.
const UNROLLED: u32 = 4;

/// Bytes of a segment in shared memory.
pub(super) const SEGMENT_BYTES: u32 = VECTORS * LINE;

/// Bytes that [`Segment::weigh`] needs for [`Segment::draw`]: a sum for each vector. [`Segment::note_above`] needs as many.
pub(super) const NOTES_BYTES: u32 = 4 * SEGMENT_BYTES / VECTOR;

/// Far enough below the largest logit, in powers of two, to weigh nothing.
const NOTHING: f32 = -1024.0;

/// Far enough below it that nobody misses the weight: of a whole segment of such tokens 2⁻²¹ of the best one's.
const NEGLIGIBLE: f32 = -32.0;
/// Vectors that are few: they take a warp five turns, where all of them would take eight.
const NEAR: u32 = 160;

impl SamplerSpec {
    /// Tokens of a segment: what one warp reads at once, and the first number of a draw chooses among.
    pub const fn segment(&self) -> u32 {
        if self.guided { SEGMENT_BYTES / 4 } else { SEGMENT_BYTES / self.dtype.bytes() }
    }
}

/// The logits of one warp.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    packed: Option<MmaType>,
    largest: f32,
    /// Where in shared memory its first logit lies. The others follow; −∞ where there is no token.
    address: R32,
    /// First token.
    start: R32,
}

/// The best token of a segment, taken out of it.
pub(super) struct Best {
    /// Its place in the segment, of several the lowest; `u32::MAX` if there is none.
    place: R32,
    /// The largest of the other logits.
    pub(super) second: RF,
}

/// Sums of weights over a segment but for its best token.
#[derive(Clone, Copy)]
pub(super) struct Sums {
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
    pub(super) fn tempered(self, k: &mut Builder) -> RF {
        k.shuffle_from(self.shared_out, 8u32)
    }

    /// Writes its part of the segment's record.
    pub(super) fn write(self, k: &mut Builder, record: R64) {
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

/// Vectors that stand in a warp's notes, by their offsets: those with a logit above `below`, in the order of lanes.
pub(super) struct Noted {
    /// ∞: none are noted.
    below: RF,
    pub(super) count: R32,
}

impl Noted {
    pub(super) fn none(k: &mut Builder) -> Noted {
        Noted { below: k.mov(f32::INFINITY), count: k.mov(0u32) }
    }
}

/// What logits of a segment are taken relative to: its largest, or 0 if that is −∞, so that nothing is −∞ − −∞.
#[derive(Clone, Copy)]
pub(super) struct Reference {
    max: RF,
    /// The largest scale that goes with it.
    most: RF,
}

/// Base-2 exponents of weights, (l − max) · scale, as one product and sum: l · scale − c.
///
/// c is max · scale rounded, so that all weights have the factor 2^`error` in common, which the sums lose in the end: the error
/// is known exactly. A scale so large that it would be no small number is cut, which changes no weight above 2⁻⁶⁴.
#[derive(Clone, Copy)]
pub(super) struct Exponents {
    scale: RF,
    shift: RF,
    error: RF,
}

impl Reference {
    pub(super) fn new(k: &mut Builder, max: RF) -> Reference {
        let empty = k.eq_f(max, f32::NEG_INFINITY);
        let max = k.select(empty, 0.0f32, max);
        let size = k.abs_f(max);
        let size = k.mul_f(size, 1.0 / (1u32 << 30) as f32);
        Reference { max, most: k.rcp_f(size) }
    }

    /// Exponents by a scale above 0.
    pub(super) fn exponents(self, k: &mut Builder, scale: impl Into<Source<F32>>) -> Exponents {
        let scale = k.min_f(self.most, scale);
        let product = k.mul_f(self.max, scale);
        let shift = k.neg_f(product);
        let error = k.fma(self.max, scale, shift);
        Exponents { scale, shift, error }
    }

    /// A number that weighs nothing by this scale, or any larger one, and mostly a finite one.
    pub(super) fn nothing(self, k: &mut Builder, scale: RF) -> RF {
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

fn negative_infinity(packed: Option<MmaType>) -> u32 {
    match packed {
        Some(MmaType::Bf16) => 0xFF80_FF80,
        Some(MmaType::F16) => 0xFC00_FC00,
        None => f32::NEG_INFINITY.to_bits(),
    }
}

/// Loads a lane's vector of tokens from `id` on: at once where that is possible, token by token at a ragged end.
fn load_vector(k: &mut Builder, dtype: LogitsType, row: R64, id: R32, vocab: R32, aligned: RP) -> [R32; 4] {
    let packed = dtype.packed();
    let bytes = dtype.bytes();
    let words = [(); 4].map(|()| k.mov::<B32>(negative_infinity(packed)));
    let address = k.mad_wide(id, bytes, row);
    let end = k.add(id, VECTOR / bytes);
    let whole = k.le_u(end, vocab);
    let whole = k.and_p(whole, aligned);
    k.when(whole, |k| {
        k.load_vector_into(words, address, 0, Cache::ReadOnly);
    });
    let some = k.lt_u(id, vocab);
    let ragged = k.not_p(whole);
    let ragged = k.and_p(ragged, some);
    k.if_then(ragged, |k| {
        let left = k.sub(vocab, id);
        match packed {
            None => {
                for (i, word) in (0..).zip(words) {
                    let inside = k.gt_u(left, i);
                    k.when(inside, |k| k.load_into(word, address, 4 * i64::from(i), Cache::ReadOnly));
                }
            }
            Some(kind) => {
                let nothing = negative_infinity(Some(kind)) as u16;
                let half = |k: &mut Builder, i: u32| {
                    let half = k.mov::<B16>(nothing);
                    let inside = k.gt_u(left, i);
                    k.when(inside, |k| k.load_into(half, address, 2 * i64::from(i), Cache::ReadOnly));
                    half
                };
                for (i, word) in (0..).zip(words) {
                    let halves = [half(k, 2 * i), half(k, 2 * i + 1)];
                    let joined = k.join(halves[0], halves[1]);
                    k.set(word, joined);
                }
            }
        }
    });
    words
}

/// Whether vectors of a row can be loaded at once.
fn is_aligned(k: &mut Builder, row: R64) -> RP {
    let low = k.narrow(row);
    let low = k.and(low, VECTOR - 1);
    k.eq(low, 0u32)
}

/// The floats in a word.
fn unpack(k: &mut Builder, packed: Option<MmaType>, word: R32) -> Vec<RF> {
    match packed {
        Some(kind) => k.unpack_halves(kind, word).to_vec(),
        None => vec![k.from_bits(word)],
    }
}

impl Segment {
    /// Starts the copies of a segment of the row of `vocab` tokens to an address in shared memory. A ragged end, and
    /// rows that vectors do not fit, come by plain loads.
    pub(super) fn fetch(k: &mut Builder, spec: &SamplerSpec, row: R64, vocab: R32, segment: R32, address: R32) {
        let (tokens, bytes) = (spec.segment(), spec.dtype.bytes());
        let run = VECTOR / bytes;
        let lane = k.lane();
        let start = k.mul(segment, tokens);
        let first = k.mad(lane, run, start);
        let at = k.mad(lane, VECTOR, address);
        let aligned = is_aligned(k, row);
        let end = k.add(start, tokens);
        let whole = k.le_u(end, vocab);
        let whole = k.and_p(whole, aligned);
        k.if_else(
            whole,
            |k| {
                let from = k.mad_wide(first, bytes, row);
                for j in 0..VECTORS {
                    let offset = i64::from(j * LINE);
                    k.copy_async_at((at, offset), (from, offset), VECTOR);
                }
            },
            |k| {
                k.for_loop(0u32, VECTORS, 1, |k, j| {
                    let id = k.mad(j, 32 * run, first);
                    let place = k.mad(j, LINE, at);
                    let words = load_vector(k, spec.dtype, row, id, vocab, aligned);
                    k.store_vector(place, 0, words);
                });
            },
        );
    }

    /// Reads a segment of a row that another guides, combined, to an address in shared memory.
    pub(super) fn guide(
        k: &mut Builder,
        spec: &SamplerSpec,
        (row, guide): (R64, Guide),
        vocab: R32,
        segment: R32,
        address: R32,
    ) {
        let (tokens, bytes, packed) = (spec.segment(), spec.dtype.bytes(), spec.dtype.packed());
        let run = VECTOR / bytes;
        let lane = k.lane();
        let start = k.mul(segment, tokens);
        let own = k.mul(lane, run);
        let guides = k.ne_f(guide.weight, 0.0);
        let load = |k: &mut Builder, row: R64, id: R32| -> Vec<RF> {
            let aligned = is_aligned(k, row);
            let words = load_vector(k, spec.dtype, row, id, vocab, aligned);
            words.into_iter().flat_map(|word| unpack(k, packed, word)).collect()
        };
        k.for_loop(own, tokens, 32 * run, |k, place| {
            let id = k.add(start, place);
            let logits: Vec<RF> = load(k, row, id).into_iter().map(|logit| k.mov(logit)).collect();
            k.if_then(guides, |k| {
                let others = load(k, guide.address, id);
                for (&logit, other) in logits.iter().zip(others) {
                    let combined = guide.combine(k, logit, other);
                    k.set(logit, combined);
                }
            });
            let at = k.mad(place, 4u32, address);
            for (i, four) in (0..).zip(logits.chunks(4)) {
                k.store_vector(at, i * i64::from(VECTOR), [four[0], four[1], four[2], four[3]]);
            }
        });
    }

    /// What [`Segment::fetch`] has copied, once that is waited for, or [`Segment::guide`] left.
    pub(super) fn at(k: &mut Builder, spec: &SamplerSpec, segment: R32, first: R32, address: R32) -> Segment {
        let start = k.mad(segment, spec.segment(), first);
        if spec.guided {
            Segment { packed: None, largest: f32::MAX, address, start }
        } else {
            Segment { packed: spec.dtype.packed(), largest: spec.dtype.largest_finite(), address, start }
        }
    }

    fn bytes(self) -> u32 {
        if self.packed.is_some() { 2 } else { 4 }
    }

    fn tokens(self) -> u32 {
        SEGMENT_BYTES / self.bytes()
    }

    /// The token at a place of the segment.
    pub(super) fn token(self, k: &mut Builder, place: R32) -> R32 {
        k.add(self.start, place)
    }

    pub(super) fn best_token(self, k: &mut Builder, best: &Best) -> R32 {
        let token = self.token(k, best.place);
        let none = k.eq(best.place, u32::MAX);
        k.select(none, u32::MAX, token)
    }

    /// Address of this lane's first vector.
    fn own(self, k: &mut Builder) -> R32 {
        let lane = k.lane();
        k.mad(lane, VECTOR, self.address)
    }

    fn vector(k: &mut Builder, own: R32, j: u32) -> [R32; 4] {
        k.load_vector(own, i64::from(j * LINE), Cache::Default)
    }

    fn floats(self, k: &mut Builder, words: &[R32]) -> Vec<RF> {
        words.iter().flat_map(|&word| unpack(k, self.packed, word)).collect()
    }

    /// Writes a logit at a place where `condition` holds.
    fn put(self, k: &mut Builder, condition: RP, place: R32, logit: RF) {
        let at = k.mad(place, self.bytes(), self.address);
        match self.packed {
            Some(kind) => {
                let half = k.half_from_float(kind, logit);
                k.when(condition, |k| k.store(at, 0, half));
            }
            None => k.when(condition, |k| k.store(at, 0, logit)),
        }
    }

    /// Takes away tokens at and above `limit`.
    pub(super) fn limit(self, k: &mut Builder, limit: R32) {
        let lane = k.lane();
        let end = k.add(self.start, self.tokens());
        let limited = k.lt_u(limit, end);
        k.if_then(limited, |k| {
            let first = k.max_u(limit, self.start);
            let first = k.sub(first, self.start);
            let own = k.add(first, lane);
            let nothing = k.mov(f32::NEG_INFINITY);
            k.for_loop(own, self.tokens(), 32, |k, place| {
                let inside = k.lt_u(place, self.tokens());
                self.put(k, inside, place, nothing);
            });
            k.warp_barrier();
        });
    }

    /// Takes away a token, if it is one of the segment's.
    pub(super) fn take_out(self, k: &mut Builder, id: R32) {
        let place = k.sub(id, self.start);
        let own = k.lt_u(place, self.tokens());
        let nothing = k.mov(f32::NEG_INFINITY);
        self.put(k, own, place, nothing);
    }

    /// The largest of some words, two in a word where halves are packed; NaN if one is, and `nan`.
    fn fold(self, k: &mut Builder, words: &[R32], nan: bool) -> R32 {
        let larger = |k: &mut Builder, a: R32, b: R32| match (self.packed, nan) {
            (Some(kind), true) => k.max_halves_or_nan(kind, a, b),
            (Some(kind), false) => k.max_halves(kind, a, b),
            (None, _) => {
                let [a, b] = [a, b].map(|word| k.from_bits(word));
                let larger = if nan { k.max_f_or_nan(a, b) } else { k.max_f(a, b) };
                k.bits(larger)
            }
        };
        words.iter().copied().reduce(|a, b| larger(k, a, b)).expect("a vector holds logits")
    }

    /// The larger of what is in a word, as a float; NaN if one is, and `nan`.
    fn largest_in(self, k: &mut Builder, word: R32, nan: bool) -> RF {
        match unpack(k, self.packed, word)[..] {
            [low, high] if nan => k.max_f_or_nan(low, high),
            [low, high] => k.max_f(low, high),
            _ => k.from_bits(word),
        }
    }

    /// This lane's largest logit. On the way what is no number becomes −∞, and +∞ the largest finite number: looked for once, in
    /// the maximum.
    pub(super) fn max(self, k: &mut Builder) -> RF {
        let (again, done) = (k.label(), k.label());
        let own = self.own(k);
        k.place(again);
        let words: Vec<R32> = (0..VECTORS).flat_map(|j| Segment::vector(k, own, j)).collect();
        let all = self.fold(k, &words, true);
        let found = self.largest_in(k, all, true);
        let fine = k.le_f(found, self.largest);
        let fine = k.all(fine);
        k.branch_if(fine, done);
        self.clean(k, own);
        k.branch(again);
        k.place(done);
        k.add_f(found, 0.0)
    }

    fn clean(self, k: &mut Builder, own: R32) {
        k.for_loop(0u32, SEGMENT_BYTES, LINE, |k, offset| {
            let at = k.add(own, offset);
            let words = Segment::vector(k, at, 0);
            let cleaned = words.map(|word| match self.packed {
                Some(kind) => {
                    let lowest = k.mov(negative_infinity(self.packed));
                    let number = k.max_halves(kind, word, lowest);
                    let largest = k.mov::<F32>(self.largest);
                    let largest = k.pack_halves(kind, largest, largest);
                    k.min_halves(kind, number, largest)
                }
                None => {
                    let value = k.from_bits(word);
                    let value = clean(k, value, self.largest);
                    k.bits(value)
                }
            });
            k.store_vector(at, 0, cleaned);
        });
        k.warp_barrier();
    }

    /// Takes the best token out of the segment, so that sums over the others lose nothing beside its weight of 1: `nothing` stands
    /// there instead. `own` is the largest logit of each lane, `max` that of the segment.
    pub(super) fn take_best(self, k: &mut Builder, own: RF, max: RF, nothing: RF) -> Best {
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
    pub(super) fn put_back(self, k: &mut Builder, best: &Best, max: RF, drawing: Option<(Exponents, R32)>) {
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

    /// Sums of the weights relative to the largest logit. Where it does not `temper`, the tempered sum is the raw one; what nobody
    /// asks for of the surprise of the raw weights (`surprised`) and of the tempered ones (`entropic`) is 0. For a draw the tempered sum of each vector is left in `notes`; else the
    /// vectors that stand there may be all that count at the temperature.
    pub(super) fn weigh(
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
    pub(super) fn draw(self, k: &mut Builder, warm: Exponents, notes: R32, uniform: R32) -> (R32, RF) {
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

    /// The largest logit of each of this lane's vectors.
    pub(super) fn maxima(self, k: &mut Builder) -> Vec<RF> {
        let own = self.own(k);
        (0..VECTORS)
            .map(|j| {
                let words = Segment::vector(k, own, j);
                let all = self.fold(k, &words, false);
                self.largest_in(k, all, false)
            })
            .collect()
    }

    /// A number of the logits' type below `bound`, or not above it in single precision, but not by much.
    pub(super) fn below(self, k: &mut Builder, bound: RF) -> RF {
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
    pub(super) fn note_near(self, k: &mut Builder, exponents: Exponents, max: RF, notes: R32, near: &Noted) {
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
    pub(super) fn note_above(self, k: &mut Builder, below: RF, notes: R32, noted: &Noted) {
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
            let number = rank(k, some, lower, kept);
            // All have read the notes in whose place others come.
            k.warp_barrier();
            let to = k.mad(number, 4u32, notes);
            let offset = k.sub(at, self.address);
            k.when(some, |k| k.store(to, 0, offset));
        });
        k.set(noted.count, kept);
    }

    /// Address of a noted vector.
    fn noted(self, k: &mut Builder, notes: R32, index: R32) -> R32 {
        let note = k.mad(index, 4u32, notes);
        let offset: R32 = k.load(note, 0);
        k.add(offset, self.address)
    }

    /// Runs `body` for the tokens of the `count` noted vectors, in all lanes at once: whether this lane's has a logit above
    /// `below`, its place and its logit.
    pub(super) fn for_each_noted(
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
pub(super) fn below_by_rounding(k: &mut Builder, logit: RF, size: RF) -> RF {
    let slack = k.fma(size, 1.0 / 262_144.0, 1.0 / 8_388_608.0);
    k.sub_f(logit, slack)
}

/// The running number of this lane among those for which a condition holds, which `count` counts.
pub(super) fn rank(k: &mut Builder, condition: RP, lower: R32, count: R32) -> R32 {
    let lanes = k.ballot(condition);
    let before = k.and(lanes, lower);
    let before = k.popc(before);
    let place = k.add(count, before);
    let all = k.popc(lanes);
    let next = k.add(count, all);
    k.set(count, next);
    place
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

/// Whether an inverted sum may end at a weight, with `before` in front of it.
fn is_open(k: &mut Builder, before: RF, point: RF, weight: RF) -> RP {
    let open = k.le_f(before, point);
    let some = k.gt_f(weight, 0.0);
    k.and_p(open, some)
}
