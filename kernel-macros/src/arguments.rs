//! `name = value, …`: the argument list that every macro here takes.

use proc_macro2::{Span, TokenStream};
use ptx::{Kernel, KernelSpec};
use quote::ToTokens;
use syn::{
    Error, Expr, ExprLit, Ident, Lit, Path, Result, Token,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
    spanned::Spanned,
};

struct Argument {
    name: Ident,
    value: Expr,
}

impl Parse for Argument {
    fn parse(input: ParseStream) -> Result<Self> {
        // `crate` is a keyword and a legal name here.
        let name = input.call(Ident::parse_any)?;
        input.parse::<Token![=]>()?;
        Ok(Argument { name, value: input.parse()? })
    }
}

/// The arguments of one call, and the errors found in them so far.
pub(crate) struct Arguments {
    arguments: Vec<Argument>,
    errors: Option<Error>,
}

struct List(Vec<Argument>);

impl Parse for List {
    fn parse(input: ParseStream) -> Result<Self> {
        Ok(List(Punctuated::<Argument, Token![,]>::parse_terminated(input)?.into_iter().collect()))
    }
}

impl Arguments {
    /// Parses a list whose names must be among `known`.
    pub(crate) fn parse(input: TokenStream, known: &[&str]) -> Result<Arguments> {
        let mut list = Arguments { arguments: syn::parse2::<List>(input)?.0, errors: None };
        for i in 0..list.arguments.len() {
            let name = list.arguments[i].name.clone();
            if !known.iter().any(|k| name == k) {
                list.error(name.span(), format!("unknown argument `{name}`; known are {}", quoted(known)));
            } else if list.arguments[..i].iter().any(|a| a.name == name) {
                list.error(name.span(), format!("`{name}` is given twice"));
            }
        }
        Ok(list)
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.combine(Error::new(span, message.into()));
    }

    pub(crate) fn combine(&mut self, error: Error) {
        match &mut self.errors {
            Some(errors) => errors.combine(error),
            none => *none = Some(error),
        }
    }

    /// Takes an error out of a result and notes it.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.combine(error)).ok()
    }

    /// Fails with everything noted so far.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.errors.take().map_or(Ok(()), Err)
    }

    /// The kernels of `specs`; what a spec forbids is reported on the argument it names.
    pub(crate) fn generate<S: KernelSpec>(&mut self, specs: Vec<S>) -> Result<Vec<(S, Kernel)>> {
        match ptx::generate_all(&specs) {
            Ok(kernels) => Ok(specs.into_iter().zip(kernels).collect()),
            Err(errors) => {
                errors.iter().for_each(|error| self.error(self.span(error.field), error.message.to_string()));
                self.finish().map(|()| Vec::new())
            }
        }
    }

    /// The value of `name`, if given.
    pub(crate) fn get(&self, name: &str) -> Option<&Expr> {
        self.arguments.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// Where to report an error about `name`: its value, or the whole call.
    fn span(&self, name: &str) -> Span {
        self.get(name).map_or_else(Span::call_site, |value| value.span())
    }

    /// The value of `name` read by `read`; missing or wrong values are noted.
    pub(crate) fn required<T>(&mut self, name: &str, read: impl FnOnce(&Expr) -> Result<T>) -> Option<T> {
        match self.get(name) {
            Some(value) => {
                let value = read(value);
                self.note(value)
            }
            None => {
                self.error(Span::call_site(), format!("`{name}` is missing"));
                None
            }
        }
    }

    /// The value of `name` read by `read`, or `default` where it is not given.
    pub(crate) fn optional<T>(&mut self, name: &str, default: T, read: impl FnOnce(&Expr) -> Result<T>) -> Option<T> {
        if self.get(name).is_some() { self.required(name, read) } else { Some(default) }
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// One of the given names.
pub(crate) fn choice<T: Copy>(value: &Expr, choices: &[(&str, T)]) -> Result<T> {
    let found = value.to_token_stream().to_string();
    choices.iter().find(|(name, _)| *name == found).map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        Error::new_spanned(value, format!("must be one of {}, found `{found}`", quoted(&names)))
    })
}

/// A truth value.
pub(crate) fn boolean(value: &Expr) -> Result<bool> {
    choice(value, &[("true", true), ("false", false)])
}

/// A whole number.
pub(crate) fn number(value: &Expr) -> Result<u32> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Int(literal), .. }) => literal.base10_parse(),
        other => Err(Error::new_spanned(other, "must be a whole number")),
    }
}

/// A path, as `crate = path` takes.
pub(crate) fn path(value: &Expr) -> Result<Path> {
    match value {
        Expr::Path(path) => Ok(path.path.clone()),
        other => Err(Error::new_spanned(other, "must be a path such as `::kernel_core`")),
    }
}
