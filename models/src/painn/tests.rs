//! The provider: published weights, and what every provider is checked for.

use super::config::{Head, PainnConfig};
use super::model::{EV_PER_SQUARE_ANGSTROM, Output as Meaning, PainnModel};
use super::noising::NoiseSettings;
use super::provider::PainnProvider;
use super::trainer::{Molecules, Objective, Plan, Rate, Trainer};
use crate::spec::parse_spec;
use crate::testing::{self, Sample};
use crate::train::adamw::Root;
use crate::train::{AdamW, Clip, CosineSchedule, Ema};
use scorefield_integrators::device::Order;
use scorefield_integrators::simd::SimdReal;
use scorefield_integrators::{AtomName, Batch, DType, Device, Kind, Noise, Purpose, State, System, Want};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn reference(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| PathBuf::from("../../shared"), PathBuf::from);
    let path = folder.join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is missing; set SCOREFIELD_REFERENCE to the folder of reference data", path.display());
    None
}

/// A molecule at `positions` in Å.
fn molecule(types: &[u32], positions: &[f64]) -> Sample {
    let n = types.len();
    let system = System { types: types.to_vec(), names: vec![AtomName::default(); n], ..System::particles("molecule", n, 12.0) };
    Sample::new(Arc::new(system), positions.iter().map(|x| 0.1 * x).collect())
}

fn drawn(types: &[u32], seed: u64) -> Sample {
    let x: Vec<f64> = (0..types.len()).flat_map(|i| Noise::new(seed).normals(i as u32, 0, 0, Purpose::Displacement)).collect();
    molecule(types, &x)
}

fn model(head: Head) -> PainnModel {
    let config = PainnConfig { features: 24, layers: 2, radial: 60, cutoff: 12.0, head, ..PainnConfig::default() };
    let layout = super::config::Layout::new(&config);
    let padded = layout.initialise(Noise::new(3));
    let output = match head {
        Head::Direct => Meaning::Displacement { stiffness: EV_PER_SQUARE_ANGSTROM },
        Head::Energy => Meaning::Energy { unit: 4.184, per_atom: -3.0 },
    };
    PainnModel {
        values: layout.map.iter().map(|&p| padded[p]).collect(),
        config,
        output,
        references: if head == Head::Energy { vec![(6, -2.0), (8, 1.5)] } else { Vec::new() },
        types: vec![1, 6, 7, 8],
        noise: None,
        command: "test".into(),
        seed: 3,
    }
}

#[test]
fn providers_pass_the_common_checks() {
    let samples = vec![drawn(&[6, 1, 8, 1], 1), drawn(&[8], 2), drawn(&[1, 6, 7, 8, 1, 1, 6], 3)];
    let mut energy = PainnProvider::new(model(Head::Energy));
    testing::check_forces(&mut energy, &samples[2], 1e-5);
    for head in [Head::Direct, Head::Energy] {
        let mut provider = PainnProvider::new(model(head));
        testing::check_rigid_motion(&mut provider, &samples[2], 1e-9);
        testing::check_permutation(&mut provider, &samples[2], 1e-9);
        testing::check_batch_invariance(&mut provider, &samples);
    }
}

#[test]
fn pseudo_forces_have_no_net_part_and_state_their_stiffness() {
    let mut provider = PainnProvider::new(model(Head::Direct));
    let capabilities = scorefield_integrators::ForceProvider::capabilities(&provider).clone();
    assert_eq!(capabilities.kind, Kind::PseudoForce);
    assert!(!capabilities.conservative && !capabilities.energy && !capabilities.needs_noise_level);
    assert!((capabilities.stiffness.unwrap() - 9648.533).abs() < 1e-3);
    let sample = drawn(&[1, 6, 7, 8, 1, 1, 6], 3);
    let forces = testing::evaluate(&mut provider, &[sample], DType::F64, Want::FORCES).forces.to_f64();
    let size = forces.iter().fold(0.0f64, |m, f| m.max(f.abs()));
    for k in 0..3 {
        assert!(forces.iter().skip(k).step_by(3).sum::<f64>().abs() < 1e-12 * size);
    }
}

#[test]
fn files_round_trip_and_make_providers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    for head in [Head::Direct, Head::Energy] {
        let mut written = model(head);
        written.noise = (head == Head::Direct).then(NoiseSettings::default);
        written.values.iter_mut().for_each(|v| *v = f64::from(*v as f32));
        written.write(&file).unwrap();
        assert_eq!(PainnModel::read(&file).unwrap(), written);
        for words in [file.display().to_string(), format!("gpff:weights={}", file.display())] {
            let built = parse_spec(&words).unwrap().build().unwrap();
            assert_eq!(built.provider.capabilities().types, Some(vec![1, 6, 7, 8]));
        }
    }
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 7]).unwrap();
    assert!(PainnModel::read(&file).unwrap_err().to_string().contains("truncated"));
}

/// SchNetPack's PaiNN of ethanol and five structures with its energies and forces.
#[test]
fn published_ethanol_is_reproduced() {
    let (Some(file), Some(cases)) = (reference("weights/painn-ethanol/painn_1.npz"), reference("weights/painn-ethanol/reference.json"))
    else {
        return;
    };
    let model = PainnModel::read(&file).unwrap();
    let Meaning::Energy { unit, per_atom } = model.output else { panic!() };
    let mut provider = PainnProvider::new(model);
    let cases: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(cases).unwrap()).unwrap();
    let list = |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let rows = |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().flat_map(list).collect() };
    for dtype in [DType::F32, DType::F64] {
        let (mut worst, mut worst_energy) = (0.0f64, 0.0f64);
        for case in &cases {
            let types: Vec<u32> = list(&case["Z"]).iter().map(|&z| z as u32).collect();
            let sample = molecule(&types, &rows(&case["R"]));
            let out = testing::evaluate(&mut provider, &[sample], dtype, Want::ENERGY);
            let want = rows(&case["forces_kcal_per_A"]);
            let size = want.iter().fold(0.0f64, |m, f| m.max(f.abs()));
            for (f, w) in out.forces.to_f64().iter().zip(&want) {
                worst = worst.max((f / (10.0 * unit) - w).abs() / size);
            }
            let energy = out.energy[0] / unit - per_atom * types.len() as f64;
            worst_energy = worst_energy.max((energy - case["energy_kcal_without_mean"].as_f64().unwrap()).abs());
        }
        println!("{dtype}: forces within {worst:.1e} of the largest, energies within {worst_energy:.1e} kcal/mol");
        assert!(worst < 1e-5 && worst_energy < 2e-4, "{worst} {worst_energy}");
    }
}

/// Errors against density functional theory: rMD17's ethanol in extended XYZ (Å, eV).
#[test]
fn published_ethanol_has_its_error() {
    let (Some(file), Some(data)) =
        (reference("weights/painn-ethanol/painn_1.npz"), reference("data/rmd17-ethanol/dataset_ethanol_test_MD.xyz"))
    else {
        return;
    };
    let mut provider = PainnProvider::open(&file).unwrap();
    let text = std::fs::read_to_string(data).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (mut error, mut count) = (0.0, 0);
    for frame in lines.chunks(11).take(300) {
        let mut types = Vec::new();
        let (mut x, mut f) = (Vec::new(), Vec::new());
        for line in &frame[2..] {
            let words: Vec<&str> = line.split_whitespace().collect();
            types.push(match words[0] {
                "C" => 6,
                "O" => 8,
                _ => 1,
            });
            x.extend(words[1..4].iter().map(|w| w.parse::<f64>().unwrap()));
            f.extend(words[4..7].iter().map(|w| w.parse::<f64>().unwrap()));
        }
        let forces = testing::evaluate(&mut provider, &[molecule(&types, &x)], DType::F32, Want::FORCES).forces.to_f64();
        // 1 eV/Å is 964.85 kJ/mol/nm.
        error += forces.iter().zip(&f).map(|(a, b)| (a / 964.853_321 - b).abs()).sum::<f64>();
        count += f.len();
    }
    let mean = 1000.0 * error / count as f64;
    println!("mean absolute error of forces: {mean:.2} meV/Å");
    assert!((mean - 7.0).abs() < 0.05, "{mean}");
}

#[test]
fn evaluations_allocate_nothing() {
    for head in [Head::Direct, Head::Energy] {
        let mut provider = PainnProvider::new(model(head));
        let sample = drawn(&[6, 1, 8, 1], 1);
        let batch = Batch::uniform(sample.system.clone(), 3, 0).unwrap();
        let want = if head == Head::Energy { Want::ENERGY } else { Want::FORCES };
        for dtype in [DType::F32, DType::F64] {
            let state = State::at_rest(&batch, &sample.positions.repeat(3), dtype).unwrap();
            let mut out = scorefield_integrators::Output::new(&batch, dtype, want);
            use scorefield_integrators::ForceProvider;
            provider.prepare(&batch, dtype).unwrap();
            let input =
                scorefield_integrators::Input { batch: &batch, positions: state.positions(), cells: None, clock: state.clock, want };
            assert_eq!(testing::allocations::during(|| provider.evaluate(&input, &mut out).unwrap()), 0);
        }
    }
}

/// Three molecules, each many times.
fn molecules() -> Arc<Molecules> {
    let mut all = Molecules { offsets: vec![0], ..Molecules::default() };
    let water = (vec![8u32, 1, 1], vec![0.0f32, 0.0, 0.119, 0.0, 0.763, -0.477, 0.0, -0.763, -0.477]);
    let carbon_dioxide = (vec![6, 8, 8], vec![0.0, 0.0, 0.0, 1.16, 0.0, 0.0, -1.16, 0.0, 0.0]);
    let ammonia = (vec![7, 1, 1, 1], vec![0.0, 0.0, 0.1, 0.94, 0.0, -0.27, -0.47, 0.81, -0.27, -0.47, -0.81, -0.27]);
    for k in 0..60 {
        let (types, x) = [&water, &carbon_dioxide, &ammonia][k % 3];
        all.types.extend(types);
        all.positions.extend(x);
        all.offsets.push(all.types.len());
        if k < 45 { all.training.push(k as u32) } else { all.validation.push(k as u32) }
    }
    Arc::new(all)
}

fn plan(objective: Objective, steps: u64) -> Plan {
    Plan {
        config: PainnConfig {
            features: 16,
            layers: 2,
            radial: 100,
            cutoff: 25.0,
            head_layers: 2,
            time: objective == Objective::Noise,
            ..PainnConfig::default()
        },
        objective,
        noise: NoiseSettings { turn_below: 0.5, ..NoiseSettings::default() },
        batch: 24,
        rate: Rate::Cosine(CosineSchedule { peak: 3e-3, floor: 1e-5, warmup: 0, steps }),
        adam: AdamW { weight_decay: 0.0, ..AdamW::default() },
        clip: Some(Clip::Norm(0.5)),
        ema: Ema { decay: 0.99 },
        seed: 7,
    }
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn training_has_the_same_bits_for_any_threads_and_interruptions() {
    let run = |threads: usize, stop: Option<u64>| {
        in_pool(threads, || {
            let mut trainer = Trainer::<f32>::new(plan(Objective::PseudoForce, 12), molecules()).unwrap();
            while !trainer.is_done() {
                assert!(trainer.step().unwrap());
                if stop == Some(trainer.counters().step) {
                    let saved = trainer.save(serde_json::json!({})).unwrap();
                    let saved = crate::train::StateFile::from_bytes(Path::new("state"), &saved.to_bytes().unwrap()).unwrap();
                    trainer = Trainer::new(plan(Objective::PseudoForce, 12), molecules()).unwrap();
                    trainer.restore(saved, Path::new("state")).unwrap();
                }
            }
            trainer.averaged().unwrap()
        })
    };
    let plain = run(1, None);
    assert_eq!(plain, run(3, None));
    assert_eq!(plain, run(2, Some(5)));
}

/// Steps on a device and here: gradients of the first, parameters after `steps`, losses.
fn on_both<T: SimdReal + Root>(device: &Device, plan: &Plan, steps: u64) -> [(Vec<f64>, Vec<f64>, f64, f64); 2] {
    [None, Some(device)].map(|device| {
        let mut trainer = match device {
            None => Trainer::<T>::new(plan.clone(), molecules()),
            Some(device) => Trainer::on(device, plan.clone(), molecules()),
        }
        .unwrap();
        assert!(trainer.step().unwrap());
        let gradient = trainer.mean_gradient().unwrap();
        (1..steps).for_each(|_| assert!(trainer.step().unwrap()));
        let loss = trainer.take_interval(steps).0.mean();
        (gradient, trainer.averaged().unwrap(), loss, trainer.validate(10).unwrap().mean())
    })
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    let size = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

#[test]
fn training_on_a_device_is_that_of_this_machine() {
    for (objective, features, radial) in [(Objective::PseudoForce, 72, 100), (Objective::Noise, 16, 9)] {
        // Enough rows for sums in parts.
        let plan = Plan { config: PainnConfig { features, radial, ..plan(objective, 12).config }, batch: 100, ..plan(objective, 12) };
        // One order of the emulator's threads; the test below has the others.
        for device in testing::devices().into_iter().skip(2) {
            let [here, there] = on_both::<f64>(&device, &plan, 2);
            let errors = (furthest(&here.0, &there.0), furthest(&here.1, &there.1), there.2 / here.2 - 1.0, there.3 / here.3 - 1.0);
            println!(
                "{objective:?}, f64: gradient {:.1e}, parameters {:.1e}, losses {:.1e} {:.1e}",
                errors.0, errors.1, errors.2, errors.3
            );
            // Adam divides by what may be rounding.
            assert!(errors.0 < 1e-12 && errors.1 < 1e-7 && errors.2.abs() < 1e-8 && errors.3.abs() < 1e-7);
            let [here, there] = on_both::<f32>(&device, &plan, 1);
            let (gradient, loss) = (furthest(&here.0, &there.0), there.2 / here.2 - 1.0);
            println!("f32: gradient {gradient:.1e}, loss {loss:.1e}");
            assert!(gradient < 1e-5 && loss.abs() < 1e-5);
        }
    }
}

#[test]
fn training_on_a_device_has_the_same_bits_in_any_order_and_after_interruptions() {
    let plan = Plan { batch: 9, ..plan(Objective::PseudoForce, 4) };
    let run = |order: Order, stop: Option<u64>| {
        let new = || Trainer::<f32>::on(&Device::emulated(order), plan.clone(), molecules()).unwrap();
        let mut trainer = new();
        while !trainer.is_done() {
            assert!(trainer.step().unwrap());
            if stop == Some(trainer.counters().step) {
                let saved = trainer.save(serde_json::json!({})).unwrap();
                let saved = crate::train::StateFile::from_bytes(Path::new("state"), &saved.to_bytes().unwrap()).unwrap();
                trainer = new();
                trainer.restore(saved, Path::new("state")).unwrap();
            }
        }
        trainer.averaged().unwrap()
    };
    let plain = run(Order::Forwards, None);
    for (order, stop) in [(Order::Backwards, Some(2)), (Order::Shuffled, None)] {
        assert!(plain == run(order, stop), "{order:?}");
    }
}

#[test]
fn kernels_of_training_compile() {
    testing::check_kernels("training of PaiNN", |nvrtc, dtype, target| nvrtc.check_kernels(super::batched::SOURCE, dtype, target));
}

#[test]
fn training_learns_three_molecules() {
    for objective in [Objective::PseudoForce, Objective::Noise] {
        let (before, after) = in_pool(2, || {
            let mut trainer = Trainer::<f32>::new(plan(objective, 400), molecules()).unwrap();
            let before = trainer.validate(100).unwrap().mean();
            while !trainer.is_done() {
                assert!(trainer.step().unwrap());
            }
            (before, trainer.validate(100).unwrap())
        });
        println!("{objective:?}: {before:.3} to {:.3}", after.mean());
        assert!(after.mean() < 0.6 * before && after.rows == 15, "{objective:?}: {before} {}", after.mean());
    }
}

#[test]
fn plans_and_data_that_make_no_sense_are_refused() {
    let refused = |plan: Plan, data: Molecules| Trainer::<f32>::new(plan, Arc::new(data)).map(|_| ()).unwrap_err().to_string();
    let (good, data) = (plan(Objective::PseudoForce, 3), Molecules::clone(&molecules()));
    assert!(refused(Plan { batch: 0, ..good.clone() }, data.clone()).contains("batch"));
    assert!(refused(Plan { objective: Objective::Noise, ..good.clone() }, data.clone()).contains("time = true"));
    assert!(refused(Plan { noise: NoiseSettings { smallest: 0.0, ..good.noise }, ..good.clone() }, data.clone()).contains("noise"));
    assert!(refused(good.clone(), Molecules { training: vec![], ..data.clone() }).contains("nothing to train on"));
    assert!(refused(good.clone(), Molecules { training: vec![60], ..data.clone() }).contains("nothing to train on"));
    let mut odd = data.clone();
    odd.types[0] = 100;
    assert!(refused(good, odd).contains("atomic numbers"));
}
