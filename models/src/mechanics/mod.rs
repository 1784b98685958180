//! Molecular mechanics from an OpenMM `System` file: harmonic bonds and angles, periodic and Ryckaert–Bellemans torsions,
//! correction maps of two torsions, Lennard-Jones and Coulomb without cutoff or cut with a reaction field in open space or a
//! periodic cell, and generalised Born solvation (OBC1, OBC2), with analytic forces.

mod cutoff;
mod device;
mod kernel;
mod map;
mod model;
mod terms;
mod xml;

pub use model::Mechanics;

use scorefield_integrators::count::{self, Counted, Operations};
use scorefield_integrators::lane::{LaneKernel, LaneProvider};
use scorefield_integrators::simd::Lanes;
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
        let uncut = Box::new(LaneProvider::new(kernel::MechanicsKernel::new(self, file)));
        match self.nonbonded.as_ref().and_then(|nb| Some((nb, nb.cutoff.as_ref()?))) {
            None => uncut,
            Some((nonbonded, cutoff)) => Box::new(cutoff::CutoffProvider::new(uncut, nonbonded, cutoff, self.cell)),
        }
    }

    /// Operations of one evaluation of the forces of one replica at `positions` (`[N, 3]`, nm) in lanes of replicas and f32;
    /// pairs with a cutoff are not counted.
    pub fn operations(&self, positions: &[f64]) -> Operations {
        let kernel = kernel::MechanicsKernel::new(self, "");
        let x: Vec<f32> = positions.iter().map(|&x| x as f32).collect();
        let (mut f, mut scratch) = (vec![0.0; x.len()], vec![0.0; kernel.scratch(self.atoms())]);
        let t = pulp::Scalar128b;
        count::take();
        kernel.evaluate::<Counted, false>(t, Counted::slice(t, &x), Counted::slice_mut(t, &mut f), Counted::slice_mut(t, &mut scratch));
        count::take()
    }
}

#[cfg(test)]
mod tests;
