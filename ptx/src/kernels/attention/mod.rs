//! Attention over the pairs that a sparse pattern keeps.
//!
//! One skeleton serves all patterns. They differ in which key blocks a row block visits (`blocks`, `columns`) and in the
//! condition on single pairs (`scores`); both are written for any architecture.

mod blocks;
mod columns;
mod evaluate;
pub mod expr;
mod output;
mod problem;
mod scores;
mod sm80;
mod sm90;
pub mod spec;
#[cfg(test)]
mod tests;
mod tiling;

pub use spec::{AttentionSpec, KvLayout, Pattern};
