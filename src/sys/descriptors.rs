//! How many descriptors the process may have.

use std::io;

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
