//! Which rings are aromatic, by RDKit's own model: every atom of a ring offers π electrons, and rings or fused systems of up
//! to six rings with 4n + 2 of them are aromatic.

use super::element::element;
use super::graph::Graph;
use super::rings::Rings;

/// Largest ring that is looked at as part of a fused system.
const LARGEST_FUSED: usize = 24;
/// Most rings of a fused system that are taken together.
const MOST_TOGETHER: usize = 6;
/// In systems of more rings than this, only single rings and pairs are looked at.
const MANY_RINGS: usize = 300;
/// Rings of this size on are macrocycles, in which ethers conjugate with nothing.
const MACROCYCLE: usize = 9;

/// What an atom gives to the π system of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Donor {
    /// An empty orbital.
    Vacant,
    One,
    Two,
    /// Nothing, and no orbital: the ring is not aromatic.
    Nothing,
}

impl Graph {
    /// Marks aromatic atoms and bonds; whatever was marked before is forgotten. Returns the rings.
    pub fn find_aromaticity(&mut self) -> Rings {
        let rings = Rings::of(self);
        for i in 0..self.len() {
            self.atom_mut(i).aromatic = false;
        }
        for b in 0..self.bonds().len() {
            self.bond_mut(b).aromatic = false;
        }
        let candidates = candidate_rings(self, &rings);
        if !candidates.is_empty() {
            let systems = Systems::new(self, &rings, &candidates);
            let marked = systems.aromatic_bonds(self);
            for b in marked {
                let (i, j) = self.bonds()[b as usize].atoms;
                // A triple bond (in benzynes) stays what it is, and so do its atoms on its account.
                if self.bonds()[b as usize].order < 3 {
                    self.bond_mut(b as usize).aromatic = true;
                    self.atom_mut(i as usize).aromatic = true;
                    self.atom_mut(j as usize).aromatic = true;
                }
            }
        }
        rings
    }

    /// Sum of bond orders to other atoms, less their number.
    pub(super) fn unsaturation(&self, i: usize) -> usize {
        self.neighbours(i).iter().map(|n| usize::from(self.bonds()[n.bond as usize].order) - 1).sum()
    }
}

/// Electrons that an atom could give to a π system; negative where it has no orbital for it.
pub(super) fn pi_electrons(graph: &Graph, i: usize) -> i32 {
    let atom = graph.atoms()[i];
    let own = element(atom.element);
    let valence = own.default_valence();
    let degree = graph.total_degree(i) as i32;
    if valence <= 1 || degree > 3 {
        return -1;
    }
    let lone = (own.outer - valence - i32::from(atom.charge)).max(0);
    let electrons = valence - degree + lone - i32::from(atom.radicals);
    if electrons > 1 && graph.unsaturation(i) > 1 { 1 } else { electrons }
}

/// A multiple bond outside all rings (`in_ring` false) or in one: the atom at its other end.
fn multiple_bond(graph: &Graph, rings: &Rings, i: usize, in_ring: bool) -> Option<usize> {
    graph
        .neighbours(i)
        .iter()
        .find(|n| (rings.of_bond[n.bond as usize] > 0) == in_ring && graph.bonds()[n.bond as usize].order >= 2)
        .map(|n| n.atom as usize)
}

/// More outer electrons, or as many in a lighter atom: what counts as more electronegative here.
fn more_electronegative(a: u8, b: u8) -> bool {
    let (ea, eb) = (element(a).outer, element(b).outer);
    ea > eb || (ea == eb && a < b)
}

fn donor(graph: &Graph, rings: &Rings, i: usize) -> Donor {
    let atom = graph.atoms()[i];
    let electrons = pi_electrons(graph, i);
    let outside = multiple_bond(graph, rings, i, false);
    // An exocyclic double bond to a more electronegative atom takes its electron away.
    let stolen = outside.is_some_and(|j| more_electronegative(graph.atoms()[j].element, atom.element));
    match electrons {
        ..0 => Donor::Nothing,
        0 if outside.is_some() => Donor::Vacant,
        0 if multiple_bond(graph, rings, i, true).is_some() => Donor::One,
        0 => Donor::Nothing,
        1 if stolen => Donor::Vacant,
        1 if outside.is_some() || graph.unsaturation(i) > 0 => Donor::One,
        1 if atom.charge == 1 => Donor::Vacant,
        1 => Donor::Nothing,
        n => {
            if (n - i32::from(stolen)) % 2 == 1 {
                Donor::One
            } else {
                Donor::Two
            }
        }
    }
}

fn may_be_aromatic(graph: &Graph, i: usize, donor: Donor) -> bool {
    let atom = graph.atoms()[i];
    if donor == Donor::Nothing || (atom.element > 18 && !matches!(atom.element, 34 | 52)) {
        return false;
    }
    let normal = super::element::Element::isoelectronic(atom.element, atom.charge).default_valence();
    if element(atom.element).default_valence() > 0 && graph.valence(i) as i32 > normal {
        return false;
    }
    if atom.radicals > 0 && (atom.element != 6 || atom.charge != 0) {
        return false;
    }
    let multiple = graph.neighbours(i).iter().filter(|n| graph.bonds()[n.bond as usize].order >= 2).count();
    multiple <= 1
}

/// Rings all of whose atoms may be aromatic, and what each atom gives.
struct Candidates {
    rings: Vec<usize>,
    donors: Vec<Donor>,
}

impl Candidates {
    fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }
}

fn candidate_rings(graph: &Graph, rings: &Rings) -> Candidates {
    let mut donors = vec![None; graph.len()];
    let mut candidates = Vec::new();
    for (r, ring) in rings.atoms.iter().enumerate() {
        let mut all = true;
        for &a in ring {
            let i = a as usize;
            let (_, fits) = *donors[i].get_or_insert_with(|| {
                let atom = graph.atoms()[i];
                let mut d = donor(graph, rings, i);
                let ether = matches!(atom.element, 8 | 16) && atom.charge == 0 && graph.degree(i) == 2 && graph.unsaturation(i) == 0;
                if d == Donor::Two && ring.len() >= MACROCYCLE && ether {
                    d = Donor::Nothing;
                }
                (d, may_be_aromatic(graph, i, d))
            });
            all &= fits;
        }
        if all {
            candidates.push(r);
        }
    }
    Candidates { rings: candidates, donors: donors.into_iter().map(|d| d.map_or(Donor::Nothing, |d| d.0)).collect() }
}

/// Candidate rings and which of them share exactly one bond.
struct Systems<'a> {
    rings: &'a Rings,
    candidates: &'a Candidates,
    fused: Vec<Vec<usize>>,
}

impl<'a> Systems<'a> {
    fn new(graph: &Graph, rings: &'a Rings, candidates: &'a Candidates) -> Self {
        let n = candidates.rings.len();
        let mut fused = vec![Vec::new(); n];
        let mut mark = vec![false; graph.bonds().len()];
        for a in 0..n {
            let first = &rings.bonds[candidates.rings[a]];
            first.iter().for_each(|&b| mark[b as usize] = true);
            for b in a + 1..n {
                let second = &rings.bonds[candidates.rings[b]];
                let shared = second.iter().filter(|b| mark[**b as usize]).count();
                if shared == 1 && first.len() <= LARGEST_FUSED && second.len() <= LARGEST_FUSED {
                    fused[a].push(b);
                    fused[b].push(a);
                }
            }
            first.iter().for_each(|&b| mark[b as usize] = false);
        }
        Systems { rings, candidates, fused }
    }

    /// Bonds at the rim of aromatic rings and fused systems.
    fn aromatic_bonds(&self, graph: &Graph) -> Vec<u32> {
        let mut done = vec![false; self.fused.len()];
        let mut aromatic = Vec::new();
        for start in 0..self.fused.len() {
            if !done[start] {
                let system = self.system_of(start, &mut done);
                self.of_system(graph, &system, &mut aromatic);
            }
        }
        aromatic
    }

    fn system_of(&self, start: usize, done: &mut [bool]) -> Vec<usize> {
        let mut system = vec![start];
        done[start] = true;
        let mut head = 0;
        while head < system.len() {
            for &r in &self.fused[system[head]] {
                if !std::mem::replace(&mut done[r], true) {
                    system.push(r);
                }
            }
            head += 1;
        }
        system
    }

    fn bonds(&self, r: usize) -> &[u32] {
        &self.rings.bonds[self.candidates.rings[r]]
    }

    fn of_system(&self, graph: &Graph, system: &[usize], aromatic: &mut Vec<u32>) {
        let mut all = vec![false; graph.bonds().len()];
        system.iter().flat_map(|&r| self.bonds(r)).for_each(|&b| all[b as usize] = true);
        let total = all.iter().filter(|b| **b).count();
        let mut found = vec![false; graph.bonds().len()];
        let mut count = 0;
        for size in 1..=system.len().min(MOST_TOGETHER) {
            if count >= total || (size > 2 && system.len() > MANY_RINGS) {
                break;
            }
            let mut choice: Vec<usize> = (0..size).collect();
            loop {
                let together: Vec<usize> = choice.iter().map(|&k| system[k]).collect();
                if self.connected(&together) && self.huckel(graph, &together) {
                    for b in self.rim(graph, &together) {
                        if !std::mem::replace(&mut found[b as usize], true) {
                            count += 1;
                            aromatic.push(b);
                        }
                    }
                }
                if !next_combination(&mut choice, system.len()) {
                    break;
                }
            }
        }
    }

    fn connected(&self, together: &[usize]) -> bool {
        let mut reached = vec![together[0]];
        let mut head = 0;
        while head < reached.len() {
            for &r in &self.fused[reached[head]] {
                if together.contains(&r) && !reached.contains(&r) {
                    reached.push(r);
                }
            }
            head += 1;
        }
        reached.len() == together.len()
    }

    /// Electrons of atoms in one or two of the rings; an atom within three of them is buried and does not count.
    fn huckel(&self, graph: &Graph, together: &[usize]) -> bool {
        let mut times = vec![0u8; graph.len()];
        for &r in together {
            for &a in &self.rings.atoms[self.candidates.rings[r]] {
                times[a as usize] = times[a as usize].saturating_add(1);
            }
        }
        let electrons: usize = (0..graph.len())
            .filter(|&i| matches!(times[i], 1 | 2))
            .map(|i| match self.candidates.donors[i] {
                Donor::One => 1,
                Donor::Two => 2,
                Donor::Vacant | Donor::Nothing => 0,
            })
            .sum();
        electrons == 2 || (electrons >= 6 && electrons % 4 == 2)
    }

    /// Bonds of exactly one of the rings.
    fn rim(&self, graph: &Graph, together: &[usize]) -> Vec<u32> {
        let mut times = vec![0u8; graph.bonds().len()];
        together.iter().flat_map(|&r| self.bonds(r)).for_each(|&b| times[b as usize] += 1);
        (0..times.len()).filter(|&b| times[b] == 1).map(|b| b as u32).collect()
    }
}

/// The next choice of numbers below `n`, in lexical order; false after the last.
fn next_combination(choice: &mut [usize], n: usize) -> bool {
    let k = choice.len();
    for p in (0..k).rev() {
        if choice[p] + (k - p) < n {
            choice[p] += 1;
            for q in p + 1..k {
                choice[q] = choice[q - 1] + 1;
            }
            return true;
        }
    }
    false
}
