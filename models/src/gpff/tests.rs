use super::oracle::{Oracle, OracleSpec};
use super::shape::{ShapePredictor, TargetShape, npr, shape_of, variances_of};
use nalgebra::Vector3;
use scorefield_integrators::denoise::{Adaptive, DenoiseSpec, Denoised, Prior, Sampler, denoise_all, principal_variances};
use scorefield_integrators::relax::Job;
use scorefield_integrators::stream::StreamOptions;
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Noise, Output, Progress, State, System, Want};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// 64 isomers of C4H7NO2 from QM9.
fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gpff/c4h7no2.xyz")
}

fn oracle() -> Oracle {
    OracleSpec::of(fixture()).build().unwrap()
}

fn system(types: &[u32]) -> Arc<System> {
    Arc::new(System { types: types.to_vec(), ..System::particles("isomer", types.len(), 12.0) })
}

fn evaluate(oracle: &mut Oracle, system: &Arc<System>, x: &[f64]) -> Vec<f64> {
    let batch = Batch::uniform(system.clone(), x.len() / (3 * system.len()), 0).unwrap();
    let state = State::at_rest(&batch, x, DType::F64).unwrap();
    let mut out = Output::new(&batch, DType::F64, Want::FORCES);
    oracle.prepare(&batch, DType::F64).unwrap();
    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::FORCES };
    oracle.evaluate(&input, &mut out).unwrap();
    out.forces.to_f64()
}

/// Denoises 64 molecules from 30 Å with the oracle.
fn sample(spec: &DenoiseSpec) -> Vec<Denoised> {
    let oracle = oracle();
    let system = system(oracle.types());
    let jobs = (0..64).map(|id| {
        let mut x = vec![0.0; 3 * system.len()];
        Prior::Isotropic { sigma: 3.0 }.draw(&system, Noise::new(7), id, &mut x);
        Job::from((system.clone(), x))
    });
    let denoiser = spec.resolve(oracle.capabilities()).unwrap();
    let options = StreamOptions { threads: Some(2), ..StreamOptions::default() };
    let mut done = Vec::new();
    denoise_all(jobs.collect::<Vec<_>>(), &oracle, &denoiser, Noise::new(7), &options, |_, r| done.push(r.unwrap())).unwrap();
    done
}

fn spec(name: &str, steps: u32) -> DenoiseSpec {
    DenoiseSpec { sampler: Sampler::named(name).unwrap(), steps, ..DenoiseSpec::default() }
}

fn adaptive(name: &str, steps: u32) -> DenoiseSpec {
    // The oracle knows its orientation, so noise shows in all 3N − 3 degrees of freedom.
    DenoiseSpec { adaptive: Some(Adaptive { rotations: true, ..Adaptive::default() }), ..spec(name, steps) }
}

/// Mean number of evaluations and number of different structures; every molecule must be within 0.05 Å of one.
fn hits(done: &[Denoised]) -> (f64, usize) {
    let oracle = oracle();
    let mut found = Vec::new();
    for d in done {
        let (m, distance) = oracle.nearest(&d.positions);
        assert!(d.progress == Progress::Converged && distance < 0.005, "{distance} nm from the nearest structure");
        found.push(m);
    }
    found.sort_unstable();
    found.dedup();
    (done.iter().map(|d| d.evaluations as f64).sum::<f64>() / done.len() as f64, found.len())
}

#[test]
fn the_oracle_is_the_posterior_mean() {
    let mut oracle = oracle();
    let (types, all) = (oracle.types().to_vec(), oracle.structures());
    let n3 = 3 * types.len();
    let first = all[..n3].to_vec();
    // Near one structure it points there; far away, to the mean of all (weights differ by e^(-d²/2σ²) at σ up to 60 Å).
    let near: Vec<f64> = first.iter().enumerate().map(|(k, x)| x + 0.002 * (k as f64).sin()).collect();
    let k = oracle.capabilities().stiffness.unwrap();
    assert!((k - 9648.5332).abs() < 1e-3, "1 eV/Å² in kJ/mol/nm²: {k}");
    for (f, (x, r)) in evaluate(&mut oracle, &system(&types), &near).iter().zip(near.iter().zip(&first)) {
        assert!((f - k * (r - x)).abs() < 1e-9 * k);
    }
    // The sum over levels, written out.
    let x: Vec<f64> = (0..n3).map(|k| 0.1 * (0.7 * k as f64).cos()).collect();
    let count = all.len() / n3;
    let mut weights = vec![0.0; count];
    for (m, w) in weights.iter_mut().enumerate() {
        let square: f64 = x.iter().zip(&all[m * n3..]).map(|(a, b)| (10.0 * (a - b)).powi(2)).sum();
        for level in 0..160 {
            let log = 0.01f64.ln() + (60.0f64.ln() - 0.01f64.ln()) * f64::from(level) / 159.0;
            let sigma = log.exp();
            let prior = (-0.5 * ((log + 1.2) / 1.2).powi(2)).exp() * (1.0 / sigma / sigma).min(1000.0);
            *w += prior * sigma.powf(-39.0) * (-0.5 * square / sigma / sigma).exp();
        }
    }
    let total: f64 = weights.iter().sum();
    let forces = evaluate(&mut oracle, &system(&types), &x);
    for c in 0..n3 {
        let mean: f64 = (0..count).map(|m| weights[m] / total * all[m * n3 + c]).sum();
        assert!((forces[c] - k * (mean - x[c])).abs() < 1e-9 * k, "{c}");
    }
    // Atoms may come in another order of elements.
    let mut other: Vec<usize> = (0..types.len()).collect();
    other.sort_by_key(|&i| (types[i], i));
    assert_ne!(types[other[0]], types[0]);
    let pick = |v: &[f64]| -> Vec<f64> { other.iter().flat_map(|&i| v[3 * i..3 * i + 3].to_vec()).collect() };
    let turned = evaluate(&mut oracle, &system(&other.iter().map(|&i| types[i]).collect::<Vec<_>>()), &pick(&x));
    assert_eq!(turned, pick(&forces));
    let samples: Vec<_> = [&near, &x, &first].map(|x| crate::testing::Sample::new(system(&types), x.clone())).into();
    crate::testing::check_batch_invariance(&mut oracle, &samples);
    let wrong = oracle.prepare(&Batch::uniform(system(&types[1..]), 1, 0).unwrap(), DType::F64).unwrap_err().to_string();
    assert!(wrong.contains("C4N1O2H7"), "{wrong}");
}

#[test]
fn direct_denoising_is_fast_and_collapses() {
    let (evaluations, direct) = hits(&sample(&spec("dd", 1)));
    assert!(evaluations <= 6.0, "{evaluations}");
    let (_, stochastic) = hits(&sample(&spec("sdd", 64)));
    let (_, heun) = hits(&sample(&spec("heun", 32)));
    println!("DD {evaluations} evaluations, modes: DD {direct}, SDD {stochastic}, Heun {heun}");
    assert!(3 * direct <= heun && direct < stochastic, "{direct} {stochastic} {heun}");
}

#[test]
fn every_sampler_reaches_structures() {
    for (name, steps, evaluations) in [("ancestral", 16, 16.0), ("heun", 16, 31.0), ("stochastic-heun", 32, 63.0)] {
        let (mean, modes) = hits(&sample(&spec(name, steps)));
        assert_eq!(mean, evaluations, "{name}");
        assert!(modes >= 24, "{name}: {modes}");
    }
}

#[test]
fn adaptive_schedules_save_evaluations() {
    for (name, steps, range) in [
        ("ancestral", 64, 17.0..27.0),
        ("ancestral", 16, 8.0..12.0),
        ("heun", 64, 45.0..70.0),
        // Added noise is progress undone: close to the whole schedule.
        ("stochastic-heun", 32, 50.0..63.1),
    ] {
        let (mean, _) = hits(&sample(&adaptive(name, steps)));
        println!("{name} {steps}: {mean} evaluations");
        assert!(range.contains(&mean), "{name} {steps}: {mean}");
    }
}

#[test]
fn shapes_are_recognised() {
    let close = |a: [f64; 2], b: [f64; 2]| assert!((a[0] - b[0]).abs() < 1e-12 && (a[1] - b[1]).abs() < 1e-12, "{a:?} {b:?}");
    close(npr([1.0, 0.0, 0.0]), [0.0, 1.0]);
    close(npr([1.0, 1.0, 1.0]), [1.0, 1.0]);
    close(npr([0.5, 0.5, 0.0]), [0.5, 0.5]);
    close(npr(TargetShape::Rod.relative()), [0.1 / 0.95, 1.0]);
    // v → Σ → v.
    let x = oracle().structures()[..42].to_vec();
    let back = variances_of(shape_of(&x));
    assert!(back.iter().zip(principal_variances(&x)).all(|(a, b)| (a / b - 1.0).abs() < 1e-9));
}

/// Shapes of two kinds of molecules.
fn shapes(n: usize, atoms: usize) -> Vec<[f64; 3]> {
    let noise = Noise::new(atoms as u64);
    let draw = |i: usize| {
        let z = noise.normals(i as u32, 0, 0, scorefield_integrators::Purpose::Displacement);
        let middle = if i.is_multiple_of(4) { [1.2, 0.1, -0.3] } else { [0.6, 0.4, 0.2] };
        [0, 1, 2].map(|k| middle[k] + 0.05 * z[k])
    };
    (0..n).map(draw).collect()
}

#[test]
fn predictors_learn_what_they_are_shown() {
    let data = BTreeMap::from([(9, shapes(8, 9)), (10, shapes(2000, 10)), (12, shapes(60, 12)), (1, vec![[0.0; 3]])]);
    let fit = || ShapePredictor::fit(&data, "a test", 3).unwrap();
    let predictor = fit();
    assert_eq!(predictor, fit());
    assert_eq!(predictor.range(), [9, 12]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shape.json");
    std::fs::write(&file, predictor.to_json("a command")).unwrap();
    let read = ShapePredictor::read(&file).unwrap();
    // Half of the molecules' variances are those of the data, in both kinds; the file keeps six digits of the means.
    let noise = Noise::new(5);
    let mut long = 0;
    for id in 0..2000 {
        let (a, b) = (predictor.draw(10, noise, id).unwrap(), read.draw(10, noise, id).unwrap());
        assert!(a[0] >= a[1] && a[1] >= a[2] && a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-4));
        long += usize::from((0.5 * (a[0] * 100.0).ln() - 1.2).abs() < 0.25);
    }
    // A quarter, with a standard error of 1 %.
    assert!((long as f64 / 2000.0 - 0.25).abs() < 0.04, "{long}");
    // Eleven atoms are like ten or twelve, and eight like nothing.
    assert!(predictor.draw(11, noise, 0).is_ok());
    assert!(predictor.draw(8, noise, 0).unwrap_err().to_string().contains("9 to 12"));
    for target in TargetShape::ALL {
        let variances = predictor.draw_like(10, target, noise, 1).unwrap();
        let total: f64 = variances.iter().sum();
        assert!(variances.iter().zip(target.relative()).all(|(v, r)| (v / total - r).abs() < 2e-3), "{variances:?}");
        // Sizes of molecules: √λ between e^-0.5 and e^1.4 Å.
        assert!(total > 0.01 && total < 0.25, "{total}");
    }
    for (text, part) in
        [("{", "no shape predictor"), ("{\"format\":\"x\",\"source\":\"\",\"command\":\"\",\"length\":\"A\",\"sizes\":[]}", "`x`")]
    {
        std::fs::write(&file, text).unwrap();
        assert!(ShapePredictor::read(&file).unwrap_err().to_string().contains(part));
    }
    std::fs::write(&file, predictor.to_json("").replacen("\"weight\":0.", "\"weight\":7.", 1)).unwrap();
    assert!(ShapePredictor::read(&file).unwrap_err().to_string().contains("out of range"));
    assert!(ShapePredictor::fit(&BTreeMap::new(), "", 0).is_err());
}

#[test]
fn mixtures_fit_better_than_one_gaussian() {
    let points: Vec<Vector3<f64>> = shapes(2000, 3).into_iter().map(Vector3::from).collect();
    let fit = |count| super::mixture::Mixture::fit(&points, count, 1e-6, Noise::new(0), 0).unwrap();
    let (one, two) = (fit(1), fit(2));
    assert!(two.log_likelihood(&points) > one.log_likelihood(&points) + 0.5);
    let mut weights: Vec<f64> = two.components().iter().map(|c| c.weight).collect();
    weights.sort_by(f64::total_cmp);
    assert!((weights[0] - 0.25).abs() < 0.01, "{weights:?}");
    for c in two.components() {
        assert!((0..3).all(|k| (c.covariance[(k, k)].sqrt() - 0.05).abs() < 0.004), "{:?}", c.covariance);
    }
    // Where points coincide there are fewer components, and the ridge keeps them from collapsing.
    let same = vec![Vector3::new(1.0, 2.0, 3.0); 20];
    let mixture = super::mixture::Mixture::fit(&same, 5, 1e-6, Noise::new(0), 0).unwrap();
    assert_eq!(mixture.components().len(), 1);
}

#[test]
fn files_of_structures_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("set.xyz");
    for (text, part) in [
        ("", "no structure"),
        ("two\n\n", "line 1: a structure"),
        ("2\n\nH 0 0 0\n", "line 1: the file ends"),
        ("2\n\nH 0 0 0\nQq 0 0 1\n", "line 4: `Qq`"),
        ("2\n\nH 0 0 0\nO 0 nan 1\n", "line 4: three coordinates"),
        ("2\n\nH 0 0 0\nO 0 0 1\n2\n\nH 0 0 0\nH 0 0 1\n", "line 5: this structure is not made of O1H1"),
    ] {
        std::fs::write(&file, text).unwrap();
        let message = OracleSpec::of(&file).build().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(part), "`{message}` does not say {part}");
    }
    std::fs::write(&file, "2\n\nH 0 0 0\nO 0 0 1\n2\n\nO 0 0 1\nH 0 0 0\n").unwrap();
    let oracle = OracleSpec::of(&file).build().unwrap();
    assert_eq!(oracle.structures()[..6], oracle.structures()[6..]);
    for (spec, part) in [
        (OracleSpec { deviation: 0.0, ..OracleSpec::of(&file) }, "deviation"),
        (OracleSpec { stiffness: Some("-1 eV/A^2".parse().unwrap()), ..OracleSpec::of(&file) }, "stiffness"),
        (OracleSpec { stiffness: Some("1 eV".parse().unwrap()), ..OracleSpec::of(&file) }, "energy"),
    ] {
        assert!(spec.build().err().unwrap().to_string().contains(part));
    }
}
