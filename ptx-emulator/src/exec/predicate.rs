//! Comparisons, and predicates as one bit a lane.

use super::float::flush;
use crate::level::by_level;
use crate::op::{Boolean, CompareAs, Comparison, Slot};
use crate::warp::{LANES, Longs, Registers, Words};

by_level! {
    /// Compares two registers in all lanes.
    fn compare(
        words: &[Words],
        longs: &[Longs],
        like: CompareAs,
        comparison: Comparison,
        a: Slot,
        b: Slot,
        bits: &mut u32,
    ) = compare_body
}

#[inline(always)]
fn collect<T: Copy>(a: &[T; LANES], b: &[T; LANES], f: impl Fn(T, T) -> bool) -> u32 {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(f(a[lane], b[lane])) << lane;
    }
    bits
}

/// Integers, for which the unordered comparisons do not exist.
#[inline(always)]
fn ordered<T: Copy, U: PartialOrd>(
    a: &[T; LANES],
    b: &[T; LANES],
    comparison: Comparison,
    value: impl Fn(T) -> U,
) -> u32 {
    match comparison {
        Comparison::Eq | Comparison::Equ => collect(a, b, |a, b| value(a) == value(b)),
        Comparison::Ne | Comparison::Neu => collect(a, b, |a, b| value(a) != value(b)),
        Comparison::Lt | Comparison::Ltu => collect(a, b, |a, b| value(a) < value(b)),
        Comparison::Le | Comparison::Leu => collect(a, b, |a, b| value(a) <= value(b)),
        Comparison::Gt | Comparison::Gtu => collect(a, b, |a, b| value(a) > value(b)),
        Comparison::Ge | Comparison::Geu => collect(a, b, |a, b| value(a) >= value(b)),
        Comparison::Num => u32::MAX,
        Comparison::Nan => 0,
    }
}

/// Floats: `…u` and `ne` as the negation of what NaN makes false.
#[inline(always)]
fn floats<T: Copy, U: PartialOrd + Copy>(
    a: &[T; LANES],
    b: &[T; LANES],
    comparison: Comparison,
    value: impl Fn(T) -> U,
) -> u32 {
    // NaN is the value that does not equal itself.
    #[allow(clippy::eq_op)]
    let number = |a: U| a == a;
    match comparison {
        Comparison::Eq => collect(a, b, |a, b| value(a) == value(b)),
        Comparison::Ne => collect(a, b, |a, b| (value(a) < value(b)) | (value(a) > value(b))),
        Comparison::Lt => collect(a, b, |a, b| value(a) < value(b)),
        Comparison::Le => collect(a, b, |a, b| value(a) <= value(b)),
        Comparison::Gt => collect(a, b, |a, b| value(a) > value(b)),
        Comparison::Ge => collect(a, b, |a, b| value(a) >= value(b)),
        Comparison::Equ => !collect(a, b, |a, b| (value(a) < value(b)) | (value(a) > value(b))),
        Comparison::Neu => !collect(a, b, |a, b| value(a) == value(b)),
        Comparison::Ltu => !collect(a, b, |a, b| value(a) >= value(b)),
        Comparison::Leu => !collect(a, b, |a, b| value(a) > value(b)),
        Comparison::Gtu => !collect(a, b, |a, b| value(a) <= value(b)),
        Comparison::Geu => !collect(a, b, |a, b| value(a) < value(b)),
        Comparison::Num => collect(a, b, |a, b| number(value(a)) & number(value(b))),
        Comparison::Nan => !collect(a, b, |a, b| number(value(a)) & number(value(b))),
    }
}

#[inline(always)]
fn compare_body(
    words: &[Words],
    longs: &[Longs],
    like: CompareAs,
    comparison: Comparison,
    a: Slot,
    b: Slot,
    bits: &mut u32,
) {
    let (a, b) = (usize::from(a), usize::from(b));
    *bits = match like {
        CompareAs::U32 => ordered(&words[a].0, &words[b].0, comparison, |a| a),
        CompareAs::S32 => ordered(&words[a].0, &words[b].0, comparison, |a| a as i32),
        CompareAs::U64 => ordered(&longs[a].0, &longs[b].0, comparison, |a| a),
        CompareAs::S64 => ordered(&longs[a].0, &longs[b].0, comparison, |a| a as i64),
        CompareAs::F32 { ftz: false } => floats(&words[a].0, &words[b].0, comparison, f32::from_bits),
        CompareAs::F32 { ftz: true } => floats(&words[a].0, &words[b].0, comparison, |a| f32::from_bits(flush(a))),
        CompareAs::F64 => floats(&longs[a].0, &longs[b].0, comparison, f64::from_bits),
    };
}

/// `d = a op b`, on whole warps at once.
pub(crate) fn boolean(registers: &mut Registers, op: Boolean, d: Slot, a: Slot, b: Slot, negate_b: bool, mask: u32) {
    let (a, b) = (registers.predicates[a as usize], registers.predicates[b as usize]);
    let b = if negate_b { !b } else { b };
    let bits = match op {
        Boolean::And => a & b,
        Boolean::Or => a | b,
        Boolean::Xor => a ^ b,
    };
    registers.set_predicate(d, mask, bits);
}
