//! Mutants of kernels for `sm_90a`.

use super::mutation::*;
use kernel_tests::testing::scenes::{self, Scene};
use ptx::{
    Arch,
    kernels::attention::Pattern::{AShape, BlockSparse, Dense, VerticalSlash},
};

/// Sections of a kernel for `sm_90a`.
const PRODUCER: &str = "// producer";
const BLOCKS: &str = "// blocks";
const COLUMNS: &str = "// columns";
const CONSUMER: &str = "// consumer";
const TILES: &str = "// tiles";
const LAST: &str = "// the last values";
const FOLLOWING: &str = "// on to the next row block";
const NEXT: &str = "// which place is next";
const KEYS: &str = "// keys";
const LANES: &str = "// all lanes";

/// Mutants of kernels with producers and consumers.
pub(super) fn mutants(seed: u64) -> Vec<(Scene, Vec<Mutation>)> {
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
