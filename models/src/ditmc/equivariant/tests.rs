//! PE(3) against the authors' tensors, the literal equations, rotations, finite differences, and itself in other company.

use super::super::config::{DitmcConfig, PairTokens, Variant};
use super::super::context::{GraphContext, centre};
use super::super::golden::{Golden, MOLECULES, context, difference, small};
use super::super::layout::{Body, Layout};
use super::basis::PairRows;
use super::places::{Irrep, RADIAL};
use super::transformer::span;
use super::*;
use crate::molecule::Vocabulary;
use nalgebra::{Rotation3, Vector3};
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{Noise, Purpose};
use std::sync::Arc;

const FILE: &str = "ditmc_pe3_small.safetensors";

fn pe3() -> DitmcConfig {
    DitmcConfig { variant: Variant::Pe3, ..small() }
}

fn loaded<T: SimdReal>(config: &DitmcConfig, values: &[f64], training: bool) -> Parameters<T> {
    let layout = Arc::new(Layout::new(config));
    let Body::Equivariant(places) = &layout.body else { unreachable!("configurations here are of PE(3)") };
    let mut p = Parameters::new(config, layout.clone(), places, training);
    p.load(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<_>>());
    p
}

fn f64s<T: SimdReal>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn drifts<T: SimdReal>(work: &Work<T>) -> Vec<f64> {
    (0..work.atoms()).flat_map(|i| work.drift(i).map(|x| x.to_f64())).collect()
}

/// Random parameters, none of them zero.
fn drawn(config: &DitmcConfig) -> Vec<f64> {
    let layout = Layout::new(config);
    let mut values = layout.initialise(Noise::new(5));
    for &place in &layout.map {
        values[place] += 0.1 * Noise::new(6).normals(place as u32, 0, 0, Purpose::Initialisation)[0];
    }
    values
}

fn positions(n: usize, seed: u64) -> Vec<f64> {
    (0..n).flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, Purpose::Displacement)).collect()
}

fn run<T: SimdReal>(p: &Parameters<T>, context: &GraphContext, t: f64, x: &[f64]) -> Vec<f64> {
    let mut work = Work::<T>::new(p, false);
    work.set_graphs(p, std::iter::once(context));
    work.set_times(p, std::iter::once(t));
    work.add(p, 0, x);
    work.forward(p);
    drifts(&work)
}

/// Our features of some irreps as the authors store them, `[N, component, F]`.
fn as_theirs<T: SimdReal>(x: &[T], irreps: &[Irrep], n: usize, f: usize, channel: impl Fn(usize) -> usize) -> Vec<f64> {
    let mut out = Vec::new();
    for atom in 0..n {
        for irrep in irreps {
            let all = &x[span(*irrep, n, f)];
            for m in 0..irrep.rows() {
                out.extend((0..f).map(|c| all[(atom * irrep.rows() + m) * f + channel(c)].to_f64()));
            }
        }
    }
    out
}

fn check_golden<T: SimdReal>(tolerance: f64) {
    let Some(golden) = Golden::open(FILE) else { return };
    let config = pe3();
    let p = loaded::<T>(&config, &golden.parameters(&Layout::new(&config)), true);
    let f = config.features();
    let heads = |c: usize| c % config.head_width * config.heads + c / config.head_width;
    for (name, smiles) in MOLECULES {
        let context = context(smiles, config.vocabulary);
        let n = context.len();
        let mut work = Work::<T>::new(&p, true);
        work.set_graphs(&p, std::iter::once(&context));
        for k in ["t0", "t1", "t2"] {
            let of = |what: &str| format!("{name}.{k}.{what}");
            let close = |ours: &[f64], what: &str| {
                let d = difference(ours, &golden.double(&of(what)));
                assert!(d < tolerance, "{name} {k} {what}: {d}");
            };
            work.set_times(&p, std::iter::once(golden.double(&of("t"))[0]));
            work.clear_structures();
            work.add(&p, 0, &golden.double(&of("x_t")));
            work.forward(&p);
            close(&drifts(&work), "drift_raw");
            if k != "t0" {
                continue;
            }
            close(&f64s(&work.condition.conditioner.tokens()[..n * f]), "cond_tokens");
            close(&f64s(&work.condition.fourier[..f / 2]), "time_fourier");
            close(&f64s(&work.condition.time_tokens[..f]), "time_token");
            close(&f64s(&work.blocks[0].h[..n * f]), "node_tokens");
            let (tokens, gates) = (golden.double(&of("pair_tokens")), golden.double(&of("hop_gate")));
            let rows = PairRows { atoms: n, directed: false };
            let (mut ours, mut theirs, mut our_gates, mut their_gates) = (vec![], vec![], vec![], vec![]);
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|(i, j)| i != j) {
                let (row, reversed) = rows.row(i, j);
                for c in 0..4 {
                    let sign = if reversed && c > 0 { -1.0 } else { 1.0 };
                    let y = sign * work.pairs.harmonics[row * 4 + c].to_f64();
                    ours.extend(work.pairs.gated[c.min(1)][row * RADIAL..(row + 1) * RADIAL].iter().map(|b| y * b.to_f64()));
                }
                theirs.extend_from_slice(&tokens[(i * n + j) * 4 * RADIAL..(i * n + j + 1) * 4 * RADIAL]);
                let gate = work.graphs[0].gate(i, j) * 2 * RADIAL;
                our_gates.extend(f64s(&work.gates[gate..gate + 2 * RADIAL]));
                their_gates.extend_from_slice(&gates[(i * n + j) * 2 * RADIAL..(i * n + j + 1) * 2 * RADIAL]);
            }
            assert!(difference(&ours, &theirs) < tolerance, "pair tokens: {}", difference(&ours, &theirs));
            assert!(difference(&our_gates, &their_gates) < tolerance);
            for l in 0..config.blocks {
                let (block, places) = (&work.blocks[l], &p.blocks[l].places);
                let of = |what: &str| format!("block{l}.{what}");
                close(&f64s(&work.modulated[l].values[..n * p.blocks[l].modulation.place.outputs]), &of("adaln"));
                // Stored before the output layer; our channels of values are in another order.
                close(&as_theirs(&block.messages, &places.messages, n, f, heads), &of("attention"));
                close(&as_theirs(&block.update, &places.features, n, f, |c| c), &of("mlp"));
                let out = if l + 1 < config.blocks { &work.blocks[l + 1].h } else { &work.last };
                close(&as_theirs(out, &places.features, n, f, |c| c), &of("out"));
            }
            close(&f64s(&work.readout.before[..n * 3 * f]), "readout.adaln_pre_activation");
        }
    }
}

/// In double precision their binomials, which are logarithms of gamma functions, are good to 8e-9, in single precision to 8e-6.
#[test]
fn forward_is_that_of_the_authors() {
    check_golden::<f64>(1e-8);
    check_golden::<f32>(2e-5);
}
