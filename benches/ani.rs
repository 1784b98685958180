//! ANI-2x, energies and forces of all eight networks, on one core.
//!
//! ```text
//! SCOREFIELD_ANI2X=ani2x.safetensors cargo bench --bench ani
//! ```
//!
//! Without that variable the weights are looked for under `SCOREFIELD_REFERENCE`, else `../shared`; without weights nothing is
//! measured. The molecule is acetamide beside ethanol, 18 atoms of H, C, N and O; times are per batch.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use scorefield_integrators::{Batch, Clock, DType, ForceProvider, Input, Output, State, System, Want};
use scorefield_models::ani::{AniModel, AniProvider};
use std::path::PathBuf;
use std::sync::Arc;

const NUMBERS: [u32; 18] = [8, 6, 7, 6, 1, 1, 1, 1, 1, 6, 6, 8, 1, 1, 1, 1, 1, 1];
/// In Å.
const POSITIONS: [f64; 54] = [
    0.424546, 1.327024, 0.008034, 0.077158, 0.149789, -0.004249, 0.985518, -0.878537, -0.048910, -1.371475, -0.288665, -0.000144, 0.707952,
    -1.824249, 0.169942, -1.997229, 0.584922, -0.175477, -1.560842, -1.039270, -0.771686, -1.632113, -0.723007, 0.969814, 1.953133,
    -0.631574, 0.111866, 1.168181, -0.400382, 3.5, 0.0, 0.559462, 3.5, -1.190083, -0.214658, 3.5, -1.946623, 0.381525, 3.5, 0.042557,
    1.207508, 4.386933, 0.042557, 1.207508, 2.613067, 2.115891, 0.144800, 3.5, 1.128599, -1.037234, 4.385881, 1.128599, -1.037234,
    2.614119,
];

fn weights() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("SCOREFIELD_ANI2X") {
        return Some(file.into());
    }
    let root = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    Some(root.join("weights/ani/ani2x_8x_hcnof.safetensors")).filter(|f| f.exists())
}

fn ani(c: &mut Criterion) {
    let Some(file) = weights() else {
        eprintln!("skipped: no ANI-2x weights; set SCOREFIELD_ANI2X to a file that data/scripts/convert_ani.py wrote");
        return;
    };
    let mut provider = match AniProvider::open(&file, Some(AniModel::Ani2x)) {
        Ok(provider) => provider,
        Err(e) => panic!("{e}"),
    };
    let mut system = System::particles("acetamide and ethanol", NUMBERS.len(), 1.0);
    system.types = NUMBERS.to_vec();
    let system = Arc::new(system);
    let mut group = c.benchmark_group("ani2x, 18 atoms");
    for dtype in [DType::F32, DType::F64] {
        for replicas in [1, 16] {
            // Each replica a little larger than the one before.
            let positions: Vec<f64> =
                (0..replicas).flat_map(|b| POSITIONS.iter().map(move |x| 0.1 * x * (1.0 + 0.001 * f64::from(b)))).collect();
            for (name, want) in [("forces", Want::ENERGY), ("forces and spread", Want { uncertainty: true, ..Want::ENERGY })] {
                let batch = Batch::uniform(system.clone(), replicas as usize, 0).expect("a batch");
                let state = State::at_rest(&batch, &positions, dtype).expect("finite positions");
                let mut out = Output::new(&batch, dtype, want);
                provider.prepare(&batch, dtype).expect("known elements");
                let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: Clock::Iteration, want };
                group.throughput(Throughput::Elements(replicas as u64));
                group.bench_function(BenchmarkId::new(format!("{name} {dtype}"), replicas), |b| {
                    b.iter(|| provider.evaluate(&input, &mut out));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, ani);
criterion_main!(benches);
