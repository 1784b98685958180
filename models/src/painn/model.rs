//! A trained PaiNN in its file, and SchNetPack's published arrays.

use super::config::{Head, Layout, PainnConfig};
use super::noising::NoiseSettings;
use crate::adapters::Prediction;
use crate::error::{Error, Result};
use crate::weights::{Ensemble, Metadata, WeightsFile, write};
use candle_core::{DType, Device, Tensor};
use scorefield_integrators::UnitSystem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the architecture in files.
pub const ARCHITECTURE: &str = "painn";
/// 1 eV/Å² in kJ/mol/nm².
pub const EV_PER_SQUARE_ANGSTROM: f64 = 9_648.533_212_331;
/// 1 kcal/mol in kJ/mol.
const KCAL: f64 = 4.184;
/// Å per nm.
const ANGSTROMS: f64 = 10.0;

/// What the numbers that come out mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Output {
    /// Displacements (Å) from a noisy structure to its minimum.
    Displacement {
        /// Stiffness k of the pseudo-force k (x̂₀ − x), kJ/mol/nm².
        stiffness: f64,
    },
    /// The noise ε in `x₀ + σ ε`.
    Noise {
        /// As for displacements −σ ε.
        stiffness: f64,
    },
    /// A sum over atoms.
    Energy {
        /// kJ/mol of one unit.
        unit: f64,
        /// Added for every atom (in that unit).
        per_atom: f64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    network: PainnConfig,
    output: Output,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    references: Vec<(u32, f64)>,
}

/// A network with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct PainnModel {
    /// Sizes.
    pub config: PainnConfig,
    /// What comes out.
    pub output: Output,
    /// Energy of single atoms by atomic number, added to the network's, in its unit; zero for elements that are not named.
    pub references: Vec<(u32, f64)>,
    /// Parameters, in the order of the file's tensors.
    pub values: Vec<f64>,
    /// Atomic numbers that it was trained on, sorted.
    pub types: Vec<u32>,
    /// Noise that it was trained with; none for energies.
    pub noise: Option<NoiseSettings>,
    /// Command that trained it.
    pub command: String,
    /// Seed of the training.
    pub seed: u64,
}

impl PainnModel {
    /// Reads a file of weights, or the arrays (`.npz`) of a SchNetPack PaiNN.
    ///
    /// # Errors
    /// Where it is none, or not whole.
    pub fn read(file: &Path) -> Result<Self> {
        if file.extension().is_some_and(|e| e == "npz") {
            return Self::published(file);
        }
        Self::of_weights(file, WeightsFile::read(file)?)
    }

    /// The same from the bytes of a file; `file` is what errors call it.
    ///
    /// # Errors
    /// As [`PainnModel::read`].
    pub fn from_bytes(file: &Path, bytes: &[u8]) -> Result<Self> {
        Self::of_weights(file, WeightsFile::from_bytes(file, bytes)?)
    }

    /// The same from a file that was opened.
    ///
    /// # Errors
    /// As [`PainnModel::read`].
    pub fn of_weights(file: &Path, mut weights: WeightsFile) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let metadata = weights.metadata().clone();
        if metadata.architecture != ARCHITECTURE {
            return Err(refuse(format!("it holds {}, not {ARCHITECTURE}", metadata.architecture)));
        }
        let settings: Settings =
            serde_json::from_value(metadata.parameters.clone().into()).map_err(|e| refuse(format!("metadata `parameters`: {e}")))?;
        settings.network.check()?;
        let head = if matches!(settings.output, Output::Energy { .. }) { Head::Energy } else { Head::Direct };
        if head != settings.network.head || metadata.units != UnitSystem::Si || metadata.scale != ANGSTROMS {
            return Err(refuse("its metadata contradict themselves: head, output, units and scale (10 per nm) must fit".into()));
        }
        let positive = match settings.output {
            Output::Displacement { stiffness } | Output::Noise { stiffness } => stiffness,
            Output::Energy { unit, per_atom } => unit * if per_atom.is_finite() { 1.0 } else { f64::NAN },
        };
        if !(positive > 0.0 && positive.is_finite()) {
            return Err(refuse("its output has a stiffness or unit that is not above zero".into()));
        }
        let references = settings.references;
        if references.iter().any(|&(z, e)| z as usize >= super::config::TYPES || !e.is_finite())
            || !(references.is_empty() || head == Head::Energy)
        {
            return Err(refuse("its energies of single atoms are not those of elements, or it has no energies".into()));
        }
        let noise = metadata.noise.clone().map(|n| serde_json::from_value(n.into())).transpose();
        let noise = noise.map_err(|e| refuse(format!("metadata `noise`: {e}")))?;
        let mut values = Vec::new();
        for entry in Layout::new(&settings.network).entries {
            values.extend(weights.values::<f64>(&entry.name, &entry.shape)?);
        }
        weights.finish()?;
        let types = metadata.types.unwrap_or_else(|| (1..super::config::TYPES as u32).collect());
        if types.is_empty() || types.iter().any(|&t| t as usize >= super::config::TYPES) {
            return Err(refuse(format!("metadata `types`: atomic numbers below {} are needed", super::config::TYPES)));
        }
        let (command, seed) = (metadata.command, metadata.seed);
        Ok(PainnModel { config: settings.network, output: settings.output, references, values, types, noise, command, seed })
    }

    /// Writes the model in single precision.
    ///
    /// # Errors
    /// Where a number is not finite or the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let json = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
        let fail = |e: serde_json::Error| Error::File { file: file.into(), reason: e.to_string() };
        let settings = Settings { network: self.config.clone(), output: self.output, references: self.references.clone() };
        let metadata = Metadata {
            architecture: ARCHITECTURE.into(),
            parameters: json(serde_json::to_value(settings).map_err(fail)?),
            prediction: match self.output {
                Output::Displacement { .. } => Prediction::PseudoForce,
                Output::Noise { .. } => Prediction::Noise,
                Output::Energy { .. } => Prediction::Energy,
            },
            units: UnitSystem::Si,
            ensemble: if self.config.head == Head::Energy { Ensemble::Potential } else { Ensemble::Minima },
            scale: ANGSTROMS,
            types: Some(self.types.clone()),
            noise: self.noise.map(|n| serde_json::to_value(n).map(json)).transpose().map_err(fail)?,
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

    /// A SchNetPack PaiNN with an energy in kcal/mol: its state as arrays of an `.npz` file, by their names there.
    fn published(file: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut arrays: BTreeMap<String, Tensor> = Tensor::read_npz(file)?.into_iter().collect();
        let mut take = |name: &str| -> Result<(Vec<usize>, Vec<f64>)> {
            let array = arrays.remove(name).ok_or_else(|| refuse(format!("the array `{name}` of a SchNetPack PaiNN is missing")))?;
            let values = array.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            match values.iter().all(|v| v.is_finite()) {
                true => Ok((array.dims().to_vec(), values)),
                false => Err(refuse(format!("the array `{name}` has numbers that are not finite"))),
            }
        };
        let (_, offsets) = take("representation.radial_basis.offsets")?;
        let (_, widths) = take("representation.radial_basis.widths")?;
        let (_, cutoff) = take("representation.cutoff_fn.cutoff")?;
        let (_, mean) = take("postprocessors.1.mean")?;
        let (_, references) = take("postprocessors.1.atomref")?;
        let ([cutoff], [mean]) = (&cutoff[..], &mean[..]) else { return Err(refuse("its cutoff or mean is no single number".into())) };
        let mut config = PainnConfig { radial: offsets.len(), cutoff: *cutoff, ..PainnConfig::preset("painn").unwrap_or_default() };
        let even = |(k, &o): (usize, &f64)| (o - k as f64 * config.spacing()).abs() < 1e-5 * cutoff;
        if offsets.len() < 2 || !offsets.iter().enumerate().all(even) || widths.iter().any(|w| (w - config.spacing()).abs() > 1e-5 * cutoff)
        {
            return Err(refuse("its radial functions are not evenly spaced from 0 to the cutoff, as wide as they are apart".into()));
        }
        if references.iter().any(|&r| r != 0.0) {
            return Err(refuse("it has energies of single atoms by element, which are not read".into()));
        }
        let (shape, embedding) = take("representation.embedding.weight")?;
        config.features = shape.get(1).copied().unwrap_or(0);
        let (shape, filter) = take("representation.filter_net.weight")?;
        config.layers = shape.first().copied().unwrap_or(0) / (3 * config.features).max(1);
        config.check()?;
        let mut values = Vec::new();
        for entry in Layout::new(&config).entries {
            let (shape, part) = match entry.name.as_str() {
                "representation.embedding.weight" => (vec![super::config::TYPES, config.features], embedding.clone()),
                "representation.filter_net.weight" => (shape.clone(), filter.clone()),
                name => take(name)?,
            };
            if shape != entry.shape || part.len() != shape.iter().product::<usize>() {
                return Err(refuse(format!("the array `{}` has shape {shape:?}, but {:?} is needed", entry.name, entry.shape)));
            }
            values.extend(part);
        }
        if let Some(name) = arrays.keys().next() {
            return Err(refuse(format!("there is no use for the array `{name}`; it is of another architecture")));
        }
        let output = Output::Energy { unit: KCAL, per_atom: *mean };
        let types = (1..super::config::TYPES as u32).collect();
        let command = format!("from {}", file.display());
        Ok(PainnModel { config, output, references: Vec::new(), values, types, noise: None, command, seed: 0 })
    }
}
