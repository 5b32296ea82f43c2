//! A vocabulary that several decoders share out.

use super::*;
use kernel_core::{
    DType, TensorView,
    sampling::{Credit, Decoder, Draw, Logits, Request, Room, Rule, Shard, Trajectory},
};

/// Rows, and positions of a request.
const ROWS: u32 = 18;
const WINDOW: u32 = 3;
const MASK: u32 = 1;

/// A batch of greedy, warm and filtered requests.
fn requests(change: impl Fn(u32, Draw) -> Draw) -> Vec<Request> {
    let cases = [(0.0, 1.0, 0), (1.0, 1.0, 0), (0.3, 0.9, 0), (0.7, 1.0, 5), (0.8, 0.6, 30), (0.5, 0.95, 0)];
    (0u32..)
        .zip(cases)
        .map(|(i, (temperature, top_p, top_k))| {
            let confidence = [Confidence::Probability, Confidence::Margin, Confidence::NegativeEntropy][i as usize % 3];
            let draw = Draw {
                temperature,
                top_p,
                top_k,
                confidence,
                filtered_confidence: i % 2 == 1,
                seed: 31,
                stream: i,
                ..Draw::greedy()
            };
            Request {
                rule: Rule::FirstHitting,
                draw: change(i, draw),
                ..Request::greedy(WINDOW * i, 0..WINDOW, WINDOW * i, MASK, 0.0)
            }
        })
        .collect()
}

/// Some steps, each on logits of its own for all positions: what the last of them found, and the tokens.
fn decode(
    device: &Device,
    requests: &[Request],
    steps: &[Vec<bf16>],
    vocab: u32,
    part: Option<u32>,
) -> (Vec<RowStatistics>, Vec<u32>) {
    let stream = Stream::new(device).unwrap();
    let room = Room { requests: requests.len() as u32, block: WINDOW, rows: ROWS, vocab };
    let credits = requests.iter().any(|request| request.draw.credit.is_some());
    let count = part.map_or(1, |tokens| vocab.div_ceil(tokens));
    let decoders: Vec<Decoder> = (0..count)
        .map(|rank| {
            let decoder = Decoder::new(device, DType::Bf16, room).unwrap();
            let decoder = if credits { decoder.with_credits().unwrap() } else { decoder };
            match part {
                Some(tokens) => decoder.with_shard(Shard { rank, count, tokens }).unwrap(),
                None => decoder,
            }
        })
        .collect();
    // Every device has tokens of its own.
    let tokens: Vec<Buffer> =
        decoders.iter().map(|_| device.upload(&stream, &[MASK; ROWS as usize]).unwrap()).collect();
    let view = |buffer| TensorView::new(buffer, DType::U32, &[ROWS.into()]).unwrap();
    for (decoder, tokens) in decoders.iter().zip(&tokens) {
        decoder.start(&stream, requests, &view(tokens)).unwrap();
    }
    let records: Vec<Buffer> =
        decoders.iter().map(|_| device.upload(&stream, &[-1f32; ROWS as usize]).unwrap()).collect();
    let record = |rank: usize| {
        let entropy = Some(TensorView::new(&records[rank], DType::F32, &[ROWS.into()]).unwrap());
        Trajectory { entropy, ..Trajectory::default() }
    };
    for logits in steps {
        let whole = device.upload(&stream, logits).unwrap();
        let Some(most) = part else {
            let values = TensorView::new(&whole, DType::Bf16, &[ROWS.into(), vocab.into()]).unwrap();
            let logits = Logits { values, gathered: false, guide_offset: 0 };
            decoders[0].step(&stream, &logits, &view(&tokens[0]), &record(0)).unwrap();
            continue;
        };
        let parts: Vec<Buffer> = (0..count)
            .map(|rank| {
                let columns = (rank * most) as usize..((rank + 1) * most).min(vocab) as usize;
                let rows = logits.chunks(vocab as usize).flat_map(|row| row[columns.clone()].to_vec());
                device.upload(&stream, &rows.collect::<Vec<_>>()).unwrap()
            })
            .collect();
        let logits: Vec<Logits<'_>> = (0..count)
            .zip(&parts)
            .map(|(rank, part)| {
                let own = most.min(vocab - rank * most);
                let values = TensorView::new(part, DType::Bf16, &[ROWS.into(), own.into()]).unwrap();
                Logits { values, gathered: false, guide_offset: 0 }
            })
            .collect();
        let words = decoders[0].record_words().unwrap();
        let gather = |counts: bool| -> Buffer {
            let all = decoders.iter().zip(&logits).flat_map(|(decoder, logits)| {
                // What nobody writes must not be read.
                let records = device.upload(&stream, &vec![u32::MAX; words as usize]).unwrap();
                let view = TensorView::new(&records, DType::U32, &[words]).unwrap();
                decoder.leave(&stream, logits, &view, counts).unwrap();
                records.read::<u32>(&stream).unwrap()
            });
            device.upload(&stream, &all.collect::<Vec<u32>>()).unwrap()
        };
        if credits {
            let gathered = gather(true);
            let gathered = TensorView::new(&gathered, DType::U32, &[count.into(), words]).unwrap();
            for (decoder, logits) in decoders.iter().zip(&logits) {
                decoder.count_credits(&stream, logits, &gathered).unwrap();
            }
        }
        let gathered = gather(false);
        let gathered = TensorView::new(&gathered, DType::U32, &[count.into(), words]).unwrap();
        for (rank, (decoder, logits)) in decoders.iter().zip(&logits).enumerate() {
            decoder.merged_step(&stream, logits, &gathered, &view(&tokens[rank]), &record(rank)).unwrap();
        }
    }
    let found: Vec<_> = decoders.iter().map(|decoder| decoder.statistics(&stream).unwrap()).collect();
    // A trajectory has the entropies, though no rule here goes by them.
    assert!(found.iter().flatten().all(|row| row.flags != 0 || row.negative_entropy.is_finite()));
    for records in &records {
        let entropies: Vec<f32> = records.read(&stream).unwrap();
        assert!(entropies.iter().all(|&entropy| entropy == -1.0 || (entropy >= 0.0 && entropy.is_finite())));
    }
    let written: Vec<Vec<u32>> = tokens.iter().map(|tokens| tokens.read(&stream).unwrap()).collect();
    assert!(found.iter().all(|other| *other == found[0]) && written.iter().all(|other| *other == written[0]));
    (found[0].clone(), written[0].clone())
}

fn random_steps(random: &mut StdRng, vocab: u32, count: usize) -> Vec<Vec<bf16>> {
    let mut step = || (0..ROWS * vocab).map(|_| bf16::from_f32(8.0 * normal(random))).collect();
    (0..count).map(|_| step()).collect()
}

#[test]
fn parts_of_whole_segments_give_the_same_bits() {
    let mut random = generator(21);
    // The last part is shorter, and its last segment too.
    let vocab = 3 * 4096 + 3000;
    let steps = random_steps(&mut random, vocab, 3);
    for device in testing::devices() {
        let requests = requests(|_, draw| draw);
        let whole = decode(&device, &requests, &steps, vocab, None);
        assert!(whole.0.iter().all(|row| row.flags == 0));
        for part in [4096, 8192, vocab] {
            assert_eq!(decode(&device, &requests, &steps, vocab, Some(part)), whole, "parts of {part}");
        }
    }
}

/// Parts of any length, biases, credits: sums have another order.
#[test]
fn other_parts_agree_within_rounding() {
    let mut random = generator(22);
    let vocab = 10_001;
    let steps = random_steps(&mut random, vocab, 3);
    let biases = vec![(0, 3.5), (2047, f32::NEG_INFINITY), (5001, 6.0), (9999, 5.0), (10_000, 5.0)];
    let plain = |draw: Draw| if draw.top_p < 1.0 || draw.top_k > 0 { draw } else { Draw { temperature: 0.0, ..draw } };
    let biased = |draw: Draw| Draw { biases: biases.clone(), ..draw };
    let credited = |draw: Draw| Draw { credit: Some(Credit::default()), ..draw };
    let mixes: [Box<dyn Fn(u32, Draw) -> Draw>; 3] = [
        Box::new(move |_, draw| plain(draw)),
        Box::new(|i, draw| if i % 2 == 0 { biased(plain(draw)) } else { plain(draw) }),
        Box::new(|i, draw| if i < 3 { credited(biased(plain(draw))) } else { plain(draw) }),
    ];
    for (device, mix) in testing::devices().into_iter().flat_map(|d| mixes.iter().map(move |mix| (d.clone(), mix))) {
        let requests = requests(mix);
        let (whole, tokens) = decode(&device, &requests, &steps, vocab, None);
        for part in [2501, 5001] {
            let (parts, written) = decode(&device, &requests, &steps, vocab, Some(part));
            assert_eq!(written, tokens, "parts of {part}");
            for (i, (found, one)) in parts.iter().zip(&whole).enumerate() {
                let what = format!("parts of {part}, row {i}");
                assert_eq!((found.flags, found.argmax, found.token), (0, one.argmax, one.token), "{what}");
                assert_eq!((found.max, found.second, found.logit), (one.max, one.second, one.logit), "{what}");
                for (name, found, one) in [
                    ("lse", found.lse, one.lse),
                    ("tempered lse", found.lse_tempered, one.lse_tempered),
                    ("probability", found.probability, one.probability),
                    ("filtered probability", found.filtered_probability, one.filtered_probability),
                    ("confidence", found.confidence, one.confidence),
                    ("entropy", found.negative_entropy, one.negative_entropy),
                ] {
                    assert_near(&format!("{what}: {name}"), found, one.into(), 1e-6);
                }
            }
        }
    }
}

/// Rows so flat that nobody without the logits can filter them; greedy ones are no worse off.
#[test]
fn flat_rows_are_flagged() {
    let vocab = 4096;
    let flat = vec![vec![bf16::from_f32(1.0); (ROWS * vocab) as usize]];
    for device in testing::devices() {
        let found = decode(&device, &requests(|_, draw| draw), &flat, vocab, Some(2048)).0;
        let flags: Vec<u32> = found.iter().step_by(WINDOW as usize).map(|row| row.flags).collect();
        let crowded = row_flags::CROWDED;
        assert_eq!(flags, [0, 0, crowded, crowded, crowded, crowded]);
    }
}

#[test]
fn parts_that_make_no_whole_are_refused() {
    let device = Device::emulator();
    let stream = Stream::new(&device).unwrap();
    let room = Room { requests: 1, block: WINDOW, rows: WINDOW, vocab: 100 };
    let decoder = || Decoder::new(&device, DType::F32, room).unwrap();
    for (shard, wrong) in [
        ((2, 2, 50), "rank 2 of 2 parts"),
        ((0, 0, 100), "rank 0 of 0 parts"),
        ((0, 2, 49), "2 parts of 49 tokens do not make 100"),
        ((0, 3, 50), "3 parts of 50 tokens"),
        ((0, 1, 0), "1 parts of 0 tokens"),
    ] {
        let (rank, count, tokens) = shard;
        let error = decoder().with_shard(Shard { rank, count, tokens }).err().unwrap().to_string();
        assert!(error.contains(wrong), "{error}");
    }
    let buffer = device.allocate(4096).unwrap();
    let view = |shape: &[u64]| TensorView::new(&buffer, DType::F32, shape).unwrap();
    let words = |shape: &[u64]| TensorView::new(&buffer, DType::U32, shape).unwrap();
    let logits = |shape: &[u64]| Logits { values: view(shape), gathered: true, guide_offset: 0 };
    let (tokens, none) = (words(&[3]), Trajectory::default());
    let whole = decoder();
    let error = whole.leave(&stream, &logits(&[3, 100]), &words(&[8]), false).unwrap_err().to_string();
    assert!(error.contains("has all of the vocabulary"), "{error}");
    let last = decoder().with_shard(Shard { rank: 1, count: 2, tokens: 60 }).unwrap();
    let error = last.step(&stream, &logits(&[3, 40]), &tokens, &none).unwrap_err().to_string();
    assert!(error.contains("take `leave` and `merged_step`"), "{error}");
    let error = last.leave(&stream, &logits(&[3, 39]), &words(&[8]), false).unwrap_err().to_string();
    assert!(error.contains("part 1 has 40 tokens"), "{error}");
    let error = last.leave(&stream, &logits(&[3, 40]), &words(&[8]), false).unwrap_err().to_string();
    assert!(error.contains("needs [words] = [768]"), "{error}");
    let error =
        last.merged_step(&stream, &logits(&[3, 40]), &words(&[1, 768]), &tokens, &none).unwrap_err().to_string();
    assert!(error.contains("needs [parts, words] = [2, 768]"), "{error}");
}
