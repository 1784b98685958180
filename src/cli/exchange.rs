//! `scorefield exchange`: temperature replica exchange.

use super::{Outcome, Runtime};
use crate::config::{ExchangeFlags, RunSettings};
use crate::simulation;
use anyhow::Result;

/// Shown at the end of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  # The built-in peptide: 8 copies of 8 temperatures from 300 K to 600 K
  scorefield exchange

  # Eight temperatures, eight independent copies, an attempt every 100 steps
  scorefield exchange peptide.pdb --model mm:peptide.xml --temperatures '300 K..600 K' --count 8 --copies 8 \\
      --exchange-every 100 --dt '2 fs' --time '1 ns' --out exchange

  # Temperatures of your own
  scorefield exchange peptide.pdb --model mm:peptide.xml --temperatures '300 K, 340 K, 390 K' --out exchange

  # Go on after an interruption, or longer
  scorefield exchange --resume exchange --time '2 ns'";

/// Runs the command.
///
/// # Errors
/// Where settings, input or output are wrong, or the run fails.
pub(super) fn run(args: ExchangeFlags, runtime: &Runtime) -> Result<Outcome> {
    Ok(simulation::command(RunSettings::Exchange(args), runtime)?)
}
