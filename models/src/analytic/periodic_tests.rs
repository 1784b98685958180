//! Periodic Lennard-Jones: gradients and virial in skewed cells, lists against all pairs, energy conservation, refusals.

use super::lennard_jones_periodic::LennardJonesPeriodic;
use super::{LennardJonesSpec, Toy};
use crate::testing::{self, Sample};
use scorefield_integrators::state::Cell;
use scorefield_integrators::{
    Array, Batch, Context, DType, Dynamics, DynamicsSpec, ForceProvider, Noise, Output, Propagator, Quantity, State, System, UnitSystem,
    Want,
};
use std::sync::Arc;

fn crystal(n: usize) -> Toy {
    LennardJonesSpec { cutoff: Some(Quantity::bare(2.5)), n: Some(n), ..LennardJonesSpec::default() }.build().unwrap().1
}

fn provider(cutoff: f64, shift: bool) -> LennardJonesPeriodic {
    LennardJonesPeriodic::new(1.0, 1.0, cutoff, shift, 0.3, UnitSystem::Reduced).unwrap()
}

/// Skews `sample` by a shear and a rotation.
fn skewed(sample: &Sample) -> Sample {
    let shear = |rows: &[f64]| -> Vec<f64> {
        rows.chunks_exact(3).flat_map(|r| [r[0] + 0.3 * r[1] - 0.2 * r[2], r[1] + 0.25 * r[2], r[2]]).collect()
    };
    let cell = sample.cell.unwrap();
    let (rows, cell) = (testing::rotate(&shear(&sample.positions)), testing::rotate(&shear(&cell)));
    Sample { system: sample.system.clone(), positions: rows, cell: Some(std::array::from_fn(|k| cell[k])) }
}

#[test]
fn forces_and_virial_are_derivatives_of_the_energy() {
    let sample = Sample::of_toy(&crystal(32)).displaced(0.05, 3);
    for sample in [sample.clone(), skewed(&sample)] {
        // No pair of these samples is at this distance, where the force jumps.
        let mut provider = provider(1.33, true);
        testing::check_forces(&mut provider, &sample, 1e-8);
        testing::check_virial(&mut provider, &sample, 1e-7);
        testing::check_rigid_motion(&mut provider, &sample, 1e-11);
        testing::check_permutation(&mut provider, &sample, 1e-12);
    }
}

/// Every image in turn, for a check of the nearest-image search.
fn slow_energy(sample: &Sample, cutoff: f64) -> f64 {
    let (x, cell) = (&sample.positions, sample.cell.unwrap());
    let n = x.len() / 3;
    let mut e = 0.0;
    for i in 0..n {
        for j in 0..n {
            for image in 0..343 {
                let s = [image / 49 - 3, image / 7 % 7 - 3, image % 7 - 3].map(f64::from);
                let r2: f64 =
                    (0..3).map(|a| (x[3 * j + a] - x[3 * i + a] + (0..3).map(|k| s[k] * cell[3 * k + a]).sum::<f64>()).powi(2)).sum();
                if r2 > 0.0 && r2 < cutoff * cutoff {
                    let s6 = 1.0 / r2.powi(3);
                    e += 2.0 * (s6 * s6 - s6);
                }
            }
        }
    }
    e
}

#[test]
fn nearest_images_are_found_in_skewed_cells() {
    let sample = skewed(&Sample::of_toy(&crystal(32)).displaced(0.3, 4));
    // Scattered over several cells.
    let mut far = sample.clone();
    for (i, r) in far.positions.chunks_exact_mut(3).enumerate() {
        for a in 0..3 {
            r[a] += sample.cell.unwrap()[3 * (i % 3) + a] * (i as f64 % 3.0 - 1.0);
        }
    }
    for s in [sample, far] {
        let lattice = super::lattice::Lattice::new(&s.cell.unwrap()).unwrap();
        let cutoff = 0.5 * lattice.smallest_height();
        let got = testing::evaluate(&mut provider(cutoff, false), std::slice::from_ref(&s), DType::F64, Want::ENERGY).energy[0];
        let want = slow_energy(&s, cutoff);
        assert!((got - want).abs() <= 1e-11 * want.abs(), "{got} instead of {want}");
    }
}

#[test]
fn a_replica_does_not_depend_on_its_neighbours() {
    let samples: Vec<Sample> = [108, 32, 256, 32, 500].into_iter().map(|n| Sample::of_toy(&crystal(n)).displaced(0.1, n as u64)).collect();
    let mut samples: Vec<Sample> = samples.iter().flat_map(|s| [s.clone(), skewed(s)]).collect();
    samples[1].positions[0] += 100.0;
    testing::check_batch_invariance(&mut provider(1.5, false), &samples);
}

struct Run {
    batch: Batch,
    state: State,
    out: Output,
    dynamics: Dynamics,
    provider: LennardJonesPeriodic,
}

impl Run {
    fn new(provider: LennardJonesPeriodic, sample: &Sample, dtype: DType, kt: f64, dt: f64) -> Self {
        let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
        let mut state = State::at_rest(&batch, &sample.positions, dtype).unwrap();
        state.cells = Some(vec![sample.cell.unwrap()]);
        state.kt.fill(kt);
        scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, Noise::new(3), true);
        let spec = DynamicsSpec::Verlet { dt: Quantity::bare(dt) };
        let dynamics = Dynamics::new(&spec, UnitSystem::Reduced, false).unwrap();
        let out = Output::new(&batch, dtype, Want { virial: true, atom_energy: true, ..Want::ENERGY });
        let mut run = Run { batch, state, out, dynamics, provider };
        run.with(|d, ctx| d.prepare(ctx).unwrap());
        run
    }

    fn with(&mut self, f: impl FnOnce(&mut Dynamics, &mut Context<'_>)) {
        let mut ctx =
            Context { batch: &self.batch, state: &mut self.state, provider: &mut self.provider, out: &mut self.out, noise: Noise::new(3) };
        f(&mut self.dynamics, &mut ctx);
    }

    fn step(&mut self) {
        self.with(|d, ctx| d.step(ctx).unwrap());
    }

    fn energies(&mut self) -> f64 {
        self.with(|_, ctx| ctx.evaluate(Want { virial: true, atom_energy: true, ..Want::ENERGY }).unwrap());
        self.out.energy[0] + self.state.kinetic_energy(&self.batch, 0)
    }
}

#[test]
fn lists_and_all_pairs_give_the_same_bits_along_a_run() {
    let sample = Sample::of_toy(&crystal(500)).displaced(0.02, 1);
    for sample in [sample.clone(), skewed(&sample)] {
        for dtype in [DType::F64, DType::F32] {
            let mut listed = Run::new(provider(2.5, false).with_lists_from(0), &sample, dtype, 1.5, 0.005);
            let mut all = Run::new(provider(2.5, false).with_lists_from(usize::MAX), &sample, dtype, 1.5, 0.005);
            for step in 0..120 {
                listed.step();
                all.step();
                assert_eq!(listed.state, all.state, "step {step} in {dtype}");
                if step % 30 == 0 {
                    listed.energies();
                    all.energies();
                    assert_eq!(listed.out, all.out, "step {step} in {dtype}");
                }
            }
            let start = Array::from_f64(dtype, &sample.positions);
            let moved = (0..start.len()).map(|k| (listed.state.phase.get(k) - start.get(k)).abs()).fold(0.0, f64::max);
            assert!(moved > 0.3, "atoms moved only {moved}; the lists were never rebuilt");
        }
    }
}

#[test]
fn energy_is_conserved() {
    let sample = Sample::of_toy(&crystal(256)).displaced(0.02, 1);
    let mut run = Run::new(provider(2.5, true), &sample, DType::F64, 1.4, 0.002);
    (0..200).for_each(|_| run.step());
    let start = run.energies();
    let mut worst = 0f64;
    for _ in 0..20 {
        (0..50).for_each(|_| run.step());
        worst = worst.max((run.energies() - start).abs() / 256.0);
    }
    assert!(worst < 5e-4, "energy per atom drifted by {worst} ε");
}

#[test]
fn what_does_not_fit_is_refused() {
    let toy = crystal(108);
    let evaluate = |cutoff: f64, cell: Option<Cell>| {
        let mut provider = provider(cutoff, false);
        let batch = Batch::uniform(Arc::new(toy.system.clone()), 1, 0).unwrap();
        let mut state = State::at_rest(&batch, &toy.positions, DType::F64).unwrap();
        state.cells = cell.map(|c| vec![c]);
        let mut out = Output::new(&batch, DType::F64, Want::FORCES);
        provider.prepare(&batch, DType::F64).unwrap();
        let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut provider, out: &mut out, noise: Noise::new(0) };
        ctx.evaluate(Want::FORCES).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(evaluate(2.5, toy.cell), "");
    assert!(evaluate(2.5, None).contains("without a periodic cell"));
    assert!(evaluate(2.6, toy.cell).contains("larger than half the smallest height"));
    assert!(evaluate(2.5, Some([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])).contains("no volume"));
    assert!(evaluate(2.5, Some([f64::NAN; 9])).contains("no volume"));
    let line = System { axes: [true, false, false], ..System::particles("line", 2, 1.0) };
    assert!(provider(2.0, false).prepare(&Batch::uniform(Arc::new(line), 1, 0).unwrap(), DType::F64).is_err());
    assert!(LennardJonesSpec { shift: true, ..LennardJonesSpec::default() }.build().is_err());
}
