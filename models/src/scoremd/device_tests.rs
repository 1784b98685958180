//! Kernels for devices against the host, on the emulator.

use super::config::{BeadFeatures, Body, ExpertConfig, Head, ModelConfig};
use super::fixed_time::FixedTime;
use super::model::Model;
use super::process::TimeRange;
use super::provider::{ScoreProvider, ScoreSpec, embedded, expert};
use super::provider_tests::random_model;
use crate::testing::{self, Sample};
use scorefield_integrators::device::{Device, DeviceProvider, Order};
use scorefield_integrators::state::State;
use scorefield_integrators::{Batch, DType, ForceProvider, Input, Output, Want};
use std::path::PathBuf;
use std::sync::Arc;

fn of(spec: &ScoreSpec) -> (ScoreProvider, Sample) {
    let (provider, toy) = spec.build().unwrap();
    (provider, Sample::of_toy(&toy.unwrap()))
}

fn file(name: &str) -> ScoreSpec {
    let weights = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models")).join(name);
    ScoreSpec { weights: Some(weights), ..ScoreSpec::default() }
}

/// A model of random parameters of one network.
fn random(body: Body, head: Head) -> (ScoreProvider, Sample) {
    let config = ModelConfig { experts: vec![ExpertConfig { body, head, range: TimeRange::ALL }] };
    let particles = (config.experts[0].body.dimension() / 3).max(1);
    let base = random_model("chignolin");
    let model = Model {
        parameters: vec![super::fixed_time::tests::random(&config.experts[0], 7)],
        types: vec![6; particles],
        masses: vec![12.0; particles],
        config,
        ..base
    };
    let system =
        scorefield_integrators::System { types: vec![6; particles], ..scorefield_integrators::System::particles("beads", particles, 12.0) };
    let positions = (0..3 * particles).map(|k| ((k * 7919 + 13) % 101) as f64 / 303.0).collect();
    (ScoreProvider::new(Arc::new(model), "random", 0.02).unwrap(), Sample { system: Arc::new(system), positions, cell: None })
}

fn samples(sample: &Sample, count: u64, amplitude: f64) -> Vec<Sample> {
    (0..count).map(|k| sample.displaced(amplitude, k)).collect()
}

#[test]
fn the_embedded_model_is_the_same_on_devices() {
    let (provider, sample) = of(&ScoreSpec::default());
    testing::check_device(&provider, &samples(&sample, 3, 0.003), 0.001, 2.5, 1, 2e-5);
    testing::check_kernels_compile(&provider, &sample.system);
}

#[test]
fn graph_transformers_of_any_shape_are_the_same_on_devices() {
    let graph = |beads, width, layers| Body::GraphTransformer { beads, width, layers, features: BeadFeatures::Index };
    for (body, head) in [
        (graph(3, 24, 3), Head::Potential),
        // More beads than the product of the first layer has room for behind two rows of features; features that are padded.
        (graph(7, 12, 2), Head::Potential),
        (graph(2, 16, 1), Head::Potential),
        (graph(5, 40, 2), Head::Score),
    ] {
        let (provider, sample) = random(body, head);
        testing::check_device(&provider, &samples(&sample, 3, 0.02), 0.002, 2.5, 1, 2e-5);
    }
}

#[test]
fn perceptrons_are_the_same_on_devices() {
    for spec in [file("muller-brown/both-0.safetensors"), file("muller-brown/mixture-0.safetensors")] {
        let (provider, sample) = of(&spec);
        testing::check_device(&provider, &samples(&sample, 7, 0.1), 0.005, 1.0, 2, 2e-5);
    }
    testing::check_kernels_compile(&of(&file("muller-brown/both-0.safetensors")).0, &of(&file("muller-brown/both-0.safetensors")).1.system);
    // Widths that are padded; particles of three coordinates.
    for head in [Head::Potential, Head::Score] {
        let (provider, sample) = random(Body::Mlp { dimension: 6, hidden: vec![13, 10] }, head);
        testing::check_device(&provider, &samples(&sample, 5, 0.02), 0.002, 2.5, 2, 2e-5);
    }
}

#[test]
fn every_network_of_a_mixture_is_the_same_on_devices() {
    for t in [0.05, 0.3, 0.9] {
        let (provider, sample) = of(&ScoreSpec { t: Some(t), ..file("muller-brown/mixture-0.safetensors") });
        testing::check_device_forces(&provider, &samples(&sample, 3, 0.1), 2e-5);
    }
}

#[test]
fn a_transferable_model_is_the_same_on_devices() {
    let spec = file("dipeptides/both-0.safetensors");
    let from = spec.model().unwrap();
    let name = from.systems[0].name.clone();
    let (provider, sample) = of(&ScoreSpec { system: Some(name), ..spec });
    testing::check_device_forces(&provider, &samples(&sample, 3, 0.003), 2e-5);
}

#[test]
fn molecules_may_be_far_from_the_origin_on_devices() {
    let (provider, sample) = of(&ScoreSpec::default());
    let mut there = DeviceProvider::new(&Device::emulated(Order::Forwards), &provider).unwrap();
    let mut far = sample.clone();
    // Exact in single precision, so that all that is lost is lost by the centring.
    far.positions.iter_mut().for_each(|x| *x = f64::from((*x * 4096.0).round() as f32) / 4096.0);
    let near = far.clone();
    far.positions.iter_mut().enumerate().for_each(|(k, x)| *x += [512.0, -256.0, 128.0][k % 3]);
    let [a, b] = [near, far].map(|s| testing::evaluate(&mut there, &[s], DType::F32, Want::FORCES).forces.to_f64());
    let size = a.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-5 * size), "{a:?} {b:?}");
}

#[test]
fn numbers_that_are_none_stay_with_their_replica_on_devices() {
    let (provider, sample) = of(&ScoreSpec::default());
    let batch = Batch::uniform(sample.system.clone(), 3, 0).unwrap();
    let mut there = DeviceProvider::new(&Device::emulated(Order::Forwards), &provider).unwrap();
    there.prepare(&batch, DType::F64).unwrap();
    let mut state = State::at_rest(&batch, &sample.positions.repeat(3), DType::F64).unwrap();
    let n = sample.positions.len();
    let mut forces = || {
        let mut out = Output::new(&batch, DType::F64, Want::FORCES);
        let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::FORCES };
        there.evaluate(&input, &mut out).unwrap();
        state.phase.set(n + 4, f64::NAN);
        out.forces.to_f64()
    };
    let (good, bad) = (forces(), forces());
    assert!(good.iter().all(|f| f.is_finite()) && bad[n..2 * n].iter().all(|f| f.is_nan()));
    assert_eq!((&good[..n], &good[2 * n..]), (&bad[..n], &bad[2 * n..]));
}

/// What the estimate of a device's limit in `docs/potentials.md` begins with.
#[test]
fn a_step_of_the_embedded_model_costs_what_the_documentation_says() {
    let model = embedded().unwrap();
    let k = expert(&model, model.evaluation_time);
    let network = FixedTime::<f64>::new(&model.config.experts[k], &model.parameters[k], &[], model.evaluation_time).unwrap();
    assert_eq!(network.multiply_adds(), 2_810_880);
}
