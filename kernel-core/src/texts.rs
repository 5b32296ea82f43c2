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
    Generated(Arc<[(CString, KernelMeta)]>),
}

impl Texts {
    pub(crate) fn generated(kernels: Vec<Kernel>) -> Result<Texts, Error> {
        let text = |kernel: Kernel| {
            let (entry, isa) = (kernel.meta.entry.to_string(), kernel.meta.isa);
            let text =
                CString::new(kernel.text).map_err(|e| Error::Compile { entry, isa, driver: 0, log: e.to_string() })?;
            Ok((text, kernel.meta))
        };
        Ok(Texts::Generated(kernels.into_iter().map(text).collect::<Result<_, Error>>()?))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&CStr, &KernelMeta)> {
        let (embedded, generated) = match self {
            Texts::Embedded(texts) => (*texts, &[][..]),
            Texts::Generated(texts) => (&[][..], &**texts),
        };
        let embedded = embedded.iter().map(|(text, meta)| (*text, meta));
        embedded.chain(generated.iter().map(|(text, meta)| (&**text, meta)))
    }

    fn of(&self, arch: Arch) -> Option<(&CStr, &KernelMeta)> {
        self.iter().find(|(_, meta)| meta.arch == arch)
    }

    /// Loads the text that fits the device best.
    pub(crate) fn load(&self, device: &Device) -> Result<LoadedKernel, Error> {
        // One that the device does not run is refused when it is loaded.
        let found = device.runs().iter().find_map(|&arch| self.of(arch)).or_else(|| self.iter().next());
        let Some((text, meta)) = found else {
            return Err(Error::Setting { setting: "kernel", message: "has no text; list an architecture".into() });
        };
        device.load_embedded(text, meta)
    }

    /// Loads the text of one architecture.
    pub(crate) fn load_for(&self, device: &Device, arch: Arch) -> Result<LoadedKernel, Error> {
        let Some((text, meta)) = self.of(arch) else {
            let own: Vec<&str> = self.iter().map(|(_, meta)| meta.arch.target()).collect();
            let message = format!("is {}; the kernel has a text for {}", arch.target(), own.join(" and "));
            return Err(Error::Setting { setting: "arch", message });
        };
        device.load_embedded(text, meta)
    }
}
