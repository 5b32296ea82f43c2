//! Attention kernels on fixed index sets.

use super::heads_text;
use crate::{
    noise::noise,
    oracle::mask::offsets_of_slashes,
    workloads::{self, Layout},
};
use kernel_core::{
    Attention, AttentionArgs, AttentionKernel, Buffer, DType, Device, Error, Index, KvLayout, KvView, Selection,
    Stream, TensorView, embedded,
    index::{BlockLists, HeadLists},
};
use ptx::{
    Arch, KernelSpec,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};
use rand::{
    SeedableRng,
    rngs::StdRng,
    seq::{SliceRandom, index::sample},
};

/// One standard case, bf16.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name, the same as peers print.
    pub name: String,
    /// Sequences: one, or of dense cases several.
    pub batch: usize,
    /// Tokens of a sequence, as many queries as keys.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// The kernel.
    pub spec: AttentionSpec,
    /// What the heads attend to.
    pub work: Work,
}

/// What the heads of a case attend to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Everything.
    Dense,
    /// Sink and local window.
    AShape(u32, u32),
    /// Verticals and slashes of a budget.
    VerticalSlash(usize, usize, Layout),
    /// The standard blocks at a density.
    BlockSparse(f64),
    /// Blocks drawn at random, for each head and row block the same number, not causal.
    RandomBlocks(f64),
}

/// Shape of a case: block, head_dim, causal.
type Shape = ((u32, u32), u32, bool);

pub(super) fn case(
    arch: Arch,
    work: Work,
    (block, head_dim, causal): Shape,
    heads: (usize, usize),
    tokens: usize,
) -> Case {
    let (pattern, what) = match work {
        Work::Dense => (Pattern::Dense, format!("dense {}", if causal { "causal" } else { "full" })),
        Work::AShape(sink, local) => (Pattern::AShape, format!("a-shape {sink}/{local}")),
        Work::VerticalSlash(nv, ns, layout) => {
            (Pattern::VerticalSlash, format!("vertical-slash ({nv}, {ns}) {layout:?}").to_lowercase())
        }
        Work::BlockSparse(density) => (Pattern::BlockSparse, format!("block-sparse {}x{} {density}", block.0, block.1)),
        Work::RandomBlocks(density) => {
            (Pattern::BlockSparse, format!("random blocks {}x{} {density}", block.0, block.1))
        }
    };
    let shared = heads_text(heads.0, heads.1);
    let mut spec = AttentionSpec::new(pattern, block, head_dim, MmaType::Bf16, arch);
    spec.causal = causal;
    let name = format!("{what} d{head_dim} {shared} {tokens}");
    Case { name, batch: 1, tokens, heads: heads.0, kv_heads: heads.1, spec, work }
}

/// The cases of the performance page, with the blocks that are best on an architecture.
pub fn cases(arch: Arch) -> Vec<Case> {
    let dense = |head_dim: u32| embedded::block(Pattern::Dense, head_dim, arch);
    let mut cases = Vec::new();
    let mut add = |work, shape, heads, tokens| {
        let case = case(arch, work, shape, heads, tokens);
        if case.spec.validate().is_ok() {
            cases.push(case);
        }
    };
    for tokens in [8192, 16384] {
        for causal in [true, false] {
            add(Work::Dense, (dense(128), 128, causal), (16, 16), tokens);
            add(Work::Dense, (dense(64), 64, causal), (32, 32), tokens);
        }
    }
    add(Work::Dense, (dense(96), 96, true), (20, 20), 16384);
    add(Work::Dense, (dense(256), 256, true), (8, 8), 16384);
    for tokens in [1024, 2048, 4096] {
        add(Work::Dense, (dense(128), 128, true), (32, 8), tokens);
    }
    let long = 131_072;
    add(Work::Dense, (dense(128), 128, true), (32, 32), long);
    add(Work::AShape(128, 3968), (dense(128), 128, true), (32, 32), long);
    let clustered = Work::VerticalSlash(1000, 6096, Layout::Clustered);
    for block in [(64, 64), (128, 64)] {
        add(clustered, (block, 128, true), (32, 32), long);
    }
    for heads in [(32, 8), (28, 4)] {
        add(clustered, ((128, 64), 128, true), heads, long);
    }
    add(clustered, ((128, 64), 128, true), (1, 1), 1 << 20);
    for block in [(128, 128), (128, 64), (64, 64)] {
        // The standard blocks are counted in square ones.
        if block.0 == block.1 {
            add(Work::BlockSparse(0.125), (block, 128, true), (16, 16), 32768);
        }
        add(Work::RandomBlocks(0.125), (block, 128, false), (16, 16), 32768);
    }
    // 16K tokens in all, as in FlashAttention-3's published curve.
    for causal in [true, false] {
        let one = case(arch, Work::Dense, (dense(128), 128, causal), (16, 16), 8192);
        cases.push(Case { name: format!("{} × 2", one.name), batch: 2, ..one });
    }
    for tokens in [1024, 2048, 4096] {
        let one = case(arch, Work::Dense, (dense(128), 128, true), (32, 8), tokens);
        let batch = 16384 / tokens;
        cases.push(Case { name: format!("{} × {batch}", one.name), batch, ..one });
    }
    // Pages of a cache: of the same cases those that copy whole pages, and rows.
    let pages = |case: &Case| {
        let page = 64;
        let spec = AttentionSpec { kv: KvLayout::Paged { page }, ..case.spec.clone() };
        Case { name: format!("{}, pages of {page}", case.name), spec, ..case.clone() }
    };
    let names = ["32/8 heads 4096 × 4", "clustered d128 32/8 heads 131072"];
    let paged: Vec<Case> =
        cases.iter().filter(|case| names.iter().any(|name| case.name.ends_with(name))).map(pages).collect();
    cases.extend(paged);
    cases
}

impl Case {
    /// (query, key) pairs that one head visits, a visited tile counted whole; N²/2 for dense causal attention.
    pub fn visited_pairs(&self) -> f64 {
        let (rows, keys) = (self.spec.block.0 as usize, self.spec.block.1 as usize);
        let n = self.tokens;
        let tile = (rows * keys) as f64;
        match self.work {
            Work::Dense => (n * n) as f64 / if self.spec.causal { 2.0 } else { 1.0 },
            Work::AShape(sink, local) => {
                let (sink, local) = (sink as usize, local as usize);
                let tiles = |row: usize| {
                    let (first, last) = (row * rows, (row + 1) * rows - 1);
                    let window = (first + 1).saturating_sub(local) / keys;
                    let outside = sink.div_ceil(keys).min(window);
                    last / keys + 1 - window + outside
                };
                (0..n / rows).map(|row| tiles(row) as f64 * tile).sum()
            }
            Work::VerticalSlash(nv, ns, layout) => {
                let offsets = offsets_of_slashes(&workloads::slashes(n, ns, layout), keys as u32);
                let columns = workloads::verticals(n, nv);
                // Groups of as many rows as a block has keys visit blocks of their own.
                let group_pairs = |group: usize| {
                    let first = group * keys;
                    let end = offsets.partition_point(|offset| (*offset as usize) < first + keys);
                    let alone = |column: &&u32| {
                        let distance = first as i64 - i64::from(**column);
                        let at = offsets.partition_point(|offset| i64::from(*offset) < distance);
                        offsets.get(at).is_none_or(|offset| i64::from(*offset) >= distance + keys as i64)
                    };
                    let seen = &columns[..columns.partition_point(|column| (*column as usize) < first + keys)];
                    (end as f64 * keys as f64 + seen.iter().filter(alone).count() as f64) * keys as f64
                };
                (0..n / keys).map(group_pairs).sum()
            }
            Work::BlockSparse(density) => {
                (0..n / rows).map(|row| workloads::blocks(row, density).len() as f64 * tile).sum()
            }
            Work::RandomBlocks(density) => (n / rows * random_count(n / keys, density)) as f64 * tile,
        }
    }

    /// Floating-point operations of the whole launch: 4 · head_dim a visited pair.
    pub fn operations(&self) -> f64 {
        4.0 * f64::from(self.spec.head_dim) * self.visited_pairs() * (self.batch * self.heads) as f64
    }

    /// Visited pairs over those of dense attention, causal or full.
    pub fn density(&self) -> f64 {
        let n = self.tokens as f64;
        self.visited_pairs() / if self.spec.causal { n * (n + 1.0) / 2.0 } else { n * n }
    }

    /// Allocates and fills the inputs, loads the kernel and uploads the index.
    pub fn prepare(&self, device: &Device, stream: &Stream) -> Result<Prepared, Error> {
        let elements = |heads: usize| self.batch * self.tokens * heads * self.spec.head_dim as usize;
        let [q, k, v] = [(self.heads, 1), (self.kv_heads, 2), (self.kv_heads, 3)]
            .map(|(heads, seed)| noise(stream, elements(heads), seed, 1.0));
        let out = device.allocate(elements(self.heads) * 2)?;
        let attention = AttentionKernel::generate(&self.spec)?.build(device)?;
        let index = self.index(device, stream)?;
        let table = self.page_table().map(|table| device.upload(stream, &table)).transpose()?;
        let turns = device.upload(stream, &[0u32])?;
        Ok(Prepared { case: self.clone(), attention, q: q?, k: k?, v: v?, out, index, table, turns })
    }

    /// Where each page of each sequence lies, in no order; none of strided keys.
    fn page_table(&self) -> Option<Vec<u32>> {
        let KvLayout::Paged { page } = self.spec.kv else { return None };
        let mut table: Vec<u32> = (0..(self.batch * self.tokens) as u32 / page).collect();
        table.shuffle(&mut StdRng::seed_from_u64(2));
        Some(table)
    }

    fn index(&self, device: &Device, stream: &Stream) -> Result<Vec<Buffer>, Error> {
        let (rows, keys) = (self.spec.block.0 as usize, self.spec.block.1 as usize);
        match self.work {
            Work::Dense => Ok(Vec::new()),
            Work::AShape(sink, local) => Ok(vec![device.upload(stream, &[sink, local].repeat(self.heads))?]),
            Work::VerticalSlash(nv, ns, layout) => {
                let offsets = offsets_of_slashes(&workloads::slashes(self.tokens, ns, layout), keys as u32);
                let columns = workloads::verticals(self.tokens, nv);
                let counts = |list: &[u32]| vec![list.len() as u32; self.heads];
                Ok(vec![
                    device.upload(stream, &counts(&offsets))?,
                    device.upload(stream, &offsets)?,
                    device.upload(stream, &counts(&columns))?,
                    device.upload(stream, &columns)?,
                ])
            }
            Work::BlockSparse(density) => {
                let lists: Vec<Vec<u32>> = (0..self.tokens / rows).map(|row| workloads::blocks(row, density)).collect();
                let counts: Vec<u32> = lists.iter().map(|list| list.len() as u32).collect();
                let capacity = counts.iter().copied().max().unwrap_or(1) as usize;
                let mut indices = vec![0u32; lists.len() * capacity];
                for (row, list) in lists.iter().enumerate() {
                    indices[row * capacity..][..list.len()].copy_from_slice(list);
                }
                Ok(vec![device.upload(stream, &counts)?, device.upload(stream, &indices)?])
            }
            Work::RandomBlocks(density) => {
                let (lists, blocks) = (self.heads * (self.tokens / rows), self.tokens / keys);
                let count = random_count(blocks, density);
                let mut random = StdRng::seed_from_u64(1);
                let mut list = || {
                    let mut list = sample(&mut random, blocks, count).into_vec();
                    list.sort_unstable();
                    list.into_iter().map(|block| block as u32)
                };
                let indices: Vec<u32> = (0..lists).flat_map(|_| list()).collect();
                Ok(vec![device.upload(stream, &vec![count as u32; lists])?, device.upload(stream, &indices)?])
            }
        }
    }
}

/// Blocks of each list of [`Work::RandomBlocks`].
fn random_count(blocks: usize, density: f64) -> usize {
    ((density * blocks as f64).round() as usize).max(1)
}

/// A case ready to launch.
pub struct Prepared {
    case: Case,
    attention: Attention,
    pub(super) q: Buffer,
    pub(super) k: Buffer,
    v: Buffer,
    out: Buffer,
    index: Vec<Buffer>,
    table: Option<Buffer>,
    turns: Buffer,
}

impl Prepared {
    /// What the last launch wrote.
    pub fn output(&self, stream: &Stream) -> Result<Vec<half::bf16>, Error> {
        self.out.read(stream)
    }

    /// Launches the kernel once.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        let Case { batch, tokens, heads, kv_heads, spec, work, .. } = &self.case;
        let [batch, tokens, heads, kv_heads] = [batch, tokens, heads, kv_heads].map(|n| *n as u64);
        let view =
            |buffer, heads| TensorView::new(buffer, DType::Bf16, &[batch, tokens, heads, u64::from(spec.head_dim)]);
        let mut args = AttentionArgs::new(
            view(&self.q, heads)?,
            view(&self.k, kv_heads)?,
            view(&self.v, kv_heads)?,
            view(&self.out, heads)?,
        );
        args.turns = Some(TensorView::new(&self.turns, DType::U32, &[1])?);
        if let (KvLayout::Paged { page }, Some(table)) = (spec.kv, &self.table) {
            let page = u64::from(page);
            let table = TensorView::new(table, DType::U32, &[batch, tokens / page])?;
            let paged = |buffer| {
                let shape = [batch * tokens / page, page, kv_heads, u64::from(spec.head_dim)];
                Ok::<_, Error>(KvView::Paged { pages: TensorView::new(buffer, DType::Bf16, &shape)?, table })
            };
            (args.k, args.v) = (paged(&self.k)?, paged(&self.v)?);
        }
        let words = |part: usize| self.index[part].bytes() as u64 / 4;
        let table = |part: usize, shape: &[u64]| TensorView::new(&self.index[part], DType::U32, shape);
        let index;
        args.selection = match work {
            Work::Dense => Selection::Dense,
            Work::AShape(..) => Selection::Windows(table(0, &[heads, 2])?),
            Work::VerticalSlash(..) => {
                let lists = |part: usize| {
                    let counts = table(part, &[1, heads])?;
                    Ok::<_, Error>(HeadLists { counts, entries: table(part + 1, &[1, 1, words(part + 1)])? })
                };
                index = Index::from_vertical_slash(lists(0)?, lists(2)?);
                match index.vertical_slash {
                    Some(part) => Selection::VerticalSlash(part),
                    None => Selection::Dense,
                }
            }
            Work::BlockSparse(_) | Work::RandomBlocks(_) => {
                let rows = tokens / u64::from(spec.block.0);
                let lists = words(0) / rows;
                let lists = BlockLists {
                    counts: TensorView::new(&self.index[0], DType::I32, &[1, lists, rows])?,
                    indices: TensorView::new(&self.index[1], DType::I32, &[1, lists, rows, words(1) / words(0)])?,
                };
                index = Index::from_flex(lists, None);
                match index.block_sparse {
                    Some(part) => Selection::BlockSparse(part),
                    None => Selection::Dense,
                }
            }
        };
        self.attention.run(stream, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_visits_a_tenth() {
        let cases = cases(Arch::Sm80);
        let found = cases.iter().find(|c| c.name.starts_with("vertical-slash")).expect("a vertical-slash case");
        assert!((0.095..0.105).contains(&found.density()), "{}", found.density());
    }

    #[test]
    fn prepared_cases_launch() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let works = [
            Work::Dense,
            Work::AShape(32, 64),
            Work::VerticalSlash(40, 128, Layout::Clustered),
            Work::BlockSparse(0.5),
            Work::RandomBlocks(0.5),
        ];
        for work in works {
            let causal = !matches!(work, Work::RandomBlocks(_));
            let mut case = case(Arch::Sm80, work, ((64, 64), 64, causal), (2, 1), 256);
            for kv in [KvLayout::Strided, KvLayout::Paged { page: 32 }] {
                case.spec.kv = kv;
                let prepared = case.prepare(&device, &stream).expect("a valid case");
                prepared.run(&stream).expect("a valid launch");
                let out = prepared.out.read::<half::bf16>(&stream).expect("every element written");
                let some = out.iter().any(|x| x.to_f32() != 0.0);
                assert!(out.iter().all(|x| x.is_finite()) && some, "{}, {kv:?}", case.name);
            }
        }
    }

    #[test]
    fn names_differ() {
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let name = |case: Case| format!("{} {:?}", case.name, case.spec.block);
            let mut names: Vec<String> = cases(arch).into_iter().map(name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
