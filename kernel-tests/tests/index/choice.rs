//! The choice between columns with slashes and pooled blocks: divergences to tolerance, what follows from them exactly.

use super::{
    estimate::{estimate_heads, heads_of_a_block},
    *,
};

const NONE: u32 = u32::MAX;

/// What the plan of a batch chose: divergences and both maps, `[batch][heads]`.
struct Chosen {
    divergences: Vec<f32>,
    vertical_slash: Vec<u32>,
    block_sparse: Vec<u32>,
    status: u32,
}

/// What is asked for, and where queries and keys lie.
#[derive(Clone, Copy)]
struct Asked<'a> {
    dtype: MmaType,
    layout: Layout,
    block: u32,
    /// By head.
    thresholds: &'a [f32],
    head_map: Option<&'a [u32]>,
    /// Rows of the bounds, and key blocks of the kernel, that no sequence has: what a choice must not see.
    slack: (u32, u32),
}

impl Asked<'_> {
    fn new(block: u32, thresholds: &[f32]) -> Asked<'_> {
        let (dtype, layout) = (MmaType::Bf16, Layout::Padded);
        Asked { dtype, layout, block, thresholds, head_map: None, slack: (0, 0) }
    }
}

fn choose(bench: &Bench, asked: Asked<'_>, (q, k): (&Side, &Side)) -> Chosen {
    let Asked { dtype, layout, block, thresholds, head_map, slack } = asked;
    let map = head_map.map(|map| bench.upload(map));
    let (head_dim, heads, batch) = (q.head_dim, thresholds.len() as u32, q.lengths.len() as u32);
    let (max_q, max_kv) = (q.longest() + slack.0, k.longest() + slack.0);
    let estimated = estimate_heads(bench, dtype, q, k, layout, slack.0, head_map);
    let (queries, keys) = (q.place(bench, dtype, layout.of_queries(), max_q), k.place(bench, dtype, layout, max_kv));
    let key_blocks = max_kv.div_ceil(block);
    let means = bench.poisoned(workspace::key_means_bytes(batch, k.heads, max_kv, block, head_dim));
    let (means_batch, means_head) =
        (u64::from(k.heads * key_blocks * head_dim) * 4, u64::from(key_blocks * head_dim) * 4);
    let status = bench.status();
    let kernel = bench.load(&KeyMeansSpec { block, head_dim, dtype, kv: layout.kv(), arch: Arch::Sm80 });
    let arguments = bounds(tensor(Arguments::new(kernel.meta()), "k", &keys), "kv", &keys)
        .pointer("key_means", means.address())
        .u64("means_batch", means_batch)
        .u64("means_head", means_head)
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [key_blocks, k.heads, batch], &arguments).unwrap();

    let entries = u64::from(batch * heads) * 4;
    let [vertical_slash, block_sparse, divergences] = [(); 3].map(|()| bench.poisoned(entries));
    let thresholds = bench.upload(thresholds);
    let room = key_blocks.max(1) + slack.1;
    let kernel = bench.load(&PatternChoiceSpec { block, key_blocks: room, head_dim, dtype, arch: Arch::Sm80 });
    let arguments = tensor(Arguments::new(kernel.meta()), "q", &queries);
    let arguments = bounds(bounds(arguments, "q", &queries), "kv", &keys)
        .pointer("key_means", means.address())
        .u64("means_batch", means_batch)
        .u64("means_head", means_head)
        .u32("heads", q.heads)
        .u32("heads_per_kv", q.heads / k.heads)
        .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
        .f32("scale", SCALE)
        .pointer("vertical_scores", estimated.vertical.address())
        .u64("scores_batch", u64::from(heads) * workspace::score_row_bytes(max_kv))
        .u64("scores_head", workspace::score_row_bytes(max_kv))
        .pointer("thresholds", thresholds.address())
        .pointer("vertical_slash_heads", vertical_slash.address())
        .pointer("block_sparse_heads", block_sparse.address())
        .pointer("divergences", divergences.address())
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [1, heads, batch], &arguments).unwrap();
    Chosen {
        divergences: bench.read(&divergences),
        vertical_slash: bench.read(&vertical_slash),
        block_sparse: bench.read(&block_sparse),
        status: bench.read::<u32>(&status)[0],
    }
}

/// The maps are what follows from the device's own divergences.
fn assert_maps(what: &str, chosen: &Chosen, q: &Side, thresholds: &[f32]) {
    let heads = thresholds.len();
    for (entry, &divergence) in chosen.divergences.iter().enumerate() {
        let (sequence, head) = (entry / heads, entry % heads);
        let expected = match (q.lengths[sequence] == 0, divergence < thresholds[head]) {
            (true, _) => (NONE, NONE),
            (false, true) => (NONE, head as u32),
            (false, false) => (head as u32, NONE),
        };
        let found = (chosen.vertical_slash[entry], chosen.block_sparse[entry]);
        assert_eq!(found, expected, "{what}: sequence {sequence}, head {head}, divergence {divergence}");
    }
}

fn assert_divergences(what: &str, chosen: &Chosen, (q, k): (&Side, &Side), block: u32) {
    for (entry, &found) in chosen.divergences.iter().enumerate() {
        let (sequence, head) = (entry / q.heads as usize, entry as u32 % q.heads);
        let (queries, keys) = (q.rows(sequence, head), k.rows(sequence, head / (q.heads / k.heads)));
        let wanted = index::divergence(&queries, &keys, q.head_dim as usize, f64::from(SCALE), block as usize);
        // A root: where nothing diverges, rounding shows in its upper half.
        let close = (f64::from(found) - wanted).abs() < 1e-4 + 1e-6 / (wanted + 1e-3);
        assert!(close, "{what}: sequence {sequence}, head {head}: {found}, not {wanted}");
    }
}

#[test]
fn divergences_agree_with_double_precision() {
    let seed = testing::seed(62);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (i, (dtype, head_dim, block, layout)) in [
            (MmaType::Bf16, 64, 32, Layout::Padded),
            (MmaType::F16, 96, 64, Layout::Packed),
            (MmaType::Bf16, 128, 128, Layout::Padded),
            (MmaType::F16, 64, 64, Layout::Paged(16)),
        ]
        .into_iter()
        .enumerate()
        {
            let (mut q_lengths, mut kv_lengths) = mixed();
            // More key blocks than a turn takes.
            q_lengths.push(90);
            kv_lengths.push(if i == 0 { 33 * 128 + 7 } else { 2049 });
            let mut q = Side::random(&mut rng, dtype, &q_lengths, 4, head_dim);
            let k = Side::random(&mut rng, dtype, &kv_lengths, 2, head_dim);
            // From queries that see all keys alike to some that see few.
            for values in &mut q.values {
                values.chunks_mut(4 * head_dim as usize).for_each(|row| {
                    for (head, values) in row.chunks_mut(head_dim as usize).enumerate() {
                        values.iter_mut().for_each(|value| *value *= [0.0, 0.25, 1.0, 4.0][head]);
                    }
                });
            }
            let thresholds = [0.1, 0.15, 0.3, 0.2];
            let what = format!("{dtype:?} d{head_dim} n{block}");
            let asked = Asked { dtype, layout, ..Asked::new(block, &thresholds) };
            let chosen = choose(&bench, asked, (&q, &k));
            assert_eq!(chosen.status, 0, "{what}");
            assert_divergences(&what, &chosen, (&q, &k), block);
            assert_maps(&what, &chosen, &q, &thresholds);
            let some = |map: &[u32]| map.iter().filter(|head| **head != NONE).count();
            assert!(some(&chosen.vertical_slash) > 3 && some(&chosen.block_sparse) > 3, "{what}: one way only");
        }
    }
}

#[test]
fn a_choice_depends_on_its_own_sequence_alone() {
    let seed = testing::seed(63);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 2, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 2, 64);
        let of = |q: &Side, k: &Side, slack| {
            choose(&bench, Asked { slack, ..Asked::new(64, &[0.2; 2]) }, (q, k)).divergences
        };
        let all = of(&q, &k, (300, 77));
        for sequence in 0..MIXED.len() {
            let own = of(&q.only(sequence), &k.only(sequence), (0, 0));
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(&all[2 * sequence..][..2]), bits(&own), "sequence {sequence}");
        }
    }
}

/// A threshold of 0 never takes blocks, and one that no divergence reaches always does.
#[test]
fn thresholds_at_the_ends_choose_alike() {
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(testing::seed(64));
        let q = Side::random(&mut rng, MmaType::Bf16, &[70, 3, 0], 2, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[300, 3, 40], 1, 64);
        let of = |threshold| choose(&bench, Asked::new(32, &[threshold; 2]), (&q, &k));
        let (never, always) = (of(0.0), of(0.84));
        assert_eq!(never.vertical_slash, [0, 1, 0, 1, NONE, NONE]);
        assert_eq!(never.block_sparse, [NONE; 6]);
        assert_eq!(always.vertical_slash, [NONE; 6]);
        assert_eq!(always.block_sparse, [0, 1, 0, 1, NONE, NONE]);
    }
}

#[test]
fn what_is_not_a_number_takes_columns_and_slashes() {
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(testing::seed(65));
        let lengths = [100, 100, 100];
        let mut q = Side::random(&mut rng, MmaType::Bf16, &lengths, 1, 64);
        let mut k = Side::random(&mut rng, MmaType::Bf16, &lengths, 1, 64);
        q.values[0][99 * 64] = f32::NAN;
        k.values[1][7 * 64] = f32::INFINITY;
        let chosen = choose(&bench, Asked { layout: Layout::Packed, ..Asked::new(32, &[9.0]) }, (&q, &k));
        assert_eq!((chosen.vertical_slash, chosen.block_sparse), (vec![0, 0, NONE], vec![NONE, NONE, 0]));
        assert_eq!(chosen.divergences.iter().map(|value| value.is_nan()).collect::<Vec<_>>(), [true, true, false]);
    }
}

#[test]
fn a_head_map_names_the_heads_that_maps_hold() {
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(testing::seed(66));
        let q = Side::random(&mut rng, MmaType::Bf16, &[40, 70], 4, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[80, 70], 2, 64);
        let of = |head_map, heads| choose(&bench, Asked { head_map, ..Asked::new(32, &[0.2; 4][..heads]) }, (&q, &k));
        assert_eq!(heads_of_a_block(&q, &k), 2);
        let (all, picked) = (of(None, 4), of(Some(&[3, 9, 0][..]), 3));
        assert_eq!(picked.status, 2);
        for sequence in 0..2 {
            for (slot, head) in [(0, 3), (2, 0)] {
                let (own, at) = (sequence * 3 + slot, sequence * 4 + head);
                assert_eq!(picked.divergences[own].to_bits(), all.divergences[at].to_bits());
                assert_eq!(picked.vertical_slash[own], all.vertical_slash[at]);
                assert_eq!(picked.block_sparse[own], all.block_sparse[at]);
            }
            let wild = sequence * 3 + 1;
            assert_eq!((picked.vertical_slash[wild], picked.block_sparse[wild]), (NONE, NONE));
        }
    }
}
