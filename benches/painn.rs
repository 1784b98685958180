//! PaiNN: vectors of a direct head, and training, on one core.
//!
//! ```text
//! cargo bench --bench painn
//! ```
//!
//! 18 atoms, the published network (4 × 256) and the small one (3 × 128), with random weights: speed does not depend on them.
//! Times are per batch. `benches/peers/painn_torch.py` measures the same in PyTorch.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scorefield_integrators::{Batch, Clock, DType, ForceProvider, Input, Noise, Output, Purpose, State, System, Want};
use scorefield_models::painn::model::{EV_PER_SQUARE_ANGSTROM, Output as Meaning};
use scorefield_models::painn::noising::NoiseSettings;
use scorefield_models::painn::trainer::{Molecules, Objective, Plan, Rate, Trainer};
use scorefield_models::painn::{PainnConfig, PainnModel, PainnProvider};
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema};
use std::sync::Arc;

const NUMBERS: [u32; 18] = [6, 6, 6, 6, 6, 6, 6, 8, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1];

/// Atoms at random within a few Å (nm).
fn positions(seed: u64) -> Vec<f64> {
    (0..18).flat_map(|i| Noise::new(seed).normals(i, 0, 0, Purpose::Displacement)).map(|x| 0.15 * x).collect()
}

fn forces(c: &mut Criterion) {
    let mut system = System::particles("molecule", NUMBERS.len(), 1.0);
    system.types = NUMBERS.to_vec();
    let system = Arc::new(system);
    let mut group = c.benchmark_group("painn forces, 18 atoms");
    let gpff = PainnConfig::default();
    for (name, config) in [
        ("4 x 256, 600 radial", gpff.clone()),
        ("4 x 256, 20 radial", PainnConfig { radial: 20, cutoff: 5.0, ..gpff.clone() }),
        ("3 x 128, 600 radial", PainnConfig { features: 128, layers: 3, ..gpff }),
    ] {
        let noise = Noise::new(1);
        let bound = (3.0 / config.features as f64).sqrt();
        let values = (0..config.parameters()).map(|k| bound * (2.0 * noise.uniform(k as u32, 0, 0, Purpose::Prior) - 1.0)).collect();
        let output = Meaning::Displacement { stiffness: EV_PER_SQUARE_ANGSTROM };
        let model = PainnModel {
            config,
            output,
            references: Vec::new(),
            values,
            types: vec![1, 6, 7, 8],
            noise: None,
            command: String::new(),
            seed: 0,
        };
        let mut provider = PainnProvider::new(model);
        for replicas in [1, 16] {
            let batch = Batch::uniform(system.clone(), replicas, 0).expect("a batch");
            let x: Vec<f64> = (0..replicas as u64).flat_map(positions).collect();
            let state = State::at_rest(&batch, &x, DType::F32).expect("finite positions");
            let mut out = Output::new(&batch, DType::F32, Want::FORCES);
            provider.prepare(&batch, DType::F32).expect("known elements");
            let want = Want::FORCES;
            let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: Clock::Iteration, want };
            group.throughput(Throughput::Elements(replicas as u64));
            group.bench_function(BenchmarkId::new(name, replicas), |b| b.iter(|| provider.evaluate(&input, &mut out)));
        }
    }
}

fn training(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = c.benchmark_group("painn training, 18 atoms");
    group.sample_size(10);
    for name in ["gpff", "gpff-small"] {
        let mut data = Molecules { offsets: vec![0], training: (0..64).collect(), ..Molecules::default() };
        for k in 0..64 {
            data.types.extend(NUMBERS);
            data.positions.extend(positions(k).iter().map(|x| (10.0 * x) as f32));
            data.offsets.push(data.types.len());
        }
        let plan = Plan {
            config: PainnConfig::preset(name).expect("a preset"),
            objective: Objective::PseudoForce,
            noise: NoiseSettings::default(),
            batch: 64,
            rate: Rate::Cosine(CosineSchedule { peak: 1e-4, floor: 0.0, warmup: 0, steps: u64::MAX }),
            adam: AdamW::default(),
            clip: Some(Clip::Norm(0.5)),
            ema: Ema::default(),
            seed: 0,
        };
        let mut trainer = pool.install(|| Trainer::<f32>::new(plan, Arc::new(data))).expect("a trainer");
        group.throughput(Throughput::Elements(64));
        group.bench_function(BenchmarkId::new(name, 64), |b| b.iter(|| pool.install(|| trainer.step()).expect("a step")));
    }
}

criterion_group!(benches, forces, training);
criterion_main!(benches);
