//! The selection kernel: one block a request, one thread a row; the last block to finish makes the list.
//!
//! Every rule selects the k surest rows and only k differs, so the rows are ranked once: a thread counts the rows that
//! beat its own. The next list needs every request's count, hence the last block: each block stages its masked
//! positions, and the one that draws the last ticket sums the counts in request order and copies the positions to their
//! places. Who comes last does not change what it writes.

use super::{
    layout::{
        MAX_REQUESTS, MAX_WINDOW, RequestState, RowStatistics, STAGING_BYTES, SelectParameters, request_flags, rule,
    },
    logits::has,
    spec::{SelectionSpec, check},
};
use crate::{
    isa::{B32, B64, Builder, Cache, F32, Launch, R32, R64, RF, RP, Rounding},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{
        order::order_key,
        reduce::{BLOCK_EXCLUSIVE_SUM_BYTES, block_exclusive_sum},
    },
};
use std::mem::{offset_of, size_of};

/// A thread a position, and a thread a request in the last block.
const THREADS: u32 = MAX_WINDOW;
const _: () = assert!(MAX_REQUESTS == THREADS);

const TICKET: i64 = 8;

impl KernelSpec for SelectionSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        check(self.arch)
    }

    fn build(&self) -> Kernel {
        let entry = format!("selection_{}", "sm80");
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        generate(&mut k);
        k.finish()
    }
}

/// What the phases share.
struct Selection {
    parameters: R64,
    states: R64,
    rows: R64,
    sources: R64,
    capacity: R32,
    totals: R64,
    staging: R64,
    thread: R32,
    scratch: R32,
}

fn generate(k: &mut Builder) {
    let parameters: R64 = k.parameter("parameters", ParameterKind::Pointer);
    let states: R64 = k.parameter("states", ParameterKind::Pointer);
    let statistics: R64 = k.parameter("statistics", ParameterKind::Pointer);
    let tokens: R64 = k.parameter("tokens", ParameterKind::Pointer);
    let tokens_length: R32 = k.parameter("tokens_length", ParameterKind::U32);
    let advance: R32 = k.parameter("advance", ParameterKind::U32);
    let rows: R64 = k.parameter("rows", ParameterKind::Pointer);
    let sources: R64 = k.parameter("sources", ParameterKind::Pointer);
    let capacity: R32 = k.parameter("capacity", ParameterKind::U32);
    let totals: R64 = k.parameter("totals", ParameterKind::Pointer);
    let staging: R64 = k.parameter("staging", ParameterKind::Pointer);
    let trajectory_steps: R64 = k.parameter("trajectory_steps", ParameterKind::Pointer);
    let trajectory_confidence: R64 = k.parameter("trajectory_confidence", ParameterKind::Pointer);
    let scratch = k.shared(BLOCK_EXCLUSIVE_SUM_BYTES, 16);
    let scratch = k.shared_address(scratch);
    let shared = k.shared(8 * THREADS, 16);
    let shared = k.shared_address(shared);
    let (request, thread) = (k.block_x(), k.thread());
    let common = Selection { parameters, states, rows, sources, capacity, totals, staging, thread, scratch };

    let mine = k.mad_wide(request, size_of::<SelectParameters>() as u32, parameters);
    let mask_token: R32 = k.load_readonly(mine, offset_of!(SelectParameters, mask_token) as i64);
    let first_token: R32 = k.load_readonly(mine, offset_of!(SelectParameters, first_token) as i64);
    let window_start: R32 = k.load_readonly(mine, offset_of!(SelectParameters, window_start) as i64);
    let window: R32 = k.load_readonly(mine, offset_of!(SelectParameters, window_length) as i64);
    let steps: R32 = k.load_readonly(mine, offset_of!(SelectParameters, steps) as i64);
    let state = k.mad_wide(request, size_of::<RequestState>() as u32, states);
    let step: R32 = k.load(state, offset_of!(RequestState, step) as i64);
    let initial: R32 = k.load(state, offset_of!(RequestState, initial_masks) as i64);
    let flags: R32 = k.load(state, offset_of!(RequestState, flags) as i64);
    let first_row: R32 = k.load(state, offset_of!(RequestState, first_row) as i64);
    let candidates: R32 = k.load(state, offset_of!(RequestState, rows) as i64);

    k.comment("a window that does not fit is empty");
    let start = k.widen_u(first_token);
    let ahead = k.widen_u(window_start);
    let start = k.add(start, ahead);
    let length = k.widen_u(window);
    let window_end = k.add(start, length);
    let available = k.widen_u(tokens_length);
    let past = k.gt_u(window_end, available);
    let long = k.gt_u(window, MAX_WINDOW);
    let bad = k.or_p(past, long);
    let window = k.select(bad, 0u32, window);
    let bad_flag = k.select(bad, request_flags::BAD_WINDOW, 0u32);
    let flags = k.or(flags, bad_flag);
    // The state is what an earlier launch left, if nobody else wrote it.
    let room = k.sub(capacity, first_row);
    let begins = k.le_u(first_row, capacity);
    let ends = k.le_u(candidates, room);
    let few = k.le_u(candidates, MAX_WINDOW);
    let listed = k.and_p(begins, ends);
    let listed = k.and_p(listed, few);
    let candidates = k.select(listed, candidates, 0u32);
    let bad_flag = k.select(listed, 0u32, request_flags::BAD_STATE);
    let flags = k.or(flags, bad_flag);
    let flags = k.mov(flags);
    // Element of `tokens` with response position 0.
    let first_token = k.widen_u(first_token);

    k.comment("select and write");
    let started = has(k, flags, request_flags::STARTED);
    let done = has(k, flags, request_flags::DONE);
    let wanted = k.ne(advance, 0u32);
    let running = k.and_p(started, wanted);
    let open = k.not_p(done);
    let running = k.and_p(running, open);
    let open = k.not_p(bad);
    let running = k.and_p(running, open);
    let selected = k.mov::<B32>(0u32);
    let next_step = k.mov(step);
    k.if_then(running, |k| {
        let own = k.lt_u(thread, candidates);
        let position = k.mov::<B32>(0u32);
        let token = k.mov(mask_token);
        let confidence = k.mov::<F32>(f32::NEG_INFINITY);
        let key = k.mov::<B32>(0u32);
        k.if_then(own, |k| {
            let entry = k.add(first_row, thread);
            let at = k.mad_wide(entry, 8u32, rows);
            let listed: R32 = k.load(at, 4);
            k.set(position, listed);
            let row = k.mad_wide(entry, size_of::<RowStatistics>() as u32, statistics);
            let drawn: R32 = k.load(row, offset_of!(RowStatistics, token) as i64);
            k.set(token, drawn);
            let score: RF = k.load(row, offset_of!(RowStatistics, confidence) as i64);
            k.set(confidence, score);
            let row_flags: R32 = k.load(row, offset_of!(RowStatistics, flags) as i64);
            let fine = k.eq(row_flags, 0u32);
            let from_start = k.sub(listed, window_start);
            let inside = k.lt_u(from_start, window);
            let fine = k.and_p(fine, inside);
            let value = k.add_f(score, 0.0);
            let ordered = order_key(k, value);
            // A flagged row ranks below every other, and is never chosen.
            let ordered = k.select(fine, ordered, 0u32);
            k.set(key, ordered);
        });
        let valid = k.ne(key, 0u32);
        let slot = k.mad(thread, 4u32, shared);
        k.store(slot, 0, key);
        k.barrier();
        let rank = k.mov::<B32>(0u32);
        let cursor = k.mov(shared);
        k.for_loop(0u32, candidates, 1, |k, other| {
            let theirs: R32 = k.load(cursor, 0);
            let surer = k.gt_u(theirs, key);
            let (same, before) = (k.eq(theirs, key), k.lt_u(other, thread));
            let tied = k.and_p(same, before);
            let ahead = k.or_p(surer, tied);
            k.when(ahead, |k| {
                let next = k.add(rank, 1u32);
                k.set(rank, next);
            });
            let next = k.add(cursor, 4u32);
            k.set(cursor, next);
        });

        let threshold: RF = k.load_readonly(mine, offset_of!(SelectParameters, threshold) as i64);
        let passes = k.gt_f(confidence, threshold);
        let passes = k.and_p(passes, valid);
        // Two counts of at most 1024 in one sum.
        let one = k.select(valid, 1u32, 0u32);
        let both = k.select(passes, 0x1_0001u32, one);
        let (_, counts) = block_exclusive_sum(k, scratch, both);
        let available = k.and(counts, 0xFFFFu32);
        let passing = k.shr_u(counts, 16u32);
        let wanted = wanted_rows(k, mine, steps, step, initial, candidates, passing);
        let after = k.add(step, 1u32);
        k.set(next_step, after);
        let last = k.ge_u(after, steps);
        let wanted = k.select(last, available, wanted);
        let wanted = k.min_u(wanted, available);
        k.set(selected, wanted);
        let lost = k.lt_u(available, candidates);
        k.when(lost, |k| {
            let flagged = k.or(flags, request_flags::ROW_ERROR);
            k.set(flags, flagged);
        });

        let chosen = k.lt_u(rank, wanted);
        let chosen = k.and_p(chosen, valid);
        k.if_then(chosen, |k| {
            let position = k.widen_u(position);
            let element = k.add(first_token, position);
            let offset = k.shl(element, 2u32);
            let at = k.add(tokens, offset);
            let current: R32 = k.load(at, 0);
            let masked = k.eq(current, mask_token);
            k.if_then(masked, |k| {
                k.store(at, 0, token);
                store_if_given(k, trajectory_steps, offset, step);
                store_if_given(k, trajectory_confidence, offset, confidence);
            });
        });
    });
    k.barrier();

    k.comment("what is still masked");
    let in_window = k.lt_u(thread, window);
    let position = k.add(window_start, thread);
    let masked = k.mov::<B32>(0u32);
    k.if_then(in_window, |k| {
        let wide = k.widen_u(position);
        let element = k.add(first_token, wide);
        let offset = k.shl(element, 2u32);
        let at = k.add(tokens, offset);
        let current: R32 = k.load(at, 0);
        let is_mask = k.eq(current, mask_token);
        let value = k.select::<B32>(is_mask, 1u32, 0u32);
        k.set(masked, value);
    });
    let (rank, masks) = block_exclusive_sum(k, scratch, masked);
    let none = k.eq(masks, 0u32);
    let over = k.ge_u(next_step, steps);
    let finished = k.or_p(none, over);
    let finished = k.or_p(finished, done);
    let listed = k.select(finished, 0u32, masks);
    let is_masked = k.ne(masked, 0u32);
    let unfinished = k.not_p(finished);
    let staged = k.and_p(is_masked, unfinished);
    k.if_then(staged, |k| {
        let request = k.mad_wide(request, STAGING_BYTES as u32, staging);
        let at = k.mad_wide(rank, 4u32, request);
        k.store(at, 0, position);
    });
    let leader = k.eq(thread, 0u32);
    k.if_then(leader, |k| {
        let initial = k.select(started, initial, masks);
        let end_flags = k.select(finished, request_flags::STARTED | request_flags::DONE, request_flags::STARTED);
        let flags = k.or(flags, end_flags);
        k.store(state, offset_of!(RequestState, step) as i64, next_step);
        k.store(state, offset_of!(RequestState, masks) as i64, masks);
        k.store(state, offset_of!(RequestState, initial_masks) as i64, initial);
        k.store(state, offset_of!(RequestState, flags) as i64, flags);
        k.store(state, offset_of!(RequestState, rows) as i64, listed);
        k.store(state, offset_of!(RequestState, selected) as i64, selected);
    });
    make_list(k, &common, shared);
    k.ret();
}

/// The k of the request's rule.
fn wanted_rows(k: &mut Builder, mine: R64, steps: R32, step: R32, initial: R32, masks: R32, passing: R32) -> R32 {
    let rule_id: R32 = k.load_readonly(mine, offset_of!(SelectParameters, rule) as i64);
    let epsilon: RF = k.load_readonly(mine, offset_of!(SelectParameters, epsilon) as i64);
    let by_threshold = k.max_u(passing, 1u32);

    let divisor = k.max_u(steps, 1u32);
    let share = k.div_u(initial, divisor);
    let rest = k.rem_u(initial, divisor);
    let early = k.lt_u(step, rest);
    let extra = k.select::<B32>(early, 1u32, 0u32);
    let evenly = k.add(share, extra);

    let next = k.add(step, 1u32);
    let [now, then] = [step, next].map(|at| time(k, epsilon, steps, at));
    let ratio = k.div_f(then, now);
    let portion = k.sub_f(1.0, ratio);
    let masks = k.float_from_u(masks);
    let rows = k.mul_f(masks, portion);
    let by_time = k.u_from_float(rows, Rounding::Zero);

    let threshold = k.eq(rule_id, rule::THRESHOLD);
    let even = k.eq(rule_id, rule::TOP_K_EVEN);
    let scheduled = k.select(even, evenly, by_time);
    k.select(threshold, by_threshold, scheduled)
}

/// Point `at` of the `steps + 1` that divide [1, ε] evenly; each half counts from its own end.
fn time(k: &mut Builder, epsilon: RF, steps: R32, at: R32) -> RF {
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
    let first_half: RP = k.lt_u(at, half);
    k.select(first_half, from_start, from_end)
}

fn store_if_given<W: crate::isa::Word>(k: &mut Builder, base: R64, offset: R64, value: crate::isa::Reg<W>) {
    let given = k.ne(base, 0u64);
    let at = k.add(base, offset);
    k.when(given, |k| k.store(at, 0, value));
}

/// In the last block to come here: the list of all requests' rows, and the totals.
fn make_list(k: &mut Builder, common: &Selection, shared: R32) {
    let &Selection { parameters, states, rows, sources, capacity, totals, staging, thread, scratch } = common;
    k.comment("the last block makes the list");
    k.fence_device();
    k.barrier();
    let leader = k.eq(thread, 0u32);
    k.if_then(leader, |k| {
        let ticket = k.atomic_add(totals, TICKET, 1u32);
        k.store(scratch, 0, ticket);
    });
    k.barrier();
    let ticket: R32 = k.load(scratch, 0);
    let requests = k.grid_x();
    let last = k.sub(requests, 1u32);
    let early = k.ne(ticket, last);
    k.when(early, |k| k.ret());
    k.barrier();
    k.fence_device();

    let mine = k.lt_u(thread, requests);
    let state = k.mad_wide(thread, size_of::<RequestState>() as u32, states);
    let listed = k.mov::<B32>(0u32);
    let open = k.mov::<B32>(0u32);
    let flags = k.mov::<B32>(0u32);
    k.if_then(mine, |k| {
        let count: R32 = k.load(state, offset_of!(RequestState, rows) as i64);
        k.set(listed, count);
        let of_request: R32 = k.load(state, offset_of!(RequestState, flags) as i64);
        k.set(flags, of_request);
        let done = has(k, flags, request_flags::DONE);
        let value = k.select::<B32>(done, 0u32, 1u32);
        k.set(open, value);
    });
    let (first, total) = block_exclusive_sum(k, scratch, listed);
    let (_, unfinished) = block_exclusive_sum(k, scratch, open);
    let total = k.min_u(total, capacity);
    let first = k.min_u(first, capacity);
    let room = k.sub(capacity, first);
    let fitting = k.min_u(listed, room);
    k.if_then(mine, |k| {
        k.store(state, offset_of!(RequestState, first_row) as i64, first);
        k.store(state, offset_of!(RequestState, rows) as i64, fitting);
        let short = k.lt_u(fitting, listed);
        let flagged = k.or(flags, request_flags::LIST_OVERFLOW);
        k.when(short, |k| k.store(state, offset_of!(RequestState, flags) as i64, flagged));
    });
    let slot = k.mad(thread, 8u32, shared);
    k.store_vector(slot, 0, [first, fitting]);
    k.barrier();

    let listing_sources = k.ne(sources, 0u64);
    let lane = k.lane();
    let warp = k.shr_u(thread, 5u32);
    k.for_loop(warp, requests, THREADS / 32, |k, request| {
        let slot = k.mad(request, 8u32, shared);
        let [first, count] = k.load_vector::<B32, B32, 2>(slot, 0, Cache::Default);
        let of_request = k.mad_wide(request, size_of::<SelectParameters>() as u32, parameters);
        let row_base: R32 = k.load_readonly(of_request, offset_of!(SelectParameters, row_base) as i64);
        let positions = k.mad_wide(request, STAGING_BYTES as u32, staging);
        k.for_loop(lane, count, 32, |k, i| {
            let at = k.mad_wide(i, 4u32, positions);
            let position: R32 = k.load(at, 0);
            let entry = k.add(first, i);
            let at = k.mad_wide(entry, 8u32, rows);
            k.store_vector::<B32, B64, 2>(at, 0, [request, position]);
            let source = k.add(row_base, position);
            let at = k.mad_wide(entry, 4u32, sources);
            k.when(listing_sources, |k| k.store(at, 0, source));
        });
    });
    k.if_then(listing_sources, |k| {
        let past = k.add(total, thread);
        k.for_loop(past, capacity, THREADS, |k, entry| {
            let at = k.mad_wide(entry, 4u32, sources);
            k.store::<B32, B64>(at, 0, 0u32);
        });
    });
    k.if_then(leader, |k| {
        k.store(totals, 0, total);
        k.store(totals, 4, unfinished);
        k.store::<B32, B64>(totals, TICKET, 0u32);
    });
}
