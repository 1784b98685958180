//! Parts of an ensemble that ran apart have the bits of the whole, and are joined into the files of one run.

use crate::support::{assert_same, contents, fail, succeed};
use std::path::Path;
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    base.iter().chain(more).copied().collect()
}

fn borrowed(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// Runs `base` as a whole and in `parts`, joins these in another order, and compares; then resumes both.
fn parts_are_the_whole(base: &[&str], parts: &[&str]) {
    let dir = tempdir().unwrap();
    let whole = dir.path().join("whole");
    succeed(&with(base, &["--steps", "200", "--out", text(&whole)]));
    let directories: Vec<_> = (0..parts.len()).map(|k| dir.path().join(format!("part-{k}"))).collect();
    for (k, (range, directory)) in parts.iter().zip(&directories).enumerate() {
        let threads = ["1", "3", "2"][k % 3];
        // One of the parts is interrupted on its way.
        let steps = if k == 1 { "120" } else { "200" };
        succeed(&with(base, &["--steps", steps, "--replica-range", range, "--threads", threads, "--out", text(directory)]));
    }
    let joined = dir.path().join("joined");
    let mut merge = vec!["merge", "--out", text(&joined)];
    merge.extend(directories.iter().rev().map(|d| text(d)));
    fail(&merge, 2, &["`steps` is"]);
    succeed(&[base[0], "--resume", text(&directories[1]), "--steps", "200"]);
    let said = succeed(&merge);
    assert!(said.contains("thermostat"), "{said}");
    assert_same(&whole, &joined);
    let summary =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path.join("summary.json")).unwrap()).unwrap() };
    let (a, b) = (summary(&whole), summary(&joined));
    for key in ["averages", "exchange", "replicas", "atoms", "steps", "seed", "outside_training"] {
        assert_eq!(a[key], b[key], "{key}");
    }
    // An interrupted part knows of the moves after the interruption only.
    assert_eq!(a["acceptance"].is_null(), b["acceptance"].is_null());
    assert!((a["acceptance"].as_f64().unwrap_or(0.0) - b["acceptance"].as_f64().unwrap_or(0.0)).abs() < 0.05);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2 + parts.len(), "something was left behind");
    // What was joined goes on like a run.
    for run in [&whole, &joined] {
        succeed(&[base[0], "--resume", text(run), "--steps", "260"]);
    }
    assert_same(&whole, &joined);
    assert!(contents(&whole).len() >= 2);
}

const PEPTIDE: [&str; 12] = [
    "simulate",
    "--model",
    "mm",
    "--replicas",
    "5",
    "--log-every",
    "20",
    "--trajectory-every",
    "40",
    "--checkpoint-every",
    "70",
    "--quiet",
];

#[test]
fn molecules() {
    for (format, layout) in [("dcd", "together"), ("extxyz", "together"), ("lammps", "together"), ("dcd", "per-replica")] {
        let base = with(&PEPTIDE, &["--trajectory-format", format, "--trajectory-layout", layout, "--relax=false"]);
        parts_are_the_whole(&base, &["0..1", "1..3", "3..5"]);
    }
}

#[test]
fn toys_and_biases() {
    let toy = ["simulate", "--model", "muller-brown", "--replicas", "33", "--log-every", "10", "--trajectory-every", "20", "--quiet"];
    parts_are_the_whole(&with(&toy, &["--log-format", "jsonl", "--integrator", "ghmc"]), &["0..20", "20..33"]);
    let hills = "metadynamics:cv=x;y,height=5,width=0.2,every=20,factor=8,from=-2,to=2.5";
    parts_are_the_whole(&with(&toy, &["--cv", "x=x 1", "--cv", "y=y 1", "--bias", hills, "--colvar-every", "30"]), &["0..16", "16..33"]);
}

#[test]
fn replica_exchange() {
    let base =
        ["exchange", "--count", "3", "--copies", "3", "--exchange-every", "20", "--log-every", "50", "--trajectory-every", "50", "--quiet"];
    parts_are_the_whole(&base, &["0..3", "3..9"]);
    fail(&with(&base, &["--replica-range", "0..4", "--steps", "20"]), 2, &["ladder of 3", "multiples of 3"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = ["simulate", "--model", "muller-brown", "--replicas", "8", "--steps", "20", "--log-every", "10", "--quiet"];
    let run = |name: &str, more: &[&str]| {
        let out = path(name);
        succeed(&with(&base, &with(more, &["--out", text(&out)])));
        text(&out).to_owned()
    };
    let first = run("first", &["--replica-range", "0..4"]);
    let second = run("second", &["--replica-range", "4..8"]);
    let overlap = run("overlap", &["--replica-range", "3..8"]);
    let late = run("late", &["--replica-range", "5..8"]);
    let colder = run("colder", &["--replica-range", "4..8", "--temperature", "10"]);
    let seeded = run("seeded", &["--replica-range", "4..8", "--seed", "5"]);
    let whole = run("whole", &[]);
    let out = path("out");
    let merge = |parts: &[&str]| -> Vec<String> { ["merge", "--out", text(&out)].iter().chain(parts).map(|s| (*s).to_owned()).collect() };
    fail(&borrowed(&merge(&[&first, &overlap])), 2, &["both have replica 3"]);
    fail(&borrowed(&merge(&[&first, &first, &second])), 2, &["both have replica 0"]);
    fail(&borrowed(&merge(&[&first, &late])), 2, &["no part has the replicas 4..5 of 8", "--replica-range 4..5"]);
    fail(&borrowed(&merge(&[&second])), 2, &["no part has the replicas 0..4 of 8"]);
    fail(&borrowed(&merge(&[&first])), 2, &["no part has the replicas 4..8 of 8"]);
    fail(&borrowed(&merge(&[&first, &colder])), 2, &["`temperature`", "10", "colder"]);
    fail(&borrowed(&merge(&[&first, &seeded])), 2, &["the seed is 0", "5 in"]);
    fail(&borrowed(&merge(&[&first, &whole])), 2, &["whole run already"]);
    fail(&borrowed(&merge(&[])), 2, &["name the directories"]);
    fail(&["merge", &first, &second], 2, &["--out is missing"]);
    fail(&["merge", "--out", &whole, &first, &second], 2, &["is there already"]);
    fail(&with(&base, &["--replica-range", "4..9", "--out", text(&out)]), 2, &["4..9", "8 replicas in all"]);
    assert!(!out.exists());
    let compressed =
        |name: &str, range: &str| run(name, &["--replica-range", range, "--trajectory-every", "10", "--trajectory-format", "xtc"]);
    let parts = [compressed("xtc-0", "0..4"), compressed("xtc-1", "4..8")];
    fail(&borrowed(&merge(&[&parts[0], &parts[1]])), 1, &["xtc", "per-replica"]);
    assert!(!out.exists());
    // A trajectory that was changed is noticed, and nothing is left behind.
    let file = path("second").join("trajectory.dcd");
    let bytes = std::fs::read(&file).unwrap();
    if !bytes.is_empty() {
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        fail(&borrowed(&merge(&[&first, &second])), 1, &["trajectory.dcd"]);
        std::fs::write(&file, bytes).unwrap();
    }
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    succeed(&borrowed(&merge(&[&second, &first])));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before + 1);
    assert_same(&path("whole"), &out);
}
