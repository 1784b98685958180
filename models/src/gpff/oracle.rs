//! The exact pseudo-force field of a few structures.
//!
//! A GPFF is trained to minimise `E[w(σ) |k (x₀ − x) − F(x)|²]` over structures `x₀`, noise levels σ and noise. For a
//! finite set of structures of one composition the minimum over all functions of `x` alone is
//!
//! ```text
//! F(x) = k (Σ_m p_m(x) x_m − x),    p_m(x) ∝ Σ_σ p(σ) w(σ) σ^(−3(N−1)) exp(−|x − x_m|²/(2σ²))
//! ```
//!
//! with `ln σ` normally distributed and `w = min(1/σ², 1000)` (σ in Å). The structures are as they stand in the file, moved
//! to their centre: nothing is done about rotations, and atoms of one element are told apart by their order. It is a
//! standard for samplers, not a model of chemistry.

use crate::error::{Error, Result};
use scorefield_integrators::units::{Dimension, NM_PER_ANGSTROM};
use scorefield_integrators::{
    Batch, Capabilities, DType, Error as ContractError, ForceProvider, Input, Kind, Output, Quantity, Real, Result as ContractResult,
    System, UnitSystem, View, by_dtype,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest file of structures that is read.
const MAX_BYTES: u64 = 1 << 26;
/// Noise levels of the sum over σ, evenly spaced in ln σ between these ends (Å).
const LEVELS: usize = 160;
const RANGE: [f64; 2] = [0.01, 60.0];

/// Settings of an [`Oracle`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OracleSpec {
    /// XYZ file of the structures.
    pub file: PathBuf,
    /// Stiffness k, by default `1 eV/A^2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stiffness: Option<Quantity>,
    /// Mean of `ln σ`, σ in Å.
    #[serde(default = "log_mean")]
    pub mean: f64,
    /// Standard deviation of `ln σ`.
    #[serde(default = "log_deviation")]
    pub deviation: f64,
}

fn log_mean() -> f64 {
    -1.2
}

fn log_deviation() -> f64 {
    1.2
}

impl OracleSpec {
    /// The oracle of `file` with default settings.
    pub fn of(file: impl Into<PathBuf>) -> Self {
        OracleSpec { file: file.into(), stiffness: None, mean: log_mean(), deviation: log_deviation() }
    }

    /// Builds the provider.
    ///
    /// # Errors
    /// Where the file cannot be used or a number is out of range.
    pub fn build(&self) -> Result<Oracle> {
        const NAME: &str = "gpff-oracle";
        let default = Quantity::new(1.0, "eV/A^2");
        let quantity = self.stiffness.as_ref().unwrap_or(&default);
        let stiffness = quantity.resolve(Dimension::STIFFNESS, UnitSystem::Si).map_err(Error::Contract)?;
        if !(stiffness > 0.0 && stiffness.is_finite()) {
            return Err(Error::parameter(NAME, "stiffness", quantity, "it must be above zero"));
        }
        if !self.mean.is_finite() {
            return Err(Error::parameter(NAME, "mean", self.mean, "it must be finite"));
        }
        if !(self.deviation > 0.0 && self.deviation.is_finite()) {
            return Err(Error::parameter(NAME, "deviation", self.deviation, "it must be above zero"));
        }
        let (types, structures) = read_xyz(&self.file)?;
        let log_range = RANGE.map(f64::ln);
        let freedom = 3.0 * (types.len() as f64 - 1.0);
        let levels = (0..LEVELS).map(|n| {
            let log = log_range[0] + (log_range[1] - log_range[0]) * n as f64 / (LEVELS - 1) as f64;
            let sigma = log.exp();
            let place = (log - self.mean) / self.deviation;
            Level {
                log_weight: -0.5 * place * place + (1.0 / (sigma * sigma)).min(1000.0).ln() - freedom * log,
                half: -0.5 / (sigma * sigma),
            }
        });
        let capabilities = Capabilities {
            kind: Kind::PseudoForce,
            conservative: false,
            energy: false,
            energies_comparable: false,
            stiffness: Some(stiffness),
            types: Some({
                let mut known = types.clone();
                known.sort_unstable();
                known.dedup();
                known
            }),
            ..Capabilities::potential(NAME)
        };
        let reference = Reference { types, structures, levels: levels.collect() };
        let weights = vec![0.0; reference.count()];
        Ok(Oracle { capabilities, stiffness, reference: Arc::new(reference), places: Vec::new(), weights, x: Vec::new() })
    }
}

/// One noise level.
struct Level {
    /// `ln(p(σ) w(σ) σ^(−3(N−1)))`.
    log_weight: f64,
    /// `−1/(2σ²)` in Å⁻².
    half: f64,
}

/// What all threads share.
struct Reference {
    types: Vec<u32>,
    /// `[M, N, 3]` in Å, each centred.
    structures: Vec<f64>,
    levels: Vec<Level>,
}

impl Reference {
    fn count(&self) -> usize {
        self.structures.len() / (3 * self.types.len())
    }

    fn structure(&self, m: usize) -> &[f64] {
        let n3 = 3 * self.types.len();
        &self.structures[m * n3..(m + 1) * n3]
    }

    /// Weights of the structures at `x` (`[N, 3]`, Å); they add up to one.
    fn weigh(&self, x: &[f64], weights: &mut [f64]) {
        let mut highest = f64::NEG_INFINITY;
        for (m, weight) in weights.iter_mut().enumerate() {
            let distance: f64 = x.iter().zip(self.structure(m)).map(|(a, b)| (a - b) * (a - b)).sum();
            let largest = self.levels.iter().map(|l| l.log_weight + l.half * distance).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = self.levels.iter().map(|l| (l.log_weight + l.half * distance - largest).exp()).sum();
            *weight = largest + sum.ln();
            highest = highest.max(*weight);
        }
        let mut total = 0.0;
        for weight in weights.iter_mut() {
            *weight = (*weight - highest).exp();
            total += *weight;
        }
        weights.iter_mut().for_each(|w| *w /= total);
    }

    /// Which place each atom of `system` has in the structures: the k-th of an element is the k-th of it there.
    fn places(&self, system: &System, name: &str) -> ContractResult<Vec<usize>> {
        let mut taken = vec![false; self.types.len()];
        let place = |&t: &u32| {
            let place = (0..self.types.len()).find(|&p| self.types[p] == t && !taken[p])?;
            taken[place] = true;
            Some(place)
        };
        let places: Option<Vec<usize>> = system.types.iter().map(place).collect();
        places.filter(|p| p.len() == self.types.len()).ok_or_else(|| ContractError::Unsupported {
            provider: name.to_owned(),
            what: format!("pseudo-forces on the {} atoms of {}", system.len(), system.name),
            remedy: format!("its structures are of another composition, {}", formula(&self.types)),
        })
    }
}

/// The optimal pseudo-force field of a set of structures.
pub struct Oracle {
    capabilities: Capabilities,
    /// kJ/mol/nm².
    stiffness: f64,
    reference: Arc<Reference>,
    /// Per replica.
    places: Vec<Arc<Vec<usize>>>,
    weights: Vec<f64>,
    x: Vec<f64>,
}

impl Oracle {
    /// Atomic numbers `[N]` of the structures.
    pub fn types(&self) -> &[u32] {
        &self.reference.types
    }

    /// The structures `[M, N, 3]` in nm, centred.
    pub fn structures(&self) -> Vec<f64> {
        self.reference.structures.iter().map(|x| x * NM_PER_ANGSTROM).collect()
    }

    /// The nearest structure to `x` (`[N, 3]`, nm, atoms in the order of the structures) and the root-mean-square distance
    /// (nm) from it, without superposition.
    pub fn nearest(&self, x: &[f64]) -> (usize, f64) {
        let square = |m: usize| -> f64 { self.reference.structure(m).iter().zip(x).map(|(a, b)| (NM_PER_ANGSTROM * a - b).powi(2)).sum() };
        let best = (0..self.reference.count()).map(|m| (m, square(m))).min_by(|a, b| a.1.total_cmp(&b.1));
        let (m, square) = best.unwrap_or((0, f64::NAN));
        (m, (square / self.reference.types.len() as f64).sqrt())
    }

    fn fill<T: Real>(&mut self, batch: &Batch, positions: View<'_>, out: &mut Output) -> ContractResult<()> {
        let (all, forces) = (positions.typed::<T>()?, out.forces.typed_mut::<T>()?);
        let scale = self.stiffness * NM_PER_ANGSTROM;
        for b in 0..batch.replicas() {
            let (x, f) = (&all[batch.range3(b)], &mut forces[batch.range3(b)]);
            let places = &self.places[b];
            for (atom, &place) in places.iter().enumerate() {
                for a in 0..3 {
                    self.x[3 * place + a] = x[3 * atom + a].to_f64() / NM_PER_ANGSTROM;
                }
            }
            self.reference.weigh(&self.x, &mut self.weights);
            for (atom, &place) in places.iter().enumerate() {
                for a in 0..3 {
                    let k = 3 * place + a;
                    let clean: f64 = self.weights.iter().enumerate().map(|(m, w)| w * self.reference.structure(m)[k]).sum();
                    f[3 * atom + a] = T::from_f64(scale * (clean - self.x[k]));
                }
            }
        }
        Ok(())
    }
}

impl ForceProvider for Oracle {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> ContractResult<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        self.places.clear();
        for (b, system) in batch.systems().iter().enumerate() {
            let places = match self.places.last() {
                Some(last) if Arc::ptr_eq(system, batch.system(b - 1)) => last.clone(),
                _ => Arc::new(self.reference.places(system, &self.capabilities.name)?),
            };
            self.places.push(places);
        }
        self.x.resize(3 * self.reference.types.len(), 0.0);
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> ContractResult<()> {
        self.capabilities.check_want(input.want)?;
        by_dtype!(input.positions.dtype(), fill(self, input.batch, input.positions, out))
    }

    fn fork(&self) -> ContractResult<Box<dyn ForceProvider>> {
        Ok(Box::new(Oracle {
            capabilities: self.capabilities.clone(),
            stiffness: self.stiffness,
            reference: self.reference.clone(),
            places: Vec::new(),
            weights: vec![0.0; self.weights.len()],
            x: Vec::new(),
        }))
    }
}

fn fill<T: Real>(oracle: &mut Oracle, batch: &Batch, positions: View<'_>, out: &mut Output) -> ContractResult<()> {
    oracle.fill::<T>(batch, positions, out)
}

/// Symbols of light elements by atomic number from 1: what a set of small molecules is made of.
const SYMBOLS: [&str; 36] = [
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr",
    "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr",
];

fn formula(types: &[u32]) -> String {
    let count = |t: u32| types.iter().filter(|&&u| u == t).count();
    let mut known: Vec<u32> = types.to_vec();
    known.sort_unstable_by_key(|&t| (t == 1, t));
    known.dedup();
    known.iter().map(|&t| format!("{}{}", SYMBOLS[t as usize - 1], count(t))).collect()
}

/// Atomic numbers `[N]` of the first structure, and all structures `[M, N, 3]` in Å, centred, with atoms in the first one's
/// order of elements.
fn read_xyz(file: &Path) -> Result<(Vec<u32>, Vec<f64>)> {
    let text = crate::spec::read_text(file, MAX_BYTES)?;
    let fail = |line: usize, reason: &str| Err(Error::File { file: file.to_owned(), reason: format!("line {}: {reason}", line + 1) });
    let lines: Vec<&str> = text.lines().collect();
    let (mut types, mut structures): (Vec<u32>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < lines.len() && !lines[at].trim().is_empty() {
        let Some(n) = lines[at].trim().parse::<usize>().ok().filter(|&n| n > 1 && n <= 4096) else {
            return fail(at, "a structure of an XYZ file begins with its number of atoms, here 2 to 4096");
        };
        if at + 2 + n > lines.len() {
            return fail(at, "the file ends inside this structure");
        }
        let mut atoms: Vec<(u32, [f64; 3])> = Vec::with_capacity(n);
        for line in at + 2..at + 2 + n {
            let mut words = lines[line].split_whitespace();
            let symbol = words.next().unwrap_or_default();
            let Some(number) = SYMBOLS.iter().position(|s| *s == symbol) else {
                return fail(line, &format!("`{symbol}` is not the symbol of an element up to Kr"));
            };
            let mut r = [0.0; 3];
            for r in &mut r {
                *r = match words.next().and_then(|w| w.parse::<f64>().ok()).filter(|x| x.is_finite() && x.abs() < 1e4) {
                    Some(x) => x,
                    None => return fail(line, "three coordinates in Å are needed after the symbol"),
                };
            }
            atoms.push((number as u32 + 1, r));
        }
        let ordered: Vec<[f64; 3]> = if types.is_empty() {
            types = atoms.iter().map(|a| a.0).collect();
            atoms.iter().map(|a| a.1).collect()
        } else {
            let mut rows = Vec::with_capacity(n);
            for &t in &types {
                match atoms.iter().position(|a| a.0 == t) {
                    Some(i) => rows.push(atoms.remove(i).1),
                    None => break,
                }
            }
            if rows.len() != n || !atoms.is_empty() {
                return fail(at, &format!("this structure is not made of {} as the first one", formula(&types)));
            }
            rows
        };
        let mean: [f64; 3] = std::array::from_fn(|a| ordered.iter().map(|r| r[a]).sum::<f64>() / n as f64);
        structures.extend(ordered.iter().flat_map(|r| (0..3).map(|a| r[a] - mean[a])));
        at += 2 + n;
    }
    if types.is_empty() {
        return Err(Error::File { file: file.to_owned(), reason: "there is no structure in it; give an XYZ file".into() });
    }
    Ok((types, structures))
}
