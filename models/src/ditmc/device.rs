//! Networks at a fixed time as parameters of `kernels/ditmc_*.cu`.
//!
//! What depends on graph and time alone is computed here, in double precision, by the host's own code: modulations of every atom, tables
//! or gates of pairs. The device is left with what depends on positions.

use super::context::GraphContext;
use super::model::ANGSTROMS;
use super::network::Parameters;
use crate::rows::{Rows, THREADS};
use scorefield_integrators::device::{DeviceModel, Field};

/// What a network is asked, and what becomes of its answer.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) context: &'a GraphContext,
    pub(super) time: f64,
    /// k (kJ/mol/nm²): the force is k (x̂₁ − y).
    pub(super) stiffness: f64,
}

impl Question<'_> {
    /// Å of the network per nm, and kJ/mol/nm per Å.
    pub(super) fn units(&self) -> [Field; 2] {
        [Field::Real(ANGSTROMS * self.time), Field::Real(self.stiffness / ANGSTROMS)]
    }
}

/// Whether the kernels are for molecules of so many atoms.
pub(super) fn fits(atoms: usize) -> bool {
    atoms <= THREADS
}

impl Parameters<f64> {
    /// The kernels' parameters for one molecule at a fixed time.
    pub(super) fn device_model(&self, question: Question<'_>) -> DeviceModel {
        match self {
            Parameters::Scalar(p) => p.device_model(question),
            Parameters::Equivariant(p) => p.device_model(question),
        }
    }
}

/// Weights one after another, and where they begin: as many places for each block, and for what lies behind the blocks.
pub(super) struct Parts {
    pub(super) rows: Rows,
    pub(super) places: Vec<i32>,
    each: usize,
}

impl Parts {
    /// For `each` places per block.
    pub(super) fn new(each: usize) -> Self {
        Parts { rows: Rows::default(), places: Vec::new(), each }
    }

    /// Begins the next block.
    pub(super) fn next(&mut self) {
        self.places.resize(self.places.len() + self.each, 0);
    }

    /// A number of the present block.
    pub(super) fn set(&mut self, place: usize, value: i32) {
        let first = self.places.len() - self.each;
        self.places[first + place] = value;
    }

    /// Weights of the present block.
    pub(super) fn push(&mut self, place: usize, values: impl IntoIterator<Item = f64>) {
        let at = self.rows.push(values);
        self.set(place, at);
    }
}

/// Columns of rows `[rows, stride]` as rows: `[columns, rows]`.
pub(super) fn turned(values: &[f64], stride: usize, rows: usize, columns: std::ops::Range<usize>) -> impl Iterator<Item = f64> {
    columns.flat_map(move |c| (0..rows).map(move |r| values[r * stride + c]))
}
