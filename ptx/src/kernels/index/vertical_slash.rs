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

use super::{check_arch, check_block};
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Cache, Launch, R32, R64, RF, SharedRegion, Source},
    kernels::{
        batch::{Bounds, HeadMap, NO_HEAD, address, report, status},
        meta::ParameterKind::{Pointer, U32, U64},
    },
    tile::{
        radix::{self, Keys, Scratch, Threshold, Visit},
        reduce::block_sum,
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
        let words = k.shared(4 * Cover::words(self.block), 16);
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
                self.report_visited(k, (visited, pair, 1), (columns, size), keys, words);
            },
            |k| {
                let list = address(k, offsets, [(batch, offsets_batch), (head, offsets_head)]);
                let cover = Cover::new(k, self.block, list, offset_capacity, words);
                radix::visit(k, &scratch, &candidates, threshold, |k, visit| cover.add(k, visit));
                let count = cover.count(k);
                let short = k.gt_u(count, offset_capacity);
                k.if_then(short, |k| report(k, status, status::BUDGET));
                let count = k.min_u(count, offset_capacity);
                finish_list(k, list, offset_counts, pair, count, offset_capacity);
                self.report_visited(k, (visited, pair, 0), (list, count), keys, words);
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

/// The list of offsets whose blocks hold all selected slashes, as it grows. The first warp keeps it.
///
/// Where one slash after another is less than N away, offsets are N apart, and its lanes look at 32 of them at once: one is followed by
/// the next as long as there is a slash up to there.
struct Cover {
    block: u32,
    list: R64,
    capacity: R32,
    /// A bit for each slash that the threads look at in one turn, between zeros.
    words: SharedRegion,
    /// Offsets so far, and the last of them; −N before the first.
    count: R32,
    last: R32,
}

impl Cover {
    /// Slashes of one turn.
    const SLASHES: u32 = THREADS * WIDTH;

    /// Zeros before the bits of a turn: of slashes that have all been looked at.
    const fn zeros(block: u32) -> u32 {
        block / 32
    }

    /// Words of the bits and the zeros before and behind them.
    const fn words(block: u32) -> u32 {
        Cover::zeros(block) + Cover::SLASHES / 32 + Cover::zeros(block) + 1
    }

    fn new(k: &mut Builder, block: u32, list: R64, capacity: R32, words: SharedRegion) -> Cover {
        let first = k.shared_address(words);
        let thread = k.thread();
        let inside = k.lt_u(thread, Cover::words(block));
        let at = k.mad(thread, 4u32, first);
        k.when(inside, |k| k.store::<B32, _>(at, 0, 0u32));
        k.barrier();
        Cover { block, list, capacity, words, count: k.mov(0u32), last: k.mov(-(block as i32)) }
    }

    /// Adds what the selected slashes of one turn ask for. All threads of the block take part.
    fn add(&self, k: &mut Builder, visit: Visit) {
        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let words = k.shared_address(self.words);
        let words = k.add(words, 4 * Cover::zeros(self.block));
        // The bits of eight lanes make a word.
        let place = k.and(lane, 32 / WIDTH - 1);
        let place = k.mul(place, WIDTH);
        let mut bits = k.mov(0u32);
        for (i, &(selected, _)) in (0..).zip(&visit.keys) {
            let bit = k.select(selected, 1u32 << i, 0u32);
            bits = k.or(bits, bit);
        }
        bits = k.shl(bits, place);
        for mask in [1, 2, 4] {
            let others = k.shuffle_xor(bits, mask);
            bits = k.or(bits, others);
        }
        let some = k.ne(visit.selected, 0u32);
        k.if_then(some, |k| {
            let word = k.shr_u(thread, (32 / WIDTH).ilog2());
            let at = k.mad(word, 4u32, words);
            let leads = k.eq(place, 0u32);
            k.when(leads, |k| k.store(at, 0, bits));
            k.barrier();
            let first_warp = k.eq(warp, 0u32);
            let own = k.mul(thread, WIDTH);
            let first = k.sub(visit.first, own);
            k.if_then(first_warp, |k| {
                k.for_loop(0u32, Cover::SLASHES / 1024, 1, |k, part| {
                    let at = k.mad(part, 128u32, words);
                    let at = k.mad(lane, 4u32, at);
                    let bits: R32 = k.load(at, 0);
                    let own_first = k.mad(part, 1024u32, first);
                    let own_first = k.mad(lane, 32u32, own_first);
                    self.walk(k, bits, own_first, (words, first));
                });
            });
            k.barrier();
        });
    }

    /// The first warp's part: each lane has the bits of the 32 slashes from its own first one on. The turn's bits stand at `words`,
    /// from those of slash `first` on.
    fn walk(&self, k: &mut Builder, bits: R32, own_first: R32, turn: (R32, R32)) {
        let lane = k.lane();
        let next = k.fresh();
        // The next selected slash of this turn after the last offset, or −1.
        let find = |k: &mut Builder| {
            let done = k.sub(self.last, own_first);
            let done = k.add(done, 1u32);
            let done = k.max_s(done, 0u32);
            let all = k.mov(u32::MAX);
            // A count of 32 and more shifts everything out.
            let open = k.shl(all, done);
            let left = k.and(bits, open);
            let some = k.ne(left, 0u32);
            let lanes = k.ballot(some);
            let reversed = k.brev(lanes);
            let source = k.clz(reversed);
            let reversed = k.brev(left);
            let bit = k.clz(reversed);
            let slash = k.add(own_first, bit);
            let slash = k.shuffle_from(slash, source);
            let none = k.eq(lanes, 0u32);
            let slash = k.select(none, -1i32, slash);
            k.set(next, slash);
        };
        find(k);
        k.while_loop(
            |k| {
                let some = k.ge_s(next, 0u32);
                k.any(some)
            },
            |k| {
                let apart = k.add(self.last, self.block);
                let far = k.gt_s(next, apart);
                let far = k.any(far);
                k.if_else(
                    far,
                    |k| {
                        self.write(k, next, 1u32);
                        k.set(self.last, next);
                    },
                    |k| {
                        let offset = k.mad(lane, self.block, apart);
                        let follow = self.follow(k, turn);
                        self.write(k, offset, follow);
                        let last = k.mad(follow, self.block, self.last);
                        k.set(self.last, last);
                    },
                );
                find(k);
            },
        );
    }

    /// How many offsets follow the last one N apart: in front of each is a slash that the one before does not reach.
    fn follow(&self, k: &mut Builder, (words, first): (R32, R32)) -> R32 {
        let lane = k.lane();
        let begin = k.mad(lane, self.block, self.last);
        let begin = k.add(begin, 1u32);
        let begin = k.sub(begin, first);
        let inside = k.lt_s(begin, Cover::SLASHES as i32);
        let begin = k.select(inside, begin, 0u32);
        let word = k.shr_s(begin, 5u32);
        let at = k.mad(word, 4u32, words);
        let bit = k.and(begin, 31u32);
        let bits: Vec<R32> = (0..=self.block / 32).map(|word| k.load(at, i64::from(4 * word))).collect();
        let (inner, last) = (&bits[1..bits.len() - 1], bits[bits.len() - 1]);
        let from_first = k.shr_u(bits[0], bit);
        let all = k.mov(u32::MAX);
        let behind = k.shl(all, bit);
        let before = k.not(behind);
        let to_last = k.and(last, before);
        let some = inner.iter().fold(k.or(from_first, to_last), |some, &word| k.or(some, word));
        let some = k.ne(some, 0u32);
        let some = k.and_p(some, inside);
        let lanes = k.ballot(some);
        let others = k.not(lanes);
        let reversed = k.brev(others);
        k.clz(reversed)
    }

    /// Adds the offsets of the first `count` lanes to the list.
    fn write(&self, k: &mut Builder, offset: R32, count: impl Into<Source<B32>> + Copy) {
        let lane = k.lane();
        let own = k.add(self.count, lane);
        let at = k.mad_wide(own, 4u32, self.list);
        let fits = k.lt_u(own, self.capacity);
        let given = k.lt_u(lane, count);
        let writes = k.and_p(fits, given);
        k.when(writes, |k| k.store(at, 0, offset));
        let all = k.add(self.count, count);
        k.set(self.count, all);
    }

    /// The length of the list, in all threads.
    fn count(&self, k: &mut Builder) -> R32 {
        let words = k.shared_address(self.words);
        let thread = k.thread();
        let leads = k.eq(thread, 0u32);
        k.when(leads, |k| k.store(words, 0, self.count));
        k.barrier();
        k.load(words, 0)
    }
}

fn write_columns(k: &mut Builder, columns: R64, visit: Visit) {
    for (i, (selected, position)) in (0..).zip(visit.keys) {
        let index = k.add(visit.first, i as u32);
        let at = k.mad_wide(position, 4u32, columns);
        k.when(selected, |k| k.store(at, 0, index));
    }
}
