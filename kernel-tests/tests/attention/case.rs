//! One launch of an attention kernel, checked against the oracle.

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, Stream, device::TensorMap};
use kernel_tests::oracle::{
    self, Mask, Problem, error,
    mask::{BlockSparse, VerticalSlash, offsets_of_slashes},
};
use ptx::{
    Arch, BoxShape, ParameterKind,
    isa::MmaType,
    kernels::attention::{AttentionSpec, KvLayout, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::sync::Arc;

/// Elements between the end of a row's heads and the next row: never read, never written.
const GAP: usize = 8;
/// Rows around packed tensors that belong to nobody.
const MARGIN: usize = 3;
/// What a kernel must overwrite, or leave.
const POISON: u8 = 0xFF;

/// A score expression and its reference: (score, query position, key, head).
pub(crate) type Score = Arc<dyn Fn(f64, usize, usize, usize) -> f64 + Send + Sync>;
/// The same of a mask: (query position, key).
pub(crate) type Keep = Arc<dyn Fn(i64, i64) -> bool + Send + Sync>;

/// A launch: the spec and everything that is not in it.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) spec: AttentionSpec,
    pub(crate) heads: usize,
    pub(crate) heads_per_kv: usize,
    /// Heads of the launch, where not all.
    pub(crate) head_map: Option<Vec<u32>>,
    /// Query rows and keys of each sequence.
    pub(crate) lengths: Vec<(usize, usize)>,
    /// Sequences one after the other instead of padded.
    pub(crate) packed: bool,
    pub(crate) lse: bool,
    pub(crate) cap: f32,
    /// Standard deviation of the scores: with 4, a row's maximum is raised often and far.
    pub(crate) spread: f32,
    /// Block-sparse: with a full list beside the partial one.
    pub(crate) full_list: bool,
    /// Entries that a list of columns or blocks has room for, where not for all.
    pub(crate) capacity: Option<usize>,
    /// Share of selected blocks, diagonals and columns; 0 for an empty selection.
    pub(crate) density: f64,
    /// That of slashes where it is not a twentieth of it.
    pub(crate) slashes: Option<f64>,
    pub(crate) side: Vec<Side>,
    pub(crate) score: Option<Score>,
    pub(crate) mask: Option<Keep>,
    /// Called with the inputs before the launch: (queries, keys, values) of (sequence, head), as rounded.
    pub(crate) spoil: Option<fn(&mut Inputs)>,
    pub(crate) seed: u64,
}

/// A side buffer's contents.
#[derive(Clone)]
pub(crate) enum Side {
    Floats(Vec<f32>),
    Words(Vec<u32>),
}

/// Values of each sequence and head, `[rows, head_dim]`.
pub(crate) struct Inputs {
    pub(crate) q: Vec<Vec<Vec<f32>>>,
    pub(crate) k: Vec<Vec<Vec<f32>>>,
    pub(crate) v: Vec<Vec<Vec<f32>>>,
}

/// What the kernel wrote, by sequence and head.
pub(crate) struct Outcome {
    pub(crate) out: Vec<Vec<Vec<f64>>>,
    pub(crate) lse: Vec<Vec<Vec<f32>>>,
    pub(crate) lse_written: usize,
    pub(crate) status: u32,
}

impl Case {
    /// A dense launch of one sequence and head.
    pub(crate) fn new(spec: AttentionSpec, lengths: Vec<(usize, usize)>, seed: u64) -> Case {
        Case {
            spec,
            heads: 1,
            heads_per_kv: 1,
            head_map: None,
            lengths,
            packed: false,
            lse: true,
            cap: 2.0,
            spread: 1.0,
            full_list: true,
            capacity: None,
            density: 0.3,
            slashes: None,
            side: Vec::new(),
            score: None,
            mask: None,
            spoil: None,
            seed,
        }
    }

    /// The same launch by a kernel of another architecture: its block is the nearest that is generated there.
    pub(crate) fn on(&self, arch: Arch) -> Case {
        let mut case = self.clone();
        case.spec.arch = arch;
        let AttentionSpec { pattern, block: (rows, keys), head_dim, .. } = self.spec;
        if arch == Arch::Sm90a {
            case.spec.block = match pattern {
                Pattern::VerticalSlash => (128, 64),
                _ if rows == 64 && head_dim == 64 => (192, 128),
                _ => (128, keys.max(64)),
            };
        }
        case
    }

    fn max_q(&self) -> usize {
        self.lengths.iter().map(|l| l.0).max().unwrap()
    }

    fn max_kv(&self) -> usize {
        self.lengths.iter().map(|l| l.1).max().unwrap()
    }

    fn launched(&self) -> Vec<usize> {
        match &self.head_map {
            Some(map) => map.iter().map(|&head| head as usize).collect(),
            None => (0..self.heads).collect(),
        }
    }

    fn inputs(&self, rng: &mut StdRng) -> Inputs {
        let d = self.spec.head_dim as usize;
        let dtype = self.spec.dtype;
        let mut tensor = |heads: usize, of: fn(&(usize, usize)) -> usize| -> Vec<Vec<Vec<f32>>> {
            let head = |rng: &mut StdRng, rows| (0..rows * d).map(|_| rounded(dtype, normal(rng))).collect();
            self.lengths.iter().map(|l| (0..heads).map(|_| head(rng, of(l))).collect()).collect()
        };
        let kv_heads = self.heads / self.heads_per_kv;
        Inputs { q: tensor(self.heads, |l| l.0), k: tensor(kv_heads, |l| l.1), v: tensor(kv_heads, |l| l.1) }
    }

    /// Launches on `device` and compares.
    pub(crate) fn check(&self, device: &Device) {
        let what = format!("{} lengths {:?} seed {} on {}", self.spec.entry(), self.lengths, self.seed, device.name());
        let (inputs, indices) = self.prepare();
        let outcome = self.launch(device, &inputs, &indices);
        assert_eq!(outcome.status, 0, "{what}: status");
        let (mut out, mut reference, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in 0..self.lengths.len() {
            for (slot, &head) in self.launched().iter().enumerate() {
                let mask = self.mask(&indices, sequence, slot);
                let score = |s: f64, q: usize, k: usize| self.score.as_ref().unwrap()(s, q, k, head);
                let problem = Problem {
                    q: &inputs.q[sequence][head],
                    k: &inputs.k[sequence][head / self.heads_per_kv],
                    v: &inputs.v[sequence][head / self.heads_per_kv],
                    head_dim: self.spec.head_dim as usize,
                    mask: &mask,
                    scale: f64::from(self.scale()),
                    softcap: self.spec.softcap.then_some(f64::from(self.cap)),
                    score: self.score.is_some().then_some(&score),
                };
                let (expected, lse) = oracle::attention(&problem);
                plain.extend(oracle::plain(&problem, |x| error::round(self.spec.dtype, x)));
                reference.extend(expected);
                out.extend(&outcome.out[sequence][slot]);
                for (row, (&found, expected)) in outcome.lse[sequence][slot].iter().zip(lse).enumerate() {
                    let found = f64::from(found);
                    let close = found == expected || (found - expected).abs() < 1e-3;
                    assert!(
                        close,
                        "{what}: LSE of sequence {sequence} head {head} row {row} is {found}, not {expected}"
                    );
                }
            }
        }
        oracle::assert_close(&what, self.spec.dtype, &out, &reference, &plain);
    }

    /// Inputs and index, from the seed.
    pub(crate) fn prepare(&self) -> (Inputs, Vec<Vec<Index>>) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut inputs = self.inputs(&mut rng);
        if let Some(spoil) = self.spoil {
            spoil(&mut inputs);
        }
        let slots = self.launched().len();
        let mut index = |&lengths| (0..slots).map(|_| self.index(&mut rng, lengths)).collect();
        let mut indices: Vec<Vec<Index>> = self.lengths.iter().map(&mut index).collect();
        if let Index::Windows(_) = indices[0][0] {
            // Windows belong to heads, whatever the sequence.
            let first = indices[0].clone();
            indices.fill(first);
        }
        (inputs, indices)
    }

    fn scale(&self) -> f32 {
        self.spread / (self.spec.head_dim as f32).sqrt()
    }
}

/// The index of one sequence and head.
#[derive(Clone, Debug)]
pub(crate) enum Index {
    None,
    Windows(Vec<u32>),
    Columns(VerticalSlash),
    Blocks(BlockSparse),
}

impl Case {
    fn index(&self, rng: &mut StdRng, (q_len, kv_len): (usize, usize)) -> Index {
        let (rows, keys) = (self.spec.block.0 as usize, self.spec.block.1 as usize);
        let density = self.density;
        match self.spec.pattern {
            Pattern::Dense => Index::None,
            Pattern::AShape | Pattern::TriShape => {
                let size =
                    |rng: &mut StdRng| if density == 0.0 { 0 } else { rng.random_range(0..=kv_len as u32 * 2 / 3) };
                let words = if self.spec.pattern == Pattern::AShape { 2 } else { 3 };
                Index::Windows((0..words).map(|_| size(rng)).collect())
            }
            Pattern::VerticalSlash => Index::Columns(VerticalSlash {
                offsets: {
                    let slashes: Vec<u32> = (0..kv_len as u32)
                        .filter(|_| rng.random_bool(self.slashes.unwrap_or(density / 20.0)))
                        .collect();
                    offsets_of_slashes(&slashes, keys as u32)
                },
                columns: (0..kv_len as u32).filter(|_| rng.random_bool(density)).collect(),
            }),
            Pattern::BlockSparse => {
                let mut lists = BlockSparse { partial: Vec::new(), full: Vec::new() };
                for _ in 0..q_len.div_ceil(rows) {
                    let (mut partial, mut full) = (Vec::new(), Vec::new());
                    for block in 0..kv_len.div_ceil(keys) as u32 {
                        if rng.random_bool(density) {
                            let list = if self.full_list && rng.random_bool(0.5) { &mut full } else { &mut partial };
                            list.push(block);
                        }
                    }
                    lists.partial.push(partial);
                    lists.full.push(full);
                }
                Index::Blocks(lists)
            }
        }
    }

    fn mask(&self, indices: &[Vec<Index>], sequence: usize, slot: usize) -> Mask {
        let (q_len, kv_len) = self.lengths[sequence];
        let block = (self.spec.block.0 as usize, self.spec.block.1 as usize);
        // Rows before the first key stand at position 0, as far as expressions see.
        let keep = |q: i64, k: i64| self.mask.as_ref().is_none_or(|mask| mask(q.max(0), k));
        let structure = match &indices[sequence][slot] {
            Index::None => Mask::dense(q_len, kv_len, self.spec.causal),
            Index::Windows(w) => Mask::tri_shape(q_len, kv_len, w[0], w[1], w.get(2).copied().unwrap_or(0)),
            Index::Columns(index) => Mask::vertical_slash(q_len, kv_len, block.1, index),
            Index::Blocks(index) => {
                return Mask::block_sparse(q_len, kv_len, block, self.spec.causal, index, keep);
            }
        };
        structure.and(keep)
    }

    /// Launches on `device`; rows that the kernel must not write are checked here.
    pub(crate) fn launch(&self, device: &Device, inputs: &Inputs, indices: &[Vec<Index>]) -> Outcome {
        let outcome = self.launch_with(device, inputs, indices, |_, _| ());
        let rows = self.lengths.iter().map(|l| l.0 * self.launched().len()).sum();
        assert_eq!(outcome.lse_written, if self.lse { rows } else { 0 }, "{}: LSE words written", self.spec.entry());
        outcome
    }

    /// As [`Case::launch`], after `tamper` has changed the index words.
    pub(crate) fn launch_with(
        &self,
        device: &Device,
        inputs: &Inputs,
        indices: &[Vec<Index>],
        tamper: impl Fn(&str, &mut Vec<u32>),
    ) -> Outcome {
        let stream = Stream::new(device).unwrap();
        let kernel = device.load(&ptx::generate(&self.spec).unwrap()).unwrap();
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut words = |name: &str, mut words: Vec<u32>| {
            tamper(name, &mut words);
            // An empty array still has an address.
            words.resize(words.len().max(1), 0);
            buffers.push(device.upload(&stream, &words).unwrap());
            buffers.last().unwrap().address()
        };
        let d = self.spec.head_dim as usize;
        let kv_heads = self.heads / self.heads_per_kv;
        let launched = self.launched();
        let slots = launched.len();
        // How heads take turns in the grid changes nothing else.
        let slot_shift = self.lengths.len() as u32 % 3;
        let (max_q, max_kv) = (self.max_q(), self.max_kv());
        let layout = |heads: usize, of: fn(&(usize, usize)) -> usize| {
            let lengths: Vec<usize> = self.lengths.iter().map(of).collect();
            Layout::new(&lengths, heads, d, self.packed)
        };
        let q_layout = layout(self.heads, |l| l.0);
        let kv_layout = match self.spec.kv {
            KvLayout::Strided => layout(kv_heads, |l| l.1),
            KvLayout::Paged { page } => {
                let lengths: Vec<usize> = self.lengths.iter().map(|l| l.1).collect();
                Layout::paged(&lengths, kv_heads, d, page as usize, self.seed)
            }
        };
        let upload = |layout: &Layout, values: &[Vec<Vec<f32>>]| {
            device.upload(&stream, &layout.scatter(self.spec.dtype, values)).unwrap()
        };
        let q = upload(&q_layout, &inputs.q);
        let [k, v] = [&inputs.k, &inputs.v].map(|values| upload(&kv_layout, values));
        let poisoned = |bytes: usize| {
            let buffer = device.allocate(bytes).unwrap();
            buffer.fill(&stream, POISON).unwrap();
            buffer
        };
        let out = poisoned(2 * q_layout.elements);
        let lse_rows = if self.packed { q_layout.rows } else { max_q };
        let lse_batch = if self.packed { 0 } else { self.heads * lse_rows };
        let lse_elements = if self.packed { self.heads * lse_rows } else { self.lengths.len() * lse_batch };
        let lse = poisoned(4 * lse_elements);

        let status = device.upload(&stream, &[0u32]).unwrap();
        let uniform = self.lengths.iter().all(|l| *l == self.lengths[0]);
        let [mut q_start, mut kv_start, mut q_length, mut kv_length] = [0; 4];
        let paged = kv_layout.pages.as_ref();
        if self.packed {
            q_start = words("q_start", q_layout.starts());
        } else if !uniform {
            q_length = words("q_length", self.lengths.iter().map(|l| l.0 as u32).collect());
        }
        if self.packed && paged.is_none() {
            kv_start = words("kv_start", kv_layout.starts());
        } else if !uniform {
            kv_length = words("kv_length", self.lengths.iter().map(|l| l.1 as u32).collect());
        }
        // A map for each sequence, all alike.
        let sequences = self.lengths.len();
        let head_map = self.head_map.as_ref().map_or(0, |map| words("head_map", map.repeat(sequences)));
        let head_map_batch = self.head_map.as_ref().map_or(0, |map| 4 * map.len() as u64);

        let bytes = |elements: usize| 2 * elements as u64;
        let mut arguments = Arguments::new(kernel.meta());
        for (name, buffer, layout) in
            [("q", &q, &q_layout), ("k", &k, &kv_layout), ("v", &v, &kv_layout), ("out", &out, &q_layout)]
        {
            arguments =
                arguments.pointer(name, buffer.address() + bytes(layout.origin)).u64(&format!("{name}_head"), bytes(d));
            let [batch, page, row] = ["batch", "page", "row"].map(|stride| format!("{name}_{stride}"));
            arguments = match &layout.pages {
                None => arguments.u64(&batch, bytes(layout.batch)).u64(&row, bytes(layout.row)),
                Some(pages) => arguments.u32(&page, bytes(pages.stride) as u32).u32(&row, bytes(layout.row) as u32),
            };
        }
        if let Some(pages) = paged {
            let entries = pages.entries(self.lengths.len());
            arguments = arguments
                .u64("page_table_batch", 4 * (entries.len() / self.lengths.len()) as u64)
                .pointer("page_table", words("page_table", entries))
                .u32("pages", pages.count as u32);
        }
        for (name, buffer, layout) in [("q_map", &q, &q_layout), ("k_map", &k, &kv_layout), ("v_map", &v, &kv_layout)] {
            let parameter = kernel.meta().parameters.iter().find(|parameter| parameter.name == name);
            let Some(ParameterKind::TensorMap(box_shape)) = parameter.map(|parameter| parameter.kind) else { continue };
            let map = layout.tensor_map(buffer.address(), self.spec.dtype, box_shape);
            arguments = arguments.tensor_map(name, &device.encode_tensor_map(&map).unwrap());
        }
        arguments = arguments
            .pointer("lse", if self.lse { lse.address() } else { 0 })
            .u64("lse_batch", 4 * lse_batch as u64)
            .u64("lse_head", 4 * lse_rows as u64)
            .pointer("q_start", q_start)
            .pointer("kv_start", kv_start)
            .pointer("q_length", q_length)
            .pointer("kv_length", kv_length)
            .u32("q_rows", q_layout.rows as u32)
            .u32("kv_rows", kv_layout.rows as u32)
            .u32("max_q", max_q as u32)
            .u32("max_kv", max_kv as u32)
            .u32("slots", slots as u32)
            .u32("slot_shift", slot_shift)
            .u32("heads", self.heads as u32)
            .u32("heads_per_kv", self.heads_per_kv as u32)
            .pointer("head_map", head_map)
            .u64("head_map_batch", head_map_batch)
            .f32("scale", self.scale())
            .pointer("status", status.address());
        if self.spec.softcap {
            arguments = arguments.f32("softcap", self.cap);
        }

        let (rows, keys) = (self.spec.block.0 as usize, self.spec.block.1 as usize);
        let each = || indices.iter().flatten();
        match self.spec.pattern {
            Pattern::Dense => {}
            Pattern::AShape | Pattern::TriShape => {
                // Per head of the launch: the first sequence's.
                let windows = indices[0].iter().flat_map(|index| match index {
                    Index::Windows(windows) => windows.clone(),
                    other => unreachable!("{other:?}"),
                });
                arguments = arguments.pointer("windows", words("windows", windows.collect()));
            }
            Pattern::VerticalSlash => {
                let capacities = [max_kv / keys + 2, max_kv.max(1)].map(|most| self.capacity.unwrap_or(most));
                let lists = |of: fn(&VerticalSlash) -> &Vec<u32>, capacity: usize| {
                    let (mut entries, mut counts) = (Vec::new(), Vec::new());
                    for index in each() {
                        let Index::Columns(index) = index else { unreachable!("{index:?}") };
                        let mut own = of(index).clone();
                        counts.push(own.len() as u32);
                        own.resize(capacity, u32::MAX);
                        entries.extend(own);
                    }
                    (entries, counts)
                };
                let (offsets, offset_counts) = lists(|index| &index.offsets, capacities[0]);
                let (columns, column_counts) = lists(|index| &index.columns, capacities[1]);
                arguments = arguments
                    .pointer("offsets", words("offsets", offsets))
                    .u64("offsets_batch", (4 * capacities[0] * slots) as u64)
                    .u64("offsets_head", 4 * capacities[0] as u64)
                    .u32("offset_capacity", capacities[0] as u32)
                    .pointer("offset_counts", words("offset_counts", offset_counts))
                    .pointer("columns", words("columns", columns))
                    .u64("columns_batch", (4 * capacities[1] * slots) as u64)
                    .u64("columns_head", 4 * capacities[1] as u64)
                    .u32("column_capacity", capacities[1] as u32)
                    .pointer("column_counts", words("column_counts", column_counts));
            }
            Pattern::BlockSparse => {
                let row_blocks = max_q.div_ceil(rows);
                let width = self.capacity.unwrap_or(max_kv.div_ceil(keys).max(1));
                let list = |of: fn(&BlockSparse) -> &Vec<Vec<u32>>| {
                    let (mut counts, mut entries) = (Vec::new(), Vec::new());
                    for index in each() {
                        let Index::Blocks(index) = index else { unreachable!("{index:?}") };
                        for row_block in 0..row_blocks {
                            let mut own = of(index).get(row_block).cloned().unwrap_or_default();
                            counts.push(own.len() as u32);
                            own.resize(width, u32::MAX);
                            entries.extend(own);
                        }
                    }
                    (counts, entries)
                };
                let (partial_counts, partial_indices) = list(|index| &index.partial);
                let (full_counts, full_indices) = list(|index| &index.full);
                let mut pair = |name: &str, counts, entries| {
                    [words(&format!("{name}_counts"), counts), words(&format!("{name}_indices"), entries)]
                };
                let partial = pair("partial", partial_counts, partial_indices);
                let full = if self.full_list { pair("full", full_counts, full_indices) } else { [0, 0] };
                arguments = arguments
                    .pointer("partial_counts", partial[0])
                    .pointer("partial_indices", partial[1])
                    .u32("partial_capacity", width as u32)
                    .pointer("full_counts", full[0])
                    .pointer("full_indices", full[1])
                    .u32("full_capacity", width as u32)
                    .u64("counts_batch", (4 * row_blocks * slots) as u64)
                    .u64("counts_head", 4 * row_blocks as u64)
                    .u64("indices_batch", (4 * width * row_blocks * slots) as u64)
                    .u64("indices_head", (4 * width * row_blocks) as u64)
                    .u64("indices_row", 4 * width as u64);
            }
        }
        let side: Vec<Buffer> = self
            .side
            .iter()
            .map(|side| match side {
                Side::Floats(values) => device.upload(&stream, values).unwrap(),
                Side::Words(values) => device.upload(&stream, values).unwrap(),
            })
            .collect();
        for (declared, buffer) in self.spec.side.iter().zip(&side) {
            arguments = arguments.pointer(&declared.name, buffer.address());
        }

        let row_blocks = max_q.div_ceil(rows) + usize::from(self.spec.pattern == Pattern::VerticalSlash);
        let grid =
            [(row_blocks as u32) << slot_shift, (slots as u32).div_ceil(1 << slot_shift), self.lengths.len() as u32];
        let turns = device.upload(&stream, &[0u32]).unwrap();
        let grid = if self.spec.takes_turns() {
            let [places, sections, sequences] = grid;
            arguments = arguments.u32("places", places).u32("sections", sections).u32("sequences", sequences);
            // Some launches have a block for each place, in others blocks take several in turn.
            let counted = self.lse;
            arguments = arguments.pointer("turns", if counted { turns.address() } else { 0 });
            let all = places * sections * sequences;
            [if counted { all.div_ceil(3) } else { all }, 1, 1]
        } else {
            grid
        };
        kernel.launch(&stream, grid, &arguments).unwrap();
        assert_eq!(turns.read::<u32>(&stream).unwrap(), [0]);

        let status = status.read::<u32>(&stream).unwrap()[0];
        let written = out.read::<u16>(&stream).unwrap();
        let out = q_layout.gather(self.spec.dtype, &written, &launched);
        q_layout.assert_untouched(&written, &launched);
        let lse_words: Vec<f32> = lse.read(&stream).unwrap();
        let lse_of = |sequence: usize, head: usize| {
            let first = if self.packed { q_layout.first[sequence] } else { 0 };
            let at = sequence * lse_batch + head * lse_rows + first;
            if self.lse { lse_words[at..at + self.lengths[sequence].0].to_vec() } else { Vec::new() }
        };
        let lse = (0..self.lengths.len()).map(|s| launched.iter().map(|&h| lse_of(s, h)).collect()).collect();
        let lse_written = lse_words.iter().filter(|word| word.to_bits() != u32::MAX).count();
        Outcome { out, lse, lse_written, status }
    }
}

/// Where rows lie in a tensor whose other elements belong to nobody.
struct Layout {
    heads: usize,
    head_dim: usize,
    lengths: Vec<usize>,
    /// First row of each sequence within its batch (or the whole, where packed).
    first: Vec<usize>,
    /// Elements before the first row, between batches, and between rows.
    origin: usize,
    batch: usize,
    row: usize,
    rows: usize,
    elements: usize,
    /// Where rows lie in pages: those of each sequence.
    pages: Option<Pages>,
}

/// Pages of a pool in no order; some belong to nobody.
struct Pages {
    /// Rows of a page, elements from a page to the next, and how many there are.
    rows: usize,
    stride: usize,
    count: usize,
    of: Vec<Vec<u32>>,
}

impl Pages {
    /// A table with an entry more than any sequence needs. Entries that none needs name no page.
    fn entries(&self, sequences: usize) -> Vec<u32> {
        let width = self.of.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let padded =
            self.of.iter().take(sequences).flat_map(|own| (0..width).map(|i| own.get(i).copied().unwrap_or(u32::MAX)));
        padded.collect()
    }
}

impl Layout {
    fn paged(lengths: &[usize], heads: usize, head_dim: usize, page: usize, seed: u64) -> Layout {
        let needed = lengths.iter().map(|length| length.div_ceil(page));
        let mut free: Vec<u32> = (0..needed.clone().sum::<usize>() as u32 + 3).collect();
        let count = free.len();
        free.shuffle(&mut StdRng::seed_from_u64(seed));
        let of = needed.map(|needed| free.split_off(free.len() - needed)).collect();
        let row = heads * head_dim + GAP;
        // Pages are further apart than their rows need.
        let stride = page * row + 2 * GAP;
        Layout {
            origin: MARGIN * row,
            elements: 2 * MARGIN * row + count * stride,
            pages: Some(Pages { rows: page, stride, count, of }),
            ..Layout::new(lengths, heads, head_dim, false)
        }
    }

    fn new(lengths: &[usize], heads: usize, head_dim: usize, packed: bool) -> Layout {
        let row = heads * head_dim + GAP;
        let origin = MARGIN * row;
        let longest = *lengths.iter().max().unwrap();
        let (first, batch, rows) = if packed {
            let first = lengths.iter().scan(0, |next, len| Some(std::mem::replace(next, *next + len))).collect();
            (first, 0, lengths.iter().sum())
        } else {
            (vec![0; lengths.len()], longest * row, longest * lengths.len())
        };
        let elements = (rows + 2 * MARGIN) * row;
        let lengths = lengths.to_vec();
        Layout { heads, head_dim, lengths, first, origin, batch, row, rows, elements, pages: None }
    }

    fn tensor_map(&self, buffer: u64, dtype: MmaType, box_shape: BoxShape) -> TensorMap {
        let packed = self.batch == 0;
        let (rows, batch, stride) = match &self.pages {
            Some(pages) => (pages.rows, pages.count, pages.stride),
            None if packed => (self.rows, 1, self.batch),
            None => (self.rows / self.lengths.len(), self.lengths.len(), self.batch),
        };
        TensorMap {
            address: buffer + 2 * self.origin as u64,
            dtype,
            shape: [self.head_dim, rows, self.heads, batch].map(|entries| entries.max(1) as u64),
            strides: [self.row, self.head_dim, stride.max(8)].map(|elements| 2 * elements as u64),
            box_shape,
        }
    }

    /// `cu_seqlens`.
    fn starts(&self) -> Vec<u32> {
        self.first.iter().map(|&first| first as u32).chain([self.rows as u32]).collect()
    }

    fn at(&self, sequence: usize, row: usize, head: usize) -> usize {
        if let Some(pages) = &self.pages {
            let page = pages.of[sequence][row / pages.rows] as usize;
            return self.origin + page * pages.stride + row % pages.rows * self.row + head * self.head_dim;
        }
        self.origin + sequence * self.batch + (self.first[sequence] + row) * self.row + head * self.head_dim
    }

    /// The tensor's elements; NaN where nobody's.
    fn scatter(&self, dtype: MmaType, values: &[Vec<Vec<f32>>]) -> Vec<u16> {
        let mut tensor = vec![0xFFFF; self.elements];
        for (sequence, heads) in values.iter().enumerate() {
            for (head, values) in heads.iter().enumerate() {
                for (row, values) in values.chunks(self.head_dim).enumerate() {
                    let at = self.at(sequence, row, head);
                    values.iter().enumerate().for_each(|(i, &value)| tensor[at + i] = bits(dtype, value));
                }
            }
        }
        tensor
    }

    fn gather(&self, dtype: MmaType, tensor: &[u16], heads: &[usize]) -> Vec<Vec<Vec<f64>>> {
        let rows = |sequence: usize, head: usize| {
            let row = |row| tensor[self.at(sequence, row, head)..][..self.head_dim].iter();
            (0..self.lengths[sequence]).flat_map(row).map(|&word| value(dtype, word)).collect()
        };
        (0..self.lengths.len()).map(|s| heads.iter().map(|&head| rows(s, head)).collect()).collect()
    }

    /// Fails if something outside the rows of `heads` was written.
    fn assert_untouched(&self, tensor: &[u16], heads: &[usize]) {
        let mut owned = vec![false; tensor.len()];
        for sequence in 0..self.lengths.len() {
            for row in 0..self.lengths[sequence] {
                for &head in heads.iter().filter(|&&head| head < self.heads) {
                    owned[self.at(sequence, row, head)..][..self.head_dim].fill(true);
                }
            }
        }
        for (i, (&word, owned)) in tensor.iter().zip(owned).enumerate() {
            assert!(owned || word == 0xFFFF, "element {i} belongs to nobody and was written: {word:#06x}");
        }
    }
}

fn bits(dtype: MmaType, value: f32) -> u16 {
    match dtype {
        MmaType::Bf16 => bf16::from_f32(value).to_bits(),
        MmaType::F16 => f16::from_f32(value).to_bits(),
    }
}

fn value(dtype: MmaType, word: u16) -> f64 {
    match dtype {
        MmaType::Bf16 => bf16::from_bits(word).to_f64(),
        MmaType::F16 => f16::from_bits(word).to_f64(),
    }
}

fn rounded(dtype: MmaType, x: f32) -> f32 {
    value(dtype, bits(dtype, x)) as f32
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
