//! Chemistry: molecular graphs, how they are perceived from coordinates, what makes them valid and equal.

mod aromaticity;
mod bond_orders;
mod canonical;
mod connectivity;
mod element;
mod error;
mod features;
mod graph;
mod hybridisation;
mod matching;
mod perceive;
mod rings;
mod sanitize;
mod smiles;
#[cfg(test)]
mod smiles_tests;
mod stability;
mod stereo;
mod symmetry;
#[cfg(test)]
mod tests;
mod validity;

pub use canonical::{Compare, Identity, Numbering};
pub use element::{Element, HEAVIEST};
pub use error::{Error, Result};
pub use features::{Features, UNREACHABLE, Vocabulary};
pub use graph::{Atom, Bond, Chirality, DoubleBondStereo, Graph, Neighbour};
pub use hybridisation::Hybridisation;
pub use perceive::{Convention, Perceiver};
pub use rings::Rings;
pub use stability::Stability;
pub use symmetry::Symmetry;
pub use validity::Verdict;
