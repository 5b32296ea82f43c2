//! Logits that requests change by biases of their own.

use super::*;

/// Requests with lists of their own: the parameters that name them, and all biases.
fn with_lists(requests: Vec<RowParameters>, lists: &[Vec<(u32, f32)>]) -> (Vec<RowParameters>, Vec<(u32, f32)>) {
    let mut biases = Vec::new();
    let requests = requests.into_iter().zip(lists.iter().cycle()).map(|(request, list)| {
        let bias_start = biases.len() as u32;
        biases.extend(list);
        RowParameters { bias_start, bias_count: list.len() as u32, ..request }
    });
    (requests.collect(), biases)
}

#[test]
fn biases_count_on_the_long_way() {
    let mut random = generator(9);
    let vocab = 5000;
    let logits = flat_rows(&mut random, vocab);
    let few = vec![(0, -0.5), (7, f32::NEG_INFINITY), (2047, 0.125), (2048, 0.5), (4999, 1.0)];
    let many = (0..vocab as u32).step_by(11).map(|id| (id, (id % 5) as f32 / 8.0 - 0.25)).collect();
    let (requests, biases) = with_lists(flat_requests(), &[few, many]);
    check_pairs(&logits, vocab, &requests, &biases);
}

/// More changed tokens than their record has room for, and some in a segment that is crowded without them.
#[test]
fn many_good_changed_tokens_are_looked_up_again() {
    let mut random = generator(13);
    let vocab = 9000;
    let logits = crowds(&mut random);
    let raised = (0..120).map(|i| (26 * i, 2.0 + (i % 4) as f32)).collect();
    let far = (0..200).map(|i| (40 * i + 1, 10.0 + (i % 7) as f32 / 8.0)).collect();
    let requests = (0..4)
        .map(|stream| RowParameters {
            temperature: 0.5,
            top_p: [0.95, 0.9999][stream as usize / 2],
            flags: sampling_flags::FILTERED_CONFIDENCE,
            confidence: stream % 3,
            seed_low: 5,
            stream,
            ..Default::default()
        })
        .collect();
    let (requests, biases) = with_lists(requests, &[raised, far]);
    check_pairs(&logits, vocab, &requests, &biases);
}

/// Runs one request on a row of logits that are exact in every type.
fn run_one(sampler: &Sampler, logits: &[f32], biases: &[(u32, f32)], request: RowParameters) -> RowStatistics {
    let request = RowParameters { top_p: 1.0, bias_count: biases.len() as u32, ..request };
    let batch =
        Batch { logits, vocab: logits.len(), rows: &[[0, 0]], sources: None, parameters: &[request], steps: &[1] };
    sampler.run_with(&batch, &Additions { biases, ..Additions::default() })[0]
}

#[test]
fn ties_go_to_the_lowest_id_whether_changed_or_not() {
    let mut logits = vec![0.5f32; 4100];
    (logits[3], logits[4098]) = (2.0, 2.0);
    for (device, dtype) in testing::devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d.clone(), dtype))) {
        let sampler = Sampler::new(&device, dtype);
        let best = |biases: &[(u32, f32)]| {
            let found = run_one(&sampler, &logits, biases, RowParameters::default());
            (found.argmax, found.token, found.max, found.second)
        };
        assert_eq!(best(&[]), (3, 3, 2.0, 2.0));
        assert_eq!(best(&[(1, 1.5), (5, 1.5)]), (1, 1, 2.0, 2.0));
        assert_eq!(best(&[(2, -0.25), (5, 1.5)]), (3, 3, 2.0, 2.0));
        assert_eq!(best(&[(3, f32::NEG_INFINITY), (4097, 1.5)]), (4097, 4097, 2.0, 2.0));
        assert_eq!(best(&[(3, 0.0), (4098, 0.0)]), (3, 3, 2.0, 2.0));
        assert_eq!(best(&[(3, -1.0), (4098, 1e-3)]), (4098, 4098, 2.001, 1.0));
    }
}

#[test]
fn a_row_without_a_token_left_is_flagged() {
    let all: Vec<(u32, f32)> = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::Bf16);
        for request in [RowParameters::default(), RowParameters { temperature: 0.5, top_k: 2, ..Default::default() }] {
            assert_eq!(run_one(&sampler, &[0.5; 3], &all, request).flags, row_flags::NOT_FINITE);
            let limited = RowParameters { vocab_limit: 2, ..request };
            assert_eq!(run_one(&sampler, &[0.5; 3], &all[..2], limited).flags, row_flags::NOT_FINITE);
            assert_eq!(run_one(&sampler, &[0.5; 3], &all[..2], request).token, 2);
        }
    }
}

#[test]
fn infinite_and_overflowing_sums_are_the_largest_numbers() {
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let logits = [1.0, f32::NAN, f32::MAX, f32::NEG_INFINITY, f32::INFINITY];
        let biases = [(0, 2.0), (1, 5.0), (2, 1e38), (3, 7.0), (4, -1e38)];
        let found = run_one(&sampler, &logits, &biases, RowParameters::default());
        assert_eq!((found.argmax, found.max, found.second), (2, f32::MAX, f32::MAX - 1e38));
    }
}

#[test]
fn draws_follow_the_biased_distribution() {
    let mut random = generator(14);
    let (vocab, draws) = (300, 1200);
    let logits: Vec<f32> = (0..vocab).map(|_| random.random_range(-2.0..2.0)).collect();
    let biases: Vec<(u32, f32)> = (0..30).map(|i| (10 * i + 3, random.random_range(-2.0..3.0))).collect();
    let request = RowParameters {
        temperature: 0.8,
        top_p: 1.0,
        vocab_limit: 200,
        bias_count: 30,
        seed_low: random.random(),
        ..Default::default()
    };
    let rows: Vec<[u32; 2]> = (0..draws).map(|i| [0, i]).collect();
    let sources = vec![0; rows.len()];
    let exact = rounded(LogitsType::F16, &logits);
    let changed = oracle::changed(&exact, &biases, &[], 0.0);
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F16);
        for parameters in [request, RowParameters { top_p: 0.9, top_k: 60, ..request }] {
            let batch = Batch {
                logits: &logits,
                vocab,
                rows: &rows,
                sources: Some(&sources),
                parameters: &[parameters],
                steps: &[9],
            };
            let found = sampler.run_with(&batch, &Additions { biases: &biases, ..Additions::default() });
            assert_fair(&found, &oracle::row_with(&exact, &changed, &parameters).unwrap());
        }
    }
}

#[test]
fn wrong_lists_are_flagged_and_touch_nobody_else() {
    let mut random = generator(15);
    let vocab = 50;
    let logits: Vec<f32> = (0..3 * vocab).map(|_| random.random_range(-2.0..2.0)).collect();
    let request = |bias_start, bias_count, top_p| RowParameters {
        temperature: 1.0,
        top_p,
        bias_start,
        bias_count,
        ..Default::default()
    };
    let biases = [(3, 1.0), (9, -1.0), (9, 2.0), (8, 2.0), (50, 1.0), (u32::MAX, 1.0)];
    // As many as there is room for, and one more.
    let biases: Vec<(u32, f32)> = biases.into_iter().chain((0..481).map(|id| (id, 0.25))).collect();
    let (bad, outside) = (row_flags::BAD_BIASES, row_flags::OUT_OF_RANGE);
    for (device, top_p) in testing::devices().into_iter().flat_map(|d| [1.0, 0.9].map(|top_p| (d.clone(), top_p))) {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let run = |start, count| {
            let batch = Batch {
                logits: &logits,
                vocab,
                rows: &[[0, 4], [1, 5], [2, 6]],
                sources: None,
                parameters: &[request(0, 2, top_p), request(start, count, top_p), request(6, 40, top_p)],
                steps: &[3, 4, 5],
            };
            sampler.run_with(&batch, &Additions { biases: &biases, ..Additions::default() })
        };
        let plain = run(0, 1);
        assert!(plain.iter().all(|row| row.flags == 0));
        let wrong =
            [(1, 2, bad), (2, 2, bad), (3, 2, bad), (5, 1, bad), (6, 480, bad), (6, 481, outside), (488, 0, outside)];
        for (start, count, flag) in wrong.into_iter().chain([(1, u32::MAX, outside), (u32::MAX, 2, outside)]) {
            let found = run(start, count);
            assert_eq!([plain[0], plain[2]], [found[0], found[2]], "{count} from {start}");
            assert_eq!(found[1].flags, flag, "{count} from {start}");
        }
    }
}
