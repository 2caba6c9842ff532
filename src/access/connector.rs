//! Opens the connections of one tunnel, one at a time.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, Result};
use crate::config::ConnectParams;
use crate::net::open::{Failure, OpenError, Opened, Opener};
use crate::net::resolver::Resolver;
use crate::net::tls::TlsContext;
use crate::net::UntilStopped;
use crate::sys::Waker;

/// Time for one attempt, from the name lookup to the server's answer.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Connector<'a> {
    params: &'a ConnectParams,
    tls: &'a TlsContext,
    stop: &'a Waker,
    /// Woken when a lookup is done.
    lookups: Arc<Waker>,
    resolver: Resolver,
    failed: RefCell<Vec<SocketAddr>>,
}

impl<'a> Connector<'a> {
    pub(super) fn new(
        params: &'a ConnectParams,
        tls: &'a TlsContext,
        stop: &'a Waker,
    ) -> io::Result<Self> {
        let lookups = Arc::new(Waker::new()?);
        let resolver = Resolver::new(lookups.clone());
        Ok(Connector { params, tls, stop, lookups, resolver, failed: RefCell::default() })
    }

    /// Makes one attempt. Blocks for 15 s at most.
    pub(super) fn open(&self) -> Result<Opened> {
        let opener = Opener {
            wait: &UntilStopped { stop: self.stop, lookups: Some(&self.lookups) },
            resolver: &self.resolver,
            failed: &self.failed,
            progress: &|_| {},
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
