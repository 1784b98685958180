//! The command line: one file per command, each with its `Args` and a `run(args, runtime)`. A new command is a file here,
//! one arm of [`Command`] and one line in [`dispatch`].

mod convert;
mod evaluate;
mod exchange;
mod info;
mod input;
mod models;
mod relax;
mod simulate;

use crate::config::{self, ExchangeFlags, Global, SimulateFlags};
use crate::error::Error;
use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use scorefield_integrators::{DType, simd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

/// Learned scores and classical force fields as force providers for molecular dynamics.
#[derive(Parser)]
#[command(name = "scorefield", version, propagate_version = true, args_override_self = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Subcommand)]
enum Command {
    /// Langevin or constant-energy dynamics of many replicas
    #[command(after_long_help = simulate::EXAMPLES, after_help = simulate::EXAMPLES)]
    Simulate(SimulateFlags),
    /// Temperature replica exchange
    #[command(after_long_help = exchange::EXAMPLES, after_help = exchange::EXAMPLES)]
    Exchange(ExchangeFlags),
    Relax(relax::RelaxFlags),
    Evaluate(evaluate::EvaluateFlags),
    Models(models::ModelsFlags),
    Info(info::InfoFlags),
    Convert(convert::ConvertFlags),
}

/// How a command ended, where it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// A signal ended it early; a checkpoint was written.
    Interrupted,
}

/// What every command has at hand: threads, precision and seed.
pub struct Runtime {
    /// Our own threads; nothing runs on rayon's global pool.
    pub pool: Arc<rayon::ThreadPool>,
    /// `--dtype` where given; each command has its own default.
    pub dtype: Option<DType>,
    /// `--seed`, default 0.
    pub seed: u64,
    /// `--quiet`: nothing on stderr but errors and warnings.
    pub quiet: bool,
    /// The global settings as given.
    pub global: Global,
}

impl Runtime {
    /// Chooses the instruction set and starts the threads.
    ///
    /// # Errors
    /// Where the machine lacks the instruction set, or threads cannot be started.
    pub fn new(global: Global) -> Result<Self> {
        if let Some(isa) = global.isa {
            simd::choose_isa(isa).map_err(|e| Error::Usage(format!("--isa: {e}")))?;
        }
        let threads = global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("replicas-{i}"))
            .build()
            .with_context(|| format!("cannot start {threads} threads; use a smaller --threads"))?;
        Ok(Runtime {
            pool: Arc::new(pool),
            dtype: global.dtype,
            seed: global.seed.unwrap_or(0),
            quiet: global.quiet.unwrap_or(false),
            global,
        })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// A line on stderr for people, unless `--quiet`.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            // Nobody reads it: no reason to stop a run.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    /// A warning on stderr, also with `--quiet`.
    pub fn warn(&self, line: impl std::fmt::Display) {
        let _ = writeln!(std::io::stderr().lock(), "warning: {line}");
    }
}

/// Writes a command's result to stdout. A closed pipe (`| head`) is no error; a full disk is.
///
/// # Errors
/// Where stdout cannot be written.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

/// Runs the command line `args` (with the program's name first) and says how it ended: 0 done, 1 failed, 2 wrong usage,
/// 130 interrupted with a checkpoint.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::command().try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    match dispatch(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "error: {}", chain(&error));
            let usage = error.chain().any(|e| e.downcast_ref::<Error>().is_some_and(Error::is_usage));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The messages of an error and its causes on one line each; a cause that its parent already quotes is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text += &format!("\n  because: {message}");
        }
    }
    text
}

fn dispatch(cli: Cli) -> Result<Outcome> {
    let global = cli.global;
    match cli.command {
        Command::Simulate(args) => start(args, global, simulate::run),
        Command::Exchange(args) => start(args, global, exchange::run),
        Command::Relax(flags) => start(flags, global, relax::run),
        Command::Evaluate(flags) => start(flags, global, evaluate::run),
        Command::Models(flags) => start(flags, global, models::run),
        Command::Info(flags) => start(flags, global, info::run),
        Command::Convert(flags) => start(flags, global, convert::run),
    }
}

/// Overlays the flags on the config file, starts the runtime and runs a command.
fn start<A>(args: A, global: Global, run: fn(A, &Runtime) -> Result<Outcome>) -> Result<Outcome>
where
    A: clap::Args + Serialize + DeserializeOwned,
{
    let (args, global) = config::with_file(args, global)?;
    run(args, &Runtime::new(global)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
