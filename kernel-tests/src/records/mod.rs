//! The task of the small real model: read a long list of records, answer a question about one of them.
//!
//! This is the only definition of the task. The trainer reads streams that `examples/corpus.rs` writes from it, the
//! harness evaluates with [`Sample`], and `models/records/tokenizer.json` is [`vocabulary::tokenizer_json`].
//!
//! ```text
//! <bos> Ada Abbott lives in Lima ; Ada Abbott owns red kite ; Ada Abbott follows Ben Boyd ; …    18 tokens a record
//! question : where does Ada Abbott live ? sentence :                         the question: 10 tokens
//! Ada Abbott lives in Lima . <eos> <pad> …                                   the response: 32 positions
//! ```
//!
//! Every fact is a clause that repeats its subject, in a record as in a sentence: the name, then the verb, then the
//! value. So all facts are looked up in the same way, by what stands right before them.
//!
//! A name is a pair of tokens of which neither is unique, so a lookup has to compose them. "follows" leads from each
//! person to the next on one cycle through all of them. [`Kind::Leader`] and [`Kind::Chain`] walk along it, and the
//! name found by one step is the key of the next: such an answer has to be built in several denoising steps.

mod list;
mod question;
mod random;
mod sample;
pub mod vocabulary;

pub use list::{Person, Records};
pub use question::{Form, Kind, Question, Response};
pub use random::Random;
pub use sample::Sample;

/// Tokens of one record.
pub const RECORD_TOKENS: usize = 18;
/// Tokens of every question, whatever its kind: the response always starts at the same distance from it.
pub const QUESTION_TOKENS: usize = 10;
/// Positions of a response, the padding behind `<eos>` included.
pub const RESPONSE_TOKENS: usize = 32;
/// The longest prompt (records and question) that the model is trained on.
pub const MAX_PROMPT_TOKENS: usize = 4096;
/// The fewest records of a list: a chain of three steps visits four people.
pub const MIN_RECORDS: usize = 4;
/// How many first names there are, and how many last names.
pub const NAMES: usize = 64;
/// Seeds from here on are held out: the trainer draws below it, evaluation at or above it.
pub const HELD_OUT: u64 = 1 << 63;

/// How many records fit in a prompt of `prompt_tokens` tokens beside `<bos>` and the question.
pub fn records_in(prompt_tokens: usize) -> usize {
    prompt_tokens.saturating_sub(1 + QUESTION_TOKENS) / RECORD_TOKENS
}

/// Why a prompt, a question or a text is not one of this task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text has a word outside the vocabulary.
    #[error("'{word}' is not in the vocabulary of the records task; use the words of models/records/tokenizer.json")]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// A length outside the range of the task.
    #[error(
        "a prompt of {given} tokens is outside the task: give {} to {MAX_PROMPT_TOKENS}",
        1 + MIN_RECORDS * RECORD_TOKENS + QUESTION_TOKENS
    )]
    PromptLength {
        /// The length asked for.
        given: usize,
    },
    /// The records do not follow the pattern of a record.
    #[error(
        "record {index} is not of the form 'Ada Abbott lives in Lima; Ada Abbott owns red kite; Ada Abbott follows Ben \
         Boyd;': '{text}'"
    )]
    NotARecord {
        /// Which record, from 0.
        index: usize,
        /// Its text.
        text: String,
    },
    /// The question is none of the known kinds.
    #[error(
        "'{text}' is not a question of the records task; one of them: 'question: where does Ada Abbott live? json:'"
    )]
    NotAQuestion {
        /// Its text.
        text: String,
    },
    /// The question, or a link of the chain it asks for, names somebody without a record.
    #[error("there is no record of {name} in the prompt")]
    NoSuchPerson {
        /// The name.
        name: String,
    },
}

#[cfg(test)]
mod tests;
