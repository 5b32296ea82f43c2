//! Barriers in shared memory that count arrivals and bytes of asynchronous copies (sm_90).

use super::{B32, Builder, Operand, R32, RP, Source};

/// Nanoseconds a thread may sleep at a time while it waits.
const NAP: u32 = 10_000_000;

fn at(barrier: R32, offset: i64) -> Operand {
    Operand::Address(Box::new(barrier.into()), offset)
}

impl Builder {
    /// Makes the 8 bytes at `barrier` a barrier whose phases end with `arrivals` arrivals. One thread does it;
    /// [`Builder::fence_mbarriers`] and a block barrier come before any use.
    pub fn init_mbarrier(&mut self, barrier: R32, offset: i64, arrivals: impl Into<Source<B32>>) {
        self.emit("mbarrier.init.shared.b64", vec![at(barrier, offset), arrivals.into().operand]);
    }

    /// Shows initialised barriers to the asynchronous proxy.
    pub fn fence_mbarriers(&mut self) {
        self.emit("fence.mbarrier_init.release.cluster", vec![]);
    }

    /// Arrives.
    pub fn arrive(&mut self, barrier: R32, offset: i64) {
        self.emit("mbarrier.arrive.shared.b64", vec![Operand::Text("_".into()), at(barrier, offset)]);
    }

    /// Arrives `times` times at once.
    pub fn arrive_times(&mut self, barrier: R32, offset: i64, times: u32) {
        let operands = vec![Operand::Text("_".into()), at(barrier, offset), Operand::Text(times.to_string())];
        self.emit("mbarrier.arrive.shared.b64", operands);
    }

    /// Arrives, and lets the phase last until `bytes` bytes of copies have come too.
    pub fn arrive_expecting(&mut self, barrier: R32, offset: i64, bytes: impl Into<Source<B32>>) {
        let operands = vec![Operand::Text("_".into()), at(barrier, offset), bytes.into().operand];
        self.emit("mbarrier.arrive.expect_tx.shared.b64", operands);
    }

    /// Waits until the phase of parity `parity` is over: 0 for a barrier's first phase, then 1, 0, … A fresh barrier
    /// counts as having just ended a phase of parity 1.
    pub fn wait_mbarrier(&mut self, barrier: R32, offset: i64, parity: R32) {
        let (again, over) = (self.label(), self.label());
        self.place(again);
        let nap = Operand::Text(NAP.to_string());
        let done = self.op("mbarrier.try_wait.parity.shared.b64", [at(barrier, offset), parity.into(), nap]);
        self.branch_if(done, over);
        self.branch(again);
        self.place(over);
    }

    /// Whether the phase of parity `parity` is over now.
    pub fn test_mbarrier(&mut self, barrier: R32, offset: i64, parity: R32) -> RP {
        self.op("mbarrier.test_wait.parity.shared.b64", [at(barrier, offset), parity.into()])
    }
}
