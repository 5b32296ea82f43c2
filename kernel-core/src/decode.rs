//! [`DecodeAttention`]: the attention of masked-diffusion decoding, few queries of each request over many keys.

use crate::{
    Bounds, Buffer, DType, Device, Error, KvLayout, KvView, Lengths, LoadedKernel, Status, Stream, TensorView,
    Workspace,
    batch::Row,
    index::{HeadLists, Layout, Part},
    operands::{Given, Operands},
    tensor::tensor_error,
};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{AttentionSpec, MAX_PARTS, MergeSpec, NOTE_WORDS, Partition, Pattern},
};

/// Least keys of a part unless set: shorter ones finish sooner where the GPU has room for all, and cost more where it has not.
const PART_KEYS: u32 = 512;
/// Most row blocks times parts of a KV head unless set: with four KV heads and a block a multiprocessor, a GPU of 132 is full.
const PLACES: u32 = MAX_PARTS;
/// Rows that a request may have, over all heads that share keys.
const MOST_ROWS: u64 = 1 << 30;

/// Attention of a step of masked-diffusion decoding: the 1 to some 1024 query rows of each request see all keys of that request,
/// without a causal mask. Keys and values of the rows themselves are among the keys, written before.
///
/// The query heads that share keys are computed together, so that each key and value is read once a KV head, and long
/// requests are computed in parts of the keys that run side by side (FlashDecoding); a second launch merges them, where the
/// bounds allow a second part at all. The number of parts follows from the request's own lengths and from the settings: as
/// many as are at least [`DecodeAttentionBuilder::parts`] keys long, and while parts times ⌈rows · heads that share / rows of a
/// tile⌉ stay within its limit. So a request's bits do not depend on its neighbours, on the bounds or on the GPU.
///
/// `build` may block; `run` only launches: no allocation, no waiting, capturable. Lengths live on the device, the host gives
/// bounds. One workspace for each stream in flight; the status word is shared.
pub struct DecodeAttention {
    device: Device,
    dense: LoadedKernel,
    listed: Option<LoadedKernel>,
    merge: LoadedKernel,
    settings: Settings,
    status: Buffer,
}

/// What launches need to know.
#[derive(Clone, Copy)]
struct Settings {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    dtype: MmaType,
    kv: KvLayout,
    block: (u32, u32),
    scale: f32,
    softcap: Option<f32>,
    /// Least key blocks of a part, and most row blocks times parts.
    least_blocks: u32,
    places: u32,
}

/// Settings of a [`DecodeAttention`].
#[derive(Clone, Debug)]
pub struct DecodeAttentionBuilder {
    heads: u32,
    kv_heads: Option<u32>,
    head_dim: u32,
    dtype: DType,
    scale: Option<f32>,
    softcap: Option<f32>,
    kv: KvLayout,
    arch: Option<Arch>,
    block: Option<(u32, u32)>,
    lists: bool,
    parts: (u32, u32),
}

/// The tensors of one step.
#[derive(Clone, Copy, Debug)]
pub struct DecodeArgs<'a> {
    /// Queries, `[batch, seq, heads, head_dim]` or packed `[total, heads, head_dim]`.
    pub q: TensorView<'a>,
    /// Keys: rows 0 to the request's length, where the last ones need not be those of the queries.
    pub k: KvView<'a>,
    /// Values.
    pub v: KvView<'a>,
    /// Output, in the shape of the queries. Rows of a request without keys are zeros.
    pub out: TensorView<'a>,
    /// Natural-log-sum-exp of the scaled scores, f32 `[batch, heads, seq]`, or `[heads, total]` with packed queries.
    pub lse: Option<TensorView<'a>>,
    /// Lengths on the device.
    pub lengths: Lengths<'a>,
    /// Bounds of the lengths; the lengths themselves where the device has none.
    pub bounds: Bounds,
    /// The key blocks that each (request, KV head) sees, instead of all: u32 counts `[batch, kv_heads]` and ascending ids
    /// `[batch, kv_heads, capacity]` of blocks of [`DecodeAttention::key_block`] keys. Those of the queries' own keys are listed
    /// like all others. A block behind the request's keys is skipped.
    pub blocks: Option<HeadLists<'a>>,
    /// Where parts wait: [`DecodeAttention::workspace_bytes`] bytes.
    pub workspace: Workspace<'a>,
}

impl DecodeAttentionBuilder {
    /// Query heads.
    pub fn heads(mut self, heads: u32) -> Self {
        self.heads = heads;
        self
    }

    /// Heads of keys and values; as many as query heads unless set.
    pub fn kv_heads(mut self, kv_heads: u32) -> Self {
        self.kv_heads = Some(kv_heads);
        self
    }

    /// Elements of a head: 64, 96 or 128 (the default).
    pub fn head_dim(mut self, head_dim: u32) -> Self {
        self.head_dim = head_dim;
        self
    }

    /// Type of queries, keys, values and output: bf16 (the default) or f16.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Factor of the scores; `1 / √head_dim` unless set.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Scores become `softcap · tanh(score / softcap)`.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Where keys and values lie: strided or packed unless set, or in pages of a cache ([`KvView::Paged`]).
    pub fn kv(mut self, kv: KvLayout) -> Self {
        self.kv = kv;
        self
    }

    /// Architecture of the kernels; [`Device::arch`] unless set. The embedded backend runs any.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = Some(arch);
        self
    }

    /// Rows and keys of a tile; (128, 64) on `sm_80` and (128, 128) on `sm_90a` unless set. Lists count in blocks of so many
    /// keys.
    pub fn block(mut self, block: (u32, u32)) -> Self {
        self.block = Some(block);
        self
    }

    /// Also loads the kernel that reads listed blocks: see [`DecodeArgs::blocks`].
    pub fn lists(mut self, wanted: bool) -> Self {
        self.lists = wanted;
        self
    }

    /// Least keys of a part, and the limit of parts times row blocks, at most 32; 512 and 32 unless set. Longer and fewer
    /// parts cost less where many requests fill the GPU anyway. Other settings give other bits.
    pub fn parts(mut self, keys: u32, limit: u32) -> Self {
        self.parts = (keys, limit);
        self
    }

    /// Generates and loads the kernels. May block.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that do not fit, [`Error::Spec`] for what there are no kernels for, and what loading
    /// answers.
    pub fn build(self, device: &Device) -> Result<DecodeAttention, Error> {
        let arch = self.arch.unwrap_or_else(|| device.arch());
        let settings = self.settings(arch)?;
        let spec = |pattern| AttentionSpec {
            causal: false,
            softcap: settings.softcap.is_some(),
            kv: settings.kv,
            partition: Partition::Keys,
            ..AttentionSpec::new(pattern, settings.block, settings.head_dim, settings.dtype, arch)
        };
        let load = |pattern| device.load(&ptx::generate(&spec(pattern))?);
        let dense = load(Pattern::Dense)?;
        let listed = self.lists.then(|| load(Pattern::BlockSparse)).transpose()?;
        let Settings { block, head_dim, dtype, .. } = settings;
        let merge = device.load(&ptx::generate(&MergeSpec { rows: block.0, head_dim, dtype, arch })?)?;
        let status = device.upload(&Stream::new(device)?, &[0u32])?;
        Ok(DecodeAttention { device: device.clone(), dense, listed, merge, settings, status })
    }

    fn settings(&self, arch: Arch) -> Result<Settings, Error> {
        let wrong = |setting, message| Err(Error::Setting { setting, message });
        let (heads, kv_heads) = (self.heads, self.kv_heads.unwrap_or(self.heads));
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let message = format!("{heads} query heads and {kv_heads} KV heads; the second must divide the first");
            return wrong("heads", message);
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return wrong("scale", format!("is {scale}; it must be finite"));
        }
        if let Some(softcap) = self.softcap.filter(|softcap| !(softcap.is_finite() && *softcap > 0.0)) {
            return wrong("softcap", format!("is {softcap}; it must be a finite number above 0"));
        }
        let (keys, places) = self.parts;
        if keys == 0 || places == 0 || places > MAX_PARTS {
            let message =
                format!("are at least {keys} keys long and at most {places}; use 1 key or more, and 1 to {MAX_PARTS}");
            return wrong("parts", message);
        }
        let dtype = match self.dtype {
            DType::Bf16 => MmaType::Bf16,
            DType::F16 => MmaType::F16,
            other => return wrong("dtype", format!("is {other:?}; use Bf16 or F16")),
        };
        let block = self.block.unwrap_or(match arch {
            Arch::Sm80 => (128, 64),
            Arch::Sm90a => (128, 128),
        });
        Ok(Settings {
            heads,
            kv_heads,
            head_dim: self.head_dim,
            dtype,
            kv: self.kv,
            block,
            scale: self.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt()),
            softcap: self.softcap,
            least_blocks: keys.div_ceil(block.1.max(1)),
            places,
        })
    }
}

/// The grid of a launch, and where its parts wait.
struct Plan {
    /// Row blocks times parts, at most.
    places: u32,
    /// None where no request has a second part.
    memory: Option<[Part; 3]>,
    bytes: u64,
}

impl Settings {
    fn heads_per_kv(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Rows of a KV head, at most.
    fn rows(&self, bounds: &Bounds) -> u64 {
        u64::from(bounds.max_q) * u64::from(self.heads_per_kv())
    }

    fn plan(&self, bounds: &Bounds) -> Plan {
        let (rows, keys) = self.block;
        let row_blocks = self.rows(bounds).min(MOST_ROWS).div_ceil(u64::from(rows)) as u32;
        // Lists are no longer than the keys have blocks.
        let parts = bounds.max_kv.div_ceil(keys).div_ceil(self.least_blocks).clamp(1, self.places);
        let places = row_blocks.max(row_blocks.saturating_mul(parts).min(self.places));
        let mut layout = Layout::default();
        let memory = (parts > 1).then(|| {
            let heads = u64::from(bounds.batch) * u64::from(self.kv_heads);
            let rows = heads.saturating_mul(u64::from(places)).saturating_mul(4 * u64::from(rows));
            [heads.saturating_mul(4 * u64::from(NOTE_WORDS)), rows.saturating_mul(u64::from(self.head_dim)), rows]
                .map(|bytes| layout.part(bytes))
        });
        Plan { places, memory, bytes: layout.bytes() }
    }
}

impl DecodeAttention {
    /// Settings with their defaults. At least heads must be given.
    pub fn builder() -> DecodeAttentionBuilder {
        DecodeAttentionBuilder {
            heads: 0,
            kv_heads: None,
            head_dim: 128,
            dtype: DType::Bf16,
            scale: None,
            softcap: None,
            kv: KvLayout::Strided,
            arch: None,
            block: None,
            lists: false,
            parts: (PART_KEYS, PLACES),
        }
    }

    /// The architecture of the attention kernels.
    pub fn arch(&self) -> Arch {
        self.dense.meta().arch
    }

    /// Keys of a listed block.
    pub fn key_block(&self) -> u32 {
        self.settings.block.1
    }

    /// Workspace of a step with these bounds, in bytes: 0 where no request has a second part. Larger bounds never need less.
    pub fn workspace_bytes(&self, bounds: &Bounds) -> u64 {
        self.settings.plan(bounds).bytes
    }

    /// Computes the attention of one step.
    ///
    /// # Errors
    /// [`Error::Tensor`], [`Error::Setting`], [`Error::Index`] and [`Error::Workspace`], before anything is launched.
    pub fn run(&self, stream: &Stream, args: &DecodeArgs<'_>) -> Result<(), Error> {
        let Settings { dtype, kv, head_dim, kv_heads, .. } = self.settings;
        let DecodeArgs { q, k, v, out, lse, lengths, bounds, .. } = *args;
        let rows = self.settings.rows(&bounds);
        if rows > MOST_ROWS {
            let message = format!(
                "max_q is {} of {} heads that share keys, {rows} rows; at most {MOST_ROWS}",
                bounds.max_q,
                self.settings.heads_per_kv()
            );
            return Err(Error::Setting { setting: "bounds", message });
        }
        let given = Given { q, k, v, out, lse, lengths, bounds };
        let operands = Operands::new(&self.device, Row { dtype: dtype.into(), head_dim }, kv, given)?;
        for (name, given, needed) in
            [("q", operands.q.heads, self.settings.heads), ("k", operands.kv_heads(), self.settings.kv_heads)]
        {
            if given != needed {
                return Err(tensor_error(name, format!("has {given} heads; the kernel was built for {needed}")));
            }
        }
        let plan = self.settings.plan(&bounds);
        args.workspace.check(&self.device, plan.bytes)?;
        let [notes, part_out, part_lse] =
            plan.memory.map_or([0; 3], |parts| parts.map(|part| args.workspace.address(part)));

        let kernel = self.kernel(args)?;
        let arguments = operands
            .arguments(kernel, dtype)?
            .u32("heads_per_kv", operands.heads_per_kv())
            .u32("least_blocks", self.settings.least_blocks)
            .u32("most_places", self.settings.places)
            .pointer("notes", notes)
            .pointer("part_out", part_out)
            .pointer("part_lse", part_lse)
            .f32("scale", self.settings.scale)
            .pointer("status", self.status.address());
        let arguments = self.settings.softcap.into_iter().fold(arguments, |a, softcap| a.f32("softcap", softcap));
        let arguments = match &args.blocks {
            Some(lists) => self.list_arguments(arguments, lists, bounds.batch)?,
            None => arguments,
        };
        kernel.launch(stream, [plan.places, kv_heads, bounds.batch], &arguments)?;
        if plan.memory.is_none() {
            return Ok(());
        }
        let arguments = operands
            .output_arguments(crate::Arguments::new(self.merge.meta()))
            .u32("heads_per_kv", operands.heads_per_kv())
            .u32("places", plan.places)
            .pointer("notes", notes)
            .pointer("part_out", part_out)
            .pointer("part_lse", part_lse);
        // Checked to be few above.
        self.merge.launch(stream, [MergeSpec::blocks(rows as u32), kv_heads, bounds.batch], &arguments)
    }

    fn kernel(&self, args: &DecodeArgs<'_>) -> Result<&LoadedKernel, Error> {
        match (&args.blocks, &self.listed) {
            (None, _) => Ok(&self.dense),
            (Some(_), Some(listed)) => Ok(listed),
            (Some(_), None) => {
                Err(Error::Index { message: "given key blocks; build the kernel with lists(true) to read them".into() })
            }
        }
    }

    fn list_arguments<'m>(
        &self,
        arguments: crate::Arguments<'m>,
        lists: &HeadLists<'_>,
        batch: u32,
    ) -> Result<crate::Arguments<'m>, Error> {
        let HeadLists { counts, entries } = lists;
        let (types, heads) = ([DType::U32, DType::I32], u64::from(self.settings.kv_heads));
        let shape = [Some(u64::from(batch)), Some(heads), None];
        for view in [counts, entries] {
            view.on(&self.device)?;
        }
        counts.expect("block counts", &types, "[batch, kv_heads]", &shape[..2])?;
        entries.expect("block ids", &types, "[batch, kv_heads, capacity]", &shape)?;
        let capacity = u32::try_from(entries.shape()[2]).unwrap_or(u32::MAX);
        Ok(arguments
            .pointer("partial_counts", counts.address())
            .u64("counts_batch", counts.byte_stride(0))
            .u64("counts_head", counts.byte_stride(1))
            .pointer("partial_indices", entries.address())
            .u64("indices_batch", entries.byte_stride(0))
            .u64("indices_head", entries.byte_stride(1))
            .u64("indices_row", 0)
            .u32("partial_capacity", capacity)
            .pointer("full_counts", 0)
            .pointer("full_indices", 0)
            .u32("full_capacity", 0))
    }

    /// What the device had to work around since this was last called. Waits.
    ///
    /// # Errors
    /// What the device reports.
    pub fn status(&self, stream: &Stream) -> Result<Status, Error> {
        let bits = self.status.read::<u32>(stream)?.first().copied().unwrap_or(0);
        if bits != 0 {
            self.status.write(stream, &[0u32])?;
        }
        Ok(Status::from_bits(bits))
    }
}
