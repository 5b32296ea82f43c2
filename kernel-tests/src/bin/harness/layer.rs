//! What one layer attends to: its queries and keys on the host, the token masks of a sparse index, true attention.

use half::bf16;
use kernel_core::{
    Buffer, DType, Error, HeadGroup, HeadPattern, Index, LayerPatterns, Lengths, PlanArgs, RunArgs, SparsePrefill,
    Stream, TensorView,
    device::DevicePointer,
    index::{BlockSparseIndex, VerticalSlashIndex},
};
use kernel_tests::{
    model::AttentionCall,
    oracle::{Mask, mask},
};
use ptx::{Arch, kernels::attention::Pattern};
use rayon::prelude::*;

/// Queries, keys and values of one layer for all rows of a prompt, on the host.
pub(crate) struct Layer {
    pub(crate) heads: usize,
    group: usize,
    head_dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// One query head of a [`Layer`], `[rows, head_dim]` each.
pub(crate) struct Head {
    pub(crate) head_dim: usize,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Layer {
    pub(crate) fn read(stream: &Stream, call: &AttentionCall<'_>) -> Result<Layer, Error> {
        let size = |view: &TensorView<'_>, dimension: usize| view.shape()[dimension] as usize;
        Ok(Layer {
            heads: size(&call.q, 2),
            group: size(&call.q, 2) / size(&call.k, 2),
            head_dim: size(&call.q, 3),
            q: read_rows(stream, &call.q)?,
            k: read_rows(stream, &call.k)?,
            v: read_rows(stream, &call.v)?,
        })
    }

    pub(crate) fn head(&self, head: usize) -> Head {
        let d = self.head_dim;
        let column = |values: &[f32], heads: usize, head: usize| -> Vec<f32> {
            values.chunks(heads * d).flat_map(|row| &row[head * d..][..d]).copied().collect()
        };
        let (kv_heads, kv_head) = (self.heads / self.group, head / self.group);
        Head {
            head_dim: d,
            q: column(&self.q, self.heads, head),
            k: column(&self.k, kv_heads, kv_head),
            v: column(&self.v, kv_heads, kv_head),
        }
    }
}

impl Head {
    pub(crate) fn rows(&self) -> usize {
        self.q.len() / self.head_dim
    }

    /// True causal attention: row by row, the weights of the keys up to the row's own.
    pub(crate) fn attention(&self) -> Vec<Vec<f32>> {
        let d = self.head_dim;
        let scale = 1.0 / (d as f32).sqrt();
        let row = |row: usize| {
            let q = &self.q[row * d..][..d];
            let keys = self.k.chunks(d).take(row + 1);
            let mut weights: Vec<f32> =
                keys.map(|k| q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>() * scale).collect();
            let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|weight| *weight = (*weight - max).exp());
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            weights
        };
        (0..self.rows()).into_par_iter().map(row).collect()
    }
}

/// Share of the attention that `mask` keeps: the mean over all rows.
pub(crate) fn recall(attention: &[Vec<f32>], mask: &Mask) -> f64 {
    let kept = |(row, weights): (usize, &Vec<f32>)| -> f64 {
        weights.iter().enumerate().filter(|(key, _)| mask.keeps(row, *key)).map(|(_, weight)| f64::from(*weight)).sum()
    };
    attention.par_iter().enumerate().map(kept).sum::<f64>() / attention.len() as f64
}

/// A bf16 `[1, rows, heads, head_dim]` tensor whose rows may lie apart.
pub(crate) fn read_rows(stream: &Stream, view: &TensorView<'_>) -> Result<Vec<f32>, Error> {
    let (rows, width) = (view.shape()[1], view.shape()[2] * view.shape()[3]);
    let stride = view.byte_stride(1) / DType::Bf16.bytes();
    let span = (rows - 1) * stride + width;
    // SAFETY: the elements from the first row to the end of the last, which `view` reaches too, are in one allocation.
    let flat = unsafe { TensorView::from_raw(DevicePointer(view.address()), DType::Bf16, &[span], &[1])? };
    let values = flat.read::<bf16>(stream)?;
    Ok(values.chunks(stride as usize).flat_map(|row| &row[..width as usize]).map(|value| value.to_f32()).collect())
}

/// Memory for a plan of `layer` over all rows of `call`.
pub(crate) fn workspace(stream: &Stream, layer: &SparsePrefill, call: &AttentionCall<'_>) -> Result<Buffer, Error> {
    stream.device().allocate(layer.workspace_bytes(&call.args().bounds) as usize)
}

/// The sparse index of `layer` for all rows of `call`.
pub(crate) fn plan<'w>(
    stream: &Stream,
    layer: &SparsePrefill,
    call: &AttentionCall<'_>,
    workspace: &'w Buffer,
) -> Result<Index<'w>, Error> {
    let (bounds, lengths) = (call.args().bounds, Lengths::default());
    layer.plan(stream, &PlanArgs { q: call.q, k: call.k.into(), lengths, bounds, workspace: workspace.into() })
}

/// The tensors of `call`, with the output elsewhere.
pub(crate) fn run_args<'a>(call: &AttentionCall<'a>, out: TensorView<'a>) -> RunArgs<'a> {
    let bounds = call.args().bounds;
    RunArgs { q: call.q, k: call.k.into(), v: call.v.into(), lengths: Lengths::default(), bounds, out, lse: None }
}

/// What each head attends to if the heads of a layer have these patterns.
pub(crate) fn planned_masks(
    stream: &Stream,
    arch: Arch,
    patterns: &LayerPatterns,
    call: &AttentionCall<'_>,
) -> Result<Vec<Mask>, Error> {
    let (rows, heads, head_dim) = (call.q.shape()[1], call.q.shape()[2] as u32, call.q.shape()[3] as u32);
    let builder =
        SparsePrefill::builder().dense_below(0).heads(heads).kv_heads(call.k.shape()[2] as u32).head_dim(head_dim);
    let layer = builder.max_kv(rows as u32).arch(arch).patterns(patterns.clone()).build(stream.device())?;
    let workspace = workspace(stream, &layer, call)?;
    let index = plan(stream, &layer, call, &workspace)?;
    masks(stream, &layer, patterns, heads as usize, &index, rows as usize)
}

/// What each head of a layer attends to under a planned `index`, for a prompt of `rows` tokens.
pub(crate) fn masks(
    stream: &Stream,
    layer: &SparsePrefill,
    patterns: &LayerPatterns,
    heads: usize,
    index: &Index<'_>,
    rows: usize,
) -> Result<Vec<Mask>, Error> {
    let mut masks = vec![Mask::dense(0, 0, true); heads];
    for HeadGroup { facts, chosen, .. } in layer.groups() {
        let wanted = if chosen { None } else { Some(facts.pattern) };
        let mut members: Vec<usize> =
            (0..heads).filter(|head| pattern_of(patterns.head(*head as u32)) == wanted).collect();
        // As the index of block-sparse heads has them.
        members.sort_by_key(|head| match patterns.head(*head as u32) {
            HeadPattern::Antidiagonal { stride, .. } => stride,
            _ => 0,
        });
        let block = (facts.block.0 as usize, facts.block.1 as usize);
        let of_flex = index.flex.filter(|_| chosen);
        let built: Vec<Mask> = match facts.pattern {
            Pattern::Dense | Pattern::AShape | Pattern::TriShape => {
                members.par_iter().map(|head| windows(patterns.head(*head as u32), rows)).collect()
            }
            Pattern::VerticalSlash => {
                let own = if chosen { of_flex.map(|flex| flex.vertical_slash()) } else { index.vertical_slash };
                let indices = vertical_slash(stream, own)?;
                indices.par_iter().map(|index| Mask::vertical_slash(rows, rows, block.1, index)).collect()
            }
            Pattern::BlockSparse => {
                let own = if chosen { of_flex.map(|flex| flex.block_sparse()) } else { index.block_sparse };
                let lists = block_sparse(stream, own)?;
                lists.par_iter().map(|lists| Mask::block_sparse(rows, rows, block, true, lists, |_, _| true)).collect()
            }
        };
        let map = of_flex.map(|flex| match facts.pattern {
            Pattern::VerticalSlash => flex.vertical_slash_heads(),
            _ => flex.block_sparse_heads(),
        });
        let map = map.map(|map| map.read::<u32>(stream)).transpose()?;
        for (slot, (head, mask)) in members.into_iter().zip(built).enumerate() {
            // What another pattern has been chosen for has no entry.
            if map.as_ref().is_none_or(|map| map[slot] == head as u32) {
                masks[head] = mask;
            }
        }
    }
    Ok(masks)
}

/// The mask of a pattern that needs no index; every pair for the others.
fn windows(pattern: HeadPattern, rows: usize) -> Mask {
    match pattern {
        HeadPattern::AShape { sink, local } => Mask::a_shape(rows, rows, sink, local),
        HeadPattern::TriShape { sink, local, last } => Mask::tri_shape(rows, rows, sink, local, last),
        _ => Mask::dense(rows, rows, true),
    }
}

/// The vertical-slash index of each head of its group.
fn vertical_slash(stream: &Stream, index: Option<VerticalSlashIndex<'_>>) -> Result<Vec<mask::VerticalSlash>, Error> {
    let Some(index) = index else { return Ok(Vec::new()) };
    let lists = |lists: kernel_core::index::HeadLists<'_>| -> Result<Vec<Vec<u32>>, Error> {
        let capacity = lists.entries.shape()[2] as usize;
        let (counts, entries) = (lists.counts.read::<u32>(stream)?, lists.entries.read::<u32>(stream)?);
        Ok(counts.iter().zip(entries.chunks(capacity)).map(|(&count, list)| list[..count as usize].to_vec()).collect())
    };
    let heads = lists(index.offsets())?.into_iter().zip(lists(index.columns())?);
    Ok(heads.map(|(offsets, columns)| mask::VerticalSlash { offsets, columns }).collect())
}

/// The block-sparse index of each head of its group.
fn block_sparse(stream: &Stream, index: Option<BlockSparseIndex<'_>>) -> Result<Vec<mask::BlockSparse>, Error> {
    let Some(index) = index else { return Ok(Vec::new()) };
    let lists = index.partial();
    let (row_blocks, capacity) = (lists.counts.shape()[2] as usize, lists.indices.shape()[3] as usize);
    let counts = lists.counts.read::<u32>(stream)?;
    let indices = lists.indices.read::<u32>(stream)?;
    let heads = counts.chunks(row_blocks).zip(indices.chunks(row_blocks * capacity));
    Ok(heads
        .map(|(counts, indices)| {
            let rows = counts.iter().zip(indices.chunks(capacity));
            let partial: Vec<Vec<u32>> = rows.map(|(count, row)| row[..*count as usize].to_vec()).collect();
            mask::BlockSparse { full: vec![Vec::new(); partial.len()], partial }
        })
        .collect())
}

/// The kernel that serves a head's pattern; none where the plan chooses.
fn pattern_of(pattern: HeadPattern) -> Option<Pattern> {
    match pattern {
        HeadPattern::Dense => Some(Pattern::Dense),
        HeadPattern::AShape { .. } => Some(Pattern::AShape),
        HeadPattern::TriShape { .. } => Some(Pattern::TriShape),
        HeadPattern::VerticalSlash { .. } | HeadPattern::FlexVerticalSlash { .. } => Some(Pattern::VerticalSlash),
        HeadPattern::BlockSparse { .. } | HeadPattern::FlexBlockSparse { .. } | HeadPattern::Antidiagonal { .. } => {
            Some(Pattern::BlockSparse)
        }
        HeadPattern::Flex { .. } => None,
    }
}

/// A head's pattern in words.
pub(crate) fn describe(pattern: HeadPattern) -> String {
    format!("{} {}", name(pattern), budget(pattern)).trim_end().into()
}

/// The kind of a head's pattern.
pub(crate) fn name(pattern: HeadPattern) -> &'static str {
    match pattern_of(pattern) {
        Some(Pattern::Dense) => "dense",
        Some(Pattern::AShape) => "A-shape",
        Some(Pattern::TriShape) => "tri-shape",
        Some(Pattern::VerticalSlash) => "vertical-slash",
        Some(Pattern::BlockSparse) => "block-sparse",
        None => "flex",
    }
}

/// How much a head's pattern may visit; nothing for dense.
pub(crate) fn budget(pattern: HeadPattern) -> String {
    match pattern {
        HeadPattern::Dense => String::new(),
        HeadPattern::AShape { sink, local } => format!("{sink}+{local}"),
        HeadPattern::TriShape { sink, local, last } => format!("{sink}+{local}, last {last}"),
        HeadPattern::VerticalSlash { columns, slashes } => format!("{columns}|{slashes}"),
        HeadPattern::FlexVerticalSlash { columns, slashes } => {
            format!("{:.3}, {:.3} to {}|{}", columns.0, slashes.0, columns.1, slashes.1)
        }
        HeadPattern::BlockSparse { blocks } => blocks.to_string(),
        HeadPattern::FlexBlockSparse { blocks: (share, blocks) } => format!("{share:.3} to {blocks}"),
        HeadPattern::Flex { share, threshold, .. } => format!("{share}, {threshold}"),
        HeadPattern::Antidiagonal { stride, threshold, blocks } => {
            format!("antidiagonal {stride}, {threshold}, at most {blocks}")
        }
    }
}
