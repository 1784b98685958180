//! Every propagator on a toy and on alanine dipeptide at 1, 16, 128 and 1024 replicas, on one thread. The unit of
//! throughput is the system-step: one step of one replica.
//!
//! ```text
//! cargo bench --bench propagators -- peptide/baoab
//! ```

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::relax::RelaxSpec;
use scorefield_integrators::{
    Batch, Context, DType, Dynamics, DynamicsSpec, ForceProvider, Noise, Output, Propagator, Quantity, State, System, UnitSystem, Want,
};
use scorefield_models::parse_spec;
use std::sync::Arc;
use std::time::Duration;

struct Subject {
    name: &'static str,
    provider: Box<dyn ForceProvider>,
    system: Arc<System>,
    positions: Vec<f64>,
    kt: f64,
    dt: f64,
}

fn subjects() -> Vec<Subject> {
    let built = parse_spec("muller-brown:x=-0.2,y=0.9").unwrap().build().unwrap();
    let toy = built.toy.unwrap();
    let muller_brown = Subject {
        name: "muller-brown",
        provider: built.provider,
        system: Arc::new(toy.system),
        positions: toy.positions,
        kt: 15.0,
        dt: 1e-3,
    };
    let (provider, system, positions) = peptide();
    vec![muller_brown, Subject { name: "peptide", provider, system, positions, kt: 2.494, dt: 1e-3 }]
}

/// Alanine dipeptide in implicit solvent, at a thermal structure.
fn peptide() -> (Box<dyn ForceProvider>, Arc<System>, Vec<f64>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mechanics/aldp-obc");
    let built = parse_spec(&format!("mm:{path}.system.xml")).unwrap().build().unwrap();
    let mechanics = built.mechanics.unwrap();
    let mut system = System::particles("peptide", mechanics.atoms(), 1.0);
    mechanics.apply_to(&mut system, path).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{path}.reference.json")).unwrap()).unwrap();
    let rows = reference[1]["positions_nm"].as_array().unwrap().iter();
    (built.provider, Arc::new(system), rows.flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect())
}

impl Subject {
    /// A stepper of `replicas` replicas under `propagator`, prepared.
    fn stepper(&self, mut propagator: Box<dyn Propagator>, replicas: usize, dtype: DType) -> impl FnMut(u64) {
        let batch = Batch::uniform(self.system.clone(), replicas, 0).unwrap();
        let mut state = State::at_rest(&batch, &self.positions.repeat(replicas), dtype).unwrap();
        state.kt.fill(self.kt);
        let noise = Noise::new(1);
        draw_velocities(&batch, &mut state, noise, false);
        let mut provider = self.provider.fork().unwrap();
        let mut out = Output::new(&batch, dtype, Want::ENERGY);
        let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
        propagator.prepare(&mut ctx).unwrap();
        move |steps| {
            let mut ctx = Context { batch: &batch, state: &mut state, provider: &mut *provider, out: &mut out, noise };
            propagator.run(&mut ctx, steps).unwrap();
        }
    }
}

fn bench(c: &mut Criterion) {
    for subject in subjects() {
        let units = subject.provider.capabilities().units;
        let quantity = |x: f64, unit: &str| if units == UnitSystem::Si { Quantity::new(x, unit) } else { Quantity::bare(x) };
        let mut group = c.benchmark_group(subject.name);
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        for replicas in [1, 16, 128, 1024] {
            let steps = (2048 / replicas as u64).max(4);
            group.throughput(Throughput::Elements(steps * replicas as u64));
            for dtype in [DType::F32, DType::F64] {
                for scheme in DynamicsSpec::NAMES {
                    let slow = if scheme.starts_with("overdamped") { 1e-3 } else { 1.0 };
                    let spec = DynamicsSpec::named(scheme, quantity(slow * subject.dt, "ps"), quantity(1.0, "/ps")).unwrap();
                    let dynamics = Dynamics::new(&spec, units, false).unwrap();
                    let mut run = subject.stepper(Box::new(dynamics.clone()), replicas, dtype);
                    group.bench_function(BenchmarkId::new(format!("{scheme}/{dtype}"), replicas), |b| b.iter(|| run(steps)));
                    if scheme == "baoab" {
                        let mut run = subject.stepper(Box::new(dynamics.plain()), replicas, dtype);
                        group.bench_function(BenchmarkId::new(format!("{scheme}-plain/{dtype}"), replicas), |b| b.iter(|| run(steps)));
                    }
                }
            }
            // Minimisers work in double precision whatever the state's. They begin anew each time, since they stop moving
            // when they have arrived; few steps, so that they have not.
            let steps = (2048 / replicas as u64).clamp(4, 32);
            group.throughput(Throughput::Elements(steps * replicas as u64));
            for name in RelaxSpec::NAMES {
                let spec = RelaxSpec::named(name).unwrap().with_fmax(quantity(1e-30, "kJ/mol/nm"));
                let fresh = || subject.stepper(spec.build(units).unwrap(), replicas, DType::F64);
                group.bench_function(BenchmarkId::new(format!("{name}/f64"), replicas), |b| {
                    b.iter_batched_ref(fresh, |run| run(steps), criterion::BatchSize::LargeInput);
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
