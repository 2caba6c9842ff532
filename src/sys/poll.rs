//! The system call `poll(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::Ready;

/// A descriptor, and the readiness to wait for.
#[repr(transparent)]
pub(crate) struct PollFd<'a> {
    raw: libc::pollfd,
    lifetime: std::marker::PhantomData<BorrowedFd<'a>>,
}

impl<'a> PollFd<'a> {
    /// Waits for the given readiness of `fd`. If both flags are false, the descriptor is left out.
    /// Otherwise `poll` would report a hang-up all the same, and a caller that does not want to
    /// read would spin.
    pub(crate) fn new(fd: BorrowedFd<'a>, read: bool, write: bool) -> Self {
        let read_events = if read { libc::POLLIN } else { 0 };
        let write_events = if write { libc::POLLOUT } else { 0 };
        let number = if read || write { fd.as_raw_fd() } else { -1 };
        let raw = libc::pollfd { fd: number, events: read_events | write_events, revents: 0 };
        PollFd { raw, lifetime: std::marker::PhantomData }
    }

    /// Waits until the other end has closed the connection, and for room if `write` is set. Bytes
    /// are not waited for. [`ready`](Self::ready) reports the close as a read.
    pub(crate) fn until_closed(fd: BorrowedFd<'a>, write: bool) -> Self {
        let write_events = if write { libc::POLLOUT } else { 0 };
        let events = libc::POLLRDHUP | write_events;
        let raw = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        PollFd { raw, lifetime: std::marker::PhantomData }
    }

    /// What the last [`poll`] reported. An error or a hang-up counts as the readiness that was
    /// waited for. The read or write that follows returns the error.
    pub(crate) fn ready(&self) -> Ready {
        let failed = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        let is = |event| self.raw.events & event != 0 && self.raw.revents & (event | failed) != 0;
        Ready { read: is(libc::POLLIN) || is(libc::POLLRDHUP), write: is(libc::POLLOUT) }
    }
}

/// The descriptors of a repeated wait. It reuses its memory.
#[derive(Default)]
pub(crate) struct PollSet {
    fds: Vec<PollFd<'static>>,
    ready: Vec<Ready>,
}

impl PollSet {
    pub(crate) fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds a descriptor as [`PollFd::new`] does. Keeps only its number, so the descriptor must
    /// stay open until [`poll`](Self::poll) returns.
    pub(crate) fn push(&mut self, fd: BorrowedFd<'_>, read: bool, write: bool) {
        self.add(PollFd::new(fd, read, write));
    }

    /// Adds a descriptor as [`PollFd::until_closed`] does.
    pub(crate) fn push_until_closed(&mut self, fd: BorrowedFd<'_>, write: bool) {
        self.add(PollFd::until_closed(fd, write));
    }

    fn add(&mut self, PollFd { raw, .. }: PollFd<'_>) {
        self.fds.push(PollFd { raw, lifetime: std::marker::PhantomData });
    }

    /// Waits as [`poll`] does. Returns the readiness of the descriptors in the order in which they
    /// were added.
    pub(crate) fn poll(&mut self, deadline: Instant) -> io::Result<&[Ready]> {
        poll(&mut self.fds, Some(deadline))?;
        self.ready.clear();
        self.ready.extend(self.fds.iter().map(PollFd::ready));
        Ok(&self.ready)
    }
}

/// Blocks until a descriptor is ready or the deadline has passed. Without a deadline, blocks until
/// a descriptor is ready.
pub(crate) fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let timeout = match deadline {
        None => -1,
        // Rounded up. If it woke before the deadline, the caller would spin until then.
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let millis = left + Duration::from_nanos(999_999);
            i32::try_from(millis.as_millis()).unwrap_or(i32::MAX)
        }
    };
    // SAFETY: `PollFd` is `repr(transparent)` over `pollfd` (its other field has no size), and the
    // length is that of the slice. poll reports a descriptor that is not open and does no harm.
    let result = unsafe { libc::poll(fds.as_mut_ptr().cast(), fds.len() as libc::nfds_t, timeout) };
    match result {
        -1 => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => {
                fds.iter_mut().for_each(|fd| fd.raw.revents = 0);
                Ok(())
            }
            e => Err(e),
        },
        _ => Ok(()),
    }
}
