//! DiTMC: conformers of a molecular graph by a diffusion transformer (arXiv 2506.15378).

mod attention;
mod conditioner;
pub mod config;
pub mod context;
#[cfg(test)]
mod golden;
mod kernels;
mod layers;
mod network;

pub use config::{DitmcConfig, PairTokens, Variant};
pub use context::GraphContext;

