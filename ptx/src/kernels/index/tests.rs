use super::*;
use crate::{generate, isa::MmaType, kernels::kv::KvLayout};

#[test]
fn every_violation_names_its_field() {
    let estimate = EstimateSpec {
        pass: EstimatePass::Scores,
        heads: 1,
        head_dim: 80,
        dtype: MmaType::Bf16,
        kv: KvLayout::Strided,
        arch: Arch::Sm90a,
    };
    let errors = generate(&estimate).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["head_dim"]);
    let select = BlockSparseSelectSpec {
        block: (48, 256),
        key_blocks: 0,
        head_dim: 64,
        dtype: MmaType::F16,
        causal: true,
        arch: Arch::Sm80,
    };
    let errors = generate(&select).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["block", "block", "key_blocks"]);
    let errors = generate(&MergedRangesSpec { rule: MergeRule::Original, arch: Arch::Sm90a }).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["arch"]);
}

#[test]
fn antidiagonal_specs_name_their_fields() {
    let sums = AntidiagonalSumsSpec {
        stride: 4,
        block: 16,
        head_dim: 256,
        dtype: MmaType::Bf16,
        kv: KvLayout::Strided,
        arch: Arch::Sm90a,
    };
    let errors = generate(&sums).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["stride", "block", "head_dim"]);
    let select = AntidiagonalSelectSpec { stride: 32, block: (192, 64), key_blocks: 1 << 16, arch: Arch::Sm80 };
    let errors = generate(&select).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["stride", "block", "key_blocks"]);
}

#[test]
fn a_share_is_never_nothing() {
    let shares = [1.0, 0.5, 1e-30, 0.9].map(share);
    assert_eq!(shares, [1 << 31, 1 << 30, 1, 1_932_735_232]);
}

#[test]
fn a_slice_of_a_million_tokens_fits() {
    let tile = |stride, block| {
        workspace::antidiagonal_statistics_bytes(1, 32, 1, 1 << 20, stride)
            + workspace::antidiagonal_sums_bytes(1, 32, 1, 1 << 20, stride, block)
    };
    assert_eq!((tile(16, 128), tile(8, 64)), (160 << 20, 320 << 20));
    // Strips of 8 tiles of 256 cells, of which the last has fewer.
    assert_eq!(workspace::antidiagonal_grid(3, 32, 2, 1 << 17, 16), [16, 32, 12]);
    assert_eq!(workspace::antidiagonal_grid(3, 32, 2, 5000, 16), [4, 32, 3]);
    assert_eq!(workspace::antidiagonal_blocks(32, 2, 5000, 16), 128);
}

#[test]
fn the_workspace_of_a_million_tokens_fits() {
    let (heads, tokens) = (32, 1 << 20);
    let estimate =
        workspace::statistics_bytes(Arch::Sm80, 1, heads, tokens, 4) + 2 * workspace::scores_bytes(1, heads, tokens);
    assert_eq!(estimate, (2 + 256) << 20);
    assert_eq!(workspace::key_means_bytes(1, 8, tokens, 64, 128), 64 << 20);
    assert_eq!(workspace::offset_capacity(tokens, 64), 16385);
}

#[test]
fn blocks_cover_every_shorter_sequence() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let shares = workspace::EstimateParts::of(arch);
        for keys in (0..200_000u32).step_by(37) {
            let part = keys.div_ceil(shares.most).next_multiple_of(workspace::PART_STEP).max(shares.least_keys);
            for heads in [1, 2, 4] {
                let (of_block, blocks) = (part * shares.of_block(heads), workspace::estimate_blocks(arch, keys, heads));
                assert!(keys.div_ceil(of_block) <= blocks, "{keys} keys, {arch:?}");
                assert!(blocks <= workspace::estimate_blocks(arch, keys + 37, heads));
            }
        }
    }
}
