//! Sparse prefill and masked-diffusion decoding on the GPU: the runtime that inference engines call
