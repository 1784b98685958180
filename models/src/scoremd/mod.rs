//! ScoreMD: diffusion models whose score is a force field for molecular dynamics (M. Plainer et al., *Consistent Sampling
//! and Simulation: Molecular Dynamics with Energy-Based Diffusion Models*, arXiv 2506.17139).
//!
//! A network gives the energy `E(x, t) = −log q_t(x)` of noised data up to a constant, in units of kT and in normalised
//! coordinates; its score is `s = −∂E/∂x`. At `t → 0` this is the energy of the data themselves, so that
//! `F(x) = kT c s(c x, t)` is a force, where `c` are model coordinates per nm. A mixture has one network per range of times.

#[cfg(test)]
pub(crate) mod analytic;
pub mod config;
#[cfg(test)]
mod device_tests;
pub mod domain;
pub mod fixed_time;
pub mod fokker_planck;
mod graph_transformer;
pub mod initial;
mod kernels;
pub mod likelihood;
mod linear;
pub mod log_z;
pub mod loss;
pub mod mixture;
mod mlp;
pub mod model;
pub mod network;
#[cfg(test)]
mod network_tests;
pub mod process;
pub mod provider;
#[cfg(test)]
mod provider_tests;
pub mod published;
pub mod residual;
pub mod sampler;
#[cfg(test)]
mod sampler_tests;
pub mod trainer;
pub mod transfer;

pub use mixture::Mixture;
pub use model::Model;
pub use network::network;
