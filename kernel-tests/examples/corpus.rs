//! Streams lists of records with questions and answers to the trainer (`training/train.py`).
//!
//! Reads requests from standard input, one a line: `seed lists records questions`. Answers each on standard output
//! with `lists` frames of bytes, in order. Frame `i` comes from seed `seed + i`:
//!
//! ```text
//! <bos> and the records                       1 + 12 · records tokens
//! per question: the question                  10 tokens
//!               the response                  32 tokens
//!               the response with a mask for each value  32 tokens
//!               kind, form, depth decile      3 numbers
//! ```
//!
//! `corpus tokenizer` prints `tokenizer.json` instead; `corpus example SEED TOKENS KIND FORM DEPTH` prints one held-out
//! sample as JSON (the seed counts from the first held-out one).

use kernel_tests::records::{
    Form, HELD_OUT, Kind, QUESTION_TOKENS, Question, RESPONSE_TOKENS, Random, Records, Sample, vocabulary,
};
use rayon::prelude::*;
use std::error::Error;
use std::io::{BufRead, Write};

const PAIR_BYTES: usize = QUESTION_TOKENS + 2 * RESPONSE_TOKENS + 3;

/// How often each kind is asked: the questions of several steps make up half.
const MIX: [Kind; 12] = {
    use Kind::*;
    [City, Thing, Follows, Follows, Profile, Profile, Leader, Leader, Leader, Chain, Chain, Chain]
};

fn frame(seed: u64, count: usize, questions: usize) -> Result<Vec<u8>, kernel_tests::records::Error> {
    let mut random = Random::new(seed);
    let records = Records::random(&mut random, count);
    let mut bytes = records.tokens();
    bytes.reserve(questions * PAIR_BYTES);
    for _ in 0..questions {
        let asked = random.below(count);
        let kind = MIX[random.below(MIX.len())];
        let form = Form::ALL[random.below(2)];
        let question = Question { kind, form, name: records.people[asked].name };
        let response = question.answer(&records)?;
        bytes.extend(question.tokens());
        bytes.extend(response.tokens);
        bytes.extend(response.structure());
        bytes.extend([kind as u8, form as u8, (asked * 10 / count) as u8]);
    }
    Ok(bytes)
}

fn stream() -> Result<(), Box<dyn Error>> {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [seed, lists, records, questions] = numbers[..] else {
            return Err(format!("'{line}' is not a request: give 'seed lists records questions'").into());
        };
        let frames: Vec<_> = (0..lists)
            .into_par_iter()
            .map(|list| frame(seed + list, records as usize, questions as usize))
            .collect::<Result<_, _>>()?;
        for frame in frames {
            output.write_all(&frame)?;
        }
        output.flush()?;
    }
    Ok(())
}

fn example(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [seed, tokens, kind, form, depth] = arguments else {
        return Err("usage: corpus example SEED TOKENS KIND FORM DEPTH".into());
    };
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).ok_or("no such kind of question")?;
    let form = Form::ALL.into_iter().find(|known| known.name() == form).ok_or("no such form")?;
    let sample = Sample::new(HELD_OUT + seed.parse::<u64>()?, tokens.parse()?, kind, form, depth.parse()?)?;
    let (records, question) = sample.prompt.split_at(sample.prompt.len() - QUESTION_TOKENS);
    let example = serde_json::json!({
        "prompt": vocabulary::decode(&records[1..]),
        "question": vocabulary::decode(question),
        "answer": vocabulary::decode_response(&sample.answer),
    });
    println!("{example:#}");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None => stream(),
        Some("tokenizer") => {
            println!("{:#}", vocabulary::tokenizer_json());
            Ok(())
        }
        Some("example") => example(&arguments[1..]),
        Some(other) => Err(format!("'{other}' is not a command: tokenizer, example, or none to stream").into()),
    }
}
