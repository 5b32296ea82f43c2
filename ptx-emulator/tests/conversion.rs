//! Conversions and the 16-bit formats, against models that know nothing of bit tricks.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::Machine;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Maps each 64-bit input through `code`, which makes `%ld` of `%la`, and gives the results.
fn map(code: &str, inputs: &[u64]) -> Vec<u64> {
    let body = format!(
        "
    .reg .pred %p; .reg .b8 %y; .reg .b16 %h, %g, %e; .reg .b32 %i, %n, %t, %a, %d, %b, %c; .reg .b64 %in, %out, %la, %ld, %count;
    ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; ld.param.u64 %count, [count];
    mov.u32 %t, %tid.x; mov.u32 %n, %ntid.x; mov.u32 %i, %ctaid.x; mad.lo.u32 %i, %i, %n, %t;
    cvt.u32.u64 %n, %count; setp.ge.u32 %p, %i, %n; @%p exit;
    mad.wide.u32 %in, %i, 8, %in; mad.wide.u32 %out, %i, 8, %out;
    ld.global.u64 %la, [%in]; cvt.u32.u64 %a, %la; cvt.u16.u64 %h, %la;
    {code}
    st.global.u64 [%out], %ld; ret;"
    );
    let module = module(&["in", "out", "count"], &body);
    let results = [Machine::new(), Machine::new().with_baseline_instructions()].map(|machine| {
        let (input, output) = (upload_u64(&machine, inputs), machine.allocate(8 * inputs.len()));
        let blocks = inputs.len().div_ceil(256) as u32;
        launch(&machine, &module, [blocks, 1, 1], [256, 1, 1], 0, &[input, output, inputs.len() as u64])
            .unwrap_or_else(|error| panic!("{code}: {error}"));
        download_u64(&machine, output, inputs.len())
    });
    assert_eq!(results[0], results[1], "{code}");
    results[0].clone()
}

#[track_caller]
fn check(code: &str, inputs: &[u64], model: impl Fn(u64) -> u64) {
    for (&input, result) in inputs.iter().zip(map(code, inputs)) {
        assert_eq!(result, model(input), "{code} of {input:#x}: {result:#x}, expected {:#x}", model(input));
    }
}

fn words() -> Vec<u64> {
    let mut random = StdRng::seed_from_u64(3);
    let mut words: Vec<u64> =
        vec![0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX, 1 << 63, (1 << 63) - 1, 0x80, 0x7f80];
    // Around every power of two, and the halfway points of 24-bit and 11-bit mantissas.
    for bit in 0..64 {
        words.extend([
            (1u64 << bit) - 1,
            1 << bit,
            (1 << bit) + 1,
            (1 << bit) + (1 << bit >> 24),
            (3 << bit) + (1 << bit >> 11),
        ]);
    }
    words.extend((0..1000).map(|_| random.random::<u64>() >> random.random_range(0..64)));
    words
}

/// f32 bits: specials, halfway cases of narrower formats, random bits, and moderate numbers.
fn floats() -> Vec<u64> {
    let mut random = StdRng::seed_from_u64(4);
    let mut bits: Vec<u32> = vec![
        0,
        1,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffff_ffff,
        0x7f7f_ffff,
        0x007f_ffff,
        0x0080_0000,
        0x477f_efff,
        0x477f_f000,
        0x477f_e000,
        0x3300_0000,
        0x3300_0001,
        0x3380_0000,
        0x387f_ffff,
        0x3880_0000,
        0x4f00_0000,
        0x4eff_ffff,
        0xcf00_0000,
        0x4f80_0000,
        0x5f00_0000,
        0x3f00_0000,
        0x3fc0_0000,
        0xbf00_0000,
        0x4020_0000,
        0x7f7f_8000,
        0x7f7f_7fff,
    ];
    bits.extend((0..2000).map(|_| random.random::<u32>()));
    bits.extend((0..1000).map(|_| random.random::<u32>() & 0xffff_8000 | 0x8000));
    bits.extend(
        (0..1000).map(|_| (random.random::<u32>() & 0x87ff_f000 | 0x3800_1000).wrapping_sub(random.random_range(0..2))),
    );
    bits.extend((0..1000).map(|_| random.random_range(-300f32..300.0).to_bits()));
    bits.extend((0..200).map(|i| (i as f32 * 0.5 - 50.0).to_bits()));
    bits.into_iter().map(u64::from).collect()
}

/// The value of a 16-bit float, from its definition.
fn value(bits: u16, mantissa: u32) -> f64 {
    let width = 15 - mantissa;
    let (bias, exponent) = ((1 << (width - 1)) - 1, i32::from(bits >> mantissa) & ((1 << width) - 1));
    let fraction = f64::from(bits & ((1 << mantissa) - 1)) / f64::from(1u32 << mantissa);
    let magnitude = if exponent == (1 << width) - 1 {
        if fraction == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if exponent == 0 {
        fraction * 2f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2f64.powi(exponent - bias)
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// The nearest 16-bit float, ties to even, by looking at all of them: the bits of a magnitude are in order.
fn nearest(x: f64, mantissa: u32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let infinity = ((1u16 << (15 - mantissa)) - 1) << mantissa;
    // As if the format went on, infinity is one step above the largest number.
    let step = |bits: u16| {
        if bits == infinity {
            value(infinity - 1, mantissa) * 2.0 - value(infinity - 2, mantissa)
        } else {
            value(bits, mantissa)
        }
    };
    let (mut low, mut high) = (0u16, infinity);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if step(middle) <= x.abs() { low = middle } else { high = middle }
    }
    let (below, above) = (x.abs() - step(low), step(high) - x.abs());
    let magnitude = if x.abs() >= step(high) || above < below || (above == below && low % 2 == 1) { high } else { low };
    sign | magnitude
}

const F16: u32 = 10;
const BF16: u32 = 7;

fn float(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

fn f32_bits(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { u64::from((x as f32).to_bits()) }
}

#[test]
fn between_integers() {
    let words = words();
    check("cvt.s64.s32 %ld, %a;", &words, |a| i64::from(a as i32) as u64);
    check("cvt.u64.u16 %ld, %h;", &words, |a| u64::from(a as u16));
    check("cvt.s32.s8 %d, %a; cvt.u64.u32 %ld, %d;", &words, |a| u64::from(i32::from(a as i8) as u32));
    check("cvt.u32.u8 %d, %a; cvt.u64.u32 %ld, %d;", &words, |a| u64::from(a as u8));
    check("cvt.s16.s8 %g, %a; cvt.u64.u16 %ld, %g;", &words, |a| u64::from(i16::from(a as i8) as u16));
    check("cvt.s8.s32 %d, %a; cvt.u64.u32 %ld, %d;", &words, |a| u64::from(a as i8 as u32));
    check("cvt.sat.s16.s32 %d, %a; cvt.u64.u32 %ld, %d;", &words, |a| {
        u64::from(i32::from((a as i32).clamp(-32768, 32767) as i16) as u32)
    });
    check("cvt.sat.u8.s64 %d, %la; cvt.u64.u32 %ld, %d;", &words, |a| (a as i64).clamp(0, 255) as u64);
    check("cvt.sat.u32.u64 %d, %la; cvt.u64.u32 %ld, %d;", &words, |a| a.min(0xffff_ffff));
}

#[test]
fn from_integers() {
    let words = words();
    let low = |code: &str| format!("{code} cvt.u64.u32 %ld, %d;");
    check(&low("cvt.rn.f32.s32 %d, %a;"), &words, |a| f32_bits(f64::from(a as i32)));
    check(&low("cvt.rn.f32.u32 %d, %a;"), &words, |a| f32_bits(f64::from(a as u32)));
    check(&low("cvt.rn.f32.s64 %d, %la;"), &words, |a| u64::from((a as i64 as f32).to_bits()));
    check(&low("cvt.rn.f32.u64 %d, %la;"), &words, |a| u64::from((a as f32).to_bits()));
    check("cvt.rn.f64.u64 %ld, %la;", &words, |a| (a as f64).to_bits());
    check("cvt.rn.f64.s32 %ld, %a;", &words, |a| f64::from(a as i32).to_bits());
    // Directed roundings: the neighbour on the right side, unless exact.
    for (name, side) in [("rm", -1), ("rp", 1), ("rz", -1)] {
        check(&low(&format!("cvt.{name}.f32.u64 %d, %la;")), &words, |a| {
            let near = a as f32;
            let error = near as i128 - i128::from(a);
            let bits = near.to_bits();
            u64::from(if error > 0 && side < 0 {
                bits - 1
            } else if error < 0 && side > 0 {
                bits + 1
            } else {
                bits
            })
        });
    }
    check("cvt.rn.f16.s32 %g, %a; cvt.u64.u16 %ld, %g;", &words, |a| u64::from(nearest(f64::from(a as i32), F16)));
}

#[test]
fn to_integers() {
    let floats = floats();
    let low = |code: &str| format!("{code} cvt.u64.u32 %ld, %d;");
    let modes: [Unary<f64, f64>; 4] =
        [("rzi", f64::trunc), ("rni", f64::round_ties_even), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for (name, round) in modes {
        check(&low(&format!("cvt.{name}.s32.f32 %d, %a;")), &floats, |a| u64::from(round(float(a)) as i32 as u32));
        check(&low(&format!("cvt.{name}.u32.f32 %d, %a;")), &floats, |a| u64::from(round(float(a)) as u32));
        check(&format!("cvt.{name}.s64.f32 %ld, %a;"), &floats, |a| {
            if float(a).is_nan() { 1 << 63 } else { round(float(a)) as i64 as u64 }
        });
        check(&low(&format!("cvt.{name}.f32.f32 %d, %a;")), &floats, |a| f32_bits(round(float(a))));
    }
    check(&low("cvt.rzi.s32.f64 %d, %la;"), &floats.iter().map(|&a| float(a).to_bits()).collect::<Vec<_>>(), |a| {
        let value = f64::from_bits(a);
        if value.is_nan() { 0x8000_0000 } else { u64::from(value as i32 as u32) }
    });
}

#[test]
fn between_floats() {
    let floats = floats();
    let low = |code: &str| format!("{code} cvt.u64.u32 %ld, %d;");
    let half = |code: &str| format!("{code} cvt.u64.u16 %ld, %g;");
    check(
        "cvt.f64.f32 %ld, %a;",
        &floats,
        |a| {
            if float(a).is_nan() { 0x7ff8_0000_0000_0000 } else { float(a).to_bits() }
        },
    );
    check(&half("cvt.rn.f16.f32 %g, %a;"), &floats, |a| u64::from(nearest(float(a), F16)));
    check(&half("cvt.rn.bf16.f32 %g, %a;"), &floats, |a| u64::from(nearest(float(a), BF16)));
    check(&low("mov.b32 %b, 0x3f800000; cvt.rn.bf16x2.f32 %d, %a, %b;"), &floats, |a| {
        u64::from(nearest(float(a), BF16)) << 16 | 0x3f80
    });
    check(&low("mov.b32 %b, 0x3f800000; cvt.rn.relu.f16x2.f32 %d, %b, %a;"), &floats, |a| {
        let near = nearest(float(a), F16);
        0x3c00_0000 | u64::from(if near >> 15 == 1 { 0 } else { near })
    });
    check(&low("cvt.sat.f32.f32 %d, %a;"), &floats, |a| f32_bits(if float(a) > 0.0 { float(a).min(1.0) } else { 0.0 }));
    check(&low("cvt.ftz.f32.f32 %d, %a;"), &floats, |a| {
        let x = f32::from_bits(a as u32);
        f32_bits(if x.is_subnormal() { 0f64.copysign(float(a)) } else { float(a) })
    });
    let toward_zero = |a: u64, mantissa: u32| {
        let near = nearest(float(a), mantissa);
        let beyond = value(near, mantissa).abs() > float(a).abs();
        u64::from(if beyond { near - 1 } else { near })
    };
    check(&half("cvt.rz.f16.f32 %g, %a;"), &floats, move |a| toward_zero(a, F16));
    check(&half("cvt.rz.bf16.f32 %g, %a;"), &floats, move |a| toward_zero(a, BF16));
    let doubles: Vec<u64> = floats.iter().map(|&a| (float(a) * 1.000_000_029_9).to_bits()).collect();
    check(&low("cvt.rn.f32.f64 %d, %la;"), &doubles, |a| f32_bits(f64::from_bits(a)));
    check(&low("cvt.rm.f32.f64 %d, %la;"), &doubles, |a| {
        let x = f64::from_bits(a);
        let near = x as f32;
        f32_bits(if f64::from(near) > x { f64::from(near.next_down()) } else { f64::from(near) })
    });
}

#[test]
fn every_half() {
    let all: Vec<u64> = (0..0x10000).collect();
    check("cvt.f32.f16 %d, %h; cvt.u64.u32 %ld, %d;", &all, |a| f32_bits(value(a as u16, F16)));
    check("cvt.f32.bf16 %d, %h; cvt.u64.u32 %ld, %d;", &all, |a| f32_bits(value(a as u16, BF16)));
    check("cvt.rni.s32.f16 %d, %h; cvt.u64.u32 %ld, %d;", &all, |a| {
        u64::from(value(a as u16, F16).round_ties_even() as i32 as u32)
    });
    check("mov.b16 %g, 0x3c00; setp.gt.f16 %p, %h, %g; selp.u64 %ld, 1, 0, %p;", &all, |a| {
        u64::from(value(a as u16, F16) > 1.0)
    });
}

#[test]
fn arithmetic_on_pairs() {
    let mut random = StdRng::seed_from_u64(5);
    let specials =
        [0u16, 0x8000, 1, 0x3c00, 0x3f80, 0x7bff, 0x7c00, 0x7e00, 0x7f80, 0x7f7f, 0xfc00, 0x0400, 0x03ff, 0x0080];
    let mut inputs: Vec<u64> = Vec::new();
    for a in specials {
        for b in specials {
            inputs.push(u64::from(a) | u64::from(b) << 16 | u64::from(specials[usize::from(a ^ b) % 14]) << 32);
        }
    }
    inputs.extend((0..4000).map(|_| random.random::<u64>()));
    // Numbers of like size, where sums cancel and roundings tie.
    inputs.extend((0..4000).map(|_| random.random::<u64>() & 0x83ff_83ff_83ff_83ff | 0x3c00_3c00_3c00_3c00));
    for (name, mantissa) in [("f16x2", F16), ("bf16x2", BF16)] {
        // Lower halves: a, b, c are the first three 16-bit parts; the upper halves have a and b exchanged.
        let code = |instruction: &str| {
            format!(
                "mov.b64 {{%g, %e, %h, _}}, %la; mov.b32 %a, {{%g, %e}}; mov.b32 %b, {{%e, %g}}; mov.b32 %c, {{%h, %h}};
                 {instruction} mov.b64 %ld, {{%d, %d}}; cvt.u64.u32 %ld, %d;"
            )
        };
        let parts = |x: u64| [0, 16, 32].map(|at| value((x >> at) as u16, mantissa));
        let both = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
        let operations: [Binary<f64, f64>; 3] = [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b)];
        for (operation, model) in operations {
            check(&code(&format!("{operation}.rn.{name} %d, %a, %b;")), &inputs, |x| {
                let [a, b, _] = parts(x);
                both(nearest(model(a, b), mantissa), nearest(model(b, a), mantissa))
            });
        }
        check(&code(&format!("fma.rn.{name} %d, %a, %b, %c;")), &inputs, |x| {
            // Exact in integers of a common scale, where f64 would round twice.
            let [a, b, c] = parts(x);
            let result = fused(a, b, c, mantissa);
            both(result, result)
        });
        check(&code(&format!("max.NaN.{name} %d, %a, %b;")), &inputs, |x| {
            let [a, b, _] = parts(x);
            let larger = if a.is_nan() || b.is_nan() {
                f64::NAN
            } else if a == b {
                if a.is_sign_positive() { a } else { b }
            } else {
                a.max(b)
            };
            both(nearest(larger, mantissa), nearest(larger, mantissa))
        });
    }
}

/// `a × b + c` rounded once: f64 rounds the sum, so that a tie or near tie is settled by what it left out.
fn fused(a: f64, b: f64, c: f64, mantissa: u32) -> u16 {
    let (product, sum) = (a * b, a.mul_add(b, c));
    if !sum.is_finite() {
        return nearest(sum, mantissa);
    }
    // Two-sum: `sum + left_out` is exact.
    let part = sum - product;
    let left_out = (product - (sum - part)) + (c - part);
    let settled = if left_out > 0.0 {
        sum.next_up()
    } else if left_out < 0.0 {
        sum.next_down()
    } else {
        sum
    };
    // One unit of f64 decides only exact ties, which have many trailing zeros; elsewhere it changes nothing.
    nearest(if sum.to_bits() & 0xffff_ffff == 0 { settled } else { sum }, mantissa)
}
