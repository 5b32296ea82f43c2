//! The attention kernels that every program carries: bf16, causal, without soft-cap, for heads of 64 and 128 — what
//! LLaMA, Qwen and the diffusion models built on them have — and dense kernels without the causal mask, for the response of
//! a diffusion model. Any other shape is generated at run time, by the same function.

use crate::{AttentionFacts, AttentionKernel, attention};

macro_rules! embedded {
    ($($pattern:ident $block:tt causal = $causal:literal;)*) => {
        &[$(
            attention!(pattern = $pattern, block = $block, head_dim = 64, dtype = bf16, causal = $causal),
            attention!(pattern = $pattern, block = $block, head_dim = 128, dtype = bf16, causal = $causal),
        )*]
    };
}

/// The embedded kernels.
pub static KERNELS: &[AttentionKernel] = embedded! {
    dense (128, 64) causal = true;
    dense (128, 64) causal = false;
    a_shape (128, 64) causal = true;
    tri_shape (128, 64) causal = true;
    vertical_slash (64, 64) causal = true;
    block_sparse (64, 64) causal = true;
};

/// The embedded kernel with these facts, if there is one. None of them has expressions.
pub fn kernel(facts: AttentionFacts) -> Option<&'static AttentionKernel> {
    KERNELS.iter().find(|kernel| kernel.facts() == facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptx::{Arch, kernels::attention::AttentionSpec};

    #[test]
    fn the_macro_and_the_generator_agree() {
        assert_eq!(KERNELS.len(), 12);
        for kernel in KERNELS {
            let facts = kernel.facts();
            let mut spec = AttentionSpec::new(facts.pattern, facts.block, facts.head_dim, facts.dtype, Arch::Sm80);
            spec.causal = facts.causal;
            let generated = ptx::generate(&spec).unwrap();
            let (text, meta) = kernel.texts().next().unwrap();
            assert_eq!((text.to_str().unwrap(), meta), (&*generated.text, &generated.meta));
            assert_eq!(facts, AttentionFacts::from(&spec));
        }
    }
}
