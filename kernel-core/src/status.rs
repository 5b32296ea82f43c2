//! [`Status`]: what only the device could know.

/// What the kernels found and worked around: they clamp, and set a bit. Bits stay set until they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    bits: u32,
}

impl Status {
    /// From the status word.
    pub const fn from_bits(bits: u32) -> Status {
        Status { bits }
    }

    /// The status word.
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Nothing was wrong.
    pub const fn is_clear(self) -> bool {
        self.bits == 0
    }

    /// A sequence was longer than its bound, or than its rows of a packed tensor, and was cut; or starting rows did not ascend
    /// inside the tensor, and the sequences on both sides were empty.
    pub const fn length_cut(self) -> bool {
        self.bits & 1 != 0
    }

    /// An index or a head map named a key, block or head that does not exist, which was skipped; or a list was said to be
    /// longer than it is, and was cut; or a page table named a page that does not exist, whose keys and values were zeros.
    pub const fn index_out_of_range(self) -> bool {
        self.bits & 2 != 0
    }

    /// A head's budget was larger than its list and was cut.
    pub const fn budget_cut(self) -> bool {
        self.bits & 4 != 0
    }
}
