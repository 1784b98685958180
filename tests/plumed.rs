//! PLUMED by a stand-in for its kernel, which logs what it is told and adds a spring: the order of commands, units, steps, virial.
//! Needs a C compiler; without one these tests skip and say so.

use crate::support::{error, fail, finish, scorefield, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{TempDir, tempdir};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Mock {
    directory: TempDir,
    kernel: PathBuf,
}

impl Mock {
    fn new() -> Option<Self> {
        if !Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success()) {
            eprintln!("skipped: there is no `cc`");
            return None;
        }
        let directory = tempdir().unwrap();
        let kernel = directory.path().join("libplumedKernel.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plumed_kernel.c");
        let out = Command::new("cc")
            .args(["-std=c99", "-O1", "-shared", "-fPIC"])
            .arg(source)
            .arg("-o")
            .arg(&kernel)
            .arg("-lm")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", error(&out));
        std::fs::write(directory.path().join("plumed.dat"), "SPRING K=400 R0=0.5 FILE=COLVAR.{replica}\n").unwrap();
        Some(Mock { directory, kernel })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the program with the kernel; what the kernel logged comes back.
    fn run(&self, args: &[&str], log: &str) -> Vec<String> {
        let output = finish(scorefield(args).env("PLUMED_KERNEL", &self.kernel).env("MOCK_PLUMED_LOG", self.path(log)));
        assert!(output.status.success(), "{args:?}: {}", error(&output));
        std::fs::read_to_string(self.path(log)).unwrap().lines().map(str::to_owned).collect()
    }
}

const PEPTIDE: [&str; 11] =
    ["simulate", "--model", "mm", "--replicas", "3", "--log-every", "10", "--trajectory-every", "10", "--dtype", "f64"];

fn of(log: &[String], id: usize) -> Vec<String> {
    log.iter().filter_map(|l| l.strip_prefix(&format!("{id} ")).map(str::to_owned)).collect()
}

#[test]
fn commands_come_in_order_and_steps_once() {
    let Some(mock) = Mock::new() else { return };
    let (input, out) = (mock.path("plumed.dat"), mock.path("run"));
    let mut args = PEPTIDE.to_vec();
    args.extend(["--plumed", text(&input), "--steps", "20", "--dt", "2 fs", "--threads", "2", "--quiet", "--out", text(&out)]);
    let log = mock.run(&args, "log");
    let mut replicas = Vec::new();
    for id in 0..3 {
        let lines = of(&log, id);
        let number = lines.iter().find_map(|l| l.strip_prefix("setPlumedDat COLVAR.")).unwrap().to_owned();
        let setup = [
            "getApiVersion",
            "setRealPrecision 8",
            "setMDEnergyUnits 1",
            "setMDLengthUnits 1",
            "setMDTimeUnits 1",
            "setMDMassUnits 1",
            "setMDChargeUnits 1",
            &format!("setPlumedDat COLVAR.{number}"),
            "setNatoms 22",
            "setMDEngine",
            "setLogFile",
            "setTimestep 0.002",
            "setKbT 2.49434",
            "setRestart 0",
            "init",
        ];
        assert_eq!(lines[..setup.len()], setup);
        replicas.push(number);
        // One update a step, whatever was logged in between.
        let updated: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("performCalc ")).collect();
        let mass = updated[0].split(' ').nth(1).unwrap();
        assert_eq!(updated, (0..=20).map(|s| format!("{s} {mass}")).collect::<Vec<_>>());
        let again = lines.iter().filter(|l| l.starts_with("performCalcNoUpdate")).count();
        assert!(again >= 3, "energies for the log need evaluations of their own");
        assert_eq!(lines.last().unwrap(), "finalize 21");
    }
    replicas.sort();
    assert_eq!(replicas, ["0", "1", "2"]);
    assert!(out.join("plumed.1.dat").exists());
}

#[test]
fn a_spring_from_plumed_is_our_spring() {
    let Some(mock) = Mock::new() else { return };
    let (input, theirs, ours) = (mock.path("plumed.dat"), mock.path("theirs"), mock.path("ours"));
    let common = ["--steps", "50", "--cv", "d=distance 1 2", "--quiet"];
    let with = |more: &[&'static str], out: &Path| -> Vec<String> {
        PEPTIDE.iter().chain(&common).chain(more).map(|s| (*s).to_owned()).chain(["--out".to_owned(), text(out).to_owned()]).collect()
    };
    let mut args = with(&[], &theirs);
    args.extend(["--plumed".to_owned(), text(&input).to_owned()]);
    mock.run(&args.iter().map(String::as_str).collect::<Vec<_>>(), "log");
    let args = with(&["--bias", "harmonic:cv=d,at=0.5 nm,stiffness=400 kJ/mol/nm^2"], &ours);
    succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let column = |path: &Path| -> Vec<(f64, f64)> {
        let number = |l: &str, k: usize| -> f64 { l.split(',').nth(k).unwrap().parse().unwrap() };
        let log = std::fs::read_to_string(path.join("log.csv")).unwrap();
        let colvar = std::fs::read_to_string(path.join("colvar.csv")).unwrap();
        log.lines().zip(colvar.lines()).skip(1).map(|(l, c)| (number(l, 3), number(c, 3))).collect()
    };
    let (a, b) = (column(&theirs), column(&ours));
    assert_eq!(a.len(), 18);
    // Trajectories of one spring in different arithmetic part slowly; the spring is stretched by much more than that.
    for ((e, d), (f, g)) in a.iter().zip(&b) {
        assert!((e - f).abs() < 2e-4 && (d - g).abs() < 1e-9, "{a:?}\n{b:?}");
    }
    assert!(a.iter().any(|(_, d)| (d - a[0].1).abs() > 1e-3));
}

#[test]
fn resumed_runs_go_on_with_the_steps() {
    let Some(mock) = Mock::new() else { return };
    let (input, out) = (mock.path("plumed.dat"), mock.path("run"));
    let mut args = PEPTIDE.to_vec();
    args.extend(["--plumed", text(&input), "--steps", "10", "--quiet", "--out", text(&out)]);
    mock.run(&args, "first");
    let log = mock.run(&["simulate", "--resume", text(&out), "--steps", "15"], "second");
    for id in 0..3 {
        let lines = of(&log, id);
        assert!(lines.contains(&"setRestart 1".to_owned()));
        let steps: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("performCalc ")?.split(' ').next()).collect();
        assert_eq!(steps, ["10", "11", "12", "13", "14", "15"]);
    }
}

#[test]
fn virial_and_energy_are_the_other_way_round_and_back() {
    use scorefield::bridge::{Plumed, PlumedSettings};
    use scorefield_integrators::{ForceProvider, UnitSystem};
    use scorefield_models::testing::{Sample, check_forces, check_virial};
    let Some(mock) = Mock::new() else { return };
    // Settings of this process, which no other test reads: they run the program.
    // SAFETY: other threads of this test binary start programs with environments of their own and read none of these.
    unsafe {
        std::env::set_var("PLUMED_KERNEL", &mock.kernel);
        std::env::set_var("MOCK_PLUMED_LOG", mock.path("log"));
    }
    let built = scorefield_models::parse_spec("lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=6 A").unwrap().build().unwrap();
    let sample = Sample::of_toy(&built.toy.unwrap()).displaced(0.01, 3);
    let settings = PlumedSettings {
        input: mock.path("plumed.dat"),
        directory: mock.directory.path().to_owned(),
        dt: 0.001,
        kt: 2.5,
        units: UnitSystem::Si,
        replicas: 1,
        begin: 0,
    };
    let mut biased = Plumed::new(built.provider, settings).unwrap();
    assert!(biased.capabilities().virial);
    check_forces(&mut biased, &sample, 1e-6);
    check_virial(&mut biased, &sample, 1e-6);
}

#[test]
fn what_cannot_be_is_said() {
    let Some(mock) = Mock::new() else { return };
    let (input, out) = (mock.path("plumed.dat"), mock.path("run"));
    let mut args = PEPTIDE.to_vec();
    args.extend(["--plumed", text(&input), "--steps", "10", "--out", text(&out)]);
    let without = finish(scorefield(&args).env("PLUMED_KERNEL", "/nowhere/libplumedKernel.so"));
    assert!(!without.status.success() && error(&without).contains("PLUMED_KERNEL"), "{}", error(&without));
    let mut hmc = args.clone();
    hmc.extend(["--integrator", "hmc"]);
    fail(&hmc, 2, &["--plumed", "Metropolis"]);
    let mut device = args.clone();
    device.extend(["--device", "emulated"]);
    fail(&device, 2, &["--device cpu"]);
    std::fs::write(&input, "SPRING K=400 R0=0.5 FILE=COLVAR\n").unwrap();
    let other = mock.path("other");
    args.extend(["--out", text(&other)]);
    let shared = finish(scorefield(&args).env("PLUMED_KERNEL", &mock.kernel).env("MOCK_PLUMED_LOG", mock.path("log")));
    assert!(!shared.status.success() && error(&shared).contains("FILE=COLVAR.{replica}"), "{}", error(&shared));
}
