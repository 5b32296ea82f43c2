//! Masked-diffusion decoding of a batch, end to end.
//!
//! A response starts as masks, with tokens of a template wherever the answer's form is given. A step is a pass over what
//! the cache policy feeds, the LM head on the rows that predict masked positions, and the sampling kernels: statistics and
//! token of each row, which tokens are kept, and the list for the next step. Steps are replayed as graphs, or launched one
//! by one where somebody wants to see each.

use crate::model::{Batch, Error, Pass, PromptMask, Sequence, Transformer};
use kernel_core::{
    Buffer, DType, Stream, TensorView,
    sampling::{Decoder, DiffusionDecoder, Draw, Ending, Logits, Refresh, Request, Room, Rule, Trajectory},
};
use ptx::kernels::{
    feed::{FeedParameters, feed_flags, policy},
    sampling::{RequestState, request_flags},
};

/// Which rows a step feeds, and so which keys and values it computes anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// All, through [`Transformer::forward`]: the reference of the others, one sequence at a time.
    None,
    /// The response; the prompt's keys stay (Dimple's prefilling).
    Prompt,
    /// The block and everything behind it; a new block begins with a refresh (Fast-dLLM's prefix cache).
    Prefix,
    /// The block, against stale keys behind it; a new block begins with a refresh (Fast-dLLM's dual cache).
    Dual,
    /// The block and some rows around it, against stale keys elsewhere; a new block begins with a refresh (dInfer's vicinity
    /// refresh).
    Window {
        /// Rows before the block.
        before: u32,
        /// Rows behind the block.
        behind: u32,
    },
    /// The block, which sees no key behind it; the final tokens of a block are written by the next one's first step (block
    /// diffusion: SDAR, LLaDA2).
    Block,
}

impl CachePolicy {
    /// Whether blocks begin with a refresh.
    fn refreshes(self) -> bool {
        matches!(self, CachePolicy::Prefix | CachePolicy::Dual | CachePolicy::Window { .. })
    }
}

/// How a batch is decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What prompt rows see.
    pub mask: PromptMask,
    /// Which rows a step feeds.
    pub cache: CachePolicy,
    /// Positions that are decoded at a time, block by block; by default all.
    pub block: Option<u32>,
    /// Steps of a block at most, of which the last fills everything that is left; by default one a position.
    pub steps: Option<u32>,
    /// Whether a response may end early.
    pub ending: Option<Ending>,
    /// Which tokens a step keeps.
    pub rule: Rule,
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
            block: None,
            steps: None,
            ending: None,
            rule: Rule::Threshold(0.95),
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
    /// How every position was filled; `None` where the token was given.
    pub trajectory: Vec<Option<Filling>>,
}

/// How a position was filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filling {
    /// By which step, from 0.
    pub step: u32,
    /// Confidence in the token then.
    pub confidence: f32,
    /// ln of its probability in the softmax of the logits.
    pub log_probability: f32,
    /// Entropy of that softmax, in nats.
    pub entropy: f32,
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
    let sequences = batch.sequences();
    if sequences.iter().any(|sequence| positions(sequence) == 0) {
        return Err(Error::EmptyResponse);
    }
    if settings.cache == CachePolicy::None && (sequences.len() > 1 || settings.graph.is_some()) {
        return Err(Error::OneSequence);
    }
    let run = Run::new(stream, transformer, batch, settings)?;
    let mut observed = || -> Result<(), Error> {
        observe(&responses(&batch.tokens().read(stream)?, batch));
        Ok(())
    };
    let states = match (settings.cache, settings.graph) {
        (CachePolicy::None, _) => {
            let (views, decoder) = (run.record.views()?, run.decoder(stream)?);
            while decoder.progress(stream)?.requests > 0 {
                uncached_step(stream, transformer, &sequences[0], settings.mask, &decoder, &views)?;
                observed()?;
            }
            decoder.states(stream)?
        }
        (_, None) => {
            let (views, decoder) = (run.record.views()?, run.decoder(stream)?);
            let passes = Passes::new(stream, transformer, batch, settings)?;
            loop {
                let progress = decoder.progress(stream)?;
                if progress.requests == 0 {
                    break decoder.states(stream)?;
                }
                if progress.waiting > 0 {
                    passes.refresh(stream, &decoder, &views)?;
                    observed()?;
                }
                if progress.waiting < progress.requests {
                    passes.step(stream, &decoder, &views)?;
                    observed()?;
                }
            }
        }
        (_, Some(steps)) => {
            let passes = Passes::new(stream, transformer, batch, settings)?;
            let graphs = run.capture(stream, &passes, steps)?;
            graphs.run(stream, u32::MAX)?;
            observed()?;
            graphs.decoder().states(stream)?
        }
    };
    if let Some(state) = states.iter().find(|state| state.flags & request_flags::ROW_ERROR != 0) {
        return Err(Error::NotFinite { passes: state.step });
    }
    let trajectories = run.record.read(stream, batch)?;
    let tokens = responses(&batch.tokens().read(stream)?, batch);
    let response = |((tokens, trajectory), state): ((Vec<u32>, Vec<Option<Filling>>), &RequestState)| Response {
        tokens,
        passes: state.step,
        trajectory,
    };
    Ok(tokens.into_iter().zip(trajectories).zip(&states).map(response).collect())
}

/// The requests of a batch, and where their steps are recorded.
pub struct Run<'b> {
    requests: Vec<Request>,
    room: Room,
    record: Record<'b>,
}

impl<'b> Run<'b> {
    /// The requests of a batch under these settings.
    ///
    /// # Errors
    /// [`Error::NoMaskToken`]; [`Error::Kernel`] from the device.
    pub fn new(
        stream: &Stream,
        transformer: &Transformer,
        batch: &'b Batch,
        settings: &Settings,
    ) -> Result<Run<'b>, Error> {
        let mask_token = transformer.config().mask_token.ok_or(Error::NoMaskToken)?;
        let requests = batch.sequences().iter().enumerate();
        Ok(Run {
            requests: requests.map(|(i, sequence)| request(sequence, i, mask_token, settings)).collect(),
            room: room(transformer, batch, settings),
            record: Record::new(stream, batch)?,
        })
    }

    /// A decoder that has been started on the requests.
    fn decoder(&self, stream: &Stream) -> Result<Decoder, Error> {
        let decoder = Decoder::new(stream.device(), DType::Bf16, self.room)?;
        let credits = self.requests.iter().any(|request| request.draw.credit.is_some());
        let decoder = if credits { decoder.with_credits()? } else { decoder };
        decoder.start(stream, &self.requests, &self.record.views()?.tokens)?;
        Ok(decoder)
    }

    /// Records `steps` steps as a graph, and a refresh where the policy has one. What is recorded stays with `self` and `passes`.
    ///
    /// # Errors
    /// [`Error::Kernel`] for impossible settings and from the device.
    pub fn capture(&self, stream: &Stream, passes: &Passes<'_>, steps: u32) -> Result<DiffusionDecoder, Error> {
        let (views, decoder) = (self.record.views()?, self.decoder(stream)?);
        let step = |stream: &Stream, decoder: &Decoder| passes.step(stream, decoder, &views);
        let mut graphs = DiffusionDecoder::capture(stream, decoder, steps, step)?;
        if passes.refresh.is_some() {
            graphs.capture_refresh(stream, |stream, decoder| passes.refresh(stream, decoder, &views))?;
        }
        Ok(graphs)
    }
}

/// What a step writes besides the tokens.
struct Record<'b> {
    batch: &'b Batch,
    steps: Buffer,
    confidence: Buffer,
    log_probability: Buffer,
    entropy: Buffer,
}

/// The tensors of a step.
struct Views<'r> {
    tokens: TensorView<'r>,
    trajectory: Trajectory<'r>,
}

impl<'b> Record<'b> {
    fn new(stream: &Stream, batch: &'b Batch) -> Result<Record<'b>, Error> {
        let elements = batch.sequences().len() * batch.capacity();
        let device = stream.device();
        let numbers = || device.upload(stream, &vec![0f32; elements]);
        Ok(Record {
            batch,
            steps: device.upload(stream, &vec![UNWRITTEN; elements])?,
            confidence: numbers()?,
            log_probability: numbers()?,
            entropy: numbers()?,
        })
    }

    fn views(&self) -> Result<Views<'_>, Error> {
        let shape = [(self.steps.bytes() / 4) as u64];
        let numbers = |buffer| TensorView::new(buffer, DType::F32, &shape).map(Some);
        Ok(Views {
            tokens: TensorView::new(self.batch.tokens(), DType::U32, &shape)?,
            trajectory: Trajectory {
                steps: Some(TensorView::new(&self.steps, DType::U32, &shape)?),
                confidence: numbers(&self.confidence)?,
                log_probability: numbers(&self.log_probability)?,
                entropy: numbers(&self.entropy)?,
            },
        })
    }

    /// How each response was filled.
    fn read(&self, stream: &Stream, batch: &Batch) -> Result<Vec<Vec<Option<Filling>>>, Error> {
        let steps = self.steps.read::<u32>(stream)?;
        let [confidence, log_probability, entropy] =
            [&self.confidence, &self.log_probability, &self.entropy].map(|buffer| buffer.read::<f32>(stream));
        let (confidence, log_probability, entropy) = (confidence?, log_probability?, entropy?);
        let filling = |i: usize| {
            let (confidence, log_probability, entropy) = (confidence[i], log_probability[i], entropy[i]);
            (steps[i] != UNWRITTEN).then_some(Filling { step: steps[i], confidence, log_probability, entropy })
        };
        Ok(responses(&(0..steps.len()).map(filling).collect::<Vec<_>>(), batch))
    }
}

/// The passes of a batch under its cache policy.
pub struct Passes<'b> {
    transformer: &'b Transformer,
    step: Pass<'b>,
    refresh: Option<Pass<'b>>,
}

impl<'b> Passes<'b> {
    /// Allocates and loads what the steps of a batch need.
    ///
    /// # Errors
    /// [`Error::Kernel`] from the device.
    pub fn new(
        stream: &Stream,
        transformer: &'b Transformer,
        batch: &'b Batch,
        settings: &Settings,
    ) -> Result<Passes<'b>, Error> {
        let feeds: Vec<_> = batch.sequences().iter().map(|sequence| feed(sequence, settings)).collect();
        let listed = room(transformer, batch, settings).rows as usize;
        let most = |rows: &dyn Fn(&Sequence) -> usize| batch.sequences().iter().map(rows).max().unwrap_or(1);
        let fed = most(&|sequence| {
            let (response, block) = (positions(sequence) + 1, block(sequence, settings) as usize);
            match settings.cache {
                CachePolicy::None | CachePolicy::Prompt | CachePolicy::Prefix => response,
                CachePolicy::Dual => block + 1,
                CachePolicy::Window { before, behind } => {
                    sequence.length().min(block + (before as usize).max(1) + behind as usize)
                }
                // Blocks that were given as a whole are written with the one before them.
                CachePolicy::Block => response,
            }
        });
        let everything = most(&|sequence| match settings.mask {
            PromptMask::Causal => positions(sequence) + 1,
            PromptMask::Bidirectional => sequence.length(),
        });
        let pass = |rows, refresh| transformer.pass(stream, batch, &feeds, (rows, listed), refresh);
        let refresh = settings.cache.refreshes().then(|| pass(everything, true)).transpose()?;
        Ok(Passes { transformer, step: pass(fed, false)?, refresh })
    }

    /// A step of the requests that do not wait for a refresh. May be captured.
    fn step(&self, stream: &Stream, decoder: &Decoder, views: &Views<'_>) -> Result<(), Error> {
        let logits = self.transformer.run(stream, &self.step, decoder)?;
        Ok(decoder.step(stream, &logits, &views.tokens, &views.trajectory)?)
    }

    /// The refresh that some wait for, and their step. May be captured.
    fn refresh(&self, stream: &Stream, decoder: &Decoder, views: &Views<'_>) -> Result<(), Error> {
        let Some(pass) = &self.refresh else { return Ok(()) };
        decoder.list_waiting(stream, &views.tokens)?;
        let logits = self.transformer.run(stream, pass, decoder)?;
        Ok(decoder.refreshed_step(stream, &logits, &views.tokens, &views.trajectory)?)
    }
}

/// Positions of a response.
fn positions(sequence: &Sequence) -> usize {
    sequence.length() - sequence.prompt()
}

/// Positions that are decoded at a time.
fn block(sequence: &Sequence, settings: &Settings) -> u32 {
    let all = positions(sequence) as u32;
    settings.block.map_or(all, |block| block.clamp(1, all))
}

/// Room for the batch's blocks.
fn room(transformer: &Transformer, batch: &Batch, settings: &Settings) -> Room {
    let blocks = || batch.sequences().iter().map(|sequence| block(sequence, settings));
    Room {
        requests: batch.sequences().len() as u32,
        block: blocks().max().unwrap_or(1),
        rows: blocks().sum(),
        vocab: transformer.config().vocabulary as u32,
    }
}

/// The request of one sequence. Its first token is the sequence's first element; response position 0 follows the prompt.
fn request(sequence: &Sequence, number: usize, mask_token: u32, settings: &Settings) -> Request {
    let prompt = sequence.prompt();
    let (first, window) = ((sequence.first_token() + prompt) as u32, 0..positions(sequence) as u32);
    Request {
        block: block(sequence, settings),
        rule: settings.rule,
        steps: settings.steps.unwrap_or_else(|| block(sequence, settings)),
        ending: settings.ending.clone(),
        refresh: Refresh { steps: settings.cache.refreshes().into(), every: 0 },
        draw: Draw { stream: number as u32, ..settings.draw.clone() },
        ..Request::greedy(first, window, (prompt - 1) as u32, mask_token, 0.0)
    }
}

/// How the sequence is fed. Models here are trained with logits shifted by one.
fn feed(sequence: &Sequence, settings: &Settings) -> FeedParameters {
    let causal = match settings.mask {
        PromptMask::Causal => feed_flags::CAUSAL_PROMPT,
        PromptMask::Bidirectional => 0,
    };
    let (before, after) = match settings.cache {
        CachePolicy::Window { before, behind } => (before, behind),
        _ => (0, 0),
    };
    FeedParameters {
        policy: match settings.cache {
            CachePolicy::None => policy::FULL,
            CachePolicy::Prompt => policy::PROMPT,
            CachePolicy::Prefix => policy::PREFIX,
            CachePolicy::Dual => policy::DUAL,
            CachePolicy::Window { .. } => policy::WINDOW,
            CachePolicy::Block => policy::BLOCK,
        },
        before,
        after,
        flags: causal | feed_flags::SHIFTED,
        first_token: sequence.first_token() as u32,
        prompt: sequence.prompt() as u32,
        length: sequence.length() as u32,
        ..FeedParameters::default()
    }
}

/// A pass over the whole sequence, prompt and all, and the step.
fn uncached_step(
    stream: &Stream,
    transformer: &Transformer,
    sequence: &Sequence,
    mask: PromptMask,
    decoder: &Decoder,
    views: &Views<'_>,
) -> Result<(), Error> {
    let listed = decoder.progress(stream)?.rows as usize;
    let hidden = transformer.forward(stream, sequence, 0..sequence.length(), mask, transformer.dense())?;
    let logits = transformer.logits(stream, &hidden, &decoder.sources()?, listed)?;
    let shape = [listed as u64, transformer.config().vocabulary as u64];
    let logits = Logits { values: TensorView::new(&logits, DType::Bf16, &shape)?, gathered: true, guide_offset: 0 };
    Ok(decoder.step(stream, &logits, &views.tokens, &views.trajectory)?)
}

/// The part of each sequence's response in an array with an element a token of the batch.
fn responses<T: Copy>(elements: &[T], batch: &Batch) -> Vec<Vec<T>> {
    let of = |sequence: &Sequence| {
        let first = sequence.first_token();
        elements[first + sequence.prompt()..first + sequence.length()].to_vec()
    };
    batch.sequences().iter().map(of).collect()
}
