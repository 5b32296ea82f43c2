//! `score` and `mask` expressions: plain data, so that a macro and a running program can build them alike.

use crate::kernels::meta::Element;

/// A device array that expressions index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideBuffer {
    /// Name, bound at launch.
    pub name: String,
    /// Element type.
    pub element: Element,
}

/// Type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExprType {
    /// Single precision.
    F32,
    /// Unsigned 32-bit integer; arithmetic wraps.
    U32,
    /// Signed 32-bit integer; arithmetic wraps.
    I32,
    /// Truth value.
    Bool,
}

/// The values an expression starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variable {
    /// The scaled score, `f32`. Not in a mask.
    Score,
    /// Absolute position of the query, `u32`: `kv_len - q_len + row`.
    Query,
    /// Position of the key, `u32`.
    Key,
    /// Query head, `u32`.
    Head,
    /// Row of the batch, `u32`.
    Batch,
}

/// Unary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// Arithmetic negation.
    Neg,
    /// Logical negation.
    Not,
    /// Absolute value.
    Abs,
    /// Power of two.
    Exp2,
    /// Hyperbolic tangent.
    Tanh,
}

/// Binary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient; of integers, truncated, and unspecified where the divisor is 0.
    Div,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// Equal.
    Eq,
    /// Different.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Both.
    And,
    /// Either.
    Or,
}

/// An expression tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A starting value.
    Variable(Variable),
    /// A single-precision literal.
    F32(f32),
    /// An unsigned literal.
    U32(u32),
    /// A signed literal.
    I32(i32),
    /// A truth value.
    Bool(bool),
    /// One operand.
    Unary(Unary, Box<Expr>),
    /// Two operands of one type.
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// Conversion, as Rust's `as`.
    Cast(Box<Expr>, ExprType),
    /// `side[index]`; the buffer must cover every index that occurs.
    Index(usize, Box<Expr>),
}
