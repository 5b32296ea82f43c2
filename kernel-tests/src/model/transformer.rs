//! The forward pass over the rows of one sequence.
//!
//! A sequence is a prompt and a response. Response rows see everything; what prompt rows see is the [`PromptMask`].
//! Under the causal one the keys and values of the prompt do not depend on the response, so that they are computed once
//! and every later pass feeds only the last prompt token and the response. The models are trained with logits shifted by
//! one: the hidden state of row i − 1 predicts token i, which is why the last prompt token is always fed.

use super::{
    Config, Error, LayerWeights, Linear, Matrix, Sequence, Weights,
    attention::{AttentionCall, DenseAttention, PromptAttention},
    layers::{Activations, Kernels, Layer, Rows},
};
use half::bf16;
use kernel_core::{Arguments, Buffer, DType, Stream, TensorView};
use ptx::{Arch, kernels::model::frequencies};
use std::ops::Range;

/// What prompt rows see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptMask {
    /// Earlier prompt rows and themselves: the prefix cache is exact.
    Causal,
    /// Everything, as Dimple has it: keys and values of the prompt depend on the response, and a prefix cache is an
    /// approximation.
    Bidirectional,
}

/// A model on a device.
pub struct Transformer {
    pub(super) config: Config,
    pub(super) linear: Linear,
    pub(super) kernels: Kernels,
    attention: DenseAttention,
    /// Of the attention kernels.
    pub(super) arch: Arch,
    pub(super) embedding: Buffer,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Buffer,
    pub(super) head: Matrix,
    pub(super) frequencies: Buffer,
    /// 0, 1, 2 …: positions, and cache rows, from any row on.
    positions: Buffer,
}

/// Final hidden states, normed, of consecutive rows of a sequence.
pub struct Hidden {
    rows: Range<usize>,
    states: Buffer,
}

impl Transformer {
    /// Takes a model to the stream's device and loads its kernels, those of dense attention for `arch`.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device, [`Error::Cublas`].
    pub fn new(
        stream: &Stream,
        config: &Config,
        weights: &Weights<Vec<bf16>>,
        arch: Arch,
    ) -> Result<Transformer, Error> {
        let upload = |values: &Vec<bf16>| Ok::<_, Error>(stream.device().upload(stream, values)?);
        Transformer::with_weights(stream, config, weights.try_map(upload)?, arch)
    }

    /// As [`Transformer::new`], of weights that are on the device.
    ///
    /// # Errors
    /// As there.
    pub fn with_weights(
        stream: &Stream,
        config: &Config,
        weights: Weights<Buffer>,
        arch: Arch,
    ) -> Result<Transformer, Error> {
        let device = stream.device();
        let linear = Linear::new(stream)?;
        let layer = |layer: LayerWeights<Buffer>| -> Result<Layer, Error> {
            Ok(Layer {
                attention_norm: layer.attention_norm,
                qkv: linear.matrix(stream, layer.qkv, config.q_width() + 2 * config.kv_width())?,
                qkv_bias: layer.qkv_bias,
                output: linear.matrix(stream, layer.output, config.hidden)?,
                feed_forward_norm: layer.feed_forward_norm,
                gate_up: linear.matrix(stream, layer.gate_up, 2 * config.intermediate)?,
                down: linear.matrix(stream, layer.down, config.hidden)?,
            })
        };
        let head = match weights.head {
            Some(head) => head,
            None => device.upload(stream, &weights.embedding.read::<bf16>(stream)?)?,
        };
        let positions: Vec<u32> = (0..config.context as u32).collect();
        // Kernels may read what stays as it is before the launches in front have ended.
        stream.synchronize()?;
        Ok(Transformer {
            layers: weights.layers.into_iter().map(layer).collect::<Result<_, _>>()?,
            kernels: Kernels::load(stream, config)?,
            attention: DenseAttention::new(stream, config, arch)?,
            arch,
            embedding: weights.embedding,
            norm: weights.norm,
            head: linear.matrix(stream, head, config.vocabulary)?,
            frequencies: device.upload(stream, &frequencies(config.rope_theta, config.head_dim as u32))?,
            positions: device.upload(stream, &positions)?,
            linear,
            config: config.clone(),
        })
    }

    /// Products of few rows are kernels of ours, whatever the size of the matrix: see [`Linear::without_cublas`].
    pub fn without_cublas(mut self) -> Transformer {
        self.linear.without_cublas();
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Dense attention for the prompt.
    pub fn dense(&self) -> &DenseAttention {
        &self.attention
    }

    /// Computes the keys and values of the prompt, so that later passes feed only the last prompt token and the response.
    ///
    /// Under the causal mask `chunk` rows at a time, each chunk attending through `attention`. Under the bidirectional one
    /// the whole sequence in one pass, with the response as it stands.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device or from `attention`.
    pub fn prefill(
        &self,
        stream: &Stream,
        sequence: &Sequence,
        mask: PromptMask,
        chunk: usize,
        attention: &dyn PromptAttention,
    ) -> Result<(), Error> {
        let (end, chunk) = match mask {
            PromptMask::Causal => (sequence.prompt, chunk.max(1)),
            PromptMask::Bidirectional => (sequence.length, sequence.length),
        };
        for start in (0..end).step_by(chunk) {
            self.forward(stream, sequence, start..end.min(start + chunk), mask, attention)?;
        }
        Ok(())
    }

    /// Runs `rows` through all layers, which stores their keys and values. Keys and values of the rows before them must
    /// have been stored; rows that see the response must come with all of it.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device or from `attention`.
    ///
    /// # Panics
    /// If the rows do not lie in the sequence, or see rows behind them.
    pub fn forward(
        &self,
        stream: &Stream,
        sequence: &Sequence,
        rows: Range<usize>,
        mask: PromptMask,
        attention: &dyn PromptAttention,
    ) -> Result<Hidden, Error> {
        let complete = rows.end == sequence.length;
        let causal_only = mask == PromptMask::Causal && rows.end <= sequence.prompt;
        assert!(!rows.is_empty() && rows.end <= sequence.length && (complete || causal_only), "rows {rows:?}");
        let (config, count) = (&self.config, rows.len());
        let memory = Activations::new(stream, config, count)?;
        self.gather(
            stream,
            (&self.embedding, config.vocabulary),
            sequence.token_address(rows.start),
            count,
            &memory.stream,
        )?;
        let positions = self.positions.address() + 4 * rows.start as u64;
        let fed = Rows { count, positions, slots: positions, first_slot: sequence.first_row, cache: &sequence.cache };
        self.layers(stream, &memory, &fed, |layer| {
            self.attend(stream, &memory, rows.clone(), sequence, layer, mask, attention)
        })?;
        Ok(Hidden { rows, states: memory.normed })
    }

    /// Logits, bf16 `[count, vocabulary]`, of the first `count` rows of `hidden` that `index` names, each counted from
    /// the first row of `hidden`.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn logits(
        &self,
        stream: &Stream,
        hidden: &Hidden,
        index: &TensorView<'_>,
        count: usize,
    ) -> Result<Buffer, Error> {
        let device = stream.device();
        let chosen = device.allocate(2 * count * self.config.hidden)?;
        let logits = device.allocate(2 * count * self.config.vocabulary)?;
        self.gather(stream, (&hidden.states, hidden.rows.len()), index.address(), count, &chosen)?;
        self.linear.apply(stream, &chosen, &self.head, &logits, count)?;
        Ok(logits)
    }

    pub(super) fn row_bytes(&self) -> u64 {
        2 * self.config.hidden as u64
    }

    fn gather(
        &self,
        stream: &Stream,
        (table, bound): (&Buffer, usize),
        index: u64,
        count: usize,
        out: &Buffer,
    ) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.gather;
        let arguments = Arguments::new(kernel.meta())
            .pointer("x", table.address())
            .pointer("out", out.address())
            .u64("x_row", self.row_bytes())
            .u64("out_row", self.row_bytes())
            .pointer("index", index)
            .u32("bound", bound as u32)
            .pointer("status", 0);
        Ok(kernel.launch(stream, spec.grid(count as u32), &arguments)?)
    }

    /// Causal rows through `attention`, rows that see everything through the full kernel.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        stream: &Stream,
        memory: &Activations,
        rows: Range<usize>,
        sequence: &Sequence,
        layer: usize,
        mask: PromptMask,
        attention: &dyn PromptAttention,
    ) -> Result<(), Error> {
        let first_full = match mask {
            PromptMask::Causal => sequence.prompt.clamp(rows.start, rows.end),
            PromptMask::Bidirectional => rows.start,
        };
        let config = &self.config;
        let [heads, kv_heads, head_dim] = [config.heads, config.kv_heads, config.head_dim].map(|size| size as u64);
        let call = |part: Range<usize>| -> Result<AttentionCall<'_>, Error> {
            let (skipped, count) = ((part.start - rows.start) as u64, part.len() as u64);
            let queries = |buffer, row_heads: u64| {
                let (row, shape) = (row_heads * head_dim, [1, count, heads, head_dim]);
                TensorView::strided(buffer, 2 * skipped * row, DType::Bf16, &shape, &[count * row, row, head_dim, 1])
            };
            let cached = |buffer| {
                let (row, visible) = (kv_heads * head_dim, part.end as u64);
                let (start, shape) = (2 * sequence.first_row as u64 * row, [1, visible, kv_heads, head_dim]);
                TensorView::strided(buffer, start, DType::Bf16, &shape, &[visible * row, row, head_dim, 1])
            };
            Ok(AttentionCall {
                q: queries(&memory.qkv, heads + 2 * kv_heads)?,
                k: cached(&sequence.cache.keys[layer])?,
                v: cached(&sequence.cache.values[layer])?,
                out: queries(&memory.attended, heads)?,
            })
        };
        if rows.start < first_full {
            attention.attend(stream, layer, &call(rows.start..first_full)?)?;
        }
        if first_full < rows.end {
            self.attention.full(stream, &call(first_full..rows.end)?)?;
        }
        Ok(())
    }
}

impl Hidden {
    /// The rows of the sequence these are the states of.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// bf16 `[rows, hidden]`.
    pub fn states(&self) -> &Buffer {
        &self.states
    }
}
