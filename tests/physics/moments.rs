//! Stationary moments in a harmonic well at steps up to the edge of stability, against the exact ones of each scheme.

use super::common::{Mean, Run, Start, json, reduced, toy};
use scorefield_integrators::DType;
use std::sync::Arc;

// Numbers that are nobody's default, so that no factor can hide.
const STIFFNESS: f64 = 3.7;
const MASS: f64 = 2.3;
const KT: f64 = 1.7;

/// `⟨x²⟩ k/kT`, `⟨v²⟩ m/kT` and `⟨x v⟩ √(k m)/kT`.
struct Moments {
    x2: Mean,
    v2: Mean,
    xv: Mean,
}

/// `particles` three-dimensional oscillators under a scheme, averaged over 16 looks after equilibration.
fn measure(scheme: &str, dt: f64, friction: f64, dtype: DType, particles: usize, seed: u64) -> Moments {
    let (provider, toy) = toy(&format!("harmonic:k={STIFFNESS},mass={MASS},dimension=3"));
    let start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &[0.0; 3],
        replicas: particles,
        kt: KT,
        dtype,
        seed,
        remove_drift: false,
    };
    let mut run = Run::new(&start, &reduced(scheme, dt, friction));
    // The slowest mode of all cases has forgotten its start by e⁻²⁰ after this.
    run.run(400);
    let n = 3 * particles;
    let mut sums = vec![[0.0; 3]; n];
    const LOOKS: usize = 16;
    for _ in 0..LOOKS {
        run.run(12);
        let (x, v) = (run.state.positions(), run.state.velocities());
        for (k, s) in sums.iter_mut().enumerate() {
            let (x, v) = (x.get(k), v.get(k));
            s[0] += x * x;
            s[1] += v * v;
            s[2] += x * v;
        }
    }
    // Oscillators along different axes and of different particles are independent.
    let mean = |i: usize, unit: f64| Mean::of(sums.iter().map(|s| s[i] / (LOOKS as f64 * unit)));
    Moments { x2: mean(0, KT / STIFFNESS), v2: mean(1, KT / MASS), xv: mean(2, KT / (STIFFNESS * MASS).sqrt()) }
}

#[test]
fn langevin_schemes_have_their_exact_moments() {
    let cases = json("harmonic_moments.json");
    let omega = (STIFFNESS / MASS).sqrt();
    let (mut worst, mut compared) = (0.0f64, 0);
    for case in cases["underdamped"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let scheme = match case["scheme"].as_str().unwrap() {
            "baoa" => "middle",
            other => other,
        };
        let (omega_dt, gamma_over_omega) = (number("omega_dt"), number("gamma_over_omega"));
        for (dtype, seed) in [(DType::F32, 1), (DType::F64, 2)] {
            let got = measure(scheme, omega_dt / omega, gamma_over_omega * omega, dtype, 4096, seed);
            let what = |moment| format!("{scheme} in {dtype} at ω dt = {omega_dt}, γ/ω = {gamma_over_omega}: {moment}");
            let (x2, v2) = (number("x2"), number("v2"));
            got.x2.check(x2, 0.02 * x2, &what("⟨x²⟩"));
            got.v2.check(v2, 0.02 * v2, &what("⟨v²⟩"));
            got.xv.check(number("xv"), 0.02 * (x2 * v2).sqrt(), &what("⟨xv⟩"));
            for (mean, exact) in [(got.x2, x2), (got.v2, v2), (got.xv, number("xv"))] {
                worst = worst.max(mean.sigmas_from(exact));
                compared += 1;
            }
            // The moments tell this scheme from the others at the same step.
            for other in cases["underdamped"].as_array().unwrap() {
                let same_step = other["omega_dt"] == case["omega_dt"] && other["gamma_over_omega"] == case["gamma_over_omega"];
                if same_step && other["scheme"] != case["scheme"] {
                    let of = |key: &str| other[key].as_f64().unwrap();
                    let apart = got.x2.sigmas_from(of("x2")).max(got.v2.sigmas_from(of("v2"))).max(got.xv.sigmas_from(of("xv")));
                    assert!(apart > 10.0, "{} could be {}: {apart:.1} standard errors", what("moments"), other["scheme"]);
                }
            }
        }
    }
    assert_eq!(compared, 3 * 12 * 3 * 2);
    eprintln!("{compared} moments of underdamped schemes, at most {worst:.2} standard errors from exact");
}

#[test]
fn overdamped_schemes_have_their_exact_variance() {
    let cases = json("harmonic_moments.json");
    let friction = 2.9;
    let mut worst = 0.0f64;
    for case in cases["overdamped"].as_array().unwrap() {
        let scheme = match case["scheme"].as_str().unwrap() {
            "euler_maruyama" => "overdamped",
            "leimkuhler_matthews" => "overdamped-limit",
            other => panic!("unknown scheme {other}"),
        };
        let step = case["mobility_step"].as_f64().unwrap();
        let exact = case["x2"].as_f64().unwrap();
        for (dtype, seed) in [(DType::F32, 3), (DType::F64, 4)] {
            let got = measure(scheme, step * MASS * friction / STIFFNESS, friction, dtype, 4096, seed);
            got.x2.check(exact, 0.02 * exact, &format!("{scheme} in {dtype} at h k μ = {step}"));
            worst = worst.max(got.x2.sigmas_from(exact));
            // Motion without velocities leaves none.
            assert_eq!((got.v2.mean, got.xv.mean), (0.0, 0.0));
        }
    }
    eprintln!("variances of overdamped schemes at most {worst:.2} standard errors from exact");
}
