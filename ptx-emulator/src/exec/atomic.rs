//! `atom` and `red`.

use super::Context;
use super::dependency;
use super::memory::{Lookup, address_of, resolve, uninitialised};
use crate::op::{Atomic, AtomicOp};
use crate::report::Outcome;
use crate::shared::Actor;
use crate::warp::{Warp, lanes};

/// What memory holds after `op`, from what it held. `None` leaves it as it is.
pub(crate) fn combine(op: AtomicOp, bytes: u32, old: u64, value: u64, swap: u64) -> Option<u64> {
    let signed = |bits: u64| if bytes == 4 { i64::from(bits as u32 as i32) } else { bits as i64 };
    let f32s = |f: fn(f32, f32) -> f32| {
        u64::from(super::float::canonical(f(f32::from_bits(old as u32), f32::from_bits(value as u32))))
    };
    Some(match op {
        AtomicOp::Add => old.wrapping_add(value),
        AtomicOp::AddF32 => f32s(|a, b| a + b),
        AtomicOp::AddF64 => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
        AtomicOp::MinUnsigned => old.min(value),
        AtomicOp::MaxUnsigned => old.max(value),
        AtomicOp::MinSigned => signed(old).min(signed(value)) as u64,
        AtomicOp::MaxSigned => signed(old).max(signed(value)) as u64,
        AtomicOp::And => old & value,
        AtomicOp::Or => old | value,
        AtomicOp::Xor => old ^ value,
        AtomicOp::Increment => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        AtomicOp::Exchange => value,
        AtomicOp::CompareAndSwap => return (old == value).then_some(swap),
    })
}

pub(crate) fn atomic(context: &mut Context<'_>, warp: &mut Warp, atomic: &Atomic, mask: u32) -> Outcome {
    let mut lookup = Lookup::new();
    let bytes = atomic.bytes;
    for lane in lanes(mask) {
        let (shared, address) = resolve(atomic.space, address_of(&warp.registers, &atomic.address, lane));
        let value = warp.registers.get(atomic.source, lane);
        let swap = atomic.swap.map_or(0, |swap| warp.registers.get(swap, lane));
        let old = if shared {
            let actor = Actor { warp: warp.id, clock: &warp.clock, strong: true, line: context.line, each: 0 };
            let offset = context.shared.offset(lane as u32, address, bytes, "an atomic")?;
            context.shared.note_read(&actor, lane as u32, offset, bytes)?;
            context.shared.note_write(&actor, lane as u32, offset, bytes)?;
            let old = context.shared.load(offset, bytes);
            if let Some(new) = combine(atomic.op, bytes, old, value, swap) {
                context.shared.store(offset, bytes, new);
            }
            old
        } else {
            let (allocation, offset) = lookup.find(context, lane, address, bytes, "an atomic")?;
            dependency::check_write(warp, lane, address)?;
            if !allocation.is_written(offset, bytes) {
                return Err(uninitialised(lane, address, bytes));
            }
            allocation.update(offset, bytes, |old| combine(atomic.op, bytes, old, value, swap))
        };
        if let Some(target) = atomic.target {
            warp.registers.set(target, lane, old);
        }
    }
    Ok(())
}
