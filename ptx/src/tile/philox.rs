//! Philox-4x32-10: random numbers as a pure function of a counter and a key.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), §3.3 and table 2. No state is
//! kept: a number is named by what it is for, so it is the same wherever and in whichever order it is drawn.

use crate::isa::{Builder, R32};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four 32-bit random words for a counter and a key, lowest word first.
pub fn philox(k: &mut Builder, counter: [R32; 4], key: [R32; 2]) -> [R32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for round in 0..ROUNDS {
        let [k0, k1] = [0, 1].map(|i| k.add(key[i], WEYL[i].wrapping_mul(round)));
        let [high0, low0] = [k.mul_high(c0, MULTIPLIERS[0]), k.mul(c0, MULTIPLIERS[0])];
        let [high1, low1] = [k.mul_high(c2, MULTIPLIERS[1]), k.mul(c2, MULTIPLIERS[1])];
        let mixed1 = k.xor(high1, c1);
        let mixed0 = k.xor(high0, c3);
        [c0, c1, c2, c3] = [k.xor(mixed1, k0), low1, k.xor(mixed0, k1), low0];
    }
    [c0, c1, c2, c3]
}
