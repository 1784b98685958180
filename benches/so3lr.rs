//! SO3LR, energies and forces of a molecule of 60 atoms, on one core.
//!
//! ```text
//! SCOREFIELD_SO3LR=so3lr.safetensors cargo bench --bench so3lr
//! ```
//!
//! Without that variable the weights are looked for under `SCOREFIELD_REFERENCE`, else `../shared`; without weights nothing is
//! measured. The molecule is a made-up helix; what matters for speed is its number of atoms and of pairs within 4.5 Å, which are
//! printed with the number of floating-point operations of all matrix products.

use criterion::{Criterion, criterion_group, criterion_main};
use scorefield_integrators::{Batch, Clock, DType, ForceProvider, Input, Output, State, System, Want};
use scorefield_models::so3lr::So3lrProvider;
use std::path::PathBuf;
use std::sync::Arc;

fn weights() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("SCOREFIELD_SO3LR") {
        return Some(file.into());
    }
    let root = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    Some(root.join("weights/so3lr/so3lr.safetensors")).filter(|f| f.exists())
}

/// A helix of twenty groups of three atoms, in nm.
fn polymer() -> (Vec<u32>, Vec<f64>) {
    let (mut types, mut positions) = (Vec::new(), Vec::new());
    for k in 0..20 {
        let (angle, z) = (1.15 * f64::from(k), 0.075 * f64::from(k));
        types.extend([if k % 3 == 2 { 7 } else { 6 }, 1, 1]);
        positions.extend([0.13 * angle.cos(), 0.13 * angle.sin(), z]);
        positions.extend([0.235 * (angle - 0.2).cos(), 0.235 * (angle - 0.2).sin(), z + 0.02]);
        positions.extend([0.235 * (angle + 0.25).cos(), 0.235 * (angle + 0.25).sin(), z - 0.03]);
    }
    (types, positions)
}

fn so3lr(c: &mut Criterion) {
    let Some(file) = weights() else {
        eprintln!("skipped: no SO3LR weights; set SCOREFIELD_SO3LR to their safetensors file");
        return;
    };
    let mut provider = match So3lrProvider::new(&file, 100.0) {
        Ok(provider) => provider,
        Err(e) => panic!("{e}"),
    };
    let (types, positions) = polymer();
    let atoms = types.len();
    let mut system = System::particles("polymer", atoms, 1.0);
    system.types = types;
    let system = Arc::new(system);
    let mut group = c.benchmark_group("so3lr, 60 atoms");
    for dtype in [DType::F32, DType::F64] {
        let batch = Batch::uniform(system.clone(), 1, 0).expect("a batch");
        let state = State::at_rest(&batch, &positions, dtype).expect("finite positions");
        let mut out = Output::new(&batch, dtype, Want::ENERGY);
        provider.prepare(&batch, dtype).expect("known elements");
        let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: Clock::Iteration, want: Want::ENERGY };
        provider.evaluate(&input, &mut out).expect("an evaluation");
        let pairs = provider.pairs();
        println!("{dtype}: {pairs} pairs, {:.1} MFLOP in matrix products", provider.matrix_flops(atoms, pairs) as f64 * 1e-6);
        group.bench_function(format!("energy and forces {dtype}"), |b| {
            b.iter(|| provider.evaluate(&input, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, so3lr);
criterion_main!(benches);
