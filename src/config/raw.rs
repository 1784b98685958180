//! What was typed: every setting optional, as flags and as keys of a TOML file.

use scorefield_integrators::simd::Isa;
use scorefield_integrators::{DType, DeviceSpec, OnDivergence, Quantity};
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

/// How a log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Comma-separated values with a header.
    #[default]
    Csv,
    /// One JSON object per line.
    Jsonl,
}

/// How replicas share trajectory files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TrajectoryLayout {
    /// One file; each report is one frame per replica, in order.
    #[default]
    Together,
    /// One file per replica.
    PerReplica,
}

/// Settings of a run, whatever its ensemble: what is simulated, how atoms move, what is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub struct RunFlags {
    /// Structure or trajectory file; left out for models that bring their own system, and for the built-in peptide
    #[arg(value_name = "STRUCTURE")]
    pub structure: Option<PathBuf>,
    /// Force provider: a name with parameters, mm:FILE.xml, weights, or a TOML tree (see `scorefield models`). Without
    /// STRUCTURE, `scoremd` is the built-in model of alanine dipeptide as five beads, and `mm` the peptide itself
    #[arg(long, value_name = "SPEC")]
    pub model: Option<String>,
    /// Frames that become start structures, first:last:stride [default: the first]
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    pub frames: Option<String>,
    /// Structure file that says which atoms STRUCTURE has (for DCD, XTC, …)
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,

    /// baoab, middle, legacy, overdamped, overdamped-limit or verlet [default: baoab]. Positions are best with baoab and
    /// middle alike; the temperature of velocities reads low by (ω dt)²/4 with baoab and is exact with middle. With a
    /// Metropolis test, for models with an energy: mala, hmc or ghmc, without any error of the time step
    #[arg(long, value_name = "NAME", help_heading = "Dynamics")]
    pub integrator: Option<String>,
    /// Time step, for example '2 fs' [default: 1 fs]
    #[arg(long, value_name = "TIME", help_heading = "Dynamics", allow_hyphen_values = true)]
    pub dt: Option<Quantity>,
    /// Verlet steps of dt per step of hmc or ghmc [default: 10]
    #[arg(long, value_name = "N", help_heading = "Dynamics")]
    pub leapfrog: Option<u64>,
    /// Friction of the thermostat, for example '1 /ps' [default: 1 /ps]
    #[arg(long, value_name = "RATE", help_heading = "Dynamics", allow_hyphen_values = true)]
    pub friction: Option<Quantity>,
    /// Number of steps per replica [default: 100000]
    #[arg(long, value_name = "N", help_heading = "Dynamics", conflicts_with = "time")]
    pub steps: Option<u64>,
    /// Length per replica instead of a number of steps, for example '1 ns'
    #[arg(long, value_name = "TIME", help_heading = "Dynamics", allow_hyphen_values = true)]
    pub time: Option<Quantity>,
    /// Only these of all replicas, FIRST..END from 0 without END: the others run elsewhere, with the same bits as in one run, and
    /// `scorefield merge` joins the parts. Of replica exchange, whole copies of the ladder
    #[arg(long, value_name = "RANGE", help_heading = "Dynamics")]
    pub replica_range: Option<String>,
    /// Share replicas out over the processes of mpirun, with the bits of one process; for programs built with `--features mpi`
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Dynamics")]
    #[serde(skip)]
    pub mpi: Option<bool>,
    /// Atoms that do not move, as a selection: `name CA`, `0-4,8`
    #[arg(long, value_name = "SELECTION", help_heading = "Dynamics")]
    pub freeze: Option<String>,
    /// Mass of hydrogens, taken from the atoms they are bonded to, for example '3 u'
    #[arg(long, value_name = "MASS", help_heading = "Dynamics", allow_hyphen_values = true)]
    pub hydrogen_mass: Option<Quantity>,
    /// Remove the motion of the centre of mass at every step [default: what the force field says]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Dynamics")]
    pub remove_drift: Option<bool>,
    /// Relax start structures before the run
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Dynamics")]
    pub relax: Option<bool>,
    /// Where replicas move: cpu, cuda or cuda:N [default: cpu]
    #[arg(long, value_name = "DEVICE", help_heading = "Dynamics")]
    pub device: Option<DeviceSpec>,
    /// What becomes of a replica that explodes: stop, freeze or restore [default: stop]
    #[arg(long, value_name = "POLICY", help_heading = "Dynamics")]
    pub on_divergence: Option<OnDivergence>,
    /// Steps between looks for replicas that explode [default: 100]
    #[arg(long, value_name = "N", help_heading = "Dynamics")]
    pub check_every: Option<u64>,
    /// A collective variable, atoms from 1: 'phi=dihedral 5 7 9 15', 'a=angle 1 2 3', 'd=distance 1 6', 'x=x 1'; may be repeated.
    /// They are written to colvar.csv
    #[arg(long, value_name = "NAME=KIND ATOMS", help_heading = "Bias")]
    pub cv: Option<Vec<String>>,
    /// A bias on variables; may be repeated: 'harmonic:cv=d,at=3 A,stiffness=1000 kJ/mol/nm^2';
    /// 'umbrella:cv=d,from=2 A,to=8 A,windows=16,stiffness=…', where replica r is in window r mod windows;
    /// 'metadynamics:cv=phi;psi,height=1.2 kJ/mol,width=20 deg,every=500,factor=8', with shared=true for one surface of all replicas
    #[arg(long, value_name = "BIAS", help_heading = "Bias")]
    pub bias: Option<Vec<String>>,
    /// Input of PLUMED, whose kernel is where PLUMED_KERNEL says; `{replica}` in it is the number of the replica
    #[arg(long, value_name = "FILE", help_heading = "Bias")]
    pub plumed: Option<PathBuf>,
    /// Steps between rows of colvar.csv, 0 for none [default: as of the log]
    #[arg(long, value_name = "N", help_heading = "Bias")]
    pub colvar_every: Option<u64>,
    /// Run a model at a temperature that it was not made for
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Dynamics")]
    pub force: Option<bool>,

    /// Directory for everything that is written [default: scorefield-run]
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Replace the run that is in the output directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true, help_heading = "Output")]
    #[serde(skip)]
    pub overwrite: Option<bool>,
    /// Continue the run in DIR from its checkpoint; --steps or --time may make it longer
    #[arg(long, value_name = "DIR", help_heading = "Output", conflicts_with_all = ["out", "overwrite"])]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Steps between rows of the log, 0 for none [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub log_every: Option<u64>,
    /// Format of the log [default: csv]
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    pub log_format: Option<LogFormat>,
    /// Steps between frames of the trajectory, 0 for none [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub trajectory_every: Option<u64>,
    /// Format of the trajectory: dcd, extxyz, xtc, trr, …; trr, nc and gro keep velocities [default: dcd]
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    pub trajectory_format: Option<String>,
    /// Atoms that are written to the trajectory: `name CA`, `0-4,8` [default: all]
    #[arg(long, value_name = "SELECTION", help_heading = "Output")]
    pub select: Option<String>,
    /// Files of the trajectory [default: together]
    #[arg(long, value_name = "LAYOUT", help_heading = "Output")]
    pub trajectory_layout: Option<TrajectoryLayout>,
    /// Steps between checkpoints, 0 for none by steps [default: 0]
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub checkpoint_every: Option<u64>,
    /// Minutes between checkpoints, 0 for none by time [default: 5]
    #[arg(long, value_name = "MINUTES", help_heading = "Output")]
    pub checkpoint_minutes: Option<f64>,
    /// Write the summary as JSON also to FILE
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub summary: Option<PathBuf>,
}

/// Settings of `simulate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub struct SimulateFlags {
    /// Settings of every run.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
    /// Temperature of the thermostat [default: 300 K, or what the model is made for]
    #[arg(long, value_name = "TEMPERATURE", help_heading = "Dynamics", allow_hyphen_values = true)]
    pub temperature: Option<Quantity>,
    /// Replicas of each start structure [default: 1; 64 of the built-in peptide]
    #[arg(long, value_name = "N", help_heading = "Dynamics")]
    pub replicas: Option<usize>,
}

/// Settings of `exchange`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
pub struct ExchangeFlags {
    /// Settings of every run.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunFlags,
    /// Temperatures: '300 K..600 K' for a geometric ladder, or a list '300 K, 350 K, 420 K' [default: 300 K..600 K]
    #[arg(long, value_name = "LADDER", help_heading = "Exchange", allow_hyphen_values = true)]
    pub temperatures: Option<String>,
    /// Number of temperatures of a geometric ladder [default: 8]
    #[arg(long, value_name = "N", help_heading = "Exchange")]
    pub count: Option<usize>,
    /// Independent copies of the ladder [default: 1; 8 of the built-in peptide]
    #[arg(long, value_name = "N", help_heading = "Exchange")]
    pub copies: Option<usize>,
    /// Steps between attempts to exchange [default: 100]
    #[arg(long, value_name = "N", help_heading = "Exchange")]
    pub exchange_every: Option<u64>,
}
