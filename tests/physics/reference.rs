//! Energies and forces against OpenMM for the alanine dipeptide of the reference data.

use super::common::{Molecule, evaluate, numbers, reference, relative_error};
use scorefield_integrators::{DType, ForceProvider};
use scorefield_models::parse_spec;

/// The forces of the system file `path`, each alone, with their types in file order.
fn alone(path: &str) -> Vec<(String, Box<dyn ForceProvider>)> {
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once("<Forces>").unwrap();
    let (forces, tail) = rest.split_once("</Forces>").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("alone.xml");
    let mut out = Vec::new();
    for force in forces.split("<Force ").skip(1) {
        // Without terms: the remover of centre-of-mass motion.
        let Some((force, _)) = force.split_once("</Force>") else { continue };
        let kind = force.split_once("type=\"").unwrap().1.split_once('"').unwrap().0;
        let force = format!("<Force {force}</Force>");
        std::fs::write(&file, format!("{head}<Forces>{force}</Forces>{tail}")).unwrap();
        let built = parse_spec(&format!("mm:{}", file.display())).unwrap().build();
        out.push((kind.to_owned(), built.unwrap_or_else(|e| panic!("{kind}: {e}")).provider));
    }
    out
}

fn check(molecule: &Molecule, parts: &[(String, Box<dyn ForceProvider>)], name: &str) {
    let [mut worst_energy, mut worst_f64, mut worst_f32] = [0.0f64; 3];
    for (frame, x) in molecule.reference.iter().zip(&molecule.frames) {
        let (energy, forces) = (frame["energy_kJ_mol"].as_f64().unwrap(), numbers(&frame["forces_kJ_mol_nm"]));
        let n3 = x.len();
        // One replica is computed in lanes of atoms, many in lanes of replicas.
        for replicas in [1, 16] {
            let (got, f) = evaluate(&*molecule.provider, &molecule.system, &x.repeat(replicas), DType::F64);
            assert!((got[0] - energy).abs() <= 1e-6 * energy.abs(), "{name}: {} instead of {energy}", got[0]);
            let error = relative_error(&f[..n3], &forces);
            worst_f64 = worst_f64.max(error);
            assert!(error <= 1e-6, "{name} in f64: forces are off by {error:.1e}");

            let (_, f) = evaluate(&*molecule.provider, &molecule.system, &x.repeat(replicas), DType::F32);
            let error = relative_error(&f[..n3], &forces);
            // Near a minimum forces cancel, and rounding the coordinates to f32 already costs more than 1e-4: there the
            // kernel may add no more than twice that.
            let rounded: Vec<f64> = x.iter().map(|&x| f64::from(x as f32)).collect();
            let (_, f) = evaluate(&*molecule.provider, &molecule.system, &rounded, DType::F64);
            let inherent = relative_error(&f, &forces);
            let near_minimum = forces.iter().fold(0.0f64, |m, f| m.max(f.abs())) < 300.0;
            if near_minimum {
                assert!(
                    error <= 3.0 * inherent,
                    "{name} in f32 near a minimum: forces are off by {error:.1e}, of which input {inherent:.1e}"
                );
            } else {
                worst_f32 = worst_f32.max(error);
                assert!(error <= 1e-4, "{name} in f32: forces are off by {error:.1e}, of which input {inherent:.1e}");
            }
        }
        // Every component by itself, and none left out.
        let components = frame["components"].as_object().unwrap();
        for (key, wanted) in components.iter().filter(|(k, _)| !k.ends_with("CMMotionRemover")) {
            let (_, kind) = key.split_once(':').expect("number:name");
            let wanted = wanted.as_f64().unwrap();
            let (_, part) = parts.iter().find(|(k, _)| k == kind).unwrap_or_else(|| panic!("{name}: {key} is not in the file"));
            let got = evaluate(&**part, &molecule.system, x, DType::F64).0[0];
            worst_energy = worst_energy.max((got - wanted).abs() / wanted.abs());
            assert!((got - wanted).abs() <= 1e-6 * wanted.abs(), "{name} {key}: {got} instead of {wanted}");
        }
    }
    eprintln!("{name}: components within {worst_energy:.1e}, forces within {worst_f64:.1e} (f64) and {worst_f32:.1e} (f32)");
}

#[test]
fn alanine_dipeptide_agrees_with_openmm() {
    for name in ["aldp-amber99sbildn-obc1", "aldp-amber99sbildn-vacuum"] {
        let Some(system) = reference(&format!("data/aldp/{name}.system.xml")) else { return };
        let path = system.to_str().unwrap().trim_end_matches(".system.xml");
        if reference(&format!("data/aldp/{name}.reference.json")).is_none() {
            return;
        }
        check(&Molecule::read(path), &alone(system.to_str().unwrap()), name);
    }
}
