//! Tokens whose logits a request changes: by biases of its own, and by the credits that earlier steps have left at the position.
//!
//! Whoever reads such a token with its part of the row takes it out there. All of them form one more segment behind the row's others,
//! with a record of its own: their logits are single-precision numbers, and what comes after the records need not know.

use super::{
    entry::Asked,
    filter::Filters,
    functions::ln_one_plus,
    layout::{CreditHeader, MAX_BIASES, MAX_CREDITS, RowParameters, row_flags},
    logits::{Logits, Mass, clean},
    merge::{Contest, draw_among},
    offers::{self, Bound},
    row::Arguments,
    segment::{SEGMENT_BYTES, Segment},
};
use crate::{
    isa::{B32, B64, Builder, Cache, F32, R32, R64, RF, RP},
    tile::{
        ballot::running_rank,
        order::{from_order_key, order_key},
        reduce::group_sum_f,
    },
};
use std::{
    f32::consts::LOG2_E,
    mem::{offset_of, size_of},
};

/// Far enough below the largest logit, in powers of two, to weigh nothing.
const NOTHING: f32 = -1024.0;

/// Pairs of a token id and a number, ids ascending.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub(super) address: R64,
    pub(super) count: R32,
}

impl List {
    fn empty(k: &mut Builder) -> List {
        List { address: k.mov(0u64), count: k.mov(0u32) }
    }

    pub(super) fn entry(self, k: &mut Builder, index: R32) -> (R32, RF) {
        let at = k.mad_wide(index, 8u32, self.address);
        let [id, number] = k.load_vector::<B32, B64, 2>(at, 0, Cache::Default);
        (id, k.from_bits(number))
    }

    /// The first entry of at least this id.
    fn lower_bound(self, k: &mut Builder, id: R32) -> R32 {
        let (low, high) = (k.mov(0u32), k.mov(self.count));
        k.while_loop(
            |k| k.lt_u(low, high),
            |k| {
                let sum = k.add(low, high);
                let middle = k.shr_u(sum, 1u32);
                let (other, _) = self.entry(k, middle);
                let before = k.lt_u(other, id);
                let past = k.add(middle, 1u32);
                let next = k.select(before, past, low);
                k.set(low, next);
                let next = k.select(before, high, middle);
                k.set(high, next);
            },
        );
        low
    }

    /// The number of a token, or 0; and whether the list has it.
    fn find(self, k: &mut Builder, id: R32) -> (RF, RP) {
        let (number, found) = (k.mov::<F32>(0.0f32), k.mov(0u32));
        let index = self.lower_bound(k, id);
        let inside = k.lt_u(index, self.count);
        k.if_then(inside, |k| {
            let (other, own) = self.entry(k, index);
            let same = k.eq(other, id);
            k.when(same, |k| {
                k.set(number, own);
                k.set(found, 1u32);
            });
        });
        (number, k.ne(found, 0u32))
    }
}

/// The changed tokens of a row.
#[derive(Clone, Copy)]
pub(super) struct Patches {
    biases: List,
    credits: List,
    credit_weight: RF,
    /// Id of the first token of the logits, and how many they are.
    first_token: R32,
    tokens: R32,
    /// Whether there are any.
    pub(super) any: RP,
}

impl Patches {
    /// Whether a request changes any token; what it is asked everywhere, before anything else is read.
    pub(super) fn some(k: &mut Builder, asked: Asked, arguments: &Arguments) -> RP {
        let count = asked.word(k, offset_of!(RowParameters, bias_count));
        let biased = k.ne(count, 0u32);
        let credited = Patches::credited(k, asked, arguments);
        k.or_p(biased, credited)
    }

    /// Whether credits count in this launch.
    fn credited(k: &mut Builder, asked: Asked, arguments: &Arguments) -> RP {
        let has = asked.has_credits(k, arguments);
        let counts = k.eq(arguments.credit_pass, 0u32);
        k.and_p(has, counts)
    }

    pub(super) fn load(k: &mut Builder, asked: Asked, arguments: &Arguments) -> Patches {
        let start = asked.word(k, offset_of!(RowParameters, bias_start));
        let count = asked.word(k, offset_of!(RowParameters, bias_count));
        let biases = List { address: k.mad_wide(start, 8u32, arguments.biases), count };
        let credits = List::empty(k);
        let credited = Patches::credited(k, asked, arguments);
        k.if_then(credited, |k| {
            let own = Patches::credits_of(k, asked, arguments);
            k.set(credits.address, own.address);
            k.set(credits.count, own.count);
        });
        let all = k.add(count, credits.count);
        let credit_weight = asked.float(k, offset_of!(RowParameters, credit_weight));
        let (first_token, tokens) = (arguments.first_token, arguments.vocab);
        Patches { biases, credits, credit_weight, first_token, tokens, any: k.ne(all, 0u32) }
    }

    /// The credits that a row's position has; none, if the place was another position's, or another request's before it.
    pub(super) fn credits_of(k: &mut Builder, asked: Asked, arguments: &Arguments) -> List {
        let header = asked.credit_header(k, arguments);
        let [owner, count] = k.load_vector::<B32, B64, 2>(header, 0, Cache::Default);
        let position = asked.position(k);
        let name = k.add(position, 1u32);
        let own = k.eq(owner, name);
        let count = k.min_u(count, MAX_CREDITS);
        let bytes = k.mov(size_of::<CreditHeader>() as u64);
        List { address: k.add(header, bytes), count: k.select(own, count, 0u32) }
    }

    /// A logit, changed.
    fn change(self, k: &mut Builder, logit: RF, bias: RF, credit: RF) -> RF {
        let changed = k.add_f(logit, bias);
        let some = k.ne(self.credits.count, 0u32);
        k.if_then(some, |k| {
            let log = ln_one_plus(k, credit);
            let more = k.mul_f(self.credit_weight, log);
            let fused = k.add_f(changed, more);
            k.set(changed, fused);
        });
        clean(k, changed, f32::MAX)
    }

    /// The logit of a token as it counts, from its logit in the row; and whether the token is a changed one.
    pub(super) fn apply(self, k: &mut Builder, id: R32, logit: RF) -> (RF, RP) {
        let (bias, biased) = self.biases.find(k, id);
        let (credit, credited) = self.credits.find(k, id);
        (self.change(k, logit, bias, credit), k.or_p(biased, credited))
    }

    /// Takes the changed tokens out of a segment that holds the row's own logits, in its warp.
    pub(super) fn take_out(self, k: &mut Builder, segment: Segment) {
        k.comment("without the changed tokens");
        let lane = k.lane();
        for list in [self.biases, self.credits] {
            // By whole warps, so that `ptxas` sees that it does not part.
            k.for_loop(0u32, list.count, 32, |k, first| {
                let index = k.add(first, lane);
                let exists = k.lt_u(index, list.count);
                let id = k.mov(u32::MAX);
                let at = k.mad_wide(index, 8u32, list.address);
                k.when(exists, |k| k.load_into(id, at, 0, Cache::Default));
                segment.take_out(k, id);
            });
            // A token may be in both.
            k.warp_barrier();
        }
    }

    /// How many places [`Patches::token`] has.
    fn places(self, k: &mut Builder) -> R32 {
        k.add(self.biases.count, self.credits.count)
    }

    /// The changed token in a place: first those with a bias, then those with a credit alone, of each the ids ascending. Where
    /// there is none, no id, and −∞.
    fn token(self, k: &mut Builder, logits: &Logits, place: R32) -> (R32, RF) {
        let id = k.mov(u32::MAX);
        let [bias, credit] = [(); 2].map(|()| k.mov::<F32>(0.0f32));
        let biased = k.lt_u(place, self.biases.count);
        k.if_then(biased, |k| {
            let (name, own) = self.biases.entry(k, place);
            let (found, _) = self.credits.find(k, name);
            k.set(id, name);
            k.set(bias, own);
            k.set(credit, found);
        });
        let rest = k.sub(place, self.biases.count);
        let credited = k.lt_u(rest, self.credits.count);
        k.if_then(credited, |k| {
            let (name, own) = self.credits.entry(k, rest);
            let (_, twice) = self.biases.find(k, name);
            let name = k.select(twice, u32::MAX, name);
            k.set(id, name);
            k.set(credit, own);
        });
        let logit = k.mov::<F32>(f32::NEG_INFINITY);
        let local = k.sub(id, self.first_token);
        let here = k.lt_u(local, self.tokens);
        let exists = k.lt_u(id, logits.limit);
        let exists = k.and_p(exists, here);
        k.if_then(exists, |k| {
            let stored = logits.stored(k, local);
            let changed = self.change(k, stored, bias, credit);
            k.set(logit, changed);
        });
        (id, logit)
    }

    /// Runs `body` for the changed tokens that are there, spread over so many threads.
    pub(super) fn for_each(
        self,
        k: &mut Builder,
        logits: &Logits,
        (thread, threads): (R32, u32),
        body: impl FnOnce(&mut Builder, R32, RF),
    ) {
        let places = self.places(k);
        k.for_loop(thread, places, threads, |k, place| {
            let (id, logit) = self.token(k, logits, place);
            let some = k.gt_f(logit, f32::NEG_INFINITY);
            k.if_then(some, |k| body(k, id, logit));
        });
    }

    /// What is wrong with the biases: [`row_flags::BAD_BIASES`], or 0. For a whole warp.
    fn flags(self, k: &mut Builder, vocab: R32) -> R32 {
        let wrong = k.mov(0u32);
        let lane = k.lane();
        k.for_loop(lane, self.biases.count, 32, |k, index| {
            let (id, _) = self.biases.entry(k, index);
            let past = k.ge_u(id, vocab);
            k.when(past, |k| k.set(wrong, row_flags::BAD_BIASES));
            let later = k.ne(index, 0u32);
            k.if_then(later, |k| {
                let before = k.sub(index, 1u32);
                let (before, _) = self.biases.entry(k, before);
                let falls = k.ge_u(before, id);
                k.when(falls, |k| k.set(wrong, row_flags::BAD_BIASES));
            });
        });
        k.warp_max_u(wrong)
    }

    /// Leaves the record of the changed tokens, and what they offer, in one warp. `room` has [`TABLE_BYTES`]. Where an
    /// unfiltered draw is wanted, it draws a token by place.
    pub(super) fn leave(self, k: &mut Builder, logits: &Logits, asked: Asked, (room, record): (R32, R64), vocab: R32) {
        k.comment("changed tokens");
        let drawing = asked.drawing(k);
        let filters = Filters::of(k, asked, drawing.flags, vocab);
        let places = self.places(k);
        let table = Table { address: room, places };
        k.warp_barrier();
        table.for_lines(k, |k, at, place| {
            let (id, logit) = self.token(k, logits, place);
            let logit = k.bits(logit);
            k.store_vector(at, 0, [id, logit]);
        });
        k.warp_barrier();
        let contest = Contest::new(k);
        table.for_each(k, |k, id, logit| {
            let key = order_key(k, logit);
            contest.enter(k, key, id);
        });
        let [best, argmax, second] = contest.settle(k);
        let [max, second] = [best, second].map(|key| from_order_key(k, key));
        let empty = k.eq_f(max, f32::NEG_INFINITY);
        let reference = k.select(empty, 0.0f32, max);

        let sums = [(); 4].map(|()| k.mov::<F32>(0.0f32));
        let scales = [k.mov(LOG2_E), drawing.scale];
        table.for_each(k, |k, id, logit| {
            let other = k.ne(id, argmax);
            let below = k.sub_f(logit, reference);
            for (scale, [sum, surprise]) in scales.into_iter().zip([[sums[0], sums[1]], [sums[2], sums[3]]]) {
                let exponent = k.mul_f(below, scale);
                let exponent = k.max_f(exponent, NOTHING);
                let weight = k.exp2_f(exponent);
                let weight = k.select(other, weight, 0.0f32);
                let next = k.add_f(sum, weight);
                k.set(sum, next);
                let next = k.fma(weight, exponent, surprise);
                k.set(surprise, next);
            }
        });
        let [excess, surprise, tempered_excess, tempered_surprise] = sums.map(|sum| group_sum_f(k, sum, 32));

        let mass = Mass { max: reference, scale: drawing.scale };
        let (token, logit) = (k.mov(argmax), k.mov(max));
        let unfiltered = k.not_p(filters.any);
        let draws = k.and_p(drawing.warm, unfiltered);
        k.if_then(draws, |k| {
            let [_, uniform] = asked.uniforms(k);
            let hit = draw_among(k, places, uniform, |k, place| {
                let at = table.entry(k, place);
                let logit = k.load(at, 4);
                mass.weight(k, logit)
            });
            let at = table.entry(k, hit);
            let id = k.load(at, 0);
            k.set(token, id);
            let own = k.load(at, 4);
            k.set(logit, own);
        });

        k.if_then(filters.any, |k| {
            let offered = k.mov(0u32);
            let floor = k.mov(f32::NEG_INFINITY);
            let bound = asked.noted(k);
            let bound = Bound::from_words(k, bound).logit(k, mass.max, tempered_excess, floor);
            let lower = k.lanes_below();
            table.for_each(k, |k, id, logit| {
                let some = k.gt_f(logit, f32::NEG_INFINITY);
                let reaches = k.ge_f(logit, bound);
                let reaches = k.and_p(reaches, some);
                let place = running_rank(k, reaches, lower, offered);
                let fits = k.lt_u(place, offers::OF_CHANGED.room());
                let fits = k.and_p(fits, reaches);
                let at = k.mad_wide(place, offers::OF_CHANGED.bytes(), record);
                offers::OF_CHANGED.store(k, fits, at, id, logit);
            });
            let crowded = k.gt_u(offered, offers::OF_CHANGED.room());
            let raised = k.select(crowded, f32::INFINITY, f32::NEG_INFINITY);
            k.set(logit, raised);
            let written = k.select(crowded, 0u32, offered);
            k.set(token, written);
        });

        let flags = self.flags(k, vocab);
        let leader = k.lane();
        let leader = k.eq(leader, 0u32);
        k.if_then(leader, |k| {
            let [max, second, logit] = [max, second, logit].map(|value| k.bits(value));
            let floor = k.mov(f32::NEG_INFINITY.to_bits());
            k.store_vector(record, 0, [max, argmax, second, floor]);
            k.store_vector(record, 16, [excess, tempered_excess, surprise, tempered_surprise]);
            k.store_vector(record, 32, [logit, token, flags, flags]);
        });
    }
}

/// Bytes of a [`Table`]: what a segment in shared memory has, whose place it takes.
const TABLE_BYTES: u32 = ENTRY * (MAX_BIASES + MAX_CREDITS);
const ENTRY: u32 = 8;
const _: () = assert!(TABLE_BYTES <= SEGMENT_BYTES && (MAX_BIASES + MAX_CREDITS).is_multiple_of(32));

/// Changed tokens in shared memory: an id and a logit a place, filled up to whole lines of a warp.
#[derive(Clone, Copy)]
struct Table {
    address: R32,
    places: R32,
}

impl Table {
    fn entry(self, k: &mut Builder, place: R32) -> R32 {
        k.mad(place, ENTRY, self.address)
    }

    /// Runs `body` for all places, a line at a time, in all lanes: address and place.
    fn for_lines(self, k: &mut Builder, body: impl FnOnce(&mut Builder, R32, R32)) {
        let lane = k.lane();
        k.for_loop(0u32, self.places, 32, |k, first| {
            let place = k.add(first, lane);
            let at = self.entry(k, place);
            body(k, at, place);
        });
    }

    /// The same with id and logit: −∞ where there is no token.
    fn for_each(self, k: &mut Builder, body: impl FnOnce(&mut Builder, R32, RF)) {
        self.for_lines(k, |k, at, _| {
            let [id, logit] = k.load_vector::<B32, B32, 2>(at, 0, Cache::Default);
            let logit = k.from_bits(logit);
            body(k, id, logit);
        });
    }
}
