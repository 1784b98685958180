//! NVIDIA GPUs through the driver, which is loaded when the first device is opened.

use super::nvrtc::Nvrtc;
use super::program::{Program, fnv};
use super::{Backend, Grid, Module, no_device};
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sys::CUdevice_attribute as Attribute;

/// One GPU: its primary context and one stream, on which everything happens in order.
struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    label: String,
}

// SAFETY: contexts and streams of the driver may be used from any thread, once the context is current there.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

pub(super) struct Cuda {
    gpu: Arc<Gpu>,
    name: String,
    kind: String,
    /// Compute capability, 90 for 9.0.
    target: i32,
    shared_memory: usize,
    processors: usize,
}

impl Gpu {
    fn error(&self, what: &str, e: DriverError) -> Error {
        no_device(&self.label, format!("{what}: {}", message(e)), "use another GPU, fewer replicas, or --device cpu")
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.error("the GPU is lost", e))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: made in `open`, used by nobody any more. A GPU that is lost cannot be given back, which harms nobody.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

fn message(e: DriverError) -> String {
    e.error_string().map_or_else(|_| format!("{e:?}"), |s| s.to_string_lossy().into_owned())
}

impl Cuda {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let label = format!("cuda:{ordinal}");
        let fail = |what: String| no_device(&label, what, "use --device cpu");
        // SAFETY: looks for the library, no more.
        if !unsafe { sys::is_culib_present() } {
            return Err(fail("no CUDA driver: libcuda.so.1 is not on this machine".into()));
        }
        result::init().map_err(|e| fail(format!("the CUDA driver does not start: {}", message(e))))?;
        let count = result::device::get_count().map_err(|e| fail(message(e)))?.max(0) as usize;
        if ordinal >= count {
            return Err(fail(format!("there are {count} GPUs, counted from 0")));
        }
        // Before anything is allocated: without the compiler there is nothing to run.
        Nvrtc::get()?;
        let open = || -> std::result::Result<_, DriverError> {
            let device = result::device::get(ordinal as i32)?;
            // SAFETY: the device exists; context and stream are given back by `Gpu`.
            unsafe {
                let attribute = |a| result::device::get_attribute(device, a);
                let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
                let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
                let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
                let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
                let name = result::device::get_name(device)?;
                let context = result::primary_ctx::retain(device)?;
                result::ctx::set_current(context)?;
                let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
                Ok((Gpu { device, context, stream, label: label.clone() }, name, 10 * major + minor, shared, processors))
            }
        };
        let (gpu, name, target, shared, processors) = open().map_err(|e| fail(message(e)))?;
        Ok(Cuda {
            name: format!("{name} ({label}, sm_{target})"),
            kind: format!("cuda sm_{target}"),
            gpu: Arc::new(gpu),
            target,
            shared_memory: shared.max(0) as usize,
            processors: processors.max(1) as usize,
        })
    }

    /// The kernels of `program`, from the user's cache where they were compiled before.
    fn load(&self, program: &Program) -> Result<sys::CUmodule> {
        let nvrtc = Nvrtc::get()?;
        let hash = program.hash(&format!("sm_{} {:?}", self.target, nvrtc.version));
        let cached = cache().map(|directory| directory.join(format!("{hash}.cubin")));
        // SAFETY: the image is what the compiler made: a whole CUBIN, or PTX that ends with a zero byte.
        let load = |image: &[u8]| unsafe { result::module::load_data(image.as_ptr().cast()) };
        if let Some(file) = cached.as_ref().and_then(|path| std::fs::read(path).ok())
            && let Some((sum, image)) = file.split_first_chunk::<8>()
            && *sum == fnv(image.iter().copied()).to_le_bytes()
            && let Ok(module) = load(image)
        {
            return Ok(module);
        }
        let image = nvrtc.compile(program, self.target)?;
        let module = load(&image).map_err(|e| self.gpu.error("kernels", e))?;
        if let Some(path) = cached {
            // A checksum, then the image: a damaged file is made anew.
            let image = [&fnv(image.iter().copied()).to_le_bytes()[..], &image].concat();
            // A cache that cannot be written costs a second the next time, no more.
            let temporary = path.with_extension(format!("{}", std::process::id()));
            let _ = path.parent().map(std::fs::create_dir_all);
            if std::fs::write(&temporary, &image).is_ok() && std::fs::rename(&temporary, &path).is_err() {
                let _ = std::fs::remove_file(&temporary);
            }
        }
        Ok(module)
    }
}

/// The user's directory for compiled kernels.
fn cache() -> Option<PathBuf> {
    let base =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    base.map(|b| b.join("scorefield/kernels"))
}

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        &self.kind
    }

    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    fn processors(&self) -> usize {
        self.processors
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        self.gpu.enter()?;
        // SAFETY: freed by `free`; cleared inside its bounds.
        unsafe {
            let at = result::malloc_sync(bytes).map_err(|e| self.gpu.error(&format!("{bytes} bytes of memory"), e))?;
            match result::memset_d8_async(at, 0, bytes, self.gpu.stream) {
                Ok(()) => Ok(at),
                Err(e) => {
                    let _ = result::free_sync(at);
                    Err(self.gpu.error("memory", e))
                }
            }
        }
    }

    unsafe fn free(&self, at: u64, _: usize) {
        // SAFETY: as the caller promises; where the GPU is lost there is nothing to free.
        unsafe {
            if self.gpu.enter().is_ok() {
                let _ = result::free_sync(at);
            }
        }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: as the caller promises; the copy is over before `bytes` goes away.
        unsafe {
            result::memcpy_htod_async(to, bytes, self.gpu.stream)
                .and_then(|()| result::stream::synchronize(self.gpu.stream))
                .map_err(|e| self.gpu.error("copy to the GPU", e))
        }
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: as the caller promises; the copy is over before `bytes` is used.
        unsafe {
            result::memcpy_dtoh_async(bytes, from, self.gpu.stream)
                .and_then(|()| result::stream::synchronize(self.gpu.stream))
                .map_err(|e| self.gpu.error("copy from the GPU (or a kernel before it)", e))
        }
    }

    fn compile(&self, program: &Program) -> Result<Arc<dyn Module>> {
        self.gpu.enter()?;
        let module = self.load(program)?;
        Ok(Arc::new(Loaded { gpu: self.gpu.clone(), module, shared_memory: self.shared_memory, functions: Mutex::default() }))
    }
}

struct Loaded {
    gpu: Arc<Gpu>,
    module: sys::CUmodule,
    shared_memory: usize,
    functions: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Send for Loaded {}
// SAFETY: as above; the table of functions has its lock.
unsafe impl Sync for Loaded {}

impl Loaded {
    fn function(&self, kernel: &str) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(*function);
        }
        let name = CString::new(kernel).map_err(|e| no_device(&self.gpu.label, e.to_string(), "use --device cpu"))?;
        let most = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK;
        // SAFETY: the module is loaded; attributes are set on a function of it.
        unsafe {
            let function = result::module::get_function(self.module, name).map_err(|e| self.gpu.error(&format!("kernel {kernel}"), e))?;
            // More than the usual 48 KiB has to be asked for.
            let usual = result::device::get_attribute(self.gpu.device, most).map_err(|e| self.gpu.error("attributes", e))?;
            if self.shared_memory > usual.max(0) as usize {
                let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                result::function::set_function_attribute(function, attribute, self.shared_memory as i32)
                    .map_err(|e| self.gpu.error("shared memory", e))?;
            }
            functions.insert(kernel.to_owned(), Function(function));
            Ok(Function(function))
        }
    }
}

impl Module for Loaded {
    unsafe fn launch(&self, kernel: &str, grid: Grid, parameters: &[u8]) -> Result<()> {
        self.gpu.enter()?;
        let function = self.function(kernel)?;
        let mut arguments: [*mut c_void; 1] = [parameters.as_ptr().cast_mut().cast()];
        // SAFETY: the driver copies the one argument before it returns; its content is as the caller promises.
        unsafe {
            result::launch_kernel(
                function.0,
                (grid.blocks, 1, 1),
                (grid.threads, 1, 1),
                grid.shared as u32,
                self.gpu.stream,
                &mut arguments,
            )
        }
        .map_err(|e| self.gpu.error(&format!("kernel {kernel}"), e))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: loaded in `compile`; nothing runs any more, since every result was waited for.
            unsafe {
                let _ = result::stream::synchronize(self.gpu.stream);
                let _ = result::module::unload(self.module);
            }
        }
    }
}
