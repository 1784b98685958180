//! Kernels of the steps against the host's own, on the emulator; what tests of models do not reach: frozen atoms, axes, rigid
//! bonds, divergence, ensembles.

use super::*;
use crate::array::DType;
use crate::batch::Batch;
use crate::dynamics::{Dynamics, DynamicsSpec, draw_velocities};
use crate::ensemble::{Divergence, Ensemble, Guard, OnDivergence, toys};
use crate::exchange::Exchange;
use crate::force::{Capabilities, ForceProvider, Want};
use crate::lane::{LaneKernel, LaneProvider};
use crate::noise::{Noise, Purpose};
use crate::propagator::{Context, Propagator};
use crate::simd::Lanes;
use crate::state::State;
use crate::system::{Constraint, System};
use crate::units::{Quantity, UnitSystem};
use crate::{Array, Output};
use model::{Layout, bytes_of_mut};
use std::sync::Arc;

/// `½ k r²` on every particle, with a cliff of infinite force beyond `x = edge`.
struct Cliff {
    k: f64,
    edge: f64,
    source: &'static str,
    group: Option<Group>,
    capabilities: Capabilities,
}

const CLIFF: &str = "
struct alignas(8) Model {
    real k, edge;
};
template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    real energy = 0;
    EACH(i, atoms) {
        Vector at = load(x, i);
        real zero = at.x < m.edge ? real(0) : real(1) / real(0);
        store(f, i, -m.k * at - vector(zero, 0, 0));
        energy += real(0.5) * m.k * dot(at, at);
    }
    return energy;
}
";

/// The same by teams of several replicas, each thread for an atom of another thread.
const GROUPED_CLIFF: &str = "
struct alignas(8) Model {
    real k, edge;
};
template <bool ENERGY>
DEVICE real forces(const Model& m, const Team& team, int atoms, const real* x, real* f, real* scratch) {
    int rows = team.count * atoms;
    EACH(i, rows) {
        int j = rows - 1 - i;
        Vector at = load(x, j);
        real zero = at.x < m.edge ? real(0) : real(1) / real(0);
        store(f, j, -m.k * at - vector(zero, 0, 0));
        scratch[j] = real(0.5) * m.k * dot(at, at);
    }
    sync();
    return team.lane < rows ? scratch[team.lane] : real(0);
}
";

impl Cliff {
    fn grouped(self, atoms: usize) -> Self {
        Cliff { source: GROUPED_CLIFF, group: Some(Group { threads: 128, replicas: 5, rows: atoms }), ..self }
    }

    fn new(k: f64, edge: f64) -> Self {
        let capabilities = Capabilities { units: UnitSystem::Reduced, ..Capabilities::potential("cliff").with_kernels() };
        Cliff { k, edge, source: CLIFF, group: None, capabilities }
    }
}

impl LaneKernel for Cliff {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn check(&self, _: &System) -> Result<()> {
        Ok(())
    }

    fn device_model(&self) -> Option<DeviceModel> {
        let fields = vec![Field::Real(self.k), Field::Real(self.edge)];
        Some(DeviceModel { source: self.source, fields, group: self.group, scratch: 1, spill: 0, constant: 0.0 })
    }

    #[inline(always)]
    fn evaluate<V: Lanes, const ENERGY: bool>(&self, t: V::Token, x: &[V], f: &mut [V], _: &mut [V]) -> V {
        let k = V::lit(t, self.k);
        let mut squares = V::zero(t);
        for (i, (x, f)) in x.iter().zip(f.iter_mut()).enumerate() {
            *f = -(k * *x);
            if i % 3 == 0 {
                *f = V::select(x.lt(V::lit(t, self.edge)), *f, V::lit(t, f64::NEG_INFINITY));
            }
            squares = x.mul_add(*x, squares);
        }
        squares * k * V::lit(t, 0.5)
    }
}

fn devices() -> Vec<Device> {
    let mut all: Vec<Device> = [Order::Forwards, Order::Backwards, Order::Shuffled].map(Device::emulated).into();
    match (DeviceSpec::Cuda { ordinal: 0 }).open() {
        Ok(gpu) => all.extend(gpu),
        Err(e) => eprintln!("skipped on a GPU: {e}"),
    }
    all
}

#[test]
fn devices_have_names() {
    let names = [("cpu", DeviceSpec::Cpu), ("cuda:0", DeviceSpec::Cuda { ordinal: 0 }), ("emulated", DeviceSpec::Emulated)];
    for (text, spec) in names {
        assert_eq!(text.parse(), Ok(spec));
        assert_eq!(spec.to_string(), text);
        assert_eq!(serde_json::from_str::<DeviceSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
    }
    assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda { ordinal: 0 }));
    assert_eq!("cuda:3".parse(), Ok(DeviceSpec::Cuda { ordinal: 3 }));
    for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "emulated:0", "CPU"] {
        assert!(text.parse::<DeviceSpec>().is_err(), "{text}");
    }
    let Err(error) = (DeviceSpec::Cuda { ordinal: 4000 }).open() else { panic!("there are 4001 GPUs") };
    let message = error.to_string();
    assert!(message.starts_with("cuda:4000: ") && message.contains("--device cpu"), "{message}");
}

#[test]
fn noise_has_the_integers_of_the_host() {
    let (n, noise, replica, step) = (300, Noise::new(0x0123_4567_89ab_cdef), 77, (5u64 << 40) + 12_345);
    for device in devices() {
        for dtype in [DType::F32, DType::F64] {
            let module = device.0.compile(&Program::new(&Cliff::new(1.0, 1.0).device_model().unwrap(), dtype, 1, false)).unwrap();
            let bits = device.buffer(16 * n).unwrap();
            let normal = device.buffer(24 * n).unwrap();
            let mut p = Layout::new(dtype);
            p.pointer(Some(&bits));
            p.pointer(Some(&normal));
            p.long(noise.seed);
            p.long(step);
            [n as i32, replica, Purpose::Overdamped as i32].into_iter().for_each(|k| p.int(k));
            let grid = Grid { blocks: n.div_ceil(32) as u32, threads: 32, shared: 0 };
            // SAFETY: the layout is that of `Draw`, and both buffers are large enough.
            unsafe { module.launch("draw", grid, &p.finish()) }.unwrap();
            let mut drawn = vec![0u32; 4 * n];
            bits.download(0, pulp::bytemuck::cast_slice_mut(&mut drawn)).unwrap();
            let mut z = Array::zeros(dtype, 3 * n);
            normal.download(0, bytes_of_mut(&mut z)).unwrap();
            for i in 0..n {
                assert_eq!(drawn[4 * i..4 * i + 4], noise.bits(i as u32, replica as u32, step, Purpose::Overdamped), "{device:?}");
                let want = noise.normals(i as u32, replica as u32, step, Purpose::Overdamped);
                for a in 0..3 {
                    // Single precision takes the upper 23 bits for its uniform numbers.
                    let tolerance = if dtype == DType::F32 { 2e-3 } else { 1e-13 };
                    assert!((z.get(3 * i + a) - want[a]).abs() <= tolerance, "{device:?} {dtype}: {} {}", z.get(3 * i + a), want[a]);
                }
            }
        }
    }
}

#[test]
fn steps_compile_for_gpus() {
    let nvrtc = match Nvrtc::get() {
        Ok(nvrtc) => nvrtc,
        Err(e) => {
            assert!(std::env::var_os("SCOREFIELD_PEERS").is_none(), "{e}");
            return eprintln!("skipped: {e}");
        }
    };
    let model = Cliff::new(1.0, 1.0).device_model().unwrap();
    let grouped = Cliff::new(1.0, 1.0).grouped(20).device_model().unwrap();
    for (model, atoms) in [(&model, 1), (&model, 20), (&model, 200), (&grouped, 20)] {
        for target in [80, 90, 100].into_iter().filter(|t| nvrtc.targets.contains(t)) {
            assert!(nvrtc.check(model, DType::F32, atoms, target).unwrap() > 1000);
        }
    }
    let broken = DeviceModel { source: "struct Model { missing x; };", ..model };
    let message = nvrtc.check(&broken, DType::F32, 1, 90).unwrap_err().to_string();
    assert!(message.contains("missing"), "{message}");
    let ancient = nvrtc.check(&broken, DType::F32, 1, 10).unwrap_err().to_string();
    assert!(ancient.contains("sm_10"), "{ancient}");
}

/// Systems of every kind in one batch: a frozen atom, fewer axes, rigid clusters of every shape, many atoms.
fn zoo() -> (Batch, Vec<f64>) {
    let mut frozen = System::particles("frozen", 5, 2.0);
    frozen.masses[2] = 0.0;
    frozen.masses[4] = 7.0;
    let mut flat = System::particles("flat", 2, 1.0);
    flat.axes = [true, false, true];
    let mut rigid = System::particles("rigid", 18, 1.0);
    let bond = |i: u32, j: u32| Constraint { atoms: [i, j], length: 0.5 + 0.01 * f64::from(i + j) };
    rigid.constraints = [(0, 1), (2, 3), (2, 4), (5, 6), (5, 7), (5, 8), (9, 10), (9, 11), (9, 12), (9, 13), (14, 15), (14, 16), (15, 16)]
        .map(|(i, j)| bond(i, j))
        .into();
    for (i, m) in rigid.masses.iter_mut().enumerate() {
        *m = if [0, 2, 5, 9, 14].contains(&i) { 12.0 } else { 1.0 };
    }
    let many = System::particles("many", 70, 3.0);
    let systems: Vec<Arc<System>> = [frozen, flat, rigid, many].map(Arc::new).into();
    let order = [2, 0, 0, 3, 1, 2, 1];
    let batch = Batch::new(order.iter().map(|&s| systems[s].clone()).collect(), vec![9, 4, 5, 6, 100, 101, 7]).unwrap();
    let mut positions = Vec::new();
    for (b, &s) in order.iter().enumerate() {
        for i in 0..systems[s].len() {
            let z = Noise::new(3).normals(i as u32, b as u32, 0, Purpose::Displacement);
            positions.extend((0..3).map(|a| if systems[s].axes[a] { 0.3 * z[a] } else { 0.0 }));
        }
        if s == 2 {
            // Clusters around their constraints' lengths, in different directions.
            let start = positions.len() - 3 * 18;
            for c in &systems[s].constraints {
                let [i, j] = c.atoms.map(|a| start + 3 * a as usize);
                let k = (j - start) / 3;
                let directions = [[0.2, -0.5, 1.0], [1.0, 0.0, 0.0], [0.5, 0.866, 0.0], [-0.6, -0.6, -0.9], [-0.4, 1.0, 0.3]];
                let direction = directions[(k + 1) % 5];
                let length = direction.iter().map(|d: &f64| d * d).sum::<f64>().sqrt();
                for a in 0..3 {
                    if c.atoms != [15, 16] {
                        positions[j + a] = positions[i + a] + c.length / length * direction[a];
                    }
                }
            }
        }
    }
    (batch, positions)
}

fn quantity(x: f64) -> Quantity {
    Quantity::bare(x)
}

/// Systems of five atoms each: one of them frozen, fewer axes, rigid clusters.
fn uniform_zoo() -> (Batch, Vec<f64>) {
    let mut frozen = System::particles("frozen", 5, 2.0);
    frozen.masses[2] = 0.0;
    let mut flat = System::particles("flat", 5, 1.0);
    flat.axes = [true, false, true];
    let mut rigid = System::particles("rigid", 5, 1.0);
    (rigid.masses[0], rigid.masses[2]) = (12.0, 12.0);
    rigid.constraints = [(0, 1), (2, 3), (2, 4)].map(|(i, j)| Constraint { atoms: [i, j], length: 1.0 }).into();
    let systems: Vec<Arc<System>> = [frozen, flat, rigid].map(Arc::new).into();
    let order = [2, 0, 1, 0, 2, 2, 1, 1, 0, 2];
    let batch = Batch::new(order.iter().map(|&s| systems[s].clone()).collect(), (20..30).collect()).unwrap();
    let mut positions = Vec::new();
    for (b, &s) in order.iter().enumerate() {
        let z: Vec<[f64; 3]> = (0..5).map(|i| Noise::new(3).normals(i, b as u32, 0, Purpose::Displacement)).collect();
        let mut at: Vec<[f64; 3]> = z.iter().map(|z| [0, 1, 2].map(|a| if systems[s].axes[a] { 0.3 * z[a] } else { 0.0 })).collect();
        for c in &systems[s].constraints {
            let [i, j] = c.atoms.map(|a| a as usize);
            let length = z[j].iter().map(|z| z * z).sum::<f64>().sqrt();
            at[j] = [0, 1, 2].map(|a| at[i][a] + c.length / length * z[j][a]);
        }
        positions.extend(at.into_flattened());
    }
    (batch, positions)
}

fn run(
    provider: &mut dyn ForceProvider,
    (batch, positions): &(Batch, Vec<f64>),
    name: &str,
    dtype: DType,
    pieces: &[u64],
) -> (Array, Array) {
    let spec = DynamicsSpec::named(name, quantity(0.02), quantity(2.0)).unwrap();
    let mut dynamics = Dynamics::new(&spec, UnitSystem::Reduced, true).unwrap();
    let mut state = State::at_rest(batch, positions, dtype).unwrap();
    for (b, kt) in state.kt.iter_mut().enumerate() {
        *kt = 0.2 + 0.1 * b as f64;
    }
    draw_velocities(batch, &mut state, Noise::new(1), true);
    let mut out = Output::new(batch, dtype, Want::FORCES);
    let mut ctx = Context { batch, state: &mut state, provider, out: &mut out, noise: Noise::new(1 << 40) };
    dynamics.prepare(&mut ctx).unwrap();
    for &n in pieces {
        dynamics.run(&mut ctx, n).unwrap();
    }
    (state.phase, out.forces)
}

#[test]
fn every_stage_is_that_of_the_host() {
    check_stages(&|| LaneProvider::new(Cliff::new(3.0, 1e9)), &zoo());
    check_stages(&|| LaneProvider::new(Cliff::new(3.0, 1e9).grouped(5)), &uniform_zoo());
}

fn check_stages(kernel: &dyn Fn() -> LaneProvider<Cliff>, start: &(Batch, Vec<f64>)) {
    for (dtype, tolerance) in [(DType::F32, 2e-5_f64), (DType::F64, 1e-12)] {
        let mut first = Vec::new();
        for device in devices() {
            for (n, name) in DynamicsSpec::NAMES.iter().enumerate() {
                let (phase, forces) = run(&mut kernel(), start, name, dtype, &[12]);
                let mut provider = DeviceProvider::new(&device, &kernel()).unwrap();
                let got = run(&mut provider, start, name, dtype, &[12]);
                for (what, got, want) in [("phase", &got.0, &phase), ("forces", &got.1, &forces)] {
                    for k in 0..want.len() {
                        let (got, want) = (got.get(k), want.get(k));
                        // Rigid bonds bring the rounding of positions, over the time of half a drift, into velocities: once a step.
                        let velocity = what == "phase" && k >= phase.len() / 2;
                        let rounding = if dtype == DType::F32 { f64::from(f32::EPSILON) } else { f64::EPSILON };
                        let tolerance = if velocity { tolerance.max(12.0 * rounding / 0.01) } else { tolerance };
                        assert!(
                            (got - want).abs() <= tolerance * want.abs().max(1.0),
                            "{name} {dtype} {device:?}: {what} {k}: {got} {want}"
                        );
                    }
                }
                assert!(got == run(&mut provider, start, name, dtype, &[5, 7]), "{name} {dtype} {device:?}: two pieces differ");
                if device.kind() == "emulated" {
                    first.push(got.clone());
                    assert!(first[n] == got, "{name} {dtype} {device:?}: the order of threads matters");
                }
            }
        }
    }
}

/// Twelve particles in a well with a cliff that some of them fall from.
fn falling(policy: OnDivergence, device: Option<&Device>, edge: f64) -> Result<Ensemble> {
    falling_kernel(policy, device, Cliff::new(1.0, edge))
}

fn falling_kernel(policy: OnDivergence, device: Option<&Device>, kernel: Cliff) -> Result<Ensemble> {
    let batch = Batch::uniform(Arc::new(System::particles("particle", 1, 1.0)), 12, 30).unwrap();
    let mut state = State::at_rest(&batch, &[0.1; 36], DType::F64).unwrap();
    state.kt.fill(0.5);
    let dynamics = Dynamics::new(&DynamicsSpec::Baoab { dt: quantity(0.05), friction: quantity(1.0) }, UnitSystem::Reduced, false).unwrap();
    let guard = Guard { check_every: 10, policy, ..Guard::default() };
    let (provider, noise, pool) = (LaneProvider::new(kernel), Noise::new(8), toys::pool(1));
    match device {
        None => Ensemble::new(batch, &state, &provider, &dynamics, noise, pool, guard),
        Some(device) => Ensemble::on_device(batch, &state, &provider, &dynamics, noise, pool, guard, device),
    }
}

#[test]
fn divergence_is_met_as_on_the_host() {
    let tell = |d: &Divergence| (d.replica, d.step);
    // Neither so far away that nobody falls, nor so near that one falls ten times in a row.
    let falls = |edge: f64| {
        let mut host = falling(OnDivergence::Restore, None, edge).unwrap();
        host.run(95).and_then(|()| host.run(145)).is_ok() && host.take_divergences().len() > 1
    };
    let edge = (0..20).map(|k| 1.95 - 0.02 * f64::from(k)).find(|&e| falls(e)).unwrap();
    let kernels = [|edge| Cliff::new(1.0, edge), |edge| Cliff::new(1.0, edge).grouped(1)];
    for (device, kernel) in [Order::Forwards, Order::Shuffled].into_iter().flat_map(|o| kernels.map(|k| (Device::emulated(o), k))) {
        for policy in [OnDivergence::Freeze, OnDivergence::Restore] {
            let (mut host, mut there) =
                (falling(policy, None, edge).unwrap(), falling_kernel(policy, Some(&device), kernel(edge)).unwrap());
            let (mut seen, mut seen_there) = (Vec::new(), Vec::new());
            for steps in [95, 5, 140] {
                host.run(steps).unwrap();
                there.run(steps).unwrap();
                seen.extend(host.take_divergences());
                seen_there.extend(there.take_divergences());
            }
            seen.sort_by_key(tell);
            seen_there.sort_by_key(tell);
            assert!(!seen.is_empty(), "nothing diverged");
            assert_eq!(seen.iter().map(tell).collect::<Vec<_>>(), seen_there.iter().map(tell).collect::<Vec<_>>());
            there.fetch(Fetch::ALL).unwrap();
            for r in 0..12 {
                assert_eq!(host.is_frozen(r), there.is_frozen(r));
                for (a, b) in host.positions(r).to_f64().into_iter().zip(there.positions(r).to_f64()) {
                    assert!((a - b).abs() < 1e-10, "{policy:?}, replica {r}: {a} {b}");
                }
                for (a, b) in host.forces(r).to_f64().into_iter().zip(there.forces(r).to_f64()) {
                    assert!((a - b).abs() < 1e-10, "{policy:?}, replica {r}: forces {a} {b}");
                }
            }
        }
        let (mut host, mut there) =
            (falling(OnDivergence::Stop, None, edge).unwrap(), falling_kernel(OnDivergence::Stop, Some(&device), kernel(edge)).unwrap());
        let steps = |e: Error| match e {
            Error::Diverged { replica, step, what } => (replica as usize, step, what),
            other => panic!("{other}"),
        };
        // The host stops at the first look that finds something, the device at the end of its launch.
        let (_, step, _) = steps(host.run(240).unwrap_err());
        let (replica, step_there, what) = steps(there.run(240).unwrap_err());
        assert!(step_there >= step && what.contains("x coordinate of atom 1") || what.contains("x velocity of atom 1"), "{what}");
        assert!(there.last_good_positions(replica - 30).to_f64().iter().all(|x| x.abs() < 3.0));
    }
}

#[test]
fn ensembles_on_a_device_restart_bitwise_and_exchange() {
    let kt = [0.4, 0.8, 1.6];
    for device in devices() {
        let start = || {
            let mut ensemble = falling(OnDivergence::Stop, Some(&device), 1e9).unwrap();
            let exchange = Exchange::new(kt.to_vec(), 4, Noise::new(2)).unwrap();
            exchange.apply(&mut ensemble).unwrap();
            (ensemble, exchange)
        };
        let advance = |(ensemble, exchange): &mut (Ensemble, Exchange), n: usize| {
            for _ in 0..n {
                ensemble.run(7).unwrap();
                exchange.attempt(ensemble).unwrap();
            }
            ensemble.fetch(Fetch::ALL).unwrap();
        };
        let mut whole = start();
        advance(&mut whole, 9);
        let (state, saved) = (whole.0.state(), whole.1.state().clone());
        advance(&mut whole, 6);
        let mut resumed = start();
        resumed.0.restore(&state, &[false; 12]).unwrap();
        resumed.1.restore(saved).unwrap();
        advance(&mut resumed, 6);
        assert_eq!(whole.0.state(), resumed.0.state());
        assert_eq!(whole.1, resumed.1);
        assert!(whole.1.swaps().any(|(_, accepted)| accepted > 0), "nothing was exchanged");
        // On the host the same swaps happen, with velocities scaled alike.
        let mut host = (falling(OnDivergence::Stop, None, 1e9).unwrap(), Exchange::new(kt.to_vec(), 4, Noise::new(2)).unwrap());
        host.1.apply(&mut host.0).unwrap();
        advance(&mut host, 15);
        assert_eq!(host.1, whole.1);
        let (a, b) = (host.0.state().phase.to_f64(), whole.0.state().phase.to_f64());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!((0..12).all(|r| (host.0.energy(r) - whole.0.energy(r)).abs() < 1e-9));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::emulated(Order::Forwards);
    let batch = Batch::uniform(Arc::new(System::particles("many", 9000, 1.0)), 1, 0).unwrap();
    let mut provider = DeviceProvider::new(&device, &LaneProvider::new(Cliff::new(1.0, 1.0))).unwrap();
    let message = provider.prepare(&batch, DType::F64).unwrap_err().to_string();
    assert!(message.contains("9000 atoms in f64") && message.contains("--device cpu"), "{message}");
    let batch = zoo().0;
    let mut provider = DeviceProvider::new(&device, &LaneProvider::new(Cliff::new(1.0, 1.0).grouped(5))).unwrap();
    let message = provider.prepare(&batch, DType::F64).unwrap_err().to_string();
    assert!(message.contains("one molecule"), "{message}");
    let batch = Batch::uniform(Arc::new(System::particles("many", 200, 1.0)), 1, 0).unwrap();
    let message = provider.prepare(&batch, DType::F64).unwrap_err().to_string();
    assert!(message.contains("200 atoms in f64 are more than the 128 threads"), "{message}");
    let Err(error) = DeviceProvider::new(&device, &LaneProvider::new(toys::Well::new(1.0, 1.0))) else { panic!("a well without kernels") };
    let message = error.to_string();
    assert!(message.contains("well cannot supply forces on emulated GPU") && message.contains("--device cpu"), "{message}");
}
