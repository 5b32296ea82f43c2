//! Whole kernels in handwritten PTX: control flow, barriers, tensor cores.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::{Launch, Machine, Module};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// One thread an element, an inner loop over k.
const NAIVE: &str = "
    .reg .pred %p<3>; .reg .b32 %r<12>; .reg .f32 %f<5>; .reg .b64 %rd<12>;
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c];
    ld.param.u64 %rd4, [n]; cvt.u32.u64 %r1, %rd4;
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    mul.lo.s32 %r6, %r1, %r1;
    setp.ge.u32 %p1, %r5, %r6;
    @%p1 bra DONE;
    div.u32 %r7, %r5, %r1; rem.u32 %r8, %r5, %r1;
    mov.f32 %f1, 0f00000000;
    mov.u32 %r9, 0;
LOOP:
    mad.lo.s32 %r10, %r7, %r1, %r9;
    mul.wide.u32 %rd5, %r10, 4; add.s64 %rd6, %rd1, %rd5; ld.global.f32 %f2, [%rd6];
    mad.lo.s32 %r11, %r9, %r1, %r8;
    mul.wide.u32 %rd7, %r11, 4; add.s64 %rd8, %rd2, %rd7; ld.global.nc.f32 %f3, [%rd8];
    fma.rn.f32 %f1, %f2, %f3, %f1;
    add.s32 %r9, %r9, 1;
    setp.lt.u32 %p2, %r9, %r1;
    @%p2 bra LOOP;
    mul.wide.u32 %rd9, %r5, 4; add.s64 %rd10, %rd3, %rd9;
    st.global.f32 [%rd10], %f1;
DONE:
    ret;";

#[test]
fn naive_matrix_product_is_exact() {
    let module = module(&["a", "b", "c", "n"], NAIVE);
    let mut random = StdRng::seed_from_u64(7);
    for n in [1usize, 5, 16, 33] {
        let a: Vec<f32> = (0..n * n).map(|_| random.random_range(-1.0..1.0)).collect();
        let b: Vec<f32> = (0..n * n).map(|_| random.random_range(-1.0..1.0)).collect();
        for machine in [Machine::with_seed(1), Machine::with_seed(2).with_baseline_instructions()] {
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            let (da, db) = (upload_u32(&machine, &bits(&a)), upload_u32(&machine, &bits(&b)));
            let dc = machine.allocate(4 * n * n);
            let blocks = (n * n).div_ceil(96) as u32;
            launch(&machine, &module, [blocks, 1, 1], [96, 1, 1], 0, &[da, db, dc, n as u64]).unwrap();
            let c = download_u32(&machine, dc, n * n);
            for i in 0..n {
                for j in 0..n {
                    let expected = (0..n).fold(0f32, |sum, k| a[i * n + k].mul_add(b[k * n + j], sum));
                    assert_eq!(c[i * n + j], expected.to_bits(), "n {n}, element {i}, {j}");
                }
            }
        }
    }
}

/// 64 × 64 of C a block of 4 warps: cp.async in two stages, ldmatrix, mma. Rows of 16 elements (32 bytes) in shared
/// memory, so that a row of 8 elements is always aligned.
const TILED: &str = "
    .reg .pred %p<4>; .reg .b32 %r<64>; .reg .f32 %f<33>; .reg .b64 %rd<16>;
    .shared .align 16 .b8 tile[8192];
    ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd4, [k];
    cvt.u32.u64 %r1, %rd4;
    mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ctaid.y;
    shr.u32 %r5, %r2, 1; and.b32 %r6, %r2, 1;                 // row of the copy, half of the row
    mad.lo.u32 %r7, %r3, 64, %r5; mul.lo.u32 %r7, %r7, %r1;   // element of A
    mad.lo.u32 %r8, %r4, 64, %r5; mul.lo.u32 %r8, %r8, %r1;   // element of B, stored by columns
    mad.lo.u32 %r7, %r6, 8, %r7; mad.lo.u32 %r8, %r6, 8, %r8;
    mad.wide.u32 %rd5, %r7, 2, %rd1; mad.wide.u32 %rd6, %r8, 2, %rd2;
    mov.u32 %r9, tile; shl.b32 %r10, %r2, 4; add.u32 %r10, %r9, %r10;
    // fragment addresses: A rows 16 warp + lane % 16, half lane / 16; B rows lane % 8, half (lane / 8) % 2
    mov.u32 %r11, %laneid; shr.u32 %r12, %r2, 5;
    and.b32 %r13, %r11, 15; mad.lo.u32 %r13, %r12, 16, %r13; shl.b32 %r13, %r13, 5;
    shr.u32 %r14, %r11, 4; shl.b32 %r14, %r14, 4; add.u32 %r13, %r13, %r14; add.u32 %r13, %r9, %r13;
    and.b32 %r15, %r11, 7; shl.b32 %r15, %r15, 5; bfe.u32 %r16, %r11, 3, 1; shl.b32 %r16, %r16, 4;
    add.u32 %r15, %r15, %r16; add.u32 %r15, %r15, %r9; add.u32 %r15, %r15, 2048;
    ZERO
    cp.async.cg.shared.global.L2::128B [%r10], [%rd5], 16;
    cp.async.cg.shared.global [%r10+2048], [%rd6], 16;
    cp.async.commit_group;
    mov.u32 %r20, 0; mov.u32 %r21, 0;
LOOP:
    add.u32 %r20, %r20, 16;
    xor.b32 %r22, %r21, 4096;
    setp.lt.u32 %p1, %r20, %r1;
    add.u64 %rd5, %rd5, 32; add.u64 %rd6, %rd6, 32;
    add.u32 %r23, %r10, %r22;
    @%p1 cp.async.cg.shared.global [%r23], [%rd5], 16;
    @%p1 cp.async.cg.shared.global [%r23+2048], [%rd6], 16;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    add.u32 %r24, %r13, %r21; add.u32 %r25, %r15, %r21;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30, %r31, %r32, %r33}, [%r24];
    MMA
    bar.sync 0;
    mov.u32 %r21, %r22;
    @%p1 bra LOOP;
    // C is 64 × (64 gridDim.y)
    shr.u32 %r40, %r11, 2; and.b32 %r41, %r11, 3;
    mad.lo.u32 %r42, %r3, 64, %r40; mad.lo.u32 %r42, %r12, 16, %r42;
    mov.u32 %r43, %nctaid.y; shl.b32 %r43, %r43, 6;
    mul.lo.u32 %r44, %r42, %r43; mad.lo.u32 %r44, %r4, 64, %r44; mad.lo.u32 %r44, %r41, 2, %r44;
    mad.wide.u32 %rd7, %r44, 4, %rd3;
    mul.wide.u32 %rd8, %r43, 32; add.s64 %rd8, %rd7, %rd8;
    STORE
    ret;";

fn tiled() -> String {
    let (mut zero, mut mma, mut store) = (String::new(), String::new(), String::new());
    for n in 0..8 {
        let f: Vec<String> = (0..4).map(|i| format!("%f{}", 4 * n + i)).collect();
        f.iter().for_each(|f| zero += &format!("mov.f32 {f}, 0f00000000;\n"));
        let f = f.join(", ");
        mma += &format!("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r34, %r35}}, [%r25+{}];\n", n * 256);
        mma += &format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{f}}}, {{%r30,%r31,%r32,%r33}}, {{%r34,%r35}}, {{{f}}};\n"
        );
        store += &format!("st.global.v2.f32 [%rd7+{}], {{%f{}, %f{}}};\n", 32 * n, 4 * n, 4 * n + 1);
        store += &format!("st.global.v2.f32 [%rd8+{}], {{%f{}, %f{}}};\n", 32 * n, 4 * n + 2, 4 * n + 3);
    }
    let body = TILED.replace("ZERO", &zero).replace("MMA", &mma).replace("STORE", &store);
    text(&["a", "b", "c", "k"], &body)
}

/// Runs the tiled product of random matrices and gives its largest error against f64.
fn tiled_error(source: &str, seed: u64) -> Result<f64, ptx_emulator::LaunchError> {
    let (m, n, k) = (128usize, 64usize, 96usize);
    let mut random = StdRng::seed_from_u64(seed);
    let mut matrix = |count: usize| (0..count).map(|_| bf16(random.random_range(-1.0..1.0))).collect::<Vec<u16>>();
    let (a, b) = (matrix(m * k), matrix(n * k));
    let machine = Machine::with_seed(seed);
    let (da, db) = (upload_u16(&machine, &a), upload_u16(&machine, &b));
    let dc = machine.allocate(4 * m * n);
    let module = Module::parse(source).unwrap();
    launch(&machine, &module, [2, 1, 1], [128, 1, 1], 0, &[da, db, dc, k as u64])?;
    let c = download_u32(&machine, dc, m * n);
    let mut worst = 0f64;
    for i in 0..m {
        for j in 0..n {
            let exact: f64 = (0..k).map(|x| f64::from(widen(a[i * k + x])) * f64::from(widen(b[j * k + x]))).sum();
            worst = worst.max((f64::from(f32::from_bits(c[i * n + j])) - exact).abs());
        }
    }
    Ok(worst)
}

#[test]
fn tiled_matrix_product_is_right() {
    for seed in 0..4 {
        let error = tiled_error(&tiled(), seed).unwrap();
        assert!(error < 1e-4, "seed {seed}: error {error}");
    }
}

#[test]
fn every_removed_synchronisation_of_the_tiled_product_is_caught() {
    let source = tiled();
    let mutants = [
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
        ("cp.async.wait_group 1;", ""),
        ("bar.sync 0;\n    add.u32 %r24", "add.u32 %r24"),
        ("bar.sync 0;\n    mov.u32 %r21", "mov.u32 %r21"),
        ("xor.b32 %r22, %r21, 4096;", "mov.u32 %r22, %r21;"),
    ];
    for (from, to) in mutants {
        assert!(source.contains(from), "{from}");
        let mutant = source.replacen(from, to, 1);
        let caught = (0..3).all(|seed| tiled_error(&mutant, seed).map_or(true, |error| error > 1e-4));
        assert!(caught, "without `{from}` the product is still right");
    }
}

#[test]
fn nested_branches_loops_and_early_exits() {
    // Each thread counts Collatz steps of its number, by a branch in a loop; odd threads above 20 leave early.
    let module = module(
        &["out"],
        "
    .reg .pred %p<5>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd2, %r1, 4, %rd1;
    and.b32 %r2, %r1, 1;
    setp.gt.u32 %p1, %r1, 20;
    setp.ne.and.u32 %p2, %r2, 0, %p1;
    mov.u32 %r6, 777;
    @%p2 st.global.u32 [%rd2], %r6;
    @%p2 exit;
    add.u32 %r3, %r1, 1;
    mov.u32 %r4, 0;
LOOP:
    setp.eq.u32 %p3, %r3, 1;
    @%p3 bra DONE;
    and.b32 %r5, %r3, 1;
    setp.eq.u32 %p4, %r5, 0;
    @%p4 bra EVEN;
    mad.lo.u32 %r3, %r3, 3, 1;
    bra.uni NEXT;
EVEN:
    shr.u32 %r3, %r3, 1;
NEXT:
    add.u32 %r4, %r4, 1;
    bra LOOP;
DONE:
    st.global.u32 [%rd2], %r4;
    ret;",
    );
    for threads in [32, 50, 128] {
        let machine = Machine::new();
        let out = machine.allocate(4 * threads as usize);
        block(&machine, &module, threads, &[out]).unwrap();
        let expected: Vec<u32> = (0..threads)
            .map(|t| {
                if t > 20 && t % 2 == 1 {
                    return 777;
                }
                let (mut n, mut steps) = (t + 1, 0);
                while n != 1 {
                    n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
                    steps += 1;
                }
                steps
            })
            .collect();
        assert_eq!(download_u32(&machine, out, threads as usize), expected);
    }
}

#[test]
fn a_diverged_warp_comes_together_for_a_shuffle() {
    // Both sides of the branch reach the same shuffle by different ways, one of them backwards.
    let module = module(
        &["out"],
        "
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %laneid; mad.wide.u32 %rd2, %r1, 4, %rd1;
    setp.lt.u32 %p1, %r1, 16;
    @%p1 bra LOW;
    bra HIGH;
JOIN:
    shfl.sync.bfly.b32 %r3, %r2, 16, 31, -1;
    st.global.u32 [%rd2], %r3;
    ret;
LOW:
    mov.u32 %r2, 5;
    bra JOIN;
HIGH:
    mov.u32 %r2, 9;
    bra JOIN;",
    );
    let machine = Machine::new();
    let out = machine.allocate(128);
    block(&machine, &module, 32, &[out]).unwrap();
    let expected: Vec<u32> = (0..32).map(|lane| if lane < 16 { 9 } else { 5 }).collect();
    assert_eq!(download_u32(&machine, out, 32), expected);
}

#[test]
fn block_reduction_through_shared_memory_and_atomics() {
    let source = "
    .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r4, %r2, %r3, %r1;
    redux.sync.add.u32 %r5, %r4, 0xffffffff;
    mov.u32 %r6, partial; shr.u32 %r7, %r1, 5; shl.b32 %r7, %r7, 2; add.u32 %r7, %r6, %r7;
    mov.u32 %r8, %laneid; setp.eq.u32 %p1, %r8, 0;
    @%p1 st.shared.u32 [%r7], %r5;
    bar.sync 0;
    setp.ne.u32 %p2, %r1, 0;
    @%p2 bra END;
    ld.shared.v4.u32 {%r5, %r8, %r9, %r10}, [partial];
    add.u32 %r5, %r5, %r8; add.u32 %r9, %r9, %r10; add.u32 %r5, %r5, %r9;
    red.global.add.u32 [%rd1], %r5;
    atom.global.max.u32 %r11, [%rd1+4], %r4;
END:
    ret;";
    let module = Module::parse(&format!(
        "{HEADER}.extern .shared .align 16 .b8 partial[];\n.visible .entry test(.param .u64 out) {{ {source} }}"
    ))
    .unwrap();
    let machine = Machine::new();
    let out = upload_u32(&machine, &[0, 0]);
    launch(&machine, &module, [50, 1, 1], [128, 1, 1], 16, &[out]).unwrap();
    let n = 50 * 128;
    assert_eq!(download_u32(&machine, out, 2), [n * (n - 1) / 2, 49 * 128]);
}

#[test]
fn barrier_reductions_and_named_barriers() {
    // Warp 0 produces and arrives, warps 1 and 2 consume; barrier 2 counts 64 threads. Then a reduction over all.
    let module = module(
        &["out"],
        "
    .reg .pred %p<6>; .reg .b32 %r<10>; .reg .b64 %rd<4>;
    .shared .align 4 .b8 box[4];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1;
    setp.ge.u32 %p1, %r1, 32;
    @%p1 bra CONSUMER;
    mov.u32 %r2, 42; setp.eq.u32 %p2, %r1, 0;
    @%p2 st.shared.u32 [box], %r2;
    bar.arrive 2, 96;
    mov.u32 %r3, 0;
    bra JOIN;
CONSUMER:
    bar.sync 2, 96;
    ld.shared.u32 %r3, [box];
JOIN:
    setp.gt.u32 %p3, %r1, 69;
    barrier.cta.red.popc.aligned.u32 %r4, 0, %p3;
    barrier.cta.red.or.aligned.pred %p4, 0, %p3;
    bar.red.and.pred %p5, 0, !%p3;
    selp.u32 %r5, 1000, 0, %p4; selp.u32 %r6, 10000, 0, %p5;
    add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5; add.u32 %r3, %r3, %r6;
    st.global.u32 [%rd2], %r3;
    ret;",
    );
    for seed in 0..8 {
        let machine = Machine::with_seed(seed);
        let out = machine.allocate(4 * 96);
        block(&machine, &module, 96, &[out]).unwrap();
        let expected: Vec<u32> = (0..96).map(|t| 1026 + if t >= 32 { 42 } else { 0 }).collect();
        assert_eq!(download_u32(&machine, out, 96), expected);
    }
}

#[test]
fn launches_are_validated() {
    let module = Module::parse(&format!(
        "{HEADER}.visible .entry test(.param .u32 a, .param .u64 b) .reqntid 64 {{ ret; }}
         .visible .entry most() .maxntid 64, 2, 1 {{ ret; }}"
    ))
    .unwrap();
    assert_eq!(module.entries().collect::<Vec<_>>(), ["test", "most"]);
    let machine = Machine::new();
    let base = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared_bytes: 0, parameters: &[0; 16], early: None };
    machine.launch(&module, "test", &base).unwrap();
    let most = Launch { parameters: &[], ..base };
    machine.launch(&module, "most", &Launch { block: [128, 1, 1], ..most }).unwrap();
    let refused = |entry: &str, launch: Launch<'_>, needle: &str| {
        let error = machine.launch(&module, entry, &launch).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    };
    refused("other", base, "it has: test, most");
    refused("test", Launch { parameters: &[0; 12], ..base }, "takes 16 bytes of parameters (a at 0, 4 bytes; b at 8");
    refused("test", Launch { grid: [1, 0, 1], ..base }, "grid");
    refused("test", Launch { grid: [1, 65536, 1], ..base }, "grid");
    refused("test", Launch { block: [32, 1, 1], ..base }, ".reqntid");
    refused("most", Launch { block: [129, 1, 1], ..most }, ".maxntid");
    refused("most", Launch { block: [0, 1, 1], ..most }, "1 to 1024");
    refused("most", Launch { block: [1024, 2, 1], ..most }, "1 to 1024");
    refused("most", Launch { shared_bytes: 240_000, ..most }, "shared memory");
}

#[test]
fn host_accesses_are_checked() {
    let machine = Machine::new();
    let address = machine.allocate(100);
    assert!(address > 1 << 32 && address.is_multiple_of(256));
    assert!(machine.write(address, &[1; 101]).is_err());
    assert!(machine.write(address + 99, &[1; 2]).is_err());
    machine.write(address + 3, &[7; 90]).unwrap();
    assert!(machine.read(address, &mut [0; 100]).is_err());
    let mut bytes = [9; 100];
    machine.read_unchecked(address, &mut bytes).unwrap();
    assert_eq!((bytes[2], bytes[3], bytes[92], bytes[93]), (0, 7, 7, 0));
    assert!(machine.free(address + 1).is_err());
    machine.free(address).unwrap();
    assert!(machine.free(address).is_err());
    assert!(machine.read(address, &mut [0; 1]).is_err());
    assert_ne!(machine.allocate(100), address);
}
