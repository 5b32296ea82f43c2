//! Index kernels. What is selected from given scores or means is exact.

use super::{Agreement, Scene, decode, equal, floats, normals};
use crate::{
    oracle::{
        index::{self, Antidiagonal, Budget, Pooled},
        merged_ranges::{RowBlock, merged_ranges as merge},
    },
    testing::launch::Launch,
};
use kernel_core::{Device, Error, device::TensorMap};
use ptx::{
    Arch, BoxShape,
    isa::MmaType,
    kernels::{
        attention::KvLayout,
        index::{
            AntidiagonalSelectSpec, AntidiagonalSumsSpec, BlockSparseSelectSpec, EstimatePass, EstimateSpec,
            FORCE_DIAGONAL, FORCE_SINK, KeyMeansSpec, MERGED_BLOCK, MERGED_ROW_BLOCKS, MergeRule, MergedRangesSpec,
            PatternChoiceSpec, VerticalSlashSelectSpec, share, workspace,
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
    let (columns, slashes) = (
        Budget { size: 0, minimum: 30, forced: 5, share: None },
        Budget { size: 0, minimum: 20, forced: 7, share: Some(0.02) },
    );
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
        .null("vertical_shares")
        .array("slash_shares", slashes.share.map(share).into_iter().chain([0]).collect::<Vec<u32>>())
        .null("head_map")
        .u64("head_map_batch", 0)
        .poisoned("visited", 16 * entries)
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
    let outputs = ["columns", "column_counts", "offsets", "offset_counts", "visited", "status"]
        .map(|name| (name, Agreement::Exact));
    Scene::new(launch, &outputs, move |outcome| {
        let (mut all_columns, mut counts) = (Vec::new(), Vec::new());
        let (mut all_offsets, mut offset_counts) = (Vec::new(), Vec::new());
        let mut visited: Vec<u64> = Vec::new();
        for entry in 0..entries {
            let own = |scores: &[f32]| scores[entry * max_kv as usize..][..lengths[entry / heads] as usize].to_vec();
            let [columns_size, slashes_size] = [0, 1].map(|kind| sizes[kind][entry % heads]);
            let (columns, slashes) =
                (Budget { size: columns_size, ..columns }, Budget { size: slashes_size, ..slashes });
            // Of the second head's slashes no share is asked for.
            let slashes = Budget { share: slashes.share.filter(|_| entry % heads == 0), ..slashes };
            let mut index = index::vertical_slash(&own(&vertical), &own(&slash), columns, slashes, block);
            counts.push(index.columns.len() as u32);
            visited.extend(index::visited(&index, lengths[entry / heads], block));
            index.columns.resize(capacity as usize, 0);
            all_columns.extend(index.columns);
            offset_counts.push(index.offsets.len() as u32);
            index.offsets.resize(room as usize, 0);
            all_offsets.extend(index.offsets);
        }
        let read = |name| outcome.read::<u32>(name);
        let (found_columns, found_counts) = (read("columns")?, read("column_counts")?);
        let outcome_visited = outcome.read::<u64>("visited")?;
        let (found_offsets, found_lengths, status) = (read("offsets")?, read("offset_counts")?, read("status")?);
        Ok(equal("counts", &found_counts, &counts)
            .and_then(|()| equal("columns", &found_columns, &all_columns))
            .and_then(|()| equal("offset counts", &found_lengths, &offset_counts))
            .and_then(|()| equal("offsets", &found_offsets, &all_offsets))
            .and_then(|()| equal("visited", &outcome_visited, &visited))
            .and_then(|()| equal("status", &status, &[0])))
    })
}

/// The authors' tensors from lists of verticals and slashes, some of them empty or without the diagonal and, for the extended
/// rule, with entries that do not exist.
pub fn merged_ranges(rule: MergeRule, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let lengths = [(520u32, 520u32), (100, 700), (200, 130)];
    let (heads, capacity, row_blocks) = (3usize, 45usize, 520u32.div_ceil(MERGED_BLOCK) + 1);
    let mut list = |keys: u32, least: u32, count: usize| -> Vec<i32> {
        let mut drawn: Vec<i32> = (0..count).map(|_| random.random_range(least..keys) as i32).collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    };
    let (mut verticals, mut slashes) = (Vec::new(), Vec::new());
    for (_, keys) in lengths {
        verticals.extend([list(keys, 0, 40), list(keys, 0, 7), list(keys, 0, 44)]);
        slashes.extend([list(keys, 0, 38), vec![], list(keys, 70, 44)]);
    }
    // The first head has the diagonal, the last one what does not exist.
    slashes.iter_mut().step_by(heads).for_each(|list| list.insert(0, 0));
    let wild = rule == MergeRule::Extended;
    if wild {
        slashes.iter_mut().skip(2).step_by(heads).for_each(|list| list.insert(0, -1));
        verticals.iter_mut().skip(2).step_by(heads).for_each(|list| list.push(700));
    }
    slashes.iter_mut().for_each(|list| {
        list.dedup();
        list.reverse();
    });
    let flat = |lists: &[Vec<i32>]| -> Vec<i32> {
        // Behind a list: what would be one more entry of it.
        let padded = |list: &Vec<i32>| (0..capacity).map(|i| list.get(i).copied().unwrap_or(64)).collect::<Vec<_>>();
        lists.iter().flat_map(padded).collect()
    };
    let counts = |lists: &[Vec<i32>]| lists.iter().map(|list| list.len() as u32).collect::<Vec<_>>();
    let rows = lengths.len() * heads * row_blocks as usize;
    let grid = [row_blocks.div_ceil(MERGED_ROW_BLOCKS), heads as u32, lengths.len() as u32];
    let mut launch = Launch::new(&MergedRangesSpec { rule, arch: ARCH }, grid);
    for (names, lists) in [
        (["verticals", "vertical_capacity", "vertical_counts"], &verticals),
        (["slashes", "slash_capacity", "slash_counts"], &slashes),
    ] {
        launch = launch
            .array(names[0], flat(lists))
            .u64(format!("{}_batch", names[0]), (4 * heads * capacity) as u64)
            .u64(format!("{}_head", names[0]), 4 * capacity as u64)
            .u32(names[1], capacity as u32)
            .array(names[2], counts(lists))
            .u64(format!("{}_batch", names[2]), 4 * heads as u64);
    }
    let launch = launch
        .null("q_start")
        .array("q_length", lengths.map(|l| l.0).to_vec())
        .u32("q_rows", 0)
        .u32("max_q", 520)
        .null("kv_start")
        .array("kv_length", lengths.map(|l| l.1).to_vec())
        .u32("kv_rows", 0)
        .u32("max_kv", 700)
        .u32("row_blocks", row_blocks)
        .poisoned("block_count", 4 * rows)
        .poisoned("block_offset", 4 * rows * capacity)
        .poisoned("column_count", 4 * rows)
        .poisoned("column_index", 4 * rows * capacity)
        .array("status", vec![0u32]);
    let outputs =
        ["block_count", "block_offset", "column_count", "column_index", "status"].map(|name| (name, Agreement::Exact));
    Scene::new(launch, &outputs, move |outcome| {
        let pairs = verticals.iter().zip(&slashes).enumerate();
        let expected = pairs.flat_map(|(pair, (verticals, slashes))| {
            let (q_len, kv_len) = lengths[pair / heads];
            let mut rows = merge(rule, q_len as usize, kv_len as usize, verticals, slashes);
            rows.resize(row_blocks as usize, RowBlock::default());
            rows
        });
        let (blocks, columns): (Vec<_>, Vec<_>) = expected.map(|row| (row.blocks, row.columns)).unzip();
        for (names, lists) in [(["block_count", "block_offset"], blocks), (["column_count", "column_index"], columns)] {
            let counts: Vec<i32> = lists.iter().map(|list| list.len() as i32).collect();
            let padded = |mut list: Vec<i32>| {
                list.resize(capacity, 0);
                list
            };
            let entries: Vec<i32> = lists.into_iter().flat_map(padded).collect();
            let (found_counts, found) = (outcome.read(names[0])?, outcome.read(names[1])?);
            let verdict = equal(names[0], &found_counts, &counts).and_then(|()| equal(names[1], &found, &entries));
            if verdict.is_err() {
                return Ok(verdict);
            }
        }
        Ok(equal("status", &outcome.read::<u32>("status")?, &[if wild { 2 } else { 0 }]))
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

/// Key blocks of every row block, given the means of the keys: by budgets, and by a share up to one. The second sequence leaves
/// a head out.
pub fn block_sparse(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let lengths = [(200usize, 2200usize), (65, 130)];
    let (max_q, max_kv) = (200usize, 2200usize);
    let options =
        Pooled { block: (64, 64), causal: true, scale: 2.0, budget: 0, share: None, diagonal: true, sink: true };
    let budgets = [4u32, 9, 11];
    let shares = [None, None, Some(0.7)];
    let head_map = [0, 1, 2, 0, u32::MAX, 2];
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
    let grid = [(row_blocks as u32).div_ceil(spec.row_blocks()), heads as u32, lengths.len() as u32];
    let launch = Launch::new(&spec, grid)
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
        .array("head_map", head_map.to_vec())
        .u64("head_map_batch", 4 * heads as u64)
        .f32("scale", options.scale)
        .array("budgets", budgets.to_vec())
        .array("shares", shares.map(|given| given.map_or(0, share)).to_vec())
        .u32("forced", FORCE_DIAGONAL | FORCE_SINK)
        .poisoned("weights", 4 * entries * key_blocks)
        .u64("weights_batch", (4 * heads * row_blocks * key_blocks) as u64)
        .u64("weights_head", (4 * row_blocks * key_blocks) as u64)
        .u64("weights_row", 4 * key_blocks as u64)
        .poisoned("partial_counts", 4 * entries)
        .u64("counts_batch", (4 * heads * row_blocks) as u64)
        .u64("counts_head", 4 * row_blocks as u64)
        .poisoned("partial_indices", 4 * entries * capacity)
        .u64("indices_batch", (4 * heads * row_blocks * capacity) as u64)
        .u64("indices_head", (4 * row_blocks * capacity) as u64)
        .u64("indices_row", 4 * capacity as u64)
        .u32("capacity", capacity as u32)
        .array("status", vec![0u32]);
    let outputs = [
        ("weights", Agreement::Float(1e-5)),
        ("partial_counts", Agreement::Exact),
        ("partial_indices", Agreement::Exact),
        ("status", Agreement::Exact),
    ];
    Scene::new(launch, &outputs, move |outcome| {
        let found_weights = outcome.read::<f32>("weights")?;
        let (mut seen, mut weights) = (Vec::new(), Vec::new());
        let (mut counts, mut indices) = (Vec::new(), Vec::new());
        for (sequence, &(q_len, kv_len)) in lengths.iter().enumerate() {
            for (head, &budget) in budgets.iter().enumerate() {
                let row = |row| values(&q[((sequence * max_q + row) * heads + head) * HEAD_DIM..][..HEAD_DIM]);
                let queries: Vec<f32> = (0..q_len).flat_map(row).collect();
                let (options, keys) = (Pooled { budget, share: shares[head], ..options }, values(&k[sequence]));
                let mut lists = Vec::new();
                if head_map[sequence * heads + head] == u32::MAX {
                    // No row block has any.
                } else if shares[head].is_none() {
                    lists = index::block_sparse(&queries, &keys, HEAD_DIM, options);
                } else {
                    for (row, expected) in index::pooled_weights(&queries, &keys, HEAD_DIM, options).iter().enumerate()
                    {
                        let entry = (sequence * heads + head) * row_blocks + row;
                        let own = &found_weights[entry * key_blocks..][..expected.len()];
                        lists.push(index::pooled_blocks(own, row, q_len, kv_len, options));
                        seen.extend_from_slice(own);
                        weights.extend(expected.iter().map(|weight| *weight as f32));
                    }
                }
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
        Ok(floats("weights", &seen, &weights, 1e-5)
            .and_then(|()| equal("counts", &found_counts, &counts))
            .and_then(|()| equal("blocks", &found, &indices))
            .and_then(|()| equal("status", &status, &[0])))
    })
}

/// Which of two patterns each head takes, given scores of columns and means of keys.
pub fn pattern_choice(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let lengths = [(90usize, 4500usize), (5, 130), (0, 70)];
    let (max_q, max_kv, block) = (90usize, 4500usize, 32usize);
    let (batch, thresholds) = (lengths.len(), [0.05f32, 0.25, 0.5]);
    let (heads, key_blocks) = (thresholds.len(), max_kv.div_ceil(block));
    let q = normals(&mut random, DTYPE, batch * max_q * heads * HEAD_DIM);
    let k: Vec<Vec<u16>> = lengths.iter().map(|l| normals(&mut random, DTYPE, l.1 * HEAD_DIM)).collect();
    let mut means = vec![POISONED; batch * key_blocks * HEAD_DIM];
    for (keys, to) in k.iter().zip(means.chunks_mut(key_blocks * HEAD_DIM)) {
        let own = values(keys);
        let own = own.chunks(block * HEAD_DIM).flat_map(|rows| index::mean(rows, HEAD_DIM));
        to.iter_mut().zip(own).for_each(|(to, mean)| *to = mean);
    }
    let queries = |sequence: usize, head: usize| -> Vec<f32> {
        let row = |row| values(&q[((sequence * max_q + row) * heads + head) * HEAD_DIM..][..HEAD_DIM]);
        (0..lengths[sequence].0).flat_map(row).collect()
    };
    let (mut scores, mut expected) = (vec![POISONED; batch * heads * max_kv], Vec::new());
    for (entry, scores) in scores.chunks_mut(max_kv).enumerate() {
        let (queries, keys) = (queries(entry / heads, entry % heads), values(&k[entry / heads]));
        let columns = index::estimate(&queries, &keys, HEAD_DIM, f64::from(SCALE)).0;
        // Zeros up to a multiple of four, as the estimate leaves them.
        let padded = columns.len().next_multiple_of(4);
        let columns = columns.iter().map(|&score| score as f32).chain(std::iter::repeat(0.0));
        scores.iter_mut().zip(columns.take(padded)).for_each(|(to, score)| *to = score);
        expected.push(index::divergence(&queries, &keys, HEAD_DIM, f64::from(SCALE), block) as f32);
    }
    let spec = PatternChoiceSpec {
        block: block as u32,
        key_blocks: key_blocks as u32,
        head_dim: HEAD_DIM as u32,
        dtype: DTYPE,
        arch: ARCH,
    };
    let entries = batch * heads;
    let launch = Launch::new(&spec, [1, heads as u32, batch as u32])
        .array("q", q)
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
        .f32("scale", SCALE)
        .array("vertical_scores", scores)
        .u64("scores_batch", (4 * heads * max_kv) as u64)
        .u64("scores_head", 4 * max_kv as u64)
        .array("thresholds", thresholds.to_vec())
        .poisoned("vertical_slash_heads", 4 * entries)
        .poisoned("block_sparse_heads", 4 * entries)
        .poisoned("divergences", 4 * entries)
        .array("status", vec![0u32]);
    let outputs = [
        ("divergences", Agreement::Float(1e-4)),
        ("vertical_slash_heads", Agreement::Exact),
        ("block_sparse_heads", Agreement::Exact),
        ("status", Agreement::Exact),
    ];
    Scene::new(launch, &outputs, move |outcome| {
        let divergences = outcome.read::<f32>("divergences")?;
        let (mut columns, mut blocks) = (vec![u32::MAX; entries], vec![u32::MAX; entries]);
        for (entry, divergence) in divergences.iter().enumerate().filter(|(entry, _)| lengths[entry / heads].0 > 0) {
            let map = if *divergence < thresholds[entry % heads] { &mut blocks } else { &mut columns };
            map[entry] = (entry % heads) as u32;
        }
        // A divergence of nothing is the root of what rounding leaves.
        let with_queries = divergences.iter().zip(&expected).filter(|pair| *pair.1 > 0.0);
        let (found, wanted): (Vec<f32>, Vec<f32>) = with_queries.unzip();
        let read = |name| outcome.read::<u32>(name);
        let (of_columns, of_blocks) = (read("vertical_slash_heads")?, read("block_sparse_heads")?);
        let status = read("status")?;
        Ok(floats("divergences", &found, &wanted, 1e-3)
            .and_then(|()| equal("columns", &of_columns, &columns))
            .and_then(|()| equal("blocks", &of_blocks, &blocks))
            .and_then(|()| equal("status", &status, &[0])))
    })
}

const QUERIES: usize = 70;
const KEYS: usize = 600;
const SCALE: f32 = 0.15;
/// Queries of the estimate.
const WINDOW: usize = 64;

/// Heads of the estimate: one, or as many as one block of the text for sm_90a has, which then needs a second block.
const fn estimate_heads(arch: Arch) -> usize {
    match arch {
        Arch::Sm80 => 1,
        Arch::Sm90a => 4,
    }
}

/// Inputs of both passes of the estimate, of one sequence: some query heads, one after the other, and their keys.
fn estimate(pass: EstimatePass, arch: Arch, seed: u64) -> (Launch, Vec<f32>, Vec<f32>) {
    let mut random = StdRng::seed_from_u64(seed);
    let heads = estimate_heads(arch);
    let [q, k] = [heads * QUERIES, KEYS].map(|rows| normals(&mut random, DTYPE, rows * HEAD_DIM));
    let row = 2 * HEAD_DIM as u64;
    let spec = EstimateSpec {
        pass,
        heads: heads as u32,
        head_dim: HEAD_DIM as u32,
        dtype: DTYPE,
        kv: KvLayout::Strided,
        arch,
    };
    let mut launch = Launch::new(&spec, [workspace::estimate_blocks(arch, KEYS as u32, heads as u32), 1, 1]);
    for (name, side, head) in [("q", &q, QUERIES as u64 * row), ("k", &k, 0)] {
        launch = launch
            .array(name, side.clone())
            .u64(format!("{name}_batch"), 0)
            .u64(format!("{name}_row"), row)
            .u64(format!("{name}_head"), head);
    }
    if arch == Arch::Sm90a {
        let map = TensorMap {
            address: 0,
            dtype: DTYPE,
            shape: [HEAD_DIM, KEYS, 1, 1].map(|entries| entries as u64),
            strides: [row; 3],
            box_shape: BoxShape { columns: 0, rows: 0, stride: 1 },
        };
        launch = launch.tensor_map("k_map", "k", map);
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
        .u32("heads", heads as u32)
        .u32("heads_per_kv", heads as u32)
        .null("head_map")
        .f32("scale", SCALE)
        .u32("slots", heads as u32)
        .null("sets")
        .array("status", vec![0u32]);
    (launch, values(&q), values(&k))
}

/// Row maxima (in base 2) and denominators of the last queries, for each chunk of keys.
pub fn estimate_statistics(arch: Arch, seed: u64) -> Scene {
    let (launch, q, k) = estimate(EstimatePass::Statistics, arch, seed);
    let heads = estimate_heads(arch);
    let bytes = workspace::statistics_bytes(arch, 1, heads as u32, KEYS as u32, heads as u32) as usize;
    let launch = launch.poisoned("statistics", bytes);
    Scene::new(launch, &[("statistics", Agreement::Float(1e-4))], move |outcome| {
        let found = outcome.read::<f32>("statistics")?;
        let (mut merged, of_head) = (vec![0f64; heads * WINDOW], found.len() / 2 / heads);
        for (at, pair) in found.chunks(2).enumerate() {
            merged[at / of_head * WINDOW + at % WINDOW] += f64::from(pair[0]).exp2() * f64::from(pair[1]);
        }
        let expected = (0..heads * WINDOW).map(|at| {
            let (head, row) = (at / WINDOW, at % WINDOW);
            let position = KEYS - 1 - row;
            let query = &q[(head * QUERIES + QUERIES - 1 - row) * HEAD_DIM..][..HEAD_DIM];
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
pub fn estimate_scores(arch: Arch, seed: u64) -> Result<Scene, Error> {
    let statistics = estimate_statistics(arch, seed).launch.run(&Device::emulator())?.read::<f32>("statistics")?;
    let (launch, q, k) = estimate(EstimatePass::Scores, arch, seed);
    let heads = estimate_heads(arch);
    let launch = launch
        .array("statistics", statistics)
        .poisoned("vertical_scores", 4 * heads * KEYS)
        .poisoned("slash_scores", 4 * heads * KEYS)
        .u64("scores_batch", 0)
        .u64("scores_head", 4 * KEYS as u64);
    let outputs = ["vertical_scores", "slash_scores"].map(|name| (name, Agreement::Float(1e-4)));
    Ok(Scene::new(launch, &outputs, move |outcome| {
        let heads = q.chunks(QUERIES * HEAD_DIM).map(|q| index::estimate(q, &k, HEAD_DIM, f64::from(SCALE)));
        let (vertical, slash): (Vec<_>, Vec<_>) = heads.unzip();
        let single = |scores: &[Vec<f64>]| scores.iter().flatten().map(|&score| score as f32).collect::<Vec<f32>>();
        let (found_vertical, found_slash) = (outcome.read("vertical_scores")?, outcome.read("slash_scores")?);
        Ok(floats("columns", &found_vertical, &single(&vertical), 1e-5)
            .and_then(|()| floats("slashes", &found_slash, &single(&slash), 1e-5)))
    }))
}

const STRIDE: usize = 16;
const CELLS: usize = 128;

/// Maxima, sums and sums of blocks of 64 keys, for every cell of queries: one head of two sequences. On sm_90a two blocks share
/// out the first one's tiles, some of which come in boxes and others with their last rows missing.
pub fn antidiagonal_sums(arch: Arch, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let (stride, lengths) = match arch {
        Arch::Sm80 => (STRIDE, [(300usize, 1300usize), (70, 70)]),
        Arch::Sm90a => (8, [(1100, 2150), (70, 70)]),
    };
    let ((max_q, max_kv), block) = (lengths[0], 64usize);
    let tiles = max_q.div_ceil(CELLS * stride);
    let slice = tiles * CELLS;
    let [q, k] = [max_q, max_kv].map(|rows| normals(&mut random, DTYPE, lengths.len() * rows * HEAD_DIM));
    let (chunks, chunk_blocks) = (max_kv.div_ceil(64 * stride), 64 * stride / block);
    let batch = lengths.len() as u32;
    let spec = AntidiagonalSumsSpec {
        stride: stride as u32,
        block: block as u32,
        head_dim: HEAD_DIM as u32,
        dtype: DTYPE,
        kv: KvLayout::Strided,
        arch,
    };
    let grid = match arch {
        Arch::Sm80 => workspace::antidiagonal_grid(batch, 1, tiles as u32, max_kv as u32, stride as u32),
        Arch::Sm90a => [2, 1, batch],
    };
    let mut launch = Launch::new(&spec, grid);
    for (name, side, rows) in [("q", &q, max_q), ("k", &k, max_kv)] {
        launch = launch
            .array(name, side.clone())
            .u64(format!("{name}_batch"), (2 * rows * HEAD_DIM) as u64)
            .u64(format!("{name}_row"), 2 * HEAD_DIM as u64)
            .u64(format!("{name}_head"), 2 * HEAD_DIM as u64);
        let row = 2 * HEAD_DIM as u64;
        let map = TensorMap {
            address: 0,
            dtype: DTYPE,
            shape: [HEAD_DIM, rows, 1, lengths.len()].map(|entries| entries as u64),
            strides: [row, row, rows as u64 * row],
            box_shape: BoxShape { columns: 0, rows: 0, stride: 1 },
        };
        launch = launch.tensor_map(format!("{name}_map"), name, map);
    }
    if arch == Arch::Sm90a {
        launch = launch.u32("slots", 1).u32("tiles", tiles as u32);
    }
    let launch = launch
        .null("q_start")
        .u32("q_rows", 0)
        .array("q_length", lengths.map(|l| l.0 as u32).to_vec())
        .u32("max_q", max_q as u32)
        .null("kv_start")
        .u32("kv_rows", 0)
        .array("kv_length", lengths.map(|l| l.1 as u32).to_vec())
        .u32("max_kv", max_kv as u32)
        .u32("heads", 1)
        .u32("heads_per_kv", 1)
        .null("head_map")
        .f32("scale", SCALE)
        .array("status", vec![0u32])
        .u32("first_tile", 0)
        .poisoned("statistics", 8 * lengths.len() * slice * chunks)
        .poisoned("block_sums", 4 * lengths.len() * slice * chunks * chunk_blocks);
    let outputs = ["statistics", "block_sums"].map(|name| (name, Agreement::Float(1e-4)));
    Scene::new(launch, &outputs, move |outcome| {
        let (statistics, sums) = (outcome.read::<f32>("statistics")?, outcome.read::<f32>("block_sums")?);
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for (sequence, &(q_len, kv_len)) in lengths.iter().enumerate() {
            let queries = values(&q[sequence * max_q * HEAD_DIM..][..q_len * HEAD_DIM]);
            let keys = values(&k[sequence * max_kv * HEAD_DIM..][..kv_len * HEAD_DIM]);
            // A row block of one cell: its masses are that cell's weights.
            let options = Antidiagonal { stride, block: (stride, block), threshold: 1.0, limit: 0 };
            let masses = index::antidiagonal_masses(&queries, &keys, HEAD_DIM, f64::from(SCALE), options);
            for (cell, masses) in masses.iter().enumerate() {
                let row = (sequence * slice + cell) * chunks;
                let relative = |chunk: usize| {
                    let [max, sum] = [0, 1].map(|i| f64::from(statistics[(row + chunk) * 2 + i]));
                    (max.exp2(), sum)
                };
                let seen = masses.len().div_ceil(chunk_blocks);
                let all: f64 = (0..seen).map(|chunk| relative(chunk).0 * relative(chunk).1).sum();
                for (block, mass) in masses.iter().enumerate() {
                    let part = f64::from(sums[row * chunk_blocks + block]);
                    found.push((relative(block / chunk_blocks).0 * part / all) as f32);
                    expected.push(*mass as f32);
                }
            }
        }
        Ok(floats("weights of cells", &found, &expected, 1e-5))
    })
}

/// Key blocks of every row block, from sums that come as weights between 0 and 1 with many ties; every chunk's maximum is 0
/// or 1.
pub fn antidiagonal_select(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let lengths = [(200usize, 2200usize), (65, 130), (0, 64)];
    let (max_q, max_kv, block) = (200usize, 2200usize, (64usize, 64usize));
    let asked = [(0.5f32, 100u32), (0.9, 100), (1.0, 9)];
    let (batch, heads, capacity) = (lengths.len(), asked.len(), 40usize);
    let (row_blocks, key_blocks) = (max_q.div_ceil(block.0), max_kv.div_ceil(block.1));
    let (chunks, chunk_blocks) = (max_kv.div_ceil(64 * STRIDE), 64 * STRIDE / block.1);
    let cells = batch * heads * CELLS;
    // What is not visible is not read either: whatever stands there.
    let block_sums: Vec<f32> =
        (0..cells * chunks * chunk_blocks).map(|_| f32::from(random.random_range(0..12u8)) / 16.0).collect();
    let cell = block.0 / STRIDE;
    let statistics: Vec<f32> = block_sums
        .chunks(chunk_blocks)
        .flat_map(|sums| [f32::from(random.random_range(0..2u8)), sums.iter().sum::<f32>()])
        .collect();
    let spec =
        AntidiagonalSelectSpec { stride: STRIDE as u32, block: (64, 64), key_blocks: key_blocks as u32, arch: ARCH };
    let entries = batch * heads * row_blocks;
    let launch = Launch::new(&spec, [row_blocks as u32, heads as u32, batch as u32])
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
        .u32("first_row_block", 0)
        .array("statistics", statistics.clone())
        .array("block_sums", block_sums.clone())
        .u32("slice_cells", CELLS as u32)
        .array("shares", asked.map(|(threshold, _)| share(threshold)).to_vec())
        .array("limits", asked.map(|(_, limit)| limit).to_vec())
        .poisoned("masses", 4 * entries * key_blocks)
        .u64("masses_batch", (4 * heads * row_blocks * key_blocks) as u64)
        .u64("masses_head", (4 * row_blocks * key_blocks) as u64)
        .u64("masses_row", 4 * key_blocks as u64)
        .poisoned("partial_counts", 4 * entries)
        .u64("counts_batch", (4 * heads * row_blocks) as u64)
        .u64("counts_head", 4 * row_blocks as u64)
        .poisoned("partial_indices", 4 * entries * capacity)
        .u64("indices_batch", (4 * heads * row_blocks * capacity) as u64)
        .u64("indices_head", (4 * row_blocks * capacity) as u64)
        .u64("indices_row", 4 * capacity as u64)
        .u32("capacity", capacity as u32)
        .array("status", vec![0u32]);
    let outputs = [
        ("masses", Agreement::Float(1e-5)),
        ("partial_counts", Agreement::Exact),
        ("partial_indices", Agreement::Exact),
        ("status", Agreement::Exact),
    ];
    Scene::new(launch, &outputs, move |outcome| {
        let found_masses = outcome.read::<f32>("masses")?;
        let (mut masses, mut counts, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = Vec::new();
        for entry in 0..entries {
            let (pair, row) = (entry / row_blocks, entry % row_blocks);
            let ((q_len, kv_len), (threshold, limit)) = (lengths[pair / heads], asked[pair % heads]);
            let own = &found_masses[entry * key_blocks..][..key_blocks];
            let mut list = Vec::new();
            let rows = q_len.min((row + 1) * block.0).saturating_sub(row * block.0);
            if rows > 0 {
                let options = Antidiagonal { stride: STRIDE, block, threshold, limit };
                list = index::antidiagonal(own, row, q_len, kv_len, options);
                let visible = (kv_len - q_len + row * block.0 + rows).div_ceil(block.1);
                let read = visible.div_ceil(chunk_blocks);
                let mut expected = vec![0f64; visible];
                for cell in row * cell..row * cell + rows.div_ceil(STRIDE) {
                    let at = (pair * CELLS + cell) * chunks;
                    let weight = |chunk: usize| f64::from(statistics[(at + chunk) * 2]).exp2();
                    let all: f64 =
                        (0..read).map(|chunk| weight(chunk) * f64::from(statistics[(at + chunk) * 2 + 1])).sum();
                    for (block, mass) in expected.iter_mut().enumerate() {
                        let part = f64::from(block_sums[at * chunk_blocks + block]);
                        *mass += weight(block / chunk_blocks) * part / all;
                    }
                }
                masses.extend(expected.into_iter().map(|mass| mass as f32));
                seen.extend_from_slice(&own[..visible]);
            }
            counts.push(list.len() as u32);
            list.resize(capacity, 0);
            indices.extend(list);
        }
        let (found_counts, found) = (outcome.read("partial_counts")?, outcome.read("partial_indices")?);
        let status = outcome.read::<u32>("status")?;
        Ok(floats("masses", &seen, &masses, 1e-5)
            .and_then(|()| equal("counts", &found_counts, &counts))
            .and_then(|()| equal("blocks", &found, &indices))
            .and_then(|()| equal("status", &status, &[0])))
    })
}
