//! The selection of columns and slashes, exact for given scores.

use super::{
    estimate::{Scores, estimate},
    *,
};

/// Sizes of the selection.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) vertical_sizes: Vec<u32>,
    pub(super) slash_sizes: Vec<u32>,
    pub(super) minimum: (u32, u32),
    pub(super) forced: (u32, u32),
    pub(super) capacity: u32,
    pub(super) block: u32,
    /// Shares of the sum, of columns and slashes, by head; none anywhere if empty.
    pub(super) shares: Vec<(Option<f32>, Option<f32>)>,
    /// Entries of a head map, of each sequence; none if empty.
    pub(super) head_map: Vec<u32>,
}

impl Selection {
    pub(super) fn budgets(&self, head: usize) -> (Budget, Budget) {
        let shares = self.shares.get(head).copied().unwrap_or_default();
        let (minimum, forced) = (self.minimum, self.forced);
        let columns = Budget { size: self.vertical_sizes[head], minimum: minimum.0, forced: forced.0, share: shares.0 };
        let slashes = Budget { size: self.slash_sizes[head], minimum: minimum.1, forced: forced.1, share: shares.1 };
        (columns, slashes)
    }
}

pub(super) struct Selected {
    pub(super) columns: Vec<u32>,
    pub(super) counts: Vec<u32>,
    pub(super) offsets: Vec<u32>,
    pub(super) offset_counts: Vec<u32>,
    pub(super) visited: Vec<u64>,
    pub(super) room: usize,
    pub(super) status: u32,
}

pub(super) fn select(
    bench: &Bench,
    vertical: &Buffer,
    slash: &Buffer,
    lengths: &[u32],
    max_kv: u32,
    s: &Selection,
) -> Selected {
    let kernel = bench.load(&VerticalSlashSelectSpec { block: s.block, arch: Arch::Sm80 });
    let (heads, batch) = (s.vertical_sizes.len() as u32, lengths.len() as u32);
    // One entry more than needed, which must become 0.
    let room = workspace::offset_capacity(max_kv, s.block) + 1;
    let entries = u64::from(batch * heads);
    let columns = bench.poisoned(entries * u64::from(s.capacity) * 4);
    let counts = bench.poisoned(entries * 4);
    let offsets = bench.poisoned(entries * u64::from(room) * 4);
    let offset_counts = bench.poisoned(entries * 4);
    let status = bench.status();
    let lengths = bench.upload(lengths);
    let (vertical_sizes, slash_sizes) = (bench.upload(&s.vertical_sizes), bench.upload(&s.slash_sizes));
    let (vertical_shares, slash_shares): (Vec<u32>, Vec<u32>) =
        s.shares.iter().map(|(columns, slashes)| (columns.map_or(0, share), slashes.map_or(0, share))).unzip();
    let head_map = (!s.head_map.is_empty()).then(|| bench.upload(&s.head_map));
    let shares = [vertical_shares, slash_shares].map(|shares| (!shares.is_empty()).then(|| bench.upload(&shares)));
    let shares = |i: usize| shares[i].as_ref().map_or(0, Buffer::address);
    let visited = bench.poisoned(entries * 16);
    let arguments = Arguments::new(kernel.meta())
        .pointer("vertical_scores", vertical.address())
        .pointer("slash_scores", slash.address())
        .u64("scores_batch", u64::from(heads) * workspace::score_row_bytes(max_kv))
        .u64("scores_head", workspace::score_row_bytes(max_kv))
        .pointer("kv_start", 0)
        .u32("kv_rows", 0)
        .pointer("kv_length", lengths.address())
        .u32("max_kv", max_kv)
        .pointer("vertical_sizes", vertical_sizes.address())
        .pointer("slash_sizes", slash_sizes.address())
        .pointer("vertical_shares", shares(0))
        .pointer("slash_shares", shares(1))
        .pointer("head_map", head_map.as_ref().map_or(0, Buffer::address))
        .u64("head_map_batch", u64::from(heads) * 4 * u64::from(head_map.is_some()))
        .pointer("visited", visited.address())
        .u32("min_columns", s.minimum.0)
        .u32("min_slashes", s.minimum.1)
        .u32("forced_columns", s.forced.0)
        .u32("forced_slashes", s.forced.1)
        .pointer("columns", columns.address())
        .u64("columns_batch", u64::from(heads * s.capacity) * 4)
        .u64("columns_head", u64::from(s.capacity) * 4)
        .u32("column_capacity", s.capacity)
        .pointer("column_counts", counts.address())
        .pointer("offsets", offsets.address())
        .u64("offsets_batch", u64::from(heads * room) * 4)
        .u64("offsets_head", u64::from(room) * 4)
        .u32("offset_capacity", room)
        .pointer("offset_counts", offset_counts.address())
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [2, heads, batch], &arguments).unwrap();
    Selected {
        columns: bench.read(&columns),
        counts: bench.read(&counts),
        offsets: bench.read(&offsets),
        offset_counts: bench.read(&offset_counts),
        visited: bench.read(&visited),
        room: room as usize,
        status: bench.read::<u32>(&status)[0],
    }
}

pub(super) fn assert_selected(what: &str, selected: &Selected, scores: &Scores, s: &Selection) {
    let (heads, capacity) = (s.vertical_sizes.len(), s.capacity as usize);
    for (sequence, of_heads) in scores.iter().enumerate() {
        for (head, (vertical, slash)) in of_heads.iter().enumerate() {
            let what = format!("{what}, sequence {sequence}, head {head}, {s:?}");
            let (columns, slashes) = s.budgets(head);
            let index = index::vertical_slash(vertical, slash, columns, slashes, s.block);
            let entry = sequence * heads + head;
            let visited = index::visited(&index, vertical.len() as u32, s.block);
            assert_eq!(selected.visited[2 * entry..][..2], visited, "{what}: visited");
            let mut expected = index.columns.clone();
            expected.resize(capacity, 0);
            assert_eq!(selected.counts[entry] as usize, index.columns.len(), "{what}: count");
            assert_eq!(selected.columns[entry * capacity..][..capacity], expected, "{what}: columns");
            let mut expected = index.offsets.clone();
            expected.resize(selected.room, 0);
            assert_eq!(selected.offset_counts[entry] as usize, index.offsets.len(), "{what}: count of offsets");
            assert_eq!(selected.offsets[entry * selected.room..][..selected.room], expected, "{what}: offsets");
        }
    }
}

/// Scores that try a selection: plain, few different values, all kinds of numbers.
pub(super) fn hard_scores(rng: &mut StdRng, kind: u32, length: usize) -> Vec<f32> {
    const ODD: [f32; 10] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, 1.0 + f32::EPSILON, -1.0, 1e-45, f32::MAX];
    let value = |rng: &mut StdRng| match kind {
        0 => rng.random::<f32>(),
        1 => f32::from(rng.random_range(0..3u8)),
        2 => 0.5,
        3 => f32::from_bits(rng.random()),
        _ => ODD[rng.random_range(0..ODD.len())],
    };
    (0..length).map(|_| value(rng)).collect()
}

#[test]
fn selection_is_exact() {
    let seed = testing::seed(44);
    println!("seed {seed}");
    let lengths: [u32; 19] = [0, 1, 2, 29, 30, 31, 63, 64, 65, 99, 100, 101, 127, 128, 129, 511, 513, 1024, 4097];
    let selections = [
        ((30, 50), (30, 100), [(0, 0), (1000, 6096), (30, 100), (64, 700), (u32::MAX, u32::MAX)]),
        ((0, 0), (0, 0), [(0, 0), (1, 1), (5, 2), (31, 63), (4096, 4096)]),
        ((0, 0), (1000, 1000), [(0, 0), (1, 1), (200, 300), (4097, 4097), (33, 1)]),
    ];
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (i, (minimum, forced, sizes)) in selections.into_iter().enumerate() {
            let (vertical_sizes, slash_sizes) = sizes.into_iter().unzip();
            let block = [32, 64, 128][i];
            let s = Selection {
                vertical_sizes,
                slash_sizes,
                minimum,
                forced,
                capacity: 4100,
                block,
                shares: Vec::new(),
                head_map: Vec::new(),
            };
            let max_kv = 4100;
            let (mut vertical, mut slash) = (Vec::new(), Vec::new());
            let mut scores = Scores::new();
            for &length in &lengths {
                let mut heads = Vec::new();
                for head in 0..sizes.len() as u32 {
                    let mut draw = || hard_scores(&mut rng, (head + i as u32 + length) % 5, length as usize);
                    let pair = (draw(), draw());
                    for (all, own) in [(&mut vertical, &pair.0), (&mut slash, &pair.1)] {
                        all.extend_from_slice(own);
                        // Beyond the length: scores that would win.
                        all.resize(all.len() + (max_kv - length) as usize, f32::INFINITY);
                    }
                    heads.push(pair);
                }
                scores.push(heads);
            }
            let (vertical, slash) = (bench.upload(&vertical), bench.upload(&slash));
            let selected = select(&bench, &vertical, &slash, &lengths, max_kv, &s);
            assert_eq!(selected.status, 0);
            assert_selected("hard scores", &selected, &scores, &s);
        }
    }
}

/// Slashes by how far apart they are: what decides where blocks at any offset begin.
#[test]
fn slashes_near_and_far_are_covered_over_several_turns() {
    let seed = testing::seed(47);
    println!("seed {seed}");
    let length = 13_000u32;
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for block in [32, 64, 128] {
            // All distances alike, then of each kind now and then.
            let near = 1..=block;
            let between = block + 1..=2 * block - 1;
            let far = 2 * block..=5 * block;
            let kinds = [
                vec![1..=1],
                vec![near.clone()],
                vec![between.clone()],
                vec![far.clone()],
                vec![block..=block + 1, 2 * block - 1..=2 * block],
                vec![1..=1, near, between, far],
            ];
            let heads: Vec<_> = kinds
                .iter()
                .map(|kinds| {
                    let mut slash = vec![0.0f32; length as usize];
                    let (mut at, mut count) = (0u32, 0);
                    while at < length {
                        slash[at as usize] = 1.0;
                        count += 1;
                        let kind = rng.random_range(0..kinds.len());
                        at += rng.random_range(kinds[kind].clone());
                    }
                    (slash, count)
                })
                .collect();
            let s = Selection {
                vertical_sizes: vec![1; kinds.len()],
                slash_sizes: heads.iter().map(|(_, count)| *count).collect(),
                minimum: (0, 0),
                forced: (0, 1),
                shares: Vec::new(),
                head_map: Vec::new(),
                capacity: 4,
                block,
            };
            let scores: Scores =
                vec![heads.into_iter().map(|(slash, _)| (vec![0.0; length as usize], slash)).collect()];
            let vertical = vec![0.0f32; kinds.len() * length as usize];
            let slash: Vec<f32> = scores[0].iter().flat_map(|(_, slash)| slash).copied().collect();
            let selected = select(&bench, &bench.upload(&vertical), &bench.upload(&slash), &[length], length, &s);
            assert_eq!(selected.status, 0);
            assert_selected("near and far", &selected, &scores, &s);
        }
    }
}

/// Scores as an estimate leaves them, of three kinds: few large ones, all alike, all kinds of numbers.
pub(super) fn estimated_scores(rng: &mut StdRng, kind: u32, length: usize) -> Vec<f32> {
    match kind % 3 {
        0 => {
            let weights: Vec<f32> = (0..length).map(|_| (6.0 * normal(rng)).exp()).collect();
            let sum: f32 = weights.iter().sum();
            weights.into_iter().map(|weight| 64.0 * weight / sum).collect()
        }
        1 => vec![64.0 / length as f32; length],
        _ => hard_scores(rng, 4, length),
    }
}

#[test]
fn shares_of_the_sum_are_exact() {
    let seed = testing::seed(45);
    println!("seed {seed}");
    let lengths: [u32; 8] = [0, 1, 2, 65, 129, 1000, 4096, 4097];
    let shares = vec![
        (Some(0.9), Some(0.9)),
        (Some(0.5), None),
        (None, Some(0.99)),
        (Some(1.0), Some(1e-3)),
        (Some(f32::MIN_POSITIVE), Some(1.0)),
        (Some(0.95), Some(0.95)),
    ];
    let heads = shares.len();
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (minimum, forced) in [((30, 50), (30, 100)), ((0, 0), (0, 0))] {
            let sizes = [4097, 1000, 300, 4097, 4097, 40];
            let s = Selection {
                vertical_sizes: sizes.to_vec(),
                slash_sizes: sizes.to_vec(),
                minimum,
                forced,
                capacity: 4100,
                block: 64,
                shares: shares.clone(),
                head_map: Vec::new(),
            };
            let max_kv = 4100;
            let (mut vertical, mut slash, mut scores) = (Vec::new(), Vec::new(), Scores::new());
            for &length in &lengths {
                let mut of_heads = Vec::new();
                for head in 0..heads as u32 {
                    let mut draw = || estimated_scores(&mut rng, head / 2 + length, length as usize);
                    let pair = (draw(), draw());
                    for (all, own) in [(&mut vertical, &pair.0), (&mut slash, &pair.1)] {
                        all.extend_from_slice(own);
                        all.resize(all.len() + (max_kv - length) as usize, f32::INFINITY);
                    }
                    of_heads.push(pair);
                }
                scores.push(of_heads);
            }
            let (vertical, slash) = (bench.upload(&vertical), bench.upload(&slash));
            let selected = select(&bench, &vertical, &slash, &lengths, max_kv, &s);
            assert_eq!(selected.status, 0);
            assert_selected("shares", &selected, &scores, &s);
        }
    }
}

#[test]
fn a_budget_beyond_the_capacity_is_clamped_and_reported() {
    for bench in Bench::all() {
        let scores: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let buffer = bench.upload(&scores);
        let s = Selection {
            vertical_sizes: vec![50],
            slash_sizes: vec![10],
            minimum: (0, 0),
            forced: (2, 1),
            shares: Vec::new(),
            head_map: Vec::new(),
            capacity: 7,
            block: 64,
        };
        let selected = select(&bench, &buffer, &buffer, &[100], 100, &s);
        assert_eq!(selected.status, 4);
        assert_eq!(selected.counts, [7]);
        assert_eq!(selected.columns, [0, 1, 95, 96, 97, 98, 99]);
        // Slashes 0 and 91 to 99, in blocks of 64.
        assert_eq!(selected.offset_counts, [3]);
        assert_eq!(selected.offsets, [0, 91, 155, 0]);
    }
}

/// A head without an entry in the map of a sequence has no index there, though it has scores.
#[test]
fn a_map_of_each_sequence_leaves_heads_out() {
    const NONE: u32 = u32::MAX;
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(testing::seed(61));
        let (heads, max_kv, lengths) = (2, 1000, [1000, 65]);
        let scores: Vec<f32> = (0..heads * lengths.len() * max_kv).map(|_| rng.random()).collect();
        let scores = bench.upload(&scores);
        let of = |head_map: &[u32]| {
            let s = Selection {
                vertical_sizes: vec![40; heads],
                slash_sizes: vec![70; heads],
                minimum: (30, 50),
                forced: (30, 50),
                capacity: 50,
                block: 64,
                shares: vec![(Some(0.5), None); heads],
                head_map: head_map.to_vec(),
            };
            select(&bench, &scores, &scores, &lengths, max_kv as u32, &s)
        };
        // What other entries say does not matter.
        let (all, some) = (of(&[]), of(&[7, NONE, NONE, 0]));
        assert_eq!((all.status, some.status), (0, 0));
        for entry in 0..4 {
            let exists = [0, 3].contains(&entry);
            let of = |s: &Selected| {
                let counts = (s.counts[entry], s.offset_counts[entry]);
                let lists = (s.columns[entry * 50..][..50].to_vec(), s.offsets[entry * s.room..][..s.room].to_vec());
                (counts, lists, s.visited[2 * entry..][..2].to_vec())
            };
            let nothing = ((0, 0), (vec![0; 50], vec![0; some.room]), vec![0; 2]);
            assert_eq!(of(&some), if exists { of(&all) } else { nothing }, "entry {entry}");
        }
    }
}

#[test]
fn the_index_covers_every_pair_of_the_definition() {
    let seed = testing::seed(45);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let dtype = MmaType::Bf16;
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, dtype, &q_lengths, 2, 64);
        let k = Side::random(&mut rng, dtype, &kv_lengths, 1, 64);
        let estimated = estimate(&bench, dtype, &q, &k, Layout::Padded, 0);
        for block in [32, 64, 128] {
            let s = Selection {
                shares: Vec::new(),
                head_map: Vec::new(),
                vertical_sizes: vec![12, 40],
                slash_sizes: vec![9, 30],
                minimum: (4, 5),
                forced: (2, 3),
                capacity: 40,
                block,
            };
            let selected = select(&bench, &estimated.vertical, &estimated.slash, &kv_lengths, k.longest(), &s);
            assert_selected("estimated scores", &selected, &estimated.scores, &s);
            for (sequence, heads) in estimated.scores.iter().enumerate() {
                for (head, (vertical, slash)) in heads.iter().enumerate() {
                    let (columns, slashes) = s.budgets(head);
                    let (columns, slashes) = (index::select(vertical, columns), index::select(slash, slashes));
                    let (q_len, kv_len) = (q_lengths[sequence] as usize, kv_lengths[sequence] as usize);
                    let wanted = Mask::from_positions(q_len, kv_len, |q, k| {
                        k <= q && (columns.contains(&(k as u32)) || slashes.contains(&((q - k) as u32)))
                    });
                    let device = device_index(&selected, sequence * heads.len() + head, s.capacity as usize);
                    let mask = Mask::vertical_slash(q_len, kv_len, block as usize, &device);
                    for (row, key) in (0..q_len).flat_map(|row| (0..kv_len).map(move |key| (row, key))) {
                        let covered = !wanted.keeps(row, key) || mask.keeps(row, key);
                        assert!(covered, "sequence {sequence}, head {head}: row {row} does not see key {key}");
                    }
                }
            }
        }
    }
}

/// The index of one head as the device wrote it.
pub(super) fn device_index(
    selected: &Selected,
    entry: usize,
    capacity: usize,
) -> kernel_tests::oracle::mask::VerticalSlash {
    let offsets = &selected.offsets[entry * selected.room..][..selected.offset_counts[entry] as usize];
    let columns = &selected.columns[entry * capacity..][..selected.counts[entry] as usize];
    kernel_tests::oracle::mask::VerticalSlash { offsets: offsets.to_vec(), columns: columns.to_vec() }
}
