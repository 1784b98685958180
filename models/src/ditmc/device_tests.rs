//! Kernels for devices against the host, on the emulator.

use super::config::{DitmcConfig, PairTokens, Variant};
use super::context::GraphContext;
use super::golden::small;
use super::layout::Layout;
use super::model::DitmcModel;
use super::process::{Path, Prior};
use super::provider::{Annealing, DitmcProvider, DitmcSpec};
use crate::molecule::Graph;
use crate::testing::{self, Sample};
use scorefield_integrators::device::{Device, DeviceProvider, Order};
use scorefield_integrators::{ForceProvider, Noise, Purpose, System};
use std::path::PathBuf;
use std::sync::Arc;

/// Odd numbers of atoms, an even one in which the longest way has an opposite pair, and one atom.
const ETHANOL: &str = "CCO";
const METHANOL: &str = "CO";
const METHYLAMINE: &str = "CN";
const HYDROGEN: &str = "[H][H]";
const PROTON: &str = "[H+]";

/// A network of random parameters, none of them zero, that knows a Gaussian path: its time at σ = 0.5 Å is not 1.
fn random(config: &DitmcConfig, smiles: &str) -> DitmcProvider {
    let layout = Layout::new(config);
    let padded = layout.initialise(Noise::new(5));
    let shift = |place: usize| 0.1 * Noise::new(6).normals(place as u32, 0, 0, Purpose::Initialisation)[0];
    let model = DitmcModel {
        config: config.clone(),
        path: Path { prior: Prior::Gaussian, noise: 0.2, aligned: false },
        values: layout.map.iter().map(|&place| padded[place] + shift(place)).collect(),
        temperature: Some(300.0),
        command: String::new(),
        seed: 5,
    };
    DitmcProvider::new(model, &Graph::from_smiles(smiles).unwrap(), Some(0.5), None).unwrap()
}

/// Structures with the atoms of a molecule, about an Å apart, somewhere else than at the origin.
fn samples(smiles: &str, count: u64) -> Vec<Sample> {
    let context = GraphContext::new(&Graph::from_smiles(smiles).unwrap(), small().vocabulary).unwrap();
    let (types, n) = (context.types, context.graph.len());
    let system = Arc::new(System { types, ..System::particles("molecule", n, 12.0) });
    let at = |k: u64, i: usize| Noise::new(k).normals(i as u32, 0, 0, Purpose::Displacement).map(|x| 0.7 + 0.12 * x);
    (0..count).map(|k| Sample::new(system.clone(), (0..n).flat_map(|i| at(k, i)).collect())).collect()
}

fn weights(name: &str) -> DitmcSpec {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/models/conformers")).join(name);
    DitmcSpec { weights: Some(file), smiles: ETHANOL.into(), sigma: None, sigma_max: None, period: None, levels: None, temperature: None }
}

#[test]
fn forces_of_scalars_are_the_same_on_devices() {
    let with = |variant, pair_tokens| DitmcConfig { variant, pair_tokens, ..small() };
    let (ape, rpe) = (with(Variant::Ape, PairTokens::AllPairs), with(Variant::Rpe, PairTokens::AllPairs));
    // A head of six channels is no whole number of tiles.
    let wide = DitmcConfig { heads: 8, head_width: 6, expansion: 2, self_conditioning: true, guidance: true, ..ape.clone() };
    for (config, smiles, count) in [
        (&ape, ETHANOL, 3),
        (&ape, METHYLAMINE, 2),
        (&rpe, METHYLAMINE, 3),
        (&rpe, METHANOL, 1),
        (&with(Variant::Ape, PairTokens::BondPairs), ETHANOL, 2),
        (&with(Variant::Rpe, PairTokens::BondPairs), METHANOL, 2),
        (&wide, ETHANOL, 2),
        (&rpe, PROTON, 2),
    ] {
        testing::check_device_forces(&random(config, smiles), &samples(smiles, count), 1e-5);
    }
}

#[test]
fn forces_that_turn_are_the_same_on_devices() {
    let with = |degree, pair_tokens| DitmcConfig { variant: Variant::Pe3, degree, pair_tokens, ..small() };
    let pe3 = with(1, PairTokens::AllPairs);
    let wide = DitmcConfig { heads: 8, head_width: 6, expansion: 7, self_conditioning: true, ..pe3.clone() };
    for (config, smiles, count) in [
        (&pe3, ETHANOL, 2),
        (&pe3, METHYLAMINE, 2),
        (&with(1, PairTokens::BondPairs), METHANOL, 2),
        (&with(0, PairTokens::AllPairs), METHANOL, 1),
        (&with(2, PairTokens::AllPairs), METHANOL, 2),
        (&with(2, PairTokens::BondPairs), METHYLAMINE, 1),
        (&wide, METHANOL, 1),
        (&DitmcConfig { blocks: 1, ..pe3.clone() }, HYDROGEN, 3),
        (&pe3, PROTON, 2),
    ] {
        testing::check_device_forces(&random(config, smiles), &samples(smiles, count), 1e-5);
    }
}

#[test]
fn trajectories_are_the_same_on_devices() {
    for variant in [Variant::Ape, Variant::Pe3] {
        let config = DitmcConfig { variant, blocks: 1, ..small() };
        testing::check_device(&random(&config, METHANOL), &samples(METHANOL, 2), 0.0005, 2.5, 3, 1e-5);
    }
}

#[test]
fn trained_networks_are_the_same_on_devices() {
    for name in ["ape-small.safetensors", "pe3-small.safetensors"] {
        let provider = weights(name).build().unwrap();
        testing::check_device_forces(&provider, &samples(ETHANOL, 2), 1e-5);
        testing::check_kernels_compile(&provider, &samples(ETHANOL, 1)[0].system);
    }
}

#[test]
fn what_kernels_do_not_do_stays_on_the_host() {
    let annealing = Annealing { sigma: 1.6, period: 4.0, levels: 4 };
    let annealed = random(&small(), METHANOL).annealed(Some(annealing)).unwrap();
    let refused = DeviceProvider::new(&Device::emulated(Order::Forwards), &annealed).err().unwrap().to_string();
    assert!(refused.contains("sigma-max and period") && refused.contains("--device cpu"), "{refused}");
    let long = "C".repeat(90);
    for provider in [annealed, random(&small(), &long)] {
        assert_eq!(provider.capabilities().devices, ["cpu"]);
        assert!(provider.device_model(&System::particles("one", 1, 1.0)).is_none());
    }
    let provider = random(&small(), METHANOL);
    assert_eq!(provider.capabilities().devices, ["cpu", "cuda"]);
    assert!(provider.device_model(&System::particles("one", 1, 1.0)).is_some());
}
