//! Forces times a number.

use super::refuse;
use crate::error::{Error, Result};
use scorefield_integrators::{
    Array, Batch, Capabilities, DType, ForceProvider, Input, Kind, Output, Real, Result as ContractResult, by_dtype,
};

/// `F = c F₁`, and so for energies, virials and (by `|c|`) uncertainties.
///
/// A physical force times a number is that of a scaled energy. A mean force at temperature `T` times `c` is the mean force
/// at temperature `c T` of the same ensemble, since `p ∝ exp(−W/kT)`; that needs `c > 0`.
pub struct Scaled {
    capabilities: Capabilities,
    factor: f64,
    inner: Box<dyn ForceProvider>,
}

impl Scaled {
    /// `inner` times `factor`.
    ///
    /// # Errors
    /// Where the factor is not finite, or not positive for a mean force.
    pub fn new(inner: Box<dyn ForceProvider>, factor: f64) -> Result<Self> {
        if !factor.is_finite() {
            return Err(Error::parameter("scale", "factor", factor, "it must be finite"));
        }
        let mut capabilities = inner.capabilities().clone().without_kernels();
        if let Kind::MeanForce { temperature_kelvin } = &mut capabilities.kind {
            if factor <= 0.0 {
                return refuse(
                    "scale",
                    format!(
                        "{} is a mean force, and {factor} times it is one at no temperature; use a factor above zero",
                        capabilities.name
                    ),
                );
            }
            *temperature_kelvin *= factor;
        }
        // The denoised structure x + F/k stays where it is.
        capabilities.stiffness = capabilities.stiffness.filter(|_| factor > 0.0).map(|k| factor * k);
        capabilities.name = format!("{factor} × {}", capabilities.name);
        Ok(Scaled { capabilities, factor, inner })
    }
}

fn scale<T: Real>(forces: &mut Array, factor: f64) -> ContractResult<()> {
    let factor = T::from_f64(factor);
    forces.typed_mut::<T>()?.iter_mut().for_each(|f| *f = *f * factor);
    Ok(())
}

impl ForceProvider for Scaled {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.inner.prepare(batch, dtype)
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.inner.evaluate(input, out)?;
        by_dtype!(out.forces.dtype(), scale(&mut out.forces, self.factor))?;
        if input.want.energy {
            out.energy.iter_mut().for_each(|e| *e *= self.factor);
        }
        if input.want.virial {
            out.virial.iter_mut().flatten().for_each(|v| *v *= self.factor);
        }
        if input.want.atom_energy {
            out.atom_energy.iter_mut().for_each(|e| *e *= self.factor);
        }
        if input.want.uncertainty {
            out.uncertainty.energy.iter_mut().chain(&mut out.uncertainty.forces).for_each(|s| *s *= self.factor.abs());
        }
        Ok(())
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Scaled { capabilities: self.capabilities.clone(), factor: self.factor, inner: self.inner.fork()? }))
    }
}
