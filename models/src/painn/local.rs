//! PaiNN on one domain of a larger system.

use super::config::Head;
use super::model::Output;
use super::network::{Parameters, Seed, Work};
use super::provider::Shared;
use super::surroundings::Surroundings;
use crate::error::{Error, Result};
use crate::local::{Domain, DomainOutput, LocalForces};
use std::sync::{Arc, OnceLock};

/// Å per nm.
const ANGSTROMS: f64 = 10.0;

/// A PaiNN with an energy, in double precision.
///
/// Every layer passes messages once, so an own atom's energy depends on atoms up to `layers × cutoff` away, and on ghosts that near:
/// features of ghosts are computed like those of own atoms. Only those at the rim, whose own neighbours are missing, come out wrong, and
/// nothing of theirs reaches an own atom. Neighbours are searched among all atoms of the domain, not in the engine's lists, which say
/// nothing of the ghosts.
pub struct PainnLocal {
    shared: Arc<Shared>,
    parameters: OnceLock<Parameters<f64>>,
    unit: f64,
    work: Work<f64>,
    surroundings: Surroundings,
    x: Vec<f64>,
}

impl PainnLocal {
    /// From what a provider holds.
    ///
    /// # Errors
    /// Where there is no energy.
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let Output::Energy { unit, .. } = shared.model.output else {
            return Err(Error::spec("gpff", "pseudo-forces are no sum over atoms' energies and cannot be computed domain by domain"));
        };
        debug_assert_eq!(shared.model.config.head, Head::Energy);
        let (work, surroundings) = (Work::new(true, true), Surroundings::default());
        Ok(PainnLocal { shared, parameters: OnceLock::new(), unit, work, surroundings, x: Vec::new() })
    }
}

impl LocalForces for PainnLocal {
    fn range(&self) -> f64 {
        let config = &self.shared.model.config;
        config.cutoff / ANGSTROMS * config.layers as f64
    }

    fn evaluate(&mut self, domain: &Domain<'_>, out: &mut DomainOutput<'_>) -> Result<()> {
        domain.check(out)?;
        (out.energy, out.virial) = (0.0, [0.0; 9]);
        out.forces.fill(0.0);
        if domain.owned == 0 {
            return Ok(());
        }
        let model = &self.shared.model;
        if let Some(z) = domain.types.iter().find(|z| !model.types.contains(z)) {
            return Err(Error::spec("painn", format!("it does not know element {z}; choose a model that does")));
        }
        let parameters = self.parameters.get_or_init(|| self.shared.pack());
        self.x.clear();
        self.x.extend(domain.positions.iter().map(|x| ANGSTROMS * x));
        self.work.reserve(&model.config, domain.len(), 0);
        self.work.clear();
        // Without a cell there is nothing that may not fit.
        let _ = self.surroundings.add(&mut self.work, &model.config, domain.types, &self.x, 0.0, None);
        self.work.forward(parameters);
        self.work.backward(parameters, Seed::EnergyOf(domain.owned), None, Some(out.forces));
        out.forces.iter_mut().for_each(|f| *f *= -self.unit * ANGSTROMS);
        out.virial = self.work.strain(0).map(|s| -self.unit * s);
        for (i, &z) in domain.types[..domain.owned].iter().enumerate() {
            let energy = self.unit * (self.work.energy(i) + self.shared.references[z as usize]);
            out.energy += energy;
            if let Some(to) = out.atom_energy.as_deref_mut() {
                to[i] = energy;
            }
        }
        Ok(())
    }
}
