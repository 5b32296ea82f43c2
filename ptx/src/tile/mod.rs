//! The tile vocabulary: what kernels are written in.

pub mod order;
pub mod philox;
pub mod reduce;
