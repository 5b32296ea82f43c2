//! A consumer: 64 query rows, their scores and their output.

use super::{
    OUTPUT_BARRIER, Shared, TURN_BARRIER, WARPGROUP,
    notes::{Note, flag},
};
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
        fragment::{Accumulator, Left, rows_first},
        ring::{Ring, Turn},
        softmax::OnlineSoftmax,
    },
};

/// Weights may reach 2^8 before a maximum is raised: far inside the range of f16.
const SLACK: f32 = 8.0;

struct Consumer<'a> {
    spec: &'a AttentionSpec,
    tiling: Tiling,
    shared: &'a Shared,
    scores: &'a Scores<'a>,
    queries: Queries,
    /// The rings, and the first stage of each as a factor.
    key_ring: Ring,
    value_ring: Ring,
    keys: Factor,
    values: Factor,
    /// The next block of keys and, where a consumer leaves blocks out, of values.
    next: Turn,
    next_values: Turn,
    /// Which consumer this is.
    own: R32,
    /// What turns `wgmma` from setting its accumulator into adding to it.
    never: RP,
    always: RP,
    quad_lane: R32,
}

/// Where the queries are.
enum Queries {
    Shared(Factor),
    Registers(Vec<Left>),
}

/// A block of a tile: its place in the rings, and which keys it holds.
#[derive(Clone, Copy)]
struct Block {
    turn: Turn,
    note: Note,
}

/// The blocks of a tile.
struct Tile {
    blocks: Vec<Block>,
    /// Not 0 while there is a tile.
    exists: R32,
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
    let consumer = Consumer::new(k, spec, problem, shared, scores, warpgroup, row);
    let turns = Turns::new(k, warpgroup, tiling.warps / 4);

    let softmax = OnlineSoftmax::new(k, 2, scores.factor()).with_slack(k, SLACK);
    let out = Accumulator::new(k, 1, tiling.head_dim);
    out.clear(k);
    let products = Accumulator::new(k, 1, tiling.tile_keys);
    let weights: Vec<Left> = (0..tiling.tile_keys / 16).map(|_| k.fresh_array()).collect();
    let (tile, before) = (Tile::new(k, tiling), Tile::new(k, tiling));

    consumer.take(k, &tile);
    let some = k.ne(tile.exists, 0u32);
    k.if_then(some, |k| {
        k.comment("the first tile");
        consumer.start_scores(k, &products, &tile);
        k.wait_products(0);
        let mut first = products.clone();
        consumer.finish_scores(k, &first, &tile);
        consumer.release(k, consumer.key_ring, &tile, None);
        let shrinks = softmax.raise(k, &first.rows);
        softmax.shrink(k, &shrinks.factors);
        consumer.weigh(k, &softmax, &mut first);
        consumer.keep(k, &first, &weights);
        before.set_to(k, &tile);
        consumer.take(k, &tile);

        k.comment("tiles");
        k.while_loop(
            |k| k.ne(tile.exists, 0u32),
            |k| {
                if !x("nopp") && !consumer.leaves_out() {
                    turns.take(k);
                }
                consumer.start_scores(k, &products, &tile);
                consumer.wait_values(k, &before);
                consumer.start_output(k, &out, &weights, &before);
                if !x("nopp") && !consumer.leaves_out() {
                    turns.pass(k);
                }
                k.wait_products(1);
                let mut scores = products.clone();
                consumer.finish_scores(k, &scores, &tile);
                let shrinks = softmax.raise(k, &scores.rows);
                softmax.shrink(k, &shrinks.factors);
                consumer.weigh(k, &softmax, &mut scores);
                // `ptxas` would move the wait before the softmax: nothing else orders the two.
                let summed = softmax.summed(k);
                consumer.release(k, consumer.key_ring, &tile, Some(summed));
                k.wait_products(0);
                consumer.release(k, consumer.value_ring, &before, None);
                k.if_then(shrinks.needed, |k| out.scale_rows(k, &shrinks.factors));
                consumer.keep(k, &scores, &weights);
                before.set_to(k, &tile);
                consumer.take(k, &tile);
            },
        );

        k.comment("the last values");
        consumer.wait_values(k, &before);
        consumer.start_output(k, &out, &weights, &before);
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

impl Tile {
    fn new(k: &mut Builder, tiling: Tiling) -> Tile {
        let block = |k: &mut Builder| Block { turn: Turn::fresh(k), note: Note::fresh(k) };
        Tile { blocks: (0..tiling.parts()).map(|_| block(k)).collect(), exists: k.fresh() }
    }

    /// Makes the places of this tile those of `other`.
    fn set_to(&self, k: &mut Builder, other: &Tile) {
        self.blocks.iter().zip(&other.blocks).for_each(|(own, other)| own.turn.set_to(k, other.turn));
    }
}

impl<'a> Consumer<'a> {
    fn new(
        k: &mut Builder,
        spec: &'a AttentionSpec,
        problem: &Problem,
        shared: &'a Shared,
        scores: &'a Scores<'a>,
        warpgroup: R32,
        row: R32,
    ) -> Consumer<'a> {
        let tiling = problem.tiling;
        let [keys, values] = [shared.keys, shared.values].map(|region| k.shared_address(region));
        let zero = k.mov(0u32);
        let lane = k.lane();
        let (ring, turn) = (shared.query_ring(k), Turn::first(k));
        ring.wait_full(k, turn);
        Consumer {
            spec,
            tiling,
            shared,
            scores,
            queries: Queries::new(k, tiling, shared, warpgroup, row),
            key_ring: Ring::in_region(k, tiling.stages(), shared.key_ring),
            value_ring: Ring::in_region(k, tiling.stages(), shared.value_ring),
            keys: Factor::new(k, tiling.key_tile(), keys),
            values: Factor::new(k, tiling.key_tile(), values),
            next: Turn::first(k),
            next_values: Turn::first(k),
            own: warpgroup,
            never: k.ne(zero, 0u32),
            always: k.eq(zero, 0u32),
            quad_lane: k.and(lane, 3u32),
        }
    }

    /// Whether blocks may be there that this consumer does not need.
    fn leaves_out(&self) -> bool {
        self.spec.pattern == Pattern::VerticalSlash && self.tiling.groups() > 1
    }

    /// Takes the next blocks, when they are there, as a tile. A tile without a second block has the first one again, at no
    /// key.
    fn take(&self, k: &mut Builder, tile: &Tile) {
        for (part, block) in tile.blocks.iter().enumerate() {
            let look = |k: &mut Builder| {
                self.key_ring.wait_full(k, self.next);
                let note = self.shared.notes.read(k, self.next.stage);
                block.note.set_to(k, note);
            };
            if self.leaves_out() {
                k.while_loop(
                    |k| {
                        look(k);
                        let needed = block.note.has_own(k, flag::NEEDED, self.own);
                        let ends = block.note.has(k, flag::END);
                        let stops = k.or_p(needed, ends);
                        k.not_p(stops)
                    },
                    |k| {
                        self.key_ring.release(k, self.next, None);
                        self.key_ring.advance(k, self.next);
                    },
                );
            } else {
                look(k);
            }
            let ends = block.note.has(k, flag::END);
            block.turn.set_to(k, self.next);
            if part == 0 {
                let exists = k.select(ends, 0u32, 1u32);
                k.set(tile.exists, exists);
            } else {
                block.turn.set_to_if(k, ends, tile.blocks[0].turn);
            }
            let goes_on = k.not_p(ends);
            k.if_then(goes_on, |k| self.key_ring.advance(k, self.next));
        }
    }

    /// One arrival of this warp at each block of the tile: it no longer reads them.
    fn release(&self, k: &mut Builder, ring: Ring, tile: &Tile, condition: Option<RP>) {
        let first = tile.blocks[0].turn;
        ring.release(k, first, condition);
        for block in &tile.blocks[1..] {
            // Not twice where the first block stands for a missing one.
            let mut differs = block.turn.differs(k, first);
            if let Some(condition) = condition {
                differs = k.and_p(differs, condition);
            }
            ring.release(k, block.turn, Some(differs));
        }
    }

    fn wait_values(&self, k: &mut Builder, tile: &Tile) {
        let ring = self.value_ring;
        if !self.leaves_out() {
            return tile.blocks.iter().for_each(|block| ring.wait_full(k, block.turn));
        }
        let first = tile.blocks[0].turn;
        for (part, block) in tile.blocks.iter().enumerate() {
            let wait = |k: &mut Builder| {
                k.while_loop(
                    |k| self.next_values.differs(k, block.turn),
                    |k| {
                        ring.wait_full(k, self.next_values);
                        ring.release(k, self.next_values, None);
                        ring.advance(k, self.next_values);
                    },
                );
                ring.wait_full(k, block.turn);
                ring.advance(k, self.next_values);
            };
            if part == 0 {
                wait(k);
            } else {
                let exists = block.turn.differs(k, first);
                k.if_then(exists, wait);
            }
        }
    }

    fn stage(&self, k: &mut Builder, blocks: Factor, turn: Turn) -> Factor {
        let offset = k.mul(turn.stage, self.tiling.key_tile().bytes());
        blocks.offset(k, offset)
    }

    /// Starts Q·Kᵀ, as a group.
    fn start_scores(&self, k: &mut Builder, products: &Accumulator, tile: &Tile) {
        let blocks: Vec<Factor> = tile.blocks.iter().map(|block| self.stage(k, self.keys, block.turn)).collect();
        let columns = self.tiling.keys as usize * 2 / 4;
        let products = products.in_warpgroup_order();
        k.fence_products();
        for (block, products) in blocks.into_iter().zip(products.chunks(columns)) {
            for step in 0..self.tiling.head_dim / 16 {
                let a = self.queries.left(k, step);
                let b = WarpgroupRight { descriptor: block.along_rows(k, step), columns_contiguous: false };
                let adds = if step == 0 { self.never } else { self.always };
                k.multiply(self.spec.dtype, products, a, b, adds);
            }
        }
        k.commit_products();
    }

    /// Starts `out += P · V`, as a group.
    fn start_output(&self, k: &mut Builder, out: &Accumulator, weights: &[Left], tile: &Tile) {
        let blocks: Vec<Factor> = tile.blocks.iter().map(|block| self.stage(k, self.values, block.turn)).collect();
        let steps = self.tiling.keys as usize / 16;
        k.fence_products();
        for (block, weights) in blocks.into_iter().zip(weights.chunks(steps)) {
            for (step, &weights) in (0..).zip(weights) {
                let a = WarpgroupLeft::Registers(weights);
                let b = WarpgroupRight { descriptor: block.down_rows(k, step), columns_contiguous: true };
                k.multiply(self.spec.dtype, &out.in_warpgroup_order(), a, b, self.always);
            }
        }
        k.commit_products();
    }

    /// Turns products into scores, block by block: −∞ where the pair does not count.
    fn finish_scores(&self, k: &mut Builder, products: &Accumulator, tile: &Tile) {
        let columns = (self.tiling.keys / 4) as usize;
        for (part, Block { turn, note }) in tile.blocks.iter().enumerate() {
            let own = columns * part..columns * (part + 1);
            let rows: Vec<_> = products.rows.iter().map(|row| row[own.clone()].to_vec()).collect();
            let block = |k: &mut Builder| {
                let partial = (self.spec.pattern == Pattern::BlockSparse).then(|| note.partial(k));
                let keys = Keys::block(k, note.start, self.quad_lane, partial);
                self.scores.finish(k, &rows, keys);
            };
            if self.spec.pattern != Pattern::VerticalSlash {
                block(k);
                continue;
            }
            let gathered = note.has(k, flag::COLUMNS);
            k.if_else(
                gathered,
                |k| {
                    if let Some(entries) = self.shared.notes.columns(k, turn.stage) {
                        let own = k.mad(self.own, self.shared.notes.list_bytes(), entries);
                        let masked = note.has_own(k, flag::MASKED, self.own);
                        let keys = Keys::columns(k, own, self.quad_lane, Some(masked));
                        self.scores.finish(k, &rows, keys);
                    }
                },
                block,
            );
        }
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

/// Whether a consumer keeps its queries in registers, so that products do not read them from shared memory again and again.
/// Three consumers have no registers left for them, nor has one with an output of 256 columns.
fn in_registers(tiling: Tiling) -> bool {
    tiling.warps <= 8 && tiling.head_dim <= 128
}

/// TEMPORARY: experiments.
pub(super) fn x(name: &str) -> bool {
    std::env::var("LX").is_ok_and(|v| v.split(',').any(|v| v == name))
}

impl Queries {
    fn new(k: &mut Builder, tiling: Tiling, shared: &Shared, warpgroup: R32, row: R32) -> Queries {
        let layout = tiling.query_tile();
        let queries = k.shared_address(shared.queries);
        if !in_registers(tiling) {
            let own = k.mad(warpgroup, 64 * layout.row_bytes, queries);
            return Queries::Shared(Factor::new(k, layout, own));
        }
        let lane = k.lane();
        let (lane_row, chunk) = rows_first(k, lane);
        let row = k.add(lane_row, row);
        let offset = layout.lane_offset(k, row, chunk);
        let matrices = k.add(queries, offset);
        let cursor = layout.cursor(k, matrices, 2);
        let steps = (0..tiling.head_dim / 16).map(|step| {
            let (at, offset) = cursor.at(0, 2 * step);
            k.load_matrices(at, offset, false)
        });
        Queries::Registers(steps.collect())
    }

    fn left(&self, k: &mut Builder, step: u32) -> WarpgroupLeft {
        match self {
            Queries::Shared(queries) => WarpgroupLeft::Shared(queries.along_rows(k, step)),
            Queries::Registers(steps) => WarpgroupLeft::Registers(steps[step as usize]),
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
