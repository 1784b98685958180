//! Numbers from trajectories: errors of averages, shapes of molecules, free energies. Pure functions, no files.

pub mod free_energy;
pub mod geometry;
pub mod statistics;
