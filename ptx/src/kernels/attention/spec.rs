//! What an attention kernel computes.

use super::{
    expr::{Expr, ExprType, SideBuffer, Variable},
    problem::{self, Parameters},
    sm80, sm90,
    tiling::Tiling,
};
use crate::{
    image::fnv1a,
    isa::{Arch, Builder, Launch, MmaType},
    kernels::{
        KernelSpec,
        error::{SpecError, SpecErrors},
        meta::Kernel,
    },
};

pub use crate::kernels::kv::KvLayout;

/// Which (query, key) pairs a kernel visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// All of them.
    Dense,
    /// A sink and a local window per head (StreamingLLM; MInference §1.1).
    AShape,
    /// An A-shape whose last rows are dense (MInference §1.2).
    TriShape,
    /// Key columns, and blocks along slashes, per (batch, head) (MInference §1.3).
    VerticalSlash,
    /// Key blocks per (batch, head, row block), in FlexAttention's four tensors.
    BlockSparse,
}

/// How the work of a sequence is shared out among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Partition {
    /// A block has rows of one query head, and all of their keys: for many rows a sequence, as in prefill.
    Rows,
    /// A block has rows of all query heads that share keys, the heads in turn, and a part of the keys: for few rows a sequence
    /// and many keys, as in decoding (FlashDecoding). The parts are merged by a kernel of their own ([`MergeSpec`]).
    ///
    /// [`MergeSpec`]: super::MergeSpec
    Keys,
}

/// An attention kernel. What is not here (lengths, strides, scale, indices) is a parameter of the launch.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Which pairs are visited.
    pub pattern: Pattern,
    /// Query rows of a tile, and keys of a block of the index. sm_80: rows 64 or 128, keys 32, 64 or 128, and a tile is one
    /// block. sm_90a: rows 128 (or 192 at head_dim 64), keys 64 or 128, and a tile is one block of 128 or two of 64; at
    /// head_dim 256 keys are 64 and a tile is one block. Vertical-slash: rows are a multiple of keys, on sm_90a (128, 64).
    pub block: (u32, u32),
    /// Elements of a head: 64, 96 or 128; on sm_90a also 256 for dense.
    pub head_dim: u32,
    /// Type of queries, keys, values and output.
    pub dtype: MmaType,
    /// Architecture of the text.
    pub arch: Arch,
    /// A query sees no key after its own position.
    pub causal: bool,
    /// Scores become `softcap · tanh(score / softcap)` before the softmax.
    pub softcap: bool,
    /// Where keys and values lie.
    pub kv: KvLayout,
    /// How the work is shared out. By keys: dense or block-sparse, without causality and expressions, and on sm_90a in tiles of
    /// 128 rows.
    pub partition: Partition,
    /// Replaces a scaled score: an expression of the score, positions, head and side buffers.
    pub score: Option<Expr>,
    /// Keeps a pair: a condition on positions, head and side buffers. Full blocks of a block-sparse index skip it.
    pub mask: Option<Expr>,
    /// Device arrays that the expressions read, in the order of the launch arguments.
    pub side: Vec<SideBuffer>,
}

impl AttentionSpec {
    /// A causal kernel without expressions over strided keys and values.
    pub fn new(pattern: Pattern, block: (u32, u32), head_dim: u32, dtype: MmaType, arch: Arch) -> AttentionSpec {
        AttentionSpec {
            pattern,
            block,
            head_dim,
            dtype,
            arch,
            causal: true,
            softcap: false,
            kv: KvLayout::Strided,
            partition: Partition::Rows,
            score: None,
            mask: None,
            side: Vec::new(),
        }
    }
}

impl Pattern {
    /// Name, as the macro spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Pattern::Dense => "dense",
            Pattern::AShape => "a_shape",
            Pattern::TriShape => "tri_shape",
            Pattern::VerticalSlash => "vertical_slash",
            Pattern::BlockSparse => "block_sparse",
        }
    }

    /// Whether the pattern is defined for causal attention only.
    pub const fn needs_causal(self) -> bool {
        matches!(self, Pattern::AShape | Pattern::TriShape | Pattern::VerticalSlash)
    }
}

impl AttentionSpec {
    /// Name of the kernel's entry point: readable, and another for every other spec.
    pub fn entry(&self) -> String {
        let (m, n) = self.block;
        let mut name = format!("attention_{}_m{m}n{n}_d{}_{}", self.pattern.name(), self.head_dim, self.dtype.suffix());
        name += if self.causal { "_causal" } else { "_full" };
        if self.softcap {
            name += "_softcap";
        }
        if self.score.is_some() || self.mask.is_some() || !self.side.is_empty() {
            name += &format!("_{:016x}", self.expression_hash());
        }
        if self.partition == Partition::Keys {
            name += "_split";
        }
        name + &self.kv.suffix() + "_" + self.arch.target()
    }

    /// FNV-1a over the expressions, in their written form.
    fn expression_hash(&self) -> u64 {
        let text = format!("{:?} {:?} {:?}", self.score, self.mask, self.side);
        fnv1a(&[text.as_bytes()])
    }

    fn check_block(&self, errors: &mut Vec<SpecError>) {
        let (m, n) = self.block;
        let (rows, keys): (&[u32], &[u32]) = match (self.arch, self.head_dim) {
            (Arch::Sm80, _) => (&[64, 128], &[32, 64, 128]),
            (Arch::Sm90a, 64) if n == 128 => (&[128, 192], &[64, 128]),
            (Arch::Sm90a, 256) => (&[128], &[64]),
            (Arch::Sm90a, _) => (&[128], &[64, 128]),
        };
        if !rows.contains(&m) || !keys.contains(&n) {
            let list = |sizes: &[u32]| sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ");
            let message = format!(
                "({m}, {n}) is not generated for {} at head_dim {}; rows are {} and keys {}",
                self.arch.target(),
                self.head_dim,
                list(rows),
                list(keys)
            );
            errors.push(SpecError::new("block", message));
            return;
        }
        // Each consumer of Hopper has a group of rows of its own.
        let fits = if self.arch == Arch::Sm90a { (m, n) == (128, 64) } else { m % n == 0 && m / n <= 2 };
        if self.pattern == Pattern::VerticalSlash && !fits {
            let (needed, such) = match self.arch {
                Arch::Sm80 => ("as many rows as keys or twice as many, such as", (rows[0], rows[0].min(n))),
                Arch::Sm90a => ("a group of 64 rows for each consumer:", (128, 64)),
            };
            let message = format!("({m}, {n}): vertical_slash needs {needed} {such:?}");
            errors.push(SpecError::new("block", message));
            return;
        }
        let (needed, limit) = (Tiling::of(self).shared_bytes(), self.arch.shared_limit());
        if needed > limit {
            let message = format!(
                "({m}, {n}) with head_dim {} needs {needed} bytes of shared memory, of which {} has {limit}; use ({m}, {})",
                self.head_dim,
                self.arch.target(),
                n / 2
            );
            errors.push(SpecError::new("block", message));
        }
    }

    fn check_head_dim(&self, errors: &mut Vec<SpecError>) {
        let allowed = match self.arch {
            Arch::Sm80 => "64, 96 or 128",
            Arch::Sm90a => "64, 96, 128 or, for dense, 256",
        };
        let dense_on_hopper = self.arch == Arch::Sm90a && self.pattern == Pattern::Dense;
        if [64, 96, 128].contains(&self.head_dim) || self.head_dim == 256 && dense_on_hopper {
            self.check_block(errors);
        } else {
            let (head_dim, target) = (self.head_dim, self.arch.target());
            let message = format!("{head_dim} is not generated for {target}; use {allowed} (pad a smaller head)");
            errors.push(SpecError::new("head_dim", message));
        }
    }

    /// What a kernel that shares out keys cannot be.
    fn check_partition(&self, errors: &mut Vec<SpecError>) {
        if self.partition == Partition::Rows {
            return;
        }
        let mut refuse = |wrong: bool, field, message: String| {
            if wrong {
                errors.push(SpecError::new(field, message));
            }
        };
        let pattern = self.pattern.name();
        let listed = matches!(self.pattern, Pattern::Dense | Pattern::BlockSparse);
        refuse(!listed, "pattern", format!("{pattern} is not shared out by keys; use dense or block_sparse"));
        let message = "queries of a block of tokens see one another; set causal = false to share out keys";
        refuse(self.causal, "causal", message.into());
        let message = "rows of several heads know no positions; leave expressions out to share out keys";
        refuse(self.score.is_some() || self.mask.is_some(), "partition", message.into());
        let hopper = self.arch == Arch::Sm90a;
        let message = format!("({}, {}) is not shared out by keys; rows are 128", self.block.0, self.block.1);
        refuse(hopper && self.block.0 == 192, "block", message);
        refuse(self.head_dim == 256, "head_dim", "256 is not shared out by keys; use 64, 96 or 128".into());
    }

    fn check_expression(&self, field: &'static str, expr: &Expr, expected: ExprType, errors: &mut Vec<SpecError>) {
        match expr.type_of(&self.side) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                errors.push(SpecError::new(field, format!("must be {expected}, but the expression is {found}")))
            }
            Err(message) => errors.push(SpecError::new(field, message)),
        }
    }

    fn check_side(&self, errors: &mut Vec<SpecError>) {
        for (i, SideBuffer { name, .. }) in self.side.iter().enumerate() {
            let mut characters = name.chars();
            let identifier = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
                && name != "_";
            if !identifier {
                let message = format!("`{name}` is no identifier; use ASCII letters, digits and `_`, a letter first");
                errors.push(SpecError::new("side", message));
            } else if problem::is_reserved(name) {
                errors
                    .push(SpecError::new("side", format!("`{name}` is a parameter of the kernel; rename the buffer")));
            } else if self.side[..i].iter().any(|other| other.name == *name) {
                errors.push(SpecError::new("side", format!("`{name}` is declared twice")));
            }
        }
    }
}

impl AttentionSpec {
    /// Whether blocks may take several row blocks in turn, as those of most `sm_90a` kernels of strided keys do. The grid has blocks
    /// along x alone; `places`, `sections` and `sequences` (u32) say what it would have along x, y and z, and `turns` points to a word,
    /// 0 before and after, where blocks ask for the next place. Without it (a pointer of 0) there is a block for each place.
    pub fn takes_turns(&self) -> bool {
        // The others have no registers for it.
        let narrow = self.pattern == Pattern::BlockSparse && Tiling::of(self).warps > 8;
        self.arch == Arch::Sm90a && self.partition == Partition::Rows && self.kv == KvLayout::Strided && !narrow
    }
}

impl KernelSpec for AttentionSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        self.check_head_dim(&mut errors);
        if self.pattern.needs_causal() && !self.causal {
            let message = format!("{} is defined for causal attention only; set causal = true", self.pattern.name());
            errors.push(SpecError::new("causal", message));
        }
        self.kv.check(&mut errors);
        self.check_partition(&mut errors);
        if let Some(score) = &self.score {
            self.check_expression("score", score, ExprType::F32, &mut errors);
        }
        if let Some(mask) = &self.mask {
            self.check_expression("mask", mask, ExprType::Bool, &mut errors);
            if mask.any(&|e| matches!(e, Expr::Variable(Variable::Score))) {
                errors.push(SpecError::new(
                    "mask",
                    "a mask does not see the score; use positions, head and side buffers",
                ));
            }
        }
        self.check_side(&mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let tiling = Tiling::of(self);
        let blocks_per_multiprocessor = tiling.blocks_per_multiprocessor();
        let launch = Launch { threads: tiling.threads(), blocks_per_multiprocessor };
        let mut builder = Builder::new(self.arch, self.entry(), launch);
        let k = &mut builder;
        let parameters = Parameters::declare(k, self);
        match self.arch {
            Arch::Sm80 => {
                let problem = parameters.of_block(k, self);
                sm80::attend(k, self, &problem);
            }
            Arch::Sm90a => sm90::attend(k, self, &parameters),
        }
        k.ret();
        builder.finish()
    }
}
