//! `mbarrier`, and the arrivals that copies make.

use super::memory::{address, space, strong};
use super::{Decoded, Decoder, Form};
use crate::op::{Mbarrier, MbarrierAction, Op, PhaseWait, Register, Space};
use crate::parse::Operand;
use crate::types::Type;

pub(super) fn decode<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<bool> {
    if form.base != "mbarrier" {
        return Ok(false);
    }
    match form.take_any(&["init", "inval", "arrive", "expect_tx", "try_wait", "test_wait"]) {
        Some(0) => {
            let space = place(decoder, form)?;
            let [at, count] = form.operands(decoder)?;
            let count = decoder.source(count, Type::U32)?;
            emit(decoder, space, at, MbarrierAction::Initialise { count })?;
        }
        Some(1) => {
            let space = place(decoder, form)?;
            let [at] = form.operands(decoder)?;
            emit(decoder, space, at, MbarrierAction::Invalidate)?;
        }
        Some(2) => arrive(decoder, form)?,
        Some(3) => {
            let space = place(decoder, form)?;
            let [at, bytes] = form.operands(decoder)?;
            let bytes = decoder.source(bytes, Type::U32)?;
            emit(decoder, space, at, MbarrierAction::Expect { bytes })?;
        }
        Some(_) => wait(decoder, form)?,
        None => {
            return decoder.fail("of the mbarrier instructions init, inval, arrive, expect_tx and waits are supported");
        }
    }
    Ok(true)
}

/// Takes ordering, scope, space and type.
fn place<'t, 'e>(decoder: &Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded<Space> {
    strong(form);
    let space = space(decoder, form)?;
    if !form.take("b64") || space == Space::Global {
        return decoder.fail("an mbarrier is `.b64` in shared memory");
    }
    Ok(space)
}

fn emit<'t, 'e>(decoder: &mut Decoder<'t, 'e>, space: Space, at: &'e Operand<'t>, action: MbarrierAction) -> Decoded {
    let address = address(decoder, at, space)?;
    decoder.emit(Op::Mbarrier(Box::new(Mbarrier { space, address, action })))
}

fn arrive<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let expects = form.take("expect_tx");
    let space = place(decoder, form)?;
    form.done(decoder)?;
    let (state, at, number) = match form.operands {
        [state, at] if !expects => (state, at, None),
        [state, at, number] => (state, at, Some(decoder.source(number, Type::U32)?)),
        _ => {
            return decoder
                .fail("`mbarrier.arrive` takes a state or `_`, an address, and a count or a number of bytes");
        }
    };
    let state = if *state == Operand::Name("_") { None } else { Some(decoder.target(state, Type::B64)?) };
    let (count, bytes) = if expects { (None, number) } else { (number, None) };
    emit(decoder, space, at, MbarrierAction::Arrive { count, bytes, state })
}

fn wait<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    let parity = form.take("parity");
    let space = place(decoder, form)?;
    form.done(decoder)?;
    let (target, at, phase) = match form.operands {
        [target, at, phase] => (target, at, phase),
        [target, at, phase, hint] => {
            decoder.source(hint, Type::U32)?;
            (target, at, phase)
        }
        _ => return decoder.fail("a wait takes a predicate, an address, a phase and an optional time"),
    };
    let address = address(decoder, at, space)?;
    let phase = match parity {
        true => Register::Word(decoder.source(phase, Type::U32)?),
        false => Register::Long(decoder.source(phase, Type::B64)?),
    };
    let target = decoder.target(target, Type::Pred)?;
    decoder.emit(Op::PhaseWait(Box::new(PhaseWait { space, address, target, phase })))
}

/// `cp.async.mbarrier.arrive.noinc`; without `.noinc` it would first add itself to the arrivals that are awaited.
pub(super) fn arrive_after_copies<'t, 'e>(decoder: &mut Decoder<'t, 'e>, form: &mut Form<'t, 'e>) -> Decoded {
    if !(form.take("arrive") & form.take("noinc")) {
        return decoder.fail("the instruction is supported as `cp.async.mbarrier.arrive.noinc`");
    }
    let space = place(decoder, form)?;
    let [at] = form.operands(decoder)?;
    emit(decoder, space, at, MbarrierAction::ArriveAfterCopies)
}
