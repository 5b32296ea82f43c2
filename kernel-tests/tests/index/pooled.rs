//! Means of keys, and block-sparse selection by them: exact.

use super::*;

/// Counts `[batch][heads][rows]`, indices `[batch][heads][rows][capacity]`, status.
pub(super) struct Blocks {
    pub(super) counts: Vec<i32>,
    pub(super) indices: Vec<i32>,
    /// By key block, of heads with a share.
    pub(super) weights: Vec<f32>,
    pub(super) rows: usize,
    pub(super) key_blocks: usize,
    pub(super) status: u32,
}

/// The pooled selection of a batch; `budgets` by head.
pub(super) fn pooled(
    bench: &Bench,
    dtype: MmaType,
    (q, k): (&Side, &Side),
    layout: Layout,
    options: Pooled,
    budgets: &[u32],
    capacity: u32,
) -> Blocks {
    pooled_heads(bench, dtype, (q, k), layout, options, budgets, capacity, 256, None)
}

/// The same for as many heads, which `head_map` names for each sequence, with a kernel for `most` key blocks.
#[allow(clippy::too_many_arguments)]
pub(super) fn pooled_heads(
    bench: &Bench,
    dtype: MmaType,
    (q, k): (&Side, &Side),
    layout: Layout,
    options: Pooled,
    budgets: &[u32],
    capacity: u32,
    most: u32,
    head_map: Option<&[u32]>,
) -> Blocks {
    let (head_dim, heads, batch) = (q.head_dim, q.heads, q.lengths.len() as u32);
    // One for all sequences, or one for each.
    let map = head_map.map(|map| bench.upload(&map.repeat((heads * batch) as usize / map.len())));
    let (m, n) = (options.block.0 as u32, options.block.1 as u32);
    // The bound leaves room for a row block that no sequence has.
    let (max_q, max_kv) = (q.longest() + m, k.longest());
    let (queries, keys) = (q.place(bench, dtype, layout.of_queries(), max_q), k.place(bench, dtype, layout, max_kv));
    let (key_blocks, rows) = (max_kv.div_ceil(n), max_q.div_ceil(m));
    let means = bench.poisoned(workspace::key_means_bytes(batch, k.heads, max_kv, n, head_dim));
    let (means_batch, means_head) =
        (u64::from(k.heads * key_blocks * head_dim) * 4, u64::from(key_blocks * head_dim) * 4);
    let status = bench.status();

    let kernel = bench.load(&KeyMeansSpec { block: n, head_dim, dtype, kv: layout.kv(), arch: Arch::Sm80 });
    let arguments = bounds(tensor(Arguments::new(kernel.meta()), "k", &keys), "kv", &keys)
        .pointer("key_means", means.address())
        .u64("means_batch", means_batch)
        .u64("means_head", means_head)
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [key_blocks, k.heads, batch], &arguments).unwrap();

    let lists = Lists::new(bench, [batch, heads, rows, capacity]);
    let budgets = bench.upload(budgets);
    let shares = options.share.map(|given| bench.upload(&vec![share(given); heads as usize]));
    let weights = bench.poisoned(u64::from(batch * heads * rows * key_blocks) * 4);
    let forced = if options.diagonal { FORCE_DIAGONAL } else { 0 } | if options.sink { FORCE_SINK } else { 0 };
    let spec = BlockSparseSelectSpec {
        block: (m, n),
        key_blocks: most,
        head_dim,
        dtype,
        causal: options.causal,
        arch: Arch::Sm80,
    };
    let kernel = bench.load(&spec);
    let arguments = tensor(Arguments::new(kernel.meta()), "q", &queries)
        .pointer("key_means", means.address())
        .u64("means_batch", means_batch)
        .u64("means_head", means_head);
    let arguments = bounds(bounds(lists.arguments(arguments), "q", &queries), "kv", &keys)
        .u32("heads", heads)
        .u32("heads_per_kv", heads / k.heads)
        .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
        .u64("head_map_batch", map.as_ref().map_or(0, |_| u64::from(heads) * 4))
        .f32("scale", options.scale)
        .pointer("budgets", budgets.address())
        .pointer("shares", shares.as_ref().map_or(0, Buffer::address))
        .pointer("weights", weights.address())
        .u64("weights_batch", u64::from(heads * rows * key_blocks) * 4)
        .u64("weights_head", u64::from(rows * key_blocks) * 4)
        .u64("weights_row", u64::from(key_blocks) * 4)
        .u32("forced", forced)
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [rows.div_ceil(spec.row_blocks()), heads, batch], &arguments).unwrap();
    Blocks {
        counts: bench.read(&lists.counts),
        indices: bench.read(&lists.indices),
        weights: bench.read(&weights),
        rows: rows as usize,
        key_blocks: key_blocks as usize,
        status: bench.read::<u32>(&status)[0],
    }
}

/// The lists are those that the reference selects: by scores of its own, or with a share from the device's weights.
pub(super) fn assert_blocks(what: &str, blocks: &Blocks, (q, k): (&Side, &Side), options: Pooled, budgets: &[u32]) {
    let heads = q.heads as usize;
    let capacity = blocks.indices.len() / blocks.counts.len();
    assert_eq!(blocks.status, 0, "{what}: status");
    for sequence in 0..q.lengths.len() {
        for (head, &budget) in budgets.iter().enumerate().take(heads) {
            let options = Pooled { budget, ..options };
            let keys = k.rows(sequence, head as u32 / (q.heads / k.heads));
            let (queries, head_dim) = (q.rows(sequence, head as u32), q.head_dim as usize);
            let by_budget = || index::block_sparse(&queries, &keys, head_dim, options);
            let lists = if options.share.is_some() { Vec::new() } else { by_budget() };
            let references = match options.share {
                Some(_) => index::pooled_weights(&queries, &keys, head_dim, options),
                None => Vec::new(),
            };
            let (q_len, kv_len) = (q.lengths[sequence] as usize, k.lengths[sequence] as usize);
            for row in 0..blocks.rows {
                let what = format!("{what}, sequence {sequence}, head {head}, row block {row}, {options:?}");
                let entry = (sequence * heads + head) * blocks.rows + row;
                let mut list = lists.get(row).cloned().unwrap_or_default();
                if let Some(reference) = references.get(row) {
                    let weights = &blocks.weights[entry * blocks.key_blocks..][..blocks.key_blocks];
                    assert_weights(&what, weights, reference);
                    list = index::pooled_blocks(weights, row, q_len, kv_len, options);
                }
                assert_eq!(blocks.counts[entry] as usize, list.len(), "{what}: count");
                let mut expected: Vec<i32> = list.iter().map(|&block| block as i32).collect();
                expected.resize(capacity, 0);
                assert_eq!(blocks.indices[entry * capacity..][..capacity], expected, "{what}");
            }
        }
    }
}

fn assert_weights(what: &str, weights: &[f32], reference: &[f64]) {
    for (block, (&weight, &wanted)) in weights.iter().zip(reference).enumerate() {
        // Of scores far below the highest, both a difference and what little is left of it are rounded.
        let close = (f64::from(weight) - wanted).abs() <= 1e-5 * wanted + 1e-37;
        assert!(close || wanted.is_nan() && weight.is_nan(), "{what}: block {block}: {weight:e}, not {wanted:e}");
    }
    let unwritten = weights[reference.len()..].iter().all(|weight| weight.to_bits() == u32::MAX);
    assert!(unwritten, "{what}: weights of blocks that are not seen");
}

#[test]
fn pooled_selection_is_exact() {
    let seed = testing::seed(46);
    println!("seed {seed}");
    let budgets = [0, 1, 3, u32::MAX];
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (i, (dtype, head_dim, block)) in [
            (MmaType::Bf16, 64, (64, 32)),
            (MmaType::F16, 64, (128, 128)),
            (MmaType::Bf16, 96, (128, 64)),
            (MmaType::F16, 96, (64, 64)),
            (MmaType::Bf16, 128, (64, 128)),
            (MmaType::F16, 128, (128, 32)),
        ]
        .into_iter()
        .enumerate()
        {
            let (q_lengths, kv_lengths) = mixed();
            let mut q = Side::random(&mut rng, dtype, &q_lengths, 4, head_dim);
            let mut k = Side::random(&mut rng, dtype, &kv_lengths, 2, head_dim);
            // One sequence all ties, one with what is not a number.
            q.values[1].fill(1.0);
            k.values[1].fill(1.0);
            k.values[6][5] = f32::NAN;
            k.values[6][40 * 2 * head_dim as usize] = f32::INFINITY;
            q.values[6][7] = f32::NEG_INFINITY;
            for forced in 0..4 {
                let options = Pooled {
                    block,
                    causal: (i + forced) % 3 != 0,
                    diagonal: forced & 1 == 1,
                    sink: forced & 2 == 2,
                    ..BY_BUDGET
                };
                let layout = if forced % 2 == 0 { Layout::Padded } else { Layout::Packed };
                let blocks = pooled(&bench, dtype, (&q, &k), layout, options, &budgets, 20);
                assert_blocks(&format!("{dtype:?} d{head_dim}"), &blocks, (&q, &k), options, &budgets);
            }
        }
    }
}

#[test]
fn pooled_selection_is_exact_with_room_for_any_number_of_key_blocks() {
    let seed = testing::seed(49);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (i, (most, row_blocks)) in
            [(1, 16), (100, 16), (2048, 16), (2049, 8), (5000, 4), (16384, 2), (16385, 1), (32768, 1)]
                .into_iter()
                .enumerate()
        {
            let (dtype, head_dim) = (MmaType::Bf16, [64, 96, 128][i % 3]);
            let options =
                Pooled { block: (64, 32), causal: i != 3, diagonal: i % 2 == 0, sink: i % 4 != 3, ..BY_BUDGET };
            let spec = BlockSparseSelectSpec {
                block: (64, 32),
                key_blocks: most,
                head_dim,
                dtype,
                causal: true,
                arch: Arch::Sm80,
            };
            assert_eq!(spec.row_blocks(), row_blocks);
            // Several tiles of keys, and a group of row blocks that is not whole.
            let kv = 19_150.min(most * 32);
            let lengths = [1100.min(kv), 70.min(kv)];
            let q = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
            let k = Side::random(&mut rng, dtype, &[kv, lengths[1]], 1, head_dim);
            let blocks = pooled_heads(&bench, dtype, (&q, &k), Layout::Padded, options, &[33], 40, most, None);
            assert_blocks(&format!("room for {most}"), &blocks, (&q, &k), options, &[33]);
        }
    }
}

#[test]
fn shares_of_pooled_blocks_are_exact() {
    let seed = testing::seed(58);
    println!("seed {seed}");
    let budgets = [u32::MAX, 5, 0, u32::MAX];
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (i, (dtype, head_dim, block, share)) in [
            (MmaType::Bf16, 64, (64, 32), 0.9),
            (MmaType::F16, 96, (128, 64), 1.0),
            (MmaType::Bf16, 128, (64, 64), 0.5),
            (MmaType::F16, 64, (32, 128), 1e-9),
            (MmaType::Bf16, 64, (32, 32), 0.99),
        ]
        .into_iter()
        .enumerate()
        {
            let (q_lengths, kv_lengths) = mixed();
            let mut q = Side::random(&mut rng, dtype, &q_lengths, 4, head_dim);
            let mut k = Side::random(&mut rng, dtype, &kv_lengths, 2, head_dim);
            // One sequence all ties; one with scores so far apart that most weights are nothing; one with what is no number.
            q.values[1].fill(1.0);
            k.values[1].fill(1.0);
            q.values[5].iter_mut().for_each(|value| *value *= 64.0);
            k.values[6][5] = f32::NAN;
            k.values[6][40 * 2 * head_dim as usize] = f32::INFINITY;
            q.values[6][7] = f32::NEG_INFINITY;
            for forced in 0..4 {
                let options = Pooled {
                    block,
                    causal: (i + forced) % 3 != 0,
                    // Scores far enough apart that a share is less than all.
                    scale: 2.0,
                    share: Some(share),
                    diagonal: forced & 1 == 1,
                    sink: forced & 2 == 2,
                    ..BY_BUDGET
                };
                let layout = if forced % 2 == 0 { Layout::Padded } else { Layout::Packed };
                let blocks = pooled(&bench, dtype, (&q, &k), layout, options, &budgets, 20);
                assert_blocks(&format!("{dtype:?} d{head_dim}"), &blocks, (&q, &k), options, &budgets);
            }
        }
    }
}

/// What a sequence gets does not depend on those beside it, nor on the room of the kernel.
#[test]
fn shares_do_not_see_the_batch() {
    let seed = testing::seed(59);
    println!("seed {seed}");
    let options = Pooled { scale: 1.0, share: Some(0.8), ..BY_BUDGET };
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 2, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 1, 64);
        let budgets = [u32::MAX; 2];
        let of = |q: &Side, k: &Side, most| {
            pooled_heads(&bench, MmaType::Bf16, (q, k), Layout::Packed, options, &budgets, 20, most, None)
        };
        let all = of(&q, &k, 256);
        for sequence in 0..MIXED.len() {
            let own = of(&q.only(sequence), &k.only(sequence), 8192);
            for (head, row) in (0..2).flat_map(|head| (0..own.rows).map(move |row| (head, row))) {
                let entries = [(&all, (sequence * 2 + head) * all.rows + row), (&own, head * own.rows + row)];
                let [in_batch, alone] = entries.map(|(blocks, entry)| &blocks.indices[entry * 20..][..20]);
                assert_eq!(in_batch, alone, "sequence {sequence}, head {head}, row block {row}");
            }
        }
    }
}

/// A head without an entry in the map of a sequence has no blocks there, and is nothing to report.
#[test]
fn a_map_of_each_sequence_leaves_heads_out() {
    const NONE: u32 = u32::MAX;
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(testing::seed(60));
        let q = Side::random(&mut rng, MmaType::Bf16, &[100, 70], 2, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[130, 70], 1, 64);
        let of = |map: &[u32]| {
            let options = Pooled { share: Some(0.9), ..BY_BUDGET };
            pooled_heads(&bench, MmaType::Bf16, (&q, &k), Layout::Padded, options, &[9; 2], 4, 256, Some(map))
        };
        let (all, some) = (of(&[0, 1]), of(&[0, NONE, NONE, 1]));
        assert_eq!((all.status, some.status), (0, 0));
        for entry in 0..all.counts.len() {
            let exists = [0, 3].contains(&(entry / all.rows));
            let list = if exists { &all.indices[entry * 4..][..4] } else { &[0; 4] };
            assert_eq!(some.counts[entry], if exists { all.counts[entry] } else { 0 }, "entry {entry}");
            assert_eq!(&some.indices[entry * 4..][..4], list, "entry {entry}");
        }
    }
}

#[test]
fn a_forced_diagonal_leaves_no_query_without_a_key() {
    let seed = testing::seed(47);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 1, 64);
        for block in [(64, 32), (64, 64), (64, 128)] {
            let options = Pooled { block, sink: false, ..BY_BUDGET };
            let blocks = pooled(&bench, MmaType::Bf16, (&q, &k), Layout::Padded, options, &[1], 20);
            for (sequence, (q_len, kv_len)) in MIXED.into_iter().enumerate() {
                for row in 0..q_len as i64 {
                    let position = i64::from(kv_len) - i64::from(q_len) + row;
                    let entry = sequence * blocks.rows + row as usize / block.0;
                    let list = &blocks.indices[entry * 20..][..blocks.counts[entry] as usize];
                    let sees = list.contains(&(position.max(0) as i32 / block.1 as i32));
                    assert_eq!(sees, position >= 0 || !list.is_empty() && list[0] == 0, "{sequence}, row {row}");
                }
            }
        }
    }
}

#[test]
fn a_row_of_blocks_beyond_the_capacity_keeps_its_diagonal() {
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(48);
        let q = Side::random(&mut rng, MmaType::Bf16, &[256], 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[256], 1, 64);
        let options = BY_BUDGET;
        let blocks = pooled(&bench, MmaType::Bf16, (&q, &k), Layout::Padded, options, &[4], 1);
        assert_eq!(blocks.status, 4);
        assert_eq!(blocks.counts, [1, 1, 1, 1, 0]);
        assert_eq!(blocks.indices, [0, 1, 2, 3, 0]);
    }
}

#[test]
fn a_length_beyond_its_bound_is_clamped_and_reported() {
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(7);
        let k = Side::random(&mut rng, MmaType::Bf16, &[70], 1, 64);
        let told = Side { lengths: vec![71], ..k.only(0) };
        let placed = told.place(&bench, MmaType::Bf16, Layout::Padded, 70);
        let status = bench.status();
        let kernel = bench.load(&KeyMeansSpec {
            block: 32,
            head_dim: 64,
            dtype: MmaType::Bf16,
            kv: KvLayout::Strided,
            arch: Arch::Sm80,
        });
        let means = bench.poisoned(workspace::key_means_bytes(1, 1, 70, 32, 64));
        let arguments = bounds(tensor(Arguments::new(kernel.meta()), "k", &placed), "kv", &placed)
            .pointer("key_means", means.address())
            .u64("means_batch", 0)
            .u64("means_head", 0)
            .pointer("status", status.address());
        kernel.launch(&bench.stream, [3, 1, 1], &arguments).unwrap();
        assert_eq!(bench.read::<u32>(&status), [1]);
        let last = index::mean(&k.rows(0, 0)[64 * 64..], 64);
        assert_eq!(bench.read::<f32>(&means)[2 * 64..], last);
    }
}
