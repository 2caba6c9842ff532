//! The waits of a worker: one `poll` over its waker, its connection and its local streams.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::device::DeviceRelay;
use aiot_tunnel_proto::session::Lingering;

use super::control::Control;
use super::log::RelayObserver;
use crate::config::TunnelId;
use crate::logging::{warn, Code};
use crate::net::{Dialer, LocalSocket, Stream, Wait, WaitError};
use crate::sys::{self, PollFd, PollSet};

pub(super) type TunnelRelay = DeviceRelay<Stream, Dialer, RelayObserver>;

/// How long to wait before the next `poll` if the system has no memory for one.
const POLL_RETRY: Duration = Duration::from_millis(50);

/// Waits once for a relay, then does one turn with everything that is ready.
pub(super) fn turn(
    relay: &mut TunnelRelay,
    control: &Control,
    set: &mut PollSet,
) -> io::Result<()> {
    let (wants_input, wants_local) = (relay.wants_input(), relay.wants_local());
    let now = Instant::now();
    let wants_room = relay.connection().wants_room(now);
    let deadline = relay.deadline(now);

    set.clear();
    set.push(control.waker.as_fd(), true, false);
    let cloud = relay.connection().transport().as_fd();
    let watches_end = relay.watches_end();
    match watches_end {
        true => set.push_until_closed(cloud, wants_room),
        false => set.push(cloud, wants_input, wants_room),
    }
    for session in relay.sessions() {
        let wants_read = wants_local && session.wants_read();
        match session.stream() {
            Some(stream) => set.push(stream.as_fd(), wants_read, session.wants_write()),
            None => set.push(control.waker.as_fd(), false, false),
        }
    }
    for lingering in relay.lingering() {
        set.push(lingering.stream().as_fd(), lingering.wants_read(), lingering.wants_write());
    }
    for dial in relay.side().dials() {
        match dial.fds().next() {
            Some(fd) => set.push(fd, false, true),
            None => set.push(control.waker.as_fd(), false, false),
        }
    }
    // These only end the wait. A dial with several connects looks at all of them itself.
    for fd in relay.side().dials().flat_map(|dial| dial.fds().skip(1)) {
        set.push(fd, false, true);
    }
    let count = relay.sessions().len();
    let dials = 2 + count + relay.lingering().len();
    let ready = set.poll(deadline)?;
    if ready[0].read {
        control.waker.reset();
    }
    relay.connection_mut().ready(wants_input && ready[1].read, ready[1].write);
    if watches_end && ready[1].read {
        relay.connection_mut().hang_up();
    }
    relay.side_mut().ready(&ready[dials..]);
    relay.turn(Instant::now(), &ready[2..2 + count]);
    Ok(())
}

/// Waits while there is no relay. Local streams of former connections linger meanwhile.
pub(super) struct Waiter {
    id: TunnelId,
    pub(super) control: Arc<Control>,
    lingering: RefCell<Vec<Lingering<LocalSocket>>>,
}

impl Waiter {
    pub(super) fn new(id: TunnelId, control: Arc<Control>) -> Self {
        Waiter { id, control, lingering: RefCell::default() }
    }

    pub(super) fn take_lingering(&self) -> Vec<Lingering<LocalSocket>> {
        self.lingering.take()
    }

    pub(super) fn keep_lingering(&self, lingering: Vec<Lingering<LocalSocket>>) {
        *self.lingering.borrow_mut() = lingering;
    }

    /// Drops the lingering local streams. Those with undelivered bytes are cut.
    pub(super) fn give_up_lingering(&self) {
        drop(self.lingering.take());
    }

    /// Blocks until there is a directive or the deadline has passed.
    pub(super) fn sleep(&self, until: Option<Instant>) {
        while !self.control.waits() && until.is_none_or(|until| Instant::now() < until) {
            self.poll(&[], false, until);
        }
    }

    /// Blocks until no local stream lingers, there is a directive, or the time `most` has passed.
    pub(super) fn linger(&self, most: Duration) {
        let until = Instant::now() + most;
        while !self.lingering.borrow().is_empty() && Instant::now() < until {
            if self.control.waits() {
                break;
            }
            self.poll(&[], false, Some(until));
        }
    }

    /// Does one `poll`. Returns whether one of the descriptors is ready.
    fn poll(&self, fds: &[BorrowedFd<'_>], write: bool, deadline: Option<Instant>) -> bool {
        let mut lingering = self.lingering.borrow_mut();
        let mut polled = Vec::with_capacity(1 + fds.len() + lingering.len());
        polled.push(PollFd::new(self.control.waker.as_fd(), true, false));
        polled.extend(fds.iter().map(|fd| PollFd::new(*fd, !write, write)));
        polled.extend(lingering.iter().map(|lingering| {
            let (read, write) = (lingering.wants_read(), lingering.wants_write());
            PollFd::new(lingering.stream().as_fd(), read, write)
        }));
        let now = Instant::now();
        let nearest = lingering.iter().map(|one| one.deadline(now)).chain(deadline).min();
        if let Err(e) = sys::poll(&mut polled, nearest) {
            warn!(Code::TunnelFailed, "tunnel {}: poll: {e}; trying again", self.id);
            thread::sleep(POLL_RETRY);
            return false;
        }
        if polled[0].ready().read {
            self.control.waker.reset();
        }
        let ready = polled[1..=fds.len()].iter().any(|fd| fd.ready() != Default::default());
        drop(polled);
        if !lingering.is_empty() {
            step(&mut lingering);
        }
        ready
    }
}

/// A function of its own, because of its stack: every worker waits, and few have lingering streams.
#[inline(never)]
fn step(lingering: &mut Vec<Lingering<LocalSocket>>) {
    let (now, mut scratch) = (Instant::now(), [0; 8192]);
    lingering.retain_mut(|lingering| !lingering.step(now, &mut scratch));
}

impl Wait for Waiter {
    fn wait(
        &self,
        fds: &[BorrowedFd<'_>],
        write: bool,
        deadline: Instant,
    ) -> Result<(), WaitError> {
        loop {
            if self.control.waits() {
                return Err(WaitError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(WaitError::TimedOut);
            }
            // A lookup that is done wakes the waker.
            if self.poll(fds, write, Some(deadline)) || fds.is_empty() {
                return Ok(());
            }
        }
    }
}
