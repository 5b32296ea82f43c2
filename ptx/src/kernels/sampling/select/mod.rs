//! The selection kernel: one block a request, one thread a row; the last block to finish makes the list.
//!
//! Every rule comes down to three things: rows that it picks by their own value, an order of the others, and how many of
//! those it takes besides ([`rules`]). So one kernel serves a batch of any rules, and only what asks for ranks pays for a
//! sort. Then a thread a position looks at the block as it is now: what is masked, whether the block is finished, where the
//! next one begins ([`block`]). The next list needs every request's count, hence the last block: each block stages its
//! positions, and the one that draws the last ticket sums the counts in request order and copies the positions to their
//! places ([`list`]). Who comes last does not change what it writes.

mod block;
mod list;
mod noise;
mod request;
mod row;
mod rules;
mod schedule;
mod trajectory;

use super::{layout::MAX_WINDOW, spec::SelectionSpec};
use crate::{
    isa::{Builder, Launch, R32, R64},
    kernels::{
        KernelSpec,
        error::{SpecError, SpecErrors},
        meta::{Kernel, ParameterKind},
    },
    tile::{ballot::block_ballots_bytes, overlap, ranking::block_ranking_bytes, reduce::BLOCK_EXCLUSIVE_SUM_BYTES},
};
use request::Request;
use trajectory::Trajectory;

/// Threads at least, for the block that makes the list.
const MIN_THREADS: u32 = 256;

impl KernelSpec for SelectionSpec {
    fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = Vec::new();
        if !(self.window.is_power_of_two() && (MIN_THREADS..=MAX_WINDOW).contains(&self.window)) {
            let message = format!("is {}: a power of two from {MIN_THREADS} to {MAX_WINDOW} is needed", self.window);
            errors.push(SpecError::new("window", message));
        }
        if SelectionSpec::of(self.window, self.arch) != *self {
            let message = format!("there is no {} kernel of {} positions: use sm_80", self.arch.target(), self.window);
            errors.push(SpecError::new("arch", message));
        }
        SpecErrors::check(errors)
    }

    fn build(&self) -> Kernel {
        let entry = format!("selection_w{}_{}", self.window, self.arch.name());
        let mut k = Builder::new(self.arch, entry, Launch { threads: self.window, blocks_per_multiprocessor: 1 });
        generate(&mut k);
        k.finish()
    }
}

/// The launch, as every request sees it.
struct Batch {
    parameters: R64,
    states: R64,
    statistics: R64,
    tokens: R64,
    tokens_length: R32,
    advance: R32,
    refresh: R32,
    rows: R64,
    sources: R64,
    capacity: R32,
    totals: R64,
    staging: R64,
    open: R64,
    trajectory: Trajectory,
    thread: R32,
    shared: Shared,
}

/// Shared memory, a region a purpose.
struct Shared {
    /// For reductions, and for words that one thread tells all.
    scratch: R32,
    /// For [`block_ballots`](crate::tile::ballot::block_ballots): what the rows are, what was taken, what the block is.
    ballots: [R32; 3],
    /// For ranks, and for lists over the threads.
    ranking: R32,
}

impl Shared {
    fn new(k: &mut Builder) -> Shared {
        let threads = k.threads();
        let mut region = |bytes| {
            let region = k.shared(bytes, 16);
            k.shared_address(region)
        };
        Shared {
            scratch: region(BLOCK_EXCLUSIVE_SUM_BYTES),
            ballots: [5, 2, 3].map(|predicates| region(block_ballots_bytes(predicates))),
            ranking: region(block_ranking_bytes(threads)),
        }
    }
}

fn generate(k: &mut Builder) {
    let batch = Batch {
        parameters: k.parameter("parameters", ParameterKind::Pointer),
        states: k.parameter("states", ParameterKind::Pointer),
        statistics: k.parameter("statistics", ParameterKind::Pointer),
        tokens: k.parameter("tokens", ParameterKind::Pointer),
        tokens_length: k.parameter("tokens_length", ParameterKind::U32),
        advance: k.parameter("advance", ParameterKind::U32),
        refresh: k.parameter("refresh", ParameterKind::U32),
        rows: k.parameter("rows", ParameterKind::Pointer),
        sources: k.parameter("sources", ParameterKind::Pointer),
        capacity: k.parameter("capacity", ParameterKind::U32),
        totals: k.parameter("totals", ParameterKind::Pointer),
        staging: k.parameter("staging", ParameterKind::Pointer),
        open: k.parameter("open", ParameterKind::Pointer),
        trajectory: Trajectory::new(k),
        thread: k.thread(),
        shared: Shared::new(k),
    };
    overlap::follow(k);
    let request = Request::load(k, &batch);
    k.comment("select and write");
    k.if_then(request.running, |k| rules::step(k, &batch, &request));
    k.comment("what is still masked");
    block::settle(k, &batch, &request);
    list::make_list(k, &batch);
    k.ret();
}
