//! Integer and logical instructions, selection, comparison, and moves.

use super::{Decoded, Decoder, Form};
use crate::op::{
    Binary32, Binary64, Boolean, CompareAs, Comparison, Half, Narrow, Op, PermuteMode, Register, Rounding, Shift64,
    Slot, Ternary32, Unary32, Unary64,
};
use crate::parse::Operand;
use crate::types::{Class, Type};

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    match form.base {
        "mov" => mov(decoder, form)?,
        "add" | "sub" | "min" | "max" | "div" | "rem" | "and" | "or" | "xor" => binary(decoder, form)?,
        "mul" => multiply(decoder, form)?,
        "mad" => multiply_add(decoder, form)?,
        "shl" | "shr" => shift(decoder, form)?,
        "neg" | "abs" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" => unary(decoder, form)?,
        "lop3" | "prmt" | "shf" | "dp4a" => ternary(decoder, form)?,
        "bfe" => extract(decoder, form)?,
        "bfi" => insert(decoder, form)?,
        "selp" => select(decoder, form)?,
        "setp" => compare(decoder, form)?,
        "set" => set(decoder, form)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn mov<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, a] = form.operands(decoder)?;
    match (d, a) {
        (Operand::Vector(parts), _) => unpack(decoder, parts, a, ty),
        (_, Operand::Vector(parts)) => pack(decoder, d, parts, ty),
        _ if ty == Type::Pred => {
            let (a, negated) = decoder.signed_predicate(a)?;
            let d = decoder.target(d, ty)?;
            decoder.emit(Op::PredicateCopy { d, a, negated })
        }
        (_, Operand::Name(name)) if matches!(*name, "%clock" | "%clock64" | "%globaltimer") => {
            let d = super::in_class(ty.class(), decoder.target(d, ty)?);
            decoder.emit(Op::Clock { d })
        }
        _ => {
            let a = decoder.source(a, ty)?;
            let d = decoder.target(d, ty)?;
            decoder.emit(match ty.class() {
                Class::Long => Op::Unary64 { f: Unary64::Copy, d, a },
                _ => Op::Unary32 { f: Unary32::Copy, d, a },
            })
        }
    }
}

/// `mov.b64 {a, b}, c` and its 16-bit form.
fn unpack<'t, 'e>(decoder: &mut Decoder<'t, 'e>, parts: &'e [Operand<'t>], a: &'e Operand<'t>, ty: Type) -> Decoded {
    let a = decoder.source(a, ty)?;
    let mut halves = vec![a];
    if ty.class() == Class::Long {
        halves.clear();
        for f in [Narrow::Low, Narrow::High] {
            let d = decoder.scratch_word()?;
            decoder.emit(Op::Narrow { f, d, a })?;
            halves.push(d);
        }
    }
    let each = ty.bytes() as usize / parts.len().max(1);
    if parts.len() * each != ty.bytes() as usize || !matches!(each, 2 | 4) {
        return decoder.fail("a value is taken apart into 2 or 4 parts of 16 or 32 bits");
    }
    let sixteen = decoder.constant(16)?;
    for (i, part) in parts.iter().enumerate() {
        if *part == Operand::Name("_") {
            continue;
        }
        if each == 4 {
            let d = decoder.target(part, Type::B32)?;
            decoder.emit(Op::Unary32 { f: Unary32::Copy, d, a: halves[i] })?;
        } else {
            let (d, a) = (decoder.target(part, Type::B16)?, halves[i / 2]);
            if i % 2 == 0 {
                decoder.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a })?;
            } else {
                decoder.emit_binary(Binary32::ShrUnsigned, d, a, sixteen)?;
            }
        }
    }
    Ok(())
}

/// `mov.b64 c, {a, b}` and its 16-bit form.
fn pack<'t, 'e>(decoder: &mut Decoder<'t, 'e>, d: &'e Operand<'t>, parts: &'e [Operand<'t>], ty: Type) -> Decoded {
    let each = match (ty.bytes(), parts.len()) {
        (8, 2) => Type::B32,
        (8, 4) | (4, 2) => Type::B16,
        _ => return decoder.fail("a value is put together from 2 or 4 parts of 16 or 32 bits"),
    };
    let mut slots = parts.iter().map(|part| decoder.source(part, each)).collect::<Decoded<Vec<Slot>>>()?;
    let d = decoder.target(d, ty)?;
    if ty.class() == Class::Word {
        return decoder.emit_binary(Binary32::Pack16, d, slots[0], slots[1]);
    }
    if let [a, b, c, e] = slots[..] {
        let (low, high) = (decoder.scratch_word()?, decoder.scratch_word()?);
        decoder.emit_binary(Binary32::Pack16, low, a, b)?;
        decoder.emit_binary(Binary32::Pack16, high, c, e)?;
        slots = vec![low, high];
    }
    decoder.emit(Op::Pack64 { d, low: slots[0], high: slots[1] })
}

fn binary<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let saturate = form.take("sat");
    let ty = form.ty(decoder)?;
    let [d, a, b] = form.operands(decoder)?;
    if ty == Type::Pred {
        let op = match form.base {
            "and" => Boolean::And,
            "or" => Boolean::Or,
            "xor" => Boolean::Xor,
            _ => return decoder.fail("predicates have only and, or, xor and not"),
        };
        let (a, b) = (decoder.predicate(a)?, decoder.predicate(b)?);
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::Boolean { op, d, a, b, negate_b: false });
    }
    let signed = ty.is_signed();
    let pick = |yes: Binary32, no: Binary32| if signed { yes } else { no };
    let pick64 = |yes: Binary64, no: Binary64| if signed { yes } else { no };
    if ty.is_float() || ty.bytes() == 1 {
        return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base));
    }
    if ty.bytes() == 8 {
        let f = match form.base {
            "add" => Binary64::Add,
            "sub" => Binary64::Sub,
            "min" => pick64(Binary64::MinSigned, Binary64::MinUnsigned),
            "max" => pick64(Binary64::MaxSigned, Binary64::MaxUnsigned),
            "div" => pick64(Binary64::DivSigned, Binary64::DivUnsigned),
            "rem" => pick64(Binary64::RemSigned, Binary64::RemUnsigned),
            "and" => Binary64::And,
            "or" => Binary64::Or,
            _ => Binary64::Xor,
        };
        let (a, b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::Binary64 { f, d, a, b });
    }
    let f = match form.base {
        "add" if saturate => Binary32::AddSaturate,
        "sub" if saturate => Binary32::SubSaturate,
        "add" => Binary32::Add,
        "sub" => Binary32::Sub,
        "min" => pick(Binary32::MinSigned, Binary32::MinUnsigned),
        "max" => pick(Binary32::MaxSigned, Binary32::MaxUnsigned),
        "div" => pick(Binary32::DivSigned, Binary32::DivUnsigned),
        "rem" => pick(Binary32::RemSigned, Binary32::RemUnsigned),
        "and" => Binary32::And,
        "or" => Binary32::Or,
        _ => Binary32::Xor,
    };
    if saturate && ty != Type::S32 {
        return decoder.fail("`.sat` on an integer needs `.s32`");
    }
    let (a, b) = (decoder.extended(a, ty)?, decoder.extended(b, ty)?);
    decoder.emit_into(d, ty, |d| Op::Binary32 { f, d, a, b })
}

fn multiply<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let Some(part) = form.take_any(&["lo", "hi", "wide"]) else {
        return decoder.fail("an integer multiplication is `.lo`, `.hi` or `.wide`");
    };
    let ty = form.ty(decoder)?;
    let [d, a, b] = form.operands(decoder)?;
    product(decoder, part, ty, a, b)?.store(decoder, d)
}

/// A product that has not been put anywhere yet.
struct Product {
    op: Box<dyn Fn(Slot) -> Op>,
    ty: Type,
}

impl Product {
    fn store<'t, 'e>(self, decoder: &mut Decoder<'t, 'e>, d: &'e Operand<'t>) -> Decoded {
        decoder.emit_into(d, self.ty, |d| (self.op)(d))
    }

    fn scratch(self, decoder: &mut Decoder<'_, '_>) -> Decoded<Slot> {
        let d = decoder.scratch(self.ty.class())?;
        decoder.emit((self.op)(d))?;
        Ok(d)
    }
}

fn product<'t, 'e>(
    decoder: &mut Decoder<'t, 'e>,
    part: usize,
    ty: Type,
    a: &'e Operand<'t>,
    b: &'e Operand<'t>,
) -> Decoded<Product> {
    let signed = ty.is_signed();
    if ty.is_float() || ty.bytes() == 1 || (ty.bytes() == 8 && part == 2) {
        return decoder.fail(format!("this multiplication is not supported for {ty:?}"));
    }
    if ty.bytes() == 8 {
        let (a, b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
        let f = match (part, signed) {
            (0, _) => Binary64::Mul,
            (_, true) => Binary64::MulHighSigned,
            (_, false) => Binary64::MulHighUnsigned,
        };
        return Ok(Product { op: Box::new(move |d| Op::Binary64 { f, d, a, b }), ty });
    }
    let (a, b) = (decoder.extended(a, ty)?, decoder.extended(b, ty)?);
    let f = match (part, ty.bytes(), signed) {
        (2, 4, _) => {
            let wide = if signed { Type::S64 } else { Type::U64 };
            return Ok(Product { op: Box::new(move |d| Op::MultiplyWide { signed, d, a, b }), ty: wide });
        }
        (2, ..) => {
            let wide = if signed { Type::S32 } else { Type::U32 };
            return Ok(Product { op: Box::new(move |d| Op::Binary32 { f: Binary32::Mul, d, a, b }), ty: wide });
        }
        (1, 2, _) => {
            let (whole, sixteen) = (decoder.scratch_word()?, decoder.constant(16)?);
            decoder.emit_binary(Binary32::Mul, whole, a, b)?;
            let f = Binary32::ShrUnsigned;
            return Ok(Product { op: Box::new(move |d| Op::Binary32 { f, d, a: whole, b: sixteen }), ty });
        }
        (1, _, true) => Binary32::MulHighSigned,
        (1, _, false) => Binary32::MulHighUnsigned,
        _ => Binary32::Mul,
    };
    Ok(Product { op: Box::new(move |d| Op::Binary32 { f, d, a, b }), ty })
}

fn multiply_add<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let Some(part) = form.take_any(&["lo", "hi", "wide"]) else {
        return decoder.fail("an integer multiply-add is `.lo`, `.hi` or `.wide`");
    };
    let ty = form.ty(decoder)?;
    let [d, a, b, c] = form.operands(decoder)?;
    let signed = ty.is_signed();
    if part == 0 && ty.bytes() == 4 {
        let (a, b, c) = (decoder.source(a, ty)?, decoder.source(b, ty)?, decoder.source(c, ty)?);
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::Ternary32 { f: Ternary32::Mad, d, a, b, c });
    }
    if part == 0 && ty.bytes() == 8 {
        let (a, b, c) = (decoder.source(a, ty)?, decoder.source(b, ty)?, decoder.source(c, ty)?);
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::Mad64 { d, a, b, c });
    }
    if part == 2 && ty.bytes() == 4 {
        let (a, b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
        let c = decoder.source(c, Type::U64)?;
        let d = decoder.target(d, Type::U64)?;
        return decoder.emit(Op::MadWide { signed, d, a, b, c });
    }
    let product = product(decoder, part, ty, a, b)?;
    let sum = product.ty;
    let a = product.scratch(decoder)?;
    let b = decoder.source(c, sum)?;
    decoder.emit_into(d, sum, |d| match sum.class() {
        Class::Long => Op::Binary64 { f: Binary64::Add, d, a, b },
        _ => Op::Binary32 { f: Binary32::Add, d, a, b },
    })
}

fn shift<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, a, b] = form.operands(decoder)?;
    let b = decoder.source(b, Type::U32)?;
    let left = form.base == "shl";
    match ty.bytes() {
        8 if !ty.is_float() => {
            let a = decoder.source(a, ty)?;
            let d = decoder.target(d, ty)?;
            let f = match (left, ty.is_signed()) {
                (true, _) => Shift64::Left,
                (false, true) => Shift64::RightSigned,
                (false, false) => Shift64::RightUnsigned,
            };
            decoder.emit(Op::Shift64 { f, d, a, b })
        }
        2 | 4 if !ty.is_float() => {
            let a = decoder.extended(a, ty)?;
            let f = match (left, ty.is_signed()) {
                (true, _) => Binary32::Shl,
                (false, true) => Binary32::ShrSigned,
                (false, false) => Binary32::ShrUnsigned,
            };
            decoder.emit_into(d, ty, |d| Op::Binary32 { f, d, a, b })
        }
        _ => decoder.fail(format!("`{}` is not supported for {ty:?}", form.base)),
    }
}

fn unary<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let shift_amount = form.take("shiftamt");
    let ty = form.ty(decoder)?;
    let [d, a] = form.operands(decoder)?;
    if ty == Type::Pred && form.base == "not" {
        let a = decoder.predicate(a)?;
        let d = decoder.target(d, ty)?;
        return decoder.emit(Op::PredicateCopy { d, a, negated: true });
    }
    if ty.is_float() || !matches!(ty.bytes(), 2 | 4 | 8) {
        return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base));
    }
    let counts = match form.base {
        "popc" => Some((Unary32::Popc, Narrow::Popc)),
        "clz" => Some((Unary32::Clz, Narrow::Clz)),
        "bfind" if ty.is_signed() => Some((Unary32::BfindSigned, Narrow::BfindSigned)),
        "bfind" => Some((Unary32::BfindUnsigned, Narrow::BfindUnsigned)),
        _ => None,
    };
    if let Some((f, f64)) = counts {
        let a = decoder.source(a, ty)?;
        let d = decoder.target(d, Type::U32)?;
        decoder.emit(match ty.class() {
            Class::Long => Op::Narrow { f: f64, d, a },
            _ => Op::Unary32 { f, d, a },
        })?;
        if shift_amount {
            // The distance from the top instead of the position; none stays none.
            let top = decoder.constant(if ty.class() == Class::Long { 63 } else { 31 })?;
            let none = decoder.constant(u32::MAX)?;
            let (p, distance) = (decoder.scratch(Class::Predicate)?, decoder.scratch_word()?);
            decoder.emit(Op::Compare { like: CompareAs::U32, comparison: Comparison::Eq, d: p, a: d, b: none })?;
            decoder.emit_binary(Binary32::Sub, distance, top, d)?;
            decoder.emit(Op::Select32 { d, a: none, b: distance, p })?;
        }
        return Ok(());
    }
    if ty.class() == Class::Long {
        let a = decoder.source(a, ty)?;
        let d = decoder.target(d, ty)?;
        let f = match form.base {
            "neg" => Unary64::Neg,
            "abs" => Unary64::Abs,
            "not" => Unary64::Not,
            "brev" => Unary64::Brev,
            _ => return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base)),
        };
        return decoder.emit(Op::Unary64 { f, d, a });
    }
    let a = decoder.extended(a, ty)?;
    let f = match form.base {
        "neg" => Unary32::Neg,
        "abs" => Unary32::Abs,
        "not" => Unary32::Not,
        "brev" if ty.bytes() == 4 => Unary32::Brev,
        _ => return decoder.fail(format!("`{}` is not supported for {ty:?}", form.base)),
    };
    decoder.emit_into(d, ty, |d| Op::Unary32 { f, d, a })
}

fn ternary<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let mut operands = form.operands;
    let f = match form.base {
        "lop3" => match operands.split_last() {
            Some((Operand::Integer(table @ 0..=255), others)) => {
                operands = others;
                form.take("b32");
                Ternary32::Lop3(*table as u8)
            }
            _ => return decoder.fail("the table of `lop3` is an immediate from 0 to 255"),
        },
        "prmt" => {
            form.take("b32");
            Ternary32::Prmt(match form.take_any(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
                None => PermuteMode::Index,
                Some(0) => PermuteMode::Forward4,
                Some(1) => PermuteMode::Backward4,
                Some(2) => PermuteMode::Replicate8,
                Some(3) => PermuteMode::EdgeLeft,
                Some(4) => PermuteMode::EdgeRight,
                Some(_) => PermuteMode::Replicate16,
            })
        }
        "dp4a" => {
            let signed = [form.ty(decoder)?.is_signed(), form.ty(decoder)?.is_signed()];
            Ternary32::Dp4a { signed }
        }
        _ => {
            form.take("b32");
            let left = form.take("l");
            if !left && !form.take("r") {
                return decoder.fail("a funnel shift is `.l` or `.r`");
            }
            let wrap = form.take("wrap");
            if !wrap && !form.take("clamp") {
                return decoder.fail("a funnel shift is `.wrap` or `.clamp`");
            }
            if left { Ternary32::ShiftLeft { wrap } } else { Ternary32::ShiftRight { wrap } }
        }
    };
    form.operands = operands;
    let [d, a, b, c] = form.operands(decoder)?;
    let ty = Type::B32;
    let (a, b, c) = (decoder.source(a, ty)?, decoder.source(b, ty)?, decoder.source(c, ty)?);
    let d = decoder.target(d, ty)?;
    decoder.emit(Op::Ternary32 { f, d, a, b, c })
}

fn extract<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, a, position, length] = form.operands(decoder)?;
    let a = decoder.source(a, ty)?;
    let (position, length) = (decoder.source(position, Type::U32)?, decoder.source(length, Type::U32)?);
    let (d, signed) = (decoder.target(d, ty)?, ty.is_signed());
    let f = if signed { Ternary32::BfeSigned } else { Ternary32::BfeUnsigned };
    match ty.bytes() {
        4 => decoder.emit(Op::Ternary32 { f, d, a, b: position, c: length }),
        8 => decoder.emit(Op::Bfe64 { signed, d, a, position, length }),
        _ => decoder.fail("`bfe` has 32 or 64 bits"),
    }
}

fn insert<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, a, b, position, length] = form.operands(decoder)?;
    let (a, b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
    let (position, length) = (decoder.source(position, Type::U32)?, decoder.source(length, Type::U32)?);
    let d = decoder.target(d, ty)?;
    match ty.bytes() {
        4 => decoder.emit(Op::Bfi32 { d, a, b, position, length }),
        8 => decoder.emit(Op::Bfi64 { d, a, b, position, length }),
        _ => decoder.fail("`bfi` has 32 or 64 bits"),
    }
}

fn select<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let [d, a, b, p] = form.operands(decoder)?;
    let (mut a, mut b) = (decoder.source(a, ty)?, decoder.source(b, ty)?);
    let (p, negated) = decoder.signed_predicate(p)?;
    if negated {
        std::mem::swap(&mut a, &mut b);
    }
    let d = decoder.target(d, ty)?;
    match ty.class() {
        Class::Word => decoder.emit(Op::Select32 { d, a, b, p }),
        Class::Long => decoder.emit(Op::Select64 { d, a, b, p }),
        Class::Predicate => decoder.fail("`selp` selects values, not predicates"),
    }
}

/// A comparison of `a` and `b` into a scratch predicate.
fn comparison<'t, 'e>(
    decoder: &mut Decoder<'t, 'e>,
    name: &str,
    ty: Type,
    ftz: bool,
    a: &'e Operand<'t>,
    b: &'e Operand<'t>,
) -> Decoded<Slot> {
    let (comparison, unsigned) = match name {
        "eq" => (Comparison::Eq, false),
        "ne" => (Comparison::Ne, false),
        "lt" => (Comparison::Lt, false),
        "le" => (Comparison::Le, false),
        "gt" => (Comparison::Gt, false),
        "ge" => (Comparison::Ge, false),
        "lo" => (Comparison::Lt, true),
        "ls" => (Comparison::Le, true),
        "hi" => (Comparison::Gt, true),
        "hs" => (Comparison::Ge, true),
        "equ" => (Comparison::Equ, false),
        "neu" => (Comparison::Neu, false),
        "ltu" => (Comparison::Ltu, false),
        "leu" => (Comparison::Leu, false),
        "gtu" => (Comparison::Gtu, false),
        "geu" => (Comparison::Geu, false),
        "num" => (Comparison::Num, false),
        "nan" => (Comparison::Nan, false),
        _ => return decoder.fail(format!("`{name}` is not a comparison")),
    };
    if (!ty.is_float() && comparison as u32 >= Comparison::Equ as u32) || (unsigned && ty.is_signed()) {
        return decoder.fail(format!("`{name}` does not compare {ty:?}"));
    }
    let like = match ty {
        Type::F32 => CompareAs::F32 { ftz },
        Type::F16 | Type::Bf16 => CompareAs::F32 { ftz: false },
        Type::F64 => CompareAs::F64,
        Type::S64 => CompareAs::S64,
        Type::U64 | Type::B64 => CompareAs::U64,
        Type::S32 | Type::S16 => CompareAs::S32,
        Type::U32 | Type::B32 | Type::U16 | Type::B16 => CompareAs::U32,
        _ => return decoder.fail(format!("comparing {ty:?} is not supported")),
    };
    let mut operand = |source: &'e Operand<'t>| match ty {
        Type::F16 | Type::Bf16 => {
            let format = if ty == Type::F16 { Half::F16 } else { Half::Bf16 };
            let (a, d) = (decoder.source(source, ty)?, decoder.scratch_word()?);
            decoder.emit(Op::Unary32 { f: Unary32::F32FromHalf(format), d, a })?;
            Ok(d)
        }
        _ => decoder.extended(source, ty),
    };
    let (a, b) = (operand(a)?, operand(b)?);
    let d = decoder.scratch(Class::Predicate)?;
    decoder.emit(Op::Compare { like, comparison, d, a, b })?;
    Ok(d)
}

/// The comparison and the optional combination of a `setp` or `set` opcode.
fn compare_modifiers<'t>(form: &mut Form<'t, '_>) -> (&'t str, Option<Boolean>, bool) {
    let ftz = form.take("ftz");
    let name = if form.rest.is_empty() { "" } else { form.rest.remove(0) };
    let boolean = form.take_any(&["and", "or", "xor"]).map(|at| [Boolean::And, Boolean::Or, Boolean::Xor][at]);
    (name, boolean, ftz)
}

fn compare<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let (name, boolean, ftz) = compare_modifiers(form);
    let ty = form.ty(decoder)?;
    let (targets, a, b, mut combined) = match boolean {
        Some(op) => {
            let [d, a, b, c] = form.operands(decoder)?;
            (d, a, b, Some((op, decoder.signed_predicate(c)?)))
        }
        None => {
            let [d, a, b] = form.operands(decoder)?;
            (d, a, b, None)
        }
    };
    let result = comparison(decoder, name, ty, ftz, a, b)?;
    let (first, second) = match targets {
        Operand::Pair(p, q) => (&**p, Some(&**q)),
        p => (p, None),
    };
    // The combining predicate may be a target of one result while the other still needs it.
    if let (Some((_, (slot, _))), Some(_)) = (&mut combined, second) {
        let (a, d) = (*slot, decoder.scratch(Class::Predicate)?);
        decoder.emit(Op::PredicateCopy { d, a, negated: false })?;
        *slot = d;
    }
    for (target, negated) in second.map(|q| (q, true)).into_iter().chain([(first, false)]) {
        let Some(d) = decoder.target_predicate(target)? else { continue };
        let mut a = result;
        if negated {
            a = decoder.scratch(Class::Predicate)?;
            decoder.emit(Op::PredicateCopy { d: a, a: result, negated })?;
        }
        match combined {
            Some((op, (b, negate_b))) => decoder.emit(Op::Boolean { op, d, a, b, negate_b })?,
            None => decoder.emit(Op::PredicateCopy { d, a, negated: false })?,
        }
    }
    fuse_compare(decoder);
    Ok(())
}

/// A comparison straight into its only target needs no copy.
fn fuse_compare(decoder: &mut Decoder<'_, '_>) {
    if let [.., before, last] = &mut decoder.code[..]
        && let Op::PredicateCopy { d, a, negated: false } = last.op
        && let Op::Compare { d: compared, .. } = &mut before.op
        && *compared == a
    {
        *compared = d;
        decoder.code.pop();
    }
}

fn set<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let (name, boolean, ftz) = compare_modifiers(form);
    let (to, ty) = (form.ty(decoder)?, form.ty(decoder)?);
    if boolean.is_some() {
        return decoder.fail("`set` with a combined predicate is not supported");
    }
    let [d, a, b] = form.operands(decoder)?;
    let p = comparison(decoder, name, ty, ftz, a, b)?;
    let one = match to {
        Type::F32 => 1f32.to_bits(),
        Type::U32 | Type::S32 | Type::B32 => u32::MAX,
        _ => return decoder.fail(format!("`set` into {to:?} is not supported")),
    };
    let (a, b) = (decoder.constant(one)?, decoder.constant(0)?);
    let d = decoder.target(d, to)?;
    decoder.emit(Op::Select32 { d, a, b, p })
}

/// The rounding that a modifier names, for families that share it.
pub(super) fn rounding(form: &mut Form<'_, '_>) -> Option<Rounding> {
    let at = form.take_any(&["rn", "rz", "rm", "rp", "rna"])?;
    Some([Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up, Rounding::NearestAway][at])
}

/// A word or long register by its type.
pub(super) fn source_register<'t, 'e>(
    decoder: &mut Decoder<'t, 'e>,
    operand: &'e Operand<'t>,
    ty: Type,
) -> Decoded<Register> {
    Ok(super::in_class(ty.class(), decoder.source(operand, ty)?))
}
