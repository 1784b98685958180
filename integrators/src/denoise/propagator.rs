//! Denoising of one batch under a run's own loop.

use super::Denoiser;
use super::walk::Walk;
use crate::error::{Result, invalid};
use crate::force::Want;
use crate::propagator::{Context, Progress, Propagator};
use crate::state::Clock;
use crate::stream::not_finite;

/// One [`Walk`] per replica.
pub(super) struct Denoising {
    pub(super) denoiser: Denoiser,
    pub(super) walks: Vec<Walk>,
}

impl Denoising {
    /// Evaluates the forces at the present positions and shows them to the replicas still at work.
    fn look(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        let Some(first) = self.walks.iter().find(|w| w.progress() == Progress::Running) else { return Ok(()) };
        ctx.state.clock = first.level().map_or(Clock::Iteration, |t| Clock::Diffusion { t });
        ctx.evaluate(Want::FORCES)?;
        for (b, walk) in self.walks.iter_mut().enumerate() {
            if walk.progress() == Progress::Running {
                let range = ctx.batch.range3(b);
                let forces = ctx.out.forces.part(range.clone());
                if let Err(atom) = walk.observe(forces) {
                    return invalid(not_finite(ctx.batch.system(b), atom, forces, ctx.state.positions().part(range)));
                }
            }
        }
        Ok(())
    }
}

impl Propagator for Denoising {
    /// Sets the clock to the noise level (nm) where the sampler knows it. Molecules may be given their shape here.
    ///
    /// # Errors
    /// Also where a force is not finite, naming the atom.
    fn prepare(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        ctx.provider.prepare(ctx.batch, ctx.state.dtype())?;
        self.walks.clear();
        for (b, system) in ctx.batch.systems().iter().enumerate() {
            let range = ctx.batch.range3(b);
            let mut positions = ctx.state.positions().part(range.clone()).to_f64();
            self.walks.push(self.denoiser.walk(ctx.noise, ctx.batch.id(b), system, &mut positions)?);
            for (k, x) in range.zip(positions) {
                ctx.state.phase.set(k, x);
            }
        }
        self.look(ctx)
    }

    /// One step is one evaluation; the forces of a replica that has ended are those of its last step.
    fn step(&mut self, ctx: &mut Context<'_>) -> Result<()> {
        if self.walks.len() != ctx.batch.replicas() {
            return invalid(format!(
                "denoising prepared for {} replicas met a batch of {}; prepare it again",
                self.walks.len(),
                ctx.batch.replicas()
            ));
        }
        for (b, walk) in self.walks.iter_mut().enumerate() {
            if walk.progress() == Progress::Running {
                walk.advance(&mut ctx.state.phase, 3 * ctx.batch.range(b).start);
            }
        }
        self.look(ctx)?;
        ctx.state.step += 1;
        Ok(())
    }

    fn progress(&self, replicas: usize) -> Vec<Progress> {
        (0..replicas).map(|b| self.walks.get(b).map_or(Progress::Running, Walk::progress)).collect()
    }

    fn retain(&mut self, keep: &[usize]) {
        let mut old: Vec<Option<Walk>> = std::mem::take(&mut self.walks).into_iter().map(Some).collect();
        self.walks = keep.iter().filter_map(|&b| old.get_mut(b).and_then(Option::take)).collect();
    }

    fn fork(&self) -> Box<dyn Propagator> {
        self.denoiser.propagator()
    }
}
