//! Barriers and fences.

use super::{Builder, Operand};

impl Builder {
    /// Waits for all threads of the block; shared memory written before it is seen after it.
    pub fn barrier(&mut self) {
        self.emit("bar.sync", vec![Operand::Text("0".into())]);
    }

    /// Waits for all lanes of the warp; shared memory written before it is seen after it.
    pub fn warp_barrier(&mut self) {
        self.emit("bar.warp.sync", vec![Operand::Text("-1".into())]);
    }

    /// Orders this thread's memory accesses for the whole device.
    pub fn fence_device(&mut self) {
        self.emit("fence.acq_rel.gpu", vec![]);
    }
}
