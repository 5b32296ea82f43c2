//! Standard-normal noise: random weights and benchmark inputs, drawn where they are needed.

use super::chunk;
use crate::{
    isa::{Arch, Builder, Launch, MmaType, R32, RF},
    kernels::{
        KernelSpec,
        error::SpecErrors,
        meta::{Kernel, ParameterKind},
    },
    tile::philox::philox,
};

/// `out[i]` ~ N(0, `scale`²), by Box and Muller from Philox-4x32-10: the same numbers for the same seed on every device,
/// up to the rounding of its logarithm and sine.
///
/// Grid: [`NoiseSpec::grid`].
///
/// | parameter | kind | meaning |
/// |---|---|---|
/// | `out` | pointer | contiguous elements, 16-byte aligned |
/// | `chunks` | u32 | eighths of the number of elements |
/// | `seed_low`, `seed_high` | u32 | the seed: the key of the generator |
/// | `scale` | f32 | standard deviation |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoiseSpec {
    /// Element type.
    pub dtype: MmaType,
    /// Architecture of the text.
    pub arch: Arch,
}

impl NoiseSpec {
    const THREADS: u32 = 256;

    /// Blocks to launch for this many chunks of eight elements.
    pub fn grid(&self, chunks: u32) -> [u32; 3] {
        [chunks.div_ceil(Self::THREADS), 1, 1]
    }
}

impl KernelSpec for NoiseSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        SpecErrors::check(Vec::new())
    }

    fn build(&self) -> Kernel {
        let entry = format!("noise_{}_{}", self.dtype.suffix(), self.arch.target());
        let mut k = Builder::new(self.arch, entry, Launch { threads: Self::THREADS, blocks_per_multiprocessor: 1 });
        let out = k.parameter("out", ParameterKind::Pointer);
        let [chunks, low, high] = ["chunks", "seed_low", "seed_high"].map(|name| k.parameter(name, ParameterKind::U32));
        let scale: RF = k.parameter("scale", ParameterKind::F32);
        let (block, thread) = (k.block_x(), k.thread());
        let chunk = k.mad(block, Self::THREADS, thread);
        let inside = k.lt_u(chunk, chunks);
        k.if_then(inside, |k| {
            let zero = k.mov(0u32);
            let one = k.mov(1u32);
            let first = philox(k, [chunk, zero, zero, zero], [low, high]);
            let second = philox(k, [chunk, one, zero, zero], [low, high]);
            let words = [first, second].concat();
            let mut values = Vec::with_capacity(8);
            for pair in words.chunks(2) {
                values.extend(normal_pair(k, pair[0], pair[1], scale));
            }
            let address = k.mad_wide(chunk, chunk::BYTES, out);
            chunk::store(k, self.dtype, address, std::array::from_fn(|i| values[i]));
        });
        k.ret();
        k.finish()
    }
}

/// Two independent normal numbers from two random words.
fn normal_pair(k: &mut Builder, a: R32, b: R32, scale: RF) -> [RF; 2] {
    // 24 bits and a half: never 0, whose logarithm is infinite.
    let [u, v] = [a, b].map(|word| {
        let bits = k.shr_u(word, 8u32);
        let whole = k.float_from_u(bits);
        k.fma(whole, 2f32.powi(-24), 2f32.powi(-25))
    });
    let log = k.log2_f(u);
    let square = k.mul_f(log, -2.0 * std::f32::consts::LN_2);
    let radius = k.sqrt_f(square);
    let radius = k.mul_f(radius, scale);
    let angle = k.mul_f(v, 2.0 * std::f32::consts::PI);
    let (cos, sin) = (k.cos_f(angle), k.sin_f(angle));
    [k.mul_f(radius, cos), k.mul_f(radius, sin)]
}
