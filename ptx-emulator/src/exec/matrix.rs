//! `ldmatrix` and `mma.sync`.

use super::Context;
use super::half::widen;
use super::memory::address_of;
use crate::level::by_level;
use crate::op::{Half, LoadMatrix, MatrixMultiply};
use crate::report::Outcome;
use crate::shared::Actor;
use crate::warp::{LANES, Warp, Words};

/// Lanes 8i … 8i+7 give the addresses of the rows of matrix i; lane l gets two elements of row l / 4.
pub(crate) fn load(context: &mut Context<'_>, warp: &mut Warp, load: &LoadMatrix) -> Outcome {
    let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: context.line };
    let mut matrices = [[[0u8; 16]; 8]; 4];
    for (at, row) in matrices[..load.targets.len()].as_flattened_mut().iter_mut().enumerate() {
        let address = address_of(&warp.registers, &load.address, at);
        let offset = context.shared.offset(at as u32, address, 16, "a matrix row read")?;
        context.shared.note_read(&actor, at as u32, offset, 16)?;
        *row = context.shared.row(offset);
    }
    for (rows, &target) in matrices.iter().zip(&load.targets) {
        let element = |row: usize, column: usize| {
            u32::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]))
        };
        warp.registers.words[target as usize].0 = std::array::from_fn(|lane| {
            let (one, two) = (lane / 4, 2 * (lane % 4));
            if load.transposed {
                element(two, one) | element(two + 1, one) << 16
            } else {
                element(one, two) | element(one, two + 1) << 16
            }
        });
    }
    Ok(())
}

/// `D = A × B + C` for one warp.
pub(crate) fn multiply(level: crate::level::Level, words: &mut [Words], how: &MatrixMultiply) {
    match (how.format, how.depth) {
        (Half::F16, 16) => f16_deep(level, words, how),
        (Half::Bf16, 16) => bf16_deep(level, words, how),
        (Half::F16, _) => f16_shallow(level, words, how),
        (Half::Bf16, _) => bf16_shallow(level, words, how),
    }
}

by_level! {
    /// m16n8k16, f16.
    fn f16_deep(words: &mut [Words], how: &MatrixMultiply) = f16_deep_body
}
by_level! {
    /// m16n8k16, bf16.
    fn bf16_deep(words: &mut [Words], how: &MatrixMultiply) = bf16_deep_body
}
by_level! {
    /// m16n8k8, f16.
    fn f16_shallow(words: &mut [Words], how: &MatrixMultiply) = f16_shallow_body
}
by_level! {
    /// m16n8k8, bf16.
    fn bf16_shallow(words: &mut [Words], how: &MatrixMultiply) = bf16_shallow_body
}

#[inline(always)]
fn f16_deep_body(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2>(words, how, Half::F16);
}

#[inline(always)]
fn bf16_deep_body(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2>(words, how, Half::Bf16);
}

#[inline(always)]
fn f16_shallow_body(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<1>(words, how, Half::F16);
}

#[inline(always)]
fn bf16_shallow_body(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<1>(words, how, Half::Bf16);
}

/// A fragment register is an 8 × 8 matrix, row-major, two elements a lane; that of B is stored by columns. `STEPS` of
/// them make the depth.
#[inline(always)]
fn multiply_body<const STEPS: usize>(words: &mut [Words], how: &MatrixMultiply, format: Half) {
    let tile = |register: &[u32; LANES]| {
        let mut tile = [[0f32; 8]; 8];
        for (lane, &pair) in register.iter().enumerate() {
            tile[lane / 4][2 * (lane % 4)] = f32::from_bits(widen(format, pair & 0xffff));
            tile[lane / 4][2 * (lane % 4) + 1] = f32::from_bits(widen(format, pair >> 16));
        }
        tile
    };
    let mut b = [[0f32; 8]; 16];
    for step in 0..STEPS {
        let columns = tile(&words[how.b[step] as usize].0);
        for k in 0..8 {
            for n in 0..8 {
                b[8 * step + k][n] = columns[n][k];
            }
        }
    }
    let mut sums = [[[0f32; 8]; 8]; 2];
    for (half, sums) in sums.iter_mut().enumerate() {
        let (even, odd) = (how.c[2 * half] as usize, how.c[2 * half + 1] as usize);
        for lane in 0..LANES {
            sums[lane / 4][2 * (lane % 4)] = f32::from_bits(words[even].0[lane]);
            sums[lane / 4][2 * (lane % 4) + 1] = f32::from_bits(words[odd].0[lane]);
        }
        for step in 0..STEPS {
            let a = tile(&words[how.a[2 * step + half] as usize].0);
            for (row, sum) in sums.iter_mut().enumerate() {
                for k in 0..8 {
                    for n in 0..8 {
                        sum[n] = accumulate(a[row][k], b[8 * step + k][n], sum[n]);
                    }
                }
            }
        }
    }
    for (half, sums) in sums.iter().enumerate() {
        let (even, odd) = (how.d[2 * half] as usize, how.d[2 * half + 1] as usize);
        for lane in 0..LANES {
            words[even].0[lane] = sums[lane / 4][2 * (lane % 4)].to_bits();
            words[odd].0[lane] = sums[lane / 4][2 * (lane % 4) + 1].to_bits();
        }
    }
}

/// One product into a sum. Products of 16-bit values are exact in f32, so that fusing them changes nothing but speed.
#[inline(always)]
fn accumulate(a: f32, b: f32, sum: f32) -> f32 {
    a * b + sum
}
