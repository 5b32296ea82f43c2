//! [`Stream`]: work in order.

use super::{Backend, Device, Plain, RawStream, cuda, plain};
use crate::Error;

/// A queue of work on one device.
pub struct Stream {
    handle: Handle,
    /// After `handle`: the stream goes before its context.
    device: Device,
}

pub(super) enum Handle {
    Cuda(cuda::Stream),
    #[cfg(feature = "emulator")]
    Emulator(super::emulator::Queue),
}

impl Stream {
    /// A new stream, destroyed on drop. It does not wait for the default stream.
    pub fn new(device: &Device) -> Result<Stream, Error> {
        let handle = match &device.backend {
            Backend::Cuda(context) => Handle::Cuda(cuda::Stream::new(context)?),
            #[cfg(feature = "emulator")]
            Backend::Emulator(emulator) => Handle::Emulator(super::emulator::Queue::new(emulator)),
        };
        Ok(Stream { handle, device: device.clone() })
    }

    /// The caller's own stream, not destroyed on drop. The embedded backend has no such handles: it ignores `raw` and
    /// gives a new stream.
    ///
    /// # Safety
    /// `raw` is a stream of `device`'s primary context (or null, its default stream) and outlives the value returned.
    pub unsafe fn from_raw(device: &Device, raw: impl Into<RawStream>) -> Stream {
        let handle = match &device.backend {
            Backend::Cuda(context) => Handle::Cuda(cuda::Stream::borrowed(context, raw.into())),
            #[cfg(feature = "emulator")]
            Backend::Emulator(emulator) => Handle::Emulator(super::emulator::Queue::new(emulator)),
        };
        Stream { handle, device: device.clone() }
    }

    /// The device the stream belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `work` with the bare handle, the device's context current on this thread: for other libraries that launch on
    /// the stream. `None` on the embedded backend, which has no such handle.
    pub fn with_raw<R>(&self, work: impl FnOnce(RawStream) -> R) -> Result<Option<R>, Error> {
        match &self.handle {
            Handle::Cuda(stream) => stream.with_raw(work).map(Some),
            #[cfg(feature = "emulator")]
            Handle::Emulator(_) => Ok(None),
        }
    }

    /// Runs `work` on the host in the stream's order: on the embedded backend only, where it stands in for the launches of
    /// another library. A capture records it, and every replay runs it.
    ///
    /// # Errors
    /// What `work` returned; [`Error::ForeignDevice`] on CUDA.
    #[cfg(feature = "emulator")]
    pub fn emulate(
        &self,
        work: impl Fn(&super::Memory<'_>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        match &self.handle {
            Handle::Cuda(_) => Err(Error::ForeignDevice { what: "work of the embedded backend" }),
            Handle::Emulator(queue) => queue.host(std::sync::Arc::new(work)),
        }
    }

    /// Waits until all work on the stream is done. An error may come from any earlier launch.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.forbid_capture("waiting for a stream", "wait before or after it")?;
        match &self.handle {
            Handle::Cuda(stream) => stream.synchronize(),
            #[cfg(feature = "emulator")]
            Handle::Emulator(_) => Ok(()),
        }
    }

    /// Whether a graph is being captured on the stream.
    pub fn is_capturing(&self) -> Result<bool, Error> {
        match &self.handle {
            Handle::Cuda(stream) => stream.is_capturing(),
            #[cfg(feature = "emulator")]
            Handle::Emulator(queue) => Ok(queue.is_capturing()),
        }
    }

    /// An error while a graph is being captured.
    pub(super) fn forbid_capture(&self, what: &'static str, instead: &'static str) -> Result<(), Error> {
        if self.is_capturing()? { Err(Error::Capture { what, instead }) } else { Ok(()) }
    }

    /// `count` values from `address` on, which the caller has checked. Waits.
    pub(crate) fn read<T: Plain>(&self, address: u64, count: usize) -> Result<Vec<T>, Error> {
        self.forbid_capture("copying to the host", "copy after it")?;
        let mut values = plain::zeros::<T>(count);
        let bytes = plain::bytes_mut(&mut values);
        match &self.handle {
            Handle::Cuda(stream) => stream.read(address, bytes)?,
            #[cfg(feature = "emulator")]
            Handle::Emulator(queue) => queue.read(address, bytes)?,
        }
        Ok(values)
    }

    /// Sets `bytes` bytes from `address` on, which the caller has checked, after the stream's earlier work. May be captured.
    pub(crate) fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        match &self.handle {
            Handle::Cuda(stream) => stream.fill(address, byte, bytes),
            #[cfg(feature = "emulator")]
            Handle::Emulator(queue) => queue.fill(address, byte, bytes),
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}
