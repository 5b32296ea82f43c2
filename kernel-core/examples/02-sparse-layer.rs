//! One layer whose heads have different patterns: build once, then plan and run for each prefill.

mod support;

use kernel_core::{
    Bounds, DType, HeadGroup, HeadPatterns, Index, Lengths, PlanArgs, RunArgs, SparsePrefill, Stream, TensorView,
    Workspace,
};
use support::{Result, Shape};

/// The published schema: type, two sizes, and the score of the search that chose them.
const PATTERNS: &str = r#"[{
    "0": ["stream_llm", 16, 64, 0.97],
    "1": ["vertical_and_slash", 40, 110, 0.95],
    "2": ["block_sparse", [3], 0, 0.93],
    "3": ["vertical_and_slash", 30, 100, 0.99]
}]"#;

fn main() -> Result {
    let device = support::device();
    let stream = Stream::new(&device)?;
    let shape = Shape { tokens: 500, heads: 4, kv_heads: 2, head_dim: 64 };
    let [q, k, v] = [(4, 1), (2, 2), (2, 3)].map(|(heads, seed)| support::random(500 * heads * 64, seed));

    // Loads kernels; may block. Heads are grouped by pattern.
    let layer = SparsePrefill::builder()
        .heads(4)
        .kv_heads(2)
        .head_dim(64)
        .dtype(DType::Bf16)
        .patterns(HeadPatterns::from_json(PATTERNS)?.layer(0)?)
        .build(&device)?;
    for HeadGroup { heads, facts, arch, .. } in layer.groups() {
        println!("{heads} heads: {:?}, tiles of {:?}, {}", facts.pattern, facts.block, arch.target());
    }

    // The caller allocates everything, the workspace too.
    let bounds = Bounds { batch: 1, max_q: 500, max_kv: 500 };
    let workspace = device.allocate(layer.workspace_bytes(&bounds) as usize)?;
    let (q_buffer, k_buffer) = (device.upload(&stream, &q)?, device.upload(&stream, &k)?);
    let (v_buffer, out_buffer) = (device.upload(&stream, &v)?, device.allocate(q.len() * 2)?);
    let queries = TensorView::new(&q_buffer, DType::Bf16, &shape.queries())?;
    let keys = TensorView::new(&k_buffer, DType::Bf16, &shape.keys())?;
    let values = TensorView::new(&v_buffer, DType::Bf16, &shape.keys())?;
    let out = TensorView::new(&out_buffer, DType::Bf16, &shape.queries())?;

    // Two calls a layer; both only launch.
    let (lengths, workspace) = (Lengths::default(), Workspace::from(&workspace));
    let index = layer.plan(&stream, &PlanArgs { q: queries, k: keys.into(), lengths, bounds, workspace })?;
    let run = RunArgs { q: queries, k: keys.into(), v: values.into(), lengths, bounds, out, lse: None };
    layer.run(&stream, &run, &index)?;

    // The one call that waits: what only the device could see.
    let status = layer.status(&stream)?;
    if !status.is_clear() {
        return Err(format!("the device reports {status:?}").into());
    }

    // The output is dense attention under the mask that the index stands for.
    let selected = Selected::read(&layer, &index, &stream)?;
    let reference = support::reference(
        shape,
        [&q, &k, &v],
        |head, q, k| match head {
            0 => q - k < 64 || k < 16,
            1 => selected.vertical_slash(0, q, k),
            2 => selected.block_sparse(q, k),
            _ => selected.vertical_slash(1, q, k),
        },
        |_, _, _, score| score,
    );
    support::check("sparse layer", &out_buffer.read(&stream)?, &reference)
}

/// The index, copied to the host.
struct Selected {
    /// Query rows and keys of a tile.
    tile: (usize, usize),
    offsets: Vec<Vec<u32>>,
    columns: Vec<Vec<u32>>,
    blocks: Vec<Vec<u32>>,
}

impl Selected {
    fn read(layer: &SparsePrefill, index: &Index<'_>, stream: &Stream) -> Result<Selected> {
        // The same for both patterns that have an index.
        let (rows, keys) = layer.groups().last().ok_or("no heads")?.facts.block;
        let vertical_slash = index.vertical_slash.ok_or("no vertical-slash index")?;
        let lists = index.block_sparse.ok_or("no block-sparse index")?.partial();
        let split = |values: Vec<u32>, last: u64| values.chunks_exact(last as usize).map(<[u32]>::to_vec).collect();
        let (offsets, columns) = (vertical_slash.offsets(), vertical_slash.columns());
        let mut selected = Selected {
            tile: (rows as usize, keys as usize),
            offsets: split(offsets.entries.read(stream)?, offsets.entries.shape()[2]),
            columns: split(columns.entries.read(stream)?, columns.entries.shape()[2]),
            blocks: split(lists.indices.read(stream)?, lists.indices.shape()[3]),
        };
        for (lists, counts) in [(&mut selected.offsets, offsets.counts), (&mut selected.columns, columns.counts)] {
            let counts: Vec<u32> = counts.read(stream)?;
            lists.iter_mut().zip(counts).for_each(|(list, count)| list.truncate(count as usize));
        }
        let counts: Vec<u32> = lists.counts.read(stream)?;
        selected.blocks.iter_mut().zip(counts).for_each(|(list, count)| list.truncate(count as usize));
        Ok(selected)
    }

    /// As many rows as a tile has keys visit those keys from each offset before them on.
    fn vertical_slash(&self, head: usize, q: usize, k: usize) -> bool {
        let (_, keys) = self.tile;
        let first = q / keys * keys;
        let visits = |offset: &u32| (first..first + keys).contains(&(k + *offset as usize));
        self.offsets[head].iter().any(visits) || self.columns[head].contains(&(k as u32))
    }

    fn block_sparse(&self, q: usize, k: usize) -> bool {
        let (rows, keys) = self.tile;
        self.blocks[q / rows].contains(&((k / keys) as u32))
    }
}
