//! The C interface of scorefield. What every function means is written in `include/scorefield.h`; here it is done.
//!
//! Nothing unwinds into the caller: every function runs inside `error::guard`.

mod error;
mod local;

pub use local::{Domain, DomainResults, scorefield_evaluate_local, scorefield_local_range};

use error::{Failure, guard, invalid};
use scorefield::embed::{self, Results, Spec};
use scorefield_models::local::LocalForces;
use std::ffi::{CStr, CString, c_char};
use std::sync::{Mutex, MutexGuard};

/// Version of structs and meanings.
pub const ABI_VERSION: u32 = 1;

/// An open model.
pub struct Model {
    capabilities: CString,
    atoms: usize,
    /// Range of the model on domains in nm, or why there is none.
    local_range: Result<f64, String>,
    inner: Mutex<Inner>,
}

/// What calls take in turns.
struct Inner {
    model: embed::Model,
    /// Made when a domain is first evaluated.
    local: Option<Box<dyn LocalForces>>,
}

/// Structures to evaluate.
#[repr(C)]
pub struct Batch {
    /// Bytes of this struct.
    pub size: usize,
    /// Number of structures `B`.
    pub structures: usize,
    /// Positions `[B, N, 3]`.
    pub positions: *const f64,
    /// Cells `[B, 3, 3]`, or null.
    pub cells: *const f64,
}

/// Where results go; null where they are not wanted.
#[repr(C)]
pub struct BatchResults {
    /// Bytes of this struct.
    pub size: usize,
    /// `[B, N, 3]`
    pub forces: *mut f64,
    /// `[B]`
    pub energy: *mut f64,
    /// `[B, 3, 3]`
    pub virial: *mut f64,
    /// `[B, N]`
    pub atom_energy: *mut f64,
    /// `[B]`
    pub energy_deviation: *mut f64,
    /// `[B, N, 3]`
    pub force_deviation: *mut f64,
}

impl Model {
    /// The model behind a caller's pointer.
    ///
    /// # Safety
    /// `model` is null or came from [`scorefield_open`] and is not closed yet.
    unsafe fn of<'a>(model: *const Model) -> Result<&'a Model, Failure> {
        // SAFETY: as the caller promised.
        unsafe { model.as_ref() }.ok_or_else(|| invalid("the model is NULL; scorefield_open returned it with an error"))
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, Failure> {
        self.inner.lock().map_err(|_| Failure::panicked("a panic happened in this model before; close it and open another"))
    }

    fn open(text: &str) -> Result<Model, Failure> {
        let model = embed::Model::open(&Spec::from_json(text)?)?;
        let capabilities = CString::new(model.describe().to_string()).map_err(|_| invalid("the model's name has a zero byte"))?;
        let local_range = model.local_range().map_err(|e| e.to_string());
        let atoms = model.system().map_or(0, |s| s.len());
        Ok(Model { capabilities, atoms, local_range, inner: Mutex::new(Inner { model, local: None }) })
    }
}

/// Checks the version that a struct was made for.
fn check_size<T>(name: &str, size: usize) -> Result<(), Failure> {
    if size == size_of::<T>() {
        return Ok(());
    }
    let want = size_of::<T>();
    Err(invalid(format!("{name}.size is {size}, but it is {want} in version {ABI_VERSION}; set it to sizeof({name})")))
}

/// The numbers behind a pointer; none where it is null.
///
/// # Safety
/// `pointer` is null or points to `len` numbers that nobody changes meanwhile.
unsafe fn slice<'a, T>(pointer: *const T, len: usize) -> Option<&'a [T]> {
    // SAFETY: as the caller promised.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Room for numbers behind a pointer; none where it is null.
///
/// # Safety
/// `pointer` is null or points to `len` numbers that nobody else uses meanwhile.
unsafe fn slice_mut<'a, T>(pointer: *mut T, len: usize) -> Option<&'a mut [T]> {
    // SAFETY: as the caller promised.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn scorefield_abi_version() -> u32 {
    ABI_VERSION
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn scorefield_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// See the header.
///
/// # Safety
/// `spec` is null or a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_open(spec: *const c_char) -> *mut Model {
    let mut model = std::ptr::null_mut();
    guard(|| {
        if spec.is_null() {
            return Err(invalid("the specification is NULL"));
        }
        // SAFETY: as the caller promised.
        let text = unsafe { CStr::from_ptr(spec) }.to_str().map_err(|e| invalid(format!("the specification is not UTF-8: {e}")))?;
        model = Box::into_raw(Box::new(Model::open(text)?));
        Ok(())
    });
    model
}

/// See the header.
///
/// # Safety
/// `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_capabilities(model: *const Model) -> *const c_char {
    let mut text = std::ptr::null();
    guard(|| {
        // SAFETY: as the caller promised.
        text = unsafe { Model::of(model) }?.capabilities.as_ptr();
        Ok(())
    });
    text
}

/// See the header.
///
/// # Safety
/// `model` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_atoms(model: *const Model) -> usize {
    let mut atoms = 0;
    guard(|| {
        // SAFETY: as the caller promised.
        atoms = unsafe { Model::of(model) }?.atoms;
        Ok(())
    });
    atoms
}

/// See the header.
///
/// # Safety
/// `symbol` is null or a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_element(symbol: *const c_char) -> u32 {
    let mut number = 0;
    guard(|| {
        if symbol.is_null() {
            return Err(invalid("the symbol is NULL"));
        }
        // SAFETY: as the caller promised.
        let text = unsafe { CStr::from_ptr(symbol) }.to_string_lossy();
        number = embed::Species::Symbol(text.into_owned()).number()?;
        Ok(())
    });
    number
}

/// See the header.
///
/// # Safety
/// `model` is null or open, `batch` and `results` are null or point to structs whose pointers are null or have room for what the
/// header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_evaluate(model: *mut Model, batch: *const Batch, results: *const BatchResults) -> i32 {
    guard(|| {
        // SAFETY: as the caller promised.
        let (model, batch, results) = unsafe { (Model::of(model)?, batch.as_ref(), results.as_ref()) };
        let (Some(batch), Some(results)) = (batch, results) else { return Err(invalid("batch or results is NULL")) };
        check_size::<Batch>("scorefield_batch", batch.size)?;
        check_size::<BatchResults>("scorefield_results", results.size)?;
        let b = batch.structures;
        let most = isize::MAX as usize / size_of::<f64>();
        let Some(n3) = model.atoms.checked_mul(3).filter(|n3| n3.max(&9).checked_mul(b).is_some_and(|all| all <= most)) else {
            return Err(invalid(format!("{b} structures are more than there is memory for")));
        };
        if n3 == 0 {
            return Err(invalid("this model was opened without atoms; give \"types\" or a \"structure\""));
        }
        // SAFETY: as the caller promised; the sizes are those in the header.
        let (positions, cells, mut to) = unsafe {
            let positions = slice(batch.positions, b * n3).ok_or_else(|| invalid("positions are NULL"))?;
            let to = Results {
                forces: slice_mut(results.forces, b * n3),
                energy: slice_mut(results.energy, b),
                virial: slice_mut(results.virial, b * 9),
                atom_energy: slice_mut(results.atom_energy, b * n3 / 3),
                energy_deviation: slice_mut(results.energy_deviation, b),
                force_deviation: slice_mut(results.force_deviation, b * n3),
            };
            (positions, slice(batch.cells, b * 9), to)
        };
        Ok(model.lock()?.model.evaluate(positions, cells, &mut to)?)
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn scorefield_last_error() -> *const c_char {
    error::last()
}

/// See the header.
///
/// # Safety
/// `model` is null or open, and no other call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scorefield_close(model: *mut Model) {
    if !model.is_null() {
        guard(|| {
            // SAFETY: it came from `Box::into_raw`, and the caller promised that nobody uses it any more.
            drop(unsafe { Box::from_raw(model) });
            Ok(())
        });
    }
}
