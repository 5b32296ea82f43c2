//! Prompts of the records task: shipped, somebody's own, or drawn from a seed.

use crate::{Result, session::Session};
use kernel_tests::{
    decode::{Response, Settings, decode},
    model::{Batch, PromptAttention, PromptMask},
    records::{Form, HELD_OUT, Kind, Sample, vocabulary},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where a prompt comes from.
#[derive(clap::Args, Default)]
pub(crate) struct Source {
    /// Name of a prompt in the model's folder `examples`; by default the first of them
    #[arg(long, value_name = "NAME", conflicts_with = "prompt_file")]
    example: Option<String>,
    /// Your own list of records, which ends in a question unless --question asks it
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A question about it, such as 'question: where does Ada Abbott live? json:'
    #[arg(long, value_name = "TEXT", requires = "prompt_file")]
    question: Option<String>,
}

impl Source {
    pub(crate) fn task(&self, session: &Session) -> Result<Task> {
        match &self.prompt_file {
            Some(file) => Task::read(file, self.question.as_deref()),
            None => Task::shipped(&session.folder, self.example.as_deref()),
        }
    }
}

/// A prompt, its question and the right answer.
pub(crate) struct Task {
    /// Where it comes from.
    pub(crate) name: String,
    pub(crate) sample: Sample,
}

impl Task {
    /// The prompt of `file`. The question is `question`, or else the line of the file that begins with `question`.
    fn read(file: &Path, question: Option<&str>) -> Result<Task> {
        let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let at = text.find("question");
        let records = &text[..at.unwrap_or(text.len())];
        let question = question.or(at.map(|at| &text[at..])).ok_or_else(|| {
            format!("{} has no line that begins with 'question'; add one or give --question", file.display())
        })?;
        Task::new(file, records, question)
    }

    /// A prompt that is shipped with the model: `name`, or the first in the order of names.
    fn shipped(model: &Path, name: Option<&str>) -> Result<Task> {
        #[derive(serde::Deserialize)]
        struct Example {
            prompt: String,
            question: String,
        }
        let folder = model.join("examples");
        let file = match name {
            Some(name) => folder.join(name).with_extension("json"),
            None => first(&folder)?,
        };
        let text = fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let example: Example = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        Task::new(&file, &example.prompt, &example.question)
    }

    fn new(file: &Path, records: &str, question: &str) -> Result<Task> {
        let wrong = |error: kernel_tests::records::Error| format!("{}: {error}", file.display());
        let records = vocabulary::encode(records).map_err(wrong)?;
        let question = vocabulary::encode(question).map_err(wrong)?;
        let sample = Sample::from_tokens(&records, &question).map_err(wrong)?;
        Ok(Task { name: file.display().to_string(), sample })
    }
}

/// The first JSON file of `folder` in the order of names.
fn first(folder: &Path) -> Result<PathBuf> {
    let listed = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let files: Vec<PathBuf> = listed.map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let prompts = files.into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "json"));
    prompts.min().ok_or_else(|| format!("there is no prompt in {}", folder.display()).into())
}

/// Held-out prompt `number` of `samples`: kinds and forms in turn, depths spread evenly.
pub(crate) fn held_out(number: u64, samples: u64, tokens: usize) -> Result<Sample> {
    let kind = Kind::ALL[number as usize % Kind::ALL.len()];
    let form = Form::ALL[number as usize / Kind::ALL.len() % Form::ALL.len()];
    // A stride without a common factor with the turns, so that no kind is always asked at one depth.
    let depth = ((number * 37 % samples) as f64 + 0.5) / samples as f64;
    Ok(Sample::new(HELD_OUT + tokens as u64 * (1 << 20) + number, tokens, kind, form, depth)?)
}

/// A prefill and the answer decoded from it.
pub(crate) struct Run {
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
    pub(crate) response: Response,
    /// The response after each step.
    pub(crate) steps: Vec<Vec<u32>>,
    pub(crate) correct: bool,
}

impl Run {
    /// Prefills the sample's prompt through `attention` and decodes the answer.
    pub(crate) fn new(session: &Session, sample: &Sample, attention: &dyn PromptAttention) -> Result<Run> {
        let (stream, transformer) = (&session.stream, &session.transformer);
        let start = Instant::now();
        let batch = prefill(session, sample, attention)?;
        let prefill = start.elapsed();
        let start = Instant::now();
        let mut steps = Vec::new();
        let observe = |responses: &[Vec<u32>]| steps.extend_from_slice(responses);
        let responses = decode(stream, transformer, &batch, &Settings::default(), observe)?;
        let response = responses.into_iter().next().ok_or("the batch has no response")?;
        let correct = is_correct(sample, &response);
        Ok(Run { prefill, decode: start.elapsed(), response, steps, correct })
    }
}

/// The sample's prompt and template on the device, nothing computed yet.
pub(crate) fn batch(session: &Session, sample: &Sample) -> Result<Batch> {
    let widen = |tokens: &[u8]| -> Vec<u32> { tokens.iter().copied().map(u32::from).collect() };
    Ok(session.transformer.batch(&session.stream, &[(&widen(&sample.prompt), &widen(&sample.template))])?)
}

/// Computes keys and values of the sample's prompt, and waits for them. One chunk: a sparse index is made for all of it.
pub(crate) fn prefill(session: &Session, sample: &Sample, attention: &dyn PromptAttention) -> Result<Batch> {
    let (stream, transformer) = (&session.stream, &session.transformer);
    let batch = batch(session, sample)?;
    for sequence in batch.sequences() {
        transformer.prefill(stream, sequence, PromptMask::Causal, sequence.prompt(), attention)?;
    }
    stream.synchronize()?;
    Ok(batch)
}

/// Response tokens of the model as tokens of the task; ids that no byte holds are unknown words.
fn tokens(response: &[u32]) -> Vec<u8> {
    response.iter().map(|token| u8::try_from(*token).unwrap_or(vocabulary::UNKNOWN)).collect()
}

/// Whether a response answers the sample's question.
pub(crate) fn is_correct(sample: &Sample, response: &Response) -> bool {
    sample.is_correct(&tokens(&response.tokens))
}

/// A finished response as a person reads it.
pub(crate) fn text(response: &[u32]) -> String {
    vocabulary::decode_response(&tokens(response))
}

/// A response under way: masks as `▒`, without end and padding.
pub(crate) fn partial_text(response: &[u32]) -> String {
    let text = vocabulary::decode(&tokens(response));
    let words = ["<eos>", "<pad>"].iter().fold(text.replace("<mask>", "▒"), |text, word| text.replace(word, ""));
    words.replace("▒ ▒", "▒▒").replace("▒ ▒", "▒▒").trim_end().to_string()
}

/// One token of a response.
pub(crate) fn word(token: u32) -> &'static str {
    tokens(&[token]).first().map_or("", |token| vocabulary::word(*token))
}
