//! Identity of a molecule: a code that is equal for two graphs exactly if they are the same molecule, however their atoms
//! are numbered.
//!
//! Hydrogens are counted on their neighbours. Atoms are ranked by refining what they are by what surrounds them; ties are
//! broken in all ways that symmetry does not make equal (McKay, Congr. Numer. 30, 45 (1981)), and the smallest code of all
//! numberings wins. No hash decides: different molecules have different codes.

use super::graph::{Chirality, Graph};

/// The code of a molecule; equal for equal molecules only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Box<[u32]>);

/// What counts when molecules are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Atoms and bonds; mirror images and E/Z isomers are equal.
    Constitution,
    /// Handedness and arrangement at double bonds as well.
    Stereo,
}

/// A canonical numbering of the atoms that are not folded into their neighbours.
#[derive(Clone, Debug)]
pub struct Numbering {
    /// Atoms of the graph in canonical order.
    pub order: Vec<usize>,
    /// The code that belongs to it.
    pub identity: Identity,
}

impl Graph {
    /// The code of this molecule. Aromaticity must have been found ([`Graph::find_aromaticity`]) for Kekulé structures of
    /// one molecule to be equal.
    pub fn identity(&self, compare: Compare) -> Identity {
        self.canonical_numbering(compare).identity
    }

    /// The canonical order of the atoms, for writing.
    pub fn canonical_numbering(&self, compare: Compare) -> Numbering {
        let skeleton = Skeleton::new(self, compare);
        let mut search = Search { skeleton: &skeleton, best: None, automorphisms: Vec::new() };
        let colours = search.refine(skeleton.first_colours());
        search.explore(&colours, &mut Vec::new());
        // A molecule without atoms has an empty code.
        let (code, order, _) = search.best.unwrap_or_default();
        Numbering { order: order.into_iter().map(|k| skeleton.atoms[k]).collect(), identity: Identity(code.into()) }
    }

    /// Colours of atoms by what surrounds them, equal for atoms that a symmetry of the constitution exchanges; `usize::MAX` for
    /// hydrogens that are counted on their neighbours.
    pub(super) fn surroundings(&self) -> Vec<usize> {
        let skeleton = Skeleton::new(self, Compare::Constitution);
        let search = Search { skeleton: &skeleton, best: None, automorphisms: Vec::new() };
        let colours = search.refine(skeleton.first_colours());
        let mut of_atom = vec![usize::MAX; self.len()];
        skeleton.atoms.iter().zip(colours).for_each(|(&i, c)| of_atom[i] = c);
        of_atom
    }

    /// Hydrogen that is no more than one of its neighbour's: neutral, of natural mass, on one single bond to a heavier atom.
    pub(super) fn is_plain_hydrogen(&self, i: usize) -> bool {
        let a = self.atoms()[i];
        a.element == 1
            && a.charge == 0
            && a.isotope == 0
            && a.hydrogens == 0
            && self.degree(i) == 1
            && self.atoms()[self.neighbours(i)[0].atom as usize].element > 1
    }
}

impl Graph {
    /// Hydrogen `i` is all that shows the arrangement at its end of a double bond (`[H]/N=C/C`).
    fn shows_arrangement(&self, i: usize) -> bool {
        let end = self.neighbours(i)[0].atom as usize;
        self.degree(end) == 2 && self.neighbours(end).iter().any(|n| self.bonds()[n.bond as usize].stereo.is_some())
    }
}

/// A graph without its plain hydrogens, as the search sees it.
struct Skeleton {
    /// Atoms of the graph that are left.
    atoms: Vec<usize>,
    /// What each atom is, all in one number.
    kinds: Vec<u64>,
    /// Neighbours and kinds of bonds.
    neighbours: Vec<Vec<(usize, u32)>>,
    /// Per atom with handedness: its neighbours in order (`None` for a hydrogen or lone pair), and the handedness.
    centres: Vec<(usize, Vec<Option<usize>>, Chirality)>,
    /// Per double bond with an arrangement: its atoms, its references and whether they are on the same side.
    doubles: Vec<([usize; 2], [Option<usize>; 2], bool)>,
}

impl Skeleton {
    fn new(graph: &Graph, compare: Compare) -> Skeleton {
        let mut place = vec![None; graph.len()];
        let mut atoms = Vec::new();
        for i in 0..graph.len() {
            if !graph.is_plain_hydrogen(i) || (compare == Compare::Stereo && graph.shows_arrangement(i)) {
                place[i] = Some(atoms.len());
                atoms.push(i);
            }
        }
        let kinds = atoms
            .iter()
            .map(|&i| {
                let a = graph.atoms()[i];
                let folded = graph.neighbours(i).iter().filter(|n| place[n.atom as usize].is_none()).count();
                let hydrogens = u64::from(a.hydrogens) + folded as u64;
                u64::from(a.element) << 48
                    | u64::from(a.isotope) << 32
                    | u64::from(a.charge as u8) << 24
                    | u64::from(a.radicals) << 16
                    | hydrogens << 8
                    | u64::from(a.aromatic)
            })
            .collect();
        let kind_of = |b: u32| {
            let bond = graph.bonds()[b as usize];
            if bond.aromatic { 4 } else { u32::from(bond.order) }
        };
        let neighbours = atoms
            .iter()
            .map(|&i| graph.neighbours(i).iter().filter_map(|n| Some((place[n.atom as usize]?, kind_of(n.bond)))).collect())
            .collect();
        let (mut centres, mut doubles) = (Vec::new(), Vec::new());
        if compare == Compare::Stereo {
            for (k, &i) in atoms.iter().enumerate() {
                let chirality = graph.atoms()[i].chirality;
                if chirality != Chirality::None {
                    let around: Vec<Option<usize>> = graph.neighbours(i).iter().map(|n| place[n.atom as usize]).collect();
                    // Two hydrogens have no order.
                    let hydrogens = around.iter().filter(|a| a.is_none()).count() + usize::from(graph.atoms()[i].hydrogens);
                    if hydrogens < 2 {
                        centres.push((k, around, chirality));
                    }
                }
            }
            for bond in graph.bonds() {
                let (Some(stereo), (Some(i), Some(j))) = (bond.stereo, (place[bond.atoms.0 as usize], place[bond.atoms.1 as usize])) else {
                    continue;
                };
                let references = [place[stereo.references.0 as usize], place[stereo.references.1 as usize]];
                doubles.push(([i, j], references, stereo.same_side));
            }
        }
        Skeleton { atoms, kinds, neighbours, centres, doubles }
    }

    /// Colours by what atoms are and how many neighbours they have.
    fn first_colours(&self) -> Vec<usize> {
        let keys: Vec<(u64, usize)> = self.kinds.iter().zip(&self.neighbours).map(|(k, n)| (*k, n.len())).collect();
        rank(&keys)
    }

    /// The code of the numbering `place` (position of each atom).
    fn code(&self, place: &[usize]) -> Vec<u32> {
        let n = place.len();
        let mut order = vec![0; n];
        place.iter().enumerate().for_each(|(atom, &p)| order[p] = atom);
        let mut code = vec![n as u32];
        for &atom in &order {
            code.extend([(self.kinds[atom] >> 32) as u32, self.kinds[atom] as u32]);
            let mut back: Vec<(u32, u32)> =
                self.neighbours[atom].iter().filter(|n| place[n.0] < place[atom]).map(|n| (place[n.0] as u32, n.1)).collect();
            back.sort_unstable();
            code.push(back.len() as u32);
            code.extend(back.iter().flat_map(|b| [b.0, b.1]));
        }
        let mut stereo: Vec<[u32; 3]> = Vec::new();
        for (atom, around, chirality) in &self.centres {
            let places: Vec<usize> = around.iter().map(|a| a.map_or(usize::MAX, |a| place[a])).collect();
            let turned = chirality.after_swaps(inversions(&places)) == Chirality::Clockwise;
            stereo.push([place[*atom] as u32, u32::MAX, u32::from(turned)]);
        }
        for (ends, references, same_side) in &self.doubles {
            // Relative to the neighbour of smaller place at each end.
            let swapped = |k: usize| {
                let other = ends[1 - k];
                let mut least = usize::MAX;
                for n in self.neighbours[ends[k]].iter().filter(|n| n.0 != other) {
                    least = least.min(place[n.0]);
                }
                references[k].map_or(usize::MAX, |r| place[r]) != least
            };
            let same = *same_side ^ swapped(0) ^ swapped(1);
            let (p, q) = (place[ends[0]] as u32, place[ends[1]] as u32);
            stereo.push([p.max(q), p.min(q), u32::from(same)]);
        }
        stereo.sort_unstable();
        code.extend(stereo.iter().flatten());
        code
    }
}

/// Ranks of `keys`: how many keys are smaller.
fn rank<K: Ord>(keys: &[K]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[a].cmp(&keys[b]));
    let mut ranks = vec![0; keys.len()];
    for k in 1..order.len() {
        let (before, here) = (order[k - 1], order[k]);
        ranks[here] = if keys[before] == keys[here] { ranks[before] } else { k };
    }
    ranks
}

/// Pairs that are out of order; equal entries (two hydrogens) count as in order.
fn inversions(places: &[usize]) -> usize {
    (0..places.len()).map(|a| places[a + 1..].iter().filter(|&&b| b < places[a]).count()).sum()
}

struct Search<'a> {
    skeleton: &'a Skeleton,
    /// Smallest code so far, the atoms in its order, and the choices that led there.
    best: Option<(Vec<u32>, Vec<usize>, Vec<usize>)>,
    /// Numberings of equal code give these symmetries of the molecule: image of each atom.
    automorphisms: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Splits colours by the colours of neighbours until nothing changes.
    fn refine(&self, mut colours: Vec<usize>) -> Vec<usize> {
        let classes = |c: &[usize]| {
            c.iter().enumerate().fold(vec![false; c.len()], |mut s, (_, &k)| {
                s[k] = true;
                s
            })
        };
        let count = |c: &[usize]| classes(c).iter().filter(|s| **s).count();
        let mut before = count(&colours);
        loop {
            let keys: Vec<(usize, Vec<(usize, u32)>)> = self
                .skeleton
                .neighbours
                .iter()
                .zip(&colours)
                .map(|(around, &own)| {
                    let mut around: Vec<(usize, u32)> = around.iter().map(|n| (colours[n.0], n.1)).collect();
                    around.sort_unstable();
                    (own, around)
                })
                .collect();
            colours = rank(&keys);
            let now = count(&colours);
            if now == before {
                return colours;
            }
            before = now;
        }
    }

    /// Explores all ways to break ties below `path`. Returns the depth to go back to after a symmetry was found.
    fn explore(&mut self, colours: &[usize], path: &mut Vec<usize>) -> Option<usize> {
        let Some(cell) = first_tie(colours) else { return self.leaf(colours, path) };
        let mut explored: Vec<usize> = Vec::new();
        for &atom in &cell {
            if self.symmetric_to_any(atom, &explored, path) {
                continue;
            }
            explored.push(atom);
            // All others of the cell come after the chosen one.
            let split = cell.iter().fold(colours.to_vec(), |mut c, &other| {
                c[other] += usize::from(other != atom);
                c
            });
            let refined = self.refine(split);
            path.push(atom);
            let back = self.explore(&refined, path);
            path.pop();
            if let Some(depth) = back.filter(|d| *d < path.len()) {
                return Some(depth);
            }
        }
        None
    }

    fn leaf(&mut self, colours: &[usize], path: &[usize]) -> Option<usize> {
        let code = self.skeleton.code(colours);
        let mut order = vec![0; colours.len()];
        colours.iter().enumerate().for_each(|(atom, &p)| order[p] = atom);
        match &self.best {
            Some((best, best_order, best_path)) if *best == code => {
                let mut image = vec![0; order.len()];
                best_order.iter().zip(&order).for_each(|(&a, &b)| image[a] = b);
                self.automorphisms.push(image);
                Some(best_path.iter().zip(path).take_while(|(a, b)| a == b).count())
            }
            Some((best, ..)) if *best < code => None,
            _ => {
                self.best = Some((code, order, path.to_vec()));
                None
            }
        }
    }

    /// A known symmetry that leaves all of `path` in place carries `atom` into one of `explored`.
    fn symmetric_to_any(&self, atom: usize, explored: &[usize], path: &[usize]) -> bool {
        if explored.is_empty() {
            return false;
        }
        let fixing: Vec<&Vec<usize>> = self.automorphisms.iter().filter(|g| path.iter().all(|&p| g[p] == p)).collect();
        let mut orbit = vec![atom];
        let mut head = 0;
        while head < orbit.len() {
            for g in &fixing {
                let image = g[orbit[head]];
                if explored.contains(&image) {
                    return true;
                }
                if !orbit.contains(&image) {
                    orbit.push(image);
                }
            }
            head += 1;
        }
        false
    }
}

/// Atoms of the first colour that several atoms share.
fn first_tie(colours: &[usize]) -> Option<Vec<usize>> {
    let mut count = vec![0; colours.len()];
    colours.iter().for_each(|&c| count[c] += 1);
    let tie = count.iter().position(|&c| c > 1)?;
    Some((0..colours.len()).filter(|&i| colours[i] == tie).collect())
}
