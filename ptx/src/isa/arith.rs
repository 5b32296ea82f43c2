//! Integer arithmetic and bits.

use super::{B32, Builder, Int, R32, R64, Reg, Source};

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident $opcode:literal $suffix:ident;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method<C: Int>(&mut self, a: Reg<C>, b: impl Into<Source<C>>) -> Reg<C> {
                self.op(format!(concat!($opcode, ".{}"), C::$suffix), [a.into(), b.into().operand])
            }
        )*}
    };
}

binary! {
    /// `a + b`, wrapping.
    add "add" SIGNED;
    /// `a - b`, wrapping.
    sub "sub" SIGNED;
    /// Low half of `a * b`.
    mul "mul.lo" SIGNED;
    /// High half of the unsigned product.
    mul_high "mul.hi" UNSIGNED;
    /// Unsigned quotient. Slow: for prologues.
    div_u "div" UNSIGNED;
    /// Signed quotient, truncated. Slow.
    div_s "div" SIGNED;
    /// Unsigned remainder. Slow: for prologues.
    rem_u "rem" UNSIGNED;
    /// Unsigned minimum.
    min_u "min" UNSIGNED;
    /// Unsigned maximum.
    max_u "max" UNSIGNED;
    /// Signed minimum.
    min_s "min" SIGNED;
    /// Signed maximum.
    max_s "max" SIGNED;
    /// Bitwise and.
    and "and" BITWISE;
    /// Bitwise or.
    or "or" BITWISE;
    /// Bitwise exclusive or.
    xor "xor" BITWISE;
}

macro_rules! shift {
    ($($(#[$doc:meta])* $method:ident $opcode:literal $suffix:ident;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method<C: Int>(&mut self, a: Reg<C>, count: impl Into<Source<B32>>) -> Reg<C> {
                self.op(format!(concat!($opcode, ".{}"), C::$suffix), [a.into(), count.into().operand])
            }
        )*}
    };
}

shift! {
    /// Shift left; counts past the width give 0.
    shl "shl" BITWISE;
    /// Logical shift right; counts past the width give 0.
    shr_u "shr" UNSIGNED;
    /// Arithmetic shift right.
    shr_s "shr" SIGNED;
}

impl Builder {
    /// `a * b + c`, low half.
    pub fn mad<C: Int>(&mut self, a: Reg<C>, b: impl Into<Source<C>>, c: impl Into<Source<C>>) -> Reg<C> {
        self.op(format!("mad.lo.{}", C::SIGNED), [a.into(), b.into().operand, c.into().operand])
    }

    /// Full unsigned product of two 32-bit values.
    pub fn mul_wide(&mut self, a: R32, b: impl Into<Source<B32>>) -> R64 {
        self.op("mul.wide.u32", [a.into(), b.into().operand])
    }

    /// `a * b + c` with a full unsigned product.
    pub fn mad_wide(&mut self, a: R32, b: impl Into<Source<B32>>, c: R64) -> R64 {
        self.op("mad.wide.u32", [a.into(), b.into().operand, c.into()])
    }

    /// Bitwise complement.
    pub fn not<C: Int>(&mut self, a: Reg<C>) -> Reg<C> {
        self.op(format!("not.{}", C::BITWISE), [a.into()])
    }

    /// Number of set bits.
    pub fn popc(&mut self, a: R32) -> R32 {
        self.op("popc.b32", [a.into()])
    }

    /// Number of leading zero bits; 32 for zero.
    pub fn clz(&mut self, a: R32) -> R32 {
        self.op("clz.b32", [a.into()])
    }

    /// Bits in reverse order.
    pub fn brev(&mut self, a: R32) -> R32 {
        self.op("brev.b32", [a.into()])
    }

    /// Picks four bytes out of the pair `b:a`; `selector` is PTX's default mode.
    pub fn permute_bytes(&mut self, a: R32, b: R32, selector: impl Into<Source<B32>>) -> R32 {
        self.op("prmt.b32", [a.into(), b.into(), selector.into().operand])
    }
}
