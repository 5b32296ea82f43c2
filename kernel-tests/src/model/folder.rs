//! A model folder: `config.json`, `model.safetensors`, `tokenizer.json`.

use super::{Config, Error, Tokenizer, Weights};
use crate::records::vocabulary;
use half::bf16;
use std::path::{Path, PathBuf};

/// All that a model folder holds, checked.
pub struct Folder {
    /// Shape.
    pub config: Config,
    /// Parameters.
    pub weights: Weights<Vec<bf16>>,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
}

fn files(folder: &Path) -> [PathBuf; 3] {
    ["config.json", "model.safetensors", "tokenizer.json"].map(|name| folder.join(name))
}

impl Folder {
    /// Reads a model folder.
    ///
    /// # Errors
    /// As [`Config::load`], [`Weights::load`] and [`Tokenizer::load`].
    pub fn load(folder: &Path) -> Result<Folder, Error> {
        let [config, weights, tokenizer] = files(folder);
        let config = Config::load(&config)?;
        let tokenizer = Tokenizer::load(&tokenizer, &config)?;
        Ok(Folder { weights: Weights::load(&weights, &config)?, tokenizer, config })
    }

    /// Writes a model with random weights and the words of the records task: what the trained one looks like, for tests
    /// and for trying things before there is one.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_random(folder: &Path, config: &Config, seed: u64) -> Result<(), Error> {
        let [config_path, weights, tokenizer] = files(folder);
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).map_err(|error| Error::Write { path: path.into(), reason: error.to_string() })
        };
        write(&config_path, config.to_json())?;
        write(&tokenizer, vocabulary::tokenizer_json().to_string())?;
        Weights::random(config, seed).save(&weights, config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            hidden: 16,
            intermediate: 24,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary: vocabulary::SIZE,
            context: 64,
            norm_epsilon: 1e-6,
            rope_theta: 1e4,
            mrope_section: None,
            tied: false,
            mask_token: Some(u32::from(vocabulary::MASK)),
        }
    }

    #[test]
    fn a_random_model_loads() {
        let folder = tempfile::tempdir().unwrap();
        Folder::write_random(folder.path(), &config(), 3).unwrap();
        let loaded = Folder::load(folder.path()).unwrap();
        assert_eq!(loaded.config, config());
        assert_eq!(loaded.weights, Weights::random(&config(), 3));
        assert_eq!(loaded.tokenizer.id("<mask>"), loaded.config.mask_token);
    }

    #[test]
    fn each_missing_or_broken_file_is_named() {
        for (name, broken) in [("config.json", "{}"), ("model.safetensors", "short"), ("tokenizer.json", "[]")] {
            let folder = tempfile::tempdir().unwrap();
            Folder::write_random(folder.path(), &config(), 3).unwrap();
            std::fs::write(folder.path().join(name), broken).unwrap();
            let text = Folder::load(folder.path()).err().unwrap().to_string();
            assert!(text.contains(name), "{name}: {text}");
            std::fs::remove_file(folder.path().join(name)).unwrap();
            let text = Folder::load(folder.path()).err().unwrap().to_string();
            assert!(text.contains(name) && text.contains("cannot read"), "{name}: {text}");
        }
    }
}
