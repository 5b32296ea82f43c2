//! The parser: what it accepts, how it refuses, and that no text makes it panic.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use proptest::prelude::*;
use ptx_emulator::{Machine, Module};

const SAMPLE: &str = include_str!("sample.ptx");

#[test]
fn the_sample_parses_and_runs() {
    let module = Module::parse(SAMPLE).unwrap();
    assert_eq!(module.entries().collect::<Vec<_>>(), ["test"]);
    let machine = Machine::new();
    let data = upload_u32(&machine, &[3; 64]);
    launch(&machine, &module, [1; 3], [64, 1, 1], 512, &[data]).unwrap();
    // Each thread: 2 × 3 from shared memory, plus the sum of the warp's lanes, plus 1 from the inner scope.
    let expected: Vec<u32> = vec![6 + 496 + 1; 64];
    assert_eq!(download_u32(&machine, data, 64), expected);
}

#[track_caller]
fn refused(body: &str, line: u32, needle: &str) {
    let header = ".reg .pred %p<3>;\n.reg .b32 %r<4>; .reg .f32 %f<9>; .reg .b64 %rd<3>; .reg .b16 %h<2>;";
    let error = Module::parse(&text(&["a"], &format!("{header}\n{body}\nret;"))).unwrap_err();
    assert!(error.message.contains(needle), "{error}");
    // Three lines of header, the entry, its brace and the declarations come before.
    assert_eq!(error.line, 7 + line, "{error}");
    assert!(!error.text.is_empty() && error.to_string().contains(&error.text), "{error}");
}

#[test]
fn refusals_name_the_line_and_what_is_wrong() {
    refused("tex.2d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [a, {%r1, %r2}];", 1, "the instruction `tex");
    refused("ld.global.u32 %r1, [%rd1, %r1];", 1, "coordinates stand in braces");
    refused("ld.global.u32 %r1, [%rd1, {%r1}];", 1, "expected an address in brackets");
    refused("sad.u32 %r1, %r2, %r3, %r1;", 1, "the instruction `sad.u32` is not supported");
    refused("mov.u32 %r1, 5;\nadd.u32.wide %r1, %r1, 2;", 2, "`.wide` is not supported on `add`");
    refused("add.u32 %r1, %r2;", 1, "takes 3 operands here, found 2");
    refused("add.u32 %r1, %r9, %r2;", 1, "`%r9` is neither a declared register");
    refused("add.u32 %rd1, %r1, %r2;", 1, "the destination `%rd1` is declared B64");
    refused("add.u32 %r1, %rd1, %r2;", 1, "`%rd1` is declared B64");
    refused("add.u32 %r1, %h1, %r2;", 1, "has 2 bytes");
    refused("bra NOWHERE;", 1, "no label `NOWHERE`");
    refused("L: mov.u32 %r1, 1;\nL: mov.u32 %r1, 1;", 2, "declared twice");
    refused("ld.local.u32 %r1, [%rd1];", 1, "state space");
    refused("ld.global.u32 %r1, [%r1];", 1, "64-bit register");
    refused("ld.param.u64 %rd1, [b];", 1, "no parameter `b`");
    refused("ld.param.u64 %rd1, [a+4];", 1, "beyond");
    refused("ld.global.v4.u64 {%rd1, %rd1, %rd1, %rd1}, [%rd1];", 1, "at most 16 bytes");
    refused("ld.global.v2.u32 %r1, [%rd1];", 1, "the opcode says 2");
    refused("cp.async.cg.shared.global [%r1], [%rd1], 12;", 1, "4, 8 or 16 bytes");
    refused("cp.async.wait_group %r1;", 1, "immediate");
    refused("wgmma.wait_group.sync.aligned 8;", 1, "0 to 7");
    refused("wgmma.fence.sync;", 1, "`.sync.aligned`");
    refused("wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16 {%f1}, %rd1, %rd1, 1, 1, 1, 0, 0;", 1, "m64nNk16");
    refused(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd1, 1, 1, 1, 0, 0;",
        1,
        "4 accumulators",
    );
    refused("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, %rd1, %rd1, 1, 2, 1, 0, 0;", 1, "1 or -1");
    refused("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1}, {%r1}, %rd1, 1, 1, 1, 0;", 1, "four registers");
    refused("setmaxnreg.inc.sync.aligned.u32 100;", 1, "multiple of 8");
    refused("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd1, {%r1}], [%r1];", 1, "bulk copies");
    refused(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r1}], [%r1];",
        1,
        "2 dimensions",
    );
    refused("mbarrier.init.b64 [%r1], 1;", 1, "64-bit register");
    refused("mbarrier.arrive_drop.shared.b64 _, [%r1];", 1, "mbarrier instructions");
    refused("fence.proxy.tensormap;", 1, "fence.proxy.async");
    refused("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r1}, {%f1};", 1, "m16n8k{8,16}");
    refused("add.rz.f32 %f1, %f2, %f3;", 1, "nearest even only");
    refused("cvt.f16.f32 %h1, %f1;", 1, "needs a rounding");
    refused("setp.foo.u32 %p1, %r1, %r2;", 1, "not a comparison");
    refused("mov.u32 %r1, 12abc;", 1, "not a number");
    refused("mov.u32 %r1 5;", 1, "expected `,`");
    let error = Module::parse(".version 7.0\n.func f() { ret; }").unwrap_err();
    assert_eq!((error.line, error.message.contains("`.func` is not supported")), (2, true));
    assert!(Module::parse("/* never closed").is_err());
    assert!(Module::parse(".visible .entry test( {").is_err());
}

#[test]
fn no_deep_nesting_overflows_the_stack() {
    for open in ["{", "[", "-", "@!", "{[", "/*"] {
        let _ = Module::parse(&text(&[], &format!("mov.u32 %r1, {};", open.repeat(100_000))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Pieces of a valid text, cut, doubled, exchanged and spoilt.
    #[test]
    fn mutated_text_never_panics(
        edits in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<char>()), 1..6),
    ) {
        let mut pieces: Vec<String> =
            SAMPLE.split_inclusive(|c: char| c.is_whitespace() || ",;.[]{}".contains(c)).map(str::to_string).collect();
        for (kind, at, other, character) in edits {
            let (at, other) = (at.index(pieces.len()), other.index(pieces.len()));
            match kind {
                0 => pieces[at].clear(),
                1 => pieces.swap(at, other),
                2 => pieces[at] = pieces[other].clone(),
                _ => pieces[at].push(character),
            }
        }
        if let Err(error) = Module::parse(&pieces.concat()) {
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[ -~\n]{0,200}") {
        let _ = Module::parse(&text);
        let _ = Module::parse(&format!("{HEADER}.visible .entry test() {{ {text} }}"));
    }
}
