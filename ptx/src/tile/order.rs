//! Floats as unsigned integers that compare the same way.

use crate::isa::{Builder, R32, RF};

/// The key of minus infinity; only NaNs with the sign bit lie below.
pub const NEGATIVE_INFINITY: u32 = 0x007F_FFFF;

/// A key whose unsigned order is the order of the floats; −0 lies just below +0.
pub fn order_key(k: &mut Builder, a: RF) -> R32 {
    let bits = k.bits(a);
    let sign = k.shr_s(bits, 31u32);
    let flip = k.or(sign, 0x8000_0000u32);
    k.xor(bits, flip)
}

/// The float with this key.
pub fn from_order_key(k: &mut Builder, key: R32) -> RF {
    let negative = k.shr_s(key, 31u32);
    let kept = k.not(negative);
    let flip = k.or(kept, 0x8000_0000u32);
    let bits = k.xor(key, flip);
    k.from_bits(bits)
}
