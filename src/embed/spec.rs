//! What to open, as other programs write it.

use crate::error::{Result, usage};
use crate::io::elements;
use scorefield_integrators::DType;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A model, the atoms it acts on and how it is computed: `{"model": "lj:sigma=3.405 A,epsilon=0.0103 eV", "types": ["Ar", "Ar"]}`.
///
/// Atoms come from a `structure` file or from `types`; without both they are those that the model brings along, if it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// The model, as after `--model`.
    pub model: String,
    /// A structure file; its first frame counts.
    pub structure: Option<PathBuf>,
    /// Elements, one per atom.
    pub types: Option<Vec<Species>>,
    /// Masses `[N]` in u; by default those of the elements. Forces do not depend on them, dynamics does.
    pub masses: Option<Vec<f64>>,
    /// Start positions `[N, 3]` in nm, for models that are bound to them (restraints).
    pub positions: Option<Vec<[f64; 3]>>,
    /// Precision that forces are computed in; `f64` where nothing is said.
    pub dtype: Option<DType>,
    /// Threads over which the structures of a batch are spread; 1 where nothing is said.
    pub threads: Option<usize>,
}

/// An element by number or symbol, or a model's own type by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Species {
    /// Atomic number.
    Number(u32),
    /// Symbol.
    Symbol(String),
}

impl Species {
    /// The atomic number.
    ///
    /// # Errors
    /// Where there is no such element.
    pub fn number(&self) -> Result<u32> {
        match self {
            Species::Number(n) => Ok(*n),
            Species::Symbol(s) => match elements::element(s) {
                Some((number, _)) => Ok(number),
                None => usage(format!("types: `{s}` is no element; write symbols such as \"Ar\" or atomic numbers")),
            },
        }
    }
}

impl Spec {
    /// Reads JSON.
    ///
    /// # Errors
    /// Where it is no JSON, or has keys that mean nothing.
    pub fn from_json(text: &str) -> Result<Self> {
        match serde_json::from_str::<Spec>(text) {
            Ok(spec) => Ok(spec),
            Err(e) => usage(format!("the specification cannot be read: {e}; write for example {{\"model\": \"muller-brown\"}}")),
        }
    }
}
