//! `cp.async`: data lands as late as the rules allow, which is when the thread that issued it waits for its group. A
//! copy that nobody waits for never lands.

use super::Context;
use super::dependency;
use super::memory::{Lookup, address_of, uninitialised};
use crate::memory::aligned;
use crate::op::AsyncCopy;
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::Actor;
use crate::warp::{LANES, Warp, lanes};

/// The copies of one instruction that have not landed.
pub(crate) struct InFlight {
    /// Which of the warp's copies it is.
    number: u64,
    /// Lanes whose copy is under way.
    mask: u32,
    bytes: u32,
    line: u32,
    /// Offset in shared memory.
    targets: [u32; LANES],
    sources: [u64; LANES],
    /// Bytes to read; the rest are zeros.
    read: [u8; LANES],
    /// Groups each lane had committed before.
    group: [u32; LANES],
}

/// Begins the copies of one instruction.
pub(crate) fn issue(context: &mut Context<'_>, warp: &mut Warp, copy: &AsyncCopy, mask: u32) -> Outcome {
    let mut flight = InFlight {
        number: warp.flights,
        mask,
        bytes: copy.bytes,
        line: context.line,
        targets: [0; LANES],
        sources: [0; LANES],
        read: [0; LANES],
        group: warp.committed,
    };
    let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: context.line, each: 0 };
    let mut lookup = Lookup::new();
    for lane in lanes(mask) {
        let target = address_of(&warp.registers, &copy.target, lane);
        let source = address_of(&warp.registers, &copy.source, lane);
        let read = copy.source_bytes.map_or(copy.bytes, |slot| warp.registers.words[slot as usize].0[lane]);
        if read > copy.bytes {
            let sentence = format!("`cp.async` of {} bytes is told to read {read} bytes from its source", copy.bytes);
            return Err(Fault::at(ReportKind::OutOfBounds, lane as u32, source, sentence));
        }
        let offset = context.shared.offset(lane as u32, target, copy.bytes, "an asynchronous write")?;
        // A copy that reads nothing may point anywhere, if it is aligned.
        aligned(lane as u32, source, copy.bytes)?;
        if read > 0 {
            let (allocation, at) = lookup.find_bytes(context, lane, source, read, "an asynchronous read")?;
            dependency::check_read(context, warp, (lane, source), allocation, false)?;
            if !allocation.is_written(at, read) {
                return Err(uninitialised(lane, source, read));
            }
        }
        context.shared.begin_async(&actor, lane as u32, offset, copy.bytes)?;
        flight.targets[lane] = offset as u32;
        flight.sources[lane] = source;
        flight.read[lane] = read as u8;
    }
    warp.in_flight.push_back(flight);
    warp.flights += 1;
    Ok(())
}

/// Lands what the lanes of `mask` wait for: all but the last `groups` groups, or everything.
pub(crate) fn wait(context: &mut Context<'_>, warp: &mut Warp, groups: Option<u32>, mask: u32) -> Outcome {
    let committed = warp.committed;
    land(context, warp, mask, |flight, lane| match groups {
        Some(groups) => flight.group[lane].saturating_add(groups) < committed[lane],
        None => true,
    })
}

/// Lands the copies of a lane before one of the warp's.
pub(crate) fn land_before(context: &mut Context<'_>, warp: &mut Warp, lane: usize, number: u64) -> Outcome {
    land(context, warp, 1 << lane, |flight, _| flight.number < number)
}

fn land(context: &mut Context<'_>, warp: &mut Warp, mask: u32, is_due: impl Fn(&InFlight, usize) -> bool) -> Outcome {
    let mut lookup = Lookup::new();
    for flight in &mut warp.in_flight {
        for lane in lanes(flight.mask & mask) {
            if !is_due(flight, lane) {
                continue;
            }
            flight.mask &= !(1 << lane);
            let mut data = [0; 16];
            let read = u32::from(flight.read[lane]);
            if read > 0 {
                let verb = "the read of an asynchronous copy";
                let (allocation, at) = lookup.find_bytes(context, lane, flight.sources[lane], read, verb)?;
                for (i, word) in data.chunks_exact_mut(4).enumerate() {
                    let from = 4 * i as u32;
                    if read >= from + 4 {
                        word.copy_from_slice(&(allocation.load(at + from as usize, 4) as u32).to_le_bytes());
                    } else {
                        for j in from..read {
                            word[(j - from) as usize] = allocation.load(at + j as usize, 1) as u8;
                        }
                    }
                }
            }
            // The write happens at the wait, and is known by the line of the copy.
            let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: flight.line, each: 0 };
            context.shared.land_async(
                &actor,
                lane as u32,
                flight.targets[lane] as usize,
                &data[..flight.bytes as usize],
            );
        }
    }
    warp.in_flight.retain(|flight| flight.mask != 0);
    Ok(())
}
