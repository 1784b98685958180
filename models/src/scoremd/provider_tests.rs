use super::config::{Head, ModelConfig};
use super::model::{EVALUATION_TIME, Model};
use super::process::VariancePreserving;
use super::provider::{ScoreProvider, ScoreSpec};
use crate::parse_spec;
use crate::testing::{self, Sample};
use safetensors::tensor::SafeTensors;
use scorefield_integrators::units::BOLTZMANN;
use scorefield_integrators::{DType, ForceProvider, Kind, UnitSystem, Want};
use std::path::PathBuf;
use std::sync::Arc;

/// A model of random parameters with some start frames.
pub(crate) fn random_model(preset: &str) -> Model {
    let config = ModelConfig::preset(preset).unwrap();
    let parameters = config.experts.iter().enumerate().map(|(k, e)| super::fixed_time::tests::random(e, k as u64 + 1)).collect();
    let d = config.experts[0].body.dimension();
    let toy = d <= 3;
    let particles = if toy { 1 } else { d / 3 };
    Model {
        parameters,
        process: VariancePreserving::default(),
        log_z: None,
        scale: if toy { 1.0 } else { 10.5 },
        units: if toy { UnitSystem::Reduced } else { UnitSystem::Si },
        temperature: if toy { 23.0 } else { 300.0 },
        evaluation_time: EVALUATION_TIME,
        types: vec![if toy { 0 } else { 6 }; particles],
        masses: vec![if toy { 0.5 } else { 12.0 }; particles],
        pdb: None,
        systems: Vec::new(),
        start_frames: (0..3 * d).map(|i| ((i * 7919 + 13) % 101) as f32 / 404.0).collect(),
        training_range: Vec::new(),
        command: String::new(),
        seed: 0,
        config,
    }
}

fn open(model: Model) -> (ScoreProvider, Sample) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    model.write(&file).unwrap();
    let (provider, toy) = ScoreSpec { weights: Some(file), ..ScoreSpec::default() }.build().unwrap();
    (provider, Sample::of_toy(&toy.unwrap()))
}

#[test]
fn forces_are_slopes_and_batches_do_not_matter() {
    for preset in ["alanine-dipeptide-mixture", "chignolin", "muller-brown-mixture", "double-well-1d"] {
        let (mut provider, sample) = open(random_model(preset));
        testing::check_forces(&mut provider, &sample, 1e-6);
        let samples: Vec<Sample> = (0..21).map(|i| sample.displaced(0.03, i)).collect();
        testing::check_batch_invariance(&mut provider, &samples);
    }
}

#[test]
fn scores_alone_are_forces_without_energy() {
    let mut model = random_model("alanine-dipeptide-mixture");
    model.evaluation_time = 0.5;
    let (mut provider, sample) = open(model);
    assert!(!provider.capabilities().conservative && !provider.capabilities().energy);
    testing::check_batch_invariance(&mut provider, &[sample.clone(), sample.displaced(0.03, 1)]);
    let forces = testing::evaluate(&mut provider, &[sample], DType::F64, Want::FORCES).forces.to_f64();
    assert!(forces.iter().any(|f| f.abs() > 1.0));
}

#[test]
fn molecules_may_move_freely() {
    let (mut provider, sample) = open(random_model("alanine-dipeptide"));
    let mut moved = sample.clone();
    moved.positions.iter_mut().enumerate().for_each(|(k, x)| *x += [1.5, -2.0, 0.25][k % 3]);
    let want = Want::ENERGY;
    let (a, b) =
        (testing::evaluate(&mut provider, &[sample], DType::F64, want), testing::evaluate(&mut provider, &[moved], DType::F64, want));
    assert!((a.energy[0] - b.energy[0]).abs() < 1e-9);
    for (a, b) in a.forces.to_f64().iter().zip(b.forces.to_f64()) {
        assert!((a - b).abs() < 1e-8, "{a} {b}");
    }
}

/// The published code's scores and energies through file, provider and units.
#[test]
fn forces_agree_with_the_published_code() {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let file = root.join("golden/scoremd/graph_transformer_aldp5.safetensors");
    let Ok(bytes) = std::fs::read(&file) else {
        println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", file.display());
        return;
    };
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        let t = tensors.tensor(name).unwrap();
        match t.dtype() {
            safetensors::Dtype::F64 => t.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            _ => t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        }
    };
    let mut model = random_model("alanine-dipeptide-mixture");
    let layout = model.config.experts[2].layout();
    model.parameters[2] = layout.entries().iter().flat_map(|e| numbers(&e.name)).map(|x| x as f32).collect();
    let (x, t, energy, score) = (numbers("x"), numbers("t"), numbers("energy.f64"), numbers("score.f64"));
    let (kt, c) = (BOLTZMANN * model.temperature, model.scale);
    for (r, &t) in t.iter().enumerate() {
        let mut model = model.clone();
        model.evaluation_time = t;
        let (mut provider, mut sample) = open(model);
        sample.positions = x[15 * r..15 * (r + 1)].iter().map(|x| x / c).collect();
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 2e-5)] {
            let out = testing::evaluate(&mut provider, std::slice::from_ref(&sample), dtype, Want::ENERGY);
            assert!((out.energy[0] / (kt * energy[r]) - 1.0).abs() < tolerance, "{} {}", out.energy[0], kt * energy[r]);
            let want = &score[15 * r..15 * (r + 1)];
            let size = want.iter().fold(0f64, |m, s| m.max(s.abs())) * kt * c;
            for (got, want) in out.forces.to_f64().iter().zip(want) {
                assert!((got - kt * c * want).abs() < tolerance * size, "{got} {}", kt * c * want);
            }
        }
    }
}

#[test]
fn files_are_providers_and_say_their_temperature() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peptide.safetensors");
    random_model("alanine-dipeptide-mixture").write(&file).unwrap();
    let name = file.display();
    let built = parse_spec(&name.to_string()).unwrap().build().unwrap();
    assert_eq!(built.provider.capabilities().kind, Kind::MeanForce { temperature_kelvin: 300.0 });
    assert_eq!(built.provider.capabilities().name, "peptide");
    let toy = built.toy.unwrap();
    assert_eq!((toy.system.len(), toy.trained.unwrap().starts.len()), (5, 3));
    // At large times another network answers, without an energy.
    let late = parse_spec(&format!("scoremd:weights={name},t=0.8")).unwrap().build().unwrap();
    assert!(!late.provider.capabilities().energy);
    let refused = parse_spec(&format!("scoremd:weights={name},t=2")).and_then(|s| s.build().map(|_| ())).unwrap_err().to_string();
    assert!(refused.contains("t = 2"), "{refused}");
}

#[test]
fn what_it_was_not_trained_on_is_refused() {
    let (mut provider, sample) = open(random_model("alanine-dipeptide"));
    let mut refused = |change: &dyn Fn(&mut scorefield_integrators::System)| {
        let mut system = (*sample.system).clone();
        change(&mut system);
        let batch = scorefield_integrators::Batch::uniform(Arc::new(system), 1, 0).unwrap();
        provider.prepare(&batch, DType::F64).unwrap_err().to_string()
    };
    let message = refused(&|s| *s = scorefield_integrators::System::particles("water", 3, 1.0));
    assert!(message.contains("3 atoms of water") && message.contains("5 beads"), "{message}");
    let message = refused(&|s| s.types[2] = 8);
    assert!(message.contains("element 8"), "{message}");
    assert_eq!(random_model("alanine-dipeptide-mixture").config.experts[0].head, Head::Score);
}

#[test]
fn leaving_the_training_data_is_seen() {
    let mut model = random_model("alanine-dipeptide");
    // Distances of 0.1 to 0.5 nm with a deviation of 0.05 nm, of all ten pairs.
    model.training_range = [0.1, 0.1, 0.3, 0.05, 0.5, 0.5].repeat(10);
    let domain = super::domain::Domain::of(&model).unwrap();
    let mut x = vec![0.0; 15];
    (0..5).for_each(|i| x[3 * i] = 0.14 * i as f64);
    assert_eq!(domain.check(&x), None);
    x[12] = 0.7;
    let outside = domain.check(&x).unwrap();
    assert_eq!((outside.of, outside.value), ([0, 4], 0.7));
    x[12] = f64::NAN;
    assert_eq!(domain.check(&x).unwrap().of, [0, 4]);
}
