use super::*;
use crate::{generate, isa::MmaType};

#[test]
fn every_violation_names_its_field() {
    let estimate = EstimateSpec { pass: EstimatePass::Scores, head_dim: 80, dtype: MmaType::Bf16, arch: Arch::Sm90a };
    let errors = generate(&estimate).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.field).collect::<Vec<_>>(), ["head_dim", "arch"]);
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
fn the_workspace_of_a_million_tokens_fits() {
    let (heads, tokens) = (32, 1 << 20);
    let estimate = workspace::statistics_bytes(1, heads, tokens) + 2 * workspace::scores_bytes(1, heads, tokens);
    assert_eq!(estimate, (2 + 256) << 20);
    assert_eq!(workspace::key_means_bytes(1, 8, tokens, 64, 128), 64 << 20);
    assert_eq!(workspace::offset_capacity(tokens, 64), 16385);
}

#[test]
fn chunks_cover_every_shorter_sequence() {
    for keys in (0..200_000).step_by(37) {
        let tiles = keys.max(1u32).div_ceil(workspace::KEY_TILE);
        let chunk_tiles = tiles.div_ceil(workspace::MAX_CHUNKS).max(workspace::MIN_CHUNK_TILES);
        assert!(tiles.div_ceil(chunk_tiles) <= workspace::chunks(keys), "{keys} keys");
        assert!(workspace::chunks(keys) <= workspace::chunks(keys + 37));
    }
}
