//! The texts of one kernel, one for each architecture: embedded in the program or generated at run time.

use crate::{Device, Error, LoadedKernel};
use ptx::{Arch, Kernel, KernelMeta};
use std::{
    ffi::{CStr, CString},
    sync::Arc,
};

#[derive(Clone, Debug)]
pub(crate) enum Texts {
    Embedded(&'static [(&'static CStr, KernelMeta)]),
    Generated(Arc<(CString, KernelMeta)>),
}

impl Texts {
    pub(crate) fn generated(kernel: Kernel) -> Result<Texts, Error> {
        let (entry, isa) = (kernel.meta.entry.to_string(), kernel.meta.isa);
        let text =
            CString::new(kernel.text).map_err(|e| Error::Compile { entry, isa, driver: 0, log: e.to_string() })?;
        Ok(Texts::Generated(Arc::new((text, kernel.meta))))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&CStr, &KernelMeta)> {
        let (embedded, generated) = match self {
            Texts::Embedded(texts) => (*texts, None),
            Texts::Generated(text) => (&[][..], Some((&*text.0, &text.1))),
        };
        embedded.iter().map(|(text, meta)| (*text, meta)).chain(generated)
    }

    /// Loads the text that fits the device best.
    pub(crate) fn load(&self, device: &Device) -> Result<LoadedKernel, Error> {
        let of = |arch| self.iter().find(|(_, meta)| meta.arch == arch);
        let found = of(device.arch()).or_else(|| of(Arch::Sm80)).or_else(|| self.iter().next());
        let Some((text, meta)) = found else {
            return Err(Error::Setting { setting: "kernel", message: "has no text; list an architecture".into() });
        };
        device.load_embedded(text, meta)
    }
}
