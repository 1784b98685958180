//! Metropolis-corrected moves have exact averages at any time step, also where Langevin dynamics is far off.

use super::common::{Mean, Run, Start, json, reduced, toy};
use scorefield_integrators::{DType, DynamicsSpec, Metropolis, MetropolisSpec, Quantity, UnitSystem};
use std::sync::Arc;

fn spec(name: &str, dt: f64, leapfrog: u64) -> MetropolisSpec {
    MetropolisSpec::named(name, Quantity::bare(dt), Quantity::bare(2.0), leapfrog).unwrap()
}

/// `⟨x²⟩`, `⟨V⟩` and `⟨m v²⟩` of a double well, half of the replicas beginning in each; and the accepted part.
fn averages(mut run: Run, looks: usize, every: u64) -> ([Mean; 3], Option<f64>) {
    run.run(300);
    let mut sums = vec![[0.0; 3]; run.batch.replicas()];
    for _ in 0..looks {
        run.run(every);
        run.energies();
        let kinetic = run.kinetic();
        for (b, s) in sums.iter_mut().enumerate() {
            let x = run.state.positions().get(3 * b);
            for (s, v) in s.iter_mut().zip([x * x, run.out.energy[b], 2.0 * kinetic[b]]) {
                *s += v;
            }
        }
    }
    let accepted = run.propagator.acceptance().map(|a| a.accepted as f64 / a.tried as f64);
    (std::array::from_fn(|i| Mean::of(sums.iter().map(|s| s[i] / looks as f64))), accepted)
}

#[test]
fn averages_have_no_error_of_the_time_step() {
    let case = &json("toy_averages.json")["double_well"][1];
    let number = |key: &str| case[key].as_f64().unwrap();
    let (provider, toy) = toy(&format!("double-well:barrier={}", number("h")));
    let positions = [toy.positions.clone(), toy.positions.iter().map(|x| -x).collect()].concat();
    // ω dt = 1.2 at the bottom of the wells.
    let dt = 1.2 / (8.0 * number("h")).sqrt();
    let start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &positions,
        replicas: 1024,
        kt: 1.0,
        dtype: DType::F64,
        seed: 5,
        remove_drift: false,
    };
    for (name, leapfrog, dtype) in [("mala", 1, DType::F64), ("hmc", 4, DType::F64), ("ghmc", 1, DType::F64), ("ghmc", 3, DType::F32)] {
        let start = Start { dtype, ..start.clone() };
        let propagator = Metropolis::new(&spec(name, dt, leapfrog), UnitSystem::Reduced, false).unwrap();
        let ([x2, v, t], accepted) = averages(Run::of(&start, Box::new(propagator), true), 300, 4);
        let accepted = accepted.unwrap();
        eprintln!(
            "{name}, {leapfrog}, {dtype}: ⟨x²⟩ {x2} ({:.6}), ⟨V⟩ {v} ({:.6}), T {t}; {accepted:.3} accepted",
            number("x2"),
            number("energy")
        );
        x2.check(number("x2"), 0.003, &format!("{name} in {dtype}: ⟨x²⟩"));
        v.check(number("energy"), 0.006, &format!("{name} in {dtype}: ⟨V⟩"));
        t.check(1.0, 0.006, &format!("{name} in {dtype}: kinetic temperature"));
        assert!((0.3..0.97).contains(&accepted), "{name}: {accepted} accepted; the test should see refusals");
    }
    // The same step without the test is off by much more than the checks above allow, if it does not lose a replica altogether.
    let plain: DynamicsSpec = reduced("baoab", dt, 2.0);
    let ([x2, v, _], none) = averages(Run::new(&start, &plain), 300, 4);
    assert!(none.is_none());
    let wrong = x2.sigmas_from(number("x2")).max(v.sigmas_from(number("energy")));
    assert!(wrong.is_nan() || wrong > 10.0, "BAOAB at this step should be visibly wrong: {x2}, {v}");
}

#[test]
fn what_cannot_be_tested_is_refused() {
    let (provider, toy) = toy("double-well");
    let mut batch_start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &toy.positions,
        replicas: 1,
        kt: 1.0,
        dtype: DType::F64,
        seed: 5,
        remove_drift: false,
    };
    for (dt, leapfrog, what) in [(0.0, 1, "time step"), (-1.0, 1, "time step"), (0.1, 0, "Verlet steps")] {
        let spec = MetropolisSpec { dt: Quantity::bare(dt), leapfrog, friction: None };
        let message = Metropolis::new(&spec, UnitSystem::Reduced, false).err().unwrap().to_string();
        assert!(message.contains(what), "{message}");
    }
    batch_start.kt = 0.0;
    let cold = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let propagator = Metropolis::new(&spec("hmc", 0.1, 3), UnitSystem::Reduced, false).unwrap();
        Run::of(&batch_start, Box::new(propagator), false);
    }));
    assert!(cold.is_err(), "a test at kT = 0 has no meaning");
}
