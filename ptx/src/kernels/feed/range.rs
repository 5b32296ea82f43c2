//! The rows that a pass feeds of one request.

use super::layout::{FeedParameters, feed_flags, policy};
use crate::{
    isa::{B32, Builder, R32, R64, RP},
    kernels::sampling::{RequestState, request_flags},
};
use std::mem::{offset_of, size_of};

/// Rows of a sequence, by position.
pub(super) struct Range {
    /// The first row fed.
    pub(super) first: R32,
    /// How many rows are fed; 0 where the request takes no part in the pass.
    pub(super) count: R32,
    /// Rows before this one see keys up to here only.
    pub(super) split: R32,
    /// Keys that the rows from `split` on see.
    pub(super) visible: R32,
    /// The row that predicts response position 0.
    pub(super) first_source: R32,
    /// More rows than the pass has room for.
    pub(super) cut: RP,
}

/// Works out what `request` feeds, at most `room` rows. `refresh` is not 0 in a pass that feeds everything.
pub(super) fn range(k: &mut Builder, states: R64, feeds: R64, request: R32, refresh: R32, room: R32) -> Range {
    let state = k.mad_wide(request, size_of::<RequestState>() as u32, states);
    let feed = k.mad_wide(request, size_of::<FeedParameters>() as u32, feeds);
    let listed: R32 = k.load(state, offset_of!(RequestState, rows) as i64);
    let state_flags: R32 = k.load(state, offset_of!(RequestState, flags) as i64);
    let block_start: R32 = k.load(state, offset_of!(RequestState, block_start) as i64);
    let block_length: R32 = k.load(state, offset_of!(RequestState, block_length) as i64);
    let field = |k: &mut Builder, offset: usize| -> R32 { k.load_readonly(feed, offset as i64) };
    let kind = field(k, offset_of!(FeedParameters, policy));
    let flags = field(k, offset_of!(FeedParameters, flags));
    let prompt = field(k, offset_of!(FeedParameters, prompt));
    let length = field(k, offset_of!(FeedParameters, length));
    let before = field(k, offset_of!(FeedParameters, before));
    let after = field(k, offset_of!(FeedParameters, after));
    let flag = |k: &mut Builder, word: R32, bit: u32| {
        let bits = k.and(word, bit);
        k.ne(bits, 0u32)
    };
    let causal = flag(k, flags, feed_flags::CAUSAL_PROMPT);
    let shifted = flag(k, flags, feed_flags::SHIFTED);
    let lead = k.select::<B32>(shifted, 1u32, 0u32);

    k.comment("the rows that the policy feeds");
    // Whatever the device holds, positions stay inside the sequence.
    let prompt = k.min_u(prompt, length);
    let response = k.sub(length, prompt);
    let block_start = k.min_u(block_start, response);
    let rest = k.sub(response, block_start);
    let block_length = k.min_u(block_length, rest);
    let block = k.add(prompt, block_start);
    let block_end = k.add(block, block_length);
    let one_before = |k: &mut Builder, position: R32| {
        let step = k.min_u(lead, position);
        k.sub(position, step)
    };
    let from_prompt = one_before(k, prompt);
    let from_block = one_before(k, block);
    let everything = k.select::<B32>(causal, from_prompt, 0u32);

    let is = |k: &mut Builder, which: u32| k.eq(kind, which);
    let refreshing = k.ne(refresh, 0u32);
    let full = is(k, policy::FULL);
    let full = k.or_p(full, refreshing);
    let (whole_response, windowed, blockwise) = (is(k, policy::PROMPT), is(k, policy::WINDOW), is(k, policy::BLOCK));
    let blockwise = {
        let stepping = k.not_p(refreshing);
        k.and_p(blockwise, stepping)
    };

    let reach = k.min_u(before, block);
    let earlier = k.sub(block, reach);
    let earlier = k.min_u(earlier, from_block);
    let earlier = k.max_u(earlier, everything);
    let finished = flag(k, state_flags, request_flags::BLOCK_FINISHED);
    let previous: R32 = k.load(state, offset_of!(RequestState, previous_block_start) as i64);
    let previous = k.min_u(previous, block_start);
    let unwritten = k.add(prompt, previous);
    let unwritten = k.select(finished, unwritten, block);
    let unwritten = k.min_u(unwritten, from_block);
    let first = k.select(windowed, earlier, from_block);
    let first = k.select(blockwise, unwritten, first);
    let first = k.select(whole_response, from_prompt, first);
    let first = k.select(full, everything, first);

    let behind = k.sub(length, block_end);
    let reach = k.min_u(after, behind);
    let later = k.add(block_end, reach);
    let dual = is(k, policy::DUAL);
    let dual = k.or_p(dual, blockwise);
    let end = k.select(dual, block_end, length);
    let end = k.select(windowed, later, end);
    let end = k.select(full, length, end);
    let end = k.select(whole_response, length, end);
    let visible = k.select(blockwise, block_end, length);

    let before_response = k.lt_u(first, prompt);
    let apart = k.and_p(causal, before_response);
    let split = k.select(apart, prompt, first);
    let split = k.select(blockwise, block, split);

    let wanted = k.sub(end, first);
    let cut = k.gt_u(wanted, room);
    let count = k.min_u(wanted, room);
    let idle = k.eq(listed, 0u32);
    let count = k.select(idle, 0u32, count);
    let first_source = k.sub(prompt, lead);
    Range { first, count, split, visible, first_source, cut }
}
