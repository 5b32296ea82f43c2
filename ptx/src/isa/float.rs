//! Single precision.
//!
//! Additions and products carry `.rn`: without it `ptxas` may fuse them, and the emulator would round differently.

use super::{Builder, F32, MmaType, R32, RF, Source};

/// How a float becomes an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
}

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident $opcode:literal;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method(&mut self, a: impl Into<Source<F32>>, b: impl Into<Source<F32>>) -> RF {
                self.op($opcode, [a.into().operand, b.into().operand])
            }
        )*}
    };
}

binary! {
    /// `a + b`.
    add_f "add.rn.f32";
    /// `a - b`.
    sub_f "sub.rn.f32";
    /// `a * b`.
    mul_f "mul.rn.f32";
    /// `a / b`, correctly rounded. Slow: outside inner loops.
    div_f "div.rn.f32";
    /// The smaller; a NaN loses to a number.
    min_f "min.f32";
    /// The larger; a NaN loses to a number.
    max_f "max.f32";
    /// The larger, or NaN if either is (sm_80).
    max_f_or_nan "max.NaN.f32";
}

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident $opcode:literal;)*) => {
        impl Builder {$(
            $(#[$doc])*
            pub fn $method(&mut self, a: RF) -> RF {
                self.op($opcode, [a.into()])
            }
        )*}
    };
}

unary! {
    /// `-a`.
    neg_f "neg.f32";
    /// `|a|`.
    abs_f "abs.f32";
    /// `2^a`, one special-function instruction; `2^-inf` is 0.
    exp2_f "ex2.approx.ftz.f32";
    /// Base-2 logarithm.
    log2_f "lg2.approx.ftz.f32";
    /// `1 / a`, approximate.
    rcp_f "rcp.approx.ftz.f32";
    /// `1 / sqrt(a)`, approximate.
    rsqrt_f "rsqrt.approx.ftz.f32";
    /// Square root, correctly rounded.
    sqrt_f "sqrt.rn.f32";
    /// Hyperbolic tangent, one special-function instruction.
    tanh_f "tanh.approx.f32";
    /// Sine of radians, approximate: arguments within a few periods.
    sin_f "sin.approx.ftz.f32";
    /// Cosine of radians, approximate: arguments within a few periods.
    cos_f "cos.approx.ftz.f32";
}

impl Builder {
    /// The larger of each two halves; a NaN loses to a number.
    pub fn max_halves(&mut self, kind: MmaType, a: R32, b: R32) -> R32 {
        self.op(format!("max.{}x2", kind.suffix()), [a.into(), b.into()])
    }

    /// The larger of each two halves, or NaN if either is.
    pub fn max_halves_or_nan(&mut self, kind: MmaType, a: R32, b: R32) -> R32 {
        self.op(format!("max.NaN.{}x2", kind.suffix()), [a.into(), b.into()])
    }

    /// The smaller of each two halves; a NaN loses to a number.
    pub fn min_halves(&mut self, kind: MmaType, a: R32, b: R32) -> R32 {
        self.op(format!("min.{}x2", kind.suffix()), [a.into(), b.into()])
    }

    /// `a * b + c`, rounded once.
    pub fn fma(&mut self, a: impl Into<Source<F32>>, b: impl Into<Source<F32>>, c: impl Into<Source<F32>>) -> RF {
        self.op("fma.rn.f32", [a.into().operand, b.into().operand, c.into().operand])
    }
}
