//! One step of sampling: the row kernel and the selection, over logits that lie in memory or in the L2 cache.

use crate::noise::noise;
use kernel_core::{
    Buffer, DType, Device, Error, Stream, TensorView,
    sampling::{Decoder, Draw, Logits, Order, Request, Room, Rule, Trajectory},
};
use ptx::kernels::sampling::Confidence;

/// Logits that are read in turn where they shall not be in the L2 cache: several times what that holds.
const TURN_BYTES: usize = 256 << 20;

/// Masked positions of a request.
const WINDOW: u32 = 32;

/// The mask token, which no position ever loses here.
const MASK: u32 = 7;

/// How logits are spread: the standard deviation of a normal distribution.
const SPREAD: f32 = 4.0;

/// One step: as many masked positions, bf16 logits.
#[derive(Clone, Debug)]
pub struct SamplingCase {
    /// Name, the same as peers print.
    pub name: String,
    /// Masked positions.
    pub rows: u32,
    /// Tokens of a row.
    pub vocab: u32,
    /// How they are drawn.
    pub draw: Draw,
    /// Whether every step reads the same logits, which the L2 cache holds if they are few.
    pub warm: bool,
}

/// The cases of the performance page: the vocabularies of Dream and of LLaDA.
pub fn sampling_cases() -> Vec<SamplingCase> {
    let case = |rows, vocab, what, draw: &Draw, warm| {
        let name = format!("sampling {rows} rows {vocab}, {what}{}", if warm { ", in cache" } else { "" });
        SamplingCase { name, rows, vocab, draw: draw.clone(), warm }
    };
    let greedy = Draw::greedy();
    let plain = Draw { temperature: 1.0, ..Draw::greedy() };
    let nucleus = Draw { temperature: 0.2, top_p: 0.95, ..Draw::greedy() };
    let margin = Draw { confidence: Confidence::Margin, ..nucleus.clone() };
    vec![
        case(1024, 152_064, "greedy", &greedy, false),
        case(1024, 152_064, "T 0.2, top-p 0.95, margin", &margin, false),
        case(1024, 152_064, "T 1", &plain, false),
        case(32, 152_064, "greedy", &greedy, false),
        case(32, 152_064, "T 0.2, top-p 0.95", &nucleus, false),
        case(32, 152_064, "T 0.2, top-p 0.95", &nucleus, true),
        case(1024, 126_464, "greedy", &greedy, false),
        case(32, 126_464, "T 0.2, top-p 0.95", &nucleus, false),
    ]
}

impl SamplingCase {
    /// Bytes of the logits of a step.
    pub fn bytes(&self) -> usize {
        2 * self.rows as usize * self.vocab as usize
    }

    /// Allocates and fills the logits, loads the kernels, and starts the requests.
    ///
    /// # Errors
    /// From the device.
    pub fn prepare(&self, device: &Device, stream: &Stream) -> Result<PreparedSampling, Error> {
        self.prepare_turns(device, stream, if self.warm { 1 } else { TURN_BYTES.div_ceil(self.bytes()) })
    }

    fn prepare_turns(&self, device: &Device, stream: &Stream, turns: usize) -> Result<PreparedSampling, Error> {
        let requests = self.rows.div_ceil(WINDOW);
        let room = Room { requests, block: WINDOW, rows: self.rows, vocab: self.vocab };
        let decoder = Decoder::new(device, DType::Bf16, room)?;
        let request = |i: u32| {
            let (first, positions) = (WINDOW * i, WINDOW.min(self.rows - WINDOW * i));
            Request {
                // No step but the last selects anything: so every step has the same rows.
                rule: Rule::Dream { order: Order::Surest, epsilon: 1.0 },
                steps: 65_536,
                draw: Draw { stream: i, ..self.draw.clone() },
                ..Request::greedy(first, 0..positions, first, MASK, 0.0)
            }
        };
        let tokens = device.upload(stream, &vec![MASK; self.rows as usize])?;
        let view = TensorView::new(&tokens, DType::U32, &[u64::from(self.rows)])?;
        decoder.start(stream, &(0..requests).map(request).collect::<Vec<_>>(), &view)?;
        let elements = self.rows as usize * self.vocab as usize;
        let logits = (0..turns).map(|turn| noise(stream, elements, turn as u64 + 1, SPREAD));
        let logits = logits.collect::<Result<_, Error>>()?;
        Ok(PreparedSampling { case: self.clone(), decoder, tokens, logits })
    }
}

/// A case ready to launch.
pub struct PreparedSampling {
    case: SamplingCase,
    decoder: Decoder,
    tokens: Buffer,
    logits: Vec<Buffer>,
}

impl PreparedSampling {
    /// Steps of a run.
    pub fn turns(&self) -> usize {
        self.logits.len()
    }

    /// Launches a step over each of the logits in turn.
    ///
    /// # Errors
    /// From the launch.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        let (rows, vocab) = (u64::from(self.case.rows), u64::from(self.case.vocab));
        let tokens = TensorView::new(&self.tokens, DType::U32, &[rows])?;
        self.logits.iter().try_for_each(|logits| {
            let values = TensorView::new(logits, DType::Bf16, &[rows, vocab])?;
            let logits = Logits { values, gathered: true, guide_offset: 0 };
            self.decoder.step(stream, &logits, &tokens, &Trajectory::default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_step_samples_every_row_again_and_again() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let draw = Draw { temperature: 0.2, top_p: 0.95, ..Draw::greedy() };
        let case = SamplingCase { name: "a few".into(), rows: 40, vocab: 504, draw, warm: false };
        let prepared = case.prepare_turns(&device, &stream, 2).expect("a valid case");
        assert_eq!((prepared.turns(), case.bytes()), (2, 40_320));
        for _ in 0..2 {
            prepared.run(&stream).expect("a valid step");
            let progress = prepared.decoder.progress(&stream).expect("readable");
            assert_eq!((progress.rows, progress.requests), (40, 2));
        }
        let statistics = prepared.decoder.statistics(&stream).expect("written");
        assert!(statistics.len() == 40 && statistics.iter().all(|row| row.flags == 0 && row.probability > 0.0));
        let launches = stream.capture(|stream| prepared.run(stream)).expect("steps can be captured").operations();
        assert_eq!(launches, 2 * prepared.turns(), "two launches a step");
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<String> = sampling_cases().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
