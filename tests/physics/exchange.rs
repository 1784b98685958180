//! Replica exchange: every temperature keeps its own distribution, and neighbours swap as often as theory says.

use super::common::{Mean, pool, reduced, toy};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::exchange::geometric_ladder;
use scorefield_integrators::{Batch, DType, Dynamics, Ensemble, Exchange, ForceProvider, Guard, Noise, State, System, UnitSystem};
use std::sync::Arc;

/// `copies` ladders of replicas at `positions`, in one thread.
fn ladder(
    provider: &dyn ForceProvider,
    system: System,
    positions: &[f64],
    kt: &[f64],
    copies: usize,
    dt: f64,
    friction: f64,
) -> (Ensemble, Exchange) {
    let replicas = kt.len() * copies;
    let batch = Batch::uniform(Arc::new(system), replicas, 0).unwrap();
    let mut state = State::at_rest(&batch, &positions.repeat(replicas), DType::F64).unwrap();
    let noise = Noise::new(31);
    let exchange = Exchange::new(kt.to_vec(), copies, noise).unwrap();
    for r in 0..replicas {
        state.kt[r] = kt[exchange.rung(r)];
    }
    draw_velocities(&batch, &mut state, noise, false);
    let dynamics = Dynamics::new(&reduced("baoab", dt, friction), UnitSystem::Reduced, false).unwrap();
    (Ensemble::new(batch, &state, provider, &dynamics, noise, pool(1), Guard::default()).unwrap(), exchange)
}

/// Averages of `f(energy, positions)` per rung over `attempts` attempts, `steps` steps apart; `[rung][observable]`. Errors
/// are those of the spread over the independent copies.
fn averages<const N: usize>(
    ensemble: &mut Ensemble,
    exchange: &mut Exchange,
    steps: u64,
    attempts: usize,
    f: impl Fn(f64, &[f64]) -> [f64; N],
) -> Vec<[Mean; N]> {
    let (n, copies) = (exchange.temperatures(), exchange.copies());
    let mut sums = vec![vec![[0.0; N]; copies]; n];
    for _ in 0..attempts {
        ensemble.run(steps).unwrap();
        exchange.attempt(ensemble).unwrap();
        for (rung, sums) in sums.iter_mut().enumerate() {
            for (copy, sum) in sums.iter_mut().enumerate() {
                let r = exchange.replica_at(copy, rung);
                let values = f(ensemble.energy(r), &ensemble.positions(r).to_f64());
                sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
            }
        }
    }
    let mean = |sums: &Vec<[f64; N]>| std::array::from_fn(|i| Mean::of(sums.iter().map(|s| s[i] / attempts as f64)));
    sums.iter().map(mean).collect()
}

/// Probability that harmonic oscillators with `2 k` degrees of freedom at temperatures `low` and `high` swap. Energies are
/// Gamma-distributed, and `⟨min(1, e^{Δβ ΔU})⟩ = 2 P(U_low > U_high)`, an incomplete beta function `I_x(k, k)` with
/// `x = low/(low + high)`; by Simpson's rule.
fn acceptance(k: f64, low: f64, high: f64) -> f64 {
    let integral = |to: f64| {
        let n = 20_000;
        let h = to / n as f64;
        let density = |x: f64| (x * (1.0 - x)).powf(k - 1.0);
        (1..n).map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum::<f64>() * h / 3.0 + density(to) * h / 3.0
    };
    2.0 * integral(low / (low + high)) / integral(1.0)
}

#[test]
fn harmonic_oscillators_swap_as_often_as_theory_says() {
    let (provider, toy) = toy("harmonic:k=1,mass=1");
    let atoms = 5;
    let kt = geometric_ladder(0.5, 2.0, 4).unwrap();
    let copies = 64;
    let system = System::particles("oscillators", atoms, 1.0);
    // At ω dt = 1 and γ = 1.5 ω a replica forgets its energy by e⁻¹⁸ between two attempts, so that all are independent.
    let positions: Vec<f64> = toy.positions.repeat(atoms);
    let (mut ensemble, mut exchange) = ladder(&*provider, system, &positions, &kt, copies, 1.0, 1.5);
    for _ in 0..20 {
        ensemble.run(12).unwrap();
        exchange.attempt(&mut ensemble).unwrap();
    }
    let before: Vec<_> = exchange.swaps().collect();
    let attempts = 2000;
    let k = 1.5 * atoms as f64;
    let got =
        averages(&mut ensemble, &mut exchange, 12, attempts, |u, x| [x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64, u, u * u]);
    for (rung, [x2, u, u2]) in got.iter().enumerate() {
        let t = kt[rung];
        x2.check(t, 0.01 * t, &format!("⟨x²⟩ at rung {rung}"));
        u.check(k * t, 0.01 * k * t, &format!("⟨U⟩ at rung {rung}"));
        // The second moment of a Gamma distribution: the width is right too.
        u2.check(k * (k + 1.0) * t * t, 0.02 * k * (k + 1.0) * t * t, &format!("⟨U²⟩ at rung {rung}"));
    }
    for (pair, ((tried, accepted), (tried_0, accepted_0))) in exchange.swaps().zip(before).enumerate() {
        let (n, p) = ((tried - tried_0) as f64, (accepted - accepted_0) as f64 / (tried - tried_0) as f64);
        let exact = acceptance(k, kt[pair], kt[pair + 1]);
        let rate = Mean { mean: p, error: (exact * (1.0 - exact) / n).sqrt() };
        eprintln!("pair {pair}: acceptance {rate}, exactly {exact:.6}");
        rate.check(exact, 0.01, &format!("acceptance of pair {pair}"));
    }
}

#[test]
fn a_tilted_double_well_has_its_averages_at_every_temperature() {
    let (h, t) = (3.0, 0.5);
    let (provider, toy) = toy(&format!("double-well:barrier={h},tilt={t}"));
    // The coldest replicas alone would cross their barrier of 12 kT about once per million steps.
    let kt = geometric_ladder(0.25, 2.0, 6).unwrap();
    let quadrature = |kt: f64, f: &dyn Fn(f64) -> f64| {
        let (mut top, mut bottom) = (0.0, 0.0);
        for x in (-3000..=3000).map(|i| f64::from(i) * 1e-3) {
            let w = (-(h * (x * x - 1.0f64).powi(2) + t * x) / kt).exp();
            top += w * f(x);
            bottom += w;
        }
        top / bottom
    };
    let (mut ensemble, mut exchange) = ladder(&*provider, toy.system, &toy.positions, &kt, 96, 0.04, 2.0);
    averages(&mut ensemble, &mut exchange, 15, 1500, |_, _| [0.0]);
    let got = averages(&mut ensemble, &mut exchange, 15, 4000, |u, x| [f64::from(u8::from(x[0] < 0.0)), x[0] * x[0], u]);
    for (rung, [left, x2, u]) in got.iter().enumerate() {
        let of = |f: &dyn Fn(f64) -> f64| quadrature(kt[rung], f);
        let exact = of(&|x| if x < 0.0 { 1.0 } else { 0.0 });
        eprintln!("kT = {:.3}: P(x < 0) {left}, exactly {exact:.6}", kt[rung]);
        left.check(exact, 0.01, &format!("P(x < 0) at rung {rung}"));
        x2.check(of(&|x| x * x), 0.01, &format!("⟨x²⟩ at rung {rung}"));
        let energy = of(&|x| h * (x * x - 1.0).powi(2) + t * x);
        u.check(energy, 0.02, &format!("⟨V⟩ at rung {rung}"));
    }
    assert!(exchange.round_trips().sum::<u32>() > 1000);
}
