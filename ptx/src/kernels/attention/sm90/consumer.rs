//! A consumer: 64 query rows, their scores and their output.

use super::{OUTPUT_BARRIER, Shared, TURN_BARRIER, WARPGROUP, notes::Note};
use crate::{
    isa::{Builder, R32, RP, WarpgroupLeft, WarpgroupRight},
    kernels::attention::{
        output::Output,
        problem::Problem,
        scores::{Keys, Scores},
        spec::{AttentionSpec, Pattern},
        tiling::Tiling,
    },
    tile::{
        descriptor::Factor,
        fragment::{Accumulator, Left},
        ring::Turn,
        softmax::OnlineSoftmax,
    },
};

struct Consumer<'a> {
    spec: &'a AttentionSpec,
    tiling: Tiling,
    shared: &'a Shared,
    scores: &'a Scores<'a>,
    queries: Factor,
    keys: Factor,
    values: Factor,
    /// What turns `wgmma` from setting its accumulator into adding to it.
    never: RP,
    always: RP,
    quad_lane: R32,
}

pub(super) fn consume(
    k: &mut Builder,
    spec: &AttentionSpec,
    problem: &Problem,
    shared: &Shared,
    scores: &Scores<'_>,
    warp: R32,
    row: R32,
) {
    let tiling = problem.tiling;
    let warpgroup = k.shr_u(warp, 2u32);
    let warpgroup = k.sub(warpgroup, 1u32);
    let consumer = Consumer::new(k, spec, problem, shared, scores, warpgroup);
    let turns = Turns::new(k, warpgroup, tiling.warps / 4);
    let (keys, values) = (shared.key_ring.begin(k), shared.value_ring.begin(k));

    let softmax = OnlineSoftmax::new(k, 2, scores.factor());
    let out = Accumulator::new(k, 1, tiling.head_dim);
    out.clear(k);
    let products = Accumulator::new(k, 1, tiling.tile_keys);
    let weights: Vec<Left> = (0..tiling.tile_keys / 16).map(|_| k.fresh_array()).collect();

    shared.queries_ring.begin(k).wait_full(k);
    keys.wait_full(k);
    let note = shared.notes.read(k, keys.stage);
    let some = note.has_tile(k);
    k.if_then(some, |k| {
        k.comment("the first tile");
        consumer.start_scores(k, &products, keys);
        k.wait_products(0);
        let mut first = products.clone();
        consumer.finish_scores(k, &first, note, keys);
        release(k, keys);
        keys.advance(k);
        let shrinks = softmax.raise(k, &first.rows);
        softmax.shrink(k, &shrinks.factors);
        consumer.weigh(k, &softmax, &mut first);
        consumer.keep(k, &first, &weights);

        k.comment("tiles");
        let more = k.mov(1u32);
        let note = Note::fresh(k);
        let next = |k: &mut Builder| {
            keys.wait_full(k);
            let read = shared.notes.read(k, keys.stage);
            note.set_to(k, read);
            let some = note.has_tile(k);
            let some = k.select(some, 1u32, 0u32);
            k.set(more, some);
        };
        next(k);
        k.while_loop(
            |k| k.ne(more, 0u32),
            |k| {
                turns.take(k);
                consumer.start_scores(k, &products, keys);
                values.wait_full(k);
                consumer.start_output(k, &out, &weights, values);
                turns.pass(k);
                k.wait_products(1);
                let mut scores = products.clone();
                consumer.finish_scores(k, &scores, note, keys);
                let shrinks = softmax.raise(k, &scores.rows);
                softmax.shrink(k, &shrinks.factors);
                consumer.weigh(k, &softmax, &mut scores);
                // `ptxas` would move the wait before the softmax: nothing else orders the two.
                let summed = softmax.summed(k);
                release_if(k, keys, summed);
                keys.advance(k);
                k.wait_products(0);
                release(k, values);
                values.advance(k);
                k.if_then(shrinks.needed, |k| out.scale_rows(k, &shrinks.factors));
                consumer.keep(k, &scores, &weights);
                next(k);
            },
        );

        k.comment("the last values");
        values.wait_full(k);
        consumer.start_output(k, &out, &weights, values);
        k.wait_products(0);
    });

    k.comment("output");
    let ends = softmax.finish(k);
    // The rows of this warpgroup's queries become those of its output, when all its warps are done with them.
    let barrier = k.add(warpgroup, OUTPUT_BARRIER);
    k.meet_barrier(barrier, WARPGROUP);
    let lane = k.lane();
    let layout = tiling.query_tile();
    let queries = k.shared_address(shared.queries);
    let tile = k.mad(row, layout.row_bytes, queries);
    let target = problem.target(k, problem.place());
    Output { target, kind: spec.dtype, layout, tile, first_row: row, rows: 16, lane }.write(k, &out, &ends);
}

/// One arrival of this warp: it no longer reads the stage.
fn release(k: &mut Builder, turn: Turn) {
    let elected = k.elect();
    k.when(elected, |k| turn.release(k));
}

/// As [`release`], where `condition` holds.
fn release_if(k: &mut Builder, turn: Turn, condition: RP) {
    let elected = k.elect();
    let releases = k.and_p(elected, condition);
    k.when(releases, |k| turn.release(k));
}

impl<'a> Consumer<'a> {
    fn new(
        k: &mut Builder,
        spec: &'a AttentionSpec,
        problem: &Problem,
        shared: &'a Shared,
        scores: &'a Scores<'a>,
        warpgroup: R32,
    ) -> Consumer<'a> {
        let tiling = problem.tiling;
        let (query_tile, key_tile) = (tiling.query_tile(), tiling.key_tile());
        let [queries, keys, values] =
            [shared.queries, shared.keys, shared.values].map(|region| k.shared_address(region));
        let queries = k.mad(warpgroup, 64 * query_tile.row_bytes, queries);
        let zero = k.mov(0u32);
        let lane = k.lane();
        Consumer {
            spec,
            tiling,
            shared,
            scores,
            queries: Factor::new(k, query_tile, queries),
            keys: Factor::new(k, key_tile, keys),
            values: Factor::new(k, key_tile, values),
            never: k.ne(zero, 0u32),
            always: k.eq(zero, 0u32),
            quad_lane: k.and(lane, 3u32),
        }
    }

    fn stage(&self, k: &mut Builder, tiles: Factor, turn: Turn) -> Factor {
        let offset = k.mul(turn.stage, self.tiling.key_tile().bytes());
        tiles.offset(k, offset)
    }

    /// Starts Q·Kᵀ, as a group.
    fn start_scores(&self, k: &mut Builder, products: &Accumulator, turn: Turn) {
        let keys = self.stage(k, self.keys, turn);
        k.fence_products();
        for step in 0..self.tiling.head_dim / 16 {
            let a = WarpgroupLeft::Shared(self.queries.along_rows(k, step));
            let b = WarpgroupRight { descriptor: keys.along_rows(k, step), columns_contiguous: false };
            let adds = if step == 0 { self.never } else { self.always };
            k.multiply(self.spec.dtype, &products.in_warpgroup_order(), a, b, adds);
        }
        k.commit_products();
    }

    /// Starts `out += P · V`, as a group.
    fn start_output(&self, k: &mut Builder, out: &Accumulator, weights: &[Left], turn: Turn) {
        let values = self.stage(k, self.values, turn);
        k.fence_products();
        for (step, &weights) in (0..).zip(weights) {
            let a = WarpgroupLeft::Registers(weights);
            let b = WarpgroupRight { descriptor: values.down_rows(k, step), columns_contiguous: true };
            k.multiply(self.spec.dtype, &out.in_warpgroup_order(), a, b, self.always);
        }
        k.commit_products();
    }

    /// Turns products into scores, block by block: −∞ where the pair does not count.
    fn finish_scores(&self, k: &mut Builder, products: &Accumulator, note: Note, turn: Turn) {
        let blocks = |k: &mut Builder| {
            let columns = (self.tiling.keys / 4) as usize;
            for part in 0..self.tiling.parts() as usize {
                let rows: Vec<_> =
                    products.rows.iter().map(|row| row[columns * part..columns * (part + 1)].to_vec()).collect();
                let partial = (self.spec.pattern == Pattern::BlockSparse).then_some(note.partial[part]);
                let keys = Keys::block(k, note.starts[part], self.quad_lane, partial);
                self.scores.finish(k, &rows, keys);
            }
        };
        if self.spec.pattern != Pattern::VerticalSlash {
            return blocks(k);
        }
        let columns = note.has_columns(k);
        k.if_else(
            columns,
            |k| {
                if let Some(entries) = self.shared.notes.columns(k, turn.stage) {
                    let keys = Keys::columns(k, entries, self.quad_lane);
                    self.scores.finish(k, &products.rows, keys);
                }
            },
            blocks,
        );
    }

    fn weigh(&self, k: &mut Builder, softmax: &OnlineSoftmax, scores: &mut Accumulator) {
        let shifts = softmax.shifts(k);
        let columns = scores.rows[0].len();
        softmax.weigh(k, &shifts, &mut scores.rows, 0..columns);
    }

    /// Rounds the weights into the registers from which they are multiplied.
    fn keep(&self, k: &mut Builder, scores: &Accumulator, weights: &[Left]) {
        for (step, target) in (0..).zip(weights) {
            let left = scores.left(k, self.spec.dtype, 16 * step);
            for (&target, value) in target.iter().zip(left[0]) {
                k.set(target, value);
            }
        }
    }
}

/// Who may start products: the consumers one after the other, in a circle. A consumer that waits for its turn has the
/// tensor cores busy with another's products, and none of them has two in flight.
struct Turns {
    own: R32,
    next: R32,
}

impl Turns {
    /// The first consumer has the first turn.
    fn new(k: &mut Builder, warpgroup: R32, consumers: u32) -> Turns {
        let own = k.add(warpgroup, TURN_BARRIER);
        let first = k.eq(warpgroup, 0u32);
        k.if_then(first, |k| k.pass_barrier(TURN_BARRIER, 2 * WARPGROUP));
        let last = k.eq(warpgroup, consumers - 1);
        let after = k.add(own, 1u32);
        Turns { own, next: k.select(last, TURN_BARRIER, after) }
    }

    fn take(&self, k: &mut Builder) {
        k.meet_barrier(self.own, 2 * WARPGROUP);
    }

    fn pass(&self, k: &mut Builder) {
        k.pass_barrier(self.next, 2 * WARPGROUP);
    }
}
