//! The two handles that every CUDA front end shares.

use std::ffi::c_void;

/// A CUDA stream as a bare handle: `CUstream`, `cudaStream_t`. Null is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawStream(pub *mut c_void);

/// A device address as a bare number: `CUdeviceptr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePointer(pub u64);

impl From<*mut c_void> for RawStream {
    fn from(handle: *mut c_void) -> Self {
        RawStream(handle)
    }
}

impl From<u64> for DevicePointer {
    fn from(address: u64) -> Self {
        DevicePointer(address)
    }
}
