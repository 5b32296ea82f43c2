//! The first kernel of a pass.

use super::{layout::FeedParameters, range::range};
use crate::{
    isa::{Arch, B32, B64, Builder, Cache, Launch, R32, R64},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
        model::{STATUS_INDEX_OUT_OF_RANGE, chunk},
    },
    tile::overlap,
};
use std::mem::{offset_of, size_of};

/// Embeddings of the fed rows, their positions and cache rows, and the lengths of the batch for attention.
///
/// Row `i` of request `r` is row `r · rows + i` of the pass. Rows beyond those that are fed are zeros at position 0, without
/// a cache row.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `tokens` | pointer | u32, all sequences |
/// | `tokens_length` | u32 | elements of `tokens` |
/// | `embedding` | pointer | rows of `width` 16-bit elements |
/// | `embedding_row` | u64 | bytes from one row to the next |
/// | `vocabulary` | u32 | rows of it; another token gives zeros |
/// | `out` | pointer | `[requests · rows, width]` |
/// | `out_row` | u64 | bytes from one row to the next |
/// | `states` | pointer | [`RequestState`](crate::kernels::sampling::RequestState) a request |
/// | `feeds` | pointer | [`FeedParameters`] a request |
/// | `refresh` | u32 | 1: a pass that feeds everything |
/// | `rows` | u32 | rows a request |
/// | `page_table` | pointer | u32 `[requests, table_width]`: the pages of each sequence |
/// | `table_width` | u32 | entries a request |
/// | `table_stride` | u32 | entries from one request to the next |
/// | `page_shift` | u32 | log2 of the rows of a page |
/// | `cache_rows` | u32 | rows of the cache; a row elsewhere gets none |
/// | `axes` | pointer | u32 `[3, cache_rows]`: position of each cache row by time, height and width (with `axes` only) |
/// | `positions` | pointer | u32 `[requests · rows]`, written; with `axes` three of these |
/// | `slots` | pointer | u32 `[requests · rows]`, written: cache rows, 2³² − 1 for none |
/// | `q_start` | pointer | u32 `[2 · requests + 1]`, written: first row of each segment |
/// | `q_length` | pointer | u32 `[2 · requests]`, written: rows of each segment |
/// | `kv_length` | pointer | u32 `[2 · requests]`, written: keys that they see |
/// | `status` | pointer | u32 word, or 0: bit 2 for a token outside the vocabulary, a page outside the cache, or more rows than there is room for |
///
/// Grid: [`EmbedSpec::grid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmbedSpec {
    /// Elements of a row: a multiple of 8.
    pub width: u32,
    /// Positions have three axes (M-RoPE), from a table; else they are places in the sequence.
    pub axes: bool,
    /// Architecture of the text.
    pub arch: Arch,
}

impl EmbedSpec {
    /// Blocks to launch for this many requests and rows a request.
    pub fn grid(&self, requests: u32, rows: u32) -> [u32; 3] {
        let [x, y, _] = chunk::grid(self.width, rows);
        [x, y, requests]
    }
}

impl KernelSpec for EmbedSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let axes = if self.axes { "_axes" } else { "" };
        let entry = format!("embed{axes}_w{}_{}", self.width, self.arch.name());
        let launch = Launch { threads: chunk::threads(self.width), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        generate(&mut k, self);
        k.finish()
    }
}

fn generate(k: &mut Builder, spec: &EmbedSpec) {
    let tokens: R64 = k.parameter("tokens", ParameterKind::Pointer);
    let tokens_length: R32 = k.parameter("tokens_length", ParameterKind::U32);
    let embedding: R64 = k.parameter("embedding", ParameterKind::Pointer);
    let embedding_row: R64 = k.parameter("embedding_row", ParameterKind::U64);
    let vocabulary: R32 = k.parameter("vocabulary", ParameterKind::U32);
    let out: R64 = k.parameter("out", ParameterKind::Pointer);
    let out_row: R64 = k.parameter("out_row", ParameterKind::U64);
    let states: R64 = k.parameter("states", ParameterKind::Pointer);
    let feeds: R64 = k.parameter("feeds", ParameterKind::Pointer);
    let refresh: R32 = k.parameter("refresh", ParameterKind::U32);
    let rows: R32 = k.parameter("rows", ParameterKind::U32);
    let page_table: R64 = k.parameter("page_table", ParameterKind::Pointer);
    let table_width: R32 = k.parameter("table_width", ParameterKind::U32);
    let table_stride: R32 = k.parameter("table_stride", ParameterKind::U32);
    let page_shift: R32 = k.parameter("page_shift", ParameterKind::U32);
    let cache_rows: R32 = k.parameter("cache_rows", ParameterKind::U32);
    let axes: Option<R64> = spec.axes.then(|| k.parameter("axes", ParameterKind::Pointer));
    let [positions, slots, q_start, q_length, kv_length, status] =
        ["positions", "slots", "q_start", "q_length", "kv_length", "status"]
            .map(|name| k.parameter::<B64>(name, ParameterKind::Pointer));

    overlap::follow(k);
    let (row, request) = (k.block_x(), k.block_z());
    let range = range(k, states, feeds, request, refresh, rows);
    let fed = k.lt_u(row, range.count);
    let position = k.add(range.first, row);
    let out_index = k.mad(request, rows, row);

    k.comment("its token");
    let feed = k.mad_wide(request, size_of::<FeedParameters>() as u32, feeds);
    let first_token: R32 = k.load_readonly(feed, offset_of!(FeedParameters, first_token) as i64);
    let element = k.add(first_token, position);
    // A sum that wraps is as far outside.
    let unwrapped = k.ge_u(element, first_token);
    let within = k.lt_u(element, tokens_length);
    let within = k.and_p(within, unwrapped);
    let readable = k.and_p(within, fed);
    let token = k.mov::<B32>(u32::MAX);
    k.if_then(readable, |k| {
        let at = k.mad_wide(element, 4u32, tokens);
        let read: R32 = k.load(at, 0);
        k.set(token, read);
    });
    let known = k.lt_u(token, vocabulary);

    k.comment("its cache row");
    let entry = k.shr_u(position, page_shift);
    let in_table = k.lt_u(entry, table_width);
    let looked_up = k.and_p(in_table, fed);
    let slot = k.mov::<B32>(u32::MAX);
    k.if_then(looked_up, |k| {
        let line = k.mad(request, table_stride, entry);
        let at = k.mad_wide(line, 4u32, page_table);
        let page: R32 = k.load_readonly(at, 0);
        // In 64 bits: a wild page must not wrap into the cache.
        let start = k.widen_u(page);
        let start = k.shl(start, page_shift);
        let unit = k.mov(1u32);
        let page_rows = k.shl(unit, page_shift);
        let mask = k.sub(page_rows, 1u32);
        let inside = k.and(position, mask);
        let inside = k.widen_u(inside);
        let cache_row = k.add(start, inside);
        let bound = k.widen_u(cache_rows);
        let valid = k.lt_u(cache_row, bound);
        let cache_row = k.narrow(cache_row);
        let cache_row = k.select(valid, cache_row, u32::MAX);
        k.set(slot, cache_row);
    });

    k.comment("one thread writes what the pass needs of the row");
    let (thread, part) = (k.thread(), k.block_y());
    let item = k.or(thread, part);
    let writer = k.eq(item, 0u32);
    k.if_then(writer, |k| {
        let cached = k.ne(slot, u32::MAX);
        let at = k.mad_wide(out_index, 4u32, slots);
        k.store(at, 0, slot);
        let at = k.mad_wide(out_index, 4u32, positions);
        match axes {
            None => {
                let plain = k.select(fed, position, 0u32);
                k.store(at, 0, plain);
            }
            Some(axes) => {
                let requests = k.grid_z();
                let all_rows = k.mul(requests, rows);
                let mut at = at;
                let mut source = k.mad_wide(slot, 4u32, axes);
                for axis in 0..3 {
                    let value = k.mov::<B32>(0u32);
                    k.if_then(cached, |k| {
                        let read: R32 = k.load_readonly(source, 0);
                        k.set(value, read);
                    });
                    k.store(at, 0, value);
                    if axis < 2 {
                        at = k.mad_wide(all_rows, 4u32, at);
                        source = k.mad_wide(cache_rows, 4u32, source);
                    }
                }
            }
        }
        let lost = k.not_p(known);
        let homeless = k.not_p(cached);
        let wrong = k.or_p(lost, homeless);
        let wrong = k.and_p(wrong, fed);
        let cut = k.and_p(range.cut, fed);
        let wrong = k.or_p(wrong, cut);
        let given = k.ne(status, 0u64);
        let reports = k.and_p(wrong, given);
        k.when(reports, |k| k.reduce_or(status, 0, STATUS_INDEX_OUT_OF_RANGE));
    });

    k.comment("the first block of a request writes its segments");
    let leading = k.eq(row, 0u32);
    let leading = k.and_p(writer, leading);
    k.if_then(leading, |k| {
        let apart = k.sub(range.split, range.first);
        let apart = k.min_u(apart, range.count);
        let rest = k.sub(range.count, apart);
        let start = k.mul(request, rows);
        let middle = k.add(start, apart);
        let end = k.add(start, rows);
        let requests = k.grid_z();
        let next = k.add(request, 1u32);
        let last = k.eq(next, requests);
        let [starts, lengths, keys] = [q_start, q_length, kv_length].map(|base| k.mad_wide(request, 8u32, base));
        k.store_vector(starts, 0, [start, middle]);
        k.when(last, |k| k.store(starts, 8, end));
        k.store_vector(lengths, 0, [apart, rest]);
        k.store_vector(keys, 0, [range.split, range.visible]);
    });

    k.comment("the embedding");
    let (offset, inside) = chunk::own(k, spec.width);
    k.if_then(inside, |k| {
        let target = chunk::row_address(k, out, out_index, out_row, offset);
        let source = chunk::row_address(k, embedding, token, embedding_row, offset);
        chunk::copy_or_zero(k, known, source, Cache::ReadOnly, target);
    });
    k.ret();
}
