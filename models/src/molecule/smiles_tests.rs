//! SMILES and features against RDKit, from `data/scripts/make_smiles_fixture.py`.
//!
//! `SCOREFIELD_SMILES` names a larger file of the same kind, which is then checked as well.

use super::*;
use std::collections::HashMap;
use std::path::Path;

fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    format!("{:08x}", bytes.into_iter().fold(0x811C_9DC5u32, |h, v| (h ^ u32::from(v)).wrapping_mul(0x0100_0193)))
}

const COLUMNS: [&str; 7] = ["elements", "charge, radicals, degree", "aromaticity", "hybridisation", "rings", "handedness", "bonds"];

/// Hashes of the columns of features, as the script makes them.
fn columns(graph: &Graph) -> [String; 7] {
    let mut graph = graph.with_hydrogens();
    let rings = graph.find_aromaticity();
    let atoms = graph.atoms();
    let n = 0..graph.len();
    let hybridisation = |h: &Hybridisation| match h {
        Hybridisation::Sp => 0,
        Hybridisation::Sp2 => 1,
        Hybridisation::Sp3 => 2,
        Hybridisation::Sp3d => 3,
        Hybridisation::Sp3d2 => 4,
        Hybridisation::Other => 5,
    };
    let mut bonds: Vec<[u8; 3]> = graph
        .bonds()
        .iter()
        .map(|b| ((b.atoms.0.min(b.atoms.1), b.atoms.0.max(b.atoms.1)), if b.aromatic { 3 } else { b.order - 1 }))
        .map(|((i, j), o)| ([i, j], o))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .map(|([i, j], o)| [i as u8, j as u8, o])
        .collect();
    bonds.dedup();
    [
        fnv(atoms.iter().map(|a| a.element)),
        fnv(n.clone().flat_map(|i| [atoms[i].charge as u8, atoms[i].radicals, graph.total_degree(i) as u8])),
        fnv(atoms.iter().map(|a| u8::from(a.aromatic))),
        fnv(graph.hybridisations().iter().map(hybridisation)),
        fnv(n.flat_map(|i| [(3..=8).map(|s| u8::from(rings.in_ring_of(i, s)) << (s - 3)).sum(), rings.of_atom[i] as u8])),
        fnv(atoms.iter().map(|a| match a.chirality {
            Chirality::Clockwise => 0,
            Chirality::CounterClockwise => 1,
            Chirality::None => 2,
        })),
        fnv(bonds.into_iter().flatten()),
    ]
}

/// Disagreements by column; then refused or accepted otherwise, classes with and without stereo, and round trips.
#[derive(Debug, Default, PartialEq)]
struct Disagreements {
    columns: [usize; 7],
    accepted: usize,
    stereo_classes: usize,
    classes: usize,
    random_order: usize,
    round_trip: usize,
}

fn check(path: &Path) -> (Disagreements, usize) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut wrong = Disagreements::default();
    let mut total = 0;
    let mut classes: [HashMap<Identity, String>; 2] = Default::default();
    let mut texts: [HashMap<String, Identity>; 2] = Default::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        total += 1;
        let graph = Graph::from_smiles(fields[0]);
        if graph.is_ok() != (fields.len() > 1) {
            wrong.accepted += 1;
            println!("accepted otherwise: {} {:?}", fields[0], graph.err());
            continue;
        }
        let Ok(graph) = graph else { continue };
        for (k, (got, want)) in columns(&graph).iter().zip(&fields[4..]).enumerate() {
            if got != want {
                wrong.columns[k] += 1;
                println!("{}: {}", COLUMNS[k], fields[0]);
            }
        }
        for (k, compare) in [Compare::Stereo, Compare::Constitution].into_iter().enumerate() {
            let identity = graph.identity(compare);
            let want = fields[2 + k].to_owned();
            let one = *classes[k].entry(identity.clone()).or_insert_with(|| want.clone()) != want;
            let other = *texts[k].entry(want).or_insert_with(|| identity.clone()) != identity;
            if one || other {
                *[&mut wrong.stereo_classes, &mut wrong.classes][k] += 1;
                println!("class {k}: {}", fields[0]);
            }
        }
        let identity = graph.identity(Compare::Stereo);
        match Graph::from_smiles(fields[1]) {
            Ok(g) if g.identity(Compare::Stereo) == identity => {}
            g => {
                wrong.random_order += 1;
                println!("random order: {} {} {:?}", fields[0], fields[1], g.map(|g| g.to_smiles(Compare::Stereo)));
            }
        }
        let written = graph.to_smiles(Compare::Stereo);
        match Graph::from_smiles(&written) {
            Ok(g) if g.identity(Compare::Stereo) == identity && g.to_smiles(Compare::Stereo) == written => {}
            g => {
                wrong.round_trip += 1;
                println!("round trip: {} {written} {:?}", fields[0], g.map(|g| g.to_smiles(Compare::Stereo)));
            }
        }
    }
    (wrong, total)
}

#[test]
fn smiles_and_features_are_those_of_rdkit() {
    let (wrong, total) = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/molecule/smiles.txt"));
    assert!(total >= 990);
    assert_eq!(wrong, Disagreements::default(), "among {total} molecules");
}

#[test]
fn larger_sets_of_smiles() {
    let Some(path) = std::env::var_os("SCOREFIELD_SMILES") else {
        println!("skipped: SCOREFIELD_SMILES names no file");
        return;
    };
    let (wrong, total) = check(Path::new(&path));
    println!("{total} molecules: {wrong:?}");
}

#[test]
fn features_are_those_that_ditmc_was_trained_with() {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), std::path::PathBuf::from);
    let path = root.join("golden/ditmc/features.json");
    if !path.exists() {
        println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", path.display());
        return;
    }
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let numbers = |v: &serde_json::Value| -> Vec<usize> { v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect() };
    let symbols =
        |key: &str| -> Vec<u8> { golden[key].as_array().unwrap().iter().map(|s| Element::number(s.as_str().unwrap()).unwrap()).collect() };
    assert_eq!(symbols("elements"), Vocabulary::Drugs.elements());
    assert_eq!(symbols("elements_qm9"), Vocabulary::Qm9.elements());
    assert_eq!(Vocabulary::Drugs.width() as u64, golden["width"].as_u64().unwrap());
    assert_eq!(Vocabulary::Qm9.width(), 64);
    let molecules = golden["molecules"].as_array().unwrap();
    assert!(molecules.len() >= 14);
    for molecule in molecules {
        let name = molecule["name"].as_str().unwrap();
        let mut graph = Graph::from_smiles(molecule["smiles"].as_str().unwrap()).unwrap().with_hydrogens();
        let rings = graph.find_aromaticity();
        let features = graph.features(&rings, Vocabulary::Drugs).unwrap();
        for (row, want) in features.nodes.chunks_exact(features.width).zip(molecule["hot_columns"].as_array().unwrap()) {
            let hot: Vec<usize> = (0..features.width).filter(|&k| row[k] == 1).collect();
            assert_eq!(hot, numbers(want), "{name}");
        }
        let hops: Vec<usize> = molecule["hops"].as_array().unwrap().iter().flat_map(numbers).collect();
        assert_eq!(features.hops.iter().map(|&h| usize::from(h)).collect::<Vec<_>>(), hops, "{name}");
        let names = ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"];
        let bonds = molecule["bonds"].as_array().unwrap();
        assert_eq!(features.pairs.len(), 2 * bonds.len());
        for (k, bond) in bonds.iter().enumerate() {
            let (i, j) = (bond[0].as_u64().unwrap() as u32, bond[1].as_u64().unwrap() as u32);
            let at = features.pairs.iter().position(|p| *p == (i, j)).unwrap();
            assert!(features.pairs.contains(&(j, i)));
            let kind = names.iter().position(|n| bond[2] == *n).unwrap();
            assert_eq!(features.bonds[at].iter().position(|b| *b == 1), Some(kind), "{name}, bond {k}");
        }
    }
    // Iron has no column, two salts no path.
    let iron = Graph::from_smiles("[Fe+2]").unwrap();
    assert_eq!(iron.features(&Rings::of(&iron), Vocabulary::Drugs), Err(0));
    assert_eq!(Graph::from_smiles("[Na+].[Cl-]").unwrap().hops(), [0, UNREACHABLE, UNREACHABLE, 0]);
}

#[test]
fn mistakes_in_smiles_have_a_position() {
    let cases = [
        ("", 1, "no atom"),
        ("CC(C", 3, "not closed"),
        ("CC)C", 3, "no branch"),
        ("C1CC", 2, "ring bond 1 is not closed"),
        ("C11", 3, "with itself"),
        ("C12CC12", 7, "bonded already"),
        ("C=1CCCCC#1", 10, "different bonds"),
        ("CC=", 3, "leads to nothing"),
        ("C(=)C", 4, "leads to nothing"),
        ("=C", 1, "one atom before"),
        ("C==C", 3, "one atom before"),
        ("(C)C", 1, "needs an atom"),
        ("C()C", 2, "empty"),
        ("CxC", 2, "`x`"),
        ("C C", 2, "white space"),
        ("C[Xx]", 3, "no element"),
        ("C[NH4+", 7, "`]`"),
        ("C[C@TH9H]C", 5, "tetrahedral"),
        ("[C+99]", 3, "charge"),
        ("[1234C]", 1, "mass number"),
        ("C*", 2, "`*`"),
        ("C%1C", 2, "two digits"),
        ("C.", 2, "after `.`"),
        (".C", 1, "before `.`"),
        ("C(C)(C)(C)(C)C", 1, "valence 5"),
        ("CO(C)C", 2, "valence 3"),
        ("c1cccc1", 0, "double bond"),
        ("[HH1]", 1, "[H][H]"),
        ("F/C(\\Cl)=C/F", 5, "same side"),
        ("CÄ", 2, "`Ä`"),
        ("C[U]", 3, "no element"),
    ];
    for (text, at, part) in cases {
        match Graph::from_smiles(text) {
            Err(Error::Smiles { position, what, .. }) => {
                assert!(what.contains(part), "{text}: {what}");
                assert!(at == 0 || position == at, "{text}: {what} at {position}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    // No text whatever ends the process.
    let alphabet: Vec<char> = "CNOcn1()[]=#/\\@H+-.%2sS:Bré".chars().collect();
    let mut state = 5u64;
    for _ in 0..20_000 {
        let text: String = (0..12)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                alphabet[(state >> 33) as usize % alphabet.len()]
            })
            .collect();
        if let Ok(graph) = Graph::from_smiles(&text) {
            assert_eq!(
                Graph::from_smiles(&graph.to_smiles(Compare::Stereo)).unwrap().identity(Compare::Stereo),
                graph.identity(Compare::Stereo),
                "{text}"
            );
        }
    }
}

#[test]
fn handedness_that_is_none_is_taken_away() {
    let written = |text: &str| Graph::from_smiles(text).unwrap().to_smiles(Compare::Stereo);
    for (text, stereo) in [
        ("C[C@H](F)Cl", 1),
        ("C[C@H](C)Cl", 0),
        ("C[C@@H]1CC[C@H](C)CC1", 2),
        ("O[C@H]1CCCCC1", 0),
        ("C[S@](=O)CC", 1),
        ("F/C=C/F", 2),
        ("F/C=C(F)/F", 0),
        ("C1CCC/C=C\\CC1", 2),
        ("C1CC/C=C\\C1", 0),
        ("C[N@](F)Cl", 0),
        ("O[C@H](C(=O)O)[C@H](O)C(=O)O", 2),
    ] {
        let marks = written(text).replace("@@", "@").chars().filter(|c| matches!(c, '@' | '/' | '\\')).count();
        assert_eq!(marks, stereo, "{text} is {}", written(text));
    }
    // Meso tartaric acid is its own mirror image; the other two are not each other.
    let [meso, one, two] = ["O[C@H](C(=O)O)[C@@H](O)C(=O)O", "O[C@H](C(=O)O)[C@H](O)C(=O)O", "O[C@@H](C(=O)O)[C@@H](O)C(=O)O"].map(written);
    assert_eq!(meso, written("O[C@@H](C(=O)O)[C@H](O)C(=O)O"));
    assert!(meso != one && one != two && two != meso);
}

#[test]
fn coordinates_say_handedness() {
    // Bromochlorofluoromethane: seen from H (above), Br, Cl, F turn to the left.
    let angle = |k: f64| [(std::f64::consts::TAU * k / 3.0).cos(), (std::f64::consts::TAU * k / 3.0).sin(), -0.33];
    let x: Vec<f64> = [[0.0; 3], [0.0, 0.0, 1.0], angle(0.0), angle(1.0), angle(2.0)].concat();
    let graph = |x: &[f64]| {
        let mut g = Graph::new([6, 1, 35, 17, 9].map(Atom::new).to_vec(), (1..5).map(|j| Bond::new(0, j, 1)).collect());
        let rings = g.find_aromaticity();
        g.set_stereo_from(x, &rings);
        g.identity(Compare::Stereo)
    };
    let smiles = |text: &str| Graph::from_smiles(text).unwrap().identity(Compare::Stereo);
    assert_eq!(graph(&x), smiles("[H][C@](Br)(Cl)F"));
    let mirrored: Vec<f64> = x.chunks_exact(3).flat_map(|p| [p[0], -p[1], p[2]]).collect();
    assert_eq!(graph(&mirrored), smiles("[H][C@@](Br)(Cl)F"));
    let flat = [[0.0; 3], [-0.5, 0.9, 0.02], [1.0, 0.1, 0.0], [-0.9, -0.3, -0.02], [0.3, -1.0, 0.01]].concat();
    assert_eq!(graph(&flat), smiles("[H]C(Br)(Cl)F"));
    // Difluoroethene, both ways.
    let ethene = |y: f64| {
        let mut g = Graph::new(
            [6, 6, 9, 9, 1, 1].map(Atom::new).to_vec(),
            vec![Bond::new(0, 1, 2), Bond::new(0, 2, 1), Bond::new(1, 3, 1), Bond::new(0, 4, 1), Bond::new(1, 5, 1)],
        );
        let rings = g.find_aromaticity();
        let x = [[0.0, 0.0], [1.3, 0.0], [-0.7, 1.1], [2.0, y], [-0.6, -0.9], [1.9, -y]].into_iter().flat_map(|p| [p[0], p[1], 0.0]);
        g.set_stereo_from(&x.collect::<Vec<f64>>(), &rings);
        g.to_smiles(Compare::Stereo)
    };
    assert_eq!(ethene(1.1), Graph::from_smiles("F/C=C\\F").unwrap().to_smiles(Compare::Stereo));
    assert_eq!(ethene(-1.1), Graph::from_smiles("F/C=C/F").unwrap().to_smiles(Compare::Stereo));
}
