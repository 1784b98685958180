//! `scorefield train`: a model from a recipe.

use super::{Outcome, Runtime};
use crate::config::Recipe;
use crate::error::usage;
use crate::training::{self, Request};
use anyhow::Result;
use scorefield_integrators::DeviceSpec;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  # A diffusion model of the Müller-Brown surface; its data are simulated first
  scorefield train data/recipes/muller-brown-fp.toml --output mb

  # Only some steps, another seed, four threads
  scorefield train recipe.toml --steps 20000 --seed 1 --threads 4 --output run-1

  # Go on with a training that was interrupted, bit by bit as if it had not been
  scorefield train --resume run-1

A recipe is a TOML file:
  preset = \"alanine-dipeptide\"      # or [[experts]] of your own
  variant = \"fokker-planck\"         # diffusion, mixture, fokker-planck, both
  [data]
  trajectory = \"run/trajectory.dcd\" # or .npy, .npz, .safetensors
  topology = \"peptide.pdb\"
  select = \"4,6,8,14,16\"
  temperature = \"300 K\"
  [train]
  steps = 50000
Keys that are left out are as published for the preset. Exit code 130 if interrupted; the state is saved.";

/// Train a diffusion model whose score is a force field
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct TrainFlags {
    /// Recipe: which networks, which data, how long
    #[arg(value_name = "RECIPE", required_unless_present = "resume")]
    pub(super) recipe: Option<PathBuf>,
    /// Steps of all networks together, instead of the recipe's
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<u64>,
    /// Where pseudo-force fields and conformer models are trained: cpu, cuda or cuda:N [default: the recipe's, else cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<DeviceSpec>,
    /// Directory for everything that is written [default: the recipe's, else scorefield-train]
    #[arg(long, short, value_name = "DIR")]
    pub(super) output: Option<PathBuf>,
    /// Replace the training that is in the output directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    #[serde(skip)]
    pub(super) overwrite: Option<bool>,
    /// Go on with the training in DIR
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "output", "overwrite"])]
    #[serde(skip)]
    pub(super) resume: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Where the recipe or its data are wrong, output cannot be written, or training fails.
pub(super) fn run(flags: TrainFlags, runtime: &Runtime) -> Result<Outcome> {
    let typed: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let command = format!("scorefield {}", typed.join(" "));
    let request = match (&flags.resume, &flags.recipe) {
        (Some(directory), _) => {
            let (mut recipe, folder, command) = training::recorded(directory)?;
            if flags.steps.is_some_and(|s| recipe.train.steps != Some(s)) {
                return usage(
                    "--steps: the learning rate follows a schedule over all steps, so another number of them is another training; begin it anew",
                )?;
            }
            if runtime.global.seed.is_some_and(|s| recipe.train.seed.unwrap_or(0) != s) {
                return usage("--seed: another seed is another training; leave it out, or begin anew")?;
            }
            let begun = recipe.train.device.unwrap_or_default();
            if flags.device.is_some_and(|d| d != begun) {
                return usage(format!(
                    "--device: the training was begun on {begun}, and another device gives other bits; leave it out, or begin anew with start-from"
                ))?;
            }
            recipe.output.directory = Some(directory.clone());
            Request { recipe, folder, overwrite: false, resume: true, command }
        }
        (None, Some(path)) => {
            let mut recipe = Recipe::read(path)?;
            if flags.steps.is_some() {
                (recipe.train.steps, recipe.train.epochs) = (flags.steps, None);
            }
            recipe.train.seed = runtime.global.seed.or(recipe.train.seed);
            recipe.train.dtype = runtime.dtype.or(recipe.train.dtype);
            recipe.train.device = flags.device.or(recipe.train.device);
            if flags.output.is_some() {
                recipe.output.directory.clone_from(&flags.output);
            }
            let folder = std::path::absolute(path).map_err(|e| crate::error::Error::file("find", path, e))?;
            let folder = folder.parent().unwrap_or(Path::new(".")).to_owned();
            Request { recipe, folder, overwrite: flags.overwrite == Some(true), resume: false, command }
        }
        (None, None) => return usage("name a recipe, or the directory of a training with --resume")?,
    };
    Ok(training::command(request, runtime)?)
}
