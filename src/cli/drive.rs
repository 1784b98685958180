//! `scorefield drive`: any force provider as a driver of the i-PI protocol.

use super::input::{Frame, FrameFlags, FrameStream, Model, show_file_warnings};
use super::{Outcome, Runtime};
use crate::bridge::{Address, Driver, End, Forces, Structure};
use crate::error::{Error, usage};
use crate::signals::Interrupt;
use anyhow::{Context, Result};
use scorefield_integrators::{DType, Dimension, Quantity, UnitSystem};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  # i-PI with <ffsocket mode='unix'> <address>water</address>, or ASE's SocketIOCalculator(unixsocket='water')
  scorefield drive --model ani2x:weights=ani2x.safetensors --structure molecule.xyz --unix water

  # Over TCP, here from another machine; a second driver on the same port shares the work
  scorefield drive --model mm:peptide.xml --structure peptide.pdb --host node1 --port 31415

  # i-PI's shared memory: <ffsocket mode='shm'>
  scorefield drive --model 'lj:sigma=3.405 A,epsilon=0.0103 eV' --structure cluster.xyz --unix argon --shm

The engine sends positions only: elements come from the structure file, whose atoms must be those of the engine, in its order.
A file of several structures with different numbers of atoms serves them all. Structures with a cell use the engine's cell where the model
is periodic; all others are alone in space.";

/// Supply forces to i-PI, ASE and other engines over a socket (i-PI protocol)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", default)]
#[command(after_help = EXAMPLES)]
pub(super) struct DriveFlags {
    /// Force provider: a name with parameters, mm:FILE.xml, weights, or a TOML tree (see `scorefield models`)
    #[arg(long, value_name = "SPEC")]
    pub(super) model: Option<String>,
    /// Structure file that says which atoms the engine moves
    #[arg(long, value_name = "FILE")]
    pub(super) structure: Option<PathBuf>,
    /// Name of a UNIX socket as in i-PI's <address>: the file is the prefix and this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["host", "port"])]
    pub(super) unix: Option<String>,
    /// What stands before the name of a UNIX socket [default: /tmp/ipi_]
    #[arg(long, value_name = "PATH")]
    pub(super) prefix: Option<String>,
    /// Positions and forces go through shared memory (i-PI's mode='shm')
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) shm: Option<bool>,
    /// Host of the engine, for TCP [default: localhost]
    #[arg(long, value_name = "HOST")]
    pub(super) host: Option<String>,
    /// Port of the engine, for TCP
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// How long to wait for the engine to listen [default: 60 s]
    #[arg(long, value_name = "TIME")]
    pub(super) wait: Option<Quantity>,
    /// How long the engine may be silent in the middle of a message [default: 60 s]
    #[arg(long, value_name = "TIME")]
    pub(super) timeout: Option<Quantity>,
    /// Connect again when the engine hangs up, until nobody listens for the time of --wait
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL", hide_possible_values = true)]
    pub(super) reconnect: Option<bool>,
}

/// Runs the command.
///
/// # Errors
/// Where flags or files are wrong, nobody listens, the engine breaks the protocol, or forces cannot be computed.
pub(super) fn run(flags: DriveFlags, runtime: &Runtime) -> Result<Outcome> {
    let address = address(&flags)?;
    let (Some(spec), Some(structure)) = (&flags.model, &flags.structure) else {
        return usage("--model and --structure are needed, for example `--model mm:peptide.xml --structure peptide.pdb`")?;
    };
    let wait = seconds("wait", flags.wait.as_ref())?;
    let patience = seconds("timeout", flags.timeout.as_ref())?;
    let frames: Result<Vec<Frame>> = FrameStream::new(vec![structure.clone()], FrameFlags::default().options()?).collect();
    show_file_warnings(runtime);
    let frames = frames?;
    let model = Model::build(spec, frames.first().map(|f| f.positions.as_slice()))?;
    let mut open = false;
    let structures: Result<Vec<Structure>> = frames
        .into_iter()
        .map(|frame| {
            // Engines send a cell also for molecules alone in space, where it means nothing to a model without one.
            let periodic = frame.cell.is_some() && model.capabilities().periodic;
            open |= frame.cell.is_some() && !periodic;
            model.adopt(frame).map(|f| Structure { system: f.system, periodic })
        })
        .collect();
    let structures = structures.with_context(|| structure.display().to_string())?;
    if open {
        runtime.say(format_args!("{} knows no periodic cells: structures are taken as alone in space", model.capabilities().name));
    }
    let provider = model.provider().fork()?;
    let forces = Forces::new(structures, provider, runtime.dtype.unwrap_or(DType::F64), runtime.pool.clone())
        .map_err(|e| Error::Usage(e.to_string()))?;
    let mut driver = Driver::new(forces, flags.shm == Some(true), patience);

    let interrupt = Interrupt::install()?;
    let stop = || interrupt.requested();
    runtime.say(format_args!("{}: forces for the engine at {address}", model.capabilities().name));
    let mut served = false;
    loop {
        let report = match driver.serve(&address, wait, &stop) {
            Ok(report) => report,
            // After at least one engine, nobody listening is the end.
            Err(crate::bridge::WireError::NobodyListens { .. }) if served && flags.reconnect == Some(true) => return Ok(Outcome::Done),
            Err(error) => return Err(error).with_context(|| format!("engine at {address}")),
        };
        served = true;
        let why = match report.end {
            End::Exit => "the engine said EXIT",
            End::HungUp => "the engine hung up",
            End::Stopped => "stopped by a signal",
        };
        let (elapsed, busy) = (report.elapsed.as_secs_f64(), report.busy.as_secs_f64());
        runtime.say(format_args!(
            "{} evaluations in {elapsed:.2} s ({:.0}/s), {:.0} % of it computing; {why}",
            report.evaluations,
            report.evaluations as f64 / elapsed.max(1e-9),
            100.0 * busy / elapsed.max(1e-9)
        ));
        match report.end {
            End::Stopped => return Ok(Outcome::Interrupted),
            End::HungUp if flags.reconnect == Some(true) => {}
            End::Exit | End::HungUp => return Ok(Outcome::Done),
        }
    }
}

fn address(flags: &DriveFlags) -> Result<Address> {
    match (&flags.unix, flags.port) {
        (Some(name), None) => {
            let prefix = flags.prefix.as_deref().unwrap_or("/tmp/ipi_");
            Ok(Address::Unix(format!("{prefix}{name}").into()))
        }
        (None, Some(_)) if flags.shm == Some(true) => usage("--shm needs a UNIX socket: both programs share a machine; give --unix NAME")?,
        (None, Some(port)) => Ok(Address::Tcp(flags.host.clone().unwrap_or_else(|| "localhost".into()), port)),
        _ => usage("where does the engine listen? Give --unix NAME, or --host HOST --port PORT")?,
    }
}

/// A time in seconds of the wall clock.
fn seconds(name: &str, value: Option<&Quantity>) -> Result<Duration> {
    let Some(value) = value else { return Ok(Duration::from_secs(60)) };
    let ps = value.resolve(Dimension::TIME, UnitSystem::Si).map_err(|e| Error::Usage(format!("--{name}: {e}")))?;
    let time = Duration::try_from_secs_f64(ps * 1e-12).ok().filter(|t| *t > Duration::ZERO && *t < Duration::from_secs(1 << 30));
    Ok(time.ok_or_else(|| Error::Usage(format!("--{name} {value} is refused; write a time above zero, for example `60 s`")))?)
}
