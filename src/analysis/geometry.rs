//! Shapes of molecules: dihedral angles, superposition, size, and the φ/ψ angles of peptide backbones.

use nalgebra::{Matrix3, Vector3};
use scorefield_integrators::System;

fn point(positions: &[f64], atom: usize) -> Vector3<f64> {
    Vector3::new(positions[3 * atom], positions[3 * atom + 1], positions[3 * atom + 2])
}

/// Distance of two atoms in the unit of `positions` (`[N, 3]`).
pub fn distance(positions: &[f64], i: usize, j: usize) -> f64 {
    (point(positions, i) - point(positions, j)).norm()
}

/// Dihedral angle of `atoms` in radians, in (−π, π], with IUPAC's sign: positive where the far bond is turned clockwise
/// looking along the middle bond. `positions` is `[N, 3]` in any length unit. Zero where three atoms lie on a line.
pub fn dihedral(positions: &[f64], atoms: [usize; 4]) -> f64 {
    let [a, b, c, d] = atoms.map(|i| point(positions, i));
    let (u, v, w) = (b - a, c - b, d - c);
    let (m, n) = (u.cross(&v), v.cross(&w));
    // atan2 keeps full precision near 0 and π, where an arc cosine loses half the digits.
    (v.norm() * u.dot(&n)).atan2(m.dot(&n))
}

/// Root mean square deviation of `a` from `b` (`[N, 3]`, one unit) after the rotation and translation that make it
/// smallest; reflections are not allowed (W. Kabsch, Acta Cryst. A 32, 922, 1976).
pub fn kabsch_rmsd(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len()) / 3;
    if n == 0 {
        return 0.0;
    }
    let (ca, cb) = (centre(&a[..3 * n]), centre(&b[..3 * n]));
    let rotation = rotation_onto(a, ca, b, cb);
    // Summing the deviations themselves: the usual difference of large squares loses digits for small RMSDs.
    let sum: f64 = (0..n).map(|i| (rotation * (point(a, i) - ca) - (point(b, i) - cb)).norm_squared()).sum();
    (sum / n as f64).sqrt()
}

/// Turns `a` and moves it so that it fits `b` best (both `[N, 3]`), as [`kabsch_rmsd`] does, with the centre at the origin.
/// Returns the rotation, for vectors that belong to `a`.
pub fn superpose(a: &mut [f64], b: &[f64]) -> Matrix3<f64> {
    let (ca, cb) = (centre(a), centre(b));
    let rotation = rotation_onto(a, ca, b, cb);
    for i in 0..a.len() / 3 {
        let turned = rotation * (point(a, i) - ca);
        a[3 * i..3 * i + 3].copy_from_slice(turned.as_slice());
    }
    rotation
}

/// Mean of the points `[N, 3]`.
fn centre(x: &[f64]) -> Vector3<f64> {
    let n = x.len() / 3;
    (0..n).map(|i| point(x, i)).sum::<Vector3<f64>>() / n.max(1) as f64
}

fn rotation_onto(a: &[f64], ca: Vector3<f64>, b: &[f64], cb: Vector3<f64>) -> Matrix3<f64> {
    let n = a.len().min(b.len()) / 3;
    let covariance: Matrix3<f64> = (0..n).map(|i| (point(a, i) - ca) * (point(b, i) - cb).transpose()).sum();
    best_rotation(&covariance)
}

/// Rotation R that maximises tr(R C) for the covariance C = Σ a bᵀ.
fn best_rotation(covariance: &Matrix3<f64>) -> Matrix3<f64> {
    let svd = covariance.svd(true, true);
    let (Some(u), Some(vt)) = (svd.u, svd.v_t) else { return Matrix3::identity() };
    let v = vt.transpose();
    // Where a reflection would fit better, the direction of the smallest singular value is turned round.
    let sign = if (v * u.transpose()).determinant() < 0.0 { -1.0 } else { 1.0 };
    v * Matrix3::from_diagonal(&Vector3::new(1.0, 1.0, sign)) * u.transpose()
}

/// Mass-weighted radius of gyration in the unit of `positions` (`[N, 3]`); all atoms weigh the same where all masses are 0.
pub fn radius_of_gyration(positions: &[f64], masses: &[f64]) -> f64 {
    let total: f64 = masses.iter().sum();
    let weight = |i: usize| if total > 0.0 { masses[i] / total } else { 1.0 / masses.len() as f64 };
    let centre: Vector3<f64> = (0..masses.len()).map(|i| weight(i) * point(positions, i)).sum();
    (0..masses.len()).map(|i| weight(i) * (point(positions, i) - centre).norm_squared()).sum::<f64>().sqrt()
}

/// The two backbone torsions of one residue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackboneTorsions {
    /// Residue name and number, for example `ALA 2`.
    pub label: String,
    /// Atoms C(−1), N, CA, C.
    pub phi: [usize; 4],
    /// Atoms N, CA, C, N(+1).
    pub psi: [usize; 4],
}

/// φ/ψ of every residue of `system` that has both, in the order of the atoms. Caps count as neighbours: the C of ACE
/// precedes the first residue, the N of NME follows the last. Atoms are found by their PDB names; where there are none,
/// by the pattern of bonds and elements of a peptide.
pub fn backbone_torsions(system: &System) -> Vec<BackboneTorsions> {
    let named = by_names(system);
    if named.is_empty() { by_bonds(system) } else { named }
}

/// Consecutive atoms with the same residue number, name and chain.
struct Residue {
    label: String,
    chain: String,
    id: i64,
    n: Option<usize>,
    ca: Option<usize>,
    c: Option<usize>,
}

fn by_names(system: &System) -> Vec<BackboneTorsions> {
    let mut residues: Vec<Residue> = Vec::new();
    for (i, name) in system.names.iter().enumerate() {
        let new = i == 0 || {
            let last = &system.names[i - 1];
            (&last.chain, last.residue_id, &last.residue) != (&name.chain, name.residue_id, &name.residue)
        };
        if new {
            let label = format!("{} {}", name.residue, name.residue_id);
            residues.push(Residue { label, chain: name.chain.clone(), id: name.residue_id, n: None, ca: None, c: None });
        }
        let Some(residue) = residues.last_mut() else { continue };
        match name.atom.as_str() {
            "N" => residue.n = residue.n.or(Some(i)),
            // Calcium has the same name.
            "CA" if system.types[i] != 20 => residue.ca = residue.ca.or(Some(i)),
            "C" => residue.c = residue.c.or(Some(i)),
            _ => {}
        }
    }
    let bonded = |a: usize, b: usize| system.bonds.binary_search(&(a.min(b) as u32, a.max(b) as u32)).is_ok();
    // Without any bond across residues the file has none; then neighbours in the sequence are taken to be linked.
    let linked = |left: &Residue, right: &Residue| match (left.c, right.n) {
        (Some(c), Some(n)) if bonded(c, n) => true,
        (Some(c), Some(n)) => left.chain == right.chain && right.id - left.id == 1 && !has_carbon_from_elsewhere(system, n, c),
        _ => false,
    };
    residues
        .windows(3)
        .filter(|w| linked(&w[0], &w[1]) && linked(&w[1], &w[2]))
        .filter_map(|w| {
            let (n, ca, c) = (w[1].n?, w[1].ca?, w[1].c?);
            Some(BackboneTorsions { label: w[1].label.clone(), phi: [w[0].c?, n, ca, c], psi: [n, ca, c, w[2].n?] })
        })
        .collect()
}

/// True where the bonds of `n` and `c` are known and none joins the two.
fn has_carbon_from_elsewhere(system: &System, n: usize, c: usize) -> bool {
    let degree = |i: usize| system.bonds.iter().filter(|b| b.0 as usize == i || b.1 as usize == i).count();
    // A peptide nitrogen and its carbon have three neighbours each: with all of them known, a missing bond is no bond.
    degree(n) >= 3 && degree(c) >= 3
}

/// C(=O)–N–CA–C(=O)–N from elements and bonds alone.
fn by_bonds(system: &System) -> Vec<BackboneTorsions> {
    let mut neighbours = vec![Vec::new(); system.len()];
    for &(a, b) in &system.bonds {
        neighbours[a as usize].push(b as usize);
        neighbours[b as usize].push(a as usize);
    }
    let element = |i: usize| system.types[i];
    let carbonyl = |i: usize| {
        element(i) == 6 && neighbours[i].len() == 3 && neighbours[i].iter().any(|&o| element(o) == 8 && neighbours[o].len() == 1)
    };
    let mut found = Vec::new();
    for ca in (0..system.len()).filter(|&i| element(i) == 6 && neighbours[i].len() == 4) {
        for &n in neighbours[ca].iter().filter(|&&n| element(n) == 7) {
            for &c in neighbours[ca].iter().filter(|&&c| carbonyl(c)) {
                let before = neighbours[n].iter().find(|&&p| p != ca && carbonyl(p));
                let after = neighbours[c].iter().find(|&&q| element(q) == 7);
                if let (Some(&before), Some(&after)) = (before, after) {
                    found.push(BackboneTorsions {
                        label: format!("residue {}", found.len() + 1),
                        phi: [before, n, ca, c],
                        psi: [n, ca, c, after],
                    });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use scorefield_integrators::{AtomName, Noise, Purpose};

    fn random(n: usize, stream: u32) -> Vec<f64> {
        (0..n).flat_map(|i| Noise::new(3).normals(i as u32, stream, 0, Purpose::Displacement)).collect()
    }

    #[test]
    fn dihedral_has_the_iupac_sign() {
        for degrees in [-179.0, -90.0, -1e-6, 0.0, 1e-6, 60.0, 179.999_999_9f64] {
            let t = degrees.to_radians();
            // The middle bond points along +z; looking that way, a turn from +x towards +y is clockwise.
            let x = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, t.cos(), t.sin(), 1.0];
            assert!((dihedral(&x, [0, 1, 2, 3]) - t).abs() < 1e-14, "{degrees}");
            assert!((dihedral(&x, [3, 2, 1, 0]) - t).abs() < 1e-14, "{degrees} backwards");
        }
        assert_eq!(dihedral(&[0.0; 12], [0, 1, 2, 3]), 0.0);
    }

    #[test]
    fn rmsd_ignores_motion_but_not_mirrors() {
        let a = random(12, 0);
        let r = nalgebra::Rotation3::from_euler_angles(0.3, -1.2, 2.5);
        let moved = |x: &[f64]| -> Vec<f64> {
            (0..x.len() / 3)
                .flat_map(|i| {
                    let p = r * point(x, i) + Vector3::new(5.0, -3.0, 100.0);
                    [p.x, p.y, p.z]
                })
                .collect()
        };
        assert!(kabsch_rmsd(&a, &moved(&a)) < 1e-13);
        let mirror: Vec<f64> = a.chunks(3).flat_map(|p| [-p[0], p[1], p[2]]).collect();
        assert!(kabsch_rmsd(&a, &mirror) > 0.3);
        // A small displacement of one atom: RMSD ≤ d/√N, and nearly that.
        let mut b = a.clone();
        b[0] += 1e-6;
        let got = kabsch_rmsd(&moved(&a), &b);
        assert!(got < 1e-6 / 12f64.sqrt() && got > 0.7e-6 / 12f64.sqrt(), "{got}");
        // Planar and linear molecules and single atoms are no special cases.
        let flat: Vec<f64> = a.chunks(3).flat_map(|p| [p[0], p[1], 0.0]).collect();
        assert!(kabsch_rmsd(&flat, &moved(&flat)) < 1e-13);
        let line = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 3.0, 0.0, 0.0];
        assert!(kabsch_rmsd(&line, &moved(&line)) < 1e-13);
        assert_eq!(kabsch_rmsd(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 0.0);
        // Superposed, the copy lies on the centred original, and the rotation is the inverse of the one that turned it.
        let mut copy = moved(&a);
        let back = superpose(&mut copy, &a);
        let c = centre(&a);
        assert!((0..12).all(|i| (point(&copy, i) - (point(&a, i) - c)).norm() < 1e-12));
        assert!((back * r.matrix() - Matrix3::identity()).norm() < 1e-12);
    }

    #[test]
    fn gyration_of_a_dumbbell() {
        // Masses 1 and 3 at distance d: Rg² = (1·3/4²) d².
        let got = radius_of_gyration(&[0.0, 0.0, 0.0, 0.0, 2.0, 0.0], &[1.0, 3.0]);
        assert!((got - (3.0f64 / 16.0).sqrt() * 2.0).abs() < 1e-15);
    }

    fn peptide(residues: &[(&str, &[(&str, u32)])], bonds: &[(u32, u32)]) -> System {
        let mut s = System::particles("peptide", 0, 1.0);
        for (id, (residue, atoms)) in residues.iter().enumerate() {
            for (atom, element) in *atoms {
                let (atom, residue) = (atom.to_string(), residue.to_string());
                s.names.push(AtomName { atom, residue, residue_id: id as i64 + 1, chain: String::new() });
                s.types.push(*element);
                s.masses.push(1.0);
            }
        }
        s.bonds = bonds.to_vec();
        s
    }

    #[test]
    fn finds_the_torsions_of_a_capped_alanine() {
        let atoms: &[(&str, &[(&str, u32)])] = &[
            ("ACE", &[("CH3", 6), ("C", 6), ("O", 8)]),
            ("ALA", &[("N", 7), ("H", 1), ("CA", 6), ("HA", 1), ("CB", 6), ("C", 6), ("O", 8)]),
            ("NME", &[("N", 7), ("H", 1), ("CH3", 6)]),
        ];
        let bonds = [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5), (5, 6), (5, 7), (5, 8), (8, 9), (8, 10), (10, 11), (10, 12)];
        let want = |label: &str| vec![BackboneTorsions { label: label.into(), phi: [1, 3, 5, 8], psi: [3, 5, 8, 10] }];
        assert_eq!(backbone_torsions(&peptide(atoms, &bonds)), want("ALA 2"));
        // Without bonds the names decide; without names the bonds do.
        assert_eq!(backbone_torsions(&peptide(atoms, &[])), want("ALA 2"));
        let mut nameless = peptide(atoms, &bonds);
        nameless.names = vec![AtomName::default(); nameless.len()];
        assert_eq!(backbone_torsions(&nameless), want("residue 1"));
        // A broken chain has none.
        let broken: Vec<_> = bonds.iter().copied().filter(|&b| b != (1, 3)).chain([(1, 11)]).collect();
        let mut s = peptide(atoms, &broken);
        s.bonds.push((3, 12));
        s.bonds.sort();
        assert!(backbone_torsions(&s).is_empty());
        assert!(backbone_torsions(&System::particles("argon", 5, 40.0)).is_empty());
    }

    #[test]
    fn finds_every_inner_residue() {
        let a: &[(&str, u32)] = &[("N", 7), ("CA", 6), ("C", 6), ("O", 8)];
        let found = backbone_torsions(&peptide(&[("GLY", a), ("ALA", a), ("PRO", a), ("SER", a)], &[]));
        assert_eq!(found.iter().map(|t| t.label.as_str()).collect::<Vec<_>>(), ["ALA 2", "PRO 3"]);
        assert_eq!(found[1].psi, [8, 9, 10, 12]);
    }
}
