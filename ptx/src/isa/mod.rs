//! The instruction set: registers typed by class and width, operands, and [`Builder`] with one method an instruction.
//!
//! Types stop at the register class, as PTX registers do: a `B32` holds a signed integer, an unsigned one or two packed
//! halves, and the method says which is meant. What does not fit does not compile. No instruction exists without a user.

mod arith;
mod async_copy;
mod barrier;
mod builder;
mod bulk_copy;
mod collective;
mod control;
mod convert;
mod dependency;
mod float;
mod mbarrier;
mod memory;
mod mma;
mod predicate;
mod register;
mod shared;
mod special;
#[cfg(test)]
mod tests;
mod text;
mod warpgroup;

pub use builder::{Builder, Launch};
pub use control::Label;
pub use float::Rounding;
pub use memory::{Cache, Space, Word};
pub use mma::MmaType;
pub use register::{B16, B32, B64, Class, F32, Int, Operand, Pred, Reg, Source};
pub use shared::SharedRegion;
pub use warpgroup::{WarpgroupLeft, WarpgroupRight};

/// Register of 16 bits.
pub type R16 = Reg<B16>;
/// Register of 32 bits: an integer or two packed halves.
pub type R32 = Reg<B32>;
/// Register of 64 bits: an address or a wide integer.
pub type R64 = Reg<B64>;
/// Single-precision register.
pub type RF = Reg<F32>;
/// Predicate register.
pub type RP = Reg<Pred>;

/// A GPU architecture that kernels are generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Ampere and everything after it.
    Sm80,
    /// Hopper only: `wgmma`, bulk tensor copies. Text for it runs on compute capability 9.0 and nowhere else.
    Sm90a,
}

impl Arch {
    /// The name PTX uses in `.target`.
    pub const fn target(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// The name as a part of entry names.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm80",
            Arch::Sm90a => "sm90a",
        }
    }

    /// Most bytes of shared memory that a block may have.
    pub(crate) const fn shared_limit(self) -> u32 {
        match self {
            Arch::Sm80 => 163 * 1024,
            Arch::Sm90a => 227 * 1024,
        }
    }

    /// The lowest PTX ISA version that knows the architecture's instructions as our kernels use them.
    pub(crate) const fn lowest_isa(self) -> (u8, u8) {
        match self {
            Arch::Sm80 => (7, 0),
            Arch::Sm90a => (8, 0),
        }
    }
}
