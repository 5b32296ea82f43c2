//! The records that host and device share: plain 32-bit fields, little-endian, no padding.
//!
//! The generators take their offsets from these very types, so that there is one definition.

/// Positions that a request decodes at a time, at most: one thread each.
pub const MAX_WINDOW: u32 = 1024;

/// Steps of a schedule, at most: its times are then different numbers in single precision.
pub const MAX_STEPS: u32 = 1 << 16;

/// Requests of one selection launch, at most.
pub const MAX_REQUESTS: u32 = 1024;

/// Bytes of `staging` a request.
pub const STAGING_BYTES: u64 = 4 * MAX_WINDOW as u64;

/// Bytes of `open` a request: a bit for each position of its block, set if the position was masked when the block began.
pub const OPEN_BYTES: u64 = MAX_WINDOW as u64 / 8;

/// Bytes of `totals`: u32 rows listed, u32 requests not done, u32 blocks finished (the kernel's own: zero before the
/// first launch, zero again after each), u32 requests that wait for a refresh.
pub const TOTALS_BYTES: u64 = 16;

/// Bytes of `partials` a segment of a row: what it found, and the tokens that it offers to filters.
pub const PARTIAL_BYTES: u32 = 512;

/// What one warp leaves of its segment: plain numbers, in units of the segment's own largest logit. 48 bytes, and the first offers
/// (see `offers.rs`) lie in the same 128.
#[repr(C)]
pub(super) struct SegmentRecord {
    /// Largest logit; −∞ for a segment without one.
    pub(super) max: f32,
    /// Its token, of several the lowest.
    pub(super) argmax: u32,
    /// Second largest logit.
    pub(super) second: f32,
    /// At least `top_k` tokens of the segment have this logit or a larger one.
    pub(super) floor: f32,
    /// Σ w of all tokens but `argmax`, which has w = 1; w = exp(l − max).
    pub(super) excess: f32,
    /// The same with w = exp((l − max) / T).
    pub(super) tempered_excess: f32,
    /// Σ w log2 w, at most 0, where somebody asks for it.
    pub(super) surprise: f32,
    /// The same at temperature T.
    pub(super) tempered_surprise: f32,
    /// The logit of `token`. Where a request filters, what was raised to make do with the room for offers: all tokens of at least this
    /// logit are offered; −∞ where those are all that the filters may keep.
    pub(super) logit: f32,
    /// Token drawn from the segment alone. Where a request filters, the number of offers.
    pub(super) token: u32,
    /// In a row's first record: the row that the same block finishes after this one, if it does. In the record of the changed
    /// tokens: the [`row_flags`] that they raise.
    pub(super) next: u32,
    /// Not used.
    pub(super) spare: u32,
}

/// How one request draws its tokens: 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowParameters {
    /// Divides the logits; 0 (or less) takes the best token, and probabilities are those at 1.
    pub temperature: f32,
    /// Keeps the tokens whose strictly better ranks together have at most this mass, so the first always; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the tokens at least this probable relative to the best, after the other filters; 0 keeps all.
    pub min_p: f32,
    /// [`sampling_flags`].
    pub flags: u32,
    /// [`Confidence::code`](super::Confidence::code); any other number is the last of them.
    pub confidence: u32,
    /// Random seed, low word.
    pub seed_low: u32,
    /// Random seed, high word.
    pub seed_high: u32,
    /// Name of the request within its seed; not its place in the batch.
    pub stream: u32,
    /// Ids at and above it count as −∞; 0: none but those at and above `vocab`.
    pub vocab_limit: u32,
    /// Weight w of classifier-free guidance, for a kernel with `guided`: logits are c + w (c − u), with c those of the row
    /// and u those of its unconditional row, which is not read where w = 0.
    pub guidance: f32,
    /// The request's first entry in `biases`.
    pub bias_start: u32,
    /// Its entries there, at most [`MAX_BIASES`]: pairs of a token id and what is added to that token's logit, ids ascending.
    pub bias_count: u32,
    /// Weight α of the credits, see [`CREDIT_BYTES`]; 0: it has none.
    pub credit_weight: f32,
    /// What is left of a credit after a step, β.
    pub credit_decay: f32,
    /// Exponent γ of the probability that the best token gets as its credit.
    pub credit_exponent: f32,
}

/// Biases that a request may have: with the credits of a position as many as a warp has room for where a segment was.
pub const MAX_BIASES: u32 = 480;

/// Credits that a position keeps, at most.
pub const MAX_CREDITS: u32 = 32;

/// Bytes of `credits` a position: two words, whose they are (1 more than the response position, or 0) and how many, and then
/// [`MAX_CREDITS`] pairs of a token id and its credit, ids ascending.
///
/// Each step the position's credits shrink to β of what they were, and its best token, of probability p, gets p^γ more, before
/// any credit but after biases. Then α ln(1 + credit) is added to the logit of each token that has one (CreditDecoding, arXiv
/// 2510.06133; dInfer's `CreditThresholdParallelDecoder`, whose matrix has a credit for every token). A best token that finds
/// all places taken gets that of the least credit, of equal ones that of the highest id.
pub const CREDIT_BYTES: u32 = size_of::<CreditHeader>() as u32 + 8 * MAX_CREDITS;

/// What stands before the credits of a position, see [`CREDIT_BYTES`].
#[repr(C)]
pub(super) struct CreditHeader {
    /// Whose credits they are: 1 more than the response position. 0: nobody's.
    pub(super) owner: u32,
    /// How many.
    pub(super) count: u32,
}

/// Bits of [`RowParameters::flags`].
pub mod sampling_flags {
    /// Top-k first and top-p of what it keeps (SDAR, vLLM), instead of top-p of everything and then top-k (Dream).
    pub const TOP_K_FIRST: u32 = 1;
    /// Confidence in the distribution drawn from (temperature, filtered) instead of the softmax of the raw logits.
    pub const FILTERED_CONFIDENCE: u32 = 2;
    /// Nobody reads [`RowStatistics::negative_entropy`](super::RowStatistics::negative_entropy): it is −∞, unless it is the confidence
    /// or the launch wants those of all requests. A row costs a tenth less.
    pub const WITHOUT_ENTROPY: u32 = 4;
}

/// What one row yields: 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStatistics {
    /// The token drawn.
    pub token: u32,
    /// By the request's [`Confidence`](super::Confidence); −∞ if any flag is set.
    pub confidence: f32,
    /// The best token.
    pub argmax: u32,
    /// [`row_flags`]; if any is set, the other fields say nothing.
    pub flags: u32,
    /// Largest logit.
    pub max: f32,
    /// Second largest logit, equal to the largest if that occurs twice; −∞ if there is none.
    pub second: f32,
    /// ln Σ exp(l).
    pub lse: f32,
    /// ln Σ exp(l / T).
    pub lse_tempered: f32,
    /// Probability of `token` in the softmax of the raw logits.
    pub probability: f32,
    /// Probability of `token` in the distribution after temperature and filters.
    pub filtered_probability: f32,
    /// Σ p ln p of the raw logits; −∞ where [`sampling_flags::WITHOUT_ENTROPY`] spares it.
    pub negative_entropy: f32,
    /// Logit of `token`.
    pub logit: f32,
}

/// Bits of [`RowStatistics::flags`].
pub mod row_flags {
    /// No logit is above −∞.
    pub const NOT_FINITE: u32 = 1;
    /// `logits_rows` names a row past `logits_count`, or `rows` a request past `requests`, or the request biases past
    /// `biases_length` or more than [`MAX_BIASES`](super::MAX_BIASES).
    pub const OUT_OF_RANGE: u32 = 2;
    /// The request's biases are not in ascending order of ids, or one is of a token past the vocabulary.
    pub const BAD_BIASES: u32 = 4;
    /// The vocabulary is shared out, and what the parts' records offer does not say where the request's filters cut: rows that are very
    /// flat, or full of ties.
    pub const CROWDED: u32 = 8;
}

/// How one request selects among its rows: 112 bytes.
///
/// A step takes the *picks* of the [`rule`], and of the remaining rows some number of the best by [`score`]. "k" is what the
/// [`schedule`] says, c the row's value: its confidence, or its negative entropy under [`score::ENTROPY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SelectParameters {
    /// [`rule`].
    pub rule: u32,
    /// [`score`].
    pub score: u32,
    /// [`schedule`].
    pub schedule: u32,
    /// [`select_flags`].
    pub flags: u32,
    /// Steps a block; the last takes every row that is left, under every rule.
    pub steps: u32,
    /// k of [`schedule::FIXED`].
    pub count: u32,
    /// What c has to pass; the factor of [`rule::FACTOR`]; the budget of [`rule::ENTROPY_BUDGET`].
    pub threshold: f32,
    /// What the best of a run has to exceed, under [`rule::HIERARCHY`].
    pub low: f32,
    /// What c of a decoded row must exceed to be edited, or fall below to be masked again.
    pub revision: f32,
    /// Last time of the schedules by time, which begin at 1.
    pub epsilon: f32,
    /// Divides c under [`score::NOISY`].
    pub noise: f32,
    /// Steps of a block that [`select_flags::EDIT`] allows after its last mask is gone.
    pub post_steps: u32,
    /// A position holding this token is masked.
    pub mask_token: u32,
    /// Element of `tokens` with the request's response position 0.
    pub first_token: u32,
    /// First response position of the window within which tokens are decoded.
    pub window_start: u32,
    /// Positions of the window.
    pub window_length: u32,
    /// Positions decoded at a time, block after block; 0: the whole window at once.
    pub block_length: u32,
    /// `sources` of response position 0 (wrapping: −1 is allowed where position 0 is never masked).
    pub row_base: u32,
    /// Random seed, low word.
    pub seed_low: u32,
    /// Random seed, high word.
    pub seed_high: u32,
    /// Name of the request within its seed; not its place in the batch.
    pub stream: u32,
    /// What is written behind an end of the response.
    pub fill_token: u32,
    /// Tokens that end the response. Not masks, so that the mask token stands for none.
    pub end_tokens: [u32; 2],
    /// The first so many steps of a block wait for a refresh: a pass of the model that computes all keys and values anew.
    pub refresh_steps: u32,
    /// So does every so-many-th step after the block's first; 0: none.
    pub refresh_every: u32,
    /// Not read.
    pub reserved: [u32; 2],
}

/// Which rows a step takes. Ties go to the lowest position; at the last step every rule takes all.
pub mod rule {
    /// The k best.
    pub const TOP_K: u32 = 0;
    /// Picks c > threshold; the k best if there are none.
    pub const THRESHOLD: u32 = 1;
    /// Picks c > threshold, and as many of the best as k is more.
    pub const DYNAMIC: u32 = 2;
    /// Of the k + carry best the first, and those with c > threshold. What is left of k + carry is the next step's carry.
    pub const BUDGET: u32 = 3;
    /// Picks c ≥ min(largest c − 10⁻⁵, threshold).
    pub const NEAR_BEST: u32 = 4;
    /// The m − 1 best, with m the first rank from 2 whose c is below 1 − threshold / (m + 1), of n rows. If there is none, or
    /// it is the last, all.
    pub const FACTOR: u32 = 5;
    /// As many of the best as have better ones of at most `threshold` nats of entropy in all. Entropies count in units of
    /// threshold · 2⁻²⁰, rounded to nearest, at most 2²¹, so that their sum has no order.
    pub const ENTROPY_BUDGET: u32 = 6;
    /// Picks the best row of each run of adjacent positions if its c > low, and c > threshold; then as many more of the best
    /// as bring it to one more than the rows that may be masked again.
    pub const HIERARCHY: u32 = 7;
}

/// What is best.
pub mod score {
    /// Highest confidence.
    pub const CONFIDENCE: u32 = 0;
    /// Lowest entropy of the raw logits.
    pub const ENTROPY: u32 = 1;
    /// Highest c / noise + G, G from Gumbel's distribution: a draw of k without replacement from softmax(c / noise).
    pub const NOISY: u32 = 2;
    /// A random order, all orders alike.
    pub const RANDOM: u32 = 3;
    /// Lowest position.
    pub const FIRST: u32 = 4;
}

/// What k is at step i of the S steps of a block, with n masks left of the N that it began with.
///
/// In single precision, each operation rounded, in the order in which PyTorch would: δ = (ε − 1) / S, and time(i) =
/// 1 + δ · i if i < ⌊(S + 1) / 2⌋, else ε − δ · (S − i).
pub mod schedule {
    /// `count`.
    pub const FIXED: u32 = 0;
    /// ⌊N/S⌋, plus one at the first N mod S steps (LLaDA).
    pub const EVEN: u32 = 1;
    /// trunc(n · (1 − s / t)), t = time(i), s = time(i + 1) (Dream); 0 is possible.
    pub const TIME: u32 = 2;
    /// trunc(n · (1 − s / t)), t = n / N, s the first of time(i + 1), time(i + 2) … that lies before t and makes it at least
    /// 1; n if there is none (Dimple).
    pub const SKIP: u32 = 3;
}

/// Bits of [`SelectParameters::flags`].
pub mod select_flags {
    /// c ≥ threshold passes too.
    pub const INCLUSIVE: u32 = 1;
    /// A row that drew the mask token is not taken; without it, such a row is taken and stays masked.
    pub const EXCLUDE_MASK: u32 = 2;
    /// c counts as rounded to bfloat16.
    pub const ROUND_BF16: u32 = 4;
    /// Where the rule would take the k best without picks, each row is taken with probability 1 − s / t instead, with s and
    /// t of the schedule.
    pub const BERNOULLI: u32 = 8;
    /// Decoded rows are listed too, and take their token where it differs and c > revision.
    pub const EDIT: u32 = 16;
    /// Decoded rows are listed too. Those with c < revision stand among the masked ones, and if not taken are masked again;
    /// not at the last step.
    pub const REMASK: u32 = 32;
    /// The response ends at the first decoded end token of a block that has no mask before it, when the block is finished.
    pub const END_WITH_BLOCK: u32 = 64;
    /// The same after every step.
    pub const END_WITH_STEP: u32 = 128;
}

/// Last counter word of the selection's random numbers; the row kernel's is 0.
pub(super) const SELECTION_WORD: u32 = 0x5345_4C45;

/// Where a request stands: 64 bytes. Zeros make a new request of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestState {
    /// Steps taken.
    pub step: u32,
    /// Masked positions in the block.
    pub masks: u32,
    /// Masked positions in the block when it began.
    pub initial_masks: u32,
    /// [`request_flags`].
    pub flags: u32,
    /// The request's first entry in the row list.
    pub first_row: u32,
    /// Its entries in the row list, 0 when done: the block's masked positions, and decoded ones under rules that revise.
    pub rows: u32,
    /// Rows the last step took.
    pub selected: u32,
    /// First response position of the block that is being decoded; the last block's when done.
    pub block_start: u32,
    /// Positions of the block.
    pub block_length: u32,
    /// First position of the block that the last step to finish one finished, at first of the window; blocks without masks come
    /// between them.
    pub previous_block_start: u32,
    /// Steps taken in the block.
    pub block_step: u32,
    /// What [`rule::BUDGET`] left.
    pub carry: u32,
    /// Steps taken since the block's last mask was gone.
    pub post_steps: u32,
    /// Not read.
    pub reserved: [u32; 3],
}

/// Bits of [`RequestState::flags`].
pub mod request_flags {
    /// The request has begun.
    pub const STARTED: u32 = 1;
    /// Its last block is finished.
    pub const DONE: u32 = 2;
    /// Some row was flagged, or not of the block, and could not be selected.
    pub const ROW_ERROR: u32 = 4;
    /// The row list was too short for this request's rows.
    pub const LIST_OVERFLOW: u32 = 8;
    /// The window ends past `tokens_length`, or its block is longer than the kernel's: nothing was done.
    pub const BAD_WINDOW: u32 = 16;
    /// The state's rows are not all in the list, or its block is not in the window: none was selected.
    pub const BAD_STATE: u32 = 32;
    /// The last step finished a block, or the request began behind blocks that were given: the positions before `block_start`, or when done up to the window's end, are final.
    pub const BLOCK_FINISHED: u32 = 64;
    /// The response ended at an end token, and what stood open behind it was filled.
    pub const ENDED: u32 = 128;
    /// Its next step waits for a refresh.
    pub const WAITING: u32 = 256;
}
