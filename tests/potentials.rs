//! Potentials from outside: one is trained on energies and forces and gives them back; the trained one of ethanol is a force field.

use super::support::{fail, scorefield, succeed};
use scorefield_models::painn::PainnModel;
use std::fmt::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const ETHANOL: &str = "data/models/ethanol/painn-small.safetensors";

const RECIPE: &str = "\
[network]\nfeatures = 16\nlayers = 2\nradial = 12\ncutoff = 4.0\nhead = \"energy\"\nhead-layers = 2\n\
[potential]\nenergy-weight = 0.1\noffset = \"element\"\ntest = \"test.xyz\"\n\
[data]\ntrajectory = \"train.xyz\"\n\
[train]\nsteps = 500\nbatch = 8\nlearning-rate = 5e-3\nheld-out = 8\nema = 0.98\nseed = 2\n\
[output]\nlog-every = 50\nvalidate-every = 100\ncheckpoint-every = 50\n";

/// Water-like molecules on springs, with what their atoms have by themselves; energies in `unit` of an eV.
fn molecules(count: usize, seed: u64, unit: f64) -> String {
    let mut random = seed;
    let mut number = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as f64 / 2f64.powi(31) - 0.5
    };
    let mut text = String::new();
    for s in 0..count {
        // Also with one hydrogen less, so that elements can be told apart.
        let n = if s % 3 == 2 { 2 } else { 3 };
        let rest = [[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]];
        let x = rest.map(|r| r.map(|x| x + 0.3 * number()));
        let mut forces = [[0.0; 3]; 3];
        let mut energy = -20.0 - 3.0 * (n as f64 - 1.0);
        for (i, j, length) in [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.6)].into_iter().filter(|p| p.1 < n) {
            let r = [0, 1, 2].map(|k| x[j][k] - x[i][k]);
            let d = r.iter().map(|r| r * r).sum::<f64>().sqrt();
            energy += 2.0 * (d - length).powi(2);
            for k in 0..3 {
                let f = -4.0 * (d - length) * r[k] / d;
                forces[j][k] += f;
                forces[i][k] -= f;
            }
        }
        writeln!(text, "{n}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={} pbc=\"F F F\"", energy / unit).unwrap();
        for i in 0..n {
            let (r, f) = (x[i], forces[i].map(|f| f / unit));
            writeln!(text, "{} {} {} {} {} {} {}", ["O", "H", "H"][i], r[0], r[1], r[2], f[0], f[1], f[2]).unwrap();
        }
    }
    text
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn json(path: String) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_potential_is_trained_and_gives_its_labels_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    std::fs::write(at("train.xyz"), molecules(60, 1, 1.0)).unwrap();
    std::fs::write(at("test.xyz"), molecules(20, 2, 1.0)).unwrap();
    std::fs::write(at("recipe.toml"), RECIPE).unwrap();
    let printed = succeed(&["train", &at("recipe.toml"), "-o", &at("whole"), "--quiet", "--threads", "1"]);
    assert!(printed.contains("500 steps; held out: ") && printed.contains("; test: "), "{printed}");
    let summary = json(at("whole/summary.json"));
    let of = |set: &str, key: &str| summary[set][key].as_f64().unwrap();
    assert_eq!((of("test", "structures"), of("validation", "structures")), (20.0, 8.0));
    // Without training: energies spread over 60 meV, forces over 400 meV/Å.
    assert!(of("test", "energy_mae_mev") < 10.0 && of("test", "force_mae_mev_per_angstrom") < 80.0, "{summary}");
    let rows = std::fs::read_to_string(at("whole/metrics.jsonl")).unwrap();
    assert!(rows.lines().count() == 10 && rows.matches("\"validation_loss\":null").count() == 5, "{rows}");

    // Killed, gone on with, on other threads: the same parameters.
    let arguments = ["train", &at("recipe.toml"), "-o", &at("parts"), "--quiet", "--threads", "3"];
    let mut child = scorefield(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while !folder.path().join("parts/state.safetensors").exists() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    child.wait().unwrap();
    succeed(&["train", "--resume", &at("parts"), "--quiet", "--threads", "2"]);
    let model = |run: &str| PainnModel::read(&folder.path().join(run).join("model.safetensors")).unwrap();
    assert_eq!(model("whole").values, model("parts").values);

    // The file is a force field: its energies are those of the labels, whatever atoms have by themselves.
    let weights = at("whole/model.safetensors");
    let out = json_of(&succeed(&["evaluate", &at("test.xyz"), "--model", &weights, "--json", "-", "--quiet"]));
    let labels = std::fs::read_to_string(at("test.xyz")).unwrap();
    let labels = labels.lines().filter_map(|l| l.split("energy=").nth(1)?.split(' ').next()?.parse::<f64>().ok());
    let energies = out["frames"].as_array().unwrap().iter().map(|f| f["energy"].as_f64().unwrap() / 96.485_332);
    let misses: Vec<f64> = energies.zip(labels).map(|(a, b)| (a - b).abs()).collect();
    assert!(misses.len() == 20 && misses.iter().sum::<f64>() / 20.0 < 0.01, "{misses:?}");

    // Trained on from there, at a rate that changes nothing: the same network, in the same unit.
    let start = "steps = 2\nstart-from = \"whole/model.safetensors\"\nfinal-learning-rate = 0.0\n";
    std::fs::write(at("start.toml"), RECIPE.replace("steps = 500\n", start).replace("5e-3", "1e-12")).unwrap();
    succeed(&["train", &at("start.toml"), "-o", &at("start"), "--quiet"]);
    // Rounding of the average aside.
    let most = model("start").values.iter().zip(model("whole").values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(most < 1e-6 && model("start").output == model("whole").output, "{most}");
    std::fs::write(at("start.toml"), RECIPE.replace("steps = 500\n", start).replace("features = 16", "features = 8")).unwrap();
    fail(&["train", &at("start.toml"), "-o", &at("no")], 2, &["start-from", "another network"]);

    // Labels in another unit are the same potential.
    std::fs::write(at("train.xyz"), molecules(60, 1, 1.0 / 23.060_548)).unwrap();
    std::fs::write(at("test.xyz"), molecules(20, 2, 1.0 / 23.060_548)).unwrap();
    std::fs::write(at("other.toml"), RECIPE.replace("[potential]", "[potential]\nenergy-unit = \"kcal/mol\"")).unwrap();
    succeed(&["train", &at("other.toml"), "-o", &at("other"), "--quiet"]);
    let other = json(at("other/summary.json"));
    let unit = |s: &serde_json::Value| s["unit_kj_per_mol"].as_f64().unwrap();
    assert!((unit(&other) / unit(&summary) - 1.0).abs() < 1e-6);

    std::fs::write(at("train.xyz"), "2\nplain\nO 0 0 0\nH 1 0 0\n").unwrap();
    fail(&["train", &at("recipe.toml"), "-o", &at("no")], 2, &["train.xyz: frame 0", "energies and forces"]);
    std::fs::write(at("train.xyz"), molecules(20, 1, 1.0).replace("pbc=\"F F F\"", "Lattice=\"9 0 0 0 9 0 0 0 9\"")).unwrap();
    fail(&["train", &at("recipe.toml"), "-o", &at("no")], 2, &["periodic"]);
    std::fs::write(at("train.xyz"), molecules(20, 1, 1.0)).unwrap();
    for (from, to, code, part) in [
        ("head = \"energy\"", "head = \"direct\"", 1, "head = direct is refused"),
        ("[potential]", "[noise]\nmean = 0.0\n[potential]", 2, "pseudo-force"),
        ("held-out = 8", "held-out = 20", 2, "held-out = 20"),
        ("energy-weight = 0.1", "energy-weight = -1.0", 1, "energy-weight = -1 is refused"),
        ("energy-weight = 0.1", "energy-unit = \"parsec\"", 2, "energy-unit"),
    ] {
        std::fs::write(at("wrong.toml"), RECIPE.replace(from, to)).unwrap();
        fail(&["train", &at("wrong.toml"), "-o", &at("no")], code, &[part]);
    }
}

fn json_of(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// The committed potential relaxes ethanol, gives forces in a periodic box, and conserves energy.
#[test]
fn the_trained_potential_of_ethanol_conserves_energy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let start = "9\nethanol\nC -1.19 -0.25 0\nC 0 0.56 0\nO 1.19 -0.2 0\nH -2.1 0.37 0\nH -1.21 -0.89 0.89\nH -1.21 -0.89 -0.89\n\
                 H 0.04 1.2 0.89\nH 0.04 1.2 -0.89\nH 1.92 0.4 0\n";
    std::fs::write(at("start.xyz"), start).unwrap();
    let printed = succeed(&["relax", &at("start.xyz"), "--model", ETHANOL, "-o", &at("relaxed.xyz"), "--quiet"]);
    assert!(printed.contains("1 of 1 converged"), "{printed}");
    let spread = |dt: &str, steps: &str, every: &str| {
        let base = ["simulate", &at("relaxed.xyz"), "--model", ETHANOL, "--integrator", "verlet", "--temperature", "300 K", "--quiet"];
        let more = ["--dt", dt, "--steps", steps, "--log-every", every, "--dtype", "f64", "--overwrite", "--out", &at("run")];
        succeed(&[&base[..], &more].concat());
        let log = std::fs::read_to_string(at("run/log.csv")).unwrap();
        let rows: Vec<Vec<f64>> = log.lines().skip(1).map(|l| l.split(',').map(|w| w.parse().unwrap()).collect()).collect();
        let totals: Vec<f64> = rows.iter().map(|r| r[3] + r[4]).collect();
        let kinetic = rows.iter().map(|r| r[4]).sum::<f64>() / rows.len() as f64;
        assert!(totals.len() > 100 && kinetic > 10.0);
        let mean = totals.iter().sum::<f64>() / totals.len() as f64;
        (totals.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / totals.len() as f64).sqrt()
    };
    // 2 ps: the error is that of the integrator, second order in its step.
    let (coarse, fine) = (spread("0.5 fs", "4000", "20"), spread("0.25 fs", "8000", "40"));
    assert!(coarse < 0.5 && coarse / fine > 3.0 && coarse / fine < 5.0, "{coarse} kJ/mol at 0.5 fs, {fine} at 0.25 fs");
    // Alone in a large cell it is the molecule in open space.
    let cell = std::fs::read_to_string(at("relaxed.xyz")).unwrap().replace("Properties", "Lattice=\"30 0 0 0 30 0 0 0 30\" Properties");
    std::fs::write(at("cell.xyz"), cell.replace("pbc=\"F F F\"", "")).unwrap();
    let energy = |file: &str| {
        let out = json_of(&succeed(&["evaluate", &at(file), "--model", ETHANOL, "--json", "-", "--quiet", "--dtype", "f64"]));
        out["frames"][0]["energy"].as_f64().unwrap()
    };
    assert!((energy("cell.xyz") - energy("relaxed.xyz")).abs() < 1e-6);
}
