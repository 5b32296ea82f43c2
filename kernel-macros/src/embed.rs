//! Generated kernels as constant expressions.

use proc_macro2::{Ident, Literal, Span, TokenStream};
use ptx::{
    BoxShape, Kernel, KernelMeta, Parameter, ParameterKind,
    kernels::{
        attention::{AttentionSpec, spec::KvLayout},
        sampling::SamplerSpec,
    },
};
use quote::quote;
use std::ffi::CString;
use syn::{Error, Path, Result};

/// `AttentionKernel::embedded(facts, texts)`.
pub(crate) fn attention(kernels: &[(AttentionSpec, Kernel)], krate: &Path) -> Result<TokenStream> {
    let Some((spec, _)) = kernels.first() else {
        return Err(Error::new(Span::call_site(), "`arch` is empty"));
    };
    let ptx = quote!(#krate::ptx);
    let attention = quote!(#ptx::kernels::attention);
    let (pattern, dtype) = (variant(spec.pattern), variant(spec.dtype));
    let (rows, keys) = spec.block;
    let (head_dim, causal, softcap) = (spec.head_dim, spec.causal, spec.softcap);
    let kv = match spec.kv {
        KvLayout::Strided => quote!(Strided),
        KvLayout::Paged { page } => quote!(Paged { page: #page }),
    };
    let texts = texts(kernels, krate)?;
    Ok(quote! {
        #krate::AttentionKernel::embedded(
            #krate::AttentionFacts {
                pattern: #attention::Pattern::#pattern,
                block: (#rows, #keys),
                head_dim: #head_dim,
                dtype: #ptx::isa::MmaType::#dtype,
                causal: #causal,
                softcap: #softcap,
                kv: #attention::spec::KvLayout::#kv,
            },
            #texts,
        )
    })
}

/// `SamplerKernel::embedded(spec, texts)`.
pub(crate) fn sampler(kernels: &[(SamplerSpec, Kernel)], krate: &Path) -> Result<TokenStream> {
    let Some((spec, _)) = kernels.first() else {
        return Err(Error::new(Span::call_site(), "`arch` is empty"));
    };
    let sampling = quote!(#krate::ptx::kernels::sampling);
    let (dtype, guided) = (variant(spec.dtype), spec.guided);
    let texts = texts(kernels, krate)?;
    Ok(quote! {
        #krate::SamplerKernel::embedded(#sampling::LogitsType::#dtype, #guided, #texts)
    })
}

/// The texts with their launch facts, one for each architecture.
fn texts<S>(kernels: &[(S, Kernel)], krate: &Path) -> Result<TokenStream> {
    let texts = kernels.iter().map(|(_, kernel)| {
        let text = CString::new(kernel.text.as_str())
            .map_err(|_| Error::new(Span::call_site(), "the generated text contains a NUL character"))?;
        let text = Literal::c_string(&text);
        let meta = meta(&kernel.meta, krate);
        Ok(quote!((#text, #meta)))
    });
    let texts = texts.collect::<Result<Vec<_>>>()?;
    Ok(quote!(const { &[#(#texts),*] }))
}

/// The variant of a fieldless enum, whose `Debug` is its name.
fn variant(value: impl std::fmt::Debug) -> Ident {
    Ident::new(&format!("{value:?}"), Span::call_site())
}

fn meta(meta: &KernelMeta, krate: &Path) -> TokenStream {
    let borrowed = quote!(::std::borrow::Cow::Borrowed);
    let entry = &*meta.entry;
    let arch = variant(meta.arch);
    let (major, minor) = meta.isa;
    let (threads, shared_bytes, programmatic) = (meta.threads, meta.shared_bytes, meta.programmatic);
    let parameters = meta.parameters.iter().map(|parameter| {
        let Parameter { name, kind, offset } = parameter;
        let kind = parameter_kind(*kind, krate);
        quote!(#krate::ptx::Parameter {
            name: #borrowed(#name),
            kind: #krate::ptx::ParameterKind::#kind,
            offset: #offset,
        })
    });
    quote!(#krate::ptx::KernelMeta {
        entry: #borrowed(#entry),
        arch: #krate::ptx::Arch::#arch,
        isa: (#major, #minor),
        threads: #threads,
        shared_bytes: #shared_bytes,
        programmatic: #programmatic,
        parameters: #borrowed(const { &[#(#parameters),*] }),
    })
}

fn parameter_kind(kind: ParameterKind, krate: &Path) -> TokenStream {
    match kind {
        ParameterKind::Side(element) => {
            let element = variant(element);
            quote!(Side(#krate::ptx::kernels::meta::Element::#element))
        }
        ParameterKind::TensorMap(BoxShape { columns, rows, stride }) => {
            quote!(TensorMap(#krate::ptx::BoxShape { columns: #columns, rows: #rows, stride: #stride }))
        }
        plain => {
            let plain = variant(plain);
            quote!(#plain)
        }
    }
}
