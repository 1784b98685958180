//! A Langevin step as data: the list of its stages. The plain loop and every fused kernel interpret the same list, which
//! is what makes them agree bit for bit.

use crate::batch::Batch;
use crate::error::Result;
use crate::force::Output;
use crate::noise::Noise;
use crate::state::State;

/// One operator of a splitting. Masses are the system's; atoms of mass 0 and inactive axes stay where they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// `v += h F/m` (B).
    Kick {
        /// Length in ps.
        h: f64,
    },
    /// `x += h v` (A).
    Drift {
        /// Length in ps.
        h: f64,
    },
    /// `v = a v + s √(kT/m) ξ` (O).
    Thermostat {
        /// Share of the velocity that is kept.
        a: f64,
        /// Amplitude of the noise.
        s: f64,
    },
    /// `x += b F/m + s √(kT/m) ξ`: overdamped motion.
    Diffuse {
        /// Mobility times step, ps².
        b: f64,
        /// Amplitude of the noise, ps.
        s: f64,
        /// `ξ` is the mean of this step's and the next step's noise (the BAOAB limit method) instead of this step's.
        average: bool,
    },
    /// Subtracts the centre-of-mass velocity of the atoms that move.
    RemoveDrift,
    /// Evaluates the forces at the present positions.
    Force,
}

/// A whole step: its stages in order. At both ends of a step `Output::forces` belongs to the present positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Operators in order of application.
    pub stages: Vec<Stage>,
    /// Time step in ps.
    pub dt: f64,
}

/// Many steps of a [`Plan`] without returning to the loop.
pub trait FusedLangevin {
    /// Advances every replica by `steps`. Reads and leaves `out.forces` at the present positions; positions, velocities,
    /// forces and step counter are bit for bit those of the plain loop.
    ///
    /// # Errors
    /// As [`crate::ForceProvider::evaluate`].
    fn run(&mut self, plan: &Plan, batch: &Batch, state: &mut State, out: &mut Output, noise: Noise, steps: u64) -> Result<()>;
}
