//! [`SparsePrefill`]: the sparse attention of one layer, whose heads may have different patterns.

use crate::{
    Attention, AttentionArgs, AttentionFacts, AttentionKernel, Bounds, Buffer, DType, Device, Error, HeadPattern,
    Index, KvLayout, KvView, LayerPatterns, Lengths, Selection, Status, Stream, TensorView, Workspace,
    batch::{Batch, Row},
    embedded,
    index::{
        BlockSparsePlan, BlockSparseSettings, Budget, FORCED, FlexHead, FlexPlan, Layout, Part, PlanInput,
        VerticalSlashPlan, VerticalSlashSettings, estimator_order,
    },
    tensor::tensor_error,
};
use ptx::{
    Arch, KernelSpec,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};

/// The sparse attention of one layer: causal, heads grouped by pattern, one attention launch a group, two where the plan
/// chooses.
///
/// `build` may block; `plan` and `run` only launch: no allocation, no waiting, capturable. Lengths live on the device, the
/// host gives bounds. One workspace for each stream in flight; the status word is shared.
pub struct SparsePrefill {
    device: Device,
    heads: u32,
    kv_heads: u32,
    row: Row,
    kv: KvLayout,
    scale: f32,
    softcap: Option<f32>,
    groups: Vec<Group>,
    status: Buffer,
}

/// The heads of one pattern.
struct Group {
    attention: Attention,
    heads: u32,
    /// u32 by head of the group: the query head. None where the group is all heads in their order.
    head_map: Option<Buffer>,
    kind: Kind,
    dense: Option<DenseBelow>,
}

enum Kind {
    Dense,
    /// u32 `[heads of the group, window sizes]`.
    Windows(Buffer, u64),
    VerticalSlash(Box<VerticalSlashPlan>),
    BlockSparse(BlockSparsePlan),
    /// The group's kernel is vertical-slash, this one block-sparse; each head of a sequence takes one.
    Flex(Box<FlexPlan>, Attention),
}

/// The dense kernel of a group that is planned, for bounds of fewer keys than these.
struct DenseBelow {
    keys: u32,
    attention: Attention,
}

/// Settings of a [`SparsePrefill`].
#[derive(Clone, Debug)]
pub struct SparsePrefillBuilder {
    heads: u32,
    kv_heads: Option<u32>,
    head_dim: u32,
    dtype: DType,
    patterns: LayerPatterns,
    scale: Option<f32>,
    softcap: Option<f32>,
    max_kv: u32,
    kv: KvLayout,
    arch: Option<Arch>,
    fallback: bool,
    blocks: Vec<(Pattern, (u32, u32))>,
    dense_below: Option<u32>,
    forced: (u32, u32),
}

/// The heads of a layer that share a pattern, and with it a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadGroup {
    /// How many they are.
    pub heads: u32,
    /// What their kernel computes; its block is the granularity of their index.
    pub facts: AttentionFacts,
    /// The architecture of its text.
    pub arch: Arch,
    /// Whether the plan chooses, for each head of a sequence, between this kernel and another one.
    pub chosen: bool,
}

/// What a plan reads.
#[derive(Clone, Copy, Debug)]
pub struct PlanArgs<'a, 'w> {
    /// Queries, `[batch, seq, heads, head_dim]` or packed `[total, heads, head_dim]`.
    pub q: TensorView<'a>,
    /// Keys.
    pub k: KvView<'a>,
    /// Lengths on the device.
    pub lengths: Lengths<'a>,
    /// Bounds of the lengths.
    pub bounds: Bounds,
    /// Where the index goes: [`SparsePrefill::workspace_bytes`] bytes.
    pub workspace: Workspace<'w>,
}

/// The tensors of one run.
#[derive(Clone, Copy, Debug)]
pub struct RunArgs<'a> {
    /// Queries, `[batch, seq, heads, head_dim]` or packed `[total, heads, head_dim]`.
    pub q: TensorView<'a>,
    /// Keys.
    pub k: KvView<'a>,
    /// Values.
    pub v: KvView<'a>,
    /// Lengths on the device.
    pub lengths: Lengths<'a>,
    /// Bounds of the lengths; at most those of the plan.
    pub bounds: Bounds,
    /// Output, in the shape of the queries.
    pub out: TensorView<'a>,
    /// Natural-log-sum-exp, f32 `[batch, heads, seq]`, or `[heads, total]` with packed queries.
    pub lse: Option<TensorView<'a>>,
}

impl SparsePrefillBuilder {
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

    /// Elements of a head: 64, 96 or 128, and on Hopper 256 where all heads are dense.
    pub fn head_dim(mut self, head_dim: u32) -> Self {
        self.head_dim = head_dim;
        self
    }

    /// Type of queries, keys, values and output: bf16 (the default) or f16.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The pattern of each query head.
    pub fn patterns(mut self, patterns: LayerPatterns) -> Self {
        self.patterns = patterns;
        self
    }

    /// Factor of the scores; `1 / √head_dim` unless set.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Scores become `softcap · tanh(score / softcap)`; not in the estimates that choose an index.
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Most keys of a sequence that block-sparse heads are built for; 131072 unless set.
    pub fn max_kv(mut self, max_kv: u32) -> Self {
        self.max_kv = max_kv;
        self
    }

    /// Where plan and run find keys and values: strided or packed unless set, or in pages of a cache ([`KvView::Paged`]), for
    /// which kernels are generated at run time.
    pub fn kv(mut self, kv: KvLayout) -> Self {
        self.kv = kv;
        self
    }

    /// Architecture of the attention kernels, and of what plans have for either; [`Device::arch`] unless set. The embedded backend
    /// runs any.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = Some(arch);
        self
    }

    /// Lets heads whose kernel is not generated for the architecture use one for `sm_80`; an error unless set.
    /// [`SparsePrefill::groups`] says which kernels a layer has.
    pub fn fallback(mut self, allowed: bool) -> Self {
        self.fallback = allowed;
        self
    }

    /// Query rows and keys of a tile of the heads of a pattern, for an index of the caller's own granularity;
    /// [`embedded::block`] unless set.
    pub fn block(mut self, pattern: Pattern, block: (u32, u32)) -> Self {
        self.blocks.retain(|(own, _)| *own != pattern);
        self.blocks.push((pattern, block));
        self
    }

    /// First key columns and nearest slashes that vertical-slash heads attend to whatever their scores, within their budgets; 30
    /// and 100 unless set, as in the MInference authors' code. The diagonal is one of them at least.
    pub fn forced(mut self, columns: u32, slashes: u32) -> Self {
        self.forced = (columns, slashes);
        self
    }

    /// Heads that need a plan are dense, without one, where the bound of a launch's keys lies below this; 0 for never. Unless
    /// set, for the heads of one kernel together, the mean of [`HeadPattern::crossover`].
    pub fn dense_below(mut self, keys: u32) -> Self {
        self.dense_below = Some(keys);
        self
    }

    /// Generates or picks the kernels, loads them and uploads what heads need. May block.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that do not fit, [`Error::Spec`] for what no architecture has kernels for,
    /// [`Error::NeedsFallback`] for what only `sm_80` has, and what loading answers.
    pub fn build(self, device: &Device) -> Result<SparsePrefill, Error> {
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        let dtype = self.check(kv_heads)?;
        let stream = Stream::new(device)?;
        let mut groups = Vec::new();
        for pattern in
            [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse]
        {
            let mut members = self.members(Some(pattern));
            // Stable: heads of one estimator stay in ascending order.
            members.sort_by_key(|head| estimator_order(self.patterns.head(*head)));
            if !members.is_empty() {
                groups.push(self.group(device, &stream, pattern, &members, kv_heads, dtype)?);
            }
        }
        let members = self.members(None);
        if !members.is_empty() {
            groups.push(self.flex_group(device, &stream, &members, kv_heads, dtype)?);
        }
        let status = device.upload(&stream, &[0u32])?;
        Ok(SparsePrefill {
            device: device.clone(),
            heads: self.heads,
            kv_heads,
            row: Row { dtype: self.dtype, head_dim: self.head_dim },
            kv: self.kv,
            scale: self.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt()),
            softcap: self.softcap,
            groups,
            status,
        })
    }

    fn check(&self, kv_heads: u32) -> Result<MmaType, Error> {
        let wrong = |setting, message| Err(Error::Setting { setting, message });
        if self.heads == 0 || kv_heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            let message =
                format!("{} query heads and {kv_heads} KV heads; the second must divide the first", self.heads);
            return wrong("heads", message);
        }
        let named = self.patterns.head_count();
        if named > self.heads {
            let message =
                format!("head {} has a pattern, the layer has {} heads; take their range", named - 1, self.heads);
            return wrong("patterns", message);
        }
        for head in 0..self.heads {
            let pattern = self.patterns.head(head);
            let (what, shares) = match pattern {
                HeadPattern::Antidiagonal { threshold, .. } => ("threshold", [threshold; 2]),
                HeadPattern::FlexVerticalSlash { columns, slashes } => ("share", [columns.0, slashes.0]),
                HeadPattern::FlexBlockSparse { blocks: (share, _) } | HeadPattern::Flex { share, .. } => {
                    ("share", [share; 2])
                }
                _ => continue,
            };
            if let Some(share) = shares.into_iter().find(|share| !(*share > 0.0 && *share <= 1.0)) {
                let message = format!("head {head} has the {what} {share}; it must be above 0 and at most 1");
                return wrong("patterns", message);
            }
            match pattern {
                HeadPattern::Antidiagonal { stride, .. } if ![8, 16].contains(&stride) => {
                    return wrong("patterns", format!("head {head} has the stride {stride}; use 8 or 16"));
                }
                HeadPattern::Flex { threshold, .. } if !(threshold.is_finite() && threshold >= 0.0) => {
                    let message = format!("head {head} has the threshold {threshold}; it must be finite, 0 or more");
                    return wrong("patterns", message);
                }
                _ => {}
            }
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return wrong("scale", format!("is {scale}; it must be finite"));
        }
        if let Some(softcap) = self.softcap.filter(|softcap| !(softcap.is_finite() && *softcap > 0.0)) {
            return wrong("softcap", format!("is {softcap}; it must be a finite number above 0"));
        }
        match self.dtype {
            DType::Bf16 => Ok(MmaType::Bf16),
            DType::F16 => Ok(MmaType::F16),
            other => wrong("dtype", format!("is {other:?}; use Bf16 or F16")),
        }
    }

    fn group(
        &self,
        device: &Device,
        stream: &Stream,
        pattern: Pattern,
        members: &[u32],
        kv_heads: u32,
        dtype: MmaType,
    ) -> Result<Group, Error> {
        let (kernel, arch) = self.kernel(pattern, dtype, self.arch.unwrap_or_else(|| device.arch()))?;
        let block = kernel.facts().block;
        let patterns = || members.iter().map(|head| self.patterns.head(*head));
        let kind = match pattern {
            Pattern::Dense => Kind::Dense,
            Pattern::AShape | Pattern::TriShape => {
                let sizes: Vec<u32> = patterns().flat_map(|p| windows(p).into_iter().flatten()).collect();
                Kind::Windows(device.upload(stream, &sizes)?, (sizes.len() / members.len()) as u64)
            }
            Pattern::VerticalSlash => {
                let budgets: Vec<_> = patterns().filter_map(columns_and_slashes).collect();
                let (settings, of_keys) = (self.vertical_slash(dtype, block, arch), self.keys_of(members, kv_heads));
                let plan = VerticalSlashPlan::build(device, stream, settings, &of_keys, &budgets)?;
                Kind::VerticalSlash(Box::new(plan))
            }
            Pattern::BlockSparse => {
                let settings = self.block_sparse(dtype, block, kv_heads, arch);
                Kind::BlockSparse(BlockSparsePlan::build(device, stream, settings, &patterns().collect::<Vec<_>>())?)
            }
        };
        let (attention, head_map) = (kernel.build_for(device, arch)?, self.head_map(device, stream, members)?);
        let dense = self.dense(device, members, dtype, (arch, block.1))?;
        Ok(Group { attention, heads: members.len() as u32, head_map, kind, dense })
    }

    /// The dense kernel of heads that need a plan, if there are bounds below which they have none. `block` is the keys of a block
    /// of their index.
    fn dense(
        &self,
        device: &Device,
        members: &[u32],
        dtype: MmaType,
        (arch, block): (Arch, u32),
    ) -> Result<Option<DenseBelow>, Error> {
        let own: u64 = members.iter().map(|head| u64::from(self.patterns.head(*head).crossover(block))).sum();
        let own = (own / members.len() as u64) as u32;
        let keys = if own > 0 { self.dense_below.unwrap_or(own) } else { 0 };
        let kernel = (keys > 0).then(|| self.kernel(Pattern::Dense, dtype, arch)).transpose()?;
        kernel.map(|(kernel, arch)| Ok(DenseBelow { keys, attention: kernel.build_for(device, arch)? })).transpose()
    }

    /// The heads whose pattern the plan chooses.
    fn flex_group(
        &self,
        device: &Device,
        stream: &Stream,
        members: &[u32],
        kv_heads: u32,
        dtype: MmaType,
    ) -> Result<Group, Error> {
        let arch = self.arch.unwrap_or_else(|| device.arch());
        let (columns, columns_arch) = self.kernel(Pattern::VerticalSlash, dtype, arch)?;
        let (blocks, blocks_arch) = self.kernel(Pattern::BlockSparse, dtype, arch)?;
        let settings = (
            self.vertical_slash(dtype, columns.facts().block, columns_arch),
            self.block_sparse(dtype, blocks.facts().block, kv_heads, blocks_arch),
        );
        let heads = members.iter().filter_map(|head| match self.patterns.head(*head) {
            HeadPattern::Flex { share, threshold, blocks } => Some(FlexHead { share, threshold, blocks }),
            _ => None,
        });
        let heads: Vec<FlexHead> = heads.collect();
        let plan = FlexPlan::build(device, stream, settings, &self.keys_of(members, kv_heads), &heads)?;
        Ok(Group {
            attention: columns.build_for(device, columns_arch)?,
            heads: members.len() as u32,
            head_map: self.head_map(device, stream, members)?,
            kind: Kind::Flex(Box::new(plan), blocks.build_for(device, blocks_arch)?),
            dense: self.dense(device, members, dtype, (arch, blocks.facts().block.1))?,
        })
    }

    /// The heads of a pattern, or those whose pattern the plan chooses.
    fn members(&self, pattern: Option<Pattern>) -> Vec<u32> {
        (0..self.heads).filter(|head| pattern_of(self.patterns.head(*head)) == pattern).collect()
    }

    /// Which of them each row of the group's launch stands for; none where that is the row itself.
    fn head_map(&self, device: &Device, stream: &Stream, members: &[u32]) -> Result<Option<Buffer>, Error> {
        let all = members.iter().copied().eq(0..self.heads);
        (!all).then(|| device.upload(stream, members)).transpose()
    }

    /// The head of keys of each.
    fn keys_of(&self, members: &[u32], kv_heads: u32) -> Vec<u32> {
        members.iter().map(|head| head / (self.heads / kv_heads)).collect()
    }

    fn vertical_slash(&self, dtype: MmaType, block: (u32, u32), arch: Arch) -> VerticalSlashSettings {
        let (head_dim, kv, forced) = (self.head_dim, self.kv, self.forced);
        VerticalSlashSettings { head_dim, dtype, kv, keys: block.1, forced, arch }
    }

    fn block_sparse(&self, dtype: MmaType, block: (u32, u32), kv_heads: u32, arch: Arch) -> BlockSparseSettings {
        let (head_dim, kv, max_kv) = (self.head_dim, self.kv, self.max_kv);
        BlockSparseSettings { head_dim, dtype, kv, block, kv_heads, max_kv, arch }
    }

    /// The kernel of a pattern, and the architecture that it is for: `arch`, or `sm_80` where that is allowed and needed.
    fn kernel(&self, pattern: Pattern, dtype: MmaType, arch: Arch) -> Result<(AttentionKernel, Arch), Error> {
        let spec = |arch| {
            let own = self.blocks.iter().find(|(own, _)| *own == pattern).map(|(_, block)| *block);
            let block = own.unwrap_or_else(|| embedded::block(pattern, self.head_dim, arch));
            let softcap = self.softcap.is_some();
            AttentionSpec { softcap, kv: self.kv, ..AttentionSpec::new(pattern, block, self.head_dim, dtype, arch) }
        };
        let kernel = |spec: AttentionSpec| {
            let embedded = embedded::kernel((&spec).into(), spec.arch).cloned();
            Ok((embedded.map_or_else(|| AttentionKernel::generate(&spec), Ok)?, spec.arch))
        };
        match kernel(spec(arch)) {
            Err(Error::Spec(errors)) if arch != Arch::Sm80 && spec(Arch::Sm80).validate().is_ok() => {
                if self.fallback {
                    kernel(spec(Arch::Sm80))
                } else {
                    Err(Error::NeedsFallback { pattern: pattern.name(), arch, errors })
                }
            }
            other => other,
        }
    }
}

/// The pattern of the kernel that a head has; none where the plan chooses.
fn pattern_of(pattern: HeadPattern) -> Option<Pattern> {
    match pattern {
        HeadPattern::Dense => Some(Pattern::Dense),
        HeadPattern::AShape { .. } => Some(Pattern::AShape),
        HeadPattern::TriShape { .. } => Some(Pattern::TriShape),
        HeadPattern::VerticalSlash { .. } | HeadPattern::FlexVerticalSlash { .. } => Some(Pattern::VerticalSlash),
        HeadPattern::BlockSparse { .. } | HeadPattern::FlexBlockSparse { .. } | HeadPattern::Antidiagonal { .. } => {
            Some(Pattern::BlockSparse)
        }
        HeadPattern::Flex { .. } => None,
    }
}

/// Window sizes of an A-shape or a tri-shape, as its kernel reads them.
fn windows(pattern: HeadPattern) -> [Option<u32>; 3] {
    match pattern {
        HeadPattern::AShape { sink, local } => [Some(sink), Some(local), None],
        HeadPattern::TriShape { sink, local, last } => [Some(sink), Some(local), Some(last)],
        _ => [None; 3],
    }
}

fn columns_and_slashes(pattern: HeadPattern) -> Option<[Budget; 2]> {
    match pattern {
        HeadPattern::VerticalSlash { columns, slashes } => {
            Some([columns, slashes].map(|most| Budget { most, share: None }))
        }
        HeadPattern::FlexVerticalSlash { columns, slashes } => {
            Some([columns, slashes].map(|(share, most)| Budget { most, share: Some(share) }))
        }
        _ => None,
    }
}

impl Group {
    /// The dense kernel, if the heads have it under a plan for these bounds.
    fn dense_under(&self, max_kv: u32) -> Option<&Attention> {
        self.dense.as_ref().filter(|dense| max_kv < dense.keys).map(|dense| &dense.attention)
    }

    /// The kernels that its heads may have.
    fn kernels(&self) -> impl Iterator<Item = &Attention> {
        let other = if let Kind::Flex(_, other) = &self.kind { Some(other) } else { None };
        [Some(&self.attention), other, self.dense.as_ref().map(|dense| &dense.attention)].into_iter().flatten()
    }
}

impl SparsePrefill {
    /// Settings with their defaults. At least heads and head dimension must be given.
    pub fn builder() -> SparsePrefillBuilder {
        SparsePrefillBuilder {
            heads: 0,
            kv_heads: None,
            head_dim: 128,
            dtype: DType::Bf16,
            patterns: LayerPatterns::default(),
            scale: None,
            softcap: None,
            max_kv: 131_072,
            kv: KvLayout::Strided,
            arch: None,
            fallback: false,
            blocks: Vec::new(),
            dense_below: None,
            forced: FORCED,
        }
    }

    /// The heads by pattern, with the kernel that each pattern has. Those whose pattern the plan chooses come twice, with
    /// either kernel.
    pub fn groups(&self) -> impl Iterator<Item = HeadGroup> {
        let group = |heads, attention: &Attention, chosen| HeadGroup {
            heads,
            facts: attention.facts(),
            arch: attention.arch(),
            chosen,
        };
        self.groups.iter().flat_map(move |Group { attention, heads, kind, .. }| {
            let other = if let Kind::Flex(_, other) = kind { Some(other) } else { None };
            let kernels = [Some(attention), other].into_iter().flatten();
            kernels.map(move |kernel| group(*heads, kernel, other.is_some()))
        })
    }

    /// Workspace of a plan with these bounds, in bytes.
    pub fn workspace_bytes(&self, bounds: &Bounds) -> u64 {
        let mut layout = Layout::default();
        for group in self.planned(bounds.max_kv) {
            match &group.kind {
                Kind::Dense | Kind::Windows(..) => {}
                Kind::VerticalSlash(plan) => drop(plan.parts(&mut layout, *bounds)),
                Kind::BlockSparse(plan) => drop(plan.parts(&mut layout, *bounds)),
                Kind::Flex(plan, _) => drop(plan.parts(&mut layout, *bounds)),
            }
        }
        self.turns(&mut layout);
        layout.bytes()
    }

    /// The word of [`Index::turns`], where a kernel has a use for it.
    fn turns(&self, layout: &mut Layout) -> Option<Part> {
        let useful = self.groups.iter().flat_map(Group::kernels).any(Attention::takes_turns);
        useful.then(|| layout.part(4))
    }

    /// The groups that are not dense under a plan for these bounds.
    fn planned(&self, max_kv: u32) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.dense_under(max_kv).is_none())
    }

    /// Chooses what every head attends to, from the queries and keys of this prefill, and writes it to the workspace.
    ///
    /// # Errors
    /// [`Error::Tensor`], [`Error::Setting`] and [`Error::Workspace`] before anything is launched.
    pub fn plan<'w>(&self, stream: &Stream, args: &PlanArgs<'_, 'w>) -> Result<Index<'w>, Error> {
        args.q.on(&self.device)?;
        args.k.on(&self.device)?;
        let batch = Batch::new(&args.lengths, args.bounds, &self.device)?;
        let (q, k) = (batch.queries("q", &args.q, self.row)?, batch.keys("k", &args.k, self.row, self.kv)?);
        self.check_heads("q", q.heads, self.heads)?;
        self.check_heads("k", k.rows.heads, self.kv_heads)?;
        args.workspace.check(&self.device, self.workspace_bytes(&args.bounds))?;
        let input = |group: &Group| PlanInput {
            batch,
            q,
            k,
            heads_per_kv: self.heads / self.kv_heads,
            head_map: group.head_map.as_ref().map_or(0, Buffer::address),
            scale: self.scale,
            status: self.status.address(),
        };
        for group in self.planned(args.bounds.max_kv) {
            match &group.kind {
                Kind::BlockSparse(plan) => plan.check(&input(group))?,
                Kind::Flex(plan, _) => plan.check(&input(group))?,
                Kind::VerticalSlash(plan) => plan.check(&input(group))?,
                Kind::Dense | Kind::Windows(..) => {}
            }
        }
        let mut layout = Layout::default();
        let mut index = Index { planned_keys: Some(args.bounds.max_kv), ..Index::default() };
        for group in self.planned(args.bounds.max_kv) {
            let input = input(group);
            match &group.kind {
                Kind::Dense | Kind::Windows(..) => {}
                Kind::VerticalSlash(plan) => {
                    let parts = plan.parts(&mut layout, args.bounds);
                    index.vertical_slash = Some(plan.launch(stream, &input, &parts, &args.workspace)?);
                }
                Kind::BlockSparse(plan) => {
                    let parts = plan.parts(&mut layout, args.bounds);
                    index.block_sparse = Some(plan.launch(stream, &input, &parts, &args.workspace)?);
                }
                Kind::Flex(plan, _) => {
                    let parts = plan.parts(&mut layout, args.bounds);
                    index.flex = Some(plan.launch(stream, &input, &parts, &args.workspace)?);
                }
            }
        }
        if let Some(turns) = self.turns(&mut layout) {
            let turns = args.workspace.tensor(turns, DType::U32, &[1])?;
            stream.fill(turns.address(), 0, 4)?;
            index.turns = Some(turns);
        }
        Ok(index)
    }

    /// Computes the attention of all heads with an index from [`SparsePrefill::plan`], or from the caller's own tensors.
    ///
    /// # Errors
    /// [`Error::Tensor`], [`Error::Setting`] and [`Error::Index`], before anything is launched.
    pub fn run(&self, stream: &Stream, args: &RunArgs<'_>, index: &Index<'_>) -> Result<(), Error> {
        self.check_heads("q", heads_of(&args.q), self.heads)?;
        self.check_heads("k", heads_of(&args.k.tensor()), self.kv_heads)?;
        let mut launches = Vec::new();
        for group in &self.groups {
            launches.extend(self.launches(group, args, index)?);
        }
        // All are checked before the first is launched.
        for (attention, args) in &launches {
            attention.prepare(args)?;
        }
        launches.iter().try_for_each(|(attention, args)| attention.run(stream, args))
    }

    /// The launches of one group.
    fn launches<'a>(
        &'a self,
        group: &'a Group,
        args: &RunArgs<'a>,
        index: &Index<'a>,
    ) -> Result<Vec<(&'a Attention, AttentionArgs<'a>)>, Error> {
        let heads = u64::from(group.heads);
        let map = group.head_map.as_ref();
        let map = map.map(|map| TensorView::new(map, DType::U32, &[heads])).transpose()?;
        let missing = |pattern| Error::Index {
            message: format!("has no {pattern} part, which this layer needs; plan it, or add one"),
        };
        let own = &group.attention;
        let dense = index.planned_keys.and_then(|keys| group.dense_under(keys));
        let parts = match &group.kind {
            _ if dense.is_some() => dense.map(|dense| (dense, map, Selection::Dense)).into_iter().collect(),
            Kind::Dense => vec![(own, map, Selection::Dense)],
            Kind::Windows(sizes, count) => {
                let sizes = TensorView::new(sizes, DType::U32, &[heads, *count])?;
                vec![(own, map, Selection::Windows(sizes))]
            }
            Kind::VerticalSlash(..) => {
                let index = index.vertical_slash.ok_or_else(|| missing("vertical-slash"))?;
                vec![(own, map, Selection::VerticalSlash(index))]
            }
            Kind::BlockSparse(_) => {
                let index = index.block_sparse.ok_or_else(|| missing("block-sparse"))?;
                vec![(own, map, Selection::BlockSparse(index))]
            }
            Kind::Flex(_, other) => {
                let index = index.flex.ok_or_else(|| missing("flex"))?;
                let columns = Selection::VerticalSlash(index.vertical_slash());
                let blocks = Selection::BlockSparse(index.block_sparse());
                vec![
                    (own, Some(index.vertical_slash_heads()), columns),
                    (other, Some(index.block_sparse_heads()), blocks),
                ]
            }
        };
        let status = TensorView::new(&self.status, DType::U32, &[1])?;
        let launch = |(attention, heads, selection)| {
            let args = AttentionArgs {
                q: args.q,
                k: args.k,
                v: args.v,
                out: args.out,
                lse: args.lse,
                lengths: args.lengths,
                bounds: args.bounds,
                heads,
                selection,
                scale: self.scale,
                softcap: self.softcap,
                side: &[],
                status: Some(status),
                turns: index.turns,
            };
            (attention, args)
        };
        Ok(parts.into_iter().map(launch).collect())
    }

    /// What the device had to work around since this was last called. The one call that waits.
    pub fn status(&self, stream: &Stream) -> Result<Status, Error> {
        let bits = self.status.read::<u32>(stream)?.first().copied().unwrap_or(0);
        if bits != 0 {
            self.status.write(stream, &[0u32])?;
        }
        Ok(Status::from_bits(bits))
    }

    fn check_heads(&self, name: &'static str, given: u32, needed: u32) -> Result<(), Error> {
        if given == needed {
            return Ok(());
        }
        Err(tensor_error(name, format!("has {given} heads; the layer was built for {needed}")))
    }
}

/// The size of the dimension before the last.
fn heads_of(view: &TensorView<'_>) -> u32 {
    let shape = view.shape();
    shape.len().checked_sub(2).map_or(0, |heads| shape[heads].min(u64::from(u32::MAX)) as u32)
}
