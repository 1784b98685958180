//! What every command and the run loop have at hand: threads, precision, seed, and a voice.

use crate::config::Global;
use crate::error::Error;
use anyhow::{Context, Result};
use scorefield_integrators::{DType, simd};
use std::io::Write;
use std::sync::Arc;

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
