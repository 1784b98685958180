//! What people type: help, mistakes and their remedies, exit codes.

use crate::support::{error, fail, finish, run, scorefield, succeed};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/alanine-dipeptide");

#[test]
fn help_ends_with_examples() {
    for command in ["simulate", "exchange"] {
        for flag in ["-h", "--help"] {
            let help = succeed(&[command, flag]);
            let examples = help.split("Examples:").nth(1).unwrap_or_else(|| panic!("{command} {flag} has no examples"));
            assert!(examples.contains(&format!("scorefield {command}")));
        }
    }
    assert!(succeed(&["--version"]).starts_with("scorefield "));
}

#[test]
fn usage_mistakes_exit_with_2_and_a_remedy() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("never");
    let o = text(&out);
    let pdb = format!("{DATA}/alanine-dipeptide.pdb");
    let cases: &[(&[&str], &[&str])] = &[
        (&["simulate", "--dt", "2"], &["--dt", "no unit", "`2 fs`"]),
        (&["simulate", "--dt", "2 K"], &["--dt", "time"]),
        (&["simulate", "--dt", "-2 fs"], &["--dt", "not above zero"]),
        (&["simulate", "--dt", "two fs"], &["--dt", "begin with a number"]),
        (&["simulate", "--temperature", "300"], &["--temperature", "`300 K`"]),
        (&["simulate", "--friction", "1 ps"], &["--friction", "`1 /ps`"]),
        (&["simulate", "--integrator", "leapfrog"], &["--integrator", "baoab"]),
        (&["simulate", "--steps", "0"], &["--steps", "1 or more"]),
        (&["simulate", "--steps", "10", "--time", "1 ps"], &["cannot be used with"]),
        (&["simulate", "--stepz", "10"], &["--steps"]),
        (&["simulate", "--model", "mm", "--replicas", "1048576"], &["replicas of up to 22 atoms", "fewer"]),
        (&["simulate", "--model", "mm", "--freeze", "0-21"], &["--freeze", "no atom"]),
        (&["simulate", "--model", "mm", "--freeze", "name XX"], &["name XX"]),
        (&["simulate", "--isa", "neon", "--model", "muller-brown"], &[""]),
        (&["simulate", "--model", "mueler-brown"], &["--model", "did you mean"]),
        (&["simulate", "--model", "muller-brown", "--dt", "1 fs"], &["--dt", "reduced units", "bare number"]),
        (&["simulate", &pdb], &["--model is missing", "mm:FILE.xml"]),
        (&["simulate", &pdb, "--model", "lj", "--frames", "a"], &["--frames", "first:last:stride"]),
        (&["simulate", "--resume", o, "--overwrite"], &["cannot be used with"]),
        (&["exchange", "--temperatures", "600 K..300 K"], &["--temperatures", "rise"]),
        (&["exchange", "--temperatures", "300 K"], &["--temperatures", "2 or more"]),
        (&["exchange", "--integrator", "verlet"], &["verlet", "thermostat"]),
    ];
    for (args, parts) in cases {
        if args.contains(&"neon") && cfg!(target_arch = "aarch64") {
            continue;
        }
        let mut args = args.to_vec();
        if !args.contains(&"--resume") {
            args.extend(["--out", o]);
        }
        fail(&args, 2, parts);
        assert!(!out.exists() || fs::read_dir(&out).unwrap().count() == 0, "{args:?} left files behind");
    }
}

#[test]
fn the_embedded_model_runs_and_is_compared() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let printed = succeed(&["simulate", "--replicas", "8", "--steps", "2000", "--out", text(&out)]);
    for part in ["density: JS divergence", "samples / reference", "simulation / reference", "8 chains of 4 ps", "report.html"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["sets"][2]["frames"].as_u64(), Some(8 * 40));
    assert_eq!(report["sets"][2]["broken_frames"].as_u64(), Some(0));
    // Bonds of a simulation this short agree with the reference to a picometre.
    let bonds: Vec<_> = report["rows"].as_array().unwrap().iter().filter(|r| r["key"].as_str().unwrap().starts_with("bond")).collect();
    assert_eq!(bonds.len(), 4);
    for row in bonds {
        let w1 = row["values"][1]["value"].as_f64().unwrap();
        assert!(w1 < 1.5, "{row}");
    }
    let resolved = fs::read_to_string(out.join("config.toml")).unwrap();
    for line in ["model = \"scoremd\"", "dt = \"2 fs\"", "temperature = \"300 K\""] {
        assert!(resolved.contains(line), "{line} is not in {resolved}");
    }
}

#[test]
fn metropolis_corrected_runs_say_how_much_they_accept() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let base = ["simulate", "--model", "muller-brown", "--replicas", "20", "--steps", "300", "--dt", "0.02", "--overwrite", "--out"];
    for (name, more) in [("mala", &[][..]), ("hmc", &["--leapfrog", "5"]), ("ghmc", &["--leapfrog", "2", "--friction", "3"])] {
        let printed = succeed(&[&base[..], &[text(&out), "--integrator", name], more].concat());
        assert!(printed.contains(&format!("% of the trial moves of {name} were accepted")), "{printed}");
    }
    // In parts, it is the same run.
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let ghmc = [
        "simulate",
        "--model",
        "muller-brown",
        "--replicas",
        "7",
        "--integrator",
        "ghmc",
        "--dt",
        "0.02",
        "--log-every",
        "10",
        "--trajectory-every",
        "10",
        "--quiet",
    ];
    succeed(&[&ghmc[..], &["--steps", "200", "--threads", "1", "--out", text(&whole)]].concat());
    succeed(&[&ghmc[..], &["--steps", "110", "--threads", "2", "--out", text(&parts)]].concat());
    succeed(&["simulate", "--resume", text(&parts), "--steps", "200", "--threads", "3"]);
    crate::support::assert_same(&whole, &parts);
    for (args, words) in [
        (&["--integrator", "baoab", "--leapfrog", "3"][..], &["--leapfrog 3", "hmc or ghmc"][..]),
        (&["--integrator", "hmc", "--leapfrog", "0"], &["--leapfrog", "1 or more"]),
        (&["--integrator", "mala", "--dt", "0"], &["--dt", "not above zero"]),
    ] {
        fail(&[&["simulate", "--model", "muller-brown", "--out", text(&out), "--overwrite"][..], args].concat(), 2, words);
    }
}

#[test]
fn config_files_have_the_keys_of_flags() {
    let dir = tempdir().unwrap();
    let config = dir.path().join("run.toml");
    let out = dir.path().join("out");
    fs::write(&config, "model = \"muller-brown\"\nreplicas = 3\nsteps = 40\nseed = 5\nlog-every = 20\n").unwrap();
    succeed(&["simulate", "--config", text(&config), "--steps", "60", "--out", text(&out)]);
    let resolved = fs::read_to_string(out.join("config.toml")).unwrap();
    for line in ["steps = 60", "replicas = 3", "seed = 5", "dt = 0.01", "model = \"muller-brown\""] {
        assert!(resolved.contains(line), "{line} is not in {resolved}");
    }
    // What was written can be read, and repeats the run.
    let again = dir.path().join("again");
    succeed(&["simulate", "--config", text(&out.join("config.toml")), "--out", text(&again)]);
    crate::support::assert_same(&out, &again);
    for (content, parts) in [
        ("replicas = 3\nfrction = \"1 /ps\"\n", vec!["run.toml, line 2", "`frction`; did you mean `friction`?"]),
        ("replicas = \"three\"", vec!["line 1", "replicas"]),
        ("dt = \"2 parsec\"", vec!["line 1", "parsec"]),
        ("[model]\nkind = \"lj\"", vec!["line 1", "model"]),
        ("dt = ", vec!["line 1"]),
        ("\u{0}", vec!["line 1"]),
    ] {
        fs::write(&config, content).unwrap();
        fail(&["simulate", "--config", text(&config)], 2, &parts);
    }
    fail(&["simulate", "--config", "no/such.toml"], 1, &["no/such.toml"]);
    fail(&["simulate", "--config", text(dir.path())], 1, &[text(dir.path())]);
}

#[test]
fn failures_exit_with_1_and_name_the_file() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("out");
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let o = text(&out);
    let pdb = format!("{DATA}/alanine-dipeptide.pdb");
    let model = format!("mm:{DATA}/alanine-dipeptide-vacuum.xml");
    fail(&["simulate", "no/such.pdb", "--model", &model, "--out", o], 1, &["no/such.pdb"]);
    fail(&["simulate", &pdb, "--model", "mm:no/such.xml", "--out", o], 1, &["no/such.xml"]);
    fail(&["simulate", &pdb, "--model", &format!("mm:{}", text(&file)), "--out", o], 1, &["file"]);
    fail(&["simulate", &pdb, "--model", &model, "--frames", "5:9", "--out", o], 1, &["no frame", "--frames"]);
    fail(&["simulate", "--out", text(&file.join("below"))], 1, &["file/below"]);
    assert!(!out.exists());
    #[cfg(target_os = "linux")]
    fail(&["simulate", "--out", "/proc/scorefield"], 1, &["/proc/scorefield"]);
}

#[test]
fn runs_are_not_replaced_by_accident() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["simulate", "--model", "double-well", "--steps", "10", "--log-every", "5", "--trajectory-every", "5", "--out", text(&out)];
    succeed(&args);
    let before = crate::support::contents(&out);
    fail(&args, 2, &["holds a run already", "--resume", "--overwrite"]);
    assert_eq!(crate::support::contents(&out), before);
    succeed(&[&args[..], &["--overwrite", "--seed", "1"]].concat());
    assert_ne!(crate::support::contents(&out), before);
}

#[test]
fn too_large_a_step_is_found() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["simulate", "--model", "mm", "--replicas", "3", "--dt", "12 fs", "--steps", "5000", "--out", text(&out)];
    fail(&args, 1, &["replica", "at step", "of atom", "smaller time step", "last good state"]);
    let good = fs::read_dir(&out).unwrap().filter(|f| f.as_ref().unwrap().file_name().to_str().unwrap().starts_with("last-good")).count();
    assert_eq!(good, 1);
    for policy in ["freeze", "restore"] {
        let args = [
            "simulate",
            "--model",
            "mm",
            "--replicas",
            "3",
            "--dt",
            "3.2 fs",
            "--steps",
            "3000",
            "--on-divergence",
            policy,
            "--overwrite",
            "--out",
            text(&out),
        ];
        let output = run(&args);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", error(&output));
    }
    let args = [
        "simulate",
        "--model",
        "mm",
        "--replicas",
        "3",
        "--dt",
        "12 fs",
        "--steps",
        "5000",
        "--on-divergence",
        "freeze",
        "--overwrite",
        "--out",
        text(&out),
    ];
    let printed = succeed(&args);
    assert!(printed.contains("left every sensible range"), "{printed}");
}

/// `ulimit -f` makes writes fail as on a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_keeps_what_was_written() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let script = format!(
        "trap '' XFSZ; ulimit -f 150; exec {} simulate --model mm --replicas 4 --steps 20000 --log-every 10 --trajectory-every 10 --checkpoint-every 100 --out {}",
        env!("CARGO_BIN_EXE_scorefield"),
        text(&out)
    );
    let output = finish(Command::new("bash").args(["-c", &script]));
    assert_eq!(output.status.code(), Some(1), "{}", error(&output));
    assert!(error(&output).contains(text(&out)) && error(&output).contains("too large"), "{}", error(&output));
    // With room again, the run goes on from its last checkpoint.
    succeed(&["simulate", "--resume", text(&out), "--steps", "2000"]);
}

#[test]
fn summaries_are_json() {
    let dir = tempdir().unwrap();
    let (out, file) = (dir.path().join("run"), dir.path().join("summary.json"));
    let args = ["exchange", "--count", "2", "--copies", "2", "--steps", "400", "--log-every", "100", "--threads", "2"];
    let printed = succeed(&[&args[..], &["--out", text(&out), "--summary", text(&file)]].concat());
    assert!(printed.contains("accepted") && printed.contains("steps/s"), "{printed}");
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(out.join("summary.json")).unwrap());
    for (key, value) in [("replicas", 4.into()), ("steps", 400.into()), ("threads", 2.into()), ("dtype", serde_json::json!("f32"))] {
        assert_eq!(summary[key], value, "{key}");
    }
    assert!(summary["steps_per_second"].as_f64().unwrap() > 0.0 && summary["ns_per_day"].as_f64().unwrap() > 0.0);
    assert_eq!(summary["averages"].as_array().unwrap().len(), 2);
    assert_eq!(summary["exchange"]["pairs"][0]["tried"], 4);
    for name in ["log-300K.csv", "log-600K.csv", "trajectory-300K.dcd", "trajectory-600K.dcd", "structure.pdb"] {
        assert!(out.join(name).exists(), "{name}");
    }
}

#[test]
fn nobody_reads_the_summary() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let mut child = scorefield(&["simulate", "--model", "double-well", "--steps", "1000", "--out", text(&out)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && !error(&output).contains("panicked"), "{}", error(&output));
}
