//! Molecular mechanics from an OpenMM `System` file: harmonic bonds and angles, periodic torsions, Lennard-Jones and Coulomb
//! without cutoff, and generalised Born solvation (OBC1, OBC2), with analytic forces.

mod device;
mod kernel;
mod model;
mod terms;
mod xml;

pub use model::Mechanics;

use scorefield_integrators::lane::LaneProvider;
use scorefield_integrators::{Error, ForceProvider, Result};

impl Mechanics {
    /// Reads the text of an OpenMM `System` XML file; `file` names it in messages.
    ///
    /// # Errors
    /// What is malformed or not supported, with the line.
    pub fn from_xml(text: &str, file: &str) -> Result<Self> {
        xml::read(text).map_err(|reason| Error::Invalid(format!("{file}: {reason}")))
    }

    /// The force provider of this description; `file` names it in messages.
    #[inline(never)] // inlined into another crate it would take all kernels along, to be compiled there once more
    pub fn provider(&self, file: &str) -> Box<dyn ForceProvider> {
        Box::new(LaneProvider::new(kernel::MechanicsKernel::new(self, file)))
    }
}

#[cfg(test)]
mod tests;
