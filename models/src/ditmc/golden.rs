//! Tensors of the authors' code, for tests.

use super::config::DitmcConfig;
use super::context::GraphContext;
use super::layout::Layout;
use crate::molecule::{Graph, Vocabulary};
use safetensors::tensor::{Dtype, SafeTensors};
use std::path::PathBuf;

/// Molecules of the reference data.
pub(super) const MOLECULES: [(&str, &str); 2] = [("ethanol", "CCO"), ("paracetamol", "CC(=O)Nc1ccc(O)cc1")];

/// A file of reference tensors.
pub(super) struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    /// The file, where there is reference data.
    pub(super) fn open(name: &str) -> Option<Self> {
        let folder = std::env::var_os("SCOREFIELD_REFERENCE").map_or_else(|| PathBuf::from("../../shared"), PathBuf::from);
        let path = folder.join("golden/ditmc").join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Some(Golden { bytes }),
            Err(_) => {
                println!("skipped: {} is missing; set SCOREFIELD_REFERENCE to the folder of reference data", path.display());
                None
            }
        }
    }

    /// The numbers of a tensor.
    pub(super) fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = view.data();
        match view.dtype() {
            Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::I64 => data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::I32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
            Dtype::U8 => data.iter().map(|&b| f64::from(b)).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// As computed in double precision; inputs are in single precision only.
    pub(super) fn double(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let double = format!("f64.{name}");
        if file.tensor(&double).is_ok() { self.get(&double) } else { self.get(name) }
    }

    /// Padded parameters.
    pub(super) fn parameters(&self, layout: &Layout) -> Vec<f64> {
        let real: Vec<f64> = layout.entries.iter().flat_map(|e| self.get(&format!("params.{}", e.name))).collect();
        layout.pad(&real)
    }
}

/// Sizes of the reference networks.
pub(super) fn small() -> DitmcConfig {
    DitmcConfig { blocks: 2, heads: 4, head_width: 8, ..DitmcConfig::default() }
}

pub(super) fn context(smiles: &str, vocabulary: Vocabulary) -> GraphContext {
    GraphContext::new(&Graph::from_smiles(smiles).unwrap(), vocabulary).unwrap()
}

/// Largest difference over the largest entry.
pub(super) fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / most
}
