//! What changes: positions, velocities, cells, thermostat temperatures and the step counter.

use crate::array::{Array, DType, View};
use crate::batch::Batch;
use crate::error::{Result, invalid};
use serde::{Deserialize, Serialize};

/// Box vectors as rows `a, b, c`, row-major, in nm.
pub type Cell = [f64; 9];

/// What the run's clock measures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Clock {
    /// Physical time in ps (reduced time for toys).
    Physical {
        /// Time since the start of the run.
        time: f64,
    },
    /// Diffusion time or noise level of a generative process.
    Diffusion {
        /// The process's own time.
        t: f64,
    },
    /// Iterations of a minimiser: no time at all.
    Iteration,
}

/// State of all replicas of one [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// `[2, A, 3]`: positions (nm), then velocities (nm/ps). Never reallocated during a run.
    pub phase: Array,
    /// Periodic cell per replica `[B]`, or none.
    pub cells: Option<Vec<Cell>>,
    /// Thermostat's kT per replica `[B]` in kJ/mol; replica exchange changes it.
    pub kt: Vec<f64>,
    /// Steps done since the start of the run.
    pub step: u64,
    /// The run's clock.
    pub clock: Clock,
}

impl State {
    /// State at rest at `positions` (`[A, 3]`, nm), kT = 0.
    ///
    /// # Errors
    /// Where the number of coordinates is not 3 A, or one is not finite (names replica and atom).
    pub fn at_rest(batch: &Batch, positions: &[f64], dtype: DType) -> Result<Self> {
        let n3 = 3 * batch.atoms();
        if positions.len() != n3 {
            return invalid(format!("{} coordinates for {} atoms; there must be three per atom", positions.len(), batch.atoms()));
        }
        check_finite(batch, View::F64(positions), "coordinate")?;
        let mut phase = Array::zeros(dtype, 2 * n3);
        for (i, &x) in positions.iter().enumerate() {
            phase.set(i, x);
        }
        Ok(State { phase, cells: None, kt: vec![0.0; batch.replicas()], step: 0, clock: Clock::Physical { time: 0.0 } })
    }

    /// The state of replicas `which` of `batch` alone.
    pub fn part(&self, batch: &Batch, which: std::ops::Range<usize>) -> State {
        let range = which.clone().map(|b| batch.range3(b)).reduce(|all, next| all.start..next.end).unwrap_or(0..0);
        let (start, end) = (range.start, range.end);
        let half = self.phase.len() / 2;
        let mut phase = Array::zeros(self.dtype(), 2 * (end - start));
        for k in 0..end - start {
            phase.set(k, self.phase.get(start + k));
            phase.set(end - start + k, self.phase.get(half + start + k));
        }
        State {
            phase,
            cells: self.cells.as_ref().map(|c| c[which.clone()].to_vec()),
            kt: self.kt[which].to_vec(),
            step: self.step,
            clock: self.clock,
        }
    }

    /// The element type of the phase.
    pub fn dtype(&self) -> DType {
        self.phase.dtype()
    }

    /// Positions `[A, 3]`.
    pub fn positions(&self) -> View<'_> {
        self.phase.part(0..self.phase.len() / 2)
    }

    /// Velocities `[A, 3]`.
    pub fn velocities(&self) -> View<'_> {
        self.phase.part(self.phase.len() / 2..self.phase.len())
    }

    /// Kinetic energy `½ Σ m v²` of replica `b` in kJ/mol, with the velocities that the propagator stores
    /// (on-step for BAOAB, half-step for the middle scheme).
    pub fn kinetic_energy(&self, batch: &Batch, b: usize) -> f64 {
        let v = self.velocities();
        let masses = &batch.system(b).masses;
        let first = batch.range(b).start;
        let twice: f64 = masses.iter().enumerate().map(|(i, m)| m * (0..3).map(|a| v.get(3 * (first + i) + a).powi(2)).sum::<f64>()).sum();
        0.5 * twice
    }
}

/// Checks that every coordinate of `values` (`[A, 3]`) is finite.
///
/// # Errors
/// [`crate::Error::Invalid`] naming replica, atom and axis of the first that is not.
pub fn check_finite(batch: &Batch, values: View<'_>, what: &str) -> Result<()> {
    for b in 0..batch.replicas() {
        for k in batch.range3(b) {
            if !values.get(k).is_finite() {
                let atom = k / 3 - batch.range(b).start;
                return invalid(format!(
                    "{}: {what} {} of {} is {}",
                    batch.system(b).name,
                    ["x", "y", "z"][k % 3],
                    batch.system(b).describe_atom(atom),
                    values.get(k)
                ));
            }
        }
    }
    Ok(())
}
