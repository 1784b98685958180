//! Files of trained models: safetensors whose metadata say what the numbers are.
//!
//! Every value of the metadata is text:
//!
//! | key | value |
//! |---|---|
//! | `scorefield` | version of this layout, `1` |
//! | `architecture` | name of the network, for example `painn` |
//! | `parameters` | JSON object with the architecture's own settings |
//! | `prediction` | `energy`, `force`, `pseudo-force`, `score`, `noise`, `clean` or `velocity` |
//! | `units` | `si` (nm, ps, u, kJ/mol) or `reduced` |
//! | `ensemble` | what it was trained on: a temperature (`300 K`, a bare kT in reduced units), `minima`, or `potential` for samples of a potential-energy surface |
//! | `scale` | model coordinates per nm |
//! | `types` | JSON list of the atomic numbers or bead types that it knows; absent for any |
//! | `noise` | JSON object: the convention of σ or t; absent for models without |
//! | `command`, `seed` | how it was trained |
//! | `pdb` or `smiles` | the system, for models of one system |
//!
//! Files come from anywhere, so nothing in them is believed: sizes are bounded, tensors must have the type and shape that
//! the model asks for, all numbers must be finite, and tensors that nobody asks for are an error.

use crate::adapters::Prediction;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{SafeTensorError, SafeTensors};
use scorefield_integrators::{Dimension, Kind, Quantity, UnitSystem};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Largest header that is read: names, shapes and metadata.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// Version of the metadata's layout.
const VERSION: &str = "1";
const KEYS: [&str; 13] = [
    "architecture",
    "command",
    "ensemble",
    "noise",
    "parameters",
    "pdb",
    "prediction",
    "scale",
    "scorefield",
    "seed",
    "smiles",
    "types",
    "units",
];

/// What a model was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ensemble {
    /// A Boltzmann ensemble at this temperature in K (kT in reduced units).
    Temperature(f64),
    /// Minima only: its forces are no physical forces.
    Minima,
    /// Energies and forces of a potential-energy surface.
    Potential,
}

impl Ensemble {
    /// What forces of such a model mean.
    pub fn kind(self) -> Kind {
        match self {
            Ensemble::Temperature(t) => Kind::MeanForce { temperature_kelvin: t },
            Ensemble::Minima => Kind::PseudoForce,
            Ensemble::Potential => Kind::Physical,
        }
    }

    fn write(self, units: UnitSystem) -> String {
        match (self, units) {
            (Ensemble::Temperature(t), UnitSystem::Si) => format!("{t} K"),
            (Ensemble::Temperature(t), UnitSystem::Reduced) => t.to_string(),
            (Ensemble::Minima, _) => "minima".into(),
            (Ensemble::Potential, _) => "potential".into(),
        }
    }

    fn read(text: &str, units: UnitSystem) -> std::result::Result<Self, String> {
        match text {
            "minima" => Ok(Ensemble::Minima),
            "potential" => Ok(Ensemble::Potential),
            _ => {
                let t = text.parse::<Quantity>().and_then(|q| q.resolve(Dimension::TEMPERATURE, units)).map_err(|e| e.to_string())?;
                if t > 0.0 { Ok(Ensemble::Temperature(t)) } else { Err(format!("`{text}` is not above zero")) }
            }
        }
    }
}

/// The one system that a model was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OneSystem {
    /// A structure as the text of a PDB file.
    Pdb(String),
    /// A molecule as SMILES.
    Smiles(String),
}

/// What a file of weights says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Name of the network's architecture.
    pub architecture: String,
    /// The architecture's own settings.
    pub parameters: Map<String, Value>,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Units of positions and energies.
    pub units: UnitSystem,
    /// What it was trained on.
    pub ensemble: Ensemble,
    /// Model coordinates per nm.
    pub scale: f64,
    /// Atomic numbers or bead types that it knows; `None` for any.
    pub types: Option<Vec<u32>>,
    /// Convention of σ or t, for models that read a noise level.
    pub noise: Option<Map<String, Value>>,
    /// Command that trained it.
    pub command: String,
    /// Seed of the training.
    pub seed: u64,
    /// The system, for models of one system.
    pub system: Option<OneSystem>,
}

impl Metadata {
    fn to_map(&self) -> BTreeMap<&'static str, String> {
        let json = |m: &Map<String, Value>| Value::Object(m.clone()).to_string();
        let word =
            |v: std::result::Result<Value, serde_json::Error>| v.ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let mut map = BTreeMap::from([
            ("scorefield", VERSION.to_owned()),
            ("architecture", self.architecture.clone()),
            ("parameters", json(&self.parameters)),
            ("prediction", word(serde_json::to_value(self.prediction))),
            ("units", word(serde_json::to_value(self.units))),
            ("ensemble", self.ensemble.write(self.units)),
            ("scale", self.scale.to_string()),
            ("command", self.command.clone()),
            ("seed", self.seed.to_string()),
        ]);
        if let Some(types) = &self.types {
            map.insert("types", Value::from(types.clone()).to_string());
        }
        if let Some(noise) = &self.noise {
            map.insert("noise", json(noise));
        }
        match &self.system {
            Some(OneSystem::Pdb(text)) => map.insert("pdb", text.clone()),
            Some(OneSystem::Smiles(text)) => map.insert("smiles", text.clone()),
            None => None,
        };
        map
    }

    fn from_map(file: &Path, map: &std::collections::HashMap<String, String>) -> Result<Self> {
        let mut unknown: Vec<&String> = map.keys().filter(|k| !KEYS.contains(&k.as_str())).collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            return Err(Error::Unknown {
                context: file.display().to_string(),
                what: "metadata key",
                name: (*name).clone(),
                known: KEYS.iter().map(|k| (*k).to_owned()).collect(),
            });
        }
        let get = |key: &str| {
            let reason = || format!("its metadata lack `{key}`; it was not written by this program, convert it first");
            map.get(key).ok_or_else(|| Error::File { file: file.into(), reason: reason() })
        };
        let fail = |key: &str, why: String| Error::File { file: file.into(), reason: format!("metadata `{key}`: {why}") };
        let version = get("scorefield")?;
        if version != VERSION {
            return Err(fail("scorefield", format!("layout {version} is not known, only {VERSION}; use the program that wrote it")));
        }
        fn json<T: for<'a> Deserialize<'a>>(text: &str) -> std::result::Result<T, String> {
            serde_json::from_str(text).map_err(|e| e.to_string())
        }
        fn word<T: for<'a> Deserialize<'a>>(text: &str) -> std::result::Result<T, String> {
            T::deserialize(Value::from(text)).map_err(|e| e.to_string())
        }
        let optional = |key: &str| map.get(key);
        let units = word(get("units")?).map_err(|e| fail("units", e))?;
        let system = match (optional("pdb"), optional("smiles")) {
            (Some(_), Some(_)) => return Err(fail("pdb", "there is a `smiles` too; one of them must go".into())),
            (Some(text), None) => Some(OneSystem::Pdb(text.clone())),
            (None, Some(text)) => Some(OneSystem::Smiles(text.clone())),
            (None, None) => None,
        };
        let scale: f64 = get("scale")?.parse().map_err(|_| fail("scale", "it is not a number".into()))?;
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(fail("scale", format!("{scale} is refused; it must be finite and above zero")));
        }
        let architecture = get("architecture")?;
        if architecture.is_empty() {
            return Err(fail("architecture", "it is empty".into()));
        }
        Ok(Metadata {
            architecture: architecture.clone(),
            parameters: json(get("parameters")?).map_err(|e| fail("parameters", e))?,
            prediction: word(get("prediction")?).map_err(|e| fail("prediction", e))?,
            units,
            ensemble: Ensemble::read(get("ensemble")?, units).map_err(|e| fail("ensemble", e))?,
            scale,
            types: optional("types").map(|t| json(t)).transpose().map_err(|e| fail("types", e))?,
            noise: optional("noise").map(|t| json(t)).transpose().map_err(|e| fail("noise", e))?,
            command: get("command")?.clone(),
            seed: get("seed")?.parse().map_err(|_| fail("seed", "it is not a whole number".into()))?,
            system,
        })
    }
}

/// A file of weights in memory. Tensors are taken out one by one; [`WeightsFile::finish`] checks that none is left.
#[derive(Debug)]
pub struct WeightsFile {
    file: PathBuf,
    metadata: Metadata,
    tensors: BTreeMap<String, Tensor>,
    taken: Vec<String>,
}

impl WeightsFile {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// Where it cannot be read, is truncated or malformed, or holds numbers that are not finite; with the tensor's name.
    pub fn read(file: &Path) -> Result<Self> {
        let io = |e| Error::io(file, e);
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let mut open = std::fs::File::open(file).map_err(io)?;
        let length = open.metadata().map_err(io)?.len();
        if length > MAX_FILE_BYTES {
            return Err(refuse(format!("it has {length} bytes, more than the {MAX_FILE_BYTES} that are read")));
        }
        let mut size = [0; 8];
        open.read_exact(&mut size)
            .map_err(|_| refuse("it is shorter than a safetensors header; it is truncated or no such file".into()))?;
        let header = u64::from_le_bytes(size);
        if header > MAX_HEADER_BYTES {
            return Err(refuse(format!(
                "its header claims {header} bytes, more than the {MAX_HEADER_BYTES} that are read; is it safetensors?"
            )));
        }
        if header > length - 8 {
            return Err(refuse(format!("its header claims {header} bytes, but only {} follow; it is truncated", length - 8)));
        }
        let mut bytes = size.to_vec();
        open.take(length - 8).read_to_end(&mut bytes).map_err(io)?;
        Self::from_bytes(file, &bytes)
    }

    /// The same from memory; `file` names it in messages.
    ///
    /// # Errors
    /// As [`WeightsFile::read`].
    pub fn from_bytes(file: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::File { file: file.into(), reason };
        let (header, layout) = SafeTensors::read_metadata(bytes).map_err(|e| match e {
            SafeTensorError::InvalidOffset(tensor) => {
                Error::Tensor { file: file.into(), tensor, reason: "its place in the file overlaps another or leaves a gap".into() }
            }
            SafeTensorError::MetadataIncompleteBuffer => {
                refuse("its tensors need another number of bytes than follow; it is truncated or damaged".into())
            }
            SafeTensorError::TensorInvalidInfo => refuse("a tensor's shape and type need another number of bytes than it has".into()),
            e => refuse(format!("it is no safetensors file: {e}")),
        })?;
        let empty = std::collections::HashMap::new();
        let metadata = Metadata::from_map(file, layout.metadata().as_ref().unwrap_or(&empty))?;
        let mut tensors = BTreeMap::new();
        for (name, info) in layout.tensors() {
            let tensor = |reason: String| Error::Tensor { file: file.into(), tensor: name.clone(), reason };
            let dtype = match info.dtype {
                safetensors::Dtype::F64 => DType::F64,
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::F16 => DType::F16,
                safetensors::Dtype::BF16 => DType::BF16,
                other => return Err(tensor(format!("type {other:?} is refused; weights are F64, F32, F16 or BF16"))),
            };
            let (begin, end) = info.data_offsets;
            let data = bytes.get(8 + header + begin..8 + header + end).ok_or_else(|| tensor("its bytes are missing".into()))?;
            let values = Tensor::from_raw_buffer(data, dtype, &info.shape, &Device::Cpu)?;
            check_finite(file, &name, &values)?;
            tensors.insert(name, values);
        }
        Ok(WeightsFile { file: file.into(), metadata, tensors, taken: Vec::new() })
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names and shapes of the tensors that have not been taken, sorted.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t.dims()))
    }

    /// Takes the tensor `name`, which must have `shape`, as `dtype`.
    ///
    /// # Errors
    /// Where there is no such tensor (any more), or it has another shape.
    pub fn take(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let fail = |reason: String| Error::Tensor { file: self.file.clone(), tensor: name.into(), reason };
        let Some(values) = self.tensors.get(name) else {
            if self.taken.iter().any(|t| t == name) {
                return Err(fail("it is asked for twice; the model's description is wrong".into()));
            }
            let architecture = &self.metadata.architecture;
            let left: Vec<&str> = self.tensors.keys().take(8).map(String::as_str).collect();
            return Err(fail(format!(
                "it is missing, but {architecture} needs it with shape {shape:?}; the file has among others {}",
                left.join(", ")
            )));
        };
        if values.dims() != shape {
            return Err(fail(format!("its shape is {:?}, but {} needs {shape:?}", values.dims(), self.metadata.architecture)));
        }
        let values = values.to_dtype(dtype)?;
        self.tensors.remove(name);
        self.taken.push(name.to_owned());
        Ok(values)
    }

    /// Takes the tensor `name`, which must have `shape`, as numbers in row-major order.
    ///
    /// # Errors
    /// As [`WeightsFile::take`].
    pub fn values<T: candle_core::WithDType>(&mut self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        Ok(self.take(name, shape, T::DTYPE)?.flatten_all()?.to_vec1()?)
    }

    /// Checks that every tensor was taken.
    ///
    /// # Errors
    /// Where one is left: the file is of another model than its metadata say.
    pub fn finish(self) -> Result<()> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::Tensor {
                file: self.file,
                tensor: name.clone(),
                reason: format!(
                    "{} has no use for it ({} such tensors); the metadata belong to another model",
                    self.metadata.architecture,
                    self.tensors.len()
                ),
            }),
        }
    }
}

fn check_finite(file: &Path, name: &str, values: &Tensor) -> Result<()> {
    let wide = values.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match wide.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => {
            let reason = format!("element {i} is {}; the training diverged or the file is damaged", wide[i]);
            Err(Error::Tensor { file: file.into(), tensor: name.into(), reason })
        }
    }
}

/// Writes weights so that a reader never sees a half-written file. The same weights give the same bytes.
///
/// # Errors
/// Where a number is not finite, a type is no floating-point type, or the file cannot be written.
pub fn write(file: &Path, metadata: &Metadata, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let io = |e| Error::io(file, e);
    // Largest elements first, so that all are aligned; then by name.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(name, t)| (std::cmp::Reverse(t.dtype().size_in_bytes()), *name));
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.to_map().into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect());
    let mut data = Vec::new();
    for (name, tensor) in order {
        let dtype = match tensor.dtype() {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            other => {
                let reason = format!("type {other:?} is refused; weights are F64, F32, F16 or BF16");
                return Err(Error::Tensor { file: file.into(), tensor: name.clone(), reason });
            }
        };
        check_finite(file, name, tensor)?;
        let begin = data.len();
        data.extend_from_slice(&safetensors::View::data(&tensor));
        header.insert(name.clone(), serde_json::json!({ "dtype": dtype, "shape": tensor.dims(), "data_offsets": [begin, data.len()] }));
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::File {
            file: file.into(),
            reason: format!("its header would have {} bytes; use a smaller structure", text.len()),
        });
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = (|| {
        let mut out = std::fs::File::create(&part)?;
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(text.as_bytes())?;
        out.write_all(&data)?;
        out.sync_all()?;
        std::fs::rename(&part, file)
    })();
    if written.is_err() {
        // Nothing is lost where it was never made.
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(io)
}

/// Checks the temperature (K, or kT in reduced units) of a run against what a provider's forces mean. `None` where they fit;
/// where they do not, an error, or with `force` the same as a warning.
///
/// # Errors
/// [`Error::Ensemble`], where not forced.
pub fn check_temperature(name: &str, kind: Kind, asked: f64, force: bool) -> Result<Option<String>> {
    let (trained, remedy) = match kind {
        Kind::Physical => return Ok(None),
        Kind::MeanForce { temperature_kelvin: t } if (asked - t).abs() <= 1e-6 * t => return Ok(None),
        Kind::MeanForce { temperature_kelvin: t } => (format!("at {t} K"), format!("use {t} K, for which its mean forces hold")),
        Kind::PseudoForce => ("on minima".into(), "its forces know no temperature; relax with it, or take it as a rough guide only".into()),
    };
    let error = Error::Ensemble { name: name.into(), trained, asked: format!("{asked} K"), remedy };
    if force { Ok(Some(error.to_string())) } else { Err(error) }
}

#[cfg(test)]
mod tests;
