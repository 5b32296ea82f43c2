//! The row kernel and its random numbers against their definitions.

// Helpers too fail by panicking.
#![allow(clippy::unwrap_used)]

mod biases;
mod credits;
mod shards;

use half::{bf16, f16};
use kernel_core::{Arguments, Buffer, Device, LoadedKernel, Stream};
use kernel_tests::{oracle::sampling as oracle, testing};
use ptx::{
    Arch, ParameterKind,
    isa::{B32, B64, Builder, Cache, Launch},
    kernels::sampling::{
        Confidence, LogitsType, PARTIAL_BYTES, RequestState, RowParameters, RowStatistics, SamplerSpec, row_flags,
        sampling_flags,
    },
    tile::philox::philox,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DTYPES: [LogitsType; 3] = [LogitsType::Bf16, LogitsType::F16, LogitsType::F32];

fn generator(default: u64) -> StdRng {
    let seed = testing::seed(default);
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// A row kernel and the place it runs.
struct Sampler {
    device: Device,
    stream: Stream,
    kernel: LoadedKernel,
    spec: SamplerSpec,
}

/// One launch of the row kernel.
struct Batch<'a> {
    /// `[rows, vocab]`, not yet rounded to the kernel's type.
    logits: &'a [f32],
    vocab: usize,
    /// (request, position)
    rows: &'a [[u32; 2]],
    /// Row of the logits, for each entry of `rows`.
    sources: Option<&'a [u32]>,
    parameters: &'a [RowParameters],
    /// Step of each request.
    steps: &'a [u32],
}

/// What the requests of a launch add to logits.
#[derive(Default)]
struct Additions<'a> {
    /// All biases, where the requests say.
    biases: &'a [(u32, f32)],
    /// The credits, and how many positions a request decodes at a time.
    credits: Option<(&'a Buffer, u32)>,
    /// Whether the launch counts credits.
    counts: bool,
    /// Whether it wants the entropies of all rows.
    entropies: bool,
}

impl Sampler {
    fn new(device: &Device, dtype: LogitsType) -> Sampler {
        Sampler::of(device, SamplerSpec { dtype, guided: false, arch: Arch::Sm80 })
    }

    fn of(device: &Device, spec: SamplerSpec) -> Sampler {
        let kernel = ptx::generate(&spec).unwrap();
        Sampler {
            stream: Stream::new(device).unwrap(),
            kernel: device.load(&kernel).unwrap(),
            device: device.clone(),
            spec,
        }
    }

    fn upload_logits(&self, logits: &[f32]) -> Buffer {
        let (device, stream) = (&self.device, &self.stream);
        match self.spec.dtype {
            LogitsType::F32 => device.upload(stream, logits),
            LogitsType::Bf16 => device.upload(stream, &logits.iter().map(|&l| bf16::from_f32(l)).collect::<Vec<_>>()),
            LogitsType::F16 => device.upload(stream, &logits.iter().map(|&l| f16::from_f32(l)).collect::<Vec<_>>()),
        }
        .unwrap()
    }

    /// On so few warps that most of them do several segments, some one.
    fn run(&self, batch: &Batch<'_>) -> Vec<RowStatistics> {
        self.run_with(batch, &Additions::default())
    }

    fn run_with(&self, batch: &Batch<'_>, additions: &Additions<'_>) -> Vec<RowStatistics> {
        let segments = batch.rows.len() as u32 * self.spec.segments(batch.vocab as u32);
        self.run_on(batch, additions, segments.div_ceil(64))
    }

    fn run_on(&self, batch: &Batch<'_>, additions: &Additions<'_>, blocks: u32) -> Vec<RowStatistics> {
        let upload = |words: &[u32]| self.device.upload(&self.stream, words).unwrap();
        let logits = self.upload_logits(batch.logits);
        let rows = upload(&batch.rows.concat());
        let totals = upload(&[batch.rows.len() as u32, 0, 0, 0]);
        let sources = batch.sources.map(upload);
        let parameters = self.device.upload(&self.stream, batch.parameters).unwrap();
        let states: Vec<_> = batch.steps.iter().map(|&step| RequestState { step, ..Default::default() }).collect();
        let states = self.device.upload(&self.stream, &states).unwrap();
        let count = batch.rows.len();
        let records = self.spec.records(batch.vocab as u32);
        let partials = self.device.allocate(count * (records * PARTIAL_BYTES) as usize).unwrap();
        let biases: Vec<u32> = additions.biases.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]).collect();
        let biases = upload(&biases);
        let tickets = upload(&vec![0; count]);
        let statistics = self.device.allocate(batch.rows.len() * size_of::<RowStatistics>()).unwrap();
        statistics.fill(&self.stream, 0xA5).unwrap();
        let arguments = Arguments::new(self.kernel.meta())
            .pointer("logits", logits.address())
            .u64("logits_stride", u64::from(self.spec.dtype.bytes()) * batch.vocab as u64)
            .u32("logits_count", (batch.logits.len() / batch.vocab) as u32)
            .u32("vocab", batch.vocab as u32)
            .pointer("logits_rows", sources.as_ref().map_or(0, Buffer::address))
            .pointer("rows", rows.address())
            .pointer("totals", totals.address())
            .pointer("parameters", parameters.address())
            .pointer("states", states.address())
            .u32("requests", batch.parameters.len() as u32)
            .pointer("statistics", statistics.address())
            .pointer("partials", partials.address())
            .pointer("tickets", tickets.address())
            .pointer("biases", biases.address())
            .u32("biases_length", additions.biases.len() as u32)
            .pointer("credits", additions.credits.map_or(0, |(credits, _)| credits.address()))
            .u32("credit_window", additions.credits.map_or(0, |(_, window)| window))
            .u32("credit_pass", additions.counts.into())
            .u32("entropies", additions.entropies.into())
            .u32("first_token", 0)
            .u32("row_vocab", batch.vocab as u32)
            .u32("records", records);
        // Guiding rows lie behind those that they guide.
        let arguments = if self.spec.guided {
            arguments.u32("guide_offset", (batch.logits.len() / batch.vocab / 2) as u32)
        } else {
            arguments
        };
        self.kernel.launch(&self.stream, [blocks, 1, 1], &arguments).unwrap();
        let left: Vec<u32> = tickets.read(&self.stream).unwrap();
        assert!(left.iter().all(|&ticket| ticket == 0), "tickets are left");
        statistics.read(&self.stream).unwrap()
    }
}

/// The logits as the kernel sees them.
fn rounded(dtype: LogitsType, logits: &[f32]) -> Vec<f64> {
    let (round, largest): (fn(f32) -> f64, f64) = match dtype {
        LogitsType::F32 => (f64::from, f32::MAX.into()),
        LogitsType::Bf16 => (|l| bf16::from_f32(l).to_f64(), bf16::MAX.to_f64()),
        LogitsType::F16 => (|l| f16::from_f32(l).to_f64(), f16::MAX.to_f64()),
    };
    logits.iter().map(|&l| oracle::cleaned(round(l), largest)).collect()
}

fn assert_near(what: &str, value: f32, reference: f64, absolute: f64) {
    // Past the range of single precision both are infinite.
    let reference = if value.is_infinite() { f64::from(reference as f32) } else { reference };
    let error = if f64::from(value) == reference { 0.0 } else { (f64::from(value) - reference).abs() };
    assert!(error <= 1e-5 * reference.abs() + absolute, "{what} is {value}, should be {reference}");
}

/// Checks one row; says whether the filter's boundary was clear enough to check what depends on it.
fn check_row(
    what: &str,
    found: &RowStatistics,
    (logits, changed): (&[f64], &[(usize, f64)]),
    parameters: &RowParameters,
    (step, position): (u32, u32),
    segment: u32,
) -> bool {
    let row = oracle::row_with(logits, changed, parameters).expect("a token");
    assert_eq!(found.flags, 0, "{what}");
    assert_eq!(found.argmax as usize, row.ranking[0], "{what}: argmax");
    assert_eq!(f64::from(found.max), row.logits[row.ranking[0]], "{what}: max");
    let second = row.ranking.get(1).map_or(f64::NEG_INFINITY, |&id| row.logits[id]);
    assert_eq!(f64::from(found.second), second, "{what}: second");
    assert_near(&format!("{what}: lse"), found.lse, row.lse, 1e-6);
    assert_near(&format!("{what}: tempered lse"), found.lse_tempered, row.lse_tempered, 1e-6);
    let spared = parameters.flags & sampling_flags::WITHOUT_ENTROPY != 0;
    let is_confidence = parameters.confidence >= 2 && parameters.flags & sampling_flags::FILTERED_CONFIDENCE == 0;
    let entropy =
        if spared && !is_confidence { f64::NEG_INFINITY } else { oracle::negative_entropy(&row.probabilities) };
    assert_near(&format!("{what}: entropy"), found.negative_entropy, entropy, 1e-9);
    let token = found.token as usize;
    assert_eq!(f64::from(found.logit), row.logits[token], "{what}: logit");
    assert_near(&format!("{what}: probability"), found.probability, row.probabilities[token], 1e-12);
    if row.slack < 1e-6 {
        return false;
    }
    if parameters.temperature > 0.0 {
        let distance = row.distance(token, oracle::uniforms(parameters, step, position), segment as usize);
        assert!(distance < 1e-6, "{what}: drew {token}, {distance:e} away");
    } else {
        assert_eq!(token, row.ranking[0], "{what}: greedy");
    }
    let filtered = found.filtered_probability;
    assert_near(&format!("{what}: filtered probability"), filtered, row.filtered[token], 1e-12);
    let score = row.confidence(parameters, token);
    assert_near(&format!("{what}: confidence {}", parameters.confidence), found.confidence, score, 1e-9);
    true
}

/// Requests by temperature, top-p, top-k, min-p and flags. The kinds of confidence take turns.
fn filtering(seed_low: u32, cases: &[(f32, f32, u32, f32, u32)]) -> Vec<RowParameters> {
    let request = |(stream, &(temperature, top_p, top_k, min_p, flags))| RowParameters {
        temperature,
        top_p,
        top_k,
        min_p,
        flags,
        confidence: stream % 3,
        seed_low,
        stream,
        ..Default::default()
    };
    (0..).zip(cases).map(request).collect()
}

/// Two rows of 9000 tokens with a crowded segment, whose best tokens are elsewhere: some of the crowd is kept, or nothing.
fn crowds(random: &mut StdRng) -> Vec<f32> {
    let mut row = |crowd: f32| -> Vec<f32> {
        let logit = |id: usize| match id {
            8500..8520 => 9.0 + (id % 5) as f32 / 4.0,
            _ if id.is_multiple_of(13) && id < 4000 => crowd + random.random_range(0..3) as f32 / 8.0,
            _ => -3.0,
        };
        (0..9000).map(logit).collect()
    };
    [row(5.0), row(1.0)].concat()
}

/// A number that is almost normal.
fn normal(random: &mut StdRng) -> f32 {
    (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0
}

/// What requests ask for: greedy, plain, and every filter in both orders. The kinds of confidence take turns.
fn requests(turn: u32) -> Vec<RowParameters> {
    let cases = [
        (0.0, 1.0, 0, 0.0, 0),
        (0.0, 0.5, 3, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (1.0, 1.0, 0, 0.0, 0),
        (0.2, 0.95, 0, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (0.7, 1.0, 5, 0.0, 0),
        (1.3, 0.9, 40, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (1.3, 0.6, 40, 0.0, sampling_flags::TOP_K_FIRST | sampling_flags::FILTERED_CONFIDENCE),
        (2.5, 0.0, 0, 0.0, 0),
        (0.6, 1.0, 0, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (0.9, 1.0, 0, 0.05, sampling_flags::FILTERED_CONFIDENCE),
        (1.1, 0.8, 7, 0.3, sampling_flags::TOP_K_FIRST),
        (1.0, 1.0, 0, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (0.3, 0.9, 0, 0.0, 0),
    ];
    let request = |(stream, (temperature, top_p, top_k, min_p, flags))| {
        let stream = stream as u32;
        RowParameters {
            temperature,
            top_p,
            top_k,
            min_p,
            flags,
            confidence: (stream + turn) % 3,
            seed_low: 17,
            seed_high: 4,
            stream,
            ..Default::default()
        }
    };
    cases.into_iter().enumerate().map(request).collect()
}

/// Requests that want some tokens of a vocabulary more than others, and their biases: against the best of a row that
/// [`row_kinds`] makes, for the first and the last token, for many.
fn choosy(vocab: usize, turn: u32) -> (Vec<RowParameters>, Vec<(u32, f32)>) {
    let (last, middle) = (vocab as u32 - 1, vocab as u32 / 2);
    let many = (0..vocab as u32).step_by(vocab.div_ceil(50)).map(|id| (id, (id % 13) as f32 / 2.0 - 3.0));
    let lists = [
        vec![],
        vec![(middle, f32::NEG_INFINITY)],
        vec![(0, 1.5), (last / 3, 0.75), (middle, -2.5), (last, 4.0)],
        vec![],
        many.chain([(middle, -24.5)]).collect(),
    ];
    let mut biases = Vec::new();
    let requests = requests(turn).into_iter().enumerate().map(|(i, request)| {
        let vocab_limit = if i % 2 == 0 { vocab as u32 * 3 / 4 + 1 } else { 0 };
        let mut own = lists[(i + turn as usize) % lists.len()].clone();
        own.sort_by_key(|&(id, _)| id);
        own.dedup_by_key(|&mut (id, _)| id);
        let bias_start = biases.len() as u32;
        biases.extend(own);
        RowParameters { vocab_limit, bias_start, bias_count: biases.len() as u32 - bias_start, ..request }
    });
    (requests.collect(), biases)
}

/// Those of a request.
fn biases_of<'a>(parameters: &RowParameters, biases: &'a [(u32, f32)]) -> &'a [(u32, f32)] {
    &biases[parameters.bias_start as usize..][..parameters.bias_count as usize]
}

/// Rows of three kinds: spread, nearly certain, and full of ties.
fn row_kinds(random: &mut StdRng, vocab: usize) -> Vec<f32> {
    let mut normal = || normal(random);
    let spread: Vec<f32> = (0..vocab).map(|_| 3.0 * normal()).collect();
    let mut certain: Vec<f32> = (0..vocab).map(|_| normal()).collect();
    certain[vocab / 2] = 24.0;
    let tied: Vec<f32> = (0..vocab).map(|_| normal().round()).collect();
    [spread, certain, tied].concat()
}

fn check_rows(
    device: &Device,
    random: &mut StdRng,
    dtype: LogitsType,
    vocab: usize,
    parameters: &[RowParameters],
    biases: &[(u32, f32)],
) {
    let logits = row_kinds(random, vocab);
    let kinds = logits.len() / vocab;
    let steps: Vec<u32> = (0..parameters.len() as u32).collect();
    let count = parameters.len() * kinds;
    let rows: Vec<[u32; 2]> = (0..count).map(|i| [(i / kinds) as u32, 100 * i as u32]).collect();
    let sources: Vec<u32> = (0..count).map(|i| (i % kinds) as u32).collect();
    let sampler = Sampler::new(device, dtype);
    let batch = Batch { logits: &logits, vocab, rows: &rows, sources: Some(&sources), parameters, steps: &steps };
    let mut clear = 0;
    let additions = Additions { biases, ..Additions::default() };
    for (i, statistics) in sampler.run_with(&batch, &additions).iter().enumerate() {
        let [request, position] = rows[i];
        let what = format!("{dtype:?}, vocab {vocab}, request {request}, kind {}", i % kinds);
        let exact = rounded(dtype, &logits[(i % kinds) * vocab..][..vocab]);
        let request = request as usize;
        let key = (steps[request], position);
        let changed = oracle::changed(&exact, biases_of(&parameters[request], biases), &[], 0.0);
        let (row, segment) = ((&exact[..], &changed[..]), sampler.spec.segment());
        clear += usize::from(check_row(&what, statistics, row, &parameters[request], key, segment));
    }
    assert!(clear + 2 >= count, "only {clear} of {count} rows have a clear boundary");
}

#[test]
fn philox_gives_the_published_numbers() {
    let mut k = Builder::new(Arch::Sm80, "philox", Launch { threads: 32, blocks_per_multiprocessor: 1 });
    let input = k.parameter::<B64>("input", ParameterKind::Pointer);
    let output = k.parameter::<B64>("output", ParameterKind::Pointer);
    let thread = k.thread();
    let from = k.mad_wide(thread, 32u32, input);
    let counter = k.load_vector::<B32, B64, 4>(from, 0, Cache::ReadOnly);
    let key = k.load_vector::<B32, B64, 2>(from, 16, Cache::ReadOnly);
    let numbers = philox(&mut k, counter, key);
    let to = k.mad_wide(thread, 16u32, output);
    k.store_vector(to, 0, numbers);
    k.ret();
    let kernel = k.finish();

    // Random123's `kat_vectors`, then random inputs.
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0, 0, 0];
    let mut inputs: Vec<[u32; 8]> = vec![[0; 8], [u32::MAX; 8], pi];
    let mut random = generator(3);
    inputs.resize_with(32, || random.random());
    for device in testing::devices() {
        let stream = Stream::new(&device).unwrap();
        let loaded = device.load(&kernel).unwrap();
        let from = device.upload(&stream, &inputs.concat()).unwrap();
        let to = device.allocate(32 * 16).unwrap();
        let arguments = Arguments::new(loaded.meta()).pointer("input", from.address()).pointer("output", to.address());
        loaded.launch(&stream, [1, 1, 1], &arguments).unwrap();
        let numbers: Vec<u32> = to.read(&stream).unwrap();
        assert_eq!(numbers[..4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(numbers[4..8], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(numbers[8..12], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
        for (numbers, input) in numbers.chunks(4).zip(&inputs) {
            let [a, b, c, d, e, f, ..] = *input;
            assert_eq!(numbers, oracle::philox([a, b, c, d], [e, f]));
        }
    }
}

#[test]
fn rows_equal_the_reference() {
    let mut random = generator(1);
    for device in testing::devices() {
        for (i, vocab) in [2, 7, 8, 9, 33, 1000].into_iter().enumerate() {
            for (j, dtype) in DTYPES.into_iter().enumerate() {
                let (requests, biases) = choosy(vocab, (i + j) as u32);
                check_rows(&device, &mut random, dtype, vocab, &requests, &biases);
            }
        }
        // The only token.
        check_rows(&device, &mut random, LogitsType::Bf16, 1, &requests(0), &[]);
    }
}

#[test]
fn rows_end_anywhere_in_a_segment() {
    let mut random = generator(8);
    for device in testing::devices() {
        for (i, dtype) in DTYPES.into_iter().enumerate() {
            let segment = SamplerSpec { dtype, guided: false, arch: Arch::Sm80 }.segment() as usize;
            for (j, vocab) in [segment - 1, segment, segment + 1].into_iter().enumerate() {
                let (requests, biases) = choosy(vocab, i as u32);
                let requests: Vec<_> = requests.into_iter().skip(j).step_by(3).collect();
                check_rows(&device, &mut random, dtype, vocab, &requests, &biases);
            }
        }
    }
}

#[test]
fn a_real_vocabulary_equals_the_reference() {
    let mut random = generator(2);
    for device in testing::devices() {
        let (requests, biases) = choosy(152_064, 0);
        check_rows(&device, &mut random, LogitsType::Bf16, 152_064, &requests[2..10], &biases);
    }
}

/// Two rows of logits, each under all of the parameters, against the reference.
fn check_pairs(logits: &[f32], vocab: usize, parameters: &[RowParameters], biases: &[(u32, f32)]) {
    let rows: Vec<[u32; 2]> = (0..2 * parameters.len() as u32).map(|i| [i / 2, i]).collect();
    let sources: Vec<u32> = (0..rows.len() as u32).map(|i| i % 2).collect();
    let steps = vec![1; parameters.len()];
    for device in testing::devices() {
        for dtype in [LogitsType::Bf16, LogitsType::F32] {
            let sampler = Sampler::new(&device, dtype);
            let batch = Batch { logits, vocab, rows: &rows, sources: Some(&sources), parameters, steps: &steps };
            let additions = Additions { biases, ..Additions::default() };
            for (i, found) in sampler.run_with(&batch, &additions).iter().enumerate() {
                let exact = rounded(dtype, &logits[i % 2 * vocab..][..vocab]);
                let changed = oracle::changed(&exact, biases_of(&parameters[i / 2], biases), &[], 0.0);
                let what = format!("{dtype:?} row {i}");
                let row = (&exact[..], &changed[..]);
                check_row(&what, found, row, &parameters[i / 2], (1, i as u32), sampler.spec.segment());
            }
        }
    }
}

/// A segment with more to offer than its record holds, in a row whose best tokens are elsewhere: some of it is kept, or nothing.
#[test]
fn a_crowded_segment_is_read_again() {
    let mut random = generator(10);
    let vocab = 9000;
    let logits = crowds(&mut random);
    let parameters: Vec<RowParameters> = (0..4)
        .map(|stream| RowParameters {
            temperature: 0.5,
            top_p: [0.95, 0.9999][stream as usize % 2],
            flags: sampling_flags::FILTERED_CONFIDENCE,
            confidence: stream % 3,
            seed_low: 5,
            stream,
            ..Default::default()
        })
        .collect();
    check_pairs(&logits, vocab, &parameters, &[]);
}

/// Rows whose filters keep more tokens than are ranked one by one, and fewer than segments have room to offer.
#[test]
fn crowded_rows_are_cut_where_their_filters_say() {
    let mut random = generator(14);
    let vocab = 9500;
    let logits: Vec<f32> = (0..2 * vocab).map(|i| [3.0, 2.5][i / vocab] * normal(&mut random)).collect();
    let filtered = sampling_flags::FILTERED_CONFIDENCE;
    let cases = [
        (1.0, 0.9, 0, 0.0, filtered),
        (1.0, 0.7, 0, 0.0, 0),
        (1.1, 0.0, 0, 0.0, filtered),
        (1.0, 1.0, 300, 0.0, filtered),
        (0.9, 0.9, 250, 0.0, filtered),
        (1.0, 0.95, 290, 0.02, filtered),
        (0.8, 0.9, 0, 0.003, filtered),
        (1.0, 1.0, 0, 0.01, filtered),
        (0.0, 0.8, 0, 0.0, filtered),
        (1.0, 0.8, 400, 0.0, filtered | sampling_flags::TOP_K_FIRST),
    ];
    let parameters = filtering(8, &cases);
    check_pairs(&logits, vocab, &parameters, &[]);
}

/// Rows so flat that segments and list have no room for what they offer.
fn flat_rows(random: &mut StdRng, vocab: usize) -> Vec<f32> {
    let equal = vec![1.5f32; vocab];
    let few: Vec<f32> = (0..vocab).map(|_| random.random_range(0..4) as f32 / 4.0).collect();
    [equal, few].concat()
}

/// Requests that filter such rows.
fn flat_requests() -> Vec<RowParameters> {
    let filtered = sampling_flags::FILTERED_CONFIDENCE;
    let cases = [
        (1.0, 0.3, 0, 0.0, filtered),
        (1.0, 0.7, 2000, 0.0, filtered),
        (0.8, 0.7, 2000, 0.0, filtered | sampling_flags::TOP_K_FIRST),
        (1.0, 1.0, 0, 0.6, filtered),
        (0.0, 0.9, 700, 0.6, filtered),
        (1.0, 1.0, 30, 0.0, filtered),
    ];
    filtering(3, &cases)
}

#[test]
fn flat_rows_are_filtered_the_long_way() {
    let logits = flat_rows(&mut generator(9), 5000);
    check_pairs(&logits, 5000, &flat_requests(), &[]);
}

/// Segments of nothing, of the lowest number and −∞, of numbers whose products with the scale overflow or round by much; cold and
/// hot.
#[test]
fn logits_at_the_ends_of_their_range() {
    let mut random = generator(13);
    let vocab = 4100;
    for (device, dtype) in testing::devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d.clone(), dtype))) {
        let (largest, large) = match dtype {
            LogitsType::F16 => (65504.0, 6e4),
            LogitsType::Bf16 => (bf16::MAX.to_f32(), 3e38),
            LogitsType::F32 => (f32::MAX, 3e38),
        };
        let mut kinds: [Vec<f32>; 5] = Default::default();
        for id in 0..vocab {
            let noise: f32 = random.random_range(0.0..3.0);
            let rarely = |value: f32, otherwise: f32| if id % 97 == 5 { value } else { otherwise };
            kinds[0].push(rarely(-largest, f32::NEG_INFINITY));
            kinds[1].push([large, -large, large / 2.0, 0.0][id % 4]);
            kinds[2].push(rarely(f32::NEG_INFINITY, 1000.0 + noise));
            kinds[3].push(if id == 4098 { -5.0 } else { f32::NEG_INFINITY });
            kinds[4].push(rarely(-largest, -30.0 * noise));
        }
        let request = |(stream, (temperature, top_p))| RowParameters {
            temperature,
            top_p,
            flags: sampling_flags::FILTERED_CONFIDENCE,
            confidence: 2,
            seed_low: 21,
            stream,
            ..Default::default()
        };
        let cases = [(0.0, 1.0), (1.0, 1.0), (0.001, 1.0), (700.0, 1.0), (1e-30, 1.0), (0.3, 0.9), (1e-30, 0.5)];
        let parameters: Vec<RowParameters> = (0..).zip(cases).map(request).collect();
        let rows: Vec<[u32; 2]> = (0..5 * cases.len() as u32).map(|i| [i / 5, i]).collect();
        let sources: Vec<u32> = (0..rows.len() as u32).map(|i| i % 5).collect();
        let steps = vec![1; parameters.len()];
        let logits = kinds.concat();
        let sampler = Sampler::new(&device, dtype);
        let batch = Batch {
            logits: &logits,
            vocab,
            rows: &rows,
            sources: Some(&sources),
            parameters: &parameters,
            steps: &steps,
        };
        for (i, found) in sampler.run(&batch).iter().enumerate() {
            let exact = rounded(dtype, &kinds[i % 5]);
            let what = format!("{dtype:?} kind {} request {}", i % 5, i / 5);
            check_row(&what, found, (&exact, &[]), &parameters[i / 5], (1, i as u32), sampler.spec.segment());
        }
    }
}

/// Rows at low temperatures, of which few tokens count there, and of which none, all, or all of one segment do; with and without their
/// entropies nothing else differs.
#[test]
fn cold_rows_equal_the_reference_with_and_without_entropy() {
    let mut random = generator(15);
    let vocab = 6200;
    for dtype in DTYPES {
        let spread: Vec<f32> = (0..vocab).map(|_| 4.0 * normal(&mut random)).collect();
        let mut crowd = spread.clone();
        // Equal to the best, in the second segment, more vectors than are few.
        (2048..4096).step_by(11).for_each(|id| crowd[id] = 16.0);
        let mut lone = vec![-1000.0; vocab];
        (lone[77], lone[78], lone[4100]) = (900.0, 899.9, 880.0);
        let ties: Vec<f32> = (0..vocab).map(|id| if id % 700 == 3 { 7.0 } else { -7.0 }).collect();
        let kinds = [spread, crowd, lone, ties];
        let cases = [
            (0.2, 0.95, 0, 0.0, 0),
            (0.2, 0.95, 0, 0.0, sampling_flags::FILTERED_CONFIDENCE),
            (0.05, 1.0, 40, 0.0, 0),
            (0.4, 1.0, 0, 1e-12, sampling_flags::FILTERED_CONFIDENCE),
            (0.2, 1.0, 0, 0.0, 0),
            (1e-30, 0.9, 9, 0.0, 0),
            (50.0, 0.3, 0, 0.0, 0),
            (0.3, 0.999, 30, 0.0, sampling_flags::TOP_K_FIRST | sampling_flags::FILTERED_CONFIDENCE),
            (1.0, 1.0, 0, 0.0, 0),
            (0.0, 1.0, 0, 0.0, 0),
        ];
        let with = filtering(8, &cases);
        let spared = |request: &RowParameters| RowParameters {
            flags: request.flags | sampling_flags::WITHOUT_ENTROPY,
            ..*request
        };
        let without: Vec<RowParameters> = with.iter().map(spared).collect();
        let rows: Vec<[u32; 2]> = (0..4 * cases.len() as u32).map(|i| [i / 4, i]).collect();
        let sources: Vec<u32> = (0..rows.len() as u32).map(|i| i % 4).collect();
        let steps = vec![1; with.len()];
        let logits = kinds.concat();
        for device in testing::devices() {
            let sampler = Sampler::new(&device, dtype);
            let run = |parameters, entropies| {
                let (logits, rows, sources, steps) = (&logits[..], &rows[..], Some(&sources[..]), &steps[..]);
                let batch = Batch { logits, vocab, rows, sources, parameters, steps };
                sampler.run_with(&batch, &Additions { entropies, ..Additions::default() })
            };
            let (full, lean) = (run(&with, false), run(&without, false));
            assert_eq!(full, run(&without, true), "{dtype:?}: the launch wants all entropies");
            for (i, (full, lean)) in full.iter().zip(&lean).enumerate() {
                let exact = rounded(dtype, &kinds[i % 4]);
                let what = format!("{dtype:?} kind {} request {}", i % 4, i / 4);
                for (found, parameters) in [(full, &with[i / 4]), (lean, &without[i / 4])] {
                    check_row(&what, found, (&exact, &[]), parameters, (1, i as u32), sampler.spec.segment());
                }
                let negative_entropy = full.negative_entropy;
                assert_eq!(*full, RowStatistics { negative_entropy, ..*lean }, "{what}");
            }
        }
    }
}

/// Nothing depends on how many warps share the rows out: not the length of their runs, nor who finishes a row.
#[test]
fn any_number_of_warps_gives_the_same_bits() {
    let mut random = generator(14);
    let vocab = 20_000;
    let logits = row_kinds(&mut random, vocab);
    let (parameters, biases) = choosy(vocab, 0);
    let additions = Additions { biases: &biases, ..Additions::default() };
    let rows: Vec<[u32; 2]> = (0..parameters.len() as u32).map(|i| [i, i]).collect();
    let sources: Vec<u32> = (0..rows.len() as u32).map(|i| i % 3).collect();
    let steps = vec![1; parameters.len()];
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::Bf16);
        let batch = Batch {
            logits: &logits,
            vocab,
            rows: &rows,
            sources: Some(&sources),
            parameters: &parameters,
            steps: &steps,
        };
        let few = sampler.run_on(&batch, &additions, 1);
        for blocks in [2, 3, 5, 40] {
            assert_eq!(few, sampler.run_on(&batch, &additions, blocks), "{blocks} blocks");
        }
    }
}

#[test]
fn guided_rows_equal_the_reference() {
    let mut random = generator(10);
    for (device, dtype) in testing::devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d.clone(), dtype))) {
        let sampler = Sampler::of(&device, SamplerSpec { dtype, guided: true, arch: Arch::Sm80 });
        for vocab in [33, 4097] {
            let logits = [row_kinds(&mut random, vocab), row_kinds(&mut random, vocab)].concat();
            let (parameters, biases) = choosy(vocab, 1);
            let mut parameters: Vec<_> = parameters.into_iter().skip(vocab % 2).step_by(3).collect();
            for (request, guidance) in parameters.iter_mut().zip([1.5, 0.0, 0.5, -1.0, 3.0]) {
                request.guidance = guidance;
            }
            let count = 3 * parameters.len();
            let rows: Vec<[u32; 2]> = (0..count).map(|i| [(i / 3) as u32, i as u32]).collect();
            let sources: Vec<u32> = (0..count).map(|i| (i % 3) as u32).collect();
            let steps = vec![2; parameters.len()];
            let batch = Batch {
                logits: &logits,
                vocab,
                rows: &rows,
                sources: Some(&sources),
                parameters: &parameters,
                steps: &steps,
            };
            let exact = rounded(dtype, &logits);
            let additions = Additions { biases: &biases, ..Additions::default() };
            for (i, found) in sampler.run_with(&batch, &additions).iter().enumerate() {
                let request = &parameters[i / 3];
                let [own, guide] = [i % 3, i % 3 + 3].map(|row| &exact[row * vocab..][..vocab]);
                let combine = |(&c, &u): (&f64, &f64)| {
                    let (c, u) = (c as f32, u as f32);
                    let guided = if request.guidance == 0.0 { c } else { request.guidance.mul_add(c - u, c) };
                    oracle::cleaned(guided.into(), f32::MAX.into())
                };
                let combined: Vec<f64> = own.iter().zip(guide).map(combine).collect();
                let what = format!("{dtype:?} vocab {vocab} row {i}");
                let changed = oracle::changed(&combined, biases_of(request, &biases), &[], 0.0);
                let row = (&combined[..], &changed[..]);
                check_row(&what, found, row, request, (2, i as u32), sampler.spec.segment());
            }
        }
        // A guide past the last row is nobody's.
        let wild = RowParameters { guidance: 1.0, top_p: 1.0, ..Default::default() };
        let logits = [0.5f32; 12];
        let batch = Batch {
            logits: &logits,
            vocab: 3,
            rows: &[[0, 0], [0, 1], [1, 2]],
            sources: Some(&[1, 3, 3]),
            parameters: &[wild, RowParameters { guidance: 0.0, ..wild }],
            steps: &[0, 0],
        };
        let flags: Vec<u32> = sampler.run(&batch).iter().map(|found| found.flags).collect();
        assert_eq!(flags, [0, row_flags::OUT_OF_RANGE, 0]);
    }
}

#[test]
fn logits_that_are_no_numbers() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let vocab = 5;
    let logits = [
        [nan, 1.0, nan, 0.5, -inf],
        [-inf, nan, -inf, -nan, nan],
        [-inf; 5],
        [2.0, inf, 0.0, inf, nan],
        [-0.0, 0.0, -inf, -0.0, nan],
        [-inf, -inf, -3.0, nan, -inf],
    ]
    .concat();
    let request = |temperature| RowParameters { temperature, top_p: 0.9, top_k: 4, ..Default::default() };
    let parameters = [request(0.0), request(0.8)];
    // The last of seven sources does not exist.
    let rows: Vec<[u32; 2]> = (0..14).map(|i| [i / 7, i]).collect();
    let sources: Vec<u32> = (0..14).map(|i| i % 7).collect();
    for device in testing::devices() {
        for (dtype, confidence) in DTYPES.into_iter().flat_map(|dtype| [0, 1, 2].map(|c| (dtype, c))) {
            let sampler = Sampler::new(&device, dtype);
            let parameters = parameters.map(|request| RowParameters { confidence, ..request });
            let batch = Batch {
                logits: &logits,
                vocab,
                rows: &rows,
                sources: Some(&sources),
                parameters: &parameters,
                steps: &[0, 3],
            };
            for (i, statistics) in sampler.run(&batch).iter().enumerate() {
                let what = format!("{dtype:?} {confidence:?} row {i}");
                let flag = match i % 7 {
                    6 => row_flags::OUT_OF_RANGE,
                    1 | 2 => row_flags::NOT_FINITE,
                    kind => {
                        let exact = rounded(dtype, &logits[kind * vocab..][..vocab]);
                        let key = (batch.steps[i / 7], i as u32);
                        check_row(&what, statistics, (&exact, &[]), &parameters[i / 7], key, sampler.spec.segment());
                        continue;
                    }
                };
                assert_eq!((statistics.flags, statistics.confidence), (flag, f32::NEG_INFINITY), "{what}");
            }
        }
    }
}

#[test]
fn a_row_of_no_request_is_flagged() {
    let mut random = generator(12);
    let logits: Vec<f32> = (0..3 * 50).map(|_| random.random_range(-2.0..2.0)).collect();
    let parameters = [RowParameters { temperature: 1.0, top_p: 1.0, ..Default::default() }; 2];
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let run = |request| {
            let rows = [[0, 4], [request, 5], [1, 6]];
            let batch = Batch {
                logits: &logits,
                vocab: 50,
                rows: &rows,
                sources: None,
                parameters: &parameters,
                steps: &[3, 4],
            };
            sampler.run(&batch)
        };
        let plain = run(1);
        for wild in [2, 1 << 24, u32::MAX] {
            let found = run(wild);
            assert_eq!([plain[0], plain[2]], [found[0], found[2]], "request {wild}");
            assert_eq!(found[1].flags, row_flags::OUT_OF_RANGE, "request {wild}");
        }
    }
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let mut random = generator(5);
    let (vocab, draws) = (300, 2000);
    let logits: Vec<f32> = (0..vocab).map(|_| random.random_range(-2.0..2.0)).collect();
    let seed_low = random.random();
    let parameters = RowParameters { temperature: 0.8, top_p: 0.9, top_k: 60, seed_low, ..Default::default() };
    let rows: Vec<[u32; 2]> = (0..draws).map(|i| [0, i]).collect();
    let sources = vec![0; rows.len()];
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::Bf16);
        let found = sampler.run(&Batch {
            logits: &logits,
            vocab,
            rows: &rows,
            sources: Some(&sources),
            parameters: &[parameters],
            steps: &[9],
        });
        let row = oracle::row(&rounded(LogitsType::Bf16, &logits), &parameters).unwrap();
        assert_eq!(row.kept, 60);
        assert_fair(&found, &row);
    }
}

/// Whether draws from one row follow its distribution.
fn assert_fair(found: &[RowStatistics], row: &oracle::Row) {
    let mut counts = vec![0u32; row.filtered.len()];
    for statistics in found {
        counts[statistics.token as usize] += 1;
    }
    let (mut statistic, mut freedom) = (0.0, -1.0f64);
    for (&count, p) in counts.iter().zip(&row.filtered) {
        let expected = p * found.len() as f64;
        assert!(count == 0 || expected > 0.0, "a token was drawn that has no probability");
        if expected > 0.0 {
            statistic += (f64::from(count) - expected).powi(2) / expected;
            freedom += 1.0;
        }
    }
    // 4.5 standard deviations: less than one in ten thousand fair samples lies beyond.
    let bound = freedom + 4.5 * (2.0 * freedom).sqrt();
    println!("chi-square {statistic:.1} with {freedom} degrees of freedom");
    assert!(freedom > 20.0 && statistic < bound, "chi-square {statistic} exceeds {bound}");
}

/// Without a filter a draw takes two numbers: one for the segment, one for the token in it.
#[test]
fn unfiltered_draws_follow_the_distribution() {
    let mut random = generator(11);
    let (vocab, draws) = (4200, 1500);
    let mut logits = vec![f32::NEG_INFINITY; vocab];
    for _ in 0..40 {
        logits[random.random_range(4000..4200)] = random.random_range(-1.0..1.0);
    }
    let parameters = RowParameters { temperature: 0.9, top_p: 1.0, seed_low: random.random(), ..Default::default() };
    let rows: Vec<[u32; 2]> = (0..draws).map(|i| [0, i]).collect();
    let sources = vec![0; rows.len()];
    let row = oracle::row(&rounded(LogitsType::F32, &logits), &parameters).unwrap();
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let segment = sampler.spec.segment() as usize;
        let batch = Batch {
            logits: &logits,
            vocab,
            rows: &rows,
            sources: Some(&sources),
            parameters: &[parameters],
            steps: &[9],
        };
        let found = sampler.run(&batch);
        for (found, [_, position]) in found.iter().zip(&rows) {
            let token = found.token as usize;
            let distance = row.distance(token, oracle::uniforms(&parameters, 9, *position), segment);
            assert!(distance < 1e-6, "position {position} drew {token}, {distance:e} away");
        }
        assert_fair(&found, &row);
    }
}

#[test]
fn a_draw_does_not_depend_on_the_batch() {
    let mut random = generator(6);
    let vocab = 200;
    let logits: Vec<f32> = (0..4 * vocab).map(|_| random.random_range(-3.0..3.0)).collect();
    let request = |stream| RowParameters {
        temperature: 1.5,
        top_p: 0.97,
        seed_high: 8,
        stream,
        confidence: 1,
        ..Default::default()
    };
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let together = sampler.run(&Batch {
            logits: &logits,
            vocab,
            rows: &[[0, 5], [1, 5], [1, 6], [2, 9]],
            sources: None,
            parameters: &[request(7), request(3), request(11)],
            steps: &[2, 4, 6],
        });
        let alone = sampler.run(&Batch {
            logits: &logits[2 * vocab..3 * vocab],
            vocab,
            rows: &[[0, 6]],
            sources: None,
            parameters: &[request(3)],
            steps: &[4],
        });
        assert_eq!(together[2], alone[0]);
    }
    // Another step, position, stream or seed is another number; `check_row` ties the kernel's to these.
    let other = RowParameters { seed_low: 1, ..request(3) };
    let keys = [(request(3), 4, 6), (request(3), 5, 6), (request(3), 4, 7), (request(4), 4, 6), (other, 4, 6)];
    let mut uniforms = keys.map(|(parameters, step, position)| oracle::uniforms(&parameters, step, position)[0]);
    uniforms.sort_by(f64::total_cmp);
    assert!(uniforms.windows(2).all(|pair| pair[0] < pair[1]));
}
