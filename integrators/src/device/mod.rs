//! Devices: where replicas live while they move, when it is not the host's memory.
//!
//! A provider that has kernels describes them as a [`DeviceModel`]: the text of one function in CUDA C++ and its parameters.
//! Its text is put between `kernels/prelude.cu` (scalars, teams of threads, noise) and `kernels/step.cu` (every stage of a
//! [`Plan`](crate::fused::Plan), looks for divergence) and compiled for the device when a run begins. One team of threads moves
//! one replica through many steps without leaving the kernel; the host sees only what it fetches.
//!
//! Two backends. `cuda` (feature `cuda`): driver and NVRTC are loaded when they are asked for, so a program built with it starts
//! anywhere. `emulated`: the same text compiled by a C++ compiler, each thread a fiber; slow, for checking kernels without a GPU.

#[cfg(feature = "cuda")]
mod cuda;
mod emulator;
mod kernels;
mod model;
mod nvrtc;
mod program;
mod provider;
mod replicas;
#[cfg(test)]
mod tests;

pub use kernels::{Argument, Kernels, Memory};
pub use model::{DeviceModel, Field, Group};
pub use nvrtc::Nvrtc;
pub use provider::DeviceProvider;
pub use replicas::{Fetch, Replicas, Stop};

use crate::error::{Error, Result};
use program::Program;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A device as it is named in settings: `cpu`, `cuda`, `cuda:1`, `emulated`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// The host's own threads.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number among the GPUs that the driver shows.
        ordinal: usize,
    },
    /// The kernels of GPUs on the CPU, each thread a fiber: slow, for checking them.
    Emulated,
}

impl DeviceSpec {
    /// Opens the device; `None` for the host itself.
    ///
    /// # Errors
    /// Where there is no such device, or this program cannot use it.
    pub fn open(self) -> Result<Option<Device>> {
        match self {
            DeviceSpec::Cpu => Ok(None),
            DeviceSpec::Emulated => Ok(Some(Device::emulated(Order::Forwards))),
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda { ordinal } => Ok(Some(Device(Arc::new(cuda::Cuda::open(ordinal)?)))),
            #[cfg(not(feature = "cuda"))]
            DeviceSpec::Cuda { .. } => {
                Err(no_device(self, "this program was built without CUDA", "build it with --features cuda, or use --device cpu"))
            }
        }
    }
}

impl std::str::FromStr for DeviceSpec {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("cpu", "0") if text == "cpu" => Ok(DeviceSpec::Cpu),
            ("emulated", "0") if text == "emulated" => Ok(DeviceSpec::Emulated),
            ("cuda", ordinal) => match ordinal.parse() {
                Ok(ordinal) => Ok(DeviceSpec::Cuda { ordinal }),
                Err(_) => Err(format!("`{text}`: {ordinal} is not the number of a GPU; write for example cuda:0")),
            },
            _ => Err(format!("`{text}` is not a device; write cpu, cuda or cuda:N")),
        }
    }
}

impl std::fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
            DeviceSpec::Emulated => f.write_str("emulated"),
        }
    }
}

impl TryFrom<String> for DeviceSpec {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceSpec> for String {
    fn from(spec: DeviceSpec) -> String {
        spec.to_string()
    }
}

fn no_device(device: impl std::fmt::Display, what: impl Into<String>, remedy: &str) -> Error {
    Error::Device { device: device.to_string(), what: what.into(), remedy: remedy.into() }
}

/// In which order the emulator runs the threads of a block between two barriers. Results must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First thread first.
    Forwards,
    /// Last thread first.
    Backwards,
    /// Anew after every barrier.
    Shuffled,
}

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

impl Device {
    /// The emulator, which is always there; its compiler is looked for when the first kernel is compiled.
    pub fn emulated(order: Order) -> Self {
        Device(Arc::new(emulator::Emulator::new(order)))
    }

    /// What it is, for people: `NVIDIA H100 (cuda:0, sm_90)`.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What the bits of results depend on: `cuda sm_90`. Runs are resumed on devices of one kind.
    pub fn kind(&self) -> &str {
        self.0.kind()
    }

    /// Zeroed memory.
    fn buffer(&self, bytes: usize) -> Result<Buffer> {
        // SAFETY: nothing but a `Buffer` frees what is allocated here.
        let at = unsafe { self.0.allocate(bytes.max(1)) }?;
        Ok(Buffer { backend: self.0.clone(), at, bytes })
    }

    /// Memory that holds `bytes`.
    fn buffer_of(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.buffer(bytes.len())?;
        buffer.upload(0, bytes)?;
        Ok(buffer)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// Memory on a device.
struct Buffer {
    backend: Arc<dyn Backend>,
    at: u64,
    bytes: usize,
}

impl Buffer {
    /// Its address on the device.
    fn at(&self) -> u64 {
        self.at
    }

    /// Copies `bytes` to `offset`, after everything that was launched before.
    fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.bytes, "a copy of {} bytes to {offset} of {}", bytes.len(), self.bytes);
        // SAFETY: the range lies inside what `allocate` returned.
        unsafe { self.backend.upload(self.at + offset as u64, bytes) }
    }

    /// Copies from `offset` on, after everything that was launched before.
    fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.bytes, "a copy of {} bytes from {offset} of {}", bytes.len(), self.bytes);
        // SAFETY: the range lies inside what `allocate` returned.
        unsafe { self.backend.download(self.at + offset as u64, bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `Device::buffer`, freed once.
        unsafe { self.backend.free(self.at, self.bytes.max(1)) }
    }
}

/// What a kind of device can do.
trait Backend: Send + Sync {
    fn name(&self) -> &str;
    fn kind(&self) -> &str;
    /// Most bytes of shared memory of a block.
    fn shared_memory(&self) -> usize;
    /// Blocks are spread over this many processors.
    fn processors(&self) -> usize;
    /// Zeroed memory, aligned to 256 bytes.
    ///
    /// # Safety
    /// It is freed once, with [`Backend::free`].
    unsafe fn allocate(&self, bytes: usize) -> Result<u64>;
    /// # Safety
    /// `at` and `bytes` are of an [allocation](Backend::allocate).
    unsafe fn free(&self, at: u64, bytes: usize);
    /// # Safety
    /// The range lies inside an allocation.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// # Safety
    /// The range lies inside an allocation.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;
    fn compile(&self, program: &Program) -> Result<Arc<dyn Module>>;
}

/// Blocks, threads of each, bytes of shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grid {
    blocks: u32,
    threads: u32,
    shared: usize,
}

/// A compiled program.
trait Module: Send + Sync {
    /// Enqueues a kernel, whose one argument is a structure with the content `parameters`.
    ///
    /// # Safety
    /// `parameters` has the layout that the kernel declares, and its addresses are of live buffers that are large enough.
    unsafe fn launch(&self, kernel: &str, grid: Grid, parameters: &[u8]) -> Result<()>;
}
