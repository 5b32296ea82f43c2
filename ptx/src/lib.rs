//! PTX as data: a typed builder, a tile vocabulary and kernel generators
