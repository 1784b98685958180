use super::*;
use crate::array::DType;
use crate::batch::Batch;
use crate::force::{Input, Output};
use crate::noise::Purpose;
use crate::propagator::Context;
use crate::state::{Clock, State};
use crate::units::{Quantity, UnitSystem};

/// `x̂ − x` of one atom.
#[derive(Clone)]
enum Law {
    /// Towards the origin of each atom's own place, on a grid, times a factor.
    Spring { factor: f64 },
    /// The same, shorter where it is far: molecules arrive one by one.
    Weak,
    /// Optimal for Gaussian data of this variance per coordinate; reads the noise level.
    Gaussian { variance: f64 },
}

#[derive(Clone)]
struct Toy {
    law: Law,
    capabilities: Capabilities,
}

const K: f64 = 7.0;

impl Toy {
    fn new(law: Law) -> Self {
        let needs_noise_level = matches!(law, Law::Gaussian { .. });
        let capabilities = Capabilities {
            kind: Kind::PseudoForce,
            stiffness: Some(K),
            energy: false,
            conservative: false,
            needs_noise_level,
            units: UnitSystem::Reduced,
            ..Capabilities::potential("toy")
        };
        Toy { law, capabilities }
    }
}

/// Where atom `i` of a toy belongs, without mean for six atoms.
fn home(i: usize) -> [f64; 3] {
    [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.7, 0.0], [0.0, -0.7, 0.0], [0.0, 0.0, 0.4], [0.0, 0.0, -0.4]][i % 6]
}

fn homes(n: usize) -> Vec<f64> {
    (0..n).flat_map(home).collect()
}

impl ForceProvider for Toy {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn prepare(&mut self, _: &Batch, _: DType) -> Result<()> {
        Ok(())
    }
    fn evaluate(&mut self, input: &Input<'_>, out: &mut Output) -> Result<()> {
        for b in 0..input.batch.replicas() {
            for (i, atom) in input.batch.range(b).enumerate() {
                for a in 0..3 {
                    let x = input.positions.get(3 * atom + a);
                    let to = home(i)[a] - x;
                    let way = match self.law {
                        Law::Spring { factor } => factor * to,
                        Law::Weak => to * (0.4 + 0.5 / (1.0 + to * to)),
                        Law::Gaussian { variance } => {
                            let Clock::Diffusion { t } = input.clock else { panic!("no noise level") };
                            -x * t * t / (t * t + variance)
                        }
                    };
                    out.forces.set(3 * atom + a, K * way);
                }
            }
        }
        Ok(())
    }
    fn fork(&self) -> Result<Box<dyn ForceProvider>> {
        Ok(Box::new(self.clone()))
    }
}

fn particles(n: usize) -> Arc<System> {
    Arc::new(System::particles("toy", n, 1.0))
}

fn spec(sampler: &str, steps: u32) -> DenoiseSpec {
    DenoiseSpec { sampler: Sampler::named(sampler).unwrap(), steps, ..DenoiseSpec::default() }
}

/// Molecules of several sizes from the prior.
fn jobs(n: usize, sigma: f64) -> Vec<Job> {
    (0..n)
        .map(|i| {
            let system = particles([6, 12, 2][i % 3]);
            let mut positions = vec![0.0; 3 * system.len()];
            Prior::Isotropic { sigma }.draw(&system, Noise::new(3), i as u32, &mut positions);
            (system, positions).into()
        })
        .collect()
}

fn run(jobs: Vec<Job>, toy: &Toy, denoiser: &Denoiser, options: StreamOptions<'_>) -> Vec<Denoised> {
    let mut results = Vec::new();
    denoise_all(jobs, toy, denoiser, Noise::new(1), &options, |_, r| results.push(r.unwrap())).unwrap();
    results
}

fn one(toy: &Toy, spec: &DenoiseSpec, system: Arc<System>, x: Vec<f64>) -> Denoised {
    let denoiser = spec.resolve(&toy.capabilities).unwrap();
    run(vec![(system, x).into()], toy, &denoiser, StreamOptions::default()).remove(0)
}

#[test]
fn schedule_is_that_of_karras() {
    let s = Schedule::new(128, 0.01, 30.0, 5.0);
    assert!((s.at(128) - 30.0).abs() < 1e-12 && (s.at(1) - 0.01).abs() < 1e-16);
    assert_eq!(s.at(0), 0.0);
    for n in 2..=128 {
        assert!((s.at(n).powf(0.2) - s.at(n - 1).powf(0.2) - s.delta()).abs() < 1e-12);
        assert!((s.below(s.at(n), s.delta()) - s.at(n - 1)).abs() < 1e-9 * s.at(n - 1));
    }
    assert_eq!(s.below(s.at(1), s.delta()), 0.0);
    assert!((s.below(0.02, 1.0) - 0.01).abs() < 1e-16, "the lowest level is not jumped over");
}

#[test]
fn evaluations_are_those_of_the_schedule() {
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    for (name, want) in [("sdd", 10), ("ancestral", 10), ("langevin", 10), ("heun", 19), ("stochastic-heun", 19), ("dd", 2)] {
        let done = one(&toy, &spec(name, 10), particles(6), jobs(1, 30.0)[0].positions.clone());
        assert_eq!((done.evaluations, done.progress), (want, Progress::Converged), "{name}");
    }
}

#[test]
fn heun_is_of_second_order() {
    // Gaussian data: the probability-flow equation is linear, x ∝ √(σ² + v), and the last step is Euler's to σ = 0.
    let v = 1.7;
    let toy = Toy::new(Law::Gaussian { variance: v });
    let error = |steps: u32| {
        let x = vec![30.0, 0.0, 0.0, -30.0, 0.0, 0.0];
        let done = one(&toy, &spec("heun", steps), particles(2), x);
        let exact = ((0.01f64.powi(2) + v) / (900.0 + v)).sqrt() * v / (0.01f64.powi(2) + v);
        (done.positions[0] / 30.0 / exact - 1.0).abs()
    };
    let (coarse, middle, fine) = (error(64), error(128), error(256));
    assert!(fine < 1e-3, "{fine}");
    assert!((3.6..4.4).contains(&(coarse / middle)) && (3.8..4.2).contains(&(middle / fine)), "{coarse} {middle} {fine}");
}

#[test]
fn stochastic_heun_has_the_variance_that_its_steps_give() {
    // For Gaussian data every step multiplies by a number and adds variance, so that the whole is a recursion.
    let v = 1.7;
    let steps = 64;
    let schedule = Schedule::new(steps, 0.01, 30.0, 5.0);
    let mut want = 900.0 + v;
    for left in (1..=steps).rev() {
        let (sigma, to) = (schedule.at(left), schedule.at(left - 1));
        let rise = if (0.01..=15.0).contains(&sigma) { (60.0 / f64::from(steps)).min(2f64.sqrt() - 1.0) } else { 0.0 };
        let from = sigma * (1.0 + rise);
        want += from * from - sigma * sigma;
        let way = |s: f64| -s * s / (s * s + v);
        let mut factor = 1.0 + (1.0 - to / from) * way(from);
        if to > 0.0 {
            factor = 1.0 - 0.5 * (to - from) * (way(from) / from + way(to) * factor / to);
        }
        want *= factor * factor;
    }
    assert!((want / v - 1.0).abs() < 0.03, "{want}");
    let toy = Toy::new(Law::Gaussian { variance: v });
    let denoiser = spec("stochastic-heun", steps).resolve(&toy.capabilities).unwrap();
    let system = particles(6);
    let start = |i: u32| -> Job {
        let mut x = vec![0.0; 18];
        Prior::Isotropic { sigma: (900.0f64 + v).sqrt() }.draw(&system, Noise::new(2), i, &mut x);
        (system.clone(), x).into()
    };
    let done = run((0..3000).map(start).collect(), &toy, &denoiser, StreamOptions::default());
    let variance = done.iter().flat_map(|d| &d.positions).map(|x| x * x).sum::<f64>() / (3000.0 * 15.0);
    // Standard error √(2/45000) = 0.7 %.
    assert!((variance / want - 1.0).abs() < 0.025, "{variance} {want}");
}

#[test]
fn ancestral_steps_are_those_of_k_diffusion() {
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    let steps = 9;
    let x0 = jobs(1, 30.0)[0].positions.clone();
    let done = one(&toy, &spec("ancestral", steps), particles(6), x0.clone());
    // sample_euler_ancestral with eta = 1, whose noise is ours.
    let schedule = Schedule::new(steps, 0.01, 30.0, 5.0);
    let (mut x, clean) = (x0, homes(6));
    for (k, left) in (1..=steps).rev().enumerate() {
        let (from, to) = (schedule.at(left), schedule.at(left - 1));
        let up = to.min((to * to * (from * from - to * to) / (from * from)).sqrt());
        let down = (to * to - up * up).sqrt();
        let mut z: Vec<f64> = (0..6).flat_map(|i| Noise::new(1).normals(i, 0, k as u64 + 1, Purpose::Denoising)).collect();
        for a in 0..3 {
            let mean = (0..6).map(|i| z[3 * i + a]).sum::<f64>() / 6.0;
            (0..6).for_each(|i| z[3 * i + a] -= mean);
        }
        for c in 0..18 {
            let d = (x[c] - clean[c]) / from;
            x[c] += d * (down - from) + up * z[c];
        }
    }
    let error = x.iter().zip(&done.positions).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error < 1e-12, "{error:e}");
}

#[test]
fn langevin_has_the_variance_and_temperature_of_its_level() {
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    for tau in [0.1, 2.0] {
        let sigma = 0.3;
        let sampler = Sampler::Langevin { sigma: Some(Quantity::bare(sigma)), tau };
        let adaptive = Some(Adaptive { rotations: true, ..Adaptive::default() });
        let spec = DenoiseSpec { sampler, steps: (20.0 / tau) as u32, ..DenoiseSpec::default() };
        assert!(DenoiseSpec { adaptive, ..spec.clone() }.resolve(&toy.capabilities).is_err());
        let denoiser = spec.resolve(&toy.capabilities).unwrap();
        let jobs: Vec<Job> = (0..800).map(|_| (particles(6), homes(6)).into()).collect();
        let done = run(jobs, &toy, &denoiser, StreamOptions::default());
        let mean = |f: &dyn Fn(&Denoised) -> f64| done.iter().map(f).sum::<f64>() / 800.0;
        let square = mean(&|d| d.positions.iter().zip(homes(6)).map(|(x, h)| (x - h).powi(2)).sum());
        // 15 degrees of freedom, 800 molecules: standard error 1.3 %.
        assert!((square / 15.0 / sigma.powi(2) - 1.0).abs() < 0.05, "{square}");
        // kT = |F|²/(k n); the toy knows its orientation, which σ̂ assumes it does not: 15 degrees of freedom, not 12.
        let kt = mean(&|d| K * d.sigma_end.powi(2)) * 12.0 / 15.0;
        assert!((kt / (K * sigma * sigma) - 1.0).abs() < 0.05, "{kt}");
    }
}

#[test]
fn paths_depend_neither_on_batches_nor_on_threads_nor_on_the_loop() {
    let toy = Toy::new(Law::Weak);
    for dtype in [DType::F64, DType::F32] {
        for name in Sampler::NAMES {
            for adaptive in [false, true] {
                let spec = DenoiseSpec { adaptive: adaptive.then(Adaptive::default), ..spec(name, 12) };
                let Ok(denoiser) = spec.resolve(&toy.capabilities) else {
                    assert!(adaptive && !spec.sampler.has_schedule());
                    continue;
                };
                let shapes = |id: u32| id.is_multiple_of(2).then_some([0.9, 0.5, 0.2]);
                let denoiser = denoiser.with_targets(Arc::new(shapes));
                let options =
                    |batch_atoms, threads| StreamOptions { dtype, batch_atoms, threads: Some(threads), ..StreamOptions::default() };
                let alone = run(jobs(17, 30.0), &toy, &denoiser, options(1, 1));
                assert_eq!(run(jobs(17, 30.0), &toy, &denoiser, options(50, 1)), alone, "{name}");
                assert_eq!(run(jobs(17, 30.0), &toy, &denoiser, options(100_000, 3)), alone, "{name}");
                if name == "dd" {
                    assert!(alone.iter().any(|d| d.evaluations != alone[0].evaluations), "{alone:?}");
                }
                let (positions, evaluations) = by_propagator(&toy, &denoiser, dtype);
                let flat: Vec<f64> = alone.iter().flat_map(|d| d.positions.clone()).collect();
                assert_eq!((positions, evaluations), (flat, alone.iter().map(|d| d.evaluations).max().unwrap()), "{name}");
            }
        }
    }
}

/// All jobs in one batch under the propagator's own loop: positions and number of steps.
fn by_propagator(toy: &Toy, denoiser: &Denoiser, dtype: DType) -> (Vec<f64>, u64) {
    let jobs = jobs(17, 30.0);
    let batch = Batch::new(jobs.iter().map(|j| j.system.clone()).collect(), (0..17).collect()).unwrap();
    let mut state = State::at_rest(&batch, &jobs.iter().flat_map(|j| j.positions.clone()).collect::<Vec<_>>(), dtype).unwrap();
    let mut out = Output::new(&batch, dtype, Want::FORCES);
    let mut provider = toy.clone();
    let mut propagator = denoiser.propagator();
    let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise: Noise::new(1) };
    propagator.prepare(&mut ctx).unwrap();
    while propagator.progress(17).contains(&Progress::Running) {
        propagator.step(&mut ctx).unwrap();
    }
    (state.positions().to_f64(), state.step)
}

#[test]
fn adaptive_schedules_end_whatever_the_force_says() {
    for factor in [0.0, 0.5, 1.0, 2.0] {
        let toy = Toy::new(Law::Spring { factor });
        for (name, most) in [("ancestral", 20), ("heun", 39), ("stochastic-heun", 39)] {
            let spec = DenoiseSpec { adaptive: Some(Adaptive::default()), ..spec(name, 20) };
            for d in run(jobs(9, 30.0), &toy, &spec.resolve(&toy.capabilities).unwrap(), StreamOptions::default()) {
                // Forces twice too large make Heun's corrector grow without bound, which ends as stalled.
                let ended = d.progress == Progress::Converged || (factor > 1.0 && d.progress == Progress::Stalled);
                assert!(d.evaluations <= most && ended, "{name} {factor} {}", d.evaluations);
                assert!(d.positions.iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn direct_denoising_gives_up_where_told() {
    let toy = Toy::new(Law::Spring { factor: 0.0 });
    let spec = DenoiseSpec { sampler: Sampler::Dd { threshold: None, max_evaluations: 7 }, ..DenoiseSpec::default() };
    assert_eq!(one(&toy, &spec, particles(6), homes(6)).evaluations, 1, "no force is an end");
    let toy = Toy::new(Law::Spring { factor: 0.01 });
    let done = one(&toy, &spec, particles(6), jobs(1, 30.0)[0].positions.clone());
    assert_eq!((done.evaluations, done.progress), (7, Progress::Stalled));
}

#[test]
fn shapes_are_met_exactly_or_not_at_all() {
    let target = [0.5, 0.3, 0.002];
    let mut x = jobs(2, 30.0)[1].positions.clone();
    let before = x.clone();
    enforce_shape(&mut x, target, 0.0);
    assert_eq!(x, before);
    // A turned molecule gives the turned result.
    let turn =
        |x: &[f64]| -> Vec<f64> { x.chunks_exact(3).flat_map(|r| [0.6 * r[0] - 0.8 * r[1], r[2], 0.8 * r[0] + 0.6 * r[1]]).collect() };
    let mut turned = turn(&x);
    enforce_shape(&mut turned, target, 0.7);
    enforce_shape(&mut x, target, 0.7);
    assert!(turn(&x).iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-11));
    enforce_shape(&mut x, target, 1.0);
    let variances = principal_variances(&x);
    assert!(variances.iter().zip(target).all(|(v, t)| (v - t).abs() < 1e-10), "{variances:?}");
    // The sampler's first structure has its target.
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    let denoiser = spec("dd", 4).resolve(&toy.capabilities).unwrap().with_targets(Arc::new(move |_| Some(target)));
    let mut y = before;
    denoiser.walk(Noise::new(0), 0, &particles(12), &mut y).unwrap();
    assert!(principal_variances(&y).iter().zip(target).all(|(v, t)| (v - t).abs() < 1e-10));
    // It lets go in the end.
    let done = run(jobs(1, 30.0), &toy, &denoiser, StreamOptions::default()).remove(0);
    assert!(done.positions.iter().zip(homes(6)).all(|(a, b)| (a - b).abs() < 1e-12));
    assert_eq!(done.evaluations, 5);
}

#[test]
fn scaffolds_do_not_move_by_a_bit() {
    let toy = Toy::new(Law::Weak);
    let mut system = System::particles("held", 12, 1.0);
    system.masses[..4].fill(0.0);
    let system = Arc::new(system);
    let mut x = homes(12).iter().enumerate().map(|(k, x)| x + 0.1 * (k as f64).sin()).collect::<Vec<_>>();
    let scaffold = x[..12].to_vec();
    Prior::Blob(Blob::aligned([2.0, 0.0, 0.0], [0.5, 0.5, 0.0])).draw(&system, Noise::new(4), 0, &mut x);
    assert_eq!(x[..12], scaffold);
    assert!(x[12..].chunks_exact(3).all(|r| r[2] == 0.0 && (r[0] - 2.0).abs() < 3.0));
    for name in Sampler::NAMES {
        for (dtype, compensate_drift) in [(DType::F32, true), (DType::F64, false)] {
            let spec = DenoiseSpec { compensate_drift, ..spec(name, 12) };
            let denoiser = spec.resolve(&toy.capabilities).unwrap().with_targets(Arc::new(|_| Some([0.8, 0.4, 0.1])));
            let options = StreamOptions { dtype, ..StreamOptions::default() };
            let done = run(vec![(system.clone(), x.clone()).into()], &toy, &denoiser, options).remove(0);
            assert_eq!(done.positions[..12], scaffold, "{name}");
            assert_ne!(done.positions[12..], x[12..], "{name}");
        }
    }
}

#[test]
fn drift_is_what_the_scaffold_wishes() {
    // The scaffold is (0.3, 0, 0) from its home: everything else may be so too.
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    let mut system = System::particles("held", 6, 1.0);
    system.masses[..3].fill(0.0);
    let mut x = homes(6);
    x.iter_mut().step_by(3).for_each(|x| *x += 0.3);
    let shifted = x.clone();
    x[9..].iter_mut().for_each(|x| *x += 0.5);
    for (compensate_drift, want) in [(true, &shifted), (false, &homes(6))] {
        let spec = DenoiseSpec { compensate_drift, ..spec("dd", 1) };
        let done = one(&toy, &spec, Arc::new(system.clone()), x.clone());
        assert!(done.positions[9..].iter().zip(&want[9..]).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn noise_levels_are_read_from_forces() {
    let toy = Toy::new(Law::Spring { factor: 1.0 });
    let denoiser = spec("dd", 1).resolve(&toy.capabilities).unwrap();
    let system = particles(6);
    let forces: Vec<f64> = (0..18).map(|k| K * if k % 2 == 0 { 0.2 } else { -0.2 }).collect();
    let level = denoiser.noise_level(&system, View::F64(&forces));
    assert!((level - 0.2 * (18.0f64 / 12.0).sqrt()).abs() < 1e-12);
}

#[test]
fn blobs_have_their_covariance() {
    let covariance = [0.5, 0.1, 0.0, 0.1, 0.3, -0.05, 0.0, -0.05, 0.2];
    let prior = Prior::Blob(Blob::new([1.0, 2.0, 3.0], covariance).unwrap());
    let system = particles(20_000);
    let mut x = vec![0.0; 60_000];
    prior.draw(&system, Noise::new(9), 5, &mut x);
    for a in 0..3 {
        let mean = |f: &dyn Fn(&[f64]) -> f64| x.chunks_exact(3).map(f).sum::<f64>() / 20_000.0;
        let centre = [1.0, 2.0, 3.0];
        assert!((mean(&|r| r[a]) - centre[a]).abs() < 1e-12, "its centre is exact");
        for b in 0..3 {
            let c = mean(&|r| (r[a] - centre[a]) * (r[b] - centre[b]));
            assert!((c - covariance[3 * a + b]).abs() < 0.02, "{c}");
        }
    }
    assert!(Blob::new([0.0; 3], [1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]).is_err());
    assert!(Blob::new([0.0; 3], [1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]).is_err());
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    let toy = Toy::new(Law::Weak);
    let refuse = |spec: DenoiseSpec, capabilities: &Capabilities, part: &str| {
        let message = spec.resolve(capabilities).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(part), "`{message}` does not say {part}");
    };
    let c = &toy.capabilities;
    refuse(spec("sdd", 0), c, "steps = 0");
    refuse(spec("heun", 1), c, "at least 2");
    refuse(DenoiseSpec { sigma_max: Some(Quantity::bare(-3.0)), ..spec("heun", 8) }, c, "sigma-max = -3");
    refuse(DenoiseSpec { sigma_max: Some(Quantity::bare(0.001)), ..spec("heun", 8) }, c, "not below sigma-max");
    refuse(DenoiseSpec { sigma_max: Some(Quantity::new(3.0, "A")), ..spec("heun", 8) }, c, "reduced units");
    refuse(DenoiseSpec { rho: f64::NAN, ..spec("heun", 8) }, c, "rho = NaN");
    refuse(DenoiseSpec { strictness: -1.0, ..spec("dd", 8) }, c, "strictness");
    refuse(DenoiseSpec { adaptive: Some(Adaptive { correction: 2.0, ..Adaptive::default() }), ..spec("heun", 8) }, c, "correction");
    refuse(DenoiseSpec { adaptive: Some(Adaptive::default()), ..spec("sdd", 8) }, c, "no schedule");
    let physical = Capabilities::potential("field");
    refuse(spec("sdd", 8), &physical, "kind physical");
    refuse(spec("sdd", 8), &Capabilities { stiffness: None, ..c.clone() }, "known stiffness");
    let noisy = Capabilities { needs_noise_level: true, ..c.clone() };
    refuse(spec("sdd", 8), &noisy, "ancestral");
    refuse(DenoiseSpec { adaptive: Some(Adaptive::default()), ..spec("heun", 8) }, &noisy, "adaptive");
    // One molecule's error is its own.
    let denoiser = spec("sdd", 8).resolve(c).unwrap();
    let mut jobs = jobs(4, 30.0);
    jobs[1].system = Arc::new(System::particles("frozen", 12, 0.0));
    jobs[2].positions.fill(f64::NAN);
    let mut errors = Vec::new();
    let tally = denoise_all(jobs, &toy, &denoiser, Noise::new(0), &StreamOptions::default(), |i, r| {
        errors.extend(r.err().map(|e| (i, e.to_string())));
    });
    assert_eq!((tally.unwrap().converged, errors.len()), (2, 2));
    assert!(errors[0].1.contains("frozen") && errors[1].1.contains("coordinate"), "{errors:?}");
}
