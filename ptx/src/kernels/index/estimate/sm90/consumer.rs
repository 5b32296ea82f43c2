//! A consumer: four warps, each with a part of the keys, and the queries of their head.

use super::{
    super::{
        walk::Walk,
        window::{Queries, STEP},
    },
    CONSUMERS, EstimateSpec, ROWS, Shared, WARPGROUP, Window,
};
use crate::{
    isa::{Builder, MmaType, R32, RF, RP, WarpgroupLeft, WarpgroupRight},
    kernels::index::workspace::WINDOW,
    tile::{
        copy::TileCopy,
        descriptor::Factor,
        fragment::Accumulator,
        ring::{Ring, Turn},
    },
};

/// Arrivals that free a stage. One lane arrives for its warp: lanes read no stage but through products, which are the warp's.
pub(super) const READS: u32 = CONSUMERS / 32;
/// Named barrier of all consumers; 0 is the block's.
const BARRIER: u32 = 1;
/// That at which the first consumer waits for its turn to multiply; those of the others follow.
const TURN_BARRIER: u32 = 2;

pub(super) struct Consumer<'a> {
    window: &'a Window,
    shared: &'a Shared,
    dtype: MmaType,
    head_dim: u32,
    ring: Ring,
    /// The next stage.
    next: Turn,
    /// The keys of this consumer's parts in the first stage, and the queries of its head.
    keys: Factor,
    queries: Factor,
    stages: R32,
    /// Which consumer this is.
    own: R32,
    /// What turns `wgmma` from setting its accumulator into adding to it.
    never: RP,
    always: RP,
    leads: RP,
}

impl<'a> Consumer<'a> {
    pub(super) fn new(
        k: &mut Builder,
        spec: &EstimateSpec,
        window: &'a Window,
        queries: &Queries,
        shared: &'a Shared,
        warp: R32,
    ) -> Consumer<'a> {
        k.comment("queries, the last one first");
        let layout = shared.tiles.queries;
        let all_queries = k.shared_address(shared.queries);
        let own_queries = k.mad(window.own_head, layout.bytes(), all_queries);
        // Consumers of one head have different keys, and the first one brings the queries.
        let warpgroup = k.shr_u(warp, (WARPGROUP / 32).ilog2());
        let of_head = k.and(warpgroup, window.parts / (WARPGROUP / 32) - 1);
        let brings = k.eq(of_head, 0u32);
        k.if_then(brings, |k| {
            let thread = k.thread();
            let thread = k.and(thread, WARPGROUP - 1);
            let copy = TileCopy::new(k, layout, WARPGROUP, thread);
            queries.copy(k, &copy, own_queries);
            k.fence_async_proxy();
        });

        let stages = k.shared_address(shared.keys);
        let own_keys = k.mad(of_head, ROWS * shared.tiles.keys.row_bytes, stages);
        let zero = k.mov(0u32);
        let consumer = Consumer {
            window,
            shared,
            dtype: spec.dtype,
            head_dim: spec.head_dim,
            ring: shared.ring(k),
            next: Turn::first(k),
            keys: Factor::new(k, shared.tiles.keys, own_keys),
            queries: Factor::new(k, layout, own_queries),
            stages,
            own: warpgroup,
            never: k.ne(zero, 0u32),
            always: k.eq(zero, 0u32),
            leads: k.eq(window.lane, 0u32),
        };
        consumer.meet(k);
        consumer
    }

    /// Lets the consumer after `consumer` multiply.
    fn pass_turn(&self, k: &mut Builder, consumer: R32) {
        let next = k.add(consumer, 1u32);
        let next = k.and(next, CONSUMERS / WARPGROUP - 1);
        let barrier = k.add(next, TURN_BARRIER);
        k.pass_barrier(barrier, 2 * WARPGROUP);
    }

    /// The products of the next stage, after those of the consumer before. Nobody waits behind the `last` ones.
    fn multiply(&self, k: &mut Builder, products: &Accumulator, last: RP) {
        let registers = products.in_warpgroup_order();
        self.ring.wait_full(k, self.next);
        let barrier = k.add(self.own, TURN_BARRIER);
        k.meet_barrier(barrier, 2 * WARPGROUP);
        let offset = k.mul(self.next.stage, self.shared.tiles.keys.bytes());
        let keys = self.keys.offset(k, offset);
        k.fence_products();
        for step in 0..self.head_dim / 16 {
            let a = WarpgroupLeft::Shared(keys.along_rows(k, step));
            let b = WarpgroupRight { descriptor: self.queries.along_rows(k, step), columns_contiguous: false };
            let adds = if step == 0 { self.never } else { self.always };
            k.multiply(self.dtype, &registers, a, b, adds);
        }
        k.commit_products();
        let waits = k.not_p(last);
        k.if_then(waits, |k| self.pass_turn(k, self.own));
        k.wait_products(0);
        k.if_then(self.leads, |k| self.ring.release(k, self.next, None));
        self.ring.advance(k, self.next);
    }
}

impl Walk for Consumer<'_> {
    fn walk(&self, k: &mut Builder, before: u32, turn: impl Fn(&mut Builder, R32, &[Vec<RF>])) {
        let products = Accumulator::new(k, 1, WINDOW);
        let turns = super::turns(k, self.window, before);
        let first = k.sub(self.window.first, before);
        k.comment("keys");
        let last_consumer = k.eq(self.own, CONSUMERS / WARPGROUP - 1);
        k.if_then(last_consumer, |k| self.pass_turn(k, self.own));
        k.for_loop(0u32, turns, 1, |k, now| {
            let following = k.add(now, 1u32);
            let last = k.eq(following, turns);
            let last = k.and_p(last, last_consumer);
            self.multiply(k, &products, last);
            let key = k.mad(now, STEP, first);
            let there = self.window.has(k, key);
            k.if_then(there, |k| turn(k, key, &products.rows));
        });
    }

    fn meet(&self, k: &mut Builder) {
        k.meet_barrier(BARRIER, CONSUMERS);
    }

    fn scratch(&self) -> R32 {
        self.stages
    }
}
