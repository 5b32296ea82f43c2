//! The tile vocabulary: what kernels are written in.

pub mod ballot;
pub mod copy;
pub mod descriptor;
pub mod fragment;
pub mod layout;
pub mod order;
pub mod overlap;
pub mod parked;
pub mod philox;
pub mod pipeline;
pub(crate) mod radix;
pub mod ranking;
pub mod reduce;
pub mod ring;
pub(crate) mod share;
pub mod softmax;
pub(crate) mod team;
