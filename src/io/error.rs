//! The one error type of file input and output: file, place, what is wrong and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What can go wrong with files. Frames and atoms are counted as people do in messages: frames from 0 (as in
/// `first:last:stride`), atoms from 1 (as in PDB files), lines from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, for example `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The path is not what it should be: a directory, an empty file, a file that is already there.
    #[error("{}: {what}. {remedy}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// The format is unknown, or cannot do what was asked of it.
    #[error("{}: {what}. {remedy}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the format lacks.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// The content is corrupt or does not fit what came before.
    #[error("{}{}: {what}. {remedy}", path.display(), place(*.frame, *.line))]
    Content {
        /// The file.
        path: PathBuf,
        /// Frame, from 0.
        frame: Option<usize>,
        /// Line of a text file, from 1.
        line: Option<usize>,
        /// What is wrong.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// The file ends inside a frame, as after a killed run or a broken copy.
    #[error(
        "{}: the file ends inside frame {frame}: {what}. {}",
        path.display(),
        if *.frame == 0 { "Make or copy it again".to_owned() } else { format!("The {frame} frames before are whole: read frames 0:{frame}, or copy the file again") }
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The incomplete frame, from 0: as many whole frames come before it.
        frame: usize,
        /// What is missing.
        what: String,
    },
    /// An atom's element is unknown or ambiguous.
    #[error("{}, frame {frame}: {atom} {what}. {remedy}", path.display())]
    Element {
        /// The file.
        path: PathBuf,
        /// Frame, from 0.
        frame: usize,
        /// The atom in words.
        atom: String,
        /// What is wrong with its element.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A coordinate is NaN or infinite.
    #[error("{}, frame {frame}: {quantity} {axis} of {atom} is {value}. Repair the file, or leave this frame out with a frame range", path.display())]
    NotFinite {
        /// The file, or what the values were meant for.
        path: PathBuf,
        /// Frame, from 0.
        frame: usize,
        /// `coordinate`, `velocity` or `force`.
        quantity: &'static str,
        /// x, y or z.
        axis: char,
        /// The atom in words.
        atom: String,
        /// The value.
        value: f64,
    },
    /// Two atoms are nearly in one place.
    #[error(
        "{name}: {first} and {second} are {distance:.4} nm apart, closer than {minimum} nm. Forces would be meaningless; repair the structure (alternate locations, doubled atoms, wrong units?)"
    )]
    Overlap {
        /// Name of the system.
        name: String,
        /// One atom in words.
        first: String,
        /// The other.
        second: String,
        /// Their distance in nm.
        distance: f64,
        /// The least distance allowed in nm.
        minimum: f64,
    },
    /// A frame range or selection could not be understood; points at the place.
    #[error("{what}\n  {text}\n  {}^", " ".repeat(*.position))]
    Text {
        /// What is wrong and what to write instead.
        what: String,
        /// The text as given.
        text: String,
        /// Where in it, in characters from 0.
        position: usize,
    },
    /// A selection fits no atom, or points past the last.
    #[error("selection `{selection}` {what}")]
    Selection {
        /// The selection as given.
        selection: String,
        /// What is wrong.
        what: String,
    },
    /// What is to be written has the wrong shape.
    #[error("{}: {what}", path.display())]
    Shape {
        /// The file to be written.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The writer thread failed earlier; the first error is repeated on every later call.
    #[error("{0}")]
    Writer(Arc<IoError>),
}

/// Result with [`IoError`].
pub type Result<T> = std::result::Result<T, IoError>;

/// `, frame 3, line 17`.
fn place(frame: Option<usize>, line: Option<usize>) -> String {
    let mut text = String::new();
    if let Some(frame) = frame {
        text += &format!(", frame {frame}");
    }
    if let Some(line) = line {
        text += &format!(", line {line}");
    }
    text
}

impl IoError {
    /// Wraps a system error.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        IoError::File { action, path: path.to_owned(), source }
    }

    pub(crate) fn path(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        IoError::Path { path: path.to_owned(), what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn format(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        IoError::Format { path: path.to_owned(), what: what.into(), remedy: remedy.into() }
    }

    /// Corrupt content at a frame and, for text files, a line.
    pub(crate) fn content(path: &Path, frame: Option<usize>, line: Option<usize>, what: impl Into<String>) -> Self {
        IoError::Content {
            path: path.to_owned(),
            frame,
            line,
            what: what.into(),
            remedy: "Repair the file, or make or copy it again".into(),
        }
    }

    pub(crate) fn truncated(path: &Path, frame: usize, what: impl Into<String>) -> Self {
        IoError::Truncated { path: path.to_owned(), frame, what: what.into() }
    }

    pub(crate) fn shape(path: &Path, what: impl Into<String>) -> Self {
        IoError::Shape { path: path.to_owned(), what: what.into() }
    }
}
