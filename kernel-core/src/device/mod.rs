//! Devices, streams, buffers and loaded kernels: the raw layer under everything else.
//!
//! A [`Device`] is a CUDA device or, with feature `emulator`, the embedded backend, which runs the same PTX text on the
//! CPU. Both answer to the same calls. Launches are asynchronous on CUDA and done when they return on the embedded
//! backend. Every call works from any thread: the device's context is made current for its duration.

mod arguments;
mod buffer;
mod cache;
mod cuda;
#[cfg(feature = "cust")]
mod cust;
#[cfg(feature = "emulator")]
mod emulator;
mod event;
mod graph;
mod images;
mod kernel;
mod plain;
mod raw;
mod stream;
mod tensor_map;
#[cfg(test)]
mod tests;

pub use arguments::Arguments;
pub use buffer::Buffer;
#[cfg(feature = "emulator")]
pub use emulator::Memory;
pub use event::Event;
pub use graph::Graph;
pub use kernel::LoadedKernel;
pub use plain::Plain;
pub use raw::{DevicePointer, RawStream};
pub use stream::Stream;
pub use tensor_map::{EncodedTensorMap, TensorMap};

use crate::Error;
use kernel::Source;
use ptx::{Arch, Kernel, KernelMeta};
use std::{ffi::CStr, fmt, path::Path, sync::Arc};

/// A GPU, or the embedded backend. Cloning gives another handle to the same device.
#[derive(Clone)]
pub struct Device {
    backend: Backend,
}

#[derive(Clone)]
enum Backend {
    Cuda(Arc<cuda::Context>),
    #[cfg(feature = "emulator")]
    Emulator(Arc<emulator::Emulator>),
}

impl Device {
    /// The CUDA device `ordinal`, in its primary context, which frameworks in the same process share.
    ///
    /// # Errors
    /// [`Error::DriverNotFound`] without a driver, [`Error::NoDevice`] where there is no such GPU,
    /// [`Error::DeviceTooOld`] below compute capability 8.0.
    pub fn cuda(ordinal: usize) -> Result<Device, Error> {
        Ok(Device { backend: Backend::Cuda(cuda::Context::new(ordinal)?) })
    }

    /// A new embedded backend with its own memory.
    #[cfg(feature = "emulator")]
    pub fn emulator() -> Device {
        Device { backend: Backend::Emulator(emulator::Emulator::new()) }
    }

    /// The architecture to generate kernels for.
    pub fn arch(&self) -> Arch {
        match &self.backend {
            Backend::Cuda(context) => context.arch(),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => Arch::Sm80,
        }
    }

    /// The architectures whose text the device runs, the best first.
    pub fn runs(&self) -> &'static [Arch] {
        match &self.backend {
            Backend::Cuda(context) if context.arch() == Arch::Sm80 => &[Arch::Sm80],
            Backend::Cuda(_) => &[Arch::Sm90a, Arch::Sm80],
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => &[Arch::Sm80, Arch::Sm90a],
        }
    }

    /// The device's name, for people.
    pub fn name(&self) -> String {
        match &self.backend {
            Backend::Cuda(context) => context.name.clone(),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => "embedded backend (PTX on the CPU)".into(),
        }
    }

    /// How many multiprocessors it has: a grid of as many blocks keeps all of them busy. The embedded backend has a few, so that
    /// work is shared out there too.
    pub fn multiprocessors(&self) -> u32 {
        match &self.backend {
            Backend::Cuda(context) => context.multiprocessors,
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => emulator::MULTIPROCESSORS,
        }
    }

    /// Whether this is the embedded backend.
    pub fn is_emulator(&self) -> bool {
        !matches!(self.backend, Backend::Cuda(_))
    }

    /// Device memory, not initialised. Allocation is for set-up: plans and runs never do it.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        Buffer::new(self, bytes)
    }

    /// A new buffer that holds `values`.
    pub fn upload<T: Plain>(&self, stream: &Stream, values: &[T]) -> Result<Buffer, Error> {
        let buffer = self.allocate(size_of_val(values))?;
        buffer.write(stream, values)?;
        Ok(buffer)
    }

    /// From now on kernels are loaded from images in `folder`, which `cargo xtask images` fills, where it has one of the
    /// same text for this GPU; `None` compiles every text again. The environment variable `LACUNA_IMAGES` names the folder
    /// of a new device. What is loaded already stays, and handles of one GPU share the setting.
    ///
    /// A missing, damaged or foreign image breaks nothing: the text is compiled, and [`LoadedKernel::compile_log`] begins
    /// with the reason. Images are code, so the folder deserves the trust that the program does. The embedded backend
    /// needs none.
    pub fn use_images(&self, folder: Option<&Path>) {
        match &self.backend {
            Backend::Cuda(context) => context.use_images(folder.map(Path::to_owned)),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => {}
        }
    }

    /// Loads a generated kernel. Blocks while the driver compiles it the first time, which takes about a second for a
    /// large kernel and nothing with an image ([`Device::use_images`]); the same text is loaded once a device. To warm up,
    /// load the kernels that will be needed before the first request, from several threads if there are many.
    ///
    /// # Errors
    /// [`Error::Compile`] with the driver's log, [`Error::Architecture`], [`Error::SharedMemory`].
    pub fn load(&self, kernel: &Kernel) -> Result<LoadedKernel, Error> {
        let Ok(text) = std::ffi::CString::new(kernel.text.as_str()) else {
            let log = "the text contains a NUL character".into();
            return Err(Error::Compile { entry: kernel.meta.entry.to_string(), isa: kernel.meta.isa, driver: 0, log });
        };
        self.load_source(&Source { text: text.into(), meta: &kernel.meta })
    }

    /// Loads a kernel whose text is embedded in the program: as [`Device::load`], without a copy of it.
    pub fn load_embedded(&self, text: &CStr, meta: &KernelMeta) -> Result<LoadedKernel, Error> {
        self.load_source(&Source { text: text.into(), meta })
    }

    fn load_source(&self, source: &Source<'_>) -> Result<LoadedKernel, Error> {
        let module = match &self.backend {
            Backend::Cuda(context) => kernel::Module::Cuda(context.load(source)?),
            #[cfg(feature = "emulator")]
            Backend::Emulator(emulator) => kernel::Module::Emulator(emulator.load(source)?),
        };
        Ok(LoadedKernel::new(self, module, source.meta))
    }

    /// Whether both are handles to one device.
    pub fn same(&self, other: &Device) -> bool {
        match (&self.backend, &other.backend) {
            (Backend::Cuda(a), Backend::Cuda(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "emulator")]
            (Backend::Emulator(a), Backend::Emulator(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "emulator")]
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}
