//! The text for sm_90a: bulk tensor copies, `wgmma`, warpgroups with roles.
//!
//! A block has two consumer warpgroups, each with 64 cells of queries of a tile and all its 256 cells of keys, and one producer
//! warpgroup. Blocks stay: block x takes tiles x, x + blocks, … of its sequence ([`tiles`]), which all take as long, and the
//! ring runs on from tile to tile, so that a tile's first elements are there when the sums of the one before are written.
//!
//! ```text
//! producer   for each tile, row of the cells, 64 elements:  stage free? fetch queries and keys
//! consumer   for each tile:  X = Σ Q·Kᵀ over the stages, one behind the other;  weights and sums from registers
//! ```
//!
//! A tensor map has the row within the stride as a dimension of its own, so that rows a stride apart are one box. Of a tile
//! that reaches past the end of its sequence rows are copied singly, as are keys in pages, of which a page holds few cells.
//!
//! A stage of 64 elements is 128 · 256 · 64 products, 1024 cycles of a multiprocessor's tensor cores, which read 80 of 128
//! bytes a cycle from shared memory for them, and 48 KB from the L2 cache.

mod consumer;
mod producer;
mod tiles;

use super::{AntidiagonalSumsSpec, Cells, Problem};
use crate::{
    isa::{Arch, Builder, R32, R64, SharedRegion},
    kernels::{
        batch::Sequence,
        index::workspace::{KEY_CELLS, QUERY_CELLS},
        kv::KvLayout,
        meta::{BoxShape, ParameterKind::U32},
    },
    tile::{
        layout::TileLayout,
        ring::{Ring, RingShape},
    },
};
use tiles::Tiles;

/// Threads of a warpgroup.
const WARPGROUP: u32 = 128;
/// Cells of queries of a consumer.
const CONSUMER_CELLS: u32 = 64;
const CONSUMERS: u32 = QUERY_CELLS / CONSUMER_CELLS;
pub(super) const THREADS: u32 = (1 + CONSUMERS) * WARPGROUP;
/// Stages of the ring, as far as shared memory has room.
const STAGES: u32 = 4;
/// Shared memory beside the stages: barriers and notes.
const SMALL_BYTES: u32 = 1024;

/// The stages of the ring: some elements of one row of every cell.
#[derive(Clone, Copy)]
struct Stages {
    queries: TileLayout,
    keys: TileLayout,
    ring: RingShape,
    elements: u32,
    /// Stages of a row.
    parts: u32,
}

impl Stages {
    fn of(spec: &AntidiagonalSumsSpec) -> Stages {
        let elements = if spec.head_dim == 96 { 96 } else { 64 };
        let [queries, keys] = [QUERY_CELLS, KEY_CELLS].map(|cells| TileLayout::in_slabs(cells, elements));
        let room = (Arch::Sm90a.shared_limit() - SMALL_BYTES) / (queries.bytes() + keys.bytes());
        let ring = RingShape { stages: room.min(STAGES), passing: false };
        Stages { queries, keys, ring, elements, parts: spec.head_dim / elements }
    }

    /// Stages of a tile.
    fn of_tile(self, stride: u32) -> u32 {
        stride * self.parts
    }
}

/// Registers for a thread of the producer, which needs some for the addresses of single rows, and of a consumer.
const fn registers(kv: KvLayout) -> (u32, u32) {
    match kv {
        KvLayout::Strided => (56, 224),
        KvLayout::Paged { .. } => (72, 216),
    }
}

/// Shared memory of a block.
struct Shared {
    /// The stages' tiles, one after the other.
    queries: SharedRegion,
    keys: SharedRegion,
    ring: SharedRegion,
    /// Beside each stage, which tile begins there: [`Note`].
    notes: SharedRegion,
}

/// What the producer says of a tile: its first cells of queries and of keys, its grid head, and whether there is one.
/// Written beside the tile's first stage before that is full.
type Note = [R32; 4];
const NOTE_BYTES: u32 = 16;

impl Shared {
    fn ring(&self, k: &mut Builder, stages: Stages) -> Ring {
        Ring::in_region(k, stages.ring, self.ring)
    }

    fn note(&self, k: &mut Builder, stage: R32) -> R32 {
        let first = k.shared_address(self.notes);
        k.mad(stage, NOTE_BYTES, first)
    }
}

/// The sequence of a block.
struct Own {
    batch: R32,
    query: Sequence,
    key: Sequence,
    cells: Cells,
    /// Grid heads, and tiles of a slice.
    slots: R32,
    tiles: R32,
}

/// The body of a kernel.
pub(super) fn sum(k: &mut Builder, spec: &AntidiagonalSumsSpec) {
    let stages = Stages::of(spec);
    let columns = stages.queries.slab_columns();
    let [q_box, k_box] = [QUERY_CELLS, KEY_CELLS].map(|rows| BoxShape { columns, rows, stride: spec.stride });
    let q_map = k.tensor_map("q_map", q_box);
    let k_map: Option<R64> = (spec.kv == KvLayout::Strided).then(|| k.tensor_map("k_map", k_box));
    let problem = Problem::declare(k, spec);
    let [slots, tiles] = ["slots", "tiles"].map(|name| k.parameter(name, U32));

    let batch = k.block_z();
    let query = problem.query_bounds.sequence(k, batch, problem.status);
    let key = problem.key_bounds.sequence(k, batch, problem.status);
    let cells = Cells::new(k, spec.stride, &query, &key);
    let own = Own { batch, query, key, cells, slots, tiles };

    let shared = Shared {
        queries: k.shared(stages.ring.stages * stages.queries.bytes(), 1024),
        keys: k.shared(stages.ring.stages * stages.keys.bytes(), 1024),
        ring: k.shared(stages.ring.bytes(), 8),
        notes: k.shared(stages.ring.stages * NOTE_BYTES, 16),
    };
    let thread = k.thread();
    // The same in all lanes, and the shuffle lets `ptxas` know.
    let warp = k.shr_u(thread, 5u32);
    let warp = k.shuffle_from(warp, 0u32);
    let first = k.eq(thread, 0u32);
    k.if_then(first, |k| {
        shared.ring(k, stages).init(k, producer::FILLS, consumer::READS);
        k.fence_mbarriers();
    });
    k.barrier();

    let (few, many) = registers(spec.kv);
    let produces = k.lt_u(warp, WARPGROUP / 32);
    k.if_else(
        produces,
        |k| {
            k.comment("producer");
            k.shrink_registers(few);
            let tiles = Tiles::new(k, &problem, &own);
            producer::produce(k, spec, &problem, &own, (q_map, k_map), &shared, &tiles, warp);
        },
        |k| {
            k.comment("consumer");
            k.grow_registers(many);
            consumer::consume(k, spec, &problem, &own, &shared, warp);
        },
    );
}
