//! Sparse prefill and masked-diffusion decoding on the GPU: the runtime that inference engines call.
//!
//! | module | what it holds |
//! |---|---|
//! | [`device`] | a CUDA device or the embedded backend, streams, buffers, loaded kernels, graphs |
//! | [`error`] | the one [`Error`] |
//!
//! Engines own memory and streams: everything here takes device addresses and a stream handle, allocates only where it
//! says so, and never panics on input.

// `attention!` expands to paths that begin with `::kernel_core`; this makes them work in here too.
extern crate self as kernel_core;

pub mod device;
pub mod error;

pub use device::{Arguments, Buffer, Device, Graph, LoadedKernel, Stream};
pub use error::Error;
