//! How rows of a tile are permuted in shared memory, so that a column of 16-byte pieces falls into all banks.

/// The swizzles of bulk tensor copies and matrix descriptors. Each permutes the 16-byte pieces of a span by the bits of
/// the address above bit 6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Rows lie as they are.
    #[default]
    None,
    /// Pairs of pieces.
    Bytes32,
    /// Fours of pieces.
    Bytes64,
    /// Eights of pieces.
    Bytes128,
}

impl Swizzle {
    /// Bytes within which pieces change places; the longest row a swizzled tile may have.
    pub const fn span(self) -> u32 {
        16 << self.bits()
    }

    /// Bits of the address that change.
    const fn bits(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::Bytes32 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes128 => 3,
        }
    }

    /// Where a byte goes that would lie at `address` without a swizzle.
    #[inline]
    pub(crate) fn place(self, address: u32) -> u32 {
        address ^ self.phase(address) << 4
    }

    /// The row of the pattern that an address lies in.
    #[inline]
    pub(crate) fn phase(self, address: u32) -> u32 {
        address >> 7 & ((1 << self.bits()) - 1)
    }
}
