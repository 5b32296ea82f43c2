//! Exchanges between the lanes of a warp. The scheduler has brought the members together.

use super::atomic::combine;
use super::fill;
use crate::op::{AtomicOp, Collective, Op, Shuffle, Slot, Vote};
use crate::report::{Fault, Outcome, ReportKind};
use crate::warp::{LANES, Registers, Warp, lanes};

/// The lanes that must execute `op` together with any one of `mask`, if it is a warp-wide instruction. The second value
/// says whether lanes that have exited are excused.
pub(crate) fn required_lanes(warp: &Warp, op: &Op, mask: u32) -> Outcome<Option<(u32, bool)>> {
    let members = match op {
        Op::Collective { mask: members, collective } => {
            let members = &warp.registers.words[*members as usize].0;
            let first = members[mask.trailing_zeros() as usize & 31];
            if let Some(lane) = lanes(mask).find(|&lane| members[lane] != first) {
                let sentence = format!(
                    "lanes of one warp-wide instruction name different members: {first:#010x} and {:#010x}",
                    members[lane]
                );
                return Err(Fault::new(ReportKind::DivergentCollective, lane as u32, sentence));
            }
            if let Some(lane) = lanes(mask & !first).next() {
                let sentence = format!(
                    "lane {lane} executes a warp-wide instruction whose members {first:#010x} do not include it"
                );
                return Err(Fault::new(ReportKind::DivergentCollective, lane as u32, sentence));
            }
            // A full mask in a partial warp means the threads there are.
            (first & warp.exists, !matches!(**collective, Collective::Shuffle { .. }))
        }
        Op::LoadMatrix(_) | Op::StoreMatrix(_) | Op::MatrixMultiply(_) | Op::Warpgroup(_) => (u32::MAX, false),
        _ => return Ok(None),
    };
    Ok(Some(members))
}

/// Executes a collective in the lanes of `mask`.
pub(crate) fn collective(warp: &mut Warp, collective: &Collective, mask: u32) -> Outcome {
    let registers = &mut warp.registers;
    match *collective {
        Collective::Sync => warp.tick(),
        Collective::Shuffle { mode, target, valid, source, lane, clamp } => {
            return shuffle(registers, mode, [target, source, lane, clamp], valid, mask);
        }
        Collective::Vote { mode, target, source, negated } => {
            let bits = registers.predicates[source as usize] ^ if negated { u32::MAX } else { 0 };
            let (ballot, mut result) = (bits & mask, 0);
            result |= match mode {
                Vote::Ballot => ballot,
                Vote::All => u32::from(ballot == mask),
                Vote::Any => u32::from(ballot != 0),
                Vote::Uniform => u32::from(ballot == mask || ballot == 0),
            };
            lanes(mask).for_each(|lane| registers.set(target, lane, u64::from(result)));
        }
        Collective::Elect { lane, elected } => {
            let first = mask.trailing_zeros() & 31;
            if let Some(lane) = lane {
                fill(&mut registers.words, lane, first, mask);
            }
            if let Some(elected) = elected {
                registers.set_predicate(elected, mask, 1 << first);
            }
        }
        Collective::MatchAny { target, source } => {
            let values: [u64; LANES] = std::array::from_fn(|lane| registers.get(source, lane));
            for lane in lanes(mask) {
                let equal = lanes(mask).filter(|&other| values[other] == values[lane]);
                registers.words[target as usize].0[lane] = equal.fold(0, |bits, other| bits | 1 << other);
            }
        }
        Collective::MatchAll { target, all, source } => {
            let first = registers.get(source, mask.trailing_zeros() as usize & 31);
            let same = lanes(mask).all(|lane| registers.get(source, lane) == first);
            fill(&mut registers.words, target, if same { mask } else { 0 }, mask);
            if let Some(all) = all {
                registers.set_predicate(all, mask, if same { u32::MAX } else { 0 });
            }
        }
        Collective::Reduce { op, target, source } => {
            let values = registers.words[source as usize].0;
            let mut all = lanes(mask).map(|lane| u64::from(values[lane]));
            let first = all.next().unwrap_or(0);
            let result = all.fold(first, |sum, value| reduce(op, sum, value));
            fill(&mut registers.words, target, result as u32, mask);
        }
    }
    Ok(())
}

fn reduce(op: AtomicOp, a: u64, b: u64) -> u64 {
    combine(op, 4, a, b, 0).unwrap_or(a) & 0xffff_ffff
}

/// PTX ISA, `shfl.sync`: segments of the warp by the mask in bits 8–12 of the clamp operand.
fn shuffle(
    registers: &mut Registers,
    mode: Shuffle,
    [target, source, lane_operand, clamp]: [Slot; 4],
    valid: Option<Slot>,
    mask: u32,
) -> Outcome {
    let word = |slot: Slot| &registers.words[slot as usize].0;
    let (values, operands, clamps) = (word(source), word(lane_operand), word(clamp));
    let (mut results, mut in_range) = (*word(target), 0u32);
    for lane in lanes(mask) {
        let (b, c, me) = (operands[lane] & 31, clamps[lane] & 31, lane as u32);
        let segment = clamps[lane] >> 8 & 31;
        let limit = (me & segment) | (c & !segment & 31);
        let (from, inside) = match mode {
            Shuffle::Up => (me.wrapping_sub(b), me as i32 - b as i32 >= limit as i32),
            Shuffle::Down => (me + b, me + b <= limit),
            Shuffle::Butterfly => (me ^ b, me ^ b <= limit),
            Shuffle::Index => {
                let from = (me & segment) | (b & !segment & 31);
                (from, from <= limit)
            }
        };
        let from = if inside { from & 31 } else { me };
        if mask >> from & 1 == 0 {
            let sentence = format!("lane {lane} shuffles from lane {from}, which takes no part in the instruction");
            return Err(Fault::new(ReportKind::DivergentCollective, me, sentence));
        }
        results[lane] = values[from as usize];
        in_range |= u32::from(inside) << lane;
    }
    registers.words[target as usize].0 = results;
    if let Some(valid) = valid {
        registers.set_predicate(valid, mask, in_range);
    }
    Ok(())
}
