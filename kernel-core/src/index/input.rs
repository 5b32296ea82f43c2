//! What every planner reads.

use crate::{
    Arguments,
    batch::{Batch, Rows},
};

/// Checked queries and keys of a plan, and the heads of one launch.
pub(crate) struct PlanInput {
    pub(crate) batch: Batch,
    pub(crate) q: Rows,
    pub(crate) k: Rows,
    pub(crate) heads_per_kv: u32,
    /// Address of the map from the launch's heads to query heads; 0 for all.
    pub(crate) head_map: u64,
    pub(crate) scale: f32,
    /// Address of the status word.
    pub(crate) status: u64,
}

impl PlanInput {
    /// Sets `heads_per_kv head_map`.
    pub(crate) fn head_arguments<'m>(&self, arguments: Arguments<'m>) -> Arguments<'m> {
        arguments.u32("heads_per_kv", self.heads_per_kv).pointer("head_map", self.head_map)
    }
}
