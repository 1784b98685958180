//! Trained models from outside: samples, and runs that start from the frames in the weights.

use crate::support::{fail, succeed};
use std::path::Path;

const BOTH: &str = "data/models/muller-brown/both-0.safetensors";

/// The numbers of an .npy file of single precision.
fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn samples_are_those_of_the_surface_and_do_not_depend_on_threads() {
    let directory = tempfile::tempdir().unwrap();
    let draw = |name: &str, more: &[&str]| {
        let file = directory.path().join(name);
        let mut args = vec!["sample", "--model", BOTH, "-o", file.to_str().unwrap(), "--quiet"];
        args.extend(more);
        succeed(&args);
        npy(&file)
    };
    let one = draw("one.npy", &["-n", "300", "--threads", "1"]);
    let three = draw("three.npy", &["-n", "300", "--threads", "3"]);
    assert!(one == three && one.len() == 600);
    let other = draw("other.npy", &["-n", "300", "--seed", "1"]);
    assert!(one != other);
    // Quadrature of exp(−V/23) puts 72.3 % of the particles within 0.7 of the deepest minimum and 17.3 % within 0.7 of the right
    // one. 100 000 samples of this model have 73.9 and 16.0 %; four standard errors of 2000 samples are 4.0 and 3.4 %.
    for (sampler, steps) in [("em", "1000"), ("heun", "200")] {
        let x = draw("many.npy", &["-n", "2000", "--sampler", sampler, "--steps", steps]);
        let inside = x.chunks_exact(2).filter(|p| (-2.5..1.7).contains(&p[0]) && (-1.0..3.5).contains(&p[1])).count();
        assert!(inside >= 1990, "{sampler}: {inside} of 2000 where the surface is low");
        let deep = x.chunks_exact(2).filter(|p| (p[0] + 0.558).hypot(p[1] - 1.442) < 0.7).count();
        let right = x.chunks_exact(2).filter(|p| (p[0] - 0.623).hypot(p[1] - 0.028) < 0.7).count();
        let parts = [deep, right].map(|n| n as f64 / 2000.0);
        assert!((parts[0] - 0.723).abs() < 0.040 + 0.016 && (parts[1] - 0.173).abs() < 0.034 + 0.013, "{sampler}: {parts:?}");
    }
    fail(&["sample", "--model", BOTH], 2, &["--output"]);
    fail(&["sample", "--model", BOTH, "-o", "x.npy", "--steps", "1"], 2, &["steps"]);
    fail(&["sample", "--model", BOTH, "-o", "x.npy", "-n", "0"], 2, &["--count 0"]);
    fail(&["sample", "--model", BOTH, "-o", "x.npy", "--sampler", "guess"], 2, &["em, pc, ode and heun"]);
    fail(&["sample", "--model", "README.md", "-o", "x.npy"], 2, &["README.md"]);
}

#[test]
fn runs_start_from_the_weights_and_say_where_they_leave_the_training_data() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = directory.path().join(name);
        let mut args = vec!["simulate", "--model", BOTH, "--replicas", "100", "--dt", "0.005", "--quiet", "--out", out.to_str().unwrap()];
        args.extend(more);
        succeed(&args);
        let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&summary).unwrap()
    };
    let usual = run("usual", &["--steps", "400", "--log-every", "100"]);
    assert_eq!(usual["averages"][0]["thermostat_K"], 23.0);
    // Replicas start at different frames: their energies are spread as in the ensemble, not one value.
    let log = std::fs::read_to_string(directory.path().join("usual/log.csv")).unwrap();
    let first: Vec<&str> = log.lines().filter(|l| l.starts_with("0,")).map(|l| l.split(',').nth(3).unwrap()).collect();
    let different: std::collections::BTreeSet<&&str> = first.iter().collect();
    assert!(first.len() == 100 && different.len() > 90, "{} energies", different.len());
    assert_eq!(usual["outside_training"]["seen"], 500);
    assert!(usual["outside_training"]["outside"].as_u64().unwrap() < 5, "{}", usual["outside_training"]);
    let hot = run("hot", &["--steps", "400", "--log-every", "100", "--temperature", "2000", "--force", "--on-divergence", "freeze"]);
    let outside = &hot["outside_training"];
    assert!(outside["outside"].as_u64().unwrap() > 50, "{outside}");
    assert!(outside["first"].as_str().unwrap().contains("coordinate"), "{outside}");
}

/// −U/kT of the Müller–Brown surface at kT = 23.
fn muller_brown(x: f64, y: f64) -> f64 {
    let terms = [
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    ];
    let energy = |(a, xx, xy, yy, x0, y0): (f64, f64, f64, f64, f64, f64)| {
        let (dx, dy) = (x - x0, y - y0);
        a * (xx * dx * dx + xy * dx * dy + yy * dy * dy).exp()
    };
    -terms.into_iter().map(energy).sum::<f64>() / 23.0
}

#[test]
fn likelihoods_are_those_of_the_surface() {
    let folder = tempfile::tempdir().unwrap();
    let (out, table) = (folder.path().join("x.npy"), folder.path().join("likelihoods.csv"));
    let [out_, table_] = [&out, &table].map(|p| p.to_str().unwrap());
    let model = "data/models/muller-brown/both-0.safetensors";
    succeed(&["sample", "--model", model, "-n", "200", "--steps", "300", "-o", out_, "--likelihood", table_, "--quiet"]);
    let text = std::fs::read_to_string(&table).unwrap();
    let found: Vec<f64> = text.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse().unwrap()).collect();
    let x = npy(&out);
    assert_eq!((found.len(), x.len()), (200, 400));
    let difference: Vec<f64> = found.iter().zip(x.chunks_exact(2)).map(|(l, x)| l - muller_brown(x[0].into(), x[1].into())).collect();
    let mean = difference.iter().sum::<f64>() / 200.0;
    let deviation = (difference.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 199.0).sqrt();
    let spread = found.iter().map(|l| l - found.iter().sum::<f64>() / 200.0).map(|d| d * d / 199.0).sum::<f64>().sqrt();
    assert!(deviation < 0.2 && spread > 3.0 * deviation, "{deviation} of {spread}");
    fail(&["sample", "--formula", "CH4", "--likelihood", table_, "-o", out_], 2, &["--likelihood", "pseudo-forces"]);
}
