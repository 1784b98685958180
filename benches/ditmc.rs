//! DiTMC: conformers of one molecule, and training, on one core.
//!
//! ```text
//! cargo bench --bench ditmc
//! ```
//!
//! Paracetamol (20 atoms) and palmitic acid (50 atoms) with random weights: speed does not depend on them. Samplers make ten steps, so that
//! an evaluation takes a tenth of the time over the batch.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scorefield_integrators::{Noise, Purpose};
use scorefield_models::ditmc::rows::TimeSettings;
use scorefield_models::ditmc::sampler::Draw;
use scorefield_models::ditmc::trainer::{Conformers, Plan, Trainer};
use scorefield_models::ditmc::{DitmcConfig, DitmcModel, GraphContext, Path, Sampler, SamplerSettings};
use scorefield_models::molecule::{Graph, Vocabulary};
use scorefield_models::train::{AdamW, Clip, CosineSchedule, Ema};
use std::sync::Arc;

const MOLECULES: [&str; 2] = ["CC(=O)Nc1ccc(O)cc1", "CCCCCCCCCCCCCCCC(=O)O"];
const STEPS: usize = 10;

fn context(smiles: &str, vocabulary: Vocabulary) -> GraphContext {
    let graph = Graph::from_smiles(smiles).expect("a molecule");
    GraphContext::new(&graph, vocabulary).expect("known elements")
}

fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread")
}

fn conformers(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("ditmc, ten steps");
    group.sample_size(10);
    for preset in ["ditmc-ape-base", "ditmc-rpe-base", "ditmc-ape-small", "ditmc-pe3-base", "ditmc-pe3-small"] {
        let config = DitmcConfig::preset(preset).expect("a preset");
        let noise = Noise::new(1);
        let values = (0..config.parameters()).map(|k| 0.05 * noise.uniform(k as u32, 0, 0, Purpose::Prior) - 0.025).collect();
        let vocabulary = config.vocabulary;
        let model = DitmcModel { config, path: Path::default(), values, temperature: None, command: String::new(), seed: 0 };
        let sampler = Sampler::<f32>::new(&model);
        let settings = SamplerSettings { steps: STEPS, ..SamplerSettings::default() };
        for smiles in MOLECULES {
            let context = context(smiles, vocabulary);
            for count in [1, 16] {
                let draws: Vec<Draw<'_>> = (0..count).map(|id| Draw { id, round: 0, given: None, start: None }).collect();
                group.throughput(Throughput::Elements(u64::from(count) * STEPS as u64));
                let name = BenchmarkId::new(format!("{preset}, {} atoms", context.len()), count);
                group.bench_function(name, |b| b.iter(|| pool.install(|| sampler.draw(&settings, &context, noise, &draws))));
            }
        }
    }
}

fn training(c: &mut Criterion) {
    let pool = pool();
    let mut group = c.benchmark_group("ditmc training, 15 to 21 atoms");
    group.sample_size(10);
    for preset in ["ditmc-ape-small", "ditmc-rpe-small", "ditmc-ape-base-qm9", "ditmc-pe3-small"] {
        let config = DitmcConfig::preset(preset).expect("a preset");
        let mut data = Conformers::default();
        for (k, smiles) in ["CC(=O)NC1CC1O", "CCC(C)CCO", "c1ccccc1CO", "CC1CCC(=O)O1"].into_iter().enumerate() {
            let context = context(smiles, config.vocabulary);
            let x: Vec<f32> = (0..context.len())
                .flat_map(|i| Noise::new(2).normals(i as u32, k as u32, 0, Purpose::Displacement))
                .map(|x| x as f32)
                .collect();
            data.contexts.push(context);
            let number = data.push(k as u32, x.into_iter());
            data.training.push(number);
        }
        let plan = Plan {
            config,
            path: Path::default(),
            times: TimeSettings::default(),
            batch: 48,
            rate: CosineSchedule { peak: 1e-4, floor: 0.0, warmup: 0, steps: u64::MAX },
            adam: AdamW::default(),
            clip: Some(Clip::Norm(10.0)),
            ema: Ema::default(),
            seed: 0,
        };
        let mut trainer = pool.install(|| Trainer::<f32>::new(plan, Arc::new(data))).expect("a trainer");
        group.throughput(Throughput::Elements(48));
        group.bench_function(BenchmarkId::new(preset, 48), |b| b.iter(|| pool.install(|| trainer.step()).expect("a step")));
    }
}

criterion_group!(benches, conformers, training);
criterion_main!(benches);
