//! Values that only the device knows, and that are wrong: the embedded backend reports any access outside the tensors, so a
//! launch that ends was kept inside.

use crate::{
    PATTERNS,
    case::{Case, Outcome},
    spec,
};
use kernel_tests::testing;
use ptx::{isa::MmaType, kernels::attention::Pattern};

/// Bits of the status word.
const LENGTH: u32 = 1;
const INDEX: u32 = 2;

/// Far outside, just below zero, and far below.
const WILD: [u32; 3] = [1 << 24, u32::MAX, 1 << 31];

/// Four packed sequences of two heads.
fn packed(pattern: Pattern) -> Case {
    let lengths = vec![(20, 64), (33, 40), (65, 130), (70, 90)];
    let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), lengths, 80);
    (case.heads, case.packed, case.density) = (2, true, 0.6);
    case
}

/// The same bits in the sequences of `clean` as without the wild value.
fn assert_unharmed(what: &str, plain: &Outcome, wild: &Outcome, clean: &[usize]) {
    for &sequence in clean {
        assert_eq!(plain.out[sequence], wild.out[sequence], "{what}: sequence {sequence}");
        assert_eq!(plain.lse[sequence], wild.lse[sequence], "{what}: LSE of sequence {sequence}");
    }
}

fn assert_unwritten(what: &str, wild: &Outcome, sequences: &[usize]) {
    for &sequence in sequences {
        let written = wild.out[sequence].iter().flatten().any(|x| !x.is_nan());
        assert!(!written, "{what}: sequence {sequence} has no rows, and was written");
    }
}

#[test]
fn wild_starting_rows_empty_their_own_sequences() {
    // Which entry, and the sequences that it begins or ends.
    let places = [(0, &[0][..]), (2, &[1, 2]), (4, &[3])];
    let mut values: Vec<_> =
        places.iter().flat_map(|&(entry, empty)| WILD.map(|value| (entry, value, empty))).collect();
    // In the tensor, but before the beginning of the sequence that it ends.
    values.push((4, 1, &[3]));
    for pattern in PATTERNS {
        for (device, arch) in testing::targets() {
            let case = packed(pattern).on(arch);
            let (inputs, indices) = case.prepare();
            let plain = case.launch(&device, &inputs, &indices);
            let arrays = ["q_start", "kv_start"].into_iter();
            for (array, &(entry, value, empty)) in arrays.flat_map(|array| values.iter().map(move |v| (array, v))) {
                let what = format!("{pattern:?} {array}[{entry}] = {value:#x}");
                let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                    if name == array {
                        words[entry] = value;
                    }
                });
                // Columns and blocks of a sequence that lost its keys lie beyond them.
                assert_eq!(wild.status & !INDEX, LENGTH, "{what}: status");
                let clean: Vec<usize> = (0..4).filter(|sequence| !empty.contains(sequence)).collect();
                assert_unharmed(&what, &plain, &wild, &clean);
                if array == "q_start" {
                    assert_unwritten(&what, &wild, empty);
                } else {
                    // Queries without keys.
                    let zeros = empty.iter().all(|&s| wild.out[s].iter().flatten().all(|x| *x == 0.0));
                    assert!(zeros, "{what}: sequences without keys give zeros");
                }
            }
        }
    }
}

/// In one sequence; what stands for no head is nothing to report.
#[test]
fn a_head_that_does_not_exist_is_skipped() {
    for pattern in PATTERNS {
        let mut case = packed(pattern);
        (case.heads, case.heads_per_kv) = (4, 2);
        case.head_map = Some(vec![3, 0, 2]);
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (inputs, indices) = case.prepare();
            let plain = case.launch(&device, &inputs, &indices);
            for value in WILD.into_iter().chain([4]) {
                let what = format!("{pattern:?} head {value:#x}");
                let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                    if name == "head_map" {
                        words[2 * 3 + 1] = value;
                    }
                });
                assert_eq!(wild.status, if value == u32::MAX { 0 } else { INDEX }, "{what}: status");
                assert_unharmed(&what, &plain, &wild, &[0, 1, 3]);
                for slot in [0, 2] {
                    assert_eq!(plain.out[2][slot], wild.out[2][slot], "{what}: slot {slot}");
                    assert_eq!(plain.lse[2][slot], wild.lse[2][slot], "{what}: LSE of slot {slot}");
                }
                assert!(wild.out[2][1].iter().all(|x| x.is_nan()), "{what}: nothing is written of head 0");
            }
        }
    }
}

#[test]
fn counts_beyond_the_list_are_clamped() {
    let arrays = [
        (Pattern::VerticalSlash, "column_counts"),
        (Pattern::BlockSparse, "partial_counts"),
        (Pattern::BlockSparse, "full_counts"),
    ];
    for (pattern, array) in arrays {
        for (device, arch) in testing::targets() {
            let case = packed(pattern).on(arch);
            let (inputs, indices) = case.prepare();
            let plain = case.launch(&device, &inputs, &indices);
            for value in WILD.into_iter().chain([1 << 10]) {
                let what = format!("{pattern:?} {array} = {value:#x}");
                // Of the last list, after which the memory ends.
                let wild = case.launch_with(&device, &inputs, &indices, |name, words| {
                    if name == array
                        && let Some(last) = words.last_mut()
                    {
                        *last = value;
                    }
                });
                assert_eq!(wild.status, INDEX, "{what}: status");
                assert_unharmed(&what, &plain, &wild, &[0, 1, 2]);
                assert_eq!(plain.out[3][0], wild.out[3][0], "{what}: the other head");
                assert!(wild.out[3][1].iter().all(|x| x.is_finite()), "{what}");
            }
        }
    }
}

/// A list may be shorter than the keys have blocks: its room is what counts.
#[test]
fn counts_end_where_the_list_does() {
    for (pattern, counts) in [(Pattern::VerticalSlash, "column_counts"), (Pattern::BlockSparse, "partial_counts")] {
        let mut case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(200, 200)], 81);
        (case.density, case.full_list, case.capacity) = (1.0, false, Some(2));
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (inputs, indices) = case.prepare();
            let cut = case.launch_with(&device, &inputs, &indices, |name, words| {
                if name == counts || name == "offset_counts" {
                    words.fill(2);
                }
            });
            assert_eq!(cut.status, 0, "{pattern:?}: two entries fit");
            let beyond = case.launch_with(&device, &inputs, &indices, |name, words| {
                if name == counts || name == "offset_counts" {
                    words.fill(3);
                }
            });
            assert_eq!(beyond.status, INDEX, "{pattern:?}: three do not");
            assert_eq!(cut.out, beyond.out, "{pattern:?}");
        }
    }
}

/// No window is too large, whatever the positions: those of queries before the first key are negative.
#[test]
fn endless_windows_see_everything() {
    for pattern in [Pattern::AShape, Pattern::TriShape] {
        let case = Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(200, 150)], 82);
        for (device, arch) in testing::targets() {
            let case = case.on(arch);
            let (inputs, indices) = case.prepare();
            let windows = |size: u32| {
                case.launch_with(&device, &inputs, &indices, |name, words| {
                    if name == "windows" {
                        (words[0], words[1]) = (0, size);
                    }
                })
            };
            let enough = windows(1000);
            for size in [i32::MAX as u32, 1 << 31, u32::MAX] {
                assert!(windows(size).out == enough.out, "{pattern:?} {size:#x}");
            }
        }
    }
}
