//! Attention of one layer: the dense kernels, and the door for sparse ones.

use super::{Config, Error};
use kernel_core::{
    Attention, AttentionArgs, AttentionKernel, Bounds, Buffer, DecodeArgs, DecodeAttention, HeadPatterns, KvLayout,
    Lengths, PlanArgs, RunArgs, SparsePrefill, Stream, TensorView, Workspace,
};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};

/// Query rows and keys of a tile: few rows, which is what decoding feeds. On `sm_90a` a tile of keys is one block, so that
/// the sums of a row have the same parts however many keys there are, as they have on `sm_80`.
const fn block(arch: Arch) -> (u32, u32) {
    match arch {
        Arch::Sm80 => (64, 64),
        Arch::Sm90a => (128, 128),
    }
}

/// Some rows of a forward pass over the keys and values they may see. All bf16, a batch of one.
#[derive(Clone, Copy)]
pub struct AttentionCall<'a> {
    /// `[1, rows, heads, head_dim]`, rotated; the last row stands at the last key.
    pub q: TensorView<'a>,
    /// `[1, visible, kv_heads, head_dim]`, rotated, from position 0 on.
    pub k: TensorView<'a>,
    /// As `k`.
    pub v: TensorView<'a>,
    /// As `q`; written.
    pub out: TensorView<'a>,
}

/// How the causal rows of a prompt attend.
pub trait PromptAttention {
    /// Launches the attention of one layer.
    ///
    /// # Errors
    /// Whatever the launch fails with.
    fn attend(&self, stream: &Stream, layer: usize, call: &AttentionCall<'_>) -> Result<(), kernel_core::Error>;
}

/// Dense attention: causal for the prompt, and without a mask for rows that see everything.
pub struct DenseAttention {
    causal: Attention,
    full: DecodeAttention,
}

impl DenseAttention {
    pub(super) fn new(stream: &Stream, config: &Config, arch: Arch) -> Result<DenseAttention, Error> {
        let spec = AttentionSpec::new(Pattern::Dense, block(arch), config.head_dim as u32, MmaType::Bf16, arch);
        let causal = AttentionKernel::generate(&spec)?.build_for(stream.device(), arch)?;
        Ok(DenseAttention { causal, full: decoding(stream, config, KvLayout::Strided, arch)? })
    }

    /// Every row sees all keys.
    pub(super) fn full(&self, stream: &Stream, call: &AttentionCall<'_>) -> Result<(), Error> {
        let AttentionCall { q, k, v, out } = *call;
        let bounds = call.args().bounds;
        let workspace = stream.device().allocate(self.full.workspace_bytes(&bounds) as usize)?;
        let (lengths, workspace) = (Lengths::default(), Workspace::from(&workspace));
        let args = DecodeArgs { q, k: k.into(), v: v.into(), out, lse: None, lengths, bounds, blocks: None, workspace };
        Ok(self.full.run(stream, &args)?)
    }
}

/// Attention of rows that see all of their keys.
pub(super) fn decoding(stream: &Stream, config: &Config, kv: KvLayout, arch: Arch) -> Result<DecodeAttention, Error> {
    let builder = DecodeAttention::builder()
        .heads(config.heads as u32)
        .kv_heads(config.kv_heads as u32)
        .head_dim(config.head_dim as u32)
        .kv(kv)
        .arch(arch);
    Ok(builder.build(stream.device())?)
}

impl PromptAttention for DenseAttention {
    fn attend(&self, stream: &Stream, _layer: usize, call: &AttentionCall<'_>) -> Result<(), kernel_core::Error> {
        self.causal.run(stream, &call.args())
    }
}

/// Sparse attention by the pattern of each head. Every call plans its own index, from the last of its queries.
pub struct SparseAttention {
    layers: Vec<SparsePrefill>,
    /// Launches of one stream follow each other, so that all layers share it.
    workspace: Buffer,
}

impl SparseAttention {
    /// Sparse layers for prompts of at most `longest` tokens, by attention kernels for `arch`.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the patterns do not fit the model, or from the device.
    pub fn new(
        stream: &Stream,
        config: &Config,
        patterns: &HeadPatterns,
        longest: usize,
        arch: Arch,
    ) -> Result<SparseAttention, Error> {
        let device = stream.device();
        let longest = longest as u32;
        let layer = |layer: usize| -> Result<SparsePrefill, Error> {
            let builder = SparsePrefill::builder()
                .dense_below(0)
                .heads(config.heads as u32)
                .kv_heads(config.kv_heads as u32)
                .head_dim(config.head_dim as u32)
                .max_kv(longest)
                .arch(arch)
                .patterns(patterns.layer(layer)?);
            Ok(builder.build(device)?)
        };
        let layers: Vec<SparsePrefill> = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
        let bounds = Bounds { batch: 1, max_q: longest, max_kv: longest };
        let bytes = layers.iter().map(|layer| layer.workspace_bytes(&bounds)).max().unwrap_or(0);
        Ok(SparseAttention { layers, workspace: device.allocate(bytes as usize)? })
    }

    /// The layers.
    pub fn layers(&self) -> &[SparsePrefill] {
        &self.layers
    }
}

impl PromptAttention for SparseAttention {
    fn attend(&self, stream: &Stream, layer: usize, call: &AttentionCall<'_>) -> Result<(), kernel_core::Error> {
        let AttentionCall { q, k, v, out } = *call;
        let (bounds, lengths) = (call.args().bounds, Lengths::default());
        let workspace = Workspace::from(&self.workspace);
        let index = self.layers[layer].plan(stream, &PlanArgs { q, k: k.into(), lengths, bounds, workspace })?;
        let args = RunArgs { q, k: k.into(), v: v.into(), lengths, bounds, out, lse: None };
        self.layers[layer].run(stream, &args, &index)
    }
}

impl<'a> AttentionCall<'a> {
    /// The arguments of a dense launch.
    pub fn args(&self) -> AttentionArgs<'a> {
        AttentionArgs::new(self.q, self.k, self.v, self.out)
    }
}
