//! Special registers.

use super::{Builder, Operand, R32};

macro_rules! special {
    ($($(#[$doc:meta])* $method:ident $name:literal;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method(&mut self) -> R32 {
                self.op("mov.u32", [Operand::Text($name.into())])
            }
        )*}
    };
}

special! {
    /// Thread in the block.
    thread "%tid.x";
    /// Lane in the warp.
    lane "%laneid";
    /// Block, first coordinate.
    block_x "%ctaid.x";
    /// Block, second coordinate.
    block_y "%ctaid.y";
    /// Block, third coordinate.
    block_z "%ctaid.z";
    /// Blocks along the first coordinate.
    grid_x "%nctaid.x";
    /// Blocks along the second coordinate.
    grid_y "%nctaid.y";
    /// Blocks along the third coordinate.
    grid_z "%nctaid.z";
    /// Mask of the lanes before this one.
    lanes_below "%lanemask_lt";
}
