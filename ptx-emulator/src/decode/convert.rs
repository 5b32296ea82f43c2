//! `cvt` and `cvta`.

use super::integer::rounding;
use super::{Decoded, Decoder, Form, in_class};
use crate::op::{Binary32, Binary64, Conversion, Half, Narrow, Op, Register, Rounding, Slot, Unary32, Unary64};
use crate::parse::Operand;
use crate::types::{Class, Type};

/// Where the generic address space shows a block's shared memory.
pub(crate) const SHARED_WINDOW: u64 = 0x7f00_0000_0000;

/// Where it shows the parameters of the kernel.
pub(crate) const PARAMETER_WINDOW: u64 = 0x7e00_0000_0000;

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    match form.base {
        "cvt" => convert(decoder, form)?,
        "cvta" => convert_address(decoder, form)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn convert_address<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let to = form.take("to");
    let Some(space) = form.take_any(&["global", "shared", "shared::cta", "const", "param", "local"]) else {
        return decoder.fail("`cvta` needs a state space");
    };
    let ty = form.ty(decoder)?;
    let [d, a] = form.operands(decoder)?;
    if ty.bytes() != 8 || !matches!(space, 0..=2 | 4) {
        return decoder.fail("`cvta` is supported for 64-bit global, shared and parameter addresses");
    }
    let a = decoder.source(a, ty)?;
    let d = decoder.target(d, ty)?;
    if space == 0 {
        return decoder.emit(Op::Unary64 { f: Unary64::Copy, d, a });
    }
    let b = decoder.constant64(if space == 4 { PARAMETER_WINDOW } else { SHARED_WINDOW })?;
    decoder.emit(Op::Binary64 { f: if to { Binary64::Sub } else { Binary64::Add }, d, a, b })
}

fn half(ty: Type) -> Option<Half> {
    match ty {
        Type::F16 | Type::F16x2 => Some(Half::F16),
        Type::Bf16 | Type::Bf16x2 => Some(Half::Bf16),
        _ => None,
    }
}

fn convert<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let integral = form.take_any(&["rni", "rzi", "rmi", "rpi"]);
    let plain = rounding(form);
    let (ftz, saturate, relu) = (form.take("ftz"), form.take("sat"), form.take("relu"));
    let tf32 = form.take("tf32");
    let to = if tf32 { Type::F32 } else { form.ty(decoder)? };
    let from = form.ty(decoder)?;
    if let (Type::F16x2 | Type::Bf16x2, Some(format)) = (to, half(to)) {
        return pack(decoder, form, format, relu, plain, from);
    }
    let [d, a] = form.operands(decoder)?;
    let rounding = match (integral, plain) {
        (Some(at), _) => [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up][at],
        (None, Some(plain)) => plain,
        // Without one a conversion is exact, or an integer that goes toward zero.
        (None, None) => Rounding::Zero,
    };
    let (source, bytes) = decoder.source_sized(a, if tf32 { Type::B32 } else { from })?;
    if bytes < from.bytes() {
        return decoder.fail(format!("the source has {bytes} bytes, {from:?} needs {}", from.bytes()));
    }
    // An f32 kept as tf32 lives in a b32 register: ask for the class, then check the size.
    let (d, room) = decoder.target_sized(d, if tf32 { Type::B32 } else { to })?;
    if room < to.bytes() {
        return decoder.fail(format!("the destination has {room} bytes, {to:?} needs {}", to.bytes()));
    }
    let valid = |ty: Type| ty.is_float() || !matches!(ty, Type::Pred | Type::F16x2 | Type::Bf16x2);
    if !valid(from) || !valid(to) {
        return decoder.fail(format!("conversion from {from:?} to {to:?} is not supported"));
    }
    if from.is_float() && to.is_float() && !tf32 && to.bytes() < from.bytes() && plain.is_none() {
        return decoder.fail("a narrowing conversion needs a rounding such as `.rn`");
    }
    if !from.is_float() && !to.is_float() && !saturate {
        return integers(decoder, d, room, source, from, to);
    }
    let fast = match (from, to, rounding) {
        _ if saturate || relu || tf32 || ftz => None,
        (Type::S32, Type::F32, Rounding::Nearest) => Some(Unary32::F32FromS32),
        (Type::U32, Type::F32, Rounding::Nearest) => Some(Unary32::F32FromU32),
        (Type::F32, Type::S32, Rounding::Zero) => Some(Unary32::S32FromF32),
        (Type::F32, Type::U32, Rounding::Zero) => Some(Unary32::U32FromF32),
        (Type::F16, Type::F32, _) => Some(Unary32::F32FromHalf(Half::F16)),
        (Type::Bf16, Type::F32, _) => Some(Unary32::F32FromHalf(Half::Bf16)),
        (Type::F32, Type::F16, Rounding::Nearest) => Some(Unary32::HalfFromF32(Half::F16)),
        (Type::F32, Type::Bf16, Rounding::Nearest) => Some(Unary32::HalfFromF32(Half::Bf16)),
        _ => None,
    };
    if let Some(f) = fast {
        return decoder.emit(Op::Unary32 { f, d, a: source });
    }
    let to_integer = from.is_float() && !to.is_float();
    let integral = integral.is_some() && !to_integer;
    let conversion = Conversion { from, to, rounding, integral, saturate, relu, ftz, tf32 };
    let (d, a) = (in_class(to.class(), d), in_class(from.class(), source));
    decoder.emit(Op::Convert { conversion, d, a })?;
    extend(decoder, d, room, to)
}

/// A narrow signed result fills the register it is put in.
fn extend(decoder: &mut Decoder<'_, '_>, d: Register, room: u32, to: Type) -> Decoded {
    let f = match to {
        Type::S8 => Unary32::SignExtend8,
        Type::S16 if room == 4 => Unary32::SignExtend16,
        _ => return Ok(()),
    };
    let d = super::slot_of(d);
    decoder.emit(Op::Unary32 { f, d, a: d })?;
    if room == 2 {
        decoder.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a: d })?;
    }
    Ok(())
}

/// Integer to integer: cut to the source's size, bring to the target's file, cut to its size.
fn integers(decoder: &mut Decoder<'_, '_>, d: Slot, room: u32, mut a: Slot, from: Type, to: Type) -> Decoded {
    let cut = |ty: Type| match ty {
        Type::S8 => Some(Unary32::SignExtend8),
        Type::U8 | Type::B8 => Some(Unary32::ZeroExtend8),
        Type::S16 => Some(Unary32::SignExtend16),
        Type::U16 | Type::B16 => Some(Unary32::ZeroExtend16),
        _ => None,
    };
    match (from.class(), to.class()) {
        (Class::Long, Class::Long) => return decoder.emit(Op::Unary64 { f: Unary64::Copy, d, a }),
        (Class::Long, _) => {
            let low = decoder.scratch_word()?;
            decoder.emit(Op::Narrow { f: Narrow::Low, d: low, a })?;
            a = low;
        }
        _ => {
            if let Some(f) = cut(from) {
                let whole = decoder.scratch_word()?;
                decoder.emit(Op::Unary32 { f, d: whole, a })?;
                a = whole;
            }
            if to.class() == Class::Long {
                return decoder.emit(Op::Widen { signed: from.is_signed(), d, a });
            }
        }
    }
    match cut(to) {
        Some(f) if room == 2 && to.is_signed() => {
            let whole = decoder.scratch_word()?;
            decoder.emit(Op::Unary32 { f, d: whole, a })?;
            decoder.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a: whole })
        }
        Some(f) => decoder.emit(Op::Unary32 { f, d, a }),
        None => decoder.emit(Op::Unary32 { f: Unary32::Copy, d, a }),
    }
}

/// `cvt.rn.bf16x2.f32 d, a, b`: `a` becomes the upper half.
fn pack<'t, 'e>(
    decoder: &mut Decoder<'t, 'e>,
    form: &Form<'t, 'e>,
    format: Half,
    relu: bool,
    rounding: Option<Rounding>,
    from: Type,
) -> Decoded {
    let [d, a, b]: &'e [Operand<'t>; 3] = form.operands(decoder)?;
    if from != Type::F32 || rounding != Some(Rounding::Nearest) {
        return decoder.fail("a conversion to a pair takes two f32 sources and `.rn`");
    }
    let (a, b) = (decoder.source(a, from)?, decoder.source(b, from)?);
    let d = decoder.target(d, Type::B32)?;
    decoder.emit_binary(Binary32::PackHalf { format, relu }, d, a, b)
}
