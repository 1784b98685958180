//! Bytes of the i-PI protocol: 12-byte headers, native integers and doubles, all little-endian.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

/// Bytes of a header: an ASCII word in capitals, padded with spaces.
pub(super) const HEADER: usize = 12;
/// Longest text of an INIT message.
const MAX_INIT: usize = 1 << 20;

/// What can go wrong between two programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The connection broke.
    #[error("the connection broke while {doing}: {source}")]
    Io {
        /// What was going on.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer hung up in the middle of a message.
    #[error("the server hung up in the middle of {message}: {got} of {want} bytes came")]
    Cut {
        /// The message.
        message: &'static str,
        /// Bytes that came.
        got: usize,
        /// Bytes expected.
        want: usize,
    },
    /// The peer fell silent in the middle of a message.
    #[error("the server fell silent in the middle of {message}; it is stuck, or speaks another protocol")]
    Silent {
        /// The message.
        message: &'static str,
    },
    /// No server at the address.
    #[error("nobody listens at {address} after {seconds:.1} s ({source}); start the engine first, or wait longer with --wait")]
    NobodyListens {
        /// Where it was looked for.
        address: String,
        /// How long.
        seconds: f64,
        /// The last attempt's reason.
        source: std::io::Error,
    },
    /// Something that the protocol does not allow.
    #[error("{0}")]
    Protocol(String),
    /// Forces that cannot be computed.
    #[error("{0}")]
    Forces(String),
}

/// A message from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    Status,
    Init,
    Positions,
    GetForce,
    Exit,
}

/// What comes between messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message begins.
    Message(Header),
    /// The server hung up.
    HungUp,
    /// Somebody asked the driver to stop.
    Stopped,
}

/// Reads messages. `R` should be buffered, as one call may ask for 4 bytes, and must give up a read from time to time, so that
/// `stop` is looked at.
pub(super) struct Incoming<'a, R> {
    from: R,
    /// How long the server may be silent within a message; between messages it may think as long as it likes.
    patience: Duration,
    stop: &'a dyn Fn() -> bool,
}

impl<'a, R: Read> Incoming<'a, R> {
    pub(super) fn new(from: R, patience: Duration, stop: &'a dyn Fn() -> bool) -> Self {
        Incoming { from, patience, stop }
    }

    /// Fills `buffer` from `got` bytes on.
    fn fill(&mut self, buffer: &mut [u8], mut got: usize, message: &'static str) -> Result<(), WireError> {
        let mut last = Instant::now();
        while got < buffer.len() {
            match self.from.read(&mut buffer[got..]) {
                Ok(0) => return Err(WireError::Cut { message, got, want: buffer.len() }),
                Ok(n) => {
                    got += n;
                    last = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if is_time_out(&e) && last.elapsed() < self.patience && !(self.stop)() => {}
                Err(e) if is_time_out(&e) => return Err(WireError::Silent { message }),
                Err(source) => return Err(WireError::Io { doing: "reading", source }),
            }
        }
        Ok(())
    }

    /// Waits for the next message.
    pub(super) fn next(&mut self) -> Result<Next, WireError> {
        let mut word = [0; HEADER];
        let got = loop {
            match self.from.read(&mut word) {
                Ok(0) => return Ok(Next::HungUp),
                Ok(n) => break n,
                // Some servers close without shutting down; between messages that is a goodbye as well.
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(Next::HungUp),
                Err(e) if is_time_out(&e) || e.kind() == ErrorKind::Interrupted => {
                    if (self.stop)() {
                        return Ok(Next::Stopped);
                    }
                }
                Err(source) => return Err(WireError::Io { doing: "reading", source }),
            }
        };
        self.fill(&mut word, got, "a header")?;
        let header = match &word {
            b"STATUS      " => Header::Status,
            b"INIT        " => Header::Init,
            b"POSDATA     " => Header::Positions,
            b"GETFORCE    " => Header::GetForce,
            b"EXIT        " => Header::Exit,
            _ => {
                return Err(WireError::Protocol(format!(
                    "the server sent `{}`, which is no header of the i-PI protocol (STATUS, INIT, POSDATA, GETFORCE or EXIT)",
                    word.escape_ascii()
                )));
            }
        };
        Ok(Next::Message(header))
    }

    /// One integer.
    pub(super) fn integer(&mut self, message: &'static str) -> Result<i32, WireError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, 0, message)?;
        Ok(i32::from_le_bytes(bytes))
    }

    /// A text of bounded length with its length before it.
    pub(super) fn text(&mut self, message: &'static str) -> Result<String, WireError> {
        let length = self.integer(message)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|&n| n <= MAX_INIT)
            .ok_or_else(|| WireError::Protocol(format!("{message} announces a text of {length} bytes; at most {MAX_INIT} are accepted")))?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, 0, message)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Doubles, as many as `to` has room for; `bytes` is scratch.
    pub(super) fn doubles(&mut self, to: &mut [f64], bytes: &mut Vec<u8>, message: &'static str) -> Result<(), WireError> {
        bytes.resize(8 * to.len(), 0);
        self.fill(bytes, 0, message)?;
        for (x, b) in to.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *x = f64::from_le_bytes(*b);
        }
        Ok(())
    }
}

pub(super) fn is_time_out(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Appends doubles to a message.
pub(super) fn push_doubles(message: &mut Vec<u8>, values: &[f64]) {
    for x in values {
        message.extend_from_slice(&x.to_le_bytes());
    }
}

/// Appends a text with its length before it.
pub(super) fn push_text(message: &mut Vec<u8>, text: &str) {
    message.extend_from_slice(&(text.len() as i32).to_le_bytes());
    message.extend_from_slice(text.as_bytes());
}
