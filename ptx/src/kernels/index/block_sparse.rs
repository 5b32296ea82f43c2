//! Block-sparse selection by pooled queries and keys (MInference's block-sparse heads).
//!
//! A row block's score of a key block is the scaled product of its mean query with the block's mean key
//! ([`super::KeyMeansSpec`]). One block of threads takes up to 16 neighbouring row blocks of one head: a warp averages the
//! queries of each, all score every visible key block into shared memory as an ordered integer, and again a warp selects the
//! highest of each and writes them in ascending order: as many as a budget says, or as hold a share of the softmax of the
//! scores (FlexPrefill, algorithm 3, for each row block by itself: no row goes without its own share, and no sort runs over
//! all rows).
//!
//! Cost, at 128K tokens, 32 query and 8 KV heads of 128, blocks of 128 × 64:
//!
//! - Queries are read once: 1.07 GB, 0.26 ms of an H200's memory. That is the floor.
//! - Every block of threads reads the mean keys that it sees, from L2: 16 row blocks together come to 1.1 GB, a sixteenth of what
//!   one row block a block reads.
//! - 33.5 million products of 128 elements are 4.3 G fused multiply-adds, 0.13 ms. A thread of 2 keys × 4 rows loads 6
//!   vectors of shared memory for 32 of them. A warp copies the keys that it multiplies itself, so that it waits for no other.
//! - A radix select reads each of the 33.5 million keys five times, some 40 instructions: 0.05 ms. A share reads them nine times
//!   and computes a mass at six of them, some 150 instructions: 0.2 ms.
//!
//! With room for the scores of 16 row blocks, 128 KB, a multiprocessor holds one block of threads; on others' turn to compute it
//! reads queries, so that the four add up where they do not overlap between multiprocessors.
//!
//! Determinism: a product is one chain of fused multiply-adds, over elements in ascending order; masses are integers; ties go to
//! the lowest block.

use super::{
    check_arch, check_block, check_head_dim, check_key_blocks,
    lists::{Lists, Visible},
    means::warp_mean,
};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Cache, F32, Launch, MmaType, R32, R64, RF, RP, SharedRegion},
    kernels::{
        batch::{Bounds, Heads, address},
        meta::ParameterKind::{F32 as Float, Pointer, U32, U64},
    },
    tile::{
        copy::RowView,
        order::from_order_key,
        radix::{self, FORCED, Keys, Scratch, Threshold},
        share::{Masses, SumScratch, select_share},
        team::Team,
    },
};

/// Bit of the parameter `forced`: the key blocks that hold a row block's own positions are selected first.
pub const FORCE_DIAGONAL: u32 = 1;
/// Bit of the parameter `forced`: key block 0 is selected.
pub const FORCE_SINK: u32 = 2;

const THREADS: u32 = 512;
const WARPS: u32 = THREADS / 32;
/// Most row blocks of a block of threads: a warp each.
const MOST_ROWS: u32 = WARPS;
/// Scores in shared memory, at most: 128 KB.
const MOST_SCORES: u32 = 32768;
/// Elements of a key that come together.
const STEP: u32 = 8;
/// Steps that the loop over elements takes at a time; every head dimension has a multiple of as many.
const STEPS: u32 = 4;

/// Selects the key blocks of every row block and writes FlexAttention's partial tensors.
///
/// Grid: x = row blocks of `max_q`, [`BlockSparseSelectSpec::row_blocks`] a block, y = query heads of the launch, z = batch.
/// 512 threads.
///
/// Row blocks count from the first query row; the queries' positions end at the last key. Of the key blocks that a row block
/// sees (causal: those up to its last position), `min(visible, max(budgets[head], forced ones))` are selected: the forced
/// ones and then the highest scores. A NaN score ranks last.
///
/// With a share γ the head gets only as many of them as hold, with the forced ones, γ of the weight of all visible blocks. A
/// weight is 2 to the difference of a score, in base 2, to the highest one; what is not a number has none. See
/// [`share`](super::share) and `tile::share` for the rounding of sums.
///
/// Parameters: pointers `q key_means`; byte strides `q_batch q_row q_head`,
/// `means_batch means_head`, all of them multiples of 16; `q_start q_length q_rows max_q`, `kv_start kv_length kv_rows max_kv`,
/// `heads heads_per_kv head_map head_map_batch` and `scale` as in attention; pointer `budgets` (u32 by grid head); pointer
/// `shares` (0, or u32 by grid head: [`share`](super::share), 0 for none); `forced`: [`FORCE_DIAGONAL`] and [`FORCE_SINK`],
/// or-ed; pointer `weights` (0 = none), `f32` by key block, with byte strides `weights_batch weights_head weights_row`, of
/// which the visible ones of heads with a share are written; pointer `partial_counts` (i32) with byte strides `counts_batch counts_head` (row stride 4); pointer `partial_indices` (i32) with
/// byte strides `indices_batch indices_head indices_row`; `capacity`: entries of a row block, of which those past the count
/// become 0; pointer `status` (0 = none): bit 1 a length beyond its bound, bit 2 a head that does not exist, bit 4 a
/// budget beyond the capacity; they are clamped, and the head has no queries. `max_kv` itself is clamped to `key_blocks` blocks. Row blocks past `q_length` get count 0; there
/// are none past `max_q`.
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

/// How the threads share the products of a tile: every warp has keys of its own, and all rows.
struct Shape {
    /// Row blocks.
    rows: u32,
    /// Groups of lanes of a warp: group g has rows g, g + groups, …
    groups: u32,
    /// Lanes of a group: neighbouring ones have neighbouring keys.
    lanes: u32,
    /// Keys of a thread: l, l + lanes, …
    keys: u32,
    /// Steps of keys in shared memory, one of which is computed.
    stages: u32,
}

impl Shape {
    fn new(rows: u32) -> Shape {
        let groups = rows.min(4);
        let stages = if groups == 1 { 2 } else { 3 };
        Shape { rows, groups, lanes: 32 / groups, keys: (groups / 2).max(1), stages }
    }

    fn thread_rows(&self) -> u32 {
        self.rows / self.groups
    }

    fn warp_keys(&self) -> u32 {
        self.lanes * self.keys
    }

    /// Keys of a tile.
    fn tile(&self) -> u32 {
        WARPS * self.warp_keys()
    }

    /// Bytes of a warp's stage.
    fn stage(&self) -> u32 {
        self.warp_keys() * STEP * 4
    }

    /// Bytes from the scores of a row to those of the next: groups store in banks of their own.
    fn score_pitch(&self, key_blocks: u32) -> u32 {
        let apart = if self.groups == 1 { 0 } else { self.lanes };
        (key_blocks.next_multiple_of(32) + apart) * 4
    }
}

/// Shared memory.
struct Shared {
    /// Ranking keys by row and key block.
    scores: SharedRegion,
    score_pitch: u32,
    /// Mean queries: rows begin in banks of their own.
    means: SharedRegion,
    mean_pitch: u32,
    /// Keys on their way, and afterwards the scratch of the selection.
    ring: SharedRegion,
}

impl BlockSparseSelectSpec {
    /// Neighbouring row blocks that one block of threads takes: as many as have room for their scores in shared memory.
    pub const fn row_blocks(&self) -> u32 {
        let mut rows = MOST_ROWS;
        while rows > 1 && rows * self.key_blocks > MOST_SCORES {
            rows /= 2;
        }
        rows
    }

    fn body(&self, k: &mut Builder) {
        let [q, key_means]: [R64; 2] = ["q", "key_means"].map(|name| k.parameter(name, Pointer));
        let [q_batch, q_row, q_head, means_batch, means_head]: [R64; 5] =
            ["q_batch", "q_row", "q_head", "means_batch", "means_head"].map(|name| k.parameter(name, U64));
        let (q_bounds, kv_bounds) = (Bounds::queries(k), Bounds::keys(k));
        let heads = Heads::of_sequence(k);
        let scale: RF = k.parameter("scale", Float);
        let [budgets, shares]: [R64; 2] = ["budgets", "shares"].map(|name| k.parameter(name, Pointer));
        let forced: R32 = k.parameter("forced", U32);
        let weights: R64 = k.parameter("weights", Pointer);
        let weights_strides: [R64; 3] =
            ["weights_batch", "weights_head", "weights_row"].map(|name| k.parameter(name, U64));
        let lists = Lists::declare(k);
        let status: R64 = k.parameter("status", Pointer);

        let shape = Shape::new(self.row_blocks());
        let (score_pitch, mean_pitch) = (shape.score_pitch(self.key_blocks), (self.head_dim + 4) * 4);
        let shared = Shared {
            scores: k.shared(shape.rows * score_pitch, 128),
            score_pitch,
            means: k.shared(shape.rows * mean_pitch, 128),
            mean_pitch,
            ring: k.shared(shape.stages * WARPS * shape.stage(), 128),
        };

        let (grid_head, batch) = (k.block_y(), k.block_z());
        let mut group = k.block_x();
        if self.causal {
            // The longest first, so that few long ones are left for the end.
            let groups = k.grid_x();
            let last = k.sub(groups, 1u32);
            group = k.sub(last, group);
        }
        let query = q_bounds.sequence(k, batch, status);
        let max_kv = k.min_u(kv_bounds.max, self.key_blocks * self.block.1);
        let key_len = Bounds { max: max_kv, ..kv_bounds }.sequence(k, batch, status).length;
        let (head, kv_head) = heads.pair(k, grid_head, &query, status);
        let key_means = address(k, key_means, [(batch, means_batch), (kv_head, means_head)]);
        let rows_of = |k: &mut Builder, row_block: R32, blocks: u32| {
            let first = k.shl(row_block, self.block.0.ilog2());
            let first = k.min_u(first, query.length);
            let rows = k.sub(query.length, first);
            (first, k.min_u(rows, self.block.0 * blocks))
        };
        let visible = |k: &mut Builder, (first, rows): (R32, R32)| {
            Visible::new(k, self.block.1, self.causal, (query.length, key_len), first, rows)
        };

        let first_row_block = k.mul(group, shape.rows);
        let thread = k.thread();
        let warp = k.shr_u(thread, 5u32);
        let row_block = k.add(first_row_block, warp);
        let (first_row, rows) = rows_of(k, row_block, 1);
        let has_row_block = k.lt_u(warp, shape.rows);

        k.comment("mean queries");
        k.if_then(has_row_block, |k| {
            let row = k.add(query.first, first_row);
            let q = address(k, q, [(batch, q_batch), (row, q_row), (head, q_head)]);
            let means = k.shared_address(shared.means);
            self.average(k, (q, q_row, rows), (warp, means, shared.mean_pitch));
        });
        k.barrier();

        k.comment("scores");
        let of_all = rows_of(k, first_row_block, shape.rows);
        let seen = visible(k, of_all).count;
        let scale = k.mul_f(scale, std::f32::consts::LOG2_E);
        self.score(k, &shape, &shared, warp, (key_means, scale), seen);
        k.barrier();

        k.comment("selection");
        let row_blocks = k.add(q_bounds.max, self.block.0 - 1);
        let row_blocks = k.shr_u(row_blocks, self.block.0.ilog2());
        let exists = k.lt_u(row_block, row_blocks);
        let works = k.and_p(has_row_block, exists);
        k.if_then(works, |k| {
            let visible = visible(k, (first_row, rows));
            let scores = k.shared_address(shared.scores);
            let scores = k.mad(warp, shared.score_pitch, scores);
            let at = k.mad_wide(grid_head, 4u32, budgets);
            let budget: R32 = k.load(at, 0);
            let forced = Forced::new(k, &visible, forced);
            let size = k.max_u(budget, forced.count);
            let size = k.min_u(size, visible.count);
            let load = |k: &mut Builder, first: R32| {
                let at = k.mad(first, 4u32, scores);
                k.load_vector::<_, _, 4>(at, 0, Cache::Default).to_vec()
            };
            let keys = Keys { team: Team::Warp, count: visible.count, width: 4, load };
            let scratch = Scratch::of_warps(k, shared.ring);
            let (size, share) = (k.mov(size), k.mov(0u32));
            let given = k.ne(shares, 0u64);
            k.if_then(given, |k| {
                let at = k.mad_wide(grid_head, 4u32, shares);
                let given: R32 = k.load(at, 0);
                k.set(share, given);
            });
            let threshold = Threshold { key: k.mov(0u32), ties: k.mov(0u32) };
            // More than there are, so that a head without a share selects by size.
            let chosen = k.mov(u32::MAX);
            let by_share = k.ne(share, 0u32);
            k.if_else(
                by_share,
                |k| {
                    let [weights_batch, weights_head, weights_row] = weights_strides;
                    let places = [(batch, weights_batch), (grid_head, weights_head), (row_block, weights_row)];
                    let out = address(k, weights, places);
                    let wanted = k.ne(weights, 0u64);
                    weigh(k, (scores, visible.count), (out, wanted));
                    let sums = SumScratch::new(k, Team::Warp);
                    let (masses, held) = Masses::new(k, &sums, &keys, |k, block| forced.contains(k, &visible, block));
                    forced.store(k, &visible, scores);
                    let mass = |k: &mut Builder, key| masses.mass(k, key);
                    let (found, by_share) = select_share(k, &scratch, &keys, held, share, mass);
                    threshold.set_to(k, found);
                    k.set(chosen, by_share);
                },
                |k| forced.store(k, &visible, scores),
            );
            let size = k.min_u(size, chosen);
            let size = lists.clamp(k, size, status);
            let other = k.ne(size, chosen);
            k.if_then(other, |k| {
                k.comment("the highest");
                let found = radix::select(k, &scratch, &keys, size);
                threshold.set_to(k, found);
            });
            lists.write(k, &scratch, (batch, grid_head, row_block), &keys, threshold, size);
        });
    }

    /// A warp stores the mean of the rows at `q` as row `row` of the means, or zeros if there are none.
    fn average(&self, k: &mut Builder, (q, stride, rows): (R64, R64, R32), (row, means, pitch): (R32, R32, u32)) {
        let means = k.mad(row, pitch, means);
        let has_rows = k.ne(rows, 0u32);
        k.if_else(
            has_rows,
            |k| {
                let mean = warp_mean(k, self.dtype, self.head_dim, RowView { base: q, stride }, rows, |_, row| row);
                let at = k.mad(mean.element, 4u32, means);
                k.when(mean.leads, |k| mean.store(k, at));
            },
            |k| {
                let lane = k.lane();
                let inside = k.lt_u(lane, self.head_dim / 4);
                let at = k.mad(lane, 16u32, means);
                let zeros = [k.mov::<F32>(0.0f32); 4];
                k.when(inside, |k| k.store_vector(at, 0, zeros));
            },
        );
    }

    /// Scores the first `seen` key blocks against all mean queries, in base 2.
    fn score(
        &self,
        k: &mut Builder,
        shape: &Shape,
        shared: &Shared,
        warp: R32,
        (key_means, scale): (R64, RF),
        seen: R32,
    ) {
        let (lanes, stages, ahead) = (shape.lanes, shape.stages, shape.stages - 1);
        let ring = k.shared_address(shared.ring);
        let ring = k.mad(warp, stages * shape.stage(), ring);
        let stage: Vec<R32> = (0..stages)
            .map(|i| {
                let at = k.add(ring, i * shape.stage());
                k.mov(at)
            })
            .collect();
        let lane = k.lane();
        let lane_key = k.rem_u(lane, lanes);
        let lane_row = k.div_u(lane, lanes);

        // A step of a key is two chunks of 16 bytes; four keys further they stand the other way round, so that the chunks of
        // eight neighbouring keys lie in banks of their own.
        let turned = |k: &mut Builder, key: R32, chunk: R32| {
            let turn = k.shr_u(key, 2u32);
            let turn = k.and(turn, 1u32);
            let chunk = k.xor(chunk, turn);
            let place = k.mul(key, STEP * 4);
            k.mad(chunk, 16u32, place)
        };
        let zero = k.mov(0u32);
        let read_at = turned(k, lane_key, zero);
        let (copied_key, chunk) = (k.shr_u(lane, 1u32), k.and(lane, 1u32));
        let copied_to = turned(k, copied_key, chunk);
        let passes = shape.warp_keys() / 16;

        // Where this lane's chunk of a tile's keys lies, and how much of it counts, by pass.
        let source = |k: &mut Builder, first: R32| -> Vec<(R64, R32)> {
            (0..passes)
                .map(|pass| {
                    let key = k.add(first, copied_key);
                    let key = k.add(key, pass * 16);
                    let exists = k.lt_u(key, seen);
                    let key = k.select(exists, key, 0u32);
                    let at = k.mad_wide(key, self.head_dim * 4, key_means);
                    (k.mad_wide(chunk, 16u32, at), k.select(exists, 16u32, 0u32))
                })
                .collect()
        };
        let copy = |k: &mut Builder, stage: R32, from: &[(R64, R32)], step: u32| {
            let to = k.add(stage, copied_to);
            for (pass, &(from, bytes)) in (0..).zip(from) {
                k.copy_async_at((to, pass * 16 * i64::from(STEP) * 4), (from, i64::from(step * STEP * 4)), bytes);
            }
            k.commit_copies();
        };

        let first = k.mul(warp, shape.warp_keys());
        let from: Vec<(R64, R32)> = source(k, first).into_iter().map(|(at, bytes)| (k.mov(at), k.mov(bytes))).collect();
        for step in 0..ahead {
            copy(k, stage[step as usize], &from, step);
        }

        let means = k.shared_address(shared.means);
        let means = k.mad(lane_row, shared.mean_pitch, means);
        let scores = k.shared_address(shared.scores);
        let scores = k.mad(lane_row, shared.score_pitch, scores);
        // The selection reads four scores at a time.
        let stored = k.add(seen, 3u32);
        let stored = k.and(stored, !3u32);
        k.for_loop(first, seen, shape.tile(), |k, first| {
            let next_tile = k.add(first, shape.tile());
            let next_tile = source(k, next_tile);
            let rows = shape.thread_rows();
            let sums: Vec<RF> = (0..rows * shape.keys).map(|_| k.mov::<F32>(0.0f32)).collect();
            let means = k.mov(means);
            k.for_loop(0u32, self.head_dim, STEP * STEPS, |k, element| {
                let ends = k.eq(element, self.head_dim - STEP * STEPS);
                for step in 0..STEPS {
                    // Of this thread's copies; those of the other lanes after the barrier, which also says that the stage to be
                    // filled has been read.
                    k.wait_copies(ahead - 1);
                    k.warp_barrier();
                    if step + ahead == STEPS {
                        for (&(at, bytes), &(next, next_bytes)) in from.iter().zip(&next_tile) {
                            let further = k.add(at, u64::from(STEPS * STEP * 4));
                            let next = k.select(ends, next, further);
                            k.set(at, next);
                            let next_bytes = k.select(ends, next_bytes, bytes);
                            k.set(bytes, next_bytes);
                        }
                    }
                    let filled = stage[((step + ahead) % stages) as usize];
                    copy(k, filled, &from, (step + ahead) % STEPS);
                    let at = k.add(stage[(step % stages) as usize], read_at);
                    self.multiply(k, shape, at, (means, shared.mean_pitch, step * STEP * 4), &sums);
                }
                let next = k.add(means, STEPS * STEP * 4);
                k.set(means, next);
                let turned = STEPS as usize % stages as usize;
                if turned != 0 {
                    let old: Vec<R32> = stage.iter().map(|&stage| k.mov(stage)).collect();
                    for (i, &stage) in stage.iter().enumerate() {
                        k.set(stage, old[(i + turned) % old.len()]);
                    }
                }
            });
            for j in 0..shape.keys {
                let key = k.add(first, lane_key);
                let key = k.add(key, j * lanes);
                let exists = k.lt_u(key, stored);
                let at = k.mad(key, 4u32, scores);
                for i in 0..rows {
                    let score = k.mul_f(sums[(j * rows + i) as usize], scale);
                    let score = radix::ranking_key(k, score);
                    let row = i64::from(i * shape.groups * shared.score_pitch);
                    k.when(exists, |k| k.store(at, row, score));
                }
            }
        });
        // What is still under way would land in the scratch of the selection.
        k.wait_copies(0);
    }

    /// Adds the products of a step's elements: keys from `at`, means from (first row, pitch, offset).
    fn multiply(&self, k: &mut Builder, shape: &Shape, at: R32, (means, pitch, offset): (R32, u32, u32), sums: &[RF]) {
        let rows = shape.thread_rows();
        let other = k.xor(at, 16u32);
        for (chunk, at) in [at, other].into_iter().enumerate() {
            let keys: Vec<[RF; 4]> = (0..shape.keys)
                .map(|j| k.load_vector(at, i64::from(j * shape.lanes * STEP * 4), Cache::Default))
                .collect();
            let queries: Vec<[RF; 4]> = (0..rows)
                .map(|i| {
                    let row = i * shape.groups * pitch + offset + chunk as u32 * 16;
                    k.load_vector(means, i64::from(row), Cache::Default)
                })
                .collect();
            for element in 0..4 {
                for (j, key) in keys.iter().enumerate() {
                    for (i, query) in queries.iter().enumerate() {
                        let sum = sums[j * rows as usize + i];
                        let next = k.fma(query[element], key[element], sum);
                        k.set(sum, next);
                    }
                }
            }
        }
    }
}

/// What a row block gets whatever the scores: key blocks of its own positions, and block 0.
struct Forced {
    /// Those of its positions, from the first on.
    diagonals: R32,
    /// Block 0, if it is none of them.
    sink: RP,
    count: R32,
}

impl Forced {
    fn new(k: &mut Builder, visible: &Visible, forced: R32) -> Forced {
        let (forces_diagonal, forces_sink) = (forced_bit(k, forced, FORCE_DIAGONAL), forced_bit(k, forced, FORCE_SINK));
        let diagonals = k.select(forces_diagonal, visible.diagonals, 0u32);
        // Block 0 counts once, whether as sink or as diagonal.
        let sink = k.ne(visible.diagonal_first, 0u32);
        let unforced = k.eq(diagonals, 0u32);
        let sink = k.or_p(sink, unforced);
        let sink = k.and_p(sink, forces_sink);
        let one = k.select(sink, 1u32, 0u32);
        Forced { diagonals, sink, count: k.add(diagonals, one) }
    }

    fn contains(&self, k: &mut Builder, visible: &Visible, block: R32) -> RP {
        let is_first = k.eq(block, 0u32);
        let is_sink = k.and_p(is_first, self.sink);
        let from_first = k.sub(block, visible.diagonal_first);
        let on_diagonal = k.lt_u(from_first, self.diagonals);
        k.or_p(is_sink, on_diagonal)
    }

    /// Makes them the highest of a row block's scores: first the diagonal, then the sink. A warp's lanes all see it.
    fn store(&self, k: &mut Builder, visible: &Visible, scores: R32) {
        // Other lanes have read the scores for their masses.
        k.warp_barrier();
        let lane = k.lane();
        let leads = k.eq(lane, 0u32);
        let stores_sink = k.and_p(self.sink, leads);
        k.when(stores_sink, |k| k.store::<B32, _>(scores, 0, FORCED));
        let on_diagonal = k.lt_u(lane, self.diagonals);
        let block = k.add(visible.diagonal_first, lane);
        let at = k.mad(block, 4u32, scores);
        k.when(on_diagonal, |k| k.store::<B32, _>(at, 0, u32::MAX));
        // The select has barriers too, but is passed over where nothing is wanted.
        k.warp_barrier();
    }
}

fn forced_bit(k: &mut Builder, forced: R32, bit: u32) -> RP {
    let bits = k.and(forced, bit);
    k.ne(bits, 0u32)
}

/// A warp puts weights in the place of `count` scores, and stores them where they are wanted.
fn weigh(k: &mut Builder, (scores, count): (R32, R32), (out, wanted): (R64, RP)) {
    k.comment("weights");
    let lane = k.lane();
    let highest = k.mov(0u32);
    k.for_loop(lane, count, 32, |k, block| {
        let at = k.mad(block, 4u32, scores);
        let key: R32 = k.load(at, 0);
        let larger = k.max_u(highest, key);
        k.set(highest, larger);
    });
    let highest = k.warp_max_u(highest);
    let highest = from_order_key(k, highest);
    k.for_loop(lane, count, 32, |k, block| {
        let at = k.mad(block, 4u32, scores);
        let key: R32 = k.load(at, 0);
        let score = from_order_key(k, key);
        let below = k.sub_f(score, highest);
        let weight = k.exp2_f(below);
        let key = radix::ranking_key(k, weight);
        k.store(at, 0, key);
        let at = k.mad_wide(block, 4u32, out);
        k.when(wanted, |k| k.store(at, 0, weight));
    });
    k.warp_barrier();
}
