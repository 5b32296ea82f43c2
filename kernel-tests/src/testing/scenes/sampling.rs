//! The row kernel and the selection kernel.

use super::{Agreement, Scene, Verdict, equal, floats};
use crate::{
    oracle::sampling as oracle,
    testing::{launch::Launch, rules::rules},
};
use half::bf16;
use kernel_core::{
    Device, Error,
    sampling::{Refresh, Request},
};
use ptx::{
    Arch,
    kernels::sampling::{
        CREDIT_BYTES, LogitsType, MAX_CREDITS, PARTIAL_BYTES, RequestState, RowMergeSpec, RowParameters, RowStatistics,
        STAGING_BYTES, SamplerSpec, SelectionSpec, request_flags, sampling_flags,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Rows of logits for every kind of request: greedy, tempered, top-k, top-p.
pub fn rows(arch: Arch, seed: u64) -> Scene {
    let cases = [
        (0.0, 1.0, 0, 0),
        (1.0, 1.0, 0, 0),
        (0.7, 0.9, 0, sampling_flags::FILTERED_CONFIDENCE),
        (1.3, 0.9, 40, sampling_flags::FILTERED_CONFIDENCE),
        (1.3, 0.6, 40, sampling_flags::TOP_K_FIRST),
        (0.0, 1.0, 3, sampling_flags::FILTERED_CONFIDENCE),
    ];
    let request = |(stream, (temperature, top_p, top_k, flags))| RowParameters {
        temperature,
        top_p,
        top_k,
        flags,
        seed_low: 17,
        seed_high: 4,
        stream: stream as u32,
        confidence: stream as u32 % 3,
        ..Default::default()
    };
    let parameters = cases.into_iter().enumerate().map(request).collect();
    let mut random = StdRng::seed_from_u64(seed);
    // Rounded, so that there are ties; and one thread, and one of another segment, see the best logit of the second row.
    let vocab = 9000;
    let logit = |i| (3.0 * super::normal(&mut random) * f64::from(1 << (i / vocab))).round() / 4.0;
    let mut logits: Vec<f64> = (0..2 * vocab).map(logit).collect();
    let best = vocab + 2048;
    (logits[best + 3], logits[best + 7], logits[vocab + 8500]) = (9.0, 9.0, 9.0);
    sampled(arch, logits, vocab, 2, parameters, Additions::default())
}

/// Rows at low temperatures, of which few tokens count there: filtered by each of the filters, some of them without their entropy.
pub fn cold_rows(arch: Arch, seed: u64) -> Scene {
    let spared = sampling_flags::WITHOUT_ENTROPY;
    let cases = [
        (0.2, 0.95, 0, 0.0, spared),
        (0.25, 0.9, 0, 0.0, sampling_flags::FILTERED_CONFIDENCE),
        (0.1, 1.0, 40, 0.0, spared),
        (0.2, 1.0, 0, 1e-6, spared | sampling_flags::FILTERED_CONFIDENCE),
        (1.0, 1.0, 0, 0.0, spared),
        (0.0, 1.0, 0, 0.0, spared),
    ];
    let request = |(stream, (temperature, top_p, top_k, min_p, flags))| RowParameters {
        temperature,
        top_p,
        top_k,
        min_p,
        flags,
        seed_low: 31,
        stream,
        confidence: stream % 3,
        ..Default::default()
    };
    let parameters = (0u32..).zip(cases).map(request).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let logits: Vec<f64> = (0..2 * 4500).map(|_| 4.0 * super::normal(&mut random)).collect();
    sampled(arch, logits, 4500, 2, parameters, Additions::default())
}

/// What requests add to logits.
#[derive(Default)]
struct Additions {
    /// All biases, where the requests say.
    biases: Vec<(u32, f32)>,
    /// The credits of each request's positions, all the same.
    credits: Vec<Vec<(u32, f32)>>,
}

/// Positions that have a place for credits, a request.
const CREDIT_WINDOW: u32 = 7;

/// Words of a position's credits.
const CREDIT_WORDS: usize = CREDIT_BYTES as usize / 4;

impl Additions {
    /// Those of a request, of a row of logits.
    fn changed(&self, logits: &[f64], request: usize, parameters: &RowParameters) -> Vec<(usize, f64)> {
        let biases = &self.biases[parameters.bias_start as usize..][..parameters.bias_count as usize];
        let weight = parameters.credit_weight;
        let none = Vec::new();
        let credits = if weight > 0.0 { self.credits.get(request).unwrap_or(&none) } else { &none };
        oracle::changed(logits, biases, credits, weight)
    }

    /// Words of the credits, with those of these rows (request, position).
    fn credit_words(&self, rows: &[[u32; 2]]) -> Vec<u32> {
        let mut words = vec![0; self.credits.len() * CREDIT_WINDOW as usize * CREDIT_WORDS];
        for &[request, position] in rows {
            let Some(credits) = self.credits.get(request as usize) else { continue };
            let at = (request * CREDIT_WINDOW + position % CREDIT_WINDOW) as usize * CREDIT_WORDS;
            (words[at], words[at + 1]) = (position + 1, credits.len() as u32);
            for (pair, &(id, credit)) in words[at + 2..].chunks_mut(2).zip(credits) {
                pair.copy_from_slice(&[id, credit.to_bits()]);
            }
        }
        words
    }
}

/// Requests with biases and with credits, with both and with neither: ids in the first segment and in others, and more of them than
/// a warp has lanes.
fn additions(vocab: u32) -> (Vec<RowParameters>, Additions) {
    let few = vec![(3, 0.75), (2046, f32::NEG_INFINITY), (2047, 5.5), (4100, 2.25), (vocab - 1, 4.0)];
    let many: Vec<(u32, f32)> = (0..90).map(|i| (i * (vocab / 90), (i % 9) as f32 / 2.0 - 1.5)).collect();
    let known: Vec<(u32, f32)> = vec![(3, 1.5), (5, 0.25), (5000, 3.0)];
    let full: Vec<(u32, f32)> = (0..MAX_CREDITS).map(|i| (i * 250 + 3, [0.5, 1.0, 0.75][i as usize % 3])).collect();
    let cases = [
        (0.0, 1.0, 0, 0, Vec::new(), full.clone()),
        (1.0, 1.0, 0, 0, few.clone(), known.clone()),
        (0.7, 0.9, 0, sampling_flags::FILTERED_CONFIDENCE, many, full),
        (1.3, 0.6, 40, sampling_flags::TOP_K_FIRST, few, Vec::new()),
        (0.9, 1.0, 0, 0, Vec::new(), known),
    ];
    let mut all = Additions::default();
    let mut requests = Vec::new();
    for (stream, (temperature, top_p, top_k, flags, biases, credits)) in (0u32..).zip(cases) {
        requests.push(RowParameters {
            temperature,
            top_p,
            top_k,
            flags,
            seed_low: 23,
            stream,
            confidence: stream % 3,
            bias_start: all.biases.len() as u32,
            bias_count: biases.len() as u32,
            // The last one does not want them.
            credit_weight: if stream == 4 { 0.0 } else { 0.7 },
            credit_decay: 0.8,
            credit_exponent: 0.2,
            ..Default::default()
        });
        all.biases.extend(biases);
        all.credits.push(credits);
    }
    (requests, all)
}

/// Rows of logits with ties, of a few segments.
fn rough_logits(seed: u64, vocab: u32) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..2 * vocab).map(|_| (4.0 * super::normal(&mut random)).round() / 2.0).collect()
}

/// Rows of logits that requests change.
pub fn changed_rows(seed: u64) -> Scene {
    let vocab = 9000;
    let (parameters, additions) = additions(vocab);
    sampled(Arch::Sm80, rough_logits(seed, vocab), vocab as usize, 2, parameters, additions)
}

/// Rows with more good tokens than are ranked one by one.
pub fn crowded_rows(seed: u64) -> Scene {
    let vocab = 9000;
    let mut random = StdRng::seed_from_u64(seed);
    let logits = (0..2 * vocab).map(|_| 3.0 * super::normal(&mut random)).collect();
    sampled(Arch::Sm80, logits, vocab, 2, crowding_requests(), Additions::default())
}

/// Requests that keep hundreds of tokens of such a row: by mass, by count, by both, and by what is least likely.
fn crowding_requests() -> Vec<RowParameters> {
    let cases = [(1.0, 0.9, 0, 0.0), (1.0, 1.0, 200, 0.0), (1.2, 0.8, 350, 0.001), (0.0, 0.5, 0, 0.0)];
    let request = |(stream, (temperature, top_p, top_k, min_p))| RowParameters {
        temperature,
        top_p,
        top_k,
        min_p,
        flags: sampling_flags::FILTERED_CONFIDENCE,
        seed_low: 31,
        stream: stream as u32,
        confidence: stream as u32 % 3,
        ..Default::default()
    };
    cases.into_iter().enumerate().map(request).collect()
}

/// Many draws from one distribution.
pub fn draws(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let logits = (0..3000).map(|_| random.random_range(-2.0..2.0)).collect();
    let parameters = RowParameters { temperature: 0.8, top_p: 0.9, top_k: 20, seed_low: 5, ..Default::default() };
    sampled(Arch::Sm80, logits, 3000, 40, vec![parameters], Additions::default())
}

/// The credits of rows, after a step: of requests that begin, that go on, whose places are taken or are another position's.
pub fn credits(seed: u64) -> Scene {
    let vocab = 9000;
    let (parameters, additions) = additions(vocab);
    let logits = rough_logits(seed, vocab);
    let rows = rows_of(2, parameters.len());
    let mut words = additions.credit_words(&rows);
    let at =
        |[request, position]: [u32; 2]| (request * CREDIT_WINDOW + position % CREDIT_WINDOW) as usize * CREDIT_WORDS;
    // The second row of each request finds the credits of another position.
    rows.iter().skip(1).step_by(2).for_each(|&row| words[at(row)] += CREDIT_WINDOW);
    let head = Head::whole(Arch::Sm80, vocab as usize);
    let launch = launch(&logits, vocab as usize, &rows, &parameters, &additions, head)
        .poisoned("partials", rows.len() * (SAMPLER.records(vocab) * PARTIAL_BYTES) as usize)
        .array("tickets", vec![0u32; rows.len()])
        .array("credits", words.clone())
        .u32("credit_pass", 1)
        .u32("entropies", 0)
        .poisoned("statistics", rows.len() * size_of::<RowStatistics>());
    Scene::new(launch, &[("credits", Agreement::Float(1e-5)), ("tickets", Agreement::Exact)], move |outcome| {
        let found = outcome.read::<u32>("credits")?;
        let untouched = outcome.read::<u32>("statistics")?.iter().all(|&word| word == u32::MAX);
        let mut verdict = if untouched { Ok(()) } else { Err("statistics were written".into()) };
        for (i, &[request, position]) in rows.iter().enumerate() {
            let (number, own) = (request as usize, &parameters[request as usize]);
            let at = at([request, position]);
            let words = &found[at..at + CREDIT_WORDS];
            let what = format!("row {i}");
            if own.credit_weight == 0.0 {
                verdict = verdict.and(equal(&what, &words[..1], &[position + 1 + i as u32 % 2 * CREDIT_WINDOW]));
                continue;
            }
            // Request 0 is at its first step.
            let before = if number == 0 || i % 2 == 1 { &[][..] } else { &additions.credits[number][..] };
            let row: Vec<f64> = rounded(&logits[i % 2 * vocab as usize..][..vocab as usize]);
            let plain = RowParameters { credit_weight: 0.0, ..*own };
            let changed = additions.changed(&row, number, &plain);
            let row = oracle::row_with(&row, &changed, own).expect("rows have finite logits");
            let best = row.ranking[0];
            let expected = oracle::credited(before, own, best as u32, row.probabilities[best]);
            let (ids, numbers): (Vec<u32>, Vec<f32>) =
                words[2..].chunks(2).take(expected.len()).map(|pair| (pair[0], f32::from_bits(pair[1]))).unzip();
            let expected: (Vec<u32>, Vec<f32>) = expected.into_iter().unzip();
            verdict = verdict
                .and(equal(&format!("{what}: owner, count"), &words[..2], &[position + 1, expected.0.len() as u32]))
                .and(equal(&format!("{what}: tokens"), &ids, &expected.0))
                .and(floats(&format!("{what}: credits"), &numbers, &expected.1, 1e-5));
        }
        Ok(verdict)
    })
}

/// As many rows of each request.
fn rows_of(each: usize, requests: usize) -> Vec<[u32; 2]> {
    (0..each * requests).map(|i| [(i / each) as u32, 100 * i as u32 + 1]).collect()
}

fn rounded(logits: &[f64]) -> Vec<f64> {
    logits.iter().map(|&logit| bf16::from_f64(logit).to_f64()).collect()
}

const SAMPLER: SamplerSpec = SamplerSpec { dtype: LogitsType::Bf16, guided: false, arch: Arch::Sm80 };

/// The row kernel on rows that take turns with the rows of logits, but for its outputs, and the arguments that say which of its
/// launches it is. Requests have taken as many steps as their number says.
fn launch(
    logits: &[f64],
    vocab: usize,
    rows: &[[u32; 2]],
    parameters: &[RowParameters],
    additions: &Additions,
    head: Head,
) -> Launch {
    let spec = SamplerSpec { arch: head.arch, ..SAMPLER };
    let sources = logits.len() / vocab;
    let states = (0..parameters.len() as u32).map(|step| RequestState { step, ..Default::default() }).collect();
    let count = rows.len();
    // Most warps do some segments, and some fewer; blocks share rows.
    let segments = count as u32 * spec.segments(vocab as u32);
    Launch::new(&spec, [segments.div_ceil(14), 1, 1])
        .array("logits", logits.iter().copied().map(bf16::from_f64).collect())
        .u64("logits_stride", 2 * vocab as u64)
        .u32("logits_count", sources as u32)
        .u32("vocab", vocab as u32)
        .array("logits_rows", (0..count).map(|i| (i % sources) as u32).collect())
        .array("rows", rows.concat())
        .array("totals", vec![count as u32, 0, 0, 0])
        .array("parameters", parameters.to_vec())
        .array::<RequestState>("states", states)
        .u32("requests", parameters.len() as u32)
        .array("biases", additions.biases.iter().flat_map(|&(id, bias)| [id, bias.to_bits()]).collect())
        .u32("biases_length", additions.biases.len() as u32)
        .u32("credit_window", CREDIT_WINDOW)
        .u32("first_token", head.first_token)
        .u32("row_vocab", head.row_vocab)
        .u32("records", head.records)
}

/// The architecture of the row kernel, which tokens of a row the logits are, and the records that a row has room for.
#[derive(Clone, Copy)]
struct Head {
    arch: Arch,
    first_token: u32,
    row_vocab: u32,
    records: u32,
}

impl Head {
    /// All of them.
    fn whole(arch: Arch, vocab: usize) -> Head {
        Head { arch, first_token: 0, row_vocab: vocab as u32, records: SAMPLER.records(vocab as u32) }
    }
}

/// Rows from the records of three parts of the vocabulary, which the embedded backend has left.
///
/// # Errors
/// From the embedded backend.
pub fn merged_rows(seed: u64) -> Result<Scene, Error> {
    let (vocab, part) = (9000usize, 4096usize);
    let first = sampling_flags::TOP_K_FIRST;
    let cases = [(0.0, 1.0, 0, 0), (1.0, 1.0, 0, 0), (0.7, 0.9, 0, 0), (1.3, 0.6, 20, first), (2.5, 0.7, 0, 0)];
    let request = |(stream, (temperature, top_p, top_k, flags))| RowParameters {
        temperature,
        top_p,
        top_k,
        flags,
        stream,
        confidence: stream % 3,
        seed_low: 29,
        ..Default::default()
    };
    let parameters: Vec<RowParameters> = (0u32..).zip(cases).map(request).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let logits: Vec<f64> = (0..2 * vocab).map(|_| (32.0 * super::normal(&mut random)).round() / 4.0).collect();
    let rows = rows_of(2, parameters.len());
    let records = SAMPLER.records(part as u32);
    let mut left = Vec::new();
    for first in (0..vocab).step_by(part) {
        let end = vocab.min(first + part);
        let columns: Vec<f64> = logits.chunks(vocab).flat_map(|row| row[first..end].to_vec()).collect();
        let head = Head { arch: Arch::Sm80, first_token: first as u32, row_vocab: vocab as u32, records };
        let launch = launch(&columns, end - first, &rows, &parameters, &Additions::default(), head)
            .poisoned("partials", rows.len() * (records * PARTIAL_BYTES) as usize)
            .null("tickets")
            .null("statistics")
            .null("credits")
            .u32("credit_pass", 0)
            .u32("entropies", 0);
        left.extend(launch.run(&Device::emulator())?.read::<u32>("partials")?);
    }
    let states = (0..parameters.len() as u32).map(|step| RequestState { step, ..Default::default() }).collect();
    let count = rows.len();
    let spec = RowMergeSpec { sampler: SAMPLER };
    let launch = Launch::new(&spec, spec.grid(count as u32 / 2))
        .u32("logits_count", 2)
        .u32("row_vocab", vocab as u32)
        .array("logits_rows", (0..count as u32).map(|i| i % 2).collect())
        .array("rows", rows.concat())
        .array("totals", vec![count as u32, 0, 0, 0])
        .array("parameters", parameters.clone())
        .array::<RequestState>("states", states)
        .u32("requests", parameters.len() as u32)
        .array("partials", left)
        .u32("biases_length", 0)
        .null("credits")
        .u32("credit_window", 0)
        .u32("credit_pass", 0)
        .u32("entropies", 0)
        .u32("records", records)
        .u32("shards", vocab.div_ceil(part) as u32)
        .u32("shard_tokens", part as u32)
        .u64("shard_stride", u64::from(count as u32 * records * PARTIAL_BYTES))
        .poisoned("statistics", count * size_of::<RowStatistics>());
    Ok(Scene::new(launch, &[("statistics", Agreement::Statistics)], move |outcome| {
        let found = outcome.read::<RowStatistics>("statistics")?;
        let check = |(i, &[request, position]): (usize, &[u32; 2])| -> Verdict {
            let logits = rounded(&logits[i % 2 * vocab..][..vocab]);
            let parameters = &parameters[request as usize];
            check_row(&format!("row {i}"), &found[i], (&logits, &[]), parameters, (request, position))
        };
        Ok(rows.iter().enumerate().map(check).find(Verdict::is_err).unwrap_or(Ok(())))
    }))
}

/// Each request draws from every row of logits, or `each` times if there is one.
fn sampled(
    arch: Arch,
    logits: Vec<f64>,
    vocab: usize,
    each: usize,
    parameters: Vec<RowParameters>,
    additions: Additions,
) -> Scene {
    let rows = rows_of(each, parameters.len());
    let (sources, count) = (logits.len() / vocab, rows.len());
    let launch = launch(&logits, vocab, &rows, &parameters, &additions, Head::whole(arch, vocab))
        .poisoned("partials", count * (SAMPLER.records(vocab as u32) * PARTIAL_BYTES) as usize)
        .array("tickets", vec![0u32; count]);
    let launch = match additions.credits.is_empty() {
        true => launch.null("credits"),
        false => launch.array("credits", additions.credit_words(&rows)),
    };
    let launch = launch
        .u32("credit_pass", 0)
        .u32("entropies", 0)
        .poisoned("statistics", (count + 1) * size_of::<RowStatistics>());
    Scene::new(launch, &[("statistics", Agreement::Statistics), ("tickets", Agreement::Exact)], move |outcome| {
        let found = outcome.read::<RowStatistics>("statistics")?;
        let check = |(i, &[request, position]): (usize, &[u32; 2])| -> Verdict {
            let logits = rounded(&logits[i % sources * vocab..][..vocab]);
            let parameters = &parameters[request as usize];
            let changed = additions.changed(&logits, request as usize, parameters);
            check_row(&format!("row {i}"), &found[i], (&logits, &changed), parameters, (request, position))
        };
        let untouched = found[count].token == u32::MAX;
        let past = if untouched { Ok(()) } else { Err("a row past the last was written".into()) };
        Ok(rows.iter().enumerate().map(check).find(Verdict::is_err).unwrap_or(past))
    })
}

fn check_row(
    what: &str,
    found: &RowStatistics,
    (logits, changed): (&[f64], &[(usize, f64)]),
    parameters: &RowParameters,
    (step, position): (u32, u32),
) -> Verdict {
    let row = oracle::row_with(logits, changed, parameters).ok_or("the scene has a row without a finite logit")?;
    let segment = SAMPLER.segment() as usize;
    let token = found.token as usize;
    equal(&format!("{what}: flags, best token"), &[found.flags, found.argmax], &[0, row.ranking[0] as u32])?;
    let drawn = format!("{what}: drew token {token}");
    if token >= logits.len() {
        return Err(drawn + ", which does not exist");
    }
    let distance = row.distance(token, oracle::uniforms(parameters, step, position), segment);
    if parameters.temperature > 0.0 && distance > 1e-6 {
        return Err(format!("{drawn}, whose interval is {distance:.1e} away"));
    }
    if parameters.temperature <= 0.0 && token != row.ranking[0] {
        return Err(format!("{drawn}, not the best, {}", row.ranking[0]));
    }
    let second = row.ranking.get(1).map_or(f64::NEG_INFINITY, |&id| row.logits[id]);
    let numbers = [found.max, found.second, found.lse, found.lse_tempered, found.logit, found.negative_entropy];
    let spared = parameters.flags & sampling_flags::WITHOUT_ENTROPY != 0;
    let is_confidence = parameters.confidence >= 2 && parameters.flags & sampling_flags::FILTERED_CONFIDENCE == 0;
    let entropy =
        if spared && !is_confidence { f64::NEG_INFINITY } else { oracle::negative_entropy(&row.probabilities) };
    let expected = [row.logits[row.ranking[0]], second, row.lse, row.lse_tempered, row.logits[token], entropy];
    floats(&format!("{what}: logits and sums"), &numbers, &expected.map(|x| x as f32), 1e-5)?;
    let probabilities = [found.probability, found.filtered_probability, found.confidence];
    let confidence = row.confidence(parameters, token);
    let expected = [row.probabilities[token], row.filtered[token], confidence];
    floats(&format!("{what}: probabilities"), &probabilities, &expected.map(|x| x as f32), 1e-5)
}

/// One step of two requests under every rule, with ties in their confidences: most in the middle of their blocks, where rows
/// that were decoded are listed too.
pub fn selection(arch: Arch, seed: u64) -> Scene {
    const MASK: u32 = 90;
    let mut random = StdRng::seed_from_u64(seed);
    let mut tokens = vec![7; 3];
    let mut requests = Vec::new();
    let all = rules(MASK).into_iter().map(|(_, request)| request);
    let count = all.len();
    for (i, request) in all.clone().chain(all.clone()).chain(all.take(6)).enumerate() {
        // All kinds of windows; then one that is well under way, for each rule.
        let (length, block) = if i < count { ([40u32, 9, 200, 64, 33][i % 5], [0, 8, 64][i % 3]) } else { (64, 0) };
        let first_token = tokens.len() as u32;
        let start = i as u32 % 3;
        tokens.extend(vec![MASK; start as usize]);
        // Some blocks are given as a whole.
        let given = |random: &mut StdRng, place| block == 8 && (8..24).contains(&place) || random.random_bool(0.2);
        tokens
            .extend((0..length).map(|place| if given(&mut random, place) { random.random_range(0..50) } else { MASK }));
        tokens.extend([MASK, 8]);
        // Some wait for a refresh when a block begins, or after two of its steps.
        let refresh = if i < 2 * count { Refresh::default() } else { Refresh { steps: i as u32 % 2, every: 2 } };
        let window = start..start + length;
        let request = Request { first_token, window, block, row_base: 1000 * i as u32, refresh, ..request };
        requests.push(oracle::Selection::new(request.select_parameters()));
    }
    // What a row kernel might say: most confidences are one of a few.
    let mut say = |list: &[u32]| {
        let row = |&position: &u32| {
            let statistics = RowStatistics {
                token: random.random_range(0..50),
                confidence: if random.random_bool(0.3) {
                    random.random()
                } else {
                    f32::from(random.random_range(0..6u8)) / 5.0
                },
                negative_entropy: -f32::from(random.random_range(0..40u8)) / 64.0,
                logit: f32::from(random.random_range(0..40u8)),
                lse: 41.5,
                ..Default::default()
            };
            (position, statistics)
        };
        list.iter().map(row).collect::<Vec<_>>()
    };
    let mut said = Vec::new();
    for (i, request) in requests.iter_mut().enumerate() {
        let mut rows = say(&request.launch(&mut tokens, &[], false, false).listed);
        for _ in 0..if i < count { i % 4 } else { 1 } {
            rows = say(&request.launch(&mut tokens, &rows, true, false).listed);
        }
        // Where a response may end it does so at the first row; or, with masks ahead of it, not yet at the last one.
        let (end, last) = (request.parameters.end_tokens[0], rows.len().saturating_sub(1));
        if let Some((_, row)) = rows.get_mut(if i < count { last } else { 0 }).filter(|_| end != MASK) {
            (row.token, row.confidence) = (end, 1.0);
        }
        said.push(rows);
    }
    let (mut list, mut statistics) = (Vec::new(), Vec::new());
    for (i, (request, rows)) in requests.iter_mut().zip(&said).enumerate() {
        request.state.first_row = list.len() as u32;
        list.extend(rows.iter().map(|(position, _)| [i as u32, *position]));
        statistics.extend(rows.iter().map(|(_, statistics)| *statistics));
    }
    let listed = list.len() as u32;
    let capacity = requests.iter().map(|request| request.parameters.window_length).sum::<u32>() + 3;
    let mut words = list.concat();
    words.resize(2 * capacity as usize, u32::MAX);
    statistics.resize(capacity as usize, RowStatistics::default());
    let length = tokens.len();
    let launch = Launch::new(&SelectionSpec { window: 256, arch }, [requests.len() as u32, 1, 1])
        .array("parameters", requests.iter().map(|request| request.parameters).collect())
        .array("states", requests.iter().map(|request| request.state).collect())
        .array("statistics", statistics)
        .array("tokens", tokens.clone())
        .u32("tokens_length", length as u32)
        .u32("advance", 1)
        .u32("refresh", 0)
        .array("rows", words)
        .poisoned("sources", 4 * capacity as usize)
        .u32("capacity", capacity)
        .array("totals", vec![listed, requests.len() as u32, 0, 0])
        .poisoned("staging", requests.len() * STAGING_BYTES as usize)
        .array("open", requests.iter().flat_map(oracle::Selection::open_words).collect())
        .poisoned("trajectory_steps", 4 * length)
        .poisoned("trajectory_confidence", 4 * length)
        .poisoned("trajectory_log_probability", 4 * length)
        .poisoned("trajectory_entropy", 4 * length);
    let outputs = [
        "states",
        "tokens",
        "rows",
        "sources",
        "totals",
        "open",
        "trajectory_steps",
        "trajectory_confidence",
        "trajectory_log_probability",
        "trajectory_entropy",
    ];
    Scene::new(launch, &outputs.map(|name| (name, Agreement::Exact)), move |outcome| {
        let (mut after, mut list, mut sources, mut decoded) = (tokens.clone(), Vec::new(), Vec::new(), Vec::new());
        let mut written = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let mut request = request.clone();
            let selected = request.launch(&mut after, &said[i], true, false);
            request.state.first_row = list.len() as u32;
            let base = request.parameters.row_base;
            sources.extend(selected.listed.iter().map(|position| base.wrapping_add(*position)));
            list.extend(selected.listed.into_iter().map(|position| [i as u32, position]));
            let element = |position| (request.parameters.first_token + position) as usize;
            written.extend(selected.written.iter().map(|&(position, step, row)| (element(position), step, row)));
            decoded.push(request);
        }
        sources.resize(capacity as usize, 0);
        let open: Vec<u32> = decoded.iter().flat_map(oracle::Selection::open_words).collect();
        let states: Vec<RequestState> = decoded.iter().map(|request| request.state).collect();
        let unfinished = states.iter().filter(|state| state.flags & request_flags::DONE == 0).count();
        let waiting = states.iter().filter(|state| state.flags & request_flags::WAITING != 0).count();
        let mut steps = vec![u32::MAX; length];
        let mut figures = vec![[u32::MAX; 3]; length];
        for (at, step, row) in written {
            let probability = row.logit - row.lse;
            (steps[at], figures[at]) =
                (step, [row.confidence, probability, 0.0 - row.negative_entropy].map(f32::to_bits));
        }
        let figure = |i: usize| figures.iter().map(|figures| figures[i]).collect::<Vec<u32>>();
        let words = |name| outcome.read::<u32>(name);
        let verdict = equal("tokens", &words("tokens")?, &after)
            .and(equal("states", &outcome.read::<RequestState>("states")?, &states))
            .and(equal("totals", &words("totals")?, &[list.len() as u32, unfinished as u32, 0, waiting as u32]))
            .and(equal("list", &words("rows")?[..2 * list.len()], &list.concat()))
            .and(equal("sources", &words("sources")?, &sources))
            .and(equal("open positions", &words("open")?, &open))
            .and(equal("steps", &words("trajectory_steps")?, &steps))
            .and(equal("confidences", &words("trajectory_confidence")?, &figure(0)))
            .and(equal("log-probabilities", &words("trajectory_log_probability")?, &figure(1)))
            .and(equal("entropies", &words("trajectory_entropy")?, &figure(2)));
        Ok(verdict)
    })
}
