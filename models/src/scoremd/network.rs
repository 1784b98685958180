//! What training, sampling and forces ask of a network. Everything is over rows: one row is one configuration at one time.

use super::config::{BeadFeatures, Body, ExpertConfig, Layout, RESIDUE_TABLES};
use super::graph_transformer::GraphTransformer;
use super::mlp::Mlp;
use crate::error::{Error, Result};
use scorefield_integrators::simd::SimdReal;
use std::sync::Arc;

/// The model's name in messages.
pub(super) const MODEL: &str = "scoremd";
/// Bounds that keep mistaken files from asking for all memory.
const MOST_BEADS: usize = 1024;
const MOST_WIDTH: usize = 8192;
const MOST_LAYERS: usize = 64;

/// `M` configurations, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// Normalised coordinates `[M, D]`.
    pub x: &'a [T],
    /// Diffusion times `[M]`; a network clips them to its range.
    pub t: &'a [T],
    /// Which of the network's systems each row is, `[M]`; empty where it knows only one.
    pub system: &'a [u32],
}

impl<'a, T> Rows<'a, T> {
    /// Some of the rows, each of `dimension` coordinates.
    pub fn part(&self, range: std::ops::Range<usize>, dimension: usize) -> Rows<'a, T> {
        Rows {
            x: &self.x[range.start * dimension..range.end * dimension],
            t: &self.t[range.clone()],
            system: if self.system.is_empty() { &[] } else { &self.system[range] },
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.t.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.t.is_empty()
    }
}

/// One network: its shape and its parameters' names. Parameters are kept outside, in one flat array as [`Layout`] says.
pub trait Network<T: SimdReal>: Send + Sync {
    /// Names, shapes and places of the parameters.
    fn layout(&self) -> &Layout;

    /// Coordinates of a row, D.
    fn dimension(&self) -> usize;

    /// Whether scores are minus the gradient of an energy that it can give.
    fn has_energy(&self) -> bool;

    /// A worker for one thread, which owns its memory; it must [`load`](Worker::load) parameters first.
    fn worker(&self) -> Box<dyn Worker<T>>;
}

/// Evaluates a network in one thread. Memory grows with the largest number of rows seen and is kept. A row's energies and
/// scores do not depend on the rows beside it, bit for bit; a gradient is one sum over the rows in their order.
pub trait Worker<T: SimdReal>: Send {
    /// Takes over parameters `[P]`.
    fn load(&mut self, parameters: &[T]);

    /// Energies `[M]` (in kT, up to a constant) and scores `[M, D]`, each where asked for. A network without energy must not be
    /// asked for one.
    fn evaluate(&mut self, rows: Rows<'_, T>, energy: Option<&mut [T]>, score: Option<&mut [T]>);

    /// `gradient += Σ_m a_m ∂E_m/∂θ + Σ_m u_m · ∂s_m/∂θ` for weights `a [M]` of energies and `u [M, D]` of scores. Both are
    /// exact: with `Ė = u · ∂E/∂x` the second sum is the gradient of `−Σ_m Ė_m`, which reverse differentiation of the
    /// tangent gives without second derivatives of the parameters.
    fn accumulate(&mut self, rows: Rows<'_, T>, a: Option<&[T]>, u: Option<&[T]>, gradient: &mut [T]);
}

/// The network that `config` describes. `systems` are only for [`BeadFeatures::Residue`]: for each system, which
/// [`Rows::system`] counts, and each of its beads the indices of its residue, atom name, element and place in the
/// chain in [`RESIDUE_TABLES`].
///
/// # Errors
/// Where a shape means nothing, or systems do not fit it.
pub fn network<T: SimdReal>(config: &ExpertConfig, systems: &[Vec<[u32; 4]>]) -> Result<Arc<dyn Network<T>>> {
    check(config, systems)?;
    Ok(match &config.body {
        Body::Mlp { dimension, hidden } => Arc::new(Mlp::new(config, *dimension, hidden)),
        Body::GraphTransformer { beads, width, layers, features } => {
            Arc::new(GraphTransformer::new(config, *beads, *width, *layers, features.clone(), systems))
        }
    })
}

fn check(config: &ExpertConfig, systems: &[Vec<[u32; 4]>]) -> Result<()> {
    let refuse = |name: &str, value: &dyn std::fmt::Display, remedy: &str| Err(Error::parameter(MODEL, name, value, remedy));
    let between = |name: &str, value: usize, most: usize| {
        if (1..=most).contains(&value) { Ok(()) } else { refuse(name, &value, &format!("give 1 to {most}")) }
    };
    let range = config.range;
    if !(range.start >= 0.0 && range.start < range.end && range.end <= 1.0) {
        return refuse("range", &format!("{} to {}", range.start, range.end), "give 0 ≤ start < end ≤ 1");
    }
    match &config.body {
        Body::Mlp { dimension, hidden } => {
            between("dimension", *dimension, MOST_WIDTH)?;
            between("number of hidden layers", hidden.len(), MOST_LAYERS)?;
            for &width in hidden {
                between("hidden", width, MOST_WIDTH)?;
            }
            if !systems.is_empty() {
                return refuse("systems", &systems.len(), "an MLP knows no beads; give none");
            }
        }
        Body::GraphTransformer { beads, width, layers, features } => {
            between("beads", *beads, MOST_BEADS)?;
            between("width", *width, MOST_WIDTH)?;
            between("layers", *layers, MOST_LAYERS)?;
            if !width.is_multiple_of(crate::matrix::PAD) {
                return refuse("width", width, &format!("give a multiple of {}", crate::matrix::PAD));
            }
            match features {
                BeadFeatures::Index if !systems.is_empty() => {
                    return refuse("systems", &systems.len(), "features by index are for one system; give none");
                }
                BeadFeatures::Residue if systems.is_empty() => {
                    return refuse("systems", &0, "embeddings of residues need the kinds of each system's beads");
                }
                _ => {}
            }
            for (s, system) in systems.iter().enumerate() {
                if system.len() != *beads {
                    return refuse("systems", &format!("{} beads in system {s}", system.len()), &format!("the network has {beads}"));
                }
                for kinds in system {
                    for (&kind, (table, rows)) in kinds.iter().zip(RESIDUE_TABLES) {
                        if kind as usize >= rows {
                            let what = format!("{table} {kind} in system {s}");
                            return refuse("systems", &what, &format!("the table of {table} has {rows} rows, counted from 0"));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}
