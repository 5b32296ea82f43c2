//! Images: kernels that were assembled ahead of time, as files. What such a file is called and how it ends.
//!
//! This file uses nothing but `core` and `alloc`: `xtask`, which writes images and must build while this crate does not,
//! compiles it as its own.

/// FNV-1a (Fowler, Noll, Vo) of `parts`, read one after the other: the same on every machine, today and later.
pub fn fnv1a(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// File name of the image of a text for GPUs of an architecture, such as `sm_90a`.
pub fn file_name(entry: &str, text: &[u8], architecture: &str) -> String {
    format!("{entry}-{:016x}.{architecture}.cubin", fnv1a(&[text]))
}

/// What follows the code in an image. It depends on text and code: neither half a file nor that of another text passes.
fn seal(text: &[u8], code: &[u8]) -> [u8; 8] {
    fnv1a(&[text, code]).to_le_bytes()
}

/// The bytes of an image: what `ptxas` made of `text`, sealed.
pub fn sealed(text: &[u8], code: &[u8]) -> Vec<u8> {
    [code, &seal(text, code)].concat()
}

/// The code in an image of `text`; `None` if the file is not whole, of another text, or no code: a driver takes whatever
/// has not the signature of ELF for text, and looks for its end.
pub fn code<'a>(text: &[u8], file: &'a [u8]) -> Option<&'a [u8]> {
    let (code, end) = file.split_last_chunk()?;
    (*end == seal(text, code) && code.starts_with(b"\x7fELF")).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one_however_its_input_is_cut() {
        assert_eq!([fnv1a(&[]), fnv1a(&[b"a"])], [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c]);
        assert_eq!(fnv1a(&[b"foo", b"", b"bar"]), 0x8594_4171_f739_67e8);
        assert_eq!(file_name("k", b"a", "sm_90a"), "k-af63dc4c8601ec8c.sm_90a.cubin");
    }

    #[test]
    fn only_a_whole_image_of_the_same_text_is_opened() {
        let file = sealed(b"text", b"\x7fELF code");
        assert_eq!(code(b"text", &file), Some(&b"\x7fELF code"[..]));
        assert_eq!(code(b"next", &file), None);
        assert_eq!(code(b"text", &sealed(b"text", b"code")), None);
        for cut in 0..file.len() {
            assert_eq!(code(b"text", &file[..cut]), None, "{cut} bytes");
            let mut changed = file.clone();
            changed[cut] ^= 1;
            assert_eq!(code(b"text", &changed), None, "byte {cut}");
        }
    }
}
