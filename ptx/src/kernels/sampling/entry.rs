//! One entry of the list: whose it is, where its logits lie, and how its request wants them drawn.
//!
//! Where the logits lie is read again where it is needed: that costs a few loads from the L1 cache, where keeping it would cost
//! registers. What the request wants is read once, a word a lane.

use super::{
    layout::{CREDIT_BYTES, MAX_BIASES, RequestState, RowParameters, RowStatistics, sampling_flags},
    logits::{Guide, Logits, Mass, has},
    patches::Patches,
    row::Arguments,
    spec::{Confidence, LogitsType},
};
use crate::{
    isa::{B32, B64, Builder, Cache, R32, R64, RF, RP, Reg, Word},
    tile::philox::philox,
};
use std::mem::{offset_of, size_of};

/// Where an entry points. For what does not exist the first row or request stands here.
pub(super) struct Entry {
    request: R32,
    position: R32,
    /// Row of the logits.
    source: R32,
    /// Its request's parameters.
    parameters: R64,
    /// Whether its request or its row does not exist.
    lost: RP,
}

/// What a request asks for: a word a lane, so that all of it costs one load and one register. All lanes of a warp take part in
/// what is done with it.
#[derive(Clone, Copy)]
pub(super) struct Asked(pub(super) R32);

/// Lanes of [`Asked`] behind those of [`RowParameters`].
const STEP: u32 = size_of::<RowParameters>() as u32 / 4;
const POSITION: u32 = STEP + 1;
const REQUEST: u32 = STEP + 2;
const LOST: u32 = STEP + 3;
const NOTED: u32 = STEP + 4;

impl Asked {
    /// The word of [`RowParameters`] at this offset.
    pub(super) fn word(self, k: &mut Builder, offset: usize) -> R32 {
        k.shuffle_from(self.0, offset as u32 / 4)
    }

    pub(super) fn float(self, k: &mut Builder, offset: usize) -> RF {
        let bits = self.word(k, offset);
        k.from_bits(bits)
    }

    pub(super) fn drawing(self, k: &mut Builder) -> Drawing {
        let temperature = self.float(k, offset_of!(RowParameters, temperature));
        let warm = k.gt_f(temperature, 0.0);
        let divisor = k.select(warm, temperature, 1.0f32);
        let inverse = Mass::inverse(k, divisor);
        Drawing {
            flags: self.word(k, offset_of!(RowParameters, flags)),
            confidence: self.word(k, offset_of!(RowParameters, confidence)),
            warm,
            divisor,
            inverse,
            scale: Mass::scale(k, inverse),
        }
    }

    /// Whether somebody reads the entropy of the raw logits.
    pub(super) fn wants_entropy(self, k: &mut Builder, arguments: &Arguments) -> RP {
        let flags = self.word(k, offset_of!(RowParameters, flags));
        let confidence = self.word(k, offset_of!(RowParameters, confidence));
        let spared = has(k, flags, sampling_flags::WITHOUT_ENTROPY);
        let listed = k.not_p(spared);
        let filtered = has(k, flags, sampling_flags::FILTERED_CONFIDENCE);
        let raw = k.not_p(filtered);
        let by_entropy = k.ge_u(confidence, Confidence::NegativeEntropy.code());
        let by_entropy = k.and_p(by_entropy, raw);
        let all = k.ne(arguments.entropies, 0u32);
        let wanted = k.or_p(listed, by_entropy);
        let wanted = k.or_p(wanted, all);
        let decides = k.eq(arguments.credit_pass, 0u32);
        k.and_p(wanted, decides)
    }

    /// Keeps three more words with it.
    pub(super) fn note(self, k: &mut Builder, words: [R32; 3]) {
        let lane = k.lane();
        for (noted, word) in (NOTED..).zip(words) {
            let here = k.eq(lane, noted);
            k.when(here, |k| k.set(self.0, word));
        }
    }

    /// What [`Asked::note`] keeps.
    pub(super) fn noted(self, k: &mut Builder) -> [R32; 3] {
        [0, 1, 2].map(|i| k.shuffle_from(self.0, NOTED + i))
    }

    /// Whether the request, its row or its biases do not exist.
    pub(super) fn is_lost(self, k: &mut Builder, arguments: &Arguments) -> RP {
        let lost = k.shuffle_from(self.0, LOST);
        let lost = k.ne(lost, 0u32);
        let start = self.word(k, offset_of!(RowParameters, bias_start));
        let count = self.word(k, offset_of!(RowParameters, bias_count));
        let room = k.sub(arguments.biases_length, start);
        let room = k.min_u(room, MAX_BIASES);
        let begins_past = k.gt_u(start, arguments.biases_length);
        let longer = k.gt_u(count, room);
        let past = k.or_p(begins_past, longer);
        k.or_p(lost, past)
    }

    /// Ids at and above it have no probability.
    pub(super) fn limit(self, k: &mut Builder, vocab: R32) -> R32 {
        let limit = self.word(k, offset_of!(RowParameters, vocab_limit));
        // 0 is no limit, and wraps.
        let last = k.sub(limit, 1u32);
        let last_token = k.sub(vocab, 1u32);
        let last = k.min_u(last, last_token);
        k.add(last, 1u32)
    }

    /// Whether the request goes by credits, and the launch has any.
    pub(super) fn has_credits(self, k: &mut Builder, arguments: &Arguments) -> RP {
        let weight = self.float(k, offset_of!(RowParameters, credit_weight));
        let weighs = k.gt_f(weight, 0.0);
        let there = k.ne(arguments.credits, 0u64);
        k.and_p(weighs, there)
    }

    /// Where the credits of its position are. Positions that are decoded at a time lie within a window, and so differ in their
    /// remainders.
    pub(super) fn credit_header(self, k: &mut Builder, arguments: &Arguments) -> R64 {
        let window = k.max_u(arguments.credit_window, 1u32);
        let position = self.position(k);
        let place = k.rem_u(position, window);
        let request = k.shuffle_from(self.0, REQUEST);
        let place = k.mad(request, window, place);
        k.mad_wide(place, CREDIT_BYTES, arguments.credits)
    }

    /// The response position of the row.
    pub(super) fn position(self, k: &mut Builder) -> R32 {
        k.shuffle_from(self.0, POSITION)
    }

    /// Steps that the request has taken.
    pub(super) fn step(self, k: &mut Builder) -> R32 {
        k.shuffle_from(self.0, STEP)
    }

    /// The two uniform numbers of its draw, as words.
    pub(super) fn uniforms(self, k: &mut Builder) -> [R32; 2] {
        let (step, position) = (self.step(k), self.position(k));
        let key = [offset_of!(RowParameters, seed_low), offset_of!(RowParameters, seed_high)];
        let key = key.map(|offset| self.word(k, offset));
        let stream = self.word(k, offset_of!(RowParameters, stream));
        let zero = k.mov(0u32);
        let [first, second, ..] = philox(k, [position, step, stream, zero], key);
        [first, second]
    }
}

/// How a request draws.
pub(super) struct Drawing {
    pub(super) flags: R32,
    /// [`Confidence::code`](super::Confidence::code).
    pub(super) confidence: R32,
    /// Whether there is a temperature.
    pub(super) warm: RP,
    /// It, or 1, and the inverse and the scale that go with it.
    pub(super) divisor: RF,
    pub(super) inverse: RF,
    pub(super) scale: RF,
}

impl Entry {
    pub(super) fn load(k: &mut Builder, arguments: &Arguments, index: R32) -> Entry {
        let at = k.mad_wide(index, 8u32, arguments.rows);
        let [request, position] = k.load_vector::<B32, B64, 2>(at, 0, Cache::Default);
        let source = Entry::source(k, arguments, index);
        let nowhere = k.ge_u(source, arguments.logits_count);
        let source = k.select(nowhere, 0u32, source);
        let nobody = k.ge_u(request, arguments.requests);
        let request = k.select(nobody, 0u32, request);
        let parameters = k.mad_wide(request, size_of::<RowParameters>() as u32, arguments.parameters);
        Entry { request, position, source, parameters, lost: k.or_p(nowhere, nobody) }
    }

    /// Its row of logits as stored.
    pub(super) fn stored_row(&self, k: &mut Builder, arguments: &Arguments) -> R64 {
        self.row(k, arguments, self.source)
    }

    fn source(k: &mut Builder, arguments: &Arguments, index: R32) -> R32 {
        let source = k.mov(index);
        let mapped = k.ne(arguments.logits_rows, 0u64);
        let at = k.mad_wide(index, 4u32, arguments.logits_rows);
        k.when(mapped, |k| k.load_into(source, at, 0, Cache::Default));
        source
    }

    /// Where its statistics go.
    pub(super) fn out(k: &mut Builder, arguments: &Arguments, index: R32) -> R64 {
        k.mad_wide(index, size_of::<RowStatistics>() as u32, arguments.statistics)
    }

    fn row(&self, k: &mut Builder, arguments: &Arguments, row: R32) -> R64 {
        let row = k.widen_u(row);
        k.mad(row, arguments.logits_stride, arguments.logits)
    }

    /// Its row of logits as stored, and the one that guides it; and whether any of that does not exist, or its request.
    pub(super) fn rows(&self, k: &mut Builder, arguments: &Arguments) -> ((R64, Option<Guide>), RP) {
        let mut outside = self.lost;
        let guide = arguments.guide_offset.map(|offset| {
            let weight: RF = self.parameter(k, offset_of!(RowParameters, guidance));
            let row = k.add(self.source, offset);
            let guides = k.ne_f(weight, 0.0);
            let exists = k.lt_u(row, arguments.logits_count);
            let read = k.and_p(guides, exists);
            let lost = k.xor_p(guides, read);
            outside = k.or_p(outside, lost);
            let row = k.select(read, row, self.source);
            Guide { address: self.row(k, arguments, row), weight }
        });
        ((self.row(k, arguments, self.source), guide), outside)
    }

    /// A field of its request's parameters, at this offset.
    pub(super) fn parameter<W: Word>(&self, k: &mut Builder, offset: usize) -> Reg<W> {
        k.load(self.parameters, offset as i64)
    }

    /// Its row as the request sees it.
    pub(super) fn logits(
        &self,
        k: &mut Builder,
        dtype: LogitsType,
        (address, guide): (R64, Option<Guide>),
        asked: Asked,
        arguments: &Arguments,
    ) -> Logits {
        let limit = asked.limit(k, arguments.row_vocab);
        Logits { dtype, address, guide, limit, patches: Patches::load(k, asked, arguments) }
    }

    /// What its request asks for.
    pub(super) fn asked(&self, k: &mut Builder, arguments: &Arguments) -> Asked {
        let lane = k.lane();
        let word = k.mov(0u32);
        let parameter = k.mad_wide(lane, 4u32, self.parameters);
        let of_parameters = k.lt_u(lane, STEP);
        k.when(of_parameters, |k| k.load_into(word, parameter, 0, Cache::Default));
        let state = k.mad_wide(self.request, size_of::<RequestState>() as u32, arguments.states);
        let of_state = k.eq(lane, STEP);
        k.when(of_state, |k| k.load_into(word, state, offset_of!(RequestState, step) as i64, Cache::Default));
        for (place, own) in [(POSITION, self.position), (REQUEST, self.request)] {
            let here = k.eq(lane, place);
            k.when(here, |k| k.set(word, own));
        }
        let of_loss = k.eq(lane, LOST);
        let of_loss = k.and_p(of_loss, self.lost);
        k.when(of_loss, |k| k.set(word, 1u32));
        Asked(word)
    }
}
