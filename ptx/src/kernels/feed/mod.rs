//! Which rows of a sequence a pass of a diffusion model feeds: what a cache policy comes down to.
//!
//! Keys and values lie in the cache after rotation and are written in place, so that a policy is no more than two choices a
//! pass: which rows go through the model (and so have their keys and values replaced), and which keys they see. Both follow
//! from the request's [`FeedParameters`] and from where its [`RequestState`](super::sampling::RequestState) stands, so each
//! kernel that needs them works them out for itself (`range.rs`), and nothing of it passes through the host.
//!
//! A pass has room for as many rows a request, the rest is padding. Two kernels stand at its ends:
//!
//! 1. [`EmbedSpec`] looks up the embeddings of the fed rows, and writes what rotation, cache and attention need of them:
//!    positions, cache rows, and the lengths of two *segments* a request, for attention over a batch of `2 · requests`
//!    sequences. Rows of the first segment see keys up to its end only, those of the second see all that the policy shows.
//! 2. [`HeadRowsSpec`] gathers the hidden rows that predict the listed positions, for the LM head.
//!
//! | policy | step feeds | its rows see | refresh |
//! |---|---|---|---|
//! | [`policy::FULL`] | everything | everything | none |
//! | [`policy::PROMPT`] | response | everything | none: the prompt's keys stay (Dimple's prefilling) |
//! | [`policy::PREFIX`] | block and what is behind it | everything | when a block begins (Fast-dLLM) |
//! | [`policy::DUAL`] | block | everything, behind the block stale | when a block begins (Fast-dLLM) |
//! | [`policy::WINDOW`] | block, some rows before and behind | everything, elsewhere stale | when a block begins (dInfer) |
//! | [`policy::BLOCK`] | block, and the one before if it was finished in the last step | keys up to the block's end | none (block diffusion: SDAR, LLaDA2) |
//!
//! A *refresh* is a pass that feeds everything. Where models predict a token from the row before it, the row before the
//! first fed one is fed as well.

mod embed;
mod head;
mod layout;
mod range;

pub use embed::EmbedSpec;
pub use head::HeadRowsSpec;
pub use layout::{FeedParameters, feed_flags, policy};
