//! `wgmma` and `setmaxnreg`: what the four warps of a warpgroup do together.

use super::memory::elements;
use super::{Decoded, Decoder, Form};
use crate::op::{Half, Op, Slot, Tile, Warpgroup, WarpgroupMultiply};
use crate::parse::Operand;
use crate::types::Type;

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    if !matches!(form.base, "wgmma" | "setmaxnreg") {
        return Ok(false);
    }
    if !(form.take("sync") & form.take("aligned")) {
        return decoder.fail(format!("`{}` is `.sync.aligned`", form.base)).map(|()| true);
    }
    let how = match form.take_any(&["fence", "commit_group", "wait_group", "mma_async", "inc", "dec"]) {
        Some(0) => {
            form.operands::<0>(decoder)?;
            Warpgroup::Fence
        }
        Some(1) => {
            form.operands::<0>(decoder)?;
            Warpgroup::Commit
        }
        Some(2) => match form.operands(decoder)? {
            [Operand::Integer(groups @ 0..=7)] => Warpgroup::Wait { groups: *groups as u32 },
            _ => return decoder.fail("`wgmma.wait_group` takes an immediate from 0 to 7"),
        },
        Some(3) => Warpgroup::Multiply(multiply(decoder, form)?),
        Some(at) => {
            form.take("u32");
            match form.operands(decoder)? {
                [Operand::Integer(count @ 24..=256)] if count.is_multiple_of(8) => {
                    Warpgroup::Registers { count: *count as u32, more: at == 4 }
                }
                _ => return decoder.fail("`setmaxnreg` takes a multiple of 8 from 24 to 256"),
            }
        }
        None => return decoder.fail(format!("this form of `{}` is not supported", form.base)),
    };
    decoder.emit(Op::Warpgroup(Box::new(how)))?;
    Ok(true)
}

fn multiply<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<WarpgroupMultiply> {
    const SUPPORTED: &str = "`wgmma.mma_async` is supported as m64nNk16 with f32 accumulators and f16 or bf16 factors";
    let width = form.rest.iter().position(|part| part.starts_with("m64n")).and_then(|at| {
        let width = form.rest.remove(at).strip_prefix("m64n")?.strip_suffix("k16")?.parse::<usize>().ok()?;
        (width.is_multiple_of(8) && (8..=256).contains(&width)).then_some(width)
    });
    let types = (form.take_type(), form.take_type(), form.take_type());
    let format = match types {
        (Some(Type::F32), Some(Type::Bf16), Some(Type::Bf16)) => Half::Bf16,
        (Some(Type::F32), Some(Type::F16), Some(Type::F16)) => Half::F16,
        _ => return decoder.fail(SUPPORTED),
    };
    let Some(width) = width else { return decoder.fail(SUPPORTED) };
    form.done(decoder)?;
    let (d, a, b, accumulate, signs, transposes) = match form.operands {
        [d, a, b, p, x, y, transposes @ ..] => (d, a, b, p, [x, y], transposes),
        _ => {
            return decoder
                .fail("`wgmma.mma_async` takes d, a, b, scale-d, two signs, and whether a and b are transposed");
        }
    };
    let mut negative = false;
    for sign in signs {
        match sign {
            Operand::Integer(1) => {}
            Operand::Integer(u64::MAX) => negative = !negative,
            _ => return decoder.fail("the sign of a factor is 1 or -1"),
        }
    }
    let transposed = |decoder: &Decoder<'t, 'e>, operand: &Operand<'t>| match operand {
        Operand::Integer(bit @ 0..=1) => Ok(*bit == 1),
        _ => decoder.fail("whether a factor is transposed is 0 or 1"),
    };
    let (a, b_transposed) = match (a, transposes) {
        (Operand::Vector(parts), [b]) => {
            let parts = parts.iter().map(|part| decoder.source(part, Type::B32)).collect::<Decoded<Vec<Slot>>>()?;
            let Ok(parts) = parts.try_into() else { return decoder.fail("a fragment of a has four registers") };
            (Tile::Registers(parts), transposed(decoder, b)?)
        }
        (Operand::Name(_), [a_bit, b]) => {
            let descriptor = decoder.source(a, Type::B64)?;
            let transposed_a = transposed(decoder, a_bit)?;
            (Tile::Shared { descriptor, transposed: transposed_a }, transposed(decoder, b)?)
        }
        _ => return decoder.fail("a is a descriptor, with two bits of transposition, or four registers, with one"),
    };
    let b = decoder.source(b, Type::B64)?;
    let accumulate = decoder.predicate(accumulate)?;
    let d = elements(d);
    if d.len() != width / 2 {
        return decoder.fail(format!("n{width} has {} accumulators, found {}", width / 2, d.len()));
    }
    let d = d.iter().map(|d| decoder.target(d, Type::F32)).collect::<Decoded<Vec<Slot>>>()?;
    let fragment = if let Tile::Registers(parts) = &a { parts.to_vec() } else { Vec::new() };
    decoder.flow.multiply(d.iter().chain(&fragment).copied());
    Ok(WarpgroupMultiply { format, d, a, b, b_transposed, accumulate, negative })
}
