//! The records that host and device share: plain 32-bit fields, little-endian, no padding.
//!
//! The generators take their offsets from these very types, so that there is one definition.

/// Positions of a request's window, at most: one thread each.
pub const MAX_WINDOW: u32 = 1024;

/// Requests of one selection launch, at most.
pub const MAX_REQUESTS: u32 = 1024;

/// Bytes of `staging` a request.
pub const STAGING_BYTES: u64 = 4 * MAX_WINDOW as u64;

/// Bytes of `totals`: u32 rows listed, u32 requests not done, u32 blocks finished (the kernel's own: zero before the
/// first launch, zero again after each), u32 unused.
pub const TOTALS_BYTES: u64 = 16;

/// How one request draws its tokens: 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowParameters {
    /// Divides the logits; 0 (or less) takes the best token, and probabilities are those at 1.
    pub temperature: f32,
    /// Keeps the tokens whose strictly better ranks together have at most this mass, so the first always; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: u32,
    /// [`sampling_flags`].
    pub flags: u32,
    /// Random seed, low word.
    pub seed_low: u32,
    /// Random seed, high word.
    pub seed_high: u32,
    /// Name of the request within its seed; not its place in the batch.
    pub stream: u32,
    /// Not read.
    pub reserved: u32,
}

/// Bits of [`RowParameters::flags`].
pub mod sampling_flags {
    /// Top-k first and top-p of what it keeps (SDAR, vLLM), instead of top-p of everything and then top-k (Dream).
    pub const TOP_K_FIRST: u32 = 1;
    /// Confidence in the distribution drawn from (temperature, filtered) instead of the softmax of the raw logits.
    pub const FILTERED_CONFIDENCE: u32 = 2;
}

/// What one row yields: 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStatistics {
    /// The token drawn.
    pub token: u32,
    /// By the kernel's [`Confidence`](super::Confidence); −∞ if any flag is set.
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
    /// Σ p ln p of the raw logits.
    pub negative_entropy: f32,
    /// Logit of `token`.
    pub logit: f32,
}

/// Bits of [`RowStatistics::flags`].
pub mod row_flags {
    /// No logit is above −∞.
    pub const NOT_FINITE: u32 = 1;
    /// `logits_rows` names a row past `logits_count`, or `rows` a request past `requests`.
    pub const OUT_OF_RANGE: u32 = 2;
}

/// How one request selects among its rows: 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SelectParameters {
    /// [`rule`].
    pub rule: u32,
    /// Steps; the last selects every row that is left.
    pub steps: u32,
    /// Confidence to exceed, for [`rule::THRESHOLD`].
    pub threshold: f32,
    /// Last time of [`rule::TOP_K_TIME`]'s schedule, which begins at 1.
    pub epsilon: f32,
    /// A position holding this token is masked; all others are frozen.
    pub mask_token: u32,
    /// Element of `tokens` with the request's response position 0.
    pub first_token: u32,
    /// First response position of the window within which tokens are decoded.
    pub window_start: u32,
    /// Positions of the window, at most [`MAX_WINDOW`].
    pub window_length: u32,
    /// `sources` of response position 0 (wrapping: −1 is allowed where position 0 is never masked).
    pub row_base: u32,
    /// Not read.
    pub reserved: [u32; 3],
}

/// How many rows a step selects: the k of highest confidence. All of them at the last step, under every rule.
pub mod rule {
    /// k rows exceed the threshold (strictly), or k = 1 if none does (Dimple's confident decoding with a forced top-1).
    pub const THRESHOLD: u32 = 0;
    /// k = ⌊N/S⌋, plus one at the first N mod S of the S steps, with N the masks at the start (LLaDA).
    pub const TOP_K_EVEN: u32 = 1;
    /// k = trunc(n · (1 − s / t)), with n the masks left, t = time(i), s = time(i + 1) at step i of S (Dream); 0 is
    /// possible. In single precision, each operation rounded: δ = (ε − 1) / S, and time(i) = 1 + δ · i if
    /// i < ⌊(S + 1) / 2⌋, else ε − δ · (S − i): PyTorch's `linspace`.
    pub const TOP_K_TIME: u32 = 2;
}

/// Where a request stands: 48 bytes. Zeros make a new request of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestState {
    /// Steps taken.
    pub step: u32,
    /// Masked positions in the window.
    pub masks: u32,
    /// Masked positions in the window when the request began.
    pub initial_masks: u32,
    /// [`request_flags`].
    pub flags: u32,
    /// The request's first entry in the row list.
    pub first_row: u32,
    /// Its entries in the row list: `masks`, or 0 when done.
    pub rows: u32,
    /// Rows the last step selected.
    pub selected: u32,
    /// First response position of the block that is being decoded.
    pub block_start: u32,
    /// Positions of the block.
    pub block_length: u32,
    /// First position of the block that the last step finished.
    pub previous_block_start: u32,
    /// Not read.
    pub reserved: [u32; 2],
}

/// Bits of [`RequestState::flags`].
pub mod request_flags {
    /// The request has begun.
    pub const STARTED: u32 = 1;
    /// No mask is left, or no step.
    pub const DONE: u32 = 2;
    /// Some row was flagged, or not of the window, and could not be selected.
    pub const ROW_ERROR: u32 = 4;
    /// The row list was too short for this request's rows.
    pub const LIST_OVERFLOW: u32 = 8;
    /// The window is longer than [`MAX_WINDOW`](super::MAX_WINDOW) or ends past `tokens_length`: nothing was done.
    pub const BAD_WINDOW: u32 = 16;
    /// The state's rows are not all in the list: none was selected.
    pub const BAD_STATE: u32 = 32;
    /// The last step finished a block.
    pub const BLOCK_FINISHED: u32 = 64;
}
