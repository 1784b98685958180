//! ScoreMD's networks on one core: scores, energies, and the gradients that training asks for.
//!
//! ```text
//! cargo bench --bench scoremd
//! ```
//!
//! Weights are made up; speed does not depend on them. The number of multiply-adds of all matrix products per configuration is
//! printed, as is the speed of fused multiply-adds in registers, so that a time per configuration is also a fraction of what the core
//! can do.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pulp::{Simd, WithSimd};
use scorefield_integrators::simd::{Lanes, SimdReal, dispatch};
use scorefield_integrators::{Noise, Purpose};
use scorefield_models::scoremd::config::{Body, HEAD_WIDTH, HEADS, ModelConfig};
use scorefield_models::scoremd::network;
use scorefield_models::scoremd::network::Rows;
use std::time::Instant;

/// Multiply-adds per configuration of a score, and of the gradient of one to parameters.
fn products(body: &Body, features: usize) -> (f64, f64) {
    match body {
        Body::Mlp { dimension, hidden } => {
            let mut inputs = dimension + features;
            let mut forward = 0;
            for &width in hidden {
                forward += width * inputs;
                inputs = width;
            }
            let forward = (forward + inputs) as f64;
            // Values and tangents forward, both back, and both to weights.
            (2.0 * forward, 6.0 * forward)
        }
        Body::GraphTransformer { beads, width, layers, .. } => {
            let inner = HEADS * HEAD_WIDTH;
            let qkv = (beads * 3 * width * inner) as f64;
            let forward = *layers as f64 * (qkv + (beads * width * (inner + 8 * width)) as f64);
            // Queries, keys and values of the first layer do not depend on coordinates.
            let once = 2.0 * forward - qkv;
            (once, 3.0 * once)
        }
    }
}

/// Twenty independent chains of multiply-adds.
struct Chains(usize);

impl WithSimd for Chains {
    type Output = f32;
    #[inline(always)]
    fn with_simd<S: Simd>(self, t: S) -> f32 {
        chains::<<f32 as SimdReal>::Of<S>>(t, self.0)
    }
}

#[inline(always)]
fn chains<V: Lanes<Scalar = f32>>(t: V::Token, n: usize) -> f32 {
    let (x, y) = (V::lit(t, std::hint::black_box(0.999)), V::lit(t, std::hint::black_box(1e-3)));
    let mut sums = [V::lit(t, 1.0); 20];
    for _ in 0..n {
        for sum in &mut sums {
            *sum = sum.mul_add(x, y);
        }
    }
    let mut all = V::zero(t);
    for sum in sums {
        all += sum;
    }
    all.total()
}

fn peak() -> f64 {
    let n = 100_000;
    let run = || {
        let start = Instant::now();
        std::hint::black_box(dispatch(Chains(n)));
        start.elapsed().as_secs_f64()
    };
    let best = (0..50).map(|_| run()).fold(f64::INFINITY, f64::min);
    (2 * 20 * n * scorefield_integrators::simd::lanes::<f32>()) as f64 / best * 1e-9
}

fn scoremd(c: &mut Criterion) {
    println!("fused multiply-adds in registers: {:.0} GFLOP/s", peak());
    for (preset, rows) in [("muller-brown", 512), ("alanine-dipeptide", 128), ("chignolin", 64)] {
        let Some(config) = ModelConfig::preset(preset) else { continue };
        let config = &config.experts[0];
        let net = match network::<f32>(config, &[]) {
            Ok(net) => net,
            Err(e) => panic!("{e}"),
        };
        let noise = Noise::new(1);
        let draw = |i: usize, what: u32| noise.normals(i as u32, what, 0, Purpose::Displacement)[0] as f32;
        let mut parameters: Vec<f32> = (0..net.layout().len()).map(|i| draw(i, 0)).collect();
        for e in net.layout().entries() {
            let scale = if e.shape.len() == 2 { (e.shape[1] as f32).powf(-0.5) } else { 0.3 };
            parameters[e.offset..e.offset + e.len()].iter_mut().for_each(|p| *p *= scale);
        }
        let d = net.dimension();
        let x: Vec<f32> = (0..rows * d).map(|i| draw(i, 1)).collect();
        let u: Vec<f32> = (0..rows * d).map(|i| draw(i, 2)).collect();
        let t: Vec<f32> = (0..rows).map(|i| (i as f32 + 0.5) / rows as f32).collect();
        let common = vec![1e-5; rows];
        let mut worker = net.worker();
        let mut score = vec![0.0; rows * d];
        let mut gradient = vec![0.0; parameters.len()];

        let (once, training) = products(&config.body, config.range.features());
        println!("{preset}: {:.3} and {:.3} million multiply-adds per score and gradient", once * 1e-6, training * 1e-6);
        let mut group = c.benchmark_group(format!("scoremd {preset}"));
        group.bench_function("load", |b| b.iter(|| worker.load(&parameters)));
        group.throughput(Throughput::Elements(rows as u64));
        let many = Rows { x: &x, t: &t, system: &[] };
        group.bench_function("scores", |b| b.iter(|| worker.evaluate(many, None, Some(&mut score))));
        let one = Rows { x: &x, t: &common, system: &[] };
        group.bench_function("scores at one time", |b| b.iter(|| worker.evaluate(one, None, Some(&mut score))));
        group.bench_function("gradient of scores", |b| b.iter(|| worker.accumulate(many, None, Some(&u), &mut gradient)));
        group.finish();
    }
}

criterion_group!(benches, scoremd);
criterion_main!(benches);
