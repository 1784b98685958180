//! `scorefield convert`: structures and trajectories from one format to another.

use super::input::{Frame, FrameFlags, FrameStream, plural, show_file_warnings};
use super::{Outcome, Runtime, print};
use crate::error::usage;
use crate::io::write_frames;
use anyhow::{Context, Result};
use scorefield_models::molecule::{Convention, Perceiver};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  scorefield convert peptide.pdb peptide.xyz
  scorefield convert molecules.xyz molecules.sdf --bonds
  scorefield convert run.dcd thinned.xtc --topology peptide.pdb --frames 100::10
  scorefield convert run.xtc backbone.pdb --topology peptide.pdb --select 'name N CA C O' --frames -1

Formats follow the extensions (pdb, cif, xyz, extxyz, sdf, mol2, gro, dcd, xtc, trr, nc, lammpstrj, …).";

/// Convert structures and trajectories between formats
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConvertFlags {
    /// File to read
    #[arg(value_name = "IN")]
    pub(super) input: Option<PathBuf>,
    /// File to write; replaced once the new one is whole
    #[arg(value_name = "OUT")]
    pub(super) output: Option<PathBuf>,
    /// Which frames and atoms.
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) which: FrameFlags,
    /// Find bonds, bond orders and charges from the coordinates (for SDF)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) bonds: Option<bool>,
    /// Format of IN, where its extension does not tell
    #[arg(long, value_name = "FORMAT")]
    pub(super) input_format: Option<String>,
    /// Format of OUT, where its extension does not tell
    #[arg(long, value_name = "FORMAT")]
    pub(super) output_format: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Where the input cannot be read or the output format cannot hold it.
pub(super) fn run(flags: ConvertFlags, runtime: &Runtime) -> Result<Outcome> {
    let (Some(input), Some(output)) = (flags.input, flags.output) else {
        return usage("two files are needed: scorefield convert IN OUT")?;
    };
    let mut options = flags.which.options()?;
    options.format = flags.input_format;
    let frames = FrameStream::new(vec![input], options).collect::<Result<Vec<Frame>>>();
    show_file_warnings(runtime);
    let mut frames = frames?;
    if flags.bonds == Some(true) {
        let mut perceiver = Perceiver::new();
        for (i, frame) in frames.iter_mut().enumerate() {
            let found = frame.perceive_bonds(&mut perceiver, Convention::default());
            found.with_context(|| format!("--bonds: frame {i} ({}) is no molecule", frame.label()))?;
        }
    }
    write_frames(&output, flags.output_format.as_deref(), &frames)?;
    show_file_warnings(runtime);
    let atoms = frames.first().map_or(0, Frame::len);
    let ragged = frames.iter().any(|f| f.len() != atoms);
    let atoms = if ragged { format!("{} atoms in all", frames.iter().map(Frame::len).sum::<usize>()) } else { format!("{atoms} atoms") };
    print(format_args!("wrote {}: {} frame{}, {atoms}", output.display(), frames.len(), plural(frames.len())))?;
    Ok(Outcome::Done)
}
