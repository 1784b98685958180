//! Averages over anharmonic landscapes against quadrature.

use super::common::{Mean, Run, Start, json, reduced, toy};
use scorefield_integrators::{DType, DynamicsSpec};
use std::sync::Arc;

/// How long and how often to look.
struct Plan {
    replicas: usize,
    equilibration: u64,
    looks: usize,
    every: u64,
}

/// Averages of `⟨x⟩, ⟨y⟩, ⟨x²⟩, P(x < 0), ⟨V⟩` of the toy `model`.
fn averages(model: &str, kt: f64, dtype: DType, spec: &DynamicsSpec, plan: &Plan) -> [Mean; 5] {
    let (provider, toy) = toy(model);
    // Every second replica begins on the other side of a barrier at the origin, where there is one.
    let mirrored: Vec<f64> = toy.positions.iter().map(|x| -x).collect();
    let one_dimensional = toy.system.dimension() == 1;
    let both = [&toy.positions[..], if one_dimensional { &mirrored } else { &toy.positions }].concat();
    let start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &both,
        replicas: plan.replicas,
        kt,
        dtype,
        seed: 41,
        remove_drift: false,
    };
    let mut run = Run::new(&start, spec);
    run.run(plan.equilibration);
    let mut sums = vec![[0.0; 5]; plan.replicas];
    for _ in 0..plan.looks {
        run.run(plan.every);
        run.energies();
        let x = run.state.positions();
        for (b, s) in sums.iter_mut().enumerate() {
            let (x, y) = (x.get(3 * b), x.get(3 * b + 1));
            for (s, v) in s.iter_mut().zip([x, y, x * x, f64::from(u8::from(x < 0.0)), run.out.energy[b]]) {
                *s += v;
            }
        }
    }
    std::array::from_fn(|i| Mean::of(sums.iter().map(|s| s[i] / plan.looks as f64)))
}

#[test]
fn double_wells() {
    let cases = json("toy_averages.json");
    for case in cases["double_well"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let (h, t) = (number("h"), number("t"));
        let model = format!("double-well:barrier={h},tilt={t}");
        // ω dt = 0.3 at the bottom of the wells; the limit method's step is a seventh of their relaxation time.
        let dt = 0.3 / (8.0 * h).sqrt();
        let curvature = 8.0 * h;
        let runs = [
            ("baoab", DType::F64, reduced("baoab", dt, 1.0), Plan { replicas: 2048, equilibration: 5000, looks: 400, every: 30 }),
            ("baoab", DType::F32, reduced("baoab", dt, 1.0), Plan { replicas: 2048, equilibration: 5000, looks: 400, every: 30 }),
            (
                "overdamped-limit",
                DType::F64,
                reduced("overdamped-limit", 0.15 / curvature, 1.0),
                Plan { replicas: 2048, equilibration: 20_000, looks: 400, every: 60 },
            ),
        ];
        for (scheme, dtype, spec, plan) in runs {
            let [x, _, x2, left, v] = averages(&model, 1.0, dtype, &spec, &plan);
            let what = |q: &str| format!("{model} by {scheme} in {dtype}: {q}");
            eprintln!("{}: {x2} ({:.6}), P(x < 0) {left} ({:.6})", what("⟨x²⟩"), number("x2"), number("p_left"));
            x.check(number("x"), 0.02, &what("⟨x⟩"));
            x2.check(number("x2"), 0.01 * number("x2"), &what("⟨x²⟩"));
            v.check(number("energy"), 0.01, &what("⟨V⟩"));
            left.check(number("p_left"), 0.01, &what("P(x < 0)"));
        }
    }
}

#[test]
fn muller_brown() {
    let cases = json("toy_averages.json");
    for case in cases["mueller_brown"]["averages"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let kt = number("kT");
        // At kT = 10 the two deep minima exchange too seldom for a test.
        let Some(length) = [(15.0, 4), (20.0, 2), (30.0, 1)].iter().find(|l| l.0 == kt).map(|l| l.1) else { continue };
        let runs = [
            ("baoab", DType::F64, reduced("baoab", 0.004, 10.0), length),
            ("overdamped-limit", DType::F32, reduced("overdamped-limit", 5e-5, 1.0), 2 * length),
        ];
        for (scheme, dtype, spec, length) in runs {
            let plan = Plan { replicas: 2048, equilibration: 10_000 * length, looks: 200, every: 100 * length };
            let [x, y, _, _, v] = averages("muller-brown", kt, dtype, &spec, &plan);
            let what = |q: &str| format!("Müller–Brown at kT = {kt} by {scheme} in {dtype}: {q}");
            eprintln!("{}: {x} ({:.6}), {y} ({:.6}), {v} ({:.6})", what("⟨x⟩, ⟨y⟩, ⟨V⟩"), number("x"), number("y"), number("energy"));
            x.check(number("x"), 0.01, &what("⟨x⟩"));
            y.check(number("y"), 0.01, &what("⟨y⟩"));
            v.check(number("energy"), 0.01 * number("energy").abs(), &what("⟨V⟩"));
        }
    }
}
