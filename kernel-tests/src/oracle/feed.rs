//! What a pass feeds, as the policies say it.

use ptx::kernels::{
    feed::{FeedParameters, feed_flags, policy},
    sampling::{RequestState, request_flags},
};
use std::ops::Range;

/// The rows of a sequence that a pass feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fed {
    /// By position.
    pub rows: Range<u32>,
    /// Rows before this one see the keys before it only.
    pub split: u32,
    /// Keys that the others see.
    pub visible: u32,
}

/// The row that predicts a position of the response.
pub fn source(feed: &FeedParameters, position: u32) -> u32 {
    feed.prompt + position - u32::from(feed.flags & feed_flags::SHIFTED != 0)
}

/// What a request is fed in a pass with room for so many rows. Its records are sound.
pub fn fed(feed: &FeedParameters, state: &RequestState, refresh: bool, room: u32) -> Fed {
    let causal = feed.flags & feed_flags::CAUSAL_PROMPT != 0;
    let block = feed.prompt + state.block_start..feed.prompt + state.block_start + state.block_length;
    let response = source(feed, 0)..feed.length;
    let everything = if causal { response.clone() } else { 0..feed.length };
    let from_block = source(feed, state.block_start);
    let blockwise = feed.policy == policy::BLOCK && !refresh;
    let rows = match feed.policy {
        _ if refresh => everything,
        policy::FULL => everything,
        policy::PROMPT => response,
        policy::PREFIX => from_block..feed.length,
        policy::DUAL => from_block..block.end,
        policy::WINDOW => {
            let start = block.start.saturating_sub(feed.before).min(from_block).max(everything.start);
            start..feed.length.min(block.end + feed.after)
        }
        _ => {
            let finished = state.flags & request_flags::BLOCK_FINISHED != 0;
            let unwritten = if finished { feed.prompt + state.previous_block_start } else { block.start };
            unwritten.min(from_block)..block.end
        }
    };
    let split = match () {
        () if blockwise => block.start,
        () if causal && rows.start < feed.prompt => feed.prompt,
        () => rows.start,
    };
    let count = if state.rows == 0 { 0 } else { (rows.end - rows.start).min(room) };
    let visible = if blockwise { block.end } else { feed.length };
    Fed { rows: rows.start..rows.start + count, split, visible }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 10, a response of 8 in blocks of 4, of which the second is being decoded.
    #[test]
    fn policies_feed_what_their_papers_say() {
        let state = RequestState { block_start: 4, block_length: 4, rows: 3, ..RequestState::default() };
        let feed = |policy, flags| FeedParameters {
            policy,
            flags,
            prompt: 10,
            length: 18,
            before: 3,
            after: 2,
            ..FeedParameters::default()
        };
        let rows = |policy, flags, refresh| fed(&feed(policy, flags), &state, refresh, 99).rows;
        let (causal, shifted) = (feed_flags::CAUSAL_PROMPT, feed_flags::SHIFTED);
        assert_eq!(rows(policy::FULL, 0, false), 0..18);
        assert_eq!(rows(policy::FULL, causal, false), 10..18);
        assert_eq!([rows(policy::PROMPT, 0, false), rows(policy::PROMPT, shifted, false)], [10..18, 9..18]);
        assert_eq!([rows(policy::PREFIX, 0, false), rows(policy::PREFIX, shifted, false)], [14..18, 13..18]);
        assert_eq!([rows(policy::DUAL, 0, false), rows(policy::DUAL, shifted, false)], [14..18, 13..18]);
        assert_eq!([rows(policy::WINDOW, 0, false), rows(policy::DUAL, 0, true)], [11..18, 0..18]);
        let written = fed(&feed(policy::BLOCK, shifted), &state, false, 99);
        assert_eq!(written, Fed { rows: 13..18, split: 14, visible: 18 });
        let finished = RequestState { flags: request_flags::BLOCK_FINISHED, ..state };
        let folded = fed(&feed(policy::BLOCK, shifted), &finished, false, 99);
        assert_eq!(folded, Fed { rows: 10..18, split: 14, visible: 18 });
    }
}
