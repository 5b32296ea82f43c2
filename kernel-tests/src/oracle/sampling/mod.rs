//! Masked-token decoding as its definitions say: a row of logits, and the rules by which rows are selected.

mod noise;
mod row;
mod rules;
mod schedule;
mod selection;

pub use row::{Row, cleaned, is_flagged, negative_entropy, philox, row, uniforms};
pub use selection::{Selected, Selection};
