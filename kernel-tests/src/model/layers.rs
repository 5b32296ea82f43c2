//! The layers of a pass, whatever rows it feeds.

use super::{Config, Error, Matrix, Transformer, batch::Cache};
use kernel_core::{Arguments, Buffer, LoadedKernel, Stream};
use ptx::{
    generate,
    isa::MmaType,
    kernels::{
        feed::{EmbedSpec, HeadRowsSpec},
        model::{RmsNormSpec, RopeSpec, RowAccess, RowsSpec, SwigluSpec},
    },
};

/// Parameters of one layer on the device.
pub(super) struct Layer {
    pub(super) attention_norm: Buffer,
    pub(super) qkv: Matrix,
    pub(super) qkv_bias: Buffer,
    pub(super) output: Matrix,
    pub(super) feed_forward_norm: Buffer,
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

/// The rows of a pass: how many, and where they stand.
pub(super) struct Rows<'a> {
    pub(super) count: usize,
    /// Device address: u32 a row, its position in the sequence.
    pub(super) positions: u64,
    /// Device address: u32 a row, its place in the cache behind `first_slot`.
    pub(super) slots: u64,
    pub(super) first_slot: usize,
    pub(super) cache: &'a Cache,
}

/// Memory of one forward pass over some rows.
pub(super) struct Activations {
    /// The residual stream, `[rows, hidden]`.
    pub(super) stream: Buffer,
    pub(super) normed: Buffer,
    pub(super) qkv: Buffer,
    pub(super) attended: Buffer,
    /// What a sub-layer adds to the residual stream.
    update: Buffer,
    gate_up: Buffer,
    activated: Buffer,
}

pub(super) struct Kernels {
    pub(super) gather: (RowsSpec, LoadedKernel),
    pub(super) embed: (EmbedSpec, LoadedKernel),
    pub(super) head_rows: (HeadRowsSpec, LoadedKernel),
    norm: (RmsNormSpec, LoadedKernel),
    norm_residual: (RmsNormSpec, LoadedKernel),
    rope: (RopeSpec, LoadedKernel),
    swiglu: (SwigluSpec, LoadedKernel),
}

impl Transformer {
    /// Runs the rows in `memory.stream` through all layers, which stores their keys and values; `attend` does the attention
    /// of a layer. Final hidden states, normed, end in `memory.normed`.
    pub(super) fn layers(
        &self,
        stream: &Stream,
        memory: &Activations,
        rows: &Rows<'_>,
        attend: impl Fn(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let count = rows.count;
        for (i, layer) in self.layers.iter().enumerate() {
            if i == 0 {
                self.normalise(stream, &memory.stream, &layer.attention_norm, &memory.normed, count)?;
            } else {
                self.add_and_normalise(stream, memory, &layer.attention_norm, count)?;
            }
            self.linear.apply(stream, &memory.normed, &layer.qkv, &memory.qkv, count)?;
            self.rotate(stream, layer, &memory.qkv, rows, i)?;
            attend(i)?;
            self.linear.apply(stream, &memory.attended, &layer.output, &memory.update, count)?;
            self.add_and_normalise(stream, memory, &layer.feed_forward_norm, count)?;
            if !self.linear.apply_gated(stream, &memory.normed, &layer.gate_up, &memory.activated, count)? {
                self.linear.apply(stream, &memory.normed, &layer.gate_up, &memory.gate_up, count)?;
                self.gate(stream, memory, count)?;
            }
            self.linear.apply(stream, &memory.activated, &layer.down, &memory.update, count)?;
        }
        self.add_and_normalise(stream, memory, &self.norm, count)
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
    fn rotate(&self, stream: &Stream, layer: &Layer, qkv: &Buffer, rows: &Rows<'_>, index: usize) -> Result<(), Error> {
        let (spec, kernel) = &self.kernels.rope;
        let config = &self.config;
        let (q, kv, head) = (2 * config.q_width() as u64, 2 * config.kv_width() as u64, 2 * config.head_dim as u64);
        let row = q + 2 * kv;
        let first = rows.first_slot as u64 * kv;
        let mut arguments = Arguments::new(kernel.meta())
            .pointer("q", qkv.address())
            .pointer("k", qkv.address() + q)
            .pointer("v", qkv.address() + q + kv)
            .pointer("q_out", qkv.address())
            .pointer("k_cache", rows.cache.keys[index].address() + first)
            .pointer("v_cache", rows.cache.values[index].address() + first)
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
            .pointer("positions", rows.positions)
            .pointer("slots", rows.slots)
            .u32("heads", config.heads as u32)
            .u32("kv_heads", config.kv_heads as u32)
            .u32("cache_rows", (rows.cache.rows - rows.first_slot) as u32)
            .pointer("status", 0);
        if config.mrope_section.is_some() {
            // In text a token has the same position on every axis.
            arguments = arguments.u64("position_axis", 0);
        }
        let grid = spec.grid(rows.count as u32, config.heads as u32, config.kv_heads as u32);
        Ok(kernel.launch(stream, grid, &arguments)?)
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
    pub(super) fn load(stream: &Stream, config: &Config) -> Result<Kernels, Error> {
        let (device, dtype) = (stream.device(), MmaType::Bf16);
        let arch = device.arch();
        let (hidden, head_dim) = (config.hidden as u32, config.head_dim as u32);
        let gather = RowsSpec { access: RowAccess::Gather, width: hidden, arch };
        let embed = EmbedSpec { width: hidden, axes: false, arch };
        let head_rows = HeadRowsSpec { width: hidden, arch };
        let norm = RmsNormSpec { width: hidden, dtype, residual: false, arch };
        let norm_residual = RmsNormSpec { residual: true, ..norm };
        let rope = RopeSpec { head_dim, dtype, bias: true, sections: config.mrope_section, arch };
        let swiglu = SwigluSpec { width: config.intermediate as u32, dtype, arch };
        let load = |kernel: Result<ptx::Kernel, ptx::SpecErrors>| -> Result<LoadedKernel, Error> {
            Ok(device.load(&kernel.map_err(kernel_core::Error::from)?)?)
        };
        Ok(Kernels {
            gather: (gather, load(generate(&gather))?),
            embed: (embed, load(generate(&embed))?),
            head_rows: (head_rows, load(generate(&head_rows))?),
            norm: (norm, load(generate(&norm))?),
            norm_residual: (norm_residual, load(generate(&norm_residual))?),
            rope: (rope, load(generate(&rope))?),
            swiglu: (swiglu, load(generate(&swiglu))?),
        })
    }
}

impl Activations {
    pub(super) fn new(stream: &Stream, config: &Config, rows: usize) -> Result<Activations, Error> {
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
