//! How a handshake waits. The thread that owns it decides what else can wake it up.

use std::io;
#[cfg(any(feature = "access", feature = "gateway"))]
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Instant;

#[cfg(any(feature = "access", feature = "gateway"))]
use aiot_tunnel_proto::Ready;

#[cfg(any(feature = "access", feature = "gateway"))]
use crate::sys::{poll, PollFd, Waker};

/// Why a wait ended early.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The thread has something else to do.
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

/// Waits in `poll` for descriptors, and for whatever may interrupt the thread.
pub(crate) trait Wait {
    /// Blocks until one of the descriptors is ready: for writing if `write` is set, else for reading.
    /// Without a descriptor, it waits for the waker of the thread's resolver and may return early.
    fn wait(&self, fds: &[BorrowedFd<'_>], write: bool, deadline: Instant)
        -> Result<(), WaitError>;
}

/// Waits that end when a waker is woken. Used by the access side and the gateway.
#[cfg(any(feature = "access", feature = "gateway"))]
pub(crate) struct UntilStopped<'a> {
    /// Never reset. Once it is woken, every wait ends.
    pub(crate) stop: &'a Waker,
    /// Woken when a lookup is done. `None` if the thread looks up no names.
    pub(crate) lookups: Option<&'a Waker>,
}

#[cfg(any(feature = "access", feature = "gateway"))]
impl Wait for UntilStopped<'_> {
    fn wait(
        &self,
        awaited: &[BorrowedFd<'_>],
        write: bool,
        deadline: Instant,
    ) -> Result<(), WaitError> {
        let lookups = self.lookups.filter(|_| awaited.is_empty());
        let mut fds = vec![PollFd::new(self.stop.as_fd(), true, false)];
        fds.extend(awaited.iter().map(|fd| PollFd::new(*fd, !write, write)));
        fds.extend(lookups.map(|lookups| PollFd::new(lookups.as_fd(), true, false)));
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
