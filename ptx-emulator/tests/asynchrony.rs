//! Every report on asynchronous work: a kernel that triggers exactly it, and a near-identical one that is clean.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{LaunchError, Machine, Module, ReportKind, Swizzle, TensorMap};

/// `%r1` the pool, with two mbarriers at 0 and 8 and tiles of 8 KiB from 1024; `%r2` the thread, `%r3` its 64 bytes of
/// the first tile, `%p1` thread 0, `%rd1` the map of a tensor of 64 rows by 64, `%rd5` the descriptor of the first tile.
const SETUP: &str = "
    .reg .pred %p<8>; .reg .b32 %r<32>; .reg .b32 %a<4>; .reg .f32 %d<8>; .reg .b64 %rd<12>;
    mov.b64 %rd1, map; cvta.param.u64 %rd1, %rd1; ld.param.u64 %rd2, [data];
    mov.u32 %r0, 0; mov.u32 %r1, pool; mov.u32 %r2, %tid.x; shl.b32 %r3, %r2, 6; add.u32 %r3, %r1, %r3;
    add.u32 %r3, %r3, 1024; setp.eq.u32 %p1, %r2, 0; shr.u32 %r4, %r2, 5; setp.eq.u32 %p2, %r4, 0;
    setp.lt.u32 %p4, %r2, 128; mov.u32 %r5, 0x3f803f80; add.u32 %r6, %r1, 1024; shr.u32 %r7, %r6, 4;
    cvt.u64.u32 %rd5, %r7; or.b64 %rd5, %rd5, 0x4000004000010000;
    mov.u32 %a0, 0; mov.u32 %a1, 0; mov.u32 %a2, 0; mov.u32 %a3, 0; mov.f32 %d4, 0f00000000;
";
/// Writes the first tile.
const FILL: &str = "
    st.shared.v4.u32 [%r3], {%r5, %r5, %r5, %r5}; st.shared.v4.u32 [%r3+16], {%r5, %r5, %r5, %r5};
    st.shared.v4.u32 [%r3+32], {%r5, %r5, %r5, %r5}; st.shared.v4.u32 [%r3+48], {%r5, %r5, %r5, %r5};
";
const FENCED: &str = "fence.proxy.async.shared::cta; bar.sync 0;";
const FENCE: &str = "wgmma.fence.sync.aligned;";
const MULTIPLY: &str =
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3}, %rd5, %rd5, 0, 1, 1, 0, 0;";
const REGISTERS: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, \
                         %rd5, 0, 1, 1, 0;";
const DONE: &str = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";
const INITIALISE: &str = "@%p1 mbarrier.init.shared.b64 [%r1], 1; @%p1 mbarrier.init.shared.b64 [%r1+8], 1;
    @%p1 fence.mbarrier_init.release.cluster; bar.sync 0;";
const EXPECT: &str = "@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 8192;";
const COPY: &str = "@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1+1024],
    [%rd1, {%r0, %r0}], [%r1];";
const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 0; @!%p7 bra WAIT;";

fn launch(threads: u32, body: &str, seed: u64) -> Result<(), LaunchError> {
    let machine = Machine::with_seed(seed).with_instruction_budget(1 << 20);
    let data = upload_u32(&machine, &[0x3f80_3f80; 4096]);
    let map = TensorMap {
        address: data,
        rank: 2,
        element_bytes: 2,
        dims: [64, 64, 0, 0, 0],
        strides_bytes: [128, 0, 0, 0],
        box_dims: [64, 64, 0, 0, 0],
        swizzle: Swizzle::Bytes128,
    };
    let module = hopper(&["map"], &["data"], &format!("{SETUP}\n{body}\nEND: ret;"));
    hopper_block(&machine, &module, threads, 1024 + 2 * 8192, &[map], &[data])
}

/// The first body is reported as one of `expected` under every schedule, the second never.
fn among(threads: u32, expected: &[ReportKind], wrong: &str, right: &str) {
    for seed in 0..8 {
        let found = kind(launch(threads, wrong, seed));
        assert!(expected.contains(&found), "seed {seed}: {found:?}: {wrong}");
        if let Err(error) = launch(threads, right, seed) {
            panic!("seed {seed}: {right}\n{error}");
        }
    }
}

fn pair(expected: ReportKind, wrong: &str, right: &str) {
    among(128, &[expected], wrong, right);
}

#[test]
fn writes_are_fenced_before_tensor_cores_read_them() {
    let product = format!("{FENCE} {MULTIPLY} {DONE}");
    pair(ReportKind::ProxyFence, &format!("{FILL} bar.sync 0; {product}"), &format!("{FILL} {FENCED} {product}"));
    // The writer fences, not the reader.
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} bar.sync 0; @%p2 fence.proxy.async; {product}"),
        &format!("{FILL} {FENCED} {product}"),
    );
    // Not before the last write, and every lane that wrote.
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} fence.proxy.async; st.shared.u32 [%r3], %r5; bar.sync 0; {product}"),
        &format!("{FILL} st.shared.u32 [%r3], %r5; {FENCED} {product}"),
    );
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} and.b32 %r8, %r2, 31; setp.eq.u32 %p3, %r8, 0; @%p3 fence.proxy.async; bar.sync 0; {product}"),
        &format!("{FILL} {FENCED} @%p1 st.shared.u32 [%r3], %r5; @%p1 fence.proxy.async; bar.sync 0; {product}"),
    );
    // `fence.proxy.async.global` is for other memory.
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} fence.proxy.async.global; bar.sync 0; {product}"),
        &format!("{FILL} {FENCED} fence.proxy.async.global; {product}"),
    );
    let matrix = "and.b32 %r8, %r2, 31; shl.b32 %r8, %r8, 4; shl.b32 %r9, %r4, 9; add.u32 %r8, %r8, %r9;
        add.u32 %r8, %r8, %r6; stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r8], {%r5, %r5, %r5, %r5};";
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} {FENCED} {matrix} bar.sync 0; {product}"),
        &format!("{FILL} {FENCED} {matrix} {FENCED} {product}"),
    );
    let copy = "cp.async.cg.shared.global [%r3], [%rd2], 16; cp.async.commit_group; cp.async.wait_group 0;";
    pair(
        ReportKind::ProxyFence,
        &format!("{FILL} {FENCED} {copy} bar.sync 0; {product}"),
        &format!("{FILL} {FENCED} {copy} {FENCED} {product}"),
    );
    pair(
        ReportKind::ProxyFence,
        &format!("{INITIALISE} {FILL} bar.sync 0; {EXPECT} {COPY} {WAIT}"),
        &format!("{INITIALISE} {FILL} {FENCED} {EXPECT} {COPY} {WAIT}"),
    );
}

#[test]
fn writes_are_ordered_before_tensor_cores_read_them() {
    let product = format!("{FENCE} {MULTIPLY} {DONE}");
    among(
        128,
        &[ReportKind::SharedRace, ReportKind::UninitialisedRead],
        &format!("{FILL} fence.proxy.async; {product}"),
        &format!("{FILL} {FENCED} {product}"),
    );
    // A write after the issue, before the wait.
    pair(
        ReportKind::SharedRace,
        &format!("{FILL} {FENCED} {FENCE} {MULTIPLY} st.shared.u32 [%r3], %r5; {DONE}"),
        &format!("{FILL} {FENCED} {FENCE} {MULTIPLY} {DONE} bar.sync 0; st.shared.u32 [%r3], %r5;"),
    );
}

#[test]
fn registers_of_a_product_in_flight() {
    let begin = format!("{FILL} {FENCED} {FENCE}");
    let commit = "wgmma.commit_group.sync.aligned;";
    let wait = "wgmma.wait_group.sync.aligned 0;";
    for touch in ["add.rn.f32 %d5, %d1, %d4;", "mov.f32 %d1, %d4;", "st.global.f32 [%rd2], %d3;"] {
        pair(
            ReportKind::MatrixRegister,
            &format!("{begin} {MULTIPLY} {commit} {touch} {wait}"),
            &format!("{begin} {MULTIPLY} {commit} {wait} {touch}"),
        );
    }
    // An older group is over, a newer one is not.
    let other = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d4, %d5, %d6, %d7}, %rd5, %rd5, 0, 1, 1, 0, 0;";
    let two = format!("{begin} {MULTIPLY} {commit} {other} {commit} wgmma.wait_group.sync.aligned 1;");
    pair(
        ReportKind::MatrixRegister,
        &format!("{two} mov.f32 %d5, %d1; {wait}"),
        &format!("{two} mov.f32 %d0, %d1; {wait}"),
    );
    // Fragments of A may be read in flight, not written.
    pair(
        ReportKind::MatrixRegister,
        &format!("{begin} {REGISTERS} {commit} mov.u32 %a2, %r5; {wait}"),
        &format!("{begin} {REGISTERS} {commit} mov.u32 %r8, %a2; {wait} mov.u32 %a2, %r5;"),
    );
    // Without a commit there is nothing to wait for.
    pair(
        ReportKind::MatrixRegister,
        &format!("{begin} {MULTIPLY} {wait} mov.f32 %d5, %d1; {commit} {wait}"),
        &format!("{begin} {MULTIPLY} {commit} {wait} mov.f32 %d5, %d1;"),
    );
    // Sums of one shape are in order, of two are not.
    let wider = "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, %rd5, %rd5, \
                 0, 1, 1, 0, 0;";
    pair(
        ReportKind::MatrixRegister,
        &format!("{begin} {MULTIPLY} {wider} {DONE}"),
        &format!("{begin} {MULTIPLY} {MULTIPLY} {DONE} {wider} {DONE}"),
    );
}

#[test]
fn fences_of_products() {
    let fill = format!("{FILL} {FENCED}");
    pair(
        ReportKind::MatrixFence,
        &format!("{fill} {MULTIPLY} {DONE}"),
        &format!("{fill} {FENCE} {MULTIPLY} {DONE} {MULTIPLY} {DONE}"),
    );
    pair(
        ReportKind::MatrixFence,
        &format!("{fill} {FENCE} mov.u32 %a1, %r5; {REGISTERS} {DONE}"),
        &format!("{fill} mov.u32 %a1, %r5; {FENCE} {REGISTERS} {DONE}"),
    );
    pair(
        ReportKind::MatrixFence,
        &format!("{fill} {FENCE} {MULTIPLY} {DONE} mov.f32 %d1, %d4; {MULTIPLY} {DONE}"),
        &format!("{fill} {FENCE} {MULTIPLY} {DONE} mov.f32 %d1, %d4; {FENCE} {MULTIPLY} {DONE}"),
    );
    // Sums that were never written.
    let adds = MULTIPLY.replace(" 0, 1, 1, 0, 0", " 1, 1, 1, 0, 0");
    pair(
        ReportKind::UninitialisedRegister,
        &format!("{fill} {FENCE} {adds} {DONE}"),
        &format!("{fill} {FENCE} {MULTIPLY} {adds} {DONE}"),
    );
}

#[test]
fn products_that_nobody_waits_for() {
    let begin = format!("{FILL} {FENCED} {FENCE} {MULTIPLY}");
    pair(ReportKind::AsyncUnwaited, &format!("{begin} wgmma.commit_group.sync.aligned;"), &format!("{begin} {DONE}"));
    pair(ReportKind::AsyncUnwaited, &begin, &format!("{begin} {DONE}"));
}

#[test]
fn bulk_copies_are_waited_for() {
    let copy = format!("{INITIALISE} {EXPECT} {COPY}");
    // Others may be there before the copy is even issued.
    let early = [ReportKind::AsyncRead, ReportKind::UninitialisedRead];
    let read = "ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r3];";
    among(128, &early, &format!("{copy} {read} {WAIT}"), &format!("{copy} {WAIT} {read}"));
    // One thread's wait is not another's, unless a barrier follows.
    let one = "@!%p1 bra ON; WAIT: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 0; @!%p7 bra WAIT; ON:";
    among(128, &early, &format!("{copy} {one} @!%p2 {read}"), &format!("{copy} {one} bar.sync 0; {read}"));
    // An attempt is not a wait.
    let once = "mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 0;";
    among(128, &early, &format!("{copy} {once} {read}"), &format!("{copy} {WAIT} {once} {read}"));
    // The parity of a phase that has ended before.
    among(
        128,
        &early,
        &format!("{copy} {} {read}", WAIT.replace("[%r1], 0", "[%r1], 1")),
        &format!("{copy} {WAIT} {read}"),
    );
    let write = "st.shared.u32 [%r3], %r5;";
    among(
        128,
        &[ReportKind::AsyncOverwrite, ReportKind::SharedRace],
        &format!("{copy} {write} {WAIT}"),
        &format!("{copy} {WAIT} {write}"),
    );
    let product = format!("{FENCE} {MULTIPLY} {DONE}");
    among(128, &early, &format!("{copy} {product} {WAIT}"), &format!("{copy} {WAIT} {product}"));
    pair(ReportKind::AsyncUnwaited, &copy, &format!("{copy} {WAIT}"));
}

#[test]
fn stages_are_free_before_a_copy_overwrites_them() {
    // Thread 128 is the producer; 8 KiB are copied, read, and copied again when warps 0 to 3 have arrived.
    let body = |early: &str, late: &str| {
        format!(
            "@%p1 mbarrier.init.shared.b64 [%r1], 1; @%p1 mbarrier.init.shared.b64 [%r1+8], 128;
             @%p1 fence.mbarrier_init.release.cluster; bar.sync 0;
             @%p4 bra CONSUMER;
             elect.sync _|%p1, -1; @!%p1 bra END;
             {EXPECT} {COPY}
             FREE: mbarrier.try_wait.parity.shared.b64 %p7, [%r1+8], 0; @!%p7 bra FREE;
             {EXPECT} {COPY}
             bra END;
             CONSUMER: {WAIT} {FENCE} {MULTIPLY} wgmma.commit_group.sync.aligned; {early}
             wgmma.wait_group.sync.aligned 0; {late}
             AGAIN: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 1; @!%p7 bra AGAIN;"
        )
    };
    let arrive = "mbarrier.arrive.shared.b64 _, [%r1+8];";
    let reports = [ReportKind::AsyncRead, ReportKind::SharedRace];
    among(160, &reports, &body(arrive, ""), &body("", arrive));
    // An ordinary read counts too.
    let read = "ld.shared.u32 %r8, [%r3];";
    among(160, &reports, &body("", &format!("{arrive} {read}")), &body("", &format!("{read} {arrive}")));
    // One arrival after the wait speaks for the whole warpgroup.
    let one = |text: String| text.replace("[%r1+8], 128;", "[%r1+8], 1;");
    let right = one(body("", "@%p1 mbarrier.arrive.shared.b64 _, [%r1+8];"));
    among(160, &reports, &one(body("@%p1 mbarrier.arrive.shared.b64 _, [%r1+8];", "")), &right);
}

#[test]
fn mbarriers_are_initialised() {
    let arrive = "@%p1 mbarrier.arrive.shared.b64 _, [%r1];";
    pair(ReportKind::Mbarrier, &format!("bar.sync 0; {arrive}"), &format!("{INITIALISE} {arrive}"));
    pair(ReportKind::Mbarrier, &format!("{INITIALISE} @%p1 mbarrier.arrive.shared.b64 _, [%r1+16];"), INITIALISE);
    let apart = INITIALISE.replace("bar.sync 0;", "");
    pair(ReportKind::Mbarrier, &format!("{apart} {WAIT}"), &format!("{INITIALISE} {arrive} {WAIT}"));
    // Again, and for nobody.
    let again = "@%p1 mbarrier.init.shared.b64 [%r1], 1;";
    let invalidate = "@%p1 mbarrier.inval.shared.b64 [%r1];";
    pair(
        ReportKind::Mbarrier,
        &format!("{INITIALISE} {again} {arrive} {WAIT}"),
        &format!("{INITIALISE} {invalidate} {again} bar.sync 0; {arrive} {WAIT}"),
    );
    pair(
        ReportKind::Mbarrier,
        "@%p1 mbarrier.init.shared.b64 [%r1], 0;",
        "@%p1 mbarrier.init.shared.b64 [%r1], 1048575;",
    );
    pair(
        ReportKind::Mbarrier,
        &format!("{INITIALISE} {EXPECT} {COPY} {invalidate}"),
        &format!("{INITIALISE} {EXPECT} {COPY} {WAIT} bar.sync 0; {invalidate}"),
    );
    pair(
        ReportKind::Misaligned,
        "@%p1 mbarrier.init.shared.b64 [%r1+4], 1;",
        "@%p1 mbarrier.init.shared.b64 [%r1+8], 1;",
    );
    pair(
        ReportKind::OutOfBounds,
        "@%p1 mbarrier.init.shared.b64 [%r1+17408], 1;",
        "@%p1 mbarrier.init.shared.b64 [%r1+17400], 1;",
    );
    for access in ["ld.shared.u32 %r8, [%r1];", "st.shared.u32 [%r1], %r5;"] {
        pair(ReportKind::Mbarrier, &format!("{INITIALISE} @%p1 {access}"), INITIALISE);
    }
    pair(
        ReportKind::Mbarrier,
        &format!("{} {EXPECT} {COPY} {WAIT}", INITIALISE.replace("fence.mbarrier_init.release.cluster", "membar.cta")),
        &format!("{} {EXPECT} {COPY} {WAIT}", INITIALISE.replace("mbarrier_init.release.cluster", "proxy.async")),
    );
}

#[test]
fn arrivals_and_bytes_are_counted() {
    pair(
        ReportKind::Mbarrier,
        &format!("{INITIALISE} {EXPECT} @%p1 mbarrier.arrive.shared.b64 _, [%r1]; {COPY}"),
        &format!("{INITIALISE} {EXPECT} @%p1 mbarrier.arrive.shared.b64 _, [%r1+8]; {COPY} {WAIT}"),
    );
    pair(
        ReportKind::Mbarrier,
        &format!("{INITIALISE} @%p1 mbarrier.arrive.shared.b64 _, [%r1], 2;"),
        &format!("{INITIALISE} @%p1 mbarrier.arrive.shared.b64 _, [%r1], 1;"),
    );
    let expect = "@%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 1048575;";
    pair(ReportKind::Mbarrier, &format!("{INITIALISE} {expect} {EXPECT}"), &format!("{INITIALISE} {expect}"));
    // Bytes that do not match: nobody can go on, and the report says how many are missing.
    for (bytes, needle) in [("8208", "16 bytes of bulk copies"), ("8176", "16 bytes that nobody announced")] {
        let wrong = format!("{INITIALISE} {} {COPY} {WAIT}", EXPECT.replace("8192", bytes));
        pair(ReportKind::Deadlock, &wrong, &format!("{INITIALISE} {EXPECT} {COPY} {WAIT}"));
        let report = launch(128, &wrong, 1).unwrap_err().report().unwrap().clone();
        assert!(report.sentence.contains(needle) && report.text.contains("try_wait"), "{report}");
    }
    // A phase that never comes.
    pair(
        ReportKind::Deadlock,
        &format!(
            "{INITIALISE} {EXPECT} {COPY} {WAIT} NEXT: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 1; @!%p7 bra NEXT;"
        ),
        &format!(
            "{INITIALISE} {EXPECT} {COPY} {WAIT} NEXT: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 0; @!%p7 bra NEXT;"
        ),
    );
}

#[test]
fn targets_of_bulk_copies() {
    let copy = |target: &str| format!("{INITIALISE} {EXPECT} {} {WAIT}", COPY.replace("%r1+1024", target));
    pair(ReportKind::Misaligned, &copy("%r1+1040"), &copy("%r1+1152"));
    pair(ReportKind::OutOfBounds, &copy("%r1+9344"), &copy("%r1+9216"));
    let rank = COPY.replace("2d", "3d").replace("{%r0, %r0}", "{%r0, %r0, %r0}");
    pair(ReportKind::TensorMap, &format!("{INITIALISE} {EXPECT} {rank} {WAIT}"), &copy("%r1+1024"));
    let missing = "mov.b64 %rd1, map;";
    pair(ReportKind::TensorMap, &format!("{missing} {}", copy("%r1+1024")), &copy("%r1+1024"));
    pair(ReportKind::TensorMap, &format!("{missing} prefetch.tensormap [%rd1];"), "prefetch.tensormap [%rd1];");
}

#[test]
fn descriptors() {
    let product = |change: &str| format!("{FILL} {FENCED} {change} {FENCE} {MULTIPLY} {DONE}");
    let right = product("add.u64 %rd5, %rd5, 2;");
    // Beyond the first tile nobody has written; beyond the pool there is nothing.
    pair(ReportKind::UninitialisedRead, &product("add.u64 %rd5, %rd5, 512;"), &right);
    pair(ReportKind::OutOfBounds, &product("add.u64 %rd5, %rd5, 0x3000;"), &right);
    pair(ReportKind::MatrixDescriptor, &product("add.u64 %rd5, %rd5, 8;"), &right);
    pair(ReportKind::MatrixDescriptor, &product("or.b64 %rd5, %rd5, 0x2000000000000;"), &right);
    pair(ReportKind::DivergentWarpgroup, &product("cvt.u64.u32 %rd6, %r2; add.u64 %rd5, %rd5, %rd6;"), &right);
    pair(ReportKind::DivergentWarpgroup, &product("cvt.u64.u32 %rd6, %r4; add.u64 %rd5, %rd5, %rd6;"), &right);
}

#[test]
fn warpgroups_stay_together() {
    let product = format!("{FENCE} {MULTIPLY} {DONE}");
    let right = format!("{FILL} {FENCED} {product}");
    // Some warps do not come, or come elsewhere.
    pair(ReportKind::DivergentWarpgroup, &format!("{FILL} {FENCED} @%p2 bra END; {product}"), &right);
    pair(
        ReportKind::DivergentWarpgroup,
        &format!("{FILL} {FENCED} @%p2 bra OTHER; {product} bra END; OTHER: {product}"),
        &right,
    );
    pair(
        ReportKind::DivergentWarpgroup,
        &format!(
            "{FILL} {FENCED} {FENCE} {MULTIPLY} wgmma.commit_group.sync.aligned; @%p2 bra END;
                  wgmma.wait_group.sync.aligned 0;"
        ),
        &right,
    );
    // Some lanes do not.
    pair(ReportKind::DivergentCollective, &format!("{FILL} {FENCED} @%p1 bra END; {product}"), &right);
    pair(
        ReportKind::DivergentCollective,
        &format!("{FILL} {FENCED} @%p1 {FENCE} {FENCE} {MULTIPLY} {DONE}"),
        &format!("{FILL} {FENCED} {FENCE} {FENCE} {MULTIPLY} {DONE}"),
    );
    // Two warps are no warpgroup.
    among(64, &[ReportKind::DivergentWarpgroup], FENCE, "");
    among(160, &[ReportKind::DivergentWarpgroup], FENCE, "@%p4 wgmma.fence.sync.aligned;");
}

#[test]
fn registers_are_handed_over() {
    // 256 threads begin with 256 registers each.
    let roles = |low: &str, high: &str| format!("@%p4 bra HIGH; {low} bra END; HIGH: {high}");
    let (less, more) = ("setmaxnreg.dec.sync.aligned.u32 24;", "setmaxnreg.inc.sync.aligned.u32 240;");
    let first = "setmaxnreg.dec.sync.aligned.u32 40;";
    among(256, &[ReportKind::RegisterCount], &roles(less, more), &roles(less, &format!("{first} {more}")));
    among(256, &[ReportKind::RegisterCount], &format!("{less} {first}"), less);
    // 384 threads begin with 168; 24 + 240 + 248 is more than 3 × 168.
    let three = |third: &str| {
        format!(
            "@%p4 bra LOW; setp.lt.u32 %p3, %r2, 256; @%p3 bra SECOND; setmaxnreg.inc.sync.aligned.u32 {third}; bra END;
             SECOND: {more} bra END; LOW: {less}"
        )
    };
    among(384, &[ReportKind::Deadlock], &three("248"), &three("240"));
    // Only some warps of a warpgroup.
    among(256, &[ReportKind::DivergentWarpgroup], &format!("@%p2 {less}"), less);
}

#[test]
fn copies_arrive_at_mbarriers() {
    // Every thread copies 64 bytes and arrives when they have landed.
    let text = "@%p1 mbarrier.init.shared.b64 [%r1], 128; bar.sync 0;
        cp.async.cg.shared.global [%r3], [%rd2], 16;
        cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r1];
        WAIT: mbarrier.try_wait.parity.shared.b64 %p7, [%r1], 0; @!%p7 bra WAIT;
        xor.b32 %r2, %r2, 64; shl.b32 %r3, %r2, 6; add.u32 %r3, %r6, %r3; ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r3];";
    let early = text.replace("WAIT: ", "").replace("@!%p7 bra WAIT;", "");
    among(128, &[ReportKind::AsyncRead, ReportKind::SharedRace, ReportKind::UninitialisedRead], &early, text);
}

#[test]
fn a_report_names_the_product_at_fault() {
    let report =
        launch(128, &format!("{FILL} bar.sync 0; {FENCE} {MULTIPLY} {DONE}"), 1).unwrap_err().report().unwrap().clone();
    assert!(report.text.contains("wgmma.mma_async"), "{report}");
    assert!(report.sentence.contains("fence.proxy.async"), "{report}");
}

#[test]
fn policies_parse() {
    let module: Module = hopper(
        &[],
        &["data"],
        ".reg .b64 %rd<3>; createpolicy.fractional.L2::evict_first.b64 %rd1, 1.0;
         fence.proxy.async; fence.proxy.async.global; ret;",
    );
    hopper_block(&Machine::new(), &module, 32, 0, &[], &[0]).unwrap();
}
