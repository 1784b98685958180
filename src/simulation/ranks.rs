//! A run in several processes: root has the run and its files, the others hold replicas.

use super::{biased, ensemble, open_device, start};
use crate::checkpoint::Header;
use crate::config::{RunConfig, RunSettings};
use crate::error::{Error, Result, usage};
use crate::runtime::{Outcome, Runtime};
use scorefield_integrators::ranks::{Messages, serve, shares};
use scorefield_integrators::simd::{Isa, choose_isa, current_isa};
use scorefield_integrators::{Batch, Ensemble, Noise, State};
use scorefield_models::bias::BiasSpec;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// What every process has to know, besides the state of its replicas.
#[derive(Serialize, Deserialize)]
struct Task {
    settings: RunSettings,
    seed: u64,
    isa: Isa,
    /// Its replicas, among those of root's run.
    shares: Vec<Range<usize>>,
}

/// Refuses what only one process can do.
///
/// # Errors
/// Where the settings ask for it.
pub(super) fn check(config: &RunConfig, remote: bool) -> Result<()> {
    if remote {
        return usage("--mpi and ipi:… do not go together; connect more clients instead");
    }
    if config.plumed.is_some() {
        return usage("--mpi and --plumed do not go together; run parts of the replicas with --replica-range");
    }
    if config.bias.iter().any(|b| matches!(b, BiasSpec::Metadynamics { .. })) {
        return usage("--mpi has no hills of metadynamics, which every process would have to know; use --replica-range");
    }
    Ok(())
}

/// All replicas, shared out: those of root are made by `near`.
///
/// # Errors
/// Where there are too few, or a process cannot begin.
pub(super) fn share_out(
    batch: Batch,
    state: &State,
    near: impl FnOnce(Batch, &State) -> Result<Ensemble>,
    header: &Header,
    others: &Arc<dyn Messages>,
) -> Result<Ensemble> {
    let shares = shares(batch.replicas(), others.ranks(), state.dtype()).map_err(|e| Error::Usage(format!("--mpi: {e}")))?;
    let own = near(batch.select(&shares[0].clone().collect::<Vec<_>>())?, &state.part(&batch, shares[0].clone()))?;
    let task = Task { settings: header.settings.clone(), seed: header.seed, isa: current_isa(), shares: shares.clone() };
    let task = serde_json::to_string(&task).map_err(|e| Error::Run(e.to_string()))?;
    Ok(own.across(batch, state, others.clone(), &shares, &task)?)
}

/// What every process but root does: holds its replicas until the run is over.
///
/// # Errors
/// Where root cannot be understood; whatever else goes wrong is said by root.
pub(super) fn assist(messages: &dyn Messages, runtime: &Runtime) -> Result<Outcome> {
    serve(messages, |state, task| hold(messages.rank(), state, task, runtime).map_err(|e| e.to_string()))?;
    Ok(Outcome::Done)
}

/// The replicas of this process.
fn hold(rank: usize, state: &State, task: &str, runtime: &Runtime) -> Result<Ensemble> {
    let Task { settings, seed, isa, shares } = serde_json::from_str(task).map_err(|e| Error::Run(e.to_string()))?;
    if current_isa() != isa {
        choose_isa(isa).map_err(|e| Error::Usage(format!("{e}; give all processes an --isa that all machines have")))?;
    }
    let share = shares.get(rank).cloned().unwrap_or_default();
    let mut loaded = start::load(settings.run(), true)?;
    let (config, _) = settings.resolve(&loaded.subject)?;
    start::prepare_masses(&mut loaded.frames, &config)?;
    // Root's state counts: where start structures are to be relaxed, it has done so.
    let (batch, _) = start::replicate(&loaded.frames, &loaded.starts, &config, state.dtype(), seed)?;
    let batch = batch.select(&share.collect::<Vec<_>>())?;
    let first = batch.id(0) as usize;
    let bias = start::bias(&config, first..first + batch.replicas())?.map(Arc::new);
    let provider = biased(loaded.provider, bias.as_ref(), &config)?;
    let device = open_device(&config, &*provider)?;
    ensemble(batch, state, &*provider, &config, Noise::new(seed), device.as_ref(), runtime)
}
