//! `harness generate`: a batch of prompts, decoded by any of the published rules.

use crate::{Outcome, Result, output::say, session::Session, task};
use kernel_core::sampling::{Confidence, Credit, Draw, Ending, EndingTime, Order, Rule, SlotLengths, Template};
use kernel_tests::{
    decode::{CachePolicy, Response, Settings, decode},
    model::{PromptMask, Tokenizer},
};
use serde_json::json;
use std::{fs, path::PathBuf, time::Instant};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A prompt's text, once or several times; without it held-out questions of the records task
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Requests to decode together: of several prompts the first so many, in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Tokens of a held-out prompt
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Tokens of the response; by default the template's, or 32
    #[arg(long, value_name = "TOKENS")]
    length: Option<usize>,
    /// The form of the answer: text with slots, `{8}` being eight tokens to fill in
    #[arg(long, value_name = "TEXT", conflicts_with = "schema")]
    template: Option<String>,
    /// The form of the answer: a JSON schema, of whose skeleton the values are filled in
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Which positions a step fills
    #[arg(long, value_enum, default_value_t = RuleName::Dimple)]
    rule: RuleName,
    /// Confidence to pass; the factor of `factor`; nats of the rules by entropy
    #[arg(long, default_value_t = 0.95)]
    threshold: f32,
    /// Steps of a block at most; by default one a position
    #[arg(long)]
    steps: Option<u32>,
    /// Positions of a block, decoded from left to right; by default all at once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    block: Option<u32>,
    /// Which rows a step feeds
    #[arg(long, value_enum, default_value_t = Cache::Prompt)]
    cache: Cache,
    /// Rows before and behind the block that `window` feeds
    #[arg(long, num_args = 2, value_names = ["BEFORE", "BEHIND"], default_values_t = [16, 16])]
    window: Vec<u32>,
    /// What prompt rows see
    #[arg(long, value_enum, default_value_t = Mask::Causal)]
    mask: Mask,
    /// What a rule goes by
    #[arg(long, value_enum, default_value_t = Score::Probability)]
    confidence: Score,
    /// Divides the logits; 0 takes the best token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draws from the best tokens that together have this share
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Draws from this many of the best tokens; 0 from all
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Adds a number to the logit of a token, by id; several times for several tokens
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    bias: Vec<(u32, f32)>,
    /// Never takes this token, by id; several times for several tokens
    #[arg(long, value_name = "ID")]
    ban: Vec<u32>,
    /// Prefers tokens that were the best at earlier steps (dInfer's credits)
    #[arg(long)]
    credits: bool,
    /// Seed of the draws, and of the held-out prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of a replayed graph; 0 launches them one by one
    #[arg(long, default_value_t = 4)]
    graph: u32,
    /// Token whose first occurrence ends a response, such as `<eos>`; what is behind it is filled with it
    #[arg(long, value_name = "TOKEN")]
    stop: Option<String>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RuleName {
    /// Above the threshold; if none is, by Dimple's schedule
    Dimple,
    /// Above the threshold, and at least the surest
    Threshold,
    /// By Dream's schedule, the surest
    Dream,
    /// By Dream's schedule, by chance
    Origin,
    /// As many a step, the surest (LLaDA)
    Llada,
    /// As many a step, at random (LLaDA)
    Random,
    /// From left to right
    Sequential,
    /// At least the threshold, and the surest (Fast-dLLM)
    Fast,
    /// By Fast-dLLM's factor
    Factor,
    /// Fast-dLLM's budget for Dream
    Budget,
    /// dInfer's threshold
    Dinfer,
    /// dInfer's hierarchy
    Hierarchy,
    /// dInfer's hierarchy with second thoughts
    Remask,
    /// Above the threshold if they are enough, else as many a step (SDAR, LLaDA2)
    Dynamic,
    /// As many of least entropy as the threshold allows in nats
    Entropy,
    /// Threshold, and decoded tokens are edited (LLaDA2.1)
    Joint,
    /// One at random (BD3-LM)
    FirstHitting,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Cache {
    /// Everything, by plain passes: the reference, one request at a time
    None,
    /// The response (Dimple's prefilling)
    Prompt,
    /// The block and what is behind it (Fast-dLLM)
    Prefix,
    /// The block (Fast-dLLM)
    Dual,
    /// The block and its neighbours (dInfer)
    Window,
    /// The block, which sees nothing behind it (block diffusion)
    Block,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mask {
    /// Earlier rows
    Causal,
    /// Everything
    Bidirectional,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Score {
    /// The token's probability
    Probability,
    /// The best probability less the second
    Margin,
    /// The negative entropy
    Entropy,
}

/// What `--bias` says.
fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let (id, value) = text.split_once('=').ok_or("is not ID=VALUE")?;
    let id = id.parse().map_err(|error| format!("{id:?} is not a token id: {error}"))?;
    Ok((id, value.parse().map_err(|error| format!("{value:?} is not a number: {error}"))?))
}

impl Options {
    fn settings(&self, tokenizer: &Tokenizer) -> Result<Settings> {
        let ending = |text: &String| -> Result<Ending> {
            let token = tokenizer.id(text).ok_or_else(|| format!("--stop {text}: tokenizer.json has no such token"))?;
            Ok(Ending { tokens: vec![token], fill: token, when: EndingTime::EveryStep })
        };

        let threshold = self.threshold;
        let rule = match self.rule {
            RuleName::Dimple => Rule::dimple(threshold),
            RuleName::Threshold => Rule::Threshold(threshold),
            RuleName::Dream => Rule::dream(),
            RuleName::Origin => Rule::dream_origin(),
            RuleName::Llada => Rule::llada(),
            RuleName::Random => Rule::Llada { order: Order::Random },
            RuleName::Sequential => Rule::Llada { order: Order::LeftToRight },
            RuleName::Fast => Rule::FastThreshold(threshold),
            RuleName::Factor => Rule::FastFactor(threshold),
            RuleName::Budget => Rule::FastBudget(threshold),
            RuleName::Dinfer => Rule::DInferThreshold(threshold),
            RuleName::Hierarchy => Rule::hierarchy(threshold),
            RuleName::Remask => Rule::HierarchyRemask { threshold, low: 0.4, remask: 0.4 },
            RuleName::Dynamic => Rule::Dynamic(threshold),
            RuleName::Entropy => Rule::EntropyBounded(threshold),
            RuleName::Joint => Rule::joint_quality(),
            RuleName::FirstHitting => Rule::FirstHitting,
        };
        Ok(Settings {
            ending: self.stop.as_ref().map(ending).transpose()?,
            mask: match self.mask {
                Mask::Causal => PromptMask::Causal,
                Mask::Bidirectional => PromptMask::Bidirectional,
            },
            cache: match self.cache {
                Cache::None => CachePolicy::None,
                Cache::Prompt => CachePolicy::Prompt,
                Cache::Prefix => CachePolicy::Prefix,
                Cache::Dual => CachePolicy::Dual,
                Cache::Window => CachePolicy::Window { before: self.window[0], behind: self.window[1] },
                Cache::Block => CachePolicy::Block,
            },
            block: self.block,
            steps: self.steps,
            rule,
            draw: self.ban.iter().fold(self.draw(), |draw, &token| draw.ban(token)),
            graph: (self.graph > 0 && !matches!(self.cache, Cache::None)).then_some(self.graph),
        })
    }

    fn draw(&self) -> Draw {
        Draw {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            biases: self.bias.clone(),
            credit: self.credits.then(Credit::default),
            seed: self.seed,
            confidence: match self.confidence {
                Score::Probability => Confidence::Probability,
                Score::Margin => Confidence::Margin,
                Score::Entropy => Confidence::NegativeEntropy,
            },
            ..Draw::greedy()
        }
    }

    /// The form of the answer, if one is given.
    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<Template>> {
        let mut failure = None;
        let tokenize = |text: &str| {
            tokenizer.encode(text, false).unwrap_or_else(|error| {
                failure = Some(error);
                Vec::new()
            })
        };
        let template = match (&self.template, &self.schema) {
            (Some(text), _) => Some(Template::from_text(text, tokenize)?),
            (None, Some(file)) => {
                let text =
                    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
                let schema = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
                Some(Template::from_json_schema(&schema, SlotLengths::default(), tokenize)?)
            }
            (None, None) => None,
        };
        failure.map_or(Ok(template), |error| Err(error.into()))
    }

    /// Prompts and initial responses.
    fn requests(&self, session: &Session, tokenizer: &Tokenizer) -> Result<Vec<(Vec<u32>, Vec<u32>)>> {
        let mask = session.config.mask_token.ok_or("config.json has no mask_token_id")?;
        let template = self.template(tokenizer)?;
        let form = |given: Option<Vec<u32>>| -> Result<Vec<u32>> {
            let template = match (&template, given) {
                (Some(template), _) => template.clone(),
                (None, Some(given)) if self.length.is_none() => return Ok(given),
                _ => Template::new().slot(self.length.unwrap_or(32)),
            };
            Ok(template.response(mask, self.length.unwrap_or_else(|| template.length()))?)
        };
        let number = u64::from(self.batch);
        if self.prompt.is_empty() {
            let widen = |tokens: &[u8]| -> Vec<u32> { tokens.iter().copied().map(u32::from).collect() };
            let request = |i: u64| {
                let sample = task::held_out(self.seed * number + i, number, self.tokens)?;
                Ok((widen(&sample.prompt), form(Some(widen(&sample.template)))?))
            };
            return (0..number).map(request).collect();
        }
        let request = |text: &String| Ok((tokenizer.encode(text, false)?, form(None)?));
        self.prompt.iter().cycle().take(number as usize).map(request).collect()
    }
}

pub(crate) fn run(session: &Session, options: &Options) -> Result<Outcome> {
    let tokenizer = Tokenizer::load(&session.folder.join("tokenizer.json"), &session.config)?;
    let (stream, transformer, settings) = (&session.stream, &session.transformer, options.settings(&tokenizer)?);
    let requests = options.requests(session, &tokenizer)?;
    let views: Vec<(&[u32], &[u32])> = requests.iter().map(|(prompt, form)| (&prompt[..], &form[..])).collect();
    let batch = transformer.batch(stream, &views)?;
    let start = Instant::now();
    for sequence in batch.sequences() {
        transformer.prefill(stream, sequence, settings.mask, sequence.prompt(), transformer.dense())?;
    }
    stream.synchronize()?;
    let prefill = start.elapsed();
    let start = Instant::now();
    let responses = decode(stream, transformer, &batch, &settings, |_| ())?;
    let elapsed = start.elapsed();

    let passes = responses.iter().map(|response| response.passes).max().unwrap_or(0);
    if options.json {
        let of = |response: &Response| {
            json!({
                "tokens": response.tokens, "passes": response.passes, "text": tokenizer.decode(&response.tokens).ok(),
                "steps": response.trajectory.iter().map(|t| t.map(|t| t.step)).collect::<Vec<_>>(),
            })
        };
        let seconds = (prefill.as_secs_f64(), elapsed.as_secs_f64());
        let responses: Vec<_> = responses.iter().map(of).collect();
        say!("{}", json!({ "prefill_s": seconds.0, "decode_s": seconds.1, "responses": responses }));
    } else {
        say!("device    {}", session.device_line());
        say!("model     {}", session.model_text());
        for ((prompt, _), response) in requests.iter().zip(&responses) {
            let positions = response.tokens.len();
            say!("\n{} prompt tokens, {positions} positions, {} passes", prompt.len(), response.passes);
            say!("{}", tokenizer.decode(&response.tokens)?.trim());
        }
        say!("\nprefill {prefill:.2?}, decoding {elapsed:.2?}, at most {passes} passes");
    }
    Ok(Outcome::Passed)
}
