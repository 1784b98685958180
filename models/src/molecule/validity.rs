//! What a generated structure is worth: is it a molecule, is it in one piece, and without unpaired electrons?

use super::error::Error;
use super::graph::Graph;
use super::perceive::{Convention, Perceiver};

/// What perception says of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One connected molecule without unpaired electrons.
    Valid(Graph),
    /// A molecule each, but in several pieces.
    Disconnected(Graph),
    /// Connected, with unpaired electrons.
    Radical(Graph),
    /// No molecule.
    NotPerceived(Error),
}

impl Verdict {
    /// Judges atoms of `elements` (`[N]`) at `positions` (`[N, 3]`, nm) as Kahouli et al. (arXiv 2605.19050) do: RDKit's
    /// DetermineBonds finds bonds, they connect all atoms, and no electron is unpaired.
    pub fn of(perceiver: &mut Perceiver, elements: &[u32], positions: &[f64], convention: Convention) -> Verdict {
        match perceiver.perceive(elements, positions, convention) {
            Err(error) => Verdict::NotPerceived(error),
            Ok(graph) if graph.fragments() != 1 => Verdict::Disconnected(graph),
            Ok(graph) if graph.radicals() > 0 => Verdict::Radical(graph),
            Ok(graph) => Verdict::Valid(graph),
        }
    }

    /// True for a valid molecule.
    pub fn is_valid(&self) -> bool {
        matches!(self, Verdict::Valid(_))
    }

    /// The graph, where there is one.
    pub fn graph(&self) -> Option<&Graph> {
        match self {
            Verdict::Valid(g) | Verdict::Disconnected(g) | Verdict::Radical(g) => Some(g),
            Verdict::NotPerceived(_) => None,
        }
    }

    /// In a word, for tables and files.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Valid(_) => "valid",
            Verdict::Disconnected(_) => "disconnected",
            Verdict::Radical(_) => "radical",
            Verdict::NotPerceived(_) => "no-molecule",
        }
    }
}
