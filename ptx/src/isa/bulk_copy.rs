//! Bulk copies: one thread starts the copy of a whole box, described by a tensor map, or asks for memory ahead (sm_90).

use super::{Builder, Operand, R32, R64};

impl Builder {
    /// Fetches a tensor map ahead of its first use.
    pub fn prefetch_tensor_map(&mut self, map: R64) {
        self.emit("prefetch.tensormap", vec![Operand::Address(Box::new(map.into()), 0)]);
    }

    /// Asks for global memory in the L2 cache, one lane after the other: `bytes` is a multiple of 16 above 0 and the same in all
    /// lanes of a warp, the address a multiple of 16.
    pub fn prefetch(&mut self, address: R64, bytes: R32) {
        self.require(8, 0);
        let source = Operand::Address(Box::new(address.into()), 0);
        self.emit("cp.async.bulk.prefetch.L2.global", vec![source, bytes.into()]);
    }

    /// Starts the copy of the box at `place` (a coordinate a dimension, innermost first, signed) to `shared`; what lies outside
    /// the tensor becomes zeros. Counts the bytes of the whole box at `barrier`.
    pub fn copy_box<const N: usize>(&mut self, shared: (R32, i64), map: R64, place: [R32; N], barrier: (R32, i64)) {
        let address = |(base, offset): (R32, i64)| Operand::Address(Box::new(base.into()), offset);
        let place = Operand::Vector(place.map(Operand::from).to_vec());
        let source = Operand::Box(Box::new(map.into()), Box::new(place));
        self.emit(
            format!("cp.async.bulk.tensor.{N}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"),
            vec![address(shared), source, address(barrier)],
        );
    }
}
