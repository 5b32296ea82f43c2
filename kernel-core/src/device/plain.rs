//! Host data that is copied to and from a device byte by byte.

use half::{bf16, f16};
use ptx::kernels::{
    feed::FeedParameters,
    sampling::{RequestState, RowParameters, RowStatistics, SelectParameters},
};

/// Types whose every bit pattern is a value, without padding: what device buffers hold.
pub trait Plain: Copy + Send + Sync + sealed::Sealed + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($name:ty)*) => {$(
        impl sealed::Sealed for $name {}
        impl Plain for $name {}
    )*};
}
plain!(u8 u16 u32 i32 u64 f32 bf16 f16);
// Records of 32-bit fields, `repr(C)`.
plain!(RowParameters RowStatistics SelectParameters RequestState FeedParameters);

/// The bytes of `values`.
pub(super) fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, so all of their bytes are initialised; u8 has alignment 1.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// `count` values whose bytes are zero.
pub(super) fn zeros<T: Plain>(count: usize) -> Vec<T> {
    // SAFETY: every bit pattern is a value of a `Plain` type.
    vec![unsafe { std::mem::zeroed() }; count]
}

/// The bytes of `values`, to be written.
pub(super) fn bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes`, and every bit pattern is a value of a `Plain` type.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
