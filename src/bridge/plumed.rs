//! PLUMED's biases on any provider, by its kernel (`libplumedKernel.so`), which is looked for when a run begins.
//!
//! Each replica has a PLUMED of its own, which hears of every step once, in order: history belongs to it (hills, averages, files).
//! Whoever evaluates forces twice at the same positions gets them twice, without another step. Numbers go over in nm, ps, kJ/mol and
//! u, which are PLUMED's own; its virial is `Σ x ⊗ ∂V/∂x`, the negative of ours.

use scorefield_integrators::state::Cell;
use scorefield_integrators::{
    Batch, Capabilities, Clock, DType, Error as ContractError, ForceProvider, Input, Kind, Output, Result as ContractResult, UnitSystem,
    Want,
};
use scorefield_models::combine::joined;
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Names the kernel, as for PLUMED's own programs.
const KERNEL_VARIABLE: &str = "PLUMED_KERNEL";
/// Where the dynamic linker looks for it otherwise.
const KERNEL: &str = "libplumedKernel.so";
/// What stands for the number of a replica in the input.
const REPLICA: &str = "{replica}";
/// The oldest interface with all commands that are used here.
const OLDEST_API: c_int = 5;

type Create = unsafe extern "C" fn() -> *mut c_void;
type Command = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_void);
type Finalize = unsafe extern "C" fn(*mut c_void);

/// What PLUMED is told when a run begins.
#[derive(Clone, Debug)]
pub struct PlumedSettings {
    /// Its input file; `{replica}` in it is replaced by the number of the replica.
    pub input: PathBuf,
    /// Directory for inputs and logs of the replicas.
    pub directory: PathBuf,
    /// Time of a step in ps.
    pub dt: f64,
    /// kT in kJ/mol.
    pub kt: f64,
    /// Units of the model.
    pub units: UnitSystem,
    /// Replicas of the run.
    pub replicas: usize,
    /// The step from which on PLUMED takes part: what is evaluated before, while a run is put back to where it was, is none of its
    /// steps. From a step above 0 on it goes on with its files (`RESTART`).
    pub begin: u64,
}

/// The kernel, loaded.
struct Kernel {
    create: Create,
    command: Command,
    finalize: Finalize,
    /// Functions above live as long as this. It is never unloaded while one of them may be called.
    _library: libloading::Library,
}

/// Biased forces.
pub struct Plumed {
    capabilities: Capabilities,
    inner: Box<dyn ForceProvider>,
    kernel: Arc<Kernel>,
    settings: Arc<PlumedSettings>,
    input: Arc<str>,
    /// One for each replica, from its first step on.
    replicas: Vec<Option<Replica>>,
}

/// One PLUMED.
struct Replica {
    handle: Handle,
    /// The step it was told last; none before its first.
    step: Option<u64>,
    /// Whether this evaluation is of a new step.
    is_new: bool,
    masses: Vec<f64>,
    positions: Vec<f64>,
    forces: Vec<f64>,
    cell: Cell,
    virial: [f64; 9],
}

/// PLUMED's object.
struct Handle {
    object: *mut c_void,
    kernel: Arc<Kernel>,
}

// SAFETY: an object is used by one thread at a time, as it is owned and its methods need `&mut`; PLUMED allows different objects in
// different threads.
unsafe impl Send for Handle {}

/// Objects are made and ended one at a time: that touches what all of them share.
static MAKING: Mutex<()> = Mutex::new(());

impl Kernel {
    fn load() -> Result<Self, String> {
        let path = std::env::var_os(KERNEL_VARIABLE).map_or_else(|| PathBuf::from(KERNEL), PathBuf::from);
        let remedy = format!("set {KERNEL_VARIABLE} to the path of PLUMED's {KERNEL}");
        let fail = |e: libloading::Error| format!("PLUMED's kernel {} cannot be used: {e}; {remedy}", path.display());
        // SAFETY: loading runs initialisers of the library that the user names; symbols have the types of PLUMED's C interface.
        unsafe {
            let library = open(&path).map_err(fail)?;
            let create = *library.get::<Create>(b"plumed_plumedmain_create\0").map_err(fail)?;
            let command = *library.get::<Command>(b"plumed_plumedmain_cmd\0").map_err(fail)?;
            let finalize = *library.get::<Finalize>(b"plumed_plumedmain_finalize\0").map_err(fail)?;
            Ok(Kernel { create, command, finalize, _library: library })
        }
    }
}

/// PLUMED's own plug-ins find its symbols only where they are global.
#[cfg(unix)]
unsafe fn open(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: as the caller's.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL).map(Into::into) }
}

#[cfg(not(unix))]
unsafe fn open(path: &Path) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: as the caller's.
    unsafe { libloading::Library::new(path) }
}

impl Handle {
    fn new(kernel: Arc<Kernel>) -> Self {
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the function of the kernel, which has no arguments.
        let object = unsafe { (kernel.create)() };
        Handle { object, kernel }
    }

    /// Sends a command with a pointer to its argument.
    ///
    /// # Safety
    /// The pointer must be what PLUMED's documentation says of this command, and stay valid as long as it says.
    unsafe fn send(&mut self, command: &std::ffi::CStr, argument: *const c_void) {
        // SAFETY: the object is alive; the argument is as the caller promises.
        unsafe { (self.kernel.command)(self.object, command.as_ptr(), argument) }
    }

    /// Sends a value that PLUMED copies at once.
    fn set<T>(&mut self, command: &std::ffi::CStr, value: &T) {
        // SAFETY: commands used with this take a pointer to one value and keep no pointer.
        unsafe { self.send(command, std::ptr::from_ref(value).cast()) }
    }

    fn text(&mut self, command: &std::ffi::CStr, text: &str) -> ContractResult<()> {
        let text = CString::new(text).map_err(|_| failed("a name has a zero byte in it"))?;
        // SAFETY: a string that ends with a zero byte, copied by PLUMED.
        unsafe { self.send(command, text.as_ptr().cast()) };
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the object is alive, and nobody has it any more.
        unsafe { (self.kernel.finalize)(self.object) };
    }
}

fn failed(reason: impl Into<String>) -> ContractError {
    ContractError::Provider { provider: "PLUMED".into(), reason: reason.into() }
}

impl Plumed {
    /// `inner` under the biases that PLUMED reads from its input.
    ///
    /// # Errors
    /// Where the kernel cannot be loaded, the input cannot be read, or replicas would write to the same files.
    pub fn new(inner: Box<dyn ForceProvider>, settings: PlumedSettings) -> Result<Self, String> {
        let input = std::fs::read_to_string(&settings.input).map_err(|e| format!("{}: {e}", settings.input.display()))?;
        if settings.replicas > 1 && !input.contains(REPLICA) {
            return Err(format!(
                "{}: {} replicas would write to the same files; name them by replica, for example FILE=COLVAR.{REPLICA}",
                settings.input.display(),
                settings.replicas
            ));
        }
        let of = inner.capabilities();
        if of.kind == Kind::PseudoForce {
            return Err(format!("{} gives pseudo-forces, which have no temperature; PLUMED means nothing for them", of.name));
        }
        let mut capabilities = joined("PLUMED", &[of]).map_err(|e| e.to_string())?;
        capabilities.name = format!("{} with PLUMED", of.name);
        capabilities.atom_energy = false;
        capabilities.range = None;
        let kernel = Arc::new(Kernel::load()?);
        Ok(Plumed { capabilities, inner, kernel, settings: Arc::new(settings), input: input.into(), replicas: Vec::new() })
    }
}

impl Replica {
    fn new(plumed: &Plumed, batch: &Batch, b: usize) -> ContractResult<Self> {
        let (settings, system, id) = (&*plumed.settings, batch.system(b), batch.id(b));
        let mut handle = Handle::new(plumed.kernel.clone());
        let mut api: c_int = 0;
        // SAFETY: PLUMED writes one int.
        unsafe { handle.send(c"getApiVersion", std::ptr::from_mut(&mut api).cast()) };
        if api < OLDEST_API {
            return Err(failed(format!("its interface is version {api}, and {OLDEST_API} or later is needed; use PLUMED 2.4 or later")));
        }
        let name = |what: &str| settings.directory.join(format!("plumed.{id}.{what}"));
        let input = name("dat");
        std::fs::write(&input, plumed.input.replace(REPLICA, &id.to_string())).map_err(|e| failed(format!("{}: {e}", input.display())))?;
        let path = |p: PathBuf| p.into_os_string().into_string().map_err(|p| failed(format!("{} is no UTF-8", p.display())));
        handle.set(c"setRealPrecision", &(size_of::<f64>() as c_int));
        if settings.units == UnitSystem::Reduced {
            handle.set(c"setNaturalUnits", &0u8);
        }
        for unit in [c"setMDEnergyUnits", c"setMDLengthUnits", c"setMDTimeUnits", c"setMDMassUnits", c"setMDChargeUnits"] {
            handle.set(unit, &1f64);
        }
        handle.text(c"setPlumedDat", &path(input)?)?;
        handle.set(c"setNatoms", &(system.len() as c_int));
        handle.text(c"setMDEngine", "scorefield")?;
        handle.text(c"setLogFile", &path(name("log"))?)?;
        handle.set(c"setTimestep", &settings.dt);
        handle.set(c"setKbT", &settings.kt);
        handle.set(c"setRestart", &c_int::from(settings.begin > 0));
        // SAFETY: this command has no argument.
        unsafe { handle.send(c"init", std::ptr::null()) };
        let n = system.len();
        Ok(Replica {
            handle,
            step: None,
            is_new: false,
            masses: system.masses.clone(),
            positions: vec![0.0; 3 * n],
            forces: vec![0.0; 3 * n],
            cell: [0.0; 9],
            virial: [0.0; 9],
        })
    }

    /// Takes up positions and tells PLUMED of them; true where it needs the energy.
    fn prepare(&mut self, clock: u64, input: &Input<'_>, b: usize) -> bool {
        let range = input.batch.range3(b);
        let mut moved = false;
        for (to, k) in self.positions.iter_mut().zip(range) {
            let x = input.positions.get(k);
            moved |= x != *to;
            *to = x;
        }
        // Inside a step the clock still shows its beginning, so positions tell steps apart.
        self.is_new = moved || self.step.is_none();
        let step = match self.step {
            Some(step) if self.is_new => clock.max(step + 1),
            Some(step) => step,
            None => clock,
        };
        self.step = Some(step);
        self.virial = [0.0; 9];
        let mut needed: c_int = 0;
        self.handle.set(c"setStepLong", &(step as c_long));
        // SAFETY: PLUMED keeps these pointers until the calculation of this step, which is before they change or end.
        unsafe {
            self.handle.send(c"setPositions", self.positions.as_ptr().cast());
            self.handle.send(c"setMasses", self.masses.as_ptr().cast());
            if let Some(cells) = input.cells {
                self.cell = cells[b];
                self.handle.send(c"setBox", self.cell.as_ptr().cast());
            }
            self.handle.send(c"setForces", self.forces.as_mut_ptr().cast());
            self.handle.send(c"setVirial", self.virial.as_mut_ptr().cast());
            self.handle.send(c"prepareCalc", std::ptr::null());
            self.handle.send(c"isEnergyNeeded", std::ptr::from_mut(&mut needed).cast());
        }
        needed != 0
    }

    /// Lets PLUMED add its forces to those in `out`.
    fn perform(&mut self, input: &Input<'_>, needed: bool, out: &mut Output, b: usize) {
        let range = input.batch.range3(b);
        for (to, k) in self.forces.iter_mut().zip(range.clone()) {
            *to = out.forces.get(k);
        }
        let energy = if needed { out.energy[b] } else { 0.0 };
        let mut bias = 0.0f64;
        // SAFETY: as for `prepare`; PLUMED reads one energy and writes one bias.
        unsafe {
            if needed {
                self.handle.send(c"setEnergy", std::ptr::from_ref(&energy).cast());
            }
            self.handle.send(if self.is_new { c"performCalc" } else { c"performCalcNoUpdate" }, std::ptr::null());
            self.handle.send(c"getBias", std::ptr::from_mut(&mut bias).cast());
        }
        for (&force, k) in self.forces.iter().zip(range) {
            out.forces.set(k, force);
        }
        if input.want.energy {
            out.energy[b] += bias;
        }
        if input.want.virial {
            out.virial[b].iter_mut().zip(self.virial).for_each(|(to, v)| *to -= v);
        }
    }
}

impl ForceProvider for Plumed {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.inner.prepare(batch, dtype)?;
        self.replicas.clear();
        self.replicas.resize_with(batch.replicas(), || None);
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        let clock = match input.clock {
            Clock::Physical { time } => (time / self.settings.dt).round().max(0.0) as u64,
            Clock::Diffusion { .. } | Clock::Iteration => 0,
        };
        let mut needed = false;
        for b in 0..self.replicas.len() {
            if self.replicas[b].is_none() && clock >= self.settings.begin {
                self.replicas[b] = Some(Replica::new(self, input.batch, b)?);
            }
            if let Some(replica) = &mut self.replicas[b] {
                needed |= replica.prepare(clock, input, b);
            }
        }
        if needed && !self.capabilities.energy {
            return Err(failed("its input asks for the energy, which this model does not have"));
        }
        let want = Want { energy: input.want.energy || needed, atom_energy: false, ..input.want };
        self.inner.evaluate(&Input { want, ..*input }, out)?;
        for (b, replica) in self.replicas.iter_mut().enumerate() {
            if let Some(replica) = replica {
                replica.perform(input, needed, out, b);
            }
        }
        Ok(())
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Plumed {
            capabilities: self.capabilities.clone(),
            inner: self.inner.fork()?,
            kernel: self.kernel.clone(),
            settings: self.settings.clone(),
            input: self.input.clone(),
            replicas: Vec::new(),
        }))
    }
}
