//! Turning single centres of a conformer around: moves that mend one handedness, or one E/Z, and leave the rest of the geometry as it is.
//!
//! What is bonded to a centre falls into parts that only the centre joins. Two bonds are exchanged by half a turn about their bisector of
//! the parts they lead to: two substituents, or both ends of a ring at a spiro atom. Where rings hold three of the bonds, the centre
//! and its fourth substituent go through the plane of the other three. Lengths of bonds stay; what else is strained, a sampler
//! that starts from there relaxes.

use super::checks::Faults;
use crate::molecule::{Chirality, Graph};
use nalgebra::{Unit, Vector3};

/// Rounds of moves: the move of a centre in a ring may turn its neighbour around.
const ROUNDS: usize = 4;
/// Two directions that are nearly opposite have no bisector (length of the sum of unit vectors).
const STRAIGHT: f64 = 0.2;

/// Height of a centre above the plane of three neighbours (Å).
const HEIGHT: f64 = 0.45;

/// A way to turn a centre around.
#[derive(Clone, Debug, PartialEq)]
enum Move {
    /// Half a turn of `atoms` about the bisector of the bonds to two of them.
    Exchange { bonds: [usize; 2], atoms: Vec<usize> },
    /// Centre and `atoms`, the part behind its neighbour `first`, go through the plane of three others.
    Through { plane: [usize; 3], first: usize, atoms: Vec<usize> },
}

#[derive(Clone, Debug)]
struct Centre {
    atom: usize,
    /// The gentlest first.
    moves: Vec<Move>,
}

/// The moves of a molecule's centres and double bonds.
#[derive(Clone, Debug, Default)]
pub struct Handedness {
    centres: Vec<Centre>,
    /// Double bonds with an arrangement, and the atoms on the smaller side, their end among them.
    arranged: Vec<(usize, Vec<usize>)>,
}

/// Parts of the molecule that atom `centre` alone joins: of each its atoms, and the neighbours of the centre in it.
fn parts(graph: &Graph, centre: usize) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut seen = vec![false; graph.len()];
    seen[centre] = true;
    let mut parts = Vec::new();
    for n in graph.neighbours(centre) {
        if seen[n.atom as usize] {
            continue;
        }
        let (mut atoms, mut next) = (vec![n.atom as usize], 0);
        seen[n.atom as usize] = true;
        while next < atoms.len() {
            for m in graph.neighbours(atoms[next]) {
                if !std::mem::replace(&mut seen[m.atom as usize], true) {
                    atoms.push(m.atom as usize);
                }
            }
            next += 1;
        }
        let bonded = graph.neighbours(centre).iter().map(|n| n.atom as usize).filter(|i| atoms.contains(i)).collect();
        parts.push((atoms, bonded));
    }
    parts
}

fn moves(graph: &Graph, centre: usize) -> Vec<Move> {
    let mut parts = parts(graph, centre);
    parts.sort_by_key(|p| p.0.len());
    let mut moves = Vec::new();
    let single: Vec<&(Vec<usize>, Vec<usize>)> = parts.iter().filter(|p| p.1.len() == 1).collect();
    if let [a, b, ..] = single[..] {
        moves.push(Move::Exchange { bonds: [a.1[0], b.1[0]], atoms: [&a.0[..], &b.0].concat() });
    }
    if let Some((atoms, bonds)) = parts.iter().find(|p| p.1.len() == 2) {
        moves.push(Move::Exchange { bonds: [bonds[0], bonds[1]], atoms: atoms.clone() });
    }
    if let Some((atoms, first)) = single.first().map(|p| (&p.0, p.1[0])) {
        let mut others: Vec<usize> = graph.neighbours(centre).iter().map(|n| n.atom as usize).filter(|&i| i != first).collect();
        // With three neighbours the centre itself is in the plane.
        if others.len() == 2 {
            others.push(centre);
        }
        if let Ok(plane) = others.try_into() {
            moves.push(Move::Through { plane, first, atoms: atoms.clone() });
        }
    }
    moves
}

impl Handedness {
    /// Of `graph`, whose hydrogens are all atoms.
    pub fn new(graph: &Graph) -> Self {
        let centre = |atom| Centre { atom, moves: moves(graph, atom) };
        let centres = (0..graph.len()).filter(|&i| graph.atoms()[i].chirality != Chirality::None).map(centre).collect();
        let mut arranged = Vec::new();
        for (b, bond) in graph.bonds().iter().enumerate().filter(|(_, bond)| bond.stereo.is_some()) {
            let side = |from: u32, to: u32| {
                let part = parts(graph, from as usize).into_iter().find(|p| p.0.contains(&(to as usize)));
                // In a ring there are no sides.
                part.filter(|p| p.1.len() == 1).map(|p| p.0)
            };
            let sides = [side(bond.atoms.0, bond.atoms.1), side(bond.atoms.1, bond.atoms.0)];
            arranged.extend(sides.into_iter().flatten().min_by_key(Vec::len).map(|atoms| (b, atoms)));
        }
        Handedness { centres, arranged }
    }

    /// True where there is nothing that could be wrong.
    pub fn is_empty(&self) -> bool {
        self.centres.is_empty() && self.arranged.is_empty()
    }

    /// Number of centres.
    pub fn centres(&self) -> usize {
        self.centres.len()
    }

    /// Turns around what is wrong in the conformer `x [N, 3]` of `graph`, whose moves these are. Returns how many moves were made; what
    /// has none, and what moves back and forth, stays wrong.
    pub fn mend(&self, graph: &Graph, x: &mut [f64]) -> usize {
        let mut made = 0;
        for &(b, ref atoms) in &self.arranged {
            let bond = graph.bonds()[b];
            if bond.stereo.is_some_and(|s| graph.same_side_at(b, s.references, x) != s.same_side) {
                let (i, j) = (point(x, bond.atoms.0 as usize), point(x, bond.atoms.1 as usize));
                made += usize::from(half_turn(x, atoms, i, j - i));
            }
        }
        for _ in 0..ROUNDS {
            let before = made;
            for centre in &self.centres {
                let wanted = graph.atoms()[centre.atom].chirality;
                if graph.chirality_at(centre.atom, x) == wanted {
                    continue;
                }
                made += usize::from(centre.moves.iter().any(|m| m.make(graph, centre.atom, wanted, x)));
            }
            if made == before {
                break;
            }
        }
        made
    }

    /// The same after mirroring `x` where more than half of the centres are wrong; returns whether all is right then, the geometry aside.
    pub fn mend_or_mirror(&self, graph: &Graph, x: &mut [f64]) -> bool {
        let wrong = self.centres.iter().filter(|c| graph.chirality_at(c.atom, x) != graph.atoms()[c.atom].chirality).count();
        if 2 * wrong > self.centres.len() {
            x.iter_mut().skip(2).step_by(3).for_each(|z| *z = -*z);
        }
        self.mend(graph, x);
        let faults = Faults::of(graph, x);
        faults.centres.is_empty() && faults.double_bonds.is_empty() && !faults.not_finite
    }
}

impl Move {
    /// Moves and returns true, or leaves all as it was where that does not give `centre` the handedness `wanted`.
    fn make(&self, graph: &Graph, centre: usize, wanted: Chirality, x: &mut [f64]) -> bool {
        let old = x.to_vec();
        match self {
            Move::Exchange { bonds, atoms } => {
                let from = point(x, centre);
                let [a, b] = bonds.map(|i| (point(x, i) - from).try_normalize(1e-9).unwrap_or_default());
                if (a + b).norm() > STRAIGHT {
                    half_turn(x, atoms, from, a + b);
                }
            }
            Move::Through { plane, first, atoms } => through(x, centre, *plane, *first, atoms),
        }
        if graph.chirality_at(centre, x) == wanted {
            return true;
        }
        x.copy_from_slice(&old);
        let Move::Through { plane, first, atoms } = self else { return false };
        // What is flat has no mirror image: it is raised to one side.
        graph.chirality_at(centre, x) == Chirality::None
            && [HEIGHT, -HEIGHT].into_iter().any(|height| {
                raise(x, (centre, height), *plane, *first, atoms);
                let right = graph.chirality_at(centre, x) == wanted;
                if !right {
                    x.copy_from_slice(&old);
                }
                right
            })
    }
}

fn point(x: &[f64], i: usize) -> Vector3<f64> {
    Vector3::new(x[3 * i], x[3 * i + 1], x[3 * i + 2])
}

fn place(x: &mut [f64], i: usize, p: Vector3<f64>) {
    x[3 * i..3 * i + 3].copy_from_slice(p.as_slice());
}

/// Half a turn of `atoms` about an axis; false where the axis has no direction.
fn half_turn(x: &mut [f64], atoms: &[usize], from: Vector3<f64>, axis: Vector3<f64>) -> bool {
    let Some(axis) = Unit::try_new(axis, 1e-9) else { return false };
    for &i in atoms {
        let v = point(x, i) - from;
        place(x, i, from + 2.0 * axis.dot(&v) * axis.as_ref() - v);
    }
    true
}

/// Takes `centre` through a plane, and what hangs on it at `first` to the other side. A centre that lies in the plane stays, and the
/// substituent goes to the side where it is not.
fn through(x: &mut [f64], centre: usize, plane: [usize; 3], first: usize, atoms: &[usize]) {
    let [p, q, r] = plane.map(|i| point(x, i));
    let Some(normal) = (q - p).cross(&(r - p)).try_normalize(1e-9) else { return };
    let mirrored = |v: Vector3<f64>| v - 2.0 * normal.dot(&(v - p)) * normal;
    let (old, hung) = (point(x, centre), point(x, first));
    let (new, target) = (mirrored(old), mirrored(hung));
    // The mirror image of the substituent would have the other hands: the nearest rigid motion that takes its bond to where it is to be.
    let (from, to) = (hung - old, target - new);
    let turn = nalgebra::Rotation3::rotation_between(&from, &to);
    place(x, centre, new);
    for &i in atoms {
        let v = point(x, i) - old;
        // Opposite directions have many such turns; half of one about any axis across.
        let turned = turn.map_or_else(|| across(&from, &v), |t| t * v);
        place(x, i, new + turned);
    }
}

/// Places `centre` at a height above a plane, and what hangs on it at `first` above it.
fn raise(x: &mut [f64], (centre, height): (usize, f64), plane: [usize; 3], first: usize, atoms: &[usize]) {
    let [p, q, r] = plane.map(|i| point(x, i));
    let Some(normal) = (q - p).cross(&(r - p)).try_normalize(1e-9) else { return };
    let (old, hung) = (point(x, centre), point(x, first));
    let new = if plane.contains(&centre) { old } else { old + (height - normal.dot(&(old - p))) * normal };
    let shift = new + height.signum() * (hung - old).norm().max(1.0) * normal - hung;
    place(x, centre, new);
    for &i in atoms {
        let v = point(x, i);
        place(x, i, v + shift);
    }
}

/// `v` after half a turn about an axis across `direction`.
fn across(direction: &Vector3<f64>, v: &Vector3<f64>) -> Vector3<f64> {
    let other = if direction.x.abs() < 0.9 * direction.norm() { Vector3::x() } else { Vector3::y() };
    let axis = direction.cross(&other).normalize();
    2.0 * axis.dot(v) * axis - v
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RDKit's conformers (`data/scripts/make_centres_fixture.py`) are right; of the molecule with another handedness at some centre they
    /// are wrong there. Mended they are that molecule, and no bond has another length.
    #[test]
    fn single_centres_are_turned_around() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/molecule/centres.json");
        let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (mut turned, mut tried) = (0, 0);
        for m in file.as_array().unwrap() {
            let (name, smiles) = (m["name"].as_str().unwrap(), m["smiles"].as_str().unwrap());
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            let x: Vec<f64> = m["positions"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let chiral: Vec<usize> = (0..graph.len()).filter(|&i| graph.atoms()[i].chirality != Chirality::None).collect();
            assert_eq!(chiral.len() as u64, m["centres"].as_u64().unwrap(), "{name}");
            let handedness = Handedness::new(&graph);
            let mut same = x.clone();
            assert!(handedness.centres() == chiral.len() && handedness.mend(&graph, &mut same) == 0 && same == x, "{name}");
            let mut mirrored: Vec<f64> = x.iter().map(|x| -x).collect();
            assert!(handedness.mend_or_mirror(&graph, &mut mirrored), "{name}");
            for &i in &chiral {
                tried += 1;
                let mut atoms = graph.atoms().to_vec();
                atoms[i].chirality = atoms[i].chirality.inverted();
                let other = Graph::new(atoms, graph.bonds().to_vec());
                let mut y = x.clone();
                Handedness::new(&other).mend(&other, &mut y);
                let faults = Faults::of(&other, &y);
                turned += usize::from(faults.centres.is_empty());
                for bond in graph.bonds() {
                    let length = |x: &[f64]| (point(x, bond.atoms.0 as usize) - point(x, bond.atoms.1 as usize)).norm();
                    assert!((length(&x) - length(&y)).abs() < 1e-9, "{name} {i}");
                }
            }
        }
        assert_eq!((tried, turned), (81, 81));
    }

    /// A centre in the plane of its neighbours is raised to the right side.
    #[test]
    fn flat_centres_are_raised() {
        for smiles in ["F[C@H](Cl)Br", "F[C@@H](Cl)Br"] {
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            let mut x = [1.3, 0.0, 0.0, 0.0, 0.0, 0.0, -0.9, 1.5, 0.0, -1.0, -1.6, 0.0, -0.8, 0.1, 0.0];
            assert_eq!(graph.chirality_at(1, &x), Chirality::None);
            assert_eq!(Handedness::new(&graph).mend(&graph, &mut x), 1);
            assert_eq!(graph.chirality_at(1, &x), graph.atoms()[1].chirality);
        }
    }

    /// Every kind of move, on molecules built from the directions of a tetrahedron.
    #[test]
    fn moves_fit_what_holds_a_centre() {
        let kinds = |smiles: &str| -> Vec<Vec<&'static str>> {
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            let name = |m: &Move| match m {
                Move::Exchange { .. } => "exchange",
                Move::Through { .. } => "through",
            };
            Handedness::new(&graph).centres.iter().map(|c| c.moves.iter().map(name).collect()).collect()
        };
        // Free substituents, a ring beside them, a fused ring, and a sulfoxide.
        assert_eq!(kinds("F[C@H](Cl)Br"), vec![vec!["exchange", "through"]]);
        assert_eq!(kinds("C[C@H]1CCCCO1"), vec![vec!["exchange", "exchange", "through"]]);
        assert_eq!(kinds("O=C1CC[C@@H]2CCCC[C@@H]2C1").iter().filter(|k| **k == ["through"]).count(), 2);
        assert_eq!(kinds("C[S@](=O)CC"), vec![vec!["exchange", "through"]]);
        let graph = Graph::from_smiles("F/C=C/F").unwrap().with_hydrogens();
        let mut x = [-1.1, 1.2, 0.0, 0.0, 0.66, 0.0, 0.0, -0.66, 0.0, -1.1, -1.2, 0.0, 0.94, 1.2, 0.0, 0.94, -1.2, 0.0];
        assert_eq!(Faults::of(&graph, &x).double_bonds, vec![1]);
        assert!(Handedness::new(&graph).mend_or_mirror(&graph, &mut x) && Faults::of(&graph, &x).is_empty());
    }
}
