//! Handedness of atoms and arrangement at double bonds: which are real, and what coordinates say.

use super::canonical::Compare;
use super::graph::{Chirality, DoubleBondStereo, Graph};
use super::rings::Rings;

/// Double bonds in smaller rings than this have one arrangement only.
const SMALLEST_RING: usize = 8;
/// Sine of the angle, normalised volume: flatter centres have no handedness.
const FLAT: f64 = 0.1;

impl Graph {
    /// Takes away handedness and arrangements that are none: where turning one around gives the same molecule. Aromaticity
    /// must have been found.
    pub fn clean_stereo(&mut self, rings: &Rings) {
        for i in 0..self.len() {
            if self.atoms()[i].chirality != Chirality::None && !self.may_be_centre(i, rings) {
                self.atom_mut(i).chirality = Chirality::None;
            }
        }
        for b in 0..self.bonds().len() {
            if self.bonds()[b].stereo.is_some() && !self.may_be_arranged(b, rings) {
                self.bond_mut(b).stereo = None;
            }
        }
        // Where all neighbours differ in constitution, a turn is a difference: no symmetry undoes it. The others are tried.
        // What makes no difference is found with all the rest in place, and goes at once.
        let colours = self.surroundings();
        let differ = |i: usize, but: Option<usize>| {
            let mut around: Vec<usize> =
                self.neighbours(i).iter().map(|n| n.atom as usize).filter(|j| Some(*j) != but).map(|j| colours[j]).collect();
            around.sort_unstable();
            around.windows(2).all(|w| w[0] != w[1])
        };
        let doubtful_atoms: Vec<usize> =
            (0..self.len()).filter(|&i| self.atoms()[i].chirality != Chirality::None && !differ(i, None)).collect();
        let doubtful_bonds: Vec<usize> = (0..self.bonds().len())
            .filter(|&b| {
                let (i, j) = (self.bonds()[b].atoms.0 as usize, self.bonds()[b].atoms.1 as usize);
                self.bonds()[b].stereo.is_some() && !(differ(i, Some(j)) && differ(j, Some(i)))
            })
            .collect();
        if doubtful_atoms.is_empty() && doubtful_bonds.is_empty() {
            return;
        }
        loop {
            let identity = self.identity(Compare::Stereo);
            let mut atoms = Vec::new();
            let mut bonds = Vec::new();
            for &i in &doubtful_atoms {
                let chirality = self.atoms()[i].chirality;
                if chirality == Chirality::None {
                    continue;
                }
                self.atom_mut(i).chirality = chirality.inverted();
                if self.identity(Compare::Stereo) == identity {
                    atoms.push(i);
                }
                self.atom_mut(i).chirality = chirality;
            }
            for &b in &doubtful_bonds {
                let Some(stereo) = self.bonds()[b].stereo else { continue };
                self.bond_mut(b).stereo = Some(DoubleBondStereo { same_side: !stereo.same_side, ..stereo });
                if self.identity(Compare::Stereo) == identity {
                    bonds.push(b);
                }
                self.bond_mut(b).stereo = Some(stereo);
            }
            if atoms.is_empty() && bonds.is_empty() {
                return;
            }
            atoms.into_iter().for_each(|i| self.atom_mut(i).chirality = Chirality::None);
            bonds.into_iter().for_each(|b| self.bond_mut(b).stereo = None);
        }
    }

    /// Sets handedness and arrangements from `positions` (`[N, 3]`, any unit); what was there before is forgotten. All
    /// hydrogens must be atoms, and aromaticity must have been found.
    pub fn set_stereo_from(&mut self, positions: &[f64], rings: &Rings) {
        for i in 0..self.len() {
            // Amines are left alone: most turn inside out, and RDKit marks none from coordinates.
            let amine = self.atoms()[i].element == 7 && self.total_degree(i) == 3;
            let chirality = if self.may_be_centre(i, rings) && !amine { self.chirality_at(i, positions) } else { Chirality::None };
            self.atom_mut(i).chirality = chirality;
        }
        for b in 0..self.bonds().len() {
            let mut stereo = None;
            if self.may_be_arranged(b, rings) {
                let (i, j) = self.bonds()[b].atoms;
                let first = |a: u32, other: u32| self.neighbours(a as usize).iter().map(|n| n.atom).find(|n| *n != other);
                if let (Some(k), Some(l)) = (first(i, j), first(j, i)) {
                    stereo = Some(DoubleBondStereo { references: (k, l), same_side: self.same_side_at(b, (k, l), positions) });
                }
            }
            self.bond_mut(b).stereo = stereo;
        }
        self.clean_stereo(rings);
    }

    /// Whether the neighbours `references` of the ends of bond `b` lie on one side of it at `positions` (`[N, 3]`, any unit).
    pub fn same_side_at(&self, b: usize, references: (u32, u32), positions: &[f64]) -> bool {
        let point = |i: u32| [0, 1, 2].map(|a| positions[3 * i as usize + a]);
        let ((i, j), (k, l)) = (self.bonds()[b].atoms, references);
        let axis = sub(point(j), point(i));
        dot(cross(axis, sub(point(k), point(i))), cross(axis, sub(point(l), point(j)))) > 0.0
    }

    /// Handedness of the arrangement of atom `i`'s neighbours at `positions` (`[N, 3]`, any unit); none where it is flat.
    pub fn chirality_at(&self, i: usize, positions: &[f64]) -> Chirality {
        let point = |i: usize| [0, 1, 2].map(|a| positions[3 * i + a]);
        let around: Vec<[f64; 3]> = self.neighbours(i).iter().map(|n| unit(sub(point(n.atom as usize), point(i)))).collect();
        // Seen from the first, the others turn to the left where this is negative; a missing fourth lies opposite the three.
        let volume = match around[..] {
            // Of the tetrahedron of all four: in cages they may lie on one side of their atom.
            [a, b, c, d] => dot(sub(b, a), cross(sub(c, a), sub(d, a))),
            [a, b, c] => -dot(a, cross(b, c)),
            _ => return Chirality::None,
        };
        match volume {
            v if v.abs() < FLAT => Chirality::None,
            v if v < 0.0 => Chirality::CounterClockwise,
            _ => Chirality::Clockwise,
        }
    }

    /// Could this atom have a handedness, as far as itself and its own neighbours say?
    fn may_be_centre(&self, i: usize, rings: &Rings) -> bool {
        let atom = self.atoms()[i];
        let hydrogens = self.neighbours(i).iter().filter(|n| self.is_plain_hydrogen(n.atom as usize)).count() + usize::from(atom.hydrogens);
        if hydrogens > 1 || atom.aromatic {
            return false;
        }
        match (atom.element, self.total_degree(i)) {
            (6 | 14 | 32, 4) => true,
            (7, 4) => true,
            // Amines turn inside out, unless a small ring or a bridgehead holds them.
            (7, 3) => hydrogens == 0 && atom.charge == 0 && self.unsaturation(i) == 0 && (rings.in_ring_of(i, 3) || rings.of_atom[i] >= 3),
            (15 | 33, 4) => true,
            (15 | 33, 3) => self.unsaturation(i) == 0,
            (16 | 34, 4) => true,
            // Sulfoxides and sulfonium ions.
            (16 | 34, 3) => hydrogens == 0 && (self.valence(i) == 4 || (self.valence(i) == 3 && atom.charge == 1)),
            _ => false,
        }
    }

    fn may_be_arranged(&self, b: usize, rings: &Rings) -> bool {
        let bond = self.bonds()[b];
        let small = rings.bonds.iter().any(|r| r.len() < SMALLEST_RING && r.contains(&(b as u32)));
        bond.order == 2
            && !bond.aromatic
            && !small
            && [bond.atoms.0, bond.atoms.1].into_iter().all(|a| {
                let i = a as usize;
                let hydrogens = self.neighbours(i).iter().filter(|n| self.is_plain_hydrogen(n.atom as usize)).count()
                    + usize::from(self.atoms()[i].hydrogens);
                // An imine's nitrogen may have its lone pair as second substituent.
                let lone = self.atoms()[i].element == 7 && self.total_degree(i) == 2;
                (self.total_degree(i) == 3 || lone) && hydrogens < 2 && self.unsaturation(i) == 1
            })
    }
}

fn sub(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|k| a[k] - b[k])
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(a: [f64; 3]) -> [f64; 3] {
    let length = dot(a, a).sqrt();
    if length > 0.0 { a.map(|x| x / length) } else { a }
}
