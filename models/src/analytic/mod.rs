//! Potentials with closed formulas: toys in reduced units, and Lennard-Jones in either.
//!
//! A toy lives on one, two or three axes of one particle (inactive axes get no force), and brings its own system, start
//! position and reference temperature ([`Toy`]).

mod double_well;
mod harmonic;
pub(crate) mod lattice;
mod lennard_jones;
mod lennard_jones_local;
mod lennard_jones_periodic;
mod lennard_jones_spec;
mod muller_brown;
pub(crate) mod neighbours;
#[cfg(test)]
mod periodic_tests;
#[cfg(test)]
mod tests;

pub use double_well::{DoubleWell, DoubleWell2d, DoubleWell2dSpec, DoubleWellSpec};
pub use harmonic::{Harmonic, HarmonicSpec};
pub use lennard_jones::{LennardJones, cluster_positions};
pub use lennard_jones_local::LennardJonesLocal;
pub use lennard_jones_periodic::LennardJonesPeriodic;
pub use lennard_jones_spec::LennardJonesSpec;
pub use muller_brown::{MINIMA as MULLER_BROWN_MINIMA, MullerBrown, MullerBrownSpec, SADDLES as MULLER_BROWN_SADDLES};

use crate::error::{Error, Result};
use crate::scoremd::domain::Domain;
use scorefield_integrators::state::Cell;
use scorefield_integrators::{Dimension, Quantity, System, UnitSystem};

/// A system that a model brings along, ready to be simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Toy {
    /// Particles, masses and active axes.
    pub system: System,
    /// Start positions `[N, 3]`, in nm or reduced units.
    pub positions: Vec<f64>,
    /// Periodic cell, where the model needs one.
    pub cell: Option<Cell>,
    /// Temperature at which the model is usually studied: in K, or kT as a bare number in reduced units.
    pub temperature: Quantity,
    /// What a trained model's file says of its data besides.
    pub trained: Option<Trained>,
}

/// What a trained model's file says of its data.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Its beads as a PDB file.
    pub pdb: Option<String>,
    /// Some of the training data, each `[N, 3]` in nm or reduced units.
    pub starts: Vec<Vec<f64>>,
    /// Where the training data lie.
    pub domain: Option<Domain>,
}

/// Reads the quantities of one model, in SI where any of them has a unit, else in reduced units.
pub(crate) struct Reader {
    model: &'static str,
    pub(crate) units: UnitSystem,
}

impl Reader {
    /// The reader of a model whose scales are `scales`: they decide the units together and must agree.
    pub(crate) fn new(model: &'static str, scales: &[(&str, &Quantity)]) -> Result<Self> {
        let bare = |q: &Quantity| q.resolve(Dimension::NONE, UnitSystem::Reduced).is_ok();
        let with = scales.iter().find(|(_, q)| !bare(q));
        let without = scales.iter().find(|(_, q)| bare(q));
        match (with, without) {
            (Some((a, qa)), Some((b, qb))) => Err(Error::spec(
                model,
                format!("{a} = {qa} has a unit but {b} = {qb} has none; give units to all (SI) or to none (reduced units)"),
            )),
            (Some(_), None) => Ok(Reader { model, units: UnitSystem::Si }),
            _ => Ok(Reader { model, units: UnitSystem::Reduced }),
        }
    }

    /// The quantity `q` in internal units; must be finite.
    pub(crate) fn any(&self, name: &str, q: &Quantity, dimension: Dimension) -> Result<f64> {
        let x = q
            .resolve(dimension, self.units)
            .map_err(|e| Error::Spec { context: format!("{}: {name}", self.model), reason: e.to_string() })?;
        if x.is_finite() { Ok(x) } else { Err(Error::parameter(self.model, name, q, "it must be finite")) }
    }

    /// The quantity `q` in internal units; must be positive.
    pub(crate) fn positive(&self, name: &str, q: &Quantity, dimension: Dimension) -> Result<f64> {
        positive(self.model, name, self.any(name, q, dimension)?)
    }
}

/// `value`, where it is positive and finite.
pub(crate) fn positive(model: &str, name: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err(Error::parameter(model, name, value, "it must be finite and above zero")) }
}

/// Checks that `system` has the axes that a toy needs.
pub(crate) fn check_axes(name: &str, axes: [bool; 3], system: &System) -> scorefield_integrators::Result<()> {
    if system.axes == axes {
        return Ok(());
    }
    let list = |axes: [bool; 3]| -> String { "xyz".chars().zip(axes).filter(|a| a.1).map(|a| a.0).collect() };
    scorefield_integrators::error::invalid(format!(
        "{name} acts on {}, but {} moves on {}; use the model's own system",
        list(axes),
        system.name,
        list(system.axes)
    ))
}
