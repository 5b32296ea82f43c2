//! Macros that turn a kernel description into PTX at compile time
//!
//! Tokens become a spec, `ptx::generate` makes the text, and the expansion embeds it with its launch facts: the same
//! function that an engine may call at run time. All errors of one call are reported together, each on its token.
#![forbid(unsafe_code)]

mod arguments;
mod attention;
mod embed;
mod expression;
mod sampler;

use proc_macro::TokenStream;

/// An attention kernel, generated at compile time: an expression of type `AttentionKernel`, usable in a `const`.
///
/// ```text
/// const LOCAL: AttentionKernel = attention!(
///     pattern = vertical_slash, block = (128, 64), head_dim = 128, dtype = bf16, arch = [sm_80, sm_90a],
///     score = |s: f32, q: u32, k: u32, head: u32, slope: &[f32]| s - slope[head] * (q - k) as f32,
///     mask = |q: u32, k: u32, document: &[u32]| document[q] == document[k]);
/// ```
///
/// | argument | value | default |
/// |---|---|---|
/// | `pattern` | `dense`, `a_shape`, `tri_shape`, `vertical_slash`, `block_sparse` | required |
/// | `block` | `(query rows, keys)` of a tile | required |
/// | `head_dim` | elements of a head | required |
/// | `dtype` | `bf16`, `f16` | required |
/// | `arch` | list of `sm_80`, `sm_90a`: a text for each, the device picks its best | `[sm_80]` |
/// | `causal` | `true`, `false` | `true` |
/// | `softcap` | `true`, `false` | `false` |
/// | `kv` | `strided`, `paged(tokens)` with 16, 32, 64, 128 or 256 tokens a page | `strided` |
/// | `score` | closure over score, query, key, head, batch (a prefix of them), then side buffers | none |
/// | `mask` | closure over query, key, head, batch (a prefix of them), then side buffers | none |
/// | `crate` | path of `kernel_core`, where it is renamed | `::kernel_core` |
///
/// The one `block` must be generated for every architecture listed, such as `(128, 64)`; an error names the architecture
/// that it is not generated for.
///
/// Expressions know `+ - * /`, comparisons, `&& || !`, `as`, indexing of side buffers, literals, and `min max abs exp2
/// tanh` as methods or functions.
#[proc_macro]
pub fn attention(input: TokenStream) -> TokenStream {
    attention::expand(input.into()).unwrap_or_else(report).into()
}

/// The row kernel of masked-token sampling, generated at compile time: an expression of type `SamplerKernel`.
///
/// ```text
/// const SAMPLER: SamplerKernel = sampler!(dtype = bf16, guided = true);
/// ```
///
/// | argument | value | default |
/// |---|---|---|
/// | `dtype` | type of the logits: `bf16`, `f16`, `f32` | required |
/// | `guided` | `true`, `false`: rows guided by unconditional ones | `false` |
/// | `arch` | list of `sm_80`, `sm_90a` | `[sm_80, sm_90a]` |
/// | `crate` | path of `kernel_core`, where it is renamed | `::kernel_core` |
#[proc_macro]
pub fn sampler(input: TokenStream) -> TokenStream {
    sampler::expand(input.into()).unwrap_or_else(report).into()
}

/// All errors as one expression: side by side they would only be statements.
fn report(errors: syn::Error) -> proc_macro2::TokenStream {
    let errors = errors.into_compile_error();
    quote::quote!({ #errors })
}
