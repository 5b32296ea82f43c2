//! A ring of buffers between warps that fill them and warps that read them: two barriers a stage, `full` and `free`.
//!
//! Every lane arrives for itself. One lane could arrive for its warp after a barrier of the warp, at the same cost; then the
//! order of what the other lanes read and wrote hangs on two barriers, which race checkers do not follow.

use crate::isa::{Builder, R32, RP, SharedRegion};

/// The barriers of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    stages: u32,
    /// Address of the first stage's `full` barrier; those of the other stages follow, and then the `free` ones.
    barriers: R32,
}

/// A stage of a ring, and the parity of the phase in which it becomes full. Every thread that waits keeps its own.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Stage.
    pub stage: R32,
    parity: R32,
}

impl Ring {
    /// Bytes of the barriers of `stages` stages.
    pub const fn bytes(stages: u32) -> u32 {
        16 * stages
    }

    /// The ring of `stages` stages whose barriers stand at `barriers`.
    pub fn new(stages: u32, barriers: R32) -> Ring {
        Ring { stages, barriers }
    }

    /// As [`Ring::new`], with the barriers in a region of their own.
    pub fn in_region(k: &mut Builder, stages: u32, region: SharedRegion) -> Ring {
        let barriers = k.shared_address(region);
        Ring::new(stages, barriers)
    }

    const fn free(self) -> i64 {
        8 * self.stages as i64
    }

    fn at(self, k: &mut Builder, turn: Turn) -> R32 {
        if self.stages == 1 { self.barriers } else { k.mad(turn.stage, 8u32, self.barriers) }
    }

    /// Makes the barriers: a stage is full after the arrivals of `fills` threads (and the copies they expect), free after
    /// those of `reads` threads. One thread does it.
    pub fn init(self, k: &mut Builder, fills: u32, reads: u32) {
        for stage in (0..self.stages).map(|stage| i64::from(8 * stage)) {
            k.init_mbarrier(self.barriers, stage, fills);
            k.init_mbarrier(self.barriers, self.free() + stage, reads);
        }
    }

    /// The stage's `full` barrier, for copies to count at.
    pub fn full(self, k: &mut Builder, turn: Turn) -> (R32, i64) {
        (self.at(k, turn), 0)
    }

    /// Waits until the stage is full.
    pub fn wait_full(self, k: &mut Builder, turn: Turn) {
        let at = self.at(k, turn);
        k.wait_mbarrier(at, 0, turn.parity);
    }

    /// Waits until the stage's last contents are no longer read.
    pub fn wait_free(self, k: &mut Builder, turn: Turn) {
        let at = self.at(k, turn);
        let before = k.xor(turn.parity, 1u32);
        k.wait_mbarrier(at, self.free(), before);
    }

    /// This thread's arrival of those that make the stage full.
    pub fn fill(self, k: &mut Builder, turn: Turn) {
        let at = self.at(k, turn);
        k.arrive(at, 0);
    }

    /// `times` arrivals of those that make the stage full, for threads that have nothing to do there.
    pub fn fill_for(self, k: &mut Builder, turn: Turn, times: u32) {
        let at = self.at(k, turn);
        k.arrive_times(at, 0, times);
    }

    /// As [`Ring::fill`], with `bytes` of copies to come.
    pub fn fill_expecting(self, k: &mut Builder, turn: Turn, bytes: u32) {
        let at = self.at(k, turn);
        k.arrive_expecting(at, 0, bytes);
    }

    /// `times` arrivals of those that make the stage free, for threads that will not read it.
    pub fn release_for(self, k: &mut Builder, turn: Turn, times: u32) {
        let at = self.at(k, turn);
        k.arrive_times(at, self.free(), times);
    }

    /// This thread's arrival of those that make the stage free: where `condition` holds, if given.
    pub fn release(self, k: &mut Builder, turn: Turn, condition: Option<RP>) {
        let at = self.at(k, turn);
        match condition {
            Some(condition) => k.when(condition, |k| k.arrive(at, self.free())),
            None => k.arrive(at, self.free()),
        }
    }

    /// As [`Ring::fill`], at the stage before that of `turn`.
    pub fn fill_before(self, k: &mut Builder, turn: Turn) {
        let first = k.eq(turn.stage, 0u32);
        let lower = k.sub(turn.stage, 1u32);
        let stage = k.select(first, self.stages - 1, lower);
        let at = k.mad(stage, 8u32, self.barriers);
        k.arrive(at, 0);
    }

    /// Makes `turn` the one `turns` after the first.
    pub fn advance_to(self, k: &mut Builder, turn: Turn, turns: R32) {
        let rounds = k.div_u(turns, self.stages);
        let before = k.mul(rounds, self.stages);
        let stage = k.sub(turns, before);
        let parity = k.and(rounds, 1u32);
        k.set(turn.stage, stage);
        k.set(turn.parity, parity);
    }

    /// Makes `turn` the next one.
    pub fn advance(self, k: &mut Builder, turn: Turn) {
        if self.stages == 1 {
            let parity = k.xor(turn.parity, 1u32);
            return k.set(turn.parity, parity);
        }
        let next = k.add(turn.stage, 1u32);
        let wraps = k.eq(next, self.stages);
        let stage = k.select(wraps, 0u32, next);
        let flip = k.select(wraps, 1u32, 0u32);
        let parity = k.xor(turn.parity, flip);
        k.set(turn.stage, stage);
        k.set(turn.parity, parity);
    }
}

impl Turn {
    /// The first stage in its first phase.
    pub fn first(k: &mut Builder) -> Turn {
        Turn { stage: k.mov(0u32), parity: k.mov(0u32) }
    }

    /// Registers for a turn.
    pub fn fresh(k: &mut Builder) -> Turn {
        Turn { stage: k.fresh(), parity: k.fresh() }
    }

    /// Makes this turn the same as `other`.
    pub fn set_to(self, k: &mut Builder, other: Turn) {
        k.set(self.stage, other.stage);
        k.set(self.parity, other.parity);
    }

    /// As [`Turn::set_to`], where `condition` holds.
    pub fn set_to_if(self, k: &mut Builder, condition: RP, other: Turn) {
        k.when(condition, |k| self.set_to(k, other));
    }

    /// Whether two turns of one ring, less than two rounds apart, differ.
    pub fn differs(self, k: &mut Builder, other: Turn) -> RP {
        let stages = k.ne(self.stage, other.stage);
        let parities = k.ne(self.parity, other.parity);
        k.or_p(stages, parities)
    }
}
