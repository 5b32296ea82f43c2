//! Attention of decoding: parts of the keys of a long request beside a short one, and their merging.

use super::{
    Agreement, Scene, Verdict,
    attention::{DTYPE, Layout},
    equal, floats, half_outputs, normal,
};
use crate::{
    oracle::{self, Mask, Problem},
    testing::launch::Launch,
};
use ptx::{
    Arch,
    kernels::attention::{AttentionSpec, MergeSpec, Partition, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const KV_HEADS: usize = 2;
/// Query heads that share keys: row blocks begin in the middle of a query row.
const GROUP: usize = 3;
const HEADS: usize = KV_HEADS * GROUP;
const ROWS: usize = 128;
/// The rule of the parts, and places of a KV head.
const LEAST_BLOCKS: usize = 2;
const PLACES: usize = 8;
/// What was not written.
const NOTHING: f32 = f32::from_bits(u32::MAX);
/// Weights are rounded to half precision before they meet the values.
const TOLERANCE: f64 = 1e-2;

/// The parts of the first of `row_blocks`: which of `blocks` key blocks each has.
fn parts(blocks: usize, row_blocks: usize) -> Vec<std::ops::Range<usize>> {
    let most = (PLACES / row_blocks).max(1);
    let length = blocks.div_ceil(blocks.div_ceil(LEAST_BLOCKS).clamp(1, most)).max(1);
    let parts = blocks.div_ceil(length).max(1);
    (0..parts).map(|part| part * length..((part + 1) * length).min(blocks)).collect()
}

/// The kernel that computes parts: dense, or of listed blocks.
pub fn attention_parts(pattern: Pattern, arch: Arch, seed: u64) -> Scene {
    // (queries, keys): two row blocks, the second with few rows, and several parts; one of each. With parts long enough for
    // every stage of a pipeline to be used again.
    let (key_block, head_dim, lengths) = match arch {
        Arch::Sm80 => (64, 64, [(50, 700), (37, 60)]),
        Arch::Sm90a => (128, 128, [(50, 2500), (37, 60)]),
    };
    let spec = AttentionSpec::new(pattern, (ROWS as u32, key_block as u32), head_dim as u32, DTYPE, arch);
    let spec = AttentionSpec { causal: false, partition: Partition::Keys, ..spec };
    let (batch, max_q, max_kv) = (lengths.len(), lengths[0].0, lengths[0].1);
    let mut random = StdRng::seed_from_u64(seed);
    let queries = Layout { lengths, rows: max_q, heads: HEADS, head_dim };
    let keys = Layout { lengths, rows: max_kv, heads: KV_HEADS, head_dim };
    let q = queries.random(&mut random, |l| l.0);
    let [k, v] = [(); 2].map(|()| keys.random(&mut random, |l| l.1));
    let scale = 1.0 / (head_dim as f32).sqrt();
    // The key blocks of each (request, KV head), and room for them.
    let capacity = max_kv.div_ceil(key_block);
    let listed = pattern == Pattern::BlockSparse;
    let lists: Vec<Vec<u32>> = lengths
        .iter()
        .flat_map(|&(_, kv)| [kv.div_ceil(key_block) as u32; KV_HEADS])
        .map(|blocks| (0..blocks).filter(|_| !listed || random.random_bool(0.8)).collect())
        .collect();

    let tile = batch * KV_HEADS * PLACES * ROWS;
    let mut launch = Launch::new(&spec, [PLACES as u32, KV_HEADS as u32, batch as u32])
        .array("q", q.clone())
        .array("k", k.clone())
        .array("v", v.clone())
        .poisoned("out", 2 * queries.elements());
    for (name, layout) in [("q", &queries), ("out", &queries), ("k", &keys), ("v", &keys)] {
        launch = layout.arguments(launch, name);
    }
    launch = launch
        .poisoned("lse", 4 * batch * HEADS * max_q)
        .u64("lse_batch", (4 * HEADS * max_q) as u64)
        .u64("lse_head", 4 * max_q as u64)
        .null("q_start")
        .null("kv_start")
        .array("q_length", lengths.map(|l| l.0 as u32).to_vec())
        .array("kv_length", lengths.map(|l| l.1 as u32).to_vec())
        .u32("q_rows", 0)
        .u32("kv_rows", 0)
        .u32("max_q", max_q as u32)
        .u32("max_kv", max_kv as u32)
        .u32("heads_per_kv", GROUP as u32)
        .u32("least_blocks", LEAST_BLOCKS as u32)
        .u32("most_places", PLACES as u32)
        .poisoned("notes", 16 * batch * KV_HEADS)
        .poisoned("part_out", 4 * tile * head_dim)
        .poisoned("part_lse", 4 * tile)
        .f32("scale", scale)
        .array("status", vec![0u32]);
    if listed {
        let entries = lists.iter().flat_map(|list| (0..capacity).map(|i| list.get(i).copied().unwrap_or(u32::MAX)));
        launch = launch
            .array("partial_counts", lists.iter().map(|list| list.len() as u32).collect::<Vec<_>>())
            .array("partial_indices", entries.collect::<Vec<_>>())
            .u32("partial_capacity", capacity as u32)
            .null("full_counts")
            .null("full_indices")
            .u32("full_capacity", 0)
            .u64("counts_batch", 4 * KV_HEADS as u64)
            .u64("counts_head", 4)
            .u64("indices_batch", (4 * capacity * KV_HEADS) as u64)
            .u64("indices_head", 4 * capacity as u64)
            .u64("indices_row", 0);
    }
    let outputs = [
        ("out", Agreement::Half(DTYPE)),
        ("lse", Agreement::Float(1e-3)),
        ("notes", Agreement::Exact),
        ("part_out", Agreement::Float(TOLERANCE)),
        ("part_lse", Agreement::Float(1e-3)),
        ("status", Agreement::Exact),
    ];
    Scene::new(launch, &outputs, move |outcome| {
        let mut out = vec![None; queries.elements()];
        let mut lse = vec![NOTHING; batch * HEADS * max_q];
        let (mut part_out, mut part_lse) = (vec![NOTHING; tile * head_dim], vec![NOTHING; tile]);
        let mut notes = Vec::new();
        for (request, &(q_len, kv_len)) in lengths.iter().enumerate() {
            let row_blocks = (q_len * GROUP).div_ceil(ROWS);
            for kv_head in 0..KV_HEADS {
                let list = &lists[request * KV_HEADS + kv_head];
                let parts = parts(list.len(), row_blocks);
                notes.extend([parts.len(), q_len * GROUP, 0, row_blocks].map(|word| word as u32));
                for (part, blocks) in parts.iter().enumerate() {
                    let sees = |_: i64, key: i64| list[blocks.clone()].contains(&(key as u32 / key_block as u32));
                    let mask = Mask::from_positions(q_len, kv_len, sees);
                    for of_group in 0..GROUP {
                        let head = kv_head * GROUP + of_group;
                        let problem = Problem {
                            q: &queries.values(&q, request, head, q_len),
                            k: &keys.values(&k, request, kv_head, kv_len),
                            v: &keys.values(&v, request, kv_head, kv_len),
                            head_dim,
                            mask: &mask,
                            scale: f64::from(scale),
                            softcap: None,
                            score: None,
                        };
                        let (rows, sums) = oracle::attention(&problem);
                        for (row, values) in rows.chunks(head_dim).enumerate() {
                            if parts.len() == 1 {
                                let at = queries.at(request, row, head);
                                out[at..at + head_dim]
                                    .iter_mut()
                                    .zip(values)
                                    .for_each(|(out, &value)| *out = Some(value));
                                lse[(request * HEADS + head) * max_q + row] = sums[row] as f32;
                                continue;
                            }
                            let packed = row * GROUP + of_group;
                            let place = part * row_blocks + packed / ROWS;
                            let at = ((request * KV_HEADS + kv_head) * PLACES + place) * ROWS + packed % ROWS;
                            part_lse[at] = sums[row] as f32;
                            let own = &mut part_out[at * head_dim..][..head_dim];
                            own.iter_mut().zip(values).for_each(|(out, &value)| *out = value as f32);
                        }
                    }
                }
            }
        }
        let status = outcome.read::<u32>("status")?;
        let verdict = half_outputs("attention", DTYPE, &outcome.read("out")?, &out);
        let verdict = verdict.and(floats("LSE", &outcome.read("lse")?, &lse, 1e-3));
        let verdict = verdict.and(equal("notes", &outcome.read::<u32>("notes")?, &notes));
        let verdict = verdict.and(floats("parts", &outcome.read("part_out")?, &part_out, TOLERANCE));
        let verdict = verdict.and(floats("LSE of parts", &outcome.read("part_lse")?, &part_lse, 1e-3));
        Ok(verdict.and(equal("status", &status, &[0])))
    })
}

/// The kernel that merges parts: of a request with many, one with one, and one without rows; a row sees nothing in most parts,
/// and one in none.
pub fn merge(arch: Arch, seed: u64) -> Scene {
    const HEAD_DIM: usize = 64;
    const REQUESTS: usize = 3;
    /// Parts, rows, first row, row blocks.
    const NOTES: [[usize; 4]; REQUESTS] = [[7, 150, 0, 2], [1, 30, 0, 1], [0, 0, 0, 1]];
    const WIDTH: usize = 16;
    const MAX_Q: usize = 50;
    let spec = MergeSpec { rows: ROWS as u32, head_dim: HEAD_DIM as u32, dtype: DTYPE, arch };
    let mut random = StdRng::seed_from_u64(seed);
    let tile = REQUESTS * KV_HEADS * WIDTH * ROWS;
    let part_out: Vec<f32> = (0..tile * HEAD_DIM).map(|_| normal(&mut random) as f32).collect();
    let mut part_lse: Vec<f32> = (0..tile).map(|_| 40.0 + 3.0 * normal(&mut random) as f32).collect();
    // The place of a part's row of the first request and KV head.
    let row_at = |part: usize, row: usize| (part * NOTES[0][3] + row / ROWS) * ROWS + row % ROWS;
    (0..NOTES[0][0]).for_each(|part| part_lse[row_at(part, 11)] = f32::NEG_INFINITY);
    (0..NOTES[0][0] - 1).for_each(|part| part_lse[row_at(part, 140)] = f32::NEG_INFINITY);
    let row = 2 * HEADS as u64 * HEAD_DIM as u64;
    let launch = Launch::new(&spec, [MergeSpec::blocks((MAX_Q * GROUP) as u32), KV_HEADS as u32, REQUESTS as u32])
        .poisoned("out", REQUESTS * MAX_Q * row as usize)
        .u64("out_batch", MAX_Q as u64 * row)
        .u64("out_row", row)
        .u64("out_head", 2 * HEAD_DIM as u64)
        .poisoned("lse", 4 * REQUESTS * HEADS * MAX_Q)
        .u64("lse_batch", (4 * HEADS * MAX_Q) as u64)
        .u64("lse_head", 4 * MAX_Q as u64)
        .u32("heads_per_kv", GROUP as u32)
        .u32("places", WIDTH as u32)
        .array("notes", NOTES.into_iter().flat_map(|note| [note; KV_HEADS]).flatten().map(|word| word as u32).collect())
        .array("part_out", part_out.clone())
        .array("part_lse", part_lse.clone());
    let outputs = [("out", Agreement::Half(DTYPE)), ("lse", Agreement::Float(1e-5))];
    Scene::new(launch, &outputs, move |outcome| {
        let mut out = vec![None; REQUESTS * MAX_Q * HEADS * HEAD_DIM];
        let mut lse = vec![NOTHING; REQUESTS * HEADS * MAX_Q];
        let [parts, rows, _, row_blocks] = NOTES[0];
        for (kv_head, row) in (0..KV_HEADS).flat_map(|kv_head| (0..rows).map(move |row| (kv_head, row))) {
            let places = (0..parts).map(|part| (kv_head * WIDTH + part * row_blocks + row / ROWS) * ROWS + row % ROWS);
            let places: Vec<usize> = places.collect();
            let sums = || places.iter().map(|&at| f64::from(part_lse[at]));
            let largest = sums().fold(f64::NEG_INFINITY, f64::max);
            let weight = |sum: f64| if sum == f64::NEG_INFINITY { 0.0 } else { (sum - largest).exp() };
            let total: f64 = sums().map(weight).sum();
            let (query, head) = (row / GROUP, kv_head * GROUP + row % GROUP);
            for element in 0..HEAD_DIM {
                let weighted =
                    |&at: &usize| weight(f64::from(part_lse[at])) * f64::from(part_out[at * HEAD_DIM + element]);
                let sum: f64 = places.iter().map(weighted).sum();
                let value = if total == 0.0 { 0.0 } else { sum / total };
                out[(query * HEADS + head) * HEAD_DIM + element] = Some(value);
            }
            lse[head * MAX_Q + query] = (largest + total.ln()) as f32;
        }
        let verdict: Verdict = half_outputs("merged", DTYPE, &outcome.read("out")?, &out);
        Ok(verdict.and(floats("LSE", &outcome.read("lse")?, &lse, 1e-5)))
    })
}
