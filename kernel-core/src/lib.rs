//! Sparse prefill and masked-diffusion decoding on the GPU: the runtime that inference engines call.
//!
//! | module | what it holds |
//! |---|---|
//! | [`device`] | a CUDA device or the embedded backend, streams, buffers, loaded kernels, graphs |
//! | [`tensor`] | views of device memory: tensors, keys and values, lengths, bounds |
//! | [`mod@attention`] | one attention kernel |
//! | [`decode`] | attention of decoding: few queries over many keys |
//! | [`embedded`] | the attention kernels that every program carries |
//! | [`pattern`] | which pattern each head has, and the published JSON |
//! | [`index`] | sparse indices, planned or the caller's own |
//! | [`prefill`] | the sparse attention of one layer: plan and run |
//! | [`sampling`] | masked-diffusion decoding |
//! | [`error`] | the one [`Error`] |
//!
//! Engines own memory and streams: everything here takes device addresses and a stream handle, allocates only where it
//! says so, and never panics on input.

// `attention!` expands to paths that begin with `::kernel_core`; this makes them work in here too.
extern crate self as kernel_core;

pub mod attention;
mod batch;
mod crossover;
pub mod decode;
pub mod device;
pub mod embedded;
pub mod error;
pub mod index;
mod operands;
pub mod pattern;
pub mod prefill;
pub mod sampling;
mod status;
pub mod tensor;
mod texts;

pub use attention::{Attention, AttentionArgs, AttentionFacts, AttentionKernel, Selection};
pub use decode::{DecodeArgs, DecodeAttention, DecodeAttentionBuilder};
pub use device::{Arguments, Buffer, Device, Graph, LoadedKernel, Stream};
pub use error::Error;
pub use index::{Index, Workspace};
pub use kernel_macros::{attention, sampler};
pub use pattern::{HeadPattern, HeadPatterns, LayerPatterns};
pub use prefill::{HeadGroup, PlanArgs, RunArgs, SparsePrefill, SparsePrefillBuilder};
/// The generators: specifications, and the text and facts they become.
pub use ptx;
pub use ptx::kernels::attention::KvLayout;
pub use sampling::{Decoder, SamplerKernel};
pub use status::Status;
pub use tensor::{Bounds, DType, KvView, Lengths, TensorView};
