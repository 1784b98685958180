use super::*;
use crate::testing::{self, Sample};
use crate::{Error, parse_spec};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use scorefield_integrators::units::KJ_PER_HARTREE;
use scorefield_integrators::{Batch, DType, ForceProvider, State, System, Want};
use std::collections::HashMap;
use std::path::PathBuf;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/ani/fixture");
const EVERYTHING: Want = Want { energy: true, virial: false, atom_energy: true, uncertainty: true };

/// Folder of reference data, or `None` after saying why a test is skipped.
fn reference(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let path = root.join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} does not exist; set SCOREFIELD_REFERENCE", path.display());
    None
}

fn rows(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap().iter().map(|x| x.as_f64().unwrap())).collect()
}

fn molecule(name: &str, numbers: Vec<u32>, angstrom: &[f64]) -> Sample {
    let mut system = System::particles(name, numbers.len(), 1.0);
    system.types = numbers;
    Sample::new(system, angstrom.iter().map(|x| 0.1 * x).collect())
}

#[test]
fn published_models_agree_with_their_references() {
    let Some(file) = reference("weights/ani/reference_energies_forces.json") else { return };
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    for (model, weights) in [(AniModel::Ani2x, "ani2x_8x_hcnof"), (AniModel::Ani1x, "ani1x_8x"), (AniModel::Ani1ccx, "ani1ccx_8x")] {
        let mut provider = AniProvider::open(file.with_file_name(format!("{weights}.safetensors")), None).unwrap();
        let cases = all[model.name()].as_object().unwrap();
        let samples: Vec<Sample> = cases
            .iter()
            .map(|(name, c)| {
                let z = c["z"].as_array().unwrap().iter().map(|z| z.as_u64().unwrap() as u32).collect();
                molecule(name, z, &rows(&c["pos_A"]))
            })
            .collect();
        for dtype in [DType::F64, DType::F32] {
            let (mut worst_e, mut worst_f) = (0f64, 0f64);
            let out = testing::evaluate(&mut provider, &samples, dtype, Want { uncertainty: true, ..Want::ENERGY });
            let forces = out.forces.to_f64();
            let mut start = 0;
            for (b, case) in cases.values().enumerate() {
                let wanted = rows(&case["forces_Ha_A"]);
                worst_e = worst_e.max((out.energy[b] / KJ_PER_HARTREE - case["energy_Ha"].as_f64().unwrap()).abs());
                for (got, want) in forces[start..].iter().zip(&wanted) {
                    worst_f = worst_f.max((got / (10.0 * KJ_PER_HARTREE) - want).abs());
                }
                start += wanted.len();
                let members: Vec<f64> = case["member_energies_Ha"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
                let (_, spread) = mean_and_deviation(&members);
                let difference = (out.uncertainty.energy[b] / KJ_PER_HARTREE - spread).abs();
                assert!(difference <= if dtype == DType::F64 { 1e-9 } else { 1e-6 }, "spread differs by {difference}");
            }
            println!("{} {dtype}: energies within {worst_e:.1e} Ha, forces within {worst_f:.1e} Ha/Å", model.name());
            let tolerance = if dtype == DType::F64 { 1e-6 } else { 5e-5 };
            assert!(worst_e <= tolerance && worst_f <= tolerance);
        }
    }
}

/// The small model of random weights, its molecules, and their energies `[M]` and forces `[M][3N]` by member.
fn fixture() -> (AniProvider, Vec<(Sample, Vec<f64>, Vec<Vec<f64>>)>) {
    let provider = AniProvider::open(format!("{FIXTURE}.safetensors"), None).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{FIXTURE}.json")).unwrap()).unwrap();
    let list = |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let cases = cases.as_object().unwrap().iter().map(|(name, c)| {
        let z = list(&c["z"]).iter().map(|&z| z as u32).collect();
        let forces = c["member_forces_Ha_A"].as_array().unwrap().iter().map(rows).collect();
        (molecule(name, z, &rows(&c["pos_A"])), list(&c["member_energies_Ha"]), forces)
    });
    (provider, cases.collect())
}

fn named<'a>(cases: &'a [(Sample, Vec<f64>, Vec<Vec<f64>>)], name: &str) -> &'a Sample {
    &cases.iter().find(|c| c.0.system.name == name).unwrap().0
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

#[test]
fn energies_forces_and_spread_agree_with_complex_arithmetic() {
    let (mut provider, cases) = fixture();
    let samples: Vec<Sample> = cases.iter().map(|c| c.0.clone()).collect();
    assert_eq!(provider.members(), 3);
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let out = testing::evaluate(&mut provider, &samples, dtype, EVERYTHING);
        let forces = out.forces.to_f64();
        let mut start = 0;
        for (b, (sample, energies, member_forces)) in cases.iter().enumerate() {
            let (mean, deviation) = mean_and_deviation(energies);
            let near = |got: f64, want: f64, unit: f64, what: &str| {
                let error = (got / unit - want).abs();
                assert!(
                    error <= tolerance * want.abs().max(1.0),
                    "{}: {what} {dtype}: {} instead of {want}",
                    sample.system.name,
                    got / unit
                );
            };
            near(out.energy[b], mean, KJ_PER_HARTREE, "energy");
            near(out.uncertainty.energy[b], deviation, KJ_PER_HARTREE, "deviation of the energy");
            for k in 0..sample.positions.len() {
                let (mean, deviation) = mean_and_deviation(&member_forces.iter().map(|f| f[k]).collect::<Vec<_>>());
                near(forces[start + k], mean, 10.0 * KJ_PER_HARTREE, "force");
                near(out.uncertainty.forces[start + k], deviation, 10.0 * KJ_PER_HARTREE, "deviation of a force");
            }
            start += sample.positions.len();
        }
        let total: f64 = out.atom_energy.iter().sum();
        assert!((total - out.energy.iter().sum::<f64>()).abs() <= 1e-12 * total.abs());
    }
}

#[test]
fn forces_are_gradients_and_follow_the_molecule() {
    let (mut provider, cases) = fixture();
    for (sample, ..) in &cases {
        // Exactness is shown by complex arithmetic above. CELU's curvature jumps at zero, which bounds what finite differences
        // can show where a unit is near it.
        testing::check_forces(&mut provider, sample, 1e-3);
        testing::check_rigid_motion(&mut provider, sample, 1e-12);
        testing::check_permutation(&mut provider, sample, 1e-12);
    }
}

#[test]
fn a_molecule_has_the_same_bits_in_any_batch() {
    let (mut provider, cases) = fixture();
    // Ragged, more rows of one element than are worked on at once, and single molecules lack elements of the batch.
    let mut samples: Vec<Sample> = cases.iter().map(|c| c.0.clone()).collect();
    for seed in 0..30 {
        samples.push(named(&cases, ["methanol", "water"][seed as usize % 2]).displaced(0.003, seed));
    }
    testing::check_batch_invariance(&mut provider, &samples);
    // Nor does the spread change the mean.
    for dtype in [DType::F32, DType::F64] {
        let with = testing::evaluate(&mut provider, &samples, dtype, EVERYTHING);
        let without = testing::evaluate(&mut provider, &samples, dtype, Want::FORCES);
        assert_eq!(with.forces, without.forces);
    }
}

#[test]
fn many_molecules_are_worked_on_in_pieces() {
    let (mut provider, cases) = fixture();
    let sample = named(&cases, "methanol");
    let samples = vec![sample.clone(); 400];
    let one = testing::evaluate(&mut provider, &samples[..1], DType::F32, EVERYTHING);
    let all = testing::evaluate(&mut provider, &samples, DType::F32, EVERYTHING);
    assert!(all.energy.iter().all(|e| *e == one.energy[0]));
    assert!(all.forces.to_f64().chunks_exact(sample.positions.len()).all(|f| f == one.forces.to_f64()));
    assert!(all.uncertainty.forces.chunks_exact(sample.positions.len()).all(|f| f == one.uncertainty.forces));
}

#[test]
fn molecules_beyond_the_cutoff_do_not_see_each_other() {
    let (mut provider, cases) = fixture();
    let (a, b) = (named(&cases, "methanol"), named(&cases, "water"));
    let apart = testing::evaluate(&mut provider, &[a.clone(), b.clone()], DType::F64, EVERYTHING);
    let types = [&a.system.types[..], &b.system.types[..]].concat();
    let mut positions = [&a.positions[..], &b.positions[..]].concat();
    positions[a.positions.len()..].iter_mut().step_by(3).for_each(|x| *x += 2.0);
    let angstrom: Vec<f64> = positions.iter().map(|x| 10.0 * x).collect();
    let both = testing::evaluate(&mut provider, &[molecule("both", types, &angstrom)], DType::F64, EVERYTHING);
    let sum = apart.energy[0] + apart.energy[1];
    assert!((both.energy[0] - sum).abs() <= 1e-13 * sum.abs());
    for (got, want) in both.forces.to_f64().iter().zip(apart.forces.to_f64()) {
        assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{got} {want}");
    }
}

#[test]
fn numbers_that_are_not_finite_stay_in_their_molecule() {
    let (mut provider, cases) = fixture();
    let good = named(&cases, "methanol").clone();
    let batch = Batch::uniform(good.system.clone(), 2, 0).unwrap();
    let mut state = State::at_rest(&batch, &[&good.positions[..], &good.positions].concat(), DType::F32).unwrap();
    state.phase.set(4, f64::NAN);
    let mut out = scorefield_integrators::Output::new(&batch, DType::F32, EVERYTHING);
    provider.prepare(&batch, DType::F32).unwrap();
    let input =
        scorefield_integrators::Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want: EVERYTHING };
    provider.evaluate(&input, &mut out).unwrap();
    assert!(out.energy[0].is_nan() && out.forces.to_f64()[..18].iter().all(|f| f.is_nan()));
    let alone = testing::evaluate(&mut provider, &[good], DType::F32, EVERYTHING);
    assert_eq!(out.energy[1], alone.energy[0]);
    assert_eq!(out.forces.to_f64()[18..], alone.forces.to_f64());
}

/// The fixture's tensors and metadata as they can be changed and written again.
struct Draft {
    metadata: HashMap<String, String>,
    tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Draft {
    fn new() -> Self {
        Draft::of(&std::fs::read(format!("{FIXTURE}.safetensors")).unwrap())
    }

    fn of(bytes: &[u8]) -> Self {
        let metadata = SafeTensors::read_metadata(bytes).unwrap().1.metadata().clone().unwrap();
        let all = SafeTensors::deserialize(bytes).unwrap();
        let tensors = all.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
        Draft { metadata, tensors: tensors.collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }
}

fn refusal(bytes: &[u8], model: Option<AniModel>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    std::fs::write(&file, bytes).unwrap();
    match AniProvider::open(&file, model) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn damaged_weights_are_refused() {
    let good = Draft::new();
    let change = |name: &str, f: &dyn Fn(&mut (Dtype, Vec<usize>, Vec<u8>))| {
        let mut draft = Draft::new();
        f(draft.tensors.get_mut(name).unwrap());
        refusal(&draft.bytes(), None)
    };
    let nan = |t: &mut (Dtype, Vec<usize>, Vec<u8>)| t.2[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(change("C.1.weight", &nan).contains("`C.1.weight`: element 2 is NaN"));
    assert!(change("H.1.bias", &|t| t.0 = Dtype::I32).contains("F32 is needed"));
    assert!(change("H.1.bias", &|t| t.1 = vec![6, 3]).contains("[3, 6] is needed"));
    assert!(change("H.0.weight", &|t| *t = (Dtype::F32, vec![], vec![0; 4])).contains("H.0.weight"));
    assert!(change("H.0.weight", &|t| *t = (Dtype::F32, vec![0, 10, 144], vec![])).contains("0 members"));
    let mut draft = Draft::new();
    draft.tensors.remove("O.0.weight");
    assert!(refusal(&draft.bytes(), None).contains("`O.0.weight`: it is missing"));
    let mut draft = Draft::new();
    draft.tensors.remove("C.3.weight");
    assert!(refusal(&draft.bytes(), None).contains("the last layer has 7 outputs"));
    let mut draft = Draft::new();
    draft.tensors.insert("S.0.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    assert!(refusal(&draft.bytes(), None).contains("another architecture"));
    let mut draft = Draft::new();
    draft.metadata.clear();
    assert!(refusal(&draft.bytes(), None).contains("which model"));
    assert!(refusal(&draft.bytes(), Some(AniModel::Ani1x)).contains("[3, 10, 240] is needed"));
    draft.metadata.insert("architecture".into(), "ani2x".into());
    assert!(refusal(&draft.bytes(), Some(AniModel::Ani1x)).contains("it holds ani2x, but ani1x was asked for"));

    let bytes = good.bytes();
    for length in (0..bytes.len()).step_by(997).chain([7, 8, 9, bytes.len() - 1]) {
        let message = refusal(&bytes[..length], None);
        assert!(message.contains("truncated") || message.contains("too short"), "{length}: {message}");
    }
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&huge, None).contains("header claims"));
}

#[test]
fn damaged_headers_never_panic() {
    let bytes = Draft::new().bytes();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    // A fixed sequence of positions and values (a linear congruence) for single bytes of the header.
    let mut state = 1u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut damaged = bytes.clone();
        damaged[(state >> 33) as usize % (header + 8)] = (state >> 25) as u8;
        std::fs::write(&file, &damaged).unwrap();
        let _ = AniProvider::open(&file, None);
    }
}

#[test]
fn words_and_files_make_providers() {
    let missing = parse_spec("ani2x:weights=no/such/file.safetensors").unwrap().build().map(|_| ()).unwrap_err();
    assert!(matches!(missing, Error::File { .. }));
    let message = missing.to_string();
    assert!(message.contains("https://github.com/aiqm/ani-model-zoo") && message.contains("convert_ani.py"), "{message}");
    assert!(parse_spec("ani2x").unwrap_err().to_string().contains("weights"));

    let Some(file) = reference("weights/ani/ani1ccx_8x.safetensors") else { return };
    let built = parse_spec(file.to_str().unwrap()).unwrap().build().unwrap();
    let capabilities = built.provider.capabilities().clone();
    assert_eq!(capabilities.name, "ani1ccx");
    assert_eq!(capabilities.types, Some(vec![1, 6, 7, 8]));
    assert!((capabilities.range.unwrap() - 0.52).abs() < 1e-12 && capabilities.uncertainty);
    assert!(parse_spec(&format!("ani-1ccx:weights={}", file.display())).unwrap().build().is_ok());
    let other = parse_spec(&format!("ani1x:weights={}", file.display())).unwrap().build().map(|_| ()).unwrap_err();
    assert!(other.to_string().contains("holds ani1ccx"));
}

#[test]
fn published_weights_without_metadata_use_the_published_parameters() {
    let Some(file) = reference("weights/ani/ani2x_8x_hcnof.safetensors") else { return };
    let mut draft = Draft::of(&std::fs::read(&file).unwrap());
    draft.metadata.clear();
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare.safetensors");
    std::fs::write(&bare, draft.bytes()).unwrap();
    let sample = molecule("water", vec![8, 1, 1], &[0.0, 0.0, 0.119262, 0.0, 0.763239, -0.477047, 0.0, -0.763239, -0.477047]);
    let mut energies = Vec::new();
    for (file, model) in [(file, None), (bare, Some(AniModel::Ani2x))] {
        let mut provider = AniProvider::open(&file, model).unwrap();
        energies.push(testing::evaluate(&mut provider, std::slice::from_ref(&sample), DType::F64, Want::ENERGY).energy[0]);
        testing::check_batch_invariance(&mut provider, &[sample.clone(), sample.displaced(0.01, 1)]);
        testing::check_forces(&mut provider, &sample.displaced(0.01, 2), 1e-4);
    }
    assert!((energies[0] - energies[1]).abs() <= 1e-9 * energies[0].abs());
}

#[test]
fn evaluations_allocate_nothing() {
    let (mut provider, cases) = fixture();
    let system = named(&cases, "methanol").system.clone();
    let batch = Batch::uniform(system, 3, 0).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let state = State::at_rest(&batch, &named(&cases, "methanol").positions.repeat(3), dtype).unwrap();
        let mut out = scorefield_integrators::Output::new(&batch, dtype, EVERYTHING);
        provider.prepare(&batch, dtype).unwrap();
        let input = scorefield_integrators::Input {
            batch: &batch,
            positions: state.positions(),
            cells: None,
            clock: state.clock,
            want: EVERYTHING,
        };
        provider.evaluate(&input, &mut out).unwrap();
        assert_eq!(testing::allocations::during(|| provider.evaluate(&input, &mut out).unwrap()), 0);
    }
}

#[test]
fn kernels_give_the_same_forces_and_trajectories() {
    let (provider, cases) = fixture();
    let largest = cases.iter().map(|c| c.0.system.len()).max().unwrap();
    for (sample, ..) in cases.iter().filter(|c| c.0.system.len() == largest || c.0.system.len() == 3) {
        let samples: Vec<Sample> = (0..2).map(|k| sample.clone().displaced(0.002, k)).collect();
        testing::check_device(&provider, &samples, 0.0005, 2.5, 2, 2e-5);
    }
    testing::check_kernels_compile(&provider, &cases[0].0.system);
    // The parameters on a device are those of one molecule.
    let device = scorefield_integrators::Device::emulated(scorefield_integrators::device::Order::Forwards);
    let mut remote = scorefield_integrators::DeviceProvider::new(&device, &provider).unwrap();
    let systems = [&cases[0], &cases[1]].map(|c| c.0.system.clone()).to_vec();
    let refused = remote.prepare(&Batch::new(systems, vec![0, 1]).unwrap(), DType::F32).unwrap_err().to_string();
    assert!(refused.contains("one molecule"), "{refused}");
}
