//! 64-bit registers: integers, addresses and f64.

use crate::level::by_level;
use crate::op::{Binary64, Narrow, Shift64, Slot, Unary64};
use crate::warp::{LANES, Longs, Words, lanes};

/// What every f64 operation of the hardware makes of NaN.
const NAN: u64 = 0x7ff8_0000_0000_0000;

fn canonical(value: f64) -> u64 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

#[inline(always)]
fn put(longs: &mut [Longs], d: Slot, values: [u64; LANES], mask: u32) {
    let d = &mut longs[d as usize].0;
    if mask == u32::MAX {
        *d = values;
    } else {
        for lane in 0..LANES {
            d[lane] = if mask >> lane & 1 != 0 { values[lane] } else { d[lane] };
        }
    }
}

#[inline(always)]
fn map1(longs: &mut [Longs], d: Slot, a: Slot, mask: u32, f: impl Fn(u64) -> u64) {
    let a = &longs[a as usize].0;
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane]);
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn map2(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, mask: u32, f: impl Fn(u64, u64) -> u64) {
    let (a, b) = (&longs[a as usize].0, &longs[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane], b[lane]);
    }
    put(longs, d, values, mask);
}

by_level! {
    /// `d = f(a)`.
    fn unary(longs: &mut [Longs], f: Unary64, d: Slot, a: Slot, mask: u32) = unary_body
}
by_level! {
    /// `d = f(a, b)`.
    fn binary(longs: &mut [Longs], f: Binary64, d: Slot, a: Slot, b: Slot, mask: u32) = binary_body
}
by_level! {
    /// Word `d` of long `a`.
    fn narrow(words: &mut [Words], longs: &mut [Longs], f: Narrow, d: Slot, a: Slot, mask: u32) = narrow_body
}
by_level! {
    /// Long `d` of word `a`.
    fn widen(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, mask: u32) = widen_body
}
by_level! {
    /// Long `d` of two words.
    fn pack(words: &[Words], longs: &mut [Longs], d: Slot, low: Slot, high: Slot, mask: u32) = pack_body
}
by_level! {
    /// Long `a` shifted by word `b`.
    fn shift(words: &[Words], longs: &mut [Longs], f: Shift64, d: Slot, a: Slot, b: Slot, mask: u32) = shift_body
}
by_level! {
    /// The whole product of two words.
    fn multiply_wide(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, b: Slot, mask: u32)
        = multiply_wide_body
}
by_level! {
    /// The whole product of two words plus a long.
    fn mad_wide(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, b: Slot, c: Slot, mask: u32)
        = mad_wide_body
}
by_level! {
    /// `a × b + c` on integers.
    fn mad(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) = mad_body
}
by_level! {
    /// `a × b + c` on f64, rounded once.
    fn fma(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) = fma_body
}
by_level! {
    /// `d = p ? a : b`.
    fn select(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, p: u32, mask: u32) = select_body
}

#[inline(always)]
fn unary_body(longs: &mut [Longs], f: Unary64, d: Slot, a: Slot, mask: u32) {
    macro_rules! each {
        ($f:expr) => {
            map1(longs, d, a, mask, $f)
        };
    }
    match f {
        Unary64::Copy => each!(|a| a),
        Unary64::Neg => each!(u64::wrapping_neg),
        Unary64::Abs => each!(|a| (a as i64).wrapping_abs() as u64),
        Unary64::Not => each!(|a| !a),
        Unary64::Brev => each!(u64::reverse_bits),
        Unary64::NegF64 => each!(|a| canonical(-f64::from_bits(a))),
        Unary64::AbsF64 => each!(|a| canonical(f64::from_bits(a).abs())),
        Unary64::Rcp => each!(|a| canonical(1.0 / f64::from_bits(a))),
        Unary64::Sqrt => each!(|a| canonical(f64::from_bits(a).sqrt())),
        Unary64::Rsqrt => each!(|a| canonical(1.0 / f64::from_bits(a).sqrt())),
    }
}

/// `min` or `max` of f64: NaN loses, and the zeros are ordered.
#[inline(always)]
fn extremum(a: u64, b: u64, smaller: bool) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => NAN,
        (true, false) => b,
        (false, true) => a,
        _ if x == y => {
            if smaller {
                a | b
            } else {
                a & b
            }
        }
        _ if (x < y) == smaller => a,
        _ => b,
    }
}

#[inline(always)]
fn binary_body(longs: &mut [Longs], f: Binary64, d: Slot, a: Slot, b: Slot, mask: u32) {
    macro_rules! each {
        ($f:expr) => {
            map2(longs, d, a, b, mask, $f)
        };
    }
    macro_rules! float {
        ($f:expr) => {{
            let f = $f;
            each!(|a, b| canonical(f(f64::from_bits(a), f64::from_bits(b))))
        }};
    }
    match f {
        Binary64::Add => each!(u64::wrapping_add),
        Binary64::Sub => each!(u64::wrapping_sub),
        Binary64::Mul => each!(u64::wrapping_mul),
        Binary64::MulHighUnsigned => each!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        Binary64::MulHighSigned => each!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        Binary64::DivUnsigned => each!(|a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        Binary64::DivSigned => {
            each!(|a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 })
        }
        Binary64::RemUnsigned => each!(|a, b| a.checked_rem(b).unwrap_or(a)),
        Binary64::RemSigned => each!(|a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }),
        Binary64::MinUnsigned => each!(u64::min),
        Binary64::MinSigned => each!(|a, b| (a as i64).min(b as i64) as u64),
        Binary64::MaxUnsigned => each!(u64::max),
        Binary64::MaxSigned => each!(|a, b| (a as i64).max(b as i64) as u64),
        Binary64::And => each!(|a, b| a & b),
        Binary64::Or => each!(|a, b| a | b),
        Binary64::Xor => each!(|a, b| a ^ b),
        Binary64::AddF64 => float!(|a: f64, b: f64| a + b),
        Binary64::SubF64 => float!(|a: f64, b: f64| a - b),
        Binary64::MulF64 => float!(|a: f64, b: f64| a * b),
        Binary64::DivF64 => float!(|a: f64, b: f64| a / b),
        Binary64::MinF64 => each!(|a, b| extremum(a, b, true)),
        Binary64::MaxF64 => each!(|a, b| extremum(a, b, false)),
        Binary64::CopysignF64 => each!(|a, b| a & !(1 << 63) | b & (1 << 63)),
    }
}

#[inline(always)]
fn narrow_body(words: &mut [Words], longs: &mut [Longs], f: Narrow, d: Slot, a: Slot, mask: u32) {
    let a = &longs[a as usize].0;
    let mut values = [0; LANES];
    macro_rules! each {
        ($f:expr) => {{
            let f = $f;
            for lane in 0..LANES {
                values[lane] = f(a[lane]);
            }
        }};
    }
    match f {
        Narrow::Low => each!(|a: u64| a as u32),
        Narrow::High => each!(|a: u64| (a >> 32) as u32),
        Narrow::Popc => each!(|a: u64| a.count_ones()),
        Narrow::Clz => each!(|a: u64| a.leading_zeros()),
        Narrow::BfindUnsigned => each!(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        Narrow::BfindSigned => {
            each!(|a: u64| 63u32.wrapping_sub((a ^ ((a as i64) >> 63) as u64).leading_zeros()))
        }
    }
    super::put(words, d, values, mask);
}

#[inline(always)]
fn widen_body(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, mask: u32) {
    let a = &words[a as usize].0;
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = if signed { a[lane] as i32 as u64 } else { u64::from(a[lane]) };
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn pack_body(words: &[Words], longs: &mut [Longs], d: Slot, low: Slot, high: Slot, mask: u32) {
    let (low, high) = (&words[low as usize].0, &words[high as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = u64::from(high[lane]) << 32 | u64::from(low[lane]);
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn shift_body(words: &[Words], longs: &mut [Longs], f: Shift64, d: Slot, a: Slot, b: Slot, mask: u32) {
    let (a, b) = (&longs[a as usize].0, &words[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        let (a, b) = (a[lane], b[lane]);
        values[lane] = match f {
            Shift64::Left if b > 63 => 0,
            Shift64::Left => a << (b & 63),
            Shift64::RightUnsigned if b > 63 => 0,
            Shift64::RightUnsigned => a >> (b & 63),
            Shift64::RightSigned => ((a as i64) >> (b.min(63) & 63)) as u64,
        };
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn whole_product(signed: bool, a: u32, b: u32) -> u64 {
    if signed { (i64::from(a as i32) * i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) }
}

#[inline(always)]
fn multiply_wide_body(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, b: Slot, mask: u32) {
    let (a, b) = (&words[a as usize].0, &words[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = whole_product(signed, a[lane], b[lane]);
    }
    put(longs, d, values, mask);
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn mad_wide_body(words: &[Words], longs: &mut [Longs], signed: bool, d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) {
    let (a, b, c) = (&words[a as usize].0, &words[b as usize].0, &longs[c as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = whole_product(signed, a[lane], b[lane]).wrapping_add(c[lane]);
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn map3(longs: &mut [Longs], d: Slot, [a, b, c]: [Slot; 3], mask: u32, f: impl Fn(u64, u64, u64) -> u64) {
    let (a, b, c) = (&longs[a as usize].0, &longs[b as usize].0, &longs[c as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = f(a[lane], b[lane], c[lane]);
    }
    put(longs, d, values, mask);
}

#[inline(always)]
fn mad_body(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) {
    map3(longs, d, [a, b, c], mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
}

#[inline(always)]
fn fma_body(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, c: Slot, mask: u32) {
    let f = |a, b, c| canonical(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)));
    map3(longs, d, [a, b, c], mask, f);
}

#[inline(always)]
fn select_body(longs: &mut [Longs], d: Slot, a: Slot, b: Slot, p: u32, mask: u32) {
    let (a, b) = (&longs[a as usize].0, &longs[b as usize].0);
    let mut values = [0; LANES];
    for lane in 0..LANES {
        values[lane] = if p >> lane & 1 != 0 { a[lane] } else { b[lane] };
    }
    put(longs, d, values, mask);
}

/// `bfi.b64`.
pub(crate) fn insert(words: &[Words], longs: &mut [Longs], d: Slot, sources: [Slot; 2], field: [Slot; 2], mask: u32) {
    for lane in lanes(mask) {
        let [a, b] = sources.map(|slot| longs[slot as usize].0[lane]);
        let [position, length] = field.map(|slot| words[slot as usize].0[lane] & 0xff);
        let ones = if length > 63 { u64::MAX } else { (1 << length) - 1 };
        let place = ones.checked_shl(position).unwrap_or(0);
        longs[d as usize].0[lane] = b & !place | a.checked_shl(position).unwrap_or(0) & place;
    }
}

/// `bfe.{u64,s64}`.
pub(crate) fn extract(
    words: &[Words],
    longs: &mut [Longs],
    signed: bool,
    d: Slot,
    a: Slot,
    field: [Slot; 2],
    mask: u32,
) {
    for lane in lanes(mask) {
        let a = longs[a as usize].0[lane];
        let [position, length] = field.map(|slot| words[slot as usize].0[lane] & 0xff);
        let left = 128 - length.min(127);
        let whole = if signed { i128::from(a as i64) } else { i128::from(a) };
        let field = whole >> position.min(127);
        longs[d as usize].0[lane] = match (length, signed) {
            (0, _) => 0,
            (_, true) => (field << left >> left) as u64,
            (_, false) => ((field as u128) << left >> left) as u64,
        };
    }
}
