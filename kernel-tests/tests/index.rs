//! Index kernels against the plain reference: scores to tolerance, everything that is selected from them bit for bit.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "index/antidiagonal.rs"]
mod gpu_antidiagonal;

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream};
use kernel_tests::{
    oracle::{
        Mask,
        error::round,
        index::{self, Budget, Pooled},
    },
    testing,
};
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
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

const POISON: u8 = 0xFF;

/// A device with a stream and what is asked of it most.
struct Bench {
    device: Device,
    stream: Stream,
}

impl Bench {
    fn all() -> impl Iterator<Item = Bench> {
        testing::devices().into_iter().map(|device| {
            let stream = Stream::new(&device).unwrap();
            Bench { device, stream }
        })
    }

    fn load(&self, spec: &impl ptx::KernelSpec) -> LoadedKernel {
        self.device.load(&ptx::generate(spec).unwrap()).unwrap()
    }

    fn upload<T: kernel_core::device::Plain>(&self, values: &[T]) -> Buffer {
        self.device.upload(&self.stream, values).unwrap()
    }

    /// A buffer that nobody has written yet: what a kernel fails to write shows.
    fn poisoned(&self, bytes: u64) -> Buffer {
        let buffer = self.device.allocate(bytes as usize).unwrap();
        buffer.fill(&self.stream, POISON).unwrap();
        buffer
    }

    fn read<T: kernel_core::device::Plain>(&self, buffer: &Buffer) -> Vec<T> {
        buffer.read(&self.stream).unwrap()
    }

    fn status(&self) -> Buffer {
        self.upload(&[0u32])
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

fn halves(dtype: MmaType, values: &[f32]) -> Vec<u16> {
    let bits = |&value: &f32| match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    };
    values.iter().map(bits).collect()
}

/// How the sequences of a batch lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// `[batch, max, heads, head_dim]`, with lengths in device memory; rows past them are NaN.
    Padded,
    /// `[total, heads, head_dim]` with starting rows.
    Packed,
    /// Keys in pages of this many tokens, in no order, and padded queries.
    Paged(u32),
}

impl Layout {
    fn of_queries(self) -> Layout {
        if self == Layout::Packed { self } else { Layout::Padded }
    }

    fn kv(self) -> KvLayout {
        match self {
            Layout::Paged(page) => KvLayout::Paged { page },
            _ => KvLayout::Strided,
        }
    }
}

/// Queries or keys of a batch.
struct Side {
    lengths: Vec<u32>,
    heads: u32,
    head_dim: u32,
    /// Of each sequence, `[length, heads, head_dim]`, as rounded.
    values: Vec<Vec<f32>>,
}

impl Side {
    fn random(rng: &mut StdRng, dtype: MmaType, lengths: &[u32], heads: u32, head_dim: u32) -> Side {
        let sequence = |&length: &u32| {
            (0..length * heads * head_dim).map(|_| round(dtype, f64::from(normal(rng))) as f32).collect()
        };
        Side { lengths: lengths.to_vec(), heads, head_dim, values: lengths.iter().map(sequence).collect() }
    }

    /// One sequence of it.
    fn only(&self, sequence: usize) -> Side {
        Side {
            lengths: vec![self.lengths[sequence]],
            values: vec![self.values[sequence].clone()],
            heads: self.heads,
            head_dim: self.head_dim,
        }
    }

    fn longest(&self) -> u32 {
        self.lengths.iter().copied().max().unwrap()
    }

    /// Rows of one head of one sequence.
    fn rows(&self, sequence: usize, head: u32) -> Vec<f32> {
        let d = self.head_dim as usize;
        let rows = self.values[sequence].chunks(self.heads as usize * d);
        rows.flat_map(|row| row[head as usize * d..][..d].to_vec()).collect()
    }

    fn place(&self, bench: &Bench, dtype: MmaType, layout: Layout, max: u32) -> Placed {
        if let Layout::Paged(page) = layout {
            return self.place_in_pages(bench, dtype, page, max);
        }
        let row = self.heads * self.head_dim;
        let mut all = Vec::new();
        let mut starts = vec![0];
        for values in &self.values {
            all.extend_from_slice(values);
            if layout == Layout::Padded {
                all.resize(starts.len() * (max * row) as usize, f32::NAN);
            }
            starts.push(all.len() as u32 / row);
        }
        let lengths = bench.upload(&self.lengths);
        let starts = bench.upload(&starts);
        let batch = if layout == Layout::Padded { u64::from(max * row) * 2 } else { 0 };
        let packed = layout == Layout::Packed;
        Placed {
            start: if packed { starts.address() } else { 0 },
            length: if packed { 0 } else { lengths.address() },
            strides: [batch, u64::from(row) * 2, u64::from(self.head_dim) * 2],
            data: bench.upload(&halves(dtype, &all)),
            rows: all.len() as u32 / row,
            max,
            table: None,
            _keep: [lengths, starts],
        }
    }

    /// Every fourth page belongs to nobody. What belongs to nobody is NaN, and an entry without keys names no page.
    fn place_in_pages(&self, bench: &Bench, dtype: MmaType, page: u32, max: u32) -> Placed {
        let row = (self.heads * self.head_dim) as usize;
        let width = max.div_ceil(page);
        let mut free: Vec<u32> = (0..width * self.lengths.len() as u32 * 4 / 3 + 1).collect();
        let pages = free.len();
        free.shuffle(&mut StdRng::seed_from_u64(u64::from(page)));
        let page_elements = page as usize * row;
        let mut pool = vec![f32::NAN; pages * page_elements];
        let mut table = Vec::new();
        for values in &self.values {
            let mut entries = vec![u32::MAX; width as usize];
            for (rows, entry) in values.chunks(page_elements).zip(&mut entries) {
                *entry = free.pop().unwrap();
                pool[*entry as usize * page_elements..][..rows.len()].copy_from_slice(rows);
            }
            table.extend(entries);
        }
        let lengths = bench.upload(&self.lengths);
        Placed {
            start: 0,
            length: lengths.address(),
            strides: [2 * page_elements as u64, 2 * row as u64, u64::from(self.head_dim) * 2],
            data: bench.upload(&halves(dtype, &pool)),
            rows: 0,
            max,
            table: Some((bench.upload(&table), pages as u32)),
            _keep: [lengths, bench.upload(&[0u32])],
        }
    }
}

/// A side in device memory.
struct Placed {
    data: Buffer,
    strides: [u64; 3],
    start: u64,
    length: u64,
    /// Rows of the tensor.
    rows: u32,
    max: u32,
    /// The table of pages, and how many there are.
    table: Option<(Buffer, u32)>,
    _keep: [Buffer; 2],
}

fn tensor<'m>(arguments: Arguments<'m>, name: &str, side: &Placed) -> Arguments<'m> {
    let [batch, row, head] = side.strides;
    if let Some((table, pages)) = &side.table {
        let sequences = side._keep[0].bytes() as u64 / 4;
        return arguments
            .pointer(name, side.data.address())
            .u32(&format!("{name}_page"), batch as u32)
            .u32(&format!("{name}_row"), row as u32)
            .u64(&format!("{name}_head"), head)
            .pointer("page_table", table.address())
            .u64("page_table_batch", table.bytes() as u64 / sequences)
            .u32("pages", *pages);
    }
    arguments
        .pointer(name, side.data.address())
        .u64(&format!("{name}_batch"), batch)
        .u64(&format!("{name}_row"), row)
        .u64(&format!("{name}_head"), head)
}

fn bounds<'m>(arguments: Arguments<'m>, name: &str, side: &Placed) -> Arguments<'m> {
    arguments
        .pointer(&format!("{name}_start"), side.start)
        .pointer(&format!("{name}_length"), side.length)
        .u32(&format!("{name}_rows"), side.rows)
        .u32(&format!("max_{name}"), side.max)
}

/// Scores of all heads of a batch: `[batch][head]`, vertical and slash.
type Scores = Vec<Vec<(Vec<f32>, Vec<f32>)>>;

struct Estimated {
    vertical: Buffer,
    slash: Buffer,
    scores: Scores,
    status: u32,
}

const SCALE: f32 = 0.15;

/// Heads of a block that any number of query heads of a KV head can be divided into.
fn heads_of_a_block(q: &Side, k: &Side) -> u32 {
    [4, 2, 1].into_iter().find(|heads| (q.heads / k.heads).is_multiple_of(*heads)).unwrap()
}

/// Both passes of the estimate, for all heads.
fn estimate(bench: &Bench, dtype: MmaType, q: &Side, k: &Side, layout: Layout, slack: u32) -> Estimated {
    estimate_heads(bench, dtype, q, k, layout, slack, None)
}

/// The same for some heads, in the order of `head_map`.
fn estimate_heads(
    bench: &Bench,
    dtype: MmaType,
    q: &Side,
    k: &Side,
    layout: Layout,
    slack: u32,
    head_map: Option<&[u32]>,
) -> Estimated {
    let (head_dim, batch) = (q.head_dim, q.lengths.len() as u32);
    let heads = head_map.map_or(q.heads, |map| map.len() as u32);
    let map = head_map.map(|map| bench.upload(map));
    let (max_q, max_kv, kv) = (q.longest() + slack, k.longest() + slack, layout.kv());
    let (queries, keys) = (q.place(bench, dtype, layout.of_queries(), max_q), k.place(bench, dtype, layout, max_kv));
    // Heads of a map need not share keys, so that each is its own set, unless all are there in order.
    let together = if head_map.is_some() { 1 } else { heads_of_a_block(q, k) };
    let statistics = bench.poisoned(workspace::statistics_bytes(batch, heads, max_kv, together));
    let vertical = bench.poisoned(workspace::scores_bytes(batch, heads, max_kv));
    let slash = bench.poisoned(workspace::scores_bytes(batch, heads, max_kv));
    let status = bench.status();
    let grid = [workspace::estimate_blocks(max_kv, together), heads / together, batch];
    let row = workspace::score_row_bytes(max_kv);
    for pass in [EstimatePass::Statistics, EstimatePass::Scores] {
        let kernel = bench.load(&EstimateSpec { pass, heads: together, head_dim, dtype, kv, arch: Arch::Sm80 });
        let mut arguments = Arguments::new(kernel.meta());
        arguments = tensor(tensor(arguments, "q", &queries), "k", &keys);
        arguments = bounds(bounds(arguments, "q", &queries), "kv", &keys)
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

fn assert_scores(what: &str, device: &[f32], reference: &[f64]) {
    assert_eq!(device.len(), reference.len(), "{what}");
    for (i, (&a, &b)) in device.iter().zip(reference).enumerate() {
        assert!((f64::from(a) - b).abs() <= 1e-4 * b + 1e-30, "{what}: entry {i} is {a:e}, should be {b:e}");
    }
}

fn assert_estimate(what: &str, estimated: &Estimated, q: &Side, k: &Side) {
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

/// (queries, keys) of the sequences of the mixed batches.
const MIXED: [(u32, u32); 7] = [(1, 1), (65, 65), (0, 40), (40, 0), (30, 257), (300, 127), (128, 600)];

fn mixed() -> (Vec<u32>, Vec<u32>) {
    MIXED.into_iter().unzip()
}

#[test]
fn scores_agree_with_double_precision() {
    let seed = testing::seed(41);
    println!("seed {seed}");
    for bench in Bench::all() {
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
    for bench in Bench::all() {
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
    let options = Pooled { block: (64, 64), causal: true, budget: 0, diagonal: true, sink: true };
    for bench in Bench::all() {
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
    for bench in Bench::all() {
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

#[test]
fn a_head_map_picks_heads() {
    let seed = testing::seed(49);
    println!("seed {seed}");
    for bench in Bench::all() {
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
    let options = Pooled { block: (64, 64), causal: true, budget: 0, diagonal: true, sink: true };
    for bench in Bench::all() {
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
            assert_eq!(estimated.status, 2, "head {wild}");
            for (plain, found) in plain.iter().zip(&estimated.scores) {
                let zeros = found[1].0.iter().chain(&found[1].1).all(|score| *score == 0.0);
                assert!(zeros, "head {wild}: a sequence without queries gets zeros");
                assert_eq!([&plain[0], &plain[2], &plain[3]], [&found[0], &found[2], &found[3]], "head {wild}");
            }
            let found = blocks(&[3, wild, 1, 2]);
            assert_eq!(found.status, 2, "head {wild}");
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
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let q = Side::random(&mut rng, MmaType::Bf16, &[64], 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &[keys], 1, 64);
        assert_estimate("long", &estimate(&bench, MmaType::Bf16, &q, &k, Layout::Padded, 0), &q, &k);
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

/// Sizes of the selection.
#[derive(Clone, Debug)]
struct Selection {
    vertical_sizes: Vec<u32>,
    slash_sizes: Vec<u32>,
    minimum: (u32, u32),
    forced: (u32, u32),
    capacity: u32,
    block: u32,
    /// Shares of the sum, of columns and slashes, by head; none anywhere if empty.
    shares: Vec<(Option<f32>, Option<f32>)>,
}

impl Selection {
    fn budgets(&self, head: usize) -> (Budget, Budget) {
        let shares = self.shares.get(head).copied().unwrap_or_default();
        let (minimum, forced) = (self.minimum, self.forced);
        let columns = Budget { size: self.vertical_sizes[head], minimum: minimum.0, forced: forced.0, share: shares.0 };
        let slashes = Budget { size: self.slash_sizes[head], minimum: minimum.1, forced: forced.1, share: shares.1 };
        (columns, slashes)
    }
}

struct Selected {
    columns: Vec<u32>,
    counts: Vec<u32>,
    offsets: Vec<u32>,
    offset_counts: Vec<u32>,
    visited: Vec<u64>,
    room: usize,
    status: u32,
}

fn select(bench: &Bench, vertical: &Buffer, slash: &Buffer, lengths: &[u32], max_kv: u32, s: &Selection) -> Selected {
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
    let (vertical_shares, slash_shares): (Vec<f32>, Vec<f32>) =
        s.shares.iter().map(|(columns, slashes)| (columns.unwrap_or(2.0), slashes.unwrap_or(2.0))).unzip();
    let shares = [vertical_shares, slash_shares].map(|shares| (!shares.is_empty()).then(|| bench.upload(&shares)));
    let share = |i: usize| shares[i].as_ref().map_or(0, Buffer::address);
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
        .pointer("vertical_shares", share(0))
        .pointer("slash_shares", share(1))
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

fn assert_selected(what: &str, selected: &Selected, scores: &Scores, s: &Selection) {
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
fn hard_scores(rng: &mut StdRng, kind: u32, length: usize) -> Vec<f32> {
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
            let s =
                Selection { vertical_sizes, slash_sizes, minimum, forced, capacity: 4100, block, shares: Vec::new() };
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

/// Scores as an estimate leaves them, of three kinds: few large ones, all alike, all kinds of numbers.
fn estimated_scores(rng: &mut StdRng, kind: u32, length: usize) -> Vec<f32> {
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
fn device_index(selected: &Selected, entry: usize, capacity: usize) -> kernel_tests::oracle::mask::VerticalSlash {
    let offsets = &selected.offsets[entry * selected.room..][..selected.offset_counts[entry] as usize];
    let columns = &selected.columns[entry * capacity..][..selected.counts[entry] as usize];
    kernel_tests::oracle::mask::VerticalSlash { offsets: offsets.to_vec(), columns: columns.to_vec() }
}

/// Counts `[batch][heads][rows]`, indices `[batch][heads][rows][capacity]`, status.
struct Blocks {
    counts: Vec<i32>,
    indices: Vec<i32>,
    rows: usize,
    status: u32,
}

/// The pooled selection of a batch; `budgets` by head.
fn pooled(
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

/// The same for as many heads, which `head_map` names, with a kernel for `most` key blocks.
#[allow(clippy::too_many_arguments)]
fn pooled_heads(
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
    let map = head_map.map(|map| bench.upload(map));
    let (head_dim, heads, batch) = (q.head_dim, q.heads, q.lengths.len() as u32);
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

    let counts = bench.poisoned(u64::from(batch * heads * rows) * 4);
    let indices = bench.poisoned(u64::from(batch * heads * rows * capacity) * 4);
    let budgets = bench.upload(budgets);
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
    let arguments = bounds(bounds(arguments, "q", &queries), "kv", &keys)
        .u32("heads", heads)
        .u32("heads_per_kv", heads / k.heads)
        .pointer("head_map", map.as_ref().map_or(0, Buffer::address))
        .pointer("budgets", budgets.address())
        .u32("forced", forced)
        .pointer("partial_counts", counts.address())
        .u64("counts_batch", u64::from(heads * rows) * 4)
        .u64("counts_head", u64::from(rows) * 4)
        .pointer("partial_indices", indices.address())
        .u64("indices_batch", u64::from(heads * rows * capacity) * 4)
        .u64("indices_head", u64::from(rows * capacity) * 4)
        .u64("indices_row", u64::from(capacity) * 4)
        .u32("capacity", capacity)
        .pointer("status", status.address());
    kernel.launch(&bench.stream, [rows.div_ceil(spec.row_blocks()), heads, batch], &arguments).unwrap();
    Blocks {
        counts: bench.read(&counts),
        indices: bench.read(&indices),
        rows: rows as usize,
        status: bench.read::<u32>(&status)[0],
    }
}

fn assert_blocks(what: &str, blocks: &Blocks, (q, k): (&Side, &Side), options: Pooled, budgets: &[u32]) {
    let heads = q.heads as usize;
    let capacity = blocks.indices.len() / blocks.counts.len();
    assert_eq!(blocks.status, 0, "{what}: status");
    for sequence in 0..q.lengths.len() {
        for (head, &budget) in budgets.iter().enumerate().take(heads) {
            let options = Pooled { budget, ..options };
            let keys = k.rows(sequence, head as u32 / (q.heads / k.heads));
            let lists = index::block_sparse(&q.rows(sequence, head as u32), &keys, q.head_dim as usize, options);
            for row in 0..blocks.rows {
                let what = format!("{what}, sequence {sequence}, head {head}, row block {row}, {options:?}");
                let list = lists.get(row).cloned().unwrap_or_default();
                let entry = (sequence * heads + head) * blocks.rows + row;
                assert_eq!(blocks.counts[entry] as usize, list.len(), "{what}: count");
                let mut expected: Vec<i32> = list.iter().map(|&block| block as i32).collect();
                expected.resize(capacity, 0);
                assert_eq!(blocks.indices[entry * capacity..][..capacity], expected, "{what}");
            }
        }
    }
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
                    budget: 0,
                    diagonal: forced & 1 == 1,
                    sink: forced & 2 == 2,
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
            let options = Pooled { block: (64, 32), causal: i != 3, budget: 0, diagonal: i % 2 == 0, sink: i % 4 != 3 };
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
fn a_forced_diagonal_leaves_no_query_without_a_key() {
    let seed = testing::seed(47);
    println!("seed {seed}");
    for bench in Bench::all() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (q_lengths, kv_lengths) = mixed();
        let q = Side::random(&mut rng, MmaType::Bf16, &q_lengths, 1, 64);
        let k = Side::random(&mut rng, MmaType::Bf16, &kv_lengths, 1, 64);
        for block in [(64, 32), (64, 64), (64, 128)] {
            let options = Pooled { block, causal: true, budget: 0, diagonal: true, sink: false };
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
        let options = Pooled { block: (64, 64), causal: true, budget: 0, diagonal: true, sink: true };
        let blocks = pooled(&bench, MmaType::Bf16, (&q, &k), Layout::Padded, options, &[4], 1);
        assert_eq!(blocks.status, 4);
        assert_eq!(blocks.counts, [1, 1, 1, 1, 0]);
        assert_eq!(blocks.indices, [0, 1, 2, 3, 0]);
    }
}
