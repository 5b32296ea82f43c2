fn main() {
    let _ = kernel_macros::attention!(
        pattern = vertical_slash,
        block = (64, 128),
        head_dim = 80,
        dtype = bf16,
        causal = false,
    );
}
