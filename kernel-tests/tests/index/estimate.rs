//! The estimate of vertical-slash heads: scores of columns and slashes to tolerance.

use super::{
    pooled::{Blocks, pooled, pooled_heads},
    *,
};

/// Scores of all heads of a batch: `[batch][head]`, vertical and slash.
pub(super) type Scores = Vec<Vec<(Vec<f32>, Vec<f32>)>>;

pub(super) struct Estimated {
    pub(super) vertical: Buffer,
    pub(super) slash: Buffer,
    pub(super) scores: Scores,
    pub(super) status: u32,
}

/// Heads of a block that any number of query heads of a KV head can be divided into.
pub(super) fn heads_of_a_block(q: &Side, k: &Side) -> u32 {
    [4, 2, 1].into_iter().find(|heads| (q.heads / k.heads).is_multiple_of(*heads)).unwrap()
}

/// Both passes of the estimate, for all heads.
pub(super) fn estimate(bench: &Bench, dtype: MmaType, q: &Side, k: &Side, layout: Layout, slack: u32) -> Estimated {
    estimate_heads(bench, dtype, q, k, layout, slack, None)
}

/// The same for some heads, in the order of `head_map`.
pub(super) fn estimate_heads(
    bench: &Bench,
    dtype: MmaType,
    q: &Side,
    k: &Side,
    layout: Layout,
    slack: u32,
    head_map: Option<&[u32]>,
) -> Estimated {
    let placed = k.place(bench, dtype, layout, k.longest() + slack);
    estimate_placed(bench, dtype, q, (k, &placed), layout, slack, head_map)
}

/// The same of keys in device memory.
fn estimate_placed(
    bench: &Bench,
    dtype: MmaType,
    q: &Side,
    (k, keys): (&Side, &Placed),
    layout: Layout,
    slack: u32,
    head_map: Option<&[u32]>,
) -> Estimated {
    let (head_dim, batch, arch) = (q.head_dim, q.lengths.len() as u32, bench.arch);
    let heads = head_map.map_or(q.heads, |map| map.len() as u32);
    let map = head_map.map(|map| bench.upload(map));
    let (max_kv, kv) = (keys.max, layout.kv());
    let queries = q.place(bench, dtype, layout.of_queries(), q.longest() + slack);
    // Heads of a map need not share keys, so that each is its own set, unless all are there in order.
    let together = if head_map.is_some() { 1 } else { heads_of_a_block(q, k) };
    let statistics = bench.poisoned(workspace::statistics_bytes(arch, batch, heads, max_kv, together));
    let vertical = bench.poisoned(workspace::scores_bytes(batch, heads, max_kv));
    let slash = bench.poisoned(workspace::scores_bytes(batch, heads, max_kv));
    let status = bench.status();
    let grid = [workspace::estimate_blocks(arch, max_kv, together), heads / together, batch];
    let row = workspace::score_row_bytes(max_kv);
    for pass in [EstimatePass::Statistics, EstimatePass::Scores] {
        let kernel = bench.load(&EstimateSpec { pass, heads: together, head_dim, dtype, kv, arch });
        let mut arguments = maps(bench, &kernel, dtype, [("q", &queries), ("k", keys)]);
        arguments = tensor(tensor(arguments, "q", &queries), "k", keys);
        arguments = bounds(bounds(arguments, "q", &queries), "kv", keys)
            .u32("heads", q.heads)
            .u32("heads_per_kv", q.heads / k.heads)
            .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
            .f32("scale", SCALE)
            .pointer("status", status.address())
            .u32("slots", heads)
            .pointer("sets", 0)
            .pointer("statistics", statistics.address());
        if pass == EstimatePass::Scores {
            arguments = arguments
                .pointer("vertical_scores", vertical.address())
                .pointer("slash_scores", slash.address())
                .u64("scores_batch", u64::from(heads) * row)
                .u64("scores_head", row);
        }
        kernel.launch(&bench.stream, grid, &arguments).unwrap();
    }
    let (all_vertical, all_slash) = (bench.read::<f32>(&vertical), bench.read::<f32>(&slash));
    let scores = (0..batch)
        .map(|sequence| {
            let of_head = |head: u32| {
                let first = ((sequence * heads + head) as usize) * row as usize / 4;
                let length = k.lengths[sequence as usize] as usize;
                (all_vertical[first..][..length].to_vec(), all_slash[first..][..length].to_vec())
            };
            (0..heads).map(of_head).collect()
        })
        .collect();
    Estimated { vertical, slash, scores, status: bench.read::<u32>(&status)[0] }
}

pub(super) fn assert_scores(what: &str, device: &[f32], reference: &[f64]) {
    assert_eq!(device.len(), reference.len(), "{what}");
    for (i, (&a, &b)) in device.iter().zip(reference).enumerate() {
        assert!((f64::from(a) - b).abs() <= 1e-4 * b + 1e-30, "{what}: entry {i} is {a:e}, should be {b:e}");
    }
}

pub(super) fn assert_estimate(what: &str, estimated: &Estimated, q: &Side, k: &Side) {
    assert_eq!(estimated.status, 0, "{what}: status");
    for (sequence, heads) in estimated.scores.iter().enumerate() {
        for (head, (vertical, slash)) in heads.iter().enumerate() {
            let head = head as u32;
            let keys = k.rows(sequence, head / (q.heads / k.heads));
            let queries = q.rows(sequence, head);
            let reference = index::estimate(&queries, &keys, q.head_dim as usize, f64::from(SCALE));
            let what = format!("{what}, sequence {sequence}, head {head}");
            assert_scores(&format!("{what}, columns"), vertical, &reference.0);
            assert_scores(&format!("{what}, slashes"), slash, &reference.1);
        }
    }
}

#[test]
fn scores_agree_with_double_precision() {
    let seed = testing::seed(41);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let lengths = [1, 2, 29, 30, 31, 63, 64, 65, 99, 100, 101, 127, 128, 129, 255, 256, 257];
        for (dtype, head_dim) in [
            (MmaType::Bf16, 64),
            (MmaType::Bf16, 96),
            (MmaType::Bf16, 128),
            (MmaType::F16, 64),
            (MmaType::F16, 96),
            (MmaType::F16, 128),
        ] {
            let q = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
            let k = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
            let what = format!("{dtype:?} d{head_dim}");
            assert_estimate(&what, &estimate(&bench, dtype, &q, &k, Layout::Packed, 0), &q, &k);
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let seed = testing::seed(42);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (dtype, head_dim) = (MmaType::Bf16, 64);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, dtype, &q_lengths, 4, head_dim);
        let k = Side::random(&mut rng, dtype, &kv_lengths, 2, head_dim);
        let together = estimate(&bench, dtype, &q, &k, Layout::Padded, 0);
        assert_estimate("padded", &together, &q, &k);
        let packed = estimate(&bench, dtype, &q, &k, Layout::Packed, 1000);
        assert_eq!(packed.scores, together.scores, "packed, larger bounds");
        for sequence in 0..MIXED.len() {
            let alone = estimate(&bench, dtype, &q.only(sequence), &k.only(sequence), Layout::Padded, 0);
            assert_eq!(alone.scores[0], together.scores[sequence], "sequence {sequence} alone");
        }
    }
}

#[test]
fn keys_in_pages_give_the_bits_of_strided_keys() {
    let seed = testing::seed(51);
    println!("seed {seed}");
    let options = BY_BUDGET;
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (dtype, head_dim, page, heads) in [
            (MmaType::Bf16, 64, 16, (4, 1)),
            (MmaType::F16, 128, 64, (2, 1)),
            (MmaType::Bf16, 96, 256, (2, 2)),
            (MmaType::Bf16, 128, 32, (4, 2)),
        ] {
            let what = format!("{dtype:?} d{head_dim} page {page}");
            let (mut q_lengths, mut kv_lengths) = mixed();
            q_lengths.extend([70, 5, 64]);
            kv_lengths.extend([page - 1, page, 3 * page + 1]);
            let q = Side::random(&mut rng, dtype, &q_lengths, heads.0, head_dim);
            let k = Side::random(&mut rng, dtype, &kv_lengths, heads.1, head_dim);
            let [strided, paged] =
                [Layout::Padded, Layout::Paged(page)].map(|layout| estimate(&bench, dtype, &q, &k, layout, 0));
            assert_eq!(paged.status, 0, "{what}");
            assert!(strided.scores == paged.scores, "{what}: scores");
            let budgets = vec![3; heads.0 as usize];
            let [strided, paged] = [Layout::Padded, Layout::Paged(page)]
                .map(|layout| pooled(&bench, dtype, (&q, &k), layout, options, &budgets, 6));
            assert_eq!(paged.status, 0, "{what}");
            assert_eq!(strided.counts, paged.counts, "{what}");
            assert_eq!(strided.indices, paged.indices, "{what}");
        }
    }
}

/// Keys of a page that does not exist are zeros, which is reported, and another sequence is what it was.
#[test]
fn wild_pages_count_as_zeros() {
    let (dtype, head_dim, page, wild) = (MmaType::Bf16, 64, 32, 3);
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(testing::seed(52));
        let mut k = Side::random(&mut rng, dtype, &[200, 150], 1, head_dim);
        let placed = k.place(&bench, dtype, Layout::Paged(page), 200);
        let (table, pages) = placed.table.as_ref().unwrap();
        let means = |placed: &Placed, kv: KvLayout| {
            let kernel = bench.load(&KeyMeansSpec { block: 64, head_dim, dtype, kv, arch: Arch::Sm80 });
            let (means, status) = (bench.poisoned(workspace::key_means_bytes(2, 1, 200, 64, head_dim)), bench.status());
            let arguments = bounds(tensor(Arguments::new(kernel.meta()), "k", placed), "kv", placed)
                .pointer("key_means", means.address())
                .u64("means_batch", u64::from(4 * head_dim) * 4)
                .u64("means_head", 0)
                .pointer("status", status.address());
            kernel.launch(&bench.stream, [4, 1, 2], &arguments).unwrap();
            (bench.read::<u32>(&means), bench.read::<u32>(&status)[0])
        };
        k.values[0][(wild * page * head_dim) as usize..][..(page * head_dim) as usize].fill(0.0);
        let expected = means(&k.place(&bench, dtype, Layout::Padded, 200), KvLayout::Strided);
        assert_eq!(expected.1, 0);
        for value in [*pages, 1 << 24, u32::MAX, 1 << 31] {
            let mut entries = bench.read::<u32>(table);
            entries[wild as usize] = value;
            table.write(&bench.stream, &entries).unwrap();
            assert!(means(&placed, KvLayout::Paged { page }) == (expected.0.clone(), 2), "entry {value:#x}");
        }
    }
}

/// The same of the estimate, whose sums over a page of zeros are those of any other keys.
#[test]
fn wild_pages_count_as_zeros_in_sums() {
    let (dtype, head_dim, page, wild) = (MmaType::Bf16, 64, 16, 3);
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(testing::seed(54));
        let lengths = [200, 150];
        let q = Side::random(&mut rng, dtype, &lengths, 2, head_dim);
        let mut k = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
        let placed = k.place(&bench, dtype, Layout::Paged(page), 200);
        k.values[0][(wild * page * head_dim) as usize..][..(page * head_dim) as usize].fill(0.0);
        let expected = estimate(&bench, dtype, &q, &k, Layout::Padded, 0);
        let (table, pages) = placed.table.as_ref().unwrap();
        for value in [*pages, 1 << 24, u32::MAX, 1 << 31] {
            let mut entries = bench.read::<u32>(table);
            entries[wild as usize] = value;
            table.write(&bench.stream, &entries).unwrap();
            let found = estimate_placed(&bench, dtype, &q, (&k, &placed), Layout::Paged(page), 0, None);
            assert_eq!(found.status, 2, "entry {value:#x}");
            assert!(found.scores == expected.scores, "entry {value:#x}");
        }
    }
}

/// A NaN or an infinity makes what it touches NaN: columns that its queries see, slashes that they have; and nothing else.
#[test]
fn what_is_not_a_number_stays_with_its_queries() {
    let (dtype, head_dim, keys) = (MmaType::Bf16, 64u32, 300u32);
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(testing::seed(55));
        let q = Side::random(&mut rng, dtype, &[keys, keys], 4, head_dim);
        let k = Side::random(&mut rng, dtype, &[keys, keys], 1, head_dim);
        let clean = estimate(&bench, dtype, &q, &k, Layout::Padded, 0).scores;
        for bad in [f32::NAN, f32::INFINITY] {
            // Of one head the query 20 before the last one.
            let (head, row) = (1u32, keys - 21);
            let mut queries = Side { values: q.values.clone(), lengths: q.lengths.clone(), ..q };
            queries.values[0][((row * 4 + head) * head_dim) as usize] = bad;
            let found = estimate(&bench, dtype, &queries, &k, Layout::Padded, 0).scores;
            for (sequence, head) in (0..2).flat_map(|sequence| (0..4).map(move |head| (sequence, head))) {
                let (found, clean) = (&found[sequence][head], &clean[sequence][head]);
                if (sequence, head) != (0, 1) {
                    assert_eq!(found, clean, "{bad}: sequence {sequence}, head {head}");
                    continue;
                }
                let seen = row as usize + 1;
                for (found, clean) in [(&found.0, &clean.0), (&found.1, &clean.1)] {
                    assert!(found[..seen].iter().all(|score| score.is_nan()), "{bad}");
                    // To rounding: queries of a warp raise their maxima together.
                    let close = |(found, clean): (&f32, &f32)| (found - clean).abs() <= 1e-5 * clean;
                    assert!(found[seen..].iter().zip(&clean[seen..]).all(close), "{bad}");
                }
            }
        }
        // The last query sees this key, and has a part of every column and slash.
        let mut poisoned = Side { values: k.values.clone(), lengths: k.lengths.clone(), ..k };
        poisoned.values[0][((keys - 11) * head_dim) as usize] = f32::NAN;
        let found = estimate(&bench, dtype, &q, &poisoned, Layout::Padded, 0).scores;
        assert_eq!(found[1], clean[1], "the other sequence");
        for (vertical, slash) in &found[0] {
            assert!(vertical.iter().chain(slash).all(|score| score.is_nan()));
        }
    }
}

#[test]
fn a_head_map_picks_heads() {
    let seed = testing::seed(49);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let q = Side::random(&mut rng, MmaType::Bf16, &[40, 70], 4, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[80, 70], 2, 64);
        let all = estimate(&bench, MmaType::Bf16, &q, &k, Layout::Padded, 0).scores;
        let picked = estimate_heads(&bench, MmaType::Bf16, &q, &k, Layout::Padded, 0, Some(&[3, 0])).scores;
        for (all, picked) in all.iter().zip(&picked) {
            assert_eq!(picked[..], [all[3].clone(), all[0].clone()]);
        }
    }
}

#[test]
fn a_head_that_does_not_exist_has_no_queries() {
    let options = BY_BUDGET;
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(testing::seed(50));
        let dtype = MmaType::Bf16;
        let q = Side::random(&mut rng, dtype, &[40, 70], 4, 64);
        let k = Side::random(&mut rng, dtype, &[80, 70], 2, 64);
        let scores = |map: &[u32]| estimate_heads(&bench, dtype, &q, &k, Layout::Padded, 0, Some(map));
        let blocks =
            |map: &[u32]| pooled_heads(&bench, dtype, (&q, &k), Layout::Padded, options, &[2; 4], 3, 256, Some(map));
        let (plain, listed) = (scores(&[3, 0, 1, 2]).scores, blocks(&[3, 0, 1, 2]));
        for wild in [4, 1 << 24, u32::MAX] {
            let estimated = scores(&[3, wild, 1, 2]);
            let reported = if wild == u32::MAX { 0 } else { 2 };
            assert_eq!(estimated.status, reported, "head {wild}");
            for (plain, found) in plain.iter().zip(&estimated.scores) {
                let zeros = found[1].0.iter().chain(&found[1].1).all(|score| *score == 0.0);
                assert!(zeros, "head {wild}: a sequence without queries gets zeros");
                assert_eq!([&plain[0], &plain[2], &plain[3]], [&found[0], &found[2], &found[3]], "head {wild}");
            }
            let found = blocks(&[3, wild, 1, 2]);
            assert_eq!(found.status, reported, "head {wild}");
            for (entry, pair) in listed.counts.iter().zip(&found.counts).enumerate() {
                let exists = entry / listed.rows % 4 != 1;
                assert_eq!(*pair.1, if exists { *pair.0 } else { 0 }, "head {wild}: count {entry}");
                let list = |blocks: &Blocks| blocks.indices[entry * 3..][..3].to_vec();
                assert!(!exists || list(&listed) == list(&found), "head {wild}: list {entry}");
            }
        }
    }
}

#[test]
fn long_sequences_take_longer_parts() {
    let seed = testing::seed(43);
    println!("seed {seed}");
    let keys = 256 * 256 + 100;
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let q = Side::random(&mut rng, MmaType::Bf16, &[64], 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[keys], 1, 64);
        assert_estimate("long", &estimate(&bench, MmaType::Bf16, &q, &k, Layout::Padded, 0), &q, &k);
    }
}
