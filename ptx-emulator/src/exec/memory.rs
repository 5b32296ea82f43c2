//! Loads and stores of parameters, global and shared memory.

use super::Context;
use super::dependency;
use crate::decode::SHARED_WINDOW;
use crate::memory::{Allocation, aligned};
use crate::op::{Access, Address, ParameterLoad, Register, Space};
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::Actor;
use crate::warp::{LANES, Registers, Warp, lanes};

/// The address that one lane forms.
#[inline]
pub(crate) fn address_of(registers: &Registers, address: &Address, lane: usize) -> u64 {
    match address.base {
        // Shared addresses have 32 bits.
        Register::Word(slot) => u64::from(registers.words[slot as usize].0[lane].wrapping_add(address.offset as u32)),
        base => registers.get(base, lane).wrapping_add(address.offset as u64),
    }
}

/// Where an address leads: shared memory, or global.
#[inline]
pub(crate) fn resolve(space: Space, address: u64) -> (bool, u64) {
    match space {
        Space::Shared => (true, address),
        Space::Global => (false, address),
        Space::Generic => {
            let within = address.wrapping_sub(SHARED_WINDOW);
            if within < 1 << 24 { (true, within) } else { (false, address) }
        }
    }
}

fn extend(value: u64, bytes: u32, signed: bool) -> u64 {
    let unused = 64 - 8 * bytes;
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}

pub(crate) fn load_parameter(parameters: &[u8], registers: &mut Registers, load: &ParameterLoad, mask: u32) {
    for (i, register) in load.registers.iter().enumerate() {
        let Some(register) = register else { continue };
        let start = (load.offset + i as u32 * load.bytes) as usize;
        let bytes = &parameters[start..start + load.bytes as usize];
        let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let value = extend(value, load.bytes, load.signed);
        lanes(mask).for_each(|lane| registers.set(*register, lane, value));
    }
}

/// The allocation of the last lane serves most of the next ones.
pub(crate) struct Lookup<'a> {
    last: Option<&'a Allocation>,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new() -> Lookup<'a> {
        Lookup { last: None }
    }

    #[inline]
    pub(crate) fn find(
        &mut self,
        context: &Context<'a>,
        lane: usize,
        address: u64,
        bytes: u32,
        verb: &str,
    ) -> Outcome<(&'a Allocation, usize)> {
        aligned(lane as u32, address, bytes)?;
        self.find_bytes(context, lane, address, bytes, verb)
    }

    /// The same for any number of bytes, wherever they begin.
    #[inline]
    pub(crate) fn find_bytes(
        &mut self,
        context: &Context<'a>,
        lane: usize,
        address: u64,
        bytes: u32,
        verb: &str,
    ) -> Outcome<(&'a Allocation, usize)> {
        if let Some(last) = self.last
            && let Some(offset) = last.offset(address, bytes)
        {
            return Ok((last, offset));
        }
        match context.memory.find(address, bytes) {
            Some(found) => {
                self.last = Some(found);
                Ok((found, address.wrapping_sub(found.base()) as usize))
            }
            None => Err(context.memory.fault(lane as u32, address, bytes, verb)),
        }
    }
}

#[cold]
pub(crate) fn uninitialised(lane: usize, address: u64, bytes: u32) -> Box<Fault> {
    let sentence = format!("a read of {bytes} bytes of global memory, not all of which were ever written");
    Fault::at(ReportKind::UninitialisedRead, lane as u32, address, sentence)
}

/// Where a full warp accesses one range, each lane the `total` bytes after the lane before. What is asked of the range
/// at once need not be asked lane by lane; if the answer is no, the lanes are asked to find out which it is.
enum Run<'a> {
    Shared(usize),
    Global(&'a Allocation, usize),
}

fn run<'a>(context: &Context<'a>, warp: &Warp, access: &Access, total: u32, mask: u32) -> Option<Run<'a>> {
    let first = address_of(&warp.registers, &access.address, 0);
    if mask != u32::MAX || first & u64::from(total - 1) != 0 {
        return None;
    }
    let consecutive = match access.address.base {
        Register::Word(slot) => {
            let base = &warp.registers.words[slot as usize].0;
            (0..LANES).fold(true, |run, lane| run & (base[lane] == base[0].wrapping_add(lane as u32 * total)))
        }
        Register::Long(slot) => {
            let base = &warp.registers.longs[slot as usize].0;
            let step = u64::from(total);
            (0..LANES).fold(true, |run, lane| run & (base[lane] == base[0].wrapping_add(lane as u64 * step)))
        }
        Register::Predicate(_) => false,
    };
    if !consecutive {
        return None;
    }
    let bytes = total * LANES as u32;
    match resolve(access.space, first) {
        (true, address) => context.shared.range(address, bytes).map(Run::Shared),
        (false, address) => {
            let allocation = context.memory.find(address, bytes)?;
            Some(Run::Global(allocation, (address - allocation.base()) as usize))
        }
    }
}

/// Loads by a full warp from one range; false if the lanes must be asked.
fn load_run(context: &mut Context<'_>, warp: &mut Warp, access: &Access, total: u32, mask: u32) -> bool {
    let bytes = total * LANES as u32;
    let start = match run(context, warp, access, total, mask) {
        Some(Run::Shared(offset)) => {
            let actor =
                Actor { warp: warp.id, clock: &warp.clock, strong: access.strong, line: context.line, each: total };
            if context.shared.note_read(&actor, 0, offset, bytes).is_err() {
                return false;
            }
            Run::Shared(offset)
        }
        Some(Run::Global(allocation, offset)) if allocation.is_written(offset, bytes) => {
            Run::Global(allocation, offset)
        }
        _ => return false,
    };
    for (i, register) in access.registers.iter().enumerate() {
        let Some(register) = *register else { continue };
        let place = |lane: usize| lane * total as usize + i * access.bytes as usize;
        let value = |lane: usize| match start {
            Run::Shared(offset) => context.shared.load(offset + place(lane), access.bytes),
            Run::Global(allocation, offset) => allocation.load(offset + place(lane), access.bytes),
        };
        (0..LANES).for_each(|lane| {
            warp.registers.set(register, lane, extend(value(lane), access.bytes, access.signed));
        });
    }
    true
}

/// Stores by a full warp to one range; false if the lanes must be asked.
fn store_run(context: &mut Context<'_>, warp: &Warp, access: &Access, total: u32, mask: u32) -> bool {
    let bytes = total * LANES as u32;
    let start = match run(context, warp, access, total, mask) {
        Some(Run::Shared(offset)) => {
            let actor =
                Actor { warp: warp.id, clock: &warp.clock, strong: access.strong, line: context.line, each: total };
            if context.shared.note_write(&actor, 0, offset, bytes).is_err() {
                return false;
            }
            Run::Shared(offset)
        }
        Some(global) => global,
        None => return false,
    };
    for (i, register) in access.registers.iter().enumerate() {
        let Some(register) = *register else { continue };
        for lane in 0..LANES {
            let (value, place) =
                (warp.registers.get(register, lane), lane * total as usize + i * access.bytes as usize);
            match start {
                Run::Shared(offset) => context.shared.store(offset + place, access.bytes, value),
                Run::Global(allocation, offset) => allocation.store(offset + place, access.bytes, value),
            }
        }
    }
    true
}

pub(crate) fn load(context: &mut Context<'_>, warp: &mut Warp, access: &Access, mask: u32) -> Outcome {
    let total = access.bytes * access.registers.len() as u32;
    if !dependency::is_early(context, warp, mask, access.read_only) && load_run(context, warp, access, total, mask) {
        return Ok(());
    }
    let mut lookup = Lookup::new();
    for lane in lanes(mask) {
        let (shared, address) = resolve(access.space, address_of(&warp.registers, &access.address, lane));
        let (allocation, offset) = if shared {
            let actor = Actor { warp: warp.id, clock: &warp.clock, strong: access.strong, line: context.line, each: 0 };
            let offset = context.shared.offset(lane as u32, address, total, "a read")?;
            context.shared.note_read(&actor, lane as u32, offset, total)?;
            (None, offset)
        } else {
            let (allocation, offset) = lookup.find(context, lane, address, total, "a read")?;
            dependency::check_read(context, warp, (lane, address), allocation, access.read_only)?;
            if !allocation.is_written(offset, total) {
                return Err(uninitialised(lane, address, total));
            }
            (Some(allocation), offset)
        };
        for (i, register) in access.registers.iter().enumerate() {
            let Some(register) = *register else { continue };
            let at = offset + i * access.bytes as usize;
            let value = match allocation {
                Some(allocation) => allocation.load(at, access.bytes),
                None => context.shared.load(at, access.bytes),
            };
            warp.registers.set(register, lane, extend(value, access.bytes, access.signed));
        }
    }
    Ok(())
}

pub(crate) fn store(context: &mut Context<'_>, warp: &mut Warp, access: &Access, mask: u32) -> Outcome {
    let total = access.bytes * access.registers.len() as u32;
    if warp.early & mask == 0 && store_run(context, warp, access, total, mask) {
        return Ok(());
    }
    let mut lookup = Lookup::new();
    for lane in lanes(mask) {
        let address = address_of(&warp.registers, &access.address, lane);
        let (shared, address) = resolve(access.space, address);
        let element = |register: &Option<Register>| register.map_or(0, |r| warp.registers.get(r, lane));
        let place = if shared {
            let actor = Actor { warp: warp.id, clock: &warp.clock, strong: access.strong, line: context.line, each: 0 };
            let offset = context.shared.offset(lane as u32, address, total, "a write")?;
            context.shared.note_write(&actor, lane as u32, offset, total)?;
            (None, offset)
        } else {
            let (allocation, offset) = lookup.find(context, lane, address, total, "a write")?;
            dependency::check_write(warp, lane, address)?;
            (Some(allocation), offset)
        };
        for (i, register) in access.registers.iter().enumerate() {
            let (value, at) = (element(register), place.1 + i * access.bytes as usize);
            match place.0 {
                Some(allocation) => allocation.store(at, access.bytes, value),
                None => context.shared.store(at, access.bytes, value),
            }
        }
    }
    Ok(())
}
