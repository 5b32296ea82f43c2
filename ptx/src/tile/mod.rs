//! The tile vocabulary: what kernels are written in.
