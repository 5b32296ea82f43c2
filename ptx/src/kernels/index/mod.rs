//! Sparse indices, built on the device.
//!
//! **Vertical-slash** (MInference §1.3), three launches for all heads of a layer and all rows of a batch:
//!
//! 1. [`EstimateSpec`] with [`EstimatePass::Statistics`]: row maxima and denominators of the softmax of the last queries,
//!    for each chunk of keys;
//! 2. [`EstimateSpec`] with [`EstimatePass::Scores`]: the sums of that softmax over each key column and each slash;
//! 3. [`VerticalSlashSelectSpec`]: the highest columns and slashes of each head, written as the attention kernel reads
//!    them: ascending columns and ascending offsets of blocks, with their counts.
//!
//! **Block-sparse** by pooled queries and keys (MInference, block-sparse heads), two launches: [`KeyMeansSpec`], then
//! [`BlockSparseSelectSpec`], which writes FlexAttention's partial tensors.
//!
//! **Block-sparse** by antidiagonal sums (XAttention), two launches for each slice of row blocks: [`AntidiagonalSumsSpec`],
//! then [`AntidiagonalSelectSpec`], which writes the same tensors. [`antidiagonal`] has the definition.
//!
//! **A choice** between the two for each head of each sequence (FlexPrefill), one launch more: [`PatternChoiceSpec`] compares
//! what the estimate has found with what pooled keys would say, and writes a head map for either selection.
//!
//! **Compatibility**: [`MergedRangesSpec`] turns lists of columns and slashes into the four tensors of the authors' own
//! vertical-slash index.
//!
//! Nothing of size rows × budget is stored but the block-sparse result and the authors' tensors. Every sum has a fixed order, ties go to the
//! lowest index, and what a sequence gets depends on its own lengths and data alone. [`workspace`] has the sizes.

pub mod antidiagonal;
mod block_sparse;
mod choice;
mod cover;
mod estimate;
mod lists;
mod means;
mod merged_ranges;
mod vertical_slash;
pub mod workspace;

#[cfg(test)]
mod tests;

pub use crate::tile::share::share;
pub use antidiagonal::{AntidiagonalSelectSpec, AntidiagonalSumsSpec};
pub use block_sparse::{BlockSparseSelectSpec, FORCE_DIAGONAL, FORCE_SINK};
pub use choice::PatternChoiceSpec;
pub use estimate::{EstimatePass, EstimateSpec};
pub use means::KeyMeansSpec;
pub use merged_ranges::{MERGED_BLOCK, MERGED_ROW_BLOCKS, MergeRule, MergedRangesSpec};
pub use vertical_slash::VerticalSlashSelectSpec;

use crate::{
    SpecError,
    isa::{Arch, Builder, R32},
};

/// Head dimensions that the index kernels are generated for.
const HEAD_DIMS: [u32; 3] = [64, 96, 128];
/// Block sizes of the attention kernels.
const BLOCKS: [u32; 3] = [32, 64, 128];

fn check_head_dim(errors: &mut Vec<SpecError>, head_dim: u32) {
    if !HEAD_DIMS.contains(&head_dim) {
        errors.push(SpecError::new("head_dim", format!("{head_dim} is not supported; use 64, 96 or 128")));
    }
}

/// Most key blocks of a sequence: a selection holds 4 bytes of each in shared memory.
const MAX_KEY_BLOCKS: u32 = 32768;

fn check_key_blocks(errors: &mut Vec<SpecError>, key_blocks: u32) {
    if !(1..=MAX_KEY_BLOCKS).contains(&key_blocks) {
        errors.push(SpecError::new(
            "key_blocks",
            format!("{key_blocks} is out of range; scores are held in shared memory: use 1 to {MAX_KEY_BLOCKS}"),
        ));
    }
}

/// `⌈value / unit⌉`, of a power of two.
fn ceil_shift(k: &mut Builder, value: R32, unit: u32) -> R32 {
    let up = k.add(value, unit - 1);
    k.shr_u(up, unit.ilog2())
}

fn check_block(errors: &mut Vec<SpecError>, field: &'static str, what: &str, block: u32) {
    if !BLOCKS.contains(&block) {
        errors.push(SpecError::new(field, format!("{block} {what} are not supported; use 32, 64 or 128")));
    }
}

/// Most index kernels have one text, of instructions that every architecture since Ampere has.
fn check_arch(errors: &mut Vec<SpecError>, arch: Arch) {
    if arch != Arch::Sm80 {
        errors.push(SpecError::new(
            "arch",
            format!("this kernel is generated for sm_80, not {}; that text runs on every later GPU", arch.target()),
        ));
    }
}
