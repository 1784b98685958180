//! SIGINT and SIGTERM: the first asks a run to end after its present block of steps, with a checkpoint; the second ends the
//! process at once.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody asked the run to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// Where the system does not let signals be caught.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds the flag down and only raises it.
            signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
                .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
                .map_err(|e| Error::Run(format!("cannot listen for signal {signal}: {e}")))?;
        }
        Ok(Interrupt(flag))
    }

    /// Asks the run to end, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The flag itself, for loops that know only flags.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// True where the run should end.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
