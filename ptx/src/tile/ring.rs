//! A ring of buffers between warps that fill them and warps that read them: two barriers a stage, `full` and `free`.
//!
//! Every lane arrives for itself. One lane could arrive for its warp after a barrier of the warp, at the same cost; then the
//! order of what the other lanes read and wrote hangs on two barriers, which race checkers do not follow. Where lanes read a
//! stage through the products of their warp alone, one of them does arrive for all.

use crate::isa::{B32, Builder, R32, RP, SharedRegion, Source};

/// How large a ring is, and how its readers use it.
#[derive(Clone, Copy, Debug)]
pub struct RingShape {
    /// Stages.
    pub stages: u32,
    /// Whether readers may pass over a stage without waiting for it, though not over one round of them. A parity tells two
    /// phases of a barrier apart and no more, and who passed over the last one would take the one before it for the next. So
    /// such a ring has two `full` barriers a stage, one for even and one for odd rounds: the last phase of the one that a
    /// reader waits at next is as long ago as two rounds, and has surely ended.
    pub passing: bool,
}

impl RingShape {
    /// One stage, which everybody waits for.
    pub const SINGLE: RingShape = RingShape { stages: 1, passing: false };

    const fn fulls(self) -> u32 {
        if self.passing { 2 } else { 1 }
    }

    /// Bytes of the barriers.
    pub const fn bytes(self) -> u32 {
        8 * self.stages * (self.fulls() + 1)
    }
}

/// The barriers of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    shape: RingShape,
    /// Address of the first stage's `full` barrier; those of the other stages follow, those of odd rounds if they have their
    /// own, and then the `free` ones.
    barriers: R32,
}

/// A stage of a ring, and the round of it, counted up to what tells phases apart. Every thread that waits keeps its own.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Stage.
    pub stage: R32,
    round: R32,
}

impl Ring {
    /// The ring whose barriers stand at `barriers`.
    pub fn new(shape: RingShape, barriers: R32) -> Ring {
        Ring { shape, barriers }
    }

    /// As [`Ring::new`], with the barriers in a region of their own.
    pub fn in_region(k: &mut Builder, shape: RingShape, region: SharedRegion) -> Ring {
        let barriers = k.shared_address(region);
        Ring::new(shape, barriers)
    }

    /// Rounds that a turn tells apart: the phases of two parities, of each `full` barrier.
    const fn rounds(self) -> u32 {
        2 * self.shape.fulls()
    }

    const fn free(self) -> i64 {
        (8 * self.shape.stages * self.shape.fulls()) as i64
    }

    /// Address of the stage's `full` barrier of even rounds, or of all.
    fn stage(self, k: &mut Builder, stage: R32) -> R32 {
        if self.shape.stages == 1 { self.barriers } else { k.mad(stage, 8u32, self.barriers) }
    }

    fn full_at(self, k: &mut Builder, stage: R32, round: R32) -> R32 {
        let at = self.stage(k, stage);
        if !self.shape.passing {
            return at;
        }
        let odd = k.and(round, 1u32);
        k.mad(odd, 8 * self.shape.stages, at)
    }

    /// Makes the barriers: a stage is full after the arrivals of `fills` threads (and the copies they expect), free after
    /// those of `reads` threads. One thread does it.
    pub fn init(self, k: &mut Builder, fills: u32, reads: impl Into<Source<B32>> + Copy) {
        let RingShape { stages, .. } = self.shape;
        for stage in 0..stages {
            for full in (stage..stages * self.shape.fulls()).step_by(stages as usize) {
                k.init_mbarrier(self.barriers, i64::from(8 * full), fills);
            }
            k.init_mbarrier(self.barriers, self.free() + i64::from(8 * stage), reads);
        }
    }

    /// The stage's `full` barrier, for copies to count at.
    pub fn full(self, k: &mut Builder, turn: Turn) -> (R32, i64) {
        (self.full_at(k, turn.stage, turn.round), 0)
    }

    /// Waits until the stage is full.
    pub fn wait_full(self, k: &mut Builder, turn: Turn) {
        let (at, offset) = self.full(k, turn);
        let parity = self.full_parity(k, turn);
        k.wait_mbarrier(at, offset, parity);
    }

    /// Waits until the stages are full. It looks at all of them before it waits for one, which is faster than one after the
    /// other if they are full already.
    pub fn wait_all_full(self, k: &mut Builder, turns: &[Turn]) {
        let look = |k: &mut Builder, &turn: &Turn| {
            let (at, offset) = self.full(k, turn);
            let parity = self.full_parity(k, turn);
            k.test_mbarrier(at, offset, parity)
        };
        if let [turn] = turns {
            return self.wait_full(k, *turn);
        }
        let full: Vec<RP> = turns.iter().map(|turn| look(k, turn)).collect();
        let all = full.into_iter().reduce(|all, one| k.and_p(all, one)).expect("there are stages");
        let not_all = k.not_p(all);
        k.if_then(not_all, |k| turns.iter().for_each(|&turn| self.wait_full(k, turn)));
    }

    fn full_parity(self, k: &mut Builder, turn: Turn) -> R32 {
        if self.shape.passing { k.shr_u(turn.round, 1u32) } else { turn.round }
    }

    /// Waits until the stage's last contents are no longer read.
    pub fn wait_free(self, k: &mut Builder, turn: Turn) {
        let at = self.stage(k, turn.stage);
        let parity = if self.shape.passing { k.and(turn.round, 1u32) } else { turn.round };
        let before = k.xor(parity, 1u32);
        k.wait_mbarrier(at, self.free(), before);
    }

    /// This thread's arrival of those that make the stage full.
    pub fn fill(self, k: &mut Builder, turn: Turn) {
        let (at, offset) = self.full(k, turn);
        k.arrive(at, offset);
    }

    /// `times` arrivals of those that make the stage full, for threads that have nothing to do there.
    pub fn fill_for(self, k: &mut Builder, turn: Turn, times: u32) {
        let (at, offset) = self.full(k, turn);
        k.arrive_times(at, offset, times);
    }

    /// As [`Ring::fill`], with `bytes` of copies to come.
    pub fn fill_expecting(self, k: &mut Builder, turn: Turn, bytes: impl Into<Source<B32>>) {
        let (at, offset) = self.full(k, turn);
        k.arrive_expecting(at, offset, bytes);
    }

    /// `times` arrivals of those that make the stage free, for threads that will not read it.
    pub fn release_for(self, k: &mut Builder, turn: Turn, times: u32) {
        let at = self.stage(k, turn.stage);
        k.arrive_times(at, self.free(), times);
    }

    /// This thread's arrival of those that make the stage free: where `condition` holds, if given.
    pub fn release(self, k: &mut Builder, turn: Turn, condition: Option<RP>) {
        let at = self.stage(k, turn.stage);
        match condition {
            Some(condition) => k.when(condition, |k| k.arrive(at, self.free())),
            None => k.arrive(at, self.free()),
        }
    }

    /// As [`Ring::fill`], at the stage `back` before that of `turn`, at most a round.
    pub fn fill_before(self, k: &mut Builder, turn: Turn, back: u32) {
        let at = self.full_before(k, turn, back);
        k.arrive(at, 0);
    }

    /// As [`Ring::fill_for`], at the stage `back` before that of `turn`, at most a round.
    pub fn fill_before_for(self, k: &mut Builder, turn: Turn, back: u32, times: u32) {
        let at = self.full_before(k, turn, back);
        k.arrive_times(at, 0, times);
    }

    fn full_before(self, k: &mut Builder, turn: Turn, back: u32) -> R32 {
        let wraps = k.lt_u(turn.stage, back);
        let lower = k.sub(turn.stage, back);
        let higher = k.add(lower, self.shape.stages);
        let stage = k.select(wraps, higher, lower);
        let last_round = k.sub(turn.round, 1u32);
        let round = k.select(wraps, last_round, turn.round);
        self.full_at(k, stage, round)
    }

    /// Makes `turn` the one `turns` after it.
    pub fn advance_by(self, k: &mut Builder, turn: Turn, turns: R32) {
        let all = k.add(turn.stage, turns);
        let rounds = k.div_u(all, self.shape.stages);
        let before = k.mul(rounds, self.shape.stages);
        let stage = k.sub(all, before);
        let round = k.add(turn.round, rounds);
        let round = k.and(round, self.rounds() - 1);
        k.set(turn.stage, stage);
        k.set(turn.round, round);
    }

    /// Makes `turn` the next one.
    pub fn advance(self, k: &mut Builder, turn: Turn) {
        if self.shape.stages == 1 {
            return self.next_round(k, turn, 1u32);
        }
        let next = k.add(turn.stage, 1u32);
        let wraps = k.eq(next, self.shape.stages);
        let stage = k.select(wraps, 0u32, next);
        let more = k.select(wraps, 1u32, 0u32);
        self.next_round(k, turn, more);
        k.set(turn.stage, stage);
    }

    /// Moves `turn` on by `more` rounds, none or one.
    fn next_round(self, k: &mut Builder, turn: Turn, more: impl Into<Source<B32>>) {
        let round = if self.shape.passing {
            let round = k.add(turn.round, more);
            k.and(round, self.rounds() - 1)
        } else {
            k.xor(turn.round, more)
        };
        k.set(turn.round, round);
    }
}

impl Turn {
    /// The first stage in its first round.
    pub fn first(k: &mut Builder) -> Turn {
        Turn { stage: k.mov(0u32), round: k.mov(0u32) }
    }

    /// Registers for a turn.
    pub fn fresh(k: &mut Builder) -> Turn {
        Turn { stage: k.fresh(), round: k.fresh() }
    }

    /// Makes this turn the same as `other`.
    pub fn set_to(self, k: &mut Builder, other: Turn) {
        k.set(self.stage, other.stage);
        k.set(self.round, other.round);
    }

    /// As [`Turn::set_to`], where `condition` holds.
    pub fn set_to_if(self, k: &mut Builder, condition: RP, other: Turn) {
        k.when(condition, |k| self.set_to(k, other));
    }

    /// Whether two turns of one ring, less than two rounds apart, differ.
    pub fn differs(self, k: &mut Builder, other: Turn) -> RP {
        let stages = k.ne(self.stage, other.stage);
        let rounds = k.ne(self.round, other.round);
        k.or_p(stages, rounds)
    }
}
