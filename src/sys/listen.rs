//! The backlog of a listener. The standard library sets one of 128.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

/// Sets how many connections may wait until they are accepted.
pub(crate) fn set_backlog(listener: &TcpListener, count: libc::c_int) -> io::Result<()> {
    // SAFETY: listen takes no pointers. For a socket that listens already, it changes the backlog.
    match unsafe { libc::listen(listener.as_raw_fd(), count) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
