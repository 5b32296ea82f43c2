//! Criterion benchmarks over the standard workloads
