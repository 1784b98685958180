//! Analytic potentials against their formulas, their gradients, published minima and the plain loop.

use crate::analytic::{self, DoubleWell, DoubleWell2d, Harmonic, LennardJones, MullerBrown, cluster_positions};
use crate::testing::{self, Sample};
use crate::{ProviderSpec, Toy, parse_spec};
use scorefield_integrators::lane::{LaneKernel, LaneProvider};
use scorefield_integrators::{DType, ForceProvider, Noise, Purpose, System, UnitSystem, Want};

fn build(text: &str) -> (Box<dyn ForceProvider>, Toy) {
    let built = parse_spec(text).unwrap().build().unwrap();
    (built.provider, built.toy.unwrap())
}

const ALL: [&str; 8] = [
    "harmonic:k=2.5,dimension=1",
    "harmonic:k=2.5",
    "harmonic:k=300 kJ/mol/nm^2,mass=12 u",
    "double-well:barrier=5,tilt=0.5",
    "double-well-2d:barrier=2,tilt=0.3,k=1.7",
    "muller-brown",
    "lj:n=7",
    "lj:sigma=3.405 A,epsilon=0.0103 eV",
];

/// A displacement that is small next to the lengths of model `text`.
fn amplitude(text: &str) -> f64 {
    if text.contains(" A") { 0.01 } else { 0.07 }
}

#[test]
fn forces_are_minus_the_gradient() {
    for text in ALL {
        let (mut provider, toy) = build(text);
        for seed in 0..3 {
            testing::check_forces(&mut *provider, &Sample::of_toy(&toy).displaced(amplitude(text), seed), 1e-8);
        }
    }
}

#[test]
fn a_replica_does_not_depend_on_its_neighbours() {
    for text in ALL {
        let (mut provider, toy) = build(text);
        let base = Sample::of_toy(&toy);
        // Ragged where the model takes any number of atoms: equal systems in runs, broken by another one.
        let mut samples: Vec<Sample> = (0..21).map(|s| base.displaced(amplitude(text), s)).collect();
        if text.starts_with("lj") {
            for (at, n) in [(0, 2), (5, 20), (6, 33), (18, 1)] {
                let positions = cluster_positions(n, base.positions.iter().fold(0f64, |m, x| m.max(x.abs()))).unwrap();
                samples[at] = Sample::new(System::particles("other", n, 1.0), positions).displaced(amplitude(text), 99);
            }
        }
        testing::check_batch_invariance(&mut *provider, &samples);
    }
}

#[test]
fn fused_stepping_equals_the_plain_loop() {
    for text in ALL {
        let (mut provider, toy) = build(text);
        let si = provider.capabilities().units == UnitSystem::Si;
        let (dt, kt) = if text == "muller-brown" {
            (2e-3, 5.0)
        } else if si {
            (2e-3, 0.3)
        } else {
            (2e-3, 0.1)
        };
        testing::check_fused(&mut *provider, &Sample::of_toy(&toy), dt, kt, 20);
    }
}

#[test]
fn clusters_move_rigidly_and_permute() {
    for text in ["lj:n=13", "lj:n=20", "lj:sigma=3.405 A,epsilon=0.0103 eV,n=38"] {
        let (mut provider, toy) = build(text);
        let sample = Sample::of_toy(&toy).displaced(amplitude(text), 1);
        testing::check_rigid_motion(&mut *provider, &sample, 1e-11);
        testing::check_permutation(&mut *provider, &sample, 1e-12);
    }
}

/// Values of lanes against `formula`, which gives energy and forces of one sample.
fn check_formula<K: LaneKernel>(kernel: K, sample: &Sample, scale: f64, formula: impl Fn(&[f64]) -> (f64, Vec<f64>)) {
    let mut provider = LaneProvider::new(kernel);
    for replicas in [1, 5, 16] {
        let samples: Vec<Sample> = (0..replicas).map(|s| sample.displaced(scale, s)).collect();
        for (dtype, tolerance) in [(DType::F64, 2e-13), (DType::F32, 2e-4)] {
            let out = testing::evaluate(&mut provider, &samples, dtype, Want::ENERGY);
            let forces = out.forces.to_f64();
            for (b, s) in samples.iter().enumerate() {
                let rounded: Vec<f64> = match dtype {
                    DType::F64 => s.positions.clone(),
                    DType::F32 => s.positions.iter().map(|&x| f64::from(x as f32)).collect(),
                };
                let (energy, f) = formula(&rounded);
                let size = f.iter().fold(energy.abs().max(1.0), |m, x| m.max(x.abs()));
                assert!((out.energy[b] - energy).abs() <= tolerance * size, "energy {} instead of {energy}", out.energy[b]);
                for (got, want) in forces[b * f.len()..].iter().zip(&f) {
                    assert!((got - want).abs() <= tolerance * size, "force {got} instead of {want}");
                }
            }
        }
    }
}

#[test]
fn lanes_agree_with_the_scalar_formulas() {
    let line = System { axes: [true, false, false], ..System::particles("line", 1, 1.0) };
    let plane = System { axes: [true, true, false], ..System::particles("plane", 1, 1.0) };
    let wells = |h: f64, t: f64, x: f64| (h * (x * x - 1.0).powi(2) + t * x, -4.0 * h * x * (x * x - 1.0) - t);
    check_formula(DoubleWell::new(4.0, 0.7).unwrap(), &Sample::new(line, vec![0.4, 0.0, 0.0]), 0.5, |x| {
        let (e, f) = wells(4.0, 0.7, x[0]);
        (e, vec![f, 0.0, 0.0])
    });
    check_formula(DoubleWell2d::new(4.0, 0.7, 2.0).unwrap(), &Sample::new(plane.clone(), vec![0.4, 0.2, 0.0]), 0.5, |x| {
        let (e, f) = wells(4.0, 0.7, x[0]);
        (e + x[1] * x[1], vec![f, -2.0 * x[1], 0.0])
    });
    let centre = vec![0.1, -0.2, 0.3, 1.0, 2.0, 3.0];
    let harmonic = Harmonic::new(3.0, [true; 3], UnitSystem::Reduced).unwrap().centred_at(centre.clone()).unwrap();
    check_formula(harmonic, &Sample::new(System::particles("two", 2, 1.0), vec![0.0; 6]), 0.5, |x| {
        let d: Vec<f64> = x.iter().zip(&centre).map(|(x, c)| x - c).collect();
        (1.5 * d.iter().map(|d| d * d).sum::<f64>(), d.iter().map(|d| -3.0 * d).collect())
    });
    check_formula(MullerBrown::new(), &Sample::new(plane, vec![0.2, 0.4, 0.0]), 0.4, |p| {
        let (mut e, mut f) = (0.0, vec![0.0; 3]);
        let rows = [
            [-200.0, -1.0, 0.0, -10.0, 1.0, 0.0],
            [-100.0, -1.0, 0.0, -10.0, 0.0, 0.5],
            [-170.0, -6.5, 11.0, -6.5, -0.5, 1.5],
            [15.0, 0.7, 0.6, 0.7, -1.0, 1.0],
        ];
        for [amplitude, a, b, c, x0, y0] in rows {
            let (u, v) = (p[0] - x0, p[1] - y0);
            let term = amplitude * (a * u * u + b * u * v + c * v * v).exp();
            e += term;
            f[0] -= term * (2.0 * a * u + b * v);
            f[1] -= term * (b * u + 2.0 * c * v);
        }
        (e, f)
    });
    let (sigma, epsilon) = (0.34, 0.99);
    let cluster = Sample::new(System::particles("cluster", 9, 40.0), cluster_positions(9, 0.38).unwrap());
    check_formula(LennardJones::new(sigma, epsilon, UnitSystem::Si).unwrap(), &cluster, 0.01, |x| {
        let (mut e, mut f) = (0.0, vec![0.0; x.len()]);
        for i in 0..x.len() / 3 {
            for j in 0..i {
                let d: [f64; 3] = std::array::from_fn(|a| x[3 * i + a] - x[3 * j + a]);
                let r = d.iter().map(|d| d * d).sum::<f64>().sqrt();
                e += 4.0 * epsilon * ((sigma / r).powi(12) - (sigma / r).powi(6));
                let slope = 24.0 * epsilon * (2.0 * (sigma / r).powi(12) - (sigma / r).powi(6)) / (r * r);
                for a in 0..3 {
                    f[3 * i + a] += slope * d[a];
                    f[3 * j + a] -= slope * d[a];
                }
            }
        }
        (e, f)
    });
}

/// Newton's method on the forces, with a Jacobian from finite differences; for the stationary points of a plane.
fn stationary_point(provider: &mut dyn ForceProvider, toy: &Toy, from: [f64; 2]) -> [f64; 3] {
    let base = Sample::of_toy(toy);
    let mut at = |p: [f64; 2]| {
        let sample = Sample { positions: vec![p[0], p[1], 0.0], ..base.clone() };
        let out = testing::evaluate(provider, &[sample], DType::F64, Want::ENERGY);
        let f = out.forces.to_f64();
        ([f[0], f[1]], out.energy[0])
    };
    let mut p = from;
    for _ in 0..20 {
        let (f, _) = at(p);
        let h = 1e-5;
        let column = |plus: [f64; 2], minus: [f64; 2]| [(plus[0] - minus[0]) / (2.0 * h), (plus[1] - minus[1]) / (2.0 * h)];
        let jx = column(at([p[0] + h, p[1]]).0, at([p[0] - h, p[1]]).0);
        let jy = column(at([p[0], p[1] + h]).0, at([p[0], p[1] - h]).0);
        let det = jx[0] * jy[1] - jy[0] * jx[1];
        p[0] -= (f[0] * jy[1] - jy[0] * f[1]) / det;
        p[1] -= (jx[0] * f[1] - f[0] * jx[1]) / det;
    }
    [p[0], p[1], at(p).1]
}

#[test]
fn muller_brown_has_its_published_stationary_points() {
    let (mut provider, toy) = build("muller-brown");
    for want in analytic::MULLER_BROWN_MINIMA.iter().chain(&analytic::MULLER_BROWN_SADDLES) {
        let found = stationary_point(&mut *provider, &toy, [want[0] + 0.01, want[1] - 0.01]);
        for (found, want) in found.iter().zip(want) {
            assert!((found - want).abs() <= 1e-8, "{found} instead of {want}");
        }
    }
}

/// Steepest descent with Barzilai–Borwein steps.
fn relax(provider: &mut dyn ForceProvider, sample: &Sample) -> f64 {
    let mut s = sample.clone();
    let forces =
        |p: &mut dyn ForceProvider, s: &Sample| testing::evaluate(p, std::slice::from_ref(s), DType::F64, Want::FORCES).forces.to_f64();
    let mut f = forces(provider, &s);
    let mut step = 1e-4;
    for _ in 0..20_000 {
        if f.iter().all(|f| f.abs() < 1e-10) {
            break;
        }
        let moves: Vec<f64> = f.iter().map(|f| (step * f).clamp(-0.05, 0.05)).collect();
        s.positions.iter_mut().zip(&moves).for_each(|(x, m)| *x += m);
        let next = forces(provider, &s);
        let (ss, sy) = moves.iter().zip(next.iter().zip(&f)).fold((0.0, 0.0), |(ss, sy), (m, (n, f))| (ss + m * m, sy - m * (n - f)));
        step = if sy > 0.0 { ss / sy } else { 1e-4 };
        f = next;
    }
    testing::evaluate(provider, &[s], DType::F64, Want::ENERGY).energy[0]
}

#[test]
fn clusters_relax_to_their_known_energies() {
    // J. P. K. Doye and D. J. Wales' global minima, in units of ε.
    for (n, known) in [(2, -1.0), (3, -3.0), (13, -44.326801), (38, -173.928427), (55, -279.248470)] {
        let (mut provider, toy) = build(&format!("lj:n={n}"));
        let energy = relax(&mut *provider, &Sample::of_toy(&toy));
        assert!((energy - known).abs() <= 1e-6, "LJ{n} relaxed to {energy} instead of {known}");
    }
}

#[test]
fn units_decide_together() {
    let reduced = relax(&mut *build("lj:n=13").0, &Sample::of_toy(&build("lj:n=13").1));
    let (mut argon, toy) = build("lj:sigma=3.405 A,epsilon=0.0103 eV,n=13");
    assert_eq!(toy.system.types[0], 18);
    let si = relax(&mut *argon, &Sample::of_toy(&toy).displaced(1e-3, 0));
    let epsilon = 0.0103 * 96.48533212331002;
    assert!((si / epsilon - reduced).abs() < 1e-8, "{si}");
    let refused = parse_spec("lj:sigma=3.4 A,epsilon=1").unwrap().build().err().unwrap().to_string();
    assert!(refused.contains("epsilon = 1 has none"), "{refused}");
    assert!(parse_spec("double-well:barrier=1 kJ/mol").unwrap().build().is_err());
    assert!(parse_spec("harmonic:k=3 nm").unwrap().build().is_err());
}

#[test]
fn centre_start_binds_to_the_given_positions() {
    let spec = parse_spec("harmonic:k=10 kJ/mol/nm^2,centre=start").unwrap();
    let start: Vec<f64> = (0..12).map(|i| Noise::new(1).normals(i, 0, 0, Purpose::Displacement)[0]).collect();
    let mut provider = spec.build_at(Some(&start)).unwrap().provider;
    let sample = Sample::new(System::particles("four", 4, 1.0), start);
    let out = testing::evaluate(&mut *provider, &[sample], DType::F64, Want::ENERGY);
    assert_eq!((out.energy[0], out.forces.get(3)), (0.0, 0.0));
    let three = Sample::new(System::particles("three", 3, 1.0), vec![0.0; 9]);
    let batch = scorefield_integrators::Batch::uniform(three.system, 1, 0).unwrap();
    assert!(provider.prepare(&batch, DType::F64).unwrap_err().to_string().contains("centres for 4"));
    assert!(matches!(spec, ProviderSpec::Harmonic(_)));
}

#[test]
fn kernels_give_the_same_forces_and_trajectories() {
    let mut compiled = std::collections::BTreeSet::new();
    for text in ALL {
        let (provider, toy) = build(text);
        let base = Sample::of_toy(&toy);
        let mut samples: Vec<Sample> = (0..5).map(|s| base.displaced(amplitude(text), s)).collect();
        if text.starts_with("lj") {
            // More atoms than threads of a warp, and a ragged batch.
            let spacing = base.positions.iter().fold(0f64, |m, x| m.max(x.abs()));
            let positions = cluster_positions(40, spacing).unwrap();
            samples.push(Sample::new(System::particles("other", 40, base.system.masses[0]), positions).displaced(amplitude(text), 9));
        }
        let (dt, kt) = if text.contains(" A") || text.contains("kJ") { (0.002, 1.0) } else { (0.004, 0.7) };
        testing::check_device(&*provider, &samples, dt, kt, 10, 1e-5);
        if compiled.insert(provider.capabilities().name.clone()) {
            testing::check_kernels_compile(&*provider, &samples[0].system);
        }
    }
}
