//! Branches and loops.

use super::{B32, Builder, Operand, R32, RP, Source, builder::Line};

/// A branch target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

impl Builder {
    /// A label not placed yet.
    pub fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// The next instruction is where `label` leads.
    pub fn place(&mut self, label: Label) {
        self.lines.push(Line::Label(label.0));
    }

    /// Goes to `label`; under [`Builder::when`], where the condition holds.
    pub fn branch(&mut self, label: Label) {
        self.emit("bra", vec![Operand::Label(label.0)]);
    }

    /// Goes to `label` if `condition` holds.
    pub fn branch_if(&mut self, condition: RP, label: Label) {
        self.when(condition, |k| k.branch(label));
    }

    /// Goes to `label` unless `condition` holds.
    pub fn branch_unless(&mut self, condition: RP, label: Label) {
        self.unless(condition, |k| k.branch(label));
    }

    /// Runs `body` where `condition` holds.
    pub fn if_then(&mut self, condition: RP, body: impl FnOnce(&mut Builder)) {
        let end = self.label();
        self.branch_unless(condition, end);
        body(self);
        self.place(end);
    }

    /// Runs `yes` where `condition` holds and `no` elsewhere.
    pub fn if_else(&mut self, condition: RP, yes: impl FnOnce(&mut Builder), no: impl FnOnce(&mut Builder)) {
        let (otherwise, end) = (self.label(), self.label());
        self.branch_unless(condition, otherwise);
        yes(self);
        self.branch(end);
        self.place(otherwise);
        no(self);
        self.place(end);
    }

    /// Repeats `body` as long as `condition`, evaluated before each turn, holds. `ptxas` is told not to unroll.
    pub fn while_loop(&mut self, condition: impl FnOnce(&mut Builder) -> RP, body: impl FnOnce(&mut Builder)) {
        let (top, end) = (self.label(), self.label());
        self.place(top);
        self.lines.push(Line::Pragma("nounroll"));
        let holds = condition(self);
        self.branch_unless(holds, end);
        body(self);
        self.branch(top);
        self.place(end);
    }

    /// Runs `body` for `i = start, start + step, …` while `i < end` (unsigned).
    pub fn for_loop(
        &mut self,
        start: impl Into<Source<B32>>,
        end: impl Into<Source<B32>>,
        step: u32,
        body: impl FnOnce(&mut Builder, R32),
    ) {
        let i = self.mov(start);
        let end: R32 = self.mov(end);
        self.while_loop(
            |k| k.lt_u(i, end),
            |k| {
                body(k, i);
                let next = k.add(i, step);
                k.set(i, next);
            },
        );
    }

    /// Ends the thread.
    pub fn ret(&mut self) {
        self.emit("ret", vec![]);
    }
}
