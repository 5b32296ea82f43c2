//! The reference transformer: Qwen2's layout, every operation but the matrix products one of our kernels.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | `config.json` of the Hugging Face layout |
//! | [`checkpoint`] | `model.safetensors`, checked as a whole before anything is used |
//! | [`tokenizer`] | `tokenizer.json` |

pub mod checkpoint;
pub mod config;
mod error;
pub mod tokenizer;

pub use checkpoint::{LayerWeights, Weights};
pub use config::Config;
pub use error::Error;
pub use tokenizer::Tokenizer;
