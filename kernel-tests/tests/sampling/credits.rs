//! Credits of tokens that were the best at earlier steps.

use super::*;
use ptx::kernels::sampling::{CREDIT_BYTES, MAX_CREDITS};

/// A request with credits.
fn credited(stream: u32) -> RowParameters {
    RowParameters {
        temperature: [0.0, 0.7, 0.5][stream as usize % 3],
        top_p: [1.0, 1.0, 0.9][stream as usize % 3],
        confidence: stream % 3,
        stream,
        credit_weight: 0.7,
        credit_decay: 0.8,
        credit_exponent: 0.2,
        ..Default::default()
    }
}

/// Positions decoded at a time, and their credits.
struct Credits {
    window: u32,
    memory: Buffer,
}

impl Credits {
    fn new(sampler: &Sampler, requests: u32, window: u32) -> Credits {
        let bytes = (requests * window * CREDIT_BYTES) as usize;
        Credits { window, memory: sampler.device.upload(&sampler.stream, &vec![0u8; bytes]).unwrap() }
    }

    /// The launch that counts, which says nothing, and the one that decides.
    fn step(&self, sampler: &Sampler, batch: &Batch<'_>, biases: &[(u32, f32)]) -> Vec<RowStatistics> {
        let credits = Some((&self.memory, self.window));
        let counted = sampler.run_with(batch, &Additions { biases, credits, counts: true, entropies: false });
        assert!(counted.iter().all(|row| row.token == 0xA5A5_A5A5), "counting writes statistics");
        sampler.run_with(batch, &Additions { biases, credits, counts: false, entropies: false })
    }

    /// Those of a position, and whose they are.
    fn of(&self, sampler: &Sampler, request: u32, position: u32) -> (u32, Vec<(u32, f32)>) {
        let words: Vec<u32> = self.memory.read(&sampler.stream).unwrap();
        let place = (request * self.window + position % self.window) * CREDIT_BYTES / 4;
        let [owner, count] = [words[place as usize], words[place as usize + 1]];
        let pairs = words[place as usize + 2..].chunks(2).take(count as usize);
        (owner, pairs.map(|pair| (pair[0], f32::from_bits(pair[1]))).collect())
    }
}

/// Many steps, of more best tokens than a position keeps, against the definition.
#[test]
fn credits_grow_and_shrink_as_defined() {
    let mut random = generator(16);
    let (vocab, positions) = (600usize, [8u32, 9, 21]);
    let biases = [(4, 0.5), (30, f32::NEG_INFINITY), (31, 1.0)];
    let requests: Vec<RowParameters> =
        (0..3).map(|i| RowParameters { bias_count: if i == 1 { 3 } else { 0 }, ..credited(i) }).collect();
    let rows: Vec<[u32; 2]> = (0..3).map(|i| [i, positions[i as usize]]).collect();
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::Bf16);
        let memory = Credits::new(&sampler, 3, 8);
        let mut expected = vec![Vec::new(); 3];
        let mut replaced = 0;
        for step in 0..50u32 {
            let logits: Vec<f32> = (0..3 * vocab).map(|_| random.random_range(-3.0..3.0)).collect();
            let batch =
                Batch { logits: &logits, vocab, rows: &rows, sources: None, parameters: &requests, steps: &[step; 3] };
            let found = memory.step(&sampler, &batch, &biases);
            for (i, (found, credits)) in found.iter().zip(&mut expected).enumerate() {
                let what = format!("step {step}, row {i}");
                let (request, exact) = (&requests[i], rounded(LogitsType::Bf16, &logits[i * vocab..][..vocab]));
                let biases = biases_of(request, &biases);
                let plain = oracle::row_with(&exact, &oracle::changed(&exact, biases, &[], 0.0), request).unwrap();
                let best = plain.ranking[0];
                replaced += u32::from(credits.len() == MAX_CREDITS as usize);
                *credits = oracle::credited(credits, request, best as u32, plain.probabilities[best]);
                let (owner, kept) = memory.of(&sampler, i as u32, positions[i]);
                assert_eq!(owner, positions[i] + 1, "{what}");
                let ids = |list: &[(u32, f32)]| list.iter().map(|entry| entry.0).collect::<Vec<_>>();
                assert_eq!(ids(&kept), ids(credits), "{what}");
                for (&(id, kept), &(_, credit)) in kept.iter().zip(&*credits) {
                    assert_near(&format!("{what}: credit of {id}"), kept, credit.into(), 1e-6);
                }
                // What is fused is what the kernel has kept: the rounding of single steps does not add up.
                let changed = oracle::changed(&exact, biases, &kept, request.credit_weight);
                let row = oracle::row_with(&exact, &changed, request).unwrap();
                let token = found.token as usize;
                assert_eq!((found.flags, found.argmax as usize), (0, row.ranking[0]), "{what}");
                assert_near(&format!("{what}: max"), found.max, row.logits[row.ranking[0]], 1e-5);
                assert_near(&format!("{what}: second"), found.second, row.logits[row.ranking[1]], 1e-5);
                assert_near(&format!("{what}: lse"), found.lse, row.lse, 1e-5);
                assert_near(&format!("{what}: logit"), found.logit, row.logits[token], 1e-5);
                assert_near(&format!("{what}: probability"), found.probability, row.probabilities[token], 1e-6);
                let uniforms = oracle::uniforms(request, step, positions[i]);
                let distance = row.distance(token, uniforms, sampler.spec.segment() as usize);
                let drawn = if request.temperature > 0.0 { distance < 1e-5 } else { token == row.ranking[0] };
                assert!(drawn || row.slack < 1e-5, "{what}: drew {token}, {distance:e} away");
            }
        }
        assert!(replaced > 20, "too few distinct tokens: {replaced}");
    }
}

#[test]
fn a_new_request_or_block_begins_without_credits() {
    let logits = [0.0f32, 2.0, 1.0];
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F32);
        let memory = Credits::new(&sampler, 1, 4);
        let step = |position, step| {
            let batch = Batch {
                logits: &logits,
                vocab: 3,
                rows: &[[0, position]],
                sources: None,
                parameters: &[credited(0)],
                steps: &[step],
            };
            let found = memory.step(&sampler, &batch, &[])[0];
            (found.max, memory.of(&sampler, 0, position))
        };
        let (fresh, first) = step(2, 0);
        let (second, _) = step(2, 1);
        assert!(fresh > 2.0 && second > fresh, "{second} after {fresh}");
        // The place of position 6 is that of position 2.
        assert_eq!((step(6, 2).0, memory.of(&sampler, 0, 6).0), (fresh, 7));
        assert!(step(6, 3).0 > fresh);
        assert_eq!(step(6, 0).0, fresh);
        assert_eq!(step(2, 9), (fresh, first));
    }
}

#[test]
fn requests_without_credits_do_not_notice_others() {
    let mut random = generator(17);
    let vocab = 200;
    let logits: Vec<f32> = (0..3 * vocab).map(|_| random.random_range(-3.0..3.0)).collect();
    let plain = RowParameters { credit_weight: 0.0, ..credited(2) };
    for device in testing::devices() {
        let sampler = Sampler::new(&device, LogitsType::F16);
        let run = |parameters: &[RowParameters], memory: Option<&Credits>| {
            let batch = Batch {
                logits: &logits,
                vocab,
                rows: &[[0, 1], [1, 1], [2, 1]],
                sources: None,
                parameters,
                steps: &[4; 3],
            };
            match memory {
                Some(memory) => memory.step(&sampler, &batch, &[]),
                None => sampler.run(&batch),
            }
        };
        let memory = Credits::new(&sampler, 3, 2);
        let mixed = run(&[plain, credited(1), plain], Some(&memory));
        let alone = run(&[plain; 3], None);
        assert_eq!([mixed[0], mixed[2]], [alone[0], alone[2]]);
        assert_eq!(memory.of(&sampler, 0, 1).0, 0, "nothing is kept for them");
        // Without memory for them, nobody has credits.
        assert_eq!(run(&[plain, credited(1), plain], None)[1].max, rounded_max(&logits[vocab..2 * vocab]));
    }
}

fn rounded_max(logits: &[f32]) -> f32 {
    rounded(LogitsType::F16, logits).into_iter().fold(f64::NEG_INFINITY, f64::max) as f32
}
