//! `scorefield consistency` on files: what it writes, what it finds, and what it refuses.

use super::support::{fail, run, succeed};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MODEL: &str = "muller-brown:mass=0.5";
const BEADS: [(&str, &str, u32); 5] = [("C", "ACE", 1), ("N", "ALA", 2), ("CA", "ALA", 2), ("C", "ALA", 2), ("N", "NME", 3)];

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A short simulation of the toy.
fn toy(folder: &TempDir, name: &str, seed: &str, kt: &str, more: &[&str]) -> PathBuf {
    let out = folder.path().join(name);
    let mut args = vec!["simulate", "--model", MODEL, "--temperature", kt, "--dt", "0.005", "--steps", "40000", "--trajectory-every", "20"];
    let path = text(&out);
    args.extend(["--log-every", "0", "--replicas", "4", "--seed", seed, "--out", &path, "--quiet"]);
    args.extend(more);
    succeed(&args);
    out
}

fn json(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("report.json")).unwrap()).unwrap()
}

fn metric<'a>(report: &'a Value, key: &str) -> &'a Value {
    &report["rows"].as_array().unwrap().iter().find(|r| r["key"] == key).unwrap()["values"]
}

/// A PDB file of frames of five beads whose φ is near `phi` degrees.
fn peptide(folder: &TempDir, name: &str, frames: usize, stretch: f64, last: &str) -> String {
    let mut lines = Vec::new();
    for f in 0..frames {
        lines.push(format!("MODEL     {:4}", f + 1));
        let wobble = |k: usize| 0.03 * ((f * 7 + k * 13) as f64).sin();
        for (i, (atom, residue, id)) in BEADS.iter().enumerate() {
            let (x, y) = (1.3 * stretch * i as f64 + wobble(i), if i % 2 == 0 { 0.6 } else { -0.6 } + wobble(i + 5));
            let z = 0.9 * ((f as f64) * 0.37 + i as f64).sin() + wobble(i + 9);
            let element = if i == 4 { last } else { &atom[..1] };
            lines.push(format!(
                "ATOM  {:5}  {atom:<3} {residue:>3} A{id:4}    {x:8.3}{y:8.3}{z:8.3}  1.00  0.00          {element:>2}",
                i + 1
            ));
        }
        lines.push("ENDMDL".into());
    }
    lines.push("END\n".into());
    let path = folder.path().join(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    text(&path)
}

#[test]
fn two_runs_of_one_surface_agree_and_a_hotter_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, hot) = (toy(&folder, "a", "1", "23", &[]), toy(&folder, "b", "2", "23", &[]), toy(&folder, "hot", "3", "60", &[]));
    let out = folder.path().join("report");
    let compare = |simulation: &Path, samples: &Path, out: &Path| {
        succeed(&[
            "consistency",
            "--reference",
            &text(&a),
            "--simulation",
            &text(simulation),
            "--samples",
            &text(samples),
            "--coordinates",
            "plane",
            "--limits",
            "-1.8,1.1,-0.5,2.0",
            "--bins",
            "30",
            "--states",
            "3",
            "--out",
            &text(out),
            "--quiet",
        ])
    };
    let printed = compare(&b, &hot, &out);
    assert!(printed.contains("PMF error / kT²") && printed.contains("simulation / reference"), "{printed}");
    let report = json(&out);
    assert_eq!(report["coordinates"], "plane");
    // The directory of a run says how many replicas take turns in its file.
    assert_eq!((&report["sets"][0]["chains"], &report["sets"][0]["frames"]), (&Value::from(4), &Value::from(8000)));
    assert_eq!(report["pairs"], serde_json::json!([["reference", "samples"], ["reference", "simulation"], ["samples", "simulation"]]));
    for key in ["js", "pmf"] {
        let values = metric(&report, key);
        let number = |i: usize, name: &str| values[i][name].as_f64().unwrap();
        let floor = values[1]["floor"]["mean"].as_f64().unwrap();
        // Of the same surface: near the floor. Of a hotter one: far from it, and samples and simulation differ.
        assert!(number(1, "value") < 2.0 * floor && number(1, "value") > 0.4 * floor, "{key}: {values}");
        assert!(number(0, "value") > 5.0 * floor && number(2, "value") > 5.0 * floor, "{key}: {values}");
        assert!(number(1, "error") > 0.0, "{key}: {values}");
    }
    // Samples have no time.
    let transitions = metric(&report, "transitions_js");
    assert!(transitions[0].is_null() && transitions[1]["value"].is_number() && transitions[2].is_null(), "{transitions}");
    assert_eq!(report["sets"][1]["passage_frames"], serde_json::json!([]));
    let total: f64 = report["sets"][2]["populations"].as_array().unwrap().iter().map(|p| p["mean"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-12);
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("<svg") && html.ends_with("</html>\n") && !html.contains("src="));
    assert!(std::fs::read_to_string(out.join("metrics.csv")).unwrap().lines().count() > 5);

    // The same seed writes the same bytes.
    let again = folder.path().join("again");
    compare(&b, &hot, &again);
    for file in ["metrics.csv", "density.csv", "marginals.csv"] {
        assert_eq!(std::fs::read(out.join(file)).unwrap(), std::fs::read(again.join(file)).unwrap(), "{file}");
    }
    // A report is not replaced by accident.
    let taken = ["consistency", "--reference", "x.dcd", "--samples", "y.dcd", "--out"];
    fail(&[&taken[..], &[&text(&out)]].concat(), 2, &["holds a report already", "--overwrite"]);
}

#[test]
fn a_model_is_simulated_here() {
    let folder = tempfile::tempdir().unwrap();
    let reference = toy(&folder, "a", "1", "23", &[]);
    let out = folder.path().join("report");
    let (reference, path) = (text(&reference), text(&out));
    let args = ["consistency", "--reference", &reference, "--coordinates", "plane", "--bins", "30", "--model", MODEL, "--chains", "4"];
    let more = ["--temperature", "23", "--dt", "0.005", "--steps", "40000", "--every", "20", "--seed", "5", "--out", &path, "--quiet"];
    succeed(&[&args[..], &more].concat());
    let report = json(&out);
    assert_eq!((&report["sets"][1]["chains"], &report["sets"][1]["frames"]), (&Value::from(4), &Value::from(8000)));
    let js = &metric(&report, "js")[0];
    assert!(js["value"].as_f64().unwrap() < 2.0 * js["floor"]["mean"].as_f64().unwrap(), "{js}");
}

#[test]
fn beads_of_a_peptide_by_names_and_by_selection() {
    let folder = tempfile::tempdir().unwrap();
    let reference = peptide(&folder, "reference.pdb", 150, 1.0, "N");
    let stretched = peptide(&folder, "stretched.pdb", 150, 4.0, "N");
    let out = folder.path().join("report");
    succeed(&["consistency", "--reference", &reference, "--samples", &reference, "--out", &text(&out), "--quiet"]);
    let report = json(&out);
    assert_eq!((&report["coordinates"], &report["residue"]), (&Value::from("phi-psi"), &Value::from("ALA 2")));
    for key in ["js", "pmf", "mjs", "pair_distances_js", "bond_0_1_w1"] {
        assert!(metric(&report, key)[0]["value"].as_f64().unwrap() < 1e-12, "{key}");
    }
    assert_eq!(report["sets"][1]["broken_frames"], 0);
    // Bonds twice as long are counted as broken.
    let args = ["consistency", "--reference", &reference, "--simulation", &stretched, "--out", &text(&out), "--overwrite", "--quiet"];
    let printed = succeed(&args);
    assert!(printed.contains("150 of 150 frames have a broken bond, in 1 of 1 chains"), "{printed}");
    assert!(metric(&json(&out), "bond_0_1_w1")[0]["value"].as_f64().unwrap() > 50.0);
    // Three beads of both, by their slow components.
    let args =
        ["consistency", "--reference", &reference, "--samples", &stretched, "--select", "1-3", "--coordinates", "tica", "--overwrite"];
    succeed(&[&args[..], &["--samples-topology", &stretched, "--out", &text(&out), "--quiet"]].concat());
    let report = json(&out);
    assert_eq!((&report["coordinates"], report["bonds"].as_array().unwrap().len()), (&Value::from("tica"), 2));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let reference = peptide(&folder, "reference.pdb", 150, 1.0, "N");
    let few = peptide(&folder, "few.pdb", 20, 1.0, "N");
    let other = peptide(&folder, "other.pdb", 150, 1.0, "O");
    let point = folder.path().join("point.xyz");
    std::fs::write(&point, "1\n\nAr 0 0 0\n".repeat(200)).unwrap();
    let point = text(&point);
    let out = text(&folder.path().join("out"));
    let try_it = |args: &[&str], parts: &[&str]| fail(&[&["consistency", "--out", &out], args].concat(), 2, parts);
    try_it(&["--samples", &reference], &["--reference is missing"]);
    try_it(&["--reference", &reference], &["nothing to compare", "--samples"]);
    try_it(&["--reference", &reference, "--samples", &few], &["--samples has 20 frames", "100 or more"]);
    try_it(&["--reference", &reference, "--samples", &other], &["--samples", "is another element than", "same order"]);
    try_it(&["--reference", &reference, "--samples", &point], &["--samples has 1 atoms, but --reference has 5", "--select"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--coordinates", "plane"], &["one particle", "5 atoms"]);
    try_it(&["--reference", &reference, "--simulation", &reference, "--replicas", "7"], &["150 frames", "7 replicas", "--replicas"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--phi", "0,1,2", "--psi", "1,2,3,4"], &["--phi", "4 numbers"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--phi", "0,1,2,9", "--psi", "1,2,3,4"], &["atom 9", "5 atoms"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--limits", "1,0,0,1"], &["--limits", "below"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--centres", "1,2;3"], &["--centres", "2 numbers"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--bins", "1"], &["--bins", "from 3"]);
    try_it(&["--reference", &reference, "--samples", &reference, "--lag", "0"], &["--lag"]);
    try_it(&["--reference", &reference, "--samples", &text(folder.path())], &["summary.json", "scorefield simulate"]);
    fail(&["consistency", "--out", &out, "--reference", "absent.dcd", "--samples", &reference], 1, &["absent.dcd"]);
    // A trajectory whose atoms nobody tells.
    let bare = folder.path().join("bare.dcd");
    let toy = toy(&folder, "toy", "1", "23", &[]);
    std::fs::copy(toy.join("trajectory.dcd"), &bare).unwrap();
    let output = run(&["consistency", "--out", &out, "--reference", &text(&bare), "--samples", &reference]);
    assert!(!output.status.success());
    assert!(super::support::error(&output).contains("topology"));
    assert!(!Path::new(&out).exists());
}

#[test]
fn trajectories_of_selected_atoms() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let simulate = |out: &str, more: &[&str]| {
        let args = [
            "simulate",
            "--model",
            "mm",
            "--replicas",
            "3",
            "--steps",
            "40",
            "--trajectory-every",
            "10",
            "--log-every",
            "0",
            "--quiet",
            "--out",
            out,
        ];
        run(&[&args[..], more].concat())
    };
    assert!(simulate(&at("all"), &[]).status.success());
    assert!(simulate(&at("beads"), &["--select", "4,6,8,14,16"]).status.success());
    // The same numbers as chosen afterwards, and a structure that fits them.
    let structure = |run: &str| at(&format!("{run}/structure.pdb"));
    let convert = |run: &str, more: &[&str]| {
        let (from, to) = (at(&format!("{run}/trajectory.dcd")), at(&format!("{run}.xyz")));
        succeed(&[&["convert", &from, &to, "--topology", &structure(run)][..], more].concat());
        std::fs::read_to_string(to).unwrap()
    };
    let beads = convert("beads", &[]);
    assert_eq!(beads.lines().next(), Some("5"));
    assert_eq!(beads, convert("all", &["--select", "4,6,8,14,16"]));
    // A resumed run goes on with the same atoms.
    succeed(&["simulate", "--resume", &at("beads"), "--steps", "60", "--quiet"]);
    assert!(simulate(&at("long"), &["--select", "4,6,8,14,16", "--steps", "60"]).status.success());
    let bytes = |run: &str| std::fs::read(at(&format!("{run}/trajectory.dcd"))).unwrap();
    assert_eq!(bytes("beads"), bytes("long"));
    let output = simulate(&at("none"), &["--select", "name XX"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(super::support::error(&output).contains("--select"));
}

#[test]
fn temperatures_of_elements_are_those_of_the_thermostat() {
    const MM: &str = "mm:data/alanine-dipeptide/alanine-dipeptide-obc.xml";
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let (reference, out) = (at("reference"), at("report"));
    let run = ["simulate", "--model", "mm", "--replicas", "8", "--steps", "600", "--trajectory-every", "20", "--log-every", "0", "--quiet"];
    succeed(&[&run[..], &["--out", &reference]].concat());
    let usual = ["consistency", "--reference", &reference, "--model", MM, "--chains", "16", "--steps", "8000", "--every", "40", "--quiet"];
    let more = ["--temperature", "300 K", "--friction", "10 /ps", "--integrator", "middle", "--dt", "1 fs"];
    succeed(&[&usual[..], &more, &["--simulation-frames", "800:", "--out", &out]].concat());
    let report = json(&Path::new(&out).join(""));
    let set = report["sets"].as_array().unwrap().last().unwrap();
    let elements: Vec<(u64, f64)> = set["temperatures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["element"].as_u64().unwrap(), t["temperature"].as_f64().unwrap()))
        .collect();
    assert_eq!(elements.iter().map(|e| e.0).collect::<Vec<_>>(), [1, 6, 7, 8]);
    // 16 replicas for 6 ps at a friction of 10/ps: the two oxygens' temperature has an error of 2 %.
    assert!(elements.iter().all(|e| (e.1 - 300.0).abs() < 25.0), "{elements:?}");
    assert!(std::fs::read_to_string(Path::new(&out).join("report.html")).unwrap().contains("kinetic temperature"));
}
