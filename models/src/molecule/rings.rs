//! Rings of a graph: the relevant cycles (Vismara, Electron. J. Combin. 4, R9 (1997)), the union of all minimum cycle bases.
//!
//! Unlike one smallest set of smallest rings they do not depend on the order of the atoms: cubane has all six faces. They
//! are what RDKit lists as rings of a molecule.

use super::graph::Graph;

/// Largest number of cycles listed of one family; only cages of many equal rings come near.
const MOST_OF_FAMILY: usize = 10_000;

/// The rings of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// Atoms of each ring in the order around it, smallest rings first.
    pub atoms: Vec<Vec<u32>>,
    /// Bonds of each ring; bond `k` joins atoms `k` and `k + 1`.
    pub bonds: Vec<Vec<u32>>,
    /// Number of rings through each atom `[N]`.
    pub of_atom: Vec<u32>,
    /// Number of rings through each bond `[M]`.
    pub of_bond: Vec<u32>,
}

impl Rings {
    /// All relevant cycles of `graph`.
    pub fn of(graph: &Graph) -> Rings {
        let mut rings = Rings { of_atom: vec![0; graph.len()], of_bond: vec![0; graph.bonds().len()], ..Rings::default() };
        let core = cyclic_core(graph);
        if core.iter().any(|c| *c) {
            for cycle in relevant_cycles(graph, &core) {
                rings.push(graph, cycle);
            }
        }
        rings
    }

    fn push(&mut self, graph: &Graph, atoms: Vec<u32>) {
        let next = |k: usize| atoms[(k + 1) % atoms.len()] as usize;
        let bonds: Vec<u32> = (0..atoms.len()).filter_map(|k| graph.bond_between(atoms[k] as usize, next(k)).map(|b| b as u32)).collect();
        atoms.iter().for_each(|&a| self.of_atom[a as usize] += 1);
        bonds.iter().for_each(|&b| self.of_bond[b as usize] += 1);
        self.atoms.push(atoms);
        self.bonds.push(bonds);
    }

    /// Atom `i` is part of a ring of `size`.
    pub fn in_ring_of(&self, i: usize, size: usize) -> bool {
        self.atoms.iter().any(|r| r.len() == size && r.contains(&(i as u32)))
    }
}

/// Atoms left when all chains are cut off from their ends.
fn cyclic_core(graph: &Graph) -> Vec<bool> {
    let mut degree: Vec<usize> = (0..graph.len()).map(|i| graph.degree(i)).collect();
    let mut inside = vec![true; graph.len()];
    let mut ends: Vec<usize> = (0..graph.len()).filter(|&i| degree[i] < 2).collect();
    while let Some(i) = ends.pop() {
        if !std::mem::replace(&mut inside[i], false) {
            continue;
        }
        for n in graph.neighbours(i).iter().filter(|n| inside[n.atom as usize]) {
            let j = n.atom as usize;
            degree[j] -= 1;
            if degree[j] < 2 {
                ends.push(j);
            }
        }
    }
    inside
}

/// A set of bonds as bits.
type Bits = Vec<u64>;

/// A family of cycles of equal length that share their defining pair of paths: all shortest paths from `root` to `p` and to
/// `q`, closed by the bond `p`–`q`, or by `p`–`x`–`q` for even lengths.
struct Family {
    length: usize,
    root: usize,
    ends: (usize, usize),
    middle: Option<usize>,
}

/// Relevant cycles as lists of atoms, by length.
fn relevant_cycles(graph: &Graph, core: &[bool]) -> Vec<Vec<u32>> {
    let n = graph.len();
    // Atoms of the core in the order of their degree in it; shortest paths run through atoms before the root only.
    let core_degree = |i: usize| graph.neighbours(i).iter().filter(|n| core[n.atom as usize]).count();
    let mut order: Vec<usize> = (0..n).filter(|&i| core[i]).collect();
    order.sort_by_key(|&i| (core_degree(i), i));
    let mut rank = vec![usize::MAX; n];
    order.iter().enumerate().for_each(|(k, &i)| rank[i] = k);

    let mut families = Vec::new();
    let mut searches = Vec::with_capacity(order.len());
    for &root in &order {
        let search = Search::new(graph, core, &rank, root);
        search.families(graph, &rank, &mut families);
        searches.push(search);
    }
    families.sort_by_key(|f| f.length);

    let words = graph.bonds().len().div_ceil(64);
    let mut basis: Vec<(usize, Bits)> = Vec::new();
    let mut cycles = Vec::new();
    let mut k = 0;
    while k < families.len() {
        let length = families[k].length;
        let end = k + families[k..].iter().take_while(|f| f.length == length).count();
        // Relevant is what shorter cycles do not add up to; cycles of equal length are judged against the shorter ones.
        let shorter = basis.len();
        for family in &families[k..end] {
            let search = &searches[rank[family.root]];
            let Some(bits) = search.one(family).map(|c| bits_of(graph, &c, words)) else { continue };
            if reduce(bits.clone(), &basis[..shorter]).is_none() {
                continue;
            }
            cycles.extend(search.all(family));
            if let Some((pivot, bits)) = reduce(bits, &basis) {
                basis.push((pivot, bits));
            }
        }
        k = end;
    }
    cycles
}

fn bits_of(graph: &Graph, cycle: &[u32], words: usize) -> Bits {
    let mut bits = vec![0u64; words];
    for k in 0..cycle.len() {
        if let Some(b) = graph.bond_between(cycle[k] as usize, cycle[(k + 1) % cycle.len()] as usize) {
            bits[b / 64] |= 1 << (b % 64);
        }
    }
    bits
}

/// What is left of `bits` over the basis (rows with their pivot bits), and its pivot; `None` where it is a sum of rows.
fn reduce(mut bits: Bits, basis: &[(usize, Bits)]) -> Option<(usize, Bits)> {
    for (pivot, row) in basis {
        if bits[pivot / 64] >> (pivot % 64) & 1 == 1 {
            bits.iter_mut().zip(row).for_each(|(a, b)| *a ^= b);
        }
    }
    let word = bits.iter().position(|w| *w != 0)?;
    let pivot = 64 * word + bits[word].trailing_zeros() as usize;
    Some((pivot, bits))
}

/// Shortest paths from one root through atoms of smaller rank.
struct Search {
    root: usize,
    distance: Vec<usize>,
    /// Atoms before each on shortest paths to the root.
    before: Vec<Vec<u32>>,
    /// One shortest path runs this way.
    atoms: Vec<usize>,
}

impl Search {
    fn new(graph: &Graph, core: &[bool], rank: &[usize], root: usize) -> Search {
        let n = graph.len();
        let mut s = Search { root, distance: vec![usize::MAX; n], before: vec![Vec::new(); n], atoms: vec![root] };
        s.distance[root] = 0;
        let mut head = 0;
        // True distances in the whole core decide; paths through larger ranks belong to another root.
        let whole = distances(graph, core, root);
        while head < s.atoms.len() {
            let i = s.atoms[head];
            head += 1;
            for nb in graph.neighbours(i) {
                let j = nb.atom as usize;
                if !core[j] || rank[j] >= rank[root] || whole[j] != s.distance[i] + 1 {
                    continue;
                }
                if s.distance[j] == usize::MAX {
                    s.distance[j] = s.distance[i] + 1;
                    s.atoms.push(j);
                }
                s.before[j].push(i as u32);
            }
        }
        s
    }

    fn families(&self, graph: &Graph, rank: &[usize], families: &mut Vec<Family>) {
        for &p in &self.atoms {
            let here = self.distance[p];
            let mut even = Vec::new();
            for nb in graph.neighbours(p) {
                let q = nb.atom as usize;
                if self.distance[q] == usize::MAX {
                    continue;
                }
                if self.distance[q] + 1 == here {
                    even.push(q);
                } else if self.distance[q] == here && rank[q] < rank[p] && here > 0 {
                    families.push(Family { length: 2 * here + 1, root: self.root, ends: (p, q), middle: None });
                }
            }
            if here < 2 {
                continue;
            }
            for a in 0..even.len() {
                for b in a + 1..even.len() {
                    families.push(Family { length: 2 * here, root: self.root, ends: (even[a], even[b]), middle: Some(p) });
                }
            }
        }
    }

    /// One cycle of the family whose two paths meet only at the root; `None` where there is none.
    fn one(&self, family: &Family) -> Option<Vec<u32>> {
        self.cycles(family, 1).pop()
    }

    fn all(&self, family: &Family) -> Vec<Vec<u32>> {
        self.cycles(family, MOST_OF_FAMILY)
    }

    fn cycles(&self, family: &Family, most: usize) -> Vec<Vec<u32>> {
        let left = self.paths(family.ends.0);
        let right = self.paths(family.ends.1);
        let mut cycles = Vec::new();
        for a in &left {
            for b in &right {
                if a[1..].iter().any(|x| b[1..].contains(x)) {
                    continue;
                }
                let mut cycle = a.clone();
                cycle.extend(family.middle.map(|m| m as u32));
                cycle.extend(b[1..].iter().rev());
                cycles.push(cycle);
                if cycles.len() >= most {
                    return cycles;
                }
            }
        }
        cycles
    }

    /// Shortest paths from the root to `end`, root first.
    fn paths(&self, end: usize) -> Vec<Vec<u32>> {
        let mut done = Vec::new();
        let mut open = vec![vec![end as u32]];
        while let Some(path) = open.pop() {
            let last = path[path.len() - 1] as usize;
            if last == self.root {
                done.push(path.into_iter().rev().collect());
                if done.len() >= MOST_OF_FAMILY {
                    break;
                }
                continue;
            }
            for &b in &self.before[last] {
                let mut longer = path.clone();
                longer.push(b);
                open.push(longer);
            }
        }
        done
    }
}

fn distances(graph: &Graph, core: &[bool], root: usize) -> Vec<usize> {
    let mut distance = vec![usize::MAX; graph.len()];
    distance[root] = 0;
    let mut queue = vec![root];
    let mut head = 0;
    while head < queue.len() {
        let i = queue[head];
        head += 1;
        for nb in graph.neighbours(i) {
            let j = nb.atom as usize;
            if core[j] && distance[j] == usize::MAX {
                distance[j] = distance[i] + 1;
                queue.push(j);
            }
        }
    }
    distance
}
