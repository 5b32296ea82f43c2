//! What every planner reads.

use crate::{
    Arguments, TensorView,
    batch::{Batch, KvRows, Rows},
};

/// Checked queries and keys of a plan, and the heads of one launch.
#[derive(Clone, Copy)]
pub(crate) struct PlanInput {
    pub(crate) batch: Batch,
    pub(crate) q: Rows,
    pub(crate) k: KvRows,
    pub(crate) heads_per_kv: u32,
    /// Address of the map from the launch's heads to query heads; 0 for all.
    pub(crate) head_map: u64,
    pub(crate) scale: f32,
    /// Address of the status word.
    pub(crate) status: u64,
}

impl PlanInput {
    /// For a launch that leaves out the first heads of this one. Without a map there is no such launch.
    pub(crate) fn heads_from(&self, first: u32) -> PlanInput {
        debug_assert!(first == 0 || self.head_map != 0);
        PlanInput { head_map: self.head_map + u64::from(first) * 4, ..*self }
    }

    /// Sets `heads heads_per_kv head_map head_map_batch`: the heads of this launch, or in each sequence those of `map`.
    pub(crate) fn sequence_head_arguments<'m>(
        &self,
        arguments: Arguments<'m>,
        map: Option<&TensorView<'_>>,
    ) -> Arguments<'m> {
        let (head_map, stride) = map.map_or((self.head_map, 0), |map| (map.address(), map.byte_stride(0)));
        PlanInput { head_map, ..*self }.head_arguments(arguments).u64("head_map_batch", stride)
    }

    /// Sets `heads heads_per_kv head_map`.
    pub(crate) fn head_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        arguments.u32("heads", self.q.heads).u32("heads_per_kv", self.heads_per_kv).pointer("head_map", self.head_map)
    }

    /// Sets what kernels know of the queries' places.
    pub(crate) fn query_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        self.batch.query_arguments(arguments, self.q.rows)
    }

    /// Sets the keys, by the name `k`, and their page table, if they have one.
    pub(crate) fn keys<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        self.k.table_arguments(self.k.arguments(arguments, "k"))
    }

    /// Sets what kernels know of the keys' places.
    pub(crate) fn key_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        self.batch.key_arguments(arguments, self.k.rows.rows)
    }
}
