//! A step of one request: which rows take their token, by its rule.

use super::{
    Batch,
    request::Request,
    row::Row,
    schedule::{Portion, portion},
};
use crate::{
    isa::{B32, Builder, R32, RP, Rounding},
    kernels::sampling::layout::{request_flags, rule, select_flags},
    tile::{
        ballot::block_ballots,
        order::{from_order_key, order_key},
        ranking::block_ranking,
        reduce::{block_exclusive_sum, block_max},
    },
};

/// Units of an entropy budget; an entropy counts for at most two budgets, so that 1024 of them do not overflow.
const BUDGET: u32 = 1 << 20;

/// How close to the largest confidence a row is as good (dInfer).
const NEAR: f32 = 1e-5;

/// What a step knows of its rows before it chooses.
struct Count {
    /// Masked rows.
    masks: R32,
    /// Rows that can be taken.
    usable: R32,
    /// Of these, rows that pass the threshold.
    passing: R32,
    /// Decoded rows that may be masked again.
    doubtful: R32,
}

/// What a rule says: rows that are taken anyway, and how many of the others besides.
struct Choice {
    /// Not 0: taken.
    picked: R32,
    /// In how many rows, of rules that take others besides.
    taken: R32,
    /// How many of the rest.
    more: R32,
    /// Whether `more` waits for the ranks.
    by_rank: RP,
}

/// Takes a step.
pub(super) fn step(k: &mut Builder, batch: &Batch, request: &Request) {
    let row = Row::load(k, batch, request);
    k.comment("count the rows");
    let after = k.add(request.block_step, 1u32);
    let last = k.ge_u(after, request.steps);
    let doubtful = doubts(k, request, &row, last);
    let standing = k.or_p(row.masked, doubtful);
    let usable = k.and_p(standing, row.open);
    let passes = passes(k, request, &row);
    let passes = k.and_p(passes, usable);
    let counted = [row.masked, usable, passes, doubtful, row.broken];
    let counts = block_ballots(k, batch.shared.ballots[0], counted).map(|bits| bits.count(k));
    let count = Count { masks: counts[0], usable: counts[1], passing: counts[2], doubtful: counts[3] };
    let failed = k.ne(counts[4], 0u32);
    request.flag(k, failed, request_flags::ROW_ERROR);

    k.comment("the schedule");
    let portion = portion(k, request, count.masks);
    k.comment("the order");
    let (key, uniform) = row.key(k, request);
    k.comment("picks");
    let choice = choose(k, batch, request, &row, &count, &portion, [standing, usable, passes]);
    let rank = k.mov::<B32>(0u32);
    let picked = k.ne(choice.picked, 0u32);
    let early = k.not_p(last);
    let picked_none = k.not_p(picked);
    let ranked = k.and_p(usable, picked_none);
    k.comment("ranks, where some of the rest are taken and not all");
    let chance = by_chance(k, request, &count);
    let rest = k.sub(count.usable, choice.taken);
    let some = k.ne(choice.more, 0u32);
    let not_all = k.lt_u(choice.more, rest);
    let needed = k.and_p(some, not_all);
    let needed = k.or_p(needed, choice.by_rank);
    let certain = k.not_p(chance);
    let needed = k.and_p(needed, certain);
    let needed = k.and_p(needed, early);
    k.if_then(needed, |k| {
        let key = k.select(ranked, key, 0u32);
        let ranking = block_ranking(k, batch.shared.ranking, key, request.candidates);
        k.set(rank, ranking.rank);
        k.if_then(choice.by_rank, |k| {
            more_by_rank(k, batch, request, &row, &count, (ranking.rank, ranking.holder), choice.more);
        });
    });
    let among = k.lt_u(rank, choice.more);
    let lucky = k.lt_f(uniform, portion.share);
    let [among, lucky] = [among, lucky].map(|drawn| k.select::<B32>(drawn, 1u32, 0u32));
    let drawn = k.select(chance, lucky, among);
    let drawn = k.or(drawn, choice.picked);
    let drawn = k.select(last, 1u32, drawn);
    let chosen = k.ne(drawn, 0u32);
    let chosen = k.and_p(chosen, usable);

    k.comment("tokens");
    let revised = write(k, batch, request, &row, chosen, doubtful);
    let [chosen, revised] = block_ballots(k, batch.shared.ballots[1], [chosen, revised]).map(|bits| bits.count(k));
    k.set(request.selected, chosen);
    keep_carry(k, request, &portion, chosen);
    let bare = k.eq(count.masks, 0u32);
    let unchanged = k.eq(revised, 0u32);
    let idle = k.and_p(bare, unchanged);
    let next = k.add(request.step, 1u32);
    k.set(request.step, next);
    k.set(request.block_step, after);
    let next = k.add(request.post_steps, 1u32);
    k.when(bare, |k| k.set(request.post_steps, next));
    k.when(idle, |k| k.set(request.idle, 1u32));
}

/// Whether a decoded row may be masked again.
fn doubts(k: &mut Builder, request: &Request, row: &Row, last: RP) -> RP {
    let remasks = request.wants(k, select_flags::REMASK);
    let early = k.not_p(last);
    let low = k.lt_f(row.value, request.revision);
    let doubtful = k.and_p(row.decoded, remasks);
    let doubtful = k.and_p(doubtful, early);
    let doubtful = k.and_p(doubtful, low);
    let unbroken = k.not_p(row.broken);
    k.and_p(doubtful, unbroken)
}

/// Whether the row's value passes the threshold.
fn passes(k: &mut Builder, request: &Request, row: &Row) -> RP {
    let inclusive = request.wants(k, select_flags::INCLUSIVE);
    let exceeds = k.gt_f(row.value, request.threshold);
    let equals = k.eq_f(row.value, request.threshold);
    let equals = k.and_p(equals, inclusive);
    k.or_p(exceeds, equals)
}

/// What the rule says of a row that stands to be chosen, can be, and passes.
fn choose(
    k: &mut Builder,
    batch: &Batch,
    request: &Request,
    row: &Row,
    count: &Count,
    portion: &Portion,
    [standing, usable, passes]: [RP; 3],
) -> Choice {
    let is = |k: &mut Builder, rule: u32| k.eq(request.rule, rule);
    let picked = k.mov::<B32>(0u32);
    let taken = k.mov::<B32>(0u32);
    let more = k.mov(portion.count);
    let pick = k.select::<B32>(passes, 1u32, 0u32);
    let threshold = is(k, rule::THRESHOLD);
    k.if_then(threshold, |k| {
        let none = k.eq(count.passing, 0u32);
        let fallback = k.select(none, portion.count, 0u32);
        k.set(more, fallback);
        k.set(picked, pick);
    });
    let dynamic = is(k, rule::DYNAMIC);
    k.if_then(dynamic, |k| {
        let rest = less(k, portion.count, count.passing);
        k.set(more, rest);
        k.set(taken, count.passing);
        k.set(picked, pick);
    });
    let budget = is(k, rule::BUDGET);
    k.if_then(budget, |k| {
        let limit = k.add(portion.count, request.carry);
        let good = k.max_u(count.passing, 1u32);
        let within = k.min_u(limit, good);
        k.set(more, within);
    });
    let near_best = is(k, rule::NEAR_BEST);
    k.if_then(near_best, |k| {
        let key = order_key(k, row.value);
        let key = k.select(usable, key, 0u32);
        let largest = block_max(k, batch.shared.scratch, key);
        let largest = from_order_key(k, largest);
        let near = k.sub_f(largest, NEAR);
        let limit = k.min_f(near, request.threshold);
        let good = k.ge_f(row.value, limit);
        let pick = k.select::<B32>(good, 1u32, 0u32);
        k.set(picked, pick);
        k.set(more, 0u32);
    });
    let hierarchy = is(k, rule::HIERARCHY);
    k.if_then(hierarchy, |k| {
        let leads = leads_run(k, batch, request, row, standing, usable);
        let high = k.gt_f(row.value, request.low);
        let leads = k.and_p(leads, high);
        let good = k.or_p(leads, passes);
        let pick = k.select::<B32>(good, 1u32, 0u32);
        k.set(picked, pick);
        k.barrier();
        let [good] = block_ballots(k, batch.shared.ballots[0], [good]).map(|bits| bits.count(k));
        k.set(taken, good);
        let least = k.add(count.doubtful, 1u32);
        let gap = less(k, least, good);
        k.set(more, gap);
    });
    let (factor, entropy) = (is(k, rule::FACTOR), is(k, rule::ENTROPY_BUDGET));
    let by_rank = k.or_p(factor, entropy);
    k.when(by_rank, |k| k.set(more, count.usable));
    // A row that cannot be chosen is not picked either.
    let pick = k.select(usable, picked, 0u32);
    Choice { picked: pick, taken, more, by_rank }
}

/// a − b, at least 0.
fn less(k: &mut Builder, a: R32, b: R32) -> R32 {
    let b = k.min_u(a, b);
    k.sub(a, b)
}

/// Whether chance decides of each row by itself: asked for, and nothing was picked.
fn by_chance(k: &mut Builder, request: &Request, count: &Count) -> RP {
    let asked = request.wants(k, select_flags::BERNOULLI);
    let bare = k.eq(request.rule, rule::TOP_K);
    let none = k.eq(count.passing, 0u32);
    let fallback = k.eq(request.rule, rule::THRESHOLD);
    let fallback = k.and_p(fallback, none);
    let open = k.or_p(bare, fallback);
    k.and_p(asked, open)
}

/// Whether the row is the best of its run of adjacent standing positions; the first of equals.
fn leads_run(k: &mut Builder, batch: &Batch, request: &Request, row: &Row, standing: RP, usable: RP) -> RP {
    k.comment("runs");
    // A slot a thread, with one before and one behind that belong to no run: place in the block + 2 or 0, and the value.
    let (slots, threads) = (batch.shared.ranking, k.threads());
    let own = k.mad(batch.thread, 8u32, slots);
    let place = k.sub(row.position, request.block_start);
    let place = k.add(place, 2u32);
    let place = k.select(standing, place, 0u32);
    let key = order_key(k, row.value);
    let key = k.select(usable, key, 0u32);
    k.store_vector(own, 8, [place, key]);
    let first = k.eq(batch.thread, 0u32);
    let nothing = k.mov(0u32);
    k.when(first, |k| {
        k.store(slots, 0, nothing);
        k.store(slots, 8 * (i64::from(threads) + 1), nothing);
    });
    k.barrier();
    let beaten = k.mov::<B32>(0u32);
    for (direction, beats) in
        [(-1i32, Builder::ge_u::<B32> as fn(&mut Builder, R32, R32) -> RP), (1, |k, a, b| k.gt_u(a, b))]
    {
        let cursor = k.add(own, (8 + 8 * direction) as u32);
        let cursor = k.mov(cursor);
        let expected = k.add(place, direction as u32);
        let expected = k.mov(expected);
        k.while_loop(
            |k| {
                let there: R32 = k.load(cursor, 0);
                k.eq(there, expected)
            },
            |k| {
                let theirs: R32 = k.load(cursor, 4);
                let better = beats(k, theirs, key);
                k.when(better, |k| k.set(beaten, 1u32));
                let next = k.add(cursor, (8 * direction) as u32);
                k.set(cursor, next);
                let next = k.add(expected, direction as u32);
                k.set(expected, next);
            },
        );
    }
    let unbeaten = k.eq(beaten, 0u32);
    k.and_p(unbeaten, usable)
}

/// How many the rules take that go down the ranks until something fails.
fn more_by_rank(
    k: &mut Builder,
    batch: &Batch,
    request: &Request,
    row: &Row,
    count: &Count,
    (rank, holder): (R32, R32),
    more: R32,
) {
    k.comment("down the ranks");
    let factor = k.eq(request.rule, rule::FACTOR);
    k.if_else(
        factor,
        |k| {
            let m = k.add(rank, 2u32);
            let m = k.float_from_u(m);
            let allowance = k.div_f(request.threshold, m);
            let limit = k.sub_f(1.0, allowance);
            let below = k.lt_f(row.value, limit);
            let (counts, behind_first) = (k.lt_u(rank, count.usable), k.ne(rank, 0u32));
            let fails = k.and_p(below, counts);
            let fails = k.and_p(fails, behind_first);
            // The first rank that fails, as a maximum.
            let inverted = k.not(rank);
            let inverted = k.select(fails, inverted, 0u32);
            let first = block_max(k, batch.shared.scratch, inverted);
            let first = k.not(first);
            let last = k.sub(count.usable, 1u32);
            let none_but_last = k.ge_u(first, last);
            let taken = k.select(none_but_last, count.usable, first);
            k.set(more, taken);
        },
        |k| {
            // Entropies by thread, and then in order of their ranks.
            let entropy = k.neg_f(row.value);
            let entropy = k.max_f(entropy, 0.0);
            let share = k.div_f(entropy, request.threshold);
            let units = k.mul_f(share, BUDGET as f32);
            let units = k.u_from_float(units, Rounding::Nearest);
            let units = k.min_u(units, 2 * BUDGET);
            let own = k.mad(batch.thread, 4u32, batch.shared.ranking);
            k.store(own, 0, units);
            k.barrier();
            let at = k.mad(holder, 4u32, batch.shared.ranking);
            let ranked: R32 = k.load(at, 0);
            let exists = k.lt_u(batch.thread, count.usable);
            let ranked = k.select(exists, ranked, 0u32);
            let (before, _) = block_exclusive_sum(k, batch.shared.scratch, ranked);
            let within = k.le_u(before, BUDGET);
            let within = k.and_p(within, exists);
            let [taken] = block_ballots(k, batch.shared.ballots[0], [within]).map(|bits| bits.count(k));
            k.set(more, taken);
        },
    );
}

/// Writes what was chosen, edits decoded rows and masks doubtful ones again. Whether this row was revised.
fn write(k: &mut Builder, batch: &Batch, request: &Request, row: &Row, chosen: RP, doubtful: RP) -> RP {
    let edits = request.wants(k, select_flags::EDIT);
    let sure = k.gt_f(row.value, request.revision);
    let differs = k.ne(row.token, row.current);
    let edited = k.and_p(row.decoded, edits);
    let edited = k.and_p(edited, row.open);
    let edited = k.and_p(edited, sure);
    let edited = k.and_p(edited, differs);
    let left = k.not_p(chosen);
    let remasked = k.and_p(doubtful, left);
    let taken = k.or_p(chosen, edited);
    let written = k.or_p(taken, remasked);
    let offset = request.token_offset(k, row.position);
    let at = k.add(batch.tokens, offset);
    let token = k.select(remasked, request.mask_token, row.token);
    k.when(written, |k| k.store(at, 0, token));
    k.if_then(taken, |k| batch.trajectory.record(k, offset, request.step, row));
    k.or_p(edited, remasked)
}

/// What is left of a budget.
fn keep_carry(k: &mut Builder, request: &Request, portion: &Portion, taken: R32) {
    let limit = k.add(portion.count, request.carry);
    let rest = less(k, limit, taken);
    let budget = k.eq(request.rule, rule::BUDGET);
    let carry = k.select(budget, rest, 0u32);
    k.set(request.carry, carry);
}
