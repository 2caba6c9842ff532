//! An `eventfd` that wakes a thread from `poll`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use super::beyond_standard;

/// Wakes the thread that polls it. A wake before the poll is not lost.
pub(crate) struct Waker(File);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers. The result is checked before use.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        beyond_standard(unsafe { OwnedFd::from_raw_fd(fd) }).map(|fd| Waker(File::from(fd)))
    }

    pub(crate) fn wake(&self) {
        // The write fails only if the counter is full. Then the thread is awake anyway.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Clears all earlier wakes.
    pub(crate) fn reset(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
