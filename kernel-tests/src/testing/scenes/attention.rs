//! Attention over a padded batch of two sequences, with an index drawn at random.

use super::{Agreement, GAP, Scene, UNWRITTEN, decode, encode, floats, half_outputs, normal};
use crate::{
    oracle::{
        self, Mask, Problem,
        mask::{BlockSparse, VerticalSlash},
    },
    testing::launch::Launch,
};
use kernel_core::device::TensorMap;
use ptx::{
    Arch, BoxShape,
    isa::MmaType,
    kernels::attention::{AttentionSpec, KvLayout, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

pub(super) const DTYPE: MmaType = MmaType::Bf16;
const HEADS: usize = 2;

/// What depends on the architecture: the block, heads that fill one slab of shared memory or two, lengths with which every
/// stage of a pipeline is used again, and scores that spread so far that a maximum is raised often.
#[derive(Clone, Copy)]
struct Shape {
    block: (usize, usize),
    head_dim: usize,
    spread: f32,
    /// (queries, keys): the window of the first ends at its last key; the second is shorter than the first, the bound.
    lengths: [(usize, usize); 2],
}

impl Shape {
    const fn of(arch: Arch) -> Shape {
        match arch {
            Arch::Sm80 => Shape { block: (64, 64), head_dim: 64, spread: 1.0, lengths: [(100, 197), (37, 70)] },
            Arch::Sm90a => Shape { block: (128, 64), head_dim: 128, spread: 4.0, lengths: [(200, 840), (37, 300)] },
        }
    }

    fn max_q(self) -> usize {
        self.lengths[0].0
    }

    fn max_kv(self) -> usize {
        self.lengths[0].1
    }

    fn spec(self, pattern: Pattern, arch: Arch) -> AttentionSpec {
        let block = (self.block.0 as u32, self.block.1 as u32);
        AttentionSpec::new(pattern, block, self.head_dim as u32, DTYPE, arch)
    }
}

/// Causal attention under a pattern, two query heads to one of keys.
pub fn attention(pattern: Pattern, arch: Arch, seed: u64) -> Scene {
    let shape = Shape::of(arch);
    scene(shape, shape.spec(pattern, arch), seed)
}

/// Dense attention without a causal mask, with scores so near to each other that every key counts.
pub fn dense_full(arch: Arch, seed: u64) -> Scene {
    let shape = Shape { spread: 1.0, ..Shape::of(arch) };
    scene(shape, AttentionSpec { causal: false, ..shape.spec(Pattern::Dense, arch) }, seed)
}

/// Causal attention over a cache of pages of 16 keys in no order. An entry of the table names no page: the first number that
/// names none.
pub fn paged(pattern: Pattern, arch: Arch, seed: u64) -> Scene {
    let shape = Shape::of(arch);
    let kv = KvLayout::Paged { page: Pages::ROWS as u32 };
    scene(shape, AttentionSpec { kv, ..shape.spec(pattern, arch) }, seed)
}

/// Pages of keys: which page each entry of each sequence names, and how many there are.
struct Pages {
    table: Vec<u32>,
    width: usize,
    count: usize,
}

impl Pages {
    const ROWS: usize = 16;
    /// The entry of the first sequence that names no page.
    const MISSING: usize = 3;
    /// The bit of the status word that says so.
    const REPORT: u32 = 2;

    fn of(keys: &Layout) -> Pages {
        let width = keys.rows.div_ceil(Pages::ROWS);
        let needed = |length: usize| length.div_ceil(Pages::ROWS);
        // Of the pages, which are as many as entries, those that no sequence needs belong to nobody.
        let count = width * keys.lengths.len();
        let entry = |sequence: usize, i: usize| match i {
            Pages::MISSING if sequence == 0 => count as u32,
            _ if i < needed(keys.lengths[sequence].1) => ((sequence * width + i) * 7 % count) as u32,
            _ => u32::MAX,
        };
        assert!(!count.is_multiple_of(7), "another factor for {count} pages");
        let table = (0..keys.lengths.len()).flat_map(|s| (0..width).map(move |i| (s, i)));
        Pages { table: table.map(|(s, i)| entry(s, i)).collect(), width, count }
    }

    /// Elements of a page.
    fn elements(keys: &Layout) -> usize {
        Pages::ROWS * keys.row()
    }

    /// The keys of `bits` in their pages, NaN elsewhere. Those of the missing page become zeros in `bits`.
    fn scatter(&self, keys: &Layout, bits: &mut [u16]) -> Vec<u16> {
        let missing = Pages::MISSING * Pages::ROWS * keys.row();
        bits[missing..][..Pages::elements(keys)].fill(0);
        let mut pool = vec![UNWRITTEN; self.count * Pages::elements(keys)];
        for (sequence, entries) in self.table.chunks(self.width).enumerate() {
            let rows = &bits[sequence * keys.rows * keys.row()..][..keys.rows * keys.row()];
            for (rows, &page) in rows.chunks(Pages::elements(keys)).zip(entries) {
                if (page as usize) < self.count {
                    pool[page as usize * Pages::elements(keys)..][..rows.len()].copy_from_slice(rows);
                }
            }
        }
        pool
    }

    fn arguments(&self, launch: Launch, keys: &Layout) -> Launch {
        let [page, row] = [Pages::elements(keys), keys.row()].map(|elements| 2 * elements as u32);
        let shape = [keys.head_dim, Pages::ROWS, keys.heads, self.count].map(|entries| entries as u64);
        let strides = [u64::from(row), 2 * keys.head_dim as u64, u64::from(page)];
        let map = TensorMap { shape, strides, ..keys.tensor_map() };
        let side = |launch: Launch, name: &str| {
            launch
                .u32(format!("{name}_page"), page)
                .u32(format!("{name}_row"), row)
                .u64(format!("{name}_head"), 2 * keys.head_dim as u64)
                .tensor_map(format!("{name}_map"), name, map)
        };
        side(side(launch, "k"), "v")
            .array("page_table", self.table.clone())
            .u64("page_table_batch", 4 * self.width as u64)
            .u32("pages", self.count as u32)
    }
}

/// Rows of one head of one sequence in `[batch][max rows][heads × head_dim + gap]`.
pub(super) struct Layout {
    pub(super) lengths: [(usize, usize); 2],
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Layout {
    fn row(&self) -> usize {
        self.heads * self.head_dim + GAP
    }

    pub(super) fn elements(&self) -> usize {
        self.lengths.len() * self.rows * self.row()
    }

    pub(super) fn at(&self, sequence: usize, row: usize, head: usize) -> usize {
        (sequence * self.rows + row) * self.row() + head * self.head_dim
    }

    /// Normal numbers in the rows there are, NaN elsewhere.
    pub(super) fn random(&self, random: &mut StdRng, length: impl Fn((usize, usize)) -> usize) -> Vec<u16> {
        let mut bits = vec![UNWRITTEN; self.elements()];
        for (sequence, &lengths) in self.lengths.iter().enumerate() {
            for (row, head) in (0..length(lengths)).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
                bits[self.at(sequence, row, head)..][..self.head_dim].fill_with(|| encode(DTYPE, normal(random)));
            }
        }
        bits
    }

    pub(super) fn values(&self, bits: &[u16], sequence: usize, head: usize, rows: usize) -> Vec<f32> {
        let row = |row| bits[self.at(sequence, row, head)..][..self.head_dim].iter();
        (0..rows).flat_map(row).map(|&bits| decode(DTYPE, bits) as f32).collect()
    }

    pub(super) fn arguments(&self, launch: Launch, name: &str) -> Launch {
        let row = 2 * self.row() as u64;
        launch
            .u64(format!("{name}_batch"), self.rows as u64 * row)
            .u64(format!("{name}_row"), row)
            .u64(format!("{name}_head"), 2 * self.head_dim as u64)
            .tensor_map(format!("{name}_map"), name, self.tensor_map())
    }

    fn tensor_map(&self) -> TensorMap {
        let shape = [self.head_dim, self.rows, self.heads, self.lengths.len()].map(|entries| entries as u64);
        let strides = [self.row(), self.head_dim, self.rows * self.row()].map(|elements| 2 * elements as u64);
        // What a box is, is the kernel's business.
        TensorMap { address: 0, dtype: DTYPE, shape, strides, box_shape: BoxShape { columns: 0, rows: 0, stride: 1 } }
    }
}

fn scene(shape: Shape, spec: AttentionSpec, seed: u64) -> Scene {
    let (lengths, max_q, max_kv) = (shape.lengths, shape.max_q(), shape.max_kv());
    let mut random = StdRng::seed_from_u64(seed);
    let head_dim = shape.head_dim;
    let queries = Layout { lengths, rows: max_q, heads: HEADS, head_dim };
    let keys = Layout { lengths, rows: max_kv, heads: 1, head_dim };
    let q = queries.random(&mut random, |l| l.0);
    let [mut k, mut v] = [(); 2].map(|()| keys.random(&mut random, |l| l.1));
    let pages = (spec.kv != KvLayout::Strided).then(|| Pages::of(&keys));
    let placed = [&mut k, &mut v].map(|bits| match &pages {
        None => bits.clone(),
        Some(pages) => pages.scatter(&keys, bits),
    });
    let [placed_k, placed_v] = placed;
    let scale = shape.spread / (head_dim as f32).sqrt();
    let row_blocks = max_q.div_ceil(shape.block.0) + usize::from(spec.pattern == Pattern::VerticalSlash);
    let grid = [row_blocks as u32, HEADS as u32, lengths.len() as u32];
    let in_turn = spec.takes_turns();
    // Blocks take several row blocks in turn.
    let blocks = if in_turn { [grid.iter().product::<u32>().div_ceil(3), 1, 1] } else { grid };
    let mut launch = Launch::new(&spec, blocks);
    if in_turn {
        launch = launch.array("turns", vec![0u32]);
        for (name, extent) in ["places", "sections", "sequences"].into_iter().zip(grid) {
            launch = launch.u32(name, extent);
        }
    }
    launch =
        launch.array("q", q.clone()).array("k", placed_k).array("v", placed_v).poisoned("out", 2 * queries.elements());
    for (name, layout) in [("q", &queries), ("out", &queries)] {
        launch = layout.arguments(launch, name);
    }
    launch = match &pages {
        None => keys.arguments(keys.arguments(launch, "k"), "v"),
        Some(pages) => pages.arguments(launch, &keys),
    };
    let launch = launch
        .poisoned("lse", 4 * lengths.len() * HEADS * max_q)
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
        .u32("slots", HEADS as u32)
        .u32("slot_shift", 0)
        .u32("heads", HEADS as u32)
        .u32("heads_per_kv", HEADS as u32)
        .null("head_map")
        .u64("head_map_batch", 0)
        .f32("scale", scale)
        .array("status", vec![0u32]);
    let (launch, masks) = index(launch, shape, &spec, &mut random);
    let mut outputs =
        vec![("out", Agreement::Half(DTYPE)), ("lse", Agreement::Float(1e-3)), ("status", Agreement::Exact)];
    if in_turn {
        outputs.push(("turns", Agreement::Exact));
    }
    let expected_status = if pages.is_some() { Pages::REPORT } else { 0 };
    Scene::new(launch, &outputs, move |outcome| {
        let mut out = vec![None; queries.elements()];
        let mut lse = vec![f32::from_bits(u32::MAX); lengths.len() * HEADS * max_q];
        for (sequence, &(q_len, kv_len)) in lengths.iter().enumerate() {
            for head in 0..HEADS {
                let problem = Problem {
                    q: &queries.values(&q, sequence, head, q_len),
                    k: &keys.values(&k, sequence, 0, kv_len),
                    v: &keys.values(&v, sequence, 0, kv_len),
                    head_dim,
                    mask: &masks[sequence * HEADS + head],
                    scale: f64::from(scale),
                    softcap: None,
                    score: None,
                };
                let (rows, sums) = oracle::attention(&problem);
                for (row, values) in rows.chunks(head_dim).enumerate() {
                    let at = queries.at(sequence, row, head);
                    out[at..at + head_dim].iter_mut().zip(values).for_each(|(out, &value)| *out = Some(value));
                    lse[(sequence * HEADS + head) * max_q + row] = sums[row] as f32;
                }
            }
        }
        let found = outcome.read("out")?;
        let verdict = half_outputs("attention", DTYPE, &found, &out);
        let found = outcome.read("lse")?;
        let verdict = verdict.and_then(|()| floats("LSE", &found, &lse, 1e-3));
        let status = outcome.read::<u32>("status")?;
        let verdict = verdict.and_then(|()| super::equal("status", &status, &[expected_status]));
        let turns = if in_turn { outcome.read::<u32>("turns")? } else { vec![0] };
        Ok(verdict.and_then(|()| super::equal("turns", &turns, &[0])))
    })
}

/// The pattern's index arguments, and the mask of each (sequence, head).
fn index(launch: Launch, shape: Shape, spec: &AttentionSpec, random: &mut StdRng) -> (Launch, Vec<Mask>) {
    let (block, lengths, max_kv) = (shape.block, shape.lengths, shape.max_kv());
    let each = || lengths.iter().flat_map(|&lengths| (0..HEADS).map(move |head| (lengths, head)));
    let key_blocks = max_kv.div_ceil(block.1);
    match spec.pattern {
        Pattern::Dense => (launch, each().map(|((q, kv), _)| Mask::dense(q, kv, spec.causal)).collect()),
        Pattern::AShape => {
            let windows = [[20, 50], [3, 77]];
            let mask = |((q, kv), head): ((usize, usize), usize)| {
                let [sink, local] = windows[head];
                Mask::a_shape(q, kv, sink, local)
            };
            (launch.array("windows", windows.concat()), each().map(mask).collect())
        }
        Pattern::TriShape => {
            let windows = [[20, 50, 30], [3, 40, 17]];
            let mask = |((q, kv), head): ((usize, usize), usize)| {
                let [sink, local, last] = windows[head];
                Mask::tri_shape(q, kv, sink, local, last)
            };
            (launch.array("windows", windows.concat()), each().map(mask).collect())
        }
        Pattern::VerticalSlash => {
            let (mut offsets, mut columns, mut counts) = (Vec::new(), Vec::new(), Vec::new());
            let mut masks = Vec::new();
            for ((q, kv), head) in each() {
                // The diagonal and another slash: the columns between are gathered, in more than one tile.
                let own_offsets = [0, 140 + 60 * head as u32];
                let own: Vec<u32> = (0..kv as u32).filter(|_| random.random_bool(0.8)).collect();
                offsets.extend(own_offsets);
                counts.push(own.len() as u32);
                columns.extend((0..max_kv).map(|i| own.get(i).copied().unwrap_or(u32::MAX)));
                let index = VerticalSlash { offsets: own_offsets.to_vec(), columns: own };
                masks.push(Mask::vertical_slash(q, kv, block.1, &index));
            }
            let launch = launch
                .array("offsets", offsets)
                .u64("offsets_batch", 8 * HEADS as u64)
                .u64("offsets_head", 8)
                .u32("offset_capacity", 2)
                .array("offset_counts", vec![2u32; counts.len()])
                .array("columns", columns)
                .u64("columns_batch", (4 * HEADS * max_kv) as u64)
                .u64("columns_head", 4 * max_kv as u64)
                .u32("column_capacity", max_kv as u32)
                .array("column_counts", counts);
            (launch, masks)
        }
        Pattern::BlockSparse => {
            let row_blocks = shape.max_q().div_ceil(block.0);
            let (mut counts, mut indices) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
            let mut masks = Vec::new();
            for ((q, kv), _) in each() {
                let mut lists = BlockSparse { partial: Vec::new(), full: Vec::new() };
                for row_block in 0..row_blocks {
                    let (mut partial, mut full) = (Vec::new(), Vec::new());
                    for key_block in 0..kv.div_ceil(block.1) as u32 {
                        match random.random_range(0..3) {
                            0 if row_block * block.0 < q => partial.push(key_block),
                            1 if row_block * block.0 < q => full.push(key_block),
                            _ => {}
                        }
                    }
                    for (kind, list) in [&partial, &full].into_iter().enumerate() {
                        counts[kind].push(list.len() as u32);
                        indices[kind].extend((0..key_blocks).map(|i| list.get(i).copied().unwrap_or(u32::MAX)));
                    }
                    lists.partial.push(partial);
                    lists.full.push(full);
                }
                masks.push(Mask::block_sparse(q, kv, block, spec.causal, &lists, |_, _| true));
            }
            let [partial_counts, full_counts] = counts;
            let [partial_indices, full_indices] = indices;
            let launch = launch
                .array("partial_counts", partial_counts)
                .array("partial_indices", partial_indices)
                .u32("partial_capacity", key_blocks as u32)
                .array("full_counts", full_counts)
                .array("full_indices", full_indices)
                .u32("full_capacity", key_blocks as u32)
                .u64("counts_batch", (4 * row_blocks * HEADS) as u64)
                .u64("counts_head", 4 * row_blocks as u64)
                .u64("indices_batch", (4 * key_blocks * row_blocks * HEADS) as u64)
                .u64("indices_head", (4 * key_blocks * row_blocks) as u64)
                .u64("indices_row", 4 * key_blocks as u64);
            (launch, masks)
        }
    }
}
