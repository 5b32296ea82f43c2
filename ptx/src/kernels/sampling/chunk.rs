//! A chunk of a row: the logits that one block holds in registers, and what it does with them there.
//!
//! Each logit is read once, by copies into shared memory that are on their way while the chunk before is computed: 64 KB a
//! multiprocessor, twice what the memory's latency asks for. A thread reads what it has copied itself, so that no barrier stands
//! between. The largest logit of the chunk is known before any exponential is taken, so nothing is ever rescaled inside a
//! chunk. Halves stay packed, two a register: maxima are taken of two at once.

use super::{
    logits::{Guide, Logits, clean},
    spec::{LogitsType, SamplerSpec},
};
use crate::{
    isa::{B16, B32, Builder, Cache, F32, MmaType, R32, R64, RF, RP},
    tile::order::{from_order_key, order_key},
};
use std::f32::consts::LOG2_E;

pub(super) const THREADS: u32 = 256;
pub(super) const WARPS: u32 = THREADS / 32;
/// Bytes of one load.
const VECTOR: u32 = 16;

/// Logits a thread holds: of packed ones as many registers as of single ones.
const PACKED: u32 = 32;
const SINGLE: u32 = 16;

/// Shared memory that [`Chunk::park`] needs.
pub(super) const PARKED_BYTES: u32 = 4 * SINGLE * THREADS;

/// Far enough below the largest logit, in powers of two, to weigh nothing.
const NOTHING: f32 = -1024.0;

impl SamplerSpec {
    /// Tokens of a chunk: what one block reads at once, and the first number of a draw chooses among.
    pub const fn chunk(&self) -> u32 {
        THREADS * if self.guided || self.dtype.packed().is_none() { SINGLE } else { PACKED }
    }
}

/// The logits of one thread. Element e is token `first` + [`Chunk::offset`]`(e)`: ids ascend with e.
pub(super) struct Chunk {
    packed: Option<MmaType>,
    largest: f32,
    /// −∞ where there is no token.
    words: Vec<R32>,
    first: R32,
    /// Neighbouring tokens: those of one load.
    run: u32,
}

/// Where the best token of the chunk is, if it is this thread's.
pub(super) struct Best {
    /// Whether one of the thread's logits is the chunk's largest.
    pub(super) here: RP,
    /// Its element, of several the first.
    slot: R32,
    /// Its token.
    pub(super) id: R32,
    /// The thread's largest logit but for that one.
    pub(super) rest: RF,
}

/// Sums of weights over the elements of a thread, but for the chunk's best.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) raw: RF,
    pub(super) tempered: RF,
    /// Σ w log2 w of the raw weights, and of the tempered ones.
    pub(super) surprise: RF,
    pub(super) tempered_surprise: RF,
}

fn negative_infinity(packed: Option<MmaType>) -> u32 {
    match packed {
        Some(MmaType::Bf16) => 0xFF80_FF80,
        Some(MmaType::F16) => 0xFC00_FC00,
        None => f32::NEG_INFINITY.to_bits(),
    }
}

/// Loads a thread's run of tokens from `id` on: one vector where that is possible, token by token at a ragged end.
fn load_run(k: &mut Builder, dtype: LogitsType, row: R64, id: R32, vocab: R32, aligned: RP) -> [R32; 4] {
    let packed = dtype.packed();
    let bytes = dtype.bytes();
    let run = VECTOR / bytes;
    let words = [(); 4].map(|()| k.mov::<B32>(negative_infinity(packed)));
    let address = k.mad_wide(id, bytes, row);
    let end = k.add(id, run);
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

/// The floats in a word.
fn unpack(k: &mut Builder, packed: Option<MmaType>, word: R32) -> Vec<RF> {
    match packed {
        Some(kind) => k.unpack_halves(kind, word).to_vec(),
        None => vec![k.from_bits(word)],
    }
}

impl Chunk {
    /// Starts this thread's copies of a chunk of the row of `vocab` tokens at an address, to where [`Chunk::park`] would leave
    /// it. They are one group. A ragged end, and rows that vectors do not fit, come by plain loads.
    pub(super) fn fetch(k: &mut Builder, spec: &SamplerSpec, row: R64, vocab: R32, chunk: R32, address: R32) {
        let (run, bytes) = (VECTOR / spec.dtype.bytes(), spec.dtype.bytes());
        let thread = k.thread();
        let start = k.mul(chunk, spec.chunk());
        let first = k.mad(thread, run, start);
        let at = k.mad(thread, VECTOR, address);
        let low = k.narrow(row);
        let low = k.and(low, VECTOR - 1);
        let aligned = k.eq(low, 0u32);
        for j in 0..spec.chunk() / THREADS / run {
            let id = k.add(first, j * run * THREADS);
            let place = i64::from(j * VECTOR * THREADS);
            let end = k.add(id, run);
            let whole = k.le_u(end, vocab);
            let whole = k.and_p(whole, aligned);
            k.if_else(
                whole,
                |k| {
                    let from = k.mad_wide(id, bytes, row);
                    k.copy_async(at, place, from, VECTOR);
                },
                |k| {
                    let words = load_run(k, spec.dtype, row, id, vocab, whole);
                    k.store_vector(at, place, words);
                },
            );
        }
        k.commit_copies();
    }

    /// What [`Chunk::fetch`] has copied, once that is waited for.
    pub(super) fn fetched(k: &mut Builder, spec: &SamplerSpec, chunk: R32, address: R32) -> Chunk {
        let run = VECTOR / spec.dtype.bytes();
        let thread = k.thread();
        let start = k.mul(chunk, spec.chunk());
        let first = k.mad(thread, run, start);
        let (packed, largest) = (spec.dtype.packed(), spec.dtype.largest_finite());
        let words = Chunk::parked(k, spec.chunk() / THREADS / run, address);
        Chunk { packed, largest, words, first, run }
    }

    /// The words of so many runs of this thread in shared memory.
    fn parked(k: &mut Builder, runs: u32, address: R32) -> Vec<R32> {
        let thread = k.thread();
        let at = k.mad(thread, VECTOR, address);
        (0..i64::from(runs))
            .flat_map(|j| k.load_vector::<B32, B32, 4>(at, j * i64::from(VECTOR * THREADS), Cache::Default))
            .collect()
    }

    /// Loads this block's part of the row of `vocab` tokens at an address, `chunk` counting from 0.
    pub(super) fn load(
        k: &mut Builder,
        spec: &SamplerSpec,
        (row, guide): (R64, Option<Guide>),
        vocab: R32,
        chunk: R32,
    ) -> Chunk {
        let run = VECTOR / spec.dtype.bytes();
        let elements = spec.chunk() / THREADS;
        let thread = k.thread();
        let start = k.mul(chunk, spec.chunk());
        let first = k.mad(thread, run, start);
        let places: Vec<R32> = (0..elements / run).map(|j| k.add(first, j * run * THREADS)).collect();
        let load = |k: &mut Builder, row: R64| -> Vec<R32> {
            let low = k.narrow(row);
            let low = k.and(low, VECTOR - 1);
            let aligned = k.eq(low, 0u32);
            places.iter().flat_map(|&id| load_run(k, spec.dtype, row, id, vocab, aligned)).collect()
        };
        let words = load(k, row);
        let packed = spec.dtype.packed();
        match guide {
            None => Chunk { packed, largest: spec.dtype.largest_finite(), words, first, run },
            Some(guide) => {
                let words = Chunk::guided(k, packed, words, guide, load);
                Chunk { packed: None, largest: f32::MAX, words, first, run }
            }
        }
    }

    fn guided(
        k: &mut Builder,
        packed: Option<MmaType>,
        words: Vec<R32>,
        guide: Guide,
        load: impl FnOnce(&mut Builder, R64) -> Vec<R32>,
    ) -> Vec<R32> {
        let guides = k.ne_f(guide.weight, 0.0);
        let conditional: Vec<RF> = words.iter().flat_map(|&word| unpack(k, packed, word)).collect();
        let combined: Vec<R32> = conditional.iter().map(|&value| k.bits(value)).collect();
        k.if_then(guides, |k| {
            let other = load(k, guide.address);
            let unconditional: Vec<RF> = other.iter().flat_map(|&word| unpack(k, packed, word)).collect();
            for ((&c, &u), &word) in conditional.iter().zip(&unconditional).zip(&combined) {
                let value = guide.combine(k, c, u);
                let bits = k.bits(value);
                k.set(word, bits);
            }
        });
        combined
    }

    /// Takes away what the request does not want: rarely anything.
    pub(super) fn hide(&self, k: &mut Builder, logits: &Logits, chunk: R32) {
        let tokens = self.elements() * THREADS;
        let start = k.mul(chunk, tokens);
        let end = k.add(start, tokens);
        let narrower = k.lt_u(logits.limit, logits.vocab);
        let reaches = k.lt_u(logits.limit, end);
        let limited = k.and_p(narrower, reaches);
        k.if_then(limited, |k| {
            let left = k.sub(logits.limit, self.first);
            for e in 0..self.elements() {
                let past = k.le_s(left, self.offset(e));
                self.remove(k, e, past);
            }
        });
        let into = k.sub(logits.banned, start);
        let banned = k.lt_u(into, tokens);
        k.if_then(banned, |k| {
            let place = k.sub(logits.banned, self.first);
            for e in 0..self.elements() {
                let hit = k.eq(place, self.offset(e));
                self.remove(k, e, hit);
            }
        });
    }

    fn elements(&self) -> u32 {
        self.words.len() as u32 * self.a_word()
    }

    fn a_word(&self) -> u32 {
        if self.packed.is_some() { 2 } else { 1 }
    }

    /// Tokens from the thread's first one to element `e`.
    fn offset(&self, e: u32) -> u32 {
        e / self.run * self.run * THREADS + e % self.run
    }

    /// The words of each run.
    fn runs(&self) -> impl Iterator<Item = &[R32]> {
        self.words.chunks((self.run / self.a_word()) as usize)
    }

    fn floats(&self, k: &mut Builder, word: usize) -> Vec<RF> {
        unpack(k, self.packed, self.words[word])
    }

    /// Makes element `e` −∞ where `condition` holds.
    fn remove(&self, k: &mut Builder, e: u32, condition: RP) {
        self.put(k, e, condition, negative_infinity(self.packed));
    }

    /// Puts the logit that all halves of `bits` hold at element `e`, where `condition` holds.
    fn put(&self, k: &mut Builder, e: u32, condition: RP, bits: impl Into<crate::isa::Source<B32>>) {
        let word = self.words[(e / self.a_word()) as usize];
        // The bytes that stay come from the word, the others from `bits`.
        let selector: u32 = match (self.packed, e % 2) {
            (None, _) => 0x7654,
            (Some(_), 0) => 0x3254,
            (Some(_), _) => 0x7610,
        };
        let bits = k.mov::<B32>(bits);
        let changed = k.permute_bytes(word, bits, selector);
        k.when(condition, |k| k.set(word, changed));
    }

    /// The largest of some words, as a float; NaN if one is, and `nan`.
    fn fold(&self, k: &mut Builder, words: &[R32], nan: bool) -> RF {
        let larger = |k: &mut Builder, a: RF, b: RF| if nan { k.max_f_or_nan(a, b) } else { k.max_f(a, b) };
        match self.packed {
            Some(kind) => {
                let all = fold_halves(k, kind, words, nan);
                let [low, high] = k.unpack_halves(kind, all);
                larger(k, low, high)
            }
            None => {
                let values: Vec<RF> = words.iter().map(|&word| k.from_bits(word)).collect();
                values.into_iter().reduce(|a, b| larger(k, a, b)).expect("a thread holds logits")
            }
        }
    }

    /// The thread's largest logit. On the way what is no number becomes −∞, and +∞ the largest finite number: looked for
    /// once, in the maximum.
    pub(super) fn max(&self, k: &mut Builder) -> RF {
        let found = self.fold(k, &self.words, true);
        let max = k.mov(found);
        let fine = k.le_f(found, self.largest);
        let wrong = k.not_p(fine);
        k.if_then(wrong, |k| {
            for &word in &self.words {
                let cleaned = match self.packed {
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
                };
                k.set(word, cleaned);
            }
            let again = self.fold(k, &self.words, false);
            k.set(max, again);
        });
        k.add_f(max, 0.0)
    }

    /// Takes the chunk's largest logit out of the thread that has it (once; of several such threads each has one), so that
    /// sums over the others lose nothing beside its weight of 1.
    pub(super) fn take_best(&self, k: &mut Builder, own: RF, max: RF) -> Best {
        let here = k.eq_f(own, max);
        let some = k.gt_f(max, f32::NEG_INFINITY);
        let here = k.and_p(here, some);
        let (slot, id, rest) = (k.mov(u32::MAX), k.mov(u32::MAX), k.mov(own));
        k.if_then(here, |k| {
            for w in (0..self.words.len()).rev() {
                let base = w as u32 * self.a_word();
                for (i, value) in self.floats(k, w).into_iter().enumerate().rev() {
                    let found = k.eq_f(value, max);
                    k.when(found, |k| k.set(slot, base + i as u32));
                }
            }
            for e in 0..self.elements() {
                let taken = k.eq(slot, e);
                self.remove(k, e, taken);
            }
            let run = k.div_u(slot, self.run);
            let within = k.rem_u(slot, self.run);
            let place = k.mad(run, self.run * THREADS, within);
            let token = k.add(self.first, place);
            k.set(id, token);
            let others = self.fold(k, &self.words, false);
            let others = k.add_f(others, 0.0);
            k.set(rest, others);
        });
        Best { here, slot, id, rest }
    }

    /// Undoes [`Chunk::take_best`].
    pub(super) fn put_back(&self, k: &mut Builder, best: &Best, max: RF) {
        let here = k.ne(best.slot, u32::MAX);
        k.if_then(here, |k| {
            let bits = match self.packed {
                Some(kind) => k.pack_halves(kind, max, max),
                None => k.bits(max),
            };
            for e in 0..self.elements() {
                let taken = k.eq(best.slot, e);
                self.put(k, e, taken, bits);
            }
        });
    }

    /// Leaves this thread's logits in shared memory: what comes next needs the registers.
    pub(super) fn park(&self, k: &mut Builder, address: R32) {
        let thread = k.thread();
        let at = k.mad(thread, VECTOR, address);
        for (j, words) in (0..).zip(self.words.chunks(4)) {
            let words = [words[0], words[1], words[2], words[3]];
            k.store_vector(at, j * i64::from(VECTOR * THREADS), words);
        }
    }

    /// The same chunk in registers again.
    pub(super) fn unpark(&self, k: &mut Builder, address: R32) -> Chunk {
        let words = Chunk::parked(k, self.words.len() as u32 / 4, address);
        Chunk { words, ..*self }
    }

    /// Sums of the weights relative to `max`. Where it does not `temper`, the tempered sum is the raw one;
    /// where nobody asks for the tempered surprise, that is 0.
    ///
    /// Both questions are asked for each run anew: with a loop for each answer, `ptxas` would hold what the loops share in
    /// registers that are not there.
    pub(super) fn weigh(&self, k: &mut Builder, max: RF, scale: RF, tempers: RP, entropic: RP) -> Sums {
        let max = reference(k, max);
        let [raw, tempered, surprise, tempered_surprise] = [(); 4].map(|()| k.mov::<F32>(0.0f32));
        for words in self.runs() {
            let logits: Vec<RF> = words.iter().flat_map(|&word| unpack(k, self.packed, word)).collect();
            let below: Vec<RF> = logits.iter().map(|&logit| k.sub_f(logit, max)).collect();
            let [mut sum, mut of_surprise] = [raw, surprise];
            for &below in &below {
                let exponent = k.mul_f(below, LOG2_E);
                let exponent = k.max_f(exponent, NOTHING);
                let weight = k.exp2_f(exponent);
                sum = k.add_f(sum, weight);
                of_surprise = k.fma(weight, exponent, of_surprise);
            }
            k.set(raw, sum);
            k.set(surprise, of_surprise);
            k.if_then(tempers, |k| {
                let mut sum = tempered;
                for &below in &below {
                    let exponent = k.mul_f(below, scale);
                    let weight = k.exp2_f(exponent);
                    sum = k.add_f(sum, weight);
                }
                k.set(tempered, sum);
            });
            k.if_then(entropic, |k| {
                let mut sum = tempered_surprise;
                for &below in &below {
                    let exponent = k.mul_f(below, scale);
                    let exponent = k.max_f(exponent, NOTHING);
                    let weight = k.exp2_f(exponent);
                    sum = k.fma(weight, exponent, sum);
                }
                k.set(tempered_surprise, sum);
            });
        }
        k.unless(tempers, |k| k.set(tempered, raw));
        Sums { raw, tempered, surprise, tempered_surprise }
    }

    /// The tempered weight of each run. Ids ascend over the threads of a run, then over the runs.
    pub(super) fn run_weights(&self, k: &mut Builder, max: RF, scale: RF) -> Vec<RF> {
        let max = reference(k, max);
        self.runs()
            .map(|words| {
                let logits: Vec<RF> = words.iter().flat_map(|&word| unpack(k, self.packed, word)).collect();
                let mut sum = k.mov::<F32>(0.0f32);
                for logit in logits {
                    let exponent = exponent(k, logit, max, scale);
                    let weight = k.exp2_f(exponent);
                    sum = k.add_f(sum, weight);
                }
                sum
            })
            .collect()
    }

    /// In run `j` of this thread, the first token whose weight, added to that of the ones before it, exceeds `target`; or the
    /// last that has weight. Its id and its logit.
    pub(super) fn locate(&self, k: &mut Builder, j: R32, target: RF, max: RF, scale: RF) -> (R32, RF) {
        let max = reference(k, max);
        let of_run: Vec<R32> = {
            let mut runs = self.runs();
            let first: Vec<R32> = runs.next().into_iter().flatten().map(|&word| k.mov(word)).collect();
            for (i, run) in (1..).zip(runs) {
                let chosen = k.eq(j, i as u32);
                k.when(chosen, |k| {
                    for (&target, &word) in first.iter().zip(run) {
                        k.set(target, word);
                    }
                });
            }
            first
        };
        let start = k.mad(j, self.run * THREADS, self.first);
        let (token, logit, before) = (k.mov(start), k.mov::<F32>(f32::NEG_INFINITY), k.mov::<F32>(0.0f32));
        let values: Vec<RF> = of_run.iter().flat_map(|&word| unpack(k, self.packed, word)).collect();
        for (i, value) in (0u32..).zip(values) {
            let exponent = exponent(k, value, max, scale);
            let weight = k.exp2_f(exponent);
            let open = k.le_f(before, target);
            let some = k.gt_f(weight, 0.0);
            let open = k.and_p(open, some);
            let id = k.add(start, i);
            k.when(open, |k| {
                k.set(token, id);
                k.set(logit, value);
            });
            let sum = k.add_f(before, weight);
            k.set(before, sum);
        }
        (token, k.add_f(logit, 0.0))
    }

    /// Runs `body` for every token with a logit of at least `bound`, and perhaps some just below it.
    pub(super) fn for_each_above(&self, k: &mut Builder, bound: RF, body: impl Fn(&mut Builder, R32, RF)) {
        // Strictly less than the bound, and exactly a number of the logits' type.
        let below = match self.packed {
            None => bound,
            Some(kind) => {
                let key = order_key(k, bound);
                let unused = if kind == MmaType::Bf16 { 16 } else { 13 };
                let key = k.and(key, u32::MAX << unused);
                let floor = from_order_key(k, key);
                k.max_f(floor, f32::NEG_INFINITY)
            }
        };
        let packed = match self.packed {
            Some(kind) => k.pack_halves(kind, below, below),
            None => k.bits(below),
        };
        for (j, words) in (0..).zip(self.runs()) {
            let some = match self.packed {
                Some(kind) => {
                    let all = fold_halves(k, kind, words, false);
                    let larger = k.max_halves(kind, all, packed);
                    k.ne(larger, packed)
                }
                None => {
                    let all = self.fold(k, words, false);
                    k.gt_f(all, below)
                }
            };
            k.if_then(some, |k| {
                let values: Vec<RF> = words.iter().flat_map(|&word| unpack(k, self.packed, word)).collect();
                for (i, value) in (0..).zip(values) {
                    let above = k.gt_f(value, below);
                    k.if_then(above, |k| {
                        let id = k.add(self.first, self.offset(j * self.run + i));
                        let value = k.add_f(value, 0.0);
                        body(k, id, value);
                    });
                }
            });
        }
    }
}

/// What logits are taken relative to: their maximum, or 0 if that is −∞, so that nothing is −∞ − −∞.
fn reference(k: &mut Builder, max: RF) -> RF {
    let empty = k.eq_f(max, f32::NEG_INFINITY);
    k.select(empty, 0.0f32, max)
}

/// (l − max) · scale.
fn exponent(k: &mut Builder, logit: RF, max: RF, scale: RF) -> RF {
    let below = k.sub_f(logit, max);
    k.mul_f(below, scale)
}

fn fold_halves(k: &mut Builder, kind: MmaType, words: &[R32], nan: bool) -> R32 {
    let larger =
        |k: &mut Builder, a, b: R32| if nan { k.max_halves_or_nan(kind, a, b) } else { k.max_halves(kind, a, b) };
    words.iter().copied().reduce(|a, b| larger(k, a, b)).expect("a thread holds logits")
}
