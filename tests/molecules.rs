//! Molecules from outside: perceived bonds in SDF files, and the measures of generated molecules.

use crate::support::{fail, succeed};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Ethanol, water far from methane, a methyl radical, and a carbon with five hydrogens; Å.
const STRUCTURES: &str = "\
9
ethanol
C 0.0072 -0.5687 0.0000
C -1.2854 0.2499 0.0000
O 1.1304 0.3147 0.0000
H 0.0392 -1.1972 0.8900
H 0.0392 -1.1972 -0.8900
H -1.3175 0.8784 0.8900
H -1.3175 0.8784 -0.8900
H -2.1422 -0.4239 0.0000
H 1.9857 -0.1365 0.0000
8
two molecules
O 0.000 0.000 0.000
H 0.960 0.000 0.000
H -0.240 0.930 0.000
C 9.000 0.000 0.000
H 9.630 0.630 0.630
H 8.370 -0.630 0.630
H 8.370 0.630 -0.630
H 9.630 -0.630 -0.630
4
methyl
C 0.000 0.000 0.000
H 1.090 0.000 0.000
H -0.540 0.940 0.000
H -0.540 -0.940 0.000
6
too many hydrogens
C 0.000 0.000 0.000
H 1.090 0.000 0.000
H -0.540 0.940 0.000
H -0.540 -0.940 0.000
H 0.000 0.000 1.090
H 0.000 0.000 -1.090
";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn generated_molecules_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (input, reference) = (file("generated.xyz"), file("reference.xyz"));
    fs::write(&input, STRUCTURES).unwrap();
    // Ethanol again, turned around, and a water.
    let turned: String = STRUCTURES
        .lines()
        .take(11)
        .map(|l| match l.split(' ').collect::<Vec<_>>()[..] {
            [s, x, y, z] => format!("{s} {y} {z} {x}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    fs::write(&reference, format!("{turned}3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")).unwrap();
    let (json, table, plot, out) = (file("m.json"), file("m.csv"), file("m.svg"), file("valid.sdf"));
    let printed = succeed(&[
        "evaluate-molecules",
        text(&input),
        "--reference",
        text(&reference),
        "--neutral-atoms",
        "--json",
        text(&json),
        "--table",
        text(&table),
        "--plot",
        text(&plot),
        "--out",
        text(&out),
    ]);
    assert!(printed.contains("25.00 ±") && printed.contains("neutral atoms only"), "{printed}");
    let numbers: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(numbers["structures"], 4);
    assert_eq!(numbers["valid"]["value"], 0.25);
    assert_eq!(numbers["verdicts"], serde_json::json!({"valid": 1, "disconnected": 1, "radical": 1, "no-molecule": 1}));
    assert_eq!(numbers["novel_of_unique"]["value"], 0.0);
    assert!(numbers["largest_distance_divergence"]["value"].as_f64().unwrap() > 0.1);
    let rows = fs::read_to_string(&table).unwrap();
    assert!(rows.lines().nth(1).unwrap().ends_with(",CCO") || rows.lines().nth(1).unwrap().ends_with(",C(C)O"), "{rows}");
    assert!(rows.contains("\"methyl\",4,radical,3,"), "{rows}");
    assert!(fs::read_to_string(&plot).unwrap().contains("largest distance"));
    assert_eq!(fs::read_to_string(&out).unwrap().matches("$$$$").count(), 1);
    fail(&["evaluate-molecules"], 2, &["a file is needed"]);
    fail(&["evaluate-molecules", text(&input), "--model", "muller-brown"], 2, &["--model", "no energies of molecules"]);
    let radical = file("radical.xyz");
    fs::write(&radical, STRUCTURES.split("4\nmethyl").nth(1).map(|m| format!("4\nmethyl{}", m.split("6\n").next().unwrap())).unwrap())
        .unwrap();
    let neutral = ["evaluate-molecules", text(&input), "--neutral-atoms", "--reference", text(&radical)];
    fail(&neutral, 2, &["--reference", "no structure in it is a valid molecule"]);
}

#[test]
fn bonds_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.xyz"), dir.path().join("out.sdf"));
    fs::write(&input, STRUCTURES).unwrap();
    let (input, output) = (text(&input), text(&output));
    succeed(&["convert", input, output, "--bonds", "--frames", ":2"]);
    let sdf = fs::read_to_string(output).unwrap();
    assert!(sdf.contains("  9  8  0") && sdf.contains("  8  6  0"), "{sdf}");
    fail(&["convert", input, output, "--bonds"], 1, &["--bonds: frame 2 (methyl) is no molecule", "charges add up to -1"]);
}

#[test]
fn rdkit_reads_the_same_molecules() {
    let python = std::env::var_os("SCOREFIELD_RDKIT").map(|p| Path::new(&p).join("bin/python"));
    let Some(python) = python.filter(|p| p.exists()) else {
        println!("skipped: SCOREFIELD_RDKIT names no Python environment with RDKit");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (input, sdf, table) = (dir.path().join("in.extxyz"), dir.path().join("out.sdf"), dir.path().join("out.csv"));
    fs::write(&input, fixture_frames(200)).unwrap();
    succeed(&["evaluate-molecules", text(&input), "--out", text(&sdf), "--table", text(&table)]);
    let script = "
import csv, sys
from rdkit import Chem
mols = list(Chem.SDMolSupplier(sys.argv[1], removeHs=False))
smiles = [row['smiles'] for row in csv.DictReader(open(sys.argv[2])) if row['verdict'] == 'valid']
assert len(mols) == len(smiles) > 150, (len(mols), len(smiles))
for mol, text in zip(mols, smiles):
    assert mol is not None and not any(a.GetNumImplicitHs() or a.GetNumRadicalElectrons() for a in mol.GetAtoms()), text
    Chem.AssignStereochemistryFrom3D(mol)
    a, b = Chem.MolToSmiles(Chem.RemoveHs(mol)), Chem.MolToSmiles(Chem.MolFromSmiles(text))
    assert a == b, (a, b, text)
";
    let output = Command::new(python).args(["-c", script, text(&sdf), text(&table)]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The first molecules of the perception fixture as XYZ.
fn fixture_frames(count: usize) -> String {
    let data = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/molecule/qm9.bin")).unwrap();
    let levels = usize::from(data[12]);
    let mut at = 16 + 4 * levels;
    let mut out = String::new();
    for _ in 0..count {
        let n = usize::from(data[at]);
        let xyz = &data[at + 1 + n..at + 1 + 7 * n];
        out += &format!("{n}\n\n");
        for i in 0..n {
            let x: Vec<f64> =
                (0..3).map(|a| f64::from(i16::from_le_bytes([xyz[6 * i + 2 * a], xyz[6 * i + 2 * a + 1]])) / 3000.0).collect();
            let symbol = match data[at + 1 + i] {
                1 => "H",
                6 => "C",
                7 => "N",
                _ => "O",
            };
            out += &format!("{symbol} {:.6} {:.6} {:.6}\n", x[0], x[1], x[2]);
        }
        at += 1 + 7 * n + 12 * levels;
    }
    out
}
