//! `wgmma`: the arithmetic of one warp's sixteen rows, and the tiles it needs.

use super::half::widen;
use crate::descriptor::Descriptor;
use crate::level::by_level;
use crate::op::{Half, Slot};
use crate::report::{Fault, Outcome, ReportKind};
use crate::shared::{Shared, TensorCores};
use crate::warp::{LANES, Words};

/// Depth of one instruction.
pub(crate) const DEPTH: usize = 16;

/// A warp's rows of A, by depth: for each half of eight rows, row `lane / 4` in each lane.
pub(crate) type Fragment = [[[f32; LANES]; 2]; DEPTH];

/// A tile of B, by depth: columns in the order 0 2 4 6 1 3 5 7 within each eight, as the accumulators of a lane need
/// them.
pub(crate) type Columns = Vec<f32>;

/// Sixteen bytes of a tile as four pairs of elements.
fn piece(shared: &mut Shared, cores: &TensorCores<'_>, address: u32) -> Outcome<[u32; 4]> {
    let offset = shared.inside(0, address.into(), 16, "a tile's read")?;
    shared.note_tile_read(cores, offset, 16)?;
    let row = shared.row(offset);
    let mut words = [0; 4];
    words.iter_mut().zip(row.as_chunks::<4>().0).for_each(|(word, &bytes)| *word = u32::from_le_bytes(bytes));
    Ok(words)
}

pub(crate) fn descriptor(bits: u64) -> Outcome<Descriptor> {
    Descriptor::decode(bits).map_err(|sentence| {
        Fault::new(ReportKind::MatrixDescriptor, 0, format!("the descriptor {bits:#018x} of this `wgmma`: {sentence}"))
    })
}

/// A value of a pair.
#[inline(always)]
fn element(format: Half, pair: u32, odd: bool) -> f32 {
    f32::from_bits(widen(format, if odd { pair >> 16 } else { pair & 0xffff }))
}

/// Reads `width` columns of B.
pub(crate) fn columns(
    shared: &mut Shared,
    cores: &TensorCores<'_>,
    format: Half,
    tile: &Descriptor,
    transposed: bool,
    width: usize,
    out: &mut Columns,
) -> Outcome {
    out.resize(DEPTH * width, 0.0);
    // Place of column n within its eight.
    let place = |n: usize| n / 8 * 8 + n % 2 * 4 + n % 8 / 2;
    if transposed {
        for k in 0..DEPTH {
            for (eight, out) in out[k * width..][..width].as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let pairs = piece(shared, cores, tile.piece(true, k as u32, eight as u32))?;
                *out = std::array::from_fn(|i| element(format, pairs[i % 4], i >= 4));
            }
        }
        return Ok(());
    }
    for n in 0..width {
        for half in 0..2 {
            let pairs = piece(shared, cores, tile.piece(false, n as u32, half))?;
            for i in 0..8 {
                let k = half as usize * 8 + i;
                out[k * width + place(n)] = element(format, pairs[i / 2], i % 2 != 0);
            }
        }
    }
    Ok(())
}

/// Reads rows `first` to `first + 15` of A.
pub(crate) fn rows(
    shared: &mut Shared,
    cores: &TensorCores<'_>,
    format: Half,
    tile: &Descriptor,
    transposed: bool,
    first: u32,
    out: &mut Fragment,
) -> Outcome {
    let mut put = |k: usize, row: usize, value: f32| {
        out[k][row / 8][row % 8 * 4..][..4].fill(value);
    };
    for major in 0..16 {
        for half in 0..2 {
            let pairs = match transposed {
                true => piece(shared, cores, tile.piece(true, major, first / 8 + half))?,
                false => piece(shared, cores, tile.piece(false, first + major, half))?,
            };
            for i in 0..8 {
                let (value, minor) = (element(format, pairs[i / 2], i % 2 != 0), half as usize * 8 + i);
                if transposed { put(major as usize, minor, value) } else { put(minor, major as usize, value) }
            }
        }
    }
    Ok(())
}

/// A's fragment in registers: of each four lanes, lane t holds depths 2t and 2t + 1; the first two registers are the
/// halves of eight rows at depths 0 to 7, the others at 8 to 15.
pub(crate) fn fragment(words: &[Words], format: Half, parts: &[Slot; 4], out: &mut Fragment) {
    for (k, halves) in out.iter_mut().enumerate() {
        for (half, rows) in halves.iter_mut().enumerate() {
            let pairs = &words[parts[k / 8 * 2 + half] as usize].0;
            for row in 0..8 {
                let value = element(format, pairs[4 * row + k % 8 / 2], k % 2 != 0);
                rows[4 * row..][..4].fill(value);
            }
        }
    }
}

/// Changes the sign of a fragment.
pub(crate) fn negate(fragment: &mut Fragment) {
    fragment.as_flattened_mut().as_flattened_mut().iter_mut().for_each(|value| *value = -*value);
}

by_level! {
    /// `D = A × B`, plus D if `accumulate`, for one warp.
    fn multiply(words: &mut [Words], d: &[Slot], a: &Fragment, b: &[f32], accumulate: bool) = sum_fused, sum_plain
}

#[inline(always)]
fn sum_fused(words: &mut [Words], d: &[Slot], a: &Fragment, b: &[f32], accumulate: bool) {
    sum_body::<true>(words, d, a, b, accumulate);
}

#[inline(always)]
fn sum_plain(words: &mut [Words], d: &[Slot], a: &Fragment, b: &[f32], accumulate: bool) {
    sum_body::<false>(words, d, a, b, accumulate);
}

/// Each eight columns have four accumulators: for either half of the rows, the even and the odd columns. Lane 4g + t of
/// one holds column 2t or 2t + 1 of row g. The depth is summed in ascending order; products of 16-bit values are exact
/// in f32, so that fusing changes nothing but speed.
#[inline(always)]
fn sum_body<const FUSED: bool>(words: &mut [Words], d: &[Slot], a: &Fragment, b: &[f32], accumulate: bool) {
    let width = 2 * d.len();
    for (eight, d) in d.as_chunks::<4>().0.iter().enumerate() {
        let mut sums = [[0f32; LANES]; 4];
        if accumulate {
            for (sum, &d) in sums.iter_mut().zip(d) {
                *sum = words[d as usize].0.map(f32::from_bits);
            }
        }
        for (k, rows) in a.iter().enumerate() {
            let Some(columns) = b[k * width + 8 * eight..].first_chunk::<8>() else { return };
            for (i, sum) in sums.iter_mut().enumerate() {
                let (rows, odd) = (&rows[i / 2], i % 2);
                for lane in 0..LANES {
                    let (x, y) = (rows[lane], columns[4 * odd + lane % 4]);
                    sum[lane] = if FUSED { x.mul_add(y, sum[lane]) } else { x * y + sum[lane] };
                }
            }
        }
        for (sum, &d) in sums.iter().zip(d) {
            words[d as usize].0 = sum.map(f32::to_bits);
        }
    }
}
