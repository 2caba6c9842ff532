//! How a handshake waits. Only its thread knows what else may wake it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// Why a wait has ended without what it waited for.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The thread is wanted elsewhere.
    Interrupted,
    TimedOut,
    Io(io::Error),
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
