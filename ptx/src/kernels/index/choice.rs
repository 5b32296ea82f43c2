//! The choice between two sparse patterns for each head (FlexPrefill, algorithm 1; Lai et al., ICLR 2025).
//!
//! The last queries of a sequence, up to 64 of them as in the vertical-slash estimate, look at key block J with the share
//!
//! ```text
//! p[J] = Σ vertical[k] / queries over the keys k of J           what they do
//! e[J] = softmax_J(scale · mean query · mean key of J)          what pooled queries and keys say
//! ```
//!
//! and where the square root of the Jensen–Shannon divergence of p and e, in nats, lies below τ, pooling sees what the head does:
//! it takes pooled blocks, elsewhere columns and slashes. The authors' code takes the last 128 queries and blocks of 128
//! keys.
//!
//! Cost at 128K keys, 32 query and 8 KV heads of 128, blocks of 64: 512 KB of column sums and 1 MB of mean keys a head, the
//! second for four heads from the L2 cache: 16 MB and 32 MB. One block of threads a head is a quarter of an H200, and each
//! waits for memory some 40 times, 128 key blocks on their way: 0.04 ms.
//!
//! Determinism: eight lanes share a key block, a thread takes every 64th block in ascending order, and all threads' parts
//! are combined by halving. None of it depends on more than the sequence's own lengths.

use super::{check_arch, check_block, check_head_dim, check_key_blocks, means::warp_mean, workspace::WINDOW};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, Builder, Cache, Launch, MmaType, R32, R64, RF, RP},
    kernels::{
        batch::{Bounds, Heads, NO_HEAD, address},
        meta::ParameterKind::{F32, Pointer, U64},
    },
    tile::{
        copy::RowView,
        reduce::{BLOCK_COMBINE_BYTES, block_combine},
    },
};

const THREADS: u32 = 512;
/// Lanes that share a key block.
const LANES: u32 = 8;
/// Key blocks of a turn.
const TEAMS: u32 = THREADS / LANES;
/// Key blocks of a thread that wait for memory together.
const TOGETHER: u32 = 2;

/// Chooses between columns with slashes and pooled blocks, for each head of each sequence.
///
/// Grid: x = 1, y = heads of the launch, z = batch. 512 threads.
///
/// Parameters: pointer `q` with byte strides `q_batch q_row q_head`; pointer `key_means` (f32, of [`KeyMeansSpec`](super::KeyMeansSpec))
/// with `means_batch means_head`, all of them multiples of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows
/// max_kv`, `heads heads_per_kv head_map` and `scale` as in attention; pointer `vertical_scores` (f32, of
/// [`EstimateSpec`](super::EstimateSpec), by grid head) with `scores_batch scores_head`, multiples of 16, where entries up to the
/// next multiple of 4 past `kv_len` are read; pointer `thresholds` (f32 by grid head): τ; pointers `vertical_slash_heads
/// block_sparse_heads`, `u32[batch][grid heads]`: the query head in the one that it chooses, `u32::MAX` in the other, and in
/// both where a head does not exist or has no queries; pointer `divergences` (0 = none), `f32[batch][grid heads]`: what τ was
/// compared with; pointer `status` (0 = none): bit 1 a length beyond its bound, bit 2 a head that does not exist. `max_kv` itself
/// is clamped to `key_blocks` blocks.
///
/// A head takes pooled blocks only if its divergence is a number below τ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PatternChoiceSpec {
    /// Keys a block: 32, 64 or 128.
    pub block: u32,
    /// Most key blocks of a sequence, up to 32768.
    pub key_blocks: u32,
    /// Elements of a head: 64, 96 or 128.
    pub head_dim: u32,
    /// Type of queries.
    pub dtype: MmaType,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for PatternChoiceSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "keys a block", self.block);
        check_key_blocks(&mut errors, self.key_blocks);
        check_head_dim(&mut errors, self.head_dim);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!(
            "pattern_choice_n{}_b{}_d{}_{}_{}",
            self.block,
            self.key_blocks,
            self.head_dim,
            self.dtype.suffix(),
            self.arch.name()
        );
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

/// This thread among the lanes that share a key block, and which block of a turn that is.
struct Place {
    team: R32,
    lane: R32,
}

impl PatternChoiceSpec {
    fn body(&self, k: &mut Builder) {
        let [q, key_means]: [R64; 2] = ["q", "key_means"].map(|name| k.parameter(name, Pointer));
        let [q_batch, q_row, q_head, means_batch, means_head]: [R64; 5] =
            ["q_batch", "q_row", "q_head", "means_batch", "means_head"].map(|name| k.parameter(name, U64));
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::declare(k);
        let scale: RF = k.parameter("scale", F32);
        let vertical: R64 = k.parameter("vertical_scores", Pointer);
        let [scores_batch, scores_head]: [R64; 2] = ["scores_batch", "scores_head"].map(|name| k.parameter(name, U64));
        let [thresholds, vertical_slash_heads, block_sparse_heads, divergences, status]: [R64; 5] =
            ["thresholds", "vertical_slash_heads", "block_sparse_heads", "divergences", "status"]
                .map(|name| k.parameter(name, Pointer));

        let (grid_head, batch) = (k.block_y(), k.block_z());
        let query = q_bounds.sequence(k, batch, status);
        let max_kv = k.min_u(kv_bounds.max, self.key_blocks * self.block);
        let keys = Bounds { max: max_kv, ..kv_bounds }.sequence(k, batch, status).length;
        let (head, kv_head) = heads.pair(k, grid_head, &query, status);
        let key_means = address(k, key_means, [(batch, means_batch), (kv_head, means_head)]);
        let vertical = address(k, vertical, [(batch, scores_batch), (grid_head, scores_head)]);
        let rows = k.min_u(query.length, keys);
        let rows = k.min_u(rows, WINDOW);
        let blocks = k.add(keys, self.block - 1);
        let blocks = k.shr_u(blocks, self.block.ilog2());
        // Without queries there is nothing to compare.
        let has_rows = k.ne(rows, 0u32);
        let blocks = k.select(has_rows, blocks, 0u32);
        let thread = k.thread();
        let (team, lane) = (k.shr_u(thread, LANES.ilog2()), k.and(thread, LANES - 1));
        let place = Place { team, lane };
        let scratch = k.shared(BLOCK_COMBINE_BYTES, 16);
        let scratch = k.shared_address(scratch);

        k.comment("the mean query");
        let mean = k.shared(self.head_dim * 4, 16);
        let mean = k.shared_address(mean);
        let first_warp = k.lt_u(thread, 32u32);
        let averages = k.and_p(has_rows, first_warp);
        k.if_then(averages, |k| {
            let first = k.sub(query.length, rows);
            let first = k.add(first, query.first);
            let base = address(k, q, [(batch, q_batch), (first, q_row), (head, q_head)]);
            let source = RowView { base, stride: q_row };
            let own = warp_mean(k, self.dtype, self.head_dim, source, rows, |_, row| row);
            let at = k.mad(own.element, 4u32, mean);
            k.when(own.leads, |k| own.store(k, at));
        });
        k.barrier();

        k.comment("the estimate");
        let scores = k.shared(self.key_blocks * 4, 16);
        let scores = k.shared_address(scores);
        let scale = k.mul_f(scale, std::f32::consts::LOG2_E);
        let highest = k.mov(f32::NEG_INFINITY);
        k.for_loop(0u32, blocks, TEAMS * TOGETHER, |k, first| {
            let products = self.products(k, &place, (first, blocks), key_means, mean);
            for (block, exists, product) in products {
                let score = k.mul_f(product, scale);
                let score = k.select(exists, score, f32::NEG_INFINITY);
                let larger = k.max_f(highest, score);
                k.set(highest, larger);
                let at = k.mad(block, 4u32, scores);
                let leads = k.eq(place.lane, 0u32);
                let stores = k.and_p(leads, exists);
                k.when(stores, |k| k.store(at, 0, score));
            }
        });
        // The barriers in it are those after the scores, too.
        let highest = block_combine(k, scratch, highest, f32::NEG_INFINITY, Builder::max_f);
        let sum = k.mov(0.0f32);
        let weight = |k: &mut Builder, block: R32| {
            let at = k.mad(block, 4u32, scores);
            let score: RF = k.load(at, 0);
            let below = k.sub_f(score, highest);
            k.exp2_f(below)
        };
        k.for_loop(thread, blocks, THREADS, |k, block| {
            let weight = weight(k, block);
            let more = k.add_f(sum, weight);
            k.set(sum, more);
        });
        let sum = block_combine(k, scratch, sum, 0.0, Builder::add_f);

        k.comment("the divergence");
        let divergence = k.mov(0.0f32);
        let queries = k.float_from_u(rows);
        k.for_loop(0u32, blocks, TEAMS * TOGETHER, |k, first| {
            let columns = self.columns(k, &place, (first, blocks), vertical, keys);
            for (block, exists, columns) in columns {
                let inside = k.select(exists, block, 0u32);
                let weight = weight(k, inside);
                let estimated = k.div_f(weight, sum);
                let true_share = k.div_f(columns, queries);
                let both = k.add_f(estimated, true_share);
                let middle = k.mul_f(both, 0.5f32);
                let parts = [estimated, true_share].map(|share| relative(k, share, middle));
                let part = k.add_f(parts[0], parts[1]);
                let leads = k.eq(place.lane, 0u32);
                let counts = k.and_p(leads, exists);
                let part = k.select(counts, part, 0.0f32);
                let more = k.add_f(divergence, part);
                k.set(divergence, more);
            }
        });
        let divergence = block_combine(k, scratch, divergence, 0.0, Builder::add_f);
        // In nats, and the mean of the two.
        let divergence = k.mul_f(divergence, std::f32::consts::LN_2 / 2.0);
        // Rounding may leave less than nothing; what is not a number stays what it is.
        let below = k.lt_f(divergence, 0.0f32);
        let divergence: RF = k.select(below, 0.0f32, divergence);
        let root = k.sqrt_f(divergence);

        k.comment("the choice");
        let leads = k.eq(thread, 0u32);
        k.if_then(leads, |k| {
            let at = k.mad_wide(grid_head, 4u32, thresholds);
            let threshold: RF = k.load_readonly(at, 0);
            let pooled = k.lt_f(root, threshold);
            let absent = k.eq(query.length, 0u32);
            let head = k.select(absent, NO_HEAD, head);
            let grid_heads = k.grid_y();
            let entry = k.mad(batch, grid_heads, grid_head);
            let of_pooled = k.select(pooled, head, NO_HEAD);
            let of_others = k.select(pooled, NO_HEAD, head);
            for (map, head) in [(vertical_slash_heads, of_others), (block_sparse_heads, of_pooled)] {
                let at = k.mad_wide(entry, 4u32, map);
                k.store(at, 0, head);
            }
            let wanted = k.ne(divergences, 0u64);
            let at = k.mad_wide(entry, 4u32, divergences);
            k.when(wanted, |k| k.store(at, 0, root));
        });
    }

    /// The products of this thread's key blocks of a turn with the mean query: block, whether it exists, product. All lanes of a
    /// block have it.
    fn products(
        &self,
        k: &mut Builder,
        place: &Place,
        (first, blocks): (R32, R32),
        key_means: R64,
        mean: R32,
    ) -> Vec<(R32, RP, RF)> {
        let chunks = self.head_dim / (4 * LANES);
        let means = k.mad_wide(place.lane, 16u32, key_means);
        let loaded: Vec<_> = self
            .turn(k, place, first, blocks)
            .into_iter()
            .map(|(block, exists)| {
                let inside = k.select(exists, block, 0u32);
                let at = k.mad_wide(inside, self.head_dim * 4, means);
                let chunks: Vec<[RF; 4]> = (0..chunks)
                    .map(|chunk| k.load_vector(at, i64::from(chunk * LANES * 16), Cache::ReadOnly))
                    .collect();
                (block, exists, chunks)
            })
            .collect();
        let mean = k.mad(place.lane, 16u32, mean);
        let queries: Vec<[RF; 4]> =
            (0..chunks).map(|chunk| k.load_vector(mean, i64::from(chunk * LANES * 16), Cache::Default)).collect();
        loaded
            .into_iter()
            .map(|(block, exists, keys)| {
                let mut sum = k.mov(0.0f32);
                for (key, query) in keys.into_iter().flatten().zip(queries.iter().flatten()) {
                    sum = k.fma(key, *query, sum);
                }
                (block, exists, team_sum(k, sum))
            })
            .collect()
    }

    /// What the columns of this thread's key blocks of a turn sum up to, likewise.
    fn columns(
        &self,
        k: &mut Builder,
        place: &Place,
        (first, blocks): (R32, R32),
        vertical: R64,
        keys: R32,
    ) -> Vec<(R32, RP, RF)> {
        let chunks = self.block / (4 * LANES);
        let loaded: Vec<_> = self
            .turn(k, place, first, blocks)
            .into_iter()
            .map(|(block, exists)| {
                let key = k.mul(block, self.block);
                let key = k.mad(place.lane, 4u32, key);
                let chunks: Vec<(RP, [RF; 4])> = (0..chunks)
                    .map(|chunk| {
                        let key = k.add(key, chunk * LANES * 4);
                        let inside = k.lt_u(key, keys);
                        let inside = k.and_p(inside, exists);
                        let key = k.select(inside, key, 0u32);
                        let at = k.mad_wide(key, 4u32, vertical);
                        (inside, k.load_vector(at, 0, Cache::ReadOnly))
                    })
                    .collect();
                (block, exists, chunks)
            })
            .collect();
        loaded
            .into_iter()
            .map(|(block, exists, chunks)| {
                let mut sum = k.mov(0.0f32);
                for (inside, columns) in chunks {
                    for column in columns {
                        let column = k.select(inside, column, 0.0f32);
                        sum = k.add_f(sum, column);
                    }
                }
                (block, exists, team_sum(k, sum))
            })
            .collect()
    }

    /// This thread's key blocks of the turn that begins at block `first`, and whether each exists.
    fn turn(&self, k: &mut Builder, place: &Place, first: R32, blocks: R32) -> Vec<(R32, RP)> {
        (0..TOGETHER)
            .map(|i| {
                let block = k.add(first, place.team);
                let block = k.add(block, i * TEAMS);
                (block, k.lt_u(block, blocks))
            })
            .collect()
    }
}

/// The sum over the lanes that share a key block, in all of them.
fn team_sum(k: &mut Builder, value: RF) -> RF {
    [4, 2, 1].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        k.add_f(value, other)
    })
}

/// `share · log2(share / middle)`, 0 of no share.
fn relative(k: &mut Builder, share: RF, middle: RF) -> RF {
    let ratio = k.div_f(share, middle);
    // A maximum with what is not a number is the other one: 0 / 0 of two shares of 0.
    let ratio = k.max_f(ratio, f32::MIN_POSITIVE);
    let logarithm = k.log2_f(ratio);
    k.mul_f(share, logarithm)
}
