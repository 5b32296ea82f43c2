//! A whole decoding step at the shape of a 7B model, weights drawn at random: what reading the weights would take, and what it
//! takes.

use crate::{
    decode::{CachePolicy, Passes, Run, Settings},
    model::{Batch, Config, Error, PromptMask, Transformer, Weights},
};
use kernel_core::{
    Stream,
    sampling::{DiffusionDecoder, Rule},
};
use ptx::Arch;

/// A step of a batch: blocks of as many positions behind a cached prefix.
#[derive(Clone, Debug)]
pub struct StepCase {
    /// Name.
    pub name: String,
    /// Requests.
    pub batch: usize,
    /// Positions of a block.
    pub block: usize,
    /// Tokens of a prompt.
    pub prefix: usize,
}

/// The cases of the performance page.
pub fn step_cases() -> Vec<StepCase> {
    let shapes = [(1, 32, 1024), (1, 32, 8192), (8, 32, 1024), (32, 32, 1024)];
    let case = |(batch, block, prefix)| StepCase {
        name: format!("step of {batch} × {block} positions behind {prefix}"),
        batch,
        block,
        prefix,
    };
    shapes.map(case).to_vec()
}

/// The shape of Dream-7B, and so of Dimple's language model (Qwen2.5-7B), for sequences of `context` tokens.
pub fn dream_7b(context: usize) -> Config {
    Config {
        hidden: 3584,
        intermediate: 18944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        vocabulary: 152_064,
        context,
        norm_epsilon: 1e-6,
        rope_theta: 1e6,
        mrope_section: None,
        tied: false,
        mask_token: Some(151_666),
    }
}

/// Bytes of a model's parameters.
pub fn weight_bytes(config: &Config) -> usize {
    let (hidden, width) = (config.hidden, config.q_width() + 2 * config.kv_width());
    let layer = (width + config.q_width()) * hidden + width + 3 * config.intermediate * hidden + 2 * hidden;
    let heads = if config.tied { 1 } else { 2 };
    2 * (config.layers * layer + heads * config.vocabulary * hidden + hidden)
}

/// A model of random weights.
///
/// # Errors
/// From the device.
pub fn random_model(stream: &Stream, config: &Config, arch: Arch) -> Result<Transformer, Error> {
    Transformer::with_weights(stream, config, Weights::noise(stream, config, 1)?, arch)
}

impl StepCase {
    /// The prompts with their masks, prefilled.
    ///
    /// # Errors
    /// From the device.
    pub fn batch(&self, stream: &Stream, model: &Transformer) -> Result<Batch, Error> {
        let config = model.config();
        let mask = config.mask_token.ok_or(Error::NoMaskToken)?;
        let prompt = |i: usize| (0..self.prefix).map(move |j| ((i * 7919 + j * 104_729) % config.vocabulary) as u32);
        let prompts: Vec<Vec<u32>> = (0..self.batch).map(|i| prompt(i).collect()).collect();
        let response = vec![mask; self.block];
        let sequences: Vec<(&[u32], &[u32])> = prompts.iter().map(|prompt| (&prompt[..], &response[..])).collect();
        let batch = model.batch(stream, &sequences)?;
        for sequence in batch.sequences() {
            model.prefill(stream, sequence, PromptMask::Causal, 4096, model.dense())?;
        }
        Ok(batch)
    }

    /// Captures a step, which fills no position however often it is replayed: a schedule of so many steps moves none in the first
    /// thousands, though every row is sampled and ranked.
    ///
    /// # Errors
    /// From the device.
    pub fn capture<'b>(
        &self,
        stream: &Stream,
        model: &'b Transformer,
        batch: &'b Batch,
    ) -> Result<PreparedStep<'b>, Error> {
        let settings =
            Settings { cache: CachePolicy::Prompt, steps: Some(60_000), rule: Rule::dream(), ..Settings::default() };
        let run = Run::new(stream, model, batch, &settings)?;
        let passes = Passes::new(stream, model, batch, &settings)?;
        let graphs = run.capture(stream, &passes, 1)?;
        Ok(PreparedStep { graphs, _run: run, _passes: passes })
    }
}

/// A step as a graph, with what it uses.
pub struct PreparedStep<'b> {
    graphs: DiffusionDecoder,
    _run: Run<'b>,
    _passes: Passes<'b>,
}

impl PreparedStep<'_> {
    /// Replays the step once.
    ///
    /// # Errors
    /// From the launch.
    pub fn run(&self, stream: &Stream) -> Result<(), kernel_core::Error> {
        self.graphs.launch(stream)
    }

    /// Launches of a step.
    pub fn operations(&self) -> usize {
        self.graphs.operations()
    }

    /// Positions that wait to be filled.
    ///
    /// # Errors
    /// From the device.
    pub fn masked(&self, stream: &Stream) -> Result<u32, kernel_core::Error> {
        Ok(self.graphs.decoder().progress(stream)?.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::Device;

    #[test]
    fn the_shape_is_that_of_the_published_model() {
        let bytes = weight_bytes(&dream_7b(1024));
        assert!((15.2e9..15.3e9).contains(&(bytes as f64)), "{bytes}");
    }

    #[test]
    fn a_step_samples_every_position_and_fills_none() {
        let (device, arch) = (Device::emulator(), Arch::Sm80);
        let stream = Stream::new(&device).expect("a device gives streams");
        let config = Config {
            hidden: 64,
            intermediate: 64,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary: 64,
            mask_token: Some(9),
            ..dream_7b(64)
        };
        let model = random_model(&stream, &config, arch).expect("a valid model");
        let case = StepCase { name: "test".into(), batch: 2, block: 4, prefix: 9 };
        let batch = case.batch(&stream, &model).expect("a valid batch");
        let step = case.capture(&stream, &model, &batch).expect("a valid step");
        for _ in 0..2 {
            step.run(&stream).expect("a valid launch");
        }
        assert_eq!(step.masked(&stream).expect("read"), 8);
    }
}
