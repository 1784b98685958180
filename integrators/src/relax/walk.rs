//! One replica on its way: the coordinates that move, how far it has come, and its method's memory. Whatever a step needs
//! is here, so that a replica can go from batch to batch.

use super::rigid::Rigid;
use super::{Convergence, Settings};
use crate::array::{Array, View};
use crate::error::{Result, invalid};
use crate::propagator::Progress;
use crate::system::System;

/// Steps without any coordinate changing, in the precision of the state, after which a replica is stalled.
const IDLE: u32 = 100;

/// A minimiser's memory of one replica.
pub(super) trait Descent: Send {
    /// Moves `x` by one step along `force`, the forces at `x`: both `[n, d]`, for `n` atoms that move on `d` active axes.
    fn advance(&mut self, x: &mut [f64], force: &[f64]);
}

/// One replica.
pub(super) struct Walk {
    /// Where the coordinates that move are in the replica's `[N, 3]`.
    free: Vec<u32>,
    /// Active axes.
    dimension: usize,
    x: Vec<f64>,
    force: Vec<f64>,
    rigid: Rigid,
    descent: Box<dyn Descent>,
    convergence: Convergence,
    progress: Progress,
    fmax: f64,
    record: f64,
    since_record: u64,
    idle: u32,
    steps: u64,
}

impl Walk {
    /// A walk of `system` that begins at `positions` (`[N, 3]`), which are put onto its rigid bonds.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub(super) fn new(settings: &Settings, system: &System, positions: &mut [f64]) -> Result<Self> {
        let moving = || (0..system.len()).filter(|&i| system.masses[i] > 0.0);
        let free: Vec<u32> = moving().flat_map(|i| (0..3).filter(|&a| system.axes[a]).map(move |a| (3 * i + a) as u32)).collect();
        let dimension = system.dimension().max(1);
        let mut masses: Vec<f64> = if free.is_empty() { Vec::new() } else { moving().map(|i| system.masses[i]).collect() };
        let mut rigid = Rigid::new(system, positions)?;
        let mut x: Vec<f64> = free.iter().map(|&k| positions[k as usize]).collect();
        if !rigid.is_empty() {
            rigid.remember(&x);
            if !rigid.restore(&mut x) {
                return invalid(format!("{}: its atoms cannot be put onto its rigid bonds; check the structure", system.name));
            }
            for (x, &k) in x.iter().zip(&free) {
                positions[k as usize] = *x;
            }
            // Equal masses keep an acceleration orthogonal to the bonds that its force is orthogonal to.
            let mean = masses.iter().sum::<f64>() / masses.len().max(1) as f64;
            masses.fill(mean);
        }
        Ok(Walk {
            dimension,
            x,
            rigid,
            force: vec![0.0; free.len()],
            descent: settings.descent(&masses, dimension),
            convergence: settings.convergence,
            progress: Progress::Running,
            fmax: f64::NAN,
            record: f64::INFINITY,
            since_record: 0,
            idle: 0,
            steps: 0,
            free,
        })
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// Largest force on any atom that moves, at the last observation (kJ/mol/nm), without what acts along rigid bonds.
    pub(super) fn fmax(&self) -> f64 {
        self.fmax
    }

    /// Steps done, each followed by one evaluation.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes in the replica's forces `[N, 3]` at its present positions and settles its progress. `Err` is the first atom
    /// with a force that is not finite.
    pub(super) fn observe(&mut self, forces: View<'_>) -> std::result::Result<(), usize> {
        for (f, &k) in self.force.iter_mut().zip(&self.free) {
            *f = forces.get(k as usize);
        }
        if let Some(k) = self.force.iter().position(|f| !f.is_finite()) {
            self.fmax = f64::NAN;
            self.progress = Progress::Stalled;
            return Err(self.free[k] as usize / 3);
        }
        if !self.rigid.is_empty() {
            self.rigid.project(&self.x, &mut self.force);
        }
        self.fmax = longest(&self.force, self.dimension);
        if self.fmax < self.record {
            self.record = self.fmax;
            self.since_record = 0;
        } else {
            self.since_record += 1;
        }
        if self.fmax < self.convergence.fmax {
            self.progress = Progress::Converged;
        } else if self.since_record >= self.convergence.patience {
            self.progress = Progress::Stalled;
        }
        Ok(())
    }

    /// Moves the replica, whose `[N, 3]` begins at `first` of `positions`, along the forces last observed. Coordinates
    /// that do not move are not written.
    pub(super) fn advance(&mut self, positions: &mut Array, first: usize) {
        for (x, &k) in self.x.iter_mut().zip(&self.free) {
            *x = positions.get(first + k as usize);
        }
        self.rigid.remember(&self.x);
        self.descent.advance(&mut self.x, &self.force);
        self.steps += 1;
        if !self.rigid.is_empty() && !self.rigid.restore(&mut self.x) {
            self.progress = Progress::Stalled;
            return;
        }
        if self.x.iter().any(|x| !x.is_finite()) {
            self.progress = Progress::Stalled;
            return;
        }
        let mut moved = false;
        for (&x, &k) in self.x.iter().zip(&self.free) {
            let k = first + k as usize;
            let before = positions.get(k);
            positions.set(k, x);
            moved |= positions.get(k) != before;
        }
        self.idle = if moved { 0 } else { self.idle + 1 };
        if self.idle >= IDLE {
            self.progress = Progress::Stalled;
        }
    }

    /// Overwrites the coordinates of `to` (`[N, 3]`) that move with those of `from`.
    pub(super) fn copy_moving(&self, from: View<'_>, to: &mut [f64]) {
        for &k in &self.free {
            to[k as usize] = from.get(k as usize);
        }
    }
}

/// `Σ a b`, in an order that depends on nothing but the length.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for l in 0..8 {
            sums[l] += a[l] * b[l];
        }
    }
    sums.iter().sum::<f64>() + tail
}

/// `|a|`, also where the square overflows or vanishes.
pub(super) fn norm(a: &[f64]) -> f64 {
    let square = dot(a, a);
    if square.is_finite() && square > 1e-280 {
        return square.sqrt();
    }
    let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return if square.is_nan() { f64::NAN } else { largest };
    }
    largest * a.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// Length of the longest of the `[n, d]` vectors in `a`.
pub(super) fn longest(a: &[f64], dimension: usize) -> f64 {
    a.chunks_exact(dimension).map(norm).fold(0.0, f64::max)
}
