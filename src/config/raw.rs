//! What was typed: every setting optional, as flags and as keys of a TOML file.

use scorefield_integrators::DType;
use scorefield_integrators::simd::Isa;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of every command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Read settings from a TOML file with the same keys as the flags; flags win
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Threads for replicas [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Instruction set: x86-64-v4, x86-64-v3, neon or portable [default: the best of this machine]
    #[arg(long, global = true, value_name = "ISA")]
    pub isa: Option<Isa>,
    /// Precision: f32 or f64
    #[arg(long, global = true, value_name = "DTYPE")]
    pub dtype: Option<DType>,
    /// Seed of all random numbers [default: 0]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    /// Show errors and warnings only
    #[arg(long, short, global = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub quiet: Option<bool>,
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=4096) => Ok(n),
        _ => Err("write a number of threads from 1 to 4096".into()),
    }
}
