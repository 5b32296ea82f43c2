//! `sampler!`: arguments to specs to an embedded kernel.

use crate::{
    arguments::{Arguments, boolean, choice, path},
    attention::architectures,
    embed,
};
use proc_macro2::TokenStream;
use ptx::{
    Arch, Kernel,
    kernels::sampling::{LogitsType, SamplerSpec},
};
use syn::{Error, Path, Result};

const KNOWN: &[&str] = &["dtype", "guided", "arch", "crate"];
const DTYPES: &[(&str, LogitsType)] = &[("bf16", LogitsType::Bf16), ("f16", LogitsType::F16), ("f32", LogitsType::F32)];

fn read(input: TokenStream) -> Result<(Vec<(SamplerSpec, Kernel)>, Path)> {
    let mut a = Arguments::parse(input, KNOWN)?;
    let dtype = a.required("dtype", |v| choice(v, DTYPES));
    let guided = a.optional("guided", false, boolean);
    let arch = a.optional("arch", vec![Arch::Sm80, Arch::Sm90a], architectures);
    let krate = a.optional("crate", syn::parse_quote!(::kernel_core), path);
    a.finish()?;
    let (Some(dtype), Some(guided), Some(arch), Some(krate)) = (dtype, guided, arch, krate) else {
        return Err(Error::new(proc_macro2::Span::call_site(), "incomplete call"));
    };
    let specs = arch.into_iter().map(|arch| SamplerSpec { dtype, guided, arch });
    Ok((a.generate(specs.collect())?, krate))
}

pub(crate) fn expand(input: TokenStream) -> Result<TokenStream> {
    let (kernels, krate) = read(input)?;
    embed::sampler(&kernels, &krate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_together() {
        let tokens = "dtype = f8, guided = 2, temperature = 1".parse().expect("the test's own tokens parse");
        let errors: Vec<_> = read(tokens).map(|_| ()).expect_err("wrong").into_iter().map(|e| e.to_string()).collect();
        assert!(errors[0].contains("unknown argument `temperature`"));
        assert!(errors[1].contains("`bf16`, `f16`, `f32`"));
        assert!(errors[2].contains("`true`, `false`"));
    }

    #[test]
    fn the_text_is_that_of_generate() {
        let (kernels, _) = read("dtype = bf16, guided = true".parse().expect("parses")).expect("valid");
        let expected = [Arch::Sm80, Arch::Sm90a].map(|arch| {
            let spec = SamplerSpec { dtype: LogitsType::Bf16, guided: true, arch };
            (spec, ptx::generate(&spec).expect("valid"))
        });
        assert_eq!(kernels, expected);
    }
}
