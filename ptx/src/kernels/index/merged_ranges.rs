//! The authors' own vertical-slash index: merged ranges of keys, listed for every row block.
//!
//! A compatibility mode for engines and comparisons that need the four tensors of `convert_vertical_slash_indexes` bit for
//! bit. The native index ([`super::VerticalSlashSelectSpec`]) is one list a head, of which every group derives its own;
//! this one stores rows × budget.
//!
//! The authors give a row block to one thread, which merges two sorted lists. Verticals have no say in the ranges, so here
//! a warp finds the ranges first, and then looks each vertical up in them. In the ranges, E the first position behind the
//! row block, the authors turn slash s into the 64 keys that end at max(E − s, 64), begin a range there if that end lies more
//! than 64 keys behind the last range, and else make the range 64 keys longer as often as an end lies behind it. So blocks of
//! 64 keys cut from the ranges begin at max(end − 64, end of the block before), of the next slash whose end lies behind the
//! block before.

use super::check_arch;
use crate::{
    Kernel, KernelSpec, SpecErrors,
    isa::{Arch, B32, Builder, Launch, R32, R64, RP},
    kernels::{
        batch::{Bounds, address, list_length, report, status},
        meta::ParameterKind::{Pointer, U32, U64},
    },
};

/// Rows of a row block and keys of a block: the authors' kernels have no other.
pub const MERGED_BLOCK: u32 = 64;

/// Row blocks that a thread block takes, one a warp.
pub const MERGED_ROW_BLOCKS: u32 = 4;

/// Whose rule. Where slash 0 is selected both leave out no pair of a vertical or slash, and they agree but for blocks behind
/// the last key, which there are none of if `q_len` is a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MergeRule {
    /// MInference's `vertical_slash_index.cu`. Verticals to the right of the last range are dropped, so that all that are
    /// kept lie before the row block's first row and need no causal mask. Blocks may begin at `kv_len` or, by less than 64,
    /// behind it. A row block with no slash below its end, for which the authors read out of bounds, has no blocks, and the
    /// verticals before its first row. The authors have as many queries as keys.
    Original,
    /// vLLM's and SGLang's `convert_vertical_slash_indexes` and `…_mergehead` with `causal`: blocks that begin at `kv_len` or
    /// behind it are left out. Verticals to the right of the last range are kept up to the row block's end, so that no pair
    /// is left out whatever is selected; they need a causal mask. (This is what vLLM's last range is for. It is never opened,
    /// because the condition for it cannot hold, and vLLM drops them.) A row block with no slash below its end has one block,
    /// which begins at that end, all in the future, if there are keys; but if the nearest slash is the end itself, the first
    /// 64 keys.
    Extended,
}

impl MergeRule {
    const fn name(self) -> &'static str {
        match self {
            MergeRule::Original => "original",
            MergeRule::Extended => "extended",
        }
    }
}

/// Merges verticals and slashes into the authors' four tensors, causal (MInference, `convert_vertical_slash_indexes`).
///
/// Grid: x = `row_blocks` / [`MERGED_ROW_BLOCKS`], rounded up, y = heads, z = batch. 128 threads; no workspace.
///
/// Row block r has the 64 query rows from 64 r on; query row i stands at `kv_len − q_len + i`, and its slash s is key
/// `kv_len − q_len + i − s`. Blocks are tokens where 64 keys begin, at any key, ascending and without overlap; columns are
/// the verticals in none of them, in their order.
///
/// Parameters: pointer `verticals` (i32 `[batch][heads][vertical_capacity]`, ascending), byte strides `verticals_batch
/// verticals_head`, `vertical_capacity`; pointer `vertical_counts` (i32 by head; 0 = every list is full), byte stride
/// `vertical_counts_batch` (0 where the counts serve every sequence); `slashes` likewise, descending;
/// `q_start q_length q_rows max_q` and `kv_start kv_length kv_rows max_kv` as in attention; `row_blocks`, R below; pointers
/// to contiguous i32 tensors: `block_count[batch][heads][R]`, `block_offset[batch][heads][R][slash_capacity]`,
/// `column_count[batch][heads][R]`, `column_index[batch][heads][R][vertical_capacity]`; pointer `status` (0 = none): bit 1
/// a length beyond its bound, bit 2 a count that its list has no room for, which is clamped, a vertical or slash that is
/// negative or not below `kv_len`, which counts as none, or one out of order, which counts where it stands.
///
/// Everything is written: entries past a count become 0, as in the authors' buffers, which they clear before. Row blocks
/// past `q_length`, and those that end at or before key 0, have none of either. No list is longer than the capacity, but
/// the one future block of [`MergeRule::Extended`] is left out if `slash_capacity` is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MergedRangesSpec {
    /// Whose rule.
    pub rule: MergeRule,
    /// Architecture of the text: sm_80.
    pub arch: Arch,
}

impl KernelSpec for MergedRangesSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        check_arch(&mut errors, self.arch);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("merged_ranges_{}_{}", self.rule.name(), self.arch.name());
        let launch = Launch { threads: 32 * MERGED_ROW_BLOCKS, blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        self.body(&mut k);
        k.ret();
        k.finish()
    }
}

/// The launch parameters of the lists of one kind.
struct Lists {
    entries: R64,
    strides: [R64; 2],
    capacity: R32,
    counts: R64,
    counts_batch: R64,
}

/// One list. Loads are turns of the warp, an entry a lane.
struct List {
    first: R64,
    length: R32,
    /// Entries are below it.
    keys: R32,
    /// Verticals ascend, slashes descend.
    ascends: bool,
    status: R64,
}

/// What a warp knows of its row block.
struct RowBlock {
    lane: R32,
    /// Positions of its first row and behind its last one; signed.
    first: R32,
    end: R32,
    /// It has rows, and some of them may see a key.
    sees: RP,
    keys: R32,
}

/// The blocks of a row block.
struct Blocks {
    list: R64,
    count: R32,
    /// Verticals below it are columns if no block has them; signed.
    limit: R32,
}

impl Lists {
    fn declare(k: &mut Builder, names: [&'static str; 6]) -> Lists {
        let [entries, batch, head, capacity, counts, counts_batch] = names;
        Lists {
            entries: k.parameter(entries, Pointer),
            strides: [batch, head].map(|name| k.parameter(name, U64)),
            capacity: k.parameter(capacity, U32),
            counts: k.parameter(counts, Pointer),
            counts_batch: k.parameter(counts_batch, U64),
        }
    }

    /// The list of a head of a sequence of `keys` keys, for a row block that sees some; else an empty one.
    fn of(&self, k: &mut Builder, [batch, head]: [R32; 2], row: &RowBlock, ascends: bool, status: R64) -> List {
        let count = k.mov(self.capacity);
        let given = k.ne(self.counts, 0u64);
        k.if_then(given, |k| {
            let counts = address(k, self.counts, [(batch, self.counts_batch)]);
            let at = k.mad_wide(head, 4u32, counts);
            let stored: R32 = k.load_readonly(at, 0);
            k.set(count, stored);
        });
        let length = list_length(k, count, self.capacity, status);
        let length = k.select(row.sees, length, 0u32);
        let [batch_stride, head_stride] = self.strides;
        let first = address(k, self.entries, [(batch, batch_stride), (head, head_stride)]);
        List { first, length, keys: row.keys, ascends, status }
    }
}

impl List {
    /// Calls `body` with the entries of each turn, and where they are keys or offsets that exist.
    fn turns(&self, k: &mut Builder, lane: R32, body: impl FnOnce(&mut Builder, R32, RP)) {
        k.for_loop(0u32, self.length, 32, |k, base| {
            let index = k.add(base, lane);
            let at = k.mad_wide(index, 4u32, self.first);
            let listed = k.lt_u(index, self.length);
            let entry = k.mov(0u32);
            k.when(listed, |k| {
                let stored: R32 = k.load_readonly(at, 0);
                k.set(entry, stored);
            });
            let has_previous = k.ne(index, 0u32);
            let has_previous = k.and_p(has_previous, listed);
            let previous = k.mov(entry);
            k.when(has_previous, |k| {
                let stored: R32 = k.load_readonly(at, -4);
                k.set(previous, stored);
            });
            let disorder = if self.ascends { k.gt_s(previous, entry) } else { k.lt_s(previous, entry) };
            let below = k.lt_u(entry, self.keys);
            let exists = k.and_p(below, listed);
            let missing = k.xor_p(listed, exists);
            let wild = k.or_p(missing, disorder);
            let wild = k.any(wild);
            k.if_then(wild, |k| report(k, self.status, status::INDEX));
            body(k, entry, exists);
        });
    }
}

impl MergedRangesSpec {
    fn body(&self, k: &mut Builder) {
        let verticals = Lists::declare(
            k,
            [
                "verticals",
                "verticals_batch",
                "verticals_head",
                "vertical_capacity",
                "vertical_counts",
                "vertical_counts_batch",
            ],
        );
        let slashes = Lists::declare(
            k,
            ["slashes", "slashes_batch", "slashes_head", "slash_capacity", "slash_counts", "slash_counts_batch"],
        );
        let (queries, keys) = (Bounds::queries(k), Bounds::keys(k));
        let row_blocks: R32 = k.parameter("row_blocks", U32);
        let [block_count, block_offset, column_count, column_index, status]: [R64; 5] =
            ["block_count", "block_offset", "column_count", "column_index", "status"]
                .map(|name| k.parameter(name, Pointer));

        let (thread, lane) = (k.thread(), k.lane());
        let warp = k.shr_u(thread, 5u32);
        let (block, head, batch) = (k.block_x(), k.block_y(), k.block_z());
        let row_block = k.mad(block, MERGED_ROW_BLOCKS, warp);
        let exists = k.lt_u(row_block, row_blocks);
        k.if_then(exists, |k| {
            let q_len = queries.sequence(k, batch, status).length;
            let kv_len = keys.sequence(k, batch, status).length;
            let row = RowBlock::new(k, lane, row_block, q_len, kv_len);
            let verticals_of = verticals.of(k, [batch, head], &row, true, status);
            let slashes_of = slashes.of(k, [batch, head], &row, false, status);

            let heads = k.grid_y();
            let pair = k.mad(batch, heads, head);
            // 64-bit from here on: the authors' i32 overflows beyond some twenty heads of a million tokens.
            let (pair, rows, own) = (k.widen_u(pair), k.widen_u(row_blocks), k.widen_u(row_block));
            let place = k.mad(pair, rows, own);
            let list = |k: &mut Builder, base: R64, capacity: R32| {
                let bytes = k.mul_wide(capacity, 4u32);
                k.mad(place, bytes, base)
            };
            let offsets = list(k, block_offset, slashes.capacity);
            let columns = list(k, column_index, verticals.capacity);

            let blocks = self.blocks(k, &row, &slashes_of, offsets, slashes.capacity);
            let count = write_columns(k, &row, &verticals_of, &blocks, columns);
            for (counts, count, list, capacity) in [
                (block_count, blocks.count, offsets, slashes.capacity),
                (column_count, count, columns, verticals.capacity),
            ] {
                let first_unused = k.add(count, lane);
                k.for_loop(first_unused, capacity, 32, |k, index| {
                    let at = k.mad_wide(index, 4u32, list);
                    k.store::<B32, _>(at, 0, 0u32);
                });
                let at = k.mad(place, 4u64, counts);
                let leads = k.eq(lane, 0u32);
                k.when(leads, |k| k.store(at, 0, count));
            }
        });
    }

    /// Finds and writes the blocks.
    fn blocks(&self, k: &mut Builder, row: &RowBlock, slashes: &List, list: R64, capacity: R32) -> Blocks {
        k.comment("blocks");
        let (count, last_end) = (k.mov(0u32), k.mov(0u32));
        let leads = k.eq(row.lane, 0u32);
        let add = |k: &mut Builder, block: R32, condition: RP| {
            let writes = k.and_p(condition, leads);
            let at = k.mad_wide(count, 4u32, list);
            k.when(writes, |k| k.store(at, 0, block));
            let one = k.select(condition, 1u32, 0u32);
            let next = k.add(count, one);
            k.set(count, next);
        };
        let has_keys = |k: &mut Builder, block: R32| match self.rule {
            MergeRule::Original => row.sees,
            MergeRule::Extended => k.lt_s(block, row.keys),
        };
        // Where the nearest slash is the end itself, which only one of the rules asks for.
        let touches = k.mov(0u32);
        slashes.turns(k, row.lane, |k, slash, exists| {
            let below = k.lt_s(slash, row.end);
            let below = k.and_p(below, exists);
            let end = k.sub(row.end, slash);
            let end = k.max_s(end, MERGED_BLOCK);
            let end = k.select(below, end, 0u32);
            if self.rule == MergeRule::Extended {
                let at_end = k.eq(slash, row.end);
                let at_end = k.and_p(at_end, exists);
                let at_end = k.any(at_end);
                k.when(at_end, |k| k.set(touches, 1u32));
            }
            let lanes = k.fresh();
            // The lanes whose ends lie behind the last block.
            let find = |k: &mut Builder| {
                let behind = k.gt_s(end, last_end);
                let found = k.ballot(behind);
                k.set(lanes, found);
            };
            find(k);
            k.while_loop(
                |k| k.ne(lanes, 0u32),
                |k| {
                    let reversed = k.brev(lanes);
                    let source = k.clz(reversed);
                    let next = k.shuffle_from(end, source);
                    let begin = k.sub(next, MERGED_BLOCK);
                    let begin = k.max_s(begin, last_end);
                    let end = k.add(begin, MERGED_BLOCK);
                    k.set(last_end, end);
                    let has_keys = has_keys(k, begin);
                    add(k, begin, has_keys);
                    find(k);
                },
            );
        });
        let none = k.eq(last_end, 0u32);
        let limit = match self.rule {
            MergeRule::Original => k.select(none, row.first, last_end),
            MergeRule::Extended => {
                let touches = k.ne(touches, 0u32);
                let begin = k.select(touches, 0u32, row.end);
                let lacks = k.and_p(none, row.sees);
                let has_room = k.ne(capacity, 0u32);
                let lacks = k.and_p(lacks, has_room);
                let has_keys = has_keys(k, begin);
                let lacks = k.and_p(lacks, has_keys);
                add(k, begin, lacks);
                k.mov(row.end)
            }
        };
        // Every lane reads what the first one has written.
        k.warp_barrier();
        Blocks { list, count, limit }
    }
}

impl RowBlock {
    fn new(k: &mut Builder, lane: R32, row_block: R32, q_len: R32, keys: R32) -> RowBlock {
        let first_row = k.mul(row_block, MERGED_BLOCK);
        let has_rows = k.lt_u(first_row, q_len);
        let shift = k.sub(keys, q_len);
        let first = k.add(first_row, shift);
        let end = k.add(first, MERGED_BLOCK);
        let has_keys = k.gt_s(end, 0u32);
        let sees = k.and_p(has_rows, has_keys);
        RowBlock { lane, first, end, sees, keys }
    }
}

impl Blocks {
    /// Whether some block has the key.
    fn have(&self, k: &mut Builder, key: R32) -> RP {
        // How many begin at or before the key, by steps that are the same in all lanes.
        let before = k.mov(0u32);
        let zeros = k.clz(self.count);
        let one = k.mov(1u32 << 31);
        let step = k.shr_u(one, zeros);
        let begin = k.mov(0u32);
        k.while_loop(
            |k| k.ne(step, 0u32),
            |k| {
                let probe = k.add(before, step);
                let at = k.mad_wide(probe, 4u32, self.list);
                let reads = k.le_u(probe, self.count);
                let found = k.mov(u32::MAX);
                k.when(reads, |k| {
                    let stored: R32 = k.load(at, -4);
                    k.set(found, stored);
                });
                let passes = k.le_u(found, key);
                k.when(passes, |k| {
                    k.set(before, probe);
                    k.set(begin, found);
                });
                let half = k.shr_u(step, 1u32);
                k.set(step, half);
            },
        );
        let some = k.ne(before, 0u32);
        let inside = k.sub(key, begin);
        let inside = k.lt_u(inside, MERGED_BLOCK);
        k.and_p(some, inside)
    }
}

/// Writes the verticals that no block has, and says how many they are.
fn write_columns(k: &mut Builder, row: &RowBlock, verticals: &List, blocks: &Blocks, list: R64) -> R32 {
    k.comment("columns");
    let count = k.mov(0u32);
    verticals.turns(k, row.lane, |k, vertical, exists| {
        let inside = k.lt_s(vertical, blocks.limit);
        let inside = k.and_p(inside, exists);
        let covered = blocks.have(k, vertical);
        let single = k.not_p(covered);
        let kept = k.and_p(inside, single);
        let lanes = k.ballot(kept);
        let below = k.lanes_below();
        let below = k.and(below, lanes);
        let position = k.popc(below);
        let position = k.add(position, count);
        let at = k.mad_wide(position, 4u32, list);
        k.when(kept, |k| k.store(at, 0, vertical));
        let found = k.popc(lanes);
        let next = k.add(count, found);
        k.set(count, next);
    });
    count
}
