//! The command line: one file per command, each with its `Args` and a `run(args, runtime)`. A new command is a file here,
//! one arm of `Command` and one line in `dispatch`.

mod conformers;
mod consistency;
mod convert;
mod denoise;
mod denoising;
mod design;
mod drive;
mod evaluate;
mod evaluate_conformers;
mod evaluate_molecules;
mod exchange;
mod generate;
mod generate_ensembles;
mod info;
mod input;
mod merge;
mod models;
mod relax;
mod sample;
mod shape;
mod simulate;
mod train;

use crate::config::{self, ExchangeFlags, Global, SimulateFlags};
use crate::error::Error;
use crate::runtime::{Outcome, Runtime, print};
use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

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
    Sample(sample::SampleFlags),
    Conformers(conformers::ConformersFlags),
    Denoise(denoise::DenoiseFlags),
    Design(design::DesignFlags),
    Shape(shape::ShapeFlags),
    Train(train::TrainFlags),
    Evaluate(evaluate::EvaluateFlags),
    GenerateEnsembles(generate_ensembles::GenerateEnsemblesFlags),
    EvaluateConformers(evaluate_conformers::EvaluateConformersFlags),
    EvaluateMolecules(evaluate_molecules::EvaluateMoleculesFlags),
    Models(models::ModelsFlags),
    Info(info::InfoFlags),
    Convert(convert::ConvertFlags),
    #[command(after_long_help = consistency::EXAMPLES, after_help = consistency::EXAMPLES)]
    Consistency(consistency::ConsistencyFlags),
    Drive(drive::DriveFlags),
    Merge(merge::MergeFlags),
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
        Command::Sample(flags) => start(flags, global, sample::run),
        Command::Conformers(flags) => start(flags, global, conformers::run),
        Command::Denoise(flags) => start(flags, global, denoise::run),
        Command::Design(flags) => start(flags, global, design::run),
        Command::Shape(flags) => start(flags, global, shape::run),
        Command::Train(flags) => start(flags, global, train::run),
        Command::Evaluate(flags) => start(flags, global, evaluate::run),
        Command::GenerateEnsembles(flags) => start(flags, global, generate_ensembles::run),
        Command::EvaluateConformers(flags) => start(flags, global, evaluate_conformers::run),
        Command::EvaluateMolecules(flags) => start(flags, global, evaluate_molecules::run),
        Command::Models(flags) => start(flags, global, models::run),
        Command::Info(flags) => start(flags, global, info::run),
        Command::Convert(flags) => start(flags, global, convert::run),
        Command::Consistency(flags) => start(flags, global, consistency::run),
        Command::Drive(flags) => start(flags, global, drive::run),
        Command::Merge(flags) => start(flags, global, merge::run),
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
