//! The same bits whatever the threads, the blocks of steps, the batch and the shard; and, in one instruction set, always.

use super::common::{KT_300, Molecule, displaced, pool, reduced, si, toy};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::simd::{self, Isa};
use scorefield_integrators::{
    Batch, DType, Dynamics, DynamicsSpec, Ensemble, ForceProvider, Guard, Noise, State, System, UnitSystem, Want,
};
use std::ops::Range;
use std::process::Command;
use std::sync::Arc;

/// One system to run.
struct Case {
    name: &'static str,
    provider: Box<dyn ForceProvider>,
    system: Arc<System>,
    positions: Vec<f64>,
    axes: [bool; 3],
    /// Displacement of start positions.
    amplitude: f64,
    kt: f64,
    dt: f64,
}

impl Case {
    fn all() -> Vec<Case> {
        let molecule = |name: &'static str, file: &str| {
            let Molecule { provider, system, mut frames, .. } = Molecule::committed(file);
            Case { name, provider, system, positions: frames.swap_remove(1), axes: [true; 3], amplitude: 1e-3, kt: KT_300, dt: 1.0 }
        };
        let of_toy = |name: &'static str, spec: &str, amplitude, kt, dt| {
            let (provider, toy) = toy(spec);
            let axes = toy.system.axes;
            Case { name, provider, system: Arc::new(toy.system), positions: toy.positions, axes, amplitude, kt, dt }
        };
        vec![
            molecule("peptide", "aldp-obc"),
            molecule("peptide with rigid bonds", "aldp-constraints-hbonds"),
            of_toy("Müller–Brown", "muller-brown", 0.05, 15.0, 0.003),
            of_toy("LJ13", "lj:n=13", 0.03, 0.3, 0.005),
            of_toy("SI LJ7", "lj:sigma=3.405A,epsilon=0.0103eV,n=7", 0.01, 0.3, 5.0),
        ]
    }

    fn units(&self) -> UnitSystem {
        self.provider.capabilities().units
    }

    fn spec(&self, scheme: &str) -> DynamicsSpec {
        // Overdamped motion of unit mass: steps as long as its friction allows.
        let overdamped = scheme.starts_with("overdamped");
        match self.units() {
            UnitSystem::Si => si(scheme, if overdamped { 0.02 * self.dt } else { self.dt }, 5.0),
            UnitSystem::Reduced => reduced(scheme, if overdamped { 0.02 * self.dt } else { self.dt }, 2.0),
        }
    }

    /// Phase, forces and energies of replicas `ids` after `blocks` of steps, as bits, replica by replica.
    fn bits(&self, scheme: &str, dtype: DType, ids: Range<u32>, threads: usize, blocks: &[u64]) -> Vec<Vec<u64>> {
        let batch = Batch::new(vec![self.system.clone(); ids.len()], ids.clone().collect()).unwrap();
        let positions: Vec<f64> = ids.flat_map(|id| displaced(&self.positions, self.axes, self.amplitude, u64::from(id))).collect();
        let mut state = State::at_rest(&batch, &positions, dtype).unwrap();
        state.kt.fill(self.kt);
        let noise = Noise::new(0x5eed_0000_0007);
        let many = self.system.len() > 1;
        let spec = self.spec(scheme);
        if spec.has_velocities() {
            draw_velocities(&batch, &mut state, noise, many);
        }
        let dynamics = Dynamics::new(&spec, self.units(), many).unwrap();
        let mut ensemble = Ensemble::new(batch, &state, &*self.provider, &dynamics, noise, pool(threads), Guard::default()).unwrap();
        for &steps in blocks {
            ensemble.run(steps).unwrap();
        }
        ensemble.evaluate(Want::ENERGY).unwrap();
        let one = |r: usize| {
            let numbers =
                [ensemble.positions(r).to_f64(), ensemble.velocities(r).to_f64(), ensemble.forces(r).to_f64(), vec![ensemble.energy(r)]];
            let numbers = numbers.concat();
            assert!(numbers.iter().all(|x| x.is_finite()), "{} by {scheme} in {dtype} diverged", self.name);
            numbers.into_iter().map(f64::to_bits).collect()
        };
        (0..ensemble.replicas()).map(one).collect()
    }
}

#[test]
fn results_do_not_depend_on_threads_blocks_or_shards() {
    for case in Case::all() {
        for scheme in ["baoab", "legacy", "overdamped-limit", "verlet"] {
            for dtype in [DType::F32, DType::F64] {
                let what = format!("{} by {scheme} in {dtype}", case.name);
                let whole = case.bits(scheme, dtype, 0..37, 1, &[60]);
                for threads in [2, 4] {
                    assert!(whole == case.bits(scheme, dtype, 0..37, threads, &[60]), "{what}: {threads} threads");
                }
                assert!(whole == case.bits(scheme, dtype, 0..37, 2, &[1, 22, 37]), "{what}: blocks of steps");
                for shard in [0..1u32, 1..6, 6..23, 23..37] {
                    let part = case.bits(scheme, dtype, shard.clone(), 1, &[60]);
                    assert!(whole[shard.start as usize..shard.end as usize] == part, "{what}: replicas {shard:?} by themselves");
                }
                // Neither all alike, nor standing still.
                assert!(whole[0] != whole[1] && whole[0] != case.bits(scheme, dtype, 0..1, 1, &[59])[0], "{what}");
            }
        }
    }
}

/// Names the instruction set that this process is to use, where it is one of the children of the test below.
const CHILD: &str = "SCOREFIELD_TEST_ISA";
const CHILD_THREADS: &str = "SCOREFIELD_TEST_THREADS";

/// A digest of a run's bits, and numbers that hardly depend on the instruction set.
fn report(threads: usize) -> String {
    let mut text = String::new();
    for case in Case::all() {
        for dtype in [DType::F32, DType::F64] {
            let bits = case.bits("baoab", dtype, 0..19, threads, &[10]);
            // FNV-1a.
            let digest = bits.iter().flatten().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b).wrapping_mul(0x0100_0000_01b3));
            let energy = f64::from_bits(*bits[7].last().unwrap());
            text += &format!("{digest:016x} {dtype} {energy:e} {}\n", case.name);
        }
    }
    text
}

#[test]
fn every_instruction_set_is_deterministic() {
    // An instruction set is chosen once per process, so that each runs in a process of its own.
    if let Ok(name) = std::env::var(CHILD) {
        let isa: Isa = name.parse().unwrap();
        simd::choose_isa(isa).unwrap();
        let threads = std::env::var(CHILD_THREADS).unwrap().parse().unwrap();
        println!("BEGIN\n{}END", report(threads));
        assert_eq!(simd::current_isa(), isa);
        return;
    }
    let child = |isa: Isa, threads: usize| -> Vec<String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["physics::bitwise::every_instruction_set_is_deterministic", "--exact", "--nocapture"]);
        let output = command.env(CHILD, isa.name()).env(CHILD_THREADS, threads.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{isa}: {text}{}", String::from_utf8_lossy(&output.stderr));
        let inner = text.split_once("BEGIN\n").and_then(|t| t.1.split_once("END")).expect("a report").0;
        inner.lines().map(str::to_owned).collect()
    };
    let available: Vec<Isa> = Isa::NAMES.iter().map(|n| n.parse().unwrap()).filter(|isa: &Isa| isa.available()).collect();
    let reports: Vec<Vec<String>> = available.iter().map(|&isa| child(isa, 1)).collect();
    for (&isa, report) in available.iter().zip(&reports) {
        assert_eq!(report.len(), 10);
        assert_eq!(*report, child(isa, 3), "{isa}: another run with other threads");
        // All compute the same physics; after ten steps rounding has not grown large.
        for (line, other) in report.iter().zip(&reports[0]) {
            let fields = |l: &str| -> (f64, f64) {
                let mut words = l.split(' ').skip(1);
                let dtype: f64 = if words.next() == Some("f32") { 2e-4 } else { 1e-9 };
                (dtype, words.next().unwrap().parse().unwrap())
            };
            let ((tolerance, a), (_, b)) = (fields(line), fields(other));
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{isa}: {line}, {}: {other}", available[0]);
        }
    }
    eprintln!("deterministic: {}", available.iter().map(|i| i.name()).collect::<Vec<_>>().join(", "));
}
