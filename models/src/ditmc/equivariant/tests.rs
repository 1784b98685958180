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
    // Something that turns with the molecule stands for what was predicted before.
    let before: Vec<f64> = (0..x.len()).map(|k| 0.8 * x[(k + 3) % x.len()]).collect();
    work.recall(p, &before);
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

/// The authors' gradients of their loss, in single precision: theirs carry the errors of their binomials.
#[test]
fn gradients_are_those_of_the_authors() {
    let Some(golden) = Golden::open(FILE) else { return };
    let config = pe3();
    let layout = Layout::new(&config);
    let p = loaded::<f64>(&config, &golden.parameters(&layout), true);
    let context = context("CCO", config.vocabulary);
    let of = |what: &str| golden.double(&format!("loss.ethanol.{what}"));
    let tau = of("tau")[0];
    let mut work = Work::<f64>::new(&p, true);
    work.set_graphs(&p, std::iter::once(&context));
    work.set_times(&p, std::iter::once(tau));
    work.add(&p, 0, &of("default.x_t"));
    work.forward(&p);
    let (mut x1_hat, mut x1) = (drifts(&work), golden.get("loss.ethanol.x1"));
    assert!(difference(&x1_hat, &of("default.net_out")) < 1e-8);
    centre(&mut x1_hat);
    centre(&mut x1);
    let weight = 1.0 / (1.0 - tau.min(0.9)).powi(2) / x1.len() as f64;
    let loss: f64 = x1_hat.iter().zip(&x1).map(|(a, b)| weight * (a - b) * (a - b)).sum();
    assert!((loss / of("default.loss")[0] - 1.0).abs() < 1e-8, "{loss}");
    let mut seed: Vec<f64> = x1_hat.iter().zip(&x1).map(|(a, b)| 2.0 * weight * (a - b)).collect();
    centre(&mut seed);
    let mut gradient = vec![0.0; layout.len];
    work.backward(&p, &seed, &mut gradient);
    let mut start = 0;
    for entry in &layout.entries {
        let n: usize = entry.shape.iter().product();
        let ours: Vec<f64> = layout.map[start..start + n].iter().map(|&k| gradient[k]).collect();
        start += n;
        let theirs = of(&format!("default.grad.{}", entry.name));
        if theirs.iter().all(|&g| g == 0.0) {
            // Odd scalars after the last block, and the shift of scalars in the end: nothing reads them.
            assert!(ours.iter().all(|&g| g == 0.0), "{}", entry.name);
            continue;
        }
        let d = difference(&ours, &theirs);
        assert!(d < 1e-4, "{}: {d}", entry.name);
    }
    // What is padding stays so.
    let mut real = vec![false; layout.len];
    layout.map.iter().for_each(|&k| real[k] = true);
    assert!(gradient.iter().zip(&real).all(|(g, r)| *r || *g == 0.0));
}

fn variants() -> [DitmcConfig; 6] {
    let of = |degree, pair_tokens, heads, head_width, blocks| DitmcConfig {
        degree,
        pair_tokens,
        heads,
        head_width,
        blocks,
        vocabulary: Vocabulary::Qm9,
        expansion: 2,
        self_conditioning: heads != 8,
        guidance: heads != 3,
        ..pe3()
    };
    [
        of(1, PairTokens::AllPairs, 2, 8, 3),
        of(1, PairTokens::BondPairs, 8, 4, 2),
        of(1, PairTokens::AllPairs, 3, 16, 1),
        of(0, PairTokens::AllPairs, 4, 4, 3),
        of(2, PairTokens::AllPairs, 4, 4, 2),
        of(2, PairTokens::BondPairs, 2, 8, 2),
    ]
}

/// All degrees, both kinds of pair tokens, several molecules and structures.
#[test]
fn gradients_are_finite_differences() {
    for config in variants() {
        let layout = Arc::new(Layout::new(&config));
        let values = drawn(&config);
        let contexts = ["C[C@H](O)F", "O", "C.N", "CO"].map(|s| context(s, Vocabulary::Qm9));
        let seeds = positions(60, 9);
        let mut work: Option<Work<f64>> = None;
        let mut loss = |values: &[f64], gradient: Option<&mut [f64]>| {
            let p = loaded::<f64>(&config, values, true);
            let work = work.get_or_insert_with(|| Work::new(&p, true));
            work.set_graphs(&p, contexts.iter());
            if config.guidance {
                work.forget(&p, 3);
            }
            work.set_times(&p, [0.3, 0.9, 0.0, 0.6].into_iter());
            for (k, graph) in [0, 1, 2, 0, 3].into_iter().enumerate() {
                work.add(&p, graph, &positions(contexts[graph].len(), k as u64));
                if k > 1 {
                    work.recall(&p, &positions(contexts[graph].len(), 20 + k as u64));
                }
            }
            work.forward(&p);
            let sum: f64 = drifts(work).iter().zip(&seeds).map(|(d, s)| d * s).sum();
            let n = 3 * work.atoms();
            if let Some(gradient) = gradient {
                work.backward(&p, &seeds[..n], gradient);
            }
            sum
        };
        let mut gradient = vec![0.0; layout.len];
        loss(&values, Some(&mut gradient));
        let (mut start, mut with) = (0, 0);
        for entry in &layout.entries {
            let n: usize = entry.shape.iter().product();
            let places = &layout.map[start..start + n];
            start += n;
            let norm = places.iter().map(|&k| gradient[k] * gradient[k]).sum::<f64>().sqrt();
            with += usize::from(norm > 0.0);
            // Along the gradient itself; where there is none, along all elements alike. Small norms count as 0 from a bound on, so that the
            // function has jumps: where a step meets one, a shorter step does not.
            let slope = |h: f64| {
                let mut along = |sign: f64| {
                    let mut moved = values.clone();
                    places.iter().for_each(|&k| moved[k] += sign * h * if norm > 0.0 { gradient[k] / norm } else { 1.0 });
                    loss(&moved, None)
                };
                (along(1.0) - along(-1.0)) / (2.0 * h)
            };
            let mut slopes = [1e-5, 1e-6, 1e-7].into_iter().map(slope);
            assert!(slopes.any(|s| (s - norm).abs() < 2e-5 * norm.max(1e-2)), "{config:?} {}: {norm}", entry.name);
        }
        // Without gradient are only features that vectors of the last block do not need, and what conditions them.
        assert!(with * 10 > 8 * layout.entries.len(), "{with} of {}", layout.entries.len());
    }
}

/// Messages by the equations as they stand: tensor products over channels of every pair, in plain loops.
fn literal(p: &Parameters<f64>, work: &Work<f64>, l: usize) -> Vec<f64> {
    let (f, heads, degree) = (p.config.features(), p.config.heads, p.places.degree);
    let (block, saved) = (&p.blocks[l], &work.blocks[l]);
    let (n, places) = (work.graphs[0].atoms, &p.blocks[l].places);
    let rows = work.rows_of(p, 0);
    let matrix = |weight: &std::ops::Range<usize>, columns: usize, r: usize, c: usize| p.values[weight.start + r * columns + c];
    let at = |irrep: Irrep, atom: usize, m: usize| (irrep.first * n + atom * irrep.rows() + m) * 3 * f;
    let components: usize = places.inputs.iter().map(Irrep::rows).sum();
    let [_, parities, degrees_in, out_parities, degrees_out] = places.kappa_shape;
    let mut out = vec![0.0; p.components() * n * f];
    for i in 0..n {
        let token = |j: usize, l: usize, c: usize, place: &super::super::layout::DensePlace| -> f64 {
            let row = rows.row(i, j).0;
            (0..RADIAL).map(|k| work.pairs.gated[l][row * RADIAL + k] * matrix(&place.weight, place.outputs, k, c)).sum()
        };
        let others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
        let mut logits = vec![vec![0.0; heads]; others.len()];
        for (logits, &j) in logits.iter_mut().zip(&others) {
            for (k, &irrep) in places.inputs.iter().enumerate() {
                for c in 0..f {
                    let dot: f64 = (0..irrep.rows()).map(|m| saved.qkv[at(irrep, i, m) + c] * saved.qkv[at(irrep, j, m) + f + c]).sum();
                    logits[c % heads] += dot * token(j, 0, k * f + c, &places.relative) / ((f / heads * components) as f64).sqrt();
                }
            }
        }
        for (h, c) in (0..f).map(|c| (c % heads, c)) {
            let total: f64 = logits.iter().map(|l| l[h].exp()).sum();
            for (&j, logits) in others.iter().zip(&logits) {
                let (row, reversed) = rows.row(i, j);
                for filter in 0..block.filters.len() {
                    let factor = logits[h].exp() / total * token(j, filter, c, &places.filters[filter]);
                    for &value in &places.inputs {
                        for &message in &places.messages {
                            let Some(all) = super::couplings::coupling(filter, value.degree, message.degree) else { continue };
                            if message.parity != (value.parity + filter) % 2 {
                                continue;
                            }
                            let parity = if out_parities == 1 { 0 } else { message.parity };
                            let kappa = (((filter * parities + value.parity) * degrees_in + value.degree) * out_parities + parity)
                                * degrees_out
                                + message.degree;
                            let kappa = p.values[places.kappa.start + kappa * f + c];
                            for (k, coefficient) in all.iter().enumerate() {
                                let (mo, mv) = (k % message.rows(), k / message.rows() % value.rows());
                                let mf = k / message.rows() / value.rows();
                                let y = work.pairs.harmonics[row * (degree + 1).pow(2) + filter * filter + mf];
                                let y = if reversed && filter == 1 { -y } else { y };
                                out[(message.first * n + i * message.rows() + mo) * f + c] +=
                                    kappa * coefficient * factor * y * saved.qkv[at(value, j, mv) + 2 * f + c];
                            }
                        }
                    }
                }
            }
        }
    }
    out
}

#[test]
fn fused_messages_are_the_literal_equations() {
    for config in variants() {
        let values = drawn(&config);
        let (double, single) = (loaded::<f64>(&config, &values, true), loaded::<f32>(&config, &values, true));
        let context = context("C=O", Vocabulary::Qm9);
        let x = positions(context.len(), 3);
        let mut work = Work::<f64>::new(&double, true);
        work.set_graphs(&double, std::iter::once(&context));
        work.set_times(&double, std::iter::once(0.6));
        work.add(&double, 0, &x);
        work.forward(&double);
        let mut work32 = Work::<f32>::new(&single, true);
        work32.set_graphs(&single, std::iter::once(&context));
        work32.set_times(&single, std::iter::once(0.6));
        work32.add(&single, 0, &x);
        work32.forward(&single);
        for l in 0..config.blocks {
            let literal = literal(&double, &work, l);
            let fused = &work.blocks[l].messages[..literal.len()];
            let d = difference(fused, &literal);
            assert!(d < 1e-12, "{config:?} {l}: {d}");
            let d = difference(&f64s(&work32.blocks[l].messages[..literal.len()]), &literal);
            assert!(d < 1e-5, "{config:?} {l}: {d}");
        }
    }
}

fn turned(x: &[f64], turn: &Rotation3<f64>) -> Vec<f64> {
    x.chunks_exact(3).flat_map(|x| <[f64; 3]>::from(turn * Vector3::new(x[0], x[1], x[2]))).collect()
}

/// Drifts turn with the molecule. Where there are products of vectors, in all blocks but the first, they are not those of its mirror image:
/// the network can tell the hands of a centre apart.
#[test]
fn drifts_turn_with_the_molecule() {
    for config in variants() {
        let values = drawn(&config);
        let context = context("C[C@H](O)F", Vocabulary::Qm9);
        let mut x = positions(context.len(), 3);
        centre(&mut x);
        let turn = Rotation3::from_scaled_axis(Vector3::new(0.4, -1.3, 2.1));
        let (double, single) = (loaded::<f64>(&config, &values, false), loaded::<f32>(&config, &values, false));
        let drift = run(&double, &context, 0.4, &x);
        let d = difference(&run(&double, &context, 0.4, &turned(&x, &turn)), &turned(&drift, &turn));
        assert!(d < 1e-10, "{config:?}: {d}");
        let drift32 = run(&single, &context, 0.4, &x);
        let d = difference(&run(&single, &context, 0.4, &turned(&x, &turn)), &turned(&drift32, &turn));
        assert!(d < 1e-5, "{config:?}: {d}");
        let mirror: Vec<f64> = x.iter().map(|x| -x).collect();
        let mirrored: Vec<f64> = drift.iter().map(|x| -x).collect();
        let d = difference(&run(&double, &context, 0.4, &mirror), &mirrored);
        assert_eq!(d > 1e-3, config.degree > 0 && config.blocks > 1, "{config:?}: {d}");
    }
}

/// Atoms in another order give the same drifts in that order.
#[test]
fn numbering_does_not_matter() {
    let config = pe3();
    let p = loaded::<f64>(&config, &drawn(&config), false);
    let graph = crate::molecule::Graph::from_smiles("CC(=O)Nc1ccc(O)cc1").unwrap().with_hydrogens();
    let n = graph.len();
    let order: Vec<usize> = (0..n).map(|i| (7 * i + 3) % n).collect();
    let of = |graph: &crate::molecule::Graph, x: &[f64]| run(&p, &GraphContext::new(graph, Vocabulary::Drugs).unwrap(), 0.4, x);
    let x = positions(n, 1);
    let in_order = |x: &[f64]| -> Vec<f64> { order.iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect() };
    let (a, b) = (of(&graph, &x), of(&graph.permuted(&order), &in_order(&x)));
    assert!(difference(&b, &in_order(&a)) < 1e-12);
}

/// Results do not depend, in any bit, on what else is computed, nor on how memory was used before.
#[test]
fn structures_do_not_see_each_other() {
    for config in variants() {
        let p = loaded::<f32>(&config, &drawn(&config), false);
        let contexts = ["CC(=O)Nc1ccc(O)cc1", "CCO", "C"].map(|s| context(s, Vocabulary::Qm9));
        let mut work = Work::<f32>::new(&p, false);
        work.set_graphs(&p, contexts.iter());
        work.set_times(&p, [0.1, 0.5, 1.0].into_iter());
        for graph in [0, 1, 2, 1] {
            work.add(&p, graph, &positions(contexts[graph].len(), graph as u64));
        }
        work.forward(&p);
        let together = drifts(&work);
        let mut first = 0;
        for (graph, t) in [(0, 0.1), (1, 0.5), (2, 1.0), (1, 0.5)] {
            let mut alone = Work::<f32>::new(&p, graph == 1);
            alone.set_graphs(&p, std::iter::once(&contexts[graph]));
            alone.set_times(&p, std::iter::once(t));
            alone.add(&p, 0, &positions(contexts[graph].len(), graph as u64));
            alone.forward(&p);
            let alone = drifts(&alone);
            assert_eq!(alone, together[first..first + alone.len()], "{graph}");
            first += alone.len();
        }
    }
}
