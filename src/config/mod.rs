//! Settings in two levels: *raw*, what was typed in flags or in a TOML file with the same keys, everything optional; and
//! *resolved*, checked, with defaults and in internal units. Flags win over the file.

mod file;
mod raw;
mod recipe;
mod resolved;

pub use file::{load, overlay};
pub use raw::{ExchangeFlags, Global, LogFormat, RunFlags, SimulateFlags, TrajectoryLayout};
pub use recipe::{EnergyOffset, NotFinite, OutputSettings, PotentialSettings, Recipe, ScheduleKind, TrainSettings};
pub use resolved::{RunConfig, RunSettings, Sampling, Subject};

use crate::error::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Settings of a command and those of every command: what one config file holds.
#[derive(Debug, Serialize, Deserialize, clap::Args)]
pub struct Settings<A: clap::Args> {
    /// Settings of every command.
    #[command(flatten)]
    #[serde(flatten)]
    pub global: Global,
    /// The command's own settings.
    #[command(flatten)]
    #[serde(flatten)]
    pub args: A,
}

/// Completes flags with the file that `--config` names.
///
/// # Errors
/// Where the file cannot be read, has an unknown key, or a value of the wrong type.
pub fn with_file<A>(args: A, global: Global) -> Result<(A, Global)>
where
    A: clap::Args + Serialize + DeserializeOwned,
{
    let Some(path) = global.config.clone() else { return Ok((args, global)) };
    let file: Settings<A> = load(&path)?;
    let merged = overlay(&file, &Settings { global, args })?;
    Ok((merged.args, merged.global))
}
