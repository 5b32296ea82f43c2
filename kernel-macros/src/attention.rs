//! `attention!`: arguments to specs to an embedded kernel.

use crate::{
    arguments::{Arguments, boolean, choice, number, path},
    embed, expression,
};
use proc_macro2::TokenStream;
use ptx::{
    Arch, Kernel,
    isa::MmaType,
    kernels::attention::{AttentionSpec, Pattern, expr::ExprType, spec::KvLayout},
};
use quote::quote;
use syn::{Error, Expr, Path, Result};

const KNOWN: &[&str] =
    &["pattern", "block", "head_dim", "dtype", "arch", "causal", "softcap", "kv", "score", "mask", "crate"];

pub(crate) const PATTERNS: &[(&str, Pattern)] = &[
    ("dense", Pattern::Dense),
    ("a_shape", Pattern::AShape),
    ("tri_shape", Pattern::TriShape),
    ("vertical_slash", Pattern::VerticalSlash),
    ("block_sparse", Pattern::BlockSparse),
];

/// The specs that a call describes, one for each architecture, and the path of `kernel_core`.
fn read(input: TokenStream) -> Result<(Vec<(AttentionSpec, Kernel)>, Path)> {
    let mut a = Arguments::parse(input, KNOWN)?;
    let pattern = a.required("pattern", |v| choice(v, PATTERNS));
    let block = a.required("block", pair);
    let head_dim = a.required("head_dim", number);
    let dtype = a.required("dtype", |v| choice(v, &[("bf16", MmaType::Bf16), ("f16", MmaType::F16)]));
    let arch = a.optional("arch", vec![Arch::Sm80], architectures);
    let causal = a.optional("causal", true, boolean);
    let softcap = a.optional("softcap", false, boolean);
    let kv = a.optional("kv", KvLayout::Strided, kv_layout);
    let mut side = Vec::new();
    let score =
        a.optional("score", None, |v| expression::lower(v, expression::SCORE, ExprType::F32, &mut side).map(Some));
    let mask =
        a.optional("mask", None, |v| expression::lower(v, expression::MASK, ExprType::Bool, &mut side).map(Some));
    let krate = a.optional("crate", syn::parse_quote!(::kernel_core), path);
    a.finish()?;
    let (Some(pattern), Some(block), Some(head_dim), Some(dtype), Some(arch)) = (pattern, block, head_dim, dtype, arch)
    else {
        return Err(Error::new(proc_macro2::Span::call_site(), "incomplete call"));
    };
    let specs = arch.into_iter().map(|arch| AttentionSpec {
        causal: causal.unwrap_or(true),
        softcap: softcap.unwrap_or(false),
        kv: kv.unwrap_or(KvLayout::Strided),
        score: score.clone().flatten(),
        mask: mask.clone().flatten(),
        side: side.clone(),
        ..AttentionSpec::new(pattern, block, head_dim, dtype, arch)
    });
    let kernels = a.generate(specs.collect())?;
    Ok((kernels, krate.unwrap_or_else(|| syn::parse_quote!(::kernel_core))))
}

fn pair(value: &Expr) -> Result<(u32, u32)> {
    match value {
        Expr::Tuple(tuple) if tuple.elems.len() == 2 => Ok((number(&tuple.elems[0])?, number(&tuple.elems[1])?)),
        other => Err(Error::new_spanned(other, "must be `(query rows, keys)`, such as `(128, 64)`")),
    }
}

/// A list of architectures.
pub(crate) fn architectures(value: &Expr) -> Result<Vec<Arch>> {
    match value {
        Expr::Array(list) if !list.elems.is_empty() => {
            let mut architectures = Vec::new();
            for value in &list.elems {
                let arch = choice(value, &[("sm_80", Arch::Sm80), ("sm_90a", Arch::Sm90a)])?;
                if architectures.contains(&arch) {
                    return Err(Error::new_spanned(value, format!("`{}` is listed twice", quote!(#value))));
                }
                architectures.push(arch);
            }
            Ok(architectures)
        }
        other => Err(Error::new_spanned(other, "must be a list, such as `[sm_80]` or `[sm_80, sm_90a]`")),
    }
}

fn kv_layout(value: &Expr) -> Result<KvLayout> {
    match value {
        Expr::Call(call)
            if call.args.len() == 1 && matches!(&*call.func, Expr::Path(name) if name.path.is_ident("paged")) =>
        {
            Ok(KvLayout::Paged { page: number(&call.args[0])? })
        }
        other => choice(other, &[("strided", KvLayout::Strided)])
            .map_err(|_| Error::new_spanned(other, "must be `strided` or `paged(tokens)`")),
    }
}

pub(crate) fn expand(input: TokenStream) -> Result<TokenStream> {
    let (kernels, krate) = read(input)?;
    embed::attention(&kernels, &krate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        let tokens = text.parse().expect("the test's own tokens parse");
        read(tokens).map(|_| ()).expect_err(text).into_iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn all_errors_of_a_call_are_reported_together() {
        let found = errors("patern = dense, block = (128, 64, 1), head_dim = x, dtype = f8, dtype = bf16, causal = 1");
        let expected = [
            "unknown argument `patern`",
            "`dtype` is given twice",
            "`pattern` is missing",
            "must be `(query rows, keys)`",
            "must be a whole number",
            "must be one of `bf16`, `f16`, found `f8`",
            "must be one of `true`, `false`, found `1`",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found} / {expected}");
        }
    }

    #[test]
    fn a_block_must_serve_every_architecture() {
        let call = |block: &str, archs: &str| {
            format!("pattern = dense, block = {block}, head_dim = 64, dtype = bf16, arch = [{archs}]")
        };
        let both = "sm_80, sm_90a";
        let found = errors(&call("(64, 64)", both));
        assert_eq!(found, ["(64, 64) is not generated for sm_90a at head_dim 64; rows are 128 and keys 64 or 128"]);
        let found = errors(&call("(192, 128)", both));
        assert!(found.len() == 1 && found[0].contains("not generated for sm_80"), "{found:?}");
        let found = errors(&call("(96, 64)", both));
        assert!(found.len() == 2 && found[0].contains("sm_80") && found[1].contains("sm_90a"), "{found:?}");
        assert_eq!(errors(&call("(128, 64)", "sm_80, sm_90a, sm_80")), ["`sm_80` is listed twice"]);
        // What has nothing to do with the architecture is said once.
        let paged = format!("{}, kv = paged(24)", call("(128, 64)", both));
        assert_eq!(errors(&paged), ["pages of 24 tokens are not generated; use 16, 32, 64, 128 or 256"]);
    }

    #[test]
    fn every_architecture_has_the_text_of_generate() {
        let text = "pattern = vertical_slash, block = (128, 64), head_dim = 64, dtype = f16, arch = [sm_90a, sm_80]";
        let (kernels, _) = read(text.parse().expect("parses")).expect("valid");
        let spec = |arch| AttentionSpec::new(Pattern::VerticalSlash, (128, 64), 64, MmaType::F16, arch);
        let expected = [Arch::Sm90a, Arch::Sm80].map(|arch| (spec(arch), ptx::generate(&spec(arch)).expect("valid")));
        assert_eq!(kernels, expected);
    }

    #[test]
    fn keys_may_lie_in_pages() {
        let text =
            "pattern = dense, block = (128, 64), head_dim = 64, dtype = bf16, arch = [sm_90a, sm_80], kv = paged(32)";
        let (kernels, _) = read(text.parse().expect("parses")).expect("valid");
        assert!(kernels.iter().all(|(spec, _)| spec.kv == KvLayout::Paged { page: 32 }));
        let other = text.replace("paged(32)", "pages(32)");
        assert_eq!(errors(&other), ["must be `strided` or `paged(tokens)`"]);
    }

    #[test]
    fn names_are_checked() {
        assert!(
            errors("pattern = spiral, block = (64, 64), head_dim = 64, dtype = bf16")[0].contains("`vertical_slash`")
        );
        assert!(
            errors("pattern = dense, block = (64, 64), head_dim = 64, dtype = bf16, arch = [sm_70]")[0]
                .contains("sm_80")
        );
        assert!(
            errors("pattern = dense, block = (64, 64), head_dim = 64, dtype = bf16, kv = heap")[0].contains("paged")
        );
    }
}
