//! How a handshake waits. Only its thread knows what else may wake it.

use std::io;
#[cfg(any(feature = "access", feature = "gateway"))]
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Instant;

#[cfg(any(feature = "access", feature = "gateway"))]
use aiot_tunnel_proto::Ready;

#[cfg(any(feature = "access", feature = "gateway"))]
use crate::sys::{poll, PollFd, Waker};

/// Why a wait has ended without what it waited for.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The thread is wanted elsewhere.
    Interrupted,
    TimedOut,
    #[cfg_attr(not(any(feature = "access", feature = "gateway")), allow(dead_code))]
    Io(io::Error),
}

/// Why a step of an opening has failed.
pub(crate) enum HandshakeError {
    Wait(WaitError),
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(e: io::Error) -> Self {
        HandshakeError::Io(e)
    }
}

impl From<WaitError> for HandshakeError {
    fn from(e: WaitError) -> Self {
        HandshakeError::Wait(e)
    }
}

impl From<WaitError> for io::Error {
    fn from(e: WaitError) -> Self {
        match e {
            WaitError::Interrupted => io::Error::other("interrupted"),
            WaitError::TimedOut => io::ErrorKind::TimedOut.into(),
            WaitError::Io(e) => e,
        }
    }
}

/// Waits in `poll`, for a descriptor and for what may interrupt.
pub(crate) trait Wait {
    /// Waits until the descriptor is ready for reading, or for writing. Without a descriptor it waits
    /// for the waker of the thread's resolver, and may return early.
    fn wait(
        &self,
        fd: Option<BorrowedFd<'_>>,
        write: bool,
        deadline: Instant,
    ) -> Result<(), WaitError>;
}

/// Waits until a waker tells that all ends: the way of the access side and of the gateway.
#[cfg(any(feature = "access", feature = "gateway"))]
pub(crate) struct UntilStopped<'a> {
    /// Never reset: once woken, it ends every wait.
    pub(crate) stop: &'a Waker,
    /// Woken when a lookup has ended, where names are looked up.
    pub(crate) lookups: Option<&'a Waker>,
}

#[cfg(any(feature = "access", feature = "gateway"))]
impl Wait for UntilStopped<'_> {
    fn wait(
        &self,
        fd: Option<BorrowedFd<'_>>,
        write: bool,
        deadline: Instant,
    ) -> Result<(), WaitError> {
        let lookups = self.lookups.filter(|_| fd.is_none());
        let awaited = fd.or(lookups.map(AsFd::as_fd));
        let mut fds = vec![PollFd::new(self.stop.as_fd(), true, false)];
        fds.extend(awaited.map(|fd| PollFd::new(fd, !write, write)));
        loop {
            poll(&mut fds, Some(deadline)).map_err(WaitError::Io)?;
            if fds[0].ready().read {
                return Err(WaitError::Interrupted);
            }
            if fds[1..].iter().any(|fd| fd.ready() != Ready::default()) {
                if let Some(lookups) = lookups {
                    lookups.reset();
                }
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(WaitError::TimedOut);
            }
        }
    }
}
