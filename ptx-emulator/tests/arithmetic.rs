//! Each family of instructions against a model in Rust, on random and extreme inputs, at both levels of vector
//! instructions.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use ptx_emulator::Machine;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const COUNT: usize = 2048;

/// Words that break things, singly and in pairs: extremes, powers of two, NaN, infinities, subnormals.
const EXTREMES: [u64; 24] = [
    0,
    1,
    2,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0001,
    0x0000_0003_8000_0001,
    0x3f80_0000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// `COUNT` triples: all pairs of extremes, then random bits, then random floats of moderate size.
fn triples() -> Vec<[u64; 3]> {
    let mut random = StdRng::seed_from_u64(11);
    (0..COUNT)
        .map(|i| {
            if i < 576 {
                return [EXTREMES[i / 24], EXTREMES[i % 24], EXTREMES[(i / 24 + 5 * (i % 24) + 3) % 24]];
            }
            std::array::from_fn(|_| {
                let float: f32 = random.random_range(-100.0..100.0);
                let high = u64::from(random.random::<u32>()) << 32;
                match i % 4 {
                    0 => high | u64::from(random.random::<u32>()),
                    1 => high | random.random_range(0..70),
                    2 => (f64::from(float) * 1e3).to_bits(),
                    _ => high | u64::from(float.to_bits()),
                }
            })
        })
        .collect()
}

/// Runs `code`, which makes `%ld`, `%d`, `%h` or `%q` of `%la %lb %lc`, their low words `%a %b %c`, their low halves
/// `%ha %hb %hc`, and the predicate `%p` (bit 7 of `c`). Returns inputs and results.
fn run(code: &str, out: &str) -> Vec<([u64; 3], u64)> {
    let finish = match out {
        "ld" => "",
        "d" => "cvt.u64.u32 %ld, %d;",
        "h" => "cvt.u64.u16 %ld, %h;",
        "q" => "selp.u64 %ld, 1, 0, %q;",
        other => panic!("{other}"),
    };
    let body = format!(
        "
    .reg .pred %p, %q, %s; .reg .b16 %h, %ha, %hb, %hc; .reg .b32 %i, %n, %t, %a, %b, %c, %d;
    .reg .b64 %in, %out, %la, %lb, %lc, %ld;
    ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x; mov.u32 %n, %ntid.x; mov.u32 %i, %ctaid.x; mad.lo.u32 %i, %i, %n, %t;
    mad.wide.u32 %in, %i, 24, %in; mad.wide.u32 %out, %i, 8, %out;
    ld.global.u64 %la, [%in]; ld.global.u64 %lb, [%in+8]; ld.global.u64 %lc, [%in+16];
    cvt.u32.u64 %a, %la; cvt.u32.u64 %b, %lb; cvt.u32.u64 %c, %lc;
    cvt.u16.u32 %ha, %a; cvt.u16.u32 %hb, %b; cvt.u16.u32 %hc, %c;
    and.b32 %t, %c, 128; setp.ne.u32 %p, %t, 0;
    {code}
    {finish}
    st.global.u64 [%out], %ld;
    ret;"
    );
    let module = module(&["in", "out"], &body);
    let triples = triples();
    let flat: Vec<u64> = triples.iter().flatten().copied().collect();
    let results = [Machine::new(), Machine::new().with_baseline_instructions()].map(|machine| {
        let (input, output) = (upload_u64(&machine, &flat), machine.allocate(8 * COUNT));
        launch(&machine, &module, [COUNT as u32 / 128, 1, 1], [128, 1, 1], 0, &[input, output])
            .unwrap_or_else(|error| panic!("{code}: {error}"));
        download_u64(&machine, output, COUNT)
    });
    assert_eq!(results[0], results[1], "{code}: vector and baseline instructions differ");
    triples.into_iter().zip(results[0].clone()).collect()
}

#[track_caller]
fn check(code: &str, out: &str, model: impl Fn(u64, u64, u64) -> u64) {
    for ([a, b, c], result) in run(code, out) {
        let expected = model(a, b, c);
        assert_eq!(result, expected, "{code} of {a:#x}, {b:#x}, {c:#x}: {result:#x}, expected {expected:#x}");
    }
}

#[track_caller]
fn words(code: &str, model: impl Fn(u32, u32, u32) -> u32) {
    check(code, "d", |a, b, c| u64::from(model(a as u32, b as u32, c as u32)));
}

#[track_caller]
fn halves(code: &str, model: impl Fn(u16, u16, u16) -> u16) {
    check(code, "h", |a, b, c| u64::from(model(a as u16, b as u16, c as u16)));
}

#[track_caller]
fn floats(code: &str, model: impl Fn(f32, f32, f32) -> f32) {
    words(code, |a, b, c| {
        let value = model(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
    });
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

#[test]
fn integers_of_32_bits() {
    words("add.u32 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    words("sub.s32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b));
    words("add.sat.s32 %d, %a, %b;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    words("mul.lo.u32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b));
    words("mul.hi.u32 %d, %a, %b;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    words("mul.hi.s32 %d, %a, %b;", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    words("mad.lo.s32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    words("mad.hi.u32 %d, %a, %b, %c;", |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c));
    words("min.s32 %d, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u32);
    words("max.u32 %d, %a, %b;", |a, b, _| a.max(b));
    words("neg.s32 %d, %a;", |a, _, _| a.wrapping_neg());
    words("abs.s32 %d, %a;", |a, _, _| (a as i32).unsigned_abs());
    words("or.b32 %t, %b, 1; div.u32 %d, %a, %t;", |a, b, _| a / (b | 1));
    words("or.b32 %t, %b, 1; div.s32 %d, %a, %t;", |a, b, _| (a as i32).wrapping_div((b | 1) as i32) as u32);
    words("or.b32 %t, %b, 1; rem.u32 %d, %a, %t;", |a, b, _| a % (b | 1));
    words("or.b32 %t, %b, 1; rem.s32 %d, %a, %t;", |a, b, _| (a as i32).wrapping_rem((b | 1) as i32) as u32);
    words("dp4a.s32.u32 %d, %a, %b, %c;", |a, b, c| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        (0..4).fold(c, |sum, i| sum.wrapping_add((i32::from(a[i] as i8) * i32::from(b[i])) as u32))
    });
}

#[test]
fn bits_of_32() {
    words("and.b32 %d, %a, %b;", |a, b, _| a & b);
    words("or.b32 %d, %a, 0xf0;", |a, _, _| a | 0xf0);
    words("xor.b32 %d, %a, %b;", |a, b, _| a ^ b);
    words("not.b32 %d, %a;", |a, _, _| !a);
    words("shl.b32 %d, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    words("shr.u32 %d, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    words("shr.s32 %d, %a, %b;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    words("popc.b32 %d, %a;", |a, _, _| a.count_ones());
    words("clz.b32 %d, %a;", |a, _, _| a.leading_zeros());
    words("brev.b32 %d, %a;", |a, _, _| a.reverse_bits());
    words("bfind.u32 %d, %a;", |a, _, _| a.checked_ilog2().unwrap_or(u32::MAX));
    words("bfind.s32 %d, %a;", |a, _, _| (if (a as i32) < 0 { !a } else { a }).checked_ilog2().unwrap_or(u32::MAX));
    words("bfind.shiftamt.u32 %d, %a;", |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() });
    for table in [0xc0u8, 0x96, 0xe8, 0xca, 0x01, 0xfe, 0x1b] {
        words(&format!("lop3.b32 %d, %a, %b, %c, {table};"), |a, b, c| {
            (0..32).fold(0, |d, bit| {
                let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1);
                d | u32::from(table >> index & 1) << bit
            })
        });
    }
    words("prmt.b32 %d, %a, %b, %c;", |a, b, c| {
        let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let control = c >> (4 * i) & 15;
            let byte = bytes[control as usize & 7];
            if control < 8 { byte } else { ((byte as i8) >> 7) as u8 }
        }))
    });
    words("prmt.b32.rc16 %d, %a, %b, %c;", |a, _, c| {
        let half = if c & 1 == 0 { a & 0xffff } else { a >> 16 };
        half | half << 16
    });
    let joined = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    words("shf.l.wrap.b32 %d, %a, %b, %c;", move |a, b, c| (joined(a, b) << (c & 31) >> 32) as u32);
    words("shf.r.wrap.b32 %d, %a, %b, %c;", move |a, b, c| (joined(a, b) >> (c & 31)) as u32);
    words("shf.l.clamp.b32 %d, %a, %b, %c;", move |a, b, c| (joined(a, b) << c.min(32) >> 32) as u32);
    words("shf.r.clamp.b32 %d, %a, %b, %c;", move |a, b, c| (joined(a, b) >> c.min(32)) as u32);
    // Bit by bit, as the PTX ISA defines them.
    let extract = |a: u32, b: u32, c: u32, signed: bool| {
        let (position, length) = (b & 0xff, c & 0xff);
        let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(31) & 1 };
        (0..32).fold(0, |d, i| {
            let bit = if i < length && position + i <= 31 { a >> (position + i) & 1 } else { sign };
            d | bit << i
        })
    };
    words("bfe.u32 %d, %a, %b, %c;", move |a, b, c| extract(a, b, c, false));
    words("bfe.s32 %d, %a, %b, %c;", move |a, b, c| extract(a, b, c, true));
    words("bfi.b32 %d, %a, %b, %c, 5;", |a, b, c| {
        (0..5).fold(b, |d, i| {
            let at = (c & 0xff) + i;
            if at > 31 { d } else { d & !(1 << at) | (a >> i & 1) << at }
        })
    });
}

#[test]
fn integers_of_64_bits() {
    check("add.s64 %ld, %la, %lb;", "ld", |a, b, _| a.wrapping_add(b));
    check("sub.s64 %ld, %la, %lb;", "ld", |a, b, _| a.wrapping_sub(b));
    check("mul.lo.u64 %ld, %la, %lb;", "ld", |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u64 %ld, %la, %lb;", "ld", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("mul.hi.s64 %ld, %la, %lb;", "ld", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    check("mad.lo.u64 %ld, %la, %lb, %lc;", "ld", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check("mul.wide.u32 %ld, %a, %b;", "ld", |a, b, _| u64::from(a as u32) * u64::from(b as u32));
    check("mul.wide.s32 %ld, %a, %b;", "ld", |a, b, _| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check("mad.wide.s32 %ld, %a, %b, %lc;", "ld", |a, b, c| {
        (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
    });
    check("shl.b64 %ld, %la, %b;", "ld", |a, b, _| a.checked_shl(b as u32).unwrap_or(0));
    check("shr.u64 %ld, %la, %b;", "ld", |a, b, _| a.checked_shr(b as u32).unwrap_or(0));
    check("shr.s64 %ld, %la, %b;", "ld", |a, b, _| ((a as i64) >> (b as u32).min(63)) as u64);
    check("min.s64 %ld, %la, %lb;", "ld", |a, b, _| (a as i64).min(b as i64) as u64);
    check("max.u64 %ld, %la, %lb;", "ld", |a, b, _| a.max(b));
    check("or.b64 %ld, %lb, 1; rem.s64 %ld, %la, %ld;", "ld", |a, b, _| (a as i64).wrapping_rem((b | 1) as i64) as u64);
    check("or.b64 %ld, %lb, 1; div.u64 %ld, %la, %ld;", "ld", |a, b, _| a / (b | 1));
    check("popc.b64 %d, %la;", "d", |a, _, _| u64::from(a.count_ones()));
    check("clz.b64 %d, %la;", "d", |a, _, _| u64::from(a.leading_zeros()));
    check("brev.b64 %ld, %la;", "ld", |a, _, _| a.reverse_bits());
    check("bfe.u64 %ld, %la, %b, %c;", "ld", |a, b, c| {
        let (position, length) = ((b & 0xff) as u32, (c & 0xff) as u32);
        a.checked_shr(position).unwrap_or(0) & 1u64.checked_shl(length).map_or(u64::MAX, |one| one - 1)
    });
    check("bfi.b64 %ld, %la, %lb, %c, 9;", "ld", |a, b, c| {
        (0..9).fold(b, |d, i| {
            let at = (c & 0xff) + i;
            if at > 63 { d } else { d & !(1 << at) | (a >> i & 1) << at }
        })
    });
    check("mov.b64 {%d, %t}, %la; mov.b64 %ld, {%t, %d};", "ld", |a, _, _| a.rotate_left(32));
    check("mov.b64 %ld, {%ha, %hb, %hc, %ha};", "ld", |a, b, c| {
        let low = |x: u64| x & 0xffff;
        low(a) | low(b) << 16 | low(c) << 32 | low(a) << 48
    });
}

#[test]
fn integers_of_16_bits() {
    halves("add.s16 %h, %ha, %hb;", |a, b, _| a.wrapping_add(b));
    halves("mul.lo.u16 %h, %ha, %hb;", |a, b, _| a.wrapping_mul(b));
    halves("mul.hi.s16 %h, %ha, %hb;", |a, b, _| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16);
    halves("mul.hi.u16 %h, %ha, %hb;", |a, b, _| ((u32::from(a) * u32::from(b)) >> 16) as u16);
    halves("mad.lo.s16 %h, %ha, %hb, %hc;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    halves("min.s16 %h, %ha, %hb;", |a, b, _| (a as i16).min(b as i16) as u16);
    halves("max.u16 %h, %ha, %hb;", |a, b, _| a.max(b));
    halves("not.b16 %h, %ha;", |a, _, _| !a);
    halves("neg.s16 %h, %ha;", |a, _, _| a.wrapping_neg());
    halves("cvt.u32.u16 %t, %hb; shl.b16 %h, %ha, %t;", |a, b, _| if b > 15 { 0 } else { a << b });
    words("mul.wide.s16 %d, %ha, %hb;", |a, b, _| (i32::from(a as i16) * i32::from(b as i16)) as u32);
    halves("shr.s16 %h, %ha, 3;", |a, _, _| ((a as i16) >> 3) as u16);
    halves("selp.b16 %h, %ha, %hb, %p;", |a, b, c| if c & 128 != 0 { a } else { b });
    check("setp.lt.s16 %q, %ha, %hb;", "q", |a, b, _| u64::from((a as i16) < (b as i16)));
    words("mov.b32 %d, {%ha, %hb};", |a, b, _| a & 0xffff | b << 16);
    words("mov.b32 {%hb, %h}, %a; mov.b32 %d, {%h, %hb};", |a, _, _| a.rotate_left(16));
}

#[test]
fn comparisons_and_predicates() {
    let cases: [Binary<u32, bool>; 6] = [
        ("eq.s32", |a, b| a == b),
        ("ne.u32", |a, b| a != b),
        ("lt.s32", |a, b| (a as i32) < b as i32),
        ("le.u32", |a, b| a <= b),
        ("hi.u32", |a, b| a > b),
        ("ge.s32", |a, b| a as i32 >= b as i32),
    ];
    for (name, model) in cases {
        check(&format!("setp.{name} %q, %a, %b;"), "q", |a, b, _| u64::from(model(a as u32, b as u32)));
    }
    let floats: [Binary<f32, bool>; 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| !a.is_nan() && !b.is_nan() && a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    let float = |bits: u64| f32::from_bits(bits as u32);
    for (name, model) in floats {
        check(&format!("setp.{name}.f32 %q, %a, %b;"), "q", |a, b, _| u64::from(model(float(a), float(b))));
        check(&format!("setp.{name}.ftz.f32 %q, %a, %b;"), "q", |a, b, _| {
            u64::from(model(flush(float(a)), flush(float(b))))
        });
    }
    check("setp.lt.u64 %q, %la, %lb;", "q", |a, b, _| u64::from(a < b));
    check("setp.gt.s64 %q, %la, %lb;", "q", |a, b, _| u64::from(a as i64 > b as i64));
    check("setp.ge.f64 %q, %la, %lb;", "q", |a, b, _| u64::from(f64::from_bits(a) >= f64::from_bits(b)));
    let (less, flag) = (|a: u64, b: u64| (a as u32) < b as u32, |c: u64| c & 128 != 0);
    check("setp.lt.and.u32 %q, %a, %b, %p;", "q", |a, b, c| u64::from(less(a, b) && flag(c)));
    check("setp.lt.or.u32 %q, %a, %b, !%p;", "q", |a, b, c| u64::from(less(a, b) || !flag(c)));
    check("setp.lt.xor.u32 %q|%p, %a, %b, %p;", "q", |a, b, c| u64::from(less(a, b) ^ flag(c)));
    check("setp.lt.and.u32 %p|%q, %a, %b, %p;", "q", |a, b, c| u64::from(!less(a, b) && flag(c)));
    check("setp.lt.u32 %s, %a, %b; and.pred %q, %s, %p; not.pred %q, %q;", "q", |a, b, c| {
        u64::from(!(less(a, b) && flag(c)))
    });
    words("selp.b32 %d, %a, %b, %p;", |a, b, c| if c & 128 != 0 { a } else { b });
    check("selp.b64 %ld, %la, %lb, !%p;", "ld", |a, b, c| if flag(c) { b } else { a });
    words("set.lt.u32.s32 %d, %a, %b;", |a, b, _| if (a as i32) < b as i32 { u32::MAX } else { 0 });
    words("mov.u32 %d, 1; @%p mov.u32 %d, %a; @!%p add.u32 %d, %d, %b;", |a, b, c| {
        if c & 128 != 0 { a } else { b.wrapping_add(1) }
    });
}

#[test]
fn single_precision() {
    floats("add.f32 %d, %a, %b;", |a, b, _| a + b);
    floats("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b);
    floats("mul.f32 %d, %a, %b;", |a, b, _| a * b);
    floats("mul.ftz.f32 %d, %a, %b;", |a, b, _| flush(flush(a) * flush(b)));
    floats("add.ftz.f32 %d, %a, %b;", |a, b, _| flush(flush(a) + flush(b)));
    floats("fma.rn.f32 %d, %a, %b, %c;", f32::mul_add);
    floats("fma.rn.ftz.f32 %d, %a, %b, %c;", |a, b, c| flush(flush(a).mul_add(flush(b), flush(c))));
    floats("div.rn.f32 %d, %a, %b;", |a, b, _| a / b);
    floats("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a);
    floats("sqrt.rn.f32 %d, %a;", |a, _, _| a.sqrt());
    floats("neg.f32 %d, %a;", |a, _, _| -a);
    floats("abs.ftz.f32 %d, %a;", |a, _, _| flush(a.abs()));
    floats("add.sat.f32 %d, %a, %b;", |a, b, _| if a + b > 0.0 { (a + b).min(1.0) } else { 0.0 });
    words("copysign.f32 %d, %a, %b;", |a, b, _| f32::from_bits(b).copysign(f32::from_bits(a)).to_bits());
    let smaller = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    };
    floats("min.f32 %d, %a, %b;", move |a, b, _| smaller(a, b));
    floats("max.f32 %d, %a, %b;", move |a, b, _| -smaller(-a, -b));
    floats(
        "max.NaN.f32 %d, %a, %b;",
        move |a, b, _| {
            if a.is_nan() || b.is_nan() { f32::NAN } else { -smaller(-a, -b) }
        },
    );
    check("testp.subnormal.f32 %q, %a;", "q", |a, _, _| u64::from(f32::from_bits(a as u32).is_subnormal()));
    check("testp.finite.f32 %q, %a;", "q", |a, _, _| u64::from(f32::from_bits(a as u32).is_finite()));
}

/// Result and model agree to `relative`, or both are NaN, or equal; results near zero to `absolute`.
#[track_caller]
fn close(code: &str, relative: f64, absolute: f64, model: impl Fn(f64) -> f64) {
    for ([a, ..], result) in run(code, "d") {
        let input = f32::from_bits(a as u32);
        let (result, expected) = (f64::from(f32::from_bits(result as u32)), model(f64::from(input)));
        let expected = if expected.abs() > f64::from(f32::MAX) * 1.000_000_1 {
            f64::INFINITY.copysign(expected)
        } else {
            expected
        };
        let same = result == expected || (result.is_nan() && expected.is_nan());
        let near = (result - expected).abs() <= relative * expected.abs() + absolute;
        assert!(same || near, "{code} of {input:e}: {result:e}, expected {expected:e}");
    }
}

#[test]
fn approximations() {
    let bound = 2f64.powi(-22);
    close("ex2.approx.f32 %d, %a;", bound, 1.5e-45, f64::exp2);
    close("ex2.approx.ftz.f32 %d, %a;", bound, 1.2e-38, f64::exp2);
    close("lg2.approx.f32 %d, %a;", bound, bound, f64::log2);
    close("rcp.approx.f32 %d, %a;", bound, 1.5e-45, |a| 1.0 / a);
    close("rsqrt.approx.f32 %d, %a;", bound, 0.0, |a| 1.0 / a.sqrt());
    close("sqrt.approx.f32 %d, %a;", bound, 1.5e-45, f64::sqrt);
    close("tanh.approx.f32 %d, %a;", 2f64.powi(-11), 0.0, f64::tanh);
    for (code, model) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
        for ([a, ..], result) in
            run(&format!("cvt.rn.f32.s16 %d, %ha; mul.f32 %d, %d, 0f38C90FDB; {code}.approx.f32 %d, %d;"), "d")
        {
            let x = f64::from(f32::from(a as i16) * f32::from_bits(0x38c9_0fdb));
            let result = f64::from(f32::from_bits(result as u32));
            assert!((result - model(x)).abs() < 2f64.powi(-20), "{code} of {x}: {result}");
        }
    }
    // Integers have exact powers.
    for ([a, ..], result) in run("cvt.rn.f32.s8 %d, %a; ex2.approx.f32 %d, %d;", "d") {
        assert_eq!(f32::from_bits(result as u32), f32::from(a as i8).exp2());
    }
}

#[test]
fn double_precision() {
    let doubles = |code: &str, model: fn(f64, f64, f64) -> f64| {
        check(code, "ld", |a, b, c| {
            let value = model(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
            if value.is_nan() { 0x7ff8_0000_0000_0000 } else { value.to_bits() }
        });
    };
    doubles("add.f64 %ld, %la, %lb;", |a, b, _| a + b);
    doubles("mul.rn.f64 %ld, %la, %lb;", |a, b, _| a * b);
    doubles("fma.rn.f64 %ld, %la, %lb, %lc;", f64::mul_add);
    doubles("div.rn.f64 %ld, %la, %lb;", |a, b, _| a / b);
    doubles("sqrt.rn.f64 %ld, %la;", |a, _, _| a.sqrt());
    doubles("sub.f64 %ld, %la, %lb; neg.f64 %ld, %ld;", |a, b, _| -(a - b));
}
