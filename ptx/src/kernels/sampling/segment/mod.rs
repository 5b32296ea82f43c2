//! A segment of a row: the logits that one warp holds in shared memory, and what it does with them there.
//!
//! Each logit is read once from global memory, by copies that are on their way while the segment before is computed. A lane
//! reads mostly what it has copied itself; logits lie in order, so that any lane finds any token. The largest logit is known
//! before any exponential is taken, so nothing is ever rescaled. Halves stay packed, two a word: maxima are taken of two at once.

mod best;
mod notes;
mod weights;

use super::{
    logits::{Guide, clean},
    spec::{LogitsType, SamplerSpec},
};
use crate::isa::{B16, B32, Builder, Cache, F32, MmaType, R32, R64, RF, RP};

pub(super) use notes::{Noted, below_by_rounding};
pub(super) use weights::Reference;

use weights::Exponents;

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
}
