//! One step of sampling: the row kernel and the selection, over logits that lie in memory or in the L2 cache.

use crate::noise::noise;
use kernel_core::{
    Buffer, DType, Device, Error, Stream, TensorView,
    sampling::{Credit, Decoder, Draw, Logits, Order, Request, Room, Rule, Trajectory},
};
use ptx::kernels::sampling::Confidence;

/// Logits that are read in turn where they shall not be in the L2 cache: several times what that holds.
const TURN_BYTES: usize = 256 << 20;

/// Masked positions of a request.
const WINDOW: u32 = 32;

/// The mask token, which no position ever loses here.
const MASK: u32 = 7;

/// No step but the last selects anything, so that every step has the same rows.
const WAIT: Rule = Rule::Dream { order: Order::Surest, epsilon: 1.0 };

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
    /// How tokens are drawn and rows selected, by request in turn.
    pub requests: Vec<(Rule, Draw)>,
    /// Whether every step reads the same logits, which the L2 cache holds if they are few.
    pub warm: bool,
}

/// The cases of the performance page: the vocabularies of Dream and of LLaDA.
pub fn sampling_cases() -> Vec<SamplingCase> {
    let case = |rows, vocab, what, draw: &Draw, warm| {
        let name = format!("sampling {rows} rows {vocab}, {what}{}", if warm { ", in cache" } else { "" });
        SamplingCase { name, rows, vocab, requests: vec![(WAIT, draw.clone())], warm }
    };
    let greedy = Draw::greedy();
    let plain = Draw { temperature: 1.0, ..Draw::greedy() };
    let nucleus = Draw { temperature: 0.2, top_p: 0.95, ..Draw::greedy() };
    let biases = (0..8).map(|i| (18_000 * i + 5, if i == 0 { f32::NEG_INFINITY } else { 0.5 })).collect();
    let biased = Draw { biases, ..Draw::greedy() };
    let credited = Draw { credit: Some(Credit::default()), ..Draw::greedy() };
    let flat = Draw { top_p: 0.95, ..plain.clone() };
    let margin = Draw { confidence: Confidence::Margin, ..nucleus.clone() };
    vec![
        case(1024, 152_064, "greedy", &greedy, false),
        case(1024, 152_064, "T 0.2, top-p 0.95, margin", &margin, false),
        case(1024, 152_064, "T 1", &plain, false),
        case(1024, 152_064, "T 1, top-p 0.95", &flat, false),
        case(32, 152_064, "greedy", &greedy, false),
        case(32, 152_064, "T 0.2, top-p 0.95", &nucleus, false),
        case(32, 152_064, "T 0.2, top-p 0.95", &nucleus, true),
        case(1024, 126_464, "greedy", &greedy, false),
        case(32, 126_464, "T 0.2, top-p 0.95", &nucleus, false),
        case(1024, 152_064, "greedy, 8 biases", &biased, false),
        case(32, 152_064, "greedy, 8 biases", &biased, false),
        case(32, 152_064, "greedy, credits", &credited, false),
        SamplingCase {
            name: "sampling 2048 rows 152064, mixed rules".into(),
            rows: 2048,
            vocab: 152_064,
            requests: mixed_rules(),
            warm: false,
        },
    ]
}

/// Every published rule, each with the draw that its authors use or another that is common.
fn mixed_rules() -> Vec<(Rule, Draw)> {
    let draw = |temperature, top_p, confidence| Draw { temperature, top_p, confidence, ..Draw::greedy() };
    let filtered = |draw| Draw { filtered_confidence: true, ..draw };
    let (probability, margin, entropy) = (Confidence::Probability, Confidence::Margin, Confidence::NegativeEntropy);
    let greedy = Draw::greedy();
    let warm = draw(1.0, 1.0, probability);
    let nucleus = draw(0.2, 0.95, probability);
    let best_50 = Draw { top_k: 50, top_k_first: true, ..draw(1.0, 0.95, probability) };
    let epsilon = 1e-3;
    let noisy = Order::Noisy(0.4);
    vec![
        (Rule::dimple(0.95), nucleus.clone()),
        (Rule::Dimple { threshold: 0.95, order: noisy, epsilon }, draw(0.2, 0.95, margin)),
        (Rule::dream_origin(), nucleus.clone()),
        (Rule::dream(), filtered(nucleus.clone())),
        (Rule::dream(), filtered(draw(0.2, 0.95, margin))),
        (Rule::Dream { order: noisy, epsilon }, filtered(draw(0.2, 0.95, entropy))),
        (Rule::llada(), greedy.clone()),
        (Rule::Llada { order: Order::Random }, warm.clone()),
        (Rule::FastThreshold(0.9), greedy.clone()),
        (Rule::FastFactor(1.0), greedy.clone()),
        (Rule::FastBudget(0.9), filtered(draw(0.1, 0.9, probability))),
        (Rule::DInferThreshold(0.9), greedy.clone()),
        (Rule::hierarchy(0.9), greedy.clone()),
        (Rule::HierarchyRemask { threshold: 0.9, low: 0.4, remask: 0.4 }, greedy.clone()),
        (Rule::Dynamic(0.85), filtered(best_50.clone())),
        (Rule::Llada { order: Order::LeftToRight }, best_50),
        (Rule::EntropyBounded(0.15), greedy.clone()),
        (Rule::EntropyThreshold(0.45), greedy.clone()),
        (Rule::joint_quality(), greedy.clone()),
        (Rule::joint_speed(), greedy),
        (Rule::FirstHitting, warm),
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
        let credits = self.requests.iter().any(|(_, draw)| draw.credit.is_some());
        let decoder = if credits { decoder.with_credits()? } else { decoder };
        let request = |(i, (rule, draw)): (u32, &(Rule, Draw))| {
            let (first, positions) = (WINDOW * i, WINDOW.min(self.rows - WINDOW * i));
            Request {
                rule: *rule,
                steps: if *rule == WAIT { 65_536 } else { WINDOW },
                draw: Draw { stream: i, ..draw.clone() },
                ..Request::greedy(first, 0..positions, first, MASK, 0.0)
            }
        };
        let masks = device.upload(stream, &vec![MASK; self.rows as usize])?;
        let tokens = device.allocate(masks.bytes())?;
        tokens.copy_from(stream, &masks)?;
        let view = TensorView::new(&tokens, DType::U32, &[u64::from(self.rows)])?;
        let batch: Vec<_> = (0..requests).zip(self.requests.iter().cycle()).map(request).collect();
        decoder.start(stream, &batch, &view)?;
        let elements = self.rows as usize * self.vocab as usize;
        let logits = (0..turns).map(|turn| noise(stream, elements, turn as u64 + 1, SPREAD));
        let logits = logits.collect::<Result<_, Error>>()?;
        Ok(PreparedSampling { case: self.clone(), decoder, masks, tokens, logits })
    }
}

/// A case ready to launch.
pub struct PreparedSampling {
    case: SamplingCase,
    decoder: Decoder,
    masks: Buffer,
    tokens: Buffer,
    logits: Vec<Buffer>,
}

impl PreparedSampling {
    /// Steps of a run.
    pub fn turns(&self) -> usize {
        self.logits.len()
    }

    fn tokens(&self) -> Result<TensorView<'_>, Error> {
        TensorView::new(&self.tokens, DType::U32, &[u64::from(self.case.rows)])
    }

    /// Masks every position again, where steps write tokens: before a run.
    ///
    /// # Errors
    /// From the launch.
    pub fn restart(&self, stream: &Stream) -> Result<(), Error> {
        if self.case.requests.iter().all(|(rule, _)| *rule == WAIT) {
            return Ok(());
        }
        self.tokens.copy_from(stream, &self.masks)?;
        self.decoder.restart(stream, &self.tokens()?)
    }

    /// Launches a step over each of the logits in turn.
    ///
    /// # Errors
    /// From the launch.
    pub fn run(&self, stream: &Stream) -> Result<(), Error> {
        let (rows, vocab) = (u64::from(self.case.rows), u64::from(self.case.vocab));
        let tokens = self.tokens()?;
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
        let biases = vec![(3, f32::NEG_INFINITY), (400, 2.0)];
        let other = Draw { biases, credit: Some(Credit::default()), ..Draw::greedy() };
        let requests = vec![(WAIT, draw), (WAIT, other)];
        let case = SamplingCase { name: "a few".into(), rows: 40, vocab: 504, requests, warm: false };
        let prepared = case.prepare_turns(&device, &stream, 2).expect("a valid case");
        assert_eq!((prepared.turns(), case.bytes()), (2, 40_320));
        for _ in 0..2 {
            prepared.restart(&stream).expect("nothing to do");
            prepared.run(&stream).expect("a valid step");
            let progress = prepared.decoder.progress(&stream).expect("readable");
            assert_eq!((progress.rows, progress.requests), (40, 2));
        }
        let statistics = prepared.decoder.statistics(&stream).expect("written");
        assert!(statistics.len() == 40 && statistics.iter().all(|row| row.flags == 0 && row.probability > 0.0));
        let launches = stream.capture(|stream| prepared.run(stream)).expect("steps can be captured").operations();
        assert_eq!(launches, 3 * prepared.turns(), "with credits three launches a step");
    }

    #[test]
    fn mixed_rules_select_and_begin_anew() {
        let device = Device::emulator();
        let stream = Stream::new(&device).expect("a device gives streams");
        let requests = mixed_rules();
        let rows = requests.len() as u32 * WINDOW;
        let case = SamplingCase { name: "all rules".into(), rows, vocab: 64, requests, warm: true };
        let prepared = case.prepare(&device, &stream).expect("a valid case");
        let left = || {
            prepared.restart(&stream).expect("requests that were started");
            assert_eq!(prepared.decoder.progress(&stream).expect("readable").rows, rows);
            prepared.run(&stream).expect("a valid step");
            prepared.decoder.progress(&stream).expect("readable").rows
        };
        let first = left();
        assert!(first < rows - rows / WINDOW / 2, "most rules take a row: {first} of {rows} are left");
        assert_eq!(left(), first);
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
