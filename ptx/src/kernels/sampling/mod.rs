//! Masked-token diffusion decoding: which token each masked position would take, and which positions take theirs now.
//!
//! A step of decoding is the model's forward pass, the LM head on the listed rows, and two launches:
//!
//! 1. [`SamplerSpec`]: for each listed row some warps read its logits, once, and the last of them to finish writes a
//!    [`RowStatistics`]: statistics, drawn token, confidence.
//! 2. [`SelectionSpec`]: one block a request applies the request's [`rule`] to its rows' confidences, writes the
//!    selected tokens, advances the request's [`RequestState`], moves on to its next block of positions where one is
//!    finished, and lists the rows that are still masked, and decoded ones where the rule revises them.
//!
//! Nothing returns to the host in between; a launch of [`SelectionSpec`] with `advance = 0` makes the first list.
//!
//! # Rows
//!
//! A *row* is one listed position of one request. The list is compact, by request and then by position, both ascending:
//! `rows[i] = (request, position)`, of which `totals[0]` are valid. Beside it, `sources[i] = row_base + position` says
//! where the row's logits (or the hidden state they are computed from) lie, with the request's `row_base`. The shift of
//! the models, in which sequence row i − 1 predicts position i, is the caller's and lives in `row_base` alone: the
//! sequence row that holds response position 0, minus 1.
//!
//! Two ways to use it: gather hidden rows by `sources`, run the LM head on them and pass `logits_rows = 0` (row i of
//! the logits is list entry i); or run the LM head on everything and pass `logits_rows = sources`.
//!
//! # Order and ties
//!
//! Tokens are ranked by logit, descending, and equal logits by token id, ascending; rows by confidence, descending, and
//! equal confidences by position, ascending. −0 equals +0. NaN counts as −∞, +∞ as the largest finite number of the
//! logits' type. A row without a logit above −∞ has no token: it is flagged and never selected.
//!
//! # Determinism
//!
//! A row is cut in segments of a length that the kernel's spec fixes, and sums have one order within a segment and over the
//! segments.
//! What a filter compares are 64-bit integers, in units of 2⁻⁴⁴ of the largest token's mass: their sums are exact, the same in
//! whatever order they are formed. A draw depends on (seed, stream, step, position) and the row's logits; a selection on the
//! request's own rows. Neither depends on the batch.

mod credit;
mod cut;
mod entry;
mod filter;
mod finish;
mod functions;
mod layout;
mod logits;
mod merge;
mod nucleus;
mod offers;
mod patches;
mod row;
mod segment;
mod select;
mod shards;
mod spec;
mod statistics;
#[cfg(test)]
mod tests;

pub use layout::{
    CREDIT_BYTES, MAX_BIASES, MAX_CREDITS, MAX_REQUESTS, MAX_STEPS, MAX_WINDOW, OPEN_BYTES, PARTIAL_BYTES,
    RequestState, RowParameters, RowStatistics, STAGING_BYTES, SelectParameters, TOTALS_BYTES, request_flags,
    row_flags, rule, sampling_flags, schedule, score, select_flags,
};
pub use spec::{Confidence, LogitsType, RowMergeSpec, SamplerSpec, SelectionSpec};
