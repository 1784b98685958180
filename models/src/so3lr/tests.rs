//! Against an independent implementation (`data/scripts/make_so3lr_fixture.py`) with small random weights, against the
//! published weights' reference values where they are at hand, and against itself.

use super::*;
use crate::testing::*;
use scorefield_integrators::Want;
use scorefield_integrators::units::KJ_PER_EV;

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn small(cutoff: f64) -> So3lrProvider {
    So3lrProvider::new(&workspace("tests/data/so3lr/small.safetensors"), cutoff / ANGSTROM).unwrap()
}

/// The published weights, where they are at hand.
fn published(cutoff: f64) -> Option<(So3lrProvider, PathBuf)> {
    let root = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| workspace("../shared"), PathBuf::from);
    let folder = root.join("weights/so3lr");
    let file = folder.join("so3lr.safetensors");
    if !file.is_file() {
        println!("skipped: no {}; set SCOREFIELD_REFERENCE to the folder of reference data", file.display());
        return None;
    }
    Some((So3lrProvider::new(&file, cutoff / ANGSTROM).unwrap(), folder))
}

fn molecule(types: Vec<u32>, charge: i32, angstrom: &[f64]) -> Sample {
    let mut system = System::particles("molecule", types.len(), 10.0);
    (system.types, system.charge) = (types, charge);
    Sample::new(system, angstrom.iter().map(|x| x / ANGSTROM).collect())
}

fn json(file: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    match v {
        serde_json::Value::Array(list) => list.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap()],
    }
}

/// The fixture's molecules and what the independent implementation says of them.
fn fixture(cutoff: f64) -> Vec<(Sample, serde_json::Value)> {
    let all = json(&workspace("tests/data/so3lr/reference.json"));
    let frames = all["frames"].as_array().unwrap().iter().filter(|f| f["cutoff_A"].as_f64() == Some(cutoff));
    frames
        .map(|f| {
            let types = numbers(&f["z"]).iter().map(|&z| z as u32).collect();
            (molecule(types, f["charge"].as_i64().unwrap() as i32, &numbers(&f["positions_A"])), f.clone())
        })
        .collect()
}

/// Largest errors in eV of the parts (network, repulsion, electrostatic, dispersion), and in eV/Å of the forces.
fn errors(provider: &mut So3lrProvider, sample: &Sample, dtype: DType, parts: &serde_json::Value, forces: &[f64]) -> [f64; 5] {
    let out = evaluate(provider, std::slice::from_ref(sample), dtype, Want::ENERGY);
    let got = provider.parts()[0];
    let mut errors = [0.0; 5];
    let names = [("net", got.network), ("zbl", got.repulsion), ("elec", got.electrostatic), ("disp", got.dispersion)];
    for (error, (name, value)) in errors.iter_mut().zip(names) {
        *error = (value / KJ_PER_EV - parts[name].as_f64().unwrap()).abs();
    }
    for (got, want) in out.forces.to_f64().iter().zip(forces) {
        errors[4] = f64::max(errors[4], (got / (KJ_PER_EV * ANGSTROM) - want).abs());
    }
    errors
}

#[test]
fn agrees_with_the_independent_implementation() {
    for cutoff in [1000.0, 6.0] {
        let mut provider = small(cutoff);
        for (sample, f) in fixture(cutoff) {
            let name = f["name"].as_str().unwrap();
            let e = errors(&mut provider, &sample, DType::F64, &f["parts_eV"], &numbers(&f["forces_eV_A"]));
            println!("{name} {cutoff}: {e:?}");
            assert!(e.iter().all(|&e| e < 2e-8), "{name}, cutoff {cutoff}: {e:?}");
            for (got, want) in provider.charges().iter().zip(numbers(&f["charges"])) {
                assert!((got - want).abs() < 1e-8, "{name}: charge {got}, {want} expected");
            }
            for (got, want) in provider.hirshfeld_ratios().iter().zip(numbers(&f["hirshfeld"])) {
                assert!((got - want).abs() < 1e-8, "{name}: ratio {got}, {want} expected");
            }
            let e = errors(&mut provider, &sample, DType::F32, &f["parts_eV"], &numbers(&f["forces_eV_A"]));
            println!("{name} {cutoff}, f32: {e:?}");
            assert!(e.iter().all(|&e| e < 1e-4), "{name}, cutoff {cutoff}, f32: {e:?}");
        }
    }
}

#[test]
fn forces_are_gradients_and_invariances_hold() {
    for cutoff in [1000.0, 6.0] {
        let mut provider = small(cutoff);
        for (sample, _) in fixture(cutoff) {
            check_forces(&mut provider, &sample, 1e-7);
            check_virial(&mut provider, &sample, 1e-7);
            check_rigid_motion(&mut provider, &sample, 1e-9);
            check_permutation(&mut provider, &sample, 1e-10);
        }
    }
}

#[test]
fn batches_change_no_bit() {
    let mut provider = small(1000.0);
    let samples: Vec<Sample> = fixture(1000.0).into_iter().map(|f| f.0).collect();
    check_batch_invariance(&mut provider, &samples);
    let ethanol: Vec<Sample> = (0..5).map(|k| samples[1].displaced(0.002, k)).collect();
    check_batch_invariance(&mut provider, &ethanol);
}

#[test]
fn far_molecules_add_up() {
    // With a cutoff shorter than their distance two neutral molecules only share the shift of charges; without charges
    // to share, energies add.
    let mut provider = small(12.0);
    let water = fixture(1000.0)[0].0.clone();
    let alone = evaluate(&mut provider, std::slice::from_ref(&water), DType::F64, Want::ENERGY);
    let part = provider.parts()[0];
    let mut both = (*water.system).clone();
    both.types.extend_from_within(..);
    both.masses.extend_from_within(..);
    both.names.extend_from_within(..);
    let mut positions = water.positions.clone();
    positions.extend(water.positions.iter().map(|x| x + 5.0));
    let out = evaluate(&mut provider, &[Sample::new(both, positions)], DType::F64, Want::ENERGY);
    let pair = provider.parts()[0];
    assert!((pair.network - 2.0 * part.network).abs() < 1e-9);
    assert!((pair.dispersion - 2.0 * part.dispersion).abs() < 1e-9);
    assert!((pair.electrostatic - 2.0 * part.electrostatic).abs() < 1e-9);
    assert!((out.energy[0] - 2.0 * alone.energy[0]).abs() < 1e-9);
    for (a, b) in out.forces.to_f64()[..9].iter().zip(alone.forces.to_f64()) {
        assert!((a - b).abs() < 1e-8);
    }
    // One atom alone has no force.
    let atom = molecule(vec![8], 0, &[1.0, 2.0, 3.0]);
    assert!(evaluate(&mut provider, &[atom], DType::F64, Want::ENERGY).forces.to_f64().iter().all(|&f| f == 0.0));
}

#[test]
fn charges_add_up_to_the_total_charge() {
    let mut provider = small(1000.0);
    for (sample, _) in fixture(1000.0) {
        evaluate(&mut provider, std::slice::from_ref(&sample), DType::F64, Want::ENERGY);
        let sum: f64 = provider.charges().iter().sum();
        assert!((sum - sample.system.charge as f64).abs() < 1e-12);
    }
}

#[test]
fn tables_follow_the_filters() {
    let Some((_, folder)) = published(1000.0) else { return };
    for file in [folder.join("so3lr.safetensors"), workspace("tests/data/so3lr/small.safetensors")] {
        let weights = Weights::read(&file).unwrap();
        let mut worst = [0.0f64; 2];
        for layer in &weights.layers {
            let radial = [&layer.filters[0].radial, &layer.filters[1].radial];
            let width = 2 * weights.features;
            let table = radial::Table::<f64>::new(width, &radial::tabulate(radial, &vec![0.0; width]));
            let mut values = vec![0.0; width];
            for k in 0..400 {
                let r = 0.4 + 4.1 * (k as f64 + 0.37) / 400.0;
                table.values(&[r], &mut values);
                let exact: Vec<_> = radial.iter().flat_map(|l| radial::filter(l, r)).collect();
                let scale = exact.iter().fold(0.0, |m: f64, j| m.max(j[0].abs()));
                for (c, jet) in exact.iter().enumerate() {
                    worst[0] = worst[0].max((values[c] - jet[0]).abs() / scale);
                    if c % 16 == k % 16 {
                        let (mut unit, mut slope) = (vec![0.0; width], [0.0]);
                        unit[c] = 1.0;
                        table.slopes(&[r], &unit, &mut slope);
                        worst[1] = worst[1].max((slope[0] - jet[1]).abs() / scale);
                    }
                }
            }
        }
        println!("{}: largest error of filters {:.1e} and of slopes {:.1e} /A", file.display(), worst[0], worst[1]);
        assert!(worst[0] < 1e-9 && worst[1] < 1e-6, "{worst:?}");
    }
}

#[test]
fn published_weights_reproduce_reference_values() {
    for cutoff in [1000.0, 12.0] {
        let Some((mut provider, folder)) = published(cutoff) else { return };
        let all = json(&folder.join("reference_energies_forces.json"));
        let (mut worst, mut single) = ([0.0f64; 5], [0.0f64; 5]);
        let mut count = 0;
        for (name, f) in all.as_object().unwrap() {
            if !name.ends_with(&format!("lr={cutoff}")) {
                continue;
            }
            count += 1;
            let types = numbers(&f["z"]).iter().map(|&z| z as u32).collect();
            let sample = molecule(types, 0, &numbers(&f["pos_A"]));
            let forces = numbers(&f["forces_eV_A"]);
            let e = errors(&mut provider, &sample, DType::F64, &f["parts"], &forces);
            for (w, e) in worst.iter_mut().zip(e) {
                *w = w.max(e);
            }
            for (got, want) in provider.charges().iter().zip(numbers(&f["charges"])) {
                assert!((got - want).abs() < 1e-5);
            }
            for (got, want) in provider.hirshfeld_ratios().iter().zip(numbers(&f["hirshfeld"])) {
                assert!((got - want).abs() < 1e-5);
            }
            let e = errors(&mut provider, &sample, DType::F32, &f["parts"], &forces);
            for (w, e) in single.iter_mut().zip(e) {
                *w = w.max(e);
            }
        }
        println!("cutoff {cutoff} A, {count} molecules: network, repulsion, electrostatic, dispersion in eV, forces in eV/A");
        println!("f64 {worst:?}\nf32 {single:?}");
        assert!(count >= 8);
        assert!(worst.iter().all(|&e| e < 1e-5), "{worst:?}");
        assert!(single.iter().all(|&e| e < 1e-4), "{single:?}");
    }
}

#[test]
fn words_build_it() {
    let file = workspace("tests/data/so3lr/small.safetensors");
    let text = format!("so3lr:weights={},cutoff=12 A", file.display());
    let built = crate::parse_spec(&text).and_then(|s| s.build()).unwrap();
    let c = built.provider.capabilities();
    assert!(!c.energies_comparable && c.virial && c.types.as_ref().is_some_and(|t| t.contains(&17)));
    assert!((c.range.unwrap() - 1.2).abs() < 1e-12);
    // Without a cutoff, the gas phase's; in a tree, beside the file.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&file, folder.path().join("w.safetensors")).unwrap();
    let tree = folder.path().join("tree.toml");
    std::fs::write(&tree, "kind = \"so3lr\"\nweights = \"w.safetensors\"").unwrap();
    let built = crate::parse_spec(tree.to_str().unwrap()).and_then(|s| s.build()).unwrap();
    assert_eq!(built.provider.capabilities().range, Some(100.0));
    let missing = So3lrProvider::new(Path::new("nowhere.safetensors"), 1.0).err().map(|e| e.to_string()).unwrap();
    assert!(missing.contains("nowhere.safetensors") && missing.contains("published at"), "{missing}");
    for (cutoff, word) in [("1 A", "refused"), ("-3 nm", "refused"), ("5", "no unit"), ("nan nm", "")] {
        let spec = crate::parse_spec(&format!("so3lr:weights={},cutoff={cutoff}", file.display()));
        let e = spec.and_then(|s| s.build()).err().map(|e| e.to_string()).unwrap();
        assert!(e.contains(word), "{e}");
    }
}

/// Numbers of one array of an uncompressed `.npz` file.
fn npz(file: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(file).unwrap();
    let find = |from: usize, what: &[u8]| from + bytes[from..].windows(what.len()).position(|w| w == what).unwrap();
    let start = find(find(0, format!("{name}.npy").as_bytes()), b"\x93NUMPY");
    let length = u16::from_le_bytes([bytes[start + 8], bytes[start + 9]]) as usize;
    let header = String::from_utf8(bytes[start + 10..start + 10 + length].to_vec()).unwrap();
    let shape = header.split('(').nth(1).and_then(|h| h.split(')').next()).unwrap();
    let count: usize = shape.split(',').filter_map(|s| s.trim().parse::<usize>().ok()).product();
    let data = &bytes[start + 10 + length..];
    if header.contains("<f8") {
        data.as_chunks::<8>().0[..count].iter().map(|&b| f64::from_le_bytes(b)).collect()
    } else {
        assert!(header.contains("<f4"), "{header}");
        data.as_chunks::<4>().0[..count].iter().map(|&b| f32::from_le_bytes(b) as f64).collect()
    }
}

/// A molecule of an xyz file, moved near the origin.
fn xyz(file: &Path) -> Sample {
    let text = std::fs::read_to_string(file).unwrap();
    let (mut types, mut positions) = (Vec::new(), Vec::new());
    for line in text.lines().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        types.push(match words[0] {
            "H" => 1,
            "C" => 6,
            "N" => 7,
            "O" => 8,
            other => panic!("{other}"),
        });
        positions.extend(words[1..4].iter().map(|w| w.parse::<f64>().unwrap() - 500.0));
    }
    molecule(types, 0, &positions)
}

#[test]
fn published_weights_reproduce_the_authors_test_data() {
    // Made by their program in single precision with a cutoff of 12 Å, with positions and results rounded.
    let Some((mut provider, folder)) = published(12.0) else { return };
    for name in ["atat", "dha", "bb"] {
        let sample = xyz(&folder.join(format!("test_data/{name}.xyz")));
        let reference = folder.join(format!("test_data/{name}_ase.npz"));
        let (energy, forces) = (npz(&reference, "energy")[0], npz(&reference, "forces"));
        for dtype in [DType::F64, DType::F32] {
            let out = evaluate(&mut provider, std::slice::from_ref(&sample), dtype, Want::ENERGY);
            let e = (out.energy[0] / KJ_PER_EV - energy).abs();
            let f = out.forces.to_f64().iter().zip(&forces).map(|(f, g)| (f / (KJ_PER_EV * ANGSTROM) - g).abs()).fold(0.0, f64::max);
            println!("{name}, {} atoms, {dtype}: energy {e:.1e} eV, forces {f:.1e} eV/A", sample.system.len());
            let (te, tf) = if dtype == DType::F64 { (6e-5, 6e-5) } else { (2e-4, 1e-4) };
            assert!(e < te && f < tf, "{name}, {dtype}: {e:.1e} eV, {f:.1e} eV/A");
        }
    }
}

#[test]
fn published_weights_pass_every_check() {
    let Some((mut provider, folder)) = published(1000.0) else { return };
    let all = json(&folder.join("reference_energies_forces.json"));
    let sample = |name: &str| {
        let f = &all[format!("{name}|lr=1000")];
        molecule(numbers(&f["z"]).iter().map(|&z| z as u32).collect(), 0, &numbers(&f["pos_A"]))
    };
    let samples = [sample("CH3CH2OH_dist"), sample("H2O"), sample("CH3CONH2")];
    for s in &samples {
        check_forces(&mut provider, s, 1e-6);
        check_virial(&mut provider, s, 1e-6);
        check_rigid_motion(&mut provider, s, 1e-9);
        check_permutation(&mut provider, s, 1e-10);
    }
    check_batch_invariance(&mut provider, &samples);
}

#[test]
fn published_weights_dissociate_smoothly() {
    // Two waters pulled apart along x: beyond the network's reach only charges and dispersion act, energies go to a limit
    // as charges' multipoles do, and nothing jumps where the network ends.
    let Some((mut provider, _)) = published(1000.0) else { return };
    let water = [0.0, 0.0, 0.119262, 0.0, 0.763239, -0.477047, 0.0, -0.763239, -0.477047];
    let mut at = |x: f64| {
        let both: Vec<f64> =
            water.iter().copied().chain(water.iter().enumerate().map(|(k, w)| if k % 3 == 0 { w + x } else { *w })).collect();
        let out = evaluate(&mut provider, &[molecule(vec![8, 1, 1, 8, 1, 1], 0, &both)], DType::F64, Want::ENERGY);
        (out.energy[0] / KJ_PER_EV, provider.parts()[0].network / KJ_PER_EV)
    };
    let limit = at(400.0);
    assert!((at(200.0).0 - limit.0).abs() < 1e-5, "not at its limit");
    assert_eq!(at(7.0).1, at(9.0).1, "the network acts beyond its reach");
    let mut last = at(3.0).0;
    for k in 1..=500 {
        let e = at(3.0 + 0.01 * k as f64).0;
        assert!((e - last).abs() < 0.02, "a jump of {} eV at {} A", e - last, 3.0 + 0.01 * k as f64);
        last = e;
    }
    let alone = evaluate(&mut provider, &[molecule(vec![8, 1, 1], 0, &water)], DType::F64, Want::ENERGY).energy[0] / KJ_PER_EV;
    assert!((limit.0 - 2.0 * alone).abs() < 1e-5, "two waters far apart are {} eV from twice one", limit.0 - 2.0 * alone);
}

#[test]
fn evaluation_allocates_nothing() {
    let mut provider = small(1000.0);
    let samples: Vec<Sample> = fixture(1000.0).into_iter().map(|f| f.0).collect();
    let systems = samples.iter().map(|s| s.system.clone()).collect();
    let batch = Batch::new(systems, (0..samples.len() as u32).collect()).unwrap();
    let positions: Vec<f64> = samples.iter().flat_map(|s| s.positions.clone()).collect();
    for dtype in [DType::F32, DType::F64] {
        let want = Want { energy: true, virial: true, atom_energy: true, uncertainty: false };
        let state = scorefield_integrators::State::at_rest(&batch, &positions, dtype).unwrap();
        let mut out = Output::new(&batch, dtype, want);
        provider.prepare(&batch, dtype).unwrap();
        let clock = scorefield_integrators::Clock::Iteration;
        let input = Input { batch: &batch, positions: state.positions(), cells: None, clock, want };
        assert_eq!(crate::testing::allocations::during(|| provider.evaluate(&input, &mut out).unwrap()), 0);
    }
}

#[test]
fn a_bare_file_is_told_how_to_name_it() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/so3lr/small.safetensors");
    let error = crate::parse_spec(file).and_then(|s| s.build().map(|_| ())).unwrap_err().to_string();
    assert!(error.contains(&format!("write `so3lr:weights={file}`")), "{error}");
}
