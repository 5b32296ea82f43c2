//! Every report of the sanitizer: a kernel that triggers exactly it, and a near-identical one that is clean.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{LaunchError, Machine, ReportKind};

const REGISTERS: &str = "
    .reg .pred %p<8>; .reg .b32 %r<32>; .reg .f32 %f<8>; .reg .b64 %rd<8>;
    .shared .align 16 .b8 tile[1024];
    ld.param.u64 %rd1, [data]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r2, tile;
    shl.b32 %r3, %r1, 2; add.u32 %r3, %r2, %r3; shr.u32 %r4, %r1, 5; and.b32 %r5, %r1, 31;
    setp.lt.u32 %p1, %r1, 16; setp.eq.u32 %p2, %r4, 0; mov.u32 %r20, 7;
";

/// Runs a body with 64 threads and a buffer of 64 written words.
fn run(body: &str, seed: u64) -> Result<(), LaunchError> {
    let machine = Machine::with_seed(seed).with_instruction_budget(1 << 20);
    let data = upload_u32(&machine, &[1; 64]);
    let module = module(&["data"], &format!("{REGISTERS}\n{body}\nret;"));
    block(&machine, &module, 64, &[data])
}

/// The first body is reported as `expected` under every schedule, the second never.
fn pair(expected: ReportKind, wrong: &str, right: &str) {
    for seed in 0..6 {
        assert_eq!(kind(run(wrong, seed)), expected, "seed {seed}: {wrong}");
        if let Err(error) = run(right, seed) {
            panic!("seed {seed}: {right}\n{error}");
        }
    }
}

#[test]
fn out_of_bounds() {
    pair(ReportKind::OutOfBounds, "ld.global.u32 %r6, [%rd2+4];", "ld.global.u32 %r6, [%rd2];");
    pair(ReportKind::OutOfBounds, "st.global.u32 [%rd2+-4], %r1;", "st.global.u32 [%rd2], %r1;");
    pair(ReportKind::OutOfBounds, "st.shared.u32 [%r3+772], %r1;", "st.shared.u32 [%r3+768], %r1;");
    pair(ReportKind::OutOfBounds, "st.shared.u32 [%r3+-4], %r1;", "st.shared.u32 [%r3], %r1;");
    pair(ReportKind::OutOfBounds, "red.global.add.u32 [%rd1+256], 1;", "red.global.add.u32 [%rd1+252], 1;");
    pair(
        ReportKind::OutOfBounds,
        "cp.async.ca.shared.global [%r3], [%rd2+4], 4;",
        "cp.async.ca.shared.global [%r3], [%rd2], 4;",
    );
}

#[test]
fn out_of_bounds_beyond_the_launch_s_shared_memory() {
    let source = format!(
        "{HEADER}.extern .shared .align 16 .b8 pool[];
         .visible .entry test() {{ .reg .b32 %r<3>; mov.u32 %r1, %tid.x; shl.b32 %r1, %r1, 2; mov.u32 %r2, pool;
         add.u32 %r2, %r2, %r1; st.shared.u32 [%r2], %r1; ret; }}"
    );
    let module = ptx_emulator::Module::parse(&source).unwrap();
    let machine = Machine::new();
    launch(&machine, &module, [1; 3], [64, 1, 1], 256, &[]).unwrap();
    let result = launch(&machine, &module, [1; 3], [64, 1, 1], 252, &[]);
    let report = result.unwrap_err().report().unwrap().clone();
    assert_eq!((report.kind, report.thread, report.warp, report.lane), (ReportKind::OutOfBounds, [63, 0, 0], 1, 31));
    assert_eq!(report.line, 6);
    assert!(report.text.contains("st.shared.u32"));
}

#[test]
fn host_pointers() {
    pair(
        ReportKind::HostPointer,
        "mov.u64 %rd3, 64; ld.global.u32 %r6, [%rd3];",
        "mov.u64 %rd3, %rd1; ld.global.u32 %r6, [%rd3];",
    );
    let machine = Machine::new();
    let module = module(&["data"], &format!("{REGISTERS} st.global.u32 [%rd1], %r1; ret;"));
    let host = 5u32;
    assert_eq!(kind(block(&machine, &module, 32, &[&raw const host as u64 & !3])), ReportKind::HostPointer);
}

#[test]
fn misaligned() {
    pair(ReportKind::Misaligned, "ld.global.u32 %r6, [%rd1+2];", "ld.global.u32 %r6, [%rd1+4];");
    pair(
        ReportKind::Misaligned,
        "ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd1+8];",
        "ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd1+16];",
    );
    pair(ReportKind::Misaligned, "st.shared.u64 [tile+4], %rd1;", "@%p1 st.shared.u64 [tile+8], %rd1;");
    pair(
        ReportKind::Misaligned,
        "cp.async.cg.shared.global [tile+8], [%rd1], 16;",
        "setp.eq.u32 %p3, %r1, 0; @%p3 cp.async.cg.shared.global [tile+16], [%rd1], 16;",
    );
    let rows = "@%p2 st.shared.u32 [%r3], %r1; @%p2 st.shared.u32 [%r3+128], %r1; @!%p2 bra END; shl.b32 %r6, %r5, 4; \
                and.b32 %r6, %r6, 127; add.u32 %r6, %r6, %r2; bar.warp.sync -1;";
    pair(
        ReportKind::Misaligned,
        &format!("{rows} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r7}}, [%r6+8]; END:"),
        &format!("{rows} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r7}}, [%r6+16]; END:"),
    );
}

#[test]
fn use_after_free() {
    let machine = Machine::new();
    let module = module(&["data"], &format!("{REGISTERS} ld.global.u32 %r6, [%rd2]; ret;"));
    let data = upload_u32(&machine, &[1; 64]);
    block(&machine, &module, 64, &[data]).unwrap();
    machine.free(data).unwrap();
    assert_eq!(kind(block(&machine, &module, 64, &[data])), ReportKind::UseAfterFree);
}

#[test]
fn uninitialised_memory() {
    pair(
        ReportKind::UninitialisedRead,
        "st.shared.u32 [%r3], %r1; ld.shared.u32 %r6, [%r3+256];",
        "st.shared.u32 [%r3+256], %r1; ld.shared.u32 %r6, [%r3+256];",
    );
    let machine = Machine::new();
    let module = module(&["data"], &format!("{REGISTERS} ld.global.u32 %r6, [%rd2]; ret;"));
    let data = machine.allocate(256);
    machine.write(data, &[0; 255]).unwrap();
    let result = block(&machine, &module, 64, &[data]);
    assert_eq!(result.as_ref().unwrap_err().report().unwrap().thread, [63, 0, 0]);
    assert_eq!(kind(result), ReportKind::UninitialisedRead);
    machine.write(data + 255, &[0]).unwrap();
    block(&machine, &module, 64, &[data]).unwrap();
    assert_eq!(kind(block(&machine, &module, 64, &[machine.allocate(256)])), ReportKind::UninitialisedRead);
}

#[test]
fn uninitialised_registers() {
    pair(ReportKind::UninitialisedRegister, "add.u32 %r6, %r7, 1;", "mov.u32 %r7, 3; add.u32 %r6, %r7, 1;");
    // Written on one path only: the lanes of the other path are reported, unless they do not read.
    pair(
        ReportKind::UninitialisedRegister,
        "@%p1 mov.u32 %r7, 3; add.u32 %r6, %r7, 1;",
        "@%p1 mov.u32 %r7, 3; @%p1 add.u32 %r6, %r7, 1;",
    );
    pair(
        ReportKind::UninitialisedRegister,
        "@%p1 bra END; mov.u32 %r7, 1; END: st.global.u32 [%rd2], %r7;",
        "mov.u32 %r7, 2; @%p1 bra END; mov.u32 %r7, 1; END: st.global.u32 [%rd2], %r7;",
    );
    pair(ReportKind::UninitialisedRegister, "@%p5 mov.u32 %r7, 1;", "@%p1 mov.u32 %r7, 1;");
}

#[test]
fn asynchronous_copies() {
    let copy = "cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.commit_group;";
    pair(
        ReportKind::AsyncRead,
        &format!("{copy} cp.async.wait_group 1; ld.shared.u32 %r6, [%r3];"),
        &format!("{copy} cp.async.wait_group 0; ld.shared.u32 %r6, [%r3];"),
    );
    pair(
        ReportKind::AsyncRead,
        "cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.wait_group 0; ld.shared.u32 %r6, [%r3];",
        "cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.wait_all; ld.shared.u32 %r6, [%r3];",
    );
    pair(
        ReportKind::AsyncOverwrite,
        &format!("{copy} st.shared.u32 [%r3], %r1; cp.async.wait_all;"),
        &format!("{copy} cp.async.wait_all; st.shared.u32 [%r3], %r1;"),
    );
    // A wait without a barrier does not make the data visible to other warps.
    let other = "xor.b32 %r6, %r3, 128; ld.shared.u32 %r7, [%r6];";
    for seed in 0..6 {
        let result = kind(run(&format!("{copy} cp.async.wait_all; {other}"), seed));
        let early = [ReportKind::SharedRace, ReportKind::AsyncRead, ReportKind::UninitialisedRead];
        assert!(early.contains(&result), "seed {seed}: {result:?}");
        run(&format!("{copy} cp.async.wait_all; bar.sync 0; {other}"), seed).unwrap();
    }
}

#[test]
fn a_source_that_is_shorter_leaves_zeros() {
    let machine = Machine::new();
    let data = upload_u32(&machine, &[0x1111_1111; 64]);
    let body = "and.b32 %r6, %r5, 15; shl.b32 %r7, %r5, 4; add.u32 %r7, %r2, %r7; setp.gt.u32 %p3, %r1, 16;
        @%p3 bra END; min.u32 %r6, %r1, 16; cp.async.cg.shared.global [%r7], [%rd1], 16, %r6; cp.async.wait_all;
        ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r7]; popc.b32 %r8, %r8; popc.b32 %r9, %r9; popc.b32 %r10, %r10;
        popc.b32 %r11, %r11; add.u32 %r8, %r8, %r9; add.u32 %r10, %r10, %r11; add.u32 %r8, %r8, %r10;
        bar.warp.sync 0x1ffff; st.global.u32 [%rd2], %r8; END:";
    let module = module(&["data"], &format!("{REGISTERS} {body} ret;"));
    block(&machine, &module, 32, &[data]).unwrap();
    let expected: Vec<u32> = (0..17).map(|bytes| 2 * bytes).collect();
    assert_eq!(download_u32(&machine, data, 17), expected);
}

#[test]
fn shared_races() {
    let other = "xor.b32 %r6, %r3, 128;";
    // Write then read of the other warp's word.
    let write = format!("{other} st.shared.u32 [%r3], %r1;");
    for seed in 0..6 {
        let result = kind(run(&format!("{write} ld.shared.u32 %r7, [%r6];"), seed));
        assert!(matches!(result, ReportKind::SharedRace | ReportKind::UninitialisedRead), "{result:?}");
    }
    let read = format!("{write} bar.sync 0; ld.shared.u32 %r7, [%r6];");
    // Read then overwrite.
    pair(
        ReportKind::SharedRace,
        &format!("{read} st.shared.u32 [%r3], %r7;"),
        &format!("{read} bar.sync 0; st.shared.u32 [%r3], %r7;"),
    );
    // Two writes of one word; the same by one warp is no race.
    pair(ReportKind::SharedRace, "st.shared.u32 [tile], %r20;", "@%p2 st.shared.u32 [tile], %r20;");
    // Neighbouring bytes are not the same bytes.
    pair(
        ReportKind::SharedRace,
        "cvt.u64.u32 %rd3, %r4; mov.u32 %r6, tile; add.u32 %r6, %r6, %r4; st.shared.u16 [tile], %r20; st.shared.u8 [%r6], %r20;",
        "shl.b32 %r7, %r4, 1; add.u32 %r6, %r2, %r7; st.shared.u16 [%r6], %r20;",
    );
    // Atomics do not race with each other, but with plain accesses.
    let zero = "@%p2 st.shared.u32 [tile], %r20; bar.sync 0;";
    pair(
        ReportKind::SharedRace,
        &format!("{zero} @%p2 atom.shared.add.u32 %r6, [tile], 1; @!%p2 ld.shared.u32 %r6, [tile];"),
        &format!("{zero} atom.shared.add.u32 %r6, [tile], 1; bar.sync 0; ld.shared.u32 %r6, [tile];"),
    );
}

#[test]
fn divergent_barriers() {
    pair(ReportKind::DivergentBarrier, "@%p1 bar.sync 0;", "bar.sync 0;");
    pair(ReportKind::DivergentBarrier, "@%p1 exit; bar.sync 0;", "bar.sync 0; @%p1 exit;");
    pair(
        ReportKind::DivergentBarrier,
        "@%p1 bra LOW; bar.sync 0; bra END; LOW: bar.sync 0; END:",
        "@%p2 bra LOW; bar.sync 0; bra END; LOW: bar.sync 0; END:",
    );
    // Without `.aligned` the threads of a warp may come one by one.
    run("@%p1 bra LOW; barrier.cta.sync 0; bra END; LOW: barrier.cta.sync 0; END:", 1).unwrap();
}

#[test]
fn barrier_counts() {
    pair(ReportKind::BarrierCount, "bar.sync 1, 48;", "bar.sync 1, 64;");
    pair(ReportKind::BarrierCount, "bar.sync 1, 96;", "bar.sync 1;");
    // Three warps that disagree.
    for (first, expected) in [(64, Some(ReportKind::BarrierCount)), (96, None)] {
        let body = format!("{REGISTERS} @%p2 bra LOW; bar.sync 1, 96; bra END; LOW: bar.sync 1, {first}; END: ret;");
        let module = module(&["data"], &body);
        for seed in 0..6 {
            let result = block(&Machine::with_seed(seed), &module, 96, &[0]);
            match expected {
                Some(expected) => assert_eq!(kind(result), expected),
                None => result.unwrap(),
            }
        }
    }
}

#[test]
fn deadlocks() {
    pair(ReportKind::Deadlock, "@%p2 bra END; bar.sync 0; END:", "@%p2 bra END; bar.sync 0, 32; END:");
    pair(
        ReportKind::Deadlock,
        "@%p2 bra LOW; bar.sync 1; bar.sync 2; bra END; LOW: bar.sync 2; bar.sync 1; END:",
        "@%p2 bra LOW; bar.sync 1; bar.sync 2; bra END; LOW: bar.sync 1; bar.sync 2; END:",
    );
}

#[test]
fn divergent_collectives() {
    pair(
        ReportKind::DivergentCollective,
        "@%p1 shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;",
        "shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;",
    );
    pair(
        ReportKind::DivergentCollective,
        "@!%p1 bra END; shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1; END:",
        "@!%p1 bra END; shfl.sync.bfly.b32 %r6, %r1, 1, 31, 0xffff; END:",
    );
    // A member that reads from a lane outside the mask.
    pair(
        ReportKind::DivergentCollective,
        "@!%p1 bra END; shfl.sync.bfly.b32 %r6, %r1, 16, 31, 0xffff; END:",
        "@!%p1 bra END; shfl.sync.bfly.b32 %r6, %r1, 8, 31, 0xffff; END:",
    );
    pair(
        ReportKind::DivergentCollective,
        "@!%p1 bra END; vote.sync.ballot.b32 %r6, %p2, 0xff; END:",
        "@!%p1 bra END; vote.sync.ballot.b32 %r6, %p2, 0xffff; END:",
    );
    let zero = "mov.u32 %r8, 0; mov.f32 %f1, 0f00000000;";
    let mma =
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f1,%f1,%f1}, {%r8,%r8}, {%r8}, {%f1,%f1,%f1,%f1};";
    pair(
        ReportKind::DivergentCollective,
        &format!("{zero} @%p1 bra END; {mma} END:"),
        &format!("{zero} @%p2 bra END; {mma} END:"),
    );
}

#[test]
fn endless_loops() {
    pair(
        ReportKind::InstructionBudget,
        "AGAIN: @%p1 bra AGAIN;",
        "mov.u32 %r6, 0; AGAIN: add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 1000; @%p1 bra AGAIN;",
    );
}

#[test]
fn traps() {
    pair(ReportKind::Trap, "@%p1 trap;", "setp.gt.u32 %p3, %r1, 64; @%p3 trap;");
}

#[test]
fn the_first_block_in_order_is_reported() {
    let module = module(
        &["data"],
        ".reg .b32 %r<3>; .reg .pred %p<2>; mov.u32 %r1, %ctaid.x; setp.ge.u32 %p1, %r1, 37; @%p1 trap; ret;",
    );
    for seed in 0..4 {
        let machine = Machine::with_seed(seed);
        let error = launch(&machine, &module, [500, 1, 1], [32, 1, 1], 0, &[0]).unwrap_err();
        assert_eq!(error.report().unwrap().block, [37, 0, 0]);
        assert!(error.to_string().contains("block [37, 0, 0]"), "{error}");
    }
}

#[test]
fn lanes_of_a_warp_wait_for_each_other() {
    let neighbour = "xor.b32 %r7, %r3, 4;";
    let read = "ld.shared.u32 %r6, [%r7];";
    for (store, load) in [
        ("st.shared.u32 [%r3], %r1;", read),
        ("@%p1 st.shared.u32 [%r3], %r1; @!%p1 st.shared.u32 [%r3], %r4;", read),
        ("st.shared.u32 [%r3], %r1;", "ld.volatile.shared.u32 %r6, [%r7];"),
        ("cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.wait_all;", read),
    ] {
        let between = |what: &str| format!("{neighbour} {store} {what} {load}");
        pair(ReportKind::SharedRace, &between(""), &between("bar.warp.sync -1;"));
        pair(ReportKind::SharedRace, &between("shfl.sync.bfly.b32 %r8, %r1, 1, 31, -1;"), &between("bar.sync 0;"));
    }
    // Its own value a lane may read at once, and atomics do not race.
    pair(
        ReportKind::SharedRace,
        &format!("{neighbour} st.shared.u32 [%r3], %r1; atom.shared.add.u32 %r6, [%r7], 1;"),
        &format!(
            "{neighbour} st.shared.u32 [%r3], %r1; ld.shared.u32 %r6, [%r3]; bar.warp.sync -1;
             atom.shared.add.u32 %r6, [%r7], 1; atom.shared.add.u32 %r6, [%r3], 1;"
        ),
    );
}
