//! The request's block as a step leaves it: what is masked, whether it is finished, which comes next, what is listed.

use super::{Batch, request::Request};
use crate::{
    isa::{B32, Builder, R32, RP},
    kernels::sampling::{
        layout::{STAGING_BYTES, request_flags, select_flags},
        logits::has,
    },
    tile::ballot::block_ballots,
};

/// Brings the state up to date and stages the positions to be listed.
pub(super) fn settle(k: &mut Builder, batch: &Batch, request: &Request) {
    let thread = batch.thread;
    let warp = k.shr_u(thread, 5u32);
    let lane = k.lane();
    let own_word = k.mad_wide(warp, 4u32, request.open);
    // Which positions were masked when the block began; 0 before.
    let open = k.mov::<B32>(0u32);
    k.when(request.started, |k| {
        let word: R32 = k.load(own_word, 0);
        k.set(open, word);
    });
    let fresh = k.select::<B32>(request.started, 0u32, 1u32);
    let fresh = k.mov(fresh);
    let going = k.select::<B32>(request.done, 0u32, 1u32);
    let going = k.mov(going);
    let [listed, rank, rows, words] = [0u32; 4].map(|none| k.mov::<B32>(none));
    k.while_loop(
        |k| k.ne(going, 0u32),
        |k| {
            let position = k.add(request.block_start, thread);
            let inside = k.lt_u(thread, request.block_length);
            let token = k.mov::<B32>(0u32);
            let offset = request.token_offset(k, position);
            let at = k.add(batch.tokens, offset);
            k.when(inside, |k| {
                let there: R32 = k.load(at, 0);
                k.set(token, there);
            });
            let mask = k.eq(token, request.mask_token);
            let masked = k.and_p(inside, mask);
            let opened = k.shr_u(open, lane);
            let opened = k.and(opened, 1u32);
            let opened = k.ne(opened, 0u32);
            let filled = k.not_p(mask);
            let decoded = k.and_p(opened, inside);
            let decoded = k.and_p(decoded, filled);
            let ends = request.end_tokens.map(|end| k.eq(token, end));
            let ends = k.or_p(ends[0], ends[1]);
            let ending = k.and_p(decoded, ends);
            let revises = request.wants(k, select_flags::EDIT | select_flags::REMASK);
            let again = k.and_p(decoded, revises);
            let lists = k.or_p(masked, again);
            let [masks, ending, lists_bits] = block_ballots(k, batch.shared.ballots[2], [masked, ending, lists]);
            let count = masks.count(k);
            k.set(request.masks, count);
            k.set(words, masks.own);
            let value = k.select::<B32>(lists, 1u32, 0u32);
            k.set(listed, value);
            let before = lists_bits.rank(k);
            k.set(rank, before);
            let all = lists_bits.count(k);
            k.set(rows, all);

            k.comment("is the block finished, the response ended");
            let over = is_over(k, request, fresh);
            let (first_end, first_mask) = (ending.first(k), masks.first(k));
            let ended = is_ended(k, request, over, first_end, first_mask);
            k.set(going, 0u32);
            let under_way = k.eq(fresh, 0u32);
            let finished = k.and_p(over, under_way);
            let finished = k.or_p(finished, ended);
            request.flag(k, finished, request_flags::BLOCK_FINISHED);
            k.when(finished, |k| k.set(request.previous_block_start, request.block_start));
            k.if_else(
                ended,
                |k| {
                    fill(k, batch, request, first_end);
                    k.set(request.masks, 0u32);
                    request.flag(k, ended, request_flags::ENDED | request_flags::DONE);
                },
                |k| k.if_then(over, |k| advance(k, request, fresh, open, going)),
            );
        },
    );
    let fresh = k.ne(fresh, 0u32);
    k.when(fresh, |k| k.set(request.block_step, 0u32));
    let unfinished = {
        let done = has(k, request.flags, request_flags::DONE);
        k.not_p(done)
    };
    let due = request.refresh_due(k);
    let due = k.and_p(due, unfinished);
    let waiting = k.select::<B32>(due, request_flags::WAITING, 0u32);
    let flags = k.and(request.flags, !request_flags::WAITING);
    let flags = k.or(flags, waiting);
    k.set(request.flags, flags);
    // The next list is of those that wait only where a launch asks for it.
    let stepping = k.ne(batch.advance, 0u32);
    let refreshing = k.ne(batch.refresh, 0u32);
    let stepping = k.not_p(stepping);
    let refreshing = k.and_p(refreshing, stepping);
    let held = k.xor_p(due, refreshing);
    let turn = k.not_p(held);
    let turn = k.and_p(turn, unfinished);
    let rows = k.select(turn, rows, 0u32);
    let listed = k.ne(listed, 0u32);
    let staged = k.and_p(listed, turn);
    k.if_then(staged, |k| {
        let position = k.add(request.block_start, thread);
        let own = k.mad_wide(request.number, STAGING_BYTES as u32, batch.staging);
        let at = k.mad_wide(rank, 4u32, own);
        k.store(at, 0, position);
    });
    k.if_then(fresh, |k| {
        let leader = k.eq(lane, 0u32);
        k.when(leader, |k| k.store(own_word, 0, words));
        k.set(request.initial, request.masks);
        for counter in [request.carry, request.post_steps] {
            k.set(counter, 0u32);
        }
    });
    let started = k.or(request.flags, request_flags::STARTED);
    k.set(request.flags, started);
    // Every warp has read the state.
    k.barrier();
    let leader = k.eq(thread, 0u32);
    k.if_then(leader, |k| request.store(k, rows));
}

/// Whether the block is finished: no mask is left, and no revision is due; or its steps are used up.
fn is_over(k: &mut Builder, request: &Request, fresh: R32) -> RP {
    let is_fresh = k.ne(fresh, 0u32);
    let none = k.eq(request.masks, 0u32);
    let revised = k.ge_u(request.post_steps, request.post_limit);
    let idle = k.ne(request.idle, 0u32);
    let settled = k.or_p(revised, idle);
    let settled = k.or_p(settled, is_fresh);
    let settled = k.and_p(settled, none);
    let limit = k.add(request.steps, request.post_limit);
    let used_up = k.ge_u(request.block_step, limit);
    let under_way = k.not_p(is_fresh);
    let used_up = k.and_p(used_up, under_way);
    k.or_p(settled, used_up)
}

/// Whether the step decoded an end of the response, with no mask before it.
fn is_ended(k: &mut Builder, request: &Request, over: RP, first_end: R32, first_mask: R32) -> RP {
    let each_step = request.wants(k, select_flags::END_WITH_STEP);
    let each_block = request.wants(k, select_flags::END_WITH_BLOCK);
    let due = k.and_p(each_block, over);
    let due = k.or_p(due, each_step);
    let clear = k.lt_u(first_end, first_mask);
    let ended = k.and_p(clear, due);
    k.and_p(ended, request.running)
}

/// Fills what is masked behind the end, and what was decoded there.
fn fill(k: &mut Builder, batch: &Batch, request: &Request, first_end: R32) {
    let end = k.add(request.block_start, first_end);
    let behind = k.add(end, 1u32);
    let own = k.add(behind, batch.thread);
    k.for_loop(own, request.window_end, k.threads(), |k, position| {
        let offset = request.token_offset(k, position);
        let at = k.add(batch.tokens, offset);
        let token: R32 = k.load(at, 0);
        let masked = k.eq(token, request.mask_token);
        let free = k.select::<B32>(masked, 1u32, 0u32);
        let free = k.mov(free);
        let place = k.sub(position, request.block_start);
        let inside = k.lt_u(place, request.block_length);
        k.if_then(inside, |k| {
            let word = k.shr_u(place, 5u32);
            let at = k.mad_wide(word, 4u32, request.open);
            let opened: R32 = k.load(at, 0);
            let bit = k.and(place, 31u32);
            let opened = k.shr_u(opened, bit);
            let opened = k.and(opened, 1u32);
            let either = k.or(free, opened);
            k.set(free, either);
        });
        let free = k.ne(free, 0u32);
        k.when(free, |k| k.store(at, 0, request.fill_token));
    });
}

/// On to the next block, or to the end.
fn advance(k: &mut Builder, request: &Request, fresh: R32, open: R32, going: R32) {
    let next = k.add(request.block_start, request.block_length);
    let at_end = k.ge_u(next, request.window_end);
    request.flag(k, at_end, request_flags::DONE);
    let further = k.not_p(at_end);
    k.if_then(further, |k| {
        // Blocks that were given before the first open one are final too.
        let beginning = k.not_p(request.started);
        request.flag(k, beginning, request_flags::BLOCK_FINISHED);
        k.set(request.block_start, next);
        let left = k.sub(request.window_end, next);
        let length = k.min_u(request.block_size, left);
        k.set(request.block_length, length);
        k.set(open, 0u32);
        k.set(fresh, 1u32);
        k.set(going, 1u32);
        // The words of this block have been read.
        k.barrier();
    });
}
