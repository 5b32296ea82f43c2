//! The attention kernels that every program carries: bf16, causal, without soft-cap, for heads of 64 and 128 — what
//! LLaMA, Qwen and the diffusion models built on them have — and dense kernels without the causal mask, for the response of
//! a diffusion model. Any other shape is generated at run time, by the same function.
//!
//! A text has about 100 KB. The rarest pattern, tri-shape, is left to run time on Hopper.

use crate::{AttentionFacts, AttentionKernel, attention};
use ptx::{Arch, kernels::attention::Pattern};

macro_rules! embedded {
    ($($arch:ident $pattern:ident $at_64:tt $at_128:tt causal = $causal:literal;)*) => {
        &[$(
            attention!(
                pattern = $pattern, block = $at_64, head_dim = 64, dtype = bf16, arch = [$arch], causal = $causal
            ),
            attention!(
                pattern = $pattern, block = $at_128, head_dim = 128, dtype = bf16, arch = [$arch], causal = $causal
            ),
        )*]
    };
}

/// The embedded kernels, each for one architecture: the best tiles differ.
pub static KERNELS: &[AttentionKernel] = embedded! {
    sm_80 dense (128, 64) (128, 64) causal = true;
    sm_80 dense (128, 64) (128, 64) causal = false;
    sm_80 a_shape (128, 64) (128, 64) causal = true;
    sm_80 tri_shape (128, 64) (128, 64) causal = true;
    sm_80 vertical_slash (64, 64) (64, 64) causal = true;
    sm_80 block_sparse (64, 64) (64, 64) causal = true;
    sm_90a dense (192, 128) (128, 128) causal = true;
    sm_90a dense (192, 128) (128, 128) causal = false;
    sm_90a a_shape (192, 128) (128, 128) causal = true;
    sm_90a vertical_slash (128, 64) (128, 64) causal = true;
    sm_90a block_sparse (128, 64) (128, 64) causal = true;
};

/// The embedded kernel with these facts and a text for `arch`, if there is one. None of them has expressions.
pub fn kernel(facts: AttentionFacts, arch: Arch) -> Option<&'static AttentionKernel> {
    let fits = |kernel: &&AttentionKernel| kernel.facts() == facts && kernel.texts().any(|(_, meta)| meta.arch == arch);
    KERNELS.iter().find(fits)
}

/// The tile with which kernels of a pattern are fastest: query rows, and keys of a block of the index. Small ones where
/// each row block selects its own keys.
pub const fn block(pattern: Pattern, head_dim: u32, arch: Arch) -> (u32, u32) {
    let selects = matches!(pattern, Pattern::VerticalSlash | Pattern::BlockSparse);
    match (arch, head_dim) {
        (Arch::Sm80, _) if selects => (64, 64),
        (Arch::Sm80, _) => (128, 64),
        (Arch::Sm90a, _) if selects => (128, 64),
        // Three consumers, whose products are short.
        (Arch::Sm90a, 64) => (192, 128),
        // All that the output leaves room for.
        (Arch::Sm90a, 256) => (128, 64),
        (Arch::Sm90a, _) => (128, 128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::kernels::attention::AttentionSpec;

    #[test]
    fn the_macro_and_the_generator_agree() {
        assert_eq!(KERNELS.len(), 12 + 10);
        for kernel in KERNELS {
            let facts = kernel.facts();
            let (text, meta) = kernel.texts().next().unwrap();
            assert_eq!(facts.block, block(facts.pattern, facts.head_dim, meta.arch), "{}", meta.entry);
            let mut spec = AttentionSpec::new(facts.pattern, facts.block, facts.head_dim, facts.dtype, meta.arch);
            spec.causal = facts.causal;
            let generated = ptx::generate(&spec).unwrap();
            assert_eq!((text.to_str().unwrap(), meta), (&*generated.text, &generated.meta));
            assert_eq!(facts, AttentionFacts::from(&spec));
            assert_eq!(super::kernel(facts, meta.arch).map(|found| found.texts().count()), Some(1));
        }
    }
}
