//! The decoder of a batch: it owns the small arrays between the two kernels.

use super::{Request, SamplerKernel};
use crate::{Arguments, Buffer, DType, Device, Error, LoadedKernel, Stream, TensorView, tensor::tensor_error};
use ptx::kernels::sampling::{
    CREDIT_BYTES, LogitsType, MAX_BIASES, MAX_REQUESTS, MAX_WINDOW, OPEN_BYTES, PARTIAL_BYTES, RequestState,
    RowMergeSpec, RowParameters, RowStatistics, STAGING_BYTES, SamplerSpec, SelectParameters, SelectionSpec,
    TOTALS_BYTES,
};

/// Tokens a row of logits may have.
const MAX_VOCAB: u32 = 1 << 19;

/// Threads of the smallest selection kernel.
const SMALLEST_BLOCK: u32 = 256;

/// What a decoder has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Requests of a batch, 1 to 1024: exactly as many are started.
    pub requests: u32,
    /// Positions that a request decodes at a time, at most; 1 to 1024. Up to 256 the kernel is smaller.
    pub block: u32,
    /// Rows listed at a time: the sum of the requests' blocks.
    pub rows: u32,
    /// Tokens a row of logits has, at most. With 152064 of them a decoder takes 38 KB a row, for what the warps of the row
    /// kernel leave to each other.
    pub vocab: u32,
}

/// The logits of the listed rows.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    /// `[rows, vocab]`, last dimension contiguous.
    pub values: TensorView<'a>,
    /// Whether row i belongs to list entry i (rows were gathered by [`Decoder::sources`] before the LM head), or every
    /// output row has its logits and list entry i is found through its source.
    pub gathered: bool,
    /// For a kernel that is `guided`: the unconditional row of a row lies this many rows behind it. 0 otherwise.
    pub guide_offset: u32,
}

/// Where the steps are recorded, an element for each of `tokens`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trajectory<'a> {
    /// u32: the step that wrote the token.
    pub steps: Option<TensorView<'a>>,
    /// f32: its confidence then.
    pub confidence: Option<TensorView<'a>>,
    /// f32: ln of its probability in the softmax of the raw logits.
    pub log_probability: Option<TensorView<'a>>,
    /// f32: entropy of that softmax, in nats.
    pub entropy: Option<TensorView<'a>>,
}

/// How far a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Masked positions listed for the next step.
    pub rows: u32,
    /// Requests not done.
    pub requests: u32,
    /// Of these, requests that wait for a refresh.
    pub waiting: u32,
}

/// Decodes a batch of requests. It owns the small arrays between the kernels; tokens and logits are the caller's.
///
/// `new` and `start` may block; `restart`, `list_waiting` and the steps only launch and may be captured.
pub struct Decoder {
    row: LoadedKernel,
    select: LoadedKernel,
    spec: SamplerSpec,
    logits: DType,
    room: Room,
    row_parameters: Buffer,
    select_parameters: Buffer,
    states: Buffer,
    statistics: Buffer,
    partials: Buffer,
    tickets: Buffer,
    rows: Buffer,
    sources: Buffer,
    totals: Buffer,
    staging: Buffer,
    open: Buffer,
    biases: Buffer,
    credits: Option<Buffer>,
    part: Option<Part>,
}

/// A part of the vocabulary, where several devices have one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part this device has.
    pub rank: u32,
    /// Parts.
    pub count: u32,
    /// Tokens of a part; the last one has what is left.
    pub tokens: u32,
}

/// What a decoder of a part has besides.
struct Part {
    shard: Shard,
    merge: LoadedKernel,
}

/// What the row kernel is launched for.
#[derive(Clone, Copy)]
struct Pass {
    /// To count credits, not to decide.
    counts: bool,
    /// Whether every row's entropy is recorded, not only those that a rule reads.
    entropies: bool,
}

impl Pass {
    const COUNTS: Pass = Pass { counts: true, entropies: false };

    fn decides(trajectory: &Trajectory<'_>) -> Pass {
        Pass { counts: false, entropies: trajectory.entropy.is_some() }
    }
}

impl Shard {
    /// Id of the first token.
    fn first_token(self) -> u32 {
        self.rank * self.tokens
    }

    fn check(self, vocab: u32) -> Result<(), Error> {
        let Shard { rank, count, tokens } = self;
        let wrong = |message| Err(Error::Setting { setting: "shard", message });
        if rank >= count {
            return wrong(format!("rank {rank} of {count} parts; ranks count from 0"));
        }
        let before = u64::from(count - 1) * u64::from(tokens);
        if tokens == 0 || before >= u64::from(vocab) || before + u64::from(tokens) < u64::from(vocab) {
            return wrong(format!("{count} parts of {tokens} tokens do not make {vocab}, or some are empty"));
        }
        Ok(())
    }
}

impl Decoder {
    /// A decoder for logits of type `logits` (bf16, f16 or f32). Generates its kernel.
    pub fn new(device: &Device, logits: DType, room: Room) -> Result<Decoder, Error> {
        let dtype = match logits {
            DType::Bf16 => LogitsType::Bf16,
            DType::F16 => LogitsType::F16,
            DType::F32 => LogitsType::F32,
            other => {
                let message = format!("of type {other:?}; use Bf16, F16 or F32");
                return Err(Error::Setting { setting: "logits", message });
            }
        };
        let sampler = SamplerKernel::generate(&SamplerSpec { dtype, guided: false, arch: device.arch() })?;
        Decoder::with_kernel(device, &sampler, room)
    }

    /// As [`Decoder::new`], with a kernel that `sampler!` has embedded.
    pub fn with_kernel(device: &Device, sampler: &SamplerKernel, room: Room) -> Result<Decoder, Error> {
        let wrong = |setting, message| Err(Error::Setting { setting, message });
        let logits = match sampler.logits {
            LogitsType::Bf16 => DType::Bf16,
            LogitsType::F16 => DType::F16,
            LogitsType::F32 => DType::F32,
        };
        if !(1..=MAX_REQUESTS).contains(&room.requests) {
            return wrong("requests", format!("{}; a batch has 1 to {MAX_REQUESTS}", room.requests));
        }
        if !(1..=MAX_WINDOW).contains(&room.block) {
            return wrong("block", format!("{}; a request decodes 1 to {MAX_WINDOW} positions at a time", room.block));
        }
        if room.rows == 0 {
            return wrong("rows", "is 0; give the sum of the blocks".into());
        }
        if !(1..=MAX_VOCAB).contains(&room.vocab) {
            return wrong("vocab", format!("{}; rows have 1 to {MAX_VOCAB} tokens", room.vocab));
        }
        let (of, rows) = (room.requests as usize, room.rows as usize);
        let spec = sampler.spec();
        let partials = u64::from(room.rows) * u64::from(spec.records(room.vocab));
        if partials > u64::from(u32::MAX) {
            return wrong("rows", format!("{}; with {} tokens each, list fewer at a time", room.rows, room.vocab));
        }
        let window = room.block.next_power_of_two().max(SMALLEST_BLOCK);
        let decoder = Decoder {
            row: sampler.texts.load(device)?,
            select: device.load(&ptx::generate(&SelectionSpec::of(window, device.arch()))?)?,
            spec,
            logits,
            room,
            row_parameters: device.allocate(of * size_of::<RowParameters>())?,
            select_parameters: device.allocate(of * size_of::<SelectParameters>())?,
            states: device.allocate(of * size_of::<RequestState>())?,
            statistics: device.allocate(rows * size_of::<RowStatistics>())?,
            partials: device.allocate(partials as usize * PARTIAL_BYTES as usize)?,
            tickets: device.allocate(rows * 4)?,
            rows: device.allocate(rows * 8)?,
            sources: device.allocate(rows * 4)?,
            totals: device.allocate(TOTALS_BYTES as usize)?,
            staging: device.allocate(of * STAGING_BYTES as usize)?,
            open: device.allocate(of * OPEN_BYTES as usize)?,
            biases: device.allocate(of * MAX_BIASES as usize * size_of::<[u32; 2]>())?,
            credits: None,
            part: None,
        };
        let stream = Stream::new(device)?;
        let Decoder { totals, states, rows, sources, statistics, open, tickets, .. } = &decoder;
        for buffer in [totals, states, rows, sources, statistics, open, tickets] {
            buffer.fill(&stream, 0)?;
        }
        stream.synchronize()?;
        Ok(decoder)
    }

    /// Gives the positions room for credits, 264 bytes each: for requests with [`Draw::credit`](super::Draw::credit). A step is
    /// then three launches, of which the first reads the logits once more, to count credits.
    pub fn with_credits(self) -> Result<Decoder, Error> {
        let device = self.row.device();
        let positions = u64::from(self.room.requests) * u64::from(self.room.block);
        let credits = device.allocate(positions as usize * CREDIT_BYTES as usize)?;
        let stream = Stream::new(device)?;
        credits.fill(&stream, 0)?;
        stream.synchronize()?;
        Ok(Decoder { credits: Some(credits), ..self })
    }

    /// Makes this the decoder of a part of the vocabulary, which [`Room::vocab`] is the whole of. A step is then [`Decoder::leave`], a
    /// gathering of what all devices have left, and [`Decoder::merged_step`], the same on every device: their
    /// decoders are started alike and go on alike.
    ///
    /// Where `tokens` is a multiple of [`SamplerSpec::segment`] and no logits are changed, the results are those of one device, bit for bit; else
    /// they are within rounding. Where the records do not say where the filters cut (rows that are very flat, or full of ties), the row is
    /// flagged.
    pub fn with_shard(self, shard: Shard) -> Result<Decoder, Error> {
        shard.check(self.room.vocab)?;
        let device = self.row.device();
        let merge = device.load(&ptx::generate(&RowMergeSpec { sampler: self.spec })?)?;
        Ok(Decoder { partials: device.allocate(0)?, part: Some(Part { shard, merge }), ..self })
    }

    /// Sets the requests and lists their masked positions in `tokens` (u32, all responses). Waits for the upload.
    ///
    /// # Errors
    /// [`Error::Setting`] names the request; [`Error::Tensor`] for tokens that are too few.
    pub fn start(&self, stream: &Stream, requests: &[Request], tokens: &TensorView<'_>) -> Result<(), Error> {
        if requests.len() != self.room.requests as usize {
            let message = format!("{} given; the decoder was built for {}", requests.len(), self.room.requests);
            return Err(Error::Setting { setting: "requests", message });
        }
        let length = self.check_tokens(tokens)?;
        for (number, request) in requests.iter().enumerate() {
            request.check(number, self.room.vocab)?;
            if request.draw.guidance != 0.0 && !self.spec.guided {
                let message = format!("{number}: asks for guidance; build the decoder with a kernel that is `guided`");
                return Err(Error::Setting { setting: "request", message });
            }
            if request.draw.credit.is_some() && self.credits.is_none() {
                let message = format!("{number}: has credits; build the decoder `with_credits`");
                return Err(Error::Setting { setting: "request", message });
            }
            let (block, room) = (request.block_length(), self.room.block);
            if block > room {
                let message = format!("{number}: decodes {block} positions at a time; the decoder has room for {room}");
                return Err(Error::Setting { setting: "request", message });
            }
            let end = u64::from(request.first_token) + u64::from(request.window.end);
            if end > length {
                let message = format!("has {length} elements; the window of request {number} ends at {end}");
                return Err(tensor_error("tokens", message));
            }
        }
        let blocks: u64 = requests.iter().map(|request| u64::from(request.block_length())).sum();
        if blocks > u64::from(self.room.rows) {
            let message = format!("decode {blocks} positions at a time; the decoder has room for {}", self.room.rows);
            return Err(Error::Setting { setting: "requests", message });
        }
        let mut biases = Vec::new();
        let row_parameters = requests.iter().map(|request| {
            let parameters = request.row_parameters(biases.len() as u32);
            biases.extend(request.draw.sorted_biases().into_iter().map(|(id, bias)| [id, bias.to_bits()]));
            parameters
        });
        let row_parameters: Vec<_> = row_parameters.collect();
        let select_parameters: Vec<_> = requests.iter().map(Request::select_parameters).collect();
        if !biases.is_empty() {
            self.biases.write(stream, &biases.concat())?;
        }
        self.row_parameters.write(stream, &row_parameters)?;
        self.select_parameters.write(stream, &select_parameters)?;
        self.restart(stream, tokens)
    }

    /// Begins the requests that were started once more, with what stands in `tokens` now.
    pub fn restart(&self, stream: &Stream, tokens: &TensorView<'_>) -> Result<(), Error> {
        self.check_tokens(tokens)?;
        self.states.fill(stream, 0)?;
        self.select(stream, tokens, &Trajectory::default(), (false, false))
    }

    /// Lists the rows of the requests that wait for a refresh, in place of the others': before the pass that computes all
    /// their keys and values, and [`Decoder::refreshed_step`].
    pub fn list_waiting(&self, stream: &Stream, tokens: &TensorView<'_>) -> Result<(), Error> {
        self.check_tokens(tokens)?;
        self.select(stream, tokens, &Trajectory::default(), (false, true))
    }

    /// One step: draws a token for every listed row, writes those that the rules select, and lists the rows that are left.
    /// Requests that wait for a refresh take none. After the last step of every request it does nothing.
    pub fn step(
        &self,
        stream: &Stream,
        logits: &Logits<'_>,
        tokens: &TensorView<'_>,
        trajectory: &Trajectory<'_>,
    ) -> Result<(), Error> {
        self.sample_and_select(stream, logits, tokens, trajectory, false)
    }

    /// The step of those that [`Decoder::list_waiting`] has listed; the others take none.
    pub fn refreshed_step(
        &self,
        stream: &Stream,
        logits: &Logits<'_>,
        tokens: &TensorView<'_>,
        trajectory: &Trajectory<'_>,
    ) -> Result<(), Error> {
        self.sample_and_select(stream, logits, tokens, trajectory, true)
    }

    fn sample_and_select(
        &self,
        stream: &Stream,
        logits: &Logits<'_>,
        tokens: &TensorView<'_>,
        trajectory: &Trajectory<'_>,
        refresh: bool,
    ) -> Result<(), Error> {
        self.check_logits(logits, self.room.vocab)?;
        self.check_tokens(tokens)?;
        self.check_trajectory(tokens, trajectory)?;
        if self.part.is_some() {
            let message = "has a part of the vocabulary; take `leave` and `merged_step`".into();
            return Err(Error::Setting { setting: "decoder", message });
        }
        if self.credits.is_some() {
            self.sample(stream, logits, self.partials.address(), Pass::COUNTS)?;
        }
        self.sample(stream, logits, self.partials.address(), Pass::decides(trajectory))?;
        self.select(stream, tokens, trajectory, (true, refresh))
    }

    fn check_logits(&self, logits: &Logits<'_>, most: u32) -> Result<(), Error> {
        let values = &logits.values;
        let device = self.row.device();
        values.on(device)?;
        values.expect("logits", &[self.logits], "[rows, vocab]", &[None, None])?;
        let (count, vocab) = (values.shape()[0], values.shape()[1]);
        if count == 0 || count > u64::from(u32::MAX) || vocab == 0 || vocab > u64::from(most) {
            let message = format!("has shape {:?}; rows must be at least 1, tokens 1 to {}", values.shape(), most);
            return Err(tensor_error("logits", message));
        }
        Ok(())
    }

    fn part(&self) -> Result<&Part, Error> {
        let message = "has all of the vocabulary; build it `with_shard`, or take `step`".into();
        self.part.as_ref().ok_or(Error::Setting { setting: "decoder", message })
    }

    /// Leaves the records of this part's logits, `[rows, tokens of the part]`, in `records`: u32, as many as [`Decoder::record_words`].
    /// Where requests have credits, a step begins with one that counts them: `counts`, a gathering, and
    /// [`Decoder::count_credits`].
    pub fn leave(
        &self,
        stream: &Stream,
        logits: &Logits<'_>,
        records: &TensorView<'_>,
        counts: bool,
    ) -> Result<(), Error> {
        let shard = self.part()?.shard;
        let own = shard.tokens.min(self.room.vocab - shard.first_token());
        self.check_logits(logits, own)?;
        if logits.values.shape()[1] != u64::from(own) {
            let message = format!("has shape {:?}; part {} has {own} tokens", logits.values.shape(), shard.rank);
            return Err(tensor_error("logits", message));
        }
        records.on(self.row.device())?;
        records.expect("records", &[DType::U32, DType::I32], "[words]", &[Some(self.record_words()?)])?;
        // Whether the step has a trajectory is known when the parts are merged.
        self.sample(stream, logits, records.address(), Pass { counts, entropies: true })
    }

    /// Words of the records of a part.
    pub fn record_words(&self) -> Result<u64, Error> {
        let of_row = u64::from(self.spec.records(self.part()?.shard.tokens)) * u64::from(PARTIAL_BYTES / 4);
        Ok(u64::from(self.room.rows) * of_row)
    }

    /// Counts credits by the gathered records of all parts, u32 `[parts, words]`. `logits` are those that were left.
    pub fn count_credits(&self, stream: &Stream, logits: &Logits<'_>, gathered: &TensorView<'_>) -> Result<(), Error> {
        self.merge(stream, logits, gathered, Pass::COUNTS)
    }

    /// A step from the gathered records of all parts, u32 `[parts, words]`. `logits` are those that were left.
    pub fn merged_step(
        &self,
        stream: &Stream,
        logits: &Logits<'_>,
        gathered: &TensorView<'_>,
        tokens: &TensorView<'_>,
        trajectory: &Trajectory<'_>,
    ) -> Result<(), Error> {
        self.check_tokens(tokens)?;
        self.check_trajectory(tokens, trajectory)?;
        self.merge(stream, logits, gathered, Pass::decides(trajectory))?;
        self.select(stream, tokens, trajectory, (true, false))
    }

    fn merge(&self, stream: &Stream, logits: &Logits<'_>, gathered: &TensorView<'_>, pass: Pass) -> Result<(), Error> {
        let Part { shard, merge } = self.part()?;
        let words = Some(self.record_words()?);
        gathered.on(merge.device())?;
        gathered.expect("gathered", &[DType::U32, DType::I32], "[parts, words]", &[Some(shard.count.into()), words])?;
        let arguments = self
            .row_arguments(merge, logits, gathered.address(), pass)
            .u32("row_vocab", self.room.vocab)
            .u32("records", self.spec.records(shard.tokens))
            .u32("shards", shard.count)
            .u32("shard_tokens", shard.tokens)
            .u64("shard_stride", gathered.byte_stride(0));
        merge.launch(stream, RowMergeSpec { sampler: self.spec }.grid(self.room.rows), &arguments)
    }

    /// Launches the row kernel.
    fn sample(&self, stream: &Stream, logits: &Logits<'_>, records: u64, pass: Pass) -> Result<(), Error> {
        let values = &logits.values;
        let vocab = values.shape()[1] as u32;
        let shard = self.part.as_ref().map(|part| part.shard);
        let arguments = self
            .row_arguments(&self.row, logits, records, pass)
            .pointer("logits", values.address())
            .u64("logits_stride", values.byte_stride(0))
            .u32("vocab", vocab)
            .pointer("tickets", if shard.is_some() { 0 } else { self.tickets.address() })
            .pointer("biases", self.biases.address())
            .u32("first_token", shard.map_or(0, Shard::first_token))
            .u32("row_vocab", shard.map_or(vocab, |_| self.room.vocab))
            .u32("records", self.spec.records(shard.map_or(vocab, |shard| shard.tokens)));
        self.row.launch(stream, self.spec.grid(vocab, self.room.rows), &arguments)
    }

    /// What the row kernel and the one that merges take alike.
    fn row_arguments<'k>(
        &self,
        kernel: &'k LoadedKernel,
        logits: &Logits<'_>,
        records: u64,
        pass: Pass,
    ) -> Arguments<'k> {
        let arguments = Arguments::new(kernel.meta())
            .u32("logits_count", logits.values.shape()[0] as u32)
            .pointer("logits_rows", if logits.gathered { 0 } else { self.sources.address() })
            .pointer("rows", self.rows.address())
            .pointer("totals", self.totals.address())
            .pointer("parameters", self.row_parameters.address())
            .pointer("states", self.states.address())
            .u32("requests", self.room.requests)
            .pointer("statistics", self.statistics.address())
            .pointer("partials", records)
            .u32("biases_length", (self.biases.bytes() / size_of::<[u32; 2]>()) as u32)
            .pointer("credits", self.credits.as_ref().map_or(0, Buffer::address))
            .u32("credit_window", self.room.block)
            .u32("credit_pass", pass.counts.into())
            .u32("entropies", pass.entropies.into());
        if self.spec.guided { arguments.u32("guide_offset", logits.guide_offset) } else { arguments }
    }

    fn select(
        &self,
        stream: &Stream,
        tokens: &TensorView<'_>,
        trajectory: &Trajectory<'_>,
        (advance, refresh): (bool, bool),
    ) -> Result<(), Error> {
        let address = |view: &Option<TensorView<'_>>| view.map_or(0, |view| view.address());
        let arguments = Arguments::new(self.select.meta())
            .pointer("parameters", self.select_parameters.address())
            .pointer("states", self.states.address())
            .pointer("statistics", self.statistics.address())
            .pointer("tokens", tokens.address())
            .u32("tokens_length", tokens.shape()[0] as u32)
            .u32("advance", advance.into())
            .u32("refresh", refresh.into())
            .pointer("rows", self.rows.address())
            .pointer("sources", self.sources.address())
            .u32("capacity", self.room.rows)
            .pointer("totals", self.totals.address())
            .pointer("staging", self.staging.address())
            .pointer("open", self.open.address())
            .pointer("trajectory_steps", address(&trajectory.steps))
            .pointer("trajectory_confidence", address(&trajectory.confidence))
            .pointer("trajectory_log_probability", address(&trajectory.log_probability))
            .pointer("trajectory_entropy", address(&trajectory.entropy));
        self.select.launch(stream, [self.room.requests, 1, 1], &arguments)
    }

    fn check_tokens(&self, tokens: &TensorView<'_>) -> Result<u64, Error> {
        tokens.on(self.row.device())?;
        tokens.expect("tokens", &[DType::U32, DType::I32], "[tokens]", &[None])?;
        let length = tokens.shape()[0];
        if length > u64::from(u32::MAX) {
            return Err(tensor_error("tokens", format!("has {length} elements; at most {} are addressed", u32::MAX)));
        }
        Ok(length)
    }

    fn check_trajectory(&self, tokens: &TensorView<'_>, trajectory: &Trajectory<'_>) -> Result<(), Error> {
        let length = Some(tokens.shape()[0]);
        for (name, view, dtype) in [
            ("trajectory steps", &trajectory.steps, DType::U32),
            ("trajectory confidence", &trajectory.confidence, DType::F32),
            ("trajectory log probability", &trajectory.log_probability, DType::F32),
            ("trajectory entropy", &trajectory.entropy, DType::F32),
        ] {
            let Some(view) = view else { continue };
            view.on(self.row.device())?;
            view.expect(name, &[dtype], "[tokens]", &[length])?;
        }
        Ok(())
    }

    /// u32 `[rows]`: for each listed row, the row of the model's output that predicts it; zeros after the last.
    pub fn sources(&self) -> Result<TensorView<'_>, Error> {
        TensorView::new(&self.sources, DType::U32, &[u64::from(self.room.rows)])
    }

    /// u32 `[rows, 2]`: request and response position of each listed row.
    pub fn rows(&self) -> Result<TensorView<'_>, Error> {
        TensorView::new(&self.rows, DType::U32, &[u64::from(self.room.rows), 2])
    }

    /// u32 `[4]`: the number of listed rows, of requests not done, a word of the kernels' own, and of requests that wait.
    pub fn totals(&self) -> Result<TensorView<'_>, Error> {
        TensorView::new(&self.totals, DType::U32, &[4])
    }

    /// u32 `[requests, words]`: each request's [`RequestState`], word by word, as the device has it. The fields from `block_start`
    /// on, and `BLOCK_FINISHED` of the flags, are what a cache of keys and values goes by.
    pub fn state_words(&self) -> Result<TensorView<'_>, Error> {
        let words = size_of::<RequestState>() as u64 / 4;
        TensorView::new(&self.states, DType::U32, &[u64::from(self.room.requests), words])
    }

    /// How far the batch is. Waits.
    pub fn progress(&self, stream: &Stream) -> Result<Progress, Error> {
        let totals = self.totals.read::<u32>(stream)?;
        let at = |i: usize| totals.get(i).copied().unwrap_or(0);
        Ok(Progress { rows: at(0), requests: at(1), waiting: at(3) })
    }

    /// Where each request stands. Waits.
    pub fn states(&self, stream: &Stream) -> Result<Vec<RequestState>, Error> {
        self.states.read(stream)
    }

    /// What the last step found for each row it had listed, in the order of that list. Waits. Negative entropies are −∞ where neither the rule nor
    /// the confidence goes by them, and no trajectory recorded them.
    pub fn statistics(&self, stream: &Stream) -> Result<Vec<RowStatistics>, Error> {
        self.statistics.read(stream)
    }
}
