//! Confident decoding of one response: every step fills the masked positions whose tokens the model is sure of.
//!
//! The response starts as masks, with tokens of a template wherever the answer's form is given. A step is a forward pass
//! over the last prompt token and the response, the LM head on the rows that predict masked positions, and the sampling
//! kernels: statistics and token of each row, which tokens are kept, and the list for the next step.

use crate::model::{Error, PromptMask, Sequence, Transformer};
use kernel_core::{
    DType, Stream, TensorView,
    sampling::{Decoder, Draw, Logits, Request, Rule, Trajectory},
};
use ptx::kernels::sampling::{Confidence, request_flags};

/// How a response is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// What prompt rows see.
    pub mask: PromptMask,
    /// Feeds only the last prompt token and the response, against the keys and values of [`Transformer::prefill`];
    /// otherwise every step is a pass over the whole sequence.
    pub cached: bool,
    /// Steps at most, of which the last fills everything that is left; by default one a position.
    pub steps: Option<u32>,
    /// Which tokens a step keeps.
    pub rule: Rule,
    /// What a rule goes by.
    pub confidence: Confidence,
    /// Divides the logits; 0 takes the best token.
    pub temperature: f32,
    /// Draws from the best tokens that together have this share; 1 from all.
    pub top_p: f32,
    /// Draws from this many of the best tokens; 0 from all.
    pub top_k: u32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Settings {
    /// Greedy, keeping what is more than 95 % sure.
    fn default() -> Settings {
        Settings {
            mask: PromptMask::Causal,
            cached: true,
            steps: None,
            rule: Rule::Threshold(0.95),
            confidence: Confidence::Probability,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
        }
    }
}

/// A decoded response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Forward passes.
    pub passes: u32,
    /// For every position the step that filled it, from 0, and its confidence then; `None` where the token was given.
    pub trajectory: Vec<Option<(u32, f32)>>,
}

/// What the step of a position is before it is filled.
const UNWRITTEN: u32 = u32::MAX;

/// Decodes the response of a prefilled sequence in place. `observe` sees the response after every step.
///
/// # Errors
/// [`Error::NoMaskToken`], [`Error::EmptyResponse`]; [`Error::NotFinite`] where a row of logits has no number;
/// [`Error::Kernel`] for impossible settings and from the device.
pub fn decode(
    stream: &Stream,
    transformer: &Transformer,
    sequence: &Sequence,
    settings: &Settings,
    mut observe: impl FnMut(&[u32]),
) -> Result<Response, Error> {
    let (prompt, length, device) = (sequence.prompt(), sequence.length(), stream.device());
    let positions = (length - prompt) as u32;
    if positions == 0 {
        return Err(Error::EmptyResponse);
    }
    let first_row = if settings.cached { prompt - 1 } else { 0 };
    let request = Request {
        rule: settings.rule,
        steps: settings.steps.unwrap_or(positions),
        draw: Draw {
            temperature: settings.temperature,
            top_p: settings.top_p,
            top_k: settings.top_k,
            seed: settings.seed,
            ..Draw::greedy()
        },
        ..Request::greedy(
            prompt as u32,
            0..positions,
            // The row before response position 0, counted from the first row of a pass.
            (prompt - 1 - first_row) as u32,
            transformer.config().mask_token.ok_or(Error::NoMaskToken)?,
            0.0,
        )
    };
    let shape = [length as u64];
    let tokens = TensorView::new(sequence.tokens(), DType::U32, &shape)?;
    let steps = device.upload(stream, &vec![UNWRITTEN; length])?;
    let confidence = device.upload(stream, &vec![0f32; length])?;
    let trajectory = Trajectory {
        steps: Some(TensorView::new(&steps, DType::U32, &shape)?),
        confidence: Some(TensorView::new(&confidence, DType::F32, &shape)?),
    };
    let response = || -> Result<Vec<u32>, Error> { Ok(sequence.tokens().read::<u32>(stream)?.split_off(prompt)) };

    let decoder = Decoder::new(device, DType::Bf16, settings.confidence, 1, positions)?;
    decoder.start(stream, &[request], &tokens)?;
    let mut passes = 0;
    loop {
        let progress = decoder.progress(stream)?;
        if progress.requests == 0 {
            break;
        }
        let rows = first_row..length;
        let hidden = transformer.forward(stream, sequence, rows, settings.mask, transformer.dense())?;
        let listed = progress.rows as usize;
        let logits = transformer.logits(stream, &hidden, &decoder.sources()?, listed)?;
        let shape = [u64::from(progress.rows), transformer.config().vocabulary as u64];
        let logits = Logits { values: TensorView::new(&logits, DType::Bf16, &shape)?, gathered: true };
        decoder.step(stream, &logits, &tokens, &trajectory)?;
        passes += 1;
        observe(&response()?);
    }
    if decoder.states(stream)?.iter().any(|state| state.flags & request_flags::ROW_ERROR != 0) {
        return Err(Error::NotFinite { passes });
    }
    let (steps, confidence) = (steps.read::<u32>(stream)?, confidence.read::<f32>(stream)?);
    let written = steps.into_iter().zip(confidence).skip(prompt);
    Ok(Response {
        tokens: response()?,
        passes,
        trajectory: written.map(|(step, sure)| (step != UNWRITTEN).then_some((step, sure))).collect(),
    })
}
