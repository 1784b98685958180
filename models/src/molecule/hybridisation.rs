//! Conjugation and hybridisation, by RDKit's rules.

use super::aromaticity::pi_electrons;
use super::element::element;
use super::graph::Graph;

/// How the orbitals of an atom are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hybridisation {
    /// Two directions.
    Sp,
    /// Three in a plane.
    Sp2,
    /// A tetrahedron.
    Sp3,
    /// Five neighbours.
    Sp3d,
    /// Six neighbours.
    Sp3d2,
    /// Hydrogen, bare ions, and what has no name.
    Other,
}

impl Graph {
    /// Hybridisation of all atoms. Aromaticity must have been found.
    pub fn hybridisations(&self) -> Vec<Hybridisation> {
        let conjugated = self.conjugated_bonds();
        (0..self.len()).map(|i| self.hybridisation(i, &conjugated)).collect()
    }

    fn hybridisation(&self, i: usize, conjugated: &[bool]) -> Hybridisation {
        let atom = self.atoms()[i];
        let degree = self.total_degree(i) as i32;
        let orbitals = if atom.element <= 1 {
            degree
        } else {
            let outer = element(atom.element).outer;
            let charge = i32::from(atom.charge);
            let valence = self.valence(i) as i32;
            let free = outer - (valence + charge);
            if valence + outer - charge < 8 {
                // Below an octet, unpaired electrons have orbitals of their own.
                let radicals = i32::from(atom.radicals);
                degree + (free - radicals) / 2 + radicals
            } else {
                degree + free / 2
            }
        };
        match orbitals {
            2 => Hybridisation::Sp,
            3 => Hybridisation::Sp2,
            4 if degree <= 3 && self.neighbours(i).iter().any(|n| conjugated[n.bond as usize]) => Hybridisation::Sp2,
            4 => Hybridisation::Sp3,
            5 => Hybridisation::Sp3d,
            6 => Hybridisation::Sp3d2,
            _ => Hybridisation::Other,
        }
    }

    /// Bonds that take part in conjugation: aromatic ones, and neighbours of multiple bonds.
    pub(super) fn conjugated_bonds(&self) -> Vec<bool> {
        let mut conjugated: Vec<bool> = self.bonds().iter().map(|b| b.aromatic).collect();
        let candidate: Vec<bool> = (0..self.len()).map(|i| self.may_conjugate(i)).collect();
        for i in (0..self.len()).filter(|&i| candidate[i] && (2..=3).contains(&self.total_degree(i))) {
            for first in self.neighbours(i) {
                let bond = self.bonds()[first.bond as usize];
                if (bond.order < 2 && !bond.aromatic) || !candidate[first.atom as usize] {
                    continue;
                }
                for second in self.neighbours(i).iter().filter(|n| n.bond != first.bond) {
                    let j = second.atom as usize;
                    if candidate[j] && self.total_degree(j) <= 3 {
                        conjugated[first.bond as usize] = true;
                        conjugated[second.bond as usize] = true;
                    }
                }
            }
        }
        conjugated
    }

    fn may_conjugate(&self, i: usize) -> bool {
        let atom = self.atoms()[i];
        let own = element(atom.element);
        // A hypervalent atom does not conjugate.
        if atom.charge == 0 && own.default_valence() >= 0 && self.valence(i) as i32 > own.default_valence() {
            return false;
        }
        let row = atom.element <= 10 || !matches!(own.outer, 5 | 6) || (own.outer == 6 && self.total_degree(i) < 2);
        row && pi_electrons(self, i) > 0
    }
}
