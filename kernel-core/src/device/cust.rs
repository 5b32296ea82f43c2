//! Streams and buffers of the `cust` crate as bare handles. Its contexts are primary contexts, as ours are.

use super::{DevicePointer, RawStream};
use cust::memory::{DeviceBuffer, DeviceCopy};

impl From<&cust::stream::Stream> for RawStream {
    fn from(stream: &cust::stream::Stream) -> Self {
        RawStream(stream.as_inner().cast())
    }
}

impl<T: DeviceCopy> From<&DeviceBuffer<T>> for DevicePointer {
    fn from(buffer: &DeviceBuffer<T>) -> Self {
        DevicePointer(buffer.as_device_ptr().as_raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cust::memory::DevicePointer as CustPointer;

    #[test]
    fn buffers_keep_their_address() {
        // SAFETY: never accessed, and never freed since it is not dropped.
        let buffer = unsafe { DeviceBuffer::<f32>::from_raw_parts(CustPointer::from_raw(0x7000_0000_1000), 4) };
        let buffer = std::mem::ManuallyDrop::new(buffer);
        assert_eq!(DevicePointer::from(&*buffer), DevicePointer(0x7000_0000_1000));
    }
}
