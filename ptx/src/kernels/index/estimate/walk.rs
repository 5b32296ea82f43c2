//! How a warp goes through its keys: what the texts of the architectures differ in.

use crate::isa::{Builder, R32, RF};

/// A walk over a warp's part of the keys, 16 of them a turn.
pub(super) trait Walk {
    /// Goes through the part from `before` keys before it on, a multiple of 64. `turn` is given the first key, signed, and the
    /// products of 16 keys with all queries: rows of an [`Accumulator`](crate::tile::fragment::Accumulator).
    fn walk(&self, k: &mut Builder, before: u32, turn: impl Fn(&mut Builder, R32, &[Vec<RF>]));

    /// Waits for all warps that compute.
    fn meet(&self, k: &mut Builder);

    /// Shared memory for 512 bytes a warp, when all have gone through their keys and met.
    fn scratch(&self) -> R32;
}
