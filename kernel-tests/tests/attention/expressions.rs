//! Score and mask expressions with their references.

use crate::case::{Case, Side};
use ptx::kernels::{
    attention::expr::{Binary, Expr, ExprType, SideBuffer, Unary, Variable},
    meta::Element,
};

use std::sync::Arc;

pub(crate) fn variable(v: Variable) -> Box<Expr> {
    Box::new(Expr::Variable(v))
}

pub(crate) fn binary(op: Binary, a: impl Into<Box<Expr>>, b: impl Into<Box<Expr>>) -> Box<Expr> {
    Box::new(Expr::Binary(op, a.into(), b.into()))
}

pub(crate) fn cast(a: Box<Expr>, to: ExprType) -> Box<Expr> {
    Box::new(Expr::Cast(a, to))
}

fn positions(case: &Case) -> usize {
    case.lengths.iter().map(|l| l.1).max().unwrap()
}

/// Declares a side buffer; the expression that reads it at an index.
pub(crate) fn side(case: &mut Case, name: &str, values: Side) -> impl Fn(Box<Expr>) -> Box<Expr> + use<> {
    let element = match values {
        Side::Floats(_) => Element::F32,
        Side::Words(_) => Element::U32,
    };
    let number = case.side.len();
    case.side.push(values);
    case.spec.side.push(SideBuffer { name: name.into(), element });
    move |index| Box::new(Expr::Index(number, index))
}

/// `s - slope[head] * abs(q as i32 - k as i32) as f32`: ALiBi, on both sides.
pub(crate) fn slopes(case: &mut Case) {
    let slopes: Vec<f32> = (0..case.heads).map(|h| 0.5f32.powi(h as i32 + 3)).collect();
    let slope = side(case, "slope", Side::Floats(slopes.clone()));
    let signed = |v| cast(variable(v), ExprType::I32);
    let distance = binary(Binary::Sub, signed(Variable::Query), signed(Variable::Key));
    let distance = cast(Box::new(Expr::Unary(Unary::Abs, distance)), ExprType::F32);
    let bias = binary(Binary::Mul, slope(variable(Variable::Head)), distance);
    case.spec.score = Some(*binary(Binary::Sub, variable(Variable::Score), bias));
    case.score = Some(Arc::new(move |s, q, k, h| s - f64::from(slopes[h]) * (q as f64 - k as f64).abs()));
}

/// `s + table[q - k]`, the table exactly as long as there are distances.
pub(crate) fn table(case: &mut Case) {
    let values: Vec<f32> = (0..positions(case)).map(|d| (d as f32 * 0.7).sin()).collect();
    let table = side(case, "table", Side::Floats(values.clone()));
    let distance = binary(Binary::Sub, variable(Variable::Query), variable(Variable::Key));
    case.spec.score = Some(*binary(Binary::Add, variable(Variable::Score), table(distance)));
    case.score = Some(Arc::new(move |s, q, k, _| s + f64::from(values[q - k])));
}

/// `document[q] == document[k]`.
pub(crate) fn documents(case: &mut Case) {
    let ids: Vec<u32> = (0..positions(case) as u32).map(|p| p / 37 % 3).collect();
    let document = side(case, "document", Side::Words(ids.clone()));
    let [query, key] = [Variable::Query, Variable::Key].map(|v| document(variable(v)));
    case.spec.mask = Some(*binary(Binary::Eq, query, key));
    case.mask = Some(Arc::new(move |q, k| ids[q as usize] == ids[k as usize]));
}
