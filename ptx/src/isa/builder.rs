//! [`Builder`]: one kernel under construction.

use super::{
    Arch,
    register::{B64, CLASSES, Class, Operand, Pred, Reg, Source},
    shared::SharedLayout,
};
use crate::kernels::meta::{BoxShape, Kernel, KernelMeta, Parameter, ParameterKind};

/// How a kernel is launched, as far as its text fixes it.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Threads a block.
    pub threads: u32,
    /// Blocks a multiprocessor should hold at once; limits the registers a thread may use.
    pub blocks_per_multiprocessor: u32,
}

/// One line of a kernel's body.
#[derive(Debug)]
pub(super) enum Line {
    Instruction { guard: Option<(u32, bool)>, opcode: String, operands: Vec<Operand> },
    Label(u32),
    Comment(String),
    Pragma(&'static str),
}

/// One kernel under construction: registers, parameters, shared memory and lines.
///
/// A method an instruction; each returns the register that holds its result. A register may be written again with
/// [`Builder::set`]: PTX is not static single assignment, and `ptxas` makes it so.
pub struct Builder {
    pub(super) arch: Arch,
    pub(super) isa: (u8, u8),
    pub(super) entry: String,
    pub(super) launch: Launch,
    pub(super) parameters: Vec<Parameter>,
    parameter_bytes: u32,
    pub(super) counters: [u32; CLASSES.len()],
    pub(super) labels: u32,
    pub(super) shared: SharedLayout,
    pub(super) lines: Vec<Line>,
    guard: Option<(Reg<Pred>, bool)>,
    /// It has waited for the launches in front.
    pub(super) programmatic: bool,
}

impl Builder {
    /// Starts the kernel `entry`.
    pub fn new(arch: Arch, entry: impl Into<String>, launch: Launch) -> Builder {
        Builder {
            arch,
            isa: arch.lowest_isa(),
            entry: entry.into(),
            launch,
            parameters: Vec::new(),
            parameter_bytes: 0,
            counters: [0; CLASSES.len()],
            labels: 0,
            shared: SharedLayout::default(),
            lines: Vec::new(),
            guard: None,
            programmatic: false,
        }
    }

    /// The architecture the kernel is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Threads a block.
    pub fn threads(&self) -> u32 {
        self.launch.threads
    }

    /// Declares the next kernel parameter and loads it.
    pub fn parameter<C: Class>(&mut self, name: &'static str, kind: ParameterKind) -> Reg<C> {
        let name = name.to_string();
        self.named_parameter(name, kind)
    }

    /// As [`Builder::parameter`], for names that come from the spec.
    pub fn named_parameter<C: Class>(&mut self, name: String, kind: ParameterKind) -> Reg<C> {
        self.declare(name.clone(), kind);
        let register = self.fresh();
        let address = Operand::Address(Box::new(Operand::Text(name)), 0);
        self.emit(format!("ld.param.{}", C::BITS), vec![Operand::from(register), address]);
        register
    }

    /// Declares a tensor map as the next kernel parameter and returns its address.
    pub fn tensor_map(&mut self, name: &'static str, shape: BoxShape) -> Reg<B64> {
        self.declare(name.into(), ParameterKind::TensorMap(shape));
        let place: Reg<B64> = self.op("mov.b64", [Operand::Text(name.into())]);
        self.op("cvta.param.u64", [place.into()])
    }

    fn declare(&mut self, name: String, kind: ParameterKind) {
        debug_assert!(self.parameters.iter().all(|p| p.name != name), "parameter {name} declared twice");
        let offset = self.parameter_bytes.next_multiple_of(kind.alignment());
        self.parameter_bytes = offset + kind.bytes();
        self.parameters.push(Parameter { name: name.into(), kind, offset });
    }

    /// A register nothing has written yet; the first write is [`Builder::set`] or an instruction that accumulates.
    pub fn fresh<C: Class>(&mut self) -> Reg<C> {
        let id = self.counters[C::INDEX];
        self.counters[C::INDEX] += 1;
        Reg::new(id)
    }

    /// `N` fresh registers.
    pub fn fresh_array<C: Class, const N: usize>(&mut self) -> [Reg<C>; N] {
        std::array::from_fn(|_| self.fresh())
    }

    /// A new register holding `value`.
    pub fn mov<C: Class>(&mut self, value: impl Into<Source<C>>) -> Reg<C> {
        let target = self.fresh();
        self.set(target, value);
        target
    }

    /// Writes `value` into `target`.
    pub fn set<C: Class>(&mut self, target: Reg<C>, value: impl Into<Source<C>>) {
        self.emit(format!("mov.{}", C::BITS), vec![target.into(), value.into().operand]);
    }

    /// A line of explanation in the generated text.
    pub fn comment(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Comment(text.into()));
    }

    /// Runs `body` with every instruction predicated on `condition`: no branch, for a handful of instructions.
    ///
    /// Registers written inside keep their old value where the condition is false.
    pub fn when(&mut self, condition: Reg<Pred>, body: impl FnOnce(&mut Builder)) {
        self.guarded(condition, false, body);
    }

    /// As [`Builder::when`], where `condition` is false.
    pub fn unless(&mut self, condition: Reg<Pred>, body: impl FnOnce(&mut Builder)) {
        self.guarded(condition, true, body);
    }

    fn guarded(&mut self, condition: Reg<Pred>, negated: bool, body: impl FnOnce(&mut Builder)) {
        debug_assert!(self.guard.is_none(), "guards do not nest: combine the predicates with `and_p`");
        self.guard = Some((condition, negated));
        body(self);
        self.guard = None;
    }

    /// The text needs at least this PTX ISA version.
    pub(super) fn require(&mut self, major: u8, minor: u8) {
        self.isa = self.isa.max((major, minor));
    }

    pub(super) fn emit(&mut self, opcode: impl Into<String>, operands: Vec<Operand>) {
        let guard = self.guard.map(|(p, negated)| (p.id, negated));
        self.lines.push(Line::Instruction { guard, opcode: opcode.into(), operands });
    }

    /// Emits `opcode target, operands…` into a fresh register.
    pub(super) fn op<C: Class>(
        &mut self,
        opcode: impl Into<String>,
        operands: impl IntoIterator<Item = Operand>,
    ) -> Reg<C> {
        let target = self.fresh();
        let mut all = vec![target.into()];
        all.extend(operands);
        self.emit(opcode, all);
        target
    }

    /// Ends the kernel: its text and what a launcher must know.
    pub fn finish(self) -> Kernel {
        let text = self.print();
        let meta = KernelMeta {
            entry: self.entry.into(),
            arch: self.arch,
            isa: self.isa,
            threads: self.launch.threads,
            shared_bytes: self.shared.bytes(),
            programmatic: self.programmatic,
            parameters: self.parameters.into(),
        };
        Kernel { text, meta }
    }
}
