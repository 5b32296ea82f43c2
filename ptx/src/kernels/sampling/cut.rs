//! What filters keep of a row that offers too many tokens to rank them all.
//!
//! A crowded segment offers its best tokens only, so what is known of the row are all tokens above the highest bound of a segment:
//! mostly far more than a filter keeps. A histogram of them over their logits says in which bin the filters cut. Bins above are
//! kept whole, and only what lies in that bin is ranked, exactly. The histogram itself is in rounded numbers, for which shared
//! memory has atomics; where its error could matter, more than one bin is ranked.

use super::{
    filter::{self, Above, Filters, Kept, List, Standing},
    finish::MANY,
    layout::SegmentRecord,
    logits::accumulate,
    merge::Records,
    nucleus::{crossing, point},
    offers::{Collector, OFFERS, RAISED},
};
use crate::{
    isa::{B32, B64, Builder, Cache, Label, R32, R64, RF, RP, Rounding, SharedRegion},
    tile::{
        order::{from_order_key, order_key},
        reduce::{block_exclusive_sum, block_max, block_sum, warp_inclusive_sum, warp_sum_52},
    },
};
use std::mem::offset_of;

/// Bins, and segments that a row may have.
const BINS: u32 = 2048;
/// Bytes of a bin: mass in [`UNITS`] of the row, and tokens.
const BIN: u32 = 8;
const BINS_BYTES: u32 = BINS * BIN;
/// Bytes of [`Cut::room`]: the bins, and how many tokens each segment offers.
pub(super) const CUT_BYTES: u32 = BINS_BYTES + 4 * BINS;
/// The mass of a row, in the numbers of a bin.
const UNITS: f32 = (1u32 << 31) as f32;
/// What all bins together may be wrong by: half a unit a token, and the rounding of floats.
const ERROR: u32 = 1 << 15;
/// No bin.
const NONE: u32 = u32::MAX;
const VECTOR: u32 = 16;
/// Segments of a warp whose offers are on their way at once: as many as registers allow.
const BATCH: u32 = 2;

/// A row whose better tokens are to be cut off.
pub(super) struct Cut<'a> {
    /// Where the tokens that are ranked are listed, by the block.
    pub(super) collector: Collector,
    pub(super) records: Records,
    /// Shared memory of [`CUT_BYTES`].
    pub(super) room: R32,
    pub(super) scratch: SharedRegion,
    pub(super) slot: R32,
    pub(super) filters: &'a Filters,
    /// The row's mass, and the same as a float in units of the best token's.
    pub(super) total: R64,
    pub(super) total_float: RF,
}

/// How logits are shared out among the bins: the best first.
struct Scale {
    max: RF,
    bins: RF,
    /// Key of the least token that is looked at.
    least: R32,
}

impl Scale {
    fn bin(&self, k: &mut Builder, logit: RF) -> R32 {
        let below = k.sub_f(self.max, logit);
        let place = k.mul_f(below, self.bins);
        let bin = k.u_from_float(place, Rounding::Zero);
        k.min_u(bin, BINS - 1)
    }

    /// The bins in which weights may be above or below a limit, which is given by its log2; none, if that is behind all bins.
    fn bins_of_weight(&self, k: &mut Builder, scale: RF, limit: RF) -> (R32, R32) {
        let unit = k.rcp_f(scale);
        let below = k.mul_f(limit, unit);
        let place = k.mul_f(below, self.bins);
        let place = k.neg_f(place);
        let bin = k.u_from_float(place, Rounding::Zero);
        let (first, last) = (k.max_u(bin, 1u32), k.min_u(bin, BINS));
        let (first, last) = (k.sub(first, 1u32), k.add(last, 1u32));
        // The last bin has what lies behind it, too; and there may be no bins, where a segment offers nothing.
        let inside = k.lt_u(last, BINS - 1);
        let some = k.gt_f(self.bins, 0.0);
        let inside = k.and_p(inside, some);
        (first, k.select(inside, last, NONE))
    }
}

/// A token in a lane, if there is one that reaches what is looked at.
#[derive(Clone, Copy)]
struct Offered {
    reaches: RP,
    key: R32,
    id: R32,
}

impl Cut<'_> {
    /// What the filters keep, into `kept`; branches to `failed` if that cannot be told from what is offered, or takes too many
    /// tokens in one bin. For a whole block, of requests whose top-p looks at all tokens, and that change no logits.
    pub(super) fn keep(self, k: &mut Builder, (drawing, uniform): (RP, R32), kept: &Kept, failed: Label) {
        k.comment("cut by a histogram");
        let many = k.gt_u(self.records.segments, BINS);
        k.branch_if(many, failed);
        let (scale, raised) = self.scale(k);
        self.fill(k, &scale);
        let (first, last) = self.find(k, &scale);

        // Below what is looked at is nothing that matters: a filter cuts above it, or it was no segment's choice.
        let found = k.ne(last, NONE);
        let all = k.not_p(raised);
        let closed = k.or_p(found, all);
        k.branch_unless(closed, failed);

        let above = self.collect(k, &scale, (first, last));
        let listed = k.load(self.collector.counters, 0);
        let fits = k.le_u(listed, MANY);
        k.branch_unless(fits, failed);
        let list = self.collector.list(k, listed);
        filter::rank(k, &list, &above);
        let limit = self.filters.limit(k, self.total);
        let mass = self.collector.mass;
        let ranks = filter::drop_rest(k, &list, mass, self.filters, limit, &above, Some(self.scratch), kept);
        k.if_then(drawing, |k| {
            let cut = self.lowest(k, &list, ranks);
            let target = point(k, kept.mass, uniform);
            let (id, key) = self.draw(k, &scale, (first, cut), target);
            k.set(kept.token, id);
            let logit = from_order_key(k, key);
            k.set(kept.logit, logit);
        });
    }

    /// What is looked at, and whether a segment raised that. Notes on the way how many tokens segments offer.
    fn scale(&self, k: &mut Builder) -> (Scale, RP) {
        let (thread, threads) = (k.thread(), k.threads());
        let highest = k.mov(0u32);
        k.for_loop(thread, self.records.segments, threads, |k, segment| {
            let record = self.records.of(k, segment);
            let max: RF = k.load(record, offset_of!(SegmentRecord, max) as i64);
            let raised: RF = k.load(record, RAISED);
            let offers: R32 = k.load(record, OFFERS);
            let place = self.offers(k, segment);
            k.store(place, 0, offers);
            let [max, raised] = [max, raised].map(|logit| order_key(k, logit));
            let reaches = k.ge_u(max, self.collector.least);
            let own = k.select(reaches, raised, 0u32);
            let next = k.max_u(highest, own);
            k.set(highest, next);
        });
        let scratch = k.shared_address(self.scratch);
        let highest = block_max(k, scratch, highest);
        let raised = k.gt_u(highest, self.collector.least);
        let least = k.max_u(highest, self.collector.least);
        let max = self.collector.mass.max;
        let logit = from_order_key(k, least);
        let range = k.sub_f(max, logit);
        let range = k.rcp_f(range);
        (Scale { max, bins: k.mul_f(range, BINS as f32), least }, raised)
    }

    /// Runs `body` for what is offered, some segments of a warp at a time, in all its lanes at once; and `end` behind each segment,
    /// where there is one.
    fn for_each(
        &self,
        k: &mut Builder,
        least: R32,
        body: impl Fn(&mut Builder, Offered),
        end: impl Fn(&mut Builder, R32, RP),
    ) {
        let thread = k.thread();
        let warp = k.shr_u(thread, 5u32);
        let warps = k.threads() / 32;
        k.for_loop(warp, self.records.segments, warps * BATCH, |k, first| {
            let batch: Vec<_> = (0..BATCH)
                .map(|i| {
                    let segment = k.add(first, warps * i);
                    let exists = k.lt_u(segment, self.records.segments);
                    (segment, exists, self.load(k, segment, exists))
                })
                .collect();
            for (segment, exists, offers) in batch {
                for token in self.reaching(k, least, segment, offers) {
                    body(k, token);
                }
                end(k, segment, exists);
            }
        });
    }

    /// A lane's part of what a segment offers, if there is one: whether there is a token, key and place.
    fn load(&self, k: &mut Builder, segment: R32, exists: RP) -> Vec<(RP, [R32; 2])> {
        let format = self.collector.format;
        let per = VECTOR / format.bytes();
        let lane = k.lane();
        let (offers, at) = (k.mov(0u32), self.offers(k, segment));
        k.when(exists, |k| k.load_into(offers, at, 0, Cache::Default));
        let record = self.records.of(k, segment);
        let own = k.mul(lane, per);
        let at = k.mad_wide(lane, VECTOR, record);
        (0..per)
            .map(|i| {
                let number = k.add(own, i);
                let exists = k.lt_u(number, offers);
                (exists, format.load(k, exists, at, i))
            })
            .collect()
    }

    /// Where a segment's number of offers is kept.
    fn offers(&self, k: &mut Builder, segment: R32) -> R32 {
        let first = k.add(self.room, BINS_BYTES);
        k.mad(segment, 4u32, first)
    }

    /// Those that reach what is looked at.
    fn reaching(&self, k: &mut Builder, least: R32, segment: R32, tokens: Vec<(RP, [R32; 2])>) -> Vec<Offered> {
        let start = self.records.start(k, segment, self.collector.format.tokens);
        tokens
            .into_iter()
            .map(|(exists, [key, place])| {
                let reaches = k.ge_u(key, least);
                Offered { reaches: k.and_p(reaches, exists), key, id: k.add(start, place) }
            })
            .collect()
    }

    /// Fills the bins.
    fn fill(&self, k: &mut Builder, scale: &Scale) {
        let (thread, threads) = (k.thread(), k.threads());
        let zero = k.mov(0u32);
        k.for_loop(thread, BINS / 2, threads, |k, pair| {
            let at = k.mad(pair, 2 * BIN, self.room);
            k.store_vector(at, 0, [zero; 4]);
        });
        k.barrier();
        let unit = k.rcp_f(self.total_float);
        let unit = k.mul_f(unit, UNITS);
        let mass = self.collector.mass;
        let body = |k: &mut Builder, Offered { reaches, key, .. }: Offered| {
            let logit = from_order_key(k, key);
            let weight = mass.weight(k, logit);
            let weight = k.mul_f(weight, unit);
            let amount = k.u_from_float(weight, Rounding::Nearest);
            let bin = scale.bin(k, logit);
            let at = k.mad(bin, BIN, self.room);
            k.when(reaches, |k| {
                k.reduce_add(at, 0, amount);
                k.reduce_add(at, 4, 1u32);
            });
        };
        self.for_each(k, scale.least, body, |_, _, _| {});
        k.barrier();
    }

    /// The bins that the filters may cut in, first and last; or none. All tokens of earlier bins are kept, none of later ones.
    fn find(&self, k: &mut Builder, scale: &Scale) -> (R32, R32) {
        let (thread, threads) = (k.thread(), k.threads());
        let scratch = k.shared_address(self.scratch);
        let each = BINS / threads;
        let own = k.mul(thread, each);
        let at = k.mad(own, BIN, self.room);
        let bins: Vec<[R32; 2]> =
            (0..each).map(|i| k.load_vector::<B32, B32, 2>(at, i64::from(i * BIN), Cache::Default)).collect();
        let [mut through, mut tokens] = [0, 1].map(|word| {
            let sum = bins.iter().map(|bin| bin[word]).reduce(|a, b| k.add(a, b)).expect("a thread has bins");
            block_exclusive_sum(k, scratch, sum).0
        });
        let limit = k.mul_f(self.filters.top_p, UNITS);
        let limit = k.u_from_float(limit, Rounding::Zero);
        let lower = k.max_u(limit, ERROR);
        let lower = k.sub(lower, ERROR);
        let upper = k.add(limit, ERROR);
        let (first, last) = (k.mov(NONE), k.mov(NONE));
        let enter = |k: &mut Builder, place: R32, condition: RP, bin: R32| {
            let earlier = k.min_u(place, bin);
            k.when(condition, |k| k.set(place, earlier));
        };
        for (i, [mass, count]) in (0u32..).zip(bins) {
            let bin = k.add(own, i);
            through = k.add(through, mass);
            tokens = k.add(tokens, count);
            let crowded = k.gt_u(tokens, self.filters.one_less);
            let crowded = k.and_p(crowded, self.filters.by_count);
            for (place, limit) in [(first, lower), (last, upper)] {
                let heavy = k.gt_u(through, limit);
                let heavy = k.and_p(heavy, self.filters.by_mass);
                let cuts = k.or_p(heavy, crowded);
                enter(k, place, cuts, bin);
            }
        }
        let [first, last] = [first, last].map(|place| {
            let opposite = k.not(place);
            let earliest = block_max(k, scratch, opposite);
            k.not(earliest)
        });
        let (begin, end) = scale.bins_of_weight(k, self.collector.mass.scale, self.filters.least);
        (k.min_u(first, begin), k.min_u(last, end))
    }

    /// Sums up the bins before `first`, and lists the tokens from there to `last`.
    fn collect(&self, k: &mut Builder, scale: &Scale, (first, last): (R32, R32)) -> Above {
        let leader = k.thread();
        let leader = k.eq(leader, 0u32);
        k.when(leader, |k| k.store::<B32, B32>(self.collector.counters, 0, 0u32));
        k.barrier();
        let sums = [0u64; 2].map(|zero| k.mov(zero));
        let tokens = k.mov(0u32);
        let mass = self.collector.mass;
        let body = |k: &mut Builder, Offered { reaches, key, id }: Offered| {
            let logit = from_order_key(k, key);
            let bin = scale.bin(k, logit);
            let above = k.lt_u(bin, first);
            let above = k.and_p(above, reaches);
            let (own, surprise) = mass.with_surprise(k, logit);
            for (sum, share) in sums.into_iter().zip([own, surprise]) {
                let share = k.select(above, share, 0u64);
                accumulate(k, sum, share);
            }
            let one = k.select::<B32>(above, 1u32, 0u32);
            let more = k.add(tokens, one);
            k.set(tokens, more);
            let (begun, open) = (k.ge_u(bin, first), k.le_u(bin, last));
            let cuts = k.and_p(begun, open);
            let cuts = k.and_p(cuts, reaches);
            self.collector.put(k, cuts, key, id);
        };
        self.for_each(k, scale.least, body, |_, _, _| {});
        let scratch = k.shared_address(self.scratch);
        let tokens = k.widen_u(tokens);
        let [mass, surprise, count] = block_sum(k, scratch, [sums[0], sums[1], tokens]);
        Above { mass, count, surprise }
    }

    /// The standing of the last token of the list that ranks keep, better than any in it if they keep none; `ranks` is what
    /// [`filter::drop_rest`] says.
    fn lowest(&self, k: &mut Builder, list: &List, ranks: R32) -> R64 {
        let scratch = k.shared_address(self.scratch);
        let last = block_max(k, scratch, ranks);
        let leader = k.thread();
        let leader = k.eq(leader, 0u32);
        k.when(leader, |k| k.store::<B64, B32>(self.slot, 0, u64::MAX));
        k.barrier();
        list.for_own(k, |k, at, standing, _| {
            let (rank, _) = list.ranked(k, at);
            let through = k.add(rank, 1u32);
            let is_last = k.eq(through, last);
            let standing = standing.joined(k);
            k.when(is_last, |k| k.store(self.slot, 0, standing));
        });
        k.barrier();
        k.load(self.slot, 0)
    }

    /// The token at a point of the mass that is kept, by id: its id and its key.
    fn draw(&self, k: &mut Builder, scale: &Scale, (first, cut): (R32, R64), target: R64) -> (R32, R32) {
        k.comment("draw from what is cut off");
        let lane = k.lane();
        let leads = k.eq(lane, 0u32);
        let mass = self.collector.mass;
        let kept_mass = |k: &mut Builder, Offered { reaches, key, id }: Offered| {
            let logit = from_order_key(k, key);
            let bin = scale.bin(k, logit);
            let above = k.lt_u(bin, first);
            let standing = Standing { opposite: k.not(id), key }.joined(k);
            let ranked = k.ge_u(standing, cut);
            let likely = self.filters.likely(k, mass, logit);
            let ranked = k.and_p(ranked, likely);
            let kept = k.or_p(above, ranked);
            let kept = k.and_p(kept, reaches);
            let own = mass.of(k, logit);
            k.select(kept, own, 0u64)
        };
        let sum = k.mov(0u64);
        let add = |k: &mut Builder, token: Offered| {
            let own = kept_mass(k, token);
            accumulate(k, sum, own);
        };
        // Where the bins were.
        self.for_each(k, scale.least, add, |k, segment, exists| {
            let all = warp_sum_52(k, sum);
            let at = k.mad(segment, 8u32, self.room);
            let writes = k.and_p(leads, exists);
            k.when(writes, |k| k.store(at, 0, all));
            k.set(sum, 0u64);
        });
        k.barrier();

        // All warps look for the same.
        let (start, rest, hit) = (k.mov(0u32), k.mov(target), k.mov(0u32));
        let (again, found) = (k.label(), k.label());
        k.place(again);
        let segment = k.add(start, lane);
        let inside = k.lt_u(segment, self.records.segments);
        let at = k.mad(segment, 8u32, self.room);
        let own = k.mov(0u64);
        k.when(inside, |k| k.load_into(own, at, 0, Cache::Default));
        let through = warp_inclusive_sum(k, own);
        let lane_hit = crossing(k, through, rest);
        let here = k.lt_u(lane_hit, 32u32);
        let source = k.min_u(lane_hit, 31u32);
        let before = k.sub(through, own);
        let passed = k.select(here, before, through);
        let halves = k.split_wide(passed).map(|half| k.shuffle_from(half, source));
        let passed = k.join_wide(halves[0], halves[1]);
        let next = k.sub(rest, passed);
        k.set(rest, next);
        let own = k.add(start, lane_hit);
        k.set(hit, own);
        k.branch_if(here, found);
        let next = k.add(start, 32u32);
        k.set(start, next);
        let more = k.lt_u(start, self.records.segments);
        k.branch_if(more, again);
        // There is a token for every point of the sum of all.
        k.set(hit, 0u32);
        k.place(found);

        self.locate(k, scale.least, hit, rest, kept_mass)
    }

    /// The token of a segment at a point of its mass, by id, from the masses that `weigh` gives them.
    fn locate(
        &self,
        k: &mut Builder,
        least: R32,
        segment: R32,
        rest: R64,
        weigh: impl Fn(&mut Builder, Offered) -> R64,
    ) -> (R32, R32) {
        let exists = k.lt_u(segment, self.records.segments);
        let offers = self.load(k, segment, exists);
        let own = self.reaching(k, least, segment, offers);
        let own: Vec<_> = own.into_iter().map(|token| (token, weigh(k, token))).collect();
        let start = self.records.start(k, segment, self.collector.format.tokens);
        // The highest place before which there is no more than the rest.
        let (id, step) = (k.mov(start), k.mov(self.collector.format.tokens / 2));
        k.while_loop(
            |k| k.ne(step, 0u32),
            |k| {
                let candidate = k.add(id, step);
                let before = k.mov(0u64);
                for &(token, mass) in &own {
                    let earlier = k.lt_u(token.id, candidate);
                    let share = k.select(earlier, mass, 0u64);
                    accumulate(k, before, share);
                }
                let before = warp_sum_52(k, before);
                let open = k.le_u(before, rest);
                k.when(open, |k| k.set(id, candidate));
                let next = k.shr_u(step, 1u32);
                k.set(step, next);
            },
        );
        let key = k.mov(0u32);
        for (token, _) in own {
            let same = k.eq(token.id, id);
            let same = k.and_p(same, token.reaches);
            k.when(same, |k| k.set(key, token.key));
        }
        (id, k.warp_max_u(key))
    }
}
