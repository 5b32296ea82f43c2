//! What becomes of a tile's sums: groups of warps add theirs up, and cut tiles their parts; then the output.

use super::{LinearSpec, Problem, STRIP, line::Line, line::Place};
use crate::{
    isa::{B32, Builder, Cache, F32, R32, R64, RF, RP, Reg, SharedRegion, Space},
    kernels::model::swiglu::silu,
};

/// Bytes of one register of every lane, four by four.
const VECTOR: u32 = 32 * 16;

/// Bytes of shared memory in which a group leaves its sums to the first one.
pub(super) fn scratch_bytes(spec: &LinearSpec) -> u32 {
    if spec.groups() > 1 { spec.part_bytes() } else { 0 }
}

/// The sums of a warp's strip: with g = lane / 4 and t = lane % 4, of each 16 rows of weights by eight rows of `x` the rows g
/// and g + 8 of the weights with rows 2t and 2t + 1 of `x`.
pub(super) struct Sums {
    spec: LinearSpec,
    problem: Problem,
    line: Line,
    /// By 16 rows of the weights, then by eight rows of `x`.
    tiles: Vec<[RF; 4]>,
    strip: R32,
    group: R32,
    lane: R32,
    /// [`scratch_bytes`], if there are any.
    scratch: Option<SharedRegion>,
}

impl Sums {
    pub(super) fn new(k: &mut Builder, spec: &LinearSpec, problem: &Problem, line: Line) -> Sums {
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let strip = k.and(warp, spec.strips() - 1);
        let group = k.shr_u(warp, spec.strips().ilog2());
        let tiles = (0..STRIP / 16 * (spec.rows / 8)).map(|_| k.fresh_array()).collect();
        let scratch = (spec.groups() > 1).then(|| k.shared(scratch_bytes(spec), 16));
        Sums { spec: *spec, problem: *problem, line, tiles, strip, group, lane, scratch }
    }

    /// The accumulators of 16 rows of the weights and eight of `x`.
    pub(super) fn tile(&self, tile: u32, column: u32) -> [RF; 4] {
        self.tiles[(tile * self.spec.rows / 8 + column) as usize]
    }

    /// Sets them to zero.
    pub(super) fn clear(&self, k: &mut Builder) {
        self.tiles.iter().flatten().for_each(|&sum| k.set(sum, 0.0));
    }

    /// Ends the tile at `place`, which has come to the first step that is not added.
    pub(super) fn finish(&self, k: &mut Builder, place: Place) {
        k.comment("a tile ends");
        let Some(scratch) = self.scratch else { return self.finish_group(k, place) };
        self.gather(k, scratch);
        let first = k.eq(self.group, 0u32);
        k.if_then(first, |k| self.finish_group(k, place));
    }

    /// Adds the sums of all groups in the first one, group by group. The next tile ends a step later at least, and with it
    /// comes a barrier: no one still reads then what others write.
    fn gather(&self, k: &mut Builder, scratch: SharedRegion) {
        let base = k.shared_address(scratch);
        let own = k.mad(self.strip, self.spec.strip_bytes(), base);
        let own = k.mad(self.lane, 16u32, own);
        let first = k.eq(self.group, 0u32);
        for group in 1..self.spec.groups() {
            if group > 1 {
                k.barrier();
            }
            let gives = k.eq(self.group, group);
            k.if_then(gives, |k| {
                for (i, &tile) in self.tiles.iter().enumerate() {
                    k.store_vector::<F32, _, 4>(own, offset(i), tile);
                }
            });
            k.barrier();
            k.if_then(first, |k| self.add_from(k, own));
        }
    }

    /// Writes the output, if this block has all steps of the tile, or the warp is the last one that has some of the strip's.
    fn finish_group(&self, k: &mut Builder, place: Place) {
        let added = k.sub(place.step, place.entered);
        let whole = k.eq(added, self.line.steps);
        let cut = k.not_p(whole);
        let unfinished = k.label();
        k.if_then(cut, |k| {
            let last = self.leave_part(k, place, added);
            k.branch_unless(last, unfinished);
            self.add_parts(k, place.tile);
        });
        self.write(k, place.tile);
        k.place(unfinished);
    }

    /// Stores the sums of `added` steps; whether all others have done so.
    fn leave_part(&self, k: &mut Builder, place: Place, added: R32) -> RP {
        k.comment("a part");
        let block = k.block_x();
        let begins = k.eq(place.entered, 0u32);
        let part = self.part(k, block, begins);
        for (i, &tile) in self.tiles.iter().enumerate() {
            k.store_vector::<F32, _, 4>(part, offset(i), tile);
        }
        k.fence_device();
        k.warp_barrier();
        let ticket = self.ticket(k, place.tile);
        let first = k.eq(self.lane, 0u32);
        let before = k.mov(0u32);
        k.if_then(first, |k| {
            let found = k.atomic_add(ticket, 0, added);
            k.set(before, found);
        });
        let before = k.shuffle_from(before, 0u32);
        let all = k.add(before, added);
        k.eq(all, self.line.steps)
    }

    /// Adds the parts of the strip in the order of their steps, and resets its ticket.
    fn add_parts(&self, k: &mut Builder, tile: R32) {
        k.comment("all parts");
        k.fence_device();
        k.warp_barrier();
        let ticket = self.ticket(k, tile);
        let first = k.eq(self.lane, 0u32);
        k.when(first, |k| k.store::<B32, _>(ticket, 0, 0u32));
        let start = k.mul(tile, self.line.steps);
        let end = k.add(start, self.line.steps);
        let block = self.line.block_at(k, start);
        let from = self.line.start(k, block);
        self.clear(k);
        k.while_loop(
            |k| k.lt_u(from, end),
            |k| {
                let begins = k.le_u(from, start);
                let part = self.part(k, block, begins);
                self.add_from(k, part);
                let next = k.add(block, 1u32);
                k.set(block, next);
                let next = self.line.start(k, block);
                k.set(from, next);
            },
        );
    }

    /// Adds what another lane like this has stored.
    fn add_from<S: Space>(&self, k: &mut Builder, place: Reg<S>) {
        let stored: Vec<[RF; 4]> =
            (0..self.tiles.len()).map(|i| k.load_vector(place, offset(i), Cache::Default)).collect();
        for (&sum, more) in self.tiles.iter().flatten().zip(stored.into_iter().flatten()) {
            let total = k.add_f(sum, more);
            k.set(sum, total);
        }
    }

    /// Address of the sums that this lane or one like it has left of a block's tile: of the one that the block has begun, or of
    /// the one that it has found begun.
    fn part(&self, k: &mut Builder, block: R32, begins: RP) -> R64 {
        let begun = k.select(begins, 1u32, 0u32);
        let part = k.mad(block, 2u32, begun);
        let at = k.mad_wide(part, self.spec.part_bytes(), self.problem.parts);
        let at = k.mad_wide(self.strip, self.spec.strip_bytes(), at);
        k.mad_wide(self.lane, 16u32, at)
    }

    fn ticket(&self, k: &mut Builder, tile: R32) -> R64 {
        let strip = k.mad(tile, self.spec.strips(), self.strip);
        k.mad_wide(strip, 4u32, self.problem.tickets)
    }

    /// Rounds the sums and writes them, two neighbouring outputs at a time: of these, lanes four apart have one each, for two
    /// rows, and exchange them.
    fn write(&self, k: &mut Builder, tile: R32) {
        k.comment("output");
        let Problem { out, out_row, rows, outputs, .. } = self.problem;
        let (octet_row, quad_lane) = (k.shr_u(self.lane, 2u32), k.and(self.lane, 3u32));
        let odd = k.and(octet_row, 1u32);
        let is_odd = k.ne(odd, 0u32);
        let even_row = k.sub(octet_row, odd);
        let row = k.mad(quad_lane, 2u32, odd);

        let strip = k.mad(tile, self.spec.strips(), self.strip);
        let first = k.mad(strip, self.spec.strip_outputs(), even_row);
        let address = {
            let row = k.widen_u(row);
            let start = k.mad(row, out_row, out);
            k.mad_wide(first, 2u32, start)
        };
        let step = k.mul(out_row, 8u64);
        let mut row_address = address;
        for column in 0..self.spec.rows / 8 {
            if column > 0 {
                row_address = k.add(row_address, step);
            }
            let row = k.add(row, column * 8);
            let exists = k.lt_u(row, rows);
            for (i, pair) in self.pairs(k, column).into_iter().enumerate() {
                let given = k.select(is_odd, pair[0], pair[1]);
                let taken = k.shuffle_xor(given, 4);
                let low = k.select(is_odd, taken, pair[0]);
                let high = k.select(is_odd, pair[1], taken);
                let packed = k.pack_halves(self.spec.dtype, low, high);
                let output = k.add(first, 8 * i as u32);
                let wanted = k.lt_u(output, outputs);
                let stores = k.and_p(exists, wanted);
                k.when(stores, |k| k.store(row_address, 16 * i as i64, packed));
            }
        }
    }

    /// The values of this lane's outputs, eight apart, each for two rows.
    fn pairs(&self, k: &mut Builder, column: u32) -> Vec<[RF; 2]> {
        let tiles = (0..STRIP / 16).map(|tile| self.tile(tile, column));
        if !self.spec.gated {
            return tiles.flat_map(|[a, b, c, d]| [[a, b], [c, d]]).collect();
        }
        let gated = tiles.map(|[a, b, c, d]| {
            [(a, c), (b, d)].map(|(gate, up)| {
                let silu = silu(k, gate);
                k.mul_f(silu, up)
            })
        });
        gated.collect()
    }
}

/// Where among the sums of a strip four registers of its lanes stand.
fn offset(tile: usize) -> i64 {
    i64::from(tile as u32 * VECTOR)
}
