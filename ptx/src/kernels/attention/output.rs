//! What a block leaves behind: normalised rows and their LSE.

use super::problem::Target;
use crate::{
    isa::{B32, Builder, Cache, MmaType, R32},
    tile::{
        fragment::Accumulator,
        layout::{CHUNK, TileLayout},
        softmax::RowEnd,
    },
};

/// Writes the rows of one warp through its own part of a tile in shared memory, so that neighbouring lanes store
/// neighbouring chunks. Rows beyond the queries are left alone.
pub(super) struct Output {
    pub(super) target: Target,
    pub(super) kind: MmaType,
    /// Layout of the tile, and the address of the warp's first row in it.
    pub(super) layout: TileLayout,
    pub(super) tile: R32,
    /// The warp's first row in the block's tile, a multiple of 8, and how many it has.
    pub(super) first_row: R32,
    pub(super) rows: u32,
    pub(super) lane: R32,
}

impl Output {
    /// Divides by the sums, rounds and writes.
    pub(super) fn write(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd]) {
        let inverse: Vec<_> = ends.iter().map(|end| end.inverse_sum).collect();
        out.scale_rows(k, &inverse);
        let row = k.shr_u(self.lane, 2u32);
        let quad_lane = k.and(self.lane, 3u32);
        self.stage(k, out, row, quad_lane);
        self.write_lse(k, ends, row, quad_lane);
        k.warp_barrier();
        self.store(k);
    }

    fn stage(&self, k: &mut Builder, out: &Accumulator, row: R32, quad_lane: R32) {
        let zero = k.mov(0u32);
        let offset = self.layout.lane_offset(k, row, zero);
        let offset = k.mad(quad_lane, 4u32, offset);
        let base = k.add(self.tile, offset);
        let cursor = self.layout.cursor(k, base, 1);
        for (i, row) in out.rows.iter().enumerate() {
            for (chunk, pair) in row.chunks_exact(2).enumerate() {
                let packed = k.pack_halves(self.kind, pair[0], pair[1]);
                let (at, offset) = cursor.at(8 * i as u32, chunk as u32);
                k.store(at, offset, packed);
            }
        }
    }

    fn write_lse(&self, k: &mut Builder, ends: &[RowEnd], row: R32, quad_lane: R32) {
        let first = k.eq(quad_lane, 0u32);
        let writes = k.and_p(self.target.wants_lse, first);
        k.if_then(writes, |k| {
            let row = k.add(row, self.first_row);
            let row = k.add(row, self.target.first_row);
            for (i, end) in ends.iter().enumerate() {
                let row = k.add(row, 8 * i as u32);
                let exists = k.lt_u(row, self.target.q_len);
                let at = k.mad_wide(row, 4u32, self.target.lse);
                k.when(exists, |k| k.store(at, 0, end.lse));
            }
        });
    }

    fn store(&self, k: &mut Builder) {
        let group = self.layout.chunk_group();
        let rows_per_pass = 32 / group;
        let own_row = k.shr_u(self.lane, group.ilog2());
        let chunk = k.and(self.lane, group - 1);
        // The swizzle repeats every eight rows.
        let bases: Vec<_> = (0..8 / rows_per_pass)
            .map(|pass| {
                let row = k.add(own_row, pass * rows_per_pass);
                let offset = self.layout.lane_offset(k, row, chunk);
                k.add(self.tile, offset)
            })
            .collect();
        let column = k.mul_wide(chunk, CHUNK);
        let column = k.add(self.target.out.base, column);
        let first = k.add(self.target.first_row, self.first_row);
        let first = k.add(first, own_row);
        for pass in 0..self.rows / rows_per_pass {
            let row = k.add(first, pass * rows_per_pass);
            let exists = k.lt_u(row, self.target.q_len);
            let wide = k.widen_u(row);
            let target = k.mad(wide, self.target.out.stride, column);
            let source = bases[pass as usize % bases.len()];
            let down = i64::from(pass * rows_per_pass / 8 * 8 * self.layout.row_bytes);
            for (place, along) in self.layout.groups() {
                let words = k.load_vector::<B32, _, 4>(source, down + place, Cache::Default);
                k.when(exists, |k| k.store_vector(target, along, words));
            }
        }
    }
}
