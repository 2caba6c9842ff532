//! How many descriptors the process may have, and which numbers the library's own must not have.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The soft limit. Unlimited, or unknown: `usize::MAX`.
#[cfg(feature = "gateway")]
pub(crate) fn descriptor_limit() -> usize {
    limits().ok().and_then(|limits| usize::try_from(limits.rlim_cur).ok()).unwrap_or(usize::MAX)
}

/// Raises the soft limit to the hard one.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limits = limits()?;
    limits.rlim_cur = limits.rlim_max;
    // SAFETY: the pointer is valid for the call, which only reads it.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for the call, which writes the whole struct.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) } {
        0 => Ok(limits),
        _ => Err(io::Error::last_os_error()),
    }
}

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
