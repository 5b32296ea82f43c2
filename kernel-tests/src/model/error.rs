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
    /// cuBLASLt cannot be used.
    #[error("cuBLASLt: {reason}; install the CUDA libraries or set LD_LIBRARY_PATH, or run on the embedded backend")]
    Cublas {
        /// What is wrong.
        reason: String,
    },
    /// A sequence without a prompt.
    #[error("the prompt is empty: row i predicts token i + 1, so that a sequence needs at least one prompt token")]
    EmptyPrompt,
    /// A batch of nothing.
    #[error("the batch is empty: give at least one prompt with its response")]
    EmptyBatch,
    /// Several sequences, or a graph, without a cache.
    #[error(
        "without a cache one sequence is decoded at a time, step by step: choose a cache policy, or drop the others and the graph"
    )]
    OneSequence,
    /// A sequence longer than the model's context.
    #[error(
        "{given} tokens exceed the context of {limit} (max_position_embeddings of config.json): shorten the prompt or \
         the response"
    )]
    TooLong {
        /// Prompt and response together.
        given: usize,
        /// What the model has.
        limit: usize,
    },
    /// A token that the model has no embedding for.
    #[error("token {token} is not below vocab_size = {vocabulary} of config.json")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// The device, a kernel or the attention layer refused.
    #[error(transparent)]
    Kernel(#[from] kernel_core::Error),
    /// A model that does not say which token stands for an open position.
    #[error("config.json has no mask_token_id: masked decoding needs the token that stands for an open position")]
    NoMaskToken,
    /// A sequence without a response.
    #[error("the response is empty: give one mask token for every position to decode")]
    EmptyResponse,
    /// The model computed no usable number.
    #[error("after {passes} passes a row of logits has no finite number: the weights or the prompt's states overflow")]
    NotFinite {
        /// Forward passes.
        passes: u32,
    },
}
