//! The factors of a step: copies into a stage, and products from there.
//!
//! A stage holds 32 rows by 64 inner elements of the weights for each warp, which copies them itself, 128 bytes of four rows at
//! a time, and then the rows of `x`.

use super::{
    DEPTH, LinearSpec, Problem, STRIP, THREADS,
    line::{Piece, Place},
    sums::Sums,
};
use crate::{
    isa::{B32, Builder, Cache, R32, R64, RP, SharedRegion},
    kernels::model::chunk::ELEMENTS,
    tile::{
        fragment::rows_first,
        layout::{CHUNK, TileLayout},
    },
};

/// The weights of a warp's step.
const WEIGHTS: TileLayout = TileLayout::new(STRIP, DEPTH);
/// Bytes of a step's weights.
const WEIGHT_BYTES: u32 = THREADS / 32 * WEIGHTS.bytes();
/// Rows of the weights of which a warp copies all chunks at once.
const COPIED_ROWS: u32 = 32 / (DEPTH / ELEMENTS);

/// The rows of `x` of a step.
const fn x_tile(spec: &LinearSpec) -> TileLayout {
    TileLayout::new(spec.rows, spec.depth())
}

/// Bytes of a stage.
pub(super) const fn stage_bytes(spec: &LinearSpec) -> u32 {
    WEIGHT_BYTES + x_tile(spec).bytes()
}

/// What is copied of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    Weights,
    Both,
}

/// What a thread knows of the factors.
pub(super) struct Factors {
    spec: LinearSpec,
    problem: Problem,
    stages: R32,
    copied: Copied,
    /// Of the entered tile: first output of the warp's strip, and addresses of this lane's first chunk of the first output's row
    /// of the weights and, if there are gates, of what it gates.
    first_output: R32,
    sources: Vec<R64>,
    /// Where in a stage this lane begins to read the weights and `x`.
    weights: R32,
    x: R32,
}

/// What a thread copies of a step, one chunk after the other.
#[derive(Clone, Copy)]
struct Copied {
    strip: R32,
    /// Row of the strip, first inner element of the step, and place in a stage.
    row: R32,
    element: R32,
    target: R32,
    /// Row of `x`, first inner element of the step, place in a stage, and address.
    x_row: R32,
    x_element: R32,
    x_target: R32,
    x: R64,
}

/// Chunks of a row of `x`, each copied by a thread.
fn x_chunks(spec: &LinearSpec) -> u32 {
    spec.depth() / ELEMENTS
}

impl Factors {
    pub(super) fn new(
        k: &mut Builder,
        spec: &LinearSpec,
        problem: &Problem,
        stages: SharedRegion,
        piece: Piece,
    ) -> Factors {
        let (warp, lane) = (warp(k), k.lane());
        let own = k.mul(warp, WEIGHTS.bytes());
        let (row, chunk) = rows_first(k, lane);
        let weights = {
            let place = WEIGHTS.lane_offset(k, row, chunk);
            k.add(own, place)
        };
        let x = {
            let (row, chunk) = (k.and(lane, 7u32), k.shr_u(lane, 3u32));
            let place = x_tile(spec).lane_offset(k, row, chunk);
            let group = k.shr_u(warp, spec.strips().ilog2());
            k.mad(group, 2 * DEPTH, place)
        };
        let copied = Copied::new(k, spec, problem, own);
        let sources = (0..if spec.gated { 2 } else { 1 }).map(|_| k.fresh()).collect();
        let (first_output, stages) = (k.fresh(), k.shared_address(stages));
        let factors = Factors { spec: *spec, problem: *problem, stages, copied, first_output, sources, weights, x };
        factors.enter(k, piece.first_tile());
        factors
    }

    /// Finds the warp's strip of a tile.
    pub(super) fn enter(&self, k: &mut Builder, tile: R32) {
        let Problem { weights, weights_row, outputs, .. } = self.problem;
        let strip = k.mad(tile, self.spec.strips(), self.copied.strip);
        let first = k.mul(strip, self.spec.strip_outputs());
        k.set(self.first_output, first);
        let row = k.add(first, self.copied.row);
        let base = k.mad_wide(self.copied.element, 2u32, weights);
        for (i, &source) in self.sources.iter().enumerate() {
            let row = if i == 0 { row } else { k.add(row, outputs) };
            let row = k.widen_u(row);
            let found = k.mad(row, weights_row, base);
            k.set(source, found);
        }
    }

    /// Copies the factors of a step of the entered tile into a stage. What lies behind the last output, the last row or the last
    /// inner element becomes zeros and is not read.
    pub(super) fn copy(&self, k: &mut Builder, step: R32, stage: R32, what: Copies) {
        let first = k.mul(step, self.spec.depth());
        let along = k.mul_wide(first, 2u32);
        let place = k.add(self.stages, stage);
        self.copy_weights(k, first, along, place);
        if what == Copies::Both {
            self.copy_x(k, first, along, place);
        }
    }

    /// Asks for the weights of `steps` steps of a tile in the L2 cache: each lane of the first group of warps for a row.
    pub(super) fn prefetch(&self, k: &mut Builder, place: Place, steps: R32) {
        let Problem { weights, weights_row, outputs, inputs, .. } = self.problem;
        let (warp, lane) = (warp(k), k.lane());
        let strip = k.mad(place.tile, self.spec.strips(), self.copied.strip);
        let first = k.mul(strip, self.spec.strip_outputs());
        let (output, row) = if self.spec.gated {
            // Octets of gates and of what they gate in turn.
            let (octet, within) = split(k, lane, 8);
            let (pair, up) = split(k, octet, 2);
            let within = k.mad(pair, 8u32, within);
            let output = k.add(first, within);
            (output, k.mad(up, outputs, output))
        } else {
            let output = k.add(first, lane);
            (output, output)
        };
        let element = k.mul(place.step, self.spec.depth());
        let end = k.mad(steps, self.spec.depth(), element);
        let end = k.min_u(end, inputs);
        let elements = k.sub(end, element);
        let bytes = k.mul(elements, 2u32);
        let [wanted, first_group] = [k.lt_u(output, outputs), k.lt_u(warp, self.spec.strips())];
        let asks = k.and_p(wanted, first_group);
        let row = k.widen_u(row);
        let address = k.mad(row, weights_row, weights);
        let address = k.mad_wide(element, 2u32, address);
        k.when(asks, |k| k.prefetch(address, bytes));
    }

    /// Brings `x` of a piece's first steps into as many stages by ordinary loads, all under way at once: copies would come in
    /// turn, behind the weights of all stages.
    pub(super) fn load_x(&self, k: &mut Builder, piece: Piece, tile_steps: R32, stages: u32) {
        k.comment("x of the first steps");
        let place = Place::at(k, piece);
        let mut loaded = Vec::new();
        for stage in 0..stages {
            let first = k.mul(place.step, self.spec.depth());
            let along = k.mul_wide(first, 2u32);
            let exists = k.gt_u(piece.count, stage);
            let rows = k.select(exists, self.problem.rows, 0u32);
            self.x_chunks(k, (first, along), rows, |k, pass, row, source, exists| {
                let words = [(); 4].map(|()| k.mov::<B32>(0u32));
                k.when(exists, |k| k.load_vector_into(words, source, 0, Cache::Default));
                let offset = stage * stage_bytes(&self.spec) + WEIGHT_BYTES + pass * x_tile(&self.spec).row_bytes;
                loaded.push((row, offset, words));
            });
            let next_tile = place.advance(k, tile_steps);
            k.when(next_tile, |k| k.set(place.step, 0u32));
        }
        let target = k.add(self.stages, self.copied.x_target);
        for (row, offset, words) in loaded {
            let inside = k.lt_u(row, self.spec.rows);
            k.when(inside, |k| k.store_vector(target, i64::from(offset), words));
        }
    }

    fn copy_weights(&self, k: &mut Builder, first: R32, along: R64, place: R32) {
        k.comment("weights");
        let Problem { weights_row, outputs, inputs, .. } = self.problem;
        let target = k.add(place, self.copied.target);
        // Four rows further down the swizzle changes bit 2 of the chunk.
        let targets = [target, k.xor(target, 4 * CHUNK)];
        let element = k.add(first, self.copied.element);
        let exists = k.lt_u(element, inputs);
        let limit = k.select(exists, outputs, 0u32);
        let stride = k.mul(weights_row, u64::from(COPIED_ROWS));
        let mut sources: Vec<R64> = self.sources.iter().map(|&source| k.add(source, along)).collect();
        // Octets of rows: neighbouring outputs, or gates and what they gate in turn.
        for octet in 0..STRIP / 8 {
            let outputs_before = octet / sources.len() as u32 * 8;
            let source = octet as usize % sources.len();
            let output = k.add(self.first_output, outputs_before);
            let exists = k.lt_u(output, limit);
            let bytes = k.select(exists, CHUNK, 0u32);
            for (half, &target) in targets.iter().enumerate() {
                let row = octet * 8 + half as u32 * COPIED_ROWS;
                let offset = i64::from(row * WEIGHTS.row_bytes);
                k.copy_async_at((target, offset), (sources[source], 0), bytes);
                sources[source] = k.add(sources[source], stride);
            }
        }
    }

    fn copy_x(&self, k: &mut Builder, first: R32, along: R64, place: R32) {
        k.comment("x");
        let target = k.add(place, self.copied.x_target);
        let pass_rows = self.x_pass_rows();
        self.x_chunks(k, (first, along), self.problem.rows, |k, pass, row, source, exists| {
            let bytes = k.select(exists, CHUNK, 0u32);
            let to = (target, i64::from(WEIGHT_BYTES + pass * x_tile(&self.spec).row_bytes));
            if pass + pass_rows <= self.spec.rows {
                k.copy_async_at(to, (source, 0), bytes);
            } else {
                let inside = k.lt_u(row, self.spec.rows);
                k.when(inside, |k| k.copy_async_at(to, (source, 0), bytes));
            }
        });
    }

    /// Rows of `x` of which all threads together have the chunks of a step.
    fn x_pass_rows(&self) -> u32 {
        THREADS / x_chunks(&self.spec)
    }

    /// This thread's chunks of `x` of a step, pass by pass over the rows: `each` has the pass's first row and the thread's, the
    /// chunk's address, and whether it is one of the first `rows` rows.
    fn x_chunks(
        &self,
        k: &mut Builder,
        (first, along): (R32, R64),
        rows: R32,
        mut each: impl FnMut(&mut Builder, u32, R32, R64, RP),
    ) {
        let Problem { x_row, inputs, .. } = self.problem;
        let element = k.add(first, self.copied.x_element);
        let exists = k.lt_u(element, inputs);
        let limit = k.select(exists, rows, 0u32);
        let mut source = k.add(self.copied.x, along);
        let pass_rows = self.x_pass_rows();
        let stride = k.mul(x_row, u64::from(pass_rows));
        for pass in (0..self.spec.rows).step_by(pass_rows as usize) {
            if pass > 0 {
                source = k.add(source, stride);
            }
            let row = k.add(self.copied.x_row, pass);
            let exists = k.lt_u(row, limit);
            each(k, pass, row, source, exists);
        }
    }

    /// Adds the products of a stage's factors to the sums.
    pub(super) fn multiply(&self, k: &mut Builder, stage: R32, sums: &Sums) {
        k.comment("products");
        let place = k.add(self.stages, stage);
        let (weights, x) = (k.add(place, self.weights), k.add(place, self.x));
        let weights = WEIGHTS.cursor(k, weights, 2);
        let x = x_tile(&self.spec).cursor(k, x, 4);
        // 32 inner elements of eight rows of `x` come at once, those of 16 rows of the weights in two halves.
        for chunk in (0..DEPTH / ELEMENTS).step_by(4) {
            let left = [chunk, chunk + 2].map(|chunk| {
                [0, 16].map(|rows| {
                    let (at, offset) = weights.at(rows, chunk);
                    k.load_matrices(at, offset, false)
                })
            });
            for column in 0..self.spec.rows / 8 {
                let (at, offset) = x.at(8 * column, chunk);
                let [a, b, c, d] = k.load_matrices(at, offset + i64::from(WEIGHT_BYTES), false);
                for (left, right) in left.iter().zip([[a, b], [c, d]]) {
                    for (tile, &left) in left.iter().enumerate() {
                        k.mma_16x8x16(self.spec.dtype, sums.tile(tile as u32, column), left, right);
                    }
                }
            }
        }
    }
}

impl Copied {
    /// `own` is where in a stage the warp's weights begin.
    fn new(k: &mut Builder, spec: &LinearSpec, problem: &Problem, own: R32) -> Copied {
        let (thread, lane, warp) = (k.thread(), k.lane(), warp(k));
        let strip = k.and(warp, spec.strips() - 1);
        let group = k.shr_u(warp, spec.strips().ilog2());
        let (row, chunk) = split(k, lane, DEPTH / ELEMENTS);
        let place = WEIGHTS.lane_offset(k, row, chunk);
        let target = k.add(own, place);
        let element = k.mul(chunk, ELEMENTS);
        let element = k.mad(group, DEPTH, element);

        let (x_row, chunk) = split(k, thread, x_chunks(spec));
        let x_target = x_tile(spec).lane_offset(k, x_row, chunk);
        let x_element = k.mul(chunk, ELEMENTS);
        let wide = k.widen_u(x_row);
        let x = k.mad(wide, problem.x_row, problem.x);
        let x = k.mad_wide(chunk, CHUNK, x);
        Copied { strip, row, element, target, x_row, x_element, x_target, x }
    }
}

fn warp(k: &mut Builder) -> R32 {
    let thread = k.thread();
    k.shr_u(thread, 5u32)
}

/// Quotient and remainder by a power of two.
fn split(k: &mut Builder, a: R32, size: u32) -> (R32, R32) {
    (k.shr_u(a, size.ilog2()), k.and(a, size - 1))
}
