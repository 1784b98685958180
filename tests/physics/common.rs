//! What the physics tests share: replicas under a propagator, averages with errors, the molecule, reference files.

use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, ForceProvider, Input, Noise, Output, Propagator, Purpose, Quantity, State, System, Want,
};
use scorefield_models::{Built, Toy, parse_spec};
use std::path::PathBuf;
use std::sync::Arc;

/// Boltzmann's constant times 300 K in kJ/mol.
pub(super) const KT_300: f64 = scorefield_integrators::units::BOLTZMANN * 300.0;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mean {
    pub mean: f64,
    pub error: f64,
}

impl Mean {
    /// Of independent values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for x in values {
            n += 1.0;
            let d = x - mean;
            mean += d / n;
            squares += d * (x - mean);
        }
        Mean { mean, error: (squares / (n - 1.0) / n).sqrt() }
    }

    /// How many standard errors lie between this and an exact value.
    pub(super) fn sigmas_from(self, exact: f64) -> f64 {
        (self.mean - exact).abs() / self.error
    }

    /// Checks against `exact` within four standard errors; the error itself must be below `resolution`, so that the check
    /// can fail.
    #[track_caller]
    pub(super) fn check(self, exact: f64, resolution: f64, what: &str) {
        assert!(self.error < resolution, "{what}: {self} says too little; an error below {resolution:.2e} was expected");
        assert!(self.sigmas_from(exact) < 4.0, "{what}: {self}, exactly {exact:.6}: {:.1} standard errors", self.sigmas_from(exact));
    }
}

impl std::fmt::Display for Mean {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.6} ± {:.6}", self.mean, self.error)
    }
}

/// Replicas of one system under a propagator, in one thread.
pub(super) struct Run {
    pub batch: Batch,
    pub state: State,
    pub out: Output,
    pub provider: Box<dyn ForceProvider>,
    pub propagator: Box<dyn Propagator>,
    pub noise: Noise,
}

/// How a [`Run`] begins.
#[derive(Clone)]
pub(super) struct Start<'a> {
    pub provider: &'a dyn ForceProvider,
    pub system: Arc<System>,
    /// Positions `[B, N, 3]`; one replica's where all begin alike.
    pub positions: &'a [f64],
    pub replicas: usize,
    pub kt: f64,
    pub dtype: DType,
    pub seed: u64,
    pub remove_drift: bool,
}

impl Run {
    /// Replicas at `start` with velocities drawn at its temperature.
    pub(super) fn new(start: &Start<'_>, spec: &DynamicsSpec) -> Self {
        let units = start.provider.capabilities().units;
        let dynamics = Dynamics::new(spec, units, start.remove_drift).unwrap();
        Self::of(start, Box::new(dynamics), spec.has_velocities())
    }

    /// The same under any propagator.
    pub(super) fn of(start: &Start<'_>, propagator: Box<dyn Propagator>, moving: bool) -> Self {
        let batch = Batch::uniform(start.system.clone(), start.replicas, 0).unwrap();
        let copies = 3 * batch.atoms() / start.positions.len();
        let mut state = State::at_rest(&batch, &start.positions.repeat(copies), start.dtype).unwrap();
        state.kt.fill(start.kt);
        let noise = Noise::new(start.seed);
        if moving {
            draw_velocities(&batch, &mut state, noise, start.remove_drift);
        }
        let mut run = Run {
            out: Output::new(&batch, start.dtype, Want::ENERGY),
            batch,
            state,
            provider: start.provider.fork().unwrap(),
            propagator,
            noise,
        };
        run.with(|propagator, ctx| propagator.prepare(ctx));
        run
    }

    fn with(&mut self, f: impl FnOnce(&mut dyn Propagator, &mut Context<'_>) -> scorefield_integrators::Result<()>) {
        let mut ctx =
            Context { batch: &self.batch, state: &mut self.state, provider: &mut *self.provider, out: &mut self.out, noise: self.noise };
        f(&mut *self.propagator, &mut ctx).unwrap();
    }

    /// Advances by `steps`.
    pub(super) fn run(&mut self, steps: u64) {
        self.with(|propagator, ctx| propagator.run(ctx, steps));
    }

    /// Brings energies to the present positions.
    pub(super) fn energies(&mut self) -> &[f64] {
        let input = Input {
            batch: &self.batch,
            positions: self.state.positions(),
            cells: self.state.cells.as_deref(),
            clock: self.state.clock,
            want: Want::ENERGY,
        };
        self.provider.evaluate(&input, &mut self.out).unwrap();
        &self.out.energy
    }

    /// Kinetic energies `[B]`.
    pub(super) fn kinetic(&self) -> Vec<f64> {
        (0..self.batch.replicas()).map(|b| self.state.kinetic_energy(&self.batch, b)).collect()
    }
}

/// The provider and system that `spec` names.
pub(super) fn toy(spec: &str) -> (Box<dyn ForceProvider>, Toy) {
    let Built { provider, toy, .. } = parse_spec(spec).unwrap().build().unwrap();
    (provider, toy.expect("a model with a system of its own"))
}

/// A pool of `threads` threads.
pub(super) fn pool(threads: usize) -> Arc<rayon::ThreadPool> {
    Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
}

/// Every coordinate along `axes` moved by a normal random number times `amplitude`.
pub(super) fn displaced(positions: &[f64], axes: [bool; 3], amplitude: f64, seed: u64) -> Vec<f64> {
    let move_atom = |(i, row): (usize, &[f64])| {
        let z = Noise::new(seed).normals(i as u32, 0, 0, Purpose::Displacement);
        [0, 1, 2].map(|a| if axes[a] { row[a] + amplitude * z[a] } else { row[a] })
    };
    positions.chunks_exact(3).enumerate().flat_map(move_atom).collect()
}

/// Step and friction as bare numbers.
pub(super) fn reduced(name: &str, dt: f64, friction: f64) -> DynamicsSpec {
    DynamicsSpec::named(name, Quantity::bare(dt), Quantity::bare(friction)).unwrap()
}

/// Step in fs and friction in 1/ps.
pub(super) fn si(name: &str, femtoseconds: f64, friction: f64) -> DynamicsSpec {
    DynamicsSpec::named(name, Quantity::new(femtoseconds, "fs"), Quantity::new(friction, "/ps")).unwrap()
}

/// Alanine dipeptide under a force field, with some of its structures.
pub(super) struct Molecule {
    pub provider: Box<dyn ForceProvider>,
    pub system: Arc<System>,
    /// Positions `[N, 3]` of the reference structures, in nm.
    pub frames: Vec<Vec<f64>>,
    /// What the reference says about each.
    pub reference: Vec<serde_json::Value>,
}

impl Molecule {
    /// The committed case `name` of `tests/data/mechanics`.
    pub(super) fn committed(name: &str) -> Self {
        Self::read(&format!("{}/tests/data/mechanics/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    /// `path.system.xml` with the structures of `path.reference.json`.
    pub(super) fn read(path: &str) -> Self {
        let built = parse_spec(&format!("mm:{path}.system.xml")).unwrap().build().unwrap();
        let mechanics = built.mechanics.expect("a force field");
        let mut system = System::particles("molecule", mechanics.atoms(), 1.0);
        mechanics.apply_to(&mut system, path).unwrap();
        let reference = std::fs::read_to_string(format!("{path}.reference.json")).unwrap();
        let reference: Vec<serde_json::Value> = serde_json::from_str(&reference).unwrap();
        let frames = reference.iter().map(|f| numbers(&f["positions_nm"])).collect();
        Molecule { provider: built.provider, system: Arc::new(system), frames, reference }
    }

    /// `replicas` structures, the reference ones in turn.
    pub(super) fn structures(&self, replicas: usize) -> Vec<f64> {
        self.frames.iter().cycle().take(replicas).flatten().copied().collect()
    }
}

/// The numbers of a JSON array, or of an array of arrays.
pub(super) fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(list) => list.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().expect("a number")],
    }
}

/// The committed file `tests/data/NAME` as JSON.
pub(super) fn json(name: &str) -> serde_json::Value {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))).unwrap()
}

/// A path in the reference data, which is found through `SCOREFIELD_REFERENCE`, else beside the workspace. `None`, and a
/// line on stderr, where it is absent; under CI, where the variable says that it was installed, that is a failure.
pub(super) fn reference(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("SCOREFIELD_REFERENCE");
    let folder = named.clone().map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    let must = named.is_some() && std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!must, "{} is missing, though SCOREFIELD_REFERENCE says where reference data are", path.display());
    eprintln!("skipped: {} is missing; SCOREFIELD_REFERENCE names the folder of reference data", path.display());
    None
}

/// `‖a − b‖ / ‖b‖`.
pub(super) fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Energies `[B]` and forces of structures `[B, N, 3]` of one system.
pub(super) fn evaluate(provider: &dyn ForceProvider, system: &Arc<System>, positions: &[f64], dtype: DType) -> (Vec<f64>, Vec<f64>) {
    let mut provider = provider.fork().unwrap();
    let batch = Batch::uniform(system.clone(), positions.len() / (3 * system.len()), 0).unwrap();
    let state = State::at_rest(&batch, positions, dtype).unwrap();
    let mut out = Output::new(&batch, dtype, Want::ENERGY);
    provider.prepare(&batch, dtype).unwrap();
    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::ENERGY };
    provider.evaluate(&input, &mut out).unwrap();
    (out.energy.clone(), out.forces.to_f64())
}
