//! Losses against finite differences, exact answers and the published code's numbers.

use super::*;
use crate::scoremd::analytic::{Analytic, Formula, Gaussian, Wavy};
use crate::scoremd::config::Layout;
use crate::scoremd::fokker_planck::Probe;
use crate::scoremd::network::Network;
use safetensors::tensor::{Dtype, SafeTensors};
use scorefield_integrators::{Noise, Purpose};
use std::path::PathBuf;

const WAVY: [f64; 5] = [1.3, -0.4, 0.7, 2.0, 0.5];

fn objective(formulas: Formulas) -> Objective {
    Objective {
        formulas,
        process: VariancePreserving::default(),
        range: TimeRange::ALL,
        midpoint: 0.3,
        fokker_planck: Some(if formulas == Formulas::Published {
            FokkerPlanck::published(0.3)
        } else {
            FokkerPlanck { weight: 0.3, ..FokkerPlanck::default() }
        }),
        log_z: (formulas == Formulas::Corrected).then(|| LogZ::new(1.0)),
        forces: Some(ForceMatching { weight: 0.7, until: 0.2 }),
        force_scale: 0.8,
    }
}

/// Rows of every kind, some near both ends of time.
fn samples(d: usize, rows: usize) -> Samples<f64> {
    let noise = Noise::new(2);
    let draw = |i: usize, what: u32| noise.normals(i as u32, what, 0, Purpose::Displacement)[0];
    let list = |n: usize, what| (0..n).map(|i| draw(i, what)).collect::<Vec<f64>>();
    let residual_rows: Vec<u32> = (0..rows as u32).filter(|i| i % 3 != 1).collect();
    Samples {
        x: list(rows * d, 0),
        t: (0..rows).map(|i| [1e-5, 0.02, 0.11, 0.35, 0.8, 0.9999][i % 6] - 1e-7 * i as f64).map(|t| t.max(1e-6)).collect(),
        noise: list(rows * d, 1),
        clean_scores: list(rows * d, 2),
        probes: list(2 * residual_rows.len() * d, 3),
        residual_rows,
        ..Samples::default()
    }
}

#[test]
fn gradients_are_those_of_the_losses() {
    for formulas in [Formulas::Corrected, Formulas::Published] {
        let (objective, samples) = (objective(formulas), samples(2, 7));
        let network = Analytic::new(Wavy);
        let mut worker = Network::<f64>::worker(&network);
        let mut evaluator = LossEvaluator::default();
        let force_rows = samples.t.iter().filter(|t| **t <= 0.2).count();
        let normalisation = Normalisation::new(&objective, 7, samples.residual_rows.len(), force_rows);
        let coefficients = objective.log_z.map_or(0, |z| z.coefficients);
        let mut parameters = WAVY.to_vec();
        parameters.extend((0..coefficients).map(|k| (k as f64).sin()));
        let mut loss = |p: &[f64], gradient: Option<&mut [f64]>| {
            worker.load(&p[..5]);
            let gradient = gradient.map(|values| Gradient { values, normalisation });
            let sums = evaluator.evaluate(&mut *worker, &objective, &samples, &p[5..], gradient);
            assert_eq!((sums.rows, sums.residual_rows, sums.force_rows), (7, 5, force_rows as u64));
            let [dsm, fp, forces] = sums.means();
            dsm + 0.3 * fp + 0.7 * forces
        };
        let mut gradient = vec![0.0; parameters.len()];
        loss(&parameters, Some(&mut gradient));
        let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let mut worst = 0.0f64;
        for k in 0..parameters.len() {
            let h = 1e-5;
            let mut at = |offset: f64| {
                let mut p = parameters.clone();
                p[k] += offset;
                loss(&p, None)
            };
            // Fourth order: the residual is divided by small steps.
            let numeric = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            worst = worst.max((numeric - gradient[k]).abs() / largest);
        }
        println!("{formulas:?}: largest difference {worst:.1e}");
        assert!(worst < 1e-6, "{formulas:?}: {worst}");
    }
}

#[test]
fn the_mean_of_two_estimates_is_the_square_of_the_residual() {
    let objective = Objective { forces: None, ..objective(Formulas::Corrected) };
    let z = LogZ::new(1.0);
    let coefficients: Vec<f64> = (0..z.coefficients).map(|k| 3.0 * (k as f64).sin()).collect();
    let network = Analytic::new(Wavy);
    let mut worker = Network::<f64>::worker(&network);
    worker.load(&WAVY);
    let mut evaluator = LossEvaluator::default();
    for (x, t) in [([0.3, -1.2], 1e-5), ([1.5, 0.4], 0.07), ([-0.2, 0.9], 0.5), ([2.0, -0.1], 0.9999)] {
        let mut s = [0.0; 2];
        Wavy.score(&WAVY, &x, t, &mut s);
        let half_beta = 0.5 * objective.process.beta(t);
        let square = s[0] * s[0] + s[1] * s[1];
        let exact = half_beta * (Wavy::divergence(&WAVY, &x, t) + square + x[0] * s[0] + x[1] * s[1] + 2.0)
            + Wavy::time_slope(&WAVY, &x, t)
            + z.basis(t).derivative(&coefficients);
        // All signs of both displacements, so that the mean is exact.
        let (mut product, mut single) = (0.0, 0.0);
        for signs in 0..16 {
            let probes = (0..4).map(|b| if signs >> b & 1 == 1 { 1.0 } else { -1.0 }).collect();
            let samples = Samples { x: x.to_vec(), t: vec![t], noise: vec![0.0; 2], residual_rows: vec![0], probes, ..Samples::default() };
            let sums = evaluator.evaluate(&mut *worker, &objective, &samples, &coefficients, None);
            product += sums.fokker_planck / 16.0;
            single += evaluator.residuals()[0].map(|r| r.total()).iter().sum::<f64>() / 32.0;
        }
        let want = objective.weight(t) * exact * exact / 4.0;
        assert!((single - exact).abs() < 2e-5 * exact.abs().max(1.0), "t = {t}: {single} {exact}");
        assert!((product - want).abs() < 1e-4 * want.abs().max(1.0), "t = {t}: {product} {want}");
    }
}

#[test]
fn noised_normal_data_obey_the_equation() {
    let gaussian = Gaussian { dimension: 3, process: VariancePreserving::default() };
    let p = [(0.02f64).ln(), 0.0, 1.1];
    let network = Analytic::new(gaussian.clone());
    let objective = Objective {
        fokker_planck: Some(FokkerPlanck { probe: Probe::Signs, time_step: 1e-4, ..FokkerPlanck::default() }),
        log_z: None,
        forces: None,
        ..objective(Formulas::Corrected)
    };
    let mut worker = Network::<f64>::worker(&network);
    worker.load(&p);
    let mut evaluator = LossEvaluator::default();
    let mut samples = samples(3, 12);
    samples.clean_scores.clear();
    samples.probes.iter_mut().for_each(|e| *e = 1f64.copysign(*e));
    evaluator.evaluate(&mut *worker, &objective, &samples, &[], None);
    for (j, residual) in evaluator.residuals().iter().enumerate() {
        let t = samples.t[samples.residual_rows[j] as usize];
        // What is left is minus the derivative of the logarithm of the normaliser, ½ Σ ln v.
        let slope: f64 = p
            .iter()
            .map(|&p| {
                let v = gaussian.variance(p, t);
                0.5 * gaussian.process.beta(t) * gaussian.process.mean(t).powi(2) * (1.0 - p.exp()) / v
            })
            .sum();
        for r in residual {
            assert!((r.total() + slope).abs() < 2e-3 * (1.0 + slope.abs() + r.divergence.abs()), "t = {t}: {} {slope}", r.total());
        }
    }
}

/// Rounding of single precision in the divergence, for displacements of both sizes.
#[test]
fn larger_displacements_carry_less_rounding() {
    let network = Analytic::new(Wavy);
    // A stiff well as of a bond near t = 0.
    let p = [1400.0, 0.0, 0.7, 2.0, 0.5];
    let noise_of = |sigma: f64| {
        let objective = Objective {
            fokker_planck: Some(FokkerPlanck { sigma, ..FokkerPlanck::default() }),
            log_z: None,
            forces: None,
            ..objective(Formulas::Corrected)
        };
        let mut single = Network::<f32>::worker(&network);
        let mut double = Network::<f64>::worker(&network);
        single.load(&p.map(|p| p as f32));
        double.load(&p);
        let mut wide = samples(2, 60);
        wide.clean_scores.clear();
        wide.probes.iter_mut().for_each(|e| *e = 1f64.copysign(*e));
        wide.x.iter_mut().for_each(|x| *x = f64::from(*x as f32));
        wide.t.iter_mut().for_each(|t| *t = 1e-3);
        let narrow = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let samples = Samples {
            x: narrow(&wide.x),
            t: narrow(&wide.t),
            noise: narrow(&wide.noise),
            residual_rows: wide.residual_rows.clone(),
            probes: narrow(&wide.probes),
            ..Samples::default()
        };
        let (mut a, mut b) = (LossEvaluator::default(), LossEvaluator::default());
        a.evaluate(&mut *single, &objective, &samples, &[], None);
        b.evaluate(&mut *double, &objective, &wide, &[], None);
        let squares = a.residuals().iter().zip(b.residuals()).map(|(a, b)| (a[0].divergence - b[0].divergence).powi(2));
        (squares.sum::<f64>() / a.residuals().len() as f64).sqrt() / b.residuals()[0][0].divergence.abs()
    };
    let (small, large) = (noise_of(1e-4), noise_of(1e-3));
    println!("relative rounding of the divergence in f32: {small:.1e} for σ = 1e-4, {large:.1e} for σ = 1e-3");
    assert!(large < 0.2 * small, "{large} {small}");
}

/// Folder of reference data, or `None` after saying why a test is skipped.
fn reference(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join("golden/scoremd").join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", path.display());
    None
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let t = file.tensor(name).unwrap();
    match t.dtype() {
        Dtype::F32 => t.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        _ => t.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
    }
}

/// Largest difference over the largest wanted number.
fn difference(got: impl IntoIterator<Item = f64>, want: &[f64]) -> f64 {
    let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    got.into_iter().zip(want).fold(0.0, |m, (a, b)| f64::max(m, (a - b).abs())) / largest
}

/// Gives back energies and scores that the published code computed at the places it was asked for.
struct Recorded {
    layout: Layout,
    dimension: usize,
    rows: Vec<(Vec<f64>, f64, Option<f64>, Option<Vec<f64>>)>,
}

impl Recorded {
    fn find<V: Clone>(&self, x: &[f64], t: f64, value: impl Fn(&(Vec<f64>, f64, Option<f64>, Option<Vec<f64>>)) -> Option<V>) -> V {
        let near = |r: &&(Vec<f64>, f64, Option<f64>, Option<Vec<f64>>)| {
            (r.1 - t).abs() < 1e-12 && r.0.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-12)
        };
        self.rows.iter().filter(near).find_map(value).unwrap_or_else(|| panic!("nothing is recorded at {x:?}, {t}"))
    }
}

impl Worker<f64> for Recorded {
    fn load(&mut self, _: &[f64]) {}
    fn evaluate(&mut self, rows: Rows<'_, f64>, mut energy: Option<&mut [f64]>, mut score: Option<&mut [f64]>) {
        let d = self.dimension;
        for (i, (x, &t)) in rows.x.chunks(d).zip(rows.t).enumerate() {
            // Energies of rows that no formula reads were not recorded.
            if let Some(energy) = &mut energy {
                let has = self
                    .rows
                    .iter()
                    .any(|r| r.2.is_some() && (r.1 - t).abs() < 1e-12 && r.0.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-12));
                energy[i] = if has { self.find(x, t, |r| r.2) } else { f64::NAN };
            }
            if let Some(score) = &mut score {
                score[i * d..(i + 1) * d].copy_from_slice(&self.find(x, t, |r| r.3.clone()));
            }
        }
    }
    fn accumulate(&mut self, _: Rows<'_, f64>, _: Option<&[f64]>, _: Option<&[f64]>, _: &mut [f64]) {
        panic!("{:?} has no parameters", self.layout);
    }
}

#[test]
fn published_residuals_are_reproduced() {
    let Some(path) = reference("fokker_planck.json") else { return };
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (entry, d, range, midpoint) in [("mlp", 2, TimeRange::ALL, 0.3), ("aldp5", 15, TimeRange { start: 0.0, end: 0.1 }, 0.03)] {
        let list = |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
        let want = |key: &str| list(&json[entry]["f64"][key]);
        let get = |name: &str| tensor(&file, &format!("{entry}.{name}"));
        let (x, t, eps) = (get("x"), get("t"), get("eps"));
        let n = t.len();
        let mut recorded = Recorded { layout: Layout::default(), dimension: d, rows: Vec::new() };
        for i in 0..n {
            let place = |k: usize, sign: f64| -> Vec<f64> {
                (0..d).map(|c| x[i * d + c] + if k == 0 { 0.0 } else { sign * 1e-4 * eps[((k - 1) * n + i) * d + c] }).collect()
            };
            let score = |name: &str| Some(get(name)[i * d..(i + 1) * d].to_vec());
            recorded.rows.push((place(0, 1.0), t[i], Some(-want("log_q")[i]), score("score.f64")));
            for k in 1..=2 {
                let energy = |name: &str| Some(-want(&format!("{name}_{k}"))[i]);
                recorded.rows.push((place(k, 1.0), t[i], energy("log_q"), score(&format!("score_plus_{k}.f64"))));
                recorded.rows.push((place(k, -1.0), t[i], None, score(&format!("score_minus_{k}.f64"))));
                recorded.rows.push((place(k, 1.0), t[i] + 5e-4, energy("log_q_later"), None));
                recorded.rows.push((place(k, 1.0), t[i] - 1e-3, energy("log_q_earlier"), None));
            }
        }
        let objective = Objective { range, midpoint, forces: None, ..objective(Formulas::Published) };
        let samples = Samples {
            x: x.clone(),
            t: t.clone(),
            noise: vec![0.0; n * d],
            residual_rows: (0..n as u32).collect(),
            probes: eps.clone(),
            ..Samples::default()
        };
        let mut evaluator = LossEvaluator::default();
        let sums = evaluator.evaluate(&mut recorded, &objective, &samples, &[], None);
        let mut worst = 0.0f64;
        for k in 0..2 {
            let r = evaluator.residuals();
            for (name, values) in [
                ("div", r.iter().map(|r| r[k].divergence).collect::<Vec<f64>>()),
                ("Dt_log_q", r.iter().map(|r| r[k].time_derivative).collect()),
                ("gamma", r.iter().map(|r| r[k].rest).collect()),
                ("R", r.iter().map(|r| r[k].total()).collect()),
            ] {
                let d = difference(values, &want(&format!("{name}_{}", k + 1)));
                assert!(d < 1e-9, "{entry} {name}_{}: {d:.1e}", k + 1);
                worst = worst.max(d);
            }
        }
        let mean = json[entry]["f64"]["L_FP_mean"].as_f64().unwrap();
        worst = worst.max((sums.means()[1] / mean - 1.0).abs());
        worst = worst.max(difference(t.iter().map(|&t| objective.weight(t)), &want("weight")));
        println!("{entry}: residuals within {worst:.1e}");
        assert!(worst < 1e-9, "{entry}: {worst:.1e}");

        // Score matching at its own data.
        let dsm = &json[entry]["dsm"]["f64"];
        let (x0, t, eps, x_t, score) = (get("dsm_x0"), get("dsm_t"), get("dsm_eps"), get("dsm_x_t.f64"), get("dsm_score.f64"));
        let process = objective.process;
        assert!(difference(t.iter().map(|&t| process.sigma(t)), &list(&dsm["sigma_t"])) < 1e-12);
        assert!(difference(t.iter().map(|&t| process.mean(t)), &list(&dsm["mean_coeff"])) < 1e-12);
        let noised: Vec<f64> = (0..n * d).map(|i| process.mean(t[i / d]) * x0[i] + process.sigma(t[i / d]) * eps[i]).collect();
        assert!(difference(noised.iter().copied(), &x_t) < 1e-12);
        let mut recorded = Recorded { layout: Layout::default(), dimension: d, rows: Vec::new() };
        for i in 0..n {
            recorded.rows.push((noised[i * d..(i + 1) * d].to_vec(), t[i], None, Some(score[i * d..(i + 1) * d].to_vec())));
        }
        let samples = Samples { x: noised, t, noise: eps, ..Samples::default() };
        let sums = evaluator.evaluate(&mut recorded, &objective, &samples, &[], None);
        let relative = sums.means()[0] / dsm["loss_weighted"].as_f64().unwrap() - 1.0;
        assert!(relative.abs() < 1e-9, "{entry}: {relative:.1e}");
    }
}

#[test]
fn published_gradients_are_reproduced() {
    let Some(path) = reference("dsm_grad_mlp.safetensors") else { return };
    let (bytes, weights) = (std::fs::read(&path).unwrap(), std::fs::read(path.with_file_name("mlp_mueller_brown.safetensors")).unwrap());
    let (file, weights) = (SafeTensors::deserialize(&bytes).unwrap(), SafeTensors::deserialize(&weights).unwrap());
    let config = crate::scoremd::config::ModelConfig::preset("muller-brown").unwrap();
    let network = crate::scoremd::network::<f64>(&config.experts[0], &[]).unwrap();
    let parameters: Vec<f64> = network.layout().entries().iter().flat_map(|e| tensor(&weights, &e.name)).collect();
    let mut worker = network.worker();
    worker.load(&parameters);
    let samples = Samples {
        x: tensor(&file, "x_t.f64"),
        t: tensor(&file, "t"),
        noise: tensor(&file, "eps"),
        residual_rows: (0..8).collect(),
        probes: tensor(&file, "fp_eps"),
        ..Samples::default()
    };
    let published = Objective { fokker_planck: Some(FokkerPlanck::published(5e-4)), forces: None, ..objective(Formulas::Published) };
    let mut evaluator = LossEvaluator::default();
    for (part, dsm, fp) in [("dsm", 1.0, 0.0), ("fp", 0.0, 1.0), ("total", 1.0, 1.0)] {
        let normalisation = Normalisation { dsm: dsm / 8.0, fokker_planck: fp * 5e-4 / 8.0, forces: 0.0 };
        let mut gradient = vec![0.0; parameters.len()];
        let sums = evaluator.evaluate(&mut *worker, &published, &samples, &[], Some(Gradient { values: &mut gradient, normalisation }));
        let loss = dsm * sums.means()[0] + fp * 5e-4 * sums.means()[1];
        let worst_loss = difference([loss], &tensor(&file, &format!("loss_{part}.f64")));
        let want: Vec<f64> =
            network.layout().entries().iter().flat_map(|e| tensor(&file, &format!("grad_{part}.{}.f64", e.name))).collect();
        let worst = difference(gradient, &want);
        println!("{part}: loss within {worst_loss:.1e}, gradient within {worst:.1e}");
        assert!(worst_loss < 1e-9 && worst < 1e-9, "{part}: {worst_loss:.1e} {worst:.1e}");
    }
}

#[test]
fn rows_of_several_systems_are_those_of_each() {
    use crate::scoremd::config::{BeadFeatures, Body, ExpertConfig, Head};
    let kinds = [vec![[3, 0, 1, 0], [19, 4, 2, 0], [3, 2, 0, 1]], vec![[0, 1, 1, 1], [5, 4, 2, 0], [11, 3, 2, 1]]];
    let config = ExpertConfig {
        body: Body::GraphTransformer { beads: 3, width: 16, layers: 2, features: BeadFeatures::Residue },
        head: Head::Potential,
        range: TimeRange::ALL,
    };
    let noise = Noise::new(9);
    let parameters: Vec<f64> = crate::scoremd::initial::initialise(&config.layout(), noise, 0);
    for formulas in [Formulas::Corrected, Formulas::Published] {
        let objective = Objective { log_z: None, ..objective(formulas) };
        let (d, all) = (9, samples(9, 7));
        let system = |row: usize| (row % 3 == 1 || row == 3) as u32;
        let normalisation = Normalisation::new(&objective, 7, all.residual_rows.len(), 4);
        let evaluate = |kinds: &[Vec<[u32; 4]>], samples: &Samples<f64>| {
            let mut worker = crate::scoremd::network::network::<f64>(&config, kinds).unwrap().worker();
            worker.load(&parameters);
            let mut values = vec![0.0; parameters.len()];
            let gradient = Gradient { values: &mut values, normalisation };
            let sums = LossEvaluator::default().evaluate(&mut *worker, &objective, samples, &[], Some(gradient));
            (sums, values)
        };
        let (sums, gradient) = evaluate(&kinds, &Samples { system: (0..7).map(system).collect(), ..all.clone() });
        let mut parts = (LossSums::default(), vec![0.0; parameters.len()]);
        for (k, kinds) in kinds.iter().enumerate() {
            let rows: Vec<usize> = (0..7).filter(|&r| system(r) == k as u32).collect();
            let of = |list: &[f64], w: usize| rows.iter().flat_map(|r| list[r * w..(r + 1) * w].to_vec()).collect::<Vec<f64>>();
            // Places of those rows' probes among all.
            let places: Vec<usize> = (0..all.residual_rows.len()).filter(|&p| rows.contains(&(all.residual_rows[p] as usize))).collect();
            let place_of = |p: &usize| rows.iter().position(|&r| r == all.residual_rows[*p] as usize).unwrap() as u32;
            let count = all.residual_rows.len();
            let probes = [0, 1].iter().flat_map(|copy| places.iter().map(move |p| copy * count + p));
            let some = Samples {
                x: of(&all.x, d),
                t: of(&all.t, 1),
                noise: of(&all.noise, d),
                clean_scores: of(&all.clean_scores, d),
                residual_rows: places.iter().map(place_of).collect(),
                probes: probes.flat_map(|p| all.probes[p * d..(p + 1) * d].to_vec()).collect(),
                system: Vec::new(),
            };
            let (sums, gradient) = evaluate(std::slice::from_ref(kinds), &some);
            parts.0.add(&sums);
            parts.1.iter_mut().zip(gradient).for_each(|(a, b)| *a += b);
        }
        let close = |a: f64, b: f64, scale: f64| assert!((a - b).abs() <= 1e-10 * scale, "{formulas:?}: {a} {b}");
        close(sums.dsm, parts.0.dsm, sums.dsm);
        close(sums.fokker_planck, parts.0.fokker_planck, sums.fokker_planck.abs());
        let largest = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        gradient.iter().zip(&parts.1).for_each(|(a, b)| close(*a, *b, largest));
    }
}
