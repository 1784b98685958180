//! Training data of built-in toys, simulated when they are needed.

use crate::dataset::SimulateData;
use crate::error::{Error, Result, usage};
use scorefield_integrators::dynamics::draw_velocities;
use scorefield_integrators::{Batch, DType, Dynamics, DynamicsSpec, Ensemble, Guard, Noise, Quantity, State, UnitSystem};
use scorefield_models::parse_spec;
use std::sync::Arc;

/// Most numbers that are made.
const MOST: usize = 1 << 30;

/// Frames `[n, 3]` of a particle, replica by replica in turn, and its mass.
///
/// # Errors
/// Where the model is no toy of one particle, or the simulation fails.
pub(super) fn simulate(settings: &SimulateData, kt: f64, pool: &Arc<rayon::ThreadPool>) -> Result<(Vec<f64>, f64)> {
    let wrong = |e: &dyn std::fmt::Display| Error::Usage(format!("[data]: simulate: {e}"));
    let built = parse_spec(&settings.model).and_then(|s| s.build()).map_err(|e| wrong(&e))?;
    let Some(toy) = built.toy.filter(|t| t.system.len() == 1 && built.provider.capabilities().units == UnitSystem::Reduced) else {
        return usage(format!("[data]: simulate: {} is not a toy of one particle; simulate it with `scorefield simulate`", settings.model));
    };
    let SimulateData { replicas, every, frames, .. } = *settings;
    if replicas == 0 || replicas > 1 << 16 || every == 0 || frames == 0 || frames.saturating_mul(3) > MOST {
        return usage("[data]: simulate needs 1 to 65536 replicas, and `every` and `frames` above zero");
    }
    let system = Arc::new(toy.system.clone());
    let batch = Batch::new(vec![system; replicas], (0..replicas as u32).collect())?;
    let mut state = State::at_rest(&batch, &toy.positions.repeat(replicas), DType::F64)?;
    state.kt.fill(kt);
    let noise = Noise::new(settings.seed);
    draw_velocities(&batch, &mut state, noise, false);
    let spec = DynamicsSpec::Baoab { dt: Quantity::bare(settings.dt), friction: Quantity::bare(settings.friction) };
    let dynamics = Dynamics::new(&spec, UnitSystem::Reduced, false)?;
    let mut ensemble = Ensemble::new(batch, &state, &*built.provider, &dynamics, noise, pool.clone(), Guard::default())?;
    ensemble.run(settings.equilibration)?;
    let mut x = Vec::with_capacity(3 * frames);
    while x.len() < 3 * frames {
        ensemble.run(every)?;
        for r in 0..replicas.min(frames - x.len() / 3) {
            x.extend((0..3).map(|k| ensemble.positions(r).get(k)));
        }
    }
    Ok((x, toy.system.masses[0]))
}
