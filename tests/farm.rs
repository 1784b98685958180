//! Runs whose forces come from other processes: the same bytes as in one process, whoever dies on the way.

use crate::support::{assert_same, error, finish, scorefield, succeed};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::{TempDir, tempdir};

const MODEL: &str = "lj:sigma=3.405 A,epsilon=0.0103 eV";

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seven argon atoms in a directory of their own, periodic or not.
fn cluster(periodic: bool) -> (TempDir, String) {
    let directory = tempdir().unwrap();
    let comment = if periodic { "Lattice=\"21 0 0 0.5 22 0 0 0 23\" Properties=species:S:1:pos:R:3 pbc=\"T T T\"" } else { "" };
    let atoms: String = (0..7)
        .map(|i| {
            let (a, h) = (f64::from(i) * 1.2566, if i < 5 { 0.0 } else { 2.6 });
            let r = if i < 5 { 3.25 } else { 0.0 };
            format!("Ar {:.6} {:.6} {:.6}\n", 8.0 + r * a.cos(), 8.0 + r * a.sin(), 8.0 + h * if i == 5 { -0.8 } else { 0.8 })
        })
        .collect();
    let path = directory.path().join("cluster.xyz");
    std::fs::write(&path, format!("7\n{comment}\n{atoms}")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

fn drive(directory: &Path, structure: &str, model: &str) -> Process {
    let prefix = format!("{}/", directory.display());
    let arguments = ["drive", "--model", model, "--structure", structure, "--prefix", &prefix, "--unix", "s", "--quiet"];
    Process(scorefield(&arguments).stderr(Stdio::null()).spawn().unwrap())
}

fn run<'a>(structure: &'a str, model: &'a str, out: &'a Path, steps: &'a str) -> Vec<&'a str> {
    let common = ["--replicas", "6", "--dt", "4 fs", "--temperature", "20 K", "--log-every", "25", "--trajectory-every", "50"];
    let out = out.to_str().unwrap();
    [&["simulate", structure, "--model", model, "--steps", steps, "--dtype", "f64", "--threads", "2", "--out", out][..], &common].concat()
}

#[test]
fn a_run_on_drivers_that_die_writes_the_bytes_of_one_process() {
    let (directory, structure) = cluster(false);
    let place = |name: &str| directory.path().join(name);
    const STEPS: &str = "6000";
    succeed(&run(&structure, MODEL, &place("alone"), STEPS));
    let remote = format!("ipi:unix=s,prefix={}/,clients=2,wait=20 s", directory.path().display());

    // Undisturbed, then with two of three drivers killed on the way.
    for deaths in [0, 2] {
        let out = place(&format!("farm-{deaths}"));
        let mut server =
            Process(scorefield(&run(&structure, &remote, &out, STEPS)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let mut drivers = vec![drive(directory.path(), &structure, MODEL), drive(directory.path(), &structure, MODEL)];
        let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        if deaths > 0 {
            for part in ["(2 in all)", "lost client", "(2 in all)", "lost client"] {
                let line = lines.by_ref().map(|l| l.unwrap()).find(|l| l.contains(part));
                seen += &line.unwrap_or_else(|| panic!("{part} did not come; the run was too short: {seen}"));
                if part.starts_with('(') {
                    std::thread::sleep(Duration::from_millis(50));
                    drivers.remove(0).0.kill().unwrap();
                } else if drivers.len() < 2 {
                    drivers.push(drive(directory.path(), &structure, MODEL));
                }
            }
        }
        let mut rest = String::new();
        lines.for_each(|l| rest += &(l.unwrap() + "\n"));
        assert!(server.0.wait().unwrap().success(), "{rest}");
        assert_same(&place("alone"), &out);
        for mut driver in drivers.drain(..) {
            assert!(driver.0.wait().unwrap().success());
        }
        assert_eq!(seen.matches("lost client").count(), deaths);
    }
}

#[test]
fn a_run_on_drivers_goes_on_from_its_checkpoint() {
    let (directory, structure) = cluster(false);
    let place = |name: &str| directory.path().join(name);
    succeed(&run(&structure, MODEL, &place("alone"), "300"));
    let remote = format!("ipi:unix=s,prefix={}/,wait=20 s", directory.path().display());
    let parts = place("parts");
    {
        let _driver = drive(directory.path(), &structure, MODEL);
        succeed(&run(&structure, &remote, &parts, "130"));
    }
    let _driver = drive(directory.path(), &structure, MODEL);
    succeed(&["simulate", "--resume", parts.to_str().unwrap(), "--steps", "300"]);
    assert_same(&place("alone"), &parts);
}

#[test]
fn structures_are_evaluated_and_relaxed_on_drivers() {
    for (periodic, model) in [(false, MODEL), (true, "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A")] {
        let (directory, structure) = cluster(periodic);
        let remote = format!("ipi:unix=s,prefix={}/,wait=20 s", directory.path().display());
        let json = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let numbers = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["frames"].clone()
        };
        for (name, model) in [("here.json", model), ("there.json", remote.as_str())] {
            let _driver = drive(directory.path(), &structure, self::model_of(model, periodic));
            succeed(&["evaluate", &structure, "--model", model, "--dtype", "f64", "--json", &json(name), "--quiet"]);
        }
        assert_eq!(numbers(&json("here.json")), numbers(&json("there.json")));
        assert!(numbers(&json("here.json"))[0]["energy"].as_f64().unwrap() < -1.0);
    }
    let (directory, structure) = cluster(false);
    let remote = format!("ipi:unix=s,prefix={}/,wait=20 s", directory.path().display());
    let out = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for (name, model) in [("here.xyz", MODEL), ("there.xyz", remote.as_str())] {
        let _driver = drive(directory.path(), &structure, MODEL);
        succeed(&["relax", &structure, "--model", model, "--dtype", "f64", "--out", &out(name), "--quiet"]);
    }
    let bytes = |name: &str| std::fs::read(out(name)).unwrap();
    assert_eq!(bytes("here.xyz"), bytes("there.xyz"));
}

fn model_of(model: &str, periodic: bool) -> &str {
    match (model.starts_with("ipi:"), periodic) {
        (false, _) => model,
        (true, false) => MODEL,
        (true, true) => "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A",
    }
}

#[test]
fn without_clients_a_run_ends_and_says_so() {
    let (directory, structure) = cluster(false);
    let remote = format!("ipi:unix=s,prefix={}/,wait=0.3 s", directory.path().display());
    let out = finish(&mut scorefield(&run(&structure, &remote, &directory.path().join("out"), "10")));
    assert_eq!(out.status.code(), Some(1));
    assert!(error(&out).contains("0 of 1 clients at UNIX socket"), "{}", error(&out));
    // A driver whose structure is of other atoms says so itself, and the run says which client it lost.
    let other = directory.path().join("other.xyz");
    std::fs::write(&other, "3\n\nAr 0 0 0\nNe 4 0 0\nAr 8 0 0\n").unwrap();
    let remote = remote.replace("wait=0.3 s", "wait=2 s");
    let _driver = drive(directory.path(), other.to_str().unwrap(), MODEL);
    let out = finish(&mut scorefield(&run(&structure, &remote, &directory.path().join("out2"), "10")));
    assert!(error(&out).contains("client 1 (process") && error(&out).contains("hung up"), "{}", error(&out));
}

/// The script for Slurm, on one machine without it: as it is submitted, and submitted again.
#[test]
fn the_script_for_clusters_runs_a_farm_and_goes_on_with_it() {
    let (directory, structure) = cluster(false);
    let place = |name: &str| directory.path().join(name);
    succeed(&run(&structure, MODEL, &place("alone"), "200"));
    for steps in ["120", "200"] {
        let mut script = std::process::Command::new("bash");
        script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/farm.slurm")).current_dir(directory.path()).envs([
            ("SCOREFIELD", env!("CARGO_BIN_EXE_scorefield")),
            ("FARM_STRUCTURE", &structure),
            ("FARM_MODEL", MODEL),
            ("FARM_DRIVERS", "2"),
            ("FARM_REPLICAS", "6"),
            ("FARM_BATCH", "3"),
            ("FARM_STEPS", steps),
            ("FARM_EXTRA", "--dt=4fs --temperature=20K --log-every=25 --trajectory-every=50 --dtype=f64"),
        ]);
        let output = finish(&mut script);
        assert!(output.status.success(), "{}", error(&output));
    }
    assert_same(&place("alone"), &place("farm"));
}
