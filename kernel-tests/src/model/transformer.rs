//! The forward pass over the rows of one sequence.
//!
//! A sequence is a prompt and a response. Response rows see everything; what prompt rows see is the [`PromptMask`].
//! Under the causal one the keys and values of the prompt do not depend on the response, so that they are computed once
//! and every later pass feeds only the last prompt token and the response. The models are trained with logits shifted by
//! one: the hidden state of row i − 1 predicts token i, which is why the last prompt token is always fed.

use super::{
    Config, Error, LayerWeights, Linear, Matrix, Weights,
    attention::{AttentionCall, DenseAttention, PromptAttention},
};
use half::bf16;
use kernel_core::{Arguments, Buffer, DType, LoadedKernel, Stream, TensorView};
use ptx::{
    Arch, generate,
    isa::MmaType,
    kernels::model::{RmsNormSpec, RopeSpec, RowAccess, RowsSpec, SwigluSpec, frequencies},
};
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
    config: Config,
    linear: Linear,
    kernels: Kernels,
    attention: DenseAttention,
    embedding: Buffer,
    layers: Vec<Layer>,
    norm: Buffer,
    head: Matrix,
    frequencies: Buffer,
    /// 0, 1, 2 …: positions, and cache rows, from any row on.
    positions: Buffer,
}

struct Layer {
    attention_norm: Buffer,
    qkv: Matrix,
    qkv_bias: Buffer,
    output: Matrix,
    feed_forward_norm: Buffer,
    gate_up: Matrix,
    down: Matrix,
}

/// The tokens of one sequence and the keys and values of its rows, on the device.
pub struct Sequence {
    prompt: usize,
    length: usize,
    tokens: Buffer,
    /// By layer, `[length, kv_heads, head_dim]`.
    keys: Vec<Buffer>,
    values: Vec<Buffer>,
}

/// Final hidden states, normed, of consecutive rows of a sequence.
pub struct Hidden {
    rows: Range<usize>,
    states: Buffer,
}

/// Memory of one forward pass over some rows.
struct Activations {
    /// The residual stream, `[rows, hidden]`.
    stream: Buffer,
    normed: Buffer,
    qkv: Buffer,
    attended: Buffer,
    /// What a sub-layer adds to the residual stream.
    update: Buffer,
    gate_up: Buffer,
    activated: Buffer,
}

struct Kernels {
    gather: (RowsSpec, LoadedKernel),
    norm: (RmsNormSpec, LoadedKernel),
    norm_residual: (RmsNormSpec, LoadedKernel),
    rope: (RopeSpec, LoadedKernel),
    swiglu: (SwigluSpec, LoadedKernel),
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
        let device = stream.device();
        let linear = Linear::new(stream)?;
        let layer = |layer: &LayerWeights<Vec<bf16>>| -> Result<Layer, Error> {
            Ok(Layer {
                attention_norm: device.upload(stream, &layer.attention_norm)?,
                qkv: linear.matrix(stream, &layer.qkv, config.q_width() + 2 * config.kv_width())?,
                qkv_bias: device.upload(stream, &layer.qkv_bias)?,
                output: linear.matrix(stream, &layer.output, config.hidden)?,
                feed_forward_norm: device.upload(stream, &layer.feed_forward_norm)?,
                gate_up: linear.matrix(stream, &layer.gate_up, 2 * config.intermediate)?,
                down: linear.matrix(stream, &layer.down, config.hidden)?,
            })
        };
        let layers = weights.layers.iter().map(layer).collect::<Result<_, _>>()?;
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let positions: Vec<u32> = (0..config.context as u32).collect();
        Ok(Transformer {
            layers,
            kernels: Kernels::load(stream, config)?,
            attention: DenseAttention::new(stream, config, arch)?,
            embedding: device.upload(stream, &weights.embedding)?,
            norm: device.upload(stream, &weights.norm)?,
            head: linear.matrix(stream, head, config.vocabulary)?,
            frequencies: device.upload(stream, &frequencies(config.rope_theta, config.head_dim as u32))?,
            positions: device.upload(stream, &positions)?,
            linear,
            config: config.clone(),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Dense attention for the prompt.
    pub fn dense(&self) -> &DenseAttention {
        &self.attention
    }

    /// A sequence with this prompt and response, nothing computed yet.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TooLong`], [`Error::Token`], [`Error::Kernel`] from the device.
    pub fn sequence(&self, stream: &Stream, prompt: &[u32], response: &[u32]) -> Result<Sequence, Error> {
        let (length, config) = (prompt.len() + response.len(), &self.config);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if length > config.context {
            return Err(Error::TooLong { given: length, limit: config.context });
        }
        let tokens = [prompt, response].concat();
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= config.vocabulary) {
            return Err(Error::Token { token, vocabulary: config.vocabulary });
        }
        let device = stream.device();
        let caches = || -> Result<Vec<Buffer>, Error> {
            (0..config.layers).map(|_| Ok(device.allocate(2 * length * config.kv_width())?)).collect()
        };
        Ok(Sequence {
            prompt: prompt.len(),
            length,
            tokens: device.upload(stream, &tokens)?,
            keys: caches()?,
            values: caches()?,
        })
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
        for (i, layer) in self.layers.iter().enumerate() {
            if i == 0 {
                self.normalise(stream, &memory.stream, &layer.attention_norm, &memory.normed, count)?;
            } else {
                self.add_and_normalise(stream, &memory, &layer.attention_norm, count)?;
            }
            self.linear.apply(stream, &memory.normed, &layer.qkv, &memory.qkv, count)?;
            self.rotate(stream, layer, &memory.qkv, rows.clone(), sequence, i)?;
            self.attend(stream, &memory, rows.clone(), sequence, i, mask, attention)?;
            self.linear.apply(stream, &memory.attended, &layer.output, &memory.update, count)?;
            self.add_and_normalise(stream, &memory, &layer.feed_forward_norm, count)?;
            self.linear.apply(stream, &memory.normed, &layer.gate_up, &memory.gate_up, count)?;
            self.gate(stream, &memory, count)?;
            self.linear.apply(stream, &memory.activated, &layer.down, &memory.update, count)?;
        }
        self.add_and_normalise(stream, &memory, &self.norm, count)?;
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

    fn row_bytes(&self) -> u64 {
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

    fn normalise(&self, stream: &Stream, x: &Buffer, weight: &Buffer, out: &Buffer, count: usize) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.norm;
        let arguments = Arguments::new(kernel.meta())
            .pointer("x", x.address())
            .pointer("weight", weight.address())
            .pointer("out", out.address())
            .u64("x_row", self.row_bytes())
            .u64("out_row", self.row_bytes())
            .f32("epsilon", self.config.norm_epsilon);
        Ok(kernel.launch(stream, spec.grid(count as u32), &arguments)?)
    }

    /// Adds the last sub-layer's output to the residual stream and norms the sum.
    fn add_and_normalise(
        &self,
        stream: &Stream,
        memory: &Activations,
        weight: &Buffer,
        count: usize,
    ) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.norm_residual;
        let arguments = Arguments::new(kernel.meta())
            .pointer("x", memory.update.address())
            .pointer("weight", weight.address())
            .pointer("out", memory.normed.address())
            .u64("x_row", self.row_bytes())
            .u64("out_row", self.row_bytes())
            .pointer("residual", memory.stream.address())
            .u64("residual_row", self.row_bytes())
            .f32("epsilon", self.config.norm_epsilon);
        Ok(kernel.launch(stream, spec.grid(count as u32), &arguments)?)
    }

    /// Bias and rotation; queries stay in place, keys and values go to the cache.
    fn rotate(
        &self,
        stream: &Stream,
        layer: &Layer,
        qkv: &Buffer,
        rows: Range<usize>,
        sequence: &Sequence,
        index: usize,
    ) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.rope;
        let config = &self.config;
        let (q, kv, head) = (2 * config.q_width() as u64, 2 * config.kv_width() as u64, 2 * config.head_dim as u64);
        let row = q + 2 * kv;
        let positions = self.positions.address() + 4 * rows.start as u64;
        let arguments = Arguments::new(kernel.meta())
            .pointer("q", qkv.address())
            .pointer("k", qkv.address() + q)
            .pointer("v", qkv.address() + q + kv)
            .pointer("q_out", qkv.address())
            .pointer("k_cache", sequence.keys[index].address())
            .pointer("v_cache", sequence.values[index].address())
            .u64("q_row", row)
            .u64("k_row", row)
            .u64("v_row", row)
            .u64("q_out_row", row)
            .u64("k_cache_row", kv)
            .u64("v_cache_row", kv)
            .u64("k_cache_head", head)
            .u64("v_cache_head", head)
            .pointer("q_bias", layer.qkv_bias.address())
            .pointer("k_bias", layer.qkv_bias.address() + q)
            .pointer("v_bias", layer.qkv_bias.address() + q + kv)
            .pointer("frequencies", self.frequencies.address())
            .pointer("positions", positions)
            .pointer("slots", positions)
            .u32("heads", config.heads as u32)
            .u32("kv_heads", config.kv_heads as u32)
            .u32("cache_rows", sequence.length as u32)
            .pointer("status", 0);
        let grid = spec.grid(rows.len() as u32, config.heads as u32, config.kv_heads as u32);
        Ok(kernel.launch(stream, grid, &arguments)?)
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
                let shape = [1, visible, kv_heads, head_dim];
                TensorView::strided(buffer, 0, DType::Bf16, &shape, &[visible * row, row, head_dim, 1])
            };
            Ok(AttentionCall {
                q: queries(&memory.qkv, heads + 2 * kv_heads)?,
                k: cached(&sequence.keys[layer])?,
                v: cached(&sequence.values[layer])?,
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

    fn gate(&self, stream: &Stream, memory: &Activations, count: usize) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.swiglu;
        let width = 2 * self.config.intermediate as u64;
        let arguments = Arguments::new(kernel.meta())
            .pointer("gate", memory.gate_up.address())
            .pointer("up", memory.gate_up.address() + width)
            .pointer("out", memory.activated.address())
            .u64("gate_row", 2 * width)
            .u64("up_row", 2 * width)
            .u64("out_row", width);
        Ok(kernel.launch(stream, spec.grid(count as u32), &arguments)?)
    }
}

impl Kernels {
    fn load(stream: &Stream, config: &Config) -> Result<Kernels, Error> {
        let (device, dtype) = (stream.device(), MmaType::Bf16);
        let arch = device.arch();
        let (hidden, head_dim) = (config.hidden as u32, config.head_dim as u32);
        let gather = RowsSpec { access: RowAccess::Gather, width: hidden, arch };
        let norm = RmsNormSpec { width: hidden, dtype, residual: false, arch };
        let norm_residual = RmsNormSpec { residual: true, ..norm };
        let rope = RopeSpec { head_dim, dtype, bias: true, sections: None, arch };
        let swiglu = SwigluSpec { width: config.intermediate as u32, dtype, arch };
        let load = |kernel: Result<ptx::Kernel, ptx::SpecErrors>| -> Result<LoadedKernel, Error> {
            Ok(device.load(&kernel.map_err(kernel_core::Error::from)?)?)
        };
        Ok(Kernels {
            gather: (gather, load(generate(&gather))?),
            norm: (norm, load(generate(&norm))?),
            norm_residual: (norm_residual, load(generate(&norm_residual))?),
            rope: (rope, load(generate(&rope))?),
            swiglu: (swiglu, load(generate(&swiglu))?),
        })
    }
}

impl Activations {
    fn new(stream: &Stream, config: &Config, rows: usize) -> Result<Activations, Error> {
        let rows_of = |width: usize| stream.device().allocate(2 * rows * width);
        Ok(Activations {
            stream: rows_of(config.hidden)?,
            normed: rows_of(config.hidden)?,
            qkv: rows_of(config.q_width() + 2 * config.kv_width())?,
            attended: rows_of(config.q_width())?,
            update: rows_of(config.hidden)?,
            gate_up: rows_of(2 * config.intermediate)?,
            activated: rows_of(config.intermediate)?,
        })
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

    /// All tokens, u32 on the device; the response may be rewritten there.
    pub fn tokens(&self) -> &Buffer {
        &self.tokens
    }

    /// Keys of a layer, post-rotation, bf16 `[length, kv_heads, head_dim]`.
    pub fn keys(&self, layer: usize) -> &Buffer {
        &self.keys[layer]
    }

    /// Values of a layer, bf16 `[length, kv_heads, head_dim]`.
    pub fn values(&self, layer: usize) -> &Buffer {
        &self.values[layer]
    }

    fn token_address(&self, row: usize) -> u64 {
        self.tokens.address() + 4 * row as u64
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
