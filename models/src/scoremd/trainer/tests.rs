//! Training of networks with a pencil-and-paper answer; the same bits whatever the threads and interruptions.

use super::*;
use crate::scoremd::analytic::{Analytic, Gaussian};
use crate::scoremd::config::{Body, ExpertConfig, Head};
use crate::scoremd::fokker_planck::{FokkerPlanck, Formulas};
use crate::scoremd::log_z::LogZ;
use crate::scoremd::loss::ForceMatching;
use crate::scoremd::process::VariancePreserving;

const VARIANCES: [f64; 3] = [0.05, 0.4, 1.7];

/// Normal data of known variances, and their scores.
fn data(n: usize) -> Arc<Data> {
    let noise = Noise::new(77);
    let x: Vec<f32> = (0..n)
        .flat_map(|i| {
            let z = noise.normals(i as u32, 0, 0, Purpose::Displacement);
            (0..3).map(move |d| (z[d] * VARIANCES[d].sqrt()) as f32)
        })
        .collect();
    let scores = x.iter().enumerate().map(|(k, x)| -x / VARIANCES[k % 3] as f32).collect();
    Arc::new(Data { x, scores: Some(scores), dimension: 3, ..Data::default() })
}

fn objective() -> Objective {
    Objective {
        formulas: Formulas::Corrected,
        process: VariancePreserving::default(),
        range: TimeRange::ALL,
        midpoint: 0.3,
        fokker_planck: Some(FokkerPlanck { weight: 1e-2, fraction: 0.5, ..FokkerPlanck::default() }),
        log_z: Some(LogZ::new(1.0)),
        forces: None,
        force_scale: 1.0,
    }
}

fn plan(steps: u64, objective: Objective) -> Plan {
    Plan {
        stages: vec![Stage {
            network: 0,
            times: TimeRange { start: 1e-5, end: 1.0 },
            objective,
            schedule: CosineSchedule { peak: 1e-2, floor: 1e-4, warmup: 0, steps },
        }],
        batch: 128,
        adam: AdamW { weight_decay: 0.0, ..AdamW::default() },
        clip: Some(Clip::Norm(1e3)),
        ema: Ema { decay: 0.99 },
        log_z_rate: 10.0,
        rotate: false,
        held_out: 200,
        seed: 5,
    }
}

fn trainer<T: SimdReal + Root>(plan: Plan) -> Trainer<T> {
    let formula = Gaussian { dimension: 3, process: VariancePreserving::default() };
    let networks = (0..plan.stages.iter().map(|s| s.network + 1).max().unwrap())
        .map(|_| -> Arc<dyn Network<T>> { Arc::new(Analytic::new(formula.clone())) });
    Trainer::new(plan, networks.collect(), data(4000)).unwrap()
}

fn run<T: SimdReal + Root>(trainer: &mut Trainer<T>, steps: u64) {
    for _ in 0..steps {
        assert!(matches!(trainer.step(), Step::Moved { .. }));
        trainer.advance_stage();
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn normal_data_are_learned_with_their_normaliser() {
    pool(2).install(|| {
        let mut t: Trainer<f64> = trainer(plan(1500, objective()));
        let before = t.validate().unwrap();
        run(&mut t, 1500);
        let learned = &t.state().average[0];
        let gaussian = Gaussian { dimension: 3, process: VariancePreserving::default() };
        for d in 0..3 {
            // 4000 samples know the logarithm of a variance to √(2/4000) = 0.022.
            assert!((learned[d] - VARIANCES[d].ln()).abs() < 0.08, "{d}: {} {}", learned[d].exp(), VARIANCES[d]);
        }
        let (z, c) = (LogZ::new(1.0), &learned[3..]);
        let exact = |t: f64| (0..3).map(|d| 0.5 * gaussian.variance(learned[d], t).ln()).sum::<f64>();
        let mut worst = 0.0f64;
        for time in [1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 0.95] {
            let got = z.basis(time).log_z(c) - z.basis(1e-5).log_z(c);
            worst = worst.max((got - (exact(time) - exact(1e-5))).abs());
        }
        println!("log Z(t) within {worst:.3}, which itself spans {:.2}", exact(1.0) - exact(1e-5));
        assert!(worst < 0.05, "{worst}");
        let after = {
            // The stage is over: look again as if it were not.
            t.state.counters.stage = 0;
            t.validate().unwrap()
        };
        // Most of score matching's loss is there for the true score too.
        assert!(after.means()[0] < before.means()[0] - 0.05, "{:?} {:?}", before.means(), after.means());
        assert!(after.means()[1].abs() < 1e-4, "{:?}", after.means());
    });
}

#[test]
fn forces_teach_the_same() {
    let objective = Objective {
        fokker_planck: None,
        log_z: None,
        forces: Some(ForceMatching { weight: 1.0, until: 0.1 }),
        force_scale: 0.3,
        ..objective()
    };
    let mut plan = plan(600, objective);
    plan.stages[0].schedule.peak = 3e-2;
    let mut t: Trainer<f64> = trainer(plan);
    run(&mut t, 600);
    for d in 0..3 {
        assert!((t.state().average[0][d] - VARIANCES[d].ln()).abs() < 0.05, "{d}: {:?}", t.state().average[0]);
    }
}

/// Two stages, so that a change of networks lies between.
fn two_stages() -> Plan {
    let mut p = plan(30, objective());
    let mut first = p.stages[0].clone();
    first.objective.fokker_planck = None;
    first.objective.log_z = None;
    first.objective.range = TimeRange { start: 0.3, end: 1.0 };
    first.objective.midpoint = 0.5;
    first.times = first.objective.range;
    first.schedule.steps = 20;
    p.stages[0].network = 1;
    p.stages[0].objective.range = TimeRange { start: 0.0, end: 0.3 };
    p.stages[0].objective.midpoint = 0.1;
    p.stages[0].objective.log_z = Some(LogZ::new(0.3));
    p.stages[0].times = TimeRange { start: 1e-5, end: 0.3 };
    p.stages.insert(0, first);
    p
}

#[test]
fn threads_change_no_bit() {
    fn check<T: SimdReal + Root>() {
        let whole = |threads: usize| {
            pool(threads).install(|| {
                let mut t: Trainer<T> = trainer(two_stages());
                run(&mut t, 50);
                assert!(t.is_done());
                t.save(serde_json::Value::Null).unwrap().to_bytes().unwrap()
            })
        };
        let one = whole(1);
        for threads in [2, 3, 7] {
            assert!(whole(threads) == one, "{threads} threads");
        }
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn going_on_from_a_file_changes_no_bit() {
    fn check<T: SimdReal + Root>() {
        let note = || serde_json::json!({ "note": "mine" });
        let mut whole: Trainer<T> = trainer(two_stages());
        run(&mut whole, 50);
        for cut in [0, 1, 19, 20, 21, 49, 50] {
            let mut first: Trainer<T> = trainer(two_stages());
            run(&mut first, cut);
            let bytes = first.save(note()).unwrap().to_bytes().unwrap();
            let mut second: Trainer<T> = trainer(two_stages());
            let file = Path::new("state");
            let header = second.restore(StateFile::from_bytes(file, &bytes).unwrap(), file).unwrap();
            assert_eq!(header, note());
            run(&mut second, 50 - cut);
            assert!(second.state() == whole.state() && second.is_done(), "cut at {cut}");
        }
        // A state of another plan is refused.
        let saved = whole.save(note()).unwrap();
        let mut other: Trainer<T> = trainer(plan(10, objective()));
        assert!(other.restore(saved, Path::new("state")).is_err());
    }
    check::<f32>();
    check::<f64>();
}

#[test]
fn losses_that_are_not_finite_move_nothing() {
    let mut t: Trainer<f32> = trainer(plan(100, objective()));
    run(&mut t, 20);
    t.mark_good();
    let good = t.state().clone();
    run(&mut t, 5);
    // A variance of e^100 is beyond single precision.
    t.state.parameters[0][1] = f32::INFINITY;
    let before = t.state().parameters.clone();
    let Step::NotFinite { part } = t.step() else { panic!("moved") };
    assert!(!part.is_empty() && t.state().parameters == before);
    assert_eq!(t.restore_good(0.5), 20);
    assert_eq!(t.state().parameters, good.parameters);
    assert_eq!((t.state().counters.rate_scale, t.state().counters.restores), (0.5, 1));
    let Step::Moved { rate, .. } = t.step() else { panic!("stuck") };
    assert!((rate / t.plan().stages[0].schedule.rate(20) - 0.5).abs() < 1e-12);
}

#[test]
fn batches_are_what_they_should_be() {
    let plan = Plan { rotate: true, ..plan(100, objective()) };
    let mut scaled = (*data(1000)).clone();
    scaled.scores = Some(scaled.x.iter().map(|x| 2.0 * x).collect());
    let (mut squares, mut crossed) = ([0.0; 3], 0.0);
    let mut seen = vec![0u32; 1000];
    let steps = 25;
    for stage_step in 0..steps {
        let sampler = Sampler::new(&plan, &plan.stages[0], &scaled, Rows::Training { step: stage_step, stage_step });
        let mut samples = Samples::<f64>::default();
        sampler.fill(0..128, &mut samples);
        assert!(samples.t.windows(2).all(|t| t[0] < t[1] + 1.0 / 128.0) && samples.t.iter().all(|t| (1e-5..1.0).contains(t)));
        let residuals = samples.residual_rows.len();
        assert!((63..=65).contains(&residuals) && samples.probes.len() == 2 * residuals * 3);
        assert!(samples.probes.iter().all(|p| p.abs() == 1.0));
        for i in 0..128 {
            let frame = sampler.frame(i);
            seen[frame] += 1;
            // Rotations keep lengths and turn scores with positions.
            let (m, s) = (plan.stages[0].objective.process.mean(samples.t[i]), plan.stages[0].objective.process.sigma(samples.t[i]));
            let clean: Vec<f64> = (0..3).map(|k| (samples.x[3 * i + k] - s * samples.noise[3 * i + k]) / m).collect();
            let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let original: Vec<f64> = scaled.x[3 * frame..3 * frame + 3].iter().map(|&x| f64::from(x)).collect();
            // m is down to 0.007 at t = 1.
            assert!((length(&clean) - length(&original)).abs() < 1e-9);
            for k in 0..3 {
                assert!((samples.clean_scores[3 * i + k] - 2.0 * clean[k]).abs() < 1e-9);
                squares[k] += (clean[k] / length(&clean)).powi(2) / (128.0 * steps as f64);
            }
            crossed += clean[0] * clean[1] / length(&clean).powi(2) / (128.0 * steps as f64);
        }
    }
    // Directions are uniform: cos² has mean 1/3 and deviation 0.3 per sample.
    assert!(squares.iter().all(|s| (s - 1.0 / 3.0).abs() < 0.03) && crossed.abs() < 0.03, "{squares:?} {crossed}");
    // 25 × 128 rows of 800 frames are 4 epochs; 200 frames are held out.
    assert_eq!(seen.iter().filter(|&&n| n == 0).count(), 200);
    assert!(seen.iter().all(|&n| n == 0 || n == 4));
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut Plan), part: &str| {
        let mut p = plan(10, objective());
        change(&mut p);
        let formula = Gaussian { dimension: 3, process: VariancePreserving::default() };
        let network: Arc<dyn Network<f32>> = Arc::new(Analytic::new(formula));
        let message = Trainer::new(p, vec![network], data(400)).err().unwrap().to_string();
        assert!(message.contains(part), "{message} lacks {part}");
    };
    refused(&|p| p.batch = 0, "batch = 0");
    refused(&|p| p.held_out = 400, "400 frames");
    refused(&|p| p.ema.decay = 1.0, "ema = 1");
    refused(&|p| p.clip = Some(Clip::Norm(0.0)), "clip");
    refused(&|p| p.stages[0].network = 1, "fewer networks");
    refused(&|p| p.stages[0].times.start = -0.1, "times");
    refused(&|p| p.stages[0].objective.midpoint = 1.0, "midpoint");
    refused(&|p| p.stages[0].objective.fokker_planck = Some(FokkerPlanck { fraction: 0.0, ..FokkerPlanck::default() }), "fraction");
    refused(&|p| p.stages[0].objective.fokker_planck = Some(FokkerPlanck { sigma: -1.0, ..FokkerPlanck::default() }), "sigma");
    refused(&|p| p.stages[0].schedule.peak = f64::NAN, "learning rate");
}

/// A network that knows nothing of normal distributions learns one, and log Z(t) is that of its own energy.
#[test]
fn a_real_network_learns_scores_and_its_normaliser() {
    let (variances, process) = ([0.3f64, 1.2], VariancePreserving::default());
    let config = ExpertConfig { body: Body::Mlp { dimension: 2, hidden: vec![40, 40] }, head: Head::Potential, range: TimeRange::ALL };
    let noise = Noise::new(3);
    let x = (0..20_000u32).flat_map(|i| {
        let z = noise.normals(i, 0, 0, Purpose::Displacement);
        (0..2).map(move |d| (z[d] * variances[d].sqrt()) as f32)
    });
    let data = Arc::new(Data { x: x.collect(), dimension: 2, ..Data::default() });
    let mut plan = plan(8000, objective());
    plan.stages[0].schedule.peak = 5e-3;
    plan.ema = Ema::default();
    plan.stages[0].objective.fokker_planck = Some(FokkerPlanck { weight: 1e-2, ..FokkerPlanck::default() });
    let network = crate::scoremd::network::<f32>(&config, &[]).unwrap();
    let parameters = network.layout().len();
    let mut trainer = Trainer::<f32>::new(plan, vec![network.clone()], data).unwrap();
    pool(2).install(|| run(&mut trainer, 8000));
    let learned = &trainer.state().average[0];
    let mut worker = network.worker();
    worker.load(&learned[..parameters]);
    let (side, h) = (101usize, 0.1f32);
    let grid: Vec<f32> = (0..side * side).flat_map(|k| [(k / side) as f32, (k % side) as f32]).map(|i| h * (i - 50.0)).collect();
    let z = LogZ::new(1.0);
    let mut first = None;
    for t in [1e-3, 0.02, 0.1, 0.4, 0.9f32] {
        let times = vec![t; side * side];
        let (mut energy, mut score) = (vec![0.0; side * side], vec![0.0; 2 * side * side]);
        let rows = crate::scoremd::network::Rows { x: &grid, t: &times, system: &[] };
        worker.evaluate(rows, Some(&mut energy), Some(&mut score));
        // Errors and sizes of scores, weighted with the true density.
        let variance = variances.map(|v| process.mean(t.into()).powi(2) * v + process.sigma(t.into()).powi(2));
        let (mut error, mut size) = (0.0, 0.0);
        for (x, s) in grid.chunks(2).zip(score.chunks(2)) {
            let x = [f64::from(x[0]), f64::from(x[1])];
            let density = (-0.5 * (x[0] * x[0] / variance[0] + x[1] * x[1] / variance[1])).exp();
            for d in 0..2 {
                let exact = -x[d] / variance[d];
                error += density * (f64::from(s[d]) - exact).powi(2);
                size += density * exact * exact;
            }
        }
        let partition: f64 = energy.iter().map(|e| f64::from(-e).exp()).sum();
        let (quadrature, splines) = (partition.ln(), z.basis(t.into()).log_z(&learned[parameters..]));
        let &mut (q, s) = first.get_or_insert((quadrature, splines));
        let (score_error, z_error) = ((error / size).sqrt(), (splines - s) - (quadrature - q));
        println!(
            "t = {t}: scores within {:.1} %, log Z − log Z(0.001) = {:.3} (quadrature {:.3})",
            100.0 * score_error,
            splines - s,
            quadrature - q
        );
        assert!(score_error < 0.1 && z_error.abs() < 0.05, "t = {t}: {score_error} {z_error}");
    }
}
