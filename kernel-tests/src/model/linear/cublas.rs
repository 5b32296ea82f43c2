//! The few functions of cuBLASLt that a plain product needs.
//!
//! The types are cudarc's; the functions are looked up here, since cudarc looks for the library under the names of its
//! bindings' CUDA version only, and panics where it finds none.

use crate::model::Error;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatrixLayout_t, cudaDataType_t,
};
use kernel_core::{Buffer, Stream};
use libloading::Library;
use std::{ffi::c_void, ptr::null, ptr::null_mut, sync::OnceLock};

/// Every major version that a driver for our kernels may come with; the plain name is a development link.
const NAMES: [&str; 4] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "cublasLt64_12.dll"];
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;
const WORKSPACE_BYTES: usize = 32 << 20;

macro_rules! functions {
    ($($field:ident $symbol:literal ($($argument:ty),*);)*) => {
        /// Function pointers, valid as long as the library, which is never unloaded.
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> i32,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Functions, Error> {
                // SAFETY: the signatures are those of the library's header, the same in every version since 11.
                unsafe {
                    Ok(Functions {
                        $($field: *library
                            .get(concat!($symbol, "\0").as_bytes())
                            .map_err(|error| Error::Cublas { reason: error.to_string() })?,)*
                    })
                }
            }
        }
    };
}

functions! {
    create "cublasLtCreate" (*mut cublasLtHandle_t);
    destroy "cublasLtDestroy" (cublasLtHandle_t);
    create_product "cublasLtMatmulDescCreate" (*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType_t);
    set_product "cublasLtMatmulDescSetAttribute" (cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, *const c_void, usize);
    destroy_product "cublasLtMatmulDescDestroy" (cublasLtMatmulDesc_t);
    create_layout "cublasLtMatrixLayoutCreate" (*mut cublasLtMatrixLayout_t, cudaDataType_t, u64, u64, i64);
    destroy_layout "cublasLtMatrixLayoutDestroy" (cublasLtMatrixLayout_t);
    multiply "cublasLtMatmul" (
        cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, u64, cublasLtMatrixLayout_t, u64, cublasLtMatrixLayout_t,
        *const c_void, u64, cublasLtMatrixLayout_t, u64, cublasLtMatrixLayout_t, *const c_void, u64, usize, *mut c_void
    );
}

fn functions() -> Result<&'static Functions, Error> {
    static FOUND: OnceLock<Result<(Library, Functions), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let mut reasons = Vec::new();
        for name in NAMES {
            // SAFETY: loading cuBLASLt runs its initialisers, which have no requirements.
            match unsafe { Library::new(name) } {
                Ok(library) => {
                    let functions = Functions::find(&library).map_err(|error| error.to_string())?;
                    return Ok((library, functions));
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(reasons.join("; "))
    });
    found.as_ref().map(|(_, functions)| functions).map_err(|reason| Error::Cublas { reason: reason.clone() })
}

fn check(call: &str, status: i32) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error::Cublas { reason: format!("{call} failed with status {status}") }) }
}

/// A handle of the library.
pub(crate) struct Cublas {
    functions: &'static Functions,
    handle: cublasLtHandle_t,
    workspace: Buffer,
}

// SAFETY: cuBLASLt handles may be used from any thread, and from several at once.
unsafe impl Send for Cublas {}
// SAFETY: as above.
unsafe impl Sync for Cublas {}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: the handle came from `create` and is destroyed once. A failure has nowhere to go.
        let _ = unsafe { (self.functions.destroy)(self.handle) };
    }
}

impl Cublas {
    pub(crate) fn new(stream: &Stream) -> Result<Cublas, Error> {
        let functions = functions()?;
        let workspace = stream.device().allocate(WORKSPACE_BYTES)?;
        let mut handle = null_mut();
        stream
            // SAFETY: `handle` outlives the call, and the context is current.
            .with_raw(|_| check("cublasLtCreate", unsafe { (functions.create)(&mut handle) }))?
            .unwrap_or(Ok(()))?;
        Ok(Cublas { functions, handle, workspace })
    }

    /// Row-major `out[rows, outputs] = x[rows, inputs] · weights[outputs, inputs]ᵀ`.
    ///
    /// The library counts columns first: there, `outᵀ = weightsᵀᵀ · xᵀ`.
    pub(crate) fn multiply(
        &self,
        stream: &Stream,
        x: &Buffer,
        weights: &Buffer,
        out: &Buffer,
        [rows, outputs, inputs]: [usize; 3],
    ) -> Result<(), Error> {
        let product = Product::new(self.functions)?;
        let weights_layout = Layout::new(self.functions, inputs, outputs)?;
        let x_layout = Layout::new(self.functions, inputs, rows)?;
        let out_layout = Layout::new(self.functions, outputs, rows)?;
        let (one, zero) = (1f32, 0f32);
        let launch = |raw: kernel_core::device::RawStream| {
            // SAFETY: the buffers are as large as the layouts say (the caller checks), on the stream's device, and live
            // until the stream has passed this product; descriptors and factors outlive the call.
            let status = unsafe {
                (self.functions.multiply)(
                    self.handle,
                    product.raw,
                    (&raw const one).cast(),
                    weights.address(),
                    weights_layout.raw,
                    x.address(),
                    x_layout.raw,
                    (&raw const zero).cast(),
                    out.address(),
                    out_layout.raw,
                    out.address(),
                    out_layout.raw,
                    null(),
                    self.workspace.address(),
                    WORKSPACE_BYTES,
                    raw.0,
                )
            };
            check("cublasLtMatmul", status)
        };
        stream.with_raw(launch)?.unwrap_or(Ok(()))
    }
}

/// `a` transposed times `b`, summed in single precision.
struct Product {
    functions: &'static Functions,
    raw: cublasLtMatmulDesc_t,
}

impl Product {
    fn new(functions: &'static Functions) -> Result<Product, Error> {
        let mut raw = null_mut();
        let transposed = TRANSPOSED;
        // SAFETY: `raw` and the attribute outlive the calls, and the size is the attribute's.
        unsafe {
            let (sums, factors) = (cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F);
            check("cublasLtMatmulDescCreate", (functions.create_product)(&mut raw, sums, factors))?;
            let product = Product { functions, raw };
            let attribute = cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            let status =
                (functions.set_product)(raw, attribute, (&raw const transposed).cast(), size_of_val(&transposed));
            check("cublasLtMatmulDescSetAttribute", status)?;
            Ok(product)
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { (self.functions.destroy_product)(self.raw) };
    }
}

/// A bfloat16 matrix without gaps.
struct Layout {
    functions: &'static Functions,
    raw: cublasLtMatrixLayout_t,
}

impl Layout {
    fn new(functions: &'static Functions, column: usize, columns: usize) -> Result<Layout, Error> {
        let mut raw = null_mut();
        let kind = cudaDataType_t::CUDA_R_16BF;
        // SAFETY: `raw` outlives the call.
        let status = unsafe { (functions.create_layout)(&mut raw, kind, column as u64, columns as u64, column as i64) };
        check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Layout { functions, raw })
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { (self.functions.destroy_layout)(self.raw) };
    }
}
