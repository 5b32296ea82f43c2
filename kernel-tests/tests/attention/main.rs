//! Attention kernels against the oracle, on every device.

mod case;

use case::Case;
use kernel_tests::testing;
use ptx::{
    Arch,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern},
};

const PATTERNS: [Pattern; 5] =
    [Pattern::Dense, Pattern::AShape, Pattern::TriShape, Pattern::VerticalSlash, Pattern::BlockSparse];

fn spec(pattern: Pattern, block: (u32, u32), head_dim: u32, dtype: MmaType) -> AttentionSpec {
    AttentionSpec::new(pattern, block, head_dim, dtype, Arch::Sm80)
}

fn check(case: &Case) {
    testing::devices().iter().for_each(|device| case.check(device));
}

#[test]
fn every_pattern_with_rows_and_keys_beyond_whole_tiles() {
    for pattern in PATTERNS {
        check(&Case::new(spec(pattern, (64, 64), 64, MmaType::Bf16), vec![(100, 130)], testing::seed(1)));
    }
}
