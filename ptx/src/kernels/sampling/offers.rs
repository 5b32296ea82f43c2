//! The tokens that a chunk offers to the filters of its row.
//!
//! A token of probability below (1 − p) / V cannot be in the nucleus of p: all such tokens together have less than 1 − p. Nor can
//! one that is less probable than k others be among the k best, or one below m times the best pass min-p m. A chunk knows a lower
//! bound of each: its own sum is at most the row's, its best token at most the row's. So what it offers is more than what the row
//! keeps, and mostly little; the last block of the row, which knows the sums, drops most of it again.

use super::{
    chunk::{Chunk, THREADS, WARPS},
    filter::{Filters, LISTED, List},
    layout::{ChunkRecord, MAX_OFFERS},
    logits::{Logits, Mass},
    merge::Records,
};
use crate::{
    isa::{B32, B64, Builder, Cache, R32, R64, RF},
    tile::order::{from_order_key, order_key},
};
use std::mem::{offset_of, size_of};

/// In powers of two, more than rounding may cost a bound.
const SLACK: f32 = 1.0 / 128.0;

/// A logit below which no token is kept. `mass` and `excess` are of the chunk, or of the row; at least `top_k` tokens have a
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

/// The `top_k`-th largest of the threads' keys, or a little less; −∞ if there are not as many. For one warp.
pub(super) fn floor(k: &mut Builder, keys: R32, one_less: R32, unused_bits: u32) -> RF {
    let lane = k.lane();
    let at = k.mad(lane, 4 * THREADS / 32, keys);
    let own: Vec<R32> =
        (0..THREADS / 128).flat_map(|i| k.load_vector::<B32, B32, 4>(at, 16 * i64::from(i), Cache::Default)).collect();
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

/// Writes the tokens of this thread that reach `bound` behind the chunk's record. `counter` counts them, in shared memory.
pub(super) fn offer(k: &mut Builder, chunk: &Chunk, bound: RF, record: R64, counter: R32) {
    chunk.for_each_above(k, bound, |k, id, logit| {
        let place = k.atomic_add(counter, 0, 1u32);
        let fits = k.lt_u(place, MAX_OFFERS);
        let at = k.mad_wide(place, 8u32, record);
        let key = order_key(k, logit);
        k.when(fits, |k| k.store_vector::<B32, B64, 2>(at, size_of::<ChunkRecord>() as i64, [key, id]));
    });
}

/// Collects what reaches `bound` of the offers of a row's chunks, in the list at `address`, with masses. `counters`, in shared
/// memory, are 0: of tokens, which ends above [`LISTED`] if the list had no room, and of chunks that had more to offer than
/// their record holds. Of those, of `tokens` tokens each, the logits are read again: a chunk without good tokens has many that
/// are as good as its best.
pub(super) fn collect(
    k: &mut Builder,
    records: Records,
    (logits, tokens): (&Logits, u32),
    bound: RF,
    mass: Mass,
    (address, counter, crowded): (R32, R32, R32),
) -> List {
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let least = order_key(k, bound);
    let list = |k: &mut Builder, key: R32, id: R32| {
        let place = k.atomic_add(counter, 0, 1u32);
        let fits = k.lt_u(place, LISTED);
        let at = k.mad(place, 16u32, address);
        let logit = from_order_key(k, key);
        let own = mass.of(k, logit);
        let [low, high] = k.split_wide(own);
        k.when(fits, |k| k.store_vector(at, 0, [key, id, low, high]));
    };
    k.for_loop(warp, records.chunks, WARPS, |k, chunk| {
        let record = records.of(k, chunk);
        let offers: R32 = k.load(record, offset_of!(ChunkRecord, offers) as i64);
        let lost = k.gt_u(offers, MAX_OFFERS);
        let leader = k.eq(lane, 0u32);
        let counts = k.and_p(lost, leader);
        k.when(counts, |k| k.reduce_add(crowded, 0, 1u32));
        let written = k.select(lost, 0u32, offers);
        k.for_loop(lane, written, 32, |k, i| {
            let at = k.mad_wide(i, 8u32, record);
            let [key, id] = k.load_vector::<B32, B64, 2>(at, size_of::<ChunkRecord>() as i64, Cache::Default);
            let reaches = k.ge_u(key, least);
            k.if_then(reaches, |k| list(k, key, id));
        });
    });
    k.barrier();
    let again: R32 = k.load(crowded, 0);
    let again = k.ne(again, 0u32);
    k.if_then(again, |k| {
        k.comment("crowded chunks");
        k.for_loop(0u32, records.chunks, 1, |k, chunk| {
            let record = records.of(k, chunk);
            let offers: R32 = k.load(record, offset_of!(ChunkRecord, offers) as i64);
            let lost = k.gt_u(offers, MAX_OFFERS);
            k.if_then(lost, |k| {
                let start = k.mul(chunk, tokens);
                let end = k.add(start, tokens);
                let end = k.min_u(end, logits.limit);
                let own = k.add(start, thread);
                k.for_loop(own, end, THREADS, |k, id| {
                    let logit = logits.at(k, id);
                    let key = order_key(k, logit);
                    let reaches = k.ge_u(key, least);
                    k.if_then(reaches, |k| list(k, key, id));
                });
            });
        });
        k.barrier();
    });
    let count: R32 = k.load(counter, 0);
    List { address, count }
}
