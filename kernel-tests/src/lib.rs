//! Oracles, reference models and the end-to-end harness
//!
//! Everything here is slow and obvious on purpose: it is what the kernels are compared with.

pub mod bench;
pub mod decode;
pub mod model;
pub mod noise;
pub mod oracle;
pub mod records;
pub mod registry;
pub mod testing;
pub mod workloads;
