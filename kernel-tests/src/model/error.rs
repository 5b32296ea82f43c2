use ptx::SpecErrors;
use std::path::PathBuf;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error(
        "cannot read {}: {reason}; a model folder holds config.json, model.safetensors and tokenizer.json",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// `config.json` is not a JSON object.
    #[error("config.json is not a JSON object: {reason}")]
    ConfigSyntax {
        /// What the parser said.
        reason: String,
    },
    /// Fields of `config.json` that are missing, of the wrong type or impossible, all together.
    #[error("config.json: {0}")]
    Config(SpecErrors),
    /// The checkpoint is not a complete safetensors file.
    #[error("model.safetensors is broken or truncated ({reason}); fetch or export it again")]
    CheckpointSyntax {
        /// What the parser said.
        reason: String,
    },
    /// Tensors of the checkpoint that are missing or of the wrong shape or type, all together.
    #[error("model.safetensors does not fit config.json: {}", problems.join("; "))]
    Checkpoint {
        /// One sentence a tensor, each naming it.
        problems: Vec<String>,
    },
    /// `tokenizer.json` cannot be used.
    #[error("tokenizer.json: {reason}")]
    Tokenizer {
        /// What is wrong.
        reason: String,
    },
}
