//! Attention over the pairs that a sparse pattern keeps.

pub mod expr;
pub mod spec;

pub use spec::{AttentionSpec, Pattern};
