//! Opens connections of one tunnel, one after the other.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Result};
use crate::config::ConnectParams;
use crate::net::open::{Failure, OpenError, Opened, Opener};
use crate::net::resolver::Resolver;
use crate::net::tls::TlsContext;
use crate::net::{Wait, WaitError};
use crate::sys::{poll, PollFd, Waker};

/// Time for one attempt, from the lookup to the answer.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Connector<'a> {
    params: &'a ConnectParams,
    tls: &'a TlsContext,
    wait: Waiter<'a>,
    resolver: Resolver,
    failed: RefCell<Vec<SocketAddr>>,
}

impl<'a> Connector<'a> {
    pub(super) fn new(
        params: &'a ConnectParams,
        tls: &'a TlsContext,
        stop: &'a Waker,
    ) -> io::Result<Self> {
        let found = Arc::new(Waker::new()?);
        let resolver = Resolver::new(found.clone());
        let wait = Waiter { stop, found };
        Ok(Connector { params, tls, wait, resolver, failed: RefCell::default() })
    }

    /// One attempt, within the time limit.
    pub(super) fn open(&self) -> Result<Opened> {
        let opener = Opener {
            wait: &self.wait,
            resolver: &self.resolver,
            failed: &self.failed,
            progress: &|_| {},
        };
        let deadline = Instant::now() + TIMEOUT;
        opener.open(self.params, self.tls, deadline).map_err(|e| match e {
            OpenError::Interrupted => Error::Connection("stopped".into()),
            OpenError::Unauthorized => Error::Unauthorized,
            OpenError::Failed(Failure::Status(status)) => Error::Status(status),
            OpenError::Failed(Failure::Tls(why)) => Error::Tls(why),
            OpenError::Failed(failure) => Error::Connection(failure.to_string()),
        })
    }
}

struct Waiter<'a> {
    stop: &'a Waker,
    /// Woken when a lookup has ended.
    found: Arc<Waker>,
}

impl Wait for Waiter<'_> {
    fn wait(
        &self,
        fd: Option<BorrowedFd<'_>>,
        write: bool,
        deadline: Instant,
    ) -> std::result::Result<(), WaitError> {
        let awaited = fd.unwrap_or(self.found.as_fd());
        let mut fds =
            [PollFd::new(awaited, !write, write), PollFd::new(self.stop.as_fd(), true, false)];
        loop {
            poll(&mut fds, Some(deadline)).map_err(WaitError::Io)?;
            let [ready, stopped] = [fds[0].ready(), fds[1].ready()];
            if stopped.read {
                return Err(WaitError::Interrupted);
            }
            if ready != Default::default() {
                if fd.is_none() {
                    self.found.reset();
                }
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(WaitError::TimedOut);
            }
        }
    }
}
