//! DiTMC: conformers of a molecular graph by a diffusion transformer (arXiv 2506.15378).

mod attention;
mod batched;
pub mod checks;
mod condition;
mod conditioner;
pub mod config;
pub mod context;
mod device;
#[cfg(test)]
mod device_tests;
pub mod ensemble;
mod equivariant;
#[cfg(test)]
mod golden;
pub mod handedness;
mod kernels;
mod layers;
mod layout;
pub mod model;
mod network;
mod previous;
pub mod process;
pub mod provider;
pub mod rows;
pub mod sampler;
mod scalar;
pub mod trainer;

pub use config::{DitmcConfig, PairTokens, Variant};
pub use context::GraphContext;
pub use model::DitmcModel;
pub use process::Path;
pub use provider::{DitmcProvider, DitmcSpec};
pub use sampler::{Sampler, SamplerSettings};
