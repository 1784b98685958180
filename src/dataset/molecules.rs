//! Data of several molecules, which a transferable model learns together.

use super::{DataSettings, Paths, TrainingData};
use crate::checkpoint::Fnv;
use crate::error::{Error, Result, usage};
use scorefield_integrators::UnitSystem;
use scorefield_models::scoremd::transfer::{TrainedSystem, kinds};
use std::path::{Path, PathBuf};

/// Files of one molecule: its name, its beads, its frames.
struct Files {
    name: String,
    beads: PathBuf,
    frames: PathBuf,
}

/// Reads every molecule of `folder` as `settings` say; all get the same scale.
pub(super) fn load(folder: &Path, settings: &DataSettings, dimension: Option<usize>, seed: u64) -> Result<TrainingData> {
    if settings.units == Some(UnitSystem::Reduced) {
        return usage("[data]: systems are molecules; toys have no residues");
    }
    for (key, given) in
        [("trajectory", settings.trajectory.is_some()), ("topology", settings.topology.is_some()), ("forces", settings.forces.is_some())]
    {
        if given {
            return usage(format!("[data]: {key} and systems are both given; each molecule of the folder has its own files"));
        }
    }
    let mut all: Option<TrainingData> = None;
    let mut hash = Fnv::default();
    for (index, Files { name, beads, frames }) in files(folder)?.into_iter().enumerate() {
        let one = DataSettings {
            trajectory: Some(Paths::One(frames)),
            topology: Some(beads.clone()),
            systems: None,
            scale: Some(1.0),
            ..settings.clone()
        };
        let one = TrainingData::load(&one, Path::new(""), dimension, seed)?;
        let kinds = kinds(&one.system).map_err(|e| Error::Usage(format!("[data]: {}: {e}", beads.display())))?;
        hash.update(one.hash.as_bytes());
        hash.update(name.as_bytes());
        let molecule = TrainedSystem { name, kinds, pdb: one.pdb.clone().unwrap_or_default() };
        let count = one.len();
        let data = match &mut all {
            None => all.insert(one),
            Some(all) if all.system.types == one.system.types => {
                all.x.extend(one.x);
                all.inputs.extend(one.inputs);
                all
            }
            Some(all) => {
                return usage(format!(
                    "[data]: {}: its {} beads are not the same elements in the same order as the {} of {}",
                    beads.display(),
                    one.system.len(),
                    all.system.len(),
                    all.molecules.first().map_or("the first", |m| m.name.as_str())
                ));
            }
        };
        data.molecules.push(molecule);
        data.of_molecule.extend(std::iter::repeat_n(index as u32, count));
    }
    let Some(mut data) = all else {
        return usage(format!("[data]: systems: {} has no NAME.pdb with a trajectory NAME.* beside it", folder.display()));
    };
    data.pdb = None;
    data.scale = match settings.scale {
        Some(c) if c > 0.0 && c.is_finite() => c,
        Some(c) => return usage(format!("[data]: scale = {c} is refused; it must be finite and above zero")),
        None => 1.0 / super::deviation(data.x.iter().map(|&x| x.into()))?,
    };
    data.x.iter_mut().for_each(|x| *x = (f64::from(*x) * data.scale) as f32);
    hash.update(&data.scale.to_le_bytes());
    data.hash = hash.finish();
    Ok(data)
}

/// The molecules of a folder, by name.
fn files(folder: &Path) -> Result<Vec<Files>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file("read the folder", folder, e))?;
    let mut paths: Vec<PathBuf> =
        entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(|e| Error::file("read the folder", folder, e))?;
    paths.sort();
    let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut found = Vec::new();
    for beads in paths.iter().filter(|p| extension(p) == "pdb") {
        let trajectory = |p: &&PathBuf| {
            p.file_stem() == beads.file_stem()
                && ["dcd", "xtc", "trr", "nc", "xyz", "extxyz", "npy", "npz", "safetensors"].contains(&extension(p).as_str())
        };
        let mut trajectories = paths.iter().filter(trajectory);
        let name = beads.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        match (trajectories.next(), trajectories.next()) {
            (Some(frames), None) => found.push(Files { name, beads: beads.clone(), frames: frames.clone() }),
            (None, _) => return usage(format!("[data]: systems: there is no trajectory {name}.* beside {}", beads.display())),
            (Some(a), Some(b)) => {
                return usage(format!(
                    "[data]: systems: {} and {} are both frames of {name}; one of them must go",
                    a.display(),
                    b.display()
                ));
            }
        }
    }
    Ok(found)
}
