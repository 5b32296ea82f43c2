//! Attention over the pairs that a sparse pattern keeps.
//!
//! One skeleton serves all patterns. They differ in which key blocks a row block visits (`blocks`, `columns`) and in the
//! condition on single pairs (`scores`); both are written for any architecture. Where rows are few, blocks share the keys of a
//! sequence (`split`), and what they leave is merged (`merge`).

mod blocks;
mod columns;
mod evaluate;
pub mod expr;
mod merge;
mod output;
mod problem;
mod scores;
mod sm80;
mod sm90;
pub mod spec;
mod split;
#[cfg(test)]
mod tests;
mod tiling;

pub use merge::MergeSpec;
pub use spec::{AttentionSpec, KvLayout, Partition, Pattern};
pub use split::{MAX_PARTS, NOTE_WORDS};
