//! `poll(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::Ready;

/// One descriptor and what is waited for on it.
#[repr(transparent)]
pub(crate) struct PollFd<'a> {
    raw: libc::pollfd,
    lifetime: std::marker::PhantomData<BorrowedFd<'a>>,
}

impl<'a> PollFd<'a> {
    /// Waits on `fd` as told. A descriptor that is waited for in no way is left out altogether:
    /// `poll` reports a hang-up unasked, and a caller that does not want to read would spin.
    pub(crate) fn new(fd: BorrowedFd<'a>, read: bool, write: bool) -> Self {
        let read_events = if read { libc::POLLIN } else { 0 };
        let write_events = if write { libc::POLLOUT } else { 0 };
        let number = if read || write { fd.as_raw_fd() } else { -1 };
        let raw = libc::pollfd { fd: number, events: read_events | write_events, revents: 0 };
        PollFd { raw, lifetime: std::marker::PhantomData }
    }

    /// What the last [`poll`] found. Errors and hang-ups make it ready for what was asked: the
    /// read or write that follows tells which.
    pub(crate) fn ready(&self) -> Ready {
        let failed = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
        let is = |event| self.raw.events & event != 0 && self.raw.revents & (event | failed) != 0;
        Ready { read: is(libc::POLLIN), write: is(libc::POLLOUT) }
    }
}

/// Descriptors of a wait that is repeated: it keeps its memory from one to the next.
#[derive(Default)]
pub(crate) struct PollSet {
    fds: Vec<PollFd<'static>>,
    ready: Vec<Ready>,
}

impl PollSet {
    pub(crate) fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds a descriptor, as [`PollFd::new`] does. Only its number is kept: it has to stay open
    /// until the [`poll`](Self::poll).
    pub(crate) fn push(&mut self, fd: BorrowedFd<'_>, read: bool, write: bool) {
        let PollFd { raw, .. } = PollFd::new(fd, read, write);
        self.fds.push(PollFd { raw, lifetime: std::marker::PhantomData });
    }

    /// As [`poll`]: what each descriptor is ready for, in the order in which they were added.
    pub(crate) fn poll(&mut self, deadline: Instant) -> io::Result<&[Ready]> {
        poll(&mut self.fds, Some(deadline))?;
        self.ready.clear();
        self.ready.extend(self.fds.iter().map(PollFd::ready));
        Ok(&self.ready)
    }
}

/// Sleeps until a descriptor is ready or `deadline` has come; `None` waits without end.
pub(crate) fn poll(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let timeout = match deadline {
        None => -1,
        // Rounded up: waking before the deadline would make the caller spin until it.
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let millis = left + Duration::from_nanos(999_999);
            i32::try_from(millis.as_millis()).unwrap_or(i32::MAX)
        }
    };
    // SAFETY: `PollFd` is `repr(transparent)` over `pollfd` (its other field has no size), and
    // the length is the slice's own. A descriptor that is not open is reported, no more.
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
