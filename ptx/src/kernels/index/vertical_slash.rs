//! The vertical-slash selection: the highest columns and slashes of each head, in the form that attention reads.
//!
//! One block a (kind, head, batch row) finds its threshold by a radix select (`tile::radix`) and walks the scores once more
//! in ascending order: columns are written where they fall, slashes become blocks.
//!
//! With rows in groups of N, a pair (q, q − Δ) of the group that begins at r has its key among the N from r − Δ on or among
//! the N after those. So the blocks that begin at r − D for a list of offsets D hold every pair of the selected slashes if
//! the first D is the first slash and each next one is the next slash, but at least N further on: blocks do not overlap, and
//! one comes no later than the last pair of a slash asks for it.
//!
//! Determinism: keys are compared as integers, ties go to the lowest index.

use super::{check_arch, check_block, cover::Cover};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Cache, Launch, R32, R64, RF, SharedRegion},
    kernels::{
        batch::{Bounds, HeadMap, NO_HEAD, address, report, status},
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::{
        radix::{self, Keys, Scratch, Threshold, Visit},
        reduce::{block_sum, block_sum_bytes},
        share::{Masses, SumScratch, select_share},
        team::Team,
    },
};

const THREADS: u32 = 1024;
/// Scores that a thread loads at once.
const WIDTH: u32 = 4;

/// Selects columns and slashes and writes the vertical-slash index of every head.
///
/// Grid: x = 2 (columns, slashes), y = query heads of the launch, z = batch. 1024 threads; no workspace.
///
/// Of the `n = kv_len` columns, `min(n, max(vertical_sizes[head], min_columns))` are selected: the first
/// `forced_columns` and then the highest scores. Slashes likewise, with `slash_sizes`, `min_slashes` and `forced_slashes`
/// (the nearest), each taken as at least 1, so that a row never loses its diagonal. Forced ones count toward the size.
/// A NaN score ranks last, −0 below +0, ties by index.
///
/// With a share γ the head gets only as many, of those and not below the minimum, as hold γ of the sum of all scores
/// (FlexPrefill, algorithm 2, by single columns and slashes): see [`share`](super::share) and `tile::share` for the rounding of
/// sums.
///
/// `visited` says what a causal prefill of all `kv_len` positions will visit: blocks and columns, each counted once for every
/// group of N rows that it may be visited by. The share of the pairs is `(blocks · N² + columns · N) / (n (n + 1) / 2)` at most;
/// columns inside a visited block are counted though they are not visited again.
///
/// Parameters: pointers `vertical_scores slash_scores` with byte strides `scores_batch scores_head`, all multiples of 16, where
/// entries up to the next multiple of 4 past `kv_len` are read; pointers
/// `kv_start kv_length`, `kv_rows max_kv` as in attention; pointers `vertical_sizes slash_sizes` (u32 by grid head);
/// `vertical_shares slash_shares` (0, or u32 by grid head: [`share`](super::share), 0 for none); pointer `head_map` (0, or u32 by
/// grid head; `u32::MAX`: the head has no index here, and its lists are empty, whatever else stands there) and the byte stride
/// `head_map_batch` from a sequence's map to the next; `min_columns min_slashes forced_columns
/// forced_slashes`; pointer `visited` (0, or `u64[batch][grid heads][2]`: blocks and columns); pointer `columns` (u32) with byte strides
/// `columns_batch columns_head`; `column_capacity`: entries of a head, of which those past the count become 0;
/// pointer `column_counts`, `u32[batch][grid heads]`; likewise `offsets offsets_batch offsets_head offset_capacity
/// offset_counts` (`workspace::offset_capacity` entries hold any list); pointer `status` (0 = none): bit 1 a length beyond
/// its bound, bit 4 a column budget or a list of offsets beyond the capacity; all are clamped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerticalSlashSelectSpec {
    /// Keys of an attention block: 32, 64 or 128.
    pub block: u32,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for VerticalSlashSelectSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_block(&mut errors, "block", "keys a block", self.block);
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("vertical_slash_select_n{}_{}", self.block, self.arch.name());
        let mut k = Builder::new(self.arch, entry, Launch { threads: THREADS, blocks_per_multiprocessor: 1 });
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

impl VerticalSlashSelectSpec {
    fn body(&self, k: &mut Builder) {
        let [vertical, slash]: [R64; 2] = ["vertical_scores", "slash_scores"].map(|name| k.parameter(name, Pointer));
        let [scores_batch, scores_head]: [R64; 2] = ["scores_batch", "scores_head"].map(|name| k.parameter(name, U64));
        let bounds = Bounds::keys(k);
        let [vertical_sizes, slash_sizes]: [R64; 2] =
            ["vertical_sizes", "slash_sizes"].map(|name| k.parameter(name, Pointer));
        let [min_columns, min_slashes, forced_columns, forced_slashes]: [R32; 4] =
            ["min_columns", "min_slashes", "forced_columns", "forced_slashes"].map(|name| k.parameter(name, U32));
        let [vertical_shares, slash_shares]: [R64; 2] =
            ["vertical_shares", "slash_shares"].map(|name| k.parameter(name, Pointer));
        let head_map = HeadMap::of_sequence(k);
        let visited: R64 = k.parameter("visited", Pointer);
        let columns: R64 = k.parameter("columns", Pointer);
        let [columns_batch, columns_head]: [R64; 2] =
            ["columns_batch", "columns_head"].map(|name| k.parameter(name, U64));
        let capacity: R32 = k.parameter("column_capacity", U32);
        let column_counts: R64 = k.parameter("column_counts", Pointer);
        let offsets: R64 = k.parameter("offsets", Pointer);
        let [offsets_batch, offsets_head]: [R64; 2] =
            ["offsets_batch", "offsets_head"].map(|name| k.parameter(name, U64));
        let offset_capacity: R32 = k.parameter("offset_capacity", U32);
        let offset_counts: R64 = k.parameter("offset_counts", Pointer);
        let status: R64 = k.parameter("status", Pointer);

        let (kind, head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let for_columns = k.eq(kind, 0u32);
        let keys = bounds.sequence(k, batch, status).length;
        let entry = head_map.entry(k, head);
        let elsewhere = k.eq(entry, NO_HEAD);
        let keys = k.select(elsewhere, 0u32, keys);

        let sizes = k.select(for_columns, vertical_sizes, slash_sizes);
        let at = k.mad_wide(head, 4u32, sizes);
        let size: R32 = k.load(at, 0);
        let min_slashes = k.max_u(min_slashes, 1u32);
        let least = k.select(for_columns, min_columns, min_slashes);
        let size = k.max_u(size, least);
        let size = k.min_u(size, keys);
        let room = k.select(for_columns, capacity, u32::MAX);
        let short = k.gt_u(size, room);
        k.if_then(short, |k| report(k, status, status::BUDGET));
        let size = k.min_u(size, room);

        let forced_slashes = k.max_u(forced_slashes, 1u32);
        let forced = k.select(for_columns, forced_columns, forced_slashes);
        let scores = k.select(for_columns, vertical, slash);
        let scores = address(k, scores, [(batch, scores_batch), (head, scores_head)]);
        let load = |k: &mut Builder, first: R32| {
            let at = k.mad_wide(first, 4u32, scores);
            let scores: [RF; WIDTH as usize] = k.load_vector(at, 0, Cache::ReadOnly);
            scores.map(|score| radix::ranking_key(k, score)).to_vec()
        };
        let scratch = Scratch::new(k);
        let ranked = |k: &mut Builder, first: R32| {
            let keys = (0..).zip(load(k, first)).map(|(i, key)| {
                let index = k.add(first, i as u32);
                let is_forced = k.lt_u(index, forced);
                k.select(is_forced, u32::MAX, key)
            });
            keys.collect()
        };
        let sums = k.shared(block_sum_bytes(1), 16);
        let heads = k.grid_y();
        let pair = k.mad(batch, heads, head);
        let candidates = Keys { team: Team::Block, count: keys, width: WIDTH, load: ranked };
        let threshold = Threshold { key: k.mov(0u32), ties: k.mov(0u32) };
        let (size, by_size) = (k.mov(size), k.mov(1u32));
        let shares = k.select(for_columns, vertical_shares, slash_shares);
        let shared = k.ne(shares, 0u64);
        k.if_then(shared, |k| {
            let at = k.mad_wide(head, 4u32, shares);
            let share: R32 = k.load(at, 0);
            let wanted = k.ne(share, 0u32);
            k.if_then(wanted, |k| {
                let sums = SumScratch::new(k, Team::Block);
                let scores = Keys { team: Team::Block, count: keys, width: WIDTH, load };
                let (masses, held) = Masses::new(k, &sums, &scores, |k, index| k.lt_u(index, forced));
                let mass = |k: &mut Builder, key| masses.mass(k, key);
                let (found, chosen) = select_share(k, &scratch, &candidates, held, share, mass);
                threshold.set_to(k, found);
                let least = k.max_u(chosen, least);
                let most = k.min_u(least, size);
                k.set(size, most);
                let other = k.ne(most, chosen);
                let other = k.select(other, 1u32, 0u32);
                k.set(by_size, other);
            });
        });
        k.comment("select");
        let by_size = k.ne(by_size, 0u32);
        k.if_then(by_size, |k| {
            let found = radix::select(k, &scratch, &candidates, size);
            threshold.set_to(k, found);
        });

        k.if_else(
            for_columns,
            |k| {
                let columns = address(k, columns, [(batch, columns_batch), (head, columns_head)]);
                radix::visit(k, &scratch, &candidates, threshold, |k, visit| write_columns(k, columns, visit));
                finish_list(k, columns, column_counts, pair, size, capacity);
                self.report_visited(k, (visited, pair, 1), (columns, size), keys, sums);
            },
            |k| {
                let list = address(k, offsets, [(batch, offsets_batch), (head, offsets_head)]);
                let cover = Cover::new(k, self.block, WIDTH * THREADS, list, offset_capacity);
                radix::visit(k, &scratch, &candidates, threshold, |k, visit| cover.add(k, visit));
                let count = cover.count(k);
                let short = k.gt_u(count, offset_capacity);
                k.if_then(short, |k| report(k, status, status::BUDGET));
                let count = k.min_u(count, offset_capacity);
                finish_list(k, list, offset_counts, pair, count, offset_capacity);
                self.report_visited(k, (visited, pair, 0), (list, count), keys, sums);
            },
        );
    }

    /// Counts the groups of rows that may visit the entries of a list: those from the one on in which the entry lies.
    fn report_visited(
        &self,
        k: &mut Builder,
        (visited, pair, which): (R64, R32, i64),
        (list, count): (R64, R32),
        keys: R32,
        scratch: SharedRegion,
    ) {
        let wanted = k.ne(visited, 0u64);
        k.if_then(wanted, |k| {
            let shift = self.block.ilog2();
            let groups = k.add(keys, self.block - 1);
            let groups = k.shr_u(groups, shift);
            // The list is there for all threads.
            k.barrier();
            let thread = k.thread();
            let sum = k.mov(0u64);
            k.for_loop(thread, count, THREADS, |k, entry| {
                let at = k.mad_wide(entry, 4u32, list);
                let entry: R32 = k.load(at, 0);
                let before = k.shr_u(entry, shift);
                let before = k.min_u(before, groups);
                let visits = k.sub(groups, before);
                let visits = k.widen_u(visits);
                let all = k.add(sum, visits);
                k.set(sum, all);
            });
            let scratch = k.shared_address(scratch);
            let [all] = block_sum(k, scratch, [sum]);
            let at = k.mad_wide(pair, 16u32, visited);
            let leads = k.eq(thread, 0u32);
            k.when(leads, |k| k.store(at, 8 * which, all));
        });
    }
}

/// Writes a list's count, and zeros behind it.
fn finish_list(k: &mut Builder, list: R64, counts: R64, pair: R32, count: R32, capacity: R32) {
    let thread = k.thread();
    let first_unused = k.add(count, thread);
    k.for_loop(first_unused, capacity, THREADS, |k, index| {
        let at = k.mad_wide(index, 4u32, list);
        k.store::<B32, _>(at, 0, 0u32);
    });
    let at = k.mad_wide(pair, 4u32, counts);
    let leads = k.eq(thread, 0u32);
    k.when(leads, |k| k.store(at, 0, count));
}

fn write_columns(k: &mut Builder, columns: R64, visit: Visit) {
    for (i, (selected, position)) in (0..).zip(visit.keys) {
        let index = k.add(visit.first, i as u32);
        let at = k.mad_wide(position, 4u32, columns);
        k.when(selected, |k| k.store(at, 0, index));
    }
}
