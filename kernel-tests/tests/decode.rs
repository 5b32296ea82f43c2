//! Confident decoding on a random model: its rules hold, whatever the tokens mean.

// Clippy lets only the `#[test]` functions themselves unwrap.
#![allow(clippy::unwrap_used)]

use half::bf16;
use kernel_core::{
    DType, Device, Stream, TensorView,
    sampling::{Draw, Rule},
};
use kernel_tests::{
    decode::{CachePolicy, Response, Settings, decode},
    model::{Batch, Config, Error, PromptMask, Transformer, Weights},
    oracle::{Mask, transformer::Transformer as Oracle},
    testing,
};
use ptx::Arch;
use rand::{Rng, SeedableRng, rngs::StdRng};

const MASK: u32 = 3;
const PROMPT: usize = 70;
/// Positions 2 and 5 are given.
const TEMPLATE: [u32; 8] = [MASK, MASK, 17, MASK, MASK, 40, MASK, MASK];

struct Case {
    stream: Stream,
    config: Config,
    weights: Weights<Vec<bf16>>,
    transformer: Transformer,
    prompt: Vec<u32>,
}

impl Case {
    fn new(device: &Device, arch: Arch) -> Case {
        let config = Config {
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            vocabulary: 56,
            context: 128,
            norm_epsilon: 1e-6,
            rope_theta: 1e4,
            mrope_section: None,
            tied: false,
            mask_token: Some(MASK),
        };
        let seed = testing::seed(11);
        println!("seed {seed}");
        let mut weights = Weights::random(&config, seed);
        // A logit of 0 is never the best, so that no draw of the mask token leaves a position open.
        let head = weights.head.as_mut().unwrap();
        head[MASK as usize * config.hidden..][..config.hidden].fill(bf16::ZERO);
        let stream = Stream::new(device).unwrap();
        let transformer = Transformer::new(&stream, &config, &weights, arch).unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let prompt = (0..PROMPT).map(|_| random.random_range(4..56)).collect();
        Case { stream, config, weights, transformer, prompt }
    }

    /// A batch of prefilled prompts: the first so many tokens of the case's, each with its template.
    fn batch(&self, mask: PromptMask, sequences: &[(usize, &[u32])]) -> Batch {
        let sequences: Vec<_> =
            sequences.iter().map(|(prompt, template)| (&self.prompt[..*prompt], *template)).collect();
        let batch = self.transformer.batch(&self.stream, &sequences).unwrap();
        for sequence in batch.sequences() {
            self.transformer.prefill(&self.stream, sequence, mask, 32, self.transformer.dense()).unwrap();
        }
        batch
    }

    /// Probability of a token at a position of the response, in double precision, where each position of it sees the response
    /// up to `visible` and the prompt is causal.
    fn probability(&self, response: &[u32], position: usize, token: u32, visible: fn(usize) -> usize) -> f64 {
        let oracle = Oracle { config: &self.config, weights: &self.weights, round: |value| value };
        let tokens = [&self.prompt[..], response].concat();
        let sees = |q: i64, k: i64| match usize::try_from(q).unwrap().checked_sub(PROMPT) {
            None => k <= q,
            Some(q) => k < (PROMPT + visible(q)) as i64,
        };
        let hidden = oracle.hidden(&tokens, |_, _| Mask::from_positions(tokens.len(), tokens.len(), sees));
        let row = (PROMPT + position - 1) * self.config.hidden;
        let logits = oracle.logits(&hidden[row..row + self.config.hidden]);
        logits[token as usize].exp() / logits.iter().map(|logit| logit.exp()).sum::<f64>()
    }

    fn decode(&self, settings: &Settings) -> (Response, Vec<Vec<u32>>) {
        let mut seen = Vec::new();
        let batch = self.batch(settings.mask, &[(PROMPT, &TEMPLATE)]);
        let observe = |responses: &[Vec<u32>]| seen.extend_from_slice(responses);
        let mut responses = decode(&self.stream, &self.transformer, &batch, settings, observe).unwrap();
        (responses.remove(0), seen)
    }
}

fn open(tokens: &[u32]) -> usize {
    tokens.iter().filter(|token| **token == MASK).count()
}

#[test]
fn a_threshold_out_of_reach_fills_one_position_a_step() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        let (response, seen) = case.decode(&Settings { rule: Rule::Threshold(1.0), ..Settings::default() });
        assert_eq!((response.passes, seen.len()), (6, 6));
        for (step, tokens) in seen.iter().enumerate() {
            assert_eq!(open(tokens), 5 - step, "after step {step}: {tokens:?}");
        }
        assert_eq!((response.tokens[2], response.tokens[5]), (17, 40), "given tokens stay");
        let mut steps: Vec<_> = response.trajectory.iter().flatten().map(|filling| filling.step).collect();
        steps.sort_unstable();
        assert_eq!(steps, [0, 1, 2, 3, 4, 5]);
        assert!(response.trajectory[2].is_none() && response.trajectory[5].is_none());
        assert_eq!(
            case.decode(&Settings { rule: Rule::Threshold(1.0), ..Settings::default() }).0,
            response,
            "same inputs, same bits"
        );
    }
}

#[test]
fn a_low_threshold_or_a_single_step_fills_everything_at_once() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        for settings in [
            Settings { rule: Rule::Threshold(0.0), ..Settings::default() },
            Settings { rule: Rule::Threshold(1.0), steps: Some(1), ..Settings::default() },
        ] {
            let (response, _) = case.decode(&settings);
            assert_eq!((response.passes, open(&response.tokens)), (1, 0));
        }
    }
}

#[test]
fn the_first_step_keeps_the_surest_token() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        let (_, seen) = case.decode(&Settings { rule: Rule::Threshold(1.0), ..Settings::default() });
        let batch = case.batch(PromptMask::Causal, &[(PROMPT, &TEMPLATE)]);
        let sequence = &batch.sequences()[0];
        let rows = PROMPT - 1..PROMPT + TEMPLATE.len();
        let dense = case.transformer.dense();
        let hidden = case.transformer.forward(&case.stream, sequence, rows, PromptMask::Causal, dense).unwrap();
        // The row before each position predicts it.
        let index = device.upload(&case.stream, &[0u32, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        let index = TensorView::new(&index, DType::U32, &[8]).unwrap();
        let logits: Vec<bf16> =
            case.transformer.logits(&case.stream, &hidden, &index, 8).unwrap().read(&case.stream).unwrap();
        let sure = |position: usize| {
            let row: Vec<f64> = logits[position * 56..][..56].iter().map(|l| l.to_f64()).collect();
            let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let token = row.iter().position(|l| *l == best).unwrap() as u32;
            (1.0 / row.iter().map(|l| (l - best).exp()).sum::<f64>(), token)
        };
        let masked = (0..TEMPLATE.len()).filter(|p| TEMPLATE[*p] == MASK);
        let (position, token) = masked
            .map(|p| (sure(p), p))
            .fold(None, |best: Option<((f64, u32), usize)>, next| match best {
                Some(best) if best.0.0 >= next.0.0 => Some(best),
                _ => Some(next),
            })
            .map(|((_, token), position)| (position, token))
            .unwrap();
        let mut expected = TEMPLATE;
        expected[position] = token;
        assert_eq!(seen[0], expected);
    }
}

#[test]
fn the_prefix_cache_decodes_as_full_passes_do() {
    for (device, arch) in testing::targets().iter().filter(|(device, _)| device.is_emulator()) {
        let case = Case::new(device, *arch);
        for temperature in [0.0, 1.5] {
            let draw = Draw { temperature, seed: 5, ..Draw::greedy() };
            let settings = Settings { rule: Rule::Threshold(0.5), draw, ..Settings::default() };
            let (cached, _) = case.decode(&settings);
            let (uncached, _) = case.decode(&Settings { cache: CachePolicy::None, ..settings });
            assert_eq!(cached, uncached, "temperature {temperature}");
        }
    }
}

#[test]
fn bidirectional_prompts_decode_too() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        for cache in [CachePolicy::None, CachePolicy::Prompt] {
            let settings = Settings { mask: PromptMask::Bidirectional, cache, ..Settings::default() };
            let (response, _) = case.decode(&settings);
            assert_eq!(open(&response.tokens), 0);
            assert_eq!((response.tokens[2], response.tokens[5]), (17, 40));
        }
    }
}

#[test]
fn impossible_settings_are_errors() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        let batch = case.batch(PromptMask::Causal, &[(PROMPT, &TEMPLATE)]);
        let refused = |batch: &Batch, settings: Settings| {
            decode(&case.stream, &case.transformer, batch, &settings, |_| ()).unwrap_err()
        };
        let none = case.transformer.batch(&case.stream, &[(&case.prompt, &[])]).unwrap();
        assert!(matches!(refused(&none, Settings::default()), Error::EmptyResponse));
        let uncached = Settings { cache: CachePolicy::None, ..Settings::default() };
        let two = case.batch(PromptMask::Causal, &[(PROMPT, &TEMPLATE), (9, &TEMPLATE)]);
        assert!(matches!(refused(&two, uncached.clone()), Error::OneSequence));
        assert!(matches!(refused(&batch, Settings { graph: Some(1), ..uncached }), Error::OneSequence));
        assert!(matches!(case.transformer.batch(&case.stream, &[]), Err(Error::EmptyBatch)));
        let greedy = Draw::greedy();
        for (settings, field) in [
            (Settings { steps: Some(0), ..Settings::default() }, "steps"),
            (Settings { graph: Some(0), ..Settings::default() }, "steps"),
            (Settings { rule: Rule::Threshold(f32::NAN), ..Settings::default() }, "threshold"),
            (Settings { draw: Draw { temperature: -1.0, ..greedy.clone() }, ..Settings::default() }, "temperature"),
            (Settings { draw: Draw { top_p: 2.0, ..greedy }, ..Settings::default() }, "top_p"),
        ] {
            let text = refused(&batch, settings).to_string();
            assert!(text.contains(field), "{field}: {text}");
        }
        let tokens = batch.tokens().read::<u32>(&case.stream).unwrap();
        assert_eq!(open(&tokens[PROMPT..PROMPT + TEMPLATE.len()]), 6, "nothing was written");
    }
}

/// Prompts, templates and lengths of all kinds together, step by step and as graphs.
#[test]
fn a_batch_decodes_as_its_sequences_do_alone() {
    const LONG: [u32; 5] = [MASK; 5];
    const GIVEN: [u32; 3] = [9, 8, 7];
    let sequences: [(usize, &[u32]); 3] = [(PROMPT, &TEMPLATE), (1, &LONG), (33, &GIVEN)];
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        for (mask, temperature) in [(PromptMask::Causal, 0.0), (PromptMask::Bidirectional, 1.2)] {
            let draw = Draw { temperature, seed: 3, ..Draw::greedy() };
            let settings = Settings { mask, rule: Rule::Threshold(0.1), draw, ..Settings::default() };
            let run = |sequences: &[(usize, &[u32])], graph| {
                let settings = Settings { graph, ..settings.clone() };
                let batch = case.batch(mask, sequences);
                decode(&case.stream, &case.transformer, &batch, &settings, |_| ()).unwrap()
            };
            let together = run(&sequences, None);
            assert_eq!(together, run(&sequences, Some(2)), "{mask:?}: graphs of two steps");
            assert_eq!((together[2].passes, &together[2].tokens[..]), (0, &GIVEN[..]));
            assert!(together.iter().all(|response| open(&response.tokens) == 0));
            // On a GPU products of more rows may be summed in another order; a stream of draws is named by its place.
            if device.is_emulator() && temperature == 0.0 {
                for (i, sequence) in sequences.iter().enumerate() {
                    assert_eq!(run(&[*sequence], None)[0], together[i], "{mask:?}: sequence {i} alone");
                }
            }
        }
    }
}

/// A response longer than a block, some of it given; the second block is given as a whole.
const BLOCKS: [u32; 14] = [MASK, 11, MASK, MASK, 5, 6, 7, 8, MASK, MASK, 44, MASK, MASK, MASK];

const REFRESHED: [CachePolicy; 3] =
    [CachePolicy::Prefix, CachePolicy::Dual, CachePolicy::Window { before: 3, behind: 2 }];

/// A refresh at every step is a pass over everything, whatever the policy feeds else.
#[test]
fn policies_that_refresh_at_every_step_decode_as_full_passes_do() {
    for (device, arch) in testing::targets().iter().filter(|(device, _)| device.is_emulator()) {
        let case = Case::new(device, *arch);
        // One step a block: each is a refresh.
        let settings = Settings { block: Some(4), steps: Some(1), ..Settings::default() };
        let run = |cache| {
            let batch = case.batch(PromptMask::Causal, &[(PROMPT, &BLOCKS)]);
            let settings = Settings { cache, ..settings.clone() };
            decode(&case.stream, &case.transformer, &batch, &settings, |_| ()).unwrap()
        };
        let full = run(CachePolicy::None);
        assert_eq!(full[0].passes, 3, "a block that is given takes no step");
        for cache in REFRESHED {
            assert_eq!(run(cache), full, "{cache:?}");
        }
    }
}

/// The window that is everything, and the suffix behind the last block that is nothing, leave no stale key.
#[test]
fn policies_without_stale_keys_decode_as_full_passes_do() {
    for (device, arch) in testing::targets().iter().filter(|(device, _)| device.is_emulator()) {
        let case = Case::new(device, *arch);
        let run = |template: &[u32], block, cache| {
            let batch = case.batch(PromptMask::Causal, &[(PROMPT, template)]);
            let settings = Settings { block, cache, rule: Rule::Threshold(0.09), ..Settings::default() };
            decode(&case.stream, &case.transformer, &batch, &settings, |_| ()).unwrap()
        };
        let wide = CachePolicy::Window { before: 99, behind: 99 };
        assert_eq!(run(&BLOCKS, Some(4), wide), run(&BLOCKS, Some(4), CachePolicy::None));
        let whole = run(&TEMPLATE, None, CachePolicy::None);
        for cache in REFRESHED.into_iter().chain([CachePolicy::Prompt, CachePolicy::Block]) {
            assert_eq!(run(&TEMPLATE, None, cache), whole, "{cache:?}, one block");
        }
    }
}

/// Block diffusion against double precision: a row sees its own block and what is before it in its final form.
#[test]
fn blocks_see_what_is_before_them_in_its_final_form() {
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        let settings =
            Settings { cache: CachePolicy::Block, block: Some(4), rule: Rule::Threshold(1.0), ..Settings::default() };
        let batch = case.batch(PromptMask::Causal, &[(PROMPT, &BLOCKS)]);
        let mut seen = vec![BLOCKS.to_vec()];
        let observe = |responses: &[Vec<u32>]| seen.extend_from_slice(responses);
        let response = decode(&case.stream, &case.transformer, &batch, &settings, observe).unwrap().remove(0);
        assert_eq!(response.passes, 8, "one position a step");
        let mut wrong = 0f64;
        for (position, filling) in response.trajectory.iter().enumerate() {
            let Some(filling) = filling else { continue };
            let before = &seen[filling.step as usize];
            let sure =
                |visible: fn(usize) -> usize| case.probability(before, position, response.tokens[position], visible);
            let (exact, full) = (sure(|position| position / 4 * 4 + 4), sure(|_| BLOCKS.len()));
            let found = f64::from(filling.confidence);
            assert!((found / exact - 1.0).abs() < 0.04, "{arch:?}, position {position}: {found:.4}, not {exact:.4}");
            wrong = wrong.max((found / full - 1.0).abs());
        }
        assert!(wrong > 0.08, "a mask that shows everything would pass: {wrong:.3}");
    }
}

/// Requests of all kinds in one batch wait for their refreshes at different times, and do not see each other.
#[test]
fn refreshes_of_a_batch_are_those_of_its_sequences() {
    let sequences: [(usize, &[u32]); 3] = [(PROMPT, &BLOCKS), (20, &TEMPLATE), (7, &BLOCKS[..9])];
    for (device, arch) in testing::targets() {
        let case = Case::new(&device, arch);
        for (cache, mask) in [(CachePolicy::Dual, PromptMask::Causal), (REFRESHED[2], PromptMask::Bidirectional)] {
            let run = |sequences: &[(usize, &[u32])], graph| {
                let batch = case.batch(mask, sequences);
                let rule = Rule::Threshold(0.1);
                let settings = Settings { cache, mask, block: Some(4), rule, graph, ..Settings::default() };
                decode(&case.stream, &case.transformer, &batch, &settings, |_| ()).unwrap()
            };
            let together = run(&sequences, None);
            assert!(together.iter().all(|response| open(&response.tokens) == 0));
            assert_eq!(run(&sequences, Some(2)), together, "{cache:?}: graphs of two steps");
            if device.is_emulator() {
                let alone: Vec<_> = sequences.iter().map(|sequence| run(&[*sequence], None).remove(0)).collect();
                assert_eq!(alone, together, "{cache:?}: each alone");
            }
        }
    }
}
