//! The row kernel as a value: embedded by `sampler!`, or generated.

use crate::{Error, texts::Texts};
use ptx::{
    Arch, KernelMeta,
    kernels::sampling::{LogitsType, SamplerSpec},
};
use std::ffi::CStr;

/// The row kernel: statistics, token and confidence of every listed row. From `sampler!`, or from
/// [`SamplerKernel::generate`] at run time.
#[derive(Clone, Debug)]
pub struct SamplerKernel {
    pub(super) logits: LogitsType,
    guided: bool,
    pub(super) texts: Texts,
}

impl SamplerKernel {
    /// What `sampler!` expands to: a text with its launch facts for each architecture.
    pub const fn embedded(
        logits: LogitsType,
        guided: bool,
        texts: &'static [(&'static CStr, KernelMeta)],
    ) -> SamplerKernel {
        SamplerKernel { logits, guided, texts: Texts::Embedded(texts) }
    }

    /// Generates the kernel that `spec` describes.
    pub fn generate(spec: &SamplerSpec) -> Result<SamplerKernel, Error> {
        let texts = Texts::generated(vec![ptx::generate(spec)?])?;
        Ok(SamplerKernel { logits: spec.dtype, guided: spec.guided, texts })
    }

    /// Type of the logits.
    pub fn logits(&self) -> LogitsType {
        self.logits
    }

    /// Whether rows are guided by unconditional ones.
    pub fn guided(&self) -> bool {
        self.guided
    }

    /// What its texts were generated from, whatever their architecture.
    pub(super) fn spec(&self) -> SamplerSpec {
        SamplerSpec { dtype: self.logits, guided: self.guided, arch: Arch::Sm80 }
    }

    /// The texts, with their launch facts: one for each architecture.
    pub fn texts(&self) -> impl Iterator<Item = (&CStr, &KernelMeta)> {
        self.texts.iter()
    }
}
