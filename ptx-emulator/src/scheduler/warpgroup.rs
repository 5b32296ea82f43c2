//! Instructions of a warpgroup: `wgmma` and `setmaxnreg`.

use super::{Block, Next};
use crate::clock::{Party, VectorClock};
use crate::exec::wgmma::{self, Columns, DEPTH, Fragment};
use crate::op::{Op, Tile, Warpgroup, WarpgroupMultiply};
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::TensorCores;
use crate::warp::{LANES, Wait};
use crate::warpgroup::{Issue, Operation, WARPS, uniform};

/// Room for the factors of an operation.
pub(super) struct Tiles {
    rows: Box<Fragment>,
    columns: Columns,
}

impl Default for Tiles {
    fn default() -> Tiles {
        Tiles { rows: Box::new([[[0.0; LANES]; 2]; DEPTH]), columns: Vec::new() }
    }
}

impl Block<'_> {
    pub(super) fn warpgroup(&mut self, at: usize, how: &Warpgroup) -> Outcome<Next> {
        let (group, warp) = (at / WARPS, &mut self.warps[at]);
        let Some(members) = self.groups.get_mut(group).filter(|_| warp.exists == u32::MAX) else {
            let sentence = "this instruction is for a warpgroup: four whole warps, of which the first has a number that is a \
                            multiple of 4";
            return Err(Fault::new(ReportKind::DivergentWarpgroup, 0, sentence));
        };
        // A warp that has to wait here comes again.
        if !warp.came {
            if let Err(other) = members.come(warp.multiplies.count, warp.pc) {
                let line = self.job.kernel.code[other as usize].line;
                let sentence = format!(
                    "the warps of a warpgroup part: others of them were at line {line} where this one is here, but all \
                     must execute the same instructions"
                );
                return Err(Fault::new(ReportKind::DivergentWarpgroup, 0, sentence));
            }
            warp.multiplies.count += 1;
            warp.came = true;
        }
        let done = match how {
            Warpgroup::Fence => {
                warp.multiplies.fence();
                true
            }
            Warpgroup::Commit => {
                warp.multiplies.commit();
                true
            }
            Warpgroup::Multiply(how) => {
                self.issue(at, how)?;
                true
            }
            Warpgroup::Wait { groups } => self.wait(at, *groups)?,
            Warpgroup::Registers { count, more } => self.set_registers(at, *count, *more)?,
        };
        let warp = &mut self.warps[at];
        if !done {
            return Ok(Next::Parked);
        }
        warp.came = false;
        warp.pc += 1;
        Ok(Next::Continue)
    }

    fn issue(&mut self, at: usize, how: &WarpgroupMultiply) -> Outcome {
        let (warp, group) = (&mut self.warps[at], &mut self.groups[at / WARPS]);
        let differs = |what: &str| {
            let sentence = format!("{what} of a `wgmma` must be one for all threads of its warpgroup");
            Err(Fault::new(ReportKind::DivergentWarpgroup, 0, sentence))
        };
        let descriptor = |slot: u16| uniform(&warp.registers.longs[slot as usize].0);
        let a = match how.a {
            Tile::Shared { descriptor: slot, .. } => descriptor(slot),
            Tile::Registers(_) => Some(0),
        };
        let (Some(a), Some(b)) = (a, descriptor(how.b)) else { return differs("a descriptor") };
        let accumulate = match warp.registers.predicates[how.accumulate as usize] {
            0 => false,
            u32::MAX => true,
            _ => return differs("scale-d"),
        };
        warp.multiplies.issue(how, accumulate)?;
        let place = (warp.multiplies.issued - group.done - 1) as usize;
        if place == group.operations.len() {
            group.operations.push_back(Operation { pc: warp.pc, issues: Default::default() });
        }
        let operation = &mut group.operations[place];
        if let Some(other) = operation.issues.iter().flatten().next()
            && (other.a, other.b, other.accumulate) != (a, b, accumulate)
        {
            return differs("a descriptor or scale-d");
        }
        operation.issues[at % WARPS] = Some(Box::new(Issue { a, b, accumulate, clock: warp.clock }));
        Ok(())
    }

    /// Waits for all groups but the last `groups`; false if other warps have to come first.
    fn wait(&mut self, at: usize, groups: u32) -> Outcome<bool> {
        let (warp, group) = (&mut self.warps[at], at / WARPS);
        let due = warp.multiplies.due(groups);
        if !self.groups[group].is_issued(due) {
            warp.park(warp.pc, Wait::Operation(due));
            return Ok(false);
        }
        while self.groups[group].done < due {
            let Some(operation) = self.groups[group].operations.pop_front() else { break };
            self.groups[group].done += 1;
            self.execute(group, &operation)?;
        }
        let warp = &mut self.warps[at];
        warp.multiplies.settle(groups, due);
        let cores = Party::tensor_cores(group as u32);
        warp.clock.set(cores, due.max(warp.clock.of(cores)));
        Ok(true)
    }

    /// Executes an operation for all warps of its group.
    fn execute(&mut self, group: usize, operation: &Operation) -> Outcome {
        let Op::Warpgroup(how) = &self.job.kernel.code[operation.pc as usize].op else { return Ok(()) };
        let Warpgroup::Multiply(how) = &**how else { return Ok(()) };
        let [Some(first), Some(second), Some(third), Some(fourth)] = &operation.issues else { return Ok(()) };
        let issues = [first, second, third, fourth];
        let (level, tiles, shared) = (self.context.level, &mut self.tiles, &mut self.context.shared);
        let number = self.groups[group].done;
        let cores = |clock| TensorCores { group: group as u32, clock, number };
        let by = |warp: usize| move |fault: Box<Fault>| fault.by((WARPS * group + warp) as u32, operation.pc);
        // B is for all four, so that all must know who has written it.
        let mut known: VectorClock = first.clock;
        issues[1..].iter().for_each(|issue| known.meet(&issue.clock));
        let b = wgmma::descriptor(first.b).map_err(by(0))?;
        let width = 2 * how.d.len();
        wgmma::columns(shared, &cores(&known), how.format, &b, how.b_transposed, width, &mut tiles.columns)
            .map_err(by(0))?;
        for (at, issue) in issues.into_iter().enumerate() {
            let words = &mut self.warps[WARPS * group + at].registers.words[..];
            match &how.a {
                Tile::Registers(parts) => wgmma::fragment(words, how.format, parts, &mut tiles.rows),
                Tile::Shared { transposed, .. } => {
                    let a = wgmma::descriptor(issue.a).map_err(by(at))?;
                    let first = 16 * at as u32;
                    wgmma::rows(shared, &cores(&issue.clock), how.format, &a, *transposed, first, &mut tiles.rows)
                        .map_err(by(at))?;
                }
            }
            if how.negative {
                wgmma::negate(&mut tiles.rows);
            }
            wgmma::multiply(level, words, &how.d, &tiles.rows, &tiles.columns, issue.accumulate);
        }
        Ok(())
    }

    /// Gives a warp another number of registers; false if they are not free yet.
    fn set_registers(&mut self, at: usize, count: u32, more: bool) -> Outcome<bool> {
        let warp = &mut self.warps[at];
        let before = warp.register_count;
        if (more && count < before) || (!more && count > before) {
            let sentence = format!(
                "`setmaxnreg.{}` to {count} registers of a warp that has {before}",
                if more { "inc" } else { "dec" }
            );
            return Err(Fault::new(ReportKind::RegisterCount, 0, sentence));
        }
        let lanes = LANES as u32;
        if more && (count - before) * lanes > self.free_registers {
            warp.park(warp.pc, Wait::Registers((count - before) * lanes));
            return Ok(false);
        }
        self.free_registers = self.free_registers + before * lanes - count * lanes;
        warp.register_count = count;
        self.context.progress += 1;
        Ok(true)
    }
}
