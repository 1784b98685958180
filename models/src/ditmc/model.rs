//! A trained DiTMC in its file.

use super::config::DitmcConfig;
use super::layout::Layout;
use super::process::Path as NoisePath;
use crate::adapters::Prediction;
use crate::error::{Error, Result};
use crate::weights::{Ensemble, Metadata, WeightsFile, write};
use candle_core::{Device, Tensor};
use scorefield_integrators::UnitSystem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the architecture in files.
pub const ARCHITECTURE: &str = "ditmc";
/// Å per nm.
pub const ANGSTROMS: f64 = 10.0;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    network: DitmcConfig,
}

/// A network with its parameters; it predicts clean structures from noisy ones.
#[derive(Clone, Debug, PartialEq)]
pub struct DitmcModel {
    /// Sizes.
    pub config: DitmcConfig,
    /// How noisy structures were made.
    pub path: NoisePath,
    /// Parameters, in the order of the file's tensors.
    pub values: Vec<f64>,
    /// Temperature of the data (K); none for minima.
    pub temperature: Option<f64>,
    /// Command that trained it.
    pub command: String,
    /// Seed of the training.
    pub seed: u64,
}

/// Most heavy atoms of a molecule that the embedded model was trained on.
pub const EMBEDDED_HEAVY_ATOMS: usize = 9;

/// The model that this program brings along: a small PE(3) trained on ensembles of molecules of QM9.
static EMBEDDED: &[u8] = include_bytes!("../../../data/models/conformers/pe3-small.safetensors");

impl DitmcModel {
    /// The model that this program brings along. It has seen molecules of up to [`EMBEDDED_HEAVY_ATOMS`] heavy atoms of C, N and O.
    ///
    /// # Errors
    /// As [`DitmcModel::read`].
    pub fn embedded() -> Result<Self> {
        let file = Path::new("the embedded conformer model");
        Self::of_weights(file, WeightsFile::from_bytes(file, EMBEDDED)?)
    }

    /// Reads a file of weights.
    ///
    /// # Errors
    /// Where it is none, or not whole.
    pub fn read(file: &Path) -> Result<Self> {
        Self::of_weights(file, WeightsFile::read(file)?)
    }

    /// The same from a file that was opened.
    ///
    /// # Errors
    /// As [`DitmcModel::read`].
    pub fn of_weights(file: &Path, mut weights: WeightsFile) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let metadata = weights.metadata().clone();
        if metadata.architecture != ARCHITECTURE {
            return Err(refuse(format!("it holds {}, not {ARCHITECTURE}", metadata.architecture)));
        }
        let settings: Settings =
            serde_json::from_value(metadata.parameters.clone().into()).map_err(|e| refuse(format!("metadata `parameters`: {e}")))?;
        settings.network.check()?;
        if metadata.prediction != Prediction::Clean || metadata.units != UnitSystem::Si || metadata.scale != ANGSTROMS {
            return Err(refuse("its metadata contradict themselves: it must predict clean structures, in SI units at 10 per nm".into()));
        }
        let temperature = match metadata.ensemble {
            Ensemble::Minima => None,
            Ensemble::Temperature(t) => Some(t),
            Ensemble::Potential => return Err(refuse("metadata `ensemble`: structures are of minima or of a temperature".into())),
        };
        let Some(noise) = metadata.noise else { return Err(refuse("its metadata lack `noise`".into())) };
        let path: NoisePath = serde_json::from_value(noise.into()).map_err(|e| refuse(format!("metadata `noise`: {e}")))?;
        path.check()?;
        let mut values = Vec::new();
        for entry in Layout::new(&settings.network).entries {
            values.extend(weights.values::<f64>(&entry.name, &entry.shape)?);
        }
        weights.finish()?;
        let (command, seed) = (metadata.command, metadata.seed);
        Ok(DitmcModel { config: settings.network, path, values, temperature, command, seed })
    }

    /// Writes the model in single precision.
    ///
    /// # Errors
    /// Where a number is not finite or the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let json = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
        let fail = |e: serde_json::Error| Error::File { file: file.into(), reason: e.to_string() };
        let settings = Settings { network: self.config.clone() };
        let metadata = Metadata {
            architecture: ARCHITECTURE.into(),
            parameters: json(serde_json::to_value(settings).map_err(fail)?),
            prediction: Prediction::Clean,
            units: UnitSystem::Si,
            ensemble: self.temperature.map_or(Ensemble::Minima, Ensemble::Temperature),
            scale: ANGSTROMS,
            types: Some(self.config.vocabulary.elements().iter().map(|&z| u32::from(z)).collect()),
            noise: Some(json(serde_json::to_value(self.path).map_err(fail)?)),
            command: self.command.clone(),
            seed: self.seed,
            system: None,
        };
        let mut tensors = BTreeMap::new();
        let mut start = 0;
        for entry in Layout::new(&self.config).entries {
            let n: usize = entry.shape.iter().product();
            let part: Vec<f32> = self.values[start..start + n].iter().map(|&v| v as f32).collect();
            tensors.insert(entry.name, Tensor::from_vec(part, entry.shape, &Device::Cpu)?);
            start += n;
        }
        write(file, &metadata, &tensors)
    }
}
