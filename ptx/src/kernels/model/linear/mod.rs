//! Matrix products of a few rows, bound by reading the weights.
//!
//! Eight warps compute a tile of outputs at a time, with the weights as left factors: 16 of their rows by 16 inner elements,
//! against 16 inner elements by eight rows of `x`. A warp has 32 rows of the weights and 64 inner elements a step, a tile of
//! fewer than 256 rows more than one group of warps side by side along the inner elements, so that a step is always 32 KB of
//! weights. Few tiles need less of `x`, many tiles fewer splits: which is better depends on the matrix, so that the tile is
//! part of the spec.
//!
//! Weights come through shared memory, which costs little at this rate, in as many stages as there is room for ([`factors`]).
//! Straight to registers they would come 16 bytes of a row at once, but a left factor takes registers of two rows in turn:
//! `ptxas` then moves each of them, at several times the instructions of the products.
//!
//! All steps of all tiles stand in one line, of which every block takes an equal piece (Osama et al., "Stream-K", 2023), so
//! that no multiprocessor waits for another; the copies of a piece run on from tile to tile ([`line`]). Tiles that are cut
//! leave partial sums, and whichever warp comes last adds them in the order of their inner elements ([`sums`]). Where the cuts
//! are follows from the shape of the matrix and the number of blocks in the spec, and from nothing else.

mod factors;
mod line;
mod sums;

use crate::{
    isa::{Arch, B32, Builder, Launch, MmaType, R32, R64},
    kernels::{
        KernelSpec,
        error::{SpecError, SpecErrors},
        meta::{Kernel, ParameterKind},
    },
    tile::{overlap, pipeline::CopyRing},
};
use factors::{Copies, Factors};
use line::{Line, Place};
use sums::Sums;

const THREADS: u32 = 256;
/// Rows of the weights that a warp multiplies with.
const STRIP: u32 = 32;
/// Inner elements of a step that a warp multiplies.
const DEPTH: u32 = 64;
/// Most stages of the ring. One is read while the others are on their way: 32 KB of weights each, and a multiprocessor needs
/// some 32 KB under way to keep memory busy.
const STAGES: u32 = 4;
/// Steps behind those in the ring whose weights a kernel that waits brings to the L2 cache: of 132 blocks 17 MB, of which small
/// matrices have no more.
const PREFETCHED: u32 = 4;

/// `out = x · weightsᵀ` for up to 64 rows, or with `gated` `out = silu(x · gateᵀ) · (x · upᵀ)` (SwiGLU: Shazeer, 2020), where
/// the weights are those of the gate and below them those of `up`.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `x` | pointer | rows of `inputs` elements |
/// | `weights` | constant | rows of `inputs` elements: `outputs` of them, with `gated` twice as many |
/// | `out` | pointer | rows of `outputs` elements; shares no memory with `x` |
/// | `x_row`, `weights_row`, `out_row` | u64 | bytes from one row to the next; multiples of 16, of `out_row` 4 |
/// | `rows` | u32 | rows of `x` and `out`, at most those of the spec |
/// | `outputs`, `inputs` | u32 | multiples of 8, at least 8 |
/// | `parts` | pointer | [`LinearSpec::parts_bytes`] for partial sums, of any contents |
/// | `tickets` | pointer | [`LinearSpec::tickets`] u32 words, zero; the kernel leaves them so |
///
/// On `sm_90a` the kernel is [programmatic](crate::KernelMeta::programmatic): it fetches the first weights, as many as its ring
/// holds, while the launches in front are at work, and needs `x` only when they have ended.
///
/// Launches on several streams need `parts` and `tickets` of their own.
///
/// Sums are single precision in an order that depends on `outputs`, `inputs` and the spec's `tile`, `blocks` and `gated` only:
/// a row has the same bits alone, among others and under another bound of the rows. With `gated` the two products are not
/// rounded before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearSpec {
    /// Most rows: a multiple of 8 from 8 to 64.
    pub rows: u32,
    /// Rows of the weights that a block multiplies with at a time: 64, 128 or 256.
    pub tile: u32,
    /// Blocks that share the work, from 1 to 1024: one for each multiprocessor is best.
    pub blocks: u32,
    /// Whether the product is a gate and what it gates.
    pub gated: bool,
    /// Element type.
    pub dtype: MmaType,
    /// Architecture of the text.
    pub arch: Arch,
}

impl LinearSpec {
    /// Blocks to launch.
    pub fn grid(&self) -> [u32; 3] {
        [self.blocks, 1, 1]
    }

    /// Bytes of `parts`, whatever the matrix.
    pub fn parts_bytes(&self) -> u64 {
        // Of a block's tiles, the first and the last may be cut.
        2 * u64::from(self.blocks * self.part_bytes())
    }

    /// Words of `tickets` for a matrix of this many outputs.
    pub fn tickets(&self, outputs: u32) -> u32 {
        outputs.div_ceil(self.tile_outputs()) * self.strips()
    }

    /// Outputs of a tile.
    fn tile_outputs(&self) -> u32 {
        if self.gated { self.tile / 2 } else { self.tile }
    }

    /// Outputs of a strip.
    fn strip_outputs(&self) -> u32 {
        self.tile_outputs() / self.strips()
    }

    /// Strips of a tile, one a warp.
    const fn strips(&self) -> u32 {
        self.tile / STRIP
    }

    /// Groups of warps that each multiply inner elements of their own.
    const fn groups(&self) -> u32 {
        THREADS / 32 / self.strips()
    }

    /// Inner elements of a step.
    const fn depth(&self) -> u32 {
        DEPTH * self.groups()
    }

    /// Bytes of the sums of a strip.
    fn strip_bytes(&self) -> u32 {
        STRIP * self.rows * 4
    }

    /// Bytes of the sums of a tile.
    fn part_bytes(&self) -> u32 {
        self.strips() * self.strip_bytes()
    }

    /// Stages of the ring: as many as there is room for, two at least.
    fn stages(&self) -> u32 {
        let room = self.arch.shared_limit() - sums::scratch_bytes(self);
        (room / factors::stage_bytes(self)).min(STAGES)
    }
}

impl KernelSpec for LinearSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if !(8..=64).contains(&self.rows) || !self.rows.is_multiple_of(8) {
            let message = format!("{} rows at most: must be a multiple of 8 from 8 to 64", self.rows);
            errors.push(SpecError::new("rows", message));
        }
        if ![64, 128, 256].contains(&self.tile) {
            errors.push(SpecError::new("tile", format!("{} rows of the weights: must be 64, 128 or 256", self.tile)));
        }
        if !(1..=1024).contains(&self.blocks) {
            errors.push(SpecError::new("blocks", format!("{} blocks: must be from 1 to 1024", self.blocks)));
        }
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let Self { rows, tile, blocks, dtype, .. } = *self;
        let gated = if self.gated { "_gated" } else { "" };
        let entry = format!("linear{gated}_r{rows}_t{tile}_b{blocks}_{}_{}", dtype.suffix(), self.arch.name());
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let problem = Problem::declare(&mut k);
        overlap::start(&mut k);
        let ring = CopyRing::new(&mut k, factors::stage_bytes(self), self.stages());
        let line = Line::new(&mut k, self, &problem);
        let begin = line.own(&mut k);
        let factors = Factors::new(&mut k, self, &problem, ring.region(), begin);
        let sums = Sums::new(&mut k, self, &problem, line);
        sums.clear(&mut k);

        let (copied, read) = (Place::at(&mut k, begin), Place::at(&mut k, begin));
        let copy = |what: Copies| {
            let (factors, line) = (&factors, &line);
            move |k: &mut Builder, step: R32, stage: R32| {
                // The ring fills its stages whether or not there are as many steps.
                let exists = k.lt_u(step, begin.count);
                k.if_then(exists, |k| {
                    factors.copy(k, copied.step, stage, what);
                    let next_tile = copied.advance(k, line.steps);
                    k.if_then(next_tile, |k| {
                        copied.enter_next(k);
                        factors.enter(k, copied.tile);
                    });
                });
            }
        };
        let filled = if overlap::overlaps(&k) {
            let filled = ring.fill_all(&mut k, copy(Copies::Weights));
            k.comment("the next weights to the L2 cache");
            let next = copied.copied(&mut k);
            let [in_ring, asked] = [0, PREFETCHED].map(|more| k.min_u(begin.count, ring.stages() + more));
            let left = k.sub(asked, in_ring);
            k.while_loop(
                |k| k.gt_u(left, 0u32),
                |k| {
                    let rest = k.sub(line.steps, next.step);
                    let run = k.min_u(left, rest);
                    factors.prefetch(k, next, run);
                    let further = k.sub(left, run);
                    k.set(left, further);
                    next.enter_next(k);
                },
            );
            overlap::wait(&mut k);
            factors.load_x(&mut k, begin, line.steps, ring.stages());
            filled
        } else {
            ring.fill(&mut k, copy(Copies::Both))
        };
        ring.take(&mut k, filled, begin.count, copy(Copies::Both), |k, step, stage, copy_next| {
            copy_next(k);
            factors.multiply(k, stage, &sums);
            let next = k.add(step, 1u32);
            let last = k.eq(next, begin.count);
            let next_tile = read.advance(k, line.steps);
            let done = k.or_p(next_tile, last);
            k.if_then(done, |k| {
                sums.finish(k, read);
                sums.clear(k);
                read.enter_next(k);
            });
        });
        k.ret();
        k.finish()
    }
}

/// The kernel's parameters.
#[derive(Clone, Copy)]
struct Problem {
    x: R64,
    weights: R64,
    out: R64,
    x_row: R64,
    weights_row: R64,
    out_row: R64,
    rows: R32,
    outputs: R32,
    inputs: R32,
    parts: R64,
    tickets: R64,
}

impl Problem {
    fn declare(k: &mut Builder) -> Problem {
        let x = k.parameter("x", ParameterKind::Pointer);
        let weights = k.parameter("weights", ParameterKind::Constant);
        let out = k.parameter("out", ParameterKind::Pointer);
        let [x_row, weights_row, out_row] =
            ["x_row", "weights_row", "out_row"].map(|name| k.parameter(name, ParameterKind::U64));
        let [rows, outputs, inputs] =
            ["rows", "outputs", "inputs"].map(|name| k.parameter::<B32>(name, ParameterKind::U32));
        let [parts, tickets] = ["parts", "tickets"].map(|name| k.parameter(name, ParameterKind::Pointer));
        Problem { x, weights, out, x_row, weights_row, out_row, rows, outputs, inputs, parts, tickets }
    }
}
