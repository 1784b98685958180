//! `scorefield simulate`: Langevin, Metropolis-corrected or constant-energy dynamics of many replicas.

use super::{Outcome, Runtime};
use crate::config::{RunSettings, SimulateFlags};
use crate::consistency::{Settings, Source, Trajectory, compare, embedded_frames};
use crate::error::Error;
use crate::io::write_atomically;
use crate::report::consistency::{files, table};
use crate::simulation;
use anyhow::Result;
use std::path::Path;

/// Shown at the end of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  # The built-in diffusion model of alanine dipeptide as five beads: 64 replicas, compared with its reference
  scorefield simulate

  # The peptide itself, all atoms in implicit solvent
  scorefield simulate --model mm

  # A structure with the force field that OpenMM wrote for it
  scorefield simulate peptide.pdb --model mm:peptide.xml --dt '2 fs' --time '1 ns' --replicas 16 --out run

  # Hydrogens of 3 u allow a step of 4 fs
  scorefield simulate peptide.pdb --model mm:peptide.xml --hydrogen-mass '3 u' --dt '4 fs' --time '10 ns'

  # A toy with reduced units
  scorefield simulate --model mueller-brown --replicas 1000 --steps 20000 --out toy

  # Forces from other programs that connect to us (i-PI protocol), here from four of `scorefield drive`
  scorefield simulate molecule.xyz --model ipi:0.0.0.0:31415,clients=4 --replicas 16 --out farm

  # Settings from a file, one of them changed; then go on twice as long
  scorefield simulate --config run/config.toml --seed 1 --out run-1
  scorefield simulate --resume run-1 --steps 200000";

/// Runs the command.
///
/// # Errors
/// Where settings, input or output are wrong, or the run fails.
pub(super) fn run(args: SimulateFlags, runtime: &Runtime) -> Result<Outcome> {
    let embedded = args.run.structure.is_none() && args.run.resume.is_none() && matches!(args.run.model.as_deref(), None | Some("scoremd"));
    // The comparison needs all beads in files that are read back.
    let whole = args.run.replica_range.is_none();
    let written = whole && args.run.select.is_none() && args.run.trajectory_every != Some(0);
    let out = args.run.out.clone().unwrap_or_else(|| "scorefield-run".into());
    let outcome = simulation::command(RunSettings::Simulate(args), runtime)?;
    if embedded && written && outcome == Outcome::Done {
        report(&out, runtime)?;
    }
    Ok(outcome)
}

/// Compares the embedded model's simulation in `out` with its reference and with independent samples.
fn report(out: &Path, runtime: &Runtime) -> Result<()> {
    let (reference, samples) = embedded_frames()?;
    let system = Some(reference.system.clone());
    let simulation = Trajectory::load(&Source { name: "simulation".into(), paths: vec![out.to_owned()], system, ..Source::default() })?;
    if simulation.frames() < crate::consistency::FEWEST_FRAMES {
        return Ok(());
    }
    let settings = Settings { seed: runtime.seed, ..Settings::default() };
    let outcome = runtime.pool.install(|| compare(&reference, Some(&samples), Some(&simulation), &settings))?;
    let summary: Option<serde_json::Value> =
        std::fs::read(out.join(simulation::SUMMARY_FILE)).ok().and_then(|s| serde_json::from_slice(&s).ok());
    let each = summary.and_then(|s| s["time_ps"].as_f64()).map_or(String::new(), |ps| format!(" of {ps:.0} ps"));
    println!(
        "\n{}\n\n{} chains{each} from frames of the training data: times this short say how well local motion agrees; how often φ > 0\n\
         is visited takes nanoseconds, and the errors show it",
        table(&outcome.comparison),
        simulation.chains.len()
    );
    let title = "Alanine dipeptide as five beads: reference, samples and simulation";
    let record = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "title": title, "seed": settings.seed });
    for (name, content) in files(&outcome, title, None, &record)? {
        write_atomically(&out.join(name), |w| w.write_all(content.as_bytes())).map_err(Error::from)?;
    }
    println!("report: {}", out.join("report.html").display());
    Ok(())
}
