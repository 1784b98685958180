//! The model that other programs call, beside the contract it stands on.

use super::*;

fn open(json: &str) -> Model {
    Model::open(&Spec::from_json(json).unwrap()).unwrap()
}

fn refused(json: &str) -> String {
    match Spec::from_json(json).and_then(|s| Model::open(&s)) {
        Ok(_) => panic!("{json} was accepted"),
        Err(e) => e.to_string(),
    }
}

const ARGON: &str = "lj:sigma=3.405 A,epsilon=0.0103 eV";

#[test]
fn batches_are_their_structures_whatever_the_threads() {
    let positions: Vec<f64> = (0..5 * 9).map(|k| 0.4 * (k % 9) as f64 + 0.011 * (k * k % 7) as f64).collect();
    let spec = |threads| format!(r#"{{"model": "{ARGON}", "types": ["Ar", 18, "ar"], "threads": {threads}}}"#);
    let (mut one, mut three) = (open(&spec(1)), open(&spec(3)));
    let evaluate = |model: &mut Model, x: &[f64]| {
        let (mut forces, mut energy, mut virial) = (vec![0.0; x.len()], vec![0.0; x.len() / 9], vec![0.0; x.len()]);
        let mut results = Results { forces: Some(&mut forces), energy: Some(&mut energy), virial: Some(&mut virial), ..Results::default() };
        model.evaluate(x, None, &mut results).unwrap();
        (forces, energy, virial)
    };
    let whole = evaluate(&mut three, &positions);
    assert_eq!(whole, evaluate(&mut one, &positions));
    for b in 0..5 {
        let alone = evaluate(&mut one, &positions[9 * b..9 * b + 9]);
        assert_eq!((&alone.0[..], alone.1[0], &alone.2[..]), (&whole.0[9 * b..9 * b + 9], whole.1[b], &whole.2[9 * b..9 * b + 9]));
        // The trace of Σ r ⊗ f is −dE under a stretch of all coordinates.
        let h = 1e-6;
        let scaled = |s: f64| positions[9 * b..9 * b + 9].iter().map(|x| x * s).collect::<Vec<_>>();
        let mut energy = |s: f64| evaluate(&mut one, &scaled(s)).1[0];
        let slope = (energy(1.0 + h) - energy(1.0 - h)) / (2.0 * h);
        let trace = alone.2[0] + alone.2[4] + alone.2[8];
        assert!((trace + slope).abs() < 1e-6 * trace.abs().max(1.0), "{trace} {slope}");
    }
}

#[test]
fn cells_virials_and_atom_energies_are_the_providers() {
    let mut model = open(r#"{"model": "lj:sigma=3.405 A,epsilon=0.0103 eV,cutoff=8 A"}"#);
    let (x, cell) = (model.start().unwrap().to_vec(), *model.cell().unwrap());
    let n = model.atoms().unwrap();
    let (mut energy, mut atoms, mut virial) = ([0.0], vec![0.0; n], [0.0; 9]);
    let mut results = Results { energy: Some(&mut energy), atom_energy: Some(&mut atoms), virial: Some(&mut virial), ..Results::default() };
    model.evaluate(&x, Some(&cell), &mut results).unwrap();
    assert!((atoms.iter().sum::<f64>() / energy[0] - 1.0).abs() < 1e-12);
    let mut scaled = |s: f64| {
        let (x, cell) = (x.iter().map(|x| x * s).collect::<Vec<_>>(), cell.map(|c| c * s));
        let mut energy = [0.0];
        model.evaluate(&x, Some(&cell), &mut Results { energy: Some(&mut energy), ..Results::default() }).unwrap();
        energy[0]
    };
    let slope = (scaled(1.0 + 1e-6) - scaled(1.0 - 1e-6)) / 2e-6;
    let trace = virial[0] + virial[4] + virial[8];
    assert!((trace + slope).abs() < 1e-4 * trace.abs(), "{trace} {slope}");
    assert!(model.describe()["local_range_nm"] == 0.8);
}

#[test]
fn what_cannot_be_done_is_said() {
    assert!(refused("{").contains("cannot be read"));
    assert!(refused("{}").contains("`model` is missing"));
    assert!(refused(r#"{"model": "lj", "typs": []}"#).contains("typs"));
    assert!(refused(r#"{"model": "lk"}"#).contains("unknown model `lk`"));
    assert!(refused(r#"{"model": "lj", "types": ["Qq"]}"#).contains("`Qq` is no element"));
    assert!(refused(r#"{"model": "lj", "types": []}"#).contains("no atoms"));
    assert!(refused(r#"{"model": "lj", "threads": 0}"#).contains("threads = 0"));
    assert!(refused(r#"{"model": "lj", "types": [1], "masses": [1, 2]}"#).contains("masses"));
    assert!(refused(r#"{"model": "lj", "types": [1], "positions": [[0,0,0],[1,0,0]]}"#).contains("start coordinates"));
    assert!(refused(r#"{"model": "lj", "structure": "missing.xyz"}"#).contains("missing.xyz"));

    let mut model = open(&format!(r#"{{"model": "{ARGON}", "types": [18, 18]}}"#));
    let mut forces = [0.0; 6];
    let mut fail = |x: &[f64], cells: Option<&[f64]>, uncertain: bool| {
        let mut deviation = [0.0];
        let mut results = Results { forces: Some(&mut forces), ..Results::default() };
        results.energy_deviation = uncertain.then_some(&mut deviation);
        model.evaluate(x, cells, &mut results).unwrap_err().to_string()
    };
    assert!(fail(&[0.0; 5], None, false).contains("5 numbers"));
    assert!(fail(&[], None, false).contains("0 numbers"));
    assert!(fail(&[0.0, 0.0, f64::NAN, 0.4, 0.0, 0.0], None, false).contains("coordinate z of atom 1"));
    assert!(fail(&[0.0; 6], None, false).contains("overlapping"));
    assert!(fail(&[0.0, 0.0, 0.0, 0.4, 0.0, 0.0], Some(&[1.0; 9]), false).contains("periodic"));
    assert!(fail(&[0.0, 0.0, 0.0, 0.4, 0.0, 0.0], Some(&[1.0; 8]), false).contains("9 numbers"));
    assert!(fail(&[0.0, 0.0, 0.0, 0.4, 0.0, 0.0], None, true).contains("uncertainty"));
    assert!(fail(&[0.0; 12], None, false).contains("forces has room for 6"));
}
