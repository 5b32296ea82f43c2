//! Registers and operands.

use std::{fmt, marker::PhantomData};

/// A register class: what PTX writes in `.reg`.
pub trait Class: Copy + fmt::Debug + 'static {
    /// Type in the register declaration.
    const DECLARATION: &'static str;
    /// Prefix of register names.
    const PREFIX: &'static str;
    /// Index among the classes, for the counters.
    #[doc(hidden)]
    const INDEX: usize;
    /// The untyped suffix that `mov` and `selp` take for this class.
    const BITS: &'static str;
}

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident $index:literal $prefix:literal $declaration:literal $bits:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {}
        impl Class for $name {
            const DECLARATION: &'static str = $declaration;
            const PREFIX: &'static str = $prefix;
            const INDEX: usize = $index;
            const BITS: &'static str = $bits;
        }
    )*
    /// Prefix and declaration of every class, by index.
    pub(super) const CLASSES: &[(&str, &str)] = &[$(($prefix, $declaration)),*];
    };
}

classes! {
    /// 16 bits: one half-precision value.
    B16 0 "%h" ".b16" "b16";
    /// 32 bits.
    B32 1 "%r" ".b32" "b32";
    /// 64 bits.
    B64 2 "%d" ".b64" "b64";
    /// Single precision.
    F32 3 "%f" ".f32" "f32";
    /// Predicate.
    Pred 4 "%p" ".pred" "pred";
}

/// Integer classes, which share the integer instructions.
pub trait Int: Class {
    /// Suffix of signed forms.
    const SIGNED: &'static str;
    /// Suffix of bitwise forms.
    const BITWISE: &'static str;
    /// Suffix of unsigned forms.
    const UNSIGNED: &'static str;
}
impl Int for B32 {
    const SIGNED: &'static str = "s32";
    const BITWISE: &'static str = "b32";
    const UNSIGNED: &'static str = "u32";
}
impl Int for B64 {
    const SIGNED: &'static str = "s64";
    const BITWISE: &'static str = "b64";
    const UNSIGNED: &'static str = "u64";
}

/// A virtual register of class `C`. Copying it copies the name, not the value.
pub struct Reg<C> {
    pub(super) id: u32,
    class: PhantomData<C>,
}

impl<C> Clone for Reg<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Reg<C> {}
impl<C> PartialEq for Reg<C> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl<C> Eq for Reg<C> {}

impl<C: Class> Reg<C> {
    pub(super) fn new(id: u32) -> Self {
        Reg { id, class: PhantomData }
    }
}

impl<C: Class> fmt::Display for Reg<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", C::PREFIX, self.id)
    }
}
impl<C: Class> fmt::Debug for Reg<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an instruction reads: a register of class `C` or an immediate that fits it.
pub struct Source<C> {
    pub(super) operand: Operand,
    class: PhantomData<C>,
}

impl<C> Source<C> {
    fn new(operand: Operand) -> Self {
        Source { operand, class: PhantomData }
    }
}

impl<C: Class> From<Reg<C>> for Source<C> {
    fn from(register: Reg<C>) -> Self {
        Source::new(register.into())
    }
}
impl From<u16> for Source<B16> {
    fn from(value: u16) -> Self {
        Source::new(Operand::Text(value.to_string()))
    }
}
impl From<u32> for Source<B32> {
    fn from(value: u32) -> Self {
        Source::new(Operand::Text(value.to_string()))
    }
}
impl From<i32> for Source<B32> {
    fn from(value: i32) -> Self {
        Source::new(Operand::Text(value.to_string()))
    }
}
impl From<u64> for Source<B64> {
    fn from(value: u64) -> Self {
        Source::new(Operand::Text(value.to_string()))
    }
}
impl From<i64> for Source<B64> {
    fn from(value: i64) -> Self {
        Source::new(Operand::Text(value.to_string()))
    }
}
impl From<f32> for Source<F32> {
    /// The exact bits, as PTX writes them: `0f3F800000`.
    fn from(value: f32) -> Self {
        Source::new(Operand::Text(format!("0f{:08X}", value.to_bits())))
    }
}

/// One operand as it is printed.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register: class index and number.
    Register(usize, u32),
    /// `{a, b, …}`
    Vector(Vec<Operand>),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `[map, {coordinates}]`
    Box(Box<Operand>, Box<Operand>),
    /// Two destinations of one instruction: `a|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// An immediate, a name, a special register.
    Text(String),
    /// A branch target.
    Label(u32),
}

impl<C: Class> From<Reg<C>> for Operand {
    fn from(register: Reg<C>) -> Self {
        Operand::Register(C::INDEX, register.id)
    }
}
impl<C> From<Source<C>> for Operand {
    fn from(source: Source<C>) -> Self {
        source.operand
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Register(class, id) => write!(f, "{}{id}", CLASSES[*class].0),
            Operand::Vector(elements) => {
                f.write_str("{")?;
                for (i, element) in elements.iter().enumerate() {
                    write!(f, "{}{element}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
            Operand::Address(base, 0) => write!(f, "[{base}]"),
            Operand::Address(base, offset) => write!(f, "[{base}+{offset}]"),
            Operand::Box(map, place) => write!(f, "[{map}, {place}]"),
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
            Operand::Text(text) => f.write_str(text),
            Operand::Label(id) => write!(f, "$L{id}"),
        }
    }
}
