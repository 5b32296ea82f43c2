//! Bulk copies: a box of a tensor to shared memory, counted in bytes by an mbarrier. They land as late as the rules
//! allow, which is when nobody can go on without.

use super::Context;
use super::dependency;
use super::mbarrier::{check, misuse, place};
use super::memory::{Lookup, address_of, uninitialised};
use crate::decode::PARAMETER_WINDOW;
use crate::memory::aligned;
use crate::op::{Address, BulkCopy, BulkPrefetch, Space};
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::{Actor, address};
use crate::tensor_map::{MAP_BYTES, TensorMap};
use crate::warp::{Warp, lanes};

/// Something under way that an mbarrier counts.
pub(crate) struct Flight {
    pub(crate) warp: u32,
    pub(crate) lane: u32,
    pub(crate) pc: u32,
    /// Offset of its mbarrier.
    pub(crate) mbarrier: u32,
    pub(crate) cargo: Cargo,
}

pub(crate) enum Cargo {
    /// A box, and the offset where it goes.
    Box { map: Box<TensorMap>, coordinates: [i32; 5], offset: u32 },
    /// An arrival when the `cp.async` of a lane before this number have landed.
    Arrival { before: u64 },
}

impl Flight {
    pub(crate) fn arrival(warp: u32, lane: u32, mbarrier: u32, before: u64) -> Flight {
        Flight { warp, lane, pc: 0, mbarrier, cargo: Cargo::Arrival { before } }
    }
}

/// Bytes to which the target of a bulk tensor copy is aligned.
const TARGET_ALIGNMENT: u32 = 128;
/// What address and size of a bulk prefetch are multiples of.
const PREFETCH_UNIT: u32 = 16;

/// The tensor map at a generic address.
pub(crate) fn tensor_map(context: &Context<'_>, warp: &Warp, map: &Address, lane: usize) -> Outcome<TensorMap> {
    let address = address_of(&warp.registers, map, lane);
    let refuse = |sentence: &str| Err(Fault::at(ReportKind::TensorMap, lane as u32, address, sentence));
    if !address.is_multiple_of(64) {
        return refuse("a tensor map lies at a multiple of 64 bytes");
    }
    let mut bytes = [0; MAP_BYTES];
    let start = address.wrapping_sub(PARAMETER_WINDOW) as usize;
    if let Some(parameter) = start.checked_add(MAP_BYTES).and_then(|end| context.parameters.get(start..end)) {
        bytes.copy_from_slice(parameter);
    } else if context.memory.read(address, &mut bytes, true).is_err() {
        return refuse(
            "there is no tensor map at this address; take a parameter's by `mov.b64` and `cvta.param`, or put it into \
             global memory",
        );
    }
    match TensorMap::decode(&bytes) {
        Some(map) => Ok(map),
        None => refuse("these 128 bytes are no tensor map of this machine; make it by `TensorMap::encode`"),
    }
}

/// Begins the copies of one instruction, one for each lane.
pub(crate) fn issue(context: &mut Context<'_>, warp: &mut Warp, copy: &BulkCopy, mask: u32) -> Outcome {
    for lane in lanes(mask) {
        let map = tensor_map(context, warp, &copy.map, lane)?;
        if copy.coordinates.len() != map.rank as usize {
            let sentence =
                format!("a copy in {} dimensions by a tensor map of rank {}", copy.coordinates.len(), map.rank);
            return Err(Fault::new(ReportKind::TensorMap, lane as u32, sentence));
        }
        let mbarrier = place(context, warp, Space::Shared, &copy.mbarrier, lane)?;
        check(context, warp, lane, mbarrier)?;
        if context.mbarriers.get(mbarrier).is_some_and(|mbarrier| !mbarrier.fenced) {
            let sentence = "a bulk copy uses this mbarrier, but no `fence.mbarrier_init` or `fence.proxy.async` has \
                            followed its initialisation";
            return Err(misuse(lane, mbarrier, sentence));
        }
        let target = address_of(&warp.registers, &copy.target, lane);
        aligned(lane as u32, target, TARGET_ALIGNMENT)?;
        let bytes = u32::try_from(map.box_bytes()).unwrap_or(u32::MAX);
        let offset = context.shared.inside(lane as u32, target, bytes, "a bulk copy")?;
        let mut coordinates = [0; 5];
        for (coordinate, &slot) in coordinates.iter_mut().zip(&copy.coordinates) {
            *coordinate = warp.registers.words[slot as usize].0[lane] as i32;
        }
        let mut lookup = Lookup::new();
        for row in map.rows(coordinates).filter(|row| row.bytes > 0) {
            let (allocation, at) = lookup.find_bytes(context, lane, row.address, row.bytes, "a bulk copy's read")?;
            dependency::check_read(context, warp, (lane, row.address), allocation, false)?;
            if !allocation.is_written(at, row.bytes) {
                return Err(uninitialised(lane, row.address, row.bytes));
            }
        }
        let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: context.line, each: 0 };
        context.shared.begin_bulk(&actor, lane as u32, offset, bytes)?;
        if let Some(mbarrier) = context.mbarriers.at(mbarrier) {
            mbarrier.copies += 1;
        }
        let cargo = Cargo::Box { map: Box::new(map), coordinates, offset: offset as u32 };
        context.flights.push(Flight { warp: warp.id, lane: lane as u32, pc: warp.pc, mbarrier, cargo });
    }
    Ok(())
}

/// Checks what a prefetch asks for: there is no cache to bring it to.
pub(crate) fn prefetch(context: &mut Context<'_>, warp: &mut Warp, prefetch: &BulkPrefetch, mask: u32) -> Outcome {
    let mut lookup = Lookup::new();
    for lane in lanes(mask) {
        let source = address_of(&warp.registers, &prefetch.source, lane);
        let bytes = warp.registers.words[prefetch.bytes as usize].0[lane];
        aligned(lane as u32, source, PREFETCH_UNIT)?;
        if bytes == 0 || !bytes.is_multiple_of(PREFETCH_UNIT) {
            let sentence = format!("a bulk prefetch of {bytes} bytes; it takes a multiple of {PREFETCH_UNIT}");
            return Err(Fault::at(ReportKind::Misaligned, lane as u32, source, sentence));
        }
        lookup.find_bytes(context, lane, source, bytes, "a bulk prefetch")?;
    }
    Ok(())
}

/// Lands a box: its bytes are in shared memory, and counted.
pub(crate) fn land(context: &mut Context<'_>, flight: &Flight) -> Outcome {
    let Cargo::Box { map, coordinates, offset } = &flight.cargo else { return Ok(()) };
    let mut lookup = Lookup::new();
    let mut buffer = vec![0; map.row_bytes() as usize];
    for (number, row) in map.rows(*coordinates).enumerate() {
        buffer.fill(0);
        if row.bytes > 0 {
            let lane = flight.lane as usize;
            let (allocation, at) = lookup.find_bytes(context, lane, row.address, row.bytes, "a bulk copy's read")?;
            allocation.copy(at, &mut buffer[row.skip as usize..(row.skip + row.bytes) as usize]);
        }
        let start = address(*offset as usize) as u32 + number as u32 * map.row_bytes();
        for (piece, bytes) in buffer.as_chunks::<16>().0.iter().enumerate() {
            let place = map.swizzle.place(start + 16 * piece as u32);
            // The box ends where it ends; a pattern that it begins in the middle of may reach beyond.
            let place = context.shared.inside(flight.lane, place.into(), 16, "a bulk copy")?;
            context.shared.put_row(place, *bytes);
        }
    }
    let bytes = map.box_bytes();
    if let Some(mbarrier) = context.mbarriers.at(flight.mbarrier) {
        context.shared.end_bulk(mbarrier.epoch(), *offset as usize, bytes as u32);
        mbarrier.complete(bytes);
    }
    Ok(())
}
