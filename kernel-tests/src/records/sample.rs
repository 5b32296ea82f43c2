//! One prompt with its question and its answer: what evaluation asks the model.

use super::vocabulary::EOS;
use super::{
    Error, Form, Kind, MAX_PROMPT_TOKENS, MIN_RECORDS, NAMES, Question, RESPONSE_TOKENS, Random, Records, records_in,
};

/// A prompt, what decoding starts from, and the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// `<bos>`, the records, the question.
    pub prompt: Vec<u8>,
    /// The 32 positions of the response before decoding: masks, and for JSON the pinned tokens between them.
    pub template: [u8; RESPONSE_TOKENS],
    /// The right response, with `<eos>` and padding.
    pub answer: [u8; RESPONSE_TOKENS],
    /// What is asked of whom, and in which form.
    pub question: Question,
    /// How many records the prompt has.
    pub records: usize,
    /// Which of them is asked about, from 0.
    pub asked: usize,
}

impl Sample {
    /// The sample that `seed` fixes: as many records as fit in `prompt_tokens`, one of them asked about.
    ///
    /// `depth` in `[0, 1)` says how far down the list the asked record lies; 0 is the first. Seeds at or above
    /// [`HELD_OUT`](super::HELD_OUT) never occur in training.
    pub fn new(seed: u64, prompt_tokens: usize, kind: Kind, form: Form, depth: f64) -> Result<Self, Error> {
        let count = records_in(prompt_tokens);
        if count < MIN_RECORDS || prompt_tokens > MAX_PROMPT_TOKENS {
            return Err(Error::PromptLength { given: prompt_tokens });
        }
        let records = Records::random(&mut Random::new(seed), count, NAMES);
        let asked = ((depth * count as f64) as usize).min(count - 1);
        let question = Question { kind, form, name: records.people[asked].name };
        let mut prompt = records.tokens();
        prompt.extend(question.tokens());
        let answer = question.answer(&records)?.tokens;
        Ok(Self { prompt, template: question.template(), answer, question, records: count, asked })
    }

    /// The sample of a prompt that somebody wrote: tokens of the records (with or without `<bos>`) and of the question.
    pub fn from_tokens(records: &[u8], question: &[u8]) -> Result<Self, Error> {
        let records = Records::parse(records)?;
        let question = Question::parse(question)?;
        let answer = question.answer(&records)?.tokens;
        let asked = records.people.iter().position(|person| person.name == question.name).unwrap_or(0);
        let mut prompt = records.tokens();
        prompt.extend(question.tokens());
        let count = records.people.len();
        Ok(Self { prompt, template: question.template(), answer, question, records: count, asked })
    }

    /// In which tenth of the list the asked record lies, 0 to 9.
    pub fn depth_decile(&self) -> usize {
        self.asked * 10 / self.records
    }

    /// Whether `response` says exactly the answer, up to and including `<eos>`.
    pub fn is_correct(&self, response: &[u8]) -> bool {
        let end = self.answer.iter().position(|&token| token == EOS).map_or(self.answer.len(), |end| end + 1);
        response.get(..end) == Some(&self.answer[..end])
    }
}
