//! A row from the records of its segments. One warp does it, each lane with every 32nd segment, so that the order of the sums
//! depends on the number of segments alone.

use super::{
    layout::{PARTIAL_BYTES, SegmentRecord},
    logits::Mass,
    row::Arguments,
    shards::ShardRecords,
};
use crate::{
    isa::{B32, Builder, Cache, F32, R32, R64, RF, RP, Source},
    tile::{
        order::{NEGATIVE_INFINITY, from_order_key, order_key},
        reduce::{group_sum_f, warp_inclusive_sum_f},
    },
};
use std::{f32::consts::LOG2_E, mem::offset_of};

/// Where the records of a row are, and how many.
#[derive(Clone, Copy)]
pub(super) struct Records {
    pub(super) address: R64,
    /// How many are looked at: those of segments, and then those of changed tokens.
    pub(super) count: R32,
    /// Those of segments.
    pub(super) segments: R32,
    /// Records that a row has room for; the last is that of the changed tokens.
    places: R32,
    shards: Option<ShardRecords>,
}

/// A row's statistics, relative to its largest logit.
pub(super) struct Row {
    pub(super) max: RF,
    pub(super) argmax: R32,
    pub(super) second: RF,
    /// Σ w of all tokens but the best.
    pub(super) excess: RF,
    pub(super) tempered_excess: RF,
    /// Σ w log2 w.
    pub(super) surprise: RF,
    pub(super) tempered_surprise: RF,
    /// At least `top_k` tokens have this logit or a larger one.
    pub(super) floor: RF,
}

/// What a lane holds of a record; of none, what changes nothing.
struct Held {
    /// Largest logit and its token, second largest, floor.
    head: [R32; 4],
    /// Raw and tempered.
    excesses: [RF; 2],
    /// The raised bound of its offers, and their number.
    offers: [R32; 2],
}

impl Held {
    fn new(k: &mut Builder) -> Held {
        // Written here too: what may be read unwritten counts as in use wherever the kernel has been before.
        Held {
            head: [(); 4].map(|()| k.mov(0u32)),
            excesses: [(); 2].map(|()| k.mov(0.0f32)),
            offers: [(); 2].map(|()| k.mov(0u32)),
        }
    }
}

/// Some records of each lane: those that [`Records::merge`] has seen last, which are all of a row of few segments.
pub(super) struct Seen {
    held: [Held; BATCH as usize],
    /// Whether there are more.
    several: RP,
}

/// Records that a lane loads at once, so that a row of few segments waits for memory once.
const BATCH: u32 = 3;

impl Records {
    /// Those of a list entry's segments.
    pub(super) fn of_entry(k: &mut Builder, arguments: &Arguments, index: R32) -> Records {
        let (segments, places) = (arguments.segments(k), arguments.records);
        let before = k.mul(index, places);
        let address = k.mad_wide(before, PARTIAL_BYTES, arguments.partials);
        let shards = arguments.shards.map(|shards| shards.records(k, arguments));
        Records { address, count: segments, segments, places, shards }
    }

    /// How many there are of changed tokens, if a row has any: one for each part of the vocabulary.
    pub(super) fn changed_count(self, k: &mut Builder) -> R32 {
        match self.shards {
            None => k.mov(1u32),
            Some(shards) => shards.count,
        }
    }

    /// With those of the changed tokens, behind the others, if there are `any`.
    pub(super) fn with_changed(self, k: &mut Builder, any: RP) -> Records {
        let changed = self.changed_count(k);
        let all = k.add(self.count, changed);
        Records { count: k.select(any, all, self.count), ..self }
    }

    /// A record by its number.
    pub(super) fn of(self, k: &mut Builder, number: R32) -> R64 {
        let Some(shards) = self.shards else { return k.mad_wide(number, PARTIAL_BYTES, self.address) };
        let changed = k.ge_u(number, self.segments);
        let of_changed = k.sub(number, self.segments);
        let (shard, segment) = shards.locate(k, number);
        let last = k.sub(self.places, 1u32);
        let shard = k.select(changed, of_changed, shard);
        let place = k.select(changed, last, segment);
        let own = shards.address(k, self.address, shard);
        k.mad_wide(place, PARTIAL_BYTES, own)
    }

    /// That of the changed tokens, of those of part `shard`.
    pub(super) fn changed(self, k: &mut Builder, shard: impl Into<Source<B32>>) -> R64 {
        let last = k.sub(self.places, 1u32);
        let own = match self.shards {
            None => self.address,
            Some(shards) => {
                let shard = k.mov(shard);
                shards.address(k, self.address, shard)
            }
        };
        k.mad_wide(last, PARTIAL_BYTES, own)
    }

    /// First token of a segment of `tokens`.
    pub(super) fn start(self, k: &mut Builder, number: R32, tokens: u32) -> R32 {
        let Some(shards) = self.shards else { return k.mul(number, tokens) };
        let (shard, segment) = shards.locate(k, number);
        let first = k.mul(shard, shards.tokens);
        k.mad(segment, tokens, first)
    }

    /// Runs `body` for some of this lane's records at a time, which are loaded all at once: segment, record, and whether there is
    /// one.
    pub(super) fn for_batches<T>(
        self,
        k: &mut Builder,
        load: impl Fn(&mut Builder, R32, R64, RP) -> T,
        body: impl FnOnce(&mut Builder, Vec<T>),
    ) {
        let lane = k.lane();
        k.for_loop(0u32, self.count, 32 * BATCH, |k, first| {
            let first = k.add(first, lane);
            let loaded: Vec<T> = (0..BATCH)
                .map(|i| {
                    let segment = k.add(first, 32 * i);
                    let exists = k.lt_u(segment, self.count);
                    let record = self.of(k, segment);
                    load(k, segment, record, exists)
                })
                .collect();
            body(k, loaded);
        });
    }

    /// The whole row. `scale` is that of the temperature; surprises are summed where somebody reads them.
    pub(super) fn merge(self, k: &mut Builder, scale: RF, surprised: RP) -> (Row, Seen) {
        k.comment("merge the segments");
        let (contest, floor) = (Contest::new(k), k.mov(0u32));
        let held: [Held; BATCH as usize] = std::array::from_fn(|_| Held::new(k));
        k.for_loop(0u32, self.count, 32 * BATCH, |k, first| {
            self.hold(k, first, &held);
            for &Held { head: [max, argmax, other, own], .. } in &held {
                let [key, other, own] = [max, other, own].map(|bits| {
                    let value = k.from_bits(bits);
                    order_key(k, value)
                });
                contest.enter(k, key, argmax);
                contest.lose(k, other);
                let next = k.max_u(floor, own);
                k.set(floor, next);
            }
        });
        let [key, argmax, rest] = contest.settle(k);
        let floor = k.warp_max_u(floor);
        let [max, second, floor] = [key, rest, floor].map(|key| from_order_key(k, key));

        let excesses = [(); 2].map(|()| k.mov::<F32>(0.0f32));
        let scales = [k.mov(LOG2_E), scale];
        // What fits is still there.
        let several = k.gt_u(self.count, 32 * BATCH);
        k.for_loop(0u32, self.count, 32 * BATCH, |k, first| {
            k.if_then(several, |k| self.hold(k, first, &held));
            for &Held { head: [own, name, ..], excesses: of_record, .. } in &held {
                let own = k.from_bits(own);
                // The segment of the best token has that one's weight apart.
                let holds_best = k.eq(name, argmax);
                let apart = k.select(holds_best, 0.0f32, 1.0f32);
                let below = k.sub_f(own, max);
                for i in 0..2 {
                    let (_, factor) = factor(k, below, scales[i]);
                    let others = k.add_f(of_record[i], apart);
                    let next = k.fma(factor, others, excesses[i]);
                    k.set(excesses[i], next);
                }
            }
        });
        let [excess, tempered_excess] = excesses.map(|sum| group_sum_f(k, sum, 32));
        let [surprise, tempered_surprise] = self.surprises(k, max, scales, surprised);
        let row = Row { max, argmax, second, excess, tempered_excess, surprise, tempered_surprise, floor };
        (row, Seen { held, several })
    }

    /// Runs `body` for some of this lane's records at a time: segment, whether there is one, its largest logit as bits, the raised bound of
    /// its offers, and their number. `seen` is what merging has left, of these records and perhaps that of changed tokens.
    pub(super) fn for_offers(
        self,
        k: &mut Builder,
        seen: &Seen,
        body: impl FnOnce(&mut Builder, Vec<(R32, RP, [R32; 3])>),
    ) {
        let lane = k.lane();
        k.for_loop(0u32, self.count, 32 * BATCH, |k, first| {
            k.if_then(seen.several, |k| self.hold(k, first, &seen.held));
            let first = k.add(first, lane);
            let segments = (0u32..)
                .zip(&seen.held)
                .map(|(i, held)| {
                    let segment = k.add(first, 32 * i);
                    let exists = k.lt_u(segment, self.count);
                    (segment, exists, [held.head[0], held.offers[0], held.offers[1]])
                })
                .collect();
            body(k, segments);
        });
    }

    /// Sums of surprise, raw and tempered; 0 unless they are `wanted`.
    fn surprises(self, k: &mut Builder, max: RF, scales: [RF; 2], wanted: RP) -> [RF; 2] {
        let sums = [(); 2].map(|()| k.mov::<F32>(0.0f32));
        k.if_then(wanted, |k| {
            let load = |k: &mut Builder, _, record: R64, exists: RP| {
                let (own, parts) = (k.mov(f32::NEG_INFINITY), [(); 4].map(|()| k.mov::<F32>(0.0f32)));
                k.when(exists, |k| {
                    k.load_into(own, record, offset_of!(SegmentRecord, max) as i64, Cache::Default);
                    k.load_vector_into(parts, record, offset_of!(SegmentRecord, excess) as i64, Cache::Default);
                });
                (own, parts)
            };
            self.for_batches(k, load, |k, records| {
                for (own, parts) in records {
                    let below = k.sub_f(own, max);
                    for i in 0..2 {
                        let (exponent, factor) = factor(k, below, scales[i]);
                        let all = k.add_f(parts[i], 1.0);
                        let moved = k.fma(all, exponent, parts[2 + i]);
                        let next = k.fma(factor, moved, sums[i]);
                        k.set(sums[i], next);
                    }
                }
            });
            for sum in sums {
                let all = group_sum_f(k, sum, 32);
                k.set(sum, all);
            }
        });
        sums
    }

    /// Loads this lane's records from record `first` of the warp's on.
    fn hold(self, k: &mut Builder, first: R32, held: &[Held]) {
        let lane = k.lane();
        let first = k.add(first, lane);
        for (i, Held { head, excesses, offers }) in (0u32..).zip(held) {
            let number = k.add(first, 32 * i);
            let exists = k.lt_u(number, self.count);
            let record = self.of(k, number);
            const NOTHING: u32 = f32::NEG_INFINITY.to_bits();
            for (&word, nothing) in head.iter().zip([NOTHING, u32::MAX, NOTHING, NOTHING]) {
                k.set(word, nothing);
            }
            for &excess in excesses {
                k.set(excess, 0.0f32);
            }
            for (&word, nothing) in offers.iter().zip([NOTHING, 0]) {
                k.set(word, nothing);
            }
            k.when(exists, |k| {
                k.load_vector_into(*head, record, 0, Cache::Default);
                k.load_vector_into(*offers, record, offset_of!(SegmentRecord, logit) as i64, Cache::Default);
                k.load_vector_into(*excesses, record, offset_of!(SegmentRecord, excess) as i64, Cache::Default);
            });
        }
    }

    /// A logit that more than `one_less` tokens of the row reach: of the best two of each segment, which one can count. −∞ if those
    /// are not as many; segments behind the first few are not looked at. `unused_bits` are those of
    /// [`LogitsType::unused_bits`](super::spec::LogitsType).
    pub(super) fn floor(self, k: &mut Builder, one_less: R32, unused_bits: u32) -> RF {
        k.comment("as many good tokens as top-k keeps");
        let lane = k.lane();
        let own: Vec<R32> = (0..BATCH)
            .flat_map(|i| {
                let number = k.add(lane, 32 * i);
                let exists = k.lt_u(number, self.segments);
                let record = self.of(k, number);
                let best = [(); 2].map(|()| k.mov(f32::NEG_INFINITY));
                k.when(exists, |k| {
                    for (value, offset) in
                        best.into_iter().zip([offset_of!(SegmentRecord, max), offset_of!(SegmentRecord, second)])
                    {
                        k.load_into(value, record, offset as i64, Cache::Default);
                    }
                });
                best.map(|logit| order_key(k, logit))
            })
            .collect();
        reached_by_more(k, &own, one_less, unused_bits)
    }

    /// The segment that a uniform number draws, by mass: its record.
    pub(super) fn draw(self, k: &mut Builder, mass: Mass, uniform: R32) -> R64 {
        let hit = draw_among(k, self.count, uniform, |k, segment| {
            let weight = k.mov::<F32>(0.0f32);
            let inside = k.lt_u(segment, self.count);
            k.if_then(inside, |k| {
                let record = self.of(k, segment);
                let own: RF = k.load(record, offset_of!(SegmentRecord, max) as i64);
                let excess: RF = k.load(record, offset_of!(SegmentRecord, tempered_excess) as i64);
                let factor = mass.weight(k, own);
                let all = k.add_f(excess, 1.0);
                let product = k.mul_f(factor, all);
                k.set(weight, product);
            });
            weight
        });
        self.of(k, hit)
    }
}

/// What the weights of a segment are in the row's units, whose best logit lies `below` the row's, and log2 of it.
fn factor(k: &mut Builder, below: RF, scale: RF) -> (RF, RF) {
    let exponent = k.mul_f(below, scale);
    let exponent = k.max_f(exponent, -1024.0f32);
    (exponent, k.exp2_f(exponent))
}

/// The largest number that more than `one_less` of a warp's keys reach, but for its `unused_bits`; as a logit, −∞ if there is none.
pub(super) fn reached_by_more(k: &mut Builder, own: &[R32], one_less: R32, unused_bits: u32) -> RF {
    let (key, bit) = (k.mov(0u32), k.mov::<B32>(1u32 << 31));
    k.while_loop(
        |k| k.ge_u(bit, 1u32 << unused_bits),
        |k| {
            let candidate = k.or(key, bit);
            let reached = k.mov::<B32>(0u32);
            for &own in own {
                let reaches = k.ge_u(own, candidate);
                let more = k.add(reached, 1u32);
                k.when(reaches, |k| k.set(reached, more));
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

/// The best and the second best of what the lanes of a warp see: by key, of equal keys by the lower id.
#[derive(Clone, Copy)]
pub(super) struct Contest {
    best: R32,
    id: R32,
    second: R32,
}

impl Contest {
    pub(super) fn new(k: &mut Builder) -> Contest {
        Contest { best: k.mov(0u32), id: k.mov(u32::MAX), second: k.mov(NEGATIVE_INFINITY) }
    }

    pub(super) fn enter(self, k: &mut Builder, key: R32, id: R32) {
        let (higher, same) = (k.gt_u(key, self.best), k.eq(key, self.best));
        let earlier = k.lt_u(id, self.id);
        let tied = k.and_p(same, earlier);
        let ahead = k.or_p(higher, tied);
        let loser = k.min_u(key, self.best);
        self.lose(k, loser);
        let next = k.max_u(self.best, key);
        k.set(self.best, next);
        let next = k.select(ahead, id, self.id);
        k.set(self.id, next);
    }

    /// One that has lost already.
    pub(super) fn lose(self, k: &mut Builder, key: R32) {
        let next = k.max_u(self.second, key);
        k.set(self.second, next);
    }

    /// Key and id of the best, and the key of the second best.
    pub(super) fn settle(self, k: &mut Builder) -> [R32; 3] {
        let key = k.warp_max_u(self.best);
        let ahead = k.eq(self.best, key);
        let candidate = k.select(ahead, self.id, u32::MAX);
        let argmax = k.warp_min_u(candidate);
        // The winner's lane gives its second best, the others their best.
        let winner = k.eq(self.id, argmax);
        let winner = k.and_p(ahead, winner);
        let rest = k.max_u(self.best, self.second);
        let rest = k.select(winner, self.second, rest);
        let rest = k.warp_max_u(rest);
        [key, argmax, k.max_u(rest, NEGATIVE_INFINITY)]
    }
}

/// The place, of so many, that a uniform number draws by weight; `weigh` gives 0 for places past the last. In one warp.
pub(super) fn draw_among(k: &mut Builder, places: R32, uniform: R32, weigh: impl Fn(&mut Builder, R32) -> RF) -> R32 {
    let lane = k.lane();
    let weigh = |k: &mut Builder, first: R32| {
        let place = k.add(first, lane);
        weigh(k, place)
    };
    let total = k.mov::<F32>(0.0f32);
    k.for_loop(0u32, places, 32, |k, first| {
        let weight = weigh(k, first);
        let through = warp_inclusive_sum_f(k, weight);
        let all = k.shuffle_from(through, 31u32);
        let next = k.add_f(total, all);
        k.set(total, next);
    });
    let target = target(k, total, uniform);
    let (before, hit) = (k.mov::<F32>(0.0f32), k.mov::<B32>(0u32));
    k.for_loop(0u32, places, 32, |k, first| {
        let open = k.le_f(before, target);
        let weight = weigh(k, first);
        let through = warp_inclusive_sum_f(k, weight);
        let rest = k.sub_f(target, before);
        let (lane, some) = crossing(k, through, weight, rest);
        let place = k.add(first, lane);
        let open = k.and_p(open, some);
        k.when(open, |k| k.set(hit, place));
        let all = k.shuffle_from(through, 31u32);
        let next = k.add_f(before, all);
        k.set(before, next);
    });
    hit
}

/// The point of a sum that a uniform number of 32 bits names.
pub(super) fn target(k: &mut Builder, total: RF, uniform: R32) -> RF {
    let share = k.float_from_u(uniform);
    let share = k.mul_f(share, 1.0 / (1u64 << 32) as f32);
    k.mul_f(total, share)
}

/// The first lane with weight whose inclusive sum exceeds `target`, or the last with weight (sums are rounded); and whether
/// any has weight.
pub(super) fn crossing(k: &mut Builder, through: RF, weight: RF, target: RF) -> (R32, RP) {
    let has_weight = k.gt_f(weight, 0.0);
    let past = k.gt_f(through, target);
    let past = k.and_p(past, has_weight);
    let (with_weight, past) = (k.ballot(has_weight), k.ballot(past));
    let some = k.ne(with_weight, 0u32);
    let none_past = k.eq(past, 0u32);
    let reversed = k.brev(past);
    let first = k.clz(reversed);
    let leading = k.clz(with_weight);
    let thirty_one = k.mov(31u32);
    let last = k.sub(thirty_one, leading);
    (k.select(none_past, last, first), some)
}
