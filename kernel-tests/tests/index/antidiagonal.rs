//! Antidiagonal selection: masses to tolerance, the blocks selected from them exactly.

use super::*;
use kernel_tests::oracle::index::{Antidiagonal, antidiagonal, antidiagonal_masses};
use ptx::kernels::index::{AntidiagonalSelectSpec, AntidiagonalSumsSpec};

/// Blocks that share out the tiles of a sequence: fewer than there are tiles in some tests.
const BLOCKS: u32 = 3;

/// One estimate: what is asked for, where keys and queries lie, and the tiles of a slice.
struct Asked {
    dtype: MmaType,
    layout: Layout,
    options: Antidiagonal,
    capacity: u32,
    slice: u32,
    head_map: Option<Vec<u32>>,
}

impl Asked {
    fn new(stride: usize, block: (usize, usize), threshold: f32) -> Asked {
        let options = Antidiagonal { stride, block, threshold, limit: u32::MAX };
        Asked { dtype: MmaType::Bf16, layout: Layout::Packed, options, capacity: 40, slice: 1, head_map: None }
    }
}

/// What a plan wrote: lists `[batch][heads][rows]`, and the masses by key block.
struct Found {
    counts: Vec<i32>,
    indices: Vec<i32>,
    masses: Vec<f32>,
    rows: usize,
    key_blocks: usize,
    status: u32,
}

fn plan(bench: &Bench, asked: &Asked, q: &Side, k: &Side) -> Found {
    let Asked { dtype, layout, options, capacity, .. } = *asked;
    let (stride, m, n) = (options.stride as u32, options.block.0 as u32, options.block.1 as u32);
    let (head_dim, batch) = (q.head_dim, q.lengths.len() as u32);
    let heads = asked.head_map.as_ref().map_or(q.heads, |map| map.len() as u32);
    let map = asked.head_map.as_ref().map(|map| bench.upload(map));
    let (max_q, max_kv) = (q.longest(), k.longest());
    let (queries, keys) = (q.place(bench, dtype, layout.of_queries(), max_q), k.place(bench, dtype, layout, max_kv));
    let (key_blocks, rows) = (max_kv.div_ceil(n), max_q.div_ceil(m));
    let slice_rows = asked.slice * workspace::antidiagonal_rows(stride);
    let statistics =
        bench.poisoned(workspace::antidiagonal_statistics_bytes(batch, heads, asked.slice, max_kv, stride));
    let sums = bench.poisoned(workspace::antidiagonal_sums_bytes(batch, heads, asked.slice, max_kv, stride, n));
    let masses = bench.poisoned(u64::from(batch * heads * rows * key_blocks) * 4);
    let lists = Lists::new(bench, [batch, heads, rows, capacity]);
    let shares = bench.upload(&vec![share(options.threshold); heads as usize]);
    let limits = bench.upload(&vec![options.limit; heads as usize]);
    let status = bench.status();
    let (kv, arch) = (layout.kv(), bench.arch);
    let products = bench.load(&AntidiagonalSumsSpec { stride, block: n, head_dim, dtype, kv, arch });
    let room = key_blocks.next_power_of_two().max(256);
    let select = bench.load(&AntidiagonalSelectSpec { stride, block: (m, n), key_blocks: room, arch: Arch::Sm80 });
    for first in (0..max_q).step_by(slice_rows as usize) {
        let arguments = maps(bench, &products, dtype, [("q", &queries), ("k", &keys)]);
        let arguments = tensor(tensor(arguments, "q", &queries), "k", &keys);
        let arguments = bounds(bounds(arguments, "q", &queries), "kv", &keys)
            .u32("heads", q.heads)
            .u32("heads_per_kv", q.heads / k.heads)
            .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
            .f32("scale", SCALE)
            .pointer("status", status.address())
            .u32("first_tile", first / workspace::antidiagonal_rows(stride))
            .pointer("statistics", statistics.address())
            .pointer("block_sums", sums.address());
        let (grid, arguments) = match arch {
            Arch::Sm80 => (workspace::antidiagonal_grid(batch, heads, asked.slice, max_kv, stride), arguments),
            Arch::Sm90a => ([BLOCKS, 1, batch], arguments.u32("slots", heads).u32("tiles", asked.slice)),
        };
        products.launch(&bench.stream, grid, &arguments).unwrap();

        let arguments = lists.arguments(Arguments::new(select.meta()));
        let arguments = bounds(bounds(arguments, "q", &queries), "kv", &keys)
            .u32("heads", q.heads)
            .u32("heads_per_kv", q.heads / k.heads)
            .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
            .u32("first_row_block", first / m)
            .pointer("statistics", statistics.address())
            .pointer("block_sums", sums.address())
            .u32("slice_cells", slice_rows / stride)
            .pointer("shares", shares.address())
            .pointer("limits", limits.address())
            .pointer("masses", masses.address())
            .u64("masses_batch", u64::from(heads * rows * key_blocks) * 4)
            .u64("masses_head", u64::from(rows * key_blocks) * 4)
            .u64("masses_row", u64::from(key_blocks) * 4)
            .pointer("status", status.address());
        let blocks = (rows - first / m).min(slice_rows / m);
        select.launch(&bench.stream, [blocks, heads, batch], &arguments).unwrap();
    }
    Found {
        counts: bench.read(&lists.counts),
        indices: bench.read(&lists.indices),
        masses: bench.read(&masses),
        rows: rows as usize,
        key_blocks: key_blocks as usize,
        status: bench.read::<u32>(&status)[0],
    }
}

impl Found {
    fn list(&self, entry: usize) -> &[i32] {
        let capacity = self.indices.len() / self.counts.len();
        &self.indices[entry * capacity..][..self.counts[entry] as usize]
    }
}

/// Calls `check` with what each row block of each sequence and asked head has, by entry: sequence, head, row block.
fn every_row_block(found: &Found, asked: &Asked, q: &Side, mut check: impl FnMut(usize, usize, u32, usize)) {
    let heads = asked.head_map.clone().unwrap_or_else(|| (0..q.heads).collect());
    let entries = (0..q.lengths.len()).flat_map(|sequence| heads.iter().map(move |&head| (sequence, head)));
    for (pair, (sequence, head)) in entries.enumerate() {
        (0..found.rows).for_each(|row| check(pair * found.rows + row, sequence, head, row));
    }
}

fn assert_masses(what: &str, found: &Found, asked: &Asked, q: &Side, k: &Side) {
    let mut reference = (usize::MAX, u32::MAX, Vec::new());
    every_row_block(found, asked, q, |entry, sequence, head, row| {
        if (reference.0, reference.1) != (sequence, head) {
            let (queries, keys) = (q.rows(sequence, head), k.rows(sequence, head / (q.heads / k.heads)));
            let scale = f64::from(SCALE);
            let masses = antidiagonal_masses(&queries, &keys, q.head_dim as usize, scale, asked.options);
            reference = (sequence, head, masses);
        }
        let what = format!("{what}, sequence {sequence}, head {head}, row block {row}, {:?}", asked.options);
        let masses = &found.masses[entry * found.key_blocks..][..found.key_blocks];
        let seen = reference.2.get(row).map_or(&[][..], Vec::as_slice);
        for (block, (&mass, &wanted)) in masses.iter().zip(seen).enumerate() {
            let close = (f64::from(mass) - wanted).abs() <= 1e-4 * wanted + 1e-30;
            assert!(close || wanted.is_nan() && mass.is_nan(), "{what}: block {block}: {mass:e}, not {wanted:e}");
        }
        let unwritten = masses[seen.len()..].iter().all(|mass| mass.to_bits() == u32::MAX);
        assert!(unwritten, "{what}: masses of blocks that are not seen");
    });
}

/// The lists are those that the reference selects from the device's own masses.
fn assert_lists(what: &str, found: &Found, asked: &Asked, q: &Side, k: &Side) {
    assert_eq!(found.status, 0, "{what}: status");
    let capacity = found.indices.len() / found.counts.len();
    every_row_block(found, asked, q, |entry, sequence, head, row| {
        let what = format!("{what}, sequence {sequence}, head {head}, row block {row}, {:?}", asked.options);
        let (q_len, kv_len) = (q.lengths[sequence] as usize, k.lengths[sequence] as usize);
        let masses = &found.masses[entry * found.key_blocks..][..found.key_blocks];
        let exists = row * asked.options.block.0 < q_len;
        let list = if exists { antidiagonal(masses, row, q_len, kv_len, asked.options) } else { Vec::new() };
        assert_eq!(found.counts[entry] as usize, list.len(), "{what}: count");
        let mut expected: Vec<i32> = list.iter().map(|&block| block as i32).collect();
        expected.resize(capacity, 0);
        assert_eq!(found.indices[entry * capacity..][..capacity], expected, "{what}");
    });
}

fn assert_found(what: &str, found: &Found, asked: &Asked, q: &Side, k: &Side) {
    assert_masses(what, found, asked, q, k);
    assert_lists(what, found, asked, q, k);
}

#[test]
fn masses_agree_with_double_precision() {
    let seed = testing::seed(51);
    println!("seed {seed}");
    let lengths = [1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257];
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (dtype, head_dim, stride, block) in [
            (MmaType::Bf16, 128, 16, (128, 128)),
            (MmaType::F16, 64, 8, (128, 128)),
            (MmaType::Bf16, 96, 16, (64, 64)),
            (MmaType::F16, 96, 8, (64, 32)),
            (MmaType::Bf16, 64, 16, (128, 32)),
            (MmaType::F16, 128, 8, (32, 64)),
        ] {
            let q = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
            let k = Side::random(&mut rng, dtype, &lengths, 1, head_dim);
            let asked = Asked { dtype, ..Asked::new(stride, block, 0.9) };
            assert_found(&format!("{dtype:?} d{head_dim}"), &plan(&bench, &asked, &q, &k), &asked, &q, &k);
        }
    }
}

#[test]
fn keys_in_pages_give_the_bits_of_strided_keys() {
    let seed = testing::seed(53);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (dtype, head_dim, stride, page) in
            [(MmaType::Bf16, 64, 8, 16), (MmaType::F16, 128, 16, 64), (MmaType::Bf16, 96, 16, 256)]
        {
            let (mut q_lengths, mut kv_lengths) = mixed();
            q_lengths.extend([70, 5, 64]);
            kv_lengths.extend([page - 1, page, 3 * page + 1]);
            let q = Side::random(&mut rng, dtype, &q_lengths, 2, head_dim);
            let k = Side::random(&mut rng, dtype, &kv_lengths, 1, head_dim);
            let of = |layout| {
                let found = plan(&bench, &Asked { dtype, layout, ..Asked::new(stride, (64, 64), 0.8) }, &q, &k);
                let masses: Vec<u32> = found.masses.iter().map(|mass| mass.to_bits()).collect();
                (masses, found.counts, found.indices, found.status)
            };
            assert!(of(Layout::Padded) == of(Layout::Paged(page)), "{dtype:?} d{head_dim} page {page}");
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let seed = testing::seed(52);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 4, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 2, 64);
        let asked = Asked::new(8, (64, 64), 0.8);
        let packed = plan(&bench, &asked, &q, &k);
        assert_found("packed", &packed, &asked, &q, &k);
        let asked = Asked { layout: Layout::Padded, head_map: Some(vec![3, 0]), ..asked };
        let padded = plan(&bench, &asked, &q, &k);
        assert_found("padded, two heads", &padded, &asked, &q, &k);
        for sequence in 0..MIXED.len() {
            for row in 0..packed.rows {
                let own = |found: &Found, heads: usize, head: usize| {
                    let entry = (sequence * heads + head) * found.rows + row;
                    let masses = found.masses[entry * found.key_blocks..][..found.key_blocks].iter();
                    (found.list(entry).to_vec(), masses.map(|mass| mass.to_bits()).collect::<Vec<_>>())
                };
                assert_eq!(own(&packed, 4, 3), own(&padded, 2, 0), "sequence {sequence}, row block {row}");
                assert_eq!(own(&packed, 4, 0), own(&padded, 2, 1), "sequence {sequence}, row block {row}");
            }
        }
    }
}

/// More tiles than one in both directions, and more slices than one.
#[test]
fn slices_and_tiles_meet() {
    let seed = testing::seed(53);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = ([2100, 500], [2500, 4300]);
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 1, 64);
        let asked = Asked { capacity: 80, ..Asked::new(8, (128, 64), 0.7) };
        let one = plan(&bench, &asked, &q, &k);
        assert_found("a tile a slice", &one, &asked, &q, &k);
        let two = plan(&bench, &Asked { slice: 2, ..asked }, &q, &k);
        assert_eq!(one.indices, two.indices);
        let bits = |found: &Found| found.masses.iter().map(|mass| mass.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&one), bits(&two));
    }
}

/// A strip of the grid has 16K keys at a stride of 8 and 32K at 16.
#[test]
fn strips_of_long_sequences_meet() {
    let seed = testing::seed(66);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        for (stride, keys) in [(8, 16_384 + 700), (16, 32_768 + 1100)] {
            let mut asked = Asked::new(stride, (128, 128), 0.9);
            asked.capacity = 300;
            let q = Side::random(&mut rng, asked.dtype, &[140], 1, 64);
            let k = Side::random(&mut rng, asked.dtype, &[keys], 1, 64);
            let found = plan(&bench, &asked, &q, &k);
            assert_found("strips", &found, &asked, &q, &k);
        }
    }
}

#[test]
fn thresholds_ties_and_limits_are_exact() {
    let seed = testing::seed(54);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut q = Side::random(&mut rng, MmaType::Bf16, &[300, 256, 200], 1, 64);
        let mut k = Side::random(&mut rng, MmaType::Bf16, &[900, 1000, 200], 1, 64);
        // All masses alike; then scores so far apart that most masses are nothing.
        q.values[1].fill(1.0);
        k.values[1].fill(1.0);
        q.values[2].iter_mut().for_each(|value| *value *= 32.0);
        for (threshold, limit) in [(1.0, u32::MAX), (0.5, u32::MAX), (0.9, 5), (1.0, 0), (1e-9, u32::MAX), (0.99, 12)] {
            let asked = Asked::new(16, (64, 64), threshold);
            let asked = Asked { options: Antidiagonal { limit, ..asked.options }, ..asked };
            let found = plan(&bench, &asked, &q, &k);
            assert_lists("thresholds", &found, &asked, &q, &k);
        }
    }
}

#[test]
fn what_is_not_a_number_costs_no_row_its_diagonal() {
    let seed = testing::seed(55);
    println!("seed {seed}");
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(seed);
        let lengths = [300, 300, 300, 300];
        let mut q = Side::random(&mut rng, MmaType::Bf16, &lengths, 1, 64);
        let mut k = Side::random(&mut rng, MmaType::Bf16, &lengths, 1, 64);
        q.values[0][70 * 64] = f32::NAN;
        k.values[1][200 * 64 + 3] = f32::NAN;
        k.values[2][100 * 64 + 3] = f32::INFINITY;
        q.values[3].fill(1.0);
        k.values[3][..64 * 64].fill(f32::NEG_INFINITY);
        let asked = Asked::new(16, (64, 64), 0.95);
        let found = plan(&bench, &asked, &q, &k);
        assert_found("no numbers", &found, &asked, &q, &k);
        let nan = |entry: usize| found.masses[entry * found.key_blocks].is_nan();
        assert_eq!((0..5).map(nan).collect::<Vec<_>>(), [false, true, false, false, false], "one row of queries");
        assert!(nan(9) && found.list(9) == [0, 4], "a key that is not a number: {:?}", found.list(9));
        // Keys at −∞ hold nothing, and the first row block, which sees nothing else, still has its diagonal.
        assert_eq!(found.list(15), [0]);
        assert_eq!(found.masses[15 * found.key_blocks], 0.0);
    }
}

#[test]
fn a_list_beyond_the_capacity_keeps_its_diagonal() {
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(56);
        let q = Side::random(&mut rng, MmaType::Bf16, &[256], 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[256], 1, 64);
        let asked = Asked { capacity: 1, ..Asked::new(8, (64, 64), 1.0) };
        let found = plan(&bench, &asked, &q, &k);
        assert_eq!(found.status, 4);
        assert_eq!(found.counts, [1, 1, 1, 1]);
        assert_eq!(found.indices, [0, 1, 2, 3]);
    }
}

#[test]
fn a_head_that_does_not_exist_has_no_blocks() {
    for bench in Bench::targets() {
        let mut rng = StdRng::seed_from_u64(testing::seed(57));
        let q = Side::random(&mut rng, MmaType::Bf16, &[40, 70], 4, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[80, 70], 2, 64);
        let with = |map: [u32; 3]| {
            plan(&bench, &Asked { head_map: Some(map.to_vec()), ..Asked::new(8, (64, 64), 0.9) }, &q, &k)
        };
        let (plain, wild) = (with([3, 0, 1]), with([3, 4, 1]));
        assert_eq!((plain.status, wild.status), (0, 2));
        for entry in 0..plain.counts.len() {
            let exists = entry / plain.rows % 3 != 1;
            assert_eq!(wild.list(entry), if exists { plain.list(entry) } else { &[] }, "entry {entry}");
        }
    }
}
