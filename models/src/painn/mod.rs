//! PaiNN: equivariant message passing, as a force field with an energy, trained on energies and forces, and as a generative
//! pseudo-force field (GPFF, arXiv 2605.19050), whose vectors point from a noisy structure to the one it came from.

mod assignment;
mod batched;
pub mod config;
mod device;
mod kernels;
pub mod local;
pub mod model;
mod network;
pub mod noising;
pub mod potential;
pub mod provider;
mod surroundings;
mod tangent;
mod tangent_kernels;
pub mod trainer;

pub use config::{Head, PainnConfig};
pub use model::PainnModel;
pub use provider::{PainnProvider, PainnSpec};

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod periodic_tests;
#[cfg(test)]
mod potential_tests;
#[cfg(test)]
mod tests;
