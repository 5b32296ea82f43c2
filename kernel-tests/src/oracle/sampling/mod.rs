//! Masked-token decoding as its definitions say: a row of logits, and the rules by which rows are selected.

mod noise;
mod row;
mod rules;
mod schedule;
mod selection;

pub use row::{Row, changed, cleaned, credited, is_flagged, negative_entropy, philox, row, row_with, uniforms};
pub use selection::{Selected, Selection};
