//! What the sampling kernels compute.

use super::layout::MAX_WINDOW;
use crate::isa::Arch;

/// Element of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogitsType {
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl LogitsType {
    /// Name in the entry point.
    pub const fn name(self) -> &'static str {
        match self {
            LogitsType::Bf16 => "bf16",
            LogitsType::F16 => "f16",
            LogitsType::F32 => "f32",
        }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            LogitsType::Bf16 | LogitsType::F16 => 2,
            LogitsType::F32 => 4,
        }
    }
}

/// How sure a row is of its token; higher is surer. `p` is the softmax of the raw logits, or with
/// [`FILTERED_CONFIDENCE`](super::sampling_flags::FILTERED_CONFIDENCE) the distribution drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Confidence {
    /// p of the drawn token.
    Probability,
    /// Largest p minus second largest.
    Margin,
    /// Σ p ln p, at most 0.
    NegativeEntropy,
}

impl Confidence {
    /// What [`RowParameters::confidence`](super::RowParameters::confidence) holds.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Confidence::Probability => "probability",
            Confidence::Margin => "margin",
            Confidence::NegativeEntropy => "negative_entropy",
        }
    }
}

/// The row kernel: statistics, token and confidence of every listed row.
///
/// Grid: any number of blocks, see [`SamplerSpec::grid`]. Their warps share out the segments of all listed rows,
/// ⌈`vocab` / [`SamplerSpec::segment`]⌉ each, and the last warp of a row finishes it.
///
/// | parameter | type | what |
/// |---|---|---|
/// | `logits` | pointer | `[logits_count, vocab]`, last dimension contiguous |
/// | `logits_stride` | u64 | bytes between rows; rows at multiples of 16 bytes are read fastest |
/// | `logits_count` | u32 | rows, at least 1; a row past them is flagged, not read |
/// | `vocab` | u32 | tokens considered, 1 to 2¹⁹; ids at and above it are never drawn |
/// | `logits_rows` | pointer | u32 a list entry: its row of `logits`; 0: list entry i has row i |
/// | `guide_offset` | u32 | with `guided`: the unconditional row lies this many rows behind (wrapping) |
/// | `rows` | pointer | u32 pairs (request, position), as [`SelectionSpec`] writes them |
/// | `totals` | pointer | u32: valid entries of `rows` |
/// | `parameters` | pointer | [`RowParameters`](super::RowParameters) a request |
/// | `states` | pointer | [`RequestState`](super::RequestState) a request, of which the step is read |
/// | `requests` | u32 | requests; a row of another is flagged |
/// | `statistics` | pointer | [`RowStatistics`](super::RowStatistics) a list entry: written; 16-byte aligned |
/// | `partials` | pointer | [`PARTIAL_BYTES`](super::PARTIAL_BYTES) a record, [`SamplerSpec::records`] of each list entry, 128-byte aligned: the kernel's own |
/// | `tickets` | pointer | u32 a list entry: zero before the first launch, zero again after each; or 0: records are left for [`RowMergeSpec`], and no row is finished |
/// | `biases` | pointer | pairs of a u32 token id and an f32, of all requests: see [`RowParameters::bias_start`](super::RowParameters::bias_start); 8-byte aligned |
/// | `biases_length` | u32 | pairs that `biases` holds |
/// | `credits` | pointer | [`CREDIT_BYTES`](super::CREDIT_BYTES) for each of `credit_window` positions of each request, 8-byte aligned; or 0: no request has credits |
/// | `credit_window` | u32 | positions that a request decodes at a time, at most |
/// | `first_token` | u32 | id of the first of these tokens: not 0 where the logits are a part of the vocabulary |
/// | `row_vocab` | u32 | tokens of the whole row: `vocab`, if this is all of it |
/// | `records` | u32 | records that a row has room for in `partials`: [`SamplerSpec::records`], or more |
/// | `credit_pass` | u32 | 1: the launch that counts credits, before the one that decides: it gives each listed position of a request with credits its new ones, and writes nothing else but flags; 0: the one that decides |
/// | `entropies` | u32 | 1: the entropy of every row; 0: not of those whose requests have [`WITHOUT_ENTROPY`](super::sampling_flags::WITHOUT_ENTROPY) |
///
/// A logit gets its bias and then its credit's share, each sum rounded to single precision; the result counts like any logit, in every
/// place, and tokens are ranked by it.
///
/// Temperature comes first, then top-p and top-k in the order the request asks for, then min-p. Top-k at T > 0 or T = 0
/// keeps exactly k tokens, of equal logits the lowest ids (Dream keeps all that equal the k-th). Top-p and min-p compare
/// exact sums of masses, each rounded once.
///
/// # The draw
///
/// Words 0 and 1 of Philox-4x32-10 with key (seed_low, seed_high) and counter (position, step, stream, 0), divided by
/// 2³², are two uniform numbers. Both invert a distribution in order of ids. Where the request filters, the first draws
/// among the tokens that are kept. Where it does not, the first draws one of the row's segments of
/// [`SamplerSpec::segment`] ids, by its mass, and the second a token of it: so every warp draws from its own segment, and no
/// logit is read again. Tokens with a bias, by id, and behind them those that have a credit alone, by id, are one more segment, the
/// last, and of no other.
///
/// Relative error of probabilities and margins about 10⁻⁶, of entropies likewise down to 10⁻⁹ absolute. Where a request filters, sums at a
/// temperature may lack tokens of less than 2⁻³² of the weight of the best among their [`SamplerSpec::segment`]: 2⁻²¹ of the sum at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SamplerSpec {
    /// Type of the logits.
    pub dtype: LogitsType,
    /// Whether rows are guided by unconditional ones (classifier-free guidance, as in LLaDA).
    pub guided: bool,
    /// Architecture of the text.
    pub arch: Arch,
}

/// The last part of the row kernel where several devices have a part of the vocabulary each: it finishes rows from the records that
/// row kernels without tickets have left for each part, gathered in the order of the parts.
///
/// Grid: x = rows that are worked on at once. The parameters of the same names are those of [`SamplerSpec`]; `partials` are the
/// gathered records.
///
/// | parameter | type | what |
/// |---|---|---|
/// | `shards` | u32 | parts |
/// | `shard_tokens` | u32 | tokens of a part; the last has what is left, at least one |
/// | `shard_stride` | u64 | bytes from the records of a part to those of the next |
///
/// Where `shard_tokens` is a multiple of [`SamplerSpec::segment`] and no logits are changed, a row is, bit for bit, what one row kernel
/// makes of it; else sums have another order. Draws without a filter choose among the segments of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowMergeSpec {
    /// The kernel that left the records.
    pub sampler: SamplerSpec,
}

/// The selection kernel: applies each request's rule, writes tokens, moves on to the next block, lists the rows of the next
/// step.
///
/// Grid: x = requests, at most [`MAX_REQUESTS`](super::MAX_REQUESTS). The last block to finish makes the list.
///
/// | parameter | type | what |
/// |---|---|---|
/// | `parameters` | pointer | [`SelectParameters`](super::SelectParameters) a request; 16-byte aligned |
/// | `states` | pointer | [`RequestState`](super::RequestState) a request: read and written; 16-byte aligned |
/// | `statistics` | pointer | [`RowStatistics`](super::RowStatistics) a list entry; 16-byte aligned |
/// | `tokens` | pointer | u32, all responses: what was masked when its block began is written, nothing else |
/// | `tokens_length` | u32 | elements of `tokens` |
/// | `advance` | u32 | 1: requests under way take a step; 0: none does, and the list is made anew. A zeroed state becomes a request at its first step either way, without selecting |
/// | `refresh` | u32 | 1: requests that wait for a refresh take the step, or are listed, and no others do; 0: those that do not wait |
/// | `rows` | pointer | u32 pairs: the list, read and then written |
/// | `sources` | pointer | u32 a list entry (zeros after the last), or 0 |
/// | `capacity` | u32 | entries that `rows`, `sources` and `statistics` hold: the sum of the blocks is enough |
/// | `totals` | pointer | [`TOTALS_BYTES`](super::TOTALS_BYTES): rows, requests not done |
/// | `staging` | pointer | [`STAGING_BYTES`](super::STAGING_BYTES) a request, of no interest to the caller |
/// | `open` | pointer | [`OPEN_BYTES`](super::OPEN_BYTES) a request: kept from launch to launch; nothing need be in it at first |
/// | `trajectory_steps` | pointer | u32 an element of `tokens`: the step that wrote it; or 0 |
/// | `trajectory_confidence` | pointer | f32 an element of `tokens`: its confidence then; or 0 |
/// | `trajectory_log_probability` | pointer | f32 an element of `tokens`: ln p of the token in the softmax of the raw logits; or 0 |
/// | `trajectory_entropy` | pointer | f32 an element of `tokens`: entropy of that softmax, in nats; or 0 |
///
/// What a launch reads of its own earlier ones is checked, since it lies in device memory: a state whose rows are not all
/// in the list selects nothing and is flagged, as is a listed position outside the block; a listed position that holds a
/// token of someone else's by now is passed over. `totals` alone must be as [`TOTALS_BYTES`](super::TOTALS_BYTES) says: else
/// no list is made.
///
/// A block is finished when no mask is left in it or its steps are used up; blocks without masks are passed over. After the
/// window's last block the request is done, and from then on nothing of its tokens is read or written.
///
/// The list that a step makes is always that of the next step without a refresh: where requests wait, a launch with
/// `advance = 0` and `refresh = 1` lists them, before the pass that they wait for.
///
/// Random numbers are words of Philox-4x32-10 with key (seed_low, seed_high) and counter (position, step, stream,
/// 0x53454C45): none that the row kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SelectionSpec {
    /// Positions that a request decodes at a time, at most: 256, 512 or 1024, as many threads.
    pub window: u32,
    /// Architecture of the text: `sm_80`, or up to 512 positions `sm_90a`, which starts before the launch in front has ended.
    pub arch: Arch,
}

impl SelectionSpec {
    /// The kernel for a GPU of this architecture. Of 1024 threads each has 64 registers, which are enough only where `ptxas` may move
    /// loads through the non-coherent cache to where their values are needed.
    pub fn of(window: u32, arch: Arch) -> SelectionSpec {
        SelectionSpec { window, arch: if window < MAX_WINDOW { arch } else { Arch::Sm80 } }
    }
}
