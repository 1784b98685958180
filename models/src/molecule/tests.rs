//! Perception against RDKit: graphs of noisy QM9 molecules, made by `data/scripts/make_molecule_fixture.py`.
//!
//! `SCOREFIELD_MOLECULES` names a larger file of the same kind, which is then checked as well.

use super::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Reads little-endian numbers off a slice.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
}

/// One molecule of the fixture.
pub(super) struct Entry {
    pub(super) elements: Vec<u32>,
    /// Positions in units of 1/3000 Å.
    units: Vec<i64>,
    /// Hashes per noise level: graph with charges, graph without, SMILES with charges.
    charged: Vec<u32>,
    neutral: Vec<u32>,
    smiles: Vec<u32>,
}

pub(super) struct Fixture {
    pub(super) sigmas: Vec<u32>,
    pub(super) entries: Vec<Entry>,
}

pub(super) fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/molecule/qm9.bin")
}

impl Fixture {
    pub(super) fn read(path: &Path) -> Fixture {
        let data = std::fs::read(path).unwrap();
        let mut b = Bytes(&data);
        assert_eq!(b.take(8), b"MOLFIX1\0");
        let (count, levels) = (b.u32(), b.u32() as usize);
        let sigmas: Vec<u32> = (0..levels).map(|_| b.u32()).collect();
        let mut entries = Vec::new();
        for _ in 0..count {
            let n = usize::from(b.take(1)[0]);
            let elements = b.take(n).iter().map(|&z| u32::from(z)).collect();
            let units = b.take(6 * n).chunks_exact(2).map(|x| i64::from(i16::from_le_bytes([x[0], x[1]]))).collect();
            let mut row = || (0..levels).map(|_| b.u32()).collect();
            entries.push(Entry { elements, units, charged: row(), neutral: row(), smiles: row() });
        }
        assert!(b.0.is_empty());
        Fixture { sigmas, entries }
    }

    /// Positions in nm of molecule `m` at noise level `level`.
    pub(super) fn positions(&self, m: usize, level: usize) -> Vec<f64> {
        let sigma = i64::from(self.sigmas[level]);
        let noisy = |(k, x): (usize, &i64)| (x + ((sigma * noise(m as u64, level as u64, k as u64)) >> 16)) as f64 / 30_000.0;
        self.entries[m].units.iter().enumerate().map(noisy).collect()
    }
}

fn split_mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A nearly normal integer of standard deviation 65536.
fn noise(molecule: u64, level: u64, component: u64) -> i64 {
    let words = (0..3).map(|k| split_mix(1 + k + 3 * (component + 128 * (level + 16 * molecule))));
    words.flat_map(|w| (0..4).map(move |j| (w >> (16 * j) & 0xFFFF) as i64)).sum::<i64>() - 6 * 65536
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811C_9DC5u32, |h, v| (h ^ u32::from(v)).wrapping_mul(0x0100_0193)).max(1)
}

/// The graph as the script hashes it.
fn describe(graph: &Graph) -> u32 {
    let mut out = vec![graph.fragments() as u8];
    for a in graph.atoms() {
        out.extend([a.charge as u8, a.radicals, u8::from(a.aromatic)]);
    }
    let mut bonds: Vec<[u8; 3]> = graph
        .bonds()
        .iter()
        .map(|b| [b.atoms.0.min(b.atoms.1) as u8, b.atoms.0.max(b.atoms.1) as u8, if b.aromatic { 4 } else { b.order }])
        .collect();
    bonds.sort_unstable();
    out.extend(bonds.iter().flatten());
    fnv(out.into_iter())
}

/// Disagreements with and without charged fragments, and structures looked at.
fn disagreements(fixture: &Fixture) -> ([usize; 2], usize) {
    let mut perceiver = Perceiver::new();
    let mut wrong = [0; 2];
    let mut total = 0;
    for (m, entry) in fixture.entries.iter().enumerate() {
        for level in 0..fixture.sigmas.len() {
            let x = fixture.positions(m, level);
            for (k, convention) in [Convention::default(), Convention::without_charges()].into_iter().enumerate() {
                let want = [&entry.charged, &entry.neutral][k][level];
                let got = perceiver.perceive(&entry.elements, &x, convention).map_or(0, |mut g| {
                    g.find_aromaticity();
                    describe(&g)
                });
                if got != want {
                    wrong[k] += 1;
                    println!("molecule {m}, level {level}, convention {k}: {got:08x} for {want:08x}");
                }
            }
            total += 1;
        }
    }
    (wrong, total)
}

#[test]
fn graphs_are_those_of_rdkit() {
    let fixture = Fixture::read(&committed());
    assert!(fixture.entries.len() >= 3000);
    let (wrong, total) = disagreements(&fixture);
    assert_eq!(total, 5 * fixture.entries.len());
    assert_eq!(wrong, [0, 0], "disagreements among {total} structures");
    if let Some(path) = std::env::var_os("SCOREFIELD_MOLECULES") {
        let larger = Fixture::read(Path::new(&path));
        let (wrong, total) = disagreements(&larger);
        println!("{} molecules, {total} structures: {wrong:?} disagreements with and without charged fragments", larger.entries.len());
        assert_eq!(wrong[1], 0);
    }
}

#[test]
fn identities_are_the_classes_of_canonical_smiles() {
    let fixture = Fixture::read(&committed());
    let mut perceiver = Perceiver::new();
    let (mut by_identity, mut by_smiles) = (HashMap::new(), HashMap::new());
    let mut repeated = 0;
    for (m, entry) in fixture.entries.iter().enumerate() {
        for level in 0..fixture.sigmas.len() {
            let x = fixture.positions(m, level);
            let Ok(mut graph) = perceiver.perceive(&entry.elements, &x, Convention::default()) else { continue };
            graph.find_aromaticity();
            let identity = graph.identity(Compare::Constitution);
            let smiles = entry.smiles[level];
            repeated += usize::from(by_identity.contains_key(&identity));
            assert_eq!(*by_identity.entry(identity.clone()).or_insert(smiles), smiles, "molecule {m}, level {level}");
            assert_eq!(*by_smiles.entry(smiles).or_insert(identity.clone()), identity, "molecule {m}, level {level}");
        }
    }
    assert!(repeated > 3000, "{repeated}");
}

#[test]
fn identity_does_not_depend_on_the_numbering() {
    let fixture = Fixture::read(&committed());
    let mut perceiver = Perceiver::new();
    let mut counter = 0;
    for m in (0..fixture.entries.len()).step_by(5) {
        let entry = &fixture.entries[m];
        let Ok(mut graph) = perceiver.perceive(&entry.elements, &fixture.positions(m, 0), Convention::default()) else { continue };
        graph.find_aromaticity();
        let identity = graph.identity(Compare::Constitution);
        for _ in 0..3 {
            let mut order: Vec<usize> = (0..graph.len()).collect();
            for i in (1..order.len()).rev() {
                counter += 1;
                order.swap(i, (split_mix(counter) % (i as u64 + 1)) as usize);
            }
            assert_eq!(graph.permuted(&order).identity(Compare::Constitution), identity, "molecule {m}");
        }
    }
}

#[test]
fn stability_of_the_data_is_as_published() {
    // With these tables 99.4 % of the atoms and 95.5 % of the molecules of QM9 without fluorine are stable.
    let fixture = Fixture::read(&committed());
    let (mut atoms, mut stable_atoms, mut stable) = (0, 0, 0);
    for (m, entry) in fixture.entries.iter().enumerate() {
        let s = Stability::of(&entry.elements, &fixture.positions(m, 0));
        atoms += s.atoms;
        stable_atoms += s.stable_atoms;
        stable += usize::from(s.is_stable());
    }
    let (of_atoms, of_molecules) = (stable_atoms as f64 / atoms as f64, stable as f64 / fixture.entries.len() as f64);
    assert!((of_atoms - 0.994).abs() < 0.002, "{of_atoms}");
    assert!((of_molecules - 0.955).abs() < 0.012, "{of_molecules}");
}

#[test]
fn verdicts_and_their_shares() {
    // The shares of valid molecules that the script printed, with and without charged fragments.
    let fixture = Fixture::read(&committed());
    let want = [[0.9503, 0.9483], [0.8533, 0.8390], [0.5480, 0.4823], [0.1933, 0.1317], [0.0140, 0.0047]];
    let mut perceiver = Perceiver::new();
    for (level, want) in want.into_iter().enumerate() {
        for (convention, want) in [Convention::default(), Convention::without_charges()].into_iter().zip(want) {
            let valid = (0..fixture.entries.len())
                .filter(|&m| Verdict::of(&mut perceiver, &fixture.entries[m].elements, &fixture.positions(m, level), convention).is_valid())
                .count();
            let share = valid as f64 / fixture.entries.len() as f64;
            assert!((share - want).abs() < 6e-5, "level {level}: {share} for {want}");
        }
    }
    // Two waters far apart; a methyl radical; five hydrogens around a carbon; and what is no structure at all.
    let mut judge = |z: &[u32], x: &[f64]| Verdict::of(&mut perceiver, z, x, Convention::without_charges());
    let water = [0.0, 0.0, 0.0, 0.096, 0.0, 0.0, -0.024, 0.093, 0.0];
    let two: Vec<f64> = water.iter().copied().chain(water.iter().map(|x| x + 1.0)).collect();
    assert!(judge(&[8, 1, 1], &water).is_valid());
    assert!(matches!(judge(&[8, 1, 1, 8, 1, 1], &two), Verdict::Disconnected(_)));
    let methyl = [0.0, 0.0, 0.0, 0.109, 0.0, 0.0, -0.054, 0.094, 0.0, -0.054, -0.094, 0.0];
    assert!(matches!(judge(&[6, 1, 1, 1], &methyl), Verdict::Radical(_)));
    let five: Vec<f64> = methyl.iter().copied().chain([0.0, 0.0, 0.109, 0.0, 0.0, -0.109]).collect();
    assert!(matches!(judge(&[6, 1, 1, 1, 1, 1], &five), Verdict::NotPerceived(Error::Valence { atom: 0, .. })));
    assert!(matches!(judge(&[6, 1], &[0.0; 3]), Verdict::NotPerceived(Error::Shape { .. })));
    assert!(matches!(judge(&[120], &[0.0; 3]), Verdict::NotPerceived(Error::Element { number: 120, .. })));
}

#[test]
fn symmetric_cages_have_all_their_rings_and_one_identity() {
    // Carbon skeletons only: cubane, adamantane, dodecahedrane's graph, and a spiro compound.
    let build = |n: u32, bonds: &[(u32, u32)]| {
        let mut atoms = vec![Atom::new(6); n as usize];
        for &(i, j) in bonds {
            atoms[i as usize].hydrogens += 1;
            atoms[j as usize].hydrogens += 1;
        }
        atoms.iter_mut().for_each(|a| a.hydrogens = 4 - a.hydrogens);
        Graph::new(atoms, bonds.iter().map(|&(i, j)| Bond::new(i, j, 1)).collect())
    };
    let cubane: Vec<(u32, u32)> = (0..8u32).flat_map(|i| [1, 2, 4].map(|b| (i, i ^ b))).filter(|(i, j)| i < j).collect();
    let adamantane = [(0, 4), (0, 5), (0, 6), (1, 4), (1, 7), (1, 8), (2, 5), (2, 7), (2, 9), (3, 6), (3, 8), (3, 9)];
    // A generalised Petersen graph (10, 2).
    let dodecahedron: Vec<(u32, u32)> = (0..10u32).flat_map(|i| [(i, (i + 1) % 10), (i, i + 10), (10 + i, 10 + (i + 2) % 10)]).collect();
    let spiro = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (4, 5), (5, 6), (6, 0)];
    for (n, bonds, rings, size) in
        [(8, &cubane[..], 6, 4), (10, &adamantane[..], 4, 6), (20, &dodecahedron[..], 12, 5), (7, &spiro[..], 2, 4)]
    {
        let graph = build(n, bonds);
        let found = Rings::of(&graph);
        assert_eq!(found.atoms.len(), rings, "{n} atoms");
        assert!(found.atoms.iter().all(|r| r.len() == size));
        let identity = graph.identity(Compare::Constitution);
        let mut order: Vec<usize> = (0..n as usize).collect();
        for k in 0..20 {
            order.rotate_left(3);
            order.swap(k % n as usize, (7 * k + 1) % n as usize);
            assert_eq!(graph.permuted(&order).identity(Compare::Constitution), identity);
        }
    }
    // Neopentane with fluorine: 24 · 6⁴ equal numberings, which symmetry must prune.
    let mut bonds: Vec<(u32, u32)> = (1..5).map(|i| (0, i)).collect();
    bonds.extend((0..12).map(|k| (1 + k / 3, 5 + k)));
    let mut graph = build(17, &bonds);
    for i in 5..17 {
        *graph.atom_mut(i) = Atom::new(9);
    }
    let start = std::time::Instant::now();
    let identity = graph.identity(Compare::Constitution);
    assert!(start.elapsed().as_millis() < 500);
    let order: Vec<usize> = (0..17).rev().collect();
    assert_eq!(graph.permuted(&order).identity(Compare::Constitution), identity);
}
