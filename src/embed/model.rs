//! A model open for evaluation.

use super::spec::Spec;
use crate::error::{Error, Result, usage};
use crate::io::{elements, read_structure};
use crate::simulation::own_system;
use rayon::prelude::*;
use scorefield_integrators::{
    Array, AtomName, Batch, Capabilities, Cell, Clock, DType, ForceProvider, Input, Kind, Output, System, UnitSystem, View, Want,
};
use scorefield_models::ani::AniProvider;
use scorefield_models::local::LocalForces;
use scorefield_models::{Built, ProviderSpec, parse_spec};
use std::sync::Arc;

/// Most threads of one model.
const MOST_THREADS: usize = 1024;

/// A model, the system it acts on, and scratch for the batch at hand.
pub struct Model {
    spec: ProviderSpec,
    provider: Box<dyn ForceProvider>,
    mechanics: Option<scorefield_models::mechanics::Mechanics>,
    system: Option<Arc<System>>,
    start: Option<Vec<f64>>,
    cell: Option<Cell>,
    pool: Arc<rayon::ThreadPool>,
    dtype: DType,
    prepared: Option<Prepared>,
}

/// Scratch for one number of structures.
struct Prepared {
    count: usize,
    periodic: bool,
    want: Want,
    shares: Vec<Share>,
}

/// What one thread evaluates.
struct Share {
    first: usize,
    batch: Batch,
    /// Positions in single precision, where that is computed in.
    rounded: Vec<f32>,
    out: Output,
    provider: Box<dyn ForceProvider>,
    result: scorefield_integrators::Result<()>,
}

/// Where results go; what is there is wanted. `B` structures of `N` atoms.
#[derive(Default)]
pub struct Results<'a> {
    /// `[B, N, 3]` in kJ/mol/nm.
    pub forces: Option<&'a mut [f64]>,
    /// `[B]` in kJ/mol.
    pub energy: Option<&'a mut [f64]>,
    /// `[B, 3, 3]`, `−dE/dε` in kJ/mol; in open space `Σ r ⊗ f`.
    pub virial: Option<&'a mut [f64]>,
    /// `[B, N]` in kJ/mol.
    pub atom_energy: Option<&'a mut [f64]>,
    /// Standard deviation over a committee of the energy, `[B]` in kJ/mol.
    pub energy_deviation: Option<&'a mut [f64]>,
    /// Standard deviation over a committee of every force component, `[B, N, 3]` in kJ/mol/nm.
    pub force_deviation: Option<&'a mut [f64]>,
}

impl Model {
    /// Opens what `spec` describes.
    ///
    /// # Errors
    /// Where the model, the file or the atoms cannot be used.
    pub fn open(spec: &Spec) -> Result<Self> {
        if spec.model.is_empty() {
            return usage("`model` is missing; name a force provider, for example \"lj:sigma=3.405 A,epsilon=0.0103 eV\"");
        }
        if spec.structure.is_some() && (spec.types.is_some() || spec.positions.is_some()) {
            return usage("`structure` says which atoms there are and where; leave out `types` and `positions`");
        }
        let threads = spec.threads.unwrap_or(1);
        if !(1..=MOST_THREADS).contains(&threads) {
            return usage(format!("threads = {threads}: give 1 to {MOST_THREADS}"));
        }
        let parsed = parse_spec(&spec.model)?;
        let mut frame = spec.structure.as_ref().map(read_structure).transpose()?;
        let given = spec.positions.as_ref().map(|rows| rows.as_flattened().to_vec());
        let start = frame.as_ref().map(|f| f.positions.clone()).or(given);
        let mut built = parsed.build_at(start.as_deref())?;
        let mut start = start;
        if let (Some(frame), UnitSystem::Reduced) = (&mut frame, built.provider.capabilities().units) {
            // The file's numbers as they stand: its reader took them for Å.
            frame.positions.iter_mut().chain(frame.cell.iter_mut().flatten()).for_each(|x| *x *= 10.0);
            start = Some(frame.positions.clone());
            built = parsed.build_at(start.as_deref())?;
        }
        let Built { provider, toy, mechanics } = built;
        let capabilities = provider.capabilities();
        let dtype = spec.dtype.unwrap_or(DType::F64);
        if !capabilities.dtypes.contains(&dtype) {
            return usage(format!("dtype: {} does not compute in {dtype}", capabilities.name));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("scorefield-{i}")).build();
        let pool = pool.map_err(|e| Error::Run(format!("cannot start {threads} threads: {e}")))?;
        let mut cell = frame.as_ref().and_then(|f| f.cell).filter(|_| capabilities.periodic);
        let system = match (frame, &spec.types) {
            (Some(frame), _) => Some((*frame.system).clone()),
            (None, Some(types)) => {
                let types: Result<Vec<u32>> = types.iter().map(|t| t.number()).collect();
                Some(system_of(&capabilities.name, &types?))
            }
            (None, None) => {
                if let Some(toy) = &toy {
                    cell = toy.cell;
                    start = start.or_else(|| Some(toy.positions.clone()));
                }
                toy.as_ref().map(own_system).transpose()?
            }
        };
        let system = match (system, &toy) {
            // A toy of fewer axes knows where its particles live.
            (Some(s), Some(toy)) if toy.system.axes != [true; 3] && toy.system.len() == s.len() => {
                Some(System { name: s.name, ..toy.system.clone() })
            }
            (system, _) => system,
        };
        let pool = Arc::new(pool);
        let mut model = Model { spec: parsed, provider, mechanics, system: None, start, cell, pool, dtype, prepared: None };
        if let Some(mut system) = system {
            if let Some(masses) = &spec.masses {
                system.masses.clone_from(masses);
            }
            model.set_system(system)?;
        } else if spec.masses.is_some() {
            return usage("`masses` without atoms; give `types` or a `structure` too");
        }
        Ok(model)
    }

    /// The same model acts on these atoms from now on.
    ///
    /// # Errors
    /// Where the model does not know a type, or describes other atoms.
    pub fn set_types(&mut self, types: &[u32]) -> Result<()> {
        if self.system.as_ref().is_some_and(|s| s.types == types) {
            return Ok(());
        }
        self.set_system(system_of(&self.provider.capabilities().name, types))
    }

    fn set_system(&mut self, mut system: System) -> Result<()> {
        if let Some(mechanics) = &self.mechanics {
            mechanics.apply_to(&mut system, &self.provider.capabilities().name).map_err(scorefield_models::Error::from)?;
        }
        let n3 = 3 * system.len();
        if let Some(start) = self.start.as_ref().filter(|s| s.len() != n3) {
            if self.system.is_none() {
                return usage(format!("{} start coordinates for {} atoms; there must be three per atom", start.len(), system.len()));
            }
            self.start = None;
        }
        let system = Arc::new(system);
        let batch = Batch::uniform(system.clone(), 1, 0)?;
        self.provider.capabilities().check_batch(&batch, false, self.dtype)?;
        self.system = Some(system);
        self.prepared = None;
        Ok(())
    }

    /// What the model can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.provider.capabilities()
    }

    /// The model, to be forked.
    pub fn provider(&self) -> &dyn ForceProvider {
        self.provider.as_ref()
    }

    /// The atoms, where they are known yet.
    pub fn system(&self) -> Option<&Arc<System>> {
        self.system.as_ref()
    }

    /// Positions `[N, 3]` that came with the structure or with the model.
    pub fn start(&self) -> Option<&[f64]> {
        self.start.as_deref()
    }

    /// The cell that came with the structure or with the model.
    pub fn cell(&self) -> Option<&Cell> {
        self.cell.as_ref()
    }

    /// Precision that forces are computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its threads.
    pub fn pool(&self) -> &Arc<rayon::ThreadPool> {
        &self.pool
    }

    /// The same forces domain by domain.
    ///
    /// # Errors
    /// Where the model is not local.
    pub fn local(&self) -> Result<Box<dyn LocalForces>> {
        Ok(self.spec.build_local()?)
    }

    /// How far the energy of an atom sees, in nm, where the model is local. Reads no weights.
    ///
    /// # Errors
    /// Where it is not, as [`Model::local`].
    pub fn local_range(&self) -> Result<f64> {
        let local = match &self.spec {
            ProviderSpec::Ani2x(_) | ProviderSpec::Ani1x(_) | ProviderSpec::Ani1ccx(_) => true,
            ProviderSpec::Weights { file } => AniProvider::recognises(file),
            _ => false,
        };
        match self.capabilities().range.filter(|_| local) {
            Some(range) => Ok(range),
            None => Ok(self.local()?.range()),
        }
    }

    /// Number of atoms.
    ///
    /// # Errors
    /// Where none are known.
    pub fn atoms(&self) -> Result<usize> {
        match &self.system {
            Some(s) => Ok(s.len()),
            None => usage(format!("{} brings no atoms along; give `types` or a `structure`", self.provider.capabilities().name)),
        }
    }

    /// Capabilities as JSON.
    pub fn describe(&self) -> serde_json::Value {
        let c = self.capabilities();
        let temperature = match c.kind {
            Kind::MeanForce { temperature_kelvin } => Some(temperature_kelvin),
            Kind::Physical | Kind::PseudoForce => None,
        };
        let si = c.units == UnitSystem::Si;
        let unit = |name: &'static str| si.then_some(name);
        serde_json::json!({
            "name": c.name,
            "kind": c.kind.name(),
            "temperature_K": temperature,
            "stiffness": c.stiffness,
            "conservative": c.conservative,
            "energy": c.energy,
            "energies_comparable": c.energies_comparable,
            // In open space the virial is Σ r ⊗ f, which needs no help.
            "virial": true,
            "virial_periodic": c.virial,
            "atom_energy": c.atom_energy,
            "uncertainty": c.uncertainty,
            "periodic": c.periodic,
            "types": c.types,
            "range_nm": c.range.filter(|_| si),
            "local_range_nm": self.local_range().ok().filter(|_| si),
            "units": {"system": if si { "si" } else { "reduced" }, "length": unit("nm"), "energy": unit("kJ/mol"), "mass": unit("u")},
            "dtype": self.dtype.to_string(),
            "threads": self.pool.current_num_threads(),
            "atoms": self.system.as_ref().map(|s| s.len()),
        })
    }

    /// Evaluates `positions` `[B, N, 3]` in nm, in open space or in `cells` `[B, 3, 3]` (rows a, b, c, in nm). Does not allocate when
    /// the number of structures and what is wanted are those of the call before.
    ///
    /// # Errors
    /// Where sizes do not fit, something wanted cannot be supplied, the model fails, or numbers are not finite: nothing that is not
    /// finite is ever returned.
    pub fn evaluate(&mut self, positions: &[f64], cells: Option<&[f64]>, to: &mut Results<'_>) -> Result<()> {
        let n3 = 3 * self.atoms()?;
        let count = positions.len() / n3;
        if count == 0 || positions.len() != count * n3 || u32::try_from(count).is_err() {
            return usage(format!(
                "positions have {} numbers; {} atoms need {n3}, or a multiple of it for several structures",
                positions.len(),
                n3 / 3
            ));
        }
        let cells = match cells.map(|c| c.as_chunks::<9>()) {
            Some((rows, [])) if rows.len() == count => Some(rows),
            Some(_) => return usage(format!("cells need 9 numbers for each of {count} structures")),
            None => None,
        };
        let want = to.want(count, n3)?;
        // In open space the virial follows from the forces.
        let inner = Want { virial: want.virial && cells.is_some(), ..want };
        self.capabilities().check_want(inner)?;
        self.check_input(positions, cells)?;
        let fits = self.prepared.as_ref().is_some_and(|p| p.count == count && p.periodic == cells.is_some() && p.want == inner);
        if !fits {
            self.prepared = None;
            self.prepared = Some(self.prepare(count, cells.is_some(), inner)?);
        }
        let Some(prepared) = &mut self.prepared else { return Err(Error::Run("nothing is prepared".into())) };
        let dtype = self.dtype;
        let work = |share: &mut Share| {
            let range = n3 * share.first..n3 * (share.first + share.batch.replicas());
            let from = &positions[range];
            let view = match dtype {
                DType::F64 => View::F64(from),
                DType::F32 => {
                    share.rounded.iter_mut().zip(from).for_each(|(to, x)| *to = *x as f32);
                    View::F32(&share.rounded)
                }
            };
            let cells = cells.map(|c| &c[share.first..share.first + share.batch.replicas()]);
            let input = Input { batch: &share.batch, positions: view, cells, clock: Clock::Physical { time: 0.0 }, want: inner };
            share.result = share.provider.evaluate(&input, &mut share.out);
        };
        match prepared.shares.as_mut_slice() {
            // A single structure is not worth waking a thread for.
            [one] => work(one),
            shares => self.pool.install(|| shares.par_iter_mut().for_each(work)),
        }
        for share in &mut prepared.shares {
            std::mem::replace(&mut share.result, Ok(()))?;
            share.check()?;
            share.deliver(n3, positions, cells.is_some(), to);
        }
        Ok(())
    }

    fn check_input(&self, positions: &[f64], cells: Option<&[Cell]>) -> Result<()> {
        if positions.iter().all(|x| x.is_finite()) && cells.is_none_or(|c| c.as_flattened().iter().all(|x| x.is_finite())) {
            return Ok(());
        }
        let Some(system) = &self.system else { return Ok(()) };
        match positions.iter().position(|x| !x.is_finite()) {
            Some(k) => usage(format!(
                "structure {}: coordinate {} of {} is {}",
                k / (3 * system.len()),
                ["x", "y", "z"][k % 3],
                system.describe_atom(k / 3 % system.len()),
                positions[k]
            )),
            None => usage("a number of a cell is not finite"),
        }
    }

    fn prepare(&self, count: usize, periodic: bool, want: Want) -> Result<Prepared> {
        let Some(system) = &self.system else { return Err(Error::Run("no atoms are known".into())) };
        let threads = self.pool.current_num_threads().min(count);
        let mut shares = Vec::with_capacity(threads);
        for i in 0..threads {
            let range = count * i / threads..count * (i + 1) / threads;
            let batch = Batch::uniform(system.clone(), range.len(), range.start as u32)?;
            let mut provider = self.provider.fork()?;
            provider.capabilities().check_batch(&batch, periodic, self.dtype)?;
            provider.prepare(&batch, self.dtype)?;
            let rounded = vec![0.0; if self.dtype == DType::F32 { 3 * batch.atoms() } else { 0 }];
            let out = Output::new(&batch, self.dtype, want);
            shares.push(Share { first: range.start, batch, rounded, out, provider, result: Ok(()) });
        }
        Ok(Prepared { count, periodic, want, shares })
    }
}

impl Share {
    /// Refuses results that are not finite.
    fn check(&self) -> Result<()> {
        let finite = match &self.out.forces {
            Array::F32(f) => f.iter().all(|x| x.is_finite()),
            Array::F64(f) => f.iter().all(|x| x.is_finite()),
        };
        let out = &self.out;
        let sums = out.energy.iter().chain(out.virial.as_flattened()).chain(&out.atom_energy);
        let all = sums.chain(&out.uncertainty.energy).chain(&out.uncertainty.forces);
        if finite && all.into_iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        let system = self.batch.system(0);
        let n3 = 3 * system.len();
        match (0..self.out.forces.len()).find(|&k| !self.out.forces.get(k).is_finite()) {
            Some(k) => Err(Error::Run(format!(
                "structure {}: force {} on {} is {}; look for overlapping atoms near it",
                self.first + k / n3,
                ["x", "y", "z"][k % 3],
                system.describe_atom(k % n3 / 3),
                self.out.forces.get(k)
            ))),
            None => Err(Error::Run("an energy or a deviation is not finite; look for overlapping atoms".into())),
        }
    }

    /// Copies results to their places.
    fn deliver(&self, n3: usize, positions: &[f64], periodic: bool, to: &mut Results<'_>) {
        let Share { first, batch, out, .. } = self;
        let (b, n) = (batch.replicas(), n3 / 3);
        if let Some(to) = &mut to.forces {
            let to = &mut to[n3 * first..n3 * (first + b)];
            match &out.forces {
                Array::F64(from) => to.copy_from_slice(from),
                Array::F32(from) => to.iter_mut().zip(from).for_each(|(to, f)| *to = f64::from(*f)),
            }
        }
        if let Some(to) = &mut to.energy {
            to[*first..first + b].copy_from_slice(&out.energy);
        }
        if let Some(to) = &mut to.virial {
            let to = &mut to[9 * first..9 * (first + b)];
            if periodic {
                to.copy_from_slice(out.virial.as_flattened());
            } else {
                to.fill(0.0);
                let x = &positions[n3 * first..];
                for k in 0..n3 * b {
                    let (virial, row) = (9 * (k / n3), k - k % 3);
                    for a in 0..3 {
                        to[virial + 3 * a + k % 3] += x[row + a] * out.forces.get(k);
                    }
                }
            }
        }
        if let Some(to) = &mut to.atom_energy {
            to[n * first..n * (first + b)].copy_from_slice(&out.atom_energy);
        }
        if let Some(to) = &mut to.energy_deviation {
            to[*first..first + b].copy_from_slice(&out.uncertainty.energy);
        }
        if let Some(to) = &mut to.force_deviation {
            to[n3 * first..n3 * (first + b)].copy_from_slice(&out.uncertainty.forces);
        }
    }
}

impl Results<'_> {
    /// Checks sizes and says what is wanted.
    fn want(&self, count: usize, n3: usize) -> Result<Want> {
        let sizes = [
            ("forces", &self.forces, n3),
            ("energy", &self.energy, 1),
            ("virial", &self.virial, 9),
            ("atom_energy", &self.atom_energy, n3 / 3),
            ("energy_deviation", &self.energy_deviation, 1),
            ("force_deviation", &self.force_deviation, n3),
        ];
        for (name, slice, each) in sizes {
            if let Some(have) = slice.as_ref().map(|s| s.len()).filter(|&have| have != each * count) {
                return usage(format!("{name} has room for {have} numbers; {count} structures need {}", each * count));
            }
        }
        Ok(Want {
            energy: self.energy.is_some(),
            virial: self.virial.is_some(),
            atom_energy: self.atom_energy.is_some(),
            uncertainty: self.energy_deviation.is_some() || self.force_deviation.is_some(),
        })
    }
}

/// Atoms of these types with the masses of their elements, 1 u where there is no such element.
fn system_of(name: &str, types: &[u32]) -> System {
    let names = types.iter().map(|&t| AtomName { atom: elements::symbol(t).into(), ..AtomName::default() });
    System {
        types: types.to_vec(),
        masses: types.iter().map(|&t| elements::mass(t).unwrap_or(1.0)).collect(),
        names: names.collect(),
        ..System::particles(format!("atoms for {name}"), types.len(), 1.0)
    }
}
