//! Masked-diffusion decoding of a batch, end to end.
//!
//! A response starts as masks, with tokens of a template wherever the answer's form is given. A step is a pass over what
//! the cache policy feeds, the LM head on the rows that predict masked positions, and the sampling kernels: statistics and
//! token of each row, which tokens are kept, and the list for the next step. Steps are replayed as graphs, or launched one
//! by one where somebody wants to see each.

use crate::model::{Batch, Error, Pass, PromptMask, Sequence, Transformer};
use kernel_core::{
    DType, Stream, TensorView,
    sampling::{Decoder, DiffusionDecoder, Draw, Logits, Request, Room, Rule, Trajectory},
};
use ptx::kernels::{
    feed::{FeedParameters, feed_flags, policy},
    sampling::{Confidence, request_flags},
};

/// Which rows a step feeds, and so which keys and values it computes anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// All, through [`Transformer::forward`]: the reference of the others, one sequence at a time.
    None,
    /// The response; the prompt's keys stay (Dimple's prefilling).
    Prompt,
}

/// How a batch is decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What prompt rows see.
    pub mask: PromptMask,
    /// Which rows a step feeds.
    pub cache: CachePolicy,
    /// Steps at most, of which the last fills everything that is left; by default one a position.
    pub steps: Option<u32>,
    /// Which tokens a step keeps.
    pub rule: Rule,
    /// What a rule goes by.
    pub confidence: Confidence,
    /// How tokens are drawn; each sequence has a stream of its own.
    pub draw: Draw,
    /// Steps of a graph; without it steps are launched one by one.
    pub graph: Option<u32>,
}

impl Default for Settings {
    /// Greedy, keeping what is more than 95 % sure.
    fn default() -> Settings {
        Settings {
            mask: PromptMask::Causal,
            cache: CachePolicy::Prompt,
            steps: None,
            rule: Rule::Threshold(0.95),
            confidence: Confidence::Probability,
            draw: Draw::greedy(),
            graph: None,
        }
    }
}

/// A decoded response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Forward passes until it was done.
    pub passes: u32,
    /// For every position the step that filled it, from 0, and its confidence then; `None` where the token was given.
    pub trajectory: Vec<Option<(u32, f32)>>,
}

/// What the step of a position is before it is filled.
const UNWRITTEN: u32 = u32::MAX;

/// Decodes the responses of a prefilled batch in place. `observe` sees all responses after every step, or graph of steps.
///
/// # Errors
/// [`Error::NoMaskToken`], [`Error::EmptyResponse`]; [`Error::OneSequence`] for several sequences without a cache;
/// [`Error::NotFinite`] where a row of logits has no number; [`Error::Kernel`] for impossible settings and from the device.
pub fn decode(
    stream: &Stream,
    transformer: &Transformer,
    batch: &Batch,
    settings: &Settings,
    mut observe: impl FnMut(&[Vec<u32>]),
) -> Result<Vec<Response>, Error> {
    let (sequences, device) = (batch.sequences(), stream.device());
    if sequences.iter().any(|sequence| sequence.length() == sequence.prompt()) {
        return Err(Error::EmptyResponse);
    }
    if settings.cache == CachePolicy::None && (sequences.len() > 1 || settings.graph.is_some()) {
        return Err(Error::OneSequence);
    }
    let mask_token = transformer.config().mask_token.ok_or(Error::NoMaskToken)?;
    let requests: Vec<_> =
        sequences.iter().enumerate().map(|(i, sequence)| request(sequence, i, mask_token, settings)).collect();
    let positions: usize = sequences.iter().map(|sequence| sequence.length() - sequence.prompt()).sum();

    let elements = sequences.len() * batch.capacity();
    let shape = [elements as u64];
    let tokens = TensorView::new(batch.tokens(), DType::U32, &shape)?;
    let steps = device.upload(stream, &vec![UNWRITTEN; elements])?;
    let confidence = device.upload(stream, &vec![0f32; elements])?;
    let trajectory = Trajectory {
        steps: Some(TensorView::new(&steps, DType::U32, &shape)?),
        confidence: Some(TensorView::new(&confidence, DType::F32, &shape)?),
        ..Trajectory::default()
    };
    let longest = sequences.iter().map(|sequence| sequence.length() - sequence.prompt()).max().unwrap_or(0);
    let room = Room { requests: sequences.len() as u32, block: longest as u32, rows: positions as u32 };
    let decoder = Decoder::new(device, DType::Bf16, settings.confidence, room)?;
    decoder.start(stream, &requests, &tokens)?;
    let most = requests.iter().map(|request| request.steps).max().unwrap_or(0);
    let mut observed = || -> Result<(), Error> { Ok(observe(&responses(&batch.tokens().read(stream)?, batch))) };

    let states = if settings.cache == CachePolicy::None {
        while decoder.progress(stream)?.requests > 0 {
            uncached_step(stream, transformer, &sequences[0], settings.mask, &decoder, &tokens, &trajectory)?;
            observed()?;
        }
        decoder.states(stream)?
    } else {
        let feeds: Vec<_> = sequences.iter().map(|sequence| feed(sequence, settings)).collect();
        let rows = sequences.iter().map(|sequence| sequence.length() - sequence.prompt() + 1).max().unwrap_or(1);
        let pass = transformer.pass(stream, batch, &feeds, (rows, positions), false)?;
        let step =
            |stream: &Stream, decoder: &Decoder| cached_step(stream, transformer, &pass, decoder, &tokens, &trajectory);
        match settings.graph {
            None => {
                while decoder.progress(stream)?.requests > 0 {
                    step(stream, &decoder)?;
                    observed()?;
                }
                decoder.states(stream)?
            }
            Some(steps) => {
                let graphs = DiffusionDecoder::capture(stream, decoder, steps, step)?;
                while graphs.run(stream, most)?.requests > 0 {}
                observed()?;
                graphs.decoder().states(stream)?
            }
        }
    };
    if let Some(state) = states.iter().find(|state| state.flags & request_flags::ROW_ERROR != 0) {
        return Err(Error::NotFinite { passes: state.step });
    }
    let tokens = responses(&batch.tokens().read(stream)?, batch);
    let (steps, confidence) = (responses(&steps.read(stream)?, batch), responses(&confidence.read(stream)?, batch));
    let written = |(step, sure): (u32, f32)| (step != UNWRITTEN).then_some((step, sure));
    let response = |((tokens, state), (steps, sure)): ((Vec<u32>, u32), (Vec<u32>, Vec<f32>))| Response {
        tokens,
        passes: state,
        trajectory: steps.into_iter().zip(sure).map(written).collect(),
    };
    let passes = states.iter().map(|state| state.step);
    Ok(tokens.into_iter().zip(passes).zip(steps.into_iter().zip(confidence)).map(response).collect())
}

/// The request of one sequence. Its first token is the sequence's first element; response position 0 follows the prompt.
fn request(sequence: &Sequence, number: usize, mask_token: u32, settings: &Settings) -> Request {
    let (prompt, positions) = (sequence.prompt(), (sequence.length() - sequence.prompt()) as u32);
    Request {
        rule: settings.rule,
        steps: settings.steps.unwrap_or(positions),
        draw: Draw { stream: number as u32, ..settings.draw.clone() },
        ..Request::greedy((sequence.first_token() + prompt) as u32, 0..positions, (prompt - 1) as u32, mask_token, 0.0)
    }
}

/// How the sequence is fed. Models here are trained with logits shifted by one.
fn feed(sequence: &Sequence, settings: &Settings) -> FeedParameters {
    let causal = match settings.mask {
        PromptMask::Causal => feed_flags::CAUSAL_PROMPT,
        PromptMask::Bidirectional => 0,
    };
    FeedParameters {
        policy: match settings.cache {
            CachePolicy::None => policy::FULL,
            CachePolicy::Prompt => policy::PROMPT,
        },
        flags: causal | feed_flags::SHIFTED,
        first_token: sequence.first_token() as u32,
        prompt: sequence.prompt() as u32,
        length: sequence.length() as u32,
        ..FeedParameters::default()
    }
}

fn cached_step(
    stream: &Stream,
    transformer: &Transformer,
    pass: &Pass<'_>,
    decoder: &Decoder,
    tokens: &TensorView<'_>,
    trajectory: &Trajectory<'_>,
) -> Result<(), Error> {
    let logits = transformer.run(stream, pass, decoder)?;
    Ok(decoder.step(stream, &logits, tokens, trajectory)?)
}

/// A pass over the whole sequence, prompt and all, and the step.
fn uncached_step(
    stream: &Stream,
    transformer: &Transformer,
    sequence: &Sequence,
    mask: PromptMask,
    decoder: &Decoder,
    tokens: &TensorView<'_>,
    trajectory: &Trajectory<'_>,
) -> Result<(), Error> {
    let listed = decoder.progress(stream)?.rows as usize;
    let hidden = transformer.forward(stream, sequence, 0..sequence.length(), mask, transformer.dense())?;
    let logits = transformer.logits(stream, &hidden, &decoder.sources()?, listed)?;
    let shape = [listed as u64, transformer.config().vocabulary as u64];
    let logits = Logits { values: TensorView::new(&logits, DType::Bf16, &shape)?, gathered: true };
    Ok(decoder.step(stream, &logits, tokens, trajectory)?)
}

/// The part of each sequence's response in an array with an element a token of the batch.
fn responses<T: Copy>(elements: &[T], batch: &Batch) -> Vec<Vec<T>> {
    let of = |sequence: &Sequence| {
        let first = sequence.first_token();
        elements[first + sequence.prompt()..first + sequence.length()].to_vec()
    };
    batch.sequences().iter().map(of).collect()
}
