//! The selection kernel against its definition, step by step; and the two kernels together.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used)]

use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream, device::Plain};
use kernel_tests::{oracle::sampling as oracle, testing};
use ptx::{
    Arch,
    kernels::sampling::{
        Confidence, LogitsType, MAX_WINDOW, RequestState, RowParameters, RowStatistics, STAGING_BYTES, SamplerSpec,
        SelectParameters, SelectionSpec, TOTALS_BYTES, request_flags, row_flags, rule,
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
    trajectory_steps: Buffer,
    trajectory_confidence: Buffer,
    requests: u32,
    capacity: u32,
}

impl Selection {
    fn new(device: &Device, parameters: &[SelectParameters], tokens: &[u32], capacity: u32) -> Selection {
        let stream = Stream::new(device).unwrap();
        let poisoned = |bytes: usize| {
            let buffer = device.allocate(bytes).unwrap();
            buffer.fill(&stream, POISON).unwrap();
            buffer
        };
        let zeros = |bytes: usize| device.upload(&stream, &vec![0u8; bytes]).unwrap();
        let requests = parameters.len();
        Selection {
            kernel: device.load(&ptx::generate(&SelectionSpec { arch: Arch::Sm80 }).unwrap()).unwrap(),
            parameters: device.upload(&stream, parameters).unwrap(),
            states: zeros(requests * size_of::<RequestState>()),
            statistics: poisoned(capacity as usize * size_of::<RowStatistics>()),
            tokens: device.upload(&stream, tokens).unwrap(),
            rows: poisoned(8 * capacity as usize),
            sources: poisoned(4 * capacity as usize),
            totals: zeros(TOTALS_BYTES as usize),
            staging: poisoned(requests * STAGING_BYTES as usize),
            trajectory_steps: poisoned(4 * tokens.len()),
            trajectory_confidence: poisoned(4 * tokens.len()),
            requests: requests as u32,
            capacity,
            stream,
        }
    }

    fn launch(&self, advance: bool) {
        let arguments = Arguments::new(self.kernel.meta())
            .pointer("parameters", self.parameters.address())
            .pointer("states", self.states.address())
            .pointer("statistics", self.statistics.address())
            .pointer("tokens", self.tokens.address())
            .u32("tokens_length", (self.tokens.bytes() / 4) as u32)
            .u32("advance", advance.into())
            .pointer("rows", self.rows.address())
            .pointer("sources", self.sources.address())
            .u32("capacity", self.capacity)
            .pointer("totals", self.totals.address())
            .pointer("staging", self.staging.address())
            .pointer("trajectory_steps", self.trajectory_steps.address())
            .pointer("trajectory_confidence", self.trajectory_confidence.address());
        self.kernel.launch(&self.stream, [self.requests, 1, 1], &arguments).unwrap();
    }

    /// Runs the row kernel on the present list, over the logits of every row of the sequences.
    fn sample(&self, sampler: &LoadedKernel, logits: &Buffer, vocab: u32, parameters: &Buffer) {
        let stride = 4 * u64::from(vocab);
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
            .pointer("statistics", self.statistics.address());
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

/// A batch with every rule, lengths from nothing to a full window, and some positions frozen.
fn mixed_batch(random: &mut StdRng) -> (Vec<SelectParameters>, Vec<u32>) {
    let mut tokens = vec![7; 3];
    let mut parameters = Vec::new();
    for (i, window_length) in [16, 1, 0, 33, MAX_WINDOW, 64, 16, 200, 31].into_iter().enumerate() {
        let first_token = tokens.len() as u32;
        let window_start = (i as u32 * 5) % 11;
        // Masks outside the window stay.
        tokens.extend(vec![MASK; window_start as usize]);
        tokens.extend(
            (0..window_length).map(|_| if random.random_bool(0.2) { random.random_range(0..50) } else { MASK }),
        );
        tokens.extend([MASK, 8]);
        parameters.push(SelectParameters {
            rule: [rule::TOP_K_TIME, rule::THRESHOLD, rule::TOP_K_EVEN][i % 3],
            steps: [16, 5, 8, 12][i % 4],
            threshold: 0.8,
            epsilon: 1e-3,
            mask_token: MASK,
            first_token,
            window_start,
            window_length,
            row_base: (1000 * i as u32).wrapping_sub(1),
            reserved: [0; 3],
        });
    }
    (parameters, tokens)
}

/// What a row kernel might have said of a row: few distinct confidences, so that ties are everywhere; now and then a row
/// without a token, or a drawn mask.
fn any_statistics(random: &mut StdRng) -> RowStatistics {
    RowStatistics {
        token: if random.random_bool(0.02) { MASK } else { random.random_range(0..50) },
        confidence: random.random_range(-1..6) as f32 / 5.0,
        flags: if random.random_bool(0.01) { row_flags::NOT_FINITE } else { 0 },
        ..Default::default()
    }
}

#[test]
fn every_step_equals_the_reference() {
    let seed = testing::seed(7);
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (parameters, tokens) = mixed_batch(&mut random);
    let capacity = parameters.iter().map(|p| p.window_length).sum::<u32>() + 3;
    for device in testing::devices() {
        let kernel = Selection::new(&device, &parameters, &tokens, capacity);
        let mut states = vec![RequestState::default(); parameters.len()];
        let mut expected = tokens.clone();
        let mut rows: Vec<Vec<(u32, RowStatistics)>> = vec![Vec::new(); parameters.len()];
        let mut flagged = 0;
        for launch in 0..20 {
            // The third launch only makes the list again.
            let advance = launch != 0 && launch != 2;
            kernel.launch(advance);
            let mut list = Vec::new();
            for (i, request) in parameters.iter().enumerate() {
                let positions = oracle::select(request, &mut states[i], &mut expected, &rows[i], advance);
                states[i].first_row = list.len() as u32;
                list.extend(positions.into_iter().map(|position| [i as u32, position]));
            }
            assert_eq!(kernel.read::<u32>(&kernel.tokens), expected, "tokens after launch {launch}");
            assert_eq!(kernel.states(), states, "states after launch {launch}");
            assert_eq!(kernel.list(), list, "list after launch {launch}");
            let unfinished = states.iter().filter(|s| s.flags & request_flags::DONE == 0).count() as u32;
            assert_eq!(kernel.read::<u32>(&kernel.totals)[1..3], [unfinished, 0], "totals after launch {launch}");
            let source = |&[i, position]: &[u32; 2]| parameters[i as usize].row_base.wrapping_add(position);
            let mut sources: Vec<u32> = list.iter().map(source).collect();
            sources.resize(capacity as usize, 0);
            assert_eq!(kernel.read::<u32>(&kernel.sources), sources, "sources after launch {launch}");

            let statistics: Vec<RowStatistics> = list.iter().map(|_| any_statistics(&mut random)).collect();
            flagged += statistics.iter().filter(|s| s.flags != 0).count();
            kernel.statistics.write(&kernel.stream, &statistics).unwrap();
            rows = vec![Vec::new(); parameters.len()];
            for (&[request, position], &statistics) in list.iter().zip(&statistics) {
                rows[request as usize].push((position, statistics));
            }
        }
        assert!(flagged > 0 && states.iter().all(|s| s.flags & request_flags::DONE != 0));
        let steps: Vec<u32> = kernel.read(&kernel.trajectory_steps);
        let confidences: Vec<f32> = kernel.read(&kernel.trajectory_confidence);
        for (i, (&before, &after)) in tokens.iter().zip(&expected).enumerate() {
            let written = steps[i] != u32::from_ne_bytes([POISON; 4]);
            assert!(written || before == after, "token {i} changed without a trace");
            let plausible = before == MASK && steps[i] < 16 && (-0.2..=1.0).contains(&confidences[i]);
            assert!(!written || plausible, "token {i}: step {}, confidence {}", steps[i], confidences[i]);
        }
    }
}

#[test]
fn steps_leave_the_published_traces() {
    let request = |rule| SelectParameters {
        rule,
        steps: 16,
        threshold: 1.0,
        epsilon: 1e-3,
        mask_token: MASK,
        window_length: 16,
        ..Default::default()
    };
    for device in testing::devices() {
        let trace = |rule| {
            let kernel = Selection::new(&device, &[request(rule)], &[MASK; 16], 16);
            kernel.statistics.write(&kernel.stream, &[RowStatistics { token: 1, ..Default::default() }; 16]).unwrap();
            let masks = |advance| {
                kernel.launch(advance);
                kernel.states()[0].masks
            };
            [false].into_iter().chain([true; 16]).map(masks).collect::<Vec<u32>>()
        };
        // Dream's schedule moves nothing at first and two at last.
        let dream: Vec<u32> = [16, 16].into_iter().chain((2..16).rev()).chain([0]).collect();
        assert_eq!(trace(rule::TOP_K_TIME), dream);
        // One at a time: evenly, and because no confidence passes the threshold.
        let one: Vec<u32> = (0..=16).rev().collect();
        assert_eq!(trace(rule::TOP_K_EVEN), one);
        assert_eq!(trace(rule::THRESHOLD), one);
    }
}

#[test]
fn what_does_not_fit_is_flagged_and_harms_no_one() {
    let request = |first_token, window_length| SelectParameters {
        rule: rule::TOP_K_EVEN,
        steps: 2,
        mask_token: MASK,
        first_token,
        window_length,
        ..Default::default()
    };
    // Past the end, longer than a window, wrapping; then one that fits, one cut short, one without room in the list.
    let parameters =
        [request(2000, 49), request(0, 1025), request(u32::MAX, 2), request(0, 4), request(4, 8), request(12, 4)];
    for device in testing::devices() {
        let kernel = Selection::new(&device, &parameters, &[MASK; 2048], 10);
        kernel.launch(false);
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
    let request = |first_token| SelectParameters {
        rule: rule::TOP_K_EVEN,
        steps: 1,
        mask_token: MASK,
        first_token,
        window_start: 2,
        window_length: 4,
        ..Default::default()
    };
    let parameters = [request(0), request(6), request(12)];
    for device in testing::devices() {
        let step = |tamper: &dyn Fn(&Selection)| {
            let kernel = Selection::new(&device, &parameters, &[MASK; 18], 12);
            kernel.launch(false);
            let drawn: Vec<_> = (1..=12).map(|token| RowStatistics { token, ..Default::default() }).collect();
            kernel.statistics.write(&kernel.stream, &drawn).unwrap();
            tamper(&kernel);
            kernel.launch(true);
            let flags: Vec<u32> = kernel.states().iter().map(|state| state.flags).collect();
            (kernel.read::<u32>(&kernel.tokens), flags)
        };
        let (plain, flags) = step(&|_| ());
        assert_eq!(plain, [MASK, MASK, 1, 2, 3, 4, MASK, MASK, 5, 6, 7, 8, MASK, MASK, 9, 10, 11, 12]);
        let fine = request_flags::STARTED | request_flags::DONE;
        assert_eq!(flags, [fine; 3]);

        let harmless = |tokens: &[u32]| tokens[..6] == plain[..6] && tokens[12..] == plain[12..];
        for (first_row, rows) in [(9, 4), (13, 0), (u32::MAX, 4), (4, u32::MAX), (1 << 24, 4), (4, 1025)] {
            let (tokens, flags) = step(&|kernel| {
                let mut states = kernel.states();
                (states[1].first_row, states[1].rows) = (first_row, rows);
                kernel.states.write(&kernel.stream, &states).unwrap();
            });
            assert!(harmless(&tokens) && tokens[6..12] == [MASK; 6], "{first_row} {rows}: {tokens:?}");
            assert_eq!(flags, [fine, fine | request_flags::BAD_STATE, fine], "{first_row} {rows}");
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
        select.push(SelectParameters {
            rule: [rule::THRESHOLD, rule::TOP_K_EVEN, rule::TOP_K_TIME][i as usize % 3],
            steps,
            threshold: 0.3,
            epsilon: 1e-3,
            mask_token: MASK,
            first_token: i * (prompt + length) + prompt,
            window_length: length,
            // The logits of a sequence row predict the next position.
            row_base: i * (prompt + length) + prompt - 1,
            ..Default::default()
        });
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
        let mut state = RequestState::default();
        let mut list = oracle::select(request, &mut state, &mut expected, &[], false);
        while state.flags & request_flags::DONE == 0 {
            let statistics = |&position: &u32| {
                let at = (request.row_base + position) as usize * vocab;
                let exact: Vec<f64> = logits[at..at + vocab].iter().map(|&l| l.into()).collect();
                let row = oracle::row(&exact, parameters).unwrap();
                let drawn = row.draw(oracle::uniform(parameters, state.step, position));
                let token = if parameters.temperature > 0.0 { drawn } else { row.ranking[0] };
                let confidence = row.confidence(Confidence::Probability, parameters, token) as f32;
                (position, RowStatistics { token: token as u32, confidence, ..Default::default() })
            };
            let rows: Vec<_> = list.iter().map(statistics).collect();
            list = oracle::select(request, &mut state, &mut expected, &rows, true);
        }
    }

    let spec = SamplerSpec { dtype: LogitsType::F32, confidence: Confidence::Probability, arch: Arch::Sm80 };
    for device in testing::devices() {
        let kernel = Selection::new(&device, &select, &tokens, select.len() as u32 * length);
        let sampler = device.load(&ptx::generate(&spec).unwrap()).unwrap();
        let logits = device.upload(&kernel.stream, &logits).unwrap();
        let draw = device.upload(&kernel.stream, &draw).unwrap();
        kernel.launch(false);
        for _ in 0..steps {
            kernel.sample(&sampler, &logits, vocab as u32, &draw);
            kernel.launch(true);
        }
        assert_eq!(kernel.read::<u32>(&kernel.tokens), expected);
        assert_eq!(kernel.read::<u32>(&kernel.totals), [0, 0, 0, 0]);
        assert!(
            kernel.states().iter().all(|s| s.masks == 0 && s.flags == request_flags::STARTED | request_flags::DONE)
        );
    }
}
