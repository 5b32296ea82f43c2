//! The text for sm_90a: bulk tensor copies, `wgmma`, and one warp that fetches keys for all.
//!
//! A block has four consumer warpgroups and a producer, of whose warps one has something to do. Consumers of one head share its
//! parts out, a warp a part: a product's 64 rows are 16 keys of each of four parts, which boxes of 16 rows bring to their places,
//! and its columns are the queries. So a warp has the fragments that it has on sm_80, of keys that follow one another.
//!
//! ```text
//! producer   for each turn:  stage free? fetch 16 keys of every part
//! consumer   for each turn:  stage full? products; weights from them and sums of those
//! ```
//!
//! What does not count is masked, never read as zero: keys behind the last one may be anything, and come with the others.
//! A box lies in one page, whatever its size, and one of a page that does not exist is zeros.
//!
//! Cost of a turn of 64 keys and four heads of 128, in cycles of a multiprocessor: 1024 for products, which read 128 of 128
//! bytes a cycle from shared memory; 1024 of special functions; some 900 issue slots of each of the four parts in the second pass
//! and 700 in the first. Its keys are 16 KB. So a turn takes as long as its products if the four warps of a part are at
//! different places: one multiplies while the others have weights and sums to do.

mod consumer;
mod producer;

use super::{
    EstimateSpec,
    window::{STEP, Window},
};
use crate::{
    isa::{Arch, Builder, R32, SharedRegion},
    kernels::{
        index::workspace::{EstimateParts, WINDOW},
        meta::BoxShape,
    },
    tile::{
        layout::TileLayout,
        ring::{Ring, RingShape},
    },
};
use consumer::Consumer;

const PARTS: EstimateParts = EstimateParts::of(Arch::Sm90a);
/// Threads of a warpgroup, and of all consumers.
const WARPGROUP: u32 = 128;
const CONSUMERS: u32 = 32 * PARTS.warps;
pub(super) const THREADS: u32 = CONSUMERS + WARPGROUP;
/// Rows of a product: those of four warps.
const ROWS: u32 = 64;
/// Registers for a thread of the producer's warpgroup, and of a consumer.
const REGISTERS: (u32, u32) = (32, 112);
/// Stages of the ring, as far as shared memory has room.
const STAGES: u32 = 8;
/// Shared memory beside queries and stages: barriers, and of each query what is subtracted.
const SMALL_BYTES: u32 = 2048;

/// The queries of a head, and the keys of a turn.
#[derive(Clone, Copy)]
struct Tiles {
    queries: TileLayout,
    keys: TileLayout,
    ring: RingShape,
}

impl Tiles {
    fn of(spec: &EstimateSpec) -> Tiles {
        let queries = TileLayout::in_slabs(WINDOW, spec.head_dim);
        let keys = TileLayout::in_slabs(STEP * PARTS.of_block(spec.heads), spec.head_dim);
        let room = Arch::Sm90a.shared_limit() - SMALL_BYTES - spec.heads * queries.bytes();
        let ring = RingShape { stages: (room / keys.bytes()).min(STAGES), passing: false };
        Tiles { queries, keys, ring }
    }
}

/// Shared memory of a block.
struct Shared {
    tiles: Tiles,
    /// Of all heads.
    queries: SharedRegion,
    /// The stages' keys, one after the other.
    keys: SharedRegion,
    ring: SharedRegion,
}

impl Shared {
    fn new(k: &mut Builder, spec: &EstimateSpec) -> Shared {
        let tiles = Tiles::of(spec);
        Shared {
            tiles,
            queries: k.shared(spec.heads * tiles.queries.bytes(), 1024),
            keys: k.shared(tiles.ring.stages * tiles.keys.bytes(), 1024),
            ring: k.shared(tiles.ring.bytes(), 8),
        }
    }

    fn ring(&self, k: &mut Builder) -> Ring {
        Ring::in_region(k, self.tiles.ring, self.ring)
    }
}

/// Turns of a block whose warps begin `before` keys before their parts: the first part has as many keys as any.
fn turns(k: &mut Builder, window: &Window, before: u32) -> R32 {
    let part_end = k.add(window.block_first, window.part_keys);
    let end = k.min_u(part_end, window.kv_len);
    let keys = k.sub(end, window.block_first);
    let keys = k.add(keys, before + STEP - 1);
    k.shr_u(keys, STEP.ilog2())
}

/// The body of a kernel.
pub(super) fn estimate(k: &mut Builder, spec: &EstimateSpec) {
    let shared = Shared::new(k, spec);
    let columns = shared.tiles.keys.slab_columns();
    let map = k.tensor_map("k_map", BoxShape { columns, rows: STEP, stride: 1 });
    let thread = k.thread();
    // The same in all lanes, and the shuffle lets `ptxas` know.
    let warp = k.shr_u(thread, 5u32);
    let warp = k.shuffle_from(warp, 0u32);
    // The producer counts as the first warp, which has the first head of the set, whose keys all have.
    let place = k.and(warp, PARTS.warps - 1);
    let (window, queries, keys) = Window::new(k, spec, place);

    let first = k.eq(thread, 0u32);
    k.if_then(first, |k| {
        shared.ring(k).init(k, producer::FILLS, consumer::READS);
        k.fence_mbarriers();
    });
    k.barrier();

    let produces = k.ge_u(warp, PARTS.warps);
    k.if_else(
        produces,
        |k| {
            k.comment("producer");
            k.shrink_registers(REGISTERS.0);
            let fetches = k.eq(warp, PARTS.warps);
            k.if_then(fetches, |k| producer::produce(k, &window, &keys, map, &shared, spec.pass.before()));
        },
        |k| {
            k.comment("consumer");
            k.grow_registers(REGISTERS.1);
            let consumer = Consumer::new(k, spec, &window, &queries, &shared, warp);
            spec.write(k, &window, &consumer);
        },
    );
}
