//! Attention kernels against the oracle, on every device.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

mod case;
mod cover;
mod expressions;
mod pages;
mod random;
mod wild;

use case::{Case, Index, Side};
use expressions::{binary, side, variable};
use kernel_tests::testing;
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{
        AttentionSpec, Pattern,
        expr::{Binary, Expr, Variable},
    },
};
use std::sync::Arc;

const PATTERNS: [Pattern; 5] =
    [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse];

fn spec(pattern: Pattern, block: (u32, u32), head_dim: u32, dtype: MmaType) -> AttentionSpec {
    AttentionSpec::new(pattern, block, head_dim, dtype, Arch::Sm80)
}

fn check(case: &Case) {
    testing::targets().iter().for_each(|(device, arch)| case.on(*arch).check(device));
}

#[test]
fn every_pair_of_options_agrees_with_the_oracle() {
    let seed = testing::seed(20);
    let choices = cover::choices(seed);
    println!("seed {seed}: {} cases", choices.len());
    for (turn, choice) in choices.iter().enumerate() {
        let case = cover::case(choice, turn, seed + turn as u64);
        println!("{turn}: {} {:?} {}", case.spec.entry(), case.lengths, cover::describe(&case));
        check(&case);
    }
}

#[test]
fn every_length_agrees_with_the_oracle() {
    let seed = testing::seed(21);
    println!("seed {seed}");
    for (i, &length) in cover::LENGTHS.iter().enumerate() {
        for (j, pattern) in PATTERNS.into_iter().enumerate() {
            let block = [(64, 32), (64, 64), (128, 64)][(i + j) % 3];
            let mut case = Case::new(spec(pattern, block, 64, MmaType::F16), vec![(length, length)], seed);
            check(&case);
            // Every other length of the cache, too.
            case.lengths = vec![(length, cover::LENGTHS[(i + 5) % cover::LENGTHS.len()])];
            check(&case);
        }
    }
}

#[test]
fn long_sequences_agree_with_the_oracle() {
    let seed = testing::seed(22);
    println!("seed {seed}");
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        for (j, dtype) in [MmaType::Bf16, MmaType::F16].into_iter().enumerate() {
            let length = [4095, 4096, 4097][(i + j) % 3];
            let block = if pattern == Pattern::VerticalSlash { (64, 64) } else { (128, 64) };
            let mut case = Case::new(spec(pattern, block, 64, dtype), vec![(length, length)], seed);
            case.density = 0.1;
            check(&case);
        }
    }
}

/// More columns than a Hopper kernel finds room for at a time: 961 to 992.
#[test]
fn many_columns_agree_with_the_oracle() {
    for (seed, density) in [(23, 0.45), (24, 0.95)] {
        let spec = spec(Pattern::VerticalSlash, (64, 64), 64, MmaType::Bf16);
        let mut case = Case::new(spec, vec![(130, 2300), (70, 1010)], seed);
        (case.density, case.slashes) = (density, Some(0.0005));
        check(&case);
    }
}

/// What is not a number in one place must stay there.
#[test]
fn nan_stays_in_its_own_rows_heads_and_sequences() {
    for pattern in PATTERNS {
        for packed in [false, true] {
            let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(70, 90), (33, 100)], 30);
            (case.heads, case.packed, case.density) = (2, packed, 0.6);
            let clean_case = case.clone();
            case.spoil = Some(|inputs| {
                // A query row, and keys and values of the other head of the other sequence.
                inputs.q[0][0][5 * 64..6 * 64].fill(f32::NAN);
                inputs.k[1][1].fill(f32::INFINITY);
                inputs.v[1][1].fill(f32::NAN);
            });
            for (device, arch) in testing::targets() {
                let case = case.on(arch);
                let ((clean, indices), (spoiled, _)) = (clean_case.on(arch).prepare(), case.prepare());
                let expected = case.launch(&device, &clean, &indices);
                let found = case.launch(&device, &spoiled, &indices);
                for (sequence, head) in [(0, 0), (0, 1), (1, 0)] {
                    let rows = expected.out[sequence][head].chunks(64).zip(found.out[sequence][head].chunks(64));
                    for (row, (expected, found)) in rows.enumerate() {
                        let own = (sequence, head, row) == (0, 0, 5);
                        assert!(own || expected == found, "{pattern:?} packed {packed}: {sequence} {head} {row}");
                    }
                }
                let row = &found.out[0][0][5 * 64..6 * 64];
                let seen = expected.lse[0][0][5] > f32::NEG_INFINITY;
                assert!(!seen || row.iter().all(|x| x.is_nan()), "{pattern:?}: a NaN query gives NaN");
            }
        }
    }
}

/// `s + bias[q * keys + k]`: scores of −∞ count as masked, and NaN stays in its row.
#[test]
fn expressions_may_give_infinities_and_nan() {
    let length = 70;
    let mut case = Case::new(spec(Pattern::Dense, (64, 32), 64, MmaType::Bf16), vec![(length, length)], 40);
    case.spec.causal = false;
    let mut bias = vec![0.0f32; length * length];
    bias.iter_mut().skip(1).step_by(3).for_each(|b| *b = f32::NEG_INFINITY);
    bias[9 * length..10 * length].fill(f32::NEG_INFINITY);
    let values = side(&mut case, "bias", Side::Floats(bias.clone()));
    let keys = Box::new(Expr::U32(length as u32));
    let index = |v| binary(Binary::Add, binary(Binary::Mul, variable(Variable::Query), keys), variable(v));
    let added = binary(Binary::Add, variable(Variable::Score), values(index(Variable::Key)));
    case.spec.score = Some(*added);
    case.score = Some(Arc::new(move |s, q, k, _| s + f64::from(bias[q * length + k])));
    check(&case);

    for (device, arch) in testing::targets() {
        let case = case.on(arch);
        let (inputs, indices) = case.prepare();
        let expected = case.launch(&device, &inputs, &indices);
        assert!(expected.out[0][0][9 * 64..10 * 64].iter().all(|&x| x == 0.0));
        assert_eq!(expected.lse[0][0][9], f32::NEG_INFINITY);
    }
    let Side::Floats(bias) = &mut case.side[0] else { unreachable!("declared above") };
    bias[20 * length + 3] = f32::NAN;
    for (device, arch) in testing::targets() {
        let case = case.on(arch);
        let (inputs, indices) = case.prepare();
        let found = case.launch(&device, &inputs, &indices);
        let nan: Vec<usize> =
            (0..length).filter(|row| found.out[0][0][row * 64..][..64].iter().any(|x| x.is_nan())).collect();
        assert_eq!(nan, [20]);
    }
}

#[test]
fn lengths_beyond_their_bound_are_clamped_and_reported() {
    let case = Case::new(spec(Pattern::Dense, (64, 64), 64, MmaType::Bf16), vec![(40, 80), (40, 81)], 50);
    for (device, arch) in testing::targets() {
        let case = case.on(arch);
        let (inputs, indices) = case.prepare();
        let plain = case.launch(&device, &inputs, &indices);
        assert_eq!(plain.status, 0);
        let tampered = case.launch_with(&device, &inputs, &indices, |name, words| {
            if name == "kv_length" {
                words[1] = 5000;
            }
        });
        assert_eq!(tampered.status, 1, "a length beyond its bound sets bit 0");
        assert_eq!(plain.out, tampered.out, "and counts as the bound");
    }
}

#[test]
fn index_entries_beyond_the_keys_are_ignored_and_reported() {
    for (pattern, array) in [(Pattern::BlockSparse, "partial_indices"), (Pattern::VerticalSlash, "columns")] {
        let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(200, 200)], 60);
        (case.density, case.full_list) = (1.0, false);
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (inputs, mut indices) = case.prepare();
            if let Index::Columns(index) = &mut indices[0][0] {
                index.offsets.clear();
            }
            let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                if name == array {
                    *words.iter_mut().rev().find(|word| **word != u32::MAX).unwrap() = 1 << 30;
                }
            });
            assert_eq!(wild.status, 2, "{pattern:?}: an entry out of range sets bit 1");
            let before = &case.launch(&device, &inputs, &indices).out[0][0];
            // The last entry was of the last row block, or of the last column, which only the last row sees.
            let last_block = 199 / case.spec.block.0 as usize * case.spec.block.0 as usize;
            let same = if pattern == Pattern::BlockSparse { last_block } else { 199 };
            assert_eq!(before[..same * 64], wild.out[0][0][..same * 64], "{pattern:?}");
            assert!(wild.out[0][0].iter().all(|x| x.is_finite()), "{pattern:?}");
        }
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    for pattern in PATTERNS {
        let case = Case::new(spec(pattern, (128, 64), 128, MmaType::Bf16), vec![(200, 300)], 70);
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (inputs, indices) = case.prepare();
            let [a, b] = [0, 1].map(|_| case.launch(&device, &inputs, &indices));
            assert_eq!(a.out, b.out, "{pattern:?}");
            assert_eq!(a.lse, b.lse, "{pattern:?}");
        }
    }
}

/// Rows of a tile past the last one of a sequence are the next sequence's: what they are must not change a bit of the others.
#[test]
fn what_stands_behind_a_sequence_changes_no_bit_of_it() {
    for pattern in PATTERNS {
        // Large scores, whose maxima differ from their rounded products with the scale by most, and the finer output.
        let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::F16), vec![(41, 900), (90, 900)], 71);
        (case.heads, case.packed, case.spread, case.density) = (4, true, 5.0, 0.6);
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (mut inputs, indices) = case.prepare();
            let before = case.launch(&device, &inputs, &indices);
            inputs.q[1].iter_mut().flatten().for_each(|x| *x *= -2.0);
            let after = case.launch(&device, &inputs, &indices);
            assert_ne!(before.out[1], after.out[1], "{pattern:?}");
            assert_eq!(before.out[0], after.out[0], "{pattern:?}");
            assert_eq!(before.lse[0], after.lse[0], "{pattern:?}");
        }
    }
}
