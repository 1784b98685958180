//! From elements and coordinates to a molecular graph, equivalent to RDKit's `DetermineBonds` with its defaults.

use super::bond_orders::{BondOrders, MOST_CHOICES};
use super::connectivity::Connectivity;
use super::element::{Element, HEAVIEST};
use super::error::{Error, Result};
use super::graph::{Atom, Bond, Graph};
use super::sanitize::{check_valences, clean_up, radicals};

/// How charges are read into a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    /// Total charge in units of e.
    pub charge: i32,
    /// Atoms may be charged (`[NH3+]CC([O-])=O`); if not, what a charge would explain are unpaired electrons.
    pub charged_fragments: bool,
    /// Choices of valences that are tried before [`Error::TooManyChoices`].
    pub most_choices: u64,
}

impl Default for Convention {
    /// Neutral molecules in which atoms may be charged, as RDKit's defaults.
    fn default() -> Self {
        Convention { charge: 0, charged_fragments: true, most_choices: MOST_CHOICES }
    }
}

impl Convention {
    /// Neutral molecules of neutral atoms.
    pub fn without_charges() -> Self {
        Convention { charged_fragments: false, ..Convention::default() }
    }
}

/// Perceives graphs; keeps its memory from one molecule to the next.
#[derive(Default)]
pub struct Perceiver {
    elements: Vec<u8>,
    angstrom: Vec<f64>,
    connectivity: Connectivity,
    orders: BondOrders,
    charges: Vec<i32>,
}

impl Perceiver {
    /// A perceiver without any molecule yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The graph of atoms of `elements` (atomic numbers `[N]`) at `positions` (`[N, 3]`, nm). Bond orders are those of one
    /// Kekulé structure; [`Graph::find_aromaticity`] marks what is aromatic. Handedness is not set.
    ///
    /// # Errors
    /// Where the structure is no molecule: see [`Error`].
    pub fn perceive(&mut self, elements: &[u32], positions: &[f64], convention: Convention) -> Result<Graph> {
        self.load(elements, positions)?;
        self.connectivity.find(&self.elements, &self.angstrom);
        self.orders.find(&self.elements, &self.connectivity, convention.charge, convention.most_choices)?;
        self.build(convention)
    }

    fn load(&mut self, elements: &[u32], positions: &[f64]) -> Result<()> {
        if positions.len() != 3 * elements.len() {
            return Err(Error::Shape { atoms: elements.len(), coordinates: positions.len() });
        }
        self.elements.clear();
        for (atom, &number) in elements.iter().enumerate() {
            match u8::try_from(number) {
                Ok(z) if Element::of(z).is_some() => self.elements.push(z),
                _ => return Err(Error::Element { atom, number }),
            }
        }
        debug_assert!(self.elements.iter().all(|z| *z <= HEAVIEST));
        self.angstrom.clear();
        self.angstrom.extend(positions.iter().map(|x| 10.0 * x));
        Ok(())
    }

    fn build(&mut self, convention: Convention) -> Result<Graph> {
        let (orders, elements) = (&self.orders, &self.elements);
        if convention.charged_fragments {
            orders.charges(elements, convention.charge, &mut self.charges);
        } else {
            self.charges.clear();
            self.charges.resize(elements.len(), 0);
        }
        let found = self.charges.iter().sum();
        if found != convention.charge {
            return Err(Error::Charge { found, wanted: convention.charge });
        }
        let atoms = elements.iter().zip(&self.charges).map(|(&z, &q)| Atom { charge: q as i8, ..Atom::new(z) }).collect();
        // More than a triple bond is none that we write; it is left single, and its atoms keep unpaired electrons.
        let order = |o: u8| if o > 3 { 1 } else { o };
        let bonds = orders.pairs.iter().zip(&orders.orders).map(|(&(i, j), &o)| Bond::new(i, j, order(o))).collect();
        let mut graph = Graph::new(atoms, bonds);
        clean_up(&mut graph);
        check_valences(&graph)?;
        for i in 0..graph.len() {
            let atom = graph.atoms()[i];
            graph.atom_mut(i).radicals = radicals(atom.element, atom.charge, graph.valence(i), graph.degree(i));
        }
        Ok(graph)
    }
}
