//! Mutants of kernels that build indices.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::{
    Arch,
    kernels::index::MergeRule::{Extended, Original},
};

const SELECT: &str = "// select";
const ISLANDS: &str = "// islands";
const OFFSETS: &str = "// offsets";
const SHARE: &str = "// a share of the mass";
const MASSES: &str = "// masses";
/// Of the pooled selection.
const QUERIES: &str = "// mean queries";
const SCORES: &str = "// scores";
const SELECTION: &str = "// selection";
const HIGHEST: &str = "// the highest";
/// Of the choice between patterns.
const ESTIMATE: &str = "// the estimate";
const DIVERGENCE: &str = "// the divergence";

pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    vec![
        (
            scenes::vertical_slash(seed),
            vec![
                in_section(SELECT, "no barrier after the histogram is cleared", "bar.sync", 0, Drop),
                in_section(SELECT, "no barrier after counting", "bar.sync", 1, Drop),
                in_section(SELECT, "no barrier after a digit is chosen", "bar.sync", 2, Drop),
                in_section(SELECT, "no barrier in the prefix sum", "bar.sync", 3, Drop),
                in_section(
                    SELECT,
                    "counts stored, not added",
                    "red.shared.add.u32",
                    0,
                    Swap("red.shared.add.u32", "st.shared.b32"),
                ),
                in_section(SELECT, "wrong digit first", ", -8, 24;", 0, Swap("24", "16")),
                in_section(SELECT, "one score too many", "setp.lt.u32", 23, at_most()),
                in_section(SELECT, "ties go to all", "setp.gt.u32", 2, Swap(".gt", ".ge")),
                in_section(ISLANDS, "only one word before a slash looked at", "or.b32", 0, Rewrite(first_operand)),
                in_section(ISLANDS, "islands end 31 slashes early", ", 31;", 0, Swap("31", "0")),
                in_section(OFFSETS, "islands a block apart taken for alone", ", 128;", 0, Swap("128", "64")),
                in_section(OFFSETS, "islands begin where the one before ends", "max.s32", 2, Rewrite(first_operand)),
                in_section(OFFSETS, "islands know nothing of each other", "shfl.sync.up", 0, Rewrite(own_value)),
                in_section(SHARE, "a share of all scores but the last sum's", "bar.sync", 0, Drop),
                in_section(
                    MASSES,
                    "masses of one warp overwrite another's",
                    "red.shared.add.u32",
                    0,
                    Swap("red.shared.add.u32", "st.shared.b32"),
                ),
            ],
        ),
        (
            scenes::merged_ranges(Extended, seed),
            vec![
                in_section("// blocks", "one slash more than listed", "setp.lt.u32", 1, at_most()),
                in_section("// blocks", "slashes of no key taken", "setp.lt.u32", 2, Rewrite(always)),
                in_section("// blocks", "a range of 128 keys", "max.s32", 0, Swap(", 64;", ", 128;")),
                in_section("// blocks", "ranges overlap", "max.s32", 1, Rewrite(first_operand)),
                in_section("// blocks", "a block behind the last key", "setp.lt.s32", 2, Rewrite(always)),
                in_section("// blocks", "no block where no slash is near", "setp.eq.s32", 2, Rewrite(never)),
                in_section("// columns", "the last block not searched", "setp.le.u32", 0, Swap(".le", ".lt")),
                in_section("// columns", "a block taken for 80 keys", "setp.lt.u32", 3, Swap(", 64;", ", 80;")),
                in_section("// columns", "a vertical at the end taken", "setp.lt.s32", 0, at_most()),
            ],
        ),
        (
            scenes::merged_ranges(Original, seed),
            vec![
                in_section("// blocks", "order taken for disorder", "setp.lt.s32", 0, Swap(".lt", ".gt")),
                mutation("slashes not shifted by the keys before", "sub.s32", 2, Rewrite(no_shift)),
                in_section("// columns", "verticals behind the last range kept", "setp.lt.s32", 0, Rewrite(always)),
                in_section("// columns", "offsets past the count left as they were", "st.global", 1, Drop),
            ],
        ),
        (
            scenes::key_means(seed),
            vec![
                in_section(".pragma", "rows past the last one", "setp.lt.u32", 1, Rewrite(always)),
                in_section("shfl", "a group of rows left out", "add.rn.f32", 0, Rewrite(first_operand)),
            ],
        ),
        (
            scenes::block_sparse(seed),
            vec![
                in_section(QUERIES, "no barrier before means are read", "bar.sync", 0, Drop),
                in_section(QUERIES, "a mean stored in the next row", ", 272,", 0, Swap("272", "288")),
                in_section(SCORES, "the mean of the first row for all", ", 272,", 0, Swap("272", "0")),
                in_section(SCORES, "no wait for keys", "cp.async.wait_group", 0, Drop),
                in_section(SCORES, "a wait for one group too few", "cp.async.wait_group", 0, Swap(" 1;", " 2;")),
                in_section(SCORES, "lanes read what others' copies bring", "bar.warp.sync", 0, Drop),
                in_section(SCORES, "chunks of a key not turned", ", 16;", 0, Swap(", 16;", ", 0;")),
                in_section(SCORES, "copies land in the histograms", "cp.async.wait_group 0", 0, Drop),
                in_section(SCORES, "no barrier before the ring becomes scratch", "bar.sync", 0, Drop),
                in_section(SELECTION, "a row block past the bound", "setp.lt.u32", 0, Rewrite(always)),
                in_section(SELECTION, "a block past the diagonal", ", 63;", 1, Swap("63", "127")),
                in_section(SELECTION, "the diagonal not forced", "setp.ne.s32", 1, Rewrite(never)),
                in_section(HIGHEST, "no barrier after the histogram is cleared", "bar.warp.sync", 0, Drop),
                in_section(HIGHEST, "no barrier after counting", "bar.warp.sync", 1, Drop),
                in_section(HIGHEST, "no barrier after a digit is chosen", "bar.warp.sync", 2, Drop),
                mutation("a head without an entry computed", "setp.ge.u32", 0, Rewrite(never)),
                in_section(WEIGHTS, "weights relative to each lane's highest", "redux", 0, Rewrite(own_value)),
                in_section(WEIGHTS, "weights of what is not seen", "setp.lt.u32", 1, at_most()),
                in_section(MASSES, "what is forced not counted", "sub.s32", 4, Swap("sub.s32", "or.b32")),
                in_section(MASSES, "twice the share", "shr.u64", 0, Swap(", 31;", ", 30;")),
                in_section(MASSES, "a share beyond the budget", "min.u32", 1, Swap("min", "max")),
            ],
        ),
        (
            scenes::pattern_choice(seed),
            vec![
                in_section("// the mean query", "no barrier before the mean is read", "bar.sync", 0, Drop),
                in_section(ESTIMATE, "no barrier before scores are read", "bar.sync", 0, Drop),
                in_section(ESTIMATE, "a key block past the last one", "setp.lt.u32", 1, at_most()),
                in_section(ESTIMATE, "a sum over half of the lanes of a block", "shfl", 0, Swap(", 4, 31", ", 1, 31")),
                in_section(ESTIMATE, "the highest score of a warp alone", "max.f32", 9, Rewrite(first_operand)),
                in_section(DIVERGENCE, "columns past the last key", "setp.lt.u32", 3, Rewrite(always)),
                in_section(DIVERGENCE, "each lane of a block counts", "setp.eq.s32", 0, Rewrite(always)),
                in_section(DIVERGENCE, "the estimate alone", "add.rn.f32", 15, Rewrite(first_operand)),
                in_section(DIVERGENCE, "twice the divergence", "0f3EB17218", 0, Swap("0f3EB17218", "0f3F317218")),
                in_section("// the choice", "blocks where they diverge", "setp.lt.f32", 0, Swap(".lt", ".gt")),
                in_section("// the choice", "a head without queries in a map", "setp.eq.s32", 0, Rewrite(never)),
            ],
        ),
        (
            scenes::estimate_scores(Arch::Sm80, seed).unwrap(),
            vec![
                mutation("no wait for a tile of keys", "cp.async.wait_group", 1, Drop),
                mutation("no barrier before the probabilities are summed", "bar.sync", 3, Drop),
            ],
        ),
        (
            scenes::antidiagonal_sums(Arch::Sm80, seed),
            vec![
                in_section(STEPS, "no barrier before a stage is read", "bar.sync", 0, Drop),
                in_section(STEPS, "a wait for one group too few", "cp.async.wait_group", 0, Swap(" 1;", " 2;")),
                in_section(STEPS, "rows of queries not reversed", ", 15;", 0, Swap(", 15;", ", 0;")),
                in_section("// weights", "a cell past the last one seen", "setp.ge.s32", 0, Rewrite(always)),
                in_section("// weights", "lanes with maxima of their own", "shfl", 0, Swap(", 1, 31", ", 2, 31")),
            ],
        ),
        (
            scenes::antidiagonal_select(seed),
            vec![
                mutation("a chunk's maximum that one lane does not know", "shfl", 3, Swap(", 2, 31", ", 1, 31")),
                in_section("// masses", "no barrier before weights are added", "bar.sync", 0, Drop),
                in_section("// share", "twice the share", "shr.u64", 0, Swap(", 31;", ", 30;")),
                in_section("// share", "what is forced not counted", "sub.s32", 0, Swap("sub.s32", "or.b32")),
                in_section("// limit", "a limit that adds", "min.u32", 0, Swap("min", "max")),
            ],
        ),
    ]
}
