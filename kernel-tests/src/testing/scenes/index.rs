//! Index kernels. What is selected from given scores or means is exact.

use super::{Agreement, Scene, decode, equal, floats, normals};
use crate::{
    oracle::index::{self, Budget, Pooled},
    testing::launch::Launch,
};
use kernel_core::{Device, Error};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::{
        attention::KvLayout,
        index::{
            BlockSparseSelectSpec, EstimatePass, EstimateSpec, FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec,
            VerticalSlashSelectSpec, workspace,
        },
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DTYPE: MmaType = MmaType::Bf16;
const ARCH: Arch = Arch::Sm80;
const HEAD_DIM: usize = 64;
const POISONED: f32 = f32::from_bits(u32::MAX);

fn values(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&bits| decode(DTYPE, bits) as f32).collect()
}

/// Selection of columns and offsets from random scores with many ties.
pub fn vertical_slash(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let (block, max_kv, capacity) = (64, 1300, 200u32);
    let lengths = [1300u32, 65, 700];
    let sizes = [[40, 130], [25, 61]];
    let (columns, slashes) = (Budget { size: 0, minimum: 30, forced: 5 }, Budget { size: 0, minimum: 20, forced: 7 });
    let heads = sizes[0].len();
    let (batch, room) = (lengths.len(), workspace::offset_capacity(max_kv, block));
    let entries = batch * heads;
    // Beyond the length: scores that would win.
    let mut scores = || -> Vec<f32> {
        let place = |i: usize| (i as u32 % max_kv, lengths[i / max_kv as usize / heads]);
        let score = |i| {
            let (key, length) = place(i);
            if key < length { f32::from(random.random_range(0..40u8)) / 8.0 } else { f32::INFINITY }
        };
        (0..entries * max_kv as usize).map(score).collect()
    };
    let (vertical, slash) = (scores(), scores());
    let launch = Launch::new(&VerticalSlashSelectSpec { block, arch: ARCH }, [2, heads as u32, batch as u32])
        .array("vertical_scores", vertical.clone())
        .array("slash_scores", slash.clone())
        .u64("scores_batch", (4 * heads) as u64 * u64::from(max_kv))
        .u64("scores_head", 4 * u64::from(max_kv))
        .null("kv_start")
        .u32("kv_rows", 0)
        .array("kv_length", lengths.to_vec())
        .u32("max_kv", max_kv)
        .array("vertical_sizes", sizes[0].to_vec())
        .array("slash_sizes", sizes[1].to_vec())
        .u32("min_columns", columns.minimum)
        .u32("min_slashes", slashes.minimum)
        .u32("forced_columns", columns.forced)
        .u32("forced_slashes", slashes.forced)
        .poisoned("columns", 4 * entries * capacity as usize)
        .u64("columns_batch", (4 * heads) as u64 * u64::from(capacity))
        .u64("columns_head", 4 * u64::from(capacity))
        .u32("column_capacity", capacity)
        .poisoned("column_counts", 4 * entries)
        .poisoned("offsets", 4 * entries * room as usize)
        .u64("offsets_batch", (4 * heads) as u64 * u64::from(room))
        .u64("offsets_head", 4 * u64::from(room))
        .u32("offset_capacity", room)
        .poisoned("offset_counts", 4 * entries)
        .array("status", vec![0u32]);
    let outputs =
        ["columns", "column_counts", "offsets", "offset_counts", "status"].map(|name| (name, Agreement::Exact));
    Scene::new(launch, &outputs, move |outcome| {
        let (mut all_columns, mut counts) = (Vec::new(), Vec::new());
        let (mut all_offsets, mut offset_counts) = (Vec::new(), Vec::new());
        for entry in 0..entries {
            let own = |scores: &[f32]| scores[entry * max_kv as usize..][..lengths[entry / heads] as usize].to_vec();
            let [columns_size, slashes_size] = [0, 1].map(|kind| sizes[kind][entry % heads]);
            let (columns, slashes) =
                (Budget { size: columns_size, ..columns }, Budget { size: slashes_size, ..slashes });
            let mut index = index::vertical_slash(&own(&vertical), &own(&slash), columns, slashes, block);
            counts.push(index.columns.len() as u32);
            index.columns.resize(capacity as usize, 0);
            all_columns.extend(index.columns);
            offset_counts.push(index.offsets.len() as u32);
            index.offsets.resize(room as usize, 0);
            all_offsets.extend(index.offsets);
        }
        let read = |name| outcome.read::<u32>(name);
        let (found_columns, found_counts) = (read("columns")?, read("column_counts")?);
        let (found_offsets, found_lengths, status) = (read("offsets")?, read("offset_counts")?, read("status")?);
        Ok(equal("counts", &found_counts, &counts)
            .and_then(|()| equal("columns", &found_columns, &all_columns))
            .and_then(|()| equal("offset counts", &found_lengths, &offset_counts))
            .and_then(|()| equal("offsets", &found_offsets, &all_offsets))
            .and_then(|()| equal("status", &status, &[0])))
    })
}

/// Means of blocks of keys.
pub fn key_means(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let (lengths, max_kv, block) = ([200usize, 65], 200usize, 64usize);
    let blocks = max_kv.div_ceil(block);
    let k = normals(&mut random, DTYPE, lengths.len() * max_kv * HEAD_DIM);
    let spec = KeyMeansSpec {
        block: block as u32,
        head_dim: HEAD_DIM as u32,
        dtype: DTYPE,
        kv: KvLayout::Strided,
        arch: ARCH,
    };
    let elements = lengths.len() * blocks * HEAD_DIM;
    let launch = Launch::new(&spec, [blocks as u32, 1, lengths.len() as u32])
        .array("k", k.clone())
        .u64("k_batch", (2 * max_kv * HEAD_DIM) as u64)
        .u64("k_row", 2 * HEAD_DIM as u64)
        .u64("k_head", 2 * HEAD_DIM as u64)
        .null("kv_start")
        .u32("kv_rows", 0)
        .array("kv_length", lengths.map(|l| l as u32).to_vec())
        .u32("max_kv", max_kv as u32)
        .poisoned("key_means", 4 * elements)
        .u64("means_batch", (4 * blocks * HEAD_DIM) as u64)
        .u64("means_head", (4 * blocks * HEAD_DIM) as u64)
        .array("status", vec![0u32]);
    Scene::new(launch, &[("key_means", Agreement::Exact), ("status", Agreement::Exact)], move |outcome| {
        let mut expected = vec![POISONED; elements];
        for (sequence, &length) in lengths.iter().enumerate() {
            let rows = values(&k[sequence * max_kv * HEAD_DIM..][..length * HEAD_DIM]);
            let means = rows.chunks(block * HEAD_DIM).flat_map(|rows| index::mean(rows, HEAD_DIM));
            expected[sequence * blocks * HEAD_DIM..].iter_mut().zip(means).for_each(|(to, mean)| *to = mean);
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        Ok(equal("means", &bits(&outcome.read("key_means")?), &bits(&expected)))
    })
}

/// Key blocks of every row block, given the means of the keys.
pub fn block_sparse(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let lengths = [(200usize, 2200usize), (65, 130)];
    let (max_q, max_kv) = (200usize, 2200usize);
    let options = Pooled { block: (64, 64), causal: true, budget: 0, diagonal: true, sink: true };
    let budgets = [4u32, 9];
    let (heads, capacity) = (budgets.len(), 12usize);
    let (row_blocks, key_blocks) = (max_q.div_ceil(64), max_kv.div_ceil(64));
    let q = normals(&mut random, DTYPE, lengths.len() * max_q * heads * HEAD_DIM);
    let k: Vec<Vec<u16>> = lengths.iter().map(|l| normals(&mut random, DTYPE, l.1 * HEAD_DIM)).collect();
    let mut means = vec![POISONED; lengths.len() * key_blocks * HEAD_DIM];
    for (keys, to) in k.iter().zip(means.chunks_mut(key_blocks * HEAD_DIM)) {
        let own = values(keys);
        let own = own.chunks(64 * HEAD_DIM).flat_map(|rows| index::mean(rows, HEAD_DIM));
        to.iter_mut().zip(own).for_each(|(to, mean)| *to = mean);
    }
    let spec = BlockSparseSelectSpec {
        block: (64, 64),
        key_blocks: 64,
        head_dim: HEAD_DIM as u32,
        dtype: DTYPE,
        causal: true,
        arch: ARCH,
    };
    let entries = lengths.len() * heads * row_blocks;
    let launch = Launch::new(&spec, [row_blocks as u32, heads as u32, lengths.len() as u32])
        .array("q", q.clone())
        .u64("q_batch", (2 * max_q * heads * HEAD_DIM) as u64)
        .u64("q_row", (2 * heads * HEAD_DIM) as u64)
        .u64("q_head", 2 * HEAD_DIM as u64)
        .array("key_means", means)
        .u64("means_batch", (4 * key_blocks * HEAD_DIM) as u64)
        .u64("means_head", (4 * key_blocks * HEAD_DIM) as u64)
        .null("q_start")
        .u32("q_rows", 0)
        .array("q_length", lengths.map(|l| l.0 as u32).to_vec())
        .u32("max_q", max_q as u32)
        .null("kv_start")
        .u32("kv_rows", 0)
        .array("kv_length", lengths.map(|l| l.1 as u32).to_vec())
        .u32("max_kv", max_kv as u32)
        .u32("heads", heads as u32)
        .u32("heads_per_kv", heads as u32)
        .null("head_map")
        .array("budgets", budgets.to_vec())
        .u32("forced", FORCE_DIAGONAL | FORCE_SINK)
        .poisoned("partial_counts", 4 * entries)
        .u64("counts_batch", (4 * heads * row_blocks) as u64)
        .u64("counts_head", 4 * row_blocks as u64)
        .poisoned("partial_indices", 4 * entries * capacity)
        .u64("indices_batch", (4 * heads * row_blocks * capacity) as u64)
        .u64("indices_head", (4 * row_blocks * capacity) as u64)
        .u64("indices_row", 4 * capacity as u64)
        .u32("capacity", capacity as u32)
        .array("status", vec![0u32]);
    let outputs = ["partial_counts", "partial_indices", "status"].map(|name| (name, Agreement::Exact));
    Scene::new(launch, &outputs, move |outcome| {
        let (mut counts, mut indices) = (Vec::new(), Vec::new());
        for (sequence, &(q_len, _)) in lengths.iter().enumerate() {
            for (head, &budget) in budgets.iter().enumerate() {
                let row = |row| values(&q[((sequence * max_q + row) * heads + head) * HEAD_DIM..][..HEAD_DIM]);
                let queries: Vec<f32> = (0..q_len).flat_map(row).collect();
                let options = Pooled { budget, ..options };
                let mut lists = index::block_sparse(&queries, &values(&k[sequence]), HEAD_DIM, options);
                lists.resize(row_blocks, Vec::new());
                for mut list in lists {
                    counts.push(list.len() as u32);
                    list.resize(capacity, 0);
                    indices.extend(list);
                }
            }
        }
        let (found_counts, found) = (outcome.read("partial_counts")?, outcome.read("partial_indices")?);
        let status = outcome.read::<u32>("status")?;
        Ok(equal("counts", &found_counts, &counts)
            .and_then(|()| equal("blocks", &found, &indices))
            .and_then(|()| equal("status", &status, &[0])))
    })
}

const QUERIES: usize = 70;
const KEYS: usize = 600;
const SCALE: f32 = 0.15;
/// Queries of the estimate.
const WINDOW: usize = 64;

/// Inputs of both passes of the estimate: one head of one sequence.
fn estimate(pass: EstimatePass, seed: u64) -> (Launch, Vec<f32>, Vec<f32>) {
    let mut random = StdRng::seed_from_u64(seed);
    let [q, k] = [QUERIES, KEYS].map(|rows| normals(&mut random, DTYPE, rows * HEAD_DIM));
    let spec =
        EstimateSpec { pass, heads: 1, head_dim: HEAD_DIM as u32, dtype: DTYPE, kv: KvLayout::Strided, arch: ARCH };
    let mut launch = Launch::new(&spec, [workspace::estimate_blocks(KEYS as u32, 1), 1, 1]);
    for (name, side) in [("q", &q), ("k", &k)] {
        launch = launch
            .array(name, side.clone())
            .u64(format!("{name}_batch"), 0)
            .u64(format!("{name}_row"), 2 * HEAD_DIM as u64)
            .u64(format!("{name}_head"), 0);
    }
    let launch = launch
        .null("q_start")
        .u32("q_rows", 0)
        .null("q_length")
        .u32("max_q", QUERIES as u32)
        .null("kv_start")
        .u32("kv_rows", 0)
        .null("kv_length")
        .u32("max_kv", KEYS as u32)
        .u32("heads", 1)
        .u32("heads_per_kv", 1)
        .null("head_map")
        .f32("scale", SCALE)
        .u32("slots", 1)
        .null("sets")
        .array("status", vec![0u32]);
    (launch, values(&q), values(&k))
}

/// Row maxima (in base 2) and denominators of the last queries, for each chunk of keys.
pub fn estimate_statistics(seed: u64) -> Scene {
    let (launch, q, k) = estimate(EstimatePass::Statistics, seed);
    let bytes = workspace::statistics_bytes(1, 1, KEYS as u32, 1) as usize;
    let launch = launch.poisoned("statistics", bytes);
    Scene::new(launch, &[("statistics", Agreement::Float(1e-4))], move |outcome| {
        let found = outcome.read::<f32>("statistics")?;
        let mut merged = [0f64; WINDOW];
        for (at, pair) in found.chunks(2).enumerate() {
            merged[at % WINDOW] += f64::from(pair[0]).exp2() * f64::from(pair[1]);
        }
        let expected = (0..WINDOW).map(|row| {
            let position = KEYS - 1 - row;
            let query = &q[(QUERIES - 1 - row) * HEAD_DIM..][..HEAD_DIM];
            let keys = k.chunks(HEAD_DIM).take(position + 1);
            let dot = |key: &[f32]| query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            keys.map(|key| (dot(key) * f64::from(SCALE)).exp()).sum::<f64>().ln() as f32
        });
        let merged: Vec<f32> = merged.iter().map(|sum| sum.ln() as f32).collect();
        Ok(floats("LSE of the last queries", &merged, &expected.collect::<Vec<f32>>(), 1e-5))
    })
}

/// Sums of the last queries' softmax over each column and each slash, given what the first pass leaves.
///
/// # Errors
/// What the embedded backend says of the first pass.
pub fn estimate_scores(seed: u64) -> Result<Scene, Error> {
    let statistics = estimate_statistics(seed).launch.run(&Device::emulator())?.read::<f32>("statistics")?;
    let (launch, q, k) = estimate(EstimatePass::Scores, seed);
    let launch = launch
        .array("statistics", statistics)
        .poisoned("vertical_scores", 4 * KEYS)
        .poisoned("slash_scores", 4 * KEYS)
        .u64("scores_batch", 0)
        .u64("scores_head", 0);
    let outputs = ["vertical_scores", "slash_scores"].map(|name| (name, Agreement::Float(1e-4)));
    Ok(Scene::new(launch, &outputs, move |outcome| {
        let (vertical, slash) = index::estimate(&q, &k, HEAD_DIM, f64::from(SCALE));
        let single = |scores: &[f64]| scores.iter().map(|&score| score as f32).collect::<Vec<f32>>();
        let (found_vertical, found_slash) = (outcome.read("vertical_scores")?, outcome.read("slash_scores")?);
        Ok(floats("columns", &found_vertical, &single(&vertical), 1e-5)
            .and_then(|()| floats("slashes", &found_slash, &single(&slash), 1e-5)))
    }))
}
