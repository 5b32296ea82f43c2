//! [`TensorMap`]: a tensor as bulk copies see it, plain data until a device encodes it.

use super::{Backend, Device};
use crate::Error;
use ptx::{BoxShape, isa::MmaType};

/// A tensor of 16-bit elements by batch, rows, heads and elements of a head, and the box of it that one bulk copy moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Device address, a multiple of 16.
    pub address: u64,
    /// Type of the elements.
    pub dtype: MmaType,
    /// Elements of a head, rows, heads, batch; none of them 0.
    pub shape: [u64; 4],
    /// Bytes from a row, a head and a batch entry to the next: multiples of 16 below 2⁴⁰.
    pub strides: [u64; 3],
    /// Rows and columns of a box; it arrives swizzled over its columns.
    pub box_shape: BoxShape,
}

/// The same by dimensions, innermost first: `count` of them count, as do one stride less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dimensions {
    pub(super) count: u32,
    pub(super) shape: [u64; Dimensions::MOST],
    pub(super) strides: [u64; Dimensions::MOST - 1],
    pub(super) box_shape: [u32; Dimensions::MOST],
}

impl Dimensions {
    pub(super) const MOST: usize = 5;
}

impl TensorMap {
    /// Rows of a box that lie a stride apart make the rows of the tensor two dimensions.
    pub(super) fn dimensions(&self) -> Dimensions {
        let ([columns, rows, heads, batch], [row, head, entry]) = (self.shape, self.strides);
        let BoxShape { columns: box_columns, rows: box_rows, stride } = self.box_shape;
        if stride <= 1 {
            return Dimensions {
                count: 4,
                shape: [columns, rows, heads, batch, 1],
                strides: [row, head, entry, 0],
                box_shape: [box_columns, box_rows, 1, 1, 1],
            };
        }
        let stride = u64::from(stride);
        Dimensions {
            count: 5,
            // Without a whole stride there are no boxes; the map is encoded all the same.
            shape: [columns, stride, (rows / stride).max(1), heads, batch],
            strides: [row, row.saturating_mul(stride), head, entry],
            box_shape: [box_columns, 1, box_rows, 1, 1],
        }
    }
}

/// A tensor map as a kernel of one device takes it.
pub type EncodedTensorMap = [u8; 128];

impl Device {
    /// Encodes a tensor map for kernels of this device. Only the host is at work.
    ///
    /// # Errors
    /// [`Error::Driver`] or [`Error::Emulator`] for a map that breaks the rules above.
    pub fn encode_tensor_map(&self, map: &TensorMap) -> Result<EncodedTensorMap, Error> {
        match &self.backend {
            Backend::Cuda(context) => context.encode_tensor_map(map),
            #[cfg(feature = "emulator")]
            Backend::Emulator(_) => super::emulator::encode_tensor_map(map),
        }
    }
}
