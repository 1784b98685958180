//! Lennard-Jones with a cutoff on one domain of a larger system.

use super::positive;
use crate::error::Result;
use crate::local::{Domain, DomainOutput, LocalForces};

/// `e_i = ½ Σ_{j, r<r_c} 4ε [(σ/r)¹² − (σ/r)⁶] − ½ Σ_j V_c`: half of every pair's energy belongs to each of its atoms.
pub struct LennardJonesLocal {
    sigma2: f64,
    epsilon: f64,
    cutoff: f64,
    /// Subtracted from every pair's energy.
    shift: f64,
}

impl LennardJonesLocal {
    /// As [`LennardJonesPeriodic::new`](super::LennardJonesPeriodic::new).
    ///
    /// # Errors
    /// Where a number is not positive.
    pub fn new(sigma: f64, epsilon: f64, cutoff: f64, shift: bool) -> Result<Self> {
        let name = "lennard-jones";
        let (sigma, epsilon) = (positive(name, "sigma", sigma)?, positive(name, "epsilon", epsilon)?);
        let cutoff = positive(name, "cutoff", cutoff)?;
        let s6 = (sigma / cutoff).powi(6);
        let shift = if shift { 4.0 * epsilon * (s6 * s6 - s6) } else { 0.0 };
        Ok(LennardJonesLocal { sigma2: sigma * sigma, epsilon, cutoff, shift })
    }
}

impl LocalForces for LennardJonesLocal {
    fn range(&self) -> f64 {
        self.cutoff
    }

    fn evaluate(&mut self, domain: &Domain<'_>, out: &mut DomainOutput<'_>) -> Result<()> {
        domain.check(out)?;
        let cutoff2 = self.cutoff * self.cutoff;
        let x = domain.positions;
        (out.energy, out.virial) = (0.0, [0.0; 9]);
        out.forces.fill(0.0);
        for i in 0..domain.owned {
            let (mut energy, mut on_i) = (0.0, [0.0; 3]);
            for &entry in domain.neighbours.of(i) {
                let j = domain.neighbour(i, entry)?;
                let d = [x[3 * i] - x[3 * j], x[3 * i + 1] - x[3 * j + 1], x[3 * i + 2] - x[3 * j + 2]];
                let r2 = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
                if r2 >= cutoff2 {
                    continue;
                }
                let inverse = 1.0 / r2;
                let s2 = self.sigma2 * inverse;
                let s6 = s2 * s2 * s2;
                energy += 0.5 * (4.0 * self.epsilon * (s6 * s6 - s6) - self.shift);
                let half_slope = 12.0 * self.epsilon * (2.0 * s6 * s6 - s6) * inverse;
                for a in 0..3 {
                    let f = half_slope * d[a];
                    on_i[a] += f;
                    out.forces[3 * j + a] -= f;
                    for b in 0..3 {
                        out.virial[3 * a + b] += d[a] * half_slope * d[b];
                    }
                }
            }
            for a in 0..3 {
                out.forces[3 * i + a] += on_i[a];
            }
            out.energy += energy;
            if let Some(to) = out.atom_energy.as_deref_mut() {
                to[i] = energy;
            }
        }
        Ok(())
    }
}
