//! Block-sparse selection by pooled queries and keys (MInference's block-sparse heads).
//!
//! A row block's score of a key block is the product of its mean query with the block's mean key ([`super::KeyMeansSpec`]);
//! neither scale nor softmax changes the order. One block a (row block, head, batch row) averages its queries, scores every
//! visible key block into shared memory as an ordered integer, selects the highest and writes them in ascending order.
//!
//! Determinism: a product is summed by one warp, lane i over elements i, i + 32, … in ascending order by fused
//! multiply-adds, then across lanes by halving; ties go to the lowest block.

use super::{
    check_arch, check_block, check_head_dim, check_key_blocks,
    lists::{Lists, Visible},
    means::{Mean, THREADS},
};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, F32, Launch, MmaType, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, address},
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::{
        copy::RowView,
        radix::{self, Keys, Scratch},
    },
};

/// Bit of the parameter `forced`: the key blocks that hold a row block's own positions are selected first.
pub const FORCE_DIAGONAL: u32 = 1;
/// Bit of the parameter `forced`: key block 0 is selected.
pub const FORCE_SINK: u32 = 2;

/// Selects the key blocks of every row block and writes FlexAttention's partial tensors.
///
/// Grid: x = row blocks of `max_q`, y = query heads of the launch, z = batch. 256 threads.
///
/// Row blocks count from the first query row; the queries' positions end at the last key. Of the key blocks that a row block
/// sees (causal: those up to its last position), `min(visible, max(budgets[head], forced ones))` are selected: the forced
/// ones and then the highest scores. A NaN score ranks last.
///
/// Parameters: pointers `q key_means`; byte strides `q_batch q_row q_head` (multiples of 4, as `q`),
/// `means_batch means_head`; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv` and
/// `heads heads_per_kv head_map` as in attention; pointer `budgets` (u32 by grid head); `forced`: [`FORCE_DIAGONAL`] and [`FORCE_SINK`], or-ed; pointer
/// `partial_counts` (i32) with byte strides `counts_batch counts_head` (row stride 4); pointer `partial_indices` (i32) with
/// byte strides `indices_batch indices_head indices_row`; `capacity`: entries of a row block, of which those past the count
/// become 0; pointer `status` (0 = none): bit 1 a length beyond its bound, bit 2 a head that does not exist, bit 4 a
/// budget beyond the capacity; they are clamped, and the head has no queries. `max_kv` itself is clamped to `key_blocks` blocks. Row blocks past `q_length` get count 0.
///
/// MInference forces no block, and then a query can be left without a visible key; [`FORCE_DIAGONAL`] prevents it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockSparseSelectSpec {
    /// Query rows and keys of an attention block: 32, 64 or 128 each.
    pub block: (u32, u32),
    /// Most key blocks of a sequence, up to 32768.
    pub key_blocks: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries.
    pub dtype: MmaType,
    /// A row block sees no key block past its last position.
    pub causal: bool,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for BlockSparseSelectSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "query rows a block", self.block.0);
        check_block(&mut errors, "block", "keys a block", self.block.1);
        check_key_blocks(&mut errors, self.key_blocks);
        check_head_dim(&mut errors, self.head_dim);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "block_sparse_select_m{}n{}_b{}_d{}_{}{}_{}",
            self.block.0,
            self.block.1,
            self.key_blocks,
            self.head_dim,
            self.dtype.suffix(),
            if self.causal { "_causal" } else { "" },
            self.arch.name()
        );
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

impl BlockSparseSelectSpec {
    fn body(&self, k: &mut Builder) {
        let [q, key_means]: [R64; 2] = ["q", "key_means"].map(|name| k.parameter(name, Pointer));
        let [q_batch, q_row, q_head, means_batch, means_head]: [R64; 5] =
            ["q_batch", "q_row", "q_head", "means_batch", "means_head"].map(|name| k.parameter(name, U64));
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let budgets: R64 = k.parameter("budgets", Pointer);
        let forced: R32 = k.parameter("forced", U32);
        let lists = Lists::declare(k);
        let status: R64 = k.parameter("status", Pointer);

        let (row_block, grid_head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let query = q_bounds.sequence(k, batch, status);
        let max_kv = k.min_u(kv_bounds.max, self.key_blocks * self.block.1);
        let key_len = Bounds { max: max_kv, ..kv_bounds }.sequence(k, batch, status).length;
        let (head, kv_head) = heads.pair(k, grid_head, &query, status);
        let first_row = k.shl(row_block, self.block.0.ilog2());
        let first_row = k.min_u(first_row, query.length);
        let rows = k.sub(query.length, first_row);
        let rows = k.min_u(rows, self.block.0);
        let visible = Visible::new(k, self.block.1, self.causal, (query.length, key_len), first_row, rows);

        let (forces_diagonal, forces_sink) = (forced_bit(k, forced, FORCE_DIAGONAL), forced_bit(k, forced, FORCE_SINK));
        let diagonals = k.select(forces_diagonal, visible.diagonals, 0u32);
        let at = k.mad_wide(grid_head, 4u32, budgets);
        let budget: R32 = k.load(at, 0);
        // Block 0 counts once, whether as sink or as diagonal.
        let sink = k.ne(visible.diagonal_first, 0u32);
        let unforced = k.eq(diagonals, 0u32);
        let sink = k.or_p(sink, unforced);
        let sink = k.and_p(sink, forces_sink);
        let sink = k.select(sink, 1u32, 0u32);
        let least = k.add(diagonals, sink);
        let size = k.max_u(budget, least);
        let size = k.min_u(size, visible.count);
        let size = lists.clamp(k, size, status);

        let row = k.add(query.first, first_row);
        let q = address(k, q, [(batch, q_batch), (row, q_row), (head, q_head)]);
        let key_means = address(k, key_means, [(batch, means_batch), (kv_head, means_head)]);
        let keys = k.shared(self.key_blocks * 4, 16);
        let keys = k.shared_address(keys);
        self.score(k, keys, q, q_row, rows, key_means, visible.count);

        let key = |k: &mut Builder, block: R32| {
            let at = k.mad(block, 4u32, keys);
            let scored: R32 = k.load(at, 0);
            let is_sink = k.eq(block, 0u32);
            let is_sink = k.and_p(is_sink, forces_sink);
            let key = k.select(is_sink, u32::MAX - 1, scored);
            let from_diagonal = k.sub(block, visible.diagonal_first);
            let on_diagonal = k.lt_u(from_diagonal, diagonals);
            vec![k.select(on_diagonal, u32::MAX, key)]
        };
        let keys = Keys { count: visible.count, width: 1, load: key };
        let scratch = Scratch::new(k);
        let threshold = radix::select(k, &scratch, &keys, size);
        lists.write(k, &scratch, (batch, grid_head, row_block), &keys, threshold, size);
    }

    /// Scores the first `blocks` key blocks against the mean of the rows at `q`, into `keys`.
    #[allow(clippy::too_many_arguments)]
    fn score(&self, k: &mut Builder, keys: R32, q: R64, q_row: R64, rows: R32, key_means: R64, blocks: R32) {
        let query_mean = k.shared(self.head_dim * 4, 16);
        let query_mean = k.shared_address(query_mean);
        let mean = Mean::new(k, self.head_dim);
        mean.compute(
            k,
            self.dtype,
            RowView { base: q, stride: q_row },
            rows,
            |_, row| row,
            |k, element, value| {
                let at = k.mad(element, 4u32, query_mean);
                k.store(at, 0, value);
            },
        );
        k.barrier();

        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let at = k.mad(lane, 4u32, query_mean);
        let parts = self.head_dim / 32;
        let query: Vec<RF> = (0..parts).map(|part| k.load(at, i64::from(part * 128))).collect();
        let key_means = k.mad_wide(lane, 4u32, key_means);
        let leads = k.eq(lane, 0u32);
        k.for_loop(warp, blocks, THREADS / 32, |k, block| {
            let at = k.mad_wide(block, self.head_dim * 4, key_means);
            let mut sum = k.mov::<F32>(0.0f32);
            for (part, &q) in (0..parts).zip(&query) {
                let key: RF = k.load_readonly(at, i64::from(part * 128));
                sum = k.fma(q, key, sum);
            }
            for mask in [16, 8, 4, 2, 1] {
                let other = k.shuffle_xor(sum, mask);
                sum = k.add_f(sum, other);
            }
            let key = radix::ranking_key(k, sum);
            let at = k.mad(block, 4u32, keys);
            k.when(leads, |k| k.store(at, 0, key));
        });
        k.barrier();
    }
}

fn forced_bit(k: &mut Builder, forced: R32, bit: u32) -> RP {
    let bits = k.and(forced, bit);
    k.ne(bits, 0u32)
}
