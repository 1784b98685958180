//! The one error type of this crate: every variant names the offending value and a remedy.

/// What can go wrong while describing a system or moving its atoms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A quantity with a unit could not be read.
    #[error("`{text}` is not a quantity: {reason}")]
    Quantity {
        /// What was written.
        text: String,
        /// Why it was refused and what to write instead.
        reason: String,
    },
    /// Shapes, types or parameters do not fit together.
    #[error("{0}")]
    Invalid(String),
    /// A provider was asked for something that its capabilities do not list.
    #[error("{provider} cannot supply {what}: {remedy}")]
    Unsupported {
        /// Name of the force provider.
        provider: String,
        /// The quantity or use that was asked for.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A replica left the range in which its numbers mean anything.
    #[error(
        "replica {replica} is not finite at step {step}: {what}. Use a smaller time step, relax the start structure first, or check the force provider"
    )]
    Diverged {
        /// Global replica id.
        replica: u32,
        /// Step at which it was seen (at most `check_every` after it happened).
        step: u64,
        /// First atom and quantity that is not finite or far too large.
        what: String,
    },
    /// A device is not there, or fails.
    #[error("{device}: {what}; {remedy}")]
    Device {
        /// The device as named in settings, or its own name.
        device: String,
        /// What is wrong.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A force provider failed while evaluating.
    #[error("force provider {provider} failed: {reason}")]
    Provider {
        /// Name of the force provider.
        provider: String,
        /// Its own message.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Shorthand for [`Error::Invalid`].
pub fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(message.into()))
}
