//! What top-k, top-p and min-p keep of a row, and the token drawn from it: a few offered tokens, ranked by counting.
//!
//! A warp does it where they are few, else a block. A thread takes an offered token and adds up what the better ones weigh and how many they are: its rank and the mass before
//! it, which say whether each filter keeps it. Masses are integers, so neither the order in which tokens were offered nor how
//! many more of them were matters.

use super::{
    entry::Asked,
    layout::{RowParameters, sampling_flags},
    logits::{Mass, accumulate, count, has},
    nucleus::point,
};
use crate::{
    isa::{B32, B64, Builder, Cache, R32, R64, RF, RP, Rounding, SharedRegion},
    tile::{order::from_order_key, reduce::block_sum_bytes, team::Team},
};
use std::mem::offset_of;

/// Bytes of a token of a list in shared memory: [`Standing`] and mass, then rank and the mass of the better ones.
pub(super) const LISTED_BYTES: u32 = 2 * ENTRY;
pub(super) const ENTRY: u32 = 16;
/// Tokens that a thread looks at in a turn.
const BATCH: u32 = 4;

/// The filters of one request.
pub(super) struct Filters {
    pub(super) by_count: RP,
    /// Tokens that top-k keeps, less one.
    pub(super) one_less: R32,
    pub(super) by_mass: RP,
    pub(super) top_p: RF,
    /// Whether top-p looks at what top-k keeps.
    pub(super) count_first: RP,
    /// log2 of the weight that min-p asks for: at most 0, −∞ without it.
    pub(super) least: RF,
    /// Whether there is any filter.
    pub(super) any: RP,
}

impl Filters {
    pub(super) fn of(k: &mut Builder, asked: Asked, flags: R32, vocab: R32) -> Filters {
        let top_p = asked.float(k, offset_of!(RowParameters, top_p));
        let top_k = asked.word(k, offset_of!(RowParameters, top_k));
        let min_p = asked.float(k, offset_of!(RowParameters, min_p));
        // Wraps for top_k = 0, which keeps all.
        let one_less = k.sub(top_k, 1u32);
        let vocab_less = k.sub(vocab, 1u32);
        let by_count = k.lt_u(one_less, vocab_less);
        let by_mass = k.lt_f(top_p, 1.0);
        let first = has(k, flags, sampling_flags::TOP_K_FIRST);
        let count_first = k.and_p(first, by_count);
        let likely = k.gt_f(min_p, 0.0);
        let logarithm = k.log2_f(min_p);
        let logarithm = k.min_f(logarithm, 0.0);
        let least = k.select(likely, logarithm, f32::NEG_INFINITY);
        let any = k.or_p(by_count, by_mass);
        let any = k.or_p(any, likely);
        Filters { by_count, one_less, by_mass, top_p, count_first, least, any }
    }

    /// The mass that better ranks may have together, p of `total`; all there can be, without top-p.
    pub(super) fn limit(&self, k: &mut Builder, total: R64) -> R64 {
        let portion = k.mul_f(self.top_p, (1u64 << 32) as f32);
        let portion = k.wide_from_float(portion, Rounding::Zero);
        let portion = k.shl(portion, 32u32);
        let limit = k.mul_high(total, portion);
        k.select(self.by_mass, limit, u64::MAX)
    }

    /// Whether min-p keeps a logit.
    pub(super) fn likely(&self, k: &mut Builder, mass: Mass, logit: RF) -> RP {
        let exponent = mass.exponent(k, logit);
        k.ge_f(exponent, self.least)
    }
}

/// What is kept.
pub(super) struct Kept {
    pub(super) mass: R64,
    pub(super) count: R32,
    /// Σ −w ln w, in units of mass.
    pub(super) surprise: R64,
    /// The token drawn, and its logit; as they were where nothing is drawn.
    pub(super) token: R32,
    pub(super) logit: RF,
}

/// What a token is ranked by: its key, and among equal ones its id, the lower the better.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    /// 2³² − 1 less the id.
    pub(super) opposite: R32,
    pub(super) key: R32,
}

impl Standing {
    /// As one number.
    pub(super) fn joined(self, k: &mut Builder) -> R64 {
        k.join_wide(self.opposite, self.key)
    }
}

/// The offered tokens in shared memory.
pub(super) struct List {
    team: Team,
    address: R32,
    count: R32,
    /// Bytes from a token's key to its rank.
    ranks: u32,
}

impl List {
    /// Of `count` tokens, where there is room for `room`, a multiple of [`BATCH`].
    pub(super) fn new(k: &mut Builder, team: Team, address: R32, count: R32, room: u32) -> List {
        debug_assert!(room.is_multiple_of(BATCH));
        let list = List { team, address, count, ranks: ENTRY * room };
        // The last batch is filled with tokens of no mass.
        let thread = team.thread(k);
        let zero = k.mov(0u32);
        let missing = k.sub(zero, count);
        let missing = k.and(missing, BATCH - 1);
        let fills = k.lt_u(thread, missing);
        let place = k.add(count, thread);
        let at = list.entry(k, place);
        k.when(fills, |k| k.store_vector(at, 0, [zero; 4]));
        team.barrier(k);
        list
    }

    /// Writes a token at a place in a list: its mass.
    pub(super) fn put(k: &mut Builder, at: R32, [key, id]: [R32; 2], mass: Mass) -> R64 {
        let opposite = k.not(id);
        let logit = from_order_key(k, key);
        let own = mass.of(k, logit);
        let [low, high] = k.split_wide(own);
        k.store_vector(at, 0, [opposite, key, low, high]);
        own
    }

    fn entry(&self, k: &mut Builder, index: R32) -> R32 {
        k.mad(index, ENTRY, self.address)
    }

    /// Rank of a token, and the mass of the better ones, once [`rank`] has left them.
    pub(super) fn ranked(&self, k: &mut Builder, at: R32) -> (R32, R64) {
        let [rank, low, high, _] = k.load_vector::<B32, B32, 4>(at, i64::from(self.ranks), Cache::Default);
        (rank, k.join_wide(low, high))
    }

    /// Runs `body` for every token, in every thread: standing and mass.
    fn for_all(&self, k: &mut Builder, body: impl Fn(&mut Builder, Standing, R64)) {
        let at = k.mov(self.address);
        k.for_loop(0u32, self.count, BATCH, |k, _| {
            let batch: Vec<[R32; 4]> =
                (0..BATCH).map(|i| k.load_vector::<B32, B32, 4>(at, i64::from(ENTRY * i), Cache::Default)).collect();
            for [opposite, key, low, high] in batch {
                let mass = k.join_wide(low, high);
                body(k, Standing { opposite, key }, mass);
            }
            let next = k.add(at, BATCH * ENTRY);
            k.set(at, next);
        });
    }

    /// Runs `body` for the tokens of this thread: address, standing and mass.
    pub(super) fn for_own(&self, k: &mut Builder, body: impl FnOnce(&mut Builder, R32, Standing, R64)) {
        let (thread, threads) = (self.team.thread(k), self.team.threads(k));
        k.for_loop(thread, self.count, threads, |k, index| {
            let at = self.entry(k, index);
            let [opposite, key, low, high] = k.load_vector::<B32, B32, 4>(at, 0, Cache::Default);
            let mass = k.join_wide(low, high);
            body(k, at, Standing { opposite, key }, mass);
        });
    }
}

/// Tokens that are better than all of a list, and kept.
pub(super) struct Above {
    pub(super) mass: R64,
    pub(super) count: R64,
    /// Σ −w ln w, in units of mass.
    pub(super) surprise: R64,
}

impl Above {
    /// Of a list that holds all.
    fn nothing(k: &mut Builder) -> Above {
        let zero = k.mov(0u64);
        Above { mass: zero, count: zero, surprise: zero }
    }
}

/// What the filters keep of a row, into `kept`. The list holds every token that they may keep, and all better ones; it is
/// used up. `total` is the mass of the row, `scratch` holds [`SCRATCH_BYTES`] for a block, and `slot` eight bytes.
#[expect(clippy::too_many_arguments, reason = "what a finished row has at hand")]
pub(super) fn keep(
    k: &mut Builder,
    list: &List,
    mass: Mass,
    filters: &Filters,
    total: R64,
    (drawing, uniform): (RP, R32),
    (scratch, slot): (Option<SharedRegion>, R32),
    kept: &Kept,
) {
    let above = Above::nothing(k);
    rank(k, list, &above);
    let total = k.mov(total);
    k.if_then(filters.count_first, |k| {
        let among_kept = k.mov(0u64);
        list.for_own(k, |k, at, _, own| {
            let (rank, _) = list.ranked(k, at);
            let within = k.le_u(rank, filters.one_less);
            let share = k.select(within, own, 0u64);
            accumulate(k, among_kept, share);
        });
        let [among_kept] = list.team.sum_52(k, scratch, [among_kept]);
        k.set(total, among_kept);
    });
    let limit = filters.limit(k, total);
    drop_rest(k, list, mass, filters, limit, &above, scratch, kept);

    k.if_then(drawing, |k| {
        k.comment("draw from what is kept");
        list.team.barrier(k);
        let target = point(k, kept.mass, uniform);
        list.for_own(k, |k, _, Standing { opposite, key }, own| {
            let before = k.mov(0u64);
            list.for_all(k, |k, other, mass| {
                let earlier = k.gt_u(other.opposite, opposite);
                let next = k.add(before, mass);
                k.when(earlier, |k| k.set(before, next));
            });
            let through = k.add(before, own);
            let (begun, open) = (k.le_u(before, target), k.gt_u(through, target));
            let hit = k.and_p(begun, open);
            let id = k.not(opposite);
            k.when(hit, |k| k.store_vector(slot, 0, [id, key]));
        });
        list.team.barrier(k);
        let [id, key] = k.load_vector::<B32, B32, 2>(slot, 0, Cache::Default);
        k.set(kept.token, id);
        let logit = from_order_key(k, key);
        k.set(kept.logit, logit);
    });
}

/// Leaves rank and mass of the better ones beside each token of a list.
pub(super) fn rank(k: &mut Builder, list: &List, above: &Above) {
    k.comment("rank what is offered");
    let first = k.narrow(above.count);
    list.for_own(k, |k, at, standing, _| {
        let (better, rank) = (k.mov(above.mass), k.mov(first));
        let standing = standing.joined(k);
        list.for_all(k, |k, other, mass| {
            let other = other.joined(k);
            let ahead = k.gt_u(other, standing);
            let (weight, number) = (k.add(better, mass), k.add(rank, 1u32));
            k.when(ahead, |k| {
                k.set(better, weight);
                k.set(rank, number);
            });
        });
        let [low, high] = k.split_wide(better);
        k.store_vector(at, i64::from(list.ranks), [rank, low, high, rank]);
    });
}

/// Takes the mass of tokens that are not kept, and sums the rest into `kept`. Says, of each thread, 1 more than the highest rank
/// among its tokens that ranks keep, or 0.
#[expect(clippy::too_many_arguments, reason = "what a finished row has at hand")]
pub(super) fn drop_rest(
    k: &mut Builder,
    list: &List,
    mass: Mass,
    filters: &Filters,
    limit: R64,
    above: &Above,
    scratch: Option<SharedRegion>,
    kept: &Kept,
) -> R32 {
    k.comment("keep or drop");
    list.team.barrier(k);
    let last = k.mov(0u32);
    let sums = [0u64; 3].map(|zero| k.mov(zero));
    list.for_own(k, |k, at, Standing { key, .. }, own| {
        let (rank, better) = list.ranked(k, at);
        let logit = from_order_key(k, key);
        let within = k.le_u(rank, filters.one_less);
        let light = k.le_u(better, limit);
        let of_ranks = k.and_p(within, light);
        let through = k.add(rank, 1u32);
        let through = k.max_u(through, last);
        k.when(of_ranks, |k| k.set(last, through));
        let likely = filters.likely(k, mass, logit);
        let keeps = k.and_p(of_ranks, likely);
        let (_, surprise) = mass.with_surprise(k, logit);
        let left = k.select(keeps, own, 0u64);
        k.store::<B64, B32>(at, 8, left);
        let shares = [left, count(k, keeps), k.select(keeps, surprise, 0u64)];
        for (sum, share) in sums.into_iter().zip(shares) {
            accumulate(k, sum, share);
        }
    });
    // A lane has a few tokens, of at most 2⁴⁴ each.
    let sums = list.team.sum_52(k, scratch, sums);
    let [sum, number, surprise] =
        [(0, above.mass), (1, above.count), (2, above.surprise)].map(|(i, more)| k.add(sums[i], more));
    k.set(kept.mass, sum);
    let number = k.narrow(number);
    k.set(kept.count, number);
    k.set(kept.surprise, surprise);
    last
}

/// Shared memory for the sums of this room and of the long way.
pub(super) const SCRATCH_BYTES: u32 = block_sum_bytes(4);
