//! Symmetries of a molecule without its hydrogens: which atoms may be exchanged when two conformers are compared.

use super::graph::Graph;

/// What an atom is when conformers are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    element: u8,
    charge: i8,
    isotope: u16,
    degree: usize,
    /// One of several equal ends of a conjugated group: carboxylates, nitro groups, amidines.
    terminal: bool,
}

/// All ways to lay the heavy atoms of a molecule onto themselves.
#[derive(Clone, Debug)]
pub struct Symmetry {
    /// Heavy atoms.
    pub atoms: Vec<usize>,
    /// Of each way, the atom that takes the place of each of `atoms`.
    pub maps: Vec<Vec<usize>>,
    /// There are more ways than were listed.
    pub truncated: bool,
}

impl Graph {
    /// Atoms other than hydrogen (all atoms where there is nothing else) and the permutations of them that keep elements, charges and
    /// bonds; at most `most`. O and N at the ends of conjugated groups may be exchanged whatever their bonds, as in RDKit's `GetBestRMS`.
    pub fn heavy_symmetry(&self, most: usize) -> Symmetry {
        let heavy: Vec<usize> = (0..self.len()).filter(|&i| self.atoms()[i].element > 1).collect();
        let atoms = if heavy.is_empty() { (0..self.len()).collect() } else { heavy };
        let mut place = vec![usize::MAX; self.len()];
        atoms.iter().enumerate().for_each(|(k, &i)| place[i] = k);
        let neighbours: Vec<Vec<(usize, u8)>> = atoms
            .iter()
            .map(|&i| {
                let all = self.neighbours(i).iter().filter(|n| place[n.atom as usize] != usize::MAX);
                all.map(|n| (place[n.atom as usize], self.kind_of_bond(n.bond as usize))).collect()
            })
            .collect();
        let terminal: Vec<bool> = (0..atoms.len()).map(|k| self.is_conjugated_end(&atoms, &neighbours, k)).collect();
        let kinds: Vec<Kind> = atoms
            .iter()
            .zip(&neighbours)
            .zip(&terminal)
            .map(|((&i, n), &terminal)| {
                let a = self.atoms()[i];
                let charge = if terminal { 0 } else { a.charge };
                Kind { element: a.element, charge, isotope: a.isotope, degree: n.len(), terminal }
            })
            .collect();
        let mut search = Search {
            kinds: &kinds,
            neighbours: &neighbours,
            order: order(&neighbours),
            map: vec![usize::MAX; atoms.len()],
            used: vec![false; atoms.len()],
            maps: Vec::new(),
            most,
            truncated: false,
        };
        search.place(0);
        let Search { maps, truncated, .. } = search;
        let maps = maps.into_iter().map(|m| m.into_iter().map(|k| atoms[k]).collect()).collect();
        Symmetry { atoms, maps, truncated }
    }

    fn kind_of_bond(&self, b: usize) -> u8 {
        if self.bonds()[b].aromatic { 4 } else { self.bonds()[b].order }
    }

    /// O or N with one heavy neighbour, which has another such end on a bond of another order.
    fn is_conjugated_end(&self, atoms: &[usize], neighbours: &[Vec<(usize, u8)>], k: usize) -> bool {
        let element = |k: usize| self.atoms()[atoms[k]].element;
        let [(centre, order)] = neighbours[k][..] else { return false };
        matches!(element(k), 7 | 8)
            && neighbours[centre].iter().any(|&(other, o)| {
                other != k && neighbours[other].len() == 1 && element(other) == element(k) && o != order && o <= 2 && order <= 2
            })
    }
}

/// Atoms so that each but the first of a fragment comes after a neighbour.
fn order(neighbours: &[Vec<(usize, u8)>]) -> Vec<usize> {
    let mut seen = vec![false; neighbours.len()];
    let mut order = Vec::with_capacity(neighbours.len());
    for start in 0..neighbours.len() {
        if seen[start] {
            continue;
        }
        seen[start] = true;
        let mut next = order.len();
        order.push(start);
        while next < order.len() {
            for &(j, _) in &neighbours[order[next]] {
                if !std::mem::replace(&mut seen[j], true) {
                    order.push(j);
                }
            }
            next += 1;
        }
    }
    order
}

struct Search<'a> {
    kinds: &'a [Kind],
    neighbours: &'a [Vec<(usize, u8)>],
    order: Vec<usize>,
    map: Vec<usize>,
    used: Vec<bool>,
    maps: Vec<Vec<usize>>,
    most: usize,
    truncated: bool,
}

impl Search<'_> {
    /// Bonds to ends of conjugated groups have no order.
    fn order_of(&self, a: usize, b: usize, order: u8) -> u8 {
        if self.kinds[a].terminal || self.kinds[b].terminal { 0 } else { order }
    }

    fn fits(&self, from: usize, to: usize) -> bool {
        let bond = |a: usize, b: usize| self.neighbours[a].iter().find(|n| n.0 == b).map(|n| self.order_of(a, b, n.1));
        self.kinds[from] == self.kinds[to]
            && self.neighbours[from]
                .iter()
                .filter(|n| self.map[n.0] != usize::MAX)
                .all(|&(other, order)| bond(to, self.map[other]) == Some(self.order_of(from, other, order)))
    }

    fn place(&mut self, depth: usize) {
        if self.maps.len() == self.most {
            self.truncated = true;
            return;
        }
        let Some(&from) = self.order.get(depth) else {
            self.maps.push(self.map.clone());
            return;
        };
        // A neighbour that has its place says where this one may go.
        let anchor = self.neighbours[from].iter().map(|n| self.map[n.0]).find(|&m| m != usize::MAX);
        let candidates: Vec<usize> = match anchor {
            Some(to) => self.neighbours[to].iter().map(|n| n.0).collect(),
            None => (0..self.kinds.len()).collect(),
        };
        for to in candidates {
            if !self.used[to] && self.fits(from, to) {
                (self.map[from], self.used[to]) = (to, true);
                self.place(depth + 1);
                (self.map[from], self.used[to]) = (usize::MAX, false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symmetries_are_counted() {
        for (smiles, count) in [
            ("C", 1),
            ("CCO", 1),
            ("CCC", 2),
            ("CC(C)(C)C", 24),
            ("c1ccccc1", 12),
            ("Cc1ccccc1", 2),
            ("CC(=O)O", 2),
            ("CC(=O)[O-]", 2),
            ("C[N+](=O)[O-]", 2),
            ("CC(=O)OC", 1),
            ("FC(F)(F)c1ccc(C)cc1", 12),
            ("C12C3C4C1C5C2C3C45", 48),
            ("O.O", 2),
            ("[H][H]", 2),
        ] {
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            let symmetry = graph.heavy_symmetry(1000);
            assert_eq!(symmetry.maps.len(), count, "{smiles}");
            assert!(!symmetry.truncated);
            assert!(symmetry.maps.contains(&symmetry.atoms));
        }
        let many = Graph::from_smiles("CC(C)(C)C").unwrap().heavy_symmetry(5);
        assert!(many.truncated && many.maps.len() == 5);
    }
}
