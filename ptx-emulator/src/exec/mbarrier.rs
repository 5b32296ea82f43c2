//! Instructions on mbarriers. Waits that do not succeed belong to the scheduler.

use super::Context;
use super::memory::{address_of, resolve};
use crate::clock::{Epoch, Party};
use crate::exec::bulk_copy::Flight;
use crate::mbarrier::Phase;
use crate::op::{Address, Mbarrier, MbarrierAction, PhaseWait, Register, Space};
use crate::report::{Fault, Outcome, ReportKind};
use crate::warp::{Warp, lanes};

/// Offset of the mbarrier that a lane names.
pub(crate) fn place(context: &Context<'_>, warp: &Warp, space: Space, address: &Address, lane: usize) -> Outcome<u32> {
    let (shared, address) = resolve(space, address_of(&warp.registers, address, lane));
    if !shared {
        let sentence = "an mbarrier lies in shared memory, which this address does not";
        return Err(Fault::at(ReportKind::OutOfBounds, lane as u32, address, sentence));
    }
    context.shared.offset(lane as u32, address, 8, "an access to an mbarrier").map(|offset| offset as u32)
}

pub(crate) fn misuse(lane: usize, offset: u32, sentence: impl Into<String>) -> Box<Fault> {
    Fault::at(ReportKind::Mbarrier, lane as u32, crate::shared::address(offset as usize), sentence)
}

/// Checks that there is an mbarrier whose initialisation the warp knows of.
pub(crate) fn check(context: &Context<'_>, warp: &Warp, lane: usize, offset: u32) -> Outcome {
    match context.mbarriers.get(offset) {
        None => Err(misuse(lane, offset, "there is no mbarrier here: it has not been initialised")),
        Some(mbarrier) if !mbarrier.is_known(warp.id, &warp.clock) => {
            Err(misuse(lane, offset, "no barrier stands between the initialisation of this mbarrier and its use"))
        }
        Some(_) => Ok(()),
    }
}

pub(crate) fn execute(context: &mut Context<'_>, warp: &mut Warp, how: &Mbarrier, mask: u32) -> Outcome {
    let word = |warp: &Warp, slot: u16, lane: usize| warp.registers.words[slot as usize].0[lane];
    for lane in lanes(mask) {
        let offset = place(context, warp, how.space, &how.address, lane)?;
        if let MbarrierAction::Initialise { count } = how.action {
            let party = Party::warp(warp.id);
            let born = Epoch::new(party, warp.clock.of(party), false);
            if !context.shared.claim(offset as usize) {
                let sentence = "these bytes are an mbarrier, or a copy is about to write them; invalidate it first";
                return Err(misuse(lane, offset, sentence));
            }
            let count = word(warp, count, lane);
            context.mbarriers.initialise(offset, born, count).map_err(|sentence| misuse(lane, offset, sentence))?;
            continue;
        }
        check(context, warp, lane, offset)?;
        context.progress += 1;
        if let MbarrierAction::Invalidate = how.action {
            if !context.mbarriers.invalidate(offset) {
                return Err(misuse(lane, offset, "an mbarrier is invalidated in the middle of a phase"));
            }
            context.shared.unclaim(offset as usize);
            continue;
        }
        let Some(mbarrier) = context.mbarriers.at(offset) else { continue };
        let result = match how.action {
            MbarrierAction::Initialise { .. } | MbarrierAction::Invalidate => Ok(()),
            MbarrierAction::Expect { bytes } => mbarrier.expect(word(warp, bytes, lane)),
            MbarrierAction::Arrive { count, bytes, state } => {
                let phase = mbarrier.phase();
                let announced = bytes.map_or(Ok(()), |bytes| mbarrier.expect(word(warp, bytes, lane)));
                let count = count.map_or(1, |count| word(warp, count, lane));
                let arrived = announced.and_then(|()| mbarrier.arrive(&warp.clock, count));
                if let Some(state) = state {
                    warp.registers.longs[state as usize].0[lane] = u64::from(phase);
                }
                arrived
            }
            MbarrierAction::ArriveAfterCopies => {
                let before = warp.flights;
                context.flights.push(Flight::arrival(warp.id, lane as u32, offset, before));
                mbarrier.copies += 1;
                Ok(())
            }
        };
        result.map_err(|sentence| misuse(lane, offset, sentence))?;
    }
    if let MbarrierAction::Arrive { .. } = how.action {
        warp.tick();
    }
    Ok(())
}

/// Asks the mbarriers of a wait. Lanes whose phase has ended know what was known to those who ended it. Gives the first
/// mbarrier whose phase has not, if none has.
pub(crate) fn ask(context: &Context<'_>, warp: &mut Warp, how: &PhaseWait, mask: u32) -> Outcome<Option<(u32, Phase)>> {
    let (mut over, mut open) = (0u32, None);
    for lane in lanes(mask) {
        let offset = place(context, warp, how.space, &how.address, lane)?;
        check(context, warp, lane, offset)?;
        let phase = match how.phase {
            Register::Long(slot) => Phase::Number(warp.registers.longs[slot as usize].0[lane]),
            word => Phase::Parity(warp.registers.get(word, lane) as u32),
        };
        let Some(mbarrier) = context.mbarriers.get(offset) else { continue };
        if mbarrier.is_over(phase) {
            if over == 0 {
                warp.clock.join(mbarrier.released());
            }
            over |= 1 << lane;
        } else if open.is_none() {
            open = Some((offset, phase));
        }
    }
    warp.registers.set_predicate(how.target, mask, over);
    Ok(open.filter(|_| over == 0))
}
