//! Conversions between classes.

use super::{B16, B32, Builder, MmaType, Operand, R16, R32, R64, RF, Rounding, Source};

impl Rounding {
    const fn to_integer(self) -> &'static str {
        match self {
            Rounding::Nearest => "rni",
            Rounding::Zero => "rzi",
            Rounding::Down => "rmi",
            Rounding::Up => "rpi",
        }
    }
}

impl Builder {
    /// Zero-extends to 64 bits.
    pub fn widen_u(&mut self, a: impl Into<Source<B32>>) -> R64 {
        self.op("cvt.u64.u32", [a.into().operand])
    }

    /// Sign-extends to 64 bits.
    pub fn widen_s(&mut self, a: impl Into<Source<B32>>) -> R64 {
        self.op("cvt.s64.s32", [a.into().operand])
    }

    /// The low 32 bits.
    pub fn narrow(&mut self, a: R64) -> R32 {
        self.op("cvt.u32.u64", [a.into()])
    }

    /// Unsigned integer to float, to nearest.
    pub fn float_from_u(&mut self, a: R32) -> RF {
        self.op("cvt.rn.f32.u32", [a.into()])
    }

    /// Signed integer to float, to nearest.
    pub fn float_from_s(&mut self, a: R32) -> RF {
        self.op("cvt.rn.f32.s32", [a.into()])
    }

    /// Float to unsigned integer, clamped to its range; NaN gives 0.
    pub fn u_from_float(&mut self, a: RF, rounding: Rounding) -> R32 {
        self.op(format!("cvt.{}.u32.f32", rounding.to_integer()), [a.into()])
    }

    /// Float to signed integer, clamped to its range; NaN gives 0.
    pub fn s_from_float(&mut self, a: RF, rounding: Rounding) -> R32 {
        self.op(format!("cvt.{}.s32.f32", rounding.to_integer()), [a.into()])
    }

    /// Float to unsigned 64-bit integer, clamped to its range; NaN gives 0.
    pub fn wide_from_float(&mut self, a: RF, rounding: Rounding) -> R64 {
        self.op(format!("cvt.{}.u64.f32", rounding.to_integer()), [a.into()])
    }

    /// Unsigned 64-bit integer to float, to nearest.
    pub fn float_from_wide(&mut self, a: R64) -> RF {
        self.op("cvt.rn.f32.u64", [a.into()])
    }

    /// The two 32-bit halves, low half first.
    pub fn split_wide(&mut self, packed: R64) -> [R32; 2] {
        let halves = self.fresh_array::<B32, 2>();
        self.emit("mov.b64", vec![Operand::Vector(halves.map(Operand::from).to_vec()), packed.into()]);
        halves
    }

    /// Two 32-bit halves in one register, low half first.
    pub fn join_wide(&mut self, low: R32, high: R32) -> R64 {
        self.op("mov.b64", [Operand::Vector(vec![low.into(), high.into()])])
    }

    /// The bits of a float.
    pub fn bits(&mut self, a: RF) -> R32 {
        self.op("mov.b32", [a.into()])
    }

    /// The float with these bits.
    pub fn from_bits(&mut self, a: R32) -> RF {
        self.op("mov.b32", [a.into()])
    }

    /// Rounds two floats to half precision and packs them, `low` in the low half.
    pub fn pack_halves(&mut self, kind: MmaType, low: RF, high: RF) -> R32 {
        self.op(format!("cvt.rn.{}x2.f32", kind.suffix()), [high.into(), low.into()])
    }

    /// Rounds a float to half precision, to nearest even.
    pub fn half_from_float(&mut self, kind: MmaType, a: RF) -> R16 {
        self.op(format!("cvt.rn.{}.f32", kind.suffix()), [a.into()])
    }

    /// A half-precision value as a float, exactly.
    pub fn float_from_half(&mut self, kind: MmaType, a: R16) -> RF {
        match kind {
            // `cvt.f32.bf16` needs sm_90: a bf16 is the upper half of its float.
            MmaType::Bf16 => {
                let zero = self.mov::<B16>(0u16);
                let bits: R32 = self.op("mov.b32", [Operand::Vector(vec![zero.into(), a.into()])]);
                self.from_bits(bits)
            }
            MmaType::F16 => self.op("cvt.f32.f16", [a.into()]),
        }
    }

    /// The two packed halves as floats, low half first.
    pub fn unpack_halves(&mut self, kind: MmaType, packed: R32) -> [RF; 2] {
        match kind {
            MmaType::Bf16 => {
                let low = self.shl(packed, 16u32);
                let high = self.and(packed, 0xFFFF_0000u32);
                [self.from_bits(low), self.from_bits(high)]
            }
            MmaType::F16 => {
                let [low, high] = self.split(packed);
                [self.float_from_half(kind, low), self.float_from_half(kind, high)]
            }
        }
    }

    /// The two 16-bit halves, low half first.
    pub fn split(&mut self, packed: R32) -> [R16; 2] {
        let halves = self.fresh_array::<B16, 2>();
        self.emit("mov.b32", vec![Operand::Vector(halves.map(Operand::from).to_vec()), packed.into()]);
        halves
    }

    /// Two 16-bit halves in one register, low half first.
    pub fn join(&mut self, low: R16, high: R16) -> R32 {
        self.op("mov.b32", [Operand::Vector(vec![low.into(), high.into()])])
    }
}
