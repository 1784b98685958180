//! A force provider as the wire sees it: atomic units in, atomic units out, any number of structures at once.

use super::wire::WireError;
use rayon::prelude::*;
use scorefield_integrators::state::Cell;
use scorefield_integrators::units::{KJ_PER_HARTREE, NM_PER_BOHR};
use scorefield_integrators::{AtomName, Batch, DType, ForceProvider, Input, Kind, Output, State, System, Want};
use std::sync::Arc;

/// Most atoms of one message: 24 bytes each.
pub(super) const MAX_ATOMS: usize = 1 << 24;

/// A structure that the server may ask about: positions come from it, everything else from here.
#[derive(Clone, Debug)]
pub struct Structure {
    /// Elements, masses and names.
    pub system: Arc<System>,
    /// Whether it is periodic: then the server's cells are used, otherwise they mean nothing.
    pub periodic: bool,
}

/// Evaluates structures in atomic units.
pub struct Forces {
    structures: Vec<Structure>,
    template: Box<dyn ForceProvider>,
    pool: Arc<rayon::ThreadPool>,
    dtype: DType,
    want: Want,
    prepared: Option<Prepared>,
    /// The extras of every answer, as JSON: in atomic units and in ours.
    extras: [String; 2],
}

/// Scratch for one number of atoms and structures.
struct Prepared {
    atoms: usize,
    count: usize,
    system: Arc<System>,
    periodic: bool,
    shares: Vec<Share>,
}

/// What one thread evaluates.
struct Share {
    first: usize,
    batch: Batch,
    state: State,
    out: Output,
    provider: Box<dyn ForceProvider>,
    result: Result<(), scorefield_integrators::Error>,
}

/// One answer: energies `[B]` in hartree, forces `[B, N, 3]` in hartree/bohr, virials `[B, 3, 3]` in hartree.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) atoms: usize,
    pub(super) energy: Vec<f64>,
    pub(super) forces: Vec<f64>,
    pub(super) virial: Vec<f64>,
}

impl Forces {
    /// Serves `structures` with `provider`, in `dtype`, on the threads of `pool`.
    ///
    /// # Errors
    /// Where the provider has no units, or two structures have one number of atoms but other elements, so that a message could
    /// mean either.
    pub fn new(
        structures: Vec<Structure>,
        provider: Box<dyn ForceProvider>,
        dtype: DType,
        pool: Arc<rayon::ThreadPool>,
    ) -> Result<Self, WireError> {
        let capabilities = provider.capabilities().clone();
        if capabilities.units == scorefield_integrators::UnitSystem::Reduced {
            return Err(WireError::Forces(format!(
                "{} has reduced units, but the protocol has atomic ones; give it units, for example `lj:sigma=3.405 A,epsilon=0.0103 eV`",
                capabilities.name
            )));
        }
        for (i, a) in structures.iter().enumerate() {
            if let Some(j) = structures[..i].iter().position(|b| b.system.len() == a.system.len() && b.system.types != a.system.types) {
                return Err(WireError::Forces(format!(
                    "structures {} and {} both have {} atoms but other elements, and the server sends positions only; give one of them",
                    j + 1,
                    i + 1,
                    a.system.len()
                )));
            }
        }
        let want = Want { energy: capabilities.energy, virial: capabilities.virial, ..Want::FORCES };
        let temperature = match capabilities.kind {
            Kind::MeanForce { temperature_kelvin } => Some(temperature_kelvin),
            Kind::Physical | Kind::PseudoForce => None,
        };
        let extras = [("bohr", "hartree"), ("nm", "kJ/mol")].map(|(length, energy)| {
            serde_json::json!({
                "model": capabilities.name,
                "kind": capabilities.kind.name(),
                "temperature_K": temperature,
                "conservative": capabilities.conservative,
                "has_energy": capabilities.energy,
                "units": {"length": length, "energy": energy},
            })
            .to_string()
        });
        Ok(Forces { structures, template: provider, pool, dtype, want, prepared: None, extras })
    }

    /// What every answer says about the model.
    pub(super) fn extras(&self, native: bool) -> &str {
        &self.extras[usize::from(native)]
    }

    /// Checks a number of atoms before its positions are read.
    pub(super) fn check_atoms(&self, atoms: i32) -> Result<usize, WireError> {
        let n = usize::try_from(atoms).ok().filter(|&n| (1..=MAX_ATOMS).contains(&n));
        let n = n.ok_or_else(|| WireError::Protocol(format!("POSDATA announces {atoms} atoms; 1 to {MAX_ATOMS} are accepted")))?;
        if self.structure(n).is_none() {
            let known: Vec<String> = self.structures.iter().map(|s| s.system.len().to_string()).collect();
            return Err(WireError::Protocol(format!(
                "the server sent {n} atoms, but the structure file has {}; it must hold the atoms that the server moves, in its order",
                known.join(", ")
            )));
        }
        Ok(n)
    }

    /// The structure of `n` atoms. Where there is only one element, any number of its atoms is understood.
    fn structure(&self, n: usize) -> Option<Structure> {
        if let Some(known) = self.structures.iter().find(|s| s.system.len() == n) {
            return Some(known.clone());
        }
        let first = self.structures.first()?;
        let s = &first.system;
        let alike = s.types.iter().all(|t| *t == s.types[0] && *t != 0) && s.bonds.is_empty() && s.constraints.is_empty();
        alike.then(|| {
            let system =
                System { types: vec![s.types[0]; n], masses: vec![s.masses[0]; n], names: vec![AtomName::default(); n], ..(**s).clone() };
            Structure { system: Arc::new(system), periodic: first.periodic }
        })
    }

    fn prepare(&mut self, atoms: usize, count: usize) -> Result<&mut Prepared, WireError> {
        let fits = self.prepared.as_ref().is_some_and(|p| p.atoms == atoms && p.count == count);
        if !fits {
            self.prepared = Some(self.make(atoms, count)?);
        }
        self.prepared.as_mut().ok_or_else(|| WireError::Forces("nothing is prepared".into()))
    }

    fn make(&self, atoms: usize, count: usize) -> Result<Prepared, WireError> {
        let fail = |e: scorefield_integrators::Error| WireError::Forces(e.to_string());
        let Some(structure) = self.structure(atoms) else {
            return Err(WireError::Protocol(format!("no structure has {atoms} atoms")));
        };
        let threads = self.pool.current_num_threads().min(count);
        let mut shares = Vec::with_capacity(threads);
        for i in 0..threads {
            let range = count * i / threads..count * (i + 1) / threads;
            let batch = Batch::uniform(structure.system.clone(), range.len(), range.start as u32).map_err(fail)?;
            let mut provider = self.template.fork().map_err(fail)?;
            provider.capabilities().check_batch(&batch, structure.periodic, self.dtype).map_err(fail)?;
            provider.prepare(&batch, self.dtype).map_err(fail)?;
            let mut state = State::at_rest(&batch, &vec![0.0; 3 * batch.atoms()], self.dtype).map_err(fail)?;
            state.cells = structure.periodic.then(|| vec![[0.0; 9]; range.len()]);
            let out = Output::new(&batch, self.dtype, self.want);
            shares.push(Share { first: range.start, batch, state, out, provider, result: Ok(()) });
        }
        Ok(Prepared { atoms, count, system: structure.system, periodic: structure.periodic, shares })
    }

    /// Evaluates `count` structures of `atoms` atoms: `cells` are `[B, 3, 3]` with vectors in columns, `positions` `[B, N, 3]`, both
    /// in bohr; where `native`, in nm, and the answer in kJ/mol and nm.
    pub(super) fn evaluate(
        &mut self,
        atoms: usize,
        count: usize,
        cells: &[f64],
        positions: &[f64],
        native: bool,
        answer: &mut Answer,
    ) -> Result<(), WireError> {
        let (length, energy) = if native { (1.0, 1.0) } else { (NM_PER_BOHR, KJ_PER_HARTREE) };
        let want = self.want;
        let pool = self.pool.clone();
        let prepared = self.prepare(atoms, count)?;
        let name = |k: usize| prepared.system.describe_atom(k / 3 % atoms);
        if let Some(k) = positions.iter().position(|x| !x.is_finite()) {
            return Err(WireError::Forces(format!(
                "the server sent {} as {} of {}; its simulation has broken down",
                positions[k],
                ["x", "y", "z"][k % 3],
                name(k)
            )));
        }
        if let Some(k) = cells.iter().position(|x| !x.is_finite()).filter(|_| prepared.periodic) {
            return Err(WireError::Forces(format!("the server sent {} as a number of the cell", cells[k])));
        }
        let work = |share: &mut Share| {
            let n3 = 3 * share.batch.atoms();
            let from = &positions[3 * atoms * share.first..][..n3];
            for (i, x) in from.iter().enumerate() {
                share.state.phase.set(i, x * length);
            }
            for (b, to) in share.state.cells.iter_mut().flatten().enumerate() {
                *to = transposed(&cells[9 * (share.first + b)..], length);
            }
            let State { cells, clock, .. } = &share.state;
            let input = Input { batch: &share.batch, positions: share.state.positions(), cells: cells.as_deref(), clock: *clock, want };
            share.result = share.provider.evaluate(&input, &mut share.out);
        };
        match prepared.shares.as_mut_slice() {
            // A single structure is not worth waking a thread for.
            [one] => work(one),
            shares => pool.install(|| shares.par_iter_mut().for_each(work)),
        }
        answer.atoms = atoms;
        answer.energy.resize(count, 0.0);
        answer.forces.resize(3 * atoms * count, 0.0);
        answer.virial.resize(9 * count, 0.0);
        for share in &mut prepared.shares {
            std::mem::replace(&mut share.result, Ok(())).map_err(|e| WireError::Forces(e.to_string()))?;
            for b in 0..share.batch.replicas() {
                let at = share.first + b;
                if want.energy {
                    answer.energy[at] = share.out.energy[b] / energy;
                }
                let virial = &mut answer.virial[9 * at..9 * at + 9];
                virial.fill(0.0);
                for k in share.batch.range3(b) {
                    let force = share.out.forces.get(k);
                    if !force.is_finite() {
                        return Err(WireError::Forces(format!(
                            "force {} on {} is {force}; look for overlapping atoms near it",
                            ["x", "y", "z"][k % 3],
                            prepared.system.describe_atom(k / 3 % atoms)
                        )));
                    }
                    answer.forces[3 * atoms * share.first + k] = force / energy * length;
                    if !want.virial || !prepared.periodic {
                        // In open space the virial is Σ r ⊗ f.
                        let atom = k - k % 3;
                        for a in 0..3 {
                            virial[3 * a + k % 3] += share.state.phase.get(atom + a) * force / energy;
                        }
                    }
                }
                if prepared.periodic {
                    virial.fill(0.0);
                    if want.virial {
                        for (to, from) in virial.iter_mut().zip(&share.out.virial[b]) {
                            *to = from / energy;
                        }
                    }
                }
                if let Some(e) = Some(answer.energy[at]).filter(|e| !e.is_finite()) {
                    return Err(WireError::Forces(format!("the energy is {e}; look for overlapping atoms")));
                }
            }
        }
        Ok(())
    }
}

/// Rows in nm of a cell that has its vectors in columns, in units of `length`.
fn transposed(columns: &[f64], length: f64) -> Cell {
    let mut cell = [0.0; 9];
    for r in 0..3 {
        for c in 0..3 {
            cell[3 * r + c] = columns[3 * c + r] * length;
        }
    }
    cell
}
