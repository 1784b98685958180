//! The compiled half of the Python package `scorefield`; the other half, which people see, is in `python/scorefield`.
//!
//! Arrays come in through the buffer protocol as contiguous doubles and results go into arrays that Python allocated: nothing is
//! copied here in double precision. The interpreter's lock is released while forces are computed.

mod arrays;
mod error;
mod run;

use arrays::{Numbers, Room};
use error::raise;
use pyo3::prelude::*;
use scorefield::embed::{self, Results, Spec};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Any number, where a lock was held during a panic: a model's scratch is made anew for every batch.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open model.
#[pyclass(frozen, module = "scorefield._native")]
struct Model {
    inner: Mutex<embed::Model>,
}

#[pymethods]
impl Model {
    /// Opens what the JSON text describes.
    #[new]
    fn new(py: Python<'_>, spec: &str) -> PyResult<Self> {
        let model = py.detach(|| embed::Model::open(&Spec::from_json(spec)?)).map_err(raise)?;
        Ok(Model { inner: Mutex::new(model) })
    }

    /// Capabilities as JSON.
    fn describe(&self, py: Python<'_>) -> String {
        py.detach(|| lock(&self.inner).describe().to_string())
    }

    /// Types, masses, start positions and cell; `None` where there are none.
    #[allow(clippy::type_complexity)]
    fn atoms(&self, py: Python<'_>) -> (Option<Vec<u32>>, Option<Vec<f64>>, Option<Vec<f64>>, Option<Vec<f64>>) {
        py.detach(|| {
            let model = lock(&self.inner);
            (
                model.system().map(|s| s.types.clone()),
                model.system().map(|s| s.masses.clone()),
                model.start().map(<[f64]>::to_vec),
                model.cell().map(|c| c.to_vec()),
            )
        })
    }

    /// The same model acts on other atoms from now on.
    fn set_types(&self, py: Python<'_>, types: Vec<u32>) -> PyResult<()> {
        py.detach(|| lock(&self.inner).set_types(&types)).map_err(raise)
    }

    /// Evaluates `positions` `[B, N, 3]`; arrays that are there are filled.
    #[pyo3(signature = (positions, cells, forces, energy, virial, atom_energy, energy_deviation, force_deviation))]
    fn evaluate(
        &self,
        py: Python<'_>,
        positions: Numbers<'_>,
        cells: Option<Numbers<'_>>,
        mut forces: Option<Room<'_>>,
        mut energy: Option<Room<'_>>,
        mut virial: Option<Room<'_>>,
        mut atom_energy: Option<Room<'_>>,
        mut energy_deviation: Option<Room<'_>>,
        mut force_deviation: Option<Room<'_>>,
    ) -> PyResult<()> {
        let x = positions.numbers();
        let cells = cells.as_ref().map(Numbers::numbers);
        let mut to = Results {
            forces: forces.as_mut().map(Room::numbers),
            energy: energy.as_mut().map(Room::numbers),
            virial: virial.as_mut().map(Room::numbers),
            atom_energy: atom_energy.as_mut().map(Room::numbers),
            energy_deviation: energy_deviation.as_mut().map(Room::numbers),
            force_deviation: force_deviation.as_mut().map(Room::numbers),
        };
        py.detach(|| lock(&self.inner).evaluate(x, cells, &mut to)).map_err(raise)
    }
}

/// The compiled module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("Error", module.py().get_type::<error::Error>())?;
    module.add_class::<Model>()?;
    module.add_class::<run::Dynamics>()?;
    module.add_function(wrap_pyfunction!(run::relax, module)?)?;
    module.add_function(wrap_pyfunction!(run::sample, module)?)
}
