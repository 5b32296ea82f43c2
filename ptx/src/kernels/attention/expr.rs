//! `score` and `mask` expressions: plain data, so that a macro and a running program can build them alike.
//!
//! The meaning is Rust's: integers wrap, `as` saturates and takes NaN to 0, `min` and `max` prefer a number to NaN. `exp2`
//! and `tanh` are the hardware's approximations. Both sides of `&&` and `||` are evaluated.

use crate::kernels::meta::Element;
use std::fmt;

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
    /// Absolute position of the query, `u32`: `kv_len - q_len + row`; 0 for rows before the first key.
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
    /// `side[index]`. The buffer must cover every index that the expression takes for a pair inside the sequence: any query
    /// position and any key, up to the query's own where the kernel is causal, whether the pattern keeps the pair or not.
    /// Other pairs are moved into that range before they are evaluated.
    Index(usize, Box<Expr>),
}

impl fmt::Display for ExprType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExprType::F32 => "f32",
            ExprType::U32 => "u32",
            ExprType::I32 => "i32",
            ExprType::Bool => "bool",
        })
    }
}

impl From<Element> for ExprType {
    fn from(element: Element) -> ExprType {
        match element {
            Element::U32 => ExprType::U32,
            Element::I32 => ExprType::I32,
            Element::F32 => ExprType::F32,
        }
    }
}

impl Unary {
    const fn name(self) -> &'static str {
        match self {
            Unary::Neg => "-",
            Unary::Not => "!",
            Unary::Abs => "abs",
            Unary::Exp2 => "exp2",
            Unary::Tanh => "tanh",
        }
    }

    fn type_of(self, operand: ExprType) -> Result<ExprType, String> {
        use ExprType::{Bool, F32, I32};
        let (fits, needs) = match self {
            Unary::Neg | Unary::Abs => (matches!(operand, F32 | I32), "f32 or i32"),
            Unary::Not => (operand == Bool, "bool"),
            Unary::Exp2 | Unary::Tanh => (operand == F32, "f32"),
        };
        if fits { Ok(operand) } else { Err(format!("`{}` takes {needs}, not {operand}", self.name())) }
    }
}

impl Binary {
    const fn name(self) -> &'static str {
        match self {
            Binary::Add => "+",
            Binary::Sub => "-",
            Binary::Mul => "*",
            Binary::Div => "/",
            Binary::Min => "min",
            Binary::Max => "max",
            Binary::Eq => "==",
            Binary::Ne => "!=",
            Binary::Lt => "<",
            Binary::Le => "<=",
            Binary::Gt => ">",
            Binary::Ge => ">=",
            Binary::And => "&&",
            Binary::Or => "||",
        }
    }

    fn type_of(self, a: ExprType, b: ExprType) -> Result<ExprType, String> {
        let name = self.name();
        if a != b {
            return Err(format!("`{name}` takes two operands of one type, not {a} and {b}; convert one with `as`"));
        }
        match self {
            Binary::And | Binary::Or if a != ExprType::Bool => Err(format!("`{name}` takes bool, not {a}")),
            Binary::And | Binary::Or | Binary::Eq | Binary::Ne => Ok(ExprType::Bool),
            _ if a == ExprType::Bool => Err(format!("`{name}` takes numbers, not bool")),
            Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge => Ok(ExprType::Bool),
            _ => Ok(a),
        }
    }
}

impl Variable {
    /// Type of the value.
    pub const fn type_of(self) -> ExprType {
        match self {
            Variable::Score => ExprType::F32,
            Variable::Query | Variable::Key | Variable::Head | Variable::Batch => ExprType::U32,
        }
    }
}

impl Expr {
    /// The expression's type, or what is wrong with it. `side` are the buffers that [`Expr::Index`] names.
    pub fn type_of(&self, side: &[SideBuffer]) -> Result<ExprType, String> {
        match self {
            Expr::Variable(variable) => Ok(variable.type_of()),
            Expr::F32(_) => Ok(ExprType::F32),
            Expr::U32(_) => Ok(ExprType::U32),
            Expr::I32(_) => Ok(ExprType::I32),
            Expr::Bool(_) => Ok(ExprType::Bool),
            Expr::Unary(op, a) => op.type_of(a.type_of(side)?),
            Expr::Binary(op, a, b) => op.type_of(a.type_of(side)?, b.type_of(side)?),
            Expr::Cast(a, to) => {
                let from = a.type_of(side)?;
                let allowed = match (from, *to) {
                    (ExprType::Bool, to) => to != ExprType::F32,
                    (_, to) => to != ExprType::Bool,
                };
                if allowed { Ok(*to) } else { Err(format!("`as` does not convert {from} to {to}")) }
            }
            Expr::Index(buffer, index) => {
                let Some(buffer) = side.get(*buffer) else {
                    return Err(format!("side buffer {buffer} is not declared; there are {}", side.len()));
                };
                match index.type_of(side)? {
                    ExprType::U32 => Ok(buffer.element.into()),
                    other => Err(format!("`{}[…]` takes a u32 index, not {other}; add `as u32`", buffer.name)),
                }
            }
        }
    }

    /// Whether `test` holds for the expression or a part of it.
    pub fn any(&self, test: &impl Fn(&Expr) -> bool) -> bool {
        test(self)
            || match self {
                Expr::Variable(_) | Expr::F32(_) | Expr::U32(_) | Expr::I32(_) | Expr::Bool(_) => false,
                Expr::Unary(_, a) | Expr::Cast(a, _) | Expr::Index(_, a) => a.any(test),
                Expr::Binary(_, a, b) => a.any(test) || b.any(test),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(v: Variable) -> Box<Expr> {
        Box::new(Expr::Variable(v))
    }

    #[test]
    fn types_are_rusts_and_errors_name_the_construct() {
        let side = [SideBuffer { name: "slope".into(), element: Element::F32 }];
        let slope = Expr::Index(0, variable(Variable::Head));
        let distance = Expr::Binary(Binary::Sub, variable(Variable::Query), variable(Variable::Key));
        let bias = Expr::Binary(
            Binary::Mul,
            Box::new(slope.clone()),
            Box::new(Expr::Cast(Box::new(distance.clone()), ExprType::F32)),
        );
        assert_eq!(bias.type_of(&side), Ok(ExprType::F32));
        let error = |e: Expr| e.type_of(&side).unwrap_err();
        let mixed = Expr::Binary(Binary::Add, Box::new(slope.clone()), Box::new(distance.clone()));
        assert_eq!(error(mixed), "`+` takes two operands of one type, not f32 and u32; convert one with `as`");
        assert_eq!(error(Expr::Unary(Unary::Neg, Box::new(distance.clone()))), "`-` takes f32 or i32, not u32");
        assert_eq!(error(Expr::Unary(Unary::Not, variable(Variable::Key))), "`!` takes bool, not u32");
        assert_eq!(
            error(Expr::Index(0, Box::new(slope.clone()))),
            "`slope[…]` takes a u32 index, not f32; add `as u32`"
        );
        assert_eq!(error(Expr::Index(1, variable(Variable::Key))), "side buffer 1 is not declared; there are 1");
        assert_eq!(error(Expr::Cast(Box::new(slope), ExprType::Bool)), "`as` does not convert f32 to bool");
        let and = Expr::Binary(Binary::And, variable(Variable::Key), variable(Variable::Key));
        assert_eq!(error(and), "`&&` takes bool, not u32");
        let less = Expr::Binary(Binary::Lt, Box::new(Expr::Bool(true)), Box::new(Expr::Bool(false)));
        assert_eq!(error(less), "`<` takes numbers, not bool");
    }
}
