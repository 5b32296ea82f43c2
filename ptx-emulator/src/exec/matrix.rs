//! `ldmatrix`, `stmatrix` and `mma.sync`.

use super::Context;
use super::half::widen;
use super::memory::address_of;
use crate::level::by_level;
use crate::op::{Half, LoadMatrix, MatrixMultiply, StoreMatrix};
use crate::report::Outcome;
use crate::shared::Actor;
use crate::warp::{LANES, Warp, Words};

/// Lanes 8i … 8i+7 give the addresses of the rows of matrix i; lane l gets two elements of row l / 4.
pub(crate) fn load(context: &mut Context<'_>, warp: &mut Warp, load: &LoadMatrix) -> Outcome {
    let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: context.line, each: 0 };
    let mut matrices = [[[0u8; 16]; 8]; 4];
    for (at, row) in matrices[..load.targets.len()].as_flattened_mut().iter_mut().enumerate() {
        let address = address_of(&warp.registers, &load.address, at);
        let offset = context.shared.offset(at as u32, address, 16, "a matrix row read")?;
        context.shared.note_read(&actor, at as u32, offset, 16)?;
        *row = context.shared.row(offset);
    }
    for (rows, &target) in matrices.iter().zip(&load.targets) {
        let target = &mut warp.registers.words[target as usize].0;
        let pairs = rows.as_flattened().as_chunks::<4>().0;
        if load.transposed {
            let element = |row: usize, column: usize| {
                u32::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]))
            };
            for (lane, word) in target.iter_mut().enumerate() {
                let (column, row) = (lane / 4, 2 * (lane % 4));
                *word = element(row, column) | element(row + 1, column) << 16;
            }
        } else {
            target.iter_mut().zip(pairs).for_each(|(word, &pair)| *word = u32::from_le_bytes(pair));
        }
    }
    Ok(())
}

/// The same the other way: lane l has two elements of row l / 4 of each matrix, or of column l / 4.
pub(crate) fn store(context: &mut Context<'_>, warp: &mut Warp, store: &StoreMatrix) -> Outcome {
    let actor = Actor { warp: warp.id, clock: &warp.clock, strong: false, line: context.line, each: 0 };
    for (matrix, &source) in store.sources.iter().enumerate() {
        let source = &warp.registers.words[source as usize].0;
        for row in 0..8 {
            let lane = 8 * matrix + row;
            let address = address_of(&warp.registers, &store.address, lane);
            let offset = context.shared.offset(lane as u32, address, 16, "a matrix row write")?;
            context.shared.note_write(&actor, lane as u32, offset, 16)?;
            let element = |column: usize| match store.transposed {
                false => source[4 * row + column / 2] >> (16 * (column % 2)),
                true => source[4 * column + row / 2] >> (16 * (row % 2)),
            };
            for column in 0..8 {
                context.shared.store(offset + 2 * column, 2, u64::from(element(column)));
            }
        }
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
    fn f16_deep(words: &mut [Words], how: &MatrixMultiply) = f16_deep_fused, f16_deep_plain
}
by_level! {
    /// m16n8k16, bf16.
    fn bf16_deep(words: &mut [Words], how: &MatrixMultiply) = bf16_deep_fused, bf16_deep_plain
}
by_level! {
    /// m16n8k8, f16.
    fn f16_shallow(words: &mut [Words], how: &MatrixMultiply) = f16_shallow_plain
}
by_level! {
    /// m16n8k8, bf16.
    fn bf16_shallow(words: &mut [Words], how: &MatrixMultiply) = bf16_shallow_plain
}

#[inline(always)]
fn f16_deep_fused(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2, true>(words, how, Half::F16);
}

#[inline(always)]
fn f16_deep_plain(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2, false>(words, how, Half::F16);
}

#[inline(always)]
fn bf16_deep_fused(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2, true>(words, how, Half::Bf16);
}

#[inline(always)]
fn bf16_deep_plain(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<2, false>(words, how, Half::Bf16);
}

#[inline(always)]
fn f16_shallow_plain(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<1, false>(words, how, Half::F16);
}

#[inline(always)]
fn bf16_shallow_plain(words: &mut [Words], how: &MatrixMultiply) {
    multiply_body::<1, false>(words, how, Half::Bf16);
}

/// Rows that are summed side by side.
const ROWS: usize = 4;

/// A fragment register is an 8 × 8 matrix of pairs: lane 4g + t holds columns 2t and 2t + 1 of row g (of column g for
/// B). `STEPS` of them make the depth.
///
/// The eight columns of a row are kept in the order 0 2 4 6 1 3 5 7, in which a row of C is four lanes of its one
/// register and four of its other. Products of 16-bit values are exact in f32, so that fusing them (`FUSED`) changes
/// nothing but speed, unless a product leaves the range of f32.
#[inline(always)]
fn multiply_body<const STEPS: usize, const FUSED: bool>(words: &mut [Words], how: &MatrixMultiply, format: Half) {
    let (mut a, mut b) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
    for step in 0..STEPS {
        let columns = &words[how.b[step] as usize].0;
        let mut pairs = [[0u32; 8]; 4];
        for t in 0..4 {
            for n in 0..4 {
                pairs[t][n] = columns[8 * n + t];
                pairs[t][n + 4] = columns[8 * n + 4 + t];
            }
        }
        for t in 0..4 {
            for n in 0..8 {
                b[8 * step + 2 * t][n] = f32::from_bits(widen(format, pairs[t][n] & 0xffff));
                b[8 * step + 2 * t + 1][n] = f32::from_bits(widen(format, pairs[t][n] >> 16));
            }
        }
        // The depth of A in the order 0 2 4 6 1 3 5 7 too: four even ones of a row, then four odd ones.
        for half in 0..2 {
            let rows = &words[how.a[2 * step + half] as usize].0;
            let (mut even, mut odd) = ([0f32; LANES], [0f32; LANES]);
            for lane in 0..LANES {
                even[lane] = f32::from_bits(widen(format, rows[lane] & 0xffff));
                odd[lane] = f32::from_bits(widen(format, rows[lane] >> 16));
            }
            for g in 0..8 {
                a[8 * half + g][8 * step..8 * step + 4].copy_from_slice(&even[4 * g..4 * g + 4]);
                a[8 * half + g][8 * step + 4..8 * step + 8].copy_from_slice(&odd[4 * g..4 * g + 4]);
            }
        }
    }
    let mut sums = [[0f32; 8]; 16];
    for (row, sum) in sums.iter_mut().enumerate() {
        let (half, g) = (row / 8, row % 8);
        for t in 0..4 {
            sum[t] = f32::from_bits(words[how.c[2 * half] as usize].0[4 * g + t]);
            sum[t + 4] = f32::from_bits(words[how.c[2 * half + 1] as usize].0[4 * g + t]);
        }
    }
    for (sums, a) in sums.as_chunks_mut::<ROWS>().0.iter_mut().zip(a.as_chunks::<ROWS>().0) {
        let mut sum = *sums;
        for (k, b) in b[..8 * STEPS].iter().enumerate() {
            // In ascending order of the depth.
            let place = (k & 8) + (k & 1) * 4 + (k & 7) / 2;
            for row in 0..ROWS {
                for n in 0..8 {
                    let (x, y) = (a[row][place], b[n]);
                    sum[row][n] = if FUSED { x.mul_add(y, sum[row][n]) } else { x * y + sum[row][n] };
                }
            }
        }
        *sums = sum;
    }
    for (row, sum) in sums.iter().enumerate() {
        let (half, g) = (row / 8, row % 8);
        for t in 0..4 {
            words[how.d[2 * half] as usize].0[4 * g + t] = sum[t].to_bits();
            words[how.d[2 * half + 1] as usize].0[4 * g + t] = sum[t + 4].to_bits();
        }
    }
}
