//! Dynamics, relaxation and sampling from Python.

use crate::arrays::{Numbers, Room};
use crate::error::{Error, raise};
use crate::{Model, lock};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use scorefield::embed;
use scorefield_integrators::dynamics::{draw_velocities, kinetic_temperature, thermal_energy};
use scorefield_integrators::relax::{Job, RelaxOptions, RelaxSpec, Tally, relax_all};
use scorefield_integrators::{Batch, DType, DynamicsSpec, Ensemble, Guard, Noise, Progress, Quantity, State, UnitSystem, Want};
use scorefield_models::scoremd;
use scorefield_models::scoremd::sampler::{Method, Settings};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

fn engine(error: scorefield_integrators::Error) -> PyErr {
    raise(error.into())
}

fn quantity(name: &str, text: &str) -> PyResult<Quantity> {
    text.parse().map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

/// Many replicas in motion.
#[pyclass(frozen, module = "scorefield._native")]
pub(crate) struct Dynamics {
    ensemble: Mutex<Ensemble>,
    units: UnitSystem,
    energy: bool,
}

#[pymethods]
impl Dynamics {
    /// Starts `positions` `[B, N, 3]` with drawn or given velocities.
    #[new]
    #[pyo3(signature = (model, positions, cells, velocities, integrator, dt, friction, temperature, seed))]
    fn new(
        py: Python<'_>,
        model: &Model,
        positions: Numbers<'_>,
        cells: Option<Numbers<'_>>,
        velocities: Option<Numbers<'_>>,
        integrator: &str,
        dt: &str,
        friction: &str,
        temperature: &str,
        seed: u64,
    ) -> PyResult<Self> {
        let (dt, friction) = (quantity("dt", dt)?, quantity("friction", friction)?);
        let temperature = quantity("temperature", temperature)?;
        let Some(spec) = DynamicsSpec::named(integrator, dt, friction) else {
            return Err(PyValueError::new_err(format!("`{integrator}` is no integrator; known are {}", DynamicsSpec::NAMES.join(", "))));
        };
        let (positions, cells) = (positions.numbers(), cells.as_ref().map(Numbers::numbers));
        let velocities = velocities.as_ref().map(Numbers::numbers);
        py.detach(|| {
            let model = lock(&model.inner);
            let atoms = model.atoms()?;
            let Some(system) = model.system() else { return Err(scorefield::Error::Run("no atoms are known".into())) };
            let capabilities = model.capabilities();
            let (units, energy) = (capabilities.units, capabilities.energy);
            let batch = Batch::uniform(system.clone(), positions.len() / (3 * atoms), 0)?;
            let mut state = State::at_rest(&batch, positions, model.dtype())?;
            state.cells = cells.map(|c| c.as_chunks::<9>().0.to_vec());
            state.kt = vec![thermal_energy(&temperature, units)?; batch.replicas()];
            let noise = Noise::new(seed);
            match velocities {
                Some(v) if v.len() == positions.len() => v.iter().enumerate().for_each(|(k, &v)| state.phase.set(positions.len() + k, v)),
                Some(v) => return scorefield::error::usage(format!("{} velocities for {} coordinates", v.len(), positions.len())),
                None if spec.has_velocities() => draw_velocities(&batch, &mut state, noise, false),
                None => {}
            }
            let propagator = scorefield_integrators::Dynamics::new(&spec, units, false)?;
            let pool = model.pool().clone();
            let ensemble = Ensemble::new(batch, &state, model.provider(), &propagator, noise, pool, Guard::default())?;
            Ok(Dynamics { ensemble: Mutex::new(ensemble), units, energy })
        })
        .map_err(raise)
    }

    /// Advances all replicas.
    fn run(&self, py: Python<'_>, steps: u64) -> PyResult<()> {
        py.detach(|| lock(&self.ensemble).run(steps)).map_err(engine)
    }

    /// Steps done so far.
    fn step(&self, py: Python<'_>) -> u64 {
        py.detach(|| lock(&self.ensemble).step())
    }

    /// Fills positions and velocities `[B, N, 3]`, potential and kinetic energies and temperatures `[B]`. Energies are not a number
    /// where the model has none.
    #[pyo3(signature = (positions, velocities, potential, kinetic, temperature))]
    fn read(
        &self,
        py: Python<'_>,
        mut positions: Room<'_>,
        mut velocities: Room<'_>,
        mut potential: Room<'_>,
        mut kinetic: Room<'_>,
        mut temperature: Room<'_>,
    ) -> PyResult<()> {
        let (x, v, kinetic) = (positions.numbers(), velocities.numbers(), kinetic.numbers());
        let (potential, temperature) = (potential.numbers(), temperature.numbers());
        py.detach(|| {
            let mut ensemble = lock(&self.ensemble);
            let (b, n3) = (ensemble.replicas(), 3 * ensemble.batch().atoms());
            if x.len() != n3 || v.len() != n3 || [kinetic.len(), potential.len(), temperature.len()] != [b; 3] {
                return scorefield::error::usage("arrays have the wrong sizes");
            }
            if self.energy {
                ensemble.evaluate(Want::ENERGY)?;
            }
            for r in 0..b {
                let (range, system) = (ensemble.batch().range3(r), ensemble.system(r));
                let (from_x, from_v) = (ensemble.positions(r), ensemble.velocities(r));
                for (k, to) in range.enumerate() {
                    (x[to], v[to]) = (from_x.get(k), from_v.get(k));
                }
                potential[r] = if self.energy { ensemble.energy(r) } else { f64::NAN };
                kinetic[r] = ensemble.kinetic_energy(r);
                temperature[r] = kinetic_temperature(kinetic[r], system.degrees_of_freedom(), self.units);
            }
            Ok(())
        })
        .map_err(raise)
    }
}

/// Tells Python how far it is; what it raises is kept, and stops the work.
struct Report<'a> {
    callback: Option<&'a Py<PyAny>>,
    stop: AtomicBool,
    raised: Mutex<Option<PyErr>>,
}

impl<'a> Report<'a> {
    fn new(callback: Option<&'a Py<PyAny>>) -> Self {
        Report { callback, stop: AtomicBool::new(false), raised: Mutex::new(None) }
    }

    fn tell(&self, done: usize, total: usize) -> bool {
        let said = Python::attach(|py| {
            py.check_signals()?;
            self.callback.map_or(Ok(()), |c| c.call1(py, (done, total)).map(drop))
        });
        if let Err(error) = said {
            lock(&self.raised).get_or_insert(error);
            self.stop.store(true, Ordering::Relaxed);
        }
        !self.stop.load(Ordering::Relaxed)
    }

    fn finish(self) -> PyResult<()> {
        self.raised.into_inner().unwrap_or_default().map_or(Ok(()), Err)
    }
}

/// Relaxes structures `[B, N, 3]`; per structure: energy, largest force, steps, how it ended.
#[pyfunction]
#[pyo3(signature = (model, positions, cells, relaxed, method, fmax, max_steps, progress))]
#[allow(clippy::type_complexity)]
pub(crate) fn relax(
    py: Python<'_>,
    model: &Model,
    positions: Numbers<'_>,
    cells: Option<Numbers<'_>>,
    mut relaxed: Room<'_>,
    method: &str,
    fmax: Option<&str>,
    max_steps: u64,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<(Option<f64>, f64, u64, &'static str)>> {
    let Some(mut spec) = RelaxSpec::named(method) else {
        return Err(PyValueError::new_err(format!("`{method}` is no method; known are {}", RelaxSpec::NAMES.join(", "))));
    };
    if let Some(fmax) = fmax {
        spec = spec.with_fmax(quantity("fmax", fmax)?);
    }
    let (positions, cells) = (positions.numbers(), cells.as_ref().map(|c| c.numbers().as_chunks::<9>().0));
    let to = relaxed.numbers();
    let report = Report::new(progress.as_ref());
    let results = py.detach(|| {
        let model = lock(&model.inner);
        let n3 = 3 * model.atoms()?;
        let Some(system) = model.system() else { return Err(scorefield::Error::Run("no atoms are known".into())) };
        let total = positions.len() / n3;
        let jobs = positions.chunks_exact(n3).enumerate().map(|(b, x)| Job {
            system: Arc::clone(system),
            positions: x.to_vec(),
            cell: cells.map(|c| c[b]),
        });
        let tell = |tally: &Tally| {
            report.tell(tally.converged + tally.stalled + tally.unfinished + tally.failed, total);
        };
        let options = RelaxOptions {
            dtype: model.dtype(),
            max_steps,
            threads: Some(model.pool().current_num_threads()),
            stop: Some(&report.stop),
            progress: Some(&tell),
            ..RelaxOptions::default()
        };
        let mut results = Vec::new();
        let mut failure = None;
        relax_all(jobs, model.provider(), &spec, &options, |b, result| match result {
            Ok(r) => {
                to[n3 * b..n3 * (b + 1)].copy_from_slice(&r.positions);
                let end = match r.progress {
                    Progress::Converged => "converged",
                    Progress::Stalled => "stalled",
                    Progress::Running => "unfinished",
                };
                results.push((r.energy, r.fmax, r.steps, end));
            }
            Err(e) => {
                failure.get_or_insert(scorefield::Error::Run(format!("structure {b}: {e}")));
            }
        })?;
        failure.map_or(Ok(results), Err)
    });
    report.finish()?;
    results.map_err(raise)
}

/// Draws `n` samples `[n, D]` of trained weights: the numbers, and the number of beads.
#[pyfunction]
#[pyo3(signature = (file, n, seed, sampler, steps, denoise, dtype, threads, progress))]
pub(crate) fn sample(
    py: Python<'_>,
    file: PathBuf,
    n: usize,
    seed: u64,
    sampler: &str,
    steps: usize,
    denoise: bool,
    dtype: &str,
    threads: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Vec<f64>, usize)> {
    let method: Method = serde_json::from_value(sampler.into())
        .map_err(|_| PyValueError::new_err(format!("`{sampler}` is no sampler; known are em, pc, ode and heun")))?;
    let dtype: DType = dtype.parse().map_err(PyValueError::new_err)?;
    let settings = Settings { method, times: steps, denoise, ..Settings::default() };
    if !(1..1 << 24).contains(&n) {
        return Err(PyValueError::new_err(format!("n = {n}: give 1 to {} samples", (1 << 24) - 1)));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build().map_err(|e| Error::new_err(e.to_string()))?;
    let report = Report::new(progress.as_ref());
    let drawn = py.detach(|| {
        let model = scoremd::Model::read(&file)?;
        let tell = |done| report.tell(done, n);
        let x = match dtype {
            DType::F32 => embed::draw::<f32>(&model, settings, n, seed, &pool, &tell),
            DType::F64 => embed::draw::<f64>(&model, settings, n, seed, &pool, &tell),
        }?;
        Ok((x.unwrap_or_default(), model.types.len()))
    });
    report.finish()?;
    drawn.map_err(raise)
}
