//! A consumer: 64 query rows, their scores and their output.

use super::{
    Rounds, Shared,
    notes::{Note, flag},
};
use crate::{
    isa::{B64, Builder, R32, RP, WarpgroupLeft, WarpgroupRight},
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
    /// The next block.
    next: Turn,
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
    (warp, row, rounds): (R32, R32, Rounds),
) {
    let tiling = problem.tiling;
    let warpgroup = k.shr_u(warp, 2u32);
    let warpgroup = k.sub(warpgroup, 1u32);
    let consumer = Consumer::new(k, spec, problem, shared, scores, (warpgroup, row, rounds));

    let softmax = OnlineSoftmax::new(k, 2, scores.factor()).with_slack(k, SLACK);
    let out = Accumulator::new(k, 1, tiling.head_dim);
    out.clear(k);
    let products = Accumulator::new(k, 1, tiling.tile_keys);
    let weights: Vec<Left> = (0..tiling.tile_keys / 16).map(|_| k.fresh_array()).collect();
    let (tile, before) = (Tile::new(k, tiling), Tile::new(k, tiling));

    if consumer.leaves_out() {
        let before = shared.notes.read_before(k);
        consumer.skip(k, before);
    }
    if spec.takes_turns() && matches!(consumer.queries, Queries::Registers(_)) {
        consumer.release_queries(k, rounds.queries);
    }
    consumer.take(k, &tile);
    let some = k.ne(tile.exists, 0u32);
    k.if_then(some, |k| {
        k.comment("the first tile");
        consumer.start_scores(k, &products, &tile);
        k.wait_products(0);
        let mut first = products.clone();
        consumer.finish_and_release(k, &first, &tile);
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
                consumer.start_scores(k, &products, &tile);
                consumer.wait_values(k, &before);
                consumer.start_output(k, &out, &weights, &before);
                k.wait_products(1);
                let mut scores = products.clone();
                consumer.finish_and_release(k, &scores, &tile);
                let shrinks = softmax.raise(k, &scores.rows);
                softmax.shrink(k, &shrinks.factors);
                consumer.weigh(k, &softmax, &mut scores);
                consumer.pin(k, &softmax);
                k.wait_products(0);
                consumer.release(k, consumer.value_ring, &before);
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
        if spec.takes_turns() {
            consumer.release(k, consumer.value_ring, &before);
        }
    });

    k.comment("output");
    let ends = softmax.finish(k);
    let target = problem.target(k, problem.place());
    let lane = k.lane();
    Output { target, kind: spec.dtype, first_row: row, rows: 16, lane }.write(k, &out, &ends);

    if spec.takes_turns() {
        k.comment("on to the next row block");
        if matches!(consumer.queries, Queries::Shared(_)) {
            consumer.release_queries(k, rounds.queries);
        }
        consumer.pass_end(k);
        shared.query_ring(k).advance(k, rounds.queries);
    }
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
        (warpgroup, row, rounds): (R32, R32, Rounds),
    ) -> Consumer<'a> {
        let tiling = problem.tiling;
        let [keys, values] = [shared.keys, shared.values].map(|region| k.shared_address(region));
        let zero = k.mov(0u32);
        let lane = k.lane();
        let queries = if tiling.stages_queries {
            let ring = shared.query_ring(k);
            ring.wait_full(k, rounds.queries);
            None
        } else {
            Some(Queries::fetch(k, problem, row))
        };
        Consumer {
            spec,
            tiling,
            shared,
            scores,
            queries: queries.unwrap_or_else(|| Queries::new(k, spec, tiling, shared, warpgroup, row)),
            key_ring: Ring::in_region(k, shared.block_ring, shared.key_ring),
            value_ring: Ring::in_region(k, shared.block_ring, shared.value_ring),
            keys: Factor::new(k, tiling.key_tile(), keys),
            values: Factor::new(k, tiling.key_tile(), values),
            next: rounds.blocks,
            own: warpgroup,
            never: k.ne(zero, 0u32),
            always: k.eq(zero, 0u32),
            quad_lane: k.and(lane, 3u32),
        }
    }

    /// Whether blocks may be there that this consumer does not need.
    fn leaves_out(&self) -> bool {
        self.shared.block_ring.passing
    }

    /// Takes the next blocks, when they are there, as a tile. A tile without a second block has the first one again, at no
    /// key.
    fn take(&self, k: &mut Builder, tile: &Tile) {
        for (part, block) in tile.blocks.iter().enumerate() {
            self.key_ring.wait_full(k, self.next);
            let note = self.shared.notes.read(k, self.next.stage);
            block.note.set_to(k, note);
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
            if self.leaves_out() {
                self.skip(k, block.note);
            }
        }
    }

    /// Passes over the next block if the note before it says so. The producer has released it: it must not be looked at.
    fn skip(&self, k: &mut Builder, before: Note) {
        let skips = before.has_own(k, flag::SKIPS, self.own);
        k.if_then(skips, |k| self.key_ring.advance(k, self.next));
    }

    /// The queries are in registers, or no longer needed: those of the next row block may come.
    fn release_queries(&self, k: &mut Builder, turn: Turn) {
        self.shared.query_ring(k).release(k, turn, None);
    }

    /// Passes over the stage that said that no block is left, in both rings.
    fn pass_end(&self, k: &mut Builder) {
        self.value_ring.wait_full(k, self.next);
        self.value_ring.release(k, self.next, None);
        self.key_ring.release(k, self.next, None);
        self.key_ring.advance(k, self.next);
    }

    /// Each lane arrives at each block of the tile: it no longer reads them.
    fn release(&self, k: &mut Builder, ring: Ring, tile: &Tile) {
        let first = tile.blocks[0].turn;
        ring.release(k, first, None);
        for block in &tile.blocks[1..] {
            // Not twice where the first block stands for a missing one.
            let differs = block.turn.differs(k, first);
            ring.release(k, block.turn, Some(differs));
        }
    }

    /// Keeps the softmax before the wait that follows. Nothing else orders the two, and `ptxas` would move the wait up,
    /// which leaves the tensor cores idle: a store that never happens, on a condition that it cannot decide.
    fn pin(&self, k: &mut Builder, softmax: &OnlineSoftmax) {
        let summed = softmax.summed(k);
        let nowhere = k.shared_address(self.shared.query_ring);
        k.unless(summed, |k| k.store::<B64, _>(nowhere, 8, 0u64));
    }

    fn wait_values(&self, k: &mut Builder, tile: &Tile) {
        let turns: Vec<Turn> = tile.blocks.iter().map(|block| block.turn).collect();
        self.value_ring.wait_all_full(k, &turns);
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

    /// Turns products into scores, and gives the keys back.
    fn finish_and_release(&self, k: &mut Builder, products: &Accumulator, tile: &Tile) {
        // Columns are read from beside the stage, before it is released; else the sooner the better.
        let reads_beside = self.spec.pattern == Pattern::VerticalSlash;
        if !reads_beside {
            self.release(k, self.key_ring, tile);
        }
        self.finish_scores(k, products, tile);
        if reads_beside {
            self.release(k, self.key_ring, tile);
        }
    }

    /// Turns products into scores: −∞ where the pair does not count.
    fn finish_scores(&self, k: &mut Builder, products: &Accumulator, tile: &Tile) {
        let plain = self.spec.score.is_none() && self.spec.mask.is_none() && !self.spec.softcap;
        if self.spec.pattern != Pattern::VerticalSlash || !plain {
            return self.finish_blocks(k, products, tile);
        }
        // The producer says of which blocks all pairs count: of most.
        let (first, others) = (tile.blocks[0].note, tile.blocks[1..].iter().map(|block| block.note));
        let flags = first.flags_with(k, others);
        let one = k.mov(flag::MASKED);
        let masked = k.shl(one, self.own);
        let careful = k.or(masked, flag::END | flag::COLUMNS);
        let careful = k.and(flags, careful);
        let careful = k.ne(careful, 0u32);
        let careful = k.any(careful);
        k.if_then(careful, |k| self.finish_blocks(k, products, tile));
    }

    /// As [`Consumer::finish_scores`], block by block.
    fn finish_blocks(&self, k: &mut Builder, products: &Accumulator, tile: &Tile) {
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
/// Three consumers have no registers left for them, nor has one with an output of 256 columns or with an expression.
fn in_registers(spec: &AttentionSpec, tiling: Tiling) -> bool {
    let plain = spec.score.is_none() && spec.mask.is_none();
    plain && tiling.warps <= 8 && tiling.head_dim <= 128
}

impl Queries {
    fn new(
        k: &mut Builder,
        spec: &AttentionSpec,
        tiling: Tiling,
        shared: &Shared,
        warpgroup: R32,
        row: R32,
    ) -> Queries {
        let layout = tiling.query_tile();
        let queries = k.shared_address(shared.queries);
        if !in_registers(spec, tiling) {
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

    /// Queries that nobody has staged, as the lane holds them: those of rows of several heads, in turn. Rows that there are not
    /// repeat the last one, and are not written.
    fn fetch(k: &mut Builder, problem: &Problem, row: R32) -> Queries {
        let rows = problem.queries(k);
        let lane = k.lane();
        let (own, quad_lane) = (k.shr_u(lane, 2u32), k.and(lane, 3u32));
        let first = k.add(row, problem.first_row);
        let first = k.add(first, own);
        let last = k.sub(problem.q_len, 1u32);
        let [upper, lower] = [0u32, 8].map(|below| {
            let row = k.add(first, below);
            let row = k.min_u(row, last);
            let (at, _) = rows.row(k, row);
            k.mad_wide(quad_lane, 4u32, at)
        });
        let steps = (0..problem.tiling.head_dim / 16).map(|step| {
            let at = i64::from(32 * step);
            [(upper, at), (lower, at), (upper, at + 16), (lower, at + 16)].map(|(row, at)| k.load_readonly(row, at))
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
