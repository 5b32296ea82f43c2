//! [`LoadedKernel`]: a kernel ready for launch.

use super::{Arguments, Device, Stream, cuda, stream::Handle};
use crate::Error;
use ptx::KernelMeta;
use std::{borrow::Cow, ffi::CStr, path::Path, sync::Arc};

/// A kernel's text and facts, before it is loaded.
pub(super) struct Source<'a> {
    pub(super) text: Cow<'a, CStr>,
    pub(super) meta: &'a KernelMeta,
}

#[derive(Clone)]
pub(super) enum Module {
    Cuda(Arc<cuda::Module>),
    #[cfg(feature = "emulator")]
    Emulator(Arc<super::emulator::Module>),
}

/// A kernel loaded on one device. Cloning gives another handle.
#[derive(Clone)]
pub struct LoadedKernel {
    module: Module,
    meta: Arc<KernelMeta>,
    /// After `module`: the module goes before its context.
    device: Device,
}

impl LoadedKernel {
    pub(super) fn new(device: &Device, module: Module, meta: &KernelMeta) -> LoadedKernel {
        LoadedKernel { module, meta: Arc::new(meta.clone()), device: device.clone() }
    }

    /// The kernel's launch facts.
    pub fn meta(&self) -> &KernelMeta {
        &self.meta
    }

    /// The device it is loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the driver's compiler said: registers, spills, warnings; before it, why an image was not used. Empty on the
    /// embedded backend.
    pub fn compile_log(&self) -> &str {
        match &self.module {
            Module::Cuda(module) => &module.log,
            #[cfg(feature = "emulator")]
            Module::Emulator(_) => "",
        }
    }

    /// The image that it was loaded from; `None` where its text was compiled.
    pub fn image(&self) -> Option<&Path> {
        match &self.module {
            Module::Cuda(module) => module.image.as_deref(),
            #[cfg(feature = "emulator")]
            Module::Emulator(_) => None,
        }
    }

    /// Enqueues the kernel on `stream`. A grid without blocks is no launch.
    ///
    /// A programmatic kernel may start before the launches in front of it have ended, which it waits for by itself:
    /// [`KernelMeta::programmatic`] says what that asks of the caller. With the environment variable `LACUNA_OVERLAP=0` the
    /// launches of a new device follow one another.
    ///
    /// Device addresses in `arguments` must cover what the kernel accesses until the stream's work is done: the embedded
    /// backend reports a wild access, a GPU does not.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Grid`], [`Error::ForeignDevice`] before anything is launched; [`Error::Driver`]; on
    /// the embedded backend [`Error::Emulator`] with the report of what the kernel did wrong.
    pub fn launch(&self, stream: &Stream, grid: [u32; 3], arguments: &Arguments<'_>) -> Result<(), Error> {
        let parameters = arguments.packed(&self.meta)?;
        if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return Err(Error::Grid { entry: self.meta.entry.to_string(), grid });
        }
        if !stream.device().same(&self.device) {
            return Err(Error::ForeignDevice { what: "kernel" });
        }
        if grid.contains(&0) {
            return Ok(());
        }
        match (&self.module, stream.handle()) {
            (Module::Cuda(module), Handle::Cuda(handle)) => handle.launch(module, grid, &self.meta, parameters),
            #[cfg(feature = "emulator")]
            (Module::Emulator(module), Handle::Emulator(queue)) => queue.launch(module, grid, &self.meta, parameters),
            #[cfg(feature = "emulator")]
            _ => Err(Error::ForeignDevice { what: "kernel" }),
        }
    }
}
