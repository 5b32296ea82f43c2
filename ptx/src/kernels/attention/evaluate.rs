//! Expressions as instructions.

use super::expr::{Binary, Expr, ExprType, SideBuffer, Unary, Variable};
use crate::{
    isa::{Builder, R32, R64, RF, RP, Rounding},
    kernels::meta::Element,
};

/// What an expression's variables stand for.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The scaled score; absent in a mask.
    pub(super) score: Option<RF>,
    pub(super) query: R32,
    pub(super) key: R32,
    pub(super) head: R32,
    pub(super) batch: R32,
    /// The side buffers and their addresses.
    pub(super) side: &'a [(SideBuffer, R64)],
}

/// A value of an expression, by register class. Its signedness is the expression's type.
#[derive(Clone, Copy)]
enum Value {
    Float(RF),
    Unsigned(R32),
    Signed(R32),
    Truth(RP),
}

/// The score that `expr`, of type `f32`, gives.
pub(super) fn score(k: &mut Builder, expr: &Expr, scope: Scope<'_>) -> RF {
    match evaluate(k, expr, scope) {
        Value::Float(score) => score,
        _ => unreachable!("validated: a score is f32"),
    }
}

/// Whether the pair counts under `expr`, of type `bool`.
pub(super) fn keeps(k: &mut Builder, expr: &Expr, scope: Scope<'_>) -> RP {
    match evaluate(k, expr, scope) {
        Value::Truth(keep) => keep,
        _ => unreachable!("validated: a mask is bool"),
    }
}

fn evaluate(k: &mut Builder, expr: &Expr, scope: Scope<'_>) -> Value {
    match expr {
        Expr::Variable(Variable::Score) => {
            Value::Float(scope.score.unwrap_or_else(|| unreachable!("validated: a mask has no score")))
        }
        Expr::Variable(Variable::Query) => Value::Unsigned(scope.query),
        Expr::Variable(Variable::Key) => Value::Unsigned(scope.key),
        Expr::Variable(Variable::Head) => Value::Unsigned(scope.head),
        Expr::Variable(Variable::Batch) => Value::Unsigned(scope.batch),
        Expr::F32(value) => Value::Float(k.mov(*value)),
        Expr::U32(value) => Value::Unsigned(k.mov(*value)),
        Expr::I32(value) => Value::Signed(k.mov(*value)),
        Expr::Bool(value) => {
            let bit = k.mov(u32::from(*value));
            Value::Truth(k.ne(bit, 0u32))
        }
        Expr::Unary(op, a) => {
            let a = evaluate(k, a, scope);
            unary(k, *op, a)
        }
        Expr::Binary(op, a, b) => {
            let (a, b) = (evaluate(k, a, scope), evaluate(k, b, scope));
            binary(k, *op, a, b)
        }
        Expr::Cast(a, to) => {
            let a = evaluate(k, a, scope);
            cast(k, a, *to)
        }
        Expr::Index(buffer, index) => {
            let (buffer, base) = &scope.side[*buffer];
            let Value::Unsigned(index) = evaluate(k, index, scope) else { unreachable!("validated: an index is u32") };
            let address = k.mad_wide(index, 4u32, *base);
            match buffer.element {
                Element::F32 => Value::Float(k.load_readonly(address, 0)),
                Element::U32 => Value::Unsigned(k.load_readonly(address, 0)),
                Element::I32 => Value::Signed(k.load_readonly(address, 0)),
            }
        }
    }
}

fn unary(k: &mut Builder, op: Unary, a: Value) -> Value {
    match (op, a) {
        (Unary::Neg, Value::Float(a)) => Value::Float(k.neg_f(a)),
        (Unary::Neg, Value::Signed(a)) => Value::Signed(negate(k, a)),
        (Unary::Abs, Value::Float(a)) => Value::Float(k.abs_f(a)),
        (Unary::Abs, Value::Signed(a)) => {
            let negative = negate(k, a);
            Value::Signed(k.max_s(a, negative))
        }
        (Unary::Not, Value::Truth(a)) => Value::Truth(k.not_p(a)),
        (Unary::Exp2, Value::Float(a)) => Value::Float(k.exp2_f(a)),
        (Unary::Tanh, Value::Float(a)) => Value::Float(k.tanh_f(a)),
        _ => unreachable!("validated: {op:?} takes its operand's type"),
    }
}

fn negate(k: &mut Builder, a: R32) -> R32 {
    let zero = k.mov(0u32);
    k.sub(zero, a)
}

fn binary(k: &mut Builder, op: Binary, a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => float(k, op, a, b),
        (Value::Unsigned(a), Value::Unsigned(b)) => integer(k, op, a, b, false),
        (Value::Signed(a), Value::Signed(b)) => integer(k, op, a, b, true),
        (Value::Truth(a), Value::Truth(b)) => Value::Truth(match op {
            Binary::And => k.and_p(a, b),
            Binary::Or => k.or_p(a, b),
            Binary::Ne => k.xor_p(a, b),
            Binary::Eq => {
                let differ = k.xor_p(a, b);
                k.not_p(differ)
            }
            _ => unreachable!("validated: {op:?} takes numbers"),
        }),
        _ => unreachable!("validated: both operands of {op:?} have one type"),
    }
}

fn float(k: &mut Builder, op: Binary, a: RF, b: RF) -> Value {
    match op {
        Binary::Add => Value::Float(k.add_f(a, b)),
        Binary::Sub => Value::Float(k.sub_f(a, b)),
        Binary::Mul => Value::Float(k.mul_f(a, b)),
        Binary::Div => Value::Float(k.div_f(a, b)),
        Binary::Min => Value::Float(k.min_f(a, b)),
        Binary::Max => Value::Float(k.max_f(a, b)),
        Binary::Eq => Value::Truth(k.eq_f(a, b)),
        Binary::Ne => Value::Truth(k.ne_f(a, b)),
        Binary::Lt => Value::Truth(k.lt_f(a, b)),
        Binary::Le => Value::Truth(k.le_f(a, b)),
        Binary::Gt => Value::Truth(k.gt_f(a, b)),
        Binary::Ge => Value::Truth(k.ge_f(a, b)),
        Binary::And | Binary::Or => unreachable!("validated: {op:?} takes bool"),
    }
}

fn integer(k: &mut Builder, op: Binary, a: R32, b: R32, signed: bool) -> Value {
    let number = if signed { Value::Signed } else { Value::Unsigned };
    match (op, signed) {
        (Binary::Add, _) => number(k.add(a, b)),
        (Binary::Sub, _) => number(k.sub(a, b)),
        (Binary::Mul, _) => number(k.mul(a, b)),
        (Binary::Div, true) => number(k.div_s(a, b)),
        (Binary::Div, false) => number(k.div_u(a, b)),
        (Binary::Min, true) => number(k.min_s(a, b)),
        (Binary::Min, false) => number(k.min_u(a, b)),
        (Binary::Max, true) => number(k.max_s(a, b)),
        (Binary::Max, false) => number(k.max_u(a, b)),
        (Binary::Eq, _) => Value::Truth(k.eq(a, b)),
        (Binary::Ne, _) => Value::Truth(k.ne(a, b)),
        (Binary::Lt, true) => Value::Truth(k.lt_s(a, b)),
        (Binary::Lt, false) => Value::Truth(k.lt_u(a, b)),
        (Binary::Le, true) => Value::Truth(k.le_s(a, b)),
        (Binary::Le, false) => Value::Truth(k.le_u(a, b)),
        (Binary::Gt, true) => Value::Truth(k.gt_s(a, b)),
        (Binary::Gt, false) => Value::Truth(k.gt_u(a, b)),
        (Binary::Ge, true) => Value::Truth(k.ge_s(a, b)),
        (Binary::Ge, false) => Value::Truth(k.ge_u(a, b)),
        (Binary::And | Binary::Or, _) => unreachable!("validated: {op:?} takes bool"),
    }
}

fn cast(k: &mut Builder, a: Value, to: ExprType) -> Value {
    match (a, to) {
        (Value::Float(_), ExprType::F32) => a,
        (Value::Float(a), ExprType::U32) => Value::Unsigned(k.u_from_float(a, Rounding::Zero)),
        (Value::Float(a), ExprType::I32) => Value::Signed(k.s_from_float(a, Rounding::Zero)),
        (Value::Unsigned(a), ExprType::F32) => Value::Float(k.float_from_u(a)),
        (Value::Signed(a), ExprType::F32) => Value::Float(k.float_from_s(a)),
        (Value::Unsigned(a) | Value::Signed(a), ExprType::U32) => Value::Unsigned(a),
        (Value::Unsigned(a) | Value::Signed(a), ExprType::I32) => Value::Signed(a),
        (Value::Truth(a), ExprType::U32) => Value::Unsigned(k.select(a, 1u32, 0u32)),
        (Value::Truth(a), ExprType::I32) => Value::Signed(k.select(a, 1u32, 0u32)),
        (Value::Truth(_), ExprType::Bool) => a,
        (_, ExprType::Bool) | (Value::Truth(_), ExprType::F32) => unreachable!("validated: no such conversion"),
    }
}
