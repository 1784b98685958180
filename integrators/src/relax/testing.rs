//! Force fields and clusters for tests.

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::force::{Capabilities, ForceProvider, Input, Output};
use crate::system::System;
use crate::units::{KJ_PER_EV, NM_PER_ANGSTROM, UnitSystem};
use std::sync::Arc;

/// A force law on one replica.
#[derive(Clone, Copy)]
pub(super) enum Law {
    /// `4ε[(σ/r)¹² − (σ/r)⁶]` between all pairs.
    LennardJones { epsilon: f64, sigma: f64 },
    /// `F_a = −k_a x_a`, and a swirl `c ẑ × x` that is the gradient of nothing.
    Bowl { k: [f64; 3], swirl: f64 },
    /// `V = (x² − 1)² + y² + z²` for every atom.
    DoubleWell,
    /// The same force everywhere.
    Slope([f64; 3]),
}

/// A provider of one [`Law`]. Fails for systems called `cursed`, and where asked to for any batch of several.
#[derive(Clone)]
pub(super) struct Toy {
    pub(super) law: Law,
    pub(super) capabilities: Capabilities,
    pub(super) hates_company: bool,
}

impl Toy {
    pub(super) fn reduced(law: Law) -> Self {
        let mut capabilities = Capabilities::potential("toy");
        capabilities.units = UnitSystem::Reduced;
        Toy { law, capabilities, hates_company: false }
    }

    pub(super) fn si(law: Law) -> Self {
        Toy { law, capabilities: Capabilities::potential("toy"), hates_company: false }
    }

    pub(super) fn without_energy(mut self) -> Self {
        self.capabilities.energy = false;
        self
    }

    /// Energy and forces of one replica.
    fn replica(&self, x: View<'_>, forces: &mut Array, first: usize) -> f64 {
        let n = x.len() / 3;
        let at = |i: usize| [x.get(3 * i), x.get(3 * i + 1), x.get(3 * i + 2)];
        let mut energy = 0.0;
        for i in 0..n {
            let r = at(i);
            let mut f = [0.0; 3];
            match self.law {
                Law::LennardJones { epsilon, sigma } => {
                    for j in (0..n).filter(|&j| j != i) {
                        let q = at(j);
                        let d = [r[0] - q[0], r[1] - q[1], r[2] - q[2]];
                        let square: f64 = d.iter().map(|d| d * d).sum();
                        let s6 = (sigma * sigma / square).powi(3);
                        energy += 2.0 * epsilon * (s6 * s6 - s6);
                        for a in 0..3 {
                            f[a] += 24.0 * epsilon * (2.0 * s6 * s6 - s6) / square * d[a];
                        }
                    }
                }
                Law::Bowl { k, swirl } => {
                    f = [-k[0] * r[0] - swirl * r[1], -k[1] * r[1] + swirl * r[0], -k[2] * r[2]];
                    energy += (0..3).map(|a| 0.5 * k[a] * r[a] * r[a]).sum::<f64>();
                }
                Law::DoubleWell => {
                    let well = r[0] * r[0] - 1.0;
                    f = [-4.0 * r[0] * well, -2.0 * r[1], -2.0 * r[2]];
                    energy += well * well + r[1] * r[1] + r[2] * r[2];
                }
                Law::Slope(slope) => f = slope,
            }
            for a in 0..3 {
                forces.set(first + 3 * i + a, f[a]);
            }
        }
        energy
    }
}

impl ForceProvider for Toy {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn prepare(&mut self, _: &Batch, _: DType) -> Result<()> {
        Ok(())
    }
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        let batch = input.batch;
        let fail = |reason: &str| Err(Error::Provider { provider: "toy".into(), reason: reason.into() });
        if batch.systems().iter().any(|s| s.name == "cursed") {
            return fail("a cursed molecule");
        }
        if self.hates_company && batch.replicas() > 1 {
            return fail("one at a time, please");
        }
        for b in 0..batch.replicas() {
            let range = batch.range3(b);
            let energy = self.replica(input.positions.part(range.clone()), &mut out.forces, range.start);
            // Where no energy was asked for, whoever reads one is to notice.
            out.energy[b] = if input.want.energy { energy } else { f64::NAN };
        }
        Ok(())
    }
    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(self.clone()))
    }
}

/// `n` atoms of mass 1.
pub(super) fn atoms(n: usize) -> Arc<System> {
    Arc::new(System::particles(format!("{n} atoms"), n, 1.0))
}

/// Centre and corners of an icosahedron, neighbours at about the distance `1.12` of Lennard-Jones clusters.
pub(super) fn icosahedron() -> Vec<f64> {
    let golden = 0.5 * (1.0 + 5f64.sqrt());
    let scale = 1.08 / (1.0 + golden * golden).sqrt();
    let mut x = vec![0.0; 3];
    for turn in 0..3 {
        for (s, t) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
            let mut corner = [0.0, s * scale, t * golden * scale];
            corner.rotate_right(turn);
            x.extend(corner);
        }
    }
    x
}

/// The 38 points of a truncated octahedron of the face-centred cubic lattice around an octahedral hole.
pub(super) fn truncated_octahedron() -> Vec<f64> {
    // In halves of the cubic cell: sites with an odd sum about the hole at the origin; shells of 6, 8 and 24.
    let scale = 1.1 / 2f64.sqrt();
    let mut x = Vec::new();
    let range = || -2..=2i32;
    for (i, j, k) in range().flat_map(|i| range().flat_map(move |j| range().map(move |k| (i, j, k)))) {
        let square = i * i + j * j + k * k;
        if (i + j + k) % 2 != 0 && matches!(square, 1 | 3 | 5) {
            x.extend([i, j, k].map(|c| scale * f64::from(c)));
        }
    }
    x
}

/// `x` with every coordinate displaced by up to `amplitude`, differently for each `seed`.
pub(super) fn shaken(x: &[f64], amplitude: f64, seed: u64) -> Vec<f64> {
    x.iter().enumerate().map(|(k, x)| x + amplitude * (1.7 * k as f64 + 0.37 * seed as f64 + 0.3).sin()).collect()
}

/// A path of one of ASE's minimisers, in Å and eV, as `data/scripts/make_relax_references.py` writes it.
pub(super) struct Reference {
    pub(super) toy: Toy,
    /// Start in nm.
    pub(super) start: Vec<f64>,
    /// Positions after each iteration, in nm.
    pub(super) path: Vec<Vec<f64>>,
    /// Threshold of the whole minimisation in eV/Å.
    pub(super) fmax: f64,
    /// Its number of force evaluations.
    pub(super) evaluations: u64,
    /// Its energy in kJ/mol.
    pub(super) energy: f64,
}

impl Reference {
    /// All cases of `method`.
    pub(super) fn read(method: &str) -> Vec<Self> {
        let text = include_str!("../../../tests/data/relax/ase.json");
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        let numbers =
            |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() * NM_PER_ANGSTROM).collect() };
        let cases = document["cases"].as_object().unwrap().values().map(|case| Reference {
            toy: Toy::si(Law::LennardJones {
                epsilon: case["epsilon_eV"].as_f64().unwrap() * KJ_PER_EV,
                sigma: case["sigma_A"].as_f64().unwrap() * NM_PER_ANGSTROM,
            }),
            start: numbers(&case["start_A"]),
            path: case[method]["positions_A"].as_array().unwrap().iter().map(numbers).collect(),
            fmax: document["fmax_eV_A"].as_f64().unwrap(),
            evaluations: case[method]["evaluations"].as_u64().unwrap(),
            energy: case[method]["energy_eV"].as_f64().unwrap() * KJ_PER_EV,
        });
        cases.collect()
    }

    /// Forces at `x`.
    pub(super) fn forces(&self, x: &[f64]) -> Vec<f64> {
        let mut forces = Array::zeros(DType::F64, x.len());
        self.toy.replica(View::F64(x), &mut forces, 0);
        forces.to_f64()
    }

    /// Compares with the positions after iteration `step` (from 0).
    pub(super) fn check(&self, step: usize, x: &[f64]) {
        let error = x.iter().zip(&self.path[step]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-10, "iteration {}: {error:e} nm off", step + 1);
    }
}
