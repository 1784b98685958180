//! A model as it is in its file: parameters and the weights of every member, and their packed forms.

use super::network::Packed;
use super::parameters::{AniModel, Parameters};
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use scorefield_integrators::Real;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest file, header, committee, network and layer that are believed.
const MAX_FILE_BYTES: u64 = 1 << 30;
const MAX_HEADER_BYTES: u64 = 1 << 20;
const MAX_MEMBERS: usize = 64;
const MAX_LAYERS: usize = 12;
const MAX_LAYER_WIDTH: usize = 4096;
/// Packed forms kept for sets of elements that were used before.
const PACKS_KEPT: usize = 4;

/// One affine layer of all members.
pub(crate) struct Layer {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[members, outputs, inputs]`.
    pub(crate) weight: Vec<f32>,
    /// `[members, outputs]`.
    pub(crate) bias: Vec<f32>,
}

/// Parameters and weights, shared by all threads.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) parameters: Parameters,
    pub(crate) members: usize,
    /// The layers of each element's networks.
    pub(crate) networks: Vec<Vec<Layer>>,
    packs32: Mutex<Vec<Arc<Packed<f32>>>>,
    packs64: Mutex<Vec<Arc<Packed<f64>>>>,
}

/// Precisions in which a model keeps packed weights.
pub(crate) trait PackReal: Real {
    fn packs(model: &Model) -> &Mutex<Vec<Arc<Packed<Self>>>>;
}
impl PackReal for f32 {
    fn packs(model: &Model) -> &Mutex<Vec<Arc<Packed<f32>>>> {
        &model.packs32
    }
}
impl PackReal for f64 {
    fn packs(model: &Model) -> &Mutex<Vec<Arc<Packed<f64>>>> {
        &model.packs64
    }
}

/// Metadata with the JSON object `parameters`, where there is one, laid out flat: lists as numbers between commas.
fn flat(metadata: &Option<HashMap<String, String>>) -> HashMap<String, String> {
    let mut all = metadata.clone().unwrap_or_default();
    let text = all.remove("parameters").unwrap_or_default();
    if let Ok(serde_json::Value::Object(object)) = serde_json::from_str(&text) {
        let word = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        for (key, value) in object {
            let text = value.as_array().map_or_else(|| word(&value), |list| list.iter().map(word).collect::<Vec<_>>().join(","));
            all.insert(key, text);
        }
    }
    all
}

/// The file's bytes and metadata.
fn open(file: &Path) -> Result<(Vec<u8>, HashMap<String, String>)> {
    let mut input = match std::fs::File::open(file) {
        Ok(input) => input,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return refuse(
                file,
                "there is no such file. ANI weights are published (MIT licence) at https://github.com/aiqm/ani-model-zoo; \
                 fetch that repository and convert a model with `python data/scripts/convert_ani.py resources/ani-2x_8x ani2x.safetensors`",
            );
        }
        Err(e) => return Err(Error::io(file, e)),
    };
    let mut bytes = Vec::new();
    input.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(file, e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return refuse(file, format!("it has more than {MAX_FILE_BYTES} bytes; is it the right file?"));
    }
    match bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) {
        None => return refuse(file, "it is too short for a safetensors file"),
        Some(n) if n > MAX_HEADER_BYTES || n > bytes.len() as u64 - 8 => {
            return refuse(file, format!("its header claims {n} bytes of {}; it is truncated or no safetensors file", bytes.len()));
        }
        Some(_) => {}
    }
    let (_, header) = SafeTensors::read_metadata(&bytes)
        .map_err(|e| Error::File { file: file.into(), reason: format!("it is truncated or no safetensors file: {e}") })?;
    let metadata = flat(header.metadata());
    Ok((bytes, metadata))
}

fn refuse<T>(file: &Path, reason: impl Into<String>) -> Result<T> {
    Err(Error::File { file: file.into(), reason: reason.into() })
}

/// A tensor of single-precision numbers, all finite, of shape `shape`.
fn numbers(file: &Path, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let fail = |reason: String| Err(Error::Tensor { file: file.into(), tensor: name.into(), reason });
    let Ok(tensor) = tensors.tensor(name) else { return fail("it is missing".into()) };
    if tensor.dtype() != Dtype::F32 {
        return fail(format!("its type is {:?}; F32 is needed", tensor.dtype()));
    }
    if tensor.shape() != shape {
        return fail(format!("its shape is {:?}; {shape:?} is needed", tensor.shape()));
    }
    let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    match values.iter().position(|x| !x.is_finite()) {
        Some(i) => fail(format!("element {i} is {}; weights must be finite", values[i])),
        None => Ok(values),
    }
}

impl Model {
    /// Whether metadata or tensor names are those of an ANI model.
    pub(crate) fn recognises(file: &Path) -> bool {
        let Ok((bytes, metadata)) = open(file) else { return false };
        let tensors = || SafeTensors::deserialize(&bytes).is_ok_and(|t| t.tensor("H.0.weight").is_ok());
        AniModel::of_metadata(&metadata).is_some() || !metadata.contains_key("architecture") && tensors()
    }

    /// Reads `file`; `expected` is the model that the user named.
    ///
    /// # Errors
    /// What is missing, damaged, of another shape or not finite, and where to get the file.
    pub(crate) fn read(file: &Path, expected: Option<AniModel>) -> Result<Model> {
        let (bytes, metadata) = open(file)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::File { file: file.into(), reason: format!("it is truncated or no safetensors file: {e}") })?;
        let named = AniModel::of_metadata(&metadata);
        if let (Some(asked), Some(found)) = (expected, named)
            && asked != found
        {
            return refuse(
                file,
                format!("it holds {}, but {} was asked for; write `{}:weights=…`", found.name(), asked.name(), found.name()),
            );
        }
        let parameters = if Parameters::described(&metadata) {
            Parameters::from_metadata(&metadata).map_err(|reason| Error::File { file: file.into(), reason })?
        } else {
            let Some(model) = expected.or(named) else {
                return refuse(file, "its metadata do not say which model it is; write for example `ani2x:weights=FILE`");
            };
            model.parameters(|symbol| tensors.tensor(&format!("{symbol}.0.weight")).is_ok())
        };
        if parameters.elements.is_empty() {
            return refuse(file, "it has no ANI network; tensors must be called for example `H.0.weight`");
        }
        let name = expected.or(named).map(|m| m.name().to_owned()).or_else(|| metadata.get("architecture").cloned());
        let features = parameters.symmetry.features(parameters.elements.len());
        let first = format!("{}.0.weight", parameters.elements[0].symbol);
        let members = match tensors.tensor(&first).ok().and_then(|t| t.shape().first().copied()) {
            Some(m) if (1..=MAX_MEMBERS).contains(&m) => m,
            Some(m) => {
                let reason = format!("it has {m} members; 1 to {MAX_MEMBERS} are possible");
                return Err(Error::Tensor { file: file.into(), tensor: first, reason });
            }
            None => return Err(Error::Tensor { file: file.into(), tensor: first, reason: "it is missing".into() }),
        };
        let mut networks = Vec::with_capacity(parameters.elements.len());
        let mut used = 0;
        for element in &parameters.elements {
            let mut layers: Vec<Layer> = Vec::new();
            let mut inputs = features;
            loop {
                let (weight, bias) =
                    (format!("{}.{}.weight", element.symbol, layers.len()), format!("{}.{}.bias", element.symbol, layers.len()));
                let outputs = match tensors.tensor(&weight) {
                    Ok(t) => t.shape().get(1).copied().unwrap_or(0),
                    Err(_) if layers.len() >= 2 => break,
                    Err(_) => return Err(Error::Tensor { file: file.into(), tensor: weight, reason: "it is missing".into() }),
                };
                if outputs == 0 || outputs > MAX_LAYER_WIDTH || layers.len() == MAX_LAYERS {
                    let reason = format!(
                        "{outputs} outputs in layer {}; 1 to {MAX_LAYER_WIDTH} in up to {MAX_LAYERS} layers are possible",
                        layers.len()
                    );
                    return Err(Error::Tensor { file: file.into(), tensor: weight, reason });
                }
                layers.push(Layer {
                    inputs,
                    outputs,
                    weight: numbers(file, &tensors, &weight, &[members, outputs, inputs])?,
                    bias: numbers(file, &tensors, &bias, &[members, outputs])?,
                });
                used += 2;
                inputs = outputs;
            }
            if inputs != 1 {
                let tensor = format!("{}.{}.weight", element.symbol, layers.len() - 1);
                return Err(Error::Tensor {
                    file: file.into(),
                    tensor,
                    reason: format!("the last layer has {inputs} outputs; 1 is needed"),
                });
            }
            networks.push(layers);
        }
        if tensors.len() != used {
            return refuse(
                file,
                format!("it has {} tensors, of which an ANI model uses {used}; is it another architecture?", tensors.len()),
            );
        }
        let name = name.unwrap_or_else(|| "ani".into());
        Ok(Model { name, parameters, members, networks, packs32: Mutex::default(), packs64: Mutex::default() })
    }

    /// The networks of `elements` (ascending), packed for kernels; made once and shared.
    pub(crate) fn packed<T: PackReal>(&self, elements: &[usize]) -> Arc<Packed<T>> {
        // A thread that panicked while packing has left the list as it was.
        let mut packs = T::packs(self).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = packs.iter().position(|p| p.elements() == elements) {
            let pack = packs.remove(i);
            packs.push(pack.clone());
            return pack;
        }
        let pack = Arc::new(Packed::new(self, elements));
        if packs.len() == PACKS_KEPT {
            packs.remove(0);
        }
        packs.push(pack.clone());
        pack
    }
}
