//! What a transformer computes around attention and large matrix products.
//!
//! All kernels here work on rows of half-precision elements in chunks of eight (16 bytes): row widths are multiples
//! of 8, base addresses and row strides multiples of 16 bytes. Arithmetic is single precision, rounded once on the way
//! out. Row strides are in bytes, and an output may be its own input where the kernel's documentation says so.
//!
//! | spec | what it does |
//! |---|---|
//! | [`RmsNormSpec`] | root-mean-square norm, optionally of a residual sum that it also stores |
//! | [`RopeSpec`] | bias, rotary embedding and cache write of one attention layer's queries, keys and values |
//! | [`SwigluSpec`] | `silu(gate) · up` |
//! | [`LinearSpec`] | the product of up to 64 rows and a weight matrix, optionally gated |
//! | [`AddSpec`] | the sum of two tensors: residual add, and bias add with a row stride of 0 |
//! | [`NoiseSpec`] | standard-normal random numbers: weights and benchmark inputs |
//! | [`RowsSpec`] | rows gathered (embedding, LM head on chosen rows) or scattered (cache write) by index |

mod add;
pub(super) mod chunk;
mod linear;
mod noise;
mod norm;
mod rope;
pub(super) mod rows;
mod swiglu;
#[cfg(test)]
mod tests;

pub use add::AddSpec;
pub use linear::LinearSpec;
pub use noise::NoiseSpec;
pub use norm::RmsNormSpec;
pub use rope::{RopeSpec, frequencies};
pub use rows::{RowAccess, RowsSpec};
pub use swiglu::SwigluSpec;

/// Bit of a status word: an index lay outside its range; nothing was accessed through it.
pub const STATUS_INDEX_OUT_OF_RANGE: u32 = 2;
