//! Syntax to decoded instructions: names become slots, immediates and special registers become preset slots, labels
//! become instruction indices. The families of instructions are in the files below this one.

mod bulk_copy;
mod control;
pub(crate) mod convert;
mod float;
mod integer;
mod mbarrier;
mod memory;
mod warpgroup;

use std::collections::HashMap;

use crate::dataflow::{self, Flow};
use crate::module::{Check, Initial, Kernel, Special};
use crate::op::{Binary32, Instruction, Op, Register, Slot, Unary32};
use crate::parse::{Entry, Operand, Statement};
use crate::report::{ParseError, source_line};
use crate::types::{Class, Type};

pub(crate) use convert::{PARAMETER_WINDOW, SHARED_WINDOW};

pub(crate) type Decoded<T = ()> = Result<T, ParseError>;

/// Where the block's shared memory begins: the first KiB of the window belongs to the system, as on hardware.
pub(crate) const SHARED_BASE: u32 = 1024;

/// Decodes one entry.
pub(crate) fn kernel(text: &str, entry: &Entry<'_>) -> Decoded<Kernel> {
    let mut decoder = Decoder::new(text, entry)?;
    for (index, statement) in entry.statements.iter().enumerate() {
        decoder.statement(index, statement)?;
    }
    decoder.finish()
}

/// The state of decoding one entry.
pub(crate) struct Decoder<'t, 'e> {
    text: &'t str,
    entry: &'e Entry<'t>,
    statement: Option<&'e Statement<'t>>,
    code: Vec<Instruction>,
    /// First instruction of each statement.
    starts: Vec<u32>,
    /// Instructions whose target is still a statement index.
    branches: Vec<usize>,
    predicates: Vec<Initial>,
    words: Vec<Initial>,
    longs: Vec<Initial>,
    constants: HashMap<(Class, Initial), Slot>,
    registers: HashMap<(usize, &'e str), Register>,
    /// What each statement reads, writes and jumps to.
    flow: Flow,
    variables: HashMap<&'e str, u32>,
    fixed_shared: u32,
    shared_granule: u32,
    scratch: HashMap<Class, (Vec<Slot>, usize)>,
}

impl<'t, 'e> Decoder<'t, 'e> {
    fn new(text: &'t str, entry: &'e Entry<'t>) -> Decoded<Self> {
        let mut decoder = Decoder {
            text,
            entry,
            statement: None,
            code: Vec::new(),
            starts: Vec::new(),
            branches: Vec::new(),
            predicates: Vec::new(),
            words: Vec::new(),
            longs: Vec::new(),
            constants: HashMap::new(),
            registers: HashMap::new(),
            flow: Flow::default(),
            variables: HashMap::new(),
            fixed_shared: 0,
            shared_granule: 16,
            scratch: HashMap::new(),
        };
        decoder.place_shared()?;
        Ok(decoder)
    }

    /// Static variables in the order of the text, then the dynamic part.
    fn place_shared(&mut self) -> Decoded {
        let too_large = || ParseError {
            line: 1,
            text: String::new(),
            message: format!("`{}` declares more than 1 MiB of shared memory", self.entry.name),
        };
        let (mut end, mut dynamic_align) = (0u32, 16u32);
        for variable in &self.entry.shared {
            match variable.bytes {
                Some(bytes) => {
                    let start = end.next_multiple_of(variable.align);
                    end = start.checked_add(bytes).filter(|&end| end <= 1 << 20).ok_or_else(too_large)?;
                    self.variables.insert(variable.name, start);
                }
                None => dynamic_align = dynamic_align.max(variable.align),
            }
        }
        end = end.next_multiple_of(dynamic_align);
        for variable in self.entry.shared.iter().filter(|variable| variable.bytes.is_none()) {
            self.variables.insert(variable.name, end);
        }
        self.fixed_shared = end;
        Ok(())
    }

    fn statement(&mut self, index: usize, statement: &'e Statement<'t>) -> Decoded {
        self.statement = Some(statement);
        self.starts.push(self.code.len() as u32);
        self.flow.begin();
        self.scratch.values_mut().for_each(|(_, used)| *used = 0);
        if let Some((name, _)) = statement.guard {
            let guard = self.predicate(&Operand::Name(name))?;
            self.flow.guard(Register::Predicate(guard));
        }
        self.instruction(statement)?;
        if self.code.len() as u32 == self.starts[index] {
            self.emit(Op::Nothing)?;
        }
        Ok(())
    }

    fn instruction(&mut self, statement: &'e Statement<'t>) -> Decoded {
        let mut parts = statement.opcode.split('.');
        let base = parts.next().unwrap_or("");
        let mut form = Form { base, rest: parts.collect(), operands: &statement.operands };
        let known = control::decode(self, &mut form)?
            || memory::decode(self, &mut form)?
            || mbarrier::decode(self, &mut form)?
            || warpgroup::decode(self, &mut form)?
            || convert::decode(self, &mut form)?
            || float::decode(self, &mut form)?
            || integer::decode(self, &mut form)?;
        if !known {
            return self.fail(format!("the instruction `{}` is not supported", statement.opcode));
        }
        Ok(())
    }

    fn finish(mut self) -> Decoded<Kernel> {
        // Falling off the end is an exit.
        self.starts.push(self.code.len() as u32);
        self.flow.begin();
        self.statement = None;
        self.emit(Op::Exit)?;
        for &at in &self.branches {
            if let Op::Branch { target } = &mut self.code[at].op {
                *target = self.starts[*target as usize];
            }
        }
        let (checks, tracked) = dataflow::unwritten(&self.flow);
        let mut kernel_checks: Vec<Check> = Vec::new();
        for (statement, check) in checks {
            let first = self.starts[statement] as usize;
            let last = self.starts.get(statement + 1).map_or(self.code.len(), |&next| next as usize) - 1;
            let (before, after) = if first == last { (check, None) } else { check.split() };
            kernel_checks.push(before);
            self.code[first].check = kernel_checks.len() as u32;
            if let Some(after) = after {
                kernel_checks.push(after);
                self.code[last].check = kernel_checks.len() as u32;
            }
        }
        let mut lines: Vec<(u32, String)> = Vec::new();
        let source: Vec<&str> = self.text.lines().collect();
        for instruction in &self.code {
            let text = source.get((instruction.line as usize).saturating_sub(1)).unwrap_or(&"").trim();
            lines.push((instruction.line, text.to_string()));
        }
        lines.sort();
        lines.dedup_by_key(|(line, _)| *line);
        Ok(Kernel {
            name: self.entry.name.to_string(),
            code: self.code,
            checks: kernel_checks,
            tracked,
            predicates: self.predicates,
            words: self.words,
            longs: self.longs,
            parameters: self.entry.parameters.clone(),
            parameter_bytes: self.entry.parameters.last().map_or(0, |last| (last.offset + last.bytes) as usize),
            fixed_shared: self.fixed_shared,
            shared_granule: self.shared_granule,
            required_block: self.entry.required_block,
            max_threads: self.entry.max_threads,
            max_registers: self.entry.max_registers,
            min_blocks: self.entry.min_blocks,
            multiplies: self.flow.multiplies(),
            lines,
        })
    }

    pub(crate) fn fail<T>(&self, message: impl Into<String>) -> Decoded<T> {
        let line = self.statement.map_or(1, |statement| statement.line);
        Err(ParseError { line, text: source_line(self.text, line), message: message.into() })
    }

    /// Appends an instruction under the statement's guard.
    pub(crate) fn emit(&mut self, op: Op) -> Decoded {
        let (guard, negated) = match self.statement.and_then(|statement| statement.guard) {
            Some((name, negated)) => (Some(self.predicate(&Operand::Name(name))?), negated),
            None => (None, false),
        };
        let line = self.statement.map_or_else(|| self.code.last().map_or(1, |last| last.line), |s| s.line);
        self.code.push(Instruction { op, guard, negated, check: 0, line });
        Ok(())
    }

    pub(crate) fn emit_branch(&mut self, label: &str) -> Decoded {
        let scope = self.statement.map_or(0, |statement| statement.scope);
        let Some(target) = self.entry.label(scope, label) else {
            return self.fail(format!("there is no label `{label}`"));
        };
        self.flow.jump(target);
        self.branches.push(self.code.len());
        self.emit(Op::Branch { target: target as u32 })
    }

    fn file(&mut self, class: Class) -> &mut Vec<Initial> {
        match class {
            Class::Predicate => &mut self.predicates,
            Class::Word => &mut self.words,
            Class::Long => &mut self.longs,
        }
    }

    fn new_slot(&mut self, class: Class, initial: Initial) -> Decoded<Slot> {
        let file = self.file(class);
        match Slot::try_from(file.len()) {
            Ok(slot) => {
                file.push(initial);
                Ok(slot)
            }
            Err(_) => self.fail("this kernel uses more than 65536 registers of one class"),
        }
    }

    fn preset(&mut self, class: Class, initial: Initial) -> Decoded<Slot> {
        if let Some(&slot) = self.constants.get(&(class, initial)) {
            return Ok(slot);
        }
        let slot = self.new_slot(class, initial)?;
        self.constants.insert((class, initial), slot);
        Ok(slot)
    }

    /// A word slot that holds `bits` in every lane.
    pub(crate) fn constant(&mut self, bits: u32) -> Decoded<Slot> {
        self.preset(Class::Word, Initial::Constant(u64::from(bits)))
    }

    /// A long slot that holds `bits` in every lane.
    pub(crate) fn constant64(&mut self, bits: u64) -> Decoded<Slot> {
        self.preset(Class::Long, Initial::Constant(bits))
    }

    /// A slot for a value between the instructions of one statement.
    pub(crate) fn scratch(&mut self, class: Class) -> Decoded<Slot> {
        let (slots, used) = self.scratch.entry(class).or_default();
        *used += 1;
        if let Some(&slot) = slots.get(*used - 1) {
            return Ok(slot);
        }
        let slot = self.new_slot(class, Initial::Unwritten)?;
        self.scratch.entry(class).or_default().0.push(slot);
        Ok(slot)
    }

    pub(crate) fn scratch_word(&mut self) -> Decoded<Slot> {
        self.scratch(Class::Word)
    }

    /// The register called `name` and its declared type.
    fn lookup(&mut self, name: &'e str) -> Decoded<Option<(Register, Type)>> {
        let scope = self.statement.map_or(0, |statement| statement.scope);
        let Some((scope, ty)) = self.entry.register(scope, name) else { return Ok(None) };
        if let Some(&register) = self.registers.get(&(scope, name)) {
            return Ok(Some((register, ty)));
        }
        let slot = self.new_slot(ty.class(), Initial::Unwritten)?;
        let register = in_class(ty.class(), slot);
        self.registers.insert((scope, name), register);
        self.flow.name(register, name);
        Ok(Some((register, ty)))
    }

    /// A destination register of the class of `ty`, and its declared size in bytes.
    pub(crate) fn target_sized(&mut self, operand: &'e Operand<'t>, ty: Type) -> Decoded<(Slot, u32)> {
        let Operand::Name(name) = operand else { return self.fail("the destination must be a register") };
        match self.lookup(name)? {
            Some((register, declared)) if declared.class() == ty.class() => {
                self.flow.write(register);
                Ok((slot_of(register), declared.bytes()))
            }
            Some((_, declared)) => {
                self.fail(format!("the destination `{name}` is declared {declared:?}, the instruction yields {ty:?}"))
            }
            None => self.fail(format!("the register `{name}` is not declared")),
        }
    }

    /// A destination whose declared size is that of `ty`.
    pub(crate) fn target(&mut self, operand: &'e Operand<'t>, ty: Type) -> Decoded<Slot> {
        let (slot, bytes) = self.target_sized(operand, ty)?;
        if bytes != ty.bytes() {
            return self.fail(format!("the destination has {bytes} bytes, the instruction yields {}", ty.bytes()));
        }
        Ok(slot)
    }

    /// A source whose declared size is that of `ty`, an immediate, a variable's address, or a special register.
    pub(crate) fn source(&mut self, operand: &'e Operand<'t>, ty: Type) -> Decoded<Slot> {
        let (slot, bytes) = self.source_sized(operand, ty)?;
        if bytes != ty.bytes() {
            return self.fail(format!("a source has {bytes} bytes, the instruction needs {}", ty.bytes()));
        }
        Ok(slot)
    }

    /// A source of the class of `ty`, whatever its declared size, and that size.
    pub(crate) fn source_sized(&mut self, operand: &'e Operand<'t>, ty: Type) -> Decoded<(Slot, u32)> {
        let class = ty.class();
        let bits = match operand {
            Operand::Name(name) => {
                if let Some((register, declared)) = self.lookup(name)? {
                    if declared.class() != class {
                        return self
                            .fail(format!("`{name}` is declared {declared:?}, the instruction needs {ty:?} here"));
                    }
                    self.flow.read(register);
                    return Ok((slot_of(register), declared.bytes()));
                }
                if let Some(&offset) = self.variables.get(name) {
                    u64::from(SHARED_BASE + offset)
                } else if let Some((offset, _)) = self.parameter(name) {
                    u64::from(offset)
                } else if *name == "WARP_SZ" {
                    32
                } else if let Some(special) = special(name) {
                    return Ok((self.preset(class, Initial::Special(special))?, ty.bytes()));
                } else {
                    return self.fail(format!("`{name}` is neither a declared register nor a known special register"));
                }
            }
            Operand::Integer(value) if !ty.is_float() => *value,
            Operand::Integer(0) => 0,
            Operand::FloatBits(bits) if ty.bytes() == 4 => u64::from(*bits),
            Operand::FloatBits(bits) if ty == Type::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
            Operand::DoubleBits(bits) if ty.bytes() == 8 => *bits,
            Operand::DoubleBits(bits) if ty == Type::F32 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            Operand::Float(value) if ty == Type::F32 => u64::from((*value as f32).to_bits()),
            Operand::Float(value) if ty == Type::F64 => value.to_bits(),
            _ => return self.fail(format!("this operand cannot be used as {ty:?}")),
        };
        let bits = match ty.bytes() {
            1 => bits & 0xff,
            2 => bits & 0xffff,
            4 => bits & 0xffff_ffff,
            _ => bits,
        };
        Ok((self.preset(class, Initial::Constant(bits))?, ty.bytes()))
    }

    /// A source predicate.
    pub(crate) fn predicate(&mut self, operand: &Operand<'t>) -> Decoded<Slot> {
        let (slot, negated) = self.signed_predicate(operand)?;
        if negated {
            return self.fail("a negated predicate is not allowed here");
        }
        Ok(slot)
    }

    /// A source predicate and whether it is negated.
    pub(crate) fn signed_predicate(&mut self, operand: &Operand<'t>) -> Decoded<(Slot, bool)> {
        let (name, negated) = match operand {
            Operand::Name(name) => (*name, false),
            Operand::Not(name) => (*name, true),
            Operand::Integer(value) => {
                let ones = if *value == 0 { 0 } else { u64::from(u32::MAX) };
                return Ok((self.preset(Class::Predicate, Initial::Constant(ones))?, false));
            }
            _ => return self.fail("expected a predicate"),
        };
        match self.lookup(name)? {
            Some((register @ Register::Predicate(slot), _)) => {
                self.flow.read(register);
                Ok((slot, negated))
            }
            Some(_) => self.fail(format!("`{name}` is not a predicate")),
            None => self.fail(format!("the predicate `{name}` is not declared")),
        }
    }

    /// A destination predicate; `_` gives none.
    pub(crate) fn target_predicate(&mut self, operand: &'e Operand<'t>) -> Decoded<Option<Slot>> {
        if *operand == Operand::Name("_") {
            return Ok(None);
        }
        self.target(operand, Type::Pred).map(Some)
    }

    /// `operand` extended to 32 bits, if `ty` is a narrower integer.
    pub(crate) fn extended(&mut self, operand: &'e Operand<'t>, ty: Type) -> Decoded<Slot> {
        let slot = self.source(operand, ty)?;
        if ty != Type::S16 {
            return Ok(slot);
        }
        let d = self.scratch_word()?;
        self.emit(Op::Unary32 { f: Unary32::SignExtend16, d, a: slot })?;
        Ok(d)
    }

    /// Emits what `make` says for a destination of type `ty`; narrow integers are cut to size afterwards.
    pub(crate) fn emit_into(&mut self, operand: &'e Operand<'t>, ty: Type, make: impl FnOnce(Slot) -> Op) -> Decoded {
        let d = self.target(operand, ty)?;
        if ty.bytes() != 2 {
            return self.emit(make(d));
        }
        let wide = self.scratch_word()?;
        self.emit(make(wide))?;
        self.emit(Op::Unary32 { f: Unary32::ZeroExtend16, d, a: wide })
    }

    pub(crate) fn emit_binary(&mut self, f: Binary32, d: Slot, a: Slot, b: Slot) -> Decoded {
        self.emit(Op::Binary32 { f, d, a, b })
    }

    /// Notes a shared access of `bytes`, for the granularity of race tracking.
    pub(crate) fn shared_access(&mut self, bytes: u32) {
        self.shared_granule = self.shared_granule.min(bytes);
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<(u32, u32)> {
        self.entry.parameters.iter().find(|p| p.name == name).map(|p| (p.offset, p.bytes))
    }

    /// Ends the path of control flow.
    pub(crate) fn leaves(&mut self) {
        self.flow.leave();
    }
}

/// Register `slot` of a class.
pub(crate) fn in_class(class: Class, slot: Slot) -> Register {
    match class {
        Class::Predicate => Register::Predicate(slot),
        Class::Word => Register::Word(slot),
        Class::Long => Register::Long(slot),
    }
}

pub(crate) fn slot_of(register: Register) -> Slot {
    match register {
        Register::Predicate(slot) | Register::Word(slot) | Register::Long(slot) => slot,
    }
}

fn special(name: &str) -> Option<Special> {
    if let Some((base, axis)) = name.rsplit_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return Some(match base {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::BlockSize(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::GridSize(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" | "%gridid" => Special::Zero,
        _ => return None,
    })
}

/// An opcode taken apart: each modifier must be taken by the family that decodes it.
pub(crate) struct Form<'t, 'e> {
    pub(crate) base: &'t str,
    pub(crate) rest: Vec<&'t str>,
    pub(crate) operands: &'e [Operand<'t>],
}

impl<'t, 'e> Form<'t, 'e> {
    /// Takes modifier `name` if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        match self.rest.iter().position(|part| *part == name) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first of `names` that is there and gives its index.
    pub(crate) fn take_any(&mut self, names: &[&str]) -> Option<usize> {
        names.iter().position(|name| self.take(name))
    }

    /// Takes the leftmost type.
    pub(crate) fn take_type(&mut self) -> Option<Type> {
        let at = self.rest.iter().position(|part| Type::parse(part).is_some())?;
        Type::parse(self.rest.remove(at))
    }

    /// The operands, if there are `N` of them and no modifier is left.
    pub(crate) fn operands<const N: usize>(&self, decoder: &Decoder<'t, 'e>) -> Decoded<&'e [Operand<'t>; N]> {
        self.done(decoder)?;
        match self.operands.try_into() {
            Ok(operands) => Ok(operands),
            Err(_) => decoder.fail(format!("`{}` takes {N} operands here, found {}", self.base, self.operands.len())),
        }
    }

    /// Fails if a modifier is left.
    pub(crate) fn done(&self, decoder: &Decoder<'t, 'e>) -> Decoded {
        match self.rest.first() {
            None => Ok(()),
            Some(part) => decoder.fail(format!("`.{part}` is not supported on `{}` in this form", self.base)),
        }
    }

    /// The type of the instruction.
    pub(crate) fn ty(&mut self, decoder: &Decoder<'t, 'e>) -> Decoded<Type> {
        match self.take_type() {
            Some(ty) => Ok(ty),
            None => decoder.fail(format!("`{}` needs a type", self.base)),
        }
    }
}
