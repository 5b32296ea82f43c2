//! Plans alone: what a layer should attend to, found from queries and keys.

use super::heads_text;
use crate::noise::noise;
use kernel_core::{
    Bounds, Buffer, DType, Device, Error, HeadPattern, Index, LayerPatterns, Lengths, PlanArgs, SparsePrefill, Stream,
    TensorView,
};
use ptx::{Arch, kernels::attention::Pattern};

const HEAD_DIM: usize = 128;

/// Queries of a vertical-slash case: its estimate reads the last 64 and no others, so that a chunk of 64 at the end of the
/// prompt has the same plan and time as the whole.
const WINDOW: usize = 64;

/// One plan: a sequence, bf16, d128, all heads of one pattern.
#[derive(Clone, Debug)]
pub struct IndexCase {
    /// Name, the same as peers print.
    pub name: String,
    /// Keys.
    pub tokens: usize,
    /// Queries, which end at the last key.
    pub queries: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys.
    pub kv_heads: usize,
    /// Of every head.
    pub pattern: HeadPattern,
}

/// The cases of the performance page.
pub fn index_cases() -> Vec<IndexCase> {
    let budget = HeadPattern::default();
    let window = |tokens| IndexCase::new(budget, (32, 8), tokens, WINDOW);
    let mut cases: Vec<IndexCase> = [8192, 32768, 131_072, 1 << 20].into_iter().map(window).collect();
    cases.push(IndexCase::new(budget, (32, 32), 131_072, WINDOW));
    let shares = HeadPattern::FlexVerticalSlash { columns: (0.95, 1000), slashes: (0.95, 6096) };
    let blocks = [
        HeadPattern::BlockSparse { blocks: 100 },
        HeadPattern::FlexBlockSparse { blocks: (0.9, 512) },
        HeadPattern::Flex { share: 0.9, threshold: 0.1, blocks: 512 },
        HeadPattern::Antidiagonal { stride: 16, threshold: 0.9, blocks: 2048 },
    ];
    for tokens in [8192, 131_072] {
        cases.push(IndexCase::new(shares, (32, 8), tokens, WINDOW));
        cases.extend(blocks.map(|pattern| IndexCase::new(pattern, (32, 8), tokens, tokens)));
    }
    cases
}

impl IndexCase {
    pub(super) fn new(
        pattern: HeadPattern,
        (heads, kv_heads): (usize, usize),
        tokens: usize,
        queries: usize,
    ) -> IndexCase {
        let what = match pattern {
            HeadPattern::VerticalSlash { columns, slashes } => format!("vertical-slash ({columns}, {slashes})"),
            HeadPattern::FlexVerticalSlash { columns, slashes } => {
                format!("vertical-slash ({} to {}, {} to {})", columns.0, columns.1, slashes.0, slashes.1)
            }
            HeadPattern::BlockSparse { blocks } => format!("block-sparse {blocks}"),
            HeadPattern::FlexBlockSparse { blocks } => format!("block-sparse ({} to {})", blocks.0, blocks.1),
            HeadPattern::Flex { share, threshold, .. } => format!("flex {share}, {threshold}"),
            HeadPattern::Antidiagonal { stride, threshold, .. } => format!("antidiagonal {stride}, {threshold}"),
            other => format!("{other:?}"),
        };
        let name = format!("index {what} d{HEAD_DIM} {} {tokens}", heads_text(heads, kv_heads));
        IndexCase { name, tokens, queries, heads, kv_heads, pattern }
    }

    /// Bytes of the keys, which a plan must read once.
    pub fn key_bytes(&self) -> u64 {
        (self.tokens * self.kv_heads * HEAD_DIM * 2) as u64
    }

    /// Allocates and fills queries and keys, loads the kernels of the architecture's layer and allocates its workspace.
    ///
    /// # Errors
    /// From the device.
    pub fn prepare(&self, device: &Device, stream: &Stream, arch: Arch) -> Result<PreparedIndex, Error> {
        let q = noise(stream, self.queries * self.heads * HEAD_DIM, 1, 1.0)?;
        let k = noise(stream, self.tokens * self.kv_heads * HEAD_DIM, 2, 1.0)?;
        Ok(PreparedIndex { planner: Planner::new(self, device, arch)?, q, k })
    }
}

/// A plan ready to launch, over inputs that are given each time.
pub(super) struct Planner {
    case: IndexCase,
    layer: SparsePrefill,
    workspace: Buffer,
}

impl Planner {
    pub(super) fn new(case: &IndexCase, device: &Device, arch: Arch) -> Result<Planner, Error> {
        let heads = case.heads as u32;
        let mut builder = SparsePrefill::builder();
        if matches!(case.pattern, HeadPattern::Antidiagonal { .. }) {
            // As XAttention has it.
            builder = builder.block(Pattern::BlockSparse, (128, 128));
        }
        let layer = builder
            .dense_below(0)
            .heads(heads)
            .kv_heads(case.kv_heads as u32)
            .head_dim(HEAD_DIM as u32)
            .max_kv(case.tokens as u32)
            .arch(arch)
            .patterns(LayerPatterns::uniform(heads, case.pattern))
            .build(device)?;
        let workspace = device.allocate(layer.workspace_bytes(&bounds(case)) as usize)?;
        Ok(Planner { case: case.clone(), layer, workspace })
    }

    /// Launches the plan once, over `[1, queries, heads, 128]` and `[1, tokens, kv_heads, 128]`.
    pub(super) fn plan<'w>(&'w self, stream: &Stream, q: &Buffer, k: &Buffer) -> Result<Index<'w>, Error> {
        let IndexCase { tokens, queries, heads, kv_heads, .. } = self.case;
        let view = |buffer, rows: usize, heads: usize| {
            TensorView::new(buffer, DType::Bf16, &[1, rows as u64, heads as u64, HEAD_DIM as u64])
        };
        let (q, k) = (view(q, queries, heads)?, view(k, tokens, kv_heads)?);
        let (lengths, workspace) = (Lengths::default(), (&self.workspace).into());
        self.layer.plan(stream, &PlanArgs { q, k: k.into(), lengths, bounds: bounds(&self.case), workspace })
    }

    /// Query rows and keys of a block of the index.
    pub(super) fn block(&self) -> (u32, u32) {
        self.layer.groups().next().map_or((0, 0), |group| group.facts.block)
    }

    pub(super) fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes() as u64
    }
}

fn bounds(case: &IndexCase) -> Bounds {
    Bounds { batch: 1, max_q: case.queries as u32, max_kv: case.tokens as u32 }
}

/// A plan ready to launch.
pub struct PreparedIndex {
    planner: Planner,
    q: Buffer,
    k: Buffer,
}

impl PreparedIndex {
    /// Launches the plan once.
    ///
    /// # Errors
    /// From the launch.
    pub fn plan(&self, stream: &Stream) -> Result<Index<'_>, Error> {
        self.planner.plan(stream, &self.q, &self.k)
    }

    /// Query rows and keys of a block of the index.
    pub fn block(&self) -> (u32, u32) {
        self.planner.block()
    }

    /// Bytes of the workspace.
    pub fn workspace_bytes(&self) -> u64 {
        self.planner.workspace_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_plans_launch_and_fill_their_budgets() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let pattern = HeadPattern::VerticalSlash { columns: 40, slashes: 120 };
        let case = IndexCase::new(pattern, (4, 2), 512, WINDOW);
        assert_eq!(
            (case.name.as_str(), case.key_bytes()),
            ("index vertical-slash (40, 120) d128 4/2 heads 512", 262_144)
        );
        let prepared = case.prepare(&device, &stream, Arch::Sm80).expect("a valid case");
        let index = prepared.plan(&stream).expect("a valid plan").vertical_slash.expect("vertical-slash heads");
        assert_eq!(index.columns().counts.read::<u32>(&stream).expect("written"), [40; 4]);
        let plan = |stream: &Stream| prepared.plan(stream).map(drop);
        assert_eq!(stream.capture(plan).expect("plans can be captured").operations(), 3);

        let case = IndexCase::new(HeadPattern::BlockSparse { blocks: 3 }, (4, 2), 512, 512);
        let prepared = case.prepare(&device, &stream, Arch::Sm80).expect("a valid case");
        let index = prepared.plan(&stream).expect("a valid plan").block_sparse.expect("block-sparse heads");
        let counts = index.partial().counts.read::<u32>(&stream).expect("written");
        let rows = 512 / prepared.block().0 as usize;
        assert_eq!(counts.len(), 4 * rows);
        assert!(counts.chunks(rows).all(|head| head[rows - 1] == 3), "{counts:?}");
    }

    /// The chunk at the end has the same index as the whole prompt.
    #[test]
    fn a_window_of_queries_plans_as_all_do() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let pattern = HeadPattern::VerticalSlash { columns: 40, slashes: 120 };
        let (all, window) = (IndexCase::new(pattern, (2, 1), 320, 320), IndexCase::new(pattern, (2, 1), 320, WINDOW));
        let prepared = all.prepare(&device, &stream, Arch::Sm80).expect("a valid case");
        let planner = Planner::new(&window, &device, Arch::Sm80).expect("a valid case");
        let rows = prepared.q.read::<u16>(&stream).expect("filled");
        let last = device.upload(&stream, &rows[rows.len() - WINDOW * 2 * HEAD_DIM..]).expect("memory");
        let lists = |index: Index<'_>| {
            let index = index.vertical_slash.expect("vertical-slash heads");
            let read = |view: TensorView<'_>| view.read::<u32>(&stream).expect("written");
            // Columns fill their lists, offsets need not.
            let offsets = index.offsets();
            let counts = read(offsets.counts);
            let capacity = offsets.entries.shape()[2] as usize;
            let entries = read(offsets.entries);
            let offsets: Vec<Vec<u32>> =
                counts.iter().zip(entries.chunks(capacity)).map(|(n, list)| list[..*n as usize].to_vec()).collect();
            (read(index.columns().entries), offsets)
        };
        let whole = lists(prepared.plan(&stream).expect("a valid plan"));
        assert_eq!(lists(planner.plan(&stream, &last, &prepared.k).expect("a valid plan")), whole);
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<String> = index_cases().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
