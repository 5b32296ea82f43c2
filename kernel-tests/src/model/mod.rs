//! The reference transformer: Qwen2's layout, every operation but large matrix products one of our kernels.
//!
//! | module | what it holds |
//! |---|---|
//! | [`transformer`] | the model on a device, and the forward pass over rows of one sequence |
//! | [`batch`] | sequences, and the cache of their keys and values |
//! | [`pass`] | the forward pass over what a batch feeds, as a decoding step launches it |
//! | `layers` | the layers of any pass: weights, activations, kernels |
//! | [`attention`] | attention of one layer, dense or by a plan of the caller's |
//! | [`folder`] | a model folder as a whole |
//! | [`config`] | `config.json` of the Hugging Face layout |
//! | [`checkpoint`] | `model.safetensors`, checked as a whole before anything is used |
//! | [`linear`] | matrix products: our kernels for few rows, cuBLASLt, or `matrixmultiply` on the embedded backend |
//! | [`tokenizer`] | `tokenizer.json` |

pub mod attention;
pub mod batch;
pub mod checkpoint;
pub mod config;
mod error;
pub mod folder;
mod layers;
pub mod linear;
pub mod pass;
pub mod tokenizer;
pub mod transformer;

pub use attention::{AttentionCall, DenseAttention, PromptAttention, SparseAttention};
pub use batch::{Batch, Sequence};
pub use checkpoint::{LayerWeights, Weights};
pub use config::Config;
pub use error::Error;
pub use folder::Folder;
pub use linear::{Linear, Matrix};
pub use pass::Pass;
pub use tokenizer::Tokenizer;
pub use transformer::{Hidden, PromptMask, Transformer};
