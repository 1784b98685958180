//! ANI-2x, ANI-1x and ANI-1ccx: atomic networks on environment vectors (Smith, Isayev, Roitberg, *Chem. Sci.* 2017, 8, 3192;
//! Smith et al., *Nat. Commun.* 2019, 10, 2903; Devereux et al., *J. Chem. Theory Comput.* 2020, 16, 4192).
//!
//! ```text
//! E = 1/M Σₘ Σᵢ e_{Z(i)}^{(m)}(AEVᵢ) + Σᵢ E₀(Zᵢ),   F = −∂E/∂x
//! ```
//!
//! The equations of the environment vectors are in `descriptor.rs`, those of the networks in `network.rs`. Backward passes
//! are written by hand; members are averaged before the gradient goes back through the environment vectors, which is done
//! once. Lengths are Å and energies hartree inside this module, nm and kJ/mol outside.
//!
//! Weights come from a safetensors file with tensors `{element}.{layer}.weight` `[members, outputs, inputs]` and `.bias`
//! `[members, outputs]`. Metadata are in the layout of this program's weights, with `parameters` as
//! `data/scripts/convert_ani.py` writes them, or the same parameters as lists of numbers under their published names. A file
//! may leave elements out; the columns of the first layer are then those of the elements it has.

mod descriptor;
mod device;
mod local;
mod model;
mod network;
mod parameters;
mod provider;
#[cfg(test)]
mod tests;

pub use local::AniLocal;
pub use parameters::AniModel;
pub use provider::AniProvider;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An ANI model as written on the command line or in a TOML file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AniSpec {
    /// The file of its weights.
    pub weights: PathBuf,
}
