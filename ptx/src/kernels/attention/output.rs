//! What a block leaves behind: normalised rows and their LSE.

use super::{problem::Target, split::PartTarget};
use crate::{
    isa::{B32, Builder, Cache, MmaType, R32},
    tile::{
        fragment::Accumulator,
        layout::{CHUNK, TileLayout},
        softmax::RowEnd,
    },
};

/// Writes the rows of one warp. Rows beyond the queries are left alone.
pub(super) struct Output {
    pub(super) target: Target,
    pub(super) kind: MmaType,
    /// The warp's first row in the block's tile, a multiple of 8, and how many it has.
    pub(super) first_row: R32,
    pub(super) rows: u32,
    pub(super) lane: R32,
}

/// A warp's own part of a tile in shared memory: its layout, and the address of the warp's first row in it.
pub(super) struct Staging {
    pub(super) layout: TileLayout,
    pub(super) tile: R32,
}

impl Output {
    /// Divides by the sums, rounds and writes: through shared memory, so that neighbouring lanes store neighbouring chunks.
    pub(super) fn write_through(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd], staging: &Staging) {
        self.write_or_leave(k, out, ends, |k| self.write_all_through(k, out, ends, staging));
    }

    /// Divides by the sums, rounds and writes from registers: the four lanes of a quad store 32 bytes at a time.
    pub(super) fn write(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd]) {
        self.write_or_leave(k, out, ends, |k| self.write_all(k, out, ends));
    }

    /// Calls `write`, or leaves a part for the kernel that merges it.
    fn write_or_leave(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd], write: impl FnOnce(&mut Builder)) {
        match &self.target.part {
            None => write(k),
            Some(part) => k.if_else(part.alone, write, |k| self.leave(k, out, ends, part)),
        }
    }

    /// Divides by the sums and leaves rows and LSE in f32. A quad stores 32 bytes at a time.
    fn leave(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd], part: &PartTarget) {
        let (row, quad_lane) = self.divide(k, out, ends);
        let column = k.mul_wide(quad_lane, 8u32);
        let base = k.add(part.out, column);
        let leads = k.eq(quad_lane, 0u32);
        let first = k.add(row, self.first_row);
        for (i, (row, end)) in out.rows.iter().zip(ends).enumerate() {
            let row_of_tile = k.add(first, 8 * i as u32);
            let at = k.add(row_of_tile, self.target.first_row);
            let exists = k.lt_u(at, self.target.q_len);
            let target = k.mad_wide(row_of_tile, 4 * part.head_dim, base);
            for (pair, elements) in (0..).zip(row.chunks_exact(2)) {
                k.when(exists, |k| k.store_vector(target, 32 * pair, [elements[0], elements[1]]));
            }
            let lse = k.mad_wide(row_of_tile, 4u32, part.lse);
            let writes = k.and_p(exists, leads);
            k.when(writes, |k| k.store(lse, 0, end.lse));
        }
    }

    fn write_all_through(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd], staging: &Staging) {
        let (row, quad_lane) = self.divide(k, out, ends);
        self.stage(k, out, row, quad_lane, staging);
        self.write_lse(k, ends, row, quad_lane);
        k.warp_barrier();
        self.store(k, staging);
    }

    fn write_all(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd]) {
        let (own_row, quad_lane) = self.divide(k, out, ends);
        self.write_lse(k, ends, own_row, quad_lane);
        // Of two neighbouring chunks the even lanes take the first and the odd ones the second, half of it from the
        // lane beside.
        let odd = k.and(quad_lane, 1u32);
        let odd_bytes = k.mul(odd, 12u32);
        let odd = k.ne(odd, 0u32);
        let column = k.mad(quad_lane, 4u32, odd_bytes);
        let column = k.widen_u(column);
        let rows = self.target.out;
        let rows = rows.at(k.add(rows.base(), column));
        let first = k.add(self.target.first_row, self.first_row);
        let first = k.add(first, own_row);
        for (i, row) in out.rows.iter().enumerate() {
            let at = k.add(first, 8 * i as u32);
            let exists = k.lt_u(at, self.target.q_len);
            let (target, _) = rows.row(k, at);
            for (pair, elements) in (0..).zip(row.chunks_exact(4)) {
                let first = k.pack_halves(self.kind, elements[0], elements[1]);
                let second = k.pack_halves(self.kind, elements[2], elements[3]);
                let given = k.select(odd, first, second);
                let kept = k.select(odd, second, first);
                let taken = k.shuffle_xor(given, 1);
                let words = [k.select(odd, taken, kept), k.select(odd, kept, taken)];
                k.when(exists, |k| k.store_vector(target, 32 * pair, words));
            }
        }
    }

    /// Divides by the sums. Row of the warp and place in the quad of this lane.
    fn divide(&self, k: &mut Builder, out: &Accumulator, ends: &[RowEnd]) -> (R32, R32) {
        let inverse: Vec<_> = ends.iter().map(|end| end.inverse_sum).collect();
        out.scale_rows(k, &inverse);
        (k.shr_u(self.lane, 2u32), k.and(self.lane, 3u32))
    }

    fn stage(&self, k: &mut Builder, out: &Accumulator, row: R32, quad_lane: R32, staging: &Staging) {
        let Staging { layout, tile } = *staging;
        let zero = k.mov(0u32);
        let offset = layout.lane_offset(k, row, zero);
        let offset = k.mad(quad_lane, 4u32, offset);
        let base = k.add(tile, offset);
        let cursor = layout.cursor(k, base, 1);
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
                let at = self.target.lse(k, row);
                k.when(exists, |k| k.store(at, 0, end.lse));
            }
        });
    }

    fn store(&self, k: &mut Builder, staging: &Staging) {
        let Staging { layout, tile } = *staging;
        let group = layout.chunk_group();
        let rows_per_pass = 32 / group;
        let own_row = k.shr_u(self.lane, group.ilog2());
        let chunk = k.and(self.lane, group - 1);
        // The swizzle repeats every eight rows.
        let bases: Vec<_> = (0..8 / rows_per_pass)
            .map(|pass| {
                let row = k.add(own_row, pass * rows_per_pass);
                let offset = layout.lane_offset(k, row, chunk);
                k.add(tile, offset)
            })
            .collect();
        let column = k.mul_wide(chunk, CHUNK);
        let rows = self.target.out;
        let rows = rows.at(k.add(rows.base(), column));
        let first = k.add(self.target.first_row, self.first_row);
        let first = k.add(first, own_row);
        for pass in 0..self.rows / rows_per_pass {
            let row = k.add(first, pass * rows_per_pass);
            let exists = k.lt_u(row, self.target.q_len);
            let (target, _) = rows.row(k, row);
            let source = bases[pass as usize % bases.len()];
            let down = i64::from(pass * rows_per_pass / 8 * 8 * layout.row_bytes);
            for (place, along) in layout.groups() {
                let words = k.load_vector::<B32, _, 4>(source, down + place, Cache::Default);
                k.when(exists, |k| k.store_vector(target, along, words));
            }
        }
    }
}
