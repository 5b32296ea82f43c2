//! The row kernel and the selection kernel.

use super::{Agreement, Scene, Verdict, equal, floats};
use crate::{oracle::sampling as oracle, testing::launch::Launch};
use half::bf16;
use ptx::{
    Arch,
    kernels::sampling::{
        Confidence, LogitsType, RequestState, RowParameters, RowStatistics, STAGING_BYTES, SamplerSpec,
        SelectParameters, SelectionSpec, TOTALS_BYTES, request_flags, rule, sampling_flags,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Rows of logits for every kind of request: greedy, tempered, top-k, top-p.
pub fn rows(seed: u64) -> Scene {
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
        reserved: 0,
    };
    let parameters = cases.into_iter().enumerate().map(request).collect();
    let mut random = StdRng::seed_from_u64(seed);
    // Rounded, so that there are ties; and one thread of 512 sees the best logit of the second row twice.
    let logit = |i| (3.0 * super::normal(&mut random) * f64::from(1 << (i / 1000))).round() / 4.0;
    let mut logits: Vec<f64> = (0..2 * 1000).map(logit).collect();
    (logits[1007], logits[1007 + 512]) = (6.0, 6.0);
    sampled(logits, 1000, 2, parameters)
}

/// Many draws from one distribution.
pub fn draws(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let logits = (0..300).map(|_| random.random_range(-2.0..2.0)).collect();
    let parameters = RowParameters { temperature: 0.8, top_p: 0.9, top_k: 60, seed_low: 5, ..Default::default() };
    sampled(logits, 300, 40, vec![parameters])
}

/// Each request draws from every row of logits, or `each` times if there is one.
fn sampled(logits: Vec<f64>, vocab: usize, each: usize, parameters: Vec<RowParameters>) -> Scene {
    let logits: Vec<bf16> = logits.into_iter().map(bf16::from_f64).collect();
    let sources = logits.len() / vocab;
    let steps: Vec<u32> = (0..parameters.len() as u32).collect();
    let states = steps.iter().map(|&step| RequestState { step, ..Default::default() }).collect();
    let count = each * parameters.len();
    let rows: Vec<[u32; 2]> = (0..count).map(|i| [(i / each) as u32, 100 * i as u32 + 1]).collect();
    let spec = SamplerSpec { dtype: LogitsType::Bf16, confidence: Confidence::Probability, arch: Arch::Sm80 };
    // One block more than rows: the bound that a caller passes is seldom exact.
    let launch = Launch::new(&spec, [count as u32 + 1, 1, 1])
        .array("logits", logits.clone())
        .u64("logits_stride", 2 * vocab as u64)
        .u32("logits_count", sources as u32)
        .u32("vocab", vocab as u32)
        .array("logits_rows", (0..count).map(|i| (i % sources) as u32).collect())
        .array("rows", rows.concat())
        .array("totals", vec![count as u32, 0, 0, 0])
        .array("parameters", parameters.clone())
        .array::<RequestState>("states", states)
        .u32("requests", parameters.len() as u32)
        .poisoned("statistics", (count + 1) * size_of::<RowStatistics>());
    Scene::new(launch, &[("statistics", Agreement::Statistics)], move |outcome| {
        let found = outcome.read::<RowStatistics>("statistics")?;
        let check = |(i, &[request, position]): (usize, &[u32; 2])| -> Verdict {
            let logits = logits[i % sources * vocab..][..vocab].iter().map(|l| l.to_f64()).collect::<Vec<_>>();
            let parameters = &parameters[request as usize];
            check_row(&format!("row {i}"), &found[i], &logits, parameters, (steps[request as usize], position))
        };
        let untouched = found[count].token == u32::MAX;
        let past = if untouched { Ok(()) } else { Err("a row past the last was written".into()) };
        Ok(rows.iter().enumerate().map(check).find(Verdict::is_err).unwrap_or(past))
    })
}

fn check_row(
    what: &str,
    found: &RowStatistics,
    logits: &[f64],
    parameters: &RowParameters,
    (step, position): (u32, u32),
) -> Verdict {
    let row = oracle::row(logits, parameters).ok_or("the scene has a row without a finite logit")?;
    let token = found.token as usize;
    equal(&format!("{what}: flags, best token"), &[found.flags, found.argmax], &[0, row.ranking[0] as u32])?;
    let drawn = format!("{what}: drew token {token}");
    if token >= logits.len() {
        return Err(drawn + ", which does not exist");
    }
    let distance = row.distance(token, oracle::uniform(parameters, step, position));
    if parameters.temperature > 0.0 && distance > 1e-6 {
        return Err(format!("{drawn}, whose interval is {distance:.1e} away"));
    }
    if parameters.temperature <= 0.0 && token != row.ranking[0] {
        return Err(format!("{drawn}, not the best, {}", row.ranking[0]));
    }
    let second = row.ranking.get(1).map_or(f64::NEG_INFINITY, |&id| logits[id]);
    let numbers = [found.max, found.second, found.lse, found.lse_tempered, found.logit, found.negative_entropy];
    let entropy = oracle::negative_entropy(&row.probabilities);
    let expected = [logits[row.ranking[0]], second, row.lse, row.lse_tempered, logits[token], entropy];
    floats(&format!("{what}: logits and sums"), &numbers, &expected.map(|x| x as f32), 1e-5)?;
    let probabilities = [found.probability, found.filtered_probability, found.confidence];
    let confidence = row.confidence(Confidence::Probability, parameters, token);
    let expected = [row.probabilities[token], row.filtered[token], confidence];
    floats(&format!("{what}: probabilities"), &probabilities, &expected.map(|x| x as f32), 1e-5)
}

/// One step of five requests under every rule, with ties in their confidences.
pub fn selection(seed: u64) -> Scene {
    const MASK: u32 = 90;
    let mut random = StdRng::seed_from_u64(seed);
    let mut tokens = vec![7; 3];
    let mut parameters = Vec::new();
    for (i, window_length) in [40u32, 1, 200, 64, 33].into_iter().enumerate() {
        let window_start = i as u32 % 3;
        let first_token = tokens.len() as u32;
        tokens.extend(vec![MASK; window_start as usize]);
        tokens.extend(
            (0..window_length).map(|_| if random.random_bool(0.2) { random.random_range(0..50) } else { MASK }),
        );
        tokens.extend([MASK, 8]);
        parameters.push(SelectParameters {
            rule: [rule::TOP_K_TIME, rule::THRESHOLD, rule::TOP_K_EVEN][i % 3],
            steps: 5,
            threshold: 0.8,
            epsilon: 1e-3,
            mask_token: MASK,
            first_token,
            window_start,
            window_length,
            row_base: 1000 * i as u32,
            reserved: [0; 3],
        });
    }
    let capacity = parameters.iter().map(|p| p.window_length).sum::<u32>() + 3;
    // The first list, and what a row kernel might say of it: few distinct confidences.
    let mut states = vec![RequestState::default(); parameters.len()];
    let (mut list, mut statistics) = (Vec::new(), Vec::new());
    let mut said: Vec<Vec<(u32, RowStatistics)>> = Vec::new();
    for (i, (request, state)) in parameters.iter().zip(&mut states).enumerate() {
        state.first_row = statistics.len() as u32;
        let mut own = Vec::new();
        for position in oracle::select(request, state, &mut tokens, &[], false) {
            list.push([i as u32, position]);
            own.push((
                position,
                RowStatistics {
                    token: random.random_range(0..50),
                    confidence: f32::from(random.random_range(0..6u8)) / 5.0,
                    ..Default::default()
                },
            ));
        }
        statistics.extend(own.iter().map(|(_, statistics)| *statistics));
        said.push(own);
    }
    let rows = list.len();
    let words = |list: &[[u32; 2]]| {
        let mut words = list.concat();
        words.resize(2 * capacity as usize, u32::MAX);
        words
    };
    statistics.resize(capacity as usize, RowStatistics::default());
    let length = tokens.len();
    let launch = Launch::new(&SelectionSpec { arch: Arch::Sm80 }, [parameters.len() as u32, 1, 1])
        .array("parameters", parameters.clone())
        .array("states", states.clone())
        .array("statistics", statistics)
        .array("tokens", tokens.clone())
        .u32("tokens_length", length as u32)
        .u32("advance", 1)
        .array("rows", words(&list))
        .poisoned("sources", 4 * capacity as usize)
        .u32("capacity", capacity)
        .array("totals", vec![rows as u32, parameters.len() as u32, 0, 0])
        .poisoned("staging", parameters.len() * STAGING_BYTES as usize)
        .poisoned("trajectory_steps", 4 * length)
        .poisoned("trajectory_confidence", 4 * length);
    assert_eq!(TOTALS_BYTES, 16);
    let outputs = ["states", "tokens", "rows", "sources", "totals", "trajectory_steps", "trajectory_confidence"];
    Scene::new(launch, &outputs.map(|name| (name, Agreement::Exact)), move |outcome| {
        let (mut states, mut after) = (states.clone(), tokens.clone());
        let (mut list, mut sources) = (Vec::new(), Vec::new());
        for (i, (request, state)) in parameters.iter().zip(&mut states).enumerate() {
            let positions = oracle::select(request, state, &mut after, &said[i], true);
            state.first_row = list.len() as u32;
            sources.extend(positions.iter().map(|position| request.row_base.wrapping_add(*position)));
            list.extend(positions.into_iter().map(|position| [i as u32, position]));
        }
        sources.resize(capacity as usize, 0);
        let unfinished = states.iter().filter(|state| state.flags & request_flags::DONE == 0).count();
        let totals = [list.len() as u32, unfinished as u32, 0];
        let found = outcome.read::<u32>("tokens")?;
        let mut verdict = equal("tokens", &found, &after);
        let found = outcome.read::<RequestState>("states")?;
        verdict = verdict.and_then(|()| equal("states", &found, &states));
        let found = outcome.read::<u32>("totals")?;
        verdict = verdict.and_then(|()| equal("totals", &found[..3], &totals));
        let found = outcome.read::<u32>("rows")?;
        verdict = verdict.and_then(|()| equal("list", &found[..2 * list.len()], &list.concat()));
        let found = outcome.read::<u32>("sources")?;
        Ok(verdict.and_then(|()| equal("sources", &found, &sources)))
    })
}
