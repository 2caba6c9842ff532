//! Opens the connections of one tunnel, one at a time.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::Ready;

use super::listeners::Listeners;
use super::{log, Error, Result};
use crate::config::{ConnectParams, Network};
use crate::net::addresses::History;
use crate::net::open::{Failure, OpenError, Opened, Opener, Progress};
use crate::net::resolver::Resolver;
use crate::net::tls::TlsContext;
use crate::net::{UntilStopped, Wait, WaitError};
use crate::sys::{poll, PollFd, Waker};

/// Time for one attempt, from the name lookup to the server's answer.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Connector<'a> {
    params: &'a ConnectParams,
    tls: &'a TlsContext,
    network: &'a Network,
    stop: &'a Waker,
    /// Woken when a lookup is done.
    lookups: Arc<Waker>,
    resolver: Resolver,
    history: RefCell<History>,
}

impl<'a> Connector<'a> {
    pub(super) fn new(
        params: &'a ConnectParams,
        tls: &'a TlsContext,
        network: &'a Network,
        stop: &'a Waker,
    ) -> io::Result<Self> {
        let lookups = Arc::new(Waker::new()?);
        let resolver = Resolver::new(lookups.clone());
        let history = RefCell::default();
        Ok(Connector { params, tls, network, stop, lookups, resolver, history })
    }

    /// Makes one attempt. Blocks for 15 s at most.
    pub(super) fn open(&self) -> Result<Opened> {
        self.open_with(&self.wait())
    }

    /// Makes one attempt, and accepts local connections meanwhile. Blocks for 15 s at most.
    pub(super) fn open_beside(&self, listeners: &mut Listeners<'_>) -> Result<Opened> {
        self.open_with(&Accepting { wait: self.wait(), listeners: RefCell::new(listeners) })
    }

    /// Blocks for `time` at most, and accepts local connections meanwhile. Returns true if the
    /// client was stopped.
    pub(super) fn pause(&self, time: Duration, listeners: &mut Listeners<'_>) -> bool {
        let wait = Accepting { wait: self.wait(), listeners: RefCell::new(listeners) };
        let until = Instant::now() + time;
        // Without a descriptor, the wait may return early.
        while Instant::now() < until {
            if let Err(WaitError::Interrupted) = wait.wait(&[], false, until) {
                return true;
            }
        }
        false
    }

    fn wait(&self) -> UntilStopped<'_> {
        UntilStopped { stop: self.stop, lookups: Some(&self.lookups) }
    }

    fn open_with(&self, wait: &impl Wait) -> Result<Opened> {
        let opener = Opener {
            wait,
            resolver: &self.resolver,
            network: self.network,
            history: &self.history,
            progress: &|step| {
                if let Progress::Detour(text) = step {
                    log::warn!("{text}");
                }
            },
        };
        let deadline = Instant::now() + TIMEOUT;
        opener.open(self.params, self.tls, deadline).map_err(|e| match e {
            OpenError::Interrupted => Error::Connection("stopped".into()),
            OpenError::Unauthorized => Error::Unauthorized,
            OpenError::Failed(Failure::Status(status, text)) => Error::Status { status, text },
            OpenError::Failed(Failure::Tls(why)) => Error::Tls(why),
            OpenError::Failed(failure) => Error::Connection(failure.to_string()),
        })
    }
}

/// Waits like [`UntilStopped`], and accepts local connections meanwhile.
struct Accepting<'a, 'b> {
    wait: UntilStopped<'a>,
    listeners: RefCell<&'a mut Listeners<'b>>,
}

impl Wait for Accepting<'_, '_> {
    fn wait(
        &self,
        awaited: &[BorrowedFd<'_>],
        write: bool,
        deadline: Instant,
    ) -> std::result::Result<(), WaitError> {
        let mut listeners = self.listeners.borrow_mut();
        loop {
            let now = Instant::now();
            listeners.step(now);
            let lookups = self.wait.lookups.filter(|_| awaited.is_empty());
            let mut fds = vec![PollFd::new(self.wait.stop.as_fd(), true, false)];
            fds.extend(awaited.iter().map(|fd| PollFd::new(*fd, !write, write)));
            fds.extend(lookups.map(|lookups| PollFd::new(lookups.as_fd(), true, false)));
            let from = fds.len();
            fds.extend(listeners.fds(now).map(|fd| PollFd::new(fd, true, false)));
            let until = listeners.deadline(now).map_or(deadline, |at| at.min(deadline));
            poll(&mut fds, Some(until)).map_err(WaitError::Io)?;
            if fds[0].ready().read {
                return Err(WaitError::Interrupted);
            }
            let is_ready = fds[1..from].iter().any(|fd| fd.ready() != Ready::default());
            let ready: Vec<Ready> = fds[from..].iter().map(PollFd::ready).collect();
            drop(fds);
            listeners.accept(&ready);
            if is_ready {
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
