//! Forces added up.

use super::{forked, joined};
use crate::error::Result;
use scorefield_integrators::{
    Array, Batch, Capabilities, DType, ForceProvider, Input, Output, Real, Result as ContractResult, Want, by_dtype,
};

/// `F = Σ Fₖ`, and so for energies and virials. Uncertainties of the terms that have one add in quadrature, as those of
/// independent committees; the other terms count as exact.
pub struct Sum {
    capabilities: Capabilities,
    terms: Vec<Box<dyn ForceProvider>>,
    term: Output,
}

impl Sum {
    /// The sum of `terms`.
    ///
    /// # Errors
    /// As [`joined`].
    pub fn new(terms: Vec<Box<dyn ForceProvider>>) -> Result<Self> {
        let parts: Vec<&Capabilities> = terms.iter().map(|t| t.capabilities()).collect();
        let mut capabilities = joined("sum", &parts)?;
        capabilities.name = parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" + ");
        capabilities.uncertainty = parts.iter().any(|p| p.uncertainty);
        // Pseudo-forces add up like springs: the sum points to the mean of their structures, weighted with their stiffness.
        let stiffness: Vec<f64> = parts.iter().filter_map(|p| p.stiffness).collect();
        capabilities.stiffness = (!stiffness.is_empty()).then(|| stiffness.iter().sum());
        Ok(Sum { capabilities, terms, term: empty() })
    }
}

/// Results for no batch at all.
pub(super) fn empty() -> Output {
    Output {
        forces: Array::F64(Vec::new()),
        energy: Vec::new(),
        virial: Vec::new(),
        atom_energy: Vec::new(),
        uncertainty: scorefield_integrators::Uncertainty::default(),
    }
}

/// Everything that a provider with `capabilities` can fill.
pub(super) fn everything(capabilities: &Capabilities) -> Want {
    Want {
        energy: capabilities.energy,
        virial: capabilities.virial,
        atom_energy: capabilities.atom_energy,
        uncertainty: capabilities.uncertainty,
    }
}

fn add<T: Real>(to: &mut Array, from: &Array) -> ContractResult<()> {
    for (a, &b) in to.typed_mut::<T>()?.iter_mut().zip(from.typed::<T>()?) {
        *a += b;
    }
    Ok(())
}

/// `a = √(a² + b²)`.
fn add_in_quadrature(to: &mut [f64], from: &[f64]) {
    for (a, &b) in to.iter_mut().zip(from) {
        *a = a.hypot(b);
    }
}

impl ForceProvider for Sum {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.term = Output::new(batch, dtype, everything(&self.capabilities));
        self.terms.iter_mut().try_for_each(|t| t.prepare(batch, dtype))
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        if input.want.uncertainty {
            out.uncertainty.energy.fill(0.0);
            out.uncertainty.forces.fill(0.0);
        }
        for (k, provider) in self.terms.iter_mut().enumerate() {
            let uncertain = input.want.uncertainty && provider.capabilities().uncertainty;
            let input = Input { want: Want { uncertainty: uncertain, ..input.want }, ..*input };
            provider.evaluate(&input, &mut self.term)?;
            let want = input.want;
            if uncertain {
                add_in_quadrature(&mut out.uncertainty.forces, &self.term.uncertainty.forces);
                add_in_quadrature(&mut out.uncertainty.energy, &self.term.uncertainty.energy);
            }
            if k == 0 {
                copy(&self.term, out, want)?;
                continue;
            }
            by_dtype!(self.term.forces.dtype(), add(&mut out.forces, &self.term.forces))?;
            if want.energy {
                out.energy.iter_mut().zip(&self.term.energy).for_each(|(a, b)| *a += b);
            }
            if want.virial {
                out.virial.iter_mut().flatten().zip(self.term.virial.iter().flatten()).for_each(|(a, b)| *a += b);
            }
            if want.atom_energy {
                out.atom_energy.iter_mut().zip(&self.term.atom_energy).for_each(|(a, b)| *a += b);
            }
        }
        Ok(())
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Sum { capabilities: self.capabilities.clone(), terms: forked(&self.terms)?, term: empty() }))
    }
}

/// Copies forces and what is in `want`, except uncertainties.
fn copy(from: &Output, to: &mut Output, want: Want) -> ContractResult<()> {
    fn forces<T: Real>(from: &Array, to: &mut Array) -> ContractResult<()> {
        to.typed_mut::<T>()?.copy_from_slice(from.typed::<T>()?);
        Ok(())
    }
    by_dtype!(from.forces.dtype(), forces(&from.forces, &mut to.forces))?;
    if want.energy {
        to.energy.copy_from_slice(&from.energy);
    }
    if want.virial {
        to.virial.copy_from_slice(&from.virial);
    }
    if want.atom_energy {
        to.atom_energy.copy_from_slice(&from.atom_energy);
    }
    Ok(())
}
