//! A consumer: 64 cells of queries, their products with the 256 cells of keys of a tile, and what is kept of those.

use super::{
    super::weights::Part, AntidiagonalSumsSpec, CONSUMER_CELLS, CONSUMERS, Own, Problem, Shared, Stages, WARPGROUP,
};
use crate::{
    isa::{Builder, Cache, R32, RP, WarpgroupLeft, WarpgroupRight},
    kernels::index::workspace::{CELL_CHUNK, KEY_CELLS},
    tile::{
        descriptor::Factor,
        fragment::Accumulator,
        ring::{Ring, Turn},
    },
};

/// Arrivals that free a stage. One lane arrives for its warp: lanes read no stage but through products, which are the warp's.
pub(super) const READS: u32 = CONSUMERS * WARPGROUP / 32;

struct Consumer<'a> {
    spec: &'a AntidiagonalSumsSpec,
    stages: Stages,
    shared: &'a Shared,
    ring: Ring,
    /// The first stage of each side as a factor.
    queries: Factor,
    keys: Factor,
    /// The next stage.
    next: Turn,
    leads: RP,
}

pub(super) fn consume(
    k: &mut Builder,
    spec: &AntidiagonalSumsSpec,
    problem: &Problem,
    own: &Own,
    shared: &Shared,
    warp: R32,
) {
    let stages = Stages::of(spec);
    let warpgroup = k.shr_u(warp, 2u32);
    let warpgroup = k.sub(warpgroup, 1u32);
    let [queries, keys] = [shared.queries, shared.keys].map(|region| k.shared_address(region));
    let own_queries = k.mad(warpgroup, CONSUMER_CELLS * stages.queries.row_bytes, queries);
    let lane = k.lane();
    let consumer = Consumer {
        spec,
        stages,
        shared,
        ring: shared.ring(k, stages),
        queries: Factor::new(k, stages.queries, own_queries),
        keys: Factor::new(k, stages.keys, keys),
        next: Turn::first(k),
        leads: k.eq(lane, 0u32),
    };
    let first_of_group = k.mul(warpgroup, CONSUMER_CELLS);
    let warp_of_group = k.and(warp, 3u32);
    let factor = problem.factor(k, spec.stride);
    let products = Accumulator::new(k, 1, KEY_CELLS);
    let note = [(); 4].map(|()| k.mov(0u32));
    let [first_query, first_key, slot, more] = note;

    k.comment("tiles");
    k.while_loop(
        |k| {
            consumer.read(k, &note);
            k.ne(more, 0u32)
        },
        |k| {
            consumer.multiply(k, &products);
            k.comment("weights");
            let of_group = k.add(first_query, first_of_group);
            let query = k.mad(warp_of_group, 16u32, of_group);
            let pair = k.mad(own.batch, own.slots, slot);
            let out = problem.output(k, spec.stride, pair, own.tiles);
            let (exists, last) = own.cells.seen_by(k, of_group, CONSUMER_CELLS);
            let chunk_products = (CELL_CHUNK / 4) as usize;
            for chunk in 0..KEY_CELLS / CELL_CHUNK {
                let key = k.add(first_key, chunk * CELL_CHUNK);
                let sees = k.ge_s(last, key);
                let sees = k.and_p(exists, sees);
                k.if_then(sees, |k| {
                    let own_columns = chunk as usize * chunk_products..(chunk as usize + 1) * chunk_products;
                    let rows: Vec<_> = products.rows.iter().map(|row| &row[own_columns.clone()]).collect();
                    spec.weigh(k, &rows, Part { query, key }, &own.cells, factor, &out);
                });
            }
        },
    );
}

impl Consumer<'_> {
    /// Waits for the next tile's first stage and reads its note.
    fn read(&self, k: &mut Builder, note: &super::Note) {
        self.ring.wait_full(k, self.next);
        let at = self.shared.note(k, self.next.stage);
        for (i, &word) in (0..).zip(note) {
            // Read by the lane that arrives.
            k.when(self.leads, |k| k.load_into(word, at, 4 * i, Cache::Default));
            let same = k.shuffle_from(word, 0u32);
            k.set(word, same);
        }
    }

    /// Sums the products of all stages of a tile. A stage is free when the products of the next one have begun and its own are
    /// done.
    fn multiply(&self, k: &mut Builder, products: &Accumulator) {
        let registers = products.in_warpgroup_order();
        let zero = k.mov(0u32);
        let always = k.eq(zero, 0u32);
        let before = Turn::fresh(k);
        let steps = self.stages.of_tile(self.spec.stride);
        // A first product that sets them would do, but older `ptxas` take that for a use of what they hold, and serialise.
        products.clear(k);
        k.for_loop(0u32, steps, 1, |k, step| {
            self.ring.wait_full(k, self.next);
            let some = k.ne(step, 0u32);
            let queries = self.stage(k, self.queries, self.stages.queries.bytes());
            let keys = self.stage(k, self.keys, self.stages.keys.bytes());
            k.fence_products();
            for inner in 0..self.stages.elements / 16 {
                let a = WarpgroupLeft::Shared(queries.along_rows(k, inner));
                let b = WarpgroupRight { descriptor: keys.along_rows(k, inner), columns_contiguous: false };
                k.multiply(self.spec.dtype, &registers, a, b, always);
            }
            k.commit_products();
            k.wait_products(1);
            let releases = k.and_p(some, self.leads);
            k.if_then(releases, |k| self.ring.release(k, before, None));
            before.set_to(k, self.next);
            self.ring.advance(k, self.next);
        });
        k.wait_products(0);
        k.if_then(self.leads, |k| self.ring.release(k, before, None));
    }

    fn stage(&self, k: &mut Builder, first: Factor, bytes: u32) -> Factor {
        let offset = k.mul(self.next.stage, bytes);
        first.offset(k, offset)
    }
}
