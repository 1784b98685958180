//! What is wrong with a molecule.

/// Why atoms, bonds or a text are no molecule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An element outside the table.
    #[error("atom {atom} has atomic number {number}; molecules of elements 1 to 86 are understood")]
    Element {
        /// Index from 0.
        atom: usize,
        /// Atomic number.
        number: u32,
    },
    /// Coordinates and elements do not belong together.
    #[error("{coordinates} coordinates for {atoms} atoms; three per atom are needed")]
    Shape {
        /// Number of atoms.
        atoms: usize,
        /// Numbers given.
        coordinates: usize,
    },
    /// An element without covalent valences.
    #[error("atom {atom} ({symbol}) has no covalent valence; bonds cannot be perceived")]
    NoValence {
        /// Index from 0.
        atom: usize,
        /// Its symbol.
        symbol: &'static str,
    },
    /// More neighbours than bonds.
    #[error("atom {atom} ({symbol}) has {bonds} neighbours, which none of its valences allows")]
    TooManyBonds {
        /// Index from 0.
        atom: usize,
        /// Its symbol.
        symbol: &'static str,
        /// Number of neighbours.
        bonds: usize,
    },
    /// The search for bond orders was given up.
    #[error("no bond orders among the first {tried} choices of valences; the structure is far from any molecule or too large")]
    TooManyChoices {
        /// Choices tried.
        tried: u64,
    },
    /// Charges of the atoms do not add up.
    #[error("formal charges add up to {found} instead of {wanted}; no bond orders give that charge")]
    Charge {
        /// Sum of the formal charges found.
        found: i32,
        /// Total charge asked for.
        wanted: i32,
    },
    /// A valence that the element does not have.
    #[error("atom {atom} ({symbol}) has valence {valence}, which is more than it can have")]
    Valence {
        /// Index from 0.
        atom: usize,
        /// Its symbol.
        symbol: &'static str,
        /// Sum of bond orders.
        valence: usize,
    },
    /// Aromatic atoms for which no Kekulé structure exists.
    #[error("aromatic atom {atom} ({symbol}) is left without a double bond; a hydrogen or a charge may be missing")]
    Kekule {
        /// Index from 0.
        atom: usize,
        /// Its symbol.
        symbol: &'static str,
    },
    /// A SMILES string that cannot be understood.
    #[error("SMILES `{text}`, position {position}: {what}")]
    Smiles {
        /// The whole text.
        text: String,
        /// Place of the error, from 1.
        position: usize,
        /// What is wrong there.
        what: String,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;
