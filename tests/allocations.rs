//! Steps allocate nothing: a counting allocator watches propagators at work. A binary of its own, because the allocator is
//! the whole process's, and a single test, so that nothing else runs beside it.

use scorefield_integrators::denoise::{DenoiseSpec, Prior, Sampler};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::relax::RelaxSpec;
use scorefield_integrators::state::Cell as PeriodicCell;
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, Ensemble, ForceProvider, Guard, Noise, Output, Progress, Propagator, Purpose, Quantity,
    State, System, UnitSystem, Want,
};
use scorefield_models::parse_spec;
use scorefield_models::scoremd::config::ModelConfig;
use scorefield_models::scoremd::fokker_planck::{FokkerPlanck, Formulas};
use scorefield_models::scoremd::log_z::LogZ;
use scorefield_models::scoremd::loss::{ForceMatching, Objective};
use scorefield_models::scoremd::network;
use scorefield_models::scoremd::process::{TimeRange, VariancePreserving};
use scorefield_models::scoremd::trainer::{Data, Plan, Stage, Step, Trainer};
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema};
use std::alloc::{GlobalAlloc, Layout, System as SystemAllocator};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

/// Allocations and reallocations by watched threads since the start.
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The test harness has threads of its own, which are none of our business.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn watch(yes: bool) {
    WATCHED.set(yes);
}

fn note_allocation() {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note_allocation();
        // SAFETY: as above.
        unsafe { SystemAllocator.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { SystemAllocator.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note_allocation();
        // SAFETY: as above.
        unsafe { SystemAllocator.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.load(Ordering::Relaxed);
    work();
    COUNT.load(Ordering::Relaxed) - before
}

/// Allocations of steps of training, with every part of the loss.
fn training(preset: &str, threads: usize) -> u64 {
    let config = ModelConfig::preset(preset).unwrap();
    let d = config.experts[0].body.dimension();
    let x: Vec<f32> = (0..100 * d as u32).map(|i| Noise::new(1).normals(i, 0, 0, Purpose::Displacement)[0] as f32).collect();
    let objective = Objective {
        formulas: Formulas::Corrected,
        process: VariancePreserving::default(),
        range: TimeRange::ALL,
        midpoint: 0.3,
        fokker_planck: Some(FokkerPlanck { fraction: 0.5, ..FokkerPlanck::default() }),
        log_z: Some(LogZ::new(1.0)),
        forces: Some(ForceMatching { weight: 1.0, until: 0.5 }),
        force_scale: 1.0,
    };
    let schedule = CosineSchedule { peak: 1e-4, floor: 1e-5, warmup: 0, steps: 1000 };
    let plan = Plan {
        stages: vec![Stage { network: 0, times: TimeRange { start: 1e-5, end: 1.0 }, objective, schedule }],
        batch: 40,
        adam: AdamW::default(),
        clip: Some(Clip::Norm(1.0)),
        ema: Ema::default(),
        log_z_rate: 10.0,
        rotate: d > 2,
        held_out: 20,
        seed: 1,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let count = pool.install(|| {
        let networks = vec![network::<f32>(&config.experts[0], &[]).unwrap()];
        let data = Data { scores: Some(x.clone()), x, dimension: d, ..Data::default() };
        let mut trainer = Trainer::new(plan, networks, Arc::new(data)).unwrap();
        let mut steps = |n: usize| {
            for _ in 0..n {
                assert!(matches!(trainer.step(), Step::Moved { .. }));
            }
            trainer.validate().unwrap();
            trainer.mark_good();
        };
        // Which thread does what differs from step to step, and each has to grow its memory once.
        steps(10 * threads);
        pool.broadcast(|_| watch(true));
        allocations(|| steps(5))
    });
    pool.broadcast(|_| watch(false));
    count
}

/// What is moved.
struct Case {
    name: &'static str,
    provider: Box<dyn ForceProvider>,
    system: Arc<System>,
    positions: Vec<f64>,
    cell: Option<PeriodicCell>,
    kt: f64,
    dt: f64,
    friction: f64,
}

impl Case {
    fn all() -> Vec<Case> {
        let toy = |name, spec: &str, kt, dt| {
            let built = parse_spec(spec).unwrap().build().unwrap();
            let toy = built.toy.unwrap();
            let (system, positions, cell) = (Arc::new(toy.system), toy.positions, toy.cell);
            Case { name, provider: built.provider, system, positions, cell, kt, dt, friction: 1.0 }
        };
        let molecule = |name, case: &str| {
            let path = format!("{}/tests/data/mechanics/{case}", env!("CARGO_MANIFEST_DIR"));
            let built = parse_spec(&format!("mm:{path}.system.xml")).unwrap().build().unwrap();
            let mechanics = built.mechanics.unwrap();
            let mut system = System::particles(name, mechanics.atoms(), 1.0);
            mechanics.apply_to(&mut system, case).unwrap();
            let reference: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(format!("{path}.reference.json")).unwrap()).unwrap();
            let rows = reference[1]["positions_nm"].as_array().unwrap().iter();
            let positions = rows.flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect();
            Case { name, provider: built.provider, system: Arc::new(system), positions, cell: None, kt: 2.5, dt: 0.0005, friction: 5.0 }
        };
        vec![
            molecule("peptide", "aldp-obc"),
            molecule("peptide with rigid bonds", "aldp-constraints-hbonds"),
            toy("harmonic", "harmonic", 1.0, 0.1),
            toy("double well", "double-well", 1.0, 0.05),
            toy("two-dimensional double well", "double-well-2d", 1.0, 0.05),
            toy("Müller–Brown", "muller-brown", 15.0, 0.003),
            toy("LJ13", "lj", 0.2, 0.004),
            toy("periodic LJ", "lj:cutoff=2.5,n=256", 0.7, 0.004),
        ]
    }

    fn units(&self) -> UnitSystem {
        self.provider.capabilities().units
    }

    fn quantity(&self, x: f64, unit: &str) -> Quantity {
        if self.units() == UnitSystem::Si { Quantity::new(x, unit) } else { Quantity::bare(x) }
    }

    fn spec(&self, scheme: &str) -> DynamicsSpec {
        let slow = if scheme.starts_with("overdamped") { 0.01 } else { 1.0 };
        DynamicsSpec::named(scheme, self.quantity(slow * self.dt, "ps"), self.quantity(self.friction, "/ps")).unwrap()
    }

    /// A batch at the start with drawn velocities.
    fn start(&self, replicas: usize, dtype: DType) -> (Batch, State) {
        let batch = Batch::uniform(self.system.clone(), replicas, 0).unwrap();
        let mut state = State::at_rest(&batch, &self.positions.repeat(replicas), dtype).unwrap();
        state.cells = self.cell.map(|c| vec![c; replicas]);
        state.kt.fill(self.kt);
        draw_velocities(&batch, &mut state, Noise::new(1), self.system.len() > 1);
        (batch, state)
    }

    /// Allocations of `steps` steps after as many to warm up.
    fn count(&self, mut propagator: impl Propagator, replicas: usize, dtype: DType, steps: u64, one_by_one: bool) -> u64 {
        let (batch, mut state) = self.start(replicas, dtype);
        let mut provider = self.provider.fork().unwrap();
        let mut out = Output::new(&batch, dtype, Want::ENERGY);
        let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise: Noise::new(2) };
        propagator.prepare(&mut ctx).unwrap();
        let mut go = |propagator: &mut dyn Propagator| {
            if one_by_one {
                (0..steps).for_each(|_| propagator.step(&mut ctx).unwrap());
            } else {
                propagator.run(&mut ctx, steps).unwrap();
            }
        };
        go(&mut propagator);
        allocations(|| go(&mut propagator))
    }
}

/// A box as a propagator.
struct Boxed(Box<dyn Propagator>);

impl Propagator for Boxed {
    fn prepare(&mut self, ctx: &mut Context<'_>) -> scorefield_integrators::Result<()> {
        self.0.prepare(ctx)
    }
    fn step(&mut self, ctx: &mut Context<'_>) -> scorefield_integrators::Result<()> {
        self.0.step(ctx)
    }
    fn progress(&self, replicas: usize) -> Vec<Progress> {
        self.0.progress(replicas)
    }
    fn fork(&self) -> Box<dyn Propagator> {
        self.0.fork()
    }
}

/// Allocations of 20 denoising steps of four molecules that are pulled into shape.
fn denoising(name: &str, dtype: DType) -> u64 {
    let mut provider = parse_spec("gpff-oracle:tests/data/gpff/c4h7no2.xyz").unwrap().build().unwrap().provider;
    let types = [[6; 4].as_slice(), &[7, 8, 8], &[1; 7]].concat();
    let system = Arc::new(System { types, ..System::particles("isomer", 14, 1.0) });
    let batch = Batch::uniform(system.clone(), 4, 0).unwrap();
    let noise = Noise::new(1);
    let mut positions = vec![0.0; 4 * 42];
    for (id, x) in positions.chunks_exact_mut(42).enumerate() {
        Prior::Isotropic { sigma: 3.0 }.draw(&system, noise, id as u32, x);
    }
    let mut state = State::at_rest(&batch, &positions, dtype).unwrap();
    let mut out = Output::new(&batch, dtype, Want::FORCES);
    let spec = DenoiseSpec { sampler: Sampler::named(name).unwrap(), steps: 64, ..DenoiseSpec::default() };
    let targets = Arc::new(|_| Some([0.03, 0.01, 0.005]));
    let mut propagator = spec.resolve(provider.capabilities()).unwrap().with_targets(targets).propagator();
    let mut ctx = Context { batch: &batch, state: &mut state, provider: provider.as_mut(), out: &mut out, noise };
    propagator.prepare(&mut ctx).unwrap();
    propagator.step(&mut ctx).unwrap();
    let count = allocations(|| (0..20).for_each(|_| propagator.step(&mut ctx).unwrap()));
    assert!(propagator.progress(4).contains(&Progress::Running), "nothing was watched");
    count
}

#[test]
fn steps_allocate_nothing() {
    watch(true);
    // The counter works.
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
    let mut failures = Vec::new();
    let mut note = |count: u64, what: String| {
        if count > 0 {
            failures.push(format!("{what}: {count} allocations"));
        }
    };
    for case in Case::all() {
        for dtype in [DType::F32, DType::F64] {
            for replicas in [1, 16] {
                for scheme in DynamicsSpec::NAMES {
                    let dynamics = Dynamics::new(&case.spec(scheme), case.units(), case.system.len() > 1).unwrap();
                    let what = |how| format!("{} × {replicas} by {scheme} in {dtype}, {how}", case.name);
                    let steps = if case.cell.is_some() { 60 } else { 30 };
                    note(case.count(dynamics.clone(), replicas, dtype, steps, false), what("run"));
                    note(case.count(dynamics.clone(), replicas, dtype, steps, true), what("step"));
                    note(case.count(dynamics.plain(), replicas, dtype, steps, false), what("plain loop"));
                }
                if !case.system.constraints.is_empty() {
                    continue;
                }
                for name in RelaxSpec::NAMES {
                    let propagator =
                        RelaxSpec::named(name).unwrap().with_fmax(case.quantity(1e-9, "kJ/mol/nm")).build(case.units()).unwrap();
                    note(
                        case.count(Boxed(propagator), replicas, dtype, 120, true),
                        format!("{} × {replicas} by {name} in {dtype}", case.name),
                    );
                }
            }
        }
        // The ensemble's own loop, with its looks at the replicas, from inside its pool.
        for threads in [1, 2] {
            let (batch, state) = case.start(32, DType::F32);
            let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
            let dynamics = Dynamics::new(&case.spec("baoab"), case.units(), false).unwrap();
            let guard = Guard { check_every: 10, ..Guard::default() };
            let mut ensemble = Ensemble::new(batch, &state, &*case.provider, &dynamics, Noise::new(3), pool.clone(), guard).unwrap();
            pool.broadcast(|_| watch(true));
            let count = pool.install(|| {
                ensemble.run(50).unwrap();
                ensemble.evaluate(Want::ENERGY).unwrap();
                allocations(|| {
                    ensemble.run(50).unwrap();
                    ensemble.evaluate(Want::ENERGY).unwrap();
                })
            });
            // Threads that end do as they like.
            pool.broadcast(|_| watch(false));
            note(count, format!("{}, ensemble on {threads} threads", case.name));
        }
    }
    for name in Sampler::NAMES {
        for dtype in [DType::F32, DType::F64] {
            note(denoising(name, dtype), format!("{name} in {dtype}"));
        }
    }
    for (preset, threads) in [("muller-brown", 1), ("muller-brown", 2), ("alanine-dipeptide", 1)] {
        note(training(preset, threads), format!("training of {preset} on {threads} threads"));
    }
    assert!(failures.is_empty(), "{} of the loops allocate:\n{}", failures.len(), failures.join("\n"));
}
