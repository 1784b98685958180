//! Reads the safetensors file of an SO3LR model: every tensor by name, shape and finite numbers, none left over.

use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where weights come from.
const SOURCE: &str = "the weights are published at github.com/general-molecular-simulations/so3lr; see docs/potentials.md";
/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Widths of heads that kernels exist for.
const HEAD_WIDTHS: [usize; 2] = [16, 32];
/// Largest number of interaction layers.
const MAX_LAYERS: usize = 64;
/// Largest width of anything.
const MAX_WIDTH: usize = 4096;

/// A dense layer `y = x W + b` in row-major order `[inputs, outputs]`.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: Vec<f64>,
    pub(super) bias: Vec<f64>,
}

/// Scale and bias of a layer normalisation.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) scale: Vec<f64>,
    pub(super) bias: Vec<f64>,
}

/// Embedding of a total charge or of a number of unpaired electrons.
#[derive(Clone, Debug)]
pub(super) struct ChargeEmbedding {
    /// `[elements, F]`
    pub(super) query: Vec<f64>,
    /// `[2, F]`: not negative, negative.
    pub(super) key: Vec<f64>,
    /// `[2, F]`
    pub(super) value: Vec<f64>,
    pub(super) residual: [Dense; 2],
}

/// One of the two filters' networks of a layer.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) radial: [Dense; 2],
    pub(super) spherical: [Dense; 2],
}

/// One interaction layer.
#[derive(Clone, Debug)]
pub(super) struct LayerWeights {
    /// `Wq1 Wk1 Wv1 Wq2 Wk2`, each `[4, D, D]` with rows the outputs.
    pub(super) projections: [Vec<f64>; 5],
    pub(super) filters: [Filter; 2],
    pub(super) norms: [Norm; 2],
    pub(super) mlp: [Dense; 2],
    pub(super) exchange: Dense,
}

/// All parameters of a model, widened to double precision.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    /// Number of features F.
    pub(super) features: usize,
    /// Number of rows of tables by element.
    pub(super) elements: usize,
    pub(super) embedding: Vec<f64>,
    pub(super) charge_embedding: ChargeEmbedding,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) energy: [Dense; 2],
    pub(super) energy_scale: Vec<f64>,
    pub(super) energy_offset: Vec<f64>,
    /// `a1..a4, c1..c4, d, p` before softplus.
    pub(super) repulsion: [f64; 10],
    pub(super) charge: [Dense; 2],
    pub(super) charge_offset: Vec<f64>,
    pub(super) hirshfeld: [Dense; 2],
    pub(super) hirshfeld_offset: Vec<f64>,
    /// `[elements, width]`
    pub(super) hirshfeld_query: Vec<f64>,
}

/// Whether `file` has the first tensor of SO3LR's attention.
pub(crate) fn recognises(file: &Path) -> bool {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.is_ok() && SafeTensors::deserialize(&bytes).is_ok_and(|t| t.tensor("layers_0.attention_block.Wq1").is_ok())
}

struct Tensor {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Tensors not yet taken.
struct Reader {
    file: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Reader {
    fn refuse<T>(&self, tensor: &str, reason: impl Into<String>) -> Result<T> {
        Err(Error::Tensor { file: self.file.clone(), tensor: tensor.into(), reason: reason.into() })
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        match self.tensors.get(name) {
            Some(t) => Ok(&t.shape),
            None => self.refuse(name, "it is missing; is this a file of SO3LR weights?"),
        }
    }

    /// Size `axis` of a tensor of `axes` axes, between 1 and the largest width.
    fn width(&self, name: &str, axes: usize, axis: usize) -> Result<usize> {
        let shape = self.shape(name)?;
        match shape.get(axis) {
            Some(&n) if shape.len() == axes && n > 0 && n <= MAX_WIDTH => Ok(n),
            _ => self.refuse(name, format!("its shape is {shape:?}; it has {axes} axes of 1 to {MAX_WIDTH}")),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let found = self.shape(name)?;
        if found != shape {
            return self.refuse(name, format!("its shape is {found:?}, but this architecture needs {shape:?}"));
        }
        Ok(self.tensors.remove(name).map(|t| t.values).unwrap_or_default())
    }

    fn dense(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Dense> {
        let kernel = self.take(&format!("{name}.kernel"), &[inputs, outputs])?;
        let bias = if bias { self.take(&format!("{name}.bias"), &[outputs])? } else { vec![0.0; outputs] };
        Ok(Dense { inputs, outputs, kernel, bias })
    }

    /// Two layers with a hidden width of their own.
    fn two(&mut self, first: &str, second: &str, inputs: usize, outputs: usize) -> Result<[Dense; 2]> {
        let hidden = self.width(&format!("{first}.kernel"), 2, 1)?;
        Ok([self.dense(first, inputs, hidden, true)?, self.dense(second, hidden, outputs, true)?])
    }

    fn norm(&mut self, name: &str, features: usize) -> Result<Norm> {
        Ok(Norm { scale: self.take(&format!("{name}.scale"), &[features])?, bias: self.take(&format!("{name}.bias"), &[features])? })
    }

    fn charge_embedding(&mut self, which: usize, elements: usize, features: usize) -> Result<ChargeEmbedding> {
        let name = format!("feature_embeddings_{which}.ChargeSpinEmbedSparse_0");
        Ok(ChargeEmbedding {
            query: self.take(&format!("{name}.Embed_0.embedding"), &[elements, features])?,
            key: self.take(&format!("{name}.Embed_1.embedding"), &[2, features])?,
            value: self.take(&format!("{name}.Embed_2.embedding"), &[2, features])?,
            residual: [
                self.dense(&format!("{name}.Residual_0.layers_0"), features, features, false)?,
                self.dense(&format!("{name}.Residual_0.layers_1"), features, features, false)?,
            ],
        })
    }

    fn filter(&mut self, attention: &str, k: usize, features: usize) -> Result<Filter> {
        let radial = format!("{attention}.radial_filter{k}_layer");
        let spherical = format!("{attention}.spherical_filter{k}_layer");
        let basis = self.width(&format!("{radial}_1.kernel"), 2, 0)?;
        if !(2..=64).contains(&basis) {
            return self.refuse(&format!("{radial}_1.kernel"), format!("{basis} radial functions; there are 2 to 64"));
        }
        Ok(Filter {
            radial: self.two(&format!("{radial}_1"), &format!("{radial}_2"), basis, features)?,
            spherical: self.two(&format!("{spherical}_1"), &format!("{spherical}_2"), 4, features)?,
        })
    }

    fn layer(&mut self, index: usize, features: usize) -> Result<LayerWeights> {
        let name = format!("layers_{index}");
        let attention = format!("{name}.attention_block");
        let width = features / 4;
        let mut projection = |k: &str| self.take(&format!("{attention}.{k}"), &[4, width, width]);
        let projections = [projection("Wq1")?, projection("Wk1")?, projection("Wv1")?, projection("Wq2")?, projection("Wk2")?];
        let mlp = format!("{name}.res_mlp_1_layer");
        let norm = format!("{name}.layer_normalization");
        Ok(LayerWeights {
            projections,
            filters: [self.filter(&attention, 1, features)?, self.filter(&attention, 2, features)?],
            norms: [self.norm(&format!("{norm}_1"), features)?, self.norm(&format!("{norm}_2"), features)?],
            mlp: self.two(&format!("{mlp}_1"), &format!("{mlp}_2"), features, features)?,
            exchange: self.dense(&format!("{name}.exchange_block.mlp_layer_2"), features + 4, features + 4, true)?,
        })
    }
}

/// Numbers of a tensor, widened.
fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    Some(match dtype {
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b) as f64).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|&b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16) as f64).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| half(u16::from_le_bytes(b))).collect(),
        _ => return None,
    })
}

/// An IEEE half-precision number.
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = ((bits >> 10) & 31, (bits & 1023) as f64);
    let size = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1024.0 + mantissa) * 2f64.powi(e as i32 - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

impl Weights {
    /// Reads `file`.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let open = std::fs::File::open(file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::File { file: file.into(), reason: format!("there is no such file; {SOURCE}") },
            _ => Error::io(file, e),
        })?;
        let mut bytes = Vec::new();
        open.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(file, e))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::File { file: file.into(), reason: format!("it is larger than {MAX_BYTES} bytes; is it the right file?") });
        }
        Self::parse(&bytes, file)
    }

    /// Reads the contents of `file`.
    pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Self> {
        let refuse = |e: safetensors::SafeTensorError| Error::File { file: file.into(), reason: format!("no safetensors file: {e}") };
        let all = SafeTensors::deserialize(bytes).map_err(refuse)?;
        let mut reader = Reader { file: file.into(), tensors: BTreeMap::new() };
        for (name, view) in all.iter() {
            let Some(values) = widen(view.dtype(), view.data()) else {
                return reader.refuse(name, format!("its type is {:?}; known are F16, BF16, F32, F64", view.dtype()));
            };
            if let Some(i) = values.iter().position(|v| !v.is_finite() || v.abs() > 1e12) {
                return reader.refuse(name, format!("number {i} is {}; weights are finite", values[i]));
            }
            reader.tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
        }
        let embedding = "feature_embeddings_0.Embed_0.embedding";
        let (elements, features) = (reader.width(embedding, 2, 0)?, reader.width(embedding, 2, 1)?);
        if !HEAD_WIDTHS.iter().any(|w| 4 * w == features) {
            return reader.refuse(embedding, format!("{features} features; known are 64 and 128 (4 heads of 16 or 32)"));
        }
        let mut layers = Vec::new();
        while reader.tensors.contains_key(&format!("layers_{}.attention_block.Wq1", layers.len())) && layers.len() < MAX_LAYERS {
            layers.push(reader.layer(layers.len(), features)?);
        }
        if layers.is_empty() {
            return reader.refuse("layers_0.attention_block.Wq1", "it is missing; is this a file of SO3LR weights?");
        }
        let basis = layers[0].filters[0].radial[0].inputs;
        if layers.iter().flat_map(|l| &l.filters).any(|f| f.radial[0].inputs != basis) {
            return reader.refuse("layers_0.attention_block.radial_filter1_layer_1.kernel", "layers differ in their radial functions");
        }
        let r = &mut reader;
        let o = "observables_0";
        let mut repulsion = [0.0; 10];
        for (value, k) in repulsion.iter_mut().zip(["a1", "a2", "a3", "a4", "c1", "c2", "c3", "c4", "d", "p"]) {
            *value = r.take(&format!("{o}.zbl_repulsion.{k}"), &[1])?[0];
        }
        let q = format!("{o}.electrostatic_energy.partial_charges");
        let h = "observables_2.hirshfeld_ratios_dense";
        let query = "observables_2.Embed_1.embedding";
        // Outputs are tabulated for fewer elements than features are.
        let outputs = r.width(query, 2, 0)?.min(elements);
        let width = r.width(query, 2, 1)?;
        let charge_rows = r.width(&format!("{q}.Embed_0.embedding"), 2, 0)?;
        let offset_rows = r.width("observables_2.Embed_0.embedding", 2, 0)?;
        let query_rows = r.width(query, 2, 0)?;
        let weights = Weights {
            features,
            elements: outputs.min(charge_rows).min(offset_rows),
            embedding: r.take(embedding, &[elements, features])?,
            charge_embedding: r.charge_embedding(1, elements, features)?,
            layers,
            energy: r.two(&format!("{o}.energy_dense_regression"), &format!("{o}.energy_dense_final"), features, 1)?,
            energy_scale: r.take(&format!("{o}.atomic_scales"), &[elements])?,
            energy_offset: r.take(&format!("{o}.energy_offset"), &[elements])?,
            repulsion,
            charge: r.two(&format!("{q}.charge_dense_regression_vec"), &format!("{q}.charge_dense_final_vec"), features, 1)?,
            charge_offset: r.take(&format!("{q}.Embed_0.embedding"), &[charge_rows, 1])?,
            hirshfeld: r.two(&format!("{h}_regression"), &format!("{h}_final"), features, width)?,
            hirshfeld_offset: r.take("observables_2.Embed_0.embedding", &[offset_rows, 1])?,
            hirshfeld_query: r.take(query, &[query_rows, width])?,
        };
        // The embedding of unpaired electrons is zero for closed shells; it is checked and left out.
        r.charge_embedding(2, elements, features)?;
        match reader.tensors.keys().next() {
            None => Ok(weights),
            Some(name) => reader.refuse(name, "it is not part of this architecture"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f64.powi(-24)), (0x7bff, 65504.0), (0x3555, 0.333251953125)] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
    }
}
