//! Molecular graphs: atoms, bonds and who is bonded to whom.

use super::element::element;

/// Handedness of a tetrahedral atom: seen from its first neighbour, the others turn this way.
///
/// Neighbours are ordered as their bonds are listed; an implicit hydrogen (or a lone pair) comes last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Chirality {
    /// No handedness, or it is not known.
    #[default]
    None,
    /// Counter-clockwise; `@` in SMILES.
    CounterClockwise,
    /// Clockwise; `@@` in SMILES.
    Clockwise,
}

impl Chirality {
    /// The mirror image.
    pub fn inverted(self) -> Self {
        match self {
            Chirality::None => Chirality::None,
            Chirality::CounterClockwise => Chirality::Clockwise,
            Chirality::Clockwise => Chirality::CounterClockwise,
        }
    }

    /// The same handedness after `swaps` exchanges in the order of the neighbours.
    pub fn after_swaps(self, swaps: usize) -> Self {
        if swaps.is_multiple_of(2) { self } else { self.inverted() }
    }
}

/// One atom of a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Atom {
    /// Atomic number.
    pub element: u8,
    /// Formal charge in units of e.
    pub charge: i8,
    /// Unpaired electrons.
    pub radicals: u8,
    /// Hydrogens that are not atoms of the graph.
    pub hydrogens: u8,
    /// Mass number; 0 for the natural mixture.
    pub isotope: u16,
    /// Part of an aromatic system.
    pub aromatic: bool,
    /// Handedness.
    pub chirality: Chirality,
}

impl Atom {
    /// A neutral atom of `element` and nothing else.
    pub fn new(element: u8) -> Self {
        Atom { element, ..Atom::default() }
    }
}

/// Arrangement at a double bond: where two reference neighbours, one at each end, lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleBondStereo {
    /// A neighbour of the bond's first atom and one of its second.
    pub references: (u32, u32),
    /// Both on the same side.
    pub same_side: bool,
}

/// One bond of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bond {
    /// The two atoms.
    pub atoms: (u32, u32),
    /// Order in one Kekulé structure: 1, 2 or 3.
    pub order: u8,
    /// Part of an aromatic system; `order` is then one of several readings.
    pub aromatic: bool,
    /// Arrangement, for double bonds that have one.
    pub stereo: Option<DoubleBondStereo>,
}

impl Bond {
    /// A bond of `order` between two atoms.
    pub fn new(i: u32, j: u32, order: u8) -> Self {
        Bond { atoms: (i, j), order, aromatic: false, stereo: None }
    }

    /// The atom at the other end from `atom`.
    pub fn other(&self, atom: usize) -> usize {
        (if self.atoms.0 as usize == atom { self.atoms.1 } else { self.atoms.0 }) as usize
    }
}

/// A neighbour of an atom and the bond to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The other atom.
    pub atom: u32,
    /// Index of the bond.
    pub bond: u32,
}

/// A molecular graph of `N` atoms and `M` bonds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    atoms: Vec<Atom>,
    bonds: Vec<Bond>,
    /// Where each atom's neighbours begin `[N + 1]`.
    starts: Vec<u32>,
    /// Neighbours of all atoms `[2 M]`, each atom's in the order of the bonds.
    neighbours: Vec<Neighbour>,
}

impl Graph {
    /// A graph of `atoms` and `bonds`. Bonds must join two different atoms, each pair at most once; whoever reads bonds
    /// from outside checks that.
    pub fn new(atoms: Vec<Atom>, bonds: Vec<Bond>) -> Self {
        let n = atoms.len();
        let mut starts = vec![0u32; n + 1];
        for bond in &bonds {
            starts[bond.atoms.0 as usize + 1] += 1;
            starts[bond.atoms.1 as usize + 1] += 1;
        }
        for i in 0..n {
            starts[i + 1] += starts[i];
        }
        let mut neighbours = vec![Neighbour { atom: 0, bond: 0 }; 2 * bonds.len()];
        let mut next = starts.clone();
        for (b, bond) in bonds.iter().enumerate() {
            for (i, j) in [bond.atoms, (bond.atoms.1, bond.atoms.0)] {
                neighbours[next[i as usize] as usize] = Neighbour { atom: j, bond: b as u32 };
                next[i as usize] += 1;
            }
        }
        Graph { atoms, bonds, starts, neighbours }
    }

    /// Number of atoms `N`.
    pub fn len(&self) -> usize {
        self.atoms.len()
    }

    /// True without atoms.
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// All atoms `[N]`.
    pub fn atoms(&self) -> &[Atom] {
        &self.atoms
    }

    /// All bonds `[M]`.
    pub fn bonds(&self) -> &[Bond] {
        &self.bonds
    }

    /// Atom `i`, to change.
    pub(super) fn atom_mut(&mut self, i: usize) -> &mut Atom {
        &mut self.atoms[i]
    }

    /// Bond `b`, to change all but its atoms.
    pub(super) fn bond_mut(&mut self, b: usize) -> &mut Bond {
        &mut self.bonds[b]
    }

    /// Neighbours of atom `i`, in the order of the bonds.
    pub fn neighbours(&self, i: usize) -> &[Neighbour] {
        &self.neighbours[self.starts[i] as usize..self.starts[i + 1] as usize]
    }

    /// Number of atoms bonded to `i`.
    pub fn degree(&self, i: usize) -> usize {
        (self.starts[i + 1] - self.starts[i]) as usize
    }

    /// Atoms bonded to `i` together with its implicit hydrogens.
    pub fn total_degree(&self, i: usize) -> usize {
        self.degree(i) + usize::from(self.atoms[i].hydrogens)
    }

    /// Sum of bond orders of atom `i` in the Kekulé structure, implicit hydrogens included.
    pub fn valence(&self, i: usize) -> usize {
        self.neighbours(i).iter().map(|n| usize::from(self.bonds[n.bond as usize].order)).sum::<usize>()
            + usize::from(self.atoms[i].hydrogens)
    }

    /// The bond between two atoms.
    pub fn bond_between(&self, i: usize, j: usize) -> Option<usize> {
        self.neighbours(i).iter().find(|n| n.atom as usize == j).map(|n| n.bond as usize)
    }

    /// Number of pieces that no bond joins.
    pub fn fragments(&self) -> usize {
        let mut seen = vec![false; self.len()];
        let mut stack = Vec::with_capacity(self.len());
        let mut count = 0;
        for start in 0..self.len() {
            if std::mem::replace(&mut seen[start], true) {
                continue;
            }
            count += 1;
            stack.push(start);
            while let Some(i) = stack.pop() {
                for n in self.neighbours(i) {
                    if !std::mem::replace(&mut seen[n.atom as usize], true) {
                        stack.push(n.atom as usize);
                    }
                }
            }
        }
        count
    }

    /// Sum of formal charges.
    pub fn charge(&self) -> i32 {
        self.atoms.iter().map(|a| i32::from(a.charge)).sum()
    }

    /// Number of unpaired electrons.
    pub fn radicals(&self) -> usize {
        self.atoms.iter().map(|a| usize::from(a.radicals)).sum()
    }

    /// The same molecule with atom `order[i]` as atom `i`. Bonds keep their order, so that handedness keeps its meaning.
    pub fn permuted(&self, order: &[usize]) -> Graph {
        let mut place = vec![0u32; order.len()];
        for (new, &old) in order.iter().enumerate() {
            place[old] = new as u32;
        }
        let to = |(i, j): (u32, u32)| (place[i as usize], place[j as usize]);
        let stereo = |s: DoubleBondStereo| DoubleBondStereo { references: to(s.references), ..s };
        let bonds = self.bonds.iter().map(|b| Bond { atoms: to(b.atoms), stereo: b.stereo.map(stereo), ..*b }).collect();
        Graph::new(order.iter().map(|&i| self.atoms[i]).collect(), bonds)
    }

    /// Symbol and index (from 0) of an atom, for messages.
    pub fn describe(&self, i: usize) -> String {
        format!("atom {i} ({})", element(self.atoms[i].element).symbol)
    }
}

impl Graph {
    /// The molecule with all hydrogens as atoms, after the others: first those of atom 0, then of atom 1, and so on.
    pub fn with_hydrogens(&self) -> Graph {
        let (mut atoms, mut bonds) = (self.atoms.clone(), self.bonds.clone());
        for i in 0..self.len() {
            for _ in 0..std::mem::take(&mut atoms[i].hydrogens) {
                bonds.push(Bond::new(i as u32, atoms.len() as u32, 1));
                atoms.push(Atom::new(1));
            }
        }
        Graph::new(atoms, bonds)
    }
}
