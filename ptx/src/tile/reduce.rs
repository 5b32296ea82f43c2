//! Sums over a warp and over a block.
//!
//! Integer sums are the same in every order, so results do not depend on how work is spread. Floats are combined by halving, in
//! an order that the lanes alone fix.
//! The block forms take shared memory that no one else uses meanwhile, and leave it free when they return.

use crate::isa::{B32, Builder, Cache, R32, R64, RF};

/// Shared memory in bytes that [`block_sum`] of `values` 64-bit values needs, for any number of threads.
pub const fn block_sum_bytes(values: u32) -> u32 {
    32 * 8 * values
}

/// Shared memory in bytes that [`block_exclusive_sum`] needs, for any number of threads.
pub const BLOCK_EXCLUSIVE_SUM_BYTES: u32 = 32 * 4;

/// The sum over the warp, in every lane.
pub fn warp_sum(k: &mut Builder, a: R64) -> R64 {
    let mut sum = a;
    for mask in [16, 8, 4, 2, 1] {
        let halves = k.split_wide(sum).map(|half| k.shuffle_xor(half, mask));
        let other = k.join_wide(halves[0], halves[1]);
        sum = k.add(sum, other);
    }
    sum
}

/// The sum over the warp of numbers below 2⁵², in every lane: two sums of half as many bits, which are one instruction each.
pub fn warp_sum_52(k: &mut Builder, a: R64) -> R64 {
    const HALF: u32 = 26;
    let low = k.narrow(a);
    let low = k.and(low, (1u32 << HALF) - 1);
    let high = k.shr_u(a, HALF);
    let high = k.narrow(high);
    let [low, high] = [low, high].map(|half| {
        let sum = k.warp_sum(half);
        k.widen_u(sum)
    });
    let high = k.shl(high, HALF);
    k.add(high, low)
}

/// The sum over each group of `lanes` neighbouring lanes (a power of two), in every lane of it, bit for bit the same.
pub fn group_sum_f(k: &mut Builder, a: RF, lanes: u32) -> RF {
    let mut sum = a;
    let mut mask = lanes / 2;
    while mask > 0 {
        let other = k.shuffle_xor(sum, mask);
        sum = k.add_f(sum, other);
        mask /= 2;
    }
    sum
}

/// The sums over the warp of four numbers: that of number i in lanes 8 i to 8 i + 7, bit for bit as [`group_sum_f`] has it, with less than
/// a third of the shuffles.
pub fn warp_sums_f(k: &mut Builder, numbers: [RF; 4]) -> RF {
    let lane = k.lane();
    let mut left = numbers.to_vec();
    for mask in [16, 8] {
        let bit = k.and(lane, mask);
        let upper = k.ne::<B32>(bit, 0u32);
        let (first, second) = left.split_at(left.len() / 2);
        // Each half of the lanes goes on with half of the numbers.
        left = first
            .iter()
            .zip(second)
            .map(|(&low, &high)| {
                let (own, given) = (k.select(upper, high, low), k.select(upper, low, high));
                let other = k.shuffle_xor(given, mask);
                k.add_f(own, other)
            })
            .collect();
    }
    group_sum_f(k, left[0], 8)
}

/// The sum over the lanes up to and including this one, of floats. Each lane rounds by itself, so sums may fall by a rounding
/// from one lane to the next.
pub fn warp_inclusive_sum_f(k: &mut Builder, a: RF) -> RF {
    let lane = k.lane();
    let mut sum = a;
    for delta in [1u32, 2, 4, 8, 16] {
        let other = k.shuffle_up(sum, delta);
        let inside = k.ge_u(lane, delta);
        let other = k.select(inside, other, 0.0f32);
        sum = k.add_f(sum, other);
    }
    sum
}

/// The sum over the lanes up to and including this one.
pub fn warp_inclusive_sum(k: &mut Builder, a: R64) -> R64 {
    let lane = k.lane();
    let mut sum = a;
    for delta in [1u32, 2, 4, 8, 16] {
        let halves = k.split_wide(sum).map(|half| k.shuffle_up(half, delta));
        let other = k.join_wide(halves[0], halves[1]);
        let inside = k.ge_u(lane, delta);
        let other = k.select(inside, other, 0u64);
        sum = k.add(sum, other);
    }
    sum
}

/// As [`warp_inclusive_sum`], of 32-bit values.
pub fn warp_inclusive_sum_32(k: &mut Builder, a: R32) -> R32 {
    let lane = k.lane();
    let mut sum = a;
    for delta in [1u32, 2, 4, 8, 16] {
        let other = k.shuffle_up(sum, delta);
        let inside = k.ge_u(lane, delta);
        let other = k.select(inside, other, 0u32);
        sum = k.add(sum, other);
    }
    sum
}

/// The sums over the block, in every thread; `scratch` holds [`block_sum_bytes`].
pub fn block_sum<const N: usize>(k: &mut Builder, scratch: R32, values: [R64; N]) -> [R64; N] {
    let values = values.map(|value| warp_sum(k, value));
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let leader = k.eq(lane, 0u32);
    let own = k.mad(warp, 8u32, scratch);
    k.when(leader, |k| {
        for (i, value) in values.into_iter().enumerate() {
            k.store(own, i as i64 * 256, value);
        }
    });
    k.barrier();
    let (inside, at) = (k.lt_u(lane, warps), k.mad(lane, 8u32, scratch));
    let sums = std::array::from_fn(|i| {
        let partial = k.mov(0u64);
        k.when(inside, |k| k.load_into(partial, at, i as i64 * 256, Cache::Default));
        warp_sum(k, partial)
    });
    k.barrier();
    sums
}

/// The unsigned maximum over the block, in every thread; `scratch` holds [`BLOCK_EXCLUSIVE_SUM_BYTES`].
pub fn block_max(k: &mut Builder, scratch: R32, value: R32) -> R32 {
    let largest = k.warp_max_u(value);
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let own = k.mad(warp, 4u32, scratch);
    let leader = k.eq(lane, 0u32);
    k.when(leader, |k| k.store(own, 0, largest));
    k.barrier();
    let (inside, at) = (k.lt_u(lane, warps), k.mad(lane, 4u32, scratch));
    let partial = k.mov::<B32>(0u32);
    k.when(inside, |k| {
        let loaded: R32 = k.load(at, 0);
        k.set(partial, loaded);
    });
    k.barrier();
    k.warp_max_u(partial)
}

/// The sum over the threads before this one, and the sum over the block; `scratch` holds
/// [`BLOCK_EXCLUSIVE_SUM_BYTES`].
pub fn block_exclusive_sum(k: &mut Builder, scratch: R32, value: R32) -> (R32, R32) {
    let inclusive = warp_inclusive_sum_32(k, value);
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let own = k.mad(warp, 4u32, scratch);
    let last = k.eq(lane, 31u32);
    k.when(last, |k| k.store(own, 0, inclusive));
    k.barrier();
    let inside = k.lt_u(lane, warps);
    let at = k.mad(lane, 4u32, scratch);
    let partial = k.mov::<B32>(0u32);
    k.when(inside, |k| k.load_into(partial, at, 0, Cache::Default));
    let through = warp_inclusive_sum_32(k, partial);
    let total = k.shuffle_from(through, 31u32);
    let before_warps = k.sub(through, partial);
    let before = k.shuffle_from(before_warps, warp);
    k.barrier();
    let exclusive = k.sub(inclusive, value);
    (k.add(before, exclusive), total)
}

/// Combines the values of all lanes, by halving; `combine` takes them in either order. Every lane gets the same bits.
pub(crate) fn butterfly(k: &mut Builder, value: RF, combine: impl Fn(&mut Builder, RF, RF) -> RF) -> RF {
    [16, 8, 4, 2, 1].into_iter().fold(value, |value, mask| {
        let other = k.shuffle_xor(value, mask);
        combine(k, value, other)
    })
}

/// Shared memory in bytes that [`block_combine`] needs, for any number of threads.
pub(crate) const BLOCK_COMBINE_BYTES: u32 = 32 * 4;

/// Combines the values of all threads: those of a warp by halving, then those of the warps. `none` changes nothing; `scratch`
/// holds [`BLOCK_COMBINE_BYTES`]. Every thread gets the same bits.
pub(crate) fn block_combine(
    k: &mut Builder,
    scratch: R32,
    value: RF,
    none: f32,
    combine: impl Fn(&mut Builder, RF, RF) -> RF,
) -> RF {
    let value = butterfly(k, value, &combine);
    let warps = k.threads() / 32;
    let (thread, lane) = (k.thread(), k.lane());
    let warp = k.shr_u(thread, 5u32);
    let leads = k.eq(lane, 0u32);
    let own = k.mad(warp, 4u32, scratch);
    k.when(leads, |k| k.store(own, 0, value));
    k.barrier();
    let (inside, at) = (k.lt_u(lane, warps), k.mad(lane, 4u32, scratch));
    let partial = k.mov(none);
    k.when(inside, |k| {
        let loaded: RF = k.load(at, 0);
        k.set(partial, loaded);
    });
    let all = butterfly(k, partial, &combine);
    k.barrier();
    all
}
