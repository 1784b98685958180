//! Conformer models from outside: a small one is trained on three molecules, draws conformers of them, and is a force provider.

use super::support::{error, fail, run, succeed};
use scorefield_models::ditmc::DitmcModel;
use std::path::Path;

/// Water, methanol and formaldehyde (Å).
const MOLECULES: &str = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n\
6\nmethanol\nC -0.047 0.664 0\nO -0.047 -0.758 0\nH -1.091 0.983 0\nH 0.439 1.072 0.890\nH 0.439 1.072 -0.890\nH 0.866 -1.062 0\n\
4\nformaldehyde\nC 0 0 0\nO 0 1.2 0\nH 0.94 -0.59 0\nH -0.94 -0.59 0\n";

const RECIPE: &str = "architecture = \"ditmc\"\n\
[transformer]\nblocks = 2\nheads = 4\nhead-width = 8\nconditioner-layers = 1\nvocabulary = \"qm9\"\n\
[path]\nnoise = 0.05\naligned = true\n\
[data]\ntrajectory = \"molecules.xyz\"\n\
[train]\nsteps = 1200\nbatch = 24\nlearning-rate = 0.003\nheld-out = 0\nema = 0.99\n";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_model_is_trained_and_draws_conformers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    std::fs::write(at("molecules.xyz"), MOLECULES).unwrap();
    std::fs::write(at("recipe.toml"), RECIPE).unwrap();
    let printed = succeed(&["train", &at("recipe.toml"), "-o", &at("run"), "--quiet", "--seed", "1"]);
    assert!(printed.contains("1200 steps"), "{printed}");
    let model = at("run/model.safetensors");

    std::fs::write(at("names.smi"), "# two molecules\nO water\nCO\n").unwrap();
    let draw = |out: &str, more: &[&str]| {
        let base = ["conformers", "--model", &model, "--smiles", "C=O", "--input", &at("names.smi"), "-n", "4", "--quiet", "-o", out];
        let printed = succeed(&[&base[..], more].concat());
        assert!(printed.contains("12 conformers of"), "{printed}");
        std::fs::read_to_string(out).unwrap()
    };
    let sdf = draw(&at("out.sdf"), &["--table", &at("table.csv")]);
    assert_eq!(sdf.matches("$$$$").count(), 12);
    assert!(sdf.contains("water") && sdf.contains(">  <SMILES>"));
    let table = std::fs::read_to_string(at("table.csv")).unwrap();
    assert_eq!(table.lines().count(), 13);
    assert!(table.starts_with("molecule,name,conformer,energy_kJ_mol,relative_kJ_mol,rounds\n1,\"C=O\",1,"), "{table}");
    // The same seed gives the same bytes, whatever the threads; another one does not.
    assert_eq!(draw(&at("again.sdf"), &["--threads", "3"]), sdf);
    assert_ne!(draw(&at("other.sdf"), &["--seed", "5"]), sdf);
    draw(&at("heun.sdf"), &["--method", "heun", "--steps", "10", "--times", "logarithmic"]);
    draw(&at("sde.sdf"), &["--churn", "2", "--steps", "20"]);

    // Given structures are refined; one per molecule is left where near ones are duplicates.
    let refine = ["conformers", "--model", &model, "--input", &at("out.sdf"), "--refine", "0.8", "--steps", "5", "-n", "2K", "--quiet"];
    let printed = succeed(&[&refine[..], &["-o", &at("refined.sdf"), "--distinct", "0.5A"]].concat());
    assert!(printed.contains("3 conformers of "), "{printed}");

    // As forces: downhill to the molecule.
    let spec = format!("ditmc:weights={model},smiles=O");
    std::fs::write(at("water.xyz"), "3\nwater\nO 0.05 0 0\nH 0.9 0.05 0\nH -0.2 0.9 0.05\n").unwrap();
    let json = succeed(&["evaluate", &at("water.xyz"), "--model", &spec, "--json", "-", "--quiet"]);
    assert!(json.contains("pseudo-force"), "{json}");

    // Trained on from there, at a rate that changes nothing, it is the same network.
    let start = "steps = 2\nstart-from = \"run/model.safetensors\"\n";
    let at_rest = RECIPE.replace("steps = 1200\n", start).replace("0.003", "1e-12");
    std::fs::write(at("start.toml"), &at_rest).unwrap();
    succeed(&["train", &at("start.toml"), "-o", &at("start"), "--quiet"]);
    let values = |run: &str| DitmcModel::read(&folder.path().join(run).join("model.safetensors")).unwrap().values;
    // Rounding of the average aside.
    let most = values("start").iter().zip(values("run")).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(most < 1e-6, "{most}");
    std::fs::write(at("start.toml"), at_rest.replace("noise = 0.05", "noise = 0.1")).unwrap();
    fail(&["train", &at("start.toml"), "-o", &at("no")], 2, &["start-from", "[path]"]);

    // What cannot work is said before any work.
    let wrong = |more: &[&str], parts: &[&str]| {
        fail(&[&["conformers", "--model", &model, "-o", &at("x.sdf"), "--quiet"], more].concat(), 2, parts);
    };
    wrong(&["--smiles", "CC(C"], &["--smiles", "CC(C"]);
    wrong(&[], &["no molecule is given"]);
    wrong(&["--smiles", "C", "--steps", "0"], &["steps"]);
    wrong(&["--smiles", "C", "-n", "0"], &["--count"]);
    wrong(&["--smiles", "C", "--method", "rk4"], &["euler and heun"]);
    wrong(&["--smiles", "C", "--refine", "0.5"], &["--input"]);
    wrong(&["--smiles", "C", "--guidance", "2"], &["guidance = true"]);
    wrong(&["--smiles", "C", "--distinct", "3 eV"], &["--distinct"]);
    fail(&["conformers", "--model", &model, "-o", &at("x.sdf"), "--smiles", "CBr"], 1, &["CBr", "Br", "H C N O F"]);
    fail(&["conformers", "-o", &at("x.sdf"), "--smiles", "C", "--plot", &at("x.svg")], 2, &["--plot", "--relax"]);
    fail(&["evaluate", &at("water.xyz"), "--model", &model], 1, &["smiles="]);
}

/// The equivariant network goes the same way: trained, resumed, drawn from, and a provider whose forces turn with the molecule.
#[test]
fn an_equivariant_model_is_trained_and_draws_conformers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    std::fs::write(at("molecules.xyz"), MOLECULES).unwrap();
    let recipe = RECIPE.replace("blocks = 2", "variant = \"pe3\"\nself-conditioning = true\nguidance = true\nblocks = 2");
    let recipe = recipe.replace("steps = 1200", "steps = 400") + "[times]\nwithout-graph = 0.2\n";
    std::fs::write(at("recipe.toml"), recipe).unwrap();
    let printed = succeed(&["train", &at("recipe.toml"), "-o", &at("run"), "--quiet", "--seed", "1"]);
    assert!(printed.contains("400 steps"), "{printed}");
    let model = at("run/model.safetensors");
    let draw = ["conformers", "--model", &model, "--smiles", "O", "--smiles", "C=O", "-n", "3", "--quiet", "-o", &at("out.sdf")];
    let printed = succeed(&draw);
    assert!(printed.contains("6 conformers of"), "{printed}");
    let unguided = std::fs::read_to_string(at("out.sdf")).unwrap();
    assert!(succeed(&[&draw[..], &["--guidance", "1"]].concat()).contains("6 conformers of"));
    assert_eq!(std::fs::read_to_string(at("out.sdf")).unwrap(), unguided);
    assert!(succeed(&[&draw[..], &["--guidance", "1.3"]].concat()).contains("6 conformers of"));
    assert_ne!(std::fs::read_to_string(at("out.sdf")).unwrap(), unguided);
    let spec = format!("ditmc:weights={model},smiles=O");
    let forces = |name: &str, water: &str| -> Vec<f64> {
        std::fs::write(at(name), format!("3\nwater\n{water}")).unwrap();
        let json = succeed(&["evaluate", &at(name), "--model", &spec, "--json", "-", "--quiet"]);
        assert!(json.contains("pseudo-force"), "{json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let forces = json["frames"][0]["forces"].as_array().unwrap();
        forces.iter().flat_map(|f| f.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
    };
    // A quarter turn about z.
    let a = forces("water.xyz", "O 0.05 0 0\nH 0.9 0.05 0\nH -0.2 0.9 0.05\n");
    let b = forces("turned.xyz", "O 0 0.05 0\nH -0.05 0.9 0\nH -0.9 -0.2 0.05\n");
    let most = a.iter().fold(0.0f64, |m, f| m.max(f.abs()));
    let turned: Vec<f64> = a.chunks_exact(3).flat_map(|f| [-f[1], f[0], f[2]]).collect();
    assert!(turned.len() == 9 && turned.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * most), "{turned:?} {b:?}");
}

/// Two alcohols: ensembles from bonds turned at random, written once, gone on with, and compared with themselves.
#[test]
fn ensembles_are_generated_and_compared() {
    let folder = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| Path::new("../shared").to_owned(), Into::into);
    let weights = folder.join("weights/ani/ani2x_8x_hcnof.safetensors");
    if !weights.exists() {
        eprintln!("skipped: {} is missing; SCOREFIELD_REFERENCE names the folder of reference data", weights.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let methanol = MOLECULES.lines().skip(5).take(8).collect::<Vec<_>>().join("\n");
    let ethanol = "9\nethanol\nC -1.168 -0.401 0.000\nC 0.000 0.560 0.000\nO 1.190 -0.213 0.000\nH -2.120 0.135 0.000\n\
                   H -1.130 -1.040 0.886\nH -1.130 -1.040 -0.886\nH -0.051 1.206 0.886\nH -0.051 1.206 -0.886\nH 1.932 0.389 0.000\n";
    std::fs::write(at("molecules.xyz"), format!("{methanol}\n{ethanol}")).unwrap();
    let relax = format!("ani2x:weights={}", weights.display());
    let generate = |out: &str| {
        let flags = ["generate-ensembles", &at("molecules.xyz"), "--relax", &relax, "--proposals", "6", "--output", out, "--quiet"];
        succeed(&flags)
    };
    let printed = generate(&at("ensembles"));
    assert!(printed.contains("2 of 2 molecules"), "{printed}");
    let parts =
        || ["train.sdf", "validation.sdf", "test.sdf"].map(|p| std::fs::read_to_string(folder.path().join("ensembles").join(p)).unwrap());
    let whole = parts();
    assert!(whole.iter().map(|p| p.matches("$$$$").count()).sum::<usize>() >= 2);
    // What was not finished is cut off, and nothing is done twice.
    std::fs::write(folder.path().join("ensembles/train.sdf"), format!("{}half a record", whole[0])).unwrap();
    generate(&at("ensembles"));
    assert_eq!(parts(), whole);
    fail(&["generate-ensembles", &at("molecules.xyz"), "--relax", &relax, "--output", &at("ensembles")], 2, &["another command"]);
    fail(&["generate-ensembles", &at("molecules.xyz"), "--relax", "gpff", "--output", &at("x")], 2, &["no energies"]);

    let all = whole.concat();
    std::fs::write(at("all.sdf"), &all).unwrap();
    let printed = succeed(&["evaluate-conformers", &at("all.sdf"), "--reference", &at("all.sdf"), "--json", &at("s.json"), "--quiet"]);
    assert!(printed.contains("2 molecules") && printed.contains("100.0 ± 0.0 %") && printed.contains("0.000 ± 0.000 A"), "{printed}");
    assert!(std::fs::read_to_string(at("s.json")).unwrap().contains("\"missing\": 0"));
    fail(&["evaluate-conformers", &at("all.sdf")], 2, &["--reference"]);

    // Without its lowest conformer an ensemble begins at the next one.
    succeed(&["conformers", "--smiles", "CCCC", "-n", "1", "-o", &at("butane.sdf"), "--quiet"]);
    let flags = ["--relax", &relax, "--proposals", "12", "--output", &at("butane"), "--quiet"];
    succeed(&[&["generate-ensembles", &at("butane.sdf")], &flags[..]].concat());
    let parts = ["train.sdf", "validation.sdf", "test.sdf"].map(|p| std::fs::read_to_string(folder.path().join("butane").join(p)).unwrap());
    let (text, reference) = (parts.concat(), at("reference.sdf"));
    std::fs::write(&reference, &text).unwrap();
    let records: Vec<&str> = text.split_inclusive("$$$$\n").collect();
    let above = |r: &str| -> f64 { r.split("<relative_energy_kJ_mol>\n").nth(1).unwrap().lines().next().unwrap().parse().unwrap() };
    let next = records.iter().map(|r| above(r)).filter(|&e| e > 0.0).fold(f64::INFINITY, f64::min);
    assert!(records.len() > 1 && next > 1.0 && next < 6.0, "{text}");
    std::fs::write(at("fewer.sdf"), records.iter().filter(|r| above(r) > 0.0).copied().collect::<String>()).unwrap();
    let flags =
        ["evaluate-conformers", &at("fewer.sdf"), "--reference", &reference, "--relax", &relax, "--json", "-", "--table", &at("t.csv")];
    let scores: serde_json::Value = serde_json::from_str(&succeed(&flags)).unwrap();
    let mean = |name: &str| scores["scores"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap()["mean"].as_f64().unwrap();
    assert!((mean("error of lowest E") - next / 4.184).abs() < 0.02, "{next} {scores}");
    assert!(mean("error of mean E") > 0.0 && std::fs::read_to_string(at("t.csv")).unwrap().contains("lowest_reference_kJ_mol"));
    fail(&["evaluate-conformers", &reference, "--reference", &reference, "--relax", "gpff"], 2, &["no energies"]);
}

/// Alanine, which has one centre, from the models that come along.
#[test]
fn committed_models_draw_conformers() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.sdf"));
    for model in ["ape-small", "pe3-small"] {
        let weights = format!("data/models/conformers/{model}.safetensors");
        let draw = ["conformers", "--smiles", "C[C@H](N)C(=O)O", "-n", "4", "--steps", "20", "--model", &weights, "-o", &out, "--quiet"];
        let printed = succeed(&draw);
        assert!(printed.contains("4 conformers of"), "{model}: {printed}");
        let printed = succeed(&["evaluate-conformers", &out, "--reference", &out]);
        assert!(printed.contains("1 molecule, 4 reference") && printed.contains("E/Z: 100.00 %"), "{model}: {printed}");
    }
}

#[test]
fn the_built_in_model_draws_and_energies_are_plotted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let draw = |more: &[&str]| succeed(&[&["conformers", "--smiles", "CCCO", "-n", "6", "-o", &at("out.sdf"), "--quiet"], more].concat());
    let printed = draw(&[]);
    assert!(printed.contains("6 conformers of"), "{printed}");
    let sdf = std::fs::read_to_string(at("out.sdf")).unwrap();
    assert_eq!((sdf.matches("$$$$").count(), sdf.matches(" 12 11 ").count()), (6, 6), "{sdf}");
    // Forces that are small enough from the start: energies of what was drawn.
    draw(&["--relax", "harmonic:k=1 kJ/mol/nm^2", "--fmax", "1000 eV/A", "--plot", &at("energies.svg")]);
    let plot = std::fs::read_to_string(at("energies.svg")).unwrap();
    assert!(plot.contains("energy above the lowest") && plot.contains("CCCO"), "{plot}");
    // Beyond what it learned, it says so.
    let output = run(&["conformers", "--smiles", "CC(=O)Nc1ccc(O)cc1", "-n", "2", "-o", &at("out.sdf")]);
    assert!(output.status.success() && error(&output).contains("11 heavy atoms"), "{}", error(&output));
    // As forces, too.
    std::fs::write(at("water.xyz"), "3\nwater\nO 0.05 0 0\nH 0.9 0.05 0\nH -0.2 0.9 0.05\n").unwrap();
    let json = succeed(&["evaluate", &at("water.xyz"), "--model", "ditmc:smiles=O", "--json", "-", "--quiet"]);
    assert!(json.contains("pseudo-force"), "{json}");
}

/// The example: forces whose noise level follows the clock find both minima of hydrogen peroxide from one of them, each as often, and
/// springs keep them from the other.
#[test]
fn annealed_forces_hop_between_minima() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    for file in ["minima.xyz", "recipe.toml", "hop.toml", "held.toml"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/5_hopping").join(file);
        std::fs::copy(example, folder.path().join(file)).unwrap();
    }
    succeed(&["train", &at("recipe.toml"), "--output", &at("run"), "--quiet"]);
    // Torsions (degrees) of 16 replicas at the end of each of two periods; all begin at 112.
    let torsions = |model: &str| -> Vec<f64> {
        let flags = ["--replicas", "16", "--dt", "0.5 fs", "--friction", "10 /ps", "--time", "4 ps", "--log-every", "0", "--seed", "2"];
        let output = ["--trajectory-every", "4000", "--trajectory-format", "extxyz", "--out", &at(model), "--overwrite", "--quiet"];
        let model = at(&format!("{model}.toml"));
        succeed(&[&["simulate", &at("minima.xyz"), "--model", &model, "--temperature", "300 K"], &flags[..], &output].concat());
        let frames = std::fs::read_to_string(Path::new(output[5]).join("trajectory.extxyz")).unwrap();
        let lines: Vec<&str> = frames.lines().collect();
        let torsion = |atoms: &[&str]| {
            let x: Vec<[f64; 3]> = atoms
                .iter()
                .map(|l| l.split_whitespace().skip(1).take(3).map(|w| w.parse().unwrap()).collect::<Vec<f64>>().try_into().unwrap())
                .collect();
            let sub = |a: [f64; 3], b: [f64; 3]| [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
            let cross = |a: [f64; 3], b: [f64; 3]| [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
            let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
            // H O O H are atoms 2, 0, 1, 3.
            let (a, b, c) = (sub(x[0], x[2]), sub(x[1], x[0]), sub(x[3], x[1]));
            let (m, n) = (cross(a, b), cross(b, c));
            (dot(b, b).sqrt() * dot(a, n)).atan2(dot(m, n)).to_degrees()
        };
        lines.chunks_exact(6).map(|f| torsion(&f[2..])).collect()
    };
    let (free, held) = (torsions("hop"), torsions("held"));
    assert!(free.len() == 32 && held.len() == 32);
    let minima = |all: &[f64]| all.iter().filter(|t| (t.abs() - 112.0).abs() < 40.0).count();
    assert!(minima(&free) >= 30 && minima(&held) >= 30, "{free:?} {held:?}");
    // Of 32 fair coins 5 or fewer, or 27 or more, fall on one side once in 12000 throws.
    let right = free.iter().filter(|t| **t > 0.0).count();
    assert!((6..=26).contains(&right), "{free:?}");
    assert!(held.iter().filter(|t| **t > 0.0).count() >= 30, "{held:?}");
}

/// A folder laid out as GEOM's: ensembles come out that are trained on and evaluated. Needs RDKit.
#[test]
fn pickles_of_geom_become_ensembles() {
    let python = std::env::var_os("SCOREFIELD_RDKIT").map(|p| Path::new(&p).join("bin/python"));
    let Some(python) = python.filter(|p| p.exists()) else {
        println!("skipped: SCOREFIELD_RDKIT names no Python environment with RDKit");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    // Four molecules; one is of two parts. Weights fall against the order of the file; one conformer has lost a bond, one its hand.
    let script = r#"
import pickle, sys, numpy
from pathlib import Path
from rdkit import Chem
from rdkit.Chem import AllChem
root = Path(sys.argv[1])
(root / "qm9").mkdir()
def conformers(smiles, n):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    ids = list(AllChem.EmbedMultipleConfs(mol, n, randomSeed=3))
    return [Chem.Mol(mol, confId=k) for k in ids]
for name, smiles, n in [("a", "CCCO", 4), ("b", "C[C@H](N)O", 3), ("c", "CO.O", 1), ("d", "CCC=O", 3)]:
    mols = conformers(smiles, n)
    if name == "a":
        broken = Chem.RWMol(mols[0]); broken.RemoveBond(2, 3); mols[0] = broken.GetMol()
    if name == "b":
        mols.append(conformers("C[C@@H](N)O", 1)[0])
    entries = [{"rd_mol": m, "boltzmannweight": 0.1 * (k + 1) if k < n else 0.01, "totalenergy": -30.0 - 0.001 * k, "relativeenergy": 0.6 * (n - 1 - k), "geom_id": k} for k, m in enumerate(mols)]
    pickle.dump({"smiles": smiles, "conformers": entries, "charge": 0, "uniqueconfs": n}, open(root / "qm9" / f"{name}.pickle", "wb"))
split = numpy.empty(3, dtype=object)
split[:] = [[0, 2], [1], [3]]
numpy.save(root / "split0.npy", split, allow_pickle=True)
pickle.dump({"CCC=O": conformers("CCC=O", 2)}, open(root / "test_mols.pkl", "wb"))
"#;
    let command = |arguments: &[&str]| {
        let output = std::process::Command::new(&python).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    command(&["-c", script, &at("")]);
    let converter = concat!(env!("CARGO_MANIFEST_DIR"), "/data/scripts/convert_geom.py");
    let printed = command(&[converter, &at("qm9"), "--output", &at("geom"), "--split", &at("split0.npy"), "--most", "2"]);
    for line in ["1 molecules of several parts", "1 conformers in several parts", "1 conformers with another handedness"] {
        assert!(printed.contains(line), "{printed}");
    }
    let part = |name: &str| std::fs::read_to_string(folder.path().join("geom").join(name)).unwrap();
    // The heaviest conformers first, two of each molecule but all of test.
    let (train, test) = (part("train.sdf"), part("test.sdf"));
    assert_eq!([&train, &part("validation.sdf"), &test].map(|sdf| sdf.matches("$$$$").count()), [2, 2, 3]);
    assert!(train.find("0.400000").unwrap() < train.find("0.300000").unwrap(), "{train}");
    assert!(train.contains(">  <energy_kJ_mol>") && train.contains(&format!("{:.6}", -30.003 * 2625.4996394799)), "{train}");
    command(&[converter, &at("test_mols.pkl"), "--output", &at("td")]);

    let reference = at("geom/test.sdf");
    let printed = succeed(&["evaluate-conformers", &reference, "--reference", &reference, "--quiet"]);
    assert!(printed.contains("1 molecule, 3 reference and 3 generated") && printed.contains("100.00 %"), "{printed}");
    let printed = succeed(&["evaluate-conformers", &at("td/test.sdf"), "--reference", &reference, "--quiet"]);
    assert!(printed.contains("1 molecule, 3 reference and 2 generated"), "{printed}");
    // Of two molecules one has no conformers: it is left out, or has no coverage.
    std::fs::write(at("both.sdf"), format!("{train}{test}")).unwrap();
    let recall = |more: &[&str]| -> f64 {
        let base = ["evaluate-conformers", &reference, "--reference", &at("both.sdf"), "--json", "-", "--quiet"];
        let json: serde_json::Value = serde_json::from_str(&succeed(&[&base[..], more].concat())).unwrap();
        assert_eq!(json["missing"], 1);
        json["scores"][0]["mean"].as_f64().unwrap()
    };
    assert_eq!((recall(&[]), recall(&["--missing-as-zero"])), (1.0, 0.5));
    let recipe = RECIPE.replace("molecules.xyz", "geom/train.sdf").replace("steps = 1200", "steps = 2");
    std::fs::write(at("recipe.toml"), recipe).unwrap();
    succeed(&["train", &at("recipe.toml"), "-o", &at("run"), "--quiet"]);
    // Twice as many as there are.
    let draw = ["conformers", "--input", &reference, "-n", "2K", "--attempts", "40", "-o", &at("out.sdf"), "--quiet"];
    assert!(succeed(&draw).contains("6 conformers of"));
}
