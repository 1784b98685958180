//! Training data: what is read is what was written, and everything that must be refused.

use super::*;
use crate::io::arrays::{Arrays, write_arrays};
use crate::io::write_frames;
use std::collections::BTreeMap;

const PDB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/alanine-dipeptide/alanine-dipeptide.pdb");
/// C N CA C N of the backbone.
const BEADS: [usize; 5] = [4, 6, 8, 14, 16];

/// `n` frames of the peptide, each turned, moved and shaken.
fn frames(n: usize) -> Vec<Frame> {
    let first = read_structure(PDB).unwrap();
    let noise = Noise::new(5);
    (0..n as u32)
        .map(|k| {
            let mut frame = first.clone();
            let turn = nalgebra::Rotation3::from_euler_angles(0.1 * f64::from(k), 0.7, -0.3 * f64::from(k));
            for i in 0..frame.len() {
                let shake = noise.normals(i as u32, k, 0, Purpose::Displacement);
                let p = turn * Vector3::from_fn(|a, _| first.positions[3 * i + a] + 0.003 * shake[a]);
                frame.positions[3 * i..3 * i + 3].copy_from_slice((p + Vector3::new(0.2 * f64::from(k), 1.0, 0.0)).as_slice());
            }
            frame.velocities = None;
            frame
        })
        .collect()
}

fn array(shape: &[usize], values: Vec<f64>) -> Tensor {
    Tensor { shape: shape.to_vec(), values: Values::F64(values) }
}

fn settings(trajectory: &str) -> DataSettings {
    DataSettings {
        trajectory: Some(Paths::One(trajectory.into())),
        topology: Some(PDB.into()),
        select: Some("4,6,8,14,16".into()),
        temperature: Some("300 K".parse().unwrap()),
        ..DataSettings::default()
    }
}

#[test]
fn trajectories_and_arrays_of_the_same_frames_are_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let frames = frames(20);
    write_frames(dir.path().join("a.dcd"), None, &frames).unwrap();
    let beads = |i: usize| BEADS.iter().flat_map(move |&b| (0..3).map(move |a| 3 * b + a)).map(move |k| (i, k));
    let all: Vec<f64> = frames.iter().flat_map(|f| f.positions.iter().map(|x| 10.0 * x)).collect();
    let few: Vec<f64> = (0..20).flat_map(beads).map(|(i, k)| frames[i].positions[k]).collect();
    let write =
        |name: &str, t: Tensor| write_arrays(dir.path().join(name), &Arrays::from([("positions".into(), t)]), &BTreeMap::new()).unwrap();
    write("all.npy", array(&[20, 22, 3], all));
    write("few.safetensors", array(&[20, 15], few.clone()));
    write("few.npz", array(&[20, 5, 3], few));
    let load = |s: &DataSettings| TrainingData::load(s, dir.path(), Some(15), 0).unwrap();
    let dcd = load(&settings("a.dcd"));
    assert_eq!((dcd.len(), dcd.dimension, dcd.system.types.as_slice()), (20, 15, &[6, 7, 6, 6, 7][..]));
    assert!(dcd.pdb.as_deref().unwrap().lines().filter(|l| l.starts_with("ATOM") || l.starts_with("HETATM")).count() == 5);
    // The scale makes the spread 1, and centres are removed.
    let spread = dcd.x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / dcd.x.len() as f64;
    assert!((spread - 1.0).abs() < 1e-5 && dcd.scale > 1.0, "{spread}");
    let close = |other: &TrainingData, tolerance: f32| {
        assert!(dcd.x.iter().zip(&other.x).all(|(a, b)| (a - b).abs() < tolerance));
        assert!((other.scale / dcd.scale - 1.0).abs() < 1e-5);
    };
    let npy = load(&DataSettings { length_unit: Some("A".into()), ..settings("all.npy") });
    // A DCD file holds single precision of Å.
    close(&npy, 2e-5);
    for name in ["few.safetensors", "few.npz"] {
        let other = load(&settings(name));
        close(&other, 2e-5);
        assert!(npy.x.iter().zip(&other.x).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    // The same frames again have the same hash; other frames another one, drawn ones are some of all.
    assert_eq!(load(&settings("a.dcd")).hash, dcd.hash);
    let drawn = load(&DataSettings { limit: Some(17), scale: Some(dcd.scale), ..settings("a.dcd") });
    assert_eq!(drawn.len(), 17);
    assert_ne!(drawn.hash, dcd.hash);
    let two = DataSettings { trajectory: Some(Paths::Several(vec!["few.npz".into(), "few.npz".into()])), ..settings("") };
    assert_eq!(load(&two).len(), 40);
    assert_eq!(load(&DataSettings { frames: Some("2:".into()), ..settings("few.npz") }).len(), 18);
}

#[test]
fn forces_turn_with_their_frames() {
    let dir = tempfile::tempdir().unwrap();
    // Forces along each frame's first bond are along the first bond of aligned frames.
    let mut frames = frames(16);
    for f in &mut frames {
        let bond: Vec<f64> = (0..3).map(|a| f.positions[3 * BEADS[1] + a] - f.positions[3 * BEADS[0] + a]).collect();
        f.forces = Some(bond.iter().copied().cycle().take(66).collect());
    }
    write_frames(dir.path().join("a.extxyz"), None, &frames).unwrap();
    let data =
        TrainingData::load(&DataSettings { forces: Some("trajectory".into()), ..settings("a.extxyz") }, dir.path(), Some(15), 0).unwrap();
    let scores = data.scores.unwrap();
    for i in 0..16 {
        for a in 0..3 {
            let bond = f64::from(data.x[15 * i + 3 + a] - data.x[15 * i + a]) / data.scale;
            for bead in 0..5 {
                let force = f64::from(scores[15 * i + 3 * bead + a]) * BOLTZMANN * 300.0 * data.scale;
                assert!((force - bond).abs() < 1e-5, "{force} {bond}");
            }
        }
    }
}

#[test]
fn toys_keep_their_axes_and_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let values = (0..16).flat_map(|k| [0.1 * f64::from(k), -0.05, 0.0]).collect();
    write_arrays(dir.path().join("a.npy"), &Arrays::from([("array".into(), array(&[16, 1, 3], values))]), &BTreeMap::new()).unwrap();
    let toy = DataSettings {
        trajectory: Some(Paths::One("a.npy".into())),
        units: Some(UnitSystem::Reduced),
        temperature: Some("23".parse().unwrap()),
        mass: Some(0.5),
        ..DataSettings::default()
    };
    let data = TrainingData::load(&toy, dir.path(), Some(2), 0).unwrap();
    assert_eq!((data.dimension, data.scale, data.temperature, data.pdb.clone()), (2, 1.0, 23.0, None));
    assert_eq!(data.system.masses, [0.5]);
    assert!((data.x[2 * 3] - 0.3).abs() < 1e-6 && (data.x[2 * 3 + 1] + 0.05).abs() < 1e-6, "{:?}", &data.x[6..8]);
}

#[test]
fn bad_data_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let good = frames(16);
    write_frames(dir.path().join("good.dcd"), None, &good).unwrap();
    write_frames(dir.path().join("few.dcd"), None, &good[..5]).unwrap();
    let write = |name: &str, shape: &[usize], values: Vec<f64>| {
        write_arrays(dir.path().join(name), &Arrays::from([("array".into(), array(shape, values))]), &BTreeMap::new()).unwrap();
    };
    let flat = |factor: f64| -> Vec<f64> { good.iter().flat_map(|f| f.positions.iter().map(move |x| factor * x)).collect() };
    write("nm.npy", &[16, 22, 3], flat(1.0));
    write("angstrom.npy", &[16, 22, 3], flat(10.0));
    let mut broken = flat(1.0);
    broken[66 * 3 + 12] = f64::NAN;
    write("nan.npy", &[16, 22, 3], broken);
    write("odd.npy", &[16, 7], vec![0.0; 112]);
    write("vector.npy", &[112], vec![0.0; 112]);
    write("same.npy", &[16, 22, 3], good[0].positions.repeat(16));
    let base = settings("good.dcd");
    let several = |a: &str, b: &str| Some(Paths::Several(vec![a.into(), b.into()]));
    let none = DataSettings { trajectory: None, ..base.clone() };
    for (bad, parts) in [
        (DataSettings { temperature: None, ..base.clone() }, vec!["temperature is missing", "\"300 K\""]),
        (DataSettings { temperature: Some("300".parse().unwrap()), ..base.clone() }, vec!["temperature", "300 K"]),
        (DataSettings { temperature: Some("-3 K".parse().unwrap()), ..base.clone() }, vec!["not above zero"]),
        (none, vec!["trajectory is missing"]),
        (settings("few.dcd"), vec!["5 frames", "16 or more"]),
        (settings("absent.dcd"), vec!["absent.dcd"]),
        (DataSettings { select: Some("0-3".into()), ..base.clone() }, vec!["12 coordinates (4 atoms)", "has 15", "select"]),
        (DataSettings { select: Some("0-99".into()), ..base.clone() }, vec!["22 atoms"]),
        (DataSettings { select: None, ..base.clone() }, vec!["66 coordinates", "has 15"]),
        (DataSettings { frames: Some("16:".into()), ..base.clone() }, vec!["no frame is in the range"]),
        (DataSettings { topology: None, ..base.clone() }, vec!["topology"]),
        (DataSettings { scale: Some(-1.0), ..base.clone() }, vec!["scale = -1"]),
        (settings("nan.npy"), vec!["nan.npy, frame 3", "not finite"]),
        (settings("angstrom.npy"), vec!["neighbouring beads", "length-unit = \"A\""]),
        (DataSettings { trajectory: several("nm.npy", "angstrom.npy"), ..base.clone() }, vec!["angstrom.npy", "different units"]),
        (settings("odd.npy"), vec!["7 coordinates", "22 atoms"]),
        (settings("vector.npy"), vec!["[112]"]),
        (DataSettings { topology: None, select: None, ..settings("nm.npy") }, vec!["66 coordinates", "has 15"]),
        (DataSettings { length_unit: Some("K".into()), ..settings("nm.npy") }, vec!["length-unit"]),
        (DataSettings { forces: Some("trajectory".into()), ..base.clone() }, vec!["not all frames hold forces"]),
        (DataSettings { forces: Some("odd.npy".into()), ..base.clone() }, vec!["odd.npy"]),
    ] {
        let message = TrainingData::load(&bad, dir.path(), Some(15), 0).unwrap_err().to_string();
        assert!(parts.iter().all(|p| message.contains(p)), "{parts:?}: {message}");
    }
    // Frames that are all the same once they are aligned still have a size; one bead that never moves has none.
    assert!(TrainingData::load(&settings("same.npy"), dir.path(), Some(15), 0).is_ok());
    write("point.npy", &[16, 1], vec![2.0; 16]);
    let toy = DataSettings {
        units: Some(UnitSystem::Reduced),
        temperature: Some("1".parse().unwrap()),
        topology: None,
        select: None,
        ..settings("point.npy")
    };
    assert!(TrainingData::load(&toy, dir.path(), Some(1), 0).is_ok());
    // A recipe that is copied elsewhere still finds its files.
    let moved = DataSettings { forces: Some("trajectory".into()), ..base.clone() }.absolute(dir.path());
    assert_eq!(moved.trajectory, Some(Paths::One(dir.path().join("good.dcd"))));
    assert_eq!(moved.forces, Some("trajectory".into()));
    // Elements and masses must be known.
    let message = TrainingData::load(&DataSettings { topology: None, select: None, ..settings("nm.npy") }, dir.path(), None, 0)
        .unwrap_err()
        .to_string();
    assert!(message.contains("add `topology`"), "{message}");
}
