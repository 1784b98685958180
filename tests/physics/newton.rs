//! Constant energy: velocity Verlet drifts nowhere, fluctuates with the square of its step, and runs backwards.

use super::common::{KT_300, Mean, Molecule, Run, Start, displaced, reduced, si, toy};
use scorefield_integrators::DType;
use std::sync::Arc;

fn start<'a>(molecule: &'a Molecule, positions: &'a [f64], replicas: usize, dtype: DType) -> Start<'a> {
    Start {
        provider: &*molecule.provider,
        system: molecule.system.clone(),
        positions,
        replicas,
        kt: KT_300,
        dtype,
        seed: 21,
        remove_drift: true,
    }
}

/// Total energies of every replica, `[looks][B]`, `every` steps apart.
fn totals(run: &mut Run, looks: usize, every: u64) -> Vec<Vec<f64>> {
    let look = |_| {
        run.run(every);
        let kinetic = run.kinetic();
        run.energies().iter().zip(&kinetic).map(|(u, k)| u + k).collect()
    };
    (0..looks).map(look).collect()
}

/// Least-squares slope of each replica's series.
fn slopes(series: &[Vec<f64>], spacing: f64) -> Vec<f64> {
    let n = series.len() as f64;
    let middle = 0.5 * (n - 1.0);
    let norm: f64 = (0..series.len()).map(|i| (i as f64 - middle).powi(2)).sum::<f64>() * spacing;
    let one = |b: usize| series.iter().enumerate().map(|(i, e)| (i as f64 - middle) * e[b]).sum::<f64>() / norm;
    (0..series[0].len()).map(one).collect()
}

#[test]
fn alanine_dipeptide_keeps_its_energy() {
    let molecule = Molecule::committed("aldp-obc");
    let replicas = 16;
    let positions = molecule.structures(replicas);
    for (dtype, most) in [(DType::F64, 0.02), (DType::F32, 0.02)] {
        let mut run = Run::new(&start(&molecule, &positions, replicas, dtype), &si("verlet", 0.5, 0.0));
        let series = totals(&mut run, 400, 50);
        let drift = Mean::of(slopes(&series, 0.025));
        let worst = slopes(&series, 0.025).iter().fold(0.0f64, |m, s| m.max(s.abs()));
        eprintln!("drift in {dtype} over 10 ps at 0.5 fs: {drift} kJ/mol/ps, at most {worst:.4}");
        assert!(drift.error < most, "{dtype}: {drift} says too little");
        assert!(drift.mean.abs() < 4.0 * drift.error + if dtype == DType::F32 { 0.005 } else { 0.0 }, "{dtype}: drift {drift} kJ/mol/ps");
    }
}

#[test]
fn energy_fluctuates_with_the_square_of_the_step() {
    let molecule = Molecule::committed("aldp-obc");
    let replicas = 16;
    let positions = molecule.structures(replicas);
    let steps = [0.25, 0.5, 1.0];
    let rms = steps.map(|dt| {
        let mut run = Run::new(&start(&molecule, &positions, replicas, DType::F64), &si("verlet", dt, 0.0));
        // Every femtosecond for a picosecond.
        let series = totals(&mut run, 1000, (1.0 / dt) as u64);
        let one = |b: usize| {
            let mean = series.iter().map(|e| e[b]).sum::<f64>() / series.len() as f64;
            (series.iter().map(|e| (e[b] - mean).powi(2)).sum::<f64>() / series.len() as f64).sqrt()
        };
        (0..replicas).map(one).sum::<f64>() / replicas as f64
    });
    eprintln!("energy fluctuates by {rms:.5?} kJ/mol at {steps:?} fs");
    for k in 0..2 {
        let order = (rms[k + 1] / rms[k]).log2();
        assert!((order - 2.0).abs() < 0.15, "{rms:?} at {steps:?} fs: order {order:.3}");
    }
}

/// Largest distance from the start after `steps` steps forth and as many back.
fn there_and_back(start: &Start<'_>, spec: &scorefield_integrators::DynamicsSpec, steps: u64) -> (f64, f64) {
    let mut run = Run::new(start, spec);
    let begin = run.state.positions().to_f64();
    run.run(steps);
    let half = run.state.phase.len() / 2;
    let away = run.state.positions().to_f64();
    for k in half..2 * half {
        let v = run.state.phase.get(k);
        run.state.phase.set(k, -v);
    }
    run.run(steps);
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    (distance(&begin, &away), distance(&begin, &run.state.positions().to_f64()))
}

#[test]
fn motion_runs_backwards() {
    let molecule = Molecule::committed("aldp-obc");
    let positions = molecule.structures(8);
    let (away, back) = there_and_back(&start(&molecule, &positions, 8, DType::F64), &si("verlet", 1.0, 0.0), 200);
    eprintln!("alanine dipeptide went {away:.3} nm and came back within {back:.1e} nm");
    assert!(away > 0.02 && back < 1e-10, "{away} {back}");

    let (provider, toy) = toy("lj:n=13");
    let begin: Vec<f64> = (0..8).flat_map(|s| displaced(&toy.positions, [true; 3], 0.03, s)).collect();
    let start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &begin,
        replicas: 8,
        kt: 0.2,
        dtype: DType::F64,
        seed: 22,
        remove_drift: true,
    };
    let (away, back) = there_and_back(&start, &reduced("verlet", 0.005, 0.0), 400);
    eprintln!("LJ13 went {away:.3} σ and came back within {back:.1e} σ");
    assert!(away > 0.1 && back < 1e-9, "{away} {back}");
}

#[test]
fn a_cluster_keeps_energy_and_momentum() {
    let (provider, toy) = toy("lj:n=13");
    let start = Start {
        provider: &*provider,
        system: Arc::new(toy.system),
        positions: &toy.positions,
        replicas: 16,
        kt: 0.2,
        dtype: DType::F64,
        seed: 23,
        remove_drift: false,
    };
    let mut run = Run::new(&start, &reduced("verlet", 0.005, 0.0));
    let momentum = |run: &Run| -> Vec<f64> {
        let v = run.state.velocities().to_f64();
        (0..48).map(|k| (0..13).map(|i| v[(k / 3) * 39 + 3 * i + k % 3]).sum()).collect()
    };
    let before = momentum(&run);
    let series = totals(&mut run, 400, 50);
    let drift = Mean::of(slopes(&series, 0.25));
    eprintln!("LJ13: drift {drift} ε per unit of time");
    drift.check(0.0, 1e-4, "drift of LJ13");
    for (before, after) in before.iter().zip(momentum(&run)) {
        assert!((before - after).abs() < 1e-10, "momentum {before} became {after}");
    }
}
