use super::*;
use crate::scoremd::config::ModelConfig;
use crate::scoremd::process::TimeRange;
use safetensors::tensor::SafeTensors;
use std::path::PathBuf;

/// Bytes of a file of reference data, or `None` after saying why a test is skipped.
fn reference(file: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join("golden/scoremd").join(file);
    if !path.exists() {
        println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", path.display());
        return None;
    }
    Some(std::fs::read(path).unwrap())
}

fn numbers(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let t = tensors.tensor(name).unwrap();
    match t.dtype() {
        safetensors::Dtype::F64 => t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        _ => t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
    }
}

fn parameters(tensors: &SafeTensors<'_>, config: &ExpertConfig) -> Vec<f32> {
    let layout = config.layout();
    layout.entries().iter().flat_map(|e| numbers(tensors, &e.name).into_iter().map(|x| x as f32)).collect()
}

/// Random parameters of about the size that trained ones have.
pub(crate) fn random(config: &ExpertConfig, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let layout = config.layout();
    let mut values = Vec::with_capacity(layout.len());
    for entry in layout.entries() {
        let inputs = if entry.shape.len() == 2 { entry.shape[1] } else { 100 };
        let size = (3.0 / inputs as f64).sqrt() * 2.0;
        let shift = if entry.name.contains("ln") && entry.name.ends_with("weight") { 1.0 } else { 0.0 };
        values.extend((0..entry.len()).map(|_| (shift + size * uniform()) as f32));
    }
    values
}

/// Largest difference over the largest entry.
fn worst(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / size
}

fn scores<T: SimdReal>(network: &mut FixedTime<T>, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let x: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
    let mut score = vec![T::default(); x.len()];
    let mut energy = vec![0.0; if network.has_energy() { x.len() / network.dimension() } else { 0 }];
    let wanted = network.has_energy().then_some(&mut energy[..]);
    network.evaluate(&x, 1.0, wanted, Some(&mut score));
    (energy, score.iter().map(|s| s.to_f64()).collect())
}

fn expert(preset: &str, which: usize) -> ExpertConfig {
    ModelConfig::preset(preset).unwrap().experts[which].clone()
}

#[test]
fn networks_agree_with_the_published_code() {
    for (file, config) in [
        ("graph_transformer_aldp5.safetensors", expert("alanine-dipeptide-mixture", 2)),
        ("graph_transformer_score_head.safetensors", expert("alanine-dipeptide-mixture", 1)),
        ("mlp_mueller_brown.safetensors", expert("muller-brown", 0)),
    ] {
        let Some(bytes) = reference(file) else { return };
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let values = parameters(&tensors, &config);
        let d = config.body.dimension();
        let (x, t) = (numbers(&tensors, "x"), numbers(&tensors, "t"));
        let mut double = FixedTime::<f64>::new(&config, &values, &[], 0.0).unwrap();
        let mut single = FixedTime::<f32>::new(&config, &values, &[], 0.0).unwrap();
        let check = |x: &[f64], t: f64, energy: Option<f64>, score: &[f64], single: &mut FixedTime<f32>, double: &mut FixedTime<f64>| {
            double.set_time(t);
            single.set_time(t);
            let (e, s) = scores(double, x);
            assert!(worst(&s, score) < 1e-9, "{file} at {t}: {:e}", worst(&s, score));
            let (e32, s32) = scores(single, x);
            assert!(worst(&s32, score) < 2e-5, "{file} at {t} in f32: {:e}", worst(&s32, score));
            if let Some(want) = energy {
                assert!((e[0] - want).abs() < 1e-9 * want.abs().max(1.0), "{file}: {} instead of {want}", e[0]);
                assert!((e32[0] - want).abs() < 2e-5 * want.abs().max(1.0), "{file}: {} instead of {want}", e32[0]);
            }
        };
        let score = numbers(&tensors, "score.f64");
        let energy = (config.head == Head::Potential).then(|| numbers(&tensors, "energy.f64"));
        for (i, &t) in t.iter().enumerate() {
            let row = i * d..(i + 1) * d;
            check(&x[row.clone()], t, energy.as_ref().map(|e| e[i]), &score[row], &mut single, &mut double);
        }
        // Beyond the range times are clipped.
        if let (Ok(_), Ok(_)) = (tensors.tensor("t_outside"), tensors.tensor("score_outside.f64")) {
            let outside = numbers(&tensors, "score_outside.f64");
            for (i, &t) in numbers(&tensors, "t_outside").iter().enumerate() {
                let row = i * d..(i + 1) * d;
                check(&x[row.clone()], t, None, &outside[row], &mut single, &mut double);
            }
        }
    }
}

fn configurations() -> Vec<(ExpertConfig, Vec<[u32; 4]>)> {
    let tokens = (0..10).map(|i| [i % 20, i % 5, i % 3, i % 2]).collect();
    let odd = Body::GraphTransformer { beads: 17, width: 40, layers: 1, features: BeadFeatures::Index };
    vec![
        (expert("alanine-dipeptide", 0), vec![]),
        (expert("chignolin-mixture", 0), vec![]),
        (expert("dipeptides", 0), tokens),
        (ExpertConfig { body: odd, head: Head::Potential, range: TimeRange::ALL }, vec![]),
        (expert("bba", 0), vec![]),
        (expert("muller-brown-mixture", 1), vec![]),
        (ExpertConfig { head: Head::Score, ..expert("double-well-1d", 0) }, vec![]),
    ]
}

fn points(config: &ExpertConfig, rows: usize) -> Vec<f64> {
    let d = config.body.dimension();
    (0..rows * d).map(|i| 2.0 * ((i * 7919 + 13) % 1009) as f64 / 1009.0 - 1.0).collect()
}

#[test]
fn scores_are_slopes_of_the_energy() {
    for (config, tokens) in configurations().into_iter().filter(|c| c.0.head == Head::Potential) {
        let mut network = FixedTime::<f64>::new(&config, &random(&config, 3), &tokens, 0.02).unwrap();
        let x = points(&config, 1);
        let (_, score) = scores(&mut network, &x);
        let size = score.iter().fold(0f64, |m, s| m.max(s.abs()));
        assert!(size > 1e-3, "nothing to check");
        for k in 0..x.len() {
            let mut at = |h: f64| {
                let mut moved = x.clone();
                moved[k] += h;
                scores(&mut network, &moved).0[0]
            };
            let h = 1e-3;
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            assert!((score[k] + slope).abs() < 1e-7 * size, "{:?}, component {k}: {} and {}", config.body, score[k], -slope);
        }
    }
}

fn check_rows<T: SimdReal>() {
    for (config, tokens) in configurations() {
        let d = config.body.dimension();
        let mut network = FixedTime::<T>::new(&config, &random(&config, 5), &tokens, 0.3).unwrap();
        for rows in [3, 2 * network.block + 5] {
            let x = points(&config, rows);
            let (energy, score) = scores(&mut network, &x);
            let mut fork = network.fork();
            assert_eq!(scores(&mut fork, &x), (energy.clone(), score.clone()));
            for r in [0, rows / 2, rows - 1] {
                let (e, s) = scores(&mut network, &x[r * d..(r + 1) * d]);
                assert_eq!(s, score[r * d..(r + 1) * d], "{:?}: row {r} of {rows} alone", config.body);
                assert_eq!(e.first(), energy.get(r));
            }
        }
    }
}

#[test]
fn rows_are_independent() {
    check_rows::<f64>();
    check_rows::<f32>();
}

#[test]
fn single_precision_is_close() {
    for (config, tokens) in configurations() {
        let values = random(&config, 7);
        let mut single = FixedTime::<f32>::new(&config, &values, &tokens, 0.01).unwrap();
        let mut double = FixedTime::<f64>::new(&config, &values, &tokens, 0.01).unwrap();
        let x: Vec<f64> = points(&config, 4).iter().map(|&x| f64::from(x as f32)).collect();
        let error = worst(&scores(&mut single, &x).1, &scores(&mut double, &x).1);
        assert!(error < 2e-5, "{:?}: {error:e}", config.body);
    }
}

#[test]
fn evaluations_do_not_allocate() {
    let config = expert("alanine-dipeptide", 0);
    let mut network = FixedTime::<f32>::new(&config, &random(&config, 1), &[], 1e-5).unwrap();
    let x: Vec<f32> = points(&config, 40).iter().map(|&x| x as f32).collect();
    let (mut energy, mut score) = (vec![0.0; 40], vec![0.0; x.len()]);
    network.reserve(40);
    let count = crate::testing::allocations::during(|| network.evaluate(&x, 1.0, Some(&mut energy), Some(&mut score)));
    assert_eq!(count, 0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = expert("dipeptides", 0);
    let values = random(&config, 1);
    let refused = |values: &[f32], tokens: &[[u32; 4]]| FixedTime::<f32>::new(&config, values, tokens, 0.0).err().unwrap().to_string();
    assert!(refused(&values[1..], &[[0; 4]; 10]).contains("parameters"));
    assert!(refused(&values, &[[0; 4]; 9]).contains("9 beads"));
    assert!(refused(&values, &[[0, 5, 0, 0]; 10]).contains("atom 5 of bead 0"));
}
