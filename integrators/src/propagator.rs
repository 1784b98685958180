//! What moves atoms: Langevin dynamics, relaxation and denoising are the same thing to the loop.

use crate::batch::Batch;
use crate::error::Result;
use crate::force::{ForceProvider, Input, Output, Want};
use crate::fused::Plan;
use crate::noise::Noise;
use crate::state::State;
use serde::{Deserialize, Serialize};

/// Everything one propagator step works on: one batch of replicas, in one thread.
pub struct Context<'a> {
    /// Who is who.
    pub batch: &'a Batch,
    /// What changes.
    pub state: &'a mut State,
    /// Where forces come from.
    pub provider: &'a mut dyn ForceProvider,
    /// Forces (and energies, where wanted) at the present positions.
    pub out: &'a mut Output,
    /// The run's noise.
    pub noise: Noise,
}

impl Context<'_> {
    /// Evaluates the provider at the present positions.
    ///
    /// # Errors
    /// Those of the provider.
    pub fn evaluate(&mut self, want: Want) -> Result<()> {
        let input = Input {
            batch: self.batch,
            positions: self.state.positions(),
            cells: self.state.cells.as_deref(),
            clock: self.state.clock,
            want,
        };
        self.provider.evaluate(&input, self.out)
    }
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Running,
    /// It reached its own criterion and does not move any more.
    Converged,
    /// It cannot go on (its forces lead nowhere); it does not move any more.
    Stalled,
}

/// How many trial moves were tried and accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// Trial moves.
    pub tried: u64,
    /// Those that were accepted.
    pub accepted: u64,
}

/// Moves all replicas of a batch. One propagator serves one batch in one thread.
pub trait Propagator: Send {
    /// Checks the provider against what this propagator needs, allocates per-replica memory and brings `out` to the present
    /// positions. Called once before the first step and after a restart.
    ///
    /// # Errors
    /// What is missing, with a remedy.
    fn prepare(&mut self, ctx: &mut Context<'_>) -> Result<()>;

    /// Advances every running replica by one step and the step counter by one.
    ///
    /// # Errors
    /// Those of the provider.
    fn step(&mut self, ctx: &mut Context<'_>) -> Result<()>;

    /// Advances by `steps`, by a fused kernel where there is one.
    ///
    /// # Errors
    /// As [`Propagator::step`].
    fn run(&mut self, ctx: &mut Context<'_>, steps: u64) -> Result<()> {
        for _ in 0..steps {
            self.step(ctx)?;
        }
        Ok(())
    }

    /// The step as data, where it is a list of stages: what devices run.
    fn plan(&self) -> Option<&Plan> {
        None
    }

    /// Progress per replica `[B]`; dynamics never ends by itself.
    fn progress(&self, replicas: usize) -> Vec<Progress> {
        vec![Progress::Running; replicas]
    }

    /// Trial moves since it was made; `None` where every step counts.
    fn acceptance(&self) -> Option<Acceptance> {
        None
    }

    /// Keeps the memory of replicas `keep` (indices into the batch before compaction) and drops the others'.
    fn retain(&mut self, keep: &[usize]) {
        let _ = keep;
    }

    /// The same propagator, unprepared, for another batch.
    fn fork(&self) -> Box<dyn Propagator>;
}
