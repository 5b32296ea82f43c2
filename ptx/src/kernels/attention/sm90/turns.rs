//! Row blocks that a block takes in turn: which one comes next is the producer's to ask for, and in shared memory when it is wanted.

use crate::{
    isa::{Builder, Cache, R32, RP, SharedRegion},
    kernels::attention::{
        problem::{Otherwise, Parameters, Problem, Turns},
        spec::AttentionSpec,
    },
    tile::ring::{Ring, RingShape, Turn},
};

/// What stands for no place.
const NO_PLACE: u32 = u32::MAX;

/// The place that comes next, and its barriers.
#[derive(Clone, Copy)]
pub(super) struct Places {
    next: SharedRegion,
    barriers: SharedRegion,
}

impl Places {
    pub(super) fn new(k: &mut Builder) -> Places {
        Places { next: k.shared(4, 8), barriers: k.shared(RingShape::SINGLE.bytes(), 8) }
    }

    fn ring(self, k: &mut Builder) -> Ring {
        Ring::in_region(k, RingShape::SINGLE, self.barriers)
    }

    /// Makes the barriers, for a block of `threads`. One thread does it.
    pub(super) fn init(self, k: &mut Builder, threads: u32) {
        self.ring(k).init(k, 1, threads);
    }

    /// Runs `body` for each place of the block: that of its own in the grid, then whichever is next when it asks, which the warp does
    /// for which `asks` holds. For whole warps, all of the block, here or elsewhere.
    pub(super) fn for_each(
        self,
        k: &mut Builder,
        spec: &AttentionSpec,
        (parameters, turns): (&Parameters, Turns),
        asks: Option<RP>,
        body: impl FnOnce(&mut Builder, &Problem),
    ) {
        let first = k.block_x();
        let (at, turn) = (k.mov(first), Turn::first(k));
        k.while_loop(
            |k| {
                let all = turns.all(k);
                k.lt_u(at, all)
            },
            |k| {
                let next = k.label();
                let place = turns.place(k, at);
                let problem = parameters.find(k, spec, place, turns.extents[0], Otherwise::GoOn(next));
                body(k, &problem);
                k.place(next);
                k.comment("which place is next");
                if let Some(asks) = asks {
                    // Not before: blocks that know their next place early keep it from those that are done sooner.
                    k.if_then(asks, |k| self.ask(k, turns, turn));
                }
                let following = self.take(k, turn);
                k.set(at, following);
            },
        );
    }

    /// Asks for the next place, in one lane.
    fn ask(self, k: &mut Builder, turns: Turns, turn: Turn) {
        let elected = k.elect();
        k.if_then(elected, |k| {
            let ring = self.ring(k);
            ring.wait_free(k, turn);
            let place = k.mov(NO_PLACE);
            let several = k.ne(turns.given, 0u64);
            k.if_then(several, |k| {
                // As many ask as there are places. The last one's puts the word back to 0.
                let all = turns.all(k);
                let last = k.sub(all, 1u32);
                let given = k.atomic_increment(turns.given, 0, last);
                let blocks = k.grid_x();
                let next = k.add(given, blocks);
                k.set(place, next);
            });
            let target = k.shared_address(self.next);
            k.store(target, 0, place);
            ring.fill(k, turn);
        });
    }

    /// Takes the next place.
    fn take(self, k: &mut Builder, turn: Turn) -> R32 {
        let ring = self.ring(k);
        ring.wait_full(k, turn);
        let source = k.shared_address(self.next);
        let next = k.mov(NO_PLACE);
        k.load_into(next, source, 0, Cache::Default);
        ring.release(k, turn, None);
        ring.advance(k, turn);
        // The same in all lanes, and the shuffle lets `ptxas` know.
        k.shuffle_from(next, 0u32)
    }
}
