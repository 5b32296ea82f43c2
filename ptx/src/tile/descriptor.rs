//! How `wgmma` finds a tile in shared memory: matrix descriptors (PTX ISA, "Matrix-descriptor").
//!
//! ```text
//! bits 0-13   address / 16            bits 32-45  stride from eight rows to the next eight / 16
//! bits 16-29  stride of slabs / 16    bits 62-63  swizzle: 1 over 128 bytes, 2 over 64
//! ```
//!
//! A tile's rows are the rows of a left factor, the columns of a right factor (both with inner elements along the row), or
//! the inner elements of a right factor (with columns along the row). A descriptor moves by plain additions: the address
//! never carries out of its bits.

use super::layout::TileLayout;
use crate::isa::{Builder, R32, R64};

/// Inner elements of one product.
const STEP: u32 = 16;

/// A tile in slabs as a factor of products.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    layout: TileLayout,
    /// Descriptor of the tile's beginning.
    base: R64,
}

impl Factor {
    /// The tile at `address`, a multiple of 1024.
    pub fn new(k: &mut Builder, layout: TileLayout, address: R32) -> Factor {
        let slab = layout.slab_bytes() / 16;
        let swizzle = if layout.row_bytes == 128 { 1 } else { 2 };
        let low = k.shr_u(address, 4u32);
        let low = k.or(low, slab << 16);
        let high = k.mov((swizzle << 30) | (layout.row_bytes / 2));
        Factor { layout, base: k.join_wide(low, high) }
    }

    /// The same tile shape `bytes` further on, a multiple of 16.
    pub fn offset(self, k: &mut Builder, bytes: R32) -> Factor {
        let units = k.shr_u(bytes, 4u32);
        let units = k.widen_u(units);
        Factor { layout: self.layout, base: k.add(self.base, units) }
    }

    fn at(self, k: &mut Builder, bytes: u32) -> R64 {
        k.add(self.base, u64::from(bytes / 16))
    }

    /// Inner elements `16 · step` and on, where they lie along the rows.
    pub fn along_rows(self, k: &mut Builder, step: u32) -> R64 {
        let steps = self.layout.slab_columns() / STEP;
        self.at(k, step / steps * self.layout.slab_bytes() + step % steps * 2 * STEP)
    }

    /// Inner elements `16 · step` and on, where each is a row.
    pub fn down_rows(self, k: &mut Builder, step: u32) -> R64 {
        self.at(k, step * STEP * self.layout.row_bytes)
    }
}
