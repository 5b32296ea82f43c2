//! The tokens that a segment offers to the filters of its row.
//!
//! A token of probability below (1 − p) / V cannot be in the nucleus of p: all such tokens together have less than 1 − p. Nor can
//! one that is less probable than k others be among the k best, or one below m times the best pass min-p m. A segment knows a
//! lower bound of each: its own sum is at most the row's, its best token at most the row's. So what it offers is more than what
//! the row keeps, and mostly little; whoever finishes the row, and knows the sums, drops most of it again.

use super::{
    filter::{Filters, List},
    layout::{PARTIAL_BYTES, SegmentRecord},
    logits::{Logits, Mass},
    merge::Records,
    segment::{Segment, rank},
    spec::SamplerSpec,
};
use crate::{
    isa::{B32, Builder, Cache, MmaType, R32, R64, RF, RP},
    tile::{
        order::{from_order_key, order_key},
        team::Team,
    },
};
use std::mem::{offset_of, size_of};

/// In powers of two, more than rounding may cost a bound.
const SLACK: f32 = 1.0 / 128.0;

/// A logit below which no token is kept. `mass` and `excess` are of the segment, or of the row; at least `top_k` tokens have a
/// logit of `floor`.
pub(super) fn bound(k: &mut Builder, filters: &Filters, mass: Mass, excess: RF, vocab: R32, floor: RF) -> RF {
    let total = k.add_f(excess, 1.0);
    let of_total = k.log2_f(total);
    let tokens = k.float_from_u(vocab);
    let tokens = k.log2_f(tokens);
    let rest = k.sub_f(1.0, filters.top_p);
    let rest = k.log2_f(rest);
    let share = k.sub_f(of_total, tokens);
    let of_mass = k.add_f(share, rest);
    let of_mass = k.select(filters.by_mass, of_mass, f32::NEG_INFINITY);
    let exponent = k.max_f(of_mass, filters.least);
    let exponent = k.sub_f(exponent, SLACK);
    // All of the k best count when top-p looks at no others.
    let exponent = k.select(filters.count_first, f32::NEG_INFINITY, exponent);
    let unit = k.rcp_f(mass.scale);
    let below = k.mul_f(exponent, unit);
    let logit = k.add_f(mass.max, below);
    let logit = k.max_f(logit, floor);
    // What the sums above round away.
    let (size, largest) = (k.abs_f(logit), k.abs_f(mass.max));
    let size = k.add_f(size, largest);
    let slack = k.fma(size, 1.0 / 262_144.0, 1.0 / 8_388_608.0);
    let lower = k.sub_f(logit, slack);
    // −∞ − ∞ is no number.
    k.max_f(lower, f32::NEG_INFINITY)
}

/// The `top_k`-th largest of the vectors' largest logits, or a little less; −∞ if there are not as many.
pub(super) fn floor(k: &mut Builder, segment: Segment, one_less: R32, unused_bits: u32) -> RF {
    let own: Vec<R32> = segment
        .maxima(k)
        .into_iter()
        .map(|logit| {
            let logit = k.add_f(logit, 0.0);
            order_key(k, logit)
        })
        .collect();
    let (key, bit) = (k.mov(0u32), k.mov::<B32>(1u32 << 31));
    k.while_loop(
        |k| k.ge_u(bit, 1u32 << unused_bits),
        |k| {
            let candidate = k.or(key, bit);
            let mut reached = k.mov::<B32>(0u32);
            for &own in &own {
                let reaches = k.ge_u(own, candidate);
                let one = k.select::<B32>(reaches, 1u32, 0u32);
                reached = k.add(reached, one);
            }
            let all = k.warp_sum(reached);
            let enough = k.gt_u(all, one_less);
            k.when(enough, |k| k.set(key, candidate));
            let next = k.shr_u(bit, 1u32);
            k.set(bit, next);
        },
    );
    let logit = from_order_key(k, key);
    k.max_f(logit, f32::NEG_INFINITY)
}

/// How offers stand behind a segment's record: a half and its place in the segment in one word, or the key of a single-precision
/// logit and its place in two.
#[derive(Clone, Copy)]
pub(super) struct Format {
    packed: Option<MmaType>,
    /// Tokens of a segment.
    tokens: u32,
}

/// Changed tokens offer keys and ids.
pub(super) const OF_CHANGED: Format = Format { packed: None, tokens: 0 };

const RECORD: i64 = size_of::<SegmentRecord>() as i64;

impl Format {
    pub(super) fn of(spec: &SamplerSpec) -> Format {
        let packed = if spec.guided { None } else { spec.dtype.packed() };
        Format { packed, tokens: spec.segment() }
    }

    pub(super) fn bytes(self) -> u32 {
        if self.packed.is_some() { 4 } else { 8 }
    }

    /// Offers that there is room for.
    pub(super) fn room(self) -> u32 {
        (PARTIAL_BYTES - RECORD as u32) / self.bytes()
    }

    pub(super) fn store(self, k: &mut Builder, condition: RP, at: R64, place: R32, logit: RF) {
        match self.packed {
            Some(kind) => {
                let half = k.half_from_float(kind, logit);
                let [low, _] = k.split(place);
                let word = k.join(low, half);
                k.when(condition, |k| k.store(at, RECORD, word));
            }
            None => {
                let key = order_key(k, logit);
                k.when(condition, |k| k.store_vector(at, RECORD, [key, place]));
            }
        }
    }

    /// Key and place of offer `i` from an address on, where `condition` holds.
    fn load(self, k: &mut Builder, condition: RP, at: R64, i: u32) -> [R32; 2] {
        let offset = RECORD + i64::from(i * self.bytes());
        match self.packed {
            Some(kind) => {
                let word = k.mov(0u32);
                k.when(condition, |k| k.load_into(word, at, offset, Cache::Default));
                let [low, half] = k.split(word);
                let zero = k.mov(0u16);
                let logit = k.float_from_half(kind, half);
                [order_key(k, logit), k.join(low, zero)]
            }
            None => {
                let words = [(); 2].map(|()| k.mov(0u32));
                k.when(condition, |k| k.load_vector_into(words, at, offset, Cache::Default));
                words
            }
        }
    }
}

/// Writes the tokens that reach `bound` behind the segment's record, and says how many they are: more than there is room for, and
/// perhaps not how many more, where they do not fit.
pub(super) fn offer(k: &mut Builder, segment: Segment, format: Format, bound: RF, record: R64, notes: R32) -> R32 {
    let count = k.mov(0u32);
    let below = segment.below(k, bound);
    let lower = k.lanes_below();
    let vectors = segment.note_above(k, below, notes);
    // Each of them has a token to offer.
    let crowded = k.gt_u(vectors, format.room());
    k.if_else(
        crowded,
        |k| k.set(count, vectors),
        |k| {
            segment.for_each_noted(k, below, (notes, vectors), |k, above, place, logit| {
                let number = rank(k, above, lower, count);
                let fits = k.lt_u(number, format.room());
                let fits = k.and_p(fits, above);
                let at = k.mad_wide(number, format.bytes(), record);
                format.store(k, fits, at, place, logit);
            });
        },
    );
    count
}

/// The list of a row's better tokens while it is made, in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Collector {
    pub(super) team: Team,
    pub(super) format: Format,
    /// Where the list goes, and how many tokens it has room for.
    pub(super) list: R32,
    pub(super) room: u32,
    /// Two words: tokens that would be in the list, and segments with more to offer than their record holds.
    pub(super) counters: R32,
    /// Tokens of at least this key.
    pub(super) least: R32,
    pub(super) mass: Mass,
}

impl Collector {
    fn put(self, k: &mut Builder, reaches: RP, key: R32, id: R32) {
        k.if_then(reaches, |k| {
            let place = k.atomic_add(self.counters, 0, 1u32);
            let fits = k.lt_u(place, self.room);
            let at = k.mad(place, 16u32, self.list);
            let logit = from_order_key(k, key);
            let own = self.mass.of(k, logit);
            let [low, high] = k.split_wide(own);
            k.when(fits, |k| k.store_vector(at, 0, [key, id, low, high]));
        });
    }

    /// Whether a record has a token for the list, how many it offers, and whether those are not all there.
    fn look_at(self, k: &mut Builder, record: R64, format: Format) -> (RP, R32, RP) {
        let max: RF = k.load(record, offset_of!(SegmentRecord, max) as i64);
        let offers: R32 = k.load(record, offset_of!(SegmentRecord, offers) as i64);
        let key = order_key(k, max);
        let reaches = k.ge_u(key, self.least);
        let lost = k.gt_u(offers, format.room());
        (reaches, offers, k.and_p(reaches, lost))
    }

    /// Puts the offers of a record in the list, of places counted from a token on.
    fn take(self, k: &mut Builder, record: R64, format: Format, start: R32) {
        let (reaches, offers, crowded) = self.look_at(k, record, format);
        k.when(crowded, |k| k.reduce_add(self.counters, 4, 1u32));
        let written = k.select(crowded, 0u32, offers);
        let written = k.select(reaches, written, 0u32);
        let at = k.mov(record);
        // Four at a time, to wait for memory less often.
        k.for_loop(0u32, written, 4, |k, first| {
            let batch = [0u32, 1, 2, 3].map(|i| {
                let number = k.add(first, i);
                let exists = k.lt_u(number, written);
                (exists, format.load(k, exists, at, i))
            });
            for (exists, [key, place]) in batch {
                let good = k.ge_u(key, self.least);
                let good = k.and_p(good, exists);
                let id = k.add(start, place);
                self.put(k, good, key, id);
            }
            let next = k.add(at, u64::from(4 * format.bytes()));
            k.set(at, next);
        });
    }

    /// Collects what is offered: a segment a thread, since few have something, and the changed tokens one thread, if there are
    /// any. How many tokens and crowded records there are.
    pub(super) fn collect(self, k: &mut Builder, records: Records, changed: RP) -> [R32; 2] {
        k.comment("collect what is offered");
        let (thread, threads) = (self.team.thread(k), self.team.threads(k));
        let leader = k.eq(thread, 0u32);
        let zero = k.mov(0u32);
        k.when(leader, |k| k.store_vector(self.counters, 0, [zero, zero]));
        self.team.barrier(k);
        k.for_loop(thread, records.count, threads, |k, segment| {
            let record = records.of(k, segment);
            let start = k.mul(segment, self.format.tokens);
            self.take(k, record, self.format, start);
        });
        let takes = k.and_p(leader, changed);
        k.if_then(takes, |k| {
            let record = records.of(k, records.count);
            self.take(k, record, OF_CHANGED, zero);
        });
        self.team.barrier(k);
        k.load_vector(self.counters, 0, Cache::Default)
    }

    /// Reads the crowded segments again, and the changed tokens where their record has no room: a segment without good tokens has many
    /// that are as good as its best.
    pub(super) fn read_again(self, k: &mut Builder, records: Records, logits: &Logits) {
        k.comment("crowded segments");
        // All have read the counters before they go on.
        self.team.barrier(k);
        let (thread, threads) = (self.team.thread(k), self.team.threads(k));
        let put = |k: &mut Builder, id: R32, logit: RF| {
            let key = order_key(k, logit);
            let reaches = k.ge_u(key, self.least);
            self.put(k, reaches, key, id);
        };
        k.for_loop(0u32, records.count, 1, |k, segment| {
            let record = records.of(k, segment);
            let (_, _, crowded) = self.look_at(k, record, self.format);
            k.if_then(crowded, |k| {
                let start = k.mul(segment, self.format.tokens);
                let end = k.add(start, self.format.tokens);
                let end = k.min_u(end, logits.limit);
                let own = k.add(start, thread);
                k.for_loop(own, end, threads, |k, id| {
                    let logit = logits.unchanged(k, id);
                    put(k, id, logit);
                });
            });
        });
        k.if_then(logits.patches.any, |k| {
            let record = records.of(k, records.count);
            let (_, _, crowded) = self.look_at(k, record, OF_CHANGED);
            k.if_then(crowded, |k| logits.patches.for_each(k, logits, (thread, threads), put));
        });
        self.team.barrier(k);
    }

    /// The list of `count` tokens, which are not more than there is room for.
    pub(super) fn list(self, k: &mut Builder, count: R32) -> List {
        List::new(k, self.team, self.list, count, self.room)
    }
}
