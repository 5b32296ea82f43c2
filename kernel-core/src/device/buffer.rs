//! [`Buffer`]: device memory that frees itself.

use super::{Backend, Device, Plain, Stream, plain, stream::Handle};
use crate::Error;

/// Device memory, freed on drop. The caller keeps it until the work that uses it is done; on CUDA, freeing waits for the
/// device.
pub struct Buffer {
    device: Device,
    address: u64,
    bytes: usize,
}

impl Buffer {
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Buffer, Error> {
        // An empty buffer still has an address of its own: 0 means "none" to the kernels.
        let size = bytes.max(1);
        let address = match &device.backend {
            Backend::Cuda(context) => context.allocate(size)?,
            #[cfg(feature = "emulator")]
            Backend::Emulator(emulator) => emulator.allocate(size),
        };
        Ok(Buffer { device: device.clone(), address, bytes })
    }

    /// Device address of the first byte; a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies `values` to the start of the buffer, after the stream's earlier work, and waits for it.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if they do not fit, [`Error::Capture`] during a capture.
    pub fn write<T: Plain>(&self, stream: &Stream, values: &[T]) -> Result<(), Error> {
        self.check(stream, "writing", size_of_val(values))?;
        stream.forbid_capture("copying from the host", "copy before it")?;
        match stream.handle() {
            // Waits, since a copy from page-locked memory would otherwise read `values` after it has returned.
            Handle::Cuda(handle) => {
                handle.write(self.address, plain::bytes(values)).and_then(|()| handle.synchronize())
            }
            #[cfg(feature = "emulator")]
            Handle::Emulator(queue) => queue.write(self.address, plain::bytes(values)),
        }
    }

    /// Sets every byte, after the stream's earlier work. May be captured.
    pub fn fill(&self, stream: &Stream, byte: u8) -> Result<(), Error> {
        self.check(stream, "filling", self.bytes)?;
        stream.fill(self.address, byte, self.bytes)
    }

    /// Copies all of `from` to the start of this buffer, after the stream's earlier work. May be captured.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if it does not fit, [`Error::ForeignDevice`].
    pub fn copy_from(&self, stream: &Stream, from: &Buffer) -> Result<(), Error> {
        from.check(stream, "copying", from.bytes)?;
        self.check(stream, "copying", from.bytes)?;
        match stream.handle() {
            Handle::Cuda(handle) => handle.copy(from.address, self.address, from.bytes),
            #[cfg(feature = "emulator")]
            Handle::Emulator(_) => {
                let (source, target, bytes) = (from.address, self.address, from.bytes);
                stream.emulate(move |memory| memory.write(target, &memory.read::<u8>(source, bytes)?))
            }
        }
    }

    /// All of the buffer as values of `T`, after the stream's earlier work. Waits.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the size is no multiple of `T`'s, [`Error::Capture`] during a capture, and whatever an
    /// earlier launch on the stream has failed with.
    pub fn read<T: Plain>(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        let count = self.bytes / size_of::<T>();
        if count * size_of::<T>() != self.bytes {
            let what = format!("reading {} elements of {} bytes", count + 1, size_of::<T>());
            let needed = (count + 1) * size_of::<T>();
            return Err(Error::OutOfBounds { what, needed, available: self.bytes });
        }
        self.check(stream, "reading", self.bytes)?;
        stream.read(self.address, count)
    }

    fn check(&self, stream: &Stream, what: &str, needed: usize) -> Result<(), Error> {
        if !stream.device().same(&self.device) {
            return Err(Error::ForeignDevice { what: "buffer" });
        }
        if needed > self.bytes {
            return Err(Error::OutOfBounds { what: what.into(), needed, available: self.bytes });
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.device.backend {
            Backend::Cuda(context) => context.free(self.address),
            #[cfg(feature = "emulator")]
            Backend::Emulator(emulator) => emulator.free(self.address),
        }
    }
}
