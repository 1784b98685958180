//! Node and bond features of conformer models: the one-hot vocabularies of GeoMol (Ganea et al., arXiv 2106.07802), which
//! ET-Flow and DiTMC use too, and shortest paths.

use super::graph::{Chirality, Graph};
use super::hybridisation::Hybridisation;
use super::rings::Rings;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Elements of the QM9 vocabulary, in order.
const QM9: &[u8] = &[1, 6, 7, 8, 9];
/// Elements of the drug vocabulary, in order.
const DRUGS: &[u8] =
    &[1, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 20, 23, 24, 25, 29, 30, 31, 32, 33, 34, 35, 47, 49, 51, 53, 64, 78, 79, 80, 83];
/// Hops of atoms that no path joins.
pub const UNREACHABLE: u16 = 510;

/// Which elements have columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vocabulary {
    /// H, C, N, O, F: 64 columns.
    Qm9,
    /// 35 elements of drugs: 94 columns.
    Drugs,
}

impl Vocabulary {
    /// Elements in the order of their columns.
    pub fn elements(self) -> &'static [u8] {
        match self {
            Vocabulary::Qm9 => QM9,
            Vocabulary::Drugs => DRUGS,
        }
    }

    /// Number of columns.
    pub fn width(self) -> usize {
        59 + self.elements().len()
    }
}

/// Features of a molecule all of whose hydrogens are atoms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// One-hot node features `[N, width]`.
    pub nodes: Vec<u8>,
    /// Columns of a row of `nodes`.
    pub width: usize,
    /// Bonds in both directions `[2 M]`: sender and receiver.
    pub pairs: Vec<(u32, u32)>,
    /// One-hot kinds of them `[2 M, 4]`: single, double, triple, aromatic.
    pub bonds: Vec<[u8; 4]>,
    /// Bonds on the shortest path between atoms `[N, N]`; [`UNREACHABLE`] where there is none.
    pub hops: Vec<u16>,
}

/// One row of the node features, filled block by block.
struct Row<'a> {
    columns: &'a mut [u8],
    at: usize,
}

impl Row<'_> {
    /// A block of `known` columns and one for everything else.
    fn choice(&mut self, known: usize, index: Option<usize>) {
        self.columns[self.at + index.filter(|i| *i < known).unwrap_or(known)] = 1;
        self.at += known + 1;
    }

    fn flag(&mut self, value: bool) {
        self.columns[self.at] = u8::from(value);
        self.at += 1;
    }
}

impl Graph {
    /// Features in the columns of `vocabulary`; `rings` are those of [`find_aromaticity`](Graph::find_aromaticity).
    ///
    /// # Errors
    /// The first atom whose element has no column.
    pub fn features(&self, rings: &Rings, vocabulary: Vocabulary) -> std::result::Result<Features, usize> {
        let (n, width) = (self.len(), vocabulary.width());
        let mut nodes = vec![0; n * width];
        let hybridisations = self.hybridisations();
        for (i, columns) in nodes.chunks_exact_mut(width).enumerate() {
            let atom = self.atoms()[i];
            let mut row = Row { columns, at: 0 };
            let element = vocabulary.elements().iter().position(|&z| z == atom.element).ok_or(i)?;
            row.choice(
                4,
                Some(match atom.chirality {
                    Chirality::Clockwise => 0,
                    Chirality::CounterClockwise => 1,
                    Chirality::None => 2,
                }),
            );
            // Hydrogens that are no atoms; here there are none, but the block is there.
            row.choice(5, Some(usize::from(atom.hydrogens)));
            row.choice(5, Some(usize::from(atom.radicals)));
            row.columns[row.at + element] = 1;
            row.at += vocabulary.elements().len();
            row.flag(atom.aromatic);
            row.choice(5, Some(self.total_degree(i)));
            row.choice(
                5,
                match hybridisations[i] {
                    Hybridisation::Sp => Some(0),
                    Hybridisation::Sp2 => Some(1),
                    Hybridisation::Sp3 => Some(2),
                    Hybridisation::Sp3d => Some(3),
                    Hybridisation::Sp3d2 => Some(4),
                    Hybridisation::Other => None,
                },
            );
            row.choice(5, Some(usize::from(atom.hydrogens)));
            row.choice(11, usize::try_from(i32::from(atom.charge) + 5).ok());
            for size in 3..=8 {
                row.flag(rings.in_ring_of(i, size));
            }
            row.choice(4, Some(rings.of_atom[i] as usize));
            debug_assert_eq!(row.at, width);
        }
        let mut pairs = Vec::with_capacity(2 * self.bonds().len());
        let mut bonds = Vec::with_capacity(2 * self.bonds().len());
        for bond in self.bonds() {
            let mut kind = [0; 4];
            kind[if bond.aromatic { 3 } else { usize::from(bond.order) - 1 }] = 1;
            pairs.extend([bond.atoms, (bond.atoms.1, bond.atoms.0)]);
            bonds.extend([kind; 2]);
        }
        Ok(Features { nodes, width, pairs, bonds, hops: self.hops() })
    }

    /// Bonds on the shortest path between any two atoms `[N, N]`; 0 on the diagonal.
    pub fn hops(&self) -> Vec<u16> {
        let n = self.len();
        let mut hops = vec![UNREACHABLE; n * n];
        for (start, row) in hops.chunks_exact_mut(n.max(1)).enumerate() {
            row[start] = 0;
            let mut queue = VecDeque::from([start]);
            while let Some(i) = queue.pop_front() {
                for nb in self.neighbours(i) {
                    let j = nb.atom as usize;
                    if row[j] == UNREACHABLE && j != start {
                        row[j] = (row[i] + 1).min(UNREACHABLE);
                        queue.push_back(j);
                    }
                }
            }
        }
        hops
    }
}
