//! Executes one decoded instruction for the lanes of a mask. Control flow and barriers belong to the scheduler.

pub(crate) mod async_copy;
mod atomic;
pub(crate) mod bulk_copy;
mod collective;
mod convert;
pub(crate) mod dependency;
mod float;
mod half;
mod integer;
mod long;
mod matrix;
pub(crate) mod mbarrier;
mod memory;
mod predicate;
pub(crate) mod wgmma;

pub(crate) use collective::{collective, required_lanes};

use bulk_copy::Flight;

use crate::clock::Party;
use crate::level::Level;
use crate::mbarrier::Mbarriers;
use crate::memory::Memory;
use crate::op::{Op, Slot};
use crate::report::Outcome;
use crate::shared::Shared;
use crate::warp::{LANES, Warp, Words, lanes};

/// What the warps of a block share.
pub(crate) struct Context<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) shared: Shared,
    pub(crate) parameters: &'a [u8],
    /// Where the allocations begin that the launch calls constant.
    pub(crate) constants: &'a [u64],
    /// Whether it may start before those in front have ended.
    pub(crate) early: bool,
    pub(crate) level: Level,
    /// Instructions this block has executed.
    pub(crate) executed: u64,
    pub(crate) mbarriers: Mbarriers,
    /// What mbarriers will count when it lands.
    pub(crate) flights: Vec<Flight>,
    /// Events for which somebody who polls may have waited.
    pub(crate) progress: u64,
    /// Line of the instruction at hand.
    pub(crate) line: u32,
}

/// Executes `op` in the lanes of `mask`.
#[inline]
pub(crate) fn execute(context: &mut Context<'_>, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
    let level = context.level;
    let registers = &mut warp.registers;
    let (words, longs) = (&mut registers.words[..], &mut registers.longs[..]);
    match *op {
        Op::Unary32 { f, d, a } => integer::unary(level, words, f, d, a, mask),
        Op::Unary64 { f, d, a } => long::unary(level, longs, f, d, a, mask),
        Op::Narrow { f, d, a } => long::narrow(level, words, longs, f, d, a, mask),
        Op::Widen { signed, d, a } => long::widen(level, words, longs, signed, d, a, mask),
        Op::Pack64 { d, low, high } => long::pack(level, words, longs, d, low, high, mask),
        Op::Binary32 { f, d, a, b } => integer::binary(level, words, f, d, a, b, mask),
        Op::Binary64 { f, d, a, b } => long::binary(level, longs, f, d, a, b, mask),
        Op::Shift64 { f, d, a, b } => long::shift(level, words, longs, f, d, a, b, mask),
        Op::MultiplyWide { signed, d, a, b } => long::multiply_wide(level, words, longs, signed, d, a, b, mask),
        Op::MadWide { signed, d, a, b, c } => long::mad_wide(level, words, longs, signed, d, a, b, c, mask),
        Op::Ternary32 { f, d, a, b, c } => integer::ternary(level, words, f, d, a, b, c, mask),
        Op::Mad64 { d, a, b, c } => long::mad(level, longs, d, a, b, c, mask),
        Op::FmaF64 { d, a, b, c } => long::fma(level, longs, d, a, b, c, mask),
        Op::Bfi32 { d, a, b, position, length } => integer::insert(level, words, d, [a, b, position, length], mask),
        Op::Bfi64 { d, a, b, position, length } => long::insert(words, longs, d, [a, b], [position, length], mask),
        Op::Bfe64 { signed, d, a, position, length } => {
            long::extract(words, longs, signed, d, a, [position, length], mask)
        }
        Op::Select32 { d, a, b, p } => {
            integer::select(level, words, d, a, b, registers.predicates[p as usize], mask);
        }
        Op::Select64 { d, a, b, p } => long::select(level, longs, d, a, b, registers.predicates[p as usize], mask),
        Op::Compare { like, comparison, d, a, b } => {
            let mut bits = 0;
            predicate::compare(level, words, longs, like, comparison, a, b, &mut bits);
            registers.set_predicate(d, mask, bits);
        }
        Op::Boolean { op, d, a, b, negate_b } => predicate::boolean(registers, op, d, a, b, negate_b, mask),
        Op::PredicateCopy { d, a, negated } => {
            let bits = registers.predicates[a as usize] ^ if negated { u32::MAX } else { 0 };
            registers.set_predicate(d, mask, bits);
        }
        Op::Convert { conversion, d, a } => {
            for lane in lanes(mask) {
                let value = convert::convert(&conversion, registers.get(a, lane));
                registers.set(d, lane, value);
            }
        }
        Op::Clock { d } => lanes(mask).for_each(|lane| registers.set(d, lane, context.executed)),
        Op::ActiveMask { d } => fill(words, d, mask, mask),
        Op::LoadParameter(ref load) => memory::load_parameter(context.parameters, registers, load, mask),
        Op::Load(ref access) => memory::load(context, warp, access, mask)?,
        Op::Store(ref access) => memory::store(context, warp, access, mask)?,
        Op::Atomic(ref atomic) => atomic::atomic(context, warp, atomic, mask)?,
        Op::AsyncCopy(ref copy) => async_copy::issue(context, warp, copy, mask)?,
        Op::AsyncCommit => lanes(mask).for_each(|lane| warp.committed[lane] += 1),
        Op::AsyncWait { groups } => async_copy::wait(context, warp, groups, mask)?,
        Op::Mbarrier(ref how) => mbarrier::execute(context, warp, how, mask)?,
        Op::LaunchWait => dependency::wait(warp, mask),
        Op::MbarrierFence => context.mbarriers.fence(warp.id),
        Op::ProxyFence => {
            context.mbarriers.fence(warp.id);
            if context.shared.fence(warp.id, mask) {
                warp.clock.set(Party::fences(warp.id), warp.clock.of(Party::warp(warp.id)));
                warp.tick();
            }
        }
        Op::BulkCopy(ref copy) => bulk_copy::issue(context, warp, copy, mask)?,
        Op::BulkPrefetch(ref prefetch) => bulk_copy::prefetch(context, warp, prefetch, mask)?,
        Op::PrefetchTensorMap { ref map } => {
            for lane in lanes(mask) {
                bulk_copy::tensor_map(context, warp, map, lane)?;
            }
        }
        Op::StoreMatrix(ref store) => matrix::store(context, warp, store)?,
        Op::LoadMatrix(ref load) => matrix::load(context, warp, load)?,
        Op::MatrixMultiply(ref multiply) => matrix::multiply(level, words, multiply),
        Op::Nothing
        | Op::Collective { .. }
        | Op::Barrier(_)
        | Op::PhaseWait(_)
        | Op::Warpgroup(_)
        | Op::Branch { .. }
        | Op::Exit
        | Op::Trap => {}
    }
    Ok(())
}

/// Sets word `d` to `value` in the lanes of `mask`.
fn fill(words: &mut [Words], d: Slot, value: u32, mask: u32) {
    put(words, d, [value; LANES], mask);
}

/// Sets word `d` in the lanes of `mask`.
#[inline(always)]
fn put(words: &mut [Words], d: Slot, values: [u32; LANES], mask: u32) {
    let d = &mut words[d as usize].0;
    if mask == u32::MAX {
        *d = values;
    } else {
        for lane in 0..LANES {
            d[lane] = if mask >> lane & 1 != 0 { values[lane] } else { d[lane] };
        }
    }
}

#[inline(always)]
fn map1(words: &mut [Words], d: Slot, a: Slot, mask: u32, f: impl Fn(u32) -> u32) {
    let a = &words[a as usize].0;
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane]);
    }
    put(words, d, values, mask);
}

#[inline(always)]
fn map2(words: &mut [Words], d: Slot, a: Slot, b: Slot, mask: u32, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (&words[a as usize].0, &words[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane], b[lane]);
    }
    put(words, d, values, mask);
}

#[inline(always)]
fn map3(words: &mut [Words], d: Slot, [a, b, c]: [Slot; 3], mask: u32, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (&words[a as usize].0, &words[b as usize].0, &words[c as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane], b[lane], c[lane]);
    }
    put(words, d, values, mask);
}
