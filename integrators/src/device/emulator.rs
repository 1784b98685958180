//! Kernels on the CPU: their text behind `kernels/host.h`, compiled by the C++ compiler into a library of this process.

use super::program::Program;
use super::{Backend, Grid, Module, Order, no_device};
use crate::error::Result;
use libloading::Library;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::c_void;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

const HOST: &str = include_str!("../../kernels/host.h");
/// As much as an H100 has.
const SHARED_MEMORY: usize = 227 * 1024;
const ALIGNMENT: usize = 256;

pub(super) struct Emulator {
    order: Order,
}

impl Emulator {
    pub(super) fn new(order: Order) -> Self {
        Emulator { order }
    }
}

/// A library; it has one set of fibers, so one launch at a time.
struct Compiled {
    shared_object: Library,
    busy: Mutex<()>,
}

/// Libraries that this process compiled, by the hash of their text.
fn libraries() -> MutexGuard<'static, HashMap<String, Arc<Compiled>>> {
    static LIBRARIES: OnceLock<Mutex<HashMap<String, Arc<Compiled>>>> = OnceLock::new();
    LIBRARIES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, ALIGNMENT).ok()
}

impl Backend for Emulator {
    fn name(&self) -> &str {
        "emulated GPU"
    }

    fn kind(&self) -> &str {
        "emulated"
    }

    fn shared_memory(&self) -> usize {
        SHARED_MEMORY
    }

    fn processors(&self) -> usize {
        2
    }

    unsafe fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: `bytes` is not zero.
        let at = layout(bytes).map_or(std::ptr::null_mut(), |l| unsafe { alloc_zeroed(l) });
        if at.is_null() { Err(no_device("emulated", format!("no memory for {bytes} bytes"), "run fewer replicas")) } else { Ok(at as u64) }
    }

    unsafe fn free(&self, at: u64, bytes: usize) {
        if let Some(layout) = layout(bytes) {
            // SAFETY: as the caller promises.
            unsafe { dealloc(at as *mut u8, layout) }
        }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn compile(&self, program: &Program) -> Result<Arc<dyn Module>> {
        let mut libraries = libraries();
        let hash = program.hash("");
        let compiled = match libraries.get(&hash) {
            Some(compiled) => compiled.clone(),
            None => {
                let compiled = Compiled { shared_object: build(program)?, busy: Mutex::new(()) };
                libraries.entry(hash).or_insert(Arc::new(compiled)).clone()
            }
        };
        Ok(Arc::new(Emulated { compiled, order: self.order }))
    }
}

/// Compiles in a directory of its own, which nobody else can write to, and removes it.
fn build(program: &Program) -> Result<Library> {
    let fail = |what: String| no_device("emulated", what, "kernels on the CPU need a C++ compiler; install g++, or set CXX");
    let directory = private_directory().map_err(|e| fail(format!("no directory for the compiler: {e}")))?;
    let library = (|| {
        let (text, library) = (directory.join("kernels.cpp"), directory.join("kernels.so"));
        std::fs::write(&text, format!("{HOST}\n{}", program.source)).map_err(|e| fail(format!("{}: {e}", text.display())))?;
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-o"])
            .args([&library, &text])
            .output()
            .map_err(|e| fail(format!("{compiler}: {e}")))?;
        if !output.status.success() {
            return Err(fail(format!("{compiler} refuses the kernels:\n{}", String::from_utf8_lossy(&output.stderr))));
        }
        // SAFETY: the library was made a moment ago from text of this program; it has no initialisation of its own.
        unsafe { Library::new(&library) }.map_err(|e| fail(format!("{}: {e}", library.display())))
    })();
    let _ = std::fs::remove_dir_all(&directory);
    library
}

fn private_directory() -> std::io::Result<std::path::PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    // A name is never used again: the loader takes libraries of one path for one library.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..1000 {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("scorefield-kernels-{}-{n}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}

struct Emulated {
    compiled: Arc<Compiled>,
    order: Order,
}

impl Module for Emulated {
    unsafe fn launch(&self, kernel: &str, grid: Grid, parameters: &[u8]) -> Result<()> {
        let fail = |e: libloading::Error| no_device("emulated", format!("kernel {kernel}: {e}"), "this is a mistake in the program");
        // SAFETY: `KERNEL` in host.h declares both functions like this.
        let (size, run) = unsafe {
            (
                self.compiled.shared_object.get::<extern "C" fn() -> usize>(format!("{kernel}_size")).map_err(fail)?,
                self.compiled.shared_object.get::<extern "C" fn(u32, u32, usize, i32, *const c_void)>(kernel).map_err(fail)?,
            )
        };
        assert_eq!(size(), parameters.len(), "kernel {kernel} has parameters of another layout");
        let _alone = self.compiled.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let order = match self.order {
            Order::Forwards => 0,
            Order::Backwards => 1,
            Order::Shuffled => 2,
        };
        // Kernels ask for their alignment of 8 bytes.
        let aligned: Vec<u64> = parameters.chunks(8).map(|c| u64::from_ne_bytes(std::array::from_fn(|k| c[k]))).collect();
        run(grid.blocks, grid.threads, grid.shared, order, aligned.as_ptr().cast());
        Ok(())
    }
}
