//! Root-mean-square layer norm (Zhang and Sennrich, 2019).

use super::chunk;
use crate::{
    isa::{Arch, B32, Builder, Cache, F32, Launch, MmaType, R32, R64, RF},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::{overlap, reduce::butterfly},
};

/// `out = s / sqrt(mean(s²) + epsilon) · weight`, a row at a time, where `s` is `x`, or with `residual` the sum
/// `residual + x`, rounded to the element type and stored back into `residual`.
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `x` | pointer | rows of `width` elements |
/// | `weight` | constant | `width` elements |
/// | `out` | pointer | rows of `width` elements; may be `x` |
/// | `x_row`, `out_row` | u64 | bytes from one row to the next |
/// | `residual` | pointer | rows of `width` elements, read and written (with `residual` only) |
/// | `residual_row` | u64 | bytes from one row to the next (with `residual` only) |
/// | `epsilon` | f32 | added to the mean square |
///
/// Sums have a fixed order, and division and root are correctly rounded, so that a GPU and the emulator agree bit for
/// bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RmsNormSpec {
    /// Elements a row: a multiple of 8, at most 32768.
    pub width: u32,
    /// Element type.
    pub dtype: MmaType,
    /// Adds a residual stream first.
    pub residual: bool,
    /// Architecture of the text.
    pub arch: Arch,
}

impl RmsNormSpec {
    /// Blocks to launch for this many rows.
    pub fn grid(&self, rows: u32) -> [u32; 3] {
        [rows, 1, 1]
    }

    /// A thread keeps its chunks in registers between the two passes: at most four of them.
    fn threads(&self) -> u32 {
        (self.width / chunk::ELEMENTS).next_multiple_of(32).min(1024)
    }

    /// The weights of this thread's chunks, as they lie in memory.
    fn weights(&self, k: &mut Builder, weight: R64) -> Vec<[R32; 4]> {
        let (thread, chunks) = (k.thread(), self.width / chunk::ELEMENTS);
        let chunk_weights = |first: u32| {
            let index = k.add(thread, first);
            let inside = k.lt_u(index, chunks);
            let address = k.mad_wide(index, chunk::BYTES, weight);
            let words = k.fresh_array::<B32, 4>();
            k.when(inside, |k| k.load_vector_into(words, address, 0, overlap::early(k)));
            words
        };
        (0..chunks).step_by(self.threads() as usize).map(chunk_weights).collect()
    }
}

impl KernelSpec for RmsNormSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        chunk::check_width(self.width, &mut errors);
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let Self { width, dtype, .. } = *self;
        let middle = if self.residual { "_residual" } else { "" };
        let entry = format!("rms_norm{middle}_w{width}_{}_{}", dtype.suffix(), self.arch.name());
        let launch = Launch { threads: self.threads(), blocks_per_multiprocessor: 1 };
        let mut k = Builder::new(self.arch, entry, launch);
        let x = k.parameter("x", ParameterKind::Pointer);
        let weight = k.parameter("weight", ParameterKind::Constant);
        let out = k.parameter("out", ParameterKind::Pointer);
        let [x_row, out_row] = ["x_row", "out_row"].map(|name| k.parameter(name, ParameterKind::U64));
        let residual = self.residual.then(|| {
            let base = k.parameter("residual", ParameterKind::Pointer);
            (base, k.parameter("residual_row", ParameterKind::U64))
        });
        let epsilon: RF = k.parameter("epsilon", ParameterKind::F32);
        let (row, thread) = (k.block_x(), k.thread());
        overlap::start(&mut k);
        let early = overlap::overlaps(&k).then(|| self.weights(&mut k, weight));
        overlap::wait(&mut k);

        k.comment("sum of squares");
        let chunks = width / chunk::ELEMENTS;
        let mut held = Vec::new();
        let sum: RF = k.mov(0.0);
        for first in (0..chunks).step_by(k.threads() as usize) {
            let index = k.add(thread, first);
            let inside = k.lt_u(index, chunks);
            let offset = k.mul_wide(index, chunk::BYTES);
            let words = k.fresh_array::<B32, 4>();
            k.if_then(inside, |k| {
                let address = chunk::row_address(k, x, row, x_row, offset);
                let mut loaded: [R32; 4] = k.load_vector(address, 0, Cache::Default);
                if let Some((base, stride)) = residual {
                    let address = chunk::row_address(k, base, row, stride, offset);
                    let addend = chunk::unpack(k, dtype, loaded);
                    let stream = chunk::load(k, dtype, address, Cache::Default);
                    let total = std::array::from_fn(|i| k.add_f(stream[i], addend[i]));
                    loaded = chunk::pack(k, dtype, total);
                    k.store_vector(address, 0, loaded);
                }
                for (&word, loaded) in words.iter().zip(loaded) {
                    k.set(word, loaded);
                }
                for value in chunk::unpack(k, dtype, loaded) {
                    let next = k.fma(value, value, sum);
                    k.set(sum, next);
                }
            });
            held.push((words, offset, inside));
        }
        let total = block_sum(&mut k, sum);

        k.comment("scale");
        let mean = k.div_f(total, width as f32);
        let shifted = k.add_f(mean, epsilon);
        let root = k.sqrt_f(shifted);
        let scale = k.div_f(1.0, root);
        for (i, (words, offset, inside)) in held.into_iter().enumerate() {
            k.if_then(inside, |k| {
                let weight = match &early {
                    Some(weights) => chunk::unpack(k, dtype, weights[i]),
                    None => {
                        let address = k.add(weight, offset);
                        chunk::load(k, dtype, address, Cache::ReadOnly)
                    }
                };
                let values = chunk::unpack(k, dtype, words);
                let scaled = std::array::from_fn(|i| {
                    let normal = k.mul_f(values[i], scale);
                    k.mul_f(normal, weight[i])
                });
                let address = chunk::row_address(k, out, row, out_row, offset);
                chunk::store(k, dtype, address, scaled);
            });
        }
        k.ret();
        k.finish()
    }
}

/// The sum over the block in a fixed order, known to every thread.
fn block_sum(k: &mut Builder, value: RF) -> RF {
    let in_warp = butterfly(k, value, Builder::add_f);
    let warps = k.threads() / 32;
    if warps == 1 {
        return in_warp;
    }
    let region = k.shared(warps * 4, 4);
    let (thread, lane) = (k.thread(), k.lane());
    let base = k.shared_address(region);
    let first = k.eq(lane, 0u32);
    let warp = k.shr_u(thread, 5u32);
    let own = k.mad(warp, 4u32, base);
    k.when(first, |k| k.store(own, 0, in_warp));
    k.barrier();
    let partial: RF = k.mov(0.0);
    let present = k.lt_u(lane, warps);
    let slot = k.mad(lane, 4u32, base);
    k.if_then(present, |k| {
        let loaded = k.load::<F32, _>(slot, 0);
        k.set(partial, loaded);
    });
    butterfly(k, partial, Builder::add_f)
}
