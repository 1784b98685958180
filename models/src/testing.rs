//! Checks that every force provider passes, public so that the tests of every model call the same ones. They panic with a
//! message where a check fails.

use crate::analytic::Toy;
use scorefield_integrators::device::{Device, DeviceProvider, DeviceSpec, Nvrtc, Order};
use scorefield_integrators::state::Cell;
use scorefield_integrators::system::Constraint;
use scorefield_integrators::{
    Batch, Clock, Context, DType, Dynamics, DynamicsSpec, ForceProvider, Input, Noise, Output, Propagator, Purpose, Quantity, State,
    System, UnitSystem, Want,
};
use std::sync::Arc;

/// One replica to evaluate: a system, positions `[N, 3]` and perhaps a cell.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it is.
    pub system: Arc<System>,
    /// Positions `[N, 3]` in nm or reduced units.
    pub positions: Vec<f64>,
    /// Periodic cell.
    pub cell: Option<Cell>,
}

impl Sample {
    /// An open sample.
    pub fn new(system: impl Into<Arc<System>>, positions: Vec<f64>) -> Self {
        Sample { system: system.into(), positions, cell: None }
    }

    /// A model's own system at its start positions.
    pub fn of_toy(toy: &Toy) -> Self {
        Sample { system: Arc::new(toy.system.clone()), positions: toy.positions.clone(), cell: toy.cell }
    }

    /// The same with every active coordinate moved at random by about `amplitude`.
    pub fn displaced(&self, amplitude: f64, seed: u64) -> Self {
        let mut other = self.clone();
        for i in 0..self.system.len() {
            let z = Noise::new(seed).normals(i as u32, 0, 0, Purpose::Displacement);
            for a in (0..3).filter(|&a| self.system.axes[a]) {
                other.positions[3 * i + a] += amplitude * z[a];
            }
        }
        other
    }
}

/// Forces, and what else is in `want`, of `samples` in one batch.
pub fn evaluate(provider: &mut dyn ForceProvider, samples: &[Sample], dtype: DType, want: Want) -> Output {
    evaluate_at(provider, samples, dtype, want, Clock::Physical { time: 0.0 })
}

/// The same at a given clock, for providers that read a noise level from it.
pub fn evaluate_at(provider: &mut dyn ForceProvider, samples: &[Sample], dtype: DType, want: Want, clock: Clock) -> Output {
    let batch = batch_of(samples);
    let positions: Vec<f64> = samples.iter().flat_map(|s| s.positions.iter().copied()).collect();
    let state = State::at_rest(&batch, &positions, dtype).unwrap();
    let cells: Option<Vec<Cell>> = samples.iter().map(|s| s.cell).collect();
    let mut out = Output::new(&batch, dtype, want);
    out.forces.fill(f64::NAN);
    provider.prepare(&batch, dtype).unwrap();
    provider.evaluate(&Input { batch: &batch, positions: state.positions(), cells: cells.as_deref(), clock, want }, &mut out).unwrap();
    out
}

fn batch_of(samples: &[Sample]) -> Batch {
    let systems = samples.iter().map(|s| s.system.clone()).collect();
    Batch::new(systems, (0..samples.len() as u32).collect()).unwrap()
}

fn energy(provider: &mut dyn ForceProvider, sample: &Sample) -> f64 {
    evaluate(provider, std::slice::from_ref(sample), DType::F64, Want::ENERGY).energy[0]
}

/// Largest absolute value, at least a tiny number.
fn size(values: &[f64]) -> f64 {
    values.iter().fold(1e-30, |m, x| m.max(x.abs()))
}

/// `−dE/ds` at `s = 0` by five points, where `at(s)` is the sample deformed by `s`.
fn minus_slope(provider: &mut dyn ForceProvider, step: f64, mut at: impl FnMut(f64) -> Sample) -> f64 {
    let mut e = |s: f64| energy(provider, &at(s));
    -(8.0 * (e(step) - e(-step)) - (e(2.0 * step) - e(-2.0 * step))) / (12.0 * step)
}

/// Checks in double precision that forces are minus the gradient of the energy along every active axis, relative to the
/// largest force, and that inactive axes have none. Then that asking for energies changes no bit of the forces.
pub fn check_forces(provider: &mut dyn ForceProvider, sample: &Sample, tolerance: f64) {
    let one = std::slice::from_ref(sample);
    let forces = evaluate(provider, one, DType::F64, Want::ENERGY).forces;
    assert_eq!(forces, evaluate(provider, one, DType::F64, Want::FORCES).forces, "forces differ when energies are wanted");
    let forces = forces.to_f64();
    let scale = size(&forces).max(1e-3);
    for (k, &f) in forces.iter().enumerate() {
        if !sample.system.axes[k % 3] {
            assert_eq!(f, 0.0, "force on inactive axis {k}");
            continue;
        }
        let numeric = minus_slope(provider, 1e-4, |s| {
            let mut moved = sample.clone();
            moved.positions[k] += s;
            moved
        });
        let error = (f - numeric).abs() / scale;
        assert!(error <= tolerance, "component {k}: force {f}, finite difference {numeric}, relative error {error:.2e}");
    }
}

/// Checks in double precision that the virial `Σ r ⊗ f` is minus the derivative of the energy with respect to a strain of
/// positions and cell, and that per-atom energies, where there are any, add up to the energy.
pub fn check_virial(provider: &mut dyn ForceProvider, sample: &Sample, tolerance: f64) {
    let want = Want { energy: true, virial: true, atom_energy: provider.capabilities().atom_energy, uncertainty: false };
    let out = evaluate(provider, std::slice::from_ref(sample), DType::F64, want);
    let scale = size(&out.virial[0]);
    for a in 0..3 {
        for b in 0..3 {
            // x_b += ε x_a, so that −dE/dε = Σ x_a f_b.
            let numeric = minus_slope(provider, 1e-5, |s| {
                let strain = |rows: &[f64]| -> Vec<f64> {
                    let mut rows = rows.to_vec();
                    for r in rows.chunks_exact_mut(3) {
                        r[b] += s * r[a];
                    }
                    rows
                };
                let mut moved = Sample::new(sample.system.clone(), strain(&sample.positions));
                moved.cell = sample.cell.map(|c| std::array::from_fn(|k| strain(&c)[k]));
                moved
            });
            let (v, error) = (out.virial[0][3 * a + b], (out.virial[0][3 * a + b] - numeric).abs() / scale);
            assert!(error <= tolerance, "virial {a}{b} is {v}, finite difference {numeric}, relative error {error:.2e}");
        }
    }
    if want.atom_energy {
        let total: f64 = out.atom_energy.iter().sum();
        assert!((total - out.energy[0]).abs() <= 1e-12 * size(&out.atom_energy) * out.atom_energy.len() as f64);
    }
}

/// A rotation by an arbitrary angle about an arbitrary axis, row-major; acts on columns.
pub const ROTATION: [f64; 9] = {
    // Of the unit quaternion (1, 2, 3, 4)/√30.
    let n = 30.0;
    [
        (1.0 + 4.0 - 9.0 - 16.0) / n,
        2.0 * (6.0 - 4.0) / n,
        2.0 * (8.0 + 3.0) / n,
        2.0 * (6.0 + 4.0) / n,
        (1.0 - 4.0 + 9.0 - 16.0) / n,
        2.0 * (12.0 - 2.0) / n,
        2.0 * (8.0 - 3.0) / n,
        2.0 * (12.0 + 2.0) / n,
        (1.0 - 4.0 - 9.0 + 16.0) / n,
    ]
};

/// Every row of `[N, 3]` rotated by [`ROTATION`].
pub fn rotate(rows: &[f64]) -> Vec<f64> {
    rows.chunks_exact(3).flat_map(|r| [0, 1, 2].map(|a| (0..3).map(|b| ROTATION[3 * a + b] * r[b]).sum::<f64>())).collect()
}

/// Checks in double precision that a rotated and translated sample has rotated forces and the same energy, relative to the
/// largest force. Only for free molecules.
pub fn check_rigid_motion(provider: &mut dyn ForceProvider, sample: &Sample, tolerance: f64) {
    let want = Want { energy: provider.capabilities().energy, ..Want::FORCES };
    let before = evaluate(provider, std::slice::from_ref(sample), DType::F64, want);
    let mut moved = Sample::new(sample.system.clone(), rotate(&sample.positions));
    for r in moved.positions.chunks_exact_mut(3) {
        for (x, shift) in r.iter_mut().zip([0.3, -1.1, 0.7]) {
            *x += shift;
        }
    }
    moved.cell = sample.cell.map(|c| std::array::from_fn(|k| rotate(&c)[k]));
    let after = evaluate(provider, &[moved], DType::F64, want);
    let expected = rotate(&before.forces.to_f64());
    let scale = size(&expected);
    for (k, (got, want)) in after.forces.to_f64().iter().zip(&expected).enumerate() {
        assert!((got - want).abs() <= tolerance * scale, "component {k}: {got} after the motion, {want} expected");
    }
    assert!((after.energy[0] - before.energy[0]).abs() <= tolerance * before.energy[0].abs().max(1.0), "energy changed");
}

/// Checks in double precision that atoms in another order have the same forces in that order, and the same energy.
pub fn check_permutation(provider: &mut dyn ForceProvider, sample: &Sample, tolerance: f64) {
    let n = sample.system.len();
    // A fixed order that leaves hardly any atom in place: descending, then rotated by a third.
    let order: Vec<usize> = (0..n).map(|i| (2 * n - 1 - i + n / 3) % n).collect();
    let place = |i: u32| order.iter().position(|&o| o == i as usize).unwrap() as u32;
    let old = &sample.system;
    let mut bonds: Vec<(u32, u32)> = old.bonds.iter().map(|&(i, j)| (place(i).min(place(j)), place(i).max(place(j)))).collect();
    bonds.sort_unstable();
    let constraints =
        old.constraints.iter().map(|c| Constraint { atoms: [place(c.atoms[0]), place(c.atoms[1])], ..*c }).collect::<Vec<_>>();
    let system = System {
        constraints,
        types: order.iter().map(|&i| old.types[i]).collect(),
        masses: order.iter().map(|&i| old.masses[i]).collect(),
        names: order.iter().map(|&i| old.names[i].clone()).collect(),
        bonds,
        ..(**old).clone()
    };
    let rows = |values: &[f64]| -> Vec<f64> { order.iter().flat_map(|&i| values[3 * i..3 * i + 3].to_vec()).collect() };
    let mut permuted = Sample::new(system, rows(&sample.positions));
    permuted.cell = sample.cell;
    let want = Want { energy: provider.capabilities().energy, ..Want::FORCES };
    let before = evaluate(provider, std::slice::from_ref(sample), DType::F64, want);
    let after = evaluate(provider, &[permuted], DType::F64, want);
    let expected = rows(&before.forces.to_f64());
    for (got, want) in after.forces.to_f64().iter().zip(&expected) {
        assert!((got - want).abs() <= tolerance * size(&expected), "{got} after permuting, {want} expected");
    }
    assert!((after.energy[0] - before.energy[0]).abs() <= tolerance * before.energy[0].abs().max(1.0), "energy changed");
}

/// Checks that the results of a replica are the same bits alone, anywhere in the ragged batch of all `samples`, and from a
/// fork, in every precision that the provider has.
pub fn check_batch_invariance(provider: &mut dyn ForceProvider, samples: &[Sample]) {
    let capabilities = provider.capabilities().clone();
    let want = Want {
        energy: capabilities.energy,
        virial: capabilities.virial,
        atom_energy: capabilities.atom_energy,
        uncertainty: capabilities.uncertainty,
    };
    for &dtype in &capabilities.dtypes {
        let batch = batch_of(samples);
        let all = evaluate(provider, samples, dtype, want);
        let mut fork = provider.fork().unwrap();
        assert_eq!(all, evaluate(&mut *fork, samples, dtype, want), "a fork gives other bits in {dtype}");
        for (b, sample) in samples.iter().enumerate() {
            let one = evaluate(provider, std::slice::from_ref(sample), dtype, want);
            let message = format!("replica {b} of {} gives other bits alone in {dtype}", samples.len());
            assert_eq!(all.forces.part(batch.range3(b)).to_f64(), one.forces.to_f64(), "{message}");
            if want.energy {
                assert_eq!(all.energy[b], one.energy[0], "{message}");
            }
            if want.virial {
                assert_eq!(all.virial[b], one.virial[0], "{message}");
            }
            if want.atom_energy {
                assert_eq!(all.atom_energy[batch.range(b)], one.atom_energy, "{message}");
            }
            if want.uncertainty {
                assert_eq!(all.uncertainty.energy[b], one.uncertainty.energy[0], "{message}");
                assert_eq!(all.uncertainty.forces[batch.range3(b)], one.uncertainty.forces, "{message}");
            }
        }
    }
}

/// Checks that the fused stepper and the plain loop give the same bits for every scheme and precision and for several
/// numbers of replicas, along `steps` steps of length `dt` at thermal energy `kt`.
pub fn check_fused(provider: &mut dyn ForceProvider, sample: &Sample, dt: f64, kt: f64, steps: u64) {
    let units = provider.capabilities().units;
    let quantity = |x: f64, unit| if units == UnitSystem::Si { Quantity::new(x, unit) } else { Quantity::bare(x) };
    for name in DynamicsSpec::NAMES {
        let spec = DynamicsSpec::named(name, quantity(dt, "ps"), quantity(0.1 / dt, "/ps")).unwrap();
        for (dtype, replicas) in [(DType::F32, 1), (DType::F32, 3), (DType::F32, 16), (DType::F32, 37), (DType::F64, 1)]
            .into_iter()
            .chain([(DType::F64, 3), (DType::F64, 16), (DType::F64, 37)])
        {
            let batch = Batch::uniform(sample.system.clone(), replicas, 5).unwrap();
            let positions: Vec<f64> = (0..replicas).flat_map(|b| sample.displaced(0.01 * dt.min(1.0), b as u64).positions).collect();
            let mut run = |mut dynamics: Dynamics, pieces: [u64; 2]| {
                let mut state = State::at_rest(&batch, &positions, dtype).unwrap();
                state.kt.fill(kt);
                let noise = Noise::new(7);
                scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, noise, false);
                let mut out = Output::new(&batch, dtype, Want::FORCES);
                let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
                dynamics.prepare(&mut ctx).unwrap();
                for n in pieces {
                    dynamics.run(&mut ctx, n).unwrap();
                }
                (state, out.forces)
            };
            let dynamics = Dynamics::new(&spec, units, sample.system.len() > 1).unwrap();
            let plain = run(dynamics.clone().plain(), [steps, 0]);
            assert!(plain.0.phase.to_f64().iter().all(|x| x.is_finite()), "{name} diverged; choose a smaller step");
            let fused = run(dynamics, [steps / 3, steps - steps / 3]);
            assert!(plain == fused, "{name}, {dtype}, {replicas} replicas: fused and plain loop differ");
        }
    }
}

/// Devices to compare with the host: the emulator with every order of threads, and the first GPU where there is one.
pub fn devices() -> Vec<Device> {
    let mut all: Vec<Device> = [Order::Forwards, Order::Backwards, Order::Shuffled].map(Device::emulated).into();
    match (DeviceSpec::Cuda { ordinal: 0 }).open() {
        Ok(gpu) => all.extend(gpu),
        Err(e) => eprintln!("skipped on a GPU: {e}"),
    }
    all
}

/// Largest relative error of `got`, where `scale` is the largest of `want`.
fn worst(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = size(want);
    got.iter().zip(want).fold(0.0, |m, (g, w)| if g.is_finite() { f64::max(m, (g - w).abs() / scale) } else { f64::INFINITY })
}

/// Checks the kernels of a provider against the provider itself: energies and forces of all `samples`, and `steps` steps of every
/// scheme from each of them, of length `dt` at thermal energy `kt`. Single precision may differ by `tolerance`, relative to the
/// largest number; double precision by 1e-12, and 100 times that after the steps. Then that kernels give the same bits in
/// whatever order threads run, in any batch, and however a run is cut into pieces.
pub fn check_device(provider: &dyn ForceProvider, samples: &[Sample], dt: f64, kt: f64, steps: u64, tolerance: f64) {
    let capabilities = provider.capabilities().clone();
    assert_eq!(capabilities.devices, ["cpu", "cuda"]);
    let batch = batch_of(samples);
    let positions: Vec<f64> = samples.iter().flat_map(|s| s.positions.iter().copied()).collect();
    let quantity = |x: f64, unit| if capabilities.units == UnitSystem::Si { Quantity::new(x, unit) } else { Quantity::bare(x) };
    let mut host = provider.fork().unwrap();
    let want = if capabilities.energy { Want::ENERGY } else { Want::FORCES };
    for (dtype, tolerance) in [(DType::F32, tolerance), (DType::F64, 1e-12)] {
        let run = |provider: &mut dyn ForceProvider, name: &str, pieces: [u64; 2]| {
            let spec = DynamicsSpec::named(name, quantity(dt, "ps"), quantity(0.1 / dt, "/ps")).unwrap();
            let mut dynamics = Dynamics::new(&spec, capabilities.units, samples.iter().all(|s| s.system.len() > 1)).unwrap();
            let mut state = State::at_rest(&batch, &positions, dtype).unwrap();
            state.kt.fill(kt);
            let noise = Noise::new(11);
            scorefield_integrators::dynamics::draw_velocities(&batch, &mut state, noise, false);
            let mut out = Output::new(&batch, dtype, Want::FORCES);
            let mut ctx = Context { batch: &batch, state: &mut state, provider, out: &mut out, noise };
            dynamics.prepare(&mut ctx).unwrap();
            for n in pieces {
                dynamics.run(&mut ctx, n).unwrap();
            }
            (state.phase, out.forces)
        };
        let expected = evaluate(&mut *host, samples, dtype, want);
        // Only forces that are a gradient have dynamics of constant energy.
        let names: Vec<&str> = DynamicsSpec::NAMES.into_iter().filter(|&name| capabilities.conservative || name != "verlet").collect();
        let trajectories: Vec<_> = names.iter().map(|name| run(&mut *host, name, [steps, 0])).collect();
        let mut first: Option<(Output, Vec<_>)> = None;
        for device in devices() {
            let place = format!("{} on {} in {dtype}", capabilities.name, device.name());
            let mut provider = DeviceProvider::new(&device, provider).unwrap();
            let got = evaluate(&mut provider, samples, dtype, want);
            for b in 0..samples.len() {
                let part = |out: &Output| out.forces.part(batch.range3(b)).to_f64();
                let error = worst(&part(&got), &part(&expected));
                assert!(error <= tolerance, "{place}: forces on replica {b} differ by {error:.1e}");
                // Energies are sums of terms that cancel: forces times a length of a typical bond say how large these are.
                if let (Some(got), Some(expected_energy)) = (got.energy.get(b), expected.energy.get(b)) {
                    let scale = expected_energy.abs() + 0.1 * size(&part(&expected));
                    let error = (got - expected_energy).abs() / scale;
                    assert!(error <= tolerance, "{place}: energy of replica {b} is {got}, {expected_energy} on the host");
                }
                let alone = evaluate(&mut provider, &samples[b..=b], dtype, want);
                if samples.iter().all(|s| s.system.len() == samples[0].system.len()) {
                    assert_eq!(
                        (part(&got), got.energy.get(b)),
                        (alone.forces.to_f64(), alone.energy.first()),
                        "{place}: replica {b} alone"
                    );
                }
            }
            let mut all = Vec::new();
            for (name, (phase, forces)) in names.iter().zip(&trajectories) {
                let whole = run(&mut provider, name, [steps, 0]);
                let half = phase.len() / 2;
                for (what, range) in [("positions", 0..half), ("velocities", half..2 * half)] {
                    let error = worst(&whole.0.part(range.clone()).to_f64(), &phase.part(range).to_f64());
                    let allowed = if dtype == DType::F32 { tolerance } else { 100.0 * tolerance };
                    assert!(error <= allowed, "{place}, {name}: {what} differ by {error:.1e} after {steps} steps");
                }
                let error = worst(&whole.1.to_f64(), &forces.to_f64());
                assert!(error <= 100.0 * tolerance, "{place}, {name}: forces differ by {error:.1e} after {steps} steps");
                assert!(whole == run(&mut provider, name, [steps / 3, steps - steps / 3]), "{place}, {name}: a run in two pieces differs");
                all.push(whole);
            }
            if device.kind() == "emulated" {
                let (output, trajectories) = first.get_or_insert_with(|| (got.clone(), all.clone()));
                assert!(*output == got && *trajectories == all, "{place}: results depend on the order of threads");
            }
        }
    }
}

/// Checks the kernels of a provider against the provider itself: forces of all `samples`, and energies where it has them, in
/// whatever order threads run. Single precision may differ by `tolerance`, relative to the largest number, double by 1e-12.
pub fn check_device_forces(provider: &dyn ForceProvider, samples: &[Sample], tolerance: f64) {
    let mut host = provider.fork().unwrap();
    let want = if provider.capabilities().energy { Want::ENERGY } else { Want::FORCES };
    for (dtype, tolerance) in [(DType::F32, tolerance), (DType::F64, 1e-12)] {
        let expected = evaluate(&mut *host, samples, dtype, want);
        let scale = size(&expected.forces.to_f64());
        let mut first: Option<Output> = None;
        for device in devices() {
            let place = format!("{} on {} in {dtype}", provider.capabilities().name, device.name());
            let got = evaluate(&mut DeviceProvider::new(&device, provider).unwrap(), samples, dtype, want);
            let error = worst(&got.forces.to_f64(), &expected.forces.to_f64());
            assert!(error <= tolerance, "{place}: forces differ by {error:.1e}");
            for (got, expected) in got.energy.iter().zip(&expected.energy) {
                assert!(
                    (got - expected).abs() <= tolerance * (expected.abs() + 0.1 * scale),
                    "{place}: energy {got}, {expected} on the host"
                );
            }
            if device.kind() == "emulated" {
                assert!(*first.get_or_insert_with(|| got.clone()) == got, "{place}: results depend on the order of threads");
            }
        }
    }
}

/// Checks that NVRTC compiles the kernels of a provider for replicas of `system`; see [`check_kernels`].
pub fn check_kernels_compile(provider: &dyn ForceProvider, system: &System) {
    let model = provider.device_model(system).unwrap();
    let name = &provider.capabilities().name;
    check_kernels(name, |nvrtc, dtype, target| nvrtc.check(&model, dtype, system.len(), target));
}

/// Checks that NVRTC compiles what `compile` gives it, for the GPUs that it knows among compute capabilities 8.0, 9.0 and 10.0 in single
/// precision, for the first of them in double precision; prints how many bytes that makes. Says so where NVRTC is missing; where
/// `SCOREFIELD_PEERS` names the environment that brings it, that is a failure.
pub fn check_kernels(name: &str, compile: impl Fn(&Nvrtc, DType, i32) -> scorefield_integrators::Result<usize>) {
    let nvrtc = match Nvrtc::get() {
        Ok(nvrtc) => nvrtc,
        Err(e) => {
            assert!(std::env::var_os("SCOREFIELD_PEERS").is_none(), "{e}");
            eprintln!("skipped: {e}");
            return;
        }
    };
    let targets: Vec<i32> = [80, 90, 100].into_iter().filter(|t| nvrtc.targets.contains(t)).collect();
    assert!(!targets.is_empty(), "NVRTC {:?} knows {:?}", nvrtc.version, nvrtc.targets);
    for (dtype, targets) in [(DType::F32, &targets[..]), (DType::F64, &targets[..1])] {
        for &target in targets {
            let bytes = compile(nvrtc, dtype, target).unwrap();
            println!("{name}: {bytes} bytes for sm_{target} in {dtype}");
        }
    }
}

/// Counts the allocations of each thread, in this crate's own tests.
#[cfg(test)]
pub(crate) mod allocations {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    struct Counting;
    thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    // SAFETY: every call goes to the system's allocator; counting touches no memory that is allocated.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let _ = COUNT.try_with(|c| c.set(c.get() + 1));
            // SAFETY: the caller keeps `alloc`'s contract.
            unsafe { System.alloc(layout) }
        }
        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            // SAFETY: the caller keeps `dealloc`'s contract.
            unsafe { System.dealloc(at, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// Number of allocations that `work` makes in this thread.
    pub(crate) fn during(work: impl FnOnce()) -> u64 {
        let before = COUNT.with(Cell::get);
        work();
        COUNT.with(Cell::get) - before
    }
}
