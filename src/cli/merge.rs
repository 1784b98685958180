//! `scorefield merge`: parts of an ensemble that ran apart, joined.

use super::{Outcome, Runtime};
use crate::error::usage;
use crate::simulation;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  # Half of the replicas here, half there; then everything in one place
  scorefield simulate peptide.pdb --model mm:peptide.xml --replicas 64 --replica-range 0..32 --out part-0
  scorefield simulate peptide.pdb --model mm:peptide.xml --replicas 64 --replica-range 32..64 --out part-1
  scorefield merge part-0 part-1 --out run

The parts have the bits of one run, so that what is merged is byte for byte what one run would have written; it can be
resumed like one. Seed, settings, version and instruction set (--isa) must be the same, and all parts finished.";

/// Join the parts of a run that were made with --replica-range
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct MergeFlags {
    /// Output directories of the parts, in any order
    #[arg(value_name = "PART")]
    pub(super) parts: Vec<PathBuf>,
    /// Directory for the whole run, which must not be there yet
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where the parts are no parts of one run, or files cannot be read or written.
pub(super) fn run(flags: MergeFlags, runtime: &Runtime) -> Result<Outcome> {
    let Some(out) = flags.out else { return usage("--out is missing: name the directory for the whole run")? };
    Ok(simulation::merge(&flags.parts, &out, runtime)?)
}
