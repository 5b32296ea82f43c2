//! The record that host and device share.

/// How one request is fed: 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedParameters {
    /// [`policy`].
    pub policy: u32,
    /// [`feed_flags`].
    pub flags: u32,
    /// Element of `tokens` with the sequence's position 0.
    pub first_token: u32,
    /// Tokens of the prompt, at least 1; the response follows.
    pub prompt: u32,
    /// Tokens of prompt and response.
    pub length: u32,
    /// Rows before the block that [`policy::WINDOW`] feeds.
    pub before: u32,
    /// Rows behind the block that [`policy::WINDOW`] feeds.
    pub after: u32,
    /// Not read.
    pub reserved: u32,
}

/// Which rows a step feeds.
pub mod policy {
    /// All rows of the sequence.
    pub const FULL: u32 = 0;
    /// The response.
    pub const PROMPT: u32 = 1;
    /// The block and everything behind it.
    pub const PREFIX: u32 = 2;
    /// The block.
    pub const DUAL: u32 = 3;
    /// The block, `before` rows before it and `after` behind it.
    pub const WINDOW: u32 = 4;
    /// The block, which sees no key behind it, and the block before if the last step finished that one.
    pub const BLOCK: u32 = 5;
}

/// Bits of [`FeedParameters::flags`].
pub mod feed_flags {
    /// Prompt rows see no response, so their keys never change: only the last one is ever fed.
    pub const CAUSAL_PROMPT: u32 = 1;
    /// Row i − 1 predicts token i (Dream, Dimple); else row i does (LLaDA).
    pub const SHIFTED: u32 = 2;
}
