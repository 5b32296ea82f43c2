//! Rows in chunks: eight half-precision elements, one 16-byte access.

use crate::{
    isa::{B32, Builder, Cache, MmaType, R32, R64, RF, RP},
    kernels::error::SpecError,
};

/// Elements of a chunk.
pub(in crate::kernels) const ELEMENTS: u32 = 8;
/// Bytes of a chunk.
pub(in crate::kernels) const BYTES: u32 = 16;
/// The widest row.
const MAX_WIDTH: u32 = 32768;
/// Threads a block at most, where a row has that many chunks.
const MAX_THREADS: u32 = 256;

/// Checks a row width.
pub(in crate::kernels) fn check_width(width: u32, errors: &mut Vec<SpecError>) {
    if width == 0 || width > MAX_WIDTH || !width.is_multiple_of(ELEMENTS) {
        errors.push(SpecError::new(
            "width",
            format!("{width} elements a row: must be a multiple of {ELEMENTS} from {ELEMENTS} to {MAX_WIDTH}"),
        ));
    }
}

/// Threads a block of a kernel that gives each thread one chunk.
pub(in crate::kernels) fn threads(width: u32) -> u32 {
    (width / ELEMENTS).next_multiple_of(32).min(MAX_THREADS)
}

/// Blocks of a kernel that gives each thread one chunk: x the row, y the part of the row.
pub(in crate::kernels) fn grid(width: u32, rows: u32) -> [u32; 3] {
    [rows, (width / ELEMENTS).div_ceil(threads(width)), 1]
}

/// This thread's chunk: its byte offset in the row, and whether the row has it.
pub(in crate::kernels) fn own(k: &mut Builder, width: u32) -> (R64, RP) {
    let (thread, part) = (k.thread(), k.block_y());
    let chunk = k.mad(part, k.threads(), thread);
    let inside = k.lt_u(chunk, width / ELEMENTS);
    (k.mul_wide(chunk, BYTES), inside)
}

/// `base + row · stride + offset`.
pub(in crate::kernels) fn row_address(k: &mut Builder, base: R64, row: R32, stride: R64, offset: R64) -> R64 {
    let row = k.widen_u(row);
    let start = k.mad(row, stride, base);
    k.add(start, offset)
}

/// Copies a chunk where there is one, else stores zeros.
pub(in crate::kernels) fn copy_or_zero(k: &mut Builder, exists: RP, source: R64, cache: Cache, target: R64) {
    k.if_else(
        exists,
        |k| {
            let words: [R32; 4] = k.load_vector(source, 0, cache);
            k.store_vector(target, 0, words);
        },
        |k| {
            let zero = k.mov(0u32);
            k.store_vector::<B32, _, 4>(target, 0, [zero; 4]);
        },
    );
}

/// Loads a chunk as floats.
pub(in crate::kernels) fn load(k: &mut Builder, dtype: MmaType, address: R64, cache: Cache) -> [RF; 8] {
    let packed: [R32; 4] = k.load_vector(address, 0, cache);
    unpack(k, dtype, packed)
}

/// The elements of a loaded chunk.
pub(in crate::kernels) fn unpack(k: &mut Builder, dtype: MmaType, packed: [R32; 4]) -> [RF; 8] {
    let pairs = packed.map(|pair| k.unpack_halves(dtype, pair));
    std::array::from_fn(|i| pairs[i / 2][i % 2])
}

/// Rounds eight floats to a chunk.
pub(in crate::kernels) fn pack(k: &mut Builder, dtype: MmaType, values: [RF; 8]) -> [R32; 4] {
    std::array::from_fn(|i| k.pack_halves(dtype, values[2 * i], values[2 * i + 1]))
}

/// Rounds eight floats and stores them.
pub(in crate::kernels) fn store(k: &mut Builder, dtype: MmaType, address: R64, values: [RF; 8]) {
    let packed = pack(k, dtype, values);
    k.store_vector::<B32, _, 4>(address, 0, packed);
}
