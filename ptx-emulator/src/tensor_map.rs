//! Tensor maps: what a bulk tensor copy knows of the tensor in global memory and the box it copies.

use thiserror::Error;

use crate::swizzle::Swizzle;

/// Bytes of an encoded map.
pub(crate) const MAP_BYTES: usize = 128;
/// First bytes of every map that [`TensorMap::encode`] makes.
const MAGIC: [u8; 8] = *b"tensor\x01\n";

/// A tiled tensor map, in the terms of `cuTensorMapEncodeTiled`: dimension 0 is contiguous and comes first, and elements
/// outside the tensor read as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorMap {
    /// Device address of the first element.
    pub address: u64,
    /// Dimensions in use, 1 to 5.
    pub rank: u32,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements of the tensor in each dimension.
    pub dims: [u64; 5],
    /// Bytes from one index to the next in dimensions 1, 2, …
    pub strides_bytes: [u64; 4],
    /// Elements of the box in each dimension.
    pub box_dims: [u32; 5],
    /// How the rows of the box are permuted in shared memory.
    pub swizzle: Swizzle,
}

/// A tensor map that no device takes: which field, what it is, and what it must be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("tensor map: {0}")]
pub struct TensorMapError(String);

impl TensorMap {
    /// The map as a kernel parameter of 128 bytes. The bytes are this crate's own: a driver's maps are opaque, and
    /// kernels only pass them on.
    ///
    /// # Errors
    ///
    /// [`TensorMapError`] if a field breaks the rules of `cuTensorMapEncodeTiled`.
    pub fn encode(&self) -> Result<[u8; MAP_BYTES], TensorMapError> {
        self.validate().map_err(TensorMapError)?;
        let mut bytes = Vec::with_capacity(MAP_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.address.to_le_bytes());
        bytes.extend([self.rank as u8, self.element_bytes as u8, self.swizzle as u8, 0]);
        bytes.extend(self.box_dims.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(self.dims.iter().chain(&self.strides_bytes).flat_map(|n| n.to_le_bytes()));
        let mut map = [0; MAP_BYTES];
        map[..bytes.len()].copy_from_slice(&bytes);
        Ok(map)
    }

    /// Reads what [`TensorMap::encode`] wrote; `None` for any other bytes.
    pub(crate) fn decode(bytes: &[u8; MAP_BYTES]) -> Option<TensorMap> {
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |&chunk| u32::from_le_bytes(chunk));
        let long = |at: usize| bytes[at..].first_chunk().map_or(0, |&chunk| u64::from_le_bytes(chunk));
        const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
        let map = TensorMap {
            address: long(8),
            rank: u32::from(bytes[16]),
            element_bytes: u32::from(bytes[17]),
            dims: std::array::from_fn(|i| long(40 + 8 * i)),
            strides_bytes: std::array::from_fn(|i| long(80 + 8 * i)),
            box_dims: std::array::from_fn(|i| word(20 + 4 * i)),
            swizzle: *SWIZZLES.get(usize::from(bytes[18]))?,
        };
        (bytes.starts_with(&MAGIC) && map.validate().is_ok()).then_some(map)
    }

    fn validate(&self) -> Result<(), String> {
        let TensorMap { rank, element_bytes, swizzle, .. } = *self;
        if !(1..=5).contains(&rank) {
            return Err(format!("rank {rank}; it must be 1 to 5"));
        }
        if !matches!(element_bytes, 1 | 2 | 4 | 8) {
            return Err(format!("elements of {element_bytes} bytes; they must have 1, 2, 4 or 8"));
        }
        if self.address == 0 || !self.address.is_multiple_of(16) {
            return Err(format!("address {:#x}; it must be a multiple of 16", self.address));
        }
        let rank = rank as usize;
        for (i, (&size, &part)) in self.dims.iter().zip(&self.box_dims).take(rank).enumerate() {
            if size == 0 || size > 1 << 32 {
                return Err(format!("dimension {i} has {size} elements; it must have 1 to 2³²"));
            }
            if part == 0 || part > 256 {
                return Err(format!("the box has {part} elements in dimension {i}; it must have 1 to 256"));
            }
        }
        for (i, &stride) in self.strides_bytes.iter().take(rank - 1).enumerate() {
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                return Err(format!(
                    "dimension {} has a stride of {stride} bytes; it must be a multiple of 16 below 2⁴⁰",
                    i + 1
                ));
            }
        }
        let row = self.row_bytes();
        if !row.is_multiple_of(16) {
            return Err(format!("a row of the box has {row} bytes; it must be a multiple of 16"));
        }
        if swizzle != Swizzle::None && row > swizzle.span() {
            return Err(format!("a row of the box has {row} bytes; with {swizzle:?} at most {}", swizzle.span()));
        }
        Ok(())
    }

    /// Bytes of a row of the box: its extent in dimension 0.
    pub(crate) fn row_bytes(&self) -> u32 {
        self.box_dims[0] * self.element_bytes
    }

    /// Bytes of the box in shared memory.
    pub(crate) fn box_bytes(&self) -> u64 {
        let rows: u64 = self.box_dims[1..self.rank as usize].iter().map(|&n| u64::from(n)).product();
        rows * u64::from(self.row_bytes())
    }

    /// The rows of the box at `coordinates`, in the order in which they lie in shared memory.
    pub(crate) fn rows(&self, coordinates: [i32; 5]) -> impl Iterator<Item = Row> {
        let map = *self;
        let from = i64::from(coordinates[0]);
        // The part of every row that lies inside the tensor.
        let first = (-from).clamp(0, i64::from(map.box_dims[0]));
        let last = (map.dims[0] as i64 - from).clamp(first, i64::from(map.box_dims[0]));
        let (skip, bytes) = (first as u32 * map.element_bytes, (last - first) as u32 * map.element_bytes);
        let start = (map.address as i64).wrapping_add((from + first) * i64::from(map.element_bytes));
        let count = map.box_bytes() / u64::from(map.row_bytes());
        (0..count as u32).map(move |row| {
            let (mut rest, mut address, mut inside) = (row, start, bytes > 0);
            let outer = map.dims.iter().zip(&map.box_dims).zip(&coordinates).take(map.rank as usize).skip(1);
            for (((&size, &part), &coordinate), &stride) in outer.zip(&map.strides_bytes) {
                let index = i64::from(coordinate) + i64::from(rest % part);
                rest /= part;
                inside &= (0..size as i64).contains(&index);
                address = address.wrapping_add(index.wrapping_mul(stride as i64));
            }
            Row { address: address as u64, skip, bytes: if inside { bytes } else { 0 } }
        })
    }
}

/// A row of a box: `skip` bytes of zeros, `bytes` bytes of global memory, and zeros to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) address: u64,
    pub(crate) skip: u32,
    pub(crate) bytes: u32,
}
