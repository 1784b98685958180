//! A trained model as it lies in its file: what training writes, and what forces and sampling are made from.
//!
//! | Tensor | Shape | |
//! |---|---|---|
//! | `expert{k}.{name}` | as [`Layout`](super::config::Layout) says | parameters, from the largest times to the smallest |
//! | `log_z.coefficients` | `[K]` | [`LogZ`], where it was trained |
//! | `start_frames` | `[n, N, 3]` or `[n, D]` | some of the training data, in nm (reduced units for toys); of a transferable model as many of each system, one after the other |
//! | `training_range` | `[P, 6]` | of each [`RangeColumn`]: pair distances `(0, 1), (0, 2), …` of beads, else the coordinates |
//!
//! Metadata are those of [`weights`]; `parameters` holds [`Settings`].

use super::config::{Body, ExpertConfig, Head, ModelConfig, RESIDUE_TABLES};
use super::log_z::LogZ;
use super::process::VariancePreserving;
use super::transfer::TrainedSystem;
use crate::adapters::Prediction;
use crate::error::{Error, Result};
use crate::weights::{self, Ensemble, Metadata, OneSystem, WeightsFile};
use candle_core::{Device, Tensor};
use scorefield_integrators::UnitSystem;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the architecture in files.
pub const ARCHITECTURE: &str = "scoremd";
/// Time at which forces are evaluated, unless a file says otherwise: as near to the data as the published runs go.
pub const EVALUATION_TIME: f64 = 1e-5;
/// Most networks, beads, layers and features of a file: sizes are bounded before they are believed.
const MOST: usize = 1 << 14;

/// Columns of `training_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeColumn {
    /// Smallest value of the training data.
    Minimum = 0,
    /// One value in a thousand is below.
    Low = 1,
    /// Mean.
    Mean = 2,
    /// Standard deviation.
    Deviation = 3,
    /// One value in a thousand is above.
    High = 4,
    /// Largest value.
    Maximum = 5,
}

/// Number of columns of `training_range`.
pub const RANGE_COLUMNS: usize = 6;

/// The architecture's own settings, as JSON in the metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Networks, from the largest times to the smallest.
    pub experts: Vec<ExpertConfig>,
    /// Time at which forces are evaluated.
    pub evaluation_time: f64,
    /// Masses of the beads in u (of the particle in reduced units).
    pub masses: Vec<f64>,
    /// The normaliser's splines, where they were trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_z: Option<LogZ>,
    /// Molecules that a transferable model was trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub systems: Vec<TrainedSystem>,
}

/// A trained model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its networks.
    pub config: ModelConfig,
    /// Its diffusion.
    pub process: VariancePreserving,
    /// Parameters of each network `[P]`, laid out as [`ExpertConfig::layout`] says.
    pub parameters: Vec<Vec<f32>>,
    /// `log Z(t)` and its coefficients.
    pub log_z: Option<(LogZ, Vec<f32>)>,
    /// Model coordinates per nm (1 for toys).
    pub scale: f64,
    /// Units of data and energies.
    pub units: UnitSystem,
    /// Temperature of the training data in K; kT in reduced units.
    pub temperature: f64,
    /// Time at which forces are evaluated.
    pub evaluation_time: f64,
    /// Atomic numbers of the beads, 0 for none `[N]`; a toy of up to three dimensions is one particle.
    pub types: Vec<u32>,
    /// Their masses in u `[N]`.
    pub masses: Vec<f64>,
    /// The beads as a PDB file; none of a transferable model.
    pub pdb: Option<String>,
    /// Molecules that a transferable model was trained on; else empty.
    pub systems: Vec<TrainedSystem>,
    /// Some training data `[n, D]` in nm.
    pub start_frames: Vec<f32>,
    /// Where the training data lie `[P, 6]` in nm, see [`RangeColumn`]; empty where it was not recorded.
    pub training_range: Vec<f32>,
    /// Command that trained it.
    pub command: String,
    /// Seed of the training.
    pub seed: u64,
}

impl Model {
    /// Coordinates of a configuration, D.
    pub fn dimension(&self) -> usize {
        self.config.experts.first().map_or(0, |e| e.body.dimension())
    }

    /// Writes the model; a reader never sees half a file.
    ///
    /// # Errors
    /// Where a number is not finite, arrays do not fit the configuration, or the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let tensor = |values: &[f32], shape: &[usize]| -> Result<Tensor> {
            if values.len() != shape.iter().product::<usize>() {
                return Err(refuse(format!("{} numbers do not have the shape {shape:?}", values.len())));
            }
            Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
        };
        let mut tensors = BTreeMap::new();
        if self.parameters.len() != self.config.experts.len() {
            return Err(refuse(format!("there are parameters of {} networks, but {}", self.parameters.len(), self.config.experts.len())));
        }
        for (k, (expert, values)) in self.config.experts.iter().zip(&self.parameters).enumerate() {
            let layout = expert.layout();
            if values.len() != layout.len() {
                return Err(refuse(format!("network {k} has {} parameters, but needs {}", values.len(), layout.len())));
            }
            for entry in layout.entries() {
                let part = &values[entry.offset..entry.offset + entry.len()];
                tensors.insert(format!("expert{k}.{}", entry.name), tensor(part, &entry.shape)?);
            }
        }
        if let Some((z, c)) = &self.log_z {
            tensors.insert("log_z.coefficients".into(), tensor(c, &[z.coefficients])?);
        }
        let d = self.dimension().max(1);
        if !self.start_frames.is_empty() {
            tensors.insert("start_frames".into(), tensor(&self.start_frames, &self.frame_shape(self.start_frames.len() / d))?);
        }
        if !self.training_range.is_empty() {
            tensors.insert(
                "training_range".into(),
                tensor(&self.training_range, &[self.training_range.len() / RANGE_COLUMNS, RANGE_COLUMNS])?,
            );
        }
        weights::write(file, &self.metadata()?, &tensors)
    }

    fn metadata(&self) -> Result<Metadata> {
        let json = |value: serde_json::Result<Value>| match value {
            Ok(Value::Object(map)) => Ok(map),
            _ => Err(Error::spec(ARCHITECTURE, "its settings cannot be written as JSON")),
        };
        let settings = Settings {
            experts: self.config.experts.clone(),
            evaluation_time: self.evaluation_time,
            masses: self.masses.clone(),
            log_z: self.log_z.as_ref().map(|(z, _)| *z),
            systems: self.systems.clone(),
        };
        let potential = self.config.experts.last().is_some_and(|e| e.head == Head::Potential);
        Ok(Metadata {
            architecture: ARCHITECTURE.into(),
            parameters: json(serde_json::to_value(&settings))?,
            prediction: if potential { Prediction::Energy } else { Prediction::Score },
            units: self.units,
            ensemble: Ensemble::Temperature(self.temperature),
            scale: self.scale,
            types: Some(self.types.clone()),
            noise: Some(json(serde_json::to_value(self.process))?),
            command: self.command.clone(),
            seed: self.seed,
            system: self.pdb.clone().map(OneSystem::Pdb),
        })
    }

    /// `[n, N, 3]` for beads, `[n, D]` for toys.
    fn frame_shape(&self, n: usize) -> Vec<usize> {
        match self.config.experts.first().map(|e| &e.body) {
            Some(Body::GraphTransformer { beads, .. }) => vec![n, *beads, 3],
            _ => vec![n, self.dimension()],
        }
    }

    /// Reads `file`.
    ///
    /// # Errors
    /// Where it is no whole, finite model of this architecture.
    pub fn read(file: &Path) -> Result<Self> {
        Self::from_weights(file, WeightsFile::read(file)?)
    }

    /// The same from memory; `file` names it in messages.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_bytes(file: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_weights(file, WeightsFile::from_bytes(file, bytes)?)
    }

    /// The same from a file of weights that is open already.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_weights(file: &Path, mut weights: WeightsFile) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let metadata = weights.metadata().clone();
        if metadata.architecture != ARCHITECTURE {
            return Err(refuse(format!("it is a model of architecture `{}`, not `{ARCHITECTURE}`", metadata.architecture)));
        }
        let settings: Settings = serde_json::from_value(Value::Object(metadata.parameters.clone()))
            .map_err(|e| refuse(format!("metadata `parameters`: {e}")))?;
        check_settings(&settings).map_err(|reason| refuse(format!("metadata `parameters`: {reason}")))?;
        let Some(noise) = metadata.noise.clone() else { return Err(refuse("metadata `noise` is missing; it holds the diffusion".into())) };
        let process: VariancePreserving =
            serde_json::from_value(Value::Object(noise)).map_err(|e| refuse(format!("metadata `noise`: {e}")))?;
        if !(process.beta_min > 0.0 && process.beta_max >= process.beta_min && process.beta_max <= 1e3) {
            return Err(refuse(format!("metadata `noise`: β from {} to {} is no diffusion", process.beta_min, process.beta_max)));
        }
        let Ensemble::Temperature(temperature) = metadata.ensemble else {
            return Err(refuse("metadata `ensemble`: it must be a temperature; scores are those of a Boltzmann ensemble".into()));
        };
        let config = ModelConfig { experts: settings.experts };
        let mut parameters = Vec::with_capacity(config.experts.len());
        for (k, expert) in config.experts.iter().enumerate() {
            let layout = expert.layout();
            let mut values = Vec::with_capacity(layout.len());
            for entry in layout.entries() {
                values.extend(weights.values::<f32>(&format!("expert{k}.{}", entry.name), &entry.shape)?);
            }
            parameters.push(values);
        }
        let log_z = match settings.log_z {
            Some(z) => Some((z, weights.values::<f32>("log_z.coefficients", &[z.coefficients])?)),
            None => None,
        };
        let (body, d) = match config.experts.first() {
            Some(first) => (first.body.clone(), first.body.dimension()),
            None => return Err(refuse("it has no network".into())),
        };
        let rows_of =
            |weights: &WeightsFile, name: &str| weights.shapes().find(|(n, _)| *n == name).map(|(_, s)| s.first().copied().unwrap_or(0));
        let start_frames = match (rows_of(&weights, "start_frames"), &body) {
            (None, _) => Vec::new(),
            (Some(n), Body::GraphTransformer { beads, .. }) => weights.values::<f32>("start_frames", &[n, *beads, 3])?,
            (Some(n), Body::Mlp { .. }) => weights.values::<f32>("start_frames", &[n, d])?,
        };
        let ranges = match &body {
            Body::GraphTransformer { beads, .. } => beads * (beads - 1) / 2,
            Body::Mlp { dimension, .. } => *dimension,
        };
        let training_range = match rows_of(&weights, "training_range") {
            None => Vec::new(),
            Some(_) => weights.values::<f32>("training_range", &[ranges, RANGE_COLUMNS])?,
        };
        weights.finish()?;
        if start_frames.len() % (d * settings.systems.len().max(1)) != 0 {
            return Err(refuse(format!("its start frames cannot be shared out to {} systems", settings.systems.len())));
        }
        let particles = match &body {
            Body::GraphTransformer { beads, .. } => *beads,
            Body::Mlp { dimension, .. } if *dimension <= 3 => 1,
            Body::Mlp { dimension, .. } => dimension.div_ceil(3),
        };
        let types = metadata.types.unwrap_or_else(|| vec![0; particles]);
        for (what, n) in [("types", types.len()), ("masses", settings.masses.len())] {
            if n != particles {
                return Err(refuse(format!("metadata: there are {n} {what} for {particles} particles")));
            }
        }
        let pdb = match metadata.system {
            Some(OneSystem::Pdb(text)) => Some(text),
            _ => None,
        };
        Ok(Model {
            config,
            process,
            parameters,
            log_z,
            scale: metadata.scale,
            units: metadata.units,
            temperature,
            evaluation_time: settings.evaluation_time,
            types,
            masses: settings.masses,
            pdb,
            systems: settings.systems,
            start_frames,
            training_range,
            command: metadata.command,
            seed: metadata.seed,
        })
    }
}

/// What a file may claim: sizes are bounded, ranges of time touch and end at the data.
fn check_settings(settings: &Settings) -> std::result::Result<(), String> {
    let experts = &settings.experts;
    if experts.is_empty() || experts.len() > 16 {
        return Err(format!("{} networks; 1 to 16 are read", experts.len()));
    }
    let bounded = |n: usize| (1..=MOST).contains(&n);
    for e in experts {
        let fine = match &e.body {
            Body::Mlp { dimension, hidden } => bounded(*dimension) && hidden.len() <= 64 && hidden.iter().all(|&w| bounded(w)),
            Body::GraphTransformer { beads, width, layers, .. } => bounded(*beads) && bounded(*width) && (1..=64).contains(layers),
        };
        if !fine {
            return Err(format!("{:?} is out of bounds", e.body));
        }
        if e.body.dimension() != experts[0].body.dimension() {
            return Err("its networks are for configurations of different sizes".into());
        }
        if !(e.range.start >= 0.0 && e.range.start < e.range.end && e.range.end <= 1.0) {
            return Err(format!("a network has times from {} to {}; they must rise within 0 to 1", e.range.start, e.range.end));
        }
    }
    for pair in experts.windows(2) {
        if pair[0].range.start != pair[1].range.end {
            return Err(format!("no network has the times from {} to {}", pair[1].range.end, pair[0].range.start));
        }
    }
    let transferable = ModelConfig { experts: experts.clone() }.is_transferable();
    if transferable == settings.systems.is_empty() {
        return Err(format!(
            "{} systems of a model that is{} transferable",
            settings.systems.len(),
            if transferable { "" } else { " not" }
        ));
    }
    for system in &settings.systems {
        let fits = |kind: &[u32; 4]| kind.iter().zip(RESIDUE_TABLES).all(|(&k, (_, rows))| (k as usize) < rows);
        if 3 * system.kinds.len() != experts[0].body.dimension() || !system.kinds.iter().all(fits) {
            return Err(format!("the kinds of beads of system `{}` are not those of {:?}", system.name, experts[0].body));
        }
    }
    if !(settings.evaluation_time >= 0.0 && settings.evaluation_time < 1.0) {
        return Err(format!("evaluation-time {} is not from 0 to 1", settings.evaluation_time));
    }
    if settings.masses.iter().any(|m| !(*m > 0.0 && m.is_finite())) {
        return Err("masses must be above zero".into());
    }
    match settings.log_z {
        Some(z) if !z.is_valid() => Err(format!("{z:?} is out of bounds")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoremd::process::TimeRange;

    fn model(preset: &str) -> Model {
        let config = ModelConfig::preset(preset).unwrap();
        let number = |i: usize| ((i * 7919 + 13) % 101) as f32 / 101.0 - 0.5;
        let parameters: Vec<Vec<f32>> = config.parameters().iter().map(|&n| (0..n).map(number).collect()).collect();
        let (particles, ranges) = if preset.starts_with("muller") { (1, 2) } else { (5, 10) };
        let z = LogZ::new(1.0);
        let d = config.experts[0].body.dimension();
        Model {
            process: VariancePreserving::default(),
            parameters,
            log_z: Some((z, (0..z.coefficients).map(number).collect())),
            scale: 10.57,
            units: if particles == 1 { UnitSystem::Reduced } else { UnitSystem::Si },
            temperature: 300.0,
            evaluation_time: EVALUATION_TIME,
            types: vec![6; particles],
            masses: vec![12.011; particles],
            pdb: Some("END\n".into()),
            systems: Vec::new(),
            start_frames: (0..4 * d).map(number).collect(),
            training_range: (0..ranges * RANGE_COLUMNS).map(number).collect(),
            command: "scorefield train recipe.toml".into(),
            seed: 3,
            config,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        for preset in ["muller-brown", "muller-brown-mixture", "alanine-dipeptide", "alanine-dipeptide-mixture"] {
            let written = model(preset);
            written.write(&file).unwrap();
            assert_eq!(Model::read(&file).unwrap(), written, "{preset}");
        }
        let bare = Model { log_z: None, pdb: None, start_frames: Vec::new(), training_range: Vec::new(), ..model("muller-brown") };
        bare.write(&file).unwrap();
        assert_eq!(Model::from_bytes(&file, &std::fs::read(&file).unwrap()).unwrap(), bare);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let refused = |change: &dyn Fn(&mut Model), part: &str| {
            let mut m = model("muller-brown-mixture");
            change(&mut m);
            let message = m.write(&file).and_then(|()| Model::read(&file)).unwrap_err().to_string();
            assert!(message.contains(part), "{message} lacks `{part}`");
        };
        refused(&|m| m.parameters[1].truncate(5), "needs 4865");
        refused(&|m| m.config.experts[1].range = TimeRange { start: 0.2, end: 0.6 }, "from 0.1 to 0.2");
        refused(&|m| m.config.experts.swap(0, 2), "network 0 has");
        refused(&|m| m.masses = vec![1.0; 2], "2 masses");
        refused(&|m| m.masses = vec![0.0], "above zero");
        refused(&|m| m.evaluation_time = 2.0, "evaluation-time");
        refused(&|m| m.process.beta_max = 0.0, "no diffusion");
        refused(&|m| m.parameters[0][7] = f32::NAN, "NaN");
        refused(&|m| m.training_range.truncate(6), "shape");
    }
}
