//! A ring of buffers between one warpgroup that fills them and others that read them: two barriers a stage, `full` and
//! `free`.

use crate::isa::{Builder, R32, SharedRegion};

/// The barriers of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    region: SharedRegion,
    stages: u32,
}

/// Where one side stands in a ring. Every thread that waits keeps its own.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    stages: u32,
    /// Stage.
    pub stage: R32,
    /// Parity of the phase in which that stage becomes full.
    parity: R32,
    /// Address of the stage's `full` barrier.
    at: R32,
}

impl Ring {
    /// Reserves the barriers of `stages` stages, a power of two.
    pub fn new(k: &mut Builder, stages: u32) -> Ring {
        debug_assert!(stages.is_power_of_two());
        Ring { region: k.shared(16 * stages, 8), stages }
    }

    /// Makes the barriers: a stage is full after `fills` arrivals (and the copies they expect), free after `reads`.
    /// One thread does it.
    pub fn init(self, k: &mut Builder, fills: u32, reads: u32) {
        let at = k.shared_address(self.region);
        for stage in 0..self.stages {
            k.init_mbarrier(at, i64::from(8 * stage), fills);
            k.init_mbarrier(at, i64::from(8 * (self.stages + stage)), reads);
        }
    }

    /// The beginning of the ring.
    pub fn begin(self, k: &mut Builder) -> Turn {
        let at = k.shared_address(self.region);
        Turn { stages: self.stages, stage: k.mov(0u32), parity: k.mov(0u32), at: k.mov(at) }
    }
}

impl Turn {
    fn free(self) -> i64 {
        i64::from(8 * self.stages)
    }

    /// The stage's `full` barrier, for copies to count at.
    pub fn full(self) -> (R32, i64) {
        (self.at, 0)
    }

    /// Waits until the stage is full.
    pub fn wait_full(self, k: &mut Builder) {
        k.wait_mbarrier(self.at, 0, self.parity);
    }

    /// Waits until the stage's last contents are no longer read.
    pub fn wait_free(self, k: &mut Builder) {
        let before = k.xor(self.parity, 1u32);
        k.wait_mbarrier(self.at, self.free(), before);
    }

    /// One arrival of those that make the stage full.
    pub fn fill(self, k: &mut Builder) {
        k.arrive(self.at, 0);
    }

    /// One arrival of those that make the stage full, with `bytes` of copies to come.
    pub fn fill_expecting(self, k: &mut Builder, bytes: u32) {
        k.arrive_expecting(self.at, 0, bytes);
    }

    /// One arrival of those that make the stage free.
    pub fn release(self, k: &mut Builder) {
        k.arrive(self.at, self.free());
    }

    /// Goes to the next stage.
    pub fn advance(self, k: &mut Builder) {
        let next = k.add(self.stage, 1u32);
        let stage = k.and(next, self.stages - 1);
        let wrapped = k.shr_u(next, self.stages.ilog2());
        let parity = k.xor(self.parity, wrapped);
        let down = k.sub(stage, self.stage);
        let at = k.mad(down, 8u32, self.at);
        k.set(self.stage, stage);
        k.set(self.parity, parity);
        k.set(self.at, at);
    }

    /// A copy of the turn that stays where it is.
    pub fn here(self, k: &mut Builder) -> Turn {
        Turn { stages: self.stages, stage: k.mov(self.stage), parity: k.mov(self.parity), at: k.mov(self.at) }
    }

    /// Makes this turn the same as `other`.
    pub fn set_to(self, k: &mut Builder, other: Turn) {
        k.set(self.stage, other.stage);
        k.set(self.parity, other.parity);
        k.set(self.at, other.at);
    }
}
