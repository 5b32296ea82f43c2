//! Attention over a padded batch of two sequences, with an index drawn at random.

use super::{Agreement, GAP, Scene, UNWRITTEN, decode, encode, floats, half_outputs, normal};
use crate::{
    oracle::{
        self, Mask, Problem,
        mask::{BlockSparse, VerticalSlash},
    },
    testing::launch::Launch,
};
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DTYPE: MmaType = MmaType::Bf16;
const HEAD_DIM: usize = 64;
const BLOCK: (usize, usize) = (64, 64);
const HEADS: usize = 2;
/// (queries, keys): the window of the first ends at its last key; the second is shorter than the bounds.
const LENGTHS: [(usize, usize); 2] = [(100, 197), (37, 70)];
const MAX_Q: usize = 100;
const MAX_KV: usize = 197;

/// Causal attention under a pattern, two query heads to one of keys.
pub fn attention(pattern: Pattern, seed: u64) -> Scene {
    scene(AttentionSpec::new(pattern, (64, 64), HEAD_DIM as u32, DTYPE, Arch::Sm80), seed)
}

/// Dense attention without a causal mask.
pub fn dense_full(seed: u64) -> Scene {
    let spec = AttentionSpec::new(Pattern::Dense, (64, 64), HEAD_DIM as u32, DTYPE, Arch::Sm80);
    scene(AttentionSpec { causal: false, ..spec }, seed)
}

/// Rows of one head of one sequence in `[batch][max rows][heads × head_dim + gap]`.
struct Layout {
    rows: usize,
    heads: usize,
}

impl Layout {
    fn row(&self) -> usize {
        self.heads * HEAD_DIM + GAP
    }

    fn elements(&self) -> usize {
        LENGTHS.len() * self.rows * self.row()
    }

    fn at(&self, sequence: usize, row: usize, head: usize) -> usize {
        (sequence * self.rows + row) * self.row() + head * HEAD_DIM
    }

    /// Normal numbers in the rows there are, NaN elsewhere.
    fn random(&self, random: &mut StdRng, length: impl Fn((usize, usize)) -> usize) -> Vec<u16> {
        let mut bits = vec![UNWRITTEN; self.elements()];
        for (sequence, &lengths) in LENGTHS.iter().enumerate() {
            for (row, head) in (0..length(lengths)).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
                bits[self.at(sequence, row, head)..][..HEAD_DIM].fill_with(|| encode(DTYPE, normal(random)));
            }
        }
        bits
    }

    fn values(&self, bits: &[u16], sequence: usize, head: usize, rows: usize) -> Vec<f32> {
        let row = |row| bits[self.at(sequence, row, head)..][..HEAD_DIM].iter();
        (0..rows).flat_map(row).map(|&bits| decode(DTYPE, bits) as f32).collect()
    }

    fn arguments(&self, launch: Launch, name: &str) -> Launch {
        let row = 2 * self.row() as u64;
        launch
            .u64(format!("{name}_batch"), self.rows as u64 * row)
            .u64(format!("{name}_row"), row)
            .u64(format!("{name}_head"), 2 * HEAD_DIM as u64)
    }
}

fn scene(spec: AttentionSpec, seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let (queries, keys) = (Layout { rows: MAX_Q, heads: HEADS }, Layout { rows: MAX_KV, heads: 1 });
    let q = queries.random(&mut random, |l| l.0);
    let [k, v] = [(); 2].map(|()| keys.random(&mut random, |l| l.1));
    let scale = (HEAD_DIM as f32).sqrt().recip();
    let row_blocks = MAX_Q.div_ceil(BLOCK.0) + usize::from(spec.pattern == Pattern::VerticalSlash);
    let mut launch = Launch::new(&spec, [row_blocks as u32, HEADS as u32, LENGTHS.len() as u32])
        .array("q", q.clone())
        .array("k", k.clone())
        .array("v", v.clone())
        .poisoned("out", 2 * queries.elements());
    for (name, layout) in [("q", &queries), ("k", &keys), ("v", &keys), ("out", &queries)] {
        launch = layout.arguments(launch, name);
    }
    let launch = launch
        .poisoned("lse", 4 * LENGTHS.len() * HEADS * MAX_Q)
        .u64("lse_batch", (4 * HEADS * MAX_Q) as u64)
        .u64("lse_head", 4 * MAX_Q as u64)
        .null("q_start")
        .null("kv_start")
        .array("q_length", LENGTHS.map(|l| l.0 as u32).to_vec())
        .array("kv_length", LENGTHS.map(|l| l.1 as u32).to_vec())
        .u32("q_rows", 0)
        .u32("kv_rows", 0)
        .u32("max_q", MAX_Q as u32)
        .u32("max_kv", MAX_KV as u32)
        .u32("heads", HEADS as u32)
        .u32("heads_per_kv", HEADS as u32)
        .null("head_map")
        .f32("scale", scale)
        .array("status", vec![0u32]);
    let (launch, masks) = index(launch, &spec, &mut random);
    let outputs = [("out", Agreement::Half(DTYPE)), ("lse", Agreement::Float(1e-3)), ("status", Agreement::Exact)];
    Scene::new(launch, &outputs, move |outcome| {
        let mut out = vec![None; queries.elements()];
        let mut lse = vec![f32::from_bits(u32::MAX); LENGTHS.len() * HEADS * MAX_Q];
        for (sequence, &(q_len, kv_len)) in LENGTHS.iter().enumerate() {
            for head in 0..HEADS {
                let problem = Problem {
                    q: &queries.values(&q, sequence, head, q_len),
                    k: &keys.values(&k, sequence, 0, kv_len),
                    v: &keys.values(&v, sequence, 0, kv_len),
                    head_dim: HEAD_DIM,
                    mask: &masks[sequence * HEADS + head],
                    scale: f64::from(scale),
                    softcap: None,
                    score: None,
                };
                let (rows, sums) = oracle::attention(&problem);
                for (row, values) in rows.chunks(HEAD_DIM).enumerate() {
                    let at = queries.at(sequence, row, head);
                    out[at..at + HEAD_DIM].iter_mut().zip(values).for_each(|(out, &value)| *out = Some(value));
                    lse[(sequence * HEADS + head) * MAX_Q + row] = sums[row] as f32;
                }
            }
        }
        let found = outcome.read("out")?;
        let verdict = half_outputs("attention", DTYPE, &found, &out);
        let found = outcome.read("lse")?;
        let verdict = verdict.and_then(|()| floats("LSE", &found, &lse, 1e-3));
        let status = outcome.read::<u32>("status")?;
        Ok(verdict.and_then(|()| super::equal("status", &status, &[0])))
    })
}

/// The pattern's index arguments, and the mask of each (sequence, head).
fn index(launch: Launch, spec: &AttentionSpec, random: &mut StdRng) -> (Launch, Vec<Mask>) {
    let each = || LENGTHS.iter().flat_map(|&lengths| (0..HEADS).map(move |head| (lengths, head)));
    let key_blocks = MAX_KV.div_ceil(BLOCK.1);
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
                columns.extend((0..MAX_KV).map(|i| own.get(i).copied().unwrap_or(u32::MAX)));
                let index = VerticalSlash { offsets: own_offsets.to_vec(), columns: own };
                masks.push(Mask::vertical_slash(q, kv, BLOCK.1, &index));
            }
            let launch = launch
                .array("offsets", offsets)
                .u64("offsets_batch", 8 * HEADS as u64)
                .u64("offsets_head", 8)
                .u32("offset_capacity", 2)
                .array("offset_counts", vec![2u32; counts.len()])
                .array("columns", columns)
                .u64("columns_batch", (4 * HEADS * MAX_KV) as u64)
                .u64("columns_head", 4 * MAX_KV as u64)
                .u32("column_capacity", MAX_KV as u32)
                .array("column_counts", counts);
            (launch, masks)
        }
        Pattern::BlockSparse => {
            let row_blocks = MAX_Q.div_ceil(BLOCK.0);
            let (mut counts, mut indices) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
            let mut masks = Vec::new();
            for ((q, kv), _) in each() {
                let mut lists = BlockSparse { partial: Vec::new(), full: Vec::new() };
                for row_block in 0..row_blocks {
                    let (mut partial, mut full) = (Vec::new(), Vec::new());
                    for block in 0..kv.div_ceil(BLOCK.1) as u32 {
                        match random.random_range(0..3) {
                            0 if row_block * BLOCK.0 < q => partial.push(block),
                            1 if row_block * BLOCK.0 < q => full.push(block),
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
                masks.push(Mask::block_sparse(q, kv, BLOCK, spec.causal, &lists, |_, _| true));
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
