//! The walk for sm_80: `cp.async` and `mma`, queries in registers, keys of all parts of a block side by side.

use super::{
    EstimateSpec,
    walk::Walk,
    window::{Keys, Queries, STEP, Window},
};
use crate::{
    isa::{Arch, Builder, MmaType, R32, RF},
    kernels::{
        index::workspace::{EstimateParts, WINDOW},
        kv::PageTable,
    },
    tile::{
        copy::{RowSource, TileCopy},
        fragment::{Accumulator, chunks_first, rows_first},
        layout::{TileCursor, TileLayout},
        pipeline::CopyRing,
    },
};

const PARTS: EstimateParts = EstimateParts::of(Arch::Sm80);
pub(super) const THREADS: u32 = 32 * PARTS.warps;
/// Keys that are brought in together, of all parts.
const STAGE: u32 = 128;
/// Stages: one is read while two come in.
const STAGES: u32 = 3;

/// What the threads of a block share to bring in keys, and the queries of a warp.
pub(super) struct Copies<'a> {
    window: &'a Window,
    dtype: MmaType,
    head_dim: u32,
    layout: TileLayout,
    copy: TileCopy,
    keys: RowSource,
    table: Option<PageTable>,
    ring: CopyRing,
    /// First stage, and where in it this warp's matrices are as its lanes load them.
    stages: R32,
    matrices: TileCursor,
    /// Right factors: of 16 queries, 16 elements.
    queries: Vec<Vec<[R32; 4]>>,
}

/// The body of a kernel.
pub(super) fn estimate(k: &mut Builder, spec: &EstimateSpec) {
    let thread = k.thread();
    let warp = k.shr_u(thread, 5u32);
    let (window, queries, keys) = Window::new(k, spec, warp);
    let copies = Copies::new(k, spec, &window, &queries, &keys);
    spec.write(k, &window, &copies);
}

impl<'a> Copies<'a> {
    fn new(k: &mut Builder, spec: &EstimateSpec, window: &'a Window, queries: &Queries, keys: &Keys) -> Copies<'a> {
        k.comment("queries, the last one first");
        let rows = keys.rows(k, window);
        let (thread, lane) = (k.thread(), window.lane);
        let layout = TileLayout::new(STAGE, spec.head_dim);
        let own_layout = TileLayout::new(WINDOW, spec.head_dim);
        debug_assert!(spec.heads * own_layout.bytes() <= STAGES * layout.bytes());
        let ring = CopyRing::new(k, layout.bytes(), STAGES);
        let stages = k.shared_address(ring.region());
        let own_queries = k.mad(window.own_head, own_layout.bytes(), stages);
        let threads = 32 * window.parts;
        let own_thread = k.and(thread, threads - 1);
        let copy = TileCopy::new(k, own_layout, threads, own_thread);
        queries.copy(k, &copy, own_queries);
        k.barrier();
        let (row, chunk) = chunks_first(k, lane);
        let offset = own_layout.lane_offset(k, row, chunk);
        let matrices = k.add(own_queries, offset);
        let matrices = own_layout.cursor(k, matrices, 2);
        let sixteen = |k: &mut Builder, first: u32| {
            let steps = (0..spec.head_dim / 16).map(|step| {
                let (at, offset) = matrices.at(first, 2 * step);
                k.load_matrices(at, offset, false)
            });
            steps.collect()
        };
        let queries = (0..WINDOW).step_by(16).map(|first| sixteen(k, first)).collect();
        k.barrier();

        let copy = TileCopy::new(k, layout, THREADS, thread);
        let (row, chunk) = rows_first(k, lane);
        let offset = layout.lane_offset(k, row, chunk);
        let offset = k.mad(window.own_part, STAGE / window.parts * layout.row_bytes, offset);
        let matrices = k.add(stages, offset);
        Copies {
            window,
            dtype: spec.dtype,
            head_dim: spec.head_dim,
            layout,
            keys: copy.own_chunk(k, rows),
            table: keys.table,
            copy,
            ring,
            stages,
            matrices: layout.cursor(k, matrices, 2),
            queries,
        }
    }

    /// Products of 16 keys and all queries.
    fn products(&self, k: &mut Builder, matrices: &TileCursor) -> Accumulator {
        let products = Accumulator::new(k, 1, WINDOW);
        products.clear(k);
        for step in 0..self.head_dim / 16 {
            let (at, offset) = matrices.at(0, 2 * step);
            let keys = k.load_matrices(at, offset, false);
            for (queries, first) in self.queries.iter().zip((0..).step_by(16)) {
                products.multiply(k, self.dtype, &[keys], queries[step as usize], first);
            }
        }
        products
    }
}

impl Walk for Copies<'_> {
    fn walk(&self, k: &mut Builder, before: u32, turn: impl Fn(&mut Builder, R32, &[Vec<RF>])) {
        let window = self.window;
        let own_keys = STAGE / window.parts;
        let all = k.add(window.part_keys, before);
        let turns = k.shr_u(all, own_keys.ilog2());
        let block_first = k.sub(window.block_first, before);
        let own_row = self.copy.row(k);
        let target = self.copy.target(k, self.stages);
        // The part and the key in it of this thread's rows.
        let row_part = k.shr_u(own_row, own_keys.ilog2());
        let row_part = k.mul(row_part, window.part_keys);
        let own_row = k.and(own_row, own_keys - 1);
        let own_row = k.add(own_row, row_part);
        let own_row = k.add(own_row, block_first);
        let fetch = |k: &mut Builder, turn: R32, offset: R32| {
            let target = k.add(target, offset);
            let first = k.mad(turn, own_keys, own_row);
            let keys = self.table.map_or(self.keys, |table| table.again(k, self.keys));
            self.copy.copy_rows(k, target, keys, window.kv_len, |k, below| {
                let row = k.add(first, below % own_keys);
                k.mad(window.part_keys, below / own_keys, row)
            });
        };
        let first = k.sub(window.first, before);
        // A part has at least as many keys as all stages hold of it.
        const { assert!(PARTS.least_keys >= STAGES * STAGE / 2) };
        self.ring.run(k, turns, fetch, |k, now, stage, copies| {
            copies(k);
            let stage_first = k.mad(now, own_keys, first);
            let step = |k: &mut Builder, key: R32, offset: R32| {
                let there = window.has(k, key);
                k.if_then(there, |k| {
                    let matrices = self.matrices.moved(k, offset);
                    let products = self.products(k, &matrices).rows;
                    turn(k, key, &products);
                });
            };
            if own_keys == STEP {
                return step(k, stage_first, stage);
            }
            k.for_loop(0u32, own_keys / STEP, 1, |k, own| {
                let key = k.mad(own, STEP, stage_first);
                let offset = k.mad(own, STEP * self.layout.row_bytes, stage);
                step(k, key, offset);
            });
        });
    }

    fn meet(&self, k: &mut Builder) {
        k.barrier();
    }

    fn scratch(&self) -> R32 {
        self.stages
    }
}
