//! A run that was interrupted, however it was, and resumed writes the same bytes as one that was not.

use crate::support::{assert_same, error, fail, finish, run, scorefield, succeed};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The built-in peptide, often reported; ends after about a second.
const PEPTIDE: [&str; 14] = [
    "simulate",
    "--model",
    "mm",
    "--replicas",
    "5",
    "--log-every",
    "30",
    "--trajectory-every",
    "40",
    "--checkpoint-every",
    "70",
    "--dt",
    "1 fs",
    "--quiet",
];
/// Replica exchange of the built-in peptide.
const EXCHANGE: [&str; 14] = [
    "exchange",
    "--count",
    "3",
    "--copies",
    "2",
    "--exchange-every",
    "20",
    "--log-every",
    "50",
    "--trajectory-every",
    "50",
    "--checkpoint-every",
    "130",
    "--quiet",
];

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    base.iter().chain(more).copied().collect()
}

#[test]
fn n_and_n_are_two_n() {
    let dir = tempdir().unwrap();
    let toy = [
        "simulate",
        "--model",
        "muller-brown",
        "--replicas",
        "33",
        "--log-every",
        "10",
        "--trajectory-every",
        "7",
        "--log-format",
        "jsonl",
    ];
    for (i, base) in [&PEPTIDE[..], &EXCHANGE[..], &toy[..]].into_iter().enumerate() {
        for dtype in ["f32", "f64"] {
            let (whole, parts) = (dir.path().join(format!("{i}-{dtype}")), dir.path().join(format!("{i}-{dtype}-parts")));
            succeed(&with(base, &["--dtype", dtype, "--steps", "400", "--threads", "1", "--out", text(&whole)]));
            succeed(&with(base, &["--dtype", dtype, "--steps", "200", "--threads", "3", "--out", text(&parts)]));
            succeed(&[base[0], "--resume", text(&parts), "--steps", "333", "--threads", "2"]);
            succeed(&[base[0], "--resume", text(&parts), "--steps", "400"]);
            assert_same(&whole, &parts);
        }
    }
}

#[test]
fn every_file_layout_resumes() {
    let dir = tempdir().unwrap();
    for format in ["dcd", "extxyz"] {
        let base = with(&PEPTIDE, &["--trajectory-layout", "per-replica", "--trajectory-format", format, "--remove-drift"]);
        let (whole, parts) = (dir.path().join(format), dir.path().join(format!("{format}-parts")));
        succeed(&with(&base, &["--steps", "300", "--out", text(&whole)]));
        succeed(&with(&base, &["--steps", "100", "--out", text(&parts)]));
        succeed(&["simulate", "--resume", text(&parts), "--time", "0.3 ps"]);
        assert_same(&whole, &parts);
    }
}

/// Kills `child` after `milliseconds`, without a warning. True if it still ran.
fn kill_after(mut child: Child, milliseconds: u64) -> bool {
    std::thread::sleep(Duration::from_millis(milliseconds));
    let running = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    child.wait().unwrap();
    running
}

/// Runs `base` to `steps`, killed at moments that differ from case to case, and resumed until it is whole.
fn killed_again_and_again(base: &[&str], steps: &str, case: u64) {
    let dir = tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let begin = std::time::Instant::now();
    succeed(&with(base, &["--steps", steps, "--out", text(&whole)]));
    // Kills come within this time of a start; it shrinks where processes turn out to be faster than the first.
    let mut window = begin.elapsed().as_millis() as u64 / 2 + 2;
    let spawn = |args: &[&str]| scorefield(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let checkpoint = parts.join("checkpoint.safetensors");
    let resume = [base[0], "--resume", text(&parts), "--steps", steps];
    let mut random = case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let (mut kills, mut resumed) = (0, 0);
    while kills < 6 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let goes_on = checkpoint.exists();
        let child = if goes_on { spawn(&resume) } else { spawn(&with(base, &["--steps", steps, "--out", text(&parts), "--overwrite"])) };
        if kill_after(child, (random >> 33) % window) {
            kills += 1;
            resumed += u32::from(goes_on);
        } else if resumed >= 2 {
            break;
        } else {
            window = window * 2 / 3 + 1;
            (kills, resumed) = (0, 0);
            std::fs::remove_dir_all(&parts).unwrap();
        }
    }
    if !checkpoint.exists() {
        succeed(&with(base, &["--steps", "30", "--out", text(&parts), "--overwrite"]));
    }
    succeed(&resume);
    assert_same(&whole, &parts);
}

#[test]
fn simulate_survives_kills() {
    for case in 0..3 {
        killed_again_and_again(&PEPTIDE, "12000", case);
    }
}

#[test]
fn exchange_survives_kills() {
    for case in 3..5 {
        killed_again_and_again(&EXCHANGE, "10000", case);
    }
}

#[cfg(unix)]
#[test]
fn signals_leave_a_checkpoint_and_say_how_to_resume() {
    let dir = tempdir().unwrap();
    for (signal, name) in [("INT", "a"), ("TERM", "b")] {
        let (parts, whole) = (dir.path().join(name), dir.path().join(format!("{name}-whole")));
        let base = ["simulate", "--model", "mm", "--replicas", "4", "--log-every", "500", "--trajectory-every", "500"];
        let child = scorefield(&with(&base, &["--steps", "1000000000", "--out", text(&parts)]))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = std::time::Instant::now();
        while !parts.join("checkpoint.safetensors").exists() && begin.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        finish(std::process::Command::new("kill").args(["-s", signal, &child.id().to_string()]));
        let output = child.wait_with_output().unwrap();
        let message = error(&output);
        assert_eq!(output.status.code(), Some(130), "{message}");
        assert!(message.contains(&format!("scorefield simulate --resume {}", text(&parts))), "{message}");
        let step: u64 = message.split("at step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let steps = (step + 700).to_string();
        // The remedy as printed works, with another end.
        succeed(&["simulate", "--resume", text(&parts), "--steps", &steps]);
        succeed(&with(&base, &["--steps", &steps, "--out", text(&whole)]));
        assert_same(&parts, &whole);
    }
}

#[test]
fn what_would_change_the_run_is_refused() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data/alanine-dipeptide");
    let (pdb, xml) = (dir.path().join("a.pdb"), dir.path().join("a.xml"));
    std::fs::copy(format!("{data}/alanine-dipeptide.pdb"), &pdb).unwrap();
    std::fs::copy(format!("{data}/alanine-dipeptide-vacuum.xml"), &xml).unwrap();
    let model = format!("mm:{}", text(&xml));
    succeed(&["simulate", text(&pdb), "--model", &model, "--steps", "100", "--out", text(&out), "--isa", "portable", "--seed", "3"]);
    let resume = ["simulate", "--resume", text(&out), "--steps", "200"];
    for (more, code, parts) in [
        (vec!["--dtype", "f64"], 2, ["--dtype f64", "f32"]),
        (vec!["--seed", "4"], 2, ["--seed 4", "seed 3"]),
        (vec!["--dt", "2 fs"], 2, ["--dt was \"1 fs\"", "another run"]),
        (vec!["--replicas", "9"], 2, ["--replicas was 1", "another run"]),
        (vec!["--model", "lj"], 2, ["--model was", "another run"]),
        (vec!["--steps", "50"], 2, ["100 steps already", "larger"]),
    ] {
        fail(&with(&resume[..3], &with(&more, if more[0] == "--steps" { &[] } else { &resume[3..] })), code, &parts);
    }
    fail(&["exchange", "--resume", text(&out)], 2, &["scorefield simulate"]);
    fail(&["simulate", "--resume", text(dir.path())], 1, &["there is no checkpoint", "output directory of a run"]);
    let best = scorefield_integrators::simd::Isa::best().name();
    if best != "portable" {
        fail(&with(&resume, &["--isa", best]), 1, &["made with portable", "--isa portable"]);
    }
    // Without --isa the run's own is taken.
    succeed(&resume);
    let content = std::fs::read_to_string(&xml).unwrap();
    std::fs::write(&xml, content.replacen("284512", "284513", 1)).unwrap();
    fail(&["simulate", "--resume", text(&out), "--steps", "300"], 1, &["a.xml", "has changed"]);
    std::fs::write(&xml, content).unwrap();
    // A file that lost rows cannot be continued; nothing is cut before that is known.
    let log = out.join("log.csv");
    let rows = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, &rows[..20]).unwrap();
    fail(&["simulate", "--resume", text(&out), "--steps", "300"], 1, &["log.csv", "changed"]);
    std::fs::write(&log, rows).unwrap();
    succeed(&["simulate", "--resume", text(&out), "--steps", "300"]);
    // A run that is whole already stays as it is.
    let before = crate::support::contents(&out);
    let output = run(&["simulate", "--resume", text(&out)]);
    assert!(output.status.success() && error(&output).contains("300 steps already"));
    assert_eq!(crate::support::contents(&out), before);
}
