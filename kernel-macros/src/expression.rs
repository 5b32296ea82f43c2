//! `score` and `mask` closures to expression trees.

use ptx::kernels::{
    attention::expr::{Binary, Expr, ExprType, SideBuffer, Unary, Variable},
    meta::Element,
};
use syn::{BinOp, Error, ExprClosure, Ident, Lit, Pat, Result, Type, UnOp, spanned::Spanned};

/// The fixed arguments of a closure, in order, with their types.
pub(crate) const SCORE: &[(Variable, ExprType)] = &[
    (Variable::Score, ExprType::F32),
    (Variable::Query, ExprType::U32),
    (Variable::Key, ExprType::U32),
    (Variable::Head, ExprType::U32),
    (Variable::Batch, ExprType::U32),
];
/// As [`SCORE`], for a mask.
pub(crate) const MASK: &[(Variable, ExprType)] = SCORE.split_at(1).1;

/// Lowers `closure` to a tree of type `result`; side buffers it names are added to `side`.
pub(crate) fn lower(
    value: &syn::Expr,
    fixed: &[(Variable, ExprType)],
    result: ExprType,
    side: &mut Vec<SideBuffer>,
) -> Result<Expr> {
    let syn::Expr::Closure(closure) = value else {
        return Err(Error::new_spanned(value, "must be a closure, such as `|q: u32, k: u32| q - k < 512`"));
    };
    let scope = Scope::new(closure, fixed, side)?;
    scope.typed(&closure.body, result)
}

struct Scope {
    variables: Vec<(Ident, Variable, ExprType)>,
    buffers: Vec<(Ident, usize, Element)>,
}

const fn element_type(element: Element) -> ExprType {
    match element {
        Element::F32 => ExprType::F32,
        Element::U32 => ExprType::U32,
        Element::I32 => ExprType::I32,
    }
}

fn name(ty: ExprType) -> &'static str {
    match ty {
        ExprType::F32 => "f32",
        ExprType::U32 => "u32",
        ExprType::I32 => "i32",
        ExprType::Bool => "bool",
    }
}

fn scalar(ty: &Type) -> Result<ExprType> {
    let found = match ty {
        Type::Path(path) => path.path.get_ident().map(Ident::to_string),
        _ => None,
    };
    match found.as_deref() {
        Some("f32") => Ok(ExprType::F32),
        Some("u32") => Ok(ExprType::U32),
        Some("i32") => Ok(ExprType::I32),
        Some("bool") => Ok(ExprType::Bool),
        _ => Err(Error::new_spanned(ty, "must be `f32`, `u32`, `i32` or `bool`")),
    }
}

impl Scope {
    fn new(closure: &ExprClosure, fixed: &[(Variable, ExprType)], side: &mut Vec<SideBuffer>) -> Result<Scope> {
        let mut scope = Scope { variables: Vec::new(), buffers: Vec::new() };
        for input in &closure.inputs {
            let Pat::Type(input) = input else {
                return Err(Error::new_spanned(input, "needs its type, such as `q: u32`"));
            };
            let Pat::Ident(binding) = &*input.pat else {
                return Err(Error::new_spanned(&input.pat, "must be a plain name"));
            };
            let ident = binding.ident.clone();
            if let Some(element) = slice_element(&input.ty)? {
                scope.buffer(ident, element, side)?;
            } else {
                scope.variable(ident, &input.ty, fixed)?;
            }
        }
        Ok(scope)
    }

    fn variable(&mut self, ident: Ident, ty: &Type, fixed: &[(Variable, ExprType)]) -> Result<()> {
        if !self.buffers.is_empty() {
            return Err(Error::new_spanned(ident, "positions and head come before side buffers"));
        }
        let Some(&(variable, expected)) = fixed.get(self.variables.len()) else {
            let message =
                format!("at most {} values come before the side buffers (`&[f32]`, `&[u32]`, `&[i32]`)", fixed.len());
            return Err(Error::new_spanned(ident, message));
        };
        if scalar(ty)? != expected {
            return Err(Error::new_spanned(
                ty,
                format!("argument {} is the {variable:?}, of type `{}`", self.variables.len() + 1, name(expected)),
            ));
        }
        self.variables.push((ident, variable, expected));
        Ok(())
    }

    fn buffer(&mut self, ident: Ident, element: Element, side: &mut Vec<SideBuffer>) -> Result<()> {
        let text = ident.to_string();
        let index = match side.iter().position(|s| s.name == text) {
            Some(index) if side[index].element == element => index,
            Some(_) => {
                let message = format!("side buffer `{text}` has another element type in the other expression");
                return Err(Error::new_spanned(ident, message));
            }
            None => {
                side.push(SideBuffer { name: text, element });
                side.len() - 1
            }
        };
        self.buffers.push((ident, index, element));
        Ok(())
    }

    /// Lowers `value`, which must have type `expected`.
    fn typed(&self, value: &syn::Expr, expected: ExprType) -> Result<Expr> {
        let (expr, found) = self.lower(value, Some(expected))?;
        if found == expected {
            Ok(expr)
        } else {
            let message = format!("must be of type `{}`, found `{}`; convert with `as`", name(expected), name(found));
            Err(Error::new_spanned(value, message))
        }
    }

    /// Lowers `value`; `hint` decides the type of bare literals.
    fn lower(&self, value: &syn::Expr, hint: Option<ExprType>) -> Result<(Expr, ExprType)> {
        match value {
            syn::Expr::Paren(inner) => self.lower(&inner.expr, hint),
            syn::Expr::Group(inner) => self.lower(&inner.expr, hint),
            syn::Expr::Block(block) => match &block.block.stmts[..] {
                [syn::Stmt::Expr(inner, None)] => self.lower(inner, hint),
                _ => Err(Error::new_spanned(block, "must hold one expression and no statement")),
            },
            syn::Expr::Lit(literal) => lower_literal(&literal.lit, hint),
            syn::Expr::Path(path) => self.lower_name(path),
            syn::Expr::Unary(unary) => {
                let operator = match unary.op {
                    UnOp::Neg(_) => Unary::Neg,
                    UnOp::Not(_) => Unary::Not,
                    _ => return Err(Error::new_spanned(unary, "known are `-` and `!`")),
                };
                let hint = if operator == Unary::Neg { hint.or(Some(ExprType::I32)) } else { hint };
                self.lower_unary(operator, &unary.expr, hint)
            }
            syn::Expr::Binary(binary) => {
                let operator = lower_operator(&binary.op)?;
                self.lower_binary(operator, &binary.left, &binary.right, hint)
            }
            syn::Expr::Cast(cast) => {
                let to = scalar(&cast.ty)?;
                let (inner, from) = self.lower(&cast.expr, None)?;
                if to == ExprType::Bool || from == ExprType::Bool && to == ExprType::F32 {
                    let message = format!("`{}` does not convert to `{}`", name(from), name(to));
                    return Err(Error::new_spanned(cast, message));
                }
                Ok((Expr::Cast(Box::new(inner), to), to))
            }
            syn::Expr::Index(index) => {
                let buffer = self.find_buffer(&index.expr)?;
                let position = self.typed(&index.index, ExprType::U32)?;
                Ok((Expr::Index(buffer.1, Box::new(position)), element_type(buffer.2)))
            }
            syn::Expr::MethodCall(call) => {
                let arguments: Vec<_> = std::iter::once(&*call.receiver).chain(&call.args).collect();
                self.lower_call(&call.method, &arguments, hint)
            }
            syn::Expr::Call(call) => match &*call.func {
                syn::Expr::Path(path) if path.path.get_ident().is_some() => {
                    let arguments: Vec<_> = call.args.iter().collect();
                    let function = path.path.segments[0].ident.clone();
                    self.lower_call(&function, &arguments, hint)
                }
                other => Err(Error::new_spanned(other, KNOWN_FUNCTIONS)),
            },
            other => Err(Error::new_spanned(
                other,
                "not part of an expression here: known are arithmetic, comparisons, `&& || !`, `as`, indexing, literals \
                 and `min max abs exp2 tanh`",
            )),
        }
    }

    fn lower_name(&self, path: &syn::ExprPath) -> Result<(Expr, ExprType)> {
        let Some((_, variable, ty)) = self.variables.iter().find(|(ident, ..)| path.path.is_ident(ident)) else {
            let message = if self.buffers.iter().any(|(ident, ..)| path.path.is_ident(ident)) {
                "a side buffer is read by index, such as `document[q]`"
            } else {
                "not an argument of this closure"
            };
            return Err(Error::new_spanned(path, message));
        };
        Ok((Expr::Variable(*variable), *ty))
    }

    fn find_buffer(&self, value: &syn::Expr) -> Result<&(Ident, usize, Element)> {
        let found = match value {
            syn::Expr::Path(path) => self.buffers.iter().find(|(ident, ..)| path.path.is_ident(ident)),
            _ => None,
        };
        found.ok_or_else(|| Error::new_spanned(value, "only side buffers, arguments of type `&[…]`, can be indexed"))
    }

    fn lower_unary(&self, operator: Unary, value: &syn::Expr, hint: Option<ExprType>) -> Result<(Expr, ExprType)> {
        let (inner, ty) = self.lower(value, hint)?;
        let allowed: &[ExprType] = match operator {
            Unary::Not => &[ExprType::Bool],
            Unary::Neg | Unary::Abs => &[ExprType::F32, ExprType::I32],
            Unary::Exp2 | Unary::Tanh => &[ExprType::F32],
        };
        if !allowed.contains(&ty) {
            return Err(Error::new_spanned(
                value,
                format!("`{operator:?}` does not take `{}`", name(ty)).to_lowercase(),
            ));
        }
        Ok((Expr::Unary(operator, Box::new(inner)), ty))
    }

    fn lower_binary(
        &self,
        operator: Binary,
        left: &syn::Expr,
        right: &syn::Expr,
        hint: Option<ExprType>,
    ) -> Result<(Expr, ExprType)> {
        use Binary::{And, Eq, Ge, Gt, Le, Lt, Ne, Or};
        let span = left.span();
        let comparison = matches!(operator, Eq | Ne | Lt | Le | Gt | Ge);
        let logic = matches!(operator, And | Or);
        let hint = match (comparison, logic) {
            (true, _) => None,
            (_, true) => Some(ExprType::Bool),
            _ => hint,
        };
        // A bare literal takes the type of the other side.
        let (left, right, ty) = if is_bare(left) {
            let (right, ty) = self.lower(right, hint)?;
            (self.typed(left, ty)?, right, ty)
        } else {
            let (left, ty) = self.lower(left, hint)?;
            (left, self.typed(right, ty)?, ty)
        };
        if logic != (ty == ExprType::Bool) && !matches!(operator, Eq | Ne) {
            return Err(Error::new(span, format!("this operator does not take `{}`", name(ty))));
        }
        let result = if comparison { ExprType::Bool } else { ty };
        Ok((Expr::Binary(operator, Box::new(left), Box::new(right)), result))
    }

    fn lower_call(
        &self,
        function: &Ident,
        arguments: &[&syn::Expr],
        hint: Option<ExprType>,
    ) -> Result<(Expr, ExprType)> {
        let unary = [("abs", Unary::Abs), ("exp2", Unary::Exp2), ("tanh", Unary::Tanh)];
        let binary = [("min", Binary::Min), ("max", Binary::Max)];
        if let Some((_, operator)) = unary.iter().find(|(name, _)| function == name) {
            let [value] = arguments else { return Err(Error::new_spanned(function, "takes one value")) };
            return self.lower_unary(*operator, value, hint);
        }
        if let Some((_, operator)) = binary.iter().find(|(name, _)| function == name) {
            let [left, right] = arguments else { return Err(Error::new_spanned(function, "takes two values")) };
            return self.lower_binary(*operator, left, right, hint);
        }
        Err(Error::new_spanned(function, KNOWN_FUNCTIONS))
    }
}

const KNOWN_FUNCTIONS: &str = "known functions are `min`, `max`, `abs`, `exp2` and `tanh`";

/// Whether a literal's type is open.
fn is_bare(value: &syn::Expr) -> bool {
    match value {
        syn::Expr::Paren(inner) => is_bare(&inner.expr),
        syn::Expr::Unary(unary) => matches!(unary.op, UnOp::Neg(_)) && is_bare(&unary.expr),
        syn::Expr::Lit(literal) => matches!(&literal.lit, Lit::Int(int) if int.suffix().is_empty()),
        _ => false,
    }
}

fn lower_literal(literal: &Lit, hint: Option<ExprType>) -> Result<(Expr, ExprType)> {
    match literal {
        Lit::Bool(value) => Ok((Expr::Bool(value.value), ExprType::Bool)),
        Lit::Float(value) if matches!(value.suffix(), "" | "f32") => {
            Ok((Expr::F32(value.base10_parse()?), ExprType::F32))
        }
        Lit::Int(value) => match (value.suffix(), hint) {
            ("i32", _) | ("", Some(ExprType::I32)) => Ok((Expr::I32(value.base10_parse()?), ExprType::I32)),
            ("u32", _) | ("", None | Some(ExprType::U32)) => Ok((Expr::U32(value.base10_parse()?), ExprType::U32)),
            ("f32", _) => Ok((Expr::F32(value.base10_parse()?), ExprType::F32)),
            ("", Some(other)) => Err(Error::new_spanned(value, format!("must be of type `{}`", name(other)))),
            _ => Err(Error::new_spanned(value, "known literal types are `u32`, `i32` and `f32`")),
        },
        other => Err(Error::new_spanned(other, "known literals are numbers and truth values")),
    }
}

fn lower_operator(operator: &BinOp) -> Result<Binary> {
    Ok(match operator {
        BinOp::Add(_) => Binary::Add,
        BinOp::Sub(_) => Binary::Sub,
        BinOp::Mul(_) => Binary::Mul,
        BinOp::Div(_) => Binary::Div,
        BinOp::Eq(_) => Binary::Eq,
        BinOp::Ne(_) => Binary::Ne,
        BinOp::Lt(_) => Binary::Lt,
        BinOp::Le(_) => Binary::Le,
        BinOp::Gt(_) => Binary::Gt,
        BinOp::Ge(_) => Binary::Ge,
        BinOp::And(_) => Binary::And,
        BinOp::Or(_) => Binary::Or,
        other => return Err(Error::new_spanned(other, "known operators are `+ - * / == != < <= > >= && ||`")),
    })
}

/// The element of `&[T]`, or `None` for any other type.
fn slice_element(ty: &Type) -> Result<Option<Element>> {
    let Type::Reference(reference) = ty else { return Ok(None) };
    let Type::Slice(slice) = &*reference.elem else {
        return Err(Error::new_spanned(ty, "a side buffer is `&[f32]`, `&[u32]` or `&[i32]`"));
    };
    match scalar(&slice.elem)? {
        ExprType::F32 => Ok(Some(Element::F32)),
        ExprType::U32 => Ok(Some(Element::U32)),
        ExprType::I32 => Ok(Some(Element::I32)),
        ExprType::Bool => Err(Error::new_spanned(ty, "a side buffer is `&[f32]`, `&[u32]` or `&[i32]`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Binary::{And, Eq, Lt, Mul, Sub};

    fn parse(text: &str, fixed: &[(Variable, ExprType)], result: ExprType) -> (Result<Expr>, Vec<SideBuffer>) {
        let mut side = Vec::new();
        let closure = syn::parse_str(text).expect("the test's own text parses");
        (lower(&closure, fixed, result, &mut side), side)
    }

    fn binary(operator: Binary, left: Expr, right: Expr) -> Expr {
        Expr::Binary(operator, Box::new(left), Box::new(right))
    }

    #[test]
    fn alibi_lowers_to_its_tree() {
        let text = "|s: f32, q: u32, k: u32, head: u32, slope: &[f32]| s - slope[head] * (q - k) as f32";
        let (expr, side) = parse(text, SCORE, ExprType::F32);
        let distance = binary(Sub, Expr::Variable(Variable::Query), Expr::Variable(Variable::Key));
        let slope = Expr::Index(0, Box::new(Expr::Variable(Variable::Head)));
        let bias = binary(Mul, slope, Expr::Cast(Box::new(distance), ExprType::F32));
        assert_eq!(expr.expect("valid"), binary(Sub, Expr::Variable(Variable::Score), bias));
        assert_eq!(side, [SideBuffer { name: "slope".into(), element: Element::F32 }]);
    }

    #[test]
    fn bare_literals_take_the_type_of_the_other_side() {
        let (expr, _) = parse("|q: u32, k: u32| 512 > q - k && true", MASK, ExprType::Bool);
        let distance = binary(Sub, Expr::Variable(Variable::Query), Expr::Variable(Variable::Key));
        assert_eq!(expr.expect("valid"), binary(And, binary(Binary::Gt, Expr::U32(512), distance), Expr::Bool(true)));
        let (expr, _) = parse("|q: u32, k: u32, d: &[i32]| d[q] < -1", MASK, ExprType::Bool);
        let minus_one = Expr::Unary(Unary::Neg, Box::new(Expr::I32(1)));
        let read = Expr::Index(0, Box::new(Expr::Variable(Variable::Query)));
        assert_eq!(expr.expect("valid"), binary(Lt, read, minus_one));
    }

    #[test]
    fn methods_and_functions_are_the_same() {
        let (a, _) = parse("|s: f32| s.max(0.0).tanh()", SCORE, ExprType::F32);
        let (b, _) = parse("|s: f32| tanh(max(s, 0.0))", SCORE, ExprType::F32);
        assert_eq!(a.expect("valid"), b.expect("valid"));
    }

    #[test]
    fn a_buffer_named_twice_is_one_buffer() {
        let mut side = Vec::new();
        let mask = syn::parse_str("|q: u32, k: u32, d: &[u32]| d[q] == d[k]").expect("parses");
        let first = lower(&mask, MASK, ExprType::Bool, &mut side).expect("valid");
        let read = |v| Expr::Index(0, Box::new(Expr::Variable(v)));
        assert_eq!(first, binary(Eq, read(Variable::Query), read(Variable::Key)));
        lower(&mask, MASK, ExprType::Bool, &mut side).expect("valid");
        assert_eq!(side.len(), 1);
        let other = syn::parse_str("|s: f32, q: u32, k: u32, h: u32, d: &[f32]| s * d[h]").expect("parses");
        let error = lower(&other, SCORE, ExprType::F32, &mut side).expect_err("other element type");
        assert!(error.to_string().contains("another element type"));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, part) in [
            ("|s: f32| s + 1", "must be of type `f32`"),
            ("|s: f32, q: u32| s + q", "must be of type `f32`, found `u32`"),
            ("|s: f32| x", "not an argument"),
            ("|s: f32| s % 2.0", "known operators"),
            ("|s: f32| s.sqrt()", "known functions"),
            ("|s: u32| 1.0", "argument 1 is the Score, of type `f32`"),
            ("|s| s", "needs its type"),
            ("|s: f32, t: &[f32]| s + t", "read by index"),
            ("|s: f32, t: &[f32]| t[s]", "must be of type `u32`, found `f32`"),
            ("|s: f32, t: &[f32], q: u32| s", "come before side buffers"),
            ("|s: f32| !s", "does not take"),
            ("|s: f32| { let x = s; x }", "no statement"),
            ("|s: f32| if s > 0.0 { s } else { 0.0 }", "not part of an expression"),
            ("|s: f32, q: u32| s + (q > 1) as f32", "does not convert"),
            ("5", "must be a closure"),
            ("|s: f32, q: u32| s > 1.0", "must be of type `f32`, found `bool`"),
        ] {
            let (expr, _) = parse(text, SCORE, ExprType::F32);
            let error = expr.expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
