//! Order in the time step: how fast averages in an anharmonic well approach the exact ones.

use super::common::{Mean, Run, Start, reduced};
use scorefield_integrators::lane::{LaneKernel, LaneProvider};
use scorefield_integrators::simd::Lanes;
use scorefield_integrators::{Capabilities, DType, System, UnitSystem};
use std::sync::Arc;

/// `½ x² + A cos x` along every axis: far from harmonic, yet with bounded curvature, so that errors are powers of the step
/// long before it is unstable. (In a quartic well they are not.)
struct Washboard(Capabilities);

const A: f64 = 1.5;

impl Washboard {
    fn new() -> Self {
        Washboard(Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("washboard") })
    }

    fn energy(x: f64) -> f64 {
        0.5 * x * x + A * x.cos()
    }
}

impl LaneKernel for Washboard {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }
    fn check(&self, _: &System) -> scorefield_integrators::Result<()> {
        Ok(())
    }
    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let mut total = V::zero(t);
        for (&x, f) in x.iter().zip(f.iter_mut()) {
            // Half a turn further, both have the other sign.
            let turns = x * V::lit(t, 1.0 / std::f64::consts::TAU);
            let (sin, cos) = (turns - turns.round() + V::lit(t, 0.5)).sin_cos_turns();
            *f = -V::lit(t, A).mul_add(sin, x);
            if ENERGY {
                total += V::lit(t, 0.5) * x * x - V::lit(t, A) * cos;
            }
        }
        total
    }
}

/// Errors of `⟨observable⟩` at kT = 1 for each step.
fn errors(scheme: &str, steps: &[f64], observable: fn(f64) -> f64, looks: usize) -> Vec<Mean> {
    let (mut exact, mut weight) = (0.0, 0.0);
    for x in (-9000..=9000).map(|i| f64::from(i) * 1e-3) {
        let w = (-Washboard::energy(x)).exp();
        exact += w * observable(x);
        weight += w;
    }
    exact /= weight;
    let one = |&dt: &f64| {
        let particles = 4096;
        let start = Start {
            provider: &LaneProvider::new(Washboard::new()),
            system: Arc::new(System::particles("particle", 1, 1.0)),
            positions: &[1.5, -1.5, 1.5],
            replicas: particles,
            kt: 1.0,
            dtype: DType::F64,
            seed: 5,
            remove_drift: false,
        };
        let mut run = Run::new(&start, &reduced(scheme, dt, 1.0));
        run.run((30.0 / dt) as u64);
        let every = (2.4 / dt).round() as u64;
        let mut sums = vec![0.0; 3 * particles];
        for _ in 0..looks {
            run.run(every);
            let x: &[f64] = run.state.positions().typed().unwrap();
            sums.iter_mut().zip(x).for_each(|(s, &x)| *s += observable(x));
        }
        let mean = Mean::of(sums.iter().map(|s| s / looks as f64));
        Mean { mean: mean.mean - exact, error: mean.error }
    };
    steps.iter().map(one).collect()
}

/// Checks the slope of log |error| between two steps.
#[track_caller]
fn check(what: &str, steps: [f64; 2], errors: &[Mean], order: f64) {
    let span = (steps[1] / steps[0]).ln();
    let relative = |m: &Mean| m.error / m.mean.abs();
    let mean = (errors[1].mean / errors[0].mean).abs().ln() / span;
    let slope = Mean { mean, error: relative(&errors[0]).hypot(relative(&errors[1])) / span };
    eprintln!("{what}: errors {} at {} and {} at {}, slope {slope}", errors[0], steps[0], errors[1], steps[1]);
    assert!(slope.error < 0.12, "{what}: slope {slope} says too little");
    // Over an octave the next order bends the line by about a tenth.
    assert!((slope.mean - order).abs() < 0.2 + 4.0 * slope.error, "{what}: slope {slope} instead of {order}");
}

#[test]
fn baoab_is_of_second_order() {
    let steps = [0.5, 1.0];
    check("BAOAB", steps, &errors("baoab", &steps, |x| x * x, 4000), 2.0);
}

#[test]
fn euler_maruyama_is_of_first_order() {
    let steps = [0.1, 0.2];
    check("Euler–Maruyama", steps, &errors("overdamped", &steps, Washboard::energy, 400), 1.0);
}

#[test]
fn the_limit_method_is_of_second_order() {
    let steps = [0.3, 0.6];
    check("limit method", steps, &errors("overdamped-limit", &steps, |x| x * x, 6000), 2.0);
}
