//! Everything that maps words to words, integer and floating point alike.

use super::float::{apply1, apply2, canonical, exp2, flush, maximum, minimum};
use super::half::{arithmetic, exp2_pair, fma_pair, larger, narrow, pair1, smaller, widen};
use super::{map1, map2, map3, put};
use crate::level::by_level;
use crate::op::{Binary32, PermuteMode, Slot, Ternary32, Unary32};
use crate::warp::{LANES, Words};

by_level! {
    /// `d = f(a)`.
    fn unary(words: &mut [Words], f: Unary32, d: Slot, a: Slot, mask: u32) = unary_body
}
by_level! {
    /// `d = f(a, b)`.
    fn binary(words: &mut [Words], f: Binary32, d: Slot, a: Slot, b: Slot, mask: u32) = binary_body
}
by_level! {
    /// `d = f(a, b, c)`.
    fn ternary(words: &mut [Words], f: Ternary32, d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) = ternary_body
}
by_level! {
    /// `d = p ? a : b`.
    fn select(words: &mut [Words], d: Slot, a: Slot, b: Slot, p: u32, mask: u32) = select_body
}
by_level! {
    /// `bfi`: field of `a` into `b` at a position, with a length.
    fn insert(words: &mut [Words], d: Slot, sources: [Slot; 4], mask: u32) = insert_body
}

#[inline(always)]
fn unary_body(words: &mut [Words], f: Unary32, d: Slot, a: Slot, mask: u32) {
    macro_rules! each {
        ($f:expr) => {
            map1(words, d, a, mask, $f)
        };
    }
    macro_rules! float {
        ($ftz:expr, $f:expr) => {
            if $ftz { each!(|a| apply1(true, a, $f)) } else { each!(|a| apply1(false, a, $f)) }
        };
    }
    match f {
        Unary32::Copy => each!(|a| a),
        Unary32::Neg => each!(|a| a.wrapping_neg()),
        Unary32::Abs => each!(|a| (a as i32).wrapping_abs() as u32),
        Unary32::Not => each!(|a| !a),
        Unary32::Popc => each!(|a| a.count_ones()),
        Unary32::Clz => each!(|a| a.leading_zeros()),
        Unary32::Brev => each!(|a| a.reverse_bits()),
        Unary32::BfindUnsigned => each!(|a| 31u32.wrapping_sub(a.leading_zeros())),
        Unary32::BfindSigned => each!(|a| {
            let a = a ^ ((a as i32) >> 31) as u32;
            31u32.wrapping_sub(a.leading_zeros())
        }),
        Unary32::ZeroExtend8 => each!(|a| a & 0xff),
        Unary32::ZeroExtend16 => each!(|a| a & 0xffff),
        Unary32::SignExtend8 => each!(|a| a as i8 as u32),
        Unary32::SignExtend16 => each!(|a| a as i16 as u32),
        // A sign change of a NaN gives the canonical one too.
        Unary32::NegF32 { ftz } => float!(ftz, |a: f32| -a),
        Unary32::AbsF32 { ftz } => float!(ftz, f32::abs),
        Unary32::Rcp { ftz } => float!(ftz, |a: f32| 1.0 / a),
        Unary32::Sqrt { ftz } => float!(ftz, f32::sqrt),
        Unary32::Rsqrt { ftz } => float!(ftz, |a: f32| (1.0 / f64::from(a).sqrt()) as f32),
        Unary32::Ex2 { ftz } => float!(ftz, exp2),
        Unary32::Lg2 { ftz } => float!(ftz, f32::log2),
        Unary32::Sin { ftz } => float!(ftz, f32::sin),
        Unary32::Cos { ftz } => float!(ftz, f32::cos),
        Unary32::Tanh => float!(false, f32::tanh),
        Unary32::Ex2Half(format) => each!(|a| exp2_pair(format, a)),
        Unary32::TanhHalf(format) => each!(|a| pair1(format, a, |a| canonical(f32::from_bits(a).tanh()))),
        Unary32::F32FromS32 => each!(|a| (a as i32 as f32).to_bits()),
        Unary32::F32FromU32 => each!(|a| (a as f32).to_bits()),
        Unary32::S32FromF32 => each!(|a| f32::from_bits(a) as i32 as u32),
        Unary32::U32FromF32 => each!(|a| f32::from_bits(a) as u32),
        Unary32::F32FromHalf(format) => each!(|a| canonical(f32::from_bits(widen(format, a & 0xffff)))),
        Unary32::HalfFromF32(format) => each!(|a| narrow(format, a)),
    }
}

#[inline(always)]
fn binary_body(words: &mut [Words], f: Binary32, d: Slot, a: Slot, b: Slot, mask: u32) {
    macro_rules! each {
        ($f:expr) => {
            map2(words, d, a, b, mask, $f)
        };
    }
    macro_rules! float {
        ($ftz:expr, $f:expr) => {
            if $ftz { each!(|a, b| apply2(true, a, b, $f)) } else { each!(|a, b| apply2(false, a, b, $f)) }
        };
    }
    match f {
        Binary32::Add => each!(u32::wrapping_add),
        Binary32::Sub => each!(u32::wrapping_sub),
        Binary32::Mul => each!(u32::wrapping_mul),
        Binary32::MulHighUnsigned => each!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Binary32::MulHighSigned => each!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        // The hardware gives all ones for a division by zero, and the dividend as its remainder.
        Binary32::DivUnsigned => each!(|a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        Binary32::DivSigned => {
            each!(|a, b| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 })
        }
        Binary32::RemUnsigned => each!(|a, b| a.checked_rem(b).unwrap_or(a)),
        Binary32::RemSigned => each!(|a, b| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }),
        Binary32::MinUnsigned => each!(u32::min),
        Binary32::MinSigned => each!(|a, b| (a as i32).min(b as i32) as u32),
        Binary32::MaxUnsigned => each!(u32::max),
        Binary32::MaxSigned => each!(|a, b| (a as i32).max(b as i32) as u32),
        Binary32::AddSaturate => each!(|a, b| (a as i32).saturating_add(b as i32) as u32),
        Binary32::SubSaturate => each!(|a, b| (a as i32).saturating_sub(b as i32) as u32),
        Binary32::And => each!(|a, b| a & b),
        Binary32::Or => each!(|a, b| a | b),
        Binary32::Xor => each!(|a, b| a ^ b),
        Binary32::Shl => each!(|a, b| if b > 31 { 0 } else { a << (b & 31) }),
        Binary32::ShrUnsigned => each!(|a, b| if b > 31 { 0 } else { a >> (b & 31) }),
        Binary32::ShrSigned => each!(|a, b| ((a as i32) >> (b.min(31) & 31)) as u32),
        Binary32::Pack16 => each!(|a, b| a & 0xffff | b << 16),
        Binary32::AddF32 { ftz } => float!(ftz, |a, b| a + b),
        Binary32::SubF32 { ftz } => float!(ftz, |a, b| a - b),
        Binary32::MulF32 { ftz } => float!(ftz, |a, b| a * b),
        Binary32::DivF32 { ftz } => float!(ftz, |a, b| a / b),
        Binary32::MinF32 { ftz, nan } => each!(|a, b| minimum(ftz, nan, a, b)),
        Binary32::MaxF32 { ftz, nan } => each!(|a, b| maximum(ftz, nan, a, b)),
        Binary32::CopysignF32 => each!(|a, b| a & 0x7fff_ffff | b & 0x8000_0000),
        Binary32::AddHalf(format) => each!(|a, b| arithmetic(format, a, b, |a, b| a + b)),
        Binary32::SubHalf(format) => each!(|a, b| arithmetic(format, a, b, |a, b| a - b)),
        Binary32::MulHalf(format) => each!(|a, b| arithmetic(format, a, b, |a, b| a * b)),
        Binary32::MinHalf { format, nan } => each!(|a, b| smaller(format, nan, a, b)),
        Binary32::MaxHalf { format, nan } => each!(|a, b| larger(format, nan, a, b)),
        Binary32::PackHalf { format, relu: false } => each!(|a, b| narrow(format, a) << 16 | narrow(format, b)),
        Binary32::PackHalf { format, relu: true } => {
            let half = |a: u32| {
                let a = narrow(format, a);
                if a & 0x8000 != 0 { 0 } else { a }
            };
            each!(|a, b| half(a) << 16 | half(b))
        }
    }
}

#[inline(always)]
fn ternary_body(words: &mut [Words], f: Ternary32, d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) {
    macro_rules! each {
        ($f:expr) => {
            map3(words, d, [a, b, c], mask, $f)
        };
    }
    let fused = |a: u32, b: u32, c: u32| f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c));
    match f {
        Ternary32::Mad => each!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        Ternary32::Lop3(table) => {
            // A minterm for each set bit of the table.
            let term = |bit: u32| if u32::from(table) >> bit & 1 != 0 { u32::MAX } else { 0 };
            let terms: [u32; 8] = std::array::from_fn(|bit| term(bit as u32));
            each!(|a, b, c| {
                let low = |c: u32, at: usize| (terms[at] & !c) | (terms[at + 1] & c);
                let middle = |at: usize| (low(c, at) & !b) | (low(c, at + 2) & b);
                (middle(0) & !a) | (middle(4) & a)
            })
        }
        Ternary32::Prmt(mode) => each!(|a, b, c| permute(mode, a, b, c)),
        Ternary32::BfeUnsigned => each!(|a, b, c| {
            let (position, length) = (b & 0xff, c & 0xff);
            let field = if position > 31 { 0 } else { a >> (position & 31) };
            if length > 31 { field } else { field & ((1 << (length & 31)) - 1) }
        }),
        Ternary32::BfeSigned => each!(|a, b, c| {
            let (position, length) = (b & 0xff, c & 0xff);
            let field = i64::from(a as i32) >> position.min(63);
            let left = 64 - length.min(63);
            if length == 0 { 0 } else { (field << (left & 63) >> (left & 63)) as u32 }
        }),
        Ternary32::ShiftLeft { wrap } => each!(|a, b, c| {
            let shift = if wrap { c & 31 } else { c.min(32) };
            ((u64::from(b) << 32 | u64::from(a)) << shift >> 32) as u32
        }),
        Ternary32::ShiftRight { wrap } => each!(|a, b, c| {
            let shift = if wrap { c & 31 } else { c.min(32) };
            ((u64::from(b) << 32 | u64::from(a)) >> shift) as u32
        }),
        Ternary32::FmaF32 { ftz: false, relu: false } => each!(|a, b, c| canonical(fused(a, b, c))),
        Ternary32::FmaF32 { ftz, relu } => each!(|a, b, c| {
            let (a, b, c) = if ftz { (flush(a), flush(b), flush(c)) } else { (a, b, c) };
            let result = canonical(fused(a, b, c));
            let result = if ftz { flush(result) } else { result };
            if relu && result >> 31 != 0 { 0 } else { result }
        }),
        Ternary32::FmaHalf { format, relu } => each!(|a, b, c| fma_pair(format, relu, a, b, c)),
        Ternary32::Dp4a { signed } => each!(|a, b, c| {
            let byte = |value: u32, at: u32, signed: bool| {
                let byte = (value >> (8 * at)) as u8;
                if signed { i32::from(byte as i8) } else { i32::from(byte) }
            };
            (0..4).fold(c, |sum, at| sum.wrapping_add((byte(a, at, signed[0]) * byte(b, at, signed[1])) as u32))
        }),
    }
}

#[inline(always)]
fn permute(mode: PermuteMode, a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let byte = |at: u32| (bytes >> (8 * (at & 7))) as u32 & 0xff;
    let s = selector & 3;
    let pick = |choose: &dyn Fn(u32) -> u32| (0..4).fold(0, |word, i| word | byte(choose(i)) << (8 * i));
    match mode {
        PermuteMode::Index => {
            let mut word = 0;
            for i in 0..4 {
                let control = selector >> (4 * i);
                let value = byte(control & 7);
                let sign = if value & 0x80 != 0 { 0xff } else { 0 };
                word |= (if control & 8 != 0 { sign } else { value }) << (8 * i);
            }
            word
        }
        PermuteMode::Forward4 => pick(&|i| s + i),
        PermuteMode::Backward4 => pick(&|i| s.wrapping_sub(i)),
        PermuteMode::Replicate8 => pick(&|_| s),
        PermuteMode::EdgeLeft => pick(&|i| s.max(i)),
        PermuteMode::EdgeRight => pick(&|i| s.min(i)),
        PermuteMode::Replicate16 => pick(&|i| (s & 1) * 2 + (i & 1)),
    }
}

#[inline(always)]
fn select_body(words: &mut [Words], d: Slot, a: Slot, b: Slot, p: u32, mask: u32) {
    let (a, b) = (&words[a as usize].0, &words[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = if p >> lane & 1 != 0 { a[lane] } else { b[lane] };
    }
    put(words, d, values, mask);
}

#[inline(always)]
fn insert_body(words: &mut [Words], d: Slot, [a, b, position, length]: [Slot; 4], mask: u32) {
    let word = |slot: Slot| &words[slot as usize].0;
    let (a, b, position, length) = (word(a), word(b), word(position), word(length));
    let mut values = [0; LANES];
    for lane in 0..LANES {
        let (position, length) = (position[lane] & 0xff, length[lane] & 0xff);
        let ones = if length > 31 { u32::MAX } else { (1 << (length & 31)) - 1 };
        let (field, place) = if position > 31 { (0, 0) } else { (a[lane] << (position & 31), ones << (position & 31)) };
        values[lane] = b[lane] & !place | field & place;
    }
    put(words, d, values, mask);
}
