//! `scorefield simulate`: Langevin or constant-energy dynamics of many replicas.

use super::{Outcome, Runtime};
use crate::config::{RunSettings, SimulateFlags};
use crate::simulation;
use anyhow::Result;

/// Shown at the end of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  # The built-in peptide: 64 replicas of alanine dipeptide in implicit solvent
  scorefield simulate

  # A structure with the force field that OpenMM wrote for it
  scorefield simulate peptide.pdb --model mm:peptide.xml --dt '2 fs' --time '1 ns' --replicas 16 --out run

  # Hydrogens of 3 u allow a step of 4 fs
  scorefield simulate peptide.pdb --model mm:peptide.xml --hydrogen-mass '3 u' --dt '4 fs' --time '10 ns'

  # A toy with reduced units
  scorefield simulate --model mueller-brown --replicas 1000 --steps 20000 --out toy

  # Settings from a file, one of them changed; then go on twice as long
  scorefield simulate --config run/config.toml --seed 1 --out run-1
  scorefield simulate --resume run-1 --steps 200000";

/// Runs the command.
///
/// # Errors
/// Where settings, input or output are wrong, or the run fails.
pub(super) fn run(args: SimulateFlags, runtime: &Runtime) -> Result<Outcome> {
    Ok(simulation::command(RunSettings::Simulate(args), runtime)?)
}
