//! Masses of blocks, and which of them hold the share that is asked for.

use super::check_stride;
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Cache, F32, Launch, R32, R64, RF, Rounding},
    kernels::{
        batch::{Bounds, Heads, address},
        index::{
            ceil_shift, check_arch, check_block, check_key_blocks,
            lists::{Lists, Visible},
            workspace::CELL_CHUNK,
        },
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::{
        order::from_order_key,
        radix::{self, FORCED, Keys, Scratch},
        reduce::{BLOCK_EXCLUSIVE_SUM_BYTES, block_exclusive_sum, butterfly},
        share::{Held, select_share},
        team::Team,
    },
};

const THREADS: u32 = 256;
/// A mass as an integer: the up to 16 cells of a row block have a weight of 1 each, and 2^31 leaves room for rounding.
const MASS_UNIT: f32 = (1u32 << 27) as f32;

/// Selects the key blocks of every row block of a slice and writes FlexAttention's partial tensors.
///
/// Grid: x = row blocks of the slice, as far as `max_q` has some, y = query heads of the launch, z = batch. 256 threads.
///
/// Row blocks count from the first query row; the queries' positions end at the last key. Selected are the blocks that hold
/// the row block's own positions, block 0, and others as [`antidiagonal`](super) says, `max(limits[head], forced ones)`
/// blocks at most; beyond the limit the lightest go.
///
/// Parameters: `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv` and `heads heads_per_kv head_map` as in
/// attention; `first_row_block` of the slice; pointers `statistics block_sums` as the sums were written for this slice, and
/// its cells of queries, `slice_cells`; pointers `shares` ([`share`](crate::kernels::index::share) of the threshold) and `limits` (u32 by
/// grid head each); pointer `masses` (0 = none), `f32` by key block, with byte strides `masses_batch masses_head
/// masses_row`, of which the visible ones are written; pointer `partial_counts` (i32) with byte strides `counts_batch
/// counts_head` (row stride 4); pointer `partial_indices` (i32) with byte strides `indices_batch indices_head indices_row`;
/// `capacity`: entries of a row block, of which those past the count become 0; pointer `status` (0 = none): bit 1 a length
/// beyond its bound, bit 2 a head that does not exist, bit 4 a list longer than the capacity; they are clamped, and the head
/// has no queries. `max_kv` itself is clamped to `key_blocks` blocks where it bounds lengths. Row blocks past `q_length` get
/// count 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AntidiagonalSelectSpec {
    /// Rows of a cell: 8 or 16.
    pub stride: u32,
    /// Query rows and keys of an attention block: 32, 64 or 128 each.
    pub block: (u32, u32),
    /// Most key blocks of a sequence, up to 32768.
    pub key_blocks: u32,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for AntidiagonalSelectSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_stride(&mut errors, self.stride);
        check_block(&mut errors, "block", "query rows a block", self.block.0);
        check_block(&mut errors, "block", "keys a block", self.block.1);
        check_key_blocks(&mut errors, self.key_blocks);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "antidiagonal_select_s{}m{}n{}_b{}_{}",
            self.stride,
            self.block.0,
            self.block.1,
            self.key_blocks,
            self.arch.name()
        );
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 4 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

/// What the sums of this row block's cells are made of.
struct Sums {
    /// The first cell's statistics and sums of blocks.
    statistics: R64,
    blocks: R64,
    /// Chunks in memory from a cell to the next.
    chunks: R32,
    /// Cells that exist.
    cells: R32,
}

impl AntidiagonalSelectSpec {
    /// Cells of a row block.
    const fn cells(&self) -> u32 {
        self.block.0 / self.stride
    }

    /// Key blocks of a chunk.
    const fn chunk_blocks(&self) -> u32 {
        CELL_CHUNK * self.stride / self.block.1
    }

    fn body(&self, k: &mut Builder) {
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let first_row_block: R32 = k.parameter("first_row_block", U32);
        let [statistics, block_sums]: [R64; 2] = ["statistics", "block_sums"].map(|name| k.parameter(name, Pointer));
        let slice_cells: R32 = k.parameter("slice_cells", U32);
        let [shares, limits, masses_out]: [R64; 3] =
            ["shares", "limits", "masses"].map(|name| k.parameter(name, Pointer));
        let masses_strides: [R64; 3] = ["masses_batch", "masses_head", "masses_row"].map(|name| k.parameter(name, U64));
        let lists = Lists::declare(k);
        let status: R64 = k.parameter("status", Pointer);

        let (in_slice, grid_head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let row_block = k.add(first_row_block, in_slice);
        let query = q_bounds.sequence(k, batch, status);
        let chunks = ceil_shift(k, kv_bounds.max, CELL_CHUNK * self.stride);
        let max_kv = k.min_u(kv_bounds.max, self.key_blocks * self.block.1);
        let key_len = Bounds { max: max_kv, ..kv_bounds }.sequence(k, batch, status).length;
        heads.pair(k, grid_head, &query, status);
        let first_row = k.shl(row_block, self.block.0.ilog2());
        let first_row = k.min_u(first_row, query.length);
        let rows = k.sub(query.length, first_row);
        let rows = k.min_u(rows, self.block.0);
        let visible = Visible::new(k, self.block.1, true, (query.length, key_len), first_row, rows);

        let grid_heads = k.grid_y();
        let pair = k.mad(batch, grid_heads, grid_head);
        let before = k.mul_wide(pair, slice_cells);
        let own = k.mul_wide(in_slice, self.cells());
        let cell = k.add(before, own);
        let wide_chunks = k.widen_u(chunks);
        let chunk = k.mul(cell, wide_chunks);
        let sums = Sums {
            statistics: k.mad(chunk, 8u64, statistics),
            blocks: k.mad(chunk, u64::from(self.chunk_blocks() * 4), block_sums),
            chunks,
            cells: ceil_shift(k, rows, self.stride),
        };
        let masses = k.shared(self.key_blocks * 4, 16);
        let masses = k.shared_address(masses);
        let references = k.shared(self.cells() * 8, 16);
        let references = k.shared_address(references);
        self.merge(k, &sums, visible.count, references);
        k.barrier();

        k.comment("masses");
        let wanted = k.ne(masses_out, 0u64);
        let [masses_batch, masses_head, masses_row] = masses_strides;
        let out = address(k, masses_out, [(batch, masses_batch), (grid_head, masses_head), (row_block, masses_row)]);
        let (all, forced) = (k.mov::<B32>(0u32), k.mov::<B32>(0u32));
        self.add_up(k, &sums, visible.count, references, |k, block, mass| {
            let at = k.mad(block, 4u32, masses);
            k.store(at, 0, mass);
            let at = k.mad_wide(block, 4u32, out);
            k.when(wanted, |k| k.store(at, 0, mass));
            let weight = weight(k, mass);
            let sum = k.add(all, weight);
            k.set(all, sum);
            let is_sink = k.eq(block, 0u32);
            let on_diagonal = visible.on_diagonal(k, block);
            let is_forced = k.or_p(is_sink, on_diagonal);
            let weight = k.select(is_forced, weight, 0u32);
            let sum = k.add(forced, weight);
            k.set(forced, sum);
        });
        let totals = k.shared(BLOCK_EXCLUSIVE_SUM_BYTES, 16);
        let totals = k.shared_address(totals);
        let [all, forced] = [all, forced].map(|weight| block_exclusive_sum(k, totals, weight).1);

        k.comment("share");
        let at = k.mad_wide(grid_head, 4u32, shares);
        let share: R32 = k.load_readonly(at, 0);
        let key = |k: &mut Builder, block: R32| {
            let at = k.mad(block, 4u32, masses);
            let mass: RF = k.load(at, 0);
            let key = radix::ranking_key(k, mass);
            let is_sink = k.eq(block, 0u32);
            let key = k.select(is_sink, FORCED, key);
            let on_diagonal = visible.on_diagonal(k, block);
            vec![k.select(on_diagonal, u32::MAX, key)]
        };
        let keys = Keys { team: Team::Block, count: visible.count, width: 1, load: key };
        let scratch = Scratch::new(k);
        let (threshold, chosen) = select_share(k, &scratch, &keys, Held { all, forced }, share, |k, key| {
            let mass = from_order_key(k, key);
            weight(k, mass)
        });

        k.comment("limit");
        let at = k.mad_wide(grid_head, 4u32, limits);
        let limit: R32 = k.load_readonly(at, 0);
        let outside = k.ne(visible.diagonal_first, 0u32);
        let sink = k.select(outside, 1u32, 0u32);
        let least = k.add(visible.diagonals, sink);
        let limit = k.max_u(limit, least);
        let size = k.min_u(chosen, limit);
        let size = lists.clamp(k, size, status);
        let too_many = k.lt_u(size, chosen);
        k.if_then(too_many, |k| {
            let heaviest = radix::select(k, &scratch, &keys, size);
            threshold.set_to(k, heaviest);
        });
        lists.write(k, &scratch, (batch, grid_head, row_block), &keys, threshold, size);
    }

    /// For each cell the maximum over all chunks, and the inverse of the denominator: 0 for a cell without weight.
    fn merge(&self, k: &mut Builder, sums: &Sums, visible: R32, references: R32) {
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let chunks = ceil_shift(k, visible, self.chunk_blocks());
        let first = k.mov::<B32>(warp);
        k.for_loop(first, self.cells(), THREADS / 32, |k, cell| {
            let exists = k.lt_u(cell, sums.cells);
            let chunks = k.select(exists, chunks, 0u32);
            let row = k.mul_wide(cell, sums.chunks);
            let row = k.mad(row, 8u64, sums.statistics);
            let max = k.mov::<F32>(f32::NEG_INFINITY);
            k.for_loop(lane, chunks, 32, |k, chunk| {
                let at = k.mad_wide(chunk, 8u32, row);
                let own: RF = k.load_readonly(at, 0);
                let larger = k.max_f(max, own);
                k.set(max, larger);
            });
            let max = butterfly(k, max, Builder::max_f);
            let none = k.eq_f(max, f32::NEG_INFINITY);
            let max: RF = k.select(none, 0.0f32, max);
            let sum = k.mov::<F32>(0.0f32);
            k.for_loop(lane, chunks, 32, |k, chunk| {
                let at = k.mad_wide(chunk, 8u32, row);
                let [own, part]: [RF; 2] = k.load_vector(at, 0, Cache::ReadOnly);
                let shrunk = k.sub_f(own, max);
                let shrunk = k.exp2_f(shrunk);
                let more = k.fma(part, shrunk, sum);
                k.set(sum, more);
            });
            let sum = butterfly(k, sum, Builder::add_f);
            let inverse = k.div_f(1.0f32, sum);
            let empty = k.eq_f(sum, 0.0f32);
            let inverse: RF = k.select(empty, 0.0f32, inverse);
            let at = k.mad(cell, 8u32, references);
            let leads = k.eq(lane, 0u32);
            k.when(leads, |k| k.store_vector(at, 0, [max, inverse]));
        });
    }

    /// Calls `take` with each visible block and its mass.
    fn add_up(
        &self,
        k: &mut Builder,
        sums: &Sums,
        visible: R32,
        references: R32,
        take: impl FnOnce(&mut Builder, R32, RF),
    ) {
        let thread = k.thread();
        let row = k.mul(sums.chunks, self.chunk_blocks() * 4);
        let row = k.widen_u(row);
        let chunk_row = k.mul_wide(sums.chunks, 8u32);
        let last = k.sub(sums.cells, 1u32);
        k.for_loop(thread, visible, THREADS, |k, block| {
            let chunk = k.shr_u(block, self.chunk_blocks().ilog2());
            let chunk = k.mad_wide(chunk, 8u32, sums.statistics);
            let own = k.mad_wide(block, 4u32, sums.blocks);
            // All loads first, of the last cell again where there are fewer: so that memory is waited for once.
            let loaded: Vec<[RF; 2]> = (0..self.cells())
                .map(|cell| {
                    let cell = k.min_u(last, cell);
                    let cell = k.widen_u(cell);
                    let (block, chunk) = (k.mad(cell, row, own), k.mad(cell, chunk_row, chunk));
                    [k.load_readonly(block, 0), k.load_readonly(chunk, 0)]
                })
                .collect();
            let mut mass = k.mov::<F32>(0.0f32);
            for (cell, [part, max]) in (0..).zip(loaded) {
                let [reference, inverse]: [RF; 2] = k.load_vector(references, i64::from(cell * 8u32), Cache::Default);
                let shrunk = k.sub_f(max, reference);
                let shrunk = k.exp2_f(shrunk);
                let part = k.mul_f(part, shrunk);
                let part = k.mul_f(part, inverse);
                let exists = k.gt_u(sums.cells, cell);
                let part = k.select(exists, part, 0.0f32);
                mass = k.add_f(mass, part);
            }
            take(k, block, mass);
        });
    }
}

/// The mass in units of 2⁻²⁷; 0 for what is not a number.
fn weight(k: &mut Builder, mass: RF) -> R32 {
    let scaled = k.mul_f(mass, MASS_UNIT);
    k.u_from_float(scaled, Rounding::Zero)
}
