//! Whether a conformer is one of the molecule that was asked for: bonds, handedness, arrangement at double bonds.

use crate::molecule::{Chirality, Element, Graph};

/// Slack on the sum of covalent radii up to which atoms are bonded (Å).
const SLACK: f64 = 0.45;
/// Bonds are longer than this part of the sum of radii.
const SHORTEST: f64 = 0.6;
/// Atoms without bond are this much further apart than the sum of their radii (Å).
const APART: f64 = 0.15;

/// What is wrong with a conformer; nothing where all is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Bonds that are too long or too short.
    pub bonds: Vec<usize>,
    /// Pairs of atoms without bond that are as close as if they had one.
    pub clashes: Vec<(usize, usize)>,
    /// Atoms of the wrong handedness, or flat ones.
    pub centres: Vec<usize>,
    /// Double bonds of the wrong arrangement.
    pub double_bonds: Vec<usize>,
    /// A coordinate is not finite.
    pub not_finite: bool,
}

impl Faults {
    /// Of `graph`, whose hydrogens are all atoms, at `x [N, 3]` (Å).
    pub fn of(graph: &Graph, x: &[f64]) -> Self {
        if !x.iter().all(|x| x.is_finite()) {
            return Faults { not_finite: true, ..Faults::default() };
        }
        let mut faults = Faults::default();
        let radius = |i: usize| Element::of(graph.atoms()[i].element).map_or(0.0, |e| f64::from(e.radius));
        let distance = |i: usize, j: usize| (0..3).map(|k| (x[3 * i + k] - x[3 * j + k]).powi(2)).sum::<f64>().sqrt();
        for i in 0..graph.len() {
            for j in 0..i {
                let (d, sum) = (distance(i, j), radius(i) + radius(j));
                match graph.bond_between(i, j) {
                    Some(b) if d > sum + SLACK || d < SHORTEST * sum => faults.bonds.push(b),
                    None if d < sum + APART => faults.clashes.push((j, i)),
                    _ => {}
                }
            }
        }
        for (i, atom) in graph.atoms().iter().enumerate() {
            if atom.chirality != Chirality::None && graph.chirality_at(i, x) != atom.chirality {
                faults.centres.push(i);
            }
        }
        for (b, bond) in graph.bonds().iter().enumerate() {
            if bond.stereo.is_some_and(|s| graph.same_side_at(b, s.references, x) != s.same_side) {
                faults.double_bonds.push(b);
            }
        }
        faults
    }

    /// True where nothing is wrong.
    pub fn is_empty(&self) -> bool {
        *self == Faults::default()
    }

    /// True where the molecule came out, but another stereoisomer of it.
    pub fn is_stereo_only(&self) -> bool {
        !self.is_empty() && self.bonds.is_empty() && self.clashes.is_empty() && !self.not_finite
    }
}

/// Mirrors `x` in place where that mends every wrong centre: all of them are wrong. A plane of the mirror leaves double bonds as they are.
/// Returns whether it did.
pub fn mirror_if_all_wrong(graph: &Graph, faults: &Faults, x: &mut [f64]) -> bool {
    let centres = graph.atoms().iter().filter(|a| a.chirality != Chirality::None).count();
    let all = centres > 0 && faults.centres.len() == centres;
    if all {
        x.iter_mut().skip(2).step_by(3).for_each(|z| *z = -*z);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::molecule::Graph;

    /// Difluoroethene and a chiral methane, built by hand.
    #[test]
    fn faults_are_found() {
        let graph = Graph::from_smiles("F/C=C/F").unwrap().with_hydrogens();
        // F C C F H H in one plane, trans.
        let x = [-1.1, 1.2, 0.0, 0.0, 0.66, 0.0, 0.0, -0.66, 0.0, 1.1, -1.2, 0.0, 0.94, 1.2, 0.0, -0.94, -1.2, 0.0];
        assert_eq!(Faults::of(&graph, &x), Faults::default());
        let mut cis = x;
        cis.swap(9, 15);
        assert_eq!(Faults::of(&graph, &cis).double_bonds, vec![1]);
        let mut broken = x;
        broken[0] = -2.4;
        let faults = Faults::of(&graph, &broken);
        assert_eq!(faults.bonds, vec![0]);
        let mut clash = x;
        clash[0] = 0.94;
        assert!(!Faults::of(&graph, &clash).clashes.is_empty());
        assert!(Faults::of(&graph, &[f64::NAN; 18]).not_finite);

        let graph = Graph::from_smiles("F[C@H](Cl)Br").unwrap().with_hydrogens();
        let mut x = [0.8, 0.8, 0.8, 0.0, 0.0, 0.0, -1.0, -1.0, 1.0, -1.1, 1.1, -1.1, 0.6, -0.6, -0.6];
        let mut faults = Faults::of(&graph, &x);
        if faults.is_empty() {
            x.iter_mut().step_by(3).for_each(|x| *x = -*x);
            faults = Faults::of(&graph, &x);
        }
        assert!(faults.centres == vec![1] && faults.is_stereo_only());
        assert!(mirror_if_all_wrong(&graph, &faults, &mut x));
        assert!(Faults::of(&graph, &x).is_empty());
        // Where nothing is handed nothing is mirrored.
        let plain = Graph::from_smiles("C").unwrap().with_hydrogens();
        assert!(!mirror_if_all_wrong(&plain, &Faults::default(), &mut [0.0; 15]));
    }
}
