//! `model.safetensors`: every tensor's presence, shape and type are checked before anything is used.

use super::{Config, Error};
use crate::noise::noise;
use half::bf16;
use kernel_core::{Buffer, Stream};
use rand::{Rng, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::HashMap, path::Path};

/// All parameters of a model: `T` is host memory here, device memory in the transformer. Matrices are
/// `[outputs, inputs]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<T> {
    /// `[vocabulary, hidden]`.
    pub embedding: T,
    /// By layer.
    pub layers: Vec<LayerWeights<T>>,
    /// Scale of the final norm.
    pub norm: T,
    /// `[vocabulary, hidden]`; absent where the embedding serves.
    pub head: Option<T>,
}

/// Parameters of one layer. Projections that read the same rows are stacked along their outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights<T> {
    /// Scale of the norm before attention.
    pub attention_norm: T,
    /// Query, key and value projections, `[(heads + 2 · kv_heads) · head_dim, hidden]`.
    pub qkv: T,
    /// Their biases, in the same order.
    pub qkv_bias: T,
    /// Output projection, `[hidden, heads · head_dim]`.
    pub output: T,
    /// Scale of the norm before the feed-forward layer.
    pub feed_forward_norm: T,
    /// Gate and up projections, `[2 · intermediate, hidden]`.
    pub gate_up: T,
    /// Down projection, `[hidden, intermediate]`.
    pub down: T,
}

/// One tensor as the file names it.
struct Tensor {
    name: String,
    shape: Vec<usize>,
}

fn tensor(name: impl Into<String>, shape: &[usize]) -> Tensor {
    Tensor { name: name.into(), shape: shape.to_vec() }
}

/// The file's tensors: each part of the weights is one of them, or several stacked.
fn layout(config: &Config) -> Weights<Vec<Tensor>> {
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let (q, kv) = (config.q_width(), config.kv_width());
    let layer = |i: usize| {
        let tensor = |name: &str, shape: &[usize]| tensor(format!("model.layers.{i}.{name}"), shape);
        LayerWeights {
            attention_norm: vec![tensor("input_layernorm.weight", &[hidden])],
            qkv: vec![
                tensor("self_attn.q_proj.weight", &[q, hidden]),
                tensor("self_attn.k_proj.weight", &[kv, hidden]),
                tensor("self_attn.v_proj.weight", &[kv, hidden]),
            ],
            qkv_bias: vec![
                tensor("self_attn.q_proj.bias", &[q]),
                tensor("self_attn.k_proj.bias", &[kv]),
                tensor("self_attn.v_proj.bias", &[kv]),
            ],
            output: vec![tensor("self_attn.o_proj.weight", &[hidden, q])],
            feed_forward_norm: vec![tensor("post_attention_layernorm.weight", &[hidden])],
            gate_up: vec![
                tensor("mlp.gate_proj.weight", &[intermediate, hidden]),
                tensor("mlp.up_proj.weight", &[intermediate, hidden]),
            ],
            down: vec![tensor("mlp.down_proj.weight", &[hidden, intermediate])],
        }
    };
    Weights {
        embedding: vec![tensor("model.embed_tokens.weight", &[config.vocabulary, hidden])],
        layers: (0..config.layers).map(layer).collect(),
        norm: vec![tensor("model.norm.weight", &[hidden])],
        head: (!config.tied).then(|| vec![tensor("lm_head.weight", &[config.vocabulary, hidden])]),
    }
}

impl<T> Weights<T> {
    /// Applies `f` to every part.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(&self, mut f: impl FnMut(&T) -> Result<U, E>) -> Result<Weights<U>, E> {
        let layer = |layer: &LayerWeights<T>, f: &mut dyn FnMut(&T) -> Result<U, E>| {
            Ok(LayerWeights {
                attention_norm: f(&layer.attention_norm)?,
                qkv: f(&layer.qkv)?,
                qkv_bias: f(&layer.qkv_bias)?,
                output: f(&layer.output)?,
                feed_forward_norm: f(&layer.feed_forward_norm)?,
                gate_up: f(&layer.gate_up)?,
                down: f(&layer.down)?,
            })
        };
        Ok(Weights {
            embedding: f(&self.embedding)?,
            layers: self.layers.iter().map(|l| layer(l, &mut f)).collect::<Result<_, E>>()?,
            norm: f(&self.norm)?,
            head: self.head.as_ref().map(f).transpose()?,
        })
    }

    /// Every part, in the order of the layout.
    fn parts(&self) -> Vec<&T> {
        let mut parts = vec![&self.embedding];
        for layer in &self.layers {
            parts.extend([&layer.attention_norm, &layer.qkv, &layer.qkv_bias, &layer.output]);
            parts.extend([&layer.feed_forward_norm, &layer.gate_up, &layer.down]);
        }
        parts.push(&self.norm);
        parts.extend(&self.head);
        parts
    }
}

impl Weights<Buffer> {
    /// Random weights drawn on the device, of a size that keeps activations near 1: for models that only have to take time.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn noise(stream: &Stream, config: &Config, seed: u64) -> Result<Self, Error> {
        let mut part = 0;
        layout(config).try_map(|stacked| {
            part += 1;
            let elements = stacked.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            match stacked[0].shape[..] {
                [_] if !stacked[0].name.ends_with("bias") => {
                    Ok(stream.device().upload(stream, &vec![bf16::ONE; elements])?)
                }
                [.., inputs] => Ok(noise(stream, elements, seed + part, (inputs as f32).powf(-0.5))?),
                [] => Ok(stream.device().allocate(2 * elements)?),
            }
        })
    }
}

impl Weights<Vec<bf16>> {
    /// Reads a checkpoint of single precision or bfloat16 tensors. Tensors the model does not have are ignored.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::CheckpointSyntax`] for a broken or truncated file, [`Error::Checkpoint`] with every
    /// tensor that is missing or of the wrong shape or type.
    pub fn load(path: &Path, config: &Config) -> Result<Self, Error> {
        let bytes =
            std::fs::read(path).map_err(|error| Error::Read { path: path.into(), reason: error.to_string() })?;
        Weights::from_safetensors(&bytes, config)
    }

    /// As [`Weights::load`], from the file's bytes.
    ///
    /// # Errors
    /// As [`Weights::load`], without [`Error::Read`].
    pub fn from_safetensors(bytes: &[u8], config: &Config) -> Result<Self, Error> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| Error::CheckpointSyntax { reason: error.to_string() })?;
        let layout = layout(config);
        let problems: Vec<_> =
            layout.parts().into_iter().flatten().filter_map(|tensor| tensor.problem(&file)).collect();
        if !problems.is_empty() {
            return Err(Error::Checkpoint { problems });
        }
        layout.try_map(|stacked| {
            let mut values = Vec::new();
            for tensor in stacked {
                // Checked above, so that this does not fail.
                let view = file
                    .tensor(&tensor.name)
                    .map_err(|error| Error::Checkpoint { problems: vec![error.to_string()] })?;
                values.extend(to_bf16(&view));
            }
            Ok(values)
        })
    }

    /// Random weights of a size that keeps activations near 1.
    pub fn random(config: &Config, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let drawn: Result<_, std::convert::Infallible> = layout(config).try_map(|stacked| {
            let mut values = Vec::new();
            for tensor in stacked {
                let (center, spread) = match tensor.shape[..] {
                    [_] if tensor.name.ends_with("bias") => (0.0, 0.5),
                    [_] => (1.0, 0.25),
                    // Uniform values of this spread have variance 1 / inputs; embeddings look like any other matrix.
                    _ => (0.0, (3.0 / config.hidden as f32).sqrt()),
                };
                let count = tensor.shape.iter().product();
                values.extend((0..count).map(|_| bf16::from_f32(center + spread * random.random_range(-1.0..1.0f32))));
            }
            Ok(values)
        });
        match drawn {
            Ok(weights) => weights,
        }
    }

    /// Writes the weights as [`Weights::load`] reads them.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, path: &Path, config: &Config) -> Result<(), Error> {
        let mut tensors = HashMap::new();
        for (values, stacked) in self.parts().into_iter().zip(layout(config).parts()) {
            let mut rest = &values[..];
            for tensor in stacked {
                let (own, after) = rest.split_at(tensor.shape.iter().product());
                rest = after;
                tensors.insert(tensor.name.clone(), (tensor.shape.clone(), to_bytes(own)));
            }
        }
        let failed =
            |error: safetensors::SafeTensorError| Error::Write { path: path.into(), reason: error.to_string() };
        let views = tensors
            .iter()
            .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        safetensors::serialize_to_file(views, None, path).map_err(failed)
    }
}

impl Tensor {
    /// What is wrong with this tensor in `file`.
    fn problem(&self, file: &SafeTensors<'_>) -> Option<String> {
        let Tensor { name, shape } = self;
        let Ok(view) = file.tensor(name) else {
            return Some(format!("{name} {shape:?} is missing"));
        };
        if view.shape() != shape {
            return Some(format!("{name} is {:?}, must be {shape:?}", view.shape()));
        }
        if !matches!(view.dtype(), Dtype::BF16 | Dtype::F32) {
            return Some(format!("{name} holds {:?}, must hold BF16 or F32", view.dtype()));
        }
        None
    }
}

/// The values, rounded where they are single precision. Bytes of a file have no alignment.
fn to_bf16(view: &TensorView<'_>) -> Vec<bf16> {
    match view.dtype() {
        Dtype::F32 => {
            let words = view.data().chunks_exact(4);
            words.map(|b| bf16::from_f32(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        _ => view.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect(),
    }
}

fn to_bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            hidden: 16,
            intermediate: 24,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary: 10,
            context: 64,
            norm_epsilon: 1e-6,
            rope_theta: 1e4,
            mrope_section: None,
            tied: false,
            mask_token: None,
        }
    }

    fn saved(config: &Config) -> (Weights<Vec<bf16>>, Vec<u8>) {
        let weights = Weights::random(config, 7);
        let file = tempfile::NamedTempFile::new().unwrap();
        weights.save(file.path(), config).unwrap();
        (weights, std::fs::read(file.path()).unwrap())
    }

    #[test]
    fn loads_what_it_saves() {
        for tied in [false, true] {
            let config = Config { tied, ..config() };
            let (weights, bytes) = saved(&config);
            assert_eq!(weights.layers[1].qkv.len(), (2 + 2) * 64 * 16);
            assert_eq!(weights.head.is_some(), !tied);
            assert_eq!(Weights::from_safetensors(&bytes, &config).unwrap(), weights);
        }
    }

    #[test]
    fn single_precision_is_rounded() {
        let config = config();
        let (weights, bytes) = saved(&config);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let wide: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let values = to_bf16(&view).into_iter().flat_map(|value| (value.to_f32() * 1.0001).to_le_bytes());
                (name, view.shape().to_vec(), values.collect::<Vec<_>>())
            })
            .collect();
        let views =
            wide.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        assert_eq!(Weights::from_safetensors(&bytes, &config).unwrap(), weights);
    }

    #[test]
    fn truncated_and_foreign_files_are_errors() {
        let (_, bytes) = saved(&config());
        for length in [0, 7, 8, 100, bytes.len() - 1] {
            let error = Weights::from_safetensors(&bytes[..length], &config()).unwrap_err();
            assert!(matches!(error, Error::CheckpointSyntax { .. }), "{length} bytes: {error}");
        }
        assert!(matches!(
            Weights::from_safetensors(b"not a checkpoint", &config()),
            Err(Error::CheckpointSyntax { .. })
        ));
        assert!(matches!(Weights::load(Path::new("no/such/file"), &config()), Err(Error::Read { .. })));
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_named() {
        let (_, bytes) = saved(&config());
        let error = Weights::from_safetensors(&bytes, &Config { layers: 3, vocabulary: 11, ..config() }).unwrap_err();
        let Error::Checkpoint { problems } = error else { panic!("{error}") };
        assert_eq!(problems.len(), 2 + 12, "{problems:?}");
        assert_eq!(problems[0], "model.embed_tokens.weight is [10, 16], must be [11, 16]");
        assert!(problems.iter().any(|p| p == "model.layers.2.self_attn.q_proj.bias [128] is missing"), "{problems:?}");

        let integers = TensorView::new(Dtype::I16, vec![10, 16], &[0; 320]).unwrap();
        let bytes = safetensors::serialize([("model.embed_tokens.weight", integers)], None).unwrap();
        let text = Weights::from_safetensors(&bytes, &config()).unwrap_err().to_string();
        assert!(text.contains("model.embed_tokens.weight holds I16, must hold BF16 or F32"), "{text}");
    }
}
