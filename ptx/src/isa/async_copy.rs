//! `cp.async`: copies from global to shared memory that complete later.

use super::{B32, Builder, Operand, R32, R64, Source};

impl Builder {
    /// Copies 16 bytes, of which all past the first `valid` (0 to 16) are zeros; through L2 only, fetching 128 bytes.
    pub fn copy_async(&mut self, shared: R32, offset: i64, global: R64, valid: impl Into<Source<B32>>) {
        self.copy_async_at((shared, offset), (global, 0), valid);
    }

    /// As [`Builder::copy_async`], with an offset on both sides.
    pub fn copy_async_at(&mut self, shared: (R32, i64), global: (R64, i64), valid: impl Into<Source<B32>>) {
        self.require(7, 4);
        let to = Operand::Address(Box::new(shared.0.into()), shared.1);
        let from = Operand::Address(Box::new(global.0.into()), global.1);
        let size = Operand::Text("16".into());
        self.emit("cp.async.cg.shared.global.L2::128B", vec![to, from, size, valid.into().operand]);
    }

    /// Ends a group of copies.
    pub fn commit_copies(&mut self) {
        self.emit("cp.async.commit_group", vec![]);
    }

    /// Waits until at most `pending` of this thread's groups are still under way.
    pub fn wait_copies(&mut self, pending: u32) {
        self.emit("cp.async.wait_group", vec![Operand::Text(pending.to_string())]);
    }
}
