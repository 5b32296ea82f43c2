//! Macros that turn a kernel description into PTX at compile time
