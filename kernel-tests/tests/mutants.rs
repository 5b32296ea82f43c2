//! Mutants of generated kernels: each has one seeded mistake in its text, and each must be caught without a GPU, by the
//! sanitizer of the embedded backend or by the reference. The table is printed.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use kernel_core::{Device, Error};
use kernel_tests::testing::{
    self,
    scenes::{self, Scene},
};
use ptx::{
    Arch,
    kernels::{
        attention::Pattern::{AShape, BlockSparse, Dense, TriShape, VerticalSlash},
        index::MergeRule::{Extended, Original},
    },
};
use std::{collections::BTreeSet, fmt::Write as _, io::Write as _};

/// A change of a line of a text.
enum Change {
    /// The line is gone.
    Drop,
    /// The line comes after the next one.
    Later,
    /// The line comes after the next one that has this piece.
    Past(&'static str),
    /// Another line stands there.
    Rewrite(fn(&str) -> String),
    /// The first such piece of the line becomes another.
    Swap(&'static str, &'static str),
}
use Change::{Drop, Later, Past, Rewrite, Swap};

/// A mistake: in the `nth` line that has `pattern`, after the line that has `section`.
struct Mutation {
    what: &'static str,
    section: &'static str,
    pattern: &'static str,
    nth: usize,
    change: Change,
}

impl Mutation {
    /// The mutated text, or why there is none.
    fn apply(&self, text: &str) -> Result<String, String> {
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        let start = lines.iter().position(|line| line.contains(self.section)).ok_or("no such section")?;
        let found = (start..lines.len()).filter(|&i| lines[i].contains(self.pattern)).nth(self.nth);
        let at = found.ok_or("no such line")?;
        match self.change {
            Drop => drop(lines.remove(at)),
            Later => lines.swap(at, at + 1),
            Past(piece) => {
                let after = (at + 1..lines.len()).find(|&i| lines[i].contains(piece)).ok_or("no such line after it")?;
                lines[at..=after].rotate_left(1);
            }
            Rewrite(rewrite) => lines[at] = rewrite(&lines[at]),
            Swap(from, to) if lines[at].contains(from) => lines[at] = lines[at].replacen(from, to, 1),
            Swap(..) => return Err(format!("nothing to change in `{}`", lines[at].trim())),
        }
        let mutated = lines.join("\n") + "\n";
        if mutated == text { Err("the text stays the same".into()) } else { Ok(mutated) }
    }
}

fn in_section(
    section: &'static str,
    what: &'static str,
    pattern: &'static str,
    nth: usize,
    change: Change,
) -> Mutation {
    Mutation { what, section, pattern, nth, change }
}

fn mutation(what: &'static str, pattern: &'static str, nth: usize, change: Change) -> Mutation {
    in_section("{", what, pattern, nth, change)
}

/// `setp.xx %p, a, b` that never holds.
fn never(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let kind = line.trim().split(' ').next().unwrap().rsplit('.').next().unwrap();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    setp.gt.{kind} {target}, {}, {};", operands[1], operands[1])
}

/// An instruction of two operands becomes a copy of the first.
fn first_operand(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.f32 {target}, {};", operands[1])
}

/// What all lanes would have in common is each lane's own.
fn own_value(line: &str) -> String {
    let operands: Vec<&str> = line.trim().split([' ', ',']).filter(|piece| !piece.is_empty()).collect();
    format!("    mov.b32 {}, {};", operands[1], operands[2])
}

/// The difference, or the quotient, of two integers becomes 0.
fn no_shift(line: &str) -> String {
    let target = line.trim().split([' ', ',']).nth(1).unwrap();
    format!("    mov.b32 {target}, 0;")
}

/// The two registers of an `mma`'s right factor change places.
fn exchange_right(line: &str) -> String {
    let groups: Vec<&str> = line.split('{').collect();
    let (pair, rest) = groups[3].split_once('}').unwrap();
    let (first, second) = pair.split_once(", ").unwrap();
    [groups[0], groups[1], groups[2], &format!("{second}, {first}}}{rest}"), groups[4]].join("{")
}

/// An atomic addition of nothing.
fn counts_nothing(line: &str) -> String {
    let (before, _) = line.rsplit_once(", ").unwrap();
    format!("{before}, 0;")
}

/// `setp.xx %p, a, b` that always holds.
fn always(line: &str) -> String {
    let line = never(line);
    line.replacen("setp.gt", "setp.ge", 1)
}

/// A wait on an mbarrier that is over at once.
fn no_wait(line: &str) -> String {
    let predicate = line.trim().split([' ', ',']).nth(1).unwrap();
    let parity = line.split(", ").nth(2).unwrap();
    format!("    setp.eq.s32 {predicate}, {parity}, {parity};")
}

/// A bulk copy whose row and column are exchanged.
fn exchange_coordinates(line: &str) -> String {
    let (before, rest) = line.rsplit_once('{').unwrap();
    let (first, rest) = rest.split_once(", ").unwrap();
    let (second, rest) = rest.split_once(", ").unwrap();
    format!("{before}{{{second}, {first}, {rest}")
}

/// `selp %r, a, b, %p` always takes b.
fn second_choice(line: &str) -> String {
    let operands: Vec<&str> = line.trim().trim_end_matches(';').split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.b32 {target}, {};", operands[2])
}

/// `selp %r, a, b, %p` always takes a.
fn first_choice(line: &str) -> String {
    let operands: Vec<&str> = line.trim().split(", ").collect();
    let target = operands[0].split(' ').nth(1).unwrap();
    format!("    mov.b32 {target}, {};", operands[1])
}

/// The combination of two words becomes a 1.
fn first_word(line: &str) -> String {
    let target = line.trim().split([' ', ',']).nth(1).unwrap();
    format!("    mov.b32 {target}, 1;")
}

const LOOP: &str = "// key blocks";
const OUTPUT: &str = "// output";
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
const PART: &str = "// which rows, and which part of the keys";
const SELECT: &str = "// select";
const ISLANDS: &str = "// islands";
const OFFSETS: &str = "// offsets";
const SHARE: &str = "// a share of the mass";
const MASSES: &str = "// masses";
const STEPS: &str = "// steps";
/// Of products of few rows.
const WEIGHTS: &str = "// weights";
const PRODUCTS: &str = "// products";
const ENDS: &str = "// a tile ends";
const LEFT: &str = "// a part";
const ALL_PARTS: &str = "// all parts";
/// Of the pooled selection.
const QUERIES: &str = "// mean queries";
const SCORES: &str = "// scores";
const SELECTION: &str = "// selection";
/// Of the selection of rows.
const COUNT: &str = "// count the rows";
const RANKS: &str = "// ranks";
const STILL: &str = "// what is still";
const HIGHEST: &str = "// the highest";
/// Of the choice between patterns.
const ESTIMATE: &str = "// the estimate";
const DIVERGENCE: &str = "// the divergence";

fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    let at_most = || Swap("setp.lt", "setp.le");
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

/// Sections of a kernel for `sm_90a`.
const PRODUCER: &str = "// producer";
const BLOCKS: &str = "// blocks";
const COLUMNS: &str = "// columns";
const CONSUMER: &str = "// consumer";
const FIRST: &str = "// the first tile";
const TILES: &str = "// tiles";
const LAST: &str = "// the last values";
const FOLLOWING: &str = "// on to the next row block";
const NEXT: &str = "// which place is next";
const KEYS: &str = "// keys";
const LANES: &str = "// all lanes";

/// Mutants of kernels with producers and consumers.
fn hopper_mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    let arch = Arch::Sm90a;
    let (init, wait, arrive, box_copy) = ("mbarrier.init", "mbarrier.try_wait", "mbarrier.arrive", "cp.async.bulk");
    let (product_wait, product_fence) = ("wgmma.wait_group", "wgmma.fence");
    let dense = vec![
        mutation("the queries' barrier not initialised", init, 0, Drop),
        mutation("a stage full with one warp missing", init, 2, Swap(" 64;", " 32;")),
        mutation("a stage free with half of the readers", init, 3, Swap(" 256;", " 128;")),
        mutation("barriers used before they are initialised", "bar.sync 0", 0, Drop),
        in_section(PRODUCER, "queries awaited by half their bytes", "expect_tx", 0, Swap("32768", "16384")),
        in_section(BLOCKS, "more bytes awaited than come", "expect_tx", 0, Swap("16384", "32768")),
        in_section(BLOCKS, "one box of two not copied", box_copy, 1, Drop),
        in_section(BLOCKS, "a box in the wrong place", box_copy, 1, Swap("+8192]", "+4096]")),
        in_section(BLOCKS, "a box from the wrong place", box_copy, 1, Rewrite(exchange_coordinates)),
        in_section(BLOCKS, "a stage filled before it is free", wait, 0, Rewrite(no_wait)),
        in_section(BLOCKS, "the producer waits for the wrong phase", "xor.b32", 0, Swap(", 1;", ", 0;")),
        in_section(BLOCKS, "the phase never turns back", "xor.b32", 1, Swap("xor", "or")),
        in_section(BLOCKS, "warps without copies do not arrive", "mbarrier.arrive.shared", 0, Drop),
        in_section(BLOCKS, "copied rows not fenced for the products", "fence.proxy.async", 0, Drop),
        in_section(BLOCKS, "no wait for copied rows", "cp.async.wait_group", 0, Drop),
        in_section(PRODUCER, "rows copied without the swizzle", "xor.b32", 0, Rewrite(first_operand)),
        in_section(BLOCKS, "blocks past the last key taken as whole", "setp.le.s32", 0, Rewrite(always)),
        in_section(BLOCKS, "the end not noted", "st.shared.v2", 1, Drop),
        in_section(CONSUMER, "no wait for the queries", wait, 0, Rewrite(no_wait)),
        in_section(CONSUMER, "no wait for the first keys", wait, 1, Rewrite(no_wait)),
        in_section(CONSUMER, "more registers than there are", "setmaxnreg", 0, Swap("232", "240")),
        in_section(CONSUMER, "wrong stride between groups of rows", "1073741888", 0, Swap("1073741888", "1073741856")),
        in_section(CONSUMER, "wrong swizzle of the keys", "1073741888", 0, Swap("1073741888", "-2147483584")),
        in_section(CONSUMER, "wrong distance of the values' slabs", "33554432", 1, Swap("33554432", "16777216")),
        in_section(FIRST, "registers not fenced for the first product", product_fence, 0, Drop),
        in_section(FIRST, "the next step of the keys skipped", "add.s64", 3, Swap(", 2;", ", 4;")),
        in_section(FIRST, "the second slab of the keys missed", ", 512;", 0, Swap("512", "8")),
        in_section(FIRST, "a product's group not committed", "wgmma.commit_group", 0, Drop),
        in_section(FIRST, "scores read before their product", product_wait, 0, Drop),
        in_section(FIRST, "keys released before their product", product_wait, 0, Past(arrive)),
        in_section(FIRST, "the first keys never released", arrive, 0, Drop),
        in_section(FIRST, "no causal mask", "setp.gt.s32", 0, Rewrite(never)),
        in_section(FIRST, "queries see the key after their own", "add.s32", 2, Swap(", 0;", ", 1;")),
        in_section(TILES, "scores not fenced before they are set again", product_fence, 0, Drop),
        in_section(TILES, "stages half a block apart", ", 16384;", 0, Swap("16384", "8192")),
        in_section(TILES, "no wait for values", wait, 0, Rewrite(no_wait)),
        in_section(TILES, "wrong step down the values", ", 128;", 0, Swap("128", "64")),
        in_section(TILES, "values not transposed", "1, 1, 1;", 0, Swap("1, 1, 1;", "1, 1, 0;")),
        in_section(TILES, "no wait for scores in the loop", product_wait, 0, Drop),
        in_section(TILES, "a wait for all products but two", product_wait, 0, Swap(" 1;", " 2;")),
        in_section(TILES, "no wait for the output", product_wait, 1, Drop),
        in_section(TILES, "values released before their product", product_wait, 1, Past(arrive)),
        in_section(TILES, "the output shrinks only if all rows do", "vote.sync.any", 0, Swap(".any", ".all")),
        in_section(LAST, "the last product not awaited", product_wait, 0, Swap(" 0;", " 1;")),
        in_section(OUTPUT, "one output row too many", "setp.lt.u32", 2, Swap("setp.lt", "setp.le")),
        in_section(CONSUMER, "queries never given back", arrive, 0, Drop),
        in_section(LAST, "the last values never given back", arrive, 0, Drop),
        in_section(FOLLOWING, "the end's stage of values never given back", arrive, 0, Drop),
        in_section(FOLLOWING, "the end's stage of keys never given back", arrive, 1, Drop),
        in_section(FOLLOWING, "the phase of the queries stays", "xor.b32", 1, Swap(", 1;", ", 0;")),
        in_section(NEXT, "the next place overwritten before all have read it", wait, 0, Rewrite(no_wait)),
        in_section(NEXT, "the count of places not put back", "atom.global.inc", 0, Swap(".inc.", ".add.")),
        in_section(NEXT, "the next place never told", arrive, 0, Drop),
        in_section(NEXT, "the next place read before it is there", wait, 1, Rewrite(no_wait)),
        in_section(NEXT, "the next place never given back", arrive, 1, Drop),
    ];
    vec![
        (scenes::attention(Dense, arch, seed), dense),
        (
            scenes::dense_full(arch, seed),
            vec![in_section(FIRST, "keys past the last one seen", "setp.ge.s32", 0, Rewrite(never))],
        ),
        (
            scenes::attention(AShape, arch, seed),
            vec![in_section(FIRST, "a window one key too long", "setp.lt.s32", 0, Swap("setp.lt", "setp.le"))],
        ),
        (
            scenes::attention(VerticalSlash, arch, seed),
            vec![
                in_section(COLUMNS, "columns of the second group not kept", "+4096]", 0, Drop),
                in_section(COLUMNS, "columns read before they are found", wait, 1, Rewrite(no_wait)),
                in_section(COLUMNS, "columns not fenced for the products", "fence.proxy.async", 0, Drop),
                in_section(COLUMNS, "columns full one copy early", "cp.async.wait_group 1", 0, Swap(" 1", " 2")),
            ],
        ),
        (
            scenes::paged(Dense, arch, seed),
            vec![
                in_section(TILES, "the end not seen", ", 0, 1, %p", 0, Swap(", 0, 1,", ", 1, 1,")),
                in_section(BLOCKS, "boxes of another page", "shr.u32", 0, Swap(", 4;", ", 5;")),
                in_section(BLOCKS, "boxes past the end of their page", "and.b32", 0, Swap(", 15;", ", 31;")),
                in_section(BLOCKS, "all pages in one place", "mad.lo", 6, Swap(", 128,", ", 0,")),
                in_section(BLOCKS, "one box of a block and no more", "add.s32", 5, Swap(", 16;", ", 64;")),
                in_section(BLOCKS, "a page that does not exist not reported", "red.global.or", 0, Drop),
            ],
        ),
        (
            scenes::paged(VerticalSlash, arch, seed),
            vec![
                in_section(COLUMNS, "a column in another page", "shr.u32", 5, Swap(", 4;", ", 5;")),
                in_section(BLOCKS, "blocks full one copy early", "cp.async.wait_group 1", 0, Swap(" 1", " 2")),
                in_section(BLOCKS, "the last block full before its copy", "cp.async.wait_group 0", 0, Swap(" 0", " 1")),
            ],
        ),
        (
            scenes::attention(BlockSparse, arch, seed),
            vec![in_section(BLOCKS, "one block more than listed", "setp.lt.u32", 0, Swap("setp.lt", "setp.le"))],
        ),
        (
            scenes::antidiagonal_sums(arch, seed),
            vec![
                mutation("a stage full without its boxes", init, 0, Swap(" 129;", " 128;")),
                mutation("a stage free with half of the readers", init, 1, Swap(" 8;", " 4;")),
                mutation("barriers used before they are initialised", "bar.sync 0", 0, Drop),
                in_section(PRODUCER, "the last tile of keys left out", "add.s32", 3, Swap(", 1;", ", 0;")),
                in_section(TILES, "a tile of the wrong queries", "setp.le.u32", 0, Swap(".le", ".lt")),
                in_section(TILES, "a tile that no block takes", "%nctaid.x", 0, Swap("%nctaid.x", "3")),
                in_section(TILES, "queries past the last one taken as whole", "setp.le.s32", 0, Rewrite(always)),
                in_section(TILES, "keys past the last one taken as whole", "setp.le.s32", 2, Rewrite(always)),
                in_section(TILES, "more bytes awaited than come", "16384, 0", 0, Swap("16384", "32768")),
                in_section(TILES, "rows of queries not reversed", "xor.b32", 0, Swap(", 7;", ", 0;")),
                in_section(TILES, "a stage filled before it is free", wait, 0, Rewrite(no_wait)),
                in_section(TILES, "the producer waits for the wrong phase", "xor.b32", 1, Swap(", 1;", ", 0;")),
                in_section(TILES, "a box from the wrong place", box_copy, 0, Rewrite(exchange_coordinates)),
                in_section(TILES, "a box of keys not copied", box_copy, 1, Drop),
                in_section(TILES, "threads without rows do not arrive", "], 128;", 0, Drop),
                in_section(TILES, "copied rows not fenced for the products", "fence.proxy.async", 0, Drop),
                in_section(TILES, "rows full one copy early", "cp.async.wait_group 1", 0, Swap(" 1", " 2")),
                in_section(TILES, "the last rows full before they come", "cp.async.wait_group 0", 0, Swap(" 0", " 1")),
                in_section("// the end", "the end not noted", "st.shared.v4", 0, Drop),
                in_section(CONSUMER, "more registers than there are", "setmaxnreg", 0, Swap("224", "232")),
                in_section(CONSUMER, "both consumers with the first one's queries", ", 8192,", 0, Swap("8192", "0")),
                in_section(
                    CONSUMER,
                    "wrong swizzle of the queries",
                    "1073741888",
                    0,
                    Swap("1073741888", "-2147483584"),
                ),
                in_section(CONSUMER, "a tile's note read before it is there", wait, 0, Rewrite(no_wait)),
                in_section(CONSUMER, "no wait for a stage", wait, 1, Rewrite(no_wait)),
                in_section(CONSUMER, "stages of keys half as far apart", ", 32768;", 0, Swap("32768", "16384")),
                in_section(CONSUMER, "registers not fenced for the first product", product_fence, 0, Drop),
                in_section(CONSUMER, "the next step of the keys skipped", "add.s64", 5, Swap(", 2;", ", 4;")),
                in_section(CONSUMER, "a stage's products not committed", "wgmma.commit_group", 0, Drop),
                in_section(CONSUMER, "a stage released before its products", product_wait, 0, Swap(" 1;", " 2;")),
                in_section(CONSUMER, "stages never released", arrive, 0, Drop),
                in_section(CONSUMER, "the last stage never released", arrive, 1, Drop),
                in_section(CONSUMER, "sums read before their last products", product_wait, 1, Drop),
                in_section("// weights", "a cell past the last one seen", "setp.ge.s32", 1, Rewrite(always)),
                in_section("// weights", "lanes with maxima of their own", "shfl", 0, Swap(", 1, 31", ", 2, 31")),
            ],
        ),
        (
            scenes::estimate_statistics(arch, seed),
            vec![
                in_section(PRODUCER, "a turn of keys left out", ", 15;", 0, Swap(", 15;", ", 0;")),
                in_section(KEYS, "maxima never raised", "setp.gt.f32", 0, Rewrite(never)),
                in_section(LANES, "keys of half of the lanes", "shfl", 0, Swap(", 4, 31", ", 0, 31")),
                in_section(KEYS, "nobody has the first turn", "bar.arrive", 0, Drop),
                in_section(KEYS, "the turn not passed on", "bar.arrive", 1, Drop),
                in_section(LANES, "no barrier before parts are merged", "bar.sync", 1, Drop),
            ],
        ),
        (
            scenes::estimate_scores(arch, seed).unwrap(),
            vec![
                mutation("a stage full after two arrivals", init, 0, Swap(" 1;", " 2;")),
                mutation("a stage free with half of the readers", init, 1, Swap(" 16;", " 8;")),
                mutation("barriers used before they are initialised", "bar.sync 0", 0, Drop),
                in_section(PRODUCER, "all warps of the producer fetch", "setp.eq.s32", 0, Rewrite(always)),
                in_section(PRODUCER, "slashes begin in the part", ", 64;", 0, Swap("64", "48")),
                in_section(PRODUCER, "a stage filled before it is free", wait, 0, Rewrite(no_wait)),
                in_section(PRODUCER, "the producer waits for the wrong phase", "xor.b32", 0, Swap(", 1;", ", 0;")),
                in_section(PRODUCER, "more bytes awaited than come", "expect_tx", 0, Swap("8192", "16384")),
                in_section(PRODUCER, "the first part's keys for all", "shfl", 0, Rewrite(own_value)),
                in_section(PRODUCER, "keys of all parts in one place", ", 2048,", 0, Swap("2048", "0")),
                in_section(PRODUCER, "a box from the wrong place", box_copy, 0, Rewrite(exchange_coordinates)),
                in_section(PRODUCER, "a box not copied", box_copy, 0, Drop),
                in_section(CONSUMER, "more registers than there are", "setmaxnreg", 0, Swap("112", "120")),
                in_section(CONSUMER, "all consumers with the first one's queries", ", 8192,", 0, Swap("8192", "0")),
                in_section(CONSUMER, "rows copied without the swizzle", "xor.b32", 0, Rewrite(first_operand)),
                in_section(CONSUMER, "no wait for the queries", "cp.async.wait_group", 0, Drop),
                in_section(CONSUMER, "queries not fenced for the products", "fence.proxy.async", 0, Drop),
                in_section(CONSUMER, "wrong swizzle of the keys", "1073741888", 0, Swap("1073741888", "-2147483584")),
                in_section(CONSUMER, "no barrier before what is subtracted is read", "bar.sync", 1, Drop),
                in_section(KEYS, "no wait for a stage", wait, 0, Rewrite(no_wait)),
                in_section(KEYS, "stages half as far apart", ", 8192;", 0, Swap("8192", "4096")),
                in_section(KEYS, "registers not fenced for the first product", product_fence, 0, Drop),
                in_section(KEYS, "the next step of the keys skipped", "add.s64", 3, Swap(", 2;", ", 4;")),
                in_section(KEYS, "a product's group not committed", "wgmma.commit_group", 0, Drop),
                in_section(KEYS, "weights read before their products", product_wait, 0, Drop),
                in_section(KEYS, "a stage released before its products", product_wait, 0, Past(arrive)),
                in_section(KEYS, "stages never released", arrive, 0, Drop),
                in_section(KEYS, "what is hidden counted", "setp.le.s32", 0, Rewrite(always)),
                in_section(KEYS, "slashes of another lane", "shfl.sync.idx", 0, Rewrite(own_value)),
            ],
        ),
        (
            scenes::attention_parts(Dense, arch, seed),
            vec![
                in_section(PART, "consumers without rows awaited", "min.u32", 2, Swap("min", "max")),
                in_section(CONSUMER, "consumers without rows at work", "setp.lt.u32", 0, Rewrite(always)),
                in_section(CONSUMER, "queries of the next elements", "ld.global.b32", 2, Swap("+16]", "+32]")),
                in_section(CONSUMER, "queries of the first head for all", "sub.s32", 2, Rewrite(no_shift)),
                in_section(BLOCKS, "the part's lowest block left out", "setp.ge.s32", 0, Swap(".ge", ".gt")),
                in_section(OUTPUT, "parts taken for all", "setp.eq.s32", 0, Rewrite(always)),
            ],
        ),
    ]
}

/// Kernels that start early.
fn early_mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
    let wait = |what, change| mutation(what, "griddepcontrol.wait", 0, change);
    let of = |scene: Scene, more: Vec<Mutation>| {
        let dropped = wait("no wait for the launches in front", Drop);
        let late = wait("the wait behind the first read of what they wrote", Past("ld.global."));
        (scene, [dropped, late].into_iter().chain(more).collect())
    };
    let arch = Arch::Sm90a;
    const FIRST_X: &str = "// x of the first steps";
    vec![
        of(
            scenes::linear(false, arch, seed),
            vec![
                in_section(FIRST_X, "x of the second step not brought", "st.shared.v4", 3, Drop),
                in_section(FIRST_X, "x behind the last inner element", "setp.lt.u32", 2, Rewrite(always)),
                in_section(STEPS, "no barrier before a stage is read", "bar.sync", 0, Drop),
                in_section(STEPS, "a wait for one group too few", "cp.async.wait_group", 0, Swap(" 2;", " 3;")),
                in_section(STEPS, "the last stage filled twice", "setp.gt.u32", 0, Swap(".gt", ".ge")),
            ],
        ),
        of(scenes::linear(true, arch, seed), vec![]),
        of(
            scenes::rms_norm(arch, seed),
            vec![
                in_section("// sum of squares", "x through a cache", "ld.global.v4", 0, Swap("global", "global.nc")),
                mutation("weights of the next chunk", "ld.global.v4", 0, Swap("]", "+16]")),
            ],
        ),
        of(scenes::rope(arch, seed), vec![mutation("the next frequency", "ld.global.b64", 0, Swap("]", "+8]"))]),
        of(scenes::swiglu(arch, seed), vec![]),
        of(scenes::gather(arch, seed), vec![]),
        of(scenes::scatter(arch, seed), vec![]),
        of(scenes::embed(arch, seed), vec![]),
        of(scenes::head_rows(arch, seed), vec![]),
        of(scenes::selection(arch, seed), vec![]),
        of(scenes::attention_parts(Dense, arch, seed), vec![]),
    ]
}

/// A guarded instruction without its guard.
fn unguarded(line: &str) -> String {
    line.trim().split_once(' ').map_or_else(String::new, |(_, rest)| format!("    {rest}"))
}

/// How a mutant was caught; `Err` if it was not.
fn caught(scene: &Scene, text: &str) -> Result<String, String> {
    match scene.launch.run_text(&Device::emulator(), text) {
        Err(Error::Emulator { report, .. }) if report.starts_with("PTX line") => {
            Err(format!("does not even parse, which shows nothing: {report}"))
        }
        Err(Error::Emulator { report, .. }) => Ok(format!("sanitizer: {}", report.split(':').next().unwrap())),
        Err(error) => Err(format!("could not be launched: {error}")),
        Ok(outcome) => match scene.check(&outcome).unwrap() {
            Ok(()) => Err("SURVIVED".into()),
            Err(wrong) => Ok(format!("reference: {wrong}")),
        },
    }
}

#[test]
fn every_mutant_is_caught() {
    let seed = testing::seed(90);
    let mut table = format!("\nmutants, seed {seed}\n");
    let (mut kinds, mut by_reference, mut count, mut survivors) = (BTreeSet::new(), 0, 0, Vec::new());
    for (scene, mutations) in mutants(seed).into_iter().chain(hopper_mutants(seed)).chain(early_mutants(seed)) {
        let kernel = &scene.launch.kernel;
        let entry = &kernel.meta.entry;
        let original = scene.launch.run(&Device::emulator()).unwrap_or_else(|error| panic!("{entry}: {error}"));
        scene.check(&original).unwrap().unwrap_or_else(|wrong| panic!("{entry} itself fails: {wrong}"));
        writeln!(table, "  {entry}").unwrap();
        for mutation in mutations {
            let verdict = mutation.apply(&kernel.text).and_then(|text| caught(&scene, &text));
            let (Ok(line) | Err(line)) = &verdict;
            writeln!(table, "    {:<48} {line:.120}", mutation.what).unwrap();
            count += 1;
            match &verdict {
                Ok(line) if line.starts_with("sanitizer") => drop(kinds.insert(line.clone())),
                Ok(_) => by_reference += 1,
                Err(line) => survivors.push(format!("{entry}: {}: {line}", mutation.what)),
            }
        }
    }
    writeln!(table, "  {count} mutants, {} survivors; {by_reference} caught by the reference", survivors.len())
        .unwrap();
    // Past the capture of the test harness: the list belongs to the output.
    std::io::stdout().write_all(table.as_bytes()).unwrap();
    assert!(survivors.is_empty(), "not caught:\n{}", survivors.join("\n"));
    assert!(count >= 80 && by_reference >= 10 && kinds.len() >= 4, "{count} mutants, {kinds:?}");
}

#[test]
fn a_mistake_that_fits_nowhere_is_an_error() {
    let text = "{\n    bar.sync 0;\n    ret;\n}\n";
    let apply = |mutation: Mutation| mutation.apply(text);
    assert_eq!(apply(mutation("", "bar.sync", 0, Drop)).unwrap(), "{\n    ret;\n}\n");
    assert_eq!(apply(mutation("", "bar.sync", 0, Later)).unwrap(), "{\n    ret;\n    bar.sync 0;\n}\n");
    assert!(apply(mutation("", "bar.sync", 1, Drop)).is_err());
    assert!(apply(in_section("// columns", "", "bar.sync", 0, Drop)).is_err());
    assert!(apply(mutation("", "bar.sync", 0, Swap("wait", "arrive"))).is_err());
    assert!(apply(mutation("", "bar.sync", 0, Swap("0", "0"))).is_err());
}
