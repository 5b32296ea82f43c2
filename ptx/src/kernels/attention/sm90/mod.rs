//! The attention kernel for sm_90a: bulk tensor copies, `wgmma`, warpgroups with roles (after FlashAttention-3, §3).
//!
//! A block has 64 query rows for each of its consumer warpgroups, and one producer warpgroup more. Blocks of keys and of
//! values come through two rings; what a block holds is noted beside it, so that only the producer walks the pattern
//! ([`notes`]). A consumer takes 128 keys at a time: one block of 128, or the next two of 64, wherever they lie. With heads of
//! 256 it takes one block of 64.
//!
//! ```text
//! producer   for each block:  stage free? fetch           two warps for keys, two for values
//! consumer   S = Q·K₀ᵀ; mask; P = softmax(S)
//!            for each tile i: S = Q·Kᵢᵀ and O += P·Vᵢ₋₁ on their way;  S there: mask, maximum, powers of two;
//!                             O there: O *= shrink, P = weights
//!            O += P·V; O / sum from registers to global memory
//! ```
//!
//! Nobody tells the consumers to take turns: while one has its products on the tensor cores the other comes to its softmax by
//! itself, and named barriers that make them (FlashAttention-3) cost as much as they bring with rings this deep.
//!
//! Cost of a 128×128 tile at d = 128, in cycles of a multiprocessor (4096 bf16 operations a cycle): 2048 for the products.
//! The special functions take 1024, the other arithmetic some 700 issue slots of each of the four parts; shared memory is
//! read at 112 of 128 bytes a cycle, at 96 with the queries in registers. So products are the limit if the softmax of one
//! warpgroup hides behind those of the other. At d = 64 products take 1024 cycles, as much as the special functions.

mod consumer;
mod notes;
mod producer;
mod turns;

use super::{
    blocks::Windows,
    problem::{Parameters, Problem},
    scores::Scores,
    spec::{AttentionSpec, KvLayout, Partition, Pattern},
    tiling::Tiling,
};
use crate::{
    isa::{Builder, R32, RP, SharedRegion},
    tile::ring::{Ring, RingShape, Turn},
};
use notes::Notes;
use turns::Places;

/// Threads of a warpgroup.
const WARPGROUP: u32 = 128;
/// Rows of a consumer.
const ROWS: u32 = 64;
/// Named barrier of the producer; 0 is the block's.
const PRODUCER_BARRIER: u32 = 1;
/// That of its side of keys; that of values follows.
const SIDE_BARRIER: u32 = 2;

/// Shared memory of a block.
struct Shared {
    queries: SharedRegion,
    /// The stages' blocks, one after the other.
    keys: SharedRegion,
    values: SharedRegion,
    query_ring: SharedRegion,
    /// Of both rings.
    block_ring: RingShape,
    key_ring: SharedRegion,
    value_ring: SharedRegion,
    notes: Notes,
    columns: Option<ColumnRing>,
    places: Option<Places>,
}

/// Where one warp of the producer leaves columns for all: the entries, how many they are and whether more follow, and the
/// barriers.
#[derive(Clone, Copy)]
struct ColumnRing {
    entries: SharedRegion,
    header: SharedRegion,
    barriers: SharedRegion,
}

impl ColumnRing {
    fn ring(self, k: &mut Builder) -> Ring {
        Ring::in_region(k, RingShape::SINGLE, self.barriers)
    }
}

impl Shared {
    fn query_ring(&self, k: &mut Builder) -> Ring {
        Ring::in_region(k, RingShape::SINGLE, self.query_ring)
    }
}

/// Registers for a thread of the producer and of a consumer: what the block starts with, shared out.
fn registers(spec: &AttentionSpec, consumers: u32) -> (u32, u32) {
    let paged = spec.kv != KvLayout::Strided;
    match (consumers, spec.pattern) {
        (3, _) => (32, 160),
        // Gathered columns need addresses, and so do pages, whose rows, more a thread in a narrow head, all come one by one.
        (_, Pattern::VerticalSlash) if paged && spec.head_dim == 64 => (72, 216),
        (_, Pattern::VerticalSlash) => (56, 224),
        // A part has two ends.
        _ if paged && spec.partition == Partition::Keys => (56, 224),
        _ if paged => (40, 232),
        // The next row block is found with few registers.
        _ if spec.takes_turns() => (40, 232),
        _ => (24, 240),
    }
}

/// Threads of the consumers that have rows.
fn readers(k: &mut Builder, problem: &Problem, consumers: u32) -> R32 {
    let rows = k.sub(problem.q_len, problem.first_row);
    let padded = k.add(rows, ROWS - 1);
    let some = k.shr_u(padded, ROWS.ilog2());
    let some = k.min_u(some, consumers);
    k.mul(some, WARPGROUP)
}

/// The body of a kernel.
pub(super) fn attend(k: &mut Builder, spec: &AttentionSpec, parameters: &Parameters) {
    let tiling = Tiling::of(spec);
    let (key_tile, stages) = (tiling.key_tile(), tiling.stages());
    let consumers = tiling.warps / 4;
    let problem = (!spec.takes_turns()).then(|| parameters.of_block(k, spec));
    // Of offsets there may be blocks that only one consumer visits.
    let block_ring = RingShape { stages, passing: spec.pattern == Pattern::VerticalSlash && tiling.groups() > 1 };
    let shared = Shared {
        queries: k.shared(tiling.query_bytes(), 1024),
        keys: k.shared(stages * key_tile.bytes(), 1024),
        values: k.shared(stages * key_tile.bytes(), 1024),
        query_ring: k.shared(RingShape::SINGLE.bytes(), 8),
        block_ring,
        key_ring: k.shared(block_ring.bytes(), 8),
        value_ring: k.shared(block_ring.bytes(), 8),
        notes: Notes::new(k, tiling, spec.pattern == Pattern::VerticalSlash),
        columns: (spec.pattern == Pattern::VerticalSlash).then(|| ColumnRing {
            entries: k.shared(4 * tiling.ring * tiling.groups(), 16),
            header: k.shared(8, 8),
            barriers: k.shared(RingShape::SINGLE.bytes(), 8),
        }),
        places: spec.takes_turns().then(|| Places::new(k)),
    };
    let thread = k.thread();
    // The same in all lanes, and the shuffle lets `ptxas` know.
    let warp = k.shr_u(thread, 5u32);
    let warp = k.shuffle_from(warp, 0u32);

    let first = k.eq(thread, 0u32);
    k.if_then(first, |k| {
        // Beside the queries comes a note of who skips the first block.
        let fills = if spec.pattern == Pattern::VerticalSlash { 2 } else { 1 };
        if tiling.stages_queries {
            shared.query_ring(k).init(k, fills, WARPGROUP * consumers);
        }
        let fills = 32 * producer::SIDE_WARPS;
        let split = problem.as_ref().filter(|problem| problem.split().is_some());
        let some = split.map(|problem| readers(k, problem, consumers));
        for region in [shared.key_ring, shared.value_ring] {
            let ring = Ring::in_region(k, block_ring, region);
            match some {
                None => ring.init(k, fills, WARPGROUP * consumers),
                Some(reads) => ring.init(k, fills, reads),
            }
        }
        if let Some(columns) = shared.columns {
            columns.ring(k).init(k, 32, 32 * (tiling.producer_warps() - 1));
        }
        if let Some(places) = shared.places {
            places.init(k, tiling.threads());
        }
        k.fence_mbarriers();
    });
    let row: R32 = k.mul(warp, 16u32);
    let row = k.sub(row, 16 * tiling.producer_warps());
    let windows = problem.as_ref().and_then(|problem| Windows::declare(k, spec, problem));
    let scores = problem.as_ref().map(|problem| Scores::new(k, spec, problem, windows.as_ref(), row));
    k.barrier();

    let (few, many) = registers(spec, consumers);
    let for_each = |k: &mut Builder, asks: Option<RP>, body: &dyn Fn(&mut Builder, &Problem)| {
        let (places, turns) = shared.places.zip(parameters.turns).expect("blocks take places in turn");
        places.for_each(k, spec, (parameters, turns), asks, body);
    };
    let produces = k.lt_u(warp, tiling.producer_warps());
    k.if_else(
        produces,
        |k| {
            k.comment("producer");
            k.shrink_registers(few);
            let rounds = Rounds::first(k);
            let produce = |k: &mut Builder, problem: &Problem, windows: Option<&Windows>| {
                producer::produce(k, spec, problem, &shared, windows, (warp, rounds));
            };
            if let Some(problem) = &problem {
                return produce(k, problem, windows.as_ref());
            }
            // The values' second warp has little else to do.
            let asks = k.eq(warp, tiling.producer_warps() - 1);
            for_each(k, Some(asks), &|k, problem| {
                let windows = Windows::declare(k, spec, problem);
                produce(k, problem, windows.as_ref());
            });
        },
        |k| {
            k.comment("consumer");
            let (Some(problem), Some(scores)) = (&problem, &scores) else {
                k.grow_registers(many);
                let rounds = Rounds::first(k);
                return for_each(k, None, &|k, problem| {
                    let windows = Windows::declare(k, spec, problem);
                    let scores = Scores::new(k, spec, problem, windows.as_ref(), row);
                    consumer::consume(k, spec, problem, &shared, &scores, (warp, row, rounds));
                });
            };
            let consume = |k: &mut Builder| {
                k.grow_registers(many);
                let rounds = Rounds::first(k);
                consumer::consume(k, spec, problem, &shared, scores, (warp, row, rounds));
            };
            if problem.split().is_none() {
                return consume(k);
            }
            // Few rows leave some without any: they would do as much work as the others, for nothing.
            let first = k.and(row, !(ROWS - 1));
            let first = k.add(first, problem.first_row);
            let has_rows = k.lt_u(first, problem.q_len);
            k.if_then(has_rows, consume);
        },
    );
}

/// Where a warp is in the rings, from one row block to the next.
#[derive(Clone, Copy)]
struct Rounds {
    queries: Turn,
    blocks: Turn,
    columns: Turn,
}

impl Rounds {
    fn first(k: &mut Builder) -> Rounds {
        Rounds { queries: Turn::first(k), blocks: Turn::first(k), columns: Turn::first(k) }
    }
}
