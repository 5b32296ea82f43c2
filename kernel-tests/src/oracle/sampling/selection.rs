//! One request of the selection kernel, launch by launch.

use super::rules::{Candidate, Decision, decide, edits};
use ptx::kernels::sampling::{OPEN_BYTES, RequestState, RowStatistics, SelectParameters, request_flags, select_flags};
use std::collections::BTreeSet;

/// A request with its progress.
#[derive(Clone, Debug)]
pub struct Selection {
    /// What it asks for.
    pub parameters: SelectParameters,
    /// Where it stands; `first_row` is left alone.
    pub state: RequestState,
    /// Positions that were masked when the block began.
    open: BTreeSet<u32>,
}

/// What a launch does.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// Positions of the next list.
    pub listed: Vec<u32>,
    /// What was written into positions, at which step: not masks, and nothing behind an end.
    pub written: Vec<(u32, u32, RowStatistics)>,
}

impl Selection {
    /// A request that has not begun.
    pub fn new(parameters: SelectParameters) -> Selection {
        Selection { parameters, state: RequestState::default(), open: BTreeSet::new() }
    }

    /// What `open` holds of it, in the kernel's words.
    pub fn open_words(&self) -> [u32; OPEN_BYTES as usize / 4] {
        let mut words = [0; OPEN_BYTES as usize / 4];
        for position in &self.open {
            let place = position - self.state.block_start;
            words[place as usize / 32] |= 1 << (place % 32);
        }
        words
    }

    fn has(&self, flag: u32) -> bool {
        self.parameters.flags & flag != 0
    }

    fn is(&self, flag: u32) -> bool {
        self.state.flags & flag != 0
    }

    fn block(&self) -> std::ops::Range<u32> {
        self.state.block_start..self.state.block_start + self.state.block_length
    }

    fn window_end(&self) -> u32 {
        self.parameters.window_start + self.parameters.window_length
    }

    /// One launch. `rows` are the listed positions, ascending, with what the row kernel said of them; `refresh` says whose turn
    /// it is, those that wait or the others.
    pub fn launch(
        &mut self,
        tokens: &mut [u32],
        rows: &[(u32, RowStatistics)],
        advance: bool,
        refresh: bool,
    ) -> Selected {
        let listing_waiting = refresh && !advance;
        let advance = advance && self.is(request_flags::WAITING) == refresh;
        let mut selected = self.take(tokens, rows, advance);
        let (p, step) = (self.parameters, self.state.block_step);
        let in_turn = p.refresh_every > 0 && step > 0 && step.is_multiple_of(p.refresh_every);
        let due = !self.is(request_flags::DONE) && (step < p.refresh_steps || in_turn);
        self.state.flags &= !request_flags::WAITING;
        self.state.flags |= if due { request_flags::WAITING } else { 0 };
        if due != listing_waiting {
            selected.listed.clear();
            self.state.rows = 0;
        }
        selected
    }

    fn take(&mut self, tokens: &mut [u32], rows: &[(u32, RowStatistics)], advance: bool) -> Selected {
        let p = self.parameters;
        let at = |position: u32| (p.first_token + position) as usize;
        let mut selected = Selected::default();
        self.state.selected = 0;
        if advance {
            self.state.flags &= !request_flags::BLOCK_FINISHED;
        }
        if self.is(request_flags::DONE) {
            self.state.rows = 0;
            return selected;
        }
        let started = self.is(request_flags::STARTED);
        self.state.flags |= request_flags::STARTED;
        if !started {
            self.begin(p.window_start, tokens);
            self.state.previous_block_start = p.window_start;
            if self.state.block_start > p.window_start {
                self.state.flags |= request_flags::BLOCK_FINISHED;
            }
        } else {
            let mut idle = false;
            if advance {
                let candidate = |&(position, statistics): &(u32, RowStatistics)| {
                    let masked = tokens[at(position)] == p.mask_token;
                    (masked || self.revises() && self.open.contains(&position)).then_some(Candidate {
                        position,
                        statistics,
                        masked,
                    })
                };
                let candidates: Vec<Candidate> = rows.iter().filter_map(candidate).collect();
                if rows.iter().any(|(_, statistics)| statistics.flags != 0) {
                    self.state.flags |= request_flags::ROW_ERROR;
                }
                let decision = Decision {
                    edited: edits(&p, &candidates, |position| tokens[at(position)]),
                    ..decide(&p, &self.state, &candidates)
                };
                for row in decision.chosen.iter().chain(&decision.edited) {
                    tokens[at(row.position)] = row.statistics.token;
                    selected.written.push((row.position, self.state.step, row.statistics));
                }
                for row in &decision.remasked {
                    tokens[at(row.position)] = p.mask_token;
                }
                let bare = candidates.iter().all(|row| !row.masked);
                self.state.post_steps += u32::from(bare);
                idle = bare && decision.edited.is_empty() && decision.remasked.is_empty();
                self.state.selected = decision.chosen.len() as u32;
                self.state.carry = decision.carry;
                self.state.step += 1;
                self.state.block_step += 1;
            }
            self.close(tokens, advance, idle);
        }
        let listed = |position: &u32| {
            let masked = tokens[at(*position)] == p.mask_token;
            masked || self.revises() && self.open.contains(position)
        };
        selected.listed = if self.is(request_flags::DONE) { Vec::new() } else { self.block().filter(listed).collect() };
        self.state.rows = selected.listed.len() as u32;
        selected
    }

    fn revises(&self) -> bool {
        self.has(select_flags::EDIT | select_flags::REMASK)
    }

    fn masks(&self, tokens: &[u32]) -> Vec<u32> {
        let p = &self.parameters;
        self.block().filter(|position| tokens[(p.first_token + position) as usize] == p.mask_token).collect()
    }

    /// The first block from `start` on that has masks, or the end.
    fn begin(&mut self, start: u32, tokens: &[u32]) {
        let p = self.parameters;
        let size = if p.block_length == 0 { p.window_length } else { p.block_length };
        let end = self.window_end();
        let mut starts = (start..end).step_by(size.max(1) as usize);
        let mut next = start;
        loop {
            next = starts.next().unwrap_or(next);
            (self.state.block_start, self.state.block_length) = (next, size.min(end - next));
            self.open = self.masks(tokens).into_iter().collect();
            if !self.open.is_empty() || next + self.state.block_length >= end {
                break;
            }
        }
        if self.open.is_empty() {
            self.state.flags |= request_flags::DONE;
        }
        self.state.masks = self.open.len() as u32;
        self.state.initial_masks = self.state.masks;
        (self.state.block_step, self.state.carry, self.state.post_steps) = (0, 0, 0);
    }

    /// Ends the response, or the block, if that is due.
    fn close(&mut self, tokens: &mut [u32], advance: bool, idle: bool) {
        let p = self.parameters;
        let at = |position: u32| (p.first_token + position) as usize;
        let masks = self.masks(tokens);
        self.state.masks = masks.len() as u32;
        let settled = masks.is_empty() && (self.state.post_steps >= p.post_steps || idle);
        let over = settled || self.state.block_step >= p.steps + p.post_steps;
        let looked_for = self.has(select_flags::END_WITH_STEP) || over && self.has(select_flags::END_WITH_BLOCK);
        let ends = |position: &u32| p.end_tokens.contains(&tokens[at(*position)]) && !masks.contains(position);
        let start = self.state.block_start;
        let end = self.open.iter().copied().find(ends).filter(|end| masks.iter().all(|mask| end < mask));
        if let Some(end) = end.filter(|_| looked_for && advance) {
            for position in end + 1..self.window_end() {
                if tokens[at(position)] == p.mask_token || self.open.contains(&position) {
                    tokens[at(position)] = p.fill_token;
                }
            }
            self.state.masks = 0;
            self.state.previous_block_start = start;
            self.state.flags |= request_flags::BLOCK_FINISHED | request_flags::ENDED | request_flags::DONE;
        } else if over {
            self.state.flags |= request_flags::BLOCK_FINISHED;
            self.state.previous_block_start = start;
            let next = self.state.block_start + self.state.block_length;
            if next >= self.window_end() {
                self.state.flags |= request_flags::DONE;
            } else {
                self.begin(next, tokens);
            }
        }
    }
}
