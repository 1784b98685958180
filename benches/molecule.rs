//! Perception, validity and identity of molecules, on one core; time per molecule of 18 atoms on average.
//!
//! ```text
//! cargo bench --bench molecule
//! ```
//!
//! The molecules are those of the perception fixture (QM9 without fluorine), as they are and with 0.1 Å of noise.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use scorefield_models::molecule::{Compare, Convention, Perceiver, Stability, Verdict};
use std::hint::black_box;

/// Elements and positions in nm of the fixture's molecules.
fn molecules() -> Vec<(Vec<u32>, Vec<f64>)> {
    let data = include_bytes!("../tests/data/molecule/qm9.bin");
    let number = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]) as usize;
    let (count, levels) = (number(8), number(12));
    let mut at = 16 + 4 * levels;
    (0..count)
        .map(|_| {
            let n = usize::from(data[at]);
            let elements = data[at + 1..at + 1 + n].iter().map(|&z| u32::from(z)).collect();
            let xyz = &data[at + 1 + n..at + 1 + 7 * n];
            at += 1 + 7 * n + 12 * levels;
            (elements, xyz.chunks_exact(2).map(|x| f64::from(i16::from_le_bytes([x[0], x[1]])) / 30_000.0).collect())
        })
        .collect()
}

fn molecule(c: &mut Criterion) {
    let clean = molecules();
    // A fixed pseudo-random displacement; its distribution does not matter for the time.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1u32 << 24) - 0.5
    };
    let noisy: Vec<_> =
        clean.iter().map(|(z, x)| (z.clone(), x.iter().map(|v| v + 0.01 * 12f64.sqrt() * random()).collect::<Vec<f64>>())).collect();
    let mut group = c.benchmark_group("molecule");
    group.sample_size(20).throughput(Throughput::Elements(clean.len() as u64));
    for (name, set) in [("clean", &clean), ("0.1 Å of noise", &noisy)] {
        let mut perceiver = Perceiver::new();
        for (convention, label) in [(Convention::default(), "charges"), (Convention::without_charges(), "no charges")] {
            group.bench_function(format!("verdict, {label}, {name}"), |b| {
                b.iter(|| set.iter().filter(|(z, x)| Verdict::of(&mut perceiver, z, x, convention).is_valid()).count());
            });
        }
        group.bench_function(format!("identity, {name}"), |b| {
            let graphs: Vec<_> = set.iter().filter_map(|(z, x)| perceiver.perceive(z, x, Convention::default()).ok()).collect();
            b.iter(|| {
                for graph in &graphs {
                    let mut graph = graph.clone();
                    graph.find_aromaticity();
                    black_box(graph.identity(Compare::Constitution));
                }
            });
        });
        group.bench_function(format!("stability, {name}"), |b| {
            b.iter(|| set.iter().filter(|(z, x)| Stability::of(z, x).is_stable()).count());
        });
    }
    group.finish();
}

criterion_group!(benches, molecule);
criterion_main!(benches);
