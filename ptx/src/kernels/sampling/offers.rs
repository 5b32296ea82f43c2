//! The tokens that a segment offers to the filters of its row.
//!
//! A token of probability below (1 − p) / V cannot be in the nucleus of p: all such tokens together have less than 1 − p. Nor can
//! one that is less probable than k others be among the k best, or one below m times the best pass min-p m. A segment knows a
//! lower bound of each: its own sum is at most the row's, its best token at most the row's. So what it offers is more than what
//! the row keeps, and mostly little; whoever finishes the row, and knows the sums, drops most of it again.
//!
//! Where logits are flat it is more than there is room for. Then a segment raises its bound to what fits, and says so: whoever
//! finishes the row knows all its tokens above the highest of those bounds, and may find that the filters cut there
//! ([`super::cut`]).

use super::{
    filter::{ENTRY, Filters, List},
    layout::{PARTIAL_BYTES, SegmentRecord},
    logits::{Logits, Mass, accumulate},
    merge::{Records, Seen, reached_by_more},
    segment::{Noted, Segment, VECTOR, below_by_rounding},
    spec::SamplerSpec,
};
use crate::{
    isa::{B32, Builder, Cache, MmaType, R32, R64, RF, RP},
    tile::{
        ballot::running_rank,
        order::order_key,
        reduce::{warp_inclusive_sum_32, warp_sum_52},
        team::Team,
    },
};
use std::mem::{offset_of, size_of};

/// In powers of two, more than rounding may cost a bound.
const SLACK: f32 = 1.0 / 128.0;

/// What bounds the logits that the filters of a request keep, but for what a segment or a row knows.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// log2 of the weight that top-p asks for, of a total of 1; −∞ without it.
    share: RF,
    /// log2 of the weight that min-p asks for.
    least: RF,
    /// What a power of two of weight is in logits.
    unit: RF,
}

impl Bound {
    pub(super) fn of(k: &mut Builder, filters: &Filters, scale: RF, vocab: R32) -> Bound {
        let tokens = k.float_from_u(vocab);
        let tokens = k.log2_f(tokens);
        let rest = k.sub_f(1.0, filters.top_p);
        let rest = k.log2_f(rest);
        let share = k.sub_f(rest, tokens);
        // All of the k best count when top-p looks at no others.
        let all = k.not_p(filters.by_mass);
        let all = k.or_p(all, filters.count_first);
        let share = k.select(all, f32::NEG_INFINITY, share);
        let least = k.select(filters.count_first, f32::NEG_INFINITY, filters.least);
        Bound { share, least, unit: k.rcp_f(scale) }
    }

    pub(super) fn words(self, k: &mut Builder) -> [R32; 3] {
        [self.share, self.least, self.unit].map(|value| k.bits(value))
    }

    pub(super) fn from_words(k: &mut Builder, words: [R32; 3]) -> Bound {
        let [share, least, unit] = words.map(|word| k.from_bits(word));
        Bound { share, least, unit }
    }

    /// A logit below which no token is kept. `max` and `excess` are of the segment, or of the row; at least `top_k` tokens have a
    /// logit of `floor`.
    pub(super) fn logit(self, k: &mut Builder, max: RF, excess: RF, floor: RF) -> RF {
        let total = k.add_f(excess, 1.0);
        let of_total = k.log2_f(total);
        let of_mass = k.add_f(of_total, self.share);
        let exponent = k.max_f(of_mass, self.least);
        let exponent = k.sub_f(exponent, SLACK);
        let below = k.mul_f(exponent, self.unit);
        let logit = k.add_f(max, below);
        let logit = k.max_f(logit, floor);
        // What the sums above round away.
        let (size, largest) = (k.abs_f(logit), k.abs_f(max));
        let size = k.add_f(size, largest);
        let lower = below_by_rounding(k, logit, size);
        // −∞ − ∞ is no number.
        k.max_f(lower, f32::NEG_INFINITY)
    }
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
    reached_by_more(k, &own, one_less, unused_bits)
}

/// How offers stand behind a segment's record: a half and its place in the segment in one word, or the key of a single-precision
/// logit and its place in two.
#[derive(Clone, Copy)]
pub(super) struct Format {
    packed: Option<MmaType>,
    /// Tokens of a segment.
    pub(super) tokens: u32,
}

/// Changed tokens offer keys and ids.
pub(super) const OF_CHANGED: Format = Format { packed: None, tokens: 0 };

const RECORD: i64 = size_of::<SegmentRecord>() as i64;
/// Where a record has its raised bound, and the number of its offers.
pub(super) const RAISED: i64 = offset_of!(SegmentRecord, logit) as i64;
pub(super) const OFFERS: i64 = offset_of!(SegmentRecord, token) as i64;

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
    pub(super) fn load(self, k: &mut Builder, condition: RP, at: R64, i: u32) -> [R32; 2] {
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

/// Of the offers that there is room for, the vectors whose best tokens say how far a bound is raised: a whole segment has some more
/// as good ones. A segment that has too many yet, since it is ragged or has ties, takes half as many, and so on.
const fn representatives(room: u32) -> u32 {
    room * 5 / 8
}

/// The fewest of them.
const FEWEST: u32 = 8;

/// Writes the tokens that reach `bound` behind the segment's record. Says how many they are, and, if they are more than there is
/// room for, which higher bound all those reach that are written: ∞ if that did not help. `noted` is what stands in `notes`.
pub(super) fn offer(
    k: &mut Builder,
    segment: Segment,
    format: Format,
    (bound, unused_bits): (RF, u32),
    record: R64,
    (notes, noted): (R32, &Noted),
) -> (R32, RF) {
    let (bound, raised) = (k.mov(bound), k.mov(f32::NEG_INFINITY));
    let (count, representatives) = (k.mov(0u32), k.mov(representatives(format.room())));
    let lower = k.lanes_below();
    let (again, done) = (k.label(), k.label());
    k.place(again);
    let below = segment.below(k, bound);
    segment.note_above(k, below, notes, noted);
    let vectors = noted.count;
    k.set(count, 0u32);
    // Each of them has a token to offer.
    let crowded = k.gt_u(vectors, format.room());
    k.if_else(
        crowded,
        |k| k.set(count, vectors),
        |k| {
            segment.for_each_noted(k, below, (notes, vectors), |k, above, place, logit| {
                let number = running_rank(k, above, lower, count);
                let fits = k.lt_u(number, format.room());
                let fits = k.and_p(fits, above);
                let at = k.mad_wide(number, format.bytes(), record);
                format.store(k, fits, at, place, logit);
            });
        },
    );
    let fits = k.le_u(count, format.room());
    k.branch_if(fits, done);
    k.set(count, 0u32);
    k.set(raised, f32::INFINITY);
    let few = k.lt_u(representatives, FEWEST);
    k.branch_if(few, done);
    let one_less = k.sub(representatives, 1u32);
    let higher = floor(k, segment, one_less, unused_bits);
    let next = k.shr_u(representatives, 1u32);
    k.set(representatives, next);
    k.set(raised, higher);
    // What is written lies above it.
    let size = k.abs_f(higher);
    let lower_still = below_by_rounding(k, higher, size);
    k.set(bound, lower_still);
    k.warp_barrier();
    k.branch(again);
    k.place(done);
    (count, raised)
}

/// The list of a row's better tokens while it is made, in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Collector {
    pub(super) team: Team,
    pub(super) format: Format,
    /// Where the list goes, and how many tokens it has room for.
    pub(super) list: R32,
    pub(super) room: u32,
    /// Two words: tokens that would be in the list, and segments that do not offer all that it is for.
    pub(super) counters: R32,
    /// Tokens of at least this key.
    pub(super) least: R32,
    pub(super) mass: Mass,
}

impl Collector {
    pub(super) fn put(self, k: &mut Builder, reaches: RP, key: R32, id: R32) {
        k.if_then(reaches, |k| {
            let place = k.atomic_add(self.counters, 0, 1u32);
            let fits = k.lt_u(place, self.room);
            let at = k.mad(place, ENTRY, self.list);
            k.if_then(fits, |k| {
                List::put(k, at, [key, id], self.mass);
            });
        });
    }

    /// Collects what is offered, by one warp: how many tokens, and whether there is too much for a list.
    ///
    /// Lanes look at the segments first, and note the vectors of offers, some at a time; then at those, all lanes at once; and at
    /// last at the changed tokens, if there are any.
    pub(super) fn gather(self, k: &mut Builder, (records, seen): (Records, &Seen), changed: RP) -> (R32, RP) {
        k.comment("collect what is offered");
        let per = VECTOR / self.format.bytes();
        // Where ranks will stand.
        let notes = k.add(self.list, self.room * ENTRY);
        let room = self.room * ENTRY / 4;
        let (count, noted, lost) = (k.mov(0u32), k.mov(0u32), k.mov(0u32));
        // The vectors that are noted at a time: from the first on, as many as there is room for.
        let first = k.mov(0u32);
        let again = k.label();
        k.place(again);
        k.set(noted, 0u32);
        records.for_offers(k, seen, |k, segments| {
            let own = k.mov(0u32);
            let segments: Vec<_> = segments
                .into_iter()
                .map(|(segment, exists, [max, raised, offers])| {
                    let [key, raised] = [max, raised].map(|bits| {
                        let logit = k.from_bits(bits);
                        order_key(k, logit)
                    });
                    let reaches = k.ge_u(key, self.least);
                    let reaches = k.and_p(reaches, exists);
                    let offers = k.select(reaches, offers, 0u32);
                    let raised = k.select(reaches, raised, 0u32);
                    let all = k.max_u(lost, raised);
                    k.set(lost, all);
                    let padded = k.add(offers, per - 1);
                    let vectors = k.shr_u(padded, per.ilog2());
                    let next = k.add(own, vectors);
                    k.set(own, next);
                    (segment, offers)
                })
                .collect();
            let through = warp_inclusive_sum_32(k, own);
            let before = k.sub(through, own);
            let all = k.shuffle_from(through, 31u32);
            let place = k.add(noted, before);
            let place = k.sub(place, first);
            let place = k.mov(place);
            for (segment, offers) in segments {
                // The vector's offset, and how many offers are left from it on.
                let at = k.mul(segment, PARTIAL_BYTES);
                let (at, left) = (k.mov(at), k.mov(offers));
                k.while_loop(
                    |k| k.gt_s(left, 0i32),
                    |k| {
                        let fits = k.lt_u(place, room);
                        let to = k.mad(place, 4u32, notes);
                        let some = k.min_u(left, per);
                        let note = k.or(at, some);
                        k.when(fits, |k| k.store(to, 0, note));
                        let (next, rest, further) = (k.add(place, 1u32), k.sub(left, per), k.add(at, VECTOR));
                        k.set(place, next);
                        k.set(left, rest);
                        k.set(at, further);
                    },
                );
            }
            let next = k.add(noted, all);
            k.set(noted, next);
        });
        k.warp_barrier();
        let (lane, lower) = (k.lane(), k.lanes_below());
        let rest = k.sub(noted, first);
        let seen = k.min_u(rest, room);
        let enter = |k: &mut Builder, exists: RP, [id, key]: [R32; 2]| {
            let good = k.ge_u(key, self.least);
            let good = k.and_p(good, exists);
            let number = running_rank(k, good, lower, count);
            let fits = k.lt_u(number, self.room);
            let fits = k.and_p(fits, good);
            let at = k.mad(number, ENTRY, self.list);
            k.when(fits, |k| k.store_vector(at, 0, [id, key]));
        };
        // All lanes go as far.
        let padded = k.add(seen, 31u32);
        let padded = k.and(padded, !31u32);
        k.for_loop(lane, padded, 32, |k, index| {
            let inside = k.lt_u(index, seen);
            let at = k.mad(index, 4u32, notes);
            let note = k.mov(0u32);
            k.when(inside, |k| k.load_into(note, at, 0, Cache::Default));
            let some = k.and(note, VECTOR - 1);
            let offset = k.and(note, !(VECTOR - 1));
            let from = k.widen_u(offset);
            let from = k.add(records.address, from);
            let offers: Vec<_> = (0..per)
                .map(|i| {
                    let exists = k.gt_u(some, i);
                    (exists, self.format.load(k, exists, from, i))
                })
                .collect();
            let segment = k.shr_u(note, PARTIAL_BYTES.ilog2());
            let start = k.mul(segment, self.format.tokens);
            for (exists, [key, place]) in offers {
                let id = k.add(start, place);
                enter(k, exists, [id, key]);
            }
        });
        let next = k.add(first, room);
        k.set(first, next);
        let more = k.lt_u(next, noted);
        let fits = k.le_u(count, self.room);
        let more = k.and_p(more, fits);
        k.if_then(more, |k| {
            k.warp_barrier();
            k.branch(again);
        });
        k.if_then(changed, |k| {
            let record = records.of(k, records.count);
            let (offers, crowded) = self.look_at(k, record);
            k.when(crowded, |k| k.set(lost, u32::MAX));
            k.for_loop(0u32, offers, 32, |k, first| {
                let number = k.add(first, lane);
                let exists = k.lt_u(number, offers);
                let at = k.mad_wide(number, OF_CHANGED.bytes(), record);
                let [key, id] = OF_CHANGED.load(k, exists, at, 0);
                enter(k, exists, [id, key]);
            });
        });
        k.warp_barrier();
        let most = k.warp_max_u(lost);
        let crowded = k.gt_u(most, self.least);
        let long = k.gt_u(count, self.room);
        (count, k.or_p(long, crowded))
    }

    /// Gives the `count` tokens that [`Collector::gather`] has left their masses, and leaves out those that cannot be kept where better
    /// ones weigh at most `limit` together: how many are left.
    ///
    /// A token and all that are worse weigh at most `count` times what it weighs. Where that is less than all of them have above the limit,
    /// those that are better have more than it.
    pub(super) fn weigh(self, k: &mut Builder, count: R32, limit: R64) -> R32 {
        k.comment("leave out what is light");
        let (lane, lower) = (k.lane(), k.lanes_below());
        let all = k.mov(0u64);
        k.for_loop(lane, count, 32, |k, index| {
            let at = k.mad(index, ENTRY, self.list);
            let [id, key] = k.load_vector::<B32, B32, 2>(at, 0, Cache::Default);
            let own = List::put(k, at, [key, id], self.mass);
            accumulate(k, all, own);
        });
        let all = warp_sum_52(k, all);
        let past = k.gt_u(all, limit);
        let excess = k.sub(all, limit);
        let excess = k.select(past, excess, 0u64);
        let (kept, times) = (k.mov(0u32), k.widen_u(count));
        k.for_loop(0u32, count, 32, |k, first| {
            let index = k.add(first, lane);
            let exists = k.lt_u(index, count);
            let at = k.mad(index, ENTRY, self.list);
            let entry = [0u32; 4].map(|word| k.mov(word));
            k.when(exists, |k| k.load_vector_into(entry, at, 0, Cache::Default));
            let own = k.join_wide(entry[2], entry[3]);
            let most = k.mul(own, times);
            let heavy = k.ge_u(most, excess);
            let heavy = k.and_p(heavy, exists);
            let number = running_rank(k, heavy, lower, kept);
            // All have read the tokens in whose place others come.
            k.warp_barrier();
            let to = k.mad(number, ENTRY, self.list);
            k.when(heavy, |k| k.store_vector(to, 0, entry));
        });
        kept
    }

    /// How many offers a record has for the list, and whether it does not have all.
    fn look_at(self, k: &mut Builder, record: R64) -> (R32, RP) {
        let max: RF = k.load(record, offset_of!(SegmentRecord, max) as i64);
        let raised: RF = k.load(record, RAISED);
        let offers: R32 = k.load(record, OFFERS);
        let [max, raised] = [max, raised].map(|logit| order_key(k, logit));
        let (reaches, lost) = (k.ge_u(max, self.least), k.gt_u(raised, self.least));
        (k.select(reaches, offers, 0u32), k.and_p(reaches, lost))
    }

    /// Puts the offers of a record in the list, of places counted from a token on.
    fn take(self, k: &mut Builder, record: R64, format: Format, start: R32) {
        let (offers, crowded) = self.look_at(k, record);
        k.when(crowded, |k| k.reduce_add(self.counters, 4, 1u32));
        let written = k.select(crowded, 0u32, offers);
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

    /// Collects what is offered, by a block: a segment a thread, since few have something, and the changed tokens one thread, if
    /// there are any. Whether some records are crowded.
    pub(super) fn collect(self, k: &mut Builder, records: Records, changed: RP) -> RP {
        k.comment("collect what is offered");
        let (thread, threads) = (self.team.thread(k), self.team.threads(k));
        let leader = k.eq(thread, 0u32);
        let zero = k.mov(0u32);
        k.when(leader, |k| k.store_vector(self.counters, 0, [zero, zero]));
        self.team.barrier(k);
        k.for_loop(thread, records.count, threads, |k, segment| {
            let record = records.of(k, segment);
            let start = records.start(k, segment, self.format.tokens);
            self.take(k, record, self.format, start);
        });
        k.if_then(changed, |k| {
            let shards = records.changed_count(k);
            k.for_loop(thread, shards, threads, |k, shard| {
                let record = records.changed(k, shard);
                self.take(k, record, OF_CHANGED, zero);
            });
        });
        self.team.barrier(k);
        let crowded: R32 = k.load(self.counters, 4);
        k.ne(crowded, 0u32)
    }

    /// Reads the crowded segments again, and the changed tokens where their record has no room: a segment without good tokens has many
    /// that are as good as its best.
    pub(super) fn read_again(self, k: &mut Builder, records: Records, logits: &Logits) {
        k.comment("crowded segments");
        let (thread, threads) = (self.team.thread(k), self.team.threads(k));
        let put = |k: &mut Builder, id: R32, logit: RF| {
            let key = order_key(k, logit);
            let reaches = k.ge_u(key, self.least);
            self.put(k, reaches, key, id);
        };
        k.for_loop(0u32, records.count, 1, |k, segment| {
            let record = records.of(k, segment);
            let (_, crowded) = self.look_at(k, record);
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
            let record = records.changed(k, 0u32);
            let (_, crowded) = self.look_at(k, record);
            k.if_then(crowded, |k| logits.patches.for_each(k, logits, (thread, threads), put));
        });
        self.team.barrier(k);
    }

    /// The list of `count` tokens, which are not more than there is room for.
    pub(super) fn list(self, k: &mut Builder, count: R32) -> List {
        List::new(k, self.team, self.list, count, self.room)
    }
}
