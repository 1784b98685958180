//! The commands on files: `evaluate`, `relax`, `models`, `info` and `convert`, from good input and from bad.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const PEPTIDE: &str = "data/alanine-dipeptide/alanine-dipeptide.pdb";
const FORCE_FIELD: &str = "mm:data/alanine-dipeptide/alanine-dipeptide-obc.xml";
const ARGON: &str = "lj:sigma=3.405A,epsilon=0.0103eV";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scorefield"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// The command ends with `code`, and its message holds all of `parts`.
#[track_caller]
fn fails(code: i32, args: &[&str], parts: &[&str]) -> String {
    let output = run(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains("error: ") && !message.contains("panicked"), "{args:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?}: no `{part}` in: {message}");
    }
    message
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.name(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn close(a: f64, b: f64, relative: f64) {
    assert!((a - b).abs() <= relative * b.abs().max(1e-12), "{a} is not {b}");
}

/// A cluster that is near a minimum: thirteen argon atoms, and copies of it shaken by `amplitude` Å.
fn clusters(folder: &Folder, name: &str, count: usize, amplitude: f64) -> String {
    let golden = (1.0 + 5f64.sqrt()) / 2.0;
    let mut corners = vec![[0.0; 3]];
    for s in [-1.0, 1.0] {
        for g in [-golden, golden] {
            corners.extend([[0.0, s, g], [s, g, 0.0], [g, 0.0, s]]);
        }
    }
    let mut text = String::new();
    let mut seed = 1u64;
    for _ in 0..count {
        text += "13\ncluster\n";
        for corner in &corners {
            text += "Ar";
            for x in corner {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let noise = (seed >> 33) as f64 / (1u64 << 31) as f64 - 0.5;
                text += &format!(" {:.6}", 1.95 * x + amplitude * noise);
            }
            text += "\n";
        }
    }
    folder.write(name, &text)
}

#[test]
fn evaluate_agrees_with_openmm() {
    let folder = Folder::new();
    let reference = json(&std::fs::read_to_string("tests/data/mechanics/aldp-obc.reference.json").unwrap());
    let reference = reference.as_array().unwrap();
    // The reference's positions, in Å as files have them.
    let elements = ["H", "C", "H", "H", "C", "O", "N", "H", "C", "H", "C", "H", "H", "H", "C", "O", "N", "H", "C", "H", "H", "H"];
    let mut text = String::new();
    for frame in reference {
        text += "22\n\n";
        for (element, r) in elements.iter().zip(frame["positions_nm"].as_array().unwrap()) {
            let r: Vec<f64> = r.as_array().unwrap().iter().map(|x| 10.0 * x.as_f64().unwrap()).collect();
            text += &format!("{element} {} {} {}\n", r[0], r[1], r[2]);
        }
    }
    let structures = folder.write("aldp.xyz", &text);
    let out = folder.name("out.json");
    let printed = succeeds(&["evaluate", &structures, "--model", "mm:tests/data/mechanics/aldp-obc.system.xml", "--json", &out]);
    assert!(printed.contains("5 frames, 110 atoms"), "{printed}");
    let result = json(&folder.read("out.json"));
    assert_eq!(result["units"], serde_json::json!({"system": "si", "length": "nm", "energy": "kJ/mol", "force": "kJ/mol/nm"}));
    assert_eq!(result["kind"], "physical");
    assert_eq!(result["temperature_K"], Value::Null);
    assert!(result["model"].as_str().unwrap().contains("aldp-obc"));
    let frames = result["frames"].as_array().unwrap();
    assert_eq!(frames.len(), 5);
    for (got, want) in frames.iter().zip(reference) {
        close(got["energy"].as_f64().unwrap(), want["energy_kJ_mol"].as_f64().unwrap(), 1e-6);
        assert_eq!(got["uncertainty"], Value::Null);
        let vectors = |v: &Value| -> Vec<f64> {
            v.as_array().unwrap().iter().flat_map(|f| f.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
        };
        let (got, want) = (vectors(&got["forces"]), vectors(&want["forces_kJ_mol_nm"]));
        assert_eq!(got.len(), 66);
        let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(off < 1e-6 * norm, "{}", off / norm);
    }
}

#[test]
fn evaluate_does_not_depend_on_threads_or_neighbours() {
    let folder = Folder::new();
    // Frames of different sizes in one file.
    let mut text = String::new();
    for n in [2, 1, 40, 3, 700, 2, 1500, 13] {
        text += &format!("{n}\n\n");
        for i in 0..n {
            text += &format!("Ar {} {} {}\n", 3.7 * (i % 10) as f64, 3.9 * (i / 10 % 10) as f64, 4.1 * (i / 100) as f64);
        }
    }
    let file = folder.write("ragged.xyz", &text);
    let all = |threads: &str, dtype: &str| {
        json(&succeeds(&["evaluate", &file, "--model", ARGON, "--json", "-", "--threads", threads, "--dtype", dtype]))
    };
    for dtype in ["f32", "f64"] {
        let whole = all("1", dtype);
        assert_eq!(whole, all("4", dtype));
        for (i, frame) in whole["frames"].as_array().unwrap().iter().enumerate() {
            let alone =
                json(&succeeds(&["evaluate", &file, "--model", ARGON, "--json", "-", "--frames", &i.to_string(), "--dtype", dtype]));
            assert_eq!(alone["frames"][0], *frame, "frame {i}, {dtype}");
        }
    }
    let two = json(&succeeds(&["evaluate", &file, "--model", ARGON, "--json", "-", "--frames", "1:6:4", "--select", "0"]));
    assert_eq!(two["frames"].as_array().unwrap().len(), 2);
    assert_eq!(two["frames"][1]["forces"].as_array().unwrap().len(), 1);
}

#[test]
fn evaluate_knows_reduced_units() {
    let folder = Folder::new();
    let own = json(&succeeds(&["evaluate", "--model", "muller-brown", "--json", "-"]));
    assert_eq!(own["units"]["system"], "reduced");
    close(own["frames"][0]["energy"].as_f64().unwrap(), -146.699_517_2, 1e-9);
    // Numbers of a file are taken as they are: the same point, two others beside it.
    let points = folder.write("points.xyz", "1\n\nH -0.558223635 1.441725842 0\n1\n\nH 0.623499405 0.028037759 0\n1\n\nH 0 0 0\n");
    let three = json(&succeeds(&["evaluate", &points, "--model", "mueller-brown", "--json", "-"]));
    close(three["frames"][0]["energy"].as_f64().unwrap(), -146.699_517_2, 1e-9);
    close(three["frames"][1]["energy"].as_f64().unwrap(), -108.166_724_1, 1e-9);
    close(three["frames"][2]["energy"].as_f64().unwrap(), -48.401_274_5, 1e-8);
    assert_eq!(three["frames"][2]["forces"][0][2], 0.0);
    fails(2, &["evaluate", &points, "--model", "muller-brown", "--extxyz", &folder.name("x.extxyz")], &["reduced units", "--json"]);
}

#[test]
fn committees_say_how_far_they_disagree() {
    let folder = Folder::new();
    let pair = folder.write("pair.xyz", "2\n\nAr 0 0 0\nAr 3.8 0 0\n");
    let member = |epsilon: &str| format!("{{ kind = \"lj\", sigma = \"3.4 A\", epsilon = \"{epsilon}\" }}");
    let tree = folder.write("tree.toml", &format!("kind = \"committee\"\nmembers = [{}, {}]\n", member("1 kJ/mol"), member("2 kJ/mol")));
    let alone = |epsilon: &str| {
        let model = format!("lj:sigma=3.4 A,epsilon={epsilon}");
        json(&succeeds(&["evaluate", &pair, "--model", &model, "--json", "-"]))["frames"][0].clone()
    };
    let both = json(&succeeds(&["evaluate", &pair, "--model", &tree, "--json", "-"]))["frames"][0].clone();
    let (one, two) = (alone("1 kJ/mol"), alone("2 kJ/mol"));
    assert_eq!(one["uncertainty"], Value::Null);
    for number in [|v: &Value| v["energy"].as_f64().unwrap(), |v: &Value| v["forces"][1][0].as_f64().unwrap()] {
        close(number(&both), 0.5 * (number(&one) + number(&two)), 1e-12);
        // The standard deviation of two values over one degree of freedom.
        close(number(&both["uncertainty"]), (number(&two) - number(&one)).abs() / 2f64.sqrt(), 1e-12);
    }
    assert_eq!(both["uncertainty"]["forces"].as_array().unwrap().len(), 2);
}

#[test]
fn extended_xyz_has_angstroms_and_electron_volts() {
    let folder = Folder::new();
    // Two argon atoms at the distance where the energy is zero and the force 24 ε/σ.
    let pair = folder.write("pair.xyz", "2\n\nAr 0 0 0\nAr 3.405 0 0\n");
    let out = folder.name("labelled.extxyz");
    succeeds(&["evaluate", &pair, "--model", ARGON, "--extxyz", &out]);
    let text = folder.read("labelled.extxyz");
    let last: Vec<f64> = text.lines().last().unwrap().split_whitespace().skip(1).map(|x| x.parse().unwrap()).collect();
    close(last[0], 3.405, 1e-9);
    close(last[3], 24.0 * 0.0103 / 3.405, 1e-6);
    assert!(text.contains("energy="));
    assert!(succeeds(&["info", &out]).contains("also holds: forces, energy"));
}

#[test]
fn bad_structures_are_refused_with_place_and_remedy() {
    let folder = Folder::new();
    let before = folder.write("out.json", "earlier output");
    let evaluate = |file: &str, parts: &[&str]| {
        let message = fails(1, &["evaluate", file, "--model", ARGON, "--json", &before], parts);
        assert_eq!(folder.read("out.json"), "earlier output", "{message}");
    };
    evaluate("no-such-file.xyz", &["no-such-file.xyz"]);
    evaluate(&folder.write("empty.xyz", ""), &["empty.xyz", "empty"]);
    evaluate(&folder.write("nan.xyz", "2\n\nAr 0 0 0\nAr nan 0 0\n"), &["nan.xyz", "atom 2"]);
    evaluate(&folder.write("element.xyz", "1\n\nQq 0 0 0\n"), &["element.xyz", "Qq"]);
    evaluate(&folder.write("cut.xyz", "1\n\nAr 0 0 0\n3\n\nAr 0 0 0\n"), &["cut.xyz", "frame 1"]);
    evaluate(&folder.write("words.xyz", "hello\n"), &["words.xyz", "line 1"]);
    evaluate(&folder.write("same.xyz", "1\n\nAr 0 0 0\n3\n\nAr 0 0 0\nAr 5 0 0\nAr 5 0 0\n"), &["frame 1", "atom 2", "atom 3"]);
    // Not the same place, but so close that single precision overflows.
    let near = folder.write("near.xyz", "2\n\nAr 0 0 0\nAr 0.011 0 0\n");
    fails(1, &["evaluate", &near, "--model", "lj:sigma=30A,epsilon=1eV", "--dtype", "f32"], &["frame 0", "atom 1", "overlapping"]);
    let close = folder.write("close.xyz", "2\n\nAr 0 0 0\nAr 0.2 0 0\n");
    let output = run(&["evaluate", &close, "--model", ARGON]);
    assert!(output.status.success() && stderr(&output).contains("0.0200 nm apart"), "{}", stderr(&output));
}

#[test]
fn wrong_words_are_usage_errors() {
    let folder = Folder::new();
    let file = folder.write("a.xyz", "2\n\nAr 0 0 0\nAr 4 0 0\n");
    fails(2, &["evaluate", &file], &["--model"]);
    fails(2, &["evaluate", &file, "--model", "lj:sigme=1"], &["sigme", "did you mean `sigma`"]);
    fails(2, &["evaluate", &file, "--model", "lj:sigma=3.405A,epsilon=2"], &["epsilon"]);
    fails(2, &["evaluate", &file, "--model", "lj:sigma=3 fs,epsilon=1 eV"], &["fs", "length"]);
    fails(2, &["evaluate", &file, "--model", "nothing"], &["nothing", "known are"]);
    fails(2, &["evaluate", &file, "--model", ARGON, "--frames", "a:b"], &["--frames"]);
    fails(2, &["evaluate", &file, "--model", ARGON, "--frames", "7:"], &["a.xyz", "no frame is in the range"]);
    fails(1, &["evaluate", &file, "--model", ARGON, "--select", "5"], &["5", "2 atoms"]);
    fails(2, &["evaluate", "--model", "mm:"], &["mm:FILE.xml"]);
    fails(1, &["evaluate", "--model", "mm:nothing.xml"], &["nothing.xml"]);
    fails(2, &["relax", &file, "--model", ARGON, "--method", "bfgs"], &["bfgs", "fire"]);
    fails(2, &["relax", &file, "--model", ARGON, "--fmax", "0.01 A"], &["0.01 A", "eV/A"]);
    fails(2, &["relax", &file, "--model", ARGON, "--fmax", "0.01"], &["unit"]);
    fails(2, &["relax", &file, "--model", ARGON, "--max-steps", "0"], &["--max-steps"]);
    fails(2, &["models", "nothing"], &["nothing"]);
    fails(2, &["convert", &file], &["IN OUT"]);
    fails(2, &["info"], &["FILE"]);
}

#[test]
fn unwritable_output_is_an_error() {
    let folder = Folder::new();
    let file = folder.write("a.xyz", "2\n\nAr 0 0 0\nAr 4 0 0\n");
    let nowhere = folder.name("no/such/out.json");
    fails(1, &["evaluate", &file, "--model", ARGON, "--json", &nowhere], &["out.json"]);
    fails(2, &["relax", &file, "--model", ARGON, "--out", &folder.name("no/such/out.xyz")], &["out.xyz", "no directory"]);
    fails(1, &["convert", &file, &folder.name("no/such/out.pdb")], &["out.pdb"]);
    fails(1, &["convert", &file, &folder.name("out.docx")], &["out.docx", "pdb"]);
    // A full disk: the device takes nothing and must not be replaced by a file. It is reached by a link, so that a
    // mistake would harm only the link.
    #[cfg(unix)]
    if Path::new("/dev/full").exists() {
        let full = folder.name("full.json");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        fails(1, &["evaluate", &file, "--model", ARGON, "--json", &full], &["full.json", "space"]);
        fails(1, &["relax", &file, "--model", ARGON, "--table", &full], &["full.json", "space"]);
        assert!(std::fs::symlink_metadata(&full).unwrap().is_symlink());
        for args in [&["models"][..], &["info", &file], &["evaluate", &file, "--model", ARGON, "--json", "-"]] {
            let device = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let output = command(args).stdout(device).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
        }
    }
}

fn table(text: &str) -> Vec<Vec<String>> {
    text.lines().skip(1).map(|l| l.split(',').map(str::to_owned).collect()).collect()
}

#[test]
fn relax_finds_known_minima() {
    let folder = Folder::new();
    // E = −44.326801 ε of the icosahedron (Hoare and Pal).
    let want = -44.326_801 * 0.0103 * 96.485_332_123;
    let file = clusters(&folder, "start.xyz", 40, 0.3);
    for method in ["fire", "lbfgs"] {
        let (out, rows) = (folder.name("out.xyz"), folder.name("table.csv"));
        let args = ["relax", &file, "--model", ARGON, "--method", method, "--fmax", "1e-5 eV/A", "--out", &out, "--table", &rows];
        let printed = succeeds(&args);
        assert!(printed.contains("40 of 40 converged (100.0 %)") && printed.contains("median"), "{printed}");
        let text = folder.read("table.csv");
        assert!(text.starts_with("frame,energy_kJ_mol,fmax_kJ_mol_nm,steps,rmsd_A,converged\n"));
        for (i, row) in table(&text).iter().enumerate() {
            assert_eq!(row[0], i.to_string());
            close(row[1].parse().unwrap(), want, 1e-7);
            assert!(row[2].parse::<f64>().unwrap() < 1e-5 * 964.9);
            assert!((0.0..1.0).contains(&row[4].parse::<f64>().unwrap()));
            assert_eq!(row[5], "true");
        }
        // The written structures are the minima, in the order of the input.
        let again = json(&succeeds(&["evaluate", &out, "--model", ARGON, "--json", "-"]));
        assert_eq!(again["frames"].as_array().unwrap().len(), 40);
        for frame in again["frames"].as_array().unwrap() {
            close(frame["energy"].as_f64().unwrap(), want, 1e-6);
        }
        // Threads change nothing.
        let other = folder.name("other.csv");
        succeeds(&["relax", &file, "--model", ARGON, "--method", method, "--fmax", "1e-5 eV/A", "--table", &other, "--threads", "3"]);
        assert_eq!(folder.read("other.csv"), text);
    }
}

#[test]
fn relax_says_what_did_not_converge() {
    let folder = Folder::new();
    let file = clusters(&folder, "start.xyz", 3, 0.5);
    let (out, rows) = (folder.name("out.xyz"), folder.name("table.csv"));
    let args = ["relax", &file, "--model", ARGON, "--fmax", "1e-9 eV/A", "--max-steps", "3", "--out", &out, "--table", &rows];
    fails(1, &args, &["3 of 3", "--max-steps", "--allow-unconverged"]);
    assert!(table(&folder.read("table.csv")).iter().all(|r| r[3] == "3" && r[5] == "false"));
    succeeds(&[&args[..], &["--allow-unconverged"]].concat());
    // A structure that cannot be relaxed does not stop the others.
    let mut text = folder.read("start.xyz");
    text += "2\n\nAr 1 1 1\nAr 1 1 1\n";
    text += &folder.read("start.xyz");
    let mixed = folder.write("mixed.xyz", &text);
    let args = ["relax", &mixed, "--model", ARGON, "--out", &out, "--table", &rows];
    fails(1, &args, &["frame 3", "1 of 7 structures failed", "out.xyz lacks"]);
    let rows = table(&folder.read("table.csv"));
    assert_eq!(rows.len(), 7);
    assert_eq!(rows[3][1..], ["", "", "", "", "false"]);
    assert!(rows.iter().enumerate().all(|(i, r)| (r[5] == "true") == (i != 3)));
    assert_eq!(folder.read("out.xyz").lines().filter(|l| *l == "13").count(), 6);
    // A file that breaks off: what came before is done.
    let cut = folder.write("cut.xyz", &(folder.read("start.xyz") + "13\n\nAr 0 0 0\n"));
    fails(1, &["relax", &cut, "--model", ARGON, "--table", &folder.name("cut.csv")], &["frames from 3 on", "cut.xyz"]);
    assert_eq!(table(&folder.read("cut.csv")).len(), 3);
}

#[test]
fn relax_keeps_frozen_atoms_where_they_are() {
    let folder = Folder::new();
    let out = folder.name("out.xyz");
    let args = ["relax", PEPTIDE, "--model", FORCE_FIELD, "--fmax", "0.001 eV/A", "--freeze", "name CA", "--out", &out];
    succeeds(&args);
    let positions = |text: &str| -> Vec<String> { text.lines().skip(2).map(|l| l[2..].to_owned()).collect() };
    succeeds(&["convert", PEPTIDE, &folder.name("before.xyz")]);
    let (before, after) = (positions(&folder.read("before.xyz")), positions(&folder.read("out.xyz")));
    let same: Vec<usize> = (0..22).filter(|&i| before[i] == after[i]).collect();
    assert_eq!(same, [8]);
}

#[cfg(unix)]
#[test]
fn relax_interrupted_keeps_what_is_done() {
    let folder = Folder::new();
    let file = clusters(&folder, "start.xyz", 3000, 1.5);
    let (out, rows) = (folder.name("out.xyz"), folder.name("table.csv"));
    let args = ["relax", &file, "--model", ARGON, "--fmax", "1e-8 eV/A", "--out", &out, "--table", &rows, "--threads", "1"];
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    if output.status.success() {
        eprintln!("skipped: the machine relaxed everything before the signal came");
        return;
    }
    assert_eq!(output.status.code(), Some(130), "{message}");
    let done = table(&folder.read("table.csv")).len();
    if done == 3000 {
        eprintln!("skipped: the machine relaxed everything while the signal came");
        return;
    }
    assert!(message.contains("interrupted") && message.contains("--frames"), "{message}");
    assert!(done > 0 && done < 3000, "{done}");
    assert_eq!(folder.read("out.xyz").lines().filter(|l| *l == "13").count(), done);
}

#[test]
fn models_are_listed() {
    let text = succeeds(&["models"]);
    for name in ["muller-brown", "lj", "harmonic", "mm:FILE.xml", "reduced units", "kJ/mol"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let list = json(&succeeds(&["models", "--json"]));
    let lj = list.as_array().unwrap().iter().find(|m| m["name"] == "lj").unwrap();
    assert_eq!(lj["parameters"][0]["name"], "sigma");
    assert_eq!(lj["capabilities"]["energy"], true);
    assert!(succeeds(&["models", "lj"]).starts_with("lj: "));
}

#[test]
fn info_tells_files_apart() {
    let folder = Folder::new();
    let text = succeeds(&["info", PEPTIDE]);
    for part in ["1 frame, 22 atoms", "C6 H12 N2 O2", "ACE ALA NME", "bonds: 21", "ALA 2: φ", "no periodic cell"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = succeeds(&["info", "data/alanine-dipeptide/alanine-dipeptide-obc.xml"]);
    for part in ["OpenMM", "22 atoms", "GBSAOBCForce", "PeriodicTorsionForce", "open systems only"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = succeeds(&["info", &clusters(&folder, "many.xyz", 7, 0.1)]);
    assert!(text.contains("7 frames, 13 atoms") && text.contains("Ar13"), "{text}");
    let ragged = folder.write("ragged.xyz", "1\n\nHe 0 0 0\n2\n\nHe 0 0 0\nNe 3 0 0\n");
    assert!(succeeds(&["info", &ragged]).contains("2 frames, 1 to 2 atoms"));
    fails(1, &["info", "tests/data/mechanics/virtual-site.system.xml"], &["virtual site", "line"]);
    fails(1, &["info", &folder.write("bad.xml", "<System")], &["bad.xml"]);
    fails(1, &["info", &folder.write("bad.safetensors", "abc")], &["bad.safetensors", "3 bytes"]);
    fails(1, &["info", &folder.write("long.safetensors", "\u{1}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{1}{}")], &["header", "bytes"]);
    fails(2, &["info", folder.0.path().to_str().unwrap()], &["directory", "checkpoint"]);
    let out = folder.name("run");
    succeeds(&["simulate", "--model", "mm", "--replicas", "2", "--steps", "50", "--log-every", "10", "--out", &out]);
    let text = succeeds(&["info", &out]);
    for part in ["simulate", "step 50 of 50", "2 replicas, 44 atoms", "300.00 K", "--resume"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text, succeeds(&["info", &folder.name("run/checkpoint.safetensors")]));
    std::fs::write(folder.path("run/checkpoint.safetensors"), "abc").unwrap();
    fails(1, &["info", &out], &["checkpoint.safetensors", "damaged"]);
}

#[test]
fn info_reads_the_head_of_weights() {
    let folder = Folder::new();
    let header = r#"{"__metadata__":{"architecture":"painn","kind":"minima"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 24]);
    std::fs::write(folder.path("w.safetensors"), &bytes).unwrap();
    let text = succeeds(&["info", &folder.name("w.safetensors")]);
    assert!(text.contains("1 tensors (1 of f32), 6 numbers") && text.contains("architecture: painn"), "{text}");
    std::fs::write(folder.path("cut.safetensors"), &bytes[..bytes.len() - 5]).unwrap();
    fails(1, &["info", &folder.name("cut.safetensors")], &["end"]);
}

#[test]
fn convert_goes_there_and_back() {
    let folder = Folder::new();
    let (xyz, pdb) = (folder.name("a.xyz"), folder.name("b.pdb"));
    assert!(succeeds(&["convert", PEPTIDE, &xyz]).contains("1 frame, 22 atoms"));
    succeeds(&["convert", PEPTIDE, &pdb]);
    let energy = |file: &str| {
        let result = json(&succeeds(&["evaluate", file, "--model", FORCE_FIELD, "--json", "-"]));
        result["frames"][0]["energy"].as_f64().unwrap()
    };
    close(energy(&xyz), energy(PEPTIDE), 1e-9);
    close(energy(&pdb), energy(PEPTIDE), 1e-9);
    let many = clusters(&folder, "many.xyz", 10, 0.1);
    let dcd = folder.name("many.dcd");
    assert!(succeeds(&["convert", &many, &dcd, "--frames", "1::3"]).contains("3 frames, 13 atoms"));
    assert!(succeeds(&["info", &dcd, "--topology", &many]).contains("3 frames, 13 atoms"));
    fails(1, &["info", &dcd], &["topology"]);
    assert!(succeeds(&["convert", PEPTIDE, &xyz, "--select", "name CA"]).contains("1 atom"));
    // The old file stays where the new one cannot be made.
    let cut = folder.write("cut.xyz", "1\n\nAr 0 0 0\n3\n\nAr 0 0 0\n");
    let before = folder.read("b.pdb");
    fails(1, &["convert", &cut, &pdb], &["cut.xyz", "frame 1"]);
    assert_eq!(folder.read("b.pdb"), before);
}

#[test]
fn help_has_examples() {
    for name in ["evaluate", "relax", "models", "info", "convert"] {
        let text = succeeds(&[name, "--help"]);
        assert!(text.contains("Examples:") && text.contains("Usage:"), "{text}");
    }
}

#[test]
fn settings_come_from_a_file_too() {
    let folder = Folder::new();
    let pair = folder.write("pair.xyz", "2\n\nAr 0 0 0\nAr 3.6 0 0\n");
    let config = folder.write("settings.toml", &format!("structures = [{pair:?}]\nmodel = {ARGON:?}\ndtype = \"f32\"\n"));
    assert!(succeeds(&["evaluate", "--config", &config]).contains("f32"));
    assert!(succeeds(&["evaluate", "--config", &config, "--dtype", "f64"]).contains("f64"));
    let wrong = folder.write("wrong.toml", "modle = \"lj\"\n");
    fails(2, &["evaluate", "--config", &wrong], &["modle", "model"]);
}

#[test]
fn drivers_say_what_they_need() {
    let cluster = tempfile::tempdir().unwrap();
    let file = cluster.path().join("cluster.xyz");
    std::fs::write(&file, "2\n\nAr 0 0 0\nAr 4 0 0\n").unwrap();
    let drive = |more: &[&'static str]| -> Vec<String> {
        let start = ["drive", "--structure", file.to_str().unwrap(), "--quiet"].map(str::to_owned);
        start.into_iter().chain(more.iter().map(|m| (*m).to_owned())).collect()
    };
    let argon = "lj:sigma=3.4 A,epsilon=1 kJ/mol";
    for (more, code, part) in [
        (vec!["--model", argon], 2, "--unix NAME"),
        (vec!["--unix", "x"], 2, "--model and --structure"),
        (vec!["--model", "lj", "--unix", "x"], 2, "reduced units"),
        (vec!["--model", argon, "--unix", "x", "--wait", "3 nm"], 2, "--wait"),
        (vec!["--model", argon, "--port", "1", "--shm"], 2, "UNIX socket"),
        (vec!["--model", argon, "--unix", "scorefield-nobody", "--wait", "50 ms"], 1, "nobody listens"),
    ] {
        let args = drive(&more);
        crate::support::fail(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, &[part]);
    }
}
