//! Oracles, reference models and the end-to-end harness
