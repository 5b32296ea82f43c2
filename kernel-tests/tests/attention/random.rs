//! Launches drawn at random: a kernel for every so many of them, since each kernel is compiled once.

use crate::{PATTERNS, case::Case, expressions};
use kernel_tests::testing;
use ptx::{
    Arch, KernelSpec,
    isa::MmaType,
    kernels::attention::{AttentionSpec, KvLayout, Pattern},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rayon::prelude::*;
use std::{env, thread, time::Instant};

/// Launches of one kernel.
const RUN: usize = 170;
/// Longest sequence.
const LONGEST: usize = 300;

/// The launches to make. Their numbers say everything about them, beside the seed.
fn numbers(all: bool) -> Vec<usize> {
    match env::var("TEST_LAUNCH") {
        Ok(number) => vec![number.parse().expect("TEST_LAUNCH must be a whole number")],
        Err(_) if all => (0..10_000).collect(),
        // Four launches of every sixth kernel.
        Err(_) => (0..40).map(|i| i / 4 * 6 * RUN + i % 4).collect(),
    }
}

/// What is drawn of a kernel beside its spec: its expressions come with the launch's own side buffers.
struct Kernel {
    spec: AttentionSpec,
    slopes: bool,
    documents: bool,
}

impl Kernel {
    fn draw(seed: u64, number: usize, arch: Arch) -> Kernel {
        let mut random = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
        let mut of = |values: &[u32]| *values.choose(&mut random).unwrap();
        // Specs that are none are drawn again.
        let mut spec = loop {
            // Every pattern as often as any other, whatever it forbids.
            let pattern = PATTERNS[number % PATTERNS.len()];
            let (block, head_dim) = ((of(&[64, 128, 192]), of(&[32, 64, 128])), of(&[64, 96, 128, 128, 256]));
            let dtype = [MmaType::Bf16, MmaType::F16][of(&[0, 1]) as usize];
            let mut spec = AttentionSpec::new(pattern, block, head_dim, dtype, arch);
            spec.causal = of(&[0, 1]) == 1;
            spec.softcap = of(&[0, 0, 0, 1]) == 1;
            if spec.validate().is_ok() {
                break spec;
            }
        };
        spec.kv = match of(&[0, 0, 0, 16, 32, 64, 128, 256]) {
            0 => KvLayout::Strided,
            page => KvLayout::Paged { page },
        };
        Kernel { spec, slopes: of(&[0, 0, 0, 1]) == 1, documents: of(&[0, 0, 0, 1]) == 1 }
    }

    /// A launch of this kernel.
    fn launch(&self, seed: u64, number: usize) -> Case {
        let seed = seed.wrapping_add(number as u64);
        let mut random = StdRng::seed_from_u64(seed);
        let mut sequence = |shortest: usize| {
            let (a, b) = (random.random_range(shortest..=LONGEST), random.random_range(shortest..=LONGEST));
            match random.random_range(0..4) {
                0 => (a, b),
                1 | 2 => (a.min(b), a.max(b)),
                _ => (a, a),
            }
        };
        // One sequence has rows and keys; others may be empty.
        let first = sequence(1);
        let others: Vec<_> = (0..3).map(|_| sequence(0)).collect();
        let mut of = |values: &[usize]| *values.choose(&mut random).unwrap();
        let count = of(&[0, 0, 1, 1, 2, 3]);
        let lengths = match of(&[0, 1, 1]) {
            0 => vec![first; count + 1],
            _ => [&[first], &others[..count]].concat(),
        };
        let mut case = Case::new(self.spec.clone(), lengths, seed);
        case.packed = of(&[0, 1]) == 1;
        case.heads_per_kv = of(&[1, 1, 2, 3, 4]);
        case.heads = case.heads_per_kv * of(&[1, 1, 2]);
        case.lse = of(&[0, 1, 1]) == 1;
        case.cap = of(&[1, 2, 5, 30]) as f32;
        case.spread = of(&[1, 1, 4]) as f32;
        case.full_list = of(&[0, 1]) == 1;
        case.density = of(&[0, 1, 3, 3, 7, 10]) as f64 / 10.0;
        if of(&[0, 0, 0, 1]) == 1 {
            case.head_map = Some((0..case.heads as u32).rev().step_by(of(&[1, 2])).collect());
        }
        if self.slopes {
            expressions::slopes(&mut case);
        }
        if self.documents {
            expressions::documents(&mut case);
        }
        case
    }
}

/// Says how to repeat a launch, should it fail.
struct Repeat {
    seed: u64,
    number: usize,
}

impl Drop for Repeat {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("this launch alone: TEST_SEED={} TEST_LAUNCH={}", self.seed, self.number);
        }
    }
}

#[test]
fn gpu_ten_thousand_random_launches_agree_with_the_oracle() {
    let seed = testing::seed(120);
    for (device, arch) in testing::targets() {
        let numbers = numbers(testing::full() && !device.is_emulator());
        let start = Instant::now();
        numbers.par_iter().for_each(|&number| {
            let _repeat = Repeat { seed, number };
            Kernel::draw(seed, number / RUN, arch).launch(seed, number).check(&device);
        });
        let (count, target, seconds) = (numbers.len(), arch.target(), start.elapsed().as_secs_f32());
        println!("seed {seed}: {count} launches of {target} kernels on {} in {seconds:.0} s", device.name());
    }
}

#[test]
fn a_launch_is_known_by_its_number() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let draw = |number: usize| {
            let case = Kernel::draw(1, number / RUN, arch).launch(1, number);
            (case.spec, case.lengths, case.heads, case.packed, case.seed)
        };
        assert!(draw(4321) == draw(4321) && draw(4321) != draw(4322));
        assert_eq!(draw(RUN).0, draw(2 * RUN - 1).0, "launches in a row share a kernel");
        let patterns: Vec<Pattern> = (0..5).map(|kernel| draw(kernel * RUN).0.pattern).collect();
        assert_eq!(patterns, PATTERNS);
    }
}
