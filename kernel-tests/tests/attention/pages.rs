//! Keys and values in pages: the same bits as from strided tensors, and tables that are wrong.

use crate::{
    PATTERNS,
    case::{Case, Inputs, Outcome},
    check, spec,
};
use kernel_tests::testing;
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{KvLayout, Pattern},
};

/// Bit of the status word.
const INDEX: u32 = 2;
/// The first number that names no page, far outside, just below zero, and far below.
const WILD: [u32; 4] = [0, 1 << 24, u32::MAX, 1 << 31];

fn paged(case: &Case, page: u32) -> Case {
    let mut case = case.clone();
    case.spec.kv = KvLayout::Paged { page };
    case
}

/// Lengths around the ends of pages: one more, one less, exactly, and far from any.
#[test]
fn lengths_around_the_ends_of_pages_agree_with_the_oracle() {
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        let page = [16, 64, 256][i % 3];
        let lengths = vec![(40, page - 1), (17, page), (70, page + 1), (3, 2 * page + page / 2), (0, 1), (5, 0)];
        let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), lengths, 90);
        (case.heads, case.heads_per_kv, case.density) = (2, 2, 0.5);
        check(&paged(&case, page as u32));
    }
}

/// More blocks than a ring has stages, some of which a group of rows passes over, and columns after them.
#[test]
fn long_walks_over_pages_agree_with_the_oracle() {
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        for (head_dim, slashes) in [(64, 0.3), (128, 0.006)] {
            let spec = spec(pattern, (64, 64), head_dim, MmaType::Bf16);
            let mut case = Case::new(spec, vec![(140, 1700), (64, 1600)], 94 + i as u64);
            (case.density, case.slashes) = (0.3, Some(slashes));
            check(&paged(&case, 16));
        }
    }
}

/// Every bit of the outputs.
fn bits(outcome: &Outcome) -> Vec<u64> {
    let out = outcome.out.iter().flatten().flatten().map(|x| x.to_bits());
    out.chain(outcome.lse.iter().flatten().flatten().map(|x| u64::from(x.to_bits()))).collect()
}

#[test]
fn pages_give_the_bits_of_strided_tensors() {
    let shapes = [(64, MmaType::Bf16, 16), (128, MmaType::F16, 64), (96, MmaType::Bf16, 256), (64, MmaType::F16, 32)];
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        for (device, arch) in testing::targets() {
            let (head_dim, dtype, page) = shapes[(i + usize::from(arch == Arch::Sm90a)) % shapes.len()];
            let mut case =
                Case::new(spec(pattern, (64, 64), head_dim, dtype), vec![(150, 290), (40, 64), (65, 400)], 91);
            (case.heads, case.density) = (2, 0.4);
            let case = case.on(arch);
            let (inputs, indices) = case.prepare();
            let strided = case.launch(&device, &inputs, &indices);
            let found = paged(&case, page).launch(&device, &inputs, &indices);
            assert_eq!(found.status, 0, "{pattern:?}");
            assert!(bits(&strided) == bits(&found), "{pattern:?} {} page {page}", arch.target());
        }
    }
}

/// Keys and values of the sequence become zeros from `from` up to `to`.
fn zeroed(inputs: &mut Inputs, sequence: usize, from: usize, to: usize, head_dim: usize) {
    for side in [&mut inputs.k, &mut inputs.v] {
        for head in &mut side[sequence] {
            let end = head.len().min(to * head_dim);
            head[from * head_dim..end].fill(0.0);
        }
    }
}

/// An entry that names no page stands for zeros, is reported, and harms nobody else.
#[test]
fn keys_of_a_page_that_does_not_exist_are_zeros() {
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        for (device, arch) in testing::targets() {
            let page = [16, 64, 256][i % 3];
            let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(130, 300), (90, 280)], 92);
            (case.heads, case.density) = (2, 1.0);
            let case = paged(&case.on(arch), page);
            let (inputs, indices) = case.prepare();
            let (mut without, _) = case.prepare();
            let (entry, page) = (300 / page as usize / 2, page as usize);
            zeroed(&mut without, 0, entry * page, (entry + 1) * page, 64);
            let expected = case.launch(&device, &without, &indices);
            for value in WILD {
                let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                    if name == "page_table" {
                        let pages = words.iter().filter(|word| **word != u32::MAX).count() as u32 + 3;
                        words[entry] = if value == 0 { pages } else { value };
                    }
                });
                let what = format!("{pattern:?} {} page {page} entry {value:#x}", arch.target());
                // A-shape and tri-shape heads may never look there.
                let looks = !matches!(pattern, Pattern::AShape | Pattern::TriShape);
                assert!(wild.status == INDEX || !looks && wild.status == 0, "{what}: status {}", wild.status);
                assert!(bits(&expected) == bits(&wild), "{what}");
            }
        }
    }
}

/// Nothing is read where no entry names a page.
#[test]
fn a_table_may_name_no_page_at_all() {
    for pattern in PATTERNS {
        for (device, arch) in testing::targets() {
            let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(70, 100)], 93);
            case.density = 1.0;
            let case = paged(&case.on(arch), 16);
            let (inputs, indices) = case.prepare();
            let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                if name == "page_table" {
                    words.fill(u32::MAX);
                }
            });
            assert_eq!(wild.status & INDEX, INDEX, "{pattern:?}");
            assert!(wild.out[0][0].iter().all(|x| *x == 0.0), "{pattern:?}: values are zeros");
        }
    }
}
