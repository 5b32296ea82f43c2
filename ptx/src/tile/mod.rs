//! The tile vocabulary: what kernels are written in.

pub mod order;
pub mod philox;
pub(crate) mod radix;
pub mod reduce;
pub(crate) mod rows;
