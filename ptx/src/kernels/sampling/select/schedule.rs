//! How many rows the schedule of a request allows at a step. Single precision, in PyTorch's order of operations.

use super::request::Request;
use crate::{
    isa::{B32, Builder, R32, RF, Rounding},
    kernels::sampling::layout::schedule,
};

/// What a schedule says: a number of rows, and the share 1 − s / t that it comes from.
pub(super) struct Portion {
    pub(super) count: R32,
    pub(super) share: RF,
}

/// What the schedule says with `masks` masked rows left.
pub(super) fn portion(k: &mut Builder, request: &Request, masks: R32) -> Portion {
    let (step, steps, initial) = (request.block_step, request.steps, request.initial);
    let count = k.mov(request.count);
    let share = k.mov(0.0f32);
    let even = k.eq(request.schedule, schedule::EVEN);
    k.if_then(even, |k| {
        let divisor = k.max_u(steps, 1u32);
        let each = k.div_u(initial, divisor);
        let rest = k.rem_u(initial, divisor);
        let early = k.lt_u(step, rest);
        let extra = k.select::<B32>(early, 1u32, 0u32);
        let evenly = k.add(each, extra);
        k.set(count, evenly);
    });
    let by_time = k.eq(request.schedule, schedule::TIME);
    k.if_then(by_time, |k| {
        let next = k.add(step, 1u32);
        let [now, then] = [step, next].map(|at| time(k, request, at));
        let (rows, part) = rows_between(k, masks, now, then);
        k.set(count, rows);
        k.set(share, part);
    });
    let skipping = k.eq(request.schedule, schedule::SKIP);
    k.if_then(skipping, |k| {
        let left = k.float_from_u(masks);
        let begun = k.float_from_u(initial);
        let now = k.div_f(left, begun);
        let point = first_that_counts(k, request, masks, now);
        let then = time(k, request, point);
        let (rows, part) = rows_between(k, masks, now, then);
        let over = k.le_f(then, request.epsilon);
        let rows = k.select(over, masks, rows);
        k.set(count, rows);
        k.set(share, part);
    });
    Portion { count, share }
}

/// trunc(n · (1 − s / t)), and 1 − s / t.
fn rows_between(k: &mut Builder, masks: R32, now: RF, then: RF) -> (R32, RF) {
    let ratio = k.div_f(then, now);
    let share = k.sub_f(1.0, ratio);
    let masks = k.float_from_u(masks);
    let rows = k.mul_f(masks, share);
    (k.u_from_float(rows, Rounding::Zero), share)
}

/// Point `at` of the `steps + 1` that divide [1, ε] evenly; each half counts from its own end.
fn time(k: &mut Builder, request: &Request, at: R32) -> RF {
    let (epsilon, steps) = (request.epsilon, request.steps);
    let intervals = k.float_from_u(steps);
    let distance = k.sub_f(epsilon, 1.0);
    let delta = k.div_f(distance, intervals);
    let index = k.float_from_u(at);
    let travelled = k.mul_f(delta, index);
    let from_start = k.add_f(travelled, 1.0);
    let left = k.sub(steps, at);
    let left = k.float_from_u(left);
    let remaining = k.mul_f(delta, left);
    let from_end = k.sub_f(epsilon, remaining);
    let points = k.add(steps, 1u32);
    let half = k.shr_u(points, 1u32);
    let first_half = k.lt_u(at, half);
    k.select(first_half, from_start, from_end)
}

/// The first point after this step from whose time to `now` at least one row is due, or the last point. Times fall, so
/// rows rise: a lane tries one of 32 points at once.
fn first_that_counts(k: &mut Builder, request: &Request, masks: R32, now: RF) -> R32 {
    let lane = k.lane();
    let low = k.add(request.block_step, 1u32);
    let low = k.mov(low);
    let high = k.mov(request.steps);
    k.while_loop(
        |k| k.lt_u(low, high),
        |k| {
            let width = k.sub(high, low);
            let rounded = k.add(width, 31u32);
            let chunk = k.shr_u(rounded, 5u32);
            let point = k.mad(lane, chunk, low);
            let then = time(k, request, point);
            let (rows, _) = rows_between(k, masks, now, then);
            let due = k.ge_u(rows, 1u32);
            let over = k.le_f(then, request.epsilon);
            let last = k.ge_u(point, high);
            let counts = k.or_p(due, over);
            let counts = k.or_p(counts, last);
            let lanes = k.ballot(counts);
            let reversed = k.brev(lanes);
            let first = k.clz(reversed);
            // The answer lies behind the point of the lane before, and not behind that of the first.
            let reached = k.mad(first, chunk, low);
            let found = k.min_u(reached, high);
            let before = k.sub(reached, chunk);
            let after = k.add(before, 1u32);
            let at_once = k.eq(first, 0u32);
            let next_low = k.select(at_once, low, after);
            let none = k.eq(lanes, 0u32);
            let tried = k.mad(chunk, 31u32, low);
            let behind = k.add(tried, 1u32);
            let next_low = k.select(none, behind, next_low);
            let next_high = k.select(none, high, found);
            k.set(low, next_low);
            k.set(high, next_high);
        },
    );
    high
}
