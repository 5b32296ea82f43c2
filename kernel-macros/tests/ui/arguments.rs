fn main() {
    let _ = kernel_macros::attention!(
        pattern = spiral,
        block = (128, 64),
        head_dim = "128",
        dtype = bf16,
        heads = 32,
    );
}
