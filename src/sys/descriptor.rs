//! Keeps descriptors off the numbers of the standard streams.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Moves a new descriptor to another number if it has that of a standard stream. A program that has
/// closed its standard output, and prints all the same, would otherwise write into a connection.
pub(crate) fn beyond_standard<T: Into<OwnedFd> + From<OwnedFd>>(new: T) -> io::Result<T> {
    let fd: OwnedFd = new.into();
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd.into());
    }
    let least = libc::STDERR_FILENO + 1;
    // SAFETY: the request takes a number. The result is checked before use.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `moved` is a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) }.into())
}
