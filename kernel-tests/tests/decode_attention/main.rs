//! Attention of decoding against the oracle, on every device.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

mod case;

use case::{Case, Outcome};
use kernel_tests::testing;
use ptx::{Arch, isa::MmaType};

fn check(case: &Case) {
    testing::targets().iter().for_each(|(device, arch)| case.check(device, *arch));
}

/// The outcome of a case on one device.
fn run(case: &Case, device: &kernel_core::Device, arch: Arch) -> Outcome {
    let kernel = case.build(device, arch).unwrap();
    case.launch(&kernel, device, &case.inputs(kernel.key_block()), &|_, _| ())
}

/// Query rows and groups of heads around the edges of row blocks of 128 packed rows, and of warpgroups of 64.
#[test]
fn every_number_of_rows_and_heads_agrees_with_the_oracle() {
    for (i, rows) in [1, 7, 8, 32, 33, 64].into_iter().enumerate() {
        for (j, group) in [1, 4, 7, 8].into_iter().enumerate() {
            let mut case = Case::new(group, 1, vec![(rows, 65 + 100 * ((i + j) % 3))], 10);
            case.dtype = if (i + j) % 2 == 0 { MmaType::Bf16 } else { MmaType::F16 };
            case.lse = j != 1;
            check(&case);
        }
    }
}

/// Keys around the edges of blocks and of parts.
#[test]
fn every_length_agrees_with_the_oracle() {
    for (i, keys) in [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 383, 385, 641].into_iter().enumerate() {
        let mut case = Case::new(4, 2, vec![(3 + i, keys)], 20);
        case.head_dim = [64, 128, 96][i % 3];
        case.parts = [(64, 32), (128, 32), (128, 3), (200, 32)][i % 4];
        check(&case);
    }
}

#[test]
fn long_requests_agree_with_the_oracle() {
    for (i, keys) in [4095, 4096, 4097].into_iter().enumerate() {
        let mut case = Case::new(2, 1, vec![(5, keys)], 30);
        case.parts = [(512, 32), (128, 32), (1024, 3)][i];
        check(&case);
    }
}

fn mixed(seed: u64) -> Case {
    Case::new(6, 2, vec![(33, 300), (0, 200), (1, 0), (40, 64), (7, 513)], seed)
}

#[test]
fn mixed_batches_agree_with_the_oracle() {
    for (i, page) in [None, Some(16), Some(64), Some(256)].into_iter().enumerate() {
        let mut case = mixed(40 + i as u64);
        (case.page, case.packed, case.slack) = (page, i % 2 == 1, i);
        case.softcap = (i == 2).then_some(2.0);
        check(&case);
    }
}

#[test]
fn listed_blocks_agree_with_the_oracle() {
    for (i, density) in [0.0, 0.3, 0.7, 1.0].into_iter().enumerate() {
        let mut case = mixed(50 + i as u64);
        (case.density, case.packed) = (Some(density), i % 2 == 0);
        case.page = [None, Some(32)][i % 2];
        case.block = Some((128, 64));
        case.parts = (64, 32);
        check(&case);
    }
}

#[test]
fn pages_give_the_bits_of_strided_keys() {
    for (device, arch) in testing::targets() {
        for page in [16, 128] {
            let strided = mixed(60);
            let paged = Case { page: Some(page), ..strided.clone() };
            assert!(run(&strided, &device, arch) == run(&paged, &device, arch), "{} page {page}", arch.target());
        }
    }
}

/// Alone, in a batch, and under wider bounds a request has the same bits.
#[test]
fn a_request_does_not_depend_on_its_neighbours() {
    for (device, arch) in testing::targets() {
        for density in [None, Some(0.6)] {
            let mut all = mixed(70);
            (all.density, all.block) = (density, Some((128, 64)));
            let together = run(&all, &device, arch);
            // Inputs follow from the place in the batch, so the request stays at its place, and the others are empty.
            for request in [0, 3, 4] {
                let mut alone = all.clone();
                alone.slack = 150 * request;
                for (other, lengths) in alone.lengths.iter_mut().enumerate() {
                    if other != request {
                        *lengths = (0, 0);
                    }
                }
                let own = run(&alone, &device, arch);
                assert!(own.out[request] == together.out[request], "{} request {request}", arch.target());
                assert!(own.lse[request] == together.lse[request], "{} request {request}", arch.target());
            }
        }
    }
}

#[test]
fn the_same_step_gives_the_same_bits() {
    for (device, arch) in testing::targets() {
        let case = mixed(80);
        assert!(run(&case, &device, arch) == run(&case, &device, arch), "{}", arch.target());
    }
}

/// One part or many: the same to rounding, and without a second part nothing is needed for one.
#[test]
fn parts_change_nothing_but_rounding() {
    for (device, arch) in testing::targets() {
        let mut case = Case::new(4, 1, vec![(9, 700)], 90);
        case.parts = (1024, 32);
        let kernel = case.build(&device, arch).unwrap();
        assert_eq!(kernel.workspace_bytes(&case.bounds()), 0);
        case.check(&device, arch);
        let whole = run(&case, &device, arch);
        case.parts = (128, 32);
        assert!(case.build(&device, arch).unwrap().workspace_bytes(&case.bounds()) > 0);
        let parts = run(&case, &device, arch);
        assert!(whole.lse != parts.lse, "sums of another order differ somewhere");
    }
}

/// What is not a number stays in its own rows, heads and requests.
#[test]
fn nan_stays_where_it_is() {
    for (device, arch) in testing::targets() {
        let case = Case::new(4, 2, vec![(20, 300), (20, 300)], 100);
        let kernel = case.build(&device, arch).unwrap();
        let clean = case.inputs(kernel.key_block());
        let mut spoiled = case.inputs(kernel.key_block());
        // A query row, and keys and values of the other KV head of the other request.
        spoiled.q[0][1][5 * 64..6 * 64].fill(f32::NAN);
        spoiled.k[1][1].fill(f32::INFINITY);
        spoiled.v[1][1].fill(f32::NAN);
        let [clean, found] = [&clean, &spoiled].map(|inputs| case.launch(&kernel, &device, inputs, &|_, _| ()));
        for (request, head) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)] {
            let rows = clean.out[request][head].chunks(64).zip(found.out[request][head].chunks(64));
            for (row, (clean, found)) in rows.enumerate() {
                let own = (request, head, row) == (0, 1, 5);
                assert!(own || clean == found, "{} {request} {head} {row}", arch.target());
                assert!(
                    !own || found.iter().all(|&word| half::bf16::from_bits(word).is_nan()),
                    "a NaN query gives NaN"
                );
            }
        }
        assert!(found.out[1][2].iter().all(|&word| half::bf16::from_bits(word).is_nan()), "NaN values give NaN");
    }
}

const WILD: [u32; 3] = [1 << 24, u32::MAX, 1 << 31];

#[test]
fn wild_lengths_are_cut_and_reported() {
    for (device, arch) in testing::targets() {
        let case = Case::new(4, 2, vec![(20, 300), (20, 290), (20, 300)], 110);
        let kernel = case.build(&device, arch).unwrap();
        let inputs = case.inputs(kernel.key_block());
        let plain = case.launch(&kernel, &device, &inputs, &|_, _| ());
        for (name, value) in ["q_length", "kv_length"].into_iter().flat_map(|name| WILD.map(|value| (name, value))) {
            let found = case.launch(&kernel, &device, &inputs, &|own, words| {
                if own == name {
                    words[2] = value;
                }
            });
            assert!(found.status.length_cut(), "{name} {value:#x}");
            assert!(found.out == plain.out && found.lse == plain.lse, "{name} {value:#x}: cut to the bound");
        }
    }
}

#[test]
fn wild_pages_and_lists_harm_nobody_else() {
    for (device, arch) in testing::targets() {
        let mut case = Case::new(4, 2, vec![(20, 300), (20, 290), (20, 300)], 120);
        (case.page, case.density, case.block) = (Some(16), Some(0.8), Some((128, 64)));
        let kernel = case.build(&device, arch).unwrap();
        let inputs = case.inputs(kernel.key_block());
        let plain = case.launch(&kernel, &device, &inputs, &|_, _| ());
        let entry = inputs.lists[0].iter().flatten().count();
        assert!(entry > 1, "the first request sees something");
        for (name, value) in
            ["page_table", "counts", "entries"].into_iter().flat_map(|name| WILD.map(|value| (name, value)))
        {
            let found = case.launch(&kernel, &device, &inputs, &|own, words| {
                // All pages of the first request; one list's count, or first block.
                let last = if name == "page_table" { 19 } else { 1 };
                if own == name {
                    words[..last].fill(value);
                }
            });
            assert!(found.status.index_out_of_range(), "{name} {value:#x}");
            assert!(found.out[1..] == plain.out[1..] && found.lse[1..] == plain.lse[1..], "{name} {value:#x}");
            let finite = |word: &u16| half::bf16::from_bits(*word).is_finite();
            assert!(found.out[0].iter().flatten().all(finite), "{name} {value:#x}: kept inside");
        }
    }
}
