//! A directive from the start thread for a worker, and the waker that wakes the worker.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::ConnectParams;
use crate::sys::Waker;

/// A directive from the start thread to a worker.
pub(crate) enum Directive {
    Connect {
        params: ConnectParams,
        epoch: u64,
        /// The epoch with which the tunnel got this data. It is older than `epoch` if the tunnel is
        /// only to connect again.
        since: u64,
    },
    /// Close the connection, deliver the last bytes to the local services, then end.
    Leave,
    /// End at once.
    Stop,
}

/// A mailbox for one directive. A new directive replaces one that was not taken yet, but nothing
/// replaces a stop.
pub(crate) struct Control {
    directive: Mutex<Option<Directive>>,
    /// Also woken when a lookup is done.
    pub(crate) waker: Arc<Waker>,
}

impl Control {
    pub(crate) fn new(first: Directive) -> io::Result<Self> {
        Ok(Control { directive: Mutex::new(Some(first)), waker: Arc::new(Waker::new()?) })
    }

    pub(crate) fn direct(&self, directive: Directive) {
        let mut slot = self.directive.lock();
        if !matches!(*slot, Some(Directive::Stop)) {
            *slot = Some(directive);
        }
        drop(slot);
        self.waker.wake();
    }

    pub(crate) fn waits(&self) -> bool {
        self.directive.lock().is_some()
    }

    pub(crate) fn take(&self) -> Option<Directive> {
        self.directive.lock().take()
    }
}
