//! A network at one time for all rows: forces of a simulation, and steps of a sampler, in which all samples share the time.
//!
//! What depends on the time and the beads only is computed when the time is set; forward and the hand-written way back to the
//! coordinates work on blocks of rows that stay in the second-level cache. A row has the same bits alone and in any batch.

mod device;
mod fold;
mod graph;
mod perceptron;
mod product;
mod rows;
#[cfg(test)]
pub(crate) mod tests;

use super::config::{BeadFeatures, Body, ExpertConfig, Head, RESIDUE_TABLES};
use crate::error::{Error, Result};
pub(crate) use device::Units;
use fold::{Constants, Folded};
use perceptron::Perceptron;
use scorefield_integrators::simd::{AlignedBuffer, SimdReal, dispatch};
use std::sync::Arc;

/// Beads that are worked on together: enough that reading the weights is hidden, few enough that activations stay in cache.
const BEADS_PER_BLOCK: usize = 96;
/// Rows of a perceptron that are worked on together.
const ROWS_PER_BLOCK: usize = 96;

/// What belongs to one time.
enum AtTime<T> {
    Graph(Arc<Folded<T>>, Arc<Constants<T>>, Box<graph::Scratch<T>>),
    Mlp(Arc<Perceptron<T>>, Arc<Vec<T>>, perceptron::Scratch<T>),
}

/// A network at one time. See the [module](self).
pub struct FixedTime<T> {
    network: AtTime<T>,
    dimension: usize,
    head: Head,
    time: f64,
    /// Rows of a block, and their coordinates.
    block: usize,
    x: AlignedBuffer<T>,
}

impl<T: SimdReal> FixedTime<T> {
    /// The network `config` with parameters `values [P]` (see [`ExpertConfig::layout`]) at time `t`. `tokens` are each bead's
    /// residue, atom name, element and place in the chain for networks with [`BeadFeatures::Residue`], else empty.
    ///
    /// # Errors
    /// Where numbers of parameters or beads do not fit.
    pub fn new(config: &ExpertConfig, values: &[f32], tokens: &[[u32; 4]], t: f64) -> Result<Self> {
        let refuse = |reason: String| Err(Error::spec("scoremd", reason));
        let wanted = config.layout().len();
        if values.len() != wanted {
            return refuse(format!("{} parameters given, but the network has {wanted}", values.len()));
        }
        let (network, block) = match &config.body {
            Body::GraphTransformer { beads, features, .. } => {
                if *features == BeadFeatures::Residue {
                    if tokens.len() != *beads {
                        return refuse(format!("residues of {} beads given, but the network has {beads}", tokens.len()));
                    }
                    for (i, token) in tokens.iter().enumerate() {
                        if let Some((token, (name, rows))) = token.iter().zip(RESIDUE_TABLES).find(|(t, (_, rows))| **t as usize >= *rows) {
                            return refuse(format!("{name} {token} of bead {i} is not below {rows}"));
                        }
                    }
                }
                let folded = Arc::new(Folded::new(config, values, tokens));
                let constants = Arc::new(folded.constants(t));
                (AtTime::Graph(folded, constants, Box::default()), (BEADS_PER_BLOCK / beads).max(1))
            }
            Body::Mlp { .. } => {
                let network = Arc::new(Perceptron::new(config, values));
                let bias = Arc::new(network.bias(t));
                (AtTime::Mlp(network, bias, perceptron::Scratch::default()), ROWS_PER_BLOCK)
            }
        };
        let (dimension, head) = (config.body.dimension(), config.head);
        Ok(FixedTime { network, dimension, head, time: t, block, x: AlignedBuffer::default() })
    }

    /// The same for another thread: parameters shared, scratch separate.
    pub fn fork(&self) -> Self {
        let network = match &self.network {
            AtTime::Graph(folded, constants, _) => AtTime::Graph(folded.clone(), constants.clone(), Box::default()),
            AtTime::Mlp(network, bias, _) => AtTime::Mlp(network.clone(), bias.clone(), perceptron::Scratch::default()),
        };
        FixedTime { network, x: AlignedBuffer::default(), ..*self }
    }

    /// Coordinates of a row, D.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Whether scores are minus the gradient of an energy that it can give.
    pub fn has_energy(&self) -> bool {
        self.head == Head::Potential
    }

    /// The time, as it was set.
    pub fn time(&self) -> f64 {
        self.time
    }

    /// Goes to another time.
    pub fn set_time(&mut self, t: f64) {
        self.time = t;
        match &mut self.network {
            AtTime::Graph(folded, constants, _) => *constants = Arc::new(folded.constants(t)),
            AtTime::Mlp(network, bias, _) => *bias = Arc::new(network.bias(t)),
        }
    }

    /// Multiply-adds of products with weights, of energy and score of one row.
    pub fn multiply_adds(&self) -> usize {
        match &self.network {
            AtTime::Graph(folded, constants, _) => folded.multiply_adds(constants),
            AtTime::Mlp(network, ..) => network.multiply_adds(),
        }
    }

    /// Makes room for batches of up to `rows`, so that evaluations do not allocate.
    pub fn reserve(&mut self, rows: usize) {
        let rows = rows.min(self.block);
        self.x.reserve(rows * self.dimension);
        match &mut self.network {
            AtTime::Graph(folded, _, scratch) => scratch.reserve(folded, rows),
            AtTime::Mlp(network, _, scratch) => scratch.reserve(network, rows),
        }
    }

    /// Energies `[M]` (in kT, up to a constant) and scores `[M, D]` of rows `x [M, D]`, each where asked for. Coordinates are
    /// multiplied by `scale` first; those of beads are taken relative to their centre. Scores are over normalised coordinates.
    ///
    /// # Panics
    /// Where an energy is asked of a network without, or lengths do not fit.
    pub fn evaluate(&mut self, x: &[T], scale: f64, mut energy: Option<&mut [f64]>, mut score: Option<&mut [T]>) {
        let d = self.dimension;
        let rows = x.len() / d;
        assert!(energy.is_none() || self.has_energy(), "a network without energy was asked for one");
        assert!(
            rows * d == x.len() && energy.as_ref().is_none_or(|e| e.len() == rows) && score.as_ref().is_none_or(|s| s.len() == x.len())
        );
        self.reserve(rows);
        let mut first = 0;
        while first < rows {
            let block = self.block.min(rows - first);
            let from = &x[first * d..(first + block) * d];
            let energy = energy.as_deref_mut().map(|e| &mut e[first..first + block]);
            let score = score.as_deref_mut().map(|s| &mut s[first * d..(first + block) * d]);
            let to = &mut self.x[..block * d];
            match &mut self.network {
                AtTime::Graph(folded, constants, scratch) => {
                    centre(from, d, scale, to);
                    dispatch(graph::Evaluate { folded, constants, scratch, x: to, energy, score });
                }
                AtTime::Mlp(network, bias, scratch) => {
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::from_f64(x.to_f64() * scale));
                    dispatch(perceptron::Evaluate { network, bias, scratch, x: to, energy, score });
                }
            }
            first += block;
        }
    }
}

/// Coordinates of beads relative to their mean, times `scale`.
fn centre<T: SimdReal>(from: &[T], d: usize, scale: f64, to: &mut [T]) {
    for (from, to) in from.chunks_exact(d).zip(to.chunks_exact_mut(d)) {
        let mut mean = [0.0; 3];
        for point in from.chunks_exact(3) {
            (0..3).for_each(|a| mean[a] += point[a].to_f64());
        }
        mean = mean.map(|m| m * 3.0 / d as f64);
        for (from, to) in from.chunks_exact(3).zip(to.chunks_exact_mut(3)) {
            (0..3).for_each(|a| to[a] = T::from_f64((from[a].to_f64() - mean[a]) * scale));
        }
    }
}
