//! The row kernel as a value: embedded by `sampler!`, or generated.

use crate::{Error, texts::Texts};
use ptx::{
    KernelMeta,
    kernels::sampling::{Confidence, LogitsType, SamplerSpec},
};
use std::ffi::CStr;

/// The row kernel: statistics, token and confidence of every listed row. From `sampler!`, or from
/// [`SamplerKernel::generate`] at run time.
#[derive(Clone, Debug)]
pub struct SamplerKernel {
    pub(super) logits: LogitsType,
    confidence: Confidence,
    pub(super) texts: Texts,
}

impl SamplerKernel {
    /// What `sampler!` expands to: a text with its launch facts for each architecture.
    pub const fn embedded(
        logits: LogitsType,
        confidence: Confidence,
        texts: &'static [(&'static CStr, KernelMeta)],
    ) -> SamplerKernel {
        SamplerKernel { logits, confidence, texts: Texts::Embedded(texts) }
    }

    /// Generates the kernel that `spec` describes.
    pub fn generate(spec: &SamplerSpec) -> Result<SamplerKernel, Error> {
        let texts = Texts::generated(vec![ptx::generate(spec)?])?;
        Ok(SamplerKernel { logits: spec.dtype, confidence: spec.confidence, texts })
    }

    /// Type of the logits.
    pub fn logits(&self) -> LogitsType {
        self.logits
    }

    /// What it calls confidence.
    pub fn confidence(&self) -> Confidence {
        self.confidence
    }

    /// The texts, with their launch facts: one for each architecture.
    pub fn texts(&self) -> impl Iterator<Item = (&CStr, &KernelMeta)> {
        self.texts.iter()
    }
}
