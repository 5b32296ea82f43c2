//! Loads, stores, atomics, asynchronous copies, and the matrix instructions.

use super::integer::source_register;
use super::{Decoded, Decoder, Form, in_class};
use crate::op::{
    Access, Address, AsyncCopy, Atomic, AtomicOp, Half, LoadMatrix, MatrixMultiply, Op, ParameterLoad, Register, Slot,
    Space, StoreMatrix, Unary32, Unary64,
};
use crate::parse::Operand;
use crate::types::{Class, Type};

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    let base = form.base;
    match base {
        "ld" | "ldu" if form.take("param") => load_parameter(decoder, form)?,
        "ld" | "ldu" => load(decoder, form)?,
        "st" => store(decoder, form)?,
        "atom" | "red" => atomic(decoder, form)?,
        "cp" => copy(decoder, form)?,
        "prefetch" if form.take("tensormap") => super::bulk_copy::prefetch(decoder, form)?,
        "createpolicy" => {
            // A policy has no effect here; any value does.
            let [d, ..] = form.operands else { return decoder.fail("`createpolicy` takes a destination") };
            let (d, a) = (decoder.target(d, Type::B64)?, decoder.constant64(0)?);
            decoder.emit(Op::Unary64 { f: Unary64::Copy, d, a })?;
        }
        "prefetch" | "prefetchu" | "applypriority" | "discard" => decoder.emit(Op::Nothing)?,
        "ldmatrix" => load_matrix(decoder, form)?,
        "stmatrix" => store_matrix(decoder, form)?,
        "mma" => multiply(decoder, form)?,
        _ => return Ok(false),
    }
    Ok(true)
}

pub(super) fn space<'t, 'e>(decoder: &Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<Space> {
    if form.take_any(&["local", "const", "shared::cluster"]).is_some() {
        return decoder.fail("this state space is not supported; global and shared are");
    }
    Ok(match form.take_any(&["global", "shared", "shared::cta"]) {
        Some(0) => Space::Global,
        Some(_) => Space::Shared,
        None => Space::Generic,
    })
}

/// Takes what says how caches are to be used, which has no effect here.
pub(super) fn cache_hints(form: &mut Form<'_, '_>) {
    form.rest.retain(|part| {
        !(part.starts_with("L1::")
            || part.starts_with("L2::")
            || matches!(*part, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "weak"))
    });
}

/// Takes ordering and scope; true if the access is a strong one.
pub(super) fn strong(form: &mut Form<'_, '_>) -> bool {
    let strong = form.take_any(&["volatile", "relaxed", "acquire", "release", "acq_rel"]).is_some();
    form.take_any(&["cta", "cluster", "gpu", "sys"]);
    strong
}

pub(super) fn address<'t, 'e>(
    decoder: &mut Decoder<'t, 'e>,
    operand: &'e Operand<'t>,
    space: Space,
) -> Decoded<Address> {
    let Operand::Address(base, offset) = operand else {
        return decoder.fail("expected an address in brackets");
    };
    let base = match &**base {
        Operand::Name(name) if decoder.variables.contains_key(name) => Register::Word(decoder.source(base, Type::B32)?),
        Operand::Name(name) => match decoder.lookup(name)? {
            Some((register @ (Register::Long(_) | Register::Word(_)), _)) => {
                decoder.flow.read(register);
                register
            }
            _ => return decoder.fail(format!("the address base `{name}` is not a declared register or variable")),
        },
        Operand::Integer(value) => Register::Long(decoder.constant64(*value)?),
        _ => return decoder.fail("an address is a register or variable plus an integer"),
    };
    if space != Space::Shared && matches!(base, Register::Word(_)) {
        return decoder.fail("a global address is a 64-bit register");
    }
    Ok(Address { base, offset: *offset })
}

/// The elements of a vector operand, or the operand itself.
pub(super) fn elements<'t, 'e>(operand: &'e Operand<'t>) -> &'e [Operand<'t>] {
    match operand {
        Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    }
}

/// Takes `.v2` or `.v4` and checks the number of registers against it.
fn vector_length<'t, 'e>(decoder: &Decoder<'t, 'e>, form: &mut Form<'t, 'e>, ty: Type, found: usize) -> Decoded {
    let length = form.take_any(&["v2", "v4", "v8"]).map_or(1, |at| 2 << at);
    if length != found {
        return decoder.fail(format!("the vector has {found} registers, the opcode says {length}"));
    }
    if ty.bytes() * length as u32 > 16 {
        return decoder.fail("one access has at most 16 bytes");
    }
    Ok(())
}

/// Destination registers, and the 16-bit ones that a signed byte must be cut to.
type Targets = (Vec<Option<Register>>, Vec<Slot>, bool);

fn targets<'t, 'e>(decoder: &mut Decoder<'t, 'e>, operand: &'e Operand<'t>, ty: Type) -> Decoded<Targets> {
    let (mut registers, mut cut, mut wider) = (Vec::new(), Vec::new(), false);
    for element in elements(operand) {
        if *element == Operand::Name("_") {
            registers.push(None);
            continue;
        }
        // An integer may be loaded into a wider register, of either file.
        let class = match element {
            Operand::Name(name) => decoder.lookup(name)?.map_or(ty.class(), |(_, declared)| declared.class()),
            _ => ty.class(),
        };
        let as_type = if class == Class::Long && ty.class() == Class::Word { Type::B64 } else { ty };
        let (slot, room) = decoder.target_sized(element, as_type)?;
        if room < ty.bytes() {
            return decoder.fail(format!("the destination has {room} bytes, {ty:?} needs {}", ty.bytes()));
        }
        if ty == Type::S8 && room == 2 {
            cut.push(slot);
        }
        wider |= room > ty.bytes();
        registers.push(Some(in_class(class, slot)));
    }
    Ok((registers, cut, wider && ty.is_signed()))
}

fn cut_targets(decoder: &mut Decoder<'_, '_>, cut: Vec<Slot>) -> Decoded {
    cut.into_iter().try_for_each(|d| decoder.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a: d }))
}

fn load_parameter<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let ty = form.ty(decoder)?;
    let (length, place) = match form.operands {
        [d, place] => (elements(d).len(), place),
        _ => return decoder.fail("`ld` takes a destination and an address"),
    };
    vector_length(decoder, form, ty, length)?;
    let [d, _] = form.operands(decoder)?;
    let Operand::Address(base, offset) = place else { return decoder.fail("expected an address in brackets") };
    let Operand::Name(name) = &**base else { return decoder.fail("expected the name of a parameter") };
    let Some((start, size)) = decoder.parameter(name) else {
        return decoder.fail(format!("the kernel has no parameter `{name}`"));
    };
    let total = ty.bytes() * length as u32;
    let Some(offset) = u32::try_from(*offset).ok().filter(|&at| at.saturating_add(total) <= size) else {
        return decoder.fail(format!("parameter `{name}` has {size} bytes; the load goes beyond them"));
    };
    let (registers, cut, signed) = targets(decoder, d, ty)?;
    let load = ParameterLoad { offset: start + offset, bytes: ty.bytes(), signed, registers };
    decoder.emit(Op::LoadParameter(Box::new(load)))?;
    cut_targets(decoder, cut)
}

fn load<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let strong = strong(form);
    let read_only = form.take("nc");
    cache_hints(form);
    let space = space(decoder, form)?;
    let ty = form.ty(decoder)?;
    let length = form.operands.first().map_or(0, |d| elements(d).len());
    vector_length(decoder, form, ty, length)?;
    let [d, place] = form.operands(decoder)?;
    let address = address(decoder, place, space)?;
    let (registers, cut, signed) = targets(decoder, d, ty)?;
    if space != Space::Global {
        decoder.shared_access(ty.bytes() * length as u32);
    }
    let access = Access { space, address, bytes: ty.bytes(), signed, strong, read_only, registers };
    decoder.emit(Op::Load(Box::new(access)))?;
    cut_targets(decoder, cut)
}

fn store<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let strong = strong(form);
    cache_hints(form);
    let space = space(decoder, form)?;
    let ty = form.ty(decoder)?;
    let length = form.operands.get(1).map_or(0, |a| elements(a).len());
    vector_length(decoder, form, ty, length)?;
    let [place, a] = form.operands(decoder)?;
    let address = address(decoder, place, space)?;
    let mut registers = Vec::new();
    for element in elements(a) {
        let class = match element {
            Operand::Name(name) => decoder.lookup(name)?.map_or(ty.class(), |(_, declared)| declared.class()),
            _ => ty.class(),
        };
        let as_type = if class == Class::Long && ty.class() == Class::Word { Type::B64 } else { ty };
        let (slot, size) = decoder.source_sized(element, as_type)?;
        if size < ty.bytes() {
            return decoder.fail(format!("the source has {size} bytes, {ty:?} needs {}", ty.bytes()));
        }
        registers.push(Some(in_class(class, slot)));
    }
    if space != Space::Global {
        decoder.shared_access(ty.bytes() * length as u32);
    }
    let access = Access { space, address, bytes: ty.bytes(), signed: false, strong, read_only: false, registers };
    decoder.emit(Op::Store(Box::new(access)))
}

/// The operation of an atomic or of `redux` on `ty`.
pub(super) fn reduction(name: &str, ty: Type) -> Option<AtomicOp> {
    Some(match (name, ty) {
        ("add", Type::F32) => AtomicOp::AddF32,
        ("add", Type::F64) => AtomicOp::AddF64,
        _ if ty.is_float() => return None,
        ("add", _) => AtomicOp::Add,
        ("min", ty) if ty.is_signed() => AtomicOp::MinSigned,
        ("min", _) => AtomicOp::MinUnsigned,
        ("max", ty) if ty.is_signed() => AtomicOp::MaxSigned,
        ("max", _) => AtomicOp::MaxUnsigned,
        ("and", _) => AtomicOp::And,
        ("or", _) => AtomicOp::Or,
        ("xor", _) => AtomicOp::Xor,
        ("inc", Type::U32) => AtomicOp::Increment,
        ("dec", Type::U32) => AtomicOp::Decrement,
        ("exch", _) => AtomicOp::Exchange,
        ("cas", _) => AtomicOp::CompareAndSwap,
        _ => return None,
    })
}

const REDUCTIONS: [&str; 10] = ["add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"];

fn atomic<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    strong(form);
    cache_hints(form);
    let space = space(decoder, form)?;
    let name = form.take_any(&REDUCTIONS).map(|at| REDUCTIONS[at]);
    let ty = form.ty(decoder)?;
    let Some(op) = name.and_then(|name| reduction(name, ty)).filter(|_| matches!(ty.bytes(), 4 | 8)) else {
        return decoder.fail(format!("this atomic is not supported for {ty:?}"));
    };
    form.done(decoder)?;
    let returns = form.base == "atom";
    let swaps = op == AtomicOp::CompareAndSwap;
    let (target, place, sources) = match form.operands {
        [d, place, sources @ ..] if returns => (Some(d), place, sources),
        [place, sources @ ..] if !returns => (None, place, sources),
        _ => return decoder.fail("an atomic takes an address and a value"),
    };
    let (source, swap) = match sources {
        [a] if !swaps => (a, None),
        [a, b] if swaps => (a, Some(b)),
        _ => return decoder.fail("`cas` takes two values, every other atomic one"),
    };
    let address = address(decoder, place, space)?;
    let source = source_register(decoder, source, ty)?;
    let swap = swap.map(|swap| source_register(decoder, swap, ty)).transpose()?;
    let target = match target {
        Some(d) if *d != Operand::Name("_") => Some(in_class(ty.class(), decoder.target(d, ty)?)),
        _ => None,
    };
    if space != Space::Global {
        decoder.shared_access(ty.bytes());
    }
    decoder.emit(Op::Atomic(Box::new(Atomic { space, address, op, bytes: ty.bytes(), target, source, swap })))
}

fn copy<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    if !form.take("async") {
        return decoder.fail("of the `cp` instructions only `cp.async` is supported");
    }
    if form.take("bulk") {
        return super::bulk_copy::decode(decoder, form);
    }
    if form.take("mbarrier") {
        return super::mbarrier::arrive_after_copies(decoder, form);
    }
    if form.take("commit_group") {
        form.operands::<0>(decoder)?;
        return decoder.emit(Op::AsyncCommit);
    }
    if form.take("wait_all") {
        form.operands::<0>(decoder)?;
        return decoder.emit(Op::AsyncWait { groups: None });
    }
    if form.take("wait_group") {
        let [groups] = form.operands(decoder)?;
        let Operand::Integer(groups @ 0..=0xffff) = groups else {
            return decoder.fail("`cp.async.wait_group` takes an immediate");
        };
        return decoder.emit(Op::AsyncWait { groups: Some(*groups as u32) });
    }
    cache_hints(form);
    if !(form.take("shared") || form.take("shared::cta")) || !form.take("global") {
        return decoder.fail("`cp.async` copies from global to shared memory");
    }
    form.done(decoder)?;
    let (target, source, bytes, source_bytes) = match form.operands {
        [target, source, Operand::Integer(bytes)] => (target, source, *bytes, None),
        [target, source, Operand::Integer(bytes), source_bytes] => (target, source, *bytes, Some(source_bytes)),
        _ => return decoder.fail("`cp.async` takes two addresses, an immediate size and an optional source size"),
    };
    if !matches!(bytes, 4 | 8 | 16) {
        return decoder.fail("`cp.async` copies 4, 8 or 16 bytes");
    }
    decoder.shared_access(bytes as u32);
    let target = address(decoder, target, Space::Shared)?;
    let source = address(decoder, source, Space::Global)?;
    let source_bytes = source_bytes.map(|operand| decoder.source(operand, Type::U32)).transpose()?;
    let copy = AsyncCopy { target, source, bytes: bytes as u32, source_bytes };
    decoder.emit(Op::AsyncCopy(Box::new(copy)))
}

fn load_matrix<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let transposed = form.take("trans");
    let whole = form.take("sync") & form.take("aligned") & form.take("m8n8") & form.take("b16");
    let count = form.take_any(&["x1", "x2", "x4"]);
    let space = space(decoder, form)?;
    let (Some(count), true) = (count, whole && space != Space::Global) else {
        return decoder.fail("`ldmatrix` is supported as .sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16");
    };
    let [d, place] = form.operands(decoder)?;
    let address = address(decoder, place, Space::Shared)?;
    if space == Space::Generic && matches!(address.base, Register::Long(_)) {
        return decoder.fail("`ldmatrix` through a generic address is not supported; say `.shared`");
    }
    let registers = elements(d);
    if registers.len() != 1 << count {
        return decoder.fail(format!("`.x{}` needs that many destination registers", 1 << count));
    }
    let targets = registers.iter().map(|d| decoder.target(d, Type::B32)).collect::<Decoded<Vec<Slot>>>()?;
    decoder.emit(Op::LoadMatrix(Box::new(LoadMatrix { address, transposed, targets })))
}

fn store_matrix<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let transposed = form.take("trans");
    let whole = form.take("sync") & form.take("aligned") & form.take("m8n8") & form.take("b16");
    let count = form.take_any(&["x1", "x2", "x4"]);
    let space = space(decoder, form)?;
    let (Some(count), true) = (count, whole && space == Space::Shared) else {
        return decoder.fail("`stmatrix` is supported as .sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16");
    };
    let [place, a] = form.operands(decoder)?;
    let address = address(decoder, place, Space::Shared)?;
    let registers = elements(a);
    if registers.len() != 1 << count {
        return decoder.fail(format!("`.x{}` needs that many source registers", 1 << count));
    }
    let sources = registers.iter().map(|a| decoder.source(a, Type::B32)).collect::<Decoded<Vec<Slot>>>()?;
    decoder.emit(Op::StoreMatrix(Box::new(StoreMatrix { address, transposed, sources })))
}

/// The first register stands for those that a shallower instruction does not have.
fn slots<const N: usize>(slots: &[Slot]) -> [Slot; N] {
    std::array::from_fn(|i| slots.get(i).or(slots.first()).copied().unwrap_or(0))
}

fn multiply<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let whole = form.take("sync") & form.take("aligned") & form.take("row") & form.take("col");
    let shape = form.take_any(&["m16n8k8", "m16n8k16"]);
    let mut types = Vec::new();
    while let Some(ty) = form.take_type() {
        types.push(ty);
    }
    let format = match types[..] {
        [Type::F32, Type::Bf16, Type::Bf16, Type::F32] => Some(Half::Bf16),
        [Type::F32, Type::F16, Type::F16, Type::F32] => Some(Half::F16),
        _ => None,
    };
    let (Some(shape), Some(format), true) = (shape, format, whole) else {
        return decoder.fail("`mma` is supported as .sync.aligned.m16n8k{8,16}.row.col.f32.{f16,bf16}.{f16,bf16}.f32");
    };
    let [d, a, b, c] = form.operands(decoder)?;
    let (d, a, b, c) = (elements(d), elements(a), elements(b), elements(c));
    if (d.len(), a.len(), b.len(), c.len()) != (4, 2 << shape, 1 << shape, 4) {
        return decoder.fail("the fragments have the wrong number of registers for this shape");
    }
    let mut sources = |operands: &'e [Operand<'t>], ty: Type| {
        operands.iter().map(|operand| decoder.source(operand, ty)).collect::<Decoded<Vec<Slot>>>()
    };
    let (a, b, c) = (sources(a, Type::B32)?, sources(b, Type::B32)?, sources(c, Type::F32)?);
    let d = d.iter().map(|d| decoder.target(d, Type::F32)).collect::<Decoded<Vec<Slot>>>()?;
    let depth = 8 << shape as u32;
    let multiply = MatrixMultiply { format, d: slots(&d), a: slots(&a), b: slots(&b), c: slots(&c), depth };
    decoder.emit(Op::MatrixMultiply(Box::new(multiply)))
}
