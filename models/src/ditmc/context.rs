//! What a network needs to know of a molecule's graph, computed once per topology.

use super::config::{BONDS, HOPS};
use crate::error::{Error, Result};
use crate::molecule::{Features, Graph, UNREACHABLE, Vocabulary};
use nalgebra::DMatrix;
use std::sync::Arc;

/// Largest molecule, in atoms: tables of pairs grow with its square.
pub const MOST_ATOMS: usize = 1024;

/// A topology as the network sees it, and its harmonic prior.
#[derive(Clone, Debug)]
pub struct GraphContext {
    /// The molecule; all its hydrogens are atoms.
    pub graph: Graph,
    /// Atomic numbers `[N]`.
    pub types: Vec<u32>,
    /// One-hot features of atoms `[N, width]`.
    pub nodes: Vec<u8>,
    /// Columns of `nodes`.
    pub width: usize,
    /// Bonds in both directions `[2 M]`: sender and receiver.
    pub pairs: Vec<(u32, u32)>,
    /// One-hot kinds of them `[2 M, 4]`.
    pub bonds: Vec<[u8; BONDS]>,
    /// Bonds on the shortest path between two atoms `[N, N]`; 0 where there is none.
    pub hops: Arc<[u16]>,
    /// The longest of these paths.
    pub most_hops: usize,
    /// One more than the bond from sender to receiver `[N receiver, N sender]`, in the order of `pairs`; 0 without bond.
    pub bonded: Arc<[u16]>,
    /// Modes of the harmonic prior `[N, N]`: eigenvector `k` of the bond graph's Laplacian is column `k`.
    pub modes: Vec<f64>,
    /// Standard deviation of each mode (Å): `λ^−½`, 0 for the motion of whole fragments.
    pub widths: Vec<f64>,
    /// Pieces that no bond joins.
    pub fragments: usize,
}

impl GraphContext {
    /// Of `graph`, whose hydrogens become atoms where they are not yet. Aromaticity must have been found, as all readers of graphs do.
    ///
    /// # Errors
    /// Where an element has no column in `vocabulary`, there are no atoms, or too many.
    pub fn new(graph: &Graph, vocabulary: Vocabulary) -> Result<Self> {
        let mut graph = graph.with_hydrogens();
        let n = graph.len();
        if !(1..=MOST_ATOMS).contains(&n) {
            return Err(Error::parameter("ditmc", "atoms", n, &format!("molecules have 1 to {MOST_ATOMS} atoms")));
        }
        let rings = graph.find_aromaticity();
        let features = graph.features(&rings, vocabulary).map_err(|i| {
            let known = vocabulary.elements().iter().filter_map(|&z| crate::molecule::Element::of(z)).map(|e| e.symbol);
            let known = known.collect::<Vec<_>>().join(" ");
            Error::parameter("ditmc", "element", graph.describe(i), &format!("the network knows only {known}"))
        })?;
        Ok(Self::of_features(graph, features))
    }

    fn of_features(graph: Graph, features: Features) -> Self {
        let n = graph.len();
        let Features { nodes, width, pairs, bonds, hops } = features;
        let mut bonded = vec![0; n * n];
        for (b, &(sender, receiver)) in pairs.iter().enumerate() {
            bonded[receiver as usize * n + sender as usize] = b as u16 + 1;
        }
        let unreachable = (HOPS - 2) as u16;
        debug_assert_eq!(unreachable, UNREACHABLE);
        let hops: Vec<u16> = hops.into_iter().map(|h| if h >= unreachable { 0 } else { h }).collect();
        let most_hops = usize::from(hops.iter().copied().max().unwrap_or(0));
        let fragments = graph.fragments();
        let (modes, widths) = harmonic(&graph, fragments);
        GraphContext {
            types: graph.atoms().iter().map(|a| u32::from(a.element)).collect(),
            nodes,
            width,
            pairs,
            bonds,
            hops: hops.into(),
            most_hops,
            bonded: bonded.into(),
            modes,
            widths,
            fragments,
            graph,
        }
    }

    /// Number of atoms.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// True without atoms, which no context is.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// Positions with the covariance of the harmonic prior from standard normal numbers `xi [N, 3]`: `x = P diag(d) ξ`, centred.
    pub fn harmonic_positions(&self, xi: &[f64], x: &mut [f64]) {
        let n = self.len();
        x.fill(0.0);
        for k in 0..n {
            let d = self.widths[k];
            for i in 0..n {
                let p = self.modes[i * n + k] * d;
                for a in 0..3 {
                    x[3 * i + a] += p * xi[3 * k + a];
                }
            }
        }
        centre(x);
    }
}

/// Eigenvectors `[N, N]` (columns) and λ^−½ of the Laplacian of all bonds with unit springs; those of the `fragments` smallest λ are 0
/// (B. Jing et al., *EigenFold*, arXiv 2304.02198).
fn harmonic(graph: &Graph, fragments: usize) -> (Vec<f64>, Vec<f64>) {
    let n = graph.len();
    let mut laplacian = DMatrix::<f64>::zeros(n, n);
    for bond in graph.bonds() {
        let (i, j) = (bond.atoms.0 as usize, bond.atoms.1 as usize);
        laplacian[(i, i)] += 1.0;
        laplacian[(j, j)] += 1.0;
        laplacian[(i, j)] -= 1.0;
        laplacian[(j, i)] -= 1.0;
    }
    let eigen = laplacian.symmetric_eigen();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[a].total_cmp(&eigen.eigenvalues[b]));
    let mut modes = vec![0.0; n * n];
    let mut widths = vec![0.0; n];
    for (k, &from) in order.iter().enumerate() {
        for i in 0..n {
            modes[i * n + k] = eigen.eigenvectors[(i, from)];
        }
        if k >= fragments {
            widths[k] = 1.0 / eigen.eigenvalues[from].sqrt();
        }
    }
    (modes, widths)
}

/// Takes the mean position away.
pub(super) fn centre(x: &mut [f64]) {
    let n = (x.len() / 3).max(1) as f64;
    for k in 0..3 {
        let mean = x.iter().skip(k).step_by(3).sum::<f64>() / n;
        x.iter_mut().skip(k).step_by(3).for_each(|x| *x -= mean);
    }
}
