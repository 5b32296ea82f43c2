//! Double buffering with `cp.async`.

use crate::isa::{Builder, R32};

/// Two buffers that change places: while one is read, copies fill the other.
///
/// One barrier a turn is enough: it comes after the wait for the copies of this turn (so that everybody sees them) and
/// before the copies of the next (so that nobody still reads what they overwrite).
pub struct DoubleBuffer {
    bytes: u32,
    /// Offset of the buffer that is read.
    read: R32,
}

impl DoubleBuffer {
    /// Two buffers of `bytes`: the offset toggles between 0 and `bytes`.
    pub fn new(k: &mut Builder, bytes: u32) -> DoubleBuffer {
        DoubleBuffer { bytes, read: k.mov(0u32) }
    }

    /// Waits for the copies into the buffer that is read next, and for everyone to be done with the other.
    pub fn turn(&self, k: &mut Builder) {
        k.wait_copies(0);
        k.barrier();
    }

    /// Offset of the buffer that is read.
    pub fn read(&self) -> R32 {
        self.read
    }

    /// Offset of the buffer that is filled.
    pub fn write(&self, k: &mut Builder) -> R32 {
        k.xor(self.read, self.bytes)
    }

    /// The buffers change places.
    pub fn swap(&self, k: &mut Builder) {
        let other = self.write(k);
        k.set(self.read, other);
    }
}
