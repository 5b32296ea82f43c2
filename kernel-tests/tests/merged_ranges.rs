//! The authors' vertical-slash index against the plain merge, bit for bit, through the library's own door.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kernel_core::{
    Bounds, Buffer, DType, Device, Lengths, Stream, TensorView,
    index::{MergeRule, MergedRanges, MergedRangesArgs, TokenLists},
};
use kernel_tests::{
    oracle::merged_ranges::{RowBlock, check_cover, merged_ranges},
    testing,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const RULES: [MergeRule; 2] = [MergeRule::Original, MergeRule::Extended];
const POISON: u8 = 0xFF;
/// What no entry of a list may be read as.
const UNLISTED: i32 = 7;

/// The index of one head of one sequence, as given.
#[derive(Clone, Debug)]
struct Set {
    verticals: Vec<i32>,
    slashes: Vec<i32>,
}

/// Sequences of a launch: (queries, keys) and a set for each head.
type Batch = Vec<((usize, usize), Vec<Set>)>;

/// How a launch is given.
#[derive(Clone, Copy, Debug)]
struct Form {
    rule: MergeRule,
    /// Entries of the lists, verticals and slashes.
    capacity: [usize; 2],
    /// Row blocks more than the longest sequence needs.
    more_rows: usize,
    /// Lengths as distances of starting rows.
    packed: bool,
}

struct Found {
    /// By sequence and head.
    rows: Vec<Vec<RowBlock>>,
    status: u32,
}

/// Runs a batch; all that is not listed must come back as zeros.
fn run(device: &Device, batch: &Batch, form: Form, counts: Option<&[[i32; 2]]>) -> Found {
    let stream = Stream::new(device).unwrap();
    let upload = |values: &[i32]| device.upload(&stream, values).unwrap();
    let heads = batch[0].1.len();
    let [longest_q, longest_kv] = [0, 1].map(|i| {
        let lengths = batch.iter().map(|((q, kv), _)| [*q, *kv][i]);
        lengths.max().unwrap()
    });
    let rows = longest_q.div_ceil(64) + form.more_rows;
    let lists = |kind: usize| {
        let mut entries = Vec::new();
        for set in batch.iter().flat_map(|(_, sets)| sets) {
            let list = if kind == 0 { &set.verticals } else { &set.slashes };
            entries.extend_from_slice(list);
            entries.extend(vec![UNLISTED; form.capacity[kind] - list.len()]);
        }
        upload(&entries)
    };
    let own = |kind: usize| -> Vec<i32> {
        let sets = batch.iter().flat_map(|(_, sets)| sets);
        sets.map(|set| if kind == 0 { set.verticals.len() } else { set.slashes.len() } as i32).collect()
    };
    let counts = [0, 1].map(|kind| {
        upload(&counts.map_or_else(|| own(kind), |counts| counts.iter().map(|pair| pair[kind]).collect::<Vec<_>>()))
    });
    let entries = [0, 1].map(lists);
    let lengths = [0, 1].map(|i| {
        let each = batch.iter().map(|((q, kv), _)| [*q, *kv][i] as i32);
        if form.packed {
            let ends = each.scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            upload(&[0].into_iter().chain(ends).collect::<Vec<i32>>())
        } else {
            upload(&each.collect::<Vec<i32>>())
        }
    });
    let pairs = batch.len() * heads;
    let poisoned = |entries: usize| {
        let buffer = device.allocate((4 * entries).max(4)).unwrap();
        buffer.fill(&stream, POISON).unwrap();
        buffer
    };
    let outputs = [1, form.capacity[1], 1, form.capacity[0]].map(|entries| poisoned(pairs * rows * entries));
    let status = device.upload(&stream, &[0u32]).unwrap();

    let view = |buffer, shape: &[usize]| {
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        TensorView::new(buffer, DType::I32, &shape).unwrap()
    };
    let tokens = |kind: usize| TokenLists {
        entries: view(&entries[kind], &[batch.len(), heads, form.capacity[kind]]),
        counts: Some(view(&counts[kind], &[batch.len(), heads])),
    };
    let [q, kv] = [0, 1].map(|i| Some(view(&lengths[i], &[batch.len() + usize::from(form.packed)])));
    let lengths = if form.packed {
        Lengths { q_start: q, kv_start: kv, ..Lengths::default() }
    } else {
        Lengths { q_length: q, kv_length: kv, ..Lengths::default() }
    };
    let shape = [batch.len(), heads, rows];
    let wide = |buffer, capacity| view(buffer, &[batch.len(), heads, rows, capacity]);
    let args = MergedRangesArgs {
        lengths,
        bounds: Bounds { batch: batch.len() as u32, max_q: longest_q as u32, max_kv: longest_kv as u32 },
        verticals: tokens(0),
        slashes: tokens(1),
        block_count: view(&outputs[0], &shape),
        block_offset: wide(&outputs[1], form.capacity[1]),
        column_count: view(&outputs[2], &shape),
        column_index: wide(&outputs[3], form.capacity[0]),
        status: Some(TensorView::new(&status, DType::U32, &[1]).unwrap()),
    };
    MergedRanges::build(device, form.rule).unwrap().run(&stream, &args).unwrap();
    let read = |buffer: &Buffer| buffer.read::<i32>(&stream).unwrap();
    let [block_count, block_offset, column_count, column_index] = outputs.each_ref().map(read);
    let list = |counts: &[i32], entries: &[i32], capacity: usize, at: usize| {
        let (listed, rest) = entries[at * capacity..][..capacity].split_at(counts[at] as usize);
        assert!(rest.iter().all(|entry| *entry == 0), "{form:?}: row block {at} has {rest:?} past its count");
        listed.to_vec()
    };
    let rows_of = |pair: usize| {
        let row = |at: usize| RowBlock {
            blocks: list(&block_count, &block_offset, form.capacity[1], at),
            columns: list(&column_count, &column_index, form.capacity[0], at),
        };
        (pair * rows..(pair + 1) * rows).map(row).collect()
    };
    Found { rows: (0..pairs).map(rows_of).collect(), status: status.read::<u32>(&stream).unwrap()[0] }
}

/// Compares with the plain merge; row blocks past the queries have nothing.
fn assert_merged(batch: &Batch, form: Form, found: &Found) {
    let sets = batch.iter().flat_map(|(lengths, sets)| sets.iter().map(move |set| (lengths, set)));
    for (rows, (&(q_len, kv_len), set)) in found.rows.iter().zip(sets) {
        let mut expected = merged_ranges(form.rule, q_len, kv_len, &set.verticals, &set.slashes);
        expected.resize(rows.len(), RowBlock::default());
        assert_eq!(*rows, expected, "{form:?}, {q_len} queries, {kv_len} keys, {set:?}");
    }
}

/// Distinct numbers below `keys`, ascending: scattered, in runs, or few and near.
fn draw(rng: &mut StdRng, keys: usize, most: usize) -> Vec<i32> {
    let wanted = rng.random_range(0..=most);
    let mut drawn: Vec<i32> = Vec::new();
    match rng.random_range(0..4) {
        0 => {}
        1 => drawn.extend((0..wanted).map(|_| rng.random_range(0..keys) as i32)),
        2 => drawn.extend((0..wanted).map(|_| rng.random_range(0..keys.min(130)) as i32)),
        _ => {
            while drawn.len() < wanted {
                let first = rng.random_range(0..keys);
                let run = rng.random_range(1..20).min(wanted - drawn.len());
                drawn.extend((first..keys).take(run).map(|key| key as i32));
            }
        }
    }
    drawn.sort_unstable();
    drawn.dedup();
    drawn
}

/// Sets of the sequences of a launch. Some have slash 0 added, and its neighbours.
fn random_batch(rng: &mut StdRng, sequences: usize, heads: usize, most: usize) -> Batch {
    let sequence = |rng: &mut StdRng| {
        let longest = if rng.random_bool(0.3) { 130 } else { 700 };
        let kv_len = rng.random_range(1..=longest);
        // As many queries, a chunk at the end, or, which no engine asks for, more than keys.
        let q_len = match rng.random_range(0..10) {
            0..5 => kv_len,
            5..9 => rng.random_range(1..=kv_len),
            _ => rng.random_range(0..=700),
        };
        let set = |rng: &mut StdRng| {
            let verticals = draw(rng, kv_len, most);
            let mut slashes = draw(rng, kv_len, most - 1);
            if rng.random_bool(0.6) && slashes.first() != Some(&0) {
                slashes.insert(0, 0);
            } else if rng.random_bool(0.2) && kv_len > 64 {
                // The end of some row block, and nothing nearer.
                let end = (kv_len - q_len.min(kv_len)) as i32 + 64;
                slashes.retain(|slash| *slash > end);
                slashes.insert(0, end.min(kv_len as i32 - 1));
                slashes.dedup();
            }
            slashes.reverse();
            Set { verticals, slashes }
        };
        ((q_len, kv_len), (0..heads).map(|_| set(rng)).collect())
    };
    (0..sequences).map(|_| sequence(rng)).collect()
}

/// `launches` of 40 sequences with five heads, under both rules.
fn random_sets(launches: usize, default: u64, devices: &[Device]) {
    let seed = testing::seed(default);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for launch in 0..launches {
        let most = [3, 40, 90][launch % 3];
        let batch = random_batch(&mut rng, 40, 5, most);
        let capacity = [most + launch % 2, most + launch % 5];
        for (device, rule) in devices.iter().flat_map(|device| RULES.map(|rule| (device, rule))) {
            let form = Form { rule, capacity, more_rows: launch % 3, packed: launch % 4 == 3 };
            let found = run(device, &batch, form, None);
            assert_eq!(found.status, 0, "{form:?}");
            assert_merged(&batch, form, &found);
        }
    }
}

#[test]
fn ten_thousand_random_sets_equal_the_plain_merge() {
    random_sets(50, 61, &[Device::emulator()]);
}

#[test]
fn gpu_random_sets_equal_the_plain_merge() {
    random_sets(50, 62, testing::gpu().as_slice());
}

#[test]
fn nothing_that_is_needed_is_lost_or_there_twice() {
    let seed = testing::seed(63);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for (lengths, sets) in random_batch(&mut rng, 300, 5, 60) {
        for Set { verticals, slashes } in sets {
            for rule in RULES {
                // The authors' rule promises nothing without the diagonal.
                if rule == MergeRule::Original && slashes.last() != Some(&0) {
                    continue;
                }
                let rows = merged_ranges(rule, lengths.0, lengths.1, &verticals, &slashes);
                let verdict = check_cover(lengths, &verticals, &slashes, &rows);
                verdict.unwrap_or_else(|wrong| panic!("{rule:?}, {lengths:?}, {verticals:?}, {slashes:?}: {wrong}"));
                for row in &rows {
                    assert!(row.blocks.len() <= slashes.len().max(1) && row.columns.len() <= verticals.len());
                }
            }
        }
    }
}

#[test]
fn both_rules_agree_where_the_diagonal_is_selected_and_row_blocks_are_full() {
    let seed = testing::seed(64);
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for (lengths, sets) in random_batch(&mut rng, 300, 5, 60) {
        let (q_len, kv_len) = (lengths.0.next_multiple_of(64), lengths.1.next_multiple_of(64));
        for Set { verticals, mut slashes } in sets {
            if slashes.last() != Some(&0) {
                slashes.push(0);
            }
            let rows = |rule| merged_ranges(rule, q_len, kv_len, &verticals, &slashes);
            assert_eq!(rows(RULES[0]), rows(RULES[1]), "{q_len} queries, {kv_len} keys, {verticals:?}, {slashes:?}");
        }
    }
}

/// A launch of one sequence with one head.
fn single(device: &Device, rule: MergeRule, lengths: (usize, usize), verticals: &[i32], slashes: &[i32]) -> Found {
    let batch = vec![(lengths, vec![Set { verticals: verticals.to_vec(), slashes: slashes.to_vec() }])];
    let form = Form { rule, capacity: [verticals.len(), slashes.len().max(1)], more_rows: 0, packed: false };
    let found = run(device, &batch, form, None);
    assert_merged(&batch, form, &found);
    found
}

fn row(blocks: &[i32], columns: &[i32]) -> RowBlock {
    RowBlock { blocks: blocks.to_vec(), columns: columns.to_vec() }
}

#[test]
fn published_examples() {
    for device in testing::devices() {
        for rule in RULES {
            let rows = |n, verticals: &[i32], slashes: &[i32]| {
                single(&device, rule, (n, n), verticals, slashes).rows.swap_remove(0)
            };
            assert_eq!(rows(192, &[0], &[3, 0]), [row(&[0], &[]), row(&[61, 125], &[0]), row(&[125, 189], &[0])]);
            assert_eq!(rows(256, &[10], &[130, 64, 0])[3], row(&[62, 128, 192], &[10]));
        }
    }
}

#[test]
fn where_the_rules_differ() {
    use MergeRule::{Extended, Original};
    for device in testing::devices() {
        let rows = |rule, lengths, verticals: &[i32], slashes: &[i32]| {
            single(&device, rule, lengths, verticals, slashes).rows.swap_remove(0)
        };
        // Verticals behind the last range.
        assert_eq!(rows(Original, (128, 128), &[80], &[50])[1], row(&[14], &[]));
        assert_eq!(rows(Extended, (128, 128), &[80], &[50])[1], row(&[14], &[80]));
        // Blocks behind the last key.
        assert_eq!(rows(Original, (100, 100), &[], &[3, 0])[1], row(&[61, 125], &[]));
        assert_eq!(rows(Extended, (100, 100), &[], &[3, 0])[1], row(&[61], &[]));
        // No slash below the end: the authors read what lies behind the list.
        assert_eq!(rows(Original, (192, 192), &[5, 70], &[150])[..2], [row(&[], &[]), row(&[], &[5])]);
        assert_eq!(rows(Extended, (192, 192), &[5, 70], &[150])[..2], [row(&[64], &[5]), row(&[128], &[5, 70])]);
        assert_eq!(rows(Extended, (128, 128), &[5, 70], &[])[1], row(&[], &[5, 70]));
        // The end itself as the nearest slash.
        assert_eq!(rows(Original, (128, 128), &[5, 70], &[64])[0], row(&[], &[]));
        assert_eq!(rows(Extended, (128, 128), &[5, 70], &[64])[0], row(&[0], &[]));
        // A chunk of the last queries: diagonals count from the last key.
        assert_eq!(rows(Extended, (64, 256), &[10], &[130, 64, 0]), [row(&[62, 128, 192], &[10])]);
    }
}

#[test]
fn lists_without_room_stay_empty() {
    for device in testing::devices() {
        for rule in RULES {
            let batch = vec![((100, 200), vec![Set { verticals: vec![], slashes: vec![] }])];
            let form = Form { rule, capacity: [0, 0], more_rows: 1, packed: false };
            let found = run(&device, &batch, form, None);
            assert_eq!((found.status, found.rows), (0, vec![vec![RowBlock::default(); 3]]));
        }
    }
}

#[test]
fn wild_entries_count_as_none_and_are_reported() {
    for device in testing::devices() {
        for rule in RULES {
            let sets: [(&[i32], &[i32]); 4] = [
                (&[-5, 0, 70], &[3, 0]),
                (&[0, 70, 192, i32::MAX], &[3, 0]),
                (&[0, 70], &[i32::MAX, 192, 3, 0]),
                (&[0, 70], &[3, 0, -1, i32::MIN]),
            ];
            for (verticals, slashes) in sets {
                let found = single(&device, rule, (192, 192), verticals, slashes);
                assert_eq!(found.status, 2, "{verticals:?}, {slashes:?}");
                assert_eq!(found.rows, single(&device, rule, (192, 192), &[0, 70], &[3, 0]).rows);
            }
        }
    }
}

#[test]
fn lists_out_of_order_are_reported_and_stay_in_bounds() {
    for device in testing::devices() {
        for rule in RULES {
            let batch = vec![((192, 192), vec![Set { verticals: vec![70, 0], slashes: vec![0, 3] }])];
            let form = Form { rule, capacity: [2, 2], more_rows: 0, packed: false };
            assert_eq!(run(&device, &batch, form, None).status, 2);
        }
    }
}

#[test]
fn counts_beyond_the_lists_are_clamped_and_harm_no_other_head() {
    let lists = Set { verticals: vec![0, 70], slashes: vec![3, 0] };
    let batch = vec![((192, 192), vec![lists.clone(), lists.clone(), lists])];
    for device in testing::devices() {
        for rule in RULES {
            let form = Form { rule, capacity: [2, 2], more_rows: 0, packed: false };
            let plain = run(&device, &batch, form, None);
            assert_eq!(plain.status, 0);
            for wild in [[3, 3], [i32::MAX, 2], [2, 1 << 24]] {
                let found = run(&device, &batch, form, Some(&[[2, 2], wild, [2, 2]]));
                assert_eq!((found.status, found.rows), (2, plain.rows.clone()), "counts {wild:?}");
            }
            let found = run(&device, &batch, form, Some(&[[2, 2], [-1, i32::MIN], [2, 2]]));
            assert_eq!(found.status, 2);
            assert_eq!([&found.rows[0], &found.rows[2]], [&plain.rows[0], &plain.rows[2]]);
            assert_eq!(found.rows[1], merged_ranges(rule, 192, 192, &[], &[]));
        }
    }
}

#[test]
fn heads_with_budgets_of_their_own_share_lists_and_counts() {
    for device in testing::devices() {
        let stream = Stream::new(&device).unwrap();
        let upload = |values: &[i32]| device.upload(&stream, values).unwrap();
        let (verticals, slashes) = ([0, 70, 100], [130, 3, 0]);
        let (entries, counts) = ([upload(&verticals), upload(&slashes)], [upload(&[3, 1]), upload(&[3, 3])]);
        let outputs = [1, 3, 1, 3].map(|entries| device.allocate(4 * 2 * 2 * 3 * entries).unwrap());
        let view = |buffer, shape: &[u64]| TensorView::new(buffer, DType::I32, shape).unwrap();
        let run = |budgets: bool| {
            let tokens = |kind: usize| TokenLists {
                entries: view(&entries[kind], &[1, 1, 3]),
                counts: budgets.then(|| view(&counts[kind], &[2])),
            };
            let args = MergedRangesArgs {
                lengths: Lengths::default(),
                bounds: Bounds { batch: 2, max_q: 192, max_kv: 192 },
                verticals: tokens(0),
                slashes: tokens(1),
                block_count: view(&outputs[0], &[2, 2, 3]),
                block_offset: view(&outputs[1], &[2, 2, 3, 3]),
                column_count: view(&outputs[2], &[2, 2, 3]),
                column_index: view(&outputs[3], &[2, 2, 3, 3]),
                status: None,
            };
            outputs.iter().for_each(|output| output.fill(&stream, POISON).unwrap());
            MergedRanges::build(&device, MergeRule::Extended).unwrap().run(&stream, &args).unwrap();
            outputs[2].read::<i32>(&stream).unwrap()
        };
        let columns = |verticals: &[i32]| -> Vec<i32> {
            let rows = merged_ranges(MergeRule::Extended, 192, 192, verticals, &slashes);
            rows.iter().map(|row| row.columns.len() as i32).collect()
        };
        assert_eq!(run(false), [columns(&verticals), columns(&verticals)].concat().repeat(2));
        assert_eq!(run(true), [columns(&verticals), columns(&verticals[..1])].concat().repeat(2));
    }
}
