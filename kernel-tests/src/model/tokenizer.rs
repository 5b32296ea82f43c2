//! `tokenizer.json`.

use super::{Config, Error};
use std::path::Path;

/// Text to tokens and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and checks that the model has an embedding for each of its tokens.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Tokenizer`] where the text is no tokenizer or has tokens the model lacks.
    pub fn load(path: &Path, config: &Config) -> Result<Tokenizer, Error> {
        let bytes =
            std::fs::read(path).map_err(|error| Error::Read { path: path.into(), reason: error.to_string() })?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::Tokenizer { reason: format!("cannot be parsed: {error}") })?;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if largest >= config.vocabulary {
            let reason = format!("token {largest} is not below vocab_size = {} of config.json", config.vocabulary);
            return Err(Error::Tokenizer { reason });
        }
        Ok(Tokenizer { inner })
    }

    /// The tokens of `text`; `special` adds those that the model expects around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|error| Error::Tokenizer { reason: format!("cannot encode the text: {error}") })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, with special tokens left out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.inner
            .decode(tokens, true)
            .map_err(|error| Error::Tokenizer { reason: format!("cannot decode the tokens: {error}") })
    }

    /// The id of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::vocabulary;

    fn config(vocabulary: usize) -> Config {
        Config {
            hidden: 128,
            intermediate: 192,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary,
            context: 64,
            norm_epsilon: 1e-6,
            rope_theta: 1e4,
            mrope_section: None,
            tied: false,
            mask_token: None,
        }
    }

    #[test]
    fn agrees_with_the_vocabulary_of_the_records_task() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vocabulary::tokenizer_json().to_string()).unwrap();
        let tokenizer = Tokenizer::load(file.path(), &config(256)).unwrap();
        let text = "question: where does Ada Abbott live? json:";
        let expected: Vec<u32> = vocabulary::encode(text).unwrap().into_iter().map(u32::from).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected);
        assert_eq!(tokenizer.encode(text, true).unwrap()[0], u32::from(vocabulary::BOS));
        assert_eq!(tokenizer.id("<mask>"), Some(u32::from(vocabulary::MASK)));
        assert!(tokenizer.decode(&expected).unwrap().contains("Ada"));
        let small = Tokenizer::load(file.path(), &config(8)).err().unwrap().to_string();
        assert!(small.contains("vocab_size = 8"), "{small}");
    }

    #[test]
    fn broken_files_are_errors() {
        let missing = Tokenizer::load(Path::new("no/such/tokenizer.json"), &config(8)).err().unwrap();
        assert!(matches!(missing, Error::Read { .. }));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"model\": 3}").unwrap();
        let broken = Tokenizer::load(file.path(), &config(8)).err().unwrap();
        assert!(matches!(broken, Error::Tokenizer { .. }), "{broken}");
    }
}
