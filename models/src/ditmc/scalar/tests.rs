//! The network against the authors' tensors, finite differences, and itself in other company.

use super::super::config::TimeEmbedding;
use super::super::golden::{Golden, MOLECULES, context, difference, small};
use super::super::layout::Body;
use super::*;
use crate::molecule::Vocabulary;
use scorefield_integrators::{Noise, Purpose};

fn loaded<T: SimdReal>(config: &DitmcConfig, values: &[f64], training: bool) -> Parameters<T> {
    let mut p = parameters(config, Arc::new(Layout::new(config)), training);
    p.load(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<_>>());
    p
}

fn parameters<T: SimdReal>(config: &DitmcConfig, layout: Arc<Layout>, training: bool) -> Parameters<T> {
    let Body::Scalar(places) = &layout.body else { unreachable!("configurations here are of aPE and rPE") };
    Parameters::new(config, layout.clone(), places, training)
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

fn check_golden<T: SimdReal>(file: &str, config: DitmcConfig, tolerance: f64) -> Option<()> {
    let golden = Golden::open(file)?;
    let p = loaded::<T>(&config, &golden.parameters(&Layout::new(&config)), true);
    let f = config.features();
    for (name, smiles) in MOLECULES {
        let context = context(smiles, config.vocabulary);
        let n = context.len();
        assert_eq!(context.nodes.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), golden.get(&format!("{name}.node_attr")));
        let hops = golden.get(&format!("{name}.hops"));
        assert!(context.hops.iter().zip(&hops).all(|(&h, &g)| f64::from(h) == g));
        let mut work = Work::<T>::new(true);
        work.set_graphs(&p, std::iter::once(&context));
        let close = |what: &str, ours: &[T], name: &str| {
            let d = difference(&f64s(ours), &golden.double(name));
            assert!(d < tolerance, "{what}: {d}");
        };
        for k in ["t0", "t1", "t2"] {
            let of = |what: &str| format!("{name}.{k}.{what}");
            work.set_times(&p, std::iter::once(golden.double(&of("t"))[0]));
            work.clear_structures();
            work.add(&p, 0, &golden.double(&of("x_t")));
            work.forward(&p);
            let d = difference(&drifts(&work), &golden.double(&of("drift_raw")));
            assert!(d < tolerance, "{name} {k}: {d}");
            if k != "t0" {
                continue;
            }
            close("conditioner", &work.condition.conditioner.tokens()[..n * f], &of("cond_tokens"));
            close("fourier", &work.condition.fourier[..f / 2], &of("time_fourier"));
            close("time", &work.condition.time_tokens[..f], &of("time_token"));
            close("nodes", &work.blocks[0].h[..n * f], &of("node_tokens"));
            let tokens = golden.double(&of("pair_tokens"));
            for (pair, (&h, token)) in context.hops.iter().zip(tokens.chunks_exact(f)).enumerate() {
                if pair / n != pair % n {
                    let ours = match config.variant {
                        Variant::Ape => &work.tokens[h as usize * f..(h as usize + 1) * f],
                        _ => &work.pairs.tokens[pair * f..(pair + 1) * f],
                    };
                    let ours = f64s(ours);
                    assert!(difference(&ours, token) < tolerance);
                }
            }
            for l in 0..config.blocks {
                let block = &work.blocks[l];
                let of = |what: &str| of(&format!("block{l}.{what}"));
                close("adaln", &work.modulated[l].values[..n * 6 * f], &of("adaln"));
                // Stored before the output layer; our channels of values are in another order.
                let ours = |k: usize| k / f * f + k % f % config.head_width * config.heads + k % f / config.head_width;
                let message: Vec<T> = (0..n * f).map(|k| block.message[ours(k)]).collect();
                close("attention", &message, &of("attention"));
                close("mlp", &block.update[..n * f], &of("mlp"));
                let out = if l + 1 < config.blocks { &work.blocks[l + 1].h } else { &work.last };
                close("out", &out[..n * f], &of("out"));
            }
            close("readout", &work.readout.normed[..n * 2 * f], &of("readout.adaln_pre_activation"));
        }
    }
    Some(())
}

#[test]
fn forward_is_that_of_the_authors() {
    check_golden::<f64>("ditmc_ape_small.safetensors", small(), 1e-12);
    check_golden::<f32>("ditmc_ape_small.safetensors", small(), 1e-5);
    let rpe = DitmcConfig { variant: Variant::Rpe, vocabulary: Vocabulary::Qm9, ..small() };
    check_golden::<f64>("ditmc_rpe_small.safetensors", rpe.clone(), 1e-12);
    check_golden::<f32>("ditmc_rpe_small.safetensors", rpe, 1e-5);
}

/// The gradient of the authors' loss, whose parts are stored.
#[test]
fn gradients_are_those_of_the_authors() {
    check_gradients("ditmc_ape_small.safetensors", small());
    check_gradients("ditmc_rpe_small.safetensors", DitmcConfig { variant: Variant::Rpe, vocabulary: Vocabulary::Qm9, ..small() });
}

fn check_gradients(file: &str, config: DitmcConfig) {
    let Some(golden) = Golden::open(file) else { return };
    let layout = Layout::new(&config);
    let p = loaded::<f64>(&config, &golden.parameters(&layout), true);
    let context = context("CCO", config.vocabulary);
    let of = |what: &str| golden.double(&format!("loss.ethanol.{what}"));
    let tau = of("tau")[0];
    let mut work = Work::<f64>::new(true);
    work.set_graphs(&p, std::iter::once(&context));
    work.set_times(&p, std::iter::once(tau));
    work.add(&p, 0, &of("default.x_t"));
    work.forward(&p);
    let (mut x1_hat, mut x1) = (drifts(&work), golden.get("loss.ethanol.x1"));
    assert!(difference(&x1_hat, &of("default.net_out")) < 1e-12);
    super::super::context::centre(&mut x1_hat);
    super::super::context::centre(&mut x1);
    let weight = 1.0 / (1.0 - tau.min(0.9)).powi(2) / x1.len() as f64;
    let loss: f64 = x1_hat.iter().zip(&x1).map(|(a, b)| weight * (a - b) * (a - b)).sum();
    assert!((loss / of("default.loss")[0] - 1.0).abs() < 1e-12, "{loss}");
    let mut seed: Vec<f64> = x1_hat.iter().zip(&x1).map(|(a, b)| 2.0 * weight * (a - b)).collect();
    super::super::context::centre(&mut seed);
    let mut gradient = vec![0.0; layout.len];
    work.backward(&p, &seed, &mut gradient);
    let mut start = 0;
    for entry in &layout.entries {
        let n: usize = entry.shape.iter().product();
        let ours: Vec<f64> = layout.map[start..start + n].iter().map(|&k| gradient[k]).collect();
        start += n;
        let theirs = of(&format!("default.grad.{}", entry.name));
        if entry.name == "readout.Dense_1.bias" {
            // Centring makes it zero.
            assert!(ours.iter().all(|g| g.abs() < 1e-12));
            continue;
        }
        let d = difference(&ours, &theirs);
        assert!(d < 1e-10, "{}: {d}", entry.name);
    }
    // What is padding stays so.
    let mut real = vec![false; layout.len];
    layout.map.iter().for_each(|&k| real[k] = true);
    assert!(gradient.iter().zip(&real).all(|(g, r)| *r || *g == 0.0));
}

/// Both kinds of pair tokens, several molecules and structures, and heads that fill no vector.
#[test]
fn gradients_are_finite_differences() {
    for (variant, pair_tokens, heads, head_width) in [
        (Variant::Ape, PairTokens::AllPairs, 3, 16),
        (Variant::Ape, PairTokens::BondPairs, 8, 4),
        (Variant::Ape, PairTokens::BondPairs, 12, 4),
        (Variant::Ape, PairTokens::AllPairs, 6, 8),
        (Variant::Rpe, PairTokens::AllPairs, 2, 8),
        (Variant::Rpe, PairTokens::BondPairs, 4, 8),
    ] {
        let base = DitmcConfig { self_conditioning: true, guidance: true, time_embedding: TimeEmbedding::Logarithmic, ..small() };
        let config = DitmcConfig { variant, heads, head_width, pair_tokens, vocabulary: Vocabulary::Qm9, expansion: 2, ..base };
        let layout = Arc::new(Layout::new(&config));
        let values = drawn(&config);
        let contexts = ["C[C@H](O)F", "O", "C.N", "CO"].map(|s| context(s, Vocabulary::Qm9));
        let seeds = positions(60, 9);
        let mut work = Work::<f64>::new(true);
        let mut loss = |values: &[f64], gradient: Option<&mut [f64]>| {
            let mut p = parameters::<f64>(&config, layout.clone(), true);
            p.load(values);
            work.set_graphs(&p, contexts.iter());
            work.forget(&p, 3);
            work.set_times(&p, [0.3, 0.9, 0.0, 0.6].into_iter());
            for (k, graph) in [0, 1, 2, 0, 3].into_iter().enumerate() {
                work.add(&p, graph, &positions(contexts[graph].len(), k as u64));
                if k > 1 {
                    work.recall(&p, &positions(contexts[graph].len(), 20 + k as u64));
                }
            }
            work.forward(&p);
            let sum: f64 = drifts(&work).iter().zip(&seeds).map(|(d, s)| d * s).sum();
            let n = 3 * work.atoms();
            if let Some(gradient) = gradient {
                work.backward(&p, &seeds[..n], gradient);
            }
            sum
        };
        let mut gradient = vec![0.0; layout.len];
        loss(&values, Some(&mut gradient));
        let (mut start, mut worst) = (0, 0.0f64);
        for entry in &layout.entries {
            let n: usize = entry.shape.iter().product();
            let places = &layout.map[start..start + n];
            start += n;
            // Along the gradient itself, and along one random element.
            let norm = places.iter().map(|&k| gradient[k] * gradient[k]).sum::<f64>().sqrt();
            let unused = entry.name.contains("layers_1.LayerNorm_0") && pair_tokens == PairTokens::BondPairs;
            assert!(norm > 0.0 || unused, "{}: no gradient", entry.name);
            let h = 1e-5;
            let along = |sign: f64| {
                let mut moved = values.clone();
                places.iter().for_each(|&k| moved[k] += sign * h * gradient[k] / norm.max(1e-300));
                moved
            };
            let slope = (loss(&along(1.0), None) - loss(&along(-1.0), None)) / (2.0 * h);
            worst = worst.max((slope - norm).abs() / norm.max(1e-3));
            assert!((slope - norm).abs() < 1e-5 * norm.max(1e-2), "{}: {slope} {norm}", entry.name);
        }
        println!("{variant:?} {pair_tokens:?} {heads}: {worst:e}");
    }
}

/// Parameters of options change no bit of what the rest computes, as long as nothing was predicted before and the graph is known.
#[test]
fn options_that_are_not_used_change_nothing() {
    for (variant, pair_tokens) in [(Variant::Ape, PairTokens::AllPairs), (Variant::Rpe, PairTokens::BondPairs)] {
        let plain = DitmcConfig { variant, pair_tokens, ..small() };
        let with = DitmcConfig { self_conditioning: true, guidance: true, ..plain.clone() };
        let (base, context) = (drawn(&plain), context("CC(=O)Nc1ccc(O)cc1", Vocabulary::Drugs));
        let mut values = drawn(&with);
        values[..base.len()].copy_from_slice(&base);
        let x = positions(context.len(), 3);
        let run = |config: &DitmcConfig, values: &[f64], forget: bool| {
            let p = loaded::<f32>(config, values, false);
            let mut work = Work::<f32>::new(false);
            work.set_graphs(&p, std::iter::once(&context));
            if forget {
                work.forget(&p, 0);
            }
            work.set_times(&p, std::iter::once(0.4));
            work.add(&p, 0, &x);
            work.forward(&p);
            drifts(&work)
        };
        let alone = run(&plain, &base, false);
        assert_eq!(run(&with, &values, false), alone);
        assert!(difference(&run(&with, &values, true), &alone) > 1e-3);
    }
}

/// Results do not depend, in any bit, on what else is computed, nor on how memory was used before.
#[test]
fn structures_do_not_see_each_other() {
    let kinds = [
        (Variant::Ape, PairTokens::AllPairs),
        (Variant::Ape, PairTokens::BondPairs),
        (Variant::Rpe, PairTokens::AllPairs),
        (Variant::Rpe, PairTokens::BondPairs),
    ];
    for (variant, pair_tokens) in kinds {
        let config = DitmcConfig { variant, pair_tokens, ..small() };
        let p = loaded::<f32>(&config, &drawn(&config), false);
        let contexts = ["CC(=O)Nc1ccc(O)cc1", "CCO", "C"].map(|s| context(s, Vocabulary::Drugs));
        let mut work = Work::<f32>::new(false);
        work.set_graphs(&p, contexts.iter());
        work.set_times(&p, [0.1, 0.5, 1.0].into_iter());
        for graph in [0, 1, 2, 1] {
            work.add(&p, graph, &positions(contexts[graph].len(), graph as u64));
        }
        work.forward(&p);
        let together = drifts(&work);
        let mut first = 0;
        for (graph, t) in [(0, 0.1), (1, 0.5), (2, 1.0), (1, 0.5)] {
            let mut alone = Work::<f32>::new(graph == 1);
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

/// Atoms in another order give the same drifts in that order.
#[test]
fn numbering_does_not_matter() {
    let config = small();
    let p = loaded::<f64>(&config, &drawn(&config), false);
    let graph = crate::molecule::Graph::from_smiles("CC(=O)Nc1ccc(O)cc1").unwrap().with_hydrogens();
    let n = graph.len();
    let order: Vec<usize> = (0..n).map(|i| (7 * i + 3) % n).collect();
    let run = |graph: &crate::molecule::Graph, x: &[f64]| {
        let context = GraphContext::new(graph, Vocabulary::Drugs).unwrap();
        let mut work = Work::<f64>::new(false);
        work.set_graphs(&p, std::iter::once(&context));
        work.set_times(&p, std::iter::once(0.4));
        work.add(&p, 0, x);
        work.forward(&p);
        drifts(&work)
    };
    let x = positions(n, 1);
    let moved: Vec<f64> = order.iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect();
    let (a, b) = (run(&graph, &x), run(&graph.permuted(&order), &moved));
    let a: Vec<f64> = order.iter().flat_map(|&i| a[3 * i..3 * i + 3].to_vec()).collect();
    assert!(difference(&b, &a) < 1e-12);
}
