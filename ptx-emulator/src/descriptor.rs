//! Matrix descriptors: where the tensor cores find a tile in shared memory.
//!
//! A tile is made of rows of 16-byte pieces, eight elements each. Without transposition the pieces run along the depth
//! (K-major): eight rows of the matrix, each a span of the swizzle long, are a block, and blocks are `stride` bytes
//! apart. Transposed, the pieces run along the rows of the matrix (MN-major): a block is eight steps of the depth by a
//! span, blocks along the depth are `stride` bytes apart, and those along the matrix's rows `leading` bytes.

use crate::swizzle::Swizzle;

/// A decoded descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    /// Reads the 64 bits of a descriptor.
    pub(crate) fn decode(bits: u64) -> Result<Descriptor, String> {
        let field = |at: u32| ((bits >> at & 0x3fff) as u32) << 4;
        const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32];
        let swizzle = SWIZZLES[(bits >> 62) as usize & 3];
        let descriptor = Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle };
        let offset = (bits >> 49 & 7) as u32;
        if offset != 0 {
            return Err(format!(
                "base offset {offset}; only tiles that begin with their pattern are supported, with 0"
            ));
        }
        if swizzle.phase(descriptor.start) != 0 {
            return Err(format!(
                "address {:#x} does not lie in the first row of a pattern of {swizzle:?}, and the base offset is 0",
                descriptor.start
            ));
        }
        Ok(descriptor)
    }

    /// Address of a piece of eight elements: the `piece`th along the depth of row `row`, or if `transposed` the `piece`th
    /// along the rows at depth `row`.
    #[inline]
    pub(crate) fn piece(&self, transposed: bool, row: u32, piece: u32) -> u32 {
        let span = self.swizzle.span();
        let (block, within) = (row / 8, row % 8);
        let offset = match (self.swizzle, transposed) {
            (Swizzle::None, false) => within * 16 + block * self.stride + piece * self.leading,
            (Swizzle::None, true) => within * 16 + block * self.leading + piece * self.stride,
            (_, false) => within * span + block * self.stride + piece * 16,
            (_, true) => {
                let pieces = span / 16;
                within * span + block * self.stride + piece % pieces * 16 + piece / pieces * self.leading
            }
        };
        self.swizzle.place(self.start.wrapping_add(offset))
    }
}
