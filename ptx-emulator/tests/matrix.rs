//! `mma.sync` in every supported shape and format, with B through `ldmatrix.trans`, element by element; `stmatrix`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::Machine;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A small integer in either format; products and sums of such are exact.
fn encode(format: &str, value: i32) -> u16 {
    if value == 0 {
        return 0;
    }
    let (bias, mantissa) = if format == "f16" { (15, 10) } else { (127, 7) };
    let exponent = value.unsigned_abs().ilog2();
    let fraction = (value.unsigned_abs() << mantissa >> exponent) & ((1 << mantissa) - 1);
    (u32::from(value < 0) << 15 | (exponent + bias) << mantissa | fraction) as u16
}

#[test]
fn every_shape_and_format_is_exact_on_integers() {
    let mut random = StdRng::seed_from_u64(9);
    for format in ["bf16", "f16"] {
        for depth in [8usize, 16] {
            let (a_loads, a_list, b_loads, b_list) = if depth == 16 {
                ("x4", "%r10, %r11, %r12, %r13", "x2", "%r14, %r15")
            } else {
                ("x2", "%r10, %r11", "x1", "%r14")
            };
            // A has 16 rows of `depth` elements, B has `depth` rows of 8: 16-byte pieces, one lane each.
            let (pieces, row) = (depth * 3, depth * 2);
            let module = module(
                &["a", "c", "d"],
                &format!(
                    ".reg .pred %p; .reg .b32 %r<20>; .reg .f32 %f<8>; .reg .b64 %rd<8>;
                     .shared .align 16 .b8 tile[1024];
                     ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [c]; ld.param.u64 %rd3, [d];
                     mov.u32 %r1, %laneid; mov.u32 %r2, tile; mov.u32 %r3, %r1;
                 COPY:
                     setp.lt.u32 %p, %r3, {pieces};
                     mad.wide.u32 %rd4, %r3, 16, %rd1; mad.lo.u32 %r4, %r3, 16, %r2;
                     @%p ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%rd4];
                     @%p st.shared.v4.u32 [%r4], {{%r5, %r6, %r7, %r8}};
                     add.u32 %r3, %r3, 32;
                     @%p bra COPY;
                     bar.warp.sync -1;
                     and.b32 %r5, %r1, 15; mul.lo.u32 %r6, %r5, {row}; shr.u32 %r7, %r1, 4;
                     mad.lo.u32 %r6, %r7, 16, %r6; add.u32 %r6, %r6, %r2;
                     mad.lo.u32 %r7, %r5, 16, %r2; add.u32 %r7, %r7, {};
                     ldmatrix.sync.aligned.m8n8.{a_loads}.shared.b16 {{{a_list}}}, [%r6];
                     ldmatrix.sync.aligned.m8n8.{b_loads}.trans.shared.b16 {{{b_list}}}, [%r7];
                     shr.u32 %r8, %r1, 2; and.b32 %r9, %r1, 3; shl.b32 %r8, %r8, 5; mad.lo.u32 %r8, %r9, 8, %r8;
                     cvt.u64.u32 %rd5, %r8; add.u64 %rd6, %rd2, %rd5; add.u64 %rd7, %rd3, %rd5;
                     ld.global.v2.f32 {{%f0, %f1}}, [%rd6]; ld.global.v2.f32 {{%f2, %f3}}, [%rd6+256];
                     mma.sync.aligned.m16n8k{depth}.row.col.f32.{format}.{format}.f32
                         {{%f4, %f5, %f6, %f7}}, {{{a_list}}}, {{{b_list}}}, {{%f0, %f1, %f2, %f3}};
                     st.global.v2.f32 [%rd7], {{%f4, %f5}}; st.global.v2.f32 [%rd7+256], {{%f6, %f7}};
                     ret;",
                    16 * row
                ),
            );
            for machine in [Machine::new(), Machine::new().with_baseline_instructions()] {
                let mut numbers = |count: usize| (0..count).map(|_| random.random_range(-9..=9)).collect::<Vec<i32>>();
                let (a, b, c) = (numbers(16 * depth), numbers(8 * depth), numbers(128));
                let halves: Vec<u16> = a.iter().chain(&b).map(|&value| encode(format, value)).collect();
                let floats: Vec<u32> = c.iter().map(|&value| (value as f32).to_bits()).collect();
                let (tiles, sums) = (upload_u16(&machine, &halves), upload_u32(&machine, &floats));
                let out = machine.allocate(512);
                block(&machine, &module, 32, &[tiles, sums, out]).unwrap_or_else(|error| panic!("{error}"));
                let result = download_u32(&machine, out, 128);
                for row in 0..16 {
                    for column in 0..8 {
                        let sum: i32 = (0..depth).map(|k| a[row * depth + k] * b[k * 8 + column]).sum();
                        let expected = (c[row * 8 + column] + sum) as f32;
                        let found = f32::from_bits(result[row * 8 + column]);
                        assert_eq!(found, expected, "{format}, depth {depth}: element {row}, {column}");
                    }
                }
            }
        }
    }
}

#[test]
fn matrices_are_stored_as_they_are_loaded() {
    // Element (row, column) of matrix m is 256 m + 8 row + column; a lane holds two of a row, or of a column.
    for (count, shape) in [(1u32, "x1"), (2, "x2"), (4, "x4")] {
        for transposed in [false, true] {
            let element = |matrix: u32, lane: u32, i: u32| {
                let (major, minor) = (lane / 4, 2 * (lane % 4) + i);
                256 * matrix + if transposed { 8 * minor + major } else { 8 * major + minor }
            };
            let pairs: Vec<u32> = (0..count)
                .flat_map(|m| (0..32).map(move |lane| element(m, lane, 0) | element(m, lane, 1) << 16))
                .collect();
            let registers: Vec<String> = (0..count).map(|m| format!("%r{}", 10 + m)).collect();
            let loads: String =
                (0..count).map(|m| format!("ld.global.u32 %r{}, [%rd3+{}];\n", 10 + m, 128 * m)).collect();
            let module = module(
                &["in", "out"],
                &format!(
                    ".reg .b32 %r<20>; .reg .b64 %rd<6>; .shared .align 16 .b8 tile[512];
                     ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %laneid; mov.u32 %r2, tile;
                     mad.wide.u32 %rd3, %r1, 4, %rd1; {loads}
                     mad.lo.u32 %r3, %r1, 16, %r2;
                     stmatrix.sync.aligned.m8n8.{shape}{}.shared.b16 [%r3], {{{}}};
                     bar.warp.sync -1;
                     mul.wide.u32 %rd4, %r1, {}; add.u64 %rd4, %rd2, %rd4; mul.lo.u32 %r4, %r1, {}; add.u32 %r4, %r4, %r2;
                     {}
                     ret;",
                    if transposed { ".trans" } else { "" },
                    registers.join(", "),
                    4 * count,
                    4 * count,
                    (0..count)
                        .map(|i| format!("ld.shared.u32 %r5, [%r4+{0}]; st.global.u32 [%rd4+{0}], %r5;\n", 4 * i))
                        .collect::<String>()
                ),
            );
            let machine = Machine::new();
            let (input, out) = (upload_u32(&machine, &pairs), machine.allocate(128 * count as usize));
            block(&machine, &module, 32, &[input, out]).unwrap_or_else(|error| panic!("{error}"));
            let expected: Vec<u32> =
                (0..32 * count).map(|i| 2 * i % 64 + i / 32 * 256).map(|first| first | (first + 1) << 16).collect();
            assert_eq!(download_u32(&machine, out, 32 * count as usize), expected, "{shape}, transposed {transposed}");
        }
    }
}
