//! What is decoded together: sequences, and the cache of their keys and values.

use super::{Config, Error, Transformer};
use kernel_core::{Buffer, Stream};
use std::sync::Arc;

/// Rows of a page of the cache.
pub(super) const PAGE: usize = 64;

/// Keys and values after rotation, by layer `[rows, kv_heads, head_dim]`.
pub(super) struct Cache {
    pub(super) keys: Vec<Buffer>,
    pub(super) values: Vec<Buffer>,
    pub(super) rows: usize,
}

impl Cache {
    fn new(stream: &Stream, config: &Config, rows: usize) -> Result<Cache, Error> {
        let buffers = || -> Result<Vec<Buffer>, Error> {
            let layer = |_| Ok(stream.device().allocate(2 * rows * config.kv_width())?);
            (0..config.layers).map(layer).collect()
        };
        Ok(Cache { keys: buffers()?, values: buffers()?, rows })
    }
}

/// The tokens of one sequence, prompt and response, and its part of a cache.
pub struct Sequence {
    pub(super) prompt: usize,
    pub(super) length: usize,
    /// Its first row of the cache, and first element of the tokens.
    pub(super) first_row: usize,
    pub(super) tokens: Arc<Buffer>,
    pub(super) cache: Arc<Cache>,
}

/// Sequences that are decoded together. Each has the same number of rows of one cache, in pages that follow each other.
pub struct Batch {
    sequences: Vec<Sequence>,
    capacity: usize,
    pub(super) tokens: Arc<Buffer>,
    pub(super) cache: Arc<Cache>,
    /// u32 `[2 · sequences, pages]`: each sequence's pages, twice, since attention has two segments a sequence.
    pub(super) table: Buffer,
}

impl Transformer {
    /// A sequence with this prompt and response, nothing computed yet.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TooLong`], [`Error::Token`], [`Error::Kernel`] from the device.
    pub fn sequence(&self, stream: &Stream, prompt: &[u32], response: &[u32]) -> Result<Sequence, Error> {
        self.check(prompt, response)?;
        let tokens = [prompt, response].concat();
        Ok(Sequence {
            prompt: prompt.len(),
            length: tokens.len(),
            first_row: 0,
            cache: Arc::new(Cache::new(stream, &self.config, tokens.len())?),
            tokens: Arc::new(stream.device().upload(stream, &tokens)?),
        })
    }

    /// Sequences with these prompts and responses, nothing computed yet.
    ///
    /// # Errors
    /// As [`Transformer::sequence`], and [`Error::EmptyBatch`].
    pub fn batch(&self, stream: &Stream, sequences: &[(&[u32], &[u32])]) -> Result<Batch, Error> {
        sequences.iter().try_for_each(|(prompt, response)| self.check(prompt, response))?;
        let longest = sequences.iter().map(|(prompt, response)| prompt.len() + response.len()).max();
        let capacity = longest.ok_or(Error::EmptyBatch)?.next_multiple_of(PAGE);
        let cache = Arc::new(Cache::new(stream, &self.config, sequences.len() * capacity)?);
        let mut tokens = vec![0u32; cache.rows];
        for (rows, (prompt, response)) in tokens.chunks_mut(capacity).zip(sequences) {
            rows[..prompt.len()].copy_from_slice(prompt);
            rows[prompt.len()..prompt.len() + response.len()].copy_from_slice(response);
        }
        let tokens = Arc::new(stream.device().upload(stream, &tokens)?);
        let pages = capacity / PAGE;
        let pages_of = |sequence: usize| (0..pages).map(move |page| (sequence * pages + page) as u32);
        let table: Vec<u32> = (0..2 * sequences.len()).flat_map(|segment| pages_of(segment / 2)).collect();
        let table = stream.device().upload(stream, &table)?;
        let sequence = |(i, (prompt, response)): (usize, &(&[u32], &[u32]))| Sequence {
            prompt: prompt.len(),
            length: prompt.len() + response.len(),
            first_row: i * capacity,
            tokens: tokens.clone(),
            cache: cache.clone(),
        };
        let sequences = sequences.iter().enumerate().map(sequence).collect();
        Ok(Batch { sequences, capacity, tokens, cache, table })
    }

    fn check(&self, prompt: &[u32], response: &[u32]) -> Result<(), Error> {
        let (length, limit, vocabulary) = (prompt.len() + response.len(), self.config.context, self.config.vocabulary);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if length > limit {
            return Err(Error::TooLong { given: length, limit });
        }
        match prompt.iter().chain(response).find(|token| **token as usize >= vocabulary) {
            Some(&token) => Err(Error::Token { token, vocabulary }),
            None => Ok(()),
        }
    }
}

impl Sequence {
    /// Tokens of the prompt.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Tokens of prompt and response.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Element of the batch's tokens with its first one.
    pub fn first_token(&self) -> usize {
        self.first_row
    }

    pub(super) fn token_address(&self, row: usize) -> u64 {
        self.tokens.address() + 4 * (self.first_row + row) as u64
    }
}

impl Batch {
    /// The sequences.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Rows, and elements of the tokens, from one sequence to the next.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All tokens, u32 `[sequences · capacity]` on the device; responses may be rewritten there.
    pub fn tokens(&self) -> &Buffer {
        &self.tokens
    }
}
