//! Shared memory: one dynamic array, laid out while the kernel is built.

use super::{Builder, R32};

/// A region of the kernel's shared memory: byte offset from its start and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedRegion {
    /// Bytes from the start of the block's dynamic shared memory.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

#[derive(Debug, Default)]
pub(super) struct SharedLayout {
    used: u32,
}

impl SharedLayout {
    /// Swizzle patterns repeat every 1024 bytes of the absolute address.
    pub(super) const ALIGNMENT: u32 = 1024;
    pub(super) const NAME: &'static str = "shared";

    pub(super) fn bytes(&self) -> u32 {
        self.used
    }
}

impl Builder {
    /// Reserves `bytes` of shared memory at a multiple of `alignment` (a power of two up to 1024).
    pub fn shared(&mut self, bytes: u32, alignment: u32) -> SharedRegion {
        debug_assert!(alignment.is_power_of_two() && alignment <= SharedLayout::ALIGNMENT);
        let offset = self.shared.used.next_multiple_of(alignment);
        self.shared.used = offset + bytes;
        SharedRegion { offset, bytes }
    }

    /// The address of a region in the shared window.
    pub fn shared_address(&mut self, region: SharedRegion) -> R32 {
        let base: R32 = self.op("mov.u32", [super::Operand::Text(SharedLayout::NAME.into())]);
        self.add(base, region.offset)
    }
}
