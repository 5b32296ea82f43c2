//! The selection kernel against its definition, step by step; and the two kernels together.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used)]

use kernel_core::{
    Arguments, Buffer, DType, Device, LoadedKernel, Stream, TensorView,
    device::Plain,
    sampling::{Decoder, Ending, EndingTime, Logits, Order, Refresh, Request, Room, Rule, Trajectory},
};
use kernel_tests::{
    oracle::sampling as oracle,
    testing::{self, rules::rules},
};
use ptx::{
    Arch,
    kernels::sampling::{
        LogitsType, MAX_WINDOW, OPEN_BYTES, PARTIAL_BYTES, RequestState, RowParameters, RowStatistics, STAGING_BYTES,
        SamplerSpec, SelectParameters, SelectionSpec, TOTALS_BYTES, request_flags, row_flags,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const MASK: u32 = 90;
const POISON: u8 = 0xA5;

/// The kernel with the arrays of a batch of requests.
struct Selection {
    stream: Stream,
    kernel: LoadedKernel,
    parameters: Buffer,
    states: Buffer,
    statistics: Buffer,
    tokens: Buffer,
    rows: Buffer,
    sources: Buffer,
    totals: Buffer,
    staging: Buffer,
    open: Buffer,
    trajectory: [Buffer; 4],
    requests: u32,
    capacity: u32,
}

impl Selection {
    fn new(device: &Device, parameters: &[SelectParameters], tokens: &[u32], capacity: u32) -> Selection {
        let blocks = parameters.iter().map(|p| if p.block_length == 0 { p.window_length } else { p.block_length });
        let window = blocks.max().unwrap_or(0).next_power_of_two().clamp(256, MAX_WINDOW);
        let stream = Stream::new(device).unwrap();
        let poisoned = |bytes: usize| {
            let buffer = device.allocate(bytes).unwrap();
            buffer.fill(&stream, POISON).unwrap();
            buffer
        };
        let zeros = |bytes: usize| device.upload(&stream, &vec![0u8; bytes]).unwrap();
        let requests = parameters.len();
        Selection {
            kernel: device.load(&ptx::generate(&SelectionSpec::of(window, device.arch())).unwrap()).unwrap(),
            parameters: device.upload(&stream, parameters).unwrap(),
            states: zeros(requests * size_of::<RequestState>()),
            statistics: poisoned(capacity as usize * size_of::<RowStatistics>()),
            tokens: device.upload(&stream, tokens).unwrap(),
            rows: poisoned(8 * capacity as usize),
            sources: poisoned(4 * capacity as usize),
            totals: zeros(TOTALS_BYTES as usize),
            staging: poisoned(requests * STAGING_BYTES as usize),
            open: poisoned(requests * OPEN_BYTES as usize),
            trajectory: [(); 4].map(|()| poisoned(4 * tokens.len())),
            requests: requests as u32,
            capacity,
            stream,
        }
    }

    fn launch(&self, advance: bool, refresh: bool) {
        let arguments = Arguments::new(self.kernel.meta())
            .pointer("parameters", self.parameters.address())
            .pointer("states", self.states.address())
            .pointer("statistics", self.statistics.address())
            .pointer("tokens", self.tokens.address())
            .u32("tokens_length", (self.tokens.bytes() / 4) as u32)
            .u32("advance", advance.into())
            .u32("refresh", refresh.into())
            .pointer("rows", self.rows.address())
            .pointer("sources", self.sources.address())
            .u32("capacity", self.capacity)
            .pointer("totals", self.totals.address())
            .pointer("staging", self.staging.address())
            .pointer("open", self.open.address())
            .pointer("trajectory_steps", self.trajectory[0].address())
            .pointer("trajectory_confidence", self.trajectory[1].address())
            .pointer("trajectory_log_probability", self.trajectory[2].address())
            .pointer("trajectory_entropy", self.trajectory[3].address());
        self.kernel.launch(&self.stream, [self.requests, 1, 1], &arguments).unwrap();
    }

    /// Runs the row kernel on the present list, over the logits of every row of the sequences.
    fn sample(&self, sampler: &LoadedKernel, logits: &Buffer, vocab: u32, parameters: &Buffer) {
        let stride = 4 * u64::from(vocab);
        let partials = self.kernel.device().allocate((2 * self.capacity * PARTIAL_BYTES) as usize).unwrap();
        let tickets = self.kernel.device().upload(&self.stream, &vec![0u32; self.capacity as usize]).unwrap();
        let arguments = Arguments::new(sampler.meta())
            .pointer("logits", logits.address())
            .u64("logits_stride", stride)
            .u32("logits_count", (logits.bytes() as u64 / stride) as u32)
            .u32("vocab", vocab)
            .pointer("logits_rows", self.sources.address())
            .pointer("rows", self.rows.address())
            .pointer("totals", self.totals.address())
            .pointer("parameters", parameters.address())
            .pointer("states", self.states.address())
            .u32("requests", self.requests)
            .pointer("statistics", self.statistics.address())
            .pointer("partials", partials.address())
            .pointer("tickets", tickets.address())
            .pointer("biases", 0)
            .u32("biases_length", 0)
            .pointer("credits", 0)
            .u32("credit_window", 0)
            .u32("credit_pass", 0)
            .u32("entropies", 0)
            .u32("first_token", 0)
            .u32("row_vocab", vocab)
            .u32("records", 2);
        sampler.launch(&self.stream, [self.capacity, 1, 1], &arguments).unwrap();
    }

    fn read<T: Plain>(&self, buffer: &Buffer) -> Vec<T> {
        buffer.read(&self.stream).unwrap()
    }

    fn states(&self) -> Vec<RequestState> {
        self.read(&self.states)
    }

    /// The list as (request, position).
    fn list(&self) -> Vec<[u32; 2]> {
        let rows: Vec<u32> = self.read(&self.rows);
        let count = self.read::<u32>(&self.totals)[0] as usize;
        rows.chunks(2).take(count).map(|pair| [pair[0], pair[1]]).collect()
    }
}

/// A batch of the requests, over windows of any length, some positions given, in blocks of any length; and its tokens.
fn batch(
    random: &mut StdRng,
    requests: Vec<Request>,
    lengths: &[u32],
    blocks: &[u32],
) -> (Vec<SelectParameters>, Vec<u32>) {
    let mut tokens = vec![7; 3];
    let mut parameters = Vec::new();
    for (i, request) in requests.into_iter().enumerate() {
        let (length, start) = (lengths[i % lengths.len()], (i as u32 * 5) % 11);
        let first_token = tokens.len() as u32;
        // Masks outside the window stay.
        tokens.extend(vec![MASK; start as usize]);
        tokens.extend((0..length).map(|_| if random.random_bool(0.2) { random.random_range(0..50) } else { MASK }));
        tokens.extend([MASK, 8]);
        let request = Request {
            first_token,
            window: start..start + length,
            block: blocks[i % blocks.len()],
            row_base: (1000 * i as u32).wrapping_sub(1),
            refresh: Refresh { steps: [0, 1, 0, 2][i % 4], every: [0, 0, 0, 0, 3][i % 5] },
            ..request
        };
        parameters.push(request.select_parameters());
    }
    (parameters, tokens)
}

/// What a row kernel might have said of a row: few distinct confidences, so that ties are everywhere; now and then a row
/// without a token, or a drawn mask, or a confidence that is no probability.
fn any_statistics(random: &mut StdRng) -> RowStatistics {
    let wild = [f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e30, -1e-40, f32::MAX];
    RowStatistics {
        token: if random.random_bool(0.05) { MASK } else { random.random_range(0..50) },
        confidence: match random.random_range(0..50) {
            0 => wild[random.random_range(0..wild.len())],
            1..=9 => random.random(),
            _ => random.random_range(-1..6) as f32 / 5.0,
        },
        negative_entropy: -(random.random_range(0..40) as f32) / 64.0,
        logit: random.random_range(0.0..9.0),
        lse: 9.5,
        flags: if random.random_bool(0.01) { row_flags::NOT_FINITE } else { 0 },
        ..Default::default()
    }
}

/// What became of a batch.
#[derive(Debug, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    states: Vec<RequestState>,
}

/// Decodes a batch launch by launch; after each, everything is as the definitions say.
fn decode_as_defined(
    device: &Device,
    parameters: &[SelectParameters],
    tokens: &[u32],
    say: &mut dyn FnMut(&SelectParameters, &RequestState, u32) -> RowStatistics,
) -> Outcome {
    let block = |p: &SelectParameters| if p.block_length == 0 { p.window_length } else { p.block_length };
    let capacity = parameters.iter().map(block).sum::<u32>() + 3;
    let kernel = Selection::new(device, parameters, tokens, capacity);
    let mut requests: Vec<_> = parameters.iter().map(|&parameters| oracle::Selection::new(parameters)).collect();
    let mut expected = tokens.to_vec();
    let mut rows: Vec<Vec<(u32, RowStatistics)>> = vec![Vec::new(); requests.len()];
    let poison = u32::from_ne_bytes([POISON; 4]);
    let mut trajectory = [(); 4].map(|()| vec![poison; tokens.len()]);
    for launch in 0.. {
        // The third launch only makes the list again; later on, of four launches one lists those that wait for a refresh, and
        // the next one takes their steps.
        let (advance, refresh) = match launch {
            0 | 2 => (false, false),
            4.. if launch % 4 == 0 => (false, true),
            _ => (true, launch > 4 && launch % 4 == 1),
        };
        kernel.launch(advance, refresh);
        let (mut list, mut sources) = (Vec::new(), Vec::new());
        for (i, request) in requests.iter_mut().enumerate() {
            let selected = request.launch(&mut expected, &rows[i], advance, refresh);
            request.state.first_row = list.len() as u32;
            sources.extend(selected.listed.iter().map(|p| request.parameters.row_base.wrapping_add(*p)));
            list.extend(selected.listed.into_iter().map(|position| [i as u32, position]));
            for (position, step, row) in selected.written {
                let figures = [row.confidence, row.logit - row.lse, 0.0 - row.negative_entropy].map(f32::to_bits);
                let at = (request.parameters.first_token + position) as usize;
                trajectory[0][at] = step;
                for (array, figure) in trajectory[1..].iter_mut().zip(figures) {
                    array[at] = figure;
                }
            }
        }
        for (i, state) in kernel.states().iter().enumerate() {
            let p = &parameters[i];
            assert_eq!(*state, requests[i].state, "state {i} after launch {launch}: {p:?}");
            let range = p.first_token as usize..(p.first_token + p.window_start + p.window_length) as usize;
            let found = &kernel.read::<u32>(&kernel.tokens)[range.clone()];
            assert_eq!(found, &expected[range], "tokens of request {i} after launch {launch}: {p:?}");
        }
        assert_eq!(kernel.read::<u32>(&kernel.tokens), expected, "tokens after launch {launch}");
        assert_eq!(kernel.list(), list, "list after launch {launch}");
        let unfinished = requests.iter().filter(|r| r.state.flags & request_flags::DONE == 0).count() as u32;
        let waiting = requests.iter().filter(|r| r.state.flags & request_flags::WAITING != 0).count() as u32;
        let totals = [list.len() as u32, unfinished, 0, waiting];
        assert_eq!(kernel.read::<u32>(&kernel.totals), totals, "totals after launch {launch}");
        sources.resize(capacity as usize, 0);
        assert_eq!(kernel.read::<u32>(&kernel.sources), sources, "sources after launch {launch}");
        if unfinished == 0 {
            break;
        }
        assert!(launch < 2000, "{unfinished} requests never end");
        let mut statistics = Vec::new();
        rows = vec![Vec::new(); requests.len()];
        for &[request, position] in &list {
            let Some(owner) = requests.get(request as usize) else { continue };
            let row = say(&owner.parameters, &owner.state, position);
            statistics.push(row);
            rows[request as usize].push((position, row));
        }
        kernel.statistics.write(&kernel.stream, &statistics).unwrap();
    }
    for (i, array) in trajectory.iter().enumerate() {
        assert_eq!(&kernel.read::<u32>(&kernel.trajectory[i]), array, "trajectory {i}");
    }
    // What is said of the last launch depends on when the others end.
    let states = requests.iter().map(|request| RequestState {
        first_row: 0,
        selected: 0,
        flags: request.state.flags & !request_flags::BLOCK_FINISHED,
        ..request.state
    });
    let states = states.collect();
    Outcome { tokens: expected, states }
}

#[test]
fn every_step_of_every_rule_equals_the_reference() {
    let seed = testing::seed(7);
    println!("seed {seed}");
    for device in testing::devices() {
        for (round, (lengths, blocks)) in [
            (&[16, 1, 33, 64, 0, 100, 31, 256][..], &[0][..]),
            (&[64, 33, 40, 7, 50], &[16, 32, 9]),
            (&[28, 61, 20], &[0, 20, 7, 1]),
        ]
        .into_iter()
        .enumerate()
        {
            let mut random = StdRng::seed_from_u64(seed + round as u64);
            let requests = rules(MASK).into_iter().map(|(_, request)| request).collect();
            let (parameters, tokens) = batch(&mut random, requests, lengths, blocks);
            let mut flagged = 0;
            let outcome = decode_as_defined(&device, &parameters, &tokens, &mut |_, _, _| {
                let statistics = any_statistics(&mut random);
                flagged += statistics.flags;
                statistics
            });
            let errors = outcome.states.iter().filter(|state| state.flags & request_flags::ROW_ERROR != 0).count();
            assert!(flagged > 0 && errors > 0);
            // Only what was masked inside a window has changed.
            let mut open = vec![false; tokens.len()];
            for p in &parameters {
                let start = (p.first_token + p.window_start) as usize;
                open[start..start + p.window_length as usize].fill(true);
            }
            for (i, (before, after)) in tokens.iter().zip(&outcome.tokens).enumerate() {
                assert!(before == after || *before == MASK && open[i], "token {i} was {before}, is {after}");
            }
        }
    }
}

/// The widest windows, which take the kernels of 512 and of 1024 threads.
#[test]
fn long_blocks_equal_the_reference() {
    let seed = testing::seed(8);
    println!("seed {seed}");
    for device in testing::devices() {
        for length in [257, MAX_WINDOW] {
            let mut random = StdRng::seed_from_u64(seed);
            let request = |rule| Request { steps: 3, rule, ..Request::greedy(0, 0..0, 0, MASK, 0.5) };
            let requests = [
                Rule::dream(),
                Rule::FastFactor(1.0),
                Rule::Hierarchy { threshold: 0.9, low: 0.1 },
                Rule::EntropyBounded(3.0),
            ];
            let requests = requests.map(request).into();
            let (parameters, tokens) = batch(&mut random, requests, &[length, length - 1], &[0]);
            decode_as_defined(&device, &parameters, &tokens, &mut |_, _, _| any_statistics(&mut random));
        }
    }
}

/// What a row kernel would say that knows only the request, its step and the position.
fn own_statistics(request: &SelectParameters, state: &RequestState, position: u32) -> RowStatistics {
    let mix = [request.stream, request.rule, request.steps, state.step, position];
    let seed = mix.into_iter().fold(1u64, |seed, word| (seed ^ u64::from(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    any_statistics(&mut StdRng::seed_from_u64(seed))
}

#[test]
fn a_request_does_not_see_its_neighbours() {
    let seed = testing::seed(12);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let requests = rules(MASK).into_iter().map(|(_, request)| request).collect();
    let (parameters, tokens) = batch(&mut random, requests, &[48, 21, 64], &[0, 16]);
    let device = Device::emulator();
    let together = decode_as_defined(&device, &parameters, &tokens, &mut own_statistics);
    for (i, request) in parameters.iter().enumerate().step_by(3) {
        let alone = decode_as_defined(&device, std::slice::from_ref(request), &tokens, &mut own_statistics);
        assert_eq!(alone.states[0], together.states[i], "{request:?}");
        let end = (request.first_token + request.window_start + request.window_length) as usize;
        let own = request.first_token as usize..end;
        assert_eq!(alone.tokens[own.clone()], together.tokens[own], "{request:?}");
    }
}

/// Masks left after each launch of one request whose confidences are all alike.
fn trace(device: &Device, request: &Request, launches: usize) -> Vec<u32> {
    let request = Request { row_base: 0, ..request.clone() };
    let length = request.window.len();
    let kernel = Selection::new(device, &[request.select_parameters()], &vec![MASK; length], length as u32);
    kernel.statistics.write(&kernel.stream, &vec![RowStatistics { token: 1, ..Default::default() }; length]).unwrap();
    let mut masks = |advance| {
        kernel.launch(advance, false);
        kernel.states()[0].masks
    };
    std::iter::once(false).chain(vec![true; launches]).map(&mut masks).collect()
}

#[test]
fn steps_leave_the_published_traces() {
    let request = |rule| Request { rule, ..Request::greedy(0, 0..16, 0, MASK, 1.0) };
    let one: Vec<u32> = (0..=16).rev().collect();
    for device in testing::devices() {
        // Dream's schedule moves nothing at first and two at last.
        let dream: Vec<u32> = [16, 16].into_iter().chain((2..16).rev()).chain([0]).collect();
        assert_eq!(trace(&device, &request(Rule::dream()), 16), dream);
        // Dimple's skips what moves nothing, and is done after fifteen.
        let dimple: Vec<u32> = (2..=16).rev().chain([0, 0]).collect();
        assert_eq!(trace(&device, &request(Rule::dimple(1.0)), 16), dimple);
        // One at a time: evenly, by count, and because no confidence passes the threshold.
        for rule in [
            Rule::llada(),
            Rule::Llada { order: Order::LeftToRight },
            Rule::FirstHitting,
            Rule::Threshold(1.0),
            Rule::FastThreshold(1.0),
            Rule::Hierarchy { threshold: 1.0, low: 1.0 },
        ] {
            assert_eq!(trace(&device, &request(rule), 16), one, "{rule:?}");
        }
    }
}

/// With 1000 masks and more, a single one left is less than ε of them: the published code fails there.
#[test]
fn the_last_of_a_thousand_masks_is_no_error() {
    for device in testing::devices() {
        for length in [1000, 1024] {
            let request =
                Request { steps: 2000, rule: Rule::dimple(0.5), ..Request::greedy(0, 0..length, 0, MASK, 1.0) };
            let mut random = StdRng::seed_from_u64(3);
            // All but one at the first step.
            let mut first = true;
            let mut say = |_: &SelectParameters, state: &RequestState, position: u32| {
                first &= state.step == 0;
                let sure = if first && position != 77 { 0.9 } else { 0.1 };
                RowStatistics { token: random.random_range(0..50), confidence: sure, ..Default::default() }
            };
            let tokens = vec![MASK; length as usize];
            let outcome = decode_as_defined(&device, &[request.select_parameters()], &tokens, &mut say);
            assert_eq!((outcome.states[0].masks, outcome.states[0].step), (0, 2));
        }
    }
}

/// Blocks follow each other on the device; the engine reads where the next one is, and that one is finished.
#[test]
fn blocks_follow_each_other() {
    let request = Request { block: 4, steps: 2, rule: Rule::llada(), ..Request::greedy(0, 2..13, 0, MASK, 0.0) };
    // The second block is given.
    let mut tokens = vec![MASK; 14];
    tokens[6..10].fill(3);
    for device in testing::devices() {
        let kernel = Selection::new(&device, &[request.select_parameters()], &tokens, 4);
        let said = [RowStatistics { token: 1, confidence: 0.5, ..Default::default() }; 4];
        kernel.statistics.write(&kernel.stream, &said).unwrap();
        let mut seen = Vec::new();
        for launch in 0..6 {
            kernel.launch(launch > 0, false);
            let state = kernel.states()[0];
            let flag = |flag| state.flags & flag != 0;
            let finished = flag(request_flags::BLOCK_FINISHED).then_some(state.previous_block_start);
            seen.push((state.block_start, state.block_length, finished, state.masks, flag(request_flags::DONE)));
        }
        let expected = [
            (2, 4, None, 4, false),
            (2, 4, None, 2, false),
            (10, 3, Some(2), 3, false),
            (10, 3, None, 1, false),
            (10, 3, Some(10), 0, true),
            (10, 3, None, 0, true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(kernel.read::<u32>(&kernel.tokens), [MASK, MASK, 1, 1, 1, 1, 3, 3, 3, 3, 1, 1, 1, MASK]);
        assert_eq!(kernel.states()[0].step, 4);
    }
}

#[test]
fn responses_end_at_their_first_end_token() {
    let request = |when, rule| Request {
        ending: Some(Ending { tokens: vec![40, 41], fill: 9, when }),
        block: 4,
        steps: 4,
        rule,
        ..Request::greedy(0, 0..10, 0, MASK, 0.0)
    };
    let left_to_right = Rule::Llada { order: Order::LeftToRight };
    // Position 0 holds an end token that was given, position 5 another token.
    let given = |tokens: &mut Vec<u32>| (tokens[0], tokens[5], tokens[9]) = (40, 3, 4);
    for device in testing::devices() {
        let decode = |when, rule, ends_at: u32, sure: &dyn Fn(u32) -> f32| {
            let mut tokens = vec![MASK; 10];
            given(&mut tokens);
            let mut say = |_: &SelectParameters, _: &RequestState, position: u32| RowStatistics {
                token: if position == ends_at { 41 } else { position },
                confidence: sure(position),
                ..Default::default()
            };
            let outcome = decode_as_defined(&device, &[request(when, rule).select_parameters()], &tokens, &mut say);
            (outcome.tokens, outcome.states[0].step, outcome.states[0].flags & request_flags::ENDED != 0)
        };
        let alike = |_: u32| 0.5;
        let (tokens, steps, ended) = decode(EndingTime::EveryStep, left_to_right, 2, &alike);
        assert_eq!((tokens, steps, ended), (vec![40, 1, 41, 9, 9, 3, 9, 9, 9, 4], 2, true));
        let (tokens, steps, ended) = decode(EndingTime::EndOfBlock, left_to_right, 2, &alike);
        assert_eq!((tokens, steps, ended), (vec![40, 1, 41, 9, 9, 3, 9, 9, 9, 4], 3, true), "what was decoded too");
        // The last comes first: it ends nothing before the masks ahead of it are gone.
        let last_first = |position: u32| position as f32 / 10.0;
        let (_, steps, ended) = decode(EndingTime::EveryStep, Rule::Threshold(1.0), 3, &last_first);
        assert_eq!((steps, ended), (3, true));
        let (tokens, _, ended) = decode(EndingTime::EveryStep, left_to_right, 99, &alike);
        assert_eq!((tokens, ended), (vec![40, 1, 2, 3, 4, 3, 6, 7, 8, 4], false));
    }
}

/// A token that the caller writes between two steps is no row any more, and takes nobody's place.
#[test]
fn tokens_pinned_between_steps_are_passed_over() {
    let request = Request { steps: 8, rule: Rule::Threshold(1.0), ..Request::greedy(0, 0..4, 0, MASK, 1.0) };
    for device in testing::devices() {
        let kernel = Selection::new(&device, &[request.select_parameters()], &[MASK; 4], 4);
        kernel.launch(false, false);
        let said: Vec<_> = (0..4)
            .map(|i| RowStatistics { token: i, confidence: 1.0 - i as f32 / 10.0, ..Default::default() })
            .collect();
        kernel.statistics.write(&kernel.stream, &said).unwrap();
        kernel.tokens.write(&kernel.stream, &[33, MASK, MASK, MASK]).unwrap();
        kernel.launch(true, false);
        assert_eq!(kernel.read::<u32>(&kernel.tokens), [33, 1, MASK, MASK]);
        assert_eq!((kernel.states()[0].masks, kernel.states()[0].flags), (2, request_flags::STARTED));
    }
}

#[test]
fn what_does_not_fit_is_flagged_and_harms_no_one() {
    let request = |first_token, length| Request {
        steps: 2,
        rule: Rule::llada(),
        ..Request::greedy(first_token, 0..length, 0, MASK, 0.0)
    };
    // Past the end, longer than a window, wrapping; then one that fits, one cut short, one without room in the list.
    let parameters =
        [request(2000, 49), request(0, 1025), request(u32::MAX, 2), request(0, 4), request(4, 8), request(12, 4)]
            .map(|request| request.select_parameters());
    for device in testing::devices() {
        let kernel = Selection::new(&device, &parameters, &[MASK; 2048], 10);
        kernel.launch(false, false);
        let bad = request_flags::STARTED | request_flags::DONE | request_flags::BAD_WINDOW;
        let fine = request_flags::STARTED;
        let short = request_flags::STARTED | request_flags::LIST_OVERFLOW;
        let states = kernel.states();
        assert_eq!(states.iter().map(|s| s.flags).collect::<Vec<_>>(), [bad, bad, bad, fine, short, short]);
        assert_eq!(states.iter().map(|s| s.rows).collect::<Vec<_>>(), [0, 0, 0, 4, 6, 0]);
        let list = (0..4).map(|i| [3, i]).chain((0..6).map(|i| [4, i])).collect::<Vec<_>>();
        assert_eq!(kernel.list(), list);
        assert_eq!(kernel.read::<u32>(&kernel.tokens), [MASK; 2048]);
    }
}

/// The arrays between the launches are the kernels' own, but nothing keeps others from writing them.
#[test]
fn wild_states_and_positions_select_nothing() {
    let request =
        |first_token| Request { steps: 1, rule: Rule::llada(), ..Request::greedy(first_token, 2..6, 0, MASK, 0.0) };
    let parameters = [0, 6, 12].map(|first_token| request(first_token).select_parameters());
    for device in testing::devices() {
        let step = |tamper: &dyn Fn(&Selection)| {
            let kernel = Selection::new(&device, &parameters, &[MASK; 18], 12);
            kernel.launch(false, false);
            let drawn: Vec<_> = (1..=12).map(|token| RowStatistics { token, ..Default::default() }).collect();
            kernel.statistics.write(&kernel.stream, &drawn).unwrap();
            tamper(&kernel);
            kernel.launch(true, false);
            let flags: Vec<u32> = kernel.states().iter().map(|state| state.flags).collect();
            (kernel.read::<u32>(&kernel.tokens), flags)
        };
        let (plain, flags) = step(&|_| ());
        assert_eq!(plain, [MASK, MASK, 1, 2, 3, 4, MASK, MASK, 5, 6, 7, 8, MASK, MASK, 9, 10, 11, 12]);
        const STARTED: u32 = request_flags::STARTED;
        let fine = STARTED | request_flags::DONE | request_flags::BLOCK_FINISHED;
        assert_eq!(flags, [fine; 3]);

        let harmless = |tokens: &[u32]| tokens[..6] == plain[..6] && tokens[12..] == plain[12..];
        for (first_row, rows) in [(9, 4), (13, 0), (u32::MAX, 4), (4, u32::MAX), (1 << 24, 4), (4, 1025)] {
            let (tokens, flags) = step(&|kernel| {
                let mut states = kernel.states();
                (states[1].first_row, states[1].rows) = (first_row, rows);
                kernel.states.write(&kernel.stream, &states).unwrap();
            });
            assert!(harmless(&tokens) && tokens[6..12] == [MASK; 6], "{first_row} {rows}: {tokens:?}");
            assert_eq!(flags, [fine, STARTED | request_flags::BAD_STATE, fine], "{first_row} {rows}");
        }
        for block_start in [0, 1, 6, u32::MAX] {
            let (tokens, flags) = step(&|kernel| {
                let mut states = kernel.states();
                states[1].block_start = block_start;
                kernel.states.write(&kernel.stream, &states).unwrap();
            });
            assert!(harmless(&tokens) && tokens[6..12] == [MASK; 6], "{block_start}: {tokens:?}");
            assert_eq!(flags, [fine, STARTED | request_flags::BAD_STATE, fine], "{block_start}");
        }
        // Inside the tokens but another's; far outside.
        for position in [0, 1, 6, 8, 1 << 24, u32::MAX] {
            let (tokens, flags) = step(&|kernel| {
                let mut rows: Vec<u32> = kernel.read(&kernel.rows);
                rows[2 * 5 + 1] = position;
                kernel.rows.write(&kernel.stream, &rows).unwrap();
            });
            assert!(harmless(&tokens) && tokens[6..12] == [MASK, MASK, 5, MASK, 7, 8], "{position}: {tokens:?}");
            assert_eq!(flags, [fine, fine | request_flags::ROW_ERROR, fine], "{position}");
        }
    }
}

/// Decodes a batch as an engine would, without looking at anything in between, and as the definitions say.
#[test]
fn both_kernels_decode_a_batch() {
    let seed = testing::seed(9);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (vocab, prompt, length, steps) = (40, 5, 24, 10);
    let (mut select, mut draw) = (Vec::new(), Vec::new());
    for i in 0..4 {
        let first_token = i * (prompt + length) + prompt;
        // The logits of a sequence row predict the next position.
        let request = Request {
            rule: [Rule::Threshold(0.3), Rule::llada(), Rule::dream()][i as usize % 3],
            steps,
            ..Request::greedy(first_token, 0..length, first_token - 1, MASK, 0.3)
        };
        select.push(request.select_parameters());
        let temperature = [0.0, 0.7, 1.0, 1.5][i as usize];
        draw.push(RowParameters {
            temperature,
            top_p: 0.9,
            top_k: 12,
            seed_low: 5,
            stream: 70 + i,
            ..Default::default()
        });
    }
    let rows = select.len() * (prompt + length) as usize;
    let logits: Vec<f32> = (0..rows * vocab).map(|_| random.random_range(-3.0..3.0)).collect();
    let mut tokens = vec![MASK; rows];
    for request in &select {
        tokens[request.first_token as usize + 3] = 1;
    }

    let mut expected = tokens.clone();
    for (request, parameters) in select.iter().zip(&draw) {
        let mut selection = oracle::Selection::new(*request);
        let mut list = selection.launch(&mut expected, &[], false, false).listed;
        while selection.state.flags & request_flags::DONE == 0 {
            let step = selection.state.step;
            let statistics = |&position: &u32| {
                let at = (request.row_base + position) as usize * vocab;
                let exact: Vec<f64> = logits[at..at + vocab].iter().map(|&l| l.into()).collect();
                let row = oracle::row(&exact, parameters).unwrap();
                let drawn = row.draw(oracle::uniforms(parameters, step, position), vocab);
                let token = if parameters.temperature > 0.0 { drawn } else { row.ranking[0] };
                let confidence = row.confidence(parameters, token) as f32;
                (position, RowStatistics { token: token as u32, confidence, ..Default::default() })
            };
            let rows: Vec<_> = list.iter().map(statistics).collect();
            list = selection.launch(&mut expected, &rows, true, false).listed;
        }
    }

    let spec = SamplerSpec { dtype: LogitsType::F32, guided: false, arch: Arch::Sm80 };
    for device in testing::devices() {
        let kernel = Selection::new(&device, &select, &tokens, select.len() as u32 * length);
        let sampler = device.load(&ptx::generate(&spec).unwrap()).unwrap();
        let logits = device.upload(&kernel.stream, &logits).unwrap();
        let draw = device.upload(&kernel.stream, &draw).unwrap();
        kernel.launch(false, false);
        for _ in 0..steps {
            kernel.sample(&sampler, &logits, vocab as u32, &draw);
            kernel.launch(true, false);
        }
        assert_eq!(kernel.read::<u32>(&kernel.tokens), expected);
        assert_eq!(kernel.read::<u32>(&kernel.totals), [0, 0, 0, 0]);
        assert!(kernel.states().iter().all(|s| s.masks == 0
            && s.flags & !request_flags::BLOCK_FINISHED == request_flags::STARTED | request_flags::DONE));
    }
}

/// The decoder of an engine, with requests of different rules, block by block: it does what the kernels do.
#[test]
fn a_decoder_takes_requests_through_their_blocks() {
    let seed = testing::seed(10);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (vocab, length) = (30, 20);
    let rules = [Rule::FastThreshold(0.2), Rule::llada(), Rule::hierarchy(0.3), Rule::joint_speed()];
    let requests: Vec<Request> = rules
        .into_iter()
        .enumerate()
        .map(|(i, rule)| Request {
            block: [8, 0, 5, 20][i],
            steps: 6,
            rule,
            exclude_mask: true,
            ..Request::greedy(i as u32 * length, 0..length, i as u32 * length, MASK, 0.0)
        })
        .collect();
    let rows = requests.len() * length as usize;
    let logits: Vec<f32> = (0..rows * vocab).map(|_| random.random_range(-2.0..2.0)).collect();
    let tokens: Vec<u32> = (0..rows).map(|i| if i % 7 == 3 { 1 } else { MASK }).collect();

    let mut expected = tokens.clone();
    let greedy = RowParameters { top_p: 1.0, ..RowParameters::default() };
    for request in &requests {
        let mut selection = oracle::Selection::new(request.select_parameters());
        let mut list = selection.launch(&mut expected, &[], false, false).listed;
        while selection.state.flags & request_flags::DONE == 0 {
            let statistics = |&position: &u32| {
                let at = (request.row_base + position) as usize * vocab;
                let exact: Vec<f64> = logits[at..at + vocab].iter().map(|&l| l.into()).collect();
                let row = oracle::row(&exact, &greedy).unwrap();
                let token = row.ranking[0];
                let confidence = row.confidence(&greedy, token) as f32;
                (position, RowStatistics { token: token as u32, confidence, ..Default::default() })
            };
            let rows: Vec<_> = list.iter().map(statistics).collect();
            list = selection.launch(&mut expected, &rows, true, false).listed;
        }
    }

    for device in testing::devices() {
        let stream = Stream::new(&device).unwrap();
        let room = Room { requests: requests.len() as u32, block: length, rows: rows as u32, vocab: vocab as u32 };
        let decoder = Decoder::new(&device, DType::F32, room).unwrap();
        let tokens = device.upload(&stream, &tokens).unwrap();
        let view = TensorView::new(&tokens, DType::U32, &[rows as u64]).unwrap();
        let logits = device.upload(&stream, &logits).unwrap();
        let values = TensorView::new(&logits, DType::F32, &[rows as u64, vocab as u64]).unwrap();
        decoder.start(&stream, &requests, &view).unwrap();
        let mut steps = 0;
        while decoder.progress(&stream).unwrap().requests > 0 {
            let logits = Logits { values, gathered: false, guide_offset: 0 };
            decoder.step(&stream, &logits, &view, &Trajectory::default()).unwrap();
            steps += 1;
        }
        assert_eq!(tokens.read::<u32>(&stream).unwrap(), expected);
        assert!(steps > 6, "blocks take steps each, found {steps}");
    }
}
