//! Rows whose vocabulary is shared out over several devices: finished from the gathered records of all parts.

use super::{
    entry::Entry,
    filter::SCRATCH_BYTES,
    finish::{Desk, ROOM_BYTES, WORDS_BYTES},
    layout::row_flags,
    row::{Arguments, THREADS},
    spec::{RowMergeSpec, SamplerSpec},
    statistics,
};
use crate::{
    isa::{Arch, Builder, Launch, R32, R64},
    kernels::{
        KernelSpec,
        error::{SpecError, SpecErrors},
        meta::{Kernel, ParameterKind},
    },
    tile::team::Team,
};

/// How a vocabulary is shared out.
#[derive(Clone, Copy)]
pub(super) struct Shards {
    count: R32,
    /// Of each part but the last.
    tokens: R32,
    /// Bytes from one part's records to the next one's.
    stride: R64,
}

impl Shards {
    /// Segments of all parts.
    pub(super) fn segments(self, k: &mut Builder, arguments: &Arguments) -> R32 {
        let of_part = arguments.segments_of(k, self.tokens);
        let whole = k.sub(self.count, 1u32);
        let before = k.mul(whole, self.tokens);
        let rest = k.sub(arguments.row_vocab, before);
        let of_rest = arguments.segments_of(k, rest);
        k.mad(whole, of_part, of_rest)
    }

    pub(super) fn records(self, k: &mut Builder, arguments: &Arguments) -> ShardRecords {
        let Shards { count, tokens, stride } = self;
        ShardRecords { count, tokens, stride, segments: arguments.segments_of(k, tokens) }
    }
}

/// Where the records of the parts are.
#[derive(Clone, Copy)]
pub(super) struct ShardRecords {
    pub(super) count: R32,
    pub(super) tokens: R32,
    stride: R64,
    /// Of each part but the last.
    segments: R32,
}

impl ShardRecords {
    /// Part, and segment in it, of a segment of the row.
    pub(super) fn locate(self, k: &mut Builder, number: R32) -> (R32, R32) {
        let shard = k.div_u(number, self.segments);
        let before = k.mul(shard, self.segments);
        (shard, k.sub(number, before))
    }

    pub(super) fn address(self, k: &mut Builder, first: R64, shard: R32) -> R64 {
        let shard = k.widen_u(shard);
        k.mad(shard, self.stride, first)
    }
}

impl RowMergeSpec {
    /// The grid for a list with room for so many rows.
    pub fn grid(&self, capacity: u32) -> [u32; 3] {
        [capacity.clamp(1, 1 << 16), 1, 1]
    }
}

impl KernelSpec for RowMergeSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if self.sampler.arch != Arch::Sm80 {
            let message =
                format!("there is no {} kernel: use sm_80, which runs on every later GPU", self.sampler.arch.target());
            errors.push(SpecError::new("sampler.arch", message));
        }
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let guided = if self.sampler.guided { "_guided" } else { "" };
        let entry = format!("row_merge_{}{guided}_sm80", self.sampler.dtype.name());
        let launch = Launch { threads: THREADS, blocks_per_multiprocessor: 2 };
        let mut k = Builder::new(self.sampler.arch, entry, launch);
        generate(&mut k, &self.sampler);
        k.finish()
    }
}

fn declare(k: &mut Builder, spec: &SamplerSpec) -> Arguments {
    let nothing = k.mov(0u64);
    let logits_count = k.parameter("logits_count", ParameterKind::U32);
    let row_vocab = k.parameter("row_vocab", ParameterKind::U32);
    Arguments {
        logits: nothing,
        logits_stride: nothing,
        logits_count,
        vocab: row_vocab,
        logits_rows: k.parameter("logits_rows", ParameterKind::Pointer),
        guide_offset: spec.guided.then(|| k.parameter("guide_offset", ParameterKind::U32)),
        rows: k.parameter("rows", ParameterKind::Pointer),
        totals: k.parameter("totals", ParameterKind::Pointer),
        parameters: k.parameter("parameters", ParameterKind::Pointer),
        states: k.parameter("states", ParameterKind::Pointer),
        requests: k.parameter("requests", ParameterKind::U32),
        statistics: k.parameter("statistics", ParameterKind::Pointer),
        partials: k.parameter("partials", ParameterKind::Pointer),
        tickets: nothing,
        biases: nothing,
        biases_length: k.parameter("biases_length", ParameterKind::U32),
        credits: k.parameter("credits", ParameterKind::Pointer),
        credit_window: k.parameter("credit_window", ParameterKind::U32),
        credit_pass: k.parameter("credit_pass", ParameterKind::U32),
        entropies: k.parameter("entropies", ParameterKind::U32),
        first_token: k.mov(0u32),
        row_vocab,
        records: k.parameter("records", ParameterKind::U32),
        shards: Some(Shards {
            count: k.parameter("shards", ParameterKind::U32),
            tokens: k.parameter("shard_tokens", ParameterKind::U32),
            stride: k.parameter("shard_stride", ParameterKind::U64),
        }),
        segment_bits: spec.segment().ilog2(),
    }
}

fn generate(k: &mut Builder, spec: &SamplerSpec) {
    let arguments = declare(k, spec);
    let words = k.shared(WORDS_BYTES, 16);
    let list = k.shared(ROOM_BYTES, 16);
    let scratch = k.shared(SCRATCH_BYTES, 16);
    let desk = Desk {
        team: Team::Block,
        words: k.shared_address(words),
        list: k.shared_address(list),
        scratch: Some(scratch),
        queue: k.mov(0u32),
    };
    let listed: R32 = k.load(arguments.totals, 0);
    let index = k.block_x();
    let index = k.mov(index);
    k.while_loop(
        |k| k.lt_u(index, listed),
        |k| {
            let next = k.label();
            let entry = Entry::load(k, &arguments, index);
            let (_, outside) = entry.rows(k, &arguments);
            let asked = entry.asked(k, &arguments);
            let lost = asked.is_lost(k, &arguments);
            let outside = k.or_p(outside, lost);
            k.if_then(outside, |k| {
                let leader = k.thread();
                let leader = k.eq(leader, 0u32);
                let out = Entry::out(k, &arguments, index);
                k.if_then(leader, |k| statistics::write_flagged(k, row_flags::OUT_OF_RANGE, out));
                k.branch(next);
            });
            let counts = k.ne(arguments.credit_pass, 0u32);
            k.if_then(counts, |k| {
                let has = asked.has_credits(k, &arguments);
                k.branch_unless(has, next);
            });
            desk.finish(k, spec, &arguments, (index, asked), next);
            k.place(next);
            // Another row's list comes where this one's was.
            k.barrier();
            let blocks = k.grid_x();
            let following = k.add(index, blocks);
            k.set(index, following);
        },
    );
    k.ret();
}
