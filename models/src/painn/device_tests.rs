//! Kernels for devices against the host, on the emulator.

use super::config::{Head, Layout, PainnConfig};
use super::model::{Output as Meaning, PainnModel};
use super::provider::{PainnProvider, PainnSpec};
use crate::testing::{self, Sample};
use scorefield_integrators::device::Order;
use scorefield_integrators::{Batch, Clock, DType, Device, DeviceProvider, ForceProvider, Input, Noise, Output, State, System, Want};
use std::path::PathBuf;
use std::sync::Arc;

/// A network of random parameters.
fn random(config: PainnConfig, output: Meaning) -> PainnProvider {
    let layout = Layout::new(&config);
    let padded = layout.initialise(Noise::new(5));
    PainnProvider::new(PainnModel {
        values: layout.map.iter().map(|&place| padded[place]).collect(),
        config,
        output,
        references: vec![(6, -2.0), (8, 1.5)],
        types: vec![1, 6, 8],
        noise: None,
        command: String::new(),
        seed: 5,
    })
}

/// `n` atoms of three elements about 1.5 Å apart.
fn molecule(n: usize) -> Sample {
    let types: Vec<u32> = (0..n).map(|i| [6, 1, 8][i % 3]).collect();
    let system = System { types, ..System::particles("chain", n, 12.0) };
    let at = |i: usize| [0.13 * i as f64, 0.07 * (i % 2) as f64, 0.05 * (i % 3) as f64];
    Sample { system: Arc::new(system), positions: (0..n).flat_map(at).collect(), cell: None }
}

fn samples(sample: &Sample, count: u64) -> Vec<Sample> {
    (0..count).map(|k| sample.displaced(0.005, k)).collect()
}

const ENERGY: Meaning = Meaning::Energy { unit: 10.0, per_atom: -3.0 };

#[test]
fn potentials_are_the_same_on_devices() {
    let small = PainnConfig { features: 24, layers: 2, ..PainnConfig::preset("painn-small").unwrap() };
    for (n, config) in [
        (5, small.clone()),
        // An even number of atoms, some of which do not see each other; fewer radial functions than the band has.
        (8, PainnConfig { cutoff: 4.0, radial: 9, head_layers: 3, ..small.clone() }),
        (1, PainnConfig { head_layers: 1, ..small }),
    ] {
        let provider = random(config, ENERGY);
        testing::check_device(&provider, &samples(&molecule(n), 3), 0.0005, 2.5, 1, 2e-5);
    }
}

#[test]
fn pseudo_forces_are_the_same_on_devices() {
    let small = PainnConfig { features: 40, layers: 3, radial: 60, cutoff: 15.0, ..PainnConfig::preset("gpff-small").unwrap() };
    let provider = random(small, Meaning::Displacement { stiffness: 100.0 });
    testing::check_device_forces(&provider, &samples(&molecule(6), 5), 2e-5);
    let embedded = PainnSpec { weights: None }.build().unwrap();
    if embedded.capabilities().devices.contains(&"cuda") {
        testing::check_device_forces(&embedded, &samples(&molecule(7), 3), 2e-5);
    } else {
        assert!(embedded.capabilities().needs_noise_level && embedded.device_model(&molecule(7).system).is_none());
    }
}

#[test]
fn a_trained_potential_is_the_same_on_devices() {
    let weights = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/ethanol/painn-small.safetensors"));
    let provider = PainnSpec { weights: Some(weights) }.build().unwrap();
    let types = vec![6, 6, 8, 1, 1, 1, 1, 1, 1];
    let positions = [
        [0.0, 0.0, 0.0],
        [0.151, 0.0, 0.0],
        [0.199, 0.134, 0.0],
        [-0.036, -0.103, 0.0],
        [-0.039, 0.051, 0.089],
        [-0.039, 0.051, -0.089],
        [0.190, -0.051, 0.089],
        [0.190, -0.051, -0.089],
        [0.295, 0.131, 0.0],
    ];
    let system = System { types, ..System::particles("ethanol", 9, 5.0) };
    let sample = Sample { system: Arc::new(system), positions: positions.into_iter().flatten().collect(), cell: None };
    testing::check_device_forces(&provider, &samples(&sample, 3), 2e-5);
    testing::check_kernels_compile(&provider, &sample.system);
}

#[test]
fn what_kernels_do_not_do_stays_on_the_host() {
    let small = PainnConfig { features: 16, layers: 1, ..PainnConfig::preset("gpff-small").unwrap() };
    for (config, output) in [
        (PainnConfig { time: true, ..small.clone() }, Meaning::Displacement { stiffness: 100.0 }),
        (small.clone(), Meaning::Noise { stiffness: 100.0 }),
        (PainnConfig { head: Head::Energy, head_layers: 8, ..small.clone() }, ENERGY),
    ] {
        let provider = random(config, output);
        assert_eq!(provider.capabilities().devices, ["cpu"]);
        assert!(provider.device_model(&molecule(3).system).is_none());
    }
    assert!(random(small, Meaning::Displacement { stiffness: 100.0 }).device_model(&molecule(300).system).is_none());
}

/// Molecules of any sizes in one batch, whose steps are the host's: also with noise levels, and for networks that predict noise.
#[test]
fn batches_of_any_molecules_are_the_same_on_devices() {
    let small = PainnConfig { features: 24, layers: 2, radial: 60, cutoff: 15.0, ..PainnConfig::preset("gpff-small").unwrap() };
    let sizes = [5, 1, 9, 2, 12, 5];
    let batch: Vec<Sample> = sizes.iter().enumerate().map(|(k, &n)| molecule(n).displaced(0.01, k as u64)).collect();
    let level = Clock::Diffusion { t: 0.03 };
    for (config, output) in [
        (small.clone(), Meaning::Displacement { stiffness: 100.0 }),
        (PainnConfig { time: true, ..small.clone() }, Meaning::Displacement { stiffness: 100.0 }),
        (PainnConfig { time: true, ..small }, Meaning::Noise { stiffness: 100.0 }),
    ] {
        let mut provider = random(config, output);
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
            let here = testing::evaluate_at(&mut provider, &batch, dtype, Want::FORCES, level).forces.to_f64();
            let size = here.iter().fold(0.0, |m: f64, f| m.max(f.abs()));
            let mut first = None;
            for device in testing::devices() {
                let mut there = DeviceProvider::evaluating(&device, &provider).unwrap();
                let forces = testing::evaluate_at(there.as_mut(), &batch, dtype, Want::FORCES, level).forces;
                let error = here.iter().zip(forces.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size;
                assert!(error < tolerance, "{output:?} {dtype} {}: {error:.1e}", device.name());
                if device.kind() == "emulated" {
                    assert!(*first.get_or_insert_with(|| forces.clone()) == forces, "results depend on the order of threads");
                }
            }
        }
    }
}

#[test]
fn a_batch_on_a_device_is_checked_like_one_here() {
    let small = PainnConfig { features: 16, layers: 1, radial: 60, cutoff: 15.0, ..PainnConfig::preset("gpff-small").unwrap() };
    let time_free = random(small.clone(), Meaning::Displacement { stiffness: 100.0 });
    let device = Device::emulated(Order::Forwards);
    let mut provider = DeviceProvider::evaluating(&device, &time_free).unwrap();
    testing::check_batch_invariance(provider.as_mut(), &[molecule(4), molecule(7), molecule(4).displaced(0.01, 3)]);
    // A level that nobody gave.
    let reads_noise = random(PainnConfig { time: true, ..small }, Meaning::Noise { stiffness: 100.0 });
    let mut provider = DeviceProvider::evaluating(&device, &reads_noise).unwrap();
    let sample = molecule(3);
    let batch = Batch::uniform(sample.system.clone(), 1, 0).unwrap();
    let state = State::at_rest(&batch, &sample.positions, DType::F32).unwrap();
    let mut out = Output::new(&batch, DType::F32, Want::FORCES);
    let input = Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: Want::FORCES };
    assert!(provider.evaluate(&input, &mut out).unwrap_err().to_string().contains("before it was prepared"));
    provider.prepare(&batch, DType::F32).unwrap();
    assert!(provider.evaluate(&input, &mut out).unwrap_err().to_string().contains("noise level"));
    // Energies have no such kernels.
    let potential = random(PainnConfig { features: 16, layers: 1, ..PainnConfig::preset("painn-small").unwrap() }, ENERGY);
    assert!(potential.on_device(&device).is_none());
}
