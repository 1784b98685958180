//! Temperatures of velocities, element by element: a thermostat that is right on average may still heat the light atoms
//! and cool the heavy ones.

use scorefield_integrators::System;
use scorefield_integrators::units::BOLTZMANN;

/// Kinetic temperature of the atoms of one element.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ElementTemperature {
    /// Atomic number.
    pub element: u32,
    /// Atoms of this element.
    pub atoms: usize,
    /// Σ m v² / (3 n k_B) in K over all frames.
    pub temperature: f64,
}

/// Temperatures per element, lightest first, of `frames` of velocities (`[N, 3]` each, nm/ps). All three directions of every
/// atom count as free: with the centre of mass at rest the numbers are low by the atoms' share of the total mass.
pub fn element_temperatures<'a>(system: &System, frames: impl IntoIterator<Item = &'a [f64]>) -> Vec<ElementTemperature> {
    let mut twice_kinetic = vec![0.0; system.len()];
    let mut count = 0usize;
    for velocities in frames {
        for (i, v) in velocities.chunks_exact(3).enumerate().take(system.len()) {
            twice_kinetic[i] += system.masses[i] * v.iter().map(|v| v * v).sum::<f64>();
        }
        count += 1;
    }
    let mut elements: Vec<u32> = (0..system.len()).filter(|&i| system.masses[i] > 0.0).map(|i| system.types[i]).collect();
    elements.sort_unstable();
    elements.dedup();
    elements
        .into_iter()
        .filter(|_| count > 0)
        .map(|element| {
            let atoms: Vec<usize> = (0..system.len()).filter(|&i| system.types[i] == element && system.masses[i] > 0.0).collect();
            let sum: f64 = atoms.iter().map(|&i| twice_kinetic[i]).sum();
            ElementTemperature { element, atoms: atoms.len(), temperature: sum / (3.0 * BOLTZMANN * (count * atoms.len()) as f64) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::golden::normal;

    #[test]
    fn elements_of_their_own_temperature() {
        let mut system = System::particles("HCl", 3, 1.0);
        system.types = vec![17, 1, 1];
        system.masses = vec![35.45, 1.008, 1.008];
        let temperature = [300.0, 360.0, 360.0];
        let frames: Vec<Vec<f64>> = (0..20_000u64)
            .map(|f| (0..9).map(|k| normal(f, k as u32)[0] * (BOLTZMANN * temperature[k / 3] / system.masses[k / 3]).sqrt()).collect())
            .collect();
        let got = element_temperatures(&system, frames.iter().map(Vec::as_slice));
        assert_eq!(got.iter().map(|t| (t.element, t.atoms)).collect::<Vec<_>>(), [(1, 2), (17, 1)]);
        // Relative error √(2 / 3 n F).
        assert!((got[0].temperature / 360.0 - 1.0).abs() < 0.02 && (got[1].temperature / 300.0 - 1.0).abs() < 0.03, "{got:?}");
        assert!(element_temperatures(&system, std::iter::empty()).is_empty());
    }
}
