//! Mutants of the row kernel, of what comes with it, and of the selection.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::Arch;

const SEGMENT: &str = "// the segment and its largest";
const BEST: &str = "// the best token";
const NEAR: &str = "// vectors that count";
const LIGHT: &str = "// leave out";
const AGAIN: &str = "// noted vectors";
const MERGE: &str = "// merge the segments";
const CUT: &str = "// cut by a histogram";
const CUT_DRAW: &str = "// draw from what is cut off";
const CHANGED: &str = "// changed tokens";
const ROW: &str = "// statistics of the row";
const TOKEN: &str = "// statistics of the token";
/// Of the selection of rows.
const COUNT: &str = "// count the rows";
const RANKS: &str = "// ranks";
const STILL: &str = "// what is still";

pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    vec![
        (
            scenes::rows(Arch::Sm80, seed),
            vec![
                mutation("no wait for a segment", "cp.async.wait_group", 0, Drop),
                mutation("segments that no warp takes", "atom.shared.add.u32", 0, Swap(", 1;", ", 2;")),
                in_section(SEGMENT, "no barrier before a lane's logits are looked at", "bar.warp.sync", 0, Drop),
                in_section(BEST, "no barrier behind it", "bar.warp.sync", 1, Drop),
                in_section(BEST, "the last of equally good tokens", "redux.sync.min", 1, Swap(".min", ".max")),
                in_section("// weights", "no barrier before the best is put back", "bar.warp.sync", 0, Drop),
                in_section("// a draw", "a draw from the segment before", "shfl.sync.idx", 0, Swap(", 31,", ", 30,")),
                in_section(AGAIN, "no barrier before what is noted is read", "bar.warp.sync", 1, Drop),
                in_section("// who is last", "warps do not count themselves", "atom.acq_rel", 0, Swap(".add", ".min")),
                in_section("// who is last", "blocks do not count themselves", "atom.release", 0, Swap(".add", ".min")),
                in_section(TOKEN, "no barrier before the loop's registers come back", "bar.warp.sync", 0, Drop),
                in_section("// collect", "no barrier before notes are read", "bar.warp.sync", 0, Drop),
                in_section("// collect", "no barrier before tokens get their mass", "bar.warp.sync", 2, Drop),
                in_section(LIGHT, "no barrier before the list is ranked", "bar.warp.sync", 1, Drop),
                in_section("// rows for the whole block", "no barrier before the queue is read", "bar.sync", 0, Drop),
                in_section("// crowded", "no barrier before the list is counted", "bar.sync", 0, Drop),
                in_section(MERGE, "the last of equally good segments", "redux.sync.min", 0, Swap(".min", ".max")),
                in_section(MERGE, "weights relative to nothing", "sub.rn.f32", 0, Rewrite(first_operand)),
            ],
        ),
        (
            scenes::cold_rows(Arch::Sm80, seed),
            vec![
                in_section(NEAR, "weights that count left out", "fma.rn.f32", 0, Swap("0fC2000000", "0fC0800000")),
                in_section(NEAR, "a vector short", "or.b32", 11, Swap(", 128;", ", 64;")),
                in_section(NEAR, "two lanes note in one place", "sub.s32", 0, Rewrite(first_operand)),
                in_section(AGAIN, "no barrier before what is left is read", "bar.warp.sync", 1, Drop),
                in_section(AGAIN, "lanes without a vector offer one", "setp.lt.u32", 1, Rewrite(always)),
                in_section(WEIGHTS, "few vectors, and none of them", "setp.lt.u32", 10, Rewrite(never)),
                in_section(
                    LIGHT,
                    "tokens with many worse ones left out",
                    "mul.lo.s64",
                    0,
                    Swap("mul.lo.s64", "max.u64"),
                ),
                in_section(LIGHT, "a limit where there is none", "setp.gt.u64", 0, Rewrite(always)),
                in_section(ROW, "an entropy that nobody has computed", "selp.f32", 2, Rewrite(first_choice)),
            ],
        ),
        (
            scenes::draws(seed),
            vec![
                in_section(ROW, "wrong multiplier of Philox", "3528531795", 1, Swap("3528531795", "3528531797")),
                in_section(ROW, "wrong key schedule of Philox", "2654435769", 0, Swap("2654435769", "2654435768")),
                in_section("// keep", "one token fewer than top-k keeps", "setp.le.u32", 0, Swap(".le", ".lt")),
                in_section("// draw from", "no barrier before what is kept is read", "bar.warp.sync", 0, Drop),
                in_section("// draw from", "no barrier before the token is read", "bar.warp.sync", 1, Drop),
            ],
        ),
        (
            scenes::crowded_rows(seed),
            vec![
                in_section("// offers", "a raised bound that is not told", "mov.b32", 2, Drop),
                in_section(CUT, "bounds that segments raised are not looked at", "setp.ge.u32", 0, Rewrite(never)),
                in_section(CUT, "bins as they were", "st.shared.v4", 0, Drop),
                in_section(CUT, "no barrier before bins are filled", "bar.sync", 2, Drop),
                in_section(CUT, "tokens that do not count", "red.shared", 1, Rewrite(counts_nothing)),
                in_section(CUT, "no barrier before bins are read", "bar.sync", 3, Drop),
                in_section(CUT, "the last bin that cuts", "redux.sync.max", 3, Swap(".max", ".min")),
                in_section(CUT_DRAW, "no barrier before segments are drawn from", "bar.sync", 0, Drop),
            ],
        ),
        (
            scenes::changed_rows(seed),
            vec![
                in_section("// without", "a biased token stays where it was", "st.shared.b16", 0, Drop),
                in_section("// without", "a credited token stays where it was", "st.shared.b16", 1, Drop),
                in_section("// without", "the best is looked for too early", "bar.warp.sync", 1, Drop),
                in_section(CHANGED, "no biases", "add.rn.f32", 1, Rewrite(first_operand)),
                in_section(CHANGED, "no credits", "add.rn.f32", 5, Rewrite(first_operand)),
                in_section(CHANGED, "tokens of both lists count twice", "4294967295,", 0, Rewrite(second_choice)),
                in_section(CHANGED, "changed tokens read before they are written", "bar.warp.sync", 1, Drop),
                in_section(CHANGED, "the best changed token weighs twice", "setp.ne.s32", 4, Rewrite(always)),
            ],
        ),
        (
            scenes::credits(seed),
            vec![
                in_section("// credits", "another position's credits", "setp.eq.s32", 0, Rewrite(always)),
                in_section("// credits", "a new request inherits credits", "selp.b32", 1, Rewrite(second_choice)),
                in_section("// credits", "credits do not shrink", "mul.rn.f32", 0, Rewrite(first_operand)),
                in_section("// credits", "the most credit makes room", "redux.sync.min", 0, Swap(".min", ".max")),
                in_section("// credits", "nothing for the best token", "add.rn.f32", 3, Rewrite(first_operand)),
                in_section("// credits", "all credits in one place", "setp.lt.u32", 2, Rewrite(never)),
            ],
        ),
        (
            scenes::merged_rows(seed).unwrap(),
            vec![
                mutation("every segment is the first part's", "div.u32", 0, Rewrite(no_shift)),
                in_section("// collect", "offers of the first part for all", "div.u32", 0, Rewrite(no_shift)),
                in_section("// collect", "no barrier before the list is counted", "bar.sync", 1, Drop),
                in_section(CUT, "offers of the first part for all", "div.u32", 1, Rewrite(no_shift)),
            ],
        ),
        (
            scenes::selection(Arch::Sm80, seed),
            vec![
                in_section(COUNT, "no barrier before rows are counted", "bar.sync", 0, Drop),
                mutation("nobody waits for a refresh", "256, 0, ", 0, Swap("256, 0", "0, 0")),
                mutation("those that wait take the step", ", 256;", 2, Swap(", 256;", ", 0;")),
                in_section(COUNT, "the threshold itself selects", "setp.gt.f32", 0, Swap(".gt", ".ge")),
                in_section(COUNT, "every decoded row is doubted", "setp.lt.f32", 0, Rewrite(always)),
                in_section("// the schedule", "no remainder", "setp.lt.u32", 0, Rewrite(never)),
                in_section("// the schedule", "a step that takes nothing", "setp.ge.u32", 0, Swap(", 1;", ", 0;")),
                in_section("// the order", "noise of another draw", "xor.b32", 4, Swap("xor", "or")),
                in_section("// picks", "the strictest limit of two", "min.f32", 0, Swap("min", "max")),
                in_section("// picks", "no barrier before the largest is known", "bar.sync", 0, Drop),
                in_section("// runs", "the last of equals leads its run", "setp.ge.u32", 0, Swap(".ge", ".gt")),
                in_section("// runs", "no barrier before runs are walked", "bar.sync", 0, Drop),
                in_section(RANKS, "the least first", "not.b32", 0, Swap("not", "mov")),
                in_section(RANKS, "an exchange without a barrier", "bar.sync", 0, Drop),
                in_section(RANKS, "ranks read before they are written", "bar.sync", 1, Drop),
                in_section(RANKS, "an exchange the wrong way", "xor.pred", 0, Swap("xor", "or")),
                in_section("// down", "the factor counts from eleven", ", 2;", 0, Swap(", 2;", ", 12;")),
                in_section("// down", "no barrier before entropies are added", "bar.sync", 2, Drop),
                in_section("// tokens", "any decoded token is edited", "setp.gt.f32", 0, Rewrite(always)),
                in_section("// tokens", "a doubted token stays", "selp.b32", 0, Rewrite(second_choice)),
                in_section("// tokens", "a wrong log-probability", "sub.rn.f32", 0, Swap("sub", "add")),
                in_section(STILL, "given positions listed as masks", "setp.eq", 0, Swap(".eq", ".ne")),
                in_section("// is the block", "an end behind a mask counts", "setp.lt.u32", 0, Rewrite(always)),
                in_section("// is the block", "given tokens are filled", "and.b32", 3, Rewrite(first_word)),
                in_section(
                    "// is the block",
                    "the next block begins where this one did",
                    "add.s32",
                    0,
                    Rewrite(no_shift),
                ),
                in_section(STILL, "words read while they are written", "bar.sync", 1, Drop),
                mutation("blocks do not count themselves", "atom.global.add", 0, Swap(", 1;", ", 0;")),
            ],
        ),
    ]
}
