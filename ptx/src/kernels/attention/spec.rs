//! What an attention kernel computes.

use super::expr::{Expr, SideBuffer};
use crate::isa::{Arch, MmaType};

/// Which (query, key) pairs a kernel visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// All of them.
    Dense,
    /// A sink and a local window per head (StreamingLLM; MInference §1.1).
    AShape,
    /// An A-shape whose last rows are dense (MInference §1.2).
    TriShape,
    /// Key columns and block diagonals per (batch, head) (MInference §1.3).
    VerticalSlash,
    /// Key blocks per (batch, head, row block), in FlexAttention's four tensors.
    BlockSparse,
}

/// Where keys and values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// By strides: `[batch, seq, heads, head_dim]`, or packed `[total, heads, head_dim]` with starting rows.
    Strided,
    /// In pages of this many tokens, found through a page table. Not generated yet.
    Paged {
        /// Tokens a page.
        page: u32,
    },
}

/// An attention kernel. What is not here (lengths, strides, scale, indices) is a parameter of the launch.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Which pairs are visited.
    pub pattern: Pattern,
    /// Query rows and keys of a tile: rows 64 or 128, keys 32, 64 or 128.
    pub block: (u32, u32),
    /// Elements of a head: 64, 96 or 128.
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
            score: None,
            mask: None,
            side: Vec::new(),
        }
    }
}
