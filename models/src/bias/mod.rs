//! Biases on collective variables: springs, umbrella windows and well-tempered metadynamics, for any provider.
//!
//! [`Biased`] adds a [`Bias`] to a provider's forces. A bias knows nothing of steps: whoever moves the atoms asks it to
//! [deposit](Bias::deposit) hills between steps, when all replicas stand still, so that forces do not depend on threads, and hills
//! can be saved and laid again in the same order, with the same bits.

mod spec;
mod surface;
#[cfg(test)]
mod tests;
mod variable;

pub use spec::{BiasSpec, List};
pub use surface::{Axis, Surface};
pub use variable::{Measure, Variable};

use crate::analytic::lattice::Lattice;
use crate::combine::joined;
use crate::error::{Error, Result};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{
    Batch, Capabilities, DType, ForceProvider, Input, Kind, Output, Real, Result as ContractResult, UnitSystem, View, Want, by_dtype,
};
use std::ops::Range;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// `½ k (s − sᵢ)²`.
#[derive(Clone, Debug, PartialEq)]
struct Spring {
    variable: usize,
    /// One for all replicas, or one for each window.
    centres: Vec<f64>,
    stiffness: f64,
}

/// Hills that are added during a run.
#[derive(Clone, Debug, PartialEq)]
struct Metadynamics {
    variables: Vec<usize>,
    axes: Arc<[Axis]>,
    height: f64,
    /// γ, infinite without tempering.
    factor: f64,
    every: u64,
    shared: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Spring(Spring),
    Hills(Metadynamics),
}

/// Springs of windows on one variable, for reweighting.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// The variable.
    pub variable: usize,
    /// Centre of each window; replica `r` is in window `r mod windows`.
    pub centres: Vec<f64>,
    /// Force constant.
    pub stiffness: f64,
}

/// The biases of a run and all their hills, shared by the forks of its [`Biased`] provider.
pub struct Bias {
    variables: Vec<Variable>,
    terms: Vec<Term>,
    units: UnitSystem,
    /// Numbers of the replicas that run here.
    replicas: Range<usize>,
    /// Per term with hills: one surface for each replica, or one for all.
    surfaces: RwLock<Vec<Vec<Surface>>>,
}

/// A replica's variables and bias at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Values of all variables, in nm and radians.
    pub values: Vec<f64>,
    /// The sum of all biases in kJ/mol.
    pub bias: f64,
    /// What to subtract from it for reweighting, kJ/mol: weights are `exp((bias − offset)/kT)`.
    pub offset: f64,
}

/// A hill that was added.
#[derive(Clone, Debug, PartialEq)]
pub struct Hill {
    /// Which of the biases with hills.
    pub term: usize,
    /// Number of the replica.
    pub replica: usize,
    /// Centre.
    pub centre: Vec<f64>,
    /// Height in kJ/mol.
    pub height: f64,
}

impl Bias {
    /// Biases on `variables` for the replicas numbered `replicas`, in the units of the model.
    ///
    /// # Errors
    /// Where a description cannot be understood, or names are not known or there twice.
    pub fn new(variables: &[String], biases: &[BiasSpec], units: UnitSystem, replicas: Range<usize>) -> Result<Self> {
        let variables = variables.iter().map(|v| Variable::parse(v)).collect::<Result<Vec<_>>>()?;
        for (i, v) in variables.iter().enumerate() {
            if variables[..i].iter().any(|w| w.name == v.name) {
                return Err(Error::spec("collective variables", format!("the name `{}` is there twice; choose another", v.name)));
            }
        }
        let terms = biases.iter().map(|b| b.term(&variables, units)).collect::<Result<Vec<_>>>()?;
        let surfaces = terms
            .iter()
            .filter_map(|term| match term {
                Term::Hills(hills) => Some(vec![Surface::new(hills.axes.clone()); if hills.shared { 1 } else { replicas.len() }]),
                Term::Spring(_) => None,
            })
            .collect();
        Ok(Bias { variables, terms, units, replicas, surfaces: RwLock::new(surfaces) })
    }

    /// The variables.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Units of all numbers.
    pub fn units(&self) -> UnitSystem {
        self.units
    }

    /// Steps between hills, of each bias that has some.
    pub fn intervals(&self) -> impl Iterator<Item = u64> {
        self.hills().map(|h| h.every)
    }

    /// True where hills of one replica are felt by others.
    pub fn is_shared(&self) -> bool {
        self.hills().any(|h| h.shared)
    }

    /// The variables of each bias with hills, and its bias factor (infinite without tempering).
    pub fn hill_terms(&self) -> impl Iterator<Item = (&[usize], f64)> {
        self.hills().map(|h| (&h.variables[..], h.factor))
    }

    /// The springs that differ from window to window.
    pub fn windows(&self) -> impl Iterator<Item = Windows> {
        self.terms.iter().filter_map(|term| match term {
            Term::Spring(s) if s.centres.len() > 1 => {
                Some(Windows { variable: s.variable, centres: s.centres.clone(), stiffness: s.stiffness })
            }
            _ => None,
        })
    }

    /// True where all biases are springs of windows on one variable, which is what histograms can be joined from.
    pub fn is_umbrella(&self) -> bool {
        self.terms.len() == 1 && self.windows().count() == 1
    }

    /// The hills of bias `term` of those that have some, for each replica or for all of them.
    pub fn surfaces(&self, term: usize) -> Vec<Surface> {
        self.read()[term].clone()
    }

    fn hills(&self) -> impl Iterator<Item = &Metadynamics> {
        self.terms.iter().filter_map(|t| if let Term::Hills(h) = t { Some(h) } else { None })
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Vec<Surface>>> {
        self.surfaces.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Vec<Surface>>> {
        self.surfaces.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Place of the surface of a replica.
    fn place(&self, hills: &Metadynamics, replica: usize) -> usize {
        if hills.shared { 0 } else { replica - self.replicas.start }
    }

    /// Bias of `replica` where the variables have these `values`, and `∂V/∂s` of each.
    fn energy(&self, surfaces: &[Vec<Surface>], replica: usize, values: &[f64], slopes: &mut [f64]) -> f64 {
        slopes.fill(0.0);
        let (mut energy, mut k) = (0.0, 0);
        for term in &self.terms {
            match term {
                Term::Spring(s) => {
                    let centre = s.centres[replica % s.centres.len()];
                    let d = self.variables[s.variable].difference(values[s.variable], centre);
                    energy += 0.5 * s.stiffness * d * d;
                    slopes[s.variable] += s.stiffness * d;
                }
                Term::Hills(hills) => {
                    let (mut at, mut gradient) = ([0.0; surface::MOST], [0.0; surface::MOST]);
                    hills.variables.iter().zip(&mut at).for_each(|(&v, s)| *s = values[v]);
                    energy += surfaces[k][self.place(hills, replica)].value(&at, &mut gradient);
                    hills.variables.iter().zip(gradient).for_each(|(&v, g)| slopes[v] += g);
                    k += 1;
                }
            }
        }
        energy
    }

    /// Variables and bias of `replica` at `positions` (`[N, 3]`).
    pub fn observe(&self, replica: usize, positions: View<'_>, cell: Option<&Cell>) -> Observation {
        let lattice = cell.and_then(Lattice::new);
        let x = |i: usize| [0, 1, 2].map(|a| positions.get(3 * i + a));
        let values: Vec<f64> = self.variables.iter().map(|v| v.at(x, lattice.as_ref()).value).collect();
        let surfaces = self.read();
        let bias = self.energy(&surfaces, replica, &values, &mut vec![0.0; values.len()]);
        let offset = self.hills().zip(&*surfaces).fold(0.0, |sum, (h, s)| sum + s[self.place(h, replica)].offset());
        Observation { values, bias, offset }
    }

    /// Adds the hills that are due at `step` for a replica whose variables have these `values`, at `kt`. Hills that would lie beyond
    /// the grid are left out.
    pub fn deposit(&self, step: u64, replica: usize, values: &[f64], kt: f64) -> Vec<Hill> {
        let mut added = Vec::new();
        let mut surfaces = self.write();
        for (k, hills) in self.hills().enumerate().filter(|(_, h)| step.is_multiple_of(h.every)) {
            let centre: Vec<f64> = hills.variables.iter().map(|&v| values[v]).collect();
            let surface = &mut surfaces[k][self.place(hills, replica)];
            if !surface.holds(&centre) {
                continue;
            }
            let here = surface.value(&centre, &mut [0.0; surface::MOST]);
            let height = if hills.factor.is_finite() { hills.height * (-here / ((hills.factor - 1.0) * kt)).exp() } else { hills.height };
            surface.add(&centre, height);
            added.push(Hill { term: k, replica, centre, height });
        }
        added
    }

    /// Brings the offsets for reweighting up to date; after the hills of a step, where replicas share them of all.
    pub fn update_offsets(&self, step: u64, kt: f64) {
        let mut surfaces = self.write();
        for (hills, surfaces) in self.hills().zip(&mut *surfaces).filter(|(h, _)| step.is_multiple_of(h.every)) {
            surfaces.iter_mut().for_each(|s| s.update_offset(hills.factor, kt));
        }
    }

    /// All hills for a checkpoint: per bias and surface their centres and heights.
    pub fn state(&self) -> Vec<Vec<Vec<f64>>> {
        self.read().iter().map(|term| term.iter().map(|s| s.hills().to_vec()).collect()).collect()
    }

    /// Lays the hills of a [`state`](Bias::state) anew, which gives the same bits.
    ///
    /// # Errors
    /// Where it is of other biases or replicas.
    pub fn restore(&self, state: &[Vec<Vec<f64>>], kt: f64) -> Result<()> {
        let mut surfaces = self.write();
        let fits = state.len() == surfaces.len()
            && self.hills().zip(state).zip(&*surfaces).all(|((hills, state), surfaces)| {
                state.len() == surfaces.len() && state.iter().all(|s| s.len().is_multiple_of(hills.variables.len() + 1))
            });
        if !fits {
            return Err(Error::spec("bias", "saved hills are of other biases or of another number of replicas"));
        }
        for ((hills, state), surfaces) in self.hills().zip(state).zip(&mut *surfaces) {
            for (saved, surface) in state.iter().zip(surfaces) {
                *surface = Surface::new(hills.axes.clone());
                for hill in saved.chunks_exact(hills.variables.len() + 1) {
                    surface.add(&hill[..hills.variables.len()], hill[hills.variables.len()]);
                }
                if !saved.is_empty() {
                    surface.update_offset(hills.factor, kt);
                }
            }
        }
        Ok(())
    }
}

/// A provider with a bias on top. Ids of replicas are their numbers in the bias.
pub struct Biased {
    capabilities: Capabilities,
    inner: Box<dyn ForceProvider>,
    bias: Arc<Bias>,
    axes: Vec<[bool; 3]>,
    values: Vec<f64>,
    slopes: Vec<f64>,
    points: Vec<variable::Point>,
}

impl Biased {
    /// `inner` under `bias`.
    ///
    /// # Errors
    /// Where they do not fit together: units, or hills on pseudo-forces, which have no temperature.
    pub fn new(inner: Box<dyn ForceProvider>, bias: Arc<Bias>) -> Result<Self> {
        let of = inner.capabilities();
        let fail = |reason: &str| Err(Error::Combine { name: "bias".into(), reason: reason.into() });
        if of.units != bias.units {
            return fail("its units are not those of the model");
        }
        if of.kind == Kind::PseudoForce && bias.hills().next().is_some() {
            return fail("pseudo-forces have no temperature, so metadynamics on them means nothing; use a potential or mean forces");
        }
        let movable = bias.variables.iter().all(|v| !matches!(v.measure, Measure::Coordinate(..)));
        let mut capabilities = joined("bias", &[of])?;
        capabilities.name = format!("{} with bias", of.name);
        // A coordinate depends on the origin, so it has no virial.
        capabilities.virial &= movable;
        capabilities.atom_energy = false;
        capabilities.range = None;
        Ok(Biased { capabilities, inner, bias, axes: Vec::new(), values: Vec::new(), slopes: Vec::new(), points: Vec::new() })
    }

    fn add<T: Real>(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        let (x, f) = (input.positions.typed::<T>()?, out.forces.typed_mut::<T>()?);
        let bias = &*self.bias;
        let surfaces = bias.read();
        for b in 0..input.batch.replicas() {
            let first = input.batch.range3(b).start;
            let lattice = input.cells.and_then(|cells| Lattice::new(&cells[b]));
            let at = |i: usize| [0, 1, 2].map(|a| x[first + 3 * i + a].to_f64());
            for ((variable, point), value) in bias.variables.iter().zip(&mut self.points).zip(&mut self.values) {
                *point = variable.at(at, lattice.as_ref());
                *value = point.value;
            }
            let energy = bias.energy(&surfaces, input.batch.id(b) as usize, &self.values, &mut self.slopes);
            for ((variable, point), &slope) in bias.variables.iter().zip(&self.points).zip(&self.slopes) {
                for ((&i, gradient), relative) in variable.atoms().iter().zip(&point.gradient).zip(&point.relative) {
                    for a in (0..3).filter(|&a| self.axes[b][a]) {
                        let force = -slope * gradient[a];
                        let to = &mut f[first + 3 * i + a];
                        *to = T::from_f64(to.to_f64() + force);
                        if input.want.virial {
                            (0..3).for_each(|c| out.virial[b][3 * c + a] += relative[c] * force);
                        }
                    }
                }
            }
            if input.want.energy {
                out.energy[b] += energy;
            }
        }
        Ok(())
    }
}

impl ForceProvider for Biased {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        for (b, system) in batch.systems().iter().enumerate() {
            if b == 0 || !Arc::ptr_eq(system, batch.system(b - 1)) {
                self.bias.variables.iter().try_for_each(|v| v.check(system))?;
            }
        }
        if let Some(id) = batch.ids().iter().find(|&&id| !self.bias.replicas.contains(&(id as usize))) {
            let Range { start, end } = self.bias.replicas;
            return scorefield_integrators::error::invalid(format!("the bias is for the replicas {start}..{end}, not for number {id}"));
        }
        self.axes = batch.systems().iter().map(|s| s.axes).collect();
        let n = self.bias.variables.len();
        self.values = vec![0.0; n];
        self.slopes = vec![0.0; n];
        self.points = vec![variable::Point::default(); n];
        self.inner.prepare(batch, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        let want = Want { atom_energy: false, ..input.want };
        self.inner.evaluate(&Input { want, ..*input }, out)?;
        by_dtype!(input.positions.dtype(), add(self, input, out))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Biased {
            capabilities: self.capabilities.clone(),
            inner: self.inner.fork()?,
            bias: self.bias.clone(),
            axes: Vec::new(),
            values: Vec::new(),
            slopes: Vec::new(),
            points: Vec::new(),
        }))
    }
}

fn add<T: Real>(biased: &mut Biased, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
    biased.add::<T>(input, out)
}
