//! NVRTC, NVIDIA's compiler as a library, loaded when it is needed; no GPU is needed to compile.

use super::program::Program;
use super::{DeviceModel, no_device};
use crate::array::DType;
use crate::error::Result;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

type Handle = *mut c_void;

/// The compiler that was found on this machine.
pub struct Nvrtc {
    shared_object: Library,
    /// Major and minor version.
    pub version: (i32, i32),
    /// Compute capabilities it compiles for, such as 90 for 9.0, ascending.
    pub targets: Vec<i32>,
}

/// Where the library may be: where the system looks, in CUDA's directory, in a Python environment.
fn candidates() -> Vec<PathBuf> {
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
    let mut found: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    let mut directories: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .chain([PathBuf::from("/usr/local/cuda")])
        .flat_map(|home| ["lib64", "lib", "bin"].map(|d| home.join(d)))
        .collect();
    for environment in ["SCOREFIELD_PEERS", "VIRTUAL_ENV"].iter().filter_map(std::env::var_os) {
        let Ok(pythons) = std::fs::read_dir(PathBuf::from(environment).join("lib")) else { continue };
        for python in pythons.flatten() {
            let nvidia = python.path().join("site-packages/nvidia");
            directories.extend(["cu13/lib", "cuda_nvrtc/lib"].map(|d| nvidia.join(d)));
        }
    }
    for directory in directories {
        found.extend(names.iter().map(|n| directory.join(n)).filter(|p| p.exists()));
    }
    found
}

impl Nvrtc {
    /// The compiler of this machine.
    ///
    /// # Errors
    /// Where there is none.
    pub fn get() -> Result<&'static Nvrtc> {
        static NVRTC: OnceLock<Option<Nvrtc>> = OnceLock::new();
        match NVRTC.get_or_init(|| candidates().iter().find_map(|path| Nvrtc::load(path))) {
            Some(nvrtc) => Ok(nvrtc),
            None => Err(no_device(
                "cuda",
                "NVRTC, the compiler of kernels, is not on this machine",
                "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` in the environment that VIRTUAL_ENV names; or use --device cpu",
            )),
        }
    }

    fn load(path: &std::path::Path) -> Option<Nvrtc> {
        // Its own half looks for the other half by name alone, which finds nothing outside the system's directories unless it
        // is there already.
        let beside = path.parent().and_then(|d| std::fs::read_dir(d).ok()).into_iter().flatten().flatten().map(|e| e.path());
        let is_other_half = |p: &PathBuf| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("libnvrtc-builtins.so") && !name.contains(".alt.")
        };
        // SAFETY: NVRTC's initialisation has no requirements; the signatures below are those of its documentation.
        unsafe {
            for half in beside.filter(is_other_half) {
                std::mem::forget(Library::new(half));
            }
            let library = Library::new(path).ok()?;
            let (mut major, mut minor, mut n) = (0, 0, 0);
            let version = library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvrtcVersion").ok()?;
            if version(&mut major, &mut minor) != 0 {
                return None;
            }
            let count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetNumSupportedArchs").ok()?;
            if count(&mut n) != 0 {
                return None;
            }
            let mut targets = vec![0; n.max(0) as usize];
            let list = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("nvrtcGetSupportedArchs").ok()?;
            if list(targets.as_mut_ptr()) != 0 {
                return None;
            }
            targets.sort_unstable();
            Some(Nvrtc { shared_object: library, version: (major, minor), targets })
        }
    }

    /// The size in bytes of the kernels of `model`, with rigid bonds, which come on top of all else, for replicas of up to `atoms`
    /// atoms, on GPUs of compute capability `target` (90 for 9.0). For tests of kernels where there is no GPU.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn check(&self, model: &DeviceModel, dtype: DType, atoms: usize, target: i32) -> Result<usize> {
        self.compile(&Program::new(model, dtype, atoms, true), target).map(|c| c.len())
    }

    /// The size in bytes of the kernels of `text`, which [`Device::kernels`](super::Device::kernels) takes, for GPUs of `target`.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn check_kernels(&self, text: &str, dtype: DType, target: i32) -> Result<usize> {
        self.compile(&Program::plain(text, dtype), target).map(|c| c.len())
    }

    /// Compiles for GPUs of compute capability `target`: to their machine code (CUBIN) where this NVRTC knows them, else to
    /// the newest portable code that they understand (PTX, which ends with a zero byte).
    pub(super) fn compile(&self, program: &Program, target: i32) -> Result<Vec<u8>> {
        let fail = |what: String| no_device("cuda", what, "use --device cpu");
        let Some(&newest) = self.targets.iter().rfind(|&&t| t <= target) else {
            let (major, minor) = self.version;
            return Err(fail(format!("NVRTC {major}.{minor} does not know GPUs as old as sm_{target}")));
        };
        let machine_code = newest == target;
        let options = [
            format!("--gpu-architecture={}_{newest}", if machine_code { "sm" } else { "compute" }),
            "--std=c++17".into(),
            // Products and sums are fused only where the text says so: `run` and `evaluate` must give the same bits, which a
            // compiler that fuses as it likes in each of them does not.
            "--fmad=false".into(),
        ];
        let text = |s: &str| CString::new(s).map_err(|e| fail(e.to_string()));
        let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let (source, name) = (text(&program.source)?, text("kernels.cu")?);
        // SAFETY: the signatures are those of NVRTC's documentation; every pointer lives through its call, and the handle is
        // destroyed on every way out.
        unsafe {
            let missing = |e: libloading::Error| fail(format!("NVRTC: {e}"));
            let create =
                self.shared_object
                    .get::<unsafe extern "C" fn(
                        *mut Handle,
                        *const c_char,
                        *const c_char,
                        c_int,
                        *const *const c_char,
                        *const *const c_char,
                    ) -> c_int>("nvrtcCreateProgram")
                    .map_err(missing)?;
            let compile = self
                .shared_object
                .get::<unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int>("nvrtcCompileProgram")
                .map_err(missing)?;
            let destroy = self.shared_object.get::<unsafe extern "C" fn(*mut Handle) -> c_int>("nvrtcDestroyProgram").map_err(missing)?;
            let sized = |what: &str, handle: Handle| -> Result<Vec<u8>> {
                let size = self
                    .shared_object
                    .get::<unsafe extern "C" fn(Handle, *mut usize) -> c_int>(format!("nvrtcGet{what}Size"))
                    .map_err(missing)?;
                let get = self
                    .shared_object
                    .get::<unsafe extern "C" fn(Handle, *mut c_char) -> c_int>(format!("nvrtcGet{what}"))
                    .map_err(missing)?;
                let mut n = 0;
                let mut bytes = if size(handle, &mut n) == 0 { vec![0u8; n] } else { Vec::new() };
                match bytes.is_empty() || get(handle, bytes.as_mut_ptr().cast()) == 0 {
                    true => Ok(bytes),
                    false => Err(fail(format!("NVRTC gives no {what}"))),
                }
            };
            let mut handle: Handle = std::ptr::null_mut();
            if create(&mut handle, source.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null()) != 0 {
                return Err(fail("NVRTC cannot take a program".into()));
            }
            let status = compile(handle, options.len() as c_int, options.as_ptr());
            let result = if status == 0 {
                sized(if machine_code { "CUBIN" } else { "PTX" }, handle)
            } else {
                let log = sized("ProgramLog", handle).unwrap_or_default();
                let log =
                    CStr::from_bytes_until_nul(&log).map_or_else(|_| format!("status {status}"), |l| l.to_string_lossy().into_owned());
                Err(fail(format!("NVRTC refuses the kernels for sm_{target}:\n{log}")))
            };
            destroy(&mut handle);
            result
        }
    }
}
