//! Other conformers of a structure by chance: bonds turned at random, atoms a little displaced, rings' classes for splitting data.

use scorefield_integrators::{Noise, Purpose};
use scorefield_models::ditmc::checks::Faults;
use scorefield_models::molecule::{Atom, Bond, Compare, Graph, Rings};

/// Standard deviation of displacements (Å): enough to leave saddle points.
const DISPLACEMENT: f64 = 0.05;
/// Sets of angles that are tried for one without clashes.
const TRIES: u64 = 32;

/// The bonds of a molecule that turn freely, and the atoms that turn with each.
pub struct Torsions {
    bonds: Vec<Turning>,
}

struct Turning {
    /// The bond; the second atom's side turns.
    axis: (usize, usize),
    atoms: Vec<usize>,
}

impl Torsions {
    /// Single bonds outside of rings, between atoms that both have other neighbours; methyl groups are left out.
    pub fn of(graph: &Graph) -> Self {
        let rings = Rings::of(graph);
        let mut bonds = Vec::new();
        for (b, bond) in graph.bonds().iter().enumerate() {
            let (i, j) = (bond.atoms.0 as usize, bond.atoms.1 as usize);
            if bond.order != 1 || bond.aromatic || rings.of_bond[b] > 0 || !turns(graph, i, j) || !turns(graph, j, i) {
                continue;
            }
            let (first, second) = (side(graph, i, j), side(graph, j, i));
            // The smaller side turns.
            bonds.push(if first.len() < second.len() {
                Turning { axis: (j, i), atoms: first }
            } else {
                Turning { axis: (i, j), atoms: second }
            });
        }
        Torsions { bonds }
    }

    /// Number of bonds that turn.
    pub fn len(&self) -> usize {
        self.bonds.len()
    }

    /// True where nothing turns.
    pub fn is_empty(&self) -> bool {
        self.bonds.is_empty()
    }

    /// The structure `x [N, 3]` (Å) with random angles, as number `id` of `noise` in round `round`; without clashes where some of 32 tries
    /// has none.
    pub fn propose(&self, graph: &Graph, x: &[f64], noise: Noise, id: u32, round: u32) -> Vec<f64> {
        let mut last = x.to_vec();
        for attempt in 0..TRIES {
            let step = u64::from(round) * TRIES + attempt;
            last.copy_from_slice(x);
            for (k, turning) in self.bonds.iter().enumerate() {
                let angle = std::f64::consts::TAU * noise.uniform(k as u32, id, step, Purpose::Prior);
                turn(&mut last, turning, angle);
            }
            for (i, p) in last.chunks_exact_mut(3).enumerate() {
                let z = noise.normals(i as u32, id, step, Purpose::Displacement);
                p.iter_mut().zip(z).for_each(|(p, z)| *p += DISPLACEMENT * z);
            }
            if Faults::of(graph, &last).is_empty() {
                break;
            }
        }
        last
    }
}

/// Whether turning about `i`–`j` moves something at `i`'s side that is no methyl group.
fn turns(graph: &Graph, i: usize, j: usize) -> bool {
    let others: Vec<usize> = graph.neighbours(i).iter().map(|n| n.atom as usize).filter(|&k| k != j).collect();
    let hydrogens = others.iter().filter(|&&k| graph.atoms()[k].element == 1).count();
    !(others.is_empty() || hydrogens == 3 && others.len() == 3)
}

/// Atoms beyond `j`, seen from `i`.
fn side(graph: &Graph, i: usize, j: usize) -> Vec<usize> {
    let mut seen = vec![false; graph.len()];
    (seen[i], seen[j]) = (true, true);
    let mut atoms = vec![j];
    let mut next = 0;
    while next < atoms.len() {
        for n in graph.neighbours(atoms[next]) {
            if !std::mem::replace(&mut seen[n.atom as usize], true) {
                atoms.push(n.atom as usize);
            }
        }
        next += 1;
    }
    atoms
}

/// Rodrigues' rotation about the bond.
fn turn(x: &mut [f64], turning: &Turning, angle: f64) {
    let point = |x: &[f64], i: usize| [x[3 * i], x[3 * i + 1], x[3 * i + 2]];
    let (a, b) = (point(x, turning.axis.0), point(x, turning.axis.1));
    let mut u = [0, 1, 2].map(|k| b[k] - a[k]);
    let length = u.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    u.iter_mut().for_each(|v| *v /= length);
    let (sin, cos) = angle.sin_cos();
    for &i in &turning.atoms {
        let p = point(x, i);
        let d = [0, 1, 2].map(|k| p[k] - b[k]);
        let along = (0..3).map(|k| u[k] * d[k]).sum::<f64>() * (1.0 - cos);
        let across = [u[1] * d[2] - u[2] * d[1], u[2] * d[0] - u[0] * d[2], u[0] * d[1] - u[1] * d[0]];
        for k in 0..3 {
            x[3 * i + k] = b[k] + d[k] * cos + across[k] * sin + u[k] * along;
        }
    }
}

/// The ring systems of a molecule with what joins them (G. W. Bemis and M. A. Murcko, *J. Med. Chem.* 39, 2887, 1996) as SMILES; of a
/// molecule without rings its own heavy atoms.
pub fn scaffold(graph: &Graph) -> String {
    let heavy = |i: usize| graph.atoms()[i].element > 1;
    let mut kept: Vec<bool> = (0..graph.len()).map(heavy).collect();
    loop {
        let ends: Vec<usize> =
            (0..graph.len()).filter(|&i| kept[i] && graph.neighbours(i).iter().filter(|n| kept[n.atom as usize]).count() < 2).collect();
        if ends.is_empty() {
            break;
        }
        ends.into_iter().for_each(|i| kept[i] = false);
    }
    if !kept.iter().any(|k| *k) {
        kept = (0..graph.len()).map(heavy).collect();
    }
    let mut place = vec![u32::MAX; graph.len()];
    let mut atoms = Vec::new();
    for i in (0..graph.len()).filter(|&i| kept[i]) {
        place[i] = atoms.len() as u32;
        atoms.push(Atom::new(graph.atoms()[i].element));
    }
    // Orders of bonds do not count: a ring is a ring, saturated or not.
    let bonds = graph.bonds().iter().filter(|b| kept[b.atoms.0 as usize] && kept[b.atoms.1 as usize]);
    let bonds = bonds.map(|b| Bond::new(place[b.atoms.0 as usize], place[b.atoms.1 as usize], 1)).collect();
    Graph::new(atoms, bonds).to_smiles(Compare::Constitution)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bonds_that_turn_are_found() {
        for (smiles, count) in [("CC", 0), ("CCO", 1), ("CCCC", 1), ("CC(=O)Nc1ccc(O)cc1", 3), ("C1CCCCC1", 0), ("OO", 1), ("C#CC", 0)] {
            let graph = Graph::from_smiles(smiles).unwrap().with_hydrogens();
            assert_eq!(Torsions::of(&graph).len(), count, "{smiles}");
        }
    }

    #[test]
    fn turning_keeps_bonds_and_angles() {
        let graph = Graph::from_smiles("OO").unwrap().with_hydrogens();
        let x = [0.0, 0.0, 0.0, 1.45, 0.0, 0.0, -0.2, 0.94, 0.0, 1.65, 0.94, 0.0];
        let torsions = Torsions::of(&graph);
        let distance = |x: &[f64], i: usize, j: usize| (0..3).map(|k| (x[3 * i + k] - x[3 * j + k]).powi(2)).sum::<f64>().sqrt();
        let mut turned = x.to_vec();
        turn(&mut turned, &torsions.bonds[0], 2.0);
        for (i, j) in [(0, 1), (0, 2), (1, 3), (0, 3), (1, 2)] {
            assert!((distance(&x, i, j) - distance(&turned, i, j)).abs() < 1e-12);
        }
        assert!((distance(&x, 2, 3) - distance(&turned, 2, 3)).abs() > 0.1);
        let (a, b) = (torsions.propose(&graph, &x, Noise::new(1), 0, 0), torsions.propose(&graph, &x, Noise::new(1), 1, 0));
        assert!(a != b && Faults::of(&graph, &a).is_empty() && Faults::of(&graph, &b).is_empty());
    }

    #[test]
    fn scaffolds_are_rings_and_what_joins_them() {
        let of = |smiles: &str| scaffold(&Graph::from_smiles(smiles).unwrap().with_hydrogens());
        assert_eq!(of("Cc1ccccc1"), of("OC1CCCCC1"));
        assert_ne!(of("Cc1ccccc1"), of("Cc1ccncc1"));
        assert_ne!(of("C1CC1CC1CC1"), of("C1CC1C1CC1"));
        assert_ne!(of("CCO"), of("CCN"));
        assert_eq!(of("CC=O"), of("CCO"));
    }
}
