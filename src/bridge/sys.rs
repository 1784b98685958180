//! The three system calls that the standard library does not offer: sending and receiving without waiting on a socket that
//! otherwise waits, and waiting for several sockets.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

#[cfg(target_os = "linux")]
const QUIETLY: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
#[cfg(not(target_os = "linux"))]
const QUIETLY: libc::c_int = libc::MSG_DONTWAIT;

fn count(n: libc::ssize_t) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

/// Sends what fits at once.
pub(super) fn send(to: &impl AsRawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the pointer and the length are those of a live slice.
    count(unsafe { libc::send(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), QUIETLY) })
}

/// Receives what is there; with `wait`, at least a byte unless the socket's time-out passes.
pub(super) fn receive(from: &impl AsRawFd, buffer: &mut [u8], wait: bool) -> Result<usize> {
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: the pointer and the length are those of a live slice that nobody else sees.
    count(unsafe { libc::recv(from.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// True where the peer has hung up; takes nothing from what it sent before.
pub(super) fn has_hung_up(peer: &impl AsRawFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: one byte is written to one byte.
    let n = unsafe { libc::recv(peer.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    n == 0 || (n < 0 && !super::wire::is_time_out(&Error::last_os_error()))
}

/// A socket to wait for.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Watch(libc::pollfd);

impl Watch {
    /// Waits until there is something to read (or the peer has hung up); with `writing`, also until there is room to write.
    pub(super) fn new(socket: &impl AsRawFd, writing: bool) -> Self {
        Self::of(socket.as_raw_fd(), writing)
    }

    fn of(fd: RawFd, writing: bool) -> Self {
        let events = if writing { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
        Watch(libc::pollfd { fd, events, revents: 0 })
    }

    /// True where the last wait found something.
    pub(super) fn is_ready(&self) -> bool {
        self.0.revents != 0
    }
}

/// Waits until one of `sockets` is ready, or for `time`.
pub(super) fn wait(sockets: &mut [Watch], time: Duration) -> Result<()> {
    let time = libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `Watch` is a `pollfd` and nothing else, so the slice is an array of them.
    let n = unsafe { libc::poll(sockets.as_mut_ptr().cast(), sockets.len() as libc::nfds_t, time) };
    let error = Error::last_os_error();
    if n < 0 && error.kind() != std::io::ErrorKind::Interrupted {
        return Err(error);
    }
    if n < 0 {
        sockets.iter_mut().for_each(|s| s.0.revents = 0);
    }
    Ok(())
}

/// Who is at the other end of a UNIX socket.
#[cfg(target_os = "linux")]
pub(super) fn peer_process(socket: &impl AsRawFd) -> Option<i32> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the system writes at most `size` bytes to `who`.
    let failed = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut who).cast(), &raw mut size) };
    (failed == 0 && who.pid > 0).then_some(who.pid)
}

/// Who is at the other end of a UNIX socket.
#[cfg(not(target_os = "linux"))]
pub(super) fn peer_process(_: &impl AsRawFd) -> Option<i32> {
    None
}
