//! CUDA, through the driver's C functions only.
//!
//! cudarc panics when libcuda is absent, even when it formats an error of its own. So [`driver`] probes for the library
//! before the first call, and errors are put into words here.

use super::{
    EncodedTensorMap, RawStream, TensorMap, arguments::MAX_PARAMETERS, cache::ModuleCache, images, kernel::Source,
    tensor_map::Dimensions,
};
use crate::Error;
use cudarc::driver::sys;
use ptx::{Arch, KernelMeta, isa::MmaType};
use std::{
    error::Error as _,
    ffi::{CStr, CString, c_void},
    marker::PhantomData,
    path::PathBuf,
    ptr::null_mut,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

/// Bytes for each of the compiler's logs.
const LOG_BYTES: usize = 16 << 10;
/// Shared memory a block may use without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// Turns a driver result into ours. `call` names the function.
fn check(call: &'static str, result: sys::CUresult) -> Result<(), Error> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Driver { call, code: result as u32, text: describe(result) })
}

/// The driver's words for a result. Only called after the probe: `result` came from the driver.
fn describe(result: sys::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver sets `text` to a static string or to null.
    let text = unsafe {
        let _ = sys::cuGetErrorString(result, &mut text);
        if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
    };
    text.map_or_else(|| "unknown error".into(), |text| text.to_string_lossy().into_owned())
}

/// Calls a driver function and checks its result.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        check(stringify!($function), sys::$function($($argument),*))
    };
}

/// Loads and initialises the driver, once.
fn driver() -> Result<(), Error> {
    static LIBRARY: OnceLock<Result<(), String>> = OnceLock::new();
    let found = LIBRARY.get_or_init(|| {
        let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: the driver's initialisers are safe to run; the library stays loaded.
            match unsafe { libloading::Library::new(*name) } {
                Ok(library) => {
                    std::mem::forget(library);
                    return Ok(());
                }
                // The error's own text leaves out what the loader said.
                Err(error) => reasons.push(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
            }
        }
        Err(reasons.join("; "))
    });
    found.clone().map_err(|reason| Error::DriverNotFound { reason })?;
    // SAFETY: the library is there; initialising again does nothing.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Ok(()), // The count of devices will say so.
        result => check("cuInit", result),
    }
}

/// A device's primary context.
pub(super) struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    pub(super) name: String,
    capability: (i32, i32),
    shared_limit: u32,
    pub(super) multiprocessors: u32,
    modules: ModuleCache<Module>,
    images: Mutex<Option<PathBuf>>,
    /// Whether programmatic kernels may start early.
    overlap: bool,
}

// SAFETY: a context handle may be used from any thread once it is current there, which every call sees to.
unsafe impl Send for Context {}
// SAFETY: as above; the driver synchronises its own state.
unsafe impl Sync for Context {}

/// Makes a context current for a scope; the thread's own one comes back afterwards.
struct Current<'c> {
    pushed: bool,
    context: PhantomData<(&'c Context, *const ())>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = null_mut();
            // SAFETY: pops what `Context::current` pushed on this thread.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
        }
    }
}

impl Context {
    /// The context of device `ordinal`: one for all handles in the process.
    pub(super) fn new(ordinal: usize) -> Result<Arc<Context>, Error> {
        static CONTEXTS: Mutex<Vec<(usize, Weak<Context>)>> = Mutex::new(Vec::new());
        driver()?;
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.retain(|(_, context)| context.strong_count() > 0);
        if let Some(context) = contexts.iter().find(|(o, _)| *o == ordinal).and_then(|(_, c)| c.upgrade()) {
            return Ok(context);
        }
        let context = Arc::new(Context::retain(ordinal)?);
        contexts.push((ordinal, Arc::downgrade(&context)));
        Ok(context)
    }

    fn retain(ordinal: usize) -> Result<Context, Error> {
        use sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let (mut count, mut device, mut name) = (0, 0, [0; 256]);
        // SAFETY: every pointer is to a local that outlives its call; the driver is initialised.
        unsafe {
            match sys::cuDeviceGetCount(&mut count) {
                // A driver without a device refuses to count.
                sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_NOT_INITIALIZED => count = 0,
                result => check("cuDeviceGetCount", result)?,
            }
            let count = count as usize;
            if ordinal >= count {
                return Err(Error::NoDevice { ordinal, count });
            }
            call!(cuDeviceGet(&mut device, ordinal as i32))?;
            call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            let attribute = |attribute| {
                let mut value = 0;
                call!(cuDeviceGetAttribute(&mut value, attribute, device)).map(|()| value)
            };
            let (major, minor) = (attribute(MAJOR)?, attribute(MINOR)?);
            if major < 8 {
                return Err(Error::DeviceTooOld { name, major, minor });
            }
            let shared_limit = attribute(SHARED)? as u32;
            let multiprocessors = attribute(MULTIPROCESSORS)? as u32;
            let mut raw = null_mut();
            call!(cuDevicePrimaryCtxRetain(&mut raw, device))?;
            let modules = ModuleCache::default();
            let images = std::env::var_os("LACUNA_IMAGES").filter(|folder| !folder.is_empty()).map(PathBuf::from);
            let images = Mutex::new(images);
            let capability = (major, minor);
            let overlap = std::env::var_os("LACUNA_OVERLAP").is_none_or(|value| value != "0");
            Ok(Context { raw, device, name, capability, shared_limit, multiprocessors, modules, images, overlap })
        }
    }

    pub(super) fn arch(&self) -> Arch {
        if self.capability == (9, 0) { Arch::Sm90a } else { Arch::Sm80 }
    }

    fn current(&self) -> Result<Current<'_>, Error> {
        let mut current = null_mut();
        // SAFETY: the context is retained as long as `self` lives.
        let pushed = unsafe {
            call!(cuCtxGetCurrent(&mut current))?;
            let foreign = current != self.raw;
            if foreign {
                call!(cuCtxPushCurrent_v2(self.raw))?;
            }
            foreign
        };
        Ok(Current { pushed, context: PhantomData })
    }

    /// Encodes a tensor map: dimensions innermost first, boxes swizzled over their own width, zeros outside.
    pub(super) fn encode_tensor_map(&self, map: &TensorMap) -> Result<EncodedTensorMap, Error> {
        use sys::{
            CUtensorMapDataType_enum::{
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BF16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 as F16,
            },
            CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZEROS,
            CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as NO_INTERLEAVE,
            CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as PROMOTION,
            CUtensorMapSwizzle_enum::{CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B},
        };
        let Dimensions { count, shape, strides, box_shape } = map.dimensions();
        let columns = map.box_shape.columns;
        let swizzle = if columns == 64 { CU_TENSOR_MAP_SWIZZLE_128B } else { CU_TENSOR_MAP_SWIZZLE_64B };
        let dtype = match map.dtype {
            MmaType::Bf16 => BF16,
            MmaType::F16 => F16,
        };
        let steps = [1u32; Dimensions::MOST];
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        let _current = self.current()?;
        // SAFETY: the driver reads `count` dimensions, box sizes and steps, which the arrays have, and a stride less, and writes
        // one map. The address is only encoded.
        unsafe {
            call!(cuTensorMapEncodeTiled(
                &mut encoded,
                dtype,
                count,
                map.address as *mut c_void,
                shape.as_ptr(),
                strides.as_ptr(),
                box_shape.as_ptr(),
                steps.as_ptr(),
                NO_INTERLEAVE,
                swizzle,
                PROMOTION,
                ZEROS,
            ))?;
        }
        let mut bytes = [0; 128];
        bytes
            .chunks_exact_mut(8)
            .zip(encoded.opaque)
            .for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_ne_bytes()));
        Ok(bytes)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: `address` outlives the call.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        if result == sys::CUresult::CUDA_SUCCESS {
            return Ok(address);
        }
        Err(Error::Allocation { bytes, reason: describe(result) })
    }

    pub(super) fn free(&self, address: u64) {
        if let Ok(_current) = self.current() {
            // SAFETY: the address came from `allocate` and is freed once. A failure has nowhere to go.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    pub(super) fn load(&self, source: &Source<'_>) -> Result<Arc<Module>, Error> {
        let meta = source.meta;
        let entry = || meta.entry.to_string();
        let has = self.arch();
        if meta.arch == Arch::Sm90a && has != Arch::Sm90a {
            let (name, (major, minor)) = (self.name.clone(), self.capability);
            return Err(Error::Architecture { entry: entry(), needs: meta.arch, name, major, minor, has });
        }
        if meta.shared_bytes > self.shared_limit {
            let (needed, limit) = (meta.shared_bytes, self.shared_limit);
            return Err(Error::SharedMemory { entry: entry(), needed, limit });
        }
        self.modules.get_or_load(source, || self.first_load(source))
    }

    /// Where images of kernels are looked for from now on.
    pub(super) fn use_images(&self, folder: Option<PathBuf>) {
        *self.images.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    }

    /// Loads the image of a kernel if there is a good one, else compiles its text.
    fn first_load(&self, source: &Source<'_>) -> Result<Module, Error> {
        let folder = self.images.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = || self.load_code(source, source.text.to_bytes_with_nul());
        let Some(folder) = folder else { return text() };
        let note = match images::find(&folder, source, self.capability) {
            Err(note) => note,
            Ok(image) => match self.load_code(source, &image.code) {
                Ok(mut module) => {
                    module.image = Some(image.file);
                    return Ok(module);
                }
                Err(error) => format!("image {} is not used: {error}\n", image.file.display()),
            },
        };
        let mut module = text()?;
        module.log.insert_str(0, &note);
        Ok(module)
    }

    /// Loads `code`: text that ends with NUL, or what `ptxas` made of it. Never through the driver's linker, which drops
    /// `setmaxnreg` and serialises `wgmma`.
    fn load_code(&self, source: &Source<'_>, code: &[u8]) -> Result<Module, Error> {
        use sys::CUjit_option_enum::{
            CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_INFO_LOG_BUFFER,
            CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, CU_JIT_LOG_VERBOSE,
        };
        let meta = source.meta;
        let refused = |log: String| {
            let mut driver = 0;
            // SAFETY: `driver` outlives the call.
            let _ = unsafe { sys::cuDriverGetVersion(&mut driver) };
            Error::Compile { entry: meta.entry.to_string(), isa: meta.isa, driver, log }
        };
        let entry = CString::new(meta.entry.as_bytes()).map_err(|_| refused("NUL in the entry's name".into()))?;
        let current = self.current()?;
        let (mut info, mut error) = (vec![0u8; LOG_BYTES], vec![0u8; LOG_BYTES]);
        let mut options = [
            CU_JIT_INFO_LOG_BUFFER,
            CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
            CU_JIT_ERROR_LOG_BUFFER,
            CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
            CU_JIT_LOG_VERBOSE,
        ];
        // Numbers travel in the pointer itself.
        let number = |n: usize| n as *mut c_void;
        let mut values =
            [info.as_mut_ptr().cast(), number(LOG_BYTES), error.as_mut_ptr().cast(), number(LOG_BYTES), number(1)];
        let text =
            |log: &[u8]| String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or(&[])).trim().to_string();
        let mut module = null_mut();
        // SAFETY: a text ends with NUL, and an image is whole, which its seal shows; options and values have the same
        // length, and the buffers the sizes given.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                code.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if result != sys::CUresult::CUDA_SUCCESS {
            let log = text(&error);
            return Err(refused(if log.is_empty() { describe(result) } else { log }));
        }
        drop(current);
        // From here on dropping it unloads the module.
        let mut module = Module { raw: module, function: null_mut(), context: self.raw, log: text(&info), image: None };
        let _current = self.current()?;
        // SAFETY: the module is loaded, the name ends with NUL.
        unsafe {
            call!(cuModuleGetFunction(&mut module.function, module.raw, entry.as_ptr()))?;
            if meta.shared_bytes > DEFAULT_SHARED_BYTES {
                use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
                call!(cuFuncSetAttribute(module.function, SHARED, meta.shared_bytes as i32))?;
            }
            if meta.programmatic {
                // A multiprocessor changes its share of shared memory only when nothing runs there: with one share for all, what
                // comes early finds a place.
                use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVEOUT;
                call!(cuFuncSetAttribute(module.function, CARVEOUT, 100))?;
            }
            // Asking for an attribute finishes a lazy load, which must not happen inside a capture.
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NUM_REGS as REGISTERS;
            let mut registers = 0;
            call!(cuFuncGetAttribute(&mut registers, REGISTERS, module.function))?;
        }
        Ok(module)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // The modules go while their context is still there.
        self.modules = ModuleCache::default();
        // SAFETY: retained once by `retain`, released once.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A module with one function.
pub(super) struct Module {
    raw: sys::CUmodule,
    function: sys::CUfunction,
    context: sys::CUcontext,
    pub(super) log: String,
    pub(super) image: Option<PathBuf>,
}

// SAFETY: module and function handles may be used from any thread in which their context is current.
unsafe impl Send for Module {}
// SAFETY: as above; they are not changed after loading.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        let mut popped = null_mut();
        // SAFETY: whoever holds a module holds its context too, and drops the module first.
        unsafe {
            if sys::cuCtxPushCurrent_v2(self.context) == sys::CUresult::CUDA_SUCCESS {
                let _ = sys::cuModuleUnload(self.raw);
                let _ = sys::cuCtxPopCurrent_v2(&mut popped);
            }
        }
    }
}

/// A stream, our own or the caller's.
pub(super) struct Stream {
    raw: sys::CUstream,
    owned: bool,
    context: Arc<Context>,
}

// SAFETY: stream handles may be used from any thread; the driver orders the calls.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream, Error> {
        let _current = context.current()?;
        let mut raw = null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `raw` outlives the call.
        unsafe { call!(cuStreamCreate(&mut raw, flags))? };
        Ok(Stream { raw, owned: true, context: context.clone() })
    }

    pub(super) fn borrowed(context: &Arc<Context>, raw: RawStream) -> Stream {
        Stream { raw: raw.0.cast(), owned: false, context: context.clone() }
    }

    pub(super) fn with_raw<R>(&self, work: impl FnOnce(RawStream) -> R) -> Result<R, Error> {
        let _current = self.context.current()?;
        Ok(work(RawStream(self.raw.cast())))
    }

    pub(super) fn launch(
        &self,
        module: &Module,
        grid: [u32; 3],
        meta: &KernelMeta,
        parameters: &[u8],
    ) -> Result<(), Error> {
        let _current = self.context.current()?;
        // One by one: packed in a buffer, parameters aligned to more than 8 bytes arrive in the wrong place.
        let mut pointers = [null_mut::<c_void>(); MAX_PARAMETERS];
        for (pointer, parameter) in pointers.iter_mut().zip(meta.parameters.iter()) {
            *pointer = parameters[parameter.offset as usize..].as_ptr().cast_mut().cast();
        }
        let ([x, y, z], threads) = (grid, meta.threads);
        if meta.programmatic && self.context.overlap {
            let mut early = sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            };
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: meta.shared_bytes,
                hStream: self.raw,
                attrs: &mut early,
                numAttrs: 1,
            };
            // SAFETY: as below; the driver also copies what it is told of the launch.
            return unsafe { call!(cuLaunchKernelEx(&config, module.function, pointers.as_mut_ptr(), null_mut())) };
        }
        // SAFETY: the driver copies the parameters before it returns; they are those of the kernel's list, in its order.
        unsafe {
            call!(cuLaunchKernel(
                module.function,
                x,
                y,
                z,
                threads,
                1,
                1,
                meta.shared_bytes,
                self.raw,
                pointers.as_mut_ptr(),
                null_mut(),
            ))
        }
    }

    /// Enqueues a copy; `bytes` must live until the stream has been synchronised.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let _current = self.context.current()?;
        // SAFETY: the caller has checked the range and waits for the copy.
        unsafe { call!(cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.raw)) }
    }

    /// Copies and waits.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let _current = self.context.current()?;
        // SAFETY: the caller has checked the range; the copy is over before `bytes` is given back.
        unsafe {
            call!(cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), address, bytes.len(), self.raw))?;
            call!(cuStreamSynchronize(self.raw))
        }
    }

    pub(super) fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.context.current()?;
        // SAFETY: the caller has checked the range.
        unsafe { call!(cuMemsetD8Async(address, byte, bytes, self.raw)) }
    }

    /// Enqueues a copy from one device address to another.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let _current = self.context.current()?;
        // SAFETY: the caller has checked both ranges.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw)) }
    }

    pub(super) fn synchronize(&self) -> Result<(), Error> {
        let _current = self.context.current()?;
        // SAFETY: the stream is alive.
        unsafe { call!(cuStreamSynchronize(self.raw)) }
    }

    pub(super) fn is_capturing(&self) -> Result<bool, Error> {
        use sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE as NONE;
        let _current = self.context.current()?;
        let mut status = NONE;
        // SAFETY: `status` outlives the call.
        unsafe { call!(cuStreamIsCapturing(self.raw, &mut status))? };
        Ok(status != NONE)
    }

    pub(super) fn capture<E: From<Error>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let _current = self.context.current()?;
        // SAFETY: the stream is alive; `capture` ends what begins here.
        unsafe {
            let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            call!(cuStreamBeginCapture_v2(self.raw, mode))?;
        }
        let capture = Capture(self);
        // A capture that ends by its drop leaves no graph behind.
        work()?;
        let graph = capture.end()?;
        let (mut executable, mut nodes) = (null_mut(), 0);
        // SAFETY: `graph` is a captured graph; without a list to fill its nodes are counted; instantiating copies it.
        let result = unsafe {
            let result = call!(cuGraphGetNodes(graph, null_mut(), &mut nodes))
                .and_then(|()| call!(cuGraphInstantiateWithFlags(&mut executable, graph, 0)));
            let _ = sys::cuGraphDestroy(graph);
            result
        };
        result?;
        Ok(Graph { raw: Mutex::new(Executable(executable)), nodes, context: self.context.clone() })
    }
}

/// A timing event.
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; the driver synchronises its own state.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn record(stream: &Stream) -> Result<Event, Error> {
        let _current = stream.context.current()?;
        let mut raw = null_mut();
        // SAFETY: `raw` outlives the call.
        unsafe { call!(cuEventCreate(&mut raw, 0))? };
        let event = Event { raw, context: stream.context.clone() };
        // SAFETY: stream and event are alive and of one context.
        unsafe { call!(cuEventRecord(event.raw, stream.raw))? };
        Ok(event)
    }

    pub(super) fn milliseconds_since(&self, earlier: &Event) -> Result<f64, Error> {
        let _current = self.context.current()?;
        // SAFETY: both events are alive and recorded.
        unsafe {
            call!(cuEventSynchronize(earlier.raw))?;
            call!(cuEventSynchronize(self.raw))?;
            // The driver function has another name from CUDA 13 on; cudarc knows which.
            match cudarc::driver::result::event::elapsed(earlier.raw, self.raw) {
                Ok(ms) => Ok(f64::from(ms)),
                Err(error) => check("cuEventElapsedTime", error.0).map(|()| 0.0),
            }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.current() {
            // SAFETY: created by `record`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned
            && let Ok(_current) = self.context.current()
        {
            // SAFETY: created by `new`, destroyed once; the driver finishes its work first.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// A capture under way; ends however the work ends.
struct Capture<'s>(&'s Stream);

impl Capture<'_> {
    fn end(self) -> Result<sys::CUgraph, Error> {
        let mut graph = null_mut();
        // SAFETY: the stream is capturing; `graph` outlives the call.
        let result = unsafe { call!(cuStreamEndCapture(self.0.raw, &mut graph)) };
        std::mem::forget(self);
        result.map(|()| graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let mut graph = null_mut();
        // SAFETY: as in `end`; reached only when the work has failed.
        unsafe {
            let _ = sys::cuStreamEndCapture(self.0.raw, &mut graph);
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}

/// An instantiated graph.
pub(super) struct Graph {
    /// The driver's graph objects are not thread-safe.
    raw: Mutex<Executable>,
    nodes: usize,
    context: Arc<Context>,
}

struct Executable(sys::CUgraphExec);

// SAFETY: the handle may be used from any thread, one at a time: it sits in a mutex.
unsafe impl Send for Executable {}

impl Graph {
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(super) fn launch(&self, stream: &Stream) -> Result<(), Error> {
        let _current = self.context.current()?;
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: graph and stream are alive and of one context.
        unsafe { call!(cuGraphLaunch(raw.0, stream.raw)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.current() {
            let raw = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: instantiated once, destroyed once.
            let _ = unsafe { sys::cuGraphExecDestroy(raw.0) };
        }
    }
}
