//! Training data: frames of trajectories or arrays, as one array of model coordinates with everything that a model must
//! know about where they came from.

mod molecules;

use crate::analysis::geometry::superpose;
use crate::checkpoint::{Fnv, InputFile};
use crate::error::{Error, Result, usage};
use crate::io::arrays::{Tensor, Values, read_arrays};
use crate::io::{Frame, FrameRange, ReadOptions, Selection, pdb_text, read_frames, read_structure};
use nalgebra::{Matrix3, Vector3};
use scorefield_integrators::units::BOLTZMANN;
use scorefield_integrators::{Dimension, Noise, Purpose, Quantity, System, UnitSystem};
use scorefield_models::scoremd::transfer::TrainedSystem;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest array that is read.
const MOST_BYTES: u64 = 8 << 30;
/// Fewest frames that are worth training on.
const FEWEST_FRAMES: usize = 16;
/// What readers of structure files divide by; toys are written in their own numbers.
const ANGSTROMS_PER_NM: f64 = 10.0;
/// What `forces` says where frames of the trajectory hold them.
const IN_TRAJECTORY: &str = "trajectory";
/// Nearest neighbours of beads are this far apart (nm), else the unit is not what was said.
const NEIGHBOURS_NM: std::ops::Range<f64> = 0.05..1.0;
/// Of frames that are left as they are turned.
const NO_ROTATION: [f64; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

/// One path or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Paths {
    /// One.
    One(PathBuf),
    /// Several, one after the other.
    Several(Vec<PathBuf>),
}

impl Paths {
    fn list(&self) -> &[PathBuf] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Several(paths) => paths,
        }
    }
}

/// Which data to train on: the table `[data]` of a recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DataSettings {
    /// Trajectories, or arrays `[n, N, 3]` or `[n, D]` in `.npy`, `.npz` or `.safetensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trajectory: Option<Paths>,
    /// Folder of several molecules, for transferable models: for each a NAME.pdb of its beads and a trajectory NAME.* of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systems: Option<PathBuf>,
    /// Structure file that says which atoms they hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<PathBuf>,
    /// Atoms that become beads: indices from 0 (`4,6,8,14,16`) or a selection (`name CA`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select: Option<String>,
    /// Frames of each file, `first:last:stride`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<String>,
    /// At most so many frames (of each molecule), drawn at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Temperature of the data: `300 K`, or kT for toys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Quantity>,
    /// `si` or `reduced` (toys).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<UnitSystem>,
    /// Turn frames onto the first one before their spread is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<bool>,
    /// Model coordinates per nm; 1/(standard deviation of all coordinates) if left out, 1 for toys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Name of the array in a file of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<String>,
    /// Unit of length of arrays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_unit: Option<String>,
    /// Forces: an array beside the trajectory, or `trajectory` where its frames hold them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forces: Option<PathBuf>,
    /// Unit of that array.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_unit: Option<String>,
    /// Mass of a toy's particle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mass: Option<f64>,
    /// Simulate the data with this program instead of reading them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulate: Option<SimulateData>,
}

impl DataSettings {
    /// The same with paths that mean the same everywhere; relative ones are those of `folder`.
    pub fn absolute(&self, folder: &Path) -> Self {
        let join = |path: &PathBuf| folder.join(path);
        // The word for forces in the trajectory itself is no path.
        let forces = self.forces.as_ref().map(|f| if f == Path::new(IN_TRAJECTORY) { f.clone() } else { join(f) });
        DataSettings {
            trajectory: self.trajectory.as_ref().map(|t| match t {
                Paths::One(path) => Paths::One(join(path)),
                Paths::Several(paths) => Paths::Several(paths.iter().map(join).collect()),
            }),
            topology: self.topology.as_ref().map(join),
            systems: self.systems.as_ref().map(join),
            forces,
            ..self.clone()
        }
    }
}

/// Data of a built-in toy, made when they are needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SimulateData {
    /// Force provider of reduced units, for example `muller-brown:mass=0.5`.
    pub model: String,
    /// Replicas.
    pub replicas: usize,
    /// Time step.
    pub dt: f64,
    /// Friction.
    pub friction: f64,
    /// Steps that are thrown away first.
    pub equilibration: u64,
    /// Steps between frames.
    pub every: u64,
    /// Frames of all replicas together.
    pub frames: usize,
    /// Seed of the simulation.
    #[serde(default)]
    pub seed: u64,
}

/// Training data in model coordinates: `x = c · aligned positions`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingData {
    /// Frames `[n, D]`.
    pub x: Vec<f32>,
    /// Coordinates of a frame, D.
    pub dimension: usize,
    /// `−∂(U/kT)/∂x = F/(kT c)` of the frames `[n, D]`, where forces are known.
    pub scores: Option<Vec<f32>>,
    /// Model coordinates per nm, c.
    pub scale: f64,
    /// Units of the data.
    pub units: UnitSystem,
    /// Temperature in K; kT in reduced units.
    pub temperature: f64,
    /// The molecules of a transferable model's data; else empty.
    pub molecules: Vec<TrainedSystem>,
    /// Which of them each frame is of `[n]`; molecule after molecule.
    pub of_molecule: Vec<u32>,
    /// The beads: elements, masses, names (of the first molecule).
    pub system: Arc<System>,
    /// The beads at the first frame's place, as a PDB file; none for toys.
    pub pdb: Option<String>,
    /// Hash of everything above.
    pub hash: String,
    /// Files that were read, with their hashes.
    pub inputs: Vec<InputFile>,
}

impl TrainingData {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.x.len() / self.dimension.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.x.is_empty()
    }

    /// Reads the data of `settings`; relative paths are those of `folder`. `dimension` is what the model has, where it is
    /// known; toys of fewer axes keep the first ones.
    ///
    /// # Errors
    /// Where something is missing, does not fit, is not finite, or is most likely of another unit.
    pub fn load(settings: &DataSettings, folder: &Path, dimension: Option<usize>, seed: u64) -> Result<Self> {
        let units = settings.units.unwrap_or_default();
        temperature(settings, units)?;
        if let Some(systems) = &settings.systems {
            return molecules::load(&folder.join(systems), settings, dimension, seed);
        }
        let raw = read(settings, folder, units)?;
        Self::finish(raw, settings, dimension, seed)
    }

    /// The same of frames `[n, 3]` of a toy that was simulated just now, with its mass.
    ///
    /// # Errors
    /// As [`TrainingData::load`].
    pub fn of_toy(x: Vec<f64>, mass: f64, settings: &DataSettings, dimension: Option<usize>, seed: u64) -> Result<Self> {
        let raw = Raw { x, forces: None, width: 3, system: None, inputs: Vec::new(), starts: vec![0] };
        let settings = DataSettings { units: Some(UnitSystem::Reduced), mass: Some(settings.mass.unwrap_or(mass)), ..settings.clone() };
        Self::finish(raw, &settings, dimension, seed)
    }

    fn finish(mut raw: Raw, settings: &DataSettings, dimension: Option<usize>, seed: u64) -> Result<Self> {
        let units = settings.units.unwrap_or_default();
        let temperature = temperature(settings, units)?;
        raw.check(units, &settings.trajectory)?;
        if let Some(limit) = settings.limit {
            raw.draw(limit, seed);
        }
        let n = raw.frames();
        if n < FEWEST_FRAMES {
            return usage(format!("[data]: there are {n} frames, but training needs {FEWEST_FRAMES} or more"));
        }
        let width = raw.width;
        let d = match dimension {
            Some(d) if d == width || (units == UnitSystem::Reduced && width == 3 && d < 3) => d,
            Some(d) => {
                return usage(format!(
                    "[data]: a frame has {width} coordinates{}, but the model has {d}; choose beads with `select`",
                    if width.is_multiple_of(3) { format!(" ({} atoms)", width / 3) } else { String::new() }
                ));
            }
            None => width,
        };
        let beads = units == UnitSystem::Si;
        if beads {
            raw.align(settings.align.unwrap_or(true));
        } else {
            raw.keep_axes(d);
        }
        let scale = match settings.scale {
            Some(c) if c > 0.0 && c.is_finite() => c,
            Some(c) => return usage(format!("[data]: scale = {c} is refused; it must be finite and above zero")),
            None if beads => 1.0 / deviation(raw.x.iter().copied())?,
            None => 1.0,
        };
        let kt = if beads { BOLTZMANN * temperature } else { temperature };
        let pdb = match (&raw.system, beads) {
            (Some(system), true) => Some(pdb_text(&Frame::new(system.clone(), raw.x[..width].to_vec()))?),
            _ => None,
        };
        let system = match raw.system.take() {
            Some(system) if beads => system,
            None if beads => {
                return usage(
                    "[data]: an array does not say which beads it holds; add `topology` (a PDB file) and `select`, so that elements and masses are known",
                );
            }
            _ => {
                let mass = settings.mass.unwrap_or(1.0);
                if !(mass > 0.0 && mass.is_finite()) {
                    return usage(format!("[data]: mass = {mass} is refused; it must be finite and above zero"));
                }
                Arc::new(System::particles("toy", if d <= 3 { 1 } else { d.div_ceil(3) }, mass))
            }
        };
        let x: Vec<f32> = raw.x.iter().map(|v| (v * scale) as f32).collect();
        let scores: Option<Vec<f32>> = raw.forces.map(|f| f.iter().map(|v| (v / (kt * scale)) as f32).collect());
        let mut hash = Fnv::default();
        x.iter().chain(scores.iter().flatten()).for_each(|v| hash.update(&v.to_le_bytes()));
        [scale, temperature].iter().chain(&system.masses).for_each(|v| hash.update(&v.to_le_bytes()));
        Ok(TrainingData {
            x,
            dimension: d,
            scores,
            scale,
            units,
            temperature,
            molecules: Vec::new(),
            of_molecule: Vec::new(),
            system,
            pdb,
            hash: hash.finish(),
            inputs: raw.inputs,
        })
    }
}

/// Temperature in K; kT in reduced units.
pub(crate) fn temperature(settings: &DataSettings, units: UnitSystem) -> Result<f64> {
    let Some(quantity) = &settings.temperature else {
        let example = if units == UnitSystem::Si { "\"300 K\"" } else { "23" };
        return usage(format!(
            "[data]: temperature is missing; without it energies have no unit. Write what the data were simulated at, for example temperature = {example}"
        ));
    };
    match quantity.resolve(Dimension::TEMPERATURE, units) {
        Ok(t) if t > 0.0 => Ok(t),
        Ok(t) => usage(format!("[data]: temperature {t} is not above zero")),
        Err(e) => usage(format!("[data]: temperature: {e}")),
    }
}

/// Standard deviation of all numbers.
fn deviation(x: impl ExactSizeIterator<Item = f64> + Clone) -> Result<f64> {
    let n = x.len() as f64;
    let mean = x.clone().sum::<f64>() / n;
    let variance = x.map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    if variance > 0.0 { Ok(variance.sqrt()) } else { usage("[data]: all coordinates are the same; there is nothing to learn") }
}

/// Frames as they were read, in internal units.
struct Raw {
    /// `[n, width]`.
    x: Vec<f64>,
    forces: Option<Vec<f64>>,
    width: usize,
    system: Option<Arc<System>>,
    inputs: Vec<InputFile>,
    /// First frame of each file.
    starts: Vec<usize>,
}

impl Raw {
    fn frames(&self) -> usize {
        self.x.len() / self.width.max(1)
    }

    /// Everything finite, files of one unit, and that unit a plausible one.
    fn check(&self, units: UnitSystem, files: &Option<Paths>) -> Result<()> {
        let file = |frame: usize| {
            let k = self.starts.partition_point(|&s| s <= frame).saturating_sub(1);
            let name = files.as_ref().and_then(|f| f.list().get(k)).map_or_else(String::new, |p| format!("{}, ", p.display()));
            (name, frame - self.starts.get(k).copied().unwrap_or(0))
        };
        for (what, values) in [("coordinate", Some(&self.x)), ("force", self.forces.as_ref())] {
            if let Some(i) = values.and_then(|v| v.iter().position(|x| !x.is_finite())) {
                let (name, frame) = file(i / self.width);
                return usage(format!(
                    "[data]: {name}frame {frame} (of those chosen): {what} {} is not finite; leave the frame out with `frames`, or repair the file",
                    i % self.width
                ));
            }
        }
        if units == UnitSystem::Reduced || self.width < 6 || !self.width.is_multiple_of(3) {
            return Ok(());
        }
        // The mean distance to the nearest neighbour tells Å from nm, whatever the molecule.
        let neighbour = |frame: usize| nearest_neighbours(&self.x[frame * self.width..][..self.width]);
        let first = neighbour(0);
        if !NEIGHBOURS_NM.contains(&first) {
            return usage(format!(
                "[data]: neighbouring beads are {first:.3} nm apart on average, which no molecule has; if the numbers are in Å, write length-unit = \"A\""
            ));
        }
        for &start in self.starts.iter().skip(1) {
            let ratio = neighbour(start) / first;
            if !(0.5..2.0).contains(&ratio) {
                let (name, _) = file(start);
                return usage(format!(
                    "[data]: {name}beads are {ratio:.2} times as far apart as in the first file; the files have different units or beads"
                ));
            }
        }
        Ok(())
    }

    /// Keeps `limit` frames, drawn at random without repeats, in their order.
    fn draw(&mut self, limit: usize, seed: u64) {
        let n = self.frames();
        if limit >= n {
            return;
        }
        let noise = Noise::new(seed);
        let mut order: Vec<(u64, usize)> = (0..n)
            .map(|i| {
                let bits = noise.bits(i as u32, (i >> 32) as u32, 0, Purpose::TrainingChoice);
                (u64::from(bits[0]) << 32 | u64::from(bits[1]), i)
            })
            .collect();
        order.sort_unstable();
        order.truncate(limit);
        order.sort_unstable_by_key(|o| o.1);
        let width = self.width;
        let pick = |v: &Vec<f64>| order.iter().flat_map(|&(_, i)| v[i * width..(i + 1) * width].iter().copied()).collect::<Vec<f64>>();
        (self.x, self.forces) = (pick(&self.x), self.forces.as_ref().map(pick));
        self.starts = vec![0];
    }

    /// Centres frames and turns them onto the first one, forces with them.
    fn align(&mut self, turn: bool) {
        let w = self.width;
        let mut reference = self.x[..w].to_vec();
        let first = reference.clone();
        superpose(&mut reference, &first);
        for i in 0..self.frames() {
            let frame = &mut self.x[i * w..(i + 1) * w];
            let rotation = if turn {
                superpose(frame, &reference)
            } else {
                let same = frame.to_vec();
                superpose(frame, &same);
                Matrix3::from_row_slice(&NO_ROTATION)
            };
            if let Some(forces) = &mut self.forces {
                for f in forces[i * w..(i + 1) * w].chunks_exact_mut(3) {
                    let turned = rotation * Vector3::new(f[0], f[1], f[2]);
                    f.copy_from_slice(turned.as_slice());
                }
            }
        }
    }

    /// Keeps the first `d` coordinates of each frame.
    fn keep_axes(&mut self, d: usize) {
        let w = self.width;
        let keep = |v: &[f64]| v.chunks_exact(w).flat_map(|f| f[..d].iter().copied()).collect::<Vec<f64>>();
        if d < w {
            self.x = keep(&self.x);
            self.forces = self.forces.as_deref().map(keep);
            self.width = d;
        }
    }
}

/// Mean distance of a bead `[N, 3]` to the one nearest to it.
fn nearest_neighbours(x: &[f64]) -> f64 {
    let n = x.len() / 3;
    let distance = |i: usize, j: usize| (0..3).map(|a| (x[3 * i + a] - x[3 * j + a]).powi(2)).sum::<f64>().sqrt();
    let nearest = |i: usize| (0..n).filter(|&j| j != i).map(|j| distance(i, j)).fold(f64::INFINITY, f64::min);
    (0..n).map(nearest).sum::<f64>() / n as f64
}

/// Reads the files, or simulates.
fn read(settings: &DataSettings, folder: &Path, units: UnitSystem) -> Result<Raw> {
    let Some(files) = &settings.trajectory else {
        return match &settings.simulate {
            Some(_) => usage("[data]: simulated data are made by `scorefield train` before they are read"),
            None => usage("[data]: trajectory is missing; name a trajectory, or an array in .npy, .npz or .safetensors"),
        };
    };
    let mut all: Option<Raw> = None;
    for path in files.list() {
        let path = folder.join(path);
        let is_array = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["npy", "npz", "safetensors"].contains(&e));
        let part = if is_array { read_array(&path, settings, folder, units)? } else { read_trajectory(&path, settings, folder, units)? };
        match &mut all {
            None => all = Some(part),
            Some(all) if all.width == part.width => {
                all.starts.push(all.frames());
                all.x.extend(part.x);
                all.inputs.extend(part.inputs);
                all.forces = all.forces.take().zip(part.forces).map(|(mut a, b)| {
                    a.extend(b);
                    a
                });
            }
            Some(all) => {
                return usage(format!(
                    "[data]: {}: a frame has {} coordinates, but {} in the first file",
                    path.display(),
                    part.width,
                    all.width
                ));
            }
        }
    }
    let Some(mut raw) = all else { return usage("[data]: trajectory names no file") };
    let from_frames = settings.forces.as_deref() == Some(Path::new(IN_TRAJECTORY));
    match &settings.forces {
        None => raw.forces = None,
        Some(_) if from_frames && raw.forces.is_none() => {
            return usage("[data]: forces = \"trajectory\", but not all frames hold forces (extended XYZ does)");
        }
        Some(_) if from_frames => {}
        Some(file) => {
            let path = folder.join(file);
            let unit = settings.force_unit.as_deref().unwrap_or("kJ/mol/nm");
            let factor = factor(unit, Dimension::FORCE, units, "force-unit")?;
            let mut forces = numbers(&path, &settings.array)?;
            if settings.frames.is_some() || forces.x.len() != raw.x.len() {
                forces = choose(forces, settings, folder, &path)?;
            }
            if forces.x.len() != raw.x.len() || forces.width != raw.width {
                return usage(format!(
                    "[data]: {}: there are forces of {} frames of {} coordinates, but {} frames of {}",
                    path.display(),
                    forces.frames(),
                    forces.width,
                    raw.frames(),
                    raw.width
                ));
            }
            forces.x.iter_mut().for_each(|f| *f *= factor);
            raw.forces = Some(forces.x);
            raw.inputs.push(InputFile::of(&path)?);
        }
    }
    Ok(raw)
}

/// Internal units per `unit`.
fn factor(unit: &str, dimension: Dimension, units: UnitSystem, key: &str) -> Result<f64> {
    match units {
        UnitSystem::Reduced => Ok(1.0),
        UnitSystem::Si => Quantity::new(1.0, unit).resolve(dimension, units).map_err(|e| Error::Usage(format!("[data]: {key}: {e}"))),
    }
}

fn selection(settings: &DataSettings) -> Result<Option<Selection>> {
    settings.select.as_deref().map(str::parse).transpose().map_err(|e| Error::Usage(format!("[data]: select: {e}")))
}

fn range(settings: &DataSettings) -> Result<FrameRange> {
    settings.frames.as_deref().map_or(Ok(FrameRange::default()), str::parse).map_err(|e| Error::Usage(format!("[data]: frames: {e}")))
}

fn read_trajectory(path: &Path, settings: &DataSettings, folder: &Path, units: UnitSystem) -> Result<Raw> {
    let topology = settings.topology.as_ref().map(|t| folder.join(t));
    let mut inputs = vec![InputFile::of(path)?];
    inputs.extend(topology.as_deref().map(InputFile::of).transpose()?);
    let options = ReadOptions { topology, range: range(settings)?, selection: selection(settings)?, ..ReadOptions::default() };
    let factor = if units == UnitSystem::Reduced { ANGSTROMS_PER_NM } else { 1.0 };
    let mut raw = Raw { x: Vec::new(), forces: Some(Vec::new()), width: 0, system: None, inputs, starts: vec![0] };
    for (index, frame) in read_frames(path, &options)?.enumerate() {
        let frame = frame?;
        let width = frame.positions.len();
        match &raw.system {
            None => (raw.width, raw.system) = (width, Some(frame.system.clone())),
            Some(first) if first.types == frame.system.types => {}
            Some(first) => {
                return usage(format!(
                    "[data]: {}: frame {index} has {} atoms of other elements or in another order than frame 0 with {}; a model is of one molecule",
                    path.display(),
                    frame.len(),
                    first.len()
                ));
            }
        }
        if let Some(cell) = &frame.cell {
            let edge = [0, 4, 8].map(|k| cell[k]).into_iter().fold(f64::INFINITY, f64::min);
            let spread = (0..3).map(|a| {
                let axis = frame.positions.iter().skip(a).step_by(3);
                axis.clone().fold(f64::NEG_INFINITY, |m, &v| m.max(v)) - axis.fold(f64::INFINITY, |m, &v| m.min(v))
            });
            if spread.fold(0.0, f64::max) > 0.5 * edge {
                return usage(format!(
                    "[data]: {}: in frame {index} the beads spread over more than half the periodic cell; make molecules whole first",
                    path.display()
                ));
            }
        }
        raw.x.extend(frame.positions.iter().map(|v| v * factor));
        raw.forces = raw.forces.take().zip(frame.forces).map(|(mut all, f)| {
            all.extend(f);
            all
        });
    }
    if raw.x.is_empty() {
        return usage(format!("[data]: {}: no frame is in the range", path.display()));
    }
    Ok(raw)
}

/// The numbers of an array `[n, N, 3]` or `[n, D]`.
fn numbers(path: &Path, name: &Option<String>) -> Result<Raw> {
    let mut arrays = read_arrays(path, MOST_BYTES)?;
    let names: Vec<String> = arrays.keys().cloned().collect();
    let chosen = match (name, &names[..]) {
        (Some(name), _) if arrays.contains_key(name) => name.clone(),
        (_, [only]) => only.clone(),
        (None, _) if arrays.contains_key("positions") => "positions".into(),
        _ => return usage(format!("[data]: {} holds {}; choose one with `array`", path.display(), names.join(", "))),
    };
    let Some(Tensor { shape, values }) = arrays.remove(&chosen) else {
        return usage(format!("[data]: {} has no array `{chosen}`", path.display()));
    };
    let width = match shape[..] {
        [_, d] if d > 0 => d,
        [_, n, 3] if n > 0 => 3 * n,
        _ => {
            return usage(format!(
                "[data]: {}: `{chosen}` has shape {shape:?}; [frames, atoms, 3] or [frames, coordinates] is needed",
                path.display()
            ));
        }
    };
    let x = match values {
        Values::F64(v) => v,
        Values::F32(v) => v.into_iter().map(f64::from).collect(),
        Values::I64(_) => return usage(format!("[data]: {}: `{chosen}` holds whole numbers, not coordinates", path.display())),
    };
    Ok(Raw { x, forces: None, width, system: None, inputs: Vec::new(), starts: vec![0] })
}

/// Frames and atoms of an array, as `frames`, `topology` and `select` say.
fn choose(mut raw: Raw, settings: &DataSettings, folder: &Path, path: &Path) -> Result<Raw> {
    let (first, last, stride) = range(settings)?.resolve(Some(raw.frames()));
    let last = last.unwrap_or(usize::MAX).min(raw.frames());
    let w = raw.width;
    raw.x = (first..last).step_by(stride.max(1)).flat_map(|i| raw.x[i * w..(i + 1) * w].iter().copied()).collect();
    if raw.x.is_empty() {
        return usage(format!("[data]: {}: no frame is in the range", path.display()));
    }
    let Some(topology) = &settings.topology else {
        return match &settings.select {
            Some(_) => usage("[data]: select needs `topology` for arrays: it says which atoms they hold"),
            None => Ok(raw),
        };
    };
    let topology = folder.join(topology);
    let frame = read_structure(&topology)?;
    raw.inputs.push(InputFile::of(&topology)?);
    let atoms = match selection(settings)? {
        Some(selection) => selection.atoms(&frame)?,
        None => (0..frame.len()).collect(),
    };
    if w == 3 * frame.len() && atoms.len() < frame.len() {
        raw.x = raw.x.chunks_exact(w).flat_map(|f| atoms.iter().flat_map(|&a| f[3 * a..3 * a + 3].iter().copied())).collect();
        raw.width = 3 * atoms.len();
    } else if w != 3 * atoms.len() {
        return usage(format!(
            "[data]: {}: a frame has {} coordinates, but {} has {} atoms, of which {} are selected",
            path.display(),
            w,
            topology.display(),
            frame.len(),
            atoms.len()
        ));
    }
    raw.system = Some(Arc::new(crate::io::subsystem(&frame.system, &atoms)));
    Ok(raw)
}

fn read_array(path: &Path, settings: &DataSettings, folder: &Path, units: UnitSystem) -> Result<Raw> {
    let input = InputFile::of(path)?;
    let mut raw = choose(numbers(path, &settings.array)?, settings, folder, path)?;
    let factor = factor(settings.length_unit.as_deref().unwrap_or("nm"), Dimension::LENGTH, units, "length-unit")?;
    raw.x.iter_mut().for_each(|v| *v *= factor);
    raw.inputs.insert(0, input);
    Ok(raw)
}

#[cfg(test)]
mod tests;
