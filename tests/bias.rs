//! Biased runs against quadrature, and against OpenMM's metadynamics.

use crate::support::{assert_same, fail, succeed};
use std::path::Path;
use std::process::Command;
use tempfile::tempdir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Columns of a CSV file; what is empty is NaN.
fn table(path: &Path) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|l| l.split(',').map(|w| w.parse().unwrap_or(f64::NAN)).collect()).collect()
}

/// Root mean square difference of `column` and `exact(s)` over rows that `keep`, after the best shift.
fn deviation(rows: &[Vec<f64>], column: usize, keep: impl Fn(f64) -> bool, exact: impl Fn(f64) -> f64) -> f64 {
    let differences: Vec<f64> = rows.iter().filter(|r| keep(r[0])).map(|r| r[column] - exact(r[0])).collect();
    assert!(differences.len() > 20 && differences.iter().all(|d| d.is_finite()), "{rows:?}");
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / differences.len() as f64).sqrt()
}

/// `h (x² − 1)² + t x` with h = 6 and t = 1 at kT = 1: the barrier is 6 kT, the wells differ by 2 kT.
fn well(x: f64) -> f64 {
    6.0 * (x * x - 1.0).powi(2) + x
}

const WELL: [&str; 12] = [
    "simulate",
    "--model",
    "double-well:barrier=6,tilt=1",
    "--temperature",
    "1",
    "--dt",
    "0.02",
    "--friction",
    "2",
    "--quiet",
    "--cv",
    "x=x 1",
];

#[test]
fn metadynamics_finds_the_double_well() {
    let dir = tempdir().unwrap();
    for (name, shared, steps) in [("shared", "true", "60000"), ("each", "false", "200000")] {
        let out = dir.path().join(name);
        let bias = format!("metadynamics:cv=x,height=0.3,width=0.15,every=100,factor=8,from=-2,to=2,shared={shared}");
        let mut args = WELL.to_vec();
        args.extend([
            "--bias",
            &bias,
            "--replicas",
            "16",
            "--steps",
            steps,
            "--colvar-every",
            "50",
            "--log-every",
            "0",
            "--out",
            text(&out),
        ]);
        args.extend(["--trajectory-every", "0"]);
        succeed(&args);
        let rows = table(&out.join("bias-free-energy.csv"));
        let near = |x: f64| well(x) < 7.0;
        let (hills, reweighted) = (deviation(&rows, 1, near, well), deviation(&rows, 3, near, well));
        println!("{name}: hills {hills:.3} kT, reweighted {reweighted:.3} kT");
        assert!(hills < 0.25, "{name}: hills give the potential to {hills} kT only");
        assert!(reweighted < 0.25, "{name}: weights give the potential to {reweighted} kT only");
        // Both are what is in the tables of hills: the heights fall.
        let hills = table(&out.join("hills.csv"));
        assert!(hills[0][3] == 0.3 && hills[hills.len() - 1][3] < 0.15, "{:?}", hills[hills.len() - 1]);
    }
}

#[test]
fn umbrella_windows_find_the_double_well() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("umbrella");
    let mut args = WELL.to_vec();
    let bias = "umbrella:cv=x,from=-1.6,to=1.6,windows=17,stiffness=60";
    args.extend([
        "--bias",
        bias,
        "--steps",
        "60000",
        "--colvar-every",
        "10",
        "--log-every",
        "0",
        "--trajectory-every",
        "0",
        "--out",
        text(&out),
    ]);
    succeed(&args);
    let rows = table(&out.join("bias-free-energy.csv"));
    let off = deviation(&rows, 1, |x| x.abs() < 1.4, well);
    println!("umbrella: {off:.3} kT");
    assert!(off < 0.1, "windows give the potential to {off} kT only");
    // Window r is at its place.
    let colvar = table(&out.join("colvar.csv"));
    for window in 0..17 {
        let values: Vec<f64> = colvar.iter().filter(|r| r[2] == window as f64 && r[0] > 0.0).map(|r| r[3]).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - (-1.6 + 0.2 * window as f64)).abs() < 0.35, "window {window} is at {mean}");
    }
}

/// Two particles on springs of their own, their distance on another: `p(r) ∝ r² exp(−(k r²/4 + K (r − r₀)²/2)/kT)`.
#[test]
fn restrained_distance_is_as_by_quadrature() {
    let dir = tempdir().unwrap();
    let structure = dir.path().join("pair.xyz");
    std::fs::write(&structure, "2\n\nAr 0 0 0\nAr 1 0 0\n").unwrap();
    let out = dir.path().join("run");
    let args = [
        "simulate",
        text(&structure),
        "--model",
        "harmonic:k=2",
        "--temperature",
        "1",
        "--dt",
        "0.1",
        "--friction",
        "1",
        "--quiet",
        "--cv",
        "d=distance 1 2",
        "--bias",
        "harmonic:cv=d,at=2,stiffness=5",
        "--replicas",
        "64",
        "--steps",
        "40000",
        "--colvar-every",
        "50",
        "--log-every",
        "0",
        "--trajectory-every",
        "0",
        "--out",
        text(&out),
    ];
    succeed(&args);
    let density = |r: f64| r * r * (-(2.0 * r * r / 4.0 + 2.5 * (r - 2.0).powi(2))).exp();
    let sum = |f: &dyn Fn(f64) -> f64| (1..10_000).map(|i| f(i as f64 * 1e-3) * density(i as f64 * 1e-3)).sum::<f64>();
    let exact = sum(&|r| r) / sum(&|_| 1.0);
    let colvar = table(&out.join("colvar.csv"));
    let means: Vec<f64> = (0..64)
        .map(|b| {
            let of: Vec<f64> = colvar.iter().filter(|r| r[2] == b as f64 && r[0] >= 2000.0).map(|r| r[3]).collect();
            of.iter().sum::<f64>() / of.len() as f64
        })
        .collect();
    let mean = means.iter().sum::<f64>() / 64.0;
    let error = (means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / (64.0 * 63.0)).sqrt();
    println!("distance {mean:.4} ± {error:.4}, exactly {exact:.4}");
    assert!((mean - exact).abs() < 4.0 * error && error < 0.01, "{mean} ± {error}, exactly {exact}");
    // The last column but one is the bias.
    let row = &colvar[100];
    assert!((row[4] - 2.5 * (row[3] - 2.0).powi(2)).abs() < 1e-9);
}

#[test]
fn biased_runs_resume_bitwise() {
    let dir = tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let base = [
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
        "--quiet",
        "--cv",
        "phi=dihedral 5 7 9 15",
        "--cv",
        "psi=dihedral 7 9 15 17",
        "--cv",
        "d=distance 1 22",
        "--bias",
        "metadynamics:cv=phi;psi,height=1.2 kJ/mol,width=20 deg,every=20,factor=6",
        "--bias",
        "harmonic:cv=d,at=10 A,stiffness=100 kJ/mol/nm^2",
    ];
    let run = |out: &Path, steps: &str, threads: &str| {
        let mut args = base.to_vec();
        args.extend(["--steps", steps, "--threads", threads, "--out", text(out)]);
        succeed(&args);
    };
    run(&whole, "400", "1");
    run(&parts, "130", "3");
    succeed(&["simulate", "--resume", text(&parts), "--steps", "270", "--threads", "2"]);
    succeed(&["simulate", "--resume", text(&parts), "--steps", "400"]);
    assert_same(&whole, &parts);
    assert!(whole.join("bias-free-energy.csv").exists() && !whole.join("free-energy.csv").exists());
    assert_eq!(table(&whole.join("hills.csv")).len(), 5 * 20);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let base = ["simulate", "--out", text(&out), "--model", "mm", "--cv", "phi=dihedral 5 7 9 15", "--bias"];
    let hills = "metadynamics:cv=phi,height=1 kJ/mol,width=20 deg,every=50";
    let with = |more: &[&'static str]| -> Vec<&str> { base.iter().copied().chain(more.iter().copied()).collect() };
    fail(&with(&["harmonic:cv=psi,at=0 deg,stiffness=1 kJ/mol"]), 2, &["--bias", "psi", "known are phi"]);
    fail(&with(&[hills, "--temperature", "0 K"]), 2, &["--temperature above zero"]);
    fail(&with(&[hills, "--device", "emulated"]), 2, &["--device cpu"]);
    fail(&with(&["umbrella:cv=phi,from=-180 deg,to=180 deg,windows=12,stiffness=9 kJ/mol", "--replicas", "5"]), 2, &["--replicas 12"]);
    let shared = "metadynamics:cv=phi,height=1 kJ/mol,width=20 deg,every=50,shared=true";
    fail(&with(&[shared, "--replicas", "4", "--replica-range", "0..2"]), 2, &["must run together"]);
    let mut exchange = with(&[hills]);
    exchange[0] = "exchange";
    fail(&exchange, 2, &["one bias"]);
    assert!(!out.exists());
    fail(
        &["simulate", "--model", "mm", "--cv", "d=distance 1 99", "--bias", "harmonic:cv=d,at=1 A,stiffness=1 eV/A^2", "--out", text(&out)],
        1,
        &["atom 99", "22"],
    );
}

/// The same hills make the same surface as `openmm.app.Metadynamics`, and both engines find the same free energy of positive φ of
/// alanine dipeptide in vacuum.
#[test]
fn alanine_dipeptide_as_with_openmm() {
    let Some(peers) = std::env::var_os("SCOREFIELD_PEERS") else {
        eprintln!("skipped: SCOREFIELD_PEERS is not set (see benches/peers/README.md)");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = root.join("data/alanine-dipeptide");
    let (pdb, xml) = (data.join("alanine-dipeptide.pdb"), data.join("alanine-dipeptide-vacuum.xml"));
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let model = format!("mm:{}", text(&xml));
    let bias = "metadynamics:cv=phi,height=1.2 kJ/mol,width=20 deg,every=200,factor=6,shared=true";
    succeed(&[
        "simulate",
        text(&pdb),
        "--model",
        &model,
        "--quiet",
        "--cv",
        "phi=dihedral 5 7 9 15",
        "--bias",
        bias,
        "--replicas",
        "16",
        "--steps",
        "150000",
        "--dt",
        "1 fs",
        "--temperature",
        "300 K",
        "--friction",
        "5 /ps",
        "--colvar-every",
        "100",
        "--log-every",
        "0",
        "--trajectory-every",
        "0",
        "--out",
        text(&out),
    ]);
    let script = root.join("tests/openmm_metadynamics.py");
    let said = Command::new(Path::new(&peers).join("bin/python"))
        .args([&script, &pdb, &xml, &out.join("hills.csv"), &out.join("bias-free-energy.csv")])
        .output()
        .unwrap();
    let message = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    println!("{message}");
    assert!(said.status.success(), "{message}");
}
