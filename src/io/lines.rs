//! Lines of text from outside: counted, bounded, UTF-8.

use super::error::{IoError, Result};
use super::warnings::warn;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// No sensible structure file has longer lines.
const LONGEST: u64 = 1 << 20;

/// Reads lines of one file, knowing where it is for messages.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    buffer: Vec<u8>,
    number: usize,
    /// The line last read ends as lines do; only a file's last may not.
    ended: bool,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| IoError::file("read", path, e))?;
        Ok(Lines { path: path.to_owned(), reader: BufReader::with_capacity(1 << 16, file), buffer: Vec::new(), number: 0, ended: true })
    }

    /// Number of the line last read, from 1.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// False where the line last read has no end: the last of a file that was cut, or written without.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The next line without its end, or `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<&str>> {
        self.buffer.clear();
        let n = (&mut self.reader).take(LONGEST).read_until(b'\n', &mut self.buffer).map_err(|e| IoError::file("read", &self.path, e))?;
        if n == 0 {
            return Ok(None);
        }
        self.number += 1;
        if n as u64 == LONGEST {
            return Err(IoError::content(
                &self.path,
                None,
                Some(self.number),
                "a line is longer than 1 MiB; this is no text file of its format",
            ));
        }
        self.ended = self.buffer.last() == Some(&b'\n');
        while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
            self.buffer.pop();
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(not_utf8(&self.path, self.number)),
        }
    }
}

fn not_utf8(path: &Path, line: usize) -> IoError {
    IoError::Content {
        path: path.to_owned(),
        frame: None,
        line: Some(line),
        what: "it is not UTF-8 text".into(),
        remedy: "Check the format, or convert the file, for example with `iconv -f latin1 -t utf8`".into(),
    }
}

/// Checks that a file is text that C++ and Rust strings can both hold: UTF-8 without NUL. Warns where its last line has no end:
/// half a number reads as a number.
pub(crate) fn check_text(path: &Path) -> Result<()> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        if line.contains('\0') {
            let number = lines.number();
            return Err(not_utf8(path, number));
        }
    }
    if !lines.ended() {
        warn(&format!("{}: the last line ({}) has no line end; the file may be cut there", path.display(), lines.number()));
    }
    Ok(())
}
