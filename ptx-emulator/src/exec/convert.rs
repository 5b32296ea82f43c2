//! Conversions that have no loop of their own: one value at a time, any types, any rounding.

use super::float::flush;
use super::half::{narrow, widen};
use crate::op::{Conversion, Half, Rounding};
use crate::types::Type;

/// A source value, exactly.
enum Value {
    Integer(i128),
    Float(f64),
}

/// Converts the low bits of `bits`.
pub(crate) fn convert(how: &Conversion, bits: u64) -> u64 {
    let value = read(how, bits);
    if how.to.is_float() || how.tf32 { to_float(how, value) } else { to_integer(how, value) }
}

fn read(how: &Conversion, bits: u64) -> Value {
    let low = bits as u32;
    let half = |format| Value::Float(f64::from(f32::from_bits(widen(format, low & 0xffff))));
    match how.from {
        Type::F16 => half(Half::F16),
        Type::Bf16 => half(Half::Bf16),
        Type::F32 => Value::Float(f64::from(f32::from_bits(if how.ftz { flush(low) } else { low }))),
        Type::F64 => Value::Float(f64::from_bits(bits)),
        Type::S8 => Value::Integer(i128::from(bits as i8)),
        Type::S16 => Value::Integer(i128::from(bits as i16)),
        Type::S32 => Value::Integer(i128::from(bits as i32)),
        Type::S64 => Value::Integer(i128::from(bits as i64)),
        ty => Value::Integer(i128::from(bits & crate::memory::low_bytes(ty.bytes()))),
    }
}

/// To an integral value.
fn round(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Integers clamp: floats always do, integers with `.sat` only (nothing else comes here).
fn to_integer(how: &Conversion, value: Value) -> u64 {
    let bits = 8 * how.to.bytes();
    let (least, most) =
        if how.to.is_signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    let whole = match value {
        Value::Integer(whole) => whole,
        // NaN is zero, except where 64 bits are concerned: there it is the lowest signed value.
        Value::Float(value) if value.is_nan() => {
            return if how.from == Type::F64 || bits == 64 { 1 << (bits - 1) } else { 0 };
        }
        Value::Float(value) => round(value, how.rounding) as i128,
    };
    whole.clamp(least, most) as u64 & crate::memory::low_bytes(how.to.bytes())
}

/// Bits of precision and the exponent of the smallest normal number.
fn precision(ty: Type, tf32: bool) -> (i32, i32) {
    match ty {
        _ if tf32 => (11, -126),
        Type::F16 => (11, -14),
        Type::Bf16 => (8, -126),
        Type::F32 => (24, -126),
        _ => (53, -1022),
    }
}

fn to_float(how: &Conversion, value: Value) -> u64 {
    let value = match value {
        Value::Integer(whole) => from_integer(whole, how),
        Value::Float(value) if how.integral => round(value, how.rounding),
        Value::Float(value) if how.to.bytes() >= how.from.bytes() && !how.tf32 => value,
        Value::Float(value) => to_precision(value, how),
    };
    let value = if how.saturate { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
    let value = if how.relu && value < 0.0 { 0.0 } else { value };
    match how.to {
        Type::F64 if value.is_nan() => 0x7ff8_0000_0000_0000,
        Type::F64 => value.to_bits(),
        _ if value.is_nan() => u64::from(if how.to.bytes() == 2 { 0x7fff } else { super::float::NAN }),
        Type::F16 => u64::from(narrow(Half::F16, (value as f32).to_bits())),
        Type::Bf16 => u64::from(narrow(Half::Bf16, (value as f32).to_bits())),
        _ => {
            let bits = (value as f32).to_bits();
            u64::from(if how.ftz { flush(bits) } else { bits })
        }
    }
}

/// The nearest value that the target format has, in the direction asked for.
fn to_precision(value: f64, how: &Conversion) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let (digits, least) = precision(how.to, how.tf32);
    if digits == 53 {
        return value;
    }
    let exponent = ((value.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    // One unit in the last place of the target; both scalings are exact.
    let unit = 2f64.powi(exponent - digits + 1);
    let rounded = round(value / unit, how.rounding) * unit;
    let largest = largest(how.to, digits);
    if rounded.abs() <= largest {
        return rounded;
    }
    let inward = match how.rounding {
        Rounding::Zero => true,
        Rounding::Down => value > 0.0,
        Rounding::Up => value < 0.0,
        Rounding::Nearest | Rounding::NearestAway => false,
    };
    if inward { largest.copysign(value) } else { f64::INFINITY.copysign(value) }
}

fn largest(ty: Type, digits: i32) -> f64 {
    let exponent = if ty == Type::F16 { 15 } else { 127 };
    (2.0 - 2f64.powi(1 - digits)) * 2f64.powi(exponent)
}

/// An integer of up to 64 bits, rounded once to the target's precision.
fn from_integer(whole: i128, how: &Conversion) -> f64 {
    let (digits, _) = precision(how.to, how.tf32);
    let magnitude = whole.unsigned_abs();
    let extra = (128 - magnitude.leading_zeros() as i32 - digits).max(0);
    let (kept, lost) = (magnitude >> extra, magnitude & ((1 << extra) - 1));
    let middle = if extra > 0 { 1u128 << (extra - 1) } else { 0 };
    let up = lost != 0
        && match how.rounding {
            Rounding::Nearest => lost > middle || (lost == middle && kept & 1 == 1),
            Rounding::NearestAway => lost >= middle,
            Rounding::Zero => false,
            Rounding::Down => whole < 0,
            Rounding::Up => whole > 0,
        };
    let exact = ((kept + u128::from(up)) << extra) as f64;
    let value = if whole < 0 { -exact } else { exact };
    // Only f16 cannot hold the largest of them.
    if how.to == Type::F16 { to_precision(value, how) } else { value }
}
