//! The one error type of this crate: every variant names the offending value and a remedy.

use std::path::{Path, PathBuf};

/// What can go wrong while building, reading or joining force providers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the contract: units, batches, capabilities.
    #[error(transparent)]
    Contract(#[from] scorefield_integrators::Error),
    /// A parameter has a value that means nothing.
    #[error("{model}: {name} = {value} is refused: {remedy}")]
    Parameter {
        /// Name of the model.
        model: String,
        /// Name of the parameter.
        name: String,
        /// What was given.
        value: String,
        /// What to give instead.
        remedy: String,
    },
    /// A name or key that is not known.
    #[error("{context}: unknown {what} `{name}`{}; {}", suggest(name, known), list(known))]
    Unknown {
        /// Where it was found.
        context: String,
        /// What it was taken for, for example `parameter`.
        what: &'static str,
        /// What was written.
        name: String,
        /// What could have been written.
        known: Vec<String>,
    },
    /// A provider's description cannot be understood.
    #[error("{context}: {reason}")]
    Spec {
        /// The description or the place inside it.
        context: String,
        /// What is wrong with it and what to write.
        reason: String,
    },
    /// Providers that do not fit together.
    #[error("{name}: {reason}")]
    Combine {
        /// Name of the combination.
        name: String,
        /// What does not fit and what to do.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's own message.
        source: std::io::Error,
    },
    /// A file's contents are refused.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A tensor in a file of weights is missing, or is not what the model needs.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The file of weights.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A model is used outside the ensemble it was made for.
    #[error("{name} was trained {trained}, but {asked} was asked for: {remedy}")]
    Ensemble {
        /// Name of the model.
        name: String,
        /// What it was trained for.
        trained: String,
        /// What was asked.
        asked: String,
        /// What to do.
        remedy: String,
    },
    /// candle failed, or works in a way that would give wrong numbers.
    #[error("candle: {0}")]
    Candle(String),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Error::Candle(e.to_string())
    }
}

impl Error {
    /// Shorthand for [`Error::Io`].
    pub fn io(file: &Path, source: std::io::Error) -> Self {
        Error::Io { file: file.to_owned(), source }
    }

    /// Shorthand for [`Error::Parameter`].
    pub fn parameter(model: &str, name: &str, value: impl std::fmt::Display, remedy: &str) -> Self {
        Error::Parameter { model: model.into(), name: name.into(), value: value.to_string(), remedy: remedy.into() }
    }

    /// Shorthand for [`Error::Spec`].
    pub fn spec(context: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Spec { context: context.into(), reason: reason.into() }
    }

    /// This error as one of the contract, for providers that fail while evaluating.
    pub fn of_provider(self, provider: &str) -> scorefield_integrators::Error {
        match self {
            Error::Contract(e) => e,
            e => scorefield_integrators::Error::Provider { provider: provider.into(), reason: e.to_string() },
        }
    }
}

fn list(known: &[String]) -> String {
    if known.is_empty() { "none is known yet".into() } else { format!("known are {}", known.join(", ")) }
}

/// `, did you mean ...?` where one of `known` is close to `name`, else nothing.
fn suggest(name: &str, known: &[String]) -> String {
    let folded = name.to_lowercase().replace('_', "-");
    let best = known.iter().map(|k| (strsim::damerau_levenshtein(&folded, &k.replace('_', "-")), k)).min_by_key(|(d, _)| *d);
    match best {
        Some((d, k)) if d <= 1 + k.chars().count() / 4 => format!(", did you mean `{k}`?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_close() {
        let known = ["sigma".to_owned(), "epsilon".to_owned(), "cutoff".to_owned()];
        assert_eq!(suggest("sigme", &known), ", did you mean `sigma`?");
        assert_eq!(suggest("cut_off", &known), ", did you mean `cutoff`?");
        assert_eq!(suggest("temperature", &known), "");
    }
}
