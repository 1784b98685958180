//! What is compared of a frame: two coordinates, the bonds, the state it is in.

use super::data::Trajectory;
use crate::analysis::geometry::{backbone_torsions, dihedral, distance};
use crate::analysis::tica::{Tica, chain_feature_count, chain_features};
use crate::analysis::transition::{assign, k_means};
use crate::error::{Result, usage};
use scorefield_integrators::System;
use std::f64::consts::PI;
use std::ops::Range;

/// Which two coordinates span the density.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CoordinateChoice {
    /// φ/ψ where a peptide backbone is found, x/y for a toy of one particle, else TICA.
    #[default]
    Auto,
    /// Two dihedral angles: those of a peptide's backbone, or those given.
    PhiPsi,
    /// x and y of the first particle.
    Plane,
    /// The two slowest components of distances and dihedral angles, fitted to the reference.
    Tica,
}

/// Two coordinates of a frame.
#[derive(Clone, Debug)]
pub enum Coordinates {
    /// Dihedral angles in radians, from −π to π.
    Torsions {
        /// Atoms of both angles.
        atoms: [[usize; 4]; 2],
        /// Residue that they belong to.
        label: String,
    },
    /// x and y of the first particle.
    Plane,
    /// Slowest components.
    Tica(Tica),
}

/// Most beads whose distances and dihedrals are fitted: their covariance has 3 million entries.
const MOST_TICA_BEADS: usize = 60;

impl Coordinates {
    /// Chooses coordinates for `reference`; `atoms` are torsions given by hand, `lag` is TICA's in frames.
    ///
    /// # Errors
    /// Where the beads do not have such coordinates.
    pub fn choose(choice: CoordinateChoice, atoms: Option<[[usize; 4]; 2]>, reference: &Trajectory, lag: usize) -> Result<Self> {
        let n = reference.atoms();
        let choice = match choice {
            CoordinateChoice::Auto if atoms.is_some() => CoordinateChoice::PhiPsi,
            CoordinateChoice::Auto if n == 1 => CoordinateChoice::Plane,
            CoordinateChoice::Auto if !backbone_torsions(&reference.system).is_empty() => CoordinateChoice::PhiPsi,
            CoordinateChoice::Auto => CoordinateChoice::Tica,
            other => other,
        };
        match choice {
            CoordinateChoice::Plane if n == 1 => Ok(Coordinates::Plane),
            CoordinateChoice::Plane => usage(format!("--coordinates plane is for toys of one particle, but there are {n} atoms")),
            CoordinateChoice::PhiPsi => Self::torsions(atoms, &reference.system),
            CoordinateChoice::Tica | CoordinateChoice::Auto => Self::tica(reference, lag),
        }
    }

    fn torsions(atoms: Option<[[usize; 4]; 2]>, system: &System) -> Result<Self> {
        if let Some(atoms) = atoms {
            if let Some(&i) = atoms.iter().flatten().find(|&&i| i >= system.len()) {
                return usage(format!("--phi or --psi names atom {i}, but there are {} atoms, counted from 0", system.len()));
            }
            return Ok(Coordinates::Torsions { atoms, label: String::new() });
        }
        match backbone_torsions(system).into_iter().next() {
            Some(residue) => Ok(Coordinates::Torsions { atoms: [residue.phi, residue.psi], label: residue.label }),
            None => usage(
                "the backbone's φ and ψ are not found in the names or bonds of the atoms; give them as `--phi 0,1,2,3 --psi 1,2,3,4`, or use --coordinates tica",
            ),
        }
    }

    fn tica(reference: &Trajectory, lag: usize) -> Result<Self> {
        let n = reference.atoms();
        if !(3..=MOST_TICA_BEADS).contains(&n) {
            return usage(format!("TICA is for 3 to {MOST_TICA_BEADS} beads, but there are {n}; choose fewer with --select"));
        }
        let width = chain_feature_count(n);
        let chains: Vec<Vec<f64>> =
            reference.chains.iter().map(|c| c.clone().flat_map(|i| chain_features(reference.frame(i))).collect()).collect();
        let views: Vec<&[f64]> = chains.iter().map(Vec::as_slice).collect();
        match Tica::fit(&views, width, lag, 2) {
            Some(tica) if tica.components.len() == 2 => Ok(Coordinates::Tica(tica)),
            _ => usage(format!(
                "TICA finds no two components in the reference at a lag of {lag} frames; give a shorter --lag or more frames"
            )),
        }
    }

    /// Both coordinates of a frame `[N, 3]`.
    pub fn of(&self, positions: &[f64]) -> [f64; 2] {
        match self {
            Coordinates::Torsions { atoms, .. } => atoms.map(|a| dihedral(positions, a)),
            Coordinates::Plane => [positions[0], positions[1]],
            Coordinates::Tica(tica) => {
                let values = tica.project(&chain_features(positions));
                [values[0], values[1]]
            }
        }
    }

    /// Names of both.
    pub fn labels(&self) -> [&'static str; 2] {
        match self {
            Coordinates::Torsions { .. } => ["φ / rad", "ψ / rad"],
            Coordinates::Plane => ["x", "y"],
            Coordinates::Tica(_) => ["TICA 1", "TICA 2"],
        }
    }

    /// Name for files and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Coordinates::Torsions { .. } => "phi-psi",
            Coordinates::Plane => "plane",
            Coordinates::Tica(_) => "tica",
        }
    }

    /// The range they have by nature.
    pub fn natural_limits(&self) -> Option<[[f64; 2]; 2]> {
        matches!(self, Coordinates::Torsions { .. }).then_some([[-PI, PI]; 2])
    }

    /// Bins per axis of the published histograms.
    pub fn usual_bins(&self) -> usize {
        if matches!(self, Coordinates::Torsions { .. }) { 64 } else { 100 }
    }

    /// A frame's place for clusters: coordinates, angles by cosine and sine so that −π and π are one.
    pub fn cluster_features(&self, point: [f64; 2]) -> Vec<f64> {
        match self {
            Coordinates::Torsions { .. } => point.iter().flat_map(|a| [a.cos(), a.sin()]).collect(),
            _ => point.to_vec(),
        }
    }
}

/// Points that k-means looks at: more do not move its centres beyond their meaning.
const MOST_CLUSTERED: usize = 20_000;

/// Discrete states around centres.
#[derive(Clone, Debug)]
pub struct States {
    /// Centres in the space of [`Coordinates::cluster_features`], `[k, dim]`.
    centres: Vec<f64>,
    dim: usize,
    /// Given by hand: distances are those of the coordinates themselves.
    plain: bool,
}

impl States {
    /// `k` clusters of the reference's points, largest first.
    pub fn of_reference(coordinates: &Coordinates, points: &[[f64; 2]], k: usize, seed: u64) -> Self {
        let stride = points.len().div_ceil(MOST_CLUSTERED).max(1);
        let features: Vec<f64> = points.iter().step_by(stride).flat_map(|&p| coordinates.cluster_features(p)).collect();
        let dim = coordinates.cluster_features([0.0; 2]).len();
        let found = k_means(&features, dim, k, seed);
        let mut sizes = vec![0usize; found.len() / dim];
        assign(&features, dim, &found).into_iter().for_each(|s| sizes[s] += 1);
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&s| std::cmp::Reverse(sizes[s]));
        let centres = order.iter().flat_map(|&s| found[s * dim..(s + 1) * dim].to_vec()).collect();
        States { centres, dim, plain: false }
    }

    /// States around `centres` in the coordinates themselves, by Euclidean distance.
    pub fn around(centres: &[[f64; 2]]) -> Self {
        States { centres: centres.iter().flatten().copied().collect(), dim: 2, plain: true }
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.centres.len() / self.dim
    }

    /// True without states.
    pub fn is_empty(&self) -> bool {
        self.centres.is_empty()
    }

    /// The state of each point.
    pub fn of(&self, coordinates: &Coordinates, points: &[[f64; 2]]) -> Vec<usize> {
        let features: Vec<f64> = if self.plain {
            points.iter().flatten().copied().collect()
        } else {
            points.iter().flat_map(|&p| coordinates.cluster_features(p)).collect()
        };
        assign(&features, self.dim, &self.centres)
    }

    /// Centres as points of the two coordinates.
    pub fn points(&self, coordinates: &Coordinates) -> Vec<[f64; 2]> {
        let angles = matches!(coordinates, Coordinates::Torsions { .. }) && !self.plain;
        let point = |c: &[f64]| if angles { [c[1].atan2(c[0]), c[3].atan2(c[2])] } else { [c[0], c[1]] };
        self.centres.chunks_exact(self.dim).map(point).collect()
    }
}

/// Pairs of beads whose distance counts as a bond: those of the structure file, else neighbours in the chain. Toys of one
/// particle have none.
pub(super) fn bonds(system: &System) -> Vec<(usize, usize)> {
    let known: Vec<(usize, usize)> = system.bonds.iter().map(|&(i, j)| (i as usize, j as usize)).collect();
    if known.is_empty() { (1..system.len()).map(|i| (i - 1, i)).collect() } else { known }
}

/// What metrics need of a trajectory.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The frames.
    pub trajectory: &'a Trajectory,
    /// Coordinates `[F]`.
    pub points: Vec<[f64; 2]>,
    /// Length of each bond in nm, `[bonds][F]`.
    pub bonds: Vec<Vec<f64>>,
    /// State `[F]`.
    pub states: Vec<usize>,
}

impl<'a> Observed<'a> {
    /// Looks at every frame of `trajectory`.
    pub fn of(trajectory: &'a Trajectory, coordinates: &Coordinates, bonds: &[(usize, usize)]) -> Self {
        let frames = || (0..trajectory.frames()).map(|i| trajectory.frame(i));
        Observed {
            trajectory,
            points: frames().map(|x| coordinates.of(x)).collect(),
            bonds: bonds.iter().map(|&(i, j)| frames().map(|x| distance(x, i, j)).collect()).collect(),
            states: Vec::new(),
        }
    }

    /// The coordinates of some frames.
    pub fn points_in(&self, ranges: &[Range<usize>]) -> Vec<[f64; 2]> {
        ranges.iter().flat_map(|r| self.points[r.clone()].iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn coordinates_are_chosen_by_what_there_is() {
        let toy = Trajectory::new("reference", Arc::new(System::particles("toy", 1, 1.0)), vec![0.1, 0.2, 0.0, 0.3, 0.4, 0.0], 1).unwrap();
        let plane = Coordinates::choose(CoordinateChoice::Auto, None, &toy, 1).unwrap();
        assert_eq!((plane.name(), plane.of(toy.frame(1))), ("plane", [0.3, 0.4]));
        assert!(Coordinates::choose(CoordinateChoice::PhiPsi, None, &toy, 1).unwrap_err().to_string().contains("--phi"));
        let chain: Vec<f64> = (0..40 * 15).map(|k| (k as f64 * 1.7).sin()).collect();
        let chain = Trajectory::new("reference", Arc::new(System::particles("beads", 5, 1.0)), chain, 2).unwrap();
        let choose = |choice, atoms| Coordinates::choose(choice, atoms, &chain, 1);
        assert_eq!(choose(CoordinateChoice::Auto, None).unwrap().name(), "tica");
        assert_eq!(choose(CoordinateChoice::Auto, Some([[0, 1, 2, 3], [1, 2, 3, 4]])).unwrap().name(), "phi-psi");
        assert!(choose(CoordinateChoice::PhiPsi, Some([[0, 1, 2, 3], [1, 2, 3, 5]])).unwrap_err().to_string().contains("atom 5"));
        assert!(choose(CoordinateChoice::Plane, None).unwrap_err().to_string().contains("5 atoms"));
        assert!(Coordinates::choose(CoordinateChoice::Tica, None, &chain, 50).unwrap_err().to_string().contains("--lag"));
    }

    #[test]
    fn angles_near_the_seam_are_one_cluster() {
        let torsions = Coordinates::Torsions { atoms: [[0; 4]; 2], label: String::new() };
        let points: Vec<[f64; 2]> = (0..100)
            .map(|i| if i % 4 == 0 { [0.5, 0.5] } else { [if i % 2 == 0 { 3.1 } else { -3.1 }, 0.01 * f64::from(i % 3)] })
            .collect();
        let states = States::of_reference(&torsions, &points, 2, 0);
        let labels = states.of(&torsions, &points);
        assert!(labels.iter().enumerate().all(|(i, &s)| (s == 1) == (i % 4 == 0)), "{labels:?}");
        assert!(states.points(&torsions)[0][0].abs() > 3.0);
        let given = States::around(&[[0.0, 0.0], [3.0, 0.0]]);
        assert_eq!(given.of(&torsions, &[[2.9, 0.0], [0.2, 0.3]]), [1, 0]);
    }
}
