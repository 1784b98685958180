//! Denoising: from noise, or from a noisy structure, to the structures a model was trained on.
//!
//! A pseudo-force `F` of known stiffness `k` says where the clean structure is: `x̂ = x + F/k`. Every sampler here is one
//! update with its own numbers `(a, b)`,
//!
//! ```text
//! x ← x + (1 − a) F(x)/k + b z,    z standard normal, without net displacement where no atom is frozen
//! ```
//!
//! | sampler | a | b | source |
//! | --- | --- | --- | --- |
//! | direct (DD) | 0 | 0 | GPFF, arXiv 2605.19050, eq. 14 |
//! | stochastic direct (SDD) | 0 | `η (s−1)/S` | eq. 15 |
//! | ancestral | `r²` | `σ' √(1 − r²)` | Song et al., arXiv 2011.13456, variance exploding |
//! | Heun, its predictor | `r` | 0 | Karras et al., arXiv 2206.00364, algorithm 1 |
//! | stochastic Heun | `r`, after a kick to `σ (1 + γ)` | 0 | algorithm 2 |
//! | Langevin at fixed noise | `exp(−τ)` | `σ √(1 − exp(−2τ))` | exact Ornstein–Uhlenbeck step |
//!
//! with `r = σ'/σ`, the ratio of the next noise level to the present one, in the schedule of Karras et al. The adaptive
//! variant of the last three but one takes the present level from the forces, `σ̂ = |F| / (k √n)`, instead of the schedule
//! (eq. 18 and 19). Before a force is evaluated a molecule's shape can be pulled towards given principal variances
//! (eq. 16); atoms of mass zero are a scaffold that does not move.
//!
//! Each molecule is a state machine of its own ([`DenoiseSpec::resolve`]), so that molecules end one by one, and
//! [`denoise_all`] fills their places. Its path depends on the seed and its place in the queue, on nothing else.

mod prior;
mod propagator;
mod schedule;
mod shape;
mod spec;
#[cfg(test)]
mod tests;
mod walk;

pub use prior::{Blob, Prior};
pub use schedule::Schedule;
pub use shape::{enforce_shape, principal_variances};
pub use spec::{Adaptive, Churn, DenoiseSpec, Sampler};

use crate::array::{Array, View};
use crate::error::{Error, Result};
use crate::force::{Capabilities, ForceProvider, Kind, Want};
use crate::noise::Noise;
use crate::propagator::{Progress, Propagator};
use crate::stream::{Course, Guide, Job, StreamOptions, Tally, stream};
use crate::superpose::superposed_rmsd;
use crate::system::System;
use spec::Settings;
use std::sync::Arc;
use walk::Walk;

/// Target principal variances (nm², largest first) of the molecule with this id, or none.
pub type Targets = Arc<dyn Fn(u32) -> Option<[f64; 3]> + Send + Sync>;

/// A sampler fitted to a provider.
#[derive(Clone)]
pub struct Denoiser {
    settings: Arc<Settings>,
    targets: Option<Targets>,
}

/// One molecule's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Denoised {
    /// Its place in the queue, from 0.
    pub index: usize,
    /// Final positions `[N, 3]` in nm; frozen atoms are exactly where they were.
    pub positions: Vec<f64>,
    /// Evaluations of the force.
    pub evaluations: u64,
    /// `Converged` after the sampler's own end, `Stalled` where direct denoising ran out of evaluations, `Running` after an
    /// interruption.
    pub progress: Progress,
    /// Noise level `σ̂` (nm) that the forces showed at the first evaluation.
    pub sigma_start: f64,
    /// The same at the last evaluation, before the last step.
    pub sigma_end: f64,
    /// Root-mean-square distance from the start in nm after superposition, without it where atoms are frozen.
    pub rmsd: f64,
}

impl DenoiseSpec {
    /// This sampler for a provider with `capabilities`.
    ///
    /// # Errors
    /// Where a number is out of range or has the wrong unit, or the provider has no pseudo-forces of known stiffness, or
    /// needs a noise level that this sampler does not know.
    pub fn resolve(&self, capabilities: &Capabilities) -> Result<Denoiser> {
        let fail = |what: &str, remedy: &str| {
            Err(Error::Unsupported { provider: capabilities.name.clone(), what: what.into(), remedy: remedy.into() })
        };
        let stiffness = match (capabilities.kind, capabilities.stiffness) {
            (Kind::PseudoForce, Some(k)) if k > 0.0 && k.is_finite() => k,
            (Kind::PseudoForce, _) => {
                return fail("a denoised structure", "denoising needs pseudo-forces of known stiffness k, which these do not state");
            }
            (kind, _) => {
                let remedy = format!("its forces are of kind {}; denoise with a model of pseudo-forces, or use `relax`", kind.name());
                return fail("a denoised structure", &remedy);
            }
        };
        if capabilities.needs_noise_level {
            if !self.sampler.has_levels() {
                return fail("forces without a noise level", "use ancestral, heun or stochastic-heun with it");
            }
            if self.adaptive.is_some() {
                return fail("its own noise level", "it must be told the level; leave out the adaptive schedule");
            }
        }
        Ok(Denoiser { settings: Arc::new(self.settings(capabilities.units, stiffness)?), targets: None })
    }
}

impl Denoiser {
    /// The same with shapes to aim at.
    pub fn with_targets(self, targets: Targets) -> Self {
        Denoiser { targets: Some(targets), ..self }
    }

    /// A propagator for one batch under a run's own loop. It draws on the run's noise, and replica ids are the places in
    /// the queue of [`denoise_all`]: paths are the same.
    pub fn propagator(&self) -> Box<dyn Propagator> {
        Box::new(propagator::Denoising { denoiser: self.clone(), walks: Vec::new() })
    }

    /// Noise level `σ̂` in nm that `forces` (`[N, 3]`, kJ/mol/nm) on `system` show: `|F| / (k √n)` over the atoms that move,
    /// with as many degrees of freedom `n` as rigid motions leave them.
    pub fn noise_level(&self, system: &System, forces: View<'_>) -> f64 {
        walk::noise_level(&self.settings, system, forces)
    }

    fn walk(&self, noise: Noise, id: u32, system: &Arc<System>, positions: &mut [f64]) -> Result<Walk> {
        let target = self.targets.as_ref().and_then(|f| f(id));
        Walk::new(self.settings.clone(), noise, id, system, target, positions)
    }
}

/// Denoises every molecule of `jobs` and hands each result, or what went wrong with that molecule, to `on_result` with its
/// place in the queue. Molecules stream through batches as in [`relax_all`](crate::relax::relax_all); `max_steps` of the
/// options is not used, since every sampler has an end of its own.
///
/// # Errors
/// Where nothing can begin. What goes wrong with one molecule goes to `on_result`.
pub fn denoise_all<J>(
    jobs: J,
    provider: &dyn ForceProvider,
    denoiser: &Denoiser,
    noise: Noise,
    options: &StreamOptions<'_>,
    on_result: impl FnMut(usize, Result<Denoised>) + Send,
) -> Result<Tally>
where
    J: IntoIterator,
    J::Item: Into<Job>,
    J::IntoIter: Send,
{
    stream(jobs, provider, &Seeded { denoiser, noise }, &StreamOptions { max_steps: u64::MAX, ..*options }, on_result)
}

/// A denoiser with its noise.
struct Seeded<'a> {
    denoiser: &'a Denoiser,
    noise: Noise,
}

impl Guide for Seeded<'_> {
    type Course = Walk;

    fn begin(&self, index: usize, system: &Arc<System>, positions: &mut [f64]) -> Result<Walk> {
        self.denoiser.walk(self.noise, index as u32, system, positions)
    }

    fn want(&self, _: &Capabilities) -> Want {
        Want::FORCES
    }
}

impl Course for Walk {
    type Outcome = Denoised;
    const ENDS_WITH_A_STEP: bool = true;

    fn observe(&mut self, forces: View<'_>) -> std::result::Result<(), usize> {
        Walk::observe(self, forces)
    }

    fn advance(&mut self, positions: &mut Array, first: usize) {
        Walk::advance(self, positions, first);
    }

    fn progress(&self) -> Progress {
        Walk::progress(self)
    }

    fn steps(&self) -> u64 {
        self.evaluations()
    }

    fn level(&self) -> Option<f64> {
        Walk::level(self)
    }

    fn copy_moving(&self, from: View<'_>, to: &mut [f64]) {
        Walk::copy_moving(self, from, to);
    }

    fn outcome(&self, index: usize, job: &Job, positions: &[f64], _: Option<f64>) -> Denoised {
        let rmsd = if self.has_frozen() { crate::superpose::plain_rmsd } else { superposed_rmsd };
        let (sigma_start, sigma_end) = self.noise_levels();
        Denoised {
            index,
            positions: positions.to_vec(),
            evaluations: self.evaluations(),
            progress: Walk::progress(self),
            sigma_start,
            sigma_end,
            rmsd: rmsd(&job.positions, positions),
        }
    }
}
