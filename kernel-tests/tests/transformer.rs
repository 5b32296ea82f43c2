//! The reference transformer against double precision, and its prefix cache against itself.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

use half::bf16;
use kernel_core::{DType, Device, HeadPattern, HeadPatterns, LayerPatterns, Stream, TensorView};
use kernel_tests::{
    model::{Config, Error, Hidden, PromptMask, Sequence, SparseAttention, Transformer, Weights},
    oracle::{
        Mask, relative_error,
        transformer::{Transformer as Oracle, sequence_mask},
    },
    testing,
};
use ptx::Arch;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn config() -> Config {
    Config {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 56,
        context: 256,
        norm_epsilon: 1e-6,
        rope_theta: 1e4,
        mrope_section: None,
        tied: false,
        mask_token: Some(3),
    }
}

struct Case {
    stream: Stream,
    config: Config,
    weights: Weights<Vec<bf16>>,
    transformer: Transformer,
    tokens: Vec<u32>,
}

impl Case {
    fn new(device: &Device, arch: Arch, config: Config, length: usize) -> Case {
        let seed = testing::seed(7);
        println!("seed {seed}");
        let stream = Stream::new(device).unwrap();
        let weights = Weights::random(&config, seed);
        let transformer = Transformer::new(&stream, &config, &weights, arch).unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let tokens = (0..length).map(|_| random.random_range(0..config.vocabulary as u32)).collect();
        Case { stream, config, weights, transformer, tokens }
    }

    fn sequence(&self, prompt: usize) -> Sequence {
        let (prompt, response) = self.tokens.split_at(prompt);
        self.transformer.sequence(&self.stream, prompt, response).unwrap()
    }

    fn forward(&self, sequence: &Sequence, rows: std::ops::Range<usize>, mask: PromptMask) -> Hidden {
        self.transformer.forward(&self.stream, sequence, rows, mask, self.transformer.dense()).unwrap()
    }

    fn states(&self, hidden: &Hidden) -> Vec<bf16> {
        hidden.states().read(&self.stream).unwrap()
    }

    fn oracle(&self, round: fn(f64) -> f64) -> Oracle<'_> {
        Oracle { config: &self.config, weights: &self.weights, round }
    }
}

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

#[test]
fn agrees_with_double_precision_under_both_prompt_masks() {
    for (device, arch) in testing::targets() {
        for (heads, kv_heads, tied) in [(4, 2, false), (3, 1, true)] {
            let case = Case::new(&device, arch, Config { heads, kv_heads, tied, ..config() }, 75);
            for mask in [PromptMask::Causal, PromptMask::Bidirectional] {
                let sequence = case.sequence(66);
                let hidden = case.forward(&sequence, 0..75, mask);
                let token_mask = |_, _| sequence_mask(66, 75, mask);
                let exact = case.oracle(|v| v).hidden(&case.tokens, token_mask);
                let plain = case.oracle(|v| bf16::from_f64(v).to_f64()).hidden(&case.tokens, token_mask);
                let error = relative_error(&wide(&case.states(&hidden)), &exact);
                let expected = relative_error(&plain, &exact);
                println!("{mask:?}, {heads} heads: error {error:.2e}, of bfloat16 itself {expected:.2e}");
                assert!(error < 2.0 * expected && error < 3e-2, "{error:.2e} against {expected:.2e}");

                let index = device.upload(&case.stream, &[74u32, 0, 65]).unwrap();
                let index = TensorView::new(&index, DType::U32, &[3]).unwrap();
                let logits = case.transformer.logits(&case.stream, &hidden, &index, 3).unwrap();
                let logits: Vec<bf16> = logits.read(&case.stream).unwrap();
                let rows: Vec<f64> = [74, 0, 65]
                    .iter()
                    .flat_map(|r| &exact[r * case.config.hidden..][..case.config.hidden])
                    .copied()
                    .collect();
                let error = relative_error(&wide(&logits), &case.oracle(|v| v).logits(&rows));
                assert!(error < 3e-2, "logits: {error:.2e}");
            }
        }
    }
}

/// With products of ours only, most launches start before those in front of them have ended.
#[test]
fn kernels_that_overlap_give_the_same_bits_again_and_again() {
    for (device, arch) in testing::targets() {
        let large = Config { hidden: 512, intermediate: 1024, layers: 4, heads: 8, ..config() };
        let (config, repeats) = if device.is_emulator() { (config(), 2) } else { (large, 200) };
        let case = Case::new(&device, arch, config, 60);
        let case = Case { transformer: case.transformer.without_cublas(), ..case };
        let sequence = case.sequence(50);
        let mask = PromptMask::Causal;
        let token_mask = |_, _| sequence_mask(50, 60, mask);
        let exact = case.oracle(|v| v).hidden(&case.tokens, token_mask);
        let plain = case.oracle(|v| bf16::from_f64(v).to_f64()).hidden(&case.tokens, token_mask);
        let first = case.states(&case.forward(&sequence, 0..60, mask));
        let (error, expected) = (relative_error(&wide(&first), &exact), relative_error(&plain, &exact));
        assert!(error < 2.0 * expected && error < 3e-2, "{error:.2e} against {expected:.2e}");
        for repeat in 0..repeats {
            assert!(case.states(&case.forward(&sequence, 0..60, mask)) == first, "repeat {repeat}");
        }
    }
}

#[test]
fn the_prefix_cache_is_exact_under_the_causal_prompt_mask() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch, config(), 140);
        let whole = case.sequence(130);
        let uncached = case.states(&case.forward(&whole, 0..140, PromptMask::Causal));
        // In one piece, in chunks of a tile, in chunks that divide nothing.
        for chunk in [130, 64, 37] {
            let sequence = case.sequence(130);
            let (mask, dense) = (PromptMask::Causal, case.transformer.dense());
            case.transformer.prefill(&case.stream, &sequence, mask, chunk, dense).unwrap();
            let cached = case.states(&case.forward(&sequence, 129..140, PromptMask::Causal));
            let expected = &uncached[129 * case.config.hidden..];
            if device.is_emulator() {
                assert!(cached == expected, "chunks of {chunk}: the cached pass differs");
            } else {
                // cuBLASLt chooses its algorithm, and with it the order of sums, by the number of rows.
                let error = relative_error(&wide(&cached), &wide(expected));
                assert!(error < 2e-2, "chunks of {chunk}: {error:.2e}");
            }
        }
    }
}

#[test]
fn prompt_rows_do_not_see_the_response_unless_they_may() {
    for (device, arch) in testing::targets() {
        let mut case = Case::new(&device, arch, config(), 40);
        let first = |case: &Case, mask| case.states(&case.forward(&case.sequence(35), 0..40, mask))[..35 * 64].to_vec();
        let (causal, full) = (first(&case, PromptMask::Causal), first(&case, PromptMask::Bidirectional));
        case.tokens[39] = (case.tokens[39] + 1) % 56;
        assert_eq!(first(&case, PromptMask::Causal), causal);
        assert_ne!(first(&case, PromptMask::Bidirectional), full);
    }
}

#[test]
fn impossible_sequences_are_errors() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch, config(), 1);
        let sequence =
            |prompt: &[u32], response: &[u32]| case.transformer.sequence(&case.stream, prompt, response).err().unwrap();
        assert!(matches!(sequence(&[], &[3]), Error::EmptyPrompt));
        assert!(matches!(sequence(&[1; 200], &[3; 57]), Error::TooLong { given: 257, limit: 256 }));
        assert!(matches!(sequence(&[1], &[56]), Error::Token { token: 56, vocabulary: 56 }));
    }
}

#[test]
fn sparse_heads_agree_with_double_precision_under_their_masks() {
    let (prompt, length) = (200, 208);
    let patterns = [
        HeadPattern::Dense,
        HeadPattern::AShape { sink: 16, local: 48 },
        HeadPattern::TriShape { sink: 8, local: 32, last: 40 },
        HeadPattern::AShape { sink: 0, local: 70 },
    ];
    let mask = |head: usize| {
        let pattern = patterns[head];
        Mask::from_positions(length, length, move |q, k| {
            let windows = |sink: u32, local: u32| q - k < i64::from(local) || k < i64::from(sink);
            let kept = match pattern {
                HeadPattern::AShape { sink, local } => windows(sink, local),
                HeadPattern::TriShape { sink, local, last } => {
                    windows(sink, local) || q >= prompt as i64 - i64::from(last)
                }
                _ => true,
            };
            q >= prompt as i64 || k <= q && kept
        })
    };
    let layer = |shift: usize| -> LayerPatterns { (0..4).map(|head| patterns[(head + shift) % 4]).collect() };
    let layers: HeadPatterns = [layer(0), layer(1)].into_iter().collect();
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch, config(), length);
        let sparse = SparseAttention::new(&case.stream, &case.config, &layers, prompt, arch).unwrap();
        let sequence = case.sequence(prompt);
        let causal = PromptMask::Causal;
        let hidden = case.transformer.forward(&case.stream, &sequence, 0..length, causal, &sparse).unwrap();
        let token_mask = |layer, head| mask((head + layer) % 4);
        let exact = case.oracle(|v| v).hidden(&case.tokens, token_mask);
        let plain = case.oracle(|v| bf16::from_f64(v).to_f64()).hidden(&case.tokens, token_mask);
        let error = relative_error(&wide(&case.states(&hidden)), &exact);
        let expected = relative_error(&plain, &exact);
        assert!(error < 2.0 * expected && error < 3e-2, "{error:.2e} against {expected:.2e}");
        let dense = case.oracle(|v| v).hidden(&case.tokens, |_, _| sequence_mask(prompt, length, causal));
        assert!(relative_error(&dense, &exact) > 5.0 * error, "the patterns leave something out");
    }
}
