//! Molecules from noise: what they are made of, and how they get through a sampler.

pub mod conformers;
mod formula;
mod run;
pub mod torsions;

pub use formula::{Compositions, formula, molecule, parse_formula};
pub use run::{Batches, Generated, Summary, Verdicts, denoise, noise_levels, record};
