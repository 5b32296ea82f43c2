//! The forward pass of the reference transformer in double precision on the host, all rows of a sequence at once.

use super::{Mask, Problem, attention};
use crate::model::{Config, LayerWeights, PromptMask, Weights};
use half::bf16;
use rayon::prelude::*;

/// A model and what each intermediate result goes through: the identity, or rounding to bfloat16 to see what that costs.
pub struct Transformer<'a> {
    /// Shape.
    pub config: &'a Config,
    /// Parameters.
    pub weights: &'a Weights<Vec<bf16>>,
    /// Applied to every result that the transformer under test keeps in bfloat16.
    pub round: fn(f64) -> f64,
}

/// The token mask of a whole sequence: response rows see everything, prompt rows what `mask` says.
pub fn sequence_mask(prompt: usize, length: usize, mask: PromptMask) -> Mask {
    Mask::from_positions(length, length, |q, k| mask == PromptMask::Bidirectional || q >= prompt as i64 || k <= q)
}

impl Transformer<'_> {
    /// Final hidden states, normed, `[tokens, hidden]`; `masks` gives the token mask of each (layer, query head).
    pub fn hidden(&self, tokens: &[u32], masks: impl Fn(usize, usize) -> Mask) -> Vec<f64> {
        let width = self.config.hidden;
        let embedding = &self.weights.embedding;
        let mut stream: Vec<f64> =
            tokens.iter().flat_map(|t| &embedding[*t as usize * width..][..width]).map(|v| v.to_f64()).collect();
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let normed = self.norm(&stream, &layer.attention_norm);
            let attended = self.attend(layer, &normed, |head| masks(i, head));
            self.add(&mut stream, &self.product(&attended, &layer.output, width));
            let normed = self.norm(&stream, &layer.feed_forward_norm);
            let gate_up = self.product(&normed, &layer.gate_up, 2 * self.config.intermediate);
            self.add(&mut stream, &self.product(&self.gate(&gate_up), &layer.down, width));
        }
        self.norm(&stream, &self.weights.norm)
    }

    /// Logits of hidden states, `[rows, vocabulary]`.
    pub fn logits(&self, hidden: &[f64]) -> Vec<f64> {
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        self.product(hidden, head, self.config.vocabulary)
    }

    fn product(&self, x: &[f64], matrix: &[bf16], outputs: usize) -> Vec<f64> {
        let inputs = matrix.len() / outputs;
        let dot = |row: &[f64], o: usize| row.iter().zip(&matrix[o * inputs..]).map(|(a, b)| a * b.to_f64()).sum();
        x.par_chunks(inputs).flat_map_iter(|row| (0..outputs).map(move |o| (self.round)(dot(row, o)))).collect()
    }

    fn norm(&self, x: &[f64], weight: &[bf16]) -> Vec<f64> {
        x.chunks(weight.len())
            .flat_map(|row| {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (mean + f64::from(self.config.norm_epsilon)).sqrt();
                row.iter().zip(weight).map(move |(v, w)| (self.round)(v * scale * w.to_f64()))
            })
            .collect()
    }

    fn add(&self, stream: &mut [f64], update: &[f64]) {
        stream.iter_mut().zip(update).for_each(|(s, u)| *s = (self.round)(*s + u));
    }

    fn gate(&self, gate_up: &[f64]) -> Vec<f64> {
        let width = self.config.intermediate;
        gate_up
            .chunks(2 * width)
            .flat_map(|row| {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(g, u)| (self.round)(g / (1.0 + (-g).exp()) * u))
            })
            .collect()
    }

    fn attend(&self, layer: &LayerWeights<Vec<bf16>>, x: &[f64], masks: impl Fn(usize) -> Mask) -> Vec<f64> {
        let config = self.config;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let row_heads = heads + 2 * kv_heads;
        let qkv = self.product(x, &layer.qkv, row_heads * dim);
        let rows = qkv.len() / (row_heads * dim);
        let head = |index: usize| -> Vec<f32> {
            let bias = &layer.qkv_bias[index * dim..][..dim];
            (0..rows)
                .flat_map(|row| {
                    let values = &qkv[(row * row_heads + index) * dim..][..dim];
                    let biased: Vec<f64> = values.iter().zip(bias).map(|(v, b)| v + b.to_f64()).collect();
                    let turned = if index < heads + kv_heads { self.rotate(&biased, row) } else { biased };
                    turned.into_iter().map(|v| (self.round)(v) as f32)
                })
                .collect()
        };
        let outputs: Vec<Vec<f64>> = (0..heads)
            .map(|h| {
                let shared = h / config.heads_per_kv();
                let (q, k, v) = (head(h), head(heads + shared), head(heads + kv_heads + shared));
                let (mask, scale) = (masks(h), (dim as f64).powf(-0.5));
                let problem =
                    Problem { q: &q, k: &k, v: &v, head_dim: dim, mask: &mask, scale, softcap: None, score: None };
                attention(&problem).0
            })
            .collect();
        let element = |row: usize, h: usize, i: usize| (self.round)(outputs[h][row * dim + i]);
        (0..rows)
            .flat_map(|r| (0..heads).flat_map(move |h| (0..dim).map(move |i| (r, h, i))))
            .map(|(r, h, i)| element(r, h, i))
            .collect()
    }

    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let half = head.len() / 2;
        (0..head.len())
            .map(|i| {
                let exponent = -((i % half) as f64) / half as f64;
                let angle = position as f64 * self.config.rope_theta.powf(exponent);
                let other = if i < half { -head[i + half] } else { head[i - half] };
                head[i] * angle.cos() + other * angle.sin()
            })
            .collect()
    }
}
