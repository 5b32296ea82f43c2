//! The printer: lines to PTX text.

use super::{
    builder::{Builder, Line},
    register::CLASSES,
    shared::SharedLayout,
};
use std::fmt::Write;

impl Builder {
    /// The module's text, with the lowest `.version` that has what the kernel uses.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a string cannot fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, ".version {}.{}\n.target {}\n.address_size 64\n", self.isa.0, self.isa.1, self.arch.target())?;
        if self.shared.bytes() > 0 {
            writeln!(out, ".extern .shared .align {} .b8 {}[];\n", SharedLayout::ALIGNMENT, SharedLayout::NAME)?;
        }
        write!(out, ".visible .entry {}(", self.entry)?;
        for (i, parameter) in self.parameters.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            let kind = parameter.kind;
            write!(out, "{separator}\n    .param {} {}{}", kind.declaration(), parameter.name, kind.extent())?;
        }
        writeln!(out, "\n)\n.reqntid {}, 1, 1", self.launch.threads)?;
        writeln!(out, ".minnctapersm {}\n{{", self.launch.blocks_per_multiprocessor)?;
        for (&(prefix, declaration), &count) in CLASSES.iter().zip(&self.counters) {
            if count > 0 {
                writeln!(out, "    .reg {declaration} {prefix}<{count}>;")?;
            }
        }
        writeln!(out)?;
        for line in &self.lines {
            match line {
                Line::Label(id) => writeln!(out, "$L{id}:")?,
                Line::Comment(text) => writeln!(out, "    // {text}")?,
                Line::Pragma(text) => writeln!(out, "    .pragma \"{text}\";")?,
                Line::Instruction { guard, opcode, operands } => {
                    out.push_str("    ");
                    if let Some((predicate, negated)) = guard {
                        write!(out, "@{}%p{predicate} ", if *negated { "!" } else { "" })?;
                    }
                    out.push_str(opcode);
                    for (i, operand) in operands.iter().enumerate() {
                        write!(out, "{} {operand}", if i == 0 { "" } else { "," })?;
                    }
                    out.push_str(";\n");
                }
            }
        }
        out.push_str("}\n");
        Ok(())
    }
}
