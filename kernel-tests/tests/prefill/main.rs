//! A layer of mixed patterns against the f64 oracle, under the masks that its own index stands for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod pages;

use half::{bf16, f16};
use kernel_core::{
    Bounds, Buffer, DType, Device, HeadPattern, Index, LayerPatterns, Lengths, PlanArgs, RunArgs, SparsePrefill,
    SparsePrefillBuilder, Stream, TensorView, Workspace,
    index::{BlockLists, BlockSparseIndex, BsrIndex, FlexIndex, HeadLists, VerticalSlashIndex},
};
use kernel_tests::{
    oracle::{
        self, Mask, Problem, assert_close,
        mask::{BlockSparse, VerticalSlash},
    },
    testing,
};
use ptx::{Arch, isa::MmaType, kernels::attention::Pattern};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DENSE: HeadPattern = HeadPattern::Dense;
const A_SHAPE: HeadPattern = HeadPattern::AShape { sink: 5, local: 70 };
const TRI_SHAPE: HeadPattern = HeadPattern::TriShape { sink: 3, local: 40, last: 30 };
const VERTICAL_SLASH: HeadPattern = HeadPattern::VerticalSlash { columns: 35, slashes: 105 };
const FLEX: HeadPattern = HeadPattern::FlexVerticalSlash { columns: (0.6, 60), slashes: (0.6, 150) };
const BLOCK_SPARSE: HeadPattern = HeadPattern::BlockSparse { blocks: 3 };
const POOLED_SHARE: HeadPattern = HeadPattern::FlexBlockSparse { blocks: (0.6, 4) };
/// Near the middle of what the divergences of random heads are.
const CHOICE: HeadPattern = HeadPattern::Flex { share: 0.6, threshold: 0.2, blocks: 100 };
const ANTIDIAGONAL: HeadPattern = HeadPattern::Antidiagonal { stride: 16, threshold: 0.6, blocks: 4 };
const FINE_ANTIDIAGONAL: HeadPattern = HeadPattern::Antidiagonal { stride: 8, threshold: 0.8, blocks: 100 };
/// One layer and one batch.
struct Case {
    head_dim: usize,
    dtype: MmaType,
    kv_heads: usize,
    patterns: Vec<HeadPattern>,
    /// Queries and keys of each sequence.
    sequences: Vec<(usize, usize)>,
    packed: bool,
}

/// One sequence: rounded values, `[tokens, heads, head_dim]`.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn bits(dtype: MmaType, value: f32) -> u16 {
    match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    }
}

fn value(dtype: MmaType, bits: u16) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_bits(bits).to_f64(),
        MmaType::F16 => f16::from_bits(bits).to_f64(),
    }
}

/// NaN in both types, and not what a kernel computes.
const POISON: u16 = 0xFFFF;

impl Case {
    fn heads(&self) -> usize {
        self.patterns.len()
    }

    fn data(&self, seed: u64) -> Vec<Sequence> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut normal = |count: usize| -> Vec<f32> {
            let number = |_| {
                let sum: f32 = (0..12).map(|_| random.random::<f32>()).sum();
                value(self.dtype, bits(self.dtype, sum - 6.0)) as f32
            };
            (0..count).map(number).collect()
        };
        let sequence = |&(q_len, kv_len): &(usize, usize)| Sequence {
            q: normal(q_len * self.heads() * self.head_dim),
            k: normal(kv_len * self.kv_heads * self.head_dim),
            v: normal(kv_len * self.kv_heads * self.head_dim),
        };
        self.sequences.iter().map(sequence).collect()
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            batch: self.sequences.len() as u32,
            max_q: self.sequences.iter().map(|s| s.0).max().unwrap() as u32,
            max_kv: self.sequences.iter().map(|s| s.1).max().unwrap() as u32,
        }
    }

    fn builder(&self, arch: Arch) -> SparsePrefillBuilder {
        SparsePrefill::builder()
            .dense_below(0)
            .heads(self.heads() as u32)
            .kv_heads(self.kv_heads as u32)
            .head_dim(self.head_dim as u32)
            .dtype(self.dtype.into())
            .patterns(self.patterns.iter().copied().collect())
            .arch(arch)
    }

    fn layer(&self, device: &Device, arch: Arch) -> SparsePrefill {
        let layer = self.builder(arch).build(device).unwrap();
        assert!(layer.groups().all(|group| group.arch == arch));
        layer
    }

    /// One tensor of the batch: packed, or padded with NaN to `rows` rows a sequence.
    fn layout(&self, sequences: &[&[f32]], rows: usize, row: usize) -> Vec<u16> {
        let padded = |values: &[f32]| {
            let mut out: Vec<u16> = values.iter().map(|v| bits(self.dtype, *v)).collect();
            if !self.packed {
                out.resize(rows * row, POISON);
            }
            out
        };
        sequences.iter().flat_map(|values| padded(values)).collect()
    }

    /// First row of each sequence and the end of the last, in a tensor of this layout.
    fn starts(&self, rows: impl Fn(&(usize, usize)) -> usize) -> Vec<u32> {
        let ends = self.sequences.iter().scan(0, |end, sequence| {
            *end += rows(sequence) as u32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
}

/// A batch on a device.
struct Batch<'c> {
    case: &'c Case,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    lse: Buffer,
    q_rows: Buffer,
    kv_rows: Buffer,
    bounds: Bounds,
}

impl<'c> Batch<'c> {
    fn new(device: &Device, stream: &Stream, case: &'c Case, data: &[Sequence]) -> Batch<'c> {
        let bounds = case.bounds();
        let tensor = |of: fn(&Sequence) -> &[f32], rows: u32, heads: usize| {
            let values: Vec<&[f32]> = data.iter().map(of).collect();
            device.upload(stream, &case.layout(&values, rows as usize, heads * case.head_dim)).unwrap()
        };
        let q = tensor(|s| &s.q, bounds.max_q, case.heads());
        let out = device.allocate(q.bytes()).unwrap();
        out.fill(stream, 0xFF).unwrap();
        let lse = device.allocate(q.bytes() / case.head_dim * 2).unwrap();
        lse.fill(stream, 0xFF).unwrap();
        let rows = |of: fn(&(usize, usize)) -> usize| {
            let values =
                if case.packed { case.starts(of) } else { case.sequences.iter().map(|s| of(s) as u32).collect() };
            device.upload(stream, &values).unwrap()
        };
        Batch {
            k: tensor(|s| &s.k, bounds.max_kv, case.kv_heads),
            v: tensor(|s| &s.v, bounds.max_kv, case.kv_heads),
            q_rows: rows(|s| s.0),
            kv_rows: rows(|s| s.1),
            case,
            q,
            out,
            lse,
            bounds,
        }
    }

    fn view<'b>(&self, buffer: &'b Buffer, rows: u32, heads: usize) -> TensorView<'b> {
        let (heads, d) = (heads as u64, self.case.head_dim as u64);
        let shape = [u64::from(self.bounds.batch), u64::from(rows), heads, d];
        let packed = [buffer.bytes() as u64 / (heads * d * 2), heads, d];
        let shape = if self.case.packed { &packed[..] } else { &shape[..] };
        TensorView::new(buffer, self.case.dtype.into(), shape).unwrap()
    }

    fn args(&self) -> RunArgs<'_> {
        let heads = self.case.heads();
        let count = u64::from(self.bounds.batch) + u64::from(self.case.packed);
        let rows = |buffer| Some(TensorView::new(buffer, DType::U32, &[count]).unwrap());
        let (q_rows, kv_rows) = (rows(&self.q_rows), rows(&self.kv_rows));
        let lengths = if self.case.packed {
            Lengths { q_start: q_rows, kv_start: kv_rows, ..Lengths::default() }
        } else {
            Lengths { q_length: q_rows, kv_length: kv_rows, ..Lengths::default() }
        };
        let rows = self.lse.bytes() as u64 / 4 / heads as u64;
        let batch = u64::from(self.bounds.batch);
        let lse_shape = [batch, heads as u64, rows / batch];
        let lse_shape = if self.case.packed { &[heads as u64, rows][..] } else { &lse_shape[..] };
        RunArgs {
            q: self.view(&self.q, self.bounds.max_q, heads),
            k: self.view(&self.k, self.bounds.max_kv, self.case.kv_heads).into(),
            v: self.view(&self.v, self.bounds.max_kv, self.case.kv_heads).into(),
            lengths,
            bounds: self.bounds,
            out: self.view(&self.out, self.bounds.max_q, heads),
            lse: Some(TensorView::new(&self.lse, DType::F32, lse_shape).unwrap()),
        }
    }

    fn plan<'w>(&self, layer: &SparsePrefill, stream: &Stream, workspace: &'w Buffer) -> Index<'w> {
        let RunArgs { q, k, lengths, bounds, .. } = self.args();
        layer.plan(stream, &PlanArgs { q, k, lengths, bounds, workspace: Workspace::from(workspace) }).unwrap()
    }

    /// Output bits and LSE of every row that exists, by sequence and head; all others must be untouched.
    fn results(&self, stream: &Stream) -> Vec<Vec<(Vec<u16>, Vec<f32>)>> {
        let (heads, d) = (self.case.heads(), self.case.head_dim);
        let (out, lse): (Vec<u16>, Vec<f32>) = (self.out.read(stream).unwrap(), self.lse.read(stream).unwrap());
        let mut written = vec![false; out.len() / d];
        let starts = self.case.starts(|s| s.0);
        let total = out.len() / d / heads;
        let results = (0..self.case.sequences.len())
            .map(|b| {
                let (q_len, padded) = (self.case.sequences[b].0, self.bounds.max_q as usize);
                let first = if self.case.packed { starts[b] as usize } else { b * padded };
                let head = |h: usize| {
                    let rows = (0..q_len).map(|i| (first + i) * heads + h);
                    let bits = rows.flat_map(|row| {
                        written[row] = true;
                        out[row * d..][..d].to_vec()
                    });
                    let bits = bits.collect();
                    let lse_row =
                        |i| if self.case.packed { h * total + first + i } else { (b * heads + h) * padded + i };
                    (bits, (0..q_len).map(|i| lse[lse_row(i)]).collect())
                };
                (0..heads).map(head).collect()
            })
            .collect();
        for (row, _) in written.iter().enumerate().filter(|(_, written)| !**written) {
            assert!(
                out[row * d..][..d].iter().all(|bits| *bits == POISON),
                "row {row}, which does not exist, is written"
            );
        }
        results
    }
}

/// The tile of a layer's kernels of a pattern.
fn block(layer: &SparsePrefill, pattern: Pattern) -> (usize, usize) {
    let (rows, keys) = layer.groups().find(|group| group.facts.pattern == pattern).unwrap().facts.block;
    (rows as usize, keys as usize)
}

/// The pattern of a head in a sequence that the plan has chosen for it; none for no queries.
fn chosen(flex: &FlexIndex<'_>, b: usize, slot: usize, head: usize, stream: &Stream) -> Option<Pattern> {
    let entry = |map: TensorView<'_>| {
        let entry = map.read::<u32>(stream).unwrap()[b * map.shape()[1] as usize + slot];
        assert!(entry == head as u32 || entry == u32::MAX, "entry {entry} of head {head}");
        entry != u32::MAX
    };
    match (entry(flex.vertical_slash_heads()), entry(flex.block_sparse_heads())) {
        (true, true) => panic!("sequence {b}, head {head} is in both maps"),
        (true, false) => Some(Pattern::VerticalSlash),
        (false, true) => Some(Pattern::BlockSparse),
        (false, false) => None,
    }
}

/// The masks of an index, by sequence and head.
fn masks(case: &Case, layer: &SparsePrefill, index: &Index<'_>, stream: &Stream) -> Vec<Vec<Mask>> {
    let slot = |h: usize, kind: fn(&HeadPattern) -> bool| case.patterns[..h].iter().filter(|p| kind(p)).count();
    let is_vertical_slash =
        |p: &HeadPattern| matches!(p, HeadPattern::VerticalSlash { .. } | HeadPattern::FlexVerticalSlash { .. });
    // Heads with pooled keys come first, then the others by stride.
    let block_sparse_slot = |h: usize| {
        let rank = |h: usize| match case.patterns[h] {
            HeadPattern::BlockSparse { .. } | HeadPattern::FlexBlockSparse { .. } => Some((0, h)),
            HeadPattern::Antidiagonal { stride, .. } => Some((stride, h)),
            _ => None,
        };
        (0..case.heads()).filter_map(rank).filter(|other| Some(*other) < rank(h)).count()
    };
    let vertical_slash = |index: VerticalSlashIndex<'_>, b: usize, slot: usize| {
        let list = |lists: HeadLists<'_>| -> Vec<u32> {
            let [_, heads, capacity] = [0, 1, 2].map(|i| lists.entries.shape()[i] as usize);
            let at = b * heads + slot;
            let count = lists.counts.read::<u32>(stream).unwrap()[at] as usize;
            lists.entries.read::<u32>(stream).unwrap()[at * capacity..][..count].to_vec()
        };
        VerticalSlash { offsets: list(index.offsets()), columns: list(index.columns()) }
    };
    let block_sparse = |index: BlockSparseIndex<'_>, b: usize, slot: usize| {
        let lists = index.partial();
        let [_, heads, rows, capacity] = [0, 1, 2, 3].map(|i| lists.indices.shape()[i] as usize);
        let (counts, blocks): (Vec<u32>, Vec<u32>) =
            (lists.counts.read(stream).unwrap(), lists.indices.read(stream).unwrap());
        let row = |r: usize| {
            let at = (b * heads + slot) * rows + r;
            blocks[at * capacity..][..counts[at] as usize].to_vec()
        };
        BlockSparse { partial: (0..rows).map(row).collect(), full: vec![Vec::new(); rows] }
    };
    let of_blocks = |q: usize, kv: usize, lists: &BlockSparse| {
        Mask::block_sparse(q, kv, block(layer, Pattern::BlockSparse), true, lists, |_, _| true)
    };
    let of_columns = |q: usize, kv: usize, own: &VerticalSlash| {
        Mask::vertical_slash(q, kv, block(layer, Pattern::VerticalSlash).1, own)
    };
    let mask = |b: usize, h: usize| {
        let (q, kv) = case.sequences[b];
        match case.patterns[h] {
            HeadPattern::Dense => Mask::dense(q, kv, true),
            HeadPattern::AShape { sink, local } => Mask::a_shape(q, kv, sink, local),
            HeadPattern::TriShape { sink, local, last } => Mask::tri_shape(q, kv, sink, local, last),
            HeadPattern::BlockSparse { .. }
            | HeadPattern::FlexBlockSparse { .. }
            | HeadPattern::Antidiagonal { .. } => {
                let lists = block_sparse(index.block_sparse.unwrap(), b, block_sparse_slot(h));
                of_blocks(q, kv, &lists)
            }
            HeadPattern::Flex { .. } => {
                let flex = index.flex.unwrap();
                let slot = slot(h, |p| matches!(p, HeadPattern::Flex { .. }));
                let own_lists = block_sparse(flex.block_sparse(), b, slot);
                let own_columns = vertical_slash(flex.vertical_slash(), b, slot);
                // What has not been chosen is empty.
                match chosen(&flex, b, slot, h, stream) {
                    Some(Pattern::BlockSparse) => {
                        assert_eq!(own_columns, VerticalSlash { offsets: Vec::new(), columns: Vec::new() });
                        of_blocks(q, kv, &own_lists)
                    }
                    other => {
                        assert!(own_lists.partial.iter().all(Vec::is_empty), "{other:?}");
                        of_columns(q, kv, &own_columns)
                    }
                }
            }
            _ => of_columns(q, kv, &vertical_slash(index.vertical_slash.unwrap(), b, slot(h, is_vertical_slash))),
        }
    };
    (0..case.sequences.len()).map(|b| (0..case.heads()).map(|h| mask(b, h)).collect()).collect()
}

/// Compares every head of every sequence with the oracle.
fn compare(what: &str, batch: &Batch<'_>, data: &[Sequence], masks: &[Vec<Mask>], stream: &Stream) {
    let case = batch.case;
    let (heads, d) = (case.heads(), case.head_dim);
    for (b, results) in batch.results(stream).iter().enumerate() {
        for (h, (out, lse)) in results.iter().enumerate() {
            let head = |values: &[f32], heads: usize, head: usize| -> Vec<f32> {
                values.chunks_exact(d).skip(head).step_by(heads).flatten().copied().collect()
            };
            let kv_head = h * case.kv_heads / heads;
            let problem = Problem {
                q: &head(&data[b].q, heads, h),
                k: &head(&data[b].k, case.kv_heads, kv_head),
                v: &head(&data[b].v, case.kv_heads, kv_head),
                head_dim: d,
                mask: &masks[b][h],
                scale: 1.0 / (d as f64).sqrt(),
                softcap: None,
                score: None,
            };
            let what = format!("{what}: sequence {b}, head {h}, {:?}", case.patterns[h]);
            let (reference, reference_lse) = oracle::attention(&problem);
            let plain = oracle::plain(&problem, |x| oracle::error::round(case.dtype, x));
            let out: Vec<f64> = out.iter().map(|bits| value(case.dtype, *bits)).collect();
            assert_close(&what, case.dtype, &out, &reference, &plain);
            for (i, (lse, reference)) in lse.iter().zip(&reference_lse).enumerate() {
                let close = f64::from(*lse) == *reference || (f64::from(*lse) - reference).abs() < 1e-3;
                assert!(close, "{what}: LSE of row {i} is {lse}, should be {reference}");
            }
        }
    }
}

/// Plans and runs a case on every device and compares it with the oracle.
fn check(what: &str, case: &Case, seed: u64) {
    let seed = testing::seed(seed);
    println!("{what}: seed {seed}");
    let data = case.data(seed);
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, case, &data));
        let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
        let index = batch.plan(&layer, &stream, &workspace);
        layer.run(&stream, &batch.args(), &index).unwrap();
        assert!(layer.status(&stream).unwrap().is_clear());
        compare(what, &batch, &data, &masks(case, &layer, &index, &stream), &stream);
    }
}

fn all_patterns() -> Vec<HeadPattern> {
    vec![VERTICAL_SLASH, CHOICE, ANTIDIAGONAL, A_SHAPE, FLEX, TRI_SHAPE, POOLED_SHARE, DENSE]
}

/// Each head of each sequence takes columns and slashes or blocks, as its divergence says; both kinds occur, and what nobody
/// writes stays as it was.
#[test]
fn heads_that_the_plan_chooses_for() {
    let sequences = vec![(200, 200), (1, 129), (65, 300), (0, 10), (40, 0), (127, 127), (300, 250)];
    for (packed, head_dim, dtype) in [(false, 64, MmaType::Bf16), (true, 128, MmaType::F16)] {
        let patterns = vec![CHOICE, HeadPattern::Flex { share: 0.9, threshold: 0.3, blocks: 3 }, CHOICE, CHOICE];
        let case = Case { head_dim, dtype, kv_heads: 2, patterns, sequences: sequences.clone(), packed };
        check("chosen", &case, 13);
        let data = case.data(testing::seed(14));
        for (device, arch) in testing::targets() {
            let stream = Stream::new(&device).unwrap();
            let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, &case, &data));
            let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
            let flex = batch.plan(&layer, &stream, &workspace).flex.unwrap();
            let divergences = flex.divergences().read::<f32>(&stream).unwrap();
            let mut seen = Vec::new();
            for (entry, divergence) in divergences.into_iter().enumerate() {
                let (b, head) = (entry / 4, entry % 4);
                let HeadPattern::Flex { threshold, .. } = case.patterns[head] else { unreachable!() };
                let pattern = if divergence < threshold { Pattern::BlockSparse } else { Pattern::VerticalSlash };
                let wanted = (case.sequences[b].0 > 0).then_some(pattern);
                assert_eq!(chosen(&flex, b, head, head, &stream), wanted, "sequence {b}, head {head}: {divergence}");
                seen.extend(wanted);
            }
            assert!(seen.contains(&Pattern::BlockSparse) && seen.contains(&Pattern::VerticalSlash), "{seen:?}");
        }
    }
}

#[test]
fn mixed_patterns_in_a_padded_batch() {
    let sequences = vec![(200, 200), (1, 129), (65, 300), (0, 10), (127, 127)];
    let patterns = all_patterns();
    check("padded", &Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 2, patterns, sequences, packed: false }, 1);
}

#[test]
fn mixed_patterns_in_a_packed_batch() {
    let sequences = vec![(31, 31), (200, 230), (0, 0), (64, 64), (2, 99)];
    let patterns = all_patterns();
    check("packed", &Case { head_dim: 64, dtype: MmaType::F16, kv_heads: 4, patterns, sequences, packed: true }, 2);
}

/// Pooled and antidiagonal heads of a layer share one attention launch, whatever their order.
#[test]
fn estimators_of_blocks_share_a_group() {
    let patterns = vec![
        ANTIDIAGONAL,
        BLOCK_SPARSE,
        FINE_ANTIDIAGONAL,
        DENSE,
        POOLED_SHARE,
        ANTIDIAGONAL,
        FINE_ANTIDIAGONAL,
        DENSE,
    ];
    let sequences = vec![(200, 200), (1, 129), (65, 600), (0, 10), (300, 127), (127, 127)];
    let case = Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 4, patterns, sequences, packed: false };
    let groups = case.layer(&Device::emulator(), Arch::Sm80).groups().map(|group| group.heads).collect::<Vec<_>>();
    assert_eq!(groups, [2, 6]);
    check("estimators", &case, 10);
    let patterns = vec![FINE_ANTIDIAGONAL, BLOCK_SPARSE];
    let sequences = vec![(100, 250), (0, 0), (190, 190)];
    check("all heads", &Case { kv_heads: 1, patterns, sequences, packed: true, ..case }, 11);
}

#[test]
fn antidiagonal_heads_of_128() {
    let patterns = vec![ANTIDIAGONAL; 2];
    let case =
        Case { head_dim: 128, dtype: MmaType::F16, kv_heads: 1, patterns, sequences: vec![(190, 520)], packed: false };
    check("antidiagonal", &case, 12);
}

#[test]
fn heads_of_128_in_one_group() {
    let patterns = vec![VERTICAL_SLASH; 3];
    let case =
        Case { head_dim: 128, dtype: MmaType::Bf16, kv_heads: 1, patterns, sequences: vec![(190, 320)], packed: false };
    check("one group", &case, 3);
}

#[test]
fn short_sequences_are_planned_dense() {
    let sequences = vec![(120, 170), (60, 60)];
    let patterns = vec![VERTICAL_SLASH, FLEX, A_SHAPE, ANTIDIAGONAL];
    let case = Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 1, patterns, sequences, packed: false };
    let data = case.data(testing::seed(11));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let batch = Batch::new(&device, &stream, &case, &data);
        for (dense_below, dense) in [(170, false), (171, true)] {
            let layer = case.builder(arch).dense_below(dense_below).build(&device).unwrap();
            let bytes = layer.workspace_bytes(&batch.bounds);
            // Dense heads have no index, and on Hopper a word.
            assert_eq!(bytes <= 256, dense, "workspace below {dense_below}");
            let workspace = device.allocate(bytes.max(1) as usize).unwrap();
            let index = batch.plan(&layer, &stream, &workspace);
            assert_eq!(index.planned_keys, Some(batch.bounds.max_kv));
            assert_eq!([index.vertical_slash.is_none(), index.block_sparse.is_none()], [dense; 2]);
            layer.run(&stream, &batch.args(), &index).unwrap();
            assert!(layer.status(&stream).unwrap().is_clear());
            let expected = if dense {
                let mask = |&(q, kv): &(usize, usize), h: usize| match case.patterns[h] {
                    HeadPattern::AShape { sink, local } => Mask::a_shape(q, kv, sink, local),
                    _ => Mask::dense(q, kv, true),
                };
                case.sequences.iter().map(|lengths| (0..4).map(|h| mask(lengths, h)).collect()).collect()
            } else {
                masks(&case, &layer, &index, &stream)
            };
            compare("short", &batch, &data, &expected, &stream);
        }
        // Unless set, it follows from the pattern; of several in one kernel it is the mean.
        let bounds = |max_kv| Bounds { batch: 1, max_q: max_kv, max_kv };
        let budget = |slashes| HeadPattern::VerticalSlash { columns: 1000, slashes };
        let flex = HeadPattern::Flex { share: 0.9, threshold: 0.1, blocks: 64 };
        for (patterns, keys) in [([budget(5096), budget(7096)], 10_644), ([flex; 2], flex.crossover(64))] {
            let patterns = patterns.into_iter().collect();
            let layer =
                SparsePrefill::builder().heads(2).head_dim(64).patterns(patterns).arch(arch).build(&device).unwrap();
            let word = if arch == Arch::Sm90a { 256 } else { 0 };
            assert_eq!(layer.workspace_bytes(&bounds(keys - 1)), word);
            assert!(layer.workspace_bytes(&bounds(keys)) > word);
        }
    }
}

#[test]
fn forced_columns_and_slashes_are_the_callers() {
    let patterns = vec![HeadPattern::VerticalSlash { columns: 40, slashes: 60 }];
    let case =
        Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 1, patterns, sequences: vec![(64, 900)], packed: false };
    let data = case.data(testing::seed(13));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let batch = Batch::new(&device, &stream, &case, &data);
        let columns = |forced: (u32, u32)| {
            let layer = case.builder(arch).forced(forced.0, forced.1).build(&device).unwrap();
            let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
            let index = batch.plan(&layer, &stream, &workspace).vertical_slash.unwrap();
            let first = |lists: HeadLists<'_>| {
                let count = lists.counts.read::<u32>(&stream).unwrap()[0] as usize;
                lists.entries.read::<u32>(&stream).unwrap()[..count].to_vec()
            };
            (first(index.columns()), first(index.offsets()))
        };
        let (all, near) = columns((40, 60));
        assert_eq!(all, (0..40).collect::<Vec<u32>>());
        // Sixty slashes from the diagonal on reach from the block of offset 0 into the one behind it.
        assert_eq!(near, [0, 64]);
        let (free, far) = columns((0, 0));
        assert!(free.len() == 40 && free != all, "{free:?}");
        assert!(far[0] == 0 && far.len() > 2, "the diagonal is always there: {far:?}");
    }
}

#[test]
fn a_plan_says_what_will_be_visited() {
    let few = HeadPattern::FlexVerticalSlash { columns: (0.01, 35), slashes: (0.5, 105) };
    let patterns = vec![VERTICAL_SLASH, few];
    let case =
        Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 1, patterns, sequences: vec![(700, 700)], packed: false };
    let data = case.data(testing::seed(12));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, &case, &data));
        let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
        let index = batch.plan(&layer, &stream, &workspace);
        let visited = index.vertical_slash.unwrap().visited().unwrap().read::<u64>(&stream).unwrap();
        let keys = block(&layer, Pattern::VerticalSlash).1 as u64;
        let masks = masks(&case, &layer, &index, &stream);
        for (h, mask) in masks[0].iter().enumerate() {
            let pairs = (0..700).map(|q| (0..700).filter(|&k| mask.keeps(q, k)).count() as u64).sum::<u64>();
            let most = visited[2 * h] * keys * keys + visited[2 * h + 1] * keys;
            assert!(pairs <= most && most < 3 * pairs, "head {h}: {pairs} pairs, {most} at most");
        }
        // The second head needs fewer columns for its share.
        assert!(visited[3] < visited[1], "{visited:?}");
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_batch() {
    let of = |sequences| Case {
        head_dim: 64,
        dtype: MmaType::Bf16,
        kv_heads: 2,
        patterns: all_patterns(),
        sequences,
        packed: false,
    };
    let (together, alone) = (of(vec![(100, 250), (120, 170)]), of(vec![(120, 170)]));
    let data = together.data(testing::seed(4));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let results = |case: &Case, data: &[Sequence]| {
            let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, case, data));
            let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
            let index = batch.plan(&layer, &stream, &workspace);
            layer.run(&stream, &batch.args(), &index).unwrap();
            batch.results(&stream).pop().unwrap()
        };
        let first = results(&together, &data);
        let second = results(&alone, std::slice::from_ref(data.last().unwrap()));
        assert!(first == second, "the second sequence differs alone");
    }
}

#[test]
fn lengths_beyond_their_bounds_are_cut_and_reported() {
    let patterns = vec![VERTICAL_SLASH, A_SHAPE];
    let case =
        Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 1, patterns, sequences: vec![(80, 80)], packed: false };
    let data = case.data(testing::seed(5));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, &case, &data));
        batch.kv_rows.write(&stream, &[1000u32]).unwrap();
        let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
        let index = batch.plan(&layer, &stream, &workspace);
        layer.run(&stream, &batch.args(), &index).unwrap();
        let status = layer.status(&stream).unwrap();
        assert!(status.length_cut() && !status.index_out_of_range(), "{status:?}");
        assert!(layer.status(&stream).unwrap().is_clear(), "reading clears it");
        compare("cut", &batch, &data, &masks(&case, &layer, &index, &stream), &stream);
    }
}

/// Plan and run of every pattern with a wild value among the lengths: nothing leaves the tensors, the status says it, and
/// the other sequences have the same bits.
#[test]
fn wild_starting_rows_harm_no_other_sequence() {
    let sequences = vec![(31, 31), (120, 150), (64, 64), (40, 99)];
    let case =
        Case { head_dim: 64, dtype: MmaType::Bf16, kv_heads: 2, patterns: all_patterns(), sequences, packed: true };
    let data = case.data(testing::seed(9));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let layer = case.layer(&device, arch);
        let run = |q_start: &[u32], kv_start: &[u32], q_length: Option<&[u32]>, kv_length: Option<&[u32]>| {
            let batch = Batch::new(&device, &stream, &case, &data);
            batch.q_rows.write(&stream, q_start).unwrap();
            batch.kv_rows.write(&stream, kv_start).unwrap();
            let upload = |values: Option<&[u32]>| values.map(|values| device.upload(&stream, values).unwrap());
            let (q_length, kv_length) = (upload(q_length), upload(kv_length));
            fn view(buffer: &Option<Buffer>) -> Option<TensorView<'_>> {
                buffer.as_ref().map(|buffer| TensorView::new(buffer, DType::U32, &[4]).unwrap())
            }
            let mut args = batch.args();
            (args.lengths.q_length, args.lengths.kv_length) = (view(&q_length), view(&kv_length));
            let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
            let RunArgs { q, k, lengths, bounds, .. } = args;
            let index =
                layer.plan(&stream, &PlanArgs { q, k, lengths, bounds, workspace: (&workspace).into() }).unwrap();
            layer.run(&stream, &args, &index).unwrap();
            (batch.results(&stream), layer.status(&stream).unwrap())
        };
        let (q, kv) = (case.starts(|s| s.0), case.starts(|s| s.1));
        let (plain, status) = run(&q, &kv, None, None);
        assert!(status.is_clear());
        let with = |starts: &[u32], entry: usize, value: u32| {
            let mut starts = starts.to_vec();
            starts[entry] = value;
            starts
        };
        let unharmed = |what: &str, found: &[Vec<(Vec<u16>, Vec<f32>)>], others: &[usize]| {
            for &sequence in others {
                // Of bits: a row may be NaN.
                let bits = |results: &[(Vec<u16>, Vec<f32>)]| {
                    let head = |(out, lse): &(Vec<u16>, Vec<f32>)| {
                        (out.clone(), lse.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                    };
                    results.iter().map(head).collect::<Vec<_>>()
                };
                assert!(bits(&plain[sequence]) == bits(&found[sequence]), "{what}: sequence {sequence} differs");
            }
        };
        for value in [1 << 24, u32::MAX, 1 << 31, 256, 1] {
            // The tensors have 255 and 344 rows; below its beginning, a sequence ends nowhere.
            let entry = if value == 1 { 4 } else { 2 };
            let others = if value == 1 { &[0, 1, 2][..] } else { &[0, 3] };
            let (found, status) = run(&with(&q, entry, value), &kv, None, None);
            assert!(status.length_cut(), "q_start {value:#x}: {status:?}");
            unharmed(&format!("q_start {value:#x}"), &found, others);
            let value = if value == 256 { 345 } else { value };
            let (found, status) = run(&q, &with(&kv, entry, value), None, None);
            assert!(status.length_cut(), "kv_start {value:#x}: {status:?}");
            unharmed(&format!("kv_start {value:#x}"), &found, others);
        }
        // A length beyond the sequence's own rows ends with them: those after it are another's.
        let (q_lengths, kv_lengths) = ([31, 120, 64, 40], [31, 150, 64, 99]);
        let (found, status) = run(&q, &kv, Some(&q_lengths), Some(&kv_lengths));
        assert!(status.is_clear());
        unharmed("lengths", &found, &[0, 1, 2, 3]);
        let (found, status) = run(&q, &kv, Some(&[32, 120, 64, 400]), Some(&kv_lengths));
        assert!(status.length_cut(), "{status:?}");
        unharmed("q_length", &found, &[0, 1, 2, 3]);
        let (found, status) = run(&q, &kv, None, Some(&[31, 150, 65, u32::MAX]));
        assert!(status.length_cut(), "{status:?}");
        unharmed("kv_length", &found, &[0, 1, 2, 3]);
    }
}

/// One list of three row blocks with room for one block each, for every sequence and head.
fn lists([counts, indices]: &[Buffer; 2]) -> BlockLists<'_> {
    BlockLists {
        counts: TensorView::new(counts, DType::I32, &[1, 1, 3]).unwrap(),
        indices: TensorView::new(indices, DType::I32, &[1, 1, 3, 1]).unwrap(),
    }
}

#[test]
fn own_indices_serve_a_layer() {
    let patterns = vec![BLOCK_SPARSE; 2];
    let case = Case {
        head_dim: 64,
        dtype: MmaType::Bf16,
        kv_heads: 2,
        patterns,
        sequences: vec![(290, 400), (380, 380)],
        packed: false,
    };
    let data = case.data(testing::seed(6));
    // The same three row blocks for every head and sequence.
    let rows = [vec![0, 1], vec![2], vec![0, 2]];
    let of = |rows: &[Vec<u32>]| BlockSparse { partial: rows.to_vec(), full: vec![Vec::new(); 3] };
    let mask = |index: &BlockSparse, b: usize| {
        Mask::block_sparse(case.sequences[b].0, case.sequences[b].1, (128, 64), true, index, |_, _| true)
    };
    let masks: Vec<Vec<Mask>> = (0..2).map(|b| vec![mask(&of(&rows), b); 2]).collect();
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        // A granularity of the caller's own.
        let layer = case.builder(arch).block(Pattern::BlockSparse, (128, 64)).build(&device).unwrap();
        let batch = Batch::new(&device, &stream, &case, &data);

        let bsr = BsrIndex::new(&device, &stream, &[0, 2, 3, 5], &[1, 0, 2, 2, 0]).unwrap();
        layer.run(&stream, &batch.args(), &bsr.index().unwrap()).unwrap();
        compare("BSR", &batch, &data, &masks, &stream);

        // FlexAttention's tensors with the first block of each row block full.
        let tensor = |values: &[i32]| device.upload(&stream, values).unwrap();
        let (partial, full) = ([tensor(&[1, 0, 1]), tensor(&[1, 0, 2])], [tensor(&[1, 1, 1]), tensor(&[0, 2, 0])]);
        batch.out.fill(&stream, 0xFF).unwrap();
        layer.run(&stream, &batch.args(), &Index::from_flex(lists(&partial), Some(lists(&full)))).unwrap();
        compare("FlexAttention", &batch, &data, &masks, &stream);
        assert!(layer.status(&stream).unwrap().is_clear());

        // A block that does not exist is skipped and reported.
        let wild = [tensor(&[1, 0, 1]), tensor(&[1, 0, 77])];
        batch.out.fill(&stream, 0xFF).unwrap();
        layer.run(&stream, &batch.args(), &Index::from_flex(lists(&wild), Some(lists(&full)))).unwrap();
        assert!(layer.status(&stream).unwrap().index_out_of_range());
        let rows = [vec![0, 1], vec![2], vec![0]];
        let masks: Vec<Vec<Mask>> = (0..2).map(|b| vec![mask(&of(&rows), b); 2]).collect();
        compare("wild block", &batch, &data, &masks, &stream);
    }
}

#[test]
fn plan_and_run_replay_in_a_graph() {
    let case = Case {
        head_dim: 64,
        dtype: MmaType::Bf16,
        kv_heads: 2,
        patterns: all_patterns(),
        sequences: vec![(150, 150), (90, 140)],
        packed: false,
    };
    let (first, second) = (case.data(testing::seed(7)), case.data(testing::seed(8)));
    for (device, arch) in testing::targets() {
        let stream = Stream::new(&device).unwrap();
        let (layer, batch) = (case.layer(&device, arch), Batch::new(&device, &stream, &case, &first));
        let workspace = device.allocate(layer.workspace_bytes(&batch.bounds) as usize).unwrap();
        let mut index = None;
        let graph = stream
            .capture(|stream| {
                let planned = batch.plan(&layer, stream, &workspace);
                layer.run(stream, &batch.args(), &planned)?;
                index = Some(planned);
                Ok(())
            })
            .unwrap();
        for data in [&first, &second] {
            let fresh = Batch::new(&device, &stream, &case, data);
            for (from, to) in [(&fresh.q, &batch.q), (&fresh.k, &batch.k), (&fresh.v, &batch.v)] {
                to.write(&stream, &from.read::<u16>(&stream).unwrap()).unwrap();
            }
            batch.out.fill(&stream, 0xFF).unwrap();
            graph.launch(&stream).unwrap();
            compare("replay", &batch, data, &masks(&case, &layer, &index.unwrap(), &stream), &stream);
        }
        // Lengths lie on the device: the same graph serves others, with the bits of launches that are not captured.
        for (q_lengths, kv_lengths) in [([100, 90], [131, 90]), ([1, 0], [140, 0]), ([150, 33], [150, 140])] {
            batch.q_rows.write(&stream, &q_lengths).unwrap();
            batch.kv_rows.write(&stream, &kv_lengths).unwrap();
            let outputs = |launch: &dyn Fn()| {
                batch.out.fill(&stream, 0xFF).unwrap();
                batch.lse.fill(&stream, 0xFF).unwrap();
                launch();
                (batch.out.read::<u16>(&stream).unwrap(), batch.lse.read::<u32>(&stream).unwrap())
            };
            let replayed = outputs(&|| graph.launch(&stream).unwrap());
            let direct = outputs(&|| {
                let index = batch.plan(&layer, &stream, &workspace);
                layer.run(&stream, &batch.args(), &index).unwrap();
            });
            assert!(replayed == direct, "lengths {q_lengths:?}, {kv_lengths:?}");
            assert!(replayed.0.iter().any(|&bits| bits != POISON));
        }
    }
}

#[test]
fn patterns_of_a_layer_may_be_left_out() {
    let device = Device::emulator();
    let layer =
        SparsePrefill::builder().heads(4).head_dim(64).patterns(LayerPatterns::default()).build(&device).unwrap();
    let groups: Vec<_> = layer.groups().map(|group| (group.facts.pattern, group.heads)).collect();
    assert_eq!(groups, [(Pattern::VerticalSlash, 4)]);
}
