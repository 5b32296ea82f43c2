//! Barriers and fences.

use super::{B32, Builder, Operand, Source};

impl Builder {
    /// Waits for all threads of the block; shared memory written before it is seen after it.
    pub fn barrier(&mut self) {
        self.emit("bar.sync", vec![Operand::Text("0".into())]);
    }

    /// Waits for all lanes of the warp; shared memory written before it is seen after it.
    pub fn warp_barrier(&mut self) {
        self.emit("bar.warp.sync", vec![Operand::Text("-1".into())]);
    }

    /// Waits at barrier `id` until `threads` threads, whole warps, have come there or passed through
    /// [`Builder::pass_barrier`].
    pub fn meet_barrier(&mut self, id: impl Into<Source<B32>>, threads: u32) {
        self.emit("bar.sync", vec![id.into().operand, Operand::Text(threads.to_string())]);
    }

    /// Counts at barrier `id` without waiting there.
    pub fn pass_barrier(&mut self, id: impl Into<Source<B32>>, threads: u32) {
        self.emit("bar.arrive", vec![id.into().operand, Operand::Text(threads.to_string())]);
    }

    /// Orders this thread's memory accesses for the whole device.
    pub fn fence_device(&mut self) {
        self.emit("fence.acq_rel.gpu", vec![]);
    }

    /// What this thread wrote to shared memory so far may be read by `wgmma` and bulk copies that are ordered after it:
    /// they see memory through the asynchronous proxy.
    pub fn fence_async_proxy(&mut self) {
        self.emit("fence.proxy.async.shared::cta", vec![]);
    }
}
