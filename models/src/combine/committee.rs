//! Several models of one thing: their mean, and how far they are apart.

use super::sum::{empty, everything};
use super::{forked, joined, refuse};
use crate::error::Result;
use scorefield_integrators::{Batch, Capabilities, DType, ForceProvider, Input, Output, Result as ContractResult, Want};

/// The mean over `M` members of forces, energies and virials; uncertainties are their standard deviations
/// `√(Σ (xₘ − x̄)²/(M − 1))`, per replica for the energy and per component for forces.
///
/// Means and deviations run in double precision, member after member (Welford), so forces are the same bits whether
/// uncertainties are wanted or not.
pub struct Committee {
    capabilities: Capabilities,
    members: Vec<Box<dyn ForceProvider>>,
    member: Output,
    /// `[A, 3]`: running mean and sum of squared deviations.
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Committee {
    /// The committee of `members`.
    ///
    /// # Errors
    /// Where there are fewer than two, or as [`joined`].
    pub fn new(members: Vec<Box<dyn ForceProvider>>) -> Result<Self> {
        if members.len() < 2 {
            return refuse("committee", format!("{} member has no spread; give at least two", members.len()));
        }
        let parts: Vec<&Capabilities> = members.iter().map(|m| m.capabilities()).collect();
        let mut capabilities = joined("committee", &parts)?;
        if parts.iter().any(|p| p.kind != capabilities.kind) {
            return refuse("committee", "its members give different kinds of force, which have no common mean; use models of one kind");
        }
        capabilities.name = format!("committee of {} ({}, …)", parts.len(), parts[0].name);
        capabilities.uncertainty = true;
        Ok(Committee { capabilities, members, member: empty(), mean: Vec::new(), squares: Vec::new() })
    }
}

/// Takes the `count`-th value of each component into running means and sums of squared deviations.
fn welford(count: f64, values: impl Iterator<Item = f64>, mean: &mut [f64], squares: &mut [f64]) {
    for ((x, mean), squares) in values.zip(mean).zip(squares) {
        let before = x - *mean;
        *mean += before / count;
        *squares += before * (x - *mean);
    }
}

impl ForceProvider for Committee {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.member = Output::new(batch, dtype, Want { uncertainty: false, ..everything(&self.capabilities) });
        self.mean = vec![0.0; 3 * batch.atoms()];
        self.squares = vec![0.0; 3 * batch.atoms()];
        self.members.iter_mut().try_for_each(|m| m.prepare(batch, dtype))
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        // The spread of energies needs the energies.
        let spread = input.want.uncertainty && self.capabilities.energy;
        let want = Want { energy: input.want.energy || spread, uncertainty: false, ..input.want };
        let inner = Input { want, ..*input };
        self.mean.fill(0.0);
        self.squares.fill(0.0);
        if want.energy {
            out.energy.fill(0.0);
        }
        if input.want.uncertainty {
            out.uncertainty.energy.fill(0.0);
        }
        for (k, member) in self.members.iter_mut().enumerate() {
            member.evaluate(&inner, &mut self.member)?;
            let count = (k + 1) as f64;
            let forces = self.member.forces.view();
            welford(count, (0..forces.len()).map(|i| forces.get(i)), &mut self.mean, &mut self.squares);
            if want.energy {
                let energies = self.member.energy.iter().copied();
                if input.want.uncertainty {
                    welford(count, energies, &mut out.energy, &mut out.uncertainty.energy);
                } else {
                    out.energy.iter_mut().zip(energies).for_each(|(m, e)| *m += (e - *m) / count);
                }
            }
            let average = |to: &mut f64, x: f64| *to = if k == 0 { x } else { *to + (x - *to) / count };
            if want.virial {
                out.virial.iter_mut().flatten().zip(self.member.virial.iter().flatten()).for_each(|(m, &v)| average(m, v));
            }
            if want.atom_energy {
                out.atom_energy.iter_mut().zip(&self.member.atom_energy).for_each(|(m, &e)| average(m, e));
            }
        }
        for (i, &f) in self.mean.iter().enumerate() {
            out.forces.set(i, f);
        }
        if input.want.uncertainty {
            let scale = 1.0 / (self.members.len() - 1) as f64;
            out.uncertainty.forces.iter_mut().zip(&self.squares).for_each(|(s, q)| *s = (q * scale).sqrt());
            out.uncertainty.energy.iter_mut().for_each(|s| *s = (*s * scale).sqrt());
        }
        Ok(())
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Committee {
            capabilities: self.capabilities.clone(),
            members: forked(&self.members)?,
            member: empty(),
            mean: Vec::new(),
            squares: Vec::new(),
        }))
    }
}
