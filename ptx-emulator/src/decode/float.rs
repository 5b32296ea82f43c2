//! Floating-point arithmetic: f32, f64, and the 16-bit formats alone and in pairs.

use super::{Decoded, Decoder, Form};
use crate::op::{Binary32, Binary64, CompareAs, Comparison, Half, Op, Slot, Ternary32, Unary32, Unary64};
use crate::parse::Operand;
use crate::types::{Class, Type};

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    let ty = form.rest.iter().find_map(|part| Type::parse(part));
    let float = ty.is_some_and(|ty| ty.is_float() || matches!(ty, Type::F16x2 | Type::Bf16x2));
    match form.base {
        "add" | "sub" | "mul" | "div" | "min" | "max" if float => binary(decoder, form)?,
        "fma" => fused(decoder, form)?,
        "mad" if float => fused(decoder, form)?,
        "neg" | "abs" if float => unary(decoder, form)?,
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => unary(decoder, form)?,
        "copysign" => copysign(decoder, form)?,
        "testp" => test(decoder, form)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn half(ty: Type) -> Option<Half> {
    match ty {
        Type::F16 | Type::F16x2 => Some(Half::F16),
        Type::Bf16 | Type::Bf16x2 => Some(Half::Bf16),
        _ => None,
    }
}

/// Takes the rounding, of which only to nearest is supported here.
fn nearest<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    if form.take_any(&["rz", "rm", "rp"]).is_some() {
        return decoder.fail(format!("`{}` is supported with rounding to nearest even only", form.base));
    }
    form.take("rn");
    Ok(())
}

fn binary<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    nearest(decoder, form)?;
    let (ftz, saturate, nan) = (form.take("ftz"), form.take("sat"), form.take("NaN"));
    if form.base == "div" {
        form.take_any(&["approx", "full"]);
    }
    let ty = form.ty(decoder)?;
    let [d, a, b] = form.operands(decoder)?;
    let (a, b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
    if ty == Type::F64 {
        let f = match form.base {
            "add" => Binary64::AddF64,
            "sub" => Binary64::SubF64,
            "mul" => Binary64::MulF64,
            "div" => Binary64::DivF64,
            "min" => Binary64::MinF64,
            _ => Binary64::MaxF64,
        };
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::Binary64 { f, d, a, b });
    }
    let f = match (form.base, half(ty)) {
        ("add", None) => Binary32::AddF32 { ftz },
        ("sub", None) => Binary32::SubF32 { ftz },
        ("mul", None) => Binary32::MulF32 { ftz },
        ("div", None) => Binary32::DivF32 { ftz },
        ("min", None) => Binary32::MinF32 { ftz, nan },
        ("max", None) => Binary32::MaxF32 { ftz, nan },
        ("add", Some(format)) => Binary32::AddHalf(format),
        ("sub", Some(format)) => Binary32::SubHalf(format),
        ("mul", Some(format)) => Binary32::MulHalf(format),
        ("min", Some(format)) => Binary32::MinHalf { format, nan },
        ("max", Some(format)) => Binary32::MaxHalf { format, nan },
        _ => return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base)),
    };
    let d = decoder.target(d, ty)?;
    if saturate {
        let raw = decoder.scratch_word()?;
        decoder.emit_binary(f, raw, a, b)?;
        return saturated(decoder, d, raw, ty);
    }
    decoder.emit_binary(f, d, a, b)
}

/// Clamps to [0, 1]; NaN becomes 0, because `max` takes the number.
fn saturated(decoder: &mut Decoder<'_, '_>, d: Slot, raw: Slot, ty: Type) -> Decoded {
    if ty != Type::F32 {
        return decoder.fail("`.sat` is supported for f32 only");
    }
    let (zero, one) = (decoder.constant(0)?, decoder.constant(1f32.to_bits())?);
    let positive = decoder.scratch_word()?;
    decoder.emit_binary(Binary32::MaxF32 { ftz: false, nan: false }, positive, raw, zero)?;
    decoder.emit_binary(Binary32::MinF32 { ftz: false, nan: false }, d, positive, one)
}

fn fused<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    nearest(decoder, form)?;
    let (ftz, saturate, relu) = (form.take("ftz"), form.take("sat"), form.take("relu"));
    let ty = form.ty(decoder)?;
    let [d, a, b, c] = form.operands(decoder)?;
    let (a, b, c) = (decoder.source(a, ty)?, decoder.source(b, ty)?, decoder.source(c, ty)?);
    let d = decoder.target(d, ty)?;
    if ty == Type::F64 {
        return decoder.emit(Op::FmaF64 { d, a, b, c });
    }
    let f = match half(ty) {
        Some(format) => Ternary32::FmaHalf { format, relu },
        None => Ternary32::FmaF32 { ftz, relu },
    };
    if saturate {
        let raw = decoder.scratch_word()?;
        decoder.emit(Op::Ternary32 { f, d: raw, a, b, c })?;
        return saturated(decoder, d, raw, ty);
    }
    decoder.emit(Op::Ternary32 { f, d, a, b, c })
}

fn unary<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    nearest(decoder, form)?;
    let ftz = form.take("ftz");
    form.take("approx");
    let ty = form.ty(decoder)?;
    let [d, a] = form.operands(decoder)?;
    let a = decoder.source(a, ty)?;
    let d = decoder.target(d, ty)?;
    if ty == Type::F64 {
        let f = match form.base {
            "neg" => Unary64::NegF64,
            "abs" => Unary64::AbsF64,
            "rcp" => Unary64::Rcp,
            "sqrt" => Unary64::Sqrt,
            "rsqrt" => Unary64::Rsqrt,
            _ => return decoder.fail(format!("`{}` is not supported for f64", form.base)),
        };
        return decoder.emit(Op::Unary64 { f, d, a });
    }
    let f = match (form.base, half(ty)) {
        ("neg", None) => Unary32::NegF32 { ftz },
        ("abs", None) => Unary32::AbsF32 { ftz },
        ("rcp", None) => Unary32::Rcp { ftz },
        ("sqrt", None) => Unary32::Sqrt { ftz },
        ("rsqrt", None) => Unary32::Rsqrt { ftz },
        ("ex2", None) => Unary32::Ex2 { ftz },
        ("lg2", None) => Unary32::Lg2 { ftz },
        ("sin", None) => Unary32::Sin { ftz },
        ("cos", None) => Unary32::Cos { ftz },
        ("tanh", None) => Unary32::Tanh,
        ("neg" | "abs", Some(_)) => {
            let sign = if ty.bytes() == 4 { 0x8000_8000u32 } else { 0x8000 };
            let (f, bits) = if form.base == "neg" { (Binary32::Xor, sign) } else { (Binary32::And, !sign) };
            let b = decoder.constant(bits)?;
            return decoder.emit_binary(f, d, a, b);
        }
        ("ex2", Some(format)) => Unary32::Ex2Half(format),
        ("tanh", Some(format)) => Unary32::TanhHalf(format),
        _ => return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base)),
    };
    // The upper half of a single 16-bit value is not part of it (2^0 is not 0).
    if ty.bytes() == 2 {
        let wide = decoder.scratch_word()?;
        decoder.emit(Op::Unary32 { f, d: wide, a })?;
        return decoder.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a: wide });
    }
    decoder.emit(Op::Unary32 { f, d, a })
}

fn copysign<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, sign, magnitude] = form.operands(decoder)?;
    let (b, a) = (decoder.source(sign, ty)?, decoder.source(magnitude, ty)?);
    let d = decoder.target(d, ty)?;
    match ty {
        Type::F32 => decoder.emit_binary(Binary32::CopysignF32, d, a, b),
        Type::F64 => decoder.emit(Op::Binary64 { f: Binary64::CopysignF64, d, a, b }),
        _ => decoder.fail("`copysign` is for f32 and f64"),
    }
}

/// `testp` on f32, by the magnitude's bits.
fn test<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let kind = form.take_any(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
    let ty = form.ty(decoder)?;
    let [d, a]: &'e [Operand<'t>; 2] = form.operands(decoder)?;
    let (Some(kind), Type::F32) = (kind, ty) else {
        return decoder.fail("`testp` is supported for f32");
    };
    let a = decoder.source(a, ty)?;
    let d = decoder.target(d, Type::Pred)?;
    let (magnitude, mask) = (decoder.scratch_word()?, decoder.constant(0x7fff_ffff)?);
    decoder.emit_binary(Binary32::And, magnitude, a, mask)?;
    let infinity = f32::INFINITY.to_bits();
    // A range of magnitudes, moved down to start at zero.
    let (start, length) = match kind {
        0 => (0, infinity),
        1 => (infinity, 1),
        2 => (0, infinity + 1),
        3 => (infinity + 1, 0x7fff_ffff - infinity),
        4 => (0x0080_0000, infinity - 0x0080_0000),
        _ => (1, 0x007f_ffff),
    };
    let (start, length) = (decoder.constant(start)?, decoder.constant(length)?);
    let moved = decoder.scratch(Class::Word)?;
    decoder.emit_binary(Binary32::Sub, moved, magnitude, start)?;
    decoder.emit(Op::Compare { like: CompareAs::U32, comparison: Comparison::Lt, d, a: moved, b: length })
}
