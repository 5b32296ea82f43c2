//! Streams lists of records with questions and answers to the trainer (`training/train.py`).
//!
//! Reads requests from standard input, one a line: `seed lists records questions names kinds`. `names` is how many
//! first and last names a list draws from. `kinds` has a digit for each
//! kind of question, its share of the questions: `112233` asks for a chain three times as often as for a city. Answers
//! each on standard output with `lists` frames of bytes, in order. Frame `i` comes from seed `seed + i`:
//!
//! ```text
//! <bos> and the records                       1 + 18 · records tokens
//! per question: the question                  10 tokens
//!               the response                  32 tokens
//!               lookups                     32 numbers: 0 for a token that kind and form fix; for a value, 1 and how
//!                                           many lookups, one after the other, lead to it
//!               kind, form, depth decile      3 numbers
//! ```
//!
//! `corpus tokenizer` prints `tokenizer.json` instead; `corpus example SEED TOKENS KIND FORM DEPTH` prints one held-out
//! sample as JSON (the seed counts from the first held-out one).

use kernel_tests::records::{
    self, Form, HELD_OUT, Kind, QUESTION_TOKENS, Question, RESPONSE_TOKENS, Random, Records, Sample, vocabulary,
};
use rayon::prelude::*;
use std::error::Error;
use std::io::{BufRead, Write};

const PAIR_BYTES: usize = QUESTION_TOKENS + 2 * RESPONSE_TOKENS + 3;

/// The questions of a request, each kind as often as its digit says.
fn kinds(digits: &str) -> Option<Vec<Kind>> {
    let shares: Vec<usize> = digits.bytes().map(|digit| usize::from(digit.wrapping_sub(b'0'))).collect();
    let valid = shares.len() == Kind::ALL.len() && shares.iter().all(|&share| share < 10);
    let pool: Vec<_> = Kind::ALL.into_iter().zip(shares).flat_map(|(kind, share)| vec![kind; share]).collect();
    (valid && !pool.is_empty()).then_some(pool)
}

fn frame(seed: u64, [count, questions, names]: [usize; 3], pool: &[Kind]) -> Result<Vec<u8>, records::Error> {
    let mut random = Random::new(seed);
    let records = Records::random(&mut random, count, names);
    let mut bytes = records.tokens();
    bytes.reserve(questions * PAIR_BYTES);
    for _ in 0..questions {
        let asked = random.below(count);
        let kind = pool[random.below(pool.len())];
        let form = Form::ALL[random.below(2)];
        let question = Question { kind, form, name: records.people[asked].name };
        let response = question.answer(&records)?;
        bytes.extend(question.tokens());
        bytes.extend(response.tokens);
        bytes.extend(response.lookups.map(|lookups| lookups.map_or(0, |lookups| 1 + lookups)));
        bytes.extend([kind as u8, form as u8, (asked * 10 / count) as u8]);
    }
    Ok(bytes)
}

/// `[seed, lists, records, questions, names]` and the kinds to draw from.
fn request(line: &str) -> Option<([u64; 5], Vec<Kind>)> {
    let (numbers, digits) = line.trim().rsplit_once(' ')?;
    let numbers: Vec<u64> = numbers.split_whitespace().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    Some((numbers.try_into().ok()?, kinds(digits)?))
}

fn stream() -> Result<(), Box<dyn Error>> {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some(([seed, lists, records, questions, names], pool)) = request(&line) else {
            return Err(format!("'{line}' is not a request: give 'seed lists records questions names kinds'").into());
        };
        let frames: Vec<_> = (0..lists)
            .into_par_iter()
            .map(|list| frame(seed + list, [records, questions, names].map(|number| number as usize), &pool))
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
