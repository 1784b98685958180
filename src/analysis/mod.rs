//! Numbers from trajectories: errors of averages, shapes of molecules, free energies, distances of distributions, slow
//! motions. Pure functions, no files.

pub mod divergence;
pub mod free_energy;
pub mod geometry;
#[cfg(test)]
mod golden;
pub mod kinetic;
pub mod molecules;
pub mod pmf;
pub mod reweight;
pub mod statistics;
pub mod tica;
pub mod transition;
pub mod wasserstein;
