//! The caller's workspace, and how a plan divides it.

use crate::{Buffer, DType, Device, Error, TensorView, device::DevicePointer};
use std::marker::PhantomData;

/// Every part begins at a multiple of this many bytes.
const ALIGNMENT: u64 = 256;

/// Device memory for a plan and the index it writes. One for each stream in flight.
#[derive(Clone, Copy, Debug)]
pub struct Workspace<'a> {
    address: u64,
    bytes: u64,
    device: Option<&'a Device>,
    memory: PhantomData<&'a ()>,
}

impl<'a> From<&'a Buffer> for Workspace<'a> {
    fn from(buffer: &'a Buffer) -> Workspace<'a> {
        let device = Some(buffer.device());
        Workspace { address: buffer.address(), bytes: buffer.bytes() as u64, device, memory: PhantomData }
    }
}

impl<'a> Workspace<'a> {
    /// The caller's own memory; the address is a multiple of 256.
    ///
    /// # Safety
    /// `bytes` from `pointer` on are allocated on the device that the workspace is used with, for `'a` and until all work
    /// launched with it is done.
    pub unsafe fn from_raw(pointer: impl Into<DevicePointer>, bytes: u64) -> Workspace<'a> {
        Workspace { address: pointer.into().0, bytes, device: None, memory: PhantomData }
    }

    /// Checks that the workspace holds `needed` bytes and may be used on `device`.
    pub(crate) fn check(&self, device: &Device, needed: u64) -> Result<(), Error> {
        if self.device.is_some_and(|own| !own.same(device)) {
            return Err(Error::ForeignDevice { what: "workspace" });
        }
        if self.bytes < needed {
            return Err(Error::Workspace { given: self.bytes, needed });
        }
        if !self.address.is_multiple_of(ALIGNMENT) {
            let message = format!("its address {:#x} is no multiple of {ALIGNMENT}; align it", self.address);
            return Err(Error::Setting { setting: "workspace", message });
        }
        Ok(())
    }

    /// Address of a part.
    pub(crate) fn address(&self, part: Part) -> u64 {
        self.address + part.offset
    }

    /// A part as a contiguous tensor.
    pub(crate) fn tensor(&self, part: Part, dtype: DType, shape: &[u64]) -> Result<TensorView<'a>, Error> {
        let mut strides = [1; 4];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        // SAFETY: `check` has seen that the workspace holds the layout the part comes from.
        unsafe { TensorView::from_raw(self.address(part), dtype, shape, &strides[..shape.len()]) }
    }
}

/// A part of a workspace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    offset: u64,
}

/// Places parts one after the other.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    bytes: u64,
}

impl Layout {
    /// The next `bytes` bytes.
    pub(crate) fn part(&mut self, bytes: u64) -> Part {
        let part = Part { offset: self.bytes };
        self.bytes = self.bytes.saturating_add(bytes).div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
        part
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
