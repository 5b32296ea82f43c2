//! What a kernel may do before it has waited for the launches in front of it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{Launch, LaunchError, Machine, Module, ReportKind};

const REGISTERS: &str = "
    .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<8>; .shared .align 16 .b8 tile[1024];
    ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [weights]; mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd1, %r1, 4, %rd1; mad.wide.u32 %rd2, %r1, 4, %rd2; mov.u32 %r2, tile; mad.lo.u32 %r2, %r1, 4, %r2;
    setp.lt.u32 %p1, %r1, 40; griddepcontrol.launch_dependents;
";

/// Runs a body with 64 threads, a buffer of 64 words to write, and another one: in a launch that follows those in front, or in
/// one that may start early and calls the other one constant.
fn launch_body(body: &str, early: bool) -> Result<(), LaunchError> {
    let machine = Machine::new();
    let [data, weights] = [1, 2].map(|word| upload_u32(&machine, &[word; 64]));
    let text = text(&["data", "weights"], &format!("{REGISTERS}\n{body}\nret;"));
    let module = Module::parse(&text.replace(HEADER, HOPPER)).unwrap();
    let parameters: Vec<u8> = [data, weights].iter().flat_map(|address| address.to_le_bytes()).collect();
    let (grid, block, shared_bytes) = ([1; 3], [64, 1, 1], 0);
    // Anywhere in it; 0 stands for none.
    let constants = [0, weights + 40];
    let early = early.then_some(&constants[..]);
    machine.launch(&module, "test", &Launch { grid, block, shared_bytes, parameters: &parameters, early })
}

fn run(body: &str) -> Result<(), LaunchError> {
    launch_body(body, true)
}

#[track_caller]
fn pair(expected: ReportKind, wrong: &str, right: &str) {
    assert_eq!(kind(run(wrong)), expected, "{wrong}");
    run(right).unwrap_or_else(|error| panic!("{right}\n{error}"));
}

const WAIT: &str = "griddepcontrol.wait;";

#[test]
fn reads_of_what_others_write_come_after_the_wait() {
    for read in [
        "ld.global.u32 %r3, [%rd1];",
        "@%p1 ld.global.u32 %r3, [%rd1];",
        "ld.u32 %r3, [%rd1];",
        "cp.async.ca.shared.global [%r2], [%rd1], 4; cp.async.wait_all;",
        "atom.global.add.u32 %r3, [%rd1], 1;",
    ] {
        pair(ReportKind::EarlyAccess, &format!("{read} {WAIT}"), &format!("{WAIT} {read}"));
        launch_body(&format!("{read} {WAIT}"), false).unwrap();
        launch_body(read, false).unwrap();
    }
}

#[test]
fn writes_come_after_the_wait() {
    for write in ["st.global.u32 [%rd1], %r1;", "st.global.u32 [%rd2], %r1;", "red.global.add.u32 [%rd1], 1;"] {
        pair(ReportKind::EarlyAccess, &format!("{write} {WAIT}"), &format!("{WAIT} {write}"));
    }
    run(&format!("st.shared.u32 [%r2], %r1; ld.shared.u32 %r3, [%r2]; {WAIT}")).unwrap();
}

#[test]
fn constants_may_be_read_before() {
    for read in [
        "ld.global.u32 %r3, [%rd2];",
        "ld.global.nc.u32 %r3, [%rd2];",
        "cp.async.ca.shared.global [%r2], [%rd2], 4;",
        // Nothing is read of what is all zeros.
        "cp.async.ca.shared.global [%r2], [%rd1], 4, 0;",
    ] {
        run(&format!("{read} {WAIT} cp.async.wait_all; {read} cp.async.wait_all;")).unwrap();
    }
}

#[test]
fn the_non_coherent_cache_is_for_constants() {
    let read = |cache: &str| format!("{WAIT} ld.global{cache}.u32 %r3, [%rd1];");
    pair(ReportKind::EarlyAccess, &read(".nc"), &read(""));
    launch_body(&read(".nc"), false).unwrap();
}

#[test]
fn every_thread_waits_for_itself() {
    pair(ReportKind::EarlyExit, "", WAIT);
    pair(ReportKind::EarlyExit, &format!("@%p1 {WAIT}"), &format!("{WAIT} @%p1 {WAIT}"));
    pair(ReportKind::EarlyExit, &format!("@%p1 ret; {WAIT}"), &format!("{WAIT} @%p1 ret;"));
    let read = "ld.global.u32 %r3, [%rd1];";
    pair(ReportKind::EarlyAccess, &format!("@%p1 {WAIT} {read} {WAIT}"), &format!("@%p1 {WAIT} @%p1 {read} {WAIT}"));
}

#[test]
fn a_report_names_the_thread() {
    let error = run(&format!("@%p1 {WAIT} st.global.u32 [%rd1], %r1; {WAIT}")).unwrap_err();
    let report = error.report().unwrap();
    assert_eq!((report.kind, report.thread, report.lane), (ReportKind::EarlyAccess, [40, 0, 0], 8));
    assert!(report.text.contains("st.global") && report.address.is_some(), "{report}");
}
