//! The one error type of this crate: every variant names the offending value and a remedy.

use std::path::PathBuf;

/// What can go wrong in a run or on the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag, or a key of the config file, is missing, unknown or has a value that makes no sense. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A config file cannot be understood. Exit code 2.
    #[error("{}{}: {what}", path.display(), line.map_or(String::new(), |l| format!(", line {l}")))]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where one is to blame.
        line: Option<usize>,
        /// What is wrong and what to write instead.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, for example `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Shapes, types or parameters do not fit together, or the run failed.
    #[error(transparent)]
    Engine(#[from] scorefield_integrators::Error),
    /// A force provider cannot be built.
    #[error(transparent)]
    Model(#[from] scorefield_models::Error),
    /// A structure, trajectory or table cannot be read or written.
    #[error(transparent)]
    Io(#[from] crate::io::IoError),
    /// A checkpoint cannot be read, or is of another run.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// The checkpoint, or the file that does not fit it.
        path: PathBuf,
        /// What does not fit and what to do.
        what: String,
    },
    /// Anything else that stops a run.
    #[error("{0}")]
    Run(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Shorthand for [`Error::Usage`].
pub fn usage<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Usage(message.into()))
}

impl Error {
    /// An [`Error::File`].
    pub fn file(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Error::File { action, path: path.to_owned(), source }
    }

    /// True where the command was wrong, rather than the run.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Usage(_) | Error::Config { .. })
    }
}
