//! Runs on devices: the emulator stands in for a GPU, and a GPU takes part where there is one.

use crate::support::{assert_same, fail, run, succeed};
use std::path::Path;
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const RUN: [&str; 10] =
    ["simulate", "--replicas", "3", "--log-every", "10", "--trajectory-every", "15", "--checkpoint-every", "20", "--quiet"];
const PEPTIDE: [&str; 2] = ["--model", "mm"];
const EXCHANGE: [&str; 12] =
    ["exchange", "--count", "2", "--copies", "2", "--exchange-every", "10", "--log-every", "10", "--trajectory-every", "15", "--quiet"];

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    base.iter().chain(more).copied().collect()
}

/// The emulator, and the first GPU where there is one.
fn devices() -> Vec<&'static str> {
    let listed = succeed(&["models"]);
    if listed.contains("cuda:0, sm_") { vec!["emulated", "cuda"] } else { vec!["emulated"] }
}

#[test]
fn runs_on_a_device_resume_bitwise_and_say_where_they_were() {
    let dir = tempdir().unwrap();
    for device in devices() {
        for (i, base) in [&with(&RUN, &PEPTIDE)[..], &EXCHANGE[..]].into_iter().enumerate() {
            let (whole, parts) = (dir.path().join(format!("{device}-{i}")), dir.path().join(format!("{device}-{i}-parts")));
            succeed(&with(base, &["--device", device, "--steps", "60", "--out", text(&whole)]));
            succeed(&with(base, &["--device", device, "--steps", "33", "--out", text(&parts)]));
            fail(&[base[0], "--resume", text(&parts), "--device", "cpu", "--steps", "60"], 1, &["other bits"]);
            succeed(&[base[0], "--resume", text(&parts), "--steps", "60"]);
            assert_same(&whole, &parts);
            let summary = std::fs::read_to_string(whole.join("summary.json")).unwrap();
            let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
            assert!(summary["device"].as_str().unwrap().contains(if device == "cuda" { "cuda:0" } else { "emulated" }));
            assert!(succeed(&["info", text(&whole)]).contains(device));
        }
    }
}

#[test]
fn a_short_run_is_that_of_the_host() {
    let dir = tempdir().unwrap();
    // By a team for each replica, and by one for several.
    for model in ["mm", "scoremd"] {
        check_short_run(model, dir.path());
    }
}

fn check_short_run(model: &str, dir: &Path) {
    let potentials = |device: &str| -> Vec<f64> {
        let out = dir.join(format!("{model}-{device}"));
        let settings = ["--model", model, "--dtype", "f64", "--device", device, "--steps", "20", "--out", text(&out)];
        succeed(&with(&RUN, &settings));
        let log = std::fs::read_to_string(out.join("log.csv")).unwrap();
        log.lines().skip(1).flat_map(|l| l.split(',').skip(3).map(|x| x.parse().unwrap()).collect::<Vec<f64>>()).collect()
    };
    let host = potentials("cpu");
    assert!(host.len() >= 18);
    for device in devices() {
        for (got, want) in potentials(device).into_iter().zip(&host) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{model} on {device}: {got}, {want} on the host");
        }
    }
}

/// Forces that have no energy, in a plan: DiTMC's at one noise level.
#[test]
fn forces_of_conformers_run_there() {
    let dir = tempdir().unwrap();
    let start = dir.path().join("methanol.xyz");
    let atoms = "C 0 0 0\nO 1.41 0 0\nH -0.37 1.02 0\nH -0.37 -0.51 0.88\nH -0.37 -0.51 -0.88\nH 1.73 0.9 0\n";
    std::fs::write(&start, format!("6\n\n{atoms}")).unwrap();
    let numbers = |device: &str| -> Vec<f64> {
        let out = dir.path().join(device);
        let settings = ["--model", "ditmc:smiles=CO", "--dtype", "f64", "--device", device, "--dt", "0.5fs", "--temperature", "300K"];
        let more = ["simulate", text(&start), "--replicas", "3", "--steps", "3", "--log-every", "1", "--quiet", "--out", text(&out)];
        succeed(&with(&more, &settings));
        let log = std::fs::read_to_string(out.join("log.csv")).unwrap();
        log.lines().skip(1).flat_map(|l| l.split(',').filter_map(|x| x.parse().ok()).collect::<Vec<f64>>()).collect()
    };
    let host = numbers("cpu");
    assert!(host.len() >= 9);
    for device in devices() {
        for (got, want) in numbers(device).into_iter().zip(&host) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "on {device}: {got}, {want} on the host");
        }
    }
}

#[test]
fn what_cannot_run_there_says_so_and_writes_nothing() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let simulate = |more: &[&'static str]| with(&["simulate", "--steps", "10", "--out"], &with(&[text(&out)], more)).join("\u{1f}");
    let refused = |more: &[&'static str], parts: &[&str]| {
        let line = simulate(more);
        fail(&line.split('\u{1f}').collect::<Vec<_>>(), 1, parts);
        assert!(!out.exists());
    };
    refused(&["--device", "cuda:4000"], &["cuda:4000: ", "--device cpu"]);
    refused(&["--device", "cuda:4000", "--model", "scoremd"], &["cuda:4000: ", "--device cpu"]);
    refused(&["--device", "emulated", "--model", "lj:cutoff=2.5"], &["lennard-jones cannot supply", "no kernels for GPUs", "--device cpu"]);
    fail(&["simulate", "--device", "gpu", "--steps", "10"], 2, &["`gpu` is not a device", "cuda"]);
    assert!(String::from_utf8_lossy(&run(&["models"]).stdout).contains("f32, f64 on cpu, cuda"));
}
