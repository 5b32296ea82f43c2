//! Warp-wide exchanges and atomics against models.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::Machine;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Runs `code` in one warp; `%a` and `%b` are the lane's inputs, `%d` its result.
fn warp(code: &str, a: &[u32], b: &[u32]) -> Vec<u32> {
    let module = module(
        &["a", "b", "out"],
        &format!(
            ".reg .pred %p, %q; .reg .b32 %t, %a, %b, %d, %m; .reg .b64 %la, %lb, %lo, %w;
             ld.param.u64 %la, [a]; ld.param.u64 %lb, [b]; ld.param.u64 %lo, [out]; mov.u32 %t, %laneid;
             mad.wide.u32 %la, %t, 4, %la; mad.wide.u32 %lb, %t, 4, %lb; mad.wide.u32 %lo, %t, 4, %lo;
             ld.global.u32 %a, [%la]; ld.global.u32 %b, [%lb];
             {code}
             st.global.u32 [%lo], %d; ret;"
        ),
    );
    let machine = Machine::new();
    let (la, lb, lo) = (upload_u32(&machine, a), upload_u32(&machine, b), machine.allocate(128));
    block(&machine, &module, 32, &[la, lb, lo]).unwrap_or_else(|error| panic!("{code}: {error}"));
    download_u32(&machine, lo, 32)
}

fn inputs(seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = StdRng::seed_from_u64(seed);
    ((0..32).map(|_| random.random()).collect(), (0..32).map(|_| random.random_range(0..40)).collect())
}

fn per_lane(f: impl Fn(usize) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn shuffles() {
    for seed in 0..20 {
        let (a, b) = inputs(seed);
        for distance in [0usize, 1, 3, 16, 31] {
            let of = |mode: &str, clamp: u32| {
                warp(&format!("shfl.sync.{mode}.b32 %d, %a, {distance}, {clamp}, -1;"), &a, &b)
            };
            assert_eq!(of("bfly", 31), per_lane(|lane| a[lane ^ distance]));
            assert_eq!(of("up", 0), per_lane(|lane| a[if lane >= distance { lane - distance } else { lane }]));
            assert_eq!(of("down", 31), per_lane(|lane| a[if lane + distance < 32 { lane + distance } else { lane }]));
            assert_eq!(of("idx", 31), per_lane(|_| a[distance]));
            // Segments of eight lanes: bits 8 to 12 of the clamp are the lane bits that stay.
            let (segment, near) = (0x1800, distance % 8);
            assert_eq!(of("idx", segment | 7), per_lane(|lane| a[lane / 8 * 8 + near]));
            let inside = |lane: usize| lane % 8 + distance < 8;
            assert_eq!(of("down", segment | 7), per_lane(|lane| a[if inside(lane) { lane + distance } else { lane }]));
        }
        assert_eq!(warp("shfl.sync.idx.b32 %d, %a, %b, 31, -1;", &a, &b), per_lane(|lane| a[b[lane] as usize % 32]));
        let valid = warp("shfl.sync.up.b32 %d|%p, %a, 5, 0, -1; selp.u32 %d, 1, 0, %p;", &a, &b);
        assert_eq!(valid, per_lane(|lane| u32::from(lane >= 5)));
    }
}

#[test]
fn votes_matches_and_reductions() {
    for seed in 0..20 {
        let (a, b) = inputs(seed);
        let low = "setp.lt.u32 %p, %b, 20;";
        let ballot = (0..32).fold(0u32, |bits, lane| bits | u32::from(b[lane] < 20) << lane);
        assert_eq!(warp(&format!("{low} vote.sync.ballot.b32 %d, %p, -1;"), &a, &b), [ballot; 32]);
        assert_eq!(warp(&format!("{low} vote.sync.ballot.b32 %d, !%p, -1;"), &a, &b), [!ballot; 32]);
        for (name, expected) in
            [("any", ballot != 0), ("all", ballot == u32::MAX), ("uni", ballot == 0 || ballot == u32::MAX)]
        {
            let code = format!("{low} vote.sync.{name}.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;");
            assert_eq!(warp(&code, &a, &b), [u32::from(expected); 32]);
        }
        assert_eq!(warp("vote.sync.all.pred %q, 1, -1; selp.u32 %d, 1, 0, %q;", &a, &b), [1; 32]);
        let equal = |lane: usize| (0..32).fold(0u32, |bits, other| bits | u32::from(b[other] == b[lane]) << other);
        assert_eq!(warp("match.any.sync.b32 %d, %b, -1;", &a, &b), per_lane(equal));
        assert_eq!(warp("cvt.u64.u32 %w, %b; match.any.sync.b64 %d, %w, -1;", &a, &b), per_lane(equal));
        assert_eq!(warp("match.all.sync.b32 %d|%p, %b, -1;", &a, &b), [0; 32]);
        let folds: [Binary<u32, u32>; 7] = [
            ("add.u32", u32::wrapping_add),
            ("min.u32", u32::min),
            ("max.s32", |x, y| (x as i32).max(y as i32) as u32),
            ("min.s32", |x, y| (x as i32).min(y as i32) as u32),
            ("and.b32", |x, y| x & y),
            ("or.b32", |x, y| x | y),
            ("xor.b32", |x, y| x ^ y),
        ];
        for (name, fold) in folds {
            let all = a.iter().copied().reduce(fold).unwrap();
            assert_eq!(warp(&format!("redux.sync.{name} %d, %a, -1;"), &a, &b), [all; 32], "{name}");
        }
        // Half of the warp, by its own mask.
        let half = "setp.lt.u32 %p, %t, 16; mov.u32 %d, 0; @%p redux.sync.add.u32 %d, %a, 0xffff; @%p activemask.b32 %m; @%p add.u32 %d, %d, %m;";
        let sum = a[..16].iter().fold(0xffffu32, |sum, &x| sum.wrapping_add(x));
        assert_eq!(warp(half, &a, &b), per_lane(|lane| if lane < 16 { sum } else { 0 }));
    }
}

#[test]
fn atomics_of_one_warp() {
    let (a, b) = inputs(1);
    // All lanes on one word, in lane order: the old values are the prefix.
    let old_and_new = |instruction: &str, start: u64, wide: bool| {
        let (word, ty) = if wide { ("%w", "u64") } else { ("%a", "u32") };
        let widen = if wide { "cvt.u64.u32 %w, %a;" } else { "" };
        let narrow = if wide { "cvt.u32.u64 %d, %v;" } else { "mov.u32 %d, %v;" };
        let module = module(
            &["a", "out", "place"],
            &format!(
                ".reg .b32 %t, %a, %d; .reg .b64 %la, %lo, %lp, %w; .reg .{ty} %v;
                 ld.param.u64 %la, [a]; ld.param.u64 %lo, [out]; ld.param.u64 %lp, [place]; mov.u32 %t, %laneid;
                 mad.wide.u32 %la, %t, 4, %la; mad.wide.u32 %lo, %t, 4, %lo; ld.global.u32 %a, [%la]; {widen}
                 {} {narrow} st.global.u32 [%lo], %d; ret;",
                instruction.replace("WORD", word)
            ),
        );
        let machine = Machine::new();
        let (la, lo, lp) = (upload_u32(&machine, &a), machine.allocate(128), upload_u64(&machine, &[start]));
        block(&machine, &module, 32, &[la, lo, lp]).unwrap();
        (download_u32(&machine, lo, 32), download_u64(&machine, lp, 1)[0])
    };
    let cases: [Binary<u32, u32>; 9] = [
        ("add.u32", u32::wrapping_add),
        ("min.u32", u32::min),
        ("max.s32", |x, y| (x as i32).max(y as i32) as u32),
        ("and.b32", |x, y| x & y),
        ("or.b32", |x, y| x | y),
        ("xor.b32", |x, y| x ^ y),
        ("exch.b32", |_, y| y),
        ("inc.u32", |x, y| if x >= y { 0 } else { x + 1 }),
        ("dec.u32", |x, y| if x == 0 || x > y { y } else { x - 1 }),
    ];
    for (name, model) in cases {
        let (old, new) = old_and_new(&format!("atom.global.{name} %v, [%lp], WORD;"), 0x5_0000_1234, false);
        let mut now = 0x1234;
        for lane in 0..32 {
            assert_eq!(old[lane], now, "{name}, lane {lane}");
            now = model(now, a[lane]);
        }
        assert_eq!(new, 0x5_0000_0000 | u64::from(now), "{name}");
    }
    let (_, sum) = old_and_new("atom.global.gpu.relaxed.add.u64 %v, [%lp], WORD;", 1 << 40, true);
    assert_eq!(sum, a.iter().fold(1 << 40, |sum, &x| sum + u64::from(x)));
    let (old, new) = old_and_new("atom.global.cas.b32 %v, [%lp], 7, WORD;", 7, false);
    assert_eq!((old[0], &old[1..], new), (7, &[a[0]; 31][..], u64::from(a[0])));
    let _ = b;
}

#[test]
fn float_atomics_and_many_blocks() {
    let module = module(
        &["out"],
        ".reg .b64 %rd<2>; .reg .f32 %f<2>; ld.param.u64 %rd1, [out]; red.global.add.f32 [%rd1], 0f3F800000;
         red.global.add.u32 [%rd1+4], 3; red.global.max.u64 [%rd1+8], 77; ret;",
    );
    let machine = Machine::new();
    let out = upload_u32(&machine, &[0; 4]);
    launch(&machine, &module, [30, 2, 2], [64, 1, 1], 0, &[out]).unwrap();
    let count = 30 * 4 * 64;
    assert_eq!(download_u32(&machine, out, 4), [(count as f32).to_bits(), 3 * count, 77, 0]);
}
