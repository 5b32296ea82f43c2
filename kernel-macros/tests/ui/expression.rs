fn main() {
    let _ = kernel_macros::attention!(
        pattern = dense,
        block = (64, 64),
        head_dim = 64,
        dtype = f16,
        score = |s: f32, q: u32, k: u32| s - (q - k),
        mask = |q: u32, k: u32, document: &[u32]| document[q] == document,
    );
}
