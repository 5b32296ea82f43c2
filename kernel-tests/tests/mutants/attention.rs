//! Mutants of attention kernels for `sm_80`, and of the merge of parts.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::{
    Arch,
    kernels::attention::Pattern::{AShape, BlockSparse, Dense, TriShape, VerticalSlash},
};

const LOOP: &str = "// key blocks";

pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    vec![
        (
            scenes::attention(Dense, Arch::Sm80, seed),
            vec![
                in_section(LOOP, "no barrier before a tile is read", "bar.sync", 0, Drop),
                in_section(LOOP, "no wait for a tile", "cp.async.wait_group", 0, Drop),
                in_section(LOOP, "a wait for all groups but one", "cp.async.wait_group 0", 0, Swap(" 0", " 1")),
                in_section(LOOP, "barrier before the wait, not after", "cp.async.wait_group", 0, Later),
                in_section(LOOP, "a tile's copies are not committed", "cp.async.commit_group", 0, Drop),
                mutation("the queries' copies are not committed", "cp.async.commit_group", 0, Drop),
                mutation("no wait for the queries", "cp.async.wait_group", 0, Drop),
                mutation("no barrier before the queries are read", "bar.sync", 0, Drop),
                in_section(
                    "cp.async.wait_group 1",
                    "wrong swizzle of the queries",
                    "xor.b32",
                    0,
                    Swap(", 32;", ", 48;"),
                ),
                in_section(LOOP, "a copy lands in the next row", "cp.async.cg", 1, Swap("],", "+128],")),
                in_section(LOOP, "keys of the wrong rows", "ldmatrix", 1, Swap("+2048]", "+2176]")),
                in_section(LOOP, "values not transposed", ".trans", 0, Swap(".trans", "")),
                in_section(LOOP, "right factor's registers exchanged", "mma.sync", 0, Rewrite(exchange_right)),
                in_section(LOOP, "a query sees the key after its own", "setp.ge.s32", 4, Swap(", 1;", ", 0;")),
                in_section(LOOP, "no causal mask", "setp.gt.s32", 0, Rewrite(never)),
                in_section(
                    "// the first tile",
                    "tiles past the last key taken as whole",
                    "setp.le.s32",
                    0,
                    Swap(".le.", ".ge."),
                ),
                in_section(LOOP, "the output shrinks only if all rows do", "vote.sync.any", 2, Swap(".any", ".all")),
                in_section(OUTPUT, "lanes read the output before others store", "bar.warp.sync", 0, Drop),
                in_section(OUTPUT, "LSE of one row too many", "setp.lt.u32", 0, at_most()),
                in_section(OUTPUT, "one output row too many", "setp.lt.u32", 3, at_most()),
                in_section(OUTPUT, "output rows without a bound", "st.global.v4", 0, Rewrite(unguarded)),
            ],
        ),
        (
            scenes::dense_full(Arch::Sm80, seed),
            vec![in_section(LOOP, "keys past the last one seen", "setp.ge.s32", 3, Rewrite(never))],
        ),
        (
            scenes::attention(AShape, Arch::Sm80, seed),
            vec![in_section(LOOP, "a window one key too long", "setp.lt.s32", 1, at_most())],
        ),
        (
            scenes::attention(TriShape, Arch::Sm80, seed),
            vec![in_section(LOOP, "the last rows not dense", "setp.ge.s32", 4, Rewrite(never))],
        ),
        (
            scenes::attention(VerticalSlash, Arch::Sm80, seed),
            vec![
                in_section("// the first key block", "the first offset overlaps", "setp.eq.s32", 2, Swap("eq", "ne")),
                in_section("// columns", "a partial tile of columns not filled up", "], 2147483647;", 0, Drop),
                in_section(LOOP, "lanes read columns before others store", "bar.warp.sync", 0, Drop),
                in_section("// columns", "no barrier before columns are read", "bar.sync", 0, Drop),
            ],
        ),
        (
            scenes::attention(BlockSparse, Arch::Sm80, seed),
            vec![in_section(LOOP, "one block more than listed", "setp.lt.u32", 0, at_most())],
        ),
        (
            scenes::paged(Dense, Arch::Sm80, seed),
            vec![
                in_section(LOOP, "a page past the last one read", "setp.lt.u32", 7, at_most()),
                in_section(FIRST, "another page's rows", "shr.u32", 1, Swap(", 4;", ", 5;")),
                in_section(LOOP, "another row of the page", "and.b32", 1, Swap(", 15;", ", 7;")),
                in_section(LOOP, "a page's number taken for the next one's", "ld.global.nc", 0, Swap("]", "+4]")),
            ],
        ),
        (
            scenes::attention_parts(Dense, Arch::Sm80, seed),
            vec![
                in_section(PART, "rows past the first block left out", "shr.u32", 0, Swap(", 7;", ", 8;")),
                in_section(PART, "parts shorter than the least", "min.u32", 0, Swap("min", "max")),
                in_section(PART, "a part that goes on to the end", "min.u32", 1, Swap("min", "max")),
                in_section(PART, "places without a part computed", "setp.ge.u32", 0, Rewrite(never)),
                in_section(PART, "notes of one KV head for all", ", 16, %d", 0, Swap(", 16,", ", 0,")),
                in_section(PART, "notes that nobody writes", "st.global.v4", 0, Drop),
                in_section("// queries", "rows of the first head for all", "sub.s32", 1, Rewrite(no_shift)),
                in_section(LOOP, "the part's lowest block left out", "setp.ge.s32", 0, Swap(".ge", ".gt")),
                in_section(OUTPUT, "parts taken for all", "setp.eq.s32", 0, Rewrite(always)),
                in_section(OUTPUT, "LSE of the first head for all", "sub.s32", 0, Rewrite(no_shift)),
                in_section(OUTPUT, "a part's row too many", "setp.lt.u32", 14, at_most()),
            ],
        ),
        (
            scenes::attention_parts(BlockSparse, Arch::Sm80, seed),
            vec![
                in_section(PART, "every part from the first entry on", "mul.lo.s32", 1, Rewrite(no_shift)),
                in_section(LOOP, "an entry of the next part", "setp.lt.u32", 0, at_most()),
            ],
        ),
        (
            scenes::merge(Arch::Sm80, seed),
            vec![
                mutation("a row past the last one", "setp.ge.u32", 0, Rewrite(never)),
                mutation("one part merged with nothing", "setp.lt.u32", 0, Rewrite(never)),
                mutation("the next row block's parts", "shr.u32", 1, Swap(", 7;", ", 6;")),
                in_section("// weights", "a weight of a part that there is not", "setp.lt.u32", 0, at_most()),
                in_section("// weights", "the largest of half the parts", "shfl", 4, Swap(", 1, 31", ", 2, 31")),
                in_section("// weights", "infinities subtracted", "setp.eq.f32", 0, Rewrite(never)),
                in_section("// weights", "weights in another base", "mul.rn.f32", 0, Rewrite(first_operand)),
                in_section("// rows", "all parts with one weight", "shfl.sync.idx", 1, Drop),
                in_section("// output", "rows that see nothing divided by 0", "setp.eq.f32", 0, Rewrite(never)),
                in_section("// output", "rows of the first head for all", "sub.s32", 0, Rewrite(no_shift)),
            ],
        ),
    ]
}
