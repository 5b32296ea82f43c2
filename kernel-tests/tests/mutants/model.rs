//! Mutants of what a transformer needs around attention.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::Arch;

const PRODUCTS: &str = "// products";
const ENDS: &str = "// a tile ends";
const LEFT: &str = "// a part";
const ALL_PARTS: &str = "// all parts";

pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    vec![
        (
            scenes::rms_norm(Arch::Sm80, seed),
            vec![
                mutation("no barrier before warps' sums are added", "bar.sync", 0, Drop),
                mutation("sums stored after the barrier", "st.shared.f32", 0, Later),
                mutation("two warps store in one place", "shr.u32", 0, Swap(", 5;", ", 6;")),
                in_section("// scale", "no epsilon", "add.rn.f32", 0, Rewrite(first_operand)),
                mutation("a chunk past the row", "setp.lt.u32", 0, at_most()),
            ],
        ),
        (
            scenes::linear(false, Arch::Sm80, seed),
            vec![
                in_section(STEPS, "no barrier before a stage is read", "bar.sync", 0, Drop),
                in_section(STEPS, "no wait for a stage", "cp.async.wait_group", 0, Drop),
                in_section(STEPS, "a wait for one group too few", "cp.async.wait_group", 0, Swap(" 2;", " 3;")),
                in_section(WEIGHTS, "inner elements behind the last one read", "setp.lt.u32", 0, Rewrite(always)),
                in_section(WEIGHTS, "rows behind the last output read", "setp.lt.u32", 2, Rewrite(always)),
                in_section(WEIGHTS, "four rows down without the swizzle", "xor.b32", 0, Swap(", 64;", ", 0;")),
                in_section("// x", "rows behind the last one read", "setp.lt.u32", 1, Rewrite(always)),
                in_section(PRODUCTS, "weights of the wrong rows", "ldmatrix", 1, Swap("+2048]", "+1024]")),
                in_section(PRODUCTS, "right factor's registers exchanged", "mma.sync", 0, Rewrite(exchange_right)),
                in_section(ENDS, "no barrier before groups are added", "bar.sync", 0, Drop),
                in_section(ENDS, "the other group's sums left out", "add.rn.f32", 0, Rewrite(first_operand)),
                in_section(LEFT, "both parts of a block in one place", "selp.b32", 0, Swap(", 1, 0,", ", 0, 0,")),
                in_section(LEFT, "steps not counted", "atom.global.add", 0, Rewrite(counts_nothing)),
                in_section(LEFT, "everybody the last one", "setp.eq.s32", 1, Rewrite(always)),
                in_section(ALL_PARTS, "a ticket not reset", "st.global.b32", 0, Drop),
                in_section(ALL_PARTS, "the first part taken for a second one", "setp.le.u32", 0, Swap(".le.", ".lt.")),
                in_section(ALL_PARTS, "the next tile's parts added", "setp.lt.u32", 1, Swap(".lt.", ".le.")),
                in_section("// output", "outputs exchanged with the wrong lane", "shfl", 0, Swap(", 4, 31", ", 8, 31")),
                in_section("// output", "one row too many", "setp.lt.u32", 5, at_most()),
                in_section("// output", "outputs behind the last one", "setp.lt.u32", 2, at_most()),
            ],
        ),
        (
            scenes::linear(true, Arch::Sm80, seed),
            vec![
                in_section("// output", "the gate's sign", "0fBFB8AA3B", 0, Swap("0fBFB8AA3B", "0f3FB8AA3B")),
                in_section("// output", "a sum not cleared for the next tile", ", 0f00000000;", 0, Drop),
            ],
        ),
        (scenes::rope(Arch::Sm80, seed), vec![mutation("rotated the other way", "neg.f32", 0, Swap("neg", "mov"))]),
        (scenes::swiglu(Arch::Sm80, seed), vec![mutation("gate taken for up", "[up]", 0, Swap("[up]", "[gate]"))]),
        (scenes::gather(Arch::Sm80, seed), vec![mutation("an index equal to the bound", "setp.lt.u32", 0, at_most())]),
        (scenes::scatter(Arch::Sm80, seed), vec![mutation("an index equal to the bound", "setp.lt.u32", 0, at_most())]),
        (
            scenes::embed(Arch::Sm80, seed),
            vec![
                in_section("// the rows that", "a finished block is not written", ", 64;", 0, Swap(", 64;", ", 0;")),
                in_section(
                    "// the rows that",
                    "the window ends with the block",
                    "setp.eq.s32",
                    2,
                    Swap(", 4;", ", 9;"),
                ),
                in_section("// its cache row", "an entry behind the table", "setp.lt.u32", 0, at_most()),
                in_section("// the first block", "segments overlap", "sub.s32", 1, Swap("sub", "add")),
            ],
        ),
        (
            scenes::head_rows(Arch::Sm80, seed),
            vec![
                mutation("an entry behind the list", "setp.lt.u32", 0, at_most()),
                in_section("// the rows that", "rows not shifted", "sub.s32", 3, Swap("sub", "add")),
            ],
        ),
    ]
}
