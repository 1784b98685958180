//! Sockets: UNIX streams and TCP, with patience while the server starts.

use super::wire::WireError;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String, u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "UNIX socket {}", path.display()),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// An open connection.
pub(super) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connection {
    /// Reads give up after `tick` without a byte, writes after `patience`.
    pub(super) fn set_time_outs(&self, tick: Duration, patience: Duration) -> std::io::Result<()> {
        match self {
            Connection::Unix(s) => s.set_read_timeout(Some(tick)).and_then(|()| s.set_write_timeout(Some(patience))),
            Connection::Tcp(s) => s.set_read_timeout(Some(tick)).and_then(|()| s.set_write_timeout(Some(patience))),
        }
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Connection::Unix(s) => (&mut &*s).read(buffer),
            Connection::Tcp(s) => (&mut &*s).read(buffer),
        }
    }
}

impl Write for &Connection {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Connection::Unix(s) => (&mut &*s).write(buffer),
            Connection::Tcp(s) => (&mut &*s).write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Connection::Unix(s) => s.as_raw_fd(),
            Connection::Tcp(s) => s.as_raw_fd(),
        }
    }
}

/// Where clients come in. A UNIX socket's file goes away with it.
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`. The file of a UNIX socket that nobody listens at any more is replaced.
    pub(super) fn bind(address: &Address) -> std::io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let bound = match UnixListener::bind(path) {
                    Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && is_left_over(path) => {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)
                    }
                    bound => bound,
                };
                bound.map(|l| Listener::Unix(l, path.clone()))
            }
            Address::Tcp(host, port) => TcpListener::bind((host.as_str(), *port)).map(Listener::Tcp),
        }
    }

    /// The next client and what to call it.
    pub(super) fn accept(&self) -> std::io::Result<(Connection, String)> {
        match self {
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                let name = super::sys::peer_process(&stream).map_or("UNIX socket".to_owned(), |pid| format!("process {pid}"));
                Ok((Connection::Unix(stream), name))
            }
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok((Connection::Tcp(stream), peer.to_string()))
            }
        }
    }
}

/// True where a socket's file is there but nobody listens.
fn is_left_over(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Unix(l, _) => l.as_raw_fd(),
            Listener::Tcp(l) => l.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Where it cannot be removed, the next server finds that nobody listens.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(address: &Address) -> std::io::Result<Connection> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).map(Connection::Unix),
        Address::Tcp(host, port) => {
            let mut last = None;
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
                    // Small messages go back and forth: waiting to fill packets would cost 40 ms each.
                    Ok(stream) => return stream.set_nodelay(true).map(|()| Connection::Tcp(stream)),
                    Err(e) => last = Some(e),
                }
            }
            Err(last.unwrap_or_else(|| std::io::Error::other("the host has no address")))
        }
    }
}

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connects, trying again with growing pauses until `patience` has passed: the server may still be starting. `stop` ends the
/// wait early.
///
/// # Errors
/// [`WireError::NobodyListens`] with the address and the last reason.
pub(super) fn connect(address: &Address, patience: Duration, stop: &dyn Fn() -> bool) -> Result<Connection, WireError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let error = match open(address) {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if stop() || start.elapsed() + pause > patience {
            return Err(WireError::NobodyListens { address: address.to_string(), seconds: start.elapsed().as_secs_f64(), source: error });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
