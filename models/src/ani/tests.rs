use super::*;
use crate::testing::{self, Sample};
use scorefield_integrators::units::KJ_PER_HARTREE;
use scorefield_integrators::{DType, System, Want};
use std::path::PathBuf;

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
    for (model, weights) in
        [(AniModel::Ani2x, "ani2x_8x_hcnof"), (AniModel::Ani1x, "ani1x_8x"), (AniModel::Ani1ccx, "ani1ccx_8x")]
    {
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
                let mean = members.iter().sum::<f64>() / members.len() as f64;
                let spread = (members.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / (members.len() - 1) as f64).sqrt();
                let difference = (out.uncertainty.energy[b] / KJ_PER_HARTREE - spread).abs();
                assert!(difference <= if dtype == DType::F64 { 1e-9 } else { 1e-6 }, "spread differs by {difference}");
            }
            println!("{} {dtype}: energies within {worst_e:.1e} Ha, forces within {worst_f:.1e} Ha/Å", model.name());
            let tolerance = if dtype == DType::F64 { 1e-6 } else { 5e-5 };
            assert!(worst_e <= tolerance && worst_f <= tolerance);
        }
    }
}

#[test]
#[ignore]
fn timing() {
    use scorefield_integrators::{Batch, Clock, ForceProvider, Input, Output, State};
    let Some(file) = reference("weights/ani/ani2x_8x_hcnof.safetensors") else { return };
    let all: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file.with_file_name("reference_energies_forces.json")).unwrap()).unwrap();
    let c = &all["ani2x"]["CH3CH2OH"];
    let c2 = &all["ani2x"]["CH3CONH2"];
    // 18 atoms: two molecules beside each other.
    let z: Vec<u32> = [c, c2].iter().flat_map(|c| c["z"].as_array().unwrap().iter().map(|z| z.as_u64().unwrap() as u32)).collect();
    let mut x = rows(&c["pos_A"]);
    x.extend(rows(&c2["pos_A"]).iter().enumerate().map(|(i, v)| if i % 3 == 2 { v + 3.0 } else { *v }));
    let s = molecule("18", z, &x);
    let mut p = AniProvider::open(&file, None).unwrap();
    for dtype in [DType::F32, DType::F64] {
        for n in [1usize, 16, 64] {
            let samples: Vec<Sample> = (0..n).map(|i| s.displaced(0.002, i as u64)).collect();
            let batch = Batch::uniform(s.system.clone(), n, 0).unwrap();
            let xs: Vec<f64> = samples.iter().flat_map(|s| s.positions.clone()).collect();
            let state = State::at_rest(&batch, &xs, dtype).unwrap();
            let mut out = Output::new(&batch, dtype, Want::ENERGY);
            p.prepare(&batch, dtype).unwrap();
            let mut times = vec![];
            for _ in 0..(400 / n).max(20) {
                let t = std::time::Instant::now();
                p.evaluate(&Input { batch: &batch, positions: state.positions(), cells: None, clock: Clock::Iteration, want: Want::ENERGY }, &mut out).unwrap();
                times.push(t.elapsed().as_secs_f64() * 1e3 / n as f64);
            }
            times.sort_by(f64::total_cmp);
            println!("{dtype} batch {n}: min {:.3} median {:.3} ms per molecule", times[0], times[times.len() / 2]);
        }
    }
}
