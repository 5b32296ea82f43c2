//! One attention kernel: [`AttentionKernel`] is its text, [`Attention`] the same loaded on a device.

use crate::{
    Arguments, Bounds, DType, Device, Error, KvLayout, KvView, Lengths, LoadedKernel, Stream, TensorView,
    batch::{Batch, Row},
    index::{BlockSparseIndex, VerticalSlashIndex},
    operands::{Given, Operands},
    tensor::tensor_error,
    texts::Texts,
};
use ptx::{
    Arch, KernelMeta, ParameterKind,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Partition, Pattern},
};
use std::ffi::CStr;

/// What is known of a kernel before launch, beside its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionFacts {
    /// Which pairs it visits.
    pub pattern: Pattern,
    /// Query rows and keys of a tile.
    pub block: (u32, u32),
    /// Elements of a head.
    pub head_dim: u32,
    /// Type of queries, keys, values and output.
    pub dtype: MmaType,
    /// A query sees no key after its own position.
    pub causal: bool,
    /// It has a soft-cap.
    pub softcap: bool,
    /// Where keys and values lie.
    pub kv: KvLayout,
}

impl From<&AttentionSpec> for AttentionFacts {
    fn from(spec: &AttentionSpec) -> AttentionFacts {
        let AttentionSpec { pattern, block, head_dim, dtype, causal, softcap, kv, .. } = *spec;
        AttentionFacts { pattern, block, head_dim, dtype, causal, softcap, kv }
    }
}

/// An attention kernel: its text for one or more architectures. From `attention!`, which embeds the text in the program, or
/// from [`AttentionKernel::generate`] at run time; the same specification gives the same text.
#[derive(Clone, Debug)]
pub struct AttentionKernel {
    facts: AttentionFacts,
    texts: Texts,
}

impl AttentionKernel {
    /// What `attention!` expands to: a text with its launch facts for each architecture.
    pub const fn embedded(facts: AttentionFacts, texts: &'static [(&'static CStr, KernelMeta)]) -> AttentionKernel {
        AttentionKernel { facts, texts: Texts::Embedded(texts) }
    }

    /// Generates the kernel that `spec` describes.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong with it.
    pub fn generate(spec: &AttentionSpec) -> Result<AttentionKernel, Error> {
        AttentionKernel::generate_for(spec, &[spec.arch])
    }

    /// Generates the kernel that `spec` describes for each of `archs`, whatever its own architecture: one call runs on any
    /// of them.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong with it on any architecture. Its block must be generated for all.
    /// [`Error::Setting`] for a kernel whose blocks share keys.
    pub fn generate_for(spec: &AttentionSpec, archs: &[Arch]) -> Result<AttentionKernel, Error> {
        if spec.partition != Partition::Rows {
            let message = "is by keys, which leaves parts to merge; use DecodeAttention, or share out rows";
            return Err(Error::Setting { setting: "partition", message: message.into() });
        }
        let specs: Vec<_> = archs.iter().map(|&arch| AttentionSpec { arch, ..spec.clone() }).collect();
        Ok(AttentionKernel { facts: spec.into(), texts: Texts::generated(ptx::generate_all(&specs)?)? })
    }

    /// What it computes.
    pub fn facts(&self) -> AttentionFacts {
        self.facts
    }

    /// The texts, with their launch facts: one for each architecture.
    pub fn texts(&self) -> impl Iterator<Item = (&CStr, &KernelMeta)> {
        self.texts.iter()
    }

    /// Loads the text that fits the device best: on Hopper that for `sm_90a` if there is one, elsewhere that for `sm_80`.
    /// May block while the driver compiles it. [`Attention::arch`] says which it was.
    ///
    /// # Errors
    /// [`Error::Architecture`] where the device runs none of them, and what loading answers.
    pub fn build(&self, device: &Device) -> Result<Attention, Error> {
        Ok(Attention { facts: self.facts, kernel: self.texts.load(device)? })
    }

    /// Loads the text for one architecture: the embedded backend runs any, and prefers what most GPUs run, `sm_80`.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such text, [`Error::Architecture`] if the device does not run it.
    pub fn build_for(&self, device: &Device, arch: Arch) -> Result<Attention, Error> {
        Ok(Attention { facts: self.facts, kernel: self.texts.load_for(device, arch)? })
    }
}

/// An attention kernel loaded on a device.
#[derive(Clone)]
pub struct Attention {
    facts: AttentionFacts,
    kernel: LoadedKernel,
}

/// What a head attends to, in the form that its pattern's kernel reads. Arrays by head are counted by the heads of the
/// launch.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// For [`Pattern::Dense`].
    Dense,
    /// For [`Pattern::AShape`] u32 `[heads, 2]`: sink and local window. For [`Pattern::TriShape`] u32 `[heads, 3]`: sink,
    /// local window, last rows.
    Windows(TensorView<'a>),
    /// For [`Pattern::VerticalSlash`].
    VerticalSlash(VerticalSlashIndex<'a>),
    /// For [`Pattern::BlockSparse`].
    BlockSparse(BlockSparseIndex<'a>),
}

/// The tensors and settings of one launch.
///
/// Output equals dense attention under the token mask that pattern and selection stand for; rows without a visible key give
/// zeros and LSE −∞.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Queries, `[batch, seq, heads, head_dim]` or packed `[total, heads, head_dim]`.
    pub q: TensorView<'a>,
    /// Keys.
    pub k: KvView<'a>,
    /// Values.
    pub v: KvView<'a>,
    /// Output, in the shape of the queries.
    pub out: TensorView<'a>,
    /// Natural-log-sum-exp of the scaled scores, f32 `[batch, heads, seq]`, or `[heads, total]` with packed queries.
    pub lse: Option<TensorView<'a>>,
    /// Lengths on the device.
    pub lengths: Lengths<'a>,
    /// Bounds of the lengths; the lengths themselves where the device has none.
    pub bounds: Bounds,
    /// The query heads to compute, u32 `[heads of the launch]`, or of each sequence `[batch, heads of the launch]`, no two of a
    /// sequence alike; all without it. `u32::MAX` stands for none. One that `q` does not have is skipped and reported in the
    /// status word.
    pub heads: Option<TensorView<'a>>,
    /// What each head attends to.
    pub selection: Selection<'a>,
    /// Factor of the scores, usually `1 / √head_dim`.
    pub scale: f32,
    /// Scores become `softcap · tanh(score / softcap)`; exactly for kernels that have it.
    pub softcap: Option<f32>,
    /// Side buffers of the kernel's expressions, by name.
    pub side: &'a [(&'a str, TensorView<'a>)],
    /// One u32 word into which kernels or bits: see [`Status`](crate::Status). Not cleared.
    pub status: Option<TensorView<'a>>,
    /// One u32 word, which is 0 before the launch and is 0 again after it. With it blocks of kernels that can
    /// ([`AttentionSpec::takes_turns`]) take several row blocks, each when they have done the one before, which is faster, most of all
    /// where row blocks are short. Launches that may run at the same time need words of their own.
    pub turns: Option<TensorView<'a>>,
}

impl<'a> AttentionArgs<'a> {
    /// Dense attention of `[batch, seq, heads, head_dim]` tensors at their full length, scaled by `1 / √head_dim`. Set the
    /// other fields as needed.
    pub fn new(q: TensorView<'a>, k: TensorView<'a>, v: TensorView<'a>, out: TensorView<'a>) -> AttentionArgs<'a> {
        let size = |view: &TensorView<'_>, dimension: usize| {
            view.shape().get(dimension).map_or(0, |size| u32::try_from(*size).unwrap_or(u32::MAX))
        };
        let head_dim = q.shape().last().copied().unwrap_or(1).max(1);
        AttentionArgs {
            q,
            k: k.into(),
            v: v.into(),
            out,
            lse: None,
            lengths: Lengths::default(),
            bounds: Bounds { batch: size(&q, 0), max_q: size(&q, 1), max_kv: size(&k, 1) },
            heads: None,
            selection: Selection::Dense,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            side: &[],
            status: None,
            turns: None,
        }
    }
}

/// Keys and values that row blocks which run at the same time may read: well inside the L2 cache of data-centre GPUs (40 to
/// 50 MB on A100 and H100).
const CACHED_BYTES: u64 = 32 << 20;

impl Attention {
    /// What it computes.
    pub fn facts(&self) -> AttentionFacts {
        self.facts
    }

    /// The architecture of the text that was loaded.
    pub fn arch(&self) -> Arch {
        self.kernel.meta().arch
    }

    /// Whether it has a use for [`AttentionArgs::turns`].
    pub fn takes_turns(&self) -> bool {
        self.kernel.meta().parameters.iter().any(|parameter| parameter.name == "turns")
    }

    /// The loaded kernel.
    pub fn kernel(&self) -> &LoadedKernel {
        &self.kernel
    }

    /// Launches the kernel: no allocation, no waiting; may be captured. Everything that the host can know is checked first.
    pub fn run(&self, stream: &Stream, args: &AttentionArgs<'_>) -> Result<(), Error> {
        let (grid, arguments) = self.prepare(args)?;
        self.kernel.launch(stream, grid, &arguments)
    }

    /// Checks a launch: its grid and its arguments.
    pub(crate) fn prepare(&self, args: &AttentionArgs<'_>) -> Result<([u32; 3], Arguments<'_>), Error> {
        let device = self.kernel.device();
        for view in [args.heads, args.status, args.turns].iter().flatten() {
            view.on(device)?;
        }
        let AttentionArgs { q, k, v, out, lse, lengths, bounds, .. } = *args;
        let row = Row { dtype: self.facts.dtype.into(), head_dim: self.facts.head_dim };
        let given = Given { q, k, v, out, lse, lengths, bounds };
        let operands = Operands::new(device, row, self.facts.kv, given)?;
        let arguments = operands.arguments(&self.kernel, self.facts.dtype)?;
        let (heads, [head_map, head_map_batch]) = launch_heads(&args.heads, operands.q.heads, bounds.batch)?;
        let arguments = arguments
            .u32("heads", operands.q.heads)
            .u32("heads_per_kv", operands.heads_per_kv())
            .pointer("head_map", head_map)
            .u64("head_map_batch", head_map_batch)
            .pointer("status", status(&args.status)?);
        let arguments = self.scale(arguments, args)?;
        let arguments = self.selection(arguments, args, heads)?;
        let arguments = self.side(arguments, args)?;
        let shift = self.slot_shift(heads, operands.heads_per_kv(), args.bounds.max_kv);
        let arguments = arguments.u32("slots", heads).u32("slot_shift", shift);
        let grid = [self.row_blocks(&operands.batch) << shift, heads.div_ceil(1 << shift), args.bounds.batch];
        self.in_turn(grid, arguments, &args.turns)
    }

    /// The grid of blocks that take the places of `grid` in turn, where the kernel has such: as many as run at a time, or as places
    /// if nobody counts them.
    fn in_turn<'m>(
        &self,
        grid: [u32; 3],
        arguments: Arguments<'m>,
        turns: &Option<TensorView<'_>>,
    ) -> Result<([u32; 3], Arguments<'m>), Error> {
        let word = word("turns", turns)?;
        if !self.takes_turns() {
            return Ok((grid, arguments));
        }
        let [places, sections, sequences] = grid;
        let all = grid.into_iter().fold(1u32, |all, extent| all.saturating_mul(extent));
        if all > i32::MAX as u32 {
            return Err(Error::Grid { entry: self.kernel.meta().entry.to_string(), grid: [all, 1, 1] });
        }
        let blocks = if word == 0 { all } else { all.min(self.kernel.device().multiprocessors()) };
        let arguments = arguments.pointer("turns", word);
        let arguments = arguments.u32("places", places).u32("sections", sections).u32("sequences", sequences);
        Ok(([blocks, 1, 1], arguments))
    }

    fn scale<'m>(&self, arguments: Arguments<'m>, args: &AttentionArgs<'_>) -> Result<Arguments<'m>, Error> {
        if !args.scale.is_finite() {
            let message = format!("is {}; it must be finite", args.scale);
            return Err(Error::Setting { setting: "scale", message });
        }
        let arguments = arguments.f32("scale", args.scale);
        match (self.facts.softcap, args.softcap) {
            (true, Some(softcap)) if softcap.is_finite() && softcap > 0.0 => Ok(arguments.f32("softcap", softcap)),
            (false, None) => Ok(arguments),
            (true, given) => {
                let message = format!("is {given:?}; this kernel needs a finite number above 0");
                Err(Error::Setting { setting: "softcap", message })
            }
            (false, Some(given)) => {
                let message = format!("is {given}, but the kernel has none; generate one with softcap = true");
                Err(Error::Setting { setting: "softcap", message })
            }
        }
    }

    fn selection<'m>(
        &self,
        arguments: Arguments<'m>,
        args: &AttentionArgs<'_>,
        heads: u32,
    ) -> Result<Arguments<'m>, Error> {
        let (device, bounds, block) = (self.kernel.device(), args.bounds, self.facts.block);
        match (self.facts.pattern, &args.selection) {
            (Pattern::Dense, Selection::Dense) => Ok(arguments),
            (pattern @ (Pattern::AShape | Pattern::TriShape), Selection::Windows(windows)) => {
                let sizes = if pattern == Pattern::AShape { 2 } else { 3 };
                let wanted = [Some(u64::from(heads)), Some(sizes)];
                windows.on(device)?;
                windows.expect("windows", &[DType::U32], "[heads, window sizes]", &wanted)?;
                windows.expect_contiguous("windows")?;
                Ok(arguments.pointer("windows", windows.address()))
            }
            (Pattern::VerticalSlash, Selection::VerticalSlash(index)) => {
                index.arguments(arguments, device, bounds, heads)
            }
            (Pattern::BlockSparse, Selection::BlockSparse(index)) => {
                index.arguments(arguments, device, bounds, heads, block)
            }
            (pattern, given) => {
                let given = match given {
                    Selection::Dense => "nothing",
                    Selection::Windows(_) => "windows",
                    Selection::VerticalSlash(_) => "a vertical-slash index",
                    Selection::BlockSparse(_) => "a block-sparse index",
                };
                let needed = match pattern {
                    Pattern::Dense => "nothing",
                    Pattern::AShape | Pattern::TriShape => "windows",
                    Pattern::VerticalSlash => "a vertical-slash index",
                    Pattern::BlockSparse => "a block-sparse index",
                };
                Err(Error::Index {
                    message: format!("given {given}; a kernel of pattern {} needs {needed}", pattern.name()),
                })
            }
        }
    }

    fn side<'m>(&self, mut arguments: Arguments<'m>, args: &AttentionArgs<'_>) -> Result<Arguments<'m>, Error> {
        let wanted = |name: &str| {
            let parameters = self.kernel.meta().parameters.iter();
            let mut sides = parameters.filter_map(|p| match p.kind {
                ParameterKind::Side(element) if p.name == name => Some(DType::from(element)),
                _ => None,
            });
            sides.next()
        };
        for (name, view) in args.side {
            let Some(dtype) = wanted(name) else {
                return Err(tensor_error(name.to_string(), "is no side buffer of this kernel; leave it out"));
            };
            if view.dtype() != dtype || !view.address().is_multiple_of(dtype.bytes()) {
                let (given, address) = (view.dtype(), view.address());
                let message = format!("has elements {given:?} at {address:#x}, needs aligned {dtype:?}");
                return Err(tensor_error(name.to_string(), message));
            }
            view.on(self.kernel.device())?;
            arguments = arguments.pointer(name, view.address());
        }
        Ok(arguments)
    }

    /// log2 of the heads whose row blocks take turns in the grid. Causal row blocks differ in length, and come longest first:
    /// with several heads in turn few long ones are left for the end. Others stay one head after the other, as the row
    /// blocks of a head read the same keys; and so no more heads take turns than have theirs in the L2 cache. Vertical-slash row
    /// blocks differ less, and read keys far apart: of those no more take turns than share their keys.
    fn slot_shift(&self, slots: u32, heads_per_kv: u32, max_kv: u32) -> u32 {
        if !self.facts.causal {
            return 0;
        }
        let bytes = 4 * u64::from(max_kv.max(1)) * u64::from(self.facts.head_dim);
        let cached = if self.facts.pattern == Pattern::VerticalSlash { 1 } else { CACHED_BYTES / bytes };
        let heads = cached.max(1) * u64::from(heads_per_kv);
        u32::try_from(heads).unwrap_or(u32::MAX).min(slots).max(1).ilog2()
    }

    /// Row blocks of a head. Vertical-slash row blocks are aligned on absolute positions: where the first query does not stand at
    /// 0, one more may be touched.
    fn row_blocks(&self, batch: &Batch) -> u32 {
        let Bounds { max_q, max_kv, .. } = batch.bounds;
        let blocks = max_q.div_ceil(self.facts.block.0);
        let shifted = self.facts.pattern == Pattern::VerticalSlash && (batch.varies || max_q != max_kv);
        if shifted && blocks > 0 { blocks + 1 } else { blocks }
    }
}

/// How many heads a launch has, the address of its head map, and the bytes from one sequence's to the next.
fn launch_heads(map: &Option<TensorView<'_>>, heads: u32, batch: u32) -> Result<(u32, [u64; 2]), Error> {
    let Some(map) = map else { return Ok((heads, [0; 2])) };
    let by_sequence = map.shape().len() == 2;
    let (shape, wanted) = if by_sequence {
        ("[batch, heads of the launch]", &[Some(u64::from(batch)), None][..])
    } else {
        ("[heads of the launch]", &[None][..])
    };
    map.expect("heads", &[DType::U32], shape, wanted)?;
    let count = map.shape()[wanted.len() - 1];
    let stride = if by_sequence { map.byte_stride(0) } else { 0 };
    match u32::try_from(count) {
        Ok(count) if count <= heads => Ok((count, [map.address(), stride])),
        _ => Err(tensor_error("heads", format!("lists {count} heads; q has {heads}"))),
    }
}

/// The address of a status word.
pub(crate) fn status(view: &Option<TensorView<'_>>) -> Result<u64, Error> {
    word("status", view)
}

/// The address of a word, 0 if there is none.
fn word(name: &'static str, view: &Option<TensorView<'_>>) -> Result<u64, Error> {
    let Some(view) = view else { return Ok(0) };
    view.expect(name, &[DType::U32], "[1]", &[Some(1)])?;
    Ok(view.address())
}
