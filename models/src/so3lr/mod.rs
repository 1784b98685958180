//! SO3LR: a pretrained force field for organic and biomolecules (H, C, N, O, F, P, S, Cl) that joins an equivariant network
//! of short reach with repulsion of nuclei, electrostatics of predicted charges, and dispersion of predicted polarisabilities.
//!
//! A. Kabylda, J. T. Frank, S. Suárez-Dou, A. Khabibrakhmanov, L. Medrano Sandonas, O. T. Unke, S. Chmiela, K.-R. Müller and
//! A. Tkatchenko, *Molecular Simulations with a Pretrained Neural Network and Universal Pairwise Force Fields*, 2024; the
//! network is SO3krates (Frank, Unke, Müller and Chmiela, Nat. Commun. 15, 6539 (2024)). Weights (MIT licence) are published at
//! <https://github.com/general-molecular-simulations/so3lr>; they are a file that the user gives, converted to safetensors.
//!
//! # What it is good for
//! It was trained on forces, dipoles and Hirshfeld ratios (PBE0 with many-body dispersion), not on energies: **energies of
//! molecules of different composition cannot be compared**, and [`Capabilities::energies_comparable`] says so. Forces,
//! conformers of one molecule, charges and dispersion are its strength. Charged systems have their total charge embedded and
//! conserved; molecules are taken as closed shells.
//!
//! # Equations
//! In eV, Å and e; `r_ij` is the vector from `i` to `j` and `Y_lm` are real spherical harmonics of degrees 1 to 4 of its
//! direction. `D` are dense layers, `silu(x) = x/(1 + e^−x)`. The energy is a sum of four parts.
//!
//! *Network*, within 4.5 Å. Every atom has features `x` (start: an embedding of its element and of the total charge, over √3)
//! and a tensor `t_lm` (start: 0). With invariants `|t|²_l = Σ_m t_lm²/√(2l+1)`, radial functions
//! `b_k(r) = C(31,k) u^k (1−u)^(31−k)`, `u = e^(−γ r)`, and the envelope `c(r) = 1 − 6s⁵ + 15s⁴ − 10s³`, `s = r/4.5`, a layer
//! does, for filters τ = 1, 2,
//! ```text
//! w^τ   = D silu D b(r_ij) + D silu D |t_j − t_i|²                      (symmetric in i and j: once per pair)
//! α^τ_h = c(r_ij)/13.169 · Σ_c (Wq^τ x_i)_hc w^τ_hc (Wk^τ x_j)_hc       h: four heads, which for τ = 2 are the degrees
//! x_i  += Σ_j α¹ ⊗ Wv x_j,    t_i,lm += Σ_j α²_l Y_lm(r_ij)
//! x     = LN x;   x += D silu D silu x;   (y, z) = D (x, |t|²);   x = LN(x + y);   t_lm *= 1 + z_l
//! ```
//! and `E = Σ_i a_Z D silu D x_i + b_Z`.
//!
//! *Repulsion* `½ Σ s(r; 0, 1.5) c(r) k Z_i Z_j/r Σ_k c_k exp(−a_k r d (Z_i^p + Z_j^p))` with the switch `s(r; on, off)` =
//! `1/(1 + exp(1/(1−y) − 1/y))`, `y = (r − on)/(off − on)`.
//!
//! *Electrostatics* `½ k Σ q_i q_j [V(r) − V(R) − (1 − f) V′(R)(r − R)]`, `V = erf(r/4)/r`, `f = s(r; 0.45 R, R)`, with charges
//! `q_i = D silu D x_i + q⁰_Z`, shifted alike so that they add up to the total charge.
//!
//! *Dispersion*, in atomic units: ratios `ρ_i = |ρ⁰_Z + e_Z · D silu D x_i/√64|` scale the free atoms' `α = α⁰ρ`, `C6 = C6⁰ρ²`;
//! `E = −½ Σ s(r; R−2, R) Σ_n C_n/(r^n + p^n)`, n = 6, 8, 10, with the quantum Drude oscillator's `C8` and `C10`.
//!
//! `R` is the long-range cutoff: 1000 Å, which is recommended for molecules in the gas phase, unless another is asked for.
//!
//! # How it is computed
//! Forward and backward passes are written by hand over memory reused from step to step, one molecule after the other, so that
//! a molecule's result cannot depend on its neighbours in the batch. Exact algebra first: each pair is visited once for both
//! directions; the first layer's angular filters are constants; last layers of the regressions are vectors by element; the
//! ratios leave the combination rule of `C6` as a product. Radial filters are functions of one number and are tabulated (see
//! the source of `radial`). Products run on kernels of this crate in the instruction set chosen for the process, so that
//! results are the same bits on machines that share it.

mod attention;
mod elementwise;
mod harmonics;
#[cfg(test)]
mod hostile;
mod long_range;
mod network;
mod radial;
mod weights;

use crate::error::{Error, Result};
use network::{Model, Network, Prepared, Work};
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::units::KJ_PER_EV;
use scorefield_integrators::{Batch, Capabilities, DType, Dimension, ForceProvider, Input, Output, Quantity, System, UnitSystem};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weights::Weights;
pub(crate) use weights::recognises;

/// Å per nm.
const ANGSTROM: f64 = 10.0;
/// Smallest and largest long-range cutoff in Å. Below, the pair terms would be cut inside molecules' own bonds and angles.
const CUTOFFS: [f64; 2] = [4.5, 1e4];

/// `so3lr`: as written by the user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct So3lrSpec {
    /// The safetensors file.
    pub weights: PathBuf,
    /// Long-range cutoff.
    #[serde(default = "default_cutoff")]
    pub cutoff: Quantity,
}

fn default_cutoff() -> Quantity {
    Quantity::new(1000.0, "A")
}

impl So3lrSpec {
    /// The provider.
    ///
    /// # Errors
    /// Where the file cannot be used or the cutoff is refused.
    pub fn build(&self) -> Result<So3lrProvider> {
        let cutoff = self.cutoff.resolve(Dimension::LENGTH, UnitSystem::Si)?;
        So3lrProvider::new(&self.weights, cutoff)
    }
}

/// The parts of an energy in kJ/mol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Parts {
    /// Of the network.
    pub network: f64,
    /// Of nuclei closer than 1.5 Å.
    pub repulsion: f64,
    /// Of charges.
    pub electrostatic: f64,
    /// Of dispersion.
    pub dispersion: f64,
}

/// Energies and forces of SO3LR; see the [module](self).
pub struct So3lrProvider {
    capabilities: Capabilities,
    model: Arc<Model>,
    single: Scratch<f32>,
    double: Scratch<f64>,
    parts: Vec<Parts>,
    charges: Vec<f64>,
    ratios: Vec<f64>,
    pairs: usize,
}

/// Memory of one precision.
struct Scratch<T> {
    systems: Vec<(Arc<System>, Prepared<T>)>,
    /// Index into `systems` by replica.
    of_replica: Vec<usize>,
    work: Work<T>,
}

impl<T: SimdReal> Default for Scratch<T> {
    fn default() -> Self {
        Scratch { systems: Vec::new(), of_replica: Vec::new(), work: Work::default() }
    }
}

impl So3lrProvider {
    /// Reads `weights`; `cutoff` is the long-range cutoff in nm.
    ///
    /// # Errors
    /// Where the file is no complete set of weights, or the cutoff is refused.
    pub fn new(weights: &Path, cutoff: f64) -> Result<Self> {
        let in_angstrom = cutoff * ANGSTROM;
        if !(CUTOFFS[0]..=CUTOFFS[1]).contains(&in_angstrom) {
            let remedy = format!("it is between {} and {} A; 1000 A is recommended for molecules in the gas phase", CUTOFFS[0], CUTOFFS[1]);
            return Err(Error::parameter("so3lr", "cutoff", format!("{in_angstrom} A"), &remedy));
        }
        let model = Model::new(Weights::read(weights)?, in_angstrom);
        let capabilities = Capabilities {
            virial: true,
            atom_energy: true,
            energies_comparable: false,
            types: Some(model.elements()),
            range: Some(cutoff),
            ..Capabilities::potential("so3lr")
        };
        Ok(So3lrProvider::of_model(capabilities, Arc::new(model)))
    }

    fn of_model(capabilities: Capabilities, model: Arc<Model>) -> Self {
        So3lrProvider {
            capabilities,
            model,
            single: Scratch::default(),
            double: Scratch::default(),
            parts: Vec::new(),
            charges: Vec::new(),
            ratios: Vec::new(),
            pairs: 0,
        }
    }

    /// The long-range cutoff in nm.
    pub fn cutoff(&self) -> f64 {
        self.model.cutoff() / ANGSTROM
    }

    /// Parts of the energies of the last evaluation, by replica.
    pub fn parts(&self) -> &[Parts] {
        &self.parts
    }

    /// Charges of the last evaluation, by atom, in e.
    pub fn charges(&self) -> &[f64] {
        &self.charges
    }

    /// Ratios of Hirshfeld volumes to free atoms' of the last evaluation, by atom.
    pub fn hirshfeld_ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Pairs of atoms within the network's reach in the last evaluation, over all replicas.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Floating-point operations of all matrix products of an evaluation of one molecule, forward and backward: the part of
    /// the work that a faster machine could only do faster by multiplying faster.
    pub fn matrix_flops(&self, atoms: usize, pairs: usize) -> usize {
        self.model.single.flops(atoms, pairs)
    }
}

/// Checks systems, prepares those that are new and grows memory.
fn prepare<T: SimdReal>(model: &Model, network: &Network<T>, scratch: &mut Scratch<T>, batch: &Batch) {
    let Scratch { systems, of_replica, work } = scratch;
    systems.retain(|(old, _)| batch.systems().iter().any(|new| Arc::ptr_eq(old, new)));
    of_replica.clear();
    let mut most = 0;
    for (b, system) in batch.systems().iter().enumerate() {
        let index = match of_replica.last() {
            Some(&last) if Arc::ptr_eq(system, batch.system(b - 1)) => last,
            _ => match systems.iter().position(|(s, _)| Arc::ptr_eq(s, system)) {
                Some(known) => known,
                None => {
                    systems.push((system.clone(), Prepared::new(model, network, system)));
                    systems.len() - 1
                }
            },
        };
        of_replica.push(index);
        most = most.max(system.len());
    }
    work.reserve(network, most);
}

impl So3lrProvider {
    fn evaluate_typed<T: SimdReal>(
        model: &Model,
        network: &Network<T>,
        scratch: &mut Scratch<T>,
        report: (&mut [Parts], &mut [f64], &mut [f64], &mut usize),
        input: &Input<'_>,
        out: &mut Output,
    ) -> scorefield_integrators::Result<()> {
        let positions: &[T] = input.positions.typed()?;
        let forces: &mut [T] = out.forces.typed_mut()?;
        let (parts, charges, ratios, pairs) = report;
        *pairs = 0;
        for b in 0..input.batch.replicas() {
            let work = &mut scratch.work;
            let prepared = &scratch.systems[scratch.of_replica[b]].1;
            let (rows, atoms) = (input.batch.range3(b), input.batch.range(b));
            let n = atoms.len();
            for (x, &p) in work.positions.iter_mut().zip(&positions[rows.clone()]) {
                *x = ANGSTROM * p.to_f64();
            }
            network::evaluate(model, network, prepared, work);
            for (f, &g) in forces[rows].iter_mut().zip(&work.forces) {
                *f = T::from_f64(g * (KJ_PER_EV * ANGSTROM));
            }
            *pairs += work.pair_count();
            for (i, a) in atoms.clone().enumerate() {
                charges[a] = work.charges()[i].to_f64();
                ratios[a] = work.ratios()[i].to_f64();
            }
            let mut sums = [0.0; 4];
            let mut total = 0.0;
            for (i, a) in atoms.enumerate() {
                let mut sum = 0.0;
                for (part, energies) in sums.iter_mut().zip(&work.energies) {
                    *part += energies[i];
                    sum += energies[i];
                }
                total += sum;
                if input.want.atom_energy {
                    out.atom_energy[a] = sum * KJ_PER_EV;
                }
            }
            let [network, repulsion, electrostatic, dispersion] = sums;
            parts[b] = Parts {
                network: network * KJ_PER_EV,
                repulsion: repulsion * KJ_PER_EV,
                electrostatic: electrostatic * KJ_PER_EV,
                dispersion: dispersion * KJ_PER_EV,
            };
            if input.want.energy {
                out.energy[b] = total * KJ_PER_EV;
            }
            if input.want.virial {
                // Forces of a free molecule add up to nothing, so that any origin will do; the first atom keeps numbers small.
                let mut virial = [0.0; 9];
                for i in 0..n {
                    for k in 0..3 {
                        for l in 0..3 {
                            virial[3 * k + l] += (work.positions[3 * i + k] - work.positions[k]) * work.forces[3 * i + l];
                        }
                    }
                }
                for (to, v) in out.virial[b].iter_mut().zip(virial) {
                    *to = v * KJ_PER_EV;
                }
            }
        }
        Ok(())
    }
}

impl ForceProvider for So3lrProvider {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn prepare(&mut self, batch: &Batch, dtype: DType) -> scorefield_integrators::Result<()> {
        self.capabilities.check_batch(batch, false, dtype)?;
        if let Some(flat) = batch.systems().iter().find(|s| s.axes != [true; 3]) {
            return scorefield_integrators::error::invalid(format!("so3lr acts on all axes, but {} has inactive ones", flat.name));
        }
        self.parts.resize(batch.replicas(), Parts::default());
        self.charges.resize(batch.atoms(), 0.0);
        self.ratios.resize(batch.atoms(), 0.0);
        match dtype {
            DType::F32 => prepare(&self.model, &self.model.single, &mut self.single, batch),
            DType::F64 => prepare(&self.model, &self.model.double, &mut self.double, batch),
        }
        Ok(())
    }

    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> scorefield_integrators::Result<()> {
        self.capabilities.check_want(input.want)?;
        if input.cells.is_some() {
            return Err(scorefield_integrators::Error::Unsupported {
                provider: self.capabilities.name.clone(),
                what: "forces in a periodic cell".into(),
                remedy: "remove the cell from the input".into(),
            });
        }
        let report = (&mut self.parts[..], &mut self.charges[..], &mut self.ratios[..], &mut self.pairs);
        match input.positions.dtype() {
            DType::F32 => Self::evaluate_typed(&self.model, &self.model.single, &mut self.single, report, input, out),
            DType::F64 => Self::evaluate_typed(&self.model, &self.model.double, &mut self.double, report, input, out),
        }
    }

    fn fork(&self) -> scorefield_integrators::Result<Box<dyn ForceProvider>> {
        Ok(Box::new(So3lrProvider::of_model(self.capabilities.clone(), self.model.clone())))
    }
}

#[cfg(test)]
mod tests;
